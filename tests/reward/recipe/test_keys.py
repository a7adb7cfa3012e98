"""The tables of keys agree with what is installed and with the objectives that exist."""

import json
from pathlib import Path

import pytest
from recipe_texts import SOUND, parse

from reward.recipe.keys import CLASSES, FLAGS, OWN, REFUSED, TRACKERS, TRL

pytestmark = pytest.mark.usefixtures("empty_folder")

COMMITTED = Path(__file__).parents[3] / "reward" / "recipe" / "recipe_keys.json"


@pytest.mark.parametrize("loss_type", OWN["loss_type"].choices)
def test_every_objective_is_one_that_the_trainer_has(loss_type):
    """The choices are read from the text of losses.py; this imports it."""
    from reward.training.losses import LOSSES

    recipe = parse(SOUND + f"loss_type: {loss_type}\n")
    assert recipe["loss_type"] in LOSSES and list(LOSSES) == OWN["loss_type"].choices


def test_committed_keys_are_the_installed_ones():
    pytest.importorskip("trl")
    from make_recipe_keys import installed_keys

    assert COMMITTED.read_text(encoding="utf-8") == installed_keys()


def test_own_keys_are_not_trl_keys():
    assert not set(OWN) & {key for name in CLASSES for key in TRL[name]}
    assert set(REFUSED) - set(FLAGS) >= {"env", "test_split_size", "pad_token"}
    assert json.loads(COMMITTED.read_text())["versions"].keys() == {"trl", "transformers"}


def test_the_trackers_are_those_of_transformers():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(TRACKERS) == set(INTEGRATION_TO_CALLBACK)
