"""A stock sequence-classification model, and what its files do and do not hold."""

import logging
from dataclasses import dataclass

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from reward.model.hub import ModelError


@dataclass
class MismatchedTensor:
    """A tensor whose shape in the file is not the one that the model needs."""

    name: str
    saved_shape: list[int]
    needed_shape: list[int]

    @property
    def described(self) -> str:
        """The tensor and both shapes, as an error shows them."""
        return f"{self.name} {self.saved_shape} (this model needs {self.needed_shape})"


@dataclass
class LoadedClassifier:
    """A sequence-classification model, and how its tensors compare with those of its files."""

    model: PreTrainedModel
    missing: set[str]  # tensors of the model that the files lack: they are random
    unexpected: set[str]  # tensors of the files that the model does not have: they are not used
    mismatched: list[MismatchedTensor]  # they are random as well


def load_classifier(
    name: str, state_dict: dict[str, torch.Tensor] | None = None, **options
) -> LoadedClassifier:
    """Load the model with transformers.

    transformers' own report of missing and unexpected tensors is kept quiet: what matters in it is
    an error of ours, and the rest (a new head over a language model) is meant.

    Args:
        name: A folder, or the id of a Hub model.
        state_dict: The tensors, where they are not those of the files; needs the option `config`.
        options: They go to `from_pretrained`.

    Raises:
        ModelError: transformers cannot load it.
    """
    source: str | None = name
    model_class = AutoModelForSequenceClassification
    if state_dict is not None:
        source = None
        model_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(options["config"])]
        options["state_dict"] = state_dict
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        model, info = model_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    # A config whose values do not fit each other raises whatever transformers meets first.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{name}: the model cannot be loaded: {reason[:300]}") from error
    finally:
        logger.setLevel(level)
    mismatched = [
        MismatchedTensor(key, list(saved), list(needed))
        for key, saved, needed in info["mismatched_keys"]
    ]
    return LoadedClassifier(
        model, set(info["missing_keys"]), set(info["unexpected_keys"]), mismatched
    )


def keep_unpacked(model: torch.nn.Module) -> None:
    """Stop bitsandbytes (0.50) from packing 4-bit layers for an AVX512-BF16 CPU.

    It would do so at their first evaluation. The packed product has no backward, so that from then
    on the gradients of the layers below would be wrong, silently; and it rounds the scales to bf16,
    which moved rewards by a tenth of their standard deviation.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
