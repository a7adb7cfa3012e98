"""Any published preference format -> canonical preference pairs.

    for pair in to_pairs(row, transcript): ...

A format is recognised by the names of its columns, never by the name of its dataset. To add one,
write a function `row -> pair` under the banner that fits, a line in `_pairs_of_format`, the columns
in FORMATS, and a test with a real row (CONTRIBUTING.md).
"""

import itertools
import json
import math
import re
from dataclasses import dataclass
from typing import Any, TypedDict

from reward.data.transcripts import (
    TURN,
    Messages,
    RowError,
    Side,
    assistant,
    clean,
    is_messages,
    is_side,
    is_texts,
    parse_transcript,
    prompt_messages,
    shared_words,
    text_of,
    user,
)

FORMATS = (
    "`chosen, rejected` (transcripts, strings or messages), `prompt, chosen, rejected`, "
    "`prompt, response_a, response_b, label|votes`, "
    "`prompt, response_1, response_2, preference_strength` (HelpSteer2), "
    "`context, response1, response2, overall_preference` (HelpSteer3), "
    "`prompt, response, helpfulness` (two rows a prompt), `prompt, answers[].rank` (Nectar), "
    "`prompt, completions, ranks`, `conversation_a, conversation_b, winner` (arena), "
    "`prompt, chosen[], rejected[]` (RewardBench 2, RM-Bench), "
    "`prompt, text_chosen, text_rejected` (RewardBench scores), "
    "`question, response_A, response_B, label` (JudgeBench), "
    "`input, output_1, output_2, label` (LLMBar)"
)
MEND = "mend the value, or leave it or the row out"
SIDES = ("chosen", "rejected")


class PreferencePair(TypedDict, total=False):
    """A canonical pair.

    The texts, `drop` and `subset` are always set; the other fields are set if the row has them.
    """

    prompt: Side  # what both completions answer; a string under transcript="raw"
    chosen: Side  # the completion that the raters prefer
    rejected: Side  # the other completion
    drop: str  # why the pair cannot be trained on, which the ledger counts; "" if it can
    subset: str | None  # the part of the dataset that the row names
    tools: Any  # the functions that the assistant may call, as the row holds them
    target_margin: float  # the row's column `margin`
    chosen_probability: float  # P(chosen beats rejected) by the raters; .5 is a tie
    votes: list[int]  # how many raters voted [for chosen, for rejected]
    strength: float  # how strong the preference is, from 0 (a tie) to 3
    rating_chosen: float  # the rating of the chosen completion alone, on the dataset's own scale
    rating_rejected: float  # the rating of the rejected completion alone
    bayes_accuracy: float  # simulated raters only: how often the best possible rule is right


def to_pairs(row: dict, transcript: str = "messages") -> list[PreferencePair]:
    """The canonical pairs of one row: one pair, or several if the row has many completions.

    Args:
        row: A row of any format in FORMATS.
        transcript: `messages` splits transcripts and strings into turns, so that an instruct model
            sees its own template; `raw` keeps the text.

    Raises:
        RowError: The columns belong to no format that is read here, or a value is malformed.
    """
    pairs = _pairs_of_format(row, transcript)
    for pair in pairs:
        _add_drop_and_subset(pair, row)
        if row.get("tools") is not None:
            pair["tools"] = row["tools"]
        if row.get("bayes_accuracy") is not None:
            pair["bayes_accuracy"] = _number_cell(row, "bayes_accuracy", 0, 1)
    return pairs


def unread_columns(row: dict) -> list[str]:
    """The columns of a row that `to_pairs` does not read, although they hold something.

    Raises:
        RowError: The columns belong to no format that is read here.
    """
    return []


