"""The RewardTrainer subclass that train_rm.py runs: losses, metrics a pair, and guards.

What it changes in `trl.RewardTrainer`, and why:
- the loss of a step is the mean over the *pairs* of the step, across micro-batches and processes (TRL: mean of batch means,
  so that a step of 4 + 2 pairs has another gradient than one of 6);
- where the model allows it, a micro-batch has no padding and each shared prefix is computed once (reward.model.packed_attention);
- the objectives of reward.training.losses, and rankings: all pairs of one come in one step, weigh as much as one pair together, and each
  completion is computed once;
- accuracy is counted a pair, ties one half, with n, and a subset (TRL: mean of batch means, ties are errors);
- a loss or gradient that is not finite stops the run before the optimizer step (under DeepSpeed, whose engine steps in
  `backward`, after it) and before anything is saved; transformers logs it as 0.0 and saves.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from accelerate import DistributedType
from datasets import Dataset
from transformers import EvalPrediction, TrainerCallback
from trl import RewardTrainer

from reward.data.tokens import by_ranking
from reward.model.batches import BATCH_LABELS, LABEL_DEFAULTS, SIDES, PreferenceCollator
from reward.model.heads import Float32Head, head_of, no_cache, rewards_from_logits
from reward.model.hub import ModelError
from reward.model.packed_attention import drops_out, enable_packing, self_test, why_not_packed
from reward.training.length_head import LengthHead
from reward.training.losses import LOSSES, centering, smooth


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite; nothing of this step was applied or saved."""


@dataclass(frozen=True)
class PairOptions:
    """The settings of PairTrainer that `trl.RewardTrainer` does not have.

    All but `subsets` are keys of the recipe and mean there what they mean here.
    """

    subsets: list[str]  # the name of each subset; a pair's `subset_id` is its index here
    loss_type: str = "bradley_terry"  # one of reward.training.losses.LOSSES
    label_smoothing: float = 0.0  # the share of the labels that is taken to be wrong
    tie_margin: float | None = None  # of the rao_kupper loss; None is the loss's own default
    length_head: bool = False  # whether reward.training.length_head trains beside the model
    prefix_sharing: str = "auto"  # auto, on or off; docs/speed.md
    token_budget: int | None = None  # computed tokens of a micro-batch; None sets no limit


