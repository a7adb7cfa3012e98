"""The audit's numbers against hand-worked values, SciPy, scikit-learn and statsmodels; what their intervals cover."""

import itertools
import math
import subprocess
import sys
import time
from dataclasses import asdict, astuple

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import special, stats
from sklearn.metrics import brier_score_loss, log_loss
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep

from auditing import stats as ours
from auditing.checks import calibration
from auditing.checks.accuracy import accuracy, feature_baseline, length_baselines, macro_accuracy
from auditing.checks.best_of_n import best_of_n, kl_best_of_n
from auditing.checks.distribution import auc, eta_squared, overlap, saturation, scale_ratio
from auditing.checks.length import (
    accuracy_by_length,
    accuracy_curve,
    length_controlled_accuracy,
    length_excess,
)
from auditing.checks.raters import majority_error, noise_from_votes, rater_agreement
from auditing.stats import Estimate
from auditing.style import style_marks
from auditing.verdicts import short

# --- metrics ---------------------------------------------------------------------------------------------------------


def test_accuracy_counts_a_tie_one_half():
    assert ours.pair_credit(np.array([2.0, 0.0, -1.0])).tolist() == [1.0, 0.5, 0.0]
    assert accuracy(np.array([2.0, 0.0, -1.0, 3.0])).value == 0.625
    assert accuracy(np.array([])) is None


@pytest.mark.parametrize("successes, n", [(0, 1), (1, 1), (0, 12), (7, 10), (350, 500), (500, 500)])
def test_wilson_interval_is_scipys(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert ours.wilson_interval(successes, n) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_wilson_interval_covers_95_percent():
    n = 60
    for p in (0.5, 0.65, 0.9):
        covers = [
            low <= p <= high for low, high in (ours.wilson_interval(k, n) for k in range(n + 1))
        ]
        assert (
            0.92 < np.sum(stats.binom.pmf(np.arange(n + 1), n, p) * covers) < 0.98
        )  # exact, not simulated


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


@pytest.mark.parametrize(
    "values", [np.array([0.0, 0.5, 1.0]), np.linspace(-1, 1, 999)], ids=["few kinds", "many kinds"]
)
def test_cluster_bootstrap_is_the_plain_one_over_clusters(values):
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(200), rng.integers(1, 5, size=200))
    x = rng.choice(values, size=len(group)) + (group % 3 == 0)
    rows = [np.flatnonzero(group == g) for g in range(200)]
    plain = [
        x[np.concatenate([rows[g] for g in rng.integers(200, size=200)])].mean()
        for _ in range(2000)
    ]
    estimate = ours.cluster_bootstrap_mean(x, group + 7)
    assert estimate.value == x.mean()
    assert (estimate.low, estimate.high) == pytest.approx(
        np.quantile(plain, [0.025, 0.975]), abs=0.02
    )


def test_one_cluster_alone_counts_its_values():
    x = np.array([0.3, 0.9, 0.1, 0.7])
    assert ours.cluster_bootstrap_mean(x, np.zeros(4)) == ours.bootstrap_mean(x)
    assert ours.bootstrap_mean(x[:1]) == (0.3, 0.3, 0.3)


def test_few_clusters_widen_the_percentiles():
    degrees = [1, 2, 3, 10, 100]
    assert [ours.t_quantile(df) for df in degrees] == pytest.approx(stats.t.ppf(0.975, degrees))
    assert ours.t_quantile(1) == pytest.approx(12.706, abs=1e-3)
    x = np.random.default_rng(0).normal(size=5)
    plain = np.quantile(
        np.random.default_rng(1).choice(x, size=(20_000, 5)).mean(axis=1), [0.025, 0.975]
    )
    estimate = ours.bootstrap_mean(x)
    assert estimate.low < plain[0] - 0.1 * x.std() and estimate.high > plain[1] + 0.1 * x.std()


def test_bootstrap_by_counts_is_the_bootstrap_by_rows():
    values = np.array([1.0] * 50 + [0.5] * 20 + [0.0] * 30)
    plain = np.random.default_rng(0).choice(values, size=(2000, 100)).mean(axis=1)
    estimate = ours.bootstrap_mean(values)
    assert (estimate.low, estimate.high) == pytest.approx(
        np.quantile(plain, [0.025, 0.975]), abs=0.015
    )


def test_length_baselines():
    longer, shorter = length_baselines(np.array([5, 5, 9, 1]), np.array([4, 5, 3, 0]))
    assert (longer, shorter) == (0.875, 0.125)


def test_auc_is_mann_whitneys_u():
    assert auc(np.array([1.0, 2.0]), np.array([0.0, 1.0])) == 0.875  # of 4 couples: 3 won, 1 tied
    a, b = np.random.default_rng(0).integers(0, 9, size=(2, 40)).astype(float)
    assert auc(a, b) == pytest.approx(stats.mannwhitneyu(a, b).statistic / 1600)


def test_rater_agreement():
    # 3:0 always agree; of 2:1's three couples of votes one agrees; 1:0 has no second vote
    assert rater_agreement(np.array([[3, 0], [2, 1], [1, 0]])) == pytest.approx((1 + 1 / 3) / 2)
    assert rater_agreement(np.array([[1, 0], [0, 0]])) is None


