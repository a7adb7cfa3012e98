"""Every file in recipes/ runs unmodified, through real hub loading, against a loopback hub with tiny stand-ins under the
real names; only steps and the output folder are limited, on the command line."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hub import commit_of, hub_environment, serve
from launched import LAUNCH, read_json, train_several
from standins import hh_rows, make_model
from support import REPO, run_script, write_rows

from reward.data.ledger import NO_RIGHT_SIDE, TIE
from reward.data.transcripts import assistant, parse_transcript, user

pytestmark = pytest.mark.slow

RECIPES = sorted((REPO / "recipes").glob("*.yaml"), key=lambda path: path.stem)
MODELS = {  # real name -> stand-in, and the length limit in its real tokenizer_config.json
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen", 131072),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen", 131072),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen", 131072),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("tinyllama", 2048),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama3", 1000000000000000019884624838656),
    "sentence-transformers/all-MiniLM-L6-v2": ("encoder", 512),
}
HH_FOLDERS = ["harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"]
ROWS = {"train": 60, "test": 20}  # a folder
FEW_STEPS = "--max_steps 2 --eval_steps 1 --save_steps 1 --logging_steps 1".split()
OTHERS = {  # recipe -> the rows read and kept by split, of the stand-ins that `other_datasets` writes
    "votes-and-ties": {"read": 420},
    "target-margins": {"read": 420, "test": (20, 15)},  # every fourth preference is a tie
    "rating-regression": {"read": 420, "test": (20, 15)},
    "length-debiased": {"read": 420, "test": (20, 15)},
}
HH_CARD = "---\nlicense: mit\ntags:\n- human-feedback\n---\n# Dataset Card for HH-RLHF\n"
GATED = "meta-llama/Llama-Guard-3-8B"


@pytest.fixture(scope="session")
def hub_root(tmp_path_factory) -> Path:
    """The stand-ins and HH-RLHF's four folders as they lie on the Hub."""
    root = tmp_path_factory.mktemp("hub")
    for number, (name, (kind, longest)) in enumerate(MODELS.items()):
        layers = (
            28 if "1.5B" in name else 2
        )  # as many as the recipe that freezes all but eight needs
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


