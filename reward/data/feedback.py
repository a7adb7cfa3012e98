"""What scored rows are used for: rankings, the best of n, rejection sampling, pairs, labels.

    feedback = Feedback(FeedbackOptions(mode="pairs", min_margin=0.5))
    for row in feedback.rows(scored_rows):
        ...
    print(feedback.summary())

The rows of the modes `label`, `pairs` and `reject` load straight into TRL's trainers: DPO reads
prompt, chosen, rejected; KTO reads prompt, completion, label; SFT reads prompt, completion.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from reward.data.columns import Columns, name_in_words
from reward.data.rows_to_score import free_name
from reward.data.scored_prompts import (
    COMPLETIONS,
    PROMPTS,
    Counted,
    ScoredByPrompt,
    ScoredCompletion,
    ScoredPrompt,
    phrases,
)
from reward.data.shown import count

MODES = ("rank", "reject", "label", "pairs")
LABELS = ("pairs", "binary", "scalar")  # the forms of the mode `label`

# What is counted beside reward.data.scored_prompts.
ROWS = Counted("row", "")
SINGLE = Counted("prompt", "with one completion only: nothing to compare it with")
ALL_TIE = Counted("prompt", "whose completions all have the same reward: left out")
TIE_AT_CUT = Counted("prompt", "with a tie at the cut: the first in the file is kept")
NONE_LEFT = Counted("prompt", "of which no completion is left")
TIED_PAIR = Counted("pair", "with equal rewards: left out")
BELOW_MARGIN = Counted("pair", "below --min_margin: left out")
BELOW_REWARD = Counted("completion", "below --min_reward: left out")
BELOW_GAP = Counted("completion", "below --min_gap: left out")
GOOD = Counted("completion", "labelled true")
BAD = Counted("completion", "labelled false")


@dataclass(frozen=True)
class FeedbackOptions:
    """The options of score.py that say what scored rows become."""

    mode: str  # one of MODES
    label_as: str | None = None  # of the mode `label`: one of LABELS
    n: int | None = None  # how many completions of a prompt are kept; None: see `most_kept`
    min_reward: float | None = None  # the least reward that is kept, or labelled true
    min_gap: float | None = None  # the least difference to the mean reward of the prompt
    min_margin: float | None = None  # the least margin of a pair
    calibrated: bool = False  # margins are divided by the audit's temperature
    normalized: bool = False  # rewards are expressed in standard deviations
    conversational: bool = False  # texts become messages
    columns: Columns = Columns()  # the columns that the input names otherwise

    @property
    def task(self) -> str:
        """What the options ask for, as the command line says it."""
        if self.mode == "label":
            return f"label --as {self.label_as}"
        return self.mode

    @property
    def makes_pairs(self) -> bool:
        return self.task in ("pairs", "label --as pairs")

    @property
    def most_kept(self) -> int | None:
        """How many completions of a prompt are kept at most: all by `rank`, 1 by `reject`."""
        if self.n is None and self.mode == "reject":
            return 1
        return self.n


@dataclass(frozen=True)
class RewardUnits:
    """The figures of a checkpoint that put its rewards on a known scale."""

    temperature: float | None = None  # sigmoid(margin / temperature) is a probability
    mean: float = 0.0  # of the rewards of the validation pairs
    std: float | None = None  # of the same rewards


# Which option goes with which tasks.
TASKS_OF_OPTIONS = {
    "n": ("rank", "reject"),
    "min_reward": ("reject", "label --as binary"),
    "min_gap": ("reject",),
    "min_margin": ("pairs", "label --as pairs"),
    "calibrated": ("pairs", "label --as pairs"),
}


def is_given(value: object) -> bool:
    """Whether an option has a value, which 0 is too. Unset is None, a flag that is off False."""
    return value is not None and value is not False


def fault_of(options: FeedbackOptions) -> str | None:
    """Say in a sentence what is wrong with the options; None if nothing is."""
    if options.mode == "label" and options.label_as is None:
        return f"--mode label needs --as {'|'.join(LABELS)}"
    if options.mode != "label" and options.label_as is not None:
        return f"--as goes with --mode label; found --mode {options.mode}"
    for name, tasks in TASKS_OF_OPTIONS.items():
        value = getattr(options, name)
        if is_given(value) and options.task not in tasks:
            needed = " or ".join(f"--mode {task}" for task in tasks)
            return f"--{name} goes with {needed}; found --mode {options.task}"
    for name in ("min_reward", "min_gap", "min_margin"):
        value = getattr(options, name)
        if value is not None and not math.isfinite(value):
            return f"--{name} {value}: a finite number is needed"
    if options.n is not None and options.n < 1:
        return f"--n {options.n}: at least 1 is needed"
    if options.calibrated and options.normalized:
        return "--calibrated and --normalized are two scales of a margin: give one of them"
    return None


# --- One prompt -----------------------------------------------------------------------------------


class RankedCompletion(NamedTuple):
    """A completion and its place among those of its prompt."""

    rank: int  # 1 is best; equal rewards share a rank, and the next one is as if they did not
    scored: ScoredCompletion


def ranking(prompt: ScoredPrompt) -> list[RankedCompletion]:
    """The completions by their reward, the best first; the order of the file decides ties."""
    in_order = sorted(prompt.completions, key=lambda scored: -scored.reward)
    ranked = []
    for place, scored in enumerate(in_order, start=1):
        rank = place
        if ranked and ranked[-1].scored.reward == scored.reward:
            rank = ranked[-1].rank
        ranked.append(RankedCompletion(rank, scored))
    return ranked


def mean_reward(prompt: ScoredPrompt) -> float:
    """The mean reward of a prompt's completions."""
    return math.fsum(scored.reward for scored in prompt.completions) / len(prompt.completions)


