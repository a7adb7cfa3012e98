"""Pairs whose rejected side is a good answer to another prompt."""

import json

import numpy as np
from accelerate import PartialState
from datasets import Dataset

from reward.data.hashing import MISMATCH_SALT, hash_fraction, text_key
from reward.data.sources import FEATURES, LABELS, cache_key
from reward.data.transcripts import text_of


def mismatched_pairs(train: Dataset, fraction: float) -> Dataset:
    """Make new pairs: a train pair's prompt and chosen side, against another pair's chosen side.

    A good answer to another question is a bad answer to this one, whatever its length and style:
    Liu et al. 2024 (RRM), arXiv 2409.13156, sec. 3. A hash decides which pairs get a new rejected
    side, and from which pair they take it. A new pair keeps the subset of its prompt, and has no
    labels.

    Args:
        train: The train pairs.
        fraction: How many new pairs to make, as a share of the train pairs. There are fewer if the
            data has only a handful of first user turns, or where two prompts have the same answer.
    """
    taker, donor = _takers_and_donors(train, fraction)
    chosen_of_donor = {"train": train, "donor": donor}
    with PartialState().local_main_process_first():
        made = train.select(taker).map(
            _exchange_rejected,
            with_indices=True,
            fn_kwargs=chosen_of_donor,
            features=FEATURES,
            new_fingerprint=cache_key(train._fingerprint, fraction),
        )
    columns = made.with_format("numpy")
    # The keys are equal if both sides are, as when two prompts have the same good answer.
    sides_differ = columns["pair_key"][:] != columns["swap_key"][:]
    return made.select(np.flatnonzero(sides_differ))


def _takers_and_donors(train: Dataset, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """The row that each new pair is made of, and the row whose chosen side it takes."""
    columns = train.with_format("numpy")
    turn_key = columns["turn_key"][:]
    order = np.argsort(hash_fraction(columns["pair_key"][:], MISMATCH_SALT), kind="stable")
    count = round(fraction * len(order))
    taker = order[:count]
    # If the first donor answers the same first user turn, one other donor is tried.
    donor = np.roll(order, 1)[:count]
    other_donor = np.roll(order, len(order) // 2)[:count]
    same_turn = turn_key[taker] == turn_key[donor]
    donor[same_turn] = other_donor[same_turn]
    turns_differ = turn_key[taker] != turn_key[donor]
    return taker[turns_differ], donor[turns_differ]


def _exchange_rejected(row: dict, index: int, train: Dataset, donor: np.ndarray) -> dict:
    """The columns in which a new pair differs from the row that it is made of.

    Args:
        row: The row.
        index: Its place among the new pairs.
        train: The train pairs.
        donor: For each new pair, the row of `train` whose chosen side it takes.
    """
    rejected = train[int(donor[index])]["chosen"]
    # Under `transcript: raw` one side may be a string and the other one messages, which cannot form
    # a pair. Both sides are JSON, so their first characters differ then. Such a pair gets two equal
    # sides here, and mismatched_pairs leaves it out.
    if rejected[0] != row["chosen"][0]:
        rejected = row["chosen"]
    prompt_text = text_of(json.loads(row["prompt"]))
    chosen_text = text_of(json.loads(row["chosen"]))
    rejected_text = text_of(json.loads(rejected))
    return {
        "rejected": rejected,
        "pair_key": text_key(prompt_text, chosen_text, rejected_text),
        "swap_key": text_key(prompt_text, rejected_text, chosen_text),
        "ranking": text_key(prompt_text, chosen_text, rejected_text, "mismatched prompt"),
        "votes": None,
        **dict.fromkeys(LABELS),
    }
