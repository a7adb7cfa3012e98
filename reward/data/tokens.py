"""Tables of text -> tables of token ids, with the labels that the losses read."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np
from accelerate import PartialState
from datasets import Dataset, Features, IterableDataset, List, Value

from reward.data.encoding import RefusedText, encode_within, encoder_facts, render_each
from reward.data.files import DataError
from reward.data.ledger import Ledger, first_places
from reward.data.sources import cache_key
from reward.data.streaming import StreamedTrain
from reward.data.transcripts import Side

if TYPE_CHECKING:  # only for the annotations: the import takes seconds
    from transformers import PreTrainedTokenizerBase

ROWS_PER_PROCESS = 20_000  # with fewer rows, starting another process takes longer than it saves
ROWS_PER_BATCH = 200  # of which the ids are in memory at once

# Reasons of the ledger.
SAME_IDS = "identical sides once encoded"
PROMPT_CUT = "prompt cut at the start"


@dataclass(frozen=True)
class EncodingOptions:
    """How pairs become token ids and labels. Every field but `num_proc` decides the outcome."""

    max_length: int | None = None  # the limit of a side in tokens; None for no limit
    overlong: str = "drop"  # what becomes of a longer pair: drop, truncate_prompt or error
    loss_type: str = "bradley_terry"  # the loss that the error about missing ratings names
    needs_ratings: bool = False  # whether this loss regresses on ratings
    soft_labels: bool = True  # False: only the side that most raters chose counts
    strength_as: str = "target_margin"  # or chosen_probability: what a strength becomes
    on_bad_row: str = "skip"  # or stop: what a row that cannot be encoded does
    num_proc: int | None = None  # processes; None: one per CPU if there are many rows


class DecodedPair(NamedTuple):
    """The texts of one pair."""

    prompt: Side
    chosen: Side
    rejected: Side
    tools: list[dict] | None  # the functions that the assistant may call, for the chat template


class EncodedPair(TypedDict):
    """The columns that encoding adds to a row, beside the labels."""

    chosen_ids: list[int]  # token ids of prompt + chosen
    rejected_ids: list[int]  # token ids of prompt + rejected
    length: int  # tokens of the longer side
    drop: str  # why the pair is dropped; "" if it is kept
    truncated: bool  # whether the oldest part of the prompt is left out


class Labels(TypedDict):
    """The raters' judgement of a pair as numbers, which reward.training.losses reads."""

    target_margin: float  # 0 if the row has none
    chosen_probability: float  # 1 if the row has none
    rating_chosen: float  # 0 if the row has none
    rating_rejected: float  # 0 if the row has none


# The columns of a table that encode_splits adds, or gives another type.
ENCODED_FEATURES = Features(
    {
        "chosen_ids": List(Value("int64")),
        "rejected_ids": List(Value("int64")),
        "length": Value("int64"),
        "drop": Value("string"),
        "truncated": Value("bool"),
        "subset_id": Value("int64"),
        **{name: Value("float64") for name in Labels.__annotations__},
    }
)


class EncodedSplits(NamedTuple):
    """What encode_splits returns."""

    tables: dict[str, Dataset | IterableDataset]  # by name: train, validation, test
    subsets: list[str]  # the names that `subset_id` indexes; a stream adds those that it meets


# --- One pair -------------------------------------------------------------------------------------


def rows_of(table: Dataset, columns: Sequence[str]) -> Iterator[dict]:
    """The rows of a table with these columns.

    They are read in batches, which is several times as fast as reading one row after another.
    """
    for batch in table.select_columns(list(columns)).iter(ROWS_PER_BATCH):
        yield from _rows_of_batch(batch)


def _rows_of_batch(batch: dict[str, list]) -> Iterator[dict]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))


def decode_sides(row: dict) -> DecodedPair:
    """The texts of a row of a table, which holds them as JSON."""
    tools = None
    if row.get("tools"):
        tools = json.loads(row["tools"])
    return DecodedPair(
        prompt=json.loads(row["prompt"]),
        chosen=json.loads(row["chosen"]),
        rejected=json.loads(row["rejected"]),
        tools=tools,
    )


