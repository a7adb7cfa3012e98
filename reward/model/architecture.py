"""Which class a checkpoint's model is: one of transformers', its own, or none that is known."""

import json
from dataclasses import dataclass

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from reward.model.heads import head_of
from reward.model.hub import ModelError
from reward.model.parts import CheckpointParts

CLASSIFIER = "AutoModelForSequenceClassification"

# What heads of these classes give is no reward of a whole text.
OTHER_TASKS = ("ForTokenClassification", "ForQuestionAnswering", "ForNextSentencePrediction")

# What reading a config.json raises that does not fit its class.
CONFIG_ERRORS = (OSError, ValueError, TypeError, ImportError, AttributeError, StrictDataclassError)


@dataclass
class OwnClass:
    """A model class that lies in the checkpoint as Python code."""

    name: str
    file: str  # the name of its file, without .py
    auto_class: str  # which of transformers' automatic classes it is registered for

    @property
    def described(self) -> str:
        """The class and where it lies, as an error names it."""
        return f"{self.name} ({self.file}.py, registered as {self.auto_class})"


def own_class(config: dict) -> OwnClass | None:
    """Return the checkpoint's own class that its model was saved as; None for a stock model.

    Args:
        config: The content of config.json.
    """
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict):
        return None
    classes = {}
    for auto_class, reference in auto_map.items():
        if auto_class.startswith("AutoModel") and isinstance(reference, str):
            # "modeling_x.Class", or "owner/repository--modeling_x.Class"
            file, _, name = reference.split("--")[-1].rpartition(".")
            classes[auto_class] = OwnClass(name, file, auto_class)
    saved_as = architecture_of(config)
    for candidate in classes.values():
        if candidate.name == saved_as and not hasattr(transformers, saved_as):
            return candidate
    if config.get("model_type") in transformers.CONFIG_MAPPING:
        return None
    first = next(iter(classes.values()), None)
    return classes.get(CLASSIFIER, first)


def architecture_of(config: dict) -> str:
    """Return the name of the class that the model was saved as; empty where nothing says so."""
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        return str(architectures[0])
    return ""


def read_config(parts: CheckpointParts, trust_remote_code: bool) -> PretrainedConfig:
    """Return the config of a checkpoint's body.

    Raises:
        ModelError: No model that is read here has this config. The message names the class.
    """
    _refuse_own_class(parts, trust_remote_code)
    saved_as = architecture_of(parts.config)
    if saved_as.endswith(OTHER_TASKS):
        raise ModelError(
            f"{parts.base} is a {saved_as}, whose head does not give one reward for a whole text; "
            "a sequence-classification model with one label is needed"
        )
    _refuse_unknown_type(parts)
    try:
        config = AutoConfig.from_pretrained(
            parts.base, revision=parts.base_revision, trust_remote_code=trust_remote_code
        )
    except CONFIG_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{parts.base}: transformers {transformers.__version__} cannot read its config.json: "
            f"{reason}"
        ) from None
    known = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if not known and own_class(parts.config) is None:
        raise ModelError(
            f"{parts.base}: transformers {transformers.__version__} has no sequence-classification "
            f"model for model_type {config.model_type} ({saved_as or 'no architecture named'})"
        )
    return config


def refuse_more_than_a_head(parts: CheckpointParts, model: PreTrainedModel) -> None:
    """Raise ModelError where a class of the checkpoint's own is more than a body and a head.

    Args:
        parts: The checkpoint.
        model: Its loaded model.
    """
    if type(model).__module__.startswith("transformers."):
        return
    head_name, layer = head_of(model)
    body = f"{model.base_model_prefix}."
    beside = []
    for name, _ in model.named_parameters():
        if not name.startswith(body) and not name.startswith(f"{head_name}."):
            beside.append(name)
    if beside:
        raise ModelError(
            f"{parts.base}: {type(model).__name__} has more than a body and one linear head "
            f"({head_name}): {', '.join(beside[:8])}; such a model is not read"
        )
    if layer.out_features not in (1, 2):
        raise ModelError(
            f"{parts.base}: {type(model).__name__} has a head of {layer.out_features} labels; a "
            "reward model has one (or two, reward = logit 1)"
        )


def _refuse_own_class(parts: CheckpointParts, trust_remote_code: bool) -> None:
    """Raise ModelError for a class of the checkpoint's own that may not or cannot be loaded."""
    own = own_class(parts.config)
    if own is None:
        return
    if own.auto_class != CLASSIFIER:
        raise ModelError(
            f"{parts.base} is a model of its own class, {own.described}; needed is a stock "
            f"sequence-classification model, or an auto_map entry {CLASSIFIER} whose class has "
            "one linear head with one label (--trust_remote_code alone does not help)"
        )
    if not trust_remote_code:
        raise ModelError(
            f"{parts.base} is a model of its own class, {own.described}; transformers does not "
            "have it. --trust_remote_code runs the Python code of the checkpoint: read it first"
        )


def _refuse_unknown_type(parts: CheckpointParts) -> None:
    """Raise ModelError for a config whose model_type transformers does not have."""
    model_type = parts.config.get("model_type")
    if not model_type:
        raise ModelError(
            f"{parts.base}: config.json has no model_type, so it is not known which model this is "
            f"(it has {', '.join(sorted(parts.config)[:8]) or 'no keys'})"
        )
    has_own_config = "AutoConfig" in (parts.config.get("auto_map") or {})
    if model_type not in transformers.CONFIG_MAPPING and not has_own_config:
        raise ModelError(
            f"{parts.base}: model_type {json.dumps(model_type)} "
            f"({architecture_of(parts.config) or 'no architecture named'}) is not known to "
            f"transformers {transformers.__version__}, and the checkpoint has no code of its own "
            "for it"
        )