def _pairs_of_format(row: dict, transcript: str) -> list[PreferencePair]:
    """Read a row as the first format whose columns it has. The order of the formats counts."""
    if _has(row, "chosen", "rejected"):
        if is_texts(row["chosen"]) and is_texts(row["rejected"]):
            return _lists_of_sides(row)
        return [_chosen_and_rejected(row, transcript)]
    if _has(row, "text_chosen", "text_rejected", "prompt"):
        return [_rewardbench(row, transcript)]

    if _has(row, "answers", "prompt"):
        return _nectar(row)
    if _has(row, "completions", "ranks"):
        return _completions_and_ranks(row, "ranks")
    if _has(row, "completions", "ranking"):
        return _completions_and_ranks(row, "ranking")

    if _has(row, "response_a", "response_b", "winner_model_a"):
        return [_human_preference_55k(row)]
    if _has(row, "response_a", "response_b"):
        return [_two_responses(row)]
    if is_judgebench(row):
        return [_judgebench(row)]
    if is_llmbar(row):
        return [_llmbar(row)]
    if _has(row, "conversation_a", "conversation_b"):
        return [_arena(row)]

    if _has(row, "response_1", "preference_strength"):
        return [_helpsteer2_preference(row)]
    if _has(row, "response1", "overall_preference"):
        return [_helpsteer3(row)]
    raise RowError(
        f"columns {sorted(row)} are no preference format that is read here; needed: {FORMATS}"
    )


def _has(row: dict, *columns: str) -> bool:
    """Whether a row has all of these columns, even if a cell is empty."""
    return all(column in row for column in columns)


def is_judgebench(row: dict) -> bool:
    """Whether a row has the columns of JudgeBench."""
    return _has(row, "question", "response_A", "response_B")


def is_llmbar(row: dict) -> bool:
    """Whether a row has the columns of LLMBar."""
    return _has(row, "input", "output_1", "output_2")


def is_rating(row: dict) -> bool:
    """Whether a row is of HelpSteer2's main table.

    That table has one row per completion, and the rows of a prompt follow each other
    (`rating_pairs`).
    """
    return _has(row, "prompt", "response", "helpfulness")


def _add_drop_and_subset(pair: PreferencePair, row: dict) -> None:
    """Set the fields that every pair has. The function of a format may have set `drop` already."""
    if "drop" not in pair:
        pair["drop"] = _why_drop(pair)
    pair["subset"] = _subset(row)


def _why_drop(pair: PreferencePair) -> str:
    """Why a pair cannot be trained on; "" if it can."""
    for side in SIDES:
        if _has_no_answer(pair[side]):
            return f"no answer ({side})"
        if _is_empty(pair[side]):
            return f"empty completion ({side})"
    if pair["chosen"] == pair["rejected"]:
        return "identical sides"
    return ""


def _has_no_answer(completion: Side) -> bool:
    """Whether a completion is messages that do not end with a turn of the assistant."""
    if isinstance(completion, str):
        return False
    return not completion or completion[-1]["role"] != "assistant"


def _is_empty(completion: Side) -> bool:
    """Whether a completion has no words and calls no tool."""
    if text_of(completion).strip():
        return False
    if isinstance(completion, str):
        return True
    return not any(message.get("tool_calls") for message in completion)


def _subset(row: dict) -> str | None:
    """The part of the dataset that the row names; None if it names none."""
    for column in ("subset", "source", "domain"):
        if isinstance(row.get(column), str):
            return row[column] or None
    return None


# --- A chosen and a rejected side -----------------------------------------------------------------


def _chosen_and_rejected(row: dict, transcript: str) -> PreferencePair:
    """TRL's preference format and HH-RLHF's transcripts, with a prompt of its own or without.

        {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
        {"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": ...}

    Any of the texts may be messages instead. The row may have labels too, see `_add_labels`.
    """
    chosen = row["chosen"]
    rejected = row["rejected"]
    prompt = row.get("prompt")
    _need_side("`chosen`", chosen)
    _need_side("`rejected`", rejected)
    if type(chosen) is not type(rejected):
        raise RowError(
            f"`chosen` is {_kind_of(chosen)} and `rejected` is {_kind_of(rejected)}; "
            "both sides need one form"
        )
    if prompt is not None:
        _need_side("`prompt`", prompt)
    if isinstance(chosen, list):
        pair = _message_sides(prompt, chosen, rejected)
    else:
        pair = _text_sides(prompt, chosen, rejected, transcript)
    _add_labels(pair, row)
    return pair


