"""Ctrl-C and SIGTERM: exit statuses, and processes that end with their parent."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 75  # EX_TEMPFAIL: run the same command again to go on

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>: the signal that a process gets when its parent dies


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived. The message says what is kept and how to go on."""


def raise_on_sigterm() -> None:
    """Let SIGTERM do what Ctrl-C does: raise KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, _raise)


def _raise(signal_number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def held_back() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block has ended."""
    received = []
    handlers = {}
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        handlers[signal_number] = signal.signal(
            signal_number, lambda number, frame: received.append(number)
        )
    try:
        yield
    finally:
        for signal_number, handler in handlers.items():
            signal.signal(signal_number, handler)
    for signal_number in received:
        signal.raise_signal(signal_number)


def die_with_launcher() -> None:
    """Ask for SIGTERM when accelerate's launcher dies, which does not pass it on."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        die_with_parent(signal.SIGTERM)


def die_with_parent(signal_number: int) -> None:
    """Ask Linux for a signal to this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)
