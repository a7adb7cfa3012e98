"""Why a run failed, in sentences: too little memory, a full disk, a process that is gone or frozen.

words = explanation(error)    # None for an error that nobody foresaw
"""

import torch

from reward.data.hub_access import causes
from reward.model.last_words import FULL, LOST_WORDS, MEMORY_WORDS

OUT_OF_MEMORY = (
    "Out of memory. To use less memory with the same result: lower per_device_train_batch_size and "
    "raise gradient_accumulation_steps by the same factor, set a token_budget, or set "
    "activation_checkpointing: true. Then LoRA, or an engine that shares out the weights; "
    "`python train_rm.py --recipe R --plan accelerate_configs/zero3.yaml` estimates."
)
DISK_FULL = (
    "A disk is full, or this user's share of it: that of output_dir, or that of the cache "
    "(HF_HOME). What was whole is whole, and what was half written is gone. Make room: delete what "
    "you do not need, or set save_total_limit."
)
LOST_PROCESS = (
    "An exchange with the other processes failed, usually because one of them is gone: what it "
    "said stands above. If it said nothing, its exit code is in the launcher's summary below (-9: "
    "the system killed it, usually for its memory)."
)
FROZEN_PROCESS = (
    "Another process did not answer for ddp_timeout seconds: it is frozen, or busy with something "
    "else. The launcher ends all of them. If a step or a save takes so long, raise ddp_timeout."
)

# PyTorch's writer does not say why it could not write: `unexpected pos 64 vs 0`.
DISK_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "PytorchStreamWriter failed",
    "unexpected pos",
    "iostream error",
)
FROZEN_WORDS = ("Timed out waiting", "collective operation timeout")  # gloo's, NCCL's


def explanation(error: BaseException) -> str | None:
    """Return what an error means, what mends it and its first line; None if that is not known.

    Args:
        error: The error. What it was raised from counts as well.
    """
    for cause in causes(error):
        words = _words_of(cause)
        if words is not None:
            first_line = str(cause).strip().split("\n")[0]
            return f"{words}\n({type(cause).__name__}: {first_line})"
    return None


def _words_of(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _has(text, MEMORY_WORDS):
        return OUT_OF_MEMORY
    is_full = isinstance(error, OSError) and error.errno in FULL
    if is_full or _has(text, DISK_WORDS):
        return DISK_FULL
    if _has(text, FROZEN_WORDS):
        return FROZEN_PROCESS
    if isinstance(error, torch.distributed.DistBackendError) or _has(text, LOST_WORDS):
        return LOST_PROCESS
    return None


def _has(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text for word in words)
