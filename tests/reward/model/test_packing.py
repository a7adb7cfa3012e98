"""reward.model.packed_attention against the forward of one text at a time: every family, random trees, gradients, engines' options; and what
must not be packed is not."""

import copy
import json
import random
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BitsAndBytesConfig,
)
from trl import RewardConfig, RewardTrainer

from reward.model import packed_attention
from reward.model import scorer as scoring
from reward.model.batches import (
    PreferenceCollator,
    own_tokens,
    pack,
    padded,
    shared_prefix,
    token_batches,
)
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.heads import Float32Head
from reward.model.hub import ModelError
from reward.model.packed_attention import FAMILIES, drops_out, enable_packing, self_test, why_padded
from reward.model.scorer import Scorer
from reward.training import run
from reward.training.trainer import PairOptions, PairTrainer

torch.set_num_threads(1)

VOCABULARY = 64
WINDOW = 8  # far below the texts' lengths
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": VOCABULARY, "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "num_labels": 1,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SPECIAL = {  # what a family's small config needs beside SMALL; windows where the family has them
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {**EXPERTS, "head_dim": 16},
    "mixtral": {"num_local_experts": 4},
    "gemma": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": WINDOW, "num_hidden_layers": 6},
    "glm4": {"head_dim": 16},
    "mistral": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW},
    "olmo3": {"sliding_window": WINDOW, "num_hidden_layers": 4},
    "starcoder2": {"sliding_window": WINDOW},
}


def small_model(family: str, **options):
    config = AutoConfig.for_model(family, **{**SMALL, **SPECIAL.get(family, {}), **options})
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():  # std .02 would make all rewards nearly equal
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    model.score.__class__ = Float32Head
    return model


