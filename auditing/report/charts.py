"""Small charts inside the page, as numbers that a template draws: bars with their intervals.

    meter(check)        # one check: a bar from 0, its interval, and where it alarms

All places are percentages of a chart's width, so that a chart is as wide as its cell.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from auditing.findings import EDITS_IN_WORDS, PROBES, edit_of, theme_of
from auditing.report.meanings import (
    drawn_limits,
    in_unit,
    limits_in_words,
    rule_of,
    unit_of,
    value_in_words,
)
from auditing.report.wording import MINUS, VERDICT_LOOKS, alarms, title_of
from auditing.result import Audit, ProbeResult
from auditing.verdicts import Check

MOST_METERS = 2  # in the card of one finding


# --- Axes and bars --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A number as a bar from 0. Places are percentages of the width."""

    left: float  # of the bar
    width: float
    low: float  # the ends of the interval
    high: float
    zero: float  # where 0 stands
    limits: list[float]  # dashed ticks
    colour: str


@dataclass(frozen=True)
class Axis:
    """The numbers at the left and the right end of a chart."""

    start: float
    end: float

    def place(self, number: float) -> float:
        """The place of a number; a number beyond an end stands at that end."""
        inside = min(max(number, self.start), self.end)
        return round(100 * (inside - self.start) / (self.end - self.start), 2)

    def bar(
        self,
        value: float | None,
        low: float | None,
        high: float | None,
        verdict: str,
        limits: Iterable[float] = (),
    ) -> Bar | None:
        """Draw a number with its interval.

        Args:
            value: The number that was measured.
            low: The lower end of its 95% interval.
            high: The upper end.
            verdict: The verdict on it, which decides the colour.
            limits: The numbers at which dashed ticks stand; those off the axis are left out.

        Returns:
            None if a number is missing.
        """
        if not all_finite(value, low, high):
            return None
        zero = self.place(0.0)
        end = self.place(value)
        return Bar(
            left=min(zero, end),
            width=max(abs(end - zero), 0.4),  # A bar of nothing still shows.
            low=self.place(low),
            high=self.place(high),
            zero=zero,
            limits=[self.place(limit) for limit in limits if self.start <= limit <= self.end],
            colour=VERDICT_LOOKS[verdict].ink,
        )

    def ticks(self) -> list[tuple[float, str]]:
        """The places and the numbers of about five round ticks."""
        step = round_step((self.end - self.start) / 5)
        first = math.ceil(self.start / step - 1e-9)
        last = math.floor(self.end / step + 1e-9)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        ticks = []
        for i in range(first, last + 1):
            text = f"{i * step:z.{digits}f}".replace("-", MINUS)
            ticks.append((self.place(i * step), text))
        return ticks


def all_finite(*numbers: float | None) -> bool:
    """Whether no number is missing, NaN or infinite."""
    return all(number is not None and math.isfinite(number) for number in numbers)


