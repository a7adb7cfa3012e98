"""Why score.py and audit.py end is said once, by whichever process has the reason."""

import errno

import pytest
from launched import CPU, launcher
from support import REPO, run_script, write_rows

from reward.data.files import DataError, WriteError
from reward.model import last_words
from reward.model.hub import ModelError
from reward.model.last_words import refuse

pytest_plugins = ["reward_model_fixtures"]

ROOM = last_words.MAKE_ROOM
GLOO = "[pair.cc:553] Connection closed by peer [127.0.0.1]:25216. This is typically caused by ..."
CPU_MEMORY = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 b"
GPU_MEMORY = "CUDA out of memory. Tried to allocate 9 GiB.\nMore of it"


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ModelError("no head"), 2, "no head"),
        (DataError("no rows"), 2, "no rows"),
        (WriteError("out: full"), 1, "out: full"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, f"No space left on device; {ROOM}\n"),
        (OSError(errno.EFBIG, "File too large", "/x"), 1, f"/x: File too large; {ROOM}\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "/x: Permission denied\n"),
        (RuntimeError(GLOO), 1, "another process of this launch is gone; what it said stands abov"),
        (RuntimeError(CPU_MEMORY), 1, "too little memory; lower --token_budget ([enforce fail]"),
        (
            RuntimeError(GPU_MEMORY),
            1,
            "too little memory; lower --token_budget (CUDA out of memory",
        ),
        (MemoryError(), 1, "too little memory; lower --token_budget (MemoryError)\n"),
    ],
)
def test_what_is_said(capsys, error, status, words):
    assert refuse("score.py", error) == status
    said = capsys.readouterr().err
    assert said.startswith(f"score.py: {words}") and said.count("\n") == 1


def test_a_fault_of_the_program_is_none_of_the_input():
    for error in (RuntimeError("size mismatch"), FileNotFoundError(errno.ENOENT, "No such file")):
        with pytest.raises(type(error)):
            refuse("score.py", error)


def test_a_process_other_than_the_first_has_its_say(capsys, monkeypatch):
    monkeypatch.setattr(last_words, "PATIENCE", 0.0)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert refuse("audit.py", ModelError("other files here")) == 2
    assert capsys.readouterr().err == "audit.py (process 3 of 4): other files here\n"


# A script whose second process fails where the other one waits for it.
DRIVER = """
import os, runpy, sys
sys.path.insert(0, os.getcwd())
from reward.model import last_words, scorer
from reward.model.hub import ModelError
last_words.PATIENCE = 1.0
def fail(*arguments, **options):
    raise ModelError("this host has other files")
if os.environ["RANK"] == "1":
    scorer.Scorer.rewards_of_ids = fail
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", ["score.py", "audit.py"])
def test_an_error_of_the_second_process_alone(saved, tmp_path, script):
    (tmp_path / "driver.py").write_text(DRIVER)
    rows = [{"prompt": "tea?", "chosen": f"water {i}", "rejected": "no"} for i in range(12)]
    data = write_rows(tmp_path / "test.jsonl", rows)
    options = ["--input", data, "--output", tmp_path / "scored.jsonl"]
    if script == "audit.py":
        options = ["--data", data, "--quick", "--output_dir", tmp_path / "audit"]
    command = [tmp_path / "driver.py", REPO / script, "--ckpt", saved("qwen"), *options]
    done = run_script(*launcher("ddp"), *command, env=CPU, check=False)
    assert done.returncode == 1  # the launcher's
    lines = done.stderr.splitlines()
    said = [line for line in lines if line.startswith(script)]
    assert f"{script} (process 1 of 2): this host has other files" in said
    assert set(said[1:]) <= {f"{script}: {last_words.LOST_PROCESS}"}
    assert "[rank" not in done.stderr  # torch's name for a traceback of ours
    assert "%|" not in done.stderr  # a file gets no bars
