"""Rows with a chosen and a rejected side -> pairs.

    pair = chosen_and_rejected({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, "messages")

The conversation may stand in a prompt, in both sides, or in both places; it is read once.
"""

import math
import re

from reward.data.cells import is_finite_number, kind_of, list_in, number_cell, number_in, votes_cell
from reward.data.columns import name_in_words
from reward.data.labelled_formats import NAMED_RESPONSE, is_json_of_texts, turn_by_turn
from reward.data.messages import refuse_unknown_keys, side_of
from reward.data.preference_pair import (
    FEWEST_WORDS,
    IN_TWO_PLACES,
    Preference,
    PreferencePair,
    after_prompt,
    compared,
    end_of_prompt,
    is_system,
    is_whole,
    need_few,
    need_little,
    need_one_place,
    pair_of,
    probability_of_first,
    repeated_start,
)
from reward.data.prompts import (
    FoundPrompt,
    could_be_prompts,
    find_prompt,
    how_to_name,
    needed_prompt,
    with_system,
    words,
)
from reward.data.transcript_shapes import (
    ESCAPED,
    UNKNOWN_START,
    is_hh_transcript,
    is_transcript,
    last_mark_end,
    prompt_messages,
    refuse_rendered,
    reply_of,
    shape_of,
    turns_of,
    without_marks_of_one_turn,
)
from reward.data.transcripts import (
    TURN,
    Messages,
    RowError,
    Side,
    assistant,
    is_texts,
    parse_transcript,
    shared_words,
    text_of,
    user,
)

# The labels of a row with a chosen and a rejected side.
LABEL_COLUMNS = (
    "margin",
    "votes",
    "chosen_probability",
    "rating_chosen",
    "rating_rejected",
    "score_chosen",
    "score_rejected",
    "chosen_rating",
    "rejected_rating",
    "chosen-rating",
    "rejected-rating",
    "is_tie",
)
SIDE_COLUMNS = ("chosen", "rejected")
OWN_PROMPTS = ("prompt", "instruction", "question", "query")  # an empty one is an empty prompt


def chosen_and_rejected(row: dict, transcript: str) -> PreferencePair:
    """TRL's preference format and HH-RLHF's transcripts, with a prompt of its own or without.

        {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
        {"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": ...}
        {"instruction": "Add.", "input": "2 2", "chosen": "4", "rejected": "5"}

    Any of the texts may be messages instead. The row may have labels too, see `_add_labels`.
    """
    if len(row) == 2 and is_hh_transcript(row["chosen"]) and is_hh_transcript(row["rejected"]):
        return _hh_transcripts(row["chosen"], row["rejected"], transcript)
    chosen = side_of(row["chosen"], "`chosen`")
    rejected = side_of(row["rejected"], "`rejected`")
    _need_one_form(chosen, rejected)
    if len(row) > 3:
        _need_no_names(row)
        _need_no_winner(row)
    if _are_turn_by_turn(row):
        pair = _last_turns(turn_by_turn(row, "chosen"), turn_by_turn(row, "rejected"))
    else:
        found = _prompt_beside(row, chosen, rejected)
        pair = _pair_of_sides(found, chosen, rejected, transcript)
    _add_labels(pair, row)
    return pair


def _prompt_beside(row: dict, chosen: Side, rejected: Side) -> FoundPrompt | None:
    """The prompt of a row; None if the sides hold it."""
    found = find_prompt(row)
    if found is not None or _hold_a_conversation(chosen, rejected):
        return found
    _need_no_other_text(row)
    for side in (chosen, rejected):
        refuse_unknown_keys(side, "a side")
    empty = [column for column in OWN_PROMPTS if column in row]
    if isinstance(chosen, list):
        empty = [column for column in empty if isinstance(row[column], str)]
    elif empty:
        _need_a_known_start(chosen, rejected)
    if not empty:
        return None
    return FoundPrompt("", (empty[0],))  # the sides are answers to nothing


