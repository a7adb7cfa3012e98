"""Read the rows of a local file: `for place, row in read_rows("pairs.jsonl.gz"): ...`

JSONL, JSON, CSV, TSV, Parquet and Arrow, plain or compressed. What the content of a file shows for
certain counts more than its suffix. A row that is malformed does not end the file: an
UnreadableRow stands in its place. Imports no torch.
"""

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from reward.data.bad_rows import UnreadableRow
from reward.data.files import COMPRESSED_SUFFIXES, DataError, saved_dataset_files, saved_splits

# How compressed files begin.
GZIP = b"\x1f\x8b"
BZIP2 = b"BZh"
XZ = b"\xfd7zXZ\x00"
ZSTANDARD = b"\x28\xb5\x2f\xfd"
ZIP = b"PK\x03\x04"

PARQUET = b"PAR1"
ARROW = (b"ARROW1", b"\xff\xff\xff\xff")  # a file, and a stream

# A byte order mark -> the encoding. UTF-32 comes first, because its mark starts with UTF-16's.
BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}

# Names of the list of rows inside a JSON object.
LISTS_OF_ROWS = (
    "data",
    "rows",
    "train",
    "test",
    "validation",
    "examples",
    "instances",
    "items",
    "records",
    "samples",
    "pairs",
)

DEEPEST = 100  # brackets inside each other; deeper rows would exhaust the stack further on
INVALID_UTF8 = re.compile("[\udc80-\udcff]")  # the error handler `surrogateescape` writes these

# An empty cell in these CSV columns is an empty text. In any other column it is no value.
CSV_TEXTS = re.compile(
    r"prompt|chosen|rejected|completion|response(_?[abAB012])?|answer_[01]|output_[12]"
    r"|human_ref_[AB]"
)


class PlacedRow(NamedTuple):
    """A row of a file."""

    place: str  # `pairs.jsonl:7` for line 7, or `pairs.parquet row 7`, which counts from 1
    row: dict | UnreadableRow


def read_rows(path: str) -> Iterator[PlacedRow]:
    """The rows of a local file, or of a folder that `Dataset.save_to_disk` wrote, in order.

    Raises:
        DataError: The file as a whole cannot be read. The message names the file and, where there
            is one, the line; it never holds content.
    """
    # Imported here, because it takes a tenth of a second and checking a recipe does not need it.
    from pyarrow import ArrowException

    try:
        for place, row in _rows_of(path):
            if not isinstance(row, dict | UnreadableRow):
                found = f"; found {type(row).__name__}"
                row = UnreadableRow("a row is a JSON object with named columns", found)
            yield PlacedRow(place, row)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile):
        raise DataError(
            f"{path}: the compressed file is cut off or damaged; copy it again"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: no valid {error.encoding.upper()}; save the file as UTF-8"
        ) from None
    except (OSError, ArrowException) as error:
        kind = _suffix(path).removeprefix(".") or "a file of rows"
        raise DataError(f"{path}: cannot be read as {kind} ({type(error).__name__})") from None


def _rows_of(path: str) -> Iterator[tuple[str, Any]]:
    """The rows in the format of the file, each after its place."""
    if os.path.isdir(path):
        return _rows_of_folder(path)
    with open_bytes(path) as file:
        start = file.read(8)
    suffix = _suffix(path)
    if start.startswith((PARQUET, *ARROW)):
        if _opener(path) is not open:
            raise DataError(f"{path}: compressed as a whole; unpack it first")
        if start.startswith(PARQUET):
            return _parquet_rows(path)
        return _arrow_rows(path)
    if suffix in (".parquet", ".arrow") and start:
        raise DataError(f"{path}: its content is no {suffix.removeprefix('.')} file")
    if suffix in (".csv", ".tsv") and not start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b'{"'):
        return _csv_rows(path, suffix)
    if suffix not in (".jsonl", ".ndjson", ".json") and not _begins_like_json(path):
        raise DataError(
            f"{path}: neither its suffix nor its content says what it is; name it .jsonl (a JSON "
            "object a line), .csv or .tsv"
        )
    return _json_rows(path, suffix)


def _begins_like_json(path: str) -> bool:
    """Whether a text file begins with a JSON object or a list, or is empty."""
    with open_text(path, errors="surrogateescape") as file:
        first_line = next((line.strip() for line in file if line.strip()), "{")
    return first_line.startswith(("{", "["))


def _suffix(path: str) -> str:
    """The suffix that names the format, in lower case and without that of a compression."""
    name = Path(path)
    if name.suffix.lower() in COMPRESSED_SUFFIXES:
        name = name.with_suffix("")
    return name.suffix.lower()


# --- Opening --------------------------------------------------------------------------------------


def open_bytes(path: str) -> BinaryIO:
    """Open a file, plain or compressed, for reading. Its content says how it is compressed."""
    return _opener(path)(path, "rb")


def open_text(path: str, newline: str | None = None, errors: str = "strict") -> TextIO:
    """Open a text file, plain or compressed, for reading.

    It is UTF-8, unless a byte order mark says UTF-16 or UTF-32.

    Args:
        path: The file.
        newline: As in `open`.
        errors: As in `open`.
    """
    return io.TextIOWrapper(
        open_bytes(path), encoding=_encoding_of(path), newline=newline, errors=errors
    )


