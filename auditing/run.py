"""One audit, start to end: `audit_scores` from a file alone (no torch), `audit_checkpoint` with the model at hand."""

import time
from pathlib import Path

import numpy as np

from auditing.benchmarks import benchmark_checks
from auditing.checks import accuracy, calibration
from auditing.checks.accuracy import accuracy_checks
from auditing.checks.best_of_n import best_of_n_checks, best_of_n_curve
from auditing.checks.calibration import calibration_checks, calibration_data
from auditing.checks.distribution import distribution_checks
from auditing.checks.labels import label_checks, top_and_bottom, worst_errors
from auditing.checks.length import accuracy_curve, length_checks
from auditing.checks.transfer import compare_checks, rating_checks, spillover_checks
from auditing.pairs import LONGEST_TEXT, Pairs
from auditing.result import Audit, Strip
from auditing.scores import read_scores
from auditing.verdicts import Check, control_false_discoveries
from reward.data.files import DataError, Source

TRAIN_SAMPLE = 1000  # train pairs that are scored, to compare train and test accuracy


STRIPS = 5  # completions of each list that get the reward after each token


def audit_scores(path: str, ood: str | None = None, compare: str | None = None) -> Audit:
    """The audit of a file of scores, in any format of auditing.scores. Raises DataError."""
    scores = read_scores(path)
    identity = {"scores": path, "format": scores.kind}
    if scores.pairs is None:
        raise DataError(
            f"{path}: scored completions without pairs; an audit needs preference pairs, and takes these beside them: "
            f"--completions {path}"
        )
    found = summary(scores.pairs, identity, bradley_terry=None)
    found.checks += benchmark_checks(scores.benchmark)
    if scores.benchmark is not None:
        found.style_matrix = scores.benchmark.style_matrix
    if ood:
        found.checks += spillover_checks(scores.pairs, pairs_of(ood), Path(ood).name)
    if compare:
        found.checks += compare_checks(
            scores.pairs, matched(scores.pairs, pairs_of(compare), compare), compare
        )
    found.not_measured += [
        "Probes, integrity, leakage and train accuracy need the model: audit.py --ckpt.",
        *([] if ood else ["Spillover: no other data (--ood)."]),
    ]
    return found


