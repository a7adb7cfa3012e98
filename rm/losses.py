"""Objectives: rewards in, one loss a pair out; pure functions with the equation and its source.

To add one: a function here, a line in LOSSES, its name among `loss_type`'s choices in rm/recipe.py, a test, a recipe.
"""

import torch
import torch.nn.functional as F


def bradley_terry(rewards_chosen, rewards_rejected, target_margin=None):
    """-log sigmoid(r_c - r_r - m), one value a pair.

    Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, eq. 1; the target margin m as in Llama 2,
    arXiv 2307.09288, eq. 2. All arguments and the result have shape (pairs,). logsigmoid stays finite at margins of
    +-1e4, where log(sigmoid(.)) does not.
    """
    margin = rewards_chosen - rewards_rejected
    if target_margin is not None:
        margin = margin - target_margin
    return -F.logsigmoid(margin)


def centering(rewards_chosen, rewards_rejected):
    """(r_c + r_r)^2, one value a pair, shape (pairs,): Eisenstein et al., arXiv 2312.09244, eq. 2.

    Bradley-Terry fixes rewards up to a constant a prompt; this picks the one with mean zero. TRL's
    `center_rewards_coefficient` (.01 there) weights it.
    """
    return torch.square(rewards_chosen + rewards_rejected)


LOSSES = {"bradley_terry": bradley_terry}
