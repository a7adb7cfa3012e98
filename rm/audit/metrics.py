"""The audit's numbers: pure functions of NumPy arrays, each with its equation and its source.

What is undefined for its input (no rows, no variance) is None, never NaN. Intervals are two-sided, 95%. Calibration and raters'
votes lie in rm.audit.calibration.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

NORMAL = NormalDist()
Z_95 = NORMAL.inv_cdf(0.975)
Z_POWER = NORMAL.inv_cdf(0.80)  # 80% power, Cohen's convention (Statistical Power Analysis, 1988)


class Estimate(NamedTuple):
    value: float
    low: float
    high: float


RESAMPLES = 2000
ABOUT_EQUAL = 0.1  # of the longer side
FEWEST = 20  # rewards of a subset whose spread is compared with others'
SATURATED = 0.001  # of rewards that are the ends of the range, and of the range that counts as its end
CHUNK = 4_000_000  # cells of a bootstrap table that are in memory at once


# ------------------------------------------------------------------------------------------------------------- Accuracy


def pair_credit(differences: np.ndarray) -> np.ndarray:
    """c = 1[d > 0] + 1/2 1[d = 0]: a win counts one, a tie one half (the convention of Mann and Whitney, 1947)."""
    return np.where(differences > 0, 1.0, np.where(differences == 0, 0.5, 0.0))


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). Wilson, JASA 22 (1927)."""
    p, z2 = successes / n, Z_95**2
    centre = p + z2 / (2 * n)
    half = Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    return low if successes else 0.0, high if successes < n else 1.0  # exactly: rounding would leave 1e-17


