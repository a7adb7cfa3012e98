"""Runs of train_rm.py, each in a process of its own that has imported everything already.

    python tests/forks.py runs.json    # [{"argv": [...], "stops": [...]}, ...], one after another

Such a process is forked from this one, and so are the processes that verify and merge a model:
imports take longer than a run. Nothing else differs from `python train_rm.py`. Run number i writes
its output to i.log, its exit status to i.status, and what came of it to i.json beside runs.json.

`stops` are signals that the process sends to itself: `["an evaluation", 2, "SIGTERM"]` at the
beginning of the second evaluation. `file_size` and `memory` are limits in bytes: of every file that
the process writes, and of what it allocates beside the memory that it has at the start.

Tests call `train_in_forks` of tests/launched.py; tests/kills.py stops runs at random moments.
"""

import functools
import gc
import importlib
import json
import mmap
import os
import re
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

from small_runs import untimed
from support import own_lock_of_bars

import train_rm
from reward.checkpoint import contract, convert, resume, verify
from reward.data.hashing import sha256_of_file
from reward.training import run
from reward.training.trainer import PairTrainer

# --- Stages: what a process is doing, written where its parent can read it ------------------------

STAGES = {
    "elsewhere": None,
    "reading the data": (run, "load_data"),
    "building the model": (run, "build"),
    "a step": (PairTrainer, "training_step"),
    "an evaluation": (PairTrainer, "evaluate"),
    "saving a checkpoint": (PairTrainer, "_save_checkpoint"),
    "sealing it": (resume, "seal"),
    "deleting old ones": (resume, "remove_older"),
    "golden rewards": (PairTrainer, "saved_rewards"),
    "saving the model": (run, "save"),
    "verifying it": (run, "verify_saved_model"),
    "putting it in place": (run, "put_in_place"),
    "merging": (run, "merge_adapter"),
    "the end": None,
}
NAMES = list(STAGES)


class Notes:
    """Shared memory: the stage of a process, and how often it has entered each stage."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 4 * (1 + len(NAMES)))

    def read(self, place: int) -> int:
        return struct.unpack_from("i", self.memory, 4 * place)[0]

    def write(self, place: int, value: int) -> None:
        struct.pack_into("i", self.memory, 4 * place, value)

    @property
    def stage(self) -> str:
        return NAMES[self.read(0)]

    def entered(self, name: str) -> int:
        return self.read(1 + NAMES.index(name))

    def enter(self, name: str) -> None:
        self.write(0, NAMES.index(name))
        self.write(1 + NAMES.index(name), self.entered(name) + 1)


def note_stages(notes: Notes, durations: list, stops: list) -> None:
    """Let the functions of STAGES note when they begin and end, and stop at the given ones."""

    def noting(name, function):
        @functools.wraps(function)
        def wrapped(*args, **options):
            before = notes.stage
            notes.enter(name)
            start = time.monotonic()
            for stage, which, how in stops:
                if (stage, which) == (name, notes.entered(name)):
                    os.kill(os.getpid(), getattr(signal, how))
            try:
                return function(*args, **options)
            finally:
                durations.append((name, time.monotonic() - start))
                notes.write(0, NAMES.index(before))

        return wrapped

    for name, place in STAGES.items():
        if place is not None:
            owner, attribute = place
            setattr(owner, attribute, noting(name, getattr(owner, attribute)))


# --- Processes ------------------------------------------------------------------------------------


def fork(function: Callable[[], int], log: Path) -> int:
    """Call a function in a process of its own, whose output goes to a file; return its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        own_lock_of_bars()
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = function()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def status_of(pid: int) -> int:
    """Wait for a process; return its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_in_a_fork(module: str, folder: str | Path) -> dict:
    """`run_in_fresh_process`, without the imports."""
    answer = Path(folder).parent.with_suffix(".answer")
    work = {
        "reward.checkpoint.verify": lambda: verify.main(str(folder)),
        "reward.checkpoint.convert": lambda: print(json.dumps({"moved": convert.merge(folder)})),
    }

    def child() -> int:
        os.closerange(3, 256)  # as a new program would; the lock of output_dir is among them
        with open(answer, "w", encoding="utf-8") as sys.stdout:
            work[module]()
        sys.stdout = sys.__stdout__
        return 0

    status = status_of(fork(child, answer.with_suffix(".log")))
    if status:
        raise contract.CheckpointError(f"{folder}: {module} ended with {status}")
    return json.loads(answer.read_text().splitlines()[-1])


def weights_of(out: Path) -> str | None:
    """A hash of the weights that lie in an output_dir."""
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (out / name).is_file():
            return sha256_of_file(out / name)
    return None


def training(run_entry: dict, notes: Notes, result: Path) -> Callable[[], int]:
    """A function that trains, and writes to `result` what came of it."""

    def child() -> int:
        durations, facts = [], {}
        start = time.monotonic()
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        if run_entry.get("file_size"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (run_entry["file_size"], unlimited[1]))
        if run_entry.get("memory"):
            (kib,) = re.findall(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())
            resource.setrlimit(resource.RLIMIT_AS, [int(kib) * 1024 + run_entry["memory"]] * 2)
        contract.run_in_fresh_process = run.run_in_fresh_process = run_in_a_fork
        note_stages(notes, durations, run_entry.get("stops", []))
        train_here = run.train

        def train_and_note(settings, data, training):
            rewards = train_here(settings, data, training)
            state = training.trainer.state
            facts["log"] = [untimed(entry) for entry in state.log_history]
            facts["best"] = [state.best_metric, Path(state.best_model_checkpoint or "").name]
            facts["steps"] = state.global_step
            facts["rewards"] = rewards
            facts["validation"] = untimed(training.manifest.validation or {})
            facts["out"] = str(settings.output_dir)
            return rewards

        run.train = train_and_note
        status = train_rm.main(run_entry["argv"])
        notes.enter("the end")
        if facts:
            facts["weights"] = weights_of(Path(facts.pop("out")))
        facts["durations"] = [("elsewhere", time.monotonic() - start), *durations]
        facts["modules"] = sorted(sys.modules)
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        result.write_text(json.dumps(facts))
        return status

    return child


def import_what_it_imports(result: Path) -> None:
    """Import here what a run has imported late, and let the garbage collector pass it over."""
    warnings.simplefilter("ignore")
    for name in json.loads(result.read_text())["modules"]:
        if name not in sys.modules and not name.startswith("_"):
            try:
                importlib.import_module(name)
            except Exception:
                continue  # a name that is no module
    gc.collect()
    gc.freeze()


def main(runs_file: Path) -> None:
    for number, run_entry in enumerate(json.loads(runs_file.read_text(encoding="utf-8"))):
        result = runs_file.with_name(f"{number}.json")
        pid = fork(training(run_entry, Notes(), result), result.with_suffix(".log"))
        result.with_suffix(".status").write_text(str(status_of(pid)))
        if number == 0 and result.is_file():
            import_what_it_imports(result)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
