"""A run that goes on from a checkpoint gives what it would have given without the break.

transformers restores the weights, the optimizer, the learning rate, the random numbers and the
place in the data. Restored here is what it leaves out: dtypes, the patience of early stopping, the
sums that the next row of the log is made of, where the best checkpoint lies, and an evaluation that
was due after the step of the checkpoint and was interrupted.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import (
    DefaultFlowCallback,
    EarlyStoppingCallback,
    TrainerCallback,
)
from transformers.trainer_callback import ExportableState

if TYPE_CHECKING:
    from reward.training.trainer import PairTrainer


class SinceLastLog(TrainerCallback, ExportableState):
    """The sums since the last row of the log; saved with each checkpoint-N/.

    Args:
        trainer: The trainer that adds them up.
    """

    def __init__(self, trainer: "PairTrainer"):
        self.trainer = trainer
        self.collected = {"loss": 0.0, "sums": [], "logged_step": 0, "tokens": 0}

    def collect(self) -> None:
        """Add them up over the processes; all have to call this before a checkpoint is saved."""
        trainer = self.trainer
        self.collected = {
            "loss": trainer.accelerator.reduce(trainer._tr_loss.clone(), "mean").item(),
            "sums": trainer.accelerator.reduce(trainer._window.clone()).tolist(),
            "logged_step": trainer._globalstep_last_logged,
            "tokens": trainer._total_train_tokens,
        }

    def state(self) -> dict:
        """What transformers saves with a checkpoint."""
        return {"args": {}, "attributes": self.collected}

    def restore(self, saved: dict) -> None:
        """Go on from the sums of a checkpoint."""
        trainer = self.trainer
        trainer._tr_loss += saved["loss"]
        if trainer.is_world_process_zero():
            trainer._window += trainer._window.new_tensor(saved["sums"])
        trainer._globalstep_last_logged = saved["logged_step"]
        trainer._total_train_tokens = saved["tokens"]


@contextmanager
def dtypes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Load weights into a model without a change of dtype.

    Over a 4-bit base TRL trains the adapter in bfloat16. PEFT loads it as float32.
    """
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    yield
    for name, parameter in model.named_parameters():
        if parameter.dtype != dtypes.get(name, parameter.dtype):
            parameter.data = parameter.data.to(dtypes[name])


def restore(trainer: "PairTrainer", checkpoint: Path) -> None:
    """Restore what transformers leaves out; to be called once the trainer has read the checkpoint.

    Args:
        trainer: The trainer, before its first step.
        checkpoint: The folder checkpoint-N/ that it goes on from.
    """
    state = trainer.state
    best = checkpoint.parent / f"checkpoint-{state.best_global_step}"
    if best.is_dir():  # the path in the checkpoint is as it was then, and the folder may have moved
        state.best_model_checkpoint = str(best)
    for callback in trainer.callback_handler.callbacks:
        if not isinstance(callback, ExportableState):
            continue
        name = type(callback).__name__
        if name not in state.stateful_callbacks:  # of an earlier version; transformers needs it
            state.stateful_callbacks[name] = callback.state()
            continue
        saved = state.stateful_callbacks[name]["attributes"]
        if isinstance(callback, SinceLastLog):
            callback.restore(saved)
        elif isinstance(callback, EarlyStoppingCallback):
            counter = saved["early_stopping_patience_counter"]
            callback.early_stopping_patience_counter = counter
            if counter >= callback.early_stopping_patience:
                trainer.control.should_training_stop = True


def make_up(trainer: "PairTrainer") -> None:
    """Log and evaluate what was due after the step of the checkpoint, if that was not done.

    A signal stops an evaluation, which may take longer than the scheduler waits. The checkpoint
    that is then written says by its log that the evaluation is missing.
    """
    args, state, control = trainer.args, trainer.state, trainer.control
    flow = DefaultFlowCallback()
    flow.on_step_end(args, state, control)
    if state.epoch == int(state.epoch) or state.global_step >= state.max_steps:
        flow.on_epoch_end(args, state, control)
    done = set()
    for entry in state.log_history:
        if entry["step"] == state.global_step:
            done |= entry.keys()
    control.should_log &= "loss" not in done
    control.should_evaluate &= "eval_loss" not in done
    control.should_save &= control.should_evaluate  # otherwise this is the checkpoint
    trainer._maybe_log_save_evaluate(
        trainer._tr_loss,
        grad_norm=None,
        model=trainer.model_wrapped,
        trial=None,
        epoch=state.epoch,
        ignore_keys_for_eval=None,
        start_time=time.time(),
    )
