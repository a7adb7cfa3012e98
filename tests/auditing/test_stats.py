"""The audit's numbers against hand-worked values, SciPy and statsmodels; what intervals cover."""

import math
import subprocess
import sys
import time
from dataclasses import astuple

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import special, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep

from auditing import stats as ours
from auditing.checks import calibration
from auditing.checks.accuracy import accuracy, macro_accuracy
from auditing.checks.best_of_n import best_of_n
from auditing.checks.distribution import eta_squared, overlap, saturation, scale_ratio
from auditing.checks.length import (
    accuracy_by_length,
    accuracy_curve,
    correlation_check,
    length_controlled_accuracy,
    length_excess,
)
from auditing.checks.raters import noise_from_votes
from auditing.checks.transfer import rating_checks
from auditing.scores import Completions
from auditing.stats import Estimate

# --- Means, and shares of pairs -------------------------------------------------------------------


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
        # Exact, not simulated.
        assert 0.92 < np.sum(stats.binom.pmf(np.arange(n + 1), n, p) * covers) < 0.98


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


def test_mean_interval():
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    half = stats.t.ppf(0.975, 5) * math.sqrt(3.5) / math.sqrt(6)
    assert ours.mean_interval(values) == pytest.approx((3.5, 3.5 - half, 3.5 + half), rel=5e-3)
    assert ours.mean_interval(values[:4]) is None


def test_few_prompts_are_few_observations():
    """The bootstrap over fewer than five prompts covers 52 to 90%; prompts are then the trials."""
    credit, prompts = np.tile([1.0, 1.0, 1.0, 0.0], 4), np.repeat(np.arange(4), 4)
    wilson = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert ours.share_interval(credit, prompts) == pytest.approx((0.75, wilson.low, wilson.high))
    # Each of 20 prompts has one pair right and one wrong: the bootstrap's interval has no width.
    wilson = stats.binomtest(10, 20).proportion_ci(method="wilson")
    assert ours.share_interval(np.tile([1.0, 0.0], 20), np.repeat(np.arange(20), 2)) == (
        pytest.approx((0.5, wilson.low, wilson.high))
    )
    # Independent pairs, one of them a tie.
    assert ours.share_interval(np.array([1.0, 1.0, 0.5])).low < 0.35

    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        rates = rng.beta(7, 3, 3)  # of three prompts
        credit = (rng.random((3, 12)) < rates[:, None]).astype(float).ravel()
        estimate = ours.share_interval(credit, np.repeat(np.arange(3), 12))
        covered += estimate.low <= 0.7 <= estimate.high
    assert covered > 190


def test_intervals_are_widened_where_prompts_repeat():
    """Nine values of one prompt that are all equal tell as much as one."""
    one = np.random.default_rng(0).normal(size=50)
    values, groups = np.repeat(one, 9), np.repeat(np.arange(50), 9)
    widened = ours.widened(ours.mean_interval(values), values - values.mean(), groups)
    assert widened == pytest.approx(ours.mean_interval(one), rel=0.02)
    alone = ours.mean_interval(one)
    assert ours.widened(alone, one - one.mean(), np.arange(50)) == alone
    assert ours.widened(alone, one - one.mean(), np.zeros(50)) == alone  # one group
    assert ours.widened(alone, one - one.mean(), np.arange(50) % 4) is None


# --- Tests, and two models on the same pairs ------------------------------------------------------


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
    seven = np.array([0.1, 0.3, 0.2, 0.4, 0.1, 0.2, 0.3])  # one number a prompt
    assert ours.two_sided_p(ours.mean_interval(seven), df=6) == pytest.approx(
        stats.ttest_1samp(seven, 0).pvalue
    )


def test_difference_of_proportions_is_newcombes():
    a, b = (Estimate(k / n, *ours.wilson_interval(k, n)) for k, n in ((56, 70), (48, 80)))
    difference, p = ours.difference_of_proportions(a, b)
    # Newcombe (1998), table II, contrast (a), method 10.
    assert difference == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
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
    result = ours.mcnemar_exact(
        np.repeat([1.0, 0.5], [50_400, 49_600]), np.repeat([0.5, 1.0], [50_400, 49_600])
    )
    assert result == (
        50_400,
        49_600,
        pytest.approx(stats.binomtest(49_600, 100_000).pvalue, rel=1e-6),
    )
    # Under the smallest double.
    assert ours.mcnemar_exact(np.ones(100_000), np.zeros(100_000))[2] == 0.0


