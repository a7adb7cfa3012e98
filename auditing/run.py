"""One audit of a file of scores, from start to end: `audit_scores`. No torch.

The audit of a model, auditing.run_checkpoint, makes all of these checks and more.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from auditing.benchmarks import Benchmark, benchmark_checks
from auditing.checks import accuracy, calibration
from auditing.checks.accuracy import accuracy_checks
from auditing.checks.best_of_n import best_of_n_checks, best_of_n_curve
from auditing.checks.calibration import calibration_checks, calibration_data
from auditing.checks.collapse import collapse_checks
from auditing.checks.comparison import compare_checks, rank_models, short_names
from auditing.checks.distribution import distribution_checks
from auditing.checks.labels import label_checks, top_and_bottom, worst_errors
from auditing.checks.length import accuracy_curve, length_checks
from auditing.checks.transfer import rating_checks, spillover_checks
from auditing.pairs import Pairs
from auditing.result import Audit
from auditing.scores import Completions, Scores, has_columns, read_scores
from auditing.verdicts import Check, control_false_discoveries
from reward.data.files import DataError
from reward.data.shown import count

NO_OTHER_DATA = "Spillover: no other data (--ood)."


def audit_scores(
    path: str,
    ood: str | None = None,
    compare: Sequence[str] = (),
    columns: dict[str, str] | None = None,
    on_bad_row: str = "skip",
    bradley_terry: bool = False,
) -> Audit:
    """Audit a file of scores.

    Args:
        path: The file, in any format of auditing.scores.
        ood: A file of scores on other data, to see whether the accuracy is as high there.
        compare: Files of other models' scores on the same pairs.
        columns: Our name of each column that `path` names otherwise -> its name there. A file of
            `compare` may have them too.
        on_bad_row: Whether to `skip` and count a row of any file that cannot be read, or to `stop`.
        bradley_terry: Whether sigmoid(margin) claims to be a probability. If it is False, nobody
            knows, because a file of scores does not say.

    Raises:
        DataError: A file cannot be read as scored pairs, or one of `compare` holds other pairs.
    """
    scores = read_scores(path, columns, on_bad_row)
    if scores.pairs is None:
        raise DataError(
            f"{path}: scored completions without pairs; an audit needs preference pairs, "
            f"and takes these beside them: --completions {path}"
        )
    identity = {"scores": path, "format": scores.kind}
    if scores.noted:
        identity["noted"] = "; ".join(scores.noted)
    audit = summary(scores.pairs, identity, bradley_terry or None, unreadable=scores.unreadable)
    add_benchmark(audit, scores.benchmark)
    audit.not_measured += scores.not_measured
    if ood:
        other_data = scored_pairs_of(ood, on_bad_row=on_bad_row)
        audit.checks += spillover_checks(scores.pairs, other_data.pairs, Path(ood).name)
        for phrase in other_data.left_out:
            audit.not_measured.append(f"Of --ood {phrase}.")
    others = {}
    for other in compare:
        others[other] = scored_pairs_of(other, columns, on_bad_row).pairs
    add_comparison(audit, path, others)
    audit.not_measured.append(
        "Probes, integrity, leakage and train accuracy need the model: audit.py --ckpt."
    )
    if not ood:
        audit.not_measured.append(NO_OTHER_DATA)
    return audit


# --- What scored pairs show -----------------------------------------------------------------------


def summary(
    pairs: Pairs,
    identity: dict[str, str],
    bradley_terry: bool | None,
    train: Pairs | None = None,
    unreadable: int = 0,
) -> Audit:
    """Make the part of an audit that needs only scored pairs, not the model.

    Args:
        pairs: The audited pairs, at least one.
        identity: The lines at the top of the report, to which the date is added.
        bradley_terry: Whether sigmoid(margin) claims to be a probability; None if nobody knows.
        train: Scored pairs that the model was trained on; None if there are none.
        unreadable: How many more rows could not be read.
    """
    finite = pairs.finite()
    checks = run_checks(pairs, train=train, bradley_terry=bradley_terry, unreadable=unreadable)
    audit = Audit(pairs, checks + label_checks(pairs), identity)
    audit.worst = worst_errors(finite)
    audit.top, audit.bottom = top_and_bottom(finite)
    audit.by_length = accuracy_curve(finite.margins, finite.length_differences, finite.prompt)
    if len(finite):
        audit.baselines = accuracy.baselines(finite)
    data = calibration_data(finite)
    if bradley_terry is not False:
        audit.reliability = calibration.reliability(*data)
    if bradley_terry:
        gain = calibration.temperature_on_folds(*data)
        if gain is not None:
            audit.temperature = gain.published
    if pairs.texts is not None:
        without_prompt = int(np.sum(pairs.texts[0] == 0))
        if without_prompt:
            audit.not_measured.append(
                f"Whether answers fit their prompts: {without_prompt:,} of "
                f"{count(len(pairs), 'pair')} have no prompt."
            )
    identity["date"] = time.strftime("%Y-%m-%d")
    return audit


def run_checks(
    pairs: Pairs,
    *,
    train: Pairs | None = None,
    bradley_terry: bool | None = None,
    unreadable: int = 0,
) -> list[Check]:
    """Make all checks that need only rewards and labels, in the order of the report.

    Args:
        pairs: The audited pairs.
        train: Scored pairs that the model was trained on; None if there are none.
        bradley_terry: Whether sigmoid(margin) claims to be a probability; None if nobody knows.
        unreadable: How many more rows could not be read.

    Raises:
        ValueError: There are no pairs.
    """
    if not len(pairs):
        raise ValueError("no pairs to audit: at least one scored pair is needed")
    finite = pairs.finite()
    checks = accuracy_checks(finite, train)
    if len(finite):
        checks += collapse_checks(finite)
    return [
        *checks,
        *distribution_checks(pairs, finite, unreadable),
        *length_checks(finite),
        *calibration_checks(finite, bradley_terry),
    ]


def settle(audit: Audit) -> None:
    """Make the verdicts final: control false discoveries over all checks."""
    audit.checks = control_false_discoveries(audit.checks)


def add_comparison(audit: Audit, ours: str, others: dict[str, Pairs]) -> None:
    """Add the comparison with other models on the same pairs.

    Args:
        audit: The audit, which holds the pairs.
        ours: The path or Hub id of the audited model or of its scores.
        others: The path or Hub id of each other model or of its scores -> the pairs it scored.

    Raises:
        DataError: Another model scored other pairs.
    """
    if not others:
        return
    names = short_names([ours, *others])
    models = {names[0]: audit.pairs}
    for name, (path, theirs) in zip(names[1:], others.items(), strict=True):
        models[name] = matched(audit.pairs, theirs, path)
    audit.checks += compare_checks(models)
    audit.ranking = rank_models(models)


def add_benchmark(audit: Audit, benchmark: Benchmark | None) -> None:
    """Put a benchmark's numbers before all checks; without a benchmark nothing changes."""
    audit.checks = benchmark_checks(benchmark) + audit.checks
    if benchmark is not None:
        audit.style_matrix = benchmark.style_matrix


