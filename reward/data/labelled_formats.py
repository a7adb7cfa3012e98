"""Rows with two completions, and a label that says which is better -> pairs."""

import re

from reward.data.cells import (
    JSON_LISTS,
    MEND,
    is_finite_number,
    kind_of,
    list_cell,
    number_cell,
    number_in,
    text_cells,
    votes_cell,
)
from reward.data.messages import side_of
from reward.data.preference_pair import Preference, PreferencePair, compared
from reward.data.prompts import needed_prompt
from reward.data.transcripts import FileError, Messages, RowError, Side, assistant, user

TURNS = ("prompt", "response_a", "response_b")  # of human-preference-55k, each a list


def two_responses(row: dict, transcript: str) -> list[PreferencePair]:
    """Two responses, and a label or votes.

    {"prompt": "2+2?", "response_a": "4", "response_b": "5", "votes": [3, 0]}
    """
    if all(is_json_of_texts(row.get(column)) for column in TURNS):
        return human_preference_55k(row, transcript)  # with its one-hot columns made into one
    preference = _preference_of(row)
    return [compared(needed_prompt(row), row["response_a"], row["response_b"], preference)]


def judgebench(row: dict, transcript: str) -> list[PreferencePair]:
    """JudgeBench.

    {"question": "2+2?", "response_A": "4", "response_B": "5", "label": "A>B"}
    """
    prompt = needed_prompt(row, ("question",))
    return [compared(prompt, row["response_A"], row["response_B"], _preference_of(row))]


def llmbar(row: dict, transcript: str) -> list[PreferencePair]:
    """LLMBar, OffsetBias and AlpacaFarm, whose label is the number of the better output.

    {"input": "2+2?", "output_1": "4", "output_2": "5", "label": 1}
    {"instruction": "Add.", "input": "2 2", "output_1": "4", "output_2": "5", "preference": 1}
    """
    (column,) = number_read(row)
    better = number_cell(row, column)
    if better == 0:
        raise FileError(
            f"`{column}` is 0; it must be 1 or 2, the better output. A 0 shows that 1 may be the "
            "second one in this file, so none of its rows is read: write 1 and 2 (or leave the "
            "rows with 0 out, if they are ties)"
        )
    if better not in (1, 2):
        raise RowError(f"`{column}` is neither 1 nor 2, the better output: {MEND}")
    preference = Preference(strength=3 - 2 * better)
    return [compared(needed_prompt(row), row["output_1"], row["output_2"], preference)]


def number_read(row: dict) -> set[str]:
    """The column of the label that `llmbar` reads of a row."""
    if "label" not in row and "preference" in row:
        return {"preference"}
    return {"label"}


def safe_rlhf(row: dict, transcript: str) -> list[PreferencePair]:
    """PKU-SafeRLHF, whose label is the index of the more helpful response.

    {"prompt": "2+2?", "response_0": "4", "response_1": "5", "better_response_id": 0}
    """
    preference = _by_index(row, "better_response_id")
    return [compared(needed_prompt(row), row["response_0"], row["response_1"], preference)]


def _by_index(row: dict, column: str) -> Preference:
    better = _on_scale(row, column, 0, 1)
    if better not in (0, 1):
        raise RowError(f"`{column}` is neither 0 nor 1, the better response: {MEND}")
    return Preference(strength=1 - 2 * better)


def stanford_human_preferences(row: dict, transcript: str) -> list[PreferencePair]:
    """SHP: a post, and two comments. 1 says that the first comment, A, is better.

    {"history": "2+2?", "human_ref_A": "4", "human_ref_B": "5", "labels": 1}
    """
    first_is_better = _on_scale(row, "labels", 0, 1)
    if first_is_better not in (0, 1):
        raise RowError(f"`labels` is neither 1 (A is better) nor 0: {MEND}")
    preference = Preference(strength=2 * first_is_better - 1)
    prompt = needed_prompt(row, ("history",))
    return [compared(prompt, row["human_ref_A"], row["human_ref_B"], preference)]


def webgpt(row: dict, transcript: str) -> list[PreferencePair]:
    """WebGPT comparisons: the answer with the higher score is better; equal scores tie.

    {"question": {"full_text": "2+2?"}, "answer_0": "4", "answer_1": "5",
     "score_0": 0.5, "score_1": -0.5}
    """
    prompt = row["question"]
    if isinstance(prompt, dict):
        prompt = prompt.get("full_text")
    if not isinstance(prompt, str):
        raise RowError(f"`question` has no `full_text` that is a string; it is {kind_of(prompt)}")
    preference = Preference(number_cell(row, "score_0") - number_cell(row, "score_1"))
    return [compared(prompt, row["answer_0"], row["answer_1"], preference)]


