"""Objectives: rewards in, one loss a pair out; pure functions with the equation and its source.

Everything has shape (pairs,). d = r_c - r_r; p is `chosen_probability`, how likely the raters prefer the chosen side (1
where nothing else is known, .5 a tie). To add one: a function here, a line in LOSSES, a line in docs/objectives.md, a test.
"""

import torch
import torch.nn.functional as F


def bradley_terry(rewards_chosen, rewards_rejected, target_margin=None, chosen_probability=None):
    """-(p log sigmoid(d - m) + (1 - p) log sigmoid(-d - m)).

    Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, eq. 1; the target margin m as in Llama 2,
    arXiv 2307.09288, eq. 2; p is the expectation over raters who disagree, and with `label_smoothing` conservative DPO's
    (Mitchell 2023). logsigmoid stays finite at margins of +-1e4, where log(sigmoid(.)) does not.
    """
    margin = rewards_chosen - rewards_rejected
    target = 0.0 if target_margin is None else target_margin
    won = -F.logsigmoid(margin - target)
    if chosen_probability is None:
        return won
    return chosen_probability * won - (1 - chosen_probability) * F.logsigmoid(-margin - target)


def rao_kupper(rewards_chosen, rewards_rejected, chosen_probability=None, tie_margin=0.5):
    """-log of P(win) = sigmoid(d - t), P(loss) = sigmoid(-d - t), P(tie) = (e^2t - 1) P(win) P(loss).

    Rao and Kupper 1967 (their theta is e^t), with the tie margin t > 0 fixed: within it a rater may call a tie. p = .5 is
    a tie; another p mixes win and loss, as votes that disagree but do not balance.
    """
    margin = rewards_chosen - rewards_rejected
    won, lost = -F.logsigmoid(margin - tie_margin), -F.logsigmoid(-margin - tie_margin)
    if chosen_probability is None:
        return won
    tied = (
        won + lost - torch.log(torch.expm1(torch.as_tensor(2.0 * tie_margin, dtype=margin.dtype)))
    )
    mixed = chosen_probability * won + (1 - chosen_probability) * lost
    return torch.where(chosen_probability == 0.5, tied, mixed)


def mse(rewards_chosen, rewards_rejected, chosen_probability=None):
    """(r_c - p)^2 + (r_r - (1 - p))^2: 1 and 0 where the raters are sure, .5 and .5 for a tie.

    Regression of each side on a label, as Wang et al. 2024, arXiv 2406.08673, do with ratings: rewards get a unit.
    """
    target = torch.ones_like(rewards_chosen) if chosen_probability is None else chosen_probability
    return torch.square(rewards_chosen - target) + torch.square(rewards_rejected - (1 - target))


def rating_mse(rewards_chosen, rewards_rejected, rating_chosen, rating_rejected):
    """(r_c - y_c)^2 + (r_r - y_r)^2 for ratings y of each side: Wang et al. 2024, arXiv 2406.08673, sec. 3."""
    return torch.square(rewards_chosen - rating_chosen) + torch.square(
        rewards_rejected - rating_rejected
    )


def classification(log_odds_chosen, log_odds_rejected, chosen_probability=None):
    """Cross-entropy of each side with "is preferred", z its log-odds: CE(z_c, p) + CE(z_r, 1 - p).

    -(p log sigmoid(z_c) + (1 - p) log sigmoid(-z_c)) and the mirror image. One label: z is the reward. Two labels
    (`head: two_logit`): z is logit 1 - logit 0, which makes this the usual softmax cross-entropy.
    """
    p = torch.ones_like(log_odds_chosen) if chosen_probability is None else chosen_probability
    chosen = F.binary_cross_entropy_with_logits(log_odds_chosen, p, reduction="none")
    return chosen + F.binary_cross_entropy_with_logits(log_odds_rejected, 1 - p, reduction="none")


def centering(rewards_chosen, rewards_rejected):
    """(r_c + r_r)^2, one value a pair, shape (pairs,): Eisenstein et al., arXiv 2312.09244, eq. 2.

    Bradley-Terry fixes rewards up to a constant a prompt; this picks the one with mean zero. TRL's
    `center_rewards_coefficient` (.01 there) weights it.
    """
    return torch.square(rewards_chosen + rewards_rejected)


def smooth(chosen_probability, label_smoothing: float):
    """p -> (1 - e) p + e (1 - p): a share e of the labels is taken to be wrong."""
    return (1 - label_smoothing) * chosen_probability + label_smoothing * (1 - chosen_probability)


# name -> the function, and what it takes of a pair's labels
LOSSES = {
    "bradley_terry": (bradley_terry, ("target_margin", "chosen_probability")),
    "rao_kupper": (rao_kupper, ("chosen_probability",)),
    "mse": (mse, ("chosen_probability",)),
    "rating_mse": (rating_mse, ("rating_chosen", "rating_rejected")),
    "classification": (classification, ("chosen_probability",)),
}
