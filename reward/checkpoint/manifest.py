"""manifest.json: what a checkpoint was made from and with, and the hashes of its files.

It is written last, so that a folder without one, or with one that disagrees with its files, is
known to be torn or damaged.
"""

import hashlib
import json
import sys
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from reward.data.files import write_json
from reward.data.hashing import sha256_of_file
from reward.data.secrets import without_secrets

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

# These are added or changed after the manifest is written: an audit writes its figures into the
# card.
CHANGED_LATER = (MANIFEST, "README.md")
ADDED_LATER = ("audit/", "audit-", "merged/", "checkpoint-")

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "bitsandbytes",
    "deepspeed",
)


@dataclass(kw_only=True)
class Manifest:
    """The content of manifest.json, in the order of its keys; it fills up while the run goes on.

    Fields that default to None are written once they are known. Read a saved manifest with
    `read_manifest`, whose keys may be fewer: an earlier version wrote it.
    """

    format_version: int = FORMAT_VERSION
    base_model: str  # a Hub id or a folder
    base_revision: str | None  # the commit of a Hub id
    adapter: bool  # LoRA: the folder holds an adapter, not a whole model
    trust_remote_code: bool  # whether the base's own Python code is run to load it
    quantization: dict | None  # the keys of transformers.BitsAndBytesConfig
    dtype: str  # of the saved weights, such as "bfloat16"
    labels: int  # 1, or 2 with head: two_logit, whose reward is logit 1
    max_length: int | None  # tokens of a conversation
    overlong: str  # what happens to longer ones: drop, truncate_prompt, error
    transcript: str  # how strings in the data are read, the recipe's key
    encoder: dict  # what decides an encoding: reward.data.encoding.encoder_facts
    subsets: list[str]  # names of the subsets, in the order of the data's subset_id
    data: list[str]  # each source: path, config name and folder
    fingerprints: dict[str, str]  # split -> hash over its pairs; a streamed split has none
    versions: dict[str, str]  # package -> version
    device: str  # such as "CPU, 2 threads, 1 process(es)"
    precision: str  # such as "bf16 autocast"
    processes: int | None = None  # of the run
    base_files: str | None = None  # a hash of a base folder's files; a Hub id has its revision
    recipe: dict | None = None  # the values that decide the trained weights
    paths_from: str | None = None  # where relative paths start, as seen from the checkpoint
    validation: dict[str, float] | None = None  # metric -> value at the end of training
    train_seconds: float | None = None
    steps: int | None = None  # optimizer steps of the whole run
    batches: str | None = None  # how batches were packed or padded, in words
    date: str | None = None  # the day on which training ended, YYYY-MM-DD
    verified: dict[str, float] | None = None  # max_difference, tolerance, seconds
    step: int | None = None  # of a checkpoint-N: N
    metrics: dict[str, float] | None = None  # of a checkpoint-N: the last evaluation before it

    def as_dict(self) -> dict:
        """Return the keys and values to write; `seal` adds `files`."""
        keys = {}
        for field in fields(self):
            value = getattr(self, field.name)
            unknown_yet = field.default is None and value is None
            if not unknown_yet:
                keys[field.name] = value
        return without_secrets(keys)  # it is published with the checkpoint


def seal(folder: str | Path, keys: dict) -> None:
    """Write manifest.json over all files of `folder`.

    Args:
        folder: A checkpoint whose other files are complete.
        keys: `Manifest.as_dict()`, or the keys of a saved manifest. `files` is made here.
    """
    write_json(Path(folder) / MANIFEST, {**keys, "files": hash_files(folder)})


def read_manifest(folder: str | Path) -> dict | None:
    """Return the keys of a saved manifest; None where the folder has none."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def hash_files(folder: str | Path) -> dict[str, str]:
    """Return relative path -> sha256 of every file below `folder`.

    The manifest itself is left out, and so is what is added or changed after it.
    """
    folder = Path(folder)
    hashes = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if relative in CHANGED_LATER or relative.startswith(ADDED_LATER):
            continue
        if path.is_file():
            hashes[relative] = sha256_of_file(path)
    return hashes


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a reward may depend on.

    A package that is not installed is left out: bitsandbytes and deepspeed are needed by some
    recipes alone.
    """
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def fingerprint(row_ids: list[str]) -> str:
    """Return a hash over the pairs of a split; the order counts.

    Args:
        row_ids: `reward.data.tokens.row_ids` of the split.
    """
    return hashlib.sha256("".join(row_ids).encode()).hexdigest()[:16]
