"""The reward head: which layer it is, how it starts, and how its reward is read."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from reward.model.hub import ModelError

# Heads of encoder-decoders (T5, BART), of XLNet, and of XLM and FlauBERT. Their models are scored
# one text at a time where padding changes their rewards, and not trained.
SCORED_ONLY_HEAD_NAMES = ("classification_head", "logits_proj", "sequence_summary")

# The names that a head goes by. The first two are transformers' own.
HEAD_NAMES = (
    *("score", "classifier", "v_head", "value_head", "reward_head", "rm_head"),
    *SCORED_ONLY_HEAD_NAMES,
)

# These models start counting positions after the pad token's id.
POSITIONS_AFTER_PAD = (
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "xmod"),
    *("data2vec-text", "ibert", "longformer", "luke", "mpnet", "esm"),
    *("layoutlmv3", "lilt", "markuplm"),
)

NO_LIMIT = 1e9  # Tokenizers without a limit hold a huge number instead.


# --- The layer ------------------------------------------------------------------------------------


class Float32Head(torch.nn.Linear):
    """A linear head computed in float32 with autocast off, whatever dtype it is stored in.

    In bf16 a reward between 4 and 8 moves in steps of .031, so that pairs tie. Under bf16 autocast
    even a float32 head returns bf16. The weights keep the body's dtype, so that a stock reload has
    the same ones and FSDP2 sees one dtype.

    `head_dropout`, where it is set, is the probability with which an input of the head is dropped
    in training. It is no layer, so that the saved model is plain.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            bias = None
            if self.bias is not None:
                bias = self.bias.float()
            dropout = getattr(self, "head_dropout", 0.0)
            hidden = F.dropout(hidden.float(), dropout, self.training)
            return F.linear(hidden, self.weight.float(), bias)


def is_head_key(key: str) -> bool:
    """Return whether a part of a tensor's or module's dotted name is the name of a head."""
    return not set(key.split(".")).isdisjoint(HEAD_NAMES)


def head_of(model: torch.nn.Module) -> tuple[str, torch.nn.Linear]:
    """Return the name and the module of the linear layer that gives the reward.

    Raises:
        ModelError: The model has no such layer.
    """
    names = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.split(".")[0] in HEAD_NAMES:
            names.append(name)
    if not names:
        raise ModelError(f"{type(model).__name__} has no linear head named {', '.join(HEAD_NAMES)}")
    return names[-1], model.get_submodule(names[-1])


def init_head(layer: torch.nn.Linear, head_init: str) -> None:
    """Give the head new weights, and a bias of 0 where it has one.

    Args:
        layer: The head, changed in place.
        head_init: `zero`: the first loss is exactly ln 2. `normal`: the standard deviation is
            1/sqrt(hidden + 1), as in Stiennon et al. 2020, arXiv 2009.01325.
    """
    gathered = nullcontext()
    if is_deepspeed_zero3_enabled():  # The weights are in pieces over the processes.
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(list(layer.parameters()), modifier_rank=0)
    with torch.no_grad(), gathered:
        if head_init == "zero":
            layer.weight.zero_()
        else:
            layer.weight.normal_(std=(layer.in_features + 1) ** -0.5)
        if layer.bias is not None:
            layer.bias.zero_()


# --- What a forward needs to know -----------------------------------------------------------------


def is_encoder(config: PretrainedConfig) -> bool:
    """Return whether the head reads [CLS] (BERT-like) and not the last token."""
    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return False
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return True
    return not getattr(config, "is_decoder", True)


def no_cache(config: PretrainedConfig) -> dict:
    """Return the option with which a causal model's forward keeps no keys of its layers.

    Encoders have no such option, and get an empty dict.
    """
    if is_encoder(config):
        return {}
    return {"use_cache": False}


def position_limit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the longest input in tokens that the model can read; None where nothing bounds it."""
    config = config.get_text_config()
    limits = [tokenizer.model_max_length]
    positions = getattr(config, "max_position_embeddings", None)
    if positions and positions > 0:  # XLNet, which has no limit, says -1.
        if config.model_type in POSITIONS_AFTER_PAD and config.pad_token_id is not None:
            positions -= config.pad_token_id + 1
        limits.append(positions)
    limits = [int(limit) for limit in limits if limit and limit < NO_LIMIT]
    return min(limits, default=None)


def embedding_size(model: PreTrainedModel) -> int | None:
    """Return how many token ids the model has a vector for; None where it has no such table."""
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)
    except NotImplementedError:  # CANINE hashes its tokens.
        return None
    if weight is None:
        return None
    return weight.shape[0]


def without_adapter(model: torch.nn.Module) -> PreTrainedModel:
    """Return the model inside a PEFT adapter, or the model itself where there is no adapter."""
    if hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model


def rewards_from_logits(logits: torch.Tensor) -> torch.Tensor:
    """Return the rewards (...,) of logits (..., labels), in float32.

    The reward is the one label, or logit 1 of two (ContextualAI/HALOs).
    """
    return logits[..., -1].float()
