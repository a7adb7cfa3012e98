"""Were test pairs in the training data? Exact, normalised and near-duplicate overlap, and the accuracy without. No torch.

    leaks = find_leaks(texts_of(test), texts_of(train))      # (prompt, chosen, rejected) texts; streams the train side
    checks = leak_checks(pairs, leaks)                       # auditing.pairs.Pairs, in the order of the test texts

The index is made of the test rows and the train rows are streamed through it, so memory is bounded by the test side.
"""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from datasketch import MinHash, MinHashLSH

from auditing import stats
from auditing.checks.accuracy import accuracy
from auditing.pairs import Pairs
from auditing.stats import Estimate
from auditing.verdicts import Check, Finding, count, judge, short
from reward.data.transcripts import text_of

KINDS = {  # the strongest first; what the report says of one
    "exact": "the same pair, the sides in either order",
    "normalised": "the same pair but for case, spaces, punctuation and Unicode form",
    "near duplicate": "nearly the same words",
    "exact prompt": "the same prompt with other answers",
}


EXACT, NORMALISED, NEAR, PROMPT = range(len(KINDS))


SHINGLE, SHORT_SHINGLE = 5, 3  # words


SHORT = 60  # words of a pair below which a changed word would break too many of the long shingles


# Chinese and Japanese do not put spaces between words: there a character counts as one.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"


WORD = re.compile(f"[{CJK}]|[^\\W{CJK}]+")


# A run of words that so many test rows share is a template (a system prompt, an instruction), not content: it does not count.
TEMPLATE_SHARE, TEMPLATE_ROWS = 0.1, 10


CHUNK = (
    1 << 14
)  # shingles hashed at a time: datasketch makes a row of `permutations` numbers of each


MULTIPLIER = np.uint64(
    0x9E3779B97F4A7C15
)  # odd, of the golden ratio (Knuth): the order of words matters


@dataclass(frozen=True)
class Leaks:
    """What of n test rows was also found among `train_rows` train rows."""

    kind: np.ndarray  # (n,) index into KINDS of the strongest overlap, -1 where there is none
    train_rows: int
    threshold: float  # Jaccard similarity from which two pairs are near duplicates

    @property
    def mask(self) -> np.ndarray:
        """(n,) bool: the rows that overlap."""
        return self.kind >= 0

    @property
    def counts(self) -> dict[str, int]:
        return {name: int(np.sum(self.kind == k)) for k, name in enumerate(KINDS)}


def texts_of(table) -> Iterable[tuple[str, str, str]]:
    """(prompt, chosen, rejected) texts of a table of reward.data.splits, one row after another."""
    from reward.data.tokens import decode_sides  # not needed by who has texts, and slow to import

    for row in table.select_columns(["prompt", "chosen", "rejected", "tools"]):
        prompt, chosen, rejected, _ = decode_sides(row)
        yield text_of(prompt), text_of(chosen), text_of(rejected)


def find_leaks(
    test_texts: Iterable[tuple[str, str, str]], train_texts: Iterable[tuple[str, str, str]],
    threshold: float = 0.8, permutations: int = 128, seed: int = 1,
) -> Leaks:  # fmt: skip
    """The strongest overlap of every test row with any train row; both sides are read once.

    Near duplicates: shingles of 5 words (3 where a pair has under 60) of prompt and completions, folded, without those that
    more than a tenth of the test rows share; candidates by MinHash (Broder 1997) and locality-sensitive hashing (Indyk and
    Motwani 1998; datasketch), each verified with the exact Jaccard similarity |A and B| / |A or B| >= threshold. So none is
    called one falsely, and of those just above the threshold the hashing misses a few.
    """
    index = {kind: defaultdict(list) for kind in (EXACT, NORMALISED, PROMPT)}
    blank = MinHash(permutations, seed=seed, hashfunc=int)
    # Recall over precision: a false candidate costs one exact comparison.
    tables = {
        size: MinHashLSH(threshold, permutations, weights=(0.05, 0.95))
        for size in (SHINGLE, SHORT_SHINGLE)
    }
    shingles, sizes = [], []
    for i, row in enumerate(test_texts):
        words = [word_ids(text) for text in row]
        for kind, key in keys_of(row, words):
            index[kind][key].append(i)
        sizes.append(SHORT_SHINGLE if sum(map(len, words)) < SHORT else SHINGLE)
        shingles.append(shingles_of(words, sizes[i]))
    template = shared_by_many(shingles)
    for i, size in enumerate(sizes):
        shingles[i] = np.setdiff1d(shingles[i], template, assume_unique=True)
        if len(shingles[i]):
            tables[size].insert(i, sketch(blank, shingles[i]), check_duplication=False)

    found, train_rows = np.full(len(shingles), len(KINDS)), 0
    for row in train_texts:
        train_rows += 1
        words = [word_ids(text) for text in row]
        for kind, key in keys_of(row, words):
            for i in index[kind].get(key, ()):
                found[i] = min(found[i], kind)
        length = sum(map(len, words))
        # Pairs that differ more in length cannot be that similar; around SHORT, a row is compared in both sizes.
        compared = [SHORT_SHINGLE] * (length * threshold < SHORT) + [SHINGLE] * (
            length >= SHORT * threshold
        )
        for size in compared:
            ours = np.setdiff1d(shingles_of(words, size), template, assume_unique=True)
            if len(ours):
                for i in tables[size].query(sketch(blank, ours)):
                    if found[i] > NEAR and jaccard(shingles[i], ours) >= threshold:
                        found[i] = NEAR
    return Leaks(np.where(found == len(KINDS), -1, found), train_rows, threshold)


