"""A canonical preference pair, and why it may be useless for training."""

import itertools
import re
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from reward.data.cells import MEND, is_finite_number, kind_of
from reward.data.messages import side_of
from reward.data.prompts import words
from reward.data.transcript_shapes import (
    is_transcript,
    prompt_messages,
    reply_of,
    turns_of,
    without_marks_of_one_turn,
)
from reward.data.transcripts import Messages, RowError, Side, assistant, text_of, user

SIDES = ("chosen", "rejected")

# Notes on pairs that are kept.
AGAINST = "votes or chosen_probability against the chosen side"
RATED_AGAINST = "ratings against the chosen side"


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


def pair_of(prompt: Side, chosen: Side, rejected: Side) -> PreferencePair:
    """A pair with its texts alone."""
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def why_drop(pair: PreferencePair) -> str:
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


# --- Two completions, of which one is better ------------------------------------------------------


@dataclass(frozen=True)
class Preference:
    """Which of two completions the raters prefer."""

    strength: float  # above 0 the first is better, below 0 the second; 0 is a tie
    votes: list[int] | None = None  # [for the first, for the second]; None without votes


def compared(prompt: Side, first: object, second: object, preference: Preference) -> PreferencePair:
    """The pair of two completions: the better one is chosen, or the first one of a tie.

    Args:
        prompt: What both answer.
        first: The cell of a completion.
        second: The cell of the other one.
        preference: Which of them is better.
    """
    sides = [side_of(first, "the first completion"), side_of(second, "the second completion")]
    if all(isinstance(text, str) for text in (prompt, *sides)):
        prompt, sides = without_marks_of_one_turn(prompt, sides)
    chosen, rejected = completions_of(prompt, sides)
    votes = preference.votes
    if preference.strength < 0:
        chosen, rejected = rejected, chosen
        if votes is not None:
            votes = votes[::-1]
    if isinstance(prompt, str):
        prompt = prompt_messages(prompt)
    pair = pair_of(prompt, chosen, rejected)
    if preference.strength == 0:
        pair["chosen_probability"] = 0.5
    if votes is not None:
        pair["votes"] = votes
        pair["chosen_probability"] = probability_of_first(votes)
    return pair


def completions_of(prompt: Side, completions: list[Side]) -> list[Messages]:
    """Completions as messages, each text as it is.

    If the prompt is a transcript, its marks and the white space around them are no text.
    """
    are_texts = all(isinstance(completion, str) for completion in completions)
    if are_texts and isinstance(prompt, str):
        if prompt_messages(prompt) != user(prompt):
            completions = reply_of(prompt, completions)
        else:
            start = repeated_start(prompt, completions)
            if start:
                completions = [after_prompt(completion, start) for completion in completions]
    messages = []
    for completion in completions:
        if isinstance(completion, str):
            completion = _turns_that_repeat(prompt, completion) or assistant(completion)
        if is_whole(completion):
            completion = _without_prompt(prompt, completion)
        messages.append(completion)
    return messages


FEWEST_WORDS = 3  # an answer to "Hi" may well begin with "Hi"
FEWEST_LETTERS = 12  # of a prompt in a language that has no spaces between its words
ENDS = ("?", "!", ":", "\u3002", "\uff1f", "\uff01", "\uff1a")  # behind them no space is needed
LINE_BREAK = re.compile(r"[ \t]*\n")


def repeated_start(prompt: str, completions: list[str]) -> int:
    """The length of the prompt that all completions repeat before their answer; 0 if not all do.

    An answer may well begin with the words of its question: "World War II" with "World War II was".
    So the repeated prompt ends a sentence or a line, and of a single answer a line.
    """
    start = prompt.rstrip()
    if not start or not all(completion.startswith(start) for completion in completions):
        return 0
    has_spaces = start.isascii() or len(start) < FEWEST_LETTERS
    if len(start.split()) < FEWEST_WORDS and has_spaces and not is_transcript(start):
        return 0
    answers = [completion[len(start) :] for completion in completions]
    if not all(answer.strip() for answer in answers):
        return 0
    if not _is_cut_off(start, answers):
        return 0
    if all(completion.startswith(prompt) for completion in completions):
        return len(prompt)
    return len(start)


def _is_cut_off(start: str, answers: list[str]) -> bool:
    """Whether answers are told from the text before them by a line break, or by its last mark."""
    if is_transcript(start) or all(map(LINE_BREAK.match, answers)):
        return True
    if len(answers) == 1:
        return False
    if start.endswith("."):
        return all(answer[0].isspace() for answer in answers)
    return start.endswith(ENDS)


def after_prompt(completion: str, start: int) -> str:
    """A completion behind the prompt that it repeats; the indentation of a first line stays."""
    answer = completion[start:]
    if completion[:start].endswith("\n"):
        return answer.strip("\n").rstrip()
    line_break = LINE_BREAK.match(answer)
    if line_break:
        return answer[line_break.end() :].strip("\n").rstrip()
    return answer.strip()


def probability_of_first(votes: list[int]) -> float:
    """The share of the votes that are for the first side."""
    return votes[0] / sum(votes)


# --- A conversation that stands in two places -----------------------------------------------------

IN_TWO_PLACES = (
    "the conversation stands in the prompt and in a side, and the two differ; leave one of them out"
)


