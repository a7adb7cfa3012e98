"""Small charts inside the page, as numbers that a template draws: bars with their intervals.

    meter(check)        # one check: its number and interval, over the zones of the verdicts
    probe_chart(audit)  # all edits: bars from 0 over one axis

All places are percentages of a chart's width, so that a chart is as wide as its cell.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from auditing.findings import (
    EDITS_IN_WORDS,
    PROBES,
    alarms,
    alarms_by_finding,
    edit_of,
    sentence_of,
)
from auditing.report.links import alarm_id
from auditing.report.meanings import (
    drawn_limits,
    in_unit,
    limits_in_words,
    limits_of_check,
    near_a_fail,
    rule_of,
    unit_of,
    value_in_words,
)
from auditing.report.wording import MINUS, VERDICT_LOOKS, title_of
from auditing.result import Audit, ProbeResult, RankedModel, Ranking
from auditing.stats import Estimate
from auditing.verdicts import Check, Limits, is_beyond

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
            colour=VERDICT_LOOKS[verdict].colour,
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
    numbers = [check.value, check.low, check.high, *drawn_limits(check)]
    present = [0.0, *filter(all_finite, numbers)]
    room = 0.15 * (max(present) - min(present))
    for limit in drawn_limits(check):  # The zones on both sides of a limit shall be seen.
        numbers += [limit - room, limit + room]
    return fitted_axis(numbers)


# --- The gauge of one check -----------------------------------------------------------------------


@dataclass(frozen=True)
class Zone:
    """A part of a gauge in which a number would get one verdict."""

    left: float
    width: float
    colour: str


PLAIN_ZONE = Zone(0.0, 100.0, "#E4E4E4")  # of a gauge without limits


@dataclass(frozen=True)
class Gauge:
    """A number with its interval, over the zones of the verdicts."""

    value: float
    low: float  # the ends of the interval
    high: float
    zones: list[Zone]
    marks: list[float]  # dashed ticks, in place of zones: a rule that does not read


@dataclass(frozen=True)
class Limit:
    """A limit in words, with the colour of the zone that begins there."""

    words: str
    colour: str | None  # None for a dashed tick


@dataclass(frozen=True)
class Meter:
    """A check as a gauge with words around it."""

    label: str  # what was measured
    text: str  # the number in words
    gauge: Gauge | None
    start: str  # the ends of the axis in words
    end: str
    limits: list[Limit]
    note: str  # how the number stands to the limit of a fail, if that is not plain to see


def meter(check: Check) -> Meter:
    """The meter of one check."""
    axis = axis_of(check)
    unit = unit_of(check)
    limits = []
    for verdict, words in limits_in_words(check):
        colour = None
        if verdict is not None:
            colour = VERDICT_LOOKS[verdict].colour
        limits.append(Limit(words, colour))
    return Meter(
        label=meter_label(check),
        text=value_in_words(check),
        gauge=gauge(check, axis),
        start=in_unit(axis.start, unit),
        end=in_unit(axis.end, unit),
        limits=limits,
        note=near_a_fail(check),
    )


def gauge(check: Check, axis: Axis) -> Gauge | None:
    """The gauge of one check; None if it has no value."""
    if not all_finite(check.value, check.low, check.high):
        return None
    limits = limits_of_check(check)
    edges = [edge for edge in drawn_limits(check) if axis.start < edge < axis.end]
    zones = [PLAIN_ZONE]
    marks = []
    if limits is None:
        marks = edges
    else:
        zones = zones_between(edges, limits, axis)
    return Gauge(
        value=axis.place(check.value),
        low=axis.place(check.low),
        high=axis.place(check.high),
        zones=zones,
        marks=[axis.place(mark) for mark in marks],
    )


def zones_between(edges: list[float], limits: Limits, axis: Axis) -> list[Zone]:
    """The zones of an axis, which meet at these edges, from left to right."""
    zones = []
    for left, right in itertools.pairwise(sorted([axis.start, *edges, axis.end])):
        start = axis.place(left)
        colour = VERDICT_LOOKS[verdict_at((left + right) / 2, limits)].colour
        zones.append(Zone(start, round(axis.place(right) - start, 2), colour))
    return zones


def verdict_at(number: float, limits: Limits) -> str:
    """The verdict on a number that is known for sure."""
    known = Estimate(number, number, number)
    if is_beyond(known, limits.fail, limits.side, whole_interval=True):
        return "fail"
    if is_beyond(known, limits.warn, limits.side, whole_interval=True):
        return "warn"
    return "pass"


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


# --- The ranking of compared models ---------------------------------------------------------------


def ranking_axis(ranking: Ranking) -> Axis:
    """An axis in percent that fits the accuracies of all models, so that differences are seen."""
    start = 100 * min(model.low for model in ranking.models)
    end = 100 * max(model.high for model in ranking.models)
    room = max(0.08 * (end - start), 0.5)
    return Axis(max(0.0, start - room), min(100.0, end + room))


def ranked_gauge(model: RankedModel, axis: Axis) -> Gauge:
    """The accuracy of a compared model on the axis of the ranking; it has no verdict."""
    places = [axis.place(100 * number) for number in (model.accuracy, model.low, model.high)]
    return Gauge(*places, zones=[PLAIN_ZONE], marks=[])


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
    ids = {check: alarm_id(place) for place, check in enumerate(alarms(audit.checks))}
    cards = []
    for members in alarms_by_finding(audit.checks)[:most]:
        worst = members[0]
        cards.append(
            Card(
                verdict=worst.verdict,
                sentence=sentence_of(members),
                meters=[meter(check) for check in shown_members(members)],
                alarm=ids[worst],
            )
        )
    return cards


def shown_members(members: list[Check]) -> list[Check]:
    """The alarms of a finding that its card shows: the worst, and those of other edits."""
    worst = members[0]
    shown = [worst]
    edits = [edit_of(worst)]
    for check in members:
        if edit_of(worst) is not None and edit_of(check) not in [None, *edits]:
            shown.append(check)
            edits.append(edit_of(check))
    return shown[:MOST_METERS]


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
    unknown: int  # of how many edits nothing can be said
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
    unknown = sum(row.verdict == "not measurable" for row in rows)
    return ProbeChart(axis, rows, paid_for, unknown, others)


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
