"""The audit's numbers: pure functions of NumPy arrays, each with its equation and its source.

A number that is undefined for its input (no rows, no variance) is None, never NaN. Intervals are
two-sided, 95%. A statistic that only one section of the report needs lies beside its check, in
auditing.checks. Neither torch nor scipy.stats is imported with this module: both are slow to load.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from scipy import special

NORMAL = NormalDist()
Z_95 = NORMAL.inv_cdf(0.975)
Z_POWER = NORMAL.inv_cdf(0.80)  # 80% power, Cohen's convention (Statistical Power Analysis, 1988)
NEARLY_ZERO = 1e-12  # of a total: what is left of it without a part that was all of it
RESAMPLES = 2000
CHUNK = 4_000_000  # cells of a bootstrap table that are in memory at once
FEWEST_PROMPTS = 5  # fewer of them do not show how far prompts differ


class Estimate(NamedTuple):
    """A number with its 95% interval, whose ends are None where there are too few to tell."""

    value: float
    low: float | None
    high: float | None


# --- Means, and shares of pairs -------------------------------------------------------------------


def pair_credit(differences: np.ndarray) -> np.ndarray:
    """How much each pair counts as right: 1[d > 0] + 1/2 1[d = 0].

    It is the convention of Mann and Whitney (1947).

    Args:
        differences: (n,) d, such as reward(chosen) - reward(rejected).

    Returns:
        (n,) 1 for a win, one half for a tie, 0 for a loss.
    """
    return np.where(differences > 0, 1.0, np.where(differences == 0, 0.5, 0.0))


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """The interval of a share: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Wilson, JASA 22 (1927). SciPy has it for whole successes only.

    Args:
        successes: How many of the n trials succeeded. It need not be a whole number, because ties
            count one half.
        n: The number of independent trials.
    """
    p = successes / n
    z2 = Z_95**2
    centre = p + z2 / (2 * n)
    half = Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = (centre - half) / (1 + z2 / n)
    high = (centre + half) / (1 + z2 / n)
    # Rounding would make these two bounds 1e-17 and 1 - 1e-17.
    if not successes:
        low = 0.0
    if successes >= n:
        high = 1.0
    return low, high


def wilson_estimate(successes: float, n: int) -> Estimate:
    """The share of successes among n independent trials, with Wilson's interval."""
    return Estimate(successes / n, *wilson_interval(successes, n))


