"""The objectives: pure functions from the rewards of pairs to the loss of each pair.

Each has its equation and its source beside it. Notation, one value per pair: r_c and r_r are the
rewards of the chosen and the rejected side, d = r_c - r_r is the margin, and p is the chosen
probability, how likely a rater prefers the chosen side.

To add a loss: a function here and its line in `LOSSES`; the keys that do not go with it in
reward/recipe/checks.py; a test with values worked out by hand; a recipe that uses it; a line in
docs/objectives.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(
    rewards_chosen: Tensor,
    rewards_rejected: Tensor,
    target_margin: Tensor | None = None,
    chosen_probability: Tensor | None = None,
) -> Tensor:
    """-(p log sigmoid(d - m) + (1 - p) log sigmoid(-d - m)), where m is the target margin.

    Sources: Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, eq. 1; the target margin
    is that of Llama 2, arXiv 2307.09288, eq. 2. With p the loss is the expectation over raters who
    disagree, and with `label_smoothing` it is conservative DPO's (Mitchell 2023). `logsigmoid`
    stays finite at margins of +-1e4, where log(sigmoid(.)) does not.

    Args:
        rewards_chosen: Rewards of the chosen sides, shape (pairs,), in log-odds: a margin of 1
            means that the chosen side wins with probability sigmoid(1).
        rewards_rejected: Rewards of the rejected sides, shape (pairs,), in log-odds.
        target_margin: The margin that each pair should exceed, shape (pairs,), in the unit of
            rewards. None: 0.
        chosen_probability: p of each pair, shape (pairs,), from 0 to 1; .5 is a tie. None: every p
            is 1.

    Returns:
        The loss of each pair, shape (pairs,), in nats.
    """
    margin = rewards_chosen - rewards_rejected
    if target_margin is None:
        target_margin = 0.0
    loss_if_won = -F.logsigmoid(margin - target_margin)
    if chosen_probability is None:
        return loss_if_won
    loss_if_lost = -F.logsigmoid(-margin - target_margin)
    return chosen_probability * loss_if_won + (1 - chosen_probability) * loss_if_lost


def rao_kupper(
    rewards_chosen: Tensor,
    rewards_rejected: Tensor,
    chosen_probability: Tensor | None = None,
    tie_margin: float = 0.5,
) -> Tensor:
    """-log of P(win) = sigmoid(d - t), P(loss) = sigmoid(-d - t) or P(tie), whichever was said.

    P(tie) = (e^2t - 1) P(win) P(loss), which is 1 - P(win) - P(loss). Source: Rao and Kupper 1967;
    their theta is e^t. The tie margin t is fixed: within it a rater may call a tie. p = .5 is a
    tie. Any other p mixes the losses of a win and of a defeat, because votes that disagree without
    balancing are no tie.

    Args:
        rewards_chosen: Rewards of the chosen sides, shape (pairs,), in log-odds.
        rewards_rejected: Rewards of the rejected sides, shape (pairs,), in log-odds.
        chosen_probability: p of each pair, shape (pairs,), from 0 to 1. None: every p is 1.
        tie_margin: t, above 0, in the unit of rewards.

    Returns:
        The loss of each pair, shape (pairs,), in nats.
    """
    margin = rewards_chosen - rewards_rejected
    loss_if_won = -F.logsigmoid(margin - tie_margin)
    loss_if_lost = -F.logsigmoid(-margin - tie_margin)
    if chosen_probability is None:
        return loss_if_won
    theta_squared_less_1 = torch.expm1(torch.as_tensor(2.0 * tie_margin, dtype=margin.dtype))
    loss_if_tied = loss_if_won + loss_if_lost - torch.log(theta_squared_less_1)
    mixed = chosen_probability * loss_if_won + (1 - chosen_probability) * loss_if_lost
    return torch.where(chosen_probability == 0.5, loss_if_tied, mixed)


def mse(
    rewards_chosen: Tensor,
    rewards_rejected: Tensor,
    chosen_probability: Tensor | None = None,
) -> Tensor:
    """(r_c - p)^2 + (r_r - (1 - p))^2.

    The targets are 1 and 0 where the raters are sure, .5 and .5 for a tie. Each side is regressed
    on a label, as Wang et al. 2024, arXiv 2406.08673, do with ratings. This gives rewards a unit.

    Args:
        rewards_chosen: Rewards of the chosen sides, shape (pairs,), in the unit of probabilities.
        rewards_rejected: Rewards of the rejected sides, shape (pairs,), in the unit of
            probabilities.
        chosen_probability: p of each pair, shape (pairs,), from 0 to 1. None: every p is 1.

    Returns:
        The loss of each pair, shape (pairs,).
    """
    if chosen_probability is None:
        chosen_probability = torch.ones_like(rewards_chosen)
    chosen = torch.square(rewards_chosen - chosen_probability)
    rejected = torch.square(rewards_rejected - (1 - chosen_probability))
    return chosen + rejected


def rating_mse(
    rewards_chosen: Tensor,
    rewards_rejected: Tensor,
    rating_chosen: Tensor,
    rating_rejected: Tensor,
) -> Tensor:
    """(r_c - y_c)^2 + (r_r - y_r)^2, where y is the rating of each side.

    Source: Wang et al. 2024, arXiv 2406.08673, sec. 3.

    Args:
        rewards_chosen: Rewards of the chosen sides, shape (pairs,), in the unit of ratings.
        rewards_rejected: Rewards of the rejected sides, shape (pairs,), in the unit of ratings.
        rating_chosen: Ratings of the chosen sides, shape (pairs,), in the unit of the data set.
        rating_rejected: Ratings of the rejected sides, shape (pairs,), in the unit of the data set.

    Returns:
        The loss of each pair, shape (pairs,), in squared ratings.
    """
    chosen = torch.square(rewards_chosen - rating_chosen)
    rejected = torch.square(rewards_rejected - rating_rejected)
    return chosen + rejected


def classification(
    log_odds_chosen: Tensor,
    log_odds_rejected: Tensor,
    chosen_probability: Tensor | None = None,
) -> Tensor:
    """CE(z_c, p) + CE(z_r, 1 - p): the cross-entropy of each side, classified as preferred or not.

    CE(z, p) = -(p log sigmoid(z) + (1 - p) log sigmoid(-z)), where z is the log-odds of "is
    preferred". With one label, z is the reward. With two labels (`head: two_logit`), z is logit 1 -
    logit 0, which makes this the usual softmax cross-entropy.

    Args:
        log_odds_chosen: z_c of the chosen sides, shape (pairs,), in log-odds.
        log_odds_rejected: z_r of the rejected sides, shape (pairs,), in log-odds.
        chosen_probability: p of each pair, shape (pairs,), from 0 to 1. None: every p is 1.

    Returns:
        The loss of each pair, shape (pairs,), in nats.
    """
    p = chosen_probability
    if p is None:
        p = torch.ones_like(log_odds_chosen)
    chosen = F.binary_cross_entropy_with_logits(log_odds_chosen, p, reduction="none")
    rejected = F.binary_cross_entropy_with_logits(log_odds_rejected, 1 - p, reduction="none")
    return chosen + rejected


@dataclass(frozen=True)
class Loss:
    """An objective, and what other code has to know of it."""

    function: Callable[..., Tensor]  # (rewards_chosen, rewards_rejected, **labels) -> (pairs,)
    labels: tuple[str, ...]  # columns of a batch, which are parameters of the function too
    takes_log_odds: bool = False  # of two logits the function gets their difference, not logit 1
    margin_is_log_odds: bool = False  # sigmoid(margin) claims to be P(the chosen side wins)

    @property
    def needs_ratings(self) -> bool:
        """Whether a pair without ratings has no loss."""
        return "rating_chosen" in self.labels


# The values of the recipe key `loss_type`. This dict is the only list of them:
# reward/recipe/keys.py reads its keys from the text of this file, because a recipe is checked
# without importing torch. So every key must be a plain text here. The checks of keys that do not
# go together name single losses, for the same reason: `_check_objective` in
# reward/recipe/checks.py (tie_margin, length_head, label_smoothing, mismatched_prompts). Look there
# when you add a loss. All other code asks the fields of `Loss`.
LOSSES = {
    "bradley_terry": Loss(
        bradley_terry, labels=("target_margin", "chosen_probability"), margin_is_log_odds=True
    ),
    "rao_kupper": Loss(rao_kupper, labels=("chosen_probability",)),
    "mse": Loss(mse, labels=("chosen_probability",)),
    "rating_mse": Loss(rating_mse, labels=("rating_chosen", "rating_rejected")),
    "classification": Loss(classification, labels=("chosen_probability",), takes_log_odds=True),
}


# --- What is added to a loss, or done to its labels ---------------------------------------------


def centering(rewards_chosen: Tensor, rewards_rejected: Tensor) -> Tensor:
    """(r_c + r_r)^2, a penalty that makes the mean reward of each prompt zero.

    Bradley-Terry fixes rewards only up to a constant for each prompt; this penalty chooses the
    constant. TRL's key `center_rewards_coefficient` is its weight. Source: Eisenstein et al., arXiv
    2312.09244, eq. 2, where the weight is .01.

    Args:
        rewards_chosen: Rewards of the chosen sides, shape (pairs,).
        rewards_rejected: Rewards of the rejected sides, shape (pairs,).

    Returns:
        The penalty of each pair, shape (pairs,), in squared rewards.
    """
    return torch.square(rewards_chosen + rewards_rejected)


def smooth(chosen_probability: Tensor, label_smoothing: float) -> Tensor:
    """(1 - e) p + e (1 - p): the chosen probability when a share e of the labels is wrong.

    Args:
        chosen_probability: p of each pair, shape (pairs,), from 0 to 1. A tie, p = .5, stays
            exactly .5.
        label_smoothing: e, the share of the labels that is taken to be wrong, 0 <= e < .5.

    Returns:
        The smoothed chosen probability, shape (pairs,).
    """
    return (1 - label_smoothing) * chosen_probability + label_smoothing * (1 - chosen_probability)
