"""An interrupted run goes on: no row is lost or doubled, and nothing else is gone on with."""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from reward_models import save
from support import own_lock_of_bars, write_rows

import score
from reward.data import one_writer
from reward.data.files import DataError
from reward.data.written_rows import write_rows as write_output
from reward.model import encoded_chunks
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.interrupts import Interrupted, die_with_parent
from reward.model.partial_file import PartialFile
from reward.model.score_file import ScoringRequest, score_file, scored_rows
from reward.model.scorer import Scorer

torch.set_num_threads(1)
WORDS = "tea water how can you make it hot please yes no stop".split()


def some_rows(count: int) -> list[dict]:
    """Rows of every kind: completions, lists of them, pairs, and some that are bad."""
    choice = random.Random(7)
    rows = []
    for number in range(count):
        text = " ".join(choice.choices(WORDS, k=choice.randint(1, 20)))
        row = {"id": number, "prompt": "tea?", "completion": text}
        if number % 7 == 3:
            row = {"id": number, "prompt": "tea?", "completions": [text, "no"]}
        elif number % 7 == 5:
            row = {"id": number, "prompt": "tea?", "chosen": text, "rejected": f"{text} no"}
        elif number % 11 == 4:
            row = {"id": number, "color": "blue"}
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def scorer(standin, tmp_path_factory):
    base = str(standin("qwen"))
    torch.manual_seed(1)
    model = build_reward_model(base, head_init="normal")
    tokenizer = build_tokenizer(base, model.config)
    return Scorer(str(save(model, tokenizer, tmp_path_factory.mktemp("rm") / "rm")))


@pytest.fixture
def run(scorer, tmp_path):
    """`run()` -> rows out of in.jsonl; with `interrupt`, Ctrl-C once all rows are scored."""

    def call(interrupt=False, source="in.jsonl", **options):
        request = ScoringRequest(str(tmp_path / source), **options)
        output = tmp_path / "out.jsonl"
        with scored_rows(scorer, request, str(output)) as scored:
            if interrupt:
                raise KeyboardInterrupt
            write_output(scored.rows(), str(output))
        return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]

    return call


@pytest.fixture
def partial(tmp_path, run, monkeypatch):
    """The partial file of 24 rows in chunks of 5, all of which are scored."""
    monkeypatch.setattr(encoded_chunks, "MOST_ROWS", 5)
    write_rows(tmp_path / "in.jsonl", some_rows(24))
    path = tmp_path / "out.jsonl.partial.jsonl"
    with pytest.raises(Interrupted) as interrupted:
        run(interrupt=True)
    assert str(interrupted.value) == (
        f"interrupted; 24 rows are kept in {path}; the same command with --resume goes on"
    )
    return path


def test_a_partial_file_that_is_cut_anywhere_is_gone_on_with(partial, run, tmp_path):
    """Behind a line, within one, in the header; rewards and order are those of an unbroken run."""
    content = partial.read_bytes()
    partial.unlink()
    unbroken = run()
    assert [row["id"] for row in unbroken] == list(range(24))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["in.jsonl", "out.jsonl"]
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) == 2 + 24 + 5
    cuts = {0, 1, len(content), *ends[1:9:2], *(end - 1 for end in ends[::6])}
    cuts |= set(random.Random(1).sample(range(len(content)), 6))
    for cut in sorted(cuts):
        partial.write_bytes(content[:cut])
        assert run(resume=True) == unbroken, cut
        assert not partial.exists()


def test_without_resume_it_is_reported(partial, run):
    content = partial.read_bytes()
    with pytest.raises(DataError, match="24 rows of an unfinished run lie here; --resume goes on"):
        run()
    assert partial.read_bytes() == content


def test_only_what_it_belongs_to_goes_on(partial, run, scorer, tmp_path):
    rows = some_rows(24)

    def refused(**options) -> str:
        with pytest.raises(DataError) as refusal:
            run(resume=True, **options)
        return str(refusal.value).replace(f"{tmp_path}/", "")

    kept = "24 rows are kept in out.jsonl.partial.jsonl; the same command with --resume goes on"
    write_rows(tmp_path / "in.jsonl", [*rows[:7], rows[7] | {"note": 1}, *rows[8:]])
    assert refused() == (
        "in.jsonl: rows 6 to 10 are others than those that were scored before: it is another "
        f"input, or it was changed there; {kept}"
    )
    write_rows(tmp_path / "in.jsonl", rows[:22])
    assert refused().startswith("in.jsonl has 22 rows, and rewards of 24 are there already: ")
    write_rows(tmp_path / "in.jsonl", rows)
    columns = "its rows were read with no --columns, and now it is --columns prompt=ask; resume"
    assert columns in refused(columns={"prompt": "ask"})
    bad = "in.jsonl:5: cannot be read: columns ['color', 'id'] are no "
    assert refused(on_bad_row="stop").startswith(bad)
    weight = next(scorer.model.parameters())
    with torch.no_grad():
        before = weight[0, 0].item()
        weight[0, 0] += 2**-20
        assert "were scored by " in refused() and "/rm, whose weights differ from " in refused()
        weight[0, 0] = before
    assert len(run(resume=True)) == 24


