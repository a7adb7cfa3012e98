"""Length excess, accuracy at equal lengths and by length; what their intervals cover."""

import math
from dataclasses import replace

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import special

from auditing import stats as ours
from auditing.checks.accuracy import accuracy
from auditing.checks.length import (
    FEW_PROMPTS,
    accuracy_by_length,
    accuracy_curve,
    controlled_check,
    correlation_check,
    excess_check,
    length_checks,
    length_controlled_accuracy,
    length_excess,
)
from auditing.pairs import Pairs
from auditing.stats import Estimate
from auditing.verdicts import THRESHOLDS


def test_length_excess_by_hand():
    margins = np.array([1.0, -1.0, -1.0, 0.0, 5.0])
    # Raters: longer, longer, shorter, shorter; the last is left out.
    differences = np.array([3.0, 2.0, -4.0, -1.0, 0.0])
    # model: longer, shorter, longer, tie -> d = 0, -1, 1, .5
    estimate = length_excess(margins, differences)
    assert estimate.value == 0.125
    half = 1.959964 * math.sqrt(2.25 + 1 - 0.25 / 6) / 6
    assert (estimate.low, estimate.high) == pytest.approx(
        (0.5 / 6 - half, 0.5 / 6 + half), abs=1e-6
    )
    never_differ = length_excess(np.ones(10), np.ones(10))
    assert never_differ.value == 0 and never_differ.low < 0 < never_differ.high


def test_a_model_that_is_right_where_the_longer_side_is_has_no_fit():
    finite = pairs_of_lengths(range(60), [(9, 2), (2, 9)] * 30)
    by_length = replace(finite, rewards=finite.lengths)
    check = controlled_check(by_length)
    assert check.verdict == "not measurable"
    assert check.note.endswith("length alone decides which pairs the model has right")


def test_a_difference_of_shares_stays_within_one():
    """With five prompts that differ the widened interval would end at 1.05."""
    prompts = np.array([0] * 4 + [1, 1, 2, 2, 3, 3, 4, 4])
    margins = np.append(-np.ones(11), 1.0)
    chosen_is_longer = np.ones(12)
    estimate = length_excess(margins, -chosen_is_longer, prompts)
    assert estimate == (11 / 12, pytest.approx(0.312, abs=1e-3), 1.0)


def test_length_excess_covers_95_percent():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(400):  # the model errs towards the longer in 25%, towards the shorter in 10%
        d = rng.choice([0, 1, -1], size=120, p=[0.65, 0.25, 0.10])
        differences = np.where(d == 1, -1, 1)  # d = 1: raters prefer the shorter
        estimate = length_excess(np.where(d == 0, 1.0, -1.0), differences)
        hits += estimate.low <= 0.15 <= estimate.high
    assert 0.92 < hits / 400 < 0.985


