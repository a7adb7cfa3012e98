"""Scored pairs in, numbers with verdicts out: accuracy, distribution, length, calibration, transfer. NumPy only.

    checks = run_checks(pairs, bradley_terry=True)      # rm.audit.pairs.Pairs; verdicts before the false-discovery control

What needs the model's forward lies in rm.audit.probes and rm.audit.integrity, what needs the training data in rm.audit.leakage.
"""

from dataclasses import replace

import numpy as np

from rm.audit import calibration, metrics
from rm.audit.metrics import Estimate
from rm.audit.pairs import Pairs
from rm.audit.verdicts import THRESHOLDS, Check, count, judged, short

NO_PAIR = "no pair has two finite rewards"
USUAL_MARGIN = (0.5, 1.0)  # what published Bradley-Terry runs report; other losses have other scales
HEALTHY = THRESHOLDS["accuracy, human labels"]["fail"]  # too few pairs to tell this from a baseline: no verdict


def run_checks(pairs: Pairs, *, train: Pairs | None = None, bradley_terry: bool | None = None) -> list[Check]:
    """Everything that the rewards of labelled pairs show. `train`: scored pairs that the model was trained on. `bradley_terry`:
    whether sigmoid(margin) claims to be a probability; None where nobody says."""
    if not len(pairs):
        raise ValueError("no pairs to audit: at least one scored pair is needed")
    known = pairs.finite()
    checks = [*accuracy_checks(known, train), *distribution_checks(pairs, known), *length_checks(known)]
    return [*checks, *calibration_checks(known, bradley_terry)]


# ------------------------------------------------------------------------------------------------------------- Accuracy


def accuracy_checks(known: Pairs, train: Pairs | None) -> list[Check]:
    checks = [accuracy_check(known, None)]
    estimate = metrics.accuracy(known.margins, known.prompt)
    if known.human_labels:
        note = "if the labels are human"
        for name in ("accuracy, human labels", "suspicious accuracy"):
            limits = majority_limits(known) if name == "suspicious accuracy" else None
            checks.append(
                judged(name, estimate, len(known), section="accuracy", unmeasured=NO_PAIR, limits=limits, note=note)
            )
    subsets = list(dict.fromkeys(known.subset))
    if len(subsets) > 1:
        macro = metrics.macro_accuracy(known.margins, known.subset, known.prompt)
        note = f"mean over {len(subsets)} subsets, each counting the same"
        checks.append(judged("accuracy, macro", macro, len(known), section="accuracy", note=note))
        checks += [accuracy_check(known.take(known.subset == subset), subset) for subset in subsets]
    if train is not None:
        checks.append(train_test_check(known, train.finite()))
    return checks


def accuracy_check(pairs: Pairs, subset: str | None) -> Check:
    """Does the model order more pairs as the raters did than a rule that does not read?"""
    n, estimate = len(pairs), metrics.accuracy(pairs.margins, pairs.prompt)
    if estimate is None:
        threshold = "fail unless the lower bound is above the best rule that does not read"
        return Check("accuracy", subset, None, None, None, 0, "not measurable", threshold, None, NO_PAIR)
    rule, baseline = max(baselines(pairs).items(), key=lambda item: item[1])
    threshold = f'fail unless the lower bound is above {short(baseline)} ("{rule}" on the same pairs)'
    detectable = metrics.detectable_accuracy(n, baseline)
    if detectable is not None:  # where prompts repeat, pairs tell less than their number
        detectable = max(detectable, baseline + metrics.detectable_mean(estimate))
    ties = int(np.sum(pairs.margins == 0))
    notes = [f"{count(ties, 'tie')}, each counts one half"] if ties else []
    verdict = "pass" if estimate.low > baseline else "fail"
    if ties == n:
        verdict, notes = "not measurable", ["every pair ties: the model ranks nothing"]
    elif detectable is None:
        verdict = "not measurable"
        notes.append(f"{count(n, 'pair')}: even a perfect model could not be told from {short(baseline)}")
    elif estimate.low <= baseline < estimate.high:
        notes.append(f"the interval straddles {short(baseline)}; {n:,} pairs tell {short(detectable)} or more from it")
        if detectable > HEALTHY:
            verdict = "not measurable"
    known = pairs.bayes_accuracy[np.isfinite(pairs.bayes_accuracy)]
    ceiling = float(known.mean()) if n and len(known) == n else None
    if ceiling is not None:
        notes.append(f"ceiling {short(ceiling)} (what the true utilities would score)")
    agree = metrics.rater_agreement(pairs.votes[pairs.voted])
    if agree is not None:
        notes.append(f"two raters of a pair agree {short(agree)} of the time")
    return Check(
        "accuracy", subset, *estimate, n, verdict, threshold, detectable, "; ".join(notes), "accuracy",
        baseline=baseline, ceiling=ceiling,
    )  # fmt: skip