def test_paired_bootstrap_difference():
    rng = np.random.default_rng(0)
    a, b = rng.choice([0.0, 0.5, 1.0], size=(2, 400))
    estimate = ours.paired_bootstrap_difference(a, b)
    assert estimate.value == pytest.approx(a.mean() - b.mean())
    normal = 1.959964 * (a - b).std() / 20
    assert (estimate.low, estimate.high) == pytest.approx(
        (estimate.value - normal, estimate.value + normal), abs=0.01
    )
    same = ours.paired_bootstrap_difference(a, a)
    assert same.value == 0 and -0.01 < same.low < 0 < same.high < 0.01
    assert ours.paired_bootstrap_difference(a[:0], a[:0]) is None


def test_equal_values_among_the_largest_are_drawn_at_random():
    assert ours.indices_of_largest(np.array([1.0, 3.0, 2.0]), 2).tolist() == [1, 2]
    assert ours.indices_of_largest(np.array([1.0]), 0).tolist() == []
    equal = ours.indices_of_largest(np.append(np.ones(1000), 2.0), 201)
    assert equal[0] == 1000
    assert abs(equal[1:].mean() - 500) < 60  # not the first 200 of the file


@pytest.mark.parametrize("df", [1, 2, 2.5, 7, 100, 10_000])
def test_chi2_sf_is_scipys(df):
    for x in df * np.array([0.01, 0.5, 0.9, 0.999, 1.0, 1.1, 2.0, 10.0]):
        assert ours.chi2_sf(float(x), df) == pytest.approx(
            stats.chi2.sf(x, df), rel=1e-8, abs=1e-300
        )
    assert ours.chi2_sf(0.0, df) == 1.0
    assert ours.chi2_sf(1e6, 3) == 0.0


# --- Correlations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e30, 1e200])
def test_correlations_are_scipys(scale):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, size=200).astype(float)  # with equal values
    y = (0.1 * x + rng.normal(size=200)) * scale
    assert ours.pearson(x, y) == pytest.approx(stats.pearsonr(x, y / scale).statistic)
    assert ours.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    # Fisher's interval is right for normal errors.
    interval = stats.pearsonr(x, y / scale).confidence_interval()
    assert ours.correlation_interval(x, y, np.arange(200)) == pytest.approx(
        (ours.pearson(x, y), interval.low, interval.high), abs=0.02
    )


def test_correlation_by_hand_and_undefined():
    assert ours.average_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert ours.pearson(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])) == pytest.approx(0.5)
    assert ours.pearson(np.array([0.1] * 7), np.arange(7.0)) is None
    assert ours.pearson(np.array([1.0]), np.array([1.0])) is None
    three = np.arange(3.0)
    assert ours.correlation_interval(three, three, np.arange(3)) is None
    five = np.arange(5.0)
    assert ours.correlation_interval(five, -five, np.arange(5)) == (-1.0, -1.0, -1.0)
    assert ours.correlation_interval(five, five**2, np.array([0, 0, 1, 2, 3])) is None


def test_spearman_interval():
    x, y = np.random.default_rng(0).normal(size=(2, 60))
    y = y + x
    r = stats.spearmanr(x, y).statistic
    # Bonett and Wright (2000), for points of a bell shape.
    half = 1.959964 * math.sqrt((1 + r * r / 2) / 57)
    expected = (r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))
    alone = np.arange(60)
    estimate = ours.spearman_interval(x, y, alone)
    assert estimate == pytest.approx(expected, abs=0.03)
    assert ours.spearman_interval(x[:3], y[:3], alone[:3]) is None
    assert ours.spearman_interval(x, np.ones(60), alone) is None
    # A row that stands there four times counts once.
    four_times = ours.spearman_interval(np.repeat(x, 4), np.repeat(y, 4), np.repeat(alone, 4))
    assert four_times == pytest.approx(estimate, abs=0.01)


