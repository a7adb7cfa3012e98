"""A token of the Hub stands in no file and no line that a run writes, wherever users put it."""

import importlib.util

import pytest
from launched import CPU
from standins import hh_rows
from support import run_script, write_rows

from reward.data.secrets import hide_secrets, without_secrets
from reward.recipe.parse import parse_command_line
from reward.recipe.recipe import RecipeError

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"


@pytest.mark.parametrize(
    "words",
    [
        ["--hub_tokn", TOKEN],
        ["--hub_token", f"[{TOKEN}]"],
        ["--hub_token", "[secret-of-another-kind]"],
        ["--learning_rate", TOKEN],
        ["--model_name_or_path", f"https://user:{TOKEN}@host/model"],
        ["--model_init_kwargs", f"[{TOKEN}]"],
        [TOKEN],
    ],
)
def test_an_error_about_a_recipe_shows_no_token(words):
    with pytest.raises(RecipeError) as error:
        parse_command_line([*words, "--no_such_key", "1"])
    assert TOKEN not in str(error.value) and "secret-of-another-kind" not in str(error.value)


def test_what_is_hidden():
    assert hide_secrets(f"401 for {TOKEN}.") == "401 for hf_***."
    assert hide_secrets("hf_transfer, a/hf_models/x") == "hf_transfer, a/hf_models/x"
    recipe = {"hub_token": "x", "model_init_kwargs": {"token": "y", "n": 1}, "list": [TOKEN]}
    assert without_secrets(recipe) == {"model_init_kwargs": {"n": 1}, "list": ["hf_***"]}


@pytest.mark.slow
def test_a_run_writes_no_token(standin, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_rows(data / "train.jsonl", hh_rows(40))
    write_rows(data / "test.jsonl", hh_rows(10, seed=1))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model_name_or_path: {standin('qwen')}\n"
        "dtype: float32\n"
        f"dataset_name: {data}\n"
        f"hub_token: {TOKEN}\n"
        f"model_init_kwargs: {{token: {TOKEN}}}\n"
        "max_length: 256\n"
    )
    out = tmp_path / "rm-out"
    tracker = "none"
    if importlib.util.find_spec("tensorboard"):
        tracker = "tensorboard"  # it writes all settings of the trainer
    steps = "--max_steps 2 --save_strategy steps --save_steps 1 --logging_steps 1".split()
    options = ["--recipe", recipe, *steps, "--report_to", tracker, "--output_dir", out]
    done = run_script("train_rm.py", *options, env=CPU, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {"recipe.yaml", "model.safetensors", "optimizer.pt"} <= {path.name for path in files}
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    assert [path for path in files if path.name == "training_args.bin"] == []
