"""Sources: rows are read from wherever they lie, kept or counted; faults name file and line."""

import gzip
import hashlib
import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from datasets import ClassLabel, Dataset, Features, Json, List, Value
from preferences import (
    EXPECTED,
    ROWS,
    SECRET,
    TEST,
    fault,
    folder,
    row,
    source,
    texts,
    write_lines,
)
from support import REPO, write_rows

from reward.data import sources
from reward.data.files import DataError, local_files
from reward.data.row_files import read_rows
from reward.data.sources import CODE
from reward.data.splits import load_preferences, load_test_split
from reward.data.transcripts import user

pytestmark = pytest.mark.usefixtures("arrow_cache")


def write_any(path, rows):
    """Rows in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        Dataset.from_list(rows).to_parquet(path)
    elif name.endswith(".csv"):
        Dataset.from_list(rows).to_csv(path, index=False)
    elif name.endswith(".json"):
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "wt", encoding="utf-8") as file:
            json.dump(rows, file)
    else:
        write_rows(path, rows)
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.csv", "a.parquet"]
)
def test_local_file(tmp_path, name):
    train, test = write_any(tmp_path / name, ROWS), write_any(tmp_path / "held-out" / name, TEST)
    splits, ledger = load_preferences([source(train, test_split=str(test))], validation_fraction=0)
    assert texts(splits["train"]) == EXPECTED and texts(splits["test"]) == [
        ("held out", "yes", "no")
    ]
    assert splits["train"]["target_margin"][:] == [None, 1.5, None]
    assert ledger.read("train") == 3 and ledger.dropped("train") == 0 and ledger.read("test") == 1


@pytest.mark.parametrize(
    "name", ["train.jsonl", "train.csv", "train-00000-of-00001.parquet", "train/part-1.jsonl.gz"]
)
def test_folder_with_splits(tmp_path, name):
    write_any(tmp_path / "data" / name, ROWS)
    write_any(tmp_path / "data" / name.replace("train", "test"), TEST)
    for data in (source(tmp_path / "data"), source(tmp_path, data_dir="data")):
        splits, _ = load_preferences([data], validation_fraction=0)
        assert texts(splits["train"]) == EXPECTED and texts(splits["test"]) == [
            ("held out", "yes", "no")
        ]


def test_a_folder_that_lacks_a_file_of_a_split_is_refused(tmp_path):
    """The rows that were there were all."""
    for index in (0, 2):
        write_any(tmp_path / f"train-0000{index}-of-00003.jsonl", ROWS)
    with pytest.raises(DataError, match="train-\\*-of-00003: 2 of 3 files are here"):
        local_files(source(tmp_path), "train")
    write_any(tmp_path / "train-00001-of-00003.jsonl", ROWS)
    assert len(local_files(source(tmp_path), "train")) == 3


def test_a_folder_may_be_called_like_a_file_of_a_split(tmp_path):
    """`part-1-of-3/train.jsonl` was refused, as if two more such folders were missing."""
    data = folder(tmp_path / "part-1-of-3", ROWS)
    assert local_files(data, "train") == [str(tmp_path / "part-1-of-3" / "train.jsonl")]


def reader_of_classes(tmp_path, kind: str) -> sources.SplitReader:
    """A reader of two rows whose winner and source datasets stores as numbers of classes."""
    winner = ClassLabel(names=["tie", "model_a", "model_b"])
    rows = [
        {"prompt": "p", "response_a": "A", "response_b": "B", "winner": label, "source": 1}
        for label in ("model_a", "model_b")
    ]
    features = Features(
        dict.fromkeys(("prompt", "response_a", "response_b"), Value("string"))
        | {"winner": winner, "source": ClassLabel(names=["web", "book"])}
    )
    table = Dataset.from_list(rows, features=features)
    if kind == "saved":
        table.save_to_disk(tmp_path / "train")
        return sources.split_reader(source(tmp_path / "train"), "train", "messages", "stop")
    table.to_parquet(tmp_path / "train.parquet")
    reader = sources.split_reader(source(tmp_path), "train", "messages", "stop")
    if kind == "parquet":
        return reader
    if kind == "stream":
        table = table.to_iterable_dataset()
    return replace(reader, files=None, dataset=table)  # as from the Hub


@pytest.mark.parametrize("kind", ["parquet", "saved", "hub", "stream"])
def test_numbers_of_classes_are_their_names(tmp_path, kind):
    """Class 1, `model_a`, was read as the index of the second response, and the subset was lost."""
    pairs = list(reader_of_classes(tmp_path, kind).pairs())
    assert [json.loads(pair["chosen"])[0]["content"] for pair in pairs] == ["A", "B"]
    assert [(pair["subset"], pair["unread"]) for pair in pairs] == [("book", "")] * 2


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_messages_that_datasets_stores_as_json(tmp_path, kind):
    """Each message of `chosen` was a completion of its own, and the schema of a tool was a text."""
    schemas = [{"city": {"type": "string"}}, {"days": {"type": "integer", "minimum": 1}}]
    tools = [{"function": {"name": "f", "parameters": {"properties": one}}} for one in schemas]
    # The messages differ in their keys, and the schemas in theirs, so that datasets stores JSON.
    turns = user("Hi") + [{"role": "assistant", "content": "Yo", "name": "bot"}]
    rows = [{"prompt": "Hi", "chosen": turns, "rejected": "No", "tools": [tool]} for tool in tools]
    table = Dataset.from_list(rows, on_mixed_types="use_json")
    assert table.features["chosen"] == List(Json())
    path = tmp_path / "train.parquet"
    if kind == "parquet":
        table.to_parquet(path)
    else:
        table.save_to_disk(path)
    read = [placed.row for placed in read_rows(str(path))]
    assert read == rows


@pytest.mark.parametrize(
    "columns, labels",
    [
        (("response_a", "response_b"), (1, 1, 2)),  # counted from 1
        (("response_a", "response_b"), (1, -1)),
        (("output_1", "output_2"), (1, 0)),  # counted from 0
    ],
)
def test_a_label_that_shows_that_others_are_misread_ends_the_file(tmp_path, columns, labels):
    """The row was dropped, and each 1 stood for the other side."""
    rows = [{"prompt": "p", columns[0]: "A", columns[1]: "B", "label": label} for label in labels]
    data = folder(tmp_path, rows)
    said = fault([data], validation_fraction=0, on_bad_row="skip")
    assert said.startswith(f"{tmp_path}/train.jsonl:{len(rows)}: ")
    assert "so none of its rows is read: write " in said


@pytest.mark.parametrize("split", ["train[:10]", "train[90%:]", "train[:5%]+train[-5%:]"])
def test_a_part_of_a_split_of_local_files_is_refused(tmp_path, split):
    """All rows were read."""
    path = write_rows(tmp_path / "train.jsonl", ROWS)
    files = source("json", split=split, data_files=str(path))
    for data in (source(path, split=split), source(tmp_path, split=split), files):
        with pytest.raises(DataError, match="is a part of the rows, which only data sets of the"):
            local_files(data, split)


def test_data_files(tmp_path):
    for index, example in enumerate(ROWS):
        write_rows(tmp_path / f"part-{index}.jsonl", [example])
    test = str(write_rows(tmp_path / "held-out.jsonl", TEST))
    files = {"train": str(tmp_path / "part-*.jsonl"), "test": [test]}
    splits, _ = load_preferences([source("json", data_files=files)], validation_fraction=0)
    assert texts(splits["train"]) == EXPECTED and texts(splits["test"]) == [
        ("held out", "yes", "no")
    ]
    splits, _ = load_preferences(
        [source("json", data_files=files["train"])], validation_fraction=0, test_fraction=0.5
    )
    assert sorted(texts(splits["train"]) + texts(splits["test"])) == EXPECTED


def test_missing_file_is_named(tmp_path):
    assert fault([source(tmp_path / "none.jsonl", test_split=str(tmp_path / "none.csv"))]).endswith(
        "none.csv: no such data file"
    )


def test_missing_test_split_says_what_to_set(tmp_path):
    message = fault([source(write_rows(tmp_path / "a.jsonl", ROWS))])
    assert (
        "no 'test' split, so there would be nothing to audit on" in message
        and "test_fraction: 0.1" in message
    )


def test_missing_train_split(tmp_path):
    write_rows(tmp_path / "test.jsonl", TEST)
    for streaming in (False, True):
        message = fault([source(tmp_path, split="training", streaming=streaming)])
        assert message.endswith("no 'training' split to read. Name it (split).")


def test_split_without_rows(tmp_path):
    for train, test, empty in ((ROWS, [], "test"), ([], TEST, "train")):
        data = folder(tmp_path / empty, train, test)
        assert fault([data]) == f"{tmp_path / empty} [{empty}]: the {empty} split has no rows"


def test_columns_of_a_mixture_entry(tmp_path):
    data = folder(tmp_path, [{**ROWS[1], "note": "x"}], columns=["prompt", "chosen", "rejected"])
    splits, _ = load_preferences([data], validation_fraction=0)
    assert splits["train"]["target_margin"][:] == [None]


def test_subset_of_the_source_before_the_subset_of_the_row(tmp_path):
    rows = [row(1, source="magpie"), row(2)]
    splits, _ = load_preferences([folder(tmp_path, rows)], validation_fraction=0)
    assert splits["train"]["subset"][:] == ["magpie", "all"]
    splits, _ = load_preferences([source(tmp_path, subset="mine")], validation_fraction=0)
    assert splits["train"]["subset"][:] == ["mine", "mine"]


def test_ratings_of_one_prompt_form_pairs(tmp_path):
    """HelpSteer2 has one row per completion, and the rows of a prompt follow each other."""
    rated = [("p", "a", 3), ("p", "b", 1), ("p", "c", 3), ("q", "d", 0), ("q", "e", 4)]
    rows = [{"prompt": p, "response": r, "helpfulness": h} for p, r, h in rated]
    splits, ledger = load_preferences([folder(tmp_path, rows)], validation_fraction=0)
    assert texts(splits["train"]) == [
        ("p", "a", "b"),
        ("p", "a", "c"),
        ("p", "c", "b"),
        ("q", "e", "d"),
    ]
    assert splits["train"]["rating_chosen"][:] == [3, 3, 3, 4] and splits["train"][
        "rating_rejected"
    ][:] == [1, 3, 1, 0]
    assert ledger.as_dict()["train"]["noted"] == {"tie (chosen_probability .5)": 1}
    write_rows(
        tmp_path / "train.jsonl", [*rows, {"prompt": "s", "response": SECRET, "helpfulness": 1}]
    )
    _, ledger = load_preferences([source(tmp_path)], validation_fraction=0)
    assert ledger.as_dict()["train"]["dropped"] == {"one rated completion": 1}


def test_raw_transcripts(tmp_path):
    rows = [
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}
    ]
    splits, _ = load_preferences([folder(tmp_path, rows)], "raw", validation_fraction=0)
    assert texts(splits["train"]) == [("\n\nHuman: Hi\n\nAssistant:", " Yes", " No")]


GOOD = json.dumps(row(1)).encode()

BAD_LINES = {
    "not JSON": (b'{"prompt": "%s", }' % SECRET.encode(), "no valid JSON at column 23"),
    "cut off": (b'{"prompt": "%s' % SECRET.encode(), "no valid JSON at column 20"),
    "Latin-1": b'{"prompt": "%s \xe9"}' % SECRET.encode(),
    "a list": b'["%s"]' % SECRET.encode(),
    "no format": b'{"prompt": "%s"}' % SECRET.encode(),
    "NaN margin": b'{"prompt": "%s", "chosen": "a", "rejected": "b", "margin": NaN}'
    % SECRET.encode(),
}

BAD_LINES["Latin-1"] = (BAD_LINES["Latin-1"], "no valid UTF-8")

BAD_LINES["a list"] = (BAD_LINES["a list"], "a row is a JSON object with named columns; found list")

BAD_LINES["no format"] = (
    BAD_LINES["no format"],
    "columns ['prompt'] are no preference format that is read here; needed",
)

BAD_LINES["NaN margin"] = (
    BAD_LINES["NaN margin"],
    "`margin` is not finite; a finite number is needed",
)


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_line_is_named_by_file_and_physical_line(tmp_path, case, name):
    """Trap: bad JSONL line; datasets says "An error occurred while generating the dataset" only."""
    line, message = BAD_LINES[case]
    write_rows(tmp_path / "test.jsonl", TEST)
    write_lines(tmp_path / name, b"", GOOD, b"  ", b"", line, GOOD)
    assert fault([source(tmp_path)]).startswith(f"{tmp_path / name}:5: {message}")


def test_bad_line_of_the_test_split(tmp_path):
    data = folder(tmp_path, ROWS)
    write_lines(tmp_path / "test.jsonl", GOOD, SECRET.encode())
    assert fault([data]) == f"{tmp_path}/test.jsonl:2: no valid JSON at column 1"
    with pytest.raises(DataError, match="test.jsonl:2: no valid JSON at column 1"):
        load_test_split([data], on_bad_row="stop")


def test_bad_rows_of_other_files(tmp_path):
    def message(name: str, data: bytes) -> str:
        path = write_lines(tmp_path / name, data)
        return fault([source(path)], test_fraction=0.5).removeprefix(str(path))

    secret = SECRET.encode()
    assert (
        message("a.json", b'[\n{"prompt": "%s", "chosen": "a", "rejected": "b"},\n]' % secret)
        == ": cannot be read as json at line 3 (JSONDecodeError)"
    )
    assert message("b.json", b'{"prompt": "%s"}' % secret).startswith(
        ":1: columns ['prompt'] are no preference"
    )
    assert message("c.json", b'[{"prompt": "%s"}]' % secret).startswith(
        " row 1: columns ['prompt'] are no preference"
    )
    assert (
        message("a.csv", b"prompt,chosen,rejected\np,a,b\n%s,a\n" % secret)
        == ":3: 3 columns are needed; found 2"
    )
    assert (
        message("b.csv", b"prompt,chosen,rejected\n%s,a,b,c\n" % secret)
        == ":2: 3 columns are needed; found 4"
    )
    assert message("c.csv", b"prompt,chosen\n%s,a\n" % secret).startswith(
        ":2: columns ['chosen', 'prompt'] are no"
    )
    assert message("a.parquet", b"PAR1" + secret) == ": cannot be read as parquet (ArrowInvalid)"


MEND = ": mend the value, or leave it or the row out"

BAD_RATERS = [
    ({"chosen_probability": 1.5}, "`chosen_probability` is outside [0, 1]" + MEND),
    (
        {"chosen_probability": "often"},
        "`chosen_probability` is text that is no number; a number is needed" + MEND,
    ),
    ({"margin": math.nan}, "`margin` is not finite; a finite number is needed" + MEND),
    (
        {"bayes_accuracy": "high"},
        "`bayes_accuracy` is text that is no number; a number is needed" + MEND,
    ),
    (
        {"rating_chosen": SECRET, "rating_rejected": 2},
        "`rating_chosen` is text that is no number; a number is needed" + MEND,
    ),
    ({"votes": [0, 0]}, "`votes` sum to 0; at least one vote is needed" + MEND),
    (
        {"votes": "often"},
        "`votes` is a string; two counts [for the first, for the second] are needed" + MEND,
    ),
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("columns", "message"), BAD_RATERS)
def test_a_malformed_rater_column_stops_before_training(tmp_path, columns, message, streaming):
    """Python's JSON knows NaN, so a file may hold one."""
    data = folder(tmp_path, [row(1), row(2, SECRET, **columns)], streaming=streaming)
    assert fault([data]) == f"{tmp_path}/train.jsonl:2: {message}"


