"""Write rows as JSONL, Parquet, CSV or TSV: `write_rows(rows, "scored.parquet")`.

The rows are read once and need not fit into memory. A file appears once it is complete. Imports no
torch.
"""

import csv
import gzip
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from reward.data.columns import names_in_words
from reward.data.files import WriteError
from reward.data.streams import lead_nowhere, stream_of_rows

if TYPE_CHECKING:  # only for the annotations: the import takes a tenth of a second
    import pyarrow

STANDARD_OUTPUT = "-"
ROWS_AT_ONCE = 1000  # whose types are found, and which are written, together
REFUSED_SUFFIXES = (".bz2", ".xz", ".zst", ".zip", ".arrow", ".xlsx")


def is_standard_output(output: str | None) -> bool:
    """Whether an output is no file."""
    return output in (None, "", STANDARD_OUTPUT)


def output_fault(output: str | None) -> str | None:
    """Why no rows can be written under this name; None if they can."""
    if is_standard_output(output):
        return None
    path = Path(output).absolute()
    if not path.parent.is_dir():
        return "no such folder; it would fail once everything is scored"
    if path.is_dir():
        return "a folder; name a file in it"
    if path.suffix.lower() in REFUSED_SUFFIXES:
        return f"no {path.suffix} is written; name it .jsonl, .parquet, .csv or .tsv"
    if path.suffix.lower() == ".gz" and _kind_of(output) == ".parquet":
        return "Parquet is compressed by itself; name it .parquet"
    return None


def write_rows(rows: Iterable[dict], output: str | None) -> None:
    """Write rows whole or not at all.

    Args:
        rows: What JSON can hold. Their columns may differ: in Parquet and CSV a row has null or an
            empty cell for a column that it lacks.
        output: A file. `.parquet`, `.csv` and `.tsv` say what it is, and anything else is JSONL;
            text with `.gz` behind that is compressed. None or `-` is standard output, in JSONL.

    Raises:
        WriteError: The output cannot be written.
    """
    if is_standard_output(output):
        print_rows(rows)
        return
    kind = _kind_of(output)
    temporary = _beside(output, "tmp")
    try:
        if kind in (".parquet", ".csv", ".tsv"):
            _write_table(rows, temporary, output)
        else:
            with _open_text(temporary, output) as sink:
                sink.writelines(map(json_line, rows))
        os.replace(temporary, output)
    except OSError as error:
        raise WriteError.of(output, error) from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def print_rows(rows: Iterable[dict]) -> None:
    """Write rows to standard output as JSONL.

    Raises:
        WriteError: It cannot be written.
    """
    try:
        stream = stream_of_rows()
        for row in rows:
            stream.write(json_line(row))
        stream.flush()
    except OSError as error:
        if sys.stdout is not None:
            lead_nowhere(sys.stdout)  # or Python would try again at the end
        raise WriteError.of("standard output", error) from None


def json_line(row: dict) -> str:
    """A row as a line of JSONL."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def rows_of_lines(path: str | Path) -> Iterator[dict]:
    """The rows of a file that `write_rows` wrote as JSONL."""
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)


def _beside(output: str, what: str) -> str:
    """A file of this process alone beside the output: nothing of a user's is overwritten."""
    path = Path(output)
    return str(path.with_name(f".{path.name}.{os.getpid()}.{what}"))


def _kind_of(output: str) -> str:
    """The suffix that names the format, in lower case and without `.gz`."""
    name = output.lower().removesuffix(".gz")
    return Path(name).suffix


def _open_text(path: str, output: str) -> TextIO:
    """Open a file to write text, compressed if the output's name says so."""
    if output.lower().endswith(".gz"):
        return gzip.open(path, "wt", encoding="utf-8", newline="\n")
    return open(path, "w", encoding="utf-8", newline="\n")


# --- Parquet and CSV ------------------------------------------------------------------------------


