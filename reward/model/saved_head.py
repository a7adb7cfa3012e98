"""Which head of a checkpoint gives the reward: `find_head(parts)`, then `set_head(model, ...)`.

    score, classifier           a stock head: one label, or logit 1 of two (HALOs)
    v_head.summary              TRL's and LLaMA-Factory's value head, in the model's own file or in
                                one of its own
    value_head, or the config's value_head_prefix
                                OpenRLHF's

The last two are read at the last token, whatever it is; transformers does not know them.
"""

from dataclasses import dataclass, field

import torch
from transformers import PretrainedConfig, PreTrainedModel

from reward.model.architecture import OPENRLHF_CLASS, architecture_of
from reward.model.classifier import LoadedClassifier
from reward.model.heads import HEAD_NAMES, SCORED_ONLY_HEAD_NAMES, head_of, is_head_key
from reward.model.hub import ModelError
from reward.model.parts import VALUE_HEAD_BIAS, VALUE_HEAD_WEIGHT, CheckpointParts
from reward.model.weights import SavedWeights

# transformers' own names of heads that give one reward for a text.
STOCK_HEAD_NAMES = (*HEAD_NAMES[:2], *SCORED_ONLY_HEAD_NAMES)

NAMED_TENSORS = 8  # how many tensors an error names

# TRL saves a model with a value head under this prefix where it saves the wrapper's own state.
WRAPPER_PREFIX = "pretrained_model."

# Tensors that the reward does not depend on, though no sequence-classification model has them. A
# language model's output layers, a pooler of pretraining: these are said. The rest is recomputed.
SAID_WHEN_UNUSED = (
    "lm_head",
    "embed_out",
    "cls",
    "pooler",
    "generator",
    "discriminator_predictions",
)
RECOMPUTED = ("inv_freq", "position_ids", "masked_bias", "attn.bias", "attention.bias")

NORMALIZER = ("mean", "std")  # OpenRLHF's, of rewards
OPENRLHF_KEYS = ("normalize_reward", "value_head_prefix", *NORMALIZER)  # in its config.json


@dataclass
class SavedHead:
    """The head of a checkpoint, as its files have it."""

    labels: int
    in_adapter: bool = False  # whether PEFT loads it
    weight: torch.Tensor | None = None  # (1, hidden) of a value head; None for a stock head
    bias: torch.Tensor | None = None  # (1,)
    tensors: set[str] = field(default_factory=set)  # of the body's files, that a value head is from
    reads_last_token: bool = False
    notes: list[str] = field(default_factory=list)  # sentences for the user


# --- Finding it -----------------------------------------------------------------------------------


def find_head(parts: CheckpointParts) -> SavedHead:
    """Return the head that gives the reward.

    A full model without any gets a stock one here, and is refused once it is known which tensors
    its files lack.

    Raises:
        ModelError: It has more than two labels or another shape, or an adapter comes without one.
    """
    if parts.value_head is not None:
        if not parts.is_adapter:
            _refuse_second_head(parts)
        return _value_head(parts.name, parts.value_head, VALUE_HEAD_WEIGHT, VALUE_HEAD_BIAS)
    if parts.is_adapter:
        head = _head_in_adapter(parts)
        if head is not None:
            return head
    head = _head_in_body(parts)
    if head is None and parts.is_adapter:
        raise ModelError(_adapter_without_head(parts))
    if head is None:
        labels = _config_labels(parts) or 1
        _check_labels(parts.name, labels)
        return SavedHead(labels)
    return head


def _refuse_second_head(parts: CheckpointParts) -> None:
    """Raise ModelError for a model with a stock head beside a value head in a file of its own."""
    stock = [key for key in parts.weights.shapes if key.split(".")[0] in STOCK_HEAD_NAMES]
    if stock:
        raise ModelError(
            f"{parts.name} holds more than one head, of which one is the reward's: "
            f"{parts.weights.described(stock[:NAMED_TENSORS])}, and a value head in a file of its "
            "own; remove the one that is not meant"
        )


