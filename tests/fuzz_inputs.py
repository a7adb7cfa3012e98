"""Strategies of hypothesis for what strangers write: rows, files of rows, recipes, checkpoints.

About half of what they draw is well-formed, so that a reader gets beyond its first check.
"""

import bz2
import copy
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow
from hypothesis import strategies as st
from hypothesis.strategies import composite
from pyarrow import parquet
from row_layouts import COMPLETION_ROWS, PREFERENCE_ROWS
from support import REPO

from reward.recipe.keys import KEYS

ESCAPE = "\x1b[31mred"

NAMES = (
    *("prompt", "chosen", "rejected", "instruction", "input", "question", "system", "history"),
    *("messages", "context", "completion", "response", "output", "completions", "answers", "ranks"),
    *("label", "winner", "votes", "margin", "tools", "images", "subset", "source", "domain", "id"),
    *("reward", "rewards", "reward_chosen", "reward_rejected", "reward_error", "scores", "text"),
    *("chosen_tokens", "rejected_tokens", "human_labels", "bayes_accuracy", "chosen_probability"),
    *("rating_chosen", "rating_rejected", "num_correct", "judgments", "gold", "rating"),
    *("note", "", "A", "\ud800", ESCAPE, "x" * 500, "a\nb", "\u202e"),
)

# What stands in the text of a file for what no Python value is written as.
RAW = {
    "@digits@": "9" * 4400,
    "@deep@": "[" * 3000 + "]" * 3000,
    "@huge@": "1e999",
    "@nan@": "NaN",
    "@twice@": '{"a": 1, "a": 2}',
    "@cut@": '{"a": ',
}

TEXTS = st.one_of(
    st.sampled_from(
        ("", " ", "a", "It is 4.", "Human:", "\n\nHuman: a\n\nAssistant: b", "[INST]", "H: \nA: ")
    ),
    st.sampled_from(("\ud800", "\x00", ESCAPE, "\u202eabc", "<|im_end|>", '["', "[{", "@", "=1+1")),
    st.text(max_size=8),
)
NUMBERS = st.sampled_from(
    (0, 1, -1, 2, 0.5, 1e308, 2**63, -(2**63) - 1, 10**400, float("nan"), float("inf"), True, False)
)
SCALARS = st.one_of(st.none(), TEXTS, NUMBERS, st.sampled_from((*RAW, "1e999", "nan", "-1", "[1]")))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from((*NAMES, "role", "content", "from", "value")), inner),
        st.builds(lambda value: [{"role": "user", "content": value}], inner),
        st.builds(lambda value: [{"role": "assistant", "tool_calls": [value]}], inner),
    ),
    max_leaves=4,
)


# --- Rows -----------------------------------------------------------------------------------------

PREFERENCES = tuple(PREFERENCE_ROWS.values())
TO_SCORE = PREFERENCES + tuple(COMPLETION_ROWS.values())


def _scored_rows() -> tuple[dict, ...]:
    """A row of every format of scores that audit.py reads."""
    rows = []
    for row in PREFERENCES:
        rows.append({**row, "reward_chosen": 1.5, "reward_rejected": -0.5, "margin": 2.0})
    rows += [{**COMPLETION_ROWS["prompt, completion"], "reward": 0.5, "gold": 1, "rating": 3}]
    rows += [{**COMPLETION_ROWS["prompt, completions"], "rewards": [0.5, 1.0, -1.0]}]
    sides = {"text_chosen": "q\n\na b", "text_rejected": "q\n\nc"}
    rows += [{"prompt": "q", "subset": "s", **sides, "scores_chosen": 1, "scores_rejected": 0}]
    rows += [{**PREFERENCE_ROWS["RewardBench 2"], "scores_chosen": [1], "scores_rejected": [0, 2]}]
    rows += [{"text": ["a", "b"], "scores": [1, 0], "num_correct": 1, "subset": "Ties", "id": "1"}]
    three = {"chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat"}
    rows += [{"prompt": "q", **three, "score_chosen": [1, 2, 3], "score_rejected": [0, 1, 4]}]
    judgments = [{"judgment": {"scores": [1, 2]}}]
    rows += [{**PREFERENCE_ROWS["JudgeBench"], "judgments": judgments}]
    rows += [{**PREFERENCE_ROWS["LLMBar"], "reward_1": 1.0, "reward_2": 0.0}]
    return tuple(rows)


SCORED = _scored_rows()


@composite
def rows_like(draw, layout: dict) -> dict:
    """A row of a layout, of which up to three columns are dropped, renamed, changed or added."""
    row = copy.deepcopy(layout)
    for change in draw(st.lists(st.sampled_from(("drop", "rename", "value", "add")), max_size=3)):
        if change == "add" or not row:
            row[draw(st.sampled_from(NAMES))] = draw(VALUES)
            continue
        column = draw(st.sampled_from(list(row)))
        if change == "drop":
            del row[column]
        elif change == "rename":
            row[draw(st.sampled_from(NAMES))] = row.pop(column)
        else:
            row[column] = _changed(draw, row[column])
    return row


