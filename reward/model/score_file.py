"""Score a file of rows: `score_file(scorer, "pairs.jsonl", "scored.jsonl")`.

A row that cannot be read or scored gets null for its reward, and the reason in `reward_error`.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from reward.data.bad_rows import UnreadableRow
from reward.data.columns import Columns, NamedColumns, name_in_words
from reward.data.encoding import RefusedText
from reward.data.files import DataError, storable
from reward.data.ledger import UNREAD
from reward.data.row_files import PlacedRow, read_rows
from reward.data.rows_to_score import RowToScore, free_name, reward_columns, row_to_score
from reward.data.transcripts import RowError
from reward.model.batches import TokenIds
from reward.model.scorer import Scorer, processes

PROMPTS_DIFFER = "the two sides have different prompts"
NOT_FINITE = "the model's reward is not a finite number"
MOST_REASONS = 10  # the closing line names as many; the rows name them all


@dataclass(frozen=True)
class Fault:
    """Why a row lacks a reward."""

    sentence: str  # what the row says in `reward_error`
    reason: str  # under which rows are counted
    is_bad_row: bool = True  # False for a row that is well-formed, but has nothing to score


@dataclass
class EncodedRow:
    """A row, what the model reads of it, and later its rewards."""

    place: str  # the file and the line, for messages
    row: dict  # the row to write, without its rewards
    ids: list[TokenIds | None] = field(default_factory=list)  # of each completion with its prompt
    prompt_cut: bool = False  # whether the prompt lost its start
    fault: Fault | None = None  # why a reward is missing
    unread: list[str] = field(default_factory=list)  # the columns that the model does not read
    new_columns: dict = field(default_factory=dict)  # its rewards, under their plain names


def score_file(
    scorer: Scorer,
    source: str,
    output: str | None,
    columns: dict[str, str] | None = None,
    on_bad_row: str = "skip",
) -> None:
    """Write the rows of a file with their rewards, in the same order, and sum up on stderr.

    Under `accelerate launch` every process calls this, and the main one writes.

    Args:
        scorer: The reward model.
        source: A file in any format of reward.data.row_files, whose rows are completions with their
            prompts, or preferences in any format of reward.data.formats.
        output: The JSONL file to write; None for standard output.
        columns: Our name of each column that the file names otherwise -> its name there.
        on_bad_row: With `skip` a row that cannot be read or scored has no reward; with `stop` it
            raises DataError.

    Raises:
        DataError: The file cannot be read, none of its rows can, or one cannot under `stop`.
    """
    named = NamedColumns(Columns.of(columns))
    encoded_rows = [encode_row_to_score(scorer, placed, named) for placed in read_rows(source)]
    _check_faults(encoded_rows, on_bad_row)
    named.check(source)
    ids = [ids for encoded in encoded_rows for ids in encoded.ids]
    rewards = iter(scorer.rewards_of_ids(ids, progress="Scoring"))
    for encoded in encoded_rows:
        add_rewards(encoded, [next(rewards) for _ in encoded.ids], scorer.limit)
        if on_bad_row == "stop":
            _raise_fault(encoded)
    if not processes().is_main_process:
        return
    names = names_of_new_columns(encoded_rows)
    with written_whole(output) as sink:
        for encoded in encoded_rows:
            new = {names[name]: value for name, value in encoded.new_columns.items()}
            written = json.dumps(encoded.row | new, ensure_ascii=False, allow_nan=False)
            sink.write(written + "\n")
    for name, new_name in names.items():
        if new_name != name:
            print(
                f"the file has a column `{name}`; the model's is called `{new_name}`",
                file=sys.stderr,
            )
    print(closing_line(scorer, encoded_rows), file=sys.stderr)


# --- Rows in --------------------------------------------------------------------------------------


def encode_row_to_score(scorer: Scorer, placed: PlacedRow, named: NamedColumns) -> EncodedRow:
    """Encode what is scored of a row.

    The row to write has the columns of the file, and those that are renamed under our names too.
    """
    place, row = placed
    if isinstance(row, UnreadableRow):
        return EncodedRow(place, {}, fault=Fault(str(row), row.reason))
    row = storable(row)
    try:
        to_score = row_to_score(named.of(row), scorer.manifest.get("transcript", "messages"))
    except RowError as error:
        return EncodedRow(place, row, fault=Fault(str(error), UnreadableRow(str(error)).reason))
    written = to_score.row
    if named.columns.names:
        written = written | row
    encoded_row = EncodedRow(place, written, ids=[None] * len(to_score.completions))
    encoded_row.unread = to_score.unread + named.replaced(row)
    if to_score.prompt is None:
        encoded_row.fault = Fault(PROMPTS_DIFFER, PROMPTS_DIFFER, is_bad_row=False)
    else:
        _encode(scorer, to_score, encoded_row)
    return encoded_row


def _encode(scorer: Scorer, to_score: RowToScore, encoded_row: EncodedRow) -> None:
    try:
        encoded = scorer.encode_row(to_score)
    except RefusedText as error:
        encoded_row.fault = Fault(str(error), error.reason)
        return
    encoded_row.ids = encoded.ids
    encoded_row.prompt_cut = encoded.prompt_cut


def _check_faults(encoded_rows: list[EncodedRow], on_bad_row: str) -> None:
    """Raise the first fault under `stop`, or if no row could be read."""
    bad = [encoded for encoded in encoded_rows if encoded.fault and encoded.fault.is_bad_row]
    if bad and (on_bad_row == "stop" or len(bad) == len(encoded_rows)):
        _raise_fault(bad[0])


def _raise_fault(encoded: EncodedRow) -> None:
    """Raise DataError if this is a bad row."""
    if encoded.fault is not None and encoded.fault.is_bad_row:
        raise DataError(f"{encoded.place}: {encoded.fault.sentence}")


# --- Rows out -------------------------------------------------------------------------------------


def add_rewards(encoded: EncodedRow, rewards: list[float | None], limit: int | None) -> None:
    """Set the new columns of a row.

    Args:
        encoded: The row.
        rewards: Of each of its completions, as the model gives them; None for no reward.
        limit: The longest input in tokens, which a completion without a reward is longer than.
    """
    finite = []
    for reward in rewards:
        if reward is not None and not math.isfinite(reward):
            encoded.fault = Fault(f"{NOT_FINITE} ({reward})", NOT_FINITE)
            reward = None
        elif reward is None and encoded.fault is None:
            too_long = f"a completion alone is longer than {limit} tokens"
            encoded.fault = Fault(too_long, too_long, is_bad_row=False)
        finite.append(reward)
    if finite:
        encoded.new_columns = reward_columns(encoded.row, finite)
    elif "chosen" in encoded.row and "rejected" in encoded.row:
        encoded.new_columns = {"reward_chosen": None, "reward_rejected": None, "margin": None}
    else:
        encoded.new_columns = {"reward": None}
    if encoded.fault is not None:
        encoded.new_columns["reward_error"] = encoded.fault.sentence


def names_of_new_columns(encoded_rows: list[EncodedRow]) -> dict[str, str]:
    """The names of the new columns in this file, by their plain names.

    No column of the file is overwritten, and a new column has the same name in all rows.
    """
    taken = {column for encoded in encoded_rows for column in encoded.row}
    names = dict.fromkeys(column for encoded in encoded_rows for column in encoded.new_columns)
    return {name: free_name(name, taken) for name in names}


@contextmanager
def written_whole(output: str | None) -> Iterator[TextIO]:
    """Open a file to write that appears once it is complete; standard output where there is none.

    It is written beside its place and moved there, so that an interrupted run leaves no half file.
    """
    if not output:
        yield sys.stdout
        return
    temporary = Path(f"{output}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as sink:
            yield sink
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def closing_line(scorer: Scorer, encoded_rows: list[EncodedRow]) -> str:
    """Return in a line what was scored, and what was cut or has no reward."""
    parts = [f"scored {len(encoded_rows):,} rows"]
    cut = sum(encoded.prompt_cut for encoded in encoded_rows)
    if cut:
        parts.append(f"{cut:,} with the start of the prompt cut to fit {scorer.limit} tokens")
    parts += without_reward_in_words(encoded_rows)
    unread = dict.fromkeys(name for encoded in encoded_rows for name in encoded.unread)
    if unread:
        parts.append(f"{UNREAD}: {', '.join(map(name_in_words, unread))}")
    if scorer.way_in_words:
        parts.append(scorer.way_in_words)
    return ", ".join(parts)


def without_reward_in_words(encoded_rows: list[EncodedRow]) -> list[str]:
    """One phrase for each reason why rows have no reward, the most frequent one first."""
    counts: Counter[str] = Counter()
    first_places: dict[str, str] = {}
    for encoded in encoded_rows:
        fault = encoded.fault
        if fault is not None:
            counts[fault.reason] += 1
            if fault.is_bad_row:
                first_places.setdefault(fault.reason, encoded.place)
    phrases = []
    for reason, count in counts.most_common(MOST_REASONS):
        if reason in first_places:
            phrases.append(f"{count:,} with no reward: {reason} (first: {first_places[reason]})")
        else:
            phrases.append(f"{count:,} with no reward because {reason}")
    others = counts.total() - sum(count for _, count in counts.most_common(MOST_REASONS))
    if others:
        phrases.append(f"{others:,} with no reward for other reasons")
    return phrases
