"""Raters: how often two of them agree, and how often one of them errs, from the votes of each pair."""

import math

import numpy as np

from auditing.stats import Estimate, share_interval


def pair_agreement(votes: np.ndarray) -> np.ndarray:
    """[C(a,2) + C(b,2)] / C(a+b,2) of each pair with two votes or more; votes: (n, 2) for chosen, for rejected."""
    a, b = votes[votes.sum(axis=1) >= 2].astype(float).T
    return (a * (a - 1) + b * (b - 1)) / ((a + b) * (a + b - 1))


def rater_agreement(votes: np.ndarray) -> float | None:
    """The mean of pair_agreement over pairs: how often two different votes on one pair agree.

    Fleiss, Psychological Bulletin 76 (1971), P-bar with two categories. Pairs with fewer than two votes say nothing.
    """
    agreement = pair_agreement(votes)
    return float(agreement.mean()) if len(agreement) else None


# --------------------------------------------------------------------------------------------------------------- Raters


def noise_from_votes(votes: np.ndarray) -> Estimate | None:
    """One rater's error rate e, from how often two votes on a pair agree: a = 1 - 2 e (1 - e), e = (1 - sqrt(2 a - 1)) / 2.

    For raters who err independently and equally often on every pair: pairs without a right answer count as errors. Interval:
    the bootstrap of a over pairs. Raters who agree less than a coin (a < 1/2) have e = 1/2; None without a pair with two votes.
    """
    agreement = share_interval(pair_agreement(votes))
    if agreement is None:
        return None
    value, high, low = (
        (1 - math.sqrt(max(0.0, 2 * a - 1))) / 2 for a in agreement
    )  # more agreement, fewer errors
    return Estimate(value, low, high)


def majority_error(e: float, k: int) -> float:
    """How often the majority of k independent votes with error rate e is wrong, a draw one half: Condorcet (1785)."""
    if e in (0.0, 1.0):
        return e
    log_choose = [
        math.lgamma(k + 1) - math.lgamma(j + 1) - math.lgamma(k - j + 1) for j in range(k + 1)
    ]
    terms = [
        math.exp(c + j * math.log(e) + (k - j) * math.log(1 - e)) for j, c in enumerate(log_choose)
    ]
    return sum(terms[k // 2 + 1 :]) + (terms[k // 2] / 2 if k % 2 == 0 else 0.0)


def label_accuracy(votes: np.ndarray, noise: float) -> float:
    """Mean over pairs with `votes` (n,) votes each of P(the majority is right), a draw one half, at the error rate `noise`."""
    # A thousand votes decide as well as more.
    sizes, pairs = np.unique(np.minimum(votes.astype(int), 1000), return_counts=True)
    wrong = [majority_error(noise, v) for v in sizes.tolist()]
    return 1 - float(np.dot(wrong, pairs) / pairs.sum())
