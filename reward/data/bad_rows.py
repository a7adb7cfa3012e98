"""Rows that cannot be used: what stands in their place, and under which reasons they are counted.

Imports no torch.
"""

import re
from collections import Counter
from dataclasses import dataclass

from reward.data.transcripts import FileError, RowError

# How the reason to drop a row begins if the row is bad by itself. The fault follows.
UNREADABLE = "cannot be read: "
REFUSED = "refused by"  # the chat template, or the model's vocabulary
BAD_ROW = (UNREADABLE, REFUSED)

MOST_REASONS = 20  # as many faults of bad rows are told apart
OTHER_REASONS = f"{UNREADABLE}other reasons"
LONGEST_REASON = 200  # characters

# What is needed instead of a fault. A reason leaves it out, because it is a line of a table.
MEND = re.compile("; |: mend ")


@dataclass(frozen=True)
class UnreadableRow:
    """What stands in the place of a row that cannot be read.

    Neither text holds any content of the row.
    """

    problem: str  # the same words for every row with this fault, such as `no valid JSON`
    detail: str = ""  # what belongs to this row alone, such as ` at column 23`
    ends_file: bool = False  # whether other rows of its file would be misread, so that none is used

    @classmethod
    def of(cls, error: RowError) -> "UnreadableRow":
        """What stands in the place of a row with this fault."""
        return cls(str(error), ends_file=isinstance(error, FileError))

    def __str__(self) -> str:
        return self.problem + self.detail

    @property
    def reason(self) -> str:
        """The reason under which such rows are counted."""
        words = MEND.split(self.problem)[0]
        return (UNREADABLE + " ".join(words.split()))[:LONGEST_REASON]


def one_of_few(reason: str, counter: Counter) -> str:
    """The reason under which to count a row that is dropped.

    It is the reason itself, or OTHER_REASONS if the counter tells enough faults of bad rows apart.
    """
    if reason in counter or not reason.startswith(BAD_ROW):
        return reason
    if sum(known.startswith(BAD_ROW) for known in counter) < MOST_REASONS:
        return reason
    return OTHER_REASONS
