"""What a run prints while it trains: a row for each log step and each evaluation.

              step    loss  accuracy   margin       lr  tokens/s     left
    train    10/67  0.6905     0.512   +0.021  1.9e-03     4,120     0:12
    valid    35/67  0.6402     0.655   +0.131   (517 pairs)

On a terminal a last line counts steps in between; in a file there are only rows. The losses and
accuracies of `train` are those since the row before.
"""

import shutil
import sys
import time

from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils.logging import disable_progress_bar

from reward.data.shown import count

ROWS_PER_HEADER = 40
# Of a terminal that is too narrow for all columns, these are left out, the first one first.
LEFT_OUT_FIRST = ("lr", "tokens/s", "margin", "left")
ERASE_LINE = "\r\x1b[K"


def duration(seconds: float) -> str:
    """Seconds as `0:07` or `12:05:30`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}"


class TrainingTable(TrainerCallback):
    """Prints the rows, on the main process. It stands in the place of transformers' progress bars.

    Args:
        width: The columns of the terminal; None reads them, and takes 100 for a file.
        live: Whether a last line counts steps; None asks whether this is a terminal.
    """

    def __init__(self, width: int | None = None, live: bool | None = None):
        self.live = live
        if live is None:
            self.live = sys.stdout.isatty()
        self.width = width or 100
        if width is None and self.live:
            self.width = shutil.get_terminal_size((100, 24)).columns
        self.widths = {}  # name of a column -> its characters
        self.rows = 0
        self.tokens = 0  # of the run, at the last row
        self.trains = False
        self.batches = 0  # of the evaluation that is running

    # --- What the trainer reports ---------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self.first_step = state.global_step
        for logs in state.log_history:  # of the run that goes on
            self.tokens = logs.get("num_tokens", self.tokens)
        self.start = self.row_start = self.step_end = time.monotonic()
        self.paused = 0.0  # seconds of evaluations and saves since the last row
        self.widths = self._widths(state.max_steps)
        self.trains = True
        disable_progress_bar()  # of saves, between the rows

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self.step_end = time.monotonic()
        self._count(state, f"step {state.global_step}/{state.max_steps}")

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self.batches += 1
        self._count(state, f"validation batch {self.batches}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **kwargs,
    ) -> None:
        if "loss" not in logs:  # an evaluation, or the totals of the run
            return
        now = time.monotonic()
        seconds_per_step = (now - self.start) / max(1, state.global_step - self.first_step)
        training_seconds = max(1e-9, now - self.row_start - self.paused)
        tokens = logs.get("num_tokens", self.tokens)
        cells = self._cells("train", state, logs)
        cells["lr"] = f"{logs.get('learning_rate', 0):.1e}"
        cells["tokens/s"] = f"{(tokens - self.tokens) / training_seconds:,.0f}"
        cells["left"] = duration(seconds_per_step * (state.max_steps - state.global_step))
        self.row_start, self.paused, self.tokens = now, 0.0, tokens
        self._print_row(state, cells)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict | None = None,
        **kwargs,
    ) -> None:
        self._add_pause()
        self.batches = 0
        name = "valid"
        if not self.trains:
            name = "final"  # of the model that is saved
        plain = {key.removeprefix("eval_"): value for key, value in metrics.items()}
        cells = self._cells(name, state, plain)
        self._print_row(state, cells, note=f"({plain.get('n', 0):,} pairs)")

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self._add_pause()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self.trains = False
        done = count(state.global_step - self.first_step, "step")
        if state.global_step < state.max_steps:
            done = f"{state.global_step - self.first_step:,} of "
            done += count(state.max_steps - self.first_step, "step")
        self._print(state, f"trained {done} in {duration(time.monotonic() - self.start)}")

    # --- Rows -----------------------------------------------------------------------------------

    def _add_pause(self) -> None:
        """Count the time since the last step, which went into an evaluation or a save."""
        if not self.trains:
            return
        now = time.monotonic()
        self.paused += now - self.step_end
        self.step_end = now

    def _widths(self, max_steps: int) -> dict[str, int]:
        """The columns that fit the terminal, and their characters."""
        widths = {
            "": 5,
            "step": max(5, 2 * len(str(max_steps)) + 1),
            "loss": 7,
            "accuracy": 8,
            "margin": 7,
            "lr": 7,
            "tokens/s": 8,
            "left": 7,
        }
        for name in LEFT_OUT_FIRST:
            if sum(widths.values()) + 2 * len(widths) - 2 > self.width:
                del widths[name]
        return widths

    def _cells(self, name: str, state: TrainerState, metrics: dict) -> dict[str, str]:
        """The cells that rows of training and of an evaluation share."""
        cells = {"": name.ljust(5), "step": f"{state.global_step}/{state.max_steps}"}
        formats = {"loss": ".4f", "accuracy": ".3f", "margin": "+.3f"}
        for column, form in formats.items():
            if column in metrics:
                cells[column] = format(metrics[column], form)
        return cells

    def _print_row(self, state: TrainerState, cells: dict[str, str], note: str = "") -> None:
        if self.rows % ROWS_PER_HEADER == 0:
            self._print(state, self._line({name: name for name in self.widths}))
        self.rows += 1
        self._print(state, f"{self._line(cells)}  {note}".rstrip())

    def _line(self, cells: dict[str, str]) -> str:
        """One row; columns after the last filled cell are left away."""
        texts = [cells.get(name, "").rjust(width) for name, width in self.widths.items()]
        return "  ".join(texts).rstrip()

    def _print(self, state: TrainerState, text: str) -> None:
        if not state.is_world_process_zero:
            return
        if self.live:
            text = ERASE_LINE + text
        print(text, flush=True)

    def _count(self, state: TrainerState, text: str) -> None:
        """Replace the last line of a terminal."""
        if self.live and state.is_world_process_zero:
            print(f"{ERASE_LINE}{text}", end="", flush=True)
