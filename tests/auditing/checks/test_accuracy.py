"""Accuracy against hand-worked values; what its intervals cover."""

import math

import numpy as np
import pytest

from auditing import stats as ours
from auditing.checks.accuracy import accuracy, feature_baseline, length_baselines, macro_accuracy


def test_accuracy_counts_a_tie_one_half():
    assert ours.pair_credit(np.array([2.0, 0.0, -1.0])).tolist() == [1.0, 0.5, 0.0]
    assert accuracy(np.array([2.0, 0.0, -1.0, 3.0])).value == 0.625
    assert accuracy(np.array([])) is None


def test_accuracy_repeats_itself():
    margins = np.array([1.0, 0.0, -1.0, 2.0])
    assert accuracy(margins) == accuracy(margins)
    assert accuracy(margins, np.arange(4)) == accuracy(margins)  # no prompt repeats


def test_equal_credits_keep_an_interval():
    assert accuracy(np.ones(40), np.repeat(np.arange(10), 4)) == (
        1.0,
        *ours.wilson_interval(10, 10),
    )
    assert accuracy(np.zeros(1)) == pytest.approx((0.5, 0.0546, 0.9454), abs=1e-4)
    # one prompt throughout (files without prompts): nothing to cluster by
    assert accuracy(np.array([1.0, 1.0, -1.0]), np.zeros(3, dtype=int)) == accuracy(
        np.array([3.0, 1.0, -1])
    )


# --- What the intervals cover ---------------------------------------------------------------------


def pairs_without_ties(rng):
    return rng.choice([1.0, -1.0], size=300, p=[0.7, 0.3]), None, 0.7


def pairs_with_ties(rng):
    return rng.choice([1.0, 0.0, -1.0], size=300, p=[0.6, 0.2, 0.2]), None, 0.7


def clustered_pairs(rng, tie_rate=0.0):
    """100 prompts with 1 to 5 pairs each, about 300; some prompts are harder than others."""
    prompt = np.repeat(np.arange(100), rng.integers(1, 6, size=100))
    right = rng.random(len(prompt)) < rng.beta(1.5, 0.75, size=100)[prompt]  # 2/3 on average
    margins = np.where(rng.random(len(prompt)) < tie_rate, 0.0, np.where(right, 1.0, -1.0))
    return margins, prompt, (1 - tie_rate) * 2 / 3 + tie_rate / 2


def clustered_pairs_with_ties(rng):
    return clustered_pairs(rng, 0.15)


@pytest.mark.parametrize(
    "draw", [pairs_without_ties, pairs_with_ties, clustered_pairs, clustered_pairs_with_ties]
)
def test_accuracy_intervals_cover_95_percent(draw):
    rng, hits = np.random.default_rng(1), 0
    for _ in range(2000):
        margins, prompts, truth = draw(rng)
        estimate = accuracy(margins, prompts)
        hits += estimate.low <= truth <= estimate.high
    assert 0.93 <= hits / 2000 <= 0.97


def test_intervals_that_ignore_clusters_would_not_cover():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(500):
        margins, _, truth = clustered_pairs(rng)
        estimate = accuracy(margins)
        hits += estimate.low <= truth <= estimate.high
    assert hits / 500 < 0.9


# --- Over subsets ---------------------------------------------------------------------------------


def test_macro_accuracy_by_hand():
    margins, subsets = np.array([1.0, 1.0, -1.0, -1.0, 1.0]), np.array(["a", "a", "a", "a", "b"])
    # a: 1/2 of 4 -> credits 1 1 0 0 and a win and a loss: 3/6 x 3/6 / 4; b: 1 of 1 -> 2/3 x 1/3 / 1
    half = 1.959964 * math.sqrt(1 / 16 + 2 / 9) / 2
    assert macro_accuracy(margins, subsets) == pytest.approx((0.75, 0.75 - half, 1.0), abs=1e-6)
    assert macro_accuracy(margins[:0], subsets[:0]) is None
    repeated = macro_accuracy(
        np.repeat([1.0, -1.0], 50), np.repeat("a", 100), np.repeat([0, 1, 2, 3], 25)
    )
    # 4 prompts, not 100 pairs.
    assert repeated.high - repeated.low == pytest.approx(2 * 1.959964 * 0.25)


@pytest.mark.parametrize("sizes", [(10,) * 20, (200, 50, 10, 1)])
def test_macro_accuracy_covers_95_percent(sizes):
    rng, hits = np.random.default_rng(0), 0
    subset = np.repeat(np.arange(len(sizes)), sizes)
    truth = np.linspace(0.6, 0.9, len(sizes))
    for _ in range(1000):
        estimate = macro_accuracy(
            np.where(rng.random(len(subset)) < truth[subset], 1.0, -1.0), subset
        )
        hits += estimate.low <= 0.75 <= estimate.high
    assert 0.93 <= hits / 1000 <= 0.985


# --- Rules that do not read -----------------------------------------------------------------------


def test_length_baselines():
    longer, shorter = length_baselines(np.array([5, 5, 9, 1]), np.array([4, 5, 3, 0]))
    assert (longer, shorter) == (0.875, 0.125)


def test_feature_baseline():
    assert feature_baseline(np.array([[3, 0, 1, 5], [1, 0, 2, 4]])) == 0.625  # won, tied, lost, won
    assert feature_baseline(np.zeros((2, 0))) is None
