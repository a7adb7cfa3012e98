"""Launch the scripts as users do, with several processes on a CPU, and read what each one saw.

What a process saw is written by tests/driver.py.
"""

import json
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import REPO, run_script

LAUNCH = ["-m", "accelerate.commands.launch"]  # `accelerate launch`, of this interpreter
DRIVER = REPO / "tests" / "driver.py"
# Threads only cost on models so small.
CPU = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
# config -> distributed type, wrapped class (of a plain model), ZeRO stage, and the share of the
# weights that each process holds.
ENGINES = {
    # accelerate's name for DDP over gloo; with GPUs the same file gives MULTI_GPU.
    "ddp": ("MULTI_CPU", "DistributedDataParallel", None, 1.0),
    "fsdp2": ("FSDP", "FSDP{}ForSequenceClassification", None, 0.5),
    "zero2": ("DEEPSPEED", "DeepSpeedEngine", 2, 1.0),
    "zero3": ("DEEPSPEED", "DeepSpeedEngine", 3, 0.5),
    "zero3-offload": ("DEEPSPEED", "DeepSpeedEngine", 3, 0.5),
}
PACKED = "each shared prefix computed once, no padding"


def free_port() -> int:
    """A free port for the rendezvous: another run on this machine may hold the default one."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def extensions_folder() -> str:
    """The folder that keeps DeepSpeed's compiled operators from one test run to the next."""
    default = Path.home() / ".cache" / "torch_extensions"
    return os.environ.get("TORCH_EXTENSIONS_DIR") or str(default)


def environment(config: str, seen: Path | str = "") -> dict:
    """The environment of a run that is launched under a config of accelerate_configs/."""
    shim = ""
    if config == "fsdp2":
        shim = "1"  # accelerate leaves FSDP out without GPUs
    return {
        **CPU,
        "FSDP_ON_CPU": shim,
        "SEEN": str(seen),
        "TORCH_EXTENSIONS_DIR": extensions_folder(),
    }


def launcher(config: str | Path, processes: int = 2) -> list:
    """The beginning of a command that launches under a config.

    A string names a config of accelerate_configs/; a Path is another one.
    """
    file = f"accelerate_configs/{config}.yaml"
    if isinstance(config, Path):
        file = config
    options = ["--config_file", file, "--num_processes", processes]
    return [*LAUNCH, *options, "--main_process_port", free_port()]


def launch(config: str, processes: int, *command, seen: Path):
    """`accelerate launch` of a shipped config.

    Returns:
        The finished process, and what each process saw, by rank.
    """
    seen.mkdir(parents=True)
    launch_prefix = launcher(config, processes)
    done = run_script(*launch_prefix, *command, env=environment(config, seen), timeout=600)
    return done, read_seen(seen)


def needs_compiler(config: str) -> None:
    """Skip the test of a DeepSpeed config on a machine without a compiler."""
    if config.startswith("zero") and shutil.which("g++") is None:
        pytest.skip("DeepSpeed compiles its operators: g++ is needed")


def read_seen(folder: Path) -> list[dict]:
    """What each process saw, by rank."""
    return [read_json(path) for path in sorted(folder.iterdir())]


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


# --- Several runs in one process ------------------------------------------------------------------


@dataclass
class FinishedRun:
    """One run of `train_several`: its exit status, and what all of its processes wrote."""

    status: int
    stdout: str
    stderr: str


def train_several(
    command_lines: list[list],
    folder: Path,
    processes: int = 1,
    env: dict | None = None,
    seen: list[Path] | None = None,
) -> list[FinishedRun]:
    """Run train_rm.py once for each command line, one after another in the same processes.

    `seen` names a folder for each run, in which tests/driver.py writes what the processes saw.

    The imports take longer than a run of a few steps, so this is several times faster than a
    process for each. `processes` above 1 launches them under accelerate_configs/ddp.yaml. A run
    that was not reached, because an earlier one ended its process, raises AssertionError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = [
        {"argv": list(map(str, line)), "port": free_port(), "seen": None} for line in command_lines
    ]
    for run, seen_folder in zip(runs, seen or (), strict=False):
        seen_folder.mkdir(parents=True)
        run["seen"] = str(seen_folder)
    runs_file = folder / "runs.json"
    runs_file.write_text(json.dumps(runs), encoding="utf-8")
    launch_prefix = []
    if processes > 1:
        launch_prefix = launcher("ddp", processes)
    script = REPO / "tests" / "several.py"
    done = run_script(*launch_prefix, script, runs_file, env=env or CPU, timeout=1500, check=False)
    finished = []
    for number in range(len(runs)):
        statuses = sorted(folder.glob(f"{number}-*.status"))
        outputs = {
            kind: "".join(path.read_text() for path in sorted(folder.glob(f"{number}-*.{kind}")))
            for kind in ("out", "err")
        }
        assert len(statuses) == processes, done.stderr[-3000:] + outputs["err"][-3000:]
        status = max(int(path.read_text()) for path in statuses)
        finished.append(FinishedRun(status, outputs["out"], outputs["err"]))
    return finished


# --- Each run in a process of its own -------------------------------------------------------------


@dataclass
class ForkedRun:
    """One run of `train_in_forks`."""

    status: int  # of its process; minus the signal that ended it
    output: str  # what it wrote to stdout and stderr
    facts: dict  # what tests/forks.py noted of it; {} where the process was killed


def train_in_forks(runs: list[dict], folder: Path) -> list[ForkedRun]:
    """Run train_rm.py once for each entry, one after another, each in a process of its own.

    tests/forks.py says what an entry may have beside its `argv`, and how a process stops itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs_file = folder / "runs.json"
    entries = [{**run, "argv": list(map(str, run["argv"]))} for run in runs]
    runs_file.write_text(json.dumps(entries), encoding="utf-8")
    run_script(REPO / "tests" / "forks.py", runs_file, env=CPU, timeout=600)
    finished = []
    for number in range(len(runs)):
        status = int((folder / f"{number}.status").read_text())
        facts = {}
        if (folder / f"{number}.json").is_file():
            facts = read_json(folder / f"{number}.json")
        output = (folder / f"{number}.log").read_text(encoding="utf-8")
        finished.append(ForkedRun(status, output, facts))
    return finished
