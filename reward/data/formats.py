"""Any published preference format -> canonical preference pairs.

    for pair in to_pairs(row, transcript): ...
    unread_columns(row)                       # what of the row is in no pair

A format is recognised by the names of its columns, never by the name of its dataset. To add one,
write a function `row -> pairs` in the file that fits, its line in FORMATS, and a test with a real
row (CONTRIBUTING.md). docs/inputs.md lists them all.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from reward.data.cells import number_cell, tools_cell
from reward.data.columns import columns_in_words
from reward.data.labelled_formats import (
    arena,
    chosen_then_rejected,
    helpsteer2_preference,
    helpsteer3,
    human_preference_55k,
    judgebench,
    label_read,
    llmbar,
    number_read,
    safe_rlhf,
    stanford_human_preferences,
    two_responses,
    webgpt,
)
from reward.data.messages import other_keys, side_of
from reward.data.preference_pair import SIDES, PreferencePair, why_drop
from reward.data.prompts import (
    PROMPT_COLUMNS,
    SYSTEM_COLUMNS,
    check_nothing_lost,
    find_prompt,
    system_of,
    with_system,
)
from reward.data.ranked_formats import (
    are_rated_mappings,
    completions_and_ranks,
    is_rating,
    nectar,
    rated_completions,
    score_key,
    ultrafeedback,
    without_ranks,
)
from reward.data.sided_formats import (
    chosen_and_rejected,
    has_lists_of_sides,
    labels_read,
    lists_of_sides,
    rewardbench,
    rewardbench_reads,
)
from reward.data.transcripts import RowError, Side, is_messages, text_of

__all__ = [
    "PreferencePair",
    "RowError",
    "is_rating",
    "rating_pairs",
    "same_request",
    "text_of",
    "to_pairs",
    "unread_columns",
]

PairsOfRow = Callable[[dict, str], list[PreferencePair]]


@dataclass(frozen=True)
class Format:
    """A layout of preference rows: how one is recognised, and what is read of it."""

    columns: tuple[str, ...]  # every row of this format has them
    pairs: PairsOfRow  # from a row and `messages` or `raw` to its pairs
    others: tuple[str, ...] = ()  # columns that it reads where a row has them
    labels: Callable[[dict], set[str]] = lambda row: set()  # the columns of labels that it reads
    prompt: tuple[str, ...] = PROMPT_COLUMNS  # where its prompt may stand
    names_sides: bool = False  # whether it says itself which completion is chosen

    def fits(self, row: dict) -> bool:
        """Whether a row has the columns of this format, even if a cell is empty."""
        return all(column in row for column in self.columns)


def _one(read: Callable[[dict, str], PreferencePair]) -> PairsOfRow:
    """A function that gives the one pair of a row, as one that gives a list of pairs."""
    return lambda row, transcript: [read(row, transcript)]


CHOSEN_AND_REJECTED = Format(
    ("chosen", "rejected"),
    _one(chosen_and_rejected),
    labels=labels_read,
    names_sides=True,
)
LISTS_OF_SIDES = Format(("chosen", "rejected"), lists_of_sides, names_sides=True)
REWARDBENCH = Format(
    ("text_chosen", "text_rejected", "prompt"),
    rewardbench,
    labels=rewardbench_reads,
    prompt=(),
    names_sides=True,
)
JUDGEBENCH = Format(
    ("question", "response_A", "response_B"), judgebench, labels=label_read, prompt=("question",)
)
LLMBAR = Format(("output_1", "output_2"), llmbar, labels=number_read)
ULTRAFEEDBACK = Format(("completions",), ultrafeedback, names_sides=True)
WITHOUT_RANKS = Format(("completions",), without_ranks, names_sides=True)
COMPARISON = Format(("output",), chosen_then_rejected)

# The first format whose columns a row has is the one that it is read as; the order counts.
FORMATS = (
    REWARDBENCH,
    Format(("answers", "prompt"), nectar, names_sides=True),
    Format(("completions", "ranks"), completions_and_ranks, names_sides=True),
    Format(("completions", "ranking"), completions_and_ranks, names_sides=True),
    Format(
        ("response_a", "response_b", "winner_model_a"),
        human_preference_55k,
        labels=label_read,
        prompt=("prompt",),
    ),
    Format(("response_a", "response_b"), two_responses, labels=label_read),
    JUDGEBENCH,
    LLMBAR,
    Format(("conversation_a", "conversation_b"), arena, labels=label_read, prompt=()),
    Format(("response_1", "preference_strength"), helpsteer2_preference, ("response_2",)),
    Format(("response1", "overall_preference"), helpsteer3, ("response2",), prompt=("context",)),
    Format(("response_0", "response_1", "better_response_id"), safe_rlhf),
    Format(
        ("human_ref_A", "human_ref_B", "labels"), stanford_human_preferences, prompt=("history",)
    ),
    Format(("question", "answer_0", "answer_1", "score_0", "score_1"), webgpt, prompt=()),
)

# The keys that are read of the mappings in a column.
KEYS_READ = {
    "answers": {"answer", "rank"},
    "question": {"full_text"},
}


def to_pairs(row: dict, transcript: str = "messages") -> list[PreferencePair]:
    """The canonical pairs of one row: one pair, or several if the row has many completions.

    Args:
        row: A row of any format in docs/inputs.md.
        transcript: `messages` splits transcripts and strings into turns, so that an instruct model
            sees its own template; `raw` keeps the text.

    Raises:
        RowError: The columns belong to no format that is read here, a value is malformed, or a part
            of the conversation would be passed over.
    """
    row = _without_named_sides(row)
    layout = format_of(row)
    pairs = layout.pairs(row, transcript)
    if len(row) > len(layout.columns):
        unread = [name for name in _unread(layout, row) if name not in layout.columns]
        _add_the_rest(pairs, row, unread)
    for pair in pairs:
        _add_drop_and_subset(pair, row)
    return pairs


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
    pairs = rated_completions(rows)
    for row in rows[1:]:
        check_nothing_lost(row, unread_columns(row), _sides(pairs))
    _add_the_rest(pairs, rows[0], unread_columns(rows[0]))
    for pair in pairs:
        _add_drop_and_subset(pair, rows[0])
    return pairs


def same_request(first: dict, second: dict) -> bool:
    """Whether two rated completions answer the same prompt, with the same system text and tools."""
    columns = ("prompt", "tools", *SYSTEM_COLUMNS)
    return all(first.get(column) == second.get(column) for column in columns)


def format_of(row: dict) -> Format:
    """The format that a row is read as.

    Raises:
        RowError: Its columns belong to no format.
    """
    if CHOSEN_AND_REJECTED.fits(row):
        if has_lists_of_sides(row):
            return LISTS_OF_SIDES
        return CHOSEN_AND_REJECTED
    for layout in FORMATS:
        if layout.fits(row):
            return layout
    if "completions" in row:
        if are_rated_mappings(row):
            return ULTRAFEEDBACK
        return WITHOUT_RANKS
    if isinstance(row.get("output"), list):
        return COMPARISON
    if row.keys() >= {"completion", "label"}:
        raise RowError(
            "`completion` and `label` are single answers with a label each (KTO), and no pairs; "
            "make rows (prompt, chosen, rejected) of two answers to one prompt"
        )
    names = _names_for_the_example(row)
    columns = ",".join(f"{ours}={theirs}" for ours, theirs in names.items())
    raise RowError(
        f"columns {columns_in_words(row)} are no preference format that is read here; needed: "
        "`prompt, chosen, rejected` or a layout of docs/inputs.md. Other names: --columns "
        f"{columns}; train_rm.py: --datasets "
        f"'[{{path: FILE, columns: {{prompt: {names['prompt']}}}}}]'"
    )


PLAIN_NAME = re.compile(r"\w{1,30}")  # of a column: it can stand in a command as it is


def _names_for_the_example(row: dict) -> dict[str, str]:
    """Our names of columns -> names as a row has them, where only capitals or spaces differ."""
    names = {"prompt": "my_question", "chosen": "good", "rejected": "bad"}
    for column in row:
        name = str(column).strip().lower()
        if name in names and PLAIN_NAME.fullmatch(str(column)):
            names[name] = str(column)
    answers = _two_answers(row)
    if answers:  # of which a label says the better one, so that neither is always `chosen`
        names = {"prompt": names["prompt"], "response_a": answers[0], "response_b": answers[1]}
    return names


FIRST_AND_SECOND = (("a", "b"), ("A", "B"), ("1", "2"), ("0", "1"))


def _two_answers(row: dict) -> tuple[str, str] | None:
    """Two columns such as `response_1` and `response_2`; None if the row has no such two."""
    for column in map(str, row):
        for first, second in FIRST_AND_SECOND:
            other = column.removesuffix(first) + second
            is_answer = ANSWER.search(column) and PLAIN_NAME.fullmatch(column)
            if is_answer and column.endswith(first) and other in row:
                return column, other
    return None


ANSWER = re.compile(r"(?i)response|answer|output|completion|reply|text|candidate")


def is_judgebench(row: dict) -> bool:
    """Whether a row has the columns of JudgeBench."""
    return JUDGEBENCH.fits(row)


def is_llmbar(row: dict) -> bool:
    """Whether a row has the columns of LLMBar."""
    return LLMBAR.fits(row) and "input" in row


def named_for_scoring(row: dict) -> set[str]:
    """The columns that scoring adds to a row whose format names no chosen side.

    They are `chosen` and `rejected`, and `prompt` if the row has none of its own.
    """
    if "chosen" not in row:
        return set()
    for layout in FORMATS:
        if layout.fits(row) and not layout.names_sides:
            own = [column for column in layout.prompt if row.get(column)]
            if own == ["prompt"] or _sides_hold_the_prompt(row):
                return {"chosen", "rejected"}
            return {"prompt", "chosen", "rejected"}
    return set()


def _sides_hold_the_prompt(row: dict) -> bool:
    """Whether the named sides are whole conversations: the row has a prompt of its own."""
    prompt, chosen = row.get("prompt"), row["chosen"]
    if isinstance(chosen, str):
        return isinstance(prompt, str) and prompt != "" and chosen.startswith(prompt)
    return is_messages(chosen) and bool(chosen) and chosen[0]["role"] != "assistant"


def _without_named_sides(row: dict) -> dict:
    """A row that score.py wrote, without the sides that it has named.

    The format's own columns say more: whether the raters tie, and how strong a preference is.
    """
    if "reward_chosen" not in row or "reward_rejected" not in row:
        return row
    added = named_for_scoring(row)
    return {column: value for column, value in row.items() if column not in added}


# --- What of a row is read ------------------------------------------------------------------------


def unread_columns(row: dict) -> list[str]:
    """What `to_pairs` does not read of a row: columns that hold something, and keys inside of them.

    `source` is a column, `answers[].model` a key of the mappings in a column.

    Raises:
        RowError: The columns belong to no format that is read here.
    """
    if len(row) == 2 and CHOSEN_AND_REJECTED.fits(row) and isinstance(row["chosen"], str):
        return []  # HH-RLHF: the common case is the fast one
    row = _without_named_sides(row)
    if is_rating(row):
        read = {"prompt", "response", "helpfulness", *_common_columns(row)}
        return _unread_cells(row, read)
    return _unread(format_of(row), row)


def _unread(layout: Format, row: dict) -> list[str]:
    read = {*layout.columns, *layout.others, *_common_columns(row)}
    if layout is REWARDBENCH:
        read.remove("prompt")  # it may say what the sides say already
    read |= layout.labels(row)
    if layout.prompt:
        found = find_prompt(row, layout.prompt)
        if found is not None:
            read |= set(found.columns)
    return _unread_cells(row, read)


def _common_columns(row: dict) -> set[str]:
    """The columns that are read whatever the format."""
    read = {"tools", "bayes_accuracy"}
    subset = _subset_column(row)
    if subset:
        read.add(subset)
    for column in SYSTEM_COLUMNS:
        if row.get(column):
            read.add(column)
            break
    return read


def _unread_cells(row: dict, read: set[str]) -> list[str]:
    """The columns that are not read and hold something, and the unread keys of those that are."""
    names = []
    for column, value in row.items():
        if value is None or value == "":
            continue
        if column not in read:
            names.append(str(column))
        elif isinstance(value, list | dict) and column not in ("tools", "votes"):
            names += _unread_keys(str(column), value)
    return names


def _unread_keys(column: str, value: list | dict) -> list[str]:
    """The keys of the mappings in a cell that are not read, as `column[].key`."""
    if isinstance(value, dict):
        value = [value]
    mappings = [item for item in value if isinstance(item, dict)]
    if not mappings:
        return []
    if column == "completions" and any("response" in item for item in mappings):
        unread = _keys_without(mappings, {"response", score_key(mappings)})
    elif column in KEYS_READ:
        unread = _keys_without(mappings, KEYS_READ[column])
    else:
        unread = other_keys(side_of(value, f"`{column}`"))
    return [f"{column}[].{key}" for key in unread]


def _keys_without(mappings: list[dict], read: set[str]) -> list[str]:
    """The keys of mappings that are not read."""
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    return [key for key in keys if key not in read]


def _add_the_rest(pairs: list[PreferencePair], row: dict, unread: Iterable[str]) -> None:
    """Add what any row may have beside its sides, once nothing of the conversation is lost."""
    check_nothing_lost(row, unread, _sides(pairs))
    system = system_of(row)
    tools = tools_cell(row)
    for pair in pairs:
        pair["prompt"] = with_system(pair["prompt"], system)
        if tools is not None:
            pair["tools"] = row["tools"]
        if row.get("bayes_accuracy") is not None:
            pair["bayes_accuracy"] = number_cell(row, "bayes_accuracy", 0, 1)


def _sides(pairs: list[PreferencePair]) -> list[Side]:
    return [pair[side] for pair in pairs for side in ("prompt", *SIDES)]


def _add_drop_and_subset(pair: PreferencePair, row: dict) -> None:
    """Set the fields that every pair has. The function of a format may have set `drop` already."""
    if "drop" not in pair:
        pair["drop"] = why_drop(pair)
    column = _subset_column(row)
    pair["subset"] = None
    if column:
        pair["subset"] = row[column] or None


def _subset_column(row: dict) -> str | None:
    """The column with the part of the dataset that a row belongs to; None if it names none."""
    for column in ("subset", "source", "domain"):
        if isinstance(row.get(column), str):
            return column
    return None
