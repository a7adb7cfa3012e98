"""Distribution: missing rewards, ties, margins, saturation, rewards that differ by subset."""

import math

import numpy as np

from auditing import stats
from auditing.pairs import Pairs
from auditing.stats import (
    RESAMPLES,
    Estimate,
    average_ranks,
    centred_and_scaled,
    chi2_sf,
    equal_mass,
)
from auditing.verdicts import Check, Finding, count, judge, short

SECTION = "distribution"
FEWEST = 20  # a subset with fewer rewards is left out when spreads are compared
# The range of rewards goes from this quantile to 1 minus it. A reward is at an end if it lies
# beyond that end, or within this share of the range from it.
SATURATED = 0.001
ALL_TIE = "every pair ties"
# What published Bradley-Terry runs report; other losses have other scales.
USUAL_MARGIN = (0.5, 1.0)


def distribution_checks(pairs: Pairs, finite: Pairs) -> list[Check]:
    """The checks of this section.

    Args:
        pairs: All pairs, at least one.
        finite: Those whose two rewards are finite.
    """
    checks = [finite_check(pairs), missing_check(pairs)]
    if not len(finite):
        return checks
    checks += [tie_check(finite), margin_check(finite), saturation_check(finite)]
    if len(set(finite.subset)) > 1:
        checks += subset_checks(finite)
    return checks


def finite_check(pairs: Pairs) -> Check:
    """Check the share of pairs with a reward that is infinite, or no number."""
    n = len(pairs)
    bad = int(np.isinf(pairs.rewards).any(axis=0).sum())
    note = ""
    if bad:
        note = f"{count(bad, 'pair')} of {n:,} left out of every other number"
    bad_rate = stats.wilson_estimate(bad, n)
    return judge(Finding("non-finite rewards", bad_rate, n, SECTION, note=note))


def missing_check(pairs: Pairs) -> Check:
    """Check the share of pairs with a side that the model gave no reward."""
    n = len(pairs)
    missing = int(np.isnan(pairs.rewards).any(axis=0).sum())
    note = ""
    if missing:
        note = (
            f"{count(missing, 'pair')} of {n:,} left out of every other number: "
            "a side is too long for the model, or `reward_error` says why it has no reward"
        )
    missing_rate = stats.wilson_estimate(missing, n)
    return judge(Finding("missing rewards", missing_rate, n, SECTION, note=note))


def tie_check(finite: Pairs) -> Check:
    """Check the share of pairs with equal rewards."""
    n = len(finite)
    rate = stats.wilson_estimate(int(np.sum(finite.margins == 0)), n)
    return judge(Finding("tie rate", rate, n, SECTION, detectable=stats.detectable_share(n)))


# --- Margins --------------------------------------------------------------------------------------


def auc(chosen: np.ndarray, rejected: np.ndarray) -> float | None:
    """P(chosen reward of one pair > rejected reward of any pair) + 1/2 P(equal) = U / n^2.

    Mann and Whitney (1947); Hanley and McNeil, Radiology 143 (1982). If it is well below the
    accuracy, rewards of different prompts cannot be compared; if it is .5, the two histograms lie
    on top of each other. None for no pairs.

    Args:
        chosen: (n,) rewards of the chosen sides.
        rejected: (n,) rewards of the rejected sides.
    """
    n = len(chosen)
    if n == 0:
        return None
    rank_sum = average_ranks(np.concatenate([chosen, rejected]))[:n].sum()
    return float((rank_sum - n * (n + 1) / 2) / n**2)


def overlap(chosen: np.ndarray, rejected: np.ndarray) -> float | None:
    """How much two histograms overlap: 1 if they are the same, 0 if they are separate.

    It is the sum over bins of min(share of chosen, share of rejected). Weitzman's coefficient
    (1970); Inman and Bradley, Communications in Statistics 18 (1989). There are 2 n^(1/3) bins, an
    even number, at most 50. Each holds the same number of rewards, so that outliers do not matter.
    Noise makes the overlap about sqrt(bins / (pi n)) too small. None for no pairs.

    Args:
        chosen: (n,) rewards of the chosen sides.
        rejected: (n,) rewards of the rejected sides.
    """
    n = len(chosen)
    if n == 0:
        return None
    bins = min(50, 2 * math.ceil(n ** (1 / 3)))
    common = 0
    for index in equal_mass(np.concatenate([chosen, rejected]), bins):
        common += min(np.sum(index < n), np.sum(index >= n))
    return float(common / n)


