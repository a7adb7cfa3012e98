"""What an audit found, before it is written down: auditing.report.report makes the pages of it."""

from dataclasses import dataclass, field

from auditing.pairs import Pairs
from auditing.verdicts import Check


@dataclass
class Audit:
    pairs: Pairs  # all of them, also those without finite rewards
    checks: list[Check]
    identity: dict[str, str]  # of the run, in the order to print
    not_measured: list[str] = field(
        default_factory=list
    )  # one sentence each: what this audit could not see, and why
    # Worst errors and highest / lowest rewards: dicts with `prompt, chosen, rejected, margin, subset` and with `prompt,
    # completion, reward, side, subset, length, marks`; `strips` where the model was at hand: a list of [(token, reward after
    # it), ...], of the chosen and the rejected side, or of the completion; None where a head reads no single token.
    worst: list[dict] = field(default_factory=list)
    top: list[dict] = field(default_factory=list)
    bottom: list[dict] = field(default_factory=list)
    # Curves to draw: reliability [{"confidence", "accuracy", "low", "high", "n"}], accuracy by length difference [{"from",
    # "to", "value", "low", "high", "n"}], best-of-n [{"n", "kl", "reward", "gold", "length", "hedges", "markdown"}] (values
    # may be None), RM-Bench's style matrix [[...], [...], [...]].
    reliability: list[dict] = field(default_factory=list)
    by_length: list[dict] = field(default_factory=list)
    best_of_n: list[dict] = field(default_factory=list)
    style_matrix: list[list[float]] | None = None
    # {"probe", "change", "low", "high", "wins", "flips", "n", "before", "after"}
    probes: list[dict] = field(default_factory=list)
    baselines: dict[str, float] = field(
        default_factory=dict
    )  # "the longer wins" -> accuracy on the same pairs
    temperature: float | None = None