def test_a_malformed_rater_cell_of_a_csv_file_is_named_by_line(tmp_path):
    path = write_lines(
        tmp_path / "a.csv", b"prompt,chosen,rejected,chosen_probability", b"p,a,b,0.9", b"q,a,b,1.1"
    )
    assert (
        fault([source(path)], test_fraction=0.5)
        == f"{path}:3: `chosen_probability` is outside [0, 1]{MEND}"
    )


def test_a_malformed_ranking_stops_before_training(tmp_path):
    one = {"prompt": "p", "answers": [{"answer": SECRET, "rank": 1}]}
    message = "a ranking of 1 completion; at least 2 are needed: add one, or leave the row out"
    assert (
        fault([folder(tmp_path / "a", [row(1), one])]) == f"{tmp_path}/a/train.jsonl:2: {message}"
    )
    unranked = {"prompt": "p", "completions": [SECRET, "b"], "ranks": [1, None]}
    message = f"a rank is missing; a finite number is needed{MEND}"
    assert (
        fault([folder(tmp_path / "b", [row(1), unranked])])
        == f"{tmp_path}/b/train.jsonl:2: {message}"
    )
    rated = [{"prompt": "p", "response": SECRET, "helpfulness": h} for h in (1, "good")]
    message = "(or the 1 after it with the same prompt): `helpfulness` is text that is no number"
    assert fault([folder(tmp_path / "c", [row(1), *rated])]).startswith(
        f"{tmp_path}/c/train.jsonl:2 {message}"
    )


