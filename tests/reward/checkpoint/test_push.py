"""A verified checkpoint goes to the Hub whole, and nothing else goes with it."""

import json
import sys
import time

import pytest
from hub import CUT, files, serve
from huggingface_hub import constants

from reward.checkpoint import push as push_module
from reward.checkpoint.fresh_process import CheckpointError
from reward.checkpoint.manifest import seal
from reward.checkpoint.push import push
from reward.recipe.parse import parse_command_line
from reward.recipe.recipe import RecipeError

VERIFIED = {"verified": {"max_difference": 0.0, "tolerance": 1e-4, "seconds": 1.0}}
SENT = [
    "README.md",
    "audit/audit.json",
    "audit/report.html",
    "config.json",
    "golden.jsonl",
    "manifest.json",
    "merged/model.safetensors",
    "model.safetensors",
    "recipe.yaml",
]
KEPT_HERE = [
    "checkpoint-20/training_args.bin",
    "checkpoint-20/model.safetensors",
    "training_args.bin",
    "runs/Nov26/events.out",
    "audit/scores.jsonl",
    ".env",
    "notes.txt",
]


@pytest.fixture
def checkpoint(tmp_path):
    """A finished run's folder, with what else may lie in it."""
    folder = tmp_path / "rm-out"
    for file in ("config.json", "golden.jsonl", "model.safetensors"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(file.encode() * 1000)  # model.safetensors is a large file
    (folder / "recipe.yaml").write_text("seed: 1\n")
    seal(folder, VERIFIED)
    for file in (*SENT, *KEPT_HERE):
        path = folder / file
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("---\nlicense: mit\n---\nsecret of " + file)
    return folder


FAULTS = {}  # of the hub; a test fills it


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The root of a hub that one may write to."""
    root = tmp_path / "hub"
    (root / "models").mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve(root, faults=FAULTS) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        yield root
    FAULTS.clear()


def test_checkpoint_card_and_report_go_and_nothing_else(checkpoint, hub):
    address = push(checkpoint, "somebody/my-rm")
    assert address == f"{constants.ENDPOINT}/somebody/my-rm"
    there = hub / "models" / "somebody" / "my-rm"
    assert files(there) == SENT
    for file in SENT:
        assert (there / file).read_bytes() == (checkpoint / file).read_bytes(), file
    assert len(list((hub / "lfs").iterdir())) == 3  # the files of 4,096 bytes or more
    (created,) = (hub / "created.jsonl").read_text().splitlines()
    assert json.loads(created)["visibility"] == "private"


@pytest.mark.parametrize(
    ("part", "fault", "words"),
    [
        ("/commit/", 500, "the Hub answers 500: the fault is on its side"),
        ("/commit/", 403, r"the Hub answers 403 \("),
        ("repos/create", 429, r"the Hub takes no more requests for now \(429\)"),
        ("/preupload/", CUT, r"the connection to http://127.* broke \(Server disconnected"),
    ],
)
def test_a_push_that_the_hub_refuses(checkpoint, hub, monkeypatch, part, fault, words):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    FAULTS[part] = fault
    with pytest.raises(CheckpointError, match=f"but was not uploaded to somebody/my-rm: {words}"):
        push(checkpoint, "somebody/my-rm")
    FAULTS.clear()
    push(checkpoint, "somebody/my-rm")
    assert files(hub / "models" / "somebody" / "my-rm") == SENT


def test_a_second_push_replaces_the_model(checkpoint, hub):
    """Were the old file to stay, transformers would load it instead of the new shards."""
    push(checkpoint, "somebody/my-rm")
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00001.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text("{}")
    (checkpoint / "manifest.json").unlink()
    seal(checkpoint, VERIFIED)
    push(checkpoint, "somebody/my-rm")
    there = files(hub / "models" / "somebody" / "my-rm")
    assert [file for file in there if "model" in file and "merged" not in file] == [
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
    ]
    assert len((hub / "created.jsonl").read_text().splitlines()) == 1


def test_a_recipe_may_ask_for_a_public_repository(checkpoint, hub):
    (checkpoint / "recipe.yaml").write_text("hub_private_repo: false\n")
    (checkpoint / "manifest.json").unlink()
    seal(checkpoint, VERIFIED)
    push(checkpoint, "somebody/my-rm")
    assert json.loads((hub / "created.jsonl").read_text())["visibility"] == "public"


def test_what_is_not_as_it_was_verified_stays_here(checkpoint, hub, tmp_path):
    with pytest.raises(CheckpointError, match="holds no verified checkpoint"):
        push(tmp_path, "somebody/my-rm")
    (checkpoint / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match="not as it was verified: model.safetensors changed"):
        push(checkpoint, "somebody/my-rm")
    seal(checkpoint, {})
    with pytest.raises(CheckpointError, match="holds no verified checkpoint"):
        push(checkpoint, "somebody/my-rm")
    assert not (hub / "created.jsonl").exists()


def test_the_command(checkpoint, hub, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["push", str(checkpoint), "somebody/my-rm"])
    assert push_module.main() == 0
    assert capsys.readouterr().out == f"uploaded to {constants.ENDPOINT}/somebody/my-rm\n"
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(checkpoint / "no-token"))
    monkeypatch.setattr(sys, "argv", ["push", str(checkpoint), "somebody/another"])
    assert push_module.main() == 2
    error = capsys.readouterr().err
    assert "is saved and verified, but was not uploaded to somebody/another: " in error
    assert f"python -m reward.checkpoint.push {checkpoint} somebody/another" in error


@pytest.mark.parametrize(
    ("argv", "token", "fault"),
    [
        (
            ["--push", "me/a model"],
            "hf_x",
            "is no name of a repository; write `--push you/my-model`",
        ),
        (["--push", "me/rm"], "", "--push needs a login that may write: `hf auth login`"),
        (["--push", "me/rm", "--check-data"], "hf_x", "this trains none; delete it"),
        (["--push"], "hf_x", "--push lacks its value, NAME: upload the verified checkpoint"),
    ],
)
def test_what_would_fail_after_the_training_is_said_before(
    argv, token, fault, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    keys = "--model_name_or_path a/b --dataset_name c/d --output_dir".split()
    with pytest.raises(RecipeError) as caught:
        parse_command_line([*keys, str(tmp_path / "out"), *argv])
    (found,) = caught.value.faults
    assert found.startswith("command line: ") and fault in found
