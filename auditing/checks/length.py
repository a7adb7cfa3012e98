"""Length and style: does the model like length, or marks of style, more than its raters do?"""

import math
from dataclasses import replace

import numpy as np
from scipy.special import expit

from auditing import stats
from auditing.checks.accuracy import accuracy, mean_difference
from auditing.pairs import Pairs
from auditing.result import LengthClass
from auditing.stats import FEW_PROMPTS, Estimate, equal_mass, pair_credit
from auditing.verdicts import Check, Finding, judge, short
from reward.data.shown import count

SECTION = "length and style"
ABOUT_EQUAL = 0.1  # of the longer side


def length_checks(finite: Pairs) -> list[Check]:
    """The checks of this section.

    Args:
        finite: The pairs whose two rewards are finite.
    """
    within = correlation_within_pairs_check(finite)
    return [
        softened(pooled_correlation_check(finite), within),
        within,
        excess_check("length excess", finite.lengths, finite, "longer", "shorter"),
        excess_check(
            "markdown excess",
            finite.markdown,
            finite,
            "side with more markdown",
            "side with less markdown",
        ),
        excess_check(
            "hedge excess",
            finite.hedges,
            finite,
            "side with more hedges",
            "side with fewer hedges",
        ),
        controlled_check(finite),
        *by_length_checks(finite),
    ]


# --- Correlation of reward and length -------------------------------------------------------------


def pooled_correlation_check(finite: Pairs) -> Check:
    """Check how far the reward grows with length, over all completions.

    This correlation also holds what differs between prompts, so that its sign can be another one
    than within pairs.
    """
    return correlation_check(
        "length correlation, pooled",
        finite.lengths.ravel(),
        finite.rewards.ravel(),
        np.tile(finite.prompt, 2),
        len(finite),
    )


def softened(pooled: Check, within: Check) -> Check:
    """The pooled check, which only warns where the two answers to one prompt show no such liking.

    The loss fixes rewards only up to a number for each prompt, and prompts that ask for longer
    answers may have another one.
    """
    if pooled.verdict != "fail" or within.value is None:
        return pooled
    opposite = within.value * pooled.value < 0
    if within.verdict != "pass" and not opposite:
        return pooled
    note = f"{pooled.note}; it lies between prompts, and not within pairs"
    return replace(pooled, verdict="warn", note=note)


def correlation_within_pairs_check(finite: Pairs) -> Check:
    """Check how far the margin grows with the length difference."""
    return correlation_check(
        "length correlation, within pairs",
        finite.length_differences,
        finite.margins,
        finite.prompt,
        len(finite),
    )


def correlation_check(
    name: str, x: np.ndarray, y: np.ndarray, prompts: np.ndarray, n: int
) -> Check:
    """Check a correlation that should be small.

    Args:
        name: The name of the check.
        x: (points,) lengths, or length differences.
        y: (points,) rewards or margins.
        prompts: (points,) the prompt of each point.
        n: The number of pairs.
    """
    finding = Finding(
        name,
        None,
        n,
        SECTION,
        rule="length correlation",
        unmeasured="lengths or rewards do not vary",
    )
    if n < 4:
        return judge(replace(finding, unmeasured="an interval needs four pairs"))
    r = stats.pearson(x, y)
    if r is None:
        return judge(finding)
    estimate = stats.correlation_interval(x, y, prompts)
    if estimate is None:
        return judge(replace(finding, unmeasured=FEW_PROMPTS))
    note = f"Spearman {short(stats.spearman(x, y))}, r squared {short(r * r)}"
    detectable = stats.detectable_correlation(estimate)
    return judge(replace(finding, estimate=estimate, note=note, detectable=detectable))


# --- How much more often than the raters ----------------------------------------------------------


