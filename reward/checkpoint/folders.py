"""The folders of an output_dir: checkpoint-N/, and how they are deleted. No link is followed."""

import re
import shutil
from pathlib import Path

OF_A_STEP = re.compile(r"checkpoint-[0-9]+")  # a copy with a name of its own is not the trainer's


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there; of a link only the link."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def step_of(folder: Path) -> str:
    """Return what stands behind the last hyphen: the step, for a folder that the trainer named."""
    return folder.name.split("-")[-1]


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """Return the folders checkpoint-N of a run, the first step first."""
    folders = [path for path in output_dir.glob("checkpoint-*") if OF_A_STEP.fullmatch(path.name)]
    return sorted(folders, key=lambda path: int(step_of(path)))


def remove_older(newest: Path, best: str | None, limit: int) -> None:
    """Delete checkpoints until `limit` are left; `newest` and `best` always stay.

    Those with a later step than `newest` go first: they belong to a run that was given up.

    Args:
        newest: The folder checkpoint-N that was sealed last.
        best: The folder of the best checkpoint; None where there is none.
        limit: The recipe's save_total_limit; below 1 all stay, as for transformers.
    """
    if limit < 1:
        return
    stay = {newest.name}
    if best is not None:
        stay.add(Path(best).name)
    others = [path for path in checkpoint_folders(newest.parent) if path.name not in stay]
    others.sort(key=lambda path: int(step_of(path)) < int(step_of(newest)))
    surplus = len(others) + len(stay) - max(limit, len(stay))
    for folder in others[: max(0, surplus)]:
        remove(folder)
