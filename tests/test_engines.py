"""The shipped engine configs really run, two processes on a CPU, and give what one process gives; and a run that is
interrupted, torn or not finite leaves what it promises.

An exit status of 0 proves nothing here (accelerate falls back to fewer processes or another engine in silence): each engine
test looks at the world size, the distributed type and the wrapped class inside the run.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPO, run_script, write_rows
from safetensors.torch import load_file
from standins import hh_rows

from rm.checkpoint import checkpoint_fault, hash_files

TRAIN_ROWS, TEST_ROWS = 203, 21
RECIPE = "recipes/qwen-0.5b.yaml"
LAUNCH = ["-m", "accelerate.commands.launch"]  # `accelerate launch`, of this interpreter
CPU = {  # threads only cost on models so small
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip

# train_rm.py, which also writes what each process saw of its engine to $SEEN/RANK.json.
DRIVER = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
if os.environ.get("FSDP_ON_CPU"):  # accelerate leaves FSDP out on a machine without GPUs, and runs DDP
    import accelerate.state as state

    made = state.AcceleratorState.__init__

    def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if self.distributed_type == state.DistributedType.MULTI_CPU and fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = state.DistributedType.FSDP
            state.PartialState._shared_state["distributed_type"] = state.DistributedType.FSDP

    state.AcceleratorState.__init__ = with_fsdp

import train_rm
from rm.trainer import PairTrainer

train = PairTrainer.train

def held(weight):
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    return weight.ds_tensor.numel() if hasattr(weight, "ds_tensor") else local.numel()

def seen(self, *args, **kwargs):
    result = train(self, *args, **kwargs)
    engine, accelerator = self.model_wrapped, self.accelerator
    weights = list(self.model.parameters())
    facts = {
        "num_processes": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "wrapped": type(engine).__name__,
        "zero_stage": engine.zero_optimization_stage() if hasattr(engine, "zero_optimization_stage") else None,
        "held": sum(held(w) for w in weights),
        "batches": self.packing,
        "whole": sum(getattr(w, "ds_numel", w.numel()) for w in weights),
    }
    Path(os.environ["SEEN"], f"{accelerator.process_index}.json").write_text(json.dumps(facts))
    return result

PairTrainer.train = seen
if __name__ == "__main__":
    train_rm.leave(train_rm.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def options(standin, tmp_path_factory) -> list:
    """The recipe for one GPU, pointed at a stand-in and at local pairs; steps are short, and large enough to matter."""
    data = tmp_path_factory.mktemp("pairs")
    write_rows(data / "train.jsonl", hh_rows(TRAIN_ROWS, seed=1))
    write_rows(data / "test.jsonl", hh_rows(TEST_ROWS, seed=2))
    return [
        *["--recipe", RECIPE, "--model_name_or_path", standin("qwen"), "--datasets", f"[{{path: {data}}}]"],
        *["--max_length", 512, "--validation_fraction", 0.15, "--learning_rate", 1e-3, "--use_cpu", "true"],
    ]


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------------------------- the engines

SHORT = "--max_steps 4 --eval_steps 2 --save_steps 2 --logging_steps 1 --gradient_accumulation_steps 2".split()


@pytest.fixture(scope="module")
def engine_run(options, tmp_path_factory):
    """`engine_run("ddp", 2, *options)` -> (finished process, output folder, what each process saw)."""
    folder = tmp_path_factory.mktemp("engines")
    driver = folder / "driver.py"
    driver.write_text(DRIVER, encoding="utf-8")

    def run(config: str, processes: int, *more):
        name = "-".join([config, *(str(option).strip("-") for option in more)])
        seen, out = folder / f"{name}-seen", folder / name
        seen.mkdir()
        done = run_script(
            *[*LAUNCH, "--config_file", f"accelerate_configs/{config}.yaml", "--num_processes", processes],
            *["--main_process_port", free_port()],  # another run on this machine may hold the default one
            *[driver, *options, *SHORT, "--output_dir", out],
            *["--per_device_train_batch_size", 8 // processes, "--per_device_eval_batch_size", 5, *more],
            env={
                **CPU, "FSDP_ON_CPU": "1" if config == "fsdp2" else "", "SEEN": str(seen),
                "TORCH_EXTENSIONS_DIR": extensions_folder(),
            },
            timeout=600,
        )  # fmt: skip
        return done, out, [read_json(path) for path in sorted(seen.iterdir())]

    return run


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def extensions_folder() -> str:
    """Where DeepSpeed's compiled operators are kept from one run of the tests to the next."""
    return os.environ.get("TORCH_EXTENSIONS_DIR") or str(Path.home() / ".cache" / "torch_extensions")


