"""A finding becomes a check with a verdict; false discoveries are taken back; numbers in words."""

import numpy as np
import pytest
from scipy import stats

from auditing.stats import Estimate
from auditing.verdicts import Finding, Limits, control_false_discoveries, judge, short, with_verdict
from reward.data.shown import count

ABOVE = Limits(side="above", source="ours", warn=0.1, fail=0.3)


def finding(value: float, low: float, high: float, p: float | None = None) -> Finding:
    return Finding("a check", Estimate(value, low, high), 50, "accuracy", p=p)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.05, 0.0, 0.1), "pass"),
        ((0.05, 0.0, 0.2), "not measurable"),
        ((0.2, 0.11, 0.4), "warn"),
        ((0.4, 0.31, 0.5), "fail"),
    ],
)
def test_a_verdict_needs_the_whole_interval(interval, verdict):
    check = judge(finding(*interval), ABOVE)
    assert check.verdict == verdict
    assert check.threshold == "warn > .1, fail > .3 (ours)"
    assert ("straddles the threshold of .1" in check.note) == (verdict == "not measurable")


def test_sides():
    below = Limits(side="below", source="ours", fail=0.5)
    both = Limits(side="both", source="ours", warn=0.3)
    assert judge(finding(0.4, 0.3, 0.49), below).verdict == "fail"
    assert judge(finding(0.6, 0.5, 0.7), below).verdict == "pass"
    assert judge(finding(-0.5, -0.6, -0.4), both).verdict == "warn"
    assert judge(finding(0.0, -0.3, 0.3), both).verdict == "pass"
    assert both.in_words() == "warn beyond \u00b1.3 (ours)"
    # Any is too many: none passes, however wide the interval.
    none_allowed = Limits(side="above", source="ours", fail=0.0)
    assert judge(finding(0.0, 0.0, 0.9), none_allowed).verdict == "pass"
    # A difference that is 0 on these few pairs proves nothing.
    not_below = Limits(side="below", source="ours", warn=0.0)
    assert judge(finding(0.0, -0.9, 0.9), not_below).verdict == "not measurable"


def test_what_was_not_measured_says_why():
    nothing = Finding("tie rate", None, 3, "distribution", note="unused", unmeasured="three pairs")
    check = judge(nothing)
    assert (check.verdict, check.note, check.n) == ("not measurable", "three pairs", 3)
    assert check.value is None and check.low is None and check.high is None


@pytest.mark.parametrize("interval", [(0.5, 0.6, 0.7), (float("nan"), 0.0, 1.0)])
def test_an_estimate_outside_its_interval_is_an_error(interval):
    with pytest.raises(ValueError, match="a check: .* does not lie between"):
        judge(finding(*interval), ABOVE)


def test_false_discoveries_are_taken_back_as_benjamini_and_hochberg_do():
    p_values = np.array([0.0001, 0.004, 0.006, 0.0099, 0.2])
    alarms = [judge(finding(0.2, -1.0, 1.0, p=p), ABOVE) for p in p_values]
    assert {check.verdict for check in alarms} == {"warn"}  # by the estimate alone
    unrelated = judge(finding(0.4, 0.31, 0.5), ABOVE)
    excused = with_verdict(finding(0.4, 0.3, 0.5, p=1.0), "not applicable", "no threshold")
    controlled = control_false_discoveries([*alarms, unrelated, excused], q=0.01)
    # The four smallest are .0001 <= .002, .004 <= .004, .006 <= .006, .0099 > .008: three survive.
    survives = stats.false_discovery_control(p_values) <= 0.01
    assert survives.tolist() == [True, True, True, False, False]
    kept = [check.verdict == "warn" for check in controlled[:5]]
    assert kept == survives.tolist()
    assert controlled[3].verdict == "not measurable" and "p = 0.0099" in controlled[3].note
    assert controlled[5:] == [unrelated, excused]
    assert control_false_discoveries([]) == []


def test_short_numbers():
    shown = [short(x) for x in (0.713, -0.04, 1.25, 0.0, -0.0001, 1.0, 10.0)]
    assert shown == [".713", "-.04", "1.25", "0", "0", "1", "10"]
    shown = [short(x) for x in (0.9999, 1.619, 99.97, 114.032, 12345.6, 1e7)]
    assert shown == ["1", "1.62", "100", "114", "12,346", "1e+07"]


def test_counts_have_their_plural():
    assert [count(n, "pair") for n in (0, 1, 1412)] == ["0 pairs", "1 pair", "1,412 pairs"]


def test_a_check_without_an_entry_in_thresholds_names_the_file():
    with pytest.raises(ValueError, match="thresholds.yaml has no entry for 'a check'; add one"):
        judge(finding(0.2, 0.1, 0.3))
