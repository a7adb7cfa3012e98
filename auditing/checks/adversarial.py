"""Adversarial pairs: does the model prefer a plain right answer to a polished wrong one?

checks = run_adversarial(scorer)  # the bundled pairs, adversarial.jsonl
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from auditing import stats
from auditing.checks.probes import FEWEST, SECTION, SIDES, share_if_enough
from auditing.pairs import nan_for_none
from auditing.verdicts import Check, Finding, joined, judge
from reward.data.bad_rows import UnreadableRow, one_of_few
from reward.data.files import DataError
from reward.data.formats import PreferencePair, RowError, to_pairs
from reward.data.row_files import read_rows
from reward.data.shown import count
from reward.data.transcripts import text_of
from reward.model.scorer import Scorer

ADVERSARIAL = Path(__file__).with_name("adversarial.jsonl")


@dataclass
class AdversarialPairs:
    """The pairs of a preference file that have a better and a worse side."""

    pairs: list[PreferencePair] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # how many pairs, by reason


def run_adversarial(scorer: Scorer, path: str | None = None) -> list[Check]:
    """Check the accuracy on pairs that were made to fool reward models, overall and by subset.

    Args:
        scorer: The model; only its `rewards` is used.
        path: The user's own preference file; None for the bundled pairs.

    Raises:
        DataError: The file cannot be read, or holds no pair with a right answer.
    """
    adversarial = adversarial_pairs(path or str(ADVERSARIAL))
    margins = margins_of(scorer, adversarial.pairs)
    scored = np.isfinite(margins)
    left_out = adversarial.left_out + Counter({"without a finite reward": int(np.sum(~scored))})

    notes = [path or "the bundled pairs"]
    for reason, n in left_out.items():
        notes.append(f"{n:,} left out: {reason}")

    texts = [text_of(pair["prompt"]) for pair in adversarial.pairs]
    _, prompts = np.unique(texts, return_inverse=True)
    checks = [adversarial_check(margins[scored], prompts[scored], None, joined(*notes))]
    labels = np.array([pair["subset"] or "all" for pair in adversarial.pairs], dtype=object)
    subsets = list(dict.fromkeys(labels))
    if len(subsets) > 1:
        for subset in subsets:
            mask = scored & (labels == subset)
            checks.append(adversarial_check(margins[mask], prompts[mask], subset))
    return checks


def margins_of(scorer: Scorer, pairs: list[PreferencePair]) -> np.ndarray:
    """The margin of each pair, (pairs,); NaN if one of its sides has no reward."""
    texts = [(pair["prompt"], pair[side]) for pair in pairs for side in SIDES]
    rewards = [nan_for_none(reward) for reward in scorer.rewards(texts)]
    chosen, rejected = np.array(rewards).reshape(-1, 2).T
    return chosen - rejected


def adversarial_check(
    margins: np.ndarray, prompts: np.ndarray, subset: str | None, note: str = ""
) -> Check:
    """Check the accuracy on some of the pairs.

    Args:
        margins: (n,) reward(chosen) - reward(rejected), all finite.
        prompts: (n,) the prompt of each pair.
        subset: The name of the subset; None if these are all pairs.
        note: What the report says beside the number.
    """
    n = len(margins)
    detectable = None
    if n:
        detectable = stats.detectable_accuracy(n, 0.5)
    finding = Finding(
        "adversarial accuracy",
        share_if_enough(stats.pair_credit(margins), prompts),
        n,
        SECTION,
        subset=subset,
        detectable=detectable,
        note=note,
        unmeasured=f"{count(n, 'pair')}; {FEWEST} are needed",
    )
    return judge(finding)


def adversarial_pairs(path: str, on_bad_row: str = "skip") -> AdversarialPairs:
    """Read a preference file in any format of reward.data.formats.

    Args:
        path: The file.
        on_bad_row: Whether to `skip` and count a row that cannot be read, or to `stop`.

    Raises:
        DataError: The file cannot be read, or holds no pair with a right answer.
    """
    adversarial = AdversarialPairs()
    first_error: DataError | None = None
    for place, row in read_rows(path):
        pairs = pairs_of_row(row)
        if isinstance(pairs, UnreadableRow):
            first_error = first_error or DataError(f"{place}: {pairs}")
            if pairs.ends_file:
                raise DataError(f"{place}: {pairs}")
            if on_bad_row == "stop":
                raise first_error
            adversarial.left_out[one_of_few(pairs.reason, adversarial.left_out)] += 1
            continue
        for pair in pairs:
            reason = pair["drop"]
            if not reason and pair.get("chosen_probability") == 0.5:
                reason = "a tie"
            if reason:
                adversarial.left_out[reason] += 1
            else:
                adversarial.pairs.append(pair)
    if not adversarial.pairs and first_error is not None:
        raise first_error
    if not adversarial.pairs:
        reasons = [f"{n:,} {reason}" for reason, n in adversarial.left_out.items()]
        in_words = joined(*reasons) or "no rows"
        raise DataError(
            f"{path}: no pair with a better and a worse side ({in_words}); at least one is needed"
        )
    return adversarial


def pairs_of_row(row: dict | UnreadableRow) -> list[PreferencePair] | UnreadableRow:
    """The canonical pairs of one row, or why it cannot be read."""
    if isinstance(row, UnreadableRow):
        return row
    try:
        return to_pairs(row)
    except RowError as error:
        return UnreadableRow.of(error)
