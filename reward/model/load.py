"""Load a reward model to score: `loaded = load_reward_model("rm-out")`.

What is read, and what gives the reward:

    a full model          its head: one label, or logit 1 of two (HALOs)
    a PEFT adapter        its own head over the base that it names: one label, or logit 1 of two
    a value head          TRL's, LLaMA-Factory's or OpenRLHF's becomes the head

Everything else is refused, because its head would be random.
"""

import gc
from dataclasses import dataclass

import torch
from transformers import (
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reward.model.architecture import (
    pad_inside,
    read_classifier_config,
    refuse_more_than_a_head,
    said_of_what_is_left_out,
)
from reward.model.checkpoint_tokenizer import CheckpointTokenizer, load_tokenizer, pad_at_training
from reward.model.classifier import keep_unpacked, load_classifier
from reward.model.cpu import NO_BF16, cpu_has_bf16
from reward.model.heads import Float32Head, is_encoder, is_head_key
from reward.model.hub import ModelError
from reward.model.parts import CheckpointParts, parts_of
from reward.model.saved_head import SavedHead, find_head, set_head, without_wrapper
from reward.model.sealed_files import refuse_other_files


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


def check_reward_model(name: str, trust_remote_code: bool = False) -> None:
    """Check what can be checked soon of a saved reward model: loading its weights checks the rest.

    Args:
        name: A folder, or the id of a Hub model.
        trust_remote_code: Whether the model's own Python code may run.

    Raises:
        ModelError: It is not there, its files are not those that it lists, or its head is of a kind
            that is not read.
    """
    parts = _sound_parts(name, "main", verify=False)
    read_classifier_config(parts, trust_remote_code)
    find_head(parts)


def load_reward_model(
    name: str,
    *,
    device: str | torch.device | None = None,
    quantized: bool = True,
    revision: str = "main",
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    verify: bool = False,
    dtype: str | None = None,
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
        verify: Whether the weights are compared, too: of a checkpoint of ours with its manifest, of
            a Hub model with the Hub's hash. The smaller files always are.
        dtype: `float32` or `bfloat16`, which the model computes in; None for that of its files.

    Raises:
        ModelError: The checkpoint has no head, or more than two labels, or its files are not those
            that its manifest lists: the message names them. Or a CPU cannot compute in bfloat16.
    """
    device = _device_for(dtype, device)
    parts = _sound_parts(name, revision, verify)
    adapter_config = None
    if parts.is_adapter:
        from reward.model.adapters import read_adapter_config  # imports peft

        adapter_config = read_adapter_config(parts)
    config = read_classifier_config(parts, trust_remote_code)
    head = find_head(parts)
    config.num_labels = head.labels
    checkpoint_tokenizer = load_tokenizer(parts, config, trust_remote_code, chat_template)
    quantization = _quantization(parts)
    model = _load_body(parts, config, head, quantization, trust_remote_code, dtype)
    if parts.is_adapter:
        from reward.model.adapters import resize_embeddings, with_adapter

        resize_embeddings(model, parts)
    if getattr(model, "is_quantized", False) and not quantized:
        model = model.dequantize()
    if parts.is_adapter:
        model = with_adapter(model, parts, adapter_config)
    notes = said_of_what_is_left_out(parts, model, trust_remote_code)
    notes += head.notes + checkpoint_tokenizer.notes
    notes += _set_place_of_the_reward(parts, head, model, checkpoint_tokenizer)
    _compute_head_in_float32(model)
    # bitsandbytes has put a quantized model where it belongs.
    if not quantized or quantization is None:
        model.to(device)
    no_template = checkpoint_tokenizer.template_is_ours
    return LoadedRewardModel(
        model=model.eval(),
        tokenizer=checkpoint_tokenizer.tokenizer,
        template_origin=checkpoint_tokenizer.template_origin,
        is_pair_layout=no_template and is_encoder(config) and not parts.manifest,
        reads_last_token=head.reads_last_token,
        notes=notes,
    )


def _sound_parts(name: str, revision: str, verify: bool) -> CheckpointParts:
    """Read which files a checkpoint has. Raises ModelError where one is not what it should be."""
    parts = parts_of(name, revision)
    refuse_other_files(name, parts.manifest, parts.revision, hash_weights=verify)
    if verify:
        parts.refuse_damaged_downloads()
    return parts


def _compute_head_in_float32(model: torch.nn.Module) -> None:
    """Give the head's layers another forward.

    A layer stays the same object, with its loaded weights and its place in PEFT's wrapper.
    """
    for path, module in model.named_modules():
        if type(module) is torch.nn.Linear and is_head_key(path):
            module.__class__ = Float32Head


def _set_place_of_the_reward(
    parts: CheckpointParts,
    head: SavedHead,
    model: torch.nn.Module,
    tokenizer: CheckpointTokenizer,
) -> list[str]:
    """Set the config's pad id where the files that the config comes from do not decide.

    Args:
        parts: The checkpoint.
        head: Its head.
        model: The loaded model; its config is changed.
        tokenizer: The checkpoint's tokenizer.

    Returns:
        A sentence, where the base by itself would read another token.
    """
    config = model.config.get_text_config()
    if head.reads_last_token:
        config.pad_token_id = None
        return []
    base_pad = getattr(config, "pad_token_id", None)  # a class of the maker's own may have none
    pad = pad_at_training(parts, tokenizer, base_pad)
    # One that is saved would keep stock transformers from loading a copy.
    config.pad_token_id = pad_inside(pad, getattr(config, "vocab_size", None))
    tokens = tokenizer.tokenizer
    if pad == base_pad or parts.manifest or tokens.eos_token_id not in (pad, base_pad):
        return []
    named = "no pad token"
    if base_pad is not None:
        named = f"the pad token {tokens.convert_ids_to_tokens(base_pad)}"
    return [
        f"the base {parts.base} names {named}: the head passes over that of the adapter's "
        f"tokenizer, {tokens.convert_ids_to_tokens(pad)}, at the end of a text, as in its training"
    ]


# --- How the body is loaded -----------------------------------------------------------------------


def _load_body(
    parts: CheckpointParts,
    config: PretrainedConfig,
    head: SavedHead,
    quantization: BitsAndBytesConfig | None,
    trust_remote_code: bool,
    dtype: str | None,
) -> PreTrainedModel:
    """Load the body, and give it the checkpoint's head."""
    options = {}
    if quantization is not None:
        options["quantization_config"] = quantization
    loaded = load_classifier(
        parts.base,
        config=config,
        dtype=dtype or _dtype(parts),
        revision=parts.base_revision,
        trust_remote_code=trust_remote_code,
        state_dict=without_wrapper(parts.weights),
        **options,
    )
    model = loaded.model
    keep_unpacked(model)
    set_head(parts, head, loaded)
    refuse_more_than_a_head(parts, model)
    return model


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


# --- The device -----------------------------------------------------------------------------------


def _device_for(dtype: str | None, device: str | torch.device | None) -> torch.device:
    """Return where a model goes that is to compute in a dtype: `device`, if it is not None."""
    device = torch.device(device or default_device())
    if dtype == "bfloat16" and device.type == "cpu" and not cpu_has_bf16():
        raise ModelError(f"{NO_BF16}: bfloat16 would be slower than float32; leave out --dtype")
    return device


def default_device() -> str:
    """Return the name of the device that scores: the GPU where there is one."""
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def free_memory() -> None:
    """Give the memory of what nobody refers to any more back to the machine."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
