"""What the machine and the launcher decide for a run: device, precision, signals and exit statuses.

`accelerate launch` turns any failure into 1 and does not pass SIGTERM on to a single child; statuses below are the
script process's own (`python train_rm.py`, or what the launcher's log names).
"""

import ctypes
import os
import signal
import sys
import time

import torch
from transformers import TrainerCallback

BAD_INPUT, NON_FINITE, INTERRUPTED = 2, 3, 75  # 75: EX_TEMPFAIL, try again with --resume auto


def choose_precision(settings: dict, quantized: bool) -> str:
    """Set `use_cpu`, `bf16` and `fp16` in RewardConfig's `settings` to what this machine can do; says what was chosen.

    Asked for and possible: as the recipe says. bf16 on a GPU without it becomes fp16; a CPU computes in float32, except
    that 4-bit and 8-bit layers need bf16.
    """
    asked = "bf16" if settings.get("bf16") else "fp16" if settings.get("fp16") else None
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    if accelerator is None or settings.get("use_cpu"):
        chosen = "bf16" if quantized else None
        settings["use_cpu"] = True
        where = f"CPU, {torch.get_num_threads()} threads"
    elif accelerator.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        default = ("bf16" if bf16 else "fp16") if settings.get("bf16") is None else None
        chosen = "fp16" if asked == "bf16" and not bf16 else asked or default
        where = torch.cuda.get_device_name()
    else:
        chosen, where = None, accelerator.type
    settings["bf16"], settings["fp16"] = chosen == "bf16", chosen == "fp16"
    instead = f" (the recipe asks for {asked})" if asked and asked != chosen else ""
    return f"{where}; {f'{chosen} autocast' if chosen else 'float32'}{instead}"


def die_with_launcher() -> None:
    """Ask Linux for SIGTERM when accelerate's launcher dies, which it would otherwise not pass on to a single child."""
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def fail(message, status: int) -> int:
    """Say on stderr why this process ends; returns `status`. What all processes of a host would say, the first one says: the
    launcher ends the others as soon as one is gone."""
    index, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # no checkpoint is to be written any more
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        time.sleep(10)
    who = f" (process {index} of {count})" if count > 1 else ""
    print(f"\ntrain_rm.py{who}: {message}", file=sys.stderr, flush=True)
    return status


class Interrupted(Exception):
    """A signal arrived during an evaluation, which is not worth finishing: launchers grant 30 s."""


class StopOnSignal(TrainerCallback):
    """SIGTERM or Ctrl-C: finish the step, write a checkpoint, stop; `stopped` says so. A second Ctrl-C ends at once."""

    def __init__(self):
        self.received, self.stopped, self.accelerator = False, False, None
        self.before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }

    def restore(self) -> None:
        """Training is over: signals do what they did before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _on_signal(self, number, frame):
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True
        name = signal.Signals(number).name
        print(
            f"\n{name}: finishing this step, then writing a checkpoint (Ctrl-C again ends at once)",
            file=sys.stderr,
        )

    def _received_by_any(self) -> bool:
        """The signal may have reached only some processes, or at another step."""
        if self.accelerator.num_processes == 1:
            return self.received
        return (
            self.accelerator.reduce(
                torch.tensor(float(self.received), device=self.accelerator.device)
            ).item()
            > 0
        )

    def on_step_end(self, args, state, control, **kwargs):
        if self._received_by_any():
            self.stopped = True
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
            args.load_best_model_at_end = False

    def on_prediction_step(self, args, state, control, **kwargs):
        if self._received_by_any():
            self.stopped = True
            raise Interrupted
