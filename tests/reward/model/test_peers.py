"""Reward models that other projects trained get the rewards that the project itself computes."""

import json
from pathlib import Path

import pytest
from support import REPO

from reward.checkpoint.convert import convert
from reward.model.scorer import Scorer

PEERS = Path("tests/peers")  # made by tests/peers/make_llamafactory.py, with the peer's own code


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_llamafactory_rewards_are_its_own(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)  # the adapter names its base from there
    folder = PEERS / f"llamafactory-{kind}"
    rows = json.loads((folder / "rewards.json").read_text(encoding="utf-8"))
    ids = [row["ids"] for row in rows]
    rewards = [row["reward"] for row in rows]
    assert Scorer(str(folder)).rewards_of_ids(ids) == pytest.approx(rewards, abs=1e-5)

    done = convert(str(folder), tmp_path / "plain", ids)
    assert done.moved < 1e-5 and done.rewards == pytest.approx(rewards, abs=1e-5)
    assert Scorer(str(tmp_path / "plain")).rewards_of_ids(ids) == pytest.approx(rewards, abs=1e-5)
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["architectures"] == [
        "Qwen2ForSequenceClassification"
    ]
