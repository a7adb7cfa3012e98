"""Any preference source -> disjoint splits of canonical pairs, and a ledger of what was dropped.

    splits, ledger = load_preferences(recipe.data_sources(), validation_fraction=0.1)

`python train_rm.py --recipe R --check-data` prints the ledger and stops. Every pair that is read
becomes a row of an Arrow table on disk, which may be larger than memory. A pair that is dropped
stays in that table: its column `drop` holds the reason, and the ledger counts the reasons. No first
user turn is in two splits, because a hash of the turn decides the split (reward.data.hashing).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets

from reward.data.files import DataError, Source
from reward.data.hashing import TEST_SALT, VALIDATION_SALT, hash_fraction
from reward.data.ledger import (
    DUPLICATE,
    NO_RIGHT_SIDE,
    TURN_IN_TEST,
    Ledger,
    first_places,
    raters_disagree,
    too_little_agreement,
)
from reward.data.mismatched import mismatched_pairs
from reward.data.sources import no_train_split, split_table
from reward.data.streaming import StreamedTrain, streamed_splits

CONTRADICTORY = "contradictory labels (the same pair the other way round)"
MISMATCHED = "mismatched prompt (the rejected side is chosen for another prompt)"


class PreferenceSplits(NamedTuple):
    """What load_preferences returns."""

    tables: dict[str, Dataset | StreamedTrain]  # by name: train, validation, test
    ledger: Ledger  # what became of every pair that was read


def load_preferences(
    sources: list[Source],
    transcript: str = "messages",
    *,
    validation_fraction: float = 0.1,
    test_fraction: float | None = None,
    min_rater_agreement: float | None = None,
    mismatched_prompts: float = 0.0,
    on_bad_row: str = "skip",
    max_dropped: float = 1.0,
) -> PreferenceSplits:
    """Read every source and split it.

    A source's own test split is used if it has one; otherwise `test_fraction` of its first user
    turns becomes the test split. The train split of a streaming source is read while training runs
    (reward.data.streaming).

    Args:
        sources: The sources, whose pairs are taken together.
        transcript: `messages` or `raw`, see reward.data.formats.to_pairs.
        validation_fraction: The share of the remaining first user turns that is held out for
            validation. With 0 there is no validation split.
        test_fraction: The share of first user turns that becomes the test split of a source that
            has none of its own.
        min_rater_agreement: A train pair is dropped if a smaller share of its raters agree.
        mismatched_prompts: How many pairs with a mismatched prompt to add to train, as a share of
            the train pairs (reward.data.mismatched).
        on_bad_row: Whether to `skip` and count a row that cannot be read, or to `stop` there.
        max_dropped: A stream that drops a larger share raises DataError while it is read.

    Raises:
        DataError: A source cannot be read, or has no split that is needed.
    """
    test_tables = _test_tables(sources, transcript, test_fraction, on_bad_row)
    test, ledger = _join_test_tables(test_tables)
    if any(source.get("streaming") for source in sources):
        splits = streamed_splits(
            sources,
            transcript,
            test,
            ledger,
            validation_fraction=validation_fraction,
            min_rater_agreement=min_rater_agreement,
            on_bad_row=on_bad_row,
            max_dropped=max_dropped,
        )
        return PreferenceSplits(splits, ledger)

    pairs = _read_train_pairs(sources, transcript, on_bad_row)
    _leave_out_test_pairs(pairs, test_tables, test_fraction)
    _leave_out_beyond_mixture(pairs, [source.get("fraction") for source in sources])
    _drop_turns_of_test(pairs, test)
    _drop_duplicates(pairs)
    is_contradictory = _find_contradictory(pairs)
    is_validation = _find_validation(pairs, validation_fraction)
    _drop_ties_of_validation(pairs, is_validation)
    if min_rater_agreement:
        _drop_disagreements(pairs, is_validation, min_rater_agreement)

    is_train = pairs.is_used & ~is_validation
    splits = {"test": test, "train": _take_kept(pairs, is_train)}
    _count_split(pairs, is_train, is_contradictory, ledger, "train")
    if validation_fraction:
        splits["validation"] = _take_kept(pairs, is_validation)
        _count_split(pairs, is_validation, is_contradictory, ledger, "validation")
    if mismatched_prompts:
        added = mismatched_pairs(splits["train"], mismatched_prompts)
        splits["train"] = concatenate_datasets([splits["train"], added])
        ledger.add("train", "added", MISMATCHED, len(added))
    return PreferenceSplits(splits, ledger)


def load_test_split(
    sources: list[Source],
    transcript: str = "messages",
    test_fraction: float | None = None,
    on_bad_row: str = "skip",
) -> tuple[Dataset, Ledger]:
    """Read the test split alone.

    Args:
        sources: The sources, whose test pairs are taken together.
        transcript: `messages` or `raw`, see reward.data.formats.to_pairs.
        test_fraction: The share of first user turns that becomes the test split of a source that
            has none of its own.
        on_bad_row: As in load_preferences.

    Returns:
        The table of the test pairs, and the ledger of what was dropped from them.

    Raises:
        DataError: A source cannot be read, or has no test split.
    """
    return _join_test_tables(_test_tables(sources, transcript, test_fraction, on_bad_row))


# --- The test split -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TestTable:
    """The test pairs of one source."""

    table: Dataset
    is_carved: bool  # taken from the source's train split, because it has no test split


def _test_tables(
    sources: list[Source], transcript: str, test_fraction: float | None, on_bad_row: str
) -> list[_TestTable]:
    """The test pairs of every source."""
    # The main process makes the tables, and the other processes of the host read its cache.
    with PartialState().local_main_process_first():
        return [_test_table(source, transcript, test_fraction, on_bad_row) for source in sources]


def _test_table(
    source: Source, transcript: str, test_fraction: float | None, on_bad_row: str
) -> _TestTable:
    # Pairs that are trained on are no test pairs: a source that names one split for both needs a
    # test split that is carved from it.
    if source.get("test_split") != source["split"]:
        unstreamed = {**source, "streaming": False}
        table = split_table(unstreamed, source.get("test_split"), transcript, on_bad_row)
        if table is not None:
            return _TestTable(table, is_carved=False)
    if not test_fraction or source.get("streaming"):
        raise DataError(
            f"{source['path']}: no {source.get('test_split')!r} split, so there would be nothing "
            "to audit on. Name it (test_split in a datasets: entry, dataset_test_split otherwise), "
            "or set test_fraction: 0.1 (not for a stream, which cannot be read twice)."
        )
    train = _train_table(source, transcript, on_bad_row)
    turn_key = train.with_format("numpy")["turn_key"][:]
    carved = np.flatnonzero(_in_carved_test(turn_key, test_fraction))
    return _TestTable(train.select(carved), is_carved=True)


def _in_carved_test(turn_key: np.ndarray, test_fraction: float | None) -> np.ndarray:
    """Which pairs are carved out as the test split of a source that has none, (n,) bool."""
    return hash_fraction(turn_key, TEST_SALT) < (test_fraction or 0)


def _join_test_tables(test_tables: list[_TestTable]) -> tuple[Dataset, Ledger]:
    """Join the test pairs of all sources, and start the ledger with them.

    A tie is dropped, because neither side is right and accuracy could not count it. Exact
    duplicates are kept.
    """
    ledger = Ledger()
    table = concatenate_datasets([test.table for test in test_tables])
    drop = _drop_column(table)
    probability = _chosen_probability(table)
    _mark(drop, probability == 0.5, NO_RIGHT_SIDE)
    is_kept = drop == ""
    ledger.add_read("test", drop)
    ledger.add_places("test", first_places(table, drop))
    ledger.note_unread("test", table["unread"])
    ledger.note_doubtful_labels("test", probability[is_kept], _rating_margin(table)[is_kept])
    test = table.select(np.flatnonzero(is_kept))
    pair_key = test.with_format("numpy")["pair_key"][:]
    ledger.add("test", "noted", f"{DUPLICATE} (kept)", len(pair_key) - len(np.unique(pair_key)))
    return test, ledger


# --- The train pairs of all sources, step by step -------------------------------------------------


@dataclass
class _TrainPairs:
    """Every pair of the sources' train splits. The steps below mark what becomes of each pair."""

    table: Dataset
    sizes: list[int]  # how many pairs each source has, in their order in the table
    turn_key: np.ndarray  # (n,) int64
    pair_key: np.ndarray  # (n,) int64
    swap_key: np.ndarray  # (n,) int64
    chosen_probability: np.ndarray  # (n,) float64; NaN if a row does not say it
    rating_margin: np.ndarray  # (n,) float64; NaN if a row has no ratings
    is_used: np.ndarray  # (n,) bool; False for a pair that is in neither train nor validation
    drop: np.ndarray  # (n,) of str: the first reason to drop the pair; "" if there is none
    unread: np.ndarray  # (n,) of str: the columns of its row that were not read, with commas


