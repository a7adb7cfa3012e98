"""A recipe: its defaults, its sections, its sources and the copy that it saves."""

from pathlib import Path

import pytest
import yaml
from recipe_texts import DATA, SOUND, parse

from reward.recipe.keys import OWN
from reward.recipe.parse import load_saved, parse_command_line

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_sound_recipe_with_defaults():
    recipe = parse(SOUND + "learning_rate: 1e-5\nmax_length: null\n")
    assert recipe.values == {
        "model_name_or_path": "org/model",
        "dataset_name": "org/pairs",
        "output_dir": "out",
        "learning_rate": 0.00001,
        "max_length": None,
    }
    assert recipe["max_length"] is None and recipe.get("learning_rate") == 1e-5
    assert (recipe["overlong"], recipe["validation_fraction"], recipe["lora_task_type"]) == (
        "drop",
        0.1,
        "SEQ_CLS",
    )
    assert (recipe["report_to"], recipe["bf16"], recipe["num_train_epochs"]) == ("none", None, 3.0)
    assert (recipe["loss_type"], recipe["soft_labels"]) == ("bradley_terry", True)
    assert (recipe["strength_as"], recipe["min_rater_agreement"]) == ("target_margin", None)
    assert (recipe["label_smoothing"], recipe["tie_margin"], recipe["mismatched_prompts"]) == (
        0.0,
        None,
        0.0,
    )
    assert (recipe["head"], recipe["head_bias"], recipe["head_dropout"]) == ("linear", None, 0.0)
    assert recipe["train_last_layers"] is None
    assert recipe.section("RewardConfig") == {
        "output_dir": "out",
        "learning_rate": 1e-5,
        "max_length": None,
        "report_to": "none",
        "log_on_each_node": False,
    }
    assert recipe.section("ModelConfig") == {
        "model_name_or_path": "org/model",
        "lora_task_type": "SEQ_CLS",
    }
    assert (recipe.merge, recipe.check_data, recipe.overwrite, recipe.resume) == (
        False,
        False,
        False,
        None,
    )
    assert recipe.plan is None
    for words, plan in (
        (["--plan"], ""),
        (["--plan", "x.yaml"], "x.yaml"),
        (["--plan=x.yaml", "--seed", "3"], "x.yaml"),
    ):
        Path("x.yaml").touch()
        assert parse_command_line(["--recipe", "r.yaml", *words]).plan == plan


def test_data_sources():
    text = """dataset_name: org/pairs
dataset_config: en
dataset_test_split: dev
dataset_streaming: true
max_steps: 9
"""
    assert parse(DATA + text).data_sources() == [
        {
            "path": "org/pairs",
            "name": "en",
            "data_dir": None,
            "data_files": None,
            "split": "train",
            "columns": None,
            "fraction": None,
            "test_split": "dev",
            "subset": None,
            "streaming": True,
        }
    ]
    text = """datasets:
- {path: a/b, data_dir: x/harmless-base, fraction: 1}
- {path: c/d, subset: own, fraction: 0.5}
"""
    first, second = parse(DATA + text).data_sources()
    assert (first["subset"], second["subset"]) == ("harmless-base", "own")
    assert (first["fraction"], second["fraction"], second["test_split"]) == (1, 0.5, "test")
    assert first["streaming"] is False and first.keys() == second.keys()


def test_the_columns_of_a_source_are_saved_and_read_again():
    text = "datasets:\n- {path: a/b, columns: {prompt: my_question, chosen: good}}\n"
    parse(DATA + text).save("copy.yaml")
    for recipe in (load_saved("copy.yaml"), parse_command_line(["--recipe", "copy.yaml"])):
        (source,) = recipe.data_sources()
        assert source["columns"] == {"prompt": "my_question", "chosen": "good"}


def test_own_keys_are_below_their_banners():
    parse(SOUND).save("copy.yaml")
    keys = {}
    for group in Path("copy.yaml").read_text().split("\n# ")[1:]:
        banner, *lines = group.split("\n")
        keys[banner] = {line.split(":")[0] for line in lines}
    assert keys["Model"] >= {"head", "head_bias", "head_dropout", "head_init", "train_last_layers"}
    assert keys["Data"] >= {"min_rater_agreement", "mismatched_prompts", "overlong", "max_dropped"}
    assert keys["Objective"] == {
        "loss_type",
        "soft_labels",
        "strength_as",
        "label_smoothing",
        "tie_margin",
        "length_head",
        "",
    }
    assert keys["Training"] == {"prefix_sharing", "token_budget", "early_stopping_patience", ""}


def test_resolved_copy_round_trip():
    text = """run_name: '1e-5'
learning_rate: 1e-5
eval_strategy: no
lr_scheduler_kwargs: {a: 1e-6, b: null}
hub_token: 'secret'
model_revision: '2024-01-01'
"""
    recipe = parse(SOUND + text, "--seed", "7")
    recipe.save("copy.yaml")
    copy = parse_command_line(["--recipe", "copy.yaml"])
    expected = {key: value for key, value in recipe.values.items() if key != "hub_token"}
    assert copy.values == {key: own.default for key, own in OWN.items()} | expected
    saved = Path("copy.yaml").read_text()
    banners = [line for line in saved.splitlines() if line.startswith("# ")][1:]
    assert banners == [
        "# Model",
        "# Data",
        "# Objective",
        "# Training",
        "# Logging",
    ]
    assert "secret" not in saved
    # Any other YAML reader agrees, `no` and dates included.
    assert yaml.safe_load(saved) == copy.values
    copy.save("again.yaml")
    assert Path("again.yaml").read_text() == saved
