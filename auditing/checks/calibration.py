"""Calibration: is sigmoid(margin) the chance that a rater prefers the chosen side?

Margins m are (n,), votes are (n, 2) for the chosen and for the rejected side, prompts are (n,)
numbers; None for prompts if none repeats. A pair without votes counts as one vote for the chosen
side.

Everything is in top-label form: confidence = sigmoid(|m|), outcome = the share of votes for the
side that the model prefers (.5 for a tie of the model). The raters decide which side is called
chosen, so the model claims nothing about it.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from auditing import stats
from auditing.pairs import Pairs
from auditing.result import ReliabilityBin
from auditing.stats import RESAMPLES, Estimate, chi2_sf, equal_mass, share_interval
from auditing.verdicts import THRESHOLDS, Check, Finding, judge, short, with_verdict

SECTION = "calibration"
LEAST_VARIANCE = 5.0  # of the number of right answers in a bin of the test


def calibration_checks(finite: Pairs, bradley_terry: bool | None) -> list[Check]:
    """The check of this section.

    Args:
        finite: The pairs whose two rewards are finite.
        bradley_terry: Whether sigmoid(margin) claims to be a probability; None if nobody knows.
    """
    name = "calibration error"
    if bradley_terry is False:
        note = "the objective does not make sigmoid(margin) a probability"
        finding = Finding(name, None, len(finite), SECTION, note=note)
        return [with_verdict(finding, "not applicable", THRESHOLDS[name].source)]
    margins, votes, prompts = calibration_data(finite)
    n = len(margins)
    if n and not margins.any():
        return [judge(Finding(name, None, n, SECTION, unmeasured="every pair ties"))]
    error, p = calibration_error(margins, votes, prompts) or (None, None)
    if error is None:
        return [judge(Finding(name, None, n, SECTION, unmeasured="fewer than 20 prompts"))]
    note = f"Brier {short(brier(margins, votes))}, NLL {short(nll(margins, votes))}"
    gain = temperature_on_folds(margins, votes, prompts)
    if gain is not None:
        note += (
            f"; temperature {short(gain.temperature)} takes the error to {short(gain.error_after)} "
            f"and the NLL from {short(gain.nll_before)} to {short(gain.nll_after)} "
            "on held-out folds"
        )
    detectable = stats.detectable_mean(error, largest=1)
    check = judge(Finding(name, error, n, SECTION, p=p, note=note, detectable=detectable))
    if bradley_terry is None:
        note += (
            "; only Bradley-Terry rewards claim to be calibrated, and nothing says that these are: "
            "if they are, give --bradley_terry"
        )
        check = replace(check, verdict="not applicable", otherwise="not applicable", note=note)
    return [check]


class CalibrationData(NamedTuple):
    """The pairs to calibrate on."""

    margins: np.ndarray  # (n,)
    votes: np.ndarray | None  # (n, 2); None if no pair has votes
    prompts: np.ndarray  # (n,)


def calibration_data(finite: Pairs) -> CalibrationData:
    """The pairs to calibrate on.

    If there are votes, these are the pairs with an odd number of them. If there are none, these are
    all pairs.
    """
    mask = finite.voted
    if not mask.any():
        return CalibrationData(finite.margins, None, finite.prompt)
    return CalibrationData(finite.margins[mask], finite.votes[mask], finite.prompt[mask])


# --- Confidence and outcome -----------------------------------------------------------------------


@dataclass(frozen=True)
class TopLabel:
    """How sure the model is of each pair, and what the raters voted."""

    confidence: np.ndarray  # (n,) the chance that the model gives the side that it prefers
    outcome: np.ndarray  # (n,) the share of votes for that side
    variance: np.ndarray  # (n,) of an outcome if the confidence is its chance


def votes_for_chosen(
    margins: np.ndarray, votes: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """How the votes on each pair are divided.

    Args:
        margins: (n,) margins, of which only the number n is used.
        votes: (n, 2) for the chosen and for the rejected side; None if there are no votes.

    Returns:
        The share of votes for the chosen side, and the number of votes, both (n,). A pair without
        votes counts as one vote for the chosen side.
    """
    if votes is None:
        return np.ones(len(margins)), np.ones(len(margins))
    votes = np.nan_to_num(votes)
    vote_counts = votes.sum(axis=1)
    for_chosen = np.where(vote_counts > 0, votes[:, 0] / np.maximum(vote_counts, 1), 1.0)
    return for_chosen, np.maximum(vote_counts, 1)


def top_label(margins: np.ndarray, votes: np.ndarray | None) -> TopLabel:
    """Turn margins and votes into confidences and outcomes."""
    for_chosen, vote_counts = votes_for_chosen(margins, votes)
    confidence = expit(np.abs(margins))
    outcome = np.where(margins > 0, for_chosen, np.where(margins < 0, 1 - for_chosen, 0.5))
    variance = np.where(margins == 0, 0.0, confidence * (1 - confidence) / vote_counts)
    return TopLabel(confidence, outcome, variance)


def equally_confident(confidence: np.ndarray, bins: int) -> list[np.ndarray]:
    """Cut pairs into bins of about equal confidence.

    Args:
        confidence: (n,) the confidence of each pair.
        bins: The largest number of bins; each bin holds at least 10 pairs.

    Returns:
        The indices of the pairs of each bin, the least confident first.
    """
    return equal_mass(confidence, min(bins, max(1, len(confidence) // 10)))


def reliability(
    margins: np.ndarray,
    votes: np.ndarray | None = None,
    prompts: np.ndarray | None = None,
    bins: int = 10,
) -> list[ReliabilityBin]:
    """The reliability diagram: mean confidence and accuracy of pairs of about equal confidence.

    Args:
        margins: (n,) reward(chosen) - reward(rejected).
        votes: (n, 2) as in votes_for_chosen, or None.
        prompts: (n,) the prompt of each pair; None if no prompt repeats.
        bins: The largest number of points.
    """
    top = top_label(margins, votes)
    diagram = []
    for index in equally_confident(top.confidence, bins):
        prompts_of_bin = None
        if prompts is not None:
            prompts_of_bin = prompts[index]
        accuracy = share_interval(top.outcome[index], prompts_of_bin)
        point = ReliabilityBin(
            confidence=float(top.confidence[index].mean()),
            accuracy=accuracy.value,
            low=accuracy.low,
            high=accuracy.high,
            n=len(index),
        )
        diagram.append(point)
    return diagram


# --- The error, and whether it could be chance ----------------------------------------------------


def calibration_error(
    margins: np.ndarray,
    votes: np.ndarray | None = None,
    prompts: np.ndarray | None = None,
    bins: int = 10,
    seed: int = 0,
) -> tuple[Estimate, float] | None:
    """The debiased calibration error, a difference of probabilities: 0 is calibrated.

    It is sqrt(max(0, sum_b w_b (d_b^2 - s_b^2))), where w_b is the share of pairs in bin b, d_b the
    mean of outcome - confidence in it, and s_b the standard error of d_b. It is the debiased l2
    error of Kumar et al. 2019 (arXiv 1909.10155), with the observed variance in place of y (1 - y),
    so that it also holds for shares of votes. The bins have equal mass, as Roelofs et al. 2022
    (arXiv 2012.08668) advise. The interval is a bootstrap that draws all d_b from
    N(d, covariance of d). Squares of the drawn d_b are too large twice over, by the noise in d_b
    and by that of the draw, so 2 s_b^2 is subtracted. Prompts are the units of the covariance, so
    that a row that stands in the file four times counts once.

    Args:
        margins: (n,) reward(chosen) - reward(rejected).
        votes: (n, 2) as in votes_for_chosen, or None.
        prompts: (n,) the prompt of each pair; None if no prompt repeats.
        bins: The largest number of bins. Each holds at least 10 pairs, and there are at most a
            tenth as many as prompts.
        seed: The seed of the bootstrap.

    Returns:
        The error, and its p-value under "calibrated" (calibration_p). None for fewer than 20
        prompts, unless all pairs have the same one.
    """
    n = len(margins)
    groups = np.arange(n)
    if prompts is not None and len(np.unique(prompts)) > 1:
        _, groups = np.unique(prompts, return_inverse=True)
    if n == 0 or groups.max() + 1 < 20:
        return None
    top = top_label(margins, votes)
    binned = bin_residuals(top, groups, min(bins, (int(groups.max()) + 1) // 10))
    variances = np.diag(binned.covariance)
    squared = binned.weight @ (binned.mean**2 - variances)
    drawn = np.random.default_rng(seed).multivariate_normal(
        binned.mean, binned.covariance, size=RESAMPLES, check_valid="ignore", method="eigh"
    )
    low, high = np.quantile((drawn**2 - 2 * variances) @ binned.weight, [0.025, 0.975])
    bounds = (squared, min(low, squared), max(high, squared))
    error = Estimate(*(math.sqrt(max(0.0, bound)) for bound in bounds))
    return error, calibration_p(binned.table, votes is not None)


@dataclass(frozen=True)
class BinnedResiduals:
    """outcome - confidence over bins of equal mass, by rising confidence."""

    mean: np.ndarray  # (bins,)
    covariance: np.ndarray  # (bins, bins) of the means, with prompts as units
    weight: np.ndarray  # (bins,) the share of pairs in each bin
    table: np.ndarray  # (bins, 4) as calibration_p wants it


def bin_residuals(top: TopLabel, groups: np.ndarray, bins: int) -> BinnedResiduals:
    """Sum up outcome - confidence over bins and prompts.

    Args:
        top: Confidences and outcomes of n pairs.
        groups: (n,) the number of each pair's prompt, from 0 without a gap.
        bins: The largest number of bins.
    """
    residual = top.outcome - top.confidence
    label = np.empty(len(residual), dtype=int)
    for b, index in enumerate(equally_confident(top.confidence, bins)):
        label[index] = b
    size = np.bincount(label)
    difference = np.bincount(label, residual)
    deviation = residual - (difference / size)[label]

    # The deviations of each prompt within each bin, which are summed because they are alike.
    cells, cell = np.unique(groups * len(size) + label, return_inverse=True)
    sums = np.bincount(cell, deviation)  # (cells,)
    bin_of_cell = cells % len(size)
    by_prompt = np.zeros((int(groups.max()) + 1, len(size)))
    by_prompt.flat[cells] = sums
    prompts_of_bin = np.maximum(np.bincount(bin_of_cell), 2)
    scale = np.sqrt(prompts_of_bin / (prompts_of_bin - 1)) / size
    covariance = by_prompt.T @ by_prompt * np.outer(scale, scale)

    alone = np.bincount(label, deviation**2)
    together = np.bincount(bin_of_cell, sums**2)
    effect = np.maximum(1.0, together / np.maximum(alone, 1e-300))
    expected = np.bincount(label, top.variance)
    observed = np.bincount(label, residual**2)
    table = np.stack([difference, expected, observed, effect], axis=1)
    return BinnedResiduals(difference / size, covariance, size / size.sum(), table)


def calibration_p(table: np.ndarray, voted: bool) -> float:
    """The p-value of "calibrated".

    sum_b (S_b - E_b)^2 / V_b is chi-square under "calibrated", with as many degrees of freedom as
    bins, because nothing was fitted. Starting from the most confident one, bins are joined until
    their expected variance is LEAST_VARIANCE (Cochran, Biometrics 10, 1954, asks for five of the
    rarer outcome). V_b is the expected variance. It is the larger of the expected and the observed
    variance in two cases: if even all bins together expect less than LEAST_VARIANCE, which is on
    the safe side; and if there are votes, because votes on one pair are correlated if confidence is
    right on average but not pair by pair. Where prompts repeat, V_b is multiplied by their design
    effect, and LEAST_VARIANCE by it as well (Rao and Scott, JASA 76, 1981).

    Args:
        table: (bins, 4) sums over each bin, by rising confidence: outcome - confidence, its
            variance under "calibrated", and its square; and the design effect of the bin.
        voted: Whether the outcomes are shares of votes.
    """
    effect = table[:, 3]
    rows = np.column_stack([table[:, :3], table[:, 1] / effect, table[:, 1:3] * effect[:, None]])
    joined = [np.zeros(6)]
    for sums in rows[::-1]:
        if joined[-1][3] >= LEAST_VARIANCE:
            joined.append(np.zeros(6))
        joined[-1] = joined[-1] + sums
    if len(joined) > 1 and joined[-1][3] < LEAST_VARIANCE:
        last = joined.pop()
        joined[-1] = last + joined[-1]
    difference, _, _, independent, expected, observed = np.array(joined).T
    cautious = voted | (independent < LEAST_VARIANCE)
    larger = np.maximum(np.maximum(expected, observed), 1e-12)
    variance = np.where(cautious, larger, expected)
    return chi2_sf(float(np.sum(difference**2 / variance)), len(joined))


# --- Scores and temperature -----------------------------------------------------------------------


def brier(margins: np.ndarray, votes: np.ndarray | None = None) -> float | None:
    """The mean over pairs of s (1 - p)^2 + (1 - s) p^2. Brier (1950). None for no pairs.

    p = sigmoid(m), and s is the share of votes for the chosen side.
    """
    if len(margins) == 0:
        return None
    for_chosen, _ = votes_for_chosen(margins, votes)
    p = expit(margins)
    return float(np.mean(for_chosen * (1 - p) ** 2 + (1 - for_chosen) * p**2))


def nll(margins: np.ndarray, votes: np.ndarray | None = None) -> float | None:
    """The mean over pairs of -s ln p - (1 - s) ln(1 - p), in nats; None for no pairs.

    It is the Bradley-Terry loss; p and s are as in `brier`. A coin has ln 2 = .693.
    """
    if len(margins) == 0:
        return None
    for_chosen, _ = votes_for_chosen(margins, votes)
    losses = for_chosen * np.logaddexp(0, -margins) + (1 - for_chosen) * np.logaddexp(0, margins)
    return float(np.mean(losses))


def fit_temperature(margins: np.ndarray, votes: np.ndarray | None = None) -> float | None:
    """The temperature T that makes nll(margins / T) smallest: a logistic fit with slope 1 / T.

    Guo et al. 2017 (arXiv 1706.04599).

    Args:
        margins: (n,) reward(chosen) - reward(rejected).
        votes: (n, 2) as in votes_for_chosen, or None.

    Returns:
        None if no T is positive and finite, because the model is right on every pair, or is no
        better than a coin.
    """
    unit = np.abs(margins).max(initial=0)
    if not unit:
        return None
    for_chosen, _ = votes_for_chosen(margins, votes)
    fit = stats.logistic(margins[:, None] / unit, for_chosen)
    if fit is None or fit.coefficients[0] <= 0:
        return None
    return float(unit / fit.coefficients[0])


@dataclass(frozen=True)
class TemperatureGain:
    """How much better calibrated the margins are once they are divided by a temperature.

    The margins of each fold are divided by the temperature that was fitted on the other folds.
    """

    temperature: float  # fitted on all pairs
    error_before: float  # the calibration error
    error_after: float
    nll_before: float  # in nats
    nll_after: float

    @property
    def published(self) -> float:
        """The temperature to divide by: 1 where dividing makes held-out pairs less likely."""
        if self.nll_after >= self.nll_before:
            return 1.0
        return self.temperature


def temperature_on_folds(
    margins: np.ndarray,
    votes: np.ndarray | None = None,
    prompts: np.ndarray | None = None,
    folds: int = 5,
    seed: int = 0,
) -> TemperatureGain | None:
    """Fit a temperature, and measure on held-out folds how much it helps.

    The pairs of one prompt are in the same fold.

    Args:
        margins: (n,) reward(chosen) - reward(rejected).
        votes: (n, 2) as in votes_for_chosen, or None.
        prompts: (n,) the prompt of each pair; None if no prompt repeats.
        folds: How many parts the pairs are cut into.
        seed: The seed that decides which pairs are in which part.

    Returns:
        None if all pairs, or the pairs outside of one fold, have no temperature.
    """
    temperature = fit_temperature(margins, votes)
    before = calibration_error(margins, votes, prompts)
    if temperature is None or before is None:
        return None
    group = np.arange(len(margins))
    if prompts is not None and len(np.unique(prompts)) > 1:
        _, group = np.unique(prompts, return_inverse=True)
    fold = (np.random.default_rng(seed).permutation(group.max() + 1) % folds)[group]
    scaled = np.empty(len(margins))
    for k in range(folds):
        held_out = fold == k
        votes_of_others = None
        if votes is not None:
            votes_of_others = votes[~held_out]
        fitted = fit_temperature(margins[~held_out], votes_of_others)
        if fitted is None:
            return None
        scaled[held_out] = margins[held_out] / fitted
    after = calibration_error(scaled, votes, prompts)
    return TemperatureGain(
        temperature=temperature,
        error_before=before[0].value,
        error_after=after[0].value,
        nll_before=nll(margins, votes),
        nll_after=nll(scaled, votes),
    )
