"""Comparison: who beats whom on the same pairs, and by how much (--compare).

checks = compare_checks({"rm-a": ours, "rm-b": theirs})
ranking = rank_models({"rm-a": ours, "rm-b": theirs})
"""

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from auditing import stats
from auditing.checks.accuracy import NO_PAIR, accuracy, mean_difference
from auditing.pairs import Pairs
from auditing.result import ModelCouple, RankedModel, Ranking
from auditing.stats import Estimate
from auditing.verdicts import Check, Finding, judge, short

SECTION = "comparison"
SIGNIFICANCE = 0.05  # a difference counts if its p-value, corrected by Holm, is at most this


# --- Checks: our model against one other ----------------------------------------------------------


def compare_checks(models: dict[str, Pairs]) -> list[Check]:
    """Compare our model with each other one, overall and per subset; above 0 if ours is better.

    Args:
        models: The name of each model -> the same pairs in the same order, scored by it. The first
            is ours.

    Returns:
        The checks "comparison", or "comparison, NAME" if there are several others.
    """
    (_, ours), *others = models.items()
    checks = []
    for name, theirs in others:
        check_name = "comparison"
        if len(others) > 1:
            check_name = f"comparison, {name}"
        both = np.isfinite(ours.rewards).all(axis=0) & np.isfinite(theirs.rewards).all(axis=0)
        our_part, their_part = ours.take(both), theirs.take(both)
        checks.append(compare_check(our_part, their_part, name, check_name, None))
        subsets = list(dict.fromkeys(our_part.subset))
        if len(subsets) < 2:
            continue
        for subset in subsets:
            inside = our_part.subset == subset
            their_subset = their_part.take(inside)
            checks.append(
                compare_check(our_part.take(inside), their_subset, name, check_name, subset)
            )
    return checks


def compare_check(
    ours: Pairs, theirs: Pairs, name: str, check_name: str, subset: str | None
) -> Check:
    """Check the difference in accuracy between two models on the same pairs.

    Args:
        ours: The pairs, scored by our model.
        theirs: The same pairs, scored by the other model.
        name: The name of the other model.
        check_name: The name of the check.
        subset: The name of the subset; None if these are all pairs.
    """
    finding = Finding(
        check_name,
        None,
        len(ours),
        SECTION,
        subset=subset,
        rule="comparison",
        unmeasured=NO_PAIR,
    )
    if not len(ours):
        return judge(finding)
    our_credit = stats.pair_credit(ours.margins)
    their_credit = stats.pair_credit(theirs.margins)
    difference = paired_difference(our_credit, their_credit, ours.prompt)
    if difference is None:
        return judge(replace(finding, unmeasured=stats.FEW_PROMPTS))
    outcome = "worse"
    if difference.p > SIGNIFICANCE:
        outcome = "no difference was seen"
    elif difference.estimate.value > 0:
        outcome = "better"
    only_ours = int(np.sum(our_credit > their_credit))
    only_theirs = int(np.sum(our_credit < their_credit))
    test = "McNemar's exact"
    if prompts_repeat(ours.prompt):
        test = "clustered by prompt,"
    note = (
        f"against {name}: {outcome}; "
        f"{short(our_credit.mean())} and {short(their_credit.mean())}, "
        f"right alone {only_ours:,} and {only_theirs:,}, {test} p = {difference.p:.2g}"
    )
    return judge(
        replace(
            finding,
            estimate=difference.estimate,
            p=difference.p,
            note=note,
            detectable=difference.detectable,
        )
    )


@dataclass(frozen=True)
class PairedDifference:
    """The difference in accuracy between two models on the same pairs."""

    estimate: Estimate
    p: float  # under the hypothesis of no difference
    detectable: float | None  # the smallest difference that these pairs show with 80% power


def paired_difference(
    our_credit: np.ndarray, their_credit: np.ndarray, prompts: np.ndarray
) -> PairedDifference | None:
    """The difference in accuracy on the same pairs, with its p-value.

    McNemar's test needs independent pairs that are right or wrong. Where prompts repeat, p comes
    from the interval over prompts (mean_difference): a bootstrap of few prompts that are alike by
    chance would be far too sure. Where pairs tie, p comes from the interval too: a sign test would
    count a tie as no better than an error, or as much better, and the difference counts it half.

    Args:
        our_credit: (n,) how much each pair counts as right for our model, at least one.
        their_credit: (n,) the same for the other model.
        prompts: (n,) the prompt of each pair.

    Returns:
        None if prompts repeat and there are fewer than five.
    """
    if prompts_repeat(prompts):
        estimate = mean_difference(our_credit - their_credit, prompts)
        if estimate is None:
            return None
        p = stats.two_sided_p(estimate, df=independent(prompts) - 1)
        return PairedDifference(estimate, p, stats.detectable_mean(estimate, largest=1))
    estimate = stats.paired_bootstrap_difference(our_credit, their_credit)
    if np.isin([our_credit, their_credit], (0.0, 1.0)).all():
        _, _, p = stats.mcnemar_exact(our_credit, their_credit)
    else:
        p = stats.two_sided_p(estimate)
    differing = float(np.mean(our_credit != their_credit))
    return PairedDifference(estimate, p, stats.detectable_mcnemar(len(prompts), differing))


