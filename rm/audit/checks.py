"""The audit's checks: rows of rewards in, numbers with verdicts out.

    checks = run_checks(rows)    # rows: one dict a test pair, as the scorer writes them

A row has `prompt, chosen, rejected` (message lists or plain strings), `subset`, `reward_chosen`, `reward_rejected`,
`chosen_tokens`, `rejected_tokens`, and may have `votes` ([for chosen, for rejected]) and `bayes_accuracy` (simulated
raters only: the accuracy that the true utilities can expect on this pair).

A verdict is passed on the point estimate, except where the threshold's sentence names the interval.
"""

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
NO_PAIR = "no pair has two finite rewards"


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
    baseline: float | None = None  # accuracy alone: what a rule that only looks at length scores on the same pairs
    ceiling: float | None = None  # accuracy alone: what the true utilities would score


def run_checks(rows: list[dict]) -> list[Check]:
    """All checks over all pairs, then accuracy for each subset where there is more than one."""
    if not rows:
        raise ValueError("no pairs to audit: the list of rows is empty, the audit needs at least one scored test pair")
    known = finite(rows)
    rewards, lengths = rewards_of(known), lengths_of(known)
    checks = [
        accuracy_check(known, None),
        finite_check(rows),
        tie_check(known),
        margin_check(known),
        # Pooled also carries what differs between prompts, and can have the other sign than within pairs.
        correlation_check("length correlation, pooled", lengths.ravel(), rewards.ravel(), len(known)),
        correlation_check("length correlation, within pairs", np.subtract(*lengths), margins_of(known), len(known)),
        length_excess_check(known),
    ]
    subsets = list(dict.fromkeys(row["subset"] for row in rows))
    if len(subsets) > 1:
        checks += [accuracy_check([row for row in known if row["subset"] == subset], subset) for subset in subsets]
    return checks


# ----------------------------------------------------------------------------------------------------------------- Rows


def finite(rows: list[dict]) -> list[dict]:
    """Rows whose two rewards are numbers; the others are counted by their own check and left out of the rest."""
    return [row for row in rows if np.isfinite(row["reward_chosen"]) and np.isfinite(row["reward_rejected"])]


def rewards_of(rows: list[dict]) -> np.ndarray:
    """(2, pairs): of the chosen, of the rejected completions."""
    return np.array([(row["reward_chosen"], row["reward_rejected"]) for row in rows], float).reshape(-1, 2).T


def lengths_of(rows: list[dict]) -> np.ndarray:
    """(2, pairs), in tokens: of the chosen, of the rejected completions."""
    return np.array([(row["chosen_tokens"], row["rejected_tokens"]) for row in rows], float).reshape(-1, 2).T


def margins_of(rows: list[dict]) -> np.ndarray:
    """(pairs,): reward(chosen) - reward(rejected)."""
    return np.subtract(*rewards_of(rows))


def agreement(rows: list[dict]) -> float | None:
    """How often two raters of one pair agree, over the rows that carry votes."""
    votes = [row["votes"] for row in rows if row.get("votes") is not None]
    return metrics.rater_agreement(np.array(votes)) if votes else None


# --------------------------------------------------------------------------------------------------------------- Checks


def accuracy_check(rows: list[dict], subset: str | None) -> Check:
    """Does the model order more pairs as the raters did than a rule that only looks at length?"""
    margins, n = margins_of(rows), len(rows)
    estimate = metrics.accuracy(margins)
    if estimate is None:
        return unmeasured("accuracy", 0, "lower bound above .5", NO_PAIR, subset)
    longer, shorter = metrics.length_baselines(*lengths_of(rows))
    baseline, rule = max((longer, "the longer wins"), (shorter, "the shorter wins"))
    threshold = f'lower bound above {short(baseline)} ("{rule}" on the same pairs)'
    detectable = metrics.detectable_accuracy(n, baseline)
    known = [row["bayes_accuracy"] for row in rows if row.get("bayes_accuracy") is not None]
    ceiling = float(np.mean(known)) if len(known) == n else None
    agree = agreement(rows)

    verdict = "pass" if estimate.low > baseline else "fail"
    ties = int(np.sum(margins == 0))
    notes = [f"{count(ties, 'tie')}, each counts one half"] if ties else []
    if ties == n:
        verdict, notes = "not measurable", ["every pair ties: the model ranks nothing"]
    elif detectable is None:
        verdict = "not measurable"
        notes.append(f"{count(n, 'pair')}: even a perfect model could not be told from {short(baseline)}")
    elif estimate.low <= baseline < estimate.high:
        notes.append(f"the interval straddles {short(baseline)}; {n} pairs tell {short(detectable)} or more from it")
    if ceiling is not None:
        notes.append(f"ceiling {short(ceiling)} (what the true utilities would score)")
    if agree is not None:
        notes.append(f"two raters of a pair agree {short(agree)} of the time")
    note = "; ".join(notes)
    return Check("accuracy", subset, *estimate, n, verdict, threshold, detectable, note, baseline, ceiling)


def finite_check(rows: list[dict]) -> Check:
    bad = len(rows) - len(finite(rows))
    note = f"{count(bad, 'pair')} of {len(rows)} left out of every other number" if bad else ""
    rate, verdict = bad / len(rows), "fail" if bad else "pass"
    return Check("non-finite rewards", None, rate, None, None, len(rows), verdict, "fail when there is any", None, note)


