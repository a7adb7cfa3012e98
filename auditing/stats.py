"""The audit's numbers: pure functions of NumPy arrays, each with its equation and its source.

What is undefined for its input (no rows, no variance) is None, never NaN. Intervals are two-sided, 95%. Calibration and raters'
votes lie in auditing.checks.calibration.
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
    return (
        low if successes else 0.0,
        high if successes < n else 1.0,
    )  # exactly: rounding would leave 1e-17


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
            total, size = (
                kinds @ rng.multinomial(count, counts / count, size=rows).T
            )  # (rows,), (rows,)
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
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
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


def mean_interval(values: np.ndarray) -> Estimate | None:
    """mean +- t s / sqrt(n): Student (1908). None for fewer than five values."""
    if len(values) < 5:
        return None
    mean, half = (
        float(values.mean()),
        t_quantile(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values)),
    )
    return Estimate(mean, mean - half, mean + half)


def widened(
    estimate: Estimate | None, influence: np.ndarray, groups: np.ndarray
) -> Estimate | None:
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


def standardised(values: np.ndarray) -> np.ndarray:
    """Centred, then over the largest absolute value: squares neither underflow nor overflow."""
    values = values - values.mean()
    return values / np.abs(values).max()


# ------------------------------------------------------------------------------------------ Tests, and two models on n pairs


def two_sided_p(estimate: Estimate, null: float = 0.0) -> float:
    """P(|Z| > z |value - null| / (distance from the value to the bound on the null's side)): below .05 exactly where the 95%
    interval leaves the null out. The p-value of the z-test where the interval is value +- z x standard error."""
    distance = abs(estimate.value - null)
    half = (
        estimate.value - estimate.low if estimate.value > null else estimate.high - estimate.value
    )
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
    log_terms = np.concatenate(
        [[0.0], np.cumsum(np.log((n - k) / (k + 1)))]
    )  # ln C(n, 0), ln C(n, 1), ...
    top = log_terms.max()
    return (
        b,
        c,
        min(1.0, 2 * math.exp(top - n * math.log(2)) * float(np.exp(log_terms - top).sum())),
    )


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
    dx, dy = (
        dx / np.abs(dx).max(),
        dy / np.abs(dy).max(),
    )  # squares then neither underflow nor overflow
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
    return (
        None if found is None else Estimate(found.value, max(-1.0, found.low), min(1.0, found.high))
    )


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


def logistic(
    X: np.ndarray,
    y: np.ndarray,
    offset: np.ndarray | None = None,
    weights: np.ndarray | None = None,
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


def equal_mass(values: np.ndarray, bins: int) -> list[np.ndarray]:
    """Up to `bins` index arrays of about equal size, in the order of the values; equal values stay in one bin."""
    if len(values) == 0:
        return []
    label = np.minimum(((average_ranks(values) - 0.5) * bins / len(values)).astype(int), bins - 1)
    order = np.argsort(label, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(label[order])) + 1)


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
    found = (
        math.sqrt(discordant_share)
        * (Z_95 * math.sqrt(n) + Z_POWER * math.sqrt(inside))
        / (n + Z_POWER**2)
    )
    return found if found <= discordant_share else None
