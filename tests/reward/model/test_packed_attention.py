"""Packed texts give what one text at a time gives; what must not be packed is not."""

import pytest
import torch
from packed_models import SMALL, WINDOW, gradients, one_by_one, random_tree, relative, small_model
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
)

from reward.model import packed_attention
from reward.model.batches import (
    pack,
    padded,
)
from reward.model.packed_attention import (
    FAMILIES,
    drops_out,
    enable_packing,
    self_test,
    why_model_not_packed,
)

torch.set_num_threads(1)


# --- Equal to one text at a time ------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_exact(family):
    model, texts = small_model(family), random_tree(1)
    with torch.no_grad():
        alone, rows = one_by_one(model, texts), model(**padded(texts, 0)).logits
        enable_packing(model)
        packed = model(**pack(texts), use_cache=False).logits
        unshared = model(**pack(texts, False)).logits
        assert alone.std() > 0.1
        torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(unshared, alone, atol=1e-5, rtol=0)
        # What is not packed is computed as before, to the bit.
        assert torch.equal(one_by_one(model, texts), alone)
        assert torch.equal(model(**padded(texts, 0)).logits, rows)


# OPT's layers hold no module that is their MLP.
@pytest.mark.parametrize("family", sorted(FAMILIES - {"opt"}))
def test_the_last_mlp_computes_what_is_read(family):
    model, texts, rows = small_model(family), [[5, 8, 9], [5, 6], [5, 6, 7], [5, 6]], []
    enable_packing(model)
    enable_packing(model)  # a second time changes nothing
    layers = getattr(model.base_model, "layers", None) or model.base_model.h
    for layer in layers[-2:]:
        layer.mlp.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    packed = model(**pack(texts)).logits
    assert rows == [5, 3]  # of five tokens three end a text: two texts are equal
    torch.testing.assert_close(packed, one_by_one(model, texts), atol=1e-5, rtol=0)


# With a norm after the MLP (Gemma 3, OLMo 2), whose other rows are then zeros, too.
@pytest.mark.parametrize(
    "family", ["qwen2", "llama", "mistral", "gpt2", "qwen3_moe", "gemma3_text", "olmo2"]
)
def test_gradients_are_exact(family):
    model, texts = small_model(family), random_tree(2)
    expected = gradients(model, one_by_one(model, texts))
    enable_packing(model)
    assert relative(gradients(model, model(**pack(texts), use_cache=False).logits), expected) < 1e-5


@pytest.mark.parametrize("seed", range(6))
def test_random_trees_of_long_texts(seed):
    """Lengths of 1 to about 1,000 tokens in float32.

    Rewards are within 1e-4, and the gradient is within 1e-4 of its norm.
    """
    model = small_model("qwen2", use_sliding_window=False, max_position_embeddings=2048)
    texts = random_tree(seed, prompts=2, longest=500) + [[5], [5, 6]]
    expected = one_by_one(model, texts)
    expected_gradients = gradients(model, expected)
    enable_packing(model)
    packed = model(**pack(texts), use_cache=False).logits
    assert (packed - expected).abs().max() < 1e-4
    assert relative(gradients(model, packed), expected_gradients) < 1e-4


def test_a_window_is_no_dense_mask():
    """Trap: with the window left out, the longer texts differ and the short ones do not."""
    model, texts = small_model("mistral"), [[3 + i % 50 for i in range(n)] for n in (WINDOW, 40)]
    expected = one_by_one(model, texts)
    enable_packing(model)
    torch.testing.assert_close(model(**pack(texts)).logits, expected, atol=1e-5, rtol=0)
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    model.config.sliding_window = None
    wrong = (model(**pack(texts)).logits - expected).abs().flatten().tolist()
    assert wrong[0] < 1e-5 < 1e-2 < wrong[1]