def _head_in_adapter(parts: CheckpointParts) -> SavedHead | None:
    """Return the head that an adapter holds whole; None where it holds none, or parts of LoRA."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING  # the import takes a second

    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(parts.adapter_type, "lora_")
    rows = []
    for key, shape in parts.adapter.shapes.items():
        if is_head_key(key) and prefix not in key:
            rows.append(shape[0])
    if not rows:
        return None
    # A head of several layers (RoBERTa's) ends in the one with the fewest rows.
    labels = min(rows)
    _check_labels(parts.name, labels)
    return SavedHead(labels, in_adapter=True, notes=_said_of_two(parts, labels))


def _head_in_body(parts: CheckpointParts) -> SavedHead | None:
    """Return the head that the files of the body hold; None where there is none that is read."""
    name, weights = parts.base, parts.weights
    value_heads = {
        VALUE_HEAD_WEIGHT: VALUE_HEAD_BIAS,
        WRAPPER_PREFIX + VALUE_HEAD_WEIGHT: WRAPPER_PREFIX + VALUE_HEAD_BIAS,
    }
    openrlhf_name = parts.config.get("value_head_prefix") or "value_head"
    if openrlhf_name not in HEAD_NAMES[:2]:
        value_heads[f"{openrlhf_name}.weight"] = f"{openrlhf_name}.bias"
    found = [key for key in value_heads if key in weights.shapes]

    stock, rows = [], []
    for key, shape in weights.shapes.items():
        if key.split(".")[0] in STOCK_HEAD_NAMES and shape:
            stock.append(key)
            rows.append(shape[0])
    if len(found) > 1 or (found and stock):
        heads = weights.described((found + stock)[:NAMED_TENSORS])
        raise ModelError(f"{name} holds more than one head, of which one is the reward's: {heads}")
    if found:
        return _value_head(name, weights, found[0], value_heads[found[0]])
    if not stock:
        return None
    labels = min(rows)
    in_config = _config_labels(parts)
    if in_config is not None and in_config != labels and labels != 1:
        raise ModelError(
            f"{name}: config.json has {in_config} labels, but the head in the files has {labels} "
            f"rows; correct num_labels and id2label in config.json"
        )
    _check_labels(name, labels)
    return SavedHead(labels, reads_last_token=is_openrlhf(parts), notes=_said_of_two(parts, labels))


def _value_head(name: str, weights: SavedWeights, weight_key: str, bias_key: str) -> SavedHead:
    """Return a value head. Raises ModelError where its weight is not one row."""
    shape = weights.shapes.get(weight_key)
    if shape is None or len(shape) != 2 or shape[0] != 1:
        heads = [key for key in sorted(weights.shapes) if is_head_key(key)]
        raise ModelError(
            f"{name}: value head: {weight_key} of one row is needed, found "
            f"{weights.described(heads[:NAMED_TENSORS])}"
        )
    bias = None
    tensors = {weight_key}
    if bias_key in weights.shapes:
        bias = weights.read(bias_key)
        tensors.add(bias_key)
    return SavedHead(
        labels=1,
        weight=weights.read(weight_key),
        bias=bias,
        tensors=tensors,
        reads_last_token=True,
    )


def _check_labels(name: str, labels: int) -> None:
    """Raise ModelError for a head that gives more than a reward, or two logits."""
    if labels not in (1, 2):
        raise ModelError(
            f"{name}: {labels} labels; a reward model has one (or two, reward = logit 1)"
        )


def _config_labels(parts: CheckpointParts) -> int | None:
    """Return how many labels config.json names; None where it says nothing of them."""
    labels = parts.config.get("num_labels")
    names = parts.config.get("id2label")
    if isinstance(names, dict):
        labels = len(names)
    return labels


def _said_of_two(parts: CheckpointParts, labels: int) -> list[str]:
    """Return the sentence about a two-label model that train_rm.py has not made.

    Raises:
        ModelError: Its labels have the names of the sides, in the other order.
    """
    if labels != 2 or parts.manifest:
        return []
    names = parts.config.get("id2label") or {}
    which = str(names.get("1", "LABEL_1"))
    if str(names.get("0")).lower() == "chosen" or which.lower() == "rejected":
        raise ModelError(
            f"{parts.name}: of two labels the reward is the logit of label 1, which config.json "
            f"calls {which}; save it with the two rows of its head, and the labels, swapped"
        )
    return [f"the model has two labels: the reward is the logit of label 1 ({which})"]


def is_openrlhf(parts: CheckpointParts) -> bool:
    """Return whether OpenRLHF saved a model, which it reads at the last token, whatever it is."""
    keys = set(OPENRLHF_KEYS[:2])
    return architecture_of(parts.config) == OPENRLHF_CLASS or bool(keys & parts.config.keys())


def _adapter_without_head(parts: CheckpointParts) -> str:
    """Return the error about an adapter whose head is in no file."""
    file = next(iter(parts.adapter.files.values()), "its file").replace("\\", "/").split("/")[-1]
    on_head = [key for key in sorted(parts.adapter.shapes) if is_head_key(key)]
    if on_head:
        return (
            f"{parts.name} is an adapter on a head that is in no file: {file} holds "
            f"{', '.join(on_head)}, but neither it nor the base {parts.base} holds the weight that "
            "they are added to, which was new at each load. Train again with the head saved whole "
            "(task_type SEQ_CLS, and no `score` in target_modules)."
        )
    return (
        f"{parts.name} is an adapter without a head: {file} holds no {' or '.join(HEAD_NAMES[:2])} "
        f"weight, and neither does its base {parts.base}, so its rewards would be random. PEFT "
        "saves the head under task_type SEQ_CLS; train again."
    )


def without_wrapper(weights: SavedWeights) -> dict[str, torch.Tensor] | None:
    """Return the tensors without the prefix of TRL's wrapper; None where they have none."""
    if not any(key.startswith(WRAPPER_PREFIX) for key in weights.shapes):
        return None
    return {key.removeprefix(WRAPPER_PREFIX): weights.read(key) for key in weights.shapes}


