"""Recipes as texts, and what parsing them gives. The tests of reward/recipe share this."""

from pathlib import Path

import pytest

from reward.recipe.parse import parse_command_line
from reward.recipe.recipe import Recipe, RecipeError

SOUND = "model_name_or_path: org/model\ndataset_name: org/pairs\noutput_dir: out\n"
# A recipe that lacks only its data.
DATA = "model_name_or_path: org/model\noutput_dir: out\n"
# Lines that evaluate, and keep the best checkpoint.
EVALUATES = "eval_strategy: steps\neval_steps: 50\nload_best_model_at_end: true\n"


def parse(text: str, *argv: str) -> Recipe:
    """The recipe of a text, which is written to r.yaml, and of further words of a command line."""
    Path("r.yaml").write_text(text, encoding="utf-8")
    return parse_command_line(["--recipe", "r.yaml", *argv])


def faults(text: str, *argv: str) -> list[str]:
    """The faults that `parse` raises."""
    with pytest.raises(RecipeError) as caught:
        parse(text, *argv)
    return caught.value.faults
