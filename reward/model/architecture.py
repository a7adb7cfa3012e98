"""Which class a checkpoint's model is: one of transformers', its own, or none that is known."""

import json
from dataclasses import dataclass

import torch
import transformers
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from reward.model.heads import head_of, without_adapter
from reward.model.hub import ModelError, checkpoint_file, checkpoint_object, require_model
from reward.model.parts import CheckpointParts
from reward.model.weights import MODEL_FILES

CLASSIFIER = "AutoModelForSequenceClassification"

OPENRLHF_CLASS = "RewardModel"

# What heads of these classes give is no reward of a whole text.
OTHER_TASKS = ("ForTokenClassification", "ForQuestionAnswering", "ForNextSentencePrediction")


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
    if str(config.get("model_type")) in transformers.CONFIG_MAPPING:
        return None
    first = next(iter(classes.values()), None)
    return classes.get(CLASSIFIER, first)


def architecture_of(config: dict) -> str:
    """Return the name of the class that the model was saved as; empty where nothing says so."""
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        return str(architectures[0])
    return ""


def read_config(
    name: str, revision: str = "main", trust_remote_code: bool = False
) -> PretrainedConfig:
    """Return the config of a model, without a pad id that lies outside of its embedding.

    No text can hold such an id, and torch would not make the embedding.

    Args:
        name: A folder, or the id of a Hub model.
        revision: The branch, tag or commit of a Hub model.
        trust_remote_code: Whether the model's own Python code may run.

    Raises:
        ModelError: transformers does not know the model, or cannot read its config.
    """
    require_model(name, revision)
    _refuse_unknown_type(name, checkpoint_object(name, "config.json", revision))
    try:
        config = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    # A value that does not fit raises whatever transformers meets with it first.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{name}: transformers {transformers.__version__} cannot read its config.json: {reason}"
        ) from None
    text_config = config.get_text_config()
    if hasattr(text_config, "pad_token_id"):
        rows = getattr(text_config, "vocab_size", None)
        text_config.pad_token_id = pad_inside(text_config.pad_token_id, rows)
    return config


def pad_inside(pad: int | None, rows: int | None) -> int | None:
    """Return a pad id, or None for one that no text can hold: it is as good as none.

    Args:
        pad: The id; None for none.
        rows: How many tokens have an embedding; None if that is not known.
    """
    if pad is None or pad < 0 or (rows is not None and pad >= rows):
        return None
    return pad


def read_classifier_config(parts: CheckpointParts, trust_remote_code: bool) -> PretrainedConfig:
    """Return the config of a checkpoint's body, which is a sequence-classification model.

    Raises:
        ModelError: It is no such model that is read here. The message names its class.
    """
    _refuse_own_class(parts, trust_remote_code)
    saved_as = architecture_of(parts.config)
    if saved_as.endswith(OTHER_TASKS):
        raise ModelError(
            f"{parts.base} is a {saved_as}, whose head does not give one reward for a whole text; "
            "a sequence-classification model with one label is needed"
        )
    config = read_config(parts.base, parts.base_revision, trust_remote_code)
    config.return_dict = True  # a file may say otherwise, and outputs are read by their names
    require_classifier(parts.base, config, parts.config)
    return config


def require_classifier(name: str, config: PretrainedConfig, raw_config: dict) -> None:
    """Raise ModelError where a model has no class for sequence classification.

    Args:
        name: The folder or Hub id that the error names.
        config: As `read_config` gives it.
        raw_config: The content of its config.json.
    """
    own = own_class(raw_config)
    has_own = own is not None and own.auto_class == CLASSIFIER
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and not has_own:
        raise ModelError(
            f"{name}: transformers {transformers.__version__} has no sequence-classification model "
            f"for model_type {config.model_type} "
            f"({architecture_of(raw_config) or 'no architecture named'})"
        )