# --- Setting it -----------------------------------------------------------------------------------


def set_head(parts: CheckpointParts, head: SavedHead, loaded: LoadedClassifier) -> None:
    """Give the loaded body its head, except what PEFT loads, and account for every tensor.

    Args:
        parts: The checkpoint.
        head: As `find_head` gives it; notes are added.
        loaded: The body with a stock head, changed in place.

    Raises:
        ModelError: Tensors of the model would be random, or the files hold tensors that change the
            reward and are not used.
    """
    model = loaded.model
    head_name, layer = head_of(model)
    bias_key = f"{head_name}.bias"
    missing = loaded.missing | {tensor.name for tensor in loaded.mismatched}
    unused = loaded.unexpected - {key.removeprefix(WRAPPER_PREFIX) for key in head.tensors}
    if head.weight is not None:
        _set_value_head(parts.name, model, head_name, head)
        missing = {key for key in missing if not key.startswith(head_name)}
    elif head.in_adapter:
        # PEFT loads the bias only where there is one.
        adapter_has_bias = any(key.endswith(bias_key) for key in parts.adapter.shapes)
        if adapter_has_bias and layer.bias is None:
            layer.bias = torch.nn.Parameter(layer.weight.new_zeros(layer.out_features))
        # The base's own head is replaced.
        unused = {key for key in unused if not is_head_key(key)}
    elif bias_key in unused:  # stock transformers passes it over
        bias = parts.weights.read(bias_key)
        layer.bias = torch.nn.Parameter(bias.to(layer.weight))
        unused.remove(bias_key)
    _refuse_random(parts, loaded, missing, unused)
    unused -= _normalize(parts, head, model.get_submodule(head_name), unused)
    forget_openrlhf(model.config)
    head.notes += _account_for(parts, head, unused)


def _refuse_random(
    parts: CheckpointParts, loaded: LoadedClassifier, missing: set[str], unused: set[str]
) -> None:
    """Raise ModelError for tensors of the model that no file holds in the shape that it needs.

    Args:
        parts: The checkpoint.
        loaded: The loaded body.
        missing: The tensors of the model that were not loaded.
        unused: The tensors of the files that were not used, which the error names.
    """
    missing = missing - {key.removeprefix("base_model.model.") for key in parts.adapter.shapes}
    wrong = []
    for tensor in sorted(loaded.mismatched, key=lambda tensor: tensor.name):
        if tensor.name in missing:
            wrong.append(tensor.described)
    if wrong:
        raise ModelError(
            f"{parts.base}: config.json does not fit the weights, which have other shapes: "
            f"{_some(wrong)}"
        )
    if missing:
        raise ModelError(_random_tensors(parts, sorted(missing), sorted(unused)))


