"""No text of an audit does anything in report.html or report.md, whatever it holds.

The audits are built from the types of the dataclasses' fields, so that a new field is covered by
itself. Every text names its field, so that a failure says which one it was.
"""

import dataclasses
import re
import types
import typing
from html.parser import HTMLParser

import pytest
from audits import rows_of
from jinja2 import UndefinedError
from markdown_it import MarkdownIt

from auditing.benchmarks import NO_THRESHOLD
from auditing.pairs import Pairs
from auditing.report import pages
from auditing.report.pages import html_page, markdown_page
from auditing.report.plots import Plot
from auditing.report.report import PLOTS
from auditing.result import Audit

ATTACK = (
    "{{ 1234 * 1001 }}{% raw %}<img src=http://evil.example onerror=alert(1)>\"' --><!--"
    "\u202egnp\x00\x07\x1b[31m\u2028\ud800\r\n\n# heading\n| cell |\n```\n- item\n"
    "[link](http://evil.example) ![image](http://evil.example) *b* _i_ ~~s~~ `c` $m$"
)
ACTIVE_PRODUCT = str(1234 * 1001)

# Fields that hold one of a few words, or numbers of a fixed shape.
FIXED = {"verdict": "fail", "otherwise": "pass", "style_matrix": [[0.5, 0.25, 0.75]] * 3}


def hostile(name: str) -> str:
    return f"<script>{name}</script>{ATTACK}"


def harmless(name: str) -> str:
    return f"text of {name}"


class Builder:
    """Builds values of any type. `text` gives the texts, by the name of the field they are for."""

    def __init__(self, text, as_messages: bool):
        self.text = text
        self.as_messages = as_messages  # prompts and completions: messages, or strings
        self.names: set[str] = set()  # of the fields that got a text

    def dataclass(self, kind):
        hints = typing.get_type_hints(kind)
        fields = [field.name for field in dataclasses.fields(kind) if field.name not in FIXED]
        values = {name: self.value(hints[name], f"{kind.__name__[:2]}.{name}") for name in fields}
        return kind(**values, **{name: FIXED[name] for name in hints if name in FIXED})

    def value(self, kind, name: str):
        arguments = typing.get_args(kind)
        origin = typing.get_origin(kind)
        if kind is Pairs:
            return Pairs.collect(rows_of(4))
        if dataclasses.is_dataclass(kind):
            return self.dataclass(kind)
        if origin in (typing.Union, types.UnionType):
            return self.value(self.choice(arguments), name)
        if origin is list:
            return [self.value(arguments[0], name)]
        if origin is tuple:
            return tuple(self.value(part, name) for part in arguments)
        if origin is dict:
            return {self.value(arguments[0], name): self.value(arguments[1], name)}
        if kind is dict:  # a message
            return {"role": "user", "content": self.value(str, name)}
        if kind is str:
            self.names.add(name)
            return self.text(name)
        return {float: 0.5, int: 3, bytes: b"", bool: True}[kind]

    def choice(self, kinds):
        if str in kinds and list[dict] in kinds:
            return list[dict] if self.as_messages else str
        return kinds[0]


def both_pages(text, as_messages=False):
    """report.html, report.md, and the names of the fields whose texts they hold."""
    builder = Builder(text, as_messages)
    audit = builder.dataclass(Audit)
    (check,) = audit.checks
    audit.checks += [
        dataclasses.replace(check, subset=None),
        dataclasses.replace(check, verdict="not measurable"),
        dataclasses.replace(check, threshold=NO_THRESHOLD),  # a benchmark's number
    ]
    audit.identity |= {"model": text("model"), "date": text("date")}
    plots = {name: builder.dataclass(Plot) for name in PLOTS}
    return html_page(audit, plots), markdown_page(audit, plots), builder.names


class Skeleton(HTMLParser):
    """The tags of a page with the names of their attributes, without any text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, *(name for name, _ in attributes)))

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}",))

    def handle_comment(self, data):
        self.tags.append(("comment",))


def markdown_skeleton(page: str) -> list[str]:
    """What Markdown makes of a page, without any text."""
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    parts = []
    for token in reader.parse(page):
        inner = [child.type for child in token.children or [] if child.type != "text"]
        parts += [token.type, *inner]
    return parts


@pytest.mark.parametrize("as_messages", [False, True])
def test_every_text_is_escaped_in_report_html(as_messages):
    html, _, names = both_pages(hostile, as_messages)
    assert len(names) > 20
    for name in names:
        assert f"&lt;script&gt;{name}&lt;/script&gt;" in html, name  # shown, and as text
    assert "<script" not in html and ACTIVE_PRODUCT not in html
    assert "{{ 1234 * 1001 }}" in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e\ud800]", html)
    assert Skeleton(html).tags == Skeleton(both_pages(harmless, as_messages)[0]).tags
    html.encode()


@pytest.mark.parametrize("as_messages", [False, True])
def test_no_text_is_active_in_report_md(as_messages):
    _, page, _ = both_pages(hostile, as_messages)
    assert ACTIVE_PRODUCT not in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e\ud800]", page)
    skeleton = markdown_skeleton(page)
    assert skeleton == markdown_skeleton(both_pages(harmless, as_messages)[1])
    assert not {"html_block", "html_inline", "link_open", "fence"} & set(skeleton)
    assert skeleton.count("image") == len(PLOTS)
    page.encode()


def test_nothing_turns_the_escaping_off():
    for name in ("report.html.j2", "report.md.j2"):
        source, *_ = pages.TEMPLATES.loader.get_source(pages.TEMPLATES, name)
        assert not re.search(r"\|\s*safe\b|\{%-?\s*autoescape", source)
    assert pages.TEMPLATES.get_template("report.html.j2").environment.autoescape("report.html.j2")
    assert not hasattr(pages, "Markup")


@pytest.mark.parametrize("page", [html_page, markdown_page])
@pytest.mark.parametrize("name", ["pairs", "checks", "identity", "worst", "top", "probes"])
def test_a_missing_field_is_an_error(page, name):
    audit = Builder(harmless, False).dataclass(Audit)
    delattr(audit, name)
    with pytest.raises((UndefinedError, AttributeError), match=name):
        page(audit, {})


def test_a_missing_field_of_a_part_is_an_error():
    audit = Builder(harmless, False).dataclass(Audit)
    del audit.probes[0].wins
    for page in (html_page, markdown_page):
        with pytest.raises(UndefinedError, match="wins"):
            page(audit, {})
