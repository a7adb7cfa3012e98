"""How often raters agree and err, against hand-worked values and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from auditing.checks.raters import majority_error, noise_from_votes, rater_agreement


def test_rater_agreement():
    # 3:0 always agree; of 2:1's three couples of votes one agrees; 1:0 has no second vote
    assert rater_agreement(np.array([[3, 0], [2, 1], [1, 0]])) == pytest.approx((1 + 1 / 3) / 2)
    assert rater_agreement(np.array([[1, 0], [0, 0]])) is None


def test_noise_from_votes():
    # errors of 10%: three votes agree with .9^2 + .1^2 = .82
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        wrong = rng.binomial(3, 0.1, size=200)
        estimate = noise_from_votes(np.stack([3 - wrong, wrong], axis=1))
        hits += estimate.low <= 0.1 <= estimate.high
    assert 0.91 < hits / 400 < 0.985
    by_hand = noise_from_votes(np.array([[3, 0], [2, 1], [3, 0]]))  # agreement 7/9
    assert by_hand.value == pytest.approx((1 - math.sqrt(5 / 9)) / 2)
    assert noise_from_votes(np.array([[1, 1]])).value == 0.5
    unanimous = noise_from_votes(np.array([[3, 0]] * 20))
    assert (unanimous.value, unanimous.low) == (0, 0) and 0 < unanimous.high < 0.2
    assert noise_from_votes(np.array([[1, 0]])) is None


def test_majority_error():
    assert majority_error(0.2, 3) == pytest.approx(3 * 0.04 * 0.8 + 0.008)
    assert majority_error(0.2, 2) == pytest.approx(0.04 + 0.5 * 0.32)
    assert majority_error(0.3, 101) == pytest.approx(stats.binom.sf(50, 101, 0.3))
    assert majority_error(0.3, 5001) == pytest.approx(0, abs=1e-100)
    assert (majority_error(0.0, 3), majority_error(0.5, 7)) == pytest.approx((0, 0.5))
