"""Load a reward model to score: `model, tokenizer = load_reward_model("rm-out")`.

What is read, and what gives the reward:

    a full model          its head: one label, or logit 1 of two (HALOs)
    a PEFT adapter        its own head over the base that it names: one label, or logit 1 of two
    a value head          LLaMA-Factory's, beside a full model or an adapter, becomes the head

Everything else is refused, because its head would be random.
"""

from dataclasses import dataclass

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reward.data.encoding import prepare_tokenizer
from reward.model.classifier import (
    LoadedClassifier,
    keep_unpacked,
    load_classifier,
    saved_head_bias,
)
from reward.model.heads import HEAD_NAMES, Float32Head, head_of, is_encoder, is_head_key
from reward.model.hub import ModelError, checkpoint_file, checkpoint_json, require_model

VALUE_HEAD_FILES = ("value_head.safetensors", "value_head.bin")  # LLaMA-Factory's
VALUE_HEAD_WEIGHT = "v_head.summary.weight"
VALUE_HEAD_BIAS = "v_head.summary.bias"

NAMED_TENSORS = 8  # how many unused tensors an error names; missing ones it names all


def load_reward_model(
    name: str,
    *,
    device: str | torch.device | None = None,
    quantized: bool = True,
    revision: str = "main",
    trust_remote_code: bool = False,
) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """Load a saved reward model, ready to score, and its tokenizer.

    The tokenizer is used as it was saved; one without a chat template gets ours.

    Args:
        name: A folder, or the id of a Hub model.
        device: Where the model goes; None for the GPU where there is one.
        quantized: False gives the base of a QLoRA adapter as ordinary layers that hold the values
            its 4-bit ones stood for: those are what the adapter was trained on, not the original
            weights.
        revision: The branch, tag or commit of a Hub model.
        trust_remote_code: Whether the model's own Python code may run.

    Raises:
        ModelError: The checkpoint has no head (its rewards would be those of random weights), or
            more than two labels, or its tokenizer has no pad token. The message names the tensors
            found.
    """
    parts = _parts_of(name, revision)
    config = AutoConfig.from_pretrained(
        parts.base, revision=parts.base_revision, trust_remote_code=trust_remote_code
    )
    config.num_labels = _label_count(parts, config)
    quantization = _quantization(parts)
    model = _load_model(parts, config, quantization, quantized, trust_remote_code)
    tokenizer = _load_tokenizer(name, config, revision, trust_remote_code)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    for path, module in model.named_modules():
        if type(module) is torch.nn.Linear and is_head_key(path):
            # Only the forward changes. The layer stays the same object, with its loaded weights and
            # its place in PEFT's wrapper.
            module.__class__ = Float32Head
    # bitsandbytes has put a quantized model where it belongs.
    if not quantized or quantization is None:
        model.to(device or default_device())
    return model.eval(), tokenizer


# --- What a checkpoint consists of ----------------------------------------------------------------


@dataclass
class CheckpointParts:
    """What a checkpoint's files say, before any model is loaded."""

    name: str  # folder or Hub id of the checkpoint
    revision: str
    is_adapter: bool
    base: str  # folder or Hub id of the body: the checkpoint itself, or what its adapter belongs to
    base_revision: str
    adapter_head: dict[str, list[int]]  # names and shapes of the head's tensors in an adapter
    value_head: dict[str, torch.Tensor] | None  # LLaMA-Factory's, where the checkpoint has one
    manifest: dict  # empty where it is not ours


def _parts_of(name: str, revision: str) -> CheckpointParts:
    """Read which files a checkpoint has. Raises ModelError where there is no model."""
    base, base_revision = name, revision
    adapter = checkpoint_json(name, "adapter_config.json", revision)
    if adapter is not None:
        base = adapter["base_model_name_or_path"]
        base_revision = adapter.get("revision") or "main"
    require_model(base, base_revision)
    adapter_head = {}
    if adapter is not None:
        adapter_head = _read_adapter_head(name, revision)
    return CheckpointParts(
        name=name,
        revision=revision,
        is_adapter=adapter is not None,
        base=base,
        base_revision=base_revision,
        adapter_head=adapter_head,
        value_head=_read_value_head(name, revision),
        manifest=checkpoint_json(name, "manifest.json", revision) or {},
    )


def _read_adapter_head(name: str, revision: str) -> dict[str, list[int]]:
    """Return the names and shapes of the head's tensors in an adapter's file."""
    path = checkpoint_file(name, "adapter_model.safetensors", revision)
    if path is None:
        return {}
    shapes = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            if is_head_key(key):
                shapes[key] = file.get_slice(key).get_shape()
    return shapes


def _read_value_head(name: str, revision: str) -> dict[str, torch.Tensor] | None:
    """Return the tensors of LLaMA-Factory's value head, where the checkpoint has one."""
    safetensors_file, older_file = VALUE_HEAD_FILES
    path = checkpoint_file(name, safetensors_file, revision)
    if path is not None:
        return load_file(path)
    path = checkpoint_file(name, older_file, revision)
    if path is not None:
        return torch.load(path, map_location="cpu", weights_only=True)
    return None


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


# --- The tokenizer, the device --------------------------------------------------------------------


def _load_tokenizer(
    name: str, config: PretrainedConfig, revision: str, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(
        name, revision=revision, trust_remote_code=trust_remote_code
    )
    if tokenizer.chat_template is None:
        prepare_tokenizer(tokenizer, is_encoder(config), config.get_text_config().vocab_size)
    if tokenizer.pad_token is None:
        raise ModelError(
            f"{name}: the tokenizer has no pad token; set one that never comes last and save it"
        )
    return tokenizer


def default_device() -> str:
    """Return the name of the device that scores: the GPU where there is one."""
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"
