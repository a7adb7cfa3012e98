"""A verified checkpoint -> a repository on the Hub.

    python -m reward.checkpoint.push rm-out you/my-reward-model

`train_rm.py --push you/my-reward-model` does the same once the save is verified. Uploaded are the
files that the manifest seals, the card, merged/ and the audit's report. Left here are
checkpoint-N/, the trackers' files, and the scored test pairs of the audit. A new repository is
private, because golden.jsonl and the report hold texts of the test pairs; the recipe's
`hub_private_repo: false` makes it public.
"""

import argparse
import sys
from pathlib import Path

import httpx2
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from reward.checkpoint.fresh_process import CheckpointError
from reward.checkpoint.manifest import MANIFEST, hash_files, read_manifest
from reward.data.hub_access import hub_fault
from reward.data.secrets import holds_secret
from reward.data.shown import shown
from reward.data.streams import keep_printing

# What was made after the manifest and belongs to the checkpoint all the same.
ADDED = (MANIFEST, "README.md", "merged/*", "audit/*")
NEVER = ("audit/scores.jsonl", "*training_args.bin", "checkpoint-*/*", "runs/*")
# Of an earlier push: a model in other shards, an adapter, a report of other weights.
REPLACED = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", *ADDED[2:])


def push(folder: str | Path, name: str) -> str:
    """Upload a checkpoint in one commit. Weights that lie in the repository are replaced by it.

    Args:
        folder: A checkpoint that train_rm.py saved and verified.
        name: The repository, `you/my-reward-model`; it is made if there is none.

    Returns:
        The repository's address.

    Raises:
        CheckpointError: The checkpoint is not as it was verified, or the Hub refuses.
    """
    if holds_secret(name):
        raise CheckpointError(f"{name} is a secret and no name of a repository: you/my-model")
    folder = Path(folder)
    files = verified_files(folder)
    api = HfApi()
    try:
        repository = api.create_repo(name, private=_wants_private(folder), exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            allow_patterns=[*files, *ADDED],
            ignore_patterns=list(NEVER),
            delete_patterns=list(REPLACED),
            commit_message=f"Reward model {folder.resolve().name}, verified",
        )
    except (OSError, HFValidationError, httpx2.HTTPError) as error:
        reason = hub_fault(error) or error
        raise CheckpointError(
            f"{folder} is saved and verified, but was not uploaded to {name}: {reason}. Once that "
            f"is mended: python -m reward.checkpoint.push {folder} {name}"
        ) from error
    return str(repository)


def verified_files(folder: Path) -> list[str]:
    """The files of a checkpoint that are as they were when its rewards were verified.

    Raises:
        CheckpointError: There is no verified checkpoint, or its files have changed.
    """
    manifest = read_manifest(folder)
    if manifest is None or not manifest.get("verified"):
        raise CheckpointError(
            f"{folder} holds no verified checkpoint: name the output_dir of a finished run"
        )
    hashes = hash_files(folder)
    sealed = manifest["files"]
    changed = sorted(file for file in sealed if hashes.get(file) != sealed[file])
    if changed:
        raise CheckpointError(
            f"{folder} is not as it was verified: {', '.join(changed)} changed or is gone; "
            "train again, or bring the files back"
        )
    return list(sealed)


def _wants_private(folder: Path) -> bool:
    """Whether a new repository is private: unless the recipe says `hub_private_repo: false`."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    return recipe.get("hub_private_repo") is not False


def main() -> int:
    """Read the command line and upload. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m reward.checkpoint.push",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="the output_dir of a finished run")
    parser.add_argument("name", help="the repository, you/my-reward-model")
    options = parser.parse_args()
    try:
        print(f"uploaded to {push(options.folder, options.name)}")
    except CheckpointError as error:
        print(f"push: {shown(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    keep_printing()
    sys.exit(main())
