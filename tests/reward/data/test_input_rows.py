"""What score.py reads: files, folders of splits, Hub data sets, standard input; in chunks."""

import gzip
import io
import json
import os
import sys

import pytest
from support import write_rows

from reward.data import row_files
from reward.data.bad_rows import UnreadableRow
from reward.data.files import DataError
from reward.data.input_rows import (
    InputRow,
    RowDigest,
    chunks,
    input_fault,
    input_rows,
    kept_rows,
)
from reward.data.row_files import JsonText, read_rows
from reward.data.unpacking import ReadingMeter

ROWS = [{"prompt": "¿Té?", "completion": "Sí"}, {"prompt": "hi", "completion": "no"}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


@pytest.fixture
def from_stdin(monkeypatch, tmp_path):
    """`from_stdin(content)` -> (place, row) of each row of standard input."""

    def call(content: bytes) -> list[tuple]:
        (tmp_path / "stdin").write_bytes(content)
        with open(tmp_path / "stdin", encoding="utf-8") as file:
            monkeypatch.setattr(sys, "stdin", file)
            return [tuple(placed) for placed in input_rows("-").rows]

    return call


@pytest.mark.parametrize(
    ("content", "places"),
    [
        (JSONL, (":1", ":2")),
        (b"\n \n" + JSONL, (":3", ":4")),
        (b"\xef\xbb\xbf" + JSONL, (":1", ":2")),
        (json.dumps(ROWS, indent=1).encode(), (" row 1", " row 2")),
        (gzip.compress(JSONL, mtime=0), (":1", ":2")),
        ("prompt,completion\n¿Té?,Sí\nhi,no\n".encode(), (":2", ":3")),
        ("prompt;completion\n¿Té?;Sí\nhi;no\n".encode("utf-16"), (":2", ":3")),
    ],
)
def test_standard_input(from_stdin, content, places):
    expected = [(f"standard input{place}", row) for place, row in zip(places, ROWS, strict=True)]
    assert from_stdin(content) == expected


def test_standard_input_is_read_as_it_comes(monkeypatch):
    read_end, write_end = os.pipe()
    with open(read_end) as file, open(write_end, "wb", buffering=0) as sink:
        monkeypatch.setattr(sys, "stdin", file)
        rows = input_rows("-").rows
        sink.write(JSONL)
        assert next(rows).row == ROWS[0]
        sink.write(b"oops\n")
        sink.close()
        (_, second), (place, bad) = rows
    assert second == ROWS[1]
    assert (place, bad) == ("standard input:3", UnreadableRow("no valid JSON", " at column 1"))


def test_bad_standard_input(from_stdin):
    assert from_stdin(b"") == []
    with pytest.raises(DataError, match="^standard input: cannot be read as json at line 2"):
        from_stdin(b'[{"a": 1},\n oops]')
    with pytest.raises(DataError, match="^standard input: the compressed file is cut off"):
        from_stdin(gzip.compress(JSONL * 100)[:-20])


def test_folders_of_splits(tmp_path):
    write_rows(tmp_path / "train-00000-of-00002.jsonl", ROWS[:1])
    write_rows(tmp_path / "train-00001-of-00002.jsonl", ROWS[1:])
    rows = input_rows(str(tmp_path), split="train").rows
    assert [placed.row for placed in rows] == ROWS
    with pytest.raises(DataError, match="no 'test' split; name one that it has with --split"):
        input_rows(str(tmp_path), split="test")


def test_what_is_no_input(tmp_path):
    path = str(write_rows(tmp_path / "a.jsonl", ROWS))
    assert input_fault(path, None) is input_fault("-", None) is None
    assert input_fault("org/name", "train") is None
    assert input_fault(str(tmp_path / "b.jsonl"), None) == "no such file"
    assert input_fault("./b", None) == "no such file"
    assert "name its split too: --split train" in input_fault("org/name", None)
    assert "this is neither" in input_fault(path, "train")
    assert "this is neither" in input_fault("-", "train")


# --- JSON in blocks -------------------------------------------------------------------------------

VALUES = [1, -12345.5e-3, True, None, 'é\u1234"\\ x😀', [1, {"b": []}, ""], {}, "plain"]
DOCUMENT = [{"value": value, "n": n} for n, value in enumerate(VALUES)]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_is_the_same_wherever_a_block_ends(monkeypatch, tmp_path, block, indent, ascii_only):
    monkeypatch.setattr(row_files, "BLOCK", block)
    text = json.dumps(DOCUMENT, indent=indent, ensure_ascii=ascii_only)
    (tmp_path / "list.json").write_text(f" {text}\n ", encoding="utf-8")
    assert [placed.row for placed in read_rows(str(tmp_path / "list.json"))] == DOCUMENT
    objects = [json.dumps(row, indent=2, ensure_ascii=ascii_only) for row in DOCUMENT[:3]]
    (tmp_path / "objects.json").write_text("\n".join(objects), encoding="utf-8")
    placed = list(read_rows(str(tmp_path / "objects.json")))
    assert [row for _, row in placed] == DOCUMENT[:3]
    places = [place.removeprefix(str(tmp_path)) for place, _ in placed]
    assert places == ["/objects.json:1", "/objects.json:5", "/objects.json:9"]


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    ("text", "line"),
    [('[{"a": 1},\n{"a": 2}\n{"a": 3}]', 3), ('[{"a": 1},\n]', 2), ('[\n\n{"a": "x', 3)],
)
def test_a_fault_of_a_list_has_its_line(monkeypatch, tmp_path, block, text, line):
    monkeypatch.setattr(row_files, "BLOCK", block)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=f"a.json: cannot be read as json at line {line} "):
        list(read_rows(str(tmp_path / "a.json")))


