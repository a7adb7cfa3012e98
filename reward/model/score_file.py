"""Score the rows of an input, in chunks: memory does not grow with their number.

    score_file(scorer, "pairs.jsonl", "scored.jsonl")

What is done is kept in a partial file (reward.model.partial_file), with which the same command goes
on after an interruption. Under `accelerate launch` each process encodes and scores its share of
every chunk, and the main one writes.
"""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from accelerate.utils import broadcast_object_list, gather_object

from reward.data.columns import Columns, NamedColumns
from reward.data.files import DataError, WriteError
from reward.data.input_rows import STANDARD_INPUT, InputRows, input_rows
from reward.data.rows_to_score import newest_name
from reward.data.secrets import hide_secrets
from reward.data.shown import LONGEST_MESSAGE, shown
from reward.data.written_rows import is_standard_output, print_rows, write_rows
from reward.model.encoded_chunks import EncodedChunk, EncodedChunks, chunks_ahead
from reward.model.encoded_row import EncodedRow, add_rewards
from reward.model.fingerprint import fingerprint
from reward.model.hub import ModelError
from reward.model.interrupts import Interrupted
from reward.model.partial_file import Belonging, Done, PartialFile, row_line, scored_row
from reward.model.scorer import Scorer, processes
from reward.model.scoring_progress import ScoringProgress
from reward.model.scoring_summary import ScoringSummary


@dataclass(frozen=True)
class ScoringRequest:
    """What is scored, and how it is read."""

    source: str  # as in reward.data.input_rows.input_rows
    split: str | None = None  # of a folder or a Hub data set
    data_dir: str | None = None  # the folder inside of a Hub data set
    columns: dict[str, str] | None = None  # our name -> the name in the file, where they differ
    # With `skip` a row that cannot be read or scored has no reward; with `stop` it ends the run.
    on_bad_row: str = "skip"
    resume: bool = False  # whether to go on with what an interrupted run has kept


@dataclass(frozen=True)
class ScoredChunk:
    """A chunk that all processes have scored."""

    lines: list[str]  # of all its rows in order, by `row_line`
    digest: str
    summary: ScoringSummary  # of all rows up to its end


@dataclass(frozen=True)
class Share:
    """What one process has done of a chunk."""

    lines: list[str]
    summary: ScoringSummary
    fault: str | None = None  # why the run ends: under `stop`, the first bad row


def score_file(
    scorer: Scorer,
    source: str,
    output: str | None,
    columns: dict[str, str] | None = None,
    on_bad_row: str = "skip",
) -> None:
    """Write the rows of a file with their rewards, in the same order, and sum up on stderr.

    Under `accelerate launch` every process calls this, and the main one writes.

    Args:
        scorer: The reward model.
        source: A file in any format of reward.data.row_files, whose rows are completions with their
            prompts, or preferences in any format of reward.data.formats.
        output: The file to write, see reward.data.written_rows; None for standard output.
        columns: As in ScoringRequest.
        on_bad_row: As there.

    Raises:
        DataError: The file cannot be read, none of its rows can, or one cannot under `stop`.
    """
    request = ScoringRequest(source, columns=columns, on_bad_row=on_bad_row)
    if is_standard_output(output):
        score_to_standard_output(scorer, request)
        return
    with scored_rows(scorer, request, output) as scored:
        if scored is not None:
            write_rows(scored.rows(), output)


# --- Into a file ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredRows:
    """All rows of an input with their rewards."""

    partial: PartialFile

    def rows(self) -> Iterator[dict]:
        """The rows to write, in the order of the input. They can be read again and again."""
        names = self.partial.done.summary.names_of_new_columns()
        return (scored_row(line, names) for line in self.partial.lines())


@contextmanager
def scored_rows(
    scorer: Scorer, request: ScoringRequest, output: str
) -> Iterator[ScoredRows | None]:
    """Score an input, and give its rows to the main process; to the others None.

    What is done lies in `OUTPUT.partial.jsonl`. It is deleted at the end of the block. If an error
    ends it early, the same call with `request.resume` goes on.

    Raises:
        DataError: The input cannot be read, none of its rows can, or one cannot under `stop`; or
            the partial file belongs to another run, or is another process's.
        ModelError: The model or its server fails; a DataError once rows are kept.
        Interrupted: By Ctrl-C or SIGTERM. The message says what is kept.
    """
    partial, done = _open_partial(scorer, request, output)
    summary = done.summary
    try:
        for chunk in scored_chunks(scorer, request, done):
            summary = chunk.summary
            if partial is not None:
                partial.add(chunk.lines, chunk.digest, summary)
        _check_whole(request, summary, partial)
        if partial is None:
            yield None
        else:
            yield ScoredRows(partial)
            partial.discard()
    except (KeyboardInterrupt, DataError, ModelError) as error:
        if partial is None:
            raise
        raise _with_what_is_kept(error, partial) from None
    except Exception:  # a full TMPDIR, too little memory, another process that is gone
        if partial is not None and not partial.done.summary.rows:
            partial.discard()
        raise
    finally:
        if partial is not None:
            partial.close()
    say_what_was_done(scorer, summary)


