"""Every way in for what strangers write, in process: recipes, pairs, rows to score, scores, models.

    outcome = answered(read_preferences, path)
    outcome.said          # what a script would print, which `answered` has checked
    outcome.value         # what was read; None if it was refused

A refusal is an error of the project's own, which the scripts print. Any other error is a fault, and
so is a hang, and a message that is long or that moves a terminal's cursor.
"""

import io
import logging
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from auditing.checks.golden import golden_checks
from auditing.report import terminal
from auditing.result import Audit
from auditing.run import audit_scores, read_completions, settle
from auditing.scores import Completions, read_scores, write_scores
from reward.data.encoding import EncodingError
from reward.data.feedback import Feedback, FeedbackOptions
from reward.data.files import DataError
from reward.data.input_rows import readable_rows
from reward.data.ledger import Ledger
from reward.data.row_files import read_rows
from reward.data.secrets import without_secrets
from reward.data.shown import shown
from reward.data.sources import FEATURES, split_reader
from reward.data.tokens import EncodingOptions, encode_row
from reward.data.written_rows import write_rows
from reward.model.hub import ModelError
from reward.model.score_file import score_file
from reward.model.scorer import Scorer
from reward.recipe.keys import KEYS
from reward.recipe.parse import load_saved, parse_command_line
from reward.recipe.recipe import RecipeError

REFUSALS = (DataError, EncodingError, ModelError, RecipeError)
LONGEST_MESSAGE = 2000  # characters
LONGEST_SECONDS = 5.0  # of computing
NOT_PRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Hang(BaseException):
    """A reader took longer than LONGEST_SECONDS. Nothing catches it by accident."""


@dataclass
class Outcome:
    """What a reader did with its input."""

    value: Any  # what it returned; None if it refused
    refusal: str | None  # the sentence that a script would print
    printed: str  # what it printed itself, on both streams


def answered(read: Callable, *args, **options) -> Outcome:
    """Call a reader. Raises AssertionError for a message that no script should print."""
    streams = io.StringIO()
    value = refusal = None
    with redirect_stdout(streams), redirect_stderr(streams), logs_in(streams), time_limit():
        try:
            value = read(*args, **options)
        except REFUSALS as error:
            refusal = shown(error)
    printed = streams.getvalue().replace("\r", "")  # a progress bar goes back to its line's start
    for said in (refusal or "", *printed.split("\n")):
        assert len(said) <= LONGEST_MESSAGE, f"{len(said)} characters: {said[:300]}"
        found = NOT_PRINTABLE.search(said)
        assert found is None, f"{found.group()!r} in {said[:300]!r}"
    return Outcome(value, refusal, streams.getvalue())


@contextmanager
def logs_in(stream: io.StringIO) -> Iterator[None]:
    """Write what transformers and datasets log into a stream, too."""
    handler = logging.StreamHandler(stream)
    loggers = [logging.getLogger(name) for name in ("transformers", "datasets", "huggingface_hub")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise Hang inside of the block after LONGEST_SECONDS of computing."""

    def stop(number, frame):
        raise Hang

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# --- The readers ----------------------------------------------------------------------------------


def read_recipe(path: Path) -> dict:
    """train_rm.py --recipe: the values of its keys, which are saved and loaded to the same."""
    recipe = parse_command_line(["--recipe", str(path)])
    saved = path.with_name("saved.yaml")
    recipe.save(saved)
    again = load_saved(saved)
    written = without_secrets({key: recipe[key] for key in KEYS})
    for key in written:  # their texts tell 1, 1.0 and true apart, and not one NaN from another
        assert repr(again[key]) == repr(written[key]), key
    return recipe.values


def read_preferences(path: Path, tokenizer) -> Dataset:
    """A source of a recipe: its table as the ledger counts it, with every pair encoded."""
    source = {"path": str(path), "split": "train", "test_split": "test"}
    reader = split_reader(source, "train", "messages", "skip")
    rows = list(reader.pairs())
    if not rows:
        raise DataError(f"{path}: no rows")  # split_table makes this of the empty generator
    table = Dataset.from_list(rows, features=FEATURES)
    options = EncodingOptions(max_length=512, overlong="truncate_prompt")
    encoded = []
    for row in table:
        encoded.append(encode_row(row, tokenizer, options))
        encoded[-1]["drop"] = row["drop"] or encoded[-1]["drop"]
    ledger = Ledger()
    ledger.add_read("train", [row["drop"] for row in encoded])
    ledger.note_unread("train", table["unread"])
    print(ledger)
    return table


def read_to_score(path: Path, scorer: Scorer, suffix: str = ".jsonl") -> Path:
    """score.py --input: the file that it writes."""
    output = path.with_name(f"scored{suffix}")
    score_file(scorer, str(path), str(output))
    return output


def read_scored(path: Path, options: FeedbackOptions) -> list[dict]:
    """score.py --scored: the rows of a mode."""

    feedback = Feedback(options)
    output = path.with_name("feedback.parquet")
    write_rows(feedback.rows(readable_rows(str(path))), str(output))
    print(feedback.summary())
    return [row for _, row in read_rows(str(output))]


def read_to_audit(path: Path, beside: bool = False) -> Audit | Completions:
    """audit.py --scores, without its pages; with the same file as --ood and --compare `beside`."""
    if read_scores(path).pairs is None:
        return read_completions(str(path))
    others = {}
    if beside:
        others = {"ood": str(path), "compare": [str(path)]}
    audit = audit_scores(str(path), **others)
    settle(audit)
    terminal.print_audit(audit, verbose=True)
    write_scores(audit.pairs, path.with_name("written.jsonl"))
    return audit


def read_model(folder: Path) -> list[float]:
    """score.py --ckpt: the rewards of two completions, and of its golden texts as audits do."""
    scorer = Scorer(str(folder), device="cpu")
    golden_checks(scorer, str(folder))
    return scorer.rewards([("What is 2+2?", "It is 4."), ("What is 2+2?", "No idea.")])