class SelfTest(TrainerCallback):
    """Before the first step: whether packed batches really give what padded ones do, with the engine that will train."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.test_packing()
        if state.is_world_process_zero:
            print(f"batches: {self.trainer.packing}", flush=True)


class PairTrainer(RewardTrainer):
    """`trl.RewardTrainer` on pairs that reward.data.splits has encoded, with the settings of PairOptions.

    Where several pairs share a `ranking`, per_device_train_batch_size counts rankings. `packing` says in words whether
    batches are packed. Raises ModelError where `prefix_sharing="on"` and the model cannot be packed.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the pairs of the whole step

    def __init__(self, *args, train_dataset, options: PairOptions, **kwargs):
        self.options = options
        self.pair_loss = LOSSES[options.loss_type].function
        self.loss_labels = LOSSES[options.loss_type].labels
        if options.tie_margin is not None:
            self.pair_loss = partial(self.pair_loss, tie_margin=options.tie_margin)
        training_args = kwargs["args"]
        training_args.logging_nan_inf_filter = False  # it would write 0.0 for NaN
        table = train_dataset
        if isinstance(table, Dataset) and "ranking" in table.column_names:
            rankings = by_ranking(table)
            train_dataset = table if len(rankings) == len(table) else rankings
        because = why_not_packed(kwargs["model"], training_args, options.prefix_sharing)
        if because is None:
            enable_packing(kwargs["model"])
        config, head_bias = kwargs["model"].config, head_of(kwargs["model"])[1].bias
        no_bias = head_bias is not None and not head_bias.requires_grad
        labels = config.id2label, config.label2id
        config.num_labels = 1  # TRL takes no other number; of two, ours reads logit 1
        super().__init__(
            *args,
            train_dataset=train_dataset,
            data_collator=PreferenceCollator(
                kwargs["processing_class"].pad_token_id,
                training_args.pad_to_multiple_of,
                table,
                options.token_budget,
            ),
            compute_metrics=self.pair_metrics,
            **kwargs,
        )
        config.id2label, config.label2id = labels
        for module in (
            self.model.modules()
        ):  # peft trains the whole head, with a bias that `head_bias: false` froze
            if no_bias and isinstance(module, Float32Head):
                module.bias.requires_grad = False
        self.no_cache = no_cache(self.model.config)
        self._set_packing(because)
        self.add_callback(SelfTest(self))
        self._window = torch.zeros(
            6, dtype=torch.float64
        )  # sums since the last log, see _add_to_window
        self.length_head = LengthHead(self.accelerator) if options.length_head else None
        if self.length_head:
            self.add_callback(self.length_head)

    def _set_signature_columns_if_needed(self):
        # `length` is here for train_sampling_strategy: group_by_length, which reads it from the dataset.
        self._signature_columns = [
            "chosen_ids",
            "rejected_ids",
            "rows",
            "pairs",
            "length",
            *LABEL_DEFAULTS,
        ]

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset  # reward.data.splits has encoded it

    def create_model_card(self, *args, **kwargs):
        pass  # reward.checkpoint.card writes it, once, when the numbers are known

    # ------------------------------------------------------------------------------------------------------ the packing

    def _set_packing(self, because: str | None, found: str = "") -> None:
        """Packed batches from now on, or padded ones `because` of something."""
        if because and self.options.prefix_sharing == "on":
            raise ModelError(f"prefix_sharing: on, but {because}; set prefix_sharing: auto")
        collator = self.data_collator
        collator.packed = because is None
        collator.share_prefixes = collator.packed and not drops_out(self.model)
        random = "of dropout: disable_dropout: true turns it off"
        if self.args.disable_dropout:
            random = "of dropout in the model's config, which disable_dropout does not reach: set it to 0 in model_init_kwargs"
        if because:
            self.packing = f"padded batches, because {because}"
        elif collator.share_prefixes:
            self.packing = f"each shared prefix computed once, no padding{found}"
        elif self.options.prefix_sharing == "on":
            raise ModelError(
                f"prefix_sharing: on, but both sides of a pair would share their dropout, because {random}"
            )
        else:
            self.packing = f"no padding{found}; prefixes are not shared, because {random}"

    def test_packing(self) -> None:
        """Compare packed with padded on the first two training pairs, on every process; padded batches where they differ."""
        collator = self.data_collator
        if not collator.packed:
            return
        pairs = [
            pair for row in islice(self.train_dataset, 2) for pair in collator.pairs_of(row)[:2]
        ]
        texts = [pair[side] for pair in pairs for side in SIDES]
        result = self_test(
            self.model_wrapped,
            texts,
            collator.pad_token_id,
            collator.share_prefixes,
            device=self.args.device,
        )
        apart, limit = (
            self.accelerator.gather(
                torch.tensor([[result.difference, result.allowed]], device=self.args.device)
            )
            .amax(0)
            .tolist()
        )
        because = (
            None
            if apart <= limit
            else f"packed differs by {apart:.1e} from padded, more than {limit:.1e}"
        )
        self._set_packing(because, f", which differs by {apart:.1e} from the padded forward")

    # ------------------------------------------------------------------------------------------------------- the loss

    def pair_logits(self, model, inputs) -> torch.Tensor:
        """(pairs, 2, labels), float32: of the chosen and of the rejected side of a micro-batch."""
        logits = model(**inputs["texts"], **self.no_cache).logits  # (texts, labels)
        return logits.float()[inputs["sides"]]

    def pair_losses(self, logits, labels: dict) -> torch.Tensor:
        """(pairs,) of `logits` (pairs, 2, labels): what is trained on, and what evaluation reports the mean of."""
        chosen, rejected = rewards_from_logits(logits).unbind(1)
        found = {name: labels[name] for name in self.loss_labels}
        if "chosen_probability" in found:
            found["chosen_probability"] = smooth(
                found["chosen_probability"], self.options.label_smoothing
            )
        if self.options.loss_type == "classification" and logits.shape[-1] == 2:
            loss = self.pair_loss(*(logits[..., 1] - logits[..., 0]).unbind(1), **found)
        else:
            length = (
                self.length_head.coefficient * labels["length_difference"]
                if self.length_head
                else 0.0
            )
            loss = self.pair_loss(chosen + length, rejected, **found)
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * centering(chosen, rejected)
        return loss

    def micro_batches(self, batch: dict) -> list[dict]:
        """Its micro-batches, as many as any process has: sharded engines exchange weights in each forward. A `spare` one
        counts for nothing."""
        parts = batch["micro_batches"]
        if self.data_collator.token_budget is None or self.accelerator.num_processes == 1:
            return parts
        most = int(
            self.accelerator.gather(torch.tensor([len(parts)], device=self.args.device)).max()
        )
        spare = parts[0] | {"weight": torch.zeros_like(parts[0]["weight"]), "spare": True}
        return parts + [spare] * (most - len(parts))

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Forward and backward of a batch's micro-batches; engines exchange gradients at the last one, as Trainer's loop
        has it for gradient accumulation."""
        parts, sync = self.micro_batches(inputs), self.accelerator.sync_gradients
        # DeepSpeed knows by sync_gradients; FSDP would keep whole gradients on every process until the last.
        each = self.accelerator.distributed_type in (
            DistributedType.DEEPSPEED,
            DistributedType.FSDP,
        )
        each = each or self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        loss = 0.0
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            self.accelerator.gradient_state._set_sync_gradients(sync and last)
            with nullcontext() if last or each else self.accelerator.no_sync(model):
                loss = loss + super().training_step(model, part, num_items_in_batch)
        return loss

    def _track_num_input_tokens(self, inputs):
        for part in inputs["micro_batches"]:  # none of packed tokens is padding
            texts = {"input_ids": part["texts"]["input_ids"]}
            super()._track_num_input_tokens(texts if "packing" in part["texts"] else part["texts"])

    def floating_point_ops(self, inputs):
        return sum(
            super(PairTrainer, self).floating_point_ops(part["texts"])
            for part in inputs["micro_batches"]
        )

    def _get_num_items_in_batch(self, batch_samples, device):
        """The weight of the pairs in the whole optimizer step, over micro-batches and processes."""
        self._drop_repeats(batch_samples)
        parts = [part for batch in batch_samples for part in batch["micro_batches"]]
        return self.accelerator.reduce(sum(part["weight"].sum() for part in parts).to(device))

    def _drop_repeats(self, batch_samples: list[dict]) -> None:
        """An epoch's last batches are filled up with its first pairs, for processes need as many each: no weight for those."""
        processes, data = self.accelerator.num_processes, self.train_dataset
        ends = (
            self.accelerator.gradient_state.end_of_dataloader and not self.args.dataloader_drop_last
        )
        if processes == 1 or not ends or not batch_samples or not isinstance(data, Dataset):
            return
        parts = batch_samples[-1]["micro_batches"]
        size = 1 + max(int(part["example"].max()) for part in parts)
        # Not gradient_state's remainder, which a resumed epoch lacks.
        real = (
            len(data) % (size * processes) or size * processes
        ) - self.accelerator.process_index * size
        for part in parts:  # whole batches are dealt out in turn
            part["weight"] = part["weight"] * (part["example"] < real)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = self.pair_logits(model, inputs)
        loss = self.pair_losses(logits, inputs)
        if not torch.isfinite(loss).all():
            raise NonFiniteError(
                f"the loss is not finite at step {self.state.global_step + 1}: {int((~torch.isfinite(loss)).sum())} of "
                f"{len(loss)} pairs. Lower learning_rate, or train in bf16 or float32 instead of fp16."
            )
        if "spare" not in inputs:
            self._add_to_window(rewards_from_logits(logits.detach()), inputs)
            if self.length_head:
                self.length_head.add(rewards_from_logits(logits.detach()), inputs)
        weight = inputs["weight"]
        if num_items_in_batch is None:
            return (loss * weight).sum() / weight.sum()
        # DDP, FSDP and DeepSpeed average gradients over processes; the sum over the step's pairs is wanted.
        return (loss * weight).sum() * self.accelerator.num_processes / num_items_in_batch

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # fp16's loss scaler starts high, and skips by itself each step that overflows.
        if (
            norm is not None
            and not self.args.fp16
            and not torch.isfinite(torch.as_tensor(norm)).all()
        ):
            raise NonFiniteError(
                f"the gradient norm is {float(norm)} at step {self.state.global_step + 1}; nothing was saved. "
                "Lower learning_rate, or set max_grad_norm."
            )
        return norm

    # ------------------------------------------------------------------------------------------------ metrics, training

    def _add_to_window(self, rewards, inputs) -> None:
        # Of a tie by the raters no side is right.
        rewards = rewards[(inputs["chosen_probability"] != 0.5) & (inputs["weight"] > 0)]
        margin = rewards[:, 0] - rewards[:, 1]
        sums = [
            len(margin),
            ((margin > 0) + 0.5 * (margin == 0)).sum(),
            (margin == 0).sum(),
            margin.sum(),
            rewards.sum(),
        ]
        self._window = self._window.to(rewards.device)
        self._window += torch.stack(
            [
                torch.as_tensor(s, dtype=torch.float64, device=rewards.device)
                for s in (*sums, inputs["tokens"])
            ]
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
            if self.length_head:
                logs["length_coefficient"] = self.length_head.coefficient
        self._metrics["train"].clear()
        self._metrics["eval"].clear()
        super().log(logs, start_time)

    # ---------------------------------------------------------------------------------------------- metrics, evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Logits (pairs, 2, labels) and BATCH_LABELS (pairs, 5); Trainer gathers them without repeats."""
        parts = self.micro_batches(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = [self.pair_logits(model, part) for part in parts]
        real = len(inputs["micro_batches"])
        labels = [torch.stack([part[name] for name in BATCH_LABELS], 1) for part in parts[:real]]
        # As they were given: of a last batch that was filled up with others, Trainer cuts off the end.
        given = inputs["order"].argsort()
        return None, torch.cat(logits[:real])[given], torch.cat(labels)[given]

    def saved_rewards(self, pairs) -> list[float]:
        """Rewards of encoded pairs (chosen, rejected, chosen, ...) as the saved files will give them: one text at a time,
        without autocast. Sharded models (DeepSpeed, FSDP) compute in their own way, which `predict` follows.

        To be called when training is over: it takes accelerate's autocast wrapper off the model.
        """
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return (
                rewards_from_logits(torch.as_tensor(self.predict(pairs).predictions))
                .flatten()
                .tolist()
            )
        model = self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False).eval()
        ids = [row[side] for row in pairs for side in SIDES]
        with torch.inference_mode():
            return [
                rewards_from_logits(
                    model(input_ids=torch.tensor([i], device=self.args.device)).logits
                )[0].item()
                for i in ids
            ]

    def pair_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Over all pairs at once: loss, accuracy (ties one half), tie rate, n, margin, and accuracy a subset."""
        logits = torch.as_tensor(prediction.predictions)
        labels = dict(
            zip(BATCH_LABELS, torch.as_tensor(prediction.label_ids).unbind(1), strict=True)
        )
        rewards, subset = rewards_from_logits(logits), labels["subset_id"]
        margin = rewards[:, 0] - rewards[:, 1]
        correct = (margin > 0).double() + 0.5 * (margin == 0).double()
        metrics = {
            "loss": self.pair_losses(logits, labels).mean().item(),
            "accuracy": correct.mean().item(),
            "tie_rate": (margin == 0).double().mean().item(),
            "n": len(margin),
            "margin": margin.mean().item(),
            "reward_std": rewards.std().item(),
        }
        present = subset.long().unique().tolist()
        if len(present) > 1:
            metrics |= {
                f"accuracy_{self.options.subsets[i]}": correct[subset.long() == i].mean().item()
                for i in present
            }
        return metrics
