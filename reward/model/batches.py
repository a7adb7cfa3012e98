"""Batches: texts packed or padded into the model's inputs, pairs collated into micro-batches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np
import torch

if TYPE_CHECKING:
    from datasets import Dataset

TokenIds = Sequence[int]  # the token ids of one text, a list or a tuple


# --- What a batch holds ---------------------------------------------------------------------------
# These go into `model(**inputs)` or come from a DataLoader. They are dicts and no dataclasses,
# because accelerate moves the tensors in a dict to the device.


class PackingLayout(TypedDict):
    """Where the texts of a packed batch lie.

    A text is computed if it brings tokens of its own; one that equals another brings none.
    """

    queries: list[int]  # (computed texts,): how many tokens each text brings of its own
    lengths: list[int]  # (computed texts,): how many tokens each text has, shared ones included
    kv_index: torch.Tensor | None  # (sum of lengths,): where each text's tokens lie, or in order
    cumulative: torch.Tensor  # (2, computed texts + 1), int32: running sums of queries and lengths
    read: torch.Tensor  # (texts,): where the token lies that the head reads of each text, in order
    read_once: torch.Tensor  # `read` without repetitions, sorted: equal texts share a token
    masks: NotRequired[dict]  # window -> one mask a text; the first attention layer adds it


class PackedInputs(TypedDict):
    """The model's inputs for a packed batch; its logits come as (texts, labels)."""

    input_ids: torch.Tensor  # (1, tokens)
    position_ids: torch.Tensor  # (1, tokens)
    attention_mask: torch.Tensor  # (1, 1, 1, 1), see `pack`
    packing: PackingLayout


class PaddedInputs(TypedDict):
    """The model's inputs for a padded batch."""

    input_ids: torch.Tensor  # (texts, tokens)
    attention_mask: torch.Tensor  # (texts, tokens), 0 where padded


class MicroBatch(TypedDict):
    """What one forward computes. `target_margin` to `length_difference` are BATCH_LABELS."""

    texts: PackedInputs | PaddedInputs  # each different text once
    sides: torch.Tensor  # (pairs, 2): which text is the chosen and which the rejected side
    weight: torch.Tensor  # (pairs,): a pair by itself weighs 1; the pairs of a ranking 1 together
    example: torch.Tensor  # (pairs,): which of the collated examples the pair belongs to
    target_margin: torch.Tensor  # (pairs,)
    chosen_probability: torch.Tensor  # (pairs,)
    rating_chosen: torch.Tensor  # (pairs,)
    rating_rejected: torch.Tensor  # (pairs,)
    subset_id: torch.Tensor  # (pairs,)
    length_difference: torch.Tensor  # (pairs,): tokens of chosen minus tokens of rejected
    tokens: int  # how many tokens the different texts have together
    spare: NotRequired[bool]  # set by the trainer on one that is computed and counts for nothing


class CollatedBatch(TypedDict):
    """One step's pairs, cut into micro-batches."""

    order: torch.Tensor  # (pairs,): indices of the given pairs, in the micro-batches' order
    micro_batches: list[MicroBatch]


# The label columns of a batch, and the value that a pair without a label gets.
LABEL_DEFAULTS = {
    "target_margin": 0.0,
    "chosen_probability": 1.0,
    "rating_chosen": 0.0,
    "rating_rejected": 0.0,
    "subset_id": 0,
}
BATCH_LABELS = [*LABEL_DEFAULTS, "length_difference"]
SIDES = ("chosen_ids", "rejected_ids")


# --- Texts into inputs ----------------------------------------------------------------------------


def shared_prefix(a: TokenIds, b: TokenIds) -> int:
    """Return how many leading tokens two texts have in common."""
    shorter = min(len(a), len(b))
    different = np.flatnonzero(np.asarray(a[:shorter]) != np.asarray(b[:shorter]))
    if len(different):
        return int(different[0])
    return shorter


def own_tokens(texts: Sequence[TokenIds], before: TokenIds = ()) -> int:
    """Return how many tokens `pack` computes for `texts` after the text `before`."""
    total = 0
    for text in sorted(texts):
        total += len(text) - shared_prefix(before, text)
        before = text
    return total


def read_index(text: TokenIds, pad_token_id: int | None) -> int:
    """Return the index of the token that a causal head reads, as stock transformers does.

    Args:
        text: The token ids of one text, without padding.
        pad_token_id: The head reads the rightmost token that is not this id, the first one where
            all are. None: it reads the last token.
    """
    for i in reversed(range(len(text))):
        if text[i] != pad_token_id:
            return i
    return 0


