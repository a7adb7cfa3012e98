"""Verdicts: what a check measured, and whether it passes, warns or fails.

- A check alarms when its whole 95% interval is beyond its threshold (thresholds.yaml, each with
  its source).
- A check with a p-value alarms when its estimate is beyond the threshold and the p-value survives
  the false-discovery control that all such checks share (Benjamini and Hochberg 1995, q = .01).
- A check passes when its whole interval is on the good side of the first threshold.
- Otherwise it is "not measurable": n is too small. `detectable` is the smallest effect that this n
  shows with 80% power.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from auditing.stats import Estimate

VERDICTS = ("fail", "warn", "not measurable", "pass", "not applicable")  # the worst first
FALSE_DISCOVERY_RATE = 0.01
RETAINED = "beyond the threshold, but that could be chance among so many checks"


# --- Findings, limits and checks ------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What a check measured, before a verdict is passed on it."""

    name: str
    estimate: Estimate | None  # None if it could not be measured
    n: int  # how many pairs, prompts or texts it was measured on
    section: str  # where the report puts it
    subset: str | None = None  # None for all pairs
    rule: str | None = None  # its entry in thresholds.yaml; None for the entry of its name
    detectable: float | None = None  # the smallest effect that n shows with 80% power
    p: float | None = None  # under the hypothesis of no effect; shares the false-discovery control
    note: str = ""
    unmeasured: str = "too few pairs"  # the reason if the estimate is None


@dataclass(frozen=True)
class Limits:
    """When a check alarms: an entry of thresholds.yaml."""

    side: str  # which side alarms: "above", "below", or "both" (beyond plus or minus)
    source: str  # where the numbers come from
    warn: float | None = None  # None if it never warns
    fail: float | None = None  # None if it never fails

    @property
    def first(self) -> float:
        """The limit that an estimate reaches first."""
        return self.fail if self.warn is None else self.warn

    def in_words(self) -> str:
        """The limits and their source, such as "warn > .02, fail > .5 (ours)"."""
        sign = {"above": "> ", "below": "< ", "both": "beyond \u00b1"}[self.side]
        parts = []
        if self.warn is not None:
            parts.append(f"warn {sign}{short(self.warn)}")
        if self.fail is not None:
            parts.append(f"fail {sign}{short(self.fail)}")
        return f"{', '.join(parts)} ({self.source})"


@dataclass(frozen=True)
class Check:
    """A finding with its verdict. audit.json holds these fields, in this order."""

    name: str
    subset: str | None  # None for all pairs
    value: float | None
    low: float | None  # 95% interval
    high: float | None
    n: int
    verdict: str  # one of VERDICTS
    threshold: str  # the rule that the verdict comes from, in words
    detectable: float | None  # the smallest effect that n shows with 80% power
    note: str = ""
    section: str = "accuracy"  # where the report puts it
    p: float | None = None  # under the hypothesis of no effect; shares the false-discovery control
    otherwise: str = "pass"  # the verdict if that control takes an alarm back
    # Only accuracy has these two, which are accuracies on the same pairs.
    baseline: float | None = None  # of the best rule that ignores content
    ceiling: float | None = None  # of the true utilities


def read_thresholds() -> dict[str, Limits]:
    """The limits of every rule in thresholds.yaml, by name."""
    path = Path(__file__).with_name("thresholds.yaml")
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: Limits(**entry) for name, entry in entries.items()}


THRESHOLDS = read_thresholds()


def limits_of(rule: str) -> Limits:
    """The entry of a rule in thresholds.yaml. Raises ValueError if it has none."""
    if rule not in THRESHOLDS:
        raise ValueError(
            f"auditing/thresholds.yaml has no entry for {rule!r}; add one, such as "
            f'`{rule}: {{warn: 0.1, side: above, source: "ours"}}`'
        )
    return THRESHOLDS[rule]


# --- Verdicts -------------------------------------------------------------------------------------


