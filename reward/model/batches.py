"""Batches: texts packed or padded, and pairs collated into micro-batches."""

import numpy as np
import torch

# ------------------------------------------------------------------------------------------------------- the layout


def shared_prefix(a, b) -> int:
    """How many leading tokens two id lists have in common."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(differ[0]) if len(differ) else n


def own_tokens(texts: list[list[int]], before: list[int] = ()) -> int:
    """Tokens that `pack` computes for `texts`, where `before` is already there."""
    total = 0
    for text in sorted(texts):
        total += len(text) - shared_prefix(before, text)
        before = text
    return total


def pack(texts: list[list[int]], share: bool = True) -> dict:
    """Id lists -> the model's inputs: `input_ids`, `position_ids` (1, tokens) and `packing`; logits come as (texts, labels).

    `share=False` computes each text whole: still no padding, and dropout then falls on each text by itself.
    """
    ids, positions, keys, queries, lengths = [], [], [], [], []
    last = [0] * len(texts)
    before, path = (
        np.empty(0, dtype=np.int64),
        np.empty(0, dtype=np.int64),
    )  # the previous text, where its tokens lie
    total = 0
    for i in sorted(range(len(texts)), key=texts.__getitem__) if share else range(len(texts)):
        text = np.asarray(texts[i], dtype=np.int64)
        prefix = shared_prefix(before, text) if share else 0
        own = len(text) - prefix
        if own:  # sorted, a text that brings nothing equals the one before
            path = np.concatenate([path[:prefix], np.arange(total, total + own)])
            ids.append(text[prefix:])
            positions.append(np.arange(prefix, len(text)))
            keys.append(path)
            queries.append(own)
            lengths.append(len(text))
            total += own
        before, last[i] = text, total - 1
    return {
        "input_ids": torch.from_numpy(np.concatenate(ids))[None],
        "position_ids": torch.from_numpy(np.concatenate(positions))[None],
        # Four dimensions: transformers passes it on as it is, and builds none itself (which would drop the shared prefixes).
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool),
        "packing": {
            "queries": queries,  # tokens of its own, a text
            "lengths": lengths,  # tokens of its path, a text
            "kv_index": torch.from_numpy(np.concatenate(keys)) if queries != lengths else None,
            "cumulative": torch.tensor(
                np.cumsum([[0, *queries], [0, *lengths]], axis=1), dtype=torch.int32
            ),
            "last": torch.tensor(last),
        },
    }


def padded(texts: list[list[int]], pad_token_id: int, multiple: int | None = None) -> dict:
    """Id lists -> `input_ids`, `attention_mask` (texts, tokens), padded right to the longest or to a multiple."""
    width = -(-max(map(len, texts)) // (multiple or 1)) * (multiple or 1)
    ids = torch.full((len(texts), width), pad_token_id)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    lengths = torch.tensor([[len(text)] for text in texts])
    return {"input_ids": ids, "attention_mask": (torch.arange(width) < lengths).long()}


def token_batches(
    groups: list[list[list[int]]], budget: int, packed: bool, share: bool = True
) -> list[list[int]]:
    """Groups of texts that stay together -> batches of indices of groups, as many as fit into `budget` computed tokens.

    A group that is larger than the budget gets a batch of its own. Packed, the groups are sorted by their text, so that what
    shares a prefix meets; padded, by length, and a batch counts its rows times the longest.
    """
    longest = [max(map(len, group)) for group in groups]
    order = sorted(
        range(len(groups)), key=(lambda i: groups[i][0]) if packed else longest.__getitem__
    )

    def with_group(i: int, tokens: int, rows: int, before) -> int:
        if not packed:
            return (rows + len(groups[i])) * longest[i]
        return tokens + (own_tokens(groups[i], before) if share else sum(map(len, groups[i])))

    batches, tokens, rows, before = [], 0, 0, ()
    for i in order:
        more = with_group(i, tokens, rows, before)
        if not batches or more > budget:
            batches.append([])
            more, rows = with_group(i, 0, 0, ()), 0
        batches[-1].append(i)
        tokens, rows, before = more, rows + len(groups[i]), max(groups[i])
    return batches


# What a batch says of each pair beside its texts, and what a pair that says nothing means.
COLUMNS = {
    "target_margin": 0.0,
    "chosen_probability": 1.0,
    "rating_chosen": 0.0,
    "rating_rejected": 0.0,
    "subset_id": 0,
}


LABELS = [*COLUMNS, "length_difference"]  # the last in tokens


SIDES = ("chosen_ids", "rejected_ids")


class PreferenceCollator:
    """Pairs -> `micro_batches` of them, one after the other in the `order` (pairs,), indices of the pairs as given. A pair, or
    a ranking, has `weight` 1.

    A micro-batch: `texts`, the model's inputs with each different text once (packed, or padded right); `sides` (pairs, 2),
    the texts of chosen and rejected; `weight`; `example`, which of the given ones a pair belongs to; the LABELS; each
    (pairs,); `tokens`, how many the texts have. With a
    `token_budget` it has as many pairs as fit, else all. `packed` and `share` are reward.model.packed_attention's.
    """

    def __init__(
        self,
        pad_token_id: int,
        pad_to_multiple_of: int | None = None,
        table=None,
        token_budget=None,
    ):
        self.pad_token_id, self.pad_to_multiple_of, self.table = (
            pad_token_id,
            pad_to_multiple_of,
            table,
        )
        self.token_budget, self.packed, self.share = token_budget, False, True

    def pairs_of(self, example: dict) -> list[dict]:
        if "rows" not in example:
            return example.get("pairs", [example])
        columns = self.table[example["rows"]]
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]

    def __call__(self, examples: list[dict]) -> dict:
        groups = [
            [pair | {"weight": 1 / len(group), "example": i} for pair in group]
            for i, group in enumerate(map(self.pairs_of, examples))
        ]
        batches = [range(len(groups))]
        if self.token_budget:
            batches = token_batches(
                [different_texts(group) for group in groups],
                self.token_budget,
                self.packed,
                self.share,
            )
        parts = [self.micro_batch([pair for i in batch for pair in groups[i]]) for batch in batches]
        ends = np.cumsum([len(group) for group in groups])
        order = [
            pair
            for batch in batches
            for i in batch
            for pair in range(ends[i] - len(groups[i]), ends[i])
        ]
        return {"order": torch.tensor(order), "micro_batches": parts}

    def micro_batch(self, pairs: list[dict]) -> dict:
        texts = different_texts(pairs)
        place = {text: i for i, text in enumerate(texts)}
        sides = [[place[tuple(pair[side])] for side in SIDES] for pair in pairs]
        if self.packed:
            inputs = pack(texts, self.share)
        else:
            inputs = padded(texts, self.pad_token_id, self.pad_to_multiple_of)
        return {
            "texts": inputs,
            "sides": torch.tensor(sides),
            "weight": torch.tensor([pair["weight"] for pair in pairs]),
            "example": torch.tensor([pair["example"] for pair in pairs]),
            **{
                name: torch.tensor([float(p.get(name, default)) for p in pairs])
                for name, default in COLUMNS.items()
            },
            "length_difference": torch.tensor(
                [float(len(p["chosen_ids"]) - len(p["rejected_ids"])) for p in pairs]
            ),
            "tokens": sum(map(len, texts)),
        }


def different_texts(pairs: list[dict]) -> list[tuple]:
    """Token ids of all sides, each different text once: rankings repeat a completion in many pairs."""
    return list(dict.fromkeys(tuple(pair[side]) for pair in pairs for side in SIDES))
