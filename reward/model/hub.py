"""Files of a checkpoint, from a local folder or from the Hub.

Imports no torch and no transformers, so that a name that does not exist is answered at once.
"""

import hashlib
import json
import os
import re
from pathlib import Path

import httpx2
from huggingface_hub import (
    _CACHED_NO_EXIST,
    constants,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError

from reward.data.hub_access import hub_fault, use_cache_if_unreachable

# A model in the cache has one of these: the file of a full model or of an adapter.
CONFIG_FILES = ("config.json", "adapter_config.json")

SHA1 = re.compile("[0-9a-f]{40}")  # the name of a commit too
SHA256 = re.compile("[0-9a-f]{64}")
SMALL_FILE = 1 << 25  # bytes; such a file is compared with its hash whenever it is used


class ModelError(ValueError):
    """A checkpoint is no reward model, or cannot become one.

    The message names the tensors and the mend.
    """


def checkpoint_json(name: str, file: str, revision: str = "main") -> dict | list | None:
    """Return the content of a checkpoint's JSON file; None where the checkpoint has no such file.

    Arguments are those of `checkpoint_file`.

    Raises:
        ModelError: As in `checkpoint_file`, or the file is no valid JSON, or null.
    """
    path = checkpoint_file(name, file, revision)
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as handle:
            content = json.load(handle)
    except (ValueError, RecursionError) as error:  # no UTF-8 and no JSON are both a ValueError
        raise ModelError(f"{name}: {file} is no valid JSON: {error}") from None
    if content is None:  # it would pass for a file that is not there
        raise ModelError(f"{name}: {file} holds null; copy it again")
    return content


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
    is_commit = SHA1.fullmatch(revision) is not None
    if is_commit and try_to_load_from_cache(name, file, revision=revision) is _CACHED_NO_EXIST:
        return None  # what a commit lacks it will always lack
    use_cache_if_unreachable()
    try:
        path = hf_hub_download(name, file, revision=revision)
        if os.path.getsize(path) <= SMALL_FILE:
            refuse_damaged_download(name, path)
        return path
    except ModelError:
        raise
    except RemoteEntryNotFoundError:
        return None
    except HFValidationError:
        raise ModelError(f"{name}: no such folder here, and no id of a model on the Hub") from None
    except (OSError, httpx2.HTTPError, ValueError) as error:
        if _known_to_lack(name, file, revision):
            return None
        if constants.is_offline_mode():
            reason = "no such folder here, and the Hub cannot be reached"
        else:
            reason = hub_fault(error) or f"{file} cannot be read from the Hub ({error})"
        raise ModelError(f"{name}: {reason}") from error


def refuse_damaged_download(name: str, path: str) -> None:
    """Raise ModelError where a file of the Hub's cache is not what the Hub has.

    The cache names each file by the hash that the Hub gives it: git's for a small file, SHA-256 for
    a large one. Some mirrors give SHA-1. A file that lies elsewhere is not compared.

    Args:
        name: The Hub model, for the message.
        path: The file.
    """
    stored = os.path.realpath(path)
    expected = os.path.basename(stored)
    if SHA256.fullmatch(expected):
        is_sound = _file_hash(stored, "sha256") == expected
    elif SHA1.fullmatch(expected):
        git_header = b"blob %d\0" % os.path.getsize(stored)
        is_sound = expected == _file_hash(stored, "sha1", git_header)
        is_sound = is_sound or expected == _file_hash(stored, "sha1")
    else:
        return
    if not is_sound:
        raise ModelError(
            f"{name}: {os.path.basename(path)} in the cache is not what the Hub has: it was "
            f"damaged on its way or on the disk. Delete it, and it is fetched again: rm {stored}"
        )


def _file_hash(path: str, kind: str, header: bytes = b"") -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, header)).hexdigest()


def _known_to_lack(name: str, file: str, revision: str) -> bool:
    """Return whether a model is in the cache, and is known to have no such file.

    Without the Hub, a model of which the cache has a config has no file that the cache lacks. With
    a Hub that fails, the file may have been on its way.
    """
    if try_to_load_from_cache(name, file, revision=revision) is _CACHED_NO_EXIST:
        return True
    cached = [try_to_load_from_cache(name, file, revision=revision) for file in CONFIG_FILES]
    return constants.is_offline_mode() and any(isinstance(path, str) for path in cached)


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
        raise ModelError(f"{name}: {_without_config(name)}")


def resolved_revision(name: str, revision: str) -> str | None:
    """Return the commit of a Hub model's branch or tag; None for a local folder.

    Every file of a model is read from one commit, also if the branch moves meanwhile. Training
    records it, so that the KL anchor of a later policy is this very commit.

    Raises:
        ModelError: As in `checkpoint_file`, or the model has no config.
    """
    if os.path.isdir(name):
        return None
    for file in CONFIG_FILES:
        path = checkpoint_file(name, file, revision)
        if path is not None:  # in the cache: .../snapshots/COMMIT/config.json
            return Path(path).parent.name
    raise ModelError(f"{name}: {_without_config(name)}")


def _without_config(name: str) -> str:
    """What is wrong with a model that has no config.json."""
    if not os.path.isdir(name):
        return "neither a folder nor a Hub model with a config.json"
    checkpoints = sorted(Path(name).glob("checkpoint-*/config.json"), key=os.path.getmtime)
    if checkpoints:
        newest = checkpoints[-1].parent
        return (
            "the folder has no config.json, so its training has not ended: go on with --resume "
            f"auto, or name its newest checkpoint, {newest}"
        )
    return "the folder has no config.json, so it holds no model"