def judge(finding: Finding, limits: Limits | None = None) -> Check:
    """Pass the verdict on a finding, by its entry in thresholds.yaml.

    A finding without an estimate is "not measurable", and its `unmeasured` says why.

    Args:
        finding: What the check measured.
        limits: Limits that take the place of those in thresholds.yaml, because they depend on the
            data; None for those in thresholds.yaml.

    Raises:
        ValueError: The estimate lies outside its interval, or thresholds.yaml has no such rule.
    """
    if limits is None:
        limits = limits_of(finding.rule or finding.name)
    if finding.estimate is None:
        unmeasured = replace(finding, note=finding.unmeasured, detectable=None, p=None)
        return with_verdict(unmeasured, "not measurable", limits.in_words())

    value, low, high = map(float, finding.estimate)
    if not low <= value <= high:  # This is also true if one of them is NaN.
        raise ValueError(f"{finding.name}: {value} does not lie between {low} and {high}")
    without_alarm = "not measurable"
    if is_clear(finding.estimate, limits):
        without_alarm = "pass"
    verdict = without_alarm
    whole_interval = finding.p is None
    if is_beyond(finding.estimate, limits.warn, limits.side, whole_interval):
        verdict = "warn"
    if is_beyond(finding.estimate, limits.fail, limits.side, whole_interval):
        verdict = "fail"
    if verdict == "not measurable":
        straddles = f"the interval straddles the threshold of {short(limits.first)}"
        finding = replace(finding, note=joined(finding.note, straddles))
    check = with_verdict(finding, verdict, limits.in_words())
    return replace(check, otherwise=without_alarm)


def with_verdict(finding: Finding, verdict: str, threshold: str) -> Check:
    """Make a check with a verdict by a rule of its own; `threshold` says the rule in words."""
    value = low = high = None
    if finding.estimate is not None:
        value, low, high = map(float, finding.estimate)
    return Check(
        name=finding.name,
        subset=finding.subset,
        value=value,
        low=low,
        high=high,
        n=finding.n,
        verdict=verdict,
        threshold=threshold,
        detectable=finding.detectable,
        note=finding.note,
        section=finding.section,
        p=finding.p,
    )


def is_clear(estimate: Estimate, limits: Limits) -> bool:
    """Whether the whole interval is on the good side of the first limit."""
    limit = limits.first
    if limits.side == "above":
        # With a limit of 0 even one is too many. There is none, whatever the interval says.
        return estimate.high <= limit or estimate.value == limit == 0
    if limits.side == "below":
        return estimate.low >= limit
    return max(-estimate.low, estimate.high) <= limit


def is_beyond(estimate: Estimate, limit: float | None, side: str, whole_interval: bool) -> bool:
    """Whether the estimate, or its whole interval, is beyond the limit; False without a limit."""
    if limit is None:
        return False
    low = high = estimate.value
    if whole_interval:
        low, high = estimate.low, estimate.high
    if side == "above":
        return low > limit
    if side == "below":
        return high < limit
    return low > limit or high < -limit


def control_false_discoveries(checks: list[Check], q: float = FALSE_DISCOVERY_RATE) -> list[Check]:
    """Take back the alarms whose p-value does not survive, and return all checks.

    Benjamini and Hochberg, JRSS B 57 (1995): of m sorted p-values the k smallest survive, where k
    is the largest with p_(k) <= k q / m. m counts every check with a p-value, whether it alarms or
    not.

    Args:
        checks: All checks of an audit.
        q: The expected share of false alarms among the alarms that survive.
    """
    from scipy.stats import false_discovery_control  # It takes most of a second to load.

    sharing = [c for c in checks if c.p is not None and c.verdict != "not applicable"]
    adjusted = false_discovery_control([check.p for check in sharing])
    by_chance = {check.p for check, p in zip(sharing, adjusted, strict=True) if p > q}
    controlled = []
    for check in checks:
        if check.p in by_chance and check.verdict in ("warn", "fail"):
            note = joined(check.note, f"{RETAINED}, p = {check.p:.2g}")
            check = replace(check, verdict=check.otherwise, note=note)
        controlled.append(check)
    return controlled


# --- Words ----------------------------------------------------------------------------------------


def joined(*notes: str) -> str:
    """Join the notes that are not empty with "; "."""
    return "; ".join(note for note in notes if note)


def decimals(value: float) -> int:
    """How many decimals a number is printed with: three digits in all, and at most three decimals.

    It is .713, 1.25, 10.5 and 114.
    """
    size = abs(float(f"{value:.3g}"))
    if size < 1:
        return 3
    if size < 10:
        return 2
    if size < 100:
        return 1
    return 0


def short(value: float) -> str:
    """A number as papers print it, without leading and trailing zeros: .713, -.04, 1.25, 114."""
    if abs(value) >= 1_000_000:
        return f"{value:.3g}"
    text = f"{value:z,.{decimals(value)}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    if text.startswith(("0.", "-0.")):
        text = text.replace("0.", ".", 1)
    return text