def bootstrap_mean(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Bootstrap of a mean of independent values: cluster_bootstrap_mean with clusters of one."""
    return cluster_bootstrap_mean(values, np.arange(len(values)), resamples, seed)


def cluster_bootstrap_mean(
    values: np.ndarray, groups: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Bootstrap of sum(values) / count where the values (n,) of one group (n,) are drawn together.

    Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8. Drawing G groups with replacement and
    counting equal (sum, size) is one multinomial draw, however many groups there are. The percentiles are Hesterberg's
    (The American Statistician 69, 2015, section 4.4), a little further out than 2.5 and 97.5: plain ones are too narrow with
    few groups. One group alone says nothing about the spread between groups: its values then count as independent.
    """
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group)
    if len(sizes) == 1 < len(values):
        return bootstrap_mean(values, resamples, seed)
    mean, count = float(values.mean()), len(sizes)
    if count == 1:
        return Estimate(mean, mean, mean)
    table = np.stack([np.bincount(group, weights=values), sizes])  # (2, groups)
    kinds, counts = np.unique(table, axis=1, return_counts=True)  # (2, kinds)
    rng, width = np.random.default_rng(seed), min(10 * kinds.shape[1], count)
    means = []
    for start in range(0, resamples, max(1, CHUNK // width)):
        rows = min(resamples - start, max(1, CHUNK // width))
        if width < count:
            total, size = kinds @ rng.multinomial(count, counts / count, size=rows).T  # (rows,), (rows,)
        else:  # nearly as many kinds as groups: drawing the groups themselves is quicker
            drawn = rng.integers(count, size=(rows, count), dtype=np.int32)
            total, size = table[0][drawn].sum(axis=1), table[1][drawn].sum(axis=1)
        means.append(total / size)
    tail = NORMAL.cdf(-math.sqrt(count / (count - 1)) * t_quantile(count - 1))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Estimate(mean, min(mean, float(low)), max(mean, float(high)))


def t_quantile(df: int) -> float:
    """The 97.5% point of Student's t, by Abramowitz and Stegun (1964), 26.7.5: within 1% from 3 degrees of freedom."""
    z = Z_95
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / df**k for k, term in enumerate(terms, start=1))


def share_interval(credit: np.ndarray, prompts: np.ndarray | None = None) -> Estimate | None:
    """The mean of values in [0, 1] (n,): Wilson's interval where they are independent and all 0 or 1, else the bootstrap.

    Equal values leave the bootstrap without a width. Then Wilson's again, on the number of prompts: on the safe side, because
    no values in [0, 1] of that mean vary more than zeros and ones.
    """
    n = len(credit)
    if n == 0:
        return None
    groups = n if prompts is None else len(np.unique(prompts))
    groups = n if groups == 1 else groups  # one prompt throughout: nothing to cluster by
    if credit.min() == credit.max():
        mean = float(credit[0])
        return Estimate(mean, *wilson_interval(mean * groups, groups))
    if groups < n:
        return cluster_bootstrap_mean(credit, prompts)
    if np.isin(credit, (0.0, 1.0)).all():
        return Estimate(float(credit.mean()), *wilson_interval(int(credit.sum()), n))
    return bootstrap_mean(credit)


def accuracy(margins: np.ndarray, prompts: np.ndarray | None = None) -> Estimate | None:
    """mean(1[m > 0] + 1/2 1[m = 0]); Wilson's interval, with ties (not binomial then) the bootstrap's, over prompts where
    `prompts` (n,) repeat."""
    return share_interval(pair_credit(margins), prompts)


def macro_accuracy(margins: np.ndarray, subsets: np.ndarray, prompts: np.ndarray | None = None) -> Estimate | None:
    """The mean of the k subsets' accuracies +- z sqrt(sum of their variances) / k.

    A subset's variance is that of its credits with one win and one loss added, over n: a small or perfect subset keeps its
    doubt (Agresti and Caffo, The American Statistician 54, 2000). Where prompts repeat within a subset, the larger of that and
    sum over prompts (sum of residuals)^2 / n^2.
    """
    if len(margins) == 0:
        return None
    _, subset = np.unique(subsets, return_inverse=True)
    credit, n = pair_credit(margins), np.bincount(subset)
    means = np.bincount(subset, credit) / n  # (k,)
    smooth = (np.bincount(subset, credit**2) + 1) / (n + 2) - ((n * means + 1) / (n + 2)) ** 2
    variances = smooth / n
    if prompts is not None:
        cells, cell = np.unique(np.stack([subset, prompts]), axis=1, return_inverse=True)
        residuals = np.bincount(cell.ravel(), credit - means[subset])
        variances = np.maximum(variances, np.bincount(cells[0], residuals**2) / n**2)
    mean, half = float(means.mean()), Z_95 * math.sqrt(variances.sum()) / len(n)
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half))


def feature_baseline(feature: np.ndarray) -> float | None:
    """Accuracy of "more of it wins" on the same pairs, ties one half; feature: (2, n) of chosen, of rejected."""
    return float(pair_credit(feature[0] - feature[1]).mean()) if feature.shape[1] else None


def length_baselines(chosen_lengths: np.ndarray, rejected_lengths: np.ndarray) -> tuple[float, float]:
    """Accuracy of "the longer wins" and of "the shorter wins", equal lengths one half; the two sum to 1. Needs a row."""
    longer = float(pair_credit(chosen_lengths - rejected_lengths).mean())
    return longer, 1 - longer


def auc(chosen: np.ndarray, rejected: np.ndarray) -> float | None:
    """P(chosen reward of one pair > rejected reward of any pair) + 1/2 P(equal) = U / n^2.

    Mann and Whitney (1947); Hanley and McNeil, Radiology 143 (1982). Well below the accuracy means that rewards
    cannot be compared between prompts; .5 means that the two histograms lie on top of each other.
    """
    n = len(chosen)
    if n == 0:
        return None
    rank_sum = average_ranks(np.concatenate([chosen, rejected]))[:n].sum()
    return float((rank_sum - n * (n + 1) / 2) / n**2)


def pair_agreement(votes: np.ndarray) -> np.ndarray:
    """[C(a,2) + C(b,2)] / C(a+b,2) of each pair with two votes or more; votes: (n, 2) for chosen, for rejected."""
    a, b = votes[votes.sum(axis=1) >= 2].astype(float).T
    return (a * (a - 1) + b * (b - 1)) / ((a + b) * (a + b - 1))


def rater_agreement(votes: np.ndarray) -> float | None:
    """The mean of pair_agreement over pairs: how often two different votes on one pair agree.

    Fleiss, Psychological Bulletin 76 (1971), P-bar with two categories. Pairs with fewer than two votes say nothing.
    """
    agreement = pair_agreement(votes)
    return float(agreement.mean()) if len(agreement) else None


def mean_interval(values: np.ndarray) -> Estimate | None:
    """mean +- t s / sqrt(n): Student (1908). None for fewer than five values."""
    if len(values) < 5:
        return None
    mean, half = float(values.mean()), t_quantile(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def widened(estimate: Estimate | None, influence: np.ndarray, groups: np.ndarray) -> Estimate | None:
    """The interval for values of which those of one group (a prompt) hang together, from the one for independent values.

    Half widths times the root of Kish's design effect (Survey Sampling, 1965), G / (G - 1) sum over the G groups of (sum of
    influence)^2 / sum of influence^2, 1 at least, and t for z. influence (n,): what a value moves the estimate by (its
    deviation, for a mean). None for fewer than five groups that repeat.
    """
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max(initial=-1)) + 1
    if estimate is None or count in (
        1,
        len(groups),
    ):  # one prompt throughout: it is not known, or nothing to cluster by
        return estimate
    squares = float(np.sum(influence**2))
    if count < 5 or squares == 0:
        return None if count < 5 else estimate
    effect = count / (count - 1) * float(np.sum(np.bincount(group, influence) ** 2)) / squares
    factor = math.sqrt(max(1.0, effect)) * t_quantile(count - 1) / Z_95
    value, low, high = estimate
    return Estimate(value, value - factor * (value - low), value + factor * (high - value))


def correlation_influence(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What each point moves Pearson's r by, up to a constant: zx zy - r (zx^2 + zy^2) / 2.

    Devlin, Gnanadesikan and Kettenring, Biometrika 62 (1975)."""
    zx, zy = (values / values.std() for values in (standardised(x), standardised(y)))
    return zx * zy - float(np.mean(zx * zy)) * (zx**2 + zy**2) / 2


# --------------------------------------------------------------------------------------------------------- Distribution


def overlap(chosen: np.ndarray, rejected: np.ndarray) -> float | None:
    """sum over bins of min(share of chosen, share of rejected): 1 when the two histograms are the same, 0 when apart.

    Weitzman's coefficient (1970); Inman and Bradley, Communications in Statistics 18 (1989). 2 n^(1/3) bins, an even number of
    50 at most, that hold equally many of all rewards: outliers then do not matter. Noise takes away about sqrt(bins / (pi n)).
    """
    n = len(chosen)
    if n == 0:
        return None
    bins = min(50, 2 * math.ceil(n ** (1 / 3)))
    return float(
        sum(
            min(np.sum(index < n), np.sum(index >= n)) for index in equal_mass(np.concatenate([chosen, rejected]), bins)
        )
        / n
    )


def saturation(rewards: np.ndarray, prompts: np.ndarray | None = None) -> Estimate | None:
    """The share of rewards (n,), n > 2, at or beyond .1% of the range between the 0.1st and the 99.9th percentile from either;
    two are left out. About .002 for a bell curve, .004 for equally spread rewards, large for clipped ones, 1 for a
    constant; an outlier changes nothing.

    Equal rewards of one prompt, where `prompts` (n,) are given, count once: rankings repeat a completion in many pairs.
    """
    if prompts is not None:
        rewards = np.unique(np.stack([rewards, prompts]), axis=1)[0]
    n = len(rewards)
    if n <= 2:
        return None
    low, high = np.quantile(rewards, [SATURATED, 1 - SATURATED])
    edge = SATURATED * (high - low)
    at_ends = max(0, int(np.sum((rewards <= low + edge) | (rewards >= high - edge))) - 2)
    return Estimate(at_ends / (n - 2), *wilson_interval(at_ends, n - 2))


def eta_squared(
    values: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None
) -> tuple[Estimate, float] | tuple[None, None]:
    """(The share of the variance of values (n,) that lies between their k labels, p under "no difference").

    Kelley's epsilon squared (Proceedings of the National Academy of Sciences 21, 1935), 1 - (1 - eta^2) (n - 1) / (n - k), not
    below 0: eta^2 = between / total sum of squares itself is (k - 1) / (n - 1) where labels mean nothing. p: Bartlett's
    chi-square of Wilks' lambda (1938), -(n - 1 - (k + 1) / 2) ln(1 - eta^2) with k - 1 degrees of freedom, on the means of each
    group where `groups` (n,) says which values (of one pair, of one prompt) hang together. Interval: the reverse bootstrap of
    eta^2 (moment_draws).
    """
    _, label = np.unique(labels, return_inverse=True)
    n, k = len(values), int(label.max(initial=-1)) + 1
    if k < 2 or n <= k or np.ptp(values) == 0:
        return None, None
    values = standardised(values)
    eta = between_share(totals(values, label)[None])[0]
    spread = 2 * eta - np.quantile(between_share(moment_draws(values, label, groups)), [0.975, 0.025])
    value = float(np.clip(1 - (1 - eta) * (n - 1) / (n - k), 0, 1))
    estimate = Estimate(value, float(np.clip(spread[0], 0, value)), float(np.clip(spread[1], value, 1)))
    if groups is not None:
        cells, cell = np.unique(np.stack([label, groups]), axis=1, return_inverse=True)
        values, label = np.bincount(cell.ravel(), values) / np.bincount(cell.ravel()), cells[0]
        n = len(values)
    if n - k < 20:  # the chi-square needs more
        return None, None
    if (
        np.ptp(values) < 1e-12
    ):  # two rewards of a pair that mirror each other, as a judge's: every pair has the same mean
        return estimate, 1.0
    eta = between_share(totals(values, label)[None])[0]
    return estimate, chi2_sf(-(n - 1 - (k + 1) / 2) * math.log(max(1 - eta, 1e-300)), k - 1)


def scale_ratio(values: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> Estimate | None:
    """The largest over the smallest standard deviation within a label, of labels with 20 values or more.

    Interval: the reverse bootstrap of its logarithm (moment_draws); the largest of several is too large by chance alone, and
    the reverse bootstrap takes that off. None with fewer than two such labels, or where one of them has no spread.
    """
    _, label, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    kept = (sizes >= FEWEST)[label]
    if np.sum(sizes >= FEWEST) < 2 or np.ptp(values[kept]) == 0:
        return None
    _, label = np.unique(label[kept], return_inverse=True)
    values, groups = standardised(values[kept]), None if groups is None else groups[kept]
    variances = within_variances(totals(values, label)[None])[0]  # (labels,)
    if variances.min() < 1e-15:
        return None
    found = 0.5 * math.log(variances.max() / variances.min())
    drawn = np.maximum(within_variances(moment_draws(values, label, groups)), variances.min() * 1e-4)
    low, high = 2 * found - np.quantile(0.5 * np.log(drawn.max(axis=1) / drawn.min(axis=1)), [0.975, 0.025])
    ratio = math.exp(found)
    return Estimate(ratio, min(ratio, max(1.0, math.exp(low))), max(ratio, math.exp(high)))


def standardised(values: np.ndarray) -> np.ndarray:
    """Centred, then over the largest absolute value: squares neither underflow nor overflow."""
    values = values - values.mean()
    return values / np.abs(values).max()


def totals(values: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(labels, 3): count, sum, sum of squares."""
    return np.stack([np.bincount(label, v) for v in (np.ones(len(values)), values, values**2)], axis=1)


def within_variances(tables: np.ndarray) -> np.ndarray:
    """(resamples, labels, 3) of totals -> (resamples, labels)"""
    count, total, squares = np.moveaxis(tables, -1, 0)
    return np.maximum(squares / count - (total / count) ** 2, 0)


def between_share(tables: np.ndarray) -> np.ndarray:
    """(resamples, labels, 3) of totals -> eta^2 (resamples,)"""
    count, total, squares = np.moveaxis(tables, -1, 0)
    between = (total**2 / count).sum(axis=1) - total.sum(axis=1) ** 2 / count.sum(axis=1)
    return np.clip(between / (squares.sum(axis=1) - total.sum(axis=1) ** 2 / count.sum(axis=1)), 0, 1)


def moment_draws(values: np.ndarray, label: np.ndarray, groups: np.ndarray | None, seed: int = 0) -> np.ndarray:
    """The bootstrap of each label's (count, sum, sum of squares), groups drawn together: (resamples, labels, 3).

    By the central limit theorem those of a resample are normal about the observed ones, with the covariance of a sum of G drawn
    groups, G x the covariance of one. So the cost does not grow with n.
    """
    groups = np.arange(len(values)) if groups is None else groups
    cells, cell = np.unique(np.stack([label, groups]), axis=1, return_inverse=True)
    table = totals(values, cell.ravel())  # (cells, 3)
    rng, draws = np.random.default_rng(seed), []
    for k in range(int(label.max()) + 1):
        mine = table[cells[0] == k]
        spread = len(mine) * np.atleast_2d(np.cov(mine.T, bias=True)) if len(mine) > 1 else np.zeros((3, 3))
        draw = rng.multivariate_normal(mine.sum(axis=0), spread, size=RESAMPLES, check_valid="ignore", method="eigh")
        draws.append(np.maximum(draw, [0.1, -np.inf, 0]))
    return np.stack(draws, axis=1)


# ------------------------------------------------------------------------------------------ Tests, and two models on n pairs


def two_sided_p(estimate: Estimate, null: float = 0.0) -> float:
    """P(|Z| > z |value - null| / (distance from the value to the bound on the null's side)): below .05 exactly where the 95%
    interval leaves the null out. The p-value of the z-test where the interval is value +- z x standard error."""
    distance = abs(estimate.value - null)
    half = estimate.value - estimate.low if estimate.value > null else estimate.high - estimate.value
    if distance == 0 or half == 0:
        return 1.0 if distance == 0 else 0.0
    return math.erfc(Z_95 * distance / half / math.sqrt(2))


def difference_of_proportions(a: Estimate, b: Estimate) -> tuple[Estimate, float]:
    """(a - b with its interval, p) of two independent accuracies, whatever their intervals were made by.

    a - b - sqrt((a - low_a)^2 + (high_b - b)^2) and a - b + sqrt((high_a - a)^2 + (b - low_b)^2): Newcombe's hybrid score
    interval, Statistics in Medicine 17 (1998), method 10. p: two_sided_p.
    """
    difference = a.value - b.value
    estimate = Estimate(
        difference,
        difference - math.hypot(a.value - a.low, b.high - b.value),
        difference + math.hypot(a.high - a.value, b.value - b.low),
    )
    return estimate, two_sided_p(estimate)


def paired_bootstrap_difference(
    credit_a: np.ndarray, credit_b: np.ndarray, groups: np.ndarray | None = None
) -> Estimate | None:
    """mean(credit_a - credit_b) on the same pairs, the pairs of a group (a prompt) drawn together. Efron and Tibshirani (1993),
    chapter 8. paired_interval where the difference is the same on every pair: the bootstrap has no width then."""
    d = credit_a - credit_b
    if len(d) == 0:
        return None
    if d.min() == d.max():
        return paired_interval(d)
    return bootstrap_mean(d) if groups is None else cluster_bootstrap_mean(d, groups)


def mcnemar_exact(credit_a: np.ndarray, credit_b: np.ndarray) -> tuple[int, int, float]:
    """(pairs on which a does better, on which b does, p): min(1, 2 P(X <= min(b, c))), X ~ Binomial(b + c, 1/2).

    McNemar, Psychometrika 12 (1947), exact. With ties (a tie is better than an error) it is the sign test.
    """
    b, c = int(np.sum(credit_a > credit_b)), int(np.sum(credit_a < credit_b))
    n, k = b + c, np.arange(min(b, c))
    if b == c:
        return b, c, 1.0
    log_terms = np.concatenate([[0.0], np.cumsum(np.log((n - k) / (k + 1)))])  # ln C(n, 0), ln C(n, 1), ...
    top = log_terms.max()
    return b, c, min(1.0, 2 * math.exp(top - n * math.log(2)) * float(np.exp(log_terms - top).sum()))


def chi2_sf(x: float, df: float) -> float:
    """P(X > x), X chi-square with df degrees of freedom: Q(df / 2, x / 2), the regularised incomplete gamma function.

    By its series below a + 1 and Lentz's continued fraction above: Press et al., Numerical Recipes (2007), section 6.2.
    """
    a, x = df / 2, x / 2
    if x <= 0:
        return 1.0
    log_front = a * math.log(x) - x - math.lgamma(a)
    if x < a + 1:
        term = total = 1 / a
        k = a
        while term > total * 1e-17:
            k += 1
            term *= x / k
            total += term
        return max(0.0, 1 - total * math.exp(log_front))
    b = x + 1 - a
    c, d = 1e300, 1 / b
    h, i, delta = d, 0, 0.0
    while abs(delta - 1) > 1e-15:
        i += 1
        b += 2
        d = 1 / (b - i * (i - a) * d)
        c = b - i * (i - a) / c
        delta = d * c
        h *= delta
    return math.exp(log_front) * h


# --------------------------------------------------------------------------------------------------------------- Length


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    """r = sum(dx dy) / sqrt(sum dx^2 sum dy^2), dx = x - mean(x). Pearson (1895). r^2 is the variance explained."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    dx, dy = x - x.mean(), y - y.mean()
    dx, dy = dx / np.abs(dx).max(), dy / np.abs(dy).max()  # squares then neither underflow nor overflow
    return float(np.clip(np.sum(dx * dy) / math.sqrt(np.sum(dx**2) * np.sum(dy**2)), -1, 1))


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's r of the average ranks. Spearman (1904)."""
    return pearson(average_ranks(x), average_ranks(y))


def fisher_interval(r: float, n: int) -> tuple[float, float] | None:
    """tanh(atanh(r) +- z / sqrt(n - 3)), for n > 3 independent points. Fisher, Metron 1 (1921)."""
    if n <= 3:
        return None
    if abs(r) == 1:
        return r, r
    half = Z_95 / math.sqrt(n - 3)
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def spearman_interval(x: np.ndarray, y: np.ndarray) -> Estimate | None:
    """tanh(atanh(r) +- z sqrt((1 + r^2 / 2) / (n - 3))), n > 3. Bonett and Wright, Psychometrika 65 (2000)."""
    r, n = spearman(x, y), len(x)
    if r is None or n <= 3:
        return None
    if abs(r) == 1:
        return Estimate(r, r, r)
    half = Z_95 * math.sqrt((1 + r * r / 2) / (n - 3))
    return Estimate(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))


def within_groups_spearman(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> Estimate | None:
    """The mean over groups (prompts) of Spearman's r within the group +- z s / sqrt(groups).

    Groups of three and more in which both vary; None with fewer than two of them. Every group counts the same.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    a, b = (ranks_within(values, group) for values in (x, y))
    a, b = (ranks - (np.bincount(group, ranks) / sizes)[group] for ranks in (a, b))
    ab, aa, bb = (np.bincount(group, product) for product in (a * b, a * a, b * b))
    usable = (sizes >= 3) & (aa > 0) & (bb > 0)
    found = mean_interval(ab[usable] / np.sqrt(aa[usable] * bb[usable]))
    return None if found is None else Estimate(found.value, max(-1.0, found.low), min(1.0, found.high))


def ranks_within(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Average ranks from 1 within each group; group: (n,) ints from 0, none left out."""
    _, level = np.unique(values, return_inverse=True)
    sizes = np.bincount(group)
    return average_ranks(group * len(values) + level) - (np.cumsum(sizes) - sizes)[group]


def paired_interval(d: np.ndarray) -> Estimate:
    """The mean of paired differences in [-1, 1] (n,): Agresti and Min, Statistics in Medicine 24 (2005).

    Half a pair added to each of the four cells, then Wald. It keeps a width when the two sides never differ, where Wald and the
    bootstrap have none: (S1 +- z sqrt(S2 + 1 - S1^2 / N)) / N, with N = n + 2, S1 = sum d, S2 = sum d^2.
    """
    total, pseudo_n, mean = float(d.sum()), len(d) + 2, float(d.mean())
    half = Z_95 * math.sqrt(float((d**2).sum()) + 1 - total**2 / pseudo_n) / pseudo_n
    centre = total / pseudo_n
    return Estimate(mean, max(-1.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)))


def length_excess(
    margins: np.ndarray, length_differences: np.ndarray, prompts: np.ndarray | None = None
) -> Estimate | None:
    """P(model prefers the longer) - P(raters prefer the longer), over pairs of unequal length.

    Paired: d = credit(model) - credit(raters) for each pair, its interval by paired_interval, over prompts where they repeat.
    Positive also for a perfect model of raters who prefer longer answers more often than not: raters are noisy, it is not.
    """
    unequal = length_differences != 0
    m, longer = margins[unequal], np.sign(length_differences[unequal])  # chosen longer: +1, rejected longer: -1
    if len(m) == 0:
        return None
    d = pair_credit(m * longer) - pair_credit(longer)  # in {-1, -.5, 0, .5, 1}
    found = paired_interval(d)
    return found if prompts is None else widened(found, d - d.mean(), prompts[unequal])


def logistic(
    X: np.ndarray, y: np.ndarray, offset: np.ndarray | None = None, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Maximum likelihood of P(y = 1) = sigmoid(X b + offset) -> (b (k,), its covariance (k, k)); y (n,) in [0, 1].

    Newton's steps b += (X' W X)^-1 X' (y - p), W = w p (1 - p), which is iteratively reweighted least squares: McCullagh and
    Nelder, Generalized Linear Models (1989), section 4.4. None where there is no finite maximum (separable data) or the columns
    of X (n, k) depend on each other.
    """
    offset = np.zeros(len(y)) if offset is None else offset
    weights = np.ones(len(y)) if weights is None else weights
    scale = np.abs(X).max(axis=0, initial=0)
    if len(y) == 0 or not scale.all():
        return None
    X = X / scale
    b, last, fit = np.zeros(X.shape[1]), np.zeros(X.shape[1]), -np.inf
    for _ in range(60):
        eta = X @ b + offset
        p = sigmoid(eta)
        information = (X * (weights * p * (1 - p))[:, None]).T @ X
        if np.linalg.cond(information) > 1e12 or np.abs(eta).max() > 500:
            return None
        step = np.linalg.solve(information, X.T @ (weights * (y - p)))
        before, fit = fit, float(np.sum(weights * (y * eta - np.logaddexp(0, eta))))
        if fit < before - 1e-9 * abs(before):  # overshot: half the last step back
            last = last / 2
            b, fit = b - last, before
            continue
        if np.abs(step).max() < 1e-9 * max(1.0, np.abs(b).max()):
            return b / scale, np.linalg.inv(information) / np.outer(scale, scale)
        b, last = b + step, step
    return None


def sigmoid(x):
    """1 / (1 + e^-x) by tanh, which does not overflow."""
    return 0.5 * (1 + np.tanh(np.asarray(x) / 2))


def length_controlled_accuracy(
    margins: np.ndarray, length_differences: np.ndarray, prompts: np.ndarray | None = None
) -> Estimate | None:
    """sigmoid(a) of the fit P(model right) = sigmoid(a + b dl / sd(dl)): what the accuracy would be at equal lengths.

    The idea is Dubois et al. 2024 (arXiv 2404.04475), who do so for win rates. Ties count one half; the interval is
    sigmoid(a +- z se(a)), over prompts where they repeat. None where lengths or answers do not vary.
    """
    spread = float(np.std(length_differences)) if len(margins) else 0.0
    if spread == 0:
        return None
    X = np.stack([np.ones(len(margins)), length_differences / spread], axis=1)  # (n, 2), not centred: 0 is equal length
    found = logistic(X, pair_credit(margins))
    if found is None:
        return None
    a, half = found[0][0], Z_95 * math.sqrt(found[1][0, 0])
    at_zero = Estimate(a, a - half, a + half)
    if prompts is not None:
        at_zero = widened(at_zero, (pair_credit(margins) - sigmoid(X @ found[0])) * (X @ found[1])[:, 0], prompts)
    return None if at_zero is None else Estimate(*(float(sigmoid(x)) for x in at_zero))


def accuracy_by_length(
    margins: np.ndarray, chosen_lengths: np.ndarray, rejected_lengths: np.ndarray, prompts: np.ndarray | None = None
) -> dict[str, tuple[Estimate | None, int]]:
    """(accuracy, n) where the chosen side is shorter, longer, and about as long: within 10% of the longer one."""
    dl = chosen_lengths - rejected_lengths
    about_equal = np.abs(dl) <= ABOUT_EQUAL * np.maximum(chosen_lengths, rejected_lengths)
    classes = {
        "chosen shorter": ~about_equal & (dl < 0),
        "about equal": about_equal,
        "chosen longer": ~about_equal & (dl > 0),
    }
    return {
        name: (accuracy(margins[mask], None if prompts is None else prompts[mask]), int(mask.sum()))
        for name, mask in classes.items()
    }


def accuracy_curve(margins: np.ndarray, length_differences: np.ndarray, bins: int = 9) -> list[dict]:
    """Accuracy over up to 9 classes of the length difference with about equally many pairs (10 at least), for a plot."""
    curve = []
    for index in equal_mass(length_differences, min(bins, max(1, len(margins) // 10))):
        dl, found = length_differences[index], accuracy(margins[index])
        curve.append({"from": float(dl.min()), "to": float(dl.max()), **found._asdict(), "n": len(index)})
    return curve


def equal_mass(values: np.ndarray, bins: int) -> list[np.ndarray]:
    """Up to `bins` index arrays of about equal size, in the order of the values; equal values stay in one bin."""
    if len(values) == 0:
        return []
    label = np.minimum(((average_ranks(values) - 0.5) * bins / len(values)).astype(int), bins - 1)
    order = np.argsort(label, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(label[order])) + 1)


# ------------------------------------------------------------------------------------------------------------ Best-of-n


def best_of_n(rewards: np.ndarray, values: np.ndarray | None, n: int) -> float | None:
    """What is expected of the highest-reward completion of n drawn from N: its value, or its reward where values is None.

    sum_i C(i - 1, n - 1) / C(N, n) v_(i), v in the order of rewards: the mean over all subsets of n. Nakano et al. 2021
    (arXiv 2112.09332). Equal rewards share the mean of their values. None for n > N.
    """
    values, total = rewards if values is None else values, len(rewards)
    if not 1 <= n <= total:
        return None
    _, level, counts = np.unique(rewards, return_inverse=True, return_counts=True)
    mean = np.bincount(level, values) / counts  # (levels,)
    i = np.arange(
        total, n, -1
    )  # C(i - 2, n - 1) / C(i - 1, n - 1) = (i - n) / (i - 1), from C(N - 1, n - 1) / C(N, n) = n / N
    weights = n / total * np.concatenate([[1.0], np.cumprod((i - n) / (i - 1))])[::-1]  # of ranks n ... N
    return float(weights @ np.repeat(mean, counts)[n - 1 :])


def kl_best_of_n(n: int) -> float:
    """ln n - (n - 1) / n, in nats: Stiennon et al. 2020 (arXiv 2009.01325). An upper bound: Beirami et al. (2401.01879)."""
    return math.log(n) - (n - 1) / n


# ---------------------------------------------- The smallest effect that n pairs show with 80% power, at a two-sided 5%


def detectable_correlation(n: int) -> float | None:
    """tanh((z_.975 + z_.80) / sqrt(n - 3)): the smallest |r| told from 0. Cohen (1988), chapter 3, by Fisher's z."""
    return math.tanh((Z_95 + Z_POWER) / math.sqrt(n - 3)) if n > 3 else None


def detectable_accuracy(n: int, baseline: float) -> float | None:
    """The smallest accuracy p told from a fixed baseline q >= 1/2; None where even p = 1 is not.

    p - q = (z_.975 sqrt(q (1 - q)) + z_.80 sqrt(p (1 - p))) / sqrt(n), a quadratic in p.
    Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions (2003), section 2.5. A tie has less variance
    than a win or a loss, so with ties this is on the safe side.
    """
    needed = baseline + Z_95 * math.sqrt(baseline * (1 - baseline) / n)
    if needed >= 1:
        return None
    b = Z_POWER**2 / n  # (p - needed)^2 = b p (1 - p)
    return (needed + b / 2 + math.sqrt(b * b / 4 + b * needed * (1 - needed))) / (1 + b)


def detectable_mean(interval: Estimate) -> float:
    """(z_.975 + z_.80) x standard error, which is read back from the width of a 95% interval."""
    return (Z_95 + Z_POWER) * (interval.high - interval.low) / (2 * Z_95)


def detectable_share(n: int) -> float:
    """1 - .2^(1/n): the smallest share of pairs of which n show at least one, four times in five."""
    return 1 - 0.2 ** (1 / n)


def detectable_mcnemar(n: int, discordant_share: float) -> float | None:
    """The smallest difference in accuracy that n pairs show where two models differ on a share s of them; None where even all
    differing pairs on one side would not do.

    sqrt(n) d = z_.975 sqrt(s) + z_.80 sqrt(s - d^2), a quadratic in d. Connor, Biometrics 43 (1987).
    """
    inside = n + Z_POWER**2 - Z_95**2
    if inside <= 0 or discordant_share <= 0:
        return None
    found = math.sqrt(discordant_share) * (Z_95 * math.sqrt(n) + Z_POWER * math.sqrt(inside)) / (n + Z_POWER**2)
    return found if found <= discordant_share else None
