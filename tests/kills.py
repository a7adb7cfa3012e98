"""Stop small trainings at random moments, go on, and compare the models bit for bit.

    python tests/kills.py --number 200 --folder /tmp/kills

Each run gets SIGKILL, SIGTERM or SIGINT at a random moment of a random stage, then goes on with
`--resume auto`; one in three is stopped once more on the way. Its final weights, golden rewards,
best checkpoint and logged values are compared with those of a run that nothing stopped.
tests/forks.py says how the processes differ from `python train_rm.py`.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import forks
from forks import NAMES, Notes, fork, status_of, training
from standins import hh_rows, make_model
from support import last_of_each, write_rows

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
# The base recipe takes 7 steps for an epoch.
CONFIGURATIONS = {
    "full, with dropout": "--disable_dropout false --model_init_kwargs {attention_dropout:\\ 0.1}",
    "LoRA": "--use_peft true --lora_r 4 --lora_dropout 0.1 --lora_target_modules all-linear",
    "token_budget, length_head": "--token_budget 300 --length_head true",
    "load_best_model_at_end": BEST,
    "early stopping": f"{BEST} --early_stopping_patience 1 --max_steps 18 --learning_rate 0.02",
    "save_total_limit: 1": f"{BEST} --save_total_limit 1 --eval_steps 2 --save_steps 4",
    "by epoch": (
        "--eval_strategy epoch --save_strategy epoch --logging_strategy epoch --max_steps -1 "
        f"--num_train_epochs 2 --save_total_limit 1 {BEST}"
    ),
    "group_by_length": "--train_sampling_strategy group_by_length --max_steps 18",
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def words(options: str) -> list[str]:
    """The words of a command line; a backslash keeps a space. Of an option the last one counts."""
    found = [word.replace("\0", " ") for word in options.replace("\\ ", "\0").split()]
    return last_of_each(found)


def make_material(folder: Path) -> int:
    """Write the model, the pairs and recipe.yaml."""
    model = make_model(folder / "model", "qwen")
    write_rows(folder / "pairs" / "train.jsonl", hh_rows(60, seed=1))
    write_rows(folder / "pairs" / "test.jsonl", hh_rows(6, seed=2))
    (folder / "recipe.yaml").write_text(RECIPE.format(model=model, data=folder / "pairs"))
    return 0


# --- Trials ---------------------------------------------------------------------------------------


@dataclass
class Reference:
    """What a run gives that nothing stops."""

    facts: dict
    durations: dict[str, list[float]]  # stage -> seconds of each time, in order


def compared(result: Path) -> dict:
    """What came of a run, as far as it must be the same."""
    facts = json.loads(result.read_text())
    return {key: value for key, value in facts.items() if key not in ("durations", "modules")}


def reference_run(options: list[str], place: Path) -> Reference:
    result = place.with_suffix(".json")
    entry = {"argv": [*options, "--output_dir", str(place.with_suffix(".out"))]}
    status = status_of(fork(training(entry, Notes(), result), place.with_suffix(".log")))
    if status:
        sys.exit(f"{place}.log: the run that nothing stops ended with {status}")
    durations = {}
    for name, duration in json.loads(result.read_text())["durations"]:
        durations.setdefault(name, []).append(duration)
    return Reference(compared(result), durations)


def stop_somewhere(pid: int, notes: Notes, reference: Reference, how: int, rng: random.Random):
    """Send a signal at a random moment of a random stage; return the stage that it fell into."""
    stage = rng.choice([name for name in NAMES if name in reference.durations])
    seconds = reference.durations[stage]
    which = rng.randrange(len(seconds))
    while stage != "elsewhere" and notes.entered(stage) <= which:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return "the end"
        time.sleep(0.0002)
    time.sleep(rng.random() * seconds[which])
    fell = notes.stage
    os.kill(pid, how)
    return fell


def trial(options: list[str], reference: Reference, place: Path, rng: random.Random) -> dict:
    """Stop a run once or twice, let it end, and compare."""
    out, result, log = (place.with_suffix(end) for end in (".out", ".json", ".log"))
    entry = {"argv": [*options, "--output_dir", str(out), "--resume", "auto"]}
    stops = []
    for _ in range(rng.choice((1, 1, 2))):
        notes, how = Notes(), rng.choice(SIGNALS)
        pid = fork(training(entry, notes, result), log)
        fell = stop_somewhere(pid, notes, reference, how, rng)
        stops.append({"by": signal.Signals(how).name, "in": fell, "status": status_of(pid)})
    status = status_of(fork(training(entry, Notes(), result), log))
    row = {"stops": stops, "status": status, "differs": ["status"]}
    if status == 0:
        facts = compared(result)
        row["differs"] = [key for key in facts if facts[key] != reference.facts[key]]
        left = [path.name for path in out.iterdir()]
        row["differs"] += [name for name in left if name.startswith((".", "unverified"))]
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
            references[name] = reference_run(options, place)
            forks.import_what_it_imports(place.with_suffix(".json"))
        row = trial(options, references[name], folder / str(number), rng)
        row |= {"number": number, "configuration": name}
        rows.append(row)
        with open(folder / "rows.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if row["differs"]:
            print(f"{folder}/{number}: {row}", flush=True)
    print_table("configuration", rows, lambda row: [row["configuration"]])
    print_table("stopped in", rows, lambda row: [stop["in"] for stop in row["stops"]])
    print_table("by", rows, lambda row: [stop["by"] for stop in row["stops"]])
    return int(any(row["differs"] for row in rows))


def print_table(title: str, rows: list[dict], keys_of: Callable[[dict], list[str]]) -> None:
    """How many runs there were of each kind, and how many of them gave the same model."""
    number, same = Counter(), Counter()
    for row in rows:
        for key in keys_of(row):
            number[key] += 1
            same[key] += not row["differs"]
    order = [*CONFIGURATIONS, *NAMES]
    print(f"\n| {title} | runs | same in the end |\n|---|---|---|")
    for key in sorted(number, key=lambda key: order.index(key) if key in order else 0):
        print(f"| {key} | {number[key]} | {same[key]} |")


if __name__ == "__main__":
    sys.exit(main())
