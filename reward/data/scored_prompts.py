"""Scored rows by prompt: each prompt with its completions and their rewards.

    for prompt in ScoredByPrompt().prompts(rows):
        prompt.completions

The rows of one prompt need not follow each other. One prompt is in memory at a time; a temporary
SQLite database on disk holds them all.
"""

import hashlib
import itertools
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

from reward.data.cells import kind_of, list_in
from reward.data.cells import number as finite_number
from reward.data.columns import Columns, NamedColumns
from reward.data.files import DataError, WriteError
from reward.data.rows_to_score import (
    is_finished_text,
    newest_name,
    reward_columns,
    row_to_score,
)
from reward.data.shown import count
from reward.data.transcripts import RowError, Side


class NotScored(RowError):
    """A row without the rewards that score.py writes."""


class Counted(NamedTuple):
    """What is counted, and what is said of it: "3 prompts" + "with one completion: no pair"."""

    thing: str  # in the singular
    words: str


PROMPTS = Counted("prompt", "")
COMPLETIONS = Counted("completion", "")
WITHOUT_REWARD = Counted("completion", "without a reward: left out")
REPEATED = Counted("completion", "that the same prompt has already: left out")
UNREADABLE = Counted("row", "that cannot be read: left out")
FINISHED_TEXT = Counted("row", "with a finished `text`, whose prompt is not known: left out")

REWARD_ERROR = "reward_error"


def phrases(counts: Counter[Counted]) -> list[str]:
    """What was counted, as phrases: "3 prompts with one completion only"; the most first."""
    found = []
    for counted, number in counts.most_common():
        if counted.words and number:
            found.append(f"{count(number, counted.thing)} {counted.words}")
    return found


