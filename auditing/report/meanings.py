"""What an alarm means, why it matters and what to do: the texts of meanings.yaml, by check.

meaning = meaning_of(check)
meaning.means       # "The length of an answer goes together with its reward; ..."
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

from auditing.findings import edit_of, number, percent
from auditing.report.wording import MINUS
from auditing.verdicts import THRESHOLDS, Check, Limits

# Checks whose rule is neither their name nor what stands before the first comma.
RULE_OF_LENGTH_CLASSES = "accuracy by length"
LENGTH_CLASSES = ("accuracy, chosen shorter", "accuracy, about equal", "accuracy, chosen longer")

# The share of answers or pairs for which something happened, which reads best as "96 of 100".
COUNTED = ("cosmetic wins", "degraded wins", "pairs that flip")


@dataclass(frozen=True)
class Meaning:
    """The words about all checks of one rule."""

    unit: str  # of its number: share, points, change, correlation, deviations or plain
    see: str  # the id of the part of report.html that shows more
    means: str  # what an alarm says
    matters: str  # why it matters
    do: str  # what to do; recipe keys and flags stand between backticks


def read_meanings() -> dict[str, Meaning]:
    """The texts of meanings.yaml, by rule."""
    path = Path(__file__).with_name("meanings.yaml")
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {rule: Meaning(**entry) for rule, entry in entries.items()}


MEANINGS = read_meanings()


def rule_of(check: Check) -> str:
    """The rule of a check, which is a key of MEANINGS unless nobody described it."""
    if check.name in LENGTH_CLASSES:
        return RULE_OF_LENGTH_CLASSES
    if check.name in MEANINGS:
        return check.name
    return check.name.split(", ")[0]


def meaning_of(check: Check) -> Meaning | None:
    """The words about a check; None if nobody described its rule."""
    return MEANINGS.get(rule_of(check))


# --- Numbers in their unit ------------------------------------------------------------------------


def unit_of(check: Check) -> str:
    """How the number of a check is read; "plain" if nobody described it."""
    meaning = meaning_of(check)
    if meaning is None:
        return "plain"
    return meaning.unit


def in_unit(value: float, unit: str) -> str:
    """A number as people say it: 96%, +18.5 points, +46.5%, 0.61, 0.65 sd."""
    if unit == "share":
        return percent(value)
    signed = f"{100 * value:+.1f}".removesuffix(".0").replace("-", MINUS)
    if signed in ("+0", f"{MINUS}0"):
        signed = "0"
    if unit == "points":
        return f"{signed} points"
    if unit == "change":
        return f"{signed}%"
    text = number(value).replace("-", MINUS)
    if unit == "deviations":
        return f"{text} sd"
    return text


def value_in_words(check: Check) -> str:
    """The number of a check as people say it; a count where it is a share of answers or pairs."""
    if check.value is None:
        return "not measured"
    if rule_of(check) in COUNTED and edit_of(check) is not None:
        return f"{round(check.value * check.n):,} of {check.n:,}"
    return in_unit(check.value, unit_of(check))


# --- Limits ---------------------------------------------------------------------------------------


def limits_of_check(check: Check) -> Limits | None:
    """The limits that a check was judged by; None if its rule is not in thresholds.yaml.

    Limits that depend on the data are left out: the check says them in words alone.
    """
    limits = THRESHOLDS.get(rule_of(check))
    if limits is None or limits.in_words() != check.threshold:
        return None
    return limits


def drawn_limits(check: Check) -> list[float]:
    """The numbers at which a check alarms, for a chart: limits, or the rule that it must beat."""
    limits = limits_of_check(check)
    if limits is not None:
        numbers = [limit for limit in (limits.warn, limits.fail) if limit is not None]
        if limits.side == "both":
            numbers += [-limit for limit in numbers]
        return numbers
    if check.baseline is not None:
        return [check.baseline]
    return []


def limits_in_words(check: Check) -> list[tuple[str | None, str]]:
    """The limits of drawn_limits: the verdict that begins there, and the number in words.

    A rule that does not read, which the check must beat, begins no verdict: its first part is None.
    """
    unit = unit_of(check)
    limits = limits_of_check(check)
    if limits is None:
        if check.baseline is None:
            return []
        return [(None, f"a rule that does not read: {in_unit(check.baseline, unit)}")]
    side = {"above": "above ", "below": "below ", "both": "beyond \u00b1"}[limits.side]
    parts = []
    for verdict, limit in (("warn", limits.warn), ("fail", limits.fail)):
        if limit is None:
            continue
        amount = in_unit(limit, unit)
        if limits.side == "both":
            amount = amount.removeprefix("+")
        parts.append((verdict, f"{verdict}s {side}{amount}"))
    return parts


def near_a_fail(check: Check) -> str:
    """Why a check only warns although the limit of a fail lies inside its interval; else ""."""
    limits = limits_of_check(check)
    if check.verdict != "warn" or limits is None or limits.fail is None or check.low is None:
        return ""
    limit = limits.fail
    if limits.side == "both" and check.value < 0:
        limit = -limit
    if not check.low <= limit <= check.high:
        return ""
    unit = unit_of(check)
    ends = f"{in_unit(check.low, unit)} to {in_unit(check.high, unit)}"
    said = in_unit(limit, unit)
    if in_unit(check.value, unit) == said:
        place = f"This is exactly the limit of a fail ({said})."
    else:
        place = f"The limit of a fail is {said}."
    return f"{place} The true number may lie on either side of it ({ends}), so this only warns."
