"""Checkpoints to resume from: sealed when they are whole, and verified before they are trusted."""

import json
import os
from dataclasses import replace
from pathlib import Path

from transformers import Trainer, TrainerCallback, TrainerState

from reward.checkpoint.folders import checkpoint_folders, remove, remove_older
from reward.checkpoint.manifest import MANIFEST, Manifest, hash_files, seal


class SealCheckpoint(TrainerCallback):
    """Writes manifest.json into each checkpoint-N/ once every process has saved its part.

    Only then are older checkpoints deleted: at any moment one is whole.

    Args:
        trainer: The trainer that saves the checkpoints. It deletes none from now on.
        manifest: The run's own, which fills up meanwhile.

    Attributes:
        step: Of the checkpoint that was sealed last; None before.
    """

    def __init__(self, trainer: Trainer, manifest: Manifest):
        self.trainer, self.manifest = trainer, manifest
        self.limit, trainer.args.save_total_limit = trainer.args.save_total_limit, None
        self.step: int | None = None

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        was_whole = (folder / MANIFEST).is_file()  # the run goes on from it
        try:
            self.trainer.accelerator.wait_for_everyone()
            if state.is_world_process_zero and folder.is_dir():
                self._seal(folder, state)
        except BaseException:  # the disk is full, or another process is gone
            if state.is_world_process_zero and not was_whole:
                remove(folder)
            raise
        if state.is_world_process_zero and self.limit:
            remove_older(folder, state.best_model_checkpoint, self.limit)
        self.step = state.global_step
        # A launcher ends all processes once one is gone, also the one that still hashes.
        self.trainer.accelerator.wait_for_everyone()

    def _seal(self, folder: Path, state: TrainerState) -> None:
        # A pickle that nothing of ours reads, and that may hold the Hub's token.
        (folder / "training_args.bin").unlink(missing_ok=True)
        metrics = last_evaluation(state.log_history)
        manifest = replace(self.manifest, step=state.global_step, metrics=metrics)
        if manifest.paths_from is not None:
            manifest.paths_from = os.path.join("..", manifest.paths_from)
        seal(folder, manifest.as_dict())


def what_is_kept(output_dir: str | Path) -> str:
    """Say in words which checkpoint a run that was stopped can go on from, and how."""
    sealed = [path for path in checkpoint_folders(Path(output_dir)) if (path / MANIFEST).is_file()]
    if not sealed:
        return "there is no checkpoint yet; the same command with --resume auto starts anew"
    return f"{sealed[-1]} is whole; go on with the same command and --resume auto"


def last_evaluation(log_history: list[dict]) -> dict:
    """Return the last logged metrics of an evaluation; {} where there was none."""
    for entry in reversed(log_history):
        if "eval_accuracy" in entry:
            return entry
    return {}


def newest_valid_checkpoint(
    output_dir: str | Path, needs_best: bool = False
) -> tuple[str | None, list[str]]:
    """Return the newest checkpoint that can be resumed from exactly, and why not the newer ones.

    Args:
        output_dir: The folder of the run.
        needs_best: Whether the best checkpoint is loaded at the end.

    Returns:
        The folder, None where there is none, and one line for each newer one that was passed over.
    """
    passed_over = []
    for folder in reversed(checkpoint_folders(Path(output_dir))):
        fault = checkpoint_fault(folder, needs_best)
        if fault is None:
            return str(folder), passed_over
        passed_over.append(f"{folder}: {fault}")
    return None, passed_over


def checkpoint_fault(folder: str | Path, needs_best: bool = False) -> str | None:
    """Return why `folder` cannot be resumed from exactly; None if it can.

    Args:
        folder: A folder checkpoint-N/.
        needs_best: Whether the best checkpoint, a folder beside this one, is needed too.
    """
    manifest = Path(folder) / MANIFEST
    if not manifest.is_file():
        return "no manifest.json, so saving it was interrupted"
    try:
        files = dict(json.loads(manifest.read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError):
        return "manifest.json is damaged"
    if "trainer_state.json" not in files:
        return "no trainer_state.json"
    if not any(holds_optimizer(name) for name in files):
        return "no optimizer state (save_only_model?), so resuming would start a fresh optimizer"
    hashes = hash_files(folder)
    wrong = sorted(name for name, digest in files.items() if hashes.get(name) != digest)
    if wrong:
        return f"{', '.join(wrong)} missing or changed since it was saved"
    if needs_best:
        return _fault_of_best(Path(folder))
    return None


def _fault_of_best(folder: Path) -> str | None:
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    if state.get("best_model_checkpoint") is None:
        return None
    best = folder.parent / Path(state["best_model_checkpoint"]).name
    if best.name == folder.name:
        return None
    fault = checkpoint_fault(best)
    if fault is not None:
        return f"its best checkpoint, {best}, is not whole ({fault})"
    return None


def holds_optimizer(name: str) -> bool:
    """Return whether this is a file of optimizer state: Trainer's, FSDP's or DeepSpeed's."""
    return "optimizer" in name or "global_step" in name


# --- Whose checkpoint it is -----------------------------------------------------------------------

IN_WORDS = {"fingerprints": "pairs of the split ", "versions": "version of "}
# What a checkpoint and the run that goes on from it must have in common, by the manifest's keys.
SAME = (
    "base_revision",
    "base_files",
    "adapter",
    "quantization",
    "dtype",
    "labels",
    "max_length",
    "encoder",
    "precision",
    "processes",
    "fingerprints",
    "versions",
    "recipe",
)


def differences_of_runs(folder: str | Path, manifest: Manifest) -> list[str]:
    """Compare a checkpoint with the run that would go on from it.

    A key that one of the two does not have, because an earlier version wrote it, is not compared.

    Args:
        folder: A whole checkpoint.
        manifest: The run's own.

    Returns:
        A line for each difference, such as `learning_rate: 0.001 there, 0.0001 here`.
    """
    theirs = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
    ours = json.loads(json.dumps(manifest.as_dict()))  # tuples are lists in a file
    lines = []
    for key in SAME:
        if key not in theirs or key not in ours:
            continue
        if isinstance(theirs[key], dict) and isinstance(ours[key], dict):
            names = sorted(theirs[key].keys() | ours[key].keys())
            pairs = [(name, theirs[key].get(name), ours[key].get(name)) for name in names]
        else:
            pairs = [(key, theirs[key], ours[key])]
        for name, there, here in pairs:
            if there != here:
                what = IN_WORDS.get(key, "") + name
                lines.append(f"{what}: {_short(there)} there, {_short(here)} here")
    return lines


def _short(value: object) -> str:
    text = str(value)
    if len(text) > 60:
        return text[:57] + "..."
    return text
