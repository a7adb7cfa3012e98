"""Accuracy: does the model agree with the raters more often than a rule that ignores content?"""

import math
from dataclasses import replace

import numpy as np

from auditing import stats
from auditing.checks.raters import label_accuracy, noise_from_votes, rater_agreement
from auditing.pairs import Pairs
from auditing.stats import Z_95, Estimate, pair_credit, share_interval
from auditing.verdicts import THRESHOLDS, Check, Finding, Limits, count, judge, short, with_verdict

SECTION = "accuracy"
NO_PAIR = "no pair has two finite rewards"
# If the pairs are too few to tell this accuracy apart from a baseline, there is no verdict.
HEALTHY = THRESHOLDS["accuracy, human labels"].fail


def accuracy_checks(finite: Pairs, train: Pairs | None) -> list[Check]:
    """The checks of this section.

    Args:
        finite: The pairs whose two rewards are finite.
        train: Scored pairs that the model was trained on; None if there are none.
    """
    checks = [accuracy_check(finite, None)]
    if finite.human_labels:
        checks += human_label_checks(finite)
    subsets = list(dict.fromkeys(finite.subset))
    if len(subsets) > 1:
        macro = macro_accuracy(finite.margins, finite.subset, finite.prompt)
        note = f"mean over {len(subsets)} subsets, each counting the same"
        checks.append(judge(Finding("accuracy, macro", macro, len(finite), SECTION, note=note)))
        for subset in subsets:
            checks.append(accuracy_check(finite.take(finite.subset == subset), subset))
    if train is not None:
        checks.append(train_test_check(finite, train.finite()))
    return checks


# --- Against rules that ignore content ------------------------------------------------------------


def accuracy(margins: np.ndarray, prompts: np.ndarray | None = None) -> Estimate | None:
    """mean(1[m > 0] + 1/2 1[m = 0]); None for no pairs.

    The interval is Wilson's. If pairs tie, so that the outcome is not binomial, it is the
    bootstrap's; if prompts repeat, it is the bootstrap's over prompts.

    Args:
        margins: (n,) reward(chosen) - reward(rejected).
        prompts: (n,) the prompt of each pair; None if no prompt repeats.
    """
    return share_interval(pair_credit(margins), prompts)


def baselines(pairs: Pairs) -> dict[str, float]:
    """The accuracies of rules that ignore content, on the same pairs, by name of the rule.

    Ties count one half.
    """
    longer, shorter = length_baselines(*pairs.lengths)
    markdown = feature_baseline(pairs.markdown)
    return {"the longer wins": longer, "the shorter wins": shorter, "more markdown wins": markdown}


def best_baseline(pairs: Pairs) -> tuple[str, float]:
    """The name and the accuracy of the best rule that ignores content."""
    return max(baselines(pairs).items(), key=lambda rule: rule[1])


def feature_baseline(feature: np.ndarray) -> float | None:
    """The accuracy of "the side with more of a feature wins"; None for no pairs.

    Ties count one half.

    Args:
        feature: (2, n) the feature of the chosen and of the rejected sides.
    """
    if not feature.shape[1]:
        return None
    return float(pair_credit(feature[0] - feature[1]).mean())


def length_baselines(
    chosen_lengths: np.ndarray, rejected_lengths: np.ndarray
) -> tuple[float, float]:
    """The accuracy of "the longer wins" and of "the shorter wins"; the two sum to 1.

    Equal lengths count one half.

    Args:
        chosen_lengths: (n,) lengths of the chosen sides, at least one.
        rejected_lengths: (n,) lengths of the rejected sides.
    """
    longer = float(pair_credit(chosen_lengths - rejected_lengths).mean())
    return longer, 1 - longer


def accuracy_check(pairs: Pairs, subset: str | None) -> Check:
    """Check that the model agrees with the raters more often than a rule that ignores content.

    Args:
        pairs: The pairs of the subset, with finite rewards.
        subset: The name of the subset; None if these are all pairs.
    """
    n = len(pairs)
    estimate = accuracy(pairs.margins, pairs.prompt)
    if estimate is None:
        threshold = "fail unless the lower bound is above the best rule that does not read"
        finding = Finding("accuracy", None, 0, SECTION, subset=subset, note=NO_PAIR)
        return with_verdict(finding, "not measurable", threshold)
    rule, baseline = best_baseline(pairs)
    detectable = stats.detectable_accuracy(n, baseline)
    if detectable is not None:  # If prompts repeat, n pairs show less than n independent ones.
        detectable = max(detectable, baseline + stats.detectable_mean(estimate))
    verdict, notes = accuracy_verdict(pairs, estimate, baseline, detectable)
    ceiling = bayes_ceiling(pairs)
    if ceiling is not None:
        notes.append(f"ceiling {short(ceiling)} (what the true utilities would score)")
    agreement = rater_agreement(pairs.votes[pairs.voted])
    if agreement is not None:
        notes.append(f"two raters of a pair agree {short(agreement)} of the time")
    finding = Finding(
        "accuracy",
        estimate,
        n,
        SECTION,
        subset=subset,
        detectable=detectable,
        note="; ".join(notes),
    )
    threshold = (
        f'fail unless the lower bound is above {short(baseline)} ("{rule}" on the same pairs)'
    )
    check = with_verdict(finding, verdict, threshold)
    return replace(check, baseline=baseline, ceiling=ceiling)