def test_mean_interval():
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    half = stats.t.ppf(0.975, 5) * math.sqrt(3.5) / math.sqrt(6)
    assert ours.mean_interval(values) == pytest.approx((3.5, 3.5 - half, 3.5 + half), rel=5e-3)
    assert ours.mean_interval(values[:4]) is None


def test_intervals_are_widened_where_prompts_repeat():
    """Nine values of one prompt that are all equal tell as much as one."""
    one = np.random.default_rng(0).normal(size=50)
    values, groups = np.repeat(one, 9), np.repeat(np.arange(50), 9)
    found = ours.widened(ours.mean_interval(values), values - values.mean(), groups)
    assert found == pytest.approx(ours.mean_interval(one), rel=0.02)
    alone = ours.mean_interval(one)
    assert ours.widened(alone, one - one.mean(), np.arange(50)) == alone
    assert ours.widened(alone, one - one.mean(), np.zeros(50)) == alone  # the prompt is not known
    assert ours.widened(alone, one - one.mean(), np.arange(50) % 4) is None


def clustered(statistic, margins, dl, prompts) -> Estimate:
    if statistic == "mean margin":
        return ours.widened(ours.mean_interval(margins), margins - margins.mean(), prompts)
    if statistic == "correlation":
        r = ours.pearson(dl, margins)
        independent = Estimate(r, *ours.fisher_interval(r, len(dl)))
        return ours.widened(independent, ours.correlation_influence(dl, margins), prompts)
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
    """Nine pairs a prompt, as in RM-Bench, whose margins and lengths hang together; the truth is by symmetry."""
    rng, hits = np.random.default_rng(1), 0
    prompts = np.repeat(np.arange(80), 9)
    for _ in range(400):
        dl = np.rint(30 * (rng.normal(size=80)[prompts] + rng.normal(size=720)))
        margins = rng.normal(0, 1, 80)[prompts] + rng.normal(0, 1, 720)
        estimate = clustered(statistic, margins, dl, prompts)
        hits += estimate.low <= truth <= estimate.high
    assert 0.91 <= hits / 400 <= 0.985


def test_feature_baseline():
    assert feature_baseline(np.array([[3, 0, 1, 5], [1, 0, 2, 4]])) == 0.625  # won, tied, lost, won
    assert feature_baseline(np.zeros((2, 0))) is None


def test_macro_accuracy_by_hand():
    margins, subsets = np.array([1.0, 1.0, -1.0, -1.0, 1.0]), np.array(["a", "a", "a", "a", "b"])
    # a: 1/2 of 4 -> credits 1 1 0 0 and a win and a loss: 3/6 x 3/6 / 4; b: 1 of 1 -> 2/3 x 1/3 / 1
    half = 1.959964 * math.sqrt(1 / 16 + 2 / 9) / 2
    assert macro_accuracy(margins, subsets) == pytest.approx((0.75, 0.75 - half, 1.0), abs=1e-6)
    assert macro_accuracy(margins[:0], subsets[:0]) is None
    repeated = macro_accuracy(
        np.repeat([1.0, -1.0], 50), np.repeat("a", 100), np.repeat([0, 1, 2, 3], 25)
    )
    assert repeated.high - repeated.low == pytest.approx(
        2 * 1.959964 * 0.25
    )  # 4 prompts, not 100 pairs


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


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e30])
def test_correlations_are_scipys(scale):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, size=200).astype(float)  # with equal values
    y = (0.1 * x + rng.normal(size=200)) * scale
    assert ours.pearson(x, y) == pytest.approx(stats.pearsonr(x, y / scale).statistic)
    assert ours.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    interval = stats.pearsonr(x, y / scale).confidence_interval()
    assert ours.fisher_interval(ours.pearson(x, y), 200) == pytest.approx(
        (interval.low, interval.high)
    )


def test_correlation_by_hand_and_undefined():
    assert ours.average_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert ours.pearson(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])) == pytest.approx(0.5)
    assert ours.pearson(np.array([0.1] * 7), np.arange(7.0)) is None
    assert ours.pearson(np.array([1.0]), np.array([1.0])) is None
    assert ours.fisher_interval(0.5, 3) is None
    assert ours.fisher_interval(1.0, 5) == (1.0, 1.0)


def test_length_excess_by_hand():
    margins = np.array([1.0, -1.0, -1.0, 0.0, 5.0])
    differences = np.array(
        [3.0, 2.0, -4.0, -1.0, 0.0]
    )  # raters: longer, longer, shorter, shorter; the last is left out
    # model: longer, shorter, longer, tie -> d = 0, -1, 1, .5
    estimate = length_excess(margins, differences)
    assert estimate.value == 0.125
    half = 1.959964 * math.sqrt(2.25 + 1 - 0.25 / 6) / 6
    assert (estimate.low, estimate.high) == pytest.approx(
        (0.5 / 6 - half, 0.5 / 6 + half), abs=1e-6
    )
    never_differ = length_excess(np.ones(10), np.ones(10))
    assert never_differ.value == 0 and never_differ.low < 0 < never_differ.high


