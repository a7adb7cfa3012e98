"""Encoded splits: token ids, labels, the length limit, and the pairs of one ranking."""

import json

import pytest
from preferences import (
    LIMIT,
    LONG,
    RANKINGS,
    ROWS,
    SECRET,
    encoded,
    folder,
    long_rows,
    nectar,
    prepared,
    row,
    source,
    texts,
)
from standins import make_tokenizer

from reward.data.encoding import encode, encoder_facts, prepare_tokenizer
from reward.data.files import DataError
from reward.data.sources import LABELS
from reward.data.splits import load_preferences, load_test_split
from reward.data.tokens import (
    EncodingOptions,
    by_ranking,
    encode_splits,
    labels_of,
    row_ids,
)
from reward.data.transcripts import assistant, user

pytestmark = pytest.mark.usefixtures("arrow_cache")


def test_row_ids_are_of_the_text_alone(tmp_path):
    one = load_test_split([folder(tmp_path / "a", ROWS, [row(1, margin=2), row(2)])])[0]
    two = load_test_split([folder(tmp_path / "b", ROWS, [row(2), row(1)])])[0]
    assert row_ids(one) == row_ids(two)[::-1] and all(len(name) == 16 for name in row_ids(one))


def test_over_long_pairs_are_dropped_and_counted_by_side(tmp_path, qwen):
    """Trap: over-long pairs vanish."""
    tables, ledger = encoded(tmp_path, long_rows(), qwen, 100)
    assert texts(tables["train"]) == [("question 1", "yes", "no")]
    assert ledger.as_dict()["train"] == {
        "read": 5,
        "kept": 1,
        "by_subset": {"all": 1},
        "dropped": {
            "over-long (both sides)": 2,
            "over-long (chosen)": 1,
            "over-long (rejected)": 1,
        },
        "truncated": {},
        "added": {},
        "noted": {},
    }


def test_over_long_test_rows_are_counted_too(tmp_path, qwen):
    """Trap: evaluation shrinks unseen."""
    splits, ledger = load_preferences(
        [folder(tmp_path, [row("apart")], long_rows())], validation_fraction=0
    )
    tables = encode_splits({"test": splits["test"]}, ledger, qwen, EncodingOptions(LIMIT)).tables
    assert len(tables["test"]) == 1 and ledger.dropped("test") == 4 and ledger.read("test") == 5


def test_over_long_prompts_are_cut_and_counted(tmp_path, qwen):
    tables, ledger = encoded(tmp_path, long_rows(), qwen, LIMIT, "truncate_prompt")
    assert [prompt for prompt, *_ in texts(tables["train"])] == ["question 1", LONG]
    assert max(tables["train"]["length"]) == 100
    counts = ledger.as_dict()["train"]
    assert counts["truncated"] == {"prompt cut at the start": 1}
    assert counts["dropped"] == {
        "over-long (both sides)": 1,
        "over-long (chosen)": 1,
        "over-long (rejected)": 1,
    }


def test_over_long_pair_is_an_error(tmp_path, qwen):
    with pytest.raises(DataError) as caught:
        encoded(tmp_path, long_rows(), qwen, LIMIT, "error")
    assert str(caught.value) == (
        f"{tmp_path}/train.jsonl:2: 484 tokens, max_length is 100. Raise max_length, or set "
        "overlong: drop (counted) or overlong: truncate_prompt."
    )


def test_identical_once_encoded(tmp_path):
    """Trap: chosen == rejected once encoded; Llama's template trims what the user wrote."""
    _, ledger = encoded(tmp_path, [row(1), row(2, "a", " a\n")], prepared("llama3"))
    assert ledger.as_dict()["train"]["dropped"] == {"identical sides once encoded": 1}