def audit_checkpoint(args) -> Audit:
    """The audit of a model, on the test split that it recorded or on --data; `args` as audit.py parses them. Raises ModelError,
    DataError, EncodingError, RecipeError."""
    from auditing import source
    from auditing.checks.integrity import run_integrity
    from auditing.checks.leakage import find_leaks, leak_checks, texts_of
    from auditing.checks.policy import policy_checks
    from auditing.checks.probes import adversarial_pairs, run_adversarial, run_probes
    from reward.model.scorer import Scorer

    trust = {"trust_remote_code": args.trust_remote_code}
    scorer = Scorer(args.ckpt, args.token_budget, revision=args.revision, distributed=True, **trust)
    recipe = source.recorded_recipe(args.ckpt, args.revision)
    anchor = None
    if args.policy:  # first: it is quick, and fails where the policy is not found
        anchor = policy_checks(args.ckpt, args.policy, args.revision, **trust)
    sources = (
        [named(args.data, args.data_dir, args.split)]
        if args.data
        else recipe and recipe.data_sources()
    )
    if sources is None:
        raise DataError(
            f"{args.ckpt} records no test split (a checkpoint-N/, or not trained by train_rm.py); name pairs with --data"
        )
    table, ledger = source.load_test_pairs(scorer, sources, recipe, own=not args.data)
    if not args.data:
        source.check_recorded(args.ckpt, args.revision, table)
    if args.adversarial:
        adversarial_pairs(args.adversarial)  # faults of what is read later are told now
    away = args.ood and source.load_test_pairs(
        scorer, [named(args.ood, args.ood_dir, args.split)], recipe
    )
    theirs = pairs_of(args.compare) if args.compare and Path(args.compare).is_file() else None
    pairs = source.score_pairs(scorer, table, human_labels=not args.data)
    counts = ledger.as_dict()["test"]

    # ------------------------------------------------------------------------------------- what it was trained on
    train, leaks, unseen = None, None, []
    if args.quick:
        unseen.append(
            "Leakage, train accuracy, probes and adversarial pairs: --quick leaves them out."
        )
    elif recipe is None or any(s["streaming"] for s in recipe.data_sources()):
        unseen.append(
            "Leakage and train accuracy: no training data that could be read again is recorded."
        )
    else:
        try:
            seen, sample = source.load_train_pairs(scorer, recipe, TRAIN_SAMPLE)
        except DataError as error:
            if not args.data:
                raise
            unseen.append(f"Leakage: the training data cannot be read: {error}")
        else:
            leaks = find_leaks(texts_of(table), texts_of(seen))
            if args.data:
                unseen.append("Train accuracy: --data has other raters than the training data.")
            elif recipe["min_rater_agreement"]:
                unseen.append(
                    "Train accuracy: min_rater_agreement left easier pairs in the train split than in the test split."
                )
            else:
                train = source.score_pairs(scorer, sample, "Scoring train pairs")
    bradley_terry = None if recipe is None else recipe["loss_type"] == "bradley_terry"
    found = summary(
        pairs, identity_of(args, scorer, sources, counts, len(pairs)), bradley_terry, train
    )
    found.not_measured += unseen
    if leaks is not None:
        found.checks += leak_checks(pairs, leaks)

    # -------------------------------------------------------------------------------- what only a forward can show
    too_long = sum(n for reason, n in counts["dropped"].items() if reason.startswith("over-long"))
    lost = (too_long + sum(counts["truncated"].values()), counts["read"])
    found.checks += run_integrity(scorer, pairs, lost=lost)
    if not args.quick:
        probed, found.probes = run_probes(scorer, pairs, args.probed)
        found.checks += probed + run_adversarial(scorer, args.adversarial)
    add_strips(scorer, found)
    with_tools = sum(tools is not None for tools in table["tools"])
    if with_tools:
        found.not_measured.append(
            f"Probes, integrity and strips read {with_tools:,} pairs without their tools."
        )

    # ----------------------------------------------------------------------------------------------- beside others
    if away:
        lost = away[1].as_dict()["test"]
        away = source.score_pairs(scorer, away[0], "Scoring --ood", human_labels=False)
        found.checks += spillover_checks(pairs, away, args.ood)
        if lost["kept"] < lost["read"]:
            why = "; ".join(f"{n:,} {reason}" for reason, n in lost["dropped"].items())
            said = f"{lost['read'] - lost['kept']:,} of {lost['read']:,} pairs of --ood were left out: {why}."
            found.not_measured.append(said)
    else:
        found.not_measured.append("Spillover: no other data (--ood).")
    if args.compare:
        if theirs is None:
            other = Scorer(args.compare, args.token_budget, distributed=True, **trust)
            theirs = source.score_pairs(
                other, table, "Scoring --compare", ids=source.ids_for(other, table)
            )
        found.checks += compare_checks(pairs, matched(pairs, theirs, args.compare), args.compare)
    if anchor is not None:
        found.checks += anchor
    else:
        found.not_measured.append(
            "Whether a policy shares this model's base (its KL anchor): no --policy."
        )
    return found


def summary(
    pairs: Pairs, identity: dict, bradley_terry: bool | None, train: Pairs | None = None
) -> Audit:
    """What scored pairs show without the model."""
    known = pairs.finite()
    found = Audit(pairs, run_checks(pairs, train=train, bradley_terry=bradley_terry), identity)
    found.checks += label_checks(pairs)
    found.worst = worst_errors(known)
    found.top, found.bottom = top_and_bottom(known)
    found.by_length = accuracy_curve(known.margins, known.length_differences)
    if len(known):
        found.baselines = accuracy.baselines(known)
    margins, votes = calibration_data(known)
    if bradley_terry is not False:
        found.reliability = calibration.reliability(margins, votes) or []
    if bradley_terry:
        gain = calibration.temperature_on_folds(margins, votes)
        if gain is not None:
            found.temperature = gain.temperature
    identity |= {"date": time.strftime("%Y-%m-%d")}
    return found


def read_completions(path: str | None):
    """The scored completions of a file, several a prompt; None without a file. Raises DataError where it holds none."""
    completions = read_scores(path).completions if path else None
    if path and completions is None:
        raise DataError(
            f"{path}: no scored completions; rows of prompt, completion, reward (and gold, rating) are needed"
        )
    return completions