def test_gzip_file_that_is_cut_off(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl.gz", *(json.dumps(row(index)).encode() for index in range(500))
    )
    path.write_bytes(path.read_bytes()[:-100])
    assert fault([source(path)], test_fraction=0.5) == (
        f"{path}: the compressed file is cut off or damaged; copy it again"
    )


def test_empty_csv_cells(tmp_path):
    """An empty completion is counted; any other empty cell is a column that the row lacks."""
    path = write_lines(
        tmp_path / "a.csv", b"prompt,chosen,rejected,margin", b"p,,b,", b"q,a,b,", b"r,a,b,2"
    )
    test = write_rows(tmp_path / "test.jsonl", TEST)
    splits, ledger = load_preferences([source(path, test_split=str(test))], validation_fraction=0)
    assert splits["train"]["target_margin"][:] == [None, 2.0]
    assert ledger.as_dict()["train"]["dropped"] == {"empty completion (chosen)": 1}


def test_byte_order_mark(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + GOOD)
    assert list(read_rows(str(path))) == [(f"{path}:1", row(1))]


def test_lone_surrogates_are_replaced(tmp_path):
    """Half an emoji is valid in JSON (lmsys' files have some), but not in Arrow or a tokenizer."""
    half, whole = json.dumps(row(1, "\ud83d", "\ud83d\ude42")), json.dumps(row(2, "🙂", "no"))
    assert "\\ud83d" in half
    write_rows(tmp_path / "test.jsonl", TEST)
    write_lines(tmp_path / "train.jsonl", half.encode(), whole.encode())
    splits, _ = load_preferences([source(tmp_path)], validation_fraction=0)
    assert texts(splits["train"]) == [
        ("question 1", "\N{REPLACEMENT CHARACTER}", "🙂"),
        ("question 2", "🙂", "no"),
    ]