def baselines(pairs: Pairs) -> dict[str, float]:
    """Accuracy on the same pairs of rules that do not read; ties one half."""
    longer, shorter = metrics.length_baselines(*pairs.lengths)
    markdown = metrics.feature_baseline(pairs.markdown)
    return {"the longer wins": longer, "the shorter wins": shorter, "more markdown wins": markdown}


def majority_limits(known: Pairs) -> dict | None:
    """Where most labels are majorities of votes, an accuracy is suspicious above what such majorities allow."""
    votes = known.votes[known.voted]
    noise = calibration.noise_from_votes(votes) if len(votes) > len(known) / 2 else None
    if noise is None:
        return None
    ceiling = calibration.label_accuracy(votes.sum(axis=1), noise.value)
    return {"warn": ceiling, "side": "above", "source": "what raters who err so often allow: look for leakage"}


def train_test_check(test: Pairs, train: Pairs) -> Check:
    name, n = "train-test gap", min(len(test), len(train))
    seen, unseen = (metrics.accuracy(pairs.margins, pairs.prompt) for pairs in (train, test))
    if not n:
        return judged(name, None, 0, section="accuracy", unmeasured=NO_PAIR)
    gap, p = metrics.difference_of_proportions(seen, unseen)
    note = f"{short(seen.value)} on {len(train):,} pairs it was trained on, {short(unseen.value)} on {len(test):,} test pairs"
    raters = [
        float(pairs.votes[pairs.voted].sum(axis=1).mean()) if pairs.voted.any() else 1.0 for pairs in (train, test)
    ]
    if raters[0] != raters[1]:
        note += f"; labels of {short(raters[0])} votes there, {short(raters[1])} here: the noise of fewer hides a gap"
    return judged(name, gap, n, section="accuracy", p=p, note=note, detectable=metrics.detectable_mean(gap))


# --------------------------------------------------------------------------------------------------------- Distribution