def length_excess(
    margins: np.ndarray, length_differences: np.ndarray, prompts: np.ndarray | None = None
) -> Estimate | None:
    """P(model prefers the longer) - P(raters prefer the longer), over pairs of unequal length.

    It is the mean of d = credit(model) - credit(raters) over pairs, with paired_interval. Where
    raters prefer longer answers more often than not, it is positive even for a perfect model of
    them, because the raters are noisy and the model is not.

    Args:
        margins: (n,) reward(chosen) - reward(rejected).
        length_differences: (n,) length(chosen) - length(rejected), or the difference in another
            feature.
        prompts: (n,) the prompt of each pair; None if no prompt repeats.

    Returns:
        None if no pair has sides of unequal length, or if prompts repeat and there are fewer than
        five of them.
    """
    unequal = length_differences != 0
    longer = np.sign(length_differences[unequal])  # +1 where the chosen side is longer, else -1
    if len(longer) == 0:
        return None
    for_longer = pair_credit(margins[unequal] * longer)
    differences = for_longer - pair_credit(longer)  # in {-1, -.5, 0, .5, 1}
    if prompts is None:
        return stats.paired_interval(differences)
    return mean_difference(differences, prompts[unequal])


def excess_check(name: str, feature: np.ndarray, finite: Pairs, more: str, less: str) -> Check:
    """Check how much more often than the raters the model prefers the side with more of a feature.

    Args:
        name: The name of the check.
        feature: (2, n) the feature of the chosen and of the rejected sides.
        finite: The pairs whose two rewards are finite.
        more: What to call the side with more of it.
        less: What to call the other side.
    """
    difference = feature[0] - feature[1]
    n = int(np.count_nonzero(difference))
    if n == 0:
        why = "no pair has sides that differ in it"
        return judge(Finding(name, None, 0, SECTION, unmeasured=why))
    estimate = length_excess(finite.margins, difference, finite.prompt)
    if estimate is None:
        return judge(Finding(name, None, n, SECTION, unmeasured=FEW_PROMPTS))
    note = f"{count(n, 'pair')} whose sides differ"
    detectable = stats.detectable_mean(estimate, largest=1)
    check = judge(Finding(name, estimate, n, SECTION, note=note, detectable=detectable))
    if check.verdict not in ("warn", "fail"):
        return check
    preferred = more
    if estimate.value <= 0:
        preferred = less
    note = f"{note}; the model prefers the {preferred} more often than its raters"
    return replace(check, note=note)


# --- Accuracy at equal lengths --------------------------------------------------------------------


def length_controlled_accuracy(
    margins: np.ndarray, length_differences: np.ndarray, prompts: np.ndarray | None = None
) -> Estimate | None:
    """The accuracy that the model would have at equal lengths.

    It is sigmoid(a) of the fit P(model right) = sigmoid(a + b dl / sd(dl)). The idea is Dubois et
    al. 2024 (arXiv 2404.04475), who do so for win rates. Ties count one half. The interval is
    sigmoid(a +- t se(a)), where se is the sandwich's over prompts (Liang and Zeger, Biometrika 73,
    1986), because ties vary less than wins and losses, and pairs of one prompt are alike.

    Args:
        margins: (n,) reward(chosen) - reward(rejected).
        length_differences: (n,) dl = length(chosen) - length(rejected).
        prompts: (n,) the prompt of each pair; None if no prompt repeats.

    Returns:
        None if lengths or answers do not vary, if the fit has no finite maximum (stats.logistic),
        or if prompts repeat and there are fewer than five of them.
    """
    if len(margins) == 0:
        return None
    spread = float(np.std(length_differences))
    if spread == 0:
        return None
    # (n, 2), not centred: 0 is equal length.
    X = np.stack([np.ones(len(margins)), length_differences / spread], axis=1)
    credit = pair_credit(margins)
    if np.ptp(credit) == 0:
        return None
    fit = stats.logistic(X, credit)
    if fit is None:
        return None
    residual = credit - expit(X @ fit.coefficients)
    influence = residual * (X @ fit.covariance)[:, 0]  # (n,) how far each pair moves a
    groups = np.arange(len(margins))
    if prompts is not None:
        groups = stats.numbered_groups(prompts)
    if groups is None:
        return None
    changes = np.bincount(groups, influence)
    count = len(changes)
    a = float(fit.coefficients[0])
    half = math.sqrt(count / (count - 1)) * stats.half_width(changes)
    return Estimate(*(float(expit(bound)) for bound in (a, a - half, a + half)))


