"""Accuracy: does the model order more pairs as the raters did than a rule that does not read?"""

import math
from dataclasses import replace

import numpy as np

from auditing import stats
from auditing.checks.raters import label_accuracy, noise_from_votes, rater_agreement
from auditing.pairs import Pairs
from auditing.stats import Z_95, Estimate, pair_credit, share_interval
from auditing.verdicts import THRESHOLDS, Check, Finding, count, judge, short, with_verdict

NO_PAIR = "no pair has two finite rewards"


HEALTHY = THRESHOLDS["accuracy, human labels"][
    "fail"
]  # too few pairs to tell this from a baseline: no verdict


# ------------------------------------------------------------------------------------------------------------- Accuracy


def accuracy_checks(known: Pairs, train: Pairs | None) -> list[Check]:
    checks = [accuracy_check(known, None)]
    estimate = accuracy(known.margins, known.prompt)
    if known.human_labels:
        note = "if the labels are human"
        for name in ("accuracy, human labels", "suspicious accuracy"):
            limits = majority_limits(known) if name == "suspicious accuracy" else None
            checks.append(
                judge(
                    Finding(name, estimate, len(known), "accuracy", unmeasured=NO_PAIR, note=note),
                    limits,
                )
            )
    subsets = list(dict.fromkeys(known.subset))
    if len(subsets) > 1:
        macro = macro_accuracy(known.margins, known.subset, known.prompt)
        note = f"mean over {len(subsets)} subsets, each counting the same"
        checks.append(judge(Finding("accuracy, macro", macro, len(known), "accuracy", note=note)))
        checks += [accuracy_check(known.take(known.subset == subset), subset) for subset in subsets]
    if train is not None:
        checks.append(train_test_check(known, train.finite()))
    return checks


def accuracy_check(pairs: Pairs, subset: str | None) -> Check:
    """Does the model order more pairs as the raters did than a rule that does not read?"""
    n, estimate = len(pairs), accuracy(pairs.margins, pairs.prompt)
    if estimate is None:
        threshold = "fail unless the lower bound is above the best rule that does not read"
        nothing = Finding("accuracy", None, 0, "accuracy", subset=subset, note=NO_PAIR)
        return with_verdict(nothing, "not measurable", threshold)
    rule, baseline = max(baselines(pairs).items(), key=lambda item: item[1])
    threshold = (
        f'fail unless the lower bound is above {short(baseline)} ("{rule}" on the same pairs)'
    )
    detectable = stats.detectable_accuracy(n, baseline)
    if detectable is not None:  # where prompts repeat, pairs tell less than their number
        detectable = max(detectable, baseline + stats.detectable_mean(estimate))
    ties = int(np.sum(pairs.margins == 0))
    notes = [f"{count(ties, 'tie')}, each counts one half"] if ties else []
    verdict = "pass" if estimate.low > baseline else "fail"
    if ties == n:
        verdict, notes = "not measurable", ["every pair ties: the model ranks nothing"]
    elif detectable is None:
        verdict = "not measurable"
        notes.append(
            f"{count(n, 'pair')}: even a perfect model could not be told from {short(baseline)}"
        )
    elif estimate.low <= baseline < estimate.high:
        notes.append(
            f"the interval straddles {short(baseline)}; {n:,} pairs tell {short(detectable)} or more from it"
        )
        if detectable > HEALTHY:
            verdict = "not measurable"
    known = pairs.bayes_accuracy[np.isfinite(pairs.bayes_accuracy)]
    ceiling = float(known.mean()) if n and len(known) == n else None
    if ceiling is not None:
        notes.append(f"ceiling {short(ceiling)} (what the true utilities would score)")
    agree = rater_agreement(pairs.votes[pairs.voted])
    if agree is not None:
        notes.append(f"two raters of a pair agree {short(agree)} of the time")
    finding = Finding(
        "accuracy",
        estimate,
        n,
        "accuracy",
        subset=subset,
        detectable=detectable,
        note="; ".join(notes),
    )
    check = with_verdict(finding, verdict, threshold)
    return replace(check, baseline=baseline, ceiling=ceiling)


