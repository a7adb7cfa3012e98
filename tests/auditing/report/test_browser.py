"""The report in a real browser: nothing scrolls sideways, nothing is fetched, nothing runs."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from audits import full_audit, report
from browser import Browser, chromium
from test_hostile_text import both_pages

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no chromium is installed (Debian: apt-get install chromium)"
)

DESKTOP, PHONE = 1280, 390
SMALL_WINDOW, TABLET = 910, 768

# The width that the page needs, and the elements that reach beyond the window, for the message.
WIDE_ELEMENTS = """
[...document.querySelectorAll("body *")]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .slice(0, 5).map(e => e.outerHTML.slice(0, 120))
"""
OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"
BROKEN_LINKS = """
[...document.querySelectorAll("a")].map(a => a.getAttribute("href"))
  .filter(h => h[0] != "#" || !document.getElementById(h.slice(1)))
"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server():
    """A server on this machine, and the paths that it was asked for."""
    asked = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    listening = HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}", asked
    listening.shutdown()


def attack(address: str) -> str:
    """Text that would run a script, open a dialog, load a file and widen the page, as HTML."""
    return (
        f"<script>fetch('{address}/script')</script><img src={address}/image onerror=alert(1)>"
        f"<link rel=stylesheet href={address}/style><a href={address}/link>link</a>"
        f"<style>body{{width:3000px;background:url({address}/url)}}</style>\"' " + "wide" * 400
    )


def check_page(page) -> None:
    """Nothing scrolls sideways, closed or open, and every link has its target."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), page.evaluate(
        WIDE_ELEMENTS
    )
    page.evaluate(OPEN_ALL)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), page.evaluate(
        WIDE_ELEMENTS
    )
    assert page.evaluate(BROKEN_LINKS) == []
    assert page.evaluate("document.links.length") > 3


@pytest.mark.parametrize("width", [DESKTOP, SMALL_WINDOW, TABLET, PHONE])
def test_a_report_fits_its_window_and_fetches_nothing(browser, width, tmp_path):
    report(full_audit(), tmp_path)
    page = browser.open(tmp_path / "report.html", width)
    check_page(page)
    fetched = [url for url in page.requests if not url.startswith("data:image/png;base64,")]
    assert fetched == [(tmp_path / "report.html").as_uri()]


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_hostile_text_runs_nothing(browser, server, width, tmp_path):
    address, asked = server
    html, _, _ = both_pages(lambda name: f"{name} {attack(address)}")
    (tmp_path / "report.html").write_text(html)
    page = browser.open(tmp_path / "report.html", width)
    check_page(page)
    assert page.evaluate("document.scripts.length") == 0
    assert asked == [] and page.dialogs == []
    assert [url for url in page.requests if url.startswith("http")] == []


def test_the_attack_works_where_nothing_is_escaped(browser, server, tmp_path):
    """Without this, the test above could pass because its text harms nobody."""
    address, asked = server
    (tmp_path / "open.html").write_text(f"<!DOCTYPE html><body>{attack(address)}</body>")
    page = browser.open(tmp_path / "open.html", DESKTOP)
    assert {"/script", "/image", "/style"} <= set(asked)
    assert page.dialogs == ["1"]
    assert not page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    asked.clear()


def test_an_alarm_opens_when_a_link_points_to_it(browser, tmp_path):
    report(full_audit(), tmp_path)
    page = browser.open(tmp_path / "report.html", DESKTOP)
    page.evaluate("document.querySelector('.cards a').click()")
    assert page.evaluate("document.querySelector('#alarm-1').closest('details').open")
