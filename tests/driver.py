"""train_rm.py, which also writes what each process saw of its engine to $SEEN/RANK.json.

An exit status of 0 proves nothing here: accelerate falls back to fewer processes or to another
engine in silence.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, os.getcwd())
import torch

from reward.training.engine import Engine

# accelerate leaves FSDP out on a machine without GPUs, and runs DDP.
if os.environ.get("FSDP_ON_CPU"):
    import accelerate.state as state

    original_init = state.AcceleratorState.__init__

    def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        original_init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if self.distributed_type == state.DistributedType.MULTI_CPU and fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = state.DistributedType.FSDP
            state.PartialState._shared_state["distributed_type"] = state.DistributedType.FSDP

    state.AcceleratorState.__init__ = with_fsdp

    # Engine.check knows what stock accelerate does, so it would refuse FSDP on a CPU.
    original_check = Engine.check

    def check_as_if_on_gpus(self, recipe, use_cpu):
        return original_check(self, recipe, False)

    Engine.check = check_as_if_on_gpus

import train_rm
from reward.training.trainer import PairTrainer

train, training_step = PairTrainer.train, PairTrainer.training_step
batches = []  # of this process: the pairs of each, by a hash of their tokens


def local(tensor):
    """The part of a sharded tensor that this process holds."""
    if hasattr(tensor, "to_local"):
        return tensor.to_local()
    return tensor


def held_elements(weight) -> int:
    """How many elements of a weight this process holds."""
    if hasattr(weight, "ds_tensor"):
        return weight.ds_tensor.numel()
    return local(weight).numel()


def training_step_that_notes(self, model, inputs, *args, **kwargs):
    if not os.environ.get("SEEN"):
        return training_step(self, model, inputs, *args, **kwargs)
    texts = [text for part in inputs["micro_batches"] for text in part["seen"]]
    batches.append(texts)
    if os.environ.get("DIES") == str(self.accelerator.process_index) and len(batches) == 3:
        die(os.environ["HOW"])
    return training_step(self, model, inputs, *args, **kwargs)


def die(how: str):
    Path(os.environ["SEEN"], "died").touch()
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    errors = {"raises": RuntimeError, "memory": torch.OutOfMemoryError}
    raise errors[how]("this process has had enough")


def state_bytes(optimizer) -> int:
    """How many bytes of optimizer states this process holds."""
    while hasattr(optimizer, "optimizer"):  # accelerate's and DeepSpeed's wrappers
        optimizer = optimizer.optimizer
    total = 0
    for entry in optimizer.state.values():
        for value in entry.values():
            if hasattr(value, "element_size") and value.dim():
                total += local(value).numel() * value.element_size()
    return total


def train_that_notes(self, *args, **kwargs):
    if not os.environ.get("SEEN"):  # tests/several.py: nobody asked
        return train(self, *args, **kwargs)
    batches.clear()
    micro_batch = self.data_collator.micro_batch

    def with_pairs(pairs):
        ids = [hashlib.sha256(str(pair["chosen_ids"]).encode()).hexdigest()[:8] for pair in pairs]
        return micro_batch(pairs) | {"seen": ids}

    self.data_collator.micro_batch = with_pairs
    result = train(self, *args, **kwargs)
    engine, accelerator = self.model_wrapped, self.accelerator
    zero_stage = None
    if hasattr(engine, "zero_optimization_stage"):
        zero_stage = engine.zero_optimization_stage()
    weights = list(self.model.parameters())
    best = self.state.best_model_checkpoint
    facts = {
        "num_processes": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "wrapped": type(engine).__name__,
        "zero_stage": zero_stage,
        "optimizer": state_bytes(self.optimizer),
        "held": sum(held_elements(weight) for weight in weights),
        "whole": sum(getattr(weight, "ds_numel", weight.numel()) for weight in weights),
        "batches": self.packing,
        "pairs": batches,
        "hosts": Engine.launched().hosts,
        "steps": self.state.global_step,
        "best": best and Path(best).name,
        "checkpointing": self.model.is_gradient_checkpointing,
        "trained": sum(weight.requires_grad for weight in weights),
    }
    Path(os.environ["SEEN"], f"{accelerator.process_index}.json").write_text(json.dumps(facts))
    return result


PairTrainer.train, PairTrainer.training_step = train_that_notes, training_step_that_notes
if __name__ == "__main__":
    train_rm.leave(train_rm.main(sys.argv[1:]))
