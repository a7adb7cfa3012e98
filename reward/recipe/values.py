"""The value of one key: which value its writer meant, and what is wrong with it."""

import difflib
import os
import re
import shlex
from typing import NamedTuple

from reward.data.cells import texts_in
from reward.data.secrets import SECRET_KEYS
from reward.recipe.keys import CLI, EXAMPLES, FLAGS, KINDS, OTHER_NAMES, PATHS, Key
from reward.recipe.yaml_text import kind_in_words, kind_of, to_yaml

UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def unknown_key(name: object, keys: dict[str, Key], place: str) -> str:
    """The fault of a key that does not exist, with the key that may have been meant.

    Args:
        name: The key as it was read. It need not be text: YAML allows other keys.
        keys: The keys that exist.
        place: The place of the key. On the command line it may also be a misspelt flag.
    """
    names = list(keys)
    if place == CLI:
        names += FLAGS
    meant = OTHER_NAMES.get(str(name).lower())
    if meant not in keys:
        nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
        meant = next(iter(nearest), None)
    if meant:
        return f"unknown key `{name}`; did you mean `{meant}`?"
    return f"unknown key `{name}`; `python train_rm.py --help` says which there are"


def as_meant(key: Key, value: object) -> object:
    """The value that was meant by `yes`, by `~/folder`, or by one text instead of a list.

    Args:
        key: The key of the value.
        value: The value as it was read from YAML.
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
    """What is needed instead of a faulty value."""

    needed: str  # in words
    value: object  # an example, which is a good value


def fault_of(key: Key, value: object, place: str) -> str | None:
    """What is wrong with a value: what was found, what is needed and the line that mends it.

    Args:
        key: The key whose types, choices and range decide.
        value: The value, after `as_meant`.
        place: The place of the key. It decides whether the line that mends the value is written as
            in a file or as on a command line.

    Returns:
        The fault; None if the value is sound.
    """
    mend = (
        _mend_type(key, value)
        or _mend_text(key, value)
        or _mend_choice(key, value)
        or _mend_range(key, value)
    )
    if mend is None:
        return None
    shown = value
    if key.name in SECRET_KEYS:
        shown = "***"
    faulty_line = _line(key, shown, place)
    better_line = _line(key, mend.value, place)
    return f"found {faulty_line}; needed is {mend.needed}: {better_line}"


def _line(key: Key, value: object, place: str) -> str:
    """The key and a value, written as on the command line or as in a file."""
    if place == CLI:
        return f"`--{key.name} {shlex.quote(to_yaml(value))}`"
    return f"`{key.name}: {to_yaml(value)}`"


def _mend_text(key: Key, value: object) -> Mend | None:
    """What is needed instead of text that no file and no path can hold; None if all can be held."""
    if not any(UNWRITABLE.search(text) for text in texts_in(value)):
        return None
    better = key.default or EXAMPLES[key.types[0]]
    return Mend("text without null characters and lone surrogates", better)


def _mend_type(key: Key, value: object) -> Mend | None:
    """What is needed instead of a value of a wrong type; None if the type is right.

    An integer is a number as well. The example is the value itself in the right type if possible,
    otherwise the key's default.
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
    """What is needed instead of a text that is no choice: the most similar choice, or the first."""
    if not isinstance(value, str) or not key.choices or value in key.choices:
        return None
    nearest = difflib.get_close_matches(value, key.choices, n=1, cutoff=0.4)
    better = (nearest or key.choices)[0]
    return Mend("one of " + ", ".join(key.choices), better)


def _mend_range(key: Key, value: object) -> Mend | None:
    """What is needed instead of a number outside the range: the example of the range."""
    if value is None or key.range is None or value in key.range:
        return None
    return Mend(str(key.range), key.range.example)