def independent(prompts: np.ndarray) -> int:
    """How many observations are independent: the prompts, or the pairs if all have the same one."""
    different = len(np.unique(prompts))
    if different == 1:
        return len(prompts)
    return different


def prompts_repeat(prompts: np.ndarray) -> bool:
    """Whether two pairs have the same prompt."""
    return len(np.unique(prompts)) < len(prompts)


# --- All models -----------------------------------------------------------------------------------


def rank_models(models: dict[str, Pairs]) -> Ranking | None:
    """Rank models by their accuracy on the same pairs, and compare every two of them.

    Args:
        models: The name of each model -> the same pairs in the same order, scored by it. The first
            is the audited model.

    Returns:
        None if no pair has finite rewards from all models.
    """
    finite = [np.isfinite(pairs.rewards).all(axis=0) for pairs in models.values()]
    in_all = np.logical_and.reduce(finite)  # (pairs,)
    if not in_all.any():
        return None
    scored = {name: pairs.take(in_all) for name, pairs in models.items()}
    couples = [couple_of(a, b, scored) for a, b in combinations(scored, 2)]
    corrected = holm([couple.p for couple in couples])
    for couple, p in zip(couples, corrected, strict=True):
        couple.p = p
        couple.differs = p <= SIGNIFICANCE

    audited = next(iter(models))
    ranked = []
    for name, pairs in scored.items():
        better = [couple for couple in couples if couple.differs and couple.worse == name]
        value, low, high = accuracy(pairs.margins, pairs.prompt)
        ranked.append(RankedModel(name, name == audited, 1 + len(better), value, low, high))
    ranked.sort(key=lambda model: -model.accuracy)
    return Ranking(ranked, couples, int(in_all.sum()))


def couple_of(a: str, b: str, scored: dict[str, Pairs]) -> ModelCouple:
    """Compare two models; p is not corrected yet."""
    better, worse = a, b
    credit = stats.pair_credit(scored[a].margins)
    other_credit = stats.pair_credit(scored[b].margins)
    if other_credit.mean() > credit.mean():
        better, worse = b, a
        credit, other_credit = other_credit, credit
    prompts = scored[better].prompt
    difference = paired_difference(credit, other_credit, prompts)
    if difference is None:  # Few prompts leave every difference possible.
        value = float(np.mean(credit - other_credit))
        difference = PairedDifference(Estimate(value, -1.0, 1.0), p=1.0, detectable=None)
    return ModelCouple(
        better=better,
        worse=worse,
        difference=difference.estimate.value,
        low=difference.estimate.low,
        high=difference.estimate.high,
        p=difference.p,
        differs=False,
        disagree=float(np.mean(np.abs(credit - other_credit))),
        detectable=difference.detectable,
    )


def holm(p_values: list[float]) -> list[float]:
    """Correct p-values for their number, so that any false one among them is as rare as one alone.

    Holm, Scandinavian Journal of Statistics 6 (1979): the k-th smallest of m is multiplied by
    m - k + 1, and none is smaller than the one before it.
    """
    m = len(p_values)
    corrected = [0.0] * m
    largest = 0.0
    for place, i in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (m - place) * p_values[i]))
        corrected[i] = largest
    return corrected


# --- Names ----------------------------------------------------------------------------------------


def short_names(paths: list[str]) -> list[str]:
    """The parts of paths in which they differ: seed-1/audit/s.jsonl, seed-2/... -> seed-1, seed-2.

    Args:
        paths: Folders, files or Hub ids.

    Returns:
        A name for each; the paths themselves if their short names were not all different.
    """
    parts = [list(Path(path).parts) for path in paths]
    if len(paths) > 1:
        while all(len(rest) > 1 for rest in parts) and len({rest[0] for rest in parts}) == 1:
            parts = [rest[1:] for rest in parts]
        while all(len(rest) > 1 for rest in parts) and len({rest[-1] for rest in parts}) == 1:
            parts = [rest[:-1] for rest in parts]
    names = [str(Path(*rest)) for rest in parts]
    if len(set(names)) < len(names):
        return [f"{path} ({i})" for i, path in enumerate(paths, start=1)]
    return names
