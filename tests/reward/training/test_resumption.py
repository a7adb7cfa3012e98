"""A run that is stopped and goes on gives what it gives without the break, bit for bit.

The moments here are literal ones; `make kills` takes random ones.
"""

import errno
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from launched import read_json, train_in_forks, train_several
from small_runs import CONFIGURATIONS, make_material, untimed, words
from support import last_of_each

from reward.checkpoint.folders import remove, remove_older
from reward.checkpoint.manifest import seal
from reward.checkpoint.resume import SealCheckpoint, checkpoint_fault
from reward.data import one_writer
from reward.data.files import DataError
from reward.data.one_writer import open_locked
from reward.training.failures import DISK_FULL, OUT_OF_MEMORY, explanation
from reward.training.run import labels_in_words

COMPARED = ("weights", "rewards", "best", "log", "validation", "steps")

# configuration -> the stops of a run, one process after another; the last one goes on to the end.
# What each process has to end with stands behind its stop.
MOMENTS = {
    "load_best_model_at_end": [
        (["an evaluation", 2, "SIGTERM"], 75),
        (["sealing it", 2, "SIGKILL"], -9),
        (["golden rewards", 1, "SIGTERM"], 75),
        (["saving the model", 1, "SIGINT"], 75),
        (["verifying it", 1, "SIGTERM"], 75),
        (["putting it in place", 1, "SIGTERM"], 75),
    ],
    "early stopping": [
        (["an evaluation", 4, "SIGTERM"], 75),  # the one that stops it early
        (["saving the model", 1, "SIGKILL"], -9),
    ],
    "save_total_limit: 1": [
        (["sealing it", 2, "SIGKILL"], -9),
        (["an evaluation", 1, "SIGTERM"], 75),  # at a step without a save
    ],
    "by epoch": [(["a step", 5, "SIGTERM"], 75), (["an evaluation", 1, "SIGINT"], 75)],
    "group_by_length": [(["a step", 25, "SIGTERM"], 75)],  # in the second epoch
    "LoRA": [(["an evaluation", 1, "SIGTERM"], 75)],
    "dataset_streaming": [(["a step", 21, "SIGTERM"], 75)],  # when it is read a second time
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    make_material(folder)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def stopped(recipe, tmp_path_factory):
    """configuration -> its runs: the one without a break, those that stop, the one that ends."""
    folder = tmp_path_factory.mktemp("stopped")
    entries, places = [], {}
    for number, (name, stops) in enumerate(MOMENTS.items()):
        options = ["--recipe", recipe, *words(CONFIGURATIONS[name])]
        going_on = [*options, "--output_dir", folder / f"out-{number}", "--resume", "auto"]
        first = len(entries)
        entries.append({"argv": [*options, "--output_dir", folder / f"whole-{number}"]})
        entries += [{"argv": going_on, "stops": [stop]} for stop, _ in stops]
        entries.append({"argv": going_on})
        places[name] = slice(first, len(entries))
    runs = train_in_forks(entries, folder / "runs")
    return {name: runs[place] for name, place in places.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", MOMENTS)
def test_a_run_that_is_stopped_and_goes_on_is_the_same_bit_for_bit(name, stopped):
    whole, *interrupted, ended = stopped[name]
    for run, (stop, status) in zip(interrupted, MOMENTS[name], strict=True):
        assert run.status == status, (stop, run.output[-2000:])
        if status == 75:
            assert "go on with the same command and --resume auto" in run.output, stop
    assert (whole.status, ended.status) == (0, 0), ended.output[-2000:]
    assert {key: ended.facts[key] for key in COMPARED} == {
        key: whole.facts[key] for key in COMPARED
    }


@pytest.mark.slow
def test_the_moments_are_those_that_they_should_be(stopped):
    """Otherwise the comparison would be of runs in which nothing was at stake."""
    best = stopped["load_best_model_at_end"]
    assert best[0].facts["best"][1] == "checkpoint-3"
    assert "interrupted at step 6; go on" in best[1].output
    for run in best[3:6]:  # in the golden rewards, the save and the verification
        assert "checkpoint-12 is whole; go on" in run.output
    for run in best[4:]:
        assert "trained 0 steps" in run.output
    early = stopped["early stopping"]
    assert early[0].facts["steps"] == 12  # of 18
    assert early[0].facts["best"][1] == "checkpoint-9"
    assert "interrupted at step 12; go on" in early[1].output
    limit = stopped["save_total_limit: 1"]
    assert "checkpoint-4\n" in limit[2].output  # which was whole when checkpoint-8 was not
    by_length = stopped["group_by_length"]
    assert "interrupted at step 13; go on" in by_length[1].output  # an epoch has 7
    assert "interrupted at step 11; go on" in stopped["dataset_streaming"][1].output


@pytest.mark.slow
def test_two_processes_go_on_in_the_second_epoch(recipe, tmp_path):
    """In the order of that epoch, with each process's dropout, and the same rows of the log."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    options = ["--recipe", recipe, *words(CONFIGURATIONS["full, with dropout"])]
    steps = {"--max_steps": 14, "--save_steps": 5, "--gradient_accumulation_steps": 1}
    options = last_of_each([*options, *(word for pair in steps.items() for word in pair)])
    middle = whole / "checkpoint-10"  # an epoch has 8 steps
    lines = [
        [*options, "--output_dir", whole],
        [*options, "--output_dir", out, "--resume", middle],
    ]
    first, second = train_several(lines, tmp_path / "launch", processes=2)
    assert (first.status, second.status) == (0, 0), second.stderr[-2000:]
    for file in ("model.safetensors", "golden.jsonl"):
        assert (out / file).read_bytes() == (whole / file).read_bytes(), file
    logs = []
    for folder in (whole, out):
        state = read_json(folder / "checkpoint-14" / "trainer_state.json")
        logs.append([untimed(entry) for entry in state["log_history"]])
    assert logs[0] == logs[1] and len(logs[0]) > 10


# --- One training in a folder, and no link out of it ----------------------------------------------


def test_a_folder_that_another_training_writes_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(one_writer, "LOCK_SECONDS", 0.0)
    path = str(tmp_path / one_writer.LOCK)
    with open_locked(path, hint="give another output_dir") as file:
        file.write(json.dumps({"run": one_writer.this_run()}).encode() + b"\n")
        file.flush()
        with pytest.raises(DataError) as error:
            open_locked(path, hint="give another output_dir")
    assert f"process {os.getpid()} on " in str(error.value)
    assert str(error.value).endswith(
        "is writing it; wait until it ends, or give another output_dir"
    )
    open_locked(path, hint="").close()  # the lock has ended


def test_a_file_system_without_locks_is_said_and_does_not_stop_a_run(tmp_path, monkeypatch, capsys):
    def no_locks(*args):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(one_writer.fcntl, "flock", no_locks)
    open_locked(str(tmp_path / "lock"), hint="").close()
    assert "this file system has no locks (Operation not supported)" in capsys.readouterr().err


def test_a_link_is_deleted_and_not_what_it_leads_to(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    out = tmp_path / "out"
    for step in (2, 6):
        (out / f"checkpoint-{step}").mkdir(parents=True)
    (out / "checkpoint-4").symlink_to(precious)
    remove_older(out / "checkpoint-6", best=None, limit=1)
    assert [path.name for path in out.iterdir()] == ["checkpoint-6"]
    (out / "unverified").symlink_to(precious)
    remove(out / "unverified")
    assert not (out / "unverified").is_symlink()
    assert (precious / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("best", "limit", "left"),
    [
        (None, 1, [8]),
        (None, 2, [6, 8]),
        ("elsewhere/out/checkpoint-2", 1, [2, 8]),
        ("elsewhere/out/checkpoint-2", 3, [2, 6, 8]),
        (None, 5, [2, 4, 6, 8, 20]),
        (None, -1, [2, 4, 6, 8, 20]),
    ],
)
def test_the_newest_and_the_best_checkpoint_stay(best, limit, left, tmp_path):
    for step in (2, 4, 6, 8, 20):  # a run went on from before step 20
        (tmp_path / f"checkpoint-{step}").mkdir()
    remove_older(tmp_path / "checkpoint-8", best, limit)
    assert sorted(int(path.name[11:]) for path in tmp_path.iterdir()) == left


def test_a_copy_of_a_checkpoint_under_a_name_of_its_own_stays(tmp_path):
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-keep-2", "checkpoint-8"):
        (tmp_path / name).mkdir()
    remove_older(tmp_path / "checkpoint-8", best=None, limit=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-8", "checkpoint-keep-2"]


def test_a_checkpoint_without_its_best_one_cannot_be_resumed_exactly(tmp_path):
    best, folder = tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"
    for place in (best, folder):
        place.mkdir()
        (place / "optimizer.pt").write_bytes(b"moments")
        (place / "trainer_state.json").write_text(
            '{"best_model_checkpoint": "before/it/was/moved/checkpoint-2"}'
        )
        seal(place, {})
    assert checkpoint_fault(folder, needs_best=True) is None
    shutil.rmtree(best)
    assert checkpoint_fault(folder) is None
    assert checkpoint_fault(folder, needs_best=True) == (
        f"its best checkpoint, {best}, is not whole (no manifest.json, so saving it was "
        "interrupted)"
    )


# --- Full disks, and too little memory ------------------------------------------------------------


def test_errors_of_memory_and_of_full_disks_are_explained():
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    assert explanation(error.value).startswith(f"{OUT_OF_MEMORY}\n(RuntimeError: [enforce fail at")
    assert explanation(MemoryError()) == f"{OUT_OF_MEMORY}\n(MemoryError: )"
    with pytest.raises(OSError) as error:
        with open("/dev/full", "w") as full:
            full.write("x")
    reason = "(OSError: [Errno 28] No space left on device)"
    assert explanation(error.value) == f"{DISK_FULL}\n{reason}"
    try:
        raise ValueError("the library says nothing of it") from error.value
    except ValueError as wrapped:
        assert explanation(wrapped) == f"{DISK_FULL}\n{reason}"
    with pytest.raises((RuntimeError, OSError)) as error:
        torch.save({"w": torch.zeros(10**6)}, "/dev/full")
    assert explanation(error.value).startswith(DISK_FULL)
    assert explanation(KeyError("loss")) is None


@pytest.fixture(scope="module")
def limited(recipe, tmp_path_factory):
    """Runs of which each meets a limit, or a folder that is not as it should be."""
    folder = tmp_path_factory.mktemp("limited")
    options = ["--recipe", recipe, "--max_steps", 6]
    precious = folder / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    linked = folder / "linked"
    linked.mkdir()
    for name in ("checkpoint-3", "checkpoint-9", "unverified", "merged"):
        (linked / name).symlink_to(precious)
    (folder / "file").mkdir()
    locked = folder / "locked"
    locked.mkdir()
    at_once = ["--per_device_train_batch_size", 45, "--gradient_accumulation_steps", 1]
    entries = [
        {"argv": [*options, "--output_dir", linked, "--overwrite"]},
        {"argv": [*options, "--output_dir", folder / "model"], "file_size": 100_000},
        {"argv": [*options, "--output_dir", folder / "optimizer"], "file_size": 200_000},
        {
            "argv": [*options, "--output_dir", folder / "memory", *at_once]
            + ["--prefix_sharing", "off", "--attn_implementation", "eager"],
            "memory": 90 * 2**20,
        },
        {"argv": [*options, "--output_dir", locked]},
    ]
    with open_locked(str(locked / one_writer.LOCK), hint="") as file:
        file.write(b'{"run": {"process": 7, "host": "elsewhere", "since": "noon"}}\n')
        file.flush()
        runs = train_in_forks(entries, folder / "runs")
    names = ("linked", "model", "optimizer", "memory", "locked")
    return folder, dict(zip(names, runs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_a_disk_that_is_full_is_said_and_nothing_half_written_is_left(name, limited):
    folder, runs = limited
    run = runs[name]
    assert run.status == 1 and "Traceback" not in run.output
    said = run.output[run.output.index("train_rm.py: ") :].splitlines()
    assert said[0] == f"train_rm.py: {DISK_FULL}"
    assert said[-1] == "there is no checkpoint yet; the same command with --resume auto starts anew"
    assert not (folder / name).exists()


@pytest.mark.slow
def test_too_little_memory_on_a_cpu_gets_the_hint(limited):
    run = limited[1]["memory"]
    assert run.status == 1 and "Traceback" not in run.output
    assert f"train_rm.py: {OUT_OF_MEMORY}\n" in run.output


@pytest.mark.slow
def test_a_training_does_not_follow_links_out_of_its_folder(limited):
    folder, runs = limited
    assert runs["linked"].status == 0, runs["linked"].output[-2000:]
    assert [path.name for path in (folder / "precious").iterdir()] == ["thesis.txt"]
    out = folder / "linked"
    assert sorted(path.name for path in out.glob("checkpoint-*")) == [
        "checkpoint-3",
        "checkpoint-6",
    ]
    assert [path for path in out.iterdir() if path.is_symlink()] == []
    assert read_json(out / "manifest.json")["verified"]


@pytest.mark.slow
def test_a_second_training_in_one_folder_is_refused(limited):
    run = limited[1]["locked"]
    assert run.status == 2
    assert "process 7 on elsewhere, since noon, is writing it; wait until it ends, or" in run.output


def test_a_checkpoint_that_a_run_goes_on_from_is_not_removed(tmp_path):
    """A second Ctrl-C, or a full disk, while it is sealed once more."""
    for name, is_whole in (("checkpoint-2", True), ("checkpoint-4", False)):
        (tmp_path / name).mkdir()
        if is_whole:
            (tmp_path / name / "manifest.json").write_text("{}")

    def interrupted():
        raise KeyboardInterrupt

    trainer = SimpleNamespace(
        args=SimpleNamespace(save_total_limit=None, output_dir=str(tmp_path)),
        accelerator=SimpleNamespace(wait_for_everyone=interrupted),
    )
    for step in (2, 4):
        state = SimpleNamespace(global_step=step, is_world_process_zero=True)
        with pytest.raises(KeyboardInterrupt):
            SealCheckpoint(trainer, manifest=None).on_save(trainer.args, state, control=None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_what_the_raters_said_is_part_of_a_split():
    """A run went on with other votes and margins, so that half of it had other labels."""
    plain = {"pair_key": [1, 2], "target_margin": [0.0, 0.0], "chosen_probability": [1.0, 1.0]}
    assert labels_in_words(Dataset.from_dict(plain)) == []
    voted = plain | {"chosen_probability": [1.0, 0.75]}
    assert labels_in_words(Dataset.from_dict(voted)) == ["(0.0, 1.0)", "(0.0, 0.75)"]
