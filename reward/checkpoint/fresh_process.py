"""A fresh process: a child that knows nothing of the launcher that started this one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

CHILD_TIMEOUT = 1800  # seconds; a child that hangs counts as a failure

# Environment variables of a launched process. A child that had them would wait for the other
# processes for ever, or load its model in pieces as they do.
LAUNCHERS_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "MASTER_",
    "ACCELERATE_",
    "FSDP_",
    "TORCHELASTIC_",
    "GROUP_",
    "ROLE_",
)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be loaded, or does not give the rewards it was trained to give."""


def leave_launcher() -> None:
    """Forget what accelerate or torchrun told this process, which goes on alone."""
    for key in list(os.environ):
        if key.startswith(LAUNCHERS_VARIABLES):
            del os.environ[key]


def run_in_fresh_process(module: str, folder: str | Path) -> dict:
    """Run `python -m MODULE FOLDER` without this process's launcher.

    Args:
        module: A module of this repository.
        folder: Its one argument, a checkpoint.

    Returns:
        The JSON object that it prints as its last line.

    Raises:
        CheckpointError: It failed, or took longer than CHILD_TIMEOUT.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-m", module, str(folder)],
            env=environment_without_launcher(),
            capture_output=True,
            text=True,
            timeout=CHILD_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{folder}: a fresh process did not finish loading it in {CHILD_TIMEOUT} s"
        ) from None
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise CheckpointError(
            f"{folder}: {name} ended the fresh process that loads it, usually because the machine "
            "has too little memory for a second copy of the model. Free some, then give the same "
            "command with --resume auto."
        )
    if child.returncode:
        last_words = child.stderr.strip()[-2000:]
        raise CheckpointError(f"{folder}: a fresh process could not load it:\n{last_words}")
    return json.loads(child.stdout.strip().splitlines()[-1])


def environment_without_launcher() -> dict[str, str]:
    """Return a child's environment variables, with this repository among Python's paths."""
    environment = {}
    for key, value in os.environ.items():
        if not key.startswith(LAUNCHERS_VARIABLES):
            environment[key] = value
    paths = [str(Path(__file__).parents[2])]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment
