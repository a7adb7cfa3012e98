"""The first screen of the report: what the model may be used for, the facts, and the sections."""

from dataclasses import dataclass

import numpy as np

from auditing.benchmarks import numbers_among
from auditing.conclusion import UNFIT_TO_LABEL, UNUSABLE
from auditing.findings import is_alarm, is_one_of, overall, percent
from auditing.report.wording import (
    SURENESS,
    VERDICT_LOOKS,
    VerdictLook,
    by_section,
    fixed,
    label,
    measured,
    share,
    tally,
)
from auditing.result import Audit
from auditing.verdicts import Check, joined, short
from reward.data.shown import count

# --- The first screen: what the model may be used for ---------------------------------------------


@dataclass(frozen=True)
class UseBadge:
    """Whether the model may be used in one way."""

    name: str
    what: str  # what this use is, in words
    answer: str
    look: VerdictLook


USE_NAMES = {  # a use of auditing.conclusion -> its name, and what it is
    "rank": ("Rank answers", "pick the better of several"),
    "label": ("Label pairs", "make training data for another model"),
    "optimise": ("Optimise against it", "train a language model to raise its rewards"),
}

VERDICT_OF_ANSWER = {
    "yes": "pass",
    "with care": "warn",
    "no": "fail",
    "not tested": "not measurable",
}


def use_badges(audit: Audit) -> list[UseBadge]:
    """Whether the model may rank, label, and be optimised against."""
    badges = []
    for use, answer in audit.conclusion.uses.items():
        name, what = USE_NAMES[use]
        badges.append(UseBadge(name, what, answer, VERDICT_LOOKS[VERDICT_OF_ANSWER[answer]]))
    return badges


# --- The first screen: sections -------------------------------------------------------------------

# The checks that a section is judged by; after a comma, whatever follows. Subsets and side checks
# are counted beside the badge, and colour it only if the conclusion says "no" because of them.
HEADLINES = {
    "accuracy": ("accuracy", "accuracy, human labels"),
    "distribution": ("non-finite rewards", "tie rate", "mean margin"),
    "length and style": ("length correlation, within pairs", "length excess"),
    "calibration": ("calibration error",),
    "transfer": ("spillover", "human ratings,"),
    "comparison": ("comparison", "comparison,"),
    "probes": ("cosmetic wins,", "degraded wins,"),
    "best-of-n": ("best-of-n, gold",),
    "integrity": ("malformed encodings", "reward difference,"),
    "leakage": ("leaked pairs",),
    "labels": ("label noise", "confident errors"),
}

BADGE_ORDER = ("fail", "warn", "pass", "not measurable", "not applicable")


@dataclass(frozen=True)
class SectionBadge:
    """A section of the checks, with the verdict of its headline checks."""

    section: str
    verdict: str
    tally: str  # how many checks have which verdict


def section_badges(checks: list[Check]) -> list[SectionBadge]:
    """The sections in the order to print."""
    badges = []
    for section, members in by_section(checks).items():
        badges.append(SectionBadge(section, headline_verdict(section, members), tally(members)))
    return badges


def headline_verdict(section: str, members: list[Check]) -> str:
    """The verdict of a section's headline checks, and of those for which a use is refused.

    It is their worst alarm, or else "pass" if one of them passed. A section without a headline
    check is judged by all its checks over all pairs, and one that has none of these by all checks.
    """
    over_all_pairs = [check for check in members if check.subset is None]
    deciding = [check for check in over_all_pairs if is_headline(check, section)]
    verdicts = [check.verdict for check in deciding or over_all_pairs or members]
    return min(verdicts, key=BADGE_ORDER.index)


def is_headline(check: Check, section: str) -> bool:
    """Whether a check is one that its section is judged by."""
    refuses_a_use = check.name in UNUSABLE or is_one_of(check, UNFIT_TO_LABEL)
    if check.verdict == "fail" and refuses_a_use:
        return True
    for name in HEADLINES.get(section, ()):
        if check.name == name or (name.endswith(",") and check.name.startswith(name)):
            return True
    return False


# --- The first screen: what could not be seen -----------------------------------------------------