def forget_openrlhf(config: PretrainedConfig) -> None:
    """Remove OpenRLHF's keys from a config, which would decide how a saved model is read.

    A converted one would be normalized twice.

    Args:
        config: A loaded model's config, changed in place.
    """
    for key in OPENRLHF_KEYS:
        if hasattr(config, key):
            delattr(config, key)


def _set_value_head(name: str, model: PreTrainedModel, head_name: str, head: SavedHead) -> None:
    """Replace the stock head by a value head. Raises ModelError where its shape does not fit."""
    layer = model.get_submodule(head_name)
    if head.weight.shape != layer.weight.shape:
        raise ModelError(
            f"{name}: value head: {min(head.tensors, key=len)} {list(layer.weight.shape)} is "
            f"needed, found {list(head.weight.shape)}"
        )
    state = {"weight": head.weight}
    if head.bias is not None:
        state["bias"] = head.bias
    new = torch.nn.Linear(layer.in_features, 1, bias=head.bias is not None, dtype=head.weight.dtype)
    new.load_state_dict(state)
    model.set_submodule(head_name, new)


def _normalize(
    parts: CheckpointParts, head: SavedHead, layer: torch.nn.Linear, unused: set[str]
) -> set[str]:
    """Make the head give (reward - mean) / std where OpenRLHF's config asks for it.

    Args:
        parts: The checkpoint.
        head: Its head; a note is added.
        layer: The head's layer, changed in place.
        unused: The tensors of the files that are not used so far.

    Returns:
        The tensors that this is about.
    """
    if not is_openrlhf(parts):
        return set()
    tensors = unused & set(NORMALIZER)
    saved = {}
    for key in NORMALIZER:
        if key in parts.config:
            saved[key] = float(parts.config[key])
        elif key in tensors:
            saved[key] = parts.weights.read(key).float().item()
    if len(saved) < 2:
        return set()
    mean, std = saved["mean"], saved["std"]
    if not parts.config.get("normalize_reward"):
        head.notes.append(
            f"rewards are raw: the config records mean {mean:g} and std {std:g}, which OpenRLHF "
            "applies only with normalize_reward"
        )
        return tensors
    bias = torch.zeros(layer.out_features)
    if layer.bias is not None:
        bias = layer.bias.detach().float()
    layer.weight = torch.nn.Parameter(layer.weight.detach().float() / std)
    layer.bias = torch.nn.Parameter((bias - mean) / std)
    head.notes.append(f"rewards are (r - {mean:g}) / {std:g}: the config asks for normalize_reward")
    return tensors


def _account_for(parts: CheckpointParts, head: SavedHead, unused: set[str]) -> list[str]:
    """Return a sentence about tensors that the reward does not depend on.

    Raises:
        ModelError: Other tensors are not used.
    """
    said, refused = [], []
    for key in sorted(unused):
        if key.endswith(RECOMPUTED):
            continue
        if not set(SAID_WHEN_UNUSED).isdisjoint(key.split(".")):
            said.append(key)
        else:
            refused.append(key)
    if refused:
        raise ModelError(
            f"{parts.base} holds tensors that {architecture_of(parts.config) or 'its model'} here "
            f"does not use, so its rewards would not be its maker's: {_some(refused)}"
        )
    if said and head.weight is None and not parts.is_adapter:
        return [f"not used, because no reward depends on it: {_some(said)}"]
    return []


def _random_tensors(parts: CheckpointParts, missing: list[str], unused: list[str]) -> str:
    """Return the error about a model's tensors that no file holds."""
    verb = "are"
    if len(missing) == 1:
        verb = "is"
    message = (
        f"{parts.name} is no reward model that is read here: {_some(missing)} {verb} not in the "
        "checkpoint and would be random"
    )
    if unused:
        message += f"; tensors found and not used: {_some(unused)}"
    if not all(is_head_key(key) for key in missing):
        return f"{message}. The files are incomplete, or config.json is another model's."
    return f"{message}. Train one with train_rm.py, or name the folder that holds the head."


def _some(tensors: list[str]) -> str:
    """Return the first few names of a list."""
    text = ", ".join(tensors[:NAMED_TENSORS])
    if len(tensors) > NAMED_TENSORS:
        text += ", ..."
    return text
