"""The two pages of a report, report.html and report.md, and the filters that their templates use.

report.html is one file that loads nothing and runs nothing. Jinja escapes whatever a template
prints into it. Text from the data also goes through `clip`, which shortens it and makes invisible
characters visible. report.md has no escaping of its own, so text from the data goes through `plain`
or `quoted`.
"""

import base64
import math
import re
from dataclasses import dataclass
from html import escape
from os.path import commonprefix
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from auditing import findings
from auditing.findings import percent
from auditing.report import first_screen, wording
from auditing.report.charts import (
    Axis,
    Bar,
    finding_cards,
    fitted_axis,
    meter,
    probe_chart,
    ranked_gauge,
    ranking_axis,
)
from auditing.report.links import LENGTH_PLOTS, html_id, links_of, plot_id, probe_id
from auditing.report.meanings import meaning_of, near_a_fail
from auditing.report.plots import Plot
from auditing.result import Audit, BestOfN, ProbeExample, ProbeResult, Side, Strip
from auditing.verdicts import Check
from reward.data.shown import count
from reward.data.transcripts import text_of

MARKDOWN_CLIP = 400  # how many characters of a text report.md shows

STRIP_TOKENS = 160  # how many tokens of a completion a page shows, half of them from its end

EXAMPLE_LEAD = 150  # characters of a probe's example before the point where its sides differ

STYLES = ("concise", "detailed", "markdown")  # of RM-Bench, in the order of its files


def html_page(audit: Audit, plots: dict[str, Plot]) -> str:
    """The page for a browser.

    Args:
        audit: The result of an audit.
        plots: The plots of the same audit, from auditing.report.plots.draw_plots.
    """
    template = TEMPLATES.get_template("report.html.j2")
    return template.render(audit=audit, plots=plots, links=links_of(audit, plots))


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


# --- Tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SubsetTable:
    """One check that was made on each subset."""

    name: str
    checks: list[Check]  # the worst subset first
    is_share: bool  # a number between 0 and 1, not a difference
    axis: Axis

    @property
    def has_notes(self) -> bool:
        """Whether the table needs a column of notes."""
        return any(check.note for check in self.checks)

    def bar(self, check: Check) -> Bar | None:
        """The bar of one subset.

        The dashed tick is the accuracy of the best baseline that ignores content, or else one half
        for a share.
        """
        marks = []
        if check.baseline is not None:
            marks = [check.baseline]
        elif self.is_share:
            marks = [0.5]
        return self.axis.bar(check.value, check.low, check.high, check.verdict, marks)


def subset_tables(checks: list[Check]) -> list[SubsetTable]:
    """One table for each check that looks at subsets."""
    members: dict[str, list[Check]] = {}
    for check in checks:
        if check.subset is not None:
            members.setdefault(check.name, [])
            members[check.name].append(check)
    return [subset_table(name, of_name) for name, of_name in members.items()]


def subset_table(name: str, checks: list[Check]) -> SubsetTable:
    """The table of one check, and the axis of its bars."""
    is_share = "accuracy" in name or all(map(lies_in_unit_interval, checks))
    axis = Axis(0.0, 1.0)
    if not is_share:
        ends = [check.low for check in checks] + [check.high for check in checks]
        axis = fitted_axis(ends)
    return SubsetTable(name, wording.worst_first(checks), is_share, axis)


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
    reward: float
    text: str
    is_cut: bool  # whether the beginning, which both sides have in common, is left out


@dataclass(frozen=True)
class Example:
    """A completion before and after an edit, as the page shows it."""

    label: str  # which of all completions it is
    prompt: Side
    sides: list[ExampleSide]


def probe_examples(probe: ProbeResult) -> list[Example]:
    """The completion that gained most by an edit, and a typical one; none if nothing was edited."""
    examples = []
    if probe.largest is not None:
        label = f"The largest rise of {probe.n:,}"
        if probe.largest.reward_after <= probe.largest.reward_before:
            label = f"The smallest fall of {probe.n:,}"
        examples.append(shown_example(label, probe.largest))
    if probe.typical is not None:
        label = f"A typical one: the median change of {probe.n:,}"
        examples.append(shown_example(label, probe.typical))
    return examples


def shown_example(label: str, example: ProbeExample) -> Example:
    """An example with its label, from shortly before the first difference of its sides."""
    before = text_of(example.before)
    after = text_of(example.after)
    shared = commonprefix([before, after])
    start = max(0, len(shared) - EXAMPLE_LEAD)
    is_cut = start > 0
    if is_cut:
        start = max(start, shared.find(" ", start) + 1)  # A word is not cut if there is a space.
    sides = [
        ExampleSide("before", example.reward_before, before[start:], is_cut),
        ExampleSide("after", example.reward_after, after[start:], is_cut),
    ]
    return Example(f"{label}, {wording.signed(example.gain)}", example.prompt, sides)


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


def in_code(text: str) -> list[tuple[bool, str]]:
    """The parts of a text between backticks (True), and those around them (False)."""
    return [(place % 2 == 1, part) for place, part in enumerate(text.split("`"))]


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
    wording.share,
    wording.points,
    wording.signed,
    percent,
    wording.interval,
    wording.detectable,
    # Checks.
    wording.by_section,
    wording.worst_first,
    wording.tally,
    findings.alarms,
    findings.alarms_by_finding,
    findings.sentence_of,
    findings.alarm_in_words,
    findings.counted,
    meaning_of,
    near_a_fail,
    subset_tables,
    html_id,
    plot_id,
    probe_id,
    # The audit.
    subject,
    first_screen.use_badges,
    first_screen.headline,
    first_screen.section_badges,
    first_screen.unseen,
    first_screen.blind_spots,
    wording.ranking_sentence,
    wording.couple_sentence,
    wording.differing_first,
    # Pictures and tables.
    base64_of,
    finding_cards,
    meter,
    probe_chart,
    ranked_gauge,
    ranking_axis,
    measured_names,
    style_means,
    cell_depth,
    # Prompts and completions.
    ending,
    probe_examples,
    in_code,
    token_strip,
)

CONSTANTS = {
    "sureness": wording.SURENESS,
    "strip_tokens": STRIP_TOKENS,
    "styles": STYLES,
    "length_plots": LENGTH_PLOTS,
    "verdict_looks": wording.VERDICT_LOOKS,
    "questions": wording.SECTIONS,
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
