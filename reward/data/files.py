"""Local files: reading rows with their line numbers, storing text, finding a source's files.

    for line, row in read_rows("pairs.jsonl.gz"): ...

Imports no torch.
"""

import csv
import glob
import gzip
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Required, TextIO, TypedDict

DATA_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")

# An empty cell in these CSV columns is an empty completion. In any other column it is no value.
CSV_TEXTS = re.compile(r"chosen|rejected|response(_?[ab12])?")

LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # valid in JSON, but it cannot be stored as text


class DataError(ValueError):
    """A source that cannot be read or trained on.

    The message names the file and the line, and says what to do.
    """


class Source(TypedDict, total=False):
    """One source of preference pairs, as an entry of a recipe's `datasets:` names it.

    `Recipe.data_sources` fills in every field. Code that reads a test split alone may leave out the
    fields that are not required.
    """

    path: Required[str]  # a file, a folder, a Hub id; or json, csv, parquet for `data_files`
    name: str | None  # the configuration of a Hub data set
    data_dir: str | None  # a folder inside `path`
    data_files: str | list[str] | dict[str, str | list[str]] | None  # one file or many, by split
    split: Required[str | None]  # the split to train on; None where only the test split is read
    test_split: Required[str]  # the split to test on: a split's name, or a local file
    subset: str | None  # the name under which evaluation reports the pairs; None: by their rows
    # The columns to read, or a mapping of our names to theirs; None reads all under their names.
    columns: list[str] | dict[str, str] | None
    fraction: float | None  # share of the mixture, relative to the others'; None keeps all rows
    streaming: bool  # read the train split as a stream, without a copy on disk


def describe_source(source: Source) -> str:
    """A source in a few words: its path, configuration and folder, as far as it has them."""
    parts = [source["path"], source.get("name"), source.get("data_dir")]
    return " ".join(str(part) for part in parts if part)


# --- Reading rows ---------------------------------------------------------------------------------


# Pairs of a row's number and the row. The number is the line of the file in JSONL and CSV, and
# counts the rows from 1 in JSON and Parquet. The row is a dict, unless the file's JSON holds
# something else.
NumberedRows = Iterator[tuple[int, Any]]


def read_rows(path: str) -> NumberedRows:
    """The rows of a local JSONL, JSON, CSV or Parquet file, plain or .gz, with their numbers.

    Raises:
        DataError: The file cannot be read. The message names file and line, never content.
    """
    # Imported here, because it takes a tenth of a second and checking a recipe does not need it.
    from pyarrow import ArrowException

    try:
        yield from _rows_of(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder; a file of rows is needed here") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: cannot be read as json at line {error.lineno} ({type(error).__name__})"
        ) from None
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, ArrowException) as error:
        suffix = path.removesuffix(".gz").rsplit(".", 1)[-1]
        raise DataError(f"{path}: cannot be read as {suffix} ({type(error).__name__})") from None


def _rows_of(path: str) -> NumberedRows:
    """The rows, read in the format that the suffix names; JSONL for any other suffix."""
    plain = path.removesuffix(".gz")
    if plain.endswith(".parquet"):
        return _parquet_rows(path)
    if plain.endswith(".csv"):
        return _csv_rows(path)
    if plain.endswith(".json"):
        return _json_rows(path)
    return _jsonl_rows(path)


def _parquet_rows(path: str) -> NumberedRows:
    from pyarrow import parquet

    batches = parquet.ParquetFile(path).iter_batches(1000)
    rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
    yield from enumerate(rows, start=1)


