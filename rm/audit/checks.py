"""The audit's checks: rows of rewards in, numbers with verdicts out.

    checks = run_checks(rows)    # rows: one dict a test pair, as the scorer writes them

A row has `prompt, chosen, rejected` (message lists or plain strings), `subset`, `reward_chosen`, `reward_rejected`,
`chosen_tokens`, `rejected_tokens`, and may have `votes` ([for chosen, for rejected]) and `bayes_accuracy` (simulated
raters only: the accuracy that the true utilities can expect on this pair).

A verdict is passed on the point estimate, except where the threshold's sentence names the interval.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from rm.audit import metrics
from rm.formats import text_of

VERDICTS = ("fail", "warn", "not measurable", "pass", "not applicable")  # the worst first

MAX_TIE_RATE = 0.02  # ours
USUAL_MARGIN = (0.5, 1.0)  # what published Bradley-Terry runs report; other losses have other scales
MAX_LENGTH_R = 0.3  # Cohen's (1988) medium correlation
MAX_LENGTH_R2 = 0.3  # ours: length alone explains more than 30% of the rewards' variance
MAX_LENGTH_EXCESS = 0.05  # ours
UNSEEN_LENGTH_EXCESS = 0.2  # ours: n that cannot tell this much from 0 is too small for a verdict


@dataclass(frozen=True)
class Check:
    name: str
    subset: str | None  # None: all pairs
    value: float | None
    low: float | None  # 95% interval
    high: float | None
    n: int
    verdict: str
    threshold: str
    detectable: float | None  # the smallest effect that n shows with 80% power
    note: str = ""


def run_checks(rows: list[dict]) -> list[Check]:
    """All checks over all pairs, then accuracy for each subset where there is more than one."""
    if not rows:
        raise ValueError("no pairs to audit: the list of rows is empty, the audit needs at least one scored test pair")
    finite = finite_rows(rows)
    checks = [
        accuracy_check(finite, None),
        finite_check(rows),
        tie_check(finite),
        margin_check(finite),
        *length_correlation_checks(finite),
        length_excess_check(finite),
    ]
    subsets = list(dict.fromkeys(row["subset"] for row in rows))
    if len(subsets) > 1:
        checks += [accuracy_check([row for row in finite if row["subset"] == subset], subset) for subset in subsets]
    return checks


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


def finite_rows(rows: list[dict]) -> list[dict]:
    """Rows whose two rewards are numbers; the others are counted by their own check and left out of the rest."""
    return [row for row in rows if np.isfinite(row["reward_chosen"]) and np.isfinite(row["reward_rejected"])]


def column(rows: list[dict], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows], dtype=float)  # (pairs,)


def margins(rows: list[dict]) -> np.ndarray:
    return column(rows, "reward_chosen") - column(rows, "reward_rejected")


def length_differences(rows: list[dict]) -> np.ndarray:
    return column(rows, "chosen_tokens") - column(rows, "rejected_tokens")


def both_sides(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and completion lengths of all completions, first the chosen, then the rejected: (2 x pairs,) each."""
    rewards = np.concatenate([column(rows, "reward_chosen"), column(rows, "reward_rejected")])
    return rewards, np.concatenate([column(rows, "chosen_tokens"), column(rows, "rejected_tokens")])


def best_length_rule(rows: list[dict]) -> tuple[float, str]:
    """The accuracy and the name of the better of the two rules that only look at length. Needs a row."""
    longer, shorter = metrics.length_baselines(column(rows, "chosen_tokens"), column(rows, "rejected_tokens"))
    return max((longer, "the longer wins"), (shorter, "the shorter wins"))


def ceiling(rows: list[dict]) -> float | None:
    """Mean Bayes accuracy, what the true utilities would score; None unless every row knows its own."""
    if not rows or any(row.get("bayes_accuracy") is None for row in rows):
        return None
    return float(column(rows, "bayes_accuracy").mean())


def agreement(rows: list[dict]) -> float | None:
    """How often two raters of one pair agree, over the rows that carry votes."""
    votes = [row["votes"] for row in rows if row.get("votes") is not None]
    return metrics.rater_agreement(np.array(votes)) if votes else None


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


def accuracy_check(rows: list[dict], subset: str | None) -> Check:
    """Does the model order more pairs as the raters did than a rule that only looks at length?"""
    estimate = metrics.accuracy(margins(rows))
    if estimate is None:
        return unmeasured("accuracy", subset, 0, "lower bound above .5", "no pair has two finite rewards")
    n, ties = len(rows), int(np.sum(margins(rows) == 0))
    baseline, rule = best_length_rule(rows)
    threshold = f'lower bound above {short(baseline)} ("{rule}" on the same pairs)'
    detectable = metrics.detectable_accuracy(n, baseline)

    notes = [f"{count(ties, 'tie')}, each counts one half"] if ties else []
    if ties == n:
        verdict = "not measurable"
        notes = ["every pair ties: the model ranks nothing"]
    elif detectable is None:
        verdict = "not measurable"
        notes.append(f"{count(n, 'pair')}: even a perfect model could not be told from {short(baseline)}")
    elif estimate.low > baseline:
        verdict = "pass"
    else:
        verdict = "fail"
        if estimate.high > baseline:
            notes.append(
                f"the interval straddles {short(baseline)}; {n} pairs tell {short(detectable)} or more from it"
            )
    if (best := ceiling(rows)) is not None:
        notes.append(f"ceiling {short(best)} (what the true utilities would score)")
    if (agree := agreement(rows)) is not None:
        notes.append(f"two raters of a pair agree {short(agree)} of the time")
    return Check("accuracy", subset, *estimate, n, verdict, threshold, detectable, "; ".join(notes))


