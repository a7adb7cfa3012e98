"""The ledger: how many pairs were read, kept, dropped and truncated, by split and by reason."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
from accelerate import PartialState

from reward.data.files import DataError

MAX_TIES = 0.3  # ours: a larger share of ties in the train split is worth a warning


TOO_LITTLE = "raters agree less than"


NO_RIGHT_SIDE = "tie (no side is right)"


AGAINST = "votes or chosen_probability against the chosen side"


TIE = "tie (chosen_probability .5)"


# --------------------------------------------------------------------------------------------------------- the ledger


@dataclass
class Ledger:
    """Counts of pairs by split: `read`, `kept`, `dropped` and `truncated` by reason and side, `added` (made here), `noted`
    (kept, but you should know)."""

    splits: dict = field(default_factory=lambda: defaultdict(lambda: defaultdict(Counter)))

    def add(self, split: str, kind: str, reason: str, count: int = 1) -> None:
        if count:
            self.splits[split][kind][reason] += int(count)

    def read(self, split: str) -> int:
        return self.splits[split]["pairs"]["read"]

    def dropped(self, split: str) -> int:
        return sum(self.splits[split]["dropped"].values())

    def as_dict(self) -> dict:
        return {
            split: {
                "read": counts["pairs"]["read"],
                "kept": counts["pairs"]["read"]
                + counts["added"].total()
                - counts["dropped"].total(),
                "by_subset": dict(sorted(counts["subset"].items())),
                **{
                    kind: dict(sorted(counts[kind].items()))
                    for kind in ("dropped", "truncated", "added", "noted")
                },
            }
            for split, counts in self.splits.items()
        }

    def __str__(self) -> str:
        lines = [f"{'':12}{'read':>9}{'kept':>9}{'dropped':>9}"]
        for split, counts in self.as_dict().items():
            lines.append(
                f"{split:12}{counts['read']:>9,}{counts['kept']:>9,}{self.dropped(split):>9,}"
            )
            for kind in ("dropped", "truncated", "added", "noted"):
                lines += [
                    f"{'':12}  {kind:9} {n:>7,}  {reason}" for reason, n in counts[kind].items()
                ]
            if len(counts["by_subset"]) > 1:
                lines.append(
                    f"{'':14}"
                    + ", ".join(f"{name} {n:,}" for name, n in counts["by_subset"].items())
                )
        return "\n".join(lines)

    def check(self, max_dropped: float) -> None:
        """Raise DataError where a split is empty, or lost more than the share `max_dropped` of its pairs (ties of an evaluation
        split and `min_rater_agreement` do not count: nothing went wrong)."""
        for split, counts in self.as_dict().items():
            if not counts["kept"]:
                raise DataError(
                    f"no pair of the {split} split is left.\n{self}\nSplits are made of whole first user turns, so few rows, "
                    "or rows that all begin alike, may leave one empty: set another validation_fraction or test_fraction."
                )
            asked_for = sum(
                n
                for reason, n in counts["dropped"].items()
                if reason.startswith((NO_RIGHT_SIDE, TOO_LITTLE))
            )
            share = (self.dropped(split) - asked_for) / counts["read"]
            ties = counts["noted"].get(TIE, 0) / max(
                1, counts["kept"] - sum(counts["added"].values())
            )
            before_encoding = not counts["by_subset"]  # to say it once
            if (
                split == "train"
                and ties > MAX_TIES
                and before_encoding
                and PartialState().is_main_process
            ):
                print(
                    f"warning: {ties:.1%} of the train pairs are ties: the raters may lack clear guidelines, or the pairs "
                    "differ too little. Ties are trained on as .5; loss_type: rao_kupper models them."
                )
            if share > max_dropped:
                raise DataError(
                    f"{share:.1%} of the {split} pairs were dropped; max_dropped allows {max_dropped:.1%}.\n{self}\n"
                    f"If that is what you want, set max_dropped: {min(1.0, np.ceil(share * 100) / 100):.2f}."
                )


def _count(ledger: Ledger, split: str, drop) -> None:
    ledger.splits[split]["pairs"]["read"] += len(
        drop
    )  # also 0: an empty split is found by Ledger.check
    for reason, n in Counter(drop).items():
        if reason:
            ledger.add(split, "dropped", reason, n)


def _note(ledger: Ledger, split: str, probability) -> None:
    ledger.add(split, "noted", TIE, (probability == 0.5).sum())
    ledger.add(split, "noted", AGAINST, (probability < 0.5).sum())
