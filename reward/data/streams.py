"""What is printed may be lost, and the run goes on: `keep_printing()` at the start of a script.

Whoever reads the output may go away, as `head` does, or the terminal of a long training; the file
that it goes to may lie on a full disk. Python would end the run with a traceback. Only rows that
are written to standard output are the result itself: `stream_of_rows()` raises.

What is printed, also by other libraries and in a traceback, holds no secret.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from reward.data.secrets import hide_secrets


class LastingStream:
    """A standard stream that is printed to for as long as somebody takes it.

    Args:
        stream: The stream.
        was_closed: Whether there was none when the script started, and `stream` leads nowhere.
    """

    def __init__(self, stream: TextIO, was_closed: bool = False):
        self.stream = stream
        self.was_closed = was_closed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(hide_secrets(text)))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            lead_nowhere(self.stream)
            if error.errno != errno.EPIPE and self.stream is not sys.__stderr__:
                print(
                    f"standard output: {error.strerror}; what is printed is lost, the run goes on",
                    file=sys.stderr,
                )


def keep_printing() -> None:
    """Let standard output and standard error be lost without ending this process."""
    _occupy_closed_descriptors()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        was_closed = stream is None
        if was_closed:
            stream = open(os.devnull, "w", encoding="utf-8")
        setattr(sys, name, LastingStream(stream, was_closed))


def _occupy_closed_descriptors() -> None:
    """Let the standard descriptors that are closed lead nowhere.

    A file that is opened would get the number of one, and whatever a library or a child prints.
    """
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            continue
        os.open(os.devnull, os.O_RDWR)  # which gets the lowest number that is free


def lead_nowhere(stream: TextIO) -> None:
    """Throw away what is written to a stream from now on, and what its buffer still holds."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def stream_of_rows() -> TextIO:
    """Standard output for rows, which must not be lost.

    Raises:
        OSError: Standard output is closed.
    """
    if not isinstance(sys.stdout, LastingStream):
        return sys.stdout
    if sys.stdout.was_closed:
        raise OSError(errno.EBADF, "it is closed")
    return sys.stdout.stream
