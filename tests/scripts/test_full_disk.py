"""A disk that is full: a sentence, status 1; what was whole stays whole, and nothing is left over.

The limit on the size of a file stands for the disk: the same calls fail in the same way.
"""

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
from reward_models import exit_of
from support import write_rows

import audit
import score
from reward.data.files import WriteError, replace_text
from reward.data.written_rows import write_rows as write_output
from reward.model.partial_file import Belonging, PartialFile
from reward.model.scoring_summary import ScoringSummary

pytest_plugins = ["reward_model_fixtures"]


@contextmanager
def no_file_larger_than(size: int):
    """Every write beyond so many bytes of a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with what it holds; folders too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_rows(tmp_path, suffix):
    output = tmp_path / f"out.{suffix}"
    write_output([{"reward": 0.5}], str(output))
    before = content_of(tmp_path)
    rows = [{"text": f"{number * 7919:x}" * 20, "reward": 0.5} for number in range(2000)]
    with no_file_larger_than(5000):
        with pytest.raises(WriteError, match=rf"out.{suffix}: cannot be written \(File too large"):
            write_output(rows, str(output))
    assert content_of(tmp_path) == before


def test_text_and_json(tmp_path):
    (tmp_path / "README.md").write_text("whole")
    with no_file_larger_than(50), pytest.raises(OSError):
        replace_text(tmp_path / "README.md", "x" * 100)
    assert content_of(tmp_path) == {"README.md": b"whole"}


def test_a_score_is_gone_on_with_once_there_is_room(saved, tmp_path, monkeypatch, capsys):
    rows = [{"prompt": "tea?", "completion": "water " * 8, "id": i} for i in range(300)]
    source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out" / "scored.jsonl"
    output.parent.mkdir()
    command = ["--ckpt", saved("qwen"), "--input", source, "--output", output]
    with no_file_larger_than(100):
        status, error = exit_of(score, monkeypatch, capsys, *command)
    assert status == 1 and "Traceback" not in error
    assert "scored.jsonl.partial.jsonl: cannot be written (File too large)" in error
    assert content_of(output.parent) == {}
    with no_file_larger_than(30_000):
        status, error = exit_of(score, monkeypatch, capsys, *command)
    assert status == 1
    assert "cannot be written (File too large); nothing was done yet; run the same command" in error
    assert content_of(output.parent) == {}
    status, error = exit_of(score, monkeypatch, capsys, *command)
    assert status == 0
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == list(range(300))


def test_chunks_that_were_kept_stay(tmp_path):
    path = tmp_path / "out.partial.jsonl"
    belonging = Belonging("rm", {"weights": "1"}, {}, "in.jsonl")
    line = json.dumps({"row": {"a": "x" * 500}, "new": {}}) + "\n"
    partial = PartialFile(str(path), belonging, resume=False)
    with no_file_larger_than(4000):
        partial.add([line], "digest 1", ScoringSummary(rows=1))
        with pytest.raises(WriteError, match=r"out.partial.jsonl: cannot be written \(File too"):
            partial.add([line] * 20, "digest 2", ScoringSummary(rows=21))
        partial.close()
    assert path.stat().st_size == 4000
    resumed = PartialFile(str(path), belonging, resume=True)
    assert [mark.rows for mark in resumed.done.marks] == [1]
    assert list(resumed.lines()) == [line]
    resumed.close()


def test_standard_input_that_does_not_fit_into_tmpdir(saved, tmp_path, monkeypatch, capsys):
    """What is no JSONL is stored first."""
    (tmp_path / "in.csv").write_text("prompt,completion\n" + "tea?,water\n" * 500)
    with open(tmp_path / "in.csv", "rb") as file, no_file_larger_than(2000):
        monkeypatch.setattr("sys.stdin", file)
        status, error = exit_of(
            score,
            monkeypatch,
            capsys,
            "--ckpt",
            saved("qwen"),
            "--input",
            "-",
            "--output",
            tmp_path / "scored.jsonl",
        )
    assert status == 1 and "score.py: File too large; make room where the output, " in error
    assert sorted(content_of(tmp_path)) == ["in.csv"]


@pytest.fixture(scope="module")
def scored_rows(tmp_path_factory):
    """A file of scored pairs."""
    rows = [
        {"prompt": "tea?", "chosen": f"yes {i}", "rejected": f"no {i}", "reward_chosen": i % 7}
        | {"reward_rejected": i % 5}
        for i in range(40)
    ]
    return write_rows(tmp_path_factory.mktemp("scored") / "scored.jsonl", rows)


def test_an_earlier_report_stays(scored_rows, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "audits" / "one"
    command = ["--scores", scored_rows, "--output_dir", folder]
    with no_file_larger_than(20_000):  # the pages and the plots are larger
        status, error = exit_of(audit, monkeypatch, capsys, *command)
    assert status == 1 and content_of(tmp_path) == {}
    assert error == f"audit.py: {folder}: cannot be written (File too large)\n"
    assert exit_of(audit, monkeypatch, capsys, *command)[0] == 0
    before = content_of(tmp_path)
    assert {"audits/one/audit.json", "audits/one/scores.jsonl"} <= set(before)
    for limit in (20_000, 100):
        with no_file_larger_than(limit):
            assert exit_of(audit, monkeypatch, capsys, *command)[0] == 1
        assert content_of(tmp_path) == before


@pytest.mark.parametrize("limit", [100_000, 10_000, 500])
def test_a_conversion_leaves_nothing(saved, tmp_path, monkeypatch, capsys, limit):
    """The weights do not fit, or the tokenizer, or the config."""
    with no_file_larger_than(limit):
        status, error = exit_of(
            score, monkeypatch, capsys, "--ckpt", saved("qwen"), "--convert", tmp_path / "plain"
        )
    assert status == 1 and "Traceback" not in error
    assert f"score.py: {tmp_path / 'plain'}: cannot be written (" in error
    assert content_of(tmp_path) == {}
