"""How many CPU threads compute a model: `choose_threads(model)`.

PyTorch starts a thread for each core, and every operation waits for the slowest of them. On a
machine that does something else too, a core is often taken; the operations of a small model are so
short that its threads then mostly wait. Measured on two cores that two busy processes share: 4,096
tokens of a model with 2 layers and 128 dimensions took 1.1 s with one thread and 4.9 s with two.
`accelerate launch` sets one thread too, unless it is told another number.
"""

import os
import sys

import torch
from accelerate import PartialState
from torch import nn

SMALL_MODEL = 5_000_000  # parameters without the embeddings, which compute nothing

# As many as PyTorch starts by itself; read before anybody changes it.
MACHINE_THREADS = torch.get_num_threads()


def choose_threads(model: nn.Module) -> None:
    """Compute a small model with one thread, and any other one with PyTorch's number.

    If it becomes fewer, stderr says so. A number that the user set by OMP_NUM_THREADS stays, and
    where there is a GPU nothing changes.

    Args:
        model: The model that computes next.
    """
    if "OMP_NUM_THREADS" in os.environ or torch.accelerator.is_available():
        return
    parameters = computing_parameters(model)
    threads = MACHINE_THREADS
    if parameters < SMALL_MODEL:
        threads = 1
    torch.set_num_threads(threads)
    if threads < MACHINE_THREADS and PartialState().is_main_process:
        print(
            f"one CPU thread, because the model is small ({parameters / 1e6:.1f} million "
            f"parameters without embeddings); OMP_NUM_THREADS={MACHINE_THREADS} sets "
            "another number",
            file=sys.stderr,
        )


def computing_parameters(model: nn.Module) -> int:
    """The number of parameters that are no embeddings."""
    in_embeddings = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            in_embeddings |= {id(parameter) for parameter in module.parameters()}
    return sum(
        parameter.numel() for parameter in model.parameters() if id(parameter) not in in_embeddings
    )
