"""Distribution: non-finite rewards, ties, margins, saturation, and how rewards differ between subsets."""

import math

import numpy as np

from auditing import stats
from auditing.pairs import Pairs
from auditing.stats import (
    RESAMPLES,
    Estimate,
    average_ranks,
    chi2_sf,
    equal_mass,
    standardised,
    wilson_interval,
)
from auditing.verdicts import Check, Finding, count, judge, short

FEWEST = 20  # rewards of a subset whose spread is compared with others'


SATURATED = (
    0.001  # of rewards that are the ends of the range, and of the range that counts as its end
)


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
            min(np.sum(index < n), np.sum(index >= n))
            for index in equal_mass(np.concatenate([chosen, rejected]), bins)
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
    spread = 2 * eta - np.quantile(
        between_share(moment_draws(values, label, groups)), [0.975, 0.025]
    )
    value = float(np.clip(1 - (1 - eta) * (n - 1) / (n - k), 0, 1))
    estimate = Estimate(
        value, float(np.clip(spread[0], 0, value)), float(np.clip(spread[1], value, 1))
    )
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


def scale_ratio(
    values: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None
) -> Estimate | None:
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
    drawn = np.maximum(
        within_variances(moment_draws(values, label, groups)), variances.min() * 1e-4
    )
    low, high = 2 * found - np.quantile(
        0.5 * np.log(drawn.max(axis=1) / drawn.min(axis=1)), [0.975, 0.025]
    )
    ratio = math.exp(found)
    return Estimate(ratio, min(ratio, max(1.0, math.exp(low))), max(ratio, math.exp(high)))


def totals(values: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(labels, 3): count, sum, sum of squares."""
    return np.stack(
        [np.bincount(label, v) for v in (np.ones(len(values)), values, values**2)], axis=1
    )


def within_variances(tables: np.ndarray) -> np.ndarray:
    """(resamples, labels, 3) of totals -> (resamples, labels)"""
    count, total, squares = np.moveaxis(tables, -1, 0)
    return np.maximum(squares / count - (total / count) ** 2, 0)


def between_share(tables: np.ndarray) -> np.ndarray:
    """(resamples, labels, 3) of totals -> eta^2 (resamples,)"""
    count, total, squares = np.moveaxis(tables, -1, 0)
    between = (total**2 / count).sum(axis=1) - total.sum(axis=1) ** 2 / count.sum(axis=1)
    return np.clip(
        between / (squares.sum(axis=1) - total.sum(axis=1) ** 2 / count.sum(axis=1)), 0, 1
    )


def moment_draws(
    values: np.ndarray, label: np.ndarray, groups: np.ndarray | None, seed: int = 0
) -> np.ndarray:
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
        spread = (
            len(mine) * np.atleast_2d(np.cov(mine.T, bias=True))
            if len(mine) > 1
            else np.zeros((3, 3))
        )
        draw = rng.multivariate_normal(
            mine.sum(axis=0), spread, size=RESAMPLES, check_valid="ignore", method="eigh"
        )
        draws.append(np.maximum(draw, [0.1, -np.inf, 0]))
    return np.stack(draws, axis=1)


USUAL_MARGIN = (
    0.5,
    1.0,
)  # what published Bradley-Terry runs report; other losses have other scales


# --------------------------------------------------------------------------------------------------------- Distribution


def distribution_checks(pairs: Pairs, known: Pairs) -> list[Check]:
    bad, n = len(pairs) - len(known), len(known)
    note = f"{count(bad, 'pair')} of {len(pairs):,} left out of every other number" if bad else ""
    share = Estimate(bad / len(pairs), *stats.wilson_interval(bad, len(pairs)))
    checks = [judge(Finding("non-finite rewards", share, len(pairs), "distribution", note=note))]
    if not n:
        return checks
    ties = int(np.sum(known.margins == 0))
    rate = Estimate(ties / n, *stats.wilson_interval(ties, n))
    ties_check = judge(
        Finding("tie rate", rate, n, "distribution", detectable=stats.detectable_share(n))
    )
    checks.append(ties_check)

    margins, (least, most) = known.margins, USUAL_MARGIN
    mean = stats.widened(stats.mean_interval(margins), margins - margins.mean(), known.prompt)
    note = ""
    if mean is not None:
        note = (
            f"{'inside' if least <= mean.value <= most else 'outside'} the usual {short(least)} to {short(most)}; standard "
            f"deviation of rewards {short(known.rewards.std(ddof=1))}; the histograms of chosen and rejected overlap "
            f"{short(overlap(*known.rewards))}"
        )
    detectable = stats.detectable_mean(mean) if mean else None
    checks.append(
        judge(Finding("mean margin", mean, n, "distribution", detectable=detectable, note=note))
    )
    saturated = saturation(known.rewards.ravel(), np.tile(known.prompt, 2))
    note = "share of completions at the ends of the range of rewards, where the model no longer tells them apart"
    checks.append(judge(Finding("saturation", saturated, 2 * n, "distribution", note=note)))

    labels, prompts = np.concatenate([known.subset] * 2), np.concatenate([known.prompt] * 2)
    if len(set(labels)) > 1:
        found, p = eta_squared(known.rewards.ravel(), labels, prompts)
        note = "share of the rewards' variance that lies between subsets: their rewards are on different levels, which RL mixes"
        checks.append(
            judge(Finding("location between subsets", found, n, "distribution", p=p, note=note))
        )
        note = "largest over smallest standard deviation of rewards within a subset"
        ratio = scale_ratio(known.rewards.ravel(), labels, prompts)
        checks.append(judge(Finding("scale between subsets", ratio, n, "distribution", note=note)))
    return checks
