"""Command lines and files: every fault is named at once, with its place."""

import subprocess
import sys
from pathlib import Path

import pytest
from recipe_texts import DATA, SOUND, faults, parse

from reward.recipe.keys import OWN
from reward.recipe.parse import parse_command_line
from reward.recipe.recipe import RecipeError

pytestmark = pytest.mark.usefixtures("empty_folder")

ROOT = Path(__file__).parents[3]


def test_all_faults_in_one_error():
    text = """learnig_rate: 5
per_device_train_batch_size: 2.5
learning_rate: abc
seed: 1
seed: 2
env: {TOKEN: x}
eval_strategy: stepz
load_in_4bit: true
validation_fraction: 1.5
output_dir: out
"""
    assert faults(text) == [
        "r.yaml:5: found `seed` twice, on line 4 and on line 5; "
        "it may be given once: delete one of the two lines",
        "r.yaml:1: unknown key `learnig_rate`; did you mean `learning_rate`?",
        "r.yaml:2: found `per_device_train_batch_size: 2.5`; needed is an integer, not a number: "
        "`per_device_train_batch_size: 8`",
        "r.yaml:3: found `learning_rate: abc`; needed is a number, not text: "
        "`learning_rate: 0.0001`",
        "r.yaml:6: `env` is refused: "
        "a recipe sets no environment (it could redirect tokens and caches): "
        "`NAME=value python train_rm.py ...`",
        "r.yaml:7: found `eval_strategy: stepz`; needed is one of no, steps, epoch: "
        "`eval_strategy: steps`",
        "r.yaml:9: found `validation_fraction: 1.5`; needed is 0 <= x < 1: "
        "`validation_fraction: 0.1`",
        "r.yaml: no model; add `model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct`, or a folder",
        "r.yaml:8: load_in_4bit freezes the weights, so it needs adapters to train: "
        "`use_peft: true`",
        "r.yaml: no data; add `dataset_name: Anthropic/hh-rlhf`, or a file or folder",
    ]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "r.yaml: found null; needed are lines such as `learning_rate: 2.0e-5`"),
        ("- a\n", "r.yaml: found a list; needed are lines"),
        ("seed: 1\nrun_name: [a\nlearning_rate: 2\n", "r.yaml:3: not valid YAML"),
        ("seed: 1\n\tlearning_rate: 2\n", "r.yaml:2: not valid YAML"),
        ("seed: !!python/name:os.system\n", "r.yaml:1: not valid YAML"),
        ("seed: 1\n---\nseed: 2\n", "r.yaml:2: not valid YAML"),
        ("a: &a [*a]\n", "not valid YAML"),
    ],
)
def test_unreadable_file_is_one_fault(text, part):
    (fault,) = faults(text)
    assert fault.startswith(part) or part in fault


def test_missing_file_and_folder():
    for name in ("none.yaml", "."):
        with pytest.raises(
            RecipeError, match="needed is a file, such as `--recipe recipes/quickstart.yaml`"
        ):
            parse_command_line(["--recipe", name])


def test_command_line():
    recipe = parse(
        SOUND + "seed: 1\n",
        "--seed",
        "7",
        "--learning-rate=1e-5",
        "--bf16",
        "--merge",
        "--use_peft",
        "--max_steps",
        "-1",
    )
    assert (recipe["seed"], recipe["learning_rate"], recipe["bf16"], recipe["max_steps"]) == (
        7,
        0.00001,
        True,
        -1,
    )
    assert recipe.merge and recipe.path == "r.yaml" and recipe.places["seed"] == "command line"
    assert parse_command_line(["--recipe=r.yaml", "--use_peft", "false"])["use_peft"] is False
    recipe = parse_command_line(
        "--model_name_or_path a/b --dataset_name c/d --output_dir o".split()
    )
    assert recipe.path is None and recipe["dataset_name"] == "c/d"
    recipe = parse(
        SOUND,
        "--use_peft",
        "--lora_target_modules",
        "[q_proj, v_proj]",
        "--model_init_kwargs",
        "{use_kernels: true}",
    )
    assert recipe["lora_target_modules"] == ["q_proj", "v_proj"]
    assert recipe["model_init_kwargs"] == {"use_kernels": True}


def test_data_of_the_command_line_replaces_the_files():
    two = DATA + "datasets: [{path: org/a}, {path: org/b}]\n"
    recipe = parse(two, "--dataset_name", "org/mine")
    assert [source["path"] for source in recipe.data_sources()] == ["org/mine"]
    recipe.save("saved.yaml")
    saved = Path("saved.yaml").read_text()
    assert "dataset_name: org/mine" in saved and "org/a" not in saved
    recipe = parse(SOUND, "--datasets", "[{path: org/a}, {path: org/b}]")
    assert [source["path"] for source in recipe.data_sources()] == ["org/a", "org/b"]


@pytest.mark.parametrize(
    ("argv", "beginning"),
    [
        (
            ["--learnig_rate", "5"],
            "command line: unknown key `learnig_rate`; did you mean `learning_rate`?",
        ),
        (["--overwite"], "command line: unknown key `overwite`; did you mean `overwrite`?"),
        (
            ["--seed", "x"],
            "command line: found `--seed x`; needed is an integer, not text: `--seed 42`",
        ),
        (
            ["--run_name", "7"],
            "command line: found `--run_name 7`; needed is text or null, not an integer: ",
        ),
        (["--seed"], "command line: --seed lacks its value: write `--seed VALUE`"),
        (["--resume"], "command line: --resume lacks its value, auto or DIR: go on from"),
        (
            ["--merge=true"],
            "command line: found `--merge=true`; --merge takes no value: write `--merge`",
        ),
        (
            ["other.yaml"],
            "command line: found `other.yaml` without an option; "
            "a recipe is given as `--recipe other.yaml`",
        ),
        (["--run_name", "[a"], "command line: --run_name:1: not valid YAML"),
        (["--env", "{A: b}"], "command line: `env` is refused"),
    ],
)
def test_command_line_faults(argv, beginning):
    Path("r.yaml").write_text(SOUND)
    with pytest.raises(RecipeError) as caught:
        parse_command_line(["--recipe", "r.yaml", *argv])
    (fault,) = caught.value.faults
    assert fault.startswith(beginning)


def test_empty_command_line_and_help(capsys):
    with pytest.raises(
        RecipeError, match="write `python train_rm.py --recipe recipes/quickstart.yaml`"
    ):
        parse_command_line([])
    with pytest.raises(RecipeError, match="command line: --recipe lacks its value, FILE, or"):
        parse_command_line(["--recipe"])
    with pytest.raises(SystemExit) as caught:
        parse_command_line(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "every TRL/transformers key" in text
    assert all(f"--{key}" in text for key in [*OWN, "check-data", "resume"])
    assert "(0 <= x < 1; default 0.1)" in text and "(messages|raw; default messages)" in text


def test_a_faulty_recipe_is_answered_at_once():
    """In under 2 seconds, which leaves no time to import torch."""
    Path("r.yaml").write_text("learnig_rate: 5\n")
    code = """
import sys, time
start = time.perf_counter()
from reward.recipe.parse import RecipeError, parse_command_line
try:
    parse_command_line(["--recipe", "r.yaml"])
except RecipeError as error:
    print(len(error.faults))
slow = ("torch", "transformers", "trl", "datasets", "pyarrow")
print(time.perf_counter() - start < 2, [module for module in slow if module in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.split("\n") == ["4", "True []", ""], done.stderr
