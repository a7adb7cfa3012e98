"""The conclusion of an audit: a few plain sentences that follow from the verdicts by fixed rules.

    conclusion = conclude(audit.checks)
    conclusion.text      # "Do not optimise against this model. ..."

May the model rank answers, label pairs, be optimised against; and what speaks most against it? The
same words stand at the top of every page, in the terminal, in audit.json and in the model card.
"""

from dataclasses import dataclass, field

from auditing.benchmarks import numbers_among
from auditing.findings import (
    LONGEST_SUBSET,
    StatedFinding,
    alarms,
    edit_of,
    failures,
    is_one_of,
    is_perfect,
    overall,
    percent,
    stated_findings,
)
from auditing.verdicts import Check
from reward.data.shown import count

USES = ("rank", "label", "optimise")
YES = "yes"
WITH_CARE = "with care"
NO = "no"
NOT_TESTED = "not tested"

MOST_FINDINGS = 3  # how many of the worst findings the conclusion names

# A failure of one of these means that the rewards order nothing, or are not what the model gives.
UNUSABLE = (
    "non-finite rewards",
    "collapsed rewards",
    "random rewards",
    "tie rate",
    "malformed encodings",
    "reward difference, batch size",
    "labels swapped",
    "accuracy",
    "accuracy, macro",
    "best-of-n, gold",
)

# A failure of one of these means that the accuracy is not that of answers in general.
UNREPRESENTATIVE = ("leaked pairs", "missing rewards")

# A failure of one of these means that an answer which is cut off, empty or repeats itself comes
# first wherever there is one among the answers to rank.
WORSE_WINS = ("degraded wins",)

# A failure of one of these lets a model rank, but makes labels that others would learn from.
UNFIT_TO_LABEL = (
    "calibration error",
    "accuracy, length-controlled",
    "confident errors",
    "prompt dependence",
)

# An alarm of one of these is about the pairs, and does not say how good the model is.
ABOUT_THE_PAIRS = (
    "label noise",
    "contradictory duplicates",
    "duplicate pairs",
    "missing rewards",
)

FEWEST_PAIRS = 20  # of fewer, an accuracy says nothing about answers in general

LENGTH_AND_STYLE = "length and style"  # a section of checks, as auditing.checks.length names it


@dataclass(frozen=True)
class Conclusion:
    """What an audit comes to. audit.json holds these fields, and `text`."""

    advice: str  # the first sentence: what to do, or not to do, with the model
    benchmark: str  # the main number of a benchmark, by its own rule; "" if there is none
    accuracy: str  # how many pairs it orders as the raters did; "" if unknown
    tested: str  # what was tried, and what was not; "" if there are findings
    uses: dict[str, str]  # each of USES -> YES, WITH_CARE, NO or NOT_TESTED
    findings: list[StatedFinding] = field(default_factory=list)  # every alarm, the worst first

    @property
    def sentences(self) -> list[str]:
        """The conclusion, sentence by sentence: the advice, the worst findings, the accuracy.

        The number of a benchmark follows the advice, because it is what was asked for.
        """
        worst = self.findings[:MOST_FINDINGS]
        found = [finding.sentence for finding in worst]
        more = ""
        if len(self.findings) > MOST_FINDINGS:
            left_out = len(self.findings) - MOST_FINDINGS
            more = f"The report lists {count(left_out, 'further finding')}."
        sentences = (self.advice, self.benchmark, *found, self.accuracy, self.tested, more)
        return [sentence for sentence in sentences if sentence]

    @property
    def text(self) -> str:
        """The conclusion as one paragraph."""
        return " ".join(self.sentences)


def conclude(checks: list[Check]) -> Conclusion:
    """Draw the conclusion from all checks of an audit, with their final verdicts."""
    findings = stated_findings(checks)
    uses = {
        "rank": may_rank(checks),
        "label": may_label(checks),
        "optimise": may_optimise(checks),
    }
    return Conclusion(
        advice=advice(uses, has_probes(checks)),
        benchmark=benchmark_sentence(checks),
        accuracy=accuracy_sentence(checks),
        tested=tested_sentence(checks, findings),
        uses=uses,
        findings=findings,
    )


# --- What the model may be used for ---------------------------------------------------------------


def may_rank(checks: list[Check]) -> str:
    """Whether the order of its rewards may be used, such as to pick the best of several answers."""
    failed = failures(checks)
    if any(check.name in UNUSABLE and check.subset is None for check in failed):
        return NO
    if any(is_opposite(check) for check in failed):
        return NO
    if not is_accuracy_of_answers(checks):
        return NOT_TESTED
    if any(check.section in ("accuracy", LENGTH_AND_STYLE) for check in failed):
        return WITH_CARE
    if any(is_one_of(check, WORSE_WINS) for check in failed):
        return WITH_CARE
    return YES


def is_accuracy_of_answers(checks: list[Check]) -> bool:
    """Whether there is an accuracy that passes, on enough pairs, and that says how others fare."""
    accuracy = overall(checks, "accuracy")
    if accuracy is None or accuracy.verdict != "pass" or accuracy.n < FEWEST_PAIRS:
        return False
    if any(is_one_of(check, UNREPRESENTATIVE) for check in failures(checks)):
        return False
    return accuracy.value != 1.0 and not any(is_perfect(check) for check in alarms(checks))