@pytest.fixture(scope="module")
def one_process(engine_run):
    """One process that sees in each step the pairs that two see together."""
    done, out, seen = engine_run("single", 1)
    assert [(facts["num_processes"], facts["distributed_type"]) for facts in seen] == [(1, "NO")]
    return done, out


def assert_equals_one_process(two, one) -> None:
    (done, out, _), (done_one, out_one) = two, one
    # -- the weights, which the run moved by far more than they may differ
    found, expected = (load_file(folder / "model.safetensors") for folder in (out, out_one))
    start = load_file(Path(read_json(out / "manifest.json")["base_model"], "model.safetensors"))
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in expected.items()}
    assert max((expected[key] - start[key]).abs().max().item() for key in expected if key in start) > 1e-3
    apart = {key: (found[key] - expected[key]).abs().max().item() for key in expected}
    assert max(apart.values()) <= 5e-6, {key: value for key, value in apart.items() if value > 5e-6}
    # -- the numbers: every pair once, although the last batch is uneven
    manifest, manifest_one = (read_json(folder / "manifest.json") for folder in (out, out_one))
    ledger = read_json(out / "ledger.json")
    assert ledger == read_json(out_one / "ledger.json")
    pairs = ledger["validation"]["kept"]
    assert pairs % 10 not in (0, 5)  # 2 processes x 5 pairs
    metrics, metrics_one = manifest["validation"], manifest_one["validation"]
    assert metrics["n"] == metrics_one["n"] == pairs
    for key in ("loss", "accuracy", "tie_rate", "margin", "reward_std"):
        assert metrics[key] == pytest.approx(metrics_one[key], abs=1e-6), key
    assert manifest["fingerprints"] == manifest_one["fingerprints"]
    assert manifest["verified"]["max_difference"] <= manifest["verified"]["tolerance"] == 1e-4
    # -- what is printed: once, although two processes ran
    printed, printed_one = f"\n{done.stdout}", f"\n{done_one.stdout}"
    assert "\nmachine: CPU, 1 threads; float32" in printed and ", 2 processes\n" in printed
    for start_of_line, times in (
        ("machine: ", 1), ("data:\n", 1), ("{'loss'", 4), ("{'eval_loss'", 2), ("{'train_runtime'", 1), ("saved ", 1),
        ("next: ", 1),
    ):  # fmt: skip
        assert printed.count(f"\n{start_of_line}") == printed_one.count(f"\n{start_of_line}") == times, start_of_line


PACKED = "each shared prefix computed once, no padding"
BUDGET = ("--token_budget", 150)  # of about 300 tokens: processes cut their batches into unequal numbers


def test_ddp(engine_run, one_process):
    done, out, seen = engine_run("ddp", 2)
    assert [facts["num_processes"] for facts in seen] == [2, 2]
    # accelerate's name for DDP over gloo; with GPUs the same file gives MULTI_GPU
    assert [(facts["distributed_type"], facts["wrapped"]) for facts in seen] == [
        ("MULTI_CPU", "DistributedDataParallel")
    ] * 2
    assert all(facts["batches"].startswith(PACKED) for facts in seen)
    assert done.stdout.count(f"batches: {PACKED}") == 1
    assert_equals_one_process((done, out, seen), one_process)


def test_padded_gives_what_packed_does(engine_run, one_process):
    done, out, seen = engine_run("single", 1, "--prefix_sharing", "off")
    assert [facts["batches"] for facts in seen] == ["padded batches, because prefix_sharing is off"]
    found, expected = load_file(out / "model.safetensors"), load_file(one_process[1] / "model.safetensors")
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], atol=2e-5, rtol=0)


