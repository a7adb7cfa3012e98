"""Scored preference pairs as columns, which every check reads. NumPy only.

    pairs = Pairs.collect(scored_pairs)
    pairs.margins        # (n,) reward of chosen - reward of rejected
    pairs.text(i)        # the texts of one pair

`collect` keeps the numbers in memory and writes the texts to a temporary file, so that memory does
not grow with the texts.
"""

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypedDict

import numpy as np

from auditing.style import hedges, markdown
from reward.data.formats import PreferencePair
from reward.data.transcripts import Side, text_of

NO_PROMPT = 0  # in `Pairs.texts`, the hash of a prompt that is empty
LARGEST_REWARD = 1e100  # a larger reward counts as not finite, because its square overflows
NOT_FINITE = "not a finite number"  # what score.py's `reward_error` says of such a reward
LONGEST_TEXT = 20_000  # characters of a side that are kept for the report and searched for marks


class ScoredPair(PreferencePair, total=False):
    """A canonical pair with a model's rewards."""

    reward_chosen: float | None  # None if there is none, such as for a text that is too long
    reward_rejected: float | None
    reward_error: str | None  # why a reward is None
    chosen_tokens: int  # tokens of the chosen completion
    rejected_tokens: int


class PairTexts(TypedDict):
    """The texts of one pair, each cut after LONGEST_TEXT characters."""

    prompt: Side
    chosen: Side
    rejected: Side


class _PairNumbers(NamedTuple):
    """The numbers of one pair, each a column of the table; NaN for a number that is unknown."""

    reward_chosen: float
    reward_rejected: float
    length_chosen: float
    length_rejected: float
    characters_chosen: int
    characters_rejected: int
    markdown_chosen: int
    markdown_rejected: int
    hedges_chosen: int
    hedges_rejected: int
    votes_chosen: float
    votes_rejected: float
    bayes_accuracy: float


@dataclass(frozen=True)
class Pairs:
    """n pairs as arrays, (n,) each; those that have a row per side are (2, n)."""

    # (2, n) of chosen, rejected; NaN where there is none, infinity where it is no finite number
    rewards: np.ndarray
    lengths: np.ndarray  # (2, n) in `length_unit`
    characters: np.ndarray  # (2, n)
    markdown: np.ndarray  # (2, n) list items, headings, bold phrases, code fences
    hedges: np.ndarray  # (2, n)
    subset: np.ndarray  # (n,) of str
    prompt: np.ndarray  # (n,) the number of the prompt, the same for all pairs of one prompt
    votes: np.ndarray  # (n, 2) for chosen, for rejected; NaN where unknown
    bayes_accuracy: np.ndarray  # (n,) simulated raters only; NaN where unknown
    text: Callable[[int], PairTexts] = field(repr=False)  # index of a pair -> its texts
    length_unit: str = "tokens"
    # (3, n) hashes of prompt, chosen, rejected that are the same within this process alone; see
    # _hashes_of. None where pairs are not compared with those of another file.
    texts: np.ndarray | None = None
    # False where "chosen" is right by construction (benchmarks, simulated raters).
    human_labels: bool = True

    @property
    def margins(self) -> np.ndarray:
        """(n,) reward of chosen - reward of rejected."""
        return self.rewards[0] - self.rewards[1]

    @property
    def length_differences(self) -> np.ndarray:
        """(n,) length of chosen - length of rejected."""
        return self.lengths[0] - self.lengths[1]

    @property
    def voted(self) -> np.ndarray:
        """(n,) bool: the pairs with an odd number of votes, on which raters are judged.

        An even number is not used because a test split leaves out ties, which have no right side.
        The pairs with two votes that are left are those whose raters agree, so that raters would
        seem never to err.
        """
        return self.votes.sum(axis=1) % 2 == 1  # False for NaN

    def __len__(self) -> int:
        return len(self.subset)

    def take(self, index: np.ndarray) -> "Pairs":
        """The pairs that a mask or an array of indices selects."""
        index = np.asarray(index)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        index = index.astype(int)
        text_of_pair = self.text
        texts = self.texts
        if texts is not None:
            texts = texts[:, index]
        return replace(
            self,
            rewards=self.rewards[:, index],
            lengths=self.lengths[:, index],
            characters=self.characters[:, index],
            markdown=self.markdown[:, index],
            hedges=self.hedges[:, index],
            subset=self.subset[index],
            prompt=self.prompt[index],
            votes=self.votes[index],
            bayes_accuracy=self.bayes_accuracy[index],
            texts=texts,
            text=lambda i: text_of_pair(int(index[i])),
        )

    def finite(self) -> "Pairs":
        """The pairs whose two rewards are finite.

        "non-finite rewards" and "missing rewards" count the others.
        """
        return self.take(np.isfinite(self.rewards).all(axis=0))

    @classmethod
    def collect(
        cls, pairs: Iterable[ScoredPair], length_unit: str = "tokens", human_labels: bool = True
    ) -> "Pairs":
        """Turn scored pairs, which are read one after another, into columns.

        Args:
            pairs: Pairs with `prompt, chosen, rejected, reward_chosen, reward_rejected`, and if
                known `subset`, `chosen_tokens`, `rejected_tokens`, `votes`, `bayes_accuracy`.
            length_unit: The unit of the lengths in words: "tokens", or "characters" if pairs have
                no token counts.
            human_labels: Whether humans decided which side is chosen. If all pairs have a
                `bayes_accuracy`, their raters are simulated, and this is taken as False.
        """
        spool = _Spool()
        numbers: list[_PairNumbers] = []
        subsets: list[str] = []
        prompts: list[int] = []
        subset_names: dict[str, str] = {}  # one string object per name saves memory
        prompt_numbers: dict[int, int] = {}  # hash of the prompt's text -> its number
        hashes: list[tuple[int, int, int]] = []
        for pair in pairs:
            numbers.append(_numbers_of(pair))
            subset = pair.get("subset") or "all"
            subsets.append(subset_names.setdefault(subset, subset))
            key = hash(text_of(pair["prompt"]))
            prompts.append(prompt_numbers.setdefault(key, len(prompt_numbers)))
            hashes.append(_hashes_of(pair))
            spool.add(pair)

        # (columns, n). The order of the numbers in memory decides how NumPy rounds a sum over both
        # sides, so the columns of a pair stay next to each other.
        table = np.array(numbers, dtype=float).reshape(-1, len(_PairNumbers._fields)).T
        bayes_accuracy = table[_PairNumbers._fields.index("bayes_accuracy")]
        simulated = len(numbers) > 0 and np.isfinite(bayes_accuracy).all()
        return cls(
            rewards=_couple(table, "reward"),
            lengths=_couple(table, "length"),
            characters=_couple(table, "characters"),
            markdown=_couple(table, "markdown"),
            hedges=_couple(table, "hedges"),
            votes=_couple(table, "votes").T,
            bayes_accuracy=bayes_accuracy,
            texts=np.array(hashes, dtype=np.int64).reshape(-1, 3).T,
            subset=np.array(subsets, dtype=object),
            prompt=np.array(prompts, dtype=int),
            text=spool.read,
            length_unit=length_unit,
            human_labels=human_labels and not simulated,
        )


