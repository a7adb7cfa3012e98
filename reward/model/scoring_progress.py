"""How far scoring has come: a bar on a terminal, and elsewhere a line now and then."""

import os
import sys
import time

from tqdm import tqdm

BETWEEN_LINES = 60.0  # seconds
FIRST_LINE = 10.0  # seconds after the start


def leave_out_bars() -> None:
    """Show no bars of transformers and datasets: not in a file, and not for a single prompt."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # if it is imported later
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()


def bar(total: int, what: str | None, unit: str, quiet: bool) -> tqdm:
    """A bar for a part of the work, such as a check's texts; in a file it is written once a minute.

    Args:
        total: How many there are.
        what: What is done, in a word or two.
        unit: What is counted.
        quiet: Whether to show nothing.
    """
    seconds = BETWEEN_LINES
    if sys.stderr.isatty():
        seconds = 0.1
    return tqdm(total=total, desc=what, unit=unit, disable=quiet, mininterval=seconds)


class ScoringProgress:
    """Shows on stderr how many rows are done, how fast it goes, and how long it will take.

    Args:
        rows: How many rows an earlier run has done.
        quiet: Whether to show nothing.
    """

    def __init__(self, rows: int, quiet: bool):
        self.before = rows
        self.rows = float(rows)  # parts of a row are its batches' share of the chunk
        self.start = time.monotonic()
        self.next_line = self.start + FIRST_LINE
        self.quiet = quiet
        self.bar = tqdm(
            desc="Scoring",
            unit=" rows",
            unit_scale=True,
            initial=rows,
            smoothing=0.0,  # the mean speed of the whole run
            delay=0.5,
            leave=False,
            disable=quiet or not sys.stderr.isatty(),
        )

    def expect(self, rows: int | None) -> None:
        """Set how many rows there are, as far as one knows."""
        self.bar.total = rows

    def add(self, rows: float) -> None:
        """Take in rows that are done."""
        self.rows += rows
        self.bar.update(rows)
        now = time.monotonic()
        if self.bar.disable and not self.quiet and now >= self.next_line:
            self.next_line = now + BETWEEN_LINES
            print(self._line(now), file=sys.stderr)

    def settle(self, rows: int) -> None:
        """Set how many rows are done by now."""
        self.add(rows - self.rows)

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()

    def _line(self, now: float) -> str:
        speed = (self.rows - self.before) / (now - self.start)
        line = f"{self.rows:,.0f} rows"
        if self.bar.total:
            line += f" of about {self.bar.total:,}"
        line += f", {speed:,.0f} a second"
        if self.bar.total:
            left = (self.bar.total - self.rows) / speed
            line += f", {tqdm.format_interval(left)} left"
        return line
