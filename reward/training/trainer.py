"""The `trl.RewardTrainer` subclass that train_rm.py runs.

What it changes in TRL's trainer, and why:
- The loss of a step is the mean over the *pairs* of the step, across micro-batches and processes.
  TRL takes the mean of batch means, so that a step of 4 + 2 pairs has another gradient than a step
  of 6.
- Where the model allows it, a micro-batch has no padding, and each shared prefix is computed once
  (reward.model.packed_attention).
- It has the objectives of reward.training.losses, and rankings: all pairs of a ranking come in one
  step and weigh as much as one pair together, and each completion is computed once.
- Accuracy is counted over pairs, ties as one half, with the number of pairs, and for each subset.
  TRL takes the mean of batch means and counts ties as errors.
- A loss or gradient that is not finite stops the run before the optimizer step and before anything
  is saved. (DeepSpeed's engine steps in `backward`: there it stops after the step.) transformers
  logs such a loss as 0.0, and saves.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import DistributedType
from accelerate.utils import send_to_device
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import BatchRebalanceSampler, LengthGroupedSampler
from transformers.trainer_utils import SaveStrategy, TrainOutput
from trl import RewardConfig, RewardTrainer

from reward.checkpoint.folders import remove
from reward.data.tokens import by_ranking
from reward.model.batches import (
    BATCH_LABELS,
    LABEL_DEFAULTS,
    SIDES,
    CollatedBatch,
    MicroBatch,
    PreferenceCollator,
)
from reward.model.heads import Float32Head, head_of, no_cache, rewards_from_logits
from reward.model.hub import ModelError
from reward.model.packed_attention import (
    SelfTestResult,
    drops_out,
    enable_packing,
    self_test,
    why_training_not_packed,
)
from reward.training.length_head import LengthHead
from reward.training.losses import LOSSES, centering, smooth
from reward.training.resumption import SinceLastLog, dtypes_kept, make_up, restore


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite. Nothing of this step is saved.

    Nor is the step applied, except where DeepSpeed's engine has stepped in the backward.
    """


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


class PairSums(NamedTuple):
    """Sums over training pairs since the last log. Pairs that the raters tie are left out."""

    pairs: float
    correct: float  # pairs whose chosen side has the higher reward; equal rewards count one half
    ties: float  # pairs with equal rewards
    margin: float
    reward: float  # of both sides
    tokens: float  # that the model read, of all pairs


def precision_of_sums(device: torch.device) -> torch.dtype:
    """The dtype of sums over many pairs; Apple's GPUs have no float64."""
    if device.type == "mps":
        return torch.float32
    return torch.float64


class SelfTest(TrainerCallback):
    """Compares packed batches with padded ones before the first step.

    This is done with the engine that will train, because only then the model is wrapped in it.
    """

    def __init__(self, trainer: "PairTrainer"):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self.trainer.compare_packed_with_padded()
        if state.is_world_process_zero:
            print(f"batches: {self.trainer.packing}", flush=True)


class OrderByLength(torch.utils.data.Sampler):
    """transformers' order of `group_by_length`, drawn anew in each epoch from a seed of its own.

    transformers draws it from whatever random number is next, which a resumed run does not know.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int):
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.sampler)


def batch_rows(table: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Return the rows that a batch is made of: rankings where pairs share one, otherwise pairs."""
    if not isinstance(table, Dataset) or "ranking" not in table.column_names:
        return table
    rankings = by_ranking(table)
    if len(rankings) == len(table):
        return table
    return rankings


