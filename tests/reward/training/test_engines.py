"""The shipped engine configs really run, two processes on a CPU, and give what one process gives, method by method.

Each test looks at the world size, the distributed type, the wrapped class and the saved artifact: accelerate falls back to
fewer processes or to another engine in silence, and exits 0. $ENGINES_TABLE names a file that gets the differences, as
docs/launch.md has them.
"""

import itertools
import os
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

from reward.checkpoint.golden import read_golden

# Every test here but the last launches an engine.
pytestmark = pytest.mark.slow

LORA = "--use_peft true --lora_r 4 --lora_alpha 8 --lora_target_modules all-linear".split()
NF4 = "--load_in_4bit true --bnb_4bit_quant_type nf4 --use_bnb_nested_quant true --dtype bfloat16".split()
SHARDED_NF4 = [
    "--bnb_4bit_quant_storage",
    "bfloat16",
]  # FSDP2 shares out floating-point tensors only
KEEP_LAST = "--load_best_model_at_end false --early_stopping_patience null".split()
METHODS = {  # stand-in, options; all accumulate over two batches
    "full": ("qwen", []),
    "padded, checkpointing": (
        "qwen",
        ["--prefix_sharing", "off", "--activation_checkpointing", "true"],
    ),
    "last layers": ("qwen", ["--train_last_layers", 1]),
    "LoRA": ("qwen", LORA),
    # Larger tensors than the other stand-in has: 4-bit layers and 8-bit states need 4,096 elements.
    "QLoRA": ("llama3", [*LORA, *NF4, *KEEP_LAST]),
    "8-bit Adam": ("llama3", ["--optim", "adamw_bnb_8bit"]),
}
REFUSED = {  # before anything is loaded: tests/reward/training/test_launch.py
    ("fsdp2", "8-bit Adam"), ("zero3-offload", "8-bit Adam"),
}  # fmt: skip
# How far the weights may be from one process's: absolutely, or as a share of how far training moved them. Half precision rounds
# every step; 8-bit states are rounded in blocks, which ZeRO cuts across tensors.
ABSOLUTE, SHARE = (
    5e-6,
    {("QLoRA", "all"): 0.15, ("8-bit Adam", "ddp"): 2e-3, ("8-bit Adam", "all"): 0.1},
)

SHORT = "--max_steps 4 --eval_steps 2 --save_steps 2 --logging_steps 1 --gradient_accumulation_steps 2".split()
SHORT += "--activation_checkpointing false".split()
BUDGET = (
    "--token_budget",
    150,
)  # of about 300 tokens: processes cut their batches into unequal numbers


@pytest.fixture(scope="module")
def command_line(hh_options, standin, tmp_path_factory):
    """`command_line(config, processes, method, *options)` -> (output folder, train_rm.py's words)."""
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
        return out, line

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
    """Differences by method and config, written down as docs/launch.md has them."""
    found = dict.fromkeys(((method, config) for config, method in REFUSED), "-")
    yield found
    if os.environ.get("ENGINES_TABLE"):
        lines = [f"| | {' | '.join(ENGINES)} |", "|---" * (len(ENGINES) + 1) + "|"]
        for method in METHODS:
            lines.append(
                f"| {method} | {' | '.join(found.get((method, config), '') for config in ENGINES)} |"
            )
        Path(os.environ["ENGINES_TABLE"]).write_text("\n".join(lines) + "\n", encoding="utf-8")


def trained_file(folder: Path) -> Path:
    adapter = folder / "adapter_model.safetensors"
    return adapter if adapter.exists() else folder / "model.safetensors"


