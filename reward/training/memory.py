"""What memory a GPU needs for a training run, estimated before anything is loaded.

Two parts are estimated in two ways:
- Weights, gradients and optimizer state are counted from the model's config on the meta device, so
  that no weights are loaded. The accounting is that of ZeRO (Rajbhandari et al. 2020, arXiv
  1910.02054, sec. 3), with this recipe's dtypes and with what the engine shares out.
- Activations are the bytes that autograd really keeps. They are measured on the CPU in models of
  one and of two such blocks, at two lengths, and continued in a straight line to all blocks and to
  the largest micro-batch.

Not in it are the CUDA context (about .5 GiB), fragmentation, and the buffers of the collectives.
`python benchmarks/memory.py --measure` compares the estimate with what really happens.
"""

import copy
import math
from dataclasses import dataclass

import torch
from accelerate.utils import calculate_maximum_sizes
from peft import PeftConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from reward.model.batches import PackedInputs, pack
from reward.model.build import freeze
from reward.model.heads import head_of, no_cache, without_adapter
from reward.model.packed_attention import enable_packing
from reward.recipe.recipe import Recipe
from reward.training.engine import Engine

GIB = 2**30

# Activations are measured at these two lengths of a micro-batch, in tokens.
SHORT = 64
LONG = 128

# Bytes of a 4-bit weight with the constants of its quantization, one set of constants for 64
# weights. In the nested form these constants are quantized in turn.
NF4_BYTES = 0.5625
NF4_NESTED_BYTES = 0.516

# Optimizers of bitsandbytes that keep each state in one byte.
EIGHT_BIT_OPTIMIZERS = (
    "adamw_bnb_8bit",
    "adamw_8bit",
    "paged_adamw_8bit",
    "lion_8bit",
    "paged_lion_8bit",
)

# How many states an optimizer keeps of each trained parameter, where it is not two as in Adam.
OPTIMIZER_STATES = {
    "sgd": 0,
    "adafactor": 0,
    "lion_32bit": 1,
    "paged_lion_32bit": 1,
    "lion_8bit": 1,
    "paged_lion_8bit": 1,
}

# Defaults of DeepSpeed, in elements: how many it exchanges at once, and how many gathered weights
# ZeRO-3 keeps.
ZERO_BUCKET = 500_000_000
ZERO3_LIVE = 1_000_000_000


# --- The model ------------------------------------------------------------------------------------


@dataclass
class PlannedModel:
    """The model as it would be trained, on the meta device, and what of it costs memory."""

    model: torch.nn.Module
    total: int  # parameters
    trained: int  # parameters that are trained
    trained_linear: int  # trained parameters of linear layers, which autocast copies
    trained_embeddings: int  # trained parameters whose 8-bit states transformers keeps in 32 bits
    frozen_bytes: float  # bytes of all frozen parameters as they are loaded
    bytes_per_trained: int  # bytes of one trained parameter as it is loaded
    largest_block: int  # parameters of the largest block, or of the embeddings if they are larger
    trained_blocks: int  # blocks that keep activations for a backward


def make_model(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    *,
    device: str = "meta",
    peft_config: PeftConfig | None = None,
    train_last_layers: int | None = None,
    **options,
) -> torch.nn.Module:
    """Make a model of this config whose weights have any values: only their bytes matter here.

    Args:
        config: The model's config.
        dtype: The dtype of the weights.
        device: "meta", which holds no weights, or a real device.
        peft_config: The adapter, or None.
        train_last_layers: Freeze all blocks but so many; None trains all of them.
        **options: Passed on to `AutoModelForSequenceClassification.from_config`.
    """
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype, **options)
    if device != "meta":
        model = model.to_empty(device=device)
        for buffer in model.buffers():
            if not buffer.is_floating_point():
                buffer.zero_()  # position ids of encoders, which must lie in the table
    if train_last_layers is not None:
        freeze(model, train_last_layers)
    if peft_config is not None:
        model = get_peft_model(model, copy.deepcopy(peft_config))
    return model


