"""Command line -> recipe: the keys of a file, then of the command line; all faults in one error.

    recipe = parse_command_line(["--recipe", "recipes/quickstart.yaml", "--learning_rate", "5e-4"])

argparse is not used, because it stops at the first fault and does not know the lines of a file.
"""

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import yaml

from reward.recipe.checks import check_recipe
from reward.recipe.keys import CLI, ENTRY, FLAGS, KEYS, OWN_KEYS, REFUSED, SWITCHES, Key
from reward.recipe.paths import (
    find_path,
    find_recipe,
    folders_of,
    list_of_recipes,
    with_found_paths,
)
from reward.recipe.recipe import Recipe, RecipeError
from reward.recipe.values import as_meant, fault_of, unknown_key
from reward.recipe.yaml_text import YamlText, not_valid_yaml, parse_yaml, read_recipe_file, to_yaml


@dataclass
class Draft:
    """A recipe that is being read, and what is wrong with it."""

    recipe: Recipe = field(default_factory=Recipe)
    faults: list[str] = field(default_factory=list)  # in the order of the error's lines
    faulty_keys: set[str] = field(default_factory=set)  # no check reports these again


def parse_command_line(argv: list[str]) -> Recipe:
    """Read the recipe that a command line asks for.

    Args:
        argv: The words after `train_rm.py`. `--help` and `--list-recipes` print what they are
            asked for and exit with status 0.

    Raises:
        RecipeError: Every fault of the recipe and of the command line.
    """
    if {"--help", "-h"} & set(argv):
        _print_and_exit(_help())
    if {"--list-recipes", "--list_recipes"} & set(argv):
        _print_and_exit(list_of_recipes(width=shutil.get_terminal_size((100, 24)).columns))
    draft = Draft()
    recipe = draft.recipe
    overrides = _read_words(argv, draft)
    if not recipe.path and not overrides and not draft.faults:
        draft.faults.append(
            f"{CLI}: nothing to train; write `python train_rm.py --recipe recipes/quickstart.yaml`"
        )
    has_keys = bool(overrides)
    if recipe.path:
        recipe.path = find_recipe(recipe.path)
        file = read_recipe_file(recipe.path)
        draft.faults += file.faults
        has_keys = file.value is not None
        _add_sound_keys(file, draft, folders_of(recipe.path))
        _leave_out_replaced_data(recipe, overrides)
    _add_sound_keys(YamlText(CLI, overrides), draft, folders_of(None))
    if has_keys:  # a file that cannot be read is one fault; the checks would add more
        _check(draft)
    if draft.faults:
        raise RecipeError(draft.faults)
    return recipe


def load_saved(path: str | Path) -> Recipe:
    """Read the resolved recipe of a checkpoint, as `Recipe.save` wrote it.

    The files that it names may no longer exist, so only single keys are checked. Those that do are
    found from any folder (reward.recipe.paths).

    Args:
        path: The file of the recipe.

    Raises:
        RecipeError: Every fault of its keys.
    """
    file = read_recipe_file(str(path))
    draft = Draft(Recipe(path=str(path)), faults=file.faults)
    _add_sound_keys(file, draft, folders_of(path))
    if draft.faults:
        raise RecipeError(draft.faults)
    return draft.recipe


def _check(draft: Draft) -> None:
    """Add the faults of check_recipe, each at the place of the first of its keys that has one."""
    recipe = draft.recipe
    for fault in check_recipe(recipe):
        if draft.faulty_keys.isdisjoint(fault.keys):
            places = [recipe.places[key] for key in fault.keys if key in recipe.places]
            places.append(recipe.path or CLI)
            draft.faults.append(f"{places[0]}: {fault.text}")


# --- The command line ---------------------------------------------------------------------------


