"""The processes that `accelerate launch` started: `processes().is_main_process`."""

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """Return this process among those that `accelerate launch` started.

    Without a GPU accelerate forms no group unless it is told to.
    """
    return PartialState(cpu=not torch.accelerator.is_available())
