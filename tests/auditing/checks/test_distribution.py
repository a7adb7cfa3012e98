"""Overlap, saturation and differences between subsets against SciPy, statsmodels and simulation."""

import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from auditing import stats as ours
from auditing.checks.distribution import (
    auc,
    eta_squared,
    overlap,
    saturation,
    scale_ratio,
    tie_check,
)
from auditing.pairs import Pairs


def test_auc_is_mann_whitneys_u():
    assert auc(np.array([1.0, 2.0]), np.array([0.0, 1.0])) == 0.875  # of 4 couples: 3 won, 1 tied
    a, b = np.random.default_rng(0).integers(0, 9, size=(2, 40)).astype(float)
    assert auc(a, b) == pytest.approx(stats.mannwhitneyu(a, b).statistic / 1600)


def test_overlap_of_two_bell_curves():
    rng = np.random.default_rng(0)
    overlap_of_bells = overlap(rng.normal(1, 1, size=50_000), rng.normal(0, 1, size=50_000))
    assert overlap_of_bells == pytest.approx(2 * stats.norm.cdf(-0.5), abs=0.01)
    assert overlap(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 0
    assert overlap(np.ones(5), np.ones(5)) == 1
    chosen, rejected = np.append(rng.normal(1, 1, size=2000), 1e9), rng.normal(0, 1, size=2001)
    # An outlier does not stretch the bins.
    assert overlap(chosen, rejected) == pytest.approx(overlap_of_bells, abs=0.04)
    assert overlap(np.array([]), np.array([])) is None


@pytest.mark.parametrize("n, outliers", [(120, 1), (300, 2), (500, 3)])
def test_a_few_outliers_do_not_make_all_other_rewards_equal(n, outliers):
    """-9999 for "none", among fewer rewards than the percentiles can part."""
    x = np.random.default_rng(0).normal(size=n)
    x[:outliers] = -9999.0
    assert saturation(x).value < 0.03


def test_saturation_sees_clipped_rewards_only():
    rng = np.random.default_rng(0)
    x = rng.normal(size=2000)
    assert saturation(x).value < 0.003
    assert saturation(np.append(x, 5000.0)).value < 0.003  # an outlier is not the end of the range
    assert saturation(np.tanh(3 * x)).low > 0.2
    # Beyond two sigma.
    assert saturation(np.clip(x, -2, 2)).value == pytest.approx(0.0455, abs=0.01)
    # One of the six others is about 0, three are about 1.
    by_hand = saturation(np.array([0.0, 0.0, 0.5, 0.9995, 1.0, 1.0, 1.0]))
    assert by_hand.value == pytest.approx(1 / 6 + 3 / 6)
    # 19 of the 99 others at each end, as sure as a share of 100.
    clipped = np.concatenate([np.zeros(20), np.linspace(0.1, 0.9, 60), np.ones(20)])
    interval = ours.wilson_interval(100 * 38 / 99, 100)
    assert saturation(clipped) == pytest.approx((38 / 99, *interval), rel=1e-3)
    assert saturation(np.arange(100.0)) == pytest.approx((0, *ours.wilson_interval(0, 100)))
    assert saturation(np.ones(12)).value == 1
    assert saturation(np.ones(2)) is None
    assert saturation(x, np.arange(2000) % 4) is None  # four prompts do not show their spread
    # A ranking: one completion in three pairs.
    copies, prompts = (
        np.repeat(x[:20], 3),
        np.repeat(np.arange(20), 3),
    )
    assert saturation(copies).low > 0.02 > saturation(copies, prompts).value


@pytest.mark.parametrize("clip, truth", [(9.0, 0.0140), (2.0, 0.3485)])
def test_saturation_covers_rewards_in_whole_steps(clip, truth):
    """ "At or beyond the .1st percentile" covered 63 to 87%. The truth is from the normal's CDF."""
    rng, hits = np.random.default_rng(0), 0
    prompts = np.arange(400) // 2
    for _ in range(200):
        rewards = np.clip(np.round(1.6 * rng.normal(size=400)), -clip, clip)
        estimate = saturation(rewards, prompts)
        hits += estimate.low <= truth <= estimate.high
    assert 0.92 <= hits / 200 <= 0.98


# --- Between subsets ------------------------------------------------------------------------------


def test_eta_squared_is_the_adjusted_r_squared_of_an_anova():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], [30, 50, 20])
    values = 0.6 * (labels == "b") + rng.normal(size=100)
    estimate, p = eta_squared(values, labels)
    fit = sm.OLS(values, np.stack([labels == x for x in "abc"], axis=1).astype(float)).fit()
    assert estimate.value == pytest.approx(fit.rsquared_adj)
    assert p == pytest.approx(
        stats.f_oneway(*(values[labels == x] for x in "abc")).pvalue, rel=0.02
    )
    assert 0 <= estimate.low < estimate.value < estimate.high
    huge = eta_squared(values * 1e300, labels)[0]
    assert huge == pytest.approx(estimate, rel=1e-6)
    assert eta_squared(np.ones(9), np.arange(9) % 3) == (None, None)
    assert eta_squared(np.arange(3.0), np.arange(3)) == (None, None)


