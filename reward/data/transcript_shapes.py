"""Transcripts in the shapes in which they are passed around -> messages.

    turns_of("User: Hi\\nAssistant: Hello!")      # two messages
    turns_of("[INST] Hi [/INST] Hello!</s>")      # the same two

A text is a transcript if it begins with the mark of a turn, and has the mark of a reply too. Its
turns must then alternate, or it is refused: a text that is cut at the wrong places is worse than
none. HH-RLHF's own form is read by reward.data.transcripts.
"""

import re
from dataclasses import dataclass

from reward.data.transcripts import (
    HELPSTEER_TURN,
    TURN,
    Messages,
    RowError,
    parse_helpsteer,
    parse_transcript,
    user,
)

ROLES = {
    "human": "user",
    "user": "user",
    "h": "user",
    "instruction": "user",
    "input": "user",
    "prompter": "user",
    "[inst]": "user",
    "assistant": "assistant",
    "a": "assistant",
    "ai": "assistant",
    "response": "assistant",
    "model": "assistant",
    "[/inst]": "assistant",
    "system": "system",
    "tool": "tool",
}


@dataclass(frozen=True)
class Shape:
    """How the turns of a transcript are marked."""

    start: re.Pattern  # what a transcript of this shape begins with
    mark: re.Pattern  # the mark of any turn; its group is the speaker
    end: re.Pattern | None = None  # what closes a turn, which is no part of its text
    alternates: bool = True  # False: two turns of one speaker may follow each other, as in HH-RLHF

    def speaker_of_last_mark(self, text: str) -> str:
        """The role of the last turn that is marked."""
        *_, last = self.mark.finditer(text)
        return ROLES[last[1].lower()]


def _words(user_word: str, assistant_word: str, gap: str, alternates: bool = True) -> Shape:
    """A shape whose marks are words with a colon at the start of a line.

    Args:
        user_word: How a turn of the user begins, before the colon.
        assistant_word: How a reply begins.
        gap: What separates two turns, as a pattern: one line break, or an empty line.
        alternates: Whether the turns must alternate.
    """
    turn = rf"(?:\A\s*|{gap}[ \t]*)(?=(?:{user_word}|{assistant_word}):)"
    system = r"\A\s*(?=(?:### )?System:)"  # at the start alone
    return Shape(
        start=re.compile(
            rf"(?s)\s*(?>(?:### )?System:.*?{gap}[ \t]*{user_word}:|{user_word}:)"
            rf".*{gap}[ \t]*{assistant_word}:"
        ),
        mark=re.compile(rf"(?:{turn}|{system})(?:### )?(\w+):"),
        alternates=alternates,
    )


# The text before the first turn of an Alpaca or a Vicuna prompt, which becomes a system message.
ALPACA_START = r"Below is an instruction [^#]*"
VICUNA_START = r"A chat between [^:]*?"

# What a tokenizer writes before the first turn.
BOS = r"(?:(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<\|endoftext\|>)\s*)?"

EMPTY_LINE = r"\n[ \t]*\n"
LINE_BREAK = r"\n"