def bootstrap_mean(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The bootstrap of a mean of independent values: each value is a cluster of its own."""
    return cluster_bootstrap_mean(values, np.arange(len(values)), resamples, seed)


def cluster_bootstrap_mean(
    values: np.ndarray, groups: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """The bootstrap of sum(values) / count, where the values of one group are drawn together.

    Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8. The
    percentiles are Hesterberg's (The American Statistician 69, 2015, section 4.4), a little further
    out than 2.5 and 97.5, which give too narrow an interval when there are few groups. A single
    group does not show the spread between groups, so its values then count as independent.

    Args:
        values: (n,) the values, at least one.
        groups: (n,) the group of each value, such as its prompt.
        resamples: How many bootstrap samples are drawn.
        seed: The seed of the random numbers.
    """
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group)
    count = len(sizes)
    mean = float(values.mean())
    if count == 1:
        if len(values) > 1:
            return bootstrap_mean(values, resamples, seed)
        return Estimate(mean, mean, mean)
    table = np.stack([np.bincount(group, weights=values), sizes])  # (2, groups)
    means = resampled_means(table, resamples, seed)
    tail = NORMAL.cdf(-math.sqrt(count / (count - 1)) * t_quantile(count - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(mean, min(mean, float(low)), max(mean, float(high)))


def resampled_means(table: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of bootstrap samples of groups.

    Drawing G groups with replacement and counting those with an equal (sum, size) is one
    multinomial draw, however many groups there are.

    Args:
        table: (2, groups) the sum and the size of each group.
        resamples: How many samples are drawn.
        seed: The seed of the random numbers.

    Returns:
        (resamples,) the mean of each sample.
    """
    count = table.shape[1]
    kinds, counts = np.unique(table, axis=1, return_counts=True)  # (2, kinds), (kinds,)
    rng = np.random.default_rng(seed)
    width = min(10 * kinds.shape[1], count)
    rows_at_once = max(1, CHUNK // width)
    means = []
    for start in range(0, resamples, rows_at_once):
        rows = min(resamples - start, rows_at_once)
        if width < count:
            total, size = kinds @ rng.multinomial(count, counts / count, size=rows).T
        else:  # Drawing the groups is quicker when there are nearly as many kinds as groups.
            drawn = rng.integers(count, size=(rows, count), dtype=np.int32)
            total = table[0][drawn].sum(axis=1)
            size = table[1][drawn].sum(axis=1)
        means.append(total / size)
    return np.concatenate(means)


def t_quantile(df: float) -> float:
    """The 97.5% point of Student's t with df degrees of freedom."""
    return float(special.stdtrit(df, 0.975))


def share_interval(credit: np.ndarray, prompts: np.ndarray | None = None) -> Estimate | None:
    """The mean of values in [0, 1], with its interval; None for no values.

    The interval is Wilson's if the values are independent and all of them are 0 or 1; otherwise it
    is the bootstrap's. With fewer than five prompts that is far too narrow, and it has no width if
    all prompts have the same mean. Wilson's is then taken with the number of prompts as n. That is
    on the safe side, because values in [0, 1] of a given mean vary most if they are zeros and ones.

    Args:
        credit: (n,) values in [0, 1].
        prompts: (n,) the prompt of each value; None if no prompt repeats.
    """
    n = len(credit)
    if n == 0:
        return None
    groups = n
    if prompts is not None:
        groups = len(np.unique(prompts))
    if groups == 1:  # All values have the same prompt, so there is nothing to cluster by.
        groups = n
    mean = float(credit.mean())
    if groups == n and np.isin(credit, (0.0, 1.0)).all():
        return Estimate(mean, *wilson_interval(int(credit.sum()), n))
    if groups >= FEWEST_PROMPTS:
        if groups == n:
            prompts = np.arange(n)
        estimate = cluster_bootstrap_mean(credit, prompts)
        if estimate.low < estimate.high:
            return estimate
    return Estimate(mean, *wilson_interval(mean * groups, groups))


def mean_interval(values: np.ndarray) -> Estimate | None:
    """mean +- t s / sqrt(n), by Student (1908); None for fewer than five values."""
    n = len(values)
    if n < 5:
        return None
    mean = float(values.mean())
    half = t_quantile(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half)


def paired_interval(differences: np.ndarray) -> Estimate:
    """The mean of paired differences: Agresti and Min, Statistics in Medicine 24 (2005).

    Half a pair is added to each of the four cells of the table, then Wald's interval is taken. If
    the two sides never differ, this interval still has a width; Wald's own and the bootstrap's have
    none. It is
    (S1 +- z sqrt(S2 + 1 - S1^2 / N)) / N, with N = n + 2, S1 = sum d, S2 = sum d^2.

    Args:
        differences: (n,) d, in [-1, 1].
    """
    total = float(differences.sum())
    squares = float((differences**2).sum())
    pseudo_n = len(differences) + 2
    mean = float(differences.mean())
    half = Z_95 * math.sqrt(squares + 1 - total**2 / pseudo_n) / pseudo_n
    centre = total / pseudo_n
    low = max(-1.0, min(mean, centre - half))
    high = min(1.0, max(mean, centre + half))
    return Estimate(mean, low, high)


FEW_PROMPTS = "fewer than five prompts, so nothing shows how far prompts differ"


def numbered_groups(groups: np.ndarray) -> np.ndarray | None:
    """Number the groups of values from 0 without a gap.

    Args:
        groups: (n,) the group of each value, such as its prompt.

    Returns:
        (n,) the numbers. If there is a single group, there is nothing to cluster by, and each value
        is a group of its own. None if groups repeat and there are fewer than five.
    """
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max(initial=-1)) + 1
    if count == len(groups) or count == 1:
        return np.arange(len(groups))
    if count < FEWEST_PROMPTS:
        return None
    return group


def widened(
    estimate: Estimate | None, influence: np.ndarray, groups: np.ndarray
) -> Estimate | None:
    """Widen an interval for independent values, because values of one group are correlated.

    Half widths are multiplied by the root of Kish's design effect (Survey Sampling, 1965),
    G / (G - 1) sum over the G groups of (sum of influence)^2 / sum of influence^2, which is taken
    as at least 1. The quantile t takes the place of z.

    Args:
        estimate: A number with the interval for independent values; None stays None.
        influence: (n,) how far each value moves the estimate. For a mean it is the value's
            deviation from the mean.
        groups: (n,) the group of each value, such as its prompt.

    Returns:
        The estimate with the wider interval. None if prompts repeat and there are fewer than five.
    """
    group = numbered_groups(groups)
    if estimate is None or group is None:
        return None
    count = int(group.max(initial=-1)) + 1
    squares = float(np.sum(influence**2))
    if count == len(groups) or squares == 0:  # Nothing repeats, or nothing varies.
        return estimate
    sums = np.bincount(group, influence)
    effect = count / (count - 1) * float(np.sum(sums**2)) / squares
    factor = math.sqrt(max(1.0, effect)) * t_quantile(count - 1) / Z_95
    value, low, high = estimate
    return Estimate(value, value - factor * (value - low), value + factor * (high - value))


def jackknife_changes(left_out: np.ndarray) -> np.ndarray:
    """(G,) values without each group -> how far each group moves the value from their mean."""
    count = len(left_out)
    return math.sqrt((count - 1) / count) * (left_out - left_out.mean())


def half_width(changes: np.ndarray) -> float:
    """Half the 95% interval of a number: t se, se^2 = sum of changes^2.

    If a few groups make up most of se^2, then se is itself uncertain, and t has
    (sum of changes^2)^2 / sum of changes^4 degrees of freedom, as many as if that number of groups
    had made it up equally, and at least two.

    Args:
        changes: (G,) how far each group moves the number.
    """
    largest = float(np.abs(changes).max())
    if largest == 0:
        return 0.0
    squares = (changes / largest) ** 2
    variance = float(squares.sum())
    df = variance**2 / float(np.sum(squares**2))
    return t_quantile(max(2.0, df)) * largest * math.sqrt(variance)


def ratio_of_means(numerators: np.ndarray, denominators: np.ndarray) -> Estimate | None:
    """mean(numerators) / mean(denominators), with the jackknife's interval.

    Quenouille (Biometrika 43, 1956). Both means are uncertain.

    Args:
        numerators: (G,) one number for each independent group.
        denominators: (G,) one number above 0 for each group.

    Returns:
        None for fewer than five groups.
    """
    if len(numerators) < 5:
        return None
    total = denominators.sum()
    value = float(numerators.sum() / total)
    others = np.maximum(total - denominators, NEARLY_ZERO * total)
    left_out = (numerators.sum() - numerators) / others
    half = half_width(jackknife_changes(left_out))
    return Estimate(value, value - half, value + half)


# --- Tests, and two models on the same pairs ------------------------------------------------------


def two_sided_p(estimate: Estimate, null: float = 0.0, df: float | None = None) -> float:
    """The p-value that belongs to an interval; below .05 exactly if `null` lies outside of it.

    P(|Z| > z |value - null| / (distance from the value to the bound on the null's side)). If the
    interval is value +- z x standard error, this is the p-value of the z-test.

    Args:
        estimate: The number with its 95% interval.
        null: The number under the hypothesis of no effect.
        df: The degrees of freedom of Student's t, which then takes the place of Z: one less than
            there are prompts, if prompts are few. None for Z.
    """
    distance = abs(estimate.value - null)
    if distance == 0:
        return 1.0
    if estimate.value > null:
        half = estimate.value - estimate.low
    else:
        half = estimate.high - estimate.value
    if half == 0:
        return 0.0
    if df is not None:
        return 2 * float(special.stdtr(df, -t_quantile(df) * distance / half))
    return math.erfc(Z_95 * distance / half / math.sqrt(2))


def difference_of_proportions(a: Estimate, b: Estimate) -> tuple[Estimate, float]:
    """The difference a - b of two independent accuracies, and its p-value (two_sided_p).

    Newcombe's hybrid score interval, Statistics in Medicine 17 (1998), method 10:
    a - b - sqrt((a - low_a)^2 + (high_b - b)^2) to a - b + sqrt((high_a - a)^2 + (b - low_b)^2).
    The two intervals may come from any method.
    """
    difference = a.value - b.value
    estimate = Estimate(
        difference,
        difference - math.hypot(a.value - a.low, b.high - b.value),
        difference + math.hypot(a.high - a.value, b.value - b.low),
    )
    return estimate, two_sided_p(estimate)


def paired_bootstrap_difference(credit_a: np.ndarray, credit_b: np.ndarray) -> Estimate | None:
    """mean(credit_a - credit_b) on the same pairs. Efron and Tibshirani (1993), chapter 8.

    If the difference is the same on every pair, the bootstrap's interval would have no width, and
    the interval is that of paired_interval.

    Args:
        credit_a: (n,) how much each pair counts as right for one model (pair_credit).
        credit_b: (n,) the same for the other model.

    Returns:
        None for no pairs.
    """
    differences = credit_a - credit_b
    if len(differences) == 0:
        return None
    if differences.min() == differences.max():
        return paired_interval(differences)
    return bootstrap_mean(differences)


def mcnemar_exact(credit_a: np.ndarray, credit_b: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact test (Psychometrika 12, 1947) of two models on the same pairs.

    p = min(1, 2 P(X <= min(a_better, b_better))), X ~ Binomial(a_better + b_better, 1/2). If pairs
    tie, which counts as better than an error, it is the sign test.

    Args:
        credit_a: (n,) how much each pair counts as right for model a (pair_credit).
        credit_b: (n,) the same for model b.

    Returns:
        a_better, the number of pairs on which a does better; b_better, the number on which b does
        better; and p.
    """
    a_better = int(np.sum(credit_a > credit_b))
    b_better = int(np.sum(credit_a < credit_b))
    tail = special.bdtr(min(a_better, b_better), a_better + b_better, 0.5)
    return a_better, b_better, min(1.0, 2 * float(tail))


def chi2_sf(x: float, df: float) -> float:
    """P(X > x), where X is chi-square with df degrees of freedom."""
    return float(special.chdtrc(df, x))


def indices_of_largest(values: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """The indices of the k largest values, the largest first.

    Equal values come in a random order. In the order of the file those of its first subset would
    come first.
    """
    chance = np.random.default_rng(seed).random(len(values))
    return np.lexsort((chance, -values))[:k]


# --- Correlations ---------------------------------------------------------------------------------


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of their ranks."""
    from scipy.stats import rankdata  # It takes most of a second to load.

    return rankdata(values)


def equal_mass(values: np.ndarray, bins: int) -> list[np.ndarray]:
    """Cut values into bins of about equal size; equal values stay in one bin.

    Args:
        values: (n,) the values.
        bins: The largest number of bins. Equal values can make them fewer.

    Returns:
        The indices of the values of each bin, the smallest values first.
    """
    if len(values) == 0:
        return []
    position = (average_ranks(values) - 0.5) * bins / len(values)  # in (0, bins)
    label = np.minimum(position.astype(int), bins - 1)
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[order])) + 1
    return np.split(order, starts)