class ScoredPair(NamedTuple):
    """Two completions of one prompt."""

    chosen: ScoredCompletion  # the one with the higher reward
    rejected: ScoredCompletion

    @property
    def margin(self) -> float:
        return self.chosen.reward - self.rejected.reward


def every_pair(prompt: ScoredPrompt) -> Iterator[ScoredPair]:
    """All K(K-1)/2 pairs of K completions, the best completion's first."""
    in_order = [ranked.scored for ranked in ranking(prompt)]
    return itertools.starmap(ScoredPair, itertools.combinations(in_order, 2))


def best_against_worst(prompt: ScoredPrompt) -> ScoredPair:
    """The pair with the largest margin, which online DPO trains on (arXiv 2405.07863)."""
    in_order = ranking(prompt)
    return ScoredPair(in_order[0].scored, in_order[-1].scored)


def sigmoid(value: float) -> float:
    """Return 1 / (1 + exp(-value)), in a form that cannot overflow."""
    return 0.5 + 0.5 * math.tanh(value / 2)


def chance_to_win(margin: float, temperature: float) -> float:
    """Return the Bradley-Terry model's probability that the better completion wins."""
    return sigmoid(margin / temperature)


# --- All prompts ----------------------------------------------------------------------------------


class Feedback:
    """A second pass over scored rows: rows out, and counts of all that is left out.

    Args:
        options: What the rows become; `fault_of` finds nothing wrong with them.
        units: The checkpoint's figures that `calibrated` and `normalized` need.
    """

    def __init__(self, options: FeedbackOptions, units: RewardUnits | None = None):
        self.options = options
        self.units = units or RewardUnits()
        self.scored = ScoredByPrompt(options.conversational, options.columns)
        self.counts = self.scored.counts

    def rows(self, scored_rows: Iterable[dict]) -> Iterator[dict]:
        """The rows to write, prompt by prompt; all have the same columns. To be called once.

        Args:
            scored_rows: Rows as score.py writes them, in any order.

        Raises:
            DataError: A row was not scored, or no completion has a reward.
        """
        for prompt in self.scored.prompts(scored_rows):
            for row in self._rows_of(prompt):
                self.counts[ROWS] += 1
                yield row

    def summary(self) -> str:
        """How many rows there are, what was left out, and why."""
        rows, prompts, completions = (
            count(self.counts[counted], counted.thing) for counted in (ROWS, PROMPTS, COMPLETIONS)
        )
        lines = [f"{self.options.task}: {rows} of {prompts}, {completions}"]
        lines += [f"  {phrase}" for phrase in phrases(self.counts)]
        others = self.scored.other_columns
        if others and self.options.mode in ("label", "pairs"):
            names = ", ".join(map(name_in_words, others))
            lines.append(f"  columns left out: {names}")
        if self.scored.has_texts and self.options.mode != "rank":
            lines.append(
                "  the prompts are texts: TRL's trainers put no chat template around them; "
                "--conversational writes messages"
            )
        return "\n".join(lines)

    def _rows_of(self, prompt: ScoredPrompt) -> Iterable[dict]:
        if self.options.makes_pairs:
            return (self._row_of_pair(prompt, pair) for pair in self._pairs_of(prompt))
        if self.options.mode == "label":
            return self._labelled(prompt)
        return self._ranked(prompt)

    # --- rank, reject

    def _ranked(self, prompt: ScoredPrompt) -> list[dict]:
        """The rows of the best completions, each with its rank and the other columns of its row."""
        in_order = ranking(prompt)
        kept = in_order[: self.options.most_kept]
        if len(in_order) == 1:
            self.counts[SINGLE] += 1
        cut = in_order[len(kept) :]
        if cut and cut[0].rank == kept[-1].rank:
            self.counts[TIE_AT_CUT] += 1
        mean = mean_reward(prompt)
        kept = [ranked for ranked in kept if self._is_kept(ranked.scored, mean)]
        if not kept:
            self.counts[NONE_LEFT] += 1
        rows = []
        for ranked in kept:
            row = self._row(prompt, completion=ranked.scored.completion)
            for name in self.scored.other_columns:
                row.setdefault(name, ranked.scored.others.get(name))
            new = self._reward_columns(ranked.scored.reward) | {"rank": ranked.rank}
            rows.append(row | {free_name(name, set(row)): value for name, value in new.items()})
        return rows

    def _is_kept(self, scored: ScoredCompletion, mean: float) -> bool:
        """Whether a completion passes --min_reward and --min_gap."""
        options = self.options
        if options.min_reward is not None and self._in_units(scored.reward) < options.min_reward:
            self.counts[BELOW_REWARD] += 1
            return False
        if options.min_gap is not None and self._gap(scored.reward - mean) < options.min_gap:
            self.counts[BELOW_GAP] += 1
            return False
        return True

    # --- label --as binary, scalar

    def _labelled(self, prompt: ScoredPrompt) -> list[dict]:
        rows = []
        is_binary = self.options.label_as == "binary"
        if is_binary and not self._can_be_labelled(prompt):
            return rows
        mean = mean_reward(prompt)
        for scored in prompt.completions:
            row = self._row(prompt, completion=scored.completion)
            if is_binary:
                row["label"] = self._is_good(scored, mean)
                self.counts[GOOD] += row["label"]
                self.counts[BAD] += not row["label"]
            rows.append(row | self._reward_columns(scored.reward))
        return rows

    def _can_be_labelled(self, prompt: ScoredPrompt) -> bool:
        """Whether the completions can be told apart by the mean of the prompt's rewards."""
        if self.options.min_reward is not None:
            return True
        rewards = {scored.reward for scored in prompt.completions}
        if len(prompt.completions) == 1:
            self.counts[SINGLE] += 1
        elif len(rewards) == 1:
            self.counts[ALL_TIE] += 1
        return len(rewards) > 1

    def _is_good(self, scored: ScoredCompletion, mean: float) -> bool:
        if self.options.min_reward is not None:
            return self._in_units(scored.reward) >= self.options.min_reward
        return scored.reward >= mean

    # --- pairs, label --as pairs

    def _pairs_of(self, prompt: ScoredPrompt) -> Iterator[ScoredPair]:
        """The pairs of a prompt whose margin is large enough."""
        if len(prompt.completions) == 1:
            self.counts[SINGLE] += 1
            return
        if self.options.mode == "pairs":
            pairs = every_pair(prompt)
        else:
            pairs = iter([best_against_worst(prompt)])
        for pair in pairs:
            if pair.margin == 0:
                self.counts[TIED_PAIR] += 1
            elif self._gap(pair.margin) < (self.options.min_margin or 0):
                self.counts[BELOW_MARGIN] += 1
            else:
                yield pair

    def _row_of_pair(self, prompt: ScoredPrompt, pair: ScoredPair) -> dict:
        row = self._row(prompt, chosen=pair.chosen.completion, rejected=pair.rejected.completion)
        row["reward_chosen"] = pair.chosen.reward
        row["reward_rejected"] = pair.rejected.reward
        row["margin"] = pair.margin
        if self.options.calibrated:
            row["calibrated_margin"] = self._gap(pair.margin)
            row["chosen_probability"] = chance_to_win(pair.margin, self.units.temperature)
        if self.options.normalized:
            row["normalized_margin"] = self._gap(pair.margin)
        return row

    # --- all modes

    def _row(self, prompt: ScoredPrompt, **completions) -> dict:
        """The texts of a row, and the tools where some row of the file has them."""
        row = {"prompt": prompt.prompt, **completions}
        if self.scored.has_tools:
            row["tools"] = prompt.tools
        return row

    def _reward_columns(self, reward: float) -> dict:
        columns = {"reward": reward}
        if self.options.normalized:
            columns["normalized_reward"] = self._in_units(reward)
        return columns

    def _in_units(self, reward: float) -> float:
        """A reward as --min_reward is compared with it."""
        if self.options.normalized:
            return (reward - self.units.mean) / self.units.std
        return reward

    def _gap(self, difference: float) -> float:
        """A difference of rewards as --min_gap and --min_margin are compared with it."""
        if self.options.calibrated:
            return difference / self.units.temperature
        if self.options.normalized:
            return difference / self.units.std
        return difference