def _changed(draw: Callable, value: object) -> object:
    """Another value, or the same with a part of it changed."""
    if isinstance(value, list) and value and draw(st.booleans()):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], _changed(draw, value[index]), *value[index + 1 :]]
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(list(value)))
        return {**value, key: _changed(draw, value[key])}
    return draw(VALUES)


# --- Files of rows --------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowFile:
    """A file of rows as it lies on the disk."""

    name: str
    content: bytes
    rows: list[dict] | None  # what was written; None if the bytes were damaged

    def write(self, folder: Path) -> Path:
        """Write it into a folder. Returns its path."""
        path = folder / self.name
        path.write_bytes(self.content)
        return path


def _jsonl(rows: list[dict]) -> bytes:
    return _encoded("".join(json.dumps(row) + "\n" for row in rows))


def _json(rows: list[dict]) -> bytes:
    return _encoded(json.dumps(rows))


def _indented(rows: list[dict]) -> bytes:
    return _encoded("\n".join(json.dumps(row, indent=1) for row in rows))


def _utf16(rows: list[dict]) -> bytes:
    text = _encoded("".join(json.dumps(row) + "\n" for row in rows)).decode()
    return text.encode("utf-16")


def _encoded(text: str) -> bytes:
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text.encode("utf-8", "surrogatepass")


def _csv(rows: list[dict]) -> bytes:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in columns])
    return sink.getvalue().encode("utf-8", "surrogatepass")


def _cell(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value)


def _table(rows: list[dict]) -> pyarrow.Table | None:
    """The rows as a table; None if one cannot hold them."""
    try:
        return pyarrow.Table.from_pylist(rows)
    except (pyarrow.ArrowException, OverflowError, UnicodeError, ValueError, TypeError):
        return None


def _parquet(rows: list[dict]) -> bytes:
    table = _table(rows)
    sink = io.BytesIO()
    try:
        parquet.write_table(table, sink)
    except (AttributeError, pyarrow.ArrowException):
        return _jsonl(rows)
    return sink.getvalue()


def _arrow(rows: list[dict]) -> bytes:
    table = _table(rows)
    if table is None:
        return _jsonl(rows)
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


# The suffix, and what writes the content. Those that hold every row as it is come first.
EXACT = ((".jsonl", _jsonl), (".ndjson", _jsonl), (".json", _jsonl), (".json", _json))
KINDS = EXACT + (
    *((".json", _indented), (".jsonl", _json), (".txt", _jsonl), (".jsonl", _utf16)),
    *((".csv", _csv), (".tsv", _csv), (".parquet", _parquet), (".arrow", _arrow)),
)


