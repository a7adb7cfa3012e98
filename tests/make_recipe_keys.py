"""Rewrite reward/recipe/recipe_keys.json, the keys that a recipe may hold, from the installed TRL and transformers.

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


def describe(hint) -> tuple[list, list]:
    """The types and choices of an annotation; an object that YAML cannot write has no type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds, choices = zip(*map(describe, parts), strict=True)
        return sum(kinds, []), sum(choices, [])
    if origin is typing.Literal:
        return [type(part).__name__ for part in parts], [
            part for part in parts if isinstance(part, str)
        ]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ["str"], [member.value for member in hint]
    return ["null" if hint is type(None) else getattr(origin or hint, "__name__", "")], []


def installed_keys() -> str:
    """recipe_keys.json as the installed TRL has it: class -> key -> types, choices and default, one key a line."""
    blocks = [
        f'"versions": {json.dumps({"trl": trl.__version__, "transformers": transformers.__version__})}'
    ]
    for cls in (*(getattr(trl, name) for name in CLASSES[:-1]), DatasetConfig):
        hints, rows = typing.get_type_hints(cls), []
        for item in dataclasses.fields(cls):
            kinds, choices = describe(hints[item.name])
            spec = {"types": [kind for kind in KINDS if kind in kinds]}
            if choices := list(item.metadata.get("choices") or choices):
                spec["choices"] = choices
            default = (
                item.default
                if item.default_factory is dataclasses.MISSING
                else item.default_factory()
            )
            spec |= (
                {}
                if default is dataclasses.MISSING
                else {"default": getattr(default, "value", default)}
            )
            rows.append(f"  {json.dumps(item.name)}: {json.dumps(spec)}")
        blocks.append(f'"{cls.__name__}": {{\n' + ",\n".join(rows) + "\n }")
    return "{\n " + ",\n ".join(blocks) + "\n}\n"


if __name__ == "__main__":
    path = ROOT / "reward" / "recipe" / "recipe_keys.json"
    path.write_text(installed_keys(), encoding="utf-8")
    print(f"wrote {path}")