def _message_sides(prompt: Side | None, chosen: Messages, rejected: Messages) -> PreferencePair:
    """Both sides as messages: the completions of a prompt, or whole conversations."""
    chosen = clean(chosen)
    rejected = clean(rejected)
    if isinstance(prompt, list) and prompt:
        return _pair(clean(prompt), chosen, rejected)
    if isinstance(prompt, str) and chosen and chosen[0]["role"] == "assistant":
        return _pair(user(prompt), chosen, rejected)
    # UltraFeedback holds the whole conversation on both sides and repeats the prompt as a string.
    return _last_turns(chosen, rejected)


def _last_turns(chosen: Messages, rejected: Messages) -> PreferencePair:
    """Two whole conversations: what comes before the last turn is the prompt of both."""
    pair = _pair(chosen[:-1], chosen[-1:], rejected[-1:])
    if chosen[:-1] != rejected[:-1]:
        pair["drop"] = "prompts differ"
    return pair


def _text_sides(prompt: Side | None, chosen: str, rejected: str, transcript: str) -> PreferencePair:
    """Both sides as text: the completions of a prompt, transcripts, or texts with one start."""
    if isinstance(prompt, list) and prompt:
        return _pair(clean(prompt), assistant(chosen), assistant(rejected))
    if isinstance(prompt, str):
        return _explicit_texts(prompt, chosen, rejected, transcript)
    are_transcripts = TURN.match(chosen) and TURN.match(rejected)
    if not are_transcripts:
        return _implicit_texts(chosen, rejected, transcript)
    if transcript == "raw":
        return _raw_transcripts(chosen, rejected)
    return _last_turns(parse_transcript(chosen), parse_transcript(rejected))


def _explicit_texts(prompt: str, chosen: str, rejected: str, transcript: str) -> PreferencePair:
    """A prompt and two completions, all of them text."""
    if transcript == "raw":
        return _pair(prompt, chosen, rejected)
    if not TURN.match(prompt):
        return _pair(user(prompt), assistant(chosen), assistant(rejected))
    # The prompt is a transcript up to "\n\nAssistant:", as in Nectar or exports of HH-RLHF.
    chosen = chosen.strip()
    rejected = rejected.strip()
    return _pair(prompt_messages(prompt), assistant(chosen), assistant(rejected))


def _raw_transcripts(chosen: str, rejected: str) -> PreferencePair:
    """Two transcripts kept as text: all up to the mark of the last turn is the prompt of both.

    `_last_turns` does the same for messages.
    """
    prompt, completion = _cut_at_last_turn(chosen)
    rejected_prompt, rejected_completion = _cut_at_last_turn(rejected)
    pair = _pair(prompt, completion, rejected_completion)
    if prompt != rejected_prompt:
        pair["drop"] = "prompts differ"
    elif prompt.endswith("Human:"):  # on both sides
        pair["drop"] = "no answer (rejected)"
    return pair


def _cut_at_last_turn(text: str) -> tuple[str, str]:
    """Cut a transcript after the mark of its last turn: into the prompt and the completion."""
    *_, last_mark = TURN.finditer(text)
    cut = last_mark.end()
    return text[:cut], text[cut:]


def _implicit_texts(chosen: str, rejected: str, transcript: str) -> PreferencePair:
    """Two texts without turns: the words at the start that both have are the prompt."""
    cut = shared_words(chosen, rejected)
    prompt = chosen[:cut]
    chosen = chosen[cut:]
    rejected = rejected[cut:]
    if transcript == "raw":
        return _pair(prompt, chosen, rejected)
    prompt = user(prompt.strip())
    chosen = assistant(chosen.strip())
    rejected = assistant(rejected.strip())
    return _pair(prompt, chosen, rejected)


def _rewardbench(row: dict, transcript: str) -> PreferencePair:
    """RewardBench's score files: a whole conversation on each side, and the prompt by itself.

    {"prompt": "2+2?", "text_chosen": "2+2?\\n\\n4", "text_rejected": "2+2?\\n\\n5"}
    """
    prompt = row["prompt"]
    chosen = row["text_chosen"]
    rejected = row["text_rejected"]
    both_text = isinstance(chosen, str) and isinstance(rejected, str)
    if is_messages(chosen) and is_messages(rejected):
        prompt = None  # the conversations hold it
    elif both_text and is_side(prompt):
        start = text_of(prompt)
        if start and chosen.startswith(start) and rejected.startswith(start):
            chosen = _after_prompt(chosen, start)
            rejected = _after_prompt(rejected, start)
        prompt = prompt or ""
    sides = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return _chosen_and_rejected(row | sides, transcript)