def _are_turn_by_turn(row: dict) -> bool:
    """Whether a prompt and both sides are the JSON of lists of texts, one text a turn.

    Only the last replies may differ: answers that were asked for in JSON are no turns.
    """
    if not all(is_json_of_texts(row.get(column)) for column in ("prompt", *SIDE_COLUMNS)):
        return False
    turns = [list_in(row[column]) for column in ("prompt", *SIDE_COLUMNS)]
    if not all(map(is_texts, turns)) or len({len(texts) for texts in turns}) > 1:
        return False
    _, chosen, rejected = turns
    return chosen[:-1] == rejected[:-1]


def _hh_transcripts(chosen: str, rejected: str, transcript: str) -> PreferencePair:
    """HH-RLHF's rows, which have nothing else: the most common case is the fast one."""
    if transcript == "raw":
        return _raw_transcripts(chosen, rejected)
    return _last_turns(parse_transcript(chosen), parse_transcript(rejected))


def _pair_of_sides(
    found: FoundPrompt | None, chosen: Side, rejected: Side, transcript: str
) -> PreferencePair:
    """The pair of two sides."""
    _need_one_form(chosen, rejected)
    if isinstance(chosen, list):
        return _message_sides(found, chosen, rejected)
    return _text_sides(found, chosen, rejected, transcript)


def _need_one_form(chosen: Side, rejected: Side) -> None:
    """Refuse a row of which one side is text, and the other one is messages."""
    if type(chosen) is not type(rejected):
        raise RowError(
            f"`chosen` is {kind_of(chosen)} and `rejected` is {kind_of(rejected)}; "
            "both sides need one form"
        )


LONGEST_NAME = 40  # characters


def _need_no_names(row: dict) -> None:
    """Refuse sides that name the columns with their texts: {"response_a": "4", "chosen": "a"}."""
    holder = _column_with_keys(row)
    if holder is not None:
        raise RowError(
            f"`chosen` and `rejected` are places in `{name_in_words(holder)}` instead of texts; "
            "write the texts into them"
        )
    named = [_column_named(row, side) for side in SIDE_COLUMNS]
    what = "name the columns"
    if None in named:
        named = [_column_with_model(row, side) for side in SIDE_COLUMNS]
        what = "name the models in"
    if None not in named and named[0] != named[1]:
        columns = " and ".join(f"`{name_in_words(column)}`" for column in named)
        raise RowError(
            f"`chosen` and `rejected` {what} {columns} instead of holding their texts; "
            "write the texts into them. If the names are the answers, `columns: [prompt, chosen, "
            "rejected]` reads these three alone"
        )


# What names the better of two. Of a `label`, "A" may be the letter of a right answer.
SIDE_OF_LABEL = re.compile(rf"{NAMED_RESPONSE.pattern}|[ab]\s*[<>=]+\s*[ab]")
SIDE_OF_WINNER = re.compile(rf"{SIDE_OF_LABEL.pattern}|[ab012]|tie(?:\W.*)?")
ANSWER_COLUMN = re.compile(r"(?:response|output|answer|conversation)_?[abAB012]")


def _need_no_winner(row: dict) -> None:
    """Refuse sides beside a column that says which of two is better: {"winner": "model_b"}.

    Raises:
        RowError: There is one. Perhaps the sides are not in its order, and it was not looked at.
            Beside the two answers themselves, score.py has named the sides by it.
    """
    if any(map(ANSWER_COLUMN.fullmatch, map(str, row))):
        return
    for column in ("winner", "label", "preference"):
        value = row.get(column)
        pattern = SIDE_OF_LABEL if column == "label" else SIDE_OF_WINNER
        if value is not None and pattern.fullmatch(str(value).strip().lower()):
            raise RowError(
                f"`{column}` says which of two answers is better, beside `chosen` and `rejected`. "
                "If the better one is not always `chosen`, name the two `response_a` and "
                f"`response_b` instead; if it is, leave `{column}` out "
                "(`columns: [prompt, chosen, rejected]`)"
            )


