"""Read the rows of a local file: `for place, row in read_rows("pairs.jsonl.gz"): ...`

JSONL, JSON, CSV, TSV, Parquet and Arrow, plain or compressed. What the content of a file shows for
certain counts more than its suffix. A row that is malformed does not end the file: an
UnreadableRow stands in its place. Imports no torch.
"""

import contextlib
import csv
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, AnyStr, NamedTuple, TextIO

from reward.data.arrow_values import Feature, decoded, encoded_columns, without_padding
from reward.data.bad_rows import UnreadableRow
from reward.data.cells import list_in, texts_in
from reward.data.files import COMPRESSED_SUFFIXES, DataError, saved_dataset_files, saved_splits
from reward.data.json_values import (
    LONGEST_ROW,
    TOO_LONG,
    UnusualValue,
    json_value,
    next_json_value,
    refuse_unusual,
)
from reward.data.transcripts import is_texts
from reward.data.unpacking import DAMAGED, ReadingMeter, compression_of, open_bytes, open_text

PARQUET = b"PAR1"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
ARROW = (b"ARROW1", b"\xff\xff\xff\xff")  # a file, and a stream

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

INVALID_UTF8 = re.compile("[\udc80-\udcff]")  # the error handler `surrogateescape` writes these

# An empty cell in these CSV columns is an empty text. In any other column it is no value.
CSV_TEXTS = re.compile(
    r"prompt|chosen|rejected|completion|response(_?[abAB012])?|answer_[01]|output_[12]"
    r"|human_ref_[AB]"
)


# How tools write that a cell has no value, in columns where it is no text and no number.
NOT_A_NUMBER = ("nan", "NaN", "\\N", "<NA>")
NO_VALUE = (*NOT_A_NUMBER, "None", "NULL", "null")
MAY_BE_MISSING = re.compile(r"system(_prompt|_message)?|history|context|tools")

# Under these it is a reward that is missing: score.py writes it so for a text that is too long.
CSV_REWARDS = re.compile(r"(new_)?(reward(_chosen|_rejected)?|scores_(chosen|rejected))(_\d+)?")

# Where a side is a list, these are one too: columns of score.py and of the benchmarks' scripts.
SCORES_OF_LISTS = ("scores", "scores_chosen", "score_chosen", "reward_chosen")
PYTHON_LIST = re.compile(r"(?s)\[\s*'.*'\s*\]\s*")  # as pandas writes one
LIST_START = re.compile(r"""\[\s*["']""")


class PlacedRow(NamedTuple):
    """A row of a file."""

    place: str  # `pairs.jsonl:7` for line 7, or `pairs.parquet row 7`, which counts from 1
    row: dict | UnreadableRow


def read_rows(path: str, meter: ReadingMeter | None = None) -> Iterator[PlacedRow]:
    """The rows of a local file, or of a folder that `Dataset.save_to_disk` wrote, in order.

    Args:
        path: The file or folder.
        meter: It is told how far the reading has come.

    Raises:
        DataError: The file as a whole cannot be read. The message names the file and, where there
            is one, the line; it never holds content.
    """
    # Imported here, because it takes a tenth of a second and checking a recipe does not need it.
    from pyarrow import ArrowException

    try:
        for place, row in _rows_of(path, meter or ReadingMeter()):
            yield placed_row(place, row)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DAMAGED:
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


def placed_row(place: str, row: Any) -> PlacedRow:
    if not isinstance(row, dict | UnreadableRow):
        found = f"; found {type(row).__name__}"
        row = UnreadableRow("a row is a JSON object with named columns", found)
    return PlacedRow(place, row)