def pairs_of_lengths(prompts, lengths) -> Pairs:
    """Pairs whose prompts have these numbers and whose sides have these lengths in tokens."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "prompt": f"Question {prompt}?",
            "chosen": "yes",
            "rejected": "no",
            "reward_chosen": float(rng.normal()),
            "reward_rejected": float(rng.normal()),
            "chosen_tokens": chosen,
            "rejected_tokens": rejected,
        }
        for prompt, (chosen, rejected) in zip(prompts, lengths, strict=True)
    ]
    return Pairs.collect(rows)


def test_an_excess_over_few_repeated_prompts_says_that_they_are_few():
    finite = pairs_of_lengths([0, 0, 0, 1, 1, 1], [(i + 2, 1) for i in range(6)])
    check = excess_check("length excess", finite.lengths, finite, "longer", "shorter")
    assert (check.verdict, check.n, check.value) == ("not measurable", 6, None)
    assert check.note == FEW_PROMPTS

    equal = pairs_of_lengths([0, 0, 0, 1, 1, 1], [(5, 5)] * 6)
    check = excess_check("length excess", equal.lengths, equal, "longer", "shorter")
    assert (check.verdict, check.n) == ("not measurable", 0)
    assert check.note == "no pair has sides that differ in it"


def test_an_excess_that_fails_also_says_which_side_the_model_prefers(monkeypatch):
    limits = THRESHOLDS["length excess"]
    monkeypatch.setitem(THRESHOLDS, "length excess", replace(limits, fail=0.5))
    rows = pairs_of_lengths(range(60), [(1, 2)] * 60)
    longer_wins = replace(rows, rewards=np.array([[0.0] * 60, [1.0] * 60]))
    check = excess_check("length excess", longer_wins.lengths, longer_wins, "longer", "shorter")
    assert check.verdict == "fail"
    assert check.note.endswith("the model prefers the longer more often than its raters")


def test_a_correlation_over_few_repeated_prompts_says_that_they_are_few():
    x = np.arange(6.0)
    y = np.array([1.0, 0.0, 2.0, 5.0, 3.0, 4.0])
    check = correlation_check("length correlation, pooled", x, y, np.repeat([0, 1], 3), n=6)
    assert (check.verdict, check.n, check.value) == ("not measurable", 6, None)
    assert check.note == FEW_PROMPTS

    check = correlation_check("length correlation, pooled", x, np.ones(6), np.arange(6), n=6)
    assert check.note == "lengths or rewards do not vary"


# --- Accuracy at equal lengths, and by length -----------------------------------------------------


def test_length_controlled_accuracy():
    rng = np.random.default_rng(0)
    # The longer is mostly chosen, and the model likes the longer.
    dl = rng.normal(60, 100, size=4000)
    margins = np.where(rng.random(4000) < special.expit(0.4 + 0.02 * dl), 1.0, -1.0)
    estimate = length_controlled_accuracy(margins, dl)
    assert estimate.low < special.expit(0.4) < estimate.high < accuracy(margins).low
    fit = sm.Logit((margins > 0).astype(float), sm.add_constant(dl / dl.std())).fit(disp=0)
    expected = special.expit([fit.params[0], *fit.conf_int()[0]])
    assert estimate == pytest.approx(expected, rel=2e-3)
    # Right everywhere: no finite fit.
    assert length_controlled_accuracy(np.ones(50), dl[:50]) is None
    assert length_controlled_accuracy(margins, np.full(4000, 3.0)) is None
    assert length_controlled_accuracy(margins[:0], dl[:0]) is None


@pytest.mark.parametrize("ties", [False, True])
def test_length_controlled_accuracy_covers_95_percent(ties):
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        dl = rng.normal(0.5, 1, size=200)
        outcomes = np.where(rng.random((2, 200)) < special.expit(0.8 + 0.7 * dl), 1.0, -1.0)
        margins = outcomes[0]
        if ties:  # Two outcomes that differ make a tie, which counts one half.
            margins = outcomes.sum(axis=0)
        estimate = length_controlled_accuracy(margins, dl)
        hits += estimate.low <= special.expit(0.8) <= estimate.high
    assert 0.93 <= hits / 1000 <= 0.97


def test_accuracy_by_length():
    chosen, rejected = (
        np.array([90, 100, 89, 100, 0, 200.0]),
        np.array([100, 90, 100, 111, 0, 10.0]),
    )
    accuracies = accuracy_by_length(np.array([1.0, 1.0, -1.0, 1.0, 0.0, 1.0]), chosen, rejected)
    assert {name: n for name, (_, n) in accuracies.items()} == {
        "chosen shorter": 1,
        "about equal": 4,
        "chosen longer": 1,
    }
    assert [estimate.value for estimate, _ in accuracies.values()] == [0.0, 0.875, 1.0]
    assert accuracy_by_length(np.ones(1), np.ones(1), np.ones(1))["chosen longer"] == (None, 0)


def test_accuracy_curve():
    dl = np.arange(90.0) - 30
    curve = accuracy_curve(np.where(dl > 0, 1.0, -1.0), dl)
    assert [(point.start, point.end, point.n) for point in curve[:2]] == [
        (-30, -21, 10),
        (-20, -11, 10),
    ]
    assert len(curve) == 9 and [point.value for point in curve] == [0, 0, 0, 0.9, 1, 1, 1, 1, 1]
    assert len(accuracy_curve(np.ones(25), np.arange(25.0))) == 2
    tied = accuracy_curve(np.ones(100), np.where(np.arange(100) < 80, 0.0, np.arange(100.0)))
    # Equal differences stay together.
    assert [point.n for point in tied if point.start <= 0 <= point.end] == [80]
    assert accuracy_curve(np.array([]), np.array([])) == []


# --- Where prompts repeat -------------------------------------------------------------------------


def clustered(statistic, margins, dl, prompts) -> Estimate:
    if statistic == "mean margin":
        return ours.widened(ours.mean_interval(margins), margins - margins.mean(), prompts)
    if statistic == "correlation":
        return ours.correlation_interval(dl, margins, prompts)
    return {
        "length_excess": length_excess,
        "length_controlled_accuracy": length_controlled_accuracy,
    }[statistic](margins, dl, prompts)


@pytest.mark.parametrize(
    ("statistic", "truth"),
    [
        ("mean margin", 0),
        ("correlation", 0),
        ("length_excess", 0),
        ("length_controlled_accuracy", 0.5),
    ],
)
def test_clustered_intervals_cover(statistic, truth):
    """Nine pairs a prompt, as in RM-Bench, whose margins and lengths hang together.

    The truth is by symmetry.
    """
    rng, hits = np.random.default_rng(1), 0
    prompts = np.repeat(np.arange(80), 9)
    for _ in range(400):
        dl = np.rint(30 * (rng.normal(size=80)[prompts] + rng.normal(size=720)))
        margins = rng.normal(0, 1, 80)[prompts] + rng.normal(0, 1, 720)
        estimate = clustered(statistic, margins, dl, prompts)
        hits += estimate.low <= truth <= estimate.high
    assert 0.91 <= hits / 400 <= 0.985


def test_length_between_prompts_alone_only_warns():
    """Bradley and Terry fix rewards up to a number for each prompt, which may follow its length."""
    rng = np.random.default_rng(0)
    n = 600
    length_of_prompt = rng.integers(50, 400, n)
    sides = [(int(length), int(length) + int(rng.integers(-20, 20))) for length in length_of_prompt]
    pairs = pairs_of_lengths(range(n), sides)
    by_prompt = replace(pairs, rewards=pairs.rewards + length_of_prompt / 60)
    pooled, within = length_checks(by_prompt)[:2]
    assert pooled.value > 0.548 and within.verdict == "pass"
    assert pooled.verdict == "warn"
    assert pooled.note.endswith("it lies between prompts, and not within pairs")
    within_pairs = replace(pairs, rewards=pairs.rewards + pairs.lengths / 10)
    assert [check.verdict for check in length_checks(within_pairs)[:2]] == ["fail", "fail"]