def row_ids(table: Dataset) -> list[str]:
    """The ids of the pairs of a split, in order.

    An id is a hash of prompt, chosen and rejected text, written as 16 hexadecimal digits.
    """
    return [f"{_unsigned(key):016x}" for key in table["pair_key"][:]]


def _unsigned(key: int) -> int:
    return key & (2**64 - 1)


def render_row(row: dict, tokenizer: PreTrainedTokenizerBase) -> list[str] | None:
    """The texts of both sides of a pair; None if the chat template refuses it."""
    prompt, chosen, rejected, tools = decode_sides(row)
    try:
        return render_each(tokenizer, prompt, [chosen, rejected], tools)
    except RefusedText:
        return None


def encode_row(
    row: dict,
    tokenizer: PreTrainedTokenizerBase,
    options: EncodingOptions,
    texts: list[str] | None = None,
) -> EncodedPair:
    """Encode both sides of a pair.

    Args:
        row: A row of the table that reward.data.splits gives.
        tokenizer: The reward model's tokenizer.
        options: `max_length`, `overlong` and `on_bad_row` are read here.
        texts: What `render_row` gives, where it was called before.

    Raises:
        DataError: The chat template refuses the conversation under `on_bad_row="stop"`, or the
            pair is over-long under `overlong="error"`.
    """
    prompt, chosen, rejected, tools = decode_sides(row)
    try:
        encoded = encode_within(
            tokenizer,
            prompt,
            [chosen, rejected],
            options.max_length,
            options.overlong,
            tools,
            texts,
        )
    except RefusedText as error:
        if options.on_bad_row == "stop":
            raise DataError(f"{row['where']}: {error}") from None
        return {
            "chosen_ids": [],
            "rejected_ids": [],
            "length": 0,
            "drop": error.reason,
            "truncated": False,
        }
    chosen_ids, rejected_ids = encoded.ids
    length = max(len(chosen_ids), len(rejected_ids))
    if options.overlong == "error" and any(encoded.too_long):
        raise DataError(
            f"{row['where']}: {length} tokens, max_length is {options.max_length}. Raise "
            "max_length, or set overlong: drop (counted) or overlong: truncate_prompt."
        )
    drop = over_long(*encoded.too_long)
    if not drop and chosen_ids == rejected_ids:
        drop = SAME_IDS
    return {
        "chosen_ids": chosen_ids,
        "rejected_ids": rejected_ids,
        "length": length,
        "drop": drop,
        "truncated": encoded.prompt_cut,
    }


def over_long(chosen_is_too_long: bool, rejected_is_too_long: bool) -> str:
    """The reason to drop a pair because of its length; "" if neither side is too long."""
    if chosen_is_too_long and rejected_is_too_long:
        return "over-long (both sides)"
    if chosen_is_too_long:
        return "over-long (chosen)"
    if rejected_is_too_long:
        return "over-long (rejected)"
    return ""


def labels_of(row: dict, options: EncodingOptions) -> Labels:
    """The labels of a row as numbers.

    A preference strength s (1 to 3) becomes the target margin s ("Margin BT", arXiv 2410.01257, eq.
    2) or the chosen probability .5 + s/6. If the row has a target margin as well, that one is used
    and the strength is not.

    Args:
        row: A row of the table that reward.data.splits gives.
        options: How labels are read. Without `soft_labels` the chosen probability is rounded to
            the side that most raters chose; a tie stays .5.

    Raises:
        DataError: The loss regresses on ratings, and the row has none.
    """
    probability = row["chosen_probability"]
    target_margin = row["target_margin"]
    strength = row["strength"]
    if strength and options.strength_as == "chosen_probability":
        probability = 0.5 + strength / 6
    elif strength and target_margin is None:
        target_margin = strength
    if probability is None:
        probability = 1.0
    elif not options.soft_labels and probability != 0.5:
        probability = float(probability > 0.5)
    rating_chosen = row["rating_chosen"]
    rating_rejected = row["rating_rejected"]
    if options.needs_ratings and None in (rating_chosen, rating_rejected):
        raise DataError(
            f"{row['where']}: no ratings, which loss_type: {options.loss_type} regresses on; "
            "needed are numbers in the columns rating_chosen and rating_rejected (or score_chosen "
            "and score_rejected, or helpfulness). For pairs without ratings: loss_type: "
            "bradley_terry, or mse"
        )
    return {
        "target_margin": target_margin or 0.0,
        "chosen_probability": probability,
        "rating_chosen": rating_chosen or 0.0,
        "rating_rejected": rating_rejected or 0.0,
    }