def test_the_influence_on_spearmans_r_is_that_of_leaving_a_point_out():
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = np.round(x + rng.normal(size=60))  # with equal values
    r = stats.spearmanr(x, y).statistic
    without = [stats.spearmanr(np.delete(x, i), np.delete(y, i)).statistic for i in range(60)]
    influence = ours.spearman_influence(stats.rankdata(x), stats.rankdata(y))
    assert influence == pytest.approx(59 * (r - np.array(without)), abs=0.08)


def lognormal_lengths(rng, n):
    """Lengths as they are, and rewards that pay for them: r = .3."""
    z = rng.normal(size=n)
    length = np.exp(z)
    paid = (length - math.exp(0.5)) / math.sqrt(math.e * (math.e - 1))
    return length, 0.3 * paid + math.sqrt(0.91) * rng.normal(size=n)


def heavy_tails(rng, n):
    x, y = rng.standard_t(3, size=(2, n))
    return x, 0.3 * x + math.sqrt(0.91) * y


@pytest.mark.parametrize("draw", [lognormal_lengths, heavy_tails])
def test_the_correlations_interval_covers_without_normality(draw):
    """Fisher's covers 84% of lognormal, and 76% of heavy-tailed lengths, and warns too often."""
    rng, hits, warns = np.random.default_rng(0), 0, 0
    for _ in range(600):
        x, y = draw(rng, 400)
        check = correlation_check("length correlation", x, y, np.arange(400), 400)
        hits += check.low <= 0.3 <= check.high
        warns += check.verdict == "warn"
    assert 0.93 <= hits / 600 <= 0.98
    assert warns / 600 <= 0.025


def test_ratings_of_one_prompt_hang_together():
    rng, hits = np.random.default_rng(0), 0
    prompt = np.repeat(np.arange(60), 5)
    for _ in range(400):
        reward, rating = rng.normal(size=(2, 60))[:, prompt] + rng.normal(size=(2, 300))
        estimate = rating_checks(rated(prompt, reward, rating))[0]
        hits += estimate.low <= 0 <= estimate.high
    assert 0.92 <= hits / 400 <= 0.975


def rated(prompt, reward, rating) -> Completions:
    zeros = np.zeros(len(prompt))
    return Completions(prompt, reward, zeros, zeros, zeros, rating=rating)


def test_rewards_that_tie_say_nothing_of_their_ratings():
    """Prompts whose rewards all tie were left out: 10 of 200 gave a correlation of 1."""
    prompt = np.repeat(np.arange(200), 4)
    rating = np.tile([1.0, 2.0, 3.0, 4.0], 200)
    reward = np.where(prompt < 10, rating, 0.0)
    check = rating_checks(rated(prompt, reward, rating))[1]
    assert (check.value, check.n, check.verdict) == (pytest.approx(0.05), 200, "fail")


def test_ratings_that_agree_within_prompts_count_more_than_between_them():
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(100), 3)
    rating = np.tile([1.0, 2.0, 3.0], 100)
    reward = rating + rng.normal(0, 30, 100)[prompt]
    over_all, within = rating_checks(rated(prompt, reward, rating))
    assert (within.value, within.verdict) == (1.0, "pass")
    assert (over_all.verdict, over_all.note) == ("warn", "within prompts the two agree")


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
    check = rating_checks(rated(group, x, y))[1]
    assert check.n == len(expected) < 50  # the prompts that count, not all of them


# --- Logistic regression --------------------------------------------------------------------------


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
    # Dependent columns.
    assert ours.logistic(np.stack([x, 2 * x], axis=1), (np.arange(20) % 2).astype(float)) is None
    assert ours.logistic(X[:0], x[:0]) is None


# --- Detectable effects ---------------------------------------------------------------------------


def test_detectable_effects():
    # Cohen (1988), table 3.4.1: r = .30 at 80% power, two-sided 5%, takes 84 or 85 rows
    of_85, of_84 = (math.tanh(1.959964 / math.sqrt(n - 3)) for n in (85, 84))
    assert ours.detectable_correlation(Estimate(0.0, -of_85, of_85)) <= 0.30
    assert ours.detectable_correlation(Estimate(0.0, -of_84, of_84)) > 0.30
    assert ours.detectable_correlation(Estimate(0.99, 0.5, 1.0)) == 1.0  # an end that is rounded
    assert ours.detectable_correlation(Estimate(-0.99, -1.0, 0.5)) == 1.0
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