def refuse_more_than_a_head(parts: CheckpointParts, model: PreTrainedModel) -> None:
    """Raise ModelError where a class of the checkpoint's own is more than a body and a head.

    Its forward must give the head's logits.

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
    try:
        with torch.inference_mode():
            logits = model(input_ids=torch.zeros((1, 2), dtype=torch.long)).logits
        shape = list(logits.shape)
    except Exception as error:  # their code may raise anything
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{parts.base}: the forward of {type(model).__name__} gives no logits of one text "
            f"({type(error).__name__}: {reason})"
        ) from error
    if shape != [1, layer.out_features]:
        raise ModelError(
            f"{parts.base}: the forward of {type(model).__name__} gives logits {shape} of one "
            f"text; [1, {layer.out_features}] are needed"
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


def _said_of_own_code(parts: CheckpointParts, trust_remote_code: bool) -> list[str]:
    """Return the sentence about a checkpoint's classifier that a stock class stands in for."""
    auto_map = parts.config.get("auto_map")
    if trust_remote_code or not isinstance(auto_map, dict) or CLASSIFIER not in auto_map:
        return []
    return [
        f"{parts.base} has code of its own for this model ({auto_map[CLASSIFIER]}), which is not "
        "run: transformers' class is used, whose rewards may be others. --trust_remote_code runs "
        "the Python code of the checkpoint: read it first"
    ]


def said_of_what_is_left_out(
    parts: CheckpointParts, model: torch.nn.Module, trust_remote_code: bool
) -> list[str]:
    """Return sentences about what a checkpoint names or holds and nothing here computes.

    Args:
        parts: The checkpoint.
        model: Its model, as it is read.
        trust_remote_code: Whether the model's own Python code may run.
    """
    notes = _said_of_own_code(parts, trust_remote_code)
    saved_as = architecture_of(parts.config)
    is_known = saved_as in ("", OPENRLHF_CLASS) or hasattr(transformers, saved_as)
    if not is_known and own_class(parts.config) is None:
        notes.append(
            f"{parts.base} was saved as a {saved_as}, which transformers {transformers.__version__}"
            f" does not have, and holds no code for it: it is read as a "
            f"{type(without_adapter(model)).__name__}, whose rewards may be others"
        )
    activation = _activation_of(parts.config)
    if activation not in ("", "Identity"):
        notes.append(
            f"rewards are logits: the {activation} that config.json names, which "
            "sentence-transformers puts behind them, is left out"
        )
    return notes + _said_of_whole_model(parts)


def _said_of_whole_model(parts: CheckpointParts) -> list[str]:
    """Return the sentence about weights of a whole model that lie beside an adapter."""
    if not parts.is_adapter or parts.value_head is not None:
        return []
    for file in MODEL_FILES:
        for name in (file, f"{file}.index.json"):
            if checkpoint_file(parts.name, name, parts.revision) is not None:
                return [
                    f"{parts.name} holds an adapter and a whole model ({name}): the adapter over "
                    f"its base {parts.base} is read, and the whole model is not"
                ]
    return []


def _activation_of(config: dict) -> str:
    """Return the name of the class that a CrossEncoder puts behind the logit; empty for none."""
    settings = config.get("sentence_transformers")
    path = config.get("sbert_ce_default_activation_function")  # of versions before 4
    if isinstance(settings, dict):
        path = settings.get("activation_fn", path)
    return str(path or "").rpartition(".")[2]


def _refuse_unknown_type(name: str, config: dict) -> None:
    """Raise ModelError for a config.json whose model_type transformers does not have."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ModelError(
            f"{name}: config.json has no model_type, so it is not known which model this is "
            f"(it has {', '.join(sorted(config)[:8]) or 'no keys'})"
        )
    has_own_config = "AutoConfig" in (config.get("auto_map") or {})
    if model_type not in transformers.CONFIG_MAPPING and not has_own_config:
        raise ModelError(
            f"{name}: model_type {json.dumps(model_type)} "
            f"({architecture_of(config) or 'no architecture named'}) is not known to "
            f"transformers {transformers.__version__}, and the checkpoint has no code of its own "
            "for it"
        )