def arena(row: dict, transcript: str) -> list[PreferencePair]:
    """Chatbot Arena: a whole conversation with each of two models.

    {"conversation_a": [messages], "conversation_b": [messages], "winner": "model_a"}
    """
    first = _message_cell(row, "conversation_a")
    return [_compared_conversations(row, first, _message_cell(row, "conversation_b"))]


def human_preference_55k(row: dict, transcript: str) -> list[PreferencePair]:
    """Chatbot Arena's human-preference-55k: a list of prompts, and a list of replies per model.

    {"prompt": '["2+2?"]', "response_a": '["4"]', "response_b": '["5"]', "winner_model_a": 1, ...}
    """
    first = turn_by_turn(row, "response_a")
    return [_compared_conversations(row, first, turn_by_turn(row, "response_b"))]


def _compared_conversations(row: dict, first: Messages, second: Messages) -> PreferencePair:
    """Two whole conversations: the last turns are compared, and all earlier ones must be equal."""
    prompt = first[:-1]
    preference = _preference_of(row)
    pair = compared(prompt, first[-1:], second[-1:], preference)
    if prompt != second[:-1]:
        pair["drop"] = "prompts differ"
    return pair


def _message_cell(row: dict, column: str) -> Messages:
    side: Side = ""
    if isinstance(row[column], list | str):
        side = side_of(row[column], f"`{column}`")
    if isinstance(side, str) or not side:
        raise RowError(
            f"`{column}` is {kind_of(row[column])}; "
            "a non-empty list of messages (role, content) is needed"
        )
    return side


def is_json_of_texts(cell: object) -> bool:
    """Whether a cell begins like the JSON of a list of texts."""
    return isinstance(cell, str) and cell.startswith(JSON_LISTS)


def turn_by_turn(row: dict, column: str) -> Messages:
    """The conversation of `prompt` and one column of replies. Both hold one text per turn."""
    prompts = text_cells(row, "prompt")
    replies = text_cells(row, column)
    if len(prompts) != len(replies) or not prompts:
        raise RowError(
            f"{len(prompts)} turns in `prompt` and {len(replies)} in `{column}`; "
            "one reply a turn is needed"
        )
    messages = []
    for prompt, reply in zip(prompts, replies, strict=True):
        messages += user(prompt) + assistant(reply)
    return messages


def helpsteer2_preference(row: dict, transcript: str) -> list[PreferencePair]:
    """HelpSteer2-Preference: two responses and a preference on the scale of `_by_strength`.

    {"prompt": "2+2?", "response_1": "4", "response_2": "5", "preference_strength": -3}
    """
    strength = _signed_strength(row, "preference_strength")
    prompt = needed_prompt(row)
    return [_by_strength(prompt, row["response_1"], row.get("response_2"), strength)]


def helpsteer3(row: dict, transcript: str) -> list[PreferencePair]:
    """HelpSteer3: the same as HelpSteer2-Preference, but the columns have other names.

    {"context": [messages], "response1": "4", "response2": "5", "overall_preference": -3}
    """
    strength = _signed_strength(row, "overall_preference")
    prompt = needed_prompt(row, ("context",))
    return [_by_strength(prompt, row["response1"], row.get("response2"), strength)]


def _signed_strength(row: dict, column: str) -> float:
    """A preference on HelpSteer's scale, whose sign says which response is better.

    Raises:
        RowError: It is no number, or another column names the better response, so that this one may
            be a strength without a sign.
        FileError: It is outside of [-3, 3].
    """
    named = next((name for name in NAMED_LABELS if _names_a_response(row.get(name))), None)
    if named is not None:
        raise RowError(
            f"`{named}` stands beside `{column}`, so which of them says what is better is unclear: "
            f"in `{column}` the sign does, below 0 for the first. Leave one of them out"
        )
    return _on_scale(row, column, -3, 3)


NAMED_RESPONSE = re.compile(r"(?:model|response|answer|output)[_ ]?[ab12]")


def _names_a_response(label: object) -> bool:
    """Whether a label is a number, or names one of two responses or a tie."""
    if isinstance(label, str):
        return bool(NAMED_RESPONSE.fullmatch(label.strip().lower())) or names_a_side(label)
    return is_finite_number(label)


def _on_scale(row: dict, column: str, low: float, high: float) -> float:
    """The number of a cell.

    Raises:
        RowError: It is none, or below `low`, as is a -1 that stands for no number.
        FileError: It is above `high`: the scale is another one in the whole file.
    """
    value = number_cell(row, column)
    outside = f"`{column}` is outside [{low:g}, {high:g}]: {MEND}"
    if value < low:
        raise RowError(outside)
    if value > high:
        raise FileError(outside)
    return value


