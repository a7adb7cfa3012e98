"""Golden rewards: test pairs with which a checkpoint proves that it gives the same rewards."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from reward.data.cells import is_finite_number
from reward.model.hub import ModelError

if TYPE_CHECKING:  # A fresh process reads golden rewards alone, and need not wait for datasets.
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


GOLDEN_KEYS = {"prompt", "completion", "tools"}


class GoldenText(TypedDict):
    """A row of golden.jsonl."""

    # prompt, completion and tools; None where a cut prompt is known by its ids alone
    text: dict | None
    ids: list[int]  # token ids of the whole conversation
    reward: NotRequired[float | None]  # as a fresh process computed it


def golden_pairs(table: "Dataset", count: int = 8) -> "Dataset":
    """Return the pairs that the checkpoint proves itself on, evenly spread over an encoded split.

    Args:
        table: The encoded split.
        count: How many pairs; a shorter split gives all of its own.
    """
    last = len(table) - 1
    places = {round(k * last / max(count - 1, 1)) for k in range(count)}
    return table.select(sorted(places))


def golden_texts(
    pairs: "Dataset", tokenizer: "PreTrainedTokenizerBase | None" = None
) -> list[GoldenText]:
    """Return both sides of each pair, chosen first: messages (or strings) and token ids.

    Args:
        pairs: The encoded pairs.
        tokenizer: The reward model's. Arguments of tool calls become what its template reads, so
            that stock transformers gives the ids; without one they stay as they are.
    """
    from reward.data.encoding import as_template_reads
    from reward.data.tokens import decode_sides

    texts = []
    for row in pairs:
        prompt, chosen, rejected, tools = decode_sides(row)
        for completion, ids in ((chosen, row["chosen_ids"]), (rejected, row["rejected_ids"])):
            turns = prompt + completion
            if tokenizer is not None and isinstance(turns, list):
                turns = as_template_reads(tokenizer, turns)
            text = {
                "prompt": turns[: len(prompt)],
                "completion": turns[len(prompt) :],
                "tools": tools or None,  # as it is encoded: templates may tell [] from none
            }
            if row["truncated"]:
                # A fresh process would encode the whole prompt from the messages, not the cut one.
                text = None
            texts.append(GoldenText(text=text, ids=list(ids)))
    return texts


def write_golden(
    folder: str | Path, texts: list[GoldenText], rewards: list[float] | None = None
) -> None:
    """Write golden.jsonl.

    Args:
        folder: The checkpoint.
        texts: The rows; a reward that they hold already is replaced.
        rewards: One per text; None before they are known.
    """
    if rewards is None:
        rewards = [None] * len(texts)
    lines = []
    for text, reward in zip(texts, rewards, strict=True):
        lines.append(json.dumps({**text, "reward": reward}, ensure_ascii=False) + "\n")
    (Path(folder) / "golden.jsonl").write_text("".join(lines), encoding="utf-8")


def read_golden(folder: str | Path) -> list[GoldenText]:
    """Return the rows of a checkpoint's golden.jsonl.

    Raises:
        ModelError: The file is damaged.
    """
    path = Path(folder) / "golden.jsonl"
    try:
        # Not str.splitlines: a text may hold other line separators, such as U+2028.
        with open(path, encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        rows = [None]
    if not all(map(_is_golden_text, rows)):
        raise ModelError(f"{path} is damaged, so nobody knows its rewards; copy the folder again")
    return rows


def _is_golden_text(row: object) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("ids"), list):
        return False
    text, reward = row.get("text", ""), row.get("reward")
    has_ids = all(type(token) is int and token >= 0 for token in row["ids"])
    has_text = text is None or (isinstance(text, dict) and text.keys() >= GOLDEN_KEYS)
    return has_ids and has_text and (reward is None or is_finite_number(reward))