# --- Scored completions ---------------------------------------------------------------------------


def read_completions(path: str | None, on_bad_row: str = "skip") -> Completions | None:
    """Read a file of scored completions, several per prompt; None without a file.

    Args:
        path: The file.
        on_bad_row: Whether to `skip` and count a row that cannot be read, or to `stop`.

    Raises:
        DataError: The file cannot be read, or holds no scored completions.
    """
    if not path:
        return None
    completions = read_scores(path, on_bad_row=on_bad_row).completions
    if completions is None:
        raise DataError(
            f"{path}: no scored completions; "
            "rows of prompt, completion, reward (and gold, rating) are needed"
        )
    return completions


def add_completions(audit: Audit, completions: Completions | None) -> None:
    """Add best-of-n and human ratings; without completions, say that they were not measured."""
    if completions is None:
        audit.not_measured.append(
            "Best-of-n and human ratings: no --completions with several scored answers a prompt."
        )
        return
    audit.best_of_n = best_of_n_curve(completions)
    audit.checks += best_of_n_checks(completions)
    if completions.rating is not None:
        audit.checks += rating_checks(completions)
    if completions.gold is None:
        audit.not_measured.append(
            "Best-of-n by a gold reward: the completions carry no column `gold`."
        )
    if not audit.best_of_n:
        audit.not_measured.append(
            "Best-of-n: too few prompts of --completions have two completions with a reward."
        )
    for phrase in completions.left_out:
        audit.not_measured.append(f"Of --completions {phrase}.")
    note_missing(audit, "reward", completions.reward)
    if completions.gold is not None:
        note_missing(audit, "gold", completions.gold)


def note_missing(audit: Audit, name: str, values: np.ndarray) -> None:
    """Say how many completions lack a number, if some do."""
    missing = int(np.sum(~np.isfinite(values)))
    if missing:
        audit.not_measured.append(
            f"{missing:,} of {len(values):,} completions have no {name} and were left out."
        )


# --- Files of scores ------------------------------------------------------------------------------


def scored_pairs_of(
    path: str, columns: dict[str, str] | None = None, on_bad_row: str = "skip"
) -> Scores:
    """Read a file of scored preference pairs.

    Args:
        path: The file.
        columns: Our name of each column of the audited pairs -> its name there. They are used if
            this file has one of them: it may be the same file, scored by another model, or the
            scores.jsonl of an audit, which has our names.
        on_bad_row: Whether to `skip` and count a row that cannot be read, or to `stop`.

    Raises:
        DataError: The file cannot be read, or holds no preference pairs.
    """
    if columns and not has_columns(path, columns):
        columns = None
    scores = read_scores(path, columns, on_bad_row)
    if scores.pairs is None:
        raise DataError(
            f"{path}: scored completions without pairs; scored preference pairs are needed here"
        )
    return scores


def matched(ours: Pairs, theirs: Pairs, name: str) -> Pairs:
    """Return the pairs of another model if they are the audited pairs in the same order.

    Pairs are compared by their texts, up to LONGEST_TEXT, because a file of scores may hold no more
    of a text. A prompt that one of the two does not know is not compared.

    Args:
        ours: The audited pairs.
        theirs: The pairs that another model scored.
        name: The name of the other model or of its file.

    Raises:
        DataError: These are other pairs.
    """
    differ = abs(len(ours) - len(theirs))
    if not differ:
        unequal = ours.texts != theirs.texts
        unequal[0] &= (ours.texts[0] != 0) & (theirs.texts[0] != 0)
        differ = int(np.sum(unequal.any(axis=0)))
    if differ:
        raise DataError(
            f"{name}: other pairs than the audited ones ({differ:,} differ); "
            "a comparison needs the same pairs in the same order: "
            "score the audit's own scores.jsonl with the other model"
        )
    return theirs
