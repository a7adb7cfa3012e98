"""Wording: how the report's pages and the terminal name, order and format what the checks found.

Numbers are rounded in two ways only. Sentences, and the first screen of a page, say shares in
percent (auditing.findings.percent). Tables print three digits (`fixed`).
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from auditing.findings import percent
from auditing.result import ModelCouple, ProbeResult, Ranking
from auditing.verdicts import VERDICTS, Check, decimals, short
from reward.data.shown import ELLIPSIS, count, visible

CLIP = 600  # how many characters of a text a page shows

# What each section of the checks asks, in the order to print; a section that is not named here
# comes last.
SECTIONS = {
    "accuracy": (
        "How often does the model order two answers as the raters did, and does it do so better "
        "than rules that do not read the answers?"
    ),
    "distribution": (
        "Are the rewards sound numbers: finite, not all equal, not pressed against an end of "
        "their range, and on one scale in all subsets?"
    ),
    "length and style": (
        "Does the model follow length, markdown or cautious phrases more than the raters do, and "
        "is it right where length does not help?"
    ),
    "calibration": (
        "May the difference of two rewards (the margin) be read as a probability? If it says 90%, "
        "is it right 9 times in 10?"
    ),
    "transfer": (
        "Does it hold on other data than its own, and do the rewards rise with ratings that "
        "people gave?"
    ),
    "comparison": "Does another model order more of the same pairs right?",
    "probes": (
        "Real answers are edited. Does an edit that adds nothing of worth (cosmetic), or one that "
        "makes the answer worse (degraded), earn more than the original?"
    ),
    "best-of-n": (
        "If the reward picks the best of several answers, do the picked ones get better, or only "
        "longer?"
    ),
    "integrity": (
        "Is the reward of a text the same in whatever way it is computed, and does the model read "
        "each text whole and as in training?"
    ),
    "leakage": "Are audited pairs among those that the model was trained on?",
    "labels": (
        "How far can the labels be trusted: do raters agree, do pairs contradict each other, and "
        "where is the model surest and wrong?"
    ),
    "anchor": (
        "Does the policy that is to be trained share this model's base, tokenizer and template?"
    ),
}

SURENESS = "95% interval"


@dataclass(frozen=True)
class VerdictLook:
    """How a verdict is shown; the sign and the word say the same as the colour."""

    sign: str
    colour: str  # of bars, and of the ground under black text: Okabe and Ito's palette, lightened
    meaning: str


VERDICT_LOOKS = {
    "fail": VerdictLook(
        "\u2717",
        "#EE9468",
        "An alarm: the number is beyond the limit of a fail with its whole 95% interval. A check "
        "that comes with a p-value is beyond it by more than chance among so many checks gives.",
    ),
    "warn": VerdictLook(
        "!", "#F3C25C", "An alarm: the same with the limit of a warning, which is a milder one."
    ),
    "not measurable": VerdictLook(
        "?",
        "#A5D2EE",
        "Neither an alarm nor a pass: there is too little data to tell. \u201cDetectable\u201d is "
        "the smallest effect that so much data tells four times in five from none, and for the "
        "wins and flips of an edit from the limit.",
    ),
    "pass": VerdictLook(
        "\u2713", "#7CCFB2", "The whole interval is on the good side of the first limit."
    ),
    "not applicable": VerdictLook(
        "\u2013", "#C8C8C8", "A number without a limit, or a check that has no place here."
    ),
}

DASH = "\u2013"  # stands for a number that is missing
MINUS = "\u2212"


# --- Text -----------------------------------------------------------------------------------------


def clip(text: str, characters: int = CLIP) -> str:
    """Shorten a text, say how much was left out, and make invisible characters visible.

    Args:
        text: Somebody's text, of any length.
        characters: How many of its first characters are kept.

    Returns:
        The text with <U+XXXX> in place of control characters, characters that reorder text, and
        lone surrogates. Nothing is escaped.
    """
    text = str(text)
    left_out = len(text) - characters
    kept = visible(text[:characters].replace("\r\n", "\n"))
    if left_out > 0:
        return f"{kept}{ELLIPSIS} ({left_out:,} more characters)"
    return kept


def one_line(text: str, characters: int) -> str:
    """Clip a text to one line.

    Args:
        text: Somebody's text, of any length.
        characters: The largest length of the line.
    """
    line = re.sub(r"\s+", " ", clip(text))
    if len(line) <= characters:
        return line
    return line[: characters - 1] + ELLIPSIS


def title_of(name: str) -> str:
    """A name as a heading, with a capital letter first."""
    return name[:1].upper() + name[1:]


def label(check: Check) -> str:
    """The name of a check, with its subset if it has one."""
    if check.subset is None:
        return check.name
    return f"{check.name}: {check.subset}"


# --- Numbers --------------------------------------------------------------------------------------


def fixed(value: float | None) -> str:
    """A number with three digits, and no more than three decimals: .713, 1.25, 10.5, 114, 12,345.

    None, NaN and infinity become a dash. A minus is the true minus sign, not a hyphen.
    """
    if value is None or not math.isfinite(value):
        return DASH
    if abs(value) >= 1_000_000:
        text = f"{value:.3g}"
    elif 0 < abs(value) < 0.0005:
        text = f"{value:.0e}"  # .000 would say that it is zero
    else:
        text = f"{value:z,.{decimals(value)}f}"
    if text.startswith(("0.", "-0.")):
        text = text.replace("0.", ".", 1)
    return text.replace("-", MINUS)


def share(value: float | None) -> str:
    """A share in percent; a dash if it is unknown."""
    if value is None:
        return DASH
    return percent(value)


def signed(value: float) -> str:
    """A number with three decimals and its sign."""
    if value > 0:
        return f"+{fixed(value)}"
    return fixed(value)


def interval(measured: Check | ProbeResult | ModelCouple) -> str:
    """The 95% interval of what was measured; a dash if it was not."""
    if measured.low is None or measured.high is None:
        return DASH
    return f"{fixed(measured.low)} to {fixed(measured.high)}"


def thousands(n: int) -> str:
    """A whole number with commas."""
    return f"{n:,}"


def detectable(check: Check) -> str:
    """The smallest effect that a check with this n shows with 80% power; a dash if unknown."""
    if check.detectable is None:
        return DASH
    return short(check.detectable)


# --- Which checks, and in which order -------------------------------------------------------------


def by_section(checks: list[Check]) -> dict[str, list[Check]]:
    """Group checks by the part of the report that they belong to.

    Args:
        checks: The checks in any order, which is kept within each section.

    Returns:
        The checks of each section, in the order to print. A section without checks is left out.
    """
    members: dict[str, list[Check]] = {}
    for check in checks:
        members.setdefault(check.section, [])
        members[check.section].append(check)

    unknown = [name for name in members if name not in SECTIONS]
    in_order = [*SECTIONS, *unknown]
    return {name: members[name] for name in in_order if name in members}


def worst_first(checks: Iterable[Check]) -> list[Check]:
    """Sort checks by verdict, the worst first; checks with the same verdict keep their order."""
    return sorted(checks, key=lambda check: VERDICTS.index(check.verdict))


def tally(checks: list[Check]) -> str:
    """The number of checks with each verdict, in words."""
    verdicts = [check.verdict for check in checks]
    words = []
    for verdict in VERDICTS:
        n = verdicts.count(verdict)
        if n:
            words.append(f"{n:,} {verdict}")
    return ", ".join(words)


def measured(check: Check | None) -> bool:
    """Whether there is such a check, and it has a value."""
    return check is not None and check.value is not None


# --- The comparison with other models -------------------------------------------------------------


def couple_sentence(couple: ModelCouple, n: int) -> str:
    """Who beats whom and by how much, and how often the two disagree.

    Args:
        couple: Two compared models.
        n: The number of pairs.
    """
    difference = points(couple.difference)
    ends = f"{SURENESS} {points(couple.low)} to {points(couple.high)}"
    if couple.differs:
        sentence = (
            f"{couple.better} beats {couple.worse} by {difference} points ({ends}; "
            f"{p_in_words(couple.p)})."
        )
    elif couple.disagree == 0:
        return f"{couple.better} and {couple.worse} order every pair alike."
    else:
        sentence = (
            f"No difference between {couple.better} and {couple.worse} was seen: "
            f"{difference} points ({ends})"
        )
        if couple.detectable is not None:
            shown = points(couple.detectable)
            sentence += f"; {count(n, 'pair')} would show {shown} points or more"
        sentence += "."
    return f"{sentence} They order {percent(couple.disagree)} of the pairs differently."


def p_in_words(p: float) -> str:
    """A p-value as papers print it."""
    if p < 0.001:
        return "p < .001"
    return f"p = {fixed(p)}"


def differing_first(couples: list[ModelCouple]) -> list[ModelCouple]:
    """Couples of models in the order to print: differences that count first, then by their size."""
    return sorted(couples, key=lambda couple: (not couple.differs, -couple.difference))


def points(difference: float) -> str:
    """A difference of two shares in percentage points, without the word."""
    return f"{100 * difference:z.1f}".replace("-", MINUS)


def ranking_sentence(ranking: Ranking) -> str:
    """The ranking in a sentence: who is best, and how the audited model stands."""
    if len(ranking.models) == 2:
        return couple_sentence(ranking.couples[0], ranking.n)
    best = ranking.models[0]
    n = len(ranking.models)
    if not any(couple.differs for couple in ranking.couples):
        ends = f"{percent(ranking.models[-1].accuracy)} to {percent(best.accuracy)}"
        return f"{n} models cannot be told apart by these {ranking.n:,} pairs ({ends})."
    sentence = (
        f"Of {n} models on the same {ranking.n:,} pairs, {best.name} orders most right "
        f"({percent(best.accuracy)})"
    )
    with_best = [c for c in ranking.couples if best.name in (c.better, c.worse)]
    equals = sum(not couple.differs for couple in with_best)
    if equals:
        sentence += f", and {count(equals, 'other')} cannot be told from it"
    audited = next(model for model in ranking.models if model.is_audited)
    if audited.rank > 1:
        better = audited.rank - 1
        sentence += f"; {audited.name}, which this report is about, is beaten by {better} of them"
    elif audited is not best:
        sentence += f"; {audited.name}, which this report is about, is not beaten"
    return f"{sentence}."