def apart(out: Path, expected: Path) -> tuple[float, float]:
    """The largest difference of two runs' weights, and the norm of all as a share of how far the second moved."""
    found, one = load_file(trained_file(out)), load_file(trained_file(expected))
    assert {key: value.shape for key, value in found.items()} == {
        key: value.shape for key, value in one.items()
    }
    base = Path(read_json(out / "manifest.json")["base_model"], "model.safetensors")
    start = {} if trained_file(out).name.startswith("adapter") else load_file(base)
    # Of an adapter the B matrices, which start at zero, say how far it moved; the head does not, it starts anywhere.
    moved = [one[key] - start[key] for key in one if key in start] or [
        one[key] for key in one if "lora_B" in key
    ]
    assert max(step.abs().max().item() for step in moved) > 1e-3
    differences = [found[key].double() - one[key].double() for key in one]
    norm = sum(step.double().square().sum().item() for step in moved) ** 0.5
    return (
        max(step.abs().max().item() for step in differences),
        sum(step.square().sum().item() for step in differences) ** 0.5 / norm,
    )


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
    kind, wrapped, zero_stage, share = ENGINES[config]
    budget = BUDGET if method == "full" else ()
    printed, out, seen = engine_run(config, 2, method, *budget)
    printed_one, out_one, (one,) = one_process(method)

    # -- the engine that really ran
    assert [(facts["num_processes"], facts["distributed_type"]) for facts in seen] == [
        (2, kind)
    ] * 2
    body = "Peft" * ("LoRA" in method)
    body += ("" if body else {"qwen": "Qwen2", "llama3": "Llama"}[METHODS[method][0]]) + (
        "Model" if body else ""
    )
    assert [(f["wrapped"], f["zero_stage"]) for f in seen] == [
        (wrapped.format(body), zero_stage)
    ] * 2
    for facts in seen:  # each holds its share, and a little padding
        assert 0 < facts["held"] <= (share + 0.1) * facts["whole"]
        assert facts["batches"].startswith("padded batches" if "padded" in method else PACKED)
        assert (facts["checkpointing"], facts["trained"]) == (
            "checkpointing" in method,
            one["trained"],
        )
    if config != "ddp" and method not in ("QLoRA", "8-bit Adam"):
        assert all(facts["optimizer"] <= 0.55 * one["optimizer"] for facts in seen)

    # -- the weights, which the run moved by far more than they may differ
    absolute, relative = apart(out, out_one)
    limit = SHARE.get((method, config)) or SHARE.get((method, "all"))
    table[method, config] = (
        f"{absolute:.0e}" if limit is None else f"{100 * relative:.2g}% of the way"
    )
    assert (absolute <= ABSOLUTE) if limit is None else (relative <= limit), (absolute, relative)

    # -- the numbers: every pair once, although the last batch is uneven
    manifest, manifest_one = (read_json(folder / "manifest.json") for folder in (out, out_one))
    ledger = read_json(out / "ledger.json")
    assert ledger == read_json(out_one / "ledger.json")
    assert manifest["fingerprints"] == manifest_one["fingerprints"]
    pairs = ledger["validation"]["kept"]
    assert pairs % 10 not in (0, 5)  # 2 processes x 5 pairs
    metrics, metrics_one = manifest["validation"], manifest_one["validation"]
    assert metrics["n"] == metrics_one["n"] == pairs
    for key in ("loss", "accuracy", "tie_rate", "margin", "reward_std") if limit is None else ():
        assert metrics[key] == pytest.approx(metrics_one[key], abs=1e-6), key
    verified = manifest["verified"]
    assert verified["max_difference"] <= verified["tolerance"]
    assert (verified["tolerance"] == 1e-4) is (method != "QLoRA")
    rewards, rewards_one = (
        torch.tensor([row["reward"] for row in read_golden(folder)]) for folder in (out, out_one)
    )
    assert (rewards - rewards_one).abs().max() <= (
        1e-4 if limit is None else 0.1 * rewards_one.std()
    )

    # -- the order of the pairs, whose union is one process's; and what all decided alike
    steps = [[sorted(batch) for batch in facts["pairs"]] for facts in seen]
    assert [sorted(a + b) for a, b in zip(*steps, strict=True)] == [
        sorted(batch) for batch in one["pairs"]
    ]
    assert [(f["steps"], f["best"]) for f in seen] == [
        (one["steps"], one["best"])
    ] * 2 or limit is not None

    # -- what is printed: once, although two processes ran
    printed, printed_one = f"\n{printed}", f"\n{printed_one}"
    assert "\nmachine: CPU, 1 threads; " in printed and ", 2 processes\n" in printed
    for start_of_line, times in (
        ("machine: ", 1), ("data:\n", 1), ("batches: ", 1), ("{'loss'", 4), ("{'eval_loss'", 2), ("{'train_runtime'", 1),
        ("saved ", 2 if "LoRA" in method else 1), ("next: ", 1),
    ):  # fmt: skip
        assert (
            printed.count(f"\n{start_of_line}") == printed_one.count(f"\n{start_of_line}") == times
        ), start_of_line