def _column_named(row: dict, side: str) -> str | None:
    """The column with a text whose name is the text of a side, or has its last word in it."""
    text = row[side]
    if not isinstance(text, str) or not 0 < len(text) <= LONGEST_NAME:
        return None
    name = text.lower()
    last_word = name.rpartition("_")[2]
    for column, value in row.items():
        is_text = isinstance(value, str | list) and column not in SIDE_COLUMNS
        if is_text and (str(column).lower() == name or last_word in _words_of_name(column)):
            return column
    return None


ANSWERS = re.compile(
    r"(?i).*(?:responses?|answers?|completions?|outputs?|candidates?|generations?|repl(?:y|ies))"
)


def _column_with_keys(row: dict) -> str | None:
    """The column with the answers, in which both sides are places: "0" and "1", or keys."""
    keys = {str(row[side]).strip() for side in SIDE_COLUMNS}
    if len(keys) == 1:
        return None
    for column, value in row.items():
        if column in SIDE_COLUMNS or not ANSWERS.fullmatch(str(column)):
            continue
        answers = {}
        if isinstance(value, dict):
            answers = value
        elif isinstance(value, list):
            answers = dict(enumerate(value))
        places = {str(place) for place, text in answers.items() if isinstance(text, str)}
        if keys <= places and keys.isdisjoint(map(str, answers.values())):
            return str(column)
    return None


def _column_with_model(row: dict, side: str) -> str | None:
    """The column such as `model_a` that holds the text of a side."""
    for column, value in row.items():
        if value and value == row[side] and "model" in _words_of_name(column):
            return column
    return None


def _words_of_name(column: object) -> list[str]:
    """The words of the name of a column: `response_a`, `responseA` and `left_answer2` have some."""
    return [word.lower() for word in re.findall(r"\d+|[A-Z]?[a-z]+|[A-Z]+", str(column))]


def _hold_a_conversation(chosen: Side, rejected: Side) -> bool:
    """Whether both sides hold what the user said, so that no column is needed for it."""
    if isinstance(chosen, list):
        return _are_whole_messages(chosen, rejected)
    return is_transcript(chosen) and is_transcript(rejected)


def _are_whole_messages(chosen: Side, rejected: Side) -> bool:
    if isinstance(chosen, str) or isinstance(rejected, str):
        return False
    return is_whole(chosen) and is_whole(rejected)


def _need_no_other_text(row: dict) -> None:
    """Refuse a row without a prompt if another column may be the prompt.

    Raises:
        RowError: There is such a column. The sides alone would make a pair with an empty prompt, or
            with one that is made of the words that both begin with.
    """
    others = could_be_prompts(row, read=(*SIDE_COLUMNS, *LABEL_COLUMNS, "tools"))
    if others:
        raise RowError(
            f"no prompt is known beside `chosen` and `rejected`. {how_to_name(others)}; if none "
            "is, `columns: [chosen, rejected]` reads these two alone"
        )


# --- Both sides are messages ----------------------------------------------------------------------


def _message_sides(
    found: FoundPrompt | None, chosen: Messages, rejected: Messages
) -> PreferencePair:
    """Both sides as messages: the completions of a prompt, or whole conversations."""
    if found is None:
        return _last_turns(chosen, rejected)
    prompt = found.side
    if isinstance(prompt, list):
        return _after_messages(prompt, chosen, rejected)
    are_answers = not is_whole(chosen) and not is_whole(rejected)
    if are_answers or not chosen or not rejected:
        return pair_of(prompt_messages(prompt), chosen, rejected)
    if not is_whole(chosen) or not is_whole(rejected):
        raise RowError(
            "one of `chosen` and `rejected` is a whole conversation, and the other an answer "
            "alone; both need one form"
        )
    # UltraFeedback holds the whole conversation on both sides and repeats the prompt as a string.
    for side in (chosen, rejected):
        _need_repeated(prompt, side, found.columns[0])
    return _last_turns(chosen, rejected)


# What Alpaca's and Vicuna's templates say before the first turn.
START_OF_TEMPLATE = re.compile(r"\A(?:Below is an instruction[^#]*|A chat between [^:]*?(?=USER:))")