def test_length_excess_covers_95_percent():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(400):  # the model errs towards the longer in 25%, towards the shorter in 10%
        d = rng.choice([0, 1, -1], size=120, p=[0.65, 0.25, 0.10])
        differences = np.where(d == 1, -1, 1)  # d = 1: raters prefer the shorter
        estimate = length_excess(np.where(d == 0, 1.0, -1.0), differences)
        hits += estimate.low <= 0.15 <= estimate.high
    assert 0.92 < hits / 400 < 0.985


def test_detectable_effects():
    # Cohen (1988), table 3.4.1: r = .30 at 80% power, two-sided 5%, takes 84 or 85 rows
    assert ours.detectable_correlation(85) <= 0.30 < ours.detectable_correlation(84)
    assert ours.detectable_correlation(3) is None
    # p = .5 against .6: n = ((1.96 x .5 + .8416 x sqrt(.24)) / .1)^2 = 193.8
    assert ours.detectable_accuracy(194, 0.5) <= 0.6 < ours.detectable_accuracy(193, 0.5)
    assert ours.detectable_accuracy(3, 0.5) is None and ours.detectable_accuracy(100, 1.0) is None
    # the 80% are kept in simulation
    n, p = 194, ours.detectable_accuracy(194, 0.5)
    wins = np.random.default_rng(0).binomial(n, p, size=4000)
    assert np.mean([ours.wilson_interval(k, n)[0] > 0.5 for k in wins.tolist()]) == pytest.approx(
        0.8, abs=0.04
    )
    assert ours.detectable_share(1) == pytest.approx(0.8)
    assert ours.detectable_mean(ours.Estimate(0.0, -1.959964, 1.959964)) == pytest.approx(
        2.801585, abs=1e-5
    )


def test_metrics_import_neither_torch_nor_matplotlib():
    code = (
        "import sys, auditing.stats, auditing.checks.calibration, auditing.checks.accuracy\n"
        "assert not {'torch', 'matplotlib', 'scipy.stats', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- distribution ----------------------------------------------------------------------------------------------------


def test_overlap_of_two_bell_curves():
    rng = np.random.default_rng(0)
    apart = overlap(rng.normal(1, 1, size=50_000), rng.normal(0, 1, size=50_000))
    assert apart == pytest.approx(2 * stats.norm.cdf(-0.5), abs=0.01)
    assert overlap(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 0
    assert overlap(np.ones(5), np.ones(5)) == 1
    chosen, rejected = np.append(rng.normal(1, 1, size=2000), 1e9), rng.normal(0, 1, size=2001)
    assert overlap(chosen, rejected) == pytest.approx(
        apart, abs=0.04
    )  # an outlier does not stretch the bins
    assert overlap(np.array([]), np.array([])) is None


def test_saturation_sees_clipped_rewards_only():
    rng = np.random.default_rng(0)
    x = rng.normal(size=2000)
    assert saturation(x).value < 0.003
    assert saturation(np.append(x, 5000.0)).value < 0.003  # an outlier is not the end of the range
    assert saturation(np.tanh(3 * x)).low > 0.2
    assert saturation(np.clip(x, -2, 2)).value == pytest.approx(
        0.0455, abs=0.01
    )  # beyond two sigma
    by_hand = saturation(
        np.array([0.0, 0.001, 0.005, 0.9995, 1.0, 1.0, 0.995])
    )  # four at the ends, beside the two
    assert by_hand == pytest.approx((3 / 5, *ours.wilson_interval(3, 5)))
    assert saturation(np.ones(12)).value == 1
    assert saturation(np.ones(2)) is None
    copies, prompts = (
        np.repeat(x[:20], 3),
        np.repeat(np.arange(20), 3),
    )  # a ranking: one completion in three pairs
    assert saturation(copies).low > 0.02 > saturation(copies, prompts).value


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
        values = (
            rng.normal(size=200) + 2 * rng.normal(size=100)[prompt]
        )  # no difference; two completions of a prompt are alike
        estimate, p = eta_squared(values, labels, prompt)
        null_hits += estimate.low == 0
        small += p < 0.05
        pooled += eta_squared(values, labels)[1] < 0.05
    assert 0.90 < hits / 500 < 0.98 and null_hits / 500 > 0.95
    assert 0.02 < small / 500 < 0.08 < 0.12 < pooled / 500


def test_scale_ratio():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "few"], [300, 300, 5])
    values = rng.normal(size=605) * np.repeat([1.0, 3.0, 99.0], [300, 300, 5]) + np.repeat(
        [5.0, -5.0, 0.0], [300, 300, 5]
    )
    estimate = scale_ratio(values, labels)
    assert estimate.value == pytest.approx(values[300:600].std() / values[:300].std())
    f = (
        1.959964 * math.sqrt(1 / 300)
    ) * 1.0  # the logarithm of an F ratio's root: variance (1/299 + 1/299) / 2
    assert math.log(estimate.high / estimate.low) / 2 == pytest.approx(f, rel=0.1)
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


# --- tests, and two models on the same pairs -------------------------------------------------------------------------


