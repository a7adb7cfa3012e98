"""Labels: how far can they be trusted, and which pairs should be read first? NumPy only.

    checks = label_checks(pairs)
    worst = worst_errors(pairs)
    top, bottom = top_and_bottom(pairs)

Nothing is relabelled. A confident error may be the raters' or the model's, and only a reader can
tell which.
"""

import hashlib
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from auditing import stats
from auditing.checks.raters import label_accuracy, noise_from_votes, pair_agreement
from auditing.pairs import Pairs, PairTexts
from auditing.result import ExtremeCompletion, WorstError
from auditing.style import style_marks
from auditing.verdicts import Check, Finding, judge, short, with_verdict
from reward.data.shown import count
from reward.data.transcripts import text_of

SECTION = "labels"
EXTREME_LENGTH = 0.95  # a completion is marked if this share of all is shorter, or longer


def label_checks(pairs: Pairs) -> list[Check]:
    """Check the labels. Duplicates count also among the pairs without finite rewards."""
    finite = pairs.finite()
    return [*vote_checks(finite), *duplicate_checks(pairs), confident_error_check(finite)]


# --- Votes ----------------------------------------------------------------------------------------


def vote_checks(pairs: Pairs) -> list[Check]:
    """Check one rater's error rate, which follows from how often two raters of a pair agree.

    A second check says what accuracy a perfect model has on the labels of such raters.
    """
    votes = pairs.votes[pairs.voted]
    votes = votes[votes.sum(axis=1) >= 2]  # (n, 2)
    n = len(votes)
    noise = noise_from_votes(votes)
    if noise is None:
        note = "no pair carries three votes, or more of an odd number"
        finding = Finding("label noise", None, 0, SECTION, note=note)
        return [with_verdict(finding, "not applicable", "")]
    note = (
        "how often one rater errs, if equally often on every pair; "
        "if more often on hard ones, the mean is higher than this"
    )
    noise_check = judge(Finding("label noise", noise, n, SECTION, note=note))

    ceiling = label_accuracy(votes.sum(axis=1), noise.value)
    note = (
        f"a perfect model scores {short(ceiling)} on the majority of such raters, "
        "and less if they err most on hard pairs"
    )
    agreement = stats.share_interval(pair_agreement(votes))
    finding = Finding("rater agreement", agreement, n, SECTION, note=note)
    return [noise_check, with_verdict(finding, "not applicable", "no threshold: information")]


# --- Duplicates -----------------------------------------------------------------------------------


class DuplicateCounts(NamedTuple):
    """The number of duplicate pairs of both kinds."""

    contradictory: int  # pairs that another one contradicts
    repeated: int  # pairs that repeat an earlier one with its label


def duplicate_checks(pairs: Pairs) -> list[Check]:
    """Check for pairs with the same prompt and completions.

    Some carry both labels, others repeat the same label.
    """
    duplicates = count_duplicates(pairs)
    return [
        duplicate_check(
            "contradictory duplicates",
            duplicates.contradictory,
            len(pairs),
            "same prompt and completions, labelled both ways",
        ),
        duplicate_check(
            "duplicate pairs",
            duplicates.repeated,
            len(pairs),
            "same prompt, completions and label as an earlier pair",
        ),
    ]


def duplicate_check(name: str, duplicates: int, n: int, what: str) -> Check:
    """Check the share of one kind of duplicates.

    Args:
        name: The name of the check.
        duplicates: How many pairs are such duplicates.
        n: How many pairs there are.
        what: What makes them duplicates, in words.
    """
    if not n:
        return judge(Finding(name, None, 0, SECTION))
    duplicate_rate = stats.wilson_estimate(duplicates, n)
    note = f"{count(duplicates, 'pair')} of {n:,}: {what}"
    detectable = stats.detectable_share(n)
    return judge(Finding(name, duplicate_rate, n, SECTION, note=note, detectable=detectable))