ROLE_WORDS = {"system", "user", "human", "prompter", "assistant", "ai", "bot", "gpt", "model"}


def _is_mark(word: str) -> bool:
    """Whether nobody says a word of a rendered conversation: `User:`, `<|im_start|>user`, `###`."""
    if not set(word).isdisjoint("<>[]|#:"):
        return True
    return word.lower() in ROLE_WORDS or not any(map(str.isalnum, word))


def _need_repeated(prompt: str, side: Messages, column: str) -> None:
    """Check that a prompt beside whole conversations says nothing that they do not say.

    It may be a turn of the conversation, or all of it, rendered as a text.

    Raises:
        RowError: It is another text.
    """
    prompt_words = words(prompt)
    turns = [words(message.get("content") or "") for message in side]
    is_in_side = prompt_words in " ".join(turns)
    users = [
        words(message.get("content") or "") for message in side[:-1] if message["role"] == "user"
    ]
    has_side = bool(users) and all(turn in prompt_words for turn in users)
    if has_side:
        rest = START_OF_TEMPLATE.sub("", prompt_words)
        for turn in sorted(filter(None, turns[:-1]), key=len, reverse=True):
            rest = rest.replace(turn, " ", 1)
        has_side = all(map(_is_mark, rest.split()))
    if not is_in_side and not has_side:
        raise RowError(
            f"`{column}` and the conversations in `chosen` and `rejected` differ, so which of them "
            "is the prompt is unclear; leave one of them out"
        )


def _last_turns(chosen: Messages, rejected: Messages) -> PreferencePair:
    """Two whole conversations: what comes before the last turn is the prompt of both."""
    pair = pair_of(chosen[:-1], chosen[-1:], rejected[-1:])
    if chosen[:-1] != rejected[:-1]:
        pair["drop"] = "prompts differ"
    return pair


def _after_messages(prompt: Messages, chosen: Messages, rejected: Messages) -> PreferencePair:
    """Two completions of a prompt, all of them messages. The sides may repeat the prompt."""
    if [message["role"] for message in prompt] == ["system"] and is_whole(chosen):
        system = prompt[0].get("content") or ""
        return _last_turns(with_system(chosen, system), with_system(rejected, system))
    ends = [end_of_prompt(prompt, side) for side in (chosen, rejected)]
    if None not in ends:
        chosen_end, rejected_end = ends
        pair = pair_of(chosen[:chosen_end], chosen[chosen_end:], rejected[rejected_end:])
        if chosen[:chosen_end] != rejected[:rejected_end]:
            pair["drop"] = "prompts differ"
        elif not is_system(chosen[0]) and is_system(prompt[0]):
            pair["prompt"] = prompt
        return pair
    asked = _first_user_words(prompt)
    if asked and asked in (_first_user_words(chosen), _first_user_words(rejected)):
        raise RowError(IN_TWO_PLACES)
    for side in (chosen, rejected):
        need_one_place(prompt, side)
    return pair_of(prompt, chosen, rejected)


def _first_user_words(side: Messages) -> str:
    for message in side:
        if message["role"] == "user":
            return words(message.get("content") or "")
    return ""


# --- Both sides are text --------------------------------------------------------------------------


