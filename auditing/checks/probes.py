"""Probes: does the model fall for edits of real completions, and does it read the prompt?

checks, results = run_probes(scorer, pairs)
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from auditing import stats
from auditing.checks.edits import EDITS, Edit, blank_prompt, edit_completion
from auditing.pairs import LONGEST_TEXT, Pairs, PairTexts, nan_for_none
from auditing.result import ProbeExample, ProbeResult
from auditing.stats import Estimate
from auditing.verdicts import THRESHOLDS, Check, Finding, joined, judge, short
from reward.data.encoding import RefusedText
from reward.data.shown import count
from reward.data.transcripts import Side
from reward.model.batches import TokenIds
from reward.model.scorer import Scorer

SECTION = "probes"
FEWEST = 10  # texts or pairs; with fewer, a share or a mean says nothing
SIDES = ("chosen", "rejected")

# The versions of a pair that are scored: these three, and one under the name of each edit.
ORIGINAL = "original"
BLANKED = "an empty prompt"
SHUFFLED = "another pair's prompt"


def run_probes(
    scorer: Scorer, pairs: Pairs, limit: int = 100, seed: int = 0
) -> tuple[list[Check], list[ProbeResult]]:
    """Probe the model with edits of real completions, and with other prompts.

    Args:
        scorer: The model; only its `encode`, and once its `rewards_of_ids`, are used.
        pairs: The audited pairs, from which a sample is taken.
        limit: The largest number of prompts in the sample, with one pair each.
        seed: The seed that decides which pairs are in the sample.

    Returns:
        The checks, and the result of each edit for the report's table.
    """
    sample = [pairs.text(i) for i in sample_pairs(pairs, limit, seed)]
    versions = score_versions(scorer, sample)
    original = versions[ORIGINAL].rewards
    scale = spread_of_rewards(original)

    checks, results = [], []
    for edit in EDITS:
        effect = effect_of(edit, original, versions[edit.name].rewards, scale)
        checks += edit_checks(edit, effect)
        results.append(probe_result(edit, effect, sample, versions))
    for prompt in (BLANKED, SHUFFLED):
        checks.append(prompt_check(prompt, original, versions[prompt].rewards))
    return checks, results


# --- The sample -----------------------------------------------------------------------------------


def sample_pairs(pairs: Pairs, limit: int, seed: int) -> list[int]:
    """Choose pairs of different prompts whose texts were kept whole.

    Args:
        pairs: The pairs to choose from.
        limit: How many are chosen, at most.
        seed: The seed that decides which pairs are chosen, and their order.

    Returns:
        The indices of the chosen pairs, in a random order.
    """
    _, first_of_prompt = np.unique(pairs.prompt, return_index=True)
    sample = []
    for i in np.random.default_rng(seed).permutation(first_of_prompt).tolist():
        if all(is_whole(side) for side in pairs.text(i).values()):
            sample.append(i)
        if len(sample) == limit:
            break
    return sample


def is_whole(side: Side) -> bool:
    """Whether no text of a prompt or completion was cut when the pairs were collected."""
    if isinstance(side, str):
        return len(side) <= LONGEST_TEXT
    return all(len(message.get("content") or "") <= LONGEST_TEXT for message in side)


# --- Texts, which are scored once -----------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """One text that the model reads."""

    pair: int  # index in the sample
    version: str  # ORIGINAL, BLANKED, SHUFFLED or the name of an edit
    side: str  # one of SIDES
    prompt: Side
    completion: Side


@dataclass
class Version:
    """The sample in one version, such as with one edit, and its rewards."""

    rewards: np.ndarray  # (2, pairs) of chosen, rejected; NaN where a text or its reward is missing
    chosen: list[Side | None]  # (pairs,) the chosen completions; None if there is none


def score_versions(scorer: Scorer, sample: list[PairTexts]) -> dict[str, Version]:
    """Score the sample in all versions, with one call of the scorer.

    Args:
        scorer: The model.
        sample: The texts of each pair of the sample.

    Returns:
        Each version by its name: ORIGINAL, BLANKED, SHUFFLED and the names of the edits.
    """
    readings = all_readings(sample)
    rewards = scorer.rewards_of_ids(encode_readings(scorer, readings))

    versions = {}
    for name in (ORIGINAL, BLANKED, SHUFFLED, *(edit.name for edit in EDITS)):
        versions[name] = Version(np.full((2, len(sample)), np.nan), [None] * len(sample))
    for reading, reward in zip(readings, rewards, strict=True):
        reward = nan_for_none(reward)
        version = versions[reading.version]
        if np.isfinite(reward):
            version.rewards[SIDES.index(reading.side), reading.pair] = reward
        if reading.side == "chosen":
            version.chosen[reading.pair] = reading.completion
    return versions


def encode_readings(scorer: Scorer, readings: list[Reading]) -> list[TokenIds | None]:
    """Encode readings, so that an edited text differs from its original by the edit alone.

    Where a prompt must be cut, all completions that are compared keep the same part of it.

    Returns:
        The token ids of each reading; None if it is too long or cannot be encoded.
    """
    groups: dict[tuple[int, str], list[int]] = {}  # what has one prompt -> places in `readings`
    for place, reading in enumerate(readings):
        version = ORIGINAL
        if reading.version in (BLANKED, SHUFFLED):
            version = reading.version
        groups.setdefault((reading.pair, version), []).append(place)

    ids: list[TokenIds | None] = [None] * len(readings)
    for places in groups.values():
        prompt = readings[places[0]].prompt
        completions = [readings[place].completion for place in places]
        for place, encoded in zip(places, encode_alike(scorer, prompt, completions), strict=True):
            ids[place] = encoded
    return ids


def encode_alike(scorer: Scorer, prompt: Side, completions: list[Side]) -> list[TokenIds | None]:
    """Encode completions of one prompt together; each by itself if one cannot be encoded."""
    try:
        return scorer.encode(prompt, completions).ids
    except RefusedText:
        if len(completions) == 1:
            return [None]
        return [encode_alike(scorer, prompt, [completion])[0] for completion in completions]


def all_readings(sample: list[PairTexts]) -> list[Reading]:
    """List all texts that the model has to read for the probes of a sample."""
    readings = []
    for i, texts in enumerate(sample):
        neighbour = None
        if len(sample) > 1:
            neighbour = sample[i - 1]
        readings += prompt_readings(i, texts, neighbour)
        readings += edit_readings(i, texts, neighbour)
    return readings


def prompt_readings(i: int, texts: PairTexts, neighbour: PairTexts | None) -> Iterator[Reading]:
    """List the readings of a pair with its own prompt, with an empty one, and with another pair's.

    Args:
        i: The index of the pair in the sample.
        texts: The texts of the pair.
        neighbour: The texts of a pair with another prompt; None if there is no such pair.
    """
    for side in SIDES:
        yield Reading(i, ORIGINAL, side, texts["prompt"], texts[side])
        yield Reading(i, BLANKED, side, blank_prompt(texts["prompt"]), texts[side])
        if neighbour is not None:
            yield Reading(i, SHUFFLED, side, neighbour["prompt"], texts[side])


def edit_readings(i: int, texts: PairTexts, neighbour: PairTexts | None) -> Iterator[Reading]:
    """List the readings of a pair with each edit.

    A cosmetic edit is made in both sides. A degraded text is made from the chosen side only.

    Args:
        i: The index of the pair in the sample.
        texts: The texts of the pair.
        neighbour: The texts of a pair with another prompt; None if there is no such pair.
    """
    other = None
    if neighbour is not None:
        other = neighbour["chosen"]
    for edit in EDITS:
        sides = SIDES
        if edit.kind == "degraded":
            sides = ("chosen",)
        for side in sides:
            completion = edit_completion(edit, texts["prompt"], texts[side], other)
            if completion is not None:
                yield Reading(i, edit.name, side, texts["prompt"], completion)


# --- What an edit does ----------------------------------------------------------------------------


@dataclass(frozen=True)
class EditEffect:
    """The effect of one edit on the rewards of the sample."""

    n: int  # chosen completions with a reward before and after
    skipped: int  # those that the edit does not fit, or that have no reward
    scale: float  # the standard deviation of the originals' rewards
    change: Estimate | None  # mean of reward after - before, over the scale
    wins: Estimate | None  # share of edited completions that beat their original
    flips: Estimate | None  # share of the pairs that could flip which the edit flips
    could_flip: int  # how many pairs could flip
    # Indices of pairs; None if no chosen completion has both rewards.
    largest: int | None  # its chosen completion gained most, or lost least
    typical: int | None  # its chosen completion has the median change


def spread_of_rewards(rewards: np.ndarray) -> float:
    """The standard deviation of the finite rewards; 0 for fewer than two."""
    present = rewards[np.isfinite(rewards)]
    if len(present) < 2:
        return 0.0
    return float(present.std(ddof=1))


def effect_of(edit: Edit, original: np.ndarray, edited: np.ndarray, scale: float) -> EditEffect:
    """Compare rewards after an edit with those before.

    A pair can flip if its chosen side beat the rejected side before the edit. A degraded chosen
    side flips it if it no longer beats the rejected side. A cosmetic edit flips it if the edited
    rejected side beats the chosen side as it was: a model may mark down what the edit adds, but it
    should not reward it.

    Args:
        edit: The edit.
        original: (2, pairs) rewards of chosen and rejected before the edit; NaN for no reward.
        edited: (2, pairs) rewards after the edit; NaN for the rejected side of a degraded edit.
        scale: The standard deviation of `original`.
    """
    change = edited[0] - original[0]
    present = np.isfinite(change)
    n = int(present.sum())
    mean_change = None
    if scale > 0 and n >= FEWEST:
        mean_change = change_in_deviations(change, original)

    in_order = original[0] > original[1]
    if edit.kind == "cosmetic":
        could_flip = in_order & np.isfinite(edited[1])
        flipped = edited[1] > original[0]
    else:
        could_flip = in_order & present
        flipped = edited[0] <= original[1]

    largest = typical = None
    if n:
        in_order_of_change = np.argsort(change, kind="stable")[:n]  # NaN comes last.
        largest = int(in_order_of_change[-1])
        typical = int(in_order_of_change[(n - 1) // 2])
    return EditEffect(
        n=n,
        skipped=len(change) - n,
        scale=scale,
        change=mean_change,
        wins=share_if_enough(stats.pair_credit(change[present])),
        flips=share_if_enough(flipped[could_flip].astype(float)),
        could_flip=int(could_flip.sum()),
        largest=largest,
        typical=typical,
    )


def change_in_deviations(change: np.ndarray, original: np.ndarray) -> Estimate:
    """The mean change over the standard deviation of the originals' rewards, by the jackknife.

    The interval takes into account that the standard deviation is uncertain as well.

    Args:
        change: (pairs,) the change of each pair's chosen side; NaN for none.
        original: (2, pairs) rewards before the edit, which vary; NaN for no reward.
    """
    changes = np.nan_to_num(change)
    changed = np.isfinite(change).astype(float)
    squares = np.nansum((original - np.nanmean(original)) ** 2, axis=0)
    rewards = np.isfinite(original).sum(axis=0)
    least = stats.NEARLY_ZERO * squares.sum() / rewards.sum()

    def without(left_out: np.ndarray | float) -> np.ndarray | float:
        """The mean change over the standard deviation, without some pairs."""
        mean = (changes.sum() - left_out * changes) / (changed.sum() - left_out * changed)
        variance = (squares.sum() - left_out * squares) / (rewards.sum() - left_out * rewards - 1)
        return mean / np.sqrt(np.maximum(variance, least))  # One pair may hold all the variance.

    value = float(without(0.0)[0])
    half = stats.half_width(stats.jackknife_changes(without(1.0)))
    return Estimate(value, value - half, value + half)


def probe_result(
    edit: Edit, effect: EditEffect, sample: list[PairTexts], versions: dict[str, Version]
) -> ProbeResult:
    """Make the row of one edit in the report's table.

    Args:
        edit: The edit.
        effect: What the edit does.
        sample: The texts of each pair of the sample.
        versions: The scored versions.
    """
    result = ProbeResult(
        probe=edit.name,
        kind=edit.kind,
        imitates=edit.imitates,
        n=effect.n,
        skipped=effect.skipped,
        change=None,
        low=None,
        high=None,
        wins=None,
        flips=None,
    )
    if effect.change is not None:
        result.change, result.low, result.high = effect.change
    if effect.wins is not None:
        result.wins = effect.wins.value
    if effect.flips is not None:
        result.flips = effect.flips.value
    edited = versions[edit.name]
    original = versions[ORIGINAL].rewards
    if effect.largest is not None:
        result.largest = example_of(effect.largest, sample, original, edited)
        result.typical = example_of(effect.typical, sample, original, edited)
    return result


def example_of(
    i: int, sample: list[PairTexts], original: np.ndarray, edited: Version
) -> ProbeExample:
    """The chosen completion of one pair, before and after an edit.

    Args:
        i: The index of the pair in the sample.
        sample: The texts of each pair of the sample.
        original: (2, pairs) rewards of chosen and rejected before the edit.
        edited: The sample with the edit.
    """
    return ProbeExample(
        prompt=sample[i]["prompt"],
        before=sample[i]["chosen"],
        after=edited.chosen[i],
        reward_before=float(original[0, i]),
        reward_after=float(edited.rewards[0, i]),
    )


def edit_checks(edit: Edit, effect: EditEffect) -> list[Check]:
    """Check the wins of one edit; for a cosmetic edit also the mean change and the flips."""
    note = note_of(edit, effect)
    wins = share_check(f"{edit.kind} wins", edit, effect.wins, effect.n, note)
    if edit.kind == "degraded":
        return [wins]
    return [
        without_small_wins(wins, effect.change),
        change_check(edit, effect, note),
        share_check("pairs that flip", edit, effect.flips, effect.could_flip, edit.imitates),
    ]


def note_of(edit: Edit, effect: EditEffect) -> str:
    """What the report says about an edit beside its numbers."""
    moved = skipped = ""
    if effect.change is not None:
        value, low, high = map(short, effect.change)
        moved = f"mean change {value} [{low}, {high}] sd"
    if effect.skipped:
        skipped = f"{effect.skipped} skipped"
    return joined(edit.imitates, moved, skipped)


def share_check(rule: str, edit: Edit, estimate: Estimate | None, n: int, note: str) -> Check:
    """Check that a share stays below its limits.

    Args:
        rule: The entry in thresholds.yaml; the name of the check starts with it.
        edit: The edit.
        estimate: The share that was measured; None if n was too small.
        n: How many texts or pairs it is a share of.
        note: What the report says beside the number.
    """
    detectable = None
    if n:
        detectable = stats.detectable_accuracy(n, THRESHOLDS[rule].warn)
    finding = Finding(
        f"{rule}, {edit.name}",
        estimate,
        n,
        SECTION,
        rule=rule,
        detectable=detectable,
        note=note,
        unmeasured=f"{count(n, 'pair')} to look at; {FEWEST} are needed",
    )
    return judge(finding)


def change_check(edit: Edit, effect: EditEffect, note: str) -> Check:
    """Check that a cosmetic edit does not raise the reward."""
    unmeasured = f"{count(effect.n, 'text')}; {FEWEST} are needed"
    if effect.scale == 0:
        unmeasured = "the rewards do not vary"
    finding = Finding(
        f"reward change, {edit.name}",
        effect.change,
        effect.n,
        SECTION,
        rule="reward change",
        note=note,
        unmeasured=unmeasured,
    )
    if effect.change is not None:
        p_value = stats.two_sided_p(effect.change)
        detectable = stats.detectable_mean(effect.change)
        finding = replace(finding, p=p_value, detectable=detectable)
    return judge(finding)


def without_small_wins(wins: Check, change: Estimate | None) -> Check:
    """Take the alarm back if edited texts win, but only by very little.

    If a model gives every edited text .001 more, all of them win.

    Args:
        wins: The check of how many edited texts win.
        change: The mean change of the reward; None if it could not be measured.
    """
    limit = THRESHOLDS["reward change"].warn
    if wins.verdict not in ("warn", "fail"):
        return wins
    if change is not None and change.value > limit:
        return wins
    note = f"{wins.note}; wins, but by no more than {short(limit)} standard deviations"
    return replace(wins, verdict="pass", note=note)


def share_if_enough(credit: np.ndarray, prompts: np.ndarray | None = None) -> Estimate | None:
    """The mean of values in [0, 1] with its interval; None for fewer than FEWEST."""
    if len(credit) < FEWEST:
        return None
    return stats.share_interval(credit, prompts)


# --- What a missing prompt does -------------------------------------------------------------------


def prompt_check(prompt: str, original: np.ndarray, without: np.ndarray) -> Check:
    """Check that accuracy is lost if the right prompt is replaced.

    The alarm is that nothing is lost. Since the p-value is that of "nothing is lost", the
    false-discovery control would take back exactly this alarm. Therefore the p-value stands in the
    note, and the check itself has none.

    Args:
        prompt: What replaces the prompt, in words.
        original: (2, pairs) rewards with the right prompt; NaN for no reward.
        without: (2, pairs) rewards with what replaces it; NaN for no reward.
    """
    present = np.isfinite(original).all(axis=0) & np.isfinite(without).all(axis=0)
    n = int(present.sum())
    finding = Finding(
        f"prompt dependence, {prompt}",
        None,
        n,
        SECTION,
        rule="prompt dependence",
        unmeasured=f"{count(n, 'pair')}; {FEWEST} are needed",
    )
    if n < FEWEST:
        return judge(finding)
    credit = stats.pair_credit(original[0] - original[1])[present]
    blind_credit = stats.pair_credit(without[0] - without[1])[present]
    lost = stats.paired_interval(credit - blind_credit)
    note = (
        f"accuracy {short(credit.mean())}, and {short(blind_credit.mean())} with {prompt}; "
        f"p = {stats.two_sided_p(lost):.2g} for no difference"
    )
    detectable = stats.detectable_mean(lost, largest=1)
    check = judge(replace(finding, estimate=lost, note=note, detectable=detectable))
    if check.verdict != "fail":
        return check
    note += "; either it does not read the prompt, or these pairs can be told apart without it"
    return replace(check, note=note)