def _rows_of(path: str, meter: ReadingMeter) -> Iterator[tuple[str, Any]]:
    """The rows in the format of the file, each after its place."""
    if os.path.isdir(path):
        return _rows_of_folder(path, meter)
    with open_bytes(path) as file:
        start = file.read(len(LFS_POINTER))
    suffix = _suffix(path)
    if start == LFS_POINTER:
        raise DataError(
            f"{path}: not the file itself but Git LFS's pointer to it; fetch it with `git lfs pull`"
        )
    if start.startswith((PARQUET, *ARROW)):
        if compression_of(path):
            raise DataError(f"{path}: compressed as a whole; unpack it first")
        if start.startswith(PARQUET):
            return _parquet_rows(path, meter)
        return _arrow_rows(path, meter)
    if suffix in (".parquet", ".arrow") and start:
        raise DataError(f"{path}: its content is no {suffix.removeprefix('.')} file")
    if suffix in (".csv", ".tsv") and not start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b'{"'):
        return _csv_rows(path, suffix, meter)
    if suffix not in (".jsonl", ".ndjson", ".json") and not begins_like_json(path):
        raise DataError(
            f"{path}: neither its suffix nor its content says what it is; name it .jsonl (a JSON "
            "object a line), .csv or .tsv"
        )
    return _json_rows(path, suffix, meter)


def begins_like_json(path: str) -> bool:
    """Whether a text file begins with a JSON object or a list, or is empty."""
    with open_text(path, errors="surrogateescape") as file:
        start = _next_line(file).strip() or "{"
    return start.startswith(("{", "["))


LONGEST_START = 1 << 20  # characters that are looked at of a first line: it may be the whole file


def _next_line(file: TextIO) -> str:
    """The next line that is not blank; of a longer line its first LONGEST_START characters."""
    while line := file.readline(LONGEST_START):
        if not line.isspace():
            return line
    return ""


def _suffix(path: str) -> str:
    """The suffix that names the format, in lower case and without that of a compression."""
    name = Path(path)
    if name.suffix.lower() in COMPRESSED_SUFFIXES:
        name = name.with_suffix("")
    return name.suffix.lower()


# --- JSON and JSONL -------------------------------------------------------------------------------


def _json_rows(path: str, suffix: str, meter: ReadingMeter) -> Iterator[tuple[str, Any]]:
    """The rows of JSON: one a line, a list of them, or objects over several lines each."""
    if _is_one_document(path, suffix):
        with open_text(path, meter=meter) as file:
            yield from _without_a_list_inside(_document_rows(path, file))
        return
    # A lone carriage return ends no line.
    with open_text(path, newline="\n", errors="surrogateescape", meter=meter) as file:
        yield from _without_a_list_inside(line_rows(path, lines_of(file)))


def _is_one_document(path: str, suffix: str) -> bool:
    """Whether the file is a list or objects over several lines, and not to be read line by line."""
    with open_text(path, newline="\n", errors="surrogateescape") as file:
        line = _next_line(file)
        first_line = line.strip()
        if len(line) == LONGEST_START:
            return first_line.startswith("[{") or (suffix == ".json" and first_line[:1] == "[")
        second_line = _next_line(file).strip()
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


def _document_rows(path: str, file: TextIO) -> Iterator[tuple[str, Any]]:
    """The rows of lists of objects, and of objects one after another."""
    text = JsonText(file)
    try:
        while text.next_character():
            if text.next_character() == "[":
                for number, row in enumerate(text.items(), start=1):
                    yield f"{path} row {number}", _of_usual_size(row)
            else:
                line = text.line_number
                yield f"{path}:{line}", _of_usual_size(text.value())
    except json.JSONDecodeError as error:
        line = text.lines_before + error.lineno
        raise DataError(
            f"{path}: cannot be read as json at line {line} ({type(error).__name__})"
        ) from None
    except UnusualValue as error:
        raise DataError(f"{path}: cannot be read as json ({error})") from None


SPACE = re.compile(r"\s*")
NEWLINE = "\n"
BLOCK = 1 << 20  # characters that are read at once
LONGEST_CUT = 16  # a literal, a number's start or an escape that the end of a block cuts is shorter