def test_encoded_columns(tmp_path, qwen):
    rows = [row(1, margin=1.5, subset="b"), row(2, subset="a")]
    splits, ledger = load_preferences([folder(tmp_path, rows)], validation_fraction=0)
    encoded_splits = encode_splits(splits, ledger, qwen, EncodingOptions(LIMIT))
    subsets, table = encoded_splits.subsets, encoded_splits.tables["train"]
    assert subsets == ["all", "a", "b"]  # the test split first
    assert table["subset_id"][:] == [2, 1] and table["target_margin"][:] == [1.5, 0.0]
    assert table["chosen_probability"][:] == [1.0, 1.0] and "margin" not in table.column_names
    assert table["chosen_ids"][0] == encode(qwen, user("question 1"), assistant("yes"))
    assert table["rejected_ids"][1] == encode(qwen, user("question 2"), assistant("no"))
    assert table["length"][0] == max(len(table["chosen_ids"][0]), len(table["rejected_ids"][0]))


def test_another_tokenizer_encodes_anew(tmp_path):
    """Two tokenizers differ in one merge only.

    Their templates, special tokens, sizes and the probe of the manifest are the same.
    """
    one, other = prepared("qwen"), prepared("qwen")
    state = json.loads(one.backend_tokenizer.to_str())
    long_merges = [merge for merge in state["model"]["merges"] if len("".join(merge)) > 5]
    merge = long_merges[-1]  # no word of the probe
    state["model"]["merges"].remove(merge)
    answer = "so" + "".join(merge).replace("Ġ", " ")
    other.backend_tokenizer.model = type(one.backend_tokenizer).from_str(json.dumps(state)).model
    assert encoder_facts(one) == encoder_facts(other)
    data = folder(tmp_path, [row(1, answer)])
    ids = []
    for tokenizer in (one, other):
        splits, ledger = load_preferences([data], validation_fraction=0)
        ids.append(
            encode_splits(splits, ledger, tokenizer, EncodingOptions()).tables["train"][
                "chosen_ids"
            ][0]
        )
    assert ids[0] != ids[1] and ids[1] == encode(other, user("question 1"), assistant(answer))


def without_system_role():
    """A tokenizer whose template refuses a system message, as Gemma's does."""
    tokenizer = make_tokenizer("qwen")
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}" + tokenizer.chat_template
    )
    prepare_tokenizer(tokenizer, False)
    return tokenizer


WITH_SYSTEM = {
    "prompt": [{"role": "system", "content": SECRET}, *user("p")],
    "chosen": "a",
    "rejected": "b",
}


@pytest.mark.parametrize("streaming", [False, True])
def test_conversation_that_the_template_refuses_is_named(tmp_path, streaming):
    data = folder(tmp_path, [row(1), WITH_SYSTEM], streaming=streaming)
    splits, ledger = load_preferences([data], validation_fraction=0)
    options = EncodingOptions(on_bad_row="stop")
    with pytest.raises(DataError) as caught:
        list(encode_splits(splits, ledger, without_system_role(), options).tables["train"])
    assert str(caught.value) == (
        f"{tmp_path}/train.jsonl:2: the chat template refuses this conversation: "
        "System role not supported"
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_conversations_that_the_template_refuses_are_dropped_and_counted(tmp_path, streaming):
    """The first row is refused: the types of the columns must not depend on it."""
    other = {**WITH_SYSTEM, "chosen": "c"}
    data = folder(tmp_path, [WITH_SYSTEM, row(1), other], streaming=streaming)
    splits, ledger = load_preferences([data], validation_fraction=0)
    tables = encode_splits(splits, ledger, without_system_role(), EncodingOptions()).tables
    assert len(list(tables["train"])) == 1
    assert ledger.as_dict()["train"]["dropped"] == {
        "refused by the chat template: System role not supported": 2
    }


# expected: target margin, chosen probability, rating of chosen and of rejected
@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({}, {}, (0.0, 1.0, 0.0, 0.0)),
        ({}, {"soft_labels": False}, (0.0, 1.0, 0.0, 0.0)),
        ({"chosen_probability": 0.75}, {}, (0.0, 0.75, 0.0, 0.0)),
        ({"chosen_probability": 0.75}, {"soft_labels": False}, (0.0, 1.0, 0.0, 0.0)),
        ({"chosen_probability": 0.25}, {}, (0.0, 0.25, 0.0, 0.0)),
        ({"chosen_probability": 0.25}, {"soft_labels": False}, (0.0, 0.0, 0.0, 0.0)),
        ({"chosen_probability": 0.0}, {}, (0.0, 0.0, 0.0, 0.0)),
        ({"chosen_probability": 0.5}, {}, (0.0, 0.5, 0.0, 0.0)),
        ({"chosen_probability": 0.5}, {"soft_labels": False}, (0.0, 0.5, 0.0, 0.0)),
        ({"target_margin": 1.5}, {}, (1.5, 1.0, 0.0, 0.0)),
        ({"strength": 2}, {}, (2, 1.0, 0.0, 0.0)),
        (
            {"strength": 2, "target_margin": 0.0},
            {},
            (0.0, 1.0, 0.0, 0.0),
        ),  # a given margin before the strength
        ({"strength": 1.5}, {"strength_as": "chosen_probability"}, (0.0, 0.75, 0.0, 0.0)),
        ({"strength": 3}, {"strength_as": "chosen_probability"}, (0.0, 1.0, 0.0, 0.0)),
        (
            {"strength": 1.5},
            {"strength_as": "chosen_probability", "soft_labels": False},
            (0.0, 1.0, 0.0, 0.0),
        ),
        ({"strength": 0, "chosen_probability": 0.5}, {}, (0.0, 0.5, 0.0, 0.0)),
        (
            {"strength": 0, "chosen_probability": 0.5},
            {"strength_as": "chosen_probability"},
            (0.0, 0.5, 0.0, 0.0),
        ),
        (
            {"rating_chosen": 4.0, "rating_rejected": 0.0},
            {"loss_type": "rating_mse", "needs_ratings": True},
            (0.0, 1.0, 4.0, 0.0),
        ),
    ],
)
def test_labels_are_numbers(columns, options, expected):
    labels = labels_of(
        {"where": "a.jsonl:7", **dict.fromkeys(LABELS), **columns}, EncodingOptions(**options)
    )
    assert labels == dict(
        zip(
            ("target_margin", "chosen_probability", "rating_chosen", "rating_rejected"),
            expected,
            strict=True,
        )
    )


