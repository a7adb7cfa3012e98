"""Recipes that nobody would write are answered by a short message that a terminal can print."""

import glob
import os
import re

import pytest
from support import REPO

from reward.data.ledger import Ledger
from reward.data.shown import shown
from reward.recipe.parse import parse_command_line
from reward.recipe.recipe import RecipeError

ESCAPE = "\x1b[31m"
LINES = [
    "seed: !!bool maybe",
    "seed: !!timestamp x",
    "seed: !!int x",
    "seed: !!binary '*'",
    "seed: !foo 1",
    "model_init_kwargs: {token: !!bool maybe}",
    "lora_target_modules: &x [*x]",
    "model_init_kwargs: &x {a: *x}",
    "datasets: &x [*x]",
    "seed: " + "9" * 5000,
    '"\\x1b[31mkey": 1',
    '"\\ud800": 1',
    'output_dir: "\\0"',
    "model_name_or_path: " + "a/" * 3000,
    "output_dir: " + "a" * 5000,
    "? {a: 1}\n: 1",
    "report_to: [{wandb: true}]",
    'dataset_test_split: "\\ud800"',
    'datasets: [{path: recipes, test_split: "\\ud800"}]',
    'run_name: "a\\0b"',
]


def message_of(path) -> str:
    with pytest.raises(RecipeError) as error:
        parse_command_line(["--recipe", str(path)])
    return str(error.value)


def assert_printable(message: str) -> None:
    assert len(message) < 2000
    assert re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", message) == []


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:24])
def test_a_line_that_cannot_be_meant(line, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"{line}\n", encoding="utf-8")
    assert_printable(message_of(tmp_path / "recipe.yaml"))


HOSTILE = sorted(glob.glob(str(REPO.parent / "shared/cases/hostile/recipe-*.yaml")))


@pytest.mark.skipif(not HOSTILE, reason="needs ../shared/cases/hostile")
@pytest.mark.parametrize("path", HOSTILE, ids=os.path.basename)
def test_recipes_that_broke_the_parser_once(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        parse_command_line(["--recipe", path])
    except RecipeError as error:
        assert_printable(str(error))


def test_an_output_dir_that_cannot_be_written_is_a_fault_of_the_recipe(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "recipe.yaml").write_text(f"output_dir: {tmp_path / 'file' / 'rm-out'}\n")
    said = message_of(tmp_path / "recipe.yaml")
    assert f"nothing can be written to {tmp_path / 'file' / 'rm-out'}: " in said
    assert "needed is a folder that you may write to: `output_dir: rm-out`" in said


def test_names_from_the_data_cannot_steer_a_terminal():
    ledger = Ledger()
    for i in range(30):
        ledger.add("train", "by_subset", f"{ESCAPE}subset {i:02}", 30 - i)
    ledger.add("train", "dropped", f"odd {ESCAPE}reason")
    said = str(ledger)
    assert ESCAPE not in said and "odd <U+001B>[31mreason" in said
    assert "<U+001B>[31msubset 00 30, <U+001B>[31msubset 01 29, " in said
    assert said.rstrip().endswith("<U+001B>[31msubset 19 11, and 10 smaller ones")


def test_what_is_shown_of_a_text():
    assert shown(f"{ESCAPE}a\tb\nc\ud800") == "<U+001B>[31ma\tb\nc<U+D800>"
    assert shown("x" * 12, longest=10) == "xxxxxxxxxx\u2026 (2 more characters)"
    assert shown(ValueError("hf_AbCdEfGhIjKlMnOpQrSt")) == "hf_***"