def test_padded_gives_what_packed_does(one_process):
    _, padded, (facts,) = one_process("padded, checkpointing")
    assert facts["batches"] == "padded batches, because prefix_sharing is off"
    _, out, _ = one_process("full")
    found, expected = load_file(padded / "model.safetensors"), load_file(out / "model.safetensors")
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], atol=2e-5, rtol=0)


@pytest.mark.parametrize("config", ONE_ENGINE)
def test_the_end_of_an_epoch_counts_no_pair_twice(config, engine_run):
    """Two processes get batches of equal size, so accelerate fills the last ones up with the epoch's first pairs. Also of
    an epoch that a resumed run finishes, in which accelerate does not say how many are real."""
    epoch = [
        "--max_steps",
        -1,
        "--num_train_epochs",
        2,
        "--eval_steps",
        1000,
        "--save_steps",
        4,
        *KEEP_LAST,
    ]
    _, one, (facts,) = engine_run("single", 1, "full", *epoch, batch=32)
    sizes = [len(batch) for batch in facts["pairs"]]
    assert sizes == [32, 32, 32, 32, 32, 7] * 2
    _, two, seen = engine_run(config, 2, "full", *epoch, batch=32)
    assert [[len(batch) for batch in facts["pairs"]] for facts in seen] == [
        [16] * 12
    ] * 2  # 25 pairs a second time
    assert apart(two, one)[0] <= ABSOLUTE
    if config == "ddp":
        _, resumed, seen = engine_run(
            config, 2, "full", *epoch, "--resume", two / "checkpoint-4", batch=32
        )
        assert [[len(batch) for batch in facts["pairs"]] for facts in seen] == [[16] * 4] * 2
        assert apart(resumed, two)[0] == 0


@pytest.mark.parametrize("config", ONE_ENGINE)
def test_all_processes_stop_early_and_choose_the_best_alike(config, engine_run):
    steep = [
        "--max_steps",
        12,
        "--eval_steps",
        1,
        "--save_steps",
        1,
        "--early_stopping_patience",
        2,
    ]
    steep += [
        "--metric_for_best_model",
        "loss",
        "--greater_is_better",
        "false",
        "--learning_rate",
        0.01,
    ]
    steep += ["--lr_scheduler_type", "constant"]
    _, one, (facts,) = engine_run("single", 1, "full", *steep)
    assert 3 <= facts["steps"] < 12 and facts["best"] == f"checkpoint-{facts['steps'] - 2}"
    _, two, seen = engine_run(config, 2, "full", *steep)
    assert [(f["steps"], f["best"]) for f in seen] == [(facts["steps"], facts["best"])] * 2
    found, expected = (read_json(folder / "manifest.json")["validation"] for folder in (two, one))
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_four_bit_gradients_survive_an_evaluation_on_a_cpu(standin):
    """bitsandbytes would pack the layers at the evaluation, and the packed product passes no gradient on."""
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
    embeddings = torch.randn(
        1, 7, model.config.hidden_size, generator=torch.Generator().manual_seed(0)
    ).bfloat16()

    def gradient():
        leaf = embeddings.clone().requires_grad_()
        model.train()(inputs_embeds=leaf, attention_mask=torch.ones(1, 7)).logits.sum().backward()
        return leaf.grad

    before = gradient()
    with torch.no_grad():
        model.eval()(inputs_embeds=embeddings, attention_mask=torch.ones(1, 7))
    assert before.abs().max() > 0
    torch.testing.assert_close(gradient(), before, rtol=0, atol=0)
