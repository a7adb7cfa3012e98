"""The table of checks for a terminal: coloured for a person, plain text in a pipe.

    print_checks(audit.checks)

rich decides about colours: it uses none in a pipe or a file, and none if NO_COLOR is set.
"""

from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from auditing.report.wording import (
    MINUS,
    SURENESS,
    alarms,
    by_section,
    fixed,
    interval,
    is_alarm,
    label,
    measured,
    one_line,
    overall,
    tally,
    title_of,
    worst_first,
)
from auditing.verdicts import Check

MOST_LINES = 40  # about a screen; rows without an alarm are folded until the table fits

LABEL_WIDTH = 38  # characters of a check's name that are shown, so that lines fit 100 columns

HEADS = ("verdict", "check", "value", SURENESS, "n")

ROW = "{:<{}}  {:<{}}  {:>{}}  {:>{}}  {:>{}}"

COLOURS = {
    "fail": "bold red",
    "warn": "yellow",
    "not measurable": "cyan",
    "pass": "green",
    "not applicable": "dim",
}


@dataclass
class Section:
    """The checks of a section that are no alarms."""

    title: str
    shown: list[Check]  # the worst first
    folded: list[Check] = field(default_factory=list)  # only counted, in one line

    def lines(self) -> int:
        """How many lines of the table the section takes, with its title."""
        return 1 + len(self.shown) + bool(self.folded)

    def fold(self) -> None:
        """Fold the least important group of rows."""
        group = foldable(self.shown)
        self.shown = [check for check in self.shown if check not in group]
        self.folded += group


def print_checks(checks: list[Check]) -> None:
    """Print the table of checks to the standard output."""
    Console(highlight=False).print(terminal_table(checks), soft_wrap=True)


def terminal_table(checks: list[Check]) -> Text:
    """The verdict, name, value, interval and n of each check, in at most 100 columns.

    The alarms come first, then the other checks by section. If that is more than about 40 lines,
    checks that passed are folded, and then the others without an alarm, in the longest section
    first. A sentence below the table compares the accuracy with the best baseline.

    Args:
        checks: All checks of an audit, with their final verdicts.

    Returns:
        The lines with their colours; `.plain` is the same as a string.
    """
    urgent = alarms(checks)
    sections = calm_sections(checks)
    fold_to_fit(sections, MOST_LINES - len(urgent) - 1)

    shown = list(urgent)
    for section in sections:
        shown += section.shown
    widths = column_widths(shown)
    lines = [Text(aligned(HEADS, widths), style="bold")]
    for check in urgent:
        lines.append(check_line(check, widths))
    for section in sections:
        lines += section_lines(section, widths)

    accuracy = overall(checks, "accuracy")
    if accuracy is not None and accuracy.baseline is not None:
        noise = overall(checks, "label noise")
        lines.append(Text())
        lines.append(Text(comparison(accuracy, noise)))
    return Text("\n").join(lines)


# --- Rows -----------------------------------------------------------------------------------------


def column_widths(shown: list[Check]) -> list[int]:
    """The number of characters that each column needs."""
    rows = [HEADS]
    rows += map(cells, shown)
    columns = zip(*rows, strict=True)
    return [max(map(len, column)) for column in columns]


def section_lines(section: Section, widths: list[int]) -> list[Text]:
    """The title of a section, its rows, and a line that counts the folded ones."""
    lines = [Text(section.title, style="bold")]
    for check in section.shown:
        lines.append(check_line(check, widths))
    if section.folded:
        lines.append(Text(folded_line(section)))
    return lines


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


def folded_line(section: Section) -> str:
    """How many checks of a section are folded, by verdict."""
    if section.shown:
        return f"  more: {tally(section.folded)}"
    return f"  {tally(section.folded)}"


def comparison(accuracy: Check, noise: Check | None) -> str:
    """A sentence that compares the accuracy with its ceiling, the best baseline and the raters."""
    sentence = f"accuracy {fixed(accuracy.value)}"
    if accuracy.ceiling is not None:
        sentence += f" of a ceiling of {fixed(accuracy.ceiling)}"
    sentence += f"; the best rule that does not read scores {fixed(accuracy.baseline)}"
    if measured(noise):
        sentence += f"; a rater errs on {fixed(noise.value)} of pairs"
    return sentence


# --- Folding --------------------------------------------------------------------------------------


def calm_sections(checks: list[Check]) -> list[Section]:
    """The sections with at least one check that is no alarm, without their alarms."""
    sections = []
    for name, members in by_section(checks).items():
        calm = [check for check in members if not is_alarm(check)]
        if calm:
            title = one_line(title_of(name), 60)
            sections.append(Section(title, shown=worst_first(calm)))
    return sections


def fold_to_fit(sections: list[Section], most_lines: int) -> None:
    """Fold rows until the sections fit, or until there is nothing left to fold.

    Args:
        sections: The sections, which are changed in place.
        most_lines: The largest number of lines that they may take together.
    """
    while sections and total_lines(sections) > most_lines:
        largest = max(sections, key=foldable_rows)
        if not foldable(largest.shown):
            break
        largest.fold()


def total_lines(sections: list[Section]) -> int:
    """How many lines of the table the sections take together."""
    return sum(section.lines() for section in sections)


def foldable_rows(section: Section) -> tuple[int, str]:
    """The sort key of a section: how many rows it would fold next, and its title."""
    return len(foldable(section.shown)), section.title


def foldable(shown: list[Check]) -> list[Check]:
    """The rows to fold next; a single row is not folded, because that would save nothing.

    These are the subsets that passed, then all subsets, then all that passed, then all rows.
    """
    subsets = [check for check in shown if check.subset is not None]
    for group in (quiet(subsets), subsets, quiet(shown), shown):
        if len(group) > 1:
            return group
    return []


def quiet(checks: list[Check]) -> list[Check]:
    """The checks that nobody has to read."""
    return [check for check in checks if check.verdict in ("pass", "not applicable")]
