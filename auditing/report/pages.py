"""The two pages of a report, report.html and report.md, and the filters that their templates use.

report.html is one file that loads nothing and runs nothing. Jinja escapes whatever a template
prints into it. Text from the data also goes through `clip`, which shortens it and makes invisible
characters visible. report.md has no escaping of its own, so text from the data goes through `plain`
or `quoted`.
"""

import base64
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from os.path import commonprefix
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from auditing.report import wording
from auditing.report.plots import Plot
from auditing.result import Audit, BestOfN, ProbeResult, Side, Strip
from auditing.verdicts import Check, count, short
from reward.data.transcripts import text_of

MARKDOWN_CLIP = 400  # how many characters of a text report.md shows

STRIP_TOKENS = 160  # how many tokens of a completion a page shows, half of them from its end

EXAMPLE_LEAD = 150  # characters of a probe's example before the point where its sides differ

STYLES = ("concise", "detailed", "markdown")  # of RM-Bench, in the order of its files


@dataclass(frozen=True)
class VerdictLook:
    """How a verdict is shown; the sign and the word say the same as the colour."""

    sign: str
    colour: str  # of the ground under black text: tints of Okabe and Ito's palette


VERDICT_LOOKS = {
    "fail": VerdictLook("\u2717", "#F0A080"),
    "warn": VerdictLook("!", "#F3C25C"),
    "not measurable": VerdictLook("?", "#B5DCF3"),
    "pass": VerdictLook("\u2713", "#8FD6BF"),
    "not applicable": VerdictLook("\u2013", "#E2E2E2"),
}


def html_page(audit: Audit, plots: dict[str, Plot]) -> str:
    """The page for a browser.

    Args:
        audit: The result of an audit.
        plots: The plots of the same audit, from auditing.report.plots.draw_plots.
    """
    template = TEMPLATES.get_template("report.html.j2")
    return template.render(audit=audit, plots=plots)


def markdown_page(audit: Audit, plots: dict[str, Plot]) -> str:
    """The page as plain text.

    It has all numbers of report.html, but not the probes' examples and the reward after each token.

    Args:
        audit: The result of an audit.
        plots: The plots of the same audit, whose pictures lie beside the page as name.png.
    """
    template = TEMPLATES.get_template("report.md.j2")
    return template.render(audit=audit, plots=plots)


def subject(audit: Audit) -> str:
    """The name of what was audited."""
    identity = audit.identity
    return identity.get("model") or identity.get("scores") or "reward model"


# --- Intervals as pictures ------------------------------------------------------------------------

LEFT_END = 4  # pixels from the left of a picture that is 160 wide
LINE_LENGTH = 152  # pixels


@dataclass(frozen=True)
class IntervalBar:
    """An interval to draw. All numbers are pixels from the left of the picture."""

    low: float
    high: float
    value: float
    mark: float  # the dashed tick


@dataclass(frozen=True)
class Scale:
    """The numbers at the left and the right end of the pictures in a column of intervals."""

    start: float
    end: float

    def bar(
        self, value: float | None, low: float | None, high: float | None, mark: float
    ) -> IntervalBar | None:
        """Place a value and its interval in the picture.

        Args:
            value: The number that was measured.
            low: The lower end of its 95% interval.
            high: The upper end.
            mark: The number at which the dashed tick stands.

        Returns:
            The bar, at least a pixel long; None if a number is missing.
        """
        for number in (value, low, high):
            if number is None or not math.isfinite(number):
                return None
        left = self.position(low)
        right = self.position(high)
        return IntervalBar(
            low=left,
            high=max(right, left + 1),
            value=self.position(value),
            mark=self.position(mark),
        )

    def position(self, number: float) -> float:
        """The pixel at which a number stands; a number beyond an end stands at that end."""
        inside = max(number, self.start)
        inside = min(inside, self.end)
        return LEFT_END + LINE_LENGTH * (inside - self.start) / (self.end - self.start)

    def in_words(self) -> str:
        """The two ends in words, for the head of the column."""
        return f"{short(self.start)} to {short(self.end)}".replace("-", wording.MINUS)


