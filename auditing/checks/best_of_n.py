"""Best-of-n: how do quality and length change if the highest reward picks one answer of n?"""

import math

import numpy as np

from auditing import stats
from auditing.result import BestOfN
from auditing.scores import Completions
from auditing.verdicts import Check, Finding, judge

SECTION = "best-of-n"
MOST = 64  # the curve goes up to this many completions per prompt


# --- The curve ------------------------------------------------------------------------------------


def best_of_n(rewards: np.ndarray, values: np.ndarray | None, n: int) -> float | None:
    """The expected value of the highest-reward completion among n drawn from N.

    It is sum_i C(i - 1, n - 1) / C(N, n) v_(i), with the values v in the order of rewards, which is
    the mean over all subsets of n. Nakano et al. 2021 (arXiv 2112.09332). Completions with an equal
    reward all get the mean of their values.

    Args:
        rewards: (N,) the rewards of the completions.
        values: (N,) the values of the completions; None for the rewards themselves.
        n: How many completions are drawn.

    Returns:
        None for n > N.
    """
    if values is None:
        values = rewards
    total = len(rewards)
    if not 1 <= n <= total:
        return None
    _, level, counts = np.unique(rewards, return_inverse=True, return_counts=True)
    means = np.bincount(level, values) / counts  # (levels,)
    # The weights of ranks n ... N. The last one is C(N - 1, n - 1) / C(N, n) = n / N; going down,
    # each is multiplied by C(i - 2, n - 1) / C(i - 1, n - 1) = (i - n) / (i - 1).
    i = np.arange(total, n, -1)
    weights = n / total * np.concatenate([[1.0], np.cumprod((i - n) / (i - 1))])[::-1]
    in_order = np.repeat(means, counts)  # (N,)
    return float(weights @ in_order[n - 1 :])


def value_of_best(rewards: np.ndarray, values: np.ndarray) -> float:
    """The mean value of the completions that share the highest reward: best_of_n of all of them."""
    return values[rewards == rewards.max()].mean()


def kl_best_of_n(n: int) -> float:
    """The KL divergence of the best of n from the policy, in nats: ln n - (n - 1) / n.

    Stiennon et al. 2020 (arXiv 2009.01325). It is an upper bound: Beirami et al. (2401.01879).
    """
    return math.log(n) - (n - 1) / n


def best_of_n_curve(completions: Completions) -> list[BestOfN]:
    """The expected values of the best of n by reward, as means over prompts.

    n is 1, 2, 4, ... up to the number of completions that half of the prompts have, or MOST if that
    is less. Prompts with fewer completions are left out. A value is None if no prompt has it.
    """
    largest = largest_n(completions)
    curve = [BestOfN(n=n, kl=kl_best_of_n(n)) for n in sizes_up_to(largest)]
    for name in ("reward", "gold", "length", "hedges", "markdown"):
        values = getattr(completions, name)
        if values is None:
            continue
        groups = [group for group in by_prompt(completions, values) if len(group) >= largest]
        if not groups:
            continue
        for point in curve:
            expected = [best_of_n(completions.reward[g], values[g], point.n) for g in groups]
            setattr(point, name, float(np.mean(expected)))
    return curve


def largest_n(completions: Completions) -> int:
    """The number of completions that half of the prompts have, at most MOST; 0 without any."""
    counts = [len(group) for group in by_prompt(completions)]
    if not counts:
        return 0
    return min(MOST, int(np.median(counts)))


def sizes_up_to(largest: int) -> list[int]:
    """1, 2, 4, ... and the largest; an empty list if there is nothing to choose from."""
    if largest <= 1:
        return []
    sizes = []
    size = 1
    while size < largest:
        sizes.append(size)
        size *= 2
    return [*sizes, largest]


# --- The checks -----------------------------------------------------------------------------------


def best_of_n_checks(completions: Completions) -> list[Check]:
    """Check how the best completion differs from a random one in gold reward and in length."""
    checks = []
    if completions.gold is not None:
        checks.append(drift_check("best-of-n, gold", completions, completions.gold, relative=False))
        checks += over_optimisation_checks(completions)
    if completions.length is not None:
        length = completions.length
        checks.append(drift_check("best-of-n, length", completions, length, relative=True))
    return checks


def over_optimisation_checks(completions: Completions) -> list[Check]:
    """Check whether gold falls again as the best is picked of more; none where it rises to the end.

    Gao et al. 2022 (arXiv 2210.10760): the gold reward of the best of n has a peak, beyond which a
    reward is optimised too much.
    """
    sizes = sizes_up_to(largest_n(completions))
    groups = by_prompt(completions, completions.gold)
    groups = [group for group in groups if sizes and len(group) >= sizes[-1]]
    if len(sizes) < 3 or not groups:
        return []
    golds = np.array(  # (prompts, sizes)
        [
            [best_of_n(completions.reward[group], completions.gold[group], n) for n in sizes]
            for group in groups
        ]
    )
    peak = int(np.argmax(golds.mean(axis=0)))
    if peak == len(sizes) - 1:
        return []
    estimate = stats.mean_interval(golds[:, -1] - golds[:, peak])
    finding = Finding(
        "best-of-n, past its peak",
        estimate,
        len(groups),
        SECTION,
        rule="best-of-n, gold",
        note=f"the best of {sizes[-1]} against the best of {sizes[peak]}, where gold is highest",
        unmeasured="fewer than five prompts with so many completions",
    )
    return [judge(finding)]


def drift_check(name: str, completions: Completions, values: np.ndarray, relative: bool) -> Check:
    """Check how much the best of a prompt's completions differs from their mean.

    Args:
        name: The name of the check.
        completions: Scored completions, several per prompt.
        values: (completions,) the values that are compared.
        relative: Whether the difference is divided by the mean value, of at least 1. Every prompt
            counts the same.
    """
    groups = [group for group in by_prompt(completions, values) if len(group) > 1]
    means = np.array([values[group].mean() for group in groups])
    best = [value_of_best(completions.reward[group], values[group]) for group in groups]
    drift = np.array(best) - means
    size = 0.0
    if groups:
        size = np.mean([len(group) for group in groups])
    estimate = stats.mean_interval(drift)
    if relative and groups and means.mean() > 1:
        estimate = stats.ratio_of_means(drift, means)
    unmeasured = "fewer than five prompts with several completions"
    if groups and not any(np.ptp(completions.reward[group]) > 0 for group in groups):
        estimate = None
        unmeasured = "all completions of a prompt have the same reward"
    detectable = None
    if estimate is not None:
        detectable = stats.detectable_mean(estimate)
    finding = Finding(
        name,
        estimate,
        len(groups),
        SECTION,
        note=f"the best of {size:.0f} completions a prompt against the mean one",
        detectable=detectable,
        unmeasured=unmeasured,
    )
    return judge(finding)


def by_prompt(completions: Completions, values: np.ndarray | None = None) -> list[np.ndarray]:
    """The indices of each prompt's completions that have a finite reward, and a finite value."""
    usable = np.isfinite(completions.reward)
    if values is not None:
        usable = usable & np.isfinite(values)
    index = np.flatnonzero(usable)
    if not len(index):
        return []
    order = index[np.argsort(completions.prompt[index], kind="stable")]
    starts = np.flatnonzero(np.diff(completions.prompt[order])) + 1
    return np.split(order, starts)