def test_changed_file_is_read_again(tmp_path):
    data = folder(tmp_path, [row(1)])
    assert texts(load_preferences([data], validation_fraction=0)[0]["train"]) == [
        ("question 1", "yes", "no")
    ]
    write_rows(tmp_path / "train.jsonl", [row(2)])  # the same size
    assert texts(load_preferences([data], validation_fraction=0)[0]["train"]) == [
        ("question 2", "yes", "no")
    ]


def test_a_table_is_made_once_and_then_read_from_the_cache(tmp_path, monkeypatch):
    read_from = folder(tmp_path, [row(1)])
    made = load_preferences([read_from], validation_fraction=0).tables["train"]
    monkeypatch.setattr(sources, "_table_row", None)  # calling it would fail
    cached = load_preferences([read_from], validation_fraction=0).tables["train"]
    assert cached[:] == made[:]


def test_changed_code_is_noticed():
    """The cache of datasets hashes the function that it calls, but not what that one calls."""
    files = sorted((REPO / "reward" / "data").glob("*.py"))
    code = "encoding files formats ledger mismatched sources splits streaming tokens transcripts"
    assert set(code.split()) <= {file.stem for file in files}
    sources = b"".join(file.read_bytes() for file in files)
    assert hashlib.sha256(sources).hexdigest() == CODE