def _after_prompt(text: str, prompt: str) -> str:
    return text.removeprefix(prompt).removeprefix("\n\n")


def _lists_of_sides(row: dict) -> list[PreferencePair]:
    """RewardBench 2 and RM-Bench: every chosen completion against every rejected one.

    {"prompt": "2+2?", "chosen": ["4"], "rejected": ["5", "6", "22"]}
    """
    return [
        _compared(row.get("prompt"), chosen, rejected, Preference(1))
        for chosen in row["chosen"]
        for rejected in row["rejected"]
    ]


def _add_labels(pair: PreferencePair, row: dict) -> None:
    """Copy the labels of a row with a chosen and a rejected side, if it has any."""
    if row.get("margin") is not None:
        pair["target_margin"] = _number_cell(row, "margin")
    if row.get("votes") is not None:
        pair["votes"] = _votes(row)
        pair["chosen_probability"] = _probability_of_first(pair["votes"])
    if _has_values(row, "rating_chosen", "rating_rejected"):
        _add_ratings(pair, row, "rating_chosen", "rating_rejected")
    elif _has_values(row, "score_chosen", "score_rejected"):
        # UltraFeedback-binarized calls its ratings scores.
        _add_ratings(pair, row, "score_chosen", "score_rejected")
    if row.get("chosen_probability") is not None:
        pair["chosen_probability"] = _number_cell(row, "chosen_probability", 0, 1)


def _has_values(row: dict, *columns: str) -> bool:
    return all(row.get(column) is not None for column in columns)


def _add_ratings(pair: PreferencePair, row: dict, chosen_column: str, rejected_column: str) -> None:
    pair["rating_chosen"] = _number_cell(row, chosen_column)
    pair["rating_rejected"] = _number_cell(row, rejected_column)
    tie = pair["rating_chosen"] == pair["rating_rejected"]
    if tie and "votes" not in pair:  # votes say more than equal ratings
        pair["chosen_probability"] = 0.5


# --- Two completions and a label that says which is better ----------------------------------------


@dataclass(frozen=True)
class Preference:
    """Which of two completions the raters prefer."""

    strength: float  # above 0 the first is better, below 0 the second; 0 is a tie
    votes: list[int] | None = None  # [for the first, for the second]; None without votes


def _compared(
    prompt: object, first: object, second: object, preference: Preference
) -> PreferencePair:
    """The pair of two completions: the better one is chosen, or the first one of a tie."""
    _need_side("the first completion", first)
    _need_side("the second completion", second)
    chosen = _completion(first)
    rejected = _completion(second)
    votes = preference.votes
    if preference.strength < 0:
        chosen, rejected = rejected, chosen
        if votes is not None:
            votes = votes[::-1]
    pair = _pair(_prompt(prompt), chosen, rejected)
    if preference.strength == 0:
        pair["chosen_probability"] = 0.5
    if votes is not None:
        pair["votes"] = votes
        pair["chosen_probability"] = _probability_of_first(votes)
    return pair


def _two_responses(row: dict) -> PreferencePair:
    """Two responses, and a label or votes.

    {"prompt": "2+2?", "response_a": "4", "response_b": "5", "votes": [3, 0]}
    """
    preference = _preference_of(row)
    return _compared(row.get("prompt"), row["response_a"], row["response_b"], preference)


def _judgebench(row: dict) -> PreferencePair:
    """JudgeBench.

    {"question": "2+2?", "response_A": "4", "response_B": "5", "label": "A>B"}
    """
    preference = _preference_of(row)
    return _compared(row["question"], row["response_A"], row["response_B"], preference)


def _llmbar(row: dict) -> PreferencePair:
    """LLMBar, whose label is the number of the better output.

    {"input": "2+2?", "output_1": "4", "output_2": "5", "label": 1}
    """
    better = _number_cell(row, "label", 1, 2)
    if better not in (1, 2):
        raise RowError(f"`label` is neither 1 nor 2, the better output: {MEND}")
    preference = Preference(strength=3 - 2 * better)
    return _compared(row["input"], row["output_1"], row["output_2"], preference)


