"""Every objective and head, through train_rm.py.

Each saves, verifies in a fresh process and scores equal, under LoRA with accumulation, and on two
processes, where it gives the weights of one.
"""

import json
import random
from pathlib import Path

import pytest
from launched import read_json, train_several
from safetensors.torch import load_file
from standins import WORDS
from support import write_rows

from reward.checkpoint.golden import read_golden
from reward.model.scorer import Scorer

# name -> recipe keys
OBJECTIVES = {
    "bradley_terry, two logits": {
        "head": "two_logit",
        "head_init": "normal",
        "label_smoothing": 0.1,
    },
    "rao_kupper, head bias": {
        "loss_type": "rao_kupper",
        "tie_margin": 0.4,
        "head_bias": True,
        "head_dropout": 0.1,
        # Without it the bias has no gradient, and Adam turns rounding into a drift.
        "center_rewards_coefficient": 0.01,
    },
    "mse, zero head": {"loss_type": "mse", "head_init": "zero", "head_bias": True},
    "rating_mse": {"loss_type": "rating_mse", "head_bias": True},
    "classification": {"loss_type": "classification", "soft_labels": False},
    "classification, two logits": {"loss_type": "classification", "head": "two_logit"},
    "length head, mismatched prompts, agreement": {
        "length_head": True,
        "mismatched_prompts": 0.5,
        "min_rater_agreement": 0.6,
    },
}
LAST_LAYERS = {"train_last_layers": 1}
# Every run here is a launch: a minute for all of them.
pytestmark = pytest.mark.slow

STEPS = (
    "--max_steps 3 --eval_steps 3 --save_steps 3 --logging_steps 1 --learning_rate 3e-3 "
    "--warmup_steps 0"
).split()


def labelled_rows(n: int, seed: int) -> list[dict]:
    """Rows of every kind of label, with ties among each.

    A third are pairs with votes and ratings, a third rankings of three, a third preferences with a
    strength. Better answers begin with "here are three steps".
    """
    rng = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    rows = []
    for i in range(n):
        prompt, tie = f"{seed} {i} {words(3, 9)}?", i % 7 == 0
        best = f"here are three steps {words(2, 12)}"
        second = f"sorry {words(2, 12)}"
        third = f"please stop {words(2, 12)}"
        row = {"prompt": prompt}
        if i % 3 == 0:
            votes, ratings = [2, 2], [3, 3]
            if not tie:
                votes, ratings = rng.choice([[3, 1], [4, 0]]), [4, 1]
            row |= {"chosen": best, "rejected": second, "votes": votes}
            row |= {"rating_chosen": ratings[0], "rating_rejected": ratings[1]}
        elif i % 3 == 1:
            ranks = [1, 2, 3]
            if tie:
                ranks = [1, 2, 2]
            row |= {"completions": [best, second, third], "ranks": ranks}
        else:
            strength = 0
            if not tie:
                strength = -rng.randint(1, 3)
            row |= {"response_1": best, "response_2": second, "preference_strength": strength}
        rows.append(row)
    return rows


