"""Collapse: does the model tell completions apart at all, and does that say anything of labels?

Some reward models on the Hub have one reward for every text, and their cards report accuracies of
1.0 and .9951, because ties were counted as right. Others are served with a head that was never
trained, because it was not saved or not loaded. Both are found from rewards alone.
"""

import numpy as np

from auditing import stats
from auditing.pairs import Pairs
from auditing.stats import Estimate, pair_credit, share_interval
from auditing.verdicts import THRESHOLDS, Check, Finding, judge, short, with_verdict
from reward.data.shown import count

SECTION = "accuracy"
# Two rewards are the same if they differ by no more than this share of the larger one. Rounding in
# float32 makes differences of about 1e-7.
ROUNDING = 1e-6
COIN = 0.5
NEAR_A_COIN = THRESHOLDS["random rewards"].fail
FOLLOWS = 0.1  # a correlation with length that is worth a word; Cohen (1988) calls .1 small


def collapse_checks(finite: Pairs) -> list[Check]:
    """The checks of collapsed and of random rewards.

    Args:
        finite: The pairs whose two rewards are finite.
    """
    return [collapsed_check(finite), random_check(finite)]


# --- The same reward for every text ---------------------------------------------------------------


def collapsed_check(finite: Pairs) -> Check:
    """Check the share of pairs whose two rewards are the same, but for rounding."""
    n = len(finite)
    same = same_reward(finite)
    share = share_interval(same.astype(float), finite.prompt)
    note = ""
    if has_collapsed(finite):
        note = (
            f"the model has collapsed: it gives both sides of {int(same.sum()):,} of "
            f"{count(n, 'pair')} the same reward, so it ranks nothing"
        )
    return judge(Finding("collapsed rewards", share, n, SECTION, note=note))


def has_collapsed(finite: Pairs) -> bool:
    """Whether most pairs have the same reward on both sides, by the whole interval."""
    share = share_interval(same_reward(finite).astype(float), finite.prompt)
    return share is not None and share.low > THRESHOLDS["collapsed rewards"].fail


def same_reward(pairs: Pairs) -> np.ndarray:
    """(n,) bool: whether the two rewards of each pair are the same, but for rounding."""
    largest = np.abs(pairs.rewards).max(axis=0)
    return np.abs(pairs.margins) <= ROUNDING * largest


# --- Rewards that say nothing of the labels -------------------------------------------------------


def random_check(finite: Pairs) -> Check:
    """Check that the rewards say something of the labels, as those of a random head do not.

    It fails if the whole interval of the accuracy is within NEAR_A_COIN of one half, also on the
    half of the pairs whose rewards differ most, where a model that knows a little is right more
    often. This is what a head gives that was never trained; a model that understands nothing of
    these pairs gives the same, and rewards alone cannot tell the two apart.
    """
    n = len(finite)
    words = f"fail if the whole interval is within {short(NEAR_A_COIN)} of a coin's .5 (ours)"
    if has_collapsed(finite):
        finding = Finding("random rewards", None, n, SECTION, note="the rewards have collapsed")
        return with_verdict(finding, "not applicable", words)
    everywhere = share_interval(pair_credit(finite.margins), finite.prompt)
    surest = finite.take(stats.indices_of_largest(np.abs(finite.margins), (n + 1) // 2))
    where_sure = share_interval(pair_credit(surest.margins), surest.prompt)
    verdict = random_verdict(everywhere, where_sure)
    detectable = stats.detectable_mean(everywhere, largest=1 - COIN)
    if detectable is not None:
        detectable += COIN
    note = ""
    if verdict == "fail":
        note = (
            f"the rewards order pairs as a coin does, also the half that differ most "
            f"({short(where_sure.value)}), as those of a head do that was never trained or not "
            f"loaded; {length_in_words(finite)}"
        )
    finding = Finding(
        "random rewards",
        everywhere,
        n,
        SECTION,
        detectable=detectable,
        note=note,
    )
    return with_verdict(finding, verdict, words)


def random_verdict(everywhere: Estimate, where_sure: Estimate) -> str:
    """The verdict on rewards that may be random.

    Args:
        everywhere: The accuracy on all pairs.
        where_sure: The accuracy on the half of the pairs whose rewards differ most.
    """
    if everywhere.low > COIN or everywhere.high < COIN:
        return "pass"
    if where_sure.low > COIN or where_sure.high < COIN:
        return "pass"
    if everywhere.low > COIN - NEAR_A_COIN and everywhere.high < COIN + NEAR_A_COIN:
        return "fail"
    return "not measurable"


def length_in_words(finite: Pairs) -> str:
    """Say whether the margins follow the length difference at least."""
    r = stats.pearson(finite.length_differences, finite.margins)
    if r is None or abs(r) < FOLLOWS:
        return "they do not follow length either"
    return f"they follow length (r = {short(r)})"
