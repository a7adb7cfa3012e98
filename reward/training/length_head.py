"""A head for length that is dropped at a save, so that the model need not learn it.

Training fits r + b * tokens to the raters, and saves r. What the raters' liking for length explains
is then in b, and not in the rewards r. This is ODIN (Chen et al. 2024, arXiv 2402.07319) with a
head of one number.

b is the coefficient of the length difference in a regression of the labels, with the margin d as an
offset. It makes the same loss L small as the model does. It is fitted as training goes, after each
step over the pairs of the step:

    x = tokens(chosen) - tokens(rejected)
    z = d + b x
    H = .95 H + sum(w L''(z) x^2)
    b = b - sum(w L'(z) x) / H

where w is the weight of a pair. For Bradley-Terry this is a logistic regression: L'(z) =
sigmoid(z) - p, where p is the chosen probability, and L''(z) = sigmoid(z) sigmoid(-z). With another
L than the model's the two would pull against each other, and b would grow without end. b is no
parameter of the model, so no engine has to know of it.
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from reward.model.batches import MicroBatch

FORGET = 0.95  # H remembers some 20 steps, so that b follows the model as it learns


class LengthHead(TrainerCallback, ExportableState):
    """Fits the coefficient of length; saved with each checkpoint-N/ and restored from it.

    Args:
        accelerator: Adds up sums over processes.

    Attributes:
        coefficient: b, in reward for one token. PairTrainer logs it.
        curvature: H.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.coefficient = 0.0
        self.curvature = 0.0
        self._sums = torch.zeros(2, dtype=torch.float64)  # slope and curvature of this step

    def add(
        self,
        rewards: torch.Tensor,
        inputs: MicroBatch,
        loss_of_margin: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Add the pairs of a micro-batch to the sums of the step.

        Args:
            rewards: Rewards of the chosen and of the rejected side, (pairs, 2).
            inputs: The micro-batch.
            loss_of_margin: L, from the margins (pairs,) to the losses (pairs,).
        """
        x = inputs["length_difference"]
        with torch.enable_grad():
            z = (rewards[:, 0] - rewards[:, 1] + self.coefficient * x).requires_grad_()
            loss = loss_of_margin(z).sum()
            (slope,) = torch.autograd.grad(loss, z, create_graph=True)
            (curvature,) = torch.autograd.grad(slope.sum(), z)
        sums = (torch.stack([-slope.detach() * x, curvature * x * x]) * inputs["weight"]).sum(1)
        self._sums += sums.cpu().double()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        """Take one step of the regression over the pairs of all processes."""
        own_sums = self._sums.float().to(self.accelerator.device)
        slope, curvature = self.accelerator.reduce(own_sums).tolist()
        self._sums.zero_()
        self.curvature = FORGET * self.curvature + curvature
        if self.curvature > 0:
            self.coefficient += slope / self.curvature

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        """Go on from a checkpoint."""
        self.restore(state)

    def restore(self, state: TrainerState) -> None:
        """Take the coefficient that a checkpoint's state holds, if it holds one."""
        saved = state.stateful_callbacks.get("LengthHead")
        if saved:
            self.coefficient = saved["attributes"]["coefficient"]
            self.curvature = saved["attributes"]["curvature"]

    def state(self) -> dict:
        """What transformers saves with a checkpoint."""
        attributes = {"coefficient": self.coefficient, "curvature": self.curvature}
        return {"args": {}, "attributes": attributes}
