"""Recipes: strict YAML over TRL's and transformers' keys, with every fault of a recipe in one error.

    python train_rm.py --recipe recipes/quickstart.yaml --learning_rate 5.0e-4    # a recipe and one override

Imports the standard library and yaml only, so that a faulty recipe is answered at once.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from reward.data.files import Source
from reward.recipe.keys import DEFAULTS, ENTRY, GROUPS, KEYS, OWN, TRL
from reward.recipe.yaml_text import _dump


class RecipeError(Exception):
    """Every fault of a recipe and its command line; `faults` holds them one by one."""

    def __init__(self, faults: list[str]):
        self.faults = faults
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(
            f"the recipe has {count}\n" + "\n".join(f"  - {fault}" for fault in faults)
        )


@dataclass
class Recipe:
    """The keys that were given, and the flags of the command. `recipe["max_length"]` falls back to the defaults."""

    path: str | None = None
    values: dict = field(default_factory=dict)
    merge: bool = False
    check_data: bool = False
    plan: str | None = None  # an accelerate config; "" for what this process was launched with
    overwrite: bool = False
    resume: str | None = None
    places: dict = field(default_factory=dict, repr=False)  # key -> "file:line" or "command line"

    def get(self, key: str):
        return (
            self.values[key] if key in self.values else DEFAULTS.get(key, KEYS[key].get("default"))
        )

    __getitem__ = get

    def section(self, name: str) -> dict:
        """The given keys of one of TRL's dataclasses, and the defaults where we differ: `RewardConfig(**...)`."""
        return {key: value for key, value in (DEFAULTS | self.values).items() if key in TRL[name]}

    def data_sources(self) -> list[Source]:
        """One dict a source, whichever way the recipe names it; `subset` falls back to the last part of `data_dir`."""
        entries, streaming = self.get("datasets"), self.get("streaming")
        if self.get("dataset_name"):
            names = {
                "path": "name",
                "name": "config",
                "split": "train_split",
                "test_split": "test_split",
            }
            entries = [{key: self.get(f"dataset_{name}") for key, name in names.items()}]
            streaming = self.get("dataset_streaming")
        sources = [
            {key: entry.get(key, spec.get("default")) for key, spec in ENTRY.items()}
            for entry in entries
        ]
        for source in sources:
            source["streaming"] = streaming
            source["subset"] = source["subset"] or Path(source["data_dir"] or "").name or None
        return sources

    def save(self, path: str | Path) -> None:
        """Write the resolved copy, which loads again through this parser: the given keys and our own defaults."""
        resolved = {key: default for key, (_, default, _, _) in OWN.items()} | self.values
        resolved.pop("hub_token", None)  # a secret; this file is published with the checkpoint
        groups = {group: {} for group in GROUPS}
        for key, value in resolved.items():
            group = next(
                (group for group, pattern in GROUPS.items() if re.match(pattern, key)), "Training"
            )
            groups[group][key] = value
        text = "# The resolved recipe: every key of the file and of the command line, and our own defaults.\n"
        text += "".join(
            f"\n# {group}\n{_dump(part, flow=False)}\n" for group, part in groups.items() if part
        )
        Path(path).write_text(text, encoding="utf-8")