# --- Whole splits ---------------------------------------------------------------------------------


def encode_splits(
    splits: dict[str, Dataset | StreamedTrain],
    ledger: Ledger,
    tokenizer: PreTrainedTokenizerBase,
    options: EncodingOptions,
) -> EncodedSplits:
    """Tokenise every split, and drop and count what the length limit excludes.

    The tables get the columns of EncodedPair, `subset_id`, and the columns of Labels, which replace
    the row's own labels. A row of a streamed train split is one ranking: its column `pairs` is a
    list of rows with these columns.

    Args:
        splits: The tables of reward.data.splits, by name.
        ledger: The ledger of these splits, which goes on counting here.
        tokenizer: The reward model's tokenizer.
        options: How pairs become token ids and labels.

    Raises:
        DataError: A split is empty, or a pair cannot be encoded (encode_row, labels_of).
    """
    ledger.check(max_dropped=1.0)  # an empty split is an error
    subsets: list[str] = []
    for table in splits.values():
        if isinstance(table, Dataset):
            subsets += sorted(set(table.unique("subset")) - set(subsets))
    encoder = _RowEncoder(tokenizer, options, subsets)
    tokenizer_hash = _hash_of_tokenizer(tokenizer)
    encoded = {}
    for name, table in splits.items():
        if isinstance(table, Dataset):
            encoded[name] = _encode_table(table, name, encoder, tokenizer_hash, ledger)
        else:
            encoded[name] = IterableDataset.from_generator(
                _encode_stream, gen_kwargs={"pairs": table, "encoder": encoder, "ledger": ledger}
            )
    return EncodedSplits(encoded, subsets)


@dataclass
class _RowEncoder:
    """A function from a row of a table to the columns that encoding adds to it."""

    tokenizer: PreTrainedTokenizerBase
    options: EncodingOptions
    subsets: list[str]  # a stream adds the subsets that it meets

    def __call__(self, row: dict, split: str = "train", texts: list[str] | None = None) -> dict:
        encoded = encode_row(row, self.tokenizer, self.options, texts)
        if row["subset"] not in self.subsets:
            self.subsets.append(row["subset"])
        label_options = self.options
        if split == "test":
            # Nobody computes a loss on the test split, so a row there needs no ratings.
            label_options = replace(self.options, needs_ratings=False)
        return {
            **encoded,
            "subset_id": self.subsets.index(row["subset"]),
            **labels_of(row, label_options),
        }

    def encode_batch(self, columns: dict[str, list], split: str) -> dict[str, list]:
        """The columns that encoding adds to a batch of rows."""
        rows = list(_rows_of_batch(columns))
        # Rendering all rows first is faster by a fifth than taking turns with the tokenizer.
        texts_of_rows = [render_row(row, self.tokenizer) for row in rows]
        encoded_rows = [
            self(row, split, texts) for row, texts in zip(rows, texts_of_rows, strict=True)
        ]
        return {name: [row[name] for row in encoded_rows] for name in ENCODED_FEATURES}