def _by_strength(prompt: Side, first: object, second: object, strength: float) -> PreferencePair:
    """HelpSteer's scale: from -3 to -1 the first is better, from 1 to 3 the second; 0 is a tie.

    The recipe's `strength_as` decides what becomes of |strength| (reward.data.tokens.labels_of).
    """
    pair = compared(prompt, first, second, Preference(-strength))
    pair["strength"] = abs(strength)
    return pair


def chosen_then_rejected(row: dict, transcript: str) -> list[PreferencePair]:
    """LLaMA-Factory's older comparisons: the outputs are the chosen one and the rejected one.

    {"instruction": "2+2?", "input": "", "output": ["4", "5"]}
    """
    outputs = list_cell(row, "output")
    if len(outputs) != 2:
        raise RowError(
            f"`output` is a list of {len(outputs)}; two are needed, the chosen one and then the "
            "rejected one"
        )
    return [compared(needed_prompt(row), *outputs, Preference(1))]


# --- Labels ---------------------------------------------------------------------------------------


NO_LABEL = (
    "no label: `label` (or `winner`) must be a, b or tie (or 0 for response_a, 1 for response_b, "
    ".5 for a tie), or `votes` must be [votes for a, votes for b]"
)
OTHER_NUMBER = (
    "Another number shows that 0 and 1 may mean something else in this file, so none of its rows "
    "is read: write a, b and tie"
)
NAMED_LABELS = ("winner", "label", "preference")  # the first one that a row has is read
ONE_HOT_LABELS = ("winner_model_a", "winner_model_b", "winner_tie")


def label_read(row: dict) -> set[str]:
    """The columns of the label that `_preference_of` reads of a row."""
    if row.get("votes") is not None:
        return {"votes"}
    if "winner_model_a" in row:
        return set(ONE_HOT_LABELS)
    column = _named_label(row)
    if column is None:
        return set()
    return {column}


def _named_label(row: dict) -> str | None:
    return next((column for column in NAMED_LABELS if column in row), None)


def _preference_of(row: dict) -> Preference:
    """The label of an A/B row: its votes, its one-hot columns, or the name of the better side.

    Raises:
        RowError: The row has no label, or one that is not understood.
    """
    if row.get("votes") is not None:
        for_a, for_b = votes_cell(row)
        return Preference(for_a - for_b, [for_a, for_b])
    if "winner_model_a" in row:  # human-preference-55k has a column for each outcome
        return Preference(_strength_of_one_hot(row))
    column = _named_label(row)
    if column is None:
        raise RowError(NO_LABEL)
    return Preference(_strength_of_label(row[column]))


def _strength_of_one_hot(row: dict) -> float:
    """The label of a row with a column for each outcome, of which one holds a 1."""
    for_a = number_cell(row, "winner_model_a", 0, 1)
    for_b = number_cell(row, "winner_model_b", 0, 1)
    tie = max(0, 1 - for_a - for_b)
    if row.get("winner_tie") is not None:
        tie = number_cell(row, "winner_tie", 0, 1)
    if sorted((for_a, for_b, tie)) != [0, 0, 1]:  # shares of raters or chances are no outcome
        raise RowError(
            "`winner_model_a`, `winner_model_b` and `winner_tie` do not name one outcome; one of "
            f"them must be 1, the others 0: {MEND}"
        )
    return for_a - for_b


def _strength_of_label(label: object) -> int:
    """1 if a label says that the first completion is better, -1 for the second, 0 for a tie.

    A label that is a number is the index of the better completion; .5 is a tie.

    Raises:
        RowError: It says something else.
        FileError: It is another number, so that 1 may be the first one: 1 and 2, 1 and -1.
    """
    if isinstance(label, str):
        try:
            label = number_in(label)  # a CSV cell
        except ValueError:
            return _strength_of_name(label)
    if label == 0 and not isinstance(label, bool):
        return 1
    if label == 1 and not isinstance(label, bool):
        return -1
    if label == 0.5:
        return 0
    if is_finite_number(label):
        raise FileError(f"{NO_LABEL}. {OTHER_NUMBER}")
    raise RowError(NO_LABEL)


def names_a_side(label: object) -> bool:
    """Whether a label is the name of the better side, or of a tie: `model_a`, `A>B`, `tie`."""
    if not isinstance(label, str):
        return False
    try:
        _strength_of_name(label)
    except RowError:
        return False
    return True


def _strength_of_name(label: str) -> int:
    name = label.lower().replace("model_", "").replace("response_", "").strip()
    if name in ("a", "a>b"):
        return 1
    if name in ("b", "b>a"):
        return -1
    if name.startswith("tie") or name in ("a=b", "both", "bothbad", "both_bad", "neither"):
        return 0
    raise RowError(NO_LABEL)
