"""Prompts and completions as messages or as text, and the parsing of published transcripts.

`parse_transcript("\\n\\nHuman: Hi\\n\\nAssistant: Hello!")` gives two messages.
"""

import json
import os
import re
from typing import Any

Message = dict[str, Any]  # `role`, and `content` or `tool_calls`, as chat templates read them
Messages = list[Message]
Side = str | Messages  # a prompt or a completion: text that is kept as it is, or messages


class RowError(ValueError):
    """A row that cannot be read. The message names columns and types, never content."""


class FileError(RowError):
    """A row that shows that rows of its file which seem to be right would be misread."""


TURN = re.compile(r"\n\n(Human|Assistant):")  # how a turn starts in HH-RLHF's transcripts

# How a turn starts in HelpSteer2's prompts of several turns. The first turn carries no mark.
HELPSTEER_TURN = re.compile(r"<extra_id_1>(User|Assistant)\r?\n")

# The speaker in a transcript -> the role in a message.
ROLE = {"Human": "user", "User": "user", "Assistant": "assistant"}


def user(text: str) -> Messages:
    """One message of the user."""
    return [{"role": "user", "content": text}]


def assistant(text: str) -> Messages:
    """One message of the assistant."""
    return [{"role": "assistant", "content": text}]


THOUGHTS = ("reasoning_content", "thinking")  # the keys of what a message thinks before its content


def text_of(side: Side) -> str:
    """The words of a prompt or completion, for hashes, lengths and reports.

    What a message thinks, the tools that it calls, and what it calls them with, are words too.
    """
    if isinstance(side, str):
        return side
    return "\n\n".join(_words_of_message(message) for message in side)


def _words_of_message(message: Message) -> str:
    parts = [message[key] for key in THOUGHTS if isinstance(message.get(key), str)]
    parts.append(_content(message))
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        calls = []
    for call in calls:
        if isinstance(call, dict):
            parts.append(json.dumps(call.get("function", call), ensure_ascii=False, default=str))
    return "\n".join(part for part in parts if part)


def first_user_turn(prompt: Side) -> str:
    """The first turn of the user, in lower case and with single spaces.

    No first user turn is in two splits. In a string it is everything up to the first reply.
    """
    return " ".join(_first_user_text(prompt).lower().split())


def _first_user_text(prompt: Side) -> str:
    if isinstance(prompt, str):
        if TURN.match(prompt):
            return parse_transcript(prompt)[0]["content"]
        return prompt
    for message in prompt:
        if message["role"] == "user":
            return _content(message)
    return text_of(prompt)


def _content(message: Message) -> str:
    return str(message.get("content") or "")


def is_messages(value: object) -> bool:
    """Whether `value` is a list of messages. Each needs a role, and may have text as its content.

    The empty list counts as a list of messages.
    """
    return isinstance(value, list) and all(_is_message(item) for item in value)


def _is_message(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    has_role = isinstance(value.get("role"), str)
    return has_role and isinstance(value.get("content"), str | None)


def is_texts(value: object) -> bool:
    """Whether `value` is a list of one string or more.

    RewardBench 2 and RM-Bench store the completions of one side in this way.
    """
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(text, str) for text in value)


# --- Text -> messages -----------------------------------------------------------------------------


def parse_transcript(text: str) -> Messages:
    """The turns of `\\n\\nHuman: ... \\n\\nAssistant: ...` as messages, their text stripped."""
    _, *speakers_and_texts = TURN.split(text)
    return _messages_of(speakers_and_texts)


def parse_helpsteer(text: str) -> Messages:
    """The turns of a HelpSteer2 prompt as messages, their text stripped."""
    first, *speakers_and_texts = HELPSTEER_TURN.split(text)
    return user(first.strip()) + _messages_of(speakers_and_texts)


def _messages_of(speakers_and_texts: list[str]) -> Messages:
    """The messages of a list of speaker, text, speaker, text and so on."""
    speakers = speakers_and_texts[::2]
    texts = speakers_and_texts[1::2]
    messages = []
    for speaker, text in zip(speakers, texts, strict=True):
        messages.append({"role": ROLE[speaker], "content": text.strip()})
    return messages


def shared_words(first: str, second: str) -> int:
    """The length of the start that two texts have in common, cut back to the end of a word.

    TRL's `extract_prompt` finds the prompt of two conversations in the same way.
    """
    length = len(os.path.commonprefix([first, second]))
    while length and not first[length - 1].isspace():
        length -= 1
    return length
