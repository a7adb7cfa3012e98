"""Raters: how often two of them agree, and how often one errs, from the votes on each pair."""

import math

import numpy as np

from auditing.stats import Estimate, share_interval

MOST_VOTES = 1000  # a pair with more votes is treated as one with this many


def pair_agreement(votes: np.ndarray) -> np.ndarray:
    """How often two different votes on a pair agree: [C(a,2) + C(b,2)] / C(a+b,2).

    Args:
        votes: (n, 2) a for the chosen side, b for the rejected one.

    Returns:
        The chance for each pair with two votes or more.
    """
    a, b = votes[votes.sum(axis=1) >= 2].astype(float).T
    return (a * (a - 1) + b * (b - 1)) / ((a + b) * (a + b - 1))


def rater_agreement(votes: np.ndarray) -> float | None:
    """The mean of pair_agreement over pairs: Fleiss, Psychological Bulletin 76 (1971).

    It is his P-bar with two categories. Pairs with fewer than two votes are left out; None if no
    pair is left.
    """
    agreement = pair_agreement(votes)
    if not len(agreement):
        return None
    return float(agreement.mean())


def noise_from_votes(votes: np.ndarray) -> Estimate | None:
    """One rater's error rate e, computed from the rate a at which two votes on a pair agree.

    If raters err independently and equally often on every pair, a = 1 - 2 e (1 - e), and therefore
    e = (1 - sqrt(2 a - 1)) / 2. On a pair without a right answer, disagreement counts as error too.
    Raters who agree less often than two coins (a < 1/2) have e = 1/2. The interval is made from
    that of a.

    Args:
        votes: (n, 2) for the chosen side, for the rejected one.

    Returns:
        None if no pair has two votes.
    """
    agreement = share_interval(pair_agreement(votes))
    if agreement is None:
        return None
    return Estimate(
        error_rate(agreement.value),
        error_rate(agreement.high),  # More agreement means fewer errors.
        error_rate(agreement.low),
    )


def error_rate(agreement: float) -> float:
    """One rater's error rate for a rate of agreement a: e = (1 - sqrt(2 a - 1)) / 2."""
    return (1 - math.sqrt(max(0.0, 2 * agreement - 1))) / 2


def majority_error(e: float, k: int) -> float:
    """How often a majority of votes is wrong; a draw counts one half. Condorcet (1785).

    Args:
        e: The error rate of one vote.
        k: The number of independent votes.
    """
    if e in (0.0, 1.0):
        return e
    terms = []  # P(j of k votes are wrong)
    for j in range(k + 1):
        log_choose = math.lgamma(k + 1) - math.lgamma(j + 1) - math.lgamma(k - j + 1)
        terms.append(math.exp(log_choose + j * math.log(e) + (k - j) * math.log(1 - e)))
    error = sum(terms[k // 2 + 1 :])
    if k % 2 == 0:
        error += terms[k // 2] / 2
    return error


def label_accuracy(votes: np.ndarray, noise: float) -> float:
    """How often majorities of votes are right, as a mean over pairs; a draw counts one half.

    Args:
        votes: (n,) how many votes decide each label.
        noise: The error rate of one vote.
    """
    sizes, pairs = np.unique(np.minimum(votes.astype(int), MOST_VOTES), return_counts=True)
    wrong = [majority_error(noise, size) for size in sizes.tolist()]
    return 1 - float(np.dot(wrong, pairs) / pairs.sum())