def baselines(pairs: Pairs) -> dict[str, float]:
    """Accuracy on the same pairs of rules that do not read; ties one half."""
    longer, shorter = length_baselines(*pairs.lengths)
    markdown = feature_baseline(pairs.markdown)
    return {"the longer wins": longer, "the shorter wins": shorter, "more markdown wins": markdown}


def majority_limits(known: Pairs) -> dict | None:
    """Where most labels are majorities of votes, an accuracy is suspicious above what such majorities allow."""
    votes = known.votes[known.voted]
    noise = noise_from_votes(votes) if len(votes) > len(known) / 2 else None
    if noise is None:
        return None
    ceiling = label_accuracy(votes.sum(axis=1), noise.value)
    return {
        "warn": ceiling,
        "side": "above",
        "source": "what raters who err so often allow: look for leakage",
    }


def train_test_check(test: Pairs, train: Pairs) -> Check:
    name, n = "train-test gap", min(len(test), len(train))
    seen, unseen = (accuracy(pairs.margins, pairs.prompt) for pairs in (train, test))
    if not n:
        return judge(Finding(name, None, 0, "accuracy", unmeasured=NO_PAIR))
    gap, p = stats.difference_of_proportions(seen, unseen)
    note = f"{short(seen.value)} on {len(train):,} pairs it was trained on, {short(unseen.value)} on {len(test):,} test pairs"
    raters = [
        float(pairs.votes[pairs.voted].sum(axis=1).mean()) if pairs.voted.any() else 1.0
        for pairs in (train, test)
    ]
    if raters[0] != raters[1]:
        note += f"; labels of {short(raters[0])} votes there, {short(raters[1])} here: the noise of fewer hides a gap"
    return judge(
        Finding(name, gap, n, "accuracy", p=p, note=note, detectable=stats.detectable_mean(gap))
    )


def accuracy(margins: np.ndarray, prompts: np.ndarray | None = None) -> Estimate | None:
    """mean(1[m > 0] + 1/2 1[m = 0]); Wilson's interval, with ties (not binomial then) the bootstrap's, over prompts where
    `prompts` (n,) repeat."""
    return share_interval(pair_credit(margins), prompts)


def macro_accuracy(
    margins: np.ndarray, subsets: np.ndarray, prompts: np.ndarray | None = None
) -> Estimate | None:
    """The mean of the k subsets' accuracies +- z sqrt(sum of their variances) / k.

    A subset's variance is that of its credits with one win and one loss added, over n: a small or perfect subset keeps its
    doubt (Agresti and Caffo, The American Statistician 54, 2000). Where prompts repeat within a subset, the larger of that and
    sum over prompts (sum of residuals)^2 / n^2.
    """
    if len(margins) == 0:
        return None
    _, subset = np.unique(subsets, return_inverse=True)
    credit, n = pair_credit(margins), np.bincount(subset)
    means = np.bincount(subset, credit) / n  # (k,)
    smooth = (np.bincount(subset, credit**2) + 1) / (n + 2) - ((n * means + 1) / (n + 2)) ** 2
    variances = smooth / n
    if prompts is not None:
        cells, cell = np.unique(np.stack([subset, prompts]), axis=1, return_inverse=True)
        residuals = np.bincount(cell.ravel(), credit - means[subset])
        variances = np.maximum(variances, np.bincount(cells[0], residuals**2) / n**2)
    mean, half = float(means.mean()), Z_95 * math.sqrt(variances.sum()) / len(n)
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half))


def feature_baseline(feature: np.ndarray) -> float | None:
    """Accuracy of "more of it wins" on the same pairs, ties one half; feature: (2, n) of chosen, of rejected."""
    return float(pair_credit(feature[0] - feature[1]).mean()) if feature.shape[1] else None


def length_baselines(
    chosen_lengths: np.ndarray, rejected_lengths: np.ndarray
) -> tuple[float, float]:
    """Accuracy of "the longer wins" and of "the shorter wins", equal lengths one half; the two sum to 1. Needs a row."""
    longer = float(pair_credit(chosen_lengths - rejected_lengths).mean())
    return longer, 1 - longer
