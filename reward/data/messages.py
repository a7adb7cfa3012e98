"""Messages in the shapes in which people pass them around -> messages as chat templates read them.

    side_of([{"from": "human", "value": "Hi"}], "`prompt`")   # [{"role": "user", "content": "Hi"}]

Read are role and content (OpenAI, TRL), from and value (sharegpt), one message instead of a list,
contents that are lists of text parts, and the JSON of messages, as a CSV cell holds them.
"""

import re
from typing import Any

from reward.data.cells import json_cell, kind_of
from reward.data.columns import name_in_words
from reward.data.transcripts import Message, RowError, Side

# The names of speakers -> roles. A role that is not listed is kept as it is.
ROLES = {
    "human": "user",
    "prompter": "user",
    "developer": "system",  # OpenAI's newer name for it
    "gpt": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",  # Cohere's name for it
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",  # OpenAI's older name for it
}
KNOWN_ROLES = ("system", "user", "assistant", "tool")
FUNCTION_CALL = "function_call"  # sharegpt: the value is the JSON of the functions to call

TEXT_KEYS = ("content", "value", "text")  # where a message may hold its text

# The keys of a message that chat templates read. Others are kept, and named as unread.
TEMPLATE_KEYS = {
    "role",
    "content",
    "tool_calls",
    "tool_call_id",
    "name",
    "reasoning_content",
    "thinking",
}

# Keys that say something about a message, and are no text of it.
ABOUT_A_MESSAGE = ("id", "uuid", "model", "date", "time", "timestamp", "type", "source", "metadata")

PYTHON_MESSAGES = re.compile(
    r"(?s)\s*+\[?+\s*+\{(?=')(?=.*'(?:content|value)': )"
    r".*?(?<=[{ ])'(?:role|from)': '(?:system|user|assistant|tool|human|gpt)'"
)

# How the JSON of messages begins, which `turns_in` cannot read where it is cut off or JSON in JSON.
SPEAKER = r'\\*"(?:role|from)\\*"\s*:\s*\\*"(?:system|user|assistant|tool|human|gpt)\\*"\s*'
TEXT = r'\\*"(?:content|value)\\*"\s*:'
DAMAGED_JSON = re.compile(
    r'(?s)\s*+"?+(?:\{\s*+\\*"messages\\*"\s*:\s*+)?+\[?+\s*+\{\s*+'
    rf"(?:{SPEAKER},\s*{TEXT}|{TEXT}.*?,\s*{SPEAKER})"
)
JSON_START = re.compile(r"\s*[\[{]")  # how the JSON of messages starts


