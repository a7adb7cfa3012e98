"""Tables of text -> tables of token ids, with the labels that the losses take."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from jinja2 import TemplateError

from reward.data.encoding import encode_within, encoder_facts
from reward.data.files import DataError
from reward.data.ledger import Ledger
from reward.data.sources import CODE

ROWS_A_PROCESS = 20_000  # encoding: fewer do not pay for starting another process


# ------------------------------------------------------------------------------------------------------- text -> ids


@dataclass(frozen=True)
class EncodingOptions:
    """How pairs become token ids and labels. Every field but `num_proc` is part of the cache's key."""

    max_length: int | None = None  # the limit of a side in tokens; None for no limit
    overlong: str = "drop"  # what becomes of a longer pair: drop, truncate_prompt or error
    loss_type: str = "bradley_terry"  # rating_mse needs ratings, every other loss does without
    soft_labels: bool = True  # False: only the side that most raters chose counts
    strength_as: str = "target_margin"  # what a preference strength becomes, or chosen_probability
    num_proc: int | None = None  # processes; None: one for every CPU where there are many rows


class EncodedSplits(NamedTuple):
    """What encode_splits returns."""

    tables: dict  # split -> table of token ids and labels; an IterableDataset for a streamed train split
    subsets: list[
        str
    ]  # `subset_id` is an index into it; a stream appends the subsets that it meets


class PairTexts(NamedTuple):
    """The texts of one pair. Each side is a message list, or a string under `transcript: raw`."""

    prompt: str | list[dict]
    chosen: str | list[dict]
    rejected: str | list[dict]
    tools: list | None  # what the template shows the model of its tools


def decode_sides(row: dict) -> PairTexts:
    """The texts of a table row, which are stored as JSON."""
    tools = json.loads(row["tools"]) if row.get("tools") else None
    return PairTexts(*(json.loads(row[side]) for side in ("prompt", "chosen", "rejected")), tools)


def row_ids(table) -> list[str]:
    """What identifies the pairs of a split, in order: 16 hexadecimal digits each, of prompt, chosen and rejected text."""
    return [f"{key & (2**64 - 1):016x}" for key in table["pair_key"][:]]


def encode_row(row: dict, tokenizer, options: EncodingOptions) -> dict:
    """`chosen_ids`, `rejected_ids`, `length` of one pair, and in `drop` and `truncated` what the limit did to it."""
    prompt, chosen, rejected, tools = decode_sides(row)
    try:
        encoded = encode_within(
            tokenizer, prompt, [chosen, rejected], options.max_length, options.overlong, tools
        )
    except TemplateError as error:  # its own words, such as "System role not supported"
        raise DataError(
            f"{row['where']}: the chat template refuses this conversation: {error}"
        ) from None
    drop = ""
    ids, over = encoded.ids, encoded.too_long
    if any(over):
        drop = f"over-long ({'both sides' if all(over) else 'chosen' if over[0] else 'rejected'})"
        if options.overlong == "error":
            raise DataError(
                f"{row['where']}: {max(map(len, ids))} tokens, max_length is {options.max_length}. Raise max_length, or set "
                "overlong: drop (counted) or overlong: truncate_prompt."
            )
    elif ids[0] == ids[1]:
        drop = "identical sides once encoded"
    return {
        "chosen_ids": ids[0],
        "rejected_ids": ids[1],
        "length": max(map(len, ids)),
        "drop": drop,
        "truncated": encoded.prompt_cut,
    }


def labels_of(row: dict, options: EncodingOptions) -> dict:
    """What a row's raters said, as reward.training.losses takes it: every label a number.

    `soft_labels=False`: the side that most raters chose is all that counts; a tie stays .5. A preference strength s (1 to
    3) becomes the target margin s ("Margin BT", arXiv 2410.01257, eq. 2) or the chosen probability .5 + s/6.
    """
    p, margin = row["chosen_probability"], row["target_margin"]
    if row["strength"]:
        if options.strength_as == "chosen_probability":
            p = 0.5 + row["strength"] / 6
        elif margin is None:
            margin = row["strength"]
    if p is None:
        p = 1.0
    elif not options.soft_labels and p != 0.5:
        p = float(p > 0.5)
    ratings = {side: row[side] for side in ("rating_chosen", "rating_rejected")}
    if options.loss_type == "rating_mse" and None in ratings.values():
        raise DataError(
            f"{row['where']}: no ratings, which loss_type: rating_mse regresses on; needed are numbers in the columns "
            "rating_chosen and rating_rejected (or score_chosen and score_rejected, or helpfulness). For pairs without "
            "ratings: loss_type: bradley_terry, or mse"
        )
    return {
        "target_margin": margin or 0.0,
        "chosen_probability": p,
        **{side: rating or 0.0 for side, rating in ratings.items()},
    }


