"""Cells of a row: numbers, counts and lists, each read or refused with the column's name.

Nothing here quotes what a cell holds: the rows may be private.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from reward.data.files import storable
from reward.data.json_values import json_value
from reward.data.transcripts import RowError

MEND = "mend the value, or leave it or the row out"
EXACT = 2**53  # every integer up to here is a float of the same value
MOST_VOTES = 2**31  # more are no count of raters, and no table can store them


def list_cell(row: dict, column: str) -> list:
    """The list of a cell, or the one whose JSON it holds, as a cell of CSV does."""
    values = list_in(row[column])
    if values is None:
        raise RowError(f"`{column}` is {kind_of(row[column])}; a list is needed")
    return values


def list_in(value: object) -> list | None:
    """The list that a value is, or whose JSON it is; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            value = json_cell(value)
    if isinstance(value, list):
        return value
    return None


def json_cell(text: str) -> Any:
    """The value whose JSON a cell holds, as it can be stored.

    Raises:
        ValueError: The text is no JSON, or its value is not read (reward.data.json_values).
    """
    return storable(json_value(text))


JSON_LISTS = ('["', "[null", "[]")  # how the JSON of a list of texts can start


def text_cells(row: dict, column: str) -> list[str]:
    """The texts of a cell that is a list, the JSON of one, or a plain string.

    A null means that the model failed. It becomes an empty text.
    """
    value = row.get(column)
    if isinstance(value, str) and value.lstrip().startswith(JSON_LISTS):
        try:
            value = json_cell(value)
        except ValueError:
            raise RowError(f"`{column}` starts like a JSON list and is none") from None
    if isinstance(value, str):
        value = [value]
    is_list = isinstance(value, list)
    if not is_list or not all(isinstance(text, str | None) for text in value):
        raise RowError(f"`{column}` is {kind_of(value)}; a string or a list of strings is needed")
    return [text or "" for text in value]


def number_cell(row: dict, column: str, low: float = -math.inf, high: float = math.inf) -> float:
    """The number of a cell, which must be finite and between `low` and `high`."""
    return number(row.get(column), column, low, high)


def number_in(text: str) -> float:
    """The number that a text is. Raises ValueError for anything else.

    Python's own reading takes "1_0" for 10, which nobody writes who means a number.
    """
    if "_" in text:
        raise ValueError(f"{text!r} is no number")
    return float(text)


def number(value: object, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A value as a number, which must be finite and between `low` and `high`."""
    if isinstance(value, str):  # a CSV cell
        try:
            value = number_in(value)
        except ValueError:
            raise RowError(
                f"`{name}` is text that is no number; a number is needed: {MEND}"
            ) from None
    if not is_finite_number(value):
        raise RowError(f"`{name}` is {kind_of(value)}; a finite number is needed: {MEND}")
    if not low <= value <= high:
        raise RowError(f"`{name}` is outside [{low:g}, {high:g}]: {MEND}")
    if abs(value) > EXACT:
        return float(value)  # a table cannot store an integer of so many digits
    return value


def is_finite_number(value: object) -> bool:
    """Whether a value is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


TWO_COUNTS = re.compile(r"\s*\[\s*\d{1,9}\s*,\s*\d{1,9}\s*\]\s*")  # the JSON of votes


def votes_cell(row: dict) -> list[int]:
    """The two counts of `votes`: [for the first or chosen, for the second or rejected]."""
    votes = row["votes"]
    if isinstance(votes, dict):
        votes = _named_votes(votes)
    if isinstance(votes, str) and TWO_COUNTS.fullmatch(votes):
        votes = json.loads(votes)  # a CSV cell
    is_couple = isinstance(votes, list) and len(votes) == 2
    if not is_couple or not all(_is_count(count) for count in votes):
        raise RowError(
            f"`votes` is {kind_of(votes)}; "
            f"two counts [for the first, for the second] are needed: {MEND}"
        )
    if sum(votes) == 0:
        raise RowError(f"`votes` sum to 0; at least one vote is needed: {MEND}")
    return votes


# The names of the two counts. In the order of the alphabet, the first or chosen side comes first.
NAMES_OF_VOTES = (["a", "b"], ["chosen", "rejected"], ["0", "1"], ["1", "2"])


def _named_votes(votes: dict) -> list | dict:
    """The counts of {a, b} or {chosen, rejected}, in whatever order the keys come.

    Which count of any other two is for which side, such as {for, against}, is not known.
    """
    keys = sorted(votes, key=str)
    names = [str(key).lower().rpartition("_")[2] for key in keys]
    if names not in NAMES_OF_VOTES:
        return votes
    return [votes[key] for key in keys]


def _is_count(value: object) -> bool:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return is_integer and 0 <= value < MOST_VOTES


def tools_cell(row: dict) -> list[dict] | None:
    """The functions that the assistant may call: a list of mappings, or the JSON of one."""
    tools = row.get("tools")
    if isinstance(tools, str):
        if not tools.strip():
            return None
        try:
            tools = json_cell(tools)
        except ValueError:
            raise RowError(f"`tools` is text that cannot be read as JSON: {MEND}") from None
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError(f"`tools` is {kind_of(tools)}; a list of mappings is needed: {MEND}")
    return tools


KINDS = {
    type(None): "missing",
    str: "a string",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
}


def kind_of(value: object) -> str:
    """What a value is, in words that name no content."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    if isinstance(value, int) and not isinstance(value, bool) and not is_finite_number(value):
        return "a number of too many digits"
    return KINDS.get(type(value), type(value).__name__)


def texts_in(value: object) -> Iterator[str]:
    """Every text inside a value, however deep; the keys of mappings are left out."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, list | tuple):
            left.extend(value)