def test_two_sided_p():
    assert ours.two_sided_p(Estimate(1.0, 0.0, 2.0)) == pytest.approx(0.05)
    assert ours.two_sided_p(Estimate(-3.0, -4.959964, -1.040036)) == pytest.approx(
        2 * stats.norm.sf(3), rel=1e-5
    )
    assert ours.two_sided_p(Estimate(0.7, 0.6, 0.9), null=0.5) == pytest.approx(
        2 * stats.norm.sf(2 * 1.959964), rel=1e-5
    )
    assert ours.two_sided_p(Estimate(0.0, -1.0, 1.0)) == 1.0
    assert ours.two_sided_p(Estimate(0.2, 0.2, 0.2)) == 0.0


def test_difference_of_proportions_is_newcombes():
    a, b = (Estimate(k / n, *ours.wilson_interval(k, n)) for k, n in ((56, 70), (48, 80)))
    difference, p = ours.difference_of_proportions(a, b)
    assert difference == pytest.approx(
        (0.2, 0.0524, 0.3339), abs=1e-4
    )  # Newcombe (1998), table II, contrast (a), method 10
    assert difference[1:] == pytest.approx(
        confint_proportions_2indep(56, 70, 48, 80, method="newcomb"), abs=1e-9
    )
    z = 0.2 / math.sqrt(0.8 * 0.2 / 70 + 0.6 * 0.4 / 80)
    assert p == pytest.approx(2 * stats.norm.sf(z), rel=0.4)


