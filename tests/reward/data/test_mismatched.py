"""Mismatched prompts: the added pairs reject a good answer to another prompt."""

import os
import random
import subprocess
import sys

import pytest
from preferences import ADDED, answers, folder, row, texts
from support import REPO

from reward.data.sources import LABELS
from reward.data.splits import load_preferences
from reward.data.tokens import (
    EncodingOptions,
    decode_sides,
    labels_of,
    row_ids,
)
from reward.data.transcripts import assistant, user

pytestmark = pytest.mark.usefixtures("arrow_cache")


def added_to(sources, fraction: float, transcript="messages", **options):
    """Three values: the train pairs that were read, the pairs added to them, and the ledger."""
    options = {"validation_fraction": 0, **options}
    splits, ledger = load_preferences(sources, transcript, mismatched_prompts=fraction, **options)
    train, added = splits["train"], ledger.as_dict()["train"]["added"].get(ADDED, 0)
    cut = len(train) - added
    return train.select(list(range(cut))), train.select(list(range(cut, len(train)))), ledger


def test_a_mismatched_pair_rejects_the_answer_to_another_prompt(tmp_path):
    """A hash chooses, so these are the pairs on every machine."""
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


def test_a_mismatched_pair_has_no_labels(tmp_path):
    labels = {
        "votes": [3, 1],
        "margin": 2,
        "rating_chosen": 4,
        "rating_rejected": 1,
        "bayes_accuracy": 0.9,
    }
    read, added, _ = added_to([folder(tmp_path, answers(4, **labels, subset="facts"))], 1.0)
    assert [labels_of(r, EncodingOptions())["chosen_probability"] for r in read] == [0.75] * 4
    for pair in added:
        assert [pair[name] for name in ("votes", *LABELS)] == [None] * 7
        assert labels_of(pair, EncodingOptions()) == {
            "target_margin": 0.0,
            "chosen_probability": 1.0,
            "rating_chosen": 0.0,
            "rating_rejected": 0.0,
        }
    assert added["subset"][:] == ["facts"] * 4
    assert (
        len({*read["ranking"], *added["ranking"]})
        == len({*read["pair_key"], *added["pair_key"]})
        == 8
    )


# Prints the row ids of the pairs that are added to the 40 of a folder, with a cache folder.
PRINT_ADDED = """
import sys, datasets
from reward.data.splits import load_preferences
from reward.data.tokens import row_ids
path, datasets.config.HF_DATASETS_CACHE = sys.argv[1:]
source = {"path": path, "split": "train", "test_split": "test"}
splits, _ = load_preferences([source], validation_fraction=0, mismatched_prompts=0.3)
print(*row_ids(splits["train"])[40:])
"""


def test_mismatched_pairs_are_the_same_in_another_order_and_another_process(tmp_path):
    rows = answers(40)
    _, added, _ = added_to([folder(tmp_path / "a", rows)], 0.3)
    _, shuffled, _ = added_to([folder(tmp_path / "b", random.Random(3).sample(rows, 40))], 0.3)
    done = subprocess.run(
        [sys.executable, "-c", PRINT_ADDED, str(tmp_path / "a"), str(tmp_path / "cache")],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
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
    data = folder(tmp_path, answers(60), answers(70)[60:])
    plain, _ = load_preferences([data], validation_fraction=0.3)
    splits, ledger = load_preferences([data], validation_fraction=0.3, mismatched_prompts=1.0)
    assert len(splits["train"]) == 2 * len(plain["train"])
    for name in ("validation", "test"):
        assert (
            row_ids(splits[name]) == row_ids(plain[name]) and ledger.as_dict()[name]["added"] == {}
        )
    held = {chosen for _, chosen, _ in texts(splits["validation"])}
    assert held and not held & {rejected for *_, rejected in texts(splits["train"])}
