"""What a run would take, printed before it is started.

    python train_rm.py --recipe recipes/qwen-7b-zero3.yaml --plan accelerate_configs/zero3.yaml

Parameters come from the model's config, so no weights are loaded. Tokens come from the encoded
pairs, through the collator that training uses. How memory is estimated stands in
reward/training/memory.py.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import RewardConfig
from trl.trainer.utils import disable_dropout_in_model

from reward.model.batches import PackedInputs, PaddedInputs, PreferenceCollator
from reward.model.packed_attention import drops_out, why_training_not_packed
from reward.recipe.recipe import Recipe
from reward.training.engine import Engine
from reward.training.memory import (
    GIB,
    ModelMemory,
    PlannedModel,
    activation_bytes,
    computes_in,
    deepspeed_bytes,
    model_memory,
    plan_model,
)
from reward.training.runtime import cpu_precision
from reward.training.trainer import batch_rows

SAMPLED_BATCHES = 200  # tokens and the largest micro-batch are estimated from so many batches
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


# --- Tokens and steps -----------------------------------------------------------------------------


@dataclass
class TokenCounts:
    """What an epoch holds; of a stream, what its first batches hold.

    A row is what per_device_train_batch_size counts: a pair, or a ranking where pairs share one.
    """

    unit: str  # "pairs" or "rankings": what a row is
    rows: int
    read: int  # tokens of both sides of all pairs; 0 for a stream
    computed_per_row: float  # tokens that training computes
    padded_per_row: float  # tokens that TRL's padding would compute
    largest: int  # computed tokens of the largest micro-batch that was met
    paths: float | None  # tokens of its texts over its computed tokens; None where it is padded
    sampled_batches: int


def tokens_of(inputs: PackedInputs | PaddedInputs) -> int:
    """The computed tokens of a model's inputs, padding included."""
    return inputs["input_ids"].numel()


def count_tokens(
    table: Dataset | IterableDataset,
    collator: PreferenceCollator,
    rows_per_batch: int,
    seed: int = 0,
    rows_by_length: int | None = None,
) -> TokenCounts:
    """Count the tokens of the training pairs through the collator that training uses.

    Args:
        table: The encoded training pairs.
        collator: Makes the micro-batches; its `table` is set where rows are rankings.
        rows_per_batch: The recipe's per_device_train_batch_size.
        seed: The seed of the order in which rows are drawn.
        rows_by_length: Rows of like length are drawn together, among so many; None draws any.
    """
    rows, unit = _rows_of(table, collator, rows_per_batch)
    order = _order_of(rows, seed, rows_by_length)
    batches = [order[i : i + rows_per_batch] for i in range(0, len(order), rows_per_batch)]
    batches = batches[:: math.ceil(len(batches) / SAMPLED_BATCHES)]
    trl_collator = PreferenceCollator(
        collator.pad_token_id, collator.pad_to_multiple_of, collator.table
    )
    computed = padded = sampled_rows = 0
    largest = {}
    for batch in batches:
        examples = [rows[i] for i in batch]
        sampled_rows += len(examples)
        for inputs in _inputs_of(collator, examples):
            computed += tokens_of(inputs)
            if not largest or tokens_of(inputs) > tokens_of(largest):
                largest = inputs
        for inputs in _inputs_of(trl_collator, examples):
            padded += tokens_of(inputs)
    return TokenCounts(
        unit=unit,
        rows=len(rows),
        read=_tokens_read(table),
        computed_per_row=computed / sampled_rows,
        padded_per_row=padded / sampled_rows,
        largest=tokens_of(largest),
        paths=_paths_of(largest),
        sampled_batches=len(batches),
    )


def _rows_of(
    table: Dataset | IterableDataset, collator: PreferenceCollator, rows_per_batch: int
) -> tuple[list[dict] | Dataset, str]:
    """The rows that PairTrainer makes batches of, or a sample of a stream, and what a row is."""
    if not isinstance(table, Dataset):
        return list(islice(table, SAMPLED_BATCHES * rows_per_batch)), "pairs"
    rows = batch_rows(table)
    if rows is table:
        return table, "pairs"
    collator.table = table
    return rows, "rankings"


def _order_of(rows: list[dict] | Dataset, seed: int, rows_by_length: int | None) -> list[int]:
    """Indices of rows in the order of an epoch, drawn as transformers draws them."""
    generator = torch.Generator().manual_seed(seed)
    if not rows_by_length:
        return torch.randperm(len(rows), generator=generator).tolist()
    lengths = [row["length"] for row in rows]
    return list(LengthGroupedSampler(rows_by_length, lengths=lengths, generator=generator))


def _inputs_of(
    collator: PreferenceCollator, examples: list[dict]
) -> Iterator[PackedInputs | PaddedInputs]:
    """The model's inputs for each micro-batch of a batch."""
    for micro_batch in collator(examples)["micro_batches"]:
        yield micro_batch["texts"]


def _tokens_read(table: Dataset | IterableDataset) -> int:
    if not isinstance(table, Dataset):
        return 0
    read = 0
    for side in ("chosen_ids", "rejected_ids"):
        for ids in table[side]:
            read += len(ids)
    return read


