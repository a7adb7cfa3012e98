"""Accuracy: does the model agree with the raters more often than a rule that ignores content?"""

import math
from dataclasses import dataclass, replace

import numpy as np

from auditing import stats
from auditing.checks.collapse import has_collapsed
from auditing.checks.raters import label_accuracy, noise_from_votes, rater_agreement
from auditing.pairs import Pairs
from auditing.stats import Z_95, Estimate, pair_credit, share_interval
from auditing.verdicts import THRESHOLDS, Check, Finding, Limits, judge, short, with_verdict
from reward.data.shown import count

SECTION = "accuracy"
NO_PAIR = "no pair has two finite rewards"
USEFUL_GAIN = THRESHOLDS["accuracy"].fail  # over the best rule that ignores content


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


def rule_credits(pairs: Pairs) -> dict[str, np.ndarray]:
    """Which pairs each rule that ignores content has right, by name of the rule: (n,) credits.

    Ties count one half.
    """
    longer = pair_credit(pairs.length_differences)
    return {
        "the longer wins": longer,
        "the shorter wins": 1 - longer,
        "more markdown wins": pair_credit(pairs.markdown[0] - pairs.markdown[1]),
    }


def baselines(pairs: Pairs) -> dict[str, float]:
    """The accuracies of rules that ignore content, on the same pairs, by name of the rule.

    Args:
        pairs: The pairs, at least one.
    """
    return {rule: float(credit.mean()) for rule, credit in rule_credits(pairs).items()}


def best_baseline(pairs: Pairs) -> tuple[str, float]:
    """The name and the accuracy of the best rule that ignores content."""
    return max(baselines(pairs).items(), key=lambda rule: rule[1])


@dataclass(frozen=True)
class RuleComparison:
    """The model against every rule that ignores content, on the same pairs."""

    rule: str  # the best of the rules on these pairs
    baseline: float  # its accuracy
    # By how much the model is more accurate than it; None if too few prompts repeat.
    gain: Estimate | None
    beaten: bool  # whether the model is better than each rule, by the whole interval
    p: float | None  # under "at least USEFUL_GAIN better than each rule"; None without a gain


def compare_with_rules(pairs: Pairs, estimate: Estimate) -> RuleComparison:
    """Compare the model with the rules that ignore content, pair by pair.

    The gain over a rule is the mean over pairs of credit(model) - credit(rule). So the rule's luck
    on these pairs counts as well, which taking its accuracy as exact leaves out. A coin is one of
    the rules; its credit is one half. The p-value is the smallest of the rules' p-values times
    their number (Bonferroni), which allows for the choice of the best rule.

    Args:
        pairs: The pairs, at least one.
        estimate: The model's accuracy on them.
    """
    credit = pair_credit(pairs.margins)
    rule, baseline = best_baseline(pairs)
    gains = {"a coin": Estimate(*(bound - 0.5 for bound in estimate))}
    for name, rule_credit in rule_credits(pairs).items():
        gain = mean_difference(credit - rule_credit, pairs.prompt)
        if gain is None:
            return RuleComparison(rule, baseline, None, False, None)
        gains[name] = gain
    p_values = [p_of_less(gain, USEFUL_GAIN) for gain in gains.values()]
    return RuleComparison(
        rule=rule,
        baseline=baseline,
        gain=gains[rule],
        beaten=all(gain.low > 0 for gain in gains.values()),
        p=min(1.0, len(p_values) * min(p_values)),
    )


def mean_difference(differences: np.ndarray, prompts: np.ndarray) -> Estimate | None:
    """The mean of differences in [-1, 1], with an interval that holds where prompts repeat.

    None if prompts repeat and there are fewer than five.
    """
    estimate = stats.paired_interval(differences)
    estimate = stats.widened(estimate, differences - differences.mean(), prompts)
    if estimate is None:
        return None
    return Estimate(estimate.value, max(-1.0, estimate.low), min(1.0, estimate.high))


def p_of_less(estimate: Estimate, null: float) -> float:
    """The two-sided p-value of an estimate below `null`; 1 if it is not below."""
    if estimate.value >= null:
        return 1.0
    return stats.two_sided_p(estimate, null)


def accuracy_check(pairs: Pairs, subset: str | None) -> Check:
    """Check that the model agrees with the raters more often than a rule that ignores content.

    It passes if it is better than each rule, and fails if it is less than USEFUL_GAIN better than
    one. A subset fails only if that survives the false-discovery control, because there are many.

    Args:
        pairs: The pairs of the subset, with finite rewards.
        subset: The name of the subset; None if these are all pairs.
    """
    n = len(pairs)
    estimate = accuracy(pairs.margins, pairs.prompt)
    if estimate is None:
        threshold = "pass if better than each rule that does not read, pair by pair"
        finding = Finding("accuracy", None, 0, SECTION, subset=subset, note=NO_PAIR)
        return with_verdict(finding, "not measurable", threshold)
    rules = compare_with_rules(pairs, estimate)
    verdict, notes = accuracy_verdict(rules, is_subset=subset is not None)
    if subset is None and has_collapsed(pairs):
        verdict = "fail"
        notes = ["the model has collapsed and ranks nothing"]
    ties = int(np.sum(pairs.margins == 0))
    if ties:
        notes.append(f"{count(ties, 'tie')}, each counts one half")
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
        detectable=detectable_accuracy(rules),
        note="; ".join(notes),
    )
    if subset is not None:
        finding = replace(finding, p=rules.p)
    threshold = (
        f'pass if better than {short(rules.baseline)} ("{rules.rule}" on the same pairs) and than '
        f"each other rule that does not read, pair by pair; "
        f"fail if less than {short(USEFUL_GAIN)} better (ours)"
    )
    check = with_verdict(finding, verdict, threshold)
    otherwise = "not measurable"
    if rules.beaten:
        otherwise = "pass"
    return replace(check, baseline=rules.baseline, ceiling=ceiling, otherwise=otherwise)


def accuracy_verdict(rules: RuleComparison, is_subset: bool) -> tuple[str, list[str]]:
    """The verdict on an accuracy, and the notes that explain it.

    Args:
        rules: The comparison with the rules that ignore content.
        is_subset: Whether these are the pairs of a subset. Then the false-discovery control decides
            whether a fail stays, and not the level of 5%.
    """
    if rules.gain is None:
        return "not measurable", [stats.FEW_PROMPTS]
    value, low, high = map(short, rules.gain)
    notes = [f'gain over "{rules.rule}" {value} [{low}, {high}], pair by pair']
    if rules.p < 0.05:
        return "fail", notes
    if rules.beaten:
        return "pass", notes
    if is_subset and rules.p < 1:
        return "fail", notes
    notes.append(f"too few pairs to tell it from {short(rules.baseline)}")
    return "not measurable", notes


def detectable_accuracy(rules: RuleComparison) -> float | None:
    """The smallest accuracy that these pairs tell apart from the best rule; None if none is."""
    if rules.gain is None:
        return None
    gain = stats.detectable_mean(rules.gain, largest=1 - rules.baseline)
    if gain is None:
        return None
    return rules.baseline + gain


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
            f"; votes a label: {short(train_votes)} there, {short(test_votes)} here; "
            "the noise of fewer hides a gap"
        )
    detectable = stats.detectable_mean(gap, largest=1)
    return judge(Finding(name, gap, n, SECTION, p=p, note=note, detectable=detectable))


def votes_per_label(pairs: Pairs) -> float:
    """How many votes decide a label, on average; a label without recorded votes is one vote."""
    if not pairs.voted.any():
        return 1.0
    return float(pairs.votes[pairs.voted].sum(axis=1).mean())
