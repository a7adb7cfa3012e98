"""The rows of an input in encoded chunks: `for chunk in chunks_ahead(EncodedChunks(...)): ...`

Behind the first chunk another process reads and encodes while this one computes.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch.utils.data import DataLoader, IterableDataset

from reward.data.columns import NamedColumns
from reward.data.files import DataError
from reward.data.input_rows import InputRow, InputRows, RowDigest, chunks, kept_rows
from reward.model.encoded_row import EncodedRow, encode_row_to_score
from reward.model.interrupts import die_with_parent
from reward.model.partial_file import Mark
from reward.model.scorer import Scorer, processes

MOST_ROWS = 4096  # of a chunk, for each process that scores
FIRST_ROWS = 512  # of the first chunk, which is encoded before anything is scored
MOST_BATCHES = 64  # of a chunk, about as many
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class EncodedChunk:
    """A chunk of the input, of which this process encoded its share."""

    rows: list[EncodedRow]  # the share of this process
    row_count: int  # of the whole chunk
    digest: str  # a hash over all rows up to its end, as they were read
    expected_rows: int | None  # of the whole input, as far as one knows
    named_seen: list[str]  # the columns that are named and that rows of this process had
    first_row: list[str]  # the columns of the first row that this process read
    is_last: bool  # whether certainly nothing follows; False where that is not known


class EncodedChunks(IterableDataset):
    """The rest of an input, encoded chunk by chunk. It can be iterated over once.

    Args:
        scorer: The reward model.
        rows: The input.
        named: Gives the columns our names.
        marks: The ends of the chunks that are done already.
        source: The input's name, for messages.
    """

    def __init__(
        self,
        scorer: Scorer,
        rows: InputRows,
        named: NamedColumns,
        marks: Sequence[Mark],
        source: str,
    ):
        self.scorer = scorer
        self.meter = rows.meter
        self.named = named
        self.marks = marks
        self.source = source
        self.digest = RowDigest()
        self.rows_read = 0
        self.chunks = self._encoded(kept_rows(rows.rows))

    def __iter__(self) -> Iterator[EncodedChunk | DataError]:
        """The chunks. An error is the last item, so that it gets from one process to another."""
        return self.chunks

    def _encoded(self, rows: Iterator[InputRow]) -> Iterator[EncodedChunk | DataError]:
        count = processes().num_processes
        most_rows = MOST_ROWS * count
        batches = MOST_BATCHES * count
        most_characters = batches * self.scorer.token_budget * CHARACTERS_PER_TOKEN
        try:
            self._pass_over_done(rows)
            first_rows = most_rows
            if not self.marks:
                first_rows = min(FIRST_ROWS * count, most_rows)
            for chunk in chunks(rows, most_rows, most_characters, first_rows):
                for row in chunk:
                    self._note(row)
                characters = sum(row.characters for row in chunk)
                is_last = len(chunk) < first_rows and characters < most_characters
                yield self._encode(chunk, is_last)
        except DataError as error:
            yield error

    def _note(self, row: InputRow) -> None:
        self.digest.add(row)
        self.rows_read += 1

    def _pass_over_done(self, rows: Iterator[InputRow]) -> None:
        """Read the rows that are done. Raises DataError if the input begins with others."""
        for mark in self.marks:
            first = self.rows_read + 1
            while self.rows_read < mark.rows:
                row = next(rows, None)
                if row is None:
                    raise DataError(
                        f"{self.source} has {self.rows_read:,} rows, and rewards of "
                        f"{self.marks[-1].rows:,} are there already: it is another input, or it "
                        "became shorter"
                    )
                self._note(row)
            if self.digest.hex != mark.digest:
                raise DataError(
                    f"{self.source}: rows {first:,} to {mark.rows:,} are others than those that "
                    "were scored before: it is another input, or it was changed there"
                )

    def _encode(self, chunk: list[InputRow], is_last: bool) -> EncodedChunk:
        index, count = processes().process_index, processes().num_processes
        share = chunk[len(chunk) * index // count : len(chunk) * (index + 1) // count]
        encoded = [encode_row_to_score(self.scorer, row.placed, self.named) for row in share]
        return EncodedChunk(
            rows=encoded,
            row_count=len(chunk),
            digest=self.digest.hex,
            expected_rows=self.meter.estimated_rows(self.rows_read),
            named_seen=sorted(self.named.seen),
            first_row=list(self.named.of_first_row or ()),
            is_last=is_last,
        )


def chunks_ahead(encoded: EncodedChunks) -> Iterator[EncodedChunk]:
    """The chunks, of which all but the first are encoded in another process.

    Raises:
        DataError: The input cannot be read, or does not begin with what is done already.
    """
    for chunk in _ahead(encoded):
        if isinstance(chunk, DataError):
            raise chunk
        yield chunk


def _ahead(encoded: EncodedChunks) -> Iterator[EncodedChunk | DataError]:
    first = next(iter(encoded), None)
    if first is None:
        return
    yield first
    if isinstance(first, DataError) or first.is_last:
        return
    if not sys.platform == "linux" or len(os.sched_getaffinity(0)) == 1:
        yield from encoded
        return
    # The other process is a copy of this one, and goes on where this one has stopped to read.
    yield from DataLoader(
        encoded,
        batch_size=None,
        num_workers=1,
        multiprocessing_context="fork",
        worker_init_fn=partial(_serve, os.getpid()),
    )


def _serve(parent: int, worker: int) -> None:
    """Let a worker end with its parent, and not by signals that are meant for that.

    It shares the lock on the partial file, which the next run needs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # It died before.
        os._exit(1)
