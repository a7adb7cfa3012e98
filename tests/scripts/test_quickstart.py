"""The README's first commands, at full length, as they stand there.

The demonstration trains, its audit finds what was planted, and its model scores.
"""

import gzip
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import blocks, commands_of_block, link_repository
from safetensors.torch import load_file
from support import REPO, run_script

import audit
import score


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the repository's files, in which the commands write."""
    folder = tmp_path_factory.mktemp("home")
    link_repository(folder)
    return folder


def readme_commands(first: str) -> list[list[str]]:
    """The commands of the README's block that begins with a text."""
    found = [block for block in blocks(REPO / "README.md") if block.text.startswith(first)]
    assert len(found) == 1, first
    return [command.words for command in commands_of_block(found[0])]


def type_in(words: list[str], home: Path) -> str:
    """Run a command as somebody would who activated this environment; return what it prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path}
    done = subprocess.run(words, cwd=home, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_audit_finds_what_was_planted(home, tmp_path):
    make, train, look = readme_commands("python data/quickstart/make.py --model")
    type_in(make, home)
    trained = type_in(train, home)
    assert "machine: " in trained
    assert "a fresh process gives the same rewards" in trained
    audited = type_in(look, home)
    out = home / "rm-out"
    assert f"open {out}/audit/report.html" in audited

    checks = json.loads((out / "audit" / "audit.json").read_text(encoding="utf-8"))["checks"]
    overall = {check["name"]: check for check in checks if check["subset"] is None}
    accuracy = overall["accuracy"]
    ceiling = float(re.search(r"ceiling (\.\d+)", accuracy["note"])[1])
    assert accuracy["n"] >= 2000 and ceiling >= 0.82
    assert 0.65 <= accuracy["value"] <= 0.80
    assert accuracy["verdict"] == "pass"  # it beats the length rules
    # The training raters' liking for length, which the test raters do not share.
    assert overall["length correlation, within pairs"]["low"] > 0.3
    assert overall["length correlation, within pairs"]["verdict"] in ("warn", "fail")
    assert overall["length correlation, pooled"]["value"] > 0.3
    assert overall["length excess"]["low"] > 0.05 and overall["length excess"]["verdict"] == "warn"
    # The test raters' noise: how often one of them errs, if all did alike, is known from what
    # their votes were drawn from.
    truth = planted_noise()
    assert overall["label noise"]["low"] - 0.01 < truth < overall["label noise"]["high"] + 0.01
    said = " ".join(audited.split())
    assert "Do not optimise against this model" in said
    assert "It pays for length, not only for quality: " in said
    assert "adding sentences that say nothing raises the reward" in said

    # A recipe against length turns the verdict, and gains accuracy; less than half of the excess
    # is left.
    debiased = tmp_path / "debiased"
    recipe = ["--recipe", "recipes/quickstart.yaml", "--output_dir", debiased]
    run_script("train_rm.py", *recipe, "--length_head", "true", timeout=900)
    run_script("audit.py", "--ckpt", debiased, "--quick", timeout=300)
    checks = json.loads((debiased / "audit" / "audit.json").read_text(encoding="utf-8"))["checks"]
    length = {check["name"]: check for check in checks if check["section"] == "length and style"}
    assert "fail" not in {check["verdict"] for check in length.values()}
    for name in ("length correlation, pooled", "length correlation, within pairs"):
        assert length[name]["verdict"] in ("pass", "not measurable")
    assert length["length excess"]["value"] < overall["length excess"]["value"] / 2
    overall_checks = [check for check in checks if check["subset"] is None]
    debiased_accuracy = next(c for c in overall_checks if c["name"] == "accuracy")
    assert debiased_accuracy["value"] > accuracy["value"]


@pytest.mark.slow
def test_the_readmes_scores(home, monkeypatch, capsys):
    """The block "Score", with the model that the test above trained, and an audit of its file."""
    if not (home / "rm-out/manifest.json").exists():
        pytest.skip("the test above did not train")
    monkeypatch.chdir(home)
    pair = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    (home / "pairs.jsonl").write_text(f"{json.dumps(pair)}\n" * 3, encoding="utf-8")
    one_off, file = readme_commands("python score.py --ckpt rm-out")
    for words in (one_off, file):
        monkeypatch.setattr(sys, "argv", words[1:])
        assert score.main() == 0
    assert re.search(r"^A +-?\d.*4\.$", capsys.readouterr().out, re.M)
    assert (home / "scored.jsonl").read_text(encoding="utf-8").count('"margin"') == 3
    monkeypatch.setattr(sys, "argv", ["audit.py", "--scores", "scored.jsonl"])
    assert audit.main() == 0
    assert (home / "scored-audit" / "report.html").exists()


@pytest.mark.slow
def test_the_examples_run(home, monkeypatch, capsys):
    """The online loop, best of n and GRPO in small, with the model that the first test trained."""
    if not (home / "rm-out/audit/scores.jsonl").exists():
        pytest.skip("the first test did not train")
    for name, value in {"ROUNDS": 1, "QUESTIONS": 6, "N": 4, "SFT": 64}.items():
        monkeypatch.setenv(name, str(value))
    # The same model beside fewer scored pairs, which its audits read.
    shutil.copytree(home / "rm-out", home / "rm")
    scores = (home / "rm-out/audit/scores.jsonl").read_text(encoding="utf-8").splitlines()
    (home / "rm/audit/scores.jsonl").write_text("\n".join(scores[:100]) + "\n", encoding="utf-8")
    said = type_in(["bash", "examples/online_loop.sh", "rm"], home)
    assert len(re.findall(r"^ +[01] +-?\d+\.\d\d +-?\d+\.\d\d +\d+", said, re.M)) == 2
    loop = home / "loop" / "rm"
    assert (home / "loop" / "loop.png").stat().st_size > 10_000
    pairs = (loop / "pairs-0.jsonl").read_text(encoding="utf-8").splitlines()
    assert 1 <= len(pairs) <= 6 and json.loads(pairs[0])["margin"] > 0
    start, moved = (
        load_file(folder / "model.safetensors")["model.norm.weight"]
        for folder in (home / "loop" / "policy", loop / "policy-1")
    )
    assert not torch.equal(start, moved)

    said = type_in(["bash", "examples/best_of_n.sh", "rm", "loop/answers.jsonl"], home)
    assert re.search(r"^ +4 +-?\d", said, re.M)  # the best of 4
    best = (home / "best-of-n" / "best.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(best) == 6
    # A model that was trained without validation pairs names no spread of its rewards.
    manifest = json.loads((home / "rm/manifest.json").read_text(encoding="utf-8"))
    (home / "rm/manifest.json").write_text(json.dumps(manifest | {"validation": {}}))
    type_in(["bash", "examples/best_of_n.sh", "rm", "loop/answers.jsonl"], home)
    kept = (home / "best-of-n" / "kept.jsonl").read_text(encoding="utf-8").splitlines()
    assert 6 <= len(kept) <= 18  # of four answers one to three lie above their mean

    # In this process: imports are the largest part.
    options = "--model loop/policy --prompts rm/audit/scores.jsonl --output samples.jsonl"
    small = "--count 2 --n 3 --max_new_tokens 8"
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", ["examples/sample.py", *options.split(), *small.split()])
    sample = runpy.run_path("examples/sample.py", run_name="__main__")
    samples = (home / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(samples) == 6 and json.loads(samples[0])["prompt"][-1]["role"] == "user"
    assert sample["transcript"]([{"role": "tool", "content": "4"}]) == "Tool: 4\n\nAssistant:"

    options = "--rm rm --model loop/policy --save loop/grpo --steps 2 --questions 1 --n 4"
    monkeypatch.setattr(sys, "argv", ["examples/grpo.py", *options.split()])
    capsys.readouterr()
    runpy.run_path("examples/grpo.py", run_name="__main__")
    assert len(re.findall(r"^step +\d: reward [+-]\d", capsys.readouterr().out, re.M)) == 2
    assert (home / "loop" / "grpo" / "model.safetensors").exists()


def planted_noise() -> float:
    """How often a rater of the test split errs, if all of them did alike.

    It is the error rate e with 1 - 2 e (1 - e) = the mean over test pairs of 1 - 2 p (1 - p), where
    p is a rater's chance to side with the better answer. A row holds b = p^3 + 3 p^2 (1 - p), the
    chance that two of three do.
    """
    with gzip.open(REPO / "data/quickstart/test.jsonl.gz", "rt", encoding="utf-8") as file:
        b = np.array([json.loads(line)["bayes_accuracy"] for line in file])
    grid = np.linspace(0, 1, 10_001)
    p = np.interp(b, grid**3 + 3 * grid**2 * (1 - grid), grid)
    agreement = np.mean(1 - 2 * p * (1 - p))
    return (1 - np.sqrt(2 * agreement - 1)) / 2