def _opener(path: str) -> Callable[[str, str], BinaryIO]:
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith(GZIP):
        return gzip.open
    if start.startswith(BZIP2):
        return bz2.open
    if start.startswith(XZ):
        return lzma.open
    if start.startswith(ZSTANDARD):
        return _open_zst
    if start.startswith(ZIP):
        return _open_zip
    return open


def _open_zst(path: str, mode: str) -> BinaryIO:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))


def _open_zip(path: str, mode: str) -> BinaryIO:
    archive = zipfile.ZipFile(path)
    names = [name for name in archive.namelist() if not name.endswith("/")]
    if len(names) != 1:
        raise DataError(f"{path}: holds {len(names)} files; unpack it, and name one of them")
    try:
        return archive.open(names[0])
    except (RuntimeError, NotImplementedError) as error:  # a password, an unusual compression
        raise DataError(f"{path}: cannot be unpacked ({error}); unpack it first") from None


def _encoding_of(path: str) -> str:
    with open_bytes(path) as file:
        start = file.read(4)
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return encoding
    if b"\x00" in start:
        raise DataError(
            f"{path}: a text file with zero bytes, as UTF-16 has them; save the file as UTF-8"
        )
    return "utf-8-sig"  # a byte order mark is left out if there is one


# --- JSON and JSONL -------------------------------------------------------------------------------


def _json_rows(path: str, suffix: str) -> Iterator[tuple[str, Any]]:
    """The rows of JSON: one a line, a list of them, or objects over several lines each."""
    if _is_one_document(path, suffix):
        rows = _document_rows(path, suffix)
    else:
        rows = _line_rows(path)
    first = next(rows, None)
    if first is None:
        return
    _refuse_a_list_inside(*first)
    yield first
    yield from rows


def _is_one_document(path: str, suffix: str) -> bool:
    """Whether the file is to be parsed as a whole, and not line by line."""
    with open_text(path, newline="\n", errors="surrogateescape") as file:
        lines = (line.strip() for line in file if not line.isspace())
        first_line = next(lines, "")
        second_line = next(lines, "")
    if first_line in ("{", "[") and second_line:
        return True
    first = _parsed(first_line)
    if isinstance(first, list):
        return suffix == ".json" or (first_line.startswith("[{") and not second_line)
    if isinstance(first, UnreadableRow):
        if first_line.startswith("{") and isinstance(_parsed(second_line), dict):
            return False  # the first of several lines is malformed
        return suffix == ".json" or first_line.startswith("[{")
    return False


