"""What the trackers of `report_to` get beside the numbers: rewards, completions and alarms.

After each evaluation: a histogram of the rewards of the validation pairs, and a table of the
completions with the highest and the lowest reward. TensorBoard, trackio and wandb show both;
transformers sends the numbers, the accuracy of each subset among them, to every tracker. Where
wandb or a Space keeps the runs, the completions in the table leave this machine.
"""

import math
import sys
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from reward.data.tokens import decode_sides
from reward.data.transcripts import text_of
from reward.training.terminal import ERASE_LINE

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from reward.training.trainer import PairTrainer

SHOWN = 5  # completions at each end of the table
LONGEST = 1000  # characters of a text in the table
TIES = 0.02  # the audit warns above the same share of pairs with equal rewards

REWARDS = "eval/rewards"
COMPLETIONS = "eval/completions"


@dataclass(frozen=True)
class RankedCompletion:
    """A row of the table."""

    rank: int  # 1 has the highest reward
    reward: float
    side: str  # chosen or rejected
    subset: str
    prompt: str
    completion: str


COLUMNS = [field.name for field in fields(RankedCompletion)]


def best_and_worst(
    table: Dataset, rewards: torch.Tensor, subsets: list[str]
) -> list[RankedCompletion]:
    """The completions with the highest and the lowest reward, the best first.

    Args:
        table: The encoded pairs.
        rewards: Their rewards, chosen and rejected, (pairs, 2).
        subsets: The names of the subsets, by `subset_id`.
    """
    order = rewards.flatten().argsort(descending=True, stable=True).tolist()
    ranks = sorted({*range(len(order))[:SHOWN], *range(len(order))[-SHOWN:]})
    rows = []
    for rank in ranks:
        pair, side = divmod(order[rank], 2)
        row = table[pair]
        texts = decode_sides(row)
        completion = (texts.chosen, texts.rejected)[side]
        rows.append(
            RankedCompletion(
                rank=rank + 1,
                reward=round(rewards[pair, side].item(), 4),
                side=("chosen", "rejected")[side],
                subset=subsets[row["subset_id"]],
                prompt=_shortened(text_of(texts.prompt)),
                completion=_shortened(text_of(completion)),
            )
        )
    return rows


def _shortened(text: str) -> str:
    """A text of at most LONGEST characters: its end is what a completion answers to."""
    if len(text) <= LONGEST:
        return text
    return "..." + text[3 - LONGEST :]


def markdown_table(rows: list[RankedCompletion]) -> str:
    """The table for TensorBoard, which shows Markdown."""
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    for row in rows:
        cells = [str(cell).replace("\\", "\\\\").replace("|", "\\|") for cell in astuple(row)]
        cells = [cell.replace("<", "&lt;").replace("\n", "<br>") for cell in cells]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


class TrackerPanels(TrainerCallback):
    """Sends rewards, completions and alarms to the trackers, from the main process.

    Args:
        trainer: The trainer, whose `evaluated_rewards` are shown.
    """

    def __init__(self, trainer: "PairTrainer"):
        self.trainer = trainer
        self.trains = False
        self.raised = set()  # titles of alarms, each of which is raised once

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self.trains = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self.trains = False  # the trackers end as well

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict | None = None,
        **kwargs,
    ) -> None:
        rewards = self.trainer.evaluated_rewards
        if not self.trains or not state.is_world_process_zero or rewards is None:
            return
        if args.report_to:
            self._show(rewards, state.global_step)
        tie_rate = metrics.get("eval_tie_rate", 0.0)
        if tie_rate > TIES:
            self.alarm(
                "ties",
                f"{tie_rate:.1%} of {len(rewards):,} validation pairs have equal rewards at step "
                f"{state.global_step}: look for completions that were cut to the same text, or for "
                "rewards that are all alike",
            )

    def alarm(self, title: str, text: str) -> None:
        """Say once what is wrong, here and in each tracker that has alerts.

        Args:
            title: What the alarm is about, in a word or two.
            text: What was found.
        """
        if title in self.raised or not self.trainer.is_world_process_zero():
            return
        self.raised.add(title)
        start_of_line = ""
        if sys.stdout.isatty():
            start_of_line = ERASE_LINE
        print(f"{start_of_line}alarm, {title}: {text}", file=sys.stderr, flush=True)
        trackers = self.trainer.args.report_to
        if not self.trains:
            return
        if "trackio" in trackers:
            import trackio

            trackio.alert(title, text, level=trackio.AlertLevel.WARN)
        if "wandb" in trackers:
            import wandb

            wandb.run.alert(title, text, level=wandb.AlertLevel.WARN)
        writer = self._tensorboard()
        if writer is not None:
            writer.add_text(f"alarm/{title}", text, self.trainer.state.global_step)
            writer.flush()

    def close(self) -> None:
        """End the trackers of a run that failed: transformers ends those of finished ones."""
        if not self.trains or not self.trainer.is_world_process_zero():
            return
        trackers = self.trainer.args.report_to
        if "trackio" in trackers:
            import trackio

            trackio.finish()
        if "wandb" in trackers:
            import wandb

            wandb.finish(exit_code=1)

    def _show(self, rewards: torch.Tensor, step: int) -> None:
        trackers = self.trainer.args.report_to
        subsets = self.trainer.options.subsets
        completions = best_and_worst(self.trainer.eval_dataset, rewards, subsets)
        values = [reward for reward in rewards.flatten().tolist() if math.isfinite(reward)]
        rows = [list(astuple(row)) for row in completions]
        place = {"train/global_step": step}
        if "trackio" in trackers:
            import trackio

            table = trackio.Table(columns=COLUMNS, data=rows)
            trackio.log({REWARDS: trackio.Histogram(values), COMPLETIONS: table, **place})
        if "wandb" in trackers:
            import wandb

            table = wandb.Table(columns=COLUMNS, data=rows)
            wandb.log({REWARDS: wandb.Histogram(values), COMPLETIONS: table, **place})
        writer = self._tensorboard()
        if writer is not None:
            writer.add_histogram(REWARDS, torch.tensor(values), step)
            writer.add_text(COMPLETIONS, markdown_table(completions), step)
            writer.flush()

    def _tensorboard(self) -> "SummaryWriter | None":
        """The writer that transformers opened; None without `report_to: tensorboard`."""
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback):
                return callback.tb_writer
        return None
