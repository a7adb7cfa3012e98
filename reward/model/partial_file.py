"""The file in which a run of score.py keeps what is done: `OUTPUT.partial.jsonl`.

    {"partial": {...}}                     what it belongs to: checkpoint, columns, input
    {"run": {...}}                         who writes it
    {"row": {...}, "new": {...}}           a row, and its rewards under their plain names; in order
    {"done": {...}}                        the end of a chunk: its rows count from here on

A run that is killed leaves rows without the line that ends their chunk, or half a line. The next
run cuts that off, and goes on behind the last whole chunk. So no row is lost or doubled.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from reward.data.files import DataError, WriteError
from reward.data.one_writer import open_locked, this_run
from reward.model.scoring_summary import ScoringSummary

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Belonging:
    """What a partial file belongs to."""

    checkpoint: str  # as it was named
    rewards: dict[str, str]  # what decides a reward -> its hash (reward.model.fingerprint)
    columns: dict[str, str]  # our name -> the file's, as --columns had it
    source: str  # the input, as it was named. Which rows it has is what counts.
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Mark:
    """The end of a chunk."""

    rows: int  # from the start of the input
    digest: str  # a hash over these rows as they were read


@dataclass
class Done:
    """What a partial file holds."""

    marks: list[Mark] = field(default_factory=list)  # of all chunks
    summary: ScoringSummary = field(default_factory=ScoringSummary)


class PartialFile:
    """A partial file that this process alone writes. Call `close` or `discard` at the end.

    Args:
        path: The file.
        belonging: What it belongs to.
        resume: Whether to go on with what it holds. Otherwise it must hold nothing.

    Attributes:
        done: What it holds.

    Raises:
        DataError: Another process writes it; it holds rows without `resume`; or it belongs to
            something else.
    """

    def __init__(self, path: str, belonging: Belonging, resume: bool):
        self.path = path
        self.done = Done()
        try:
            self.file = open_locked(path, hint="name another --output")
        except OSError as error:
            raise self._error(error) from None
        try:
            self._start(belonging, resume)
        except OSError as error:
            self.close()
            raise self._error(error) from None
        except DataError:
            self.close()
            raise

    def _start(self, belonging: Belonging, resume: bool) -> None:
        before = self._read()
        if self.done.marks:
            self._refuse_another(before, belonging, resume)
            self._append({"run": this_run()})
            return
        try:
            self.file.truncate(0)
            self._append({"partial": asdict(belonging)})
            self._append({"run": this_run()})
        except OSError:
            self.discard()  # it holds no row
            raise

    def _read(self) -> Belonging | None:
        """Read what the file holds, and cut off what belongs to no whole chunk.

        Returns:
            What it belongs to; None if it holds nothing.
        """
        belonging = None
        position = end_of_chunk = 0  # in bytes
        self.file.seek(0)
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            position += len(line)
            if belonging is None:
                belonging = self._belonging_of(line)
                end_of_chunk = position
            elif line.startswith(b'{"done"'):
                done = json.loads(line)["done"]
                self.done.marks.append(Mark(done["rows"], done["digest"]))
                self.done.summary = ScoringSummary.of_dict(done["summary"])
                end_of_chunk = position
        self.file.truncate(end_of_chunk)
        return belonging

    def _belonging_of(self, line: bytes) -> Belonging:
        try:
            belonging = Belonging(**json.loads(line)["partial"])
        except (ValueError, TypeError, LookupError):
            belonging = None
        if belonging is None or belonging.format_version != FORMAT_VERSION:
            raise DataError(
                f"{self.path}: no unfinished run of this version of score.py; rename or delete it"
            )
        return belonging

    def _refuse_another(self, before: Belonging, now: Belonging, resume: bool) -> None:
        """Raise DataError if the file must not be gone on with."""
        rows = self.done.summary.rows
        if not resume:
            raise DataError(
                f"{self.path}: {rows:,} rows of an unfinished run lie here; --resume goes on with "
                "it, or delete the file to start anew"
            )
        differences = [name for name in now.rewards if now.rewards[name] != before.rewards[name]]
        if differences:
            raise DataError(
                f"{self.path}: its {rows:,} rows were scored by {before.checkpoint}, whose "
                f"{' and '.join(differences)} differ from those of {now.checkpoint}; resume with "
                "the checkpoint that it was, or delete the file to start anew"
            )
        if before.columns != now.columns:
            raise DataError(
                f"{self.path}: its rows were read with {columns_in_words(before.columns)}, and now "
                f"it is {columns_in_words(now.columns)}; resume with the same, or delete the file "
                "to start anew"
            )

    def add(self, rows: list[str], digest: str, summary: ScoringSummary) -> None:
        """Append a chunk.

        Args:
            rows: Lines that `row_line` gave.
            digest: A hash over all rows so far as they were read.
            summary: Of all rows so far.
        """
        done = {"rows": summary.rows, "digest": digest, "summary": summary.as_dict()}
        try:
            self.file.write("".join(rows).encode())
            self._append({"done": done})
        except OSError as error:
            raise self._error(error) from None
        self.done.summary = summary

    def _append(self, line: dict) -> None:
        self.file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self.file.flush()

    def _error(self, error: OSError) -> WriteError:
        return WriteError.of(self.path, error)

    def lines(self) -> Iterator[str]:
        """The lines of all rows, as `add` got them."""
        with open(self.path, encoding="utf-8", newline="\n") as file:
            for line in file:
                if line.startswith('{"row"'):
                    yield line

    def forget(self) -> None:
        """Forget what it holds, which is of no use."""
        self.done = Done()

    def close(self) -> None:
        """Let others write it."""
        with suppress(OSError):  # of a full disk: what belongs to no whole chunk
            self.file.close()

    def discard(self) -> None:
        """Delete the file."""
        Path(self.path).unlink(missing_ok=True)
        self.close()


def row_line(row: dict, new_columns: dict) -> str:
    """A row and its rewards as a line of the file."""
    line = {"row": row, "new": new_columns}
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def scored_row(line: str, names: dict[str, str]) -> dict:
    """The row to write.

    Args:
        line: What `row_line` gave.
        names: The names of the new columns, by their plain names.
    """
    parts = json.loads(line)
    return parts["row"] | {names[name]: value for name, value in parts["new"].items()}


def columns_in_words(columns: dict[str, str]) -> str:
    """The option `--columns`, as it was given."""
    if not columns:
        return "no --columns"
    return "--columns " + ",".join(f"{ours}={theirs}" for ours, theirs in columns.items())
