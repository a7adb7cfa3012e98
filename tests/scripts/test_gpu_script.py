"""benchmarks/gpu.sh on a CPU: every part runs, and what is not exact is found."""

import os
import re
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from packed_models import small_model
from support import REPO

from reward.model import packed_attention
from reward.model.batches import pack

PAIRS = REPO / "data" / "quickstart" / "test.jsonl.gz"
TEXTS = [list(range(5, 35)), [*range(5, 20), *range(34, 19, -1)]]  # half of each is shared


@pytest.fixture(scope="module")
def exactness() -> SimpleNamespace:
    """The functions of benchmarks/exactness.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(REPO / "benchmarks"), *sys.path])
        return SimpleNamespace(**runpy.run_path(str(REPO / "benchmarks" / "exactness.py")))


def test_attention_passes_and_a_window_one_token_too_wide_fails(exactness, monkeypatch, capsys):
    texts = {"two": [list(range(300)), list(range(150)) + list(range(400, 550))]}
    assert exactness.compare_attention(texts, "cpu") == []
    assert capsys.readouterr().out.count("| pass |") == 6

    def too_wide(queries, keys, window, device):
        return mask_of(queries, keys, window and window + 1, device)

    mask_of = packed_attention.causal_mask
    truth = exactness.attend(pack(texts["two"]), 64, 128, torch.float32, "cpu")
    monkeypatch.setattr(packed_attention, "causal_mask", too_wide)
    wrong = exactness.attend(pack(texts["two"]), 64, 128, torch.bfloat16, "cpu")
    assert exactness.error_of([wrong[0]], [truth[0]]) > 3 * exactness.TOLERATED_ATTENTION


def test_rewards_that_depend_on_the_batch_fail(exactness, capsys):
    model = small_model("qwen2")
    packed_attention.enable_packing(model)
    assert exactness.compare(model.train(), TEXTS, "two") == []

    def one_token_further(module, args, kwargs):
        if "packing" in kwargs:
            kwargs = {**kwargs, "position_ids": kwargs["position_ids"] + torch.arange(45)}
        return args, kwargs

    model.base_model.register_forward_pre_hook(one_token_further, with_kwargs=True)
    assert exactness.compare(model, TEXTS, "two") == ["two, float32", "two, bf16"]
    assert capsys.readouterr().out.count("| FAIL |") == 2


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path):
    environment = {
        **os.environ,
        "PAIRS": str(PAIRS),
        "OUT": str(tmp_path),
        "PYTHON": sys.executable,
    }
    command = ["bash", str(REPO / "benchmarks" / "gpu.sh"), "--device", "cpu", "--tiny"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.rstrip().endswith("all parts passed")
    titles = re.findall(r"^### (.*)$", run.stdout, flags=re.MULTILINE)
    assert titles == [
        "Versions",
        "Exactness",
        "Quickstart",
        "Memory",
        "Speed: tiny, 4 pairs a step",
    ]
    assert run.stdout.count("| pass |") == 36
    assert "| 4 | prefix + packed | " in run.stdout
    assert "| 4 | prefix + packed, bf16 | " in run.stdout
    assert "| best of 4, 4 prompts a batch | " in run.stdout
    assert (tmp_path / "rm-float32" / "audit" / "report.html").exists()
    assert "all parts passed" in (tmp_path / "gpu.log").read_text(encoding="utf-8")


def test_an_option_that_does_not_exist_is_named():
    command = ["bash", str(REPO / "benchmarks" / "gpu.sh"), "--cpu"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == ("gpu.sh: --cpu is no option; there are --device cuda|cpu and --tiny\n")
