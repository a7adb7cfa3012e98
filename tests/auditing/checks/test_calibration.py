"""Calibration against hand-worked values, scikit-learn and statsmodels; what its test keeps."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import special, stats
from sklearn.metrics import brier_score_loss, log_loss

from auditing import stats as ours
from auditing.checks import calibration
from auditing.options import AuditOptions
from auditing.run_checkpoint import is_bradley_terry
from reward.data.files import DataError


def scored(rng, n, temperature=1.0, spread=1.5):
    """Margins whose sigmoid(m / temperature) is the truth."""
    x = rng.normal(size=n) * spread
    return np.where(rng.random(n) < special.expit(x), x, -x) * temperature


def test_reliability_by_hand():
    margins = np.concatenate([np.repeat([1.0, -1.0], [7, 3]), np.repeat([2.0, -2.0], [9, 1])])
    low, high = calibration.reliability(margins, bins=2)
    assert asdict(low) == pytest.approx(
        {"confidence": special.expit(1), "accuracy": 0.7, "n": 10}
        | dict(zip(("low", "high"), ours.wilson_interval(7, 10), strict=True))
    )
    assert (high.confidence, high.accuracy) == pytest.approx((special.expit(2), 0.9))
    # the share of votes for the side that the model prefers; without votes the label is one
    votes = np.array([[3, 1], [1, 3], [2, 2], [0, 0], [1, 1]])
    (one,) = calibration.reliability(np.array([1.0, -1.0, 5.0, 1.0, 0.0]), votes)
    assert one.accuracy == pytest.approx((0.75 + 0.75 + 0.5 + 1 + 0.5) / 5)
    assert calibration.reliability(np.array([])) == []


# --- The error, and whether it could be chance ----------------------------------------------------


def test_calibration_error_by_hand():
    margins = np.concatenate([np.repeat([1.0, -1.0], [70, 30]), np.repeat([2.0, -2.0], [60, 40])])
    estimate, p = calibration.calibration_error(margins)
    d = np.array([0.7, 0.6]) - special.expit([1, 2])
    squared = np.mean(d**2 - np.array([0.7 * 0.3, 0.6 * 0.4]) / 99)
    assert estimate.value == pytest.approx(math.sqrt(squared))
    v = special.expit([1, 2]) * special.expit([-1, -2])
    assert p == pytest.approx(stats.chi2.sf(np.sum(100 * d**2 / v), 2))
    assert calibration.calibration_error(margins[:19]) is None
    assert calibration.calibration_error(np.zeros(40)) == ((0.0, 0.0, 0.0), 1.0)


def test_calibration_test_keeps_its_level_and_error_is_near_zero():
    rng, p, errors = np.random.default_rng(0), [], []
    for _ in range(1000):
        estimate, p_value = calibration.calibration_error(scored(rng, 300))
        p.append(p_value)
        errors.append(estimate)
    assert 0.03 < np.mean(np.array(p) < 0.05) < 0.07 and np.mean(np.array(p) < 0.01) < 0.02
    assert np.mean([e.low == 0 for e in errors]) > 0.97
    # the plain binned error is .07 here; the debiased one is 0 in half of the cases
    assert np.mean([e.value for e in errors]) < 0.03


@pytest.mark.parametrize("spread", [0.3, 6.0])
def test_calibration_test_keeps_its_level_at_extreme_confidences(spread):
    rng = np.random.default_rng(1)
    p = np.array(
        [calibration.calibration_error(scored(rng, 200, spread=spread))[1] for _ in range(1000)]
    )
    assert np.mean(p < 0.05) < 0.075 and np.mean(p < 0.01) < 0.025


def test_rows_that_stand_there_four_times_count_once():
    margins = scored(np.random.default_rng(1), 200)
    prompts = np.arange(200)
    once = calibration.calibration_error(margins, None, prompts)
    four_times = calibration.calibration_error(np.repeat(margins, 4), None, np.repeat(prompts, 4))
    assert four_times[0] == pytest.approx(once[0], abs=1e-9)
    assert four_times[1] == pytest.approx(once[1], abs=1e-9)
    assert (
        calibration.calibration_error(np.repeat(margins[:19], 4), None, prompts[:76] // 4) is None
    )


def test_calibration_test_keeps_its_level_where_prompts_repeat():
    rng, alarms, pooled = np.random.default_rng(0), 0, 0
    prompts = np.repeat(np.arange(60), 4)
    for _ in range(200):
        margins = np.repeat(scored(rng, 60), 4)
        alarms += calibration.calibration_error(margins, None, prompts)[1] < 0.05
        pooled += calibration.calibration_error(margins)[1] < 0.05
    assert alarms / 200 < 0.08 and pooled / 200 > 0.3


def test_calibration_test_with_votes_that_hang_together():
    rng, alarms = np.random.default_rng(0), []
    for _ in range(500):
        margins = rng.normal(size=300)
        truth = special.expit(margins)
        # Right on average, not pair by pair.
        votes = rng.binomial(5, rng.beta(2 * truth, 2 * (1 - truth)))
        alarms.append(
            calibration.calibration_error(margins, np.stack([votes, 5 - votes], axis=1))[1] < 0.05
        )
    assert 0.02 < np.mean(alarms) < 0.08


def test_calibration_error_of_an_overconfident_model():
    rng, hits = np.random.default_rng(0), 0
    many = np.abs(scored(rng, 1_000_000, 3.0))
    truth = math.sqrt(np.mean((special.expit(many / 3) - special.expit(many)) ** 2))
    for _ in range(300):
        estimate, p = calibration.calibration_error(scored(rng, 500, 3.0))
        hits += estimate.low <= truth <= estimate.high
        assert p < 0.01
    assert 0.91 < hits / 300 < 0.985
    # Expects no error at all.
    extreme, p = calibration.calibration_error(np.where(rng.random(400) < 0.7, 60.0, -60.0))
    assert extreme.value == pytest.approx(0.3, abs=0.06) and p < 1e-6


# --- Scores and temperature -----------------------------------------------------------------------


def test_brier_and_nll_are_scikit_learns():
    rng = np.random.default_rng(0)
    margins, votes = rng.normal(size=50) * 2, rng.integers(0, 4, size=(50, 2)) + np.array([1, 0])
    p = special.expit(margins)
    weights = (
        votes / votes.sum(axis=1, keepdims=True)
    ).T.ravel()  # every vote is a row, every pair counts 1
    labels, twice = np.repeat([1, 0], 50), np.tile(p, 2)
    assert calibration.brier(margins, votes) == pytest.approx(
        brier_score_loss(labels, twice, sample_weight=weights)
    )
    assert calibration.nll(margins, votes) == pytest.approx(
        log_loss(labels, twice, sample_weight=weights)
    )
    assert calibration.brier(margins) == pytest.approx(np.mean((1 - p) ** 2))
    assert calibration.nll(margins) == pytest.approx(log_loss(np.ones(50), p, labels=[0, 1]))
    assert (
        calibration.nll(np.array([-2000.0])) == 2000 and calibration.brier(np.array([0.0])) == 0.25
    )
    assert calibration.nll(np.array([])) is None and calibration.brier(np.array([])) is None


def test_fit_temperature():
    margins = scored(np.random.default_rng(0), 500, 3.0)
    temperature = calibration.fit_temperature(margins)
    assert temperature == pytest.approx(
        1 / sm.Logit(np.ones(500), margins[:, None]).fit(disp=0).params[0], rel=1e-6
    )
    assert calibration.fit_temperature(
        scored(np.random.default_rng(0), 50_000, 3.0)
    ) == pytest.approx(3, abs=0.1)
    around = [calibration.nll(margins / (temperature * factor)) for factor in (0.99, 1.0, 1.01)]
    assert around[1] < min(around[0], around[2])
    assert calibration.fit_temperature(np.array([1.0, 2.0])) is None  # right on every pair: T = 0
    assert (
        calibration.fit_temperature(-np.abs(margins)) is None
        and calibration.fit_temperature(np.array([])) is None
    )


def test_temperature_on_folds():
    rng = np.random.default_rng(0)
    gain = calibration.temperature_on_folds(scored(rng, 5000, 3.0))
    assert gain.temperature == pytest.approx(3, abs=0.3)
    assert gain.error_before > 0.1 > 0.05 > gain.error_after
    assert gain.nll_before > gain.nll_after + 0.1
    calm = calibration.temperature_on_folds(scored(rng, 1000))
    # Nothing to gain on pairs that it was not fitted on.
    assert calm.nll_after > calm.nll_before - 0.002
    assert calibration.temperature_on_folds(np.ones(100)) is None


def test_temperature_after_numbers_are_held_out():
    # One pair decides the temperature.
    margins = np.concatenate([scored(np.random.default_rng(0), 60, 2.0), [-40.0]])
    gain = calibration.temperature_on_folds(margins)
    assert gain.nll_after > calibration.nll(margins / gain.temperature) + 0.1


def test_who_says_that_margins_are_log_odds():
    ranked, scored_by_others = {"loss_type": "bradley_terry"}, AuditOptions(bradley_terry=True)
    assert is_bradley_terry(ranked, AuditOptions()) is True
    assert is_bradley_terry({"loss_type": "mse"}, AuditOptions()) is False
    assert is_bradley_terry(None, AuditOptions()) is None
    assert is_bradley_terry(None, scored_by_others) is True
    with pytest.raises(DataError, match="loss_type: mse, whose margins are no log-odds; leave"):
        is_bradley_terry({"loss_type": "mse"}, scored_by_others)


def test_a_temperature_that_held_out_pairs_speak_against_is_1():
    """Of 20 calibrated pairs it was .3 to 2.3, and score.py divided margins by it."""
    rng = np.random.default_rng(0)
    published = []
    for _ in range(40):
        margins = rng.normal(size=20)
        right = rng.random(20) < 1 / (1 + np.exp(-np.abs(margins)))
        gain = calibration.temperature_on_folds(np.where(right, 1, -1) * np.abs(margins))
        if gain is not None:
            assert (gain.published == 1.0) is (gain.nll_after >= gain.nll_before)
            published.append(gain.published)
    assert published.count(1.0) > len(published) / 2
    margins = 3 * rng.normal(size=2000)
    right = rng.random(2000) < 1 / (1 + np.exp(-np.abs(margins) / 3))
    gain = calibration.temperature_on_folds(np.where(right, 1, -1) * np.abs(margins))
    assert gain.published == gain.temperature == pytest.approx(3, rel=0.2)
