"""Load a reward model to score: `model, tokenizer = load_reward_model("rm-out")`."""

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig

from reward.data.encoding import encoder_facts, prepare_tokenizer
from reward.model.heads import (
    HEAD_NAMES,
    Float32Head,
    _load,
    _saved_bias,
    head_of,
    is_encoder,
    keep_unpacked,
)
from reward.model.hub import ModelError, _reachable, checkpoint_file, checkpoint_json

VALUE_HEADS = ("value_head.safetensors", "value_head.bin")  # LLaMA-Factory's


# ------------------------------------------------------------------------------------------------------------ to score


def load_reward_model(
    name: str, *, device=None, quantized=True, revision="main", trust_remote_code=False
):
    """`(model, tokenizer)` of a saved reward model, local or on the Hub, ready to score: full, merged, a PEFT adapter, a
    two-logit head (HALOs: the reward is logit 1), or LLaMA-Factory's value head.

    `quantized=False` gives the base of a QLoRA adapter as ordinary layers that hold the values its 4-bit ones stood for:
    those are what the adapter was trained on, not the original weights.
    Raises ModelError, naming the tensors found, for a checkpoint without a head (its rewards would be those of random
    weights) or with more than two labels. The tokenizer is used as it was saved; one without a chat template gets ours.
    """
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    adapter = checkpoint_json(name, "adapter_config.json", revision)
    base = name if adapter is None else adapter["base_model_name_or_path"]
    base_common = (
        common if adapter is None else {**common, "revision": adapter.get("revision") or "main"}
    )
    _reachable(base, base_common["revision"])
    value_head = _value_head(name, revision)
    adapter_head = {} if adapter is None else _adapter_head(name, revision)
    manifest = checkpoint_json(name, "manifest.json", revision) or {}
    config = AutoConfig.from_pretrained(base, **base_common)
    if value_head is not None:
        config.num_labels = 1
    elif adapter is not None:
        if not adapter_head:
            raise ModelError(
                f"{name} is an adapter without a head: adapter_model.safetensors holds no {' or '.join(HEAD_NAMES[:2])} "
                "weight, so its rewards would be random. It was trained with a task type other than SEQ_CLS; train again."
            )
        config.num_labels = min(shape[0] for shape in adapter_head.values())
    elif config.num_labels not in (1, 2):
        raise ModelError(
            f"{name}: {config.num_labels} labels; a reward model has one (or two, reward = logit 1)"
        )
    # A full model is loaded as saved; a base as it was under this adapter, whatever dtype the Hub has it in.
    options = {
        "dtype": "auto" if adapter is None else getattr(torch, manifest.get("dtype", ""), "auto")
    }
    if adapter is not None and manifest.get("quantization"):
        options["quantization_config"] = BitsAndBytesConfig(**manifest["quantization"])
    model, info = _load(base, config=config, **options, **base_common)
    keep_unpacked(model)
    head, layer = head_of(model)
    missing = sorted(info["missing_keys"] | {key for key, *_ in info["mismatched_keys"]})
    if value_head is not None:
        _set_value_head(model, head, value_head)
        missing = [key for key in missing if not key.startswith(head)]
    elif any(key.endswith(f"{head}.bias") for key in adapter_head) and layer.bias is None:
        layer.bias = torch.nn.Parameter(layer.weight.new_zeros(layer.out_features))
    elif adapter is None and f"{head}.bias" in info["unexpected_keys"]:
        layer.bias = torch.nn.Parameter(_saved_bias(name, head, revision).to(layer.weight))
    if adapter is not None:
        if not quantized and "quantization_config" in options:
            model = model.dequantize()
        model = _load_adapter(model, name, value_head is not None, revision)
    elif missing:
        found = sorted(info["unexpected_keys"])
        raise ModelError(
            f"{name} is no reward model that is read here: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not "
            "in the checkpoint and would be random"
            + (
                f"; tensors found and not used: {', '.join(found[:8])}" + ", ..." * (len(found) > 8)
                if found
                else ""
            )
            + ". Train one with train_rm.py, or name the folder that holds the head."
        )
    tokenizer = AutoTokenizer.from_pretrained(name, **common)
    if tokenizer.chat_template is None:
        prepare_tokenizer(tokenizer, is_encoder(config))
    if tokenizer.pad_token is None:
        raise ModelError(
            f"{name}: the tokenizer has no pad token; set one that never comes last and save it"
        )
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    for path, module in model.named_modules():
        if type(module) is torch.nn.Linear and not {*path.split(".")}.isdisjoint(HEAD_NAMES):
            module.__class__ = Float32Head
    if not (quantized and "quantization_config" in options):
        model.to(device or default_device())
    return model.eval(), tokenizer


def default_device() -> str:
    return (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )


def _adapter_head(name, revision) -> dict[str, list[int]]:
    """Names and shapes of the head's tensors in an adapter's file."""
    saved = checkpoint_file(name, "adapter_model.safetensors", revision)
    if saved is None:
        return {}
    with safe_open(saved, framework="pt") as file:
        keys = [key for key in file.keys() if not {*key.split(".")}.isdisjoint(HEAD_NAMES)]  # noqa: SIM118
        return {key: file.get_slice(key).get_shape() for key in keys}


def _load_adapter(model, name, value_head: bool, revision):
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(name, revision=revision)
    if (
        value_head
    ):  # LLaMA-Factory's adapters are a language model's, which has methods that this one lacks
        config.task_type = None
    return PeftModel.from_pretrained(model, name, revision=revision, config=config)


def _value_head(name, revision) -> dict | None:
    """LLaMA-Factory's `v_head.summary` weight and bias, where the checkpoint has them."""
    path = checkpoint_file(name, VALUE_HEADS[0], revision)
    if path is not None:
        return load_file(path)
    path = checkpoint_file(name, VALUE_HEADS[1], revision)
    return None if path is None else torch.load(path, map_location="cpu", weights_only=True)


def _set_value_head(model, head: str, tensors: dict) -> None:
    weight, bias = tensors.get("v_head.summary.weight"), tensors.get("v_head.summary.bias")
    layer = model.get_submodule(head)
    if weight is None or weight.shape != layer.weight.shape:
        found = {key: list(value.shape) for key, value in tensors.items()}
        raise ModelError(
            f"value head: v_head.summary.weight {list(layer.weight.shape)} is needed, found {found}"
        )
    new = torch.nn.Linear(layer.in_features, 1, bias=bias is not None, dtype=weight.dtype)
    new.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    model.set_submodule(head, new)


def facts_differ(tokenizer, base_tokenizer) -> list[str]:
    """Which of template, end token and pad token an RL trainer that takes the base's tokenizer would get wrong."""
    ours, theirs = encoder_facts(tokenizer), encoder_facts(base_tokenizer)
    return [
        key
        for key in ("chat_template_sha256", "end_token_id", "pad_token_id")
        if ours[key] != theirs[key]
    ]
