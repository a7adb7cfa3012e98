"""The audit's numbers: pure functions of NumPy arrays, each with its equation and its source.

What is undefined for its input (no rows, no variance) is None, never NaN. Intervals are two-sided, 95%.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

Z_95 = NormalDist().inv_cdf(0.975)
Z_POWER = NormalDist().inv_cdf(0.80)  # 80% power, Cohen's convention (Statistical Power Analysis, 1988)


class Estimate(NamedTuple):
    value: float
    low: float
    high: float


# ------------------------------------------------------------------------------------------------------------- Accuracy


def pair_credit(differences: np.ndarray) -> np.ndarray:
    """c = 1[d > 0] + 1/2 1[d = 0]: a win counts one, a tie one half (the convention of Mann and Whitney, 1947)."""
    return np.where(differences > 0, 1.0, np.where(differences == 0, 0.5, 0.0))


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). Wilson, JASA 22 (1927)."""
    p, z2 = successes / n, Z_95**2
    centre = p + z2 / (2 * n)
    half = Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    return low if successes else 0.0, high if successes < n else 1.0  # exactly: rounding would leave 1e-17


def bootstrap_mean(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Percentile bootstrap of a mean (Efron and Tibshirani, 1993, chapter 13), for values with few distinct levels.

    Drawing n rows with replacement and counting the levels is one multinomial draw with the observed shares. So a
    resample costs one row of counts, (resamples, levels), however many pairs there are.
    """
    levels, counts = np.unique(values, return_counts=True)
    n = len(values)
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)  # (resamples, levels)
    low, high = np.quantile(draws @ levels / n, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))


def accuracy(margins: np.ndarray) -> Estimate | None:
    """mean(1[m > 0] + 1/2 1[m = 0]); Wilson's interval without ties, the bootstrap's with ties (not binomial then)."""
    if len(margins) == 0:
        return None
    credit = pair_credit(margins)
    if np.any(margins == 0):
        return bootstrap_mean(credit)
    return Estimate(float(credit.mean()), *wilson_interval(int(credit.sum()), len(credit)))


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


def rater_agreement(votes: np.ndarray) -> float | None:
    """mean over pairs of [C(a,2) + C(b,2)] / C(a+b,2): how often two different votes on one pair agree.

    Fleiss, Psychological Bulletin 76 (1971), P-bar with two categories. Pairs with fewer than two votes say nothing.
    """
    a, b = votes[:, 0].astype(float), votes[:, 1].astype(float)  # (n,), (n,)
    a, b = a[a + b >= 2], b[a + b >= 2]
    if len(a) == 0:
        return None
    return float(np.mean((a * (a - 1) + b * (b - 1)) / ((a + b) * (a + b - 1))))


def mean_interval(values: np.ndarray) -> Estimate | None:
    """mean +- z s / sqrt(n), by the central limit theorem; too narrow below about 30 values."""
    if len(values) < 2:
        return None
    mean, half = float(values.mean()), Z_95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


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


def length_excess(margins: np.ndarray, length_differences: np.ndarray) -> Estimate | None:
    """P(model prefers the longer) - P(raters prefer the longer), over pairs of unequal length.

    Paired: d = credit(model) - credit(raters) for each pair. Interval of Agresti and Min, Statistics in Medicine 24
    (2005): half a pair added to each of the four cells, then Wald. It keeps a width when the model and the raters never
    differ, where Wald and the bootstrap have none: (S1 +- z sqrt(S2 + 1 - S1^2 / N)) / N, with N = n + 2,
    S1 = sum d, S2 = sum d^2.
    """
    unequal = length_differences != 0
    m, longer = margins[unequal], np.sign(length_differences[unequal])  # chosen longer: +1, rejected longer: -1
    if len(m) == 0:
        return None
    d = pair_credit(m * longer) - pair_credit(longer)  # (unequal pairs,), in {-1, -.5, 0, .5, 1}
    total, pseudo_n = float(d.sum()), len(d) + 2
    half = Z_95 * math.sqrt(float((d**2).sum()) + 1 - total**2 / pseudo_n) / pseudo_n
    centre = total / pseudo_n
    return Estimate(float(d.mean()), max(-1.0, centre - half), min(1.0, centre + half))


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
