"""Distribution: missing rewards, ties, margins, saturation, rewards that differ by subset."""

import math
from dataclasses import replace

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
from auditing.verdicts import Check, Finding, judge, short
from reward.data.shown import count

SECTION = "distribution"
FEWEST = 20  # a subset with fewer rewards is left out when spreads are compared
EXTREME = 0.005  # the share of rewards that are the most extreme ones, at each end
ABOUT = 0.001  # of the range of rewards: how far two equal rewards may differ
WIDEST = 3.0  # how much wider 99% of rewards lie than 90%: 1.6 for a bell curve, 1.8 for one tail
ALL_TIE = "every pair ties"
# What published Bradley-Terry runs report; other losses have other scales.
USUAL_MARGIN = (0.5, 1.0)


def distribution_checks(pairs: Pairs, finite: Pairs, unreadable: int = 0) -> list[Check]:
    """The checks of this section.

    Args:
        pairs: All pairs, at least one.
        finite: Those whose two rewards are finite.
        unreadable: How many more rows could not be read.
    """
    checks = [finite_check(pairs), missing_check(pairs, unreadable)]
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


def missing_check(pairs: Pairs, unreadable: int = 0) -> Check:
    """Check the share of pairs with a side that has no reward, or that could not be read."""
    n = len(pairs) + unreadable
    without_reward = int(np.isnan(pairs.rewards).any(axis=0).sum())
    missing = without_reward + unreadable
    reasons = []
    if without_reward:
        reasons.append(
            "a side is too long for the model, or `reward_error` says why it has no reward"
        )
    if unreadable:
        reasons.append(f"{count(unreadable, 'row')} cannot be read")
    note = ""
    if missing:
        note = f"{count(missing, 'pair')} of {n:,} left out of every other number: "
        note += "; ".join(reasons)
    missing_rate = stats.wilson_estimate(missing, n)
    return judge(Finding("missing rewards", missing_rate, n, SECTION, note=note))


def tie_check(finite: Pairs) -> Check:
    """Check the share of pairs with equal rewards."""
    n = len(finite)
    rate = stats.share_interval((finite.margins == 0).astype(float), finite.prompt)
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
        why = "fewer than five pairs or five prompts"
        return judge(Finding(name, None, n, SECTION, unmeasured=why))
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
    """The share of rewards that equal one of the most extreme rewards.

    S = the sum over both ends of the mean, over the .5% most extreme rewards x of that end, of
    P(a reward of another prompt is about x). "About" means within .1% of `width_without_outliers`.
    S is near 0 for a bell curve, .004 for evenly spread rewards,
    the share that was clipped for clipped ones, and 1 for a constant. An outlier is one of many
    extreme rewards.

    A mean over the extreme rewards moves by little if a few rewards are added, where "at or beyond
    the .1st percentile" moves by a whole step if rewards are steps. The interval is Wilson's for
    S (1 - S) (z / half_width)^2 independent rewards (Korn and Graubard, Survey Methodology 24,
    1998), with the half width from the influence of each prompt. That of the mean over the extremes
    is a trimmed mean's (Huber, Robust Statistics, 1981, section 3.3).

    Args:
        rewards: (n,) the rewards.
        prompts: (n,) the prompt of each reward. Only rewards of other prompts are compared, because
            rankings repeat a completion in many pairs. None if every reward has its own.

    Returns:
        None for two or fewer, and if prompts repeat and there are fewer than five.
    """
    n = len(rewards)
    if prompts is None:
        prompts = np.arange(n)
    group = stats.numbered_groups(prompts)
    if n <= 2 or group is None:
        return None
    equals = EqualRewards(rewards, group, ABOUT * width_without_outliers(rewards))
    equal_share = equals.total(np.ones(n)) / equals.others
    share, influence = 0.0, np.zeros(n)
    for outwards in (-rewards, rewards):
        weights = extreme_weights(outwards)
        share += float(weights @ equal_share)
        # A reward counts as equal to an extreme one, and it may be an extreme one itself.
        influence += n * equals.total(weights) / equals.others
        least = outwards[weights > 0].min()
        beyond = equal_share - equal_share[outwards == least].mean()
        influence += n * weights * np.where(outwards > least, beyond, 0)
    share = min(1.0, share)
    sums = np.bincount(group, influence - influence.mean()) / n
    half = stats.half_width(math.sqrt(len(sums) / (len(sums) - 1)) * sums)
    independent = len(sums)
    if 0 < share < 1 and half > 0:
        independent = min(n, share * (1 - share) * (stats.Z_95 / half) ** 2)
    low, high = stats.wilson_interval(share * independent, independent)
    return Estimate(share, min(share, low), max(share, high))