def _zipped(content: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows", content)
    return sink.getvalue()


def _zst(content: bytes) -> bytes:
    return pyarrow.compress(content, "zstd", asbytes=True)


PACKINGS = (
    ("", bytes),
    (".gz", gzip.compress),
    (".bz2", bz2.compress),
    (".xz", lzma.compress),
    (".zst", _zst),
    (".zip", _zipped),
)


@composite
def damaged(draw, content: bytes) -> bytes:
    """Bytes of which some are flipped, cut off, doubled, or put between."""
    content = bytearray(content)
    kinds = st.sampled_from(("flip", "cut", "double", "insert", "zero"))
    for kind in draw(st.lists(kinds, min_size=1, max_size=3)):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        if kind == "cut" or not content:
            del content[place:]
        elif kind == "flip":
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "double":
            content[place:place] = content[place : place + draw(st.integers(1, 400))]
        elif kind == "zero":
            end = min(len(content), place + draw(st.integers(1, 40)))
            content[place:end] = bytes(end - place)
        else:
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
    return bytes(content)


@composite
def row_files(draw, layouts: tuple[dict, ...], own_files: tuple[bytes, ...] = ()) -> RowFile:
    """A file of rows of one or several layouts, in any format, plain or compressed.

    Args:
        draw: What hypothesis passes.
        layouts: One row of each layout.
        own_files: The unpacked content of real files, which are damaged.
    """
    if own_files and draw(st.integers(0, 5)) == 0:
        content = draw(damaged(draw(st.sampled_from(own_files))))
        suffix = draw(st.sampled_from((".jsonl", ".json", ".csv", ".parquet", ".txt")))
        return RowFile(f"rows{suffix}", content, None)
    layout = draw(st.sampled_from(layouts))
    rows = draw(st.lists(rows_like(layout), min_size=1, max_size=4))
    if draw(st.integers(0, 7)) == 0:
        rows.append(draw(rows_like(draw(st.sampled_from(layouts)))))
    if draw(st.booleans()):
        suffix, write = draw(st.sampled_from(EXACT))
        return RowFile(f"rows{suffix}", write(rows), rows)
    suffix, write = draw(st.sampled_from(KINDS))
    content = write(rows)
    if draw(st.integers(0, 3)) == 0:
        content = draw(damaged(content))
    packed, pack = draw(st.sampled_from(PACKINGS))
    content = pack(content)
    if draw(st.integers(0, 3)) == 0:
        content = draw(damaged(content))
    if draw(st.integers(0, 9)) == 0:
        suffix = draw(st.sampled_from(KINDS))[0]
    return RowFile(f"rows{suffix}{packed}", content, None)


def real_files() -> tuple[bytes, ...]:
    """The first lines of the demonstration's data, as JSONL and as Parquet."""
    with gzip.open(REPO / "data/quickstart/train.jsonl.gz") as file:
        lines = b"".join(next(file) for _ in range(5))
    rows = [json.loads(line) for line in lines.splitlines()]
    return (lines, gzip.compress(lines), _parquet(rows), _csv(rows))


# --- Recipes --------------------------------------------------------------------------------------


@composite
def recipe_values(draw, key: str) -> object:
    """A value of a key: one of its type, or any."""
    spec = KEYS[key]
    if spec.choices and draw(st.booleans()):
        return draw(st.sampled_from(sorted(spec.choices)))
    if draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    of_type = {
        "bool": st.booleans(),
        "int": st.integers(-2, 4000),
        "float": st.floats(0, 1) | st.sampled_from((1e-5, 2e-5, 0.1)),
        "str": st.text(max_size=6) | st.sampled_from(("no", "1e-5", "2020-01-01", "null", "a b")),
        "list": st.lists(st.sampled_from(("q_proj", "v_proj", "1")), max_size=2),
        "dict": st.dictionaries(st.sampled_from(("a", "b")), SCALARS, max_size=2),
        "null": st.none(),
    }
    return draw(of_type[draw(st.sampled_from(sorted(spec.types)))])


@composite
def recipes(draw, shipped: tuple[str, ...]) -> bytes:
    """The text of a recipe: a shipped one with other values, or with other bytes."""
    text = draw(st.sampled_from(shipped))
    if draw(st.integers(0, 2)) == 0:
        return draw(damaged(text.encode()))
    for key in draw(st.lists(st.sampled_from(sorted(KEYS)), max_size=4, unique=True)):
        lines = [line for line in text.splitlines() if not line.startswith(f"{key}:")]
        value = json.dumps(draw(recipe_values(key)))
        text = "\n".join([*lines, f"{key}: {value}"]) + "\n"
    return text.encode("utf-8", "surrogatepass")


# --- Checkpoints ----------------------------------------------------------------------------------

INSTEAD = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b"1",
    b'"x"',
    b"\x00" * 16,
    b'{"a": ',
    b"version https://git",
)


@dataclass(frozen=True)
class DamagedFile:
    """One file of a checkpoint, and what lies in its place."""

    name: str
    content: bytes | None  # None: it is missing


@composite
def damages(draw, models: dict[str, Path]) -> tuple[str, list[DamagedFile]]:
    """A model, and one or two of its files that are missing, damaged, swapped or of another type.

    Args:
        draw: What hypothesis passes.
        models: The folder of each model, by a name.
    """
    model = draw(st.sampled_from(sorted(models)))
    names = sorted(path.name for path in models[model].iterdir() if path.is_file())
    changes = []
    for name in draw(st.lists(st.sampled_from(names), max_size=2, unique=True)):
        content = (models[model] / name).read_bytes()
        kind = draw(st.sampled_from(("missing", "damaged", "swapped", "another", "key", "key")))
        if kind == "missing":
            content = None
        elif kind == "damaged":
            content = draw(damaged(content))
        elif kind == "swapped":
            other = models[draw(st.sampled_from(sorted(models)))] / name
            content = other.read_bytes() if other.is_file() else None
        elif kind == "key" and name.endswith(".json"):
            content = draw(with_other_values(content))
        else:
            content = draw(st.sampled_from(INSTEAD))
        changes.append(DamagedFile(name, content))
    return model, changes


@composite
def with_other_values(draw, content: bytes) -> bytes:
    """A JSON file of which one or two values are others."""
    value = json.loads(content)
    for _ in range(draw(st.integers(1, 2))):
        if isinstance(value, dict) and value:
            key = draw(st.sampled_from(sorted(value)))
            if draw(st.integers(0, 3)) == 0:
                del value[key]
            else:
                value[key] = _changed(draw, value[key])
    return _encoded(json.dumps(value))
