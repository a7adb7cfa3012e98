"""Files, folders and Hub data sets of preferences -> Arrow tables of canonical pairs."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset
from datasets.exceptions import DatasetGenerationError
from datasets.table import CastError

from reward.data.arrow_values import decoded, encoded_features, without_padding
from reward.data.bad_rows import UnreadableRow
from reward.data.cells import tools_cell
from reward.data.columns import Columns, NamedColumns, name_in_words
from reward.data.files import FILE_BUILDERS, DataError, Source, local_files, to_json
from reward.data.formats import (
    PreferencePair,
    is_rating,
    rating_pairs,
    same_request,
    to_pairs,
    unread_columns,
)
from reward.data.hashing import text_key
from reward.data.hub_access import hub_fault, storage_fault, use_cache_if_unreachable
from reward.data.row_files import PlacedRow, read_rows
from reward.data.transcript_shapes import shape_of, turns_of
from reward.data.transcripts import RowError, Side, first_user_turn, text_of


def _hash_of_code() -> str:
    """A hash over every file of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# A part of every cache key. datasets keeps a table under a hash of the generator that made it, but
# this hash ignores the functions that the generator calls. With CODE in the key, any change in
# reward/data makes all tables anew, and no table of older code is ever used.
CODE = _hash_of_code()

# The raters' labels of a pair; null if its row has none.
LABELS = (
    "target_margin",
    "chosen_probability",
    "strength",
    "rating_chosen",
    "rating_rejected",
    "bayes_accuracy",
)


def cache_key(*parts: object) -> str:
    """The key under which datasets keeps a table that this package makes of `parts`.

    Args:
        parts: What decides the table's content, as JSON can hold it.
    """
    return hashlib.sha256(json.dumps([CODE, *parts]).encode()).hexdigest()[:32]


# The columns of a table of pairs. Every pair that is read is a row of it, even if it is dropped.
FEATURES = Features(
    {
        "prompt": Value("string"),  # JSON: a message list, or a string under `transcript: raw`
        "chosen": Value("string"),  # likewise
        "rejected": Value("string"),  # likewise
        "tools": Value("string"),  # JSON: the functions that the assistant may call; or None
        "subset": Value("string"),  # a named slice of evaluation
        "where": Value("string"),  # file and line, or data set and row, for messages
        "drop": Value("string"),  # why the pair is dropped; "" if it is kept
        "unread": Value("string"),  # the columns of its row that were not read, with commas
        "turn_key": Value("int64"),  # a hash of the first user turn: splits are disjoint by it
        "pair_key": Value("int64"),  # a hash of prompt, chosen and rejected text, and of tools
        "swap_key": Value("int64"),  # the pair_key of the same pair the other way round
        "ranking": Value("int64"),  # the pairs of one row (K completions of a prompt) share it
        **{label: Value("float64") for label in LABELS},
        "votes": List(Value("int64")),  # how many raters chose the chosen side and the rejected one
    }
)


@dataclass(frozen=True)
class SplitReader:
    """All that is needed to read one split of a source.

    datasets hashes these fields to find the table in its cache, so they hold nothing that changes
    from one process to the next. They are tuples, because datasets would divide a list among
    processes.
    """

    files: tuple[str, ...] | None  # local files; None for a Hub data set
    stamps: tuple  # CODE, and each file's size and time of change; a changed file is read anew
    dataset: Dataset | IterableDataset | None  # the split of a Hub data set; None for files
    label: str  # the name of this split in messages
    transcript: str  # `messages` or `raw`, see reward.data.formats.to_pairs
    subset: str | None  # the subset of every pair; None: each row names its own
    columns: Columns = Columns()  # the columns that are read, and under which names
    on_bad_row: str = "skip"  # or stop: what happens where a row cannot be read

    def pairs(self) -> Iterator[dict]:
        """The rows of the table, with the columns of FEATURES.

        A row that cannot be read is one of them; its column `drop` says why.

        Raises:
            DataError: No row of a file can be read, or one shows that others would be misread, or
                one cannot be read under `on_bad_row="stop"`.
        """
        named = NamedColumns(self.columns)
        if self.files is None:
            yield from self._pairs_of_file(self.hub_rows(), named)
        else:
            for path in self.files:
                yield from self._pairs_of_file(read_rows(path), named)
        named.check(self.label)

    def hub_rows(self) -> Iterator[PlacedRow]:
        """The rows of a Hub data set. Raises DataError if the Hub fails in a stream."""
        features = {}  # datasets itself reads its JSON, and leaves the numbers of classes
        if self.dataset.features is not None:
            features = encoded_features(self.dataset.features.to_dict())
        try:
            for index, row in enumerate(self.dataset):
                row = without_padding(row, features)
                row = decoded(row, features, kinds=("ClassLabel",))
                yield PlacedRow(f"{self.label} row {index}", row)
        except FAULTS_OF_A_HUB_DATASET as error:
            raise DataError(f"{self.label}: {_why_not_loaded(error)}") from error

    def _pairs_of_file(self, rows: Iterable[PlacedRow], named: NamedColumns) -> Iterator[dict]:
        first_error: DataError | None = None
        some_are_read = False
        for group in _grouped(_with_our_names(rows, named)):
            pairs = self._pairs_of_group(group)
            if not isinstance(pairs, UnreadableRow):
                some_are_read = True
                yield from pairs
                continue
            if first_error is None:
                first_error = DataError(f"{_place_of(group)}: {pairs}")
            if pairs.ends_file:
                raise DataError(f"{_place_of(group)}: {pairs}")
            if self.on_bad_row == "stop":
                raise first_error
            for placed in group:
                yield _row_of_unreadable(placed.place, pairs, self.subset)
        if first_error is not None and not some_are_read:
            raise first_error

    def _pairs_of_group(self, group: list[PlacedRow]) -> list[dict] | UnreadableRow:
        """The rows of the table for the rows of one group, or why they cannot be read."""
        rows = [placed.row for placed in group]
        first = rows[0]
        if isinstance(first, UnreadableRow):
            return first
        try:
            pairs = _pairs_of(rows, self.transcript)
        except RowError as error:
            return UnreadableRow.of(error)
        unread = ", ".join(name_in_words(name) for name in unread_columns(first))
        return [_table_row(pair, group[0].place, self.subset, unread) for pair in pairs]