def test_difference_of_proportions_keeps_its_level():
    rng = np.random.default_rng(0)
    first, second = rng.binomial(100, 0.75, size=4000), rng.binomial(150, 0.75, size=4000)
    p = [
        ours.difference_of_proportions(
            Estimate(i / 100, *ours.wilson_interval(i, 100)),
            Estimate(j / 150, *ours.wilson_interval(j, 150)),
        )[1]
        for i, j in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert (
        0.035 < np.mean(np.array(p) < 0.05) < 0.065 and 0.004 < np.mean(np.array(p) < 0.01) < 0.017
    )


@pytest.mark.parametrize("b, c", [(10, 3), (0, 5), (0, 1), (1, 0), (7, 7), (0, 0), (300, 250)])
def test_mcnemar_is_statsmodels(b, c):
    credit_a, credit_b = (
        np.repeat([1.0, 0.0, 1.0, 0.5], [b, c, 9, 4]),
        np.repeat([0.0, 1.0, 1.0, 0.5], [b, c, 9, 4]),
    )
    expected = mcnemar([[9, b], [c, 4]], exact=True).pvalue if b + c else 1.0
    assert ours.mcnemar_exact(credit_a, credit_b) == (b, c, pytest.approx(expected, rel=1e-9))


def test_mcnemar_of_100_000_pairs():
    found = ours.mcnemar_exact(
        np.repeat([1.0, 0.5], [50_400, 49_600]), np.repeat([0.5, 1.0], [50_400, 49_600])
    )
    assert found == (
        50_400,
        49_600,
        pytest.approx(stats.binomtest(49_600, 100_000).pvalue, rel=1e-6),
    )
    assert (
        ours.mcnemar_exact(np.ones(100_000), np.zeros(100_000))[2] == 0.0
    )  # under the smallest double


def test_paired_bootstrap_difference():
    rng = np.random.default_rng(0)
    a, b = rng.choice([0.0, 0.5, 1.0], size=(2, 400))
    estimate = ours.paired_bootstrap_difference(a, b)
    assert estimate.value == pytest.approx(a.mean() - b.mean())
    normal = 1.959964 * (a - b).std() / 20
    assert (estimate.low, estimate.high) == pytest.approx(
        (estimate.value - normal, estimate.value + normal), abs=0.01
    )
    grouped = ours.paired_bootstrap_difference(
        np.repeat(a, 4), np.repeat(b, 4), np.repeat(np.arange(400), 4)
    )
    assert grouped == pytest.approx(estimate, abs=0.01)  # copies of a pair are no news
    same = ours.paired_bootstrap_difference(a, a)
    assert same.value == 0 and -0.01 < same.low < 0 < same.high < 0.01
    assert ours.paired_bootstrap_difference(a[:0], a[:0]) is None


def test_detectable_mcnemar():
    # Connor (1987): n = (z_.975 sqrt(s) + z_.80 sqrt(s - d^2))^2 / d^2; s = .3, d = .1 takes 234 pairs
    n = (1.959964 * math.sqrt(0.3) + 0.841621 * math.sqrt(0.29)) ** 2 / 0.01
    assert 233 < n < 234
    assert ours.detectable_mcnemar(234, 0.3) < 0.1 < ours.detectable_mcnemar(233, 0.3)
    assert ours.detectable_mcnemar(10, 0.1) is None and ours.detectable_mcnemar(3, 0.5) is None
    rng, d = np.random.default_rng(0), ours.detectable_mcnemar(400, 0.25)
    wins, losses, _ = rng.multinomial(400, [(0.25 + d) / 2, (0.25 - d) / 2, 0.75], size=4000).T
    assert np.mean((wins - losses) / np.sqrt(wins + losses) > 1.959964) == pytest.approx(
        0.8, abs=0.03
    )


@pytest.mark.parametrize("df", [1, 2, 2.5, 7, 100, 10_000])
def test_chi2_sf_is_scipys(df):
    for x in df * np.array([0.01, 0.5, 0.9, 0.999, 1.0, 1.1, 2.0, 10.0]):
        assert ours.chi2_sf(float(x), df) == pytest.approx(
            stats.chi2.sf(x, df), rel=1e-8, abs=1e-300
        )
    assert ours.chi2_sf(0.0, df) == 1.0
    assert ours.chi2_sf(1e6, 3) == 0.0


# --- length ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["plain", "offset and weights", "shares"])
def test_logistic_is_statsmodels(case):
    rng = np.random.default_rng(0)
    X = np.stack([np.ones(300), 50 + 200 * rng.normal(size=300), rng.normal(size=300)], axis=1)
    y = (rng.random(300) < special.expit(0.3 + 0.005 * X[:, 1] - X[:, 2])).astype(float)
    offset, weights = (
        (rng.normal(size=300), rng.integers(1, 4, size=300).astype(float))
        if "off" in case
        else (None, None)
    )
    y = np.where(np.arange(300) % 7 == 0, 0.5, y) if case == "shares" else y
    expected = sm.GLM(y, X, family=sm.families.Binomial(), offset=offset, freq_weights=weights).fit(
        tol=1e-12
    )
    coefficients, covariance = ours.logistic(X, y, offset, weights)
    assert coefficients == pytest.approx(expected.params, rel=1e-6)
    assert covariance == pytest.approx(expected.cov_params(), rel=1e-5)


def test_logistic_without_a_finite_maximum():
    x = np.linspace(-1, 1, 20)
    X = np.stack([np.ones(20), x], axis=1)
    assert ours.logistic(X, (x > 0).astype(float)) is None  # separable
    assert ours.logistic(X, (x >= x[-1]).astype(float)) is None
    assert ours.logistic(X, np.where(x > 0.9, 0.0, np.where(x > 0, 1.0, 0.0))) is not None
    assert ours.logistic(X, np.ones(20)) is None
    assert (
        ours.logistic(np.stack([x, 2 * x], axis=1), (np.arange(20) % 2).astype(float)) is None
    )  # dependent columns
    assert ours.logistic(X[:0], x[:0]) is None


def test_length_controlled_accuracy():
    rng = np.random.default_rng(0)
    dl = rng.normal(
        60, 100, size=4000
    )  # the longer is mostly chosen, and the model likes the longer
    margins = np.where(rng.random(4000) < special.expit(0.4 + 0.02 * dl), 1.0, -1.0)
    estimate = length_controlled_accuracy(margins, dl)
    assert estimate.low < special.expit(0.4) < estimate.high < accuracy(margins).low
    fit = sm.Logit((margins > 0).astype(float), sm.add_constant(dl / dl.std())).fit(disp=0)
    expected = special.expit([fit.params[0], *fit.conf_int()[0]])
    assert estimate == pytest.approx(expected, rel=1e-6)
    assert (
        length_controlled_accuracy(np.ones(50), dl[:50]) is None
    )  # right everywhere: no finite fit
    assert length_controlled_accuracy(margins, np.full(4000, 3.0)) is None
    assert length_controlled_accuracy(margins[:0], dl[:0]) is None


def test_length_controlled_accuracy_covers_95_percent():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        dl = rng.normal(0.5, 1, size=200)
        margins = np.where(rng.random(200) < special.expit(0.8 + 0.7 * dl), 1.0, -1.0)
        estimate = length_controlled_accuracy(margins, dl)
        hits += estimate.low <= special.expit(0.8) <= estimate.high
    assert 0.93 <= hits / 1000 <= 0.97


def test_accuracy_by_length():
    chosen, rejected = (
        np.array([90, 100, 89, 100, 0, 200.0]),
        np.array([100, 90, 100, 111, 0, 10.0]),
    )
    found = accuracy_by_length(np.array([1.0, 1.0, -1.0, 1.0, 0.0, 1.0]), chosen, rejected)
    assert {name: n for name, (_, n) in found.items()} == {
        "chosen shorter": 1,
        "about equal": 4,
        "chosen longer": 1,
    }
    assert [estimate.value for estimate, _ in found.values()] == [0.0, 0.875, 1.0]
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
    assert [point.n for point in tied if point.start <= 0 <= point.end] == [
        80
    ]  # equal differences stay together
    assert accuracy_curve(np.array([]), np.array([])) == []


# --- ratings and best-of-n -------------------------------------------------------------------------------------------


def test_spearman_interval():
    x, y = np.random.default_rng(0).normal(size=(2, 60))
    y = y + x
    r = stats.spearmanr(x, y).statistic
    half = 1.959964 * math.sqrt((1 + r * r / 2) / 57)
    expected = (r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))
    assert ours.spearman_interval(x, y) == pytest.approx(expected, rel=1e-6)
    assert (
        ours.spearman_interval(x[:3], y[:3]) is None
        and ours.spearman_interval(x, np.ones(60)) is None
    )


