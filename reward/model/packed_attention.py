"""Token ids -> one forward without padding in which every shared prefix is computed once: `model(**pack(texts))`.

The texts of a micro-batch lie in one row, sorted, and each brings only the tokens that the one before it does not start with
(a trie): the two sides of a pair share their prompt, the completions of a prompt share it, all conversations a system prompt.
In a causal model a token's hidden state depends on the tokens before it alone, so this is exact. What makes it so:
- queries are a text's own tokens; keys and values are those of its whole path, gathered by `kv_index`; positions count along
  the path; causal means aligned at the lower right: own token j of a text sees the path up to itself;
- the attention is registered with transformers' AttentionInterface under one name for good, and does what sdpa does whenever
  a batch is not packed, so that nothing has to be switched (activation checkpointing recomputes in the backward);
- the head reads `last`, the row's index of each text's last token, in the order in which the texts were given; so the last
  layer's MLP, which mixes no tokens, computes those alone.

On CUDA in half precision (Ampere or newer) torch.nn.attention.varlen, which is FlashAttention; else one
scaled_dot_product_attention a text.
Prior art: frankxwang/dpo-prefix-sharing (arXiv 2410.20305), li-plus/flash-preference.
"""

import types
import warnings

import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.pytorch_utils import Conv1D

from reward.model.batches import pack, padded
from reward.model.build import blocks_of
from reward.model.heads import Float32Head

ATTENTION = "rm_packed"


# model_type of what tests/reward/model/test_packing.py shows to be right, sliding windows included. Not here: linear attention and state
# spaces (Qwen3-Next, Mamba: a token's state is no function of keys), soft-capped scores (Gemma 2), encoders.
FAMILIES = {
    "gemma", "gemma3_text", "glm4", "gpt2", "gpt_neox", "llama", "mistral", "mixtral", "olmo2", "olmo3", "opt", "phi3",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2",
}  # fmt: skip


