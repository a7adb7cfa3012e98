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


def spillover_checks(home: Pairs, away: Pairs, name: str) -> list[Check]:
    """Accuracy on other data, and what it loses against the model's own.

    Args:
        home: The audited pairs.
        away: Pairs of the other data, scored by the same model.
        name: Of the other data.
    """
    home = home.finite()
    away = away.finite()
    n = len(away)
    accuracy_away = accuracy(away.margins, away.prompt)
    accuracy_home = accuracy(home.margins, home.prompt)
    if accuracy_away is None or accuracy_home is None:
        return [judge(Finding("spillover", None, n, SECTION, unmeasured=NO_PAIR))]
    rule, baseline = best_baseline(away)
    level = Finding(
        "spillover accuracy",
        accuracy_away,
        n,
        SECTION,
        note=f"{name}; {rule} scores {short(baseline)}",
        detectable=stats.detectable_accuracy(n, 0.5),
    )
    difference, p = stats.difference_of_proportions(accuracy_away, accuracy_home)
    loss = Finding(
        "spillover",
        difference,
        n,
        SECTION,
        p=p,
        note=f"{short(accuracy_away.value)} there, "
        f"{short(accuracy_home.value)} on its own test pairs",
        detectable=stats.detectable_mean(difference),
    )
    return [judge(level), judge(loss)]


# --- Human ratings --------------------------------------------------------------------------------


def rating_checks(completions: Completions) -> list[Check]:
    """Spearman's correlation of reward and human rating, over completions and within prompts."""
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
    """Whether rewards and ratings go together.

    Args:
        where: What the correlation is over.
        correlation: Spearman's r; None: there are too few ratings.
        n: How many completions, or prompts.
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
    """Our model against another one, overall and per subset. Positive: ours is better.

    Args:
        ours: Scored by our model.
        theirs: The same pairs in the same order, scored by the other one.
        name: Of the other model.
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
    """The difference in accuracy between two models on the same pairs."""
    credit = stats.pair_credit(ours.margins)
    other = stats.pair_credit(theirs.margins)
    n = len(credit)
    if not n:
        nothing = Finding(
            "comparison", None, 0, COMPARISON_SECTION, subset=subset, unmeasured=NO_PAIR
        )
        return judge(nothing)
    only_ours, only_theirs, p = stats.mcnemar_exact(credit, other)
    difference = stats.paired_bootstrap_difference(credit, other, ours.prompt)
    test = "McNemar's exact"
    if len(np.unique(ours.prompt)) < n:  # McNemar takes pairs as independent.
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
        note=f"against {name}: {outcome}; {short(credit.mean())} and {short(other.mean())}, "
        f"right alone {only_ours:,} and {only_theirs:,}, {test} p = {p:.2g}",
        detectable=stats.detectable_mcnemar(n, float(np.mean(credit != other))),
    )
    return judge(finding)
