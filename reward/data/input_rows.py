"""The rows that score.py reads: `input_rows("rows.jsonl")`, a Hub id, or `-` for standard input.

They come in chunks of bounded size, see `chunks`.
"""

import contextlib
import io
import itertools
import json
import os
import shutil
import sys
import tempfile
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from reward.data.bad_rows import UnreadableRow
from reward.data.files import DataError, Source, is_local, is_one_table, storable, to_json
from reward.data.json_values import LONGEST_ROW
from reward.data.row_files import (
    PlacedRow,
    begins_like_json,
    line_rows,
    lines_of,
    placed_row,
    read_rows,
)
from reward.data.unpacking import DAMAGED, ReadingMeter

STANDARD_INPUT = "-"
STDIN_IN_WORDS = "standard input"


@dataclass(frozen=True)
class InputRows:
    """The rows of an input. They can be read once."""

    rows: Iterator[PlacedRow]
    meter: ReadingMeter  # how far the reading has come


def input_fault(source: str, split: str | None) -> str | None:
    """Why an input cannot be read, as far as its name shows; None if nothing is wrong."""
    if source == STANDARD_INPUT or is_one_table(source):
        if split is not None:
            return "--split names a split of a folder or of a Hub data set, and this is neither"
        if source != STANDARD_INPUT and not Path(source).exists():
            return "no such file"
        return None
    if Path(source).exists() or split is not None:
        return None
    if is_local(source):
        return "no such file"
    return "no such file; if it is a Hub data set, name its split too: --split train"


def input_rows(source: str, split: str | None = None, data_dir: str | None = None) -> InputRows:
    """The rows of an input, in order.

    Args:
        source: A file in any format of reward.data.row_files, a folder that datasets saved, a
            folder of splits, the id of a Hub data set, or `-` for standard input.
        split: The split of a folder or a Hub data set.
        data_dir: The folder inside of a Hub data set.

    Raises:
        DataError: There is no such input. Reading the rows raises it too.
    """
    meter = ReadingMeter()
    if source == STANDARD_INPUT:
        # A handle of its own: another process that reads it would find sys.stdin closed.
        return InputRows(_standard_input(open(os.dup(sys.stdin.fileno()), "rb")), meter)
    if split is None:
        return InputRows(read_rows(source, meter), meter)
    # Imported here: datasets takes seconds, and a file does not need it.
    from reward.data.sources import split_reader

    asked: Source = {"path": source, "data_dir": data_dir, "split": split, "test_split": split}
    reader = split_reader(asked, split, "messages", on_bad_row="skip")
    if reader is None:
        raise DataError(f"{source}: no {split!r} split; name one that it has with --split")
    if reader.files is not None:
        rows = itertools.chain.from_iterable(map(read_rows, reader.files))
        return InputRows(rows, meter)
    meter.rows = len(reader.dataset)
    return InputRows(reader.hub_rows(), meter)


def readable_rows(source: str) -> Iterator[dict]:
    """The rows of an input, as JSON can hold them.

    Raises:
        DataError: The input or one of its rows cannot be read.
    """
    for place, row in input_rows(source).rows:
        if isinstance(row, UnreadableRow):
            raise DataError(f"{place}: {row}")
        yield storable(row)


# --- Standard input -------------------------------------------------------------------------------


def _standard_input(stdin: BinaryIO) -> Iterator[PlacedRow]:
    """The rows of standard input.

    JSONL is read as it comes. Anything else is stored in a temporary file first: JSON in another
    form, Parquet, what is compressed, and any other text, which is CSV.
    """
    first_lines = list(_up_to_first_row(stdin))
    if first_lines and _is_row(first_lines[-1]):
        first_texts = (line.decode("utf-8", "surrogateescape") for line in first_lines)
        rest = io.TextIOWrapper(stdin, "utf-8", "surrogateescape", newline="\n")
        lines = itertools.chain(first_texts, lines_of(rest))
        for place, row in line_rows(STDIN_IN_WORDS, lines):
            yield placed_row(place, row)
        return
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "rows"
        with open(stored, "wb") as file:
            file.writelines(first_lines)
            shutil.copyfileobj(stdin, file)
        yield from _rows_of_stored(stored)


def _up_to_first_row(stdin: BinaryIO) -> Iterator[bytes]:
    """The first lines, up to one that is not blank, and of that no more than a row has."""
    while line := stdin.readline(LONGEST_ROW):
        yield line.removeprefix(BOM_UTF8)
        if not line.isspace():
            return


def _is_row(line: bytes) -> bool:
    """Whether a line is a row of JSONL."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _rows_of_stored(stored: Path) -> Iterator[PlacedRow]:
    path = str(stored)
    try:
        with contextlib.suppress(UnicodeDecodeError, OSError, *DAMAGED):
            if not begins_like_json(path):
                path = str(stored.rename(f"{path}.csv"))
        for place, row in read_rows(path):
            yield PlacedRow(place.replace(path, STDIN_IN_WORDS, 1), row)
    except DataError as error:
        raise DataError(str(error).replace(path, STDIN_IN_WORDS)) from None


# --- Chunks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InputRow:
    """A row as it is kept until it is encoded."""

    place: str
    content: str | UnreadableRow  # its JSON

    @property
    def characters(self) -> int:
        """How long it is."""
        if isinstance(self.content, str):
            return len(self.content)
        return 0

    @property
    def placed(self) -> PlacedRow:
        """The row, as JSON can hold it."""
        row = self.content
        if isinstance(row, str):
            row = json.loads(row, parse_constant=lambda constant: None)
        return PlacedRow(self.place, row)


class RowDigest:
    """A hash over the rows that were read so far; their places do not count."""

    def __init__(self):
        self.hash = blake2b(digest_size=16)

    def add(self, row: InputRow) -> None:
        """Take in the next row."""
        self.hash.update(f"{row.content}\n".encode())

    @property
    def hex(self) -> str:
        """The hash of the rows so far."""
        return self.hash.hexdigest()


def kept_rows(rows: Iterator[PlacedRow]) -> Iterator[InputRow]:
    """The rows as they are kept, one by one."""
    for place, row in rows:
        if isinstance(row, dict):
            row = to_json(row)
        yield InputRow(place, row)


def chunks(
    rows: Iterator[InputRow], most_rows: int, most_characters: int, first_rows: int
) -> Iterator[list[InputRow]]:
    """Rows that are scored together. A row that is longer than a chunk may be is a chunk itself.

    Args:
        rows: The rows.
        most_rows: How many a chunk has at most.
        most_characters: How many characters its rows have, without the last one.
        first_rows: How many rows the first chunk has at most.
    """
    chunk: list[InputRow] = []
    characters = 0
    limit = first_rows
    for row in rows:
        chunk.append(row)
        characters += row.characters
        if len(chunk) == limit or characters >= most_characters:
            yield chunk
            chunk = []
            characters = 0
            limit = most_rows
    if chunk:
        yield chunk