MEASURE = """
import sys, threading, time
import datasets
from reward.data.splits import load_preferences, load_test_split
from reward.data.transcripts import user

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024

folder, cache = sys.argv[1:]
datasets.config.HF_DATASETS_CACHE = cache
keys = ("name", "data_dir", "data_files", "subset", "columns", "fraction")
source = dict.fromkeys(keys)
source |= {"path": folder, "split": "train", "test_split": "test", "streaming": False}
load_test_split([source])  # imports, thread pools
before, peak, done = anonymous(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.01)

watcher = threading.Thread(target=watch)
watcher.start()
splits, ledger = load_preferences([source], validation_fraction=0.1)
done = True
watcher.join()
print(ledger.read("train") + ledger.read("validation"), round(peak - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_large_file_is_never_held_in_memory(tmp_path):
    """200,000 rows of 900 bytes; as Python rows they take about 270 MB."""
    write_rows(tmp_path / "data" / "test.jsonl", TEST)
    with open(tmp_path / "data" / "train.jsonl", "w", encoding="utf-8") as file:
        for index in range(200_000):
            file.write(
                json.dumps({"prompt": f"{index} " * 40, "chosen": "a" * 300, "rejected": "b" * 300})
                + "\n"
            )
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "data"), str(tmp_path / "cache")],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    read, grown = map(int, done.stdout.split())
    assert read == 200_000 and grown < 120, grown
