"""Golden rewards: which pairs are taken, and what is kept of their texts."""

import json

from datasets import Dataset

from reward.checkpoint.golden import golden_pairs, golden_texts, read_golden, write_golden

PROMPT = [{"role": "user", "content": "what is the best way to make tea?"}]
ANSWERS = [
    [{"role": "assistant", "content": text}]
    for text in ("start with some water", "sorry", "that depends")
]


def golden_places(rows: int) -> list[int]:
    return golden_pairs(Dataset.from_dict({"i": list(range(rows))}))["i"][:]


def test_golden_pairs_are_spread_over_the_split():
    assert golden_places(100) == [0, 14, 28, 42, 57, 71, 85, 99]
    assert golden_places(3) == [0, 1, 2]
    assert golden_places(1) == [0]


def test_golden_texts_of_a_cut_prompt_are_ids_only():
    row = {
        "prompt": json.dumps(PROMPT),
        "chosen": json.dumps(ANSWERS[0]),
        "rejected": json.dumps(ANSWERS[1]),
        "chosen_ids": [1, 2],
        "rejected_ids": [1, 3],
    }
    kept = golden_texts([row | {"truncated": False}])
    cut = golden_texts([row | {"truncated": True}])
    assert [text["ids"] for text in kept] == [text["ids"] for text in cut] == [[1, 2], [1, 3]]
    assert kept[1]["text"] == {"prompt": PROMPT, "completion": ANSWERS[1], "tools": None}
    assert [text["text"] for text in cut] == [None, None]


def test_a_text_with_line_separators_stays_one_row(tmp_path):
    text = {"prompt": "one\u2028two\x85three", "completion": "four\x0cfive", "tools": None}
    write_golden(tmp_path, [{"text": text, "ids": [1]}], [0.5])
    assert read_golden(tmp_path) == [{"text": text, "ids": [1], "reward": 0.5}]
