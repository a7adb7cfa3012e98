"""Sources: every pair that is read is kept or counted, splits share no first user turn, faults name file and line."""

import gzip
import hashlib
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter

import datasets
import pytest
from datasets import Dataset, IterableDataset
from standins import hh_rows, make_tokenizer
from support import REPO, write_rows
from trl import DatasetMixtureConfig, get_dataset
from trl.scripts.utils import DatasetConfig

from reward.data import streaming as streams
from reward.data.encoding import encode, encoder_facts, prepare_tokenizer
from reward.data.files import DataError, read_rows
from reward.data.ledger import Ledger
from reward.data.sources import CODE, LABELS
from reward.data.splits import load_preferences, load_test_split
from reward.data.tokens import (
    EncodingOptions,
    by_ranking,
    decode_sides,
    encode_splits,
    labels_of,
    row_ids,
)
from reward.data.transcripts import assistant, first_user_turn, user

SECRET = "hunter2"  # stands in every malformed row, and never in a message
LIMIT = 100  # tokens; the template takes some 70 of the stand-in's
TEST = [{"prompt": "held out", "chosen": "yes", "rejected": "no"}]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The Arrow tables of this module go to a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def qwen():
    return prepared("qwen")


def prepared(kind: str):
    tokenizer = make_tokenizer(kind)
    prepare_tokenizer(tokenizer, kind == "encoder")
    return tokenizer


def source(path, **options) -> dict:
    """A source as `Recipe.data_sources` gives it."""
    keys = ("name", "data_dir", "data_files", "subset", "columns", "fraction")
    return {
        **dict.fromkeys(keys),
        "path": str(path),
        "split": "train",
        "test_split": "test",
        "streaming": False,
        **options,
    }


def folder(path, train: list[dict], test: list[dict] = TEST, **options) -> dict:
    """A source whose train and test rows are written to two files."""
    write_rows(path / "train.jsonl", train)
    write_rows(path / "test.jsonl", test)
    return source(path, **options)


def row(number, chosen="yes", rejected="no", **more) -> dict:
    return {"prompt": f"question {number}", "chosen": chosen, "rejected": rejected, **more}


def texts(table) -> list[tuple[str, str, str]]:
    """(last prompt turn, chosen, rejected) of every row."""
    sides = [decode_sides(r)[:3] for r in table]
    return [
        tuple(side if isinstance(side, str) else side[-1]["content"] for side in three)
        for three in sides
    ]


def turns(table) -> set[str]:
    return {first_user_turn(decode_sides(r)[0]) for r in table}