def distribution_checks(pairs: Pairs, known: Pairs) -> list[Check]:
    bad, n = len(pairs) - len(known), len(known)
    note = f"{count(bad, 'pair')} of {len(pairs):,} left out of every other number" if bad else ""
    share = Estimate(bad / len(pairs), *metrics.wilson_interval(bad, len(pairs)))
    checks = [judged("non-finite rewards", share, len(pairs), section="distribution", note=note)]
    if not n:
        return checks
    ties = int(np.sum(known.margins == 0))
    rate = Estimate(ties / n, *metrics.wilson_interval(ties, n))
    ties_check = judged("tie rate", rate, n, section="distribution", detectable=metrics.detectable_share(n))
    checks.append(ties_check)

    margins, (least, most) = known.margins, USUAL_MARGIN
    mean = metrics.widened(metrics.mean_interval(margins), margins - margins.mean(), known.prompt)
    note = ""
    if mean is not None:
        note = (
            f"{'inside' if least <= mean.value <= most else 'outside'} the usual {short(least)} to {short(most)}; standard "
            f"deviation of rewards {short(known.rewards.std(ddof=1))}; the histograms of chosen and rejected overlap "
            f"{short(metrics.overlap(*known.rewards))}"
        )
    detectable = metrics.detectable_mean(mean) if mean else None
    checks.append(judged("mean margin", mean, n, section="distribution", detectable=detectable, note=note))
    saturated = metrics.saturation(known.rewards.ravel(), np.tile(known.prompt, 2))
    note = "share of completions at the ends of the range of rewards, where the model no longer tells them apart"
    checks.append(judged("saturation", saturated, 2 * n, section="distribution", note=note))

    labels, prompts = np.concatenate([known.subset] * 2), np.concatenate([known.prompt] * 2)
    if len(set(labels)) > 1:
        found, p = metrics.eta_squared(known.rewards.ravel(), labels, prompts)
        note = "share of the rewards' variance that lies between subsets: their rewards are on different levels, which RL mixes"
        checks.append(judged("location between subsets", found, n, section="distribution", p=p, note=note))
        note = "largest over smallest standard deviation of rewards within a subset"
        ratio = metrics.scale_ratio(known.rewards.ravel(), labels, prompts)
        checks.append(judged("scale between subsets", ratio, n, section="distribution", note=note))
    return checks


# --------------------------------------------------------------------------------------------------------------- Length


def length_checks(known: Pairs) -> list[Check]:
    difference, n = known.length_differences, len(known)
    checks = [
        # Pooled also carries what differs between prompts, and can have the other sign than within pairs.
        correlation_check(
            "length correlation, pooled", known.lengths.ravel(), known.rewards.ravel(), np.tile(known.prompt, 2), n
        ),
        correlation_check("length correlation, within pairs", difference, known.margins, known.prompt, n),
        excess_check("length excess", known.lengths, known, "longer", "shorter"),
        excess_check("markdown excess", known.markdown, known, "side with more markdown", "side with less markdown"),
        excess_check("hedge excess", known.hedges, known, "side with more hedges", "side with fewer hedges"),
    ]
    controlled = metrics.length_controlled_accuracy(known.margins, difference, known.prompt)
    note = "logistic fit of the model's accuracy on the length difference, read at 0 (as arXiv 2404.04475 does for win rates)"
    why = "too few pairs, or lengths or answers that do not vary"
    checks.append(
        judged("accuracy, length-controlled", controlled, n, section="length and style", note=note, unmeasured=why)
    )
    for where, (estimate, k) in metrics.accuracy_by_length(known.margins, *known.lengths, known.prompt).items():
        detectable = metrics.detectable_accuracy(k, 0.5) if k else None
        checks.append(
            judged(
                f"accuracy, {where}",
                estimate,
                k,
                section="length and style",
                rule="accuracy by length",
                detectable=detectable,
            )
        )
    return checks


def correlation_check(name: str, x: np.ndarray, y: np.ndarray, prompts: np.ndarray, n: int) -> Check:
    """Reward against length (2 x pairs,), or margin against length difference (pairs,)."""
    r = metrics.pearson(x, y)
    estimate = None if r is None or n < 4 else Estimate(r, *metrics.fisher_interval(r, len(x)))
    if estimate is not None:
        estimate = metrics.widened(estimate, metrics.correlation_influence(x, y), prompts)
    note = "" if estimate is None else f"Spearman {short(metrics.spearman(x, y))}, r squared {short(r * r)}"
    detectable = metrics.detectable_correlation(n)
    return judged(
        name, estimate, n, section="length and style", rule="length correlation", detectable=detectable, note=note,
        unmeasured="an interval needs four pairs" if n < 4 else "lengths or rewards do not vary",
    )  # fmt: skip


