"""Splits of sources that are streamed: each row is judged when it arrives, and nothing is stored.

Validation pairs come from the first rows alone. The train split is an iterator, which counts its
pairs in the ledger as it goes.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from reward.data.files import DataError, Source
from reward.data.hashing import VALIDATION_SALT, hash_fraction
from reward.data.ledger import (
    DUPLICATE,
    NO_RIGHT_SIDE,
    TURN_IN_TEST,
    TURN_IN_VALIDATION,
    Ledger,
    raters_disagree,
    too_little_agreement,
)
from reward.data.sources import FEATURES, SplitReader, no_train_split, split_reader

CHECKED_EVERY = 1_000  # after so many rows it is checked whether too many were dropped
STREAM_HELD_OUT = 10_000  # validation pairs come from this many first rows


class StreamedPair(NamedTuple):
    """A row of a stream, and what becomes of it."""

    row: dict  # with the columns of FEATURES
    drop: str  # why it is dropped; "" if it is kept
    is_validation: bool


class StreamedTrainPair(NamedTuple):
    """A train pair of a stream."""

    row: dict  # with the columns of FEATURES
    is_new: bool  # False if the ledger has counted it already, as in a second epoch


@dataclass
class Stream:
    """Every row of the sources, one source after another. It can be read again and again."""

    readers: list[SplitReader]
    test_turns: set[int]  # the turn_key of every test pair
    validation_fraction: float
    min_rater_agreement: float | None

    def __iter__(self) -> Iterator[StreamedPair]:
        seen: set[int] = set()  # pair_key
        rows = itertools.chain.from_iterable(reader.pairs() for reader in self.readers)
        for position, row in enumerate(rows):
            is_validation = position < STREAM_HELD_OUT and self._is_held_out(row)
            drop = self._why_dropped(row, is_validation, is_repeated=row["pair_key"] in seen)
            seen.add(row["pair_key"])
            yield StreamedPair(row, drop, is_validation)

    def validation(self) -> list[StreamedPair]:
        """The validation pairs, including those that are dropped."""
        first = itertools.islice(self, STREAM_HELD_OUT)
        return [pair for pair in first if pair.is_validation]

    def _is_held_out(self, row: dict) -> bool:
        turn_key = np.array([row["turn_key"]], dtype=np.int64)
        return hash_fraction(turn_key, VALIDATION_SALT)[0] < self.validation_fraction

    def _why_dropped(self, row: dict, is_validation: bool, is_repeated: bool) -> str:
        """The first reason to drop a pair, in the order of reward.data.splits; "" to keep it."""
        if row["drop"]:
            return row["drop"]
        if row["turn_key"] in self.test_turns:
            return TURN_IN_TEST
        if is_repeated:
            return DUPLICATE
        probability = row["chosen_probability"]
        if is_validation:
            if probability == 0.5:
                return NO_RIGHT_SIDE
        elif self.min_rater_agreement and probability is not None:
            if raters_disagree(probability, self.min_rater_agreement):
                return too_little_agreement(self.min_rater_agreement)
        return ""


@dataclass
class StreamedTrain:
    """The train pairs of a stream. Iterating over them counts each in the ledger once."""

    stream: Stream
    validation_turns: set[int]  # the turn_key of every validation pair
    ledger: Ledger
    max_dropped: float = 1.0  # the largest share of the pairs read so far that may be dropped
    counted: int = 0  # how many rows of the stream the ledger has counted

    def __iter__(self) -> Iterator[StreamedTrainPair]:
        for position, (row, drop, is_validation) in enumerate(self.stream):
            if is_validation:
                continue  # it is counted there
            if row["turn_key"] in self.validation_turns:
                drop = drop or TURN_IN_VALIDATION
            is_new = position >= self.counted
            if is_new:
                self.counted = position + 1
                self._count(row, drop)
                if self.counted % CHECKED_EVERY == 0:
                    self.ledger.check_so_far("train", self.max_dropped)
            if not drop:
                yield StreamedTrainPair(row, is_new)

    def _count(self, row: dict, drop: str) -> None:
        self.ledger.add_read("train", [drop])
        self.ledger.add_places("train", {drop: row["where"]})
        self.ledger.note_unread("train", [row["unread"]])
        if not drop:
            _note_doubtful_labels(self.ledger, "train", [row])


def streamed_splits(
    sources: list[Source],
    transcript: str,
    test: Dataset,
    ledger: Ledger,
    *,
    validation_fraction: float,
    min_rater_agreement: float | None,
    on_bad_row: str,
    max_dropped: float,
) -> dict[str, Dataset | StreamedTrain]:
    """Make the train and validation splits of streams, beside a test split that is ready.

    Args:
        sources: The sources, whose train splits are read as streams.
        transcript: `messages` or `raw`.
        test: The table of the test split.
        ledger: Counts the validation split now, and the train split while it is read.
        validation_fraction: The share of first user turns that is held out for validation.
        min_rater_agreement: As in reward.data.splits.load_preferences.
        on_bad_row: As there.
        max_dropped: As there.

    Raises:
        DataError: A source has no train split, or sets `fraction`.
    """
    readers = []
    for source in sources:
        reader = split_reader(source, source["split"], transcript, on_bad_row)
        if reader is None:
            raise no_train_split(source)
        if source.get("fraction"):
            raise DataError(
                "`fraction` needs the number of rows, which a stream does not tell; remove it or "
                "streaming"
            )
        readers.append(reader)
    stream = Stream(readers, set(test["turn_key"][:]), validation_fraction, min_rater_agreement)
    held_out = stream.validation()
    validation_turns = {pair.row["turn_key"] for pair in held_out}
    splits = {"test": test, "train": StreamedTrain(stream, validation_turns, ledger, max_dropped)}
    if validation_fraction:
        ledger.add_read("validation", [pair.drop for pair in held_out])
        for pair in held_out:
            ledger.add_places("validation", {pair.drop: pair.row["where"]})
        ledger.note_unread("validation", [pair.row["unread"] for pair in held_out])
        kept = [pair.row for pair in held_out if not pair.drop]
        validation = Dataset.from_list(kept, features=FEATURES)
        _note_doubtful_labels(ledger, "validation", kept)
        splits["validation"] = validation
    return splits


def _note_doubtful_labels(ledger: Ledger, split: str, rows: list[dict]) -> None:
    """Count the rows whose labels prefer no side, or the rejected one."""
    columns = ("chosen_probability", "rating_chosen", "rating_rejected")
    labels = {name: np.array([row[name] for row in rows], dtype=float) for name in columns}
    rating_margin = labels["rating_chosen"] - labels["rating_rejected"]
    ledger.note_doubtful_labels(split, labels["chosen_probability"], rating_margin)
