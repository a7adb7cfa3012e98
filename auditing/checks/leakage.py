"""Leakage: were test pairs in the training data, and what is the accuracy without them? No torch.

    leaks = find_leaks(texts_of(test), texts_of(train))  # streams the train side
    checks = leak_checks(pairs, leaks)  # pairs in the order of the test texts

An overlap is exact, normalised, a near duplicate, or of the prompt alone. The index holds the test
rows, and the train rows are streamed through it, so that memory grows with the test rows alone.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from datasketch import MinHash, MinHashLSH

from auditing import stats
from auditing.checks.accuracy import accuracy
from auditing.pairs import Pairs
from auditing.verdicts import Check, Finding, joined, judge, short
from reward.data.shown import count
from reward.data.transcripts import text_of

if TYPE_CHECKING:  # only for the annotations: the import takes a second
    from datasets import Dataset

SECTION = "leakage"

KINDS = {  # What the report says of each kind of overlap, the strongest kind first.
    "exact": "the same pair, the sides in either order",
    "normalised": "the same pair but for case, spaces, punctuation and Unicode form",
    "near duplicate": "nearly the same words",
    "exact prompt": "the same prompt with other answers",
}
EXACT, NORMALISED, NEAR, PROMPT = range(len(KINDS))
NO_OVERLAP = len(KINDS)

SHINGLE = 5  # words
SHORT_SHINGLE = 3  # words, for short pairs
SHORT = 60  # a pair of fewer words is short: one changed word breaks too many of its long shingles

# Chinese and Japanese do not put spaces between words: each of their characters counts as a word.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(f"[{CJK}]|[^\\W{CJK}]+")

# A run of words is a template (a system prompt, an instruction) if more than this share of the test
# rows, and more than this number of them, have it. It then does not count as content.
TEMPLATE_SHARE = 0.1
TEMPLATE_ROWS = 10

# How many shingles are hashed at a time: datasketch makes `permutations` numbers of each.
CHUNK = 1 << 14

# An odd number made of the golden ratio (Knuth). It makes the order of words count.
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Texts = tuple[str, str, str]  # of prompt, chosen and rejected


@dataclass(frozen=True)
class Leaks:
    """Which of n test rows are also among the train rows."""

    kind: np.ndarray  # (n,) index into KINDS of the strongest overlap, -1 if there is none
    train_rows: int  # how many train rows were compared
    threshold: float  # Jaccard similarity from which two pairs are near duplicates

    @property
    def mask(self) -> np.ndarray:
        """(n,) bool: the rows that overlap."""
        return self.kind >= 0

    @property
    def counts(self) -> dict[str, int]:
        """How many rows overlap, by the name of the kind."""
        return {name: int(np.sum(self.kind == k)) for k, name in enumerate(KINDS)}


def texts_of(table: Dataset) -> Iterator[Texts]:
    """The texts of a table of preferences (reward.data.splits), one row after another."""
    # This import is slow, and a caller that already has the texts does not need it.
    from reward.data.tokens import decode_sides, rows_of

    for row in rows_of(table, ("prompt", "chosen", "rejected")):
        sides = decode_sides(row)
        yield text_of(sides.prompt), text_of(sides.chosen), text_of(sides.rejected)


# --- Test rows against train rows -----------------------------------------------------------------


def find_leaks(
    test_texts: Iterable[Texts],
    train_texts: Iterable[Texts],
    threshold: float = 0.8,
    permutations: int = 128,
    seed: int = 1,
) -> Leaks:
    """Find the strongest overlap of every test row with any train row; all rows are read once.

    Near duplicates are found by the shingles of prompt and completions. A shingle is a run of 5
    folded words, or of 3 if the pair has fewer than 60 words. Shingles that more than a tenth of
    the test rows share do not count. MinHash (Broder 1997) and locality-sensitive hashing (Indyk
    and Motwani 1998; datasketch) propose candidates, and each candidate is verified with the exact
    Jaccard similarity |A and B| / |A or B| >= threshold. Therefore no pair is falsely called a near
    duplicate, but the hashing misses a few that are just above the threshold.

    Args:
        test_texts: The audited pairs.
        train_texts: What the model was trained on.
        threshold: The similarity from which two pairs are near duplicates.
        permutations: How many numbers a MinHash has. More of them miss fewer near duplicates, and
            take longer.
        seed: It decides the permutations of MinHash.
    """
    index = LeakIndex(threshold, permutations, seed)
    for texts in test_texts:
        index.add(texts)
    index.finish()
    for texts in train_texts:
        index.compare(texts)
    strongest = np.array(index.strongest, dtype=int)
    kind = np.where(strongest == NO_OVERLAP, -1, strongest)
    return Leaks(kind, index.train_rows, threshold)


class LeakIndex:
    """The test rows, each with the strongest overlap that was seen so far.

    First all test rows are added; then `finish` is called once; then train rows are compared.

    Args:
        threshold: The similarity from which two pairs are near duplicates.
        permutations: How many numbers a MinHash has.
        seed: It decides the permutations of MinHash.
    """

    def __init__(self, threshold: float, permutations: int, seed: int) -> None:
        self.threshold = threshold
        self.strongest: list[int] = []  # of each test row: EXACT .. PROMPT, or NO_OVERLAP
        self.train_rows = 0
        # kind -> key -> the indices of the test rows with that key.
        self._rows = {kind: defaultdict(list) for kind in (EXACT, NORMALISED, PROMPT)}
        self._blank = MinHash(permutations, seed=seed, hashfunc=int)
        self._tables = {}  # size of the shingles -> the hash table of the test rows
        for size in (SHINGLE, SHORT_SHINGLE):
            # Recall matters more than precision: a false candidate costs one exact comparison.
            self._tables[size] = MinHashLSH(threshold, permutations, weights=(0.05, 0.95))
        self._shingles: list[np.ndarray] = []  # of each test row
        self._sizes: list[int] = []  # of the shingles of each test row
        self._template = np.zeros(0, np.uint64)  # the shingles that do not count
        self._seen = np.zeros(0, np.uint64)  # all that count, of all test rows, sorted

    def add(self, texts: Texts) -> None:
        """Add a test row."""
        words = [word_ids(text) for text in texts]
        for kind, key in keys_of(texts, words):
            self._rows[kind][key].append(len(self.strongest))
        size = SHINGLE
        if sum(map(len, words)) < SHORT:
            size = SHORT_SHINGLE
        self._sizes.append(size)
        self._shingles.append(shingles_of(words, size))
        self.strongest.append(NO_OVERLAP)

    def finish(self) -> None:
        """Take the template out of the shingles, and hash the others."""
        self._template = shared_by_many(self._shingles)
        for i, size in enumerate(self._sizes):
            shingles = self._without_template(self._shingles[i])
            self._shingles[i] = shingles
            if len(shingles):
                self._tables[size].insert(i, self._sketch(shingles), check_duplication=False)
        if self._shingles:
            self._seen = np.unique(np.concatenate(self._shingles))

    def compare(self, texts: Texts) -> None:
        """Look for a train row among the test rows."""
        self.train_rows += 1
        words = [word_ids(text) for text in texts]
        for kind, key in keys_of(texts, words):
            for i in self._rows[kind].get(key, ()):
                self.strongest[i] = min(self.strongest[i], kind)
        for size in self._sizes_to_compare(sum(map(len, words))):
            shingles = self._without_template(shingles_of(words, size))
            if len(shingles):
                self._compare_shingles(shingles, size)

    def _sizes_to_compare(self, length: int) -> list[int]:
        """The sizes of the shingles that a similar test row may have.

        Two pairs above the threshold cannot differ in length by more than it allows. A row of about
        SHORT words is compared in both sizes.

        Args:
            length: The length of the train row, in words.
        """
        sizes = []
        if length * self.threshold < SHORT:
            sizes.append(SHORT_SHINGLE)
        if length >= SHORT * self.threshold:
            sizes.append(SHINGLE)
        return sizes

    def _compare_shingles(self, shingles: np.ndarray, size: int) -> None:
        """Look for near duplicates of a train row.

        A row that shares too few shingles with all test rows together has none, and is not hashed.

        Args:
            shingles: The shingles of the row, without the template.
            size: The size of the shingles in words.
        """
        if share_among(shingles, self._seen) < self.threshold:
            return
        for i in self._tables[size].query(self._sketch(shingles)):
            if self.strongest[i] <= NEAR:
                continue
            if jaccard(self._shingles[i], shingles) >= self.threshold:
                self.strongest[i] = NEAR

    def _without_template(self, shingles: np.ndarray) -> np.ndarray:
        """The shingles that count."""
        return np.setdiff1d(shingles, self._template, assume_unique=True)

    def _sketch(self, shingles: np.ndarray) -> MinHash:
        """The MinHash of a set of shingles."""
        sketch = self._blank.copy()
        for start in range(0, len(shingles), CHUNK):
            upper_halves = shingles[start : start + CHUNK] >> np.uint64(32)
            sketch.update_batch(upper_halves.tolist())
        return sketch


def keys_of(texts: Texts, words: list[np.ndarray]) -> Iterator[tuple[int, bytes]]:
    """The (kind, key) of one row; rows with an equal key overlap in that kind.

    Args:
        texts: The row.
        words: The word_ids of each of its texts.
    """
    prompt, chosen, rejected = texts
    yield EXACT, hash_of_parts(prompt, *sorted([chosen, rejected]))
    prompt_words, chosen_words, rejected_words = [ids.tobytes() for ids in words]
    # A completion of punctuation alone has no words left, so it is not compared.
    if chosen_words and rejected_words:
        sides = sorted([chosen_words, rejected_words])
        yield NORMALISED, hash_of_parts(prompt_words, *sides)
    if prompt.strip():
        yield PROMPT, hash_of_parts(prompt)


def hash_of_parts(*parts: str | bytes) -> bytes:
    """A hash of the parts, which tells ("ab", "c") from ("a", "bc")."""
    combined = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, str):
            part = part.encode("utf-8", "surrogatepass")
        combined.update(len(part).to_bytes(8, "big"))
        combined.update(part)
    return combined.digest()


# --- Words and shingles ---------------------------------------------------------------------------


def word_ids(text: str) -> np.ndarray:
    """The words of a text as (words,) uint64; equal words have equal numbers.

    Case and Unicode form (NFKC) are folded, and punctuation is left out.
    """
    words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return np.fromiter(map(word_id, words), np.uint64, len(words))


@lru_cache(1 << 17)
def word_id(word: str) -> int:
    """A hash of 64 bits, the same in every process."""
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def shingles_of(texts: list[np.ndarray], size: int) -> np.ndarray:
    """The different runs of `size` words of each text; a shorter text is one shingle.

    Args:
        texts: The word_ids of each text.
        size: How many words a shingle has.

    Returns:
        (shingles,) sorted uint64.
    """
    return np.unique(np.concatenate([runs_of_words(words, size) for words in texts]))


def runs_of_words(words: np.ndarray, size: int) -> np.ndarray:
    """The hash of each run of words, as (runs,) uint64.

    It is the sum over k of word_k * multiplier^(size - k), modulo 2^64.
    """
    if not len(words):
        return np.zeros(0, np.uint64)
    size = min(size, len(words))
    runs = np.zeros(len(words) - size + 1, np.uint64)
    for k in range(size):
        runs = (runs + words[k : k + len(runs)]) * MULTIPLIER
    return runs


def shared_by_many(shingles: list[np.ndarray]) -> np.ndarray:
    """The shingles, sorted, that more than a tenth of the rows and more than 10 rows have."""
    if not shingles:
        return np.zeros(0, np.uint64)
    values, rows = np.unique(np.concatenate(shingles), return_counts=True)
    return values[rows > max(TEMPLATE_ROWS, TEMPLATE_SHARE * len(shingles))]


def share_among(values: np.ndarray, among: np.ndarray) -> float:
    """Which share of the values is there among others, which are sorted."""
    place = np.searchsorted(among, values)
    there = place < len(among)
    there[there] = among[place[there]] == values[there]
    return there.mean()


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A and B| / |A or B| of two sets, each sorted and without repeats. Jaccard (1912)."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


# --- Checks ---------------------------------------------------------------------------------------


def leak_checks(pairs: Pairs, leaks: Leaks) -> list[Check]:
    """Check for leaked pairs, and if there are any, the accuracy on the other pairs.

    Args:
        pairs: The audited pairs.
        leaks: What `find_leaks` found for the texts of these pairs, in the same order.

    Raises:
        ValueError: The leaks were found for another number of pairs.
    """
    if len(leaks.kind) != len(pairs):
        raise ValueError(
            f"leaks of {len(leaks.kind):,} rows for {len(pairs):,} pairs: "
            "find them with the texts of these pairs"
        )
    checks = [leaked_pairs_check(leaks)]
    if leaks.train_rows and leaks.mask.any():
        checks.append(clean_accuracy_check(pairs, leaks))
    return checks


def leaked_pairs_check(leaks: Leaks) -> Check:
    """Check that no audited pair is among the train pairs."""
    n = len(leaks.kind)
    if not n or not leaks.train_rows:
        why = "no test pairs, or no training pairs"
        return judge(Finding("leaked pairs", None, n, SECTION, unmeasured=why))
    overlaps = []
    for name, rows in leaks.counts.items():
        if rows:
            overlaps.append(f"{rows:,} {name} ({KINDS[name]})")
    if not overlaps:
        similar = f"a similarity of {short(leaks.threshold)}"
        overlaps = [f"none is there exactly, normalised, or with {similar}"]
    finding = Finding(
        "leaked pairs",
        stats.wilson_estimate(int(leaks.mask.sum()), n),
        n,
        SECTION,
        note=f"looked for among {count(leaks.train_rows, 'train pair')}: {joined(*overlaps)}",
        detectable=stats.detectable_share(n),
    )
    return judge(finding)


def clean_accuracy_check(pairs: Pairs, leaks: Leaks) -> Check:
    """Check the accuracy on the pairs that have not leaked."""
    finite = np.isfinite(pairs.rewards).all(axis=0)
    clean = pairs.take(finite & ~leaks.mask)
    leaked = pairs.take(finite & leaks.mask)
    notes = []
    for part, name in (
        (pairs.finite(), "all pairs"),
        (leaked, count(len(leaked), "leaked pair")),
    ):
        estimate = accuracy(part.margins, part.prompt)
        if estimate is not None:
            notes.append(f"{short(estimate.value)} on {name}")
    finding = Finding(
        "accuracy, clean pairs",
        accuracy(clean.margins, clean.prompt),
        len(clean),
        SECTION,
        note=joined(*notes),
        unmeasured="every pair with two finite rewards has leaked",
    )
    if len(clean):
        finding = replace(finding, detectable=stats.detectable_accuracy(len(clean), 0.5))
    return judge(finding)
