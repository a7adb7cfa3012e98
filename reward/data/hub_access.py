"""Whether the Hub can be reached, asked once: `use_cache_if_unreachable()` before a Hub id is read.

huggingface_hub asks six times for each file that the cache lacks, and waits 23 seconds in between.
Where nobody answers, this process goes on as if HF_HUB_OFFLINE were set: at once, from the cache.
"""

import os
import sys
from functools import cache

import httpx2
from huggingface_hub import constants
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
