"""Rows to score: the texts of a row that the model reads, and the row with its rewards.

    to_score = row_to_score(row, transcript)      # its prompt, completions and tools
    scored_row = with_rewards(to_score.row, rewards)

auditing.score_formats reads the columns that are written here.
"""

from dataclasses import dataclass

from reward.data.cells import tools_cell
from reward.data.completion_formats import (
    has_list_of_completions,
    holds_completions,
    read_completions,
)
from reward.data.formats import named_for_scoring, to_pairs, unread_columns
from reward.data.transcripts import RowError, Side, is_texts


@dataclass(frozen=True)
class RowToScore:
    """The texts of a row to score, and the row to write."""

    prompt: Side | None  # None if the two sides have different prompts and cannot be compared
    completions: list[Side]  # the completion(s); chosen, rejected; or all chosen, then all rejected
    tools: list[dict] | None  # the functions that the assistant may call, for the chat template
    row: dict  # the row to write, with columns for the sides if its format names no chosen one
    unread: list[str]  # the columns that hold something and are not read


def row_to_score(row: dict, transcript: str) -> RowToScore:
    """Find the texts of one row that the model reads.

    Args:
        row: A completion with its prompt, in any layout of reward.data.completion_formats; or a
            preference row in any format of reward.data.formats. A row of RewardBench 2 or RM-Bench
            holds several completions per side.
        transcript: `messages` or `raw`, as in `to_pairs`.

    Raises:
        RowError: The row has another form, or ranks more than two completions.
    """
    if not isinstance(row, dict):
        raise RowError("a row is a JSON object with named columns")
    tools = tools_cell(row)
    if holds_completions(row):
        read = read_completions(row, transcript)
        return RowToScore(read.prompt, read.completions, tools, row, read.unread)

    pairs = to_pairs(row, transcript)
    unread = unread_columns(row)
    if is_texts(row.get("chosen")):
        # `pairs` holds every chosen completion against every rejected one: first all pairs of the
        # first chosen completion, then all pairs of the second.
        rejected_count = len(row["rejected"])
        chosen = [pair["chosen"] for pair in pairs[::rejected_count]]
        rejected = [pair["rejected"] for pair in pairs[:rejected_count]]
        return RowToScore(pairs[0]["prompt"], chosen + rejected, tools, row, unread)

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
    return RowToScore(prompt, [pair["chosen"], pair["rejected"]], tools, row, unread)


def with_rewards(row: dict, rewards: list[float | None]) -> dict:
    """The row with the rewards of its completions, in the columns that its format has for them.

    Args:
        row: `RowToScore.row`.
        rewards: One reward for each of `RowToScore.completions`; None for a completion that the
            model cannot read.
    """
    if has_list_of_completions(row):
        return row | {"rewards": rewards}
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
    added |= named_for_scoring(row)
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
