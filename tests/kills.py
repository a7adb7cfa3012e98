"""Stop small trainings at random moments, go on, and compare the models bit for bit.

    python tests/kills.py --number 200 --folder /tmp/kills

Each run is a process that gets SIGKILL, SIGTERM or SIGINT at a random moment of a random stage,
then goes on with `--resume auto`, and one time in three is stopped once more on the way. Its final
weights, best checkpoint and logged values are compared with those of a run that nothing stopped.

The processes are forked from this one, which has imported everything, because imports take longer
than a run. So is the one that verifies a model. Nothing else differs from `python train_rm.py`.
"""

import argparse
import functools
import hashlib
import json
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

from standins import hh_rows, make_model
from support import last_of_each, write_rows

import train_rm
from reward.checkpoint import contract, resume, verify
from reward.training import run
from reward.training.trainer import PairTrainer

RECIPE = """\
model_name_or_path: {model}
dtype: float32
dataset_name: {data}
max_length: 256
validation_fraction: 0.25
learning_rate: 2.0e-3
per_device_train_batch_size: 3
gradient_accumulation_steps: 2
logging_steps: 2
max_steps: 12
eval_strategy: steps
eval_steps: 3
save_strategy: steps
save_steps: 3
report_to: none
use_cpu: true
activation_checkpointing: false
"""
BEST = "--load_best_model_at_end true --metric_for_best_model loss --greater_is_better false "
CONFIGURATIONS = {
    "full": "--disable_dropout false --model_init_kwargs {attention_dropout:\\ 0.1}",
    "LoRA": "--use_peft true --lora_r 4 --lora_dropout 0.1 --lora_target_modules all-linear",
    "token_budget": "--token_budget 300 --length_head true",
    "best of all": BEST,
    "early stopping": f"{BEST} --early_stopping_patience 1 --max_steps 18 --learning_rate 0.02",
    "save_total_limit: 1": f"{BEST} --save_total_limit 1 --eval_steps 2 --save_steps 4",
    "by epoch": (
        "--eval_strategy epoch --save_strategy epoch --logging_strategy epoch --max_steps -1 "
        f"--num_train_epochs 2 --save_total_limit 1 {BEST}"
    ),
    "by length": "--train_sampling_strategy group_by_length --max_steps 18",
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

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
    "end": None,
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


def note_stages(notes: Notes, durations: list) -> None:
    """Let the functions of STAGES note when they begin and end."""

    def noting(name, function):
        @functools.wraps(function)
        def wrapped(*args, **options):
            before = notes.stage
            notes.enter(name)
            start = time.monotonic()
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


def fork(function, log: Path) -> int:
    """Call a function in a process of its own, whose output goes to a file; returns its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, signal.default_int_handler)
        status = function()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def status_of(pid: int) -> int:
    """Wait for a process; its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def verify_in_a_fork(module: str, folder: Path) -> dict:
    """`run_in_fresh_process`, without the imports."""
    assert module == "reward.checkpoint.verify"
    answer = Path(folder).parent.with_suffix(".verified")

    def child() -> int:
        os.closerange(3, 256)  # as a new program would; the lock is among them
        answer.unlink(missing_ok=True)
        sys.stdout = open(answer, "w", encoding="utf-8")
        verify.main(str(folder))
        sys.stdout.close()
        sys.stdout = sys.__stdout__
        return 0

    status = status_of(fork(child, answer.with_suffix(".log")))
    if status:
        raise contract.CheckpointError(f"{folder}: the verification ended with {status}")
    return json.loads(answer.read_text().splitlines()[-1])


def train(options: list[str], notes: Notes, result: Path):
    """A function that trains, and writes to `result` what came of it."""

    def child() -> int:
        durations = []
        start = time.monotonic()
        contract.run_in_fresh_process = verify_in_a_fork
        note_stages(notes, durations)
        train_here = run.train

        def train_and_note(settings, data, training):
            rewards = train_here(settings, data, training)
            state = training.trainer.state
            facts = {
                "log": [untimed(entry) for entry in state.log_history],
                "best": [state.best_metric, Path(state.best_model_checkpoint or "").name],
                "steps": state.global_step,
                "rewards": rewards,
                "validation": untimed(training.manifest.validation or {}),
            }
            result.write_text(json.dumps(facts))
            return rewards

        run.train = train_and_note
        status = train_rm.main(options)
        notes.enter("end")
        whole = time.monotonic() - start
        result.with_suffix(".times").write_text(json.dumps([whole, durations]))
        return status

    return child


def untimed(entry: dict) -> dict:
    """The metrics of an entry of the log that do not depend on the time it took."""
    timed = ("runtime", "per_second", "flos", "train_loss")
    return {key: value for key, value in entry.items() if not key.endswith(timed)}


# --- Trials ---------------------------------------------------------------------------------------


@dataclass
class Reference:
    """What a run gives that nothing stops."""

    outcome: dict
    durations: dict[str, list[float]]  # stage -> of each time, in order
    seconds: float


def outcome(out: Path, result: Path) -> dict:
    """The weights that a run saved, by their hash, and what it noted."""
    files = [out / "model.safetensors", out / "adapter_model.safetensors"]
    (weights,) = [path for path in files if path.is_file()]
    facts = json.loads(result.read_text())
    return facts | {"weights": hashlib.sha256(weights.read_bytes()).hexdigest()}


def reference_run(options: list[str], folder: Path) -> Reference:
    out, result = folder / "whole", folder / "whole.json"
    child = train([*options, "--output_dir", str(out)], Notes(), result)
    status = status_of(fork(child, folder / "whole.log"))
    if status:
        sys.exit(f"{folder}/whole.log: the run that nothing stops ended with {status}")
    seconds, entries = json.loads(result.with_suffix(".times").read_text())
    durations = {}
    for name, duration in entries:
        durations.setdefault(name, []).append(duration)
    durations["elsewhere"] = [seconds]  # at any moment of the run
    return Reference(outcome(out, result), durations, seconds)


def stop_somewhere(pid: int, notes: Notes, reference: Reference, how: int, rng: random.Random):
    """Send a signal at a random moment of a random stage; returns the stage that it fell into."""
    stage = rng.choice([name for name in NAMES if name in reference.durations])
    times = reference.durations[stage]
    which = rng.randrange(len(times))
    while stage != "elsewhere" and notes.entered(stage) <= which:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return "end"
        time.sleep(0.0002)
    time.sleep(rng.random() * times[which])
    fell = notes.stage
    os.kill(pid, how)
    return fell


def trial(options: list[str], reference: Reference, folder: Path, rng: random.Random) -> dict:
    """Stop a run once or twice, let it end, and compare."""
    out, result, log = (folder.with_suffix(end) for end in (".out", ".json", ".log"))
    options = [*options, "--output_dir", str(out), "--resume", "auto"]
    stops = []
    for _ in range(rng.choice((1, 1, 2))):
        notes, how = Notes(), rng.choice(SIGNALS)
        pid = fork(train(options, notes, result), log)
        fell = stop_somewhere(pid, notes, reference, how, rng)
        status = status_of(pid)
        stops.append({"how": signal.Signals(how).name, "in": fell, "status": status})
    status = status_of(fork(train(options, Notes(), result), log))
    row = {"stops": stops, "status": status, "differs": ["status"]}
    if status == 0:
        facts = outcome(out, result)
        row["differs"] = [key for key in facts if facts[key] != reference.outcome[key]]
        leftovers = sorted(
            path.name for path in out.iterdir() if path.name.startswith((".", "unverified"))
        )
        row["differs"] += leftovers
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=200, help="how many runs to stop")
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one configuration")
    args = parser.parse_args()
    folder = args.folder
    folder.mkdir(parents=True)
    status_of(fork(lambda: make_material(folder), folder / "material.log"))
    rng = random.Random(args.seed)
    references, rows = {}, []
    names = [name for name in CONFIGURATIONS if args.only in (None, name)]
    for number in range(args.number):
        name = names[number % len(names)]
        options = ["--recipe", str(folder / "recipe.yaml"), *words(CONFIGURATIONS[name])]
        if name not in references:
            place = folder / f"whole-{number}"
            place.mkdir()
            references[name] = reference_run(options, place)
        row = trial(options, references[name], folder / str(number), rng)
        row |= {"number": number, "configuration": name}
        rows.append(row)
        with open(folder / "rows.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if row["differs"]:
            print(f"{folder}/{number}: {row}", flush=True)
    print_tables(rows)
    return int(any(row["differs"] for row in rows))


def make_material(folder: Path) -> int:
    model = make_model(folder / "model", "qwen")
    write_rows(folder / "pairs" / "train.jsonl", hh_rows(60, seed=1))
    write_rows(folder / "pairs" / "test.jsonl", hh_rows(6, seed=2))
    (folder / "recipe.yaml").write_text(RECIPE.format(model=model, data=folder / "pairs"))
    return 0


def words(options: str) -> list[str]:
    """The words of a command line; a backslash keeps a space. Of an option the last one counts."""
    found = [word.replace("\0", " ") for word in options.replace("\\ ", "\0").split()]
    return last_of_each(found)


def print_tables(rows: list[dict]) -> None:
    """How many runs of each configuration, and how many stops in each stage, ended the same."""
    for title, keys in (
        ("configuration", lambda row: [row["configuration"]]),
        ("stopped in", lambda row: [stop["in"] for stop in row["stops"]]),
        ("by", lambda row: [stop["how"] for stop in row["stops"]]),
    ):
        stopped, same = Counter(), Counter()
        for row in rows:
            for key in keys(row):
                stopped[key] += 1
                same[key] += not row["differs"]
        print(f"\n| {title} | stops | same model |\n|---|---|---|")
        for key in sorted(stopped, key=lambda key: (key in NAMES and NAMES.index(key), key)):
            print(f"| {key} | {stopped[key]} | {same[key]} |")


if __name__ == "__main__":
    sys.exit(main())
