"""Wording: how the report's pages and the terminal name, order and format what the checks found."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from auditing import findings
from auditing.findings import overall
from auditing.result import Audit, ProbeResult
from auditing.verdicts import VERDICTS, Check, short

CLIP = 600  # how many characters of a text a page shows

SECTIONS = (  # in the order to print; a section that is not named here comes last
    "accuracy",
    "distribution",
    "length and style",
    "calibration",
    "transfer",
    "comparison",
    "probes",
    "best-of-n",
    "integrity",
    "leakage",
    "labels",
)

SURENESS = "95% interval"

DASH = "\u2013"  # stands for a number that is missing
MINUS = "\u2212"
ELLIPSIS = "\u2026"

# Control characters except tab and newline, characters that reorder text, and lone surrogates,
# which no file can hold.
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


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
    kept = text[:characters].replace("\r\n", "\n")
    kept = UNSEEN.sub(lambda match: f"<U+{ord(match.group()):04X}>", kept)
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
    """A number with three decimals, so that a column of them lines up.

    None, NaN and infinity become a dash. A minus is the true minus sign, not a hyphen.
    """
    if value is None or not math.isfinite(value):
        return DASH
    if abs(value) >= 1000:
        text = short(value)
    elif 0 < abs(value) < 0.0005:
        text = f"{value:.0e}"  # .000 would say that it is zero
    elif abs(value) < 1:
        text = f"{value:z.3f}".replace("0.", ".", 1)
    else:
        text = f"{value:z.3f}"
    return text.replace("-", MINUS)


def signed(value: float) -> str:
    """A number with three decimals and its sign."""
    if value > 0:
        return f"+{fixed(value)}"
    return fixed(value)


def interval(measured: Check | ProbeResult) -> str:
    """The 95% interval of a check or of a probe's change; a dash if it was not measured."""
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


def alarms(checks: list[Check]) -> list[Check]:
    """The checks that failed, then those that warn."""
    return worst_first(findings.alarms(checks))


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


# --- The first screen -----------------------------------------------------------------------------


def blind_spots(audit: Audit) -> list[str]:
    """Sentences on what was not measured, then on the checks that n was too small for."""
    sentences = list(audit.not_measured)
    for check in audit.checks:
        if check.verdict == "not measurable":
            sentences.append(blind_spot(check))
    return sentences


def blind_spot(check: Check) -> str:
    """A sentence on a check that is not measurable."""
    sentence = f"{label(check)}: n = {check.n:,}"
    if check.detectable is not None:
        sentence += f", too few to be sure of anything below {short(check.detectable)}"
    if check.note:
        sentence += f"; {check.note}"
    return f"{sentence}."


@dataclass(frozen=True)
class Fact:
    """One of the numbers to read first."""

    name: str
    number: str
    doubt: str  # its interval, or what else a reader must know about it


def headline(audit: Audit) -> list[Fact]:
    """The numbers to read first: the accuracy, its bounds, and the pairs that it was measured on.

    Returns:
        The facts in the order to print. A number that was not measured is left out.
    """
    facts = []
    accuracy = overall(audit.checks, "accuracy")
    noise = overall(audit.checks, "label noise")

    if measured(accuracy):
        doubt = f"{SURENESS} {interval(accuracy)}"
        facts.append(Fact("Accuracy", fixed(accuracy.value), doubt))

    if audit.baselines:
        rule = max(audit.baselines, key=audit.baselines.get)
        doubt = f"\u201c{rule}\u201d on the same pairs"
        facts.append(Fact("To beat", fixed(audit.baselines[rule]), doubt))

    if accuracy is not None and accuracy.ceiling is not None:
        doubt = "what the true utilities would score"
        facts.append(Fact("Ceiling", fixed(accuracy.ceiling), doubt))

    if measured(noise):
        doubt = "how often a rater errs"
        facts.append(Fact("Label noise", fixed(noise.value), doubt))

    facts.append(number_of_pairs(audit))

    if audit.temperature is not None:
        doubt = "divides margins, to calibrate them"
        facts.append(Fact("Temperature", fixed(audit.temperature), doubt))
    return facts


def number_of_pairs(audit: Audit) -> Fact:
    """The number of pairs with finite rewards, how many of them tie, and how many are left out."""
    is_finite = np.isfinite(audit.pairs.rewards).all(axis=0)  # (pairs,)
    finite = int(is_finite.sum())
    left_out = len(audit.pairs) - finite
    ties = overall(audit.checks, "tie rate")

    doubts = []
    if measured(ties):
        doubts.append(f"tie rate {fixed(ties.value)}")
    if left_out:
        doubts.append(f"{left_out:,} without a finite reward left out")
    return Fact("Pairs", f"{finite:,}", ", ".join(doubts))
