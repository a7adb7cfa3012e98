"""The command line and the recipe file -> a Recipe, with every fault in one error."""

import difflib
import os
import shlex
from pathlib import Path

import yaml

from reward.recipe.checks import _check_data, _check_model, _check_output, _check_training
from reward.recipe.keys import CLI, ENTRY, EXAMPLES, FLAGS, KEYS, KINDS, OWN, PATHS, RANGES, REFUSED
from reward.recipe.recipe import Recipe, RecipeError
from reward.recipe.yaml_text import _broken, _dump, _kind, _parse, _read, _word


def _coerce(key: str, specs: dict, value, place: str):
    """The value in its type. A RecipeError says what was found, what is needed and the line that mends it."""
    if key not in specs:
        near = difflib.get_close_matches(
            str(key), [*specs, *(FLAGS if place == CLI else ())], 1, 0.6
        )
        hint = (
            f"did you mean `{near[0]}`?"
            if near
            else "`python train_rm.py --help` says which there are"
        )
        raise RecipeError([f"unknown key `{key}`; {hint}"])
    types, choices, mend = (specs[key].get(name) for name in ("types", "choices", "default"))

    def line(value) -> str:
        return (
            f"`--{key} {shlex.quote(_dump(value))}`" if place == CLI else f"`{key}: {_dump(value)}`"
        )

    def wrong(needed: str, mend) -> RecipeError:
        return RecipeError([f"found {line(value)}; needed is {needed}: {line(mend)}"])

    if isinstance(value, str) and "str" not in types:
        value = [value] if "list" in types else value  # `lora_target_modules: all-linear`
        if "bool" in types:
            value = {"yes": True, "on": True, "no": False, "off": False}.get(value, value)
    if isinstance(value, str) and key in PATHS:
        value = os.path.expanduser(value)
    if _kind(value) not in types and not (_kind(value) == "int" and "float" in types):
        mend = EXAMPLES.get(types[0]) if mend is None else mend
        if isinstance(value, float) and value.is_integer() and "int" in types:
            mend = int(value)
        elif isinstance(value, int | float) and "str" in types and not choices:
            mend = str(value)  # `run_name: '7'`
        raise wrong(" or ".join(KINDS[kind] for kind in types) + f", not {_word(value)}", mend)
    if isinstance(value, str) and choices and value not in choices:
        raise wrong(
            "one of " + ", ".join(choices),
            (difflib.get_close_matches(value, choices, 1, 0.4) or choices)[0],
        )
    if value is not None and key in RANGES and not RANGES[key][1](value):
        raise wrong(RANGES[key][0], RANGES[key][2])
    return value


def _take(
    recipe: Recipe, given: dict, specs: dict, place, faults: list[str], bad: set, prefix: str = ""
) -> dict:
    """The sound ones of the given keys. `place(label)` says where a key stands; labels of faulty ones go to `bad`."""
    taken = {}
    for key, value in given.items():
        label = f"{prefix}{key}"
        here = recipe.places[label] = place(label)
        try:
            if key in REFUSED and not prefix:
                raise RecipeError([f"`{key}` is refused: {REFUSED[key]}"])
            taken[key] = _coerce(key, specs, value, here)
            bad.discard(label)
        except RecipeError as error:
            faults.append(f"{here}: {prefix.replace('.', ': ')}{error.faults[0]}")
            bad.add(label)
    for index, entry in enumerate(taken.get("datasets", ())):
        if not isinstance(entry, dict) or not entry.get("path"):
            example = _dump(entry) if isinstance(entry, str) else "Anthropic/hh-rlhf"
            faults.append(
                f"{place('datasets')}: datasets[{index}] names no source; it starts with `- path: {example}`"
            )
        given = entry if isinstance(entry, dict) else {}
        taken["datasets"][index] = _take(
            recipe, given, ENTRY, place, faults, bad, f"datasets[{index}]."
        )
    return taken


# ---------------------------------------------------------------------------------------------------- the command line


