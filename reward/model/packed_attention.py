"""Token ids -> one forward, no padding, each shared prefix computed once: `model(**pack(texts))`.

The texts of a micro-batch lie in one row, sorted, and each brings only the tokens that the one
before it does not start with (a trie): the two sides of a pair share their prompt, the completions
of a prompt share it, all conversations a system prompt. In a causal model the hidden state of a
token depends on the tokens before it alone, so this is exact. What makes it so:
- Queries are a text's own tokens. Keys and values are those of its whole path, gathered by
  `kv_index`. Positions count along the path. Causal means aligned at the lower right: own token j
  of a text sees the path up to itself.
- The attention is registered with transformers' AttentionInterface under one name for good. It does
  what sdpa does whenever a batch is not packed, so that nothing has to be switched (activation
  checkpointing recomputes in the backward).
- The head reads `read`: where the token lies that stock transformers reads of each text alone, in
  the order in which the texts were given. So the last layer's MLP, which mixes no tokens, computes
  those alone.

On CUDA in half precision (Ampere or newer) the kernel is torch.nn.attention.varlen, which is
FlashAttention. Elsewhere it is one scaled_dot_product_attention per text.
Prior art: frankxwang/dpo-prefix-sharing (arXiv 2410.20305), li-plus/flash-preference.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.pytorch_utils import Conv1D

from reward.model.batches import (
    PackedInputs,
    PackingLayout,
    PaddedInputs,
    TokenIds,
    pack,
    padded,
    read_index,
)
from reward.model.build import blocks_of
from reward.model.heads import Float32Head

if TYPE_CHECKING:  # only for the annotation: the import brings peft, which takes a second
    from transformers import TrainingArguments

ATTENTION = "rm_packed"  # the name that transformers knows the attention by

# The families, by their config's model_type, that tests/reward/model/test_packed_attention.py shows
# to be right, sliding windows included. Not among them: linear attention and state spaces
# (Qwen3-Next, Mamba: a token's state is no function of keys), soft-capped scores (Gemma 2),
# encoders.
FAMILIES = {
    "gemma",
    "gemma3_text",
    "glm4",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "olmo3",
    "opt",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "starcoder2",
}

# Modules hold these probabilities without an nn.Dropout. The last one makes Mixtral's random
# factors.
DROPOUTS = ("dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "jitter_noise")

# With these a longer text in the batch changes how positions are encoded for all of them.
BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}

# How far packed may differ from padded, relative to the norm of what the head reads.
ALLOWED_IN_FLOAT32 = 1e-3
ALLOWED_IN_HALF_PRECISION = 0.05  # at least


# --- The attention --------------------------------------------------------------------------------


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packing: PackingLayout | None = None,
    **options,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend within each packed text; without `packing`, do what transformers' sdpa does.

    This has the signature of transformers' attention interface.

    Args:
        module: The attention layer.
        query: (1, heads, tokens, head_dim).
        key: (1, key heads, tokens, head_dim).
        value: (1, key heads, tokens, head_dim).
        attention_mask: Only read where the batch is not packed.
        packing: The layout that `pack` made.
        options: What transformers passes; `scaling`, `sliding_window` and `dropout` are read.

    Returns:
        The output (1, tokens, heads, head_dim), and None for the weights, which are not kept.
    """
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if packing["kv_index"] is not None:
        key = key.index_select(2, packing["kv_index"])
        value = value.index_select(2, packing["kv_index"])
    scale = options.get("scaling")
    window = options.get("sliding_window")
    dropout = options.get("dropout", 0.0)
    if has_varlen(query, value.dtype) and not dropout:
        output = varlen_kernel(query, key, value, packing, scale, window)
    else:
        output = kernel_per_text(query, key, value, packing, scale, window, dropout)
    return output, None


