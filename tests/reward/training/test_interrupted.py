"""A run that is interrupted, torn or not finite leaves what it promises."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from launched import CPU, LAUNCH, read_json, train_several
from safetensors.torch import load_file
from support import REPO, last_of_each, run_script

from reward.checkpoint.manifest import hash_files
from reward.checkpoint.resume import checkpoint_fault

# Every test here runs train_rm.py in a process of its own.
pytestmark = pytest.mark.slow

LONG = (
    "--max_steps 40 --eval_steps 20 --save_steps 20 --logging_steps 1 "
    "--gradient_accumulation_steps 1"
).split()
SIGNAL_AFTER = 23  # steps: past the first checkpoint, and well before the next evaluation


@pytest.fixture(scope="module")
def uninterrupted(hh_options, tmp_path_factory) -> Path:
    """The folder of a run that nothing disturbs."""
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    run_script("train_rm.py", *hh_options, *LONG, "--output_dir", out, env=CPU)
    return out


def interrupt(command: list, out: Path) -> subprocess.Popen:
    """Start a run, interrupt it after a few steps, and wait until its process is gone.

    SIGTERM goes to the started process. It gets two attributes: the `log` that its stderr went to,
    and the `children` that it had at the signal.
    """
    # A pipe that nobody reads would fill up.
    log = open(out.parent / "stderr.txt", "w+", encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, *map(str, command), "--output_dir", str(out)],
        cwd=REPO,
        env={**os.environ, **CPU, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    process.log, process.children = log, []
    steps = 0
    for line in process.stdout:
        steps += re.match(r"train +\d+/", line) is not None
        if steps == SIGNAL_AFTER:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            if children.exists():
                process.children = [int(pid) for pid in children.read_text().split()]
            process.send_signal(signal.SIGTERM)
            break
    try:
        process.wait(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process


def stderr_of(process: subprocess.Popen) -> str:
    """What an interrupted process wrote to stderr."""
    process.log.seek(0)
    return process.log.read()


def assert_sealed_and_unfinished(out: Path) -> Path:
    """Check that one checkpoint lies past the first, whole, with no final model beside it.

    Returns:
        The folder of that checkpoint.
    """
    folders = sorted((int(path.name.split("-")[1]), path) for path in out.glob("checkpoint-*"))
    assert len(folders) == 2, folders
    assert folders[0][0] == 20 and SIGNAL_AFTER <= folders[1][0] < 40, folders
    newest = folders[1][1]
    assert checkpoint_fault(newest) is None
    assert read_json(newest / "manifest.json")["step"] == folders[1][0]
    assert [path.name for path in out.iterdir() if not path.name.startswith("checkpoint-")] == []
    return newest


def assert_same_weights(out: Path, expected: Path) -> None:
    weights = load_file(out / "model.safetensors")
    expected_weights = load_file(expected / "model.safetensors")
    assert weights.keys() == expected_weights.keys()
    differing = [key for key in weights if not torch.equal(weights[key], expected_weights[key])]
    assert differing == []


def test_interrupted_run_goes_on_bit_for_bit(hh_options, uninterrupted, tmp_path):
    out, torn = tmp_path / "out", tmp_path / "torn" / "out"
    command = ["train_rm.py", *hh_options, *LONG]
    process = interrupt(command, out)
    assert process.returncode == 75, stderr_of(process)
    assert "SIGTERM: finishing this step" in stderr_of(process)
    newest = assert_sealed_and_unfinished(out)
    step = read_json(newest / "manifest.json")["step"]
    assert f"interrupted at step {step}; go on with" in stderr_of(process)
    shutil.copytree(out, torn)

    # The torn copy: its newest checkpoint has a cut file, a newer one no manifest.
    cut = torn / newest.name / "optimizer.pt"
    cut.write_bytes(cut.read_bytes()[:-200])
    shutil.copytree(torn / newest.name, torn / "checkpoint-39")
    (torn / "checkpoint-39" / "manifest.json").unlink()
    lines = [[*hh_options, *LONG, "--output_dir", at, "--resume", "auto"] for at in (out, torn)]
    whole_run, torn_run = train_several(lines, tmp_path / "launch")
    assert (whole_run.status, torn_run.status) == (0, 0), torn_run.stderr[-3000:]

    # The run as it is goes on from the newest.
    assert f"resume: from {newest}\n" in whole_run.stdout
    assert_same_weights(out, uninterrupted)
    manifest = read_json(out / "manifest.json")
    expected = read_json(uninterrupted / "manifest.json")
    for key in ("loss", "accuracy", "tie_rate", "n", "margin"):
        assert manifest["validation"][key] == expected["validation"][key]

    # The torn one goes on from the last good one, with a line about each other.
    no_manifest = "no manifest.json, so saving it was interrupted"
    changed = "optimizer.pt missing or changed since it was saved"
    assert [line for line in torn_run.stdout.splitlines() if line.startswith("resume: ")] == [
        f"resume: not from {torn / 'checkpoint-39'}: {no_manifest}",
        f"resume: not from {torn / newest.name}: {changed}",
        f"resume: from {torn / 'checkpoint-20'}",
    ]
    assert_same_weights(torn, uninterrupted)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_sigterm_to_the_launcher_reaches_the_run(hh_options, tmp_path):
    """accelerate's launcher dies of SIGTERM and tells its one child nothing.

    The child writes its checkpoint all the same.
    """
    out = tmp_path / "out"
    process = interrupt([*LAUNCH, "train_rm.py", *hh_options, *LONG], out)
    assert process.returncode == -signal.SIGTERM
    (child,) = process.children
    deadline = time.monotonic() + 30  # what schedulers grant
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not Path(f"/proc/{child}").exists(), stderr_of(process)
    assert_sealed_and_unfinished(out)
    assert "interrupted at step" in stderr_of(process)


def test_not_finite_stops_and_leaves_the_earlier_model(hh_options, uninterrupted, tmp_path):
    out = shutil.copytree(uninterrupted, tmp_path / "out")
    before = hash_files(out)
    assert "model.safetensors" in before
    diverging = ["--learning_rate", 1e30, "--lr_scheduler_type", "constant"]
    every_step = ["--save_steps", 1, "--eval_steps", 1]
    options = [*hh_options, *LONG, "--output_dir", out, "--overwrite", *diverging, *every_step]
    done = run_script("train_rm.py", *last_of_each(options), env=CPU, check=False)
    assert done.returncode == 3, done.stderr[-3000:]
    assert "not finite at step" in done.stderr and "Traceback" not in done.stderr
    assert "alarm, not finite: the loss is not finite at step" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Nothing was saved for this step;")
    assert hash_files(out) == before
    assert read_json(out / "manifest.json") == read_json(uninterrupted / "manifest.json")
    for folder in out.glob("checkpoint-*"):
        for key, value in load_file(folder / "model.safetensors").items():
            assert torch.isfinite(value).all(), (folder.name, key)


def test_a_checkpoint_of_another_run_is_not_gone_on_from(hh_options, uninterrupted, tmp_path):
    """The newest checkpoint is whole, and belongs to a run with another rate and other pairs."""
    out = shutil.copytree(uninterrupted, tmp_path / "out")
    before = hash_files(out)
    newest = out / "checkpoint-40"
    lines = []
    options = [*hh_options, *LONG, "--output_dir", out, "--learning_rate", 5e-4]
    fewer = ["--validation_fraction", 0.3, "--resume", "auto"]
    lines.append(last_of_each([*options, *fewer]))
    lines.append(last_of_each([*options, "--resume", newest, "--max_steps", 41]))
    refused, named = train_several(lines, tmp_path / "launch")
    assert refused.status == 2
    said = refused.stderr.splitlines()
    assert f"--resume {newest}: it belongs to another run:" in refused.stderr
    assert "  - learning_rate: 0.001 there, 0.0005 here" in said
    assert "  - validation_fraction: 0.15 there, 0.3 here" in said
    assert any(line.startswith("  - pairs of the split train: ") for line in said)
    assert f"(--resume {newest})" in said[-1] and said[-1].endswith("with --overwrite.")

    # Who names it, knows.
    assert named.status == 0, named.stderr[-3000:]
    of_another = f"resume: {newest} is of another run: "
    assert [line for line in named.stdout.splitlines() if line.startswith("resume: ")] == [
        f"{of_another}learning_rate: 0.001 there, 0.0005 here",
        f"{of_another}max_steps: 40 there, 41 here",
    ]
    assert before.keys() == hash_files(out).keys()


def test_overwrite_removes_old_checkpoints_before_anything_is_read(
    hh_options, uninterrupted, tmp_path
):
    """A run that dies while it reads its data leaves nothing that `--resume auto` would take."""
    out = shutil.copytree(uninterrupted, tmp_path / "out")
    options = [*hh_options, *LONG, "--output_dir", out, "--overwrite"]
    (tmp_path / "broken.jsonl").write_text("no rows\n")
    broken = ["--datasets", f"[{{path: {tmp_path / 'broken.jsonl'}}}]", "--test_fraction", 0.5]
    done = run_script("train_rm.py", *last_of_each([*options, *broken]), env=CPU, check=False)
    assert done.returncode == 2 and "broken.jsonl" in done.stderr
    assert list(out.glob("checkpoint-*")) == []
    assert (out / "model.safetensors").is_file()  # the earlier model stays until another is there


def test_a_finished_run_that_is_resumed_trains_no_step(hh_options, uninterrupted, tmp_path):
    """Its 40 steps end inside an epoch, where transformers would train a 41st."""
    out = shutil.copytree(uninterrupted, tmp_path / "out")
    (again,) = train_several(
        [[*hh_options, *LONG, "--output_dir", out, "--resume", "auto"]], tmp_path / "launch"
    )
    assert again.status == 0, again.stderr[-3000:]
    assert f"resume: from {out / 'checkpoint-40'}" in again.stdout
    assert "trained 0 steps" in again.stdout
    steps = sorted(path.name for path in out.glob("checkpoint-*"))
    assert steps == sorted(path.name for path in uninterrupted.glob("checkpoint-*"))
    assert_same_weights(out, uninterrupted)
    assert read_json(out / "manifest.json")["steps"] == 40
