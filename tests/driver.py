"""train_rm.py, which also writes what each process saw of its engine to $SEEN/RANK.json.

An exit status of 0 proves nothing here: accelerate falls back to fewer processes or to another engine in silence.
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

if os.environ.get(
    "FSDP_ON_CPU"
):  # accelerate leaves FSDP out on a machine without GPUs, and runs DDP
    import accelerate.state as state

    made = state.AcceleratorState.__init__

    def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if self.distributed_type == state.DistributedType.MULTI_CPU and fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = state.DistributedType.FSDP
            state.PartialState._shared_state["distributed_type"] = state.DistributedType.FSDP

    state.AcceleratorState.__init__ = with_fsdp

    check = Engine.check
    Engine.check = lambda self, recipe, use_cpu: check(
        self, recipe, False
    )  # which knows what stock accelerate does

import train_rm
from reward.training.trainer import PairTrainer

train, training_step = PairTrainer.train, PairTrainer.training_step
batches = []  # of this process: the pairs of each, by a hash of their tokens


def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def held(weight) -> int:
    return weight.ds_tensor.numel() if hasattr(weight, "ds_tensor") else local(weight).numel()


def noted_step(self, model, inputs, *args, **kwargs):
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
    raise {"raises": RuntimeError, "memory": torch.OutOfMemoryError}[how](
        "this process has had enough"
    )


def state_bytes(optimizer) -> int:
    while hasattr(optimizer, "optimizer"):  # accelerate's and DeepSpeed's wrappers
        optimizer = optimizer.optimizer
    values = [value for entry in optimizer.state.values() for value in entry.values()]
    return sum(
        local(v).numel() * v.element_size()
        for v in values
        if hasattr(v, "element_size") and v.dim()
    )


def seen(self, *args, **kwargs):
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
    weights = list(self.model.parameters())
    facts = {
        "num_processes": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "wrapped": type(engine).__name__,
        "zero_stage": engine.zero_optimization_stage()
        if hasattr(engine, "zero_optimization_stage")
        else None,
        "optimizer": state_bytes(self.optimizer),
        "held": sum(held(w) for w in weights),
        "whole": sum(getattr(w, "ds_numel", w.numel()) for w in weights),
        "batches": self.packing,
        "pairs": batches,
        "hosts": Engine.launched().hosts,
        "steps": self.state.global_step,
        "best": self.state.best_model_checkpoint and Path(self.state.best_model_checkpoint).name,
        "checkpointing": self.model.is_gradient_checkpointing,
        "trained": sum(p.requires_grad for p in weights),
    }
    Path(os.environ["SEEN"], f"{accelerator.process_index}.json").write_text(json.dumps(facts))
    return result


PairTrainer.train, PairTrainer.training_step = seen, noted_step
if __name__ == "__main__":
    train_rm.leave(train_rm.main(sys.argv[1:]))