def parse_command_line(argv: list[str]) -> Recipe:
    """The recipe that a command line asks for: its file, then its overrides. All faults in one RecipeError."""
    if {"--help", "-h"} & set(argv):
        print(_help())
        raise SystemExit(0)
    recipe, words, overrides, faults, bad, lines = Recipe(), list(argv), {}, [], set(), {}
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--"):
            faults.append(
                f"{CLI}: found `{word}` without an option; a recipe is given as `--recipe {word}`"
            )
            continue
        if name in ("merge", "check_data", "overwrite"):
            setattr(recipe, name, not equals)
            faults += (
                [f"{CLI}: found `{word}`; --{name} takes no value: write `--{name}`"]
                if equals
                else []
            )
            continue
        if not equals:
            text = words.pop(0) if words and not words[0].startswith("--") else None
        if name == "plan":
            recipe.plan, recipe.places["plan"] = text or "", CLI
        elif name in ("recipe", "resume"):
            setattr(recipe, {"recipe": "path"}.get(name, name), text)
            recipe.places[name] = CLI
            faults += [] if text else [f"{CLI}: --{name} lacks its value, {FLAGS[name]}"]
        elif text is None and "bool" not in KEYS.get(name, {"types": ["bool"]})["types"]:
            faults.append(f"{CLI}: --{name} lacks its value: write `--{name} VALUE`")
            bad.add(name)
        else:
            try:
                overrides[name] = (
                    True if text is None else _parse(text, f"{CLI}: --{name}", {}, faults)
                )
            except (yaml.YAMLError, ValueError) as error:
                faults.append(
                    f"{CLI}: --{name}{_broken(error)}; put text in quotes: `--{name} '\"TEXT\"'`"
                )
                bad.add(name)
    if not recipe.path and not overrides and not faults:
        faults.append(
            f"{CLI}: nothing to train; write `python train_rm.py --recipe recipes/quickstart.yaml`"
        )
    given = _read(recipe.path, lines, faults) if recipe.path else {} if overrides else None

    def place(label: str) -> str:
        line = lines.get(label) or lines.get(label.split("[")[0])
        return f"{recipe.path}:{line}" if line else recipe.path

    recipe.values |= _take(recipe, given or {}, KEYS, place, faults, bad)
    recipe.values |= _take(recipe, overrides, KEYS, lambda label: CLI, faults, bad)
    if given is not None:  # a file that could not be read is one fault, not five
        for check in (_check_model, _check_data, _check_training, _check_output):
            for keys, text in check(recipe):
                first = next((key for key in keys.split() if key in recipe.places), "")
                where = recipe.places.get(first) or recipe.path or CLI
                faults += [] if bad & set(keys.split()) else [f"{where}: {text}"]
    if faults:
        raise RecipeError(faults)
    return recipe


def load_saved(path: str | Path) -> Recipe:
    """The resolved recipe of a checkpoint, as `Recipe.save` wrote it. What it names need not be there any more."""
    recipe, faults = Recipe(path=str(path)), []
    given = _read(recipe.path, {}, faults) or {}
    recipe.values = _take(recipe, given, KEYS, lambda label: recipe.path, faults, set())
    if faults:
        raise RecipeError(faults)
    return recipe


def _help() -> str:
    lines = ["usage: python train_rm.py --recipe FILE [flags] [--key value ...]", "", "flags:"]
    lines += [f"  --{flag.replace('_', '-'):<26} {text}" for flag, text in FLAGS.items()] + [
        "",
        "our own recipe keys:",
    ]
    for key, (_, default, choices, text) in OWN.items():
        among = "|".join(choices) + "; " if choices else ""
        lines.append(f"  --{key:<26} {text} ({among}default {_dump(default)})")
    lines += [
        "",
        "every TRL/transformers key, under its own name, with a YAML value that wins over the file's:",
    ]
    lines += [
        "  RewardConfig (all of TrainingArguments), ModelConfig, ScriptArguments, DatasetMixtureConfig"
    ]
    return "\n".join(lines)