@dataclass(frozen=True)
class ScoredCompletion:
    """A completion with its reward."""

    completion: Side
    reward: float
    others: dict[str, Any] = field(default_factory=dict)  # the columns of its row that are no text


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt and completions of it, in the order of the rows."""

    prompt: Side
    completions: list[ScoredCompletion]
    tools: Any = None  # the functions that the assistant may call, as the row holds them


@dataclass
class ScoredByPrompt:
    """Groups scored rows by their prompt.

    `prompts` is called once, and sets the other fields before it gives the first prompt.
    """

    conversational: bool = False  # whether texts become messages, as the reward model reads them
    columns: Columns = Columns()  # the columns that the rows name otherwise
    counts: Counter[Counted] = field(default_factory=Counter)
    other_columns: dict[str, None] = field(default_factory=dict)  # of any row; names in order
    has_tools: bool = False  # whether some row has tools
    has_texts: bool = False  # whether some prompt is a text, not messages

    def prompts(self, rows: Iterable[dict]) -> Iterator[ScoredPrompt]:
        """The prompts in the order in which they first appear.

        A prompt of which no completion has a reward is left out, and so is the second of two equal
        completions.

        Args:
            rows: Rows as score.py writes them: a row of its input + `reward`, `rewards` or
                `reward_chosen, reward_rejected`.

        Raises:
            DataError: A row was not scored, or no completion has a reward.
            WriteError: There is no room for the database.
        """
        try:
            with closing(sqlite3.connect("")) as database:  # on disk; SQLite deletes it
                self._store(database, rows)
                for stored in _prompts_in_order(database):
                    prompt = self._without_repetitions(stored)
                    if prompt.completions:
                        yield prompt
        except sqlite3.Error as error:
            raise WriteError(
                f"the temporary database of the rows failed ({error}); if the disk is full, set "
                "TMPDIR to a folder on another one"
            ) from None
        if not self.counts[COMPLETIONS]:
            found = "; ".join(phrases(self.counts)) or "no row at all"
            raise DataError(f"no completion has both a prompt and a reward: {found}")

    def _store(self, database: sqlite3.Connection, rows: Iterable[dict]) -> None:
        """Store the completions of each row, and a hash of its prompt."""
        database.execute("CREATE TABLE scored (place INTEGER PRIMARY KEY, prompt BLOB, row TEXT)")
        database.executemany("INSERT INTO scored VALUES (?, ?, ?)", self._stored(rows))
        database.execute("CREATE INDEX by_prompt ON scored (prompt, place)")

    def _stored(self, rows: Iterable[dict]) -> Iterator[tuple[int, bytes, str]]:
        for number, row in enumerate(rows, start=1):
            if is_finished_text(row):
                self.counts[FINISHED_TEXT] += 1
                continue
            try:
                scored = self._read(row)
            except NotScored as error:
                raise DataError(f"scored row {number:,}: {error}") from None
            except RowError:
                if _has_error(row):
                    self.counts[WITHOUT_REWARD] += 1
                else:
                    self.counts[UNREADABLE] += 1
                continue
            for completion in scored.completions:
                self.other_columns.update(dict.fromkeys(completion.others))
            self.has_tools |= scored.tools is not None
            self.has_texts |= isinstance(scored.prompt, str)
            yield number, _hash(scored.prompt, scored.tools), json.dumps(asdict(scored))

    def _read(self, row: dict) -> ScoredPrompt:
        """The completions of one row; the reward of one without is NaN.

        Raises:
            RowError: The row is in no layout.
            NotScored: It has no rewards.
        """
        transcript = "raw"
        if self.conversational:
            transcript = "messages"
        named = NamedColumns(self.columns).of(row)
        to_score = row_to_score(named, transcript)
        if to_score.prompt is None:
            raise RowError("the two sides have different prompts")
        columns = reward_columns(to_score.row, [None] * len(to_score.completions))
        rewards = _rewards(named, columns)
        if len(rewards) != len(to_score.completions):
            raise NotScored(f"{len(rewards)} rewards, {len(to_score.completions)} completions")
        ours = {newest_name(name, named) for name in (*columns, REWARD_ERROR)}
        names = [*to_score.unread, "subset"]
        others = {name: named[name] for name in names if name in named and name not in ours}
        completions = []
        for completion, reward in zip(to_score.completions, rewards, strict=True):
            completions.append(ScoredCompletion(completion, reward, others))
        return ScoredPrompt(to_score.prompt, completions, named.get("tools"))

    def _without_repetitions(self, rows: list[ScoredPrompt]) -> ScoredPrompt:
        """The different completions of one prompt that have a reward."""
        kept: dict[bytes, ScoredCompletion] = {}
        for completion in itertools.chain.from_iterable(row.completions for row in rows):
            key = _hash(completion.completion)
            if math.isnan(completion.reward):
                self.counts[WITHOUT_REWARD] += 1
            elif key in kept:
                self.counts[REPEATED] += 1
            else:
                kept[key] = completion
        self.counts[PROMPTS] += bool(kept)
        self.counts[COMPLETIONS] += len(kept)
        return ScoredPrompt(rows[0].prompt, list(kept.values()), rows[0].tools)


def _prompts_in_order(database: sqlite3.Connection) -> Iterator[list[ScoredPrompt]]:
    """The rows of each prompt, the prompt that appears first coming first."""
    places = database.execute(
        "SELECT first, place FROM scored "
        "JOIN (SELECT prompt, MIN(place) AS first FROM scored GROUP BY prompt) USING (prompt) "
        "ORDER BY first, place"
    )
    for _, group in itertools.groupby(places, key=itemgetter(0)):
        rows = []
        for _, place in group:
            (text,) = database.execute(
                "SELECT row FROM scored WHERE place = ?", (place,)
            ).fetchone()
            rows.append(_scored_prompt(json.loads(text)))
        yield rows


def _scored_prompt(values: dict) -> ScoredPrompt:
    completions = [ScoredCompletion(**completion) for completion in values["completions"]]
    return ScoredPrompt(values["prompt"], completions, values["tools"])


def _rewards(row: dict, columns: dict) -> list[float]:
    """The newest rewards of a row, one for each completion; NaN stands for none.

    Args:
        row: The row as it was written.
        columns: `reward_columns` of the row: the plain names, and which of them are lists.

    Raises:
        RowError: What stands in their columns is no number.
        NotScored: The row has no rewards.
    """
    rewards = []
    for name, empty in columns.items():
        newest = newest_name(name, row)
        value = row.get(newest, empty)
        if name == "margin":
            continue
        values = [value]
        if isinstance(empty, list):
            values = list_in(value)
        if values is None:
            raise RowError(f"`{newest}` is {kind_of(value)}; a list of numbers is needed")
        rewards += [_number_or_nan(reward, newest) for reward in values]
    was_scored = all(newest_name(name, row) in row for name in columns)
    if not was_scored and not _has_error(row):
        raise NotScored(f"the row has no `{next(iter(columns))}`; score the file first")
    return rewards


def _number_or_nan(reward: object, name: str) -> float:
    if reward is None:
        return math.nan
    return float(finite_number(reward, name))


def _has_error(row: dict) -> bool:
    """Whether the row says why it has no reward."""
    return REWARD_ERROR in row or f"new_{REWARD_ERROR}" in row


def _hash(*values: object) -> bytes:
    """A hash of texts or messages; equal ones have the same."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
