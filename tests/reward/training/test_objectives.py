"""Every objective and head, through train_rm.py: it saves, verifies in a fresh process and scores equal, under LoRA with
accumulation, and on two processes where it gives the weights of one."""

import json
import random

import pytest
from conftest import run_script, write_rows
from launched import CPU, launcher, read_json
from safetensors.torch import load_file
from standins import WORDS

from reward.checkpoint.golden import read_golden
from reward.model.scorer import Scorer

OBJECTIVES = {  # name -> recipe keys
    "bradley_terry, two logits": {"head": "two_logit", "head_init": "normal", "label_smoothing": 0.1},
    "rao_kupper, head bias": {
        "loss_type": "rao_kupper", "tie_margin": 0.4, "head_bias": True, "head_dropout": 0.1,
        "center_rewards_coefficient": 0.01,  # without it the bias has no gradient, and Adam turns rounding into a drift
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
}  # fmt: skip
LAST_LAYERS = {"train_last_layers": 1}
STEPS = "--max_steps 3 --eval_steps 3 --save_steps 3 --logging_steps 1 --learning_rate 3e-3 --warmup_steps 0".split()


def labelled_rows(n: int, seed: int) -> list[dict]:
    """A third are pairs with votes and ratings, a third rankings of three, a third preferences with a strength; ties among
    each. Better answers begin with "here are three steps"."""
    rng = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    rows = []
    for i in range(n):
        prompt, tie = f"{seed} {i} {words(3, 9)}?", i % 7 == 0
        answers = [
            f"here are three steps {words(2, 12)}",
            f"sorry {words(2, 12)}",
            f"please stop {words(2, 12)}",
        ]
        ratings = [3, 3] if tie else [4, 1]
        rated = dict(zip(("rating_chosen", "rating_rejected"), ratings, strict=True))
        if i % 3 == 0:
            votes = [2, 2] if tie else rng.choice([[3, 1], [4, 0]])
            rows.append(
                {
                    "prompt": prompt,
                    "chosen": answers[0],
                    "rejected": answers[1],
                    "votes": votes,
                    **rated,
                }
            )
        elif i % 3 == 1:
            rows.append(
                {"prompt": prompt, "completions": answers, "ranks": [1, 2, 2] if tie else [1, 2, 3]}
            )
        else:
            strength = 0 if tie else -rng.randint(1, 3)
            rows.append({"prompt": prompt, "response_1": answers[0], "response_2": answers[1]})
            rows[-1]["preference_strength"] = strength
    return rows


def rated_rows(n: int, seed: int) -> list[dict]:
    return [row for row in labelled_rows(3 * n, seed) if "rating_chosen" in row]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    for name, rows in (("mixed", labelled_rows), ("rated", rated_rows)):
        write_rows(folder / name / "train.jsonl", rows(90, seed=1))
        write_rows(folder / name / "test.jsonl", rows(12, seed=2))
    return folder


@pytest.fixture(scope="module")
def train(data, standin, tmp_path_factory):
    """`train(keys, processes)` -> the saved folder, once it has been checked."""

    def run(keys: dict, processes: int = 1):
        folder = tmp_path_factory.mktemp("objective")
        kind = "rated" if keys.get("loss_type") == "rating_mse" else "mixed"
        keys = {
            "model_name_or_path": str(standin("qwen")), "dataset_name": str(data / kind), "output_dir": str(folder / "rm"),
            "validation_fraction": 0.2, "eval_strategy": "steps", "save_strategy": "steps", "max_length": 256,
            "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4 // processes, "use_cpu": True,
            "activation_checkpointing": False, "max_dropped": 0.5, **keys,
        }  # fmt: skip
        recipe = folder / "recipe.yaml"
        recipe.write_text(json.dumps(keys), encoding="utf-8")  # JSON is YAML
        launch = launcher("ddp", processes) if processes > 1 else []
        done = run_script(*launch, "train_rm.py", "--recipe", recipe, *STEPS, env=CPU, timeout=400)
        out = folder / "rm"
        assert f"saved {out}: a fresh process gives the same rewards" in done.stdout

        golden = [row for row in read_golden(out) if row["text"] is not None]
        texts = [(row["text"]["prompt"], row["text"]["completion"]) for row in golden]
        rewards = [row["reward"] for row in golden]
        assert max(rewards) - min(rewards) > 1e-2
        assert Scorer(str(out)).rewards(texts) == pytest.approx(rewards, abs=1e-4)
        manifest = read_json(out / "manifest.json")
        assert manifest["labels"] == (2 if keys.get("head") == "two_logit" else 1)
        assert (
            manifest["verified"]["max_difference"]
            <= manifest["verified"]["tolerance"]
            == pytest.approx(1e-4)
        )
        return out, done.stdout

    return run


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_saves_and_scores_equal_under_lora_and_accumulation(name, train):
    adapter = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"}
    out, _ = train(OBJECTIVES[name] | adapter)
    assert (out / "adapter_model.safetensors").exists() and (
        out / "merged" / "model.safetensors"
    ).exists()
    golden = read_golden(out / "merged")
    assert Scorer(str(out / "merged")).rewards_of_ids(
        [row["ids"] for row in golden]
    ) == pytest.approx([row["reward"] for row in read_golden(out)], abs=1e-4)


@pytest.mark.parametrize("name", [*OBJECTIVES, "last layers"])
def test_two_processes_give_the_weights_of_one(name, train, standin):
    """Rankings stay whole, ties and unequal weights count the same, wherever the pairs of a step are computed."""
    keys = {"last layers": LAST_LAYERS, **OBJECTIVES}[name] | {"head_dropout": 0.0}
    (one, _), (two, said) = train(keys), train(keys, 2)
    assert "2 processes" in said
    found, expected = (load_file(folder / "model.safetensors") for folder in (two, one))
    start = load_file(standin("qwen") / "model.safetensors")
    for key in expected:
        moved = (expected[key] - start[key] if key in start else expected[key]).norm().item()
        # The order of a sum differs, and Adam divides by the root of a small number.
        assert (found[key] - expected[key]).norm().item() <= 1e-3 * moved, key
    evaluations = [read_json(folder / "manifest.json")["validation"] for folder in (one, two)]
    for key in ("loss", "accuracy", "margin", "n"):
        assert evaluations[0][key] == pytest.approx(evaluations[1][key], abs=1e-5), key
    ledger = read_json(one / "ledger.json")
    assert ledger == read_json(two / "ledger.json")
    unused = f"target margin, which loss_type: {keys.get('loss_type')} does not use"
    assert (unused in ledger["train"]["noted"]) is (
        keys.get("loss_type") in ("rao_kupper", "mse", "classification")
    )


def test_the_last_layers_alone_are_trained_and_said(train, standin):
    out, said = train(LAST_LAYERS | {"activation_checkpointing": True})
    before, after = (
        load_file(standin("qwen") / "model.safetensors"),
        load_file(out / "model.safetensors"),
    )
    moved = {key for key in before if key in after and not (before[key] == after[key]).all()}
    assert moved and all(key.startswith("model.layers.1.") for key in moved)
    total = sum(value.numel() for value in after.values())
    share = (
        sum(after[key].numel() for key in after if key.startswith(("model.layers.1.", "score")))
        / total
    )
    assert f"{total:,} parameters, {share:.1%} trained" in said
