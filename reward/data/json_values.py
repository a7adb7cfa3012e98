"""The JSON of rows and of cells, read strictly: `value = json_value(line)`.

No name stands twice in an object, and nothing is longer, deeper or wider than what follows bears.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

# Limits of one row. A real one is far below them.
DEEPEST = 100  # brackets inside each other; deeper rows would exhaust the stack further on
MOST_COLUMNS = 1_000
MOST_VALUES = 200_000  # in all lists and objects of a row
MOST_BRACKETS = 1_000_000  # also those in texts; counted before a row is parsed, which takes long
LONGEST_ROW = 12_000_000  # characters

TOO_LONG = f"a row of more than {LONGEST_ROW:,} characters"
TOO_WIDE = f"more than {MOST_COLUMNS:,} columns"
TOO_MANY = f"more than {MOST_VALUES:,} values in one row"
TOO_DEEP = f"brackets are nested more than {DEEPEST} deep"
TOO_MANY_DIGITS = f"a number of more than {sys.get_int_max_str_digits():,} digits"
NAME_TWICE = "a name stands twice in one JSON object"


class UnusualValue(ValueError):
    """A value that is not read. The message says why, in the same words for every such value."""


def json_value(text: str) -> Any:
    """The value of a text.

    Raises:
        json.JSONDecodeError: The text is no JSON.
        UnusualValue: Its value is not read.
    """
    if len(text) > LONGEST_ROW:
        raise UnusualValue(TOO_LONG)
    if text.count("[") + text.count("{") > MOST_BRACKETS:
        raise UnusualValue(TOO_MANY)
    value = _decoded(DECODER.decode, text)
    refuse_unusual(value)
    return value


def next_json_value(text: str, start: int) -> tuple[Any, int]:
    """The value that starts at a place of a text, and the place where it ends.

    Raises what `json_value` raises. How many values it holds is not looked at.
    """
    return _decoded(DECODER.raw_decode, text, start)


def refuse_unusual(value: Any) -> None:
    """Raise UnusualValue for a value that is too deep or too wide."""
    if isinstance(value, dict) and len(value) > MOST_COLUMNS:
        raise UnusualValue(TOO_WIDE)
    level = [value]
    values = 0
    for _ in range(DEEPEST + 1):
        inner = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        values += len(inner)
        if values > MOST_VALUES:
            raise UnusualValue(TOO_MANY)
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return
    raise UnusualValue(TOO_DEEP)


def _decoded(decode: Callable, *arguments: object) -> Any:
    """What a function of the decoder gives."""
    try:
        return decode(*arguments)
    except (json.JSONDecodeError, UnusualValue):
        raise
    except RecursionError:
        raise UnusualValue(TOO_DEEP) from None
    except ValueError:  # the only other one is that of int()
        raise UnusualValue(TOO_MANY_DIGITS) from None


def _object_of(names_and_values: list[tuple[str, Any]]) -> dict:
    """A JSON object. Python would keep the last of two values of one name, and pass over others."""
    mapping = dict(names_and_values)
    if len(mapping) < len(names_and_values):
        raise UnusualValue(NAME_TWICE)
    return mapping


DECODER = json.JSONDecoder(object_pairs_hook=_object_of)