def finite_check(rows: list[dict]) -> Check:
    bad = len(rows) - len(finite_rows(rows))
    note = f"{count(bad, 'pair')} of {len(rows)} left out of every other number" if bad else ""
    rate, verdict = bad / len(rows), "fail" if bad else "pass"
    return Check("non-finite rewards", None, rate, None, None, len(rows), verdict, "fail when there is any", None, note)


def tie_check(rows: list[dict]) -> Check:
    threshold, n = f"warn above {short(MAX_TIE_RATE)} (ours), fail when most pairs tie", len(rows)
    if n == 0:
        return unmeasured("tie rate", None, 0, threshold, "no pair has two finite rewards")
    ties = int(np.sum(margins(rows) == 0))
    low, high = metrics.wilson_interval(ties, n)
    rate, detectable, note = ties / n, metrics.detectable_share(n), ""
    if low > 0.5:
        verdict = "fail"
    elif rate > MAX_TIE_RATE:
        verdict, note = "warn", straddle(low, high, MAX_TIE_RATE)
    elif detectable > MAX_TIE_RATE:
        verdict = "not measurable"
        note = f"{count(n, 'pair')} may well show no tie where {short(MAX_TIE_RATE)} of all pairs tie"
    else:
        verdict, note = "pass", straddle(low, high, MAX_TIE_RATE)
    return Check("tie rate", None, rate, low, high, n, verdict, threshold, detectable, note)


def margin_check(rows: list[dict]) -> Check:
    """The scale of a margin depends on the objective, so only its sign is judged; the usual size is information."""
    threshold = "warn when the interval reaches 0 (ours)"
    estimate = metrics.mean_interval(margins(rows))
    if estimate is None:
        return unmeasured("mean margin", None, len(rows), threshold, "an interval needs two pairs")
    verdict = "pass" if estimate.low > 0 else "warn"
    usual = f"{short(USUAL_MARGIN[0])} to {short(USUAL_MARGIN[1])}"
    where = "inside" if USUAL_MARGIN[0] <= estimate.value <= USUAL_MARGIN[1] else "outside"
    note = f"{where} the usual {usual}; standard deviation of rewards {short(both_sides(rows)[0].std(ddof=1))}"
    if len(rows) < 30:
        note += "; the interval is too narrow below 30 pairs"
    detectable = metrics.detectable_mean(estimate)
    return Check("mean margin", None, *estimate, len(rows), verdict, threshold, detectable, note)


def length_correlation_checks(rows: list[dict]) -> list[Check]:
    """Reward against length over all completions, then margin against length difference within pairs.

    The pooled one also carries what differs between prompts, and can have the other sign than the one within pairs.
    """
    rewards, lengths = both_sides(rows)
    pooled = correlation_check("length correlation, pooled", lengths, rewards, len(rows))
    differences = length_differences(rows)
    return [pooled, correlation_check("length correlation, within pairs", differences, margins(rows), len(rows))]


def correlation_check(name: str, lengths: np.ndarray, rewards: np.ndarray, n: int) -> Check:
    # n counts pairs, not completions: the two rewards of a pair share their prompt, so that errs towards too wide.
    limit = MAX_LENGTH_R
    threshold = f"warn when |r| > {short(limit)} (Cohen's medium), fail when r squared > {short(MAX_LENGTH_R2)} (ours)"
    r = metrics.pearson(lengths, rewards)
    if n < 4 or r is None:
        note = "an interval needs four pairs" if n < 4 else "lengths or rewards do not vary"
        return unmeasured(name, None, n, threshold, note)
    low, high = metrics.fisher_interval(r, n)
    detectable = metrics.detectable_correlation(n)
    notes = [f"Spearman {short(metrics.spearman(lengths, rewards))}, r squared {short(r * r)}"]
    if detectable > limit and low <= limit and high >= -limit:
        verdict = "not measurable"
        notes.append(f"{count(n, 'pair')} cannot tell {short(limit)} from 0")
    else:
        verdict = "fail" if r * r > MAX_LENGTH_R2 else "warn" if abs(r) > limit else "pass"
        limits = (limit, -limit, MAX_LENGTH_R2**0.5, -(MAX_LENGTH_R2**0.5))
        notes += [note for edge in limits if (note := straddle(low, high, edge))]
    return Check(name, None, r, low, high, n, verdict, threshold, detectable, "; ".join(notes))


