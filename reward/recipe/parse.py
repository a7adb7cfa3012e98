"""From a command line to a recipe: its file, then its overrides, with every fault in one error.

    recipe = parse_command_line(["--recipe", "recipes/quickstart.yaml", "--learning_rate", "5e-4"])

argparse has no part in this: it stops at the first fault, and knows no lines of a file.
"""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from reward.recipe.checks import check_recipe
from reward.recipe.keys import CLI, ENTRY, FLAGS, KEYS, OWN_KEYS, REFUSED, Key
from reward.recipe.recipe import Recipe, RecipeError
from reward.recipe.values import as_meant, fault_of, unknown_key
from reward.recipe.yaml_text import YamlText, not_valid_yaml, parse_yaml, read_recipe_file, to_yaml


@dataclass
class Draft:
    """A recipe while it is read, and what is wrong with it."""

    recipe: Recipe = field(default_factory=Recipe)
    faults: list[str] = field(default_factory=list)  # in the order in which they are told
    faulty_keys: set[str] = field(default_factory=set)  # no check complains about these again


def parse_command_line(argv: list[str]) -> Recipe:
    """Read the recipe that a command line asks for.

    Args:
        argv: the words behind `train_rm.py`. `--help` prints the help and exits with status 0.

    Raises:
        RecipeError: every fault of the recipe and of the command line.
    """
    if {"--help", "-h"} & set(argv):
        print(_help())
        raise SystemExit(0)
    draft = Draft()
    recipe = draft.recipe
    overrides = _read_words(argv, draft)
    if not recipe.path and not overrides and not draft.faults:
        draft.faults.append(
            f"{CLI}: nothing to train; write `python train_rm.py --recipe recipes/quickstart.yaml`"
        )
    readable = bool(overrides)
    if recipe.path:
        file = read_recipe_file(recipe.path)
        draft.faults += file.faults
        readable = file.value is not None
        _take(file, draft)
    _take(YamlText(CLI, overrides), draft)
    if readable:  # a file that could not be read is one fault, not five
        _check(draft)
    if draft.faults:
        raise RecipeError(draft.faults)
    return recipe


def load_saved(path: str | Path) -> Recipe:
    """The resolved recipe of a checkpoint, as `Recipe.save` wrote it.

    What it names need not be there any more, so that only single keys are checked.

    Raises:
        RecipeError: every fault of its keys.
    """
    file = read_recipe_file(str(path))
    draft = Draft(Recipe(path=str(path)), faults=file.faults)
    _take(file, draft)
    if draft.faults:
        raise RecipeError(draft.faults)
    return draft.recipe


def _check(draft: Draft) -> None:
    """Add the faults of keys together, each at the place of the first of its keys that is given."""
    recipe = draft.recipe
    for fault in check_recipe(recipe):
        if draft.faulty_keys.isdisjoint(fault.keys):
            places = [recipe.places[key] for key in fault.keys if key in recipe.places]
            places.append(recipe.path or CLI)
            draft.faults.append(f"{places[0]}: {fault.text}")


# --- The command line ---------------------------------------------------------------------------


def _read_words(argv: list[str], draft: Draft) -> dict[str, object]:
    """Set the flags of the recipe from the words of the command line; returns its keys."""
    overrides = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            draft.faults.append(
                f"{CLI}: found `{word}` without an option; a recipe is given as `--recipe {word}`"
            )
            continue
        name, equals, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if name in ("merge", "check_data", "overwrite"):
            setattr(draft.recipe, name, not equals)
            if equals:
                draft.faults.append(
                    f"{CLI}: found `{word}`; --{name} takes no value: write `--{name}`"
                )
            continue
        if not equals:
            text = None
            if words and not words[0].startswith("--"):
                text = words.pop(0)
        if name in FLAGS:
            _set_flag(name, text, draft)
        else:
            _read_override(name, text, overrides, draft)
    return overrides


def _set_flag(name: str, text: str | None, draft: Draft) -> None:
    """Set `plan`, which may go without a value, `recipe` or `resume`."""
    draft.recipe.places[name] = CLI
    if name == "plan":
        draft.recipe.plan = text or ""
        return
    if name == "recipe":
        draft.recipe.path = text
    else:
        draft.recipe.resume = text
    if not text:
        draft.faults.append(f"{CLI}: --{name} lacks its value, {FLAGS[name]}")


