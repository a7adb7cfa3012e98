"""Several runs of train_rm.py, one after another in the same processes, which import only once.

    python tests/several.py runs.json     # [{"argv": [...], "port": 29501, "seen": null}, ...]

Run number i of rank r writes to i-r.out, i-r.err and i-r.status beside runs.json. `seen` is the
folder for what tests/driver.py notes. Tests call `train_several` of tests/launched.py. A run that
is about its process (signals, exit statuses, what is imported) needs one of its own.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, os.getcwd())

import driver  # noqa: F401  It notes what each process saw.
from accelerate.state import AcceleratorState, GradientState

import train_rm


def main(runs_file: Path) -> None:
    launch_environment = dict(os.environ)
    # torch's launcher keeps one store for all groups. A second group needs one of its own.
    launch_environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    terminal = os.dup(1), os.dup(2)
    for number, run in enumerate(json.loads(runs_file.read_text(encoding="utf-8"))):
        os.environ.clear()
        os.environ.update(launch_environment, MASTER_PORT=str(run["port"]))
        os.environ["SEEN"] = run["seen"] or ""
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        rank = os.environ.get("RANK", "0")
        redirect_to(runs_file.with_name(f"{number}-{rank}.out"), 1)
        redirect_to(runs_file.with_name(f"{number}-{rank}.err"), 2)
        status = train_rm.main(run["argv"])
        sys.stdout.flush()
        sys.stderr.flush()
        runs_file.with_name(f"{number}-{rank}.status").write_text(str(status))
    os.dup2(terminal[0], 1)
    os.dup2(terminal[1], 2)


def redirect_to(path: Path, descriptor: int) -> None:
    """Send what this process and its children write to `descriptor` into a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, descriptor)
    os.close(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    train_rm.leave(0)
