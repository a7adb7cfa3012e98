"""Checkpoints to resume from: what counts as damage, and which one is taken."""

import os

import pytest

from reward.checkpoint.manifest import seal
from reward.checkpoint.resume import checkpoint_fault, newest_valid_checkpoint


def make_checkpoint(folder):
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"):
        (folder / name).write_bytes(os.urandom(5000))
    seal(folder, {})
    return folder


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def zero_200_bytes(path):
    data = bytearray(path.read_bytes())
    data[2000:2200] = bytes(200)
    path.write_bytes(data)


def without(name):
    """Remove a file, and seal the checkpoint again."""

    def damage(folder):
        (folder / name).unlink()
        seal(folder, {})

    return damage


CHANGED = "missing or changed since it was saved"


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (
            lambda folder: (folder / "manifest.json").unlink(),
            "no manifest.json, so saving it was interrupted",
        ),
        (lambda folder: zero_200_bytes(folder / "manifest.json"), "manifest.json is damaged"),
        (
            lambda folder: (folder / "manifest.json").write_text('{"files": '),
            "manifest.json is damaged",
        ),
        (lambda folder: (folder / "manifest.json").write_text("null"), "manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is damaged"),
        (lambda folder: truncate(folder / "model.safetensors"), f"model.safetensors {CHANGED}"),
        (
            lambda folder: zero_200_bytes(folder / "model.safetensors"),
            f"model.safetensors {CHANGED}",
        ),
        (lambda folder: zero_200_bytes(folder / "optimizer.pt"), f"optimizer.pt {CHANGED}"),
        (lambda folder: (folder / "scheduler.pt").unlink(), f"scheduler.pt {CHANGED}"),
        (
            without("optimizer.pt"),
            "no optimizer state (save_only_model?), so resuming would start a fresh optimizer",
        ),
        (without("trainer_state.json"), "no trainer_state.json"),
    ],
)
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
        str(tmp_path / "checkpoint-100"),
        str(tmp_path / "checkpoint-10"),
    ]
    assert newest_valid_checkpoint(tmp_path / "nothing") == (None, [])