def _read_override(name: str, text: str | None, overrides: dict[str, object], draft: Draft) -> None:
    """Add one key to the overrides, or a fault to the draft.

    Args:
        name: the key; whether it exists is found out later, together with those of the file.
        text: its value as YAML. None: `--bf16` alone, which means true.
        overrides: the keys of the command line so far.
        draft: takes the fault.
    """
    if text is None:
        if name in KEYS and "bool" not in KEYS[name].types:
            draft.faults.append(f"{CLI}: --{name} lacks its value: write `--{name} VALUE`")
            draft.faulty_keys.add(name)
        else:
            overrides[name] = True
        return
    try:
        yaml_text = parse_yaml(text, f"{CLI}: --{name}")
    except (yaml.YAMLError, ValueError) as error:
        draft.faults.append(
            f"{CLI}: --{name}{not_valid_yaml(error)}; put text in quotes: `--{name} '\"TEXT\"'`"
        )
        draft.faulty_keys.add(name)
        return
    draft.faults += yaml_text.faults
    overrides[name] = yaml_text.value


def _help() -> str:
    lines = ["usage: python train_rm.py --recipe FILE [flags] [--key value ...]", "", "flags:"]
    for flag, text in FLAGS.items():
        lines.append(f"  --{flag.replace('_', '-'):<26} {text}")
    lines += ["", "our own recipe keys:"]
    for key in OWN_KEYS:
        notes = f"default {to_yaml(key.default)}"
        if key.range:
            notes = f"{key.range}; {notes}"
        if key.choices:
            notes = f"{'|'.join(key.choices)}; {notes}"
        lines.append(f"  --{key.name:<26} {key.help} ({notes})")
    lines += [
        "",
        "every TRL/transformers key, under its own name, "
        "with a YAML value that wins over the file's:",
        "  RewardConfig (all of TrainingArguments), ModelConfig, ScriptArguments, "
        "DatasetMixtureConfig",
    ]
    return "\n".join(lines)


# --- Keys one by one ----------------------------------------------------------------------------


def _take(source: YamlText, draft: Draft) -> None:
    """Add the sound keys of a file or of the command line to the recipe."""
    taken = _sound_keys(source.value or {}, KEYS, source, draft)
    if "datasets" in taken:
        taken["datasets"] = _sound_entries(taken["datasets"], source, draft)
    draft.recipe.values |= taken


def _sound_entries(entries: list, source: YamlText, draft: Draft) -> list[dict]:
    """The entries of `datasets`, each with its sound keys."""
    sound = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not entry.get("path"):
            example = "Anthropic/hh-rlhf"
            if isinstance(entry, str):
                example = to_yaml(entry)
            draft.faults.append(
                f"{source.place_of('datasets')}: datasets[{index}] names no source; "
                f"it starts with `- path: {example}`"
            )
        if not isinstance(entry, dict):
            entry = {}
        sound.append(_sound_keys(entry, ENTRY, source, draft, f"datasets[{index}]"))
    return sound


def _sound_keys(
    values: dict, keys: dict[str, Key], source: YamlText, draft: Draft, entry: str = ""
) -> dict[str, object]:
    """Those of the values that are sound; the faults of the others go to the draft.

    Args:
        values: key -> what was read for it.
        keys: the keys that there are: KEYS or ENTRY.
        source: where the values stand.
        draft: takes the places, the faults and the faulty keys.
        entry: `datasets[0]` where the values are those of an entry.
    """
    sound = {}
    for name, value in values.items():
        path, prefix = str(name), ""
        if entry:
            path, prefix = f"{entry}.{name}", f"{entry}: "
        place = source.place_of(path)
        draft.recipe.places[path] = place
        if name in REFUSED and not entry:
            fault = f"`{name}` is refused: {REFUSED[name]}"
        elif name not in keys:
            fault = unknown_key(name, keys, place)
        else:
            value = as_meant(keys[name], value)
            fault = fault_of(keys[name], value, place)
        if fault is None:
            sound[name] = value
            draft.faulty_keys.discard(path)
        else:
            draft.faults.append(f"{place}: {prefix}{fault}")
            draft.faulty_keys.add(path)
    return sound
