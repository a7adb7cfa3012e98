"""What the files of a checkpoint are, before any model is loaded: `parts_of("rm-out", "main")`."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from reward.data.cells import kind_of
from reward.model.hub import (
    ModelError,
    checkpoint_file,
    checkpoint_json,
    checkpoint_object,
    refuse_damaged_download,
    require_model,
    resolved_revision,
)
from reward.model.weights import (
    ADAPTER_FILES,
    MODEL_FILES,
    VALUE_HEAD_FILES,
    SavedWeights,
    first_of,
    model_weights,
)
from reward.recipe.paths import recorded_start

# What a manifest's keys hold that decide a reward.
KINDS_OF_MANIFEST = {
    "max_length": int | None,
    "overlong": str,
    "transcript": str,
    "dtype": str,
    "quantization": dict | None,
    "encoder": dict,
    "files": dict,
    "recipe": dict,
}

VALUE_HEAD_WEIGHT = "v_head.summary.weight"  # of a TRL or LLaMA-Factory value head
VALUE_HEAD_BIAS = "v_head.summary.bias"

# A checkpoint with one of these has a tokenizer of its own.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "tekken.json",
)
# What else decides how a text is encoded.
BESIDE_A_TOKENIZER = (
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)


@dataclass
class CheckpointParts:
    """What a checkpoint's files say, before any model is loaded."""

    name: str  # folder or Hub id of the checkpoint
    revision: str
    is_adapter: bool
    base: str  # folder or Hub id of the body: the checkpoint itself, or what its adapter belongs to
    base_revision: str
    config: dict  # config.json of the body, as it is written
    adapter_type: str  # PEFT's name of the adapter's kind, such as LORA; empty where there is none
    manifest: dict  # empty where it is not ours
    has_tokenizer: bool  # whether the checkpoint has a tokenizer of its own
    weights: SavedWeights = field(default_factory=SavedWeights)  # of the body
    adapter: SavedWeights = field(default_factory=SavedWeights)  # empty where there is none
    value_head: SavedWeights | None = None  # in a file of its own

    def refuse_damaged_downloads(self) -> None:
        """Raise ModelError where weights in the Hub's cache are not what the Hub has."""
        files = [*self.weights.files.values(), *self.adapter.files.values()]
        for path in dict.fromkeys(files):
            refuse_damaged_download(self.name, path)


def parts_of(name: str, revision: str) -> CheckpointParts:
    """Read which files a checkpoint has. Raises ModelError where there is no model."""
    parts = parts_without_weights(name, revision)
    revision = parts.revision
    if parts.is_adapter:
        adapter = first_of(name, ADAPTER_FILES, revision)
        if adapter is None:
            raise ModelError(
                f"{name} has an adapter_config.json, but its weights are missing: neither "
                f"{' nor '.join(ADAPTER_FILES)} is there"
            )
        parts.adapter = adapter
    parts.weights = model_weights(parts.base, parts.base_revision)
    parts.value_head = _value_head(name, revision, parts.is_adapter)
    return parts


def parts_without_weights(name: str, revision: str) -> CheckpointParts:
    """Read what a checkpoint says of its model, and download none of its weights.

    Raises:
        ModelError: There is no config.json, or the base of an adapter is an adapter, too.
    """
    revision = resolved_revision(name, revision) or revision
    base, base_revision = name, revision
    adapter_config = checkpoint_object(name, "adapter_config.json", revision)
    adapter_type = ""
    if adapter_config is not None:
        base, base_revision = base_of_adapter(name, adapter_config)
        adapter_type = str(adapter_config.get("peft_type"))
    try:
        if adapter_config is not None and checkpoint_file(
            base, "adapter_config.json", base_revision
        ):
            raise ModelError("The base is an adapter itself; merge that one first")
        require_model(base, base_revision)
        base_revision = resolved_revision(base, base_revision) or base_revision
    except ModelError as error:
        if adapter_config is None:
            raise
        raise ModelError(f"{name} is an adapter over the base model {base}. {error}") from None
    return CheckpointParts(
        name=name,
        revision=revision,
        is_adapter=adapter_config is not None,
        base=base,
        base_revision=base_revision,
        config=checkpoint_object(base, "config.json", base_revision),
        adapter_type=adapter_type,
        manifest=own_manifest(name, revision),
        has_tokenizer=has_tokenizer(name, revision),
    )


def has_tokenizer(name: str, revision: str = "main") -> bool:
    """Return whether a checkpoint has a tokenizer's files.

    All of them are fetched: where the Hub fails for one, such as the chat template, transformers
    would go on without it, and every reward would be another.

    Raises:
        ModelError: The Hub fails for one of them.
    """
    found = [checkpoint_file(name, file, revision) for file in TOKENIZER_FILES]
    if not any(found):
        return False
    for file in BESIDE_A_TOKENIZER:
        checkpoint_file(name, file, revision)
    return True


def base_of_adapter(name: str, adapter_config: dict) -> tuple[str, str]:
    """Return the folder or Hub id of an adapter's base, and its revision.

    Raises:
        ModelError: The adapter names no base, or one that is no longer where it was.
    """
    base = adapter_config.get("base_model_name_or_path")
    mend = (
        "Write where it lies (a folder or a Hub id) as base_model_name_or_path in "
        "adapter_config.json."
    )
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{name} is an adapter that names no base model: base_model_name_or_path is {base!r}. "
            + mend
        )
    base = as_seen_from_here(name, base)
    is_path = base.startswith(("/", "./", "../", "~")) or base.count("/") > 1
    if is_path and not os.path.isdir(base):
        raise ModelError(
            f"{name} is an adapter over the base model {base}, and there is no such folder. {mend}"
        )
    return base, adapter_config.get("revision") or "main"


def as_seen_from_here(name: str, base: str) -> str:
    """Return a recorded base as seen from here: our manifest says where its path starts.

    Args:
        name: The folder or Hub id of the checkpoint.
        base: The folder or Hub id that it names as its base.
    """
    if not os.path.isdir(name):
        return base
    start = recorded_start(Path(name))
    if start is None:
        return base
    folder = os.path.abspath(start / base)
    if os.path.isdir(folder) and folder != os.path.abspath(base):
        return folder
    return base


def _value_head(name: str, revision: str, is_adapter: bool) -> SavedWeights | None:
    """Return the tensors of a value head in a file of its own, where the checkpoint has one.

    LLaMA-Factory writes value_head.safetensors. Beside an adapter, TRL writes one that is called
    like the weights of a whole model.
    """
    files = VALUE_HEAD_FILES
    if is_adapter:
        files += MODEL_FILES
    for file in files:
        weights = first_of(name, (file,), revision)
        if weights is not None and (
            file in VALUE_HEAD_FILES or VALUE_HEAD_WEIGHT in weights.shapes
        ):
            return weights
    return None


def own_manifest(name: str, revision: str) -> dict:
    """Return our manifest.json; empty where there is none, or one of somebody else's."""
    manifest = checkpoint_json(name, "manifest.json", revision)
    if not isinstance(manifest, dict) or "format_version" not in manifest:
        return {}
    for key, kinds in KINDS_OF_MANIFEST.items():
        if key in manifest and not isinstance(manifest[key], kinds):
            raise ModelError(
                f"{name}: `{key}` in manifest.json is {kind_of(manifest[key])}: it is damaged; "
                "copy the folder again"
            )
    return manifest
