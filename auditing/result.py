"""The result of an audit, from which auditing.report makes the pages and audit.json."""

from dataclasses import dataclass, field

from auditing.conclusion import Conclusion, conclude
from auditing.pairs import Pairs
from auditing.verdicts import Check

Side = list[dict] | str  # a prompt or a completion: a list of messages, or a string
Strip = list[tuple[str, float]]  # the tokens of a completion, each with the reward after it


@dataclass
class WorstError:
    """A pair on which the model is sure of the wrong side."""

    prompt: Side
    chosen: Side
    rejected: Side
    margin: float  # reward(chosen) - reward(rejected), below 0
    subset: str
    # None if the audit had no model, or if the model's head reads no single token.
    chosen_strip: Strip | None = None
    rejected_strip: Strip | None = None


@dataclass
class ExtremeCompletion:
    """A completion with one of the highest or of the lowest rewards."""

    prompt: Side
    completion: Side
    reward: float
    side: str  # "chosen" or "rejected" by the raters
    subset: str
    length: int  # in the unit of the pairs' lengths
    marks: list[str]  # of style, in words
    strip: Strip | None = None  # None if it was not measured


@dataclass
class ReliabilityBin:
    """Pairs of about the same confidence: a point of the reliability diagram."""

    confidence: float  # mean of sigmoid(|margin|)
    accuracy: float
    low: float  # 95% interval of the accuracy
    high: float
    n: int  # pairs


@dataclass
class LengthClass:
    """Pairs with about the same length difference: a point of the curve of accuracy over length."""

    start: float  # smallest length(chosen) - length(rejected) in the class; `from` in audit.json
    end: float  # largest one; `to` in audit.json
    value: float | None  # accuracy
    low: float | None  # its 95% interval
    high: float | None
    n: int  # pairs


@dataclass
class BestOfN:
    """The best of n completions by reward: means over prompts, None for what is unknown."""

    n: int  # completions per prompt to pick from
    kl: float  # from the policy, in nats
    reward: float | None = None
    gold: float | None = None  # the gold reward
    length: float | None = None  # characters
    hedges: float | None = None
    markdown: float | None = None  # marks of markdown


@dataclass
class ProbeExample:
    """A completion before and after an edit, with its rewards."""

    prompt: Side
    before: Side
    after: Side
    reward_before: float
    reward_after: float

    @property
    def gain(self) -> float:
        """How much the edit adds to the reward."""
        return self.reward_after - self.reward_before


@dataclass
class ProbeResult:
    """The effect of one edit of real completions on their rewards; None for what is undefined."""

    probe: str  # the edit's name
    kind: str  # "cosmetic" or "degraded"
    imitates: str  # which fault of reward models the edit looks for, and its source
    n: int  # edited completions with a reward
    skipped: int  # completions that the edit does not fit, or that have no reward
    change: float | None  # mean over completions, in standard deviations of the originals' rewards
    low: float | None  # 95% interval of the change
    high: float | None
    wins: float | None  # share of edited completions that beat their original; ties count one half
    flips: float | None  # share of the pairs in the right order that the edit turns around
    largest: ProbeExample | None = None  # the completion whose reward rose most, or fell least
    typical: ProbeExample | None = None  # the completion with the median change


@dataclass
class RankedModel:
    """A model in the ranking of all compared models."""

    name: str
    is_audited: bool  # False for the models of --compare
    rank: int  # 1 + how many models are better by a difference that counts
    accuracy: float
    low: float  # 95% interval of the accuracy
    high: float


@dataclass
class ModelCouple:
    """Two of the compared models, on the pairs that all models gave finite rewards."""

    better: str
    worse: str
    difference: float  # accuracy of the better one - that of the worse one, at least 0
    low: float  # 95% interval of the difference
    high: float
    p: float  # under the hypothesis of no difference, corrected for the number of couples
    differs: bool  # whether p is small enough for the difference to count
    disagree: float  # share of the pairs that they order differently; a tie of one counts one half
    detectable: float | None  # the smallest difference that n shows with 80% power


@dataclass
class Ranking:
    """All compared models, by accuracy on the same pairs."""

    models: list[RankedModel]  # the most accurate first
    couples: list[ModelCouple]  # every two of them
    n: int  # pairs


@dataclass
class Audit:
    """Everything that the pages and audit.json are made of."""

    pairs: Pairs  # all of them, also those without finite rewards
    checks: list[Check]
    # What was audited, on which pairs, with which versions; in the order to print.
    identity: dict[str, str]
    # What this audit could not see, and why: one sentence each.
    not_measured: list[str] = field(default_factory=list)
    worst: list[WorstError] = field(default_factory=list)  # the worst first
    top: list[ExtremeCompletion] = field(default_factory=list)  # the highest reward first
    bottom: list[ExtremeCompletion] = field(default_factory=list)  # the lowest reward first
    reliability: list[ReliabilityBin] = field(default_factory=list)
    by_length: list[LengthClass] = field(default_factory=list)
    best_of_n: list[BestOfN] = field(default_factory=list)
    # RM-Bench: accuracy by the chosen (down) and the rejected side's style (across), 3 x 3.
    style_matrix: list[list[float]] | None = None
    probes: list[ProbeResult] = field(default_factory=list)
    # The name of a rule, such as "the longer wins" -> its accuracy on the same pairs.
    baselines: dict[str, float] = field(default_factory=dict)
    temperature: float | None = None  # divides margins, to calibrate them
    ranking: Ranking | None = None  # None without --compare

    @property
    def conclusion(self) -> Conclusion:
        """What the checks come to; final once auditing.run.settle has settled the verdicts."""
        return conclude(self.checks)