def _csv_rows(path: str) -> NumberedRows:
    with open_text(path, newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for row in reader:
            # DictReader puts surplus cells under the key None, and None into missing cells.
            if None in row or None in row.values():
                raise DataError(
                    f"{path}:{reader.line_num}: {len(reader.fieldnames)} columns are needed"
                )
            yield reader.line_num, _csv_values(row)


def _csv_values(row: dict[str, str]) -> dict[str, str]:
    """The cells of a row without the empty cells that mean "no value"."""
    values = {}
    for column, cell in row.items():
        if cell != "" or CSV_TEXTS.fullmatch(column):
            values[column] = cell
    return values


def _json_rows(path: str) -> NumberedRows:
    with open_text(path) as file:
        rows = json.load(file)
    if not isinstance(rows, list):
        raise DataError(f"{path}: a JSON list of rows is needed; one row a line is a .jsonl file")
    yield from enumerate(rows, start=1)


def _jsonl_rows(path: str) -> NumberedRows:
    # The lines are split as bytes: text would also break at a lone carriage return.
    with _opener(path)(path, "rb") as file:
        for line_number, line in enumerate(file, start=1):
            if line.strip():
                yield line_number, _json_of_line(path, line_number, line)


def _json_of_line(path: str, line_number: int, line: bytes) -> Any:
    encoding = "utf-8"
    if line_number == 1:
        encoding = "utf-8-sig"  # the file may start with a byte order mark
    try:
        return json.loads(line.decode(encoding))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{line_number}: no valid JSON at column {error.colno}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}:{line_number}: no valid UTF-8") from None


def open_text(path: str, newline: str | None = None) -> TextIO:
    """Open a text file in UTF-8, plain or .gz, for reading."""
    return _opener(path)(path, "rt", encoding="utf-8", newline=newline)


def _opener(path: str) -> Callable[..., Any]:
    if path.endswith(".gz"):
        return gzip.open
    return open


# --- Text that can be stored ----------------------------------------------------------------------


def to_json(value: Any) -> str:
    """The JSON of a value: dates and decimals as text, a lone surrogate as U+FFFD."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def storable(value: Any) -> Any:
    """A value as JSON can hold it: dates and decimals as text, no lone surrogates."""
    return json.loads(to_json(value))


# --- Files that are written whole or not at all ---------------------------------------------------


def replace_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all: a reader sees the old file or the new one.

    Args:
        path: The file. It may exist already.
        text: Its whole content. Line ends are written as they are.
    """
    path = Path(path)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8", newline="")
    os.replace(fresh, path)


def write_json(path: str | Path, value: dict | list) -> None:
    """Write a JSON file whole or not at all."""
    replace_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


# --- Local files of a source ----------------------------------------------------------------------


def is_local(path: str) -> bool:
    """Whether a source's path is a file or a folder. Otherwise it is a Hub id of 1 or 2 parts."""
    if path.startswith(("/", ".", "~")) or path.endswith(DATA_SUFFIXES):
        return True
    return os.path.exists(path) or path.count("/") > 1


def local_files(source: Source, split: str | None) -> list[str] | None:
    """The local files of one split of a source.

    Returns:
        The paths in order; an empty list if the source has no such split; None if the source is
        a data set of the Hub.
    """
    path = os.path.expanduser(source["path"])
    if source.get("data_files") and path in ("json", "csv", "parquet"):
        return _listed_files(source, split)
    if path.endswith(DATA_SUFFIXES):
        if split == source["split"]:
            return [path]
        if split and split.endswith(DATA_SUFFIXES):  # a test split may be a file of its own
            return [split]
        return []
    if not os.path.isdir(path):
        return None
    folder = os.path.join(glob.escape(path), source.get("data_dir") or "")
    return _files_in_folder(folder, split)


def _listed_files(source: Source, split: str | None) -> list[str]:
    """The files that `data_files` lists for a split; a pattern stands for every file it matches."""
    files_by_split = source["data_files"]
    if not isinstance(files_by_split, dict):
        files_by_split = {source["split"]: files_by_split}
    patterns = files_by_split.get(split, [])
    if isinstance(patterns, str):
        patterns = [patterns]
    paths = []
    for pattern in patterns:
        pattern = os.path.expanduser(pattern)
        paths += sorted(glob.glob(pattern)) or [pattern]
    return paths


def _files_in_folder(folder: str, split: str | None) -> list[str]:
    """The files of a split: train.jsonl, train-00000-of-00002.parquet, or all in train/."""
    patterns = [f"{split}{suffix}" for suffix in DATA_SUFFIXES]
    patterns += [f"{split}-*.parquet", f"{split}/*"]
    paths = []
    for pattern in patterns:
        paths += sorted(glob.glob(os.path.join(folder, pattern)))
    return paths