def _read_train_pairs(sources: list[Source], transcript: str, on_bad_row: str) -> _TrainPairs:
    with PartialState().local_main_process_first():
        tables = [_train_table(source, transcript, on_bad_row) for source in sources]
    table = concatenate_datasets(tables)
    columns = table.with_format("numpy")
    return _TrainPairs(
        table=table,
        sizes=[len(source_table) for source_table in tables],
        turn_key=columns["turn_key"][:],
        pair_key=columns["pair_key"][:],
        swap_key=columns["swap_key"][:],
        chosen_probability=_chosen_probability(table),
        rating_margin=_rating_margin(table),
        is_used=np.ones(len(table), dtype=bool),
        drop=_drop_column(table),
        unread=np.array(table["unread"][:], dtype=object),
    )


def _train_table(source: Source, transcript: str, on_bad_row: str) -> Dataset:
    table = split_table(source, source["split"], transcript, on_bad_row)
    if table is None:
        raise no_train_split(source)
    return table


def _drop_column(table: Dataset) -> np.ndarray:
    return np.array(table["drop"][:], dtype=object)


def _chosen_probability(table: Dataset) -> np.ndarray:
    """The chosen probability of every pair, (n,); NaN where a row says nothing.

    It is float64, because in float32 7 votes of 10 are less than .7.
    """
    return table.with_format("numpy", dtype=float)["chosen_probability"][:]