def width_without_outliers(rewards: np.ndarray) -> float:
    """The distance from the .5th to the 99.5th percentile, but at most WIDEST times that of 90%.

    Of fewer than 200 rewards these percentiles lie between the most extreme reward and the next
    one, so that a single outlier, such as -9999 for "none", would make all others look equal.
    """
    least, low, high, most = np.quantile(rewards, [EXTREME, 0.05, 0.95, 1 - EXTREME])
    if high == low:
        return most - least
    return min(most - least, WIDEST * (high - low))


def extreme_weights(values: np.ndarray) -> np.ndarray:
    """(n,) values -> the weight of each in the mean over the largest .5%, but over at least one.

    Equal values have equal weights, whether all of them or only some are needed.
    """
    needed = max(1.0, EXTREME * len(values))
    least = np.sort(values)[-math.ceil(needed)]
    weights = (values > least).astype(float)
    at_least = values == least
    weights[at_least] = (needed - weights.sum()) / at_least.sum()
    return weights / needed


class EqualRewards:
    """For each reward those of other prompts that differ from it by no more than `about`."""

    def __init__(self, rewards: np.ndarray, group: np.ndarray, about: float) -> None:
        """Find them by position, in the order of the rewards and in that within each prompt.

        Args:
            rewards: (n,) the rewards.
            group: (n,) the number of each reward's prompt.
            about: How far two equal rewards may differ.
        """
        n = len(rewards)
        self._order = np.argsort(rewards, kind="stable")
        position = np.empty(n, dtype=int)
        position[self._order] = np.arange(n)
        ordered = rewards[self._order]
        first = np.searchsorted(ordered, rewards - about, "left")
        end = np.searchsorted(ordered, rewards + about, "right")
        self._range = first, end
        within = group * (n + 1) + position  # It sorts by prompt, then by reward.
        self._order_within = np.argsort(within)
        ordered_within = within[self._order_within]
        start_of_group = group * (n + 1)
        self._range_within = (
            np.searchsorted(ordered_within, start_of_group + first),
            np.searchsorted(ordered_within, start_of_group + end),
        )
        self.others = n - np.bincount(group)[group]  # (n,) how many rewards other prompts have

    def total(self, weights: np.ndarray) -> np.ndarray:
        """(n,) weights of the rewards -> the sum of the weights of each one's equals."""
        of_all = sums_of_ranges(weights[self._order], *self._range)
        of_own_prompt = sums_of_ranges(weights[self._order_within], *self._range_within)
        return of_all - of_own_prompt