def _encode_table(
    table: Dataset, name: str, encoder: _RowEncoder, tokenizer_hash: str, ledger: Ledger
) -> Dataset:
    """Encode one split, and count it.

    Args:
        table: The split's pairs as text.
        name: The split's name.
        encoder: Encodes one row.
        tokenizer_hash: The hash of the encoder's tokenizer by `_hash_of_tokenizer`. The hash that
            datasets computes changes with use, which would make every process encode again.
        ledger: Counts what is dropped, cut and kept.
    """
    deciding = asdict(replace(encoder.options, num_proc=None))
    key = cache_key(table._fingerprint, tokenizer_hash, deciding, encoder.subsets)
    with PartialState().local_main_process_first():
        encoded = table.map(
            encoder.encode_batch,
            fn_kwargs={"split": name},
            batched=True,  # a row at a time, datasets takes as long as encoding does
            batch_size=ROWS_PER_BATCH,
            num_proc=encoder.options.num_proc or _processes_for(len(table)),
            desc=f"Encoding {name}",
            features=Features({**table.features, **ENCODED_FEATURES}),
            new_fingerprint=key,
        )
    drop = np.array(encoded["drop"][:], dtype=object)
    for reason, count in Counter(drop).items():
        if reason:
            ledger.add(name, "dropped", reason, count)
    ledger.add_places(name, first_places(encoded, drop))
    is_kept = drop == ""
    is_cut = np.array(encoded["truncated"][:])
    ledger.add(name, "truncated", PROMPT_CUT, is_cut[is_kept].sum())
    kept = encoded.select(np.flatnonzero(is_kept))
    for subset, count in Counter(kept["subset"][:]).items():
        ledger.add(name, "by_subset", subset, count)
    return kept


def _hash_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides an encoding: template, end token and vocabulary."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Using the tokenizer changes these two entries, and encode_within reads neither.
    state["truncation"] = state["padding"] = None
    ends = (tokenizer.eos_token, tokenizer.sep_token)  # one of them ends a text that is no messages
    facts = json.dumps([encoder_facts(tokenizer), ends, state])
    return hashlib.sha256(facts.encode()).hexdigest()


def _processes_for(row_count: int) -> int | None:
    """How many processes to encode with; None for this process alone.

    A quota that a scheduler sets on the CPUs cannot be seen here. Set `dataset_num_proc` in the
    recipe if there is one.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    processes = min(cpus, row_count // ROWS_PER_PROCESS)
    if processes > 1:
        return processes
    return None


def _encode_stream(
    pairs: StreamedTrain, encoder: _RowEncoder, ledger: Ledger
) -> Iterator[dict[str, list[dict]]]:
    """Encode the train pairs while they stream, and yield one row `pairs` for each ranking."""
    ranking: list[dict] = []
    for encoded in _encode_streamed_pairs(pairs, encoder, ledger):
        # The pairs of one ranking follow each other.
        if ranking and ranking[0]["ranking"] != encoded["ranking"]:
            yield {"pairs": ranking}
            ranking = []
        ranking.append(encoded)
    if ranking:
        yield {"pairs": ranking}


def _encode_streamed_pairs(
    pairs: StreamedTrain, encoder: _RowEncoder, ledger: Ledger
) -> Iterable[dict]:
    """Encode the train pairs, count them, and leave out those that are dropped."""
    for row, is_new in pairs:
        encoded = encoder(row) | {"ranking": row["ranking"]}
        if is_new and encoded["drop"]:
            ledger.add("train", "dropped", encoded["drop"])
            ledger.add_places("train", {encoded["drop"]: row["where"]})
        elif is_new:
            ledger.add("train", "truncated", PROMPT_CUT, encoded["truncated"])
            ledger.add("train", "by_subset", row["subset"])
        if not encoded["drop"]:
            yield encoded


def by_ranking(table: Dataset) -> Dataset:
    """Group the pairs of a table by ranking: one row for each, in the order of the table.

    InstructGPT (arXiv 2203.02155, sec. 3.5) trains on all pairs of a prompt in one step. A model
    overfits when they are shuffled over several steps.

    Args:
        table: An encoded split.

    Returns:
        A table with the columns `rows`, the indices of the ranking's pairs in `table`, and
        `length`, the tokens of the longest side of any of them.
    """
    _, ranking_index = np.unique(table.with_format("numpy")["ranking"][:], return_inverse=True)
    in_groups = np.argsort(ranking_index, kind="stable")
    group_ends = np.cumsum(np.bincount(ranking_index))
    groups = np.split(in_groups, group_ends[:-1])
    groups.sort(key=lambda rows: rows[0])
    pair_lengths = np.array(table["length"][:])
    lengths = [int(pair_lengths[rows].max()) for rows in groups]
    return Dataset.from_dict({"rows": groups, "length": lengths})
