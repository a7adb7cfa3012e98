"""Build a reward model to train: `model = build_reward_model("Qwen/Qwen2.5-0.5B")`.

A reward model is a stock sequence-classification model with one label: the head at the last token
(causal models) or at [CLS] (encoders). Nothing is added to it, so stock transformers, TRL's RL
trainers, `pipeline` and vLLM load what is saved.
"""

import os

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reward.data.encoding import prepare_tokenizer
from reward.model.architecture import CLASSIFIER, own_class, read_config
from reward.model.checkpoint_tokenizer import tokenizer_of
from reward.model.classifier import LoadedClassifier, keep_unpacked, load_classifier
from reward.model.heads import (
    HEAD_NAMES,
    SCORED_ONLY_HEAD_NAMES,
    Float32Head,
    head_of,
    init_head,
    is_encoder,
)
from reward.model.hub import (
    ModelError,
    checkpoint_file,
    checkpoint_object,
    refuse_damaged_download,
    require_model,
)
from reward.model.parts import own_manifest
from reward.model.saved_head import forget_openrlhf
from reward.model.sealed_files import refuse_other_files
from reward.model.weights import VALUE_HEAD_FILES, SavedWeights, model_weights

NEW_HEAD_MEND = "Set head_init: normal in the recipe if a new head is what you want."

# --- The model ------------------------------------------------------------------------------------


def build_reward_model(
    name: str,
    *,
    revision: str = "main",
    dtype: str | None = None,
    head: str = "linear",
    head_bias: bool | None = None,
    head_init: str | None = None,
    head_dropout: float = 0.0,
    train_last_layers: int | None = None,
    trust_remote_code: bool = False,
    **options,
) -> PreTrainedModel:
    """Build a sequence-classification model with a float32 head.

    A trained head that fits is kept. One of another shape or name would be lost silently, which is
    an error unless `head_init` asks for a new one.

    Args:
        name: A language model, an encoder or a reward model: a folder, or the id of a Hub model.
        revision: The branch, tag or commit of a Hub model.
        dtype: The name of a torch dtype, or `auto` for the one that the model was saved in.
        head: `linear`: one label. `two_logit`: two, of which logit 1 is the reward, as in
            ContextualAI/HALOs.
        head_bias: Whether the head has a bias. None: as the checkpoint or the architecture has it.
        head_init: `zero` or `normal` for a new head, see `init_head`.
        head_dropout: The probability with which an input of the head is dropped in training.
        train_last_layers: Freezes all but this many last blocks and the head.
        trust_remote_code: Whether the model's own Python code may run.
        options: They go to `from_pretrained` (quantization_config, attn_implementation,
            device_map).

    Raises:
        ModelError: A trained head would be lost, the body is incomplete, or the checkpoint is no
            model that can be trained on.
    """
    _refuse_unsuitable_files(name, revision, head_init, trust_remote_code)
    labels = {"linear": 1, "two_logit": 2}[head]
    config = read_config(name, revision, trust_remote_code)
    if hasattr(config, "pad_token_id"):
        options["pad_token_id"] = config.pad_token_id  # None where it lies outside the embedding
    weights = _sound_weights(name, revision)  # first, because it names a damaged file
    loaded = load_classifier(
        name,
        revision=revision,
        num_labels=labels,
        dtype=_torch_dtype(dtype),
        trust_remote_code=trust_remote_code,
        **options,
    )
    model = loaded.model
    head_name, layer = head_of(model)
    _refuse_what_is_only_scored(name, model, head_name)
    if head_bias is not False and f"{head_name}.bias" in loaded.unexpected:
        # A head that we trained with a bias, where the architecture has none.
        loaded.unexpected.remove(f"{head_name}.bias")
        head_bias = True
        if head_init is None:
            bias = weights.read(f"{head_name}.bias")
            layer.bias = torch.nn.Parameter(bias.to(layer.weight))
    _refuse_lost_tensors(name, weights, loaded, head_init)
    _set_up_head(layer, head_bias, head_init, head_dropout)
    keep_unpacked(model)
    forget_openrlhf(model.config)
    if labels == 1:
        # pipeline and vLLM then give the raw reward, not its sigmoid.
        model.config.problem_type = "regression"
    if train_last_layers is not None:
        freeze(model, train_last_layers)
    return model


