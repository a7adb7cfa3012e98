"""A real pretrained encoder learns real HH-RLHF pairs.

It is trained by recipes/minilm-hh.yaml, from a loopback hub.
"""

import gzip
import itertools
import json
import shutil

import pytest
from hub import hub_environment, serve
from support import run_script, write_rows


@pytest.mark.slow
def test_minilm_learns_real_pairs(real_encoder, hh_real, tmp_path):
    """A hundred pairs, seen five times, are learned.

    With random rewards the last ten steps would be right by half. The pairs are the shortest of
    the first 600, for the time that a step takes.
    """
    shutil.copytree(real_encoder, tmp_path / "hub/models/sentence-transformers/all-MiniLM-L6-v2")
    with gzip.open(hh_real, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 600)]
    rows.sort(key=lambda row: len(row["chosen"]) + len(row["rejected"]))
    rows = rows[:150]
    write_rows(tmp_path / "hub/datasets/Anthropic/hh-rlhf/harmless-base/test.jsonl.gz", rows)
    out = tmp_path / "rm-out"
    limits = ["--output_dir", out, "--max_steps", 60, "--save_steps", 60]
    limits += ["--max_length", 128, "--max_dropped", 0.3]
    with serve(tmp_path / "hub") as url:
        environment = hub_environment(url, tmp_path / "home")
        train = ["train_rm.py", "--recipe", "recipes/minilm-hh.yaml", *limits]
        run_script(*train, env=environment, timeout=900)
        run_script("audit.py", "--ckpt", out, "--quick", env=environment, timeout=600)

    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert manifest["encoder"]["end_token"] == "[SEP]"
    assert manifest["verified"]["max_difference"] <= 1e-4
    ledger = json.loads((out / "ledger.json").read_text(encoding="utf-8"))
    assert sum(counts["read"] for counts in ledger.values()) == 150
    checks = json.loads((out / "audit" / "audit.json").read_text(encoding="utf-8"))["checks"]
    accuracy = next(check for check in checks if check["name"] == "accuracy")
    assert accuracy["n"] == ledger["test"]["kept"] > 20
    state = json.loads((out / "checkpoint-60" / "trainer_state.json").read_text(encoding="utf-8"))
    accuracies = [log["accuracy"] for log in state["log_history"] if "accuracy" in log]
    assert len(accuracies) == 6 and accuracies[-1] > 0.75
