"""Every file in recipes/ runs unmodified, through real hub loading, against a loopback hub.

The hub has tiny stand-ins under the real names. Only steps and the output folder are limited, on
the command line.
"""

import json
import re
import statistics
from pathlib import Path

import pytest
import yaml
from hub import commit_of, hub_environment, serve
from launched import LAUNCH, read_json, train_several
from safetensors.torch import load_file
from standins import hh_rows, make_model
from support import REPO, run_script, write_rows

from reward.data.ledger import NO_RIGHT_SIDE, TIE
from reward.data.transcripts import assistant, parse_transcript, user

pytestmark = pytest.mark.slow

RECIPES = sorted((REPO / "recipes").glob("*.yaml"), key=lambda path: path.stem)
# real name -> stand-in, and the length limit in its real tokenizer_config.json
MODELS = {
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen", 131072),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen", 131072),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen", 131072),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("tinyllama", 2048),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama3", 1000000000000000019884624838656),
    "sentence-transformers/all-MiniLM-L6-v2": ("encoder", 512),
    "Qwen/Qwen3-0.6B": ("qwen3", 131072),
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": ("skywork", 131072),
    "google/gemma-3-270m": ("gemma3", 1000000000000000019884624838656),
}
# of the models whose first blocks a recipe freezes: as many as the real ones have
LAYERS = {"Qwen/Qwen2.5-1.5B-Instruct": 28, "google/gemma-3-270m": 18}
HH_FOLDERS = ["harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"]
ROWS = {"train": 60, "test": 20}  # a folder
FEW_STEPS = "--max_steps 2 --eval_steps 1 --save_steps 1 --logging_steps 1".split()
# recipe -> the rows read and kept by split, of the stand-ins that `other_datasets` writes
OTHERS = {
    "votes-and-ties": {"read": 420},
    "target-margins": {"read": 420, "test": (20, 15)},  # every fourth preference is a tie
    "rating-regression": {"read": 420, "test": (20, 15)},
    "length-debiased": {"read": 420, "test": (20, 15)},
}
PUSHED = "qwen-0.5b"  # to the hub, once it is verified
HH_CARD = "---\nlicense: mit\ntags:\n- human-feedback\n---\n# Dataset Card for HH-RLHF\n"
GATED = "meta-llama/Llama-Guard-3-8B"


@pytest.fixture(scope="session")
def hub_root(tmp_path_factory) -> Path:
    """The stand-ins and HH-RLHF's four folders as they lie on the Hub."""
    root = tmp_path_factory.mktemp("hub")
    for number, (name, (kind, longest)) in enumerate(MODELS.items()):
        layers = LAYERS.get(name, 2)
        folder = make_model(root / "models" / name, kind, seed=number, layers=layers)
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings["model_max_length"] = longest
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    make_model(root / "models" / GATED, "llama3")
    hh = root / "datasets" / "Anthropic" / "hh-rlhf"
    for number, folder in enumerate(HH_FOLDERS):
        for seed, (split, rows) in enumerate(ROWS.items(), start=2 * number):
            write_rows(hh / folder / f"{split}.jsonl.gz", hh_rows(rows, seed=seed))
    (hh / "README.md").write_text(HH_CARD, encoding="utf-8")
    write_rows(root / "datasets" / "somebody" / "train-only" / "train.jsonl", hh_rows(20))
    other_datasets(root / "datasets")
    return root


Triple = tuple[str, str, str]  # a prompt, the better and the worse answer


