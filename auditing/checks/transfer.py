"""Transfer: other data (--ood), and human ratings."""

from dataclasses import replace

import numpy as np

from auditing import stats
from auditing.checks.accuracy import NO_PAIR, accuracy, best_baseline
from auditing.pairs import Pairs
from auditing.scores import Completions
from auditing.stats import Estimate
from auditing.verdicts import Check, Finding, judge, short

SECTION = "transfer"


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
        detectable=stats.detectable_mean(difference, largest=1),
    )
    return [judge(level), judge(loss)]


# --- Human ratings --------------------------------------------------------------------------------


def rating_checks(completions: Completions) -> list[Check]:
    """Check the correlation of reward and human rating, over completions and within prompts."""
    rated = np.isfinite(completions.rating) & np.isfinite(completions.reward)
    reward = completions.reward[rated]
    rating = completions.rating[rated]
    prompt = completions.prompt[rated]
    overall = stats.spearman_interval(reward, rating, prompt)
    within = stats.within_groups_spearman(reward, rating, prompt)
    prompts = len(stats.spearman_of_groups(reward, rating, prompt))
    of_prompts = rating_check("within prompts", within, prompts)
    of_all = rating_check("all completions", overall, len(reward))
    if of_all.verdict == "fail" and of_prompts.verdict == "pass":
        # Rewards are fixed only up to a number for each prompt.
        of_all = replace(of_all, verdict="warn", note="within prompts the two agree")
    return [of_all, of_prompts]


def rating_check(where: str, correlation: Estimate | None, n: int) -> Check:
    """Check that rewards rise with ratings.

    Args:
        where: What the correlation is taken over, in words.
        correlation: Spearman's r; None if there are too few ratings.
        n: The number of completions, or of prompts with three that vary.
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
