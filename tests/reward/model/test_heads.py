"""What the head reads and computes: its token, its precision, its dropout."""

import math

import pytest
import torch
from reward_models import (
    ANSWERS,
    PROMPT,
    by_hand,
    model_and_tokenizer,
    rewards,
    save,
    scored,
)
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RobertaConfig,
    pipeline,
)

from reward.data.encoding import encode, render
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.heads import head_of, is_encoder, position_limit, rewards_from_logits
from reward.model.load import load_reward_model

pytest_plugins = ["reward_model_fixtures"]
torch.set_num_threads(1)


# --- Pad token, pooling ---------------------------------------------------------------------------


def test_pad_equal_to_eos_shifts_the_reward_and_ours_does_not(standin, saved):
    """TinyLlama's own pad token is its eos token: a stock classifier then reads one token early."""
    model, tokenizer = model_and_tokenizer(str(saved("tinyllama")))
    expected = by_hand(
        AutoModelForCausalLM.from_pretrained(standin("tinyllama")), tokenizer, model.score.weight[0]
    )
    torch.testing.assert_close(rewards(model, tokenizer), expected, atol=1e-4, rtol=0)

    own = AutoTokenizer.from_pretrained(standin("tinyllama"))
    assert own.pad_token_id == own.eos_token_id == encode(tokenizer, PROMPT, ANSWERS[0])[-1]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert (
        AutoModelForSequenceClassification.from_pretrained(saved("tinyllama")).config.pad_token_id
        == 0
    )
    model.config.pad_token_id = own.pad_token_id  # what TRL falls back to
    assert (rewards(model, tokenizer) - expected).abs().min() > 0.01


@pytest.mark.parametrize("kind", ["qwen", "llama3", "tinyllama", "base", "encoder"])
def test_padding_changes_no_reward(kind, saved):
    model, tokenizer = model_and_tokenizer(str(saved(kind)))
    ids = [encode(tokenizer, PROMPT, answer) for answer in ANSWERS]
    assert len({len(i) for i in ids}) > 1
    assert all(i[-1] != tokenizer.pad_token_id for i in ids)
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    with torch.inference_mode():
        together = rewards_from_logits(model(**batch).logits)
        # GRPOTrainer passes no other mask than the tokenizer's, and generic loops none at all:
        # pooling goes by pad id.
    torch.testing.assert_close(together, rewards(model, tokenizer), atol=1e-4, rtol=0)


# --- Precision, dropout ---------------------------------------------------------------------------


def many_rewards(model, tokenizer, autocast: bool) -> torch.Tensor:
    answers = [[{"role": "assistant", "content": f"tea number {i}"}] for i in range(40)]
    ids = tokenizer.pad(
        {"input_ids": [encode(tokenizer, PROMPT, a) for a in answers]}, return_tensors="pt"
    )
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        return model(**ids).logits[:, 0]


@pytest.mark.parametrize(
    ("dtype", "autocast"), [("float32", True), ("bfloat16", False), ("bfloat16", True)]
)
def test_the_head_is_computed_in_float32(dtype, autocast, standin):
    torch.manual_seed(0)
    model = build_reward_model(str(standin("qwen")), dtype=dtype, head_init="normal").eval()
    tokenizer = build_tokenizer(str(standin("qwen")), model.config)
    model.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        model.score.weight.mul_(8)  # rewards of 4 to 8, where bf16 steps are .031
    exact = many_rewards(model, tokenizer, autocast)
    assert exact.dtype == torch.float32
    assert (exact != exact.bfloat16().float()).float().mean() > 0.9
    assert len(exact.unique()) == 40
    model.score.__class__ = torch.nn.Linear  # without the mend
    rounded = many_rewards(model, tokenizer, autocast)
    assert rounded.dtype == torch.bfloat16 and len(rounded.unique()) < 40


def test_the_head_is_stored_in_the_dtype_of_the_body(standin, tmp_path):
    model = build_reward_model(str(standin("qwen")), dtype="bfloat16", head_init="normal")
    save(model, build_tokenizer(str(standin("qwen")), model.config), tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}
        assert "score.weight" in file.keys()
    loaded, tokenizer = model_and_tokenizer(str(tmp_path))
    assert loaded.dtype == loaded.score.weight.dtype == torch.bfloat16
    assert many_rewards(loaded, tokenizer, autocast=False).dtype == torch.float32


def test_head_dropout_is_in_training_only_and_leaves_no_trace_in_the_file(standin, saved, tmp_path):
    torch.manual_seed(0)
    model = build_reward_model(str(standin("qwen")), head_init="normal", head_dropout=0.5)
    tokenizer = AutoTokenizer.from_pretrained(saved("qwen"))
    plain = AutoModelForSequenceClassification.from_pretrained(saved("qwen")).state_dict()
    assert model.state_dict().keys() == plain.keys()
    expected = rewards(model.eval(), tokenizer)
    assert torch.equal(rewards(model, tokenizer), expected)
    draws = torch.stack([rewards(model.train(), tokenizer) for _ in range(400)])
    spread = draws.std(0)
    assert spread.min() > 0.1
    assert (
        (draws.mean(0) - expected).abs() < 5 * spread / math.sqrt(400)
    ).all()  # scaled by 1 / (1 - p)
    torch.testing.assert_close(
        scored(save(model, tokenizer, tmp_path)), expected, atol=1e-5, rtol=0
    )


# --- Encoders, pipelines, limits ------------------------------------------------------------------


def test_an_encoder_reads_its_class_head_at_cls(saved):
    model, tokenizer = model_and_tokenizer(str(saved("encoder")))
    assert head_of(model)[0] == "classifier" and is_encoder(model.config)
    ids = encode(tokenizer, PROMPT, ANSWERS[0])
    assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
    assert ids.count(tokenizer.cls_token_id) == 1
    with torch.inference_mode():
        cls = model.bert(input_ids=torch.tensor([ids])).pooler_output[0]  # tanh(W h_[CLS] + b)
        expected = model.classifier.weight[0] @ cls + model.classifier.bias
    assert rewards(model, tokenizer)[0].item() == pytest.approx(expected.item(), abs=1e-5)


def test_decoders_are_no_encoders(saved):
    assert [
        is_encoder(load_reward_model(str(saved(kind))).model.config) for kind in ("qwen", "llama3")
    ] == [False, False]


def test_pipeline_gives_the_raw_reward_without_any_argument(saved):
    model, tokenizer = model_and_tokenizer(str(saved("qwen")))
    classify = pipeline("text-classification", model=str(saved("qwen")), device="cpu")
    pipeline_rewards = [
        classify(render(tokenizer, PROMPT, answer))[0]["score"] for answer in ANSWERS
    ]
    assert pipeline_rewards == pytest.approx(rewards(model, tokenizer).tolist(), abs=1e-4)
    classify.model.config.problem_type = None  # without the mend
    assert 0 < classify(render(tokenizer, PROMPT, ANSWERS[0]))[0]["score"] < 1


def test_position_limit(saved):
    model, tokenizer = model_and_tokenizer(str(saved("qwen")))
    assert (
        position_limit(model.config, tokenizer) == 512
    )  # the tokenizer's, below the model's 2,048
    assert (
        position_limit(RobertaConfig(max_position_embeddings=514, pad_token_id=1), tokenizer) == 512
    )