def _leave_out_replaced_data(recipe: Recipe, overrides: dict[str, object]) -> None:
    """Take the file's data out of the recipe if the command line names other data.

    `dataset_name` and `datasets` are two ways to name the data, so one replaces the other.
    """
    for given, replaced in (("dataset_name", "datasets"), ("datasets", "dataset_name")):
        if given in overrides and replaced not in overrides:
            recipe.values.pop(replaced, None)


def _read_words(argv: list[str], draft: Draft) -> dict[str, object]:
    """Set the flags of the recipe from the words of the command line, and return the keys."""
    overrides = {}
    names = []
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
        if name in names:
            draft.faults.append(f"{CLI}: --{name} is given more than once; give it once")
        names.append(name)
        if name in SWITCHES:
            if equals:
                draft.faults.append(
                    f"{CLI}: found `{word}`; --{name} takes no value: write `--{name}`"
                )
            else:
                setattr(draft.recipe, name, True)
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
    """Set a flag that takes a value; that of `plan` may be missing."""
    draft.recipe.places[name] = CLI
    if name == "plan":
        draft.recipe.plan = find_path(text or "", folders_of(None))
        return
    attribute = {"recipe": "path"}.get(name, name)
    setattr(draft.recipe, attribute, text)
    if not text:
        draft.faults.append(f"{CLI}: --{name} lacks its value, {FLAGS[name]}")


def _read_override(name: str, text: str | None, overrides: dict[str, object], draft: Draft) -> None:
    """Add one key to the overrides, or a fault to the draft.

    Args:
        name: The key. Whether it exists is checked later, together with the keys of the file.
        text: Its value as YAML; None if the key stands alone, as in `--bf16`, which means true.
        overrides: The keys of the command line so far; the key is added here.
        draft: The fault is added here.
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


def _print_and_exit(text: str) -> NoReturn:
    """Print what was asked for, which may be piped into a program that ends early."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


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
        "  `trl reward --help` lists them, each with what it means and its default",
        "",
        "your own pairs instead of the recipe's: "
        "--dataset_name pairs.jsonl --test_fraction 0.1 --output_dir my-rm",
        "a relative path is looked for in the current folder, beside the recipe, and in this "
        "repository",
    ]
    return "\n".join(lines)


# --- Keys one by one ----------------------------------------------------------------------------


def _add_sound_keys(source: YamlText, draft: Draft, folders: list[Path]) -> None:
    """Add the sound keys of a file or of the command line to the recipe.

    Args:
        source: The text that holds the keys.
        draft: The recipe, to which keys and faults are added.
        folders: Where relative paths are looked for.
    """
    sound = _sound_keys(source.value or {}, KEYS, source, draft)
    if "datasets" in sound:
        entries = _sound_entries(sound["datasets"], source, draft)
        sound["datasets"] = [with_found_paths(entry, folders) for entry in entries]
    draft.recipe.values |= with_found_paths(sound, folders)


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
    """The sound ones of the values; the faults of the others are added to the draft.

    Args:
        values: The value of each key, as it was read.
        keys: The keys that exist: KEYS or ENTRY.
        source: The text that the values were read from.
        draft: The places, the faults and the faulty keys are added here.
        entry: `datasets[0]` if the values are those of an entry; otherwise empty.
    """
    sound = {}
    for name, value in values.items():
        path, prefix = str(name), ""
        if entry:
            path, prefix = f"{entry}.{name}", f"{entry}: "
        place = source.place_of(path)
        draft.recipe.places[path] = place
        says_default = name in keys and value == keys[name].default
        if name in REFUSED and not entry and not says_default:
            fault = f"`{name}` is refused: {REFUSED[name]}"
        elif name not in keys:
            fault = unknown_key(name, keys, place)
        else:
            value = as_meant(keys[name], value)
            fault = fault_of(keys[name], value, place)
        if fault is None:
            sound[name] = value
            # The command line may replace a faulty key of the file by a sound one.
            draft.faulty_keys.discard(path)
        else:
            draft.faults.append(f"{place}: {prefix}{fault}")
            draft.faulty_keys.add(path)
    return sound