def rated_rows(n: int, seed: int) -> list[dict]:
    """The rows with ratings, about n of them."""
    return [row for row in labelled_rows(3 * n, seed) if "rating_chosen" in row]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of two data sets: `mixed` has all labelled rows, `rated` those with ratings."""
    folder = tmp_path_factory.mktemp("labelled")
    for name, rows in (("mixed", labelled_rows), ("rated", rated_rows)):
        write_rows(folder / name / "train.jsonl", rows(90, seed=1))
        write_rows(folder / name / "test.jsonl", rows(12, seed=2))
    return folder


def recipe_of(keys: dict, data: Path, base: Path, folder: Path, processes: int) -> Path:
    """Write the recipe of one run into `folder`.

    A step sees the same pairs for any number of processes.
    """
    kind = "mixed"
    if keys.get("loss_type") == "rating_mse":
        kind = "rated"
    recipe = {
        "model_name_or_path": str(base),
        "dataset_name": str(data / kind),
        "output_dir": str(folder / "rm"),
        "validation_fraction": 0.2,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "max_length": 256,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4 // processes,
        "use_cpu": True,
        "activation_checkpointing": False,
        "max_dropped": 0.5,
        **keys,
    }
    folder.mkdir(parents=True)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


@pytest.fixture(scope="module")
def runs(data, standin, tmp_path_factory):
    """`runs(processes)` -> {name: (saved folder, what was printed)}: one launch trains all of them.

    One process also trains the adapters ("LoRA, NAME") and the last layers with checkpointing.
    """
    made = {}

    def of(processes: int) -> dict:
        if processes not in made:
            home = tmp_path_factory.mktemp("objectives")
            recipes = {
                name: recipe_of(keys, data, standin("qwen"), home / f"run-{number}", processes)
                for number, (name, keys) in enumerate(keys_by_run(processes).items())
            }
            lines = [["--recipe", recipe, *STEPS] for recipe in recipes.values()]
            finished = train_several(lines, home / "launch", processes)
            made[processes] = {
                name: (recipe.parent / "rm", run)
                for (name, recipe), run in zip(recipes.items(), finished, strict=True)
            }
        return made[processes]

    return of


def keys_by_run(processes: int) -> dict[str, dict]:
    """The recipe keys of every run with so many processes, by name."""
    keys = {name: keys | {"head_dropout": 0.0} for name, keys in OBJECTIVES.items()}
    keys["last layers"] = LAST_LAYERS | {"head_dropout": 0.0}
    if processes == 1:
        adapter = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"}
        keys |= {f"LoRA, {name}": more | adapter for name, more in OBJECTIVES.items()}
        keys["last layers, checkpointing"] = LAST_LAYERS | {"activation_checkpointing": True}
    return keys


@pytest.fixture(scope="module")
def trained(runs):
    """`trained(name, processes)` -> (saved folder, what was printed), once the run is checked."""

    def get(name: str, processes: int = 1):
        out, run = runs(processes)[name]
        assert run.status == 0, run.stderr[-3000:]
        assert f"saved {out}: a fresh process gives the same rewards" in run.stdout
        golden = [row for row in read_golden(out) if row["text"] is not None]
        texts = [(row["text"]["prompt"], row["text"]["completion"]) for row in golden]
        rewards = [row["reward"] for row in golden]
        assert max(rewards) - min(rewards) > 1e-2
        assert Scorer(str(out)).rewards(texts) == pytest.approx(rewards, abs=1e-4)
        manifest = read_json(out / "manifest.json")
        labels = 1
        if keys_by_run(processes)[name].get("head") == "two_logit":
            labels = 2
        assert manifest["labels"] == labels
        verified = manifest["verified"]
        assert verified["max_difference"] <= verified["tolerance"] == pytest.approx(1e-4)
        return out, run.stdout

    return get


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_saves_and_scores_equal_under_lora_and_accumulation(name, trained):
    out, _ = trained(f"LoRA, {name}")
    assert (out / "adapter_model.safetensors").exists()
    assert (out / "merged" / "model.safetensors").exists()
    golden = read_golden(out / "merged")
    merged_rewards = Scorer(str(out / "merged")).rewards_of_ids([row["ids"] for row in golden])
    expected = [row["reward"] for row in read_golden(out)]
    assert merged_rewards == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", [*OBJECTIVES, "last layers"])
def test_two_processes_give_the_weights_of_one(name, trained, standin):
    """Rankings stay whole, ties and unequal weights count the same, wherever a pair is computed."""
    (one, _), (two, printed) = trained(name), trained(name, 2)
    assert "2 processes" in printed
    weights = load_file(two / "model.safetensors")
    expected = load_file(one / "model.safetensors")
    start = load_file(standin("qwen") / "model.safetensors")
    for key in expected:
        step = expected[key]
        if key in start:
            step = expected[key] - start[key]
        difference = weights[key] - expected[key]
        # The order of a sum differs, and Adam divides by the root of a small number.
        assert difference.norm().item() <= 1e-3 * step.norm().item(), key
    evaluations = [read_json(folder / "manifest.json")["validation"] for folder in (one, two)]
    for key in ("loss", "accuracy", "margin", "n"):
        assert evaluations[0][key] == pytest.approx(evaluations[1][key], abs=1e-5), key
    ledger = read_json(one / "ledger.json")
    assert ledger == read_json(two / "ledger.json")
    loss_type = OBJECTIVES.get(name, {}).get("loss_type")
    unused = f"target margin, which loss_type: {loss_type} does not use"
    reads_no_margin = loss_type in ("rao_kupper", "mse", "classification")
    assert (unused in ledger["train"]["noted"]) is reads_no_margin


def test_the_last_layers_alone_are_trained_and_said(trained, standin):
    out, printed = trained("last layers, checkpointing")
    before = load_file(standin("qwen") / "model.safetensors")
    after = load_file(out / "model.safetensors")
    moved = {key for key in before if key in after and not (before[key] == after[key]).all()}
    assert moved and all(key.startswith("model.layers.1.") for key in moved)
    total = sum(value.numel() for value in after.values())
    trained_parts = ("model.layers.1.", "score")
    count = sum(after[key].numel() for key in after if key.startswith(trained_parts))
    assert f"{total:,} parameters, {count / total:.1%} trained" in printed
