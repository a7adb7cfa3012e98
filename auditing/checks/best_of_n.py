"""Best-of-n: what happens to quality and length when the answer with the highest reward is picked out of n."""

import math

import numpy as np

from auditing import stats
from auditing.result import BestOfN
from auditing.verdicts import Check, Finding, judge

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
    weights = (
        n / total * np.concatenate([[1.0], np.cumprod((i - n) / (i - 1))])[::-1]
    )  # of ranks n ... N
    return float(weights @ np.repeat(mean, counts)[n - 1 :])


def kl_best_of_n(n: int) -> float:
    """ln n - (n - 1) / n, in nats: Stiennon et al. 2020 (arXiv 2009.01325). An upper bound: Beirami et al. (2401.01879)."""
    return math.log(n) - (n - 1) / n


# ------------------------------------------------------------------------------------------------------------ Best-of-n


def best_of_n_curve(completions, most: int = 64) -> list[BestOfN]:
    """What is expected of the best of n by reward, for n = 1, 2, 4, ... and the number that half of the prompts have: means
    over prompts that have so many, with KL = ln n - (n - 1) / n; None where a value is not known for any."""
    counts = [len(group) for group in by_prompt(completions)]
    largest = min(most, int(np.median(counts))) if counts else 0
    sizes = [2**k for k in range(10) if 2**k < largest] + [largest] if largest > 1 else []
    curve = [BestOfN(n=n, kl=kl_best_of_n(n)) for n in sizes]
    for name in ("reward", "gold", "length", "hedges", "markdown"):
        values = getattr(completions, name)
        groups = (
            []
            if values is None
            else [g for g in by_prompt(completions, values) if len(g) >= largest]
        )
        for point in curve:
            found = [best_of_n(completions.reward[g], values[g], point.n) for g in groups]
            if found:
                setattr(point, name, float(np.mean(found)))
    return curve


def best_of_n_checks(completions) -> list[Check]:
    """What selecting the best by reward does to the gold reward and to length, from one answer to the best of all."""
    checks = []
    wanted = (
        ("best-of-n, gold", completions.gold, False),
        ("best-of-n, length", completions.length, True),
    )
    for rule, values, relative in wanted:
        if values is None:
            continue
        groups = [g for g in by_prompt(completions, values) if len(g) > 1]
        drift = [
            best_of_n(completions.reward[g], values[g], len(g)) - values[g].mean() for g in groups
        ]
        scale = (
            max(float(np.mean(np.concatenate([values[g] for g in groups]))), 1.0)
            if relative and groups
            else 1.0
        )
        estimate = stats.mean_interval(np.array(drift) / scale)
        size = np.mean([len(g) for g in groups]) if groups else 0
        note = f"the best of {size:.0f} completions a prompt against the mean one"
        detectable = stats.detectable_mean(estimate) if estimate else None
        checks.append(
            judge(
                Finding(
                    rule,
                    estimate,
                    len(groups),
                    "best-of-n",
                    note=note,
                    detectable=detectable,
                    unmeasured="fewer than five prompts with several completions",
                )
            )
        )
    return checks


def by_prompt(completions, values: np.ndarray | None = None) -> list[np.ndarray]:
    """The indices of each prompt's completions that have a finite reward (and value)."""
    values = completions.reward if values is None else values
    known = np.flatnonzero(np.isfinite(completions.reward) & np.isfinite(values))
    order = known[np.argsort(completions.prompt[known], kind="stable")]
    return (
        np.split(order, np.flatnonzero(np.diff(completions.prompt[order])) + 1)
        if len(order)
        else []
    )
