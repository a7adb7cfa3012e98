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
from small_runs import CONFIGURATIONS, make_material, words

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


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
