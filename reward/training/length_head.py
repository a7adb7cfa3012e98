"""A length head that is dropped at save time: what the raters' liking for length explains, the model need not learn.

Training fits r + b * tokens to the raters, and saves r: ODIN (Chen et al. 2024, arXiv 2402.07319) with a head of one number.
b is the coefficient of the length difference in a logistic regression of the labels with the margin d as an offset, fitted as
training goes: b += sum(w (p - sigmoid(z)) x) / H, z = d + b x, H = .95 H + sum(w sigmoid(z) sigmoid(-z) x^2), over the pairs
of each step, x = tokens(chosen) - tokens(rejected). No parameter of the model, so no engine has to know of it.
"""

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

FORGET = 0.95  # H remembers some 20 steps, so that b follows the model as it learns


class LengthHead(TrainerCallback, ExportableState):
    """`coefficient` is b, in reward a token. It is logged, saved with each checkpoint-N/ and restored from it."""

    def __init__(self, accelerator):
        self.coefficient, self.curvature, self.accelerator = 0.0, 0.0, accelerator
        self._sums = torch.zeros(2, dtype=torch.float64)

    def add(self, rewards, inputs) -> None:
        """The pairs of one micro-batch: `rewards` (pairs, 2)."""
        p, x = inputs["chosen_probability"], inputs["length_difference"]
        won = torch.sigmoid(rewards[:, 0] - rewards[:, 1] + self.coefficient * x)
        slope, curvature = (p - won) * x, won * (1 - won) * x * x
        self._sums += (torch.stack([slope, curvature]) * inputs["weight"]).sum(1).double().cpu()

    def on_step_end(self, args, state, control, **kwargs):
        slope, curvature = self.accelerator.reduce(
            self._sums.float().to(self.accelerator.device)
        ).tolist()
        self._sums.zero_()
        self.curvature = FORGET * self.curvature + curvature
        if self.curvature > 0:
            self.coefficient += slope / self.curvature

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get("LengthHead")
        if saved:
            self.coefficient, self.curvature = (
                saved["attributes"]["coefficient"],
                saved["attributes"]["curvature"],
            )

    def state(self) -> dict:
        return {
            "args": {},
            "attributes": {"coefficient": self.coefficient, "curvature": self.curvature},
        }