def plan_model(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    recipe: Recipe,
    peft_config: PeftConfig | None,
    **options,
) -> PlannedModel:
    """Count the parameters of the model that a recipe would train.

    Args:
        config: The model's config.
        dtype: The dtype in which weights that are not quantized are loaded.
        recipe: Says what is frozen and what is quantized.
        peft_config: The adapter, or None.
        **options: Passed on to `AutoModelForSequenceClassification.from_config`.
    """
    train_last_layers = recipe["train_last_layers"]
    plain = make_model(config, dtype, **options)
    _, (largest_block_bytes, _) = calculate_maximum_sizes(plain)
    model = make_model(
        config, dtype, peft_config=peft_config, train_last_layers=train_last_layers, **options
    )
    trained_blocks = train_last_layers
    if train_last_layers is None:
        trained_blocks = config.get_text_config().num_hidden_layers
    planned = PlannedModel(
        model,
        total=sum(parameter.numel() for parameter in model.parameters()),
        trained=0,
        trained_linear=0,
        trained_embeddings=0,
        frozen_bytes=0.0,
        bytes_per_trained=_bytes_per_trained(dtype, recipe, peft_config),
        largest_block=int(largest_block_bytes / dtype.itemsize),
        trained_blocks=trained_blocks,
    )
    _count_parameters(planned, dtype, _bytes_per_quantized(dtype, recipe), head_of(plain)[0])
    return planned


def _bytes_per_quantized(dtype: torch.dtype, recipe: Recipe) -> float:
    """Bytes of one frozen weight of a linear layer, which is what bitsandbytes quantizes."""
    if recipe["load_in_4bit"] and recipe["use_bnb_nested_quant"]:
        return NF4_NESTED_BYTES
    if recipe["load_in_4bit"]:
        return NF4_BYTES
    if recipe["load_in_8bit"]:
        return 1
    return dtype.itemsize


def _bytes_per_trained(dtype: torch.dtype, recipe: Recipe, peft_config: PeftConfig | None) -> int:
    """Bytes of one trained weight.

    The weights of an adapter are float32 beside bf16 weights (peft), and bf16 beside quantized ones
    (TRL).
    """
    if peft_config is None:
        return dtype.itemsize
    if recipe.quantized:
        return 2
    return 4


def _count_parameters(
    planned: PlannedModel, dtype: torch.dtype, bytes_per_quantized: float, head: str
) -> None:
    """Fill in the counts of trained parameters and the bytes of frozen ones."""
    for name, module in planned.model.named_modules():
        is_linear = isinstance(module, torch.nn.Linear)
        in_head = head in name.split(".")
        for parameter in module.parameters(recurse=False):
            count = parameter.numel()
            if parameter.requires_grad:
                planned.trained += count
                planned.trained_linear += count * is_linear
                planned.trained_embeddings += count * isinstance(module, torch.nn.Embedding)
            elif is_linear and not in_head and parameter.dim() >= 2:
                planned.frozen_bytes += count * bytes_per_quantized
            else:
                planned.frozen_bytes += count * dtype.itemsize


# --- Activations ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForwardPrecision:
    """The dtypes that a forward computes in."""

    dtype: torch.dtype  # of the weights in the forward
    autocast: torch.dtype | None  # half precision of autocast; None without autocast


def computes_in(engine: Engine, dtype: torch.dtype, half: torch.dtype | None) -> ForwardPrecision:
    """The precision of a forward: DeepSpeed and FSDP2 cast the weights where DDP has autocast.

    Args:
        engine: What shares the model out.
        dtype: The dtype in which weights are loaded.
        half: The half precision of the run, bfloat16 or float16; None for float32.
    """
    if not engine.casts_weights:
        return ForwardPrecision(dtype, autocast=half)
    if half is None:
        return ForwardPrecision(dtype, autocast=None)
    return ForwardPrecision(half, autocast=None)


