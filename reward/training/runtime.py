"""What the machine and the launcher decide for a run: device, precision, signals and exit statuses.

The statuses below, and that of reward.model.interrupts, are those of the script's own process
(`python train_rm.py`, or what the launcher's log names): `accelerate launch` turns any failure into
1 and does not pass SIGTERM on to a single child.
"""

import os
import signal
import sys
import time
import warnings
from dataclasses import dataclass

import datasets
import torch
from accelerate import Accelerator
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from reward.data.shown import count, shown
from reward.model.cpu import NO_BF16, cpu_has_bf16

BAD_INPUT = 2
NON_FINITE = 3


# --- Device and precision -------------------------------------------------------------------------


@dataclass
class Machine:
    """Where a run computes, and in which precision."""

    device: str  # such as "CPU, 2 threads" or a GPU's name
    precision: str  # such as "bf16 autocast", and what the recipe asks for where it differs
    is_float32: bool  # whether a step computes in float32, without autocast
    is_cpu: bool

    def __str__(self) -> str:
        return f"{self.device}; {self.precision}"


def choose_precision(settings: dict, quantized: bool) -> Machine:
    """Set the precision to what the recipe asks for, where this machine can do it.

    A GPU without bf16 computes in fp16 instead. A CPU computes in bf16 if the recipe asks for it
    and the processor has instructions for it, and otherwise in float32, except that 4-bit and 8-bit
    layers need bf16.

    Args:
        settings: The recipe's keys of RewardConfig. `use_cpu`, `bf16` and `fp16` are set in it.
        quantized: Whether the base is loaded in 4 or 8 bits.
    """
    asked = None
    if settings.get("bf16"):
        asked = "bf16"
    elif settings.get("fp16"):
        asked = "fp16"
    accelerator = None
    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
    chosen = None
    is_cpu = accelerator is None or settings.get("use_cpu", False)
    if is_cpu:
        settings["use_cpu"] = True
        device = f"CPU, {count(torch.get_num_threads(), 'thread')}"
        chosen = cpu_precision(asked, quantized)
    elif accelerator.type == "cuda":
        device = torch.cuda.get_device_name()
        chosen = cuda_precision(asked, bf16_is_off=settings.get("bf16") is not None)
    else:
        device = accelerator.type
    settings["bf16"] = chosen == "bf16"
    settings["fp16"] = chosen == "fp16"
    precision = "float32"
    if chosen:
        precision = f"{chosen} autocast"
    if asked and asked != chosen:
        why = ""
        if is_cpu and asked == "bf16":
            why = f", and {NO_BF16}"
        precision += f" (the recipe asks for {asked}{why})"
    return Machine(device, precision, is_float32=chosen is None, is_cpu=is_cpu)


def cpu_precision(asked: str | None, quantized: bool) -> str | None:
    """Return "bf16" for autocast on a CPU, or None for float32.

    Args:
        asked: What the recipe asks for: "bf16", "fp16" or None.
        quantized: Whether the base is loaded in 4 or 8 bits, which needs bf16.
    """
    if quantized or (asked == "bf16" and cpu_has_bf16()):
        return "bf16"
    return None


def cuda_precision(asked: str | None, bf16_is_off: bool) -> str | None:
    """Return "bf16" or "fp16" for autocast on a CUDA GPU, or None for float32.

    Args:
        asked: What the recipe asks for: "bf16", "fp16" or None.
        bf16_is_off: Whether the recipe turns bf16 off. If it says nothing about bf16, half
            precision is used.
    """
    half = "fp16"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        half = "bf16"
    if asked == "bf16":
        return half
    if asked is None and not bf16_is_off:
        return half
    return asked


def keep_quiet() -> None:
    """Leave out what would only distract: bars in a file, and what a CPU cannot do.

    DeepSpeed, which transformers imports, warns of the CPU where there is nothing else.
    """
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
        datasets.disable_progress_bars()
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # TRL's own default has the name that transformers warns of; in a recipe it is a fault.
    warnings.filterwarnings("ignore", r"`gradient_checkpointing` is deprecated", FutureWarning)


# --- The end of a process -------------------------------------------------------------------------


def fail(message: str | Exception, status: int) -> int:
    """Say on stderr why this process ends, and return its exit status.

    What all processes of a host would say is said by the first: the others wait, and the launcher
    ends them as soon as one is gone.

    Args:
        message: Why, and what mends it.
        status: The exit status to return.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # no checkpoint is to be written any more
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        time.sleep(10)
    process = ""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count > 1:
        process = f" (process {int(os.environ.get('RANK', 0))} of {count})"
    print(f"\ntrain_rm.py{process}: {shown(message)}", file=sys.stderr, flush=True)
    return status


# --- Signals --------------------------------------------------------------------------------------


class Interrupted(Exception):
    """A signal stopped training: behind a save, or in an evaluation, which may take long."""


class StopOnSignal(TrainerCallback):
    """On SIGTERM or Ctrl-C, finish the step, write a checkpoint and raise Interrupted.

    In an evaluation it is raised at once, without a checkpoint: launchers grant 30 s. A second
    Ctrl-C ends the process at once.

    Until training begins, signals do what they did before: there is nothing to lose. This callback
    has to come behind the one that seals checkpoints. `stopped` says whether Interrupted was
    raised. `accelerator` is to be set before training begins.
    """

    def __init__(self):
        self.received = False  # by this process
        self.stopped = False  # by a signal to any process
        self.accelerator: Accelerator | None = None
        self.handlers_before = {}

    def on_train_begin(self, args, state, control, **kwargs):
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.signal(signal_number, self._on_signal)
            if handler != self._on_signal:  # as auto_find_batch_size begins once more
                self.handlers_before[signal_number] = handler

    def restore(self) -> None:
        """Let signals do what they did before: training is over."""
        for signal_number, handler in self.handlers_before.items():
            signal.signal(signal_number, handler)

    def _on_signal(self, signal_number, frame):
        if self.received and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True
        name = signal.Signals(signal_number).name
        print(
            f"\n{name}: finishing this step, then writing a checkpoint (Ctrl-C again ends at once)",
            file=sys.stderr,
        )

    def received_by_any(self) -> bool:
        """Return whether any process got a signal; all have to ask.

        It may have reached only some of them, or each at another step.
        """
        if self.accelerator.num_processes == 1:
            return self.received
        received = torch.tensor(float(self.received), device=self.accelerator.device)
        return self.accelerator.reduce(received).item() > 0

    def _stop(self) -> None:
        if not self.stopped and self.received_by_any():
            self.stopped = True
            raise Interrupted

    def on_step_end(self, args, state, control, **kwargs):
        if self.received_by_any():
            control.should_save = True
            control.should_evaluate = False  # made up for when the run goes on

    def on_save(self, args, state, control, **kwargs):
        self._stop()

    def on_prediction_step(self, args, state, control, **kwargs):
        self._stop()