def sums_of_ranges(values: np.ndarray, first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(k,) values, (n,) where ranges start and end -> (n,) the sum of each range."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return sums[end] - sums[first]


def saturation_check(finite: Pairs) -> Check:
    """Check how many completions get one of the most extreme rewards."""
    estimate = saturation(finite.rewards.ravel(), np.tile(finite.prompt, 2))
    finding = Finding(
        "saturation",
        estimate,
        2 * len(finite),
        SECTION,
        note=(
            "share of completions with the same reward as the most extreme ones, "
            "so that the model does not tell them apart"
        ),
    )
    if len(finite) > 1:
        finding = replace(finding, unmeasured=stats.FEW_PROMPTS)
    return judge(finding)


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
    """The ratio of the largest to the smallest spread of the values within a label.

    Spread is the mean distance from the median, mean |x - median|. Its sampling error is finite
    where that of a standard deviation is not, as for Student's t with 3 degrees of freedom (Bickel
    and Lehmann, Annals of Statistics 4, 1976).

    The largest of several spreads is too large by chance alone. So the lower bound is the largest
    that any two labels prove if all are compared with each other (Tukey and Kramer; Hayter, Annals
    of Statistics 12, 1984). The upper bound is that of the two labels by themselves, less what
    their choice adds on average, by the bootstrap. No interval of such a ratio covers exactly 95%,
    because it has a kink where spreads are equal; this one covers 94 to 99.

    Args:
        values: (n,) the values.
        labels: (n,) the label of each value. Labels with fewer than 20 values are left out.
        groups: (n,) the group of each value; values of one group are correlated. None if all
            values are independent.

    Returns:
        None if fewer than two labels are left, or if one of them has no spread.
    """
    if groups is None:
        groups = np.arange(len(values))
    _, label, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    spreads, errors = [], []
    for k in np.flatnonzero(sizes >= FEWEST):
        own = label == k
        distances = np.abs(values[own] - np.median(values[own]))
        if not distances.any():
            return None
        spreads.append(distances.mean())
        errors.append(spread_error(distances, groups[own]))
    if len(spreads) < 2:
        return None
    differences = np.subtract.outer(np.log(spreads), np.log(spreads))  # (labels, labels)
    error = np.hypot.outer(errors, errors)
    value = float(differences.max())
    noise = np.random.default_rng(0).normal(size=(RESAMPLES, len(spreads)))
    z_of_all = np.quantile(np.ptp(noise, axis=1), 0.95) / math.sqrt(2)
    low = float((differences - z_of_all * error).max())
    added = np.ptp(np.log(spreads) + noise * errors, axis=1).mean() - value
    high = value - added + stats.Z_95 * error.flat[differences.argmax()]
    bounds = min(value, max(0.0, low)), max(value, high)
    return Estimate(math.exp(value), *map(math.exp, bounds))


def spread_error(distances: np.ndarray, groups: np.ndarray) -> float:
    """The standard error of the logarithm of a spread, mean(distances), by the jackknife.

    The median itself does not count: the mean distance is smallest there, so that it hardly moves
    if the median moves a little. The error is wider where a few groups decide it (half_width).

    Args:
        distances: (n,) the distance of each value from the median, not all 0.
        groups: (n,) the group of each value.
    """
    _, group = np.unique(groups, return_inverse=True)
    if group.max() == 0:  # There is nothing to group by.
        group = np.arange(len(distances))
    total = distances.sum()
    others = np.maximum(total - np.bincount(group, distances), stats.NEARLY_ZERO * total)
    left_out = np.log(others / (len(distances) - np.bincount(group)))
    return stats.half_width(stats.jackknife_changes(left_out)) / stats.Z_95


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
        draw = rng.multivariate_normal(
            of_label.sum(axis=0), covariance, size=RESAMPLES, check_valid="ignore", method="eigh"
        )
        draws.append(np.maximum(draw, [0.1, -np.inf, 0]))
    return np.stack(draws, axis=1)


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
    location_finding = Finding(
        "location between subsets",
        location,
        n,
        SECTION,
        p=p,
        note=note,
        unmeasured="too few prompts, or rewards that do not vary",
    )
    note = "largest over smallest spread of rewards within a subset (mean distance from the median)"
    ratio = scale_ratio(rewards, labels, prompts)
    scale_finding = Finding(
        "scale between subsets",
        ratio,
        n,
        SECTION,
        note=note,
        unmeasured=f"fewer than two subsets with {FEWEST} rewards, or one in which they are equal",
    )
    return [judge(location_finding), judge(scale_finding)]
