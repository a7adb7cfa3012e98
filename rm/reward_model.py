"""Build a reward model to train, load one to score: `model, tokenizer = load_reward_model("rm-out")`.

A reward model is a stock sequence-classification model with one label: the head at the last token (causal models) or at
[CLS] (encoders). Nothing is added to it, so stock transformers, TRL's RL trainers, `pipeline` and vLLM load what is saved.
"""

import json
import logging
import os
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils.hub import extract_commit_hash

from rm.encoding import encoder_facts, prepare_tokenizer

KNOWN_FILES = ("config.json", "adapter_config.json")
VALUE_HEADS = ("value_head.safetensors", "value_head.bin")  # LLaMA-Factory's
HEAD_NAMES = ("score", "classifier", "v_head", "value_head", "reward_head", "rm_head")


class ModelError(ValueError):
    """A checkpoint that is no reward model, or cannot become one; the message names the tensors and the mend."""


# ------------------------------------------------------------------------------------------------------------ the head


class Float32Head(torch.nn.Linear):
    """A linear head computed in float32 with autocast off, whatever dtype it is stored in.

    In bf16 a reward between 4 and 8 moves in steps of .031, so that pairs tie; under bf16 autocast even a float32 head
    returns bf16. The weights keep the body's dtype, so that a stock reload has the same ones and FSDP2 sees one dtype.
    """

    def forward(self, hidden):
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            # `head_dropout` is no layer, so that the saved model is plain.
            hidden = F.dropout(hidden.float(), getattr(self, "head_dropout", 0.0), self.training)
            return F.linear(hidden, self.weight.float(), bias)


def head_of(model) -> tuple[str, torch.nn.Linear]:
    """(name, module) of the linear layer that gives the reward. Raises ModelError where there is none."""
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.split(".")[0] in HEAD_NAMES]
    if not names:
        raise ModelError(f"{type(model).__name__} has no linear head named {', '.join(HEAD_NAMES)}")
    return names[-1], model.get_submodule(names[-1])


# ------------------------------------------------------------------------------------------------------ to train


def build_reward_model(
    name, *, revision="main", dtype=None, head="linear", head_bias=None, head_init=None, head_dropout=0.0,
    train_last_layers=None, trust_remote_code=False, **options,
):  # fmt: skip
    """A sequence-classification model with a float32 head, from a language model, an encoder, or a reward model: one label,
    or two with `head="two_logit"` (the reward is logit 1, as in ContextualAI/HALOs).

    A trained head of that shape is kept. Where the checkpoint holds a head of another shape or name, it would be lost
    silently: that raises ModelError unless `head_init` (`zero` or `normal`) asks for a new one. `train_last_layers`
    freezes all but the last N blocks and the head. `options` go to `from_pretrained` (quantization_config,
    attn_implementation, device_map).
    """
    if checkpoint_file(name, "adapter_config.json", revision) is not None:
        raise ModelError(f"{name} is an adapter, whose head would be lost; merge it, and train on the merged model")
    _reachable(name, revision)
    if head_init is None and any(checkpoint_file(name, file, revision) for file in VALUE_HEADS):
        raise ModelError(
            f"{name} holds a trained value head ({' or '.join(VALUE_HEADS)}), which would be replaced by a random one. "
            "Set head_init: normal in the recipe if a new head is what you want."
        )
    torch_dtype = dtype if dtype in (None, "auto") else getattr(torch, dtype)
    model, info = _load(
        name, revision=revision, num_labels=1 if head == "linear" else 2, dtype=torch_dtype,
        trust_remote_code=trust_remote_code, **options,
    )  # fmt: skip
    head_name, layer = head_of(model)
    if f"{head_name}.bias" in info["unexpected_keys"] and head_bias is not False:  # of a head that we trained with one
        info["unexpected_keys"].remove(f"{head_name}.bias")
        head_bias = True
        if head_init is None:
            layer.bias = torch.nn.Parameter(_saved_bias(name, head_name, revision).to(layer.weight))
    lost = [f"{key} {list(found)} (this model needs {list(made)})" for key, found, made in info["mismatched_keys"]]
    lost += [key for key in info["unexpected_keys"] if key.split(".")[0] in HEAD_NAMES]
    body_lost = [entry for entry in lost if entry.split(".")[0] not in HEAD_NAMES]
    body = f"{model.base_model_prefix}."  # what lies beside it (DistilBERT's pre_classifier) is new with the head
    missing = [key for key in info["missing_keys"] if key.startswith(body) and "pooler" not in key]
    if body_lost or missing:
        raise ModelError(f"{name}: tensors of the body are missing or have another shape: {body_lost + missing}")
    if lost and head_init is None:
        raise ModelError(
            f"{name} holds a trained head that does not fit this reward model and would be replaced by a random "
            f"one: {', '.join(sorted(lost))}. Set head_init: normal in the recipe if a new head is what you want."
        )
    if head_bias and layer.bias is None:
        layer.bias = torch.nn.Parameter(layer.weight.new_zeros(layer.out_features))
    if head_init is not None:
        _init_head(layer, head_init)
    if head_bias is False and layer.bias is not None:  # stock transformers makes one for an encoder: it stays 0
        torch.nn.init.zeros_(layer.bias)
        layer.bias.requires_grad = False
    layer.__class__, layer.head_dropout = Float32Head, head_dropout
    keep_unpacked(model)
    if head == "linear":
        model.config.problem_type = "regression"  # pipeline and vLLM then give the raw reward, not its sigmoid
    if train_last_layers is not None:
        freeze(model, train_last_layers)
    return model


