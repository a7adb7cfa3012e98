"""The shipped engine configs really run, two processes on a CPU, and give what one process gives.

Each test looks at the world size, the distributed type, the wrapped class and the saved artifact:
accelerate falls back to fewer processes or to another engine in silence, and exits 0.
$ENGINES_TABLE names a file that gets the differences, method by method, as docs/launch.md has them.
"""

import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from launched import (
    DRIVER,
    ENGINES,
    PACKED,
    launch,
    needs_compiler,
    read_json,
    read_seen,
    train_several,
)
from safetensors.torch import load_file
from support import last_of_each

from reward.checkpoint.golden import read_golden

# Every test here but the last launches an engine.
pytestmark = pytest.mark.slow

LORA = "--use_peft true --lora_r 4 --lora_alpha 8 --lora_target_modules all-linear".split()
NF4 = (
    "--load_in_4bit true --bnb_4bit_quant_type nf4 --use_bnb_nested_quant true --dtype bfloat16"
).split()
# FSDP2 shares out floating-point tensors only.
SHARDED_NF4 = ["--bnb_4bit_quant_storage", "bfloat16"]
KEEP_LAST = "--load_best_model_at_end false --early_stopping_patience null".split()
# method -> stand-in, options; all accumulate over two batches
METHODS = {
    "full": ("qwen", []),
    "padded, checkpointing": (
        "qwen",
        "--prefix_sharing off --activation_checkpointing true".split(),
    ),
    "last layers": ("qwen", ["--train_last_layers", 1]),
    "LoRA": ("qwen", LORA),
    # Larger tensors than the other stand-in has: 4-bit layers and 8-bit states need 4,096 elements.
    "QLoRA": ("llama3", [*LORA, *NF4, *KEEP_LAST]),
    "8-bit Adam": ("llama3", ["--optim", "adamw_bnb_8bit"]),
}
# Refused before anything is loaded, as tests/reward/training/test_launch.py tests.
REFUSED = {("fsdp2", "8-bit Adam"), ("zero3-offload", "8-bit Adam")}
# How far the weights may be from one process's: absolutely, or as a share of how far training moved
# them. Half precision rounds every step; 8-bit states are rounded in blocks, which ZeRO cuts across
# tensors.
ABSOLUTE = 5e-6
SHARE = {("QLoRA", "all"): 0.15, ("8-bit Adam", "ddp"): 2e-3, ("8-bit Adam", "all"): 0.1}

SHORT = (
    "--max_steps 4 --eval_steps 2 --save_steps 2 --logging_steps 1 --gradient_accumulation_steps 2 "
    "--activation_checkpointing false"
).split()
# A batch has about 300 tokens: processes cut theirs into unequal numbers of micro-batches.
BUDGET = ("--token_budget", 150)


