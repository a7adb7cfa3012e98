"""A recipe: its keys, and the defaults of all others.

    recipe = parse_command_line(["--recipe", "recipes/quickstart.yaml", "--learning_rate", "5e-4"])
    recipe["learning_rate"], recipe["max_length"], recipe.section("RewardConfig")

It imports the standard library and yaml only, so that a faulty recipe is reported at once.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reward.data.files import Source
from reward.data.secrets import without_secrets
from reward.data.shown import LONGEST_MESSAGE, count, shown
from reward.recipe.keys import DECIDE_NOTHING, DEFAULTS, ENTRY, GROUPS, KEYS, OWN_KEYS, TRL
from reward.recipe.yaml_text import to_yaml

LONGEST_FAULT = 1500  # characters: a value of a recipe may be of any length


class RecipeError(Exception):
    """Every fault of a recipe and its command line. `faults` holds them one by one."""

    def __init__(self, faults: list[str]):
        self.faults = [shown(fault, LONGEST_FAULT) for fault in faults]
        lines = [f"the recipe has {count(len(faults), 'fault')}"]
        for number, fault in enumerate(self.faults):
            if number and len("\n".join([*lines, fault])) > LONGEST_MESSAGE:
                lines.append(f"  - and {len(faults) - number} more, once these are mended")
                break
            lines.append(f"  - {fault}")
        super().__init__("\n".join(lines))


@dataclass
class Recipe:
    """The keys of a recipe and of its command line, and the flags of the command."""

    path: str | None = None  # the recipe file; None: the command line holds every key
    values: dict[str, object] = field(default_factory=dict)  # of the file and the command line
    merge: bool = False
    check_data: bool = False
    plan: str | None = None  # an accelerate config; "" for the launch of this process
    overwrite: bool = False
    resume: str | None = None  # "auto" or a checkpoint's folder
    push: str | None = None  # the Hub's repository for the verified checkpoint
    places: dict[str, str] = field(default_factory=dict, repr=False)  # key -> FILE:LINE, or CLI

    def get(self, key: str) -> Any:
        """The value of a key, as `recipe["max_length"]`: the recipe's, our default, or TRL's."""
        if key in self.values:
            return self.values[key]
        if key in DEFAULTS:
            return DEFAULTS[key]
        return KEYS[key].default

    __getitem__ = get

    @property
    def quantized(self) -> bool:
        """Whether the base is loaded in 4 or 8 bits."""
        return bool(self["load_in_4bit"] or self["load_in_8bit"])

    def section(self, name: str) -> dict[str, object]:
        """The keys of one of TRL's dataclasses that the recipe sets or whose default we change.

        Args:
            name: The dataclass, one of CLASSES: `RewardConfig(**recipe.section("RewardConfig"))`.
        """
        values = DEFAULTS | self.values
        return {key: value for key, value in values.items() if key in TRL[name]}

    def data_sources(self) -> list[Source]:
        """The sources of the pairs, whether `dataset_name` or `datasets` names them."""
        if not self["dataset_name"]:
            return [_source(entry, self["streaming"]) for entry in self["datasets"]]
        entry = {
            "path": self["dataset_name"],
            "name": self["dataset_config"],
            "split": self["dataset_train_split"],
            "test_split": self["dataset_test_split"],
        }
        return [_source(entry, self["dataset_streaming"])]

    def deciding_values(self) -> dict[str, object]:
        """The values that decide the trained weights: two runs that differ in one are two runs.

        Where the model, the template and the data lie is left out: what they hold is compared.
        """
        resolved = {key.name: key.default for key in OWN_KEYS} | self.values
        values = {}
        for key, value in resolved.items():
            if not key.startswith(DECIDE_NOTHING):
                values[key] = value
        return without_secrets(values)

    def save(self, path: str | Path) -> None:
        """Write the resolved copy: the recipe's keys and our own defaults, below their banners.

        `load_saved` and `--recipe` can read it.

        Args:
            path: The file to write.
        """
        resolved = {key.name: key.default for key in OWN_KEYS} | self.values
        resolved = without_secrets(resolved)  # this file is published with the checkpoint
        groups = {banner: {} for banner in GROUPS}
        for key, value in resolved.items():
            groups[_banner_of(key)][key] = value
        text = (
            "# The resolved recipe: every key of the file and of the command line, "
            "and our own defaults.\n"
        )
        for banner, keys in groups.items():
            if keys:
                text += f"\n# {banner}\n{to_yaml(keys, flow=False)}\n"
        Path(path).write_text(text, encoding="utf-8")


def _source(entry: dict, streaming: bool) -> Source:
    """The source of an entry of `datasets`, with every field filled in.

    An entry without a subset gets the last part of its `data_dir` as one.
    """
    source = {key: entry.get(key, spec.default) for key, spec in ENTRY.items()}
    source["streaming"] = streaming
    if not source["subset"]:
        source["subset"] = Path(source["data_dir"] or "").name or None
    return source


def _banner_of(key: str) -> str:
    for banner, beginnings in GROUPS.items():
        if key.startswith(beginnings):
            return banner
    return "Training"