def _paths_of(inputs: PackedInputs | PaddedInputs) -> float | None:
    packing = inputs.get("packing")
    if packing is None:
        return None
    return sum(packing["lengths"]) / sum(packing["queries"])


@dataclass
class Steps:
    """Optimizer steps."""

    epoch: int  # of one epoch
    run: int  # of the whole run


def count_steps(rows: int, args: RewardConfig, processes: int) -> Steps:
    """Count optimizer steps as transformers' Trainer does; `rows` are those of an epoch."""
    rounded = math.floor if args.dataloader_drop_last else math.ceil
    batches = rounded(rows / args.per_device_train_batch_size)
    epoch = math.ceil(rounded(batches / processes) / args.gradient_accumulation_steps)
    if args.max_steps > 0:
        return Steps(epoch, args.max_steps)
    return Steps(epoch, math.ceil(epoch * args.num_train_epochs))


# --- The plan of a run ----------------------------------------------------------------------------


@dataclass
class Plan:
    """Everything that the page of `--plan` says, and as a text this page."""

    recipe: Recipe
    engine: Engine
    args: RewardConfig
    model: PlannedModel
    dtype: torch.dtype  # in which weights are loaded
    precision: str  # "bf16", "fp16" or "float32": what a step computes in
    padded_because: str | None  # why batches are padded; None where they are packed
    shares_prefixes: bool
    streamed: bool  # whether the training pairs are a stream, whose length nobody knows
    tokens: TokenCounts
    steps: Steps
    memory: ModelMemory
    activations: float  # bytes on each GPU

    @property
    def rows_per_step(self) -> int:
        """Pairs, or rankings, of one optimizer step of all processes."""
        rows_per_process = self.args.per_device_train_batch_size
        return self.engine.processes * rows_per_process * self.args.gradient_accumulation_steps

    def __str__(self) -> str:
        lines = [
            f"plan of {self.recipe.path}: {self.engine}",
            _model_line(self),
            _steps_line(self),
            *_tokens_lines(self),
            *_memory_lines(self),
            *_how_lines(self),
        ]
        return "\n".join(lines)


def plan(
    recipe: Recipe,
    engine: Engine,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    table: Dataset | IterableDataset,
    args: RewardConfig,
    peft_config: PeftConfig | None,
    own_options: dict,
) -> Plan:
    """Plan a run; the text of the result is the page that `--plan` prints.

    Args:
        recipe: The recipe, with the overrides of the command line.
        engine: The engine that is planned for.
        config: The model's config.
        tokenizer: The checkpoint's tokenizer; its pad token counts.
        table: The encoded training pairs.
        args: The arguments of the trainer.
        peft_config: The adapter, or None.
        own_options: What else the model is made with: keys of its config, and
            `attn_implementation`.
    """
    config = _planned_config(config, recipe, own_options)
    dtype = _loaded_dtype(config, recipe)
    model_options = {"trust_remote_code": args.trust_remote_code}
    if own_options.get("attn_implementation"):
        model_options["attn_implementation"] = own_options["attn_implementation"]
    model = plan_model(config, dtype, recipe, peft_config, **model_options)
    precision = _computing_precision(recipe)
    half = HALF.get(precision)

    padded_because = why_training_not_packed(model.model, args, recipe["prefix_sharing"])
    collator = _training_collator(model, padded_because is None, recipe, tokenizer, args)
    tokens = _count_training_tokens(table, collator, args)
    activations = activation_bytes(
        config,
        model,
        tokens.largest,
        computes_in(engine, dtype, half),
        checkpointing=args.activation_checkpointing or engine.checkpoints,
        peft_config=peft_config,
        paths=tokens.paths,
        **model_options,
    )
    return Plan(
        recipe=recipe,
        engine=engine,
        args=args,
        model=model,
        dtype=dtype,
        precision=precision,
        padded_because=padded_because,
        shares_prefixes=collator.share_prefixes,
        streamed=not isinstance(table, Dataset),
        tokens=tokens,
        steps=count_steps(tokens.rows, args, engine.processes),
        memory=model_memory(model, engine, half is not None, args.optim),
        activations=activations,
    )


def _training_collator(
    model: PlannedModel,
    packed: bool,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    args: RewardConfig,
) -> PreferenceCollator:
    """The collator as PairTrainer would set it."""
    if args.disable_dropout:
        disable_dropout_in_model(model.model)
    collator = PreferenceCollator(
        tokenizer.pad_token_id, args.pad_to_multiple_of, token_budget=recipe["token_budget"]
    )
    collator.packed = packed
    collator.share_prefixes = packed and not drops_out(model.model)
    return collator


def _count_training_tokens(
    table: Dataset | IterableDataset, collator: PreferenceCollator, args: RewardConfig
) -> TokenCounts:
    rows_per_batch = args.per_device_train_batch_size
    rows_by_length = None
    if args.train_sampling_strategy == "group_by_length":
        rows_by_length = rows_per_batch * args.gradient_accumulation_steps
    return count_tokens(table, collator, rows_per_batch, args.seed, rows_by_length)


