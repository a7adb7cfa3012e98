"""The checkpoint contract: what is written, what counts as damage, and that verification can fail."""

import hashlib
import json
import os
import sys
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from standins import hh_rows
from support import run_script, write_rows

from reward.checkpoint import contract, fresh_process
from reward.checkpoint import verify as verify_module
from reward.checkpoint.card import model_card
from reward.checkpoint.contract import put_in_place, verify_saved_model
from reward.checkpoint.fresh_process import CheckpointError
from reward.checkpoint.golden import golden_pairs, golden_texts, read_golden, write_golden
from reward.checkpoint.manifest import Manifest, hash_files, read_manifest, seal
from reward.checkpoint.resume import checkpoint_fault, newest_valid_checkpoint
from reward.data.encoding import encode
from reward.data.files import write_json
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.heads import rewards_from_logits

torch.set_num_threads(1)

PROMPT = [{"role": "user", "content": "what is the best way to make tea?"}]
ANSWERS = [
    [{"role": "assistant", "content": text}]
    for text in ("start with some water", "sorry", "that depends")
]


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
    for answer in ANSWERS:
        ids = encode(tokenizer, PROMPT, answer)
        texts.append({"text": {"prompt": PROMPT, "completion": answer, "tools": None}, "ids": ids})
        with torch.inference_mode():
            rewards.append(rewards_from_logits(model(input_ids=torch.tensor([ids])).logits).item())
    write_golden(folder, texts)
    seal(folder, {"format_version": 1, "dtype": "float32", "quantization": None})
    return folder, rewards


# --------------------------------------------------------------------------------------------------------- verification


