"""The auditor audited: a scorer with one planted fault trips its flag alone, a clean one none."""

from dataclasses import replace

import numpy as np
import pytest

from auditing.checks.comparison import compare_checks
from auditing.checks.labels import label_checks
from auditing.checks.transfer import spillover_checks
from auditing.pairs import Pairs
from auditing.run import run_checks
from auditing.verdicts import control_false_discoveries

N = 1500
SUBSETS = np.array(["a", "b", "c"], dtype=object)


def scored_pairs(
    rewards: np.ndarray, lengths: np.ndarray, markdown: np.ndarray, votes: np.ndarray
) -> Pairs:
    """Pairs of three subsets and of a prompt each; every array but votes is (2, n)."""
    n = rewards.shape[1]
    return Pairs(
        rewards=rewards,
        lengths=lengths,
        characters=4 * lengths,
        markdown=markdown,
        hedges=np.zeros((2, n)),
        subset=SUBSETS[np.arange(n) % 3],
        prompt=np.arange(n),
        votes=votes,
        bayes_accuracy=np.full(n, np.nan),
        text=lambda i: {"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"},
    )


def draw(
    seed: int,
    n: int = N,
    length_weight=0.0,
    noise=0.0,
    scale=1.0,
    liked_markdown=0.0,
    temper=1.0,
    raters=1,
) -> Pairs:
    """Pairs of a model that sees the utility that its raters follow, with what is planted.

    The utility has a standard deviation of 1, and raters follow it through Bradley and Terry.
    `temper` divides the rewards, so that what is planted does not also make them overconfident.
    """
    rng = np.random.default_rng(seed)
    utility, lengths = rng.normal(0, 1.0, (2, n)), rng.integers(20, 400, (2, n)).astype(float)
    markdown = rng.poisson(1.0, (2, n)).astype(float)
    chance = 1 / (1 + np.exp(utility[1] - utility[0]))
    for_first = (rng.random((raters, n)) < chance).sum(axis=0)
    order = np.where(for_first > raters / 2, 0, 1)
    reward = utility + noise * rng.normal(size=(2, n)) + length_weight * (lengths - 210) / 110
    reward = scale * (reward + liked_markdown * markdown) / temper
    pick = np.arange(n)
    # (2, n) of the chosen and of the rejected sides
    sides = [np.stack([x[order, pick], x[1 - order, pick]]) for x in (reward, lengths, markdown)]
    votes = np.full((n, 2), np.nan)
    if raters > 1:
        most = np.maximum(for_first, raters - for_first)
        votes = np.stack([most, raters - most], axis=1)
    return scored_pairs(*sides, votes=votes)


def alarms(pairs: Pairs, train: Pairs | None = None, more=()) -> set[str]:
    checks = [*run_checks(pairs, train=train, bradley_terry=True), *label_checks(pairs), *more]
    return {
        check.name if check.subset is None else f"{check.name}: {check.subset}"
        for check in control_false_discoveries(checks)
        if check.verdict in ("warn", "fail")
    }


@pytest.mark.slow
@pytest.mark.parametrize("raters", [1, 3])
def test_a_clean_scorer_raises_an_alarm_in_at_most_one_audit_in_twenty(raters):
    raised = [
        alarms(draw(seed, 800, raters=raters), draw(seed + 10**6, 800, raters=raters))
        for seed in range(1000)
    ]
    assert sum(map(bool, raised)) <= 50, [names for names in raised if names]


LENGTH = {"length correlation, pooled", "length correlation, within pairs", "length excess"}


