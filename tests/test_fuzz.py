"""Inputs that nobody would write: each is read whole, or answered by a sentence; nothing is lost.

`make test` draws 2,000 of them, `make fuzz` 100,000, always the same ones. Of each reader there are
several parts, whose seeds are their numbers. FUZZ_FIGURES=FILE writes the figures of a run.
"""

import json
import math
import os
import re
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import readers
from fuzz_inputs import (
    PREFERENCES,
    SCORED,
    TO_SCORE,
    DamagedFile,
    RowFile,
    damages,
    real_files,
    recipes,
    row_files,
)
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies
from readers import Outcome, answered
from support import REPO

from auditing.result import Audit
from reward.data.feedback import FeedbackOptions
from reward.data.files import storable
from reward.data.formats import is_rating
from reward.data.row_files import read_rows

pytest_plugins = ["reader_fixtures"]

CASES = int(os.environ.get("FUZZ_CASES", "2000"))
CASES_OF_A_PART = 400
SHARES = {
    "recipes": 0.2,
    "preferences": 0.2,
    "to score": 0.2,
    "scored": 0.1,
    "to audit": 0.2,
    "models": 0.1,
}


def parts(reader: str) -> list[int]:
    """The parts of a reader's cases."""
    return list(range(max(1, math.ceil(CASES * SHARES[reader] / CASES_OF_A_PART))))


def fuzz(reader: str, part: int, strategy: strategies.SearchStrategy, check: Callable) -> None:
    """Check cases of a strategy, of which the part says which."""
    cases = round(CASES * SHARES[reader] / len(parts(reader)))

    @seed(part)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def of_one(case):
        start = time.process_time()
        outcome = check(case)
        FIGURES.add(reader, outcome, time.process_time() - start)

    of_one()


class Figures:
    """What is counted while the cases are read."""

    def __init__(self):
        self.counts = Counter()
        self.slowest = Counter()
        self.memory_before = memory()

    def add(self, reader: str, outcome: Outcome, seconds: float) -> None:
        self.counts[reader, "read" if outcome.refusal is None else "refused"] += 1
        self.slowest[reader] = max(self.slowest[reader], seconds)

    def as_dict(self) -> dict:
        figures = {"megabytes_more_than_at_the_start": memory() - self.memory_before}
        for reader in SHARES:
            figures[reader] = {
                "read": self.counts[reader, "read"],
                "refused": self.counts[reader, "refused"],
                "slowest_seconds": round(self.slowest[reader], 2),
            }
        return figures


def memory() -> int:
    """The most memory that this process has had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


FIGURES = Figures()


@pytest.fixture(autouse=True)
def figures():
    """Write the figures after each part, so that a run may be stopped."""
    yield
    path = os.environ.get("FUZZ_FIGURES")
    if path:
        worker = os.environ.get("PYTEST_XDIST_WORKER", "")
        Path(path + worker).write_text(json.dumps(FIGURES.as_dict(), indent=1) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# --- Recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", parts("recipes"))
def test_recipes(part, folder, monkeypatch):
    monkeypatch.chdir(folder)
    paths = sorted((REPO / "recipes").glob("*.yaml"))
    shipped = tuple(path.read_text(encoding="utf-8") for path in paths)

    def check(content: bytes) -> Outcome:
        path = folder / "recipe.yaml"
        path.write_bytes(content)
        return answered(readers.read_recipe, path)

    fuzz("recipes", part, recipes(shipped), check)


# --- Rows -----------------------------------------------------------------------------------------


def are_whole(rows: list[dict] | None) -> bool:
    """Whether it is known which rows a file has, each of which is a row of its own."""
    return rows is not None and not any(is_rating(row) for row in rows)


@pytest.mark.parametrize("part", parts("preferences"))
def test_preferences(part, folder, tokenizer):
    def check(file: RowFile) -> Outcome:
        outcome = answered(readers.read_preferences, file.write(folder), tokenizer)
        if outcome.refusal is None and are_whole(file.rows):
            assert len(set(outcome.value["where"])) == len(file.rows)
        return outcome

    fuzz("preferences", part, row_files(PREFERENCES, real_files()), check)


@pytest.mark.parametrize("part", parts("to score"))
def test_rows_to_score(part, folder, scorer):
    def check(case: tuple[RowFile, str]) -> Outcome:
        file, suffix = case
        outcome = answered(readers.read_to_score, file.write(folder), scorer, suffix)
        if outcome.refusal is None:
            scored = [row for _, row in read_rows(str(outcome.value))]
            if suffix == ".jsonl":
                check_scored(scored, file.rows)
            elif file.rows is not None:
                assert len(scored) == len(file.rows)
        return outcome

    suffixes = strategies.sampled_from((".jsonl", ".jsonl", ".parquet", ".csv"))
    inputs = strategies.tuples(row_files(TO_SCORE, real_files()), suffixes)
    fuzz("to score", part, inputs, check)


def check_scored(scored: list[dict], rows: list[dict] | None) -> None:
    """Check that no row and no column is lost, and that a row without a reward says why."""
    for row in scored:
        assert any(name.startswith(("reward", "new_reward", "score", "new_score")) for name in row)
    if rows is None:
        return
    assert len(scored) == len(rows)
    for before, after in zip(rows, scored, strict=True):
        if all(name.endswith(("reward", "reward_error")) for name in after):
            continue  # its line cannot be read
        assert storable(before).keys() <= after.keys()


TASKS = (
    FeedbackOptions("rank"),
    FeedbackOptions("reject", min_reward=0.0),
    FeedbackOptions("label", label_as="binary"),
    FeedbackOptions("label", label_as="scalar", conversational=True),
    FeedbackOptions("label", label_as="pairs"),
    FeedbackOptions("pairs", min_margin=0.1),
)


@pytest.mark.parametrize("part", parts("scored"))
def test_scored_rows(part, folder):
    def check(case: tuple[RowFile, FeedbackOptions]) -> Outcome:
        file, options = case
        return answered(readers.read_scored, file.write(folder), options)

    strategy = strategies.tuples(row_files(SCORED), strategies.sampled_from(TASKS))
    fuzz("scored", part, strategy, check)


@pytest.mark.parametrize("part", parts("to audit"))
def test_rows_to_audit(part, folder):
    def check(case: tuple[RowFile, bool]) -> Outcome:
        file, beside = case
        outcome = answered(readers.read_to_audit, file.write(folder), beside)
        if isinstance(outcome.value, Audit) and are_whole(file.rows):
            left_out = re.findall(r"([\d,]+) left out", outcome.value.identity["format"])
            counted = sum(int(count.replace(",", "")) for count in left_out)
            assert counted + len(outcome.value.pairs) >= len(file.rows)
        return outcome

    fuzz("to audit", part, strategies.tuples(row_files(SCORED), strategies.booleans()), check)


# --- Checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", parts("models"))
def test_models(part, folder, saved, sealed, value_head, value_head_adapter, two_labels):
    models = {
        "ours": sealed,
        "without a manifest": saved("qwen"),
        "encoder": saved("encoder"),
        "value head": value_head[0],
        "adapter": value_head_adapter[0],
        "two labels": two_labels,
        "peer": REPO / "tests/peers/llamafactory-full",
    }

    def check(case: tuple[str, list[DamagedFile]]) -> Outcome:
        model, changes = case
        copied = folder / "model"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(models[model], copied)
        for change in changes:
            path = copied / change.name
            path.unlink()
            if change.content is not None:
                path.write_bytes(change.content)
        return answered(readers.read_model, copied)

    fuzz("models", part, damages(models), check)