def centred_and_scaled(values: np.ndarray) -> np.ndarray:
    """Values minus their mean, divided by the largest absolute one.

    Their squares neither underflow nor overflow.
    """
    values = values - values.mean()
    return values / np.abs(values).max()


def pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    """r = sum(dx dy) / sqrt(sum dx^2 sum dy^2), dx = x - mean(x). Pearson (1895).

    r^2 is the share of the variance that is explained. None if x or y does not vary. SciPy's
    pearsonr gives the same number, but warns about values that are nearly constant.
    """
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    dx = centred_and_scaled(x)
    dy = centred_and_scaled(y)
    r = np.sum(dx * dy) / math.sqrt(np.sum(dx**2) * np.sum(dy**2))
    return float(np.clip(r, -1, 1))


def correlation_interval(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> Estimate | None:
    """Pearson's r with an interval that needs no normal x and y: tanh(atanh(r) +- t se).

    se is the jackknife's over groups (Efron and Stein, Annals of Statistics 9, 1981): with d_g the
    change of atanh(r) if group g is left out, se^2 = (G - 1) / G sum of (d_g - mean)^2. It follows
    the influence of each point on r, where Fisher's 1 / sqrt(n - 3) is right for normal x and y
    alone. half_width has t.

    Args:
        x: (n,) such as lengths.
        y: (n,) such as rewards.
        groups: (n,) the group of each point, such as its prompt.

    Returns:
        None in the cases of fisher_z_interval.
    """
    return fisher_z_interval(x, y, groups, jackknifed_z)


def jackknifed_z(x: np.ndarray, y: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(G,) how far each group moves atanh(r) of x and y; groups are numbered from 0."""
    dx = centred_and_scaled(x)
    dy = centred_and_scaled(y)
    columns = [np.ones(len(x)), dx, dy, dx * dx, dy * dy, dx * dy]
    sums = np.stack([np.bincount(group, column) for column in columns])  # (6, G)
    left_out = correlation_of_sums(sums.sum(axis=1, keepdims=True) - sums)  # (G,)
    return jackknife_changes(np.arctanh(left_out))


def correlation_of_sums(sums: np.ndarray) -> np.ndarray:
    """Pearson's r, a little inside of -1 and 1; where x or y does not vary it is 0.

    Args:
        sums: (6, k) n and the sums of x, y, x^2, y^2 and xy, of k samples.

    Returns:
        (k,) the correlations.
    """
    n, x, y, xx, yy, xy = sums
    covariance = xy - x * y / n
    scale = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
    r = np.divide(covariance, scale, out=np.zeros(len(n)), where=scale > 0)
    return np.clip(r, -1 + 1e-12, 1 - 1e-12)


def fisher_z_interval(
    x: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    changes_of_z: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
) -> Estimate | None:
    """Pearson's r of x and y, with the interval tanh(atanh(r) +- half_width).

    Args:
        x: (n,) such as lengths.
        y: (n,) such as rewards.
        groups: (n,) the group of each point.
        changes_of_z: x, y and the groups, numbered from 0, -> (G,) how far each group moves
            atanh(r).

    Returns:
        None if x or y does not vary, for fewer than four points, and if groups repeat and there
        are fewer than five.
    """
    r = pearson(x, y)
    group = numbered_groups(groups)
    if r is None or len(x) < 4 or group is None:
        return None
    if abs(r) > 1 - 1e-12:
        return Estimate(r, r, r)
    half = half_width(changes_of_z(x, y, group))
    if half == 0:
        return Estimate(r, r, r)
    low, high = math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
    return Estimate(r, min(r, low), max(r, high))  # rounding may miss r


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's r of the average ranks, by Spearman (1904). None if x or y does not vary."""
    return pearson(average_ranks(x), average_ranks(y))


def spearman_interval(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> Estimate | None:
    """Spearman's r with the interval of correlation_interval, from the influence of each point.

    A point moves r by its own ranks, as in Pearson's r, and by what it adds to the ranks of the
    points above it (Borkowf, Computational Statistics and Data Analysis 39, 2002). Both are summed
    over a group.

    Args:
        x: (n,) such as rewards.
        y: (n,) such as ratings.
        groups: (n,) the group of each point, such as its prompt.

    Returns:
        None in the cases of fisher_z_interval.
    """
    return fisher_z_interval(average_ranks(x), average_ranks(y), groups, spearman_changes)


def spearman_changes(x: np.ndarray, y: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(G,) how far each group moves atanh(r) of the ranks x and y; groups are numbered from 0."""
    r = pearson(x, y)
    sums = np.bincount(group, spearman_influence(x, y)) / len(x)
    count = len(sums)
    return math.sqrt(count / (count - 1)) * sums / (1 - r * r)


def spearman_influence(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """n times how far each point moves Spearman's r, with mean 0.

    Args:
        x: (n,) average ranks, not all equal.
        y: (n,) average ranks, not all equal.
    """
    zx = (x - x.mean()) / x.std()
    zy = (y - y.mean()) / y.std()
    r = float(np.mean(zx * zy))
    own = zx * zy - r * (zx**2 + zy**2) / 2
    through_x = mean_of_those_above(x, (zy - r * zx) / x.std())
    through_y = mean_of_those_above(y, (zx - r * zy) / y.std())
    influence = own + through_x + through_y
    return influence - influence.mean()


def mean_of_those_above(ranks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n,) the sum of the weights of all points with a higher rank; an equal one counts one half.

    Args:
        ranks: (n,) average ranks.
        weights: (n,) how far a rank moves the mean.
    """
    _, level = np.unique(ranks, return_inverse=True)
    totals = np.bincount(level, weights)
    above = totals[::-1].cumsum()[::-1] - totals
    return above[level] + totals[level] / 2


def within_groups_spearman(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> Estimate | None:
    """The mean over groups (prompts) of Spearman's r within the group +- t s / sqrt(groups).

    Every group of spearman_of_groups counts the same. None if there are fewer than five.
    """
    estimate = mean_interval(spearman_of_groups(x, y, groups))
    if estimate is None:
        return None
    return Estimate(estimate.value, max(-1.0, estimate.low), min(1.0, estimate.high))


def spearman_of_groups(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Spearman's r of each group with at least three values in which y varies.

    It is 0 where x, such as the rewards of a prompt's completions, does not vary: x tells nothing.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    a = centred_ranks_within(x, group)
    b = centred_ranks_within(y, group)
    ab = np.bincount(group, a * b)
    aa = np.bincount(group, a * a)
    bb = np.bincount(group, b * b)
    usable = (sizes >= 3) & (bb > 0)
    scale = np.sqrt(aa[usable] * bb[usable])
    return np.divide(ab[usable], scale, out=np.zeros(len(scale)), where=scale > 0)


def centred_ranks_within(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Average ranks within each group, minus their mean.

    Args:
        values: (n,) the values.
        group: (n,) the number of each value's group; the groups are numbered from 0 without a gap.

    Returns:
        (n,) the centred rank of each value.
    """
    _, level = np.unique(values, return_inverse=True)
    sizes = np.bincount(group)
    earlier_groups = np.cumsum(sizes) - sizes
    ranks = average_ranks(group * len(values) + level) - earlier_groups[group]
    means = np.bincount(group, ranks) / sizes
    return ranks - means[group]


# --- Logistic regression --------------------------------------------------------------------------


class LogisticFit(NamedTuple):
    """The coefficients of a logistic regression."""

    coefficients: np.ndarray  # (k,)
    covariance: np.ndarray  # (k, k)


def logistic(
    X: np.ndarray,
    y: np.ndarray,
    offset: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> LogisticFit | None:
    """Maximum likelihood of P(y = 1) = sigmoid(X b + offset).

    Newton's steps b += (X' W X)^-1 X' (y - p), W = w p (1 - p), which is iteratively reweighted
    least squares: McCullagh and Nelder, Generalized Linear Models (1989), section 4.4.

    Args:
        X: (n, k) one column per coefficient.
        y: (n,) outcomes in [0, 1].
        offset: (n,) what is added to X b; None for nothing.
        weights: (n,) w, how often each row counts; None if each counts once.

    Returns:
        None if there is no finite maximum (separable data), or if the columns of X are linearly
        dependent.
    """
    if offset is None:
        offset = np.zeros(len(y))
    if weights is None:
        weights = np.ones(len(y))
    scale = np.abs(X).max(axis=0, initial=0)
    if len(y) == 0 or not scale.all():
        return None
    X = X / scale
    b = np.zeros(X.shape[1])
    last_step = np.zeros(X.shape[1])
    likelihood = -np.inf
    for _ in range(60):
        eta = X @ b + offset
        p = special.expit(eta)
        information = (X * (weights * p * (1 - p))[:, None]).T @ X
        if np.linalg.cond(information) > 1e12 or np.abs(eta).max() > 500:
            return None
        step = np.linalg.solve(information, X.T @ (weights * (y - p)))
        before = likelihood
        likelihood = float(np.sum(weights * (y * eta - np.logaddexp(0, eta))))
        if likelihood < before - 1e-9 * abs(before):  # It overshot: half the last step is undone.
            last_step = last_step / 2
            b = b - last_step
            likelihood = before
            continue
        if np.abs(step).max() < 1e-9 * max(1.0, np.abs(b).max()):
            return LogisticFit(b / scale, np.linalg.inv(information) / np.outer(scale, scale))
        b = b + step
        last_step = step
    return None


# --- The smallest effect that n pairs show with 80% power, at a two-sided 5% level ----------------


def detectable_correlation(interval: Estimate) -> float:
    """The smallest |r| that can be told apart from 0: tanh((z_.975 + z_.80) x standard error).

    Cohen (1988), chapter 3, by Fisher's z. The standard error of atanh(r) is computed from the
    width of a 95% interval.
    """
    if interval.low == interval.high:
        return 0.0
    if interval.low <= -1 or interval.high >= 1:  # rounded; atanh is infinite there
        return 1.0
    width = math.atanh(interval.high) - math.atanh(interval.low)
    return math.tanh((Z_95 + Z_POWER) * width / (2 * Z_95))


def detectable_accuracy(n: int, baseline: float) -> float | None:
    """The smallest accuracy that n pairs can tell apart from a fixed baseline.

    p - q = (z_.975 sqrt(q (1 - q)) + z_.80 sqrt(p (1 - p))) / sqrt(n), a quadratic in p.
    Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions (2003), section 2.5.
    A tie has less variance than a win or a loss, so this is on the safe side if pairs tie.

    Args:
        n: The number of pairs, at least one.
        baseline: The accuracy q, between 0 and 1, to tell it apart from.

    Returns:
        p; None if even 1 could not be told apart.
    """
    needed = baseline + Z_95 * math.sqrt(baseline * (1 - baseline) / n)
    if needed >= 1:
        return None
    b = Z_POWER**2 / n  # (p - needed)^2 = b p (1 - p)
    root = math.sqrt(b * b / 4 + b * needed * (1 - needed))
    return (needed + b / 2 + root) / (1 + b)


def detectable_mean(interval: Estimate, largest: float = math.inf) -> float | None:
    """(z_.975 + z_.80) x standard error, which is computed from the width of a 95% interval.

    Args:
        interval: The mean with its interval.
        largest: The largest mean that is possible, such as 1 for a difference of two shares.

    Returns:
        None if even the largest could not be told apart from 0.
    """
    smallest = (Z_95 + Z_POWER) * (interval.high - interval.low) / (2 * Z_95)
    if smallest > largest:
        return None
    return smallest


def detectable_share(n: int) -> float:
    """1 - .2^(1/n): the smallest share that n pairs show at least once with probability .8."""
    return 1 - 0.2 ** (1 / n)


def detectable_mcnemar(n: int, discordant_share: float) -> float | None:
    """The smallest difference in accuracy between two models that n pairs show.

    sqrt(n) d = z_.975 sqrt(s) + z_.80 sqrt(s - d^2), a quadratic in d.
    Connor, Biometrics 43 (1987).

    Args:
        n: The number of pairs.
        discordant_share: The share s of pairs on which the two models differ.

    Returns:
        d; None if even all differing pairs on one side would not suffice.
    """
    inside = n + Z_POWER**2 - Z_95**2
    if inside <= 0 or discordant_share <= 0:
        return None
    roots = Z_95 * math.sqrt(n) + Z_POWER * math.sqrt(inside)
    difference = math.sqrt(discordant_share) * roots / (n + Z_POWER**2)
    if difference > discordant_share:
        return None
    return difference
