"""The tensors in a checkpoint's files, looked at before a model is loaded: `model_weights("rm")`.

Both kinds of files are read: safetensors, and PyTorch's older .bin, of which only tensors are
loaded, never code.
"""

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError, safe_open

from reward.model.hub import (
    ModelError,
    checkpoint_file,
    checkpoint_json,
    refuse_damaged_download,
)

# transformers looks for a model's weights in this order.
MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
VALUE_HEAD_FILES = ("value_head.safetensors", "value_head.bin")  # LLaMA-Factory's


@dataclass
class SavedWeights:
    """The tensors of one model, adapter or value head."""

    shapes: dict[str, list[int]] = field(default_factory=dict)  # tensor -> its shape
    files: dict[str, str] = field(default_factory=dict)  # tensor -> the path of its file

    def read(self, tensor: str) -> torch.Tensor:
        """Return one of the tensors."""
        path = self.files[tensor]
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(tensor)
        return _load_bin(path)[tensor]

    def described(self, tensors: list[str]) -> str:
        """Return some of the tensors with their shapes, as an error shows them."""
        return ", ".join(f"{tensor} {self.shapes[tensor]}" for tensor in tensors)


def model_weights(name: str, revision: str = "main") -> SavedWeights:
    """Return the tensors of a model's weights, of all its shards; none where it has no weights.

    Args:
        name: A folder, or the id of a Hub model.
        revision: The branch, tag or commit of a Hub model.

    Raises:
        ModelError: A file is damaged, or a shard is not there.
    """
    for file in MODEL_FILES:
        path = checkpoint_file(name, file, revision)
        if path is not None:
            return weights_of_file(path)
        index = checkpoint_json(name, f"{file}.index.json", revision)
        if index is not None:
            return _weights_of_shards(name, f"{file}.index.json", index, revision)
    return SavedWeights()


def first_of(name: str, files: tuple[str, ...], revision: str = "main") -> SavedWeights | None:
    """Return the tensors of the first of these files that a checkpoint has; None without any.

    Raises:
        ModelError: The file is damaged.
    """
    for file in files:
        path = checkpoint_file(name, file, revision)
        if path is not None:
            return weights_of_file(path)
    return None


def weights_of_file(path: str) -> SavedWeights:
    """Return the tensors of one file. Raises ModelError where it is damaged."""
    if path.endswith(".safetensors"):
        shapes = _read(path, _safetensors_shapes)
    else:
        tensors = _read(path, _load_bin)
        shapes = {key: list(tensor.shape) for key, tensor in tensors.items()}
    return SavedWeights(shapes, dict.fromkeys(shapes, path))


def _weights_of_shards(
    name: str, index_file: str, index: dict | list, revision: str
) -> SavedWeights:
    """Return the tensors of all shards that an index names."""
    weight_map = None
    if isinstance(index, dict):
        weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelError(f"{name}: {index_file} has no weight_map, which says where tensors lie")
    weights = SavedWeights()
    for shard in sorted(set(weight_map.values())):
        path = checkpoint_file(name, shard, revision)
        if path is None:
            raise ModelError(
                f"{name}: {index_file} names {shard}, which is not there; download it again"
            )
        one_shard = weights_of_file(path)
        weights.shapes |= one_shard.shapes
        weights.files |= one_shard.files
    return weights


def _safetensors_shapes(path: str) -> dict[str, list[int]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118


def _load_bin(path: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a .bin file; those of the newer kind stay on the disk until used."""
    tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(tensors, dict):
        raise ValueError(f"it holds a {type(tensors).__name__} instead of named tensors")
    for key, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{key} in it is no tensor but a {type(tensor).__name__}")
    return tensors


def _read(path: str, read: Callable[[str], dict]) -> dict:
    """Return what `read` gives of the file. Raises ModelError where it is damaged."""
    with open(path, "rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(
            f"{path} is a pointer of Git LFS and not the weights themselves; fetch them: "
            "`git lfs pull`"
        )
    try:
        return read(path)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path} is damaged, or holds more than tensors, which is not loaded because it "
            "could run code; save it again as safetensors"
        ) from None
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        refuse_damaged_download(path, path)
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path} cannot be read as weights: {reason}") from None
