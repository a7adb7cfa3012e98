"""--plan counts as the real model and the real trainer do, and its estimates are near the truth."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, IterableDataset
from launched import CPU, launcher, read_json, train_several
from peft import LoraConfig
from support import REPO, last_of_each, run_script
from transformers import AutoConfig, Qwen2Config

from reward.model.batches import PreferenceCollator
from reward.model.build import build_reward_model
from reward.recipe.recipe import Recipe
from reward.training.engine import Engine
from reward.training.memory import (
    GIB,
    ForwardPrecision,
    ModelMemory,
    activation_bytes,
    deepspeed_bytes,
    kept_bytes,
    micro_batch_like,
    model_memory,
    plan_model,
)
from reward.training.plan import Steps, count_steps, count_tokens

QWEN_7B = Qwen2Config(
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152064,
    pad_token_id=0,
    num_labels=1,
)
F32, BF16 = torch.float32, torch.bfloat16
LORA = LoraConfig(task_type="SEQ_CLS", r=8, target_modules="all-linear", modules_to_save=["score"])


def engine(name: str) -> Engine:
    return Engine.read(REPO / "accelerate_configs" / f"{name}.yaml")


@pytest.mark.parametrize(("train_last_layers", "trained_blocks"), [(None, 2), (1, 1), (0, 0)])
def test_parameters_are_those_of_the_model(train_last_layers, trained_blocks, standin):
    model = build_reward_model(str(standin("qwen")), train_last_layers=train_last_layers)
    config = AutoConfig.from_pretrained(standin("qwen"), num_labels=1)
    planned = plan_model(config, F32, Recipe(values={"train_last_layers": train_last_layers}), None)
    assert planned.total == sum(p.numel() for p in model.parameters())
    assert planned.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert planned.frozen_bytes == 4 * (planned.total - planned.trained)
    assert planned.bytes_per_trained == 4
    assert planned.trained_blocks == trained_blocks
    one_block = sum(p.numel() for p in model.model.layers[0].parameters())
    embeddings = 400 * 32
    assert planned.largest_block in (one_block, embeddings)


def test_parameters_of_adapters_and_of_four_bit_weights():
    recipe = Recipe(values={"load_in_4bit": True, "use_bnb_nested_quant": True})
    planned = plan_model(QWEN_7B, BF16, recipe, LORA)
    linear = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    rank = 28 * 8 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
    assert planned.trained == planned.trained_linear == rank + 3584
    embeddings = 152064 * 3584
    norms = (2 * 28 + 1) * 3584
    biases = 28 * (3584 + 2 * 512)
    head = 3584
    whole = embeddings + norms + biases + head  # not quantized
    assert planned.total == linear + whole + rank + head  # the head once more, to be saved
    assert planned.frozen_bytes == pytest.approx(0.516 * linear + 2 * whole)
    assert (planned.bytes_per_trained, planned.trained_embeddings) == (2, 0)


# --- Tokens, steps --------------------------------------------------------------------------------


def test_steps_are_the_trainers():
    """167 pairs for 2 processes, 16 a batch, 2 accumulated.

    tests/reward/training/test_engines.py runs this: 12 batches in two epochs.
    """
    args = SimpleNamespace(
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        max_steps=-1,
        dataloader_drop_last=False,
    )
    assert count_steps(167, args, 2) == Steps(epoch=3, run=6)
    assert count_steps(167, args, 1) == Steps(epoch=6, run=12)
    args.num_train_epochs, args.max_steps = 0.5, 4
    assert count_steps(167, args, 2) == Steps(epoch=3, run=4)
    # 10 whole batches: 5 for each of 2 processes, 3 for each of 3, in 2 steps each.
    args.dataloader_drop_last, args.num_train_epochs, args.max_steps = True, 1, -1
    assert count_steps(167, args, 2) == Steps(epoch=3, run=3)
    assert count_steps(167, args, 3) == Steps(epoch=2, run=2)
    assert count_steps(129, args, 1) == Steps(epoch=4, run=4)


def pairs(n: int) -> Dataset:
    """A prompt of 10 tokens, and completions of i + 1 and 2 tokens."""
    rows = []
    for i in range(n):
        prompt = [100 + i] * 10
        chosen, rejected = prompt + [1] * i + [9], prompt + [2, 9]
        rows.append({"chosen_ids": chosen, "rejected_ids": rejected, "length": 12 + i})
    return Dataset.from_list(rows)


def test_tokens_are_those_that_the_collator_makes():
    table, collator = pairs(8), PreferenceCollator(0)
    collator.packed = True
    tokens = count_tokens(table, collator, 8)
    computed = sum(10 + i + 1 + 2 for i in range(8))
    assert tokens.read == computed + 8 * 10
    assert (tokens.computed_per_row, tokens.padded_per_row) == (computed / 8, 2 * 8 * 18 / 8)
    assert (tokens.rows, tokens.largest, tokens.sampled_batches) == (8, computed, 1)
    assert tokens.paths == tokens.read / computed
    collator.token_budget = 40  # two or three pairs
    budgeted = count_tokens(table, collator, 8)
    assert budgeted.computed_per_row == tokens.computed_per_row and budgeted.largest <= 40
    # Batches of two, of like lengths or of any
    collator = PreferenceCollator(0)
    like = count_tokens(pairs(200), collator, 2, 0, rows_by_length=2)
    any_length = count_tokens(pairs(200), collator, 2, 0)
    assert like.computed_per_row < 0.85 * any_length.computed_per_row
    assert any_length.computed_per_row == pytest.approx(any_length.padded_per_row)


def test_tokens_of_rankings_and_of_a_stream():
    """A ranking counts as one, and its completions once; of a stream nobody knows the whole."""
    prompt, a, b, c = [7] * 10, [1, 9], [2, 2, 9], [3, 3, 3, 9]
    rows = [
        {"chosen_ids": prompt + x, "rejected_ids": prompt + y, "length": 14}
        for x, y in ((a, b), (a, c), (b, c))
    ]
    table = Dataset.from_list([row | {"ranking": i} for i in range(4) for row in rows])
    collator = PreferenceCollator(0)
    collator.packed = True
    tokens = count_tokens(table, collator, 1)
    assert (tokens.unit, tokens.rows) == ("rankings", 4)
    assert (tokens.computed_per_row, tokens.padded_per_row) == (10 + 2 + 3 + 4, 3 * 14)
    assert tokens.read == 4 * 2 * (12 + 13 + 14)
    stream = IterableDataset.from_generator(lambda: iter(pairs(8)))
    collator = PreferenceCollator(0)
    collator.packed = True
    streamed = count_tokens(stream, collator, 2)
    whole = count_tokens(pairs(8), collator, 2)
    assert (streamed.read, streamed.computed_per_row) == (0, whole.computed_per_row)


# --- Memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("paths", [None, 1.0, 1.6, 3.1])
@pytest.mark.parametrize(("dtype", "autocast"), [(F32, None), (F32, BF16), (BF16, None)])
def test_activations_in_a_straight_line(checkpointing, paths, dtype, autocast, standin):
    config = AutoConfig.from_pretrained(standin("llama3"), num_labels=1)
    precision = ForwardPrecision(dtype, autocast)
    if paths:
        inputs = micro_batch_like(704, paths)
        assert inputs["input_ids"].numel() == 704
        lengths, queries = inputs["packing"]["lengths"], inputs["packing"]["queries"]
        assert sum(lengths) / sum(queries) == pytest.approx(paths, rel=0.03)

    def kept(blocks: int, checkpointing: bool) -> int:
        return kept_bytes(config, blocks, 704, precision, checkpointing=checkpointing, paths=paths)

    five_blocks = SimpleNamespace(trained_blocks=5, trained_linear=0)
    estimate = activation_bytes(
        config, five_blocks, 704, precision, checkpointing=checkpointing, paths=paths
    )
    measured = kept(5, checkpointing)
    if checkpointing:  # and a block that is computed again
        measured += kept(2, False) - kept(1, False)
    assert estimate == pytest.approx(measured, rel=0.02)


def test_activations_of_an_encoder(standin):
    """Its position ids are a buffer, which a model without loaded weights would leave to chance."""
    config = AutoConfig.from_pretrained(standin("encoder"), num_labels=1)
    precision = ForwardPrecision(F32, autocast=None)
    assert kept_bytes(config, 1, 64, precision, checkpointing=False) > 0


def test_flash_attention_is_planned_where_it_cannot_run(standin):
    config = AutoConfig.from_pretrained(standin("llama3"), num_labels=1)
    how = {"precision": ForwardPrecision(BF16, autocast=None), "checkpointing": False}
    sdpa, flash, eager = (
        kept_bytes(config, 2, 256, attn_implementation=name, **how)
        for name in ("sdpa", "flash_attention_2", "eager")
    )
    assert sdpa == flash < eager


def test_checkpointing_and_half_precision_keep_less(standin):
    config = AutoConfig.from_pretrained(standin("llama3"), num_labels=1)
    eight_blocks = SimpleNamespace(trained_blocks=8, trained_linear=1000)

    def activations(dtype: torch.dtype, checkpointing: bool) -> float:
        precision = ForwardPrecision(dtype, autocast=None)
        return activation_bytes(config, eight_blocks, 500, precision, checkpointing=checkpointing)

    full = activations(F32, checkpointing=False)
    assert activations(F32, checkpointing=True) < 0.3 * full
    half = activations(BF16, checkpointing=False)
    assert 0.5 * full <= half < 0.62 * full  # norms keep float32


def test_memory_of_engines():
    planned = plan_model(QWEN_7B, F32, Recipe(), None)
    n = planned.total
    assert n == 7_070_622_720

    def of(name: str, half: bool = True, optim: str = "adamw_torch_fused") -> ModelMemory:
        return model_memory(planned, engine(name), half, optim)

    assert of("single") == ModelMemory(weights=4 * n, gradients=4 * n, optimizer=8 * n, host=0)
    assert of("ddp") == ModelMemory(weights=4 * n, gradients=8 * n, optimizer=8 * n, host=0)
    bucket = 2 * 500_000_000
    assert of("zero2") == ModelMemory(
        weights=2 * n, gradients=6 * n / 8 + bucket, optimizer=12 * n / 8, host=0
    )
    gathered = 2 * max(2 * planned.largest_block, 10**9)
    assert of("zero3").weights == 2 * n / 8 + gathered
    assert of("fsdp2") == ModelMemory(
        weights=4 * n / 8 + 4 * planned.largest_block, gradients=n / 2, optimizer=n, host=0
    )
    offload = of("zero3-offload")
    assert (offload.weights, offload.optimizer) == (gathered, 0)
    assert offload.host == pytest.approx((2 + 6 + 12) * n)  # 132 GiB on one host
    embeddings = 152064 * 3584
    eight_bit = of("single", optim="adamw_bnb_8bit")
    assert eight_bit.optimizer == 2 * (n - embeddings) + 8 * embeddings
    assert of("single", optim="sgd").optimizer == 0


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_memory_is_near_deepspeeds_own_estimate(name):
    planned = plan_model(QWEN_7B, F32, Recipe(), None)
    ours = model_memory(planned, engine(name), True, "adamw_torch_fused")
    ours_together = ours.weights + ours.gradients + ours.optimizer + ours.host
    ours_together -= 2 * 500_000_000  # the bucket
    if name == "zero3":  # what is gathered
        ours_together -= 2 * max(2 * planned.largest_block, 10**9)
    assert ours_together == pytest.approx(deepspeed_bytes(planned, engine(name)), rel=0.2)


def test_memory_of_bfloat16_weights_and_of_adapters():
    float32 = plan_model(QWEN_7B, F32, Recipe(), None)
    n = float32.total
    bfloat16 = plan_model(QWEN_7B, BF16, Recipe(), None)
    # FSDP2: accelerate makes the weights float32.
    expected = model_memory(float32, engine("fsdp2"), True, "adamw_torch_fused")
    assert model_memory(bfloat16, engine("fsdp2"), True, "adamw_torch") == expected
    assert model_memory(bfloat16, engine("single"), True, "adamw_torch").optimizer == 4 * n
    adapter = plan_model(QWEN_7B, BF16, Recipe(values={"load_in_4bit": True}), LORA)
    paged = model_memory(adapter, engine("single"), True, "paged_adamw_8bit")
    assert paged.weights / GIB == pytest.approx(4.5, abs=0.1)
    assert (paged.gradients, paged.optimizer) == (2 * adapter.trained, 2 * adapter.trained)


# --- The command ----------------------------------------------------------------------------------


def plan_of(printed: str) -> list[str]:
    return printed[printed.index("plan of ") :].splitlines()


@pytest.mark.slow
def test_plan_command(hh_options, tmp_path):
    out = tmp_path / "out"
    options = last_of_each(
        [*hh_options, "--output_dir", out, "--use_cpu", "false", "--bf16", "true"]
    )
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("distributed_typ: NO\n")
    files = ["accelerate_configs/zero3.yaml", "absent.yaml", wrong]
    lines = [[*options, "--plan", file] for file in files]
    zero3, absent, unread = train_several(lines, tmp_path / "launch")

    assert zero3.status == 0, zero3.stderr[-3000:]
    lines = plan_of(zero3.stdout)
    assert lines[0] == "plan of recipes/qwen-0.5b.yaml: DeepSpeed ZeRO-3, 8 processes"
    assert "data:\n" in zero3.stdout and "167" in zero3.stdout
    assert lines[2] == (
        "steps   2: 128 pairs a step (8 processes x 4 x 4 accumulated), 2 in the epoch of 167"
    )
    assert lines[3].startswith("tokens  ") and "each shared prefix once, no padding" in lines[3]
    estimator = "by DeepSpeed's own estimator, activations left out"
    assert any(line.endswith(estimator) for line in lines)
    assert not out.exists()
    assert absent.status == 2 and "found no accelerate config absent.yaml" in absent.stderr
    assert unread.status == 2 and "no accelerate config" in unread.stderr
    assert "Traceback" not in unread.stderr

    # Under a launcher one process says what it was launched with, and the others are gone.
    done = run_script(*launcher("ddp"), "train_rm.py", *options, "--plan", env=CPU)
    assert done.stdout.count("plan of ") == 1
    assert plan_of(done.stdout)[0].endswith("data parallel (DDP), 2 processes")


@pytest.mark.slow
def test_a_plan_counts_what_the_run_does(hh_options, tmp_path):
    options = [*hh_options, "--output_dir", tmp_path / "out", "--per_device_train_batch_size", 8]
    options += ["--eval_steps", 20, "--save_steps", 20, "--gradient_accumulation_steps", 1]
    plan_run, run = train_several([[*options, "--plan"], options], tmp_path / "launch")
    assert (plan_run.status, run.status) == (0, 0), run.stderr[-3000:]
    planned = plan_of(plan_run.stdout)
    assert "21 in the epoch of 167" in planned[2]
    assert read_json(tmp_path / "out" / "manifest.json")["steps"] == 21
    counted = planned[1].split(" parameters")[0].split(": ")[1]
    assert f"{counted} parameters, 100.0% trained" in run.stdout
    tokens_planned = int(planned[3].split(" read in an epoch")[0].split()[1].replace(",", ""))
    state = read_json(tmp_path / "out" / "checkpoint-20" / "trainer_state.json")
    tokens_logged = [log["num_tokens"] for log in state["log_history"] if "loss" in log][-1]
    # The last log is at step 20 of 21.
    assert tokens_logged <= tokens_planned < 1.1 * tokens_logged
