"""The reward head: which layer it is, and how its reward is read."""

import logging
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from transformers.integrations import is_deepspeed_zero3_enabled

from reward.model.hub import ModelError, checkpoint_file, checkpoint_json

HEAD_NAMES = ("score", "classifier", "v_head", "value_head", "reward_head", "rm_head")


# ------------------------------------------------------------------------------------------------------------ the head


class Float32Head(torch.nn.Linear):
    """A linear head computed in float32 with autocast off, whatever dtype it is stored in.

    In bf16 a reward between 4 and 8 moves in steps of .031, so that pairs tie; under bf16 autocast even a float32 head
    returns bf16. The weights keep the body's dtype, so that a stock reload has the same ones and FSDP2 sees one dtype.
    """

    def forward(self, hidden):
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            # `head_dropout` is no layer, so that the saved model is plain.
            hidden = F.dropout(hidden.float(), getattr(self, "head_dropout", 0.0), self.training)
            return F.linear(hidden, self.weight.float(), bias)


def head_of(model) -> tuple[str, torch.nn.Linear]:
    """(name, module) of the linear layer that gives the reward. Raises ModelError where there is none."""
    names = [
        n
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and n.split(".")[0] in HEAD_NAMES
    ]
    if not names:
        raise ModelError(f"{type(model).__name__} has no linear head named {', '.join(HEAD_NAMES)}")
    return names[-1], model.get_submodule(names[-1])


def _saved_bias(name, head: str, revision) -> torch.Tensor:
    """The head's bias of a checkpoint whose architecture has none, so that stock transformers passes it over."""
    index = checkpoint_json(name, "model.safetensors.index.json", revision)
    file = index["weight_map"][f"{head}.bias"] if index else "model.safetensors"
    return load_file(checkpoint_file(name, file, revision))[f"{head}.bias"]


def _load(name, **options):
    """`(model, loading info)`. transformers' own report of missing and unexpected tensors is kept quiet: what matters in it
    is an error here, and the rest (a new head over a language model) is meant."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    finally:
        logger.setLevel(level)


def keep_unpacked(model) -> None:
    """Stop bitsandbytes (0.50) from packing 4-bit layers for an AVX512-BF16 CPU at their first evaluation.

    The packed product has no backward, so that from then on the gradients of the layers below would be wrong, silently;
    and it rounds the scales to bf16, which moved rewards by a tenth of their standard deviation.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _init_head(layer: torch.nn.Linear, head_init: str) -> None:
    """zero: the first loss is exactly ln 2. normal: std 1/sqrt(hidden + 1), Stiennon et al. 2020, arXiv 2009.01325."""
    gather = nullcontext()
    if is_deepspeed_zero3_enabled():  # the weights are in pieces over the processes
        import deepspeed

        gather = deepspeed.zero.GatheredParameters(list(layer.parameters()), modifier_rank=0)
    with torch.no_grad(), gather:
        std = 0.0 if head_init == "zero" else (layer.in_features + 1) ** -0.5
        layer.weight.normal_(std=std) if std else layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()


def is_encoder(config) -> bool:
    """Whether the head reads [CLS] (BERT-like) and not the last token."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return False
    return config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or not getattr(
        config, "is_decoder", True
    )


def no_cache(config) -> dict:
    """What a forward is called with so that a causal model keeps no layer's keys; encoders have no such option."""
    return {} if is_encoder(config) else {"use_cache": False}


def position_limit(config, tokenizer) -> int | None:
    """The longest input in tokens that the model can read; None where nothing bounds it."""
    text = config.get_text_config()
    # RoBERTa-like models start counting positions after the pad id.
    offset = (
        text.pad_token_id + 1 if text.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    )
    limits = [
        (getattr(text, "max_position_embeddings", None) or offset) - offset,
        tokenizer.model_max_length,
    ]
    limits = [int(limit) for limit in limits if limit and limit < 1e9]
    return min(limits) if limits else None


def rewards_from_logits(logits: torch.Tensor) -> torch.Tensor:
    """(batch,) rewards of (batch, labels) logits: the one label, or logit 1 of two (ContextualAI/HALOs)."""
    return logits[..., -1].float()