def _sound_weights(name: str, revision: str) -> SavedWeights:
    """Return the tensors of a model. Raises ModelError where a file is damaged."""
    weights = model_weights(name, revision)
    for path in dict.fromkeys(weights.files.values()):
        refuse_damaged_download(name, path)
    return weights


def _refuse_unsuitable_files(
    name: str, revision: str, head_init: str | None, trust_remote_code: bool
) -> None:
    """Raise ModelError for an adapter, what is no model, a lost value head, and damaged files."""
    refuse_other_files(name, own_manifest(name, revision), revision)
    if checkpoint_file(name, "adapter_config.json", revision) is not None:
        raise ModelError(
            f"{name} is an adapter, whose head would be lost; merge it, "
            "and train on the merged model"
        )
    require_model(name, revision)
    if head_init is not None:
        return
    if any(checkpoint_file(name, file, revision) for file in VALUE_HEAD_FILES):
        raise ModelError(
            f"{name} holds a trained value head ({' or '.join(VALUE_HEAD_FILES)}), which would be "
            f"replaced by a random one. {NEW_HEAD_MEND}"
        )
    _refuse_own_class(name, revision, trust_remote_code)


def _refuse_own_class(name: str, revision: str, trust_remote_code: bool) -> None:
    """Raise ModelError for a class of the checkpoint's own that a stock one would replace."""
    config = checkpoint_object(name, "config.json", revision)
    own = own_class(config)
    if own is None or config.get("model_type") not in CONFIG_MAPPING:
        return
    if own.auto_class != CLASSIFIER or not trust_remote_code:
        raise ModelError(
            f"{name} is a model of its own class, {own.described}: what its code computes, and its "
            f"head, would be lost. {NEW_HEAD_MEND}"
        )


def _refuse_what_is_only_scored(name: str, model: PreTrainedModel, head_name: str) -> None:
    """Raise ModelError for an encoder-decoder and the like, whose rewards a batch would change."""
    if head_name.split(".")[0] in SCORED_ONLY_HEAD_NAMES:
        raise ModelError(
            f"{name}: a {type(model).__name__} can be scored, but not trained: padding, or the "
            "number of end tokens, would change its rewards. Train a causal model or an encoder."
        )


def _torch_dtype(dtype: str | None) -> torch.dtype | str | None:
    if dtype in (None, "auto"):
        return dtype
    return getattr(torch, dtype)


def _refuse_lost_tensors(
    name: str, weights: SavedWeights, loaded: LoadedClassifier, head_init: str | None
) -> None:
    """Raise ModelError where tensors of the body, or a trained head, would become random."""
    body_lost, head_lost = [], []
    for tensor in loaded.mismatched:
        entry = tensor.described
        if tensor.name.split(".")[0] in HEAD_NAMES:
            head_lost.append(entry)
        else:
            body_lost.append(entry)
    for key in loaded.unexpected:
        rows = weights.shapes.get(key, [])[:1]  # a head of any name gives one label or two
        if key.split(".")[0] in HEAD_NAMES or (rows in ([1], [2]) and key.endswith(".weight")):
            head_lost.append(key)
    # What lies beside the body (DistilBERT's pre_classifier) is new with the head, and so is a
    # pooler.
    body = f"{loaded.model.base_model_prefix}."
    body_lost += [key for key in loaded.missing if key.startswith(body) and "pooler" not in key]
    if body_lost:
        raise ModelError(
            f"{name}: tensors of the body are missing or have another shape: {body_lost}"
        )
    if head_lost and head_init is None:
        raise ModelError(
            f"{name} holds a trained head that does not fit this reward model and would be "
            f"replaced by a random one: {', '.join(sorted(head_lost))}. {NEW_HEAD_MEND}"
        )


