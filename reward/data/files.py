"""Local files: storing text, and finding the files of a source. Imports no torch.

reward.data.row_files reads the rows of a file.
"""

import glob
import json
import os
import re
from pathlib import Path
from typing import Any, Required, TypedDict

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")
# How the names of data files end.
DATA_SUFFIXES = (
    *TEXT_SUFFIXES,
    *(suffix + packed for suffix in TEXT_SUFFIXES for packed in COMPRESSED_SUFFIXES),
    ".parquet",
    ".arrow",
)

# Such a `path` is no data set: `data_files` names files anywhere.
FILE_BUILDERS = ("json", "csv", "parquet")

LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # valid in JSON, but it cannot be stored as text


class DataError(ValueError):
    """A source that cannot be read or trained on.

    The message names the file and the line, and says what to do.
    """


class WriteError(DataError):
    """An output cannot be written: the disk is full, the folder is read-only, and the like.

    What was there before is as it was.
    """

    @classmethod
    def of(cls, path: str | Path, error: OSError) -> "WriteError":
        """The error about one output."""
        return cls(f"{path}: cannot be written ({error.strerror or error})")


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


# --- Text that can be stored ----------------------------------------------------------------------


def to_json(value: Any) -> str:
    """The JSON of a value: dates and decimals as text, a lone surrogate as U+FFFD."""
    text = json.dumps(value, ensure_ascii=False, default=_without_type)
    return LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def _without_type(value: Any) -> str | dict:
    """A value that JSON has no type for. Bytes that are no text must not be read as one."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"bytes": value.hex()}


def storable(value: Any) -> Any:
    """A value as JSON can hold it.

    Dates and decimals become text, a lone surrogate U+FFFD, and NaN and the infinities null.
    """
    return json.loads(to_json(value), parse_constant=lambda constant: None)


# --- Files that are written whole or not at all ---------------------------------------------------


def replace_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all: a reader sees the old file or the new one.

    Args:
        path: The file. It may exist already.
        text: Its whole content. Line ends are written as they are.
    """
    path = Path(path)
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_text(text, encoding="utf-8", newline="")
        os.replace(fresh, path)
    except BaseException:  # a full disk, or Ctrl-C
        fresh.unlink(missing_ok=True)
        raise


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

    Raises:
        DataError: The split is a part of a split, or a file of it is missing.
    """
    path = os.path.expanduser(source["path"])
    _refuse_slice(source, split)
    if source.get("data_files") and path in FILE_BUILDERS:
        return _listed_files(source, split)
    if is_one_table(path):
        if split == source["split"]:
            return _files_of_table(path)
        # A test split may be a file of its own.
        if split and (split == source["path"] or _is_path(split)):
            return _files_of_table(split)
        return []
    if not os.path.isdir(path):
        return None
    folder = os.path.join(path, source.get("data_dir") or "")
    if split and split in saved_splits(folder):
        return _files_of_table(os.path.join(folder, split))
    return _files_in_folder(glob.escape(folder), split)


SLICE = re.compile(r"\[-?\d*%?:?-?\d*%?\]")  # of datasets, as in train[:10%]


def _refuse_slice(source: Source, split: str | None) -> None:
    """Refuse a part of a split of local files, of which all rows would be read."""
    if split is None or not SLICE.search(split) or _is_path(split):
        return
    path = os.path.expanduser(source["path"])
    if path in FILE_BUILDERS or os.path.exists(path):
        raise DataError(
            f"{source['path']}: the split {split} is a part of the rows, which only data sets of "
            "the Hub have; write these rows into a file of their own, and name that"
        )


def is_one_table(path: str) -> bool:
    """Whether a path is a file of rows, or a folder that `Dataset.save_to_disk` wrote."""
    is_file = path.endswith(DATA_SUFFIXES) or os.path.isfile(path)
    return is_file or saved_dataset_files(path) is not None


def _is_path(split: str) -> bool:
    """Whether the name of a split is a path instead, such as `held-out.jsonl`."""
    return split.endswith(DATA_SUFFIXES) or (os.sep in split and is_one_table(split))


def _files_of_table(path: str) -> list[str]:
    files = saved_dataset_files(path)
    if files is None:
        return [path]
    return files


def saved_dataset_files(folder: str) -> list[str] | None:
    """The files of a folder that `Dataset.save_to_disk` wrote, in order; None for anything else."""
    try:
        state = json.loads(Path(folder, "state.json").read_text(encoding="utf-8"))
        names = [file["filename"] for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return [os.path.join(folder, name) for name in names]


def saved_splits(folder: str) -> list[str]:
    """The splits of a folder that `DatasetDict.save_to_disk` wrote; none for anything else."""
    try:
        content = json.loads(Path(folder, "dataset_dict.json").read_text(encoding="utf-8"))
        return list(content["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


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
    patterns += [f"{split}-*-of-*{suffix}" for suffix in DATA_SUFFIXES]
    patterns += [f"{split}-*.parquet", f"{split}/*"]
    paths = []
    for pattern in patterns:
        paths += sorted(glob.glob(os.path.join(folder, pattern)))
    paths = list(dict.fromkeys(paths))
    below = os.path.join(folder, "data")  # where the Hub's own Parquet files lie in a download
    if not paths and os.path.isdir(below):
        return _files_in_folder(below, split)
    _need_all_shards(paths)
    return paths


# train-00000-of-00002.parquet; folders may have such names too.
SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)[^/]*")


def _need_all_shards(paths: list[str]) -> None:
    """Refuse a split of which a file is missing, such as one whose download was broken off."""
    shards = [match for match in map(SHARD.fullmatch, paths) if match]
    for shard in shards:
        found = {other[2] for other in shards if other.group(1, 3) == shard.group(1, 3)}
        count = int(shard[3])
        if len(found) < count:
            raise DataError(
                f"{shard[1]}-*-of-{shard[3]}: {len(found)} of {count:,} files are here, so rows of "
                "the split would be missing; fetch the others, or name the files (data_files)"
            )