def varlen_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: PackingLayout,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attend in one FlashAttention kernel for all texts, with the shapes of `packed_attention`."""
    from torch.nn.attention.varlen import varlen_attn

    def tokens_first(tensor: torch.Tensor) -> torch.Tensor:
        """(1, heads, tokens, head_dim) -> (tokens, heads, head_dim)"""
        return tensor[0].transpose(0, 1).to(value.dtype)

    tokens_back = -1  # a query sees all tokens before it
    if window is not None:
        tokens_back = window - 1
    output = varlen_attn(
        tokens_first(query),
        tokens_first(key),
        tokens_first(value),
        *packing["cumulative"],
        max(packing["queries"]),
        max(packing["lengths"]),
        scale=scale,
        window_size=(tokens_back, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[None]


def kernel_per_text(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: PackingLayout,
    scale: float | None,
    window: int | None,
    dropout: float,
) -> torch.Tensor:
    """Attend in one kernel (torch's sdpa) per text, with the shapes of `packed_attention`."""
    queries, lengths = packing["queries"], packing["lengths"]
    masks = packing.setdefault("masks", {})  # The first layer makes them, for all layers.
    if window not in masks:
        masks[window] = [
            causal_mask(own, length, window, query.device)
            for own, length in zip(queries, lengths, strict=True)
        ]
    outputs = []
    for text_query, text_key, text_value, mask in zip(
        query.split(queries, 2),
        key.split(lengths, 2),
        value.split(lengths, 2),
        masks[window],
        strict=True,
    ):
        output = F.scaled_dot_product_attention(
            text_query,
            text_key,
            text_value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            dropout_p=dropout,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(output)
    return torch.cat(outputs, 2).transpose(1, 2)


def has_varlen(query: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether FlashAttention runs: on CUDA, in half precision, on Ampere or newer."""
    if not query.is_cuda or dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def causal_mask(
    queries: int, keys: int, window: int | None, device: torch.device
) -> torch.Tensor | None:
    """Build the mask of one text, aligned at the lower right.

    Args:
        queries: How many tokens the text has of its own. They are its last ones.
        keys: How many tokens the text has.
        window: How many tokens a query sees, itself included; None for all before it.
        device: Where the mask is made.

    Returns:
        (queries, keys), True where a query sees a key. None where plain causal attention does it.
    """
    if queries == keys and (window is None or keys <= window):
        return None
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    if window is not None:
        mask = mask.triu(keys - queries - window + 1)
    return mask


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


# --- Which models can be packed -------------------------------------------------------------------


def why_model_not_packed(model: PreTrainedModel) -> str | None:
    """Return why this model (without a wrapper) cannot be packed, as far as its config tells.

    Returns:
        The end of a sentence, "... because ...". None where the model can be packed.
    """
    config = model.config
    if config.model_type not in FAMILIES:
        return (
            f"{config.model_type} is none of the causal families that it is known to be exact for"
        )
    if config._attn_implementation not in ("sdpa", ATTENTION):
        return f"attn_implementation is {config._attn_implementation}, and packing has its own"
    return why_batch_dependent(config)


def why_batch_dependent(config: PretrainedConfig) -> str | None:
    """Return why a longer text in the batch changes the rewards of the others.

    Returns:
        The end of a sentence, "... because ...". None where it does not.
    """
    # One dict, or one dict for each kind of layer.
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")}
    for parameters in rope.values():
        if isinstance(parameters, dict):
            kinds.add(parameters.get("rope_type"))
    batch_dependent = sorted(kinds & BATCH_DEPENDENT_ROPE)
    if not batch_dependent:
        return None
    return (
        f"with rope_type {batch_dependent[0]} the longest text of a batch changes the rewards "
        "of the others"
    )


def why_training_not_packed(
    model: PreTrainedModel, args: TrainingArguments, prefix_sharing: str
) -> str | None:
    """Return why batches of this model are padded in training.

    Args:
        model: The model without a wrapper.
        args: The arguments of the training.
        prefix_sharing: The recipe's key: `auto`, `on` or `off`.

    Returns:
        The end of a sentence, "... because ...". None where batches need not be padded.
    """
    if prefix_sharing == "off":
        return "prefix_sharing is off"
    if args.n_gpu > 1:
        return "one process drives several GPUs (nn.DataParallel); use accelerate launch"
    if args.neftune_noise_alpha:
        return "neftune_noise_alpha scales its noise by the length of a row"
    if args.torch_compile and prefix_sharing == "auto":  # docs/speed.md has the times
        return "torch_compile would compile anew for batch after batch (prefix_sharing: on does so)"
    return why_model_not_packed(model)


def drops_out(model: PreTrainedModel) -> bool:
    """Return whether the body draws random numbers in training.

    Texts that share a prefix would share what was drawn on it.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p > 0:
            return True
        for name in DROPOUTS:
            probability = getattr(module, name, 0)  # some modules have a layer of such a name
            if isinstance(probability, float) and probability > 0:
                return True
    return False


# --- The model ------------------------------------------------------------------------------------


def enable_packing(model: PreTrainedModel) -> None:
    """Let a causal sequence-classification model read what `pack` makes, beside all that it could.

    Args:
        model: The model without a wrapper. It is changed in place; a second call changes nothing.
    """
    model.set_attn_implementation(ATTENTION)

    def forward(self, *args, packing: PackingLayout | None = None, **inputs):
        if packing is None:
            return type(self).forward(self, *args, **inputs)
        body_output = self.base_model(*args, packing=packing, **inputs)
        hidden = body_output.last_hidden_state  # (1, tokens, hidden)
        return SequenceClassifierOutputWithPast(logits=self.score(hidden[0, packing["read"]]))

    model.forward = types.MethodType(forward, model)
    layer = blocks_of(model.base_model)[-1]
    mlp = getattr(layer, "mlp", None)
    if mlp is not None and not hasattr(mlp, "packed_reads"):
        mlp.packed_reads = None
        layer.register_forward_pre_hook(_note_reads, with_kwargs=True)
        mlp.register_forward_pre_hook(_take_reads)
        mlp.register_forward_hook(_put_reads)


# Of what the last layer computes, the head reads one token of each text, once the attention has
# mixed the tokens. So its MLP computes these, and the others get zeros, which nothing reads. Which
# they are is noted when the layer is entered, because activation checkpointing enters it once more.
def _note_reads(layer: torch.nn.Module, args: tuple, kwargs: dict) -> None:
    layer.mlp.packed_reads = None
    packing = kwargs.get("packing")
    if packing is not None:
        layer.mlp.packed_reads = packing["read_once"]


def _take_reads(mlp: torch.nn.Module, args: tuple) -> tuple:
    hidden = args[0]  # (1, tokens, hidden)
    mlp.packed_shape = hidden.shape
    if mlp.packed_reads is None:
        return args
    return (hidden.index_select(1, mlp.packed_reads), *args[1:])


def _put_reads(mlp: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    if mlp.packed_reads is None:
        return output
    return output.new_zeros(mlp.packed_shape).index_copy(1, mlp.packed_reads, output)


# --- The self-test --------------------------------------------------------------------------------


@dataclass
class SelfTestResult:
    """How far what the head reads in packed texts is from the padded forward."""

    difference: float  # relative to its norm, the largest of any text; infinite if packing failed
    allowed: float  # how large the difference may be

    @property
    def passed(self) -> bool:
        """Whether packed batches may be used."""
        return self.difference <= self.allowed  # False for NaN

    @property
    def why_padded(self) -> str | None:
        """The end of a sentence, "... because ..."; None where packed batches may be used."""
        if self.passed:
            return None
        return f"packed differs by {self.difference:.1e} from padded, more than {self.allowed:.1e}"


def self_test(
    model: torch.nn.Module,
    texts: list[TokenIds],
    pad_token_id: int,
    share_prefixes: bool = True,
    device: torch.device | None = None,
) -> SelfTestResult:
    """Compare the packed forward of a few texts with the padded one, before training.

    What the head reads is compared, not the rewards: a head that starts at zero gives none. In half
    precision padding alone changes the values, so three times that difference is allowed, at least
    .05; in float32, .001. A packed forward that fails (on a GPU that lacks its kernel) is
    infinitely far, and a warning says why.

    Args:
        model: It may be wrapped (DDP, FSDP, DeepSpeed), and must hold a Float32Head.
        texts: Token ids of each text.
        pad_token_id: What padded texts are filled up with. It decides which token is read.
        share_prefixes: As in `pack`.
        device: Where inputs go, if not to the weights (which an engine may keep elsewhere).
    """
    device = device or next(model.parameters()).device
    head_inputs, dtypes = [], set()
    handles = _watch(model, head_inputs, dtypes)

    def read_by_head(
        inputs: PackedInputs | PaddedInputs, places: torch.Tensor | list[int] | slice
    ) -> torch.Tensor:
        """Return what the head reads at some places of its (flattened) input: (texts, hidden)."""
        head_inputs.clear()
        model(**send_to_device(inputs, device), use_cache=False)
        return head_inputs[-1].float().flatten(0, -2)[places]

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            together = _padded_together(read_by_head, texts, pad_token_id)
            allowed = ALLOWED_IN_FLOAT32
            if dtypes & {torch.bfloat16, torch.float16}:
                alone = _padded_alone(read_by_head, texts, pad_token_id)
                rounding = largest_relative_difference(alone, together)
                allowed = max(ALLOWED_IN_HALF_PRECISION, 3 * rounding)
            packed = _packed(read_by_head, texts, share_prefixes, pad_token_id, like=together)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return SelfTestResult(largest_relative_difference(packed, together), allowed)


def _watch(
    model: torch.nn.Module, head_inputs: list[torch.Tensor], dtypes: set[torch.dtype]
) -> list[torch.utils.hooks.RemovableHandle]:
    """Hook the model: note what its head reads, and the dtypes its other linear layers give."""
    handles = []
    for module in model.modules():
        if isinstance(module, Float32Head):
            handle = module.register_forward_pre_hook(lambda _, args: head_inputs.append(args[0]))
        elif isinstance(module, torch.nn.Linear | Conv1D):  # GPT-2 has no other layers than Conv1D
            handle = module.register_forward_hook(lambda _, args, output: dtypes.add(output.dtype))
        else:
            continue
        handles.append(handle)
    return handles


def _padded_together(
    read_by_head: Callable, texts: list[TokenIds], pad_token_id: int
) -> torch.Tensor:
    """Return what the head reads of each text in one padded batch: (texts, hidden)."""
    inputs = padded(texts, pad_token_id)
    width = inputs["input_ids"].shape[1]
    places = torch.tensor([read_index(text, pad_token_id) for text in texts])
    return read_by_head(inputs, places + torch.arange(len(texts)) * width)


def _padded_alone(read_by_head: Callable, texts: list[TokenIds], pad_token_id: int) -> torch.Tensor:
    """Return what the head reads of each text by itself: (texts, hidden)."""
    rows = []
    for text in texts:
        place = read_index(text, pad_token_id)
        rows.append(read_by_head(padded([text], pad_token_id), [place]))
    return torch.cat(rows)


def _packed(
    read_by_head: Callable,
    texts: list[TokenIds],
    share_prefixes: bool,
    pad_token_id: int,
    like: torch.Tensor,
) -> torch.Tensor:
    """Return what the head reads in one packed batch: (texts, hidden); infinities if it fails."""
    try:
        return read_by_head(pack(texts, share_prefixes, pad_token_id), slice(None))
    except RuntimeError as error:
        warnings.warn(f"packed: {error}", stacklevel=3)
        return torch.full_like(like, float("inf"))


def largest_relative_difference(hidden: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest distance of a row from the expected one, relative to the latter's norm."""
    distances = (hidden - expected).norm(dim=1) / expected.norm(dim=1)
    return distances.max().item()
