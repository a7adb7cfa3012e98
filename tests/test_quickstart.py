"""The README's first command, at full length: the demonstration trains, and its audit finds what was planted."""

import json
import re

import pytest
from conftest import REPO, run_script


@pytest.mark.slow
def test_the_audit_finds_what_was_planted(tmp_path):
    run_script("data/quickstart/make.py", "--model")
    out, threads = tmp_path / "rm-out", {"OMP_NUM_THREADS": "2"}
    recipe = ["--recipe", "recipes/quickstart.yaml", "--output_dir", out]
    trained = run_script("-m", "accelerate.commands.launch", "train_rm.py", *recipe, timeout=900, env=threads)
    assert "machine: " in trained.stdout and "a fresh process gives the same rewards" in trained.stdout
    audited = run_script("audit.py", "--ckpt", out, timeout=300, env=threads)
    assert f"open {out}/audit/report.html" in audited.stdout

    checks = json.loads((out / "audit" / "audit.json").read_text(encoding="utf-8"))["checks"]
    overall = {check["name"]: check for check in checks if check["subset"] is None}
    accuracy = overall["accuracy"]
    ceiling = float(re.search(r"ceiling (\.\d+)", accuracy["note"])[1])
    assert accuracy["n"] >= 2000 and ceiling >= 0.82
    assert 0.65 <= accuracy["value"] <= 0.80 and accuracy["verdict"] == "pass"  # it beats the length rules
    # The training raters' liking for length, which the test raters do not share.
    assert overall["length correlation, within pairs"]["low"] > 0.3
    assert overall["length correlation, within pairs"]["verdict"] in ("warn", "fail")
    assert overall["length correlation, pooled"]["value"] > 0.3
    assert overall["length excess"]["low"] > 0.05 and overall["length excess"]["verdict"] == "warn"


def test_readme_names_the_commands_that_exist():
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make (\w+)", readme, re.M))
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    assert {"quickstart", "test"} <= targets <= set(re.findall(r"^(\w+):", makefile, re.M))
    assert not re.findall(r"^[A-Z_]+$", readme, re.M), "a placeholder is left"
    for path in re.findall(r"(?:recipes|accelerate_configs|data|rm)/[\w./-]+\.(?:yaml|py)", readme):
        assert (REPO / path).is_file(), path