def _without_prompt(prompt: Side, completion: Messages) -> Messages:
    """A completion that is a whole conversation, without the prompt that it repeats.

    Raises:
        RowError: It holds another conversation than the prompt.
    """
    if isinstance(prompt, str):
        prompt = prompt_messages(prompt)
    end = end_of_prompt(prompt, completion)
    if end is not None and is_system(prompt[0]) >= is_system(completion[0]):
        return completion[end:]
    need_one_place(prompt, completion)
    return completion


def _turns_that_repeat(prompt: Side, text: str) -> Messages | None:
    """The turns of a transcript that repeats the prompt; None for any other text.

    A text that begins like a transcript may well be the answer itself: a dialogue.
    """
    if not is_transcript(text):
        return None
    if isinstance(prompt, str):
        prompt = user(prompt)
    try:
        turns = turns_of(text)
    except RowError:
        return None
    if end_of_prompt(prompt, turns) is None:
        return None
    return turns


def need_one_place(prompt: Messages, completion: Messages) -> None:
    """Check that a completion does not ask once more, behind a prompt that waits for an answer.

    Raises:
        RowError: It begins with another turn than the assistant's, and ends with an answer.
    """
    is_conversation = is_whole(completion) and completion[-1]["role"] == "assistant"
    if is_conversation and prompt and prompt[-1]["role"] == "user":
        raise RowError(IN_TWO_PLACES)


def is_whole(side: Messages) -> bool:
    """Whether messages begin before the assistant's turn."""
    return bool(side) and side[0]["role"] not in ("assistant", "tool")


def end_of_prompt(prompt: Messages, side: Messages) -> int | None:
    """Where a side that repeats the prompt goes on after it; None if it does not repeat it.

    A system message may stand in one of the two alone.
    """
    turns = [message for message in prompt if not is_system(message)]
    start = len([message for message in side if is_system(message)])
    end = start + len(turns)
    if not turns or len(side) <= end:
        return None
    if start and is_system(prompt[0]) and _spoken(prompt[0]) != _spoken(side[0]):
        return None
    if [_spoken(message) for message in side[start:end]] != [_spoken(turn) for turn in turns]:
        return None
    return end


def is_system(message: dict) -> bool:
    return message["role"] == "system"


def _spoken(message: dict) -> tuple[str, str]:
    """Who said what, to compare two messages."""
    return message["role"], words(message.get("content") or "")


# --- A ranking of several completions -------------------------------------------------------------

MOST_RANKED = 100  # the completions of one prompt; every two of them are a pair
MOST_TEXT = 50_000_000  # characters of both sides of all pairs of one row


@dataclass(frozen=True)
class Ranked:
    """One completion of a ranking."""

    completion: object  # its cell
    rank: float  # 1 is best
    rating: float | None = None  # on the dataset's own scale; None if it has no ratings


def every_two(prompt: Side, ranking: list[Ranked]) -> list[PreferencePair]:
    """All K(K-1)/2 pairs of K ranked completions (InstructGPT, arXiv 2203.02155, eq. 1)."""
    if len(ranking) < 2:
        raise RowError(
            f"a ranking of {len(ranking)} completion; at least 2 are needed: add one, "
            "or leave the row out"
        )
    need_few(len(ranking))
    sides = []
    for ranked in ranking:
        side = side_of(ranked.completion, "a ranked completion")
        if not is_finite_number(ranked.rank):
            raise RowError(f"a rank is {kind_of(ranked.rank)}; a finite number is needed: {MEND}")
        sides.append(replace(ranked, completion=side))
    need_little(prompt, [ranked.completion for ranked in sides], repeated=len(sides) - 1)
    return [_by_rank(prompt, *couple) for couple in itertools.combinations(sides, 2)]


def need_little(prompt: Side, completions: list[Side], repeated: int = 1) -> None:
    """Refuse a row whose texts, once they are repeated, would fill the memory.

    Args:
        prompt: What the completions answer. Each of them has a copy of it.
        completions: The completions.
        repeated: In how many pairs each completion is.
    """
    text = repeated * len(completions) * len(text_of(prompt))
    text += repeated * sum(len(text_of(completion)) for completion in completions)
    if text > MOST_TEXT:
        raise RowError(
            f"{len(completions):,} completions in one row make {text:,} characters with their "
            f"prompts; at most {MOST_TEXT:,} are read: split the row, or shorten its texts"
        )


def need_few(completions: int) -> None:
    """Refuse a row with so many completions that their pairs would fill the disk."""
    if completions > MOST_RANKED:
        raise RowError(
            f"{completions} completions in one row; at most {MOST_RANKED} are read, because every "
            "two of them are a pair: split the row"
        )


def _by_rank(prompt: Side, first: Ranked, second: Ranked) -> PreferencePair:
    """The pair of two ranked completions: the lower rank is better, equal ranks tie."""
    strength = 0
    if first.rank < second.rank:
        strength = 1
    elif first.rank > second.rank:
        strength = -1
    pair = compared(prompt, first.completion, second.completion, Preference(strength))
    if first.rating is not None:
        pair["rating_chosen"] = max(first.rating, second.rating)
        pair["rating_rejected"] = min(first.rating, second.rating)
    return pair
