"""What an audit says on a terminal: coloured for a person, plain text in a pipe.

    print_audit(audit)

The conclusion comes first, then the alarms, then a line a section; with `verbose` every check.
rich decides about colours: it uses none in a pipe or a file, and none if NO_COLOR is set.
"""

import textwrap

from rich.console import Console
from rich.text import Text

from auditing.benchmarks import numbers_among
from auditing.findings import alarms, counted, is_alarm
from auditing.report.wording import (
    MINUS,
    SURENESS,
    by_section,
    clip,
    fixed,
    interval,
    label,
    one_line,
    ranking_sentence,
    tally,
    title_of,
    worst_first,
)
from auditing.result import Audit
from auditing.verdicts import Check

WIDTH = 100  # columns
LONGEST_CONCLUSION = 2000  # characters
LABEL_WIDTH = 38  # characters of a check's name that are shown, so that lines fit WIDTH

HEADS = ("verdict", "check", "value", SURENESS, "n")

ROW = "{:<{}}  {:<{}}  {:>{}}  {:>{}}  {:>{}}"

COLOURS = {
    "fail": "bold red",
    "warn": "yellow",
    "not measurable": "cyan",
    "pass": "green",
    "not applicable": "dim",
}


def print_audit(audit: Audit, verbose: bool = False) -> None:
    """Print the conclusion and the checks to the standard output."""
    Console(highlight=False).print(terminal_text(audit, verbose), soft_wrap=True)


def terminal_text(audit: Audit, verbose: bool = False) -> Text:
    """The conclusion, and the verdict, name, value, interval and n of each alarm.

    Args:
        audit: The result of an audit, with final verdicts.
        verbose: Whether every other check gets a line as well; without it, a section gets one.

    Returns:
        The lines with their colours, at most WIDTH columns wide; `.plain` is the same as a string.
    """
    urgent = alarms(audit.checks)
    calm = by_section([check for check in audit.checks if not is_alarm(check)])
    shown = list(urgent)
    if verbose:
        shown = audit.checks
    widths = column_widths(shown)

    lines = conclusion_lines(audit) + comparison_lines(audit) + benchmark_lines(audit)
    if urgent:
        lines.append(Text(counted(audit.checks)))
    if shown:
        lines.append(Text(aligned(HEADS, widths), style="bold"))
    for check in urgent:
        lines.append(check_line(check, widths))
    if urgent:
        lines.append(Text())
    for name, members in calm.items():
        lines += section_lines(name, members, widths, verbose)
    return Text("\n").join(lines)


def conclusion_lines(audit: Audit) -> list[Text]:
    """The conclusion in lines of WIDTH columns, the first sentence bold, and an empty line."""
    conclusion = audit.conclusion
    lines = textwrap.wrap(clip(conclusion.text, LONGEST_CONCLUSION), WIDTH)
    text = Text("\n".join(lines))
    text.stylize("bold", 0, len(conclusion.advice))
    return [text, Text()]


def comparison_lines(audit: Audit) -> list[Text]:
    """Which of the models of --compare is better, and an empty line; nothing without them."""
    if audit.ranking is None:
        return []
    sentence = clip(ranking_sentence(audit.ranking), LONGEST_CONCLUSION)
    return [Text("\n".join(textwrap.wrap(sentence, WIDTH))), Text()]


def benchmark_lines(audit: Audit) -> list[Text]:
    """A benchmark's numbers by its own rules, and an empty line; nothing without a benchmark.

    The main number comes first, then its parts, then what else is over all prompts.
    """
    numbers = numbers_among(audit.checks)
    if not numbers:
        return []
    main, *others = numbers
    lines = [benchmark_line(main, main.name)]
    for check in others:
        if check.name == main.name:
            lines.append(benchmark_line(check, check.subset, indent=2))
    for check in others:
        if check.subset is None:
            lines.append(benchmark_line(check, check.name))
    return [*lines, Text()]


def benchmark_line(check: Check, name: str, indent: int = 0) -> Text:
    """The line of a benchmark's number, under this name and with so many spaces before it."""
    shown = " " * indent + one_line(name, LABEL_WIDTH - indent)
    value = f"{fixed(check.value):>5}  ({SURENESS} {interval(check)}, n = {check.n:,})"
    return Text(f"{shown:<{LABEL_WIDTH}}  {value}".replace(MINUS, "-"))


# --- Rows -----------------------------------------------------------------------------------------


def section_lines(name: str, members: list[Check], widths: list[int], verbose: bool) -> list[Text]:
    """A line that counts a section's checks; with `verbose` its title and a line for each check.

    Args:
        name: The name of the section.
        members: Its checks that are no alarms.
        widths: The widths of the columns.
        verbose: Whether each check gets a line.
    """
    title = one_line(title_of(name), 60)
    if not verbose:
        return [Text(f"{title}: {tally(members)}")]
    lines = [Text(title, style="bold")]
    for check in worst_first(members):
        lines.append(check_line(check, widths))
    return lines


def column_widths(shown: list[Check]) -> list[int]:
    """The number of characters that each column needs."""
    rows = [HEADS]
    rows += map(cells, shown)
    columns = zip(*rows, strict=True)
    return [max(map(len, column)) for column in columns]


def cells(check: Check) -> tuple[str, ...]:
    """The cells of a check's row, with a minus sign that every terminal can print."""
    return (
        check.verdict,
        one_line(label(check), LABEL_WIDTH),
        fixed(check.value).replace(MINUS, "-"),
        interval(check).replace(MINUS, "-"),
        f"{check.n:,}",
    )


def aligned(row: tuple[str, ...], widths: list[int]) -> str:
    """Align the cells of a row with those of other rows: words left, numbers right."""
    cells_and_widths = []
    for cell, width in zip(row, widths, strict=True):
        cells_and_widths += [cell, width]
    return ROW.format(*cells_and_widths)


def check_line(check: Check, widths: list[int]) -> Text:
    """A check's row, its verdict in colour."""
    text = aligned(cells(check), widths)
    line = Text(text)
    line.stylize(COLOURS[check.verdict], 0, len(check.verdict))
    return line
