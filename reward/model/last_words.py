"""Why score.py or audit.py ends: `refuse("score.py", error)` says it once and gives the status."""

import errno
import os
import sys
import time

from reward.data.files import WriteError
from reward.data.hub_access import refused_by_the_disk
from reward.data.shown import shown

PATIENCE = 10.0  # seconds in which the launcher ends this process if another one has spoken

OF_THE_MACHINE = (OSError, RuntimeError, MemoryError)  # errors that may be no fault of a program
MEMORY_WORDS = (
    "CUDA out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "Cannot allocate memory",
    "std::bad_alloc",
    "failed to map segment",  # of a library that is imported late
    "can't start new thread",
)
LOST_WORDS = ("Connection closed by peer", "Connection reset by peer")  # gloo's
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAKE_ROOM = "make room where the output, the cache (HF_HOME) and temporary files (TMPDIR) lie"
LOST_PROCESS = "another process of this launch is gone; what it said stands above"
LESS_MEMORY = "too little memory; lower --token_budget ({reason})"


def refuse(script: str, error: Exception) -> int:
    """Say on stderr why this process ends.

    An error that all processes of a launch have is said by the first. The others wait: the launcher
    ends them as soon as it is gone. Whoever is still there has an error of its own, and says it.

    Args:
        script: The name of the script.
        error: Why. It is raised again if it is a fault of this program.

    Returns:
        The exit status: 2 if the input is at fault, 1 for everything else.
    """
    status = 1
    if isinstance(error, OF_THE_MACHINE):
        sentence = _of_the_machine(error)
        if sentence is None:
            raise error
    else:
        sentence = str(error)
        if not isinstance(error, WriteError):
            status = 2
    rank = int(os.environ.get("RANK", "0"))
    process = ""
    if rank > 0:
        time.sleep(PATIENCE)
        process = f" (process {rank} of {os.environ.get('WORLD_SIZE', '?')})"
    print(f"{script}{process}: {shown(sentence)}", file=sys.stderr, flush=True)
    return status


def _of_the_machine(error: Exception) -> str | None:
    """What the disk, the memory or another process did; None if it is none of them."""
    reason = str(error).strip()
    if any(words in reason for words in LOST_WORDS):
        return LOST_PROCESS
    if isinstance(error, MemoryError) or any(words in reason for words in MEMORY_WORDS):
        first_line = (reason or "MemoryError").splitlines()[0]
        return LESS_MEMORY.format(reason=first_line[:200])
    refused = refused_by_the_disk(error)
    if refused is None:
        return None
    sentence = str(refused.strerror)
    if refused.filename:
        sentence = f"{refused.filename}: {sentence}"
    if refused.errno in FULL:
        sentence += f"; {MAKE_ROOM}"
    return sentence