@pytest.fixture(scope="module")
def command_line(hh_options, standin, tmp_path_factory):
    """`command_line(config, processes, method, *options)` -> (output folder, options)."""
    folder = tmp_path_factory.mktemp("engines")

    def get(config: str, processes: int, method: str = "full", *more, batch: int = 8):
        words = (str(option).strip("-").replace("/", "_")[-40:] for option in more)
        name = "-".join([config, method.replace(", ", "_").replace(" ", "_"), *words])
        kind, options = METHODS[method]
        if (config, method) == ("fsdp2", "QLoRA"):
            options = [*options, *SHARDED_NF4]
        out = folder / name
        line = [*hh_options, *SHORT, "--output_dir", out, "--model_name_or_path", standin(kind)]
        line += ["--per_device_train_batch_size", batch // processes]
        line += ["--per_device_eval_batch_size", 5, *options, *more]
        return out, last_of_each(line)

    return get


@pytest.fixture(scope="module")
def engine_run(command_line):
    """`engine_run("ddp", 2, "LoRA", *options)` -> (what was printed, output folder, what each
    process saw)."""
    made = {}

    def run(config: str, processes: int, method: str = "full", *more, batch: int = 8):
        needs_compiler(config)
        out, line = command_line(config, processes, method, *more, batch=batch)
        if out not in made:
            seen = out.with_name(f"{out.name}-seen")
            done, facts = launch(config, processes, DRIVER, *line, seen=seen)
            made[out] = done.stdout, out, facts
        return made[out]

    return run


@pytest.fixture(scope="module")
def one_process(command_line, tmp_path_factory):
    """`one_process("LoRA")`: one process that sees in each step the pairs that two see together.

    All methods are trained at the first call, one after another in the same process.
    """
    made = {}

    def get(method: str):
        if not made:
            runs = {name: command_line("single", 1, name) for name in METHODS}
            seen = [out.with_name(f"{out.name}-seen") for out, _ in runs.values()]
            launch_folder = tmp_path_factory.mktemp("one_process")
            finished = train_several([line for _, line in runs.values()], launch_folder, seen=seen)
            for name, run, folder in zip(METHODS, finished, seen, strict=True):
                assert run.status == 0, f"{name}: {run.stderr[-3000:]}"
                made[name] = run.stdout, runs[name][0], read_seen(folder)
        (facts,) = made[method][2]
        assert (facts["num_processes"], facts["distributed_type"]) == (1, "NO")
        return made[method]

    return get


@pytest.fixture(scope="module")
def table():
    """A dict of differences by (method, config), written down as docs/launch.md has them."""
    cells = dict.fromkeys(((method, config) for config, method in REFUSED), "-")
    yield cells
    if os.environ.get("ENGINES_TABLE"):
        lines = [f"| | {' | '.join(ENGINES)} |", "|---" * (len(ENGINES) + 1) + "|"]
        for method in METHODS:
            differences = [cells.get((method, config), "") for config in ENGINES]
            lines.append(f"| {method} | {' | '.join(differences)} |")
        Path(os.environ["ENGINES_TABLE"]).write_text("\n".join(lines) + "\n", encoding="utf-8")


def trained_file(folder: Path) -> Path:
    """The file of the weights that a run has trained."""
    adapter = folder / "adapter_model.safetensors"
    if adapter.exists():
        return adapter
    return folder / "model.safetensors"


@dataclass
class WeightDifference:
    """How far the weights of two runs are from each other."""

    largest: float  # absolute, of any weight
    share: float  # the norm of all differences, as a share of how far the second run moved


def weight_difference(out: Path, expected: Path) -> WeightDifference:
    """Compare the trained weights of two runs, given their output folders."""
    weights, one = load_file(trained_file(out)), load_file(trained_file(expected))
    shapes = {key: value.shape for key, value in weights.items()}
    assert shapes == {key: value.shape for key, value in one.items()}
    start = {}
    if not trained_file(out).name.startswith("adapter"):
        base = Path(read_json(out / "manifest.json")["base_model"], "model.safetensors")
        start = load_file(base)
    steps = [one[key] - start[key] for key in one if key in start]
    if not steps:
        # The B matrices of an adapter start at zero and say how far it moved. Its head does not:
        # it starts anywhere.
        steps = [one[key] for key in one if "lora_B" in key]
    assert max(step.abs().max().item() for step in steps) > 1e-3
    norm = sum(step.double().square().sum().item() for step in steps) ** 0.5
    differences = [weights[key].double() - one[key].double() for key in one]
    largest = max(difference.abs().max().item() for difference in differences)
    total = sum(difference.square().sum().item() for difference in differences) ** 0.5
    return WeightDifference(largest, total / norm)


# What `make test` runs: every engine and every method at least once. `make engines` runs all.
COVERING = {
    ("ddp", "full"),
    ("fsdp2", "padded, checkpointing"),
    ("fsdp2", "LoRA"),
    ("zero2", "8-bit Adam"),
    ("zero3", "full"),
    ("zero3", "QLoRA"),
    ("zero3-offload", "last layers"),
}
CELLS = []
for cell in itertools.product(ENGINES, METHODS):
    if cell not in REFUSED:
        marks = [] if cell in COVERING else pytest.mark.engines
        CELLS.append(pytest.param(*cell, marks=marks))
ONE_ENGINE = ["ddp", pytest.param("zero3", marks=pytest.mark.engines)]


def test_the_covering_selection_has_every_engine_and_every_method():
    engines, methods = zip(*COVERING, strict=True)
    assert set(engines) == set(ENGINES) and set(methods) == set(METHODS)


@pytest.mark.parametrize(("config", "method"), CELLS)
def test_it_gives_what_one_process_gives(config, method, engine_run, one_process, standin, table):
    budget = ()
    if method == "full":
        budget = BUDGET
    printed, out, seen = engine_run(config, 2, method, *budget)
    printed_one, out_one, (one,) = one_process(method)
    assert_engine_ran(config, method, seen, one)

    # The run moved the weights by far more than they may differ.
    difference = weight_difference(out, out_one)
    limit = SHARE.get((method, config)) or SHARE.get((method, "all"))
    if limit is None:
        table[method, config] = f"{difference.largest:.0e}"
        assert difference.largest <= ABSOLUTE, difference
    else:
        table[method, config] = f"{100 * difference.share:.2g}% of the way"
        assert difference.share <= limit, difference

    assert_same_numbers(out, out_one, method, exact=limit is None)
    assert_same_batches(seen, one)
    if limit is None:
        assert [(facts["steps"], facts["best"]) for facts in seen] == [
            (one["steps"], one["best"])
        ] * 2

    # What is printed is printed once, although two processes ran.
    assert "machine: CPU, 1 thread; " in printed and ", 2 processes\n" in printed
    times_by_start = {
        "machine: ": 1,
        "data:$": 1,
        "batches: ": 1,
        r"train +\d/4 ": 4,
        r"valid +\d/4 ": 2,
        r"final +4/4 ": 1,
        "trained 4 steps in ": 1,
        "saved ": 1,
        "next: ": 1,
    }
    if "LoRA" in method:
        times_by_start["saved "] = 2
    for start_of_line, times in times_by_start.items():
        for text in (printed, printed_one):
            assert len(re.findall(f"^{start_of_line}", text, re.MULTILINE)) == times, start_of_line


def assert_engine_ran(config: str, method: str, seen: list[dict], one: dict) -> None:
    """The engine of the config really ran, with the method, in both processes.

    Args:
        config: a name of ENGINES.
        method: a name of METHODS.
        seen: what each of the two processes saw.
        one: what one process saw that ran the same method alone.
    """
    kind, wrapped, zero_stage, share = ENGINES[config]
    assert [(facts["num_processes"], facts["distributed_type"]) for facts in seen] == [
        (2, kind)
    ] * 2
    if "LoRA" in method:
        body = "PeftModel"
    else:
        body = {"qwen": "Qwen2", "llama3": "Llama"}[METHODS[method][0]]
    assert [(facts["wrapped"], facts["zero_stage"]) for facts in seen] == [
        (wrapped.format(body), zero_stage)
    ] * 2
    batches = PACKED
    if "padded" in method:
        batches = "padded batches"
    for facts in seen:
        # Each holds its share, and a little padding.
        assert 0 < facts["held"] <= (share + 0.1) * facts["whole"]
        assert facts["batches"].startswith(batches)
        assert facts["checkpointing"] == ("checkpointing" in method)
        assert facts["trained"] == one["trained"]
    if config != "ddp" and method not in ("QLoRA", "8-bit Adam"):
        assert all(facts["optimizer"] <= 0.55 * one["optimizer"] for facts in seen)


def assert_same_numbers(out: Path, out_one: Path, method: str, exact: bool) -> None:
    """Both runs count and measure the same: every pair once, although the last batch is uneven.

    Args:
        out: the output folder of two processes.
        out_one: the output folder of one process.
        method: a name of METHODS.
        exact: whether their rewards differ by rounding alone.
    """
    manifest, manifest_one = (read_json(folder / "manifest.json") for folder in (out, out_one))
    ledger = read_json(out / "ledger.json")
    assert ledger == read_json(out_one / "ledger.json")
    assert manifest["fingerprints"] == manifest_one["fingerprints"]
    pairs = ledger["validation"]["kept"]
    assert pairs % 10 not in (0, 5)  # 2 processes x 5 pairs
    metrics, metrics_one = manifest["validation"], manifest_one["validation"]
    assert metrics["n"] == metrics_one["n"] == pairs
    if exact:
        for key in ("loss", "accuracy", "tie_rate", "margin", "reward_std"):
            assert metrics[key] == pytest.approx(metrics_one[key], abs=1e-6), key
    verified = manifest["verified"]
    assert verified["max_difference"] <= verified["tolerance"]
    assert (verified["tolerance"] == 1e-4) is (method != "QLoRA")
    rewards, rewards_one = (
        torch.tensor([row["reward"] for row in read_golden(folder)]) for folder in (out, out_one)
    )
    tolerance = 1e-4
    if not exact:
        tolerance = 0.1 * rewards_one.std()
    assert (rewards - rewards_one).abs().max() <= tolerance


def assert_same_batches(seen: list[dict], one: dict) -> None:
    """In each step the pairs of both processes together are those of one process."""
    steps = [[sorted(batch) for batch in facts["pairs"]] for facts in seen]
    unions = [sorted(first + second) for first, second in zip(*steps, strict=True)]
    assert unions == [sorted(batch) for batch in one["pairs"]]


def test_padded_gives_what_packed_does(one_process):
    _, padded, (facts,) = one_process("padded, checkpointing")
    assert facts["batches"] == "padded batches, because prefix_sharing is off"
    _, out, _ = one_process("full")
    weights = load_file(padded / "model.safetensors")
    expected = load_file(out / "model.safetensors")
    for key in expected:
        torch.testing.assert_close(weights[key], expected[key], atol=2e-5, rtol=0)


@pytest.mark.parametrize("config", ONE_ENGINE)
def test_the_end_of_an_epoch_counts_no_pair_twice(config, engine_run):
    """Two processes count each pair of an epoch once, and so does a resumed run that finishes one.

    The processes get batches of equal size, so accelerate fills the last ones up with the epoch's
    first pairs. In the epoch that a resumed run finishes, accelerate does not say how many pairs
    are real.
    """
    epoch = ["--max_steps", -1, "--num_train_epochs", 2, "--eval_steps", 1000, "--save_steps", 4]
    epoch += KEEP_LAST
    _, one, (facts,) = engine_run("single", 1, "full", *epoch, batch=32)
    assert batch_sizes(facts) == [32, 32, 32, 32, 32, 7] * 2
    _, two, seen = engine_run(config, 2, "full", *epoch, batch=32)
    # In each epoch 25 pairs come a second time.
    assert [batch_sizes(facts) for facts in seen] == [[16] * 12] * 2
    assert weight_difference(two, one).largest <= ABSOLUTE
    if config == "ddp":
        resume = ["--resume", two / "checkpoint-4"]
        _, resumed, seen = engine_run(config, 2, "full", *epoch, *resume, batch=32)
        assert [batch_sizes(facts) for facts in seen] == [[16] * 4] * 2
        assert weight_difference(resumed, two).largest == 0


def batch_sizes(facts: dict) -> list[int]:
    """The sizes of the batches that a process saw, step by step."""
    return [len(batch) for batch in facts["pairs"]]


@pytest.mark.parametrize("config", ONE_ENGINE)
def test_all_processes_stop_early_and_choose_the_best_alike(config, engine_run):
    steep = ["--max_steps", 12, "--eval_steps", 1, "--save_steps", 1]
    steep += ["--early_stopping_patience", 2, "--metric_for_best_model", "loss"]
    steep += ["--greater_is_better", "false", "--learning_rate", 0.01]
    steep += ["--lr_scheduler_type", "constant"]
    _, one, (facts,) = engine_run("single", 1, "full", *steep)
    assert 3 <= facts["steps"] < 12 and facts["best"] == f"checkpoint-{facts['steps'] - 2}"
    _, two, seen = engine_run(config, 2, "full", *steep)
    assert [(f["steps"], f["best"]) for f in seen] == [(facts["steps"], facts["best"])] * 2
    loss, expected = (read_json(out / "manifest.json")["validation"]["loss"] for out in (two, one))
    assert loss == pytest.approx(expected, abs=1e-5)


def test_four_bit_gradients_survive_an_evaluation_on_a_cpu(standin):
    """Evaluating on a CPU leaves 4-bit layers as they are.

    bitsandbytes would pack them there, and the packed product passes no gradient on.
    """
    from bitsandbytes.functional import has_avx512bf16
    from transformers import BitsAndBytesConfig

    from reward.model.build import build_reward_model

    if not has_avx512bf16():
        pytest.skip("bitsandbytes packs on CPUs with AVX512-BF16 alone")
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = build_reward_model(
        str(standin("llama3")), dtype="bfloat16", quantization_config=four_bit
    )
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(1, 7, model.config.hidden_size, generator=generator).bfloat16()
    attention_mask = torch.ones(1, 7)

    def gradient():
        leaf = embeddings.clone().requires_grad_()
        output = model.train()(inputs_embeds=leaf, attention_mask=attention_mask)
        output.logits.sum().backward()
        return leaf.grad

    before = gradient()
    with torch.no_grad():
        model.eval()(inputs_embeds=embeddings, attention_mask=attention_mask)
    assert before.abs().max() > 0
    torch.testing.assert_close(gradient(), before, rtol=0, atol=0)