def micro_batch_like(tokens: int, paths: float | None) -> PackedInputs | dict[str, torch.Tensor]:
    """The inputs of a model for a micro-batch of about so many computed tokens.

    Args:
        tokens: Computed tokens.
        paths: None for one padded row. Otherwise the micro-batch is packed in groups of SHORT
            tokens; the texts of a group begin alike, and have `paths` times as many tokens
            together as are computed.
    """
    if paths is None:
        return {"input_ids": torch.ones(1, tokens, dtype=torch.long)}
    texts_per_group = max(2, math.ceil(paths) + 1)
    shared = max(1, round((paths - 1) * SHORT / (texts_per_group - 1)))
    own, with_one_more = divmod(SHORT - shared, texts_per_group)
    group = []
    for index in range(texts_per_group):
        own_tokens = own + (index < with_one_more)
        group.append([texts_per_group + 1] * shared + [1 + index] * own_tokens)
    # The first token of a text is the number of its group, so that groups share nothing.
    return pack([[10 + number, *text[1:]] for number in range(tokens // SHORT) for text in group])


def kept_bytes(
    config: PreTrainedConfig,
    blocks: int,
    tokens: int,
    precision: ForwardPrecision,
    *,
    checkpointing: bool,
    paths: float | None = None,
    **options,
) -> int:
    """Measure what autograd keeps of one forward on the CPU, without the weights, in bytes.

    Args:
        config: The model's config, whose number of blocks is replaced.
        blocks: The blocks of the model that is measured.
        tokens: Computed tokens of the micro-batch.
        precision: The dtypes of the forward.
        checkpointing: Whether activation checkpointing is on.
        paths: As in micro_batch_like.
        **options: Passed on to make_model.
    """
    config = _smaller_config(config, blocks)
    if "flash" in (options.get("attn_implementation") or ""):
        options["attn_implementation"] = "sdpa"  # runs on a CPU, and keeps as little
    model = make_model(config, precision.dtype, device="cpu", **options).train()
    if paths is not None:
        enable_packing(without_adapter(model))
    if checkpointing:
        model.activation_checkpointing_enable()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    bytes_by_address = {}  # each storage counts once
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            bytes_by_address[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # otherwise its address may be used again
        return tensor

    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    autocast = torch.autocast(
        "cpu", precision.autocast or torch.bfloat16, enabled=precision.autocast is not None
    )
    with torch.autograd.graph.saved_tensors_hooks(keep, unpack), autocast:
        model(**micro_batch_like(tokens, paths), **no_cache(config))
    return sum(bytes_by_address.values())


def _smaller_config(config: PreTrainedConfig, blocks: int) -> PreTrainedConfig:
    """A copy with so many blocks and 64 words, for the embeddings keep no activations."""
    config = copy.deepcopy(config)
    text_config = config.get_text_config()
    text_config.num_hidden_layers = blocks
    text_config.vocab_size = 64
    text_config.pad_token_id = 0
    if getattr(text_config, "layer_types", None):
        text_config.layer_types = text_config.layer_types[:blocks]
    return config


@dataclass
class BlockActivations:
    """Bytes that autograd keeps of one micro-batch."""

    first: float  # with one block: embeddings, the block and the head
    further: float  # of each block after the first


def _activations_of_blocks(config: PreTrainedConfig, tokens: int, **how) -> BlockActivations:
    """Measure one block and two at SHORT and at LONG tokens; continue straight to `tokens`.

    `how` is what kept_bytes takes beside the blocks and the tokens.
    """
    at_tokens = []
    for blocks in (1, 2):
        short = kept_bytes(config, blocks, SHORT, **how)
        long = kept_bytes(config, blocks, LONG, **how)
        at_tokens.append(short + (long - short) / (LONG - SHORT) * (tokens - SHORT))
    one_block, two_blocks = at_tokens
    return BlockActivations(one_block, two_blocks - one_block)


def activation_bytes(
    config: PreTrainedConfig,
    planned: PlannedModel,
    tokens: int,
    precision: ForwardPrecision,
    *,
    checkpointing: bool,
    **how,
) -> float:
    """Bytes that the trained blocks keep of a micro-batch until their backward, at the peak.

    Args:
        config: The model's config.
        planned: Its counts.
        tokens: Computed tokens of the micro-batch.
        precision: The dtypes of the forward.
        checkpointing: Whether activation checkpointing is on.
        **how: Passed on to kept_bytes.
    """
    how = {"precision": precision, **how}
    blocks = _activations_of_blocks(config, tokens, checkpointing=checkpointing, **how)
    kept = blocks.first + (planned.trained_blocks - 1) * blocks.further
    if not checkpointing:
        return kept
    # Autocast keeps its copies of the trained weights until the forward ends.
    weight_copies = 0
    if precision.autocast and precision.dtype == torch.float32:
        weight_copies = 2 * planned.trained_linear
    # One block at a time is computed again, and then keeps everything.
    recomputed = _activations_of_blocks(config, tokens, checkpointing=False, **how)
    return kept + weight_copies + recomputed.further


# --- Weights, gradients and optimizer state -------------------------------------------------------


@dataclass
class ModelMemory:
    """Bytes that the model and its optimizer take."""

    weights: float  # on each GPU
    gradients: float  # on each GPU, with the buffers in which they are exchanged
    optimizer: float  # on each GPU
    host: float  # in the memory of each host, for all of its processes


@dataclass
class TrainedBytes:
    """Bytes that are held of one trained parameter, before an engine shares them out."""

    weight: int
    master: int  # of a float32 copy of the weight, and of another copy of its gradient
    optimizer_state: int  # of one state


def trained_bytes(planned: PlannedModel, engine: Engine, half: bool) -> TrainedBytes:
    """The bytes of one trained parameter under this engine."""
    if engine.kind == "DEEPSPEED":
        # Weights in half precision, and float32 copies of weights and gradients beside them.
        weight = planned.bytes_per_trained
        if half:
            weight = 2
        return TrainedBytes(weight, master=4, optimizer_state=4)
    weight = planned.bytes_per_trained
    if engine.kind == "FSDP" and half:
        weight = 4  # accelerate makes trained weights float32
    return TrainedBytes(weight, master=0, optimizer_state=weight)


def model_memory(planned: PlannedModel, engine: Engine, half: bool, optim: str) -> ModelMemory:
    """Estimate what weights, gradients and optimizer state take.

    Args:
        planned: The model's counts.
        engine: What shares the model out, and over how many processes.
        half: Whether the run computes in bf16 or fp16.
        optim: The recipe's `optim`.
    """
    each = trained_bytes(planned, engine, half)
    gradients = _gradient_bytes(planned, engine, each)
    optimizer = _optimizer_bytes(planned, engine, optim, each)
    weights = planned.frozen_bytes + planned.trained * each.weight
    if engine.kind == "DEEPSPEED" and half:
        weights = min(weights, 2 * planned.total)
    host = 0.0  # of one process
    if engine.shards_weights:
        weights_share = weights / engine.processes
        bytes_per_gathered = each.weight
        if half:
            bytes_per_gathered = 2
        weights = _gathered_weights(planned, engine) * bytes_per_gathered
        if engine.offload_weights:
            host += weights_share
        else:
            weights += weights_share
    if engine.offload_optimizer:
        host += optimizer
        optimizer = 0
        if engine.kind == "DEEPSPEED" or engine.offload_weights:
            host += gradients
            gradients = min(gradients, 2 * planned.largest_block * each.weight)
    if engine.kind == "DEEPSPEED":
        bytes_per_exchanged = 4
        if half:
            bytes_per_exchanged = 2
        gradients += ZERO_BUCKET * bytes_per_exchanged
    return ModelMemory(weights, gradients, optimizer, host * engine.processes / engine.hosts)


def _gradient_bytes(planned: PlannedModel, engine: Engine, each: TrainedBytes) -> float:
    """Gradients of one process."""
    gradients = planned.trained * (each.weight + each.master)
    if engine.kind == "MULTI_GPU" and engine.processes > 1:
        gradients *= 2  # the buckets of DistributedDataParallel
    if engine.kind == "FSDP" or engine.zero_stage >= 2:
        return gradients / engine.processes
    return gradients


def _optimizer_bytes(
    planned: PlannedModel, engine: Engine, optim: str, each: TrainedBytes
) -> float:
    """Optimizer state and float32 copies of the weights of one process."""
    in_one_byte = 0
    if optim in EIGHT_BIT_OPTIMIZERS:
        in_one_byte = planned.trained - planned.trained_embeddings
    one_state = (planned.trained - in_one_byte) * each.optimizer_state + in_one_byte
    optimizer = planned.trained * each.master + OPTIMIZER_STATES.get(optim, 2) * one_state
    if engine.kind == "FSDP" or engine.zero_stage >= 1:
        return optimizer / engine.processes
    return optimizer


def _gathered_weights(planned: PlannedModel, engine: Engine) -> int:
    """How many parameters a process has gathered from the others at once."""
    gathered = planned.total
    if engine.reshards:
        gathered = 2 * planned.largest_block
    if engine.zero_stage == 3:
        gathered = max(gathered, min(planned.total, ZERO3_LIVE))
    return gathered


def deepspeed_bytes(planned: PlannedModel, engine: Engine) -> int:
    """Bytes of a GPU by DeepSpeed's own estimators for ZeRO-2 and ZeRO-3.

    They count weights, gradients and optimizer of a full fine-tuning in half precision.
    """
    machines = {"num_gpus_per_node": engine.processes // engine.hosts, "num_nodes": engine.hosts}
    if engine.zero_stage == 2:
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

        _, gpu_bytes = estimate_zero2_model_states_mem_needs(
            planned.total, **machines, cpu_offload=engine.offload_optimizer
        )
        return gpu_bytes
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    _, gpu_bytes, _ = estimate_zero3_model_states_mem_needs(
        planned.total,
        planned.largest_block,
        **machines,
        cpu_offload=engine.offload_optimizer,
        cpu_offload_params=engine.offload_weights,
    )
    return gpu_bytes