def blocks_of(body):
    """The list of a body's transformer blocks, whatever its family calls it; empty where there is none."""
    count = body.config.get_text_config().num_hidden_layers
    return next((m for m in body.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count), [])


def freeze(model, last_layers: int) -> None:
    """Train the last blocks and what the class head adds to the body (a pooler, where there is one), nothing else."""
    body = model.base_model
    count, blocks = body.config.get_text_config().num_hidden_layers, blocks_of(body)
    if not blocks or last_layers > count:
        raise ModelError(f"train_last_layers is {last_layers}; {type(body).__name__} has {count} blocks to choose from")
    body.requires_grad_(False)
    for module in [*blocks[count - last_layers :], getattr(body, "pooler", None)]:
        if module is not None:
            module.requires_grad_(True)


def _saved_bias(name, head: str, revision) -> torch.Tensor:
    """The head's bias of a checkpoint whose architecture has none, so that stock transformers passes it over."""
    index = checkpoint_json(name, "model.safetensors.index.json", revision)
    file = index["weight_map"][f"{head}.bias"] if index else "model.safetensors"
    return load_file(checkpoint_file(name, file, revision))[f"{head}.bias"]


def _load(name, **options):
    """`(model, loading info)`. transformers' own report of missing and unexpected tensors is kept quiet: what matters in it
    is an error here, and the rest (a new head over a language model) is meant."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    finally:
        logger.setLevel(level)


def keep_unpacked(model) -> None:
    """Stop bitsandbytes (0.50) from packing 4-bit layers for an AVX512-BF16 CPU at their first evaluation.

    The packed product has no backward, so that from then on the gradients of the layers below would be wrong, silently;
    and it rounds the scales to bf16, which moved rewards by a tenth of their standard deviation.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _init_head(layer: torch.nn.Linear, head_init: str) -> None:
    """zero: the first loss is exactly ln 2. normal: std 1/sqrt(hidden + 1), Stiennon et al. 2020, arXiv 2009.01325."""
    gather = nullcontext()
    if is_deepspeed_zero3_enabled():  # the weights are in pieces over the processes
        import deepspeed

        gather = deepspeed.zero.GatheredParameters(list(layer.parameters()), modifier_rank=0)
    with torch.no_grad(), gather:
        std = 0.0 if head_init == "zero" else (layer.in_features + 1) ** -0.5
        layer.weight.normal_(std=std) if std else layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()


def build_tokenizer(name, config, *, revision="main", trust_remote_code=False, chat_template_path=None, eos_token=None):
    """The tokenizer that the reward model is saved with (rm.encoding.prepare_tokenizer)."""
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    if eos_token is not None:
        tokenizer.eos_token = eos_token
    if chat_template_path is not None:
        if os.path.isfile(chat_template_path):
            with open(chat_template_path, encoding="utf-8") as file:
                tokenizer.chat_template = file.read()
        else:
            tokenizer.chat_template = AutoTokenizer.from_pretrained(chat_template_path).chat_template
    prepare_tokenizer(tokenizer, is_encoder(config))
    return tokenizer


def is_encoder(config) -> bool:
    """Whether the head reads [CLS] (BERT-like) and not the last token."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return False
    return config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or not getattr(config, "is_decoder", True)


def no_cache(config) -> dict:
    """What a forward is called with so that a causal model keeps no layer's keys; encoders have no such option."""
    return {} if is_encoder(config) else {"use_cache": False}


