"""Training on packed batches: gradients, token budgets, what is printed, plain TRL beside it."""

import copy
import json
import random

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from datasets import Dataset
from packed_models import (
    one_by_one,
    relative,
)
from peft import LoraConfig
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)
from transformers.trainer_pt_utils import BatchRebalanceSampler
from trl import RewardConfig, RewardTrainer

from reward.model import packed_attention
from reward.model.batches import (
    own_tokens,
    pack,
)
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.hub import ModelError
from reward.training import run
from reward.training.trainer import PairOptions, PairTrainer

torch.set_num_threads(1)


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
            model=model,
            args=args,
            train_dataset=train,
            processing_class=build_tokenizer(folder, model.config),
            peft_config=peft,
            options=PairOptions(["all"], **ours),
            callbacks=callbacks,
        )

    return make


class EndOfEpoch:
    """What accelerate reads of a DataLoader at its last batch."""

    end_of_dataloader = True


def step_gradient(trainer, rows: Dataset) -> torch.Tensor:
    """The gradient of one step on all rows, as the trainer's own loop gives it to the optimizer."""
    gradients = []
    clip = trainer._get_grad_norm

    def keep(model, grad_norm=None):
        parts = []
        for parameter in trainer.model.parameters():
            if parameter.grad is not None:
                parts.append(parameter.grad.flatten().float().clone())
        gradients.append(torch.cat(parts))
        return clip(model, grad_norm=grad_norm)

    trainer._get_grad_norm = keep
    trainer.train()
    return gradients[0]


LORA = {"r": 4, "task_type": "SEQ_CLS", "target_modules": "all-linear"}
FOUR_BIT = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


# --- The gradient of a step -----------------------------------------------------------------------


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
    gradient = {}
    for prefix_sharing in ("on", "off"):
        trainer = make_trainer(rows, prefix_sharing=prefix_sharing, **copy.copy(options))
        gradient[prefix_sharing] = step_gradient(trainer, rows)
        assert (
            trainer.data_collator.packed
            == trainer.data_collator.share_prefixes
            == (prefix_sharing == "on")
        )
    assert gradient["off"].norm() > 1e-3
    # bf16 keeps 8 bits of a number
    assert relative(gradient["on"], gradient["off"]) < (0.05 if case == "qlora" else 1e-5)


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
    gradient = step_gradient(trainer, rows)
    assert relative(gradient, expected) < 1e-5
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


def test_dataloader_drop_last_drops_pairs_of_training_alone(make_trainer):
    """11 pairs in batches of 4: the last three, among them golden ones, are no less evaluated."""
    trainer = make_trainer(tree_pairs(11), dataloader_drop_last=True, per_device_eval_batch_size=4)
    assert trainer.evaluate(tree_pairs(11))["eval_n"] == 11
    assert len(trainer.predict(tree_pairs(3)).predictions) == 3
    assert len(trainer.get_train_dataloader()) == 1  # of 8 pairs


def test_batch_rebalance_deals_out_the_last_pairs_once(make_trainer, monkeypatch):
    """11 pairs, 8 a step of two processes: the three that are left are all new."""
    rows = tree_pairs(11)
    trainer = make_trainer(
        rows, per_device_train_batch_size=4, train_sampling_strategy="batch_rebalance"
    )
    monkeypatch.setitem(AcceleratorState._shared_state, "num_processes", 2)
    sampler = BatchRebalanceSampler(rows["length"], 8, dp_size=2, grad_accum=1, drop_last=False)
    loader, weights = EndOfEpoch(), []
    trainer.accelerator.gradient_state._add_dataloader(loader)
    for sampler.rank in (0, 1):
        *_, last = sampler
        batch = trainer.data_collator([rows[i] for i in last])
        monkeypatch.setitem(AcceleratorState._shared_state, "process_index", sampler.rank)
        assert trainer.accelerator.process_index == sampler.rank
        trainer._drop_repeats([batch])
        weights += batch["micro_batches"][0]["weight"].tolist()
    trainer.accelerator.gradient_state._remove_dataloader(loader)
    assert weights == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_a_resumed_epoch_has_its_own_order_among_several_processes(
    strategy, make_trainer, tmp_path, monkeypatch
):
    """12 pairs, 4 a step of two processes: a run goes on behind step 4, the first of epoch 2."""
    rows = tree_pairs(12)
    options = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 2}
    options |= {"per_device_train_batch_size": 2, "train_sampling_strategy": strategy}
    orders = []
    for checkpoint in (None, str(tmp_path / "checkpoint-4")):
        trainer = make_trainer(rows, **options)
        monkeypatch.setitem(AcceleratorState._shared_state, "num_processes", 2)
        monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
        orders.append(texts_of_steps(trainer, checkpoint))
        monkeypatch.undo()
    assert orders[0][4:] == orders[1] and orders[0][:3] != orders[0][3:]


def texts_of_steps(trainer, checkpoint: str | None) -> list[list[int]]:
    """The token ids that each step of this process trained on."""
    steps = []
    train = trainer.training_step

    def keep(model, inputs, *args):
        steps.append(inputs["micro_batches"][0]["texts"]["input_ids"].flatten().tolist())
        return train(model, inputs, *args)

    trainer.training_step = keep
    trainer.train(checkpoint)
    return steps


# --- What is printed, counted and saved -----------------------------------------------------------


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
def test_tokens_seen_are_counted_where_asked(prefix_sharing, make_trainer, monkeypatch):
    """Other processes may have another number of micro-batches, so that one count is gathered."""
    rows = tree_pairs(4)
    options = {"prefix_sharing": prefix_sharing, "max_steps": 1, "per_device_train_batch_size": 4}
    trainer = make_trainer(
        rows, include_num_input_tokens_seen="non_padding", token_budget=20, **options
    )
    gathered = []
    monkeypatch.setattr(
        trainer.accelerator, "gather", lambda tensor: gathered.append(tensor) or tensor
    )
    trainer.train()
    assert sum(not tensor.is_floating_point() for tensor in gathered) == 1
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


# --- Beside TRL and liger -------------------------------------------------------------------------


@pytest.mark.slow
def test_fifty_steps_on_real_pairs_follow_trl(standin, hh_real, make_trainer, tmp_path):
    """The loss of every step is within 1e-3 of plain TRL's, on real HH-RLHF pairs in one order."""
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
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_length=None,
        disable_tqdm=True,
        activation_checkpointing=False,
        lr_scheduler_type="constant",
        max_grad_norm=1e9,
        logging_steps=1,
        save_strategy="no",
        **options,
    )
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
