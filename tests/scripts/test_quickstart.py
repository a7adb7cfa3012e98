"""The README's first command, at full length.

The demonstration trains, and its audit finds what was planted.
"""

import gzip
import json
import re

import numpy as np
import pytest
from support import REPO, run_script


@pytest.mark.slow
def test_the_audit_finds_what_was_planted(tmp_path):
    run_script("data/quickstart/make.py", "--model")
    out = tmp_path / "rm-out"
    recipe = ["--recipe", "recipes/quickstart.yaml", "--output_dir", out]
    trained = run_script("-m", "accelerate.commands.launch", "train_rm.py", *recipe, timeout=900)
    assert "machine: " in trained.stdout
    assert "a fresh process gives the same rewards" in trained.stdout
    audited = run_script("audit.py", "--ckpt", out, timeout=300)
    assert f"open {out}/audit/report.html" in audited.stdout

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
    said = " ".join(audited.stdout.split())
    assert "Do not optimise against this model" in said
    assert "It pays for length, not only for quality: " in said
    assert "adding sentences that say nothing raises the reward" in said

    # A recipe against length turns the verdict, and gains accuracy; less than half of the excess
    # is left.
    debiased = tmp_path / "debiased"
    run_script("train_rm.py", *recipe[:3], debiased, "--length_head", "true", timeout=900)
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
