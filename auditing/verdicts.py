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
class Check:
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


def judged(
    name: str, estimate: Estimate | None, n: int, *, section: str, rule: str | None = None, subset: str | None = None,
    detectable: float | None = None, p: float | None = None, note: str = "", unmeasured: str = "too few pairs",
    limits: dict | None = None,
) -> Check:  # fmt: skip
    """A check whose verdict comes from thresholds.yaml: `rule` (default: the name) names the entry.

    An entry has `warn` and `fail` (either may be missing), `side` (`above`, `below`, or `both`: beyond +-), and `source`;
    `limits` is one that depends on the data. An estimate of None is "not measurable", with `unmeasured` as the reason.
    Raises ValueError for an estimate outside its interval.
    """
    limits = THRESHOLDS[rule or name] if limits is None else limits
    threshold = in_words(limits)
    if estimate is None:
        return Check(
            name,
            subset,
            None,
            None,
            None,
            n,
            "not measurable",
            threshold,
            None,
            unmeasured,
            section,
        )
    value, low, high = map(float, estimate)
    if not low <= value <= high:  # also where one of them is NaN
        raise ValueError(f"{name}: {value} does not lie between {low} and {high}")
    given = [kind for kind in ("warn", "fail") if kind in limits]
    first, side = limits[given[0]], limits["side"]
    inside = {"above": high <= first, "below": low >= first, "both": max(-low, high) <= first}[side]
    inside = inside or value == first == 0  # "any" is too many, and there is none
    otherwise = verdict = "pass" if inside else "not measurable"
    for kind in given:
        if beyond(estimate, limits[kind], side, whole=p is None):
            verdict = kind
    if verdict == "not measurable":
        note = "; ".join(
            filter(None, [note, f"the interval straddles the threshold of {short(first)}"])
        )
    return Check(
        name,
        subset,
        value,
        low,
        high,
        n,
        verdict,
        threshold,
        detectable,
        note,
        section,
        p,
        otherwise,
    )


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


def short(value: float) -> str:
    """.713, -.04, 1.25: as papers print them, without the leading zero and trailing zeros."""
    if abs(value) >= 1000:
        return f"{value:.3g}"
    text = f"{value:z.3f}".rstrip("0").rstrip(".")
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def count(n: int, thing: str) -> str:
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"
