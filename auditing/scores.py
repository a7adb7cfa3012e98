"""Read files of scores as scored pairs or scored completions, and write them. No torch.

scores = read_scores("scored.jsonl")       # any format of auditing.score_formats
write_scores(scores.pairs, "again.jsonl")
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from auditing.benchmarks import (
    Benchmark,
    RewardBench2Prompt,
    RmBenchPrompt,
    rewardbench2_score,
    rm_bench_matrix,
)
from auditing.pairs import Pairs, ScoredPair
from auditing.score_formats import (
    COMPLETIONS,
    READ_HERE,
    REWARDBENCH_2,
    RM_BENCH,
    ScoredCompletion,
    ScoreRow,
    parse_score_row,
)
from reward.data.columns import Columns, NamedColumns
from reward.data.files import DataError, open_text, read_rows, to_json
from reward.data.formats import RowError
from reward.data.transcripts import text_of

# The line number of each row in the file, and what the row holds.
NumberedScoreRows = Iterator[tuple[int, ScoreRow]]


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


@dataclass(frozen=True)
class Scores:
    """What a file of scores holds."""

    pairs: Pairs | None  # None if the file holds completions
    completions: Completions | None  # None if the file holds pairs
    benchmark: Benchmark | None  # the numbers by a benchmark's own rule; None for no benchmark
    kind: str  # the format, and what was left out, in words


def read_scores(path: str | os.PathLike, columns: dict[str, str] | None = None) -> Scores:
    """Read the scored pairs or completions of a JSONL, JSON, CSV or Parquet file, plain or .gz.

    Rows are read one after another. Only JSON, also RewardBench's JSON of columns, is read all at
    once. A reward of null or NaN is kept as NaN. A pair whose raters tie has no right side, so it
    is left out, and `kind` says how many. A pair whose prompt is unknown shares its prompt only
    with the pairs of its own row.

    Args:
        path: The file.
        columns: Our name of each column that the file names otherwise -> its name there.

    Raises:
        DataError: The file cannot be read as scores; the message names file and line.
    """
    path = str(path)
    rows = _parsed_rows(path, NamedColumns(Columns.of(columns)))
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path}: no rows; needed is {READ_HERE}")
    _, first_row = first
    rows = _of_one_format(path, first_row.format_name, itertools.chain([first], rows))
    if first_row.format_name == COMPLETIONS:
        completions = _completion_columns([row.completion for _, row in rows])
        return Scores(None, completions, None, COMPLETIONS)

    in_tokens = any("chosen_tokens" in pair for pair in first_row.pairs)
    length_unit = "characters"
    if in_tokens:
        length_unit = "tokens"
    notes = _Notes()
    kept_pairs = _kept_pairs(path, rows, in_tokens, notes)
    pairs = Pairs.collect(kept_pairs, length_unit, first_row.human_labels)
    left_out = notes.left_out_in_words()
    if not len(pairs):
        raise DataError(f"{path}: no pair with a right side is left; {'; '.join(left_out)}")
    if notes.without_prompt:
        pairs = _with_own_prompts(pairs, *np.array(notes.without_prompt).T)
    benchmark = None
    if first_row.format_name == REWARDBENCH_2:
        benchmark = rewardbench2_score(notes.benchmark_prompts)
    elif first_row.format_name == RM_BENCH:
        benchmark = rm_bench_matrix(notes.benchmark_prompts)
    return Scores(pairs, None, benchmark, "; ".join([first_row.format_name, *left_out]))


@dataclass
class _Notes:
    """What is noted about the rows of a file while their pairs are read."""

    benchmark_prompts: list[RewardBench2Prompt | RmBenchPrompt] = field(default_factory=list)
    without_prompt: list[tuple[int, int]] = field(default_factory=list)  # index of a pair, its line
    ties: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by the reason train_rm.py would give

    def left_out_in_words(self) -> list[str]:
        """One phrase for each reason why pairs were left out."""
        phrases = []
        if self.ties:
            phrases.append(f"{self.ties:,} left out because their raters tie")
        for reason, count in sorted(self.dropped.items()):
            phrases.append(f"{count:,} left out: {reason}")
        return phrases


def _kept_pairs(
    path: str, rows: NumberedScoreRows, in_tokens: bool, notes: _Notes
) -> Iterator[ScoredPair]:
    """The pairs that have a right side, one after another.

    Args:
        path: The path of the file, which an error names.
        rows: Rows of one format.
        in_tokens: Whether lengths are counted in tokens; every pair must then have its tokens.
        notes: What is noted about the rows; it is filled in here.
    """
    index = 0
    for line, row in rows:
        if row.benchmark_prompt is not None:
            notes.benchmark_prompts.append(row.benchmark_prompt)
        for pair in row.pairs:
            if pair.get("chosen_probability") == 0.5:
                notes.ties += 1
                continue
            if pair["drop"]:
                notes.dropped[pair["drop"]] += 1
                continue
            if ("chosen_tokens" in pair) != in_tokens:
                raise DataError(
                    f"{path}:{line}: `chosen_tokens, rejected_tokens` are needed in every row or "
                    "in none, or lengths cannot be compared"
                )
            if not text_of(pair["prompt"]).strip():
                notes.without_prompt.append((index, line))
            index += 1
            yield pair


def _with_own_prompts(pairs: Pairs, index: np.ndarray, lines: np.ndarray) -> Pairs:
    """The same pairs, but those at `index` share a prompt only with pairs of the same line."""
    prompt = pairs.prompt.copy()
    _, number_of_line = np.unique(lines, return_inverse=True)
    prompt[index] = prompt.max() + 1 + number_of_line
    return replace(pairs, prompt=prompt)


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
        reward=np.where(np.isfinite(reward), reward, np.nan),
        length=length,
        hedges=hedges,
        markdown=markdown,
        gold=_none_if_nowhere_finite(gold),
        rating=_none_if_nowhere_finite(rating),
    )


def _none_if_nowhere_finite(values: np.ndarray) -> np.ndarray | None:
    if np.isfinite(values).any():
        return values
    return None


# --- Rows of a file -------------------------------------------------------------------------------


def _parsed_rows(path: str, named: NamedColumns) -> NumberedScoreRows:
    """The rows of a file, parsed one after another. `named` gives their columns our names."""
    for line, row in _rows_of(path):
        try:
            score_row = parse_score_row(named.of(row))
        except RowError as error:
            raise DataError(f"{path}:{line}: {error}") from None
        yield line, score_row
    named.check(path)


def _of_one_format(path: str, format_name: str, rows: NumberedScoreRows) -> NumberedScoreRows:
    """The same rows; raises DataError at the first one that is not of this format."""
    for line, row in rows:
        if row.format_name != format_name:
            raise DataError(
                f"{path}:{line}: {row.format_name}, after {format_name}; "
                "one format a file is needed: split the file"
            )
        yield line, row


def _rows_of(path: str) -> Iterator[tuple[int, dict]]:
    """The rows of a file, also of RewardBench's JSON of columns, with their numbers."""
    columns = _json_columns(path)
    if not columns:
        yield from read_rows(path)
        return
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        sizes = ", ".join(f"`{name}` {len(values):,}" for name, values in columns.items())
        raise DataError(
            f"{path}: columns of unequal length ({sizes}); one value a row is needed in each"
        )
    for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
        yield number, dict(zip(columns, values, strict=True))


def _json_columns(path: str) -> dict[str, list]:
    """The columns of a JSON file in RewardBench's published form; empty for any other file.

    Such a file holds lists of one length, and the name of the model.
    """
    if not path.removesuffix(".gz").endswith(".json"):
        return {}
    try:
        with open_text(path) as file:
            if not file.read(100).lstrip().startswith("{"):
                return {}
            file.seek(0)
            content = json.load(file)
    except (OSError, EOFError, ValueError):
        return {}  # read_rows fails as well, and names the line.
    return {name: values for name, values in content.items() if isinstance(values, list)}


# --- Writing --------------------------------------------------------------------------------------


def write_scores(pairs: Pairs, path: str | os.PathLike) -> None:
    """Write the pairs in the format of RewardBench 1, one row per line.

    The prompt stands beside the texts. A reward that is not finite is written as null, and a text
    is cut after LONGEST_TEXT characters.
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