def round_step(width: float) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten that is not below a width."""
    power = 10.0 ** math.floor(math.log10(width))
    for factor in (1, 2, 5):
        if width <= factor * power * (1 + 1e-9):
            return factor * power
    return 10 * power


def fitted_axis(numbers: Iterable[float | None]) -> Axis:
    """An axis that holds 0 and all these numbers, with a little room at the ends that are not 0."""
    present = [number for number in numbers if all_finite(number)]
    start = min([0.0, *present])
    end = max([0.0, *present])
    room = 0.04 * (end - start)
    if room <= 0 or not math.isfinite(room):
        return Axis(-1.0, 1.0)
    if start < 0:
        start -= room
    if end > 0:
        end += room
    return Axis(start, end)


def axis_of(check: Check) -> Axis:
    """The axis for a check: 0 to 1 for a share, -1 to 1 for a correlation, or one that fits."""
    unit = unit_of(check)
    if unit == "share":
        return Axis(0.0, 1.0)
    if unit == "correlation":
        return Axis(-1.0, 1.0)
    return fitted_axis([check.value, check.low, check.high, *drawn_limits(check)])


# --- The meter of one check -----------------------------------------------------------------------


@dataclass(frozen=True)
class Meter:
    """A check as a bar with words around it."""

    label: str  # what was measured
    text: str  # the number in words
    bar: Bar | None
    start: str  # the ends of the axis in words
    end: str
    limits: str  # what the dashed ticks are
    verdict: str


def meter(check: Check) -> Meter:
    """The meter of one check."""
    axis = axis_of(check)
    unit = unit_of(check)
    return Meter(
        label=meter_label(check),
        text=value_in_words(check),
        bar=axis.bar(check.value, check.low, check.high, check.verdict, drawn_limits(check)),
        start=in_unit(axis.start, unit),
        end=in_unit(axis.end, unit),
        limits=limits_in_words(check),
        verdict=check.verdict,
    )


def meter_label(check: Check) -> str:
    """What a check measured, in a few words."""
    edit = edit_of(check)
    if edit is None:
        label = check.name
        if check.subset is not None:
            label = f"{check.name}, {check.subset}"
        return title_of(label)
    action = EDITS_IN_WORDS[edit]
    rule = rule_of(check)
    if rule == "pairs that flip":
        return f"{action}: pairs turned"
    if rule == "reward change":
        return f"{action}: change"
    return action


# --- The cards of the worst findings --------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """One of the worst findings: its sentence and its chart."""

    verdict: str
    sentence: str
    meters: list[Meter]
    alarm: str  # the id of its alarm on the page


def finding_cards(audit: Audit, most: int = 3) -> list[Card]:
    """The cards of the worst findings, at most `most` of them."""
    all_alarms = alarms(audit.checks)
    cards = []
    for finding in audit.conclusion.findings[:most]:
        worst = next(
            check
            for check in all_alarms
            if (check.name, check.subset) == (finding.check, finding.subset)
        )
        shown = shown_members(worst, all_alarms)
        cards.append(
            Card(
                verdict=finding.verdict,
                sentence=finding.sentence,
                meters=[meter(check) for check in shown],
                alarm=alarm_id(all_alarms.index(worst)),
            )
        )
    return cards


def shown_members(worst: Check, all_alarms: list[Check]) -> list[Check]:
    """The alarms that a finding's card shows: the worst, and others of the same theme and rule."""
    shown = [worst]
    edits = [edit_of(worst)]
    for check in all_alarms:
        same_theme = theme_of(check) == theme_of(worst)
        is_new = check != worst and edit_of(check) not in edits
        if same_theme and is_new and edit_of(worst) is not None and edit_of(check) is not None:
            shown.append(check)
            edits.append(edit_of(check))
    return shown[:MOST_METERS]


def alarm_id(place: int) -> str:
    """The HTML id of the alarm at this place in the list of alarms."""
    return f"alarm-{place + 1}"


# --- Probes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProbeRow:
    """A row of the chart of probes."""

    place: int  # in audit.probes
    probe: ProbeResult
    words: str  # what the edit does
    verdict: str  # the worst of its checks
    bar: Bar | None


@dataclass(frozen=True)
class ProbeChart:
    """All edits over one axis, the largest rise first."""

    axis: Axis
    rows: list[ProbeRow]
    paid_for: int  # how many edits raise an alarm
    others: list[Meter]  # what else was probed: other prompts, hard pairs


def probe_chart(audit: Audit) -> ProbeChart:
    """The chart of all edits; its axis fits the data."""
    ends = []
    for probe in audit.probes:
        ends += [probe.change, probe.low, probe.high]
    axis = fitted_axis(ends)
    rows = []
    for place, probe in enumerate(audit.probes):
        verdict = probe_verdict(audit.checks, probe.probe)
        rows.append(
            ProbeRow(
                place=place,
                probe=probe,
                words=EDITS_IN_WORDS.get(probe.probe, probe.probe),
                verdict=verdict,
                bar=axis.bar(probe.change, probe.low, probe.high, verdict),
            )
        )
    rows.sort(key=lambda row: -change_or_least(row.probe))
    others = [
        meter(check)
        for check in audit.checks
        if check.section == PROBES and edit_of(check) is None and check.value is not None
    ]
    paid_for = sum(row.verdict in ("fail", "warn") for row in rows)
    return ProbeChart(axis, rows, paid_for, others)


def change_or_least(probe: ProbeResult) -> float:
    """The mean change of an edit; edits without one come last."""
    if probe.change is None:
        return -math.inf
    return probe.change


def probe_verdict(checks: list[Check], edit: str) -> str:
    """The verdict on an edit: its worst alarm, or else "pass" if any of its checks passed."""
    verdicts = [check.verdict for check in checks if edit_of(check) == edit]
    for verdict in ("fail", "warn", "pass"):
        if verdict in verdicts:
            return verdict
    return "not measurable"


def probe_id(place: int) -> str:
    """The HTML id of the probe at this place in audit.probes."""
    return f"probe-{place + 1}"
