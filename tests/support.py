"""Scripts as subprocesses, forked processes, files of rows: what tests of every folder call.

`REPO` is the repository, `SHARED` a folder of real data beside it, which need not be there.
"""

import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from tqdm import tqdm

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("RM_SHARED", REPO.parent / "shared"))


def own_lock_of_bars() -> None:
    """Give this process a lock of its own for tqdm's bars.

    A forked process shares its parent's. If it is killed while it holds that, all others wait for
    ever.
    """
    tqdm.set_lock(threading.RLock())


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Rows as JSONL, gzipped where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


def last_of_each(options: list) -> list:
    """The options, each of them once: of one that comes twice, the last value counts.

    A command line with an option twice is refused.
    """
    values = {}
    for word in options:
        if str(word).startswith("--"):
            name = word
            values.pop(name, None)
            values[name] = []
        else:
            values[name].append(word)
    return [word for name in values for word in (name, *values[name])]


def run_script(
    *command,
    timeout: float = 300,
    env: dict | None = None,
    cwd: Path = REPO,
    check: bool = True,
) -> subprocess.CompletedProcess:
    """Run `python COMMAND...` in the repository; the output is text.

    Args:
        command: the script and its options.
        timeout: seconds.
        env: what is added to this process's environment.
        cwd: the folder that the command runs in.
        check: whether an exit status above 0 raises AssertionError, with the end of the output.
    """
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    if check and done.returncode:
        output = f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        raise AssertionError(f"exit {done.returncode}\n{output}")
    return done