def margin_check(finite: Pairs) -> Check:
    """Check the mean of the margins, in the units of the rewards."""
    name = "mean margin"
    n = len(finite)
    margins = finite.margins
    if not margins.any():
        return judge(Finding(name, None, n, SECTION, unmeasured=ALL_TIE))
    mean = stats.widened(stats.mean_interval(margins), margins - margins.mean(), finite.prompt)
    if mean is None:
        return judge(Finding(name, None, n, SECTION))
    least, most = USUAL_MARGIN
    where = "outside"
    if least <= mean.value <= most:
        where = "inside"
    note = (
        f"{where} the usual {short(least)} to {short(most)}; "
        f"standard deviation of rewards {short(finite.rewards.std(ddof=1))}; "
        f"the histograms of chosen and rejected overlap {short(overlap(*finite.rewards))}"
    )
    detectable = stats.detectable_mean(mean)
    return judge(Finding(name, mean, n, SECTION, detectable=detectable, note=note))


# --- Saturation -----------------------------------------------------------------------------------


def saturation(rewards: np.ndarray, prompts: np.ndarray | None = None) -> Estimate | None:
    """The share of rewards at the ends of their range; None for two or fewer.

    The range goes from the 0.1st to the 99.9th percentile. A reward is at an end if it lies beyond
    it, or within .1% of the range from it. Two rewards are not counted, because two always lie at
    the ends. The share is about .002 for a bell curve, .004 for evenly spread rewards, large for
    clipped ones, and 1 for a constant. An outlier does not change it.

    Args:
        rewards: (n,) the rewards.
        prompts: (n,) the prompt of each reward. Equal rewards of one prompt count once, because
            rankings repeat a completion in many pairs. None if every reward counts.
    """
    if prompts is not None:
        rewards = np.unique(np.stack([rewards, prompts]), axis=1)[0]
    n = len(rewards)
    if n <= 2:
        return None
    low, high = np.quantile(rewards, [SATURATED, 1 - SATURATED])
    edge = SATURATED * (high - low)
    at_ends = (rewards <= low + edge) | (rewards >= high - edge)
    return stats.wilson_estimate(max(0, int(np.sum(at_ends)) - 2), n - 2)


def saturation_check(finite: Pairs) -> Check:
    """Check how many completions get one of the two extreme rewards."""
    at_ends = saturation(finite.rewards.ravel(), np.tile(finite.prompt, 2))
    note = (
        "share of completions at the ends of the range of rewards, "
        "where the model no longer tells them apart"
    )
    return judge(Finding("saturation", at_ends, 2 * len(finite), SECTION, note=note))


# --- Between subsets ------------------------------------------------------------------------------


def eta_squared(
    values: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None
) -> tuple[Estimate, float] | tuple[None, None]:
    """The share of the variance of values that lies between their k labels.

    It is Kelley's epsilon squared (Proceedings of the National Academy of Sciences 21, 1935),
    1 - (1 - eta^2) (n - 1) / (n - k), but not below 0, where eta^2 = between / total sum of
    squares. eta^2 itself would be (k - 1) / (n - 1) on average if labels meant nothing. The
    interval is the bootstrap's of eta^2 (moment_draws). Drawn eta^2 are too large twice over, by
    the noise in the means of the labels and by that of the draw, so twice what the draw adds on
    average is subtracted.

    Args:
        values: (n,) the values.
        labels: (n,) the label of each value, such as its subset.
        groups: (n,) the group of each value, such as its prompt; values of one group are
            correlated. None if all values are independent.

    Returns:
        The share, and its p-value under "no difference" (wilks_p). None and None if they are
        undefined.
    """
    _, label = np.unique(labels, return_inverse=True)
    n = len(values)
    k = int(label.max(initial=-1)) + 1
    if k < 2 or n <= k or np.ptp(values) == 0:
        return None, None
    values = centred_and_scaled(values)
    eta = between_share(totals(values, label)[None])[0]
    draws = between_share(moment_draws(values, label, groups))
    added = float(draws.mean()) - eta
    low, high = np.quantile(draws - 2 * added, [0.025, 0.975])
    value = float(np.clip(1 - (1 - eta) * (n - 1) / (n - k), 0, 1))
    estimate = Estimate(value, float(np.clip(low, 0, value)), float(np.clip(high, value, 1)))
    if groups is not None:
        values, label = group_means(values, label, groups)
    if len(values) - k < 20:  # The chi-square needs more.
        return None, None
    return estimate, wilks_p(values, label)


def group_means(
    values: np.ndarray, label: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Average the values of each group within a label, because they are correlated.

    Args:
        values: (n,) the values.
        label: (n,) the number of each value's label; labels are numbered from 0 without a gap.
        groups: (n,) the group of each value.

    Returns:
        The means and their labels, both (cells,), one cell for each group and label that occurs.
    """
    cells, cell = np.unique(np.stack([label, groups]), axis=1, return_inverse=True)
    cell = cell.ravel()
    return np.bincount(cell, values) / np.bincount(cell), cells[0]


def wilks_p(values: np.ndarray, label: np.ndarray) -> float:
    """The p-value of independent values under "the k labels have the same mean".

    It is from Bartlett's chi-square of Wilks' lambda (1938), -(n - 1 - (k + 1) / 2) ln(1 - eta^2),
    with k - 1 degrees of freedom.

    Args:
        values: (n,) the values.
        label: (n,) the number of each value's label; labels are numbered from 0 without a gap.
    """
    if np.ptp(values) < 1e-12:
        # If the two rewards of each pair mirror each other, as a judge's do, all pairs have the
        # same mean.
        return 1.0
    n = len(values)
    k = int(label.max()) + 1
    eta = between_share(totals(values, label)[None])[0]
    statistic = -(n - 1 - (k + 1) / 2) * math.log(max(1 - eta, 1e-300))
    return chi2_sf(statistic, k - 1)


def scale_ratio(
    values: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None
) -> Estimate | None:
    """The ratio of the largest to the smallest standard deviation within a label.

    The interval is the reverse bootstrap of its logarithm (moment_draws). The largest of several
    standard deviations is too large by chance alone, and the reverse bootstrap corrects for that.
    Draws are widened where a few groups decide a standard deviation (tail_factor).

    Args:
        values: (n,) the values.
        labels: (n,) the label of each value. Labels with fewer than 20 values are left out.
        groups: (n,) the group of each value; values of one group are correlated. None if all
            values are independent.

    Returns:
        None if fewer than two labels are left, or if one of them has no spread.
    """
    _, label, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    kept = (sizes >= FEWEST)[label]
    if np.sum(sizes >= FEWEST) < 2 or np.ptp(values[kept]) == 0:
        return None
    _, label = np.unique(label[kept], return_inverse=True)
    values = centred_and_scaled(values[kept])
    if groups is not None:
        groups = groups[kept]
    variances = within_variances(totals(values, label)[None])[0]  # (labels,)
    if variances.min() < 1e-15:
        return None
    log_ratio = 0.5 * math.log(variances.max() / variances.min())
    draws = moment_draws(values, label, groups, widen=True)
    drawn = within_variances(draws)  # (resamples, labels)
    drawn = np.maximum(drawn, variances.min() * 1e-4)
    log_draws = 0.5 * np.log(drawn.max(axis=1) / drawn.min(axis=1))
    low, high = 2 * log_ratio - np.quantile(log_draws, [0.975, 0.025])
    ratio = math.exp(log_ratio)
    return Estimate(ratio, min(ratio, max(1.0, math.exp(low))), max(ratio, math.exp(high)))


def totals(values: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The count, the sum and the sum of squares of each label's values.

    Args:
        values: (n,) the values.
        label: (n,) the number of each value's label; labels are numbered from 0 without a gap.

    Returns:
        (labels, 3) the three totals of each label.
    """
    columns = [np.bincount(label, v) for v in (np.ones(len(values)), values, values**2)]
    return np.stack(columns, axis=1)


def within_variances(tables: np.ndarray) -> np.ndarray:
    """(resamples, labels, 3) of totals -> the variance within each label, (resamples, labels)."""
    size, total, squares = np.moveaxis(tables, -1, 0)
    return np.maximum(squares / size - (total / size) ** 2, 0)


def between_share(tables: np.ndarray) -> np.ndarray:
    """(resamples, labels, 3) of totals -> eta^2, (resamples,)."""
    size, total, squares = np.moveaxis(tables, -1, 0)
    correction = total.sum(axis=1) ** 2 / size.sum(axis=1)
    between = (total**2 / size).sum(axis=1) - correction
    return np.clip(between / (squares.sum(axis=1) - correction), 0, 1)


def moment_draws(
    values: np.ndarray,
    label: np.ndarray,
    groups: np.ndarray | None,
    widen: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """The bootstrap of each label's count, sum and sum of squares; it draws whole groups.

    By the central limit theorem the three totals of a resample are normal about the observed ones.
    Their covariance is that of a sum of G drawn groups, which is G times the covariance of one
    group. In this way the cost does not grow with n.

    Args:
        values: (n,) the values.
        label: (n,) the number of each value's label; labels are numbered from 0 without a gap.
        groups: (n,) the group of each value; values of one group are drawn together. None if all
            values are independent.
        seed: The seed of the random numbers.

    Returns:
        (resamples, labels, 3) the totals of each resample.
    """
    if groups is None:
        groups = np.arange(len(values))
    cells, cell = np.unique(np.stack([label, groups]), axis=1, return_inverse=True)
    table = totals(values, cell.ravel())  # (cells, 3)
    rng = np.random.default_rng(seed)
    draws = []
    for k in range(int(label.max()) + 1):
        of_label = table[cells[0] == k]
        covariance = np.zeros((3, 3))
        if len(of_label) > 1:
            covariance = len(of_label) * np.atleast_2d(np.cov(of_label.T, bias=True))
            if widen:
                covariance *= tail_factor(of_label) ** 2
        draw = rng.multivariate_normal(
            of_label.sum(axis=0), covariance, size=RESAMPLES, check_valid="ignore", method="eigh"
        )
        draws.append(np.maximum(draw, [0.1, -np.inf, 0]))
    return np.stack(draws, axis=1)


def tail_factor(table: np.ndarray) -> float:
    """How much wider than z an interval of a variance must be: t / z.

    t has as many degrees of freedom as groups seem to decide the variance (stats.half_width). With
    heavy tails these are few, however many groups there are.

    Args:
        table: (groups, 3) the count, the sum and the sum of squares of each group, two or more.
    """
    size, total, squares = table.T
    mean = total.sum() / size.sum()
    deviations = squares - 2 * mean * total + mean**2 * size
    influence = deviations - size * deviations.sum() / size.sum()
    width = math.sqrt(float(np.sum(influence**2)))
    if width == 0:
        return 1.0
    return stats.half_width(influence) / (stats.Z_95 * width)


def subset_checks(finite: Pairs) -> list[Check]:
    """Check how far subsets differ in the level and in the spread of their rewards."""
    rewards = finite.rewards.ravel()
    labels = np.concatenate([finite.subset] * 2)
    prompts = np.concatenate([finite.prompt] * 2)
    n = len(finite)
    location, p = eta_squared(rewards, labels, prompts)
    note = (
        "share of the rewards' variance that lies between subsets: "
        "their rewards are on different levels, which RL mixes"
    )
    location_finding = Finding("location between subsets", location, n, SECTION, p=p, note=note)
    note = "largest over smallest standard deviation of rewards within a subset"
    ratio = scale_ratio(rewards, labels, prompts)
    scale_finding = Finding("scale between subsets", ratio, n, SECTION, note=note)
    return [judge(location_finding), judge(scale_finding)]
