"""One process at a time writes here: a lock that ends with its process, and who holds it.

    file = open_locked("rm-out/.training.lock", hint="give another output_dir")

The lock is held until the file is closed. The file holds lines of JSON; `{"run": {...}}` is who
opened it.
"""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from datetime import datetime
from typing import BinaryIO

from reward.data.files import DataError

LOCK = ".training.lock"  # the file in an output_dir that a training holds
# For so long a lock is waited for. A process that was killed takes a moment, and processes that
# read data for it 5 s more to see that it is gone.
LOCK_SECONDS = 2.0
LOCK_SECONDS_OF_TRAINING = 10.0
NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of some network file systems


def this_run() -> dict:
    """Who writes, for whoever finds the file locked."""
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().isoformat(" ", "seconds"),
    }


def open_locked(path: str, hint: str, seconds: float | None = None) -> BinaryIO:
    """Open a file that this process alone writes, at its end. The lock ends with the process.

    Where the file system has no locks, the file is opened without one, and stderr says so.

    Args:
        path: The file, which is made where it does not exist.
        hint: What to do if another process has it.
        seconds: How long to wait for the lock; None takes LOCK_SECONDS.

    Raises:
        DataError: Another process has the lock.
        OSError: The file cannot be opened.
    """
    if seconds is None:
        seconds = LOCK_SECONDS
    deadline = time.monotonic() + seconds
    while True:
        file = open(path, "a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                file.close()
                time.sleep(0.05)
                continue
            raise DataError(
                f"{path}: {_writer_in_words(file)} is writing it; wait until it ends, or {hint}"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS_HERE:
                raise
            print(
                f"{path}: this file system has no locks ({error.strerror}); take care that no "
                "other process writes there",
                file=sys.stderr,
            )
        # The process that had the lock before may have deleted the file in between.
        if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
        file.close()


def _writer_in_words(file: BinaryIO) -> str:
    file.seek(0)
    runs = [line for line in file if line.startswith(b'{"run"') and line.endswith(b"\n")]
    if not runs:
        return "another process"
    run = json.loads(runs[-1])["run"]
    return f"process {run['process']} on {run['host']}, since {run['since']},"