SHAPES = (
    _words("Human", "Assistant", EMPTY_LINE, alternates=False),  # HH-RLHF without its first breaks
    _words("Human", "Assistant", LINE_BREAK),
    _words("Human", "AI", LINE_BREAK),
    _words("User", "Assistant", EMPTY_LINE),
    _words("User", "Assistant", LINE_BREAK),
    _words("user", "assistant", LINE_BREAK),
    _words("prompter", "assistant", LINE_BREAK),  # OASST
    _words("H", "A", EMPTY_LINE),
    _words("H", "A", LINE_BREAK),
    _words("### Human", "### Assistant", LINE_BREAK),
    _words("### User", "### Assistant", LINE_BREAK),
    Shape(  # Guanaco: ### Human: Hi### Assistant: Hello!### Human: ...
        start=re.compile(r"(?s)\s*### Human:.*\S### Assistant:"),
        mark=re.compile(r"### (Human|Assistant):"),
    ),
    Shape(  # Alpaca
        start=re.compile(rf"(?s)\s*(?:{ALPACA_START})?### Instruction:.*\n[ \t]*### Response:"),
        mark=re.compile(r"(?:\A\s*|\n[ \t]*)### (Instruction|Input|Response):"),
        end=re.compile(r"</s>\s*\Z"),
    ),
    Shape(  # Vicuna: USER: Hi ASSISTANT: Hello!</s>
        start=re.compile(rf"(?s)\s*(?:{VICUNA_START})?\bUSER:.*\sASSISTANT:"),
        mark=re.compile(r"(?:\A|\s|</s>)(USER|ASSISTANT):"),
        end=re.compile(r"</s>\s*\Z"),
    ),
    Shape(  # ChatML: Qwen and others
        start=re.compile(rf"\s*{BOS}<\|im_start\|>(?:system|user)(?:\r?\n|<\|im_sep\|>)"),
        mark=re.compile(
            rf"{BOS}<\|im_start\|>(system|user|assistant|tool)(?:\r?\n|<\|im_sep\|>|\Z)"
        ),
        end=re.compile(r"(?:<\|im_end\|>|<\|endoftext\|>)\s*\Z"),
    ),
    Shape(  # ChatML and Gemma's, decoded without their control tokens
        start=re.compile(
            r"(?s)\s*(?>system\r?\n.*?\nuser\r?\n|user\r?\n)"
            r".*\n(?:assistant|model)[ \t\r]*(?:\n|\Z)"
        ),
        mark=re.compile(r"(?:\A\s*|\n)(system|user|assistant|model)[ \t\r]*(?:\n|\Z)"),
    ),
    Shape(  # Zephyr, Phi, TinyLlama, OpenAssistant
        start=re.compile(rf"\s*{BOS}<\|(?:system|user|prompter)\|>"),
        mark=re.compile(rf"{BOS}<\|(system|user|prompter|assistant)\|>"),
        end=re.compile(r"(?:</s>|<\|end\|>|<\|endoftext\|>)\s*\Z"),
    ),
    Shape(  # Llama 3
        start=re.compile(
            r"\s*+(?:<\|begin_of_text\|>)?\s*+<\|start_header_id\|>(?:system|user)<\|end_header_id\|>"
        ),
        mark=re.compile(
            r"(?:<\|begin_of_text\|>\s*)?<\|start_header_id\|>(system|user|assistant)"
            r"<\|end_header_id\|>"
        ),
        end=re.compile(r"(?:<\|eot_id\|>|<\|end_of_text\|>)\s*\Z"),
    ),
    Shape(  # Gemma
        start=re.compile(r"\s*+(?:<bos>)?\s*+<start_of_turn>user\r?\n"),
        mark=re.compile(r"(?:<bos>\s*)?<start_of_turn>(user|model)(?:\r?\n|\Z)"),
        end=re.compile(r"(?:<end_of_turn>|<eos>)\s*\Z"),
    ),
    Shape(  # Llama 2, Mistral
        start=re.compile(r"(?s)\s*+(?:<s>)?\s*+\[INST\].*\[/INST\]"),
        mark=re.compile(r"(?:<s>\s*)?(\[INST\]|\[/INST\])"),
        end=re.compile(r"</s>\s*\Z"),
    ),
)

# What any of them begins with, so that most texts are looked at once.
ANY_START = re.compile(
    r"\s*(?:System:|Human:|[Uu]ser:|prompter:|H:|### |Below is an instruction|A chat between"
    r"|USER:|<\||<s>|<bos>|<start_of_turn>|\[INST\]|(?:system|user)\r?\n)"
)

# What a transcript of yet another shape begins with: a speaker between signs, as in `**User:**`.
UNKNOWN_START = re.compile(
    r"(?i)\s*[<\[*#|｜ ]{0,6}(?:human|user|customer|prompter|system|inst)[>\]*|｜ ]{0,6}[:>|｜\]]"
)

# What a template renders whose shape is none of the above: it begins with a control token, and one
# of its turns is the assistant's.
RENDERED = re.compile(
    r"(?is)\s*+(?:<s>|<bos>|<bos_token>|\[gmask\]<sop>)?\s*+"
    r"(?:<[|｜][\w▁]+[|｜]>.*[>|｜]\s*(?:assistant|chatbot)|\[system_prompt\])"
)

# What a prompt of yet another shape has: a line of the user's, and at its end the mark of a reply.
USER_MARK = re.compile(r"(?im)^[^\w\n]{0,6}(?:human|user|customer|instruction)[^\w\n]{0,6}?:")
REPLY_MARK = re.compile(r"(?i)[^\w\n]{0,6}(?:assistant|ai|bot|chatbot|response)[^\w\n]{1,6}")

