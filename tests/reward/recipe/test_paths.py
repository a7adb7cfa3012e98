"""Short names of recipes, and paths that lead to the same place from every folder."""

import json
from pathlib import Path

import pytest
from recipe_texts import SOUND, faults, parse

from reward.recipe.keys import KEYS, OTHER_NAMES
from reward.recipe.parse import load_saved, parse_command_line

pytestmark = pytest.mark.usefixtures("empty_folder")

ROOT = Path(__file__).parents[3]
PAIRS = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'


def printed(capsys, *argv: str) -> str:
    """What the command prints before it exits with status 0."""
    with pytest.raises(SystemExit) as caught:
        parse_command_line(list(argv))
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["qwen-0.5b", "qwen-0.5b.yaml", "recipes/qwen-0.5b.yaml"])
def test_a_shipped_recipe_is_found_from_any_folder(name):
    recipe = parse_command_line(["--recipe", name])
    assert recipe.path == str(ROOT / "recipes" / "qwen-0.5b.yaml")
    assert recipe["model_name_or_path"] == "Qwen/Qwen2.5-0.5B-Instruct"


def test_a_file_given_wins_over_a_shipped_recipe():
    Path("qwen-0.5b").write_text(SOUND)
    assert parse_command_line(["--recipe", "qwen-0.5b"])["model_name_or_path"] == "org/model"
    Path("minilm-hh").mkdir()  # a folder is no recipe
    path = parse_command_line(["--recipe", "minilm-hh"]).path
    assert path == str(ROOT / "recipes" / "minilm-hh.yaml")


def test_an_unknown_recipe_names_the_similar_ones():
    with pytest.raises(
        Exception, match="did you mean `--recipe qwen-0.5b` or `--recipe qwen-1.5b`"
    ):
        parse_command_line(["--recipe", "qwen"])
    with pytest.raises(Exception, match="did you mean `--recipe quickstart`"):
        parse_command_line(["--recipe", "recipes/quikstart.yaml"])


def test_the_list_of_recipes(capsys):
    text = printed(capsys, "--list-recipes")
    names = [line for line in text.splitlines()[2:] if not line.startswith(" ")]
    assert names == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    after = text.split("\nquickstart\n")[1].splitlines()
    assert after[0].startswith("  The bundled demonstration: a tiny random Qwen2")
    assert "  needs: a CPU with 2 cores; no network, no GPU" in after[:3]
    assert max(map(len, text.splitlines())) <= 100


def test_help_says_how_to_see_the_keys_of_trl(capsys):
    text = printed(capsys, "--help")
    assert "`trl reward --help` lists them" in text and "--list-recipes" in text


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("lr", "learning_rate"),
        ("epochs", "num_train_epochs"),
        ("batch_size", "per_device_train_batch_size"),
        ("lora_rank", "lora_r"),
        ("base_model", "model_name_or_path"),
        ("model", "model_name_or_path"),
        ("max_len", "max_length"),
        ("evaluation_strategy", "eval_strategy"),
    ],
)
def test_words_that_people_use_lead_to_the_key(word, key):
    (fault,) = faults(SOUND, f"--{word}", "1")
    assert fault == f"command line: unknown key `{word}`; did you mean `{key}`?"


def test_other_names_are_no_keys_and_mean_keys():
    assert not set(OTHER_NAMES) & set(KEYS) and set(OTHER_NAMES.values()) <= set(KEYS)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["--seed", "1", "--seed", "2"], "seed"),
        (["--learning-rate=1", "--learning_rate", "2"], "learning_rate"),
        (["--merge", "--merge", "--use_peft"], "merge"),
        (["--recipe", "r.yaml"], "recipe"),
    ],
)
def test_a_word_given_twice_is_a_fault(argv, name):
    (fault,) = faults(SOUND, *argv)
    assert fault == f"command line: --{name} is given more than once; give it once"


# --- Paths in a recipe ----------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch) -> Path:
    """A folder `home` with a recipe, pairs, and a template; the test runs in another one.

    Returns:
        The folder of the recipe.
    """
    home = Path("home").resolve()
    (home / "data").mkdir(parents=True)
    for file in ("data/train.jsonl", "data/test.jsonl"):
        (home / file).write_text(PAIRS)
    (home / "mine.jinja").write_text("{{ messages }}")
    (home / "r.yaml").write_text(
        "model_name_or_path: org/model\noutput_dir: out\nchat_template_path: mine.jinja\n"
        "datasets:\n  - {path: data}\n  - path: json\n    data_files: {train: data/tr*.jsonl, "
        "test: [data/test.jsonl]}\n  - {path: data/train.jsonl, test_split: data/test.jsonl}\n"
    )
    Path("away").mkdir()
    monkeypatch.chdir("away")
    return home


def test_paths_are_found_beside_the_recipe(elsewhere):
    recipe = parse_command_line(["--recipe", "../home/r.yaml"])
    assert recipe["chat_template_path"] == str(elsewhere / "mine.jinja")
    data = str(elsewhere / "data")
    folder, builder, file = recipe["datasets"]
    assert folder == {"path": data}
    assert builder["path"] == "json"
    assert builder["data_files"] == {"train": f"{data}/tr*.jsonl", "test": [f"{data}/test.jsonl"]}
    assert file == {"path": f"{data}/train.jsonl", "test_split": f"{data}/test.jsonl"}
    assert recipe["model_name_or_path"] == "org/model" and recipe["output_dir"] == "out"


def test_the_current_folder_comes_first(elsewhere):
    Path("data").mkdir()
    for file in ("data/train.jsonl", "data/test.jsonl"):
        Path(file).write_text(PAIRS)
    recipe = parse_command_line(["--recipe", str(elsewhere / "r.yaml")])
    assert recipe["datasets"][0] == {"path": "data"}
    assert recipe["chat_template_path"] == str(elsewhere / "mine.jinja")


def test_paths_of_the_repository_are_found_from_any_folder():
    recipe = parse_command_line(["--recipe", "minilm-hh", "--plan", "accelerate_configs/ddp.yaml"])
    template = "recipes/templates/human-assistant.jinja"
    assert recipe["chat_template_path"] == str(ROOT / template)
    assert recipe.plan == str(ROOT / "accelerate_configs" / "ddp.yaml")
    recipe = parse(SOUND.replace("org/pairs", "data/quickstart"))
    assert recipe["dataset_name"] == str(ROOT / "data" / "quickstart")
    # The words of a Hub id stay what they are.
    assert recipe["model_name_or_path"] == "org/model"


def test_a_checkpoint_finds_its_data_from_any_folder(elsewhere, monkeypatch):
    """Its recipe was run in `home`, and its manifest says so."""
    checkpoint = elsewhere / "runs" / "rm-out"
    checkpoint.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    parse_command_line(["--recipe", "r.yaml"]).save(checkpoint / "recipe.yaml")
    assert load_saved("runs/rm-out/recipe.yaml")["datasets"][0] == {"path": "data"}

    monkeypatch.chdir(elsewhere.parent / "away")
    Path("data").mkdir()  # of another project
    saved = checkpoint / "recipe.yaml"
    assert load_saved(saved)["datasets"][0]["path"] == "data"  # nobody says where it starts
    (checkpoint / "manifest.json").write_text(json.dumps({"paths_from": "../.."}))
    data = elsewhere / "data"
    assert load_saved(saved)["datasets"][0]["path"] == str(data)
    assert parse_command_line(["--recipe", str(saved)])["datasets"][0]["path"] == str(data)
