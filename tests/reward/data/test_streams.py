"""Whoever reads what is printed may go away; the run goes on."""

import json
import os
import subprocess
import sys

import pytest
from support import REPO, write_rows

PRINTING = """
import sys
from reward.data.streams import keep_printing
keep_printing()
for number in range(3):
    print("out", number, flush=True)
    print("err", number, file=sys.stderr, flush=True)
open(sys.argv[1], "w").write("done")
"""
ROWS = """
import sys
from reward.data.files import WriteError
from reward.data.streams import keep_printing
from reward.data.written_rows import write_rows
keep_printing()
try:
    write_rows([{"reward": 1.0}], "-")
except WriteError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""


def python(code: str, redirection: str, *arguments) -> subprocess.CompletedProcess:
    """Run code with its output redirected by a shell."""
    command = f'"{sys.executable}" -c "$CODE" {" ".join(map(str, arguments))} {redirection}'
    env = {**os.environ, "CODE": code}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=REPO, env=env, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("redirection", "err"),
    [
        ("| true", "err 0\nerr 1\nerr 2\n"),
        (">&-", "err 0\nerr 1\nerr 2\n"),
        (">&- 2>&-", ""),
        ("2>&1 | true", ""),
        ("<&- 2>/dev/full", ""),
    ],
)
def test_a_run_goes_on(tmp_path, redirection, err):
    done = python(PRINTING, redirection, tmp_path / "end")
    assert (done.returncode, done.stderr) == (0, err)
    assert (tmp_path / "end").read_text() == "done"


def test_a_full_disk_is_said(tmp_path):
    done = python(PRINTING, ">/dev/full", tmp_path / "end")
    assert done.returncode == 0 and done.stderr.splitlines() == [
        "standard output: No space left on device; what is printed is lost, the run goes on",
        *["err 0", "err 1", "err 2"],
    ]


@pytest.mark.parametrize(
    ("redirection", "err"),
    [
        (">/dev/full", "standard output: cannot be written (No space left on device)\n"),
        (">&-", "standard output: cannot be written (it is closed)\n"),
    ],
)
def test_rows_that_are_lost_are_an_error(redirection, err):
    done = python(ROWS, redirection)
    assert (done.returncode, done.stderr) == (1, err)


def test_head_ends_no_audit(tmp_path):
    rows = [
        {
            "prompt": "a",
            "chosen": "b",
            "rejected": "c",
            "reward_chosen": i % 3,
            "reward_rejected": 1,
        }
        for i in range(30)
    ]
    write_rows(tmp_path / "scored.jsonl", rows)
    command = f'"{sys.executable}" audit.py --scores {tmp_path}/scored.jsonl --verbose | true'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=REPO, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = tmp_path / "scored-audit"
    assert json.loads((report / "audit.json").read_text())["checks"]
