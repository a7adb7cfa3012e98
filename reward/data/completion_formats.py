"""Rows with a prompt and one completion or several, without a preference: what is scored.

read = read_completions({"query": "2+2?", "response": "4"}, "messages")
read.prompt, read.completions
"""

from dataclasses import dataclass

from reward.data.cells import kind_of, list_cell, list_in
from reward.data.columns import columns_in_words
from reward.data.formats import FORMATS
from reward.data.messages import other_keys, side_of, turns_in
from reward.data.preference_pair import completions_of
from reward.data.prompts import (
    PROMPT_COLUMNS,
    SYSTEM_COLUMNS,
    check_nothing_lost,
    find_prompt,
    needed_prompt,
    system_of,
    with_system,
)
from reward.data.ranked_formats import are_rated_mappings
from reward.data.transcript_shapes import prompt_messages, without_marks_of_one_turn
from reward.data.transcripts import Messages, RowError, Side

# The column of the completion. The first one that a row has is read.
COMPLETION_COLUMNS = ("completion", "response", "output", "answer")
# Whole conversations, whose last turn is the completion.
CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")


@dataclass(frozen=True)
class PromptAndCompletions:
    """The texts of a row that is scored."""

    prompt: Side
    completions: list[Side]
    unread: list[str]  # the columns that hold something and are not read


def holds_completions(row: dict) -> bool:
    """Whether a row is a prompt with completions, rather than a preference."""
    if "completion" in row:
        return True
    if "chosen" in row or "text_chosen" in row:
        return False
    if "response" in row:
        return True
    if any(layout.fits(row) for layout in FORMATS):
        return False
    if has_list_of_completions(row):
        return True
    if _completion_column(row) is not None:
        return not isinstance(row.get("output"), list)
    return any(turns_in(row.get(column)) for column in CONVERSATION_COLUMNS)


def has_list_of_completions(row: dict) -> bool:
    """Whether a row has a list of completions of one prompt, which nobody has ranked."""
    if list_in(row.get("completions")) is None or "chosen" in row:
        return False
    return "ranks" not in row and "ranking" not in row and not are_rated_mappings(row)


def _completion_column(row: dict) -> str | None:
    return next((column for column in COMPLETION_COLUMNS if column in row), None)


def read_completions(row: dict, transcript: str) -> PromptAndCompletions:
    """The prompt and the completions of a row.

        {"prompt": "2+2?", "completion": "4"}
        {"instruction": "Add.", "input": "2 2", "output": "4"}
        {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}
        {"prompt": "2+2?", "completions": ["4", "5"]}

    Args:
        row: A row for which `holds_completions` is true.
        transcript: `messages` or `raw`, as in reward.data.formats.to_pairs.

    Raises:
        RowError: A value is malformed, or a part of the conversation would be passed over.
    """
    column = _completion_column(row)
    if has_list_of_completions(row):
        column = "completions"
    if column is None:
        return _last_turn_of_conversation(row)
    if column == "completions":
        cells = list_cell(row, column)
    else:
        cells = [row[column]]
    if not cells:
        raise RowError("`completions` is an empty list; at least one completion is needed")
    completions = [_side(cell, column) for cell in cells]
    if row.get("prompt") is not None:
        _side(row["prompt"], "prompt")
    found = find_prompt(row, PROMPT_COLUMNS)
    read = {column}
    if found is None:
        prompt = _empty_or_needed_prompt(row, column)
        read.add("prompt")
    else:
        prompt = found.side
        read |= set(found.columns)
    if transcript == "messages" or not _all_texts(prompt, completions):
        prompt, completions = _as_messages(prompt, completions)
        _need_answers(completions, column)
    unread = _unread(row, read)
    check_nothing_lost(row, unread, [prompt, *completions])
    return PromptAndCompletions(with_system(prompt, system_of(row)), completions, unread)


def _side(cell: object, column: str) -> Side:
    """The cell of a prompt or of a completion."""
    if isinstance(cell, str | list | dict):
        return side_of(cell, f"`{column}`")
    raise RowError(
        f"`prompt` and `completion` must each be a string or a list of messages (role, content); "
        f"`{column}` is {kind_of(cell)}"
    )


def _empty_or_needed_prompt(row: dict, column: str) -> Side:
    """The empty prompt of a row. Raises RowError if the row has no prompt at all."""
    if "prompt" not in row:
        raise RowError(
            f"`prompt` and `completion` must each be a string or a list of messages (role, "
            f"content); found `{column}` alone among {columns_in_words(row)}"
        )
    return needed_prompt(row)


def _all_texts(prompt: Side, completions: list[Side]) -> bool:
    return all(isinstance(side, str) for side in (prompt, *completions))


def _as_messages(prompt: Side, completions: list[Side]) -> tuple[Messages, list[Messages]]:
    """The prompt and its completions as messages; the turns of a transcript are messages each."""
    if _all_texts(prompt, completions):
        prompt, completions = without_marks_of_one_turn(prompt, completions)
    completions = completions_of(prompt, completions)
    if isinstance(prompt, str):
        prompt = prompt_messages(prompt)
    return prompt, completions


def _need_answers(completions: list[Messages], column: str) -> None:
    """Refuse completions of which one does not end with a turn of the assistant."""
    for completion in completions:
        if not completion or completion[-1]["role"] != "assistant":
            raise RowError(
                f"`{column}` ends with a turn that is not the assistant's, so there is nothing to "
                "score; its last turn must be the assistant's"
            )


def _last_turn_of_conversation(row: dict) -> PromptAndCompletions:
    """A whole conversation: its last turn is the completion."""
    column = next(name for name in CONVERSATION_COLUMNS if turns_in(row.get(name)))
    messages = side_of(row[column], f"`{column}`")
    _need_answers([messages], column)
    unread = _unread(row, {column})
    check_nothing_lost(row, unread, [messages])
    prompt = with_system(messages[:-1], system_of(row))
    return PromptAndCompletions(prompt, [messages[-1:]], unread)


def _unread(row: dict, read: set[str]) -> list[str]:
    """The columns of a row that hold something and are not read."""
    system = next((column for column in SYSTEM_COLUMNS if row.get(column)), None)
    known = read | {"tools", system}
    held = [name for name, value in row.items() if value is not None and value != ""]
    names = [str(name) for name in held if name not in known]
    for column in sorted(read):
        names += [f"{column}[].{key}" for key in _other_keys(row.get(column), column)]
    return names


def _other_keys(value: object, column: str) -> list[str]:
    """The keys of messages in a cell that no chat template is known to read."""
    cells = [value]
    if column == "completions" and isinstance(value, list):
        cells = value
    keys = {}
    for cell in cells:
        if isinstance(cell, list | dict):
            keys |= dict.fromkeys(other_keys(side_of(cell, f"`{column}`")))
    return list(keys)
