"""Load a reward model to score: `loaded = load_reward_model("rm-out")`.

What is read, and what gives the reward:

    a full model          its head: one label, or logit 1 of two (HALOs)
    a PEFT adapter        its own head over the base that it names: one label, or logit 1 of two
    a value head          LLaMA-Factory's, beside a full model or an adapter, becomes the head

Everything else is refused, because its head would be random.
"""

from dataclasses import dataclass

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reward.model.classifier import (
    LoadedClassifier,
    keep_unpacked,
    load_classifier,
    saved_head_bias,
)
from reward.model.heads import HEAD_NAMES, Float32Head, head_of, is_encoder, is_head_key
from reward.model.hub import ModelError
from reward.model.parts import CheckpointParts, parts_of
from reward.model.templates import set_template

VALUE_HEAD_WEIGHT = "v_head.summary.weight"
VALUE_HEAD_BIAS = "v_head.summary.bias"

NAMED_TENSORS = 8  # how many unused tensors an error names; missing ones it names all


@dataclass
class LoadedRewardModel:
    """A reward model, ready to score.

    `model.config.get_text_config().pad_token_id` decides which token the reward is read at: the
    rightmost one that is not this id, or the last one where it is None.
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    template_origin: str  # in words: which chat template is used, and where it comes from
    # Whether it is a stock encoder without a template: its texts are pairs, [CLS] prompt [SEP]
    # completion [SEP], with the token types that its tokenizer makes.
    is_pair_layout: bool
    reads_last_token: bool  # a value head: the reward is read at the last token, whatever it is
    notes: list[str]  # sentences that whoever loads it tells the user, once


def load_reward_model(
    name: str,
    *,
    device: str | torch.device | None = None,
    quantized: bool = True,
    revision: str = "main",
    trust_remote_code: bool = False,
    chat_template: str | None = None,
) -> LoadedRewardModel:
    """Load a saved reward model, ready to score, and its tokenizer.

    The tokenizer is used as it was saved; one without a chat template gets ours. Which token the
    reward is read at is what the maker's files say, see `LoadedRewardModel`.

    Args:
        name: A folder, or the id of a Hub model.
        device: Where the model goes; None for the GPU where there is one.
        quantized: False gives the base of a QLoRA adapter as ordinary layers that hold the values
            its 4-bit ones stood for: those are what the adapter was trained on, not the original
            weights.
        revision: The branch, tag or commit of a Hub model.
        trust_remote_code: Whether the model's own Python code may run.
        chat_template: A file with the chat template to use, as it is, instead of the checkpoint's.

    Raises:
        ModelError: The checkpoint has no head (its rewards would be those of random weights), or
            more than two labels. The message names the tensors found.
    """
    parts = parts_of(name, revision)
    config = AutoConfig.from_pretrained(
        parts.base, revision=parts.base_revision, trust_remote_code=trust_remote_code
    )
    config.num_labels = _label_count(parts, config)
    quantization = _quantization(parts)
    model = _load_model(parts, config, quantization, quantized, trust_remote_code)
    tokenizer = AutoTokenizer.from_pretrained(
        name, revision=revision, trust_remote_code=trust_remote_code
    )
    template = set_template(tokenizer, config, chat_template)
    _set_place_of_the_reward(parts, model, tokenizer)
    for path, module in model.named_modules():
        if type(module) is torch.nn.Linear and is_head_key(path):
            # Only the forward changes. The layer stays the same object, with its loaded weights and
            # its place in PEFT's wrapper.
            module.__class__ = Float32Head
    # bitsandbytes has put a quantized model where it belongs.
    if not quantized or quantization is None:
        model.to(device or default_device())
    return LoadedRewardModel(
        model=model.eval(),
        tokenizer=tokenizer,
        template_origin=template.origin,
        is_pair_layout=template.is_ours and is_encoder(config) and not parts.manifest,
        reads_last_token=parts.value_head is not None,
        notes=template.notes,
    )


def _set_place_of_the_reward(
    parts: CheckpointParts, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Set the config's pad id where the files that the config comes from do not decide.

    Args:
        parts: The checkpoint.
        model: The loaded model; its config is changed.
        tokenizer: The checkpoint's tokenizer.
    """
    config = model.config.get_text_config()
    if parts.value_head is not None:
        config.pad_token_id = None  # LLaMA-Factory reads the last attended token
    elif parts.is_adapter and parts.manifest:
        # Our adapter was trained with the pad token that is saved beside it. The config is its
        # base's.
        config.pad_token_id = tokenizer.pad_token_id


# --- How the body is loaded -----------------------------------------------------------------------


def _load_model(
    parts: CheckpointParts,
    config: PretrainedConfig,
    quantization: BitsAndBytesConfig | None,
    quantized: bool,
    trust_remote_code: bool,
) -> torch.nn.Module:
    """Load the body, give it the checkpoint's head, and put its adapter around it."""
    options = {}
    if quantization is not None:
        options["quantization_config"] = quantization
    loaded = load_classifier(
        parts.base,
        config=config,
        dtype=_dtype(parts),
        revision=parts.base_revision,
        trust_remote_code=trust_remote_code,
        **options,
    )
    model = loaded.model
    keep_unpacked(model)
    _set_head(parts, loaded)
    if not parts.is_adapter:
        return model
    if quantization is not None and not quantized:
        model = model.dequantize()
    return _with_adapter(model, parts)