def keys_of(row: tuple[str, str, str], words: list[np.ndarray]):
    """(kind, key) of one row; equal keys are an overlap of that kind."""
    prompt, *sides = row
    yield EXACT, digest(prompt, *sorted(sides))
    if all(
        map(len, words[1:])
    ):  # nothing is left of a completion of punctuation: it equals nothing
        yield NORMALISED, digest(*(w.tobytes() for w in (words[0], *sorted(words[1:], key=bytes))))
    if prompt.strip():
        yield PROMPT, digest(prompt)


def digest(*parts: str | bytes) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        part = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        found.update(len(part).to_bytes(8, "big") + part)
    return found.digest()


def word_ids(text: str) -> np.ndarray:
    """(words,) uint64, equal for equal words once case and Unicode form (NFKC) are folded; punctuation is no word."""
    words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return np.fromiter(map(word_id, words), np.uint64, len(words))


@lru_cache(1 << 17)
def word_id(word: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def shingles_of(texts: list[np.ndarray], size: int) -> np.ndarray:
    """(shingles,) sorted uint64: the different runs of `size` words of each text (a shorter text is one shingle)."""
    runs = []
    for words in texts:
        length = min(size, len(words))
        run = np.zeros(len(words) - length + 1 if length else 0, np.uint64)
        for k in range(length):  # sum of word * multiplier^(k + 1), modulo 2^64
            run = (run + words[k : k + len(run)]) * MULTIPLIER
        runs.append(run)
    return np.unique(np.concatenate(runs))


def shared_by_many(shingles: list[np.ndarray]) -> np.ndarray:
    """Sorted: the shingles of more than a tenth of the rows, and of more than 10."""
    if not shingles:
        return np.zeros(0, np.uint64)
    values, counts = np.unique(np.concatenate(shingles), return_counts=True)
    return values[counts > max(TEMPLATE_ROWS, TEMPLATE_SHARE * len(shingles))]


def sketch(blank: MinHash, shingles: np.ndarray) -> MinHash:
    found = blank.copy()
    for start in range(0, len(shingles), CHUNK):
        found.update_batch((shingles[start : start + CHUNK] >> np.uint64(32)).tolist())
    return found


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A and B| / |A or B| of two sets, each sorted and without repeats. Jaccard (1912)."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def leak_checks(pairs: Pairs, leaks: Leaks) -> list[Check]:
    """The share of leaked pairs, and where there are any the accuracy on the others. Row i of `leaks` is pair i of `pairs`."""
    n, leaked, section = len(pairs), int(leaks.mask.sum()), "leakage"
    if len(leaks.kind) != n:
        raise ValueError(
            f"leaks of {len(leaks.kind):,} rows for {n:,} pairs: find them with the texts of these pairs"
        )
    if not n or not leaks.train_rows:
        return [
            judge(
                Finding(
                    "leaked pairs",
                    None,
                    n,
                    section,
                    unmeasured="no test pairs, or no training pairs",
                )
            )
        ]
    share = Estimate(leaked / n, *stats.wilson_interval(leaked, n))
    found = [f"{k:,} {name} ({KINDS[name]})" for name, k in leaks.counts.items() if k]
    note = (
        "; ".join(found)
        or f"none is there exactly, normalised, or with a similarity of {short(leaks.threshold)}"
    )
    note = f"looked for among {count(leaks.train_rows, 'train pair')}: {note}"
    detectable = stats.detectable_share(n)
    checks = [judge(Finding("leaked pairs", share, n, section, note=note, detectable=detectable))]
    if leaked:
        finite = np.isfinite(pairs.rewards).all(axis=0)
        clean, seen = (pairs.take(finite & part) for part in (~leaks.mask, leaks.mask))
        everything, of_seen = (accuracy(p.margins, p.prompt) for p in (pairs.finite(), seen))
        note = "".join(
            f"; {short(estimate.value)} on {where}"
            for estimate, where in (
                (everything, "all pairs"),
                (of_seen, f"{count(len(seen), 'leaked pair')}"),
            )
            if estimate is not None
        )
        checks.append(
            judge(
                Finding(
                    "accuracy, clean pairs",
                    accuracy(clean.margins, clean.prompt),
                    len(clean),
                    section,
                    note=note.removeprefix("; "),
                    unmeasured="every pair with two finite rewards has leaked",
                    detectable=stats.detectable_accuracy(len(clean), 0.5) if len(clean) else None,
                )
            )
        )
    return checks