def test_within_groups_spearman_is_scipys_mean():
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(50), rng.integers(1, 9, size=50)))
    x, y = rng.integers(0, 4, size=(2, len(group))).astype(float)
    y += x + 100 * group
    rows = [np.flatnonzero(group == g) for g in range(50)]
    rows = [i for i in rows if len(i) >= 3 and np.ptp(x[i]) and np.ptp(y[i])]
    expected = np.array([stats.spearmanr(x[i], y[i]).statistic for i in rows])
    estimate = ours.within_groups_spearman(x, y, group * 10)
    half = stats.t.ppf(0.975, len(expected) - 1) * expected.std(ddof=1) / math.sqrt(len(expected))
    assert estimate == pytest.approx(
        (expected.mean(), expected.mean() - half, min(1, expected.mean() + half)), rel=1e-4
    )
    assert ours.within_groups_spearman(x[:2], y[:2], np.zeros(2)) is None


def test_best_of_n_by_hand_and_by_all_subsets():
    rewards, gold = np.array([3.0, 1.0, 2.0]), np.array([10.0, 40.0, 70.0])
    assert best_of_n(rewards, None, 2) == pytest.approx((3 + 3 + 2) / 3)
    assert [best_of_n(rewards, gold, n) for n in (1, 2, 3)] == pytest.approx(
        [40, (10 + 10 + 70) / 3, 10]
    )
    assert best_of_n(np.array([1.0, 1.0, 0.0]), np.array([0.0, 6.0, 9.0]), 2) == pytest.approx(
        3.0
    )  # a tie: the mean
    assert best_of_n(rewards, None, 4) is None and best_of_n(rewards, None, 0) is None
    rng = np.random.default_rng(0)
    rewards, gold = rng.normal(size=(2, 9))
    subsets = [list(s) for s in itertools.combinations(range(9), 4)]
    expected = np.mean([gold[max(s, key=lambda i: rewards[i])] for s in subsets])
    assert best_of_n(rewards, gold, 4) == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 100, 5000, 9999, 10_000])
def test_best_of_n_of_10_000(n):
    uniform = np.arange(1, 10_001) / 10_001
    assert best_of_n(uniform, None, n) == pytest.approx(
        n / (n + 1), abs=1e-9
    )  # the largest of n uniform numbers
    assert best_of_n(uniform, np.ones(10_000), n) == pytest.approx(1, abs=1e-9)


def test_kl_best_of_n():
    assert kl_best_of_n(1) == 0
    assert kl_best_of_n(16) == pytest.approx(2.772589 - 0.9375, abs=1e-6)


# --- calibration -----------------------------------------------------------------------------------------------------


def scored(rng, n, temperature=1.0, spread=1.5):
    """Margins whose sigmoid(m / temperature) is the truth."""
    x = rng.normal(size=n) * spread
    return np.where(rng.random(n) < special.expit(x), x, -x) * temperature


def test_reliability_by_hand():
    margins = np.concatenate([np.repeat([1.0, -1.0], [7, 3]), np.repeat([2.0, -2.0], [9, 1])])
    low, high = calibration.reliability(margins, bins=2)
    assert asdict(low) == pytest.approx(
        {"confidence": special.expit(1), "accuracy": 0.7, "n": 10}
        | dict(zip(("low", "high"), ours.wilson_interval(7, 10), strict=True))
    )
    assert (high.confidence, high.accuracy) == pytest.approx((special.expit(2), 0.9))
    # the share of votes for the side that the model prefers; without votes the label is one
    votes = np.array([[3, 1], [1, 3], [2, 2], [0, 0], [1, 1]])
    (one,) = calibration.reliability(np.array([1.0, -1.0, 5.0, 1.0, 0.0]), votes)
    assert one.accuracy == pytest.approx((0.75 + 0.75 + 0.5 + 1 + 0.5) / 5)
    assert calibration.reliability(np.array([])) == []


def test_calibration_error_by_hand():
    margins = np.concatenate([np.repeat([1.0, -1.0], [70, 30]), np.repeat([2.0, -2.0], [60, 40])])
    estimate, p = calibration.calibration_error(margins)
    d = np.array([0.7, 0.6]) - special.expit([1, 2])
    squared = np.mean(d**2 - np.array([0.7 * 0.3, 0.6 * 0.4]) / 99)
    assert estimate.value == pytest.approx(math.sqrt(squared))
    v = special.expit([1, 2]) * special.expit([-1, -2])
    assert p == pytest.approx(stats.chi2.sf(np.sum(100 * d**2 / v), 2))
    assert calibration.calibration_error(margins[:19]) is None
    assert calibration.calibration_error(np.zeros(40)) == ((0.0, 0.0, 0.0), 1.0)


def test_calibration_test_keeps_its_level_and_error_is_near_zero():
    rng, p, errors = np.random.default_rng(0), [], []
    for _ in range(1000):
        estimate, found = calibration.calibration_error(scored(rng, 300))
        p.append(found)
        errors.append(estimate)
    assert 0.03 < np.mean(np.array(p) < 0.05) < 0.07 and np.mean(np.array(p) < 0.01) < 0.02
    assert np.mean([e.low == 0 for e in errors]) > 0.97
    # the plain binned error is .07 here; the debiased one is 0 in half of the cases
    assert np.mean([e.value for e in errors]) < 0.03