# A prompt that is one turn of the user behind a mark, and how each of its answers then begins.
ONE_TURN = re.compile(r"\s*(?:### ?)?(?:Human|User|USER|human|user|prompter):\s*")
NEXT_TURN = re.compile(r"(?im)^\W*(?:human|user|prompter|assistant|ai|bot|chatbot|gpt)\W*:")
REPLY = re.compile(r"\s*(?:### ?)?(?:Assistant|ASSISTANT|assistant|AI):\s*")

# A transcript whose line breaks were written as a backslash and an n.
ESCAPED = re.compile(r"(?:\\r|\\n|\s)*\\n\s*(?:Human|Assistant|User):")

# The marks of a transcript in one line, and in a shape that is not read.
MARKS_IN_A_LINE = re.compile(r"(?:\A|\s)(Human|User|Assistant|AI):")
LOWER_MARKS = re.compile(r"(?:\A\s*|\n)(human|assistant|gpt):")

LLAMA2_SYSTEM = re.compile(r"(?s)\s*<<SYS>>\s*(.*?)\s*<</SYS>>\s*(.*)")


def shape_of(text: str) -> Shape | None:
    """The shape of a transcript; None for a text that is none, or is of HH-RLHF's own form."""
    if TURN.match(text) or not ANY_START.match(text):
        return None
    return next((shape for shape in SHAPES if shape.start.match(text)), None)


def is_hh_transcript(text: object) -> bool:
    """Whether a cell is a transcript of HH-RLHF's own form."""
    return isinstance(text, str) and bool(TURN.match(text))


def is_transcript(text: str) -> bool:
    """Whether a text is a transcript, of HH-RLHF's form or of another shape."""
    return bool(TURN.match(text)) or shape_of(text) is not None


def turns_of(text: str) -> Messages | None:
    """The turns of a transcript as messages, their text stripped; None if the text is none.

    The mark of a reply that is still to come is an empty turn of the assistant.

    Raises:
        RowError: The text begins like a transcript, but its turns do not alternate, or it is of no
            shape that is known.
    """
    if TURN.match(text):
        return parse_transcript(text)
    shape = shape_of(text)
    if shape is None:
        refuse_rendered(text)
        return None
    before, *speakers_and_texts = shape.mark.split(text)
    messages = []
    if before.strip():
        messages.append({"role": "system", "content": before.strip()})
    for speaker, turn in zip(speakers_and_texts[::2], speakers_and_texts[1::2], strict=True):
        role = ROLES[speaker.lower()]
        if shape.end:
            turn = shape.end.sub("", turn)
        if speaker == "Input" and messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += "\n" + turn.strip()  # Alpaca's second part of a request
        else:
            messages.append({"role": role, "content": turn.strip()})
    messages = _with_llama2_system(messages)
    if shape.alternates and not _alternate(messages):
        raise RowError(
            "a text begins like a transcript, but its turns do not alternate between the two "
            "speakers, so where each turn begins is unclear; give the turns as messages (role, "
            "content)"
        )
    return messages


def refuse_rendered(text: str) -> None:
    """Refuse a conversation that a chat template rendered in a shape that is not known."""
    if RENDERED.match(text):
        raise RowError(
            "a text begins like a conversation that a chat template has rendered, but no shape "
            "that is read here fits it; give the turns as messages (role, content)"
        )


def _with_llama2_system(messages: Messages) -> Messages:
    """The messages, with a system text that stands inside the first turn as a message."""
    match = LLAMA2_SYSTEM.fullmatch(messages[0]["content"])
    if match is None:
        return messages
    return [{"role": "system", "content": match[1]}, *user(match[2].strip()), *messages[1:]]


def _alternate(messages: Messages) -> bool:
    """Whether user and assistant take turns, after one system message at most."""
    roles = [message["role"] for message in messages if message["role"] != "tool"]
    if roles[0] == "system":
        roles = roles[1:]
    expected = ("user", "assistant")
    return all(role == expected[i % 2] for i, role in enumerate(roles))


