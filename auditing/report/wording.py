"""Wording: how the report's pages name, order and format what the checks found."""

import math
import re

import numpy as np

from auditing.result import Audit
from auditing.verdicts import VERDICTS, Check, short

CLIP = 600  # characters of a completion in the page


SECTIONS = (  # in the order to print; a section that is not named here comes last
    "accuracy", "distribution", "length and style", "calibration", "transfer", "comparison", "probes", "best-of-n",
    "integrity", "leakage", "labels",
)  # fmt: skip


SURENESS = "95% interval"


# ------------------------------------------------------------------------------------------------- Text and numbers

# Control characters but tab and newline, those that reorder text, and lone surrogates, which no file can hold.
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def clip(text: str, characters: int = CLIP) -> str:
    """The first characters and how many more there are; characters that nobody sees, or that reorder text, as <U+XXXX>."""
    more = len(text) - characters
    text = UNSEEN.sub(
        lambda match: f"<U+{ord(match.group()):04X}>", text[:characters].replace("\r\n", "\n")
    )
    return f"{text}\u2026 ({more:,} more characters)" if more > 0 else text


def one_line(text: str, characters: int) -> str:
    text = re.sub(r"\s+", " ", clip(text))
    return text if len(text) <= characters else text[: characters - 1] + "\u2026"


def label(check: Check) -> str:
    return check.name if check.subset is None else f"{check.name}: {check.subset}"


def fixed(value: float | None) -> str:
    """Three decimals, so that a column of measured numbers lines up; a dash for None, a true minus."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    if abs(value) >= 1000:
        text = short(value)
    elif 0 < abs(value) < 0.0005:
        text = f"{value:.0e}"  # not .000: it is not nothing
    else:
        text = f"{value:z.3f}".replace("0.", ".", 1 if abs(value) < 1 else 0)
    return text.replace("-", "\u2212")


def interval_text(low: float | None, high: float | None) -> str:
    return "\u2013" if low is None or high is None else f"{fixed(low)} to {fixed(high)}"


def blind_spot(check: Check) -> str:
    """A sentence for a check that n was too small for, or that had nothing to measure."""
    seen = (
        ""
        if check.detectable is None
        else f", too few to be sure of anything below {short(check.detectable)}"
    )
    return f"{label(check)}: n = {check.n:,}{seen}" + (f"; {check.note}." if check.note else ".")


# ------------------------------------------------------------------------------- What the pages and the table share


def by_section(checks: list[Check]) -> dict[str, list[Check]]:
    names = dict.fromkeys([*SECTIONS, *(check.section for check in checks)])
    found = {name: [check for check in checks if check.section == name] for name in names}
    return {name: there for name, there in found.items() if there}


def worst_first(checks: list[Check]) -> list[Check]:
    return sorted(checks, key=lambda check: VERDICTS.index(check.verdict))


def alarms(checks: list[Check]) -> list[Check]:
    return worst_first([check for check in checks if check.verdict in ("fail", "warn")])


def blind_spots(audit: Audit) -> list[str]:
    """What this audit could not have seen: what was not measured, then what n was too small for."""
    return [
        *audit.not_measured,
        *(blind_spot(check) for check in audit.checks if check.verdict == "not measurable"),
    ]


def tally(checks: list[Check]) -> str:
    found = [check.verdict for check in checks]
    return ", ".join(
        f"{found.count(verdict):,} {verdict}" for verdict in VERDICTS if verdict in found
    )


def title_of(section: str) -> str:
    return section[:1].upper() + section[1:]


def overall_accuracy(checks: list[Check]) -> Check | None:
    return next(
        (check for check in checks if check.name == "accuracy" and check.subset is None), None
    )


def headline(audit: Audit) -> list[tuple[str, str, str]]:
    """(name, number, the doubt or the bound that belongs to it): the numbers to read first."""
    check, facts = overall_accuracy(audit.checks), []
    if check and check.value is not None:
        facts.append(
            ("Accuracy", fixed(check.value), f"{SURENESS} {interval_text(check.low, check.high)}")
        )
    if audit.baselines:
        rule, best = max(audit.baselines.items(), key=lambda item: item[1])
        facts.append(("To beat", fixed(best), f"\u201c{rule}\u201d on the same pairs"))
    noise = next((c for c in audit.checks if c.name == "label noise" and c.value is not None), None)
    if check and check.ceiling is not None:
        facts.append(("Ceiling", fixed(check.ceiling), "what the true utilities would score"))
    if noise:
        facts.append(("Label noise", fixed(noise.value), "how often a rater errs"))
    ties = next(
        (
            c
            for c in audit.checks
            if c.name == "tie rate" and c.subset is None and c.value is not None
        ),
        None,
    )
    known = int(np.isfinite(audit.pairs.rewards).all(axis=0).sum())
    doubts = [f"tie rate {fixed(ties.value)}"] if ties else []
    doubts += (
        [f"{len(audit.pairs) - known:,} without a finite reward left out"]
        if known < len(audit.pairs)
        else []
    )
    facts.append(("Pairs", f"{known:,}", ", ".join(doubts)))
    if audit.temperature is not None:
        facts.append(
            ("Temperature", fixed(audit.temperature), "divides margins, to calibrate them")
        )
    return facts


def signed(value: float) -> str:
    return f"+{fixed(value)}" if value > 0 else fixed(value)