def fault(sources, *arguments, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_preferences(sources, *arguments, **options)
    assert SECRET not in str(caught.value)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------- where rows lie

ROWS = [
    row(1, margin=None),
    row(2, "sí ☕", "line\nbreak", margin=1.5),
    row(3, 'a "quoted", one', "b", margin=None),
]
EXPECTED = [
    ("question 1", "yes", "no"),
    ("question 2", "sí ☕", "line\nbreak"),
    ("question 3", 'a "quoted", one', "b"),
]


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
    for found in (source(tmp_path / "data"), source(tmp_path, data_dir="data")):
        splits, _ = load_preferences([found], validation_fraction=0)
        assert texts(splits["train"]) == EXPECTED and texts(splits["test"]) == [
            ("held out", "yes", "no")
        ]


def test_data_files(tmp_path):
    for number, one in enumerate(ROWS):
        write_rows(tmp_path / f"part-{number}.jsonl", [one])
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
        found = folder(tmp_path / empty, train, test)
        assert fault([found]) == f"{tmp_path / empty} [{empty}]: the {empty} split has no rows"


def test_columns_of_a_mixture_entry(tmp_path):
    found = folder(tmp_path, [{**ROWS[1], "note": "x"}], columns=["prompt", "chosen", "rejected"])
    splits, _ = load_preferences([found], validation_fraction=0)
    assert splits["train"]["target_margin"][:] == [None]


def test_mixture_takes_the_rows_that_trl_takes(tmp_path):
    sizes, fractions = (30, 17, 9), (0.5, 0.2, 0.3)
    files = [
        write_rows(tmp_path / f"{n}.jsonl", [row(f"{n}/{i}") for i in range(size)])
        for n, size in enumerate(sizes)
    ]
    test = str(write_rows(tmp_path / "held-out.jsonl", TEST))
    ours = [
        source(file, fraction=fraction, subset=name, test_split=test)
        for file, fraction, name in zip(files, fractions, "abc", strict=True)
    ]
    splits, ledger = load_preferences(ours, validation_fraction=0)
    theirs = get_dataset(
        DatasetMixtureConfig(
            [
                DatasetConfig(path="json", data_files=str(file), fraction=fraction)
                for file, fraction in zip(files, fractions, strict=True)
            ]
        )
    )
    assert [prompt for prompt, *_ in texts(splits["train"])] == theirs["train"]["prompt"][:]
    assert Counter(splits["train"]["subset"]) == {"a": 15, "b": 6, "c": 9}
    assert ledger.read("train") == 30
    ours[1]["fraction"] = None
    assert fault(ours).startswith("`fraction` is set for some entries")


def test_subset_of_the_source_before_the_subset_of_the_row(tmp_path):
    rows = [row(1, source="magpie"), row(2)]
    splits, _ = load_preferences([folder(tmp_path, rows)], validation_fraction=0)
    assert splits["train"]["subset"][:] == ["magpie", "all"]
    splits, _ = load_preferences([source(tmp_path, subset="mine")], validation_fraction=0)
    assert splits["train"]["subset"][:] == ["mine", "mine"]


def test_ratings_of_one_prompt_form_pairs(tmp_path):
    """HelpSteer2: one row a completion; rows of one prompt that follow each other belong together."""
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


# ------------------------------------------------------------------------------------------------------------- faults


def write_lines(path, *lines: bytes):
    data = b"\n".join(lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


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
    found = folder(tmp_path, ROWS)
    write_lines(tmp_path / "test.jsonl", GOOD, SECRET.encode())
    assert fault([found]) == f"{tmp_path}/test.jsonl:2: no valid JSON at column 1"
    with pytest.raises(DataError, match="test.jsonl:2: no valid JSON at column 1"):
        load_test_split([found])


def test_bad_rows_of_other_files(tmp_path):
    def message(name: str, data: bytes) -> str:
        path = write_lines(tmp_path / name, data)
        return fault([source(path)], test_fraction=0.5).removeprefix(str(path))

    secret = SECRET.encode()
    assert (
        message("a.json", b'[\n{"prompt": "%s"},\n]' % secret)
        == ": cannot be read as json at line 3 (JSONDecodeError)"
    )
    assert message("b.json", b'{"prompt": "%s"}' % secret).startswith(
        ": a JSON list of rows is needed; one row a line is"
    )
    assert message("c.json", b'[{"prompt": "%s"}]' % secret).startswith(
        " row 1: columns ['prompt'] are no preference"
    )
    assert (
        message("a.csv", b"prompt,chosen,rejected\np,a,b\n%s,a\n" % secret)
        == ":3: 3 columns are needed"
    )
    assert (
        message("b.csv", b"prompt,chosen,rejected\n%s,a,b,c\n" % secret)
        == ":2: 3 columns are needed"
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
    found = folder(tmp_path, [row(1), row(2, SECRET, **columns)], streaming=streaming)
    assert fault([found]) == f"{tmp_path}/train.jsonl:2: {message}"


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
        tmp_path / "a.jsonl.gz", *(json.dumps(row(number)).encode() for number in range(500))
    )
    path.write_bytes(path.read_bytes()[:-100])
    assert fault([source(path)], test_fraction=0.5) == f"{path}: cannot be read as jsonl (EOFError)"


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
    assert list(read_rows(str(path))) == [(1, row(1))]


def test_lone_surrogates_are_replaced(tmp_path):
    """Half an emoji is valid in JSON (lmsys' files have some), but no text that Arrow or a tokenizer takes."""
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
    found = folder(tmp_path, [row(1)])
    assert texts(load_preferences([found], validation_fraction=0)[0]["train"]) == [
        ("question 1", "yes", "no")
    ]
    write_rows(tmp_path / "train.jsonl", [row(2)])  # the same size
    assert texts(load_preferences([found], validation_fraction=0)[0]["train"]) == [
        ("question 2", "yes", "no")
    ]


def test_changed_code_is_noticed():
    """datasets' cache sees the function that it calls, and none that this function calls."""
    folder = REPO / "reward" / "data"
    sources = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    assert hashlib.sha256(sources).hexdigest() == CODE


# ------------------------------------------------------------------------------------------------------------- splits


def test_splits_are_disjoint_by_first_user_turn(tmp_path):
    """Case, spaces and later turns don't matter; 3 rows share each first turn."""
    rows = []
    for number in range(200):
        said = f"question {number}"
        more = user(said) + assistant("x") + user("go on")
        rows += [row(number, "a", "b"), row(number, "c", "d") | {"prompt": f" Question  {number}"}]
        rows.append({"prompt": more, "chosen": assistant("e"), "rejected": assistant("f")})
    path = write_rows(tmp_path / "a.jsonl", rows)
    splits, ledger = load_preferences([source(path)], validation_fraction=0.2, test_fraction=0.25)
    found = {name: turns(table) for name, table in splits.items()}
    assert {name: len(turn) for name, turn in found.items()} == {
        "train": 118,
        "validation": 35,
        "test": 47,
    }
    assert len(set.union(*found.values())) == 200
    assert {name: len(table) for name, table in splits.items()} == {
        "train": 354,
        "validation": 105,
        "test": 141,
    }
    assert [ledger.dropped(name) for name in splits] == [0, 0, 0]


def test_validation_does_not_depend_on_order_or_other_rows(tmp_path):
    rows = [row(number) for number in range(300)]
    shuffled = random.Random(1).sample(rows, 300)
    held = []
    for name, these in (
        ("all", rows),
        ("shuffled", shuffled),
        ("fewer", rows[:150]),
        ("more", rows + [row("new")]),
    ):
        splits, _ = load_preferences([folder(tmp_path / name, these)], validation_fraction=0.1)
        held.append(turns(splits["validation"]))
    assert held[0] == held[1] and held[2] == {
        turn for turn in held[0] if int(turn.split()[1]) < 150
    }
    assert held[0] - {"question new"} == held[3] - {"question new"} and 20 <= len(held[0]) <= 40


def test_test_fraction_is_a_share_of_first_turns_and_the_same_each_time(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [row(number) for number in range(1000)])
    splits, _ = load_preferences([source(path)], validation_fraction=0, test_fraction=0.2)
    again, ledger = load_test_split([source(path)], test_fraction=0.2)
    assert row_ids(splits["test"]) == row_ids(again) and ledger.read("test") == len(again)
    assert 160 <= len(again) <= 240 and len(splits["train"]) == 1000 - len(again)


def test_test_fraction_leaves_a_test_split_alone(tmp_path):
    found = folder(tmp_path, [row(number) for number in range(50)])
    splits, _ = load_preferences([found], validation_fraction=0, test_fraction=0.2)
    assert len(splits["train"]) == 50 and texts(splits["test"]) == [("held out", "yes", "no")]


def test_train_rows_shared_with_test_are_dropped_and_counted(tmp_path):
    train = [row(1), {"prompt": "HELD  out", "chosen": "a", "rejected": "b"}, row(2)]
    splits, ledger = load_preferences([folder(tmp_path, train)], validation_fraction=0)
    assert texts(splits["train"]) == [("question 1", "yes", "no"), ("question 2", "yes", "no")]
    assert ledger.as_dict()["train"]["dropped"] == {"first user turn shared with test": 1}


def test_one_source_of_a_mixture_may_not_train_on_anothers_test(tmp_path):
    """The first source's test rows are carved from it, and lie in the second one's train split too."""
    rows = [row(number) for number in range(100)]
    carved = source(write_rows(tmp_path / "a.jsonl", rows))
    whole = folder(tmp_path / "b", [{**r, "chosen": "other"} for r in rows])
    splits, ledger = load_preferences([carved, whole], validation_fraction=0.1, test_fraction=0.3)
    assert not turns(splits["test"]) & (turns(splits["train"]) | turns(splits["validation"]))
    reason = "first user turn shared with test"
    dropped = sum(
        ledger.as_dict()[name]["dropped"].get(reason, 0) for name in ("train", "validation")
    )
    assert dropped == ledger.read("test") - 1  # that 1 is the second source's own test row


def test_exact_duplicates_are_dropped_and_contradictions_noted(tmp_path):
    train = [row(1), row(2), row(1), row(1, "no", "yes"), row(1, margin=2), row(3)]
    test = [*TEST, *TEST, row(4)]
    splits, ledger = load_preferences([folder(tmp_path, train, test)], validation_fraction=0)
    assert texts(splits["train"]) == [
        ("question 1", "yes", "no"),
        ("question 2", "yes", "no"),
        ("question 1", "no", "yes"),
        ("question 3", "yes", "no"),
    ]
    found = ledger.as_dict()
    assert found["train"]["dropped"] == {"exact duplicate": 2}
    assert found["train"]["noted"] == {
        "contradictory labels (the same pair the other way round)": 2
    }
    assert found["test"] == {
        "read": 3,
        "kept": 3,
        "by_subset": {},
        "dropped": {},
        "truncated": {},
        "added": {},
        "noted": {"exact duplicate (kept)": 1},
    }


def test_row_ids_are_of_the_text_alone(tmp_path):
    one = load_test_split([folder(tmp_path / "a", ROWS, [row(1, margin=2), row(2)])])[0]
    two = load_test_split([folder(tmp_path / "b", ROWS, [row(2), row(1)])])[0]
    assert row_ids(one) == row_ids(two)[::-1] and all(len(name) == 16 for name in row_ids(one))


# --------------------------------------------------------------------------------------------------- over-long, ledger


def encoded(tmp_path, train, tokenizer, max_length=None, overlong="drop"):
    splits, ledger = load_preferences([folder(tmp_path, train)], validation_fraction=0)
    return encode_splits(
        splits, ledger, tokenizer, EncodingOptions(max_length, overlong)
    ).tables, ledger


LONG = " ".join(["water"] * 200)


def long_rows() -> list[dict]:
    return [
        row(1),
        row(2, chosen=LONG),
        row(3, rejected=LONG),
        row(4, LONG, f"{LONG} too"),
        {**row(5), "prompt": LONG},
    ]


def test_over_long_pairs_are_dropped_and_counted_by_side(tmp_path, qwen):
    """Trap: over-long pairs vanish."""
    tables, ledger = encoded(tmp_path, long_rows(), qwen, 100)
    assert texts(tables["train"]) == [("question 1", "yes", "no")]
    assert ledger.as_dict()["train"] == {
        "read": 5,
        "kept": 1,
        "by_subset": {"all": 1},
        "dropped": {
            "over-long (both sides)": 2,
            "over-long (chosen)": 1,
            "over-long (rejected)": 1,
        },
        "truncated": {},
        "added": {},
        "noted": {},
    }


def test_over_long_test_rows_are_counted_too(tmp_path, qwen):
    """Trap: evaluation shrinks unseen."""
    splits, ledger = load_preferences(
        [folder(tmp_path, [row("apart")], long_rows())], validation_fraction=0
    )
    tables = encode_splits({"test": splits["test"]}, ledger, qwen, EncodingOptions(LIMIT)).tables
    assert len(tables["test"]) == 1 and ledger.dropped("test") == 4 and ledger.read("test") == 5


def test_over_long_prompts_are_cut_and_counted(tmp_path, qwen):
    tables, ledger = encoded(tmp_path, long_rows(), qwen, LIMIT, "truncate_prompt")
    assert [prompt for prompt, *_ in texts(tables["train"])] == ["question 1", LONG]
    assert max(tables["train"]["length"]) == 100
    found = ledger.as_dict()["train"]
    assert found["truncated"] == {"prompt cut at the start": 1}
    assert found["dropped"] == {
        "over-long (both sides)": 1,
        "over-long (chosen)": 1,
        "over-long (rejected)": 1,
    }


def test_over_long_pair_is_an_error(tmp_path, qwen):
    with pytest.raises(DataError) as caught:
        encoded(tmp_path, long_rows(), qwen, LIMIT, "error")
    assert str(caught.value) == (
        f"{tmp_path}/train.jsonl:2: 484 tokens, max_length is 100. Raise max_length, or set overlong: drop (counted) or "
        "overlong: truncate_prompt."
    )


def test_identical_once_encoded(tmp_path):
    """Trap: chosen == rejected once encoded; Llama's template trims what the user wrote."""
    _, ledger = encoded(tmp_path, [row(1), row(2, "a", " a\n")], prepared("llama3"))
    assert ledger.as_dict()["train"]["dropped"] == {"identical sides once encoded": 1}


def test_encoded_columns(tmp_path, qwen):
    rows = [row(1, margin=1.5, subset="b"), row(2, subset="a")]
    splits, ledger = load_preferences([folder(tmp_path, rows)], validation_fraction=0)
    found = encode_splits(splits, ledger, qwen, EncodingOptions(LIMIT))
    subsets, table = found.subsets, found.tables["train"]
    assert subsets == ["all", "a", "b"]  # the test split first
    assert table["subset_id"][:] == [2, 1] and table["target_margin"][:] == [1.5, 0.0]
    assert table["chosen_probability"][:] == [1.0, 1.0] and "margin" not in table.column_names
    assert table["chosen_ids"][0] == encode(qwen, user("question 1"), assistant("yes"))
    assert table["rejected_ids"][1] == encode(qwen, user("question 2"), assistant("no"))
    assert table["length"][0] == max(len(table["chosen_ids"][0]), len(table["rejected_ids"][0]))


def test_another_tokenizer_encodes_anew(tmp_path):
    """Two tokenizers that agree on template, special tokens, size and the manifest's probe; one merge differs."""
    one, other = prepared("qwen"), prepared("qwen")
    state = json.loads(one.backend_tokenizer.to_str())
    merge = [merge for merge in state["model"]["merges"] if len("".join(merge)) > 5][
        -1
    ]  # no word of the probe
    state["model"]["merges"].remove(merge)
    said = "so" + "".join(merge).replace("Ġ", " ")
    other.backend_tokenizer.model = type(one.backend_tokenizer).from_str(json.dumps(state)).model
    assert encoder_facts(one) == encoder_facts(other)
    found = folder(tmp_path, [row(1, said)])
    ids = []
    for tokenizer in (one, other):
        splits, ledger = load_preferences([found], validation_fraction=0)
        ids.append(
            encode_splits(splits, ledger, tokenizer, EncodingOptions()).tables["train"][
                "chosen_ids"
            ][0]
        )
    assert ids[0] != ids[1] and ids[1] == encode(other, user("question 1"), assistant(said))


def test_conversation_that_the_template_refuses_is_named(tmp_path):
    tokenizer = make_tokenizer("qwen")
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + tokenizer.chat_template
    )
    prepare_tokenizer(tokenizer, False)
    system = {
        "prompt": [{"role": "system", "content": SECRET}, *user("p")],
        "chosen": "a",
        "rejected": "b",
    }
    with pytest.raises(DataError) as caught:
        encoded(tmp_path, [row(1), system], tokenizer)
    expected = f"{tmp_path}/train.jsonl:2: the chat template refuses this conversation: System role not supported"
    assert str(caught.value) == expected


def test_the_ledger_in_words_and_numbers(tmp_path, qwen):
    train = [
        row(1, subset="facts"), row(1, subset="facts"), row(2, "no", "yes"), row(2), row(3, "", "no"), row(4, "no", "no"),
        {"chosen": user("p") + assistant("a"), "rejected": user("q") + assistant("b")}, TEST[0], row(5, chosen=LONG),
        {"prompt": f"{LONG} tea?", "chosen": "a", "rejected": "b"},
        {"prompt": "x", "response_a": "a", "response_b": "b", "label": "tie"},
    ]  # fmt: skip
    tables, ledger = encoded(tmp_path, train, qwen, LIMIT, "truncate_prompt")
    assert str(ledger) == (
        "                 read     kept  dropped\n"
        "test                1        1        0\n"
        "train              11        5        6\n"
        "              dropped         1  empty completion (chosen)\n"
        "              dropped         1  exact duplicate\n"
        "              dropped         1  first user turn shared with test\n"
        "              dropped         1  identical sides\n"
        "              dropped         1  over-long (chosen)\n"
        "              dropped         1  prompts differ\n"
        "              truncated       1  prompt cut at the start\n"
        "              noted           2  contradictory labels (the same pair the other way round)\n"
        "              noted           1  tie (chosen_probability .5)\n"
        "              all 4, facts 1"
    )
    assert ledger.as_dict() == {
        "test": {
            "read": 1, "kept": 1, "by_subset": {"all": 1}, "dropped": {}, "truncated": {}, "added": {}, "noted": {},
        },
        "train": {
            "read": 11,
            "kept": 5,
            "by_subset": {"all": 4, "facts": 1},
            "dropped": {
                "empty completion (chosen)": 1,
                "exact duplicate": 1,
                "first user turn shared with test": 1,
                "identical sides": 1,
                "over-long (chosen)": 1,
                "prompts differ": 1,
            },
            "truncated": {"prompt cut at the start": 1},
            "added": {},
            "noted": {
                "contradictory labels (the same pair the other way round)": 2,
                "tie (chosen_probability .5)": 1,
            },
        },
    }  # fmt: skip
    assert (
        len(tables["train"]) == 5 and json.loads(json.dumps(ledger.as_dict())) == ledger.as_dict()
    )


@pytest.mark.parametrize("seed", range(6))
def test_read_and_added_are_kept_or_dropped(tmp_path, qwen, seed):
    """Random small files: nothing is lost between a source and the encoded splits."""
    rng = random.Random(seed)

    def any_row():
        said = [rng.choice(["yes", "no", "", LONG, "tea", "yes"]) for _ in range(2)]
        n = rng.randrange(25)
        kind = rng.randrange(4)
        if kind == 0:
            return {
                "prompt": f"q {n}",
                "response_a": said[0],
                "response_b": said[1],
                "votes": [rng.randrange(3), 1],
            }
        if kind == 1:
            return {
                "chosen": f"\n\nHuman: q {n}\n\nAssistant: {said[0]}",
                "rejected": "\n\nHuman: q 1\n\nAssistant: b",
            }
        return {
            "prompt": rng.choice([f"q {n}", LONG]),
            "chosen": said[0],
            "rejected": said[1],
            "subset": f"s{n % 3}",
        }

    rows = [any_row() for _ in range(120)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    filters = {
        "min_rater_agreement": rng.choice([None, 0.6]),
        "mismatched_prompts": rng.choice([0.0, 0.5, 1.0]),
    }
    splits, ledger = load_preferences(
        [source(path)], validation_fraction=0.2, test_fraction=0.2, **filters
    )
    tables = encode_splits(
        splits, ledger, qwen, EncodingOptions(90, rng.choice(["drop", "truncate_prompt"]))
    ).tables
    found = ledger.as_dict()
    assert (
        set(found) == {"train", "validation", "test"}
        and sum(counts["read"] for counts in found.values()) == 120
    )
    for name, counts in found.items():
        assert counts["read"] + sum(counts["added"].values()) == counts["kept"] + sum(
            counts["dropped"].values()
        )
        assert counts["kept"] == len(tables[name]) == sum(counts["by_subset"].values())


def test_max_dropped(tmp_path, qwen):
    _, ledger = encoded(tmp_path, long_rows(), qwen, 100)
    ledger.check(0.8)
    with pytest.raises(DataError) as caught:
        ledger.check(0.79)
    assert str(caught.value).startswith(
        "80.0% of the train pairs were dropped; max_dropped allows 79.0%.\n"
    )
    assert str(caught.value).endswith(
        "If that is what you want, set max_dropped: 0.80."
    ) and "over-long" in str(caught.value)


def test_an_empty_split_is_an_error(tmp_path, qwen):
    _, ledger = encoded(tmp_path / "a", [row(1, LONG), row(2, LONG)], qwen, LIMIT)
    with pytest.raises(DataError, match="^no pair of the train split is left.\n"):
        ledger.check(1.0)
    splits, ledger = load_preferences([folder(tmp_path / "b", [row(1)])], validation_fraction=0.01)
    with pytest.raises(DataError, match="^no pair of the validation split is left.\n"):
        encode_splits(splits, ledger, qwen, EncodingOptions(LIMIT))
    splits, ledger = load_preferences(
        [folder(tmp_path / "c", [row(1, "", "")])], validation_fraction=0
    )
    with pytest.raises(
        DataError, match="^no pair of the train split is left.\n(.*\n)+ .*1  empty completion"
    ):
        encode_splits(splits, ledger, qwen, EncodingOptions(LIMIT))


def test_an_empty_ledger():
    assert Ledger().as_dict() == {} and str(Ledger()) == "                 read     kept  dropped"


# ------------------------------------------------------------------------------------------------ what the raters said

NOT_SURE = "tie (chosen_probability .5)"
NO_RIGHT_SIDE = "tie (no side is right)"
AGAINST = "votes or chosen_probability against the chosen side"
ADDED = "mismatched prompt (the rejected side is chosen for another prompt)"


@pytest.mark.parametrize(
    (
        "said",
        "options",
        "expected",
    ),  # expected: target margin, chosen probability, rating of chosen and of rejected
    [
        ({}, {}, (0.0, 1.0, 0.0, 0.0)),
        ({}, {"soft_labels": False}, (0.0, 1.0, 0.0, 0.0)),
        ({"chosen_probability": 0.75}, {}, (0.0, 0.75, 0.0, 0.0)),
        ({"chosen_probability": 0.75}, {"soft_labels": False}, (0.0, 1.0, 0.0, 0.0)),
        ({"chosen_probability": 0.25}, {}, (0.0, 0.25, 0.0, 0.0)),
        ({"chosen_probability": 0.25}, {"soft_labels": False}, (0.0, 0.0, 0.0, 0.0)),
        ({"chosen_probability": 0.0}, {}, (0.0, 0.0, 0.0, 0.0)),
        ({"chosen_probability": 0.5}, {}, (0.0, 0.5, 0.0, 0.0)),
        ({"chosen_probability": 0.5}, {"soft_labels": False}, (0.0, 0.5, 0.0, 0.0)),
        ({"target_margin": 1.5}, {}, (1.5, 1.0, 0.0, 0.0)),
        ({"strength": 2}, {}, (2, 1.0, 0.0, 0.0)),
        (
            {"strength": 2, "target_margin": 0.0},
            {},
            (0.0, 1.0, 0.0, 0.0),
        ),  # a given margin before the strength
        ({"strength": 1.5}, {"strength_as": "chosen_probability"}, (0.0, 0.75, 0.0, 0.0)),
        ({"strength": 3}, {"strength_as": "chosen_probability"}, (0.0, 1.0, 0.0, 0.0)),
        (
            {"strength": 1.5},
            {"strength_as": "chosen_probability", "soft_labels": False},
            (0.0, 1.0, 0.0, 0.0),
        ),
        ({"strength": 0, "chosen_probability": 0.5}, {}, (0.0, 0.5, 0.0, 0.0)),
        (
            {"strength": 0, "chosen_probability": 0.5},
            {"strength_as": "chosen_probability"},
            (0.0, 0.5, 0.0, 0.0),
        ),
        (
            {"rating_chosen": 4.0, "rating_rejected": 0.0},
            {"loss_type": "rating_mse"},
            (0.0, 1.0, 4.0, 0.0),
        ),
    ],
)
def test_labels_are_what_the_raters_said_as_numbers(said, options, expected):
    found = labels_of(
        {"where": "a.jsonl:7", **dict.fromkeys(LABELS), **said}, EncodingOptions(**options)
    )
    assert found == dict(
        zip(
            ("target_margin", "chosen_probability", "rating_chosen", "rating_rejected"),
            expected,
            strict=True,
        )
    )


RATED = [
    {"prompt": "votes", "response_a": "a", "response_b": "b", "votes": [1, 3]},
    {"prompt": "strength", "response_1": "a", "response_2": "b", "preference_strength": -3},
    {"prompt": "ratings", "chosen": "a", "rejected": "b", "rating_chosen": 4, "rating_rejected": 1},
    {"prompt": "tie", "response_a": "a", "response_b": "b", "label": "tie"},
    {"prompt": "plain", "chosen": "a", "rejected": "b"},
]


def test_labels_reach_the_encoded_table_and_follow_the_options(tmp_path, qwen):
    """The table is cached; other options must not be answered with it."""
    splits, ledger = load_preferences([folder(tmp_path, RATED)], validation_fraction=0)
    found = {}
    for soft_labels, strength_as in (
        (True, "target_margin"),
        (False, "target_margin"),
        (True, "chosen_probability"),
    ):
        options = {"soft_labels": soft_labels, "strength_as": strength_as}
        table = encode_splits(splits, ledger, qwen, EncodingOptions(**options)).tables["train"]
        found[soft_labels, strength_as] = (
            table["chosen_probability"][:],
            table["target_margin"][:],
        )
        assert table["rating_chosen"][:] == [0, 0, 4, 0, 0] and table["rating_rejected"][:] == [
            0,
            0,
            1,
            0,
            0,
        ]
    assert found == {
        (True, "target_margin"): ([0.75, 1, 1, 0.5, 1], [0, 3, 0, 0, 0]),
        (False, "target_margin"): ([1, 1, 1, 0.5, 1], [0, 3, 0, 0, 0]),
        (True, "chosen_probability"): ([0.75, 1, 1, 0.5, 1], [0, 0, 0, 0, 0]),
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_regression_on_ratings_names_the_first_row_without_them(tmp_path, qwen, streaming):
    rated = row("rated", rating_chosen=2, rating_rejected=1)
    found = folder(tmp_path, [rated, row(2, SECRET, score_chosen=3)], [rated], streaming=streaming)
    splits, ledger = load_preferences([found], validation_fraction=0)
    with pytest.raises(DataError) as caught:
        list(
            encode_splits(splits, ledger, qwen, EncodingOptions(loss_type="rating_mse")).tables[
                "train"
            ]
        )
    assert str(caught.value) == (
        f"{tmp_path}/train.jsonl:2: no ratings, which loss_type: rating_mse regresses on; needed are numbers in the "
        "columns rating_chosen and rating_rejected (or score_chosen and score_rejected, or helpfulness). For pairs without "
        "ratings: loss_type: bradley_terry, or mse"
    )


def test_a_test_split_needs_no_ratings(tmp_path, qwen):
    """Nobody computes a loss on it."""
    found = folder(tmp_path, [row(1, rating_chosen=2, rating_rejected=1)], [row("plain")])
    splits, ledger = load_preferences([found], validation_fraction=0)
    encoded = encode_splits(splits, ledger, qwen, EncodingOptions(loss_type="rating_mse")).tables
    assert len(encoded["test"]) == 1


def tie(number) -> dict:
    return {"prompt": f"question {number}", "response_a": "yes", "response_b": "no", "label": "tie"}


@pytest.mark.parametrize("streaming", [False, True])
def test_ties_are_kept_in_train_and_dropped_where_accuracy_is_measured(tmp_path, qwen, streaming):
    """Of 100 rows 38 fall into validation, 5 of them ties; which, is decided by a hash of the first user turn."""
    train = [tie(n) if n % 4 == 0 else row(n) for n in range(100)]
    found = folder(tmp_path, train, [*TEST, tie("held out")], streaming=streaming)
    splits, ledger = load_preferences([found], validation_fraction=0.3)
    tables = encode_splits(splits, ledger, qwen, EncodingOptions()).tables
    rows = [pair for r in tables["train"] for pair in r.get("pairs", [r])]
    counts = ledger.as_dict()
    assert {
        name: (c["read"], c["kept"], c["dropped"], c["noted"]) for name, c in counts.items()
    } == {
        "test": (2, 1, {NO_RIGHT_SIDE: 1}, {}),
        "validation": (38, 33, {NO_RIGHT_SIDE: 5}, {}),
        "train": (62, 62, {}, {NOT_SURE: 20}),
    }
    assert Counter(r["chosen_probability"] for r in rows) == {1.0: 42, 0.5: 20}
    assert set(tables["validation"]["chosen_probability"]) == {1.0}


@pytest.mark.parametrize(
    ("ties", "mismatched", "warning"),
    [
        (4, 0.0, "warning: 40.0% of the train pairs are ties"),
        (4, 1.0, "warning: 40.0% of"),
        (3, 0.0, ""),
    ],
)
def test_more_than_30_percent_ties_are_warned_about_once(
    tmp_path, qwen, capsys, ties, mismatched, warning
):
    train = [tie(n) if n < ties else row(n, f"yes {n}") for n in range(10)]
    splits, ledger = load_preferences(
        [folder(tmp_path, train)], validation_fraction=0, mismatched_prompts=mismatched
    )
    encode_splits(splits, ledger, qwen, EncodingOptions())
    ledger.check(0.1)
    said = capsys.readouterr().out
    assert said.count("warning: ") == (1 if warning else 0) and warning in said


def test_ties_left_out_of_a_test_split_do_not_count_as_lost(tmp_path):
    """Arena data has some 30% of them; whatever else is dropped counts."""
    test = [tie("t") if n < 4 else row(n) for n in range(9)] + [row(9, "")]
    _, ledger = load_preferences([folder(tmp_path, [row("train")], test)], validation_fraction=0)
    assert ledger.as_dict()["test"]["dropped"] == {NO_RIGHT_SIDE: 4, "empty completion (chosen)": 1}
    ledger.check(0.1)
    with pytest.raises(
        DataError, match="^10.0% of the test pairs were dropped; max_dropped allows 9.0%."
    ):
        ledger.check(0.09)


def test_votes_against_the_chosen_side_are_noted_in_every_split(tmp_path):
    train = [row(n, votes=[1, 3] if n % 2 else [3, 1]) for n in range(40)]
    test = [*TEST, {**row("z"), "chosen_probability": 0.4}]
    splits, ledger = load_preferences([folder(tmp_path, train, test)], validation_fraction=0.25)
    counts = ledger.as_dict()
    assert counts["train"]["noted"][AGAINST] + counts["validation"]["noted"][AGAINST] == 20
    assert (
        counts["validation"]["noted"][AGAINST]
        == list(splits["validation"]["chosen_probability"]).count(0.25)
        > 0
    )
    assert counts["test"]["noted"] == {AGAINST: 1}


AGREE = [[3, 1], [1, 3], [2, 1], [7, 3], [1, 1], [1, 0]]  # .75, .75 (against), .67, .7, .5, 1


@pytest.mark.parametrize("streaming", [False, True])
def test_rater_agreement_filters_train_alone(tmp_path, qwen, streaming):
    train = [row(n, votes=votes) for n, votes in enumerate(AGREE)] + [row("unrated")]
    found = folder(tmp_path, train, [row("held out", votes=[2, 1])], streaming=streaming)
    splits, ledger = load_preferences([found], validation_fraction=0, min_rater_agreement=0.7)
    rows = encode_splits(splits, ledger, qwen, EncodingOptions()).tables["train"]
    kept = [pair["chosen_probability"] for r in rows for pair in r.get("pairs", [r])]
    assert kept == [0.75, 0.25, 0.7, 1.0, 1.0]
    counts = ledger.as_dict()
    assert counts["train"]["dropped"] == {"raters agree less than 0.7": 2} and counts["train"][
        "noted"
    ] == {AGAINST: 1}
    assert counts["test"]["dropped"] == {} and ledger.read("test") == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_rater_agreement_leaves_validation_alone(tmp_path, streaming):
    train = [row(n, votes=[2, 1]) for n in range(40)] + [
        row(n, votes=[4, 0]) for n in range(40, 60)
    ]
    found = folder(tmp_path, train, streaming=streaming)
    plain, _ = load_preferences([found], validation_fraction=0.3)
    filtered, ledger = load_preferences([found], validation_fraction=0.3, min_rater_agreement=0.7)
    assert (
        row_ids(plain["validation"]) == row_ids(filtered["validation"])
        and ledger.dropped("validation") == 0
    )
    assert 2 / 3 in filtered["validation"]["chosen_probability"][:]


def test_rater_agreement_without_raters_is_an_error(tmp_path):
    message = fault([folder(tmp_path, [row(1), row(2)])], min_rater_agreement=0.7)
    assert message.startswith(
        "min_rater_agreement is set, but no row of the train data has votes or chosen_probability;"
    )
    assert (
        "remove the key, or add a column `votes` ([for chosen, for rejected]) to the rows"
        in message
    )


# -------------------------------------------------------------------------------------------------- mismatched prompts


def answers(count: int, **more) -> list[dict]:
    return [row(n, f"yes {n}", f"no {n}", **more) for n in range(count)]


def added_to(sources, share: float, transcript="messages", **options):
    """(the train pairs read, the pairs added to them, the ledger)."""
    options = {"validation_fraction": 0, **options}
    splits, ledger = load_preferences(sources, transcript, mismatched_prompts=share, **options)
    train, added = splits["train"], ledger.as_dict()["train"]["added"].get(ADDED, 0)
    cut = len(train) - added
    return train.select(list(range(cut))), train.select(list(range(cut, len(train)))), ledger


def test_a_mismatched_pair_rejects_the_answer_to_another_prompt(tmp_path):
    """The choice is a hash's, so these are the pairs on every machine."""
    read, added, ledger = added_to([folder(tmp_path, answers(8))], 0.5)
    assert texts(read) == [(f"question {n}", f"yes {n}", f"no {n}") for n in range(8)]
    assert texts(added) == [
        ("question 0", "yes 0", "yes 1"),
        ("question 2", "yes 2", "yes 0"),
        ("question 6", "yes 6", "yes 2"),
        ("question 5", "yes 5", "yes 6"),
    ]
    counts = ledger.as_dict()["train"]
    assert (counts["read"], counts["kept"], counts["added"]) == (8, 12, {ADDED: 4})


def test_kept_is_read_and_added_less_dropped(tmp_path, qwen):
    """An exact duplicate is not built upon; an over-long answer takes along the two added pairs that it stands in."""
    rows = [*answers(3), row(0, "yes 0", "no 0"), row(9, LONG)]
    splits, ledger = load_preferences(
        [folder(tmp_path, rows)], validation_fraction=0, mismatched_prompts=1.0
    )
    tables = encode_splits(splits, ledger, qwen, EncodingOptions(LIMIT)).tables
    counts = ledger.as_dict()["train"]
    assert (counts["read"], counts["kept"], counts["added"]) == (5, 5, {ADDED: 4}) and len(
        tables["train"]
    ) == 5
    assert counts["dropped"] == {
        "exact duplicate": 1,
        "over-long (chosen)": 2,
        "over-long (rejected)": 1,
    }
    assert (
        "              added           4  mismatched prompt (the rejected side is chosen for"
        in str(ledger)
    )


def test_a_mismatched_pair_forgets_what_was_said_of_the_one_it_is_made_of(tmp_path):
    said = {
        "votes": [3, 1],
        "margin": 2,
        "rating_chosen": 4,
        "rating_rejected": 1,
        "bayes_accuracy": 0.9,
    }
    read, added, _ = added_to([folder(tmp_path, answers(4, **said, subset="facts"))], 1.0)
    assert [labels_of(r, EncodingOptions())["chosen_probability"] for r in read] == [0.75] * 4
    for pair in added:
        assert [pair[name] for name in ("votes", *LABELS)] == [None] * 7
        assert labels_of(pair, EncodingOptions()) == {
            "target_margin": 0.0, "chosen_probability": 1.0, "rating_chosen": 0.0, "rating_rejected": 0.0,
        }  # fmt: skip
    assert added["subset"][:] == ["facts"] * 4
    assert (
        len({*read["ranking"], *added["ranking"]})
        == len({*read["pair_key"], *added["pair_key"]})
        == 8
    )


def test_mismatched_pairs_are_the_same_in_another_order_and_another_process(tmp_path):
    rows = answers(40)
    _, added, _ = added_to([folder(tmp_path / "a", rows)], 0.3)
    _, shuffled, _ = added_to([folder(tmp_path / "b", random.Random(3).sample(rows, 40))], 0.3)
    code = (
        "import sys, datasets\nfrom reward.data.splits import load_preferences\nfrom reward.data.tokens import row_ids\n"
        "path, datasets.config.HF_DATASETS_CACHE = sys.argv[1:]\n"
        "keys = ('name', 'data_dir', 'data_files', 'subset', 'columns', 'fraction')\n"
        "source = {**dict.fromkeys(keys), 'path': path, 'split': 'train', 'test_split': 'test', 'streaming': False}\n"
        "splits, _ = load_preferences([source], validation_fraction=0, mismatched_prompts=0.3)\n"
        "print(*row_ids(splits['train'])[40:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a"), str(tmp_path / "cache")],
        cwd=REPO, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == row_ids(added) and len(added) == 12
    assert sorted(row_ids(shuffled)) == sorted(row_ids(added))


def test_a_mismatched_pair_never_takes_an_answer_to_the_same_first_turn(tmp_path):
    rows = [row(n % 3, f"yes {n}", f"no {n}") for n in range(30)]
    _, added, _ = added_to([folder(tmp_path / "a", rows)], 1.0)
    question = {f"yes {n}": f"question {n % 3}" for n in range(30)}
    assert all(
        question[chosen] == prompt != question[rejected]
        for prompt, chosen, rejected in texts(added)
    )
    assert (
        len(added) == 28
    )  # of 30: where the first answer drawn is to the same question, one other is tried
    _, added, ledger = added_to(
        [folder(tmp_path / "b", [row(1, f"yes {n}") for n in range(5)])], 1.0
    )
    assert len(added) == 0 and ledger.as_dict()["train"]["added"] == {}


def test_prompts_with_one_good_answer_give_no_mismatched_pair(tmp_path):
    rows = [row(n) for n in range(5)]  # "yes" is right for all of them
    _, added, ledger = added_to([folder(tmp_path, rows)], 1.0)
    assert (
        len(added) == 0
        and ledger.as_dict()["train"]["added"] == {}
        and ledger.dropped("train") == 0
    )


def test_raw_transcripts_and_messages_are_not_mixed(tmp_path, qwen):
    """Under `transcript: raw` a source of strings and one of messages keep their forms."""
    strings = folder(tmp_path / "a", answers(10))
    messages = [
        {"prompt": user(f"q {n}"), "chosen": assistant(f"a {n}"), "rejected": assistant("b")}
        for n in range(10)
    ]
    _, added, _ = added_to([strings, folder(tmp_path / "b", messages)], 1.0, "raw")
    forms = [{type(side) for side in decode_sides(pair)[:3]} for pair in added]
    assert {str} in forms and {list} in forms and all(len(form) == 1 for form in forms)


def test_validation_and_test_have_no_mismatched_pair(tmp_path):
    found = folder(tmp_path, answers(60), answers(70)[60:])
    plain, _ = load_preferences([found], validation_fraction=0.3)
    splits, ledger = load_preferences([found], validation_fraction=0.3, mismatched_prompts=1.0)
    assert len(splits["train"]) == 2 * len(plain["train"])
    for name in ("validation", "test"):
        assert (
            row_ids(splits[name]) == row_ids(plain[name]) and ledger.as_dict()[name]["added"] == {}
        )
    held = {chosen for _, chosen, _ in texts(splits["validation"])}
    assert held and not held & {rejected for *_, rejected in texts(splits["train"])}


# ------------------------------------------------------------------------------------------------------------ rankings


def nectar(number, *completions: str) -> dict:
    """A ranking, best first."""
    answers = [
        {"answer": text, "model": "m", "rank": float(rank)}
        for rank, text in enumerate(completions, start=1)
    ]
    return {
        "prompt": f"\n\nHuman: question {number}\n\nAssistant: ",
        "answers": answers,
        "num_responses": len(answers),
    }


RANKINGS = [
    nectar(1, "a", "b", "c", "d"),
    row(2),
    nectar(3, "a", "b", "c water"),
    row(4),
    nectar(5, "a", "b"),
]


def test_the_pairs_of_a_ranking_form_one_group_in_the_order_of_the_table(tmp_path, qwen):
    table = encoded(tmp_path, RANKINGS, qwen)[0]["train"]
    groups = by_ranking(table)
    assert groups["rows"][:] == [[0, 1, 2, 3, 4, 5], [6], [7, 8, 9], [10], [11]]
    assert texts(table)[:6] == [
        ("question 1", *sides) for sides in ("ab", "ac", "ad", "bc", "bd", "cd")
    ]
    lengths = table["length"][:]
    assert groups["length"][:] == [
        lengths[0],
        lengths[6],
        max(lengths[7:10]),
        lengths[10],
        lengths[11],
    ]
    assert lengths[7] < lengths[8]  # "c water" stands in the second pair and the third


def test_a_ranking_is_smaller_by_the_pairs_that_are_dropped(tmp_path, qwen):
    train = [
        nectar(1, "a", LONG, "c", "d"),
        nectar(1, "a", "c", "e"),
        nectar(1, "d", "a"),
        nectar(1, "a", "c", "d"),
    ]
    tables, ledger = encoded(tmp_path, train, qwen, LIMIT)
    assert texts(tables["train"]) == [
        ("question 1", *sides) for sides in ("ac", "ad", "cd", "ae", "ce", "da")
    ]
    assert by_ranking(tables["train"])["rows"][:] == [[0, 1, 2], [3, 4], [5]]
    assert ledger.as_dict()["train"]["dropped"] == {
        "exact duplicate": 4, "over-long (chosen)": 2, "over-long (rejected)": 1,
    }  # fmt: skip


def test_rated_completions_of_one_prompt_form_one_group(tmp_path, qwen):
    rows = [
        {"prompt": p, "response": f"{p} {h}", "helpfulness": h} for p in "pq" for h in (1, 3, 2)
    ]
    table = encoded(tmp_path, rows, qwen)[0]["train"]
    assert by_ranking(table)["rows"][:] == [[0, 1, 2], [3, 4, 5]]


def test_a_mismatched_pair_is_a_group_of_its_own(tmp_path, qwen):
    found = folder(tmp_path, [nectar(1, "a", "b", "c"), nectar(2, "d", "e", "f")])
    splits, ledger = load_preferences([found], validation_fraction=0, mismatched_prompts=0.5)
    table = encode_splits(splits, ledger, qwen, EncodingOptions()).tables["train"]
    assert by_ranking(table)["rows"][:][:2] == [[0, 1, 2], [3, 4, 5]]
    assert all(len(group) == 1 for group in by_ranking(table)["rows"][:][2:]) and len(table) > 6


# ---------------------------------------------------------------------------------------------------------- streaming


def streamed(path, tokenizer, **options):
    splits, ledger = load_preferences([source(path, streaming=True)], **options)
    return encode_splits(splits, ledger, tokenizer, EncodingOptions(90)).tables, ledger


@pytest.fixture()
def mixed(tmp_path):
    """100 rows, 10 of them repeated, 1 empty, 1 over-long, 1 in the test split."""
    rows = [row(number) for number in range(90)] + [row(number) for number in range(10)]
    rows += [row(200, "", "x"), row(201, LONG), TEST[0]]
    folder(tmp_path, random.Random(0).sample(rows, len(rows)))
    return tmp_path


def test_streaming_gives_the_rows_of_the_table_in_order(mixed, qwen):
    tables, counted = streamed(mixed, qwen, validation_fraction=0.1)
    assert isinstance(tables["train"], IterableDataset)
    rows = [pair for ranking in tables["train"] for pair in ranking["pairs"]]
    splits, ledger = load_preferences([source(mixed)], validation_fraction=0.1)
    plain = encode_splits(splits, ledger, qwen, EncodingOptions(90)).tables
    assert [r["chosen_ids"] for r in rows] == plain["train"]["chosen_ids"][:]
    assert [r["rejected_ids"] for r in rows] == plain["train"]["rejected_ids"][:]
    assert tables["validation"]["chosen_ids"][:] == plain["validation"]["chosen_ids"][:]
    assert counted.as_dict() == ledger.as_dict()
    assert sum(counted.as_dict()["train"]["dropped"].values()) >= 10


def test_streaming_counts_a_pair_once(mixed, qwen):
    """A look at the first row and a second epoch leave the ledger alone."""
    tables, ledger = streamed(mixed, qwen, validation_fraction=0.1)
    next(iter(tables["train"]))
    list(tables["train"])
    once = ledger.as_dict()
    assert list(tables["train"]) and ledger.as_dict() == once
    assert sum(counts["read"] for counts in once.values()) == 103 + 1
    for counts in once.values():
        assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())


def test_streaming_past_the_rows_that_validation_comes_from(tmp_path, qwen, monkeypatch):
    """Only rows that share a first user turn with a validation pair are lost to train, and they are counted."""
    monkeypatch.setattr(streams, "STREAM_HELD_OUT", 60)
    rows = [row(number) for number in range(120)] + [
        row(number, "other", "no") for number in range(60)
    ]
    folder(tmp_path, rows)
    tables, ledger = streamed(tmp_path, qwen, validation_fraction=0.2)
    kept, held = len(list(tables["train"])), len(tables["validation"])
    assert 5 <= held <= 20 and kept == 180 - 2 * held
    assert ledger.as_dict()["train"]["dropped"] == {"first user turn shared with validation": held}
    assert ledger.read("train") == kept + held and ledger.read("validation") == held


def test_streamed_rankings_stay_together_and_in_order(tmp_path, qwen):
    """One of them loses a pair as over-long's sides do, one is all duplicates; the last one is not forgotten."""
    folder(
        tmp_path,
        [*RANKINGS, nectar(1, "a", "b"), nectar(6, "a", LONG, "c"), nectar(7, "a", "b", "c")],
    )
    tables, ledger = streamed(tmp_path, qwen, validation_fraction=0)
    rows = list(tables["train"])
    assert [set(r) for r in rows] == [{"pairs"}] * 7 and [len(r["pairs"]) for r in rows] == [
        6,
        1,
        3,
        1,
        1,
        1,
        3,
    ]
    splits, counted = load_preferences([source(tmp_path)], validation_fraction=0)
    table = encode_splits(splits, counted, qwen, EncodingOptions(90)).tables["train"]
    assert [[p["chosen_ids"] for p in r["pairs"]] for r in rows] == [
        [table[i]["chosen_ids"] for i in group] for group in by_ranking(table)["rows"]
    ]
    assert ledger.as_dict() == counted.as_dict()
    assert ledger.as_dict()["train"]["dropped"] == {
        "exact duplicate": 1, "over-long (chosen)": 1, "over-long (rejected)": 1,
    }  # fmt: skip


def test_streaming_notes_ties_and_votes_against(tmp_path, qwen):
    votes = [[1, 1], [3, 1], [1, 3]]
    folder(tmp_path, [row(n, votes=votes[n % 3]) for n in range(60)])
    tables, ledger = streamed(tmp_path, qwen, validation_fraction=0.2)
    list(tables["train"])
    once = ledger.as_dict()
    assert list(tables["train"]) and ledger.as_dict() == once
    splits, counted = load_preferences([source(tmp_path)], validation_fraction=0.2)
    encode_splits(splits, counted, qwen, EncodingOptions(90))
    assert once == counted.as_dict() and set(once["train"]["noted"]) == {NOT_SURE, AGAINST}


def test_streaming_treats_rows_past_validation_as_train_rows(tmp_path, qwen, monkeypatch):
    """Their first user turn would have fallen into validation, had they come earlier; ties stay, raters are asked."""
    monkeypatch.setattr(streams, "STREAM_HELD_OUT", 10)
    late = [tie(n) for n in range(10, 50)] + [row(n, votes=[2, 1]) for n in range(50, 90)]
    folder(tmp_path, [row(n) for n in range(10)] + late)
    tables, ledger = streamed(tmp_path, qwen, validation_fraction=0.5)
    list(tables["train"])
    assert (
        ledger.as_dict()["train"]["noted"] == {NOT_SURE: 40}
        and ledger.as_dict()["train"]["dropped"] == {}
    )
    tables, ledger = streamed(tmp_path, qwen, validation_fraction=0.5, min_rater_agreement=0.6)
    list(tables["train"])
    assert ledger.as_dict()["train"]["dropped"] == {"raters agree less than 0.6": 40}
    tables, ledger = streamed(tmp_path, qwen, validation_fraction=0.5, min_rater_agreement=0.7)
    list(tables["train"])
    assert ledger.as_dict()["train"]["dropped"] == {"raters agree less than 0.7": 80}


def test_streaming_has_no_fraction_and_needs_a_test_split(tmp_path):
    found = folder(tmp_path, ROWS, streaming=True, fraction=0.5)
    assert fault([found]).startswith("`fraction` needs the number of rows")
    alone = source(tmp_path / "train.jsonl", streaming=True)
    assert "(not for a stream, which cannot be read twice)" in fault([alone], test_fraction=0.1)


def test_streaming_bad_line(tmp_path):
    found = folder(tmp_path, ROWS)
    with open(tmp_path / "train.jsonl", "a", encoding="utf-8") as file:
        file.write(f"\n{SECRET}\n")
    assert (
        fault([{**found, "streaming": True}])
        == f"{tmp_path}/train.jsonl:5: no valid JSON at column 1"
    )


def test_streaming_trains(tmp_path, standin):
    """Two steps of PairTrainer, from a stream of 3 pairs, on a CPU: the stream starts over, the ledger does not."""
    from trl import RewardConfig

    from reward.model.build import build_reward_model, build_tokenizer
    from reward.training.trainer import PairOptions, PairTrainer

    folder(tmp_path / "data", hh_rows(3))
    model = build_reward_model(str(standin("qwen")), dtype="float32")
    tokenizer = build_tokenizer(str(standin("qwen")), model.config)
    splits, ledger = load_preferences(
        [source(tmp_path / "data", streaming=True)], validation_fraction=0
    )
    tables, subsets = encode_splits(splits, ledger, tokenizer, EncodingOptions(512))
    args = RewardConfig(
        str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2, max_length=None, use_cpu=True, bf16=False,
        report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = PairTrainer(
        model=model,
        args=args,
        train_dataset=tables["train"],
        processing_class=tokenizer,
        options=PairOptions(subsets),
    )
    trainer.train()
    assert trainer.state.global_step == 2 and subsets == ["all"]
    assert all(entry["loss"] > 0 for entry in trainer.state.log_history[:2])
    assert ledger.as_dict()["train"] == {
        "read": 3, "kept": 3, "by_subset": {"all": 3}, "dropped": {}, "truncated": {}, "added": {}, "noted": {},
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- large and real data

MEASURE = """
import sys, threading, time
import datasets
from reward.data.splits import load_preferences, load_test_split

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024

folder, cache = sys.argv[1:]
datasets.config.HF_DATASETS_CACHE = cache
keys = ("name", "data_dir", "data_files", "subset", "columns", "fraction")
source = {**dict.fromkeys(keys), "path": folder, "split": "train", "test_split": "test", "streaming": False}
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
        for number in range(200_000):
            file.write(
                json.dumps(
                    {"prompt": f"{number} " * 40, "chosen": "a" * 300, "rejected": "b" * 300}
                )
                + "\n"
            )
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "data"), str(tmp_path / "cache")],
        cwd=REPO, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    read, grown = map(int, done.stdout.split())
    assert read == 200_000 and grown < 120, grown


@pytest.mark.parametrize("transcript", ["messages", "raw"])
def test_real_hh_file(hh_real, transcript):
    """Traps: HH-RLHF prompts differ between sides in 5 of 2,312 rows, 4 completions are empty; first user turns repeat."""
    splits, ledger = load_preferences(
        [source(hh_real)], transcript, validation_fraction=0.1, test_fraction=0.2
    )
    counts = ledger.as_dict()
    assert {name: (c["read"], c["kept"], c["dropped"]) for name, c in counts.items()} == {
        "test": (532, 531, {"prompts differ": 1}),
        "train": (1614, 1608, {"prompts differ": 3, "empty completion (chosen)": 3}),
        "validation": (166, 164, {"prompts differ": 1, "empty completion (chosen)": 1}),
    }
    assert 532 + 1614 + 166 == 2312 and not any(c["noted"] for c in counts.values())
    found = {name: turns(table) for name, table in splits.items()}
    assert not found["test"] & found["train"] and not found["validation"] & (
        found["train"] | found["test"]
    )


def test_real_hh_file_encoded(hh_real, qwen):
    splits, ledger = load_preferences([source(hh_real)], validation_fraction=0.1, test_fraction=0.2)
    tables = encode_splits({"test": splits["test"]}, ledger, qwen, EncodingOptions(1024)).tables
    assert ledger.as_dict()["test"]["dropped"] == {
        "over-long (both sides)": 39, "over-long (chosen)": 12, "over-long (rejected)": 7, "prompts differ": 1,
    }  # fmt: skip
    assert len(tables["test"]) == 532 - 59 and max(tables["test"]["length"]) <= 1024
