"""Read files of scores as scored pairs or scored completions, and write them. No torch.

scores = read_scores("scored.jsonl")       # any format of auditing.score_formats
write_scores(scores.pairs, "again.jsonl")
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from auditing.benchmarks import Benchmark, BenchmarkPrompt, benchmark_of
from auditing.pairs import LARGEST_REWARD, NOT_FINITE, Pairs, ScoredPair, with_own_prompts
from auditing.score_formats import (
    COMPLETIONS,
    READ_HERE,
    ScoredCompletion,
    ScoreRow,
    parse_score_row,
)
from reward.data.bad_rows import UnreadableRow, one_of_few
from reward.data.columns import UNREAD, Columns, NamedColumns, name_in_words, names_in_words
from reward.data.files import DataError, to_json
from reward.data.formats import RowError
from reward.data.json_values import MOST_BRACKETS
from reward.data.preference_pair import AGAINST, RATED_AGAINST
from reward.data.row_files import PlacedRow, read_rows
from reward.data.shown import count
from reward.data.transcripts import is_messages, text_of
from reward.data.unpacking import DAMAGED, open_text

LONGEST_COLUMNS = 100_000_000  # characters of RewardBench's JSON of columns, which is read at once

# The place of each row in the file, and what the row holds.
PlacedScoreRows = Iterator[tuple[str, ScoreRow]]


@dataclass(frozen=True)
class Completions:
    """Scored completions, several per prompt; every array is (n,)."""

    prompt: np.ndarray  # the number of the prompt, the same for all completions of one prompt
    reward: np.ndarray  # NaN where it is not a finite number
    length: np.ndarray  # characters
    hedges: np.ndarray
    markdown: np.ndarray
    # The reward of a model that nobody optimised against. NaN if missing; None if no row has one.
    gold: np.ndarray | None = None
    # A human's rating. NaN if missing; None if no row has one.
    rating: np.ndarray | None = None
    left_out: tuple[str, ...] = ()  # what was left out, in words


@dataclass(frozen=True)
class Scores:
    """What a file of scores holds."""

    pairs: Pairs | None  # None if the file holds completions
    completions: Completions | None  # None if the file holds pairs
    benchmark: Benchmark | None  # the numbers by a benchmark's own rule; None for no benchmark
    kind: str  # the format, and what was left out, in words
    left_out: tuple[str, ...] = ()  # what was left out, in words
    noted: Sequence[str] = ()  # what is worth knowing about pairs that are kept, in words
    unreadable: int = 0  # rows that cannot be read
    not_measured: Sequence[str] = ()  # what these rows cannot say, in sentences


def read_scores(
    path: str | os.PathLike, columns: dict[str, str] | None = None, on_bad_row: str = "skip"
) -> Scores:
    """Read the scored pairs or completions of a file in any format of reward.data.row_files.

    Rows are read one after another. Only JSON, also RewardBench's JSON of columns, is read all at
    once. A reward of null is kept as NaN, and one that is not finite as infinity. A pair whose
    raters tie has no right side, so it is left out, and `kind` says how many. A pair whose prompt
    is unknown shares its prompt only with the pairs of its own row.

    Args:
        path: The file.
        columns: Our name of each column that the file names otherwise -> its name there.
        on_bad_row: With `skip` a row that cannot be read is left out, and `kind` says how many;
            with `stop` it raises DataError.

    Raises:
        DataError: The file cannot be read as scores; the message names file and line.
    """
    path = str(path)
    notes = _Notes()
    rows = _parsed_rows(path, NamedColumns(Columns.of(columns)), on_bad_row, notes)
    return _scores_of(path, rows, notes)


def has_columns(path: str, columns: dict[str, str]) -> bool:
    """Whether the first row of a file that can be read has one of the columns that are named.

    Args:
        path: The file.
        columns: Our name of each column -> its name in the file.
    """
    for _, row in _rows_of(path):
        if isinstance(row, dict):
            return not row.keys().isdisjoint(columns.values())
    return False


def scores_of_rows(name: str, rows: PlacedScoreRows) -> Scores:
    """Collect parsed rows of one format, which are read one after another.

    Args:
        name: What they are rows of; an error names it.
        rows: The rows with their places.

    Raises:
        DataError: There are no rows, or no pair has a right side.
    """
    return _scores_of(name, rows, _Notes())


def _scores_of(path: str, rows: PlacedScoreRows, notes: "_Notes") -> Scores:
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path}: no rows; needed is {READ_HERE}")
    _, first_row = first
    rows = _of_one_format(first_row.format_name, itertools.chain([first], rows))
    if first_row.format_name == COMPLETIONS:
        completions = _completion_columns(
            [completion for _, row in rows for completion in row.completions]
        )
        left_out = notes.left_out_in_words()
        completions = replace(completions, left_out=tuple(left_out))
        kind = "; ".join([COMPLETIONS, *left_out])
        return Scores(None, completions, None, kind, tuple(left_out))

    in_tokens = any("chosen_tokens" in pair for pair in first_row.pairs)
    length_unit = "characters"
    if in_tokens:
        length_unit = "tokens"
    kept_pairs = _kept_pairs(rows, in_tokens, notes)
    pairs = Pairs.collect(kept_pairs, length_unit, first_row.human_labels)
    left_out = notes.left_out_in_words()
    if not len(pairs):
        raise DataError(f"{path}: no pair with a right side is left; {'; '.join(left_out)}")
    if notes.without_prompt:
        pairs = with_own_prompts(pairs, *np.array(notes.without_prompt).T)
    benchmark = benchmark_of(notes.benchmark_prompts)
    others = notes.rows + notes.unreadable - len(notes.benchmark_prompts)
    not_measured = []
    if benchmark is not None and others:
        benchmark = None
        not_measured.append(
            f"The benchmark's own number: {count(others, 'row')} of {path} could not be read for "
            "it, and its rule counts every row."
        )
    return Scores(
        pairs=pairs,
        completions=None,
        benchmark=benchmark,
        kind="; ".join([first_row.format_name, *left_out]),
        left_out=tuple(left_out),
        noted=notes.noted_in_words(),
        unreadable=notes.unreadable,
        not_measured=not_measured,
    )


@dataclass
class _Notes:
    """What is noted about the rows of a file while their pairs are read."""

    rows: int = 0
    benchmark_prompts: list[BenchmarkPrompt] = field(default_factory=list)
    # The index of a pair, and the number of its row.
    without_prompt: list[tuple[int, int]] = field(default_factory=list)
    ties: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by the reason train_rm.py would give
    places: dict[str, str] = field(default_factory=dict)  # of the first bad row, by reason
    unreadable: int = 0  # rows that cannot be read
    unread_rows: int = 0  # rows with columns that are not read
    unread: dict[str, None] = field(default_factory=dict)  # these columns, in order
    doubts: Counter[str] = field(default_factory=Counter)  # pairs with a doubtful label, by why

    def add_bad_row(self, row: UnreadableRow, place: str) -> None:
        """Count a row that cannot be read."""
        self.unreadable += 1
        reason = one_of_few(row.reason, self.dropped)
        self.dropped[reason] += 1
        self.places.setdefault(reason, place)

    def left_out_in_words(self) -> list[str]:
        """One phrase for each reason why pairs were left out."""
        phrases = []
        if self.ties:
            phrases.append(f"{self.ties:,} left out because their raters tie")
        for reason, rows in sorted(self.dropped.items()):
            phrase = f"{rows:,} left out: {reason}"
            if reason in self.places:
                phrase += f" (first: {self.places[reason]})"
            phrases.append(phrase)
        return phrases

    def noted_in_words(self) -> list[str]:
        """One phrase for each thing that is worth knowing about pairs that are kept."""
        phrases = [f"{pairs:,} with {doubt}" for doubt, pairs in sorted(self.doubts.items())]
        if self.unread:
            phrases.append(f"{self.unread_rows:,} with {UNREAD}: {names_in_words(self.unread)}")
        return phrases

    def add_unread(self, columns: Sequence[str]) -> None:
        """Count a row of which these columns are not read."""
        if columns:
            self.unread_rows += 1
            self.unread |= dict.fromkeys(columns)

    def add_doubts(self, pair: ScoredPair) -> None:
        """Count a pair whose raters or ratings prefer its rejected side."""
        if pair.get("chosen_probability", 1) < 0.5:
            self.doubts[AGAINST] += 1
        if pair.get("rating_chosen", 0) < pair.get("rating_rejected", 0):
            self.doubts[RATED_AGAINST] += 1


def _kept_pairs(rows: PlacedScoreRows, in_tokens: bool, notes: _Notes) -> Iterator[ScoredPair]:
    """The pairs that have a right side, one after another.

    Args:
        rows: Rows of one format.
        in_tokens: Whether lengths are counted in tokens; every pair must then have its tokens.
        notes: What is noted about the rows; it is filled in here.
    """
    index = 0
    for number, (place, row) in enumerate(rows):
        notes.rows += 1
        if row.benchmark_prompt is not None:
            notes.benchmark_prompts.append(row.benchmark_prompt)
        notes.add_unread(row.unread)
        for pair in row.pairs:
            if pair.get("chosen_probability") == 0.5:
                notes.ties += 1
                continue
            if pair["drop"]:
                notes.dropped[pair["drop"]] += 1
                continue
            if ("chosen_tokens" in pair) != in_tokens:
                raise DataError(
                    f"{place}: `chosen_tokens, rejected_tokens` are needed in every row or "
                    "in none, or lengths cannot be compared"
                )
            notes.add_doubts(pair)
            if not text_of(pair["prompt"]).strip():
                notes.without_prompt.append((index, number))
            index += 1
            yield pair


def _completion_columns(completions: list[ScoredCompletion]) -> Completions:
    """The completions as arrays, in the order of the file."""
    prompt_numbers: dict[int, int] = {}
    prompts = []
    for completion in completions:
        prompts.append(prompt_numbers.setdefault(completion.prompt, len(prompt_numbers)))
    numbers = np.array([completion[1:] for completion in completions], dtype=float)
    reward, length, hedges, markdown, gold, rating = numbers.T
    return Completions(
        prompt=np.array(prompts),
        reward=_nan_where_not_finite(reward),
        length=length,
        hedges=hedges,
        markdown=markdown,
        gold=_none_if_nowhere_finite(_nan_where_not_finite(gold)),
        rating=_none_if_nowhere_finite(_nan_where_not_finite(rating)),
    )


def _nan_where_not_finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < LARGEST_REWARD, values, np.nan)  # False for NaN


def _none_if_nowhere_finite(values: np.ndarray) -> np.ndarray | None:
    if np.isfinite(values).any():
        return values
    return None


# --- Rows of a file -------------------------------------------------------------------------------


def _parsed_rows(path: str, named: NamedColumns, on_bad_row: str, notes: _Notes) -> PlacedScoreRows:
    """The rows of a file, parsed one after another; those that cannot be read are left out.

    Args:
        path: The file.
        named: It gives the columns our names.
        on_bad_row: `skip` or `stop`.
        notes: It counts what is left out.
    """
    first_error: DataError | None = None
    some_are_read = False
    for place, row in _rows_of(path):
        score_row = _score_row(row, named)
        if not isinstance(score_row, UnreadableRow):
            some_are_read = True
            yield place, score_row
            continue
        if first_error is None:
            first_error = DataError(f"{place}: {score_row}")
        if score_row.ends_file:
            raise DataError(f"{place}: {score_row}")
        if on_bad_row == "stop":
            raise first_error
        notes.add_bad_row(score_row, place)
    if first_error is not None and not some_are_read:
        raise first_error
    named.check(path)


def _score_row(row: dict | UnreadableRow, named: NamedColumns) -> ScoreRow | UnreadableRow:
    """What a row of the file holds, or why it cannot be read."""
    if isinstance(row, UnreadableRow):
        return row
    try:
        return parse_score_row(named.of(row))
    except RowError as error:
        if isinstance(row.get("reward_error"), str):
            return UnreadableRow(f"score.py could not read it either: {row['reward_error']}")
        return UnreadableRow.of(error)


def _of_one_format(format_name: str, rows: PlacedScoreRows) -> PlacedScoreRows:
    """The same rows; raises DataError at the first one that is not of this format."""
    for place, row in rows:
        if row.format_name != format_name:
            raise DataError(
                f"{place}: {row.format_name}, after {format_name}; "
                "one format a file is needed: split the file"
            )
        yield place, row


def _rows_of(path: str) -> Iterator[PlacedRow]:
    """The rows of a file, also of RewardBench's JSON of columns."""
    columns = _json_columns(path)
    if not columns:
        yield from read_rows(path)
        return
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        sizes = ", ".join(
            f"{name_in_words(name)!r} {len(values):,}" for name, values in columns.items()
        )
        raise DataError(
            f"{path}: columns of unequal length ({sizes}); one value a row is needed in each"
        )
    for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
        yield PlacedRow(f"{path} row {number}", dict(zip(columns, values, strict=True)))


