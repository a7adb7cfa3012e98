"""Recipes: every fault is named, with its place and the line that mends it; every shipped file is sound."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from reward.data.files import is_local
from reward.recipe.keys import CLASSES, FLAGS, GROUPS, OWN, REFUSED, TRL
from reward.recipe.parse import parse_command_line
from reward.recipe.recipe import Recipe, RecipeError

ROOT = Path(__file__).parents[3]
SOUND = "model_name_or_path: org/model\ndataset_name: org/pairs\noutput_dir: out\n"
DATA = "model_name_or_path: org/model\noutput_dir: out\n"  # a recipe that lacks only its data


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Each test runs in an empty folder, as rank 0."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    return tmp_path


def parse(text: str, *argv: str) -> Recipe:
    Path("r.yaml").write_text(text, encoding="utf-8")
    return parse_command_line(["--recipe", "r.yaml", *argv])


def faults(text: str, *argv: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse(text, *argv)
    return caught.value.faults


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


def test_all_faults_in_one_error():
    found = faults(
        "learnig_rate: 5\n"
        "per_device_train_batch_size: 2.5\n"
        "learning_rate: abc\n"
        "seed: 1\n"
        "seed: 2\n"
        "env: {TOKEN: x}\n"
        "eval_strategy: stepz\n"
        "load_in_4bit: true\n"
        "validation_fraction: 1.5\n"
        "output_dir: out\n",
    )
    assert found == [
        "r.yaml:5: found `seed` twice, on line 4 and on line 5; it may be given once: delete one of the two lines",
        "r.yaml:1: unknown key `learnig_rate`; did you mean `learning_rate`?",
        "r.yaml:2: found `per_device_train_batch_size: 2.5`; needed is an integer, not a number: "
        "`per_device_train_batch_size: 8`",
        "r.yaml:3: found `learning_rate: abc`; needed is a number, not text: `learning_rate: 0.0001`",
        "r.yaml:6: `env` is refused: a recipe sets no environment (it could redirect tokens and caches): "
        "`NAME=value python train_rm.py ...`",
        "r.yaml:7: found `eval_strategy: stepz`; needed is one of no, steps, epoch: `eval_strategy: steps`",
        "r.yaml:9: found `validation_fraction: 1.5`; needed is 0 <= x < 1: `validation_fraction: 0.1`",
        "r.yaml: no model; add `model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct`, or a folder",
        "r.yaml:8: load_in_4bit freezes the weights, so it needs adapters to train: `use_peft: true`",
        "r.yaml: no data; add `dataset_name: Anthropic/hh-rlhf`, or a file or folder",
    ]


EVALUATES = "eval_strategy: steps\neval_steps: 50\nload_best_model_at_end: true\n"
ONE_KEY = [  # a line, and a part of its one fault
    ("seed: true", "needed is an integer, not true or false: `seed: 42`"),
    ("seed: null", "needed is an integer, not null"),
    ("seed: 1e3", "needed is an integer, not a number: `seed: 1000`"),
    ("learning_rate: '1e-5'", "needed is a number, not text"),
    ("learning_rate: .nan", "needed is a number, not text"),
    ("run_name: 7", "`run_name: '7'`"),
    ("model_revision: 1234567", "`model_revision: '1234567'`"),
    ("bf16: maybe", "needed is true or false or null, not text: `bf16: true`"),
    ("optim: adamw_trch", "`optim: adamw_torch`"),
    ("dtype: fp32", "one of auto, bfloat16, float16, float32"),
    ("overlong: cut", "one of drop, truncate_prompt, error"),
    ("transcript: text", "one of messages, raw"),
    ("head_init: zeros", "`head_init: zero`"),
    ("loss_type: bradleyterry", "`loss_type: bradley_terry`"),
    ("parallelism_config: {tp_size: 2}", "needed is null, not a mapping"),
    ("test_fraction: 1", "needed is 0 < x < 1: `test_fraction: 0.1`"),
    ("test_fraction: 0", "needed is 0 < x < 1"),
    ("max_dropped: -0.1", "needed is 0 <= x <= 1"),
    ("max_length: 0", "needed is x >= 2"),
    ("min_rater_agreement: 0.5", "needed is .5 < x <= 1: `min_rater_agreement: 0.7`"),
    ("min_rater_agreement: 1.01", "needed is .5 < x <= 1"),
    ("min_rater_agreement: true", "needed is a number or null, not true or false"),
    ("mismatched_prompts: -0.1", "needed is 0 <= x <= 1: `mismatched_prompts: 0.25`"),
    ("mismatched_prompts: 1.01", "needed is 0 <= x <= 1"),
    ("label_smoothing: -0.1", "needed is 0 <= x < .5: `label_smoothing: 0.1`"),
    ("label_smoothing: 0.5", "needed is 0 <= x < .5"),
    ("loss_type: rao_kupper\ntie_margin: 0", "needed is x > 0: `tie_margin: 0.5`"),
    ("head_dropout: -0.1", "needed is 0 <= x < 1: `head_dropout: 0.1`"),
    ("head_dropout: 1", "needed is 0 <= x < 1"),
    ("train_last_layers: -1", "needed is x >= 0: `train_last_layers: 4`"),
    ("train_last_layers: 1.5", "needed is an integer or null, not a number"),
    ("soft_labels: 0.5", "needed is true or false, not a number: `soft_labels: true`"),
    (
        "strength_as: margin",
        "one of target_margin, chosen_probability: `strength_as: target_margin`",
    ),
    ("head: two_logits", "one of linear, two_logit: `head: two_logit`"),
    ("head_bias: zero", "needed is true or false or null, not text: `head_bias: true`"),
    ("loss_type: raokupper", "`loss_type: rao_kupper`"),
    ("loss_type: ratings", "rao_kupper, mse, rating_mse, classification: `loss_type: rating_mse`"),
    ("early_stopping_patience: 0", "needed is x >= 1"),
    ("lora_task_type: CAUSAL_LM", "write `lora_task_type: SEQ_CLS`"),
    ("test_split_size: 0.1", "`test_fraction: 0.1` splits by first user turn"),
    ("pad_token: <pad>", "picked from the vocabulary"),
    ("resume_from_checkpoint: true", "--resume auto"),
    ("overwrite: true", "a flag, never a key: `python train_rm.py --recipe FILE --overwrite`"),
    ("check_data: true", "--check-data`"),
    ("merge: true", "--merge`"),
    ("resume: auto", "--resume`"),
    ("warmup_ratio: 0.1", "`warmup_steps: 0.1`"),
    ("label_smoothing_factor: 0.1", "for preference labels write `label_smoothing: 0.1`"),
    ("torch_dtype: float32", "`dtype`"),
    (
        "model_init_kwargs: {num_labels: 2}",
        "num_labels follows from `head`: linear has 1, two_logit 2",
    ),
    ("model_init_kwargs: {dtype: bfloat16}", "dtype is a key of its own"),
    ("model_init_kwargs: {revision: x}", "write `model_revision: ...`"),
    ("push_to_hub: true", "`hf upload NAME rm-out`"),
    ("load_in_8bit: true", "`use_peft: true`"),
    (
        "use_peft: true\nload_in_8bit: true\nload_in_4bit: true",
        "found both load_in_4bit and load_in_8bit",
    ),
    (
        "activation_checkpointing: true\ngradient_checkpointing: false",
        "gradient_checkpointing is the old name",
    ),
    ("bf16: true\nfp16: true", "found both bf16 and fp16"),
    ("chat_template_path: ./chat.jinja", "found no file ./chat.jinja"),
    ("chat_template_path: chat.jinja", "found no file chat.jinja"),
    ("streaming: true", "write dataset_streaming"),
    ("dataset_streaming: true", "add `max_steps: 1000`"),
    ("dataset_test_split: train", "trains and tests on the same split train"),
    ("tie_margin: 0.5", "tie_margin belongs to `loss_type: rao_kupper`; change one of the two"),
    ("loss_type: mse\ntie_margin: 0.5", "tie_margin belongs to `loss_type: rao_kupper`"),
    (
        "loss_type: rating_mse\nlabel_smoothing: 0.1",
        "rating_mse has no labels to smooth; delete label_smoothing",
    ),
    ("loss_type: rating_mse\nmismatched_prompts: 0.1", "has no ratings; delete mismatched_prompts"),
    ("train_last_layers: 2\nuse_peft: true", "delete train_last_layers or use_peft"),
    ("train_last_layers: 0\nuse_peft: true", "delete train_last_layers or use_peft"),
    (
        "dataset_streaming: true\nmax_steps: 9\nmismatched_prompts: 0.1",
        "delete mismatched_prompts, or streaming",
    ),
    ("load_best_model_at_end: true", "add `eval_strategy: steps`"),
    ("load_best_model_at_end: true\neval_strategy: no", "add `eval_strategy: steps`"),
    (EVALUATES + "save_strategy: epoch", "found save_strategy epoch and eval_strategy steps"),
    (
        EVALUATES + "save_steps: 75",
        "save_steps (75) is no multiple of eval_steps (50); write `save_steps: 50`",
    ),
    (EVALUATES + "save_steps: 0.1", "is no multiple of eval_steps"),
    ("eval_strategy: steps\nvalidation_fraction: 0", "write `validation_fraction: 0.1`"),
    ("early_stopping_patience: 2\neval_strategy: steps", "`load_best_model_at_end: true`"),
    ("<<: {seed: 1}", "unknown key `<<`"),
    ("1: 2", "unknown key `1`"),
    ("true: 2", "unknown key `True`"),
    (
        "model_init_kwargs: {a: 1, a: 2}",
        "found `model_init_kwargs.a` twice, on line 4 and on line 4",
    ),
]


@pytest.mark.parametrize(
    ("line", "part"), ONE_KEY, ids=[line.replace("\n", " ") for line, _ in ONE_KEY]
)
def test_one_fault(line, part):
    (found,) = faults(SOUND + line + "\n")
    assert part in found and found.startswith("r.yaml")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("eval_strategy: no", "no"),
        ("bf16: no", False),
        ("bf16: yes", True),
        ("num_train_epochs: 2", 2),
        ("learning_rate: 1E-05", 0.00001),
        ("max_steps: 10_000", 10000),
        ("lora_target_modules: all-linear", ["all-linear"]),
        ("lr_scheduler_kwargs: {min_lr: 1e-6}", {"min_lr": 0.000001}),
        ("run_name: 2024-01-01", "2024-01-01"),
        ("head_init: null", None),
        ("min_rater_agreement: 1", 1),
        ("min_rater_agreement: 0.501", 0.501),
        ("mismatched_prompts: 1", 1),
        ("label_smoothing: 0.499", 0.499),
        ("loss_type: rao_kupper\ntie_margin: 2", 2),
        ("head_dropout: 0.99", 0.99),
        ("train_last_layers: 0", 0),
        ("soft_labels: no", False),
        ("strength_as: chosen_probability", "chosen_probability"),
        ("head: two_logit", "two_logit"),
        ("head_bias: false", False),
        ("max_steps: 9\ndataset_streaming: true\nmin_rater_agreement: 0.7", 0.7),
        ("use_peft: true\ntrain_last_layers: null", None),
        ("output_dir: ~/rm-out", str(Path.home() / "rm-out")),
        (EVALUATES + "save_steps: 100", 100),
        ("eval_strategy: epoch\nload_best_model_at_end: true\nsave_strategy: epoch", "epoch"),
    ],
)
def test_values_that_are_read(line, value):
    key = line.split("\n")[-1].split(":")[0]
    text = SOUND.replace("output_dir: out\n", "") if key == "output_dir" else SOUND
    found = parse(text + line + "\n", "--check-data")[key]
    assert found == value and type(found) is type(value)


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
    (found,) = faults(text)
    assert found.startswith(part) or part in found


def test_missing_file_and_folder():
    for name in ("none.yaml", "."):
        with pytest.raises(
            RecipeError, match="needed is a file, such as `--recipe recipes/quickstart.yaml`"
        ):
            parse_command_line(["--recipe", name])


def test_what_is_required():
    assert [fault.split(";")[0] for fault in faults("seed: 1\n")] == [
        "r.yaml: no model",
        "r.yaml: no data",
        "r.yaml: no place for the checkpoint",
    ]
    assert "found dataset_name and datasets" in faults(SOUND + "datasets: [{path: org/a}]\n")[0]
    assert "no data" in faults(DATA + "datasets: []\n")[0]


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        (
            "[{path: a/b, spilt: train}]",
            "r.yaml:3: datasets[0]: unknown key `spilt`; did you mean `split`?",
        ),
        (
            "\n- path: a/b\n- path: c/d\n  fraction: -1",
            "r.yaml:6: datasets[1]: found `fraction: -1`; needed is x > 0",
        ),
        ("a/b", "r.yaml:3: datasets[0] names no source; it starts with `- path: a/b`"),
        ("[a/b]", "r.yaml:3: datasets[0] names no source; it starts with `- path: a/b`"),
        ("[{name: b}]", "r.yaml:3: datasets[0] names no source"),
        ("[{path: a/b, fraction: 0.5}, {path: c/d}]", "fraction in some entries only"),
        ("[{path: a/b, split: train, split: train}]", "found `datasets[0].split` twice"),
        ("[{path: a/b, split: test}]", "trains and tests on the same split test"),
        ("[{path: a/b, data_files: x.jsonl}]", "data_files names no file for the test split test"),
        (
            "[{path: json, data_files: {train: x.jsonl, test: https://x/y.jsonl}}]",
            "found no data file x.jsonl",
        ),
        ("[{path: a/b}]\nstreaming: true", "add `max_steps: 1000`"),
        (
            "[{path: a/b}]\nstreaming: true\nmax_steps: 9\nmismatched_prompts: 1",
            "a stream cannot be searched",
        ),
        ("[{path: a/b}]\ndataset_test_split: dev", "dataset_test_split has no effect here"),
    ],
)
def test_faults_of_entries(entries, part):
    (found,) = faults(DATA + f"datasets: {entries}\n")
    assert part in found


@pytest.mark.parametrize(
    ("value", "local"),
    [
        ("org/model", False),
        ("gpt2", False),
        ("/data", True),
        ("./org/model", True),
        ("~/model", True),
        ("a/b/c", True),
        ("pairs.jsonl.gz", True),
        ("org/pairs.parquet", True),
        ("r/here", True),
    ],
)
def test_is_local(value, local):
    Path("r/here").mkdir(parents=True)
    assert is_local(value) is local


def test_local_sources():
    text = DATA + "dataset_name: pairs\n"
    hint = "add `test_fraction: 0.1`, which splits by first user turn"
    assert "found no file or folder pairs.jsonl" in faults(DATA + "dataset_name: pairs.jsonl\n")[0]
    assert (
        "`python data/quickstart/make.py`"
        in faults(DATA.replace("org/model", "data/quickstart/model"))[0]
    )
    assert "found no model folder a/b/c" in faults(SOUND.replace("org/model", "a/b/c"))[0]
    Path("pairs.jsonl").write_text("{}\n")
    (found,) = faults(DATA + "dataset_name: pairs.jsonl\n")
    assert "r.yaml:3: pairs.jsonl is one file, without a test split" in found and hint in found
    parse(DATA + "dataset_name: pairs.jsonl\ntest_fraction: 0.1\n")
    Path("more.jsonl").write_text("{}\n")
    parse(DATA + "dataset_name: pairs.jsonl\ndataset_test_split: more.jsonl\n")
    Path("pairs").mkdir()
    assert len(faults(text)) == 2  # neither train nor test
    gzip.open("pairs/train.jsonl.gz", "w").close()
    assert hint in faults(text)[0]
    parse(text + "test_fraction: 0.1\n")
    Path("pairs/test-00000-of-00001.parquet").touch()
    parse(text)
    assert (
        "data_files has no effect"
        in faults(DATA + "datasets: [{path: pairs, data_files: a.jsonl}]\n")[0]
    )
    assert (
        "found no file or folder pairs/x"
        in faults(DATA + "datasets: [{path: pairs, data_dir: x}]\n")[0]
    )
    parse(DATA + "datasets: [{path: json, data_files: {train: pairs.jsonl, test: '*.jsonl'}}]\n")


def test_output_dir(monkeypatch):
    Path("out").mkdir()
    parse(SOUND)
    Path("out/file").touch()
    (found,) = faults(SOUND)
    assert (
        found
        == "r.yaml:3: out is not empty; add `--overwrite`, `--resume auto` or another `--output_dir`"
    )
    for argv in (
        ["--overwrite"],
        ["--resume", "auto"],
        ["--resume=out"],
        ["--check-data"],
        ["--check_data"],
    ):
        parse(SOUND, *argv)
    parse(SOUND, "--output_dir", "new")
    assert (
        "found both --resume and --overwrite" in faults(SOUND, "--resume", "auto", "--overwrite")[0]
    )
    assert "found no checkpoint folder none" in faults(SOUND, "--resume", "none")[0]
    monkeypatch.setenv("RANK", "1")
    parse(SOUND)


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
        "--lora_target_modules",
        "[q_proj, v_proj]",
        "--model_init_kwargs",
        "{use_kernels: true}",
    )
    assert recipe["lora_target_modules"] == ["q_proj", "v_proj"]
    assert recipe["model_init_kwargs"] == {"use_kernels": True}


def test_merging_needs_an_adapter():
    with pytest.raises(
        RecipeError, match="--merge merges an adapter; there is none without `use_peft: true`"
    ):
        parse(SOUND, "--merge")


@pytest.mark.parametrize(
    ("argv", "fault"),
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
        (["--recipe"], "command line: --recipe lacks its value, FILE, the recipe"),
        (["--resume"], "command line: --resume lacks its value, auto or DIR, go on from"),
        (
            ["--merge=true"],
            "command line: found `--merge=true`; --merge takes no value: write `--merge`",
        ),
        (
            ["other.yaml"],
            "command line: found `other.yaml` without an option; a recipe is given as `--recipe other.yaml`",
        ),
        (["--run_name", "[a"], "command line: --run_name:1: not valid YAML"),
        (["--env", "{A: b}"], "command line: `env` is refused"),
    ],
)
def test_command_line_faults(argv, fault):
    Path("r.yaml").write_text(SOUND)
    with pytest.raises(RecipeError) as caught:
        parse_command_line(["--recipe", "r.yaml", *argv])
    (found,) = caught.value.faults
    assert found.startswith(fault)


def test_nothing_given_and_help(capsys):
    with pytest.raises(
        RecipeError, match="write `python train_rm.py --recipe recipes/quickstart.yaml`"
    ):
        parse_command_line([])
    with pytest.raises(SystemExit) as caught:
        parse_command_line(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "every TRL/transformers key" in text
    assert all(f"--{key}" in text for key in [*OWN, "check-data", "resume"])


def test_data_sources():
    text = "dataset_name: org/pairs\ndataset_config: en\ndataset_test_split: dev\ndataset_streaming: true\nmax_steps: 9\n"
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
    text = "datasets:\n- {path: a/b, data_dir: x/harmless-base, fraction: 1}\n- {path: c/d, subset: own, fraction: 0.5}\n"
    first, second = parse(DATA + text).data_sources()
    assert (first["subset"], second["subset"]) == ("harmless-base", "own")
    assert (first["fraction"], second["fraction"], second["test_split"]) == (1, 0.5, "test")
    assert first["streaming"] is False and first.keys() == second.keys()


@pytest.mark.parametrize("loss_type", OWN["loss_type"].choices)
def test_every_objective_is_one_that_the_trainer_has(loss_type):
    from reward.training.losses import LOSSES

    assert (
        parse(SOUND + f"loss_type: {loss_type}\n")["loss_type"] in LOSSES
        and list(LOSSES) == OWN["loss_type"].choices
    )


def test_own_keys_stand_below_their_banners():
    parse(SOUND).save("copy.yaml")
    groups = Path("copy.yaml").read_text().split("\n# ")[1:]
    found = {
        group.split("\n")[0]: {line.split(":")[0] for line in group.split("\n")[1:]}
        for group in groups
    }
    assert found["Model"] >= {"head", "head_bias", "head_dropout", "head_init", "train_last_layers"}
    assert found["Data"] >= {"min_rater_agreement", "mismatched_prompts", "overlong", "max_dropped"}
    assert found["Objective"] == {
        "loss_type",
        "soft_labels",
        "strength_as",
        "label_smoothing",
        "tie_margin",
        "length_head",
        "",
    }
    assert found["Training"] == {"prefix_sharing", "token_budget", "early_stopping_patience", ""}


def test_resolved_copy_round_trip():
    text = (
        SOUND
        + "run_name: '1e-5'\nlearning_rate: 1e-5\neval_strategy: no\nlr_scheduler_kwargs: {a: 1e-6, b: null}\n"
    )
    recipe = parse(text + "hub_token: 'secret'\nmodel_revision: '2024-01-01'\n", "--seed", "7")
    recipe.save("copy.yaml")
    copy = parse_command_line(["--recipe", "copy.yaml"])
    expected = {key: value for key, value in recipe.values.items() if key != "hub_token"}
    assert copy.values == {key: own.default for key, own in OWN.items()} | expected
    saved = Path("copy.yaml").read_text()
    assert [line for line in saved.splitlines() if line.startswith("# ")][1:] == [
        "# Model",
        "# Data",
        "# Objective",
        "# Training",
        "# Logging",
    ]
    assert "secret" not in saved
    assert (
        yaml.safe_load(saved) == copy.values
    )  # any other YAML reader agrees, `no` and dates included
    copy.save("again.yaml")
    assert Path("again.yaml").read_text() == saved


# ------------------------------------------------------------------------------------------------- what the repo ships


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.name
)
def test_shipped_recipes(path, monkeypatch, folder):
    monkeypatch.chdir(ROOT)
    try:
        recipe = parse_command_line(["--recipe", str(path), "--output_dir", str(folder / "new")])
    except RecipeError as error:
        assert [fault for fault in error.faults if "data/quickstart/make.py" not in fault] == []
        return
    recipe.save(folder / "copy.yaml")
    copy = parse_command_line(["--recipe", str(folder / "copy.yaml")])
    assert copy.data_sources() == recipe.data_sources()
    assert all(copy[key] == value for key, value in recipe.values.items())
    header = path.read_text().split("\n# Model\n")[0]
    assert all(f"# {word}:" in header for word in ("Assumes", "Launch", "Change", "Expect"))
    banners = [
        line for line in path.read_text().splitlines() if line in {f"# {group}" for group in GROUPS}
    ]
    assert banners == [f"# {group}" for group in GROUPS]


@pytest.mark.parametrize(
    ("name", "kind", "processes"),
    [
        ("single", "NO", 1),
        ("ddp", "MULTI_GPU", 8),
        ("zero2", "DEEPSPEED", 8),
        ("zero3", "DEEPSPEED", 8),
        ("zero3-offload", "DEEPSPEED", 8),
        ("fsdp2", "FSDP", 8),
        ("multi-node", "MULTI_GPU", 16),
    ],
)
def test_accelerate_configs(name, kind, processes):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
    assert (config.distributed_type.value, config.num_processes, config.mixed_precision) == (
        kind,
        processes,
        None,
    )
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(name[4])
        assert config.deepspeed_config["gradient_accumulation_steps"] == "auto"
        assert config.deepspeed_config["gradient_clipping"] == "auto"
        assert config.deepspeed_config.get("zero3_save_16bit_model", False) is ("zero3" in name)
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"


def test_every_accelerate_config_has_a_header_and_is_launched_by_a_test():
    from launched import ENGINES

    files = {path.stem: path.read_text() for path in (ROOT / "accelerate_configs").glob("*.yaml")}
    assert set(files) == {"single", "multi-node", *ENGINES}
    for name, text in files.items():
        assert all(f"\n# {word}:" in text for word in ("When", "Launch", "Needs")), name


def test_committed_keys_are_the_installed_ones():
    pytest.importorskip("trl")
    from make_recipe_keys import installed_keys

    assert (ROOT / "reward" / "recipe" / "recipe_keys.json").read_text(
        encoding="utf-8"
    ) == installed_keys()


def test_own_keys_are_not_trl_keys():
    assert not set(OWN) & {key for name in CLASSES for key in TRL[name]}
    assert set(REFUSED) - set(FLAGS) >= {"env", "test_split_size", "pad_token"}
    assert json.loads((ROOT / "reward" / "recipe" / "recipe_keys.json").read_text())[
        "versions"
    ].keys() == {
        "trl",
        "transformers",
    }


def test_a_faulty_recipe_is_answered_at_once(folder):
    Path("r.yaml").write_text("learnig_rate: 5\n")
    code = (
        "import sys, time; start = time.perf_counter(); from reward.recipe.parse import RecipeError, parse_command_line\n"
        "try: parse_command_line(['--recipe', 'r.yaml'])\n"
        "except RecipeError as error: print(len(error.faults))\n"
        "print(time.perf_counter() - start < 2, [m for m in ('torch', 'transformers', 'trl') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.split("\n") == ["4", "True []", ""], done.stderr