def test_another_name_and_more_rows_go_on(partial, run, tmp_path):
    """What is done is known by the rows, not by the name of the file."""
    (tmp_path / "in.jsonl").rename(tmp_path / "moved.jsonl")
    write_rows(tmp_path / "moved.jsonl", some_rows(31))
    out = run(resume=True, source="moved.jsonl")
    assert [row["id"] for row in out] == list(range(31))


def test_nothing_to_resume_is_said(run, tmp_path, capsys):
    write_rows(tmp_path / "in.jsonl", some_rows(3))
    assert len(run(resume=True)) == 3
    assert "nothing to resume: no rows in " in capsys.readouterr().err


def test_the_sums_at_the_end_are_those_of_all_rows(partial, run, capsys):
    content = partial.read_bytes()
    partial.unlink()
    run()
    unbroken = capsys.readouterr().err
    assert unbroken.startswith("scored 24 rows, 2 with no reward: cannot be read: columns ")
    middle = content.index(b'{"done"', len(content) // 2)
    partial.write_bytes(content[: content.index(b"\n", middle) + 1])
    run(resume=True)
    assert capsys.readouterr().err == f"going on after 15 rows of {partial}\n{unbroken}"


def test_a_file_of_another_kind_is_not_overwritten(partial, run):
    partial.write_text('{"prompt": "mine"}\n')
    with pytest.raises(DataError, match="no unfinished run of this version of score.py"):
        run()
    assert partial.read_text() == '{"prompt": "mine"}\n'


def test_two_runs_do_not_write_one_output(scorer, run, tmp_path, monkeypatch):
    monkeypatch.setattr(one_writer, "LOCK_SECONDS", 0.1)
    write_rows(tmp_path / "in.jsonl", some_rows(3))
    request = ScoringRequest(str(tmp_path / "in.jsonl"))
    with scored_rows(scorer, request, str(tmp_path / "out.jsonl")):
        with pytest.raises(DataError, match=f"process {os.getpid()} on .*, since .* is writing it"):
            run(resume=True)


def test_chunks_do_not_move_rewards(run, tmp_path, monkeypatch):
    write_rows(tmp_path / "in.jsonl", some_rows(40))
    whole = run()
    monkeypatch.setattr(encoded_chunks, "MOST_ROWS", 6)
    parts = run()
    for one, other in zip(whole, parts, strict=True):
        assert one.keys() == other.keys()
        for name in ("reward", "rewards", "margin"):
            if name in one:
                assert one[name] == pytest.approx(other[name], abs=1e-5)


def test_a_column_that_no_row_has_is_said_early(run, tmp_path, monkeypatch, capsys):
    """At the end it is an error, and what was scored without it is of no use."""
    monkeypatch.setattr(encoded_chunks, "MOST_ROWS", 5)
    rows = [{"ask": "tea?", "completion": "yes"}] * 12
    write_rows(tmp_path / "in.jsonl", rows)
    with pytest.raises(DataError, match="names `sytem`, but the columns are .'ask', 'completion'."):
        run(columns={"prompt": "ask", "system": "sytem"})
    warning = "none of the first 5 rows has the column `sytem` that --columns names; "
    assert capsys.readouterr().err.startswith(warning)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    write_rows(tmp_path / "in.jsonl", [*rows, rows[0] | {"sytem": "Be brief."}])
    assert len(run(columns={"prompt": "ask", "system": "sytem"})) == 13


# --- Signals --------------------------------------------------------------------------------------


@pytest.fixture
def script(scorer, tmp_path, monkeypatch, capsys):
    """`script("--output", ...)` -> (exit status, stdout, stderr) of score.py on in.jsonl."""
    monkeypatch.setattr("reward.model.scorer.Scorer", lambda *args, **options: scorer)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGPIPE)}

    def call(*options):
        command = ["score.py", "--ckpt", tmp_path, "--input", tmp_path / "in.jsonl", *options]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        capsys.readouterr()
        return (score.main(), *capsys.readouterr())

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def heard_interrupts():
    """Ctrl-C is heard, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("heard_interrupts")
def test_a_signal_ends_with_a_sentence_and_75(number, script, run, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_chunks, "MOST_ROWS", 5)
    write_rows(tmp_path / "in.jsonl", some_rows(24))
    unbroken = run()
    (tmp_path / "out.jsonl").unlink()
    add = PartialFile.add
    chunks = []

    def add_and_signal(partial, *chunk):
        if len(chunks) == 3:
            signal.raise_signal(number)
        chunks.append(chunk)
        add(partial, *chunk)

    with monkeypatch.context() as patch:
        patch.setattr(PartialFile, "add", add_and_signal)
        status, _, error = script("--output", tmp_path / "out.jsonl")
    kept = f"15 rows are kept in {tmp_path}/out.jsonl.partial.jsonl"
    assert status == 75
    assert error == (f"score.py: interrupted; {kept}; the same command with --resume goes on\n")
    assert not (tmp_path / "out.jsonl").exists()
    assert script("--output", tmp_path / "out.jsonl", "--resume")[0] == 0
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == unbroken


# --- Standard output ------------------------------------------------------------------------------


def test_rows_go_to_standard_output_as_they_are_done(script, run, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_chunks, "MOST_ROWS", 5)
    rows = some_rows(12)
    write_rows(tmp_path / "in.jsonl", rows)
    status, out, error = script("--output", "-")
    assert status == 0 and "scored 12 rows" in error
    assert [json.loads(line) for line in out.splitlines()] == run()
    # The reward's name is taken, but the rows before it are written.
    write_rows(tmp_path / "in.jsonl", [*rows, {"id": 12, "reward": 1} | rows[0]])
    status, out, error = script()
    assert status == 2 and len(out.splitlines()) == 10
    assert "one of the first 13 rows has a column `reward`, and rewards are written" in error
    assert "new_reward" in run()[0]


def test_a_first_chunk_of_bad_rows_on_standard_output(script, tmp_path, monkeypatch):
    """It waits for a row that can be read; without one, nothing is written."""
    monkeypatch.setattr(encoded_chunks, "MOST_ROWS", 2)
    bad, good = {"color": "blue"}, {"prompt": "tea?", "completion": "yes"}
    write_rows(tmp_path / "in.jsonl", [bad, bad])
    status, out, error = script()
    assert (status, out) == (2, "") and "in.jsonl:1: columns ['color'] are no" in error
    write_rows(tmp_path / "in.jsonl", [bad, bad, good])
    status, out, error = script()
    assert status == 0 and [json.loads(line)["reward"] is None for line in out.splitlines()] == [
        True,
        True,
        False,
    ]


# --- kill -9 --------------------------------------------------------------------------------------


def run_and_kill(scorer: Scorer, source: Path, output: Path, kill_at: list[float]) -> int:
    """Score with --resume in processes of their own, and kill each of them with signal 9.

    Args:
        scorer: The reward model; the processes are copies of this one.
        source: The rows.
        output: The file to write.
        kill_at: For each process, how many seconds it lives once it writes. The last one lives on.

    Returns:
        How many were killed before they were done.
    """
    killed = 0
    for seconds in [*kill_at, None]:
        child = os.fork()
        if child == 0:
            _score_and_exit(scorer, source, output)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return killed
        said = output.with_suffix(".err").read_text()
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, said
        killed += 1
    return killed


def _score_and_exit(scorer: Scorer, source: Path, output: Path) -> None:
    """What a copy of this process does; the test goes on in the other one alone."""
    own_lock_of_bars()
    die_with_parent(signal.SIGKILL)
    try:
        with open(output.with_suffix(".err"), "w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        request = ScoringRequest(str(source), resume=True)
        with scored_rows(scorer, request, str(output)) as scored:
            write_output(scored.rows(), str(output))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


@pytest.mark.slow
def test_kill_9_loses_and_doubles_nothing(scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_chunks, "MOST_ROWS", 50)
    source = write_rows(tmp_path / "in.jsonl", some_rows(1500))
    start = time.monotonic()
    score_file(scorer, str(source), str(tmp_path / "unbroken.jsonl"))
    seconds = time.monotonic() - start
    choice = random.Random(3)
    moments = [choice.uniform(0, seconds / 3) for _ in range(6)]
    output = tmp_path / "out.jsonl"
    assert run_and_kill(scorer, source, output, moments) >= 1
    assert output.read_bytes() == (tmp_path / "unbroken.jsonl").read_bytes()
    assert not Path(f"{output}.partial.jsonl").exists()
