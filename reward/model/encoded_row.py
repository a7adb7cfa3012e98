"""A row on its way: read, encoded, rewarded.

    encoded = encode_row_to_score(scorer, placed, named)
    add_rewards(encoded, scorer.rewards_of_ids(encoded.ids), scorer.limit)
    encoded.row | encoded.new_columns

A row that cannot be read or scored gets null for its reward, and the reason in `reward_error`.
"""

import math
from dataclasses import dataclass, field

from reward.data.bad_rows import UnreadableRow
from reward.data.columns import NamedColumns
from reward.data.encoding import RefusedText
from reward.data.row_files import PlacedRow
from reward.data.rows_to_score import RowToScore, reward_columns, row_to_score
from reward.data.transcripts import RowError
from reward.model.batches import TokenIds
from reward.model.scorer import Scorer

PROMPTS_DIFFER = "the two sides have different prompts"
NOT_FINITE = "the model's reward is not a finite number"


@dataclass(frozen=True)
class Fault:
    """Why a row lacks a reward."""

    sentence: str  # what the row says in `reward_error`
    reason: str  # under which rows are counted
    is_bad_row: bool = True  # False for a row that is well-formed, but has nothing to score
    ends_file: bool = False  # whether other rows of the file would be misread


@dataclass
class EncodedRow:
    """A row, what the model reads of it, and later its rewards."""

    place: str  # the file and the line, for messages
    row: dict  # the row to write, without its rewards
    read: dict  # the row as it was read, with our names
    ids: list[TokenIds | None] = field(default_factory=list)  # of each completion with its prompt
    prompt_cut: bool = False  # whether the prompt lost its start
    fault: Fault | None = None  # why a reward is missing
    unread: list[str] = field(default_factory=list)  # the columns that the model does not read
    new_columns: dict = field(default_factory=dict)  # its rewards, under their plain names


def encode_row_to_score(scorer: Scorer, placed: PlacedRow, named: NamedColumns) -> EncodedRow:
    """Encode what is scored of a row.

    The row to write has the columns of the file, and those that are renamed under our names too.

    Args:
        scorer: The reward model.
        placed: A row as JSON can hold it (`reward.data.files.storable`), or what stands for it.
        named: Gives the columns our names.
    """
    place, row = placed
    if isinstance(row, UnreadableRow):
        return EncodedRow(place, {}, {}, fault=Fault(str(row), row.reason))
    try:
        to_score = row_to_score(named.of(row), scorer.manifest.get("transcript", "messages"))
    except RowError as error:
        unreadable = UnreadableRow.of(error)
        fault = Fault(str(error), unreadable.reason, ends_file=unreadable.ends_file)
        return EncodedRow(place, row, row, fault=fault)
    written = to_score.row
    if named.columns.names:
        written = written | row
    encoded_row = EncodedRow(place, written, to_score.row, ids=[None] * len(to_score.completions))
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
        encoded.new_columns = reward_columns(encoded.read, finite)
    elif "chosen" in encoded.read and "rejected" in encoded.read:
        encoded.new_columns = {"reward_chosen": None, "reward_rejected": None, "margin": None}
    else:
        encoded.new_columns = {"reward": None}
    if encoded.fault is not None:
        encoded.new_columns["reward_error"] = encoded.fault.sentence
