"""What a check found, and how a verdict is passed on it. NumPy only.

- A threshold check alarms when the whole 95% interval is beyond its threshold (thresholds.yaml, each with its source).
- A check with a p-value alarms when the estimate is beyond its threshold and the p-value survives the false-discovery control
  that all such checks share (Benjamini and Hochberg 1995, q = .01).
- "pass": the whole interval is on the good side of the first threshold.
- "not measurable": neither; this n cannot tell. `detectable` is the smallest effect that it shows with 80% power.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from auditing.stats import Estimate

VERDICTS = ("fail", "warn", "not measurable", "pass", "not applicable")  # the worst first


THRESHOLDS = yaml.safe_load(Path(__file__).with_name("thresholds.yaml").read_text(encoding="utf-8"))


FALSE_DISCOVERY_RATE = 0.01


RETAINED = "beyond the threshold, but that could be chance among so many checks"


@dataclass(frozen=True)
class Finding:
    """What a check measured, before a verdict is passed on it."""

    name: str
    estimate: Estimate | None  # None: it could not be measured
    n: int  # what it was measured on: pairs, prompts or texts
    section: str  # where the report puts it
    subset: str | None = None  # None: all pairs
    rule: str | None = None  # its entry in thresholds.yaml; None: the entry of its name
    detectable: float | None = None  # the smallest effect that n shows with 80% power
    p: float | None = None  # under the hypothesis of no effect; shares the false-discovery control
    note: str = ""
    unmeasured: str = "too few pairs"  # the reason where the estimate is None


@dataclass(frozen=True)
class Check:
    """A finding with its verdict. audit.json holds these fields, in this order."""

    name: str
    subset: str | None  # None: all pairs
    value: float | None
    low: float | None  # 95% interval
    high: float | None
    n: int
    verdict: str
    threshold: str
    detectable: float | None  # the smallest effect that n shows with 80% power
    note: str = ""
    section: str = "accuracy"  # where the report puts it
    p: float | None = None  # under the hypothesis of no effect; shares the false-discovery control
    otherwise: str = "pass"  # the verdict where that control takes an alarm back
    baseline: float | None = (
        None  # accuracy alone: what the best rule that does not read scores on the same pairs
    )
    ceiling: float | None = None  # accuracy alone: what the true utilities would score


def judge(finding: Finding, limits: dict | None = None) -> Check:
    """Pass the verdict on a finding by its entry in thresholds.yaml.

    A finding without an estimate is "not measurable", and its `unmeasured` says why.

    Args:
        finding: What the check measured.
        limits: An entry that depends on the data, in place of the one in thresholds.yaml. It has `warn` and `fail` (one of them
            may be missing), `side` (`above`, `below`, or `both`: beyond plus or minus) and `source`.

    Raises:
        ValueError: The estimate lies outside its interval.
    """
    if limits is None:
        limits = THRESHOLDS[finding.rule or finding.name]
    threshold = in_words(limits)
    if finding.estimate is None:
        unmeasured = replace(finding, note=finding.unmeasured, detectable=None, p=None)
        return with_verdict(unmeasured, "not measurable", threshold)

    value, low, high = map(float, finding.estimate)
    if not low <= value <= high:  # This is also true where one of them is NaN.
        raise ValueError(f"{finding.name}: {value} does not lie between {low} and {high}")
    kinds = [kind for kind in ("warn", "fail") if kind in limits]
    first = limits[kinds[0]]
    without_alarm = (
        "pass" if on_the_good_side(finding.estimate, first, limits["side"]) else "not measurable"
    )
    verdict = without_alarm
    for kind in kinds:
        if beyond(finding.estimate, limits[kind], limits["side"], whole=finding.p is None):
            verdict = kind
    if verdict == "not measurable":
        straddles = f"the interval straddles the threshold of {short(first)}"
        finding = replace(finding, note=joined(finding.note, straddles))
    return replace(with_verdict(finding, verdict, threshold), otherwise=without_alarm)


def with_verdict(finding: Finding, verdict: str, threshold: str) -> Check:
    """A Check whose verdict comes from a rule of its own; `threshold` says that rule in words."""
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


def on_the_good_side(estimate: Estimate, limit: float, side: str) -> bool:
    """Whether the whole interval is on the good side of the limit."""
    if estimate.value == limit == 0:  # Any is too many, and there is none.
        return True
    if side == "above":
        return estimate.high <= limit
    if side == "below":
        return estimate.low >= limit
    return max(-estimate.low, estimate.high) <= limit


def beyond(estimate: Estimate, limit: float, side: str, whole: bool) -> bool:
    """Is the estimate (`whole`: its whole interval) beyond the limit?"""
    low, high = (estimate.low, estimate.high) if whole else (estimate.value, estimate.value)
    above, below = low > limit, high < (-limit if side == "both" else limit)
    return {"above": above, "below": below, "both": above or below}[side]


def in_words(limits: dict) -> str:
    sign = {"above": "> ", "below": "< ", "both": "beyond \u00b1"}[limits["side"]]
    said = ", ".join(
        f"{kind} {sign}{short(limits[kind])}" for kind in ("warn", "fail") if kind in limits
    )
    return f"{said} ({limits['source']})"


def control_false_discoveries(checks: list[Check], q: float = FALSE_DISCOVERY_RATE) -> list[Check]:
    """Takes back the alarms whose p-value does not survive: reject the k smallest of m, k the largest with p_(k) <= k q / m.
    Benjamini and Hochberg, JRSS B 57 (1995). Every check with a p-value counts in m, alarmed or not."""
    shared = [
        check for check in checks if check.p is not None and check.verdict != "not applicable"
    ]
    p = np.sort([check.p for check in shared])
    passed = np.flatnonzero(p <= q * np.arange(1, len(p) + 1) / max(len(p), 1))
    limit = p[passed[-1]] if len(passed) else -1.0
    return [
        replace(
            check,
            verdict=check.otherwise,
            note="; ".join(filter(None, [check.note, f"{RETAINED}, p = {check.p:.2g}"])),
        )
        if check.p is not None and check.p > limit and check.verdict in ("warn", "fail")
        else check
        for check in checks
    ]


def joined(*notes: str) -> str:
    """The notes that are not empty, with "; " between them."""
    return "; ".join(note for note in notes if note)


def short(value: float) -> str:
    """.713, -.04, 1.25: as papers print them, without the leading zero and trailing zeros."""
    if abs(value) >= 1000:
        return f"{value:.3g}"
    text = f"{value:z.3f}".rstrip("0").rstrip(".")
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def count(n: int, thing: str) -> str:
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"
