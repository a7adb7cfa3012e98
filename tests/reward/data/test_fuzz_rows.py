"""10,000 damaged rows: each is read with all its text, or refused in a sentence without content.

Every text of a row holds a word that stands nowhere else. So a text that is passed over without a
word is found, whatever the layout.
"""

import copy
import json
import random
import re

import pytest
from row_layouts import COMPLETION_ROWS, PREFERENCE_ROWS

from reward.data.formats import RowError, to_pairs, unread_columns
from reward.data.rows_to_score import row_to_score

ROWS = 10_000
WORD = re.compile(r"w\d+w")  # the words that stand nowhere else
SPOKEN = ("role", "from")

NAMES = (
    *("prompt", "chosen", "rejected", "instruction", "input", "question", "query", "system"),
    *("history", "messages", "conversations", "context", "completion", "response", "output"),
    *("completions", "answers", "ranks", "label", "winner", "votes", "margin", "tools", "images"),
    *("my_question", "note", "subset", "source", "text", "A", "", "\ud800", "x" * 500),
)
ODD_VALUES = (
    *(None, "", " ", 0, 1, -1, 0.5, True, float("nan"), float("inf"), 10**400, -(10**400)),
    *([], {}, [[]], [None], [{}], {"a": None}, "\ud800", "\x00", "[{", '["', "[{'role': 'user'"),
    *("Human:", "\n\nHuman:", "[INST]", "<|im_start|>user\n", "H: \nA: ", "### Instruction:"),
)


class Fuzz:
    """Damages rows, with a seed of its own."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.words = 0
        self.word_of: dict[str, str] = {}  # of the texts of the row, so that equal ones stay equal

    def word(self) -> str:
        self.words += 1
        return f"w{self.words}w"

    def marked(self, value):
        """The value with a word of its own in every text that could be a sentence."""
        if isinstance(value, str) and value.startswith('["'):
            return json.dumps(self.marked(json.loads(value)))
        if isinstance(value, str) and " " in value:
            key = value.strip()
            if key not in self.word_of:
                self.word_of[key] = self.word()
            return f"{value} {self.word_of[key]}"
        if isinstance(value, list):
            return [self.marked(item) for item in value]
        if isinstance(value, dict):
            return {
                key: item if key in SPOKEN else self.marked(item) for key, item in value.items()
            }
        return value

    def damaged(self, row: dict) -> dict:
        """A row with one to three columns dropped, renamed, retyped, nested or added."""
        self.word_of.clear()
        row = self.marked(copy.deepcopy(row))
        for _ in range(self.random.randint(1, 3)):
            if not row:
                break
            column = self.random.choice(list(row))
            change = self.random.choice(("drop", "rename", "retype", "nest", "inside", "add"))
            if change == "drop":
                del row[column]
            elif change == "rename":
                row[self.random.choice(NAMES)] = row.pop(column)
            elif change == "retype":
                row[column] = self.odd()
            elif change == "nest":
                row[column] = self.nested(row[column])
            elif change == "inside":
                row[column] = self.changed_inside(row[column])
            else:
                row[self.random.choice(NAMES)] = self.odd()
        return row

    def odd(self):
        if self.random.random() < 0.5:
            return self.random.choice(ODD_VALUES)
        return self.nested(f"some text {self.word()}")

    def nested(self, value):
        key = self.random.choice(("role", "content", "from", "value", "text", "other", None))
        return self.random.choice(
            [
                [value],
                {key: value},
                [{"role": "user", "content": value}],
                [{"from": "gpt", "value": value}],
                {"role": "assistant", "content": value},
                [{"role": "assistant", "content": [{"type": "text", "text": value}]}],
                [{"role": "assistant", "tool_calls": [{"function": {"name": value}}]}],
                [{"role": "user", "content": "a b", key: value}],
                [value, value],
                json.dumps(value, default=str),
                value,
            ]
        )

    def changed_inside(self, value):
        """One of the items of a list or mapping changed, if the value is one."""
        if isinstance(value, list) and value:
            value = list(value)
            place = self.random.randrange(len(value))
            value[place] = self.changed_inside(value[place])
            return value
        if isinstance(value, dict) and value:
            value = dict(value)
            key = self.random.choice(list(value))
            if self.random.random() < 0.3:
                value[self.random.choice(("role", "content", "value", "extra"))] = value.pop(key)
            else:
                value[key] = self.changed_inside(value[key])
            return value
        return self.random.choice([self.odd(), self.nested(value)])


def words_of(value: object) -> set[str]:
    """The words of a value that stand nowhere else in the row."""
    return set(WORD.findall(json.dumps(value, default=str)))


def said_unread(row: dict, unread: list[str]) -> set[str]:
    """The words in the columns, and under the keys of columns, that are named as unread."""
    words = set()
    for name in unread:
        column, _, key = name.partition("[].")
        cells = [value for own, value in row.items() if str(own) == column]
        for cell in cells:
            if key:
                items = json_of(cell)
                if isinstance(items, dict):
                    items = [items]
                cell = [
                    value
                    for item in items
                    if isinstance(item, dict)
                    for own, value in item.items()
                    if str(own) == key
                ]
            words |= words_of(cell)
    return words


def json_of(cell):
    if isinstance(cell, str):
        return json.loads(cell)
    return cell


def check_sentence(error: RowError) -> None:
    message = str(error)
    assert len(message) < 400 and "\n" not in message, message
    assert not WORD.search(message), message
    message.encode()  # no lone surrogates


def lost_words(row: dict, transcript: str, for_score: bool) -> set[str]:
    """The words of a row that are neither read nor named; empty for a row that is refused."""
    try:
        if for_score:
            to_score = row_to_score(row, transcript)
            read = [to_score.prompt, to_score.completions, to_score.tools]
            if to_score.prompt is None:
                return set()  # the sides have different prompts, and get no reward
            unread = to_score.unread
        else:
            read = to_pairs(row, transcript)
            unread = unread_columns(row)
            if any(pair["drop"] for pair in read):
                return set()  # counted in the ledger
    except RowError as error:
        check_sentence(error)
        return set()
    names = [row[name] for name in ("subset", "source", "domain") if name in row]
    subset = [name for name in names if isinstance(name, str)][:1]
    return words_of(row) - words_of(read) - said_unread(row, unread) - words_of(subset)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_rows_are_read_whole_or_refused(seed):
    fuzz = Fuzz(seed)
    layouts = list(PREFERENCE_ROWS.values()) + list(COMPLETION_ROWS.values())
    for _ in range(ROWS // 4):
        row = fuzz.damaged(fuzz.random.choice(layouts))
        transcript = fuzz.random.choice(("messages", "raw"))
        for_score = fuzz.random.random() < 0.4
        assert not lost_words(row, transcript, for_score), json.dumps(row, default=str)


@pytest.mark.parametrize("name", PREFERENCE_ROWS)
def test_no_text_of_a_whole_row_is_lost(name):
    row = Fuzz(0).marked(copy.deepcopy(PREFERENCE_ROWS[name]))
    for transcript in ("messages", "raw"):
        to_pairs(row, transcript)  # it is not refused
        assert not lost_words(row, transcript, for_score=False)


@pytest.mark.parametrize("name", COMPLETION_ROWS)
def test_no_text_of_a_whole_row_to_score_is_lost(name):
    row = Fuzz(0).marked(copy.deepcopy(COMPLETION_ROWS[name]))
    for transcript in ("messages", "raw"):
        row_to_score(row, transcript)
        assert not lost_words(row, transcript, for_score=True)