def scale_of(measured: Iterable[Check | ProbeResult]) -> Scale:
    """A scale that holds all intervals and reaches equally far to both sides of 0."""
    farthest = 0.0
    for one in measured:
        for end in (one.low, one.high):
            if end is not None and math.isfinite(end):
                farthest = max(farthest, abs(end))
    if farthest == 0:
        return Scale(-1.0, 1.0)
    reach = float(f"{farthest:.1g}")
    if reach < farthest:  # It was rounded down.
        reach *= 1.5
    return Scale(-reach, reach)


# --- Tables ---------------------------------------------------------------------------------------


def html_id(section: str) -> str:
    """The HTML id of a section's table, to which the strip of verdicts links."""
    return "checks-" + re.sub(r"[^a-z0-9]+", "-", section.lower())


@dataclass(frozen=True)
class SubsetTable:
    """One check that was made on each subset."""

    name: str
    checks: list[Check]  # the worst subset first
    is_share: bool  # a number between 0 and 1, not a difference
    scale: Scale

    @property
    def has_notes(self) -> bool:
        """Whether the table needs a column of notes."""
        return any(check.note for check in self.checks)

    def mark(self, check: Check) -> float:
        """The number at which the dashed tick stands.

        It is the accuracy of the best baseline that ignores content, or else the value that means
        "nothing": one half for a share, 0 for a difference.
        """
        if check.baseline is not None:
            return check.baseline
        if self.is_share:
            return 0.5
        return 0.0


def subset_tables(checks: list[Check]) -> list[SubsetTable]:
    """One table for each check that looks at subsets."""
    members: dict[str, list[Check]] = {}
    for check in checks:
        if check.subset is not None:
            members.setdefault(check.name, [])
            members[check.name].append(check)
    return [subset_table(name, of_name) for name, of_name in members.items()]


def subset_table(name: str, checks: list[Check]) -> SubsetTable:
    """The table of one check, and the scale of its bars."""
    is_share = "accuracy" in name or all(map(lies_in_unit_interval, checks))
    scale = scale_of(checks)
    if is_share:
        scale = Scale(0.0, 1.0)
    return SubsetTable(name, wording.worst_first(checks), is_share, scale)


def lies_in_unit_interval(check: Check) -> bool:
    """Whether the interval lies in [0, 1] or is unknown."""
    return check.low is None or (check.low >= 0 and check.high <= 1)


def measured_names(curve: list[BestOfN]) -> list[str]:
    """The names of the numbers that were measured of the best of n, in the order to print."""
    names = []
    for name in ("reward", "gold", "length", "hedges", "markdown"):
        values = [getattr(point, name) for point in curve]
        if any(value is not None for value in values):
            names.append(name)
    return names


def style_means(matrix: list[list[float]]) -> dict[str, float]:
    """RM-Bench's three accuracies by style (arXiv 2410.16184).

    The chosen completion has the showier style below the diagonal ("easy"), the same style on it
    ("normal"), and the plainer style above it ("hard").

    Args:
        matrix: (3, 3) accuracies, by the style of the chosen and of the rejected completion.
    """
    values = np.array(matrix, dtype=float)  # (chosen style, rejected style)
    places = {
        "easy": np.tril_indices(3, -1),
        "normal": np.diag_indices(3),
        "hard": np.triu_indices(3, 1),
    }
    return {name: float(values[place].mean()) for name, place in places.items()}


def cell_depth(accuracy: float) -> str:
    """The opacity of the blue of a cell of the style matrix."""
    accuracy = max(min(accuracy, 1), 0)
    return f"{0.45 * accuracy:.2f}"


# --- Texts ----------------------------------------------------------------------------------------


def ending(prompt: Side, characters: int = 300) -> str:
    """The last characters of a prompt, which the completion answers."""
    text = text_of(prompt)
    if len(text) <= characters:
        return text
    return f"\u2026 {text[-characters:]}"


@dataclass(frozen=True)
class ExampleSide:
    """A completion before or after an edit."""

    name: str  # "before" or "after"
    reward: float | None
    text: str
    is_cut: bool  # whether the beginning, which both sides have in common, is left out


