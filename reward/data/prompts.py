"""Where a row holds its prompt, under the names that published data sets have for it.

    found = find_prompt({"instruction": "Add.", "input": "1 2", "chosen": ..., "rejected": ...})
    found.side, found.columns        # "Add.\\n1 2", ("instruction", "input")

No text is passed over in silence: `check_nothing_lost` refuses a row with a text that could be its
prompt, or a part of it, and that stands in no pair.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from reward.data.cells import kind_of, list_in, texts_in
from reward.data.columns import name_in_words
from reward.data.messages import ABOUT_A_MESSAGE, refuse_unknown_keys, side_of, turns_in
from reward.data.transcript_shapes import prompt_messages
from reward.data.transcripts import RowError, Side, assistant, user

# The columns that may hold the prompt. The first one that holds something is read.
PROMPT_COLUMNS = (
    "prompt",  # TRL and most others
    "instruction",  # Alpaca, LLaMA-Factory: `input` follows it
    "question",  # Orca-DPO, JudgeBench
    "query",
    "input",  # distilabel, axolotl, LLMBar
    "trajectory",  # UltraInteract
    "conversations",  # sharegpt
    "conversation",
    "messages",
    "context",  # HelpSteer3; messages alone, because a text may be a document
)
CONVERSATIONS = ("trajectory", "conversations", "conversation", "messages", "context")

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")

MEDIA = ("image", "images", "image_url", "image_urls", "video", "videos", "audio", "audios")

# A text in one of these columns belongs to the conversation.
PROMPT_LIKE = {*PROMPT_COLUMNS, *SYSTEM_COLUMNS, "history", "dialogue", "instructions"}

# Other names of the same: `chat_history`, `previous_messages`, `System`.
LIKE_A_PROMPT = re.compile(
    r"(?i)(?:(?:chat|conversation|dialogue?|message)s?_?history|previous_(?:messages|turns|dialogue?)"
    r"|context_messages|system(?:_?(?:instructions?|text|msg|message|prompt))?)"
)

# A few words, no sentence, are no prompt in a column whose name ends with one of these words.
METADATA = re.compile(
    r"(?:^|_)(?:id|ids|idx|index|uuid|uid|hash|sha|md|model|models|source|sources|dataset|subset"
    r"|domain|category|categories|topic|topics|tag|tags|language|lang|url|urls|uri|link|links|date"
    r"|time|timestamp|tstamp|created|split|version|license|type|kind|task|status|judge|annotator"
    r"|annotators|worker|rater|labeler|author|score|scores|rating|ratings|reward|rewards|label"
    r"|labels|rank|ranks|length|tokens|margin|winner|error)(?:_?(?:name|code|at|[a-z]|\d+))?$",
    re.IGNORECASE,
)
MOST_WORDS = 4
NO_PROSE = re.compile(r"\S*[\d_/:.\-]\S*")  # one word with a digit or a sign: an id, a url, a date


@dataclass(frozen=True)
class FoundPrompt:
    """The prompt of a row."""

    side: Side
    columns: tuple[str, ...]  # the columns that it was read from


def find_prompt(row: dict, columns: tuple[str, ...] = PROMPT_COLUMNS) -> FoundPrompt | None:
    """The prompt of a row; None if no column holds one.

    Args:
        row: The row.
        columns: The columns that may hold it, the first one first.

    Raises:
        RowError: A cell is neither text nor messages, or a conversation ends with an answer.
    """
    for column in columns:
        value = row.get(column)
        if not _holds_something(value):
            continue
        if column == "context" and len(columns) > 1 and not turns_in(value):
            continue
        side = side_of(value, f"`{column}`")
        refuse_unknown_keys(side, f"`{column}`")
        _need_no_answer(column, side)
        if column == "instruction":
            return _with_history(row, _instruction(row, side))
        return _with_history(row, FoundPrompt(side, (column,)))
    return None


def _need_no_answer(column: str, side: Side) -> None:
    """Check that a conversation that is a prompt does not end with an answer.

    Raises:
        RowError: Its last turn is the assistant's. The completions would answer an answer.
    """
    if column not in CONVERSATIONS or not isinstance(side, list):
        return
    if side[-1]["role"] == "assistant":
        raise RowError(
            f"`{column}` ends with a turn of the assistant, beside the completions; its last turn "
            "must be the user's"
        )


def _holds_something(value: object) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and value != [] and value != {}


def _instruction(row: dict, instruction: Side) -> FoundPrompt:
    """Alpaca: the instruction, and its input on the next line, as LLaMA-Factory joins them."""
    more = row.get("input")
    if not _holds_something(more):
        return FoundPrompt(instruction, ("instruction",))
    if not isinstance(more, str) or not isinstance(instruction, str):
        raise RowError(f"`input` is {kind_of(more)} beside `instruction`; two strings are needed")
    return FoundPrompt(f"{instruction}\n{more}", ("instruction", "input"))


def _with_history(row: dict, found: FoundPrompt) -> FoundPrompt:
    """LLaMA-Factory: earlier turns as [[question, answer], ...], before a prompt that is text."""
    history = list_in(row.get("history"))
    if not history or not isinstance(found.side, str):
        return found
    messages = []
    for turn in history:
        is_couple = isinstance(turn, list) and len(turn) == 2
        if not is_couple or not all(isinstance(text, str) for text in turn):
            raise RowError("`history` has a turn that is no couple of strings [question, answer]")
        messages += user(turn[0]) + assistant(turn[1])
    return FoundPrompt(messages + prompt_messages(found.side), (*found.columns, "history"))


def needed_prompt(row: dict, columns: tuple[str, ...] = PROMPT_COLUMNS) -> Side:
    """The prompt of a row whose format needs one. It may be an empty text.

    Raises:
        RowError: There is none. The message shows the columns, and the line that names one.
    """
    found = find_prompt(row, columns)
    if found is not None:
        return found.side
    for column in columns:
        if isinstance(row.get(column), str):
            return row[column]
    message = (
        f"`{columns[0]}` is {kind_of(row.get(columns[0]))}; a string or a list of messages (role, "
        "content) is needed"
    )
    message += ": name it, as in `columns: {prompt: my_question}` or --columns prompt=my_question"
    raise RowError(message)


# --- The system message ---------------------------------------------------------------------------


def system_of(row: dict) -> str:
    """The system text of a row; "" if it has none."""
    for column in SYSTEM_COLUMNS:
        value = row.get(column)
        if not _holds_something(value):
            continue
        if not isinstance(value, str):
            raise RowError(f"`{column}` is {kind_of(value)}; a string is needed")
        return value
    return ""


def with_system(prompt: Side, system: str) -> Side:
    """A prompt with a system text before it. A prompt that has the same one already keeps it."""
    if not system:
        return prompt
    if isinstance(prompt, str):
        return f"{system}\n\n{prompt}"
    if prompt and prompt[0]["role"] == "system":
        if words(prompt[0].get("content") or "") != words(system):
            raise RowError(
                "the row has two system texts, in a column of its own and in the messages; leave "
                "one out"
            )
        return prompt
    return [{"role": "system", "content": system}, *prompt]


# --- What must not be passed over -----------------------------------------------------------------


def words(text: str) -> str:
    """A text with single spaces, to compare texts by their words."""
    return " ".join(text.split())


def check_nothing_lost(row: dict, unread: Iterable[str], sides: Iterable[Side]) -> None:
    """Refuse a row whose conversation has a part that nobody reads.

    Args:
        row: The row.
        unread: Its columns that are not read.
        sides: The prompts and completions that were made of it.

    Raises:
        RowError: A column such as `context` holds a text that stands in none of the sides, or the
            row holds images.
    """
    for column in unread:
        if column in MEDIA and _holds_something(row[column]) and list_in(row[column]) != []:
            raise RowError(f"`{column}` is not empty, and only text is read; leave the row out")
    columns = [
        name for name in unread if _is_like_a_prompt(name) and _says_something(name, row[name])
    ]
    if not columns:
        return
    read = words(" ".join(text for side in sides for text in texts_in(side)))
    for column in columns:
        if not all(words(text) in read for text in _texts_of_turns(row[column])):
            raise RowError(
                f"`{column}` holds text that is neither in the prompt nor in the completions, so a "
                "part of the conversation would be lost. Leave the column out, or name both parts "
                f"of the request: `columns: {{instruction: prompt, input: {column}}}` in the "
                f"recipe's source, --columns instruction=prompt,input={column} in score.py and "
                "audit.py"
            )


NOTHING = ("none", "nan", "null", "n/a", "-")


def _is_like_a_prompt(column: str) -> bool:
    """Whether a text in a column of this name belongs to the conversation."""
    return column in PROMPT_LIKE or bool(LIKE_A_PROMPT.fullmatch(column))


def _says_something(column: str, value: object) -> bool:
    """Whether a cell of such a column holds a part of the conversation."""
    if list_in(value) == []:
        return False
    if column in PROMPT_LIKE or not isinstance(value, str) or len(value.split()) > MOST_WORDS:
        return True
    return column.lower() != "system" and value.strip().lower() not in NOTHING  # "Windows 10"


NO_TEXT_OF_A_TURN = ("role", "from", *ABOUT_A_MESSAGE)


def _texts_of_turns(value: object) -> Iterable[str]:
    """The texts of a cell; of messages, the texts of the turns without the names of speakers."""
    turns = turns_in(value)
    if turns:
        value = [
            [text for key, text in message.items() if key not in NO_TEXT_OF_A_TURN]
            for message in turns
        ]
    return texts_in(value)


def could_be_prompts(row: dict, read: Iterable[str] = ()) -> list[str]:
    """The columns of a row that may hold a prompt, as far as their names and values tell.

    Args:
        row: The row.
        read: The columns that are read, and thus left out.
    """
    names = []
    for column, value in row.items():
        if column in read or column in MEDIA:
            continue
        if turns_in(value) or _could_be_prompt(str(column), value):
            names.append(str(column))
    return names


def _could_be_prompt(column: str, value: object) -> bool:
    is_metadata = METADATA.search(column)
    if isinstance(value, str):
        text = value.strip()
        is_short = len(text.split()) <= MOST_WORDS and not text.endswith((".", "?", "!", ":"))
        if is_metadata and is_short:
            return False
        return bool(text) and not NO_PROSE.fullmatch(text)
    if is_metadata or not isinstance(value, list | dict):
        return False
    return any(text.strip() for text in texts_in(value))


MOST_NAMED = 4


def how_to_name(columns: list[str]) -> str:
    """What to write if one of these columns is the prompt."""
    names = [f"`{name_in_words(column)}`" for column in columns[:MOST_NAMED]]
    if len(columns) > MOST_NAMED:
        names.append(f"{len(columns) - MOST_NAMED} more")
    first = name_in_words(columns[0])
    return (
        f"If the prompt is in {' or '.join(names)}, name it: `columns: {{prompt: {first}}}` in the "
        f"recipe's source, --columns prompt={first} in score.py and audit.py"
    )
