"""Length and style: does the model prefer longer answers, or answers with more marks of style, than its raters do?"""

import math
from dataclasses import replace

import numpy as np
from scipy.special import expit

from auditing import stats
from auditing.checks.accuracy import accuracy
from auditing.pairs import Pairs
from auditing.result import LengthClass
from auditing.stats import (
    Z_95,
    Estimate,
    equal_mass,
    logistic,
    pair_credit,
    paired_interval,
    widened,
)
from auditing.verdicts import Check, Finding, count, judge, short

ABOUT_EQUAL = 0.1  # of the longer side


def length_excess(
    margins: np.ndarray, length_differences: np.ndarray, prompts: np.ndarray | None = None
) -> Estimate | None:
    """P(model prefers the longer) - P(raters prefer the longer), over pairs of unequal length.

    Paired: d = credit(model) - credit(raters) for each pair, its interval by paired_interval, over prompts where they repeat.
    Positive also for a perfect model of raters who prefer longer answers more often than not: raters are noisy, it is not.
    """
    unequal = length_differences != 0
    m, longer = (
        margins[unequal],
        np.sign(length_differences[unequal]),
    )  # chosen longer: +1, rejected longer: -1
    if len(m) == 0:
        return None
    d = pair_credit(m * longer) - pair_credit(longer)  # in {-1, -.5, 0, .5, 1}
    found = paired_interval(d)
    return found if prompts is None else widened(found, d - d.mean(), prompts[unequal])


def length_controlled_accuracy(
    margins: np.ndarray, length_differences: np.ndarray, prompts: np.ndarray | None = None
) -> Estimate | None:
    """sigmoid(a) of the fit P(model right) = sigmoid(a + b dl / sd(dl)): what the accuracy would be at equal lengths.

    The idea is Dubois et al. 2024 (arXiv 2404.04475), who do so for win rates. Ties count one half; the interval is
    sigmoid(a +- z se(a)), over prompts where they repeat. None where lengths or answers do not vary.
    """
    spread = float(np.std(length_differences)) if len(margins) else 0.0
    if spread == 0:
        return None
    X = np.stack(
        [np.ones(len(margins)), length_differences / spread], axis=1
    )  # (n, 2), not centred: 0 is equal length
    found = logistic(X, pair_credit(margins))
    if found is None:
        return None
    a, half = found[0][0], Z_95 * math.sqrt(found[1][0, 0])
    at_zero = Estimate(a, a - half, a + half)
    if prompts is not None:
        at_zero = widened(
            at_zero, (pair_credit(margins) - expit(X @ found[0])) * (X @ found[1])[:, 0], prompts
        )
    return None if at_zero is None else Estimate(*(float(expit(x)) for x in at_zero))


def accuracy_by_length(
    margins: np.ndarray,
    chosen_lengths: np.ndarray,
    rejected_lengths: np.ndarray,
    prompts: np.ndarray | None = None,
) -> dict[str, tuple[Estimate | None, int]]:
    """(accuracy, n) where the chosen side is shorter, longer, and about as long: within 10% of the longer one."""
    dl = chosen_lengths - rejected_lengths
    about_equal = np.abs(dl) <= ABOUT_EQUAL * np.maximum(chosen_lengths, rejected_lengths)
    classes = {
        "chosen shorter": ~about_equal & (dl < 0),
        "about equal": about_equal,
        "chosen longer": ~about_equal & (dl > 0),
    }
    return {
        name: (accuracy(margins[mask], None if prompts is None else prompts[mask]), int(mask.sum()))
        for name, mask in classes.items()
    }


def accuracy_curve(
    margins: np.ndarray, length_differences: np.ndarray, bins: int = 9
) -> list[LengthClass]:
    """Accuracy over up to 9 classes of the length difference with about equally many pairs (10 at least), for a plot."""
    curve = []
    for index in equal_mass(length_differences, min(bins, max(1, len(margins) // 10))):
        dl, found = length_differences[index], accuracy(margins[index])
        curve.append(
            LengthClass(start=float(dl.min()), end=float(dl.max()), **found._asdict(), n=len(index))
        )
    return curve


# --------------------------------------------------------------------------------------------------------------- Length


def length_checks(known: Pairs) -> list[Check]:
    difference, n = known.length_differences, len(known)
    checks = [
        # Pooled also carries what differs between prompts, and can have the other sign than within pairs.
        correlation_check(
            "length correlation, pooled",
            known.lengths.ravel(),
            known.rewards.ravel(),
            np.tile(known.prompt, 2),
            n,
        ),
        correlation_check(
            "length correlation, within pairs", difference, known.margins, known.prompt, n
        ),
        excess_check("length excess", known.lengths, known, "longer", "shorter"),
        excess_check(
            "markdown excess",
            known.markdown,
            known,
            "side with more markdown",
            "side with less markdown",
        ),
        excess_check(
            "hedge excess", known.hedges, known, "side with more hedges", "side with fewer hedges"
        ),
    ]
    controlled = length_controlled_accuracy(known.margins, difference, known.prompt)
    note = "logistic fit of the model's accuracy on the length difference, read at 0 (as arXiv 2404.04475 does for win rates)"
    why = "too few pairs, or lengths or answers that do not vary"
    checks.append(
        judge(
            Finding(
                "accuracy, length-controlled",
                controlled,
                n,
                "length and style",
                note=note,
                unmeasured=why,
            )
        )
    )
    for where, (estimate, k) in accuracy_by_length(
        known.margins, *known.lengths, known.prompt
    ).items():
        detectable = stats.detectable_accuracy(k, 0.5) if k else None
        checks.append(
            judge(
                Finding(
                    f"accuracy, {where}",
                    estimate,
                    k,
                    "length and style",
                    rule="accuracy by length",
                    detectable=detectable,
                )
            )
        )
    return checks


def correlation_check(
    name: str, x: np.ndarray, y: np.ndarray, prompts: np.ndarray, n: int
) -> Check:
    """Reward against length (2 x pairs,), or margin against length difference (pairs,)."""
    r = stats.pearson(x, y)
    estimate = None if r is None or n < 4 else Estimate(r, *stats.fisher_interval(r, len(x)))
    if estimate is not None:
        estimate = stats.widened(estimate, stats.correlation_influence(x, y), prompts)
    note = (
        ""
        if estimate is None
        else f"Spearman {short(stats.spearman(x, y))}, r squared {short(r * r)}"
    )
    detectable = stats.detectable_correlation(n)
    return judge(
        Finding(
            name,
            estimate,
            n,
            "length and style",
            rule="length correlation",
            detectable=detectable,
            note=note,
            unmeasured="an interval needs four pairs"
            if n < 4
            else "lengths or rewards do not vary",
        )
    )


def excess_check(name: str, feature: np.ndarray, known: Pairs, more: str, less: str) -> Check:
    """How much more often than the raters does the model prefer the side with more of a feature (2, n); negative: less?"""
    difference = feature[0] - feature[1]
    n, estimate = (
        int(np.count_nonzero(difference)),
        length_excess(known.margins, difference, known.prompt),
    )
    if estimate is None:
        return judge(
            Finding(
                name, None, 0, "length and style", unmeasured="no pair has sides that differ in it"
            )
        )
    note = f"{count(n, 'pair')} whose sides differ"
    detectable = stats.detectable_mean(estimate)
    check = judge(Finding(name, estimate, n, "length and style", note=note, detectable=detectable))
    if check.verdict == "warn":
        towards = more if estimate.value > 0 else less
        check = replace(
            check, note=f"{note}; the model prefers the {towards} more often than its raters"
        )
    return check