def controlled_check(finite: Pairs) -> Check:
    """Check that the model is better than a coin at equal lengths."""
    estimate = length_controlled_accuracy(finite.margins, finite.length_differences, finite.prompt)
    finding = Finding(
        "accuracy, length-controlled",
        estimate,
        len(finite),
        SECTION,
        note="logistic fit of the model's accuracy on the length difference, read at 0 "
        "(as arXiv 2404.04475 does for win rates)",
        unmeasured="no fit: too few pairs or prompts, lengths or answers that do not vary, or "
        "length alone decides which pairs the model has right",
    )
    return judge(finding)


# --- Accuracy by length ---------------------------------------------------------------------------


def accuracy_by_length(
    margins: np.ndarray,
    chosen_lengths: np.ndarray,
    rejected_lengths: np.ndarray,
    prompts: np.ndarray | None = None,
) -> dict[str, tuple[Estimate | None, int]]:
    """The accuracy on pairs whose chosen side is shorter, about as long, and longer.

    Args:
        margins: (n,) reward(chosen) - reward(rejected).
        chosen_lengths: (n,) lengths of the chosen sides.
        rejected_lengths: (n,) lengths of the rejected sides.
        prompts: (n,) the prompt of each pair; None if no prompt repeats.

    Returns:
        The accuracy and the number of pairs of each of the three classes, by the name of the class.
        Two lengths are about equal if they differ by at most 10% of the longer one.
    """
    difference = chosen_lengths - rejected_lengths
    longer = np.maximum(chosen_lengths, rejected_lengths)
    about_equal = np.abs(difference) <= ABOUT_EQUAL * longer
    classes = {
        "chosen shorter": ~about_equal & (difference < 0),
        "about equal": about_equal,
        "chosen longer": ~about_equal & (difference > 0),
    }
    accuracies = {}
    for name, mask in classes.items():
        prompts_of_class = None
        if prompts is not None:
            prompts_of_class = prompts[mask]
        accuracies[name] = accuracy(margins[mask], prompts_of_class), int(mask.sum())
    return accuracies


def by_length_checks(finite: Pairs) -> list[Check]:
    """Check that the model is better than a coin whichever side is longer."""
    accuracies = accuracy_by_length(finite.margins, *finite.lengths, finite.prompt)
    checks = []
    for length_class, (estimate, n) in accuracies.items():
        detectable = None
        if n:
            detectable = stats.detectable_accuracy(n, 0.5)
        finding = Finding(
            f"accuracy, {length_class}",
            estimate,
            n,
            SECTION,
            rule="accuracy by length",
            detectable=detectable,
        )
        checks.append(judge(finding))
    return checks


def accuracy_curve(
    margins: np.ndarray,
    length_differences: np.ndarray,
    prompts: np.ndarray | None = None,
    bins: int = 9,
) -> list[LengthClass]:
    """Accuracy over classes of the length difference with about equally many pairs, for a plot.

    Args:
        margins: (n,) reward(chosen) - reward(rejected).
        length_differences: (n,) length(chosen) - length(rejected).
        prompts: (n,) the prompt of each pair; None if no prompt repeats.
        bins: The largest number of classes; each class holds at least 10 pairs.
    """
    curve = []
    for index in equal_mass(length_differences, min(bins, max(1, len(margins) // 10))):
        differences = length_differences[index]
        prompts_of_class = None
        if prompts is not None:
            prompts_of_class = prompts[index]
        estimate = accuracy(margins[index], prompts_of_class)
        length_class = LengthClass(
            start=float(differences.min()),
            end=float(differences.max()),
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            n=len(index),
        )
        curve.append(length_class)
    return curve