def _arena(row: dict) -> PreferencePair:
    """Chatbot Arena: a whole conversation with each of two models.

    {"conversation_a": [messages], "conversation_b": [messages], "winner": "model_a"}
    """
    first = _message_cell(row, "conversation_a")
    return _compared_conversations(row, first, _message_cell(row, "conversation_b"))


def _human_preference_55k(row: dict) -> PreferencePair:
    """Chatbot Arena's human-preference-55k: a list of prompts, and a list of replies per model.

    {"prompt": '["2+2?"]', "response_a": '["4"]', "response_b": '["5"]', "winner_model_a": 1, ...}
    """
    first = _interleaved(row, "response_a")
    return _compared_conversations(row, first, _interleaved(row, "response_b"))


def _compared_conversations(row: dict, first: Messages, second: Messages) -> PreferencePair:
    """Two whole conversations: the last turns are compared, and all earlier ones must be equal."""
    prompt = first[:-1]
    preference = _preference_of(row)
    pair = _compared(prompt, first[-1:], second[-1:], preference)
    if prompt != second[:-1]:
        pair["drop"] = "prompts differ"
    return pair


def _interleaved(row: dict, column: str) -> Messages:
    """The conversation of `prompt` and one column of replies. Both hold one text per turn."""
    prompts = _text_cells(row, "prompt")
    replies = _text_cells(row, column)
    if len(prompts) != len(replies) or not prompts:
        raise RowError(
            f"{len(prompts)} turns in `prompt` and {len(replies)} in `{column}`; "
            "one reply a turn is needed"
        )
    messages = []
    for prompt, reply in zip(prompts, replies, strict=True):
        messages += user(prompt) + assistant(reply)
    return messages


def _helpsteer2_preference(row: dict) -> PreferencePair:
    """HelpSteer2-Preference: two responses and a preference on the scale of `_by_strength`.

    {"prompt": "2+2?", "response_1": "4", "response_2": "5", "preference_strength": -3}
    """
    strength = _number_cell(row, "preference_strength", -3, 3)
    return _by_strength(row.get("prompt"), row["response_1"], row.get("response_2"), strength)


def _helpsteer3(row: dict) -> PreferencePair:
    """HelpSteer3: the same as HelpSteer2-Preference, but the columns have other names.

    {"context": [messages], "response1": "4", "response2": "5", "overall_preference": -3}
    """
    strength = _number_cell(row, "overall_preference", -3, 3)
    return _by_strength(row.get("context"), row["response1"], row.get("response2"), strength)


def _by_strength(prompt: object, first: object, second: object, strength: float) -> PreferencePair:
    """HelpSteer's scale: from -3 to -1 the first is better, from 1 to 3 the second; 0 is a tie.

    The recipe's `strength_as` decides what becomes of |strength| (reward.data.tokens.labels_of).
    """
    pair = _compared(prompt, first, second, Preference(-strength))
    pair["strength"] = abs(strength)
    return pair


NO_LABEL = (
    "no label: `label` (or `winner`) must be a, b or tie (or 0 for response_a, 1 for response_b, "
    ".5 for a tie), or `votes` must be [votes for a, votes for b]"
)


def _preference_of(row: dict) -> Preference:
    """The label of an A/B row: its votes, its one-hot columns, or the name of the better side.

    Raises:
        RowError: The row has no label, or one that is not understood.
    """
    if row.get("votes") is not None:
        for_a, for_b = _votes(row)
        return Preference(for_a - for_b, [for_a, for_b])
    if "winner_model_a" in row:  # human-preference-55k has a column for each outcome
        return Preference(_number_cell(row, "winner_model_a") - _number_cell(row, "winner_model_b"))
    for column in ("winner", "label", "preference"):
        if column in row:
            return Preference(_strength_of_label(row[column]))
    raise RowError(NO_LABEL)


def _strength_of_label(label: object) -> int:
    """1 if a label says that the first completion is better, -1 for the second, 0 for a tie.

    A label that is a number is the index of the better completion; .5 is a tie.
    """
    if isinstance(label, str):
        try:
            label = float(label)  # a number in a CSV cell
        except ValueError:
            return _strength_of_name(label)
    if label == 0 and not isinstance(label, bool):
        return 1
    if label == 1 and not isinstance(label, bool):
        return -1
    if label == 0.5:
        return 0
    raise RowError(NO_LABEL)