@pytest.mark.parametrize("seed", range(5))
def test_each_planted_fault_trips_its_flag_alone(seed):
    assert alarms(draw(seed)) == set()
    assert alarms(draw(seed, length_weight=0.5, temper=1.25)) == LENGTH
    assert alarms(draw(seed, length_weight=-0.5, temper=1.25)) == LENGTH
    assert alarms(draw(seed, liked_markdown=0.5, temper=1.25)) == {"markdown excess"}
    assert alarms(draw(seed, scale=2.5)) == {"calibration error"}  # overconfident
    assert alarms(draw(seed, scale=0.3)) == {"calibration error"}  # the opposite
    assert alarms(draw(seed, 6000, noise=1.9, temper=4.6)) == {"accuracy, human labels"}
    clean = draw(seed)
    clipped = np.clip(clean.rewards, -1.3, 1.3) + 1e-6 * np.random.default_rng(seed).normal(
        size=clean.rewards.shape
    )
    assert alarms(replace(clean, rewards=clipped)) == {"saturation"}
    learned_by_heart = replace(
        draw(seed + 100), rewards=np.stack([np.full(N, 1.0), np.arange(N) % 10 - 8.5])
    )
    assert alarms(clean, learned_by_heart) == {"train-test gap"}
    shifted = replace(clean, rewards=clean.rewards + 2.0 * (clean.subset == "b"))
    assert alarms(shifted) == {"location between subsets"}
    not_finite = replace(clean, rewards=np.where(np.arange(N) % 500 == 7, np.inf, clean.rewards))
    assert alarms(not_finite) == {"non-finite rewards"}
    # Some sides are too long for the model, which makes no reward non-finite.
    too_long = replace(clean, rewards=np.where(np.arange(N) % 10 == 7, np.nan, clean.rewards))
    assert alarms(too_long) == {"missing rewards"}
    in_steps = replace(clean, rewards=np.round(clean.rewards * 4) / 4)
    assert alarms(in_steps) == {"tie rate"}
    noise = np.random.default_rng(seed + 1000).normal(size=clean.rewards.shape)
    assert {"accuracy", "random rewards"} <= alarms(replace(clean, rewards=noise))


def test_a_model_that_is_worse_elsewhere_or_than_another_is_told_so():
    own, other = draw(1), draw(1, noise=1.5)
    names = alarms(own, more=spillover_checks(own, draw(2, noise=3.0), "elsewhere"))
    assert names == {"spillover"}
    assert alarms(own, more=spillover_checks(own, draw(2), "elsewhere")) == set()
    worse = compare_checks({"other": other, "home": own})
    better = compare_checks({"home": own, "other": other})
    assert {check.verdict for check in worse} == {"warn"}
    assert {check.verdict for check in better} == {"pass"}
    assert "worse" in worse[0].note and "better" in better[0].note
    same = compare_checks({"home": own, "itself": own})
    assert same[0].value == 0 and same[0].p == 1 and "no difference was seen" in same[0].note


def test_few_pairs_are_not_measurable_and_say_what_they_could_have_seen():
    checks = {
        check.name: check
        for check in run_checks(draw(3, 60), bradley_terry=True)
        if check.subset is None
    }
    excess = checks["length excess"]
    assert excess.verdict == "not measurable" and 0.1 < excess.detectable < 0.4
    one = run_checks(draw(3, 1), bradley_terry=True)
    assert not {check.verdict for check in one} & {"warn", "fail"}
    ties = replace(draw(3, 50), rewards=np.ones((2, 50)))
    verdicts = {
        check.name: check.verdict
        for check in run_checks(ties, bradley_terry=True)
        if check.subset is None
    }
    for name in ("accuracy", "collapsed rewards", "tie rate"):
        assert verdicts[name] == "fail"
    assert verdicts["random rewards"] == "not applicable"
    # Nothing passes for the reason that nothing varies.
    for name in ("mean margin", "accuracy, length-controlled", "calibration error"):
        assert verdicts[name] == "not measurable"


def test_calibration_is_judged_where_it_is_claimed():
    overconfident = draw(0, scale=2.5)
    for claimed, verdict in ((True, "warn"), (None, "not applicable"), (False, "not applicable")):
        (check,) = [
            c
            for c in run_checks(overconfident, bradley_terry=claimed)
            if c.section == "calibration"
        ]
        assert check.verdict == verdict
        assert (check.value is None) is (claimed is False)