@pytest.mark.slow  # DeepSpeed compiles an operator once, which takes a minute or two
@pytest.mark.parametrize(
    ("config", "kind", "wrapped", "zero_stage"),
    [
        ("ddp", "MULTI_CPU", "DistributedDataParallel", None),
        ("fsdp2", "FSDP", "FSDPQwen2ForSequenceClassification", None),
        ("zero2", "DEEPSPEED", "DeepSpeedEngine", 2),
        ("zero3", "DEEPSPEED", "DeepSpeedEngine", 3),
    ],
)
def test_engines_with_a_token_budget(config, kind, wrapped, zero_stage, engine_run, one_process):
    if zero_stage and shutil.which("g++") is None:
        pytest.skip("DeepSpeed compiles its operators: g++ is needed")
    done, out, seen = engine_run(config, 2, *BUDGET)
    assert [(facts["num_processes"], facts["distributed_type"]) for facts in seen] == [(2, kind)] * 2
    assert [(facts["wrapped"], facts["zero_stage"]) for facts in seen] == [(wrapped, zero_stage)] * 2
    for facts in seen:  # each holds its share, and a little padding
        assert 0 < facts["held"] <= (0.6 if config in ("zero3", "fsdp2") else 1) * facts["whole"]
        assert facts["batches"].startswith(PACKED)
    assert_equals_one_process((done, out, seen), one_process)