def _strength_of_name(label: str) -> int:
    name = label.lower().replace("model_", "").replace("response_", "").strip()
    if name in ("a", "a>b"):
        return 1
    if name in ("b", "b>a"):
        return -1
    if name.startswith("tie") or name in ("a=b", "both", "bothbad", "neither"):
        return 0
    raise RowError(NO_LABEL)


# --- A ranking of several completions -------------------------------------------------------------


@dataclass(frozen=True)
class Ranked:
    """One completion of a ranking."""

    completion: Side
    rank: float  # 1 is best
    rating: float | None = None  # on the dataset's own scale; None if it has no ratings


def _nectar(row: dict) -> list[PreferencePair]:
    """Nectar: a prompt and a list of answers, each with its rank.

    {"prompt": "2+2?", "answers": [{"answer": "4", "rank": 1}, {"answer": "5", "rank": 2}]}
    """
    answers = _list_cell(row, "answers")
    if not all(isinstance(answer, dict) for answer in answers):
        raise RowError("`answers` is a list of something else than mappings (answer, rank)")
    ranking = [Ranked(answer.get("answer"), answer.get("rank")) for answer in answers]
    return _every_two(row["prompt"], ranking)


def _completions_and_ranks(row: dict, rank_column: str) -> list[PreferencePair]:
    """A prompt, a list of completions and a list of their ranks.

    {"prompt": "2+2?", "completions": ["4", "5"], "ranks": [1, 2]}
    """
    ranks = _list_cell(row, rank_column)
    completions = _list_cell(row, "completions")
    if len(ranks) != len(completions):
        raise RowError(
            f"{len(completions)} `completions` but {len(ranks)} ranks; "
            "one rank a completion is needed"
        )
    ranking = [Ranked(*both) for both in zip(completions, ranks, strict=True)]
    return _every_two(row.get("prompt"), ranking)


def rating_pairs(rows: list[dict]) -> list[PreferencePair]:
    """All pairs of the rated completions of one prompt.

    The more helpful completion is chosen, and equal ratings are ties. The ratings decide the order
    and nothing else: they become no preference strength. HelpSteer2's own reward models regress on
    the ratings (arXiv 2406.08673), and its pairwise ones use preference strengths (arXiv
    2410.01257).

    Args:
        rows: The rows of one prompt, for each of which `is_rating` is true. One row alone gives a
            pair that is dropped.

    Raises:
        RowError: A value is malformed.
    """
    ranking = []
    for row in rows:
        helpfulness = _number_cell(row, "helpfulness")
        ranking.append(Ranked(row["response"], rank=-helpfulness, rating=helpfulness))
    prompt = rows[0]["prompt"]
    if len(ranking) == 1:
        pairs = _every_two(prompt, ranking * 2)
        pairs[0]["drop"] = "one rated completion"
    else:
        pairs = _every_two(prompt, ranking)
    for pair in pairs:
        _add_drop_and_subset(pair, rows[0])
    return pairs


def _every_two(prompt: object, ranking: list[Ranked]) -> list[PreferencePair]:
    """All K(K-1)/2 pairs of K ranked completions (InstructGPT, arXiv 2203.02155, eq. 1)."""
    if len(ranking) < 2:
        raise RowError(
            f"a ranking of {len(ranking)} completion; at least 2 are needed: add one, "
            "or leave the row out"
        )
    for ranked in ranking:
        _need_side("a ranked completion", ranked.completion)
        if not _is_finite_number(ranked.rank):
            raise RowError(f"a rank is {_kind_of(ranked.rank)}; a finite number is needed: {MEND}")
    return [_by_rank(prompt, *couple) for couple in itertools.combinations(ranking, 2)]


def _by_rank(prompt: object, first: Ranked, second: Ranked) -> PreferencePair:
    """The pair of two ranked completions: the lower rank is better, equal ranks tie."""
    strength = 0
    if first.rank < second.rank:
        strength = 1
    elif first.rank > second.rank:
        strength = -1
    pair = _compared(prompt, first.completion, second.completion, Preference(strength))
    if first.rating is not None:
        pair["rating_chosen"] = max(first.rating, second.rating)
        pair["rating_rejected"] = min(first.rating, second.rating)
    return pair


