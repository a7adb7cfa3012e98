"""A headless Chromium that tests open pages in, driven over a pipe; no package is needed.

    with Browser() as browser:
        page = browser.open(path, width=390)
        page.evaluate("document.title")

It speaks the DevTools protocol: JSON messages that end in a null byte, on file descriptors 3 and 4.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")

PATIENCE = 120  # seconds without a word from Chromium after which it counts as hung

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def chromium() -> str | None:
    """The path of an installed Chromium; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Page:
    """An open page, and what it did while it loaded."""

    browser: "Browser"
    session: str
    requests: list[str] = field(default_factory=list)  # the addresses that it asked for
    dialogs: list[str] = field(default_factory=list)  # the texts of alert() and the like
    messages: list[str] = field(default_factory=list)  # what scripts wrote to the console

    def evaluate(self, script: str):
        """The value of a script, in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def call(self, method: str, **parameters) -> dict:
        return self.browser.call(method, self.session, **parameters)

    def pdf(self) -> bytes:
        """The page as it is printed."""
        answer = self.call("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        return base64.b64decode(answer["data"])


class Browser:
    """A Chromium process; as a context manager, it ends with the block."""

    def __enter__(self) -> "Browser":
        self.folder = tempfile.mkdtemp()
        read_commands, self.commands = os.pipe()
        self.answers, write_answers = os.pipe()
        command = [chromium(), *FLAGS, f"--user-data-dir={self.folder}"]
        # The process expects its ends of the pipes at the descriptors 3 and 4.
        shell = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=(read_commands, write_answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        self.buffer = b""
        self.sent = 0
        self.pages: dict[str, Page] = {}
        return self

    def __exit__(self, *error) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)
        shutil.rmtree(self.folder, ignore_errors=True)

    def open(self, path: Path, width: int, height: int = 800) -> Page:
        """Load a file in a window of this width, and wait until it is there."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        answer = self.call("Target.attachToTarget", targetId=target, flatten=True)
        page = Page(self, answer["sessionId"])
        self.pages[page.session] = page
        for domain in ("Page", "Runtime", "Network"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        page.call("Page.navigate", url=Path(path).resolve().as_uri())
        while self.read(page.session) != "Page.loadEventFired":
            pass
        return page

    def call(self, method: str, session: str | None = None, **parameters) -> dict:
        """Send a command, and wait for its answer."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        number = self.sent
        while True:
            answer = self.message()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.note(answer)

    def read(self, session: str) -> str:
        """Wait for the next event of a page, note it, and return its name."""
        while True:
            event = self.message()
            self.note(event)
            if event.get("sessionId") == session and "method" in event:
                return event["method"]

    def message(self) -> dict:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], PATIENCE)
            assert ready, f"Chromium said nothing for {PATIENCE} s"
            part = os.read(self.answers, 1 << 20)
            assert part, "Chromium ended"
            self.buffer += part
        first, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(first)

    def note(self, event: dict) -> None:
        """Keep what a page did."""
        page = self.pages.get(event.get("sessionId"))
        if page is None:
            return
        parameters = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                page.requests.append(parameters["request"]["url"])
            case "Page.javascriptDialogOpening":
                page.dialogs.append(parameters["message"])
                self.close_dialog(page)
            case "Runtime.consoleAPICalled":
                page.messages.append(str(parameters["args"]))

    def close_dialog(self, page: Page) -> None:
        """Close a dialog, which would block the page. Nobody waits for the answer."""
        self.sent += 1
        message = {"id": self.sent, "method": "Page.handleJavaScriptDialog"}
        message |= {"params": {"accept": True}, "sessionId": page.session}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