def test_four_bit_gradients_survive_an_evaluation_on_a_cpu(standin):
    """bitsandbytes would pack the layers at the evaluation, and the packed product passes no gradient on."""
    from bitsandbytes.functional import has_avx512bf16
    from transformers import BitsAndBytesConfig

    from rm.reward_model import build_reward_model

    if not has_avx512bf16():
        pytest.skip("bitsandbytes packs on CPUs with AVX512-BF16 alone")
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = build_reward_model(str(standin("llama3")), dtype="bfloat16", quantization_config=four_bit)
    embeddings = torch.randn(1, 7, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()

    def gradient():
        leaf = embeddings.clone().requires_grad_()
        model.train()(inputs_embeds=leaf, attention_mask=torch.ones(1, 7)).logits.sum().backward()
        return leaf.grad

    before = gradient()
    with torch.no_grad():
        model.eval()(inputs_embeds=embeddings, attention_mask=torch.ones(1, 7))
    assert before.abs().max() > 0
    torch.testing.assert_close(gradient(), before, rtol=0, atol=0)


# -------------------------------------------------------------------------------------- interrupted, torn, not finite

LONG = "--max_steps 40 --eval_steps 20 --save_steps 20 --logging_steps 1 --gradient_accumulation_steps 1".split()
SIGNAL_AFTER = 23  # steps: past the first checkpoint, and well before the next evaluation


@pytest.fixture(scope="module")
def uninterrupted(options, tmp_path_factory) -> Path:
    """The folder of a run that nothing disturbs."""
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    run_script("train_rm.py", *options, *LONG, "--output_dir", out, env=CPU)
    return out


def interrupt(command: list, out: Path) -> subprocess.Popen:
    """Start a run, send SIGTERM to the started process after a few steps, and wait until that one is gone."""
    log = open(out.parent / "stderr.txt", "w+", encoding="utf-8")  # a pipe that nobody reads would fill up
    process = subprocess.Popen(
        [sys.executable, *map(str, command), "--output_dir", str(out)], cwd=REPO,
        env={**os.environ, **CPU, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=log, text=True,
    )  # fmt: skip
    process.log, process.children = log, []
    steps = 0
    for line in process.stdout:
        steps += line.startswith("{'loss'")
        if steps == SIGNAL_AFTER:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            process.children = [int(pid) for pid in children.read_text().split()] if children.exists() else []
            process.send_signal(signal.SIGTERM)
            break
    try:
        process.wait(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process


def said(process: subprocess.Popen) -> str:
    process.log.seek(0)
    return process.log.read()


def assert_sealed_and_unfinished(out: Path) -> Path:
    """One checkpoint past the first, whole; no final model beside it. Returns it."""
    folders = sorted((int(path.name.split("-")[1]), path) for path in out.glob("checkpoint-*"))
    assert len(folders) == 2 and folders[0][0] == 20 and SIGNAL_AFTER <= folders[1][0] < 40, folders
    newest = folders[1][1]
    assert checkpoint_fault(newest) is None
    assert read_json(newest / "manifest.json")["step"] == folders[1][0]
    assert [path.name for path in out.iterdir() if not path.name.startswith("checkpoint-")] == []
    return newest


def assert_same_weights(out: Path, expected: Path) -> None:
    found, expected = load_file(out / "model.safetensors"), load_file(expected / "model.safetensors")
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


@pytest.mark.slow
def test_interrupted_run_goes_on_bit_for_bit(options, uninterrupted, tmp_path):
    out, torn = tmp_path / "out", tmp_path / "torn" / "out"
    command = ["train_rm.py", *options, *LONG]
    process = interrupt(command, out)
    assert process.returncode == 75, said(process)
    assert "SIGTERM: finishing this step" in said(process)
    newest = assert_sealed_and_unfinished(out)
    assert f"interrupted at step {read_json(newest / 'manifest.json')['step']}; go on with" in said(process)
    shutil.copytree(out, torn)

    # -- as it is: from the newest
    done = run_script(*command, "--output_dir", out, "--resume", "auto", env=CPU)
    assert f"resume: from {newest}\n" in done.stdout
    assert_same_weights(out, uninterrupted)
    manifest, expected = read_json(out / "manifest.json"), read_json(uninterrupted / "manifest.json")
    for key in ("loss", "accuracy", "tie_rate", "n", "margin"):
        assert manifest["validation"][key] == expected["validation"][key]

    # -- torn: the newest has a cut file, a newer one no manifest; from the last good one, and a line about each other
    cut = torn / newest.name / "optimizer.pt"
    cut.write_bytes(cut.read_bytes()[:-200])
    shutil.copytree(torn / newest.name, torn / "checkpoint-39")
    (torn / "checkpoint-39" / "manifest.json").unlink()
    done = run_script(*command, "--output_dir", torn, "--resume", "auto", env=CPU)
    assert [line for line in done.stdout.splitlines() if line.startswith("resume: ")] == [
        f"resume: not from {torn / 'checkpoint-39'}: no manifest.json, so saving it was interrupted",
        f"resume: not from {torn / newest.name}: optimizer.pt missing or changed since it was saved",
        f"resume: from {torn / 'checkpoint-20'}",
    ]
    assert_same_weights(torn, uninterrupted)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_sigterm_to_the_launcher_reaches_the_run(options, tmp_path):
    """accelerate's launcher dies of SIGTERM and tells its one child nothing; the child writes its checkpoint all the same."""
    out = tmp_path / "out"
    process = interrupt([*LAUNCH, "train_rm.py", *options, *LONG], out)
    assert process.returncode == -signal.SIGTERM
    (child,) = process.children
    deadline = time.monotonic() + 30  # what schedulers grant
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not Path(f"/proc/{child}").exists(), said(process)
    assert_sealed_and_unfinished(out)
    assert "interrupted at step" in said(process)


def test_not_finite_stops_and_leaves_the_earlier_model(options, uninterrupted, tmp_path):
    out = shutil.copytree(uninterrupted, tmp_path / "out")
    before = hash_files(out)
    assert "model.safetensors" in before
    done = run_script(
        *["train_rm.py", *options, *LONG, "--output_dir", out, "--overwrite"],
        *["--learning_rate", 1e30, "--lr_scheduler_type", "constant", "--save_steps", 1, "--eval_steps", 1],
        env=CPU, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr[-3000:]
    assert "not finite at step" in done.stderr and "Traceback" not in done.stderr
    assert hash_files(out) == before
    assert read_json(out / "manifest.json") == read_json(uninterrupted / "manifest.json")
    for folder in out.glob("checkpoint-*"):
        for key, value in load_file(folder / "model.safetensors").items():
            assert torch.isfinite(value).all(), (folder.name, key)