def is_opposite(check: Check) -> bool:
    """Whether rewards fall where people's ratings of answers to one prompt rise."""
    return check.name == "human ratings, within prompts" and check.high < 0


def may_label(checks: list[Check]) -> str:
    """Whether pairs that it labels may train another model, which learns its faults as well."""
    rank = may_rank(checks)
    if rank in (NO, NOT_TESTED):
        return rank
    if any(is_one_of(check, UNFIT_TO_LABEL) for check in failures(checks)):
        return NO
    if rank == WITH_CARE:
        return WITH_CARE
    about_order = ("accuracy", LENGTH_AND_STYLE, "calibration")
    for check in alarms(checks):
        if check.section in about_order or is_one_of(check, UNFIT_TO_LABEL):
            return WITH_CARE
    calibration = overall(checks, "calibration error")
    if calibration is None or calibration.verdict != "pass":
        return NOT_TESTED
    return YES


def may_optimise(checks: list[Check]) -> str:
    """Whether a policy may be trained to raise its rewards, which finds every fault it has."""
    if any(is_about_the_model(check) for check in failures(checks)):
        return NO
    if may_rank(checks) == NOT_TESTED or not probes_can_tell(checks):
        return NOT_TESTED
    if any(is_about_the_model(check) for check in alarms(checks)):
        return WITH_CARE
    return YES


def advice(uses: dict[str, str], probed: bool) -> str:
    """The first sentence of the conclusion, which answers "can I trust this model?".

    Args:
        uses: Each of USES -> YES, WITH_CARE, NO or NOT_TESTED.
        probed: Whether answers were edited to see what the reward pays for.
    """
    if uses["rank"] == NO:
        return "Do not use this model."
    if uses["optimise"] == NO:
        warning = "Do not optimise against this model"
        if uses["label"] == NO:
            warning += " or label pairs with it"
        if uses["rank"] == NOT_TESTED:
            return f"{warning}."
        if uses["rank"] == WITH_CARE:
            return f"{warning}; rank answers with it only with care."
        return f"{warning}; it may rank answers."
    if uses["rank"] == NOT_TESTED:
        return "This audit cannot say whether the model may be trusted."
    if uses["optimise"] == NOT_TESTED and probed:
        return (
            "This model may rank answers. Whether it may be optimised against cannot be said: "
            "its probes need more prompts."
        )
    if uses["optimise"] == NOT_TESTED:
        return (
            "This model may rank answers. Whether it may be optimised against was not tested: "
            "that needs the model itself and its probes (audit.py --ckpt, without --quick)."
        )
    if uses["optimise"] == WITH_CARE:
        return "This model may rank answers; optimise against it only with care."
    return "Nothing that was tried speaks against optimising against this model."


# --- The last sentences ---------------------------------------------------------------------------


def benchmark_sentence(checks: list[Check]) -> str:
    """The main number of a benchmark by its own rule; "" if no benchmark was scored."""
    numbers = numbers_among(checks)
    if not numbers or numbers[0].value is None:
        return ""
    name = numbers[0].name[:LONGEST_SUBSET]
    score = percent(numbers[0].value)
    if numbers[0].note:
        score += f" ({numbers[0].note})"
    return f"It scores {score} on {name} by the benchmark's own rule."


def accuracy_sentence(checks: list[Check]) -> str:
    """How many pairs it orders as the raters did; "" if unknown, or if a finding says it."""
    check = overall(checks, "accuracy")
    if check is None or check.value is None or check.verdict == "fail":
        return ""
    human_labels = overall(checks, "accuracy, human labels")
    if human_labels is not None and human_labels.verdict == "fail":
        return ""
    pairs = count(check.n, "pair")
    sentence = f"It orders {percent(check.value)} of {pairs} as the raters did"
    if check.ceiling is not None:
        sentence += f" ({percent(check.ceiling)} is possible)"
    if check.verdict == "pass" and check.n < FEWEST_PAIRS:
        sentence += ", which are too few to conclude from"
    elif check.verdict == "pass" and check.value == 1.0:
        sentence += ", which it also does where its own rewards chose the sides"
    return f"{sentence}."


def tested_sentence(checks: list[Check], findings: list[StatedFinding]) -> str:
    """What was tried, and what was not; "" if there are findings."""
    if findings:
        return ""
    tried = sum(check.verdict == "pass" for check in checks)
    unknown = sum(check.verdict == "not measurable" for check in checks)
    sentence = f"{count(tried, 'check')} found nothing"
    if unknown:
        sentence += f"; for {unknown} there was too little data"
    if not has_probes(checks):
        sentence += "; no answer was edited to see what the reward pays for"
    return f"{sentence}."


def is_about_the_model(check: Check) -> bool:
    """Whether an alarm speaks against the model, and not against the audited pairs."""
    return not is_one_of(check, ABOUT_THE_PAIRS)


def has_probes(checks: list[Check]) -> bool:
    """Whether answers were edited to see what the reward pays for."""
    return any(edit_of(check) is not None for check in checks)


def probes_can_tell(checks: list[Check]) -> bool:
    """Whether most checks of edits have a verdict; with few prompts they have none."""
    of_edits = [check for check in checks if edit_of(check) is not None]
    unknown = sum(check.verdict == "not measurable" for check in of_edits)
    return 2 * unknown < len(of_edits)