def with_own_prompts(pairs: Pairs, index: np.ndarray, rows: np.ndarray) -> Pairs:
    """The same pairs, but those at `index` share a prompt only with pairs of the same row."""
    prompt = pairs.prompt.copy()
    _, number_of_row = np.unique(rows, return_inverse=True)
    prompt[index] = prompt.max() + 1 + number_of_row
    return replace(pairs, prompt=prompt)


def _couple(table: np.ndarray, name: str) -> np.ndarray:
    """The two rows of the table, chosen and rejected, that hold one number: (2, n)."""
    row_of_chosen = _PairNumbers._fields.index(f"{name}_chosen")
    return table[row_of_chosen : row_of_chosen + 2]


def _numbers_of(pair: ScoredPair) -> _PairNumbers:
    chosen, rejected = text_of(pair["chosen"]), text_of(pair["rejected"])
    start_of_chosen, start_of_rejected = chosen[:LONGEST_TEXT], rejected[:LONGEST_TEXT]
    votes_chosen, votes_rejected = pair.get("votes") or (np.nan, np.nan)
    return _PairNumbers(
        reward_chosen=_reward(pair["reward_chosen"], pair),
        reward_rejected=_reward(pair["reward_rejected"], pair),
        length_chosen=pair.get("chosen_tokens", len(chosen)),
        length_rejected=pair.get("rejected_tokens", len(rejected)),
        characters_chosen=len(chosen),
        characters_rejected=len(rejected),
        markdown_chosen=markdown(start_of_chosen),
        markdown_rejected=markdown(start_of_rejected),
        hedges_chosen=hedges(start_of_chosen),
        hedges_rejected=hedges(start_of_rejected),
        votes_chosen=votes_chosen,
        votes_rejected=votes_rejected,
        bayes_accuracy=nan_for_none(pair.get("bayes_accuracy")),
    )


def _hashes_of(pair: ScoredPair) -> tuple[int, int, int]:
    """Hashes of the first LONGEST_TEXT characters of a pair's texts; 0 for an unknown prompt.

    White space does not count, because files of scores join a prompt and its answer in other ways.
    """
    texts = [text_of(pair[name])[:LONGEST_TEXT] for name in ("prompt", "chosen", "rejected")]
    prompt, chosen, rejected = (hash(" ".join(text.split())) for text in texts)
    if not texts[0].strip():
        prompt = NO_PROMPT
    return prompt, chosen, rejected


def _reward(reward: float | None, pair: ScoredPair) -> float:
    """The reward; NaN if the model gave none, infinity if what it gave is no finite number."""
    if reward is None:
        if NOT_FINITE in (pair.get("reward_error") or ""):
            return float("inf")
        return float("nan")
    if abs(reward) < LARGEST_REWARD:  # False for NaN.
        return float(reward)
    return float("inf")


def nan_for_none(value: float | None) -> float:
    """The number, or NaN for None."""
    if value is None:
        return float("nan")
    return float(value)


class _Spool:
    """A temporary file with the texts of pairs, which are read by index."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()
        self._starts = [0]  # the byte where each pair starts, and where the next one will start

    def add(self, pair: ScoredPair) -> None:
        texts = {name: cut_side(pair[name]) for name in ("prompt", "chosen", "rejected")}
        self._file.write(json.dumps(texts).encode())
        self._starts.append(self._file.tell())

    def read(self, i: int) -> PairTexts:
        start, end = self._starts[i], self._starts[i + 1]
        self._file.seek(start)
        texts = json.loads(self._file.read(end - start))
        self._file.seek(0, 2)  # The next pair is added at the end.
        return texts


def cut_side(side: Side) -> Side:
    """A message list or a string whose texts are cut after LONGEST_TEXT characters.

    A text that is cut ends by saying how many characters were left out.
    """
    if isinstance(side, str):
        return _cut_text(side)
    return [message | {"content": _cut_text(message.get("content") or "")} for message in side]


def _cut_text(text: str) -> str:
    left_out = len(text) - LONGEST_TEXT
    if left_out <= 0:
        return text
    return f"{text[:LONGEST_TEXT]}\u2026 ({left_out:,} more characters)"