def other_datasets(root: Path) -> None:
    """Rows under the columns and file names of the real datasets; every fourth preference is a tie."""
    pairs = [
        parse_transcript(row["chosen"]) + parse_transcript(row["rejected"])[-1:]
        for row in hh_rows(420, turns=1)
    ]
    texts = [[message["content"] for message in pair] for pair in pairs]  # prompt, better, worse
    votes = [
        (0, 0, 1) if i % 4 == 0 else (1, 0, 0) if i % 2 else (0, 1, 0) for i in range(len(texts))
    ]
    arena = root / "lmsys" / "lmsys-arena-human-preference-55k"
    write_rows(
        arena / "train.jsonl",
        [
            {
                "id": i,
                "prompt": json.dumps([p]),
                "response_a": json.dumps([a]),
                "response_b": json.dumps([b]),
            }
            | dict(zip(("winner_model_a", "winner_model_b", "winner_tie"), vote, strict=True))
            for i, ((p, a, b), vote) in enumerate(zip(texts, votes, strict=True))
        ],
    )
    for split, (start, stop) in {"train": (0, 400), "validation": (400, 420)}.items():
        three = [
            {
                "domain": "general",
                "context": [{"role": "user", "content": p}],
                "response1": a,
                "response2": b,
            }
            | {"overall_preference": 0 if i % 4 == 0 else -1 - i % 3}
            for i, (p, a, b) in enumerate(texts[start:stop])
        ]
        write_rows(root / "nvidia" / "HelpSteer3" / "preference" / f"{split}.jsonl.gz", three)
        ultra = [
            {"chosen": user(p) + assistant(a), "rejected": user(p) + assistant(b)}
            | {"score_chosen": 8.0, "score_rejected": 8.0 if i % 4 == 0 else 3.5}
            for i, (p, a, b) in enumerate(texts[start:stop])
        ]
        name = {"train": "train", "validation": "test"}[split]
        write_rows(root / "trl-lib" / "ultrafeedback_binarized" / f"{name}.jsonl", ultra)
        two = [
            {
                "prompt": p,
                "response": text,
                "helpfulness": 2 if i % 4 == 0 else rating,
                "correctness": 3,
            }
            for i, (p, a, b) in enumerate(texts[start:stop])
            for text, rating in ((a, 4), (b, 1))
        ]
        write_rows(root / "nvidia" / "HelpSteer2" / f"{split}.jsonl.gz", two)
    files = [{"split": s, "path": f"preference/{s}.jsonl.gz"} for s in ("train", "validation")]
    card = yaml.safe_dump(
        {"configs": [{"config_name": "preference", "default": True, "data_files": files}]}
    )
    (root / "nvidia" / "HelpSteer3" / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")


@pytest.fixture(scope="session")
def hub(hub_root):
    with serve(hub_root, gated=[GATED]) as url:
        yield url


# ----------------------------------------------------------------------- every recipe file


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
        done = run_script(*launch_prefix, "train_rm.py", *options, env=environment)
        runs[name] = (home / name, done.stdout, environment)
    others = [recipe.stem for recipe in RECIPES if recipe.stem not in launches]
    lines = [
        ["--recipe", f"recipes/{name}.yaml", *FEW_STEPS, "--output_dir", home / name]
        for name in others
    ]
    finished = train_several(lines, home / "launch", env=environment)
    for name, run in zip(others, finished, strict=True):
        assert run.status == 0, f"{name}: {run.stderr[-3000:]}"
        runs[name] = (home / name, run.stdout, environment)
    return runs


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs_unmodified(recipe, recipe_runs, hub_root):
    keys = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    name = keys["model_name_or_path"]
    assert name in MODELS or name.startswith("data/"), (
        f"{name}: add a stand-in to MODELS, under its real name"
    )
    out, printed, env = recipe_runs[recipe.stem]

    manifest = read_json(out / "manifest.json")
    on_hub = name in MODELS
    assert manifest["base_model"] == name
    assert manifest["base_revision"] == (commit_of(hub_root / "models" / name) if on_hub else None)
    assert manifest["steps"] == 2
    assert manifest["dtype"] == keys["dtype"]
    assert manifest["max_length"] == keys["max_length"]
    assert manifest["labels"] == (2 if keys.get("head") == "two_logit" else 1)

    # -- the ledger: every row of every folder is accounted for, under its folder's name
    ledger = read_json(out / "ledger.json")
    if recipe.stem in OTHERS:
        known = OTHERS[recipe.stem]
        found = {"read": sum(counts["read"] for counts in ledger.values())}
        found |= {
            split: (ledger[split]["read"], ledger[split]["kept"])
            for split in known
            if split in ledger
        }
        assert {split: found[split] for split in known} == known
        ties = sum(
            c["noted"].get(TIE, 0) + c["dropped"].get(NO_RIGHT_SIDE, 0) for c in ledger.values()
        )
        assert ties == found["read"] / 4
    elif sources := keys.get("datasets"):
        folders = {entry["data_dir"] for entry in sources}
        assert set(ledger["test"]["by_subset"]) == set(ledger["train"]["by_subset"]) == folders
        assert manifest["subsets"] == sorted(folders)
        if len(sources) > 1:
            assert folders == set(HH_FOLDERS)
        rows = sum(
            ROWS[split] for entry in sources for split in {entry["split"], entry["test_split"]}
        )
        assert sum(counts["read"] for counts in ledger.values()) == rows
        assert (
            sum(counts["kept"] for counts in ledger.values()) == rows
        )  # the stand-in's rows are all sound
        assert sum(sum(counts["by_subset"].values()) for counts in ledger.values()) == rows
        if "test_fraction" not in keys:
            assert ledger["test"]["read"] == sum(ROWS[entry["test_split"]] for entry in sources)
    assert ("validation" in ledger) is (keys["validation_fraction"] > 0)
    assert manifest["validation"].get("n", 0) == ledger.get("validation", {"kept": 0})["kept"]
    assert len(read_json(out / "test_ids.json")) == ledger["test"]["kept"]

    # -- the verification, by a fresh process, of rewards that are not all the same
    verified = manifest["verified"]
    assert 0 <= verified["max_difference"] <= verified["tolerance"]
    golden = [
        json.loads(line) for line in (out / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    rewards = [row["reward"] for row in golden]
    assert max(rewards) - min(rewards) > 100 * verified["max_difference"]
    assert not (out / "unverified").exists()
    assert f"saved {out}: a fresh process gives the same rewards" in printed

    # -- what was saved
    adapter = keys.get("use_peft", False)
    quantized = keys.get("load_in_4bit", False)
    assert manifest["adapter"] is adapter
    assert (manifest["quantization"] is not None) is quantized
    if quantized:
        assert manifest["quantization"]["load_in_4bit"] is True
        assert manifest["quantization"]["bnb_4bit_quant_type"] == keys["bnb_4bit_quant_type"]
        assert manifest["quantization"]["bnb_4bit_use_double_quant"] is keys["use_bnb_nested_quant"]
    assert (out / "adapter_model.safetensors").exists() is adapter
    assert (
        out / "merged" / "model.safetensors"
    ).exists() is adapter  # its base on the Hub has no pad token
    assert (out / "model.safetensors").exists() is not adapter
    if adapter:
        assert read_json(out / "adapter_config.json")["revision"] == manifest["base_revision"]
        merged = read_json(out / "merged" / "manifest.json")
        assert merged["merged_from_adapter"] is True and merged["quantization"] is None
        assert (
            0
            <= merged["merging_moved_rewards"]
            < (0.2 if quantized else 1e-2) * (max(rewards) - min(rewards))
        )
    assert read_json(out / "checkpoint-2" / "manifest.json")["step"] == 2

    if (
        recipe.stem == "llama-3-8b-lora"
    ):  # the most demanding load: an adapter here, its base on the hub
        scored = run_script(
            *["score.py", "--ckpt", out, "--prompt", "how can you make tea?"],
            *[
                "--completion",
                "start with some water",
                "--completion",
                "sorry i would rather not say",
            ],
            env=env,
        ).stdout
        values = re.findall(r"^([AB])  ([+-]\d+\.\d{4})  (.*)$", scored, re.MULTILINE)
        assert [(letter, text) for letter, _, text in values] == [
            ("A", "start with some water"),
            ("B", "sorry i would rather not say"),
        ]
        assert values[0][1] != values[1][1]
        assert "P(A beats B) = " in scored and "A, reward after each token" in scored


# ----------------------------------------------------------------------------------------- what cannot be had from it


def test_what_the_hub_lacks_is_a_fault_in_one_sentence(hub, tmp_path):
    """A missing model, a gated one, a missing dataset, and a dataset without a test split: exit 2, no traceback."""
    recipe = ["--recipe", "recipes/qwen-0.5b.yaml", "--output_dir", str(tmp_path / "out")]
    no_test = ["--datasets", "[{path: somebody/train-only}]", "--validation_fraction", "0.3"]
    cases = [  # what is asked for; what the answer must say
        (
            ["--model_name_or_path", "nobody/no-such-model"],
            "nobody/no-such-model: no such folder here, and not to be",
        ),
        (
            ["--model_name_or_path", GATED],
            f"{GATED} is gated: accept its licence on the Hub, then `hf auth login`",
        ),
        (["--datasets", "[{path: nobody/no-such-data}]"], "nobody/no-such-data: cannot be loaded"),
        (no_test, "somebody/train-only: no 'test' split, so there would be nothing to audit on."),
    ]
    mended = [
        *no_test,
        "--test_fraction",
        "0.3",
        "--check-data",
    ]  # the line that the last answer names

    lines = [[*recipe, *case] for case in [*(case for case, _ in cases), mended]]
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