def test_detectable_mcnemar():
    # Connor (1987): n = (z_.975 sqrt(s) + z_.80 sqrt(s - d^2))^2 / d^2;
    # s = .3, d = .1 takes 234 pairs.
    n = (1.959964 * math.sqrt(0.3) + 0.841621 * math.sqrt(0.29)) ** 2 / 0.01
    assert 233 < n < 234
    assert ours.detectable_mcnemar(234, 0.3) < 0.1 < ours.detectable_mcnemar(233, 0.3)
    assert ours.detectable_mcnemar(10, 0.1) is None and ours.detectable_mcnemar(3, 0.5) is None
    rng, d = np.random.default_rng(0), ours.detectable_mcnemar(400, 0.25)
    wins, losses, _ = rng.multinomial(400, [(0.25 + d) / 2, (0.25 - d) / 2, 0.75], size=4000).T
    assert np.mean((wins - losses) / np.sqrt(wins + losses) > 1.959964) == pytest.approx(
        0.8, abs=0.03
    )


# --- All numbers of an audit ----------------------------------------------------------------------


def everything(margins, lengths, rewards, subsets, prompts, votes):
    """Every number that an audit asks for, by name."""
    credit = ours.pair_credit(margins)
    labels, twice, dl = np.tile(subsets, 2), np.tile(prompts, 2), lengths[0] - lengths[1]
    gain = calibration.temperature_on_folds(margins, votes, prompts)
    return {
        "accuracy": accuracy(margins),
        "clustered": accuracy(margins, prompts),
        "macro": macro_accuracy(margins, subsets, prompts),
        "correlation": ours.correlation_interval(dl, margins, prompts),
        "overlap": overlap(*rewards),
        "saturation": saturation(rewards.ravel()),
        "eta": eta_squared(rewards.ravel(), labels),
        "eta, grouped": eta_squared(rewards.ravel(), labels, twice),
        "scale": scale_ratio(rewards.ravel(), labels, twice),
        "excess": length_excess(margins, dl),
        "controlled": length_controlled_accuracy(margins, dl),
        "by length": list(accuracy_by_length(margins, *lengths, prompts).values()),
        "curve": [astuple(point) for point in accuracy_curve(margins, dl)],
        "difference": ours.paired_bootstrap_difference(credit, credit[::-1]),
        "mcnemar": ours.mcnemar_exact(credit, credit[::-1]),
        "spearman": ours.spearman_interval(rewards[0], lengths[0], prompts),
        "within": ours.within_groups_spearman(rewards[0], lengths[0], prompts),
        "best of n": best_of_n(rewards[0], lengths[0], 3),
        "reliability": [
            astuple(point) for point in calibration.reliability(margins, votes, prompts)
        ],
        "calibration": calibration.calibration_error(margins, votes, prompts),
        "scores": (calibration.brier(margins, votes), calibration.nll(margins, votes)),
        "temperature": gain and astuple(gain),
        "noise": noise_from_votes(votes),
    }


def numbers(statistic):
    if isinstance(statistic, (tuple, list)):
        return [x for part in statistic for x in numbers(part)]
    return [] if statistic is None else [statistic]


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
    statistics = everything(
        rewards[0] - rewards[1], lengths, rewards, np.arange(n) % 3, np.arange(n) // 2, votes
    )
    for name, value in statistics.items():
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
    statistics = everything(rewards[0] - rewards[1], lengths, rewards, prompts % 20, prompts, votes)
    assert time.process_time() - start < 30  # about 4 s
    clustered = statistics["clustered"]
    assert clustered.low < clustered.value < clustered.high


def test_metrics_import_neither_torch_nor_matplotlib():
    code = (
        "import sys, auditing.stats, auditing.checks.calibration, auditing.checks.accuracy\n"
        "assert not {'torch', 'matplotlib', 'scipy.stats', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_rounding_does_not_push_a_correlation_out_of_its_interval():
    """Every prompt has the same rewards and ratings, so the interval has next to no width."""
    reward, rating = np.tile([2.0, 0, 3, 1], 28), np.tile([1.0, 2, 4, 3], 28)
    estimate = ours.spearman_interval(reward, rating, np.repeat(np.arange(28), 4))
    assert estimate.low <= estimate.value <= estimate.high
