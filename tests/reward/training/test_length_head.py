"""The length head learns what length explains, is restored with a checkpoint, and is not saved."""

import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from launched import read_json, train_several
from safetensors.torch import load_file
from standins import hh_rows
from support import write_rows

from reward.training.length_head import LengthHead
from reward.training.losses import bradley_terry


def add(head: LengthHead, margins, x, p) -> None:
    """Let the head see pairs with these margins, length differences and chosen probabilities."""
    rewards = torch.stack([margins, torch.zeros(len(x))], 1)
    batch = {"length_difference": x, "weight": torch.ones(len(x))}
    head.add(rewards, batch, lambda z: bradley_terry(z, torch.zeros(len(z)), None, p))


def test_it_finds_the_coefficient_of_a_logistic_regression_beside_the_margin():
    """Labels of raters with utility d + .1 tokens; the model's margins are d."""
    torch.manual_seed(0)
    head = LengthHead(Accelerator(cpu=True))
    for _ in range(300):
        d, x = torch.randn(32), torch.randint(-20, 21, (32,)).float()
        p = (torch.rand(32) < torch.sigmoid(d + 0.1 * x)).float()
        add(head, d, x, p)
        head.on_step_end(None, None, None)
    assert head.coefficient == pytest.approx(0.1, abs=0.02)


def test_one_step_literal():
    """One pair, 10 tokens longer, preferred, equal rewards.

    The slope is .5 x 10 and the curvature .25 x 100, so that the coefficient is 5 / 25.
    """
    head = LengthHead(Accelerator(cpu=True))
    add(head, torch.zeros(1), torch.tensor([10.0]), torch.ones(1))
    head.on_step_end(None, None, None)
    assert head.coefficient == pytest.approx(0.2) and head.curvature == pytest.approx(25.0)


def test_pairs_of_equal_lengths_say_nothing():
    head = LengthHead(Accelerator(cpu=True))
    add(head, torch.randn(4), torch.zeros(4), torch.ones(4))
    head.on_step_end(None, None, None)
    assert head.coefficient == 0.0


@pytest.mark.slow
def test_it_changes_the_weights_is_restored_and_not_saved(standin, tmp_path):
    rows = hh_rows(60, seed=1)
    for row in rows[::2]:
        row["chosen"] += " and some water and a little patience" * 2  # the raters like length
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", hh_rows(10, seed=2))

    options = "--max_steps 6 --save_steps 3 --learning_rate 3e-3 --eval_strategy no --use_cpu true"
    options += f" --model_name_or_path {standin('qwen')} --dataset_name {tmp_path}"
    options += " --max_length 256 --logging_steps 1 --activation_checkpointing false"

    def train(lines: dict[str, list]) -> list[dict]:
        """The weights of one run for each output folder and its further options."""
        command_lines = [
            [*options.split(), "--output_dir", tmp_path / name, *more]
            for name, more in lines.items()
        ]
        for run in train_several(command_lines, tmp_path / f"launch-{next(iter(lines))}"):
            assert run.status == 0, run.stderr[-3000:]
        return [load_file(tmp_path / name / "model.safetensors") for name in lines]

    with_head = ["--length_head", "true"]
    plain, once = train({"plain": [], "once": with_head})
    assert plain.keys() == once.keys()
    assert any(not torch.equal(plain[key], once[key]) for key in plain)
    state = read_json(tmp_path / "once" / "checkpoint-6" / "trainer_state.json")
    coefficients = [
        log["length_coefficient"] for log in state["log_history"] if "length_coefficient" in log
    ]
    assert len(coefficients) == 6 and coefficients[-1] > 0.001

    shutil.copytree(tmp_path / "once" / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    (again,) = train({"again": [*with_head, "--resume", "auto"]})
    assert all(torch.equal(once[key], again[key]) for key in once)
    resumed = read_json(tmp_path / "again" / "checkpoint-6" / "trainer_state.json")
    assert resumed["stateful_callbacks"]["LengthHead"] == state["stateful_callbacks"]["LengthHead"]
    assert json.dumps(resumed["log_history"][-1]["length_coefficient"]) == json.dumps(
        coefficients[-1]
    )