def _set_up_head(
    layer: torch.nn.Linear, head_bias: bool | None, head_init: str | None, head_dropout: float
) -> None:
    """Give the head its bias, its first weights and its dropout."""
    if head_bias and layer.bias is None:
        layer.bias = torch.nn.Parameter(layer.weight.new_zeros(layer.out_features))
    if head_init is not None:
        init_head(layer, head_init)
    # Stock transformers makes a bias for an encoder. It stays 0.
    if head_bias is False and layer.bias is not None:
        torch.nn.init.zeros_(layer.bias)
        layer.bias.requires_grad = False
    layer.__class__ = Float32Head
    layer.head_dropout = head_dropout


# --- Its blocks -----------------------------------------------------------------------------------


def blocks_of(body: PreTrainedModel) -> torch.nn.ModuleList | list:
    """Return a body's transformer blocks, whatever its family calls them; empty without any."""
    count = body.config.get_text_config().num_hidden_layers
    for module in body.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    return []


def freeze(model: PreTrainedModel, last_layers: int) -> None:
    """Freeze the body but for its last blocks, and a pooler, which the class head adds to it.

    Args:
        model: The model without a wrapper, changed in place.
        last_layers: How many blocks stay trainable.

    Raises:
        ModelError: The body has fewer blocks, or none that can be told apart.
    """
    body = model.base_model
    count = body.config.get_text_config().num_hidden_layers
    blocks = blocks_of(body)
    if not blocks or last_layers > count:
        raise ModelError(
            f"train_last_layers is {last_layers}; {type(body).__name__} has {count} blocks to "
            "choose from"
        )
    body.requires_grad_(False)
    for block in blocks[count - last_layers :]:
        block.requires_grad_(True)
    pooler = getattr(body, "pooler", None)
    if pooler is not None:
        pooler.requires_grad_(True)


# --- The tokenizer --------------------------------------------------------------------------------


def build_tokenizer(
    name: str,
    config: PretrainedConfig,
    *,
    revision: str = "main",
    trust_remote_code: bool = False,
    chat_template_path: str | None = None,
    eos_token: str | None = None,
) -> PreTrainedTokenizerBase:
    """Build the tokenizer that the reward model is saved with.

    Args:
        name: A folder, or the id of a Hub model.
        config: The reward model's config.
        revision: The branch, tag or commit of a Hub model.
        trust_remote_code: Whether the tokenizer's own Python code may run.
        chat_template_path: A file, or a folder or Hub id of a tokenizer with the chat template.
        eos_token: The token that ends an answer, where it is not the tokenizer's own.

    Raises:
        ModelError: There is no tokenizer that can be loaded, or none with a template at
            chat_template_path, or eos_token is none of its control tokens.
        EncodingError: See `reward.data.encoding.prepare_tokenizer`.
    """
    tokenizer = tokenizer_of(name, revision, trust_remote_code)
    if eos_token is not None:
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        if eos_token not in added:
            raise ModelError(
                f"eos_token: {eos_token!r} is no control token of the tokenizer of {name}; it has "
                f"{', '.join(added[:10])}{', ...' * (len(added) > 10)}"
            )
        tokenizer.eos_token = eos_token
    if chat_template_path is not None:
        tokenizer.chat_template = _chat_template(chat_template_path)
    prepare_tokenizer(tokenizer, is_encoder(config), config.get_text_config().vocab_size)
    return tokenizer


def _chat_template(path: str) -> str | dict | None:
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            return file.read()
    template = AutoTokenizer.from_pretrained(path).chat_template
    if template is None:
        raise ModelError(
            f"chat_template_path: the tokenizer of {path} has no chat template. Name a file that "
            "holds one, or a tokenizer that does; or delete the line"
        )
    return template
