"""Rows to score: the texts of a row that the model reads, and the row with its rewards.

    to_score = row_to_score(row, transcript)      # its prompt, completions and tools
    scored_row = to_score.row | reward_columns(to_score.row, rewards)

auditing.score_formats reads the columns that are written here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from reward.data.cells import tools_cell
from reward.data.completion_formats import (
    has_list_of_completions,
    holds_completions,
    read_completions,
)
from reward.data.formats import (
    FORMATS,
    PROMPT_COLUMNS,
    PreferencePair,
    is_judgebench,
    named_for_scoring,
    to_pairs,
    unread_columns,
)
from reward.data.preference_pair import need_little
from reward.data.sided_formats import is_difference_of_rewards
from reward.data.transcripts import RowError, Side, is_texts, user

MOST_SCORED = 10_000  # completions of one row


@dataclass(frozen=True)
class RowToScore:
    """The texts of a row to score, and the row to write.

    A row with a finished `text` has an empty prompt, and that text as its only completion.
    """

    prompt: Side | None  # None if the two sides have different prompts and cannot be compared
    completions: list[Side]  # the completion(s); chosen, rejected; or all chosen, then all rejected
    tools: list[dict] | None  # the functions that the assistant may call, for the chat template
    row: dict  # the row to write, with columns for the sides if its format names no chosen one
    unread: list[str]  # the columns that hold something and are not read
    text: str | None = None  # the text of a conversation that its owner has formatted


def row_to_score(row: dict, transcript: str) -> RowToScore:
    """Find the texts of one row that the model reads.

    Args:
        row: A completion with its prompt, in any layout of reward.data.completion_formats; or a
            preference row in any format of reward.data.formats. A row of RewardBench 2 or RM-Bench
            holds several completions per side. Or a finished `text` and no other column that a
            layout reads.
        transcript: `messages` or `raw`, as in `to_pairs`.

    Raises:
        RowError: The row has another form, or ranks more than two completions.
    """
    if not isinstance(row, dict):
        raise RowError("a row is a JSON object with named columns")
    tools = tools_cell(row)
    if is_finished_text(row):
        text = row["text"]
        unread = [column for column, value in row.items() if column != "text" and value]
        return RowToScore("", [text], tools, row, unread, text)
    if holds_completions(row):
        read = read_completions(row, transcript)
        if len(read.completions) > MOST_SCORED:
            raise RowError(
                f"{len(read.completions):,} completions in one row; at most {MOST_SCORED:,} are "
                "scored together: split the row"
            )
        need_little(read.prompt, read.completions)
        return RowToScore(read.prompt, read.completions, tools, row, read.unread)

    read = row
    if transcript == "messages":
        read = benchmark_prompt_as_one_turn(row)
    pairs = to_pairs(read, transcript)
    unread = unread_columns(row)
    if _has_lists_of_sides(row):
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
    if "chosen" not in row and "rejected" not in row:  # no column is overwritten
        row = row | _named_sides(pair, row)
    prompt = pair["prompt"]
    if pair["drop"].startswith("prompts differ"):
        prompt = None
    return RowToScore(prompt, [pair["chosen"], pair["rejected"]], tools, row, unread)


def benchmark_prompt_as_one_turn(row: dict) -> dict:
    """A benchmark's row with its prompt as one turn of the user, as in the benchmark's own script.

    A prompt that looks like a transcript would otherwise be split into its turns. Any other row
    stays as it is.
    """
    if not is_of_benchmark(row):
        return row
    turns = {}
    for column in ("prompt", "question"):
        if isinstance(row.get(column), str):
            turns[column] = user(row[column])
    return row | turns


def is_of_benchmark(row: dict) -> bool:
    """Whether a row has the columns of RewardBench 1 or 2, of RM-Bench or of JudgeBench."""
    if is_judgebench(row):
        return True
    if _has_lists_of_sides(row):
        return "num_correct" in row or "domain" in row
    return row.keys() >= {"chosen_model", "rejected_model", "subset"}


def _has_lists_of_sides(row: dict) -> bool:
    """Whether both sides of a row are lists of texts, each a completion."""
    return is_texts(row.get("chosen")) and is_texts(row.get("rejected"))


def is_finished_text(row: dict) -> bool:
    """Whether a row is one text that its owner has formatted, with its control tokens."""
    if not isinstance(row.get("text"), str) or holds_completions(row):
        return False
    has_sides = not {"chosen", "rejected"}.isdisjoint(row)
    has_prompt = not set(PROMPT_COLUMNS).isdisjoint(row)
    return not has_sides and not has_prompt and not any(layout.fits(row) for layout in FORMATS)


def _named_sides(pair: PreferencePair, row: dict) -> dict:
    """Columns that name the sides of a pair, for a row whose format names no chosen one."""
    prompt = pair["prompt"]
    chosen = pair["chosen"]
    rejected = pair["rejected"]
    if "prompt" not in row:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    # The row keeps its own prompt, so the sides hold the whole conversation, as in UltraFeedback.
    return {"chosen": prompt + chosen, "rejected": prompt + rejected}


def reward_columns(row: dict, rewards: list[float | None]) -> dict:
    """The columns that a row gets for the rewards of its completions, as its format names them.

    Args:
        row: `RowToScore.row`.
        rewards: One reward for each of `RowToScore.completions`; None for a completion without one.
    """
    if has_list_of_completions(row):
        return {"rewards": rewards}
    if len(rewards) == 1:
        return {"reward": rewards[0]}
    if _has_lists_of_sides(row):
        return _benchmark_scores(row, rewards)
    reward_chosen, reward_rejected = rewards
    margin = None
    if None not in rewards:
        margin = reward_chosen - reward_rejected
    return {"reward_chosen": reward_chosen, "reward_rejected": reward_rejected, "margin": margin}


NEW = "new_"  # how a column is called whose own name is taken: new_reward, then new_reward_2
HIGHER_NUMBER = re.compile("[2-9]|[1-9][0-9]{1,3}")


def free_name(name: str, taken: set[str]) -> str:
    """The name itself, or the next one of new_name, new_name_2, ..., so that none is overwritten.

    It comes behind all that are taken, so that the newest column is the one with the last name.
    """
    taken_numbers = _numbers_of_names(name, taken)
    if not taken_numbers:
        return name
    return _numbered(name, max(taken_numbers) + 1)


def newest_name(name: str, columns: Iterable[str]) -> str:
    """The last of the names that `free_name` gave, among the columns; the name itself if none."""
    return _numbered(name, max(_numbers_of_names(name, columns), default=0))


def _numbered(name: str, number: int) -> str:
    """Number 0 is the name itself, 1 is new_name, and 2 is new_name_2."""
    if number == 0:
        return name
    if number == 1:
        return f"{NEW}{name}"
    return f"{NEW}{name}_{number}"


def _numbers_of_names(name: str, columns: Iterable[str]) -> list[int]:
    """The numbers of the columns that are called as `_numbered` calls them."""
    numbers = []
    first_new = f"{NEW}{name}"
    for column in columns:
        number = column.removeprefix(f"{first_new}_")
        if column == name:
            numbers.append(0)
        elif column == first_new:
            numbers.append(1)
        elif number != column and HIGHER_NUMBER.fullmatch(number):
            numbers.append(int(number))
    return numbers


def newest_columns(row: dict) -> dict:
    """The row with the newest of the columns that `free_name` told apart, under its plain name.

    A file that was scored twice holds `reward`, the older one, and `new_reward`.
    """
    newest = {}
    for column in row:
        match = NEW_COLUMN.fullmatch(column)
        if match:
            name, count = match["name"], int(match["count"] or 1)
            newest[name] = max(newest.get(name, (0, None)), (count, column))
    if not newest:
        return row
    return row | {name: row[column] for name, (_, column) in newest.items()}


NEW_COLUMN = re.compile(
    rf"{NEW}(?P<name>rewards?(_chosen|_rejected|_error)?|scores?_(chosen|rejected))(_(?P<count>\d+))?"
)


def row_without_rewards(row: dict) -> dict:
    """A row of score.py's output without the columns that reward.data.formats would misread.

    A `margin` that is the difference of the rewards is not the raters' target margin. The sides
    that `row_to_score` named are removed as well, because the format's own columns say more: a tie
    stays a tie, and the `votes` still count for the first and the second completion.
    """
    added = named_for_scoring(row)
    if is_difference_of_rewards(row):
        added.add("margin")
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
