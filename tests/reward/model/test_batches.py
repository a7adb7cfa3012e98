"""Texts packed and padded into inputs, batches of a token budget, and pairs collated."""

import pytest
from packed_models import (
    random_tree,
)

from reward.model.batches import (
    PreferenceCollator,
    own_tokens,
    pack,
    padded,
    shared_prefix,
    token_batches,
)

# --- Packed texts ---------------------------------------------------------------------------------


def test_layout():
    """Sorted: [5, 6], [5, 6, 7], [5, 8, 9]; a text that equals the one before brings nothing."""
    packed = pack([[5, 8, 9], [5, 6], [5, 6, 7], [5, 6]])
    assert packed["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 1, 2]]
    layout = packed["packing"]
    assert layout["queries"] == [2, 1, 2] and layout["lengths"] == [2, 3, 3]
    assert layout["kv_index"].tolist() == [0, 1, 0, 1, 2, 0, 3, 4]
    assert layout["cumulative"].tolist() == [[0, 2, 3, 5], [0, 2, 5, 8]]
    assert layout["read"].tolist() == [4, 1, 2, 1]


def test_layout_without_sharing():
    packed = pack([[5, 8, 9], [5, 6], [5, 6]], share_prefixes=False)
    assert packed["input_ids"].tolist() == [[5, 8, 9, 5, 6, 5, 6]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert packed["packing"]["kv_index"] is None  # keys lie where the queries do
    assert packed["packing"]["read"].tolist() == [2, 4, 6]


@pytest.mark.parametrize("seed", range(20))
def test_each_different_prefix_is_computed_once(seed):
    texts = random_tree(seed)
    prefixes = {tuple(text[:n]) for text in texts for n in range(1, len(text) + 1)}
    assert pack(texts)["input_ids"].shape[1] == own_tokens(texts) == len(prefixes)


def test_shared_prefix():
    assert shared_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert shared_prefix([1, 2], [1, 2, 4]) == 2
    assert shared_prefix([], [1]) == shared_prefix([2], [1]) == 0


# --- A token budget -------------------------------------------------------------------------------


def test_token_batches():
    groups = [[[1, 2, 3]], [[1, 2, 4]], [[9] * 6], [[1, 2, 3, 5]]]
    # 3 + 1 + 1 tokens; 6 are more than 5, and come alone
    assert token_batches(groups, 5, packed=True) == [[0, 3, 1], [2]]
    assert token_batches(groups, 4, packed=True) == [[0, 3], [1], [2]]
    # 2 x 3, 1 x 4, 1 x 6
    assert token_batches(groups, 6, packed=False) == [[0, 1], [3], [2]]
    assert token_batches(groups, 100, packed=False) == [[0, 1, 3, 2]]
    # Packed and not shared: 3 + 4, 3 + 6
    assert token_batches(groups, 9, packed=True, share_prefixes=False) == [[0, 3], [1, 2]]


def test_a_ranking_counts_each_completion_once_in_a_budget():
    texts = [[10 + i] * 5 for i in range(4)]
    ranking = [
        {"chosen_ids": texts[i], "rejected_ids": texts[j]}
        for i in range(4)
        for j in range(i + 1, 4)
    ]
    for packed in (True, False):
        collator = PreferenceCollator(pad_token_id=0, token_budget=40)
        collator.packed = packed
        assert [
            len(part["weight"]) for part in collator([{"pairs": ranking}] * 2)["micro_batches"]
        ] == [12]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_token_batches_hold_every_group_once_within_the_budget(seed, packed):
    texts = random_tree(seed, prompts=8)
    groups = [texts[i : i + 2] for i in range(0, len(texts), 2)]
    batches = token_batches(groups, 200, packed)
    assert sorted(i for batch in batches for i in batch) == list(range(len(groups)))
    for batch in batches:
        inside = [text for i in batch for text in groups[i]]
        tokens = pack(inside) if packed else padded(inside, 0)
        assert tokens["input_ids"].numel() <= 200 or len(batch) == 1


# --- The collator ---------------------------------------------------------------------------------


def test_collator_packs_pairs():
    collator = PreferenceCollator(pad_token_id=0)
    collator.packed = True
    (part,) = collator([{"chosen_ids": [5, 6, 7], "rejected_ids": [5, 6, 8]}])["micro_batches"]
    assert part["texts"]["input_ids"].tolist() == [[5, 6, 7, 8]]
    assert part["sides"].tolist() == [[0, 1]] and part["tokens"] == 6
