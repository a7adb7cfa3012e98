"""What each objective, and each remedy against length, makes of the quickstart.

    python benchmarks/objectives.py

The quickstart's training raters prefer long answers and its test raters do not, so a remedy shows
as higher test accuracy and less excess. Every row of the table is trained once for each seed (a
minute each on one core, two at a time) and audited. Printed is a Markdown table of means with the
lowest and the highest seed; --output FILE gets the numbers as JSON.

Prompt dependence is the accuracy on the test pairs minus the accuracy when each pair is read after
another pair's prompt.
"""

import argparse
import gzip
import importlib.util
import itertools
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
SETTINGS = {  # row of the table -> what is added to the command line
    "bradley_terry (the recipe as it is)": "",
    "label_smoothing: 0.1": "--label_smoothing 0.1",
    "rao_kupper": "--loss_type rao_kupper",
    "mse": "--loss_type mse",
    "rating_mse, on simulated ratings": "--loss_type rating_mse --dataset_name RATED",
    "classification": "--loss_type classification",
    "classification, two_logit": "--loss_type classification --head two_logit",
    "length_head": "--length_head true",
    "mismatched_prompts: 0.25": "--mismatched_prompts 0.25",
    "mismatched_prompts: 0.5": "--mismatched_prompts 0.5",
    "length_head, mismatched_prompts: 0.25": "--length_head true --mismatched_prompts 0.25",
}
ONE_AT_A_TIME = Lock()  # neither datasets nor transformers loads well in two threads of a process
COLUMNS = (
    "accuracy",
    "length excess",
    "length correlation, within pairs",
    "prompt dependence",
    "relevance",
    "candour",
)


def rated_pairs(folder: Path) -> None:
    """Write the quickstart's pairs with ratings of 0 to 4, by a rater as biased as its votes."""
    spec = importlib.util.spec_from_file_location("make", REPO / "data" / "quickstart" / "make.py")
    make = importlib.util.module_from_spec(spec)
    sys.modules["make"] = make  # its dataclass looks itself up there
    spec.loader.exec_module(make)
    rng = random.Random(0)

    def rating(answer) -> int:
        length_bias = make.TRAIN_LENGTH_BIAS * (answer.words - 35) / make.LENGTH_SCALE
        pull = (answer.utility - 2.5 + length_bias) / make.NOISE
        return sum(rng.random() < 1 / (1 + math.exp(-pull / 2)) for _ in range(4))

    def rate(chosen, rejected) -> dict[str, int]:
        return {"rating_chosen": rating(chosen), "rating_rejected": rating(rejected)}

    splits, _ = make.make_pairs(rate=rate)
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        with gzip.open(folder / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def measure(name: str, seed: int, work: Path) -> dict[str, float]:
    """Train and audit one row of the table; return the value of each column."""
    out = work / f"{list(SETTINGS).index(name)}-{seed}"
    options = SETTINGS[name].replace("RATED", str(work / "rated")).split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    train = ["train_rm.py", "--recipe", "recipes/quickstart.yaml", "--output_dir", str(out)]
    train += ["--seed", str(seed), *options]
    for command in (train, ["audit.py", "--ckpt", str(out), "--quick"]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=REPO,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{name}, seed {seed}: exit {done.returncode}\n{done.stderr[-3000:]}")
    checks = json.loads((out / "audit" / "audit.json").read_text(encoding="utf-8"))["checks"]
    values = {}
    for check in checks:
        values[check["subset"] or check["name"]] = check["value"]
    with ONE_AT_A_TIME:
        values["prompt dependence"] = values["accuracy"] - shuffled_accuracy(out)
    print(f"{name}, seed {seed}: accuracy {values['accuracy']:.3f}", file=sys.stderr, flush=True)
    return {column: values[column] for column in COLUMNS}


def shuffled_accuracy(ckpt: Path) -> float:
    """Accuracy on the quickstart's test pairs, each read after the prompt of the next one."""
    from auditing.checks.accuracy import accuracy
    from reward.data.splits import load_test_split
    from reward.data.tokens import decode_sides
    from reward.model.scorer import Scorer
    from reward.recipe.parse import load_saved

    table, _ = load_test_split(load_saved(REPO / "recipes" / "quickstart.yaml").data_sources())
    pairs = [decode_sides(row) for row in table]
    texts = []
    for pair, other in zip(pairs, pairs[1:] + pairs[:1], strict=True):
        texts += [(other.prompt, pair.chosen), (other.prompt, pair.rejected)]
    rewards = Scorer(str(ckpt)).rewards(texts)
    return accuracy(np.subtract(rewards[::2], rewards[1::2])).value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="", help="rows that contain this text")
    parser.add_argument("--output", help="JSON file")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    names = [name for name in SETTINGS if args.only in name]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as two:
        work = Path(folder)
        rated_pairs(work / "rated")
        runs = list(itertools.product(names, seeds))
        results = dict(zip(runs, two.map(lambda run: measure(*run, work), runs), strict=True))
    print("| | " + " | ".join(COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for name in names:
        cells = []
        for column in COLUMNS:
            values = [results[name, seed][column] for seed in seeds]
            mean = sum(values) / len(values)
            cells.append(f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"| {name} | {' | '.join(cells)} |")
    if args.output:
        rows = []
        for (name, seed), values in results.items():
            rows.append({"setting": name, "seed": seed, **values})
        Path(args.output).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
