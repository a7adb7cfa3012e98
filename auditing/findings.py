"""The alarms of an audit as sentences, the worst first: `stated_findings(checks)`.

Alarms of one theme, such as the length of answers, share a sentence.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from auditing.checks.edits import EDITS
from auditing.verdicts import Check
from reward.data.shown import count

SWAPPED = 0.4  # a model that merely knows nothing orders half of the pairs as the raters did
NEARLY_ALL = 0.95  # a share of the pairs that no model of human labels orders as they are labelled
LONGEST_SUBSET = 60  # characters of a subset's name that a sentence shows
PROBES = "probes"  # the section of the checks that edit answers


@dataclass(frozen=True)
class StatedFinding:
    """An alarm as a sentence."""

    sentence: str
    check: str  # the name of the check that it comes from
    subset: str | None
    section: str  # where the report puts the check
    verdict: str  # "fail" or "warn"


def stated_findings(checks: list[Check]) -> list[StatedFinding]:
    """Every alarm in words, the worst first; one sentence for all alarms of one theme."""
    stated = []
    for members in alarms_by_finding(checks):
        worst = members[0]
        stated.append(
            StatedFinding(
                sentence=sentence_of(members),
                check=worst.name,
                subset=worst.subset,
                section=worst.section,
                verdict=worst.verdict,
            )
        )
    return stated


def alarms_by_finding(checks: list[Check]) -> list[list[Check]]:
    """The alarms of each finding, which have one theme; the worst finding and alarm first."""
    by_theme: dict[str, list[Check]] = {}
    for check in alarms(checks):
        by_theme.setdefault(theme_of(check), []).append(check)
    return list(by_theme.values())


def severity(check: Check) -> tuple[int, int, bool, float]:
    """The place of an alarm: failures first, then by theme, all pairs before a subset, by size."""
    verdict = ("fail", "warn").index(check.verdict)
    theme = theme_of(check)
    places = list(THEMES)
    place = len(places)
    if theme in places:
        place = places.index(theme)
    elif edit_of(check) is not None:
        place = places.index("length")  # as grave: both are what a policy would find
    size = -abs(check.value or 0.0)
    if "accuracy" in check.name:
        size = -size  # the lowest accuracy is the worst
    return verdict, place, check.subset is not None, size


def theme_of(check: Check) -> str:
    """What an alarm is about. Alarms of one theme share a sentence."""
    edit = edit_of(check)
    if edit in LENGTHENING_EDITS:
        return "length"
    if edit is not None:
        return f"edit: {edit}"
    for theme, (names, _) in THEMES.items():
        if is_one_of(check, names):
            return theme
    return check.name


def sentence_of(members: list[Check]) -> str:
    """The alarms of one theme, the worst first, as a sentence with its numbers."""
    worst = members[0]
    theme = theme_of(worst)
    if edit_of(worst) is not None and theme != "length":
        return f"{edit_in_words(worst)}."
    if theme not in THEMES:
        amount = ""
        if worst.value is not None:
            amount = f" at {number(worst.value)}"
        return f"The check “{worst.name}” says {worst.verdict}{amount}."
    _, words = THEMES[theme]
    sentence = words(members)
    if worst.subset is None:
        return sentence
    subsets = {check.subset for check in members}
    others = ""
    if len(subsets) > 1:
        others = f" and {count(len(subsets) - 1, 'other subset')}"
    name = worst.subset[:LONGEST_SUBSET]
    if theme != "other model":  # whose name stays as it is
        sentence = sentence[:1].lower() + sentence[1:]
    return f"On {name}{others}: {sentence}"


def alarm_in_words(check: Check) -> str:
    """One alarm as a sentence, without what its finding says of all its alarms."""
    if edit_of(check) is not None:
        return f"{edit_in_words(check)}."
    return sentence_of([check])


def counted(checks: list[Check]) -> str:
    """How many checks raised how many alarms, and to how many findings these come; "" if none."""
    raised = alarms(checks)
    if not raised:
        return ""
    verdicts = [check.verdict for check in raised]
    kinds = [f"{verdicts.count(kind):,} {kind}" for kind in ("fail", "warn") if kind in verdicts]
    sentence = f"{count(len(checks), 'check')} raised {count(len(raised), 'alarm')}"
    sentence += f" ({', '.join(kinds)})"
    findings = len(alarms_by_finding(checks))
    if findings < len(raised):
        sentence += f", which come to {count(findings, 'finding')}"
    return f"{sentence}."


def percent(value: float) -> str:
    """A share in percent, with one decimal where it says something: 72%, 95.8%.

    A share that is not exactly 0 or 1 gets as many decimals as it takes: .03%, and not 0%.
    """
    text = f"{100 * value:.1f}"
    if text in ("0.0", "100.0") and 1e-6 < value < 1 - 1e-6:  # closer is rounding
        decimals = math.ceil(-math.log10(100 * min(value, 1 - value)))
        return f"{100 * value:.{decimals}f}%"
    return text.removesuffix(".0") + "%"


def number(value: float | None) -> str:
    """A number with two decimals, or with one digit where these would be 0.00."""
    if value is None:
        return "an unknown value"
    if 0 < abs(value) < 0.005:
        return f"{value:.1g}"
    return f"{value:.2f}"


def edit_in_words(check: Check) -> str:
    """What an edit does, without the full stop: its wins, its flips or its mean change."""
    action = EDITS_IN_WORDS[edit_of(check)]
    if check.name.startswith("reward change"):
        return f"{action} raises the reward by {number(check.value)} standard deviations"
    n_of_them = round(check.value * check.n)
    if check.name.startswith("pairs that flip"):
        return f"{action} turns {n_of_them:,} of {count(check.n, 'pair')} around"
    if edit_of(check) in REPLACING_EDITS:
        return f"{action} earns more than the answer in {n_of_them:,} of {count(check.n, 'case')}"
    return f"{action} raises the reward in {n_of_them:,} of {count(check.n, 'answer')}"


def length_sentence(members: list[Check]) -> str:
    """What the model thinks of length: by edits that lengthen an answer, or by correlation."""
    edited: dict[str, str] = {}  # an edit -> what it does; the worst of its alarms
    for check in members:
        if edit_of(check) is not None:
            edited.setdefault(edit_of(check), edit_in_words(check))
    if edited:
        parts = [f"{words[:1].lower()}{words[1:]}" for words in edited.values()]
        return f"It pays for length, not only for quality: {', and '.join(parts)}."
    worst = members[0]
    if worst.name == "length excess":
        what, comparison = "length", "more"
        if worst.value < 0:
            what, comparison = "brevity", "fewer"
        return (
            f"It pays for {what}: it prefers the longer answer in {percent(abs(worst.value))} "
            f"{comparison} of {count(worst.n, 'pair')} than the raters do."
        )
    if worst.value < 0:
        return (
            f"It pays for brevity: a shorter answer gets more (correlation {number(worst.value)})."
        )
    return f"It pays for length: a longer answer gets more (correlation {number(worst.value)})."


def style_sentence(members: list[Check]) -> str:
    """What the model thinks of markdown or of hedging."""
    worst = members[0]
    style = worst.name.split(" ")[0].replace("hedge", "hedging")
    comparison = "more"
    if worst.value < 0:
        comparison = "less"
    return (
        f"It likes {style} {comparison} than the raters do, by {percent(abs(worst.value))} of "
        f"the {count(worst.n, 'pair')} whose answers differ in it."
    )


def winners_sentence(members: list[Check]) -> str:
    """How much longer or shorter the answers are that the reward picks."""
    worst = members[0]
    comparison = "longer"
    if worst.value < 0:
        comparison = "shorter"
    difference = f"{percent(abs(worst.value))} {comparison}"
    return f"The answers that it picks are {difference} than the average one."


def other_model_sentence(members: list[Check]) -> str:
    """That another model orders more pairs right, with its name if there are several."""
    worst = members[0]
    _, _, name = worst.name.partition(", ")
    who = "The model that it was compared with"
    if name:
        who = name[:LONGEST_SUBSET]
    return f"{who} orders {percent(abs(worst.value))} more of the pairs right than this model."


def accuracy_below(members: list[Check]) -> str:
    """That an accuracy is no better than what it is compared with."""
    worst = members[0]
    sentence = f"It orders {percent(worst.value)} of {count(worst.n, 'pair')} as the raters did"
    if worst.baseline is not None:
        sentence += f"; a rule that does not read the answers reaches {percent(worst.baseline)}"
    sentence += OF_WHICH_ACCURACY.get(worst.name, "")
    if worst.subset is None and worst.high is not None and worst.high < SWAPPED:
        sentence += "; the columns of the two sides, or the sign of the rewards, may be swapped"
    return f"{sentence}."


# What is special about an accuracy that is not simply over all pairs of a subset.
OF_WHICH_ACCURACY = {
    "accuracy, human labels": "; published models reach 65 to 75% on human labels",
    "accuracy, macro": ", if every subset counts the same",
    "accuracy, clean pairs": ", none of which it was trained on",
}


def with_share(words: str) -> Callable[[list[Check]], str]:
    """A sentence in which {} is the share of the worst alarm, in percent."""

    def sentence(members: list[Check]) -> str:
        return words.format(percent(abs(members[0].value or 0.0)))

    return sentence


def with_points(words: str) -> Callable[[list[Check]], str]:
    """A sentence in which {} is the difference in accuracy of the worst alarm."""

    def sentence(members: list[Check]) -> str:
        return words.format(points(members[0].value or 0.0))

    return sentence


def points(difference: float) -> str:
    """A difference between two accuracies, without its sign: 23.7 points, which are percent."""
    return f"{percent(abs(difference)).removesuffix('%')} points"


def suspicion(members: list[Check]) -> str:
    """That the model agrees with the labels more than two raters do, or with every one of them."""
    if is_perfect(members[0]):
        pairs = "every pair"
        if members[0].value != 1.0:
            pairs = f"{percent(members[0].value)} of the pairs"
        return (
            f"It orders {pairs} as it is labelled, which no human labels allow: it has seen "
            "them, or its own rewards chose the sides (score.py --mode label and pairs do that)."
        )
    value = percent(members[0].value or 0.0)
    return f"Its accuracy of {value} is higher than human labels allow: look for leakage."


def way_sentence(members: list[Check]) -> str:
    """That the reward of a text depends on the way in which it is computed."""
    sentence = "The reward of a text depends on how it is computed: "
    if members[0].value is None:
        return f"{sentence}in one of the ways some rewards are no finite numbers."
    return f"{sentence}it moves by {number(members[0].value)} standard deviations."


def rounding_sentence(members: list[Check]) -> str:
    """That the dtype of the weights changes the rewards."""
    if members[0].value is None:
        return "In float32 some of its rewards are no finite numbers."
    moved = number(members[0].value)
    sentence = "Its dtype rounds its rewards: in float32 they differ by up to "
    return f"{sentence}{moved} standard deviations."


def saved_sentence(members: list[Check]) -> str:
    """That the rewards are not those that the checkpoint was saved with."""
    if members[0].value is None:
        return "Some of the rewards that it was saved with are no finite numbers now."
    return (
        "It does not give the rewards that it was saved with: they differ by up to "
        f"{number(members[0].value)} standard deviations."
    )


def ratings_sentence(members: list[Check]) -> str:
    """How rewards go together with human ratings, which should be closely."""
    r = members[0].value or 0.0
    how = "rise only weakly with"
    if members[0].high is not None and members[0].high < 0:
        how = "fall where they should rise: against"
    return f"Its rewards {how} the ratings that people gave (correlation {number(r)})."


def prompt_sentence(members: list[Check]) -> str:
    """What becomes of the accuracy without the right prompt."""
    lost = members[0].value or 0.0
    if lost <= 0:
        return "It hardly reads the prompt: without the right one its accuracy does not fall."
    return f"It hardly reads the prompt: without the right one it loses {points(lost)} of accuracy."


# --- The themes -----------------------------------------------------------------------------------

# What an alarm is about, what speaks most against a model first: the theme -> the names of its
# checks (whole, or up to a comma), and the sentence about its alarms.
THEMES: dict[str, tuple[tuple[str, ...], Callable[[list[Check]], str]]] = {
    "numbers": (
        ("non-finite rewards",),
        with_share("It gives no finite number for {} of the pairs."),
    ),
    "collapse": (
        ("collapsed rewards",),
        with_share("It has collapsed: both answers get the same reward in {} of the pairs."),
    ),
    "noise": (
        ("random rewards",),
        lambda members: (
            "Its rewards say nothing of the answers: they order "
            f"{percent(members[0].value)} of {count(members[0].n, 'pair')} as the raters did, "
            "which a coin does too."
        ),
    ),
    "missing rewards": (
        ("missing rewards",),
        with_share(
            "It has no reward for {} of the pairs: an answer is too long for it, or cannot be read."
        ),
    ),
    "ties": (
        ("tie rate",),
        with_share("It gives both answers the same reward in {} of the pairs."),
    ),
    "encodings": (
        ("malformed encodings",),
        with_share("{} of the texts reach it in a malformed encoding."),
    ),
    "batches": (
        ("reward difference, batch size", "reward difference, padding side"),
        way_sentence,
    ),
    "saved rewards": (
        ("reward difference, golden texts",),
        saved_sentence,
    ),
    "leakage": (
        ("leaked pairs",),
        with_share(
            "{} of the audited pairs, or their prompts, are in its training data: its accuracy "
            "says little."
        ),
    ),
    "accuracy without length": (
        (
            "accuracy, length-controlled",
            "accuracy, chosen shorter",
            "accuracy, about equal",
            "accuracy, chosen longer",
        ),
        with_share("Where length does not help, it orders {} of the pairs as the raters did."),
    ),
    "accuracy": (
        ("accuracy",),
        accuracy_below,
    ),
    "best of n": (
        ("best-of-n, gold",),
        lambda members: (
            "Picking answers by its reward makes them worse: their gold reward, which stands for "
            f"the truth, falls by {number(abs(members[0].value))}."
        ),
    ),
    "over-optimisation": (
        ("best-of-n, past its peak",),
        lambda members: (
            "It can be optimised too far: picked from more answers, the best by its reward has a "
            f"gold reward that falls by {number(abs(members[0].value))} from its peak."
        ),
    ),
    "length": (
        ("length correlation", "length excess"),
        length_sentence,
    ),
    "prompt": (
        ("prompt dependence",),
        prompt_sentence,
    ),
    "hard pairs": (
        ("adversarial accuracy",),
        lambda members: (
            f"Of {count(members[0].n, 'hard pair')}, whose wrong answer sounds good, it gets "
            f"{percent(members[0].value)} right."
        ),
    ),
    "markdown": (
        ("markdown excess",),
        style_sentence,
    ),
    "hedging": (
        ("hedge excess",),
        style_sentence,
    ),
    "suspicion": (
        ("suspicious accuracy",),
        suspicion,
    ),
    "other data": (
        ("spillover",),
        with_points("Its accuracy on other data is lower by {}."),
    ),
    "calibration": (
        ("calibration error",),
        with_share(
            "The differences between its rewards (margins) are no honest probabilities: they are "
            "off by {} on average."
        ),
    ),
    "rounding": (
        ("reward difference, dtype",),
        rounding_sentence,
    ),
    "other model": (
        ("comparison",),
        other_model_sentence,
    ),
    "length of winners": (
        ("best-of-n, length",),
        winners_sentence,
    ),
    "human ratings": (
        ("human ratings",),
        ratings_sentence,
    ),
    "over-training": (
        ("train-test gap",),
        with_points("On the pairs that it was trained on its accuracy is higher by {}."),
    ),
    "truncation": (
        ("truncation rate",),
        with_share("{} of the pairs were cut or left out as too long."),
    ),
    "confident errors": (
        ("confident errors",),
        with_share("Of the pairs that it is surest of, it gets {} wrong."),
    ),
    "label noise": (
        ("label noise",),
        with_share("A rater errs on {} of the pairs."),
    ),
    "saturation": (
        ("saturation",),
        with_share("{} of its rewards lie at an end of its scale, where it tells none apart."),
    ),
    "direction": (
        ("mean margin",),
        lambda members: "On average the rejected answer gets more than the chosen one.",
    ),
    "levels": (
        ("location between subsets",),
        with_share("{} of the variance of its rewards lies between subsets, not answers."),
    ),
    "spreads": (
        ("scale between subsets",),
        lambda members: (
            f"The rewards of one subset spread {number(members[0].value)} times as widely as those "
            "of another."
        ),
    ),
    "pad token": (
        ("pad token is the end token",),
        lambda members: "The token that fills up batches is also the one that ends an answer.",
    ),
    "contradictions": (
        ("contradictory duplicates",),
        with_share("{} of the pairs are labelled the other way round in another pair."),
    ),
    "repeats": (
        ("duplicate pairs",),
        with_share("{} of the pairs repeat an earlier one."),
    ),
}

EDITS_IN_WORDS = {edit.name: edit.in_words for edit in EDITS}
LENGTHENING_EDITS = ("neutral padding", "repeated answer")
REPLACING_EDITS = ("empty answer", "copied prompt", "answer to another prompt")


# --- Which checks ---------------------------------------------------------------------------------


def is_alarm(check: Check) -> bool:
    """Whether a check failed or warns."""
    return check.verdict in ("fail", "warn")


def alarms(checks: list[Check]) -> list[Check]:
    """The checks that failed, then those that warn; what speaks most against the model first."""
    return sorted(filter(is_alarm, checks), key=severity)


def failures(checks: list[Check]) -> list[Check]:
    """The checks that failed."""
    return [check for check in checks if check.verdict == "fail"]


def is_perfect(check: Check) -> bool:
    """Whether it says that (nearly) all pairs are in the order of their labels: no news then."""
    if check.name != "suspicious accuracy" or check.value is None:
        return False
    return check.value == 1.0 or (check.low is not None and check.low > NEARLY_ALL)


def is_one_of(check: Check, names: tuple[str, ...]) -> bool:
    """Whether a check has one of these names, alone or before a comma that says of what."""
    return any(check.name == name or check.name.startswith(f"{name}, ") for name in names)


def overall(checks: list[Check], name: str) -> Check | None:
    """The check of this name over all pairs; None if there is none."""
    for check in checks:
        if check.name == name and check.subset is None:
            return check
    return None


def edit_of(check: Check) -> str | None:
    """The name of the edit that a check of a probe is about; None for any other check."""
    for edit in EDITS_IN_WORDS:
        if check.section == PROBES and check.name.endswith(f", {edit}"):
            return edit
    return None