@dataclass
class _Columns:
    """The columns of all rows, in the order in which they first occur."""

    types: dict[str, "pyarrow.DataType"] = field(default_factory=dict)
    of_several_kinds: set[str] = field(default_factory=set)  # no one type holds their values
    # Whose type was widened, so that it may not hold each of their values: a float not each integer
    widened: set[str] = field(default_factory=set)

    def add(self, rows: list[dict]) -> None:
        """Take in the columns of more rows."""
        names = dict.fromkeys(itertools.chain.from_iterable(rows))
        for name in names:
            self._add_column(name, [row.get(name) for row in rows])

    def _add_column(self, name: str, values: list) -> None:
        import pyarrow

        if name in self.of_several_kinds:
            return
        try:
            kind = pyarrow.array(values).type
            if name in self.types and kind != self.types[name]:
                kind = _common_type(self.types[name], kind)
                self.widened.add(name)
        except (pyarrow.ArrowException, OverflowError):
            kind = None
        if kind is None or _has_empty_struct(kind):
            self.of_several_kinds.add(name)
            kind = pyarrow.string()
        self.types[name] = kind

    def check_widened(self, blocks: Iterator[list[dict]]) -> None:
        """Try the types that were widened on all rows; a column that one does not hold is text."""
        import pyarrow

        for block in blocks:
            for name in self.widened - self.of_several_kinds:
                try:
                    pyarrow.array([row.get(name) for row in block], self.types[name])
                except (pyarrow.ArrowException, OverflowError):
                    self.of_several_kinds.add(name)
                    self.types[name] = pyarrow.string()


def _common_type(one: "pyarrow.DataType", other: "pyarrow.DataType") -> "pyarrow.DataType":
    """A type that holds the values of both. Raises ArrowException if there is none."""
    import pyarrow

    schemas = [pyarrow.schema([("values", kind)]) for kind in (one, other)]
    return pyarrow.unify_schemas(schemas, promote_options="permissive").field("values").type


def _has_empty_struct(kind: "pyarrow.DataType") -> bool:
    """Whether `{}` is a value of this type. Parquet cannot hold an object without any name."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return kind.num_fields == 0 or any(map(_has_empty_struct, (field.type for field in kind)))
    return pyarrow.types.is_list(kind) and _has_empty_struct(kind.value_type)


def _write_table(rows: Iterable[dict], path: str, output: str) -> None:
    """Write a table, whose columns are only known once all rows are there.

    The rows are stored as JSONL until then.
    """
    stored = _beside(output, "rows")
    columns = _Columns()
    try:
        with open(stored, "w", encoding="utf-8", newline="\n") as sink:
            for block in _blocks(rows):
                columns.add(block)
                sink.writelines(map(json_line, block))
        if _kind_of(output) == ".parquet" and columns.widened:
            columns.check_widened(_blocks(rows_of_lines(stored)))
        blocks = _blocks(rows_of_lines(stored))
        if _kind_of(output) == ".parquet":
            _write_parquet(blocks, columns, path)
        else:
            with _open_text(path, output) as sink:
                _write_csv(blocks, columns, sink, _kind_of(output))
    finally:
        Path(stored).unlink(missing_ok=True)


def _blocks(rows: Iterable[dict]) -> Iterator[list[dict]]:
    rows = iter(rows)
    while block := list(itertools.islice(rows, ROWS_AT_ONCE)):
        yield block


def _write_parquet(blocks: Iterator[list[dict]], columns: _Columns, path: str) -> None:
    from pyarrow import Table, schema
    from pyarrow.parquet import ParquetWriter

    if columns.of_several_kinds:
        names = names_in_words(sorted(columns.of_several_kinds))
        print(
            f"values of several kinds are JSON text, since a column of Parquet has one: {names}",
            file=sys.stderr,
        )
    table_schema = schema(list(columns.types.items()))
    with ParquetWriter(path, table_schema) as writer:
        for block in blocks:
            for name in columns.of_several_kinds:
                for row in block:
                    row[name] = _as_text(row.get(name))
            writer.write_table(Table.from_pylist(block, schema=table_schema))


def _write_csv(blocks: Iterator[list[dict]], columns: _Columns, sink: TextIO, kind: str) -> None:
    separator = ","
    if kind == ".tsv":
        separator = "\t"
    writer = csv.writer(sink, delimiter=separator, lineterminator="\n")
    # csv quotes a cell with a line feed, and not one with a carriage return, which ends a row too.
    quoting_writer = csv.writer(
        sink, delimiter=separator, lineterminator="\n", quoting=csv.QUOTE_ALL
    )
    writer.writerow(columns.types)
    for block in blocks:
        for row in block:
            cells = [_as_text(row.get(name)) for name in columns.types]
            if any("\r" in cell for cell in cells if cell):
                quoting_writer.writerow(cells)
            else:
                writer.writerow(cells)


def _as_text(value: Any) -> str | None:
    """A text as it is, and anything else as JSON; null stays what it is."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
