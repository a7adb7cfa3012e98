"""Files of a checkpoint, from a local folder or from the Hub."""

import json
import os

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from transformers.utils.hub import extract_commit_hash

KNOWN_FILES = ("config.json", "adapter_config.json")


class ModelError(ValueError):
    """A checkpoint that is no reward model, or cannot become one; the message names the tensors and the mend."""


def checkpoint_json(name, file, revision="main") -> dict | list | None:
    """The content of a JSON file of a local folder or a Hub repository; None where it has no such file."""
    path = checkpoint_file(name, file, revision)
    if path is None:
        return None
    with open(path, encoding="utf-8") as handle:
        return json.load(handle)


def checkpoint_file(name, file, revision="main") -> str | None:
    """A file of a local folder or a Hub repository; None where it has no such file."""
    if os.path.isdir(name):
        path = os.path.join(name, file)
        return path if os.path.isfile(path) else None
    try:
        return hf_hub_download(name, file, revision=revision)
    except LocalEntryNotFoundError as error:  # offline: fine where the model itself is in the cache
        if any(
            isinstance(try_to_load_from_cache(name, known, revision=revision), str)
            for known in KNOWN_FILES
        ):
            return None
        raise ModelError(f"{name}: no such folder here, and the Hub cannot be reached") from error
    except EntryNotFoundError:
        return None
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: accept its licence on the Hub, then `hf auth login`"
        ) from error
    except (HFValidationError, HfHubHTTPError) as error:
        raise ModelError(
            f"{name}: no such folder here, and not to be had from the Hub ({type(error).__name__})"
        ) from error


def _reachable(name, revision) -> None:
    if checkpoint_file(name, "config.json", revision) is None:
        raise ModelError(f"{name}: neither a folder nor a Hub model with a config.json")


def resolved_revision(name: str, revision: str) -> str | None:
    """The commit of a Hub id's branch or tag; None for a local folder. The KL anchor of a later policy is this one."""
    if os.path.isdir(name):
        return None
    _reachable(name, revision)
    return extract_commit_hash(checkpoint_file(name, "config.json", revision), None)