class JsonText:
    """The text of a JSON file, of which no more than a value and a block is in memory.

    Args:
        file: The open file.

    Attributes:
        lines_before: How many lines were read and are not in memory any more.
    """

    def __init__(self, file: TextIO):
        self.file = file
        self.text = ""
        self.at = 0  # where the next value starts in `text`
        self.lines_before = 0
        self.counted = (0, 0)  # a place in `text`, and how many lines end before it

    def next_character(self) -> str:
        """The next character that is no white space, which is not passed over; "" at the end."""
        self.at = SPACE.match(self.text, self.at).end()
        while self.at == len(self.text):
            if not self._read_more():
                return ""
            self.at = SPACE.match(self.text, self.at).end()
        return self.text[self.at]

    @property
    def line_number(self) -> int:
        """The line of the next value."""
        place, lines = self.counted
        lines += self.text.count(NEWLINE, place, self.at)
        self.counted = (self.at, lines)
        return self.lines_before + lines + 1

    def value(self) -> Any:
        """The next value. Raises ValueError if there is no valid one, or none that is short."""
        while True:
            try:
                value, end = next_json_value(self.text, self.at)
            except json.JSONDecodeError as error:
                if not self._may_be_cut(error):
                    raise
                if len(self.text) - self.at > LONGEST_ROW:
                    raise UnusualValue(TOO_LONG) from None
                if not self._read_more():
                    raise
                continue
            # The digits of a number may go on in the next block.
            if end < len(self.text) or not self._read_more():
                self.at = end
                return value

    def items(self) -> Iterator[Any]:
        """The items of a list that starts here, one by one."""
        self.at += 1
        if self.next_character() == "]":
            self.at += 1
            return
        while True:
            self.next_character()
            yield self.value()
            end = self.next_character()
            if end not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' delimiter", self.text, self.at)
            self.at += 1
            if end == "]":
                return

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the text may be valid once more of it is read."""
        is_at_end = error.pos >= len(self.text) - LONGEST_CUT
        return is_at_end or error.msg.startswith("Unterminated string")

    def _read_more(self) -> bool:
        """Read a block, or as much again as there is. False at the end of the file."""
        rest = self.text[self.at :]
        block = self.file.read(max(BLOCK, len(rest)))
        if not block:
            return False
        self.lines_before = self.line_number - 1
        self.text = rest + block
        self.at = 0
        self.counted = (0, 0)
        return True


def lines_of(file: IO[AnyStr]) -> Iterator[AnyStr]:
    """The lines of a file, each with its end. One that is too long is cut behind LONGEST_ROW."""
    while line := file.readline(LONGEST_ROW + 1):
        yield line
        rest = line
        while len(rest) > LONGEST_ROW and rest[-1:] not in (NEWLINE, NEWLINE.encode()):
            rest = file.readline(LONGEST_ROW + 1)


def line_rows(name: str, lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """The rows of JSONL, each after its place, which is the name with the line.

    Args:
        name: The file's, or `standard input`.
        lines: What `lines_of` gives.
    """
    for line_number, line in enumerate(lines, start=1):
        if not line.isspace():
            yield f"{name}:{line_number}", _parsed(line)


def _parsed(line: str) -> Any:
    """The JSON value of a line; an UnreadableRow if it is none."""
    if not line.isascii() and INVALID_UTF8.search(line):
        return UnreadableRow("no valid UTF-8")
    try:
        return json_value(line)
    except json.JSONDecodeError as error:
        return UnreadableRow("no valid JSON", f" at column {error.colno}")
    except UnusualValue as error:
        return UnreadableRow(str(error))


def _of_usual_size(value: Any) -> Any:
    """The value itself; an UnreadableRow if it is too deep or too wide for what follows."""
    try:
        refuse_unusual(value)
    except UnusualValue as error:
        return UnreadableRow(str(error))
    return value


def _without_a_list_inside(rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The same rows. Raises DataError for `{"data": [...]}` alone, whose rows lie in its list."""
    first_rows = list(itertools.islice(rows, 1))
    for place, row in first_rows:
        name = _list_of_rows(row)
        if name is None:
            continue
        first_rows += itertools.islice(rows, 1)
        if len(first_rows) > 1:
            break  # it is one row of several
        raise DataError(
            f"{place}: an object whose rows lie in its list `{name}`; a list of rows, or one row a "
            "line, is needed. Write that list to a file of its own: "
            f"jq -c '.{name}[]' FILE > rows.jsonl"
        )
    yield from first_rows
    yield from rows