def train_in_float32(model: torch.nn.Module) -> None:
    """Cast the weights that are trained, and no other, to float32.

    fp16's loss scaler takes no gradients in bf16 or fp16, which a base in half precision has, and
    so have the adapters that TRL puts on 4-bit layers.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


class PairTrainer(RewardTrainer):
    """`trl.RewardTrainer` on pairs that reward.data.splits has encoded.

    Where several pairs share a `ranking`, per_device_train_batch_size counts rankings.

    Args:
        model: What reward.model.build has built.
        args: TRL's own settings. `logging_nan_inf_filter` is turned off.
        train_dataset: The encoded training pairs, or a stream of them.
        processing_class: The checkpoint's tokenizer; its pad token counts.
        options: The settings that TRL does not have.
        **kwargs: Passed on to `trl.RewardTrainer`.

    Attributes:
        packing: Says in words how batches are laid out, and why.
        evaluated_rewards: Rewards of the pairs of the last evaluation, chosen and rejected, in
            their order, (pairs, 2); None before.

    Raises:
        ModelError: With `prefix_sharing="on"`, where the model cannot be packed.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the pairs of the whole step

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        args: RewardConfig,
        train_dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        options: PairOptions,
        **kwargs,
    ):
        self.options = options
        self.objective = LOSSES[options.loss_type]
        self.loss_function = self.objective.function
        if options.tie_margin is not None:
            self.loss_function = partial(self.loss_function, tie_margin=options.tie_margin)
        args.logging_nan_inf_filter = False  # it would write 0.0 for NaN
        padded_because = why_training_not_packed(model, args, options.prefix_sharing)
        if padded_because is None:
            enable_packing(model)
        head_bias = head_of(model)[1].bias
        freezes_bias = head_bias is not None and not head_bias.requires_grad
        label_names = (model.config.id2label, model.config.label2id)
        # TRL takes no other number of labels; of two logits, this trainer reads logit 1. Setting
        # id2label below sets num_labels back.
        model.config.num_labels = 1
        super().__init__(
            model=model,
            args=args,
            train_dataset=batch_rows(train_dataset),
            processing_class=processing_class,
            data_collator=PreferenceCollator(
                processing_class.pad_token_id,
                args.pad_to_multiple_of,
                train_dataset,
                options.token_budget,
            ),
            compute_metrics=self.pair_metrics,
            **kwargs,
        )
        model.config.id2label, model.config.label2id = label_names
        if freezes_bias:
            self._freeze_head_bias()
        self._keep_rewards_in_float32()
        if args.fp16 and not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            train_in_float32(self.model)
        self.no_cache = no_cache(self.model.config)
        self._set_packing(padded_because)
        self.add_callback(SelfTest(self))
        self.since_last_log = SinceLastLog(self)
        self.add_callback(self.since_last_log)
        self._train_sampler: torch.utils.data.Sampler | None = None
        self._goes_on_from: Path | None = None  # a checkpoint that is not yet gone on from
        # As PairSums. It lies where the engine reduces it: NCCL takes no tensor on the CPU.
        self._window = torch.zeros(
            len(PairSums._fields), dtype=precision_of_sums(args.device), device=args.device
        )
        self.evaluated_rewards: torch.Tensor | None = None
        self.length_head = None
        if options.length_head:
            self.length_head = LengthHead(self.accelerator)
            self.add_callback(self.length_head)

    def _keep_rewards_in_float32(self) -> None:
        """Let FSDP2 hand on the head's float32 rewards, which accelerate has it round."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        policy = getattr(plugin, "mixed_precision_policy", None)
        if hasattr(policy, "output_dtype"):
            plugin.mixed_precision_policy = replace(policy, output_dtype=None)

    def _freeze_head_bias(self) -> None:
        """Keep `head_bias: false`: peft trains the whole head, and so would train a frozen bias."""
        for module in self.model.modules():
            if isinstance(module, Float32Head):
                module.bias.requires_grad = False

    def _set_signature_columns_if_needed(self) -> None:
        """Name the columns that reach the collator.

        TRL names `chosen_ids`, `rejected_ids` and `margin`.
        """
        own = ["chosen_ids", "rejected_ids", "rows", "pairs", *LABEL_DEFAULTS]
        # `train_sampling_strategy: group_by_length` reads `length` from the dataset.
        self._signature_columns = [*own, "length"]

    def _prepare_input(self, data):
        """Move tensors to the device and leave their dtype; transformers casts under DeepSpeed.

        What reaches the model are integers. The floats are labels, which bf16 would round: a rating
        of 85.3 to 85.5, the number 257 of a subset to 256.
        """
        return send_to_device(data, self.args.device)

    def _prepare_dataset(self, dataset, *args, **kwargs):
        """Return the dataset as it is, for it is encoded already. TRL tokenises it."""
        return dataset

    def create_model_card(self, *args, **kwargs) -> None:
        """Write no card. TRL writes one at each save; ours is written once, by run.py."""

    # --- The packing ------------------------------------------------------------------------------

    def _set_packing(self, padded_because: str | None, measured: str = "") -> None:
        """Use packed batches from now on, or padded ones.

        Args:
            padded_because: Why batches are padded; None packs them.
            measured: What the comparison with padded batches gave, to be said in `packing`.
        """
        must_share = self.options.prefix_sharing == "on"
        if padded_because and must_share:
            raise ModelError(f"prefix_sharing: on, but {padded_because}; set prefix_sharing: auto")
        collator = self.data_collator
        collator.packed = padded_because is None
        collator.share_prefixes = collator.packed and not drops_out(self.model)
        if padded_because:
            self.packing = f"padded batches, because {padded_because}"
            return
        if collator.share_prefixes:
            self.packing = f"each shared prefix computed once, no padding{measured}"
            return
        not_shared_because = self._why_prefixes_not_shared()
        if must_share:
            raise ModelError(
                "prefix_sharing: on, but both sides of a pair would share their dropout, because "
                f"{not_shared_because}"
            )
        self.packing = (
            f"no padding{measured}; prefixes are not shared, because {not_shared_because}"
        )

    def _why_prefixes_not_shared(self) -> str:
        """Return the end of a sentence: where the dropout comes from, and how to turn it off."""
        if self.args.disable_dropout:
            return (
                "of dropout in the model's config, which disable_dropout does not reach: set it to "
                "0 in model_init_kwargs"
            )
        return "of dropout: disable_dropout: true turns it off"

    def compare_packed_with_padded(self) -> None:
        """Fall back to padded batches where packed ones give something else, on any process.

        Up to two pairs of each of the first two training rows are compared.
        """
        collator = self.data_collator
        if not collator.packed:
            return
        texts = []
        for row in islice(self.train_dataset, 2):
            for pair in collator.pairs_of(row)[:2]:
                texts += [pair[side] for side in SIDES]
        result = self_test(
            self.model_wrapped,
            texts,
            collator.pad_token_id,
            collator.share_prefixes,
            device=self.args.device,
        )
        numbers = torch.tensor([[result.difference, result.allowed]], device=self.args.device)
        largest = self.accelerator.gather(numbers).amax(0)  # of all processes
        result = SelfTestResult(*largest.tolist())
        measured = f", which differs by {result.difference:.1e} from the padded forward"
        self._set_packing(result.why_padded, measured)

    # --- The loss ---------------------------------------------------------------------------------

    def pair_logits(self, model: torch.nn.Module, inputs: MicroBatch) -> torch.Tensor:
        """Compute the logits of the chosen and of the rejected side, float32 (pairs, 2, labels)."""
        logits = model(**inputs["texts"], **self.no_cache).logits  # (texts, labels)
        return logits.float()[inputs["sides"]]

    def pair_losses(
        self, logits: torch.Tensor, labels: MicroBatch | dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Compute the loss of each pair. Training takes the mean, and evaluation reports it.

        Args:
            logits: Logits of the chosen and of the rejected side, (pairs, 2, labels).
            labels: The label columns BATCH_LABELS, each (pairs,).

        Returns:
            The losses, (pairs,).
        """
        chosen, rejected = rewards_from_logits(logits).unbind(1)
        loss_labels = self._loss_labels(labels)
        if self.objective.takes_log_odds and logits.shape[-1] == 2:
            log_odds = logits[..., 1] - logits[..., 0]  # (pairs, 2)
            loss = self.loss_function(*log_odds.unbind(1), **loss_labels)
        else:
            length_reward = 0.0
            if self.length_head:
                length_reward = self.length_head.coefficient * labels["length_difference"]
            loss = self.loss_function(chosen + length_reward, rejected, **loss_labels)
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * centering(chosen, rejected)
        return loss

    def _loss_labels(self, labels: MicroBatch | dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the labels that the loss takes, each (pairs,), with smoothed probabilities."""
        loss_labels = {name: labels[name] for name in self.objective.labels}
        if "chosen_probability" in loss_labels:
            loss_labels["chosen_probability"] = smooth(
                loss_labels["chosen_probability"], self.options.label_smoothing
            )
        return loss_labels

    def _add_to_length_head(self, rewards: torch.Tensor, inputs: MicroBatch) -> None:
        """Let the length head see a micro-batch, whose rewards are (pairs, 2)."""
        labels = self._loss_labels(inputs)

        def loss_of_margin(margin: torch.Tensor) -> torch.Tensor:
            return self.loss_function(margin, torch.zeros_like(margin), **labels)

        self.length_head.add(rewards, inputs, loss_of_margin)

    def micro_batches(self, batch: CollatedBatch) -> list[MicroBatch]:
        """Cut the batch into micro-batches, the same number on every process.

        Sharded engines exchange weights in each forward, so that all processes need the same
        number. A micro-batch that fills up the number is marked `spare`, and counts for nothing.
        """
        parts = batch["micro_batches"]
        if self.data_collator.token_budget is None or self.accelerator.num_processes == 1:
            return parts
        count = torch.tensor([len(parts)], device=self.args.device)
        largest_count = int(self.accelerator.gather(count).max())
        spare = parts[0] | {"weight": torch.zeros_like(parts[0]["weight"]), "spare": True}
        return parts + [spare] * (largest_count - len(parts))

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: CollatedBatch,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run forward and backward of each micro-batch of a batch.

        transformers takes the whole batch in one forward. Engines exchange gradients at the last
        micro-batch only, as Trainer's loop does under gradient accumulation.
        """
        parts = self.micro_batches(inputs)
        sync = self.accelerator.sync_gradients
        sync_each = self._syncs_each_micro_batch()
        loss = 0.0
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            self.accelerator.gradient_state._set_sync_gradients(sync and last)
            exchange = nullcontext()
            if not last and not sync_each:
                exchange = self.accelerator.no_sync(model)
            with exchange:
                loss = loss + super().training_step(model, part, num_items_in_batch)
        return loss

    def _syncs_each_micro_batch(self) -> bool:
        """Return whether gradients are exchanged after every micro-batch, without `no_sync`."""
        # DeepSpeed knows by sync_gradients when to exchange. FSDP would keep whole gradients on
        # every process until the last micro-batch.
        sharded = (DistributedType.DEEPSPEED, DistributedType.FSDP)
        if self.accelerator.distributed_type in sharded:
            return True
        return self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)

    def _track_num_input_tokens(self, inputs: CollatedBatch) -> None:
        """Count the tokens of all micro-batches at once. transformers counts those of `input_ids`.

        It gathers each count from all processes, which may have unequal numbers of micro-batches.
        """
        counted = []
        for part in inputs["micro_batches"]:
            texts = part["texts"]
            ids = texts["input_ids"]
            no_padding = self.args.include_num_input_tokens_seen == "non_padding"
            if no_padding and "packing" not in texts:  # no packed token is padding
                ids = ids[texts["attention_mask"].bool()]
            counted.append(ids.flatten())
        ids = torch.cat(counted)
        super()._track_num_input_tokens({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def floating_point_ops(self, inputs: CollatedBatch) -> int:
        """Add up the operations of all micro-batches. transformers counts those of one batch."""
        operations = 0
        for part in inputs["micro_batches"]:
            operations += super().floating_point_ops(part["texts"])
        return operations

    def _get_num_items_in_batch(
        self, batch_samples: list[CollatedBatch], device: torch.device
    ) -> torch.Tensor:
        """Add up the weight of the pairs in the whole step, over micro-batches and processes.

        transformers counts the tokens of `labels`, which these batches do not have.
        """
        self._drop_repeats(batch_samples)
        weight = torch.zeros(())
        for batch in batch_samples:
            for part in batch["micro_batches"]:
                weight = weight + part["weight"].sum()
        return self.accelerator.reduce(weight.to(device))

    def _drop_repeats(self, batch_samples: list[CollatedBatch]) -> None:
        """Give no weight to pairs that an epoch's last batches repeat.

        Every process needs the same number of pairs, so the last batches are filled up with the
        epoch's first pairs.
        """
        processes = self.accelerator.num_processes
        ends = self.accelerator.gradient_state.end_of_dataloader
        if processes == 1 or not ends or self.args.dataloader_drop_last or not batch_samples:
            return
        if not isinstance(self.train_dataset, Dataset):
            return
        if self.args.train_sampling_strategy == "batch_rebalance":
            return  # it deals out the last pairs, and repeats none while each process gets one
        parts = batch_samples[-1]["micro_batches"]
        batch_size = 1 + max(int(part["example"].max()) for part in parts)
        # Not the remainder of gradient_state, which an epoch that was resumed lacks.
        rows_in_round = len(self.train_dataset) % (batch_size * processes)
        if rows_in_round == 0:
            rows_in_round = batch_size * processes
        # Whole batches are dealt out to the processes in turn.
        real_rows = rows_in_round - self.accelerator.process_index * batch_size
        for part in parts:
            part["weight"] = part["weight"] * (part["example"] < real_rows)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: MicroBatch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Divide the weighted sum of the losses by the weight of the step.

        TRL takes the mean of the batch.

        Raises:
            NonFiniteError: Where the loss of a pair is not finite.
        """
        logits = self.pair_logits(model, inputs)
        loss = self.pair_losses(logits, inputs)
        if not torch.isfinite(loss).all():
            raise NonFiniteError(
                f"the loss is not finite at step {self.state.global_step + 1}: "
                f"{int((~torch.isfinite(loss)).sum())} of {len(loss)} pairs. Lower learning_rate, "
                "or train in bf16 or float32 instead of fp16."
            )
        if "spare" not in inputs:
            rewards = rewards_from_logits(logits.detach())
            self._add_to_window(rewards, inputs)
            if self.length_head:
                self._add_to_length_head(rewards, inputs)
        weight = inputs["weight"]
        if num_items_in_batch is None:
            return (loss * weight).sum() / weight.sum()
        # DDP, FSDP and DeepSpeed average gradients over processes, and the sum over the pairs of
        # the step is wanted.
        return (loss * weight).sum() * self.accelerator.num_processes / num_items_in_batch

    def _get_grad_norm(
        self, model: torch.nn.Module, grad_norm: torch.Tensor | float | None = None
    ) -> torch.Tensor | float | None:
        """Return the norm of the gradients. transformers only logs one that is not finite.

        Raises:
            NonFiniteError: Where the norm is not finite. Under fp16 it may be: the loss scaler
                starts high, and skips by itself each step that overflows.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is None or self.args.fp16 or torch.isfinite(torch.as_tensor(norm)).all():
            return norm
        raise NonFiniteError(
            f"the gradient norm is {float(norm)} at step {self.state.global_step + 1}. Lower "
            "learning_rate, or set max_grad_norm."
        )

    # --- Going on from a checkpoint, and saving one -----------------------------------------------

    def train(self, resume_from_checkpoint: str | None = None, **options) -> TrainOutput:
        """Train, or go on from the folder of a checkpoint as if there had been no break."""
        if resume_from_checkpoint is not None:
            self._goes_on_from = Path(resume_from_checkpoint)
            self.args.eval_on_start = False  # this is not the start
            self.args.restore_callback_states_from_checkpoint = False  # `restore` does so always
        return super().train(resume_from_checkpoint, **options)

    def _prepare_for_training(self, *args, **options) -> tuple:
        """Let the backward end at the first block that is trained.

        For activation checkpointing transformers has the embeddings ask for a gradient, which only
        its reentrant form needs. Frozen blocks would compute it, and be computed again for it.
        """
        how = self.args.activation_checkpointing_kwargs or {}
        if self.args.activation_checkpointing and not how.get("use_reentrant"):
            self.model.disable_input_require_grads()
        return super()._prepare_for_training(*args, **options)

    def _go_on(self) -> None:
        """Restore the rest of the checkpoint, and do what was due after its step, once."""
        if self._goes_on_from is not None:
            restore(self, self._goes_on_from)
            make_up(self)
            self._goes_on_from = None

    def _load_from_checkpoint(self, *args) -> None:
        with dtypes_kept(self.model):
            super()._load_from_checkpoint(*args)

    def _load_best_model(self) -> None:
        with dtypes_kept(self.model):
            super()._load_best_model()
        if self.length_head:  # the loss of the best model counts its own length term
            best = Path(self.state.best_model_checkpoint, TRAINER_STATE_NAME)
            self.length_head.restore(TrainerState.load_from_json(str(best)))

    def _get_train_sampler(self, *args) -> torch.utils.data.Sampler | None:
        sampler = super()._get_train_sampler(*args)
        if isinstance(sampler, LengthGroupedSampler):
            sampler = OrderByLength(sampler, self.args.seed)
        self._train_sampler = sampler
        return sampler

    def _get_dataloader(self, *args, is_training: bool = False, **options) -> DataLoader:
        """Return the batches of a table, and leave out no pair of an evaluation.

        Under `dataloader_drop_last` transformers does, and among them may be golden pairs.
        """
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **options)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _get_eval_sampler(self, eval_dataset: Dataset) -> torch.utils.data.Sampler:
        """Evaluate pairs in their order: the rewards are read by their place.

        transformers orders them by length under `group_by_length`.
        """
        return torch.utils.data.SequentialSampler(eval_dataset)

    def _run_epoch(self, **options) -> None:
        """Train an epoch, but none if the run has all its steps already, or has stopped early.

        transformers looks at the number of steps behind a step alone. So a finished run that is
        resumed would train one step more, and another one at each further resume.
        """
        self._go_on()
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if isinstance(self._train_sampler, OrderByLength | BatchRebalanceSampler):
            # In an epoch that is resumed, accelerate does not find it behind the skipped batches.
            self._train_sampler.set_epoch(options["epoch"])
        super()._run_epoch(**options)

    def _finalize_training(self, *args, **options) -> TrainOutput:
        self._go_on()  # a run with all its epochs trains none
        return super()._finalize_training(*args, **options)

    def _save_checkpoint(self, model: torch.nn.Module, trial: None) -> None:
        """Save a checkpoint, unless it is the one that training goes on from.

        That one holds the same weights, and must not be half written at any moment: it may be the
        only one.
        """
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        if self._goes_on_from is not None and self._goes_on_from.resolve() == folder.resolve():
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(folder)
            return
        if self.is_world_process_zero():
            remove(folder)  # what an earlier run left there, or a link
        self.accelerator.wait_for_everyone()
        self.since_last_log.collect()
        try:
            super()._save_checkpoint(model, trial)
        except BaseException:
            if self.is_world_process_zero():
                remove(folder)
            raise

    def _determine_best_metric(self, metrics: dict[str, float], trial: None) -> bool:
        """Return whether an evaluation is the best so far.

        Only one whose weights are saved can be. transformers also takes others, and then loads no
        checkpoint at the end, or one that a signal happened to write.
        """
        if self.args.save_strategy != SaveStrategy.BEST and not self.control.should_save:
            return False
        return super()._determine_best_metric(metrics, trial)

    def evaluate(self, *args, **options) -> dict[str, float]:
        """Evaluate without a random number: training goes on with the same ones at any time."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **options)

    # --- Metrics of training ----------------------------------------------------------------------

    def _add_to_window(self, rewards: torch.Tensor, inputs: MicroBatch) -> None:
        """Add the rewards (pairs, 2) of a micro-batch to the sums since the last log."""
        counted = (inputs["chosen_probability"] != 0.5) & (inputs["weight"] > 0)
        rewards = rewards[counted]  # of a tie by the raters no side is right
        margin = rewards[:, 0] - rewards[:, 1]
        sums = PairSums(
            pairs=len(margin),
            correct=((margin > 0) + 0.5 * (margin == 0)).sum(),
            ties=(margin == 0).sum(),
            margin=margin.sum(),
            reward=rewards.sum(),
            tokens=inputs["tokens"],
        )
        dtype, device = self._window.dtype, self._window.device
        self._window += torch.stack(
            [torch.as_tensor(value, dtype=dtype, device=device) for value in sums]
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log means over all pairs since the last log, of all processes.

        TRL logs means of batch means. This adds `accuracy` (ties are one half), `tie_rate`,
        `margin`, `reward`, `num_tokens`, and the `length_coefficient` of a length head.
        """
        if "loss" in logs:
            sums = PairSums(*self.accelerator.reduce(self._window).tolist())
            self._window.zero_()
            self._total_train_tokens += int(sums.tokens)
            if sums.pairs:
                logs["accuracy"] = sums.correct / sums.pairs
                logs["tie_rate"] = sums.ties / sums.pairs
                logs["margin"] = sums.margin / sums.pairs
                logs["reward"] = sums.reward / (2 * sums.pairs)
            logs["num_tokens"] = self._total_train_tokens
            if self.length_head:
                logs["length_coefficient"] = self.length_head.coefficient
        self._metrics["train"].clear()
        self._metrics["eval"].clear()
        super().log(logs, start_time)

    # --- Metrics of evaluation --------------------------------------------------------------------

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: CollatedBatch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Return no loss, the logits (pairs, 2, labels), and BATCH_LABELS (pairs, 6) of a batch.

        transformers computes a loss for each batch. Here pair_metrics does so for all pairs at
        once, because Trainer gathers logits without the repeats of a last batch.
        """
        parts = self.micro_batches(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = [self.pair_logits(model, part) for part in parts]
        own_parts = parts[: len(inputs["micro_batches"])]  # without the spare ones
        logits = logits[: len(own_parts)]
        labels = []
        for part in own_parts:
            labels.append(torch.stack([part[name] for name in BATCH_LABELS], 1))
        # In the order in which the pairs were given: where a last batch was filled up with other
        # pairs, Trainer cuts off its end.
        as_given = inputs["order"].argsort()
        return None, torch.cat(logits)[as_given], torch.cat(labels)[as_given]

    def saved_rewards(self, pairs: Dataset) -> list[float]:
        """Compute the rewards of encoded pairs as the saved files will give them.

        One text is computed at a time, without autocast, float32 products are not rounded (as
        `tf32` and `torch_compile` do), and FlashAttention, which has no float32, gives way. Sharded
        models (DeepSpeed, FSDP) compute in their own way, which `predict` follows. To be called
        when training is over: this takes accelerate's autocast wrapper off the model.

        Args:
            pairs: Encoded pairs.

        Returns:
            Two rewards for each pair, in turn: chosen, rejected, chosen, ...
        """
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            logits = torch.as_tensor(self.predict(pairs).predictions)  # (pairs, 2, labels)
            return rewards_from_logits(logits).flatten().tolist()
        model = self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False).eval()
        if "flash" in model.config._attn_implementation:
            model.set_attn_implementation("sdpa")
        for products in (torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
            products.fp32_precision = "ieee"
        rewards = []
        with torch.inference_mode():
            for row in pairs:
                for side in SIDES:
                    ids = torch.tensor([row[side]], device=self.args.device)
                    logits = model(input_ids=ids).logits  # (1, labels)
                    rewards.append(rewards_from_logits(logits)[0].item())
        return rewards

    def pair_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute metrics over all pairs at once. TRL takes the means of batch means.

        Returns:
            `loss`, `accuracy` (ties are one half), `tie_rate`, `n`, `margin`, `reward_mean` and
            `reward_std` of both sides, and `accuracy_NAME` for each subset where there are several.
        """
        logits = torch.as_tensor(prediction.predictions)  # (pairs, 2, labels)
        columns = torch.as_tensor(prediction.label_ids).unbind(1)
        labels = dict(zip(BATCH_LABELS, columns, strict=True))
        rewards = rewards_from_logits(logits)
        self.evaluated_rewards = rewards
        margin = rewards[:, 0] - rewards[:, 1]
        correct = (margin > 0).double() + 0.5 * (margin == 0).double()
        metrics = {
            "loss": self.pair_losses(logits, labels).mean().item(),
            "accuracy": correct.mean().item(),
            "tie_rate": (margin == 0).double().mean().item(),
            "n": len(margin),
            "margin": margin.mean().item(),
            "reward_mean": rewards.mean().item(),
            "reward_std": rewards.std().item(),
        }
        subset_ids = labels["subset_id"].long()
        present = subset_ids.unique().tolist()
        if len(present) > 1:
            for subset_id in present:
                accuracy = correct[subset_ids == subset_id].mean().item()
                metrics[f"accuracy_{self.options.subsets[subset_id]}"] = accuracy
        return metrics