def _rating_margin(table: Dataset) -> np.ndarray:
    """The rating of every chosen side minus that of the rejected one, (n,); NaN without ratings."""
    columns = table.with_format("numpy", dtype=float)
    return columns["rating_chosen"][:] - columns["rating_rejected"][:]


def _mark(drop: np.ndarray, mask: np.ndarray, reason: str) -> None:
    """Give every pair of the mask the reason, unless it has another one already."""
    drop[mask & (drop == "")] = reason


def _leave_out_test_pairs(
    pairs: _TrainPairs, test_tables: list[_TestTable], test_fraction: float | None
) -> None:
    """Leave out the pairs that were carved out as a test split. They are counted there."""
    source_is_carved = np.repeat([test.is_carved for test in test_tables], pairs.sizes)
    pairs.is_used &= ~(source_is_carved & _in_carved_test(pairs.turn_key, test_fraction))


def _leave_out_beyond_mixture(pairs: _TrainPairs, fractions: list[float | None]) -> None:
    """Leave out what TRL's mixture rule does not take, if the sources set `fraction`.

    The rule takes the first round(fraction * N) rows of each source. N is the largest number for
    which no source runs out of rows.
    """
    if not any(fractions):
        return
    if not all(fractions):
        raise DataError(
            "`fraction` is set for some entries of `datasets:` and not for others; set it for all "
            "or none"
        )
    weights = np.array(fractions) / sum(fractions)
    total = min(size / weight for size, weight in zip(pairs.sizes, weights, strict=True))
    is_taken = [
        np.arange(size) < round(weight * total)
        for size, weight in zip(pairs.sizes, weights, strict=True)
    ]
    pairs.is_used &= np.concatenate(is_taken)


