"""A local file of rows -> (line, row), and text that can be stored; imports no torch.

for line, row in read_rows("pairs.jsonl.gz"): ...
"""

import csv
import glob
import gzip
import itertools
import json
import os
import re
from pathlib import Path
from typing import Required, TypedDict

CSV_TEXTS = re.compile(
    r"chosen|rejected|response(_?[ab12])?"
)  # an empty cell of these is an empty completion


LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # valid in JSON, but no text that can be stored


class DataError(ValueError):
    """A source that cannot be read or trained on; the message names file and line, and the mend."""


class Source(TypedDict, total=False):
    """One source of preference pairs, as an entry of a recipe's `datasets:` names it.

    `Recipe.data_sources` fills in every field. Code that needs a test split alone may leave out all
    but the required ones.
    """

    path: Required[str]  # a file, a folder, a Hub id; or json, csv, parquet for `data_files`
    name: str | None  # the configuration of a Hub data set
    data_dir: str | None  # a folder inside `path`
    data_files: str | list[str] | dict[str, str | list[str]] | None  # one file or many, by split
    split: Required[str | None]  # the split to train on; None where only the test split is read
    test_split: Required[str]  # the split to test on: a split's name, or a local file
    subset: str | None  # the name under which evaluation reports the pairs; None: by their rows
    columns: list[str] | None  # the columns to read; None reads all
    fraction: float | None  # share of the mixture, relative to the others'; None keeps all rows
    streaming: bool  # read the train split as a stream, without a copy on disk


def read_rows(path: str):
    """(physical line, row) of a local JSONL, JSON, CSV or Parquet file, plain or .gz. Raises DataError naming file and
    line, never content."""
    # Imported here: it takes a tenth of a second, and a recipe is checked without it.
    from pyarrow import ArrowException, parquet

    plain = path.removesuffix(".gz")
    opener = gzip.open if path.endswith(".gz") else open
    try:
        if plain.endswith(".parquet"):
            batches = parquet.ParquetFile(path).iter_batches(1000)
            yield from enumerate(
                itertools.chain.from_iterable(batch.to_pylist() for batch in batches), start=1
            )
        elif plain.endswith(".csv"):
            with opener(path, "rt", encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    if None in row or None in row.values():
                        raise DataError(
                            f"{path}:{reader.line_num}: {len(reader.fieldnames)} columns are needed"
                        )
                    yield (
                        reader.line_num,
                        {k: v for k, v in row.items() if v != "" or CSV_TEXTS.fullmatch(k)},
                    )
        elif plain.endswith(".json"):
            with opener(path, "rt", encoding="utf-8") as file:
                rows = json.load(file)
            if not isinstance(rows, list):
                raise DataError(
                    f"{path}: a JSON list of rows is needed; one row a line is a .jsonl file"
                )
            yield from enumerate(rows, start=1)
        else:
            with opener(path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        try:
                            yield (
                                number,
                                json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")),
                            )
                        except json.JSONDecodeError as error:
                            raise DataError(
                                f"{path}:{number}: no valid JSON at column {error.colno}"
                            ) from None
                        except UnicodeDecodeError:
                            raise DataError(f"{path}:{number}: no valid UTF-8") from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder; a file of rows is needed here") from None
    except (
        OSError,
        EOFError,
        UnicodeDecodeError,
        csv.Error,
        json.JSONDecodeError,
        ArrowException,
    ) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(
            f"{path}: cannot be read as {plain.rsplit('.', 1)[-1]}{where} ({type(error).__name__})"
        ) from None


def to_json(side) -> str:
    return LONE_SURROGATE.sub(
        "\N{REPLACEMENT CHARACTER}", json.dumps(side, ensure_ascii=False, default=str)
    )


def storable(row):
    """The row as JSON can hold it: dates and decimals as text, no lone surrogates."""
    return json.loads(to_json(row))


# --- Files that are written whole or not at all ---------------------------------------------------


def replace_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all: whoever reads meanwhile sees the old file or the new.

    Args:
        path: The file, which may exist.
        text: Its whole content. Line ends are written as they are.
    """
    path = Path(path)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8", newline="")
    os.replace(fresh, path)


def write_json(path: str | Path, value: dict | list) -> None:
    """Write a JSON file whole or not at all."""
    replace_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


# --- Local files of a source -----------------------------------------------------------------------


DATA_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")


def is_local(value: str) -> bool:
    """A file or folder, not a Hub id: those have one or two parts."""
    known = (
        value.startswith(("/", ".", "~")) or value.endswith(DATA_SUFFIXES) or os.path.exists(value)
    )
    return known or value.count("/") > 1


def local_files(source: Source, split: str | None) -> list[str] | None:
    """The local files of one split of a source; None for a Hub dataset, [] where the source has no such split."""
    path, files = os.path.expanduser(source["path"]), source.get("data_files")
    if files and path in ("json", "csv", "parquet"):
        if not isinstance(files, dict):
            files = {source["split"]: files}
        listed = files.get(split, [])
        listed = [
            os.path.expanduser(file) for file in ([listed] if isinstance(listed, str) else listed)
        ]
        return [name for pattern in listed for name in sorted(glob.glob(pattern)) or [pattern]]
    if path.endswith(DATA_SUFFIXES):
        second = [split] if split and split.endswith(DATA_SUFFIXES) else []
        return [path] if split == source["split"] else second
    if not os.path.isdir(path):
        return None
    folder = os.path.join(glob.escape(path), source.get("data_dir") or "")
    patterns = [f"{split}{suffix}" for suffix in DATA_SUFFIXES] + [
        f"{split}-*.parquet",
        f"{split}/*",
    ]
    return [
        name for pattern in patterns for name in sorted(glob.glob(os.path.join(folder, pattern)))
    ]
