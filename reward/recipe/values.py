"""One value of one key: what was meant by it, and what is wrong with it."""

import difflib
import os
import shlex
from typing import NamedTuple

from reward.recipe.keys import CLI, EXAMPLES, FLAGS, KINDS, PATHS, Key
from reward.recipe.yaml_text import kind_in_words, kind_of, to_yaml


def unknown_key(name: object, keys: dict[str, Key], place: str) -> str:
    """The fault of a key that does not exist, with the one that may have been meant.

    Args:
        name: the key, as it was read: YAML allows keys that are no text.
        keys: the keys that there are.
        place: where the key stands; on the command line a flag may have been meant too.
    """
    names = list(keys)
    if place == CLI:
        names += FLAGS
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if nearest:
        return f"unknown key `{name}`; did you mean `{nearest[0]}`?"
    return f"unknown key `{name}`; `python train_rm.py --help` says which there are"


def as_meant(key: Key, value: object) -> object:
    """The value that was meant, where people take liberties: `yes`, `~/folder`, a list of one item.

    Args:
        key: the key that has the value.
        value: as it was read from YAML.
    """
    if not isinstance(value, str):
        return value
    if "str" not in key.types and "list" in key.types:
        return [value]  # `lora_target_modules: all-linear`
    if "str" not in key.types and "bool" in key.types:
        return {"yes": True, "on": True, "no": False, "off": False}.get(value, value)
    if key.name in PATHS:
        return os.path.expanduser(value)
    return value


class Mend(NamedTuple):
    """What a faulty value should have been."""

    needed: str  # in words
    value: object  # a value that is good


def fault_of(key: Key, value: object, place: str) -> str | None:
    """What is wrong with a value: what was found, what is needed and the line that mends it.

    Args:
        key: the key whose types, choices and range decide.
        value: the value, after `as_meant`.
        place: where it stands: the line that mends it is written for a file or for a command line.

    Returns:
        The fault; None where the value is sound.
    """
    mend = _mend_type(key, value) or _mend_choice(key, value) or _mend_range(key, value)
    if mend is None:
        return None
    found = _line(key, value, place)
    better = _line(key, mend.value, place)
    return f"found {found}; needed is {mend.needed}: {better}"


def _line(key: Key, value: object, place: str) -> str:
    """The key with a value, as its place would have it."""
    if place == CLI:
        return f"`--{key.name} {shlex.quote(to_yaml(value))}`"
    return f"`{key.name}: {to_yaml(value)}`"


def _mend_type(key: Key, value: object) -> Mend | None:
    """What a value of a wrong type should have been; None for a value of a right one.

    An integer is a number. What is proposed is the value itself in the right type where it has one,
    or else the key's default.
    """
    kind = kind_of(value)
    if kind in key.types or (kind == "int" and "float" in key.types):
        return None
    better = key.default
    if better is None:
        better = EXAMPLES.get(key.types[0])
    if isinstance(value, float) and value.is_integer() and "int" in key.types:
        better = int(value)
    elif isinstance(value, int | float) and "str" in key.types and not key.choices:
        better = str(value)  # `run_name: '7'`
    needed = " or ".join(KINDS[kind] for kind in key.types)
    return Mend(f"{needed}, not {kind_in_words(value)}", better)


def _mend_choice(key: Key, value: object) -> Mend | None:
    """What a text that is none of the choices should have been: the one that is spelt alike."""
    if not isinstance(value, str) or not key.choices or value in key.choices:
        return None
    nearest = difflib.get_close_matches(value, key.choices, n=1, cutoff=0.4)
    better = (nearest or key.choices)[0]
    return Mend("one of " + ", ".join(key.choices), better)


def _mend_range(key: Key, value: object) -> Mend | None:
    """What a number outside the range should have been: the example of the range."""
    if value is None or key.range is None or value in key.range:
        return None
    return Mend(str(key.range), key.range.example)