def pack(
    texts: Sequence[TokenIds], share_prefixes: bool = True, pad_token_id: int | None = None
) -> PackedInputs:
    """Lay texts into one row without padding, each shared prefix once.

    Args:
        texts: Token ids of each text. A text may occur several times.
        share_prefixes: False computes each text whole. There still is no padding, and dropout then
            falls on each text by itself.
        pad_token_id: It decides which token of a text is read, see `read_index`.
    """
    order = range(len(texts))
    if share_prefixes:
        order = sorted(order, key=texts.__getitem__)
    ids, positions, paths = [], [], []
    read = [0] * len(texts)
    total = 0
    previous = np.empty(0, dtype=np.int64)  # the previous text
    path = np.empty(0, dtype=np.int64)  # where the tokens of the previous text lie in the row
    for i in order:
        text = np.asarray(texts[i], dtype=np.int64)
        prefix = 0
        if share_prefixes:
            prefix = shared_prefix(previous, text)
        own = len(text) - prefix
        if own:  # The texts are sorted: one that brings nothing equals the one before it.
            path = np.concatenate([path[:prefix], np.arange(total, total + own)])
            ids.append(text[prefix:])
            positions.append(np.arange(prefix, len(text)))
            paths.append(path)
            total += own
        previous = text
        read[i] = int(path[read_index(text, pad_token_id)])
    return {
        "input_ids": torch.from_numpy(np.concatenate(ids))[None],
        "position_ids": torch.from_numpy(np.concatenate(positions))[None],
        # It has four dimensions, so that transformers passes it on as it is. Otherwise transformers
        # would build one itself, which would drop the shared prefixes.
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool),
        "packing": packing_layout(ids, paths, read),
    }


def packing_layout(
    ids: list[np.ndarray], paths: list[np.ndarray], read: list[int]
) -> PackingLayout:
    """Build the layout from what `pack` found: own ids, where all tokens lie, which are read."""
    queries = [len(own) for own in ids]
    lengths = [len(path) for path in paths]
    kv_index = None
    if queries != lengths:
        kv_index = torch.from_numpy(np.concatenate(paths))
    counts = [[0, *queries], [0, *lengths]]
    sums = np.cumsum(counts, axis=1)
    return {
        "queries": queries,
        "lengths": lengths,
        "kv_index": kv_index,
        "cumulative": torch.tensor(sums, dtype=torch.int32),
        "read": torch.tensor(read),
        "read_once": torch.tensor(sorted(set(read))),
    }


