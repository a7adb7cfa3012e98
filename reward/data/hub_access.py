"""The Hub's faults: `use_cache_if_unreachable()` before a Hub id is read, `hub_fault(error)` after.

huggingface_hub asks six times for each file that the cache lacks, and waits 23 seconds in between,
or as long as a 429 says. Where nobody answers at all, this process goes on as if HF_HUB_OFFLINE
were set: at once, from the cache.
"""

import errno
import os
import sys
from collections.abc import Iterator
from functools import cache

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

# Seconds to open a connection, and to get an answer over it.
PATIENCE = httpx2.Timeout(10, connect=2.5)


def use_cache_if_unreachable() -> None:
    """Take everything from the cache from now on, and say so, if the Hub does not answer."""
    if constants.is_offline_mode():
        return
    problem = why_unreachable(constants.ENDPOINT)
    if problem is None:
        return
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:  # it takes over what it finds when it is imported
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(
            f"{constants.ENDPOINT} cannot be reached ({problem}); "
            "what is not in the cache is not found",
            file=sys.stderr,
        )


@cache
def why_unreachable(endpoint: str) -> str | None:
    """Why a hub does not answer; None if it does, whatever it answers."""
    try:
        get_session().head(endpoint, timeout=PATIENCE)
    except httpx2.TransportError as error:
        return str(error) or type(error).__name__
    return None


# --- What went wrong ------------------------------------------------------------------------------

AGAIN = "run the same command again: whole files stay in the cache"
TOO_MANY_REQUESTS = 429
NOT_ALLOWED = (401, 403)
SERVERS_FAULT = 500  # and above
CANNOT_STORE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
)


def hub_fault(error: BaseException) -> str | None:
    """Return what went wrong while something was read from the Hub or sent to it, and what helps.

    Args:
        error: What huggingface_hub, datasets or transformers raised. The errors behind it count.

    Returns:
        What follows the repository's name and a colon; None if it is nothing of the Hub.
    """
    for cause in causes(error):
        if isinstance(cause, HfHubHTTPError):
            return _in_words(cause)
        if isinstance(cause, httpx2.TransportError):
            reason = str(cause) or type(cause).__name__
            return f"the connection to {constants.ENDPOINT} broke ({reason}); {AGAIN}"
    return storage_fault(error)


def storage_fault(error: BaseException) -> str | None:
    """Return why the cache of downloads and tables cannot be written; None if it can.

    Args:
        error: An error. Those behind it count.
    """
    cause = refused_by_the_disk(error)
    if cause is None:
        return None
    return (
        f"{cause.strerror}: {cause.filename or constants.HF_HOME}. Downloads and tables are kept "
        f"in {constants.HF_HOME}: make room there, or set HF_HOME to a folder that can be written "
        "to"
    )


def refused_by_the_disk(error: BaseException) -> OSError | None:
    """Return the error of a disk that is full, read-only or somebody else's; None without one.

    Args:
        error: An error. Those behind it count.
    """
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in CANNOT_STORE:
            return cause
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those behind it, which it was raised from, the last one first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _in_words(error: HfHubHTTPError) -> str:
    """An answer of the Hub that is an error."""
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return "it is gated: accept its licence on the Hub, then `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "no such folder here, and not to be had from the Hub: check the name; where it is "
            "private, `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return "the Hub has it, but no such revision of it (branch, tag or commit)"
    if status == TOO_MANY_REQUESTS:
        return (
            "the Hub takes no more requests for now (429): wait a few minutes; `hf auth login` "
            "allows more of them"
        )
    if status >= SERVERS_FAULT:
        return f"the Hub answers {status}: the fault is on its side. Wait, and {AGAIN}"
    sentence = f"the Hub answers {status} ({error.server_message or 'without a reason'})"
    if status in NOT_ALLOWED:
        sentence += "; `hf auth login` with a token that is allowed to"
    return sentence
