"""Rows are written as the suffix says, whole or not at all, and read again as they were."""

import csv
import gzip
import json

import pytest
from pyarrow import parquet

from reward.data.files import DataError
from reward.data.row_files import read_rows
from reward.data.written_rows import output_fault, write_rows

TURN = {"role": "user", "content": "¿Té?"}
ROWS = [
    {"id": 1, "prompt": [TURN], "text": 'a,\n"b"', "reward": 1.25},
    {"id": 2, "prompt": [TURN | {"name": "x"}], "text": "", "reward": None, "reward_error": "no"},
    {"id": 2.5, "prompt": [], "text": "c", "reward": -3.5},
]
COLUMNS = ["id", "prompt", "text", "reward", "reward_error"]


def test_jsonl(tmp_path):
    for name in ("a.jsonl", "a.txt", "a.JSONL"):
        write_rows(iter(ROWS), str(tmp_path / name))
        lines = (tmp_path / name).read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == ROWS
    assert lines[2] == '{"id": 2.5, "prompt": [], "text": "c", "reward": -3.5}'
    write_rows(iter(ROWS), str(tmp_path / "a.jsonl.gz"))
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).decode().splitlines() == lines


def test_parquet(tmp_path):
    """The rows differ in their columns, and messages in their keys: what lacks is null."""
    write_rows(iter(ROWS), str(tmp_path / "a.parquet"))
    lacking = {"reward_error": None}
    first = ROWS[0] | {"prompt": [TURN | {"name": None}]} | lacking
    expected = [first, ROWS[1], ROWS[2] | lacking]
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == expected


def test_values_of_several_kinds_are_text_in_parquet(tmp_path, capsys):
    rows = [{"prompt": "tea", "n": {}}, {"prompt": [TURN], "n": {}}, {"n": 2**70}]
    write_rows(iter(rows), str(tmp_path / "a.parquet"))
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == [
        {"prompt": "tea", "n": "{}"},
        {"prompt": '[{"role": "user", "content": "¿Té?"}]', "n": "{}"},
        {"prompt": None, "n": "1180591620717411303424"},
    ]
    said = "values of several kinds are JSON text, since a column of Parquet has one: n, prompt\n"
    assert capsys.readouterr().err == said


def test_an_integer_that_no_float_holds_is_text_in_parquet(tmp_path, capsys):
    """The id of a row, with floats in another block, and the same inside of an object."""
    large = 2**53 + 1
    for first, last in ((large, 0.5), (0.5, large), ({"id": large}, {"id": 0.5})):
        write_rows(iter([{"n": first}] * 1000 + [{"n": last}]), str(tmp_path / "a.parquet"))
        column = parquet.read_table(tmp_path / "a.parquet").column("n").to_pylist()
        assert (column[0], column[-1]) == (json.dumps(first), json.dumps(last))
        assert "since a column of Parquet has one: n\n" in capsys.readouterr().err
    write_rows(iter([{"n": 1}] * 1000 + [{"n": 0.5}]), str(tmp_path / "a.parquet"))
    assert parquet.read_table(tmp_path / "a.parquet").column("n").to_pylist()[-2:] == [1.0, 0.5]


def test_a_column_that_comes_late(tmp_path):
    """Behind the block whose types are found first."""
    rows = [{"a": None}] * 2500 + [{"a": 1, "b": "x"}]
    for name in ("late.parquet", "late.csv"):
        write_rows(iter(rows), str(tmp_path / name))
        read = [placed.row for placed in read_rows(str(tmp_path / name))]
        assert len(read) == 2501 and set(read[-1]) == {"a", "b"}
        assert [str(value) for value in read[-1].values()] == ["1", "x"]


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_csv(tmp_path, name, separator):
    write_rows(iter(ROWS), str(tmp_path / name))
    with open(tmp_path / name, encoding="utf-8", newline="") as file:
        read = list(csv.reader(file, delimiter=separator))
    assert read == [
        COLUMNS,
        ["1", '[{"role": "user", "content": "¿Té?"}]', 'a,\n"b"', "1.25", ""],
        ["2", '[{"role": "user", "content": "¿Té?", "name": "x"}]', "", "", "no"],
        ["2.5", "[]", "c", "-3.5", ""],
    ]


def test_a_carriage_return_in_csv_ends_no_row(tmp_path):
    """One row became three, of which one could be read."""
    rows = [{"prompt": "a\rb", "completion": "c\r"}, {"prompt": "d", "completion": "e"}]
    for name in ("a.csv", "a.tsv.gz"):
        write_rows(iter(rows), str(tmp_path / name))
        assert [placed.row for placed in read_rows(str(tmp_path / name))] == rows


def test_standard_output(capsys):
    for output in (None, "-"):
        write_rows(iter(ROWS[2:]), output)
        assert capsys.readouterr().out == '{"id": 2.5, "prompt": [], "text": "c", "reward": -3.5}\n'


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_what_breaks_off_leaves_the_file_as_it_was(tmp_path, name):
    def rows():
        yield ROWS[0]
        raise KeyboardInterrupt

    (tmp_path / name).write_text("an earlier result")
    with pytest.raises(KeyboardInterrupt):
        write_rows(rows(), str(tmp_path / name))
    assert (tmp_path / name).read_text() == "an earlier result"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(DataError, match="a.jsonl: cannot be written .Is a directory."):
        write_rows(iter(ROWS), str(tmp_path / "a.jsonl"))


def test_names_that_cannot_be_written(tmp_path):
    for name in ("a.jsonl", "a.csv.gz", "a", "a.parquet"):
        assert output_fault(str(tmp_path / name)) is None
    assert output_fault(None) is output_fault("-") is None
    assert output_fault(str(tmp_path)) == "a folder; name a file in it"
    for suffix in (".zip", ".xlsx", ".jsonl.zst"):
        assert "no ." in output_fault(str(tmp_path / f"a{suffix}"))
    assert "compressed by itself" in output_fault(str(tmp_path / "a.parquet.gz"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_file_with_a_name_like_a_temporary_one_stays(name, tmp_path):
    of_the_user = [tmp_path / f"{name}.tmp", tmp_path / f"{name}.rows.tmp"]
    for file in of_the_user:
        file.write_text("mine")
    write_rows([{"prompt": "p", "reward": 1.5}], str(tmp_path / name))
    assert [file.read_text() for file in of_the_user] == ["mine", "mine"]
    assert len(list(tmp_path.iterdir())) == 3
