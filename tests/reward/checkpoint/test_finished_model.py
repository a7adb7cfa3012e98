"""The folder that a real run leaves: every file of the contract, and sealed checkpoints."""

import json

import pytest
from standins import hh_rows
from support import REPO, run_script, write_rows

from reward.checkpoint.golden import read_golden
from reward.checkpoint.manifest import hash_files, read_manifest
from reward.checkpoint.resume import newest_valid_checkpoint


@pytest.fixture(scope="module")
def trained(standin, tmp_path_factory, train_options):
    """A real run of a few steps over an earlier model of the same place."""
    home = tmp_path_factory.mktemp("run")
    write_rows(home / "data" / "train.jsonl", hh_rows(40))
    write_rows(home / "data" / "test.jsonl", hh_rows(10, seed=1))
    (home / "rm" / "audit").mkdir(parents=True)
    (home / "rm" / "audit" / "report.html").write_text("of an earlier model")
    (home / "recipe.yaml").write_text(
        f"model_name_or_path: {standin('qwen')}\n"
        "dtype: float32\n"
        f"dataset_name: {home / 'data'}\n"
        "max_length: 256\n"
        "validation_fraction: 0.3\n"
        f"output_dir: {home / 'rm'}\n"
        "hub_token: hf_secret\n"
    )
    command = ["train_rm.py", "--recipe", home / "recipe.yaml", *train_options, "--overwrite"]
    done = run_script(*command, env={"OMP_NUM_THREADS": "1"})
    return home / "rm", done


@pytest.mark.slow
def test_a_finished_model(trained, standin):
    folder, done = trained
    assert "a fresh process gives the same rewards" in done.stdout
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "recipe.yaml",
        "ledger.json",
        "golden.jsonl",
        "test_ids.json",
        "README.md",
        "manifest.json",
    }
    assert not names & {"training_args.bin", "unverified", "audit"}
    assert "hf_secret" not in (folder / "recipe.yaml").read_text()

    manifest = read_manifest(folder)
    assert manifest["format_version"] == 1 and manifest["base_model"] == str(standin("qwen"))
    assert manifest["base_revision"] is None
    assert manifest["adapter"] is False and manifest["quantization"] is None
    limits = (manifest["dtype"], manifest["max_length"], manifest["overlong"])
    assert limits == ("float32", 256, "drop")
    assert manifest["encoder"]["end_token"] == "<|im_end|>"
    assert manifest["encoder"]["pad_token"] == "<|endoftext|>"
    assert set(manifest["fingerprints"]) == {"train", "validation", "test"}
    assert len(set(manifest["fingerprints"].values())) == 3
    assert manifest["versions"]["torch"].startswith("2.") and manifest["steps"] == 4
    assert manifest["verified"]["max_difference"] <= 1e-4
    assert manifest["files"] == hash_files(folder)
    assert "model.safetensors" in manifest["files"] and "golden.jsonl" in manifest["files"]
    ledger = json.loads((folder / "ledger.json").read_text())
    assert manifest["validation"]["n"] == ledger["validation"]["kept"] > 3
    assert len(json.loads((folder / "test_ids.json").read_text())) == ledger["test"]["kept"] == 10
    golden = read_golden(folder)
    assert len(golden) == 16 and all(isinstance(row["reward"], float) for row in golden)

    card = (folder / "README.md").read_text()
    accuracy, n = manifest["validation"]["accuracy"], manifest["validation"]["n"]
    assert f"{accuracy:.3f} (n = {n})" in card and f"`{standin('qwen')}`" in card


KEYS = (
    "format_version base_model base_revision adapter trust_remote_code quantization dtype labels "
    "max_length overlong transcript encoder subsets data fingerprints versions device precision "
    "processes base_files recipe paths_from validation"
).split()


def test_the_keys_of_a_manifest_and_their_order(trained):
    """They are read by audits of later versions, so none goes missing."""
    folder = trained[0]
    at_the_end = ["train_seconds", "steps", "batches", "date", "verified", "files"]
    assert list(read_manifest(folder)) == KEYS + at_the_end
    in_between = ["step", "metrics", "files"]
    assert list(read_manifest(folder / "checkpoint-2")) == KEYS + in_between


def test_each_checkpoint_is_sealed(trained):
    folder = trained[0]
    assert newest_valid_checkpoint(folder) == (str(folder / "checkpoint-4"), [])
    manifest = read_manifest(folder / "checkpoint-2")
    assert manifest["step"] == 2 and manifest["metrics"]["eval_n"] > 0
    assert "optimizer.pt" in manifest["files"]


def test_a_checkpoint_says_where_its_paths_start(trained):
    folder = trained[0]
    for checkpoint in (folder, folder / "checkpoint-2"):
        assert (checkpoint / read_manifest(checkpoint)["paths_from"]).resolve() == REPO