def _list_of_rows(row: Any) -> str | None:
    """The name of the list in an object that may be the rows of the file; None if it has none."""
    if not isinstance(row, dict):
        return None
    for name in LISTS_OF_ROWS:
        values = row.get(name)
        if isinstance(values, list) and values and isinstance(values[0], dict):
            return name
    return None


# --- CSV ------------------------------------------------------------------------------------------


def _csv_rows(path: str, suffix: str, meter: ReadingMeter) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(LONGEST_ROW)  # csv's own limit is 131,072 characters
    with open_text(path, newline="", errors="surrogateescape", meter=meter) as file:
        file_lines = lines_of(file)
        first_line = next(file_lines, "")
        separator = _separator(first_line, suffix)
        # A header with a space after each separator has it between the cells as well.
        spaced = 0 < first_line.count(separator) == first_line.count(separator + " ")
        lines = _CountedQuotes(itertools.chain([first_line], file_lines))
        reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=spaced)
        columns: list[str] | None = None
        while True:
            line_number = reader.line_num + 1
            lines.quotes = 0
            try:
                cells = next(reader, None)
            except csv.Error as error:
                place = _lines(path, line_number, reader.line_num)
                if columns is None or "unexpected end" in str(error):
                    raise DataError(
                        f"{path}:{line_number}: a quote that opens here is never closed"
                    ) from None
                yield place, _row_with_a_quote(place, error, lines.quotes)
                continue
            if cells is None:
                return
            if columns is None:
                columns = _csv_header(path, cells)
            elif cells:  # an empty line is no row
                row = _csv_row(columns, cells)
                if isinstance(row, UnreadableRow):
                    yield _lines(path, line_number, reader.line_num), row
                else:
                    yield f"{path}:{line_number}", row


def _lines(path: str, first: int, last: int) -> str:
    """The place of a bad row, with all its lines: a quote may have taken other rows along."""
    if first == last:
        return f"{path}:{first}"
    return f"{path}:{first}-{last}"


class _CountedQuotes:
    """Lines, and how many quotes the last of them have."""

    def __init__(self, lines: Iterator[str]):
        self.lines = lines
        self.quotes = 0

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            self.quotes += line.count('"')
            yield line


def _row_with_a_quote(place: str, error: csv.Error, quotes: int) -> UnreadableRow:
    """What stands in the place of a row that is no valid CSV.

    Args:
        place: The file and the row's first line.
        error: What csv says.
        quotes: How many quotes the lines have that were read of the row.

    Raises:
        DataError: Where the next row starts is not certain: the lines that follow may be the rest
            of a cell, and would be read as rows.
    """
    if "field limit" in str(error):
        raise DataError(f"{place}: {TOO_LONG}") from None
    if quotes % 2:
        raise DataError(
            f"{place}: a quote inside a cell, and where the cell ends is not certain; write quotes "
            'inside of cells twice ("a ""word"""; Spark: .option("escape", "\\"")), or write JSONL'
        ) from None
    return UnreadableRow("no valid CSV: a quote inside a cell")


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
    if sum(map(len, cells)) > LONGEST_ROW:
        return UnreadableRow(TOO_LONG)
    if any(INVALID_UTF8.search(cell) for cell in cells if not cell.isascii()):
        return UnreadableRow("no valid UTF-8")
    row = {}
    for column, cell in zip(columns, cells, strict=True):
        if cell in NO_VALUE and MAY_BE_MISSING.fullmatch(column):
            continue
        if cell in NOT_A_NUMBER and column in ("instruction", "input"):
            continue
        if cell != "" or CSV_TEXTS.fullmatch(column):
            row[column] = cell
        elif CSV_REWARDS.fullmatch(column):
            row[column] = None
    return _with_lists_of_sides(row)


def _with_lists_of_sides(row: dict[str, str]) -> dict[str, Any] | UnreadableRow:
    """A row of RewardBench 2 or RM-Bench with its lists and counts, which a cell holds as JSON.

    Any other row stays as it is: its two texts may be answers that were asked for in JSON.
    """
    if not _may_have_lists(row):
        return row
    lists = [list_in(row[side]) for side in ("chosen", "rejected")]
    has_lists = "num_correct" in row or _has_lists_of_scores(row)
    if not all(map(is_texts, lists)):
        if not has_lists and not all(PYTHON_LIST.match(row[s]) for s in ("chosen", "rejected")):
            return row
        return UnreadableRow(
            "`chosen` and `rejected` begin like lists of texts and are no JSON lists of them; "
            "write the lists (json.dumps)"
        )
    sentences = [text for texts in lists for text in texts if " " in text]
    if has_lists or (sentences and [len(texts) for texts in lists] == [3, 3]):
        return {column: _value_of_benchmark(column, cell) for column, cell in row.items()}
    return row


