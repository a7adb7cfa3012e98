"""Score a file of rows: `score_file(scorer, "pairs.jsonl", "scored.jsonl")`."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from reward.data.columns import Columns, NamedColumns
from reward.data.files import DataError, read_rows, storable
from reward.data.formats import RowError
from reward.data.rows_to_score import row_to_score, with_rewards
from reward.model.batches import TokenIds
from reward.model.scorer import Scorer, processes


@dataclass
class EncodedRow:
    """A row, and what the model reads of it."""

    row: dict  # the row to write, once it has its rewards
    ids: list[TokenIds | None]  # of each completion with its prompt; None where there is no reward
    prompt_cut: bool = False  # whether the prompt lost its start
    prompts_differ: bool = False  # whether the two sides answer different prompts


def score_file(
    scorer: Scorer, source: str, output: str | None, columns: dict[str, str] | None = None
) -> None:
    """Write the rows of a file with their rewards, in the same order, and sum up on stderr.

    Under `accelerate launch` every process calls this, and the main one writes.

    Args:
        scorer: The reward model.
        source: A file in any format of reward.data.files, whose rows are completions with their
            prompts, or preferences in any format of reward.data.formats.
        output: The JSONL file to write; None for standard output.
        columns: Our name of each column that the file names otherwise -> its name there.

    Raises:
        DataError: The file or a row of it cannot be read.
    """
    named = NamedColumns(Columns.of(columns))
    encoded_rows = [
        encode_row_to_score(scorer, source, line, row, named) for line, row in read_rows(source)
    ]
    named.check(source)
    ids = [ids for encoded in encoded_rows for ids in encoded.ids]
    rewards = iter(scorer.rewards_of_ids(ids, progress="Scoring"))
    if not processes().is_main_process:
        return
    too_long = 0  # rows of which a completion alone is too long
    with written_whole(output) as sink:
        for encoded in encoded_rows:
            row_rewards = [next(rewards) for _ in encoded.ids]
            if None in row_rewards and not encoded.prompts_differ:
                too_long += 1
            row = with_rewards(encoded.row, row_rewards)
            sink.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(closing_line(scorer, encoded_rows, too_long), file=sys.stderr)


def encode_row_to_score(
    scorer: Scorer, source: str, line: int, row: dict, named: NamedColumns
) -> EncodedRow:
    """Encode what is scored of the row at a line of the source.

    The row to write has the columns of the file, and those that are renamed under our names too.
    """
    transcript = scorer.manifest.get("transcript", "messages")
    row = storable(row)
    try:
        to_score = row_to_score(named.of(row), transcript)
    except RowError as error:
        raise DataError(f"{source}:{line}: {error}") from None
    written = to_score.row
    if named.columns.names:
        written = written | row
    if to_score.prompt is None:
        return EncodedRow(written, [None, None], prompts_differ=True)
    encoded = scorer.encode(to_score.prompt, to_score.completions, to_score.tools)
    return EncodedRow(written, encoded.ids, prompt_cut=encoded.prompt_cut)


@contextmanager
def written_whole(output: str | None) -> Iterator[TextIO]:
    """Open a file to write that appears once it is complete; standard output where there is none.

    It is written beside its place and moved there, so that an interrupted run leaves no half file.
    """
    if not output:
        yield sys.stdout
        return
    temporary = Path(f"{output}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as sink:
            yield sink
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def closing_line(scorer: Scorer, encoded_rows: list[EncodedRow], too_long: int) -> str:
    """Return in a line what was scored, and what was cut or has no reward."""
    cut = sum(encoded.prompt_cut for encoded in encoded_rows)
    prompts_differ = sum(encoded.prompts_differ for encoded in encoded_rows)
    parts = [f"scored {len(encoded_rows):,} rows"]
    if cut:
        parts.append(f"{cut:,} with the start of the prompt cut to fit {scorer.limit} tokens")
    if too_long:
        parts.append(
            f"{too_long:,} with no reward because a completion alone is longer than "
            f"{scorer.limit} tokens"
        )
    if prompts_differ:
        parts.append(
            f"{prompts_differ:,} with no reward because the two sides have different prompts"
        )
    if scorer.way_in_words:
        parts.append(scorer.way_in_words)
    return ", ".join(parts)
