"""The bundled demonstration: its pairs can be remade, and they hold what was planted.

Their ceiling is what they say, and the length bias of the training raters, and of them alone, is
in the labels.

python -m pytest tests/scripts/test_quickstart_data.py
"""

import gzip
import importlib.util
import json
import math
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "data" / "quickstart"
SUBSETS = {"relevance", "candour", "courtesy", "multi-turn"}


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("quickstart_make", FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def remade(make):
    return make.make_pairs()


@pytest.fixture(scope="module")
def rows():
    """The committed rows by split."""
    return {split: read(FOLDER / f"{split}.jsonl.gz") for split in ("train", "test")}


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def prompt_and_answer(transcript):
    prompt, answer = transcript.rsplit("\n\nAssistant: ", 1)
    return prompt, answer


def first_human_turn(transcript):
    return transcript.split("\n\nAssistant: ")[0].removeprefix("\n\nHuman: ")


def words_more(row):
    """Words of the chosen answer minus words of the rejected answer."""
    chosen, rejected = (prompt_and_answer(row[side])[1] for side in ("chosen", "rejected"))
    return len(chosen.split()) - len(rejected.split())


def share_longer(rows):
    """How often the chosen answer is the longer one, without ties.

    Returns:
        The share of such pairs, and its standard error under chance.
    """
    differences = [d for d in map(words_more, rows) if d]
    return sum(d > 0 for d in differences) / len(differences), 0.5 / math.sqrt(len(differences))


@pytest.mark.parametrize("split", ["train", "test"])
def test_remaking_gives_the_committed_rows_and_the_same_bytes(make, remade, tmp_path, split):
    first, second = tmp_path / "first.jsonl.gz", tmp_path / "second.jsonl.gz"
    make.write_rows(first, remade[0][split])
    make.write_rows(second, remade[0][split])
    assert first.read_bytes() == second.read_bytes()
    committed = (FOLDER / f"{split}.jsonl.gz").read_bytes()
    assert gzip.decompress(first.read_bytes()) == gzip.decompress(committed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.jsonl.gz", "second.jsonl.gz"]


def test_sizes(rows):
    assert (len(rows["train"]), len(rows["test"])) == (5000, 2200)
    for split in rows:
        assert (FOLDER / f"{split}.jsonl.gz").stat().st_size < 1_500_000
        counts = Counter(row["subset"] for row in rows[split])
        assert set(counts) == SUBSETS
        assert 0.30 < counts["multi-turn"] / len(rows[split]) < 0.36


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_are_transcripts_with_one_prompt(rows, split):
    for row in rows[split]:
        prompt, chosen = prompt_and_answer(row["chosen"])
        other_prompt, rejected = prompt_and_answer(row["rejected"])
        assert prompt == other_prompt and chosen != rejected
        assert prompt.startswith("\n\nHuman: ")
        turns = prompt.count("\n\nHuman: ")
        assert prompt.count("\n\nAssistant: ") == turns - 1
        assert turns in ((2, 3) if row["subset"] == "multi-turn" else (1,))
        assert set(row) - {"votes", "bayes_accuracy"} == {"chosen", "rejected", "subset"}
        for side in ("chosen", "rejected"):
            assert 15 <= len(prompt_and_answer(row[side])[1].split()) <= 90


def test_votes_and_ceiling(rows, remade):
    test = rows["test"]
    assert {tuple(row["votes"]) for row in test} == {(3, 0), (2, 1)}
    assert all(0.5 < row["bayes_accuracy"] < 1 for row in test)
    assert not any("votes" in row or "bayes_accuracy" in row for row in rows["train"])

    ceiling = sum(row["bayes_accuracy"] for row in test) / len(test)
    assert ceiling >= 0.82
    agreed = remade[1]["test"]  # the share of labels on the truly better side
    variance = sum(row["bayes_accuracy"] * (1 - row["bayes_accuracy"]) for row in test)
    deviation = math.sqrt(variance) / len(test)
    assert abs(agreed - ceiling) < 3 * deviation


def test_bayes_accuracy_is_the_majority_of_three_unbiased_votes(make):
    better = make.Answer("short", 2.0)
    worse = make.Answer("a much longer answer than the other", 0.5)
    p = 1 / (1 + math.exp(-1.5 / make.NOISE))
    votes = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    expected = sum(p ** sum(v) * (1 - p) ** (3 - sum(v)) for v in votes if sum(v) >= 2)
    assert make.bayes_accuracy(better, worse) == pytest.approx(expected, abs=1e-12)
    assert make.bayes_accuracy(worse, better) == pytest.approx(expected, abs=1e-12)


def test_the_utility_is_read_back_from_the_text(make):
    """Of every answer that is drawn, and in parts of one that a policy makes up."""
    rng = random.Random(5)
    for subset in SUBSETS:
        for _ in range(100):
            prompt, _, answers = make.draw_dialogue(rng, subset)
            question = prompt.split("\n\nHuman: ")[-1]
            for answer in answers:
                assert make.utility_of(question, answer.text) == pytest.approx(answer.utility)
    question = "How do I keep bread fresh?"
    assert make.utility_of(question, "There is usually no hurry.") == 0
    half = (
        "You should slice the bread and freeze what will not be eaten soon. "
        "Maybe one could bake the bread until the loaf sounds hollow."
    )
    assert make.utility_of(question, half) == 2.0 / 2 + 1.5 / 2


def test_splits_share_no_first_human_turn(rows):
    train = {first_human_turn(row["chosen"]) for row in rows["train"]}
    test = {first_human_turn(row["chosen"]) for row in rows["test"]}
    assert not train & test


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_pair_occurs_twice(rows, split):
    pairs = {frozenset((row["chosen"], row["rejected"])) for row in rows[split]}
    assert len(pairs) == len(rows[split])


def test_only_training_raters_prefer_length(rows):
    train, train_error = share_longer(rows["train"])
    test, test_error = share_longer(rows["test"])
    assert abs(test - 0.5) < 3 * test_error
    assert train - 0.5 > 5 * train_error
    assert train - test > 5 * math.hypot(train_error, test_error)


def test_length_bias_zero_changes_labels_and_no_text(make, rows):
    unbiased, agreed = make.make_pairs(length_bias=0)
    share, error = share_longer(unbiased["train"])
    assert abs(share - 0.5) < 3 * error
    assert unbiased["test"] == rows["test"]
    assert agreed["train"] > 0.85
    for row, other in zip(unbiased["train"], rows["train"], strict=True):
        assert {row["chosen"], row["rejected"]} == {other["chosen"], other["rejected"]}


def test_model_folder_loads_and_is_the_same_when_made_again(make, remade, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        make.make_model(folder, remade[0]["train"])
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]

    tokenizer = AutoTokenizer.from_pretrained(first)
    model = AutoModelForSequenceClassification.from_pretrained(first, num_labels=1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.pad_token_id == tokenizer.pad_token_id
    tokens = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token)
    assert tokens == ("<|endoftext|>", "<|im_end|>", None)
    assert model.config.vocab_size == len(tokenizer)

    messages = [
        {"role": "user", "content": "How do I feed birds?"},
        {"role": "assistant", "content": "Gently, 12 a day."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == (
        "<|im_start|>user\nHow do I feed birds?<|im_end|>\n"
        "<|im_start|>assistant\nGently, 12 a day.<|im_end|>\n"
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    small = make.make_tokenizer([row["chosen"] for row in remade[0]["train"][:50]])
    assert small.encode(text)  # it encodes bytes that it has not seen
    assert model(torch.tensor([ids])).logits.shape == (1, 1)

    # A folder of an earlier version, which had four heads, is not taken for this one.
    assert make.has_our_shape(first) and not make.has_our_shape(tmp_path / "third")
    config = json.loads((first / "config.json").read_text(encoding="utf-8"))
    config["num_attention_heads"] = 4
    (first / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert not make.has_our_shape(first)