def test_restarted_positions_alone_lose_the_prompt():
    """Trap: without our four-dimensional mask a position that starts anew seems another text's."""
    model, texts = small_model("llama"), [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 11, 12]]
    enable_packing(model)
    inputs = pack(texts)
    right = model(**inputs).logits
    layout, ids = inputs["packing"], {key: inputs[key] for key in ("input_ids", "position_ids")}
    wrong = model.score(model.model(**ids).last_hidden_state[0, layout["read"]])
    assert (right - wrong).abs()[0] < 1e-5 < 1e-2 < (right - wrong).abs()[1]


# Experts are left out: bf16 rounding sends a token to another one, whatever the batches are; then
# the self-test may say padded.
@pytest.mark.parametrize("family", sorted(FAMILIES - {"mixtral", "qwen2_moe", "qwen3_moe"}))
def test_bfloat16_differs_no_more_than_padding_does(family):
    model, texts = small_model(family).bfloat16(), random_tree(3)
    enable_packing(model)
    with torch.no_grad():
        result = self_test(model, texts, 0)
    assert 0 < result.difference < result.allowed and result.allowed >= 0.05


# --- What is not packed ---------------------------------------------------------------------------


def test_what_is_refused_and_why():
    def reason(config, **options):
        with torch.device("meta"):
            return why_model_not_packed(
                AutoModelForSequenceClassification.from_config(config, **options)
            )

    qwen = AutoConfig.for_model("qwen2", **SMALL)
    assert reason(qwen) is None
    assert reason(qwen, attn_implementation="eager").startswith("attn_implementation is eager")
    assert reason(BertConfig(num_hidden_layers=1)).startswith("bert is none of the causal families")
    for family in ("gemma2", "qwen3_next"):  # soft-capped scores; linear attention
        assert family not in FAMILIES
    for rope in (
        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        {
            "rope_type": "longrope",
            "factor": 2.0,
            "rope_theta": 1e4,
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
            "original_max_position_embeddings": 512,
        },
    ):
        scaled = AutoConfig.for_model("llama", **{**SMALL, "rope_parameters": rope})
        assert "changes the rewards of the others" in reason(scaled), rope


def test_dropout_is_found():
    assert not drops_out(small_model("qwen2"))
    assert drops_out(small_model("qwen2", attention_dropout=0.1))
    assert drops_out(small_model("opt"))  # .1 by default, and no nn.Dropout
    assert drops_out(small_model("gpt2"))
    assert drops_out(small_model("mixtral", router_jitter_noise=0.1))


# --- The self-test --------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["mask", "positions", "keys"])
def test_the_self_test_finds_faults(fault, monkeypatch):
    model, texts = small_model("llama"), sorted(random_tree(4))[:4]
    enable_packing(model)
    result = self_test(model, texts, 0)
    assert result.difference < 1e-5 and result.allowed == 1e-3 and model.training is False
    self_test(model.train(), texts, 0)
    assert model.training is True

    def broken(texts, share_prefixes=True, pad_token_id=None):
        inputs = pack(texts, share_prefixes, pad_token_id)
        if fault == "positions":
            inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None]
        elif fault == "keys":
            inputs["packing"]["kv_index"] = inputs["packing"]["kv_index"].roll(1)
        return inputs

    if fault == "mask":  # aligned at the upper left
        monkeypatch.setattr(
            packed_attention,
            "causal_mask",
            lambda q, k, *_: torch.ones(q, k, dtype=torch.bool).tril(),
        )
    monkeypatch.setattr(packed_attention, "pack", broken)
    result = self_test(model, texts, 0)
    assert result.difference > 10 * result.allowed


def test_a_head_of_zeros_hides_nothing_from_the_self_test(monkeypatch):
    model, texts = small_model("llama"), sorted(random_tree(4))[:4]
    torch.nn.init.zeros_(model.score.weight)
    enable_packing(model)
    monkeypatch.setattr(
        packed_attention, "causal_mask", lambda q, k, *_: torch.ones(q, k, dtype=torch.bool).tril()
    )
    result = self_test(model, texts, 0)
    assert not result.passed and result.difference > result.allowed
