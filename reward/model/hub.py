"""Files of a checkpoint, from a local folder or from the Hub.

Imports no torch and no transformers, so that a name that does not exist is answered at once.
"""

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

from reward.data.hub_access import use_cache_if_unreachable

# A model in the cache has one of these: the file of a full model or of an adapter.
CONFIG_FILES = ("config.json", "adapter_config.json")


class ModelError(ValueError):
    """A checkpoint is no reward model, or cannot become one.

    The message names the tensors and the mend.
    """


def checkpoint_json(name: str, file: str, revision: str = "main") -> dict | list | None:
    """Return the content of a checkpoint's JSON file; None where the checkpoint has no such file.

    Arguments are those of `checkpoint_file`.

    Raises:
        ModelError: As in `checkpoint_file`, or the file is no valid JSON.
    """
    path = checkpoint_file(name, file, revision)
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except (ValueError, RecursionError) as error:  # no UTF-8 and no JSON are both a ValueError
        raise ModelError(f"{name}: {file} is no valid JSON: {error}") from None


def checkpoint_object(name: str, file: str, revision: str = "main") -> dict | None:
    """Return the content of a JSON file that holds an object; None where there is no such file.

    Arguments are those of `checkpoint_file`.

    Raises:
        ModelError: As in `checkpoint_json`, or the file holds no object.
    """
    content = checkpoint_json(name, file, revision)
    if content is not None and not isinstance(content, dict):
        raise ModelError(f"{name}: {file} holds no JSON object with named keys")
    return content


def checkpoint_file(name: str, file: str, revision: str = "main") -> str | None:
    """Return the local path of a checkpoint's file, which may be downloaded for it.

    Args:
        name: A folder, or the id of a Hub model.
        file: The file's path inside the checkpoint.
        revision: The branch, tag or commit of a Hub model.

    Returns:
        The path; None where the checkpoint has no such file.

    Raises:
        ModelError: The checkpoint is neither a folder nor a Hub model that can be read.
    """
    if os.path.isdir(name):
        path = os.path.join(name, file)
        if os.path.isfile(path):
            return path
        return None
    use_cache_if_unreachable()
    try:
        return hf_hub_download(name, file, revision=revision)
    except LocalEntryNotFoundError as error:  # The Hub cannot be reached.
        if _in_cache(name, revision):
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


def _in_cache(name: str, revision: str) -> bool:
    """Return whether the cache has the model, which then has no file that the cache lacks."""
    cached = [try_to_load_from_cache(name, file, revision=revision) for file in CONFIG_FILES]
    return any(isinstance(path, str) for path in cached)


def why_absent(name: str, revision: str = "main") -> str | None:
    """Return why there is no such checkpoint; None where there is one, which may be a bad one.

    The scripts ask this on the first process of a host, before they import what takes seconds.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    try:
        checkpoint_file(name, "config.json", revision)
    except ModelError as error:
        return str(error)
    return None


def require_model(name: str, revision: str) -> None:
    """Raise ModelError where `name` is neither a folder nor a Hub model with a config.json."""
    if checkpoint_file(name, "config.json", revision) is None:
        raise ModelError(f"{name}: neither a folder nor a Hub model with a config.json")


def resolved_revision(name: str, revision: str) -> str | None:
    """Return the commit of a Hub model's branch or tag; None for a local folder.

    Training records it, so that the KL anchor of a later policy is this very commit.
    """
    if os.path.isdir(name):
        return None
    from transformers.utils.hub import extract_commit_hash

    require_model(name, revision)
    return extract_commit_hash(checkpoint_file(name, "config.json", revision), None)
