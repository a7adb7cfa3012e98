"""A PEFT adapter around its base: `with_adapter(model, parts)`; nothing of it is passed over."""

import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from transformers import PreTrainedModel

from reward.model.hub import ModelError
from reward.model.parts import CheckpointParts

PREFIX = "base_model.model."  # of an adapter's tensors


def resize_embeddings(model: PreTrainedModel, parts: CheckpointParts) -> None:
    """Give the base as many embeddings as the adapter holds, as its maker did before training.

    Args:
        model: The base, changed in place.
        parts: The checkpoint.
    """
    embedding = model.get_input_embeddings()
    names = [name for name, module in model.named_modules() if module is embedding]
    for key, shape in parts.adapter.shapes.items():
        for name in names:
            if not key.startswith(f"{PREFIX}{name}."):
                continue
            rows = shape[0]
            if "lora_embedding_A" in key:  # (rank, rows)
                rows = shape[1]
            elif not key.endswith(".weight") or "lora_" in key:
                continue
            if rows != embedding.num_embeddings:
                model.resize_token_embeddings(rows, mean_resizing=False)
                return


def with_adapter(model: PreTrainedModel, parts: CheckpointParts) -> torch.nn.Module:
    """Return the model with the checkpoint's adapter around it.

    Raises:
        ModelError: The adapter is of a kind that is not read, does not fit the base, or holds
            tensors that are not used.
    """
    config = PeftConfig.from_pretrained(parts.name, revision=parts.revision)
    if config.is_prompt_learning:
        raise ModelError(
            f"{parts.name} is an adapter of the kind {parts.adapter_type}, which puts vectors in "
            "front of the text; LoRA and other kinds that change layers are read"
        )
    if config.task_type != "SEQ_CLS":
        # A language model's adapter (LLaMA-Factory's) asks for methods that this model lacks.
        config.task_type = None
    try:
        adapted = PeftModel.from_pretrained(
            model, parts.name, revision=parts.revision, config=config
        )
        # Once more, for the names of what does not fit: PeftModel only warns of it.
        tensors = {key: parts.adapter.read(key) for key in parts.adapter.shapes}
        result = set_peft_model_state_dict(adapted, tensors)
    except (ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{parts.name}: the adapter does not fit its base {parts.base}: {reason[:300]}"
        ) from None
    unused = [key for key in result.unexpected_keys if ".lm_head." not in key]
    if unused:
        raise ModelError(
            f"{parts.name}: the adapter holds tensors that the base {parts.base} has no place for, "
            f"so its rewards would not be its maker's: {', '.join(sorted(unused)[:8])}"
        )
    return adapted