def count_duplicates(pairs: Pairs) -> DuplicateCounts:
    """Count the pairs that occur more than once.

    Only pairs with the same prompt and the same two lengths can be equal, so only their texts are
    read back.
    """
    lengths = np.sort(pairs.characters, axis=0).T  # (n, 2): the shorter side first
    shapes = np.column_stack([pairs.prompt, lengths])  # (n, 3)
    _, group, sizes = np.unique(shapes, axis=0, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero(sizes[group.ravel()] > 1)

    # The key is the hash of the prompt and both sides in alphabetical order. The value is how often
    # the first side was chosen, and how often the second.
    labels: dict[bytes, list[int]] = {}
    for i in candidates.tolist():
        texts = pairs.text(i)
        chosen, rejected = text_of(texts["chosen"]), text_of(texts["rejected"])
        times_chosen = labels.setdefault(unordered_hash(texts), [0, 0])
        if chosen > rejected:
            times_chosen[1] += 1
        else:
            times_chosen[0] += 1

    contradictory = repeated = 0
    for first, second in labels.values():
        if first and second:
            contradictory += first + second
        repeated += max(first - 1, 0) + max(second - 1, 0)
    return DuplicateCounts(contradictory, repeated)


def unordered_hash(texts: PairTexts) -> bytes:
    """A hash of prompt and completions that is the same whichever side was chosen."""
    sides = sorted([text_of(texts["chosen"]), text_of(texts["rejected"])])
    parts = "\0".join([text_of(texts["prompt"]), *sides])
    return hashlib.blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=16).digest()


# --- What to read ---------------------------------------------------------------------------------


def confident_error_check(finite: Pairs) -> Check:
    """Check how often the model is wrong on the pairs that it is surest of.

    These are the tenth of all pairs with the largest |margin|.

    Args:
        finite: The pairs whose two rewards are finite.
    """
    n = len(finite)
    sureness = np.abs(finite.margins)
    surest = stats.indices_of_largest(sureness, n // 10)
    wrong = stats.pair_credit(-finite.margins[surest])
    finding = Finding(
        "confident errors",
        stats.share_interval(wrong, finite.prompt[surest]),
        len(surest),
        SECTION,
        note="of the tenth of pairs that the model is surest of, the share it has wrong: "
        "mislabelled or misjudged, read them",
        unmeasured="fewer than ten pairs",
    )
    if n >= 10 and np.ptp(sureness) == 0:
        why = "the model is as sure of every pair as of any other"
        finding = replace(finding, estimate=None, unmeasured=why)
    return judge(finding)


def worst_errors(pairs: Pairs, k: int = 10) -> list[WorstError]:
    """The pairs with the most negative margins, their texts as they were read.

    Args:
        pairs: All pairs; those without finite rewards are left out.
        k: How many, at most.
    """
    finite = pairs.finite()
    errors = []
    for i in np.argsort(finite.margins, kind="stable")[:k].tolist():
        margin = float(finite.margins[i])
        if margin < 0:
            errors.append(WorstError(**finite.text(i), margin=margin, subset=finite.subset[i]))
    return errors


class Extremes(NamedTuple):
    """The completions at both ends of the rewards."""

    top: list[ExtremeCompletion]  # the highest reward first
    bottom: list[ExtremeCompletion]  # the lowest reward first


def top_and_bottom(pairs: Pairs, k: int = 10) -> Extremes:
    """The different completions with the highest and with the lowest rewards.

    Args:
        pairs: All pairs; those without finite rewards are left out.
        k: How many of each, at most.
    """
    finite = pairs.finite()
    rewards = finite.rewards.ravel()  # (2n,): of the chosen, then of the rejected
    return Extremes(
        top=first_different(finite, np.argsort(-rewards, kind="stable"), k),
        bottom=first_different(finite, np.argsort(rewards, kind="stable"), k),
    )


def first_different(finite: Pairs, order: np.ndarray, k: int) -> list[ExtremeCompletion]:
    """The first k different completions in an order.

    Args:
        finite: The pairs whose two rewards are finite.
        order: (2n,) indices of the chosen sides, and n + indices of the rejected ones.
        k: How many, at most.
    """
    extremes = []
    seen = set()
    for place in order.tolist():
        if len(extremes) == k:
            break
        row, i = divmod(place, len(finite))
        side = ("chosen", "rejected")[row]
        texts = finite.text(i)
        key = hash((text_of(texts["prompt"]), text_of(texts[side])))
        if key in seen:  # Rankings repeat a completion in many pairs.
            continue
        seen.add(key)
        length = finite.lengths[row, i]
        completion = ExtremeCompletion(
            prompt=texts["prompt"],
            completion=texts[side],
            reward=float(finite.rewards[row, i]),
            side=side,
            subset=finite.subset[i],
            length=int(length),
            marks=length_marks(length, finite.lengths) + style_marks(text_of(texts[side])),
        )
        extremes.append(completion)
    return extremes


def length_marks(length: float, lengths: np.ndarray) -> list[str]:
    """Say in words how long a completion is, if it is one of the longest or of the shortest."""
    marks = []
    for word, outdone in (
        ("longer", np.mean(lengths < length)),
        ("shorter", np.mean(lengths > length)),
    ):
        if outdone >= EXTREME_LENGTH:
            marks.append(f"{word} than {int(100 * outdone)}% of completions")
    return marks
