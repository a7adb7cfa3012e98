"""A checkpoint that an earlier commit saved is read by today's code and gives its golden rewards.

saved_before_the_move.md says how the checkpoint was made.
"""

import re
from pathlib import Path

import pytest
import torch

from auditing.source import recorded_recipe
from reward.checkpoint.convert import rewards_of
from reward.checkpoint.golden import read_golden
from reward.checkpoint.manifest import hash_files, read_manifest
from reward.data.encoding import encode
from reward.model.load import load_reward_model
from reward.model.scorer import Scorer

torch.set_num_threads(1)

SAVED = Path(__file__).parent / "saved_before_the_move"
CLOSE = 1e-6  # in float32


@pytest.fixture(scope="module")
def golden() -> list[dict]:
    return read_golden(SAVED)


def test_the_golden_rewards_are_spread(golden):
    """So that equal rewards below are no accident."""
    rewards = [row["reward"] for row in golden]
    assert len(golden) == 12 and all(row["text"] for row in golden)
    assert max(rewards) - min(rewards) > 0.2


def test_load_reward_model_gives_the_golden_rewards(golden):
    loaded = load_reward_model(str(SAVED))
    model, tokenizer = loaded.model, loaded.tokenizer
    expected = pytest.approx([row["reward"] for row in golden], abs=CLOSE)
    assert rewards_of(model, [row["ids"] for row in golden]) == expected
    encoded_anew = []
    for row in golden:
        text = row["text"]
        encoded_anew.append(encode(tokenizer, text["prompt"], text["completion"], text["tools"]))
    assert encoded_anew == [row["ids"] for row in golden]
    assert rewards_of(model, encoded_anew) == expected


def test_scorer_gives_the_golden_rewards(golden):
    scorer = Scorer(str(SAVED))
    expected = pytest.approx([row["reward"] for row in golden], abs=CLOSE)
    texts = [(row["text"]["prompt"], row["text"]["completion"]) for row in golden]
    assert scorer.rewards(texts) == expected
    assert scorer.rewards_of_ids([row["ids"] for row in golden]) == expected
    assert scorer.padded_because is None  # both calls were packed


def test_what_the_checkpoint_recorded_is_read():
    recipe = recorded_recipe(str(SAVED))
    assert recipe["model_name_or_path"] == "base" and recipe["max_steps"] == 12
    (source,) = recipe.data_sources()
    assert source["path"] == "pairs"
    manifest = Scorer(str(SAVED)).manifest
    assert manifest["base_model"] == "base" and manifest["encoder"]["end_token"] == "<|im_end|>"
    template = (SAVED / "chat_template.jinja").read_text(encoding="utf-8")
    assert "rm_text" in template and "rm_control" in template


def test_the_files_are_those_that_were_saved():
    assert hash_files(SAVED) == read_manifest(SAVED)["files"]


def test_no_file_names_a_place_of_the_machine_that_made_it():
    for path in SAVED.iterdir():
        if path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"/(tmp|home|root|work|Users)/", text), path.name
