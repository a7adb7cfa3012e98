"""The contract: a saved model gives the trained model's rewards before it is put in its place.

A trained model is saved beside its final place, verified in a child process
(reward/checkpoint/verify.py, which loads it with stock transformers), and then moved to where the
recipe wants it.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from reward.checkpoint.folders import remove
from reward.checkpoint.fresh_process import CheckpointError, run_in_fresh_process
from reward.checkpoint.manifest import MANIFEST, read_manifest

CARD = "README.md"
EXACT = 1e-4  # the difference that is always allowed, and the only one in float32
# What is allowed where weights are rounded to 16 bits or fewer, as a part of the rewards' standard
# deviation.
ALLOWED_OF_STD = 0.05
# The same where the engine casts the weights (DeepSpeed, FSDP): it computes in 16 bits what the
# file holds in 32. Rounding moves a reward by .024 on average (docs/speed.md), one of 16 by more
# than .05; weights that are not the trained ones move it by about 1.
ALLOWED_WHERE_CAST = 0.2


@dataclass
class Verified:
    """A saved model's golden rewards, and how far they are from the trained model's."""

    rewards: list[float]  # in the order of golden.jsonl
    max_difference: float
    tolerance: float  # the largest difference that would have been allowed
    seconds: float  # that the fresh process took

    def for_manifest(self) -> dict[str, float]:
        """Return the manifest's `verified`."""
        return {
            "max_difference": self.max_difference,
            "tolerance": self.tolerance,
            "seconds": self.seconds,
        }


def verify_saved_model(
    folder: str | Path, trained_rewards: list[float], tolerance_of_std: float
) -> Verified:
    """Compare a saved model's golden rewards, in a fresh process, with the trained model's.

    Args:
        folder: The saved model, with golden.jsonl and manifest.json.
        trained_rewards: Rewards of the golden texts, as the model in memory gave them.
        tolerance_of_std: The allowed difference as a part of the rewards' standard deviation, where
            bf16 or 4-bit weights round; 0 in float32, which allows EXACT alone.

    Raises:
        CheckpointError: The model cannot be loaded, or a reward differs by more than is allowed.
    """
    start = time.monotonic()
    rewards = run_in_fresh_process("reward.checkpoint.verify", folder)["rewards"]
    tolerance = max(EXACT, tolerance_of_std * standard_deviation(trained_rewards))
    differences = []
    for reward, trained_reward in zip(rewards, trained_rewards, strict=True):
        differences.append(abs(reward - trained_reward))
    largest = max(differences)
    all_close = all(difference <= tolerance for difference in differences)  # False for NaN anywhere
    if not all_close:
        raise CheckpointError(
            f"{folder}: a fresh process gives other rewards than the trained model: they differ by "
            f"up to {largest:.3g}, allowed is {tolerance:.3g}. The files do not hold what was "
            "trained; they stay there for inspection."
        )
    return Verified(rewards, largest, tolerance, seconds=time.monotonic() - start)


def standard_deviation(values: list[float]) -> float:
    """Return the sample standard deviation; 0 for a single value."""
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    return (squares / max(len(values) - 1, 1)) ** 0.5


def put_in_place(staging: str | Path, output_dir: str | Path) -> list[str]:
    """Move a verified model to its final place: the weights behind the rest, the manifest last.

    What an earlier model left there goes first, its manifest last. If the process is killed
    meanwhile, the manifest lists files that are not there, or the folder holds no manifest.

    Args:
        staging: The verified model, a folder on the same disk. It is gone afterwards.
        output_dir: The final place.

    Returns:
        The folders with audits of an earlier model that were removed. Where the earlier model is
        the same one, its audits and its card stay: a scheduler may resume a run that has ended.
    """
    staging, output_dir = Path(staging), Path(output_dir)
    audits = [output_dir / "audit", *output_dir.glob("audit-*")]
    audits = [folder for folder in audits if folder.exists()]
    if _is_same_model(staging, output_dir):
        audits = []
        if (output_dir / CARD).is_file():
            (staging / CARD).unlink(missing_ok=True)
    _remove_earlier_model(output_dir)
    for folder in audits:
        remove(folder)
    order = sorted(staging.iterdir(), key=lambda path: path.suffix == ".safetensors")
    for path in sorted(order, key=lambda path: path.name == MANIFEST):
        target = output_dir / path.name
        if target.is_dir():
            remove(target)
        os.replace(path, target)
    staging.rmdir()
    return [str(folder) for folder in audits]


def _is_same_model(staging: Path, output_dir: Path) -> bool:
    """Whether the files of both are the same: weights, tokenizer, and the pairs of the audit."""
    files = []
    for folder in (staging, output_dir):
        try:
            hashes = dict(read_manifest(folder)["files"])
        except (ValueError, LookupError, TypeError):  # no manifest, or a damaged one
            return False
        hashes.pop("recipe.yaml", None)  # what decides the weights is compared before a resume
        files.append(hashes)
    return files[0] == files[1]


def _remove_earlier_model(output_dir: Path) -> None:
    """Remove what a manifest lists, weights without one, and a merged model."""
    try:
        listed = list(read_manifest(output_dir)["files"])
    except (ValueError, LookupError, TypeError):  # no manifest, or a damaged one
        listed = []
    for name in listed:
        if Path(name).name == name:  # a file of this folder
            remove(output_dir / name)
    remove(output_dir / "merged")
    for pattern in ("*.safetensors", "*.safetensors.index.json", "adapter_config.json"):
        for old in output_dir.glob(pattern):
            old.unlink()
    (output_dir / MANIFEST).unlink(missing_ok=True)
