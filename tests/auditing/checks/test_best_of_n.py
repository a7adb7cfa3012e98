"""Best-of-n against hand-worked values and all subsets."""

import itertools

import numpy as np
import pytest

from auditing.checks.best_of_n import best_of_n, kl_best_of_n


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
