"""Where a recipe's file and the paths in it lead, from whichever folder the command is given.

    path = find_recipe("qwen-0.5b")    # recipes/qwen-0.5b.yaml, if no file has that name
    found = find_path("data/quickstart", folders_of(path))

A relative path is looked for in the current folder, beside the recipe, and in this repository, in
this order. The recipe of a checkpoint starts where it was trained: its manifest says where that is.
"""

import difflib
import glob
import json
import os
import textwrap
from pathlib import Path

from reward.data.files import DATA_SUFFIXES, FILE_BUILDERS

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = REPOSITORY / "recipes"


# --- Paths ----------------------------------------------------------------------------------------


def folders_of(recipe_path: str | Path | None) -> list[Path]:
    """The folders in which a relative path is looked for, the first one first.

    Args:
        recipe_path: The recipe's file; None for the values of a command line.
    """
    if recipe_path is None:
        return [Path.cwd(), REPOSITORY]
    folder = Path(recipe_path).resolve().parent
    folders = [Path.cwd(), folder, REPOSITORY]
    start = recorded_start(folder)
    if start is not None:
        folders.insert(0, start)
    return folders


def recorded_start(checkpoint: Path) -> Path | None:
    """The folder in which a checkpoint was trained; None if no manifest says so."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        return Path(os.path.normpath(checkpoint / manifest["paths_from"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_path(path: str, folders: list[Path]) -> str:
    """The path as it is written if it leads somewhere from here; otherwise the whole path.

    Args:
        path: A file, a folder, a pattern of files, or a Hub id.
        folders: Where a relative path is looked for. Nothing is looked up for another path.

    Returns:
        The path as it is written also where it leads nowhere: it may be a Hub id.
    """
    if os.path.isabs(path) or path.startswith("~") or "://" in path or not path:
        return path
    for folder in folders:
        whole_path = os.path.normpath(folder / path)
        if os.path.exists(whole_path) or glob.glob(whole_path):
            if folder == Path.cwd():
                return path
            return whole_path
    return path


def with_found_paths(values: dict[str, object], folders: list[Path]) -> dict[str, object]:
    """The values of a recipe, or of one entry of `datasets`, with the paths that were found.

    `output_dir` is written, so that it starts from the current folder.

    Args:
        values: Sound values by key.
        folders: Where relative paths are looked for.
    """
    found = dict(values)
    for key in ("model_name_or_path", "chat_template_path", "dataset_name", "path", "deepspeed"):
        value = values.get(key)
        if isinstance(value, str) and value not in FILE_BUILDERS:
            found[key] = find_path(value, folders)
    for key in ("split", "test_split", "dataset_train_split", "dataset_test_split"):
        value = values.get(key)
        if isinstance(value, str) and value.endswith(DATA_SUFFIXES):
            found[key] = find_path(value, folders)
    if values.get("path") in FILE_BUILDERS:
        found["data_files"] = _found_files(values.get("data_files"), folders)
    return found


def _found_files(files: object, folders: list[Path]) -> object:
    """`data_files` with the paths that were found, whether it is one file, many, or by split."""
    if isinstance(files, dict):
        return {split: _found_files(of_split, folders) for split, of_split in files.items()}
    if isinstance(files, list):
        return [_found_files(file, folders) for file in files]
    if isinstance(files, str):
        return find_path(files, folders)
    return files


def as_seen_from_here(path: Path) -> str:
    """A path as one would type it: relative if it lies below the current folder."""
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(path)


# --- Recipes that are shipped ---------------------------------------------------------------------


def find_recipe(name: str) -> str:
    """The path of a recipe: the file of that name, or else the shipped recipe of that name.

    Args:
        name: A path, from here or from the repository, or a short name such as `qwen-0.5b`.

    Returns:
        The path; the name itself if there is no such recipe.
    """
    if os.path.isfile(name):
        return name
    for path in (RECIPES / f"{name}.yaml", RECIPES / name, REPOSITORY / name):
        if path.is_file():
            return as_seen_from_here(path)
    return name


def similar_recipes(name: str) -> list[str]:
    """The short names of the shipped recipes that may have been meant, at most three."""
    names = [path.stem for path in shipped_recipes()]
    word = Path(name).name.removesuffix(".yaml").lower()
    beginning = [name for name in names if word and name.startswith(word)]
    return (beginning or difflib.get_close_matches(word, names))[:3]


def shipped_recipes() -> list[Path]:
    """The files of recipes/, in the order of their names."""
    return sorted(RECIPES.glob("*.yaml"), key=lambda path: path.stem)


def list_of_recipes(width: int) -> str:
    """What `--list-recipes` prints: each recipe's name, what it is, and what it needs.

    Args:
        width: The columns of the terminal.
    """
    lines = ["python train_rm.py --recipe NAME, or a file of your own", ""]
    for path in shipped_recipes():
        what, needs = _what_and_needs(path.read_text(encoding="utf-8"))
        lines.append(path.stem)
        for text in (what, f"needs: {needs}"):
            lines += textwrap.wrap(
                text, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
            )
    return "\n".join(lines)


def _what_and_needs(recipe: str) -> tuple[str, str]:
    """The first sentence of a recipe's header, and the first one of what it assumes."""
    header = recipe.partition("\n\n")[0]
    lines = [line.removeprefix("#").strip() for line in header.splitlines()]
    what, _, rest = " ".join(lines).partition("Assumes:")
    needs, _, _ = rest.partition("Launch:")
    return _first_sentence(what), _first_sentence(needs)


def _first_sentence(text: str) -> str:
    sentence, _, _ = text.strip().partition(". ")
    return sentence.removesuffix(".")
