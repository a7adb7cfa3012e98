"""Is sigmoid(margin) the chance that a rater prefers the chosen side, and how sure are the raters? NumPy only.

Margins are (n,), votes (n, 2) for chosen and for rejected; without votes, and on pairs without any, the label is one vote for
the chosen side. Top-label form: confidence = sigmoid(|m|), outcome = the share of votes for the side that the model prefers (.5
for a tie of the model), because which side is called chosen is the raters' doing and no claim of the model's.
"""

import math
from dataclasses import replace

import numpy as np
from scipy.special import expit

from auditing import stats
from auditing.pairs import Pairs
from auditing.result import ReliabilityBin
from auditing.stats import (
    RESAMPLES,
    Estimate,
    chi2_sf,
    equal_mass,
    logistic,
    share_interval,
)
from auditing.verdicts import THRESHOLDS, Check, Finding, judge, short, with_verdict

LEAST_VARIANCE = 5.0  # of the number of right answers in a bin of the test


# ---------------------------------------------------------------------------------------------------------- Calibration


def chosen_share(margins: np.ndarray, votes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(share of votes for the chosen side (n,), number of votes (n,))"""
    if votes is None:
        return np.ones(len(margins)), np.ones(len(margins))
    votes = np.nan_to_num(votes)
    number = votes.sum(axis=1)
    return np.where(number > 0, votes[:, 0] / np.maximum(number, 1), 1.0), np.maximum(number, 1)


def top_label(
    margins: np.ndarray, votes: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(confidence, outcome, variance of an outcome if confidence is its chance), each (n,)"""
    share, number = chosen_share(margins, votes)
    confidence = expit(np.abs(margins))
    outcome = np.where(margins > 0, share, np.where(margins < 0, 1 - share, 0.5))
    return confidence, outcome, np.where(margins == 0, 0.0, confidence * (1 - confidence) / number)


def reliability(
    margins: np.ndarray, votes: np.ndarray | None = None, bins: int = 10
) -> list[ReliabilityBin]:
    """The reliability diagram: mean confidence and accuracy of bins with about equally many pairs (10 at least)."""
    confidence, outcome, _ = top_label(margins, votes)
    diagram = []
    for index in equal_mass(confidence, bin_number(len(margins), bins)):
        accuracy = share_interval(outcome[index])
        diagram.append(
            ReliabilityBin(
                confidence=float(confidence[index].mean()),
                accuracy=accuracy.value,
                low=accuracy.low,
                high=accuracy.high,
                n=len(index),
            )
        )
    return diagram


def bin_number(n: int, bins: int) -> int:
    return min(bins, max(1, n // 10))


def calibration_error(
    margins: np.ndarray, votes: np.ndarray | None = None, bins: int = 10, seed: int = 0
) -> tuple[Estimate, float] | None:
    """(Debiased calibration error, p under "calibrated"). The error is a difference of probabilities; 0 is calibrated.

    sqrt(max(0, sum_b n_b / n (d_b^2 - s_b^2 / n_b))), d_b and s_b the mean and the standard deviation of outcome - confidence
    in bin b: the debiased l2 error of Kumar et al. 2019 (arXiv 1909.10155) with s^2 for y (1 - y), which also
    holds for shares of votes; in bins of equal mass, as Roelofs et al. 2022 (arXiv 2012.08668) advise. Interval: its bootstrap
    with d_b drawn from N(d_b, s_b^2 / n_b), less the bias that a bootstrap of a square adds once more.

    p: calibration_p. None below 20 pairs.
    """
    if len(margins) < 20:
        return None
    confidence, outcome, variance = top_label(margins, votes)
    residual = outcome - confidence
    index = equal_mass(confidence, bin_number(len(margins), bins))
    n = np.array([len(i) for i in index])
    mean = np.array([residual[i].mean() for i in index])  # (bins,)
    noise = np.array([residual[i].var(ddof=1) for i in index]) / n
    weight = n / n.sum()
    squared = weight @ (mean**2 - noise)
    drawn = np.random.default_rng(seed).normal(mean, np.sqrt(noise), size=(RESAMPLES, len(n)))
    low, high = np.quantile((drawn**2 - 2 * noise) @ weight, [0.025, 0.975])
    value, low, high = (
        math.sqrt(max(0.0, x)) for x in (squared, min(low, squared), max(high, squared))
    )
    table = np.array(
        [(residual[i].sum(), variance[i].sum(), (residual[i] ** 2).sum()) for i in index]
    )
    return Estimate(value, low, high), calibration_p(table, votes is not None)


def calibration_p(table: np.ndarray, voted: bool) -> float:
    """sum_b (S_b - E_b)^2 / V_b is chi-square with as many degrees of freedom as bins, under "calibrated" and without a fit.

    table (bins, 3), by rising confidence: the sums of outcome - confidence, of its variance under "calibrated", of its square.
    From the most confident down, bins are joined until they expect LEAST_VARIANCE (Cochran, Biometrics 10, 1954, wants five of
    the rarer outcome). The larger of the two variances counts where even all bins together expect less, which is on the safe
    side, and where there are votes: those of one pair hang together if confidence is right on average and not pair by pair.
    """
    joined = [np.zeros(3)]
    for row in table[::-1]:
        if joined[-1][1] >= LEAST_VARIANCE:
            joined.append(np.zeros(3))
        joined[-1] = joined[-1] + row
    if len(joined) > 1 and joined[-1][1] < LEAST_VARIANCE:
        joined.append(joined.pop() + joined.pop())
    difference, expected, seen = np.array(joined).T
    cautious = voted | (expected < LEAST_VARIANCE)
    variance = np.where(cautious, np.maximum(np.maximum(expected, seen), 1e-12), expected)
    return chi2_sf(float(np.sum(difference**2 / variance)), len(joined))


def brier(margins: np.ndarray, votes: np.ndarray | None = None) -> float | None:
    """mean over pairs of s (1 - p)^2 + (1 - s) p^2, p = sigmoid(m), s the share of votes for chosen. Brier (1950)."""
    if len(margins) == 0:
        return None
    share, p = chosen_share(margins, votes)[0], expit(margins)
    return float(np.mean(share * (1 - p) ** 2 + (1 - share) * p**2))


def nll(margins: np.ndarray, votes: np.ndarray | None = None) -> float | None:
    """mean over pairs of -s ln p - (1 - s) ln(1 - p), in nats: Bradley and Terry's loss. A coin has ln 2 = .693."""
    if len(margins) == 0:
        return None
    share = chosen_share(margins, votes)[0]
    return float(
        np.mean(share * np.logaddexp(0, -margins) + (1 - share) * np.logaddexp(0, margins))
    )


def fit_temperature(margins: np.ndarray, votes: np.ndarray | None = None) -> float | None:
    """The T of the smallest nll(margins / T): Guo et al. 2017 (arXiv 1706.04599), a logistic fit with one slope, 1 / T.

    None where none is positive and finite: the model is right on every pair, or no better than a coin.
    """
    unit = np.abs(margins).max(initial=0)
    found = logistic(margins[:, None] / unit, chosen_share(margins, votes)[0]) if unit else None
    return float(unit / found[0][0]) if found is not None and found[0][0] > 0 else None


def temperature_on_folds(
    margins: np.ndarray, votes: np.ndarray | None = None, folds: int = 5, seed: int = 0
) -> dict[str, float] | None:
    """What a temperature is worth: {"temperature" (of all pairs), "ece_before", "ece_after", "nll_before", "nll_after"}.

    The after-numbers are of pairs that were divided by the temperature of the other folds. None where one has no temperature.
    """
    temperature, before = fit_temperature(margins, votes), calibration_error(margins, votes)
    if temperature is None or before is None:
        return None
    fold = np.random.default_rng(seed).permutation(len(margins)) % folds
    scaled = np.empty(len(margins))
    for k in range(folds):
        held_out = fold == k
        fitted = fit_temperature(margins[~held_out], None if votes is None else votes[~held_out])
        if fitted is None:
            return None
        scaled[held_out] = margins[held_out] / fitted
    return {
        "temperature": temperature,
        "ece_before": before[0].value,
        "ece_after": calibration_error(scaled, votes)[0].value,
        "nll_before": nll(margins, votes),
        "nll_after": nll(scaled, votes),
    }


# ---------------------------------------------------------------------------------------------------------- Calibration


def calibration_checks(known: Pairs, bradley_terry: bool | None) -> list[Check]:
    """Is sigmoid(margin) the chance that a rater prefers the chosen side?"""
    name, threshold = "calibration error", THRESHOLDS["calibration error"].source
    if bradley_terry is False:
        note = "the objective does not make sigmoid(margin) a probability"
        finding = Finding(name, None, len(known), "calibration", note=note)
        return [with_verdict(finding, "not applicable", threshold)]
    margins, votes = calibration_data(known)
    found = calibration_error(margins, votes)
    estimate, p = found if found else (None, None)
    if estimate is None:
        return [judge(Finding(name, None, len(margins), "calibration"))]
    folds = temperature_on_folds(margins, votes)
    note = f"Brier {short(brier(margins, votes))}, NLL {short(nll(margins, votes))}"
    if folds:
        note += (
            f"; temperature {short(folds['temperature'])} takes the error to {short(folds['ece_after'])} and the NLL from "
            f"{short(folds['nll_before'])} to {short(folds['nll_after'])} on held-out folds"
        )
    check = judge(
        Finding(
            name,
            estimate,
            len(margins),
            "calibration",
            p=p,
            note=note,
            detectable=stats.detectable_mean(estimate),
        )
    )
    if bradley_terry is None:
        note += (
            "; only Bradley-Terry rewards claim to be calibrated, and nothing says that these are"
        )
        check = replace(check, verdict="not applicable", otherwise="not applicable", note=note)
    return [check]


def calibration_data(known: Pairs) -> tuple[np.ndarray, np.ndarray | None]:
    """(margins, votes) to calibrate on: where there are votes, the pairs with an odd number of them; else all, and None."""
    mask = known.voted
    return (known.margins[mask], known.votes[mask]) if mask.any() else (known.margins, None)