def _json_columns(path: str) -> dict[str, list]:
    """The columns of a JSON file in RewardBench's published form; empty for any other file.

    Such a file holds lists of one length, and the name of the model.
    """
    if ".json" not in Path(path).suffixes:
        return {}
    try:
        with open_text(path) as file:
            text = file.read(100)
            if not text.lstrip().startswith("{"):
                return {}
            text += file.read(LONGEST_COLUMNS)
        if len(text) > LONGEST_COLUMNS or text.count("[") + text.count("{") > MOST_BRACKETS:
            return {}
        content = json.loads(text)
    except (OSError, ValueError, RecursionError, *DAMAGED):
        return {}  # read_rows fails as well, and names the line.
    prompt = content.get("prompt")
    if isinstance(prompt, str) or is_messages(prompt):
        return {}  # one row
    return {name: values for name, values in content.items() if isinstance(values, list)}


# --- Writing --------------------------------------------------------------------------------------


def write_scores(pairs: Pairs, path: str | os.PathLike) -> None:
    """Write the pairs in the format of RewardBench 1, one row per line.

    The prompt stands beside the texts. A reward that is missing or not finite is written as null,
    and `reward_error` says which rows had one that is not finite. A text is cut after LONGEST_TEXT
    characters.
    """
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        for i in range(len(pairs)):
            file.write(to_json(_row_to_write(pairs, i)) + "\n")
    os.replace(temporary, path)


def _row_to_write(pairs: Pairs, i: int) -> dict:
    """The row of the pair at index i."""
    texts = pairs.text(i)
    start = text_of(texts["prompt"])
    if start:
        start += "\n\n"
    row = {"subset": pairs.subset[i], "prompt": texts["prompt"]}
    for side, reward, length in zip(
        ("chosen", "rejected"), pairs.rewards[:, i], pairs.lengths[:, i], strict=True
    ):
        row[f"text_{side}"] = start + text_of(texts[side])
        row[f"scores_{side}"] = None
        if np.isfinite(reward):
            row[f"scores_{side}"] = float(reward)
        if np.isinf(reward):
            row["reward_error"] = f"the model's reward is {NOT_FINITE}"
        if pairs.length_unit == "tokens":
            row[f"{side}_tokens"] = int(length)
    row["human_labels"] = pairs.human_labels
    votes = pairs.votes[i]
    if np.isfinite(votes).all():
        row["votes"] = [int(count) for count in votes]
    bayes_accuracy = pairs.bayes_accuracy[i]
    if np.isfinite(bayes_accuracy):
        row["bayes_accuracy"] = float(bayes_accuracy)
    return row