def add_completions(found: Audit, completions) -> None:
    """Best-of-n and human ratings of scored completions (auditing.scores.Completions); None: they were not measured."""
    if completions is None:
        found.not_measured.append(
            "Best-of-n and human ratings: no --completions with several scored answers a prompt."
        )
        return
    found.best_of_n = best_of_n_curve(completions)
    found.checks += best_of_n_checks(completions)
    if completions.rating is not None:
        found.checks += rating_checks(completions)
    if completions.gold is None:
        found.not_measured.append(
            "Best-of-n by a gold reward: the completions carry no column `gold`."
        )
    if not found.best_of_n:
        found.not_measured.append(
            "Best-of-n: too few prompts of --completions have two completions with a reward."
        )
    for name, values in (("reward", completions.reward), ("gold", completions.gold)):
        missing = 0 if values is None else int(np.sum(~np.isfinite(values)))
        if missing:
            found.not_measured.append(
                f"{missing:,} of {len(values):,} completions have no {name} and were left out."
            )


def settle(found: Audit) -> None:
    """The false-discovery control over all checks; then the verdicts are final."""
    found.checks = control_false_discoveries(found.checks)


def add_strips(scorer, found: Audit) -> None:
    """The reward after each token, for the first few of each list."""
    for item in found.worst[:STRIPS]:
        item.chosen_strip = strip(scorer, item.prompt, item.chosen)
        item.rejected_strip = strip(scorer, item.prompt, item.rejected)
    for item in found.top[:STRIPS]:
        item.strip = strip(scorer, item.prompt, item.completion)


def strip(scorer, prompt, completion) -> Strip | None:
    """None also where the prompt had to be cut: the strip would be of another text than the reward."""
    encoded = scorer.encode(prompt, [completion])
    if encoded.ids[0] is None or encoded.prompt_cut:
        return None
    return scorer.rewards_by_token(prompt, completion)


def pairs_of(path: str) -> Pairs:
    pairs = read_scores(path).pairs
    if pairs is None:
        raise DataError(
            f"{path}: scored completions without pairs; scored preference pairs are needed here"
        )
    return pairs


def matched(ours: Pairs, theirs: Pairs, name: str) -> Pairs:
    """Theirs, if they are the same pairs in the same order. Raises DataError."""
    differ = abs(len(ours) - len(theirs))
    if not differ:  # a file of scores holds no more of a text than the audit kept
        ours_long, theirs_long = (
            np.minimum(pairs.characters, LONGEST_TEXT) for pairs in (ours, theirs)
        )
        differ = int(np.sum(np.any(ours_long != theirs_long, axis=0)))
    if differ:
        raise DataError(
            f"{name}: other pairs than the audited ones ({differ:,} differ); a comparison needs the same pairs in the same "
            "order: score the audit's own scores.jsonl with the other model"
        )
    return theirs


def named(path: str, data_dir: str | None, split: str) -> Source:
    """A source as a recipe's `datasets:` names it."""
    return {
        "path": path,
        "data_dir": data_dir,
        "split": None,
        "test_split": path if Path(path).is_file() else split,
    }


def identity_of(args, scorer, sources, counts: dict, n: int) -> dict[str, str]:
    """What was audited, on what, with what: printed with the report."""
    from reward.checkpoint.manifest import versions

    manifest = scorer.manifest
    lost = "; ".join(
        f"{n:,} {reason}" for kind in ("dropped", "truncated") for reason, n in counts[kind].items()
    )
    known = {
        "model": args.ckpt,
        "base model": manifest.get("base_model"),
        "base revision": manifest.get("base_revision"),
        "trained on": ", ".join(manifest.get("data", [])),
        "audited on": ", ".join(
            " ".join(str(s[k]) for k in ("path", "name", "data_dir") if s.get(k)) for s in sources
        ),
        "split": args.split if args.data else None,
        "revision": args.revision if args.revision != "main" else None,
        "pairs": f"{n:,} of {counts['read']:,} read" + (f" ({lost})" if lost else ""),
        "device and dtype": f"{scorer.model.device}, {str(scorer.model.dtype).removeprefix('torch.')}",
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
    return {key: str(value) for key, value in known.items() if value}


def run_checks(
    pairs: Pairs, *, train: Pairs | None = None, bradley_terry: bool | None = None
) -> list[Check]:
    """Everything that the rewards of labelled pairs show. `train`: scored pairs that the model was trained on. `bradley_terry`:
    whether sigmoid(margin) claims to be a probability; None where nobody says."""
    if not len(pairs):
        raise ValueError("no pairs to audit: at least one scored pair is needed")
    known = pairs.finite()
    accuracy = [
        *accuracy_checks(known, train),
        *distribution_checks(pairs, known),
        *length_checks(known),
    ]
    return [*accuracy, *calibration_checks(known, bradley_terry)]