def prompt_messages(text: str) -> Messages:
    """The messages of a prompt that is text: the turns of a transcript, or one turn of the user.

    In Nectar and in exports of HH-RLHF a transcript ends with the mark of the reply that is still
    to come, `\\n\\nAssistant:`. This mark is no turn and is left out.

    Raises:
        RowError: The turns of a transcript do not alternate, or the last one is a reply.
    """
    messages = turns_of(text)
    if messages is None and HELPSTEER_TURN.search(text):
        messages = parse_helpsteer(text)
    if messages is None:
        _refuse_unknown_shape(text)
        return user(text)
    if messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    elif messages[-1]["role"] == "assistant" and shape_of(text):
        raise RowError(
            "a prompt begins like a transcript and ends with a reply, so what the completions "
            "answer is unclear; give its turns as messages (role, content)"
        )
    return messages


def _refuse_unknown_shape(text: str) -> None:
    """Refuse a prompt that ends with the mark of a reply, and whose turns nobody here can tell."""
    if ESCAPED.match(text):
        raise RowError(
            "a prompt has a backslash and an n where line breaks belong, so its turns cannot be "
            "told apart; write the line breaks"
        )
    if _has_turns_without_a_shape(text):
        raise RowError(
            "a prompt is a transcript of no shape that is read here, so where its turns begin is "
            "unclear; give them as messages (role, content)"
        )
    last_line = text.rstrip().rpartition("\n")[2]
    is_mark = ":" in last_line and REPLY_MARK.fullmatch(last_line)
    if is_mark and USER_MARK.search(text):
        raise RowError(
            "a prompt ends with the mark of a reply, but no shape of transcript that is read here "
            "fits it; give its turns as messages (role, content)"
        )


def _has_turns_without_a_shape(text: str) -> bool:
    """Whether a prompt has turns in one line, up to the mark of a reply, or turns of `human:`.

    `Human: Hi Assistant: Hello! Human: Why? Assistant:`
    """
    start = text.lstrip()[:6]
    if start == "human:":
        speakers = [mark[1] for mark in LOWER_MARKS.finditer(text)]
        return "human" in speakers[2:] and speakers[1] != "human"
    if not start.startswith(("Human:", "User:")) or not text.rstrip().endswith(
        ("Assistant:", "AI:")
    ):
        return False
    speakers = [mark[1] for mark in MARKS_IN_A_LINE.finditer(text.strip())]
    return len(speakers) > 3 and speakers[0] in speakers[2:]


def reply_of(prompt: str, completions: list[str]) -> list[str]:
    """The texts of the completions of a transcript, without marks and white space around them.

    The mark of the assistant's turn may stand at the end of the prompt, or at the start of every
    completion. A completion may repeat the whole transcript.
    """
    start = prompt.strip()
    texts = [completion.strip().removeprefix(start).strip() for completion in completions]
    if TURN.match(prompt):
        *_, last = TURN.finditer(prompt)
        if last[1] == "Human" and all(text.startswith("Assistant:") for text in texts):
            texts = [text.removeprefix("Assistant:").strip() for text in texts]
        return texts
    shape = shape_of(prompt)
    if shape is None:
        return texts
    if shape.speaker_of_last_mark(prompt) == "user":
        texts = _without_marks(shape, texts)
    if shape.end:
        texts = [shape.end.sub("", text).strip() for text in texts]
    return texts


def _without_marks(shape: Shape, texts: list[str]) -> list[str]:
    """The texts without the mark of a reply at their start, if all of them have one."""
    marks = [shape.mark.match(text) for text in texts]
    for mark in marks:
        if mark is None or ROLES[mark[1].lower()] != "assistant":
            return texts
    return [text[mark.end() :].strip() for text, mark in zip(texts, marks, strict=True)]


def without_marks_of_one_turn(prompt: str, completions: list[str]) -> tuple[str, list[str]]:
    """A prompt `Human: Hi` and its answers `Assistant: Hello!` without these marks.

    Texts of which one has no mark stay as they are.
    """
    mark = ONE_TURN.match(prompt)
    replies = [REPLY.match(completion) for completion in completions]
    if mark is None or None in replies or is_transcript(prompt):
        return prompt, completions
    if NEXT_TURN.search(prompt, mark.end()):
        return prompt, completions
    answers = [
        completion[reply.end() :].strip()
        for completion, reply in zip(completions, replies, strict=True)
    ]
    return prompt[mark.end() :].strip(), answers


def last_mark_end(text: str) -> int:
    """Where the mark of the last turn of a transcript ends."""
    mark = TURN
    if not TURN.match(text):
        mark = shape_of(text).mark
    *_, last = mark.finditer(text)
    return last.end()