def accuracy_verdict(
    pairs: Pairs, estimate: Estimate, baseline: float, detectable: float | None
) -> tuple[str, list[str]]:
    """The verdict on an accuracy, and the notes that explain it."""
    n = len(pairs)
    ties = int(np.sum(pairs.margins == 0))
    if ties == n:
        return "not measurable", ["every pair ties: the model ranks nothing"]
    notes = []
    if ties:
        notes.append(f"{count(ties, 'tie')}, each counts one half")
    if detectable is None:
        notes.append(
            f"{count(n, 'pair')}: even a perfect model could not be told from {short(baseline)}"
        )
        return "not measurable", notes
    if estimate.low > baseline:
        return "pass", notes
    if baseline < estimate.high:
        notes.append(
            f"the interval straddles {short(baseline)}; "
            f"{n:,} pairs tell {short(detectable)} or more from it"
        )
        if detectable > HEALTHY:
            return "not measurable", notes
    return "fail", notes


def bayes_ceiling(pairs: Pairs) -> float | None:
    """The accuracy of the true utilities; None unless every pair has simulated raters."""
    if not len(pairs) or not np.isfinite(pairs.bayes_accuracy).all():
        return None
    return float(pairs.bayes_accuracy.mean())


# --- Against what human labels allow --------------------------------------------------------------


def human_label_checks(finite: Pairs) -> list[Check]:
    """Check that the accuracy is neither lower nor higher than human labels let one expect."""
    estimate = accuracy(finite.margins, finite.prompt)
    finding = Finding(
        "accuracy, human labels",
        estimate,
        len(finite),
        SECTION,
        note="if the labels are human",
        unmeasured=NO_PAIR,
    )
    suspicious = replace(finding, name="suspicious accuracy")
    return [judge(finding), judge(suspicious, majority_limits(finite))]


def majority_limits(finite: Pairs) -> Limits | None:
    """The accuracy above which the model agrees too well with majorities of votes.

    None unless more than half of the labels are such majorities.
    """
    votes = finite.votes[finite.voted]
    if len(votes) <= len(finite) / 2:
        return None
    noise = noise_from_votes(votes)
    if noise is None:
        return None
    return Limits(
        side="above",
        source="what raters who err so often allow: look for leakage",
        warn=label_accuracy(votes.sum(axis=1), noise.value),
    )


# --- Over subsets ---------------------------------------------------------------------------------


def macro_accuracy(
    margins: np.ndarray, subsets: np.ndarray, prompts: np.ndarray | None = None
) -> Estimate | None:
    """The mean of the k subsets' accuracies +- z sqrt(sum of their variances) / k.

    A subset's variance is that of its credits, with one win and one loss added, over n. In this way
    a small or perfect subset keeps a variance (Agresti and Caffo, The American Statistician 54,
    2000). If prompts repeat within a subset, its variance is the larger of that and
    sum over prompts (sum of residuals)^2 / n^2.

    Args:
        margins: (n,) reward(chosen) - reward(rejected).
        subsets: (n,) the subset of each pair.
        prompts: (n,) the prompt of each pair; None if no prompt repeats.

    Returns:
        None for no pairs.
    """
    if len(margins) == 0:
        return None
    _, subset = np.unique(subsets, return_inverse=True)
    credit = pair_credit(margins)
    n = np.bincount(subset)  # (k,)
    means = np.bincount(subset, credit) / n
    smooth_squares = (np.bincount(subset, credit**2) + 1) / (n + 2)
    smooth_means = (n * means + 1) / (n + 2)
    variances = (smooth_squares - smooth_means**2) / n
    if prompts is not None:
        cells, cell = np.unique(np.stack([subset, prompts]), axis=1, return_inverse=True)
        residuals = np.bincount(cell.ravel(), credit - means[subset])  # (cells,)
        clustered = np.bincount(cells[0], residuals**2) / n**2
        variances = np.maximum(variances, clustered)
    mean = float(means.mean())
    half = Z_95 * math.sqrt(variances.sum()) / len(n)
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half))


# --- Against the training pairs -------------------------------------------------------------------


def train_test_check(test: Pairs, train: Pairs) -> Check:
    """Check how much better the model does on the pairs that it was trained on."""
    name = "train-test gap"
    n = min(len(test), len(train))
    if not n:
        return judge(Finding(name, None, 0, SECTION, unmeasured=NO_PAIR))
    seen = accuracy(train.margins, train.prompt)
    unseen = accuracy(test.margins, test.prompt)
    gap, p = stats.difference_of_proportions(seen, unseen)
    note = (
        f"{short(seen.value)} on {len(train):,} pairs it was trained on, "
        f"{short(unseen.value)} on {len(test):,} test pairs"
    )
    train_votes = votes_per_label(train)
    test_votes = votes_per_label(test)
    if train_votes != test_votes:
        note += (
            f"; labels of {short(train_votes)} votes there, {short(test_votes)} here: "
            "the noise of fewer hides a gap"
        )
    detectable = stats.detectable_mean(gap)
    return judge(Finding(name, gap, n, SECTION, p=p, note=note, detectable=detectable))


def votes_per_label(pairs: Pairs) -> float:
    """How many votes decide a label, on average; a label without recorded votes is one vote."""
    if not pairs.voted.any():
        return 1.0
    return float(pairs.votes[pairs.voted].sum(axis=1).mean())
