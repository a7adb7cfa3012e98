"""The RewardTrainer subclass that train_rm.py runs: losses, metrics a pair, and guards.

What it changes in `trl.RewardTrainer`, and why:
- the loss of a step is the mean over the *pairs* of the step, across micro-batches and processes (TRL: mean of batch means,
  so that a step of 4 + 2 pairs has another gradient than one of 6);
- accuracy is counted a pair, ties one half, with n, and a subset (TRL: mean of batch means, ties are errors);
- a loss or gradient that is not finite stops the run before the optimizer step (under DeepSpeed, whose engine steps in
  `backward`, after it) and before anything is saved; transformers logs it as 0.0 and saves.
"""

import torch
from transformers import EvalPrediction
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from rm.losses import LOSSES, centering
from rm.reward_model import is_encoder


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite; nothing of this step was applied or saved."""


class PreferenceCollator(DataCollatorForPreference):
    """TRL's collator (chosen first, then rejected, padded right), plus the subset of each pair."""

    def torch_call(self, examples):
        batch = super().torch_call(examples)
        batch["subset_id"] = torch.tensor([example["subset_id"] for example in examples])
        return batch


class PairTrainer(RewardTrainer):
    """`trl.RewardTrainer` on pairs that rm.preferences has encoded (`chosen_ids`, `rejected_ids`, `subset_id`, `margin`,
    `length`), with `loss_type` one of rm.losses.LOSSES. `subsets` names the `subset_id`s."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the pairs of the whole step

    def __init__(self, *args, subsets: list[str], loss_type: str = "bradley_terry", **kwargs):
        self.subsets = subsets
        self.pair_loss = LOSSES[loss_type]
        training_args = kwargs["args"]
        training_args.logging_nan_inf_filter = False  # it would write 0.0 for NaN
        super().__init__(
            *args,
            data_collator=PreferenceCollator(
                pad_token_id=kwargs["processing_class"].pad_token_id,
                pad_to_multiple_of=training_args.pad_to_multiple_of,
            ),
            compute_metrics=self.pair_metrics,
            **kwargs,
        )
        self.no_cache = {} if is_encoder(self.model.config) else {"use_cache": False}
        self._window = torch.zeros(6, dtype=torch.float64)  # sums since the last log, see _add_to_window

    def _set_signature_columns_if_needed(self):
        # `length` is here for train_sampling_strategy: group_by_length, which reads it from the dataset.
        self._signature_columns = ["chosen_ids", "rejected_ids", "margin", "subset_id", "length"]

    def create_model_card(self, *args, **kwargs):
        pass  # rm.card writes it, once, when the numbers are known

    # ------------------------------------------------------------------------------------------------------- the loss

    def pair_rewards(self, model, inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """(rewards_chosen, rewards_rejected), each (pairs,), float32."""
        texts = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}  # (2 * pairs, tokens)
        logits = model(**texts, **self.no_cache).logits  # (2 * pairs, 1)
        return torch.chunk(logits.squeeze(-1).float(), 2)

    def pair_losses(self, chosen, rejected, target_margin) -> torch.Tensor:
        """(pairs,): what is trained on, and what evaluation reports the mean of."""
        loss = self.pair_loss(chosen, rejected, target_margin)
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * centering(chosen, rejected)
        return loss

    def _get_num_items_in_batch(self, batch_samples, device):
        """Pairs in the whole optimizer step, over micro-batches and processes."""
        pairs = torch.tensor(sum(len(batch["subset_id"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(pairs).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        chosen, rejected = self.pair_rewards(model, inputs)
        loss = self.pair_losses(chosen, rejected, inputs.get("margin"))
        if not torch.isfinite(loss).all():
            raise NonFiniteError(
                f"the loss is not finite at step {self.state.global_step + 1}: {int((~torch.isfinite(loss)).sum())} of "
                f"{len(loss)} pairs. Lower learning_rate, or train in bf16 or float32 instead of fp16."
            )
        self._add_to_window(chosen.detach(), rejected.detach(), int(inputs["attention_mask"].sum()))
        if num_items_in_batch is None:
            return loss.mean()
        # DDP, FSDP and DeepSpeed average gradients over processes; the sum over the step's pairs is wanted.
        return loss.sum() * self.accelerator.num_processes / num_items_in_batch

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # fp16's loss scaler starts high, and skips by itself each step that overflows.
        if norm is not None and not self.args.fp16 and not torch.isfinite(torch.as_tensor(norm)).all():
            raise NonFiniteError(
                f"the gradient norm is {float(norm)} at step {self.state.global_step + 1}; nothing was saved. "
                "Lower learning_rate, or set max_grad_norm."
            )
        return norm

    # ------------------------------------------------------------------------------------------------ metrics, training

    def _add_to_window(self, chosen, rejected, tokens: int) -> None:
        margin = chosen - rejected
        both = torch.cat([chosen, rejected])
        sums = [len(margin), ((margin > 0) + 0.5 * (margin == 0)).sum(), (margin == 0).sum(), margin.sum(), both.sum()]
        self._window = self._window.to(chosen.device)
        self._window += torch.stack(
            [torch.as_tensor(s, dtype=torch.float64, device=chosen.device) for s in (*sums, tokens)]
        )

    def log(self, logs, start_time=None):
        """Training metrics of the pairs since the last log, summed over processes: accuracy (ties one half), margin, ..."""
        if "loss" in logs:
            window = self._window.float() if self._window.device.type == "mps" else self._window
            pairs, correct, ties, margin, reward, tokens = self.accelerator.reduce(window).tolist()
            self._window.zero_()
            self._total_train_tokens += int(tokens)
            if pairs:
                logs["accuracy"] = correct / pairs
                logs["tie_rate"] = ties / pairs
                logs["margin"] = margin / pairs
                logs["reward"] = reward / (2 * pairs)
            logs["num_tokens"] = self._total_train_tokens
        self._metrics["train"].clear()
        self._metrics["eval"].clear()
        super().log(logs, start_time)

    # ---------------------------------------------------------------------------------------------- metrics, evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Rewards (pairs, 2) and labels (pairs, 2) = subset, target margin; Trainer gathers them without repeats."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            chosen, rejected = self.pair_rewards(model, inputs)
        margin = inputs.get("margin", torch.zeros_like(chosen))
        return None, torch.stack([chosen, rejected], 1), torch.stack([inputs["subset_id"].to(margin.dtype), margin], 1)

    def saved_rewards(self, pairs) -> list[float]:
        """Rewards of encoded pairs (chosen, rejected, chosen, ...) as the saved files will give them: one text at a time,
        without autocast. Sharded models (DeepSpeed, FSDP) compute in their own way, which `predict` follows.

        To be called when training is over: it takes accelerate's autocast wrapper off the model.
        """
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return self.predict(pairs).predictions.flatten().tolist()
        model = self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False).eval()
        ids = [row[side] for row in pairs for side in ("chosen_ids", "rejected_ids")]
        with torch.inference_mode():
            return [
                model(input_ids=torch.tensor([i], device=self.args.device)).logits[0, 0].float().item() for i in ids
            ]

    def pair_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Over all pairs at once: loss, accuracy (ties one half), tie rate, n, margin, and accuracy a subset."""
        rewards = torch.as_tensor(prediction.predictions)
        subset, target = torch.as_tensor(prediction.label_ids).unbind(1)
        margin = rewards[:, 0] - rewards[:, 1]
        correct = (margin > 0).double() + 0.5 * (margin == 0).double()
        metrics = {
            "loss": self.pair_losses(rewards[:, 0], rewards[:, 1], target).mean().item(),
            "accuracy": correct.mean().item(),
            "tie_rate": (margin == 0).double().mean().item(),
            "n": len(margin),
            "margin": margin.mean().item(),
            "reward_std": rewards.std().item(),
        }
        present = subset.long().unique().tolist()
        if len(present) > 1:
            metrics |= {f"accuracy_{self.subsets[i]}": correct[subset.long() == i].mean().item() for i in present}
        return metrics
