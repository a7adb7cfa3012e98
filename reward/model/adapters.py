"""A PEFT adapter around its base: `with_adapter(model, parts)`; nothing of it is passed over."""

import peft
import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from transformers import PreTrainedModel

from reward.model.hub import ModelError
from reward.model.parts import CheckpointParts

PREFIX = "base_model.model."  # of an adapter's tensors
OTHER_TASKS = ("TOKEN_CLS", "QUESTION_ANS")  # PEFT's names; a head of these gives no reward


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


def read_adapter_config(parts: CheckpointParts) -> PeftConfig:
    """Return the adapter's PEFT config.

    Raises:
        ModelError: PEFT cannot read it, or the adapter is of a kind that is not read.
    """
    try:
        config = PeftConfig.from_pretrained(parts.name, revision=parts.revision)
    # A value that does not fit raises whatever PEFT meets with it first.
    except Exception as error:
        raise ModelError(
            f"{parts.name}: PEFT {peft.__version__} cannot read adapter_config.json (peft_type "
            f"{parts.adapter_type}): {_one_line(error)}"
        ) from None
    if config.is_prompt_learning:
        raise ModelError(
            f"{parts.name} is an adapter of the kind {parts.adapter_type}, which puts vectors in "
            "front of the text; LoRA and other kinds that change layers are read"
        )
    if config.task_type in OTHER_TASKS:
        raise ModelError(
            f"{parts.name} is an adapter with the task_type {config.task_type}, whose head does "
            "not give one reward for a whole text; SEQ_CLS with one label is needed"
        )
    if config.task_type != "SEQ_CLS":
        # A language model's adapter (LLaMA-Factory's) asks for methods that this model lacks.
        config.task_type = None
    return config


def with_adapter(
    model: PreTrainedModel, parts: CheckpointParts, config: PeftConfig
) -> torch.nn.Module:
    """Return the model with the checkpoint's adapter around it.

    Args:
        model: The base.
        parts: The checkpoint.
        config: As `read_adapter_config` gives it.

    Raises:
        ModelError: The adapter does not fit the base, or lacks tensors, or holds some that are not
            used.
    """
    tensors = {key: parts.adapter.read(key) for key in parts.adapter.shapes}
    try:
        adapted = PeftModel.from_pretrained(
            model, parts.name, revision=parts.revision, config=config
        )
        # Once more, for the names of what does not fit: PeftModel only warns of it.
        result = set_peft_model_state_dict(adapted, dict(tensors))
    # A config or tensors that do not fit raise whatever PEFT meets first.
    except Exception as error:
        raise ModelError(
            f"{parts.name}: the adapter does not fit its base {parts.base}: {_one_line(error)}"
        ) from None
    unused = []
    for key in result.unexpected_keys:
        if ".lm_head." not in key and not _is_a_copy(key, tensors):
            unused.append(key)
    if unused:
        raise ModelError(
            f"{parts.name}: the adapter holds tensors that the base {parts.base} has no place for, "
            f"so its rewards would not be its maker's: {', '.join(sorted(unused)[:8])}"
        )
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type]
    lacking = [key for key in result.missing_keys if prefix in key and ".default" in key]
    if lacking:
        raise ModelError(
            f"{parts.name}: adapter_config.json names layers whose tensors the adapter lacks: "
            f"{', '.join(key.replace('.default', '') for key in sorted(lacking)[:8])}"
        )
    return adapted


def _is_a_copy(key: str, tensors: dict[str, torch.Tensor]) -> bool:
    """Return whether a tensor is in the file again under its module's own name.

    PEFT saves a resized embedding that is trained whole under both names.
    """
    plain_key = key.replace(".modules_to_save.", ".")
    if plain_key == key or plain_key not in tensors or key not in tensors:
        return False
    return torch.equal(tensors[plain_key], tensors[key])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