RATED = [
    {"prompt": "votes", "response_a": "a", "response_b": "b", "votes": [1, 3]},
    {"prompt": "strength", "response_1": "a", "response_2": "b", "preference_strength": -3},
    {"prompt": "ratings", "chosen": "a", "rejected": "b", "rating_chosen": 4, "rating_rejected": 1},
    {"prompt": "tie", "response_a": "a", "response_b": "b", "label": "tie"},
    {"prompt": "plain", "chosen": "a", "rejected": "b"},
]


def test_labels_reach_the_encoded_table_and_follow_the_options(tmp_path, qwen):
    """The table is cached; other options must not be answered with it."""
    splits, ledger = load_preferences([folder(tmp_path, RATED)], validation_fraction=0)
    labels = {}
    for soft_labels, strength_as in (
        (True, "target_margin"),
        (False, "target_margin"),
        (True, "chosen_probability"),
    ):
        options = {"soft_labels": soft_labels, "strength_as": strength_as}
        table = encode_splits(splits, ledger, qwen, EncodingOptions(**options)).tables["train"]
        labels[soft_labels, strength_as] = (
            table["chosen_probability"][:],
            table["target_margin"][:],
        )
        assert table["rating_chosen"][:] == [0, 0, 4, 0, 0] and table["rating_rejected"][:] == [
            0,
            0,
            1,
            0,
            0,
        ]
    assert labels == {
        (True, "target_margin"): ([0.75, 1, 1, 0.5, 1], [0, 3, 0, 0, 0]),
        (False, "target_margin"): ([1, 1, 1, 0.5, 1], [0, 3, 0, 0, 0]),
        (True, "chosen_probability"): ([0.75, 1, 1, 0.5, 1], [0, 0, 0, 0, 0]),
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_regression_on_ratings_names_the_first_row_without_them(tmp_path, qwen, streaming):
    rated = row("rated", rating_chosen=2, rating_rejected=1)
    data = folder(tmp_path, [rated, row(2, SECRET, score_chosen=3)], [rated], streaming=streaming)
    splits, ledger = load_preferences([data], validation_fraction=0)
    with pytest.raises(DataError) as caught:
        list(
            encode_splits(
                splits, ledger, qwen, EncodingOptions(loss_type="rating_mse", needs_ratings=True)
            ).tables["train"]
        )
    assert str(caught.value) == (
        f"{tmp_path}/train.jsonl:2: no ratings, which loss_type: rating_mse regresses on; needed "
        "are numbers in the columns rating_chosen and rating_rejected (or score_chosen and "
        "score_rejected, or helpfulness). For pairs without ratings: loss_type: bradley_terry, or "
        "mse"
    )


def test_a_test_split_needs_no_ratings(tmp_path, qwen):
    """Nobody computes a loss on the test split."""
    data = folder(tmp_path, [row(1, rating_chosen=2, rating_rejected=1)], [row("plain")])
    splits, ledger = load_preferences([data], validation_fraction=0)
    encoded = encode_splits(
        splits, ledger, qwen, EncodingOptions(loss_type="rating_mse", needs_ratings=True)
    ).tables
    assert len(encoded["test"]) == 1


def test_the_pairs_of_a_ranking_form_one_group_in_the_order_of_the_table(tmp_path, qwen):
    table = encoded(tmp_path, RANKINGS, qwen)[0]["train"]
    groups = by_ranking(table)
    assert groups["rows"][:] == [[0, 1, 2, 3, 4, 5], [6], [7, 8, 9], [10], [11]]
    assert texts(table)[:6] == [
        ("question 1", *sides) for sides in ("ab", "ac", "ad", "bc", "bd", "cd")
    ]
    lengths = table["length"][:]
    assert groups["length"][:] == [
        lengths[0],
        lengths[6],
        max(lengths[7:10]),
        lengths[10],
        lengths[11],
    ]
    assert lengths[7] < lengths[8]  # "c water" stands in the second pair and the third


def test_a_ranking_is_smaller_by_the_pairs_that_are_dropped(tmp_path, qwen):
    train = [
        nectar(1, "a", LONG, "c", "d"),
        nectar(1, "a", "c", "e"),
        nectar(1, "d", "a"),
        nectar(1, "a", "c", "d"),
    ]
    tables, ledger = encoded(tmp_path, train, qwen, LIMIT)
    assert texts(tables["train"]) == [
        ("question 1", *sides) for sides in ("ac", "ad", "cd", "ae", "ce", "da")
    ]
    assert by_ranking(tables["train"])["rows"][:] == [[0, 1, 2], [3, 4], [5]]
    assert ledger.as_dict()["train"]["dropped"] == {
        "exact duplicate": 4,
        "over-long (chosen)": 2,
        "over-long (rejected)": 1,
    }


def test_rated_completions_of_one_prompt_form_one_group(tmp_path, qwen):
    rows = [
        {"prompt": p, "response": f"{p} {h}", "helpfulness": h} for p in "pq" for h in (1, 3, 2)
    ]
    table = encoded(tmp_path, rows, qwen)[0]["train"]
    assert by_ranking(table)["rows"][:] == [[0, 1, 2], [3, 4, 5]]


def test_a_mismatched_pair_is_a_group_of_its_own(tmp_path, qwen):
    data = folder(tmp_path, [nectar(1, "a", "b", "c"), nectar(2, "d", "e", "f")])
    splits, ledger = load_preferences([data], validation_fraction=0, mismatched_prompts=0.5)
    table = encode_splits(splits, ledger, qwen, EncodingOptions()).tables["train"]
    assert by_ranking(table)["rows"][:][:2] == [[0, 1, 2], [3, 4, 5]]
    assert all(len(group) == 1 for group in by_ranking(table)["rows"][:][2:]) and len(table) > 6


def test_real_hh_file_encoded(hh_real, qwen):
    splits, ledger = load_preferences([source(hh_real)], validation_fraction=0.1, test_fraction=0.2)
    tables = encode_splits({"test": splits["test"]}, ledger, qwen, EncodingOptions(1024)).tables
    assert ledger.as_dict()["test"]["dropped"] == {
        "over-long (both sides)": 39,
        "over-long (chosen)": 12,
        "over-long (rejected)": 7,
        "prompts differ": 1,
    }
    assert len(tables["test"]) == 532 - 59 and max(tables["test"]["length"]) <= 1024