@pytest.mark.parametrize("spread", [0.3, 6.0])
def test_calibration_test_keeps_its_level_at_extreme_confidences(spread):
    rng = np.random.default_rng(1)
    p = np.array(
        [calibration.calibration_error(scored(rng, 200, spread=spread))[1] for _ in range(1000)]
    )
    assert np.mean(p < 0.05) < 0.075 and np.mean(p < 0.01) < 0.025


def test_calibration_test_with_votes_that_hang_together():
    rng, found = np.random.default_rng(0), []
    for _ in range(500):
        margins = rng.normal(size=300)
        truth = special.expit(margins)
        votes = rng.binomial(
            5, rng.beta(2 * truth, 2 * (1 - truth))
        )  # right on average, not pair by pair
        found.append(
            calibration.calibration_error(margins, np.stack([votes, 5 - votes], axis=1))[1] < 0.05
        )
    assert 0.02 < np.mean(found) < 0.08


def test_calibration_error_of_an_overconfident_model():
    rng, hits = np.random.default_rng(0), 0
    many = np.abs(scored(rng, 1_000_000, 3.0))
    truth = math.sqrt(np.mean((special.expit(many / 3) - special.expit(many)) ** 2))
    for _ in range(300):
        estimate, p = calibration.calibration_error(scored(rng, 500, 3.0))
        hits += estimate.low <= truth <= estimate.high
        assert p < 0.01
    assert 0.91 < hits / 300 < 0.985
    extreme, p = calibration.calibration_error(
        np.where(rng.random(400) < 0.7, 60.0, -60.0)
    )  # expects no error at all
    assert extreme.value == pytest.approx(0.3, abs=0.06) and p < 1e-6


def test_brier_and_nll_are_scikit_learns():
    rng = np.random.default_rng(0)
    margins, votes = rng.normal(size=50) * 2, rng.integers(0, 4, size=(50, 2)) + np.array([1, 0])
    p = special.expit(margins)
    weights = (
        votes / votes.sum(axis=1, keepdims=True)
    ).T.ravel()  # every vote is a row, every pair counts 1
    labels, twice = np.repeat([1, 0], 50), np.tile(p, 2)
    assert calibration.brier(margins, votes) == pytest.approx(
        brier_score_loss(labels, twice, sample_weight=weights)
    )
    assert calibration.nll(margins, votes) == pytest.approx(
        log_loss(labels, twice, sample_weight=weights)
    )
    assert calibration.brier(margins) == pytest.approx(np.mean((1 - p) ** 2))
    assert calibration.nll(margins) == pytest.approx(log_loss(np.ones(50), p, labels=[0, 1]))
    assert (
        calibration.nll(np.array([-2000.0])) == 2000 and calibration.brier(np.array([0.0])) == 0.25
    )
    assert calibration.nll(np.array([])) is None and calibration.brier(np.array([])) is None


def test_fit_temperature():
    margins = scored(np.random.default_rng(0), 500, 3.0)
    temperature = calibration.fit_temperature(margins)
    assert temperature == pytest.approx(
        1 / sm.Logit(np.ones(500), margins[:, None]).fit(disp=0).params[0], rel=1e-6
    )
    assert calibration.fit_temperature(
        scored(np.random.default_rng(0), 50_000, 3.0)
    ) == pytest.approx(3, abs=0.1)
    around = [calibration.nll(margins / (temperature * factor)) for factor in (0.99, 1.0, 1.01)]
    assert around[1] < min(around[0], around[2])
    assert calibration.fit_temperature(np.array([1.0, 2.0])) is None  # right on every pair: T = 0
    assert (
        calibration.fit_temperature(-np.abs(margins)) is None
        and calibration.fit_temperature(np.array([])) is None
    )


def test_temperature_on_folds():
    rng = np.random.default_rng(0)
    found = calibration.temperature_on_folds(scored(rng, 5000, 3.0))
    assert found.temperature == pytest.approx(3, abs=0.3)
    assert found.error_before > 0.1 > 0.05 > found.error_after
    assert found.nll_before > found.nll_after + 0.1
    calm = calibration.temperature_on_folds(scored(rng, 1000))
    assert (
        calm.nll_after > calm.nll_before - 0.002
    )  # nothing to gain on pairs that it was not fitted on
    assert calibration.temperature_on_folds(np.ones(100)) is None


def test_temperature_after_numbers_are_held_out():
    margins = np.concatenate(
        [scored(np.random.default_rng(0), 60, 2.0), [-40.0]]
    )  # one pair decides the temperature
    found = calibration.temperature_on_folds(margins)
    assert found.nll_after > calibration.nll(margins / found.temperature) + 0.1


# --- raters ----------------------------------------------------------------------------------------------------------


def test_noise_from_votes():
    # errors of 10%: three votes agree with .9^2 + .1^2 = .82
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        wrong = rng.binomial(3, 0.1, size=200)
        estimate = noise_from_votes(np.stack([3 - wrong, wrong], axis=1))
        hits += estimate.low <= 0.1 <= estimate.high
    assert 0.91 < hits / 400 < 0.985
    by_hand = noise_from_votes(np.array([[3, 0], [2, 1], [3, 0]]))  # agreement 7/9
    assert by_hand.value == pytest.approx((1 - math.sqrt(5 / 9)) / 2)
    assert noise_from_votes(np.array([[1, 1]])).value == 0.5
    unanimous = noise_from_votes(np.array([[3, 0]] * 20))
    assert (unanimous.value, unanimous.low) == (0, 0) and 0 < unanimous.high < 0.2
    assert noise_from_votes(np.array([[1, 0]])) is None


