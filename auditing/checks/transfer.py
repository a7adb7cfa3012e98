"""Transfer: other data (--ood), human ratings of completions, and a second model on the same pairs (--compare)."""

import numpy as np

from auditing import stats
from auditing.checks.accuracy import NO_PAIR, accuracy, baselines
from auditing.pairs import Pairs
from auditing.verdicts import Check, Finding, judge, short

# ------------------------------------------------------------------------------------------------- Transfer, comparison


def spillover_checks(home: Pairs, away: Pairs, name: str) -> list[Check]:
    """Accuracy on other data, and what it loses against the model's own."""
    home, away = home.finite(), away.finite()
    n, there = len(away), accuracy(away.margins, away.prompt)
    here = accuracy(home.margins, home.prompt)
    if there is None or here is None:
        return [judge(Finding("spillover", None, n, "transfer", unmeasured=NO_PAIR))]
    detectable = stats.detectable_accuracy(n, 0.5)
    rule, best = max(baselines(away).items(), key=lambda item: item[1])
    note = f"{name}; {rule} scores {short(best)}"
    checks = [
        judge(Finding("spillover accuracy", there, n, "transfer", note=note, detectable=detectable))
    ]
    difference, p = stats.difference_of_proportions(there, here)
    note = f"{short(there.value)} there, {short(here.value)} on its own test pairs"
    detectable = stats.detectable_mean(difference)
    return [
        *checks,
        judge(
            Finding("spillover", difference, n, "transfer", p=p, note=note, detectable=detectable)
        ),
    ]


def rating_checks(completions) -> list[Check]:
    """Spearman of reward and human rating, over completions and within prompts (auditing.scores.Completions)."""
    rated = np.isfinite(completions.rating) & np.isfinite(completions.reward)
    reward, rating, prompt = (
        completions.reward[rated],
        completions.rating[rated],
        completions.prompt[rated],
    )
    overall, within = (
        stats.spearman_interval(reward, rating),
        stats.within_groups_spearman(reward, rating, prompt),
    )
    why = "too few rated completions, or they do not vary"
    return [
        judge(
            Finding(
                f"human ratings, {where}",
                found,
                n,
                "transfer",
                rule="human ratings",
                unmeasured=why,
            )
        )
        for where, found, n in (
            ("all completions", overall, len(reward)),
            ("within prompts", within, len(np.unique(prompt))),
        )
    ]


def compare_checks(ours: Pairs, theirs: Pairs, name: str) -> list[Check]:
    """Ours against another model on the same pairs in the same order: overall and per subset. Positive: ours is better."""
    both = np.isfinite(ours.rewards).all(axis=0) & np.isfinite(theirs.rewards).all(axis=0)
    ours, theirs = ours.take(both), theirs.take(both)
    subsets = list(dict.fromkeys(ours.subset))
    return [
        compare_check(ours.take(mask), theirs.take(mask), subset, name)
        for subset, mask in [
            (None, np.ones(len(ours), dtype=bool)),
            *([(s, ours.subset == s) for s in subsets] if len(subsets) > 1 else []),
        ]
    ]


def compare_check(ours: Pairs, theirs: Pairs, subset: str | None, name: str) -> Check:
    credit, other = stats.pair_credit(ours.margins), stats.pair_credit(theirs.margins)
    if not len(credit):
        return judge(
            Finding("comparison", None, 0, "comparison", subset=subset, unmeasured=NO_PAIR)
        )
    only_ours, only_theirs, p = stats.mcnemar_exact(credit, other)
    difference = stats.paired_bootstrap_difference(credit, other, ours.prompt)
    test = "McNemar's exact"
    if len(np.unique(ours.prompt)) < len(ours):  # McNemar takes pairs as independent
        p, test = stats.two_sided_p(difference), "clustered by prompt,"
    detectable = stats.detectable_mcnemar(len(credit), float(np.mean(credit != other)))
    said = "no difference was seen" if p > 0.05 else "better" if difference.value > 0 else "worse"
    note = (
        f"against {name}: {said}; {short(credit.mean())} and {short(other.mean())}, right alone {only_ours:,} and "
        f"{only_theirs:,}, {test} p = {p:.2g}"
    )
    return judge(
        Finding(
            "comparison",
            difference,
            len(credit),
            "comparison",
            subset=subset,
            p=p,
            note=note,
            detectable=detectable,
        )
    )
