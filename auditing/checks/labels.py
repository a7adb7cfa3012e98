"""How far can the labels be trusted, and what to read first: noise, duplicates, worst errors, extreme rewards. NumPy only.

    checks, worst, (top, bottom) = label_checks(pairs), worst_errors(pairs), top_and_bottom(pairs)

Nothing is relabelled: a confident error may be the raters' or the model's, and only a reader can tell.
"""

import hashlib

import numpy as np

from auditing import stats
from auditing.checks.raters import label_accuracy, noise_from_votes, pair_agreement
from auditing.pairs import Pairs
from auditing.result import ExtremeCompletion, WorstError
from auditing.stats import Estimate
from auditing.style import style_marks
from auditing.verdicts import Check, Finding, count, judge, short, with_verdict
from reward.data.transcripts import text_of

EXTREME_LENGTH = 0.95  # of all completions are shorter, or longer


SECTION = "labels"


def label_checks(pairs: Pairs) -> list[Check]:
    known = pairs.finite()
    return [*vote_checks(known), *duplicate_checks(pairs), confident_error_check(known)]


# ---------------------------------------------------------------------------------------------------------------- Votes


def vote_checks(pairs: Pairs) -> list[Check]:
    """A rater's error rate from how often two raters of a pair agree, and the accuracy that labels so made allow."""
    votes = pairs.votes[pairs.voted]
    votes = votes[votes.sum(axis=1) >= 2]  # (n, 2)
    noise, n = noise_from_votes(votes), len(votes)
    if noise is None:
        note = "no pair carries three votes, or more of an odd number"
        return [
            with_verdict(Finding("label noise", None, 0, SECTION, note=note), "not applicable", "")
        ]
    note = "how often one rater errs, if equally often on every pair; if more often on hard ones, the mean is higher than this"
    agreement = stats.share_interval(pair_agreement(votes))
    ceiling = short(label_accuracy(votes.sum(axis=1), noise.value))
    allowed = f"a perfect model scores {ceiling} on the majority of such raters, and less if they err most on hard pairs"
    threshold = "no threshold: information"
    return [
        judge(Finding("label noise", noise, n, SECTION, note=note)),
        with_verdict(
            Finding("rater agreement", agreement, n, SECTION, note=allowed),
            "not applicable",
            threshold,
        ),
    ]


# ----------------------------------------------------------------------------------------------------------- Duplicates


def duplicate_checks(pairs: Pairs) -> list[Check]:
    """Pairs of the same prompt and completions: labelled both ways, and repeated with the same label."""
    n = len(pairs)
    if not n:
        return [
            judge(Finding(name, None, 0, SECTION))
            for name in ("contradictory duplicates", "duplicate pairs")
        ]
    contradictory, repeated = duplicates(pairs)
    checks = []
    for name, found, note in (
        (
            "contradictory duplicates",
            contradictory,
            "same prompt and completions, labelled both ways",
        ),
        ("duplicate pairs", repeated, "same prompt, completions and label as an earlier pair"),
    ):
        share = Estimate(found / n, *stats.wilson_interval(found, n))
        note = f"{count(found, 'pair')} of {n:,}: {note}"
        checks.append(
            judge(
                Finding(name, share, n, SECTION, note=note, detectable=stats.detectable_share(n))
            ),
        )
    return checks


def duplicates(pairs: Pairs) -> tuple[int, int]:
    """(pairs that another one contradicts, pairs that repeat an earlier one with its label).

    Only pairs that share their prompt and both lengths can be equal, so the texts of only these are read back.
    """
    shape = np.column_stack([pairs.prompt, np.sort(pairs.characters, axis=0).T])  # (n, 3)
    _, group, sizes = np.unique(shape, axis=0, return_inverse=True, return_counts=True)
    labels: dict[
        bytes, list[int]
    ] = {}  # of two sides in alphabetical order -> how often the first was chosen, the second
    for i in np.flatnonzero(sizes[group.ravel()] > 1).tolist():
        prompt, *sides = (
            text_of(side) for side in map(pairs.text(i).get, ("prompt", "chosen", "rejected"))
        )
        key = hashlib.blake2b(
            "\0".join([prompt, *sorted(sides)]).encode("utf-8", "surrogatepass"), digest_size=16
        )
        labels.setdefault(key.digest(), [0, 0])[sides[0] > sides[1]] += 1
    contradictory = sum(sum(won) for won in labels.values() if all(won))
    return contradictory, sum(max(k - 1, 0) for won in labels.values() for k in won)


# ------------------------------------------------------------------------------------------------------- What to read


def confident_error_check(known: Pairs) -> Check:
    """The share that is wrong of the tenth of pairs with the largest |margin|: those that the model is surest of."""
    surest = np.argsort(-np.abs(known.margins), kind="stable")[: len(known) // 10]
    estimate = stats.share_interval(stats.pair_credit(-known.margins[surest]), known.prompt[surest])
    note = "of the tenth of pairs that the model is surest of, the share it has wrong: mislabelled or misjudged, read them"
    return judge(
        Finding(
            "confident errors",
            estimate,
            len(surest),
            SECTION,
            note=note,
            unmeasured="fewer than ten pairs",
        )
    )


def worst_errors(pairs: Pairs, k: int = 10) -> list[WorstError]:
    """The k pairs with the most negative margins, their texts as they were read."""
    known = pairs.finite()
    order = np.argsort(known.margins, kind="stable")[:k].tolist()
    return [
        WorstError(**known.text(i), margin=float(known.margins[i]), subset=known.subset[i])
        for i in order
        if known.margins[i] < 0
    ]


def top_and_bottom(
    pairs: Pairs, k: int = 10
) -> tuple[list[ExtremeCompletion], list[ExtremeCompletion]]:
    """The k different completions with the highest rewards, and with the lowest, their texts as they were read."""
    known = pairs.finite()
    rewards = known.rewards.ravel()  # (2n,): the chosen, then the rejected
    return extreme(known, np.argsort(-rewards, kind="stable"), k), extreme(
        known, np.argsort(rewards, kind="stable"), k
    )


def extreme(known: Pairs, order: np.ndarray, k: int) -> list[ExtremeCompletion]:
    """The first k different completions of `order`, (2n,) indices of the chosen sides and then of the rejected ones."""
    n, lengths, found, seen = len(known), known.lengths.ravel(), [], set()
    for j in order.tolist():
        if len(found) == k:
            break
        i, side = j % n, "rejected" if j >= n else "chosen"
        texts = known.text(i)
        completion = text_of(texts[side])
        key = hash((text_of(texts["prompt"]), completion))
        if key in seen:  # rankings repeat a completion in many pairs
            continue
        seen.add(key)
        shares = {"longer": np.mean(lengths < lengths[j]), "shorter": np.mean(lengths > lengths[j])}
        marks = [
            f"{word} than {int(100 * x)}% of completions"
            for word, x in shares.items()
            if x >= EXTREME_LENGTH
        ]
        found.append(
            ExtremeCompletion(
                prompt=texts["prompt"],
                completion=texts[side],
                reward=float(known.rewards.ravel()[j]),
                side=side,
                subset=known.subset[i],
                length=int(lengths[j]),
                marks=marks + style_marks(completion),
            )
        )
    return found