def _open_partial(
    scorer: Scorer, request: ScoringRequest, output: str
) -> tuple[PartialFile | None, Done]:
    """Open the partial file in the main process, and tell all processes what it holds."""
    partial = None
    said: list[Done | DataError] = [Done()]
    if processes().is_main_process:
        belonging = Belonging(
            checkpoint=hide_secrets(scorer.name),
            rewards=fingerprint(scorer),
            columns=request.columns or {},
            source=hide_secrets(request.source),
        )
        try:
            partial = PartialFile(f"{output}.partial.jsonl", belonging, request.resume)
            said = [partial.done]
        except DataError as error:
            said = [error]
    if processes().num_processes > 1:
        broadcast_object_list(said)
    if isinstance(said[0], DataError):
        raise said[0]
    if partial is not None and request.resume:
        _say_what_is_resumed(partial)
    return partial, said[0]


def _say_what_is_resumed(partial: PartialFile) -> None:
    rows = partial.done.summary.rows
    if rows:
        print(f"going on after {rows:,} rows of {partial.path}", file=sys.stderr)
    else:
        print(f"nothing to resume: no rows in {partial.path}", file=sys.stderr)


def _with_what_is_kept(
    error: KeyboardInterrupt | DataError | ModelError, partial: PartialFile
) -> DataError | ModelError | Interrupted:
    """The error that ends the run early, with what is kept and how to go on."""
    rows = partial.done.summary.rows
    if rows:
        kept = f"{rows:,} rows are kept in {partial.path}; the same command with --resume goes on"
    else:
        kept = "nothing was done yet; run the same command again"
        partial.discard()
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(f"interrupted; {kept}")
    if isinstance(error, WriteError):
        return WriteError(f"{error}; {kept}")
    if rows:
        return DataError(f"{error}; {kept}")
    return error


# --- Onto standard output -------------------------------------------------------------------------


def score_to_standard_output(scorer: Scorer, request: ScoringRequest) -> None:
    """Score an input, and write the rows to standard output as they are done.

    Raises:
        DataError: The input cannot be read, none of its rows can, or one cannot under `stop`. Or a
            column comes up whose name was given to a new column in rows that are written.
        Interrupted: By Ctrl-C or SIGTERM.
    """
    summary = ScoringSummary()
    names: dict[str, str] = {}
    held: list[str] = []  # a file of which no row can be read is an error, and nothing is written
    try:
        for chunk in scored_chunks(scorer, request, Done()):
            is_first = summary.rows == 0
            summary = chunk.summary
            held += chunk.lines
            if is_first and summary.unreadable_rows == summary.rows:
                continue
            names = _names_in_a_stream(names, summary)
            _print_rows(held, names)
            held = []
        _check_whole(request, summary)
        _print_rows(held, names)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; rows on standard output cannot be gone on with, those of --output FILE "
            "can, with --resume"
        ) from None
    say_what_was_done(scorer, summary)


def _names_in_a_stream(names: dict[str, str], summary: ScoringSummary) -> dict[str, str]:
    """The names of the new columns. Those that rows were written with stay."""
    for name in names.values():
        if name in summary.columns:
            raise DataError(
                f"one of the first {summary.rows:,} rows has a column `{name}`, and rewards are "
                "written under that name already; write to a file (--output FILE), where they get "
                "another name in all rows"
            )
    return summary.names_of_new_columns() | names


def _print_rows(lines: list[str], names: dict[str, str]) -> None:
    if processes().is_main_process:
        print_rows(scored_row(line, names) for line in lines)


# --- Chunk by chunk -------------------------------------------------------------------------------


