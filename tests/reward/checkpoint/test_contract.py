"""The contract: a saved model is verified in a fresh process, then put in place."""

import hashlib
import json
import os
import shutil
import sys
from subprocess import CompletedProcess

import pytest
import torch
from safetensors.torch import load_file, save_file

from reward.checkpoint import contract, fresh_process
from reward.checkpoint import verify as verify_module
from reward.checkpoint.contract import put_in_place, verify_saved_model
from reward.checkpoint.fresh_process import CheckpointError
from reward.checkpoint.golden import write_golden
from reward.checkpoint.manifest import read_manifest, seal
from reward.data.encoding import encode
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.heads import rewards_from_logits

torch.set_num_threads(1)

PROMPT = [{"role": "user", "content": "what is the best way to make tea?"}]
ANSWERS = [
    [{"role": "assistant", "content": text}]
    for text in ("start with some water", "sorry", "that depends")
]
# Line separators that JSON writes as they are.
SEPARATED = [{"role": "assistant", "content": "some\u2028water\x85please"}]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def finished(standin, tmp_path):
    """(folder, rewards): a model with golden texts and a manifest, as before verification."""
    torch.manual_seed(1)
    model = build_reward_model(str(standin("qwen")), head_init="normal").eval()
    tokenizer = build_tokenizer(str(standin("qwen")), model.config)
    model.config.pad_token_id = tokenizer.pad_token_id
    folder = tmp_path / "out" / "unverified"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    texts, rewards = [], []
    for answer in [*ANSWERS, SEPARATED]:
        ids = encode(tokenizer, PROMPT, answer)
        texts.append({"text": {"prompt": PROMPT, "completion": answer, "tools": None}, "ids": ids})
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits
        rewards.append(rewards_from_logits(logits).item())
    write_golden(folder, texts)
    seal(folder, {"format_version": 1, "dtype": "float32", "quantization": None})
    return folder, rewards


# --- Verification ---------------------------------------------------------------------------------

LAUNCHED = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29511",
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_MIXED_PRECISION": "no",
    "FSDP_VERSION": "2",
    "TORCHELASTIC_RUN_ID": "none",
    "GROUP_RANK": "0",
    "ROLE_RANK": "0",
}


def test_verify_passes_on_what_was_saved_even_inside_a_distributed_job(finished, monkeypatch):
    """A child with these variables would wait for rank 1 for ever, were they not taken from it."""
    folder, rewards = finished
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fresh_process, "CHILD_TIMEOUT", 100)
    verified = verify_saved_model(folder, rewards, tolerance_of_std=0.0)
    assert verified.rewards == pytest.approx(rewards, abs=1e-4)
    assert verified.max_difference <= 1e-4 == verified.tolerance


CHILD = """
import json, os, sys
from accelerate import PartialState
from pathlib import Path

assert PartialState().num_processes == 1
launchers = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "ACCELERATE_", "FSDP_")
left = [key for key in os.environ if key.startswith(launchers)]
print(json.dumps({"rewards": [len(left), float(os.environ["KEPT"])]}))
"""


def child_instead(monkeypatch, tmp_path, code: str) -> None:
    """Let the child of verify_saved_model run `code`.

    A stand-in for the interpreter ignores `-m reward.checkpoint.verify FOLDER`.
    """
    (tmp_path / "child.py").write_text(code)
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path / "child.py"}"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))


def test_the_environment_of_the_child_is_scrubbed(monkeypatch, tmp_path):
    child_instead(monkeypatch, tmp_path, CHILD)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_USE_CPU", "FSDP_VERSION"):
        monkeypatch.setenv(name, LAUNCHED[name])
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29512")
    monkeypatch.setenv("KEPT", "5")
    monkeypatch.setattr(fresh_process, "CHILD_TIMEOUT", 60)
    assert verify_saved_model(tmp_path, [0.0, 5.0], tolerance_of_std=0.0).rewards == [0, 5.0]


def test_a_child_that_hangs_is_a_failure(monkeypatch, tmp_path):
    child_instead(monkeypatch, tmp_path, "import time; time.sleep(60)")
    monkeypatch.setattr(fresh_process, "CHILD_TIMEOUT", 0.5)
    with pytest.raises(CheckpointError, match="did not finish loading it in 0.5 s"):
        verify_saved_model(tmp_path, [0.0, 1.0], tolerance_of_std=0.0)


@pytest.mark.parametrize(
    ("printed", "tolerance_of_std", "passes"),
    [
        ([1.0, 3.0], 0.0, True),
        ([1.0, 3.001], 0.0, False),
        ([1.0, 3.07], 0.05, True),  # the standard deviation of 1 and 3 is 1.414; 5% are .0707
        ([1.0, 3.08], 0.05, False),
        ([1.0, float("nan")], 0.05, False),
    ],
)
def test_tolerance(printed, tolerance_of_std, passes, monkeypatch, tmp_path):
    def run(command, **options):
        return CompletedProcess(command, 0, stdout=json.dumps({"rewards": printed}), stderr="")

    monkeypatch.setattr(fresh_process.subprocess, "run", run)
    if passes:
        verify_saved_model(tmp_path, [1.0, 3.0], tolerance_of_std)
    else:
        with pytest.raises(CheckpointError, match="gives other rewards"):
            verify_saved_model(tmp_path, [1.0, 3.0], tolerance_of_std)