def test_majority_error():
    assert majority_error(0.2, 3) == pytest.approx(3 * 0.04 * 0.8 + 0.008)
    assert majority_error(0.2, 2) == pytest.approx(0.04 + 0.5 * 0.32)
    assert majority_error(0.3, 101) == pytest.approx(stats.binom.sf(50, 101, 0.3))
    assert majority_error(0.3, 5001) == pytest.approx(0, abs=1e-100)
    assert (majority_error(0.0, 3), majority_error(0.5, 7)) == pytest.approx((0, 0.5))


# --- all of them -----------------------------------------------------------------------------------------------------


def everything(margins, lengths, rewards, subsets, prompts, votes):
    """Every number that an audit asks for, by name."""
    credit = ours.pair_credit(margins)
    labels, twice, dl = np.tile(subsets, 2), np.tile(prompts, 2), lengths[0] - lengths[1]
    gain = calibration.temperature_on_folds(margins, votes)
    return {
        "accuracy": accuracy(margins),
        "clustered": accuracy(margins, prompts),
        "macro": macro_accuracy(margins, subsets, prompts),
        "baseline": feature_baseline(lengths),
        "overlap": overlap(*rewards),
        "saturation": saturation(rewards.ravel()),
        "eta": eta_squared(rewards.ravel(), labels),
        "eta, grouped": eta_squared(rewards.ravel(), labels, twice),
        "scale": scale_ratio(rewards.ravel(), labels, twice),
        "excess": length_excess(margins, dl),
        "controlled": length_controlled_accuracy(margins, dl),
        "by length": list(accuracy_by_length(margins, *lengths, prompts).values()),
        "curve": [astuple(point) for point in accuracy_curve(margins, dl)],
        "difference": ours.paired_bootstrap_difference(credit, credit[::-1], prompts),
        "mcnemar": ours.mcnemar_exact(credit, credit[::-1]),
        "spearman": ours.spearman_interval(rewards[0], lengths[0]),
        "within": ours.within_groups_spearman(rewards[0], lengths[0], prompts),
        "best of n": best_of_n(rewards[0], lengths[0], 3),
        "reliability": [astuple(point) for point in calibration.reliability(margins, votes)],
        "calibration": calibration.calibration_error(margins, votes),
        "scores": (calibration.brier(margins, votes), calibration.nll(margins, votes)),
        "temperature": gain and astuple(gain),
        "noise": noise_from_votes(votes),
    }


def numbers(found):
    if isinstance(found, (tuple, list)):
        return [x for part in found for x in numbers(part)]
    return [] if found is None else [found]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [0, 1, 2, 3, 25])
@pytest.mark.parametrize(
    "case", ["ordinary", "equal rewards", "equal lengths", "huge", "tiny", "right everywhere"]
)
def test_degenerate_pairs_give_none_and_not_nan(case, n):
    rng = np.random.default_rng(0)
    rewards, lengths = rng.normal(size=(2, n)), rng.integers(1, 99, size=(2, n)).astype(float)
    rewards = {"equal rewards": 0 * rewards, "huge": rewards * 1e38, "tiny": rewards * 1e-200}.get(
        case, rewards
    )
    rewards = np.sort(rewards, axis=0)[::-1] if case == "right everywhere" else rewards
    lengths = 0 * lengths if case == "equal lengths" else lengths
    votes = rng.integers(0, 3, size=(n, 2)).astype(float)
    found = everything(
        rewards[0] - rewards[1], lengths, rewards, np.arange(n) % 3, np.arange(n) // 2, votes
    )
    for name, value in found.items():
        assert all(math.isfinite(x) for x in numbers(value)), name
        for estimate in [value, *(value if isinstance(value, tuple) else ())]:
            assert (
                not isinstance(estimate, Estimate)
                or estimate.low <= estimate.value <= estimate.high
            ), name


def test_100_000_pairs_are_quick():
    rng, n = np.random.default_rng(0), 100_000
    rewards, lengths = (
        rng.integers(-99, 99, size=(2, n)) / 10,
        rng.integers(1, 999, size=(2, n)).astype(float),
    )
    votes, prompts = rng.integers(0, 4, size=(n, 2)).astype(float), rng.integers(0, n // 3, size=n)
    start = time.process_time()
    found = everything(rewards[0] - rewards[1], lengths, rewards, prompts % 20, prompts, votes)
    assert time.process_time() - start < 30  # about 4 s
    assert found["clustered"].low < found["clustered"].value < found["clustered"].high


# --- words -----------------------------------------------------------------------------------------------------------


def test_short_numbers():
    shown = [short(x) for x in (0.713, -0.04, 1.25, 0.0, -0.0001, 1.0, 10.0, 12345.6)]
    assert shown == [".713", "-.04", "1.25", "0", "0", "1", "10", "1.23e+04"]


def test_plain_text_has_no_style_marks():
    assert style_marks("Plain advice: turn left in May.") == []
