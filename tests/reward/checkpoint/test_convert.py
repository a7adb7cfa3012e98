"""Converting, merging and verifying give the rewards that the checkpoint gives."""

import json
import shutil

import pytest
import torch
from reward_models import ANSWERS, PROMPT, rewards, scored, stock_logits
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from reward.checkpoint.contract import verify_saved_model
from reward.checkpoint.convert import convert, merge
from reward.checkpoint.golden import write_golden
from reward.checkpoint.manifest import read_manifest, seal
from reward.data.encoding import encode
from reward.model.build import build_reward_model

pytest_plugins = ["reward_model_fixtures"]
torch.set_num_threads(1)


def prove(folder, labels: int) -> None:
    """Golden texts and a manifest, as training writes them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []
    for answer in ANSWERS:
        text = {"prompt": PROMPT, "completion": answer, "tools": None}
        texts.append({"text": text, "ids": encode(tokenizer, PROMPT, answer)})
    write_golden(folder, texts, scored(folder).tolist())
    seal(folder, {"dtype": "float32", "quantization": None, "labels": labels})


# --- Converting -----------------------------------------------------------------------------------


@pytest.fixture
def source(headed, saved, two_labels, value_head, value_head_adapter):
    """`source[kind]()` -> folder, and what stock transformers leaves out of each reward."""
    return {
        "one label": lambda: (saved("qwen"), 0.0),
        "encoder": lambda: (saved("encoder"), 0.0),
        "head bias": lambda: (headed(bias=[0.75])[1], 0.75),
        "two-logit": lambda: (two_labels, 0.0),
        "two-logit, bias": lambda: (headed(bias=[-3.0, 0.75], head="two_logit")[1], 0.75),
        "adapter": lambda: (headed(adapter=True)[1], 0.0),
        "adapter, bias": lambda: (headed(adapter=True, bias=[0.75])[1], 0.75),
        "two-logit adapter": lambda: (headed(adapter=True, head="two_logit")[1], 0.0),
        "value head": lambda: (value_head[0], 0.75),
        "value head adapter": lambda: (value_head_adapter[0], 0.75),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "one label",
        "encoder",
        "head bias",
        "two-logit",
        "two-logit, bias",
        "adapter",
        "adapter, bias",
        "two-logit adapter",
        "value head",
        "value head adapter",
    ],
)
def test_converting_gives_a_stock_one_label_checkpoint_with_the_same_rewards(
    kind, source, tmp_path
):
    folder, dropped = source[kind]()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [encode(tokenizer, PROMPT, answer) for answer in ANSWERS]
    done = convert(str(folder), tmp_path / "plain", texts)
    expected = scored(folder)
    assert done.moved < 1e-5 and done.dropped_bias == dropped
    assert done.rewards == pytest.approx(expected.tolist(), abs=1e-5)
    torch.testing.assert_close(scored(tmp_path / "plain"), expected, atol=1e-5, rtol=0)
    stock = stock_logits(tmp_path / "plain", 1)
    assert stock.shape == (3, 1)
    torch.testing.assert_close(stock[:, 0] + dropped, expected, atol=1e-5, rtol=0)
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert "model.safetensors" in names and names.isdisjoint(
        {"adapter_config.json", "value_head.safetensors"}
    )
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").config
    assert (config.num_labels, config.problem_type, config.pad_token_id) == (
        1,
        "regression",
        tokenizer.pad_token_id,
    )


def test_converting_without_texts_compares_a_probe(headed, tmp_path):
    done = convert(str(headed(adapter=True, head="two_logit")[1]), tmp_path / "plain")
    assert len(done.rewards) == len({*done.rewards}) == 3 and done.moved < 1e-5


def test_a_converted_value_head_can_be_trained_on(value_head, tmp_path):
    convert(str(value_head[0]), tmp_path / "plain")
    model = build_reward_model(str(tmp_path / "plain"))
    assert torch.equal(model.score.weight, value_head[1]) and torch.equal(
        model.score.bias, value_head[2]
    )


def test_a_converted_model_has_no_pad_token_without_an_embedding(value_head, tmp_path):
    """A [PAD] was added, and the model not resized: stock transformers could not load the copy."""
    folder = tmp_path / "source"
    shutil.copytree(value_head[0], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([f"<new{i}>" for i in range(rows - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id >= rows
    tokenizer.save_pretrained(folder)
    expected = scored(folder)
    convert(str(folder), tmp_path / "plain")
    stock = stock_logits(tmp_path / "plain", 1)
    torch.testing.assert_close(stock[:, 0] + 0.75, expected, atol=1e-5, rtol=0)


# --- Merging, verifying ---------------------------------------------------------------------------


def test_merging_a_two_logit_adapter_says_that_one_label_is_left(headed, tmp_path):
    folder = shutil.copytree(headed(adapter=True, head="two_logit")[1], tmp_path / "rm")
    prove(folder, labels=2)
    for name in ("recipe.yaml", "ledger.json", "test_ids.json"):
        (folder / name).write_text("{}")
    assert merge(folder) < 1e-5
    manifest = read_manifest(folder / "merged")
    assert manifest["labels"] == 1 and manifest["merged_from_adapter"]
    torch.testing.assert_close(scored(folder / "merged"), scored(folder), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "head", "bias"), [(False, "linear", [0.75]), (True, "two_logit", [-3.0, 0.75])]
)
def test_verification_adds_the_head_bias_that_stock_passes_over(
    adapter, head, bias, headed, tmp_path
):
    model, folder = headed(adapter, bias, head=head)
    folder = shutil.copytree(folder, tmp_path / "rm")
    expected = rewards(model, AutoTokenizer.from_pretrained(folder))
    torch.testing.assert_close(scored(folder), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        scored(folder) - stock_logits(folder, len(bias))[:, -1], torch.full((3,), 0.75)
    )
    prove(folder, len(bias))
    assert verify_saved_model(folder, expected.tolist(), 0.0).max_difference < 1e-5
