"""Rows to score: the texts of a row that the model reads, and the row with its rewards.

    to_score = row_to_score(row, transcript)      # its prompt, completions and tools
    scored_row = with_rewards(to_score.row, rewards)

auditing.score_formats reads the columns that are written here.
"""

import json
from dataclasses import dataclass

from reward.data.formats import RowError, to_pairs
from reward.data.transcripts import Messages, Side, assistant, is_messages, is_texts, user

# Each of these columns belongs to a format that names no chosen side. `row_to_score` adds columns
# that name the sides to such a row.
NAMELESS_SIDES = {
    "response_a",
    "response_A",
    "response_1",
    "response1",
    "conversation_a",
    "winner_model_a",
    "output_1",
}


@dataclass(frozen=True)
class RowToScore:
    """The texts of a row to score, and the row to write."""

    prompt: Side | None  # None if the two sides have different prompts and cannot be compared
    completions: list[Side]  # the completion; chosen, rejected; or all chosen, then all rejected
    tools: list[dict] | None  # the functions that the assistant may call, for the chat template
    row: dict  # the row to write, with columns for the sides if its format names no chosen one


def row_to_score(row: dict, transcript: str) -> RowToScore:
    """Find the texts of one row that the model reads.

    Args:
        row: A completion with its prompt, or a preference row in any format of reward.data.formats.
            A row of RewardBench 2 or RM-Bench holds several completions per side.
        transcript: `messages` or `raw`, as in `to_pairs`.

    Raises:
        RowError: The row has another form, or ranks more than two completions.
    """
    if not isinstance(row, dict):
        raise RowError("a row is a JSON object with named columns")
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = json.loads(tools)
    if "completion" in row or ("response" in row and "chosen" not in row):
        prompt, completion = _prompt_and_completion(row, transcript)
        return RowToScore(prompt, [completion], tools, row)

    pairs = to_pairs(row, transcript)
    if is_texts(row.get("chosen")):
        # `pairs` holds every chosen completion against every rejected one: first all pairs of the
        # first chosen completion, then all pairs of the second.
        rejected_count = len(row["rejected"])
        chosen = [pair["chosen"] for pair in pairs[::rejected_count]]
        rejected = [pair["rejected"] for pair in pairs[:rejected_count]]
        return RowToScore(pairs[0]["prompt"], chosen + rejected, tools, row)

    if len(pairs) != 1:
        raise RowError(
            f"a ranking of {len(pairs)} pairs; give one row a completion (prompt, completion)"
        )
    pair = pairs[0]
    if "chosen" not in row:
        row = row | {side: pair[side] for side in ("prompt", "chosen", "rejected")}
    prompt = pair["prompt"]
    if pair["drop"].startswith("prompts differ"):
        prompt = None
    return RowToScore(prompt, [pair["chosen"], pair["rejected"]], tools, row)


def _prompt_and_completion(row: dict, transcript: str) -> tuple[Side, Side]:
    prompt = row.get("prompt")
    completion = row.get("completion", row.get("response"))
    if transcript == "messages":
        prompt = _as_messages(prompt, user)
        completion = _as_messages(completion, assistant)
    both_text = isinstance(prompt, str) and isinstance(completion, str)
    if not both_text and not (is_messages(prompt) and is_messages(completion)):
        raise RowError(
            "`prompt` and `completion` must each be a string or a list of messages (role, content)"
        )
    return prompt, completion


def _as_messages(value: object, message_of) -> Messages:
    if isinstance(value, str):
        return message_of(value)
    return value


def with_rewards(row: dict, rewards: list[float | None]) -> dict:
    """The row with the rewards of its completions, in the columns that its format has for them.

    Args:
        row: `RowToScore.row`.
        rewards: One reward for each of `RowToScore.completions`; None for a completion that the
            model cannot read.
    """
    if len(rewards) == 1:
        return row | {"reward": rewards[0]}
    if is_texts(row["chosen"]):
        return row | _benchmark_scores(row, rewards)
    reward_chosen, reward_rejected = rewards
    margin = None
    if None not in rewards:
        margin = reward_chosen - reward_rejected
    return row | {
        "reward_chosen": reward_chosen,
        "reward_rejected": reward_rejected,
        "margin": margin,
    }


def row_without_rewards(row: dict) -> dict:
    """A row of `with_rewards` without the added columns that reward.data.formats would misread.

    `margin` is the difference of the rewards, not the raters' target margin. The sides that
    `row_to_score` named are removed as well, because the format's own columns say more: a tie stays
    a tie, and the `votes` still count for the first and the second completion.
    """
    added = {"margin"}
    if NAMELESS_SIDES & row.keys():
        added |= {"chosen", "rejected"}
    return {column: value for column, value in row.items() if column not in added}


def _benchmark_scores(row: dict, rewards: list[float | None]) -> dict:
    """The lists of scores of RM-Bench or RewardBench 2, named as in the benchmarks' own scripts."""
    chosen_count = len(row["chosen"])
    three_styles = chosen_count == len(row["rejected"]) == 3
    is_rm_bench = "num_correct" not in row and ("domain" in row or three_styles)
    name = "scores"
    if is_rm_bench:
        name = "score"
    return {
        f"{name}_chosen": rewards[:chosen_count],
        f"{name}_rejected": rewards[chosen_count:],
    }