def probe_example(probe: ProbeResult) -> list[ExampleSide]:
    """The completion that gained most by the edit, from shortly before the first difference.

    Returns:
        Two sides, or none if no completion was edited.
    """
    if probe.before is None or probe.after is None:
        return []
    before = text_of(probe.before)
    after = text_of(probe.after)
    shared = commonprefix([before, after])
    start = max(0, len(shared) - EXAMPLE_LEAD)
    is_cut = start > 0
    return [
        ExampleSide("before", probe.reward_before, before[start:], is_cut),
        ExampleSide("after", probe.reward_after, after[start:], is_cut),
    ]


@dataclass(frozen=True)
class Token:
    """A token of a completion, with the reward after it."""

    text: str
    reward: str
    shade: str  # the CSS class: p1 to p4 above zero, n1 to n4 below, the deeper the further


def token_strip(strip: Strip) -> list[Token]:
    """The tokens of a completion as they are shown; the largest reward has the deepest shade."""
    farthest = 0.0
    for _, reward in strip:
        if math.isfinite(reward):
            farthest = max(farthest, abs(reward))
    return [shown_token(token, reward, farthest) for token, reward in strip]


def shown_token(token: str, reward: float, farthest: float) -> Token:
    """A token as it is shown.

    Args:
        token: The text of the token.
        reward: The reward after the token; NaN is shown as 0.
        farthest: The largest absolute reward of the completion.
    """
    text = visible_spaces(wording.clip(token, 40))
    if reward == 0 or not math.isfinite(reward):
        return Token(text, "0", "z")
    depth = math.ceil(4 * abs(reward) / farthest)
    if reward > 0:
        return Token(text, wording.signed(reward), f"p{depth}")
    return Token(text, wording.signed(reward), f"n{depth}")


def visible_spaces(token: str) -> str:
    """A token with visible signs for line ends, tabs, and the space before a word."""
    if not token:
        return "\u2205"
    token = token.replace("\n", "\u21b5")
    token = token.replace("\t", "\u21e5")
    if token.startswith(" "):
        return "\u00b7" + token[1:]
    return token


# --- Markdown -------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """A text on one line, escaped so that Markdown shows it as it is."""
    line = escape(wording.one_line(str(text), MARKDOWN_CLIP), quote=False)
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", line)


def quoted(side: Side) -> str:
    """Somebody's text as an indented block, in which Markdown has no special characters."""
    return "    " + wording.one_line(text_of(side), MARKDOWN_CLIP)


# --- The templates --------------------------------------------------------------------------------


def base64_of(image: bytes) -> str:
    """The bytes of an image as text, for a data URI."""
    return base64.b64encode(image).decode()


FILTERS = (  # A template uses each by its own name: `{{ check.value | fixed }}`.
    # Text.
    text_of,
    wording.clip,
    wording.title_of,
    wording.label,
    plain,
    quoted,
    # Numbers.
    count,
    wording.thousands,
    wording.fixed,
    wording.signed,
    wording.interval,
    wording.detectable,
    # Checks.
    wording.by_section,
    wording.worst_first,
    wording.alarms,
    wording.tally,
    subset_tables,
    html_id,
    # The audit.
    subject,
    wording.headline,
    wording.blind_spots,
    # Pictures and tables.
    base64_of,
    scale_of,
    measured_names,
    style_means,
    cell_depth,
    # Prompts and completions.
    ending,
    probe_example,
    token_strip,
)

CONSTANTS = {
    "sureness": wording.SURENESS,
    "strip_tokens": STRIP_TOKENS,
    "styles": STYLES,
    "verdict_looks": VERDICT_LOOKS,
}


def load_templates() -> Environment:
    """The templates of this folder, with their filters and constants.

    Autoescape is on for HTML. A name that a template misspells raises jinja2.UndefinedError.
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in FILTERS:
        templates.filters[function.__name__] = function
    templates.globals.update(CONSTANTS)
    return templates


TEMPLATES = load_templates()