def excess_check(name: str, feature: np.ndarray, known: Pairs, more: str, less: str) -> Check:
    """How much more often than the raters does the model prefer the side with more of a feature (2, n); negative: less?"""
    difference = feature[0] - feature[1]
    n, estimate = int(np.count_nonzero(difference)), metrics.length_excess(known.margins, difference, known.prompt)
    if estimate is None:
        return judged(name, None, 0, section="length and style", unmeasured="no pair has sides that differ in it")
    note = f"{count(n, 'pair')} whose sides differ"
    detectable = metrics.detectable_mean(estimate)
    check = judged(name, estimate, n, section="length and style", note=note, detectable=detectable)
    if check.verdict == "warn":
        towards = more if estimate.value > 0 else less
        check = replace(check, note=f"{note}; the model prefers the {towards} more often than its raters")
    return check


# ---------------------------------------------------------------------------------------------------------- Calibration


def calibration_checks(known: Pairs, bradley_terry: bool | None) -> list[Check]:
    """Is sigmoid(margin) the chance that a rater prefers the chosen side?"""
    name, threshold = "calibration error", THRESHOLDS["calibration error"]["source"]
    if bradley_terry is False:
        note = "the objective does not make sigmoid(margin) a probability"
        return [Check(name, None, None, None, None, len(known), "not applicable", threshold, None, note, "calibration")]
    margins, votes = calibration_data(known)
    found = calibration.calibration_error(margins, votes)
    estimate, p = found if found else (None, None)
    if estimate is None:
        return [judged(name, None, len(margins), section="calibration")]
    folds = calibration.temperature_on_folds(margins, votes)
    note = f"Brier {short(calibration.brier(margins, votes))}, NLL {short(calibration.nll(margins, votes))}"
    if folds:
        note += (
            f"; temperature {short(folds['temperature'])} takes the error to {short(folds['ece_after'])} and the NLL from "
            f"{short(folds['nll_before'])} to {short(folds['nll_after'])} on held-out folds"
        )
    check = judged(
        name,
        estimate,
        len(margins),
        section="calibration",
        p=p,
        note=note,
        detectable=metrics.detectable_mean(estimate),
    )
    if bradley_terry is None:
        note += "; only Bradley-Terry rewards claim to be calibrated, and nothing says that these are"
        check = replace(check, verdict="not applicable", otherwise="not applicable", note=note)
    return [check]


def calibration_data(known: Pairs) -> tuple[np.ndarray, np.ndarray | None]:
    """(margins, votes) to calibrate on: where there are votes, the pairs with an odd number of them; else all, and None."""
    mask = known.voted
    return (known.margins[mask], known.votes[mask]) if mask.any() else (known.margins, None)


# ------------------------------------------------------------------------------------------------- Transfer, comparison


def spillover_checks(home: Pairs, away: Pairs, name: str) -> list[Check]:
    """Accuracy on other data, and what it loses against the model's own."""
    home, away = home.finite(), away.finite()
    n, there = len(away), metrics.accuracy(away.margins, away.prompt)
    here = metrics.accuracy(home.margins, home.prompt)
    if there is None or here is None:
        return [judged("spillover", None, n, section="transfer", unmeasured=NO_PAIR)]
    detectable = metrics.detectable_accuracy(n, 0.5)
    rule, best = max(baselines(away).items(), key=lambda item: item[1])
    note = f"{name}; {rule} scores {short(best)}"
    checks = [judged("spillover accuracy", there, n, section="transfer", note=note, detectable=detectable)]
    difference, p = metrics.difference_of_proportions(there, here)
    note = f"{short(there.value)} there, {short(here.value)} on its own test pairs"
    detectable = metrics.detectable_mean(difference)
    return [*checks, judged("spillover", difference, n, section="transfer", p=p, note=note, detectable=detectable)]


