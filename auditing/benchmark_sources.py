"""The public benchmarks of `audit.py --benchmark NAME`: where the Hub has their rows.

Only the place is written here. The columns of the rows, as their authors publish them, decide how
they are read (reward.data.formats) and by which rule they become a number (auditing.benchmarks).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One split of a Hub data set."""

    hub_id: str
    split: str
    subset: str | None = None  # the subset of all rows; None: each row names its own


REWARD_BENCH = Part("allenai/reward-bench", "filtered")
PRIOR_SETS = tuple(
    Part("allenai/pref-test-sets", split, subset=split)
    for split in ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
)

# The parts are those that the benchmarks' own scripts load, and their main number comes first.
BENCHMARKS = {
    "reward-bench": (REWARD_BENCH,),
    "reward-bench-prior-sets": (REWARD_BENCH, *PRIOR_SETS),
    "reward-bench-2": (Part("allenai/reward-bench-2", "test"),),
    "rm-bench": (Part("THU-KEG/RM-Bench", "train"),),
    "judge-bench": (Part("ScalerLab/JudgeBench", "gpt"), Part("ScalerLab/JudgeBench", "claude")),
}