def _text_sides(
    found: FoundPrompt | None, chosen: str, rejected: str, transcript: str
) -> PreferencePair:
    """Both sides as text: the completions of a prompt, transcripts, or texts with one start."""
    if found is None:
        return _texts_alone(chosen, rejected, transcript)
    prompt = found.side
    if isinstance(prompt, str):
        start = repeated_start(prompt, [chosen, rejected])
        if start and transcript == "raw":
            return pair_of(chosen[:start], chosen[start:], rejected[start:])
        if start:
            chosen = after_prompt(chosen, start)
            rejected = after_prompt(rejected, start)
            return _explicit_texts(prompt, chosen, rejected, transcript)
    if not _are_transcripts(chosen, rejected, may_be_text=transcript == "raw"):
        if isinstance(prompt, str):
            _need_no_marked_prompt(prompt, chosen, rejected)
            return _explicit_texts(prompt, chosen, rejected, transcript)
        return pair_of(prompt, assistant(chosen), assistant(rejected))
    sides = [turns_of(chosen), turns_of(rejected)]
    pair = _message_sides(found, *sides)
    if transcript != "raw":
        return pair
    if isinstance(prompt, list) and None in [end_of_prompt(prompt, side) for side in sides]:
        raise RowError(
            f"`{found.columns[0]}` is a list of messages that `chosen` and `rejected` do not begin "
            "with, and `transcript: raw` keeps both sides as they are; leave it out, or read them "
            "as messages"
        )
    return _raw_transcripts(chosen, rejected)


def _are_transcripts(chosen: str, rejected: str, may_be_text: bool = False) -> bool:
    """Whether both sides are transcripts.

    Args:
        chosen: The chosen side.
        rejected: The rejected side.
        may_be_text: Whether one that is none makes both of them mere texts.

    Raises:
        RowError: One of them is a transcript, and the other one is none.
    """
    chosen_is = is_transcript(chosen)
    rejected_is = is_transcript(rejected)
    if chosen_is != rejected_is and may_be_text:
        return False
    if chosen_is != rejected_is:
        raise RowError(
            "one of `chosen` and `rejected` is a transcript of several turns, and the other one is "
            "none; both need one form"
        )
    return chosen_is


def _need_no_marked_prompt(prompt: str, chosen: str, rejected: str) -> None:
    """Refuse sides that both begin with the prompt behind a mark, such as `### Question: ...`.

    Raises:
        RowError: They do. The reward would be of the prompt twice.
    """
    asked = prompt.strip()
    if len(asked.split()) < FEWEST_WORDS:
        return
    start, found, _ = chosen.partition(asked)
    is_mark = 0 < len(start.split()) <= 2 and re.search(r"[<\[#:*|]", start)
    if found and is_mark and rejected.startswith(start + asked):
        raise RowError(
            "`chosen` and `rejected` begin with the prompt behind a mark, but no shape of "
            "transcript that is read here fits them; leave the prompt out of both"
        )


def _explicit_texts(prompt: str, chosen: str, rejected: str, transcript: str) -> PreferencePair:
    """A prompt and two completions, all of them text."""
    if transcript == "raw":
        return pair_of(prompt, chosen, rejected)
    prompt, (chosen, rejected) = without_marks_of_one_turn(prompt, [chosen, rejected])
    messages = prompt_messages(prompt)
    if messages == user(prompt):
        return pair_of(messages, assistant(chosen), assistant(rejected))
    # The prompt is a transcript up to "\n\nAssistant:", as in Nectar or exports of HH-RLHF.
    chosen, rejected = reply_of(prompt, [chosen, rejected])
    return pair_of(messages, assistant(chosen), assistant(rejected))


def _texts_alone(chosen: str, rejected: str, transcript: str) -> PreferencePair:
    """Two transcripts, or two texts with one start."""
    if not _are_transcripts(chosen, rejected):
        _need_a_known_start(chosen, rejected)
        return _implicit_texts(chosen, rejected, transcript)
    if transcript == "raw":
        return _raw_transcripts(chosen, rejected)
    return _last_turns(turns_of(chosen), turns_of(rejected))


def _need_a_known_start(chosen: str, rejected: str) -> None:
    """Refuse two texts without a prompt that begin like transcripts of no known shape."""
    if TURN.search(chosen) and TURN.search(rejected):
        raise RowError(
            "`chosen` and `rejected` have text before the first turn of a transcript; put it "
            "into a column `system`, or give the turns as messages (role, content)"
        )
    if ESCAPED.match(chosen) and ESCAPED.match(rejected):
        raise RowError(
            "`chosen` and `rejected` have a backslash and an n where line breaks belong, so "
            "their turns cannot be told apart; write the line breaks"
        )
    if UNKNOWN_START.match(chosen) and UNKNOWN_START.match(rejected):
        raise RowError(
            "`chosen` and `rejected` begin like transcripts, but no shape that is read here "
            "fits them; give the turns as messages (role, content)"
        )


