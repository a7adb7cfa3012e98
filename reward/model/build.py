"""Build a reward model to train, load one to score: `model, tokenizer = load_reward_model("rm-out")`.

A reward model is a stock sequence-classification model with one label: the head at the last token (causal models) or at
[CLS] (encoders). Nothing is added to it, so stock transformers, TRL's RL trainers, `pipeline` and vLLM load what is saved.
"""

import os

import torch
from transformers import AutoTokenizer

from reward.data.encoding import prepare_tokenizer
from reward.model.heads import (
    HEAD_NAMES,
    Float32Head,
    _init_head,
    _load,
    _saved_bias,
    head_of,
    is_encoder,
    keep_unpacked,
)
from reward.model.hub import ModelError, _reachable, checkpoint_file
from reward.model.load import VALUE_HEADS

# ------------------------------------------------------------------------------------------------------ to train


def build_reward_model(
    name, *, revision="main", dtype=None, head="linear", head_bias=None, head_init=None, head_dropout=0.0,
    train_last_layers=None, trust_remote_code=False, **options,
):  # fmt: skip
    """A sequence-classification model with a float32 head, from a language model, an encoder, or a reward model: one label,
    or two with `head="two_logit"` (the reward is logit 1, as in ContextualAI/HALOs).

    A trained head of that shape is kept. Where the checkpoint holds a head of another shape or name, it would be lost
    silently: that raises ModelError unless `head_init` (`zero` or `normal`) asks for a new one. `train_last_layers`
    freezes all but the last N blocks and the head. `options` go to `from_pretrained` (quantization_config,
    attn_implementation, device_map).
    """
    if checkpoint_file(name, "adapter_config.json", revision) is not None:
        raise ModelError(
            f"{name} is an adapter, whose head would be lost; merge it, and train on the merged model"
        )
    _reachable(name, revision)
    if head_init is None and any(checkpoint_file(name, file, revision) for file in VALUE_HEADS):
        raise ModelError(
            f"{name} holds a trained value head ({' or '.join(VALUE_HEADS)}), which would be replaced by a random one. "
            "Set head_init: normal in the recipe if a new head is what you want."
        )
    torch_dtype = dtype if dtype in (None, "auto") else getattr(torch, dtype)
    model, info = _load(
        name, revision=revision, num_labels=1 if head == "linear" else 2, dtype=torch_dtype,
        trust_remote_code=trust_remote_code, **options,
    )  # fmt: skip
    head_name, layer = head_of(model)
    if (
        f"{head_name}.bias" in info["unexpected_keys"] and head_bias is not False
    ):  # of a head that we trained with one
        info["unexpected_keys"].remove(f"{head_name}.bias")
        head_bias = True
        if head_init is None:
            layer.bias = torch.nn.Parameter(_saved_bias(name, head_name, revision).to(layer.weight))
    lost = [
        f"{key} {list(found)} (this model needs {list(made)})"
        for key, found, made in info["mismatched_keys"]
    ]
    lost += [key for key in info["unexpected_keys"] if key.split(".")[0] in HEAD_NAMES]
    body_lost = [entry for entry in lost if entry.split(".")[0] not in HEAD_NAMES]
    body = f"{model.base_model_prefix}."  # what lies beside it (DistilBERT's pre_classifier) is new with the head
    missing = [key for key in info["missing_keys"] if key.startswith(body) and "pooler" not in key]
    if body_lost or missing:
        raise ModelError(
            f"{name}: tensors of the body are missing or have another shape: {body_lost + missing}"
        )
    if lost and head_init is None:
        raise ModelError(
            f"{name} holds a trained head that does not fit this reward model and would be replaced by a random "
            f"one: {', '.join(sorted(lost))}. Set head_init: normal in the recipe if a new head is what you want."
        )
    if head_bias and layer.bias is None:
        layer.bias = torch.nn.Parameter(layer.weight.new_zeros(layer.out_features))
    if head_init is not None:
        _init_head(layer, head_init)
    if (
        head_bias is False and layer.bias is not None
    ):  # stock transformers makes one for an encoder: it stays 0
        torch.nn.init.zeros_(layer.bias)
        layer.bias.requires_grad = False
    layer.__class__, layer.head_dropout = Float32Head, head_dropout
    keep_unpacked(model)
    if head == "linear":
        model.config.problem_type = (
            "regression"  # pipeline and vLLM then give the raw reward, not its sigmoid
        )
    if train_last_layers is not None:
        freeze(model, train_last_layers)
    return model


def blocks_of(body):
    """The list of a body's transformer blocks, whatever its family calls it; empty where there is none."""
    count = body.config.get_text_config().num_hidden_layers
    return next(
        (m for m in body.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count), []
    )


def freeze(model, last_layers: int) -> None:
    """Train the last blocks and what the class head adds to the body (a pooler, where there is one), nothing else."""
    body = model.base_model
    count, blocks = body.config.get_text_config().num_hidden_layers, blocks_of(body)
    if not blocks or last_layers > count:
        raise ModelError(
            f"train_last_layers is {last_layers}; {type(body).__name__} has {count} blocks to choose from"
        )
    body.requires_grad_(False)
    for module in [*blocks[count - last_layers :], getattr(body, "pooler", None)]:
        if module is not None:
            module.requires_grad_(True)


def build_tokenizer(
    name,
    config,
    *,
    revision="main",
    trust_remote_code=False,
    chat_template_path=None,
    eos_token=None,
):
    """The tokenizer that the reward model is saved with (reward.data.encoding.prepare_tokenizer)."""
    tokenizer = AutoTokenizer.from_pretrained(
        name, revision=revision, trust_remote_code=trust_remote_code
    )
    if eos_token is not None:
        tokenizer.eos_token = eos_token
    if chat_template_path is not None:
        if os.path.isfile(chat_template_path):
            with open(chat_template_path, encoding="utf-8") as file:
                tokenizer.chat_template = file.read()
        else:
            tokenizer.chat_template = AutoTokenizer.from_pretrained(
                chat_template_path
            ).chat_template
    prepare_tokenizer(tokenizer, is_encoder(config))
    return tokenizer