def padded(
    texts: Sequence[TokenIds],
    pad_token_id: int,
    multiple: int | None = None,
    padding_side: str = "right",
) -> PaddedInputs:
    """Pad texts to the longest one, or to the next multiple of `multiple` tokens."""
    width = max(map(len, texts))
    if multiple:
        width = -(-width // multiple) * multiple  # rounded up
    ids = torch.full((len(texts), width), pad_token_id)
    attention_mask = torch.zeros_like(ids)
    for row, mask, text in zip(ids, attention_mask, texts, strict=True):
        own = slice(0, len(text))
        if padding_side == "left":
            own = slice(width - len(text), width)
        row[own] = torch.tensor(text)
        mask[own] = 1
    return {"input_ids": ids, "attention_mask": attention_mask}


# --- Groups of texts into batches of a token budget -----------------------------------------------


def token_batches(
    groups: list[list[TokenIds]], budget: int, packed: bool, share_prefixes: bool = True
) -> list[list[int]]:
    """Deal groups of texts that stay together into batches of at most `budget` computed tokens.

    A group that is larger than the budget gets a batch of its own. Packed groups are sorted by
    their text, so that what shares a prefix meets. Padded ones are sorted by length, and a batch
    counts its rows times the longest of them.

    Args:
        groups: Token ids of the texts of each group.
        budget: How many tokens one forward may compute.
        packed: Whether the batches will be packed. Otherwise they are padded.
        share_prefixes: Whether packed batches compute a shared prefix once, as in `pack`.

    Returns:
        The indices of the groups in each batch.
    """
    if packed:
        order = sorted(range(len(groups)), key=lambda i: groups[i][0])
    else:
        order = sorted(range(len(groups)), key=lambda i: longest_text(groups[i]))

    def tokens_with(group: list[TokenIds], tokens: int, rows: int, previous: TokenIds) -> int:
        """Return the tokens of a batch that has `tokens` in `rows` texts once `group` is added."""
        if not packed:
            return (rows + len(group)) * longest_text(group)
        if share_prefixes:
            return tokens + own_tokens(group, previous)
        return tokens + sum(map(len, group))

    batches = []
    tokens, rows, previous = 0, 0, ()  # of the last batch: its tokens, texts, and its last text
    for i in order:
        group = groups[i]
        grown = tokens_with(group, tokens, rows, previous)
        if not batches or grown > budget:
            batches.append([])
            rows = 0
            grown = tokens_with(group, 0, 0, ())
        batches[-1].append(i)
        tokens = grown
        rows += len(group)
        previous = max(group)
    return batches


def longest_text(group: list[TokenIds]) -> int:
    """Return how many tokens the longest text of a group has."""
    return max(map(len, group))


# --- Pairs into micro-batches ---------------------------------------------------------------------


class PreferenceCollator:
    """Collates encoded pairs, or rankings of pairs, into a batch of micro-batches.

    An example is a pair itself (`chosen_ids`, `rejected_ids` and labels), or holds the `pairs` of a
    ranking, or the `rows` of a table that do.

    Args:
        pad_token_id: What padded micro-batches are filled up with, and what no text ends with.
        pad_to_multiple_of: The width of padded micro-batches in tokens is a multiple of this.
        table: The encoded pairs that `rows` of the examples refer to.
        token_budget: How many tokens a micro-batch may have. Without one, all pairs of a batch are
            one micro-batch.

    Attributes:
        packed: Whether micro-batches are packed; the trainer sets it.
        share_prefixes: Whether packed ones compute a shared prefix once; the trainer sets it.
    """

    def __init__(
        self,
        pad_token_id: int,
        pad_to_multiple_of: int | None = None,
        table: "Dataset | None" = None,
        token_budget: int | None = None,
    ):
        self.pad_token_id = pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of
        self.table = table
        self.token_budget = token_budget
        self.packed = False
        self.share_prefixes = True

    def pairs_of(self, example: dict) -> list[dict]:
        """Return the pairs of an example: one, or all of a ranking."""
        if "rows" not in example:
            return example.get("pairs", [example])
        columns = self.table[example["rows"]]
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def __call__(self, examples: list[dict]) -> CollatedBatch:
        groups = []  # the pairs of each example
        indices = []  # the index of each of these pairs among all pairs of the batch
        pairs_so_far = 0
        for i, example in enumerate(examples):
            pairs = self.pairs_of(example)
            groups.append([pair | {"weight": 1 / len(pairs), "example": i} for pair in pairs])
            indices.append(range(pairs_so_far, pairs_so_far + len(pairs)))
            pairs_so_far += len(pairs)
        order, micro_batches = [], []
        for batch in self.batches_of(groups):
            pairs = []
            for i in batch:
                pairs += groups[i]
                order += indices[i]
            micro_batches.append(self.micro_batch(pairs))
        return {"order": torch.tensor(order), "micro_batches": micro_batches}

    def batches_of(self, groups: list[list[dict]]) -> Sequence[Sequence[int]]:
        """Return which groups of pairs each micro-batch holds. A ranking's pairs stay together."""
        if not self.token_budget:
            return [range(len(groups))]
        texts = [different_texts(group) for group in groups]
        return token_batches(texts, self.token_budget, self.packed, self.share_prefixes)

    def micro_batch(self, pairs: list[dict]) -> MicroBatch:
        """Collate pairs that one forward computes."""
        texts = different_texts(pairs)
        index_of = {text: i for i, text in enumerate(texts)}
        if self.packed:
            inputs = pack(texts, self.share_prefixes, self.pad_token_id)
        else:
            inputs = padded(texts, self.pad_token_id, self.pad_to_multiple_of)
        sides, length_differences = [], []
        for pair in pairs:
            sides.append([index_of[tuple(pair[side])] for side in SIDES])
            length_difference = len(pair["chosen_ids"]) - len(pair["rejected_ids"])
            length_differences.append(float(length_difference))
        labels = {}
        for name, default in LABEL_DEFAULTS.items():
            labels[name] = torch.tensor([float(pair.get(name, default)) for pair in pairs])
        return {
            "texts": inputs,
            "sides": torch.tensor(sides),
            "weight": torch.tensor([pair["weight"] for pair in pairs]),
            "example": torch.tensor([pair["example"] for pair in pairs]),
            **labels,
            "length_difference": torch.tensor(length_differences),
            "tokens": sum(map(len, texts)),
        }


def different_texts(pairs: list[dict]) -> list[tuple[int, ...]]:
    """Return the token ids of all sides, each different text once.

    Rankings repeat a completion in many pairs.
    """
    texts = {}  # in the order of their first occurrence
    for pair in pairs:
        for side in SIDES:
            texts[tuple(pair[side])] = None
    return list(texts)