# --- Rows -> rows of the table --------------------------------------------------------------------


def _with_our_names(rows: Iterable[PlacedRow], named: NamedColumns) -> Iterator[PlacedRow]:
    """The rows with our names for their columns."""
    for place, row in rows:
        if isinstance(row, dict):
            try:
                row = named.of(row)
            except RowError as error:
                row = UnreadableRow(str(error))
        yield PlacedRow(place, row)


def _grouped(rows: Iterable[PlacedRow]) -> Iterator[list[PlacedRow]]:
    """Groups of rows that are read together.

    Rated completions of one prompt that follow each other are one group. Any other row is a group
    of its own.
    """
    group: list[PlacedRow] = []
    for placed in rows:
        is_rated = isinstance(placed.row, dict) and is_rating(placed.row)
        if group and is_rated and same_request(placed.row, group[0].row):
            group.append(placed)
            continue
        if group:
            yield group
            group = []
        if is_rated:
            group = [placed]
        else:
            yield [placed]
    if group:
        yield group


def _place_of(group: list[PlacedRow]) -> str:
    """The place of a group of which one row cannot be read, in words."""
    place = group[0].place
    if len(group) > 1:
        place += f" (or the {len(group) - 1} after it with the same prompt)"
    return place


def _pairs_of(rows: list[dict], transcript: str) -> list[PreferencePair]:
    """The pairs of one group."""
    if len(rows) > 1 or is_rating(rows[0]):
        return rating_pairs(rows)
    return to_pairs(rows[0], transcript)


def _table_row(pair: PreferencePair, where: str, subset: str | None, unread: str) -> dict:
    """A pair as a row of the table.

    Args:
        pair: The pair.
        where: The place of its row, in words.
        subset: The subset that the source gives to all its pairs; None if it gives none.
        unread: The columns of its row that were not read, with commas; "" if there are none.
    """
    prompt, chosen, rejected = (text_of(pair[side]) for side in ("prompt", "chosen", "rejected"))
    tools = tools_cell(pair)
    if tools is not None:
        tools = to_json(tools)
    with_tools = [] if tools is None else [tools]  # another list of tools makes another pair
    row = {
        "prompt": to_json(pair["prompt"]),
        "chosen": to_json(pair["chosen"]),
        "rejected": to_json(pair["rejected"]),
        "tools": tools,
        "subset": subset or pair.get("subset") or "all",
        "where": where,
        "drop": pair["drop"],
        "unread": unread,
        "turn_key": text_key(_first_turn(pair["prompt"])),
        "pair_key": text_key(prompt, chosen, rejected, *with_tools),
        "swap_key": text_key(prompt, rejected, chosen, *with_tools),
        "ranking": text_key(where, prompt),
        "votes": pair.get("votes"),
    }
    for label in LABELS:
        row[label] = pair.get(label)
    return row


def _first_turn(prompt: Side) -> str:
    """The first turn of the user, also in a transcript of any shape that is kept as a text."""
    if isinstance(prompt, str) and shape_of(prompt) is not None:
        with suppress(RowError):  # its turns are unclear, so the whole text counts
            prompt = turns_of(prompt)
    return first_user_turn(prompt)


def _row_of_unreadable(place: str, unreadable: UnreadableRow, subset: str | None) -> dict:
    """The row of the table for a row that cannot be read.

    Its keys are hashes of its place, so that the rows of a damaged file spread over all splits.
    """
    row = dict.fromkeys(FEATURES)
    for side in ("prompt", "chosen", "rejected"):
        row[side] = to_json("")
    row["subset"] = subset or "all"
    row["where"] = place
    row["drop"] = unreadable.reason
    row["unread"] = ""
    for key in ("turn_key", "pair_key", "swap_key", "ranking"):
        row[key] = text_key(place, key)
    return row