def side_of(value: object, name: str) -> Side:
    """A prompt or a completion, in any of the shapes above, as text or as messages.

    Args:
        value: The cell.
        name: The name of the cell, for errors.

    Raises:
        RowError: The value is neither text nor messages.
    """
    if isinstance(value, str):
        if PYTHON_MESSAGES.match(value):
            raise RowError(
                f"{name} is the Python text of messages, as pandas writes them into a CSV file; "
                "write their JSON (json.dumps)"
            )
        value = turns_in(value) or value
        if isinstance(value, str):
            if DAMAGED_JSON.match(value):
                raise RowError(
                    f"{name} begins like the JSON of messages, and is no JSON list of them: it may "
                    "be cut off, or JSON inside of JSON; write the list (json.dumps)"
                )
            return value
    kind = kind_of(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not all(map(_is_like_a_message, value)):
        raise RowError(
            f"{name} is {kind}; a string or a list of messages (role, content) is needed"
        )
    return [_message_of(item, name) for item in value]


def turns_in(value: object) -> list[dict]:
    """The messages of a list, each with a role or a `from`, or those whose JSON a text is.

    Anything else has none. JSON in which no known speaker says anything is an answer that was asked
    for in JSON, such as [{"name": "Ann", "role": "captain"}].
    """
    is_text = isinstance(value, str)
    if is_text:
        value = _value_of_json(value)
    if not isinstance(value, list) or not all(map(_is_like_a_message, value)):
        return []
    if is_text and not any(map(_is_said_by_somebody, value)):
        return []
    return value


WRAPPERS = ("conversation", "conversations", "dialogue", "dialog", "turns", "history", "messages")
SPEAKER_KEYS = ("speaker", "author", "sender")


def refuse_unknown_keys(side: Side, name: str) -> None:
    """Refuse a text that is the JSON of a conversation under unknown keys.

    To be asked of prompts, and of sides without one: an answer may have been asked for in JSON.
    """
    if isinstance(side, str) and _has_unknown_keys(side):
        raise RowError(
            f"{name} is the JSON of a conversation whose messages have other keys, or that lies "
            "inside of an object; a list of messages (role, content) is needed"
        )


def _has_unknown_keys(text: str) -> bool:
    """Whether a text is the JSON of turns that are said by known speakers, under unknown keys.

    [{"speaker": "user", "text": "Hi"}], LangChain's [{"type": "human", "content": "Hi"}], or
    {"conversation": [{"role": "user", "content": "Hi"}]}
    """
    turns = _value_of_json(text)
    if not isinstance(turns, list) or not turns:
        return False
    if not all(isinstance(turn, dict) for turn in turns):
        return False
    wrapped = [turns_in(turn.get(key)) for turn in turns for key in WRAPPERS]
    if any(inner and all(map(_is_said_by_somebody, inner)) for inner in wrapped):
        return True
    return all(map(_has_another_speaker, turns))


def _has_another_speaker(turn: dict) -> bool:
    """Whether an object has a text, and says under a key of its own which known role said it."""
    if set(TEXT_KEYS).isdisjoint(turn):
        return False
    speakers = [turn.get(key) for key in SPEAKER_KEYS]
    if any(isinstance(speaker, str) and _role(speaker) in KNOWN_ROLES for speaker in speakers):
        return True
    return turn.get("type") in ("human", "ai", "system", "tool")  # LangChain


def other_keys(side: Side) -> list[str]:
    """The keys of the messages of a side that no chat template is known to read."""
    if isinstance(side, str):
        return []
    keys = dict.fromkeys(key for message in side for key in message)
    return [key for key in keys if key not in TEMPLATE_KEYS]


def _value_of_json(text: str) -> object:
    """The list that a text has in JSON, or its object in a list; None for any other text."""
    if not JSON_START.match(text):
        return None
    try:
        value = json_cell(text)
    except ValueError:
        return None
    if isinstance(value, dict):
        return [value]
    return value


def _is_said_by_somebody(message: dict) -> bool:
    """Whether a message has a known speaker, and a text or the tools that it calls."""
    speaker = message.get("role")
    if not isinstance(speaker, str):
        speaker = message["from"]
    is_known = _role(speaker) in (*KNOWN_ROLES, FUNCTION_CALL)
    return is_known and not message.keys().isdisjoint((*TEXT_KEYS, "tool_calls"))


def _is_like_a_message(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    return isinstance(value.get("role"), str) or isinstance(value.get("from"), str)


def _message_of(item: dict, name: str) -> Message:
    """One message with a role and a content, without the empty fields that Arrow adds.

    A template would not render `tool_calls: None` in the same way as no `tool_calls`.
    """
    message = {key: value for key, value in item.items() if value is not None}
    if isinstance(item.get("role"), str):
        message["role"] = _role(item["role"])
    else:
        message = {"role": _role_of_speaker(message.pop("from"), name), **message}
    _move_text(message, name)
    if message["role"] == FUNCTION_CALL:
        _make_tool_calls(message, name)
    elif isinstance(message.get(FUNCTION_CALL), dict) and "tool_calls" not in message:
        call = message.pop(FUNCTION_CALL)  # OpenAI's older form
        message["tool_calls"] = [{"type": "function", "function": call}]
    calls = message.get("tool_calls", [])
    if calls == []:  # DeepSeek's template would write calls, and not the content
        message.pop("tool_calls", None)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(f"{name} has `tool_calls` that are no list of mappings")
    return message


def _role(role: str) -> str:
    """The role that chat templates know: `human` is `user`, and `User` is too."""
    lower = role.lower()
    if lower in KNOWN_ROLES:
        return lower
    return ROLES.get(lower, role)


def _role_of_speaker(speaker: str, name: str) -> str:
    """The role of a sharegpt turn."""
    role = _role(speaker)
    if role not in (*KNOWN_ROLES, FUNCTION_CALL):
        raise RowError(
            f"{name} has a turn whose `from` is none of human, gpt, system, tool, observation, "
            "function_call; write one of these"
        )
    return role


def _move_text(message: dict[str, Any], name: str) -> None:
    """Put the text of a message under `content`, in its place after the role."""
    key = next((key for key in TEXT_KEYS if key in message), None)
    if key is None:
        _refuse_another_name(message, name)
        return
    content = message[key]
    if isinstance(content, list):
        content = _text_of_parts(content, name)
    if not isinstance(content, str):
        raise RowError(
            f"{name} is a list with a message whose content is {kind_of(content)}; a string or a "
            "list of messages (role, content) is needed"
        )
    if key == "content":
        message["content"] = content
        if not content and message["role"] == "user":
            _refuse_another_name(message, name)
        return
    del message[key]
    others = {other: value for other, value in message.items() if other != "role"}
    role = message["role"]
    message.clear()
    message.update({"role": role, "content": content, **others})


def _refuse_another_name(message: dict[str, Any], name: str) -> None:
    """Refuse a turn that would be empty, and that has a text under a name which nobody reads.

    {"role": "user", "utterance": "Hi"}
    """
    if "tool_calls" in message or FUNCTION_CALL in message:
        return
    for key, value in message.items():
        if (
            key not in (*TEMPLATE_KEYS, *ABOUT_A_MESSAGE)
            and isinstance(value, (str, list, dict))
            and value
        ):
            raise RowError(
                f"{name} has a message without `content`, and {kind_of(value)} under "
                f"`{name_in_words(key)}`; name its text `content`"
            )
    if message["role"] == "user" and "content" not in message:
        raise RowError(f"{name} has a message of the user without `content`")


TEXT_PARTS = ("text", "input_text", "output_text")  # the types of parts that are text
PART_KEYS = ("type", "text", "cache_control")  # the last one is for a server alone


def _text_of_parts(parts: list, name: str) -> str:
    """The text of a content that is a list of parts, joined as chat templates do.

    [{"type": "text", "text": "Hi"}]
    """
    texts = []
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise RowError(
                f"{name} is a list; a string or a list of messages (role, content) is needed"
            )
        more = [key for key, value in part.items() if value and key not in PART_KEYS]
        if part["type"] not in TEXT_PARTS or not isinstance(part.get("text"), str) or more:
            raise RowError(
                f"{name} has a content with a part that is no plain text, such as an image; only "
                "text is read: leave the row out"
            )
        texts.append(part["text"])
    return "".join(texts)


def _make_tool_calls(message: dict[str, Any], name: str) -> None:
    """Turn sharegpt's turn of function calls into a turn of the assistant with tool calls."""
    try:
        calls = json_cell(message.pop("content", ""))
    except ValueError:
        raise RowError(f"{name} has a `function_call` turn that cannot be read as JSON") from None
    if isinstance(calls, dict):
        calls = [calls]
    is_list = isinstance(calls, list) and bool(calls)
    if not is_list or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise RowError(
            f"{name} has a `function_call` turn without the name of a function; its value is the "
            "JSON of a mapping (name, arguments)"
        )
    message["role"] = "assistant"
    message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