def test_eta_squared_covers_and_its_p_value_keeps_its_level():
    rng, hits, null_hits, small, pooled = np.random.default_rng(0), 0, 0, 0, 0
    labels, prompt = np.repeat(np.arange(4), 50), np.repeat(np.arange(100), 2)
    for _ in range(500):
        values = np.array([-0.5, 0, 0, 0.5])[labels] + rng.normal(size=200)
        estimate = eta_squared(values, labels)[0]
        hits += estimate.low <= 0.125 / 1.125 <= estimate.high
        # No difference; two completions of a prompt are alike.
        values = rng.normal(size=200) + 2 * rng.normal(size=100)[prompt]
        estimate, p = eta_squared(values, labels, prompt)
        null_hits += estimate.low == 0
        small += p < 0.05
        pooled += eta_squared(values, labels)[1] < 0.05
    assert 0.90 < hits / 500 < 0.98 and null_hits / 500 > 0.95
    assert 0.02 < small / 500 < 0.08 < 0.12 < pooled / 500


def test_the_location_of_subsets_covers_a_small_difference():
    rng, hits = np.random.default_rng(0), 0
    labels = np.repeat(np.arange(4), [160, 120, 80, 40])
    levels = np.array([0.0, 0.5, 0.0, 0.0])[labels]
    truth = np.var(levels) / (np.var(levels) + 1.5**2)
    for _ in range(300):
        estimate = eta_squared(levels + 1.5 * rng.normal(size=400), labels)[0]
        hits += estimate.low <= truth <= estimate.high
    assert 0.93 <= hits / 300 <= 0.985


def test_the_scale_of_subsets_covers_heavy_tails():
    """The fourth moment of t with 3 degrees of freedom is infinite."""
    rng, hits = np.random.default_rng(0), 0
    labels = np.repeat([0, 1], 200)
    scale = np.array([1.0, 1.5])[labels]
    for _ in range(300):
        estimate = scale_ratio(scale * rng.standard_t(3, size=400), labels)
        hits += estimate.low <= 1.5 <= estimate.high
    assert 0.93 <= hits / 300 <= 0.985  # .83 with standard deviations


def test_the_scale_of_subsets_covers_spreads_that_are_about_equal():
    """The reverse bootstrap missed 24% of the first, and 60% of the second."""
    rng, hits, ones = np.random.default_rng(0), 0, 0
    two, twenty = np.repeat([0, 1], 60), np.repeat(np.arange(20), 20)
    for _ in range(150):
        estimate = scale_ratio(rng.normal(size=120) * np.array([1.0, 1.15])[two], two)
        hits += estimate.low <= 1.15 <= estimate.high
        ones += scale_ratio(rng.normal(size=400), twenty).low == 1
    assert hits / 150 >= 0.92 and ones / 150 >= 0.9


def test_scale_ratio():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "few"], [300, 300, 5])
    values = rng.normal(size=605) * np.repeat([1.0, 3.0, 99.0], [300, 300, 5]) + np.repeat(
        [5.0, -5.0, 0.0], [300, 300, 5]
    )
    estimate = scale_ratio(values, labels)
    of_one, of_other = values[:300], values[300:600]
    mean_distance = np.abs(of_one - np.median(of_one)).mean()
    assert estimate.value == pytest.approx(
        np.abs(of_other - np.median(of_other)).mean() / mean_distance
    )
    # A half normal's standard deviation is sqrt(pi / 2 - 1) of its mean.
    half = 1.959964 * math.sqrt((math.pi / 2 - 1) * 2 / 300)
    assert math.log(estimate.high / estimate.low) / 2 == pytest.approx(half, rel=0.15)
    assert scale_ratio(values[:305], labels[:305]) is None
    assert scale_ratio(np.where(labels == "a", 1.0, values), labels) is None  # no spread: no ratio


def test_many_small_equal_subsets_do_not_seem_of_other_scale():
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(20), 20)
    lows = [scale_ratio(rng.normal(size=400), labels).low for _ in range(100)]
    assert max(lows) < 1.5
    two = np.repeat([0, 1], 60)
    hits = 0
    for _ in range(500):
        estimate = scale_ratio(rng.normal(size=120) * np.array([1.0, 1.5])[two], two)
        hits += estimate.low <= 1.5 <= estimate.high
    assert 0.90 < hits / 500 < 0.98


def test_ties_of_one_prompt_are_one_observation():
    """Three prompts of 60 pairs, of which two tie throughout: 180 pairs would be sure of it."""
    rows = []
    for i in range(180):
        texts = {"prompt": f"q{i % 3}", "chosen": f"a{i}", "rejected": f"b{i}"}
        rows.append(texts | {"reward_chosen": float(i % 3 == 2), "reward_rejected": 0.0})
    check = tie_check(Pairs.collect(rows))
    assert check.value == pytest.approx(2 / 3)
    assert check.low < 0.3 and check.verdict == "warn"  # half of the pairs would be a fail