# --- Sources -> tables ----------------------------------------------------------------------------


def split_reader(
    source: Source, split: str | None, transcript: str, on_bad_row: str
) -> SplitReader | None:
    """The reader of one split of a source; None if the source has no such split.

    Args:
        source: The source.
        split: The name of the split, or a local file.
        transcript: `messages` or `raw`.
        on_bad_row: `skip` or `stop`.

    Raises:
        DataError: A file or a Hub data set is not found.
    """
    files = local_files(source, split)
    dataset = None
    if files is None:
        dataset = _hub_split(source, split)
        if dataset is None:
            return None
    else:
        if not files:
            return None
        files = tuple(files)
    label = source["path"]
    if source.get("data_dir"):
        label += f"/{source['data_dir']}"
    return SplitReader(
        files=files,
        stamps=(CODE, *_stamps(files or ())),
        dataset=dataset,
        label=f"{label} [{split}]",
        transcript=transcript,
        subset=source.get("subset"),
        columns=Columns.of(source.get("columns")),
        on_bad_row=on_bad_row,
    )


def _stamps(files: Sequence[str]) -> list[tuple[int, int]]:
    """Size (bytes) and time of change (nanoseconds) of each file."""
    stamps = []
    for path in files:
        try:
            status = os.stat(path)
        except OSError as error:
            raise DataError(f"{error.filename}: no such data file") from None
        stamps.append((status.st_size, status.st_mtime_ns))
    return stamps


def _hub_split(source: Source, split: str | None) -> Dataset | IterableDataset | None:
    """A split of a Hub data set; None if the data set has no such split.

    Raises:
        DataError: The data set cannot be loaded.
    """
    options = {key: source[key] for key in ("name", "data_dir", "data_files") if source.get(key)}
    streaming = bool(source.get("streaming"))
    if source["path"] not in FILE_BUILDERS:
        use_cache_if_unreachable()
    try:
        return load_dataset(source["path"], split=split, streaming=streaming, **options)
    except ValueError as error:
        if "Unknown split" in str(error) or "Bad split" in str(error):
            return None
        raise DataError(f"{source['path']}: {error}") from error
    except FAULTS_OF_A_HUB_DATASET as error:
        raise DataError(f"{source['path']}: {_why_not_loaded(error)}") from error


# What datasets raises for a data set of the Hub, while it is loaded or while it is streamed.
FAULTS_OF_A_HUB_DATASET = (OSError, DatasetGenerationError, CastError, httpx2.HTTPError)


def _why_not_loaded(error: Exception) -> str:
    """Why a data set of the Hub cannot be read, and what helps."""
    fault = hub_fault(error)
    if fault is not None:
        return fault
    if isinstance(error, CastError) or isinstance(error.__cause__, CastError):
        return (
            "its splits, or files of one split, have different columns, and datasets reads them as "
            "one table. Fetch them (`hf download ID --repo-type dataset --local-dir FOLDER`) and "
            "name the folder instead: there each file is read by itself"
        )
    if isinstance(error, DatasetGenerationError):
        return (
            f"a file of it cannot be read ({type(error.__cause__ or error).__name__}): it is "
            "damaged, or in no format that datasets knows. If it was damaged on its way, "
            "`hf cache rm dataset/ID` removes it, and it is fetched again"
        )
    return (
        f"cannot be loaded ({type(error).__name__}: {error}). A Hub id needs network and, where "
        "gated, `hf auth login`; a local path starts with ./ or ends in .jsonl, .json, .csv or "
        ".parquet."
    )


def split_table(
    source: Source, split: str | None, transcript: str, on_bad_row: str
) -> Dataset | None:
    """The table of one split, made or read from datasets' cache; None if there is no such split.

    Args:
        source: The source.
        split: The name of the split, or a local file.
        transcript: `messages` or `raw`.
        on_bad_row: `skip` or `stop`.

    Raises:
        DataError: The split cannot be read, it has no rows or none that can be read, or a row
            cannot be read under `on_bad_row="stop"`.
    """
    reader = split_reader(source, split, transcript, on_bad_row)
    if reader is None:
        return None
    try:
        return Dataset.from_generator(_generate, features=FEATURES, gen_kwargs={"reader": reader})
    except (OSError, DatasetGenerationError) as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        fault = storage_fault(error)
        if fault is not None:
            raise DataError(f"{reader.label}: {fault}") from error
        raise
    except ValueError as error:
        # These are the messages of datasets for a generator that yields nothing.
        if "corresponds to no data" in str(error) or "Instruction" in str(error):
            raise DataError(f"{reader.label}: the {split} split has no rows") from None
        raise


def _generate(reader: SplitReader) -> Iterator[dict]:
    yield from reader.pairs()


def no_train_split(source: Source) -> DataError:
    """The error for a source that lacks the split to train on."""
    return DataError(f"{source['path']}: no {source['split']!r} split to read. Name it (split).")
