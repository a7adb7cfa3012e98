"""Read a public benchmark from the Hub, and score every completion of it.

    rows = read_benchmark(scorer, "rm-bench")
    scored = score_benchmark(scorer, rows)
    scored.benchmark     # its numbers, by its own rules

A row takes the path of score.py and of `audit.py --scores`: one reader, one scorer, one parser of
scored rows. What is audited are the pairs of right and wrong completions.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset, Features

from auditing.benchmark_sources import BENCHMARKS, Part
from auditing.benchmarks import Benchmark, with_note
from auditing.pairs import Pairs, ScoredPair
from auditing.score_formats import ScoreRow, parse_score_row
from auditing.scores import scores_of_rows
from auditing.source import EncodedPairs
from reward.data.columns import Columns, NamedColumns
from reward.data.files import DataError, Source, storable, to_json
from reward.data.ledger import Ledger
from reward.data.row_files import PlacedRow
from reward.data.rows_to_score import reward_columns
from reward.data.shown import count
from reward.data.sources import FEATURES, SplitReader, split_reader
from reward.data.tokens import PROMPT_CUT, over_long
from reward.data.transcripts import text_of
from reward.model.encoded_row import EncodedRow, encode_row_to_score
from reward.model.hub import SHA1
from reward.model.scorer import Scorer

# The columns that the checks read of a table of pairs.
TABLE = Features(
    {
        name: FEATURES[name]
        for name in ("prompt", "chosen", "rejected", "tools", "subset", "votes", "bayes_accuracy")
    }
)


@dataclass(frozen=True)
class BenchmarkRows:
    """All rows of a benchmark, encoded for one model."""

    name: str  # one of BENCHMARKS
    rows: list[EncodedRow]
    commits: list[str]  # of the data sets, as far as they are known

    @property
    def sources(self) -> list[Source]:
        """Its data sets, each once, as the report names them."""
        hub_ids = dict.fromkeys(part.hub_id for part in BENCHMARKS[self.name])
        return [{"path": hub_id, "split": None, "test_split": ""} for hub_id in hub_ids]

    @property
    def splits(self) -> str:
        """The names of its splits."""
        return ", ".join(part.split for part in BENCHMARKS[self.name])


@dataclass(frozen=True)
class ScoredBenchmark:
    """The rewards of a benchmark."""

    pairs: Pairs
    benchmark: Benchmark | None  # its numbers by its own rules; None without a rule
    test: EncodedPairs  # the texts of the same pairs, and the counts of what was left out


# --- Reading --------------------------------------------------------------------------------------


def read_benchmark(scorer: Scorer, name: str) -> BenchmarkRows:
    """Read and encode the rows of a benchmark.

    Args:
        scorer: The model that will score them.
        name: One of BENCHMARKS.

    Raises:
        DataError: A data set cannot be reached, has no such split, or a row is malformed.
    """
    rows: list[EncodedRow] = []
    commits = {}
    for part in BENCHMARKS[name]:
        reader = reader_of(part)
        rows += encode_part(scorer, reader, part)
        commit = commit_of(reader)
        if commit is not None:
            commits[commit] = None
    return BenchmarkRows(name, rows, list(commits))


def reader_of(part: Part) -> SplitReader:
    """The reader of one part of a benchmark."""
    source: Source = {"path": part.hub_id, "split": None, "test_split": part.split}
    # The main process downloads, and the other processes of the host read its cache.
    with PartialState().local_main_process_first():
        reader = split_reader(source, part.split, "messages", on_bad_row="stop")
    if reader is None or reader.dataset is None:
        raise DataError(
            f"{part.hub_id}: no {part.split!r} split on the Hub; the benchmark is published with "
            "one: look at its page there. To audit on other rows, name them with --data and --split"
        )
    return reader


def commit_of(reader: SplitReader) -> str | None:
    """The commit of a Hub data set, by which datasets names the folder of its cache."""
    for file in reader.dataset.cache_files:
        folder = Path(file["filename"]).parent.name
        if SHA1.fullmatch(folder):
            return folder
    return None


def encode_part(scorer: Scorer, reader: SplitReader, part: Part) -> Iterator[EncodedRow]:
    """Encode every completion of every row. Raises DataError if a row is malformed."""
    for number, row in enumerate(reader.dataset):
        if part.subset is not None:
            row = {**row, "subset": part.subset}
        placed = PlacedRow(f"{reader.label} row {number}", storable(row))
        encoded = encode_row_to_score(scorer, placed, NamedColumns(Columns()))
        if encoded.fault is not None and not encoded.ids:
            raise DataError(f"{encoded.place}: {encoded.fault.sentence}")
        yield encoded


# --- Scoring --------------------------------------------------------------------------------------


def score_benchmark(scorer: Scorer, benchmark_rows: BenchmarkRows) -> ScoredBenchmark:
    """Score every completion, once each, and read the rows with their rewards.

    A pair is left out, and counted, if the model cannot read one of its sides. In the benchmark's
    own number such a completion counts as an error.

    Args:
        scorer: The model.
        benchmark_rows: The rows, encoded for this model.

    Raises:
        DataError: No pair is left.
    """
    ids = [ids for encoded in benchmark_rows.rows for ids in encoded.ids]
    rewards = scorer.rewards_of_ids(ids, progress="Scoring")
    unused_rewards = iter(rewards)
    score_rows: list[tuple[str, ScoreRow]] = []
    kept: list[ScoredPair] = []
    ledger = Ledger()
    for encoded in benchmark_rows.rows:
        row_rewards = [next(unused_rewards) for _ in encoded.ids]
        score_row = parse_score_row(encoded.row | reward_columns(encoded.row, row_rewards))
        finish_pairs(scorer, encoded, score_row.pairs)
        of_row = [pair for pair in score_row.pairs if not pair["drop"]]
        ledger.add_read("test", [pair["drop"] for pair in score_row.pairs])
        if encoded.prompt_cut:
            ledger.add("test", "truncated", PROMPT_CUT, len(of_row))
        score_rows.append((encoded.place, score_row))
        kept += of_row
    scores = scores_of_rows(benchmark_rows.name, iter(score_rows))
    benchmark = scores.benchmark
    unread = sum(tokens is None for tokens in ids)
    if benchmark is not None and unread:
        benchmark = with_note(
            benchmark,
            f"{count(unread, 'completion')} that the model cannot read, most of them too long, "
            "count as errors",
        )
    return ScoredBenchmark(scores.pairs, benchmark, EncodedPairs(table_of(kept), ledger))


def finish_pairs(scorer: Scorer, encoded: EncodedRow, pairs: list[ScoredPair]) -> None:
    """Give the pairs of a row their lengths in tokens, and the reason why one is left out."""
    tokens: dict[str, int] = {}  # a completion is a side of several pairs
    for pair in pairs:
        for side in ("chosen", "rejected"):
            text = text_of(pair[side])
            if text not in tokens:
                tokens[text] = scorer.completion_tokens(pair[side])
            pair[f"{side}_tokens"] = tokens[text]
        too_long = over_long(pair["reward_chosen"] is None, pair["reward_rejected"] is None)
        if too_long and not pair["drop"]:
            pair["drop"] = too_long
            if encoded.fault is not None:
                pair["drop"] = encoded.fault.reason


def table_of(pairs: Iterable[ScoredPair]) -> Dataset:
    """The texts of the pairs as a table, in the form of reward.data.sources."""
    rows = [
        {
            "prompt": to_json(pair["prompt"]),
            "chosen": to_json(pair["chosen"]),
            "rejected": to_json(pair["rejected"]),
            "subset": pair["subset"] or "all",
            "tools": None,
            "votes": None,
            "bayes_accuracy": None,
        }
        for pair in pairs
    ]
    return Dataset.from_list(rows, features=TABLE)