def test_verify_passes_on_what_was_saved_even_inside_a_distributed_job(finished, monkeypatch):
    """A child with these variables would wait for rank 1 for ever, were they not taken from it."""
    folder, rewards = finished
    for name, value in {
        "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511", "ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no",
        "FSDP_VERSION": "2", "TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0", "ROLE_RANK": "0",
    }.items():  # fmt: skip
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
left = [k for k in os.environ if k.startswith(("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "ACCELERATE_", "FSDP_"))]
print(json.dumps({"rewards": [len(left), float(os.environ["KEPT"])]}))
"""


def child_instead(monkeypatch, tmp_path, code: str) -> None:
    """The child of verify_saved_model runs `code`: a stand-in for the interpreter ignores `-m reward.checkpoint.verify FOLDER`."""
    (tmp_path / "child.py").write_text(code)
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path / "child.py"}"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))


def test_the_environment_of_the_child_is_scrubbed(monkeypatch, tmp_path):
    child_instead(monkeypatch, tmp_path, CHILD)
    job = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29512",
    }
    for name, value in {
        **job,
        "ACCELERATE_USE_CPU": "true",
        "FSDP_VERSION": "2",
        "KEPT": "5",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fresh_process, "CHILD_TIMEOUT", 60)
    assert verify_saved_model(tmp_path, [0.0, 5.0], tolerance_of_std=0.0).rewards == [0, 5.0]


def test_a_child_that_hangs_is_a_failure(monkeypatch, tmp_path):
    child_instead(monkeypatch, tmp_path, "import time; time.sleep(60)")
    monkeypatch.setattr(fresh_process, "CHILD_TIMEOUT", 0.5)
    with pytest.raises(CheckpointError, match="did not finish loading it in 0.5 s"):
        verify_saved_model(tmp_path, [0.0, 1.0], tolerance_of_std=0.0)


@pytest.mark.parametrize(("printed", "tolerance_of_std", "passes"), [
    ([1.0, 3.0], 0.0, True),
    ([1.0, 3.001], 0.0, False),
    ([1.0, 3.07], 0.05, True),  # the standard deviation of 1 and 3 is 1.414; 5% are .0707
    ([1.0, 3.08], 0.05, False),
    ([1.0, float("nan")], 0.05, False),
])  # fmt: skip
def test_tolerance(printed, tolerance_of_std, passes, monkeypatch, tmp_path):
    monkeypatch.setattr(
        fresh_process.subprocess, "run",
        lambda *a, **k: type("Done", (), {"returncode": 0, "stdout": json.dumps({"rewards": printed}), "stderr": ""}),
    )  # fmt: skip
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


@pytest.mark.parametrize(("damage", "message"), [
    (alter_a_weight, "gives other rewards"),
    (drop_the_head, "gives other rewards"),
    (another_template, "golden text 1: the saved tokenizer encodes it differently"),
])  # fmt: skip
def test_verify_fails(damage, message, finished, monkeypatch):
    folder, rewards = finished
    damage(folder)

    # The child's own code, in this process: loading is what it is about, and a process costs ten seconds.
    def run(command, **options):
        lines = []
        monkeypatch.setattr(
            "builtins.print", lambda *words, **kw: lines.append(" ".join(map(str, words)))
        )
        try:
            verify_module.main(command[-1])
        except SystemExit as error:
            return type("Done", (), {"returncode": 1, "stdout": "", "stderr": str(error)})
        finally:
            monkeypatch.undo()
        return type("Done", (), {"returncode": 0, "stdout": "\n".join(lines), "stderr": ""})

    monkeypatch.setattr(fresh_process.subprocess, "run", run)
    with pytest.raises(CheckpointError, match=message):
        verify_saved_model(folder, rewards, tolerance_of_std=0.0)


# ------------------------------------------------------------------------------------------------------------ the place


def test_put_in_place_replaces_an_earlier_model(finished, tmp_path):
    folder, out = finished[0], tmp_path / "out"
    for name in ("audit/report.html", "merged/model.safetensors", "adapter_model.safetensors", "adapter_config.json",
                 "model-00001-of-00002.safetensors", "model.safetensors.index.json", "manifest.json",
                 "checkpoint-2/model.safetensors", "notes.txt"):  # fmt: skip
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("old")
    staged = {path.name for path in folder.iterdir()}
    put_in_place(folder, out)
    assert {path.name for path in out.iterdir()} == staged | {"checkpoint-2", "notes.txt"}
    assert (out / "checkpoint-2" / "model.safetensors").read_text() == "old"
    assert (
        read_manifest(out)["files"]["model.safetensors"]
        == hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    )


def test_put_in_place_writes_the_manifest_last(finished, tmp_path, monkeypatch):
    moved = []
    replace = os.replace
    monkeypatch.setattr(
        contract.os, "replace", lambda a, b: (moved.append(os.path.basename(b)), replace(a, b))
    )
    put_in_place(finished[0], tmp_path / "out")
    assert moved[-1] == "manifest.json" and len(moved) > 5


# -------------------------------------------------------------------------------------------------- damaged checkpoints


def make_checkpoint(folder):
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"):
        (folder / name).write_bytes(os.urandom(5000))
    write_json(folder / "manifest.json", {"files": hash_files(folder)})
    return folder


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def zero_200_bytes(path):
    data = bytearray(path.read_bytes())
    data[2000:2200] = bytes(200)
    path.write_bytes(data)


def without(*names):
    def damage(folder):
        for name in names:
            (folder / name).unlink()
        write_json(folder / "manifest.json", {"files": hash_files(folder)})

    return damage


@pytest.mark.parametrize(("damage", "fault"), [
    (lambda f: (f / "manifest.json").unlink(), "no manifest.json, so saving it was interrupted"),
    (lambda f: zero_200_bytes(f / "manifest.json"), "manifest.json is damaged"),
    (lambda f: (f / "manifest.json").write_text('{"files": '), "manifest.json is damaged"),
    (lambda f: truncate(f / "model.safetensors"), "model.safetensors missing or changed since it was saved"),
    (lambda f: zero_200_bytes(f / "model.safetensors"), "model.safetensors missing or changed since it was saved"),
    (lambda f: zero_200_bytes(f / "optimizer.pt"), "optimizer.pt missing or changed since it was saved"),
    (lambda f: (f / "scheduler.pt").unlink(), "scheduler.pt missing or changed since it was saved"),
    (without("optimizer.pt"), "no optimizer state (save_only_model?), so resuming would start a fresh optimizer"),
    (without("trainer_state.json"), "no trainer_state.json"),
])  # fmt: skip
def test_checkpoint_fault(damage, fault, tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint-4")
    assert checkpoint_fault(folder) is None
    damage(folder)
    assert checkpoint_fault(folder) == fault


def test_the_newest_valid_checkpoint_is_taken_and_the_others_named(tmp_path):
    for step in (2, 10, 9, 100):
        make_checkpoint(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-best").mkdir()
    truncate(tmp_path / "checkpoint-100" / "model.safetensors")
    zero_200_bytes(tmp_path / "checkpoint-10" / "optimizer.pt")
    newest, passed_over = newest_valid_checkpoint(tmp_path)
    assert newest == str(tmp_path / "checkpoint-9")
    assert [line.split(": ")[0] for line in passed_over] == [
        str(tmp_path / "checkpoint-100"), str(tmp_path / "checkpoint-10"),
    ]  # fmt: skip
    assert newest_valid_checkpoint(tmp_path / "nothing") == (None, [])


# ------------------------------------------------------------------------------------------------------ what is written


def test_golden_pairs_are_spread_over_the_split():
    assert golden_pairs(Dataset.from_dict({"i": list(range(100))}))["i"][:] == [
        0,
        14,
        28,
        42,
        57,
        71,
        85,
        99,
    ]
    assert golden_pairs(Dataset.from_dict({"i": [0, 1, 2]}))["i"][:] == [0, 1, 2]
    assert golden_pairs(Dataset.from_dict({"i": [0]}))["i"][:] == [0]


def test_golden_texts_of_a_cut_prompt_are_ids_only():
    row = {
        "prompt": json.dumps(PROMPT),
        "chosen": json.dumps(ANSWERS[0]),
        "rejected": json.dumps(ANSWERS[1]),
    }
    row |= {"chosen_ids": [1, 2], "rejected_ids": [1, 3]}
    kept, cut = (
        golden_texts([row | {"truncated": False}]),
        golden_texts([row | {"truncated": True}]),
    )
    assert [text["ids"] for text in kept] == [text["ids"] for text in cut] == [[1, 2], [1, 3]]
    assert kept[1]["text"] == {"prompt": PROMPT, "completion": ANSWERS[1], "tools": None}
    assert [text["text"] for text in cut] == [None, None]


MANIFEST = Manifest(
    base_model="Qwen/Qwen2.5-0.5B-Instruct",
    base_revision="7ae557604adf67be50417f59c2c2f167def9a775",
    adapter=True,
    trust_remote_code=False,
    quantization=None,
    dtype="float32",
    labels=1,
    max_length=None,
    overlong="drop",
    transcript="messages",
    encoder={},
    subsets=[],
    data=["Anthropic/hh-rlhf harmless-base"],
    fingerprints={},
    versions={},
    device="CPU, 2 threads, 1 process(es)",
    precision="float32",
    validation={"accuracy": 0.6667, "n": 1234},
    train_seconds=90,
    date="2026-01-02",
    verified={"max_difference": 2e-7, "tolerance": 1e-4, "seconds": 9.0},
)


def test_model_card():
    ledger = {"train": {"kept": 2000}, "validation": {"kept": 1234}, "test": {"kept": 500}}
    card = model_card(MANIFEST, ledger, "runs/rm-out")
    head = card.split("---")[1]
    assert 'base_model: "Qwen/Qwen2.5-0.5B-Instruct"' in head and '"lora"' in head
    for needed in (
        "# rm-out",
        "`7ae557604adf67be50417f59c2c2f167def9a775`",
        "0.667 (n = 1,234)",
        "2,000 / 1,234 / 500",
        "within 2.0e-07 (allowed 1.0e-04)",
        'from_pretrained("runs/rm-out/merged")',
        "audit.py --ckpt runs/rm-out",
    ):
        assert needed in card
    without_validation = model_card(
        replace(MANIFEST, validation={}), {"train": ledger["train"]}, "out"
    )
    two = model_card(replace(MANIFEST, adapter=False, labels=2), ledger, "out")
    assert ".logits[0, 1]" in two and "--ckpt out --convert DIR" in two
    assert ".logits[0, 0]" in card
    assert "| none |" in without_validation and "2,000 / none / none" in without_validation


def test_a_manifest_writes_what_is_known_in_the_order_of_its_fields():
    keys = MANIFEST.as_dict()
    assert list(keys)[:3] == ["format_version", "base_model", "base_revision"]
    assert list(keys)[-4:] == ["validation", "train_seconds", "date", "verified"]
    assert keys["max_length"] is None and "step" not in keys and "steps" not in keys


@pytest.fixture(scope="module")
def trained(standin, tmp_path_factory, train_options):
    """A real run of a few steps over an earlier model of the same place."""
    home = tmp_path_factory.mktemp("run")
    write_rows(home / "data" / "train.jsonl", hh_rows(40))
    write_rows(home / "data" / "test.jsonl", hh_rows(10, seed=1))
    (home / "rm" / "audit").mkdir(parents=True)
    (home / "rm" / "audit" / "report.html").write_text("of an earlier model")
    (home / "recipe.yaml").write_text(
        f"model_name_or_path: {standin('qwen')}\ndtype: float32\ndataset_name: {home / 'data'}\nmax_length: 256\n"
        f"validation_fraction: 0.3\noutput_dir: {home / 'rm'}\nhub_token: hf_secret\n"
    )
    options = [*train_options, "--overwrite"]
    done = run_script(
        "train_rm.py", "--recipe", home / "recipe.yaml", *options, env={"OMP_NUM_THREADS": "1"}
    )
    return home / "rm", done


def test_a_finished_model(trained, standin):
    folder, done = trained
    assert "a fresh process gives the same rewards" in done.stdout
    found = {path.name for path in folder.iterdir()}
    assert found >= {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "recipe.yaml",
                     "ledger.json", "golden.jsonl", "test_ids.json", "README.md", "manifest.json"}  # fmt: skip
    assert not found & {"training_args.bin", "unverified", "audit"}
    assert "hf_secret" not in (folder / "recipe.yaml").read_text()

    manifest = read_manifest(folder)
    assert manifest["format_version"] == 1 and manifest["base_model"] == str(standin("qwen"))
    assert (
        manifest["base_revision"] is None
        and manifest["adapter"] is False
        and manifest["quantization"] is None
    )
    assert (manifest["dtype"], manifest["max_length"], manifest["overlong"]) == (
        "float32",
        256,
        "drop",
    )
    assert (
        manifest["encoder"]["end_token"] == "<|im_end|>"
        and manifest["encoder"]["pad_token"] == "<|endoftext|>"
    )
    assert set(manifest["fingerprints"]) == {"train", "validation", "test"}
    assert len(set(manifest["fingerprints"].values())) == 3
    assert manifest["versions"]["torch"].startswith("2.") and manifest["steps"] == 4
    assert manifest["verified"]["max_difference"] <= 1e-4
    assert manifest["files"] == hash_files(folder)
    assert "model.safetensors" in manifest["files"] and "golden.jsonl" in manifest["files"]
    ledger = json.loads((folder / "ledger.json").read_text())
    assert manifest["validation"]["n"] == ledger["validation"]["kept"] > 3
    assert len(json.loads((folder / "test_ids.json").read_text())) == ledger["test"]["kept"] == 10
    golden = read_golden(folder)
    assert len(golden) == 16 and all(isinstance(row["reward"], float) for row in golden)

    card = (folder / "README.md").read_text()
    accuracy, n = manifest["validation"]["accuracy"], manifest["validation"]["n"]
    assert f"{accuracy:.3f} (n = {n})" in card and f"`{standin('qwen')}`" in card


def test_each_checkpoint_is_sealed(trained):
    folder = trained[0]
    assert newest_valid_checkpoint(folder) == (str(folder / "checkpoint-4"), [])
    manifest = read_manifest(folder / "checkpoint-2")
    assert (
        manifest["step"] == 2
        and manifest["metrics"]["eval_n"] > 0
        and "optimizer.pt" in manifest["files"]
    )