def _raw_transcripts(chosen: str, rejected: str) -> PreferencePair:
    """Two transcripts kept as text: all up to the mark of the last turn is the prompt of both.

    `_last_turns` does the same for messages.
    """
    prompt, completion = _cut_at_last_turn(chosen)
    rejected_prompt, rejected_completion = _cut_at_last_turn(rejected)
    pair = pair_of(prompt, completion, rejected_completion)
    if prompt != rejected_prompt:
        pair["drop"] = "prompts differ"
    elif _ends_with_user(prompt, chosen):  # on both sides
        pair["drop"] = "no answer (rejected)"
    return pair


def _cut_at_last_turn(text: str) -> tuple[str, str]:
    """Cut a transcript after the mark of its last turn: into the prompt and the completion."""
    cut = last_mark_end(text)
    return text[:cut], text[cut:]


def _ends_with_user(prompt: str, text: str) -> bool:
    """Whether the last turn of a transcript is the user's."""
    shape = shape_of(text)
    if shape is None:
        return prompt.endswith("Human:")
    return shape.speaker_of_last_mark(text) == "user"


def _implicit_texts(chosen: str, rejected: str, transcript: str) -> PreferencePair:
    """Two texts without turns: the words at the start that both have are the prompt."""
    if transcript != "raw":
        refuse_rendered(chosen)
    cut = shared_words(chosen, rejected)
    prompt = chosen[:cut]
    chosen = chosen[cut:]
    rejected = rejected[cut:]
    if transcript == "raw":
        return pair_of(prompt, chosen, rejected)
    prompt = user(prompt.strip())
    chosen = assistant(chosen.strip())
    rejected = assistant(rejected.strip())
    return pair_of(prompt, chosen, rejected)


# --- RewardBench ----------------------------------------------------------------------------------


def rewardbench(row: dict, transcript: str) -> list[PreferencePair]:
    """RewardBench's score files: a whole conversation on each side, and the prompt by itself.

    {"prompt": "2+2?", "text_chosen": "2+2?\\n\\n4", "text_rejected": "2+2?\\n\\n5"}
    """
    chosen = side_of(row["text_chosen"], "`text_chosen`")
    rejected = side_of(row["text_rejected"], "`text_rejected`")
    found = None
    if not _are_whole_messages(chosen, rejected):
        prompt = row["prompt"]
        if prompt is None:
            prompt = ""
        prompt = side_of(prompt, "`prompt`")
        start = text_of(prompt)
        both_text = isinstance(chosen, str) and isinstance(rejected, str)
        if both_text and start and chosen.startswith(start) and rejected.startswith(start):
            chosen = _after_prompt(chosen, start)
            rejected = _after_prompt(rejected, start)
        found = FoundPrompt(prompt or "", ("prompt",))
    pair = _pair_of_sides(found, chosen, rejected, transcript)
    _add_labels(pair, row)
    return [pair]


def rewardbench_reads(row: dict) -> set[str]:
    """The columns that `rewardbench` reads beside the sides; whole conversations need no prompt."""
    sides = [side_of(row[column], f"`{column}`") for column in ("text_chosen", "text_rejected")]
    if _are_whole_messages(*sides):
        return labels_read(row)
    return labels_read(row) | {"prompt"}


def _after_prompt(text: str, prompt: str) -> str:
    return text.removeprefix(prompt).removeprefix("\n\n")


def has_lists_of_sides(row: dict) -> bool:
    """Whether both sides are lists of texts, each a completion."""
    return is_texts(row["chosen"]) and is_texts(row["rejected"])


