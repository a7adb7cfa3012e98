"""What decides the rewards of a model, as a few hashes: `fingerprint(scorer)`."""

import hashlib
import json

import torch

from reward.data.encoding import encoder_facts
from reward.model.endpoint import EndpointScorer
from reward.model.scorer import Scorer
from reward.model.text_encoder import TextEncoder


def fingerprint(scorer: Scorer | EndpointScorer) -> dict[str, str]:
    """Return name -> hash of each part that decides a reward. Which folder it lies in does not.

    Of a served model only its name is known, and what encodes its texts.
    """
    parts = {
        **_encoding(scorer),
        "longest input": str(scorer.limit),
        "transcript": scorer.manifest.get("transcript", "messages"),
    }
    if isinstance(scorer, EndpointScorer):
        return {"served model": scorer.server.model.name, **parts}
    config = scorer.model.config.to_dict()
    config.pop("_name_or_path", None)
    config.pop("transformers_version", None)
    adapters = {}
    for name, adapter in getattr(scorer.model, "peft_config", {}).items():
        adapters[name] = adapter.to_dict() | {"base_model_name_or_path": None}
    return {
        "weights": _hash(_sums_of_weights(scorer.model)),
        "configuration": _hash([config, adapters]),
        **parts,
    }


def _encoding(scorer: TextEncoder) -> dict[str, str]:
    """Return the hashes of what encodes texts."""
    tokenizer = scorer.tokenizer
    facts = {name: str(value) for name, value in encoder_facts(tokenizer).items()}
    template = facts.pop("chat_template_sha256")
    state = {}
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        # Using the tokenizer changes these two entries, and encoding reads neither.
        state["truncation"] = state["padding"] = None
    return {"tokenizer": _hash([facts, state]), "chat template": _hash(template)}


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@torch.inference_mode()
def _sums_of_weights(model: torch.nn.Module) -> dict[str, int]:
    """Return name -> the sum of a tensor's bits as whole numbers, which rounding does not blur.

    They take as long as reading all weights once from memory.
    """
    sums = {}
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            numbers = tensor.detach().contiguous().flatten().view(_whole_numbers(tensor))
            sums[name] = int(numbers.sum(dtype=torch.int64))
    return sums


def _whole_numbers(tensor: torch.Tensor) -> torch.dtype:
    """Return the type of whole numbers that are as wide as those of the tensor."""
    by_width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return by_width[tensor.element_size()]