def other_datasets(root: Path) -> None:
    """Write rows under the columns and file names of the real datasets.

    Every fourth preference is a tie.
    """
    triples = []
    for row in hh_rows(420, turns=1):
        messages = parse_transcript(row["chosen"]) + parse_transcript(row["rejected"])[-1:]
        triples.append(tuple(message["content"] for message in messages))
    arena = root / "lmsys" / "lmsys-arena-human-preference-55k"
    write_rows(arena / "train.jsonl", arena_rows(triples))
    preferences = root / "nvidia" / "HelpSteer3" / "preference"
    ratings = root / "nvidia" / "HelpSteer2"
    binarized = root / "trl-lib" / "ultrafeedback_binarized"
    train, validation = triples[:400], triples[400:]
    write_rows(preferences / "train.jsonl.gz", helpsteer3_rows(train))
    write_rows(preferences / "validation.jsonl.gz", helpsteer3_rows(validation))
    write_rows(ratings / "train.jsonl.gz", helpsteer2_rows(train))
    write_rows(ratings / "validation.jsonl.gz", helpsteer2_rows(validation))
    write_rows(binarized / "train.jsonl", ultrafeedback_rows(train))
    write_rows(binarized / "test.jsonl", ultrafeedback_rows(validation))
    files = [{"split": s, "path": f"preference/{s}.jsonl.gz"} for s in ("train", "validation")]
    config = {"config_name": "preference", "default": True, "data_files": files}
    card = yaml.safe_dump({"configs": [config]})
    (root / "nvidia" / "HelpSteer3" / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")


def arena_rows(triples: list[Triple]) -> list[dict]:
    """The columns of lmsys-arena-human-preference-55k; the better answer is now A, now B."""
    rows = []
    for i, (prompt, better, worse) in enumerate(triples):
        tie = i % 4 == 0
        rows.append(
            {
                "id": i,
                "prompt": json.dumps([prompt]),
                "response_a": json.dumps([better]),
                "response_b": json.dumps([worse]),
                "winner_model_a": int(not tie and i % 2 == 1),
                "winner_model_b": int(not tie and i % 2 == 0),
                "winner_tie": int(tie),
            }
        )
    return rows


def helpsteer3_rows(triples: list[Triple]) -> list[dict]:
    """The columns of HelpSteer3's preferences."""
    rows = []
    for i, (prompt, better, worse) in enumerate(triples):
        preference = -1 - i % 3
        if i % 4 == 0:
            preference = 0
        row = {"domain": "general", "context": user(prompt)}
        row |= {"response1": better, "response2": worse, "overall_preference": preference}
        rows.append(row)
    return rows


def ultrafeedback_rows(triples: list[Triple]) -> list[dict]:
    """The columns of ultrafeedback_binarized."""
    rows = []
    for i, (prompt, better, worse) in enumerate(triples):
        score_rejected = 3.5
        if i % 4 == 0:
            score_rejected = 8.0
        row = {"chosen": user(prompt) + assistant(better)}
        row |= {"rejected": user(prompt) + assistant(worse)}
        row |= {"score_chosen": 8.0, "score_rejected": score_rejected}
        rows.append(row)
    return rows


def helpsteer2_rows(triples: list[Triple]) -> list[dict]:
    """The columns of HelpSteer2: two rated responses of a prompt, in two rows."""
    rows = []
    for i, (prompt, better, worse) in enumerate(triples):
        for text, rating in ((better, 4), (worse, 1)):
            if i % 4 == 0:
                rating = 2
            row = {"prompt": prompt, "response": text}
            rows.append(row | {"helpfulness": rating, "correctness": 3})
    return rows


@pytest.fixture(scope="session")
def hub(hub_root):
    with serve(hub_root, gated=[GATED]) as url:
        yield url


# --- Every recipe file ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe_runs(hub, tmp_path_factory):
    """recipe's name -> (output folder, what was printed, environment), of every recipe, run once.

    The quickstart's and one of the Hub's have an accelerate launch of their own, as their headers
    say; the others are run one after another in one process.
    """
    run_script("data/quickstart/make.py")
    home = tmp_path_factory.mktemp("recipes")
    environment = hub_environment(hub, home / "home")
    launches = {
        "quickstart": [*LAUNCH],
        "qwen-0.5b": [*LAUNCH, "--config_file", "accelerate_configs/single.yaml"],
    }
    runs = {}
    for name, launch_prefix in launches.items():
        options = [f"--recipe=recipes/{name}.yaml", *FEW_STEPS, "--output_dir", home / name]
        token = {}
        if name == PUSHED:
            token = {"HF_TOKEN": "hf_of_somebody"}
            options += ["--push", "somebody/pushed"]
        done = run_script(*launch_prefix, "train_rm.py", *options, env=environment | token)
        runs[name] = (home / name, done.stdout, environment)
    others = [recipe.stem for recipe in RECIPES if recipe.stem not in launches]
    lines = []
    for name in others:
        options = ["--recipe", f"recipes/{name}.yaml", *FEW_STEPS, "--output_dir", home / name]
        lines.append(options)
    finished = train_several(lines, home / "launch", env=environment)
    for name, run in zip(others, finished, strict=True):
        assert run.status == 0, f"{name}: {run.stderr[-3000:]}"
        runs[name] = (home / name, run.stdout, environment)
    return runs


def test_a_verified_run_is_on_the_hub(recipe_runs, hub_root):
    out, printed, _ = recipe_runs[PUSHED]
    assert re.search(r"^uploaded to http://127\.0\.0\.1:\d+/somebody/pushed$", printed, re.M)
    there = hub_root / "models" / "somebody" / "pushed"
    names = {path.name for path in there.rglob("*")}
    assert names == {path.name for path in out.iterdir()} - {"checkpoint-1", "checkpoint-2"}
    saved = (out / "model.safetensors").read_bytes()
    assert (there / "model.safetensors").read_bytes() == saved


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs_unmodified(recipe, recipe_runs, hub_root):
    keys = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    name = keys["model_name_or_path"]
    add_one = f"{name}: add a stand-in to MODELS, under its real name"
    assert name in MODELS or name.startswith("data/"), add_one
    out, printed, env = recipe_runs[recipe.stem]
    manifest = read_json(out / "manifest.json")
    ledger = read_json(out / "ledger.json")
    revision = None
    if name in MODELS:
        revision = commit_of(hub_root / "models" / name)
    assert_manifest_follows(keys, manifest, revision)
    if recipe.stem in OTHERS:
        assert_other_rows_are_counted(ledger, OTHERS[recipe.stem])
    elif keys.get("datasets"):
        sources = {entry["path"] for entry in keys["datasets"]}
        add_rows = f"{sources}: say in OTHERS what the ledger must count of its stand-in"
        assert sources == {"Anthropic/hh-rlhf"}, add_rows
        assert_hh_rows_are_counted(ledger, keys, manifest["subsets"])
    assert ("validation" in ledger) is (keys["validation_fraction"] > 0)
    assert manifest["validation"].get("n", 0) == ledger.get("validation", {"kept": 0})["kept"]
    assert len(read_json(out / "test_ids.json")) == ledger["test"]["kept"]

    # A fresh process verified rewards that are not all the same.
    verified = manifest["verified"]
    assert 0 <= verified["max_difference"] <= verified["tolerance"]
    if manifest["dtype"] == "float32":  # also where the steps were in bf16
        assert verified["tolerance"] == 1e-4
    golden = (out / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    rewards = [json.loads(line)["reward"] for line in golden]
    spread = max(rewards) - min(rewards)
    assert spread > 100 * verified["max_difference"]
    assert not (out / "unverified").exists()
    assert f"saved {out}: a fresh process gives the same rewards" in printed
    assert ("warning: the rewards of" in printed) is (statistics.stdev(rewards) < 0.02)

    assert_saved_files(out, keys, manifest, spread)
    if recipe.stem == "from-skywork-0.6b":  # two steps of 2e-6 leave the trained head what it was
        trained, saved = (
            load_file(folder / "model.safetensors")["score.weight"]
            for folder in (hub_root / "models" / name, out)
        )
        assert (saved - trained).abs().max() < 1e-4 < trained.abs().max()
    # The most demanding load: an adapter here, its base on the hub.
    if recipe.stem == "llama-3-8b-lora":
        assert_one_off_scores(out, env)


def assert_manifest_follows(keys: dict, manifest: dict, revision: str | None) -> None:
    """The manifest says what the recipe's keys say, and the base's revision."""
    assert manifest["base_model"] == keys["model_name_or_path"]
    assert manifest["base_revision"] == revision
    assert manifest["steps"] == 2
    assert manifest["dtype"] == keys["dtype"]
    assert manifest["max_length"] == keys["max_length"]
    labels = 1
    if keys.get("head") == "two_logit":
        labels = 2
    assert manifest["labels"] == labels


def assert_other_rows_are_counted(ledger: dict, expected: dict) -> None:
    """The ledger has the rows of one of OTHERS; every fourth preference is a tie."""
    rows = {"read": sum(counts["read"] for counts in ledger.values())}
    for split in expected:
        if split in ledger:
            rows[split] = (ledger[split]["read"], ledger[split]["kept"])
    assert {split: rows[split] for split in expected} == expected
    ties = 0
    for counts in ledger.values():
        ties += counts["noted"].get(TIE, 0) + counts["dropped"].get(NO_RIGHT_SIDE, 0)
    assert ties == rows["read"] / 4


def assert_hh_rows_are_counted(ledger: dict, keys: dict, subsets: list[str]) -> None:
    """Every row of every folder of HH-RLHF is in the ledger, under its folder's name."""
    sources = keys["datasets"]
    folders = {entry["data_dir"] for entry in sources}
    assert set(ledger["test"]["by_subset"]) == set(ledger["train"]["by_subset"]) == folders
    assert subsets == sorted(folders)
    if len(sources) > 1:
        assert folders == set(HH_FOLDERS)
    rows = 0
    for entry in sources:
        rows += sum(ROWS[split] for split in {entry["split"], entry["test_split"]})
    assert sum(counts["read"] for counts in ledger.values()) == rows
    # The stand-in's rows are all sound.
    assert sum(counts["kept"] for counts in ledger.values()) == rows
    assert sum(sum(counts["by_subset"].values()) for counts in ledger.values()) == rows
    if "test_fraction" not in keys:
        assert ledger["test"]["read"] == sum(ROWS[entry["test_split"]] for entry in sources)


def assert_saved_files(out: Path, keys: dict, manifest: dict, spread: float) -> None:
    """A whole model was saved, or an adapter and its merged model.

    Args:
        out: the output folder.
        keys: of the recipe.
        manifest: of the output folder.
        spread: the largest golden reward minus the smallest.
    """
    adapter = keys.get("use_peft", False)
    quantized = keys.get("load_in_4bit", False)
    assert manifest["adapter"] is adapter
    assert (manifest["quantization"] is not None) is quantized
    if quantized:
        assert manifest["quantization"]["load_in_4bit"] is True
        assert manifest["quantization"]["bnb_4bit_quant_type"] == keys["bnb_4bit_quant_type"]
        assert manifest["quantization"]["bnb_4bit_use_double_quant"] is keys["use_bnb_nested_quant"]
    assert (out / "adapter_model.safetensors").exists() is adapter
    # An adapter is merged because its base on the Hub has no pad token.
    assert (out / "merged" / "model.safetensors").exists() is adapter
    assert (out / "model.safetensors").exists() is not adapter
    if adapter:
        assert read_json(out / "adapter_config.json")["revision"] == manifest["base_revision"]
        merged = read_json(out / "merged" / "manifest.json")
        assert merged["merged_from_adapter"] is True and merged["quantization"] is None
        limit = 1e-2
        if quantized:
            limit = 0.2
        assert 0 <= merged["merging_moved_rewards"] < limit * spread
    assert read_json(out / "checkpoint-2" / "manifest.json")["step"] == 2


def assert_one_off_scores(out: Path, env: dict) -> None:
    """score.py prints the rewards of two completions on the command line."""
    better, worse = "start with some water", "sorry i would rather not say"
    options = ["--prompt", "how can you make tea?", "--completion", better, "--completion", worse]
    scored = run_script("score.py", "--ckpt", out, *options, "--tokens", env=env).stdout
    values = re.findall(r"^([AB])  ([+-]\d+\.\d{4})  (.*)$", scored, re.MULTILINE)
    assert {(letter, text) for letter, _, text in values} == {("A", better), ("B", worse)}
    assert float(values[0][1]) > float(values[1][1])
    first, second = values[0][0], values[1][0]
    assert f"P({first} beats {second}) = " in scored and "A, reward after each token" in scored


# --- What cannot be had from the hub --------------------------------------------------------------


def test_what_the_hub_lacks_is_a_fault_in_one_sentence(hub, tmp_path):
    """It exits with status 2 and no traceback.

    The hub lacks a model, a licence for a gated one, a dataset, and a dataset's test split.
    """
    recipe = ["--recipe", "recipes/qwen-0.5b.yaml", "--output_dir", str(tmp_path / "out")]
    no_test = ["--datasets", "[{path: somebody/train-only}]", "--validation_fraction", "0.3"]
    not_there = "nobody/no-such-model: no such folder here, and not to be"
    gated = f"{GATED}: it is gated: accept its licence on the Hub, then `hf auth login`"
    cases = [  # what is asked for; what the answer must say
        (["--model_name_or_path", "nobody/no-such-model"], not_there),
        (["--model_name_or_path", GATED], gated),
        (["--datasets", "[{path: nobody/no-such-data}]"], "nobody/no-such-data: cannot be loaded"),
        (no_test, "somebody/train-only: no 'test' split, so there would be nothing to audit on."),
    ]
    mended = [*no_test, "--test_fraction", "0.3", "--check-data"]  # as the last answer says

    options = [*(case for case, _ in cases), mended]
    lines = [[*recipe, *case] for case in options]
    environment = hub_environment(hub, tmp_path / "home")
    *answers, mended_run = train_several(lines, tmp_path / "launch", env=environment)

    assert [answer.status for answer in answers] == [2] * len(cases)
    assert mended_run.status == 0, mended_run.stderr[-5000:]
    for (_, needed), answer in zip(cases, answers, strict=True):
        assert "Traceback" not in answer.stderr
        message = answer.stderr[answer.stderr.index("train_rm.py: ") :].strip()
        assert message.startswith(f"train_rm.py: {needed}") and "\n" not in message, message
    assert "Traceback" not in mended_run.stderr
    assert "test_fraction: 0.1" in answers[3].stderr
    assert not (tmp_path / "out").exists()
