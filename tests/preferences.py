"""Rows and sources of preference pairs for the tests of reward.data, and what is read of the "
"tables."""

import gzip

import pytest
from standins import make_tokenizer
from support import write_rows

from reward.data.encoding import prepare_tokenizer
from reward.data.files import DataError
from reward.data.splits import load_preferences
from reward.data.tokens import (
    EncodingOptions,
    decode_sides,
    encode_splits,
)
from reward.data.transcripts import first_user_turn

SECRET = "hunter2"  # stands in every malformed row, and never in a message

LIMIT = 100  # tokens; the template takes some 70 of the stand-in's

TEST = [{"prompt": "held out", "chosen": "yes", "rejected": "no"}]


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


def fault(sources, *arguments, on_bad_row="stop", **options) -> str:
    with pytest.raises(DataError) as caught:
        load_preferences(sources, *arguments, on_bad_row=on_bad_row, **options)
    assert SECRET not in str(caught.value)
    return str(caught.value)


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


def write_lines(path, *lines: bytes):
    data = b"\n".join(lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


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


NOT_SURE = "tie (chosen_probability .5)"

NO_RIGHT_SIDE = "tie (no side is right)"

AGAINST = "votes or chosen_probability against the chosen side"

ADDED = "mismatched prompt (the rejected side is chosen for another prompt)"


def tie(number) -> dict:
    return {"prompt": f"question {number}", "response_a": "yes", "response_b": "no", "label": "tie"}


def answers(count: int, **more) -> list[dict]:
    return [row(n, f"yes {n}", f"no {n}", **more) for n in range(count)]


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