def tie_check(rows: list[dict]) -> Check:
    threshold, n = f"warn above {short(MAX_TIE_RATE)} (ours), fail when most pairs tie", len(rows)
    if n == 0:
        return unmeasured("tie rate", 0, threshold, NO_PAIR)
    ties = int(np.sum(margins_of(rows) == 0))
    rate, (low, high) = ties / n, metrics.wilson_interval(ties, n)
    detectable, note = metrics.detectable_share(n), "; ".join(straddles(low, high, MAX_TIE_RATE))
    verdict = "warn" if rate > MAX_TIE_RATE else "pass"
    if low > 0.5:
        verdict = "fail"
    elif verdict == "pass" and detectable > MAX_TIE_RATE:
        verdict = "not measurable"
        note = f"{count(n, 'pair')} may well show no tie where {short(MAX_TIE_RATE)} of all pairs tie"
    return Check("tie rate", None, rate, low, high, n, verdict, threshold, detectable, note)


def margin_check(rows: list[dict]) -> Check:
    """The scale of a margin depends on the objective, so only its sign is judged; the usual size is information."""
    threshold, n = "warn when the interval reaches 0 (ours)", len(rows)
    estimate = metrics.mean_interval(margins_of(rows))
    if estimate is None:
        return unmeasured("mean margin", n, threshold, "an interval needs two pairs")
    least, most = USUAL_MARGIN
    where = "inside" if least <= estimate.value <= most else "outside"
    spread = short(rewards_of(rows).std(ddof=1))
    note = f"{where} the usual {short(least)} to {short(most)}; standard deviation of rewards {spread}"
    if n < 30:
        note += "; the interval is too narrow below 30 pairs"
    verdict, detectable = "pass" if estimate.low > 0 else "warn", metrics.detectable_mean(estimate)
    return Check("mean margin", None, *estimate, n, verdict, threshold, detectable, note)


def correlation_check(name: str, x: np.ndarray, y: np.ndarray, n: int) -> Check:
    """Reward against length (2 x pairs,), or margin against length difference (pairs,)."""
    # n counts pairs, not completions: the two rewards of a pair share their prompt, so that errs towards too wide.
    limit = MAX_LENGTH_R
    threshold = f"warn when |r| > {short(limit)} (Cohen's medium), fail when r squared > {short(MAX_LENGTH_R2)} (ours)"
    r = metrics.pearson(x, y)
    if n < 4 or r is None:
        note = "an interval needs four pairs" if n < 4 else "lengths or rewards do not vary"
        return unmeasured(name, n, threshold, note)
    low, high = metrics.fisher_interval(r, n)
    detectable = metrics.detectable_correlation(n)
    notes = [f"Spearman {short(metrics.spearman(x, y))}, r squared {short(r * r)}"]
    if detectable > limit and low <= limit and high >= -limit:
        verdict = "not measurable"
        notes.append(f"{count(n, 'pair')} cannot tell {short(limit)} from 0")
    else:
        verdict = "fail" if r * r > MAX_LENGTH_R2 else "warn" if abs(r) > limit else "pass"
        notes += straddles(low, high, limit, -limit, MAX_LENGTH_R2**0.5, -(MAX_LENGTH_R2**0.5))
    return Check(name, None, r, low, high, n, verdict, threshold, detectable, "; ".join(notes))


def length_excess_check(rows: list[dict]) -> Check:
    """How much more often than the raters does the model prefer the longer completion (negative: the shorter)?"""
    name, limit = "length excess", MAX_LENGTH_EXCESS
    threshold = f"warn when the interval excludes 0 and the value is beyond \u00b1{short(limit)} (ours)"
    differences = np.subtract(*lengths_of(rows))
    n, estimate = int(np.count_nonzero(differences)), metrics.length_excess(margins_of(rows), differences)
    if estimate is None:
        return unmeasured(name, 0, threshold, "no pair has completions of unequal length")
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
        note = "; ".join([note, *straddles(estimate.low, estimate.high, limit, -limit)[:1]])
    return Check(name, None, *estimate, n, verdict, threshold, detectable, note)


def unmeasured(name: str, n: int, threshold: str, note: str, subset: str | None = None) -> Check:
    return Check(name, subset, None, None, None, n, "not measurable", threshold, None, note)


def straddles(low: float, high: float, *limits: float) -> list[str]:
    return [f"the interval straddles {short(limit)}" for limit in limits if low <= limit <= high]


def short(value: float) -> str:
    """.713, -.04, 1.25: as papers print them, without the leading zero and trailing zeros."""
    if abs(value) >= 1000:
        return f"{value:.3g}"
    text = f"{value:z.3f}".rstrip("0").rstrip(".")
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def count(n: int, thing: str) -> str:
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"


# -------------------------------------------------------------------------------------------- What the model likes best

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
    rows = finite(rows)
    rewards, lengths = rewards_of(rows).ravel(), lengths_of(rows).ravel()  # (2 x pairs,): the chosen, then the rejected
    top, seen = [], set()
    for i in np.argsort(-rewards, kind="stable"):
        if len(top) == k:
            break
        row, side = rows[i % len(rows)], "chosen" if i < len(rows) else "rejected"
        prompt, completion = text_of(row["prompt"]), text_of(row[side])
        if (prompt, completion) in seen:  # rankings repeat a completion in many pairs
            continue
        seen.add((prompt, completion))
        shares = {"longer": np.mean(lengths < lengths[i]), "shorter": np.mean(lengths > lengths[i])}
        extreme = [f"{word} than {int(100 * x)}% of completions" for word, x in shares.items() if x >= EXTREME_LENGTH]
        found = {"reward": float(rewards[i]), "side": side, "subset": row["subset"], "tokens": int(lengths[i])}
        found |= {"marks": extreme + style_marks(completion), "prompt": prompt, "completion": completion}
        top.append(found)
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