def rating_checks(completions) -> list[Check]:
    """Spearman of reward and human rating, over completions and within prompts (rm.audit.formats.Completions)."""
    rated = np.isfinite(completions.rating) & np.isfinite(completions.reward)
    reward, rating, prompt = completions.reward[rated], completions.rating[rated], completions.prompt[rated]
    overall, within = metrics.spearman_interval(reward, rating), metrics.within_groups_spearman(reward, rating, prompt)
    why = "too few rated completions, or they do not vary"
    return [
        judged(f"human ratings, {where}", found, n, section="transfer", rule="human ratings", unmeasured=why)
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
    credit, other = metrics.pair_credit(ours.margins), metrics.pair_credit(theirs.margins)
    if not len(credit):
        return judged("comparison", None, 0, section="comparison", subset=subset, unmeasured=NO_PAIR)
    only_ours, only_theirs, p = metrics.mcnemar_exact(credit, other)
    difference = metrics.paired_bootstrap_difference(credit, other, ours.prompt)
    test = "McNemar's exact"
    if len(np.unique(ours.prompt)) < len(ours):  # McNemar takes pairs as independent
        p, test = metrics.two_sided_p(difference), "clustered by prompt,"
    detectable = metrics.detectable_mcnemar(len(credit), float(np.mean(credit != other)))
    said = "no difference was seen" if p > 0.05 else "better" if difference.value > 0 else "worse"
    note = (
        f"against {name}: {said}; {short(credit.mean())} and {short(other.mean())}, right alone {only_ours:,} and "
        f"{only_theirs:,}, {test} p = {p:.2g}"
    )
    return judged(
        "comparison",
        difference,
        len(credit),
        section="comparison",
        subset=subset,
        p=p,
        note=note,
        detectable=detectable,
    )


# ------------------------------------------------------------------------------------------------------------ Best-of-n


def best_of_n_curve(completions, most: int = 64) -> list[dict]:
    """What is expected of the best of n by reward, for n = 1, 2, 4, ... and the number that half of the prompts have: means
    over prompts that have so many, with KL = ln n - (n - 1) / n; None where a value is not known for any."""
    counts = [len(group) for group in by_prompt(completions)]
    largest = min(most, int(np.median(counts))) if counts else 0
    sizes = [2**k for k in range(10) if 2**k < largest] + [largest] if largest > 1 else []
    curve = [{"n": n, "kl": metrics.kl_best_of_n(n)} for n in sizes]
    for name in ("reward", "gold", "length", "hedges", "markdown"):
        values = getattr(completions, name)
        groups = [] if values is None else [g for g in by_prompt(completions, values) if len(g) >= largest]
        for point in curve:
            found = [metrics.best_of_n(completions.reward[g], values[g], point["n"]) for g in groups]
            point[name] = float(np.mean(found)) if found else None
    return curve


def best_of_n_checks(completions) -> list[Check]:
    """What selecting the best by reward does to the gold reward and to length, from one answer to the best of all."""
    checks = []
    wanted = (("best-of-n, gold", completions.gold, False), ("best-of-n, length", completions.length, True))
    for rule, values, relative in wanted:
        if values is None:
            continue
        groups = [g for g in by_prompt(completions, values) if len(g) > 1]
        drift = [metrics.best_of_n(completions.reward[g], values[g], len(g)) - values[g].mean() for g in groups]
        scale = max(float(np.mean(np.concatenate([values[g] for g in groups]))), 1.0) if relative and groups else 1.0
        estimate = metrics.mean_interval(np.array(drift) / scale)
        size = np.mean([len(g) for g in groups]) if groups else 0
        note = f"the best of {size:.0f} completions a prompt against the mean one"
        detectable = metrics.detectable_mean(estimate) if estimate else None
        checks.append(
            judged(
                rule, estimate, len(groups), section="best-of-n", note=note, detectable=detectable,
                unmeasured="fewer than five prompts with several completions",
            )
        )  # fmt: skip
    return checks


def by_prompt(completions, values: np.ndarray | None = None) -> list[np.ndarray]:
    """The indices of each prompt's completions that have a finite reward (and value)."""
    values = completions.reward if values is None else values
    known = np.flatnonzero(np.isfinite(completions.reward) & np.isfinite(values))
    order = known[np.argsort(completions.prompt[known], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(completions.prompt[order])) + 1) if len(order) else []