# --- Cells of a row -------------------------------------------------------------------------------


def _pair(prompt: Side, chosen: Side, rejected: Side) -> PreferencePair:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _need_side(name: str, value: object) -> None:
    if not is_side(value):
        raise RowError(
            f"{name} is {_kind_of(value)}; a string or a list of messages (role, content) is needed"
        )


def _prompt(prompt: object) -> Messages:
    """The cell of a prompt as messages."""
    _need_side("`prompt`", prompt)
    if isinstance(prompt, str):
        return prompt_messages(prompt)
    return clean(prompt)


def _completion(completion: Side) -> Messages:
    """The cell of a completion as messages."""
    if isinstance(completion, str):
        return assistant(completion.strip())
    return clean(completion)


def _message_cell(row: dict, column: str) -> Messages:
    if not is_messages(row[column]) or not row[column]:
        raise RowError(
            f"`{column}` is {_kind_of(row[column])}; "
            "a non-empty list of messages (role, content) is needed"
        )
    return clean(row[column])


def _list_cell(row: dict, column: str) -> list:
    if not isinstance(row[column], list):
        raise RowError(f"`{column}` is {_kind_of(row[column])}; a list is needed")
    return row[column]


JSON_LISTS = ('["', "[null", "[]")  # how the JSON of a list of texts can start


def _text_cells(row: dict, column: str) -> list[str]:
    """The texts of a cell that is a list, the JSON of one, or a plain string.

    A null means that the model failed. It becomes an empty text.
    """
    value = row.get(column)
    if isinstance(value, str) and value.lstrip().startswith(JSON_LISTS):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise RowError(f"`{column}` starts like a JSON list and is none") from None
    if isinstance(value, str):
        value = [value]
    is_list = isinstance(value, list)
    if not is_list or not all(isinstance(text, str | None) for text in value):
        raise RowError(f"`{column}` is {_kind_of(value)}; a string or a list of strings is needed")
    return [(text or "").strip() for text in value]


def _number_cell(row: dict, column: str, low: float = -math.inf, high: float = math.inf) -> float:
    """The number of a cell, which must be finite and between `low` and `high`."""
    value = row.get(column)
    if isinstance(value, str):  # a CSV cell
        try:
            value = float(value)
        except ValueError:
            raise RowError(
                f"`{column}` is text that is no number; a number is needed: {MEND}"
            ) from None
    if not _is_finite_number(value):
        raise RowError(f"`{column}` is {_kind_of(value)}; a finite number is needed: {MEND}")
    if not low <= value <= high:
        raise RowError(f"`{column}` is outside [{low:g}, {high:g}]: {MEND}")
    return value


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)


TWO_COUNTS = re.compile(r"\s*\[\s*\d+\s*,\s*\d+\s*\]\s*")  # the JSON of votes


def _votes(row: dict) -> list[int]:
    """The two counts of `votes`: [for the first or chosen, for the second or rejected]."""
    votes = row["votes"]
    if isinstance(votes, dict):  # {a, b} or {chosen, rejected}, in whatever order the keys come
        votes = [votes[key] for key in sorted(votes)]
    if isinstance(votes, str) and TWO_COUNTS.fullmatch(votes):
        votes = json.loads(votes)  # a CSV cell
    is_couple = isinstance(votes, list) and len(votes) == 2
    if not is_couple or not all(_is_count(count) for count in votes):
        raise RowError(
            f"`votes` is {_kind_of(votes)}; "
            f"two counts [for the first, for the second] are needed: {MEND}"
        )
    if sum(votes) == 0:
        raise RowError(f"`votes` sum to 0; at least one vote is needed: {MEND}")
    return votes


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _probability_of_first(votes: list[int]) -> float:
    return votes[0] / sum(votes)


KINDS = {
    type(None): "missing",
    str: "a string",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
}


def _kind_of(value: object) -> str:
    """What a value is, in words that name no content."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    return KINDS.get(type(value), type(value).__name__)
