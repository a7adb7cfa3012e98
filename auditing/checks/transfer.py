"""Transfer: other data (--ood), human ratings, and a second model on the same pairs (--compare)."""

import numpy as np

from auditing import stats
from auditing.checks.accuracy import NO_PAIR, accuracy, best_baseline
from auditing.pairs import Pairs
from auditing.scores import Completions
from auditing.stats import Estimate
from auditing.verdicts import Check, Finding, judge, short

SECTION = "transfer"
COMPARISON_SECTION = "comparison"


# --- Other data -----------------------------------------------------------------------------------


def spillover_checks(own: Pairs, ood: Pairs, name: str) -> list[Check]:
    """Check the accuracy on other data, and how much lower it is than on the model's own data.

    Args:
        own: The audited pairs.
        ood: Pairs of other data (out of distribution), scored by the same model.
        name: The name of the other data.
    """
    own = own.finite()
    ood = ood.finite()
    n = len(ood)
    ood_accuracy = accuracy(ood.margins, ood.prompt)
    own_accuracy = accuracy(own.margins, own.prompt)
    if ood_accuracy is None or own_accuracy is None:
        return [judge(Finding("spillover", None, n, SECTION, unmeasured=NO_PAIR))]
    rule, baseline = best_baseline(ood)
    level = Finding(
        "spillover accuracy",
        ood_accuracy,
        n,
        SECTION,
        note=f"{name}; {rule} scores {short(baseline)}",
        detectable=stats.detectable_accuracy(n, 0.5),
    )
    difference, p = stats.difference_of_proportions(ood_accuracy, own_accuracy)
    loss = Finding(
        "spillover",
        difference,
        n,
        SECTION,
        p=p,
        note=f"{short(ood_accuracy.value)} there, "
        f"{short(own_accuracy.value)} on its own test pairs",
        detectable=stats.detectable_mean(difference),
    )
    return [judge(level), judge(loss)]


# --- Human ratings --------------------------------------------------------------------------------


def rating_checks(completions: Completions) -> list[Check]:
    """Check the correlation of reward and human rating, over completions and within prompts."""
    rated = np.isfinite(completions.rating) & np.isfinite(completions.reward)
    reward = completions.reward[rated]
    rating = completions.rating[rated]
    prompt = completions.prompt[rated]
    overall = stats.spearman_interval(reward, rating)
    within = stats.within_groups_spearman(reward, rating, prompt)
    return [
        rating_check("all completions", overall, len(reward)),
        rating_check("within prompts", within, len(np.unique(prompt))),
    ]


def rating_check(where: str, correlation: Estimate | None, n: int) -> Check:
    """Check that rewards rise with ratings.

    Args:
        where: What the correlation is taken over, in words.
        correlation: Spearman's r; None if there are too few ratings.
        n: The number of completions or prompts.
    """
    finding = Finding(
        f"human ratings, {where}",
        correlation,
        n,
        SECTION,
        rule="human ratings",
        unmeasured="too few rated completions, or they do not vary",
    )
    return judge(finding)


# --- A second model -------------------------------------------------------------------------------


def compare_checks(ours: Pairs, theirs: Pairs, name: str) -> list[Check]:
    """Compare our model with another one, overall and per subset; above 0 if ours is better.

    Args:
        ours: The pairs, scored by our model.
        theirs: The same pairs in the same order, scored by the other model.
        name: The name of the other model.
    """
    both = np.isfinite(ours.rewards).all(axis=0) & np.isfinite(theirs.rewards).all(axis=0)
    ours = ours.take(both)
    theirs = theirs.take(both)
    checks = [compare_check(ours, theirs, None, name)]
    subsets = list(dict.fromkeys(ours.subset))
    if len(subsets) > 1:
        for subset in subsets:
            mask = ours.subset == subset
            checks.append(compare_check(ours.take(mask), theirs.take(mask), subset, name))
    return checks


def compare_check(ours: Pairs, theirs: Pairs, subset: str | None, name: str) -> Check:
    """Check the difference in accuracy between two models on the same pairs."""
    our_credit = stats.pair_credit(ours.margins)
    their_credit = stats.pair_credit(theirs.margins)
    n = len(our_credit)
    if not n:
        nothing = Finding(
            "comparison", None, 0, COMPARISON_SECTION, subset=subset, unmeasured=NO_PAIR
        )
        return judge(nothing)
    only_ours, only_theirs, p = stats.mcnemar_exact(our_credit, their_credit)
    difference = stats.paired_bootstrap_difference(our_credit, their_credit, ours.prompt)
    test = "McNemar's exact"
    if len(np.unique(ours.prompt)) < n:  # McNemar's test needs independent pairs.
        p = stats.two_sided_p(difference)
        test = "clustered by prompt,"
    outcome = "worse"
    if p > 0.05:
        outcome = "no difference was seen"
    elif difference.value > 0:
        outcome = "better"
    finding = Finding(
        "comparison",
        difference,
        n,
        COMPARISON_SECTION,
        subset=subset,
        p=p,
        note=f"against {name}: {outcome}; "
        f"{short(our_credit.mean())} and {short(their_credit.mean())}, "
        f"right alone {only_ours:,} and {only_theirs:,}, {test} p = {p:.2g}",
        detectable=stats.detectable_mcnemar(n, float(np.mean(our_credit != their_credit))),
    )
    return judge(finding)