def _document_rows(path: str, suffix: str) -> Iterator[tuple[str, Any]]:
    with open_text(path) as file:
        text = file.read()
    start = _next_value(text, 0)
    while start < len(text):
        try:
            value, end = DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}: cannot be read as json at line {error.lineno} ({type(error).__name__})"
            ) from None
        except (RecursionError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as json ({_why_unreadable(error)})") from None
        if isinstance(value, list):
            for number, row in enumerate(value, start=1):
                yield f"{path} row {number}", _not_too_deep(row)
        else:
            yield f"{path}:{text.count(NEWLINE, 0, start) + 1}", _not_too_deep(value)
        start = _next_value(text, end)


NEWLINE = "\n"
SPACE = re.compile(r"\s*")


def _next_value(text: str, position: int) -> int:
    """Where the next JSON value starts."""
    return SPACE.match(text, position).end()


def _line_rows(path: str) -> Iterator[tuple[str, Any]]:
    # A lone carriage return ends no line.
    with open_text(path, newline="\n", errors="surrogateescape") as file:
        for line_number, line in enumerate(file, start=1):
            if not line.isspace():
                yield f"{path}:{line_number}", _parsed(line)


def _parsed(line: str) -> Any:
    """The JSON value of a line; an UnreadableRow if it is none."""
    if not line.isascii() and INVALID_UTF8.search(line):
        return UnreadableRow("no valid UTF-8")
    try:
        return _not_too_deep(DECODER.decode(line))
    except json.JSONDecodeError as error:
        return UnreadableRow("no valid JSON", f" at column {error.colno}")
    except (RecursionError, ValueError) as error:
        return UnreadableRow(_why_unreadable(error))


def _why_unreadable(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if isinstance(error, _RepeatedName):
        return "a name stands twice in one JSON object"
    return f"a number of more than {sys.get_int_max_str_digits():,} digits"


TOO_DEEP = f"brackets are nested more than {DEEPEST} deep"


class _RepeatedName(ValueError):
    """A JSON object has two values of one name."""


def _object_of(names_and_values: list[tuple[str, Any]]) -> dict:
    """A JSON object. Python would keep the last of two values of one name, and pass over others."""
    mapping = dict(names_and_values)
    if len(mapping) < len(names_and_values):
        raise _RepeatedName
    return mapping


DECODER = json.JSONDecoder(object_pairs_hook=_object_of)


def _not_too_deep(value: Any) -> Any:
    """The value itself; an UnreadableRow if it is nested too deeply for what follows."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return value
    return UnreadableRow(TOO_DEEP)


def _refuse_a_list_inside(place: str, row: Any) -> None:
    """Raise DataError for `{"data": [...]}`: the rows lie in a list inside of one object."""
    if not isinstance(row, dict):
        return
    for name, value in row.items():
        if name in LISTS_OF_ROWS and isinstance(value, list) and value:
            raise DataError(
                f"{place}: an object whose rows lie in its list `{name}`; a list of rows, or one "
                f"row a line, is needed. Write that list to a file of its own: "
                f"jq -c '.{name}[]' FILE > rows.jsonl"
            )


# --- CSV ------------------------------------------------------------------------------------------


def _csv_rows(path: str, suffix: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # csv refuses texts above 131,072 characters by itself
    with open_text(path, newline="", errors="surrogateescape") as file:
        first_line = file.readline()
        separator = _separator(first_line, suffix)
        # A header with a space after each separator has it between the cells as well.
        spaced = 0 < first_line.count(separator) == first_line.count(separator + " ")
        lines = itertools.chain([first_line], file)
        reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=spaced)
        columns: list[str] | None = None
        while True:
            line_number = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                if columns is None or "unexpected end" in str(error):
                    raise DataError(
                        f"{path}:{line_number}: a quote that opens here is never closed"
                    ) from None
                yield f"{path}:{line_number}", UnreadableRow("no valid CSV: a quote inside a cell")
                continue
            if cells is None:
                return
            if columns is None:
                columns = _csv_header(path, cells)
            elif cells:  # an empty line is no row
                yield f"{path}:{line_number}", _csv_row(columns, cells)


def _separator(header: str, suffix: str) -> str:
    """The separator that stands most often in the header; the suffix decides a draw."""
    unquoted = re.sub('"[^"]*"', "", header)
    separators = [",", ";", "\t"]
    if suffix == ".tsv":
        separators.reverse()
    return max(separators, key=unquoted.count)


def _csv_header(path: str, cells: list[str]) -> list[str]:
    columns = [cell.strip() for cell in cells]
    for column in columns:
        if column and columns.count(column) > 1:
            raise DataError(
                f"{path}: the header has two columns `{column}`; rename or remove one of them"
            )
    return columns


def _csv_row(columns: list[str], cells: list[str]) -> dict[str, str] | UnreadableRow:
    """A row without the empty cells that mean "no value"."""
    if len(cells) != len(columns):
        return UnreadableRow(f"{len(columns)} columns are needed", f"; found {len(cells)}")
    if any(INVALID_UTF8.search(cell) for cell in cells if not cell.isascii()):
        return UnreadableRow("no valid UTF-8")
    row = {}
    for column, cell in zip(columns, cells, strict=True):
        if cell != "" or CSV_TEXTS.fullmatch(column):
            row[column] = cell
    return row


# --- Parquet and Arrow ----------------------------------------------------------------------------

ROWS_AT_ONCE = 1000


def _parquet_rows(path: str) -> Iterator[tuple[str, Any]]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    return _numbered(path, _rows_of_batches(path, file.iter_batches(ROWS_AT_ONCE)))


def _arrow_rows(path: str) -> Iterator[tuple[str, Any]]:
    return _numbered(path, _rows_of_arrow_file(path))


def _rows_of_folder(folder: str) -> Iterator[tuple[str, Any]]:
    """The rows of a folder that `Dataset.save_to_disk` wrote."""
    splits = saved_splits(folder)
    if splits:
        raise DataError(
            f"{folder}: a folder of the splits {', '.join(splits)}; name one of them: "
            f"{os.path.join(folder, splits[0])}"
        )
    files = saved_dataset_files(folder)
    if files is None:
        raise DataError(f"{folder}: a folder; a file of rows is needed here")
    rows = itertools.chain.from_iterable(_rows_of_arrow_file(file) for file in files)
    return _numbered(folder, rows)


def _numbered(path: str, rows: Iterator[dict]) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(rows, start=1):
        yield f"{path} row {number}", _not_too_deep(row)


def _rows_of_arrow_file(path: str) -> Iterator[dict]:
    import pyarrow

    with pyarrow.memory_map(path) as file:
        if file.read(6) == ARROW[0]:
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            file.seek(0)
            batches = pyarrow.ipc.open_stream(file)
        yield from _rows_of_batches(path, batches)


def _rows_of_batches(path: str, batches: Iterator) -> Iterator[dict]:
    """The rows of pyarrow's record batches. Decimals become numbers."""
    import pyarrow

    for batch in batches:
        names = batch.schema.names
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise DataError(f"{path}: two columns `{repeated[0]}`; rename or remove one of them")
        table = pyarrow.Table.from_batches([batch])
        for i, field in enumerate(table.schema):
            if pyarrow.types.is_decimal(field.type):
                table = table.set_column(i, field.name, table[i].cast(pyarrow.float64()))
        for start in range(0, len(table), ROWS_AT_ONCE):
            yield from table.slice(start, ROWS_AT_ONCE).to_pylist()