def _may_have_lists(row: dict[str, str]) -> bool:
    """Whether both sides begin like lists, in a row with a column of one of the benchmarks."""
    sides = [row.get("chosen") or "", row.get("rejected") or ""]
    if not all(map(LIST_START.match, sides)):
        return False
    of_rm_bench = {"id", "prompt", "domain"} <= row.keys()
    return of_rm_bench or "num_correct" in row or _has_lists_of_scores(row)


def _has_lists_of_scores(row: dict[str, str]) -> bool:
    return any((row.get(column) or "").startswith("[") for column in SCORES_OF_LISTS)


def _value_of_benchmark(column: str, cell: str | None) -> Any:
    """The list or count of a cell; a text of the request stays as it is."""
    if column in ("prompt", "id"):
        return cell
    if column == "num_correct" and cell.isdecimal():
        return int(cell)
    values = list_in(cell)
    if values is None:
        return cell
    return values


# --- Parquet and Arrow ----------------------------------------------------------------------------

ROWS_AT_ONCE = 100  # that are in memory: a small file may hold long texts, each in many rows


def _parquet_rows(path: str, meter: ReadingMeter) -> Iterator[tuple[str, Any]]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    meter.rows = file.metadata.num_rows
    return _numbered(path, _rows_of_batches(path, file.iter_batches(ROWS_AT_ONCE)))


def _arrow_rows(path: str, meter: ReadingMeter) -> Iterator[tuple[str, Any]]:
    return _numbered(path, _rows_of_arrow_file(path, meter))


def _rows_of_folder(folder: str, meter: ReadingMeter) -> Iterator[tuple[str, Any]]:
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
    if len(files) > 1:
        meter = ReadingMeter()  # it watches one file alone
    rows = itertools.chain.from_iterable(_rows_of_arrow_file(file, meter) for file in files)
    return _numbered(folder, rows)


def _numbered(path: str, rows: Iterator[dict]) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(rows, start=1):
        if sum(map(len, texts_in(row))) > LONGEST_ROW:
            row = UnreadableRow(TOO_LONG)
        yield f"{path} row {number}", _of_usual_size(row)


def _rows_of_arrow_file(path: str, meter: ReadingMeter) -> Iterator[dict]:
    import pyarrow

    with pyarrow.memory_map(path) as file:
        meter.watch(file, path)
        if file.read(6) == ARROW[0]:
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            file.seek(0)
            batches = pyarrow.ipc.open_stream(file)
        yield from _rows_of_batches(path, batches)


def _rows_of_batches(path: str, batches: Iterator) -> Iterator[dict | UnreadableRow]:
    """The rows of pyarrow's record batches.

    Decimals become numbers, bytes text if they can, and what datasets has encoded what it means.
    """
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
            elif pyarrow.types.is_binary(field.type) or pyarrow.types.is_large_binary(field.type):
                with contextlib.suppress(pyarrow.ArrowInvalid):  # an image, or some other bytes
                    table = table.set_column(i, field.name, table[i].cast(pyarrow.large_string()))
        columns = encoded_columns(batch.schema.metadata)
        for start in range(0, len(table), ROWS_AT_ONCE):
            for row in table.slice(start, ROWS_AT_ONCE).to_pylist():
                yield _decoded_row(row, columns)


def _decoded_row(row: dict, columns: dict[str, Feature]) -> dict | UnreadableRow:
    """A row with the values that datasets means in these columns, and no padding in the others."""
    row = without_padding(row, columns)
    for column, feature in columns.items():
        try:
            row[column] = decoded(row[column], feature)
        except ValueError:
            return UnreadableRow("a value that datasets stores as JSON is no valid JSON")
    return row
