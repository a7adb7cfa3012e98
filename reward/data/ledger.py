"""The ledger: how many pairs were read, kept, dropped and truncated, by split and by reason."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from accelerate import PartialState

from reward.data.bad_rows import BAD_ROW, one_of_few
from reward.data.columns import UNREAD, names_in_words
from reward.data.files import DataError
from reward.data.preference_pair import AGAINST, RATED_AGAINST
from reward.data.secrets import without_secrets
from reward.data.shown import shown

if TYPE_CHECKING:
    from datasets import Dataset

MOST_SUBSETS = 20  # that are named; of more, those with the most pairs
LONGEST_TABLE = 1500  # characters of the ledger in an error
LONGEST_NAME = 60  # characters of a subset's name
MAX_TIES = 0.3  # a train split with a larger share of ties gets a warning; our own choice

# Reasons to drop a pair.
OVER_LONG = "over-long"  # how such reasons begin
TURN_IN_TEST = "first user turn shared with test"
TURN_IN_VALIDATION = "first user turn shared with validation"
DUPLICATE = "exact duplicate"
NO_RIGHT_SIDE = "tie (no side is right)"
TOO_LITTLE = "raters agree less than"  # the least agreement follows

TIE = "tie (chosen_probability .5)"  # a note on a pair that is kept

FEW = 100  # of fewer pairs a share says little

KINDS = ("dropped", "truncated", "added", "noted")  # the kinds of reason, as they are printed


@dataclass
class SplitCounts:
    """What became of the pairs of one split. Each Counter says how many pairs, by reason."""

    read: int = 0  # the pairs that the source has
    dropped: Counter = field(default_factory=Counter)  # read or added, but left out
    truncated: Counter = field(default_factory=Counter)  # kept, but shortened
    added: Counter = field(default_factory=Counter)  # made from pairs that were read
    noted: Counter = field(default_factory=Counter)  # kept, but worth knowing about
    by_subset: Counter = field(default_factory=Counter)  # kept, by subset; empty before encoding
    # The place of the first row, by reason. It is printed but not stored, because it holds a path.
    places: dict[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        return self.read + self.added.total() - self.dropped.total()

    def as_dict(self) -> dict:
        counts = {"read": self.read, "kept": self.kept}
        for name in ("by_subset", *KINDS):
            counts[name] = dict(sorted(getattr(self, name).items()))
        return counts


@dataclass
class Ledger:
    """The counts of every split, by its name."""

    splits: defaultdict[str, SplitCounts] = field(default_factory=lambda: defaultdict(SplitCounts))

    def add(self, split: str, kind: str, reason: str, count: int = 1) -> None:
        """Count pairs of a split.

        Args:
            split: The name of the split.
            kind: One of KINDS, or `by_subset`.
            reason: The reason as it is printed. Under `by_subset`, the name of the subset.
            count: How many pairs.
        """
        if count:
            counter = getattr(self.splits[split], kind)
            counter[one_of_few(reason, counter)] += int(count)

    def add_read(self, split: str, drop_reasons: Iterable[str]) -> None:
        """Count pairs that were read.

        Args:
            split: The name of the split.
            drop_reasons: For each pair, why it is dropped; "" if it is kept. A split without any
                pair enters the ledger as well, so that `check` sees that it is empty.
        """
        counts = Counter(drop_reasons)
        self.splits[split].read += counts.total()
        for reason, count in counts.items():
            if reason:
                self.add(split, "dropped", reason, count)

    def add_places(self, split: str, places: dict[str, str]) -> None:
        """Note where the first bad row of a split lies.

        Args:
            split: The name of the split.
            places: A reason to drop a row, and the place of the first row with it. Reasons that are
                no fault of the row itself are left out.
        """
        for reason, place in places.items():
            if reason.startswith(BAD_ROW):
                self.splits[split].places.setdefault(reason, place)

    def note_unread(self, split: str, unread: Iterable[str]) -> None:
        """Note, in one line of a split, the columns of its rows that nobody reads.

        Args:
            split: The name of the split.
            unread: For each pair, the unread columns of its row with commas; "" if there are none.
        """
        by_columns = Counter(unread)
        by_columns.pop("", None)
        names = {name: None for columns in by_columns for name in columns.split(", ")}
        if names:
            reason = f"{UNREAD}: {names_in_words(names)}"
            self.add(split, "noted", reason, by_columns.total())

    def note_doubtful_labels(
        self, split: str, probability: np.ndarray, rating_margin: np.ndarray
    ) -> None:
        """Count ties, and pairs whose raters or ratings prefer the rejected side.

        Args:
            split: The name of the split.
            probability: The chosen probability of each pair that is kept; NaN if it has none.
            rating_margin: The rating of its chosen side minus that of its rejected side; likewise.
        """
        self.add(split, "noted", RATED_AGAINST, (rating_margin < 0).sum())
        self.add(split, "noted", TIE, (probability == 0.5).sum())
        self.add(split, "noted", AGAINST, (probability < 0.5).sum())

    def read(self, split: str) -> int:
        """How many pairs of a split were read."""
        return self.splits[split].read

    def dropped(self, split: str) -> int:
        """How many pairs of a split were dropped, for whatever reason."""
        return self.splits[split].dropped.total()

    def bad_rows(self, split: str) -> int:
        """How many rows of a split were dropped because they are bad by themselves."""
        return _bad_rows(self.splits[split])

    def as_dict(self) -> dict[str, dict]:
        """The counts by split as JSON can hold them: the content of `ledger.json`."""
        counts = {split: counts.as_dict() for split, counts in self.splits.items()}
        return without_secrets(counts)

    def __str__(self) -> str:
        """A table of the splits, with a line for each reason."""
        lines = [f"{'':12}{'read':>9}{'kept':>9}{'dropped':>9}"]
        for split, counts in self.splits.items():
            dropped = counts.dropped.total()
            lines.append(f"{split:12}{counts.read:>9,}{counts.kept:>9,}{dropped:>9,}")
            for kind in KINDS:
                for reason, count in sorted(getattr(counts, kind).items()):
                    if reason in counts.places:
                        reason += f" (first: {counts.places[reason]})"
                    lines.append(f"{'':12}  {kind:9} {count:>7,}  {shown(reason)}")
            if len(counts.by_subset) > 1:
                lines.append(f"{'':14}{_subsets_in_words(counts.by_subset)}")
        return "\n".join(lines)

    def check(self, max_dropped: float) -> None:
        """Warn of many ties in the train split, and refuse a split that is empty or lost too much.

        Args:
            max_dropped: The largest share of its pairs that a split may lose. Two kinds of loss do
                not count, because nothing went wrong: ties of an evaluation split, and pairs that
                `min_rater_agreement` leaves out. Bad rows count by their share of all splits, and
                in a split of FEW pairs or more: into which split a bad row falls is chance.

        Raises:
            DataError: A split is empty, or it lost a larger share.
        """
        needed = self._largest_loss()
        for split, counts in self.splits.items():
            if not counts.kept:
                table = shown(self, LONGEST_TABLE)
                raise DataError(f"no pair of the {split} split is left.\n{table}\n{_mend(counts)}")
            if split == "train":
                _warn_of_ties(counts)
            self._check_share(f"the {split} pairs", _lost(counts), counts.read, max_dropped, needed)
        bad = sum(map(_bad_rows, self.splits.values()))
        read = sum(counts.read for counts in self.splits.values())
        self._check_share("the pairs of all splits", bad, read, max_dropped, needed)

    def _largest_loss(self) -> float:
        """The largest share of its pairs that a split has lost."""
        return max(
            (_lost(counts) / counts.read for counts in self.splits.values() if counts.read),
            default=0.0,
        )

    def check_so_far(self, split: str, max_dropped: float) -> None:
        """Refuse a split that has lost too much by now. The arguments are those of `check`."""
        counts = self.splits[split]
        pairs = f"the {split} pairs read so far"
        self._check_share(pairs, _lost(counts), counts.read, max_dropped)

    def _check_share(
        self, pairs: str, dropped: int, read: int, max_dropped: float, needed: float = 0.0
    ) -> None:
        """Raise DataError if too many were dropped of the pairs that `pairs` names.

        Args:
            pairs: What they are, for the message.
            dropped: How many of them were dropped.
            read: How many there are.
            max_dropped: The largest share that may be dropped.
            needed: A larger share that the message advises, because other pairs need it.
        """
        if read == 0 or dropped / read <= max_dropped:
            return
        share = dropped / read
        raise DataError(
            f"{share:.1%} of {pairs} were dropped; max_dropped allows {max_dropped:.1%}.\n"
            f"{shown(self, LONGEST_TABLE)}\n{self._mend_of_lengths()}"
            f"If that is what you want, set max_dropped: "
            f"{min(1.0, math.ceil(max(share, needed) * 100) / 100):.2f}."
        )

    def _mend_of_lengths(self) -> str:
        """What to do where most pairs were dropped for their length; "" where not."""
        dropped = sum((counts.dropped for counts in self.splits.values()), Counter())
        too_long = sum(n for reason, n in dropped.items() if reason.startswith(OVER_LONG))
        if 2 * too_long <= dropped.total():
            return ""
        return "Most are too long: raise max_length, or set overlong: truncate_prompt.\n"


def first_places(table: Dataset, drop: np.ndarray) -> dict[str, str]:
    """The place of the first bad row, by reason.

    Args:
        table: A table of pairs, with the column `where`.
        drop: (n,) of str: the reason to drop each pair; "" if there is none.
    """
    places = {}
    for reason in set(drop):
        if reason.startswith(BAD_ROW):
            first = np.flatnonzero(drop == reason)[0]
            places[reason] = table[int(first)]["where"]
    return places


def raters_disagree(probability: np.ndarray | float, minimum: float) -> np.ndarray | bool:
    """Whether less than `minimum` of the raters agree with each other, whichever side they prefer.

    Args:
        probability: The chosen probability. The result is False where it is NaN.
        minimum: The least share that must agree, from .5 to 1.
    """
    agreement = np.maximum(probability, 1 - probability)
    return agreement < minimum - 1e-9  # 7 votes of 10 are not less than .7


def too_little_agreement(minimum: float) -> str:
    """The reason to drop a pair whose raters disagree."""
    return f"{TOO_LITTLE} {minimum:g}"


def _lost(counts: SplitCounts) -> int:
    """How many pairs of a split were dropped though nobody asked for it."""
    lost = 0
    for reason, count in counts.dropped.items():
        if not reason.startswith((NO_RIGHT_SIDE, TOO_LITTLE)):
            lost += count
    if counts.read < FEW:
        return lost - _bad_rows(counts)
    return lost


def _bad_rows(counts: SplitCounts) -> int:
    """How many rows of a split were dropped because they are bad by themselves."""
    bad = 0
    for reason, count in counts.dropped.items():
        if reason.startswith(BAD_ROW):
            bad += count
    return bad


def _mend(counts: SplitCounts) -> str:
    """What to do about a split that is empty."""
    by_chance = (TURN_IN_TEST, TURN_IN_VALIDATION)
    if counts.read and not any(reason in counts.dropped for reason in by_chance):
        return "None of its rows can be used, for the reasons above."
    return (
        "Splits are made of whole first user turns, so few rows, or rows that all begin alike, may "
        "leave one empty: set another validation_fraction or test_fraction."
    )


def _warn_of_ties(counts: SplitCounts) -> None:
    kept_of_read = max(1, counts.kept - counts.added.total())
    ties = counts.noted[TIE] / kept_of_read
    is_encoded = bool(counts.by_subset)  # `check` runs before and after encoding; warn only once
    if ties > MAX_TIES and not is_encoded and PartialState().is_main_process:
        print(
            f"warning: {ties:.1%} of the train pairs are ties: the raters may lack clear "
            "guidelines, or the pairs differ too little. Ties are trained on as .5; "
            "loss_type: rao_kupper models them."
        )


def _subsets_in_words(by_subset: Counter) -> str:
    """The subsets by name, each with its number of pairs."""
    subsets = []
    for name, count in sorted(by_subset.most_common(MOST_SUBSETS)):
        subsets.append(f"{shown(name, LONGEST_NAME)} {count:,}")
    if len(by_subset) > MOST_SUBSETS:
        subsets.append(f"and {len(by_subset) - MOST_SUBSETS:,} smaller ones")
    return ", ".join(subsets)
