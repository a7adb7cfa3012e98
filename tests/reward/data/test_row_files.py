"""Files of rows: each kind is read by its content, or refused with the mend; line numbers count."""

import bz2
import csv
import datetime
import decimal
import gzip
import io
import json
import lzma
import zipfile

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from reward.data.bad_rows import MOST_REASONS, OTHER_REASONS, UnreadableRow, one_of_few
from reward.data.files import DataError, local_files, storable
from reward.data.row_files import read_rows
from reward.data.rows_to_score import row_to_score
from reward.data.transcripts import RowError
from reward.data.written_rows import write_rows

ROW = {"prompt": "¿Té?", "completion": "Sí,\nclaro; a\tb"}
OTHER = {"prompt": "hi", "completion": "no"}
ROWS = [ROW, OTHER]
SECRET = "hunter2"


def jsonl(rows=ROWS) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def csv_text(separator: str) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator)
    writer.writerows([ROW.keys(), ROW.values(), OTHER.values()])
    return text.getvalue()


def zst(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


def zipped(**files: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def arrow(kind, rows=ROWS) -> bytes:
    table = pyarrow.Table.from_pylist(rows)
    sink = pyarrow.BufferOutputStream()
    with kind(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet_bytes(table: pyarrow.Table) -> bytes:
    data = io.BytesIO()
    parquet.write_table(table, data)
    return data.getvalue()


PRETTY = "\n".join(json.dumps(row, indent=2, ensure_ascii=False) for row in ROWS).encode()
LIST = json.dumps(ROWS).encode()
COUNTED = (" row 1", " row 2")

# name -> the content of a file, and the place of each of its two rows
FILES = {
    "a.jsonl": (jsonl(), (":1", ":2")),
    "a.ndjson": (b"\n" + jsonl(), (":2", ":3")),
    "any.txt": (jsonl(), (":1", ":2")),
    "bom.jsonl": (b"\xef\xbb\xbf" + jsonl(), (":1", ":2")),
    "utf16.jsonl": (jsonl().decode().encode("utf-16"), (":1", ":2")),
    "utf32.json": (LIST.decode().encode("utf-32"), COUNTED),
    "a.jsonl.gz": (gzip.compress(jsonl()), (":1", ":2")),
    "a.jsonl.bz2": (bz2.compress(jsonl()), (":1", ":2")),
    "a.jsonl.xz": (lzma.compress(jsonl()), (":1", ":2")),
    "a.jsonl.zst": (zst(jsonl()), (":1", ":2")),
    "a.jsonl.zip": (zipped(a=jsonl()), (":1", ":2")),
    "gzipped.jsonl": (gzip.compress(jsonl()), (":1", ":2")),
    "plain.jsonl.gz": (jsonl(), (":1", ":2")),
    "list.json": (LIST, COUNTED),
    "list-with-mark.json": (b"\xef\xbb\xbf" + LIST, COUNTED),
    "lines.json": (jsonl(), (":1", ":2")),
    "pretty.json": (PRETTY, (":1", ":5")),
    "pretty.jsonl": (PRETTY, (":1", ":5")),
    "list.jsonl": (LIST, COUNTED),
    "pretty-list.jsonl": (json.dumps(ROWS, indent=1).encode(), COUNTED),
    "lines.csv": (jsonl(), (":1", ":2")),
    "a.csv": (csv_text(",").encode(), (":2", ":4")),
    "mark.csv": (csv_text(",").encode("utf-8-sig"), (":2", ":4")),
    "excel.csv": (csv_text("\t").encode("utf-16"), (":2", ":4")),
    "semicolon.csv": (csv_text(";").encode(), (":2", ":4")),
    "tab.csv": (csv_text("\t").encode(), (":2", ":4")),
    "a.tsv": (csv_text("\t").encode(), (":2", ":4")),
    "a.tsv.gz": (gzip.compress(csv_text("\t").encode()), (":2", ":4")),
    "comma.tsv": (csv_text(",").encode(), (":2", ":4")),
    "a.parquet": (parquet_bytes(pyarrow.Table.from_pylist(ROWS)), COUNTED),
    "parquet.jsonl": (parquet_bytes(pyarrow.Table.from_pylist(ROWS)), COUNTED),
    "file.arrow": (arrow(pyarrow.ipc.new_file), COUNTED),
    "stream.arrow": (arrow(pyarrow.ipc.new_stream), COUNTED),
}


@pytest.fixture
def read(tmp_path):
    """`read("a.csv", content)` -> [(place without the folder, row)], or the error's message."""

    def call(name: str, content: bytes):
        path = tmp_path / name
        path.write_bytes(content)
        try:
            rows = list(read_rows(str(path)))
        except DataError as error:
            assert SECRET not in str(error)
            return str(error).removeprefix(str(path))
        return [(place.removeprefix(str(path)), row) for place, row in rows]

    return call


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_by_its_content(name, read):
    content, places = FILES[name]
    rows = ROWS
    if name in ("a.csv", "mark.csv", "excel.csv", "semicolon.csv", "tab.csv", "a.tsv"):
        assert b"\r" in content  # csv ends its lines so
    assert read(name, content) == list(zip(places, rows, strict=True))


REFUSED = {
    "list-inside.json": (
        json.dumps({"version": 1, "data": ROWS}).encode(),
        ":1: an object whose rows lie in its list `data`; a list of rows, or one row a line, is "
        "needed. Write that list to a file of its own: jq -c '.data[]' FILE > rows.jsonl",
    ),
    "pretty-list-inside.json": (
        json.dumps({"rows": ROWS}, indent=2).encode(),
        ":1: an object whose rows lie in its list `rows`",
    ),
    "no-mark.jsonl": (
        jsonl().decode().encode("utf-16-le"),
        ": a text file with zero bytes, as UTF-16 has them; save the file as UTF-8",
    ),
    "latin.json": (b'[{"prompt": "\xe9 hunter2"}]', ": no valid UTF-8; save the file as UTF-8"),
    "cut.jsonl.gz": (
        gzip.compress(jsonl(), mtime=0)[:-9],
        ": the compressed file is cut off or damaged; copy it again",
    ),
    "damaged.jsonl.gz": (
        gzip.compress(jsonl(), mtime=0)[:20] + b"\xff" * 40,
        ": the compressed file is cut off or damaged; copy it again",
    ),
    "cut.jsonl.xz": (lzma.compress(jsonl())[:-9], ": the compressed file is cut off or damaged"),
    "two.zip": (zipped(a=jsonl(), b=jsonl()), ": holds 2 files; unpack it, and name one of them"),
    "excel.txt": (
        csv_text("\t").encode("utf-16"),
        ": neither its suffix nor its content says what it is; name it .jsonl (a JSON object a "
        "line), .csv or .tsv",
    ),
    "a.parquet": (jsonl(), ": its content is no parquet file"),
    "cut.parquet": (FILES["a.parquet"][0][:-9], ": cannot be read as parquet (ArrowInvalid)"),
    "a.parquet.gz": (gzip.compress(FILES["a.parquet"][0]), ": compressed as a whole; unpack it"),
    "twice.csv": (
        b"prompt,prompt\na,b\n",
        ": the header has two columns `prompt`; rename or remove one of them",
    ),
    "twice.parquet": (
        parquet_bytes(pyarrow.table([["a"], ["b"]], names=["prompt", "prompt"])),
        ": two columns `prompt`; rename or remove one of them",
    ),
    "open.csv": (
        b'prompt,completion\na,b\nhunter2,"c\nd,e\n',
        ":3: a quote that opens here is never closed",
    ),
    "deep.json": (b"[" * 100_000, ": cannot be read as json (brackets are nested more than 100"),
    "digits.json": (
        b'[{"a": ' + b"1" * 5000 + b"}]",
        ": cannot be read as json (a number of more than 4,300 digits)",
    ),
    "comma.json": (b'[\n{"a": 1},\n]', ": cannot be read as json at line 3 (JSONDecodeError)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused_with_the_mend(name, read):
    content, message = REFUSED[name]
    refusal = read(name, content)
    assert isinstance(refusal, str) and refusal.startswith(message)


BAD_LINES = [
    (b'{"prompt": "hunter2", }', "no valid JSON", " at column 23"),
    (b'{"prompt": "hunter2', "no valid JSON", " at column 20"),
    (b'{"prompt": "\xe9 hunter2"}', "no valid UTF-8", ""),
    (b'["hunter2"]', "a row is a JSON object with named columns", "; found list"),
    (b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}", "brackets are nested more than 100 deep", ""),
    (b"[" * 100_000, "brackets are nested more than 100 deep", ""),
    (b'{"a": ' + b"1" * 5000 + b"}", "a number of more than 4,300 digits", ""),
    (b'{"prompt": "hunter2", "prompt": "b"}', "a name stands twice in one JSON object", ""),
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
@pytest.mark.parametrize(("line", "problem", "detail"), BAD_LINES)
def test_a_malformed_line_ends_no_file(name, line, problem, detail, read):
    """The first line may be the malformed one, and no content is shown."""
    data = line + b"\n\n" + jsonl([OTHER]) + line + b"\n" + jsonl([OTHER])
    if name.endswith(".gz"):
        data = gzip.compress(data)
    if name == "a.json" and line.startswith(b"["):
        data = jsonl([OTHER]) + data  # else it is the start of a list
    rows = read(name, data)
    assert [row for _, row in rows if isinstance(row, dict)] in ([OTHER] * 2, [OTHER] * 3)
    bad = [(place, row) for place, row in rows if isinstance(row, UnreadableRow)]
    first = len(rows) - 3
    assert [place for place, _ in bad] == [f":{first}", f":{first + 3}"]
    assert {row for _, row in bad} == {UnreadableRow(problem, detail)}
    assert bad[0][1].reason == f"cannot be read: {problem}"


def test_a_malformed_row_of_a_csv_file(read):
    text = 'prompt,completion\na,"x"y\nhi,no\nonly one\n\n1,2,3\nhi,no\n'
    assert read("a.csv", text.encode() + b"\xe9,b\n") == [
        (":2", UnreadableRow("no valid CSV: a quote inside a cell")),
        (":3", OTHER),
        (":4", UnreadableRow("2 columns are needed", "; found 1")),
        (":6", UnreadableRow("2 columns are needed", "; found 3")),
        (":7", OTHER),
        (":8", UnreadableRow("no valid UTF-8")),
    ]


RM_BENCH = {
    "id": "[1]",
    "prompt": '["2+2?"]',
    "chosen": ["4", "It is 4.", "**4**"],
    "rejected": ["5", "It is 5.", "**5**"],
    "domain": "math",
}
REWARDBENCH_2 = {
    "prompt": "2+2?",
    "chosen": ["4"],
    "rejected": ["5", "6"],
    "num_correct": 1,
    "models": ["a", "b", "c"],
}
SCORED_LISTS = {"prompt": "2+2?", "chosen": ["4"], "rejected": ["5"], "reward_chosen": [1.5]}


@pytest.mark.parametrize("row", [RM_BENCH, REWARDBENCH_2, SCORED_LISTS])
def test_a_benchmark_in_csv_keeps_its_lists(row, read, tmp_path):
    """A list of completions was read as one completion that is JSON."""
    output = tmp_path / "benchmark.csv"
    write_rows([row], str(output))
    assert read("a.csv", output.read_bytes()) == [(":2", row)]


def test_answers_in_json_are_no_lists_of_completions(read, tmp_path):
    colors = {"prompt": "Two colors, in JSON", "chosen": '["red", "blue"]', "rejected": '["red"]'}
    for others in ({}, {"domain": "color"}, {"reward_chosen": "1.5"}):
        output = tmp_path / "colors.csv"
        write_rows([colors | others], str(output))
        assert read("a.csv", output.read_bytes()) == [(":2", colors | others)]
    of_pandas = RM_BENCH | {side: str(RM_BENCH[side]) for side in ("chosen", "rejected")}
    write_rows([of_pandas], str(output))
    [(_, refused)] = read("a.csv", output.read_bytes())
    assert refused.problem.endswith("are no JSON lists of them; write the lists (json.dumps)")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_rows_with_a_list_inside_are_rows(read, name):
    """The file was said to hold its rows in the list of the first one."""
    texts = [{"prompt": "p", "samples": ["a", "b"]}]
    assert [row for _, row in read(name, jsonl(texts))] == texts
    shots = [{"prompt": "p", "examples": [{"in": 1}]}, {"prompt": "q", "examples": []}]
    assert [row for _, row in read(name, jsonl(shots))] == shots
    refusal = read(name, jsonl(shots[:1]))
    assert refusal.startswith(":1: an object whose rows lie in its list `examples`")


def test_quotes_that_are_not_doubled_in_a_csv_file(read):
    """The rest of a cell was read as a row: its last line as the prompt, and the next cells."""
    text = b'prompt,completion\n"He said \\"hi\\", ok\nSecond line","b"\nhi,no\n'
    refusal = read("a.csv", text)
    assert refusal.startswith(":2: a quote inside a cell, and where the cell ends is not certain")
    one_line = b'prompt,completion\n"He said \\"hi\\"","b"\nhi,no\n'
    assert [place for place, _ in read("b.csv", one_line)] == [":2", ":3"]
    tabs = b'prompt\tcompletion\nx\t"He said\nd\te\ng"\th\nhi\tno\n'
    bad, good = read("c.tsv", tabs)
    assert bad == (":2-4", UnreadableRow("2 columns are needed", "; found 3"))
    assert good == (":5", OTHER)


def test_a_csv_header_with_spaces(read):
    """A cell keeps its leading space, unless the header has one after every separator too."""
    assert read("a.csv", b" prompt ,completion\nhi, no\n") == [
        (":2", {"prompt": "hi", "completion": " no"})
    ]
    assert read("b.csv", b'prompt, completion\nhi, "no, thanks"\n') == [
        (":2", {"prompt": "hi", "completion": "no, thanks"})
    ]


def test_files_without_rows(read):
    for name in ("a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow"):
        assert read(name, b"") == []
    assert read("header.csv", b"prompt,completion\n") == []
    assert read("blank.jsonl", b"\n \n") == []


def test_a_long_cell_is_read(read):
    """Python's csv refuses cells above 131,072 characters unless it is told otherwise."""
    ((_, row),) = read("a.csv", b"prompt,completion\nhi," + b"x" * 200_000 + b"\n")
    assert len(row["completion"]) == 200_000


def test_decimals_dates_and_nested_lists_of_parquet(read):
    columns = {
        "margin": [decimal.Decimal("1.50"), None],
        "date": [datetime.datetime(2026, 1, 2, 3), None],
        "chosen": [[{"role": "user", "content": "hi"}], []],
        "score": [float("nan"), float("inf")],
    }
    rows = [row for _, row in read("a.parquet", parquet_bytes(pyarrow.table(columns)))]
    assert [row["margin"] for row in rows] == [1.5, None]
    assert storable(rows) == [
        {
            "margin": 1.5,
            "date": "2026-01-02 03:00:00",
            "chosen": [{"role": "user", "content": "hi"}],
            "score": None,
        },
        {"margin": None, "date": None, "chosen": [], "score": None},
    ]


def test_texts_that_parquet_holds_as_bytes(read):
    """score.py scored "b'hi'"; bytes that are no text are no text of a row either."""
    columns = {
        "prompt": pyarrow.array(["¿Té?".encode(), None], pyarrow.binary()),
        "completion": pyarrow.array([b"hi", b"\xff\xd8"], pyarrow.large_binary()),
        "parts": [[b"hi"], []],
    }
    table = pyarrow.table(columns)
    ((_, first),) = read("a.parquet", parquet_bytes(table.slice(0, 1)))
    ((_, second),) = read("b.parquet", parquet_bytes(table.slice(1)))
    assert storable(first) == {"prompt": "¿Té?", "completion": "hi", "parts": ["hi"]}
    assert storable(second)["completion"] == {"bytes": "ffd8"}
    with pytest.raises(RowError, match="`completion` is a mapping; a string or a list of messages"):
        row_to_score(storable(second) | {"prompt": "p"}, "messages")


def test_folders_that_datasets_saved(tmp_path):
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict(train=table, test=table.select([1])).save_to_disk(tmp_path / "two")
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert [row for _, row in read_rows(one)] == ROWS
    assert [row for _, row in read_rows(f"{two}/test")] == [OTHER]
    with pytest.raises(DataError, match="a folder of the splits train, test; name one of them: "):
        list(read_rows(two))
    with pytest.raises(DataError, match="a folder; a file of rows is needed here"):
        list(read_rows(str(tmp_path)))

    def rows_of(path: str, name: str, **source) -> list[dict]:
        source = {"path": path, "split": "train", "test_split": "test", **source}
        files = local_files(source, name)
        return [row for file in files for _, row in read_rows(file)]

    assert rows_of(two, "train") == ROWS and rows_of(two, "test") == [OTHER]
    assert rows_of(one, "train") == ROWS and rows_of(one, "test") == []
    assert rows_of(one, f"{two}/test") == [OTHER]
    assert rows_of(one, one, split=None) == ROWS
    assert rows_of(str(tmp_path), "test", data_dir="two") == [OTHER]


def test_few_reasons_are_told_apart():
    reason = UnreadableRow("columns ['a'] are no format\nthat is read here; needed: b").reason
    assert reason == "cannot be read: columns ['a'] are no format that is read here"
    known = {f"cannot be read: {number}": 1 for number in range(MOST_REASONS)}
    assert one_of_few("cannot be read: more", known) == OTHER_REASONS
    assert one_of_few("cannot be read: 3", known) == "cannot be read: 3"
    assert one_of_few("exact duplicate", known) == "exact duplicate"


def test_the_nulls_that_arrow_adds_are_no_part_of_tools_and_calls(read):
    """A call of `weather` had an argument `stock: null`, and so had the tool in the prompt."""
    rows = [calling("weather", {"city": "Oslo"}), calling("price", {"stock": "ACME"})]
    found = read("a.parquet", parquet_bytes(pyarrow.Table.from_pylist(rows)))
    assert [row for _, row in found] == rows
    found = read("a.arrow", arrow(pyarrow.ipc.new_stream, rows))
    assert [row for _, row in found] == rows

    # What datasets stores as JSON has no padding: a null in it is meant.
    encoded = json.dumps({"info": {"features": {"tools": {"_type": "Json"}}}})
    note = pyarrow.nulls(1, pyarrow.string())
    table = pyarrow.table({"tools": ['[{"city": null}]'], "note": note})
    table = table.replace_schema_metadata({"huggingface": encoded})
    ((_, row),) = read("b.parquet", parquet_bytes(table))
    assert row == {"tools": [{"city": None}], "note": None}


def calling(name: str, arguments: dict) -> dict:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    tool = {"name": name, "parameters": {key: {"type": "string"} for key in arguments}}
    return {"prompt": [{"role": "assistant", "content": "", "tool_calls": [call]}], "tools": [tool]}
