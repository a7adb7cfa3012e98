"""What became of the rows that were scored: `summary = ScoringSummary(); summary.count(encoded)`.

Parts of a file are counted by themselves and added, and a summary can be stored as JSON.
"""

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field

from reward.data.bad_rows import one_of_few
from reward.data.columns import UNREAD, names_in_words
from reward.data.rows_to_score import free_name
from reward.model.encoded_row import NOT_FINITE, EncodedRow

MOST_REASONS = 10  # the closing line names as many; the rows name them all


@dataclass
class ScoringSummary:
    """Counts of rows, and the names of their columns.

    Names are kept in the order in which they first occur.
    """

    rows: int = 0
    unreadable_rows: int = 0
    first_unreadable: str = ""  # the place of the first unreadable row, and why it is one
    prompts_cut: int = 0  # rows whose prompt lost its start
    without_reward: Counter = field(default_factory=Counter)  # by reason
    first_places: dict[str, str] = field(default_factory=dict)  # of bad rows, by reason
    columns: list[str] = field(default_factory=list)  # of the rows to write, without the new ones
    new_columns: list[str] = field(default_factory=list)  # under their plain names
    unread: list[str] = field(default_factory=list)  # the columns that the model does not read
    named_seen: list[str] = field(default_factory=list)  # columns that --columns names, and found
    first_row: list[str] = field(default_factory=list)  # the columns of the first row as it is read
    way: str = ""  # how batches were computed, where that is not as usual

    def count(self, encoded: EncodedRow) -> None:
        """Take in a row that has its rewards."""
        self.rows += 1
        self.prompts_cut += encoded.prompt_cut
        _add_new(self.columns, encoded.row)
        _add_new(self.new_columns, encoded.new_columns)
        _add_new(self.unread, encoded.unread)
        fault = encoded.fault
        if fault is None:
            return
        reason = one_of_few(fault.reason, self.without_reward)
        self.without_reward[reason] += 1
        if fault.is_bad_row:
            self.first_places.setdefault(reason, encoded.place)
        if fault.is_bad_row and fault.reason != NOT_FINITE:
            self.unreadable_rows += 1
            self.first_unreadable = self.first_unreadable or f"{encoded.place}: {fault.sentence}"

    def add(self, later: "ScoringSummary") -> None:
        """Take in the rows of a part that follows."""
        self.rows += later.rows
        self.unreadable_rows += later.unreadable_rows
        self.first_unreadable = self.first_unreadable or later.first_unreadable
        self.prompts_cut += later.prompts_cut
        for reason, count in later.without_reward.items():
            self.without_reward[one_of_few(reason, self.without_reward)] += count
        self.first_places = later.first_places | self.first_places
        for name in ("columns", "new_columns", "unread", "named_seen"):
            _add_new(getattr(self, name), getattr(later, name))
        self.first_row = self.first_row or later.first_row
        self.way = self.way or later.way

    def with_part(self, later: "ScoringSummary") -> "ScoringSummary":
        """The summary of these rows and of a part that follows."""
        both = self.of_dict(self.as_dict())
        both.add(later)
        return both

    def as_dict(self) -> dict:
        """The summary as JSON can hold it."""
        return deepcopy(vars(self))

    @classmethod
    def of_dict(cls, values: dict) -> "ScoringSummary":
        """The summary that `as_dict` gave."""
        return cls(**values | {"without_reward": Counter(values["without_reward"])})

    def names_of_new_columns(self) -> dict[str, str]:
        """The names of the new columns in this file, by their plain names.

        No column of the file is overwritten, and a new column has the same name in all rows.
        """
        taken = set(self.columns)
        return {name: free_name(name, taken) for name in self.new_columns}

    def closing_line(self, limit: int | None) -> str:
        """Return in a line what was scored, and what was cut or has no reward.

        Args:
            limit: The longest input of the model in tokens; None for any length.
        """
        parts = [f"scored {self.rows:,} rows"]
        if self.prompts_cut:
            parts.append(
                f"{self.prompts_cut:,} with the start of the prompt cut to fit {limit} tokens"
            )
        parts += self._without_reward_in_words()
        if self.unread:
            parts.append(f"{UNREAD}: {names_in_words(self.unread)}")
        if self.way:
            parts.append(self.way)
        return ", ".join(parts)

    def _without_reward_in_words(self) -> list[str]:
        """One phrase for each reason why rows have no reward, the most frequent one first."""
        phrases = []
        others = self.without_reward.total()
        for reason, count in self.without_reward.most_common(MOST_REASONS):
            others -= count
            if reason in self.first_places:
                place = self.first_places[reason]
                phrases.append(f"{count:,} with no reward: {reason} (first: {place})")
            else:
                phrases.append(f"{count:,} with no reward because {reason}")
        if others:
            phrases.append(f"{others:,} with no reward for other reasons")
        return phrases


def _add_new(names: list[str], more: list[str] | dict[str, object]) -> None:
    """Append the names that are not there yet. They are few."""
    for name in more:
        if name not in names:
            names.append(name)
