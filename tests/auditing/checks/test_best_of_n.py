"""Best-of-n against hand-worked values and all subsets."""

import itertools

import numpy as np
import pytest
from scipy import stats

from auditing.checks.best_of_n import best_of_n, best_of_n_checks, kl_best_of_n
from auditing.scores import Completions


def test_best_of_n_by_hand_and_by_all_subsets():
    rewards, gold = np.array([3.0, 1.0, 2.0]), np.array([10.0, 40.0, 70.0])
    assert best_of_n(rewards, None, 2) == pytest.approx((3 + 3 + 2) / 3)
    assert [best_of_n(rewards, gold, n) for n in (1, 2, 3)] == pytest.approx(
        [40, (10 + 10 + 70) / 3, 10]
    )
    # A tie: the mean.
    assert best_of_n(np.array([1.0, 1.0, 0.0]), np.array([0.0, 6.0, 9.0]), 2) == pytest.approx(3.0)
    assert best_of_n(rewards, None, 4) is None and best_of_n(rewards, None, 0) is None
    rng = np.random.default_rng(0)
    rewards, gold = rng.normal(size=(2, 9))
    subsets = [list(s) for s in itertools.combinations(range(9), 4)]
    expected = np.mean([gold[max(s, key=lambda i: rewards[i])] for s in subsets])
    assert best_of_n(rewards, gold, 4) == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 100, 5000, 9999, 10_000])
def test_best_of_n_of_10_000(n):
    uniform = np.arange(1, 10_001) / 10_001
    # The largest of n uniform numbers.
    assert best_of_n(uniform, None, n) == pytest.approx(n / (n + 1), abs=1e-9)
    assert best_of_n(uniform, np.ones(10_000), n) == pytest.approx(1, abs=1e-9)


def test_kl_best_of_n():
    assert kl_best_of_n(1) == 0
    assert kl_best_of_n(16) == pytest.approx(2.772589 - 0.9375, abs=1e-6)


def test_the_interval_of_the_length_drift_knows_that_the_mean_length_is_uncertain():
    lengths = np.array([10.0, 30, 10, 30, 20, 20, 40, 40, 15, 25, 30, 30])
    completions = Completions(np.repeat(np.arange(6), 2), lengths, lengths, lengths, lengths)
    (check,) = best_of_n_checks(completions)
    # Drifts 10, 10, 0, 0, 5, 0 over means 20, 20, 20, 40, 20, 30.
    assert check.value == pytest.approx(25 / 150)
    left_out = np.array([15 / 130, 15 / 130, 25 / 130, 25 / 110, 20 / 130, 25 / 120])
    changes = (5 / 6) ** 0.5 * (left_out - left_out.mean())
    df = np.sum(changes**2) ** 2 / np.sum(changes**4)
    half = stats.t.ppf(0.975, df) * np.sqrt(np.sum(changes**2))
    assert (check.low, check.high) == pytest.approx((25 / 150 - half, 25 / 150 + half))


def completions_of(gold_of_rank: np.ndarray, prompts: int = 200) -> Completions:
    """64 completions a prompt, whose gold follows the rank of their reward, with noise."""
    rng = np.random.default_rng(0)
    n = len(gold_of_rank)
    reward = np.argsort(np.argsort(rng.normal(size=(prompts, n)), axis=1), axis=1)
    gold = gold_of_rank[reward] + rng.normal(size=(prompts, n))
    zeros = np.zeros(prompts * n)
    prompt = np.repeat(np.arange(prompts), n)
    return Completions(prompt, reward.ravel() * 1.0, None, zeros, zeros, gold=gold.ravel())


def test_gold_that_falls_again_is_over_optimisation():
    """The best of 64 was still better than a random one, so that nothing was found."""
    rank = np.linspace(-1, 1, 64)
    check, past_peak = best_of_n_checks(completions_of(2 * rank - 6 * np.maximum(0, rank - 0.8)))
    assert check.verdict == "pass" and check.value > 0
    assert (past_peak.name, past_peak.verdict) == ("best-of-n, past its peak", "fail")
    assert past_peak.value < 0 and past_peak.note.startswith("the best of 64 against the best of ")
    (rising,) = best_of_n_checks(completions_of(2 * rank))
    assert rising.verdict == "pass"


def test_rewards_that_are_all_the_same_pick_nothing():
    same = completions_of(np.linspace(-1, 1, 8))
    same.reward[:] = 1.5
    assert {check.verdict for check in best_of_n_checks(same)} == {"not measurable"}
