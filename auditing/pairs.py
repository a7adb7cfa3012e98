"""Scored preference pairs as columns: what every check reads. NumPy only.

`Pairs.collect(rows)` takes one dict a pair, one after another, keeps the numbers, and spools the texts to a temporary file, so
that memory does not grow with them; `pairs.text(i)` fetches one pair's texts back.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from auditing.style import hedges, markdown
from reward.data.transcripts import text_of

LARGEST_REWARD = 1e100  # squares of larger ones overflow: they count as not finite


LONGEST_TEXT = 20_000  # characters of a side that are kept for the report and searched for marks


@dataclass(frozen=True)
class Pairs:
    """n pairs; every array is (n,), and every (chosen, rejected) couple of columns is (2, n)."""

    rewards: np.ndarray  # (2, n) of chosen, rejected; NaN where a reward is not a finite number
    lengths: np.ndarray  # (2, n) in `length_unit`
    characters: np.ndarray  # (2, n)
    markdown: np.ndarray  # (2, n) list items, headings, bold phrases, code fences
    hedges: np.ndarray  # (2, n)
    subset: np.ndarray  # (n,) of str
    prompt: np.ndarray  # (n,) int: pairs of one prompt share it
    votes: np.ndarray  # (n, 2) for chosen, for rejected; NaN where unknown
    bayes_accuracy: np.ndarray  # (n,) simulated raters only; NaN where unknown
    text: Callable[[int], dict] = field(
        repr=False
    )  # i -> {"prompt", "chosen", "rejected"}: message lists or strings
    length_unit: str = "tokens"
    human_labels: bool = (
        True  # False where "chosen" is right by construction (benchmarks, simulated raters)
    )

    @property
    def margins(self) -> np.ndarray:
        return self.rewards[0] - self.rewards[1]

    @property
    def length_differences(self) -> np.ndarray:
        return self.lengths[0] - self.lengths[1]

    @property
    def voted(self) -> np.ndarray:
        """(n,) bool: pairs with an odd number of votes, which raters are judged on. A tie has no right side and is left out of
        a test split; of pairs with two votes those that agree would be left, and raters would seem never to err."""
        return self.votes.sum(axis=1) % 2 == 1  # False where it is NaN

    def __len__(self) -> int:
        return len(self.subset)

    def take(self, index) -> "Pairs":
        """The pairs of a mask or an index array."""
        index = (
            np.flatnonzero(index)
            if np.asarray(index).dtype == bool
            else np.asarray(index, dtype=int)
        )
        pairs = {
            name: getattr(self, name)[:, index]
            for name in ("rewards", "lengths", "characters", "markdown", "hedges")
        }
        single = {
            name: getattr(self, name)[index]
            for name in ("subset", "prompt", "votes", "bayes_accuracy")
        }
        text = self.text
        return replace(self, **pairs, **single, text=lambda i: text(int(index[i])))

    def finite(self) -> "Pairs":
        """The pairs whose two rewards are finite; the others are counted by a check of their own."""
        return self.take(np.isfinite(self.rewards).all(axis=0))

    @classmethod
    def collect(cls, rows, length_unit: str = "tokens", human_labels: bool = True) -> "Pairs":
        """`rows`: an iterable of dicts with `prompt, chosen, rejected` (message lists or strings), `reward_chosen`,
        `reward_rejected` (None for a missing one), and perhaps `subset`, `chosen_tokens` and `rejected_tokens` (lengths are
        characters without them), `votes` ([for chosen, for rejected]), `bayes_accuracy`."""
        spool = Spool()
        numbers, subsets, prompts, known_subsets = [], [], {}, {}
        groups = []
        for row in rows:
            sides = [text_of(row[side]) for side in ("chosen", "rejected")]
            characters = [len(text) for text in sides]
            votes = row.get("votes") or (np.nan, np.nan)
            numbers.append(
                (
                    *(as_number(row[f"reward_{side}"]) for side in ("chosen", "rejected")),
                    *(
                        row.get(f"{side}_tokens", n)
                        for side, n in zip(("chosen", "rejected"), characters, strict=True)
                    ),
                    *characters,
                    *(markdown(text[:LONGEST_TEXT]) for text in sides),
                    *(hedges(text[:LONGEST_TEXT]) for text in sides),
                    *votes,
                    as_number(row.get("bayes_accuracy")),
                )
            )
            subset = row.get("subset") or "all"
            subsets.append(known_subsets.setdefault(subset, subset))
            groups.append(prompts.setdefault(hash(text_of(row["prompt"])), len(prompts)))
            spool.add(
                {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}
            )
        table = np.array(numbers, dtype=float).reshape(-1, 13).T  # (columns, n)
        simulated = len(numbers) > 0 and np.isfinite(table[12]).all()
        return cls(
            rewards=np.where(np.abs(table[0:2]) < LARGEST_REWARD, table[0:2], np.nan),
            lengths=table[2:4], characters=table[4:6],
            markdown=table[6:8], hedges=table[8:10], votes=table[10:12].T, bayes_accuracy=table[12],
            subset=np.array(subsets, dtype=object), prompt=np.array(groups, dtype=int), text=spool.read,
            length_unit=length_unit, human_labels=human_labels and not simulated,
        )  # fmt: skip


class Spool:
    """Dicts in a temporary file, by index. A side is kept up to LONGEST_TEXT characters."""

    def __init__(self):
        self._file = tempfile.TemporaryFile()
        self._starts = [0]

    def add(self, texts: dict) -> None:
        texts = {name: cut(side) for name, side in texts.items()}
        self._file.write(json.dumps(texts).encode())
        self._starts.append(self._file.tell())

    def read(self, i: int) -> dict:
        self._file.seek(self._starts[i])
        found = json.loads(self._file.read(self._starts[i + 1] - self._starts[i]))
        self._file.seek(0, 2)
        return found


def cut(side):
    """A message list or a string, its long texts cut at LONGEST_TEXT with the number of characters left out."""
    if isinstance(side, str):
        left = len(side) - LONGEST_TEXT
        return side if left <= 0 else f"{side[:LONGEST_TEXT]}\u2026 ({left:,} more characters)"
    return [{**message, "content": cut(message.get("content") or "")} for message in side]


def as_number(value) -> float:
    return float("nan") if value is None else float(value)