def _drop_turns_of_test(pairs: _TrainPairs, test: Dataset) -> None:
    """Drop the pairs whose first user turn is in the test split of any source."""
    test_turns = test.with_format("numpy")["turn_key"][:]
    is_shared = np.isin(pairs.turn_key, test_turns)
    _mark(pairs.drop, is_shared & pairs.is_used, TURN_IN_TEST)


def _drop_duplicates(pairs: _TrainPairs) -> None:
    """Drop every pair that repeats the prompt, chosen and rejected text of an earlier pair."""
    usable = np.flatnonzero(pairs.is_used & (pairs.drop == ""))
    _, first = np.unique(pairs.pair_key[usable], return_index=True)
    is_repeated = np.ones(len(usable), dtype=bool)
    is_repeated[first] = False
    pairs.drop[usable[is_repeated]] = DUPLICATE


def _find_contradictory(pairs: _TrainPairs) -> np.ndarray:
    """Which pairs also exist with the sides exchanged, (n,) bool. They are kept and noted."""
    is_kept = pairs.is_used & (pairs.drop == "")
    return is_kept & np.isin(pairs.swap_key, pairs.pair_key[is_kept])


def _find_validation(pairs: _TrainPairs, validation_fraction: float) -> np.ndarray:
    """Which pairs are held out for validation, (n,) bool: a share of the first user turns."""
    is_held_out = hash_fraction(pairs.turn_key, VALIDATION_SALT) < validation_fraction
    return is_held_out & pairs.is_used


def _drop_ties_of_validation(pairs: _TrainPairs, is_validation: np.ndarray) -> None:
    """Drop the ties of the validation split: accuracy needs a right side. Train keeps its ties."""
    _mark(pairs.drop, (pairs.chosen_probability == 0.5) & is_validation, NO_RIGHT_SIDE)


def _drop_disagreements(pairs: _TrainPairs, is_validation: np.ndarray, minimum: float) -> None:
    """Drop the train pairs on which less than `minimum` of the raters agree.

    The validation split stays as it is, so that runs with and without the filter can be compared.
    """
    if np.isnan(pairs.chosen_probability[pairs.is_used]).all():
        raise DataError(
            "min_rater_agreement is set, but no row of the train data has votes or "
            "chosen_probability; remove the key, or add a column `votes` ([for chosen, for "
            "rejected]) to the rows"
        )
    disagree = raters_disagree(pairs.chosen_probability, minimum)
    is_train = pairs.is_used & ~is_validation
    _mark(pairs.drop, disagree & is_train, too_little_agreement(minimum))


def _take_kept(pairs: _TrainPairs, is_member: np.ndarray) -> Dataset:
    """The table of one split: its members, (n,) bool, without the dropped pairs."""
    return pairs.table.select(np.flatnonzero(is_member & (pairs.drop == "")))


def _count_split(
    pairs: _TrainPairs,
    is_member: np.ndarray,
    is_contradictory: np.ndarray,
    ledger: Ledger,
    name: str,
) -> None:
    """Count the members of one split, (n,) bool, in the ledger."""
    ledger.add_read(name, pairs.drop[is_member])
    ledger.add_places(name, first_places(pairs.table, np.where(is_member, pairs.drop, "")))
    ledger.note_unread(name, pairs.unread[is_member])
    ledger.add(name, "noted", CONTRADICTORY, (is_contradictory & is_member).sum())
    is_kept = is_member & (pairs.drop == "")
    ledger.note_doubtful_labels(
        name, pairs.chosen_probability[is_kept], pairs.rating_margin[is_kept]
    )