def length_excess_check(rows: list[dict]) -> Check:
    """How much more often than the raters does the model prefer the longer completion (negative: the shorter)?"""
    name, limit = "length excess", MAX_LENGTH_EXCESS
    threshold = f"warn when the interval excludes 0 and the value is beyond \u00b1{short(limit)} (ours)"
    n = int(np.count_nonzero(length_differences(rows)))
    estimate = metrics.length_excess(margins(rows), length_differences(rows))
    if estimate is None:
        return unmeasured(name, None, 0, threshold, "no pair has completions of unequal length")
    detectable = metrics.detectable_mean(estimate)
    note = f"{count(n, 'pair')} of unequal length"
    if (estimate.low > 0 or estimate.high < 0) and abs(estimate.value) > limit:
        verdict = "warn"
        note += f"; the model prefers the {'longer' if estimate.value > 0 else 'shorter'} more often than its raters"
    elif detectable > UNSEEN_LENGTH_EXCESS:
        verdict = "not measurable"
        note += f", too few to tell {short(UNSEEN_LENGTH_EXCESS)} from 0"
    else:
        verdict = "pass"
        straddled = straddle(estimate.low, estimate.high, limit) or straddle(estimate.low, estimate.high, -limit)
        note += f"; {straddled}" if straddled else ""
    return Check(name, None, *estimate, n, verdict, threshold, detectable, note)


def unmeasured(name: str, subset: str | None, n: int, threshold: str, note: str) -> Check:
    return Check(name, subset, None, None, None, n, "not measurable", threshold, None, note)


def straddle(low: float, high: float, limit: float) -> str:
    return f"the interval straddles {short(limit)}" if low <= limit <= high else ""


def short(value: float) -> str:
    """.713, -.04, 1.25: as papers print them, without the leading zero and trailing zeros."""
    if abs(value) >= 1000:
        return f"{value:.3g}"
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    text = "0" if text == "-0" else text
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def count(n: int, thing: str) -> str:
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"


# ---------------------------------------------------------------------------------------------------------------------
# What the model likes best
# ---------------------------------------------------------------------------------------------------------------------

MARKED_CHARACTERS = 20_000  # marks describe this much of a completion's beginning
EXTREME_LENGTH = 0.9
HEDGES = [
    r"\bas an? (?:ai|(?:large )?language model)\b",
    r"\bit(?:['\u2019]s| is) (?:also )?(?:important|worth|crucial) (?:to )?(?:not|remember)(?:e|ing)?\b",
    r"\bI(?:['\u2019]m| am) not (?:sure|certain|able to)\b",
    r"\bI (?:can(?:no|['\u2019])t|do(?:n['\u2019]t| not) (?:know|have))\b",
    r"\bit (?:really )?depends\b",
]
SOFT_WORDS = r"\b(?:may|might|perhaps|possibly|maybe)\b"
SOFT_WORD_RATE = 0.02  # of all words, three at least
MARKDOWN = {
    "list item": r"^[ \t]*(?:[-*+\u2022]|\d{1,3}[.)])[ \t]+\S",
    "heading": r"^#{1,6} ",
    "bold phrase": r"\*\*[^*\n]+\*\*",
    "code fence": r"^```",
}


def top_completions(rows: list[dict], k: int = 10) -> list[dict]:
    """The k different completions with the highest rewards, each with marks of style that people check for."""
    rows = finite_rows(rows)
    rewards, lengths = both_sides(rows)
    by_length = np.sort(lengths)
    top, seen = [], set()
    for i in np.argsort(-rewards, kind="stable"):
        if len(top) == k:
            break
        row, side = rows[i % len(rows)], "chosen" if i < len(rows) else "rejected"
        prompt, completion = text_of(row["prompt"]), text_of(row[side])
        if (prompt, completion) in seen:  # rankings repeat a completion in many pairs
            continue
        seen.add((prompt, completion))
        tokens = int(lengths[i])
        longer_than = np.searchsorted(by_length, tokens, "left") / len(by_length)
        shorter_than = 1 - np.searchsorted(by_length, tokens, "right") / len(by_length)
        marks = [
            f"{word} than {int(100 * share)}% of completions"
            for word, share in (("longer", longer_than), ("shorter", shorter_than))
            if share >= EXTREME_LENGTH
        ]
        top.append(
            {
                "reward": float(rewards[i]),
                "side": side,
                "subset": row["subset"],
                "tokens": tokens,
                "marks": marks + style_marks(completion),
                "prompt": prompt,
                "completion": completion,
            }
        )
    return top


def style_marks(text: str) -> list[str]:
    text = text[:MARKED_CHARACTERS]
    marks = [f'hedge: "{match.group()}"' for hedge in HEDGES if (match := re.search(hedge, text, re.IGNORECASE))]
    soft, words = len(re.findall(SOFT_WORDS, text, re.IGNORECASE)), len(text.split())
    if soft >= 3 and soft >= SOFT_WORD_RATE * words:
        marks.append(f"hedge: may, might, perhaps {soft} times in {words:,} words")
    for thing, pattern in MARKDOWN.items():
        if found := len(re.findall(pattern, text, re.MULTILINE)):
            marks.append(f"markdown: {count(found, thing)}")
    return marks