def unseen(audit: Audit) -> str:
    """How much this audit could not detect, in one line; "" if nothing is known."""
    missing = len(audit.not_measured)
    too_few = sum(check.verdict == "not measurable" for check in audit.checks)
    parts = []
    if missing:
        parts.append(f"{count(missing, 'thing')} not looked at")
    if too_few:
        parts.append(f"{count(too_few, 'check')} without enough data")
    return ", ".join(parts)


def blind_spots(audit: Audit) -> list[str]:
    """Sentences on what was not measured, then on the checks that n was too small for."""
    sentences = list(audit.not_measured)
    for check in audit.checks:
        if check.verdict == "not measurable":
            sentences.append(blind_spot(check))
    return sentences


def blind_spot(check: Check) -> str:
    """A sentence on a check that is not measurable.

    If the number itself is larger than what so few pairs show, the note says what is unsure.
    """
    sentence = f"{label(check)}: n = {check.n:,}"
    if check.detectable is not None and abs(check.value or 0.0) < check.detectable:
        sentence += f", too few to be sure of anything below {short(check.detectable)}"
    if check.note:
        sentence += f"; {check.note}"
    return f"{sentence}."


# --- The first screen: the numbers ----------------------------------------------------------------


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
    facts = benchmark_facts(audit.checks)
    accuracy = overall(audit.checks, "accuracy")
    noise = overall(audit.checks, "label noise")

    if measured(accuracy):
        doubt = f"{SURENESS} {percent(accuracy.low)} to {percent(accuracy.high)}"
        facts.append(Fact("Accuracy", percent(accuracy.value), doubt))

    if audit.baselines:
        rule = max(audit.baselines, key=audit.baselines.get)
        doubt = f"\u201c{rule}\u201d, a rule that does not read, gets this"
        facts.append(Fact("To beat", percent(audit.baselines[rule]), doubt))

    if accuracy is not None and accuracy.ceiling is not None:
        doubt = (
            f"a perfect model gets this: {percent(1 - accuracy.ceiling)} of the labels are wrong"
        )
        facts.append(Fact("Possible", percent(accuracy.ceiling), doubt))

    if measured(noise):
        doubt = f"of the pairs{votes_in_words(audit)}"
        facts.append(Fact("One rater errs on", percent(noise.value), doubt))

    facts.append(number_of_pairs(audit))

    if audit.temperature is not None:
        facts.append(Fact("Temperature", fixed(audit.temperature), temperature_in_words(audit)))
    return facts


def temperature_in_words(audit: Audit) -> str:
    """What the temperature is for, and what it says of a model whose calibration alarms."""
    use = "to read a margin (the difference of two rewards) as odds, divide it by this"
    calibration = overall(audit.checks, "calibration error")
    if calibration is None or not is_alarm(calibration):
        return use
    if audit.temperature > 1:
        return f"the model is too sure of itself: {use}"
    return f"the model is less sure than it could be: {use}"


def votes_in_words(audit: Audit) -> str:
    """That a label is the majority of several votes, and so errs less than one rater."""
    votes = audit.pairs.votes.sum(axis=1)  # (pairs,)
    votes = votes[votes > 1]  # False for NaN
    if not len(votes):
        return ""
    fewest, most = int(votes.min()), int(votes.max())
    number = f"{fewest} to {most}"
    if fewest == most:
        number = str(most)
    return f"; a label is the majority of {number}, which errs less"


def benchmark_facts(checks: list[Check]) -> list[Fact]:
    """A benchmark's own numbers over all prompts, to compare with published ones."""
    facts = []
    for check in numbers_among(checks):
        if check.subset is None and measured(check):
            doubt = f"{SURENESS} {share(check.low)} to {share(check.high)}"
            if not facts:
                doubt = joined(doubt, check.note)  # Such as how many completions were unreadable.
            facts.append(Fact(check.name, percent(check.value), doubt))
    return facts


def number_of_pairs(audit: Audit) -> Fact:
    """The number of pairs with finite rewards, how many of them tie, and how many are left out."""
    is_finite = np.isfinite(audit.pairs.rewards).all(axis=0)  # (pairs,)
    finite = int(is_finite.sum())
    left_out = len(audit.pairs) - finite
    ties = overall(audit.checks, "tie rate")

    doubts = []
    if measured(ties):
        doubts.append(f"{percent(ties.value)} with equal rewards")
    if left_out:
        doubts.append(f"{left_out:,} without a finite reward left out")
    return Fact("Pairs", f"{finite:,}", ", ".join(doubts))