def lists_of_sides(row: dict, transcript: str) -> list[PreferencePair]:
    """RewardBench 2 and RM-Bench: every chosen completion against every rejected one.

    {"prompt": "2+2?", "chosen": ["4"], "rejected": ["5", "6", "22"]}
    """
    need_few(max(len(row["chosen"]), len(row["rejected"])))
    prompt = needed_prompt(row)
    if all(_has_text(row[side], prompt) for side in SIDE_COLUMNS):
        raise RowError(
            "`chosen` and `rejected` are lists that hold the prompt, so they seem to be "
            "conversations; give their turns as messages (role, content)"
        )
    need_little(prompt, row["chosen"], repeated=len(row["rejected"]))
    need_little(prompt, row["rejected"], repeated=len(row["chosen"]))
    return [
        compared(prompt, chosen, rejected, Preference(1))
        for chosen in row["chosen"]
        for rejected in row["rejected"]
    ]


def _has_text(texts: list[str], side: Side) -> bool:
    """Whether one of the texts says what a prompt says."""
    asked = words(text_of(side))
    return bool(asked) and any(words(text) == asked for text in texts)


# --- Labels ---------------------------------------------------------------------------------------


def _add_labels(pair: PreferencePair, row: dict) -> None:
    """Copy the labels of a row with a chosen and a rejected side, if it has any."""
    if row.get("margin") is not None and not is_difference_of_rewards(row):
        pair["target_margin"] = number_cell(row, "margin")
    if row.get("votes") is not None:
        pair["votes"] = votes_cell(row)
        pair["chosen_probability"] = probability_of_first(pair["votes"])
    ratings = _columns_of_ratings(row)
    if ratings:
        _add_ratings(pair, row, *ratings)
    if row.get("is_tie") in (True, 1, "True", "true"):
        pair["chosen_probability"] = 0.5
    if row.get("chosen_probability") is not None:
        pair["chosen_probability"] = number_cell(row, "chosen_probability", 0, 1)


def labels_read(row: dict) -> set[str]:
    """The columns of labels that `_add_labels` reads of a row."""
    read = {"margin", "votes", "chosen_probability"}
    if is_difference_of_rewards(row):
        read.remove("margin")
    if row.get("is_tie") is not None:
        read.add("is_tie")
    return read | set(_columns_of_ratings(row))


# The columns of the ratings of both sides; the first two that a row has are read.
RATINGS = (
    ("rating_chosen", "rating_rejected"),
    ("score_chosen", "score_rejected"),  # UltraFeedback-binarized
)
# Of these two names, only what holds two numbers.
OTHER_RATINGS = (("chosen_rating", "rejected_rating"), ("chosen-rating", "rejected-rating"))


def _columns_of_ratings(row: dict) -> tuple[str, ...]:
    if len(row) < len(SIDE_COLUMNS) + 2:
        return ()
    for columns in RATINGS:
        if _has_values(row, *columns):
            return columns
    for columns in OTHER_RATINGS:
        if all(_is_number(row.get(column)) for column in columns):
            return columns
    return ()


def _is_number(value: object) -> bool:
    """Whether a cell is a number, or the text of one, as in CSV."""
    if isinstance(value, str):
        try:
            value = number_in(value)
        except ValueError:
            return False
    return is_finite_number(value)


def is_difference_of_rewards(row: dict) -> bool:
    """Whether a row's `margin` is what score.py wrote, and not the raters' target margin."""
    try:
        margin = float(row["margin"])
        difference = float(row["reward_chosen"]) - float(row["reward_rejected"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    is_close = math.isclose(margin, difference, rel_tol=1e-6, abs_tol=1e-6)
    return is_close or not math.isfinite(margin)


def _has_values(row: dict, *columns: str) -> bool:
    return all(row.get(column) is not None for column in columns)


def _add_ratings(pair: PreferencePair, row: dict, chosen_column: str, rejected_column: str) -> None:
    pair["rating_chosen"] = number_cell(row, chosen_column)
    pair["rating_rejected"] = number_cell(row, rejected_column)
    tie = pair["rating_chosen"] == pair["rating_rejected"]
    if tie and "votes" not in pair:  # votes say more than equal ratings
        pair["chosen_probability"] = 0.5
