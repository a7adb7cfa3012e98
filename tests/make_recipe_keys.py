"""Rewrite reward/recipe/recipe_keys.json, TRL's and transformers' keys, from what is installed.

python tests/make_recipe_keys.py
"""

import dataclasses
import json
import sys
import types
import typing
from enum import Enum
from pathlib import Path

import transformers
import trl
from trl.scripts.utils import DatasetConfig

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from reward.recipe.keys import CLASSES, KINDS


def types_and_choices(hint: object) -> tuple[list[str], list[str]]:
    """What an annotation allows.

    Args:
        hint: the annotation of a field, such as `str | None`.

    Returns:
        The names of its types, and the texts that it lists. An object that YAML cannot write has a
        name that KINDS does not hold.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        names, choices = [], []
        for part in parts:
            part_names, part_choices = types_and_choices(part)
            names += part_names
            choices += part_choices
        return names, choices
    if origin is typing.Literal:
        names = [type(part).__name__ for part in parts]
        return names, [part for part in parts if isinstance(part, str)]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ["str"], [member.value for member in hint]
    if hint is type(None):
        return ["null"], []
    return [getattr(origin or hint, "__name__", "")], []


def describe(field: dataclasses.Field, hint: object) -> dict:
    """The entry of one key: its types; its choices and its default, where it has them."""
    names, choices = types_and_choices(hint)
    choices = list(field.metadata.get("choices") or choices)
    entry = {"types": [kind for kind in KINDS if kind in names]}
    if choices:
        entry["choices"] = choices
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is not dataclasses.MISSING:
        entry["default"] = getattr(default, "value", default)  # the value of an Enum's member
    return entry


def installed_keys() -> str:
    """recipe_keys.json as the installed TRL has it: class -> key -> its entry, one key a line."""
    versions = {"trl": trl.__version__, "transformers": transformers.__version__}
    blocks = [f'"versions": {json.dumps(versions)}']
    for name in CLASSES:
        cls = getattr(trl, name, DatasetConfig)
        hints = typing.get_type_hints(cls)
        lines = []
        for field in dataclasses.fields(cls):
            entry = describe(field, hints[field.name])
            lines.append(f"  {json.dumps(field.name)}: {json.dumps(entry)}")
        blocks.append(f'"{name}": {{\n' + ",\n".join(lines) + "\n }")
    return "{\n " + ",\n ".join(blocks) + "\n}\n"


if __name__ == "__main__":
    path = ROOT / "reward" / "recipe" / "recipe_keys.json"
    path.write_text(installed_keys(), encoding="utf-8")
    print(f"wrote {path}")
