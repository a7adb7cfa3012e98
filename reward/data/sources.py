"""Files, folders and Hub datasets of preferences -> Arrow tables of canonical pairs."""

import hashlib
import json
import os
from pathlib import Path

from datasets import Dataset, Features, List, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from reward.data.files import DataError, local_files, read_rows, to_json
from reward.data.formats import RowError, is_rating, rating_pairs, to_pairs
from reward.data.transcripts import first_user_turn, text_of

# Part of every cache key: datasets does not see a change in a function that its generator merely calls.
CODE = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()


LABELS = (  # what the raters said, where a row says it
    "target_margin", "chosen_probability", "strength", "rating_chosen", "rating_rejected", "bayes_accuracy",
)  # fmt: skip


FEATURES = Features(
    {
        **{
            name: Value("string")
            for name in ("prompt", "chosen", "rejected", "tools", "subset", "where", "drop")
        },
        # ranking: the pairs of one row (K completions of a prompt) share it
        **{name: Value("int64") for name in ("turn_key", "pair_key", "swap_key", "ranking")},
        **{name: Value("float64") for name in LABELS},
        "votes": List(Value("int64")),
    }
)


# ------------------------------------------------------------------------------------------------------- reading rows


def _hub_split(source: dict, split: str):
    """A split of a Hub dataset; None where the dataset has no such split. Raises DataError where it is not found."""
    options = {key: source[key] for key in ("name", "data_dir", "data_files") if source.get(key)}
    try:
        return load_dataset(
            source["path"], split=split, streaming=bool(source.get("streaming")), **options
        )
    except ValueError as error:
        if "Unknown split" in str(error) or "Bad split" in str(error):
            return None
        raise DataError(f"{source['path']}: {error}") from error
    except (OSError, DatasetGenerationError) as error:
        raise DataError(
            f"{source['path']}: cannot be loaded ({type(error).__name__}: {error}). A Hub id needs network and, where "
            "gated, `hf auth login`; a local path starts with ./ or ends in .jsonl, .json, .csv or .parquet."
        ) from error


def canonical_rows(rows, transcript: str, subset: str | None, columns: tuple | None):
    """`(where, row)` pairs -> rows of the table (FEATURES). Raises DataError for a malformed row."""
    rows = ((where, row) for where, row in rows)
    for where, group in _grouped(rows):
        try:
            if columns:
                group = [{name: row[name] for name in columns if name in row} for row in group]
            pairs = (
                rating_pairs(group)
                if len(group) > 1 or is_rating(group[0])
                else to_pairs(group[0], transcript)
            )
        except RowError as error:
            following = (
                f" (or the {len(group) - 1} after it with the same prompt)"
                if len(group) > 1
                else ""
            )
            raise DataError(f"{where}{following}: {error}") from None
        for pair in pairs:
            prompt, chosen, rejected, tools = (
                pair.get(key) for key in ("prompt", "chosen", "rejected", "tools")
            )
            yield {
                **{key: pair.get(key) for key in ("votes", *LABELS)},
                **{side: to_json(pair[side]) for side in ("prompt", "chosen", "rejected")},
                "tools": tools if isinstance(tools, (str, type(None))) else json.dumps(tools),
                "subset": subset or pair.get("subset") or "all",
                "where": where,
                "drop": pair["drop"],
                "ranking": _key(where, text_of(prompt)),
                "turn_key": _key(first_user_turn(prompt)),
                "pair_key": _key(text_of(prompt), text_of(chosen), text_of(rejected)),
                "swap_key": _key(text_of(prompt), text_of(rejected), text_of(chosen)),
            }


def _grouped(rows):
    """One group a row; rated completions of one prompt that follow each other form one group."""
    held, where_held = [], None
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(
                f"{where}: a row is a JSON object with named columns; found {type(row).__name__}"
            )
        if held and not (is_rating(row) and row["prompt"] == held[0]["prompt"]):
            yield where_held, held
            held = []
        if is_rating(row):
            held, where_held = [*held, row], where_held if held else where
        else:
            yield where, [row]
    if held:
        yield where_held, held


def _file_rows(files):
    for path in files:
        by_line = path.removesuffix(".gz").endswith((".jsonl", ".csv"))
        for number, row in read_rows(path):
            yield f"{path}:{number}" if by_line else f"{path} row {number}", row


def _hub_rows(dataset, label: str):
    return ((f"{label} row {number}", row) for number, row in enumerate(dataset))


def _generate(files, stamps, dataset, label, transcript, subset, columns):
    """The generator behind a table; `stamps` only makes datasets' cache notice a changed file or changed code."""
    rows = _hub_rows(dataset, label) if files is None else _file_rows(files)
    yield from canonical_rows(rows, transcript, subset, columns)


def _generator_of(source: dict, split: str, transcript: str) -> dict | None:
    """The arguments of `_generate` for one split of a source; None where the source has no such split."""
    files = local_files(source, split)
    if files == []:
        return None
    dataset = _hub_split(source, split) if files is None else None
    if files is None and dataset is None:
        return None
    try:
        stamps = (CODE, *((os.stat(f).st_size, os.stat(f).st_mtime_ns) for f in files or ()))
    except OSError as error:
        raise DataError(f"{error.filename}: no such data file") from None
    return {
        "files": None if files is None else tuple(files),
        "stamps": stamps,
        "dataset": dataset,
        "label": f"{source['path']}{'/' + source['data_dir'] if source.get('data_dir') else ''} [{split}]",
        "transcript": transcript,
        "subset": source.get("subset"),
        "columns": tuple(source["columns"]) if source.get("columns") else None,
    }


def _table(source: dict, split: str, transcript: str) -> Dataset | None:
    arguments = _generator_of(source, split, transcript)
    if arguments is None:
        return None
    try:
        return Dataset.from_generator(_generate, features=FEATURES, gen_kwargs=arguments)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise
    except ValueError as error:  # datasets' word for a generator that yields nothing
        if "corresponds to no data" in str(error) or "Instruction" in str(error):
            raise DataError(f"{arguments['label']}: the {split} split has no rows") from None
        raise


def _key(*texts: str) -> int:
    digest = hashlib.blake2b(
        "\x1e".join(texts).encode("utf-8", "surrogatepass"), digest_size=8
    ).digest()
    return int.from_bytes(digest, "big", signed=True)