def position_limit(config, tokenizer) -> int | None:
    """The longest input in tokens that the model can read; None where nothing bounds it."""
    text = config.get_text_config()
    # RoBERTa-like models start counting positions after the pad id.
    offset = text.pad_token_id + 1 if text.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    limits = [(getattr(text, "max_position_embeddings", None) or offset) - offset, tokenizer.model_max_length]
    limits = [int(limit) for limit in limits if limit and limit < 1e9]
    return min(limits) if limits else None


# ------------------------------------------------------------------------------------------------------------ to score


def load_reward_model(name: str, *, device=None, quantized=True, revision="main", trust_remote_code=False):
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
    base_common = common if adapter is None else {**common, "revision": adapter.get("revision") or "main"}
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
        raise ModelError(f"{name}: {config.num_labels} labels; a reward model has one (or two, reward = logit 1)")
    # A full model is loaded as saved; a base as it was under this adapter, whatever dtype the Hub has it in.
    options = {"dtype": "auto" if adapter is None else getattr(torch, manifest.get("dtype", ""), "auto")}
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
            + (f"; tensors found and not used: {', '.join(found[:8])}" + ", ..." * (len(found) > 8) if found else "")
            + ". Train one with train_rm.py, or name the folder that holds the head."
        )
    tokenizer = AutoTokenizer.from_pretrained(name, **common)
    if tokenizer.chat_template is None:
        prepare_tokenizer(tokenizer, is_encoder(config))
    if tokenizer.pad_token is None:
        raise ModelError(f"{name}: the tokenizer has no pad token; set one that never comes last and save it")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    for path, module in model.named_modules():
        if type(module) is torch.nn.Linear and not {*path.split(".")}.isdisjoint(HEAD_NAMES):
            module.__class__ = Float32Head
    if not (quantized and "quantization_config" in options):
        model.to(device or default_device())
    return model.eval(), tokenizer


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def rewards_from_logits(logits: torch.Tensor) -> torch.Tensor:
    """(batch,) rewards of (batch, labels) logits: the one label, or logit 1 of two (ContextualAI/HALOs)."""
    return logits[..., -1].float()


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
    if value_head:  # LLaMA-Factory's adapters are a language model's, which has methods that this one lacks
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
        raise ModelError(f"value head: v_head.summary.weight {list(layer.weight.shape)} is needed, found {found}")
    new = torch.nn.Linear(layer.in_features, 1, bias=bias is not None, dtype=weight.dtype)
    new.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    model.set_submodule(head, new)


def checkpoint_json(name, file, revision="main") -> dict | list | None:
    """The content of a JSON file of a local folder or a Hub repository; None where it has no such file."""
    path = checkpoint_file(name, file, revision)
    if path is None:
        return None
    with open(path, encoding="utf-8") as handle:
        return json.load(handle)


def checkpoint_file(name, file, revision="main") -> str | None:
    """A file of a local folder or a Hub repository; None where it has no such file."""
    if os.path.isdir(name):
        path = os.path.join(name, file)
        return path if os.path.isfile(path) else None
    try:
        return hf_hub_download(name, file, revision=revision)
    except LocalEntryNotFoundError as error:  # offline: fine where the model itself is in the cache
        if any(isinstance(try_to_load_from_cache(name, known, revision=revision), str) for known in KNOWN_FILES):
            return None
        raise ModelError(f"{name}: no such folder here, and the Hub cannot be reached") from error
    except EntryNotFoundError:
        return None
    except GatedRepoError as error:
        raise ModelError(f"{name} is gated: accept its licence on the Hub, then `hf auth login`") from error
    except (HFValidationError, HfHubHTTPError) as error:
        raise ModelError(
            f"{name}: no such folder here, and not to be had from the Hub ({type(error).__name__})"
        ) from error


def _reachable(name, revision) -> None:
    if checkpoint_file(name, "config.json", revision) is None:
        raise ModelError(f"{name}: neither a folder nor a Hub model with a config.json")


def resolved_revision(name: str, revision: str) -> str | None:
    """The commit of a Hub id's branch or tag; None for a local folder. The KL anchor of a later policy is this one."""
    if os.path.isdir(name):
        return None
    _reachable(name, revision)
    return extract_commit_hash(checkpoint_file(name, "config.json", revision), None)


def facts_differ(tokenizer, base_tokenizer) -> list[str]:
    """Which of template, end token and pad token an RL trainer that takes the base's tokenizer would get wrong."""
    ours, theirs = encoder_facts(tokenizer), encoder_facts(base_tokenizer)
    return [key for key in ("chat_template_sha256", "end_token_id", "pad_token_id") if ours[key] != theirs[key]]