def scored_chunks(scorer: Scorer, request: ScoringRequest, done: Done) -> Iterator[ScoredChunk]:
    """Score what is left of an input. Every process gets the whole chunks.

    Args:
        scorer: The reward model.
        request: What is scored.
        done: What an earlier run has done.

    Raises:
        DataError: The input cannot be read, or a row cannot under `stop`.
    """
    named = NamedColumns(Columns.of(request.columns))
    encoded = EncodedChunks(scorer, _open_input(request), named, done.marks, request.source)
    summary = done.summary
    if request.on_bad_row == "stop":
        for reason, place in summary.first_places.items():
            raise DataError(f"{place}: {reason}")
    progress = ScoringProgress(summary.rows, quiet=not processes().is_main_process)
    with closing(progress):
        for chunk in chunks_ahead(encoded):
            progress.expect(chunk.expected_rows)
            shares = _gathered(_score_share(scorer, chunk, request.on_bad_row, progress))
            lines: list[str] = []
            for share in shares:
                if share.fault is not None:
                    raise DataError(share.fault)
                lines += share.lines
                summary = summary.with_part(share.summary)
            progress.settle(summary.rows)
            if not chunk.is_last and summary.rows == chunk.row_count:
                _warn_of_unseen(named, summary)
            yield ScoredChunk(lines, chunk.digest, summary)


def _warn_of_unseen(named: NamedColumns, summary: ScoringSummary) -> None:
    """Say behind the first chunk what would be an error at the end of the file."""
    for _, theirs in named.columns.names:
        if theirs not in summary.named_seen and processes().is_main_process:
            print(
                f"none of the first {summary.rows:,} rows has the column `{theirs}` that --columns "
                "names; if no row has it, that is an error at the end",
                file=sys.stderr,
            )


def _open_input(request: ScoringRequest) -> InputRows:
    count = processes().num_processes
    if request.source == STANDARD_INPUT and count > 1:
        raise DataError(
            f"{count} processes cannot share standard input; write it to a file, and name that"
        )
    # The main process downloads a data set, and the other processes of the host read its cache.
    with processes().local_main_process_first():
        return input_rows(request.source, request.split, request.data_dir)


def _score_share(
    scorer: Scorer, chunk: EncodedChunk, on_bad_row: str, progress: ScoringProgress
) -> Share:
    """Score what this process encoded of a chunk."""
    summary = ScoringSummary(named_seen=chunk.named_seen, first_row=chunk.first_row)
    fault = _first_fault(chunk.rows, on_bad_row)
    if fault is not None:
        return Share([], summary, fault)
    ids = [text for encoded in chunk.rows for text in encoded.ids]
    rows_per_text = chunk.row_count / max(len(ids), 1)  # the other processes are about as fast
    rewards = iter(
        scorer.rewards_of_ids(ids, after_batch=lambda texts: progress.add(texts * rows_per_text))
    )
    lines = []
    for encoded in chunk.rows:
        add_rewards(encoded, [next(rewards) for _ in encoded.ids], scorer.limit)
        lines.append(row_line(encoded.row, encoded.new_columns))
        summary.count(encoded)
    summary.way = scorer.way_in_words or ""
    return Share(lines, summary, _first_fault(chunk.rows, on_bad_row))


def _first_fault(rows: list[EncodedRow], on_bad_row: str) -> str | None:
    """The place of the first row that ends the run, and why it does; None if there is none.

    A bad row does under `stop`; one that shows that others would be misread, always.
    """
    for encoded in rows:
        fault = encoded.fault
        if fault is None:
            continue
        if fault.ends_file or (fault.is_bad_row and on_bad_row == "stop"):
            return f"{encoded.place}: {fault.sentence}"
    return None


def _gathered(share: Share) -> list[Share]:
    """The shares of all processes, in their order."""
    if processes().num_processes == 1:
        return [share]
    return gather_object([share])


def _check_whole(
    request: ScoringRequest, summary: ScoringSummary, partial: PartialFile | None = None
) -> None:
    """Raise DataError if no row could be read, or if none has a column that is named.

    What is kept is then of no use.
    """
    named = NamedColumns(Columns.of(request.columns), set(summary.named_seen))
    if summary.first_row:
        named.of_first_row = dict.fromkeys(summary.first_row)
    try:
        if summary.rows and summary.unreadable_rows == summary.rows:
            raise DataError(summary.first_unreadable)
        named.check(request.source)
    except DataError:
        if partial is not None:
            partial.forget()
        raise


def say_what_was_done(scorer: Scorer, summary: ScoringSummary) -> None:
    """Print on stderr what was scored, and how new columns are called."""
    if not processes().is_main_process:
        return
    for name, new_name in summary.names_of_new_columns().items():
        if new_name != name:
            older = newest_name(name, summary.columns)
            print(
                f"the file has a column `{older}`; the model's is called `{new_name}`",
                file=sys.stderr,
            )
    closing_line = summary.closing_line(scorer.limit)
    print(shown(closing_line, LONGEST_MESSAGE), file=sys.stderr)