def test_a_list_is_not_read_whole(monkeypatch):
    monkeypatch.setattr(row_files, "BLOCK", 100)
    text = JsonText(io.StringIO(json.dumps([{"n": n} for n in range(10_000)])))
    text.next_character()
    longest = max(len(text.text) for _ in text.items())
    assert longest < 250


# --- How far, and in which portions ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_meter_estimates_the_rows(tmp_path, name):
    path = write_rows(tmp_path / name, [{"n": n, "x": "y" * 200} for n in range(4000)])
    meter = ReadingMeter()
    rows = read_rows(str(path), meter)
    assert meter.estimated_rows(0) is None
    for _ in range(2000):
        next(rows)
    if name == "a.jsonl":  # a short compressed file is read at once
        assert meter.estimated_rows(2000) == pytest.approx(4000, rel=0.1)
    assert sum(1 for _ in rows) == 2000
    assert meter.estimated_rows(4000) == 4000


def test_chunks():
    rows = list(kept_rows((f"a:{n}", {"x": "y" * n}) for n in range(6)))
    assert rows[2] == InputRow("a:2", '{"x": "yy"}')
    assert [len(row.content) for row in rows] == [9, 10, 11, 12, 13, 14]

    def sizes(*limits: int) -> list[int]:
        return [len(chunk) for chunk in chunks(iter(rows), *limits)]

    assert sizes(4, 1000, 4) == [4, 2]
    assert sizes(4, 1000, 1) == [1, 4, 1]
    assert sizes(4, 20, 4) == [3, 2, 1]
    assert sizes(4, 1, 4) == [1] * 6
    assert list(chunks(iter([]), 4, 10, 4)) == []


def test_a_digest_is_that_of_the_rows():
    def digest(*rows: object) -> str:
        taken = RowDigest()
        for row in kept_rows(("anywhere", row) for row in rows):
            taken.add(row)
        return taken.hex

    assert digest({"a": 1}, {"b": 2}) == digest({"a": 1}, {"b": 2})
    assert len({digest({"a": 1}, {"b": 2}), digest({"a": 1}), digest({"b": 2}, {"a": 1})}) == 3
    assert digest(UnreadableRow("no")) != digest(UnreadableRow("no", " at column 2"))