def _planned_config(
    config: PreTrainedConfig, recipe: Recipe, own_options: dict
) -> PreTrainedConfig:
    """The config of the reward model that would be built from this base."""
    config = copy.deepcopy(config)
    config.num_labels = 2
    if recipe["head"] == "linear":
        config.num_labels = 1
    for key, value in own_options.items():
        if hasattr(config, key) and key != "attn_implementation":
            setattr(config, key, value)
    return config


def _loaded_dtype(config: PreTrainedConfig, recipe: Recipe) -> torch.dtype:
    if recipe["dtype"] in (None, "auto"):
        return config.dtype or torch.float32
    return getattr(torch, recipe["dtype"])


def _computing_precision(recipe: Recipe) -> str:
    """What a step would compute in on the machine that is planned for, which has bf16."""
    if recipe["use_cpu"]:
        asked = "bf16" if recipe["bf16"] else None
        return cpu_precision(asked, recipe.quantized) or "float32"
    if recipe["fp16"]:
        return "fp16"
    if recipe["bf16"] in (None, True):
        return "bf16"
    return "float32"


# --- The page, line by line -----------------------------------------------------------------------


def _model_line(estimate: Plan) -> str:
    name = estimate.recipe["model_name_or_path"]
    total = estimate.model.total
    trained = estimate.model.trained
    return f"model   {name}: {total:,} parameters, {trained:,} trained ({trained / total:.2%})"


def _steps_line(estimate: Plan) -> str:
    processes = estimate.engine.processes
    plural = "es" * (processes > 1)
    each = estimate.args.per_device_train_batch_size
    accumulation = estimate.args.gradient_accumulation_steps
    line = (
        f"steps   {estimate.steps.run:,}: {estimate.rows_per_step} {estimate.tokens.unit} a step "
        f"({processes} process{plural} x {each} x {accumulation} accumulated)"
    )
    if estimate.streamed:
        return f"{line}, from a stream"
    return f"{line}, {estimate.steps.epoch:,} in the epoch of {estimate.tokens.rows:,}"


def _tokens_lines(estimate: Plan) -> list[str]:
    tokens = estimate.tokens
    if estimate.streamed:  # of the whole run, for a stream has no epoch
        rows = estimate.steps.run * estimate.rows_per_step
        read = ""
    else:
        rows = tokens.rows
        read = f"{tokens.read:,} read in an epoch, "
    saved = 1 - tokens.computed_per_row / tokens.padded_per_row
    return [
        f"tokens  {read}{rows * tokens.computed_per_row:,.0f} computed ({_batches_are(estimate)});",
        f"        TRL's padding would compute {rows * tokens.padded_per_row:,.0f}, "
        f"so {saved:.0%} is saved",
    ]


def _batches_are(estimate: Plan) -> str:
    if estimate.padded_because:
        return f"padded: {estimate.padded_because}"
    if estimate.shares_prefixes:
        return "each shared prefix once, no padding"
    return "no padding"


def _memory_lines(estimate: Plan) -> list[str]:
    precision = estimate.precision
    if precision in HALF and not estimate.engine.casts_weights:
        precision += " autocast"
    dtype = str(estimate.dtype).removeprefix("torch.")
    memory = estimate.memory
    bytes_by_part = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "activations": estimate.activations,
    }
    lines = [f"memory  a GPU, estimated ({precision}, weights {dtype}):"]
    for part, part_bytes in bytes_by_part.items():
        lines.append(f"        {size(part_bytes)}  {part}")
    together = size(sum(bytes_by_part.values()))
    lines.append(
        f"        {together}  together, and about 1 GiB more for the CUDA context and what is lost"
    )
    if memory.host:
        lines.append(f"        {size(memory.host)}  of each host's memory")
    if _deepspeed_has_an_estimator(estimate):
        theirs = size(deepspeed_bytes(estimate.model, estimate.engine))
        lines.append(f"        {theirs}  by DeepSpeed's own estimator, activations left out")
    return lines


def _deepspeed_has_an_estimator(estimate: Plan) -> bool:
    return (
        estimate.engine.kind == "DEEPSPEED"
        and estimate.engine.zero_stage in (2, 3)
        and estimate.model.trained == estimate.model.total
        and estimate.precision in HALF
    )


def _how_lines(estimate: Plan) -> list[str]:
    tokens = estimate.tokens
    return [
        f"how     computed tokens and the largest micro-batch ({tokens.largest:,} tokens) "
        f"from {tokens.sampled_batches} batches; weights, gradients and",
        "        optimizer by counting; activations from what autograd keeps in one and two such "
        "blocks",
    ]


def size(byte_count: float) -> str:
    """A number of bytes in GiB, or in MiB below a tenth of one, 8 characters before the unit."""
    if byte_count >= GIB / 10:
        return f"{byte_count / GIB:8.2f} GiB"
    return f"{byte_count / 2**20:8.2f} MiB"
