"""What the files of a checkpoint are, before any model is loaded: `parts_of("rm-out", "main")`."""

from dataclasses import dataclass

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from reward.model.heads import is_head_key
from reward.model.hub import checkpoint_file, checkpoint_json, require_model

VALUE_HEAD_FILES = ("value_head.safetensors", "value_head.bin")  # LLaMA-Factory's


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


def parts_of(name: str, revision: str) -> CheckpointParts:
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
