"""The table of checks for a terminal: in colour where a person reads it, plain text in a pipe.

    print_checks(audit.checks)

rich looks after the colours: none in a pipe or a file, and none where NO_COLOR is set.
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

MOST_LINES = 40  # about a screen; what is no alarm is folded until the table is no longer

LABEL_WIDTH = 38  # characters of a check's name, so that a line has at most 100 columns

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
    folded: list[Check] = field(default_factory=list)  # counted in one line

    def lines(self) -> int:
        """How many lines of the table it takes, its title included."""
        return 1 + len(self.shown) + bool(self.folded)

    def fold(self) -> None:
        """Fold the group of rows that says least."""
        group = foldable(self.shown)
        self.shown = [check for check in self.shown if check not in group]
        self.folded += group


def print_checks(checks: list[Check]) -> None:
    """Print the table of checks to the standard output."""
    Console(highlight=False).print(terminal_table(checks), soft_wrap=True)


def terminal_table(checks: list[Check]) -> Text:
    """The verdict, name, value, interval and n of each check, in at most 100 columns.

    The alarms come first, then the rest by section. Where that is more than about 40 lines, what
    passed is folded, and then what is no alarm, in the longest section first.
    """
    urgent = alarms(checks)
    sections = folded_to_fit(calm_sections(checks), MOST_LINES - 1 - len(urgent))
    shown = urgent + [check for section in sections for check in section.shown]
    head = ("verdict", "check", "value", SURENESS, "n")
    widths = [max(map(len, column)) for column in zip(head, *map(cells, shown), strict=True)]
    lines = [Text(aligned(head, widths), style="bold")]
    lines += [check_line(check, widths) for check in urgent]
    for section in sections:
        lines.append(Text(section.title, style="bold"))
        lines += [check_line(check, widths) for check in section.shown]
        if section.folded:
            lines.append(Text(folded_line(section)))
    accuracy = overall(checks, "accuracy")
    if accuracy is not None and accuracy.baseline is not None:
        lines += [Text(), Text(comparison(accuracy, overall(checks, "label noise")))]
    return Text("\n").join(lines)


# --- Rows -----------------------------------------------------------------------------------------


def cells(check: Check) -> tuple[str, ...]:
    """The cells of a check's row, with a minus that every terminal can print."""
    return (
        check.verdict,
        one_line(label(check), LABEL_WIDTH),
        fixed(check.value).replace(MINUS, "-"),
        interval(check).replace(MINUS, "-"),
        f"{check.n:,}",
    )


def aligned(row: tuple[str, ...], widths: list[int]) -> str:
    """The cells of a row under those of the others: words to the left, numbers to the right."""
    pairs = zip(row, widths, strict=True)
    return ROW.format(*(part for pair in pairs for part in pair))


def check_line(check: Check, widths: list[int]) -> Text:
    """A check's row, its verdict in colour."""
    line = Text(aligned(cells(check), widths))
    line.stylize(COLOURS[check.verdict], 0, len(check.verdict))
    return line


def folded_line(section: Section) -> str:
    """How many checks of a section are not shown, by verdict."""
    if section.shown:
        return f"  more: {tally(section.folded)}"
    return f"  {tally(section.folded)}"


def comparison(accuracy: Check, noise: Check | None) -> str:
    """The accuracy beside what it should be compared with."""
    sentence = f"accuracy {fixed(accuracy.value)}"
    if accuracy.ceiling is not None:
        sentence += f" of a ceiling of {fixed(accuracy.ceiling)}"
    sentence += f"; the best rule that does not read scores {fixed(accuracy.baseline)}"
    if measured(noise):
        sentence += f"; a rater errs on {fixed(noise.value)} of pairs"
    return sentence


# --- Folding --------------------------------------------------------------------------------------


def calm_sections(checks: list[Check]) -> list[Section]:
    """The sections that have a check which is no alarm."""
    sections = []
    for name, members in by_section(checks).items():
        calm = worst_first(check for check in members if not is_alarm(check))
        if calm:
            sections.append(Section(one_line(title_of(name), 60), calm))
    return sections


def folded_to_fit(sections: list[Section], most_lines: int) -> list[Section]:
    """The sections with rows folded until they fit, or until there is nothing left to fold."""
    while sum(section.lines() for section in sections) > most_lines:
        open_sections = [section for section in sections if foldable(section.shown)]
        if not open_sections:
            break
        largest = max(open_sections, key=lambda one: (len(foldable(one.shown)), one.title))
        largest.fold()
    return sections


def foldable(shown: list[Check]) -> list[Check]:
    """What to fold next; folding one row alone would save nothing.

    First the subsets that passed, then the other subsets, then what passed, then the rest.
    """
    subsets = [check for check in shown if check.subset is not None]
    for group in (quiet(subsets), subsets, quiet(shown), shown):
        if len(group) > 1:
            return group
    return []


def quiet(checks: list[Check]) -> list[Check]:
    """The checks that nobody has to read."""
    return [check for check in checks if check.verdict in ("pass", "not applicable")]