def random_tree(seed: int, prompts: int = 3, longest: int = 60) -> list[list[int]]:
    """Prompts with several completions each; prompts that begin alike; duplicates; one text the beginning of another."""
    rng = random.Random(seed)

    def tokens(low, high):
        return [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(low, high))]

    texts, system = [], tokens(0, longest // 2)
    for _ in range(prompts):
        prompt = system[: rng.randint(0, len(system))] + tokens(0, longest)
        group = [prompt + tokens(1, longest) for _ in range(rng.randint(1, 4))]
        if rng.random() < 0.7:
            group.append(group[0][: rng.randint(1, len(group[0]))])
        if rng.random() < 0.7:
            group.append(list(group[-1]))
        texts += group
    rng.shuffle(texts)
    return texts


def one_by_one(model, texts) -> torch.Tensor:
    return torch.cat([model(input_ids=torch.tensor([text])).logits for text in texts])


def gradients(model, logits: torch.Tensor) -> torch.Tensor:
    """Of a sum in which every text has another weight."""
    model.zero_grad()
    (logits.flatten() * torch.linspace(-1, 1, len(logits))).sum().backward()
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def relative(found, expected) -> float:
    return ((found - expected).norm() / expected.norm()).item()


# ------------------------------------------------------------------------------------------------------------ the layout


def test_layout():
    """Sorted: [5, 6], [5, 6, 7], [5, 8, 9]; a text that equals the one before brings nothing."""
    packed = pack([[5, 8, 9], [5, 6], [5, 6, 7], [5, 6]])
    assert packed["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 1, 2]]
    layout = packed["packing"]
    assert layout["queries"] == [2, 1, 2] and layout["lengths"] == [2, 3, 3]
    assert layout["kv_index"].tolist() == [0, 1, 0, 1, 2, 0, 3, 4]
    assert layout["cumulative"].tolist() == [[0, 2, 3, 5], [0, 2, 5, 8]]
    assert layout["last"].tolist() == [4, 1, 2, 1]


def test_layout_without_sharing():
    packed = pack([[5, 8, 9], [5, 6], [5, 6]], share_prefixes=False)
    assert packed["input_ids"].tolist() == [[5, 8, 9, 5, 6, 5, 6]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert packed["packing"]["kv_index"] is None  # keys lie where the queries do
    assert packed["packing"]["last"].tolist() == [2, 4, 6]


@pytest.mark.parametrize("seed", range(20))
def test_each_different_prefix_is_computed_once(seed):
    texts = random_tree(seed)
    prefixes = {tuple(text[:n]) for text in texts for n in range(1, len(text) + 1)}
    assert pack(texts)["input_ids"].shape[1] == own_tokens(texts) == len(prefixes)


def test_shared_prefix():
    assert shared_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert shared_prefix([1, 2], [1, 2, 4]) == 2
    assert shared_prefix([], [1]) == shared_prefix([2], [1]) == 0


def test_token_batches():
    groups = [[[1, 2, 3]], [[1, 2, 4]], [[9] * 6], [[1, 2, 3, 5]]]
    # 3 + 1 + 1 tokens; 6 are more than 5, and come alone
    assert token_batches(groups, 5, packed=True) == [[0, 3, 1], [2]]
    assert token_batches(groups, 4, packed=True) == [[0, 3], [1], [2]]
    # 2 x 3, 1 x 4, 1 x 6
    assert token_batches(groups, 6, packed=False) == [[0, 1], [3], [2]]
    assert token_batches(groups, 100, packed=False) == [[0, 1, 3, 2]]
    # Packed and not shared: 3 + 4, 3 + 6
    assert token_batches(groups, 9, packed=True, share_prefixes=False) == [[0, 3], [1, 2]]


def test_a_ranking_counts_each_completion_once_in_a_budget():
    texts = [[10 + i] * 5 for i in range(4)]
    ranking = [
        {"chosen_ids": texts[i], "rejected_ids": texts[j]}
        for i in range(4)
        for j in range(i + 1, 4)
    ]
    for packed in (True, False):
        collator = PreferenceCollator(pad_token_id=0, token_budget=40)
        collator.packed = packed
        assert [
            len(part["weight"]) for part in collator([{"pairs": ranking}] * 2)["micro_batches"]
        ] == [12]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_token_batches_hold_every_group_once_within_the_budget(seed, packed):
    texts = random_tree(seed, prompts=8)
    groups = [texts[i : i + 2] for i in range(0, len(texts), 2)]
    batches = token_batches(groups, 200, packed)
    assert sorted(i for batch in batches for i in batch) == list(range(len(groups)))
    for batch in batches:
        inside = [text for i in batch for text in groups[i]]
        tokens = pack(inside) if packed else padded(inside, 0)
        assert tokens["input_ids"].numel() <= 200 or len(batch) == 1


# ---------------------------------------------------------------------------------------- equal to one text at a time


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_exact(family):
    model, texts = small_model(family), random_tree(1)
    with torch.no_grad():
        alone, rows = one_by_one(model, texts), model(**padded(texts, 0)).logits
        enable_packing(model)
        found, unshared = (
            model(**pack(texts), use_cache=False).logits,
            model(**pack(texts, False)).logits,
        )
        assert alone.std() > 0.1
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(unshared, alone, atol=1e-5, rtol=0)
        # What is not packed is computed as before, to the bit.
        assert torch.equal(one_by_one(model, texts), alone) and torch.equal(
            model(**padded(texts, 0)).logits, rows
        )


@pytest.mark.parametrize(
    "family", sorted(FAMILIES - {"opt"})
)  # OPT's layers hold no module that is their MLP
def test_the_last_mlp_computes_what_is_read(family):
    model, texts, rows = small_model(family), [[5, 8, 9], [5, 6], [5, 6, 7], [5, 6]], []
    enable_packing(model)
    enable_packing(model)  # a second time changes nothing
    layers = getattr(model.base_model, "layers", None) or model.base_model.h
    for layer in layers[-2:]:
        layer.mlp.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    found = model(**pack(texts)).logits
    assert rows == [5, 3]  # of five tokens three end a text: two texts are equal
    torch.testing.assert_close(found, one_by_one(model, texts), atol=1e-5, rtol=0)


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
    """Lengths of 1 to about 1,000 tokens, float32: rewards within 1e-4, the gradient within 1e-4 of its norm."""
    model = small_model("qwen2", use_sliding_window=False, max_position_embeddings=2048)
    texts = random_tree(seed, prompts=2, longest=500) + [[5], [5, 6]]
    expected = one_by_one(model, texts)
    expected_gradients = gradients(model, expected)
    enable_packing(model)
    found = model(**pack(texts), use_cache=False).logits
    assert (found - expected).abs().max() < 1e-4
    assert relative(gradients(model, found), expected_gradients) < 1e-4


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
    """Trap: without our four-dimensional mask transformers takes a position that starts anew for another text."""
    model, texts = small_model("llama"), [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 11, 12]]
    enable_packing(model)
    inputs = pack(texts)
    right = model(**inputs).logits
    layout, ids = inputs["packing"], {key: inputs[key] for key in ("input_ids", "position_ids")}
    wrong = model.score(model.model(**ids).last_hidden_state[0, layout["last"]])
    assert (right - wrong).abs()[0] < 1e-5 < 1e-2 < (right - wrong).abs()[1]


# Experts are left out: bf16 rounding sends a token to another one, whatever the batches are; then the self-test may say padded.
@pytest.mark.parametrize("family", sorted(FAMILIES - {"mixtral", "qwen2_moe", "qwen3_moe"}))
def test_bfloat16_differs_no_more_than_padding_does(family):
    model, texts = small_model(family).bfloat16(), random_tree(3)
    enable_packing(model)
    with torch.no_grad():
        result = self_test(model, texts, 0)
    assert 0 < result.difference < result.allowed and result.allowed >= 0.05


# ------------------------------------------------------------------------------------------------- what is not packed


def test_what_is_refused_and_why():
    def reason(config, **options):
        with torch.device("meta"):
            return why_padded(AutoModelForSequenceClassification.from_config(config, **options))

    qwen = AutoConfig.for_model("qwen2", **SMALL)
    assert reason(qwen) is None
    assert reason(qwen, attn_implementation="eager").startswith("attn_implementation is eager")
    assert reason(BertConfig(num_hidden_layers=1)).startswith("bert is none of the causal families")
    for family in ("gemma2", "qwen3_next"):  # soft-capped scores; linear attention
        assert family not in FAMILIES
    for rope in (
        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        {"rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
         "original_max_position_embeddings": 512},
    ):  # fmt: skip
        scaled = AutoConfig.for_model("llama", **{**SMALL, "rope_parameters": rope})
        assert "changes the rewards of the others" in reason(scaled), rope


def test_dropout_is_found():
    assert not drops_out(small_model("qwen2"))
    assert drops_out(small_model("qwen2", attention_dropout=0.1))
    assert drops_out(small_model("opt"))  # .1 by default, and no nn.Dropout
    assert drops_out(small_model("gpt2"))
    assert drops_out(small_model("mixtral", router_jitter_noise=0.1))


@pytest.mark.parametrize("fault", ["mask", "positions", "keys"])
def test_the_self_test_finds_faults(fault, monkeypatch):
    model, texts = small_model("llama"), sorted(random_tree(4))[:4]
    enable_packing(model)
    result = self_test(model, texts, 0)
    assert result.difference < 1e-5 and result.allowed == 1e-3 and model.training is False
    self_test(model.train(), texts, 0)
    assert model.training is True

    def broken(texts, share_prefixes=True):
        inputs = pack(texts, share_prefixes)
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


# ------------------------------------------------------------------------------------------------------- the trainer


def tree_pairs(n: int, seed: int = 0) -> Dataset:
    """Encoded pairs whose sides share a prompt of 1 to 40 tokens; all end alike."""
    rng = random.Random(seed)

    def tokens(low, high):
        return [
            rng.randrange(10, 400) for _ in range(rng.randint(low, high))
        ]  # no special token, which could be a pad

    rows = []
    for _ in range(n):
        prompt = tokens(1, 40)
        row = {side: [*prompt, *tokens(1, 15), 9] for side in ("chosen_ids", "rejected_ids")}
        rows.append(row | {"length": max(map(len, row.values())), "subset_id": 0})
    return Dataset.from_list(rows)


@pytest.fixture
def make_trainer(standin, tmp_path):
    def make(train, kind="qwen", peft=None, model_options=None, callbacks=None, **options):
        folder = str(standin(kind))
        torch.manual_seed(7)
        model = build_reward_model(folder, head_init="normal", **(model_options or {}))
        ours = {
            key: options.pop(key) for key in ("prefix_sharing", "token_budget") if key in options
        }
        defaults = {
            "learning_rate": 1e-3,
            "max_grad_norm": 1e9,
            "logging_steps": 1,
            "save_strategy": "no",
        }
        defaults |= {
            "activation_checkpointing": False,
            "bf16": False,
            "lr_scheduler_type": "constant",
        }
        fixed = {"use_cpu": True, "report_to": "none", "max_length": None, "disable_tqdm": True}
        args = RewardConfig(output_dir=str(tmp_path), **{**defaults, **options}, **fixed)
        return PairTrainer(
            model=model, args=args, train_dataset=train, processing_class=build_tokenizer(folder, model.config),
            peft_config=peft, options=PairOptions(["all"], **ours), callbacks=callbacks,
        )  # fmt: skip

    return make


def step_gradient(trainer, rows: Dataset) -> torch.Tensor:
    """Of one step on all rows, as the trainer's own loop gives it to the optimizer."""
    found = []
    clip = trainer._get_grad_norm

    def keep(model, grad_norm=None):
        found.append(
            torch.cat(
                [
                    p.grad.flatten().float().clone()
                    for p in trainer.model.parameters()
                    if p.grad is not None
                ]
            )
        )
        return clip(model, grad_norm=grad_norm)

    trainer._get_grad_norm = keep
    trainer.train()
    return found[0]


LORA = {"r": 4, "task_type": "SEQ_CLS", "target_modules": "all-linear"}
FOUR_BIT = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


@pytest.mark.parametrize(
    "case",
    [
        "full",
        "checkpointing",
        "reentrant",
        "lora",
        "lora checkpointing",
        "qlora",
        "last layers",
        "accumulation",
    ],
)
def test_packed_gradients_equal_padded_ones(case, make_trainer):
    rows = tree_pairs(6)
    options = {"per_device_train_batch_size": 6, "max_steps": 1}
    if "accumulation" in case:
        options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    if "checkpointing" in case or case == "reentrant":
        options |= {"activation_checkpointing": True}
        options |= {"activation_checkpointing_kwargs": {"use_reentrant": case == "reentrant"}}
    if "lora" in case:
        options["peft"] = LoraConfig(**LORA)
    if case == "qlora":
        four_bit = BitsAndBytesConfig(**FOUR_BIT, bnb_4bit_compute_dtype=torch.bfloat16)
        options |= {"kind": "llama3", "bf16": True}
        options["model_options"] = {"dtype": "bfloat16", "quantization_config": four_bit}
    if case == "last layers":
        options["model_options"] = {"train_last_layers": 1}
    found = {}
    for prefix_sharing in ("on", "off"):
        trainer = make_trainer(rows, prefix_sharing=prefix_sharing, **copy.copy(options))
        found[prefix_sharing] = step_gradient(trainer, rows)
        assert (
            trainer.data_collator.packed
            == trainer.data_collator.share_prefixes
            == (prefix_sharing == "on")
        )
    assert found["off"].norm() > 1e-3
    # bf16 keeps 8 bits of a number
    assert relative(found["on"], found["off"]) < (0.05 if case == "qlora" else 1e-5)


@pytest.mark.parametrize("prefix_sharing", ["on", "off"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_token_budget_changes_nothing_but_the_micro_batches(
    accumulation, prefix_sharing, make_trainer
):
    rows = tree_pairs(12)
    options = {
        "prefix_sharing": prefix_sharing,
        "max_steps": 1,
        "gradient_accumulation_steps": accumulation,
    }
    options["per_device_train_batch_size"] = 12 // accumulation
    whole = make_trainer(rows, **options)
    expected = step_gradient(whole, rows)
    seen = []
    trainer = make_trainer(rows, token_budget=120, **options)
    trainer.model.register_forward_pre_hook(
        lambda _, args, inputs: (
            seen.append(inputs["input_ids"].numel()) if trainer.model.training else None
        ),
        with_kwargs=True,
    )
    found = step_gradient(trainer, rows)
    assert relative(found, expected) < 1e-5
    assert len(seen) > 2 * accumulation and max(seen) <= 120
    logs = trainer.state.log_history[0]
    for key in ("loss", "accuracy", "margin"):
        assert logs[key] == pytest.approx(whole.state.log_history[0][key], abs=1e-5)
    assert logs["num_tokens"] == sum(
        len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")
    )


def test_token_budget_in_evaluation_keeps_the_order_of_pairs(make_trainer):
    """Trap: accelerate fills up the last batch of a process, and cuts its last rows off again."""
    rows = tree_pairs(11).add_column("chosen_probability", [0.55 + i / 50 for i in range(11)])
    trainers = [
        make_trainer(rows, token_budget=budget, per_device_eval_batch_size=4)
        for budget in (None, 90)
    ]
    assert trainers[1].data_collator(list(rows)[:4])["order"].tolist() != [0, 1, 2, 3]
    whole, cut = (trainer.predict(rows) for trainer in trainers)
    assert whole.label_ids[:, 1].tolist() == pytest.approx(rows["chosen_probability"][:])
    assert cut.label_ids[:, 1].tolist() == whole.label_ids[:, 1].tolist()
    torch.testing.assert_close(
        torch.tensor(cut.predictions), torch.tensor(whole.predictions), atol=1e-5, rtol=0
    )


def test_the_trainer_says_what_it_does_and_why(make_trainer, monkeypatch, capsys):
    rows = tree_pairs(4)
    trainer = make_trainer(rows, max_steps=1)
    trainer.train()
    assert (
        "batches: each shared prefix computed once, no padding, which differs by"
        in capsys.readouterr().out
    )
    # -- dropout
    lora = LoraConfig(**LORA, lora_dropout=0.1)
    trainer = make_trainer(rows, peft=lora, disable_dropout=False)
    assert trainer.data_collator.packed and not trainer.data_collator.share_prefixes
    because = "prefixes are not shared, because of dropout: disable_dropout: true turns it off"
    assert trainer.packing == f"no padding; {because}"
    with pytest.raises(ModelError, match="both sides of a pair would share their dropout"):
        make_trainer(rows, peft=lora, disable_dropout=False, prefix_sharing="on")
    assert make_trainer(
        rows, peft=lora
    ).data_collator.share_prefixes  # TRL turns LoRA's dropout off
    # -- a model that cannot be packed
    encoder = make_trainer(rows, kind="encoder")
    assert not encoder.data_collator.packed
    assert encoder.packing.startswith("padded batches, because bert is none of the causal families")
    with pytest.raises(
        ModelError, match="prefix_sharing: on, but bert is none .*; set prefix_sharing: auto"
    ):
        make_trainer(rows, kind="encoder", prefix_sharing="on")
    noisy = make_trainer(rows, neftune_noise_alpha=5.0)
    assert (
        noisy.packing
        == "padded batches, because neftune_noise_alpha scales its noise by the length of a row"
    )
    # -- torch.compile
    compiled = make_trainer(rows, torch_compile=True)
    assert compiled.packing.startswith("padded batches, because torch_compile would compile anew")
    assert make_trainer(rows, torch_compile=True, prefix_sharing="on").data_collator.packed
    # -- one that gives other values packed
    monkeypatch.setattr(
        packed_attention, "causal_mask", lambda q, k, *_: torch.ones(q, k, dtype=torch.bool).tril()
    )
    trainer = make_trainer(rows, max_steps=1)
    trainer.train()
    assert not trainer.data_collator.packed
    assert "batches: padded batches, because packed differs by" in capsys.readouterr().out
    with pytest.raises(ModelError, match="prefix_sharing: on, but packed differs by"):
        make_trainer(rows, max_steps=1, prefix_sharing="on").train()


@pytest.mark.parametrize("prefix_sharing", ["on", "off"])
def test_tokens_seen_are_counted_where_asked(prefix_sharing, make_trainer):
    rows = tree_pairs(4)
    options = {"prefix_sharing": prefix_sharing, "max_steps": 1, "per_device_train_batch_size": 4}
    trainer = make_trainer(rows, include_num_input_tokens_seen="non_padding", **options)
    trainer.train()
    read = [row[side] for row in rows for side in ("chosen_ids", "rejected_ids")]
    expected = own_tokens(read) if prefix_sharing == "on" else sum(map(len, read))
    assert trainer.state.num_input_tokens_seen == expected


def test_a_packed_forward_that_fails_is_told_and_padded(make_trainer, monkeypatch, capsys):
    def no_kernel(*args, **kwargs):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    monkeypatch.setattr(packed_attention, "causal_mask", no_kernel)
    trainer = make_trainer(tree_pairs(4), max_steps=1)
    with pytest.warns(UserWarning, match="only supports Ampere"):
        trainer.train()
    assert not trainer.data_collator.packed and "batches: padded batches" in capsys.readouterr().out


def test_a_saved_model_knows_nothing_of_it(make_trainer, tmp_path):
    rows = tree_pairs(4)
    trainer = make_trainer(rows, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert packed_attention.ATTENTION not in (tmp_path / "saved" / "config.json").read_text(
        encoding="utf-8"
    )
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert stock.config._attn_implementation == "sdpa"
    texts = [row[side] for row in rows for side in ("chosen_ids", "rejected_ids")]
    packed = trainer.model.eval()(**pack(texts)).logits
    torch.testing.assert_close(packed, one_by_one(stock, texts), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_fifty_steps_on_real_pairs_follow_trl(standin, hh_real, make_trainer, tmp_path):
    """The loss of every step within 1e-3 of plain TRL's, on real HH-RLHF pairs in the same order."""
    import gzip

    from reward.data.encoding import encode
    from reward.data.formats import to_pairs

    folder = str(standin("qwen"))
    tokenizer = build_tokenizer(folder, AutoConfig.from_pretrained(folder))
    rows = []
    for line in gzip.open(hh_real, "rt", encoding="utf-8"):
        (pair,) = to_pairs(json.loads(line), "messages")
        if pair["drop"]:
            continue
        sides = [encode(tokenizer, pair["prompt"], pair[side]) for side in ("chosen", "rejected")]
        if max(map(len, sides)) <= 512:
            rows.append(dict(zip(("chosen_ids", "rejected_ids"), sides, strict=True)))
        if len(rows) == 200:
            break
    data = Dataset.from_list(rows)
    options = {"per_device_train_batch_size": 4, "max_steps": 50, "learning_rate": 1e-4}
    ours = make_trainer(data, prefix_sharing="on", **options)
    torch.manual_seed(7)
    model = build_reward_model(folder, head_init="normal")
    args = RewardConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None, disable_tqdm=True,
        activation_checkpointing=False, lr_scheduler_type="constant", max_grad_norm=1e9, logging_steps=1,
        save_strategy="no", **options,
    )  # fmt: skip
    theirs = RewardTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    losses = []
    for trainer in (ours, theirs):
        trainer.train()
        losses.append(
            torch.tensor([log["loss"] for log in trainer.state.log_history if "loss" in log])
        )
    assert len(losses[0]) == 50 and losses[1].std() > 0.05
    assert (losses[0] - losses[1]).abs().max() < 1e-3


def test_liger_must_not_replace_the_forward(monkeypatch):
    assert run.liger_settings({}) == {}
    monkeypatch.setattr(run, "is_liger_kernel_available", lambda: True)
    on = {"use_liger_kernel": True}
    assert run.liger_settings(on) == {"liger_kernel_config": {"fused_linear_cross_entropy": False}}
    given = run.liger_settings(on | {"liger_kernel_config": {"rope": False}})
    assert given == {"liger_kernel_config": {"fused_linear_cross_entropy": False, "rope": False}}
    monkeypatch.setattr(run, "is_liger_kernel_available", lambda: False)
    with pytest.raises(ModelError, match="pip install liger-kernel"):
        run.liger_settings(on)


# --------------------------------------------------------------------------------------------------------- the scorer


@pytest.fixture(scope="module")
def scorers(standin, tmp_path_factory):
    """`scorers("qwen")` -> Scorer of a stand-in with a random head."""
    made = {}

    def get(kind: str) -> Scorer:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            torch.manual_seed(0)
            model = build_reward_model(str(standin(kind)), head_init="normal")
            model.save_pretrained(folder)
            build_tokenizer(str(standin(kind)), model.config).save_pretrained(folder)
            made[kind] = Scorer(str(folder))
        return made[kind]

    return get


@pytest.mark.parametrize("kind", ["qwen", "llama3", "encoder"])
@pytest.mark.parametrize("budget", [40, 400, 100_000])
def test_scorer_gives_what_one_text_at_a_time_does_in_the_order_given(kind, budget, scorers):
    scorer = scorers(kind)
    scorer.token_budget = budget
    texts = random_tree(5, prompts=6)
    with torch.no_grad():
        expected = one_by_one(scorer.model, texts)[:, -1]
    found = scorer.rewards_of_ids([texts[0], None, *texts[1:]])
    assert found[1] is None
    assert (scorer.padded_because is None) == (kind != "encoder")
    assert torch.tensor([found[0], *found[2:]]).sub(expected).abs().max() < 1e-4


def test_completions_of_a_prompt_cost_it_once(scorers):
    scorer = scorers("qwen")
    scorer.token_budget, scorer.self_tested = 8192, True
    prompt = [3 + i % 300 for i in range(200)]
    texts = [[*prompt, 10 + i, 2] for i in range(16)]
    seen = []
    hook = scorer.model.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    scorer.rewards_of_ids(texts)
    hook.remove()
    assert seen == [200 + 16 * 2]


def test_a_process_scores_its_share_alone(scorers, monkeypatch):
    scorer, texts = scorers("qwen"), random_tree(5, prompts=6)
    scorer.token_budget, scorer.self_tested = 60, True
    expected, gathered = scorer.rewards_of_ids(texts), []
    assert not scorer.distributed  # a process that asks for rewards of its own gets them
    monkeypatch.setattr(scorer, "distributed", True)
    for index in range(3):
        state = SimpleNamespace(process_index=index, num_processes=3, is_main_process=index == 0)
        monkeypatch.setattr(scoring, "processes", lambda state=state: state)
        monkeypatch.setattr(scoring, "gather_object", lambda found: gathered.append(found) or found)
        scorer.rewards_of_ids(texts)
    assert all(0 < len(part) < len(texts) / 2 for part in gathered)
    found = dict(pair for part in gathered for pair in part)
    assert [found[i] for i in range(len(texts))] == pytest.approx(expected, abs=1e-5)


def test_scorer_goes_back_to_padding_where_packing_differs(scorers, monkeypatch, capsys):
    scorer = scorers("llama3")
    texts = random_tree(6, prompts=6)
    scorer.token_budget, scorer.self_tested, expected = 400, False, scorer.rewards_of_ids(texts)
    monkeypatch.setattr(
        packed_attention, "causal_mask", lambda q, k, *_: torch.ones(q, k, dtype=torch.bool).tril()
    )
    monkeypatch.setattr(scorer, "self_tested", False)
    found = scorer.rewards_of_ids(texts)
    assert "padded batches, because packed differs by" in capsys.readouterr().err
    assert found == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr(scorer, "padded_because", None)


def test_collator_packs_pairs():
    collator = PreferenceCollator(pad_token_id=0)
    collator.packed = True
    (part,) = collator([{"chosen_ids": [5, 6, 7], "rejected_ids": [5, 6, 8]}])["micro_batches"]
    assert part["texts"]["input_ids"].tolist() == [[5, 6, 7, 8]]
    assert part["sides"].tolist() == [[0, 1]] and part["tokens"] == 6


def test_losses_of_a_packed_micro_batch(make_trainer):
    """-log sigmoid of the margins that one text at a time gives."""
    rows = tree_pairs(5)
    trainer = make_trainer(rows, prefix_sharing="on")
    part = trainer.data_collator(list(rows))["micro_batches"][0]
    sides = [
        one_by_one(trainer.model, [row[side] for row in rows])
        for side in ("chosen_ids", "rejected_ids")
    ]
    expected = -F.logsigmoid(sides[0] - sides[1]).mean()
    assert trainer.compute_loss(trainer.model, part).item() == pytest.approx(
        expected.item(), abs=1e-5
    )