# Probabilities that are no nn.Dropout, and Mixtral's random factors.
DROPOUTS = ("dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "jitter_noise")


# ---------------------------------------------------------------------------------------------------- the attention


def packed_attention(module, query, key, value, attention_mask, packing=None, **options):
    """transformers' attention interface; `packing` is what `pack` made, with `query` (1, heads, tokens, head_dim)."""
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scale, window = options.get("scaling"), options.get("sliding_window")
    if packing["kv_index"] is not None:
        key, value = (
            key.index_select(2, packing["kv_index"]),
            value.index_select(2, packing["kv_index"]),
        )
    if has_varlen(query, value.dtype) and not options.get("dropout"):
        from torch.nn.attention.varlen import varlen_attn

        # (1, heads, tokens, head_dim) -> (tokens, heads, head_dim)
        query, key, value = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
        out = varlen_attn(
            query, key, value, *packing["cumulative"], max(packing["queries"]), max(packing["lengths"]), scale=scale,
            window_size=(-1 if window is None else window - 1, 0), enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return out[None], None
    masks = packing.setdefault("masks", {})  # of the first layer, for all
    if window not in masks:
        masks[window] = [
            causal_mask(q, k, window, query.device)
            for q, k in zip(packing["queries"], packing["lengths"], strict=True)
        ]
    parts = zip(
        query.split(packing["queries"], 2), key.split(packing["lengths"], 2), value.split(packing["lengths"], 2),
        masks[window], strict=True,
    )  # fmt: skip
    options = {
        "scale": scale,
        "dropout_p": options.get("dropout", 0.0),
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    out = [
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, **options)
        for q, k, v, mask in parts
    ]
    return torch.cat(out, 2).transpose(1, 2), None


def has_varlen(query, dtype) -> bool:
    """FlashAttention: CUDA, half precision, Ampere or newer."""
    half = query.is_cuda and dtype in (torch.bfloat16, torch.float16)
    return half and torch.cuda.get_device_capability(query.device) >= (8, 0)


def causal_mask(queries: int, keys: int, window: int | None, device) -> torch.Tensor | None:
    """(queries, keys), True where a query sees a key, aligned at the lower right; None where plain causal attention does."""
    if queries == keys and (window is None or keys <= window):
        return None
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)


AttentionInterface.register(ATTENTION, packed_attention)


AttentionMaskInterface.register(ATTENTION, sdpa_mask)


# -------------------------------------------------------------------------------------------------------- the model


def why_padded(model) -> str | None:
    """Why this model (without a wrapper) cannot be packed; None where it can, as far as its config tells."""
    config = model.config
    if config.model_type not in FAMILIES:
        return (
            f"{config.model_type} is none of the causal families that it is known to be exact for"
        )
    if config._attn_implementation not in ("sdpa", ATTENTION):
        return f"attn_implementation is {config._attn_implementation}, and packing has its own"
    rope = getattr(config, "rope_parameters", None) or {}
    types_ = {rope.get("rope_type")} | {
        part.get("rope_type") for part in rope.values() if isinstance(part, dict)
    }
    if batch_dependent := sorted(types_ & {"dynamic", "longrope"}):
        return f"with rope_type {batch_dependent[0]} the longest text of a batch changes the rewards of the others"
    return None


def drops_out(model) -> bool:
    """Whether the body draws random numbers in training. Texts that share a prefix would share what was drawn on it."""
    return any(
        (isinstance(module, torch.nn.Dropout) and module.p > 0)
        or any(isinstance(p := getattr(module, name, 0), float) and p > 0 for name in DROPOUTS)
        for module in model.modules()
    )


def enable_packing(model) -> None:
    """Let a causal sequence-classification model (without a wrapper) read what `pack` makes, beside all it could."""
    model.set_attn_implementation(ATTENTION)

    def forward(self, *args, packing=None, **inputs):
        if packing is None:
            return type(self).forward(self, *args, **inputs)
        hidden = self.base_model(
            *args, packing=packing, **inputs
        ).last_hidden_state  # (1, tokens, hidden)
        return SequenceClassifierOutputWithPast(logits=self.score(hidden[0, packing["last"]]))

    model.forward = types.MethodType(forward, model)
    layer = blocks_of(model.base_model)[-1]
    mlp = getattr(layer, "mlp", None)
    if mlp is not None and not hasattr(mlp, "ends"):
        mlp.ends = None
        layer.register_forward_pre_hook(_note_ends, with_kwargs=True)
        mlp.register_forward_pre_hook(_take_ends)
        mlp.register_forward_hook(_put_ends)


# In the last layer only the texts' last tokens are read once the attention has mixed them: its MLP computes these, and the
# others get zeros, which nothing reads. Noted in the layer, for activation checkpointing enters there once more.
def _note_ends(layer, args, kwargs) -> None:
    packing = kwargs.get("packing")
    layer.mlp.ends = None if packing is None else packing["cumulative"][0, 1:].long() - 1


def _take_ends(mlp, args):
    hidden, mlp.shape = args[0], args[0].shape  # (1, tokens, hidden)
    return args if mlp.ends is None else (hidden.index_select(1, mlp.ends), *args[1:])


def _put_ends(mlp, args, out):
    return out if mlp.ends is None else out.new_zeros(mlp.shape).index_copy(1, mlp.ends, out)


def self_test(
    model, texts: list[list[int]], pad_token_id: int, share=True, device=None
) -> tuple[float, float]:
    """How far what the head reads of a few texts is from the padded forward, and how far it may be: relative to its norm, the
    largest of any text. `model` may be wrapped (DDP, FSDP, DeepSpeed), and must hold a Float32Head. `device`: where inputs go,
    if not to the weights (which an engine may keep elsewhere).

    Not the rewards: a head that starts at zero gives none. In half precision the padded forward differs as much from one text
    at a time, so that the limit is what is found there, at least .05; in float32 .001. A packed forward that fails (on
    a GPU that lacks its kernel) is infinitely far, and a warning says why.
    """
    seen, precisions = [], set()

    def hidden_of(inputs, last) -> torch.Tensor:
        seen.clear()
        model(**send_to_device(inputs, device), use_cache=False)
        return seen[-1].float().flatten(0, -2)[last]  # (texts, hidden)

    device = device or next(model.parameters()).device
    # Conv1D: GPT-2 has no other linear layers.
    modules = [module for module in model.modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    hooks = [
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        if isinstance(module, Float32Head)
        else module.register_forward_hook(lambda _, args, out: precisions.add(out.dtype))
        for module in modules
    ]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            last = torch.tensor([len(text) - 1 for text in texts])
            rows = padded(texts, pad_token_id)
            expected = hidden_of(rows, last + torch.arange(len(texts)) * rows["input_ids"].shape[1])
            alone = torch.cat(
                [hidden_of(padded([text], pad_token_id), [len(text) - 1]) for text in texts]
            )
            try:
                found = hidden_of(pack(texts, share), slice(None))
            except RuntimeError as error:
                warnings.warn(f"packed: {error}", stacklevel=2)
                found = torch.full_like(expected, float("inf"))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()

    def apart(other) -> float:
        return ((other - expected).norm(dim=1) / expected.norm(dim=1)).max().item()

    half = precisions & {torch.bfloat16, torch.float16}
    return apart(found), max(0.05, 3 * apart(alone)) if half else 1e-3


def why_not_packed(model, args, prefix_sharing: str) -> str | None:
    """Why batches of this model under these TrainingArguments are padded; None where they need not be."""
    if prefix_sharing == "off":
        return "prefix_sharing is off"
    if args.n_gpu > 1:
        return "one process drives several GPUs (nn.DataParallel); use accelerate launch"
    if args.neftune_noise_alpha:
        return "neftune_noise_alpha scales its noise by the length of a row"
    if args.torch_compile and prefix_sharing == "auto":  # docs/speed.md has the times
        return "torch_compile would compile anew for batch after batch (prefix_sharing: on does so)"
    return why_padded(model)