def alter_a_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][:4] += 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop_the_head(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def another_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("You are", "You were"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (alter_a_weight, "gives other rewards"),
        (drop_the_head, "gives other rewards"),
        (another_template, "golden text 1: the saved tokenizer encodes it differently"),
    ],
)
def test_verify_fails(damage, message, finished, monkeypatch):
    folder, rewards = finished
    damage(folder)

    def run(command, **options):
        """The child's own code, in this process: loading is the point, and a process costs 10 s."""
        lines = []
        monkeypatch.setattr(
            "builtins.print", lambda *words, **kw: lines.append(" ".join(map(str, words)))
        )
        try:
            verify_module.main(command[-1])
        except SystemExit as error:
            return CompletedProcess(command, 1, stdout="", stderr=str(error))
        finally:
            monkeypatch.undo()
        return CompletedProcess(command, 0, stdout="\n".join(lines), stderr="")

    monkeypatch.setattr(fresh_process.subprocess, "run", run)
    with pytest.raises(CheckpointError, match=message):
        verify_saved_model(folder, rewards, tolerance_of_std=0.0)


def test_a_verification_that_the_system_kills_is_said(tmp_path, monkeypatch):
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(fresh_process.sys, "executable", str(killed))
    with pytest.raises(CheckpointError, match="SIGKILL ended the fresh process that loads it, usu"):
        fresh_process.run_in_fresh_process("reward.checkpoint.verify", tmp_path)


# --- The final place ------------------------------------------------------------------------------

EARLIER_MODEL = (
    "audit/report.html",
    "merged/model.safetensors",
    "adapter_model.safetensors",
    "adapter_config.json",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "manifest.json",
    "checkpoint-2/model.safetensors",
    "notes.txt",
)


def test_put_in_place_replaces_an_earlier_model(finished, tmp_path):
    folder, out = finished[0], tmp_path / "out"
    for name in EARLIER_MODEL:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("old")
    staged = {path.name for path in folder.iterdir()}
    put_in_place(folder, out)
    assert {path.name for path in out.iterdir()} == staged | {"checkpoint-2", "notes.txt"}
    assert (out / "checkpoint-2" / "model.safetensors").read_text() == "old"
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert read_manifest(out)["files"]["model.safetensors"] == digest


def test_put_in_place_removes_what_only_the_earlier_model_had(finished, tmp_path):
    """A config.json beside an adapter, say: score.py refuses what no manifest lists."""
    out = tmp_path / "out"
    (out / "checkpoint-2").mkdir(parents=True)
    kept = ("notes.txt", "checkpoint-2/config.json", "../mine.txt")
    for name in ("added_tokens.json", "modeling_own.py", *kept):
        (out / name).write_text("old")
    files = {"added_tokens.json": "", "modeling_own.py": "", "gone.json": "", "../mine.txt": ""}
    (out / "manifest.json").write_text(json.dumps({"files": files}))
    put_in_place(finished[0], out)
    assert not (out / "added_tokens.json").exists() and not (out / "modeling_own.py").exists()
    assert [name for name in kept if not (out / name).exists()] == []


def test_the_same_model_again_keeps_its_audits_and_its_card(finished, tmp_path):
    """A scheduler resumes a run that has ended; another model's audits go, and are named."""
    again, out = shutil.copytree(finished[0], tmp_path / "again"), tmp_path / "out"
    other = shutil.copytree(finished[0], tmp_path / "other")
    put_in_place(finished[0], out)
    (out / "README.md").write_text("audited")
    for name in ("audit", "audit-pairs"):
        (out / name).mkdir()
        (out / name / "report.html").write_text("a report")
    (again / "recipe.yaml").write_text("save_steps: 7")
    assert put_in_place(again, out) == []
    assert (out / "README.md").read_text() == "audited" and (out / "audit-pairs").is_dir()
    assert (out / "recipe.yaml").read_text() == "save_steps: 7"

    (other / "golden.jsonl").write_text("{}")
    seal(other, read_manifest(other))
    assert sorted(put_in_place(other, out)) == [str(out / "audit"), str(out / "audit-pairs")]
    assert not (out / "audit").exists() and not (out / "audit-pairs").exists()


def test_put_in_place_writes_the_manifest_last(finished, tmp_path, monkeypatch):
    moved = []
    replace = os.replace

    def noting_replace(source, target):
        moved.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(contract.os, "replace", noting_replace)
    put_in_place(finished[0], tmp_path / "out")
    assert moved[-1] == "manifest.json" and len(moved) > 5