def encode_splits(
    splits: dict, ledger: Ledger, tokenizer, options: EncodingOptions
) -> EncodedSplits:
    """Tokenise every split, drop and count what the length limit excludes.

    Adds columns `chosen_ids`, `rejected_ids`, `length`, `subset_id` and the labels (labels_of), which replace what the row
    had. Raises DataError for an empty split, and for an over-long pair under `overlong="error"`.
    """
    subsets: list[str] = []
    ledger.check(max_dropped=1.0)  # an empty split is an error
    for table in splits.values():
        subsets += (
            sorted(set(table.unique("subset")) - set(subsets)) if isinstance(table, Dataset) else []
        )

    def columns(row, name="train"):
        # Nobody computes a loss on the test split, so a row there needs no ratings.
        labels = replace(options, loss_type="bradley_terry") if name == "test" else options
        encoded = encode_row(row, tokenizer, options)
        if row["subset"] not in subsets:  # streaming meets subsets as they come
            subsets.append(row["subset"])
        return {
            **encoded,
            "subset_id": subsets.index(row["subset"]),
            **labels_of(row, labels),
        }

    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str()) | {
        "truncation": None,
        "padding": None,
    }
    facts = [encoder_facts(tokenizer), hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()]
    encoded = {}
    for name, table in splits.items():
        if not isinstance(table, Dataset):
            encoded[name] = IterableDataset.from_generator(
                _encoded_stream, gen_kwargs={"rows": table, "columns": columns, "ledger": ledger}
            )
            continue
        decisive = asdict(replace(options, num_proc=None))
        recipe = [table._fingerprint, CODE, facts, decisive, subsets]
        with PartialState().local_main_process_first():
            table = table.map(
                columns,
                fn_kwargs={"name": name},
                num_proc=options.num_proc or _processes_for(len(table)),
                desc=f"Encoding {name}",
                # A tokenizer's own hash changes with use, which would encode again on every process.
                new_fingerprint=hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32],
            )
        drop = np.array(table["drop"][:], dtype=object)
        for reason, n in Counter(drop).items():
            ledger.add(name, "dropped", reason, n if reason else 0)
        kept = np.flatnonzero(drop == "")
        ledger.add(
            name,
            "truncated",
            "prompt cut at the start",
            np.array(table["truncated"][:])[kept].sum(),
        )
        encoded[name] = table.select(kept)
        for subset, n in Counter(encoded[name]["subset"][:]).items():
            ledger.add(name, "subset", subset, n)
    return EncodedSplits(encoded, subsets)


def _processes_for(rows: int) -> int | None:
    # A scheduler's quota is not seen by either: dataset_num_proc says it.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cpus, rows // ROWS_A_PROCESS)
    return count if count > 1 else None


def _encoded_stream(rows, columns, ledger):
    held = []  # the pairs of one ranking follow each other
    for row, new in rows():
        encoded = columns(row) | {"ranking": row["ranking"]}
        if new:
            ledger.add("train", "dropped", encoded["drop"], bool(encoded["drop"]))
        if encoded["drop"]:
            continue
        if new:
            ledger.add("train", "truncated", "prompt cut at the start", encoded["truncated"])
            ledger.add("train", "subset", row["subset"])
        if held and held[0]["ranking"] != encoded["ranking"]:
            yield {"pairs": held}
            held = []
        held.append(encoded)
    if held:
        yield {"pairs": held}


def by_ranking(table: Dataset) -> Dataset:
    """One row a ranking: `rows` are the indices of its pairs in `table`, `length` the longest side of any. InstructGPT
    (arXiv 2203.02155, sec. 3.5) trains on all pairs of a prompt in one step; shuffled apart, they overfit."""
    _, group = np.unique(table.with_format("numpy")["ranking"][:], return_inverse=True)
    order = np.argsort(group, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(group))[:-1])
    rows.sort(key=lambda indices: indices[0])  # in the order of the table
    lengths = np.array(table["length"][:])
    return Dataset.from_dict(
        {"rows": rows, "length": [int(lengths[indices].max()) for indices in rows]}
    )