def _label_count(parts: CheckpointParts, config: PretrainedConfig) -> int:
    """Return how many labels the head has. Raises ModelError where it is no reward model's head."""
    if parts.value_head is not None:
        return 1
    if parts.is_adapter:
        if not parts.adapter_head:
            raise ModelError(
                f"{parts.name} is an adapter without a head: adapter_model.safetensors holds no "
                f"{' or '.join(HEAD_NAMES[:2])} weight, so its rewards would be random. It was "
                "trained with a task type other than SEQ_CLS; train again."
            )
        # Every tensor of a head begins with its labels, except LoRA's first matrix (rank, hidden).
        return min(shape[0] for shape in parts.adapter_head.values())
    if config.num_labels not in (1, 2):
        raise ModelError(
            f"{parts.name}: {config.num_labels} labels; a reward model has one "
            "(or two, reward = logit 1)"
        )
    return config.num_labels


def _dtype(parts: CheckpointParts) -> torch.dtype | str:
    """Return a full model's dtype as saved, and that of a base as it was under its adapter.

    The Hub may store the base in another dtype.
    """
    if not parts.is_adapter:
        return "auto"
    return getattr(torch, parts.manifest.get("dtype", ""), "auto")


def _quantization(parts: CheckpointParts) -> BitsAndBytesConfig | None:
    """Return how a base was quantized under its adapter; None where it was not."""
    settings = parts.manifest.get("quantization")
    if not parts.is_adapter or not settings:
        return None
    return BitsAndBytesConfig(**settings)


# --- Which head gives the reward ------------------------------------------------------------------


def _set_head(parts: CheckpointParts, loaded: LoadedClassifier) -> None:
    """Set the head from the checkpoint, except what the adapter loads itself.

    Raises:
        ModelError: Tensors of a full model would be random.
    """
    model = loaded.model
    head_name, layer = head_of(model)
    bias_key = f"{head_name}.bias"
    missing = loaded.missing | {tensor.name for tensor in loaded.mismatched}
    if parts.value_head is not None:
        _set_value_head(model, head_name, parts.value_head)
        missing = {key for key in missing if not key.startswith(head_name)}
    elif parts.is_adapter:
        # PEFT loads the bias only where there is one.
        adapter_has_bias = any(key.endswith(bias_key) for key in parts.adapter_head)
        if adapter_has_bias and layer.bias is None:
            layer.bias = torch.nn.Parameter(layer.weight.new_zeros(layer.out_features))
    elif bias_key in loaded.unexpected:  # stock transformers passes it over
        bias = saved_head_bias(parts.name, head_name, parts.revision)
        layer.bias = torch.nn.Parameter(bias.to(layer.weight))
    if missing and not parts.is_adapter:
        raise ModelError(_random_tensors(parts.name, sorted(missing), sorted(loaded.unexpected)))


def _set_value_head(
    model: PreTrainedModel, head_name: str, tensors: dict[str, torch.Tensor]
) -> None:
    """Replace the head by LLaMA-Factory's. Raises ModelError where its shape does not fit."""
    layer = model.get_submodule(head_name)
    weight = tensors.get(VALUE_HEAD_WEIGHT)
    if weight is None or weight.shape != layer.weight.shape:
        shapes = {key: list(tensor.shape) for key, tensor in tensors.items()}
        raise ModelError(
            f"value head: {VALUE_HEAD_WEIGHT} {list(layer.weight.shape)} is needed, found {shapes}"
        )
    state = {"weight": weight}
    bias = tensors.get(VALUE_HEAD_BIAS)
    if bias is not None:
        state["bias"] = bias
    head = torch.nn.Linear(layer.in_features, 1, bias=bias is not None, dtype=weight.dtype)
    head.load_state_dict(state)
    model.set_submodule(head_name, head)


def _random_tensors(name: str, missing: list[str], unused: list[str]) -> str:
    """Return the error about a model's tensors that no file holds."""
    verb = "is" if len(missing) == 1 else "are"
    message = (
        f"{name} is no reward model that is read here: {', '.join(missing)} {verb} not in the "
        "checkpoint and would be random"
    )
    if unused:
        message += f"; tensors found and not used: {', '.join(unused[:NAMED_TENSORS])}"
    if len(unused) > NAMED_TENSORS:
        message += ", ..."
    return f"{message}. Train one with train_rm.py, or name the folder that holds the head."


def _with_adapter(model: PreTrainedModel, parts: CheckpointParts) -> torch.nn.Module:
    """Return the model with the checkpoint's adapter around it."""
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(parts.name, revision=parts.revision)
    if parts.value_head is not None:
        # LLaMA-Factory's adapters are a language model's, which has methods that this one lacks.
        config.task_type = None
    return PeftModel.from_pretrained(model, parts.name, revision=parts.revision, config=config)


# --- The device -----------------------------------------------------------------------------------


def default_device() -> str:
    """Return the name of the device that scores: the GPU where there is one."""
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"
