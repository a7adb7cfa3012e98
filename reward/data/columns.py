"""Which columns of a source are read, and under which names.

    columns = Columns.of({"prompt": "my_question", "chosen": "good"})   # our name: their name
    row = NamedColumns(columns).of(row)                                 # now with our names

A recipe's source has them as `columns:`; score.py and audit.py as `--columns`. A list of names
instead of a mapping reads these columns alone.
"""

import difflib
from argparse import ArgumentTypeError
from collections.abc import Iterable
from dataclasses import dataclass, field

from reward.data.files import DataError
from reward.data.transcripts import RowError

UNREAD = "columns not read"  # a note on a row; their names follow

# Our names: what the layouts of docs/inputs.md read.
OUR_NAMES = (
    *("prompt", "chosen", "rejected", "text_chosen", "text_rejected", "instruction", "input"),
    *("question", "query", "trajectory", "conversations", "conversation", "messages", "context"),
    *("history", "system", "system_prompt", "system_message", "tools", "subset", "source"),
    *("domain", "margin", "votes", "chosen_probability", "rating_chosen", "rating_rejected"),
    *("score_chosen", "score_rejected", "bayes_accuracy", "answers", "completions", "ranks"),
    *("ranking", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
    *("winner", "label", "preference", "response_A", "response_B", "output_1", "output_2"),
    *("conversation_a", "conversation_b", "response_1", "response_2", "preference_strength"),
    *("response1", "response2", "overall_preference", "response_0", "better_response_id"),
    *("human_ref_A", "human_ref_B", "labels", "answer_0", "answer_1", "score_0", "score_1"),
    *("output", "completion", "response", "answer", "text", "helpfulness", "gold", "rating"),
    *("reward", "rewards", "reward_chosen", "reward_rejected", "human_labels"),
)

# Columns that a row may lack, because most formats have them in some rows only. Any other column
# that is named must be in every row: without its prompt a row would be read as another format.
OPTIONAL = (
    "system",
    "input",
    "history",
    "tools",
    "subset",
    "margin",
    "votes",
    "chosen_probability",
    "rating_chosen",
    "rating_rejected",
    "bayes_accuracy",
)


@dataclass(frozen=True)
class Columns:
    """The columns of a source that are read. Tuples alone, so that datasets can hash them."""

    only: tuple[str, ...] | None = None  # the columns that are read; None for all
    names: tuple[tuple[str, str], ...] = ()  # (our name, their name) of each that is renamed

    @classmethod
    def of(cls, columns: list[str] | dict[str, str] | None) -> "Columns":
        """The columns that `columns:` of a recipe's source names."""
        if isinstance(columns, dict):
            return cls(names=tuple(columns.items()))
        if columns:
            return cls(only=tuple(columns))
        return cls()


def parse_columns(text: str) -> dict[str, str]:
    """The mapping of `--columns prompt=my_question,chosen=good`.

    Raises:
        ArgumentTypeError: The text has another form; the message says what is needed.
    """
    names = {}
    for item in text.split(","):
        ours, equals, theirs = (part.strip() for part in item.partition("="))
        if not ours or not equals or not theirs:
            raise ArgumentTypeError(
                f"`{item}` is no OURS=THEIRS; write for example "
                "--columns prompt=my_question,chosen=good,rejected=bad"
            )
        if ours in names:
            raise ArgumentTypeError(f"`{ours}` is named twice; name each of our columns once")
        fault = fault_of_our_name(ours)
        if fault:
            raise ArgumentTypeError(fault)
        names[ours] = theirs
    return names


def fault_of_our_name(name: object) -> str | None:
    """What is wrong with one of our names in a mapping of columns; None if nothing is."""
    if name in OUR_NAMES:
        return None
    nearest = difflib.get_close_matches(str(name), OUR_NAMES, n=1, cutoff=0.6)
    if nearest:
        return f"`{name}` is none of our columns; did you mean `{nearest[0]}`?"
    return (
        f"`{name}` is none of our columns; ours comes first, as in prompt: my_question "
        "(docs/inputs.md names them all)"
    )


@dataclass
class NamedColumns:
    """Gives the columns of rows our names, one row after another."""

    columns: Columns
    seen: set[str] = field(default_factory=set)  # the named columns that some row had
    of_first_row: dict | None = None  # for the error

    def of(self, row: dict) -> dict:
        """The row with our names for the columns.

        Raises:
            RowError: The row lacks a column that is named, or is no row at all.
        """
        if not isinstance(row, dict):
            raise RowError("a row is a JSON object with named columns")
        columns = self.columns
        if self.of_first_row is None:
            self.of_first_row = row
        if columns.only is not None:
            self.seen.update(name for name in columns.only if name in row)
            return {name: row[name] for name in columns.only if name in row}
        if not columns.names:
            return row
        renamed = {theirs for _, theirs in columns.names}
        named = {name: value for name, value in row.items() if name not in renamed}
        for ours, theirs in columns.names:
            named.pop(ours, None)
            if theirs in row:
                self.seen.add(theirs)
            elif ours not in OPTIONAL and theirs in self.seen:
                raise RowError(f"`{theirs}` is empty or missing, which other rows have")
            elif ours not in OPTIONAL:
                raise RowError(lacking(theirs, row))
        for ours, theirs in columns.names:
            if theirs in row:
                named[ours] = row[theirs]
        return named

    def replaced(self, row: dict) -> list[str]:
        """The columns of a row whose names now belong to others, so that they are not read."""
        renamed = {theirs for _, theirs in self.columns.names}
        ours = (name for name, _ in self.columns.names)
        return [name for name in ours if row.get(name) is not None and name not in renamed]

    def check(self, place: str) -> None:
        """Check, once all rows are read, that each column that is named was in one of them.

        Args:
            place: The file or data set, which the error names.

        Raises:
            DataError: No row had a column that is named.
        """
        columns = self.columns
        named = [*(columns.only or ()), *(theirs for _, theirs in columns.names)]
        for name in named:
            if name not in self.seen and self.of_first_row is not None:
                raise DataError(f"{place}: {lacking(name, self.of_first_row)}")


def lacking(name: str, row: dict) -> str:
    """The error about a column that is named and that a row lacks."""
    text = f"`columns` names `{name}`, but the columns are {columns_in_words(row)}"
    nearest = difflib.get_close_matches(name, map(str, row), n=1, cutoff=0.6)
    if nearest:
        text += f"; did you mean `{nearest[0]}`?"
    return text


LONGEST_NAME = 30
LONGEST_LIST = 100  # characters, so that the whole sentence can be read at a glance


def columns_in_words(row: dict) -> str:
    """The names of a row's columns in a list; long names and long lists are cut."""
    names = sorted(map(str, row))
    shown = []
    length = 0
    for name in names:
        shown.append(repr(name_in_words(name)))
        length += len(shown[-1]) + 2
        if length > LONGEST_LIST:
            break
    text = f"[{', '.join(shown)}]"
    if len(shown) < len(names):
        text += f" and {len(names) - len(shown)} more"
    return text


MOST_NAMED = 40


def names_in_words(names: Iterable[str]) -> str:
    """Names of columns with commas; of very many, the first ones and how many there are more."""
    names = list(names)
    words = ", ".join(map(name_in_words, names[:MOST_NAMED]))
    if len(names) > MOST_NAMED:
        words += f" and {len(names) - MOST_NAMED:,} more"
    return words


def name_in_words(name: object) -> str:
    """The name of a column, cut if it is long, without characters that cannot be printed."""
    name = "".join(letter for letter in str(name)[: LONGEST_NAME + 1] if letter.isprintable())
    if len(name) > LONGEST_NAME:
        return name[: LONGEST_NAME - 3] + "..."
    return name
