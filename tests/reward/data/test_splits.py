"""Splits: no first user turn is in two of them, and every dropped pair is counted by reason."""

import random
from collections import Counter

import pytest
from preferences import (
    AGAINST,
    NO_RIGHT_SIDE,
    NOT_SURE,
    TEST,
    fault,
    folder,
    row,
    source,
    texts,
    tie,
    turns,
)
from support import write_rows
from trl import DatasetMixtureConfig, get_dataset
from trl.scripts.utils import DatasetConfig

from reward.data.ledger import TIE
from reward.data.splits import load_preferences, load_test_split
from reward.data.tokens import (
    EncodingOptions,
    encode_splits,
    row_ids,
)
from reward.data.transcripts import assistant, user

pytestmark = pytest.mark.usefixtures("arrow_cache")


def test_mixture_takes_the_rows_that_trl_takes(tmp_path):
    sizes, fractions = (30, 17, 9), (0.5, 0.2, 0.3)
    files = [
        write_rows(tmp_path / f"{n}.jsonl", [row(f"{n}/{i}") for i in range(size)])
        for n, size in enumerate(sizes)
    ]
    test = str(write_rows(tmp_path / "held-out.jsonl", TEST))
    ours = [
        source(file, fraction=fraction, subset=name, test_split=test)
        for file, fraction, name in zip(files, fractions, "abc", strict=True)
    ]
    splits, ledger = load_preferences(ours, validation_fraction=0)
    theirs = get_dataset(
        DatasetMixtureConfig(
            [
                DatasetConfig(path="json", data_files=str(file), fraction=fraction)
                for file, fraction in zip(files, fractions, strict=True)
            ]
        )
    )
    assert [prompt for prompt, *_ in texts(splits["train"])] == theirs["train"]["prompt"][:]
    assert Counter(splits["train"]["subset"]) == {"a": 15, "b": 6, "c": 9}
    assert ledger.read("train") == 30
    ours[1]["fraction"] = None
    assert fault(ours).startswith("`fraction` is set for some entries")


def test_splits_are_disjoint_by_first_user_turn(tmp_path):
    """Case, spaces and later turns don't matter; 3 rows share each first turn."""
    rows = []
    for index in range(200):
        question = f"question {index}"
        more = user(question) + assistant("x") + user("go on")
        rows += [row(index, "a", "b"), row(index, "c", "d") | {"prompt": f" Question  {index}"}]
        rows.append({"prompt": more, "chosen": assistant("e"), "rejected": assistant("f")})
    path = write_rows(tmp_path / "a.jsonl", rows)
    splits, ledger = load_preferences([source(path)], validation_fraction=0.2, test_fraction=0.25)
    turns_by_split = {name: turns(table) for name, table in splits.items()}
    assert {name: len(turn) for name, turn in turns_by_split.items()} == {
        "train": 118,
        "validation": 35,
        "test": 47,
    }
    assert len(set.union(*turns_by_split.values())) == 200
    assert {name: len(table) for name, table in splits.items()} == {
        "train": 354,
        "validation": 105,
        "test": 141,
    }
    assert [ledger.dropped(name) for name in splits] == [0, 0, 0]


@pytest.mark.parametrize("transcript", ["auto", "raw"])
@pytest.mark.parametrize(
    "form",
    [
        "\n\nHuman: {0}\n\nAssistant: Hello\n\nHuman: {1}\n\nAssistant:",
        "User: {0}\nAssistant: Hello\nUser: {1}\nAssistant:",
        "<|im_start|>user\n{0}<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\n{1}<|im_end|>\n<|im_start|>assistant\n",
    ],
)
def test_conversations_that_begin_alike_are_in_one_split(form, transcript, tmp_path):
    """Also where transcripts are kept as texts."""
    rows = []
    for first in range(40):
        for second in range(4):
            prompt = form.format(f"question {first}", f"and {second}?")
            rows.append({"prompt": prompt, "chosen": " yes", "rejected": " no"})
    path = write_rows(tmp_path / "a.jsonl", rows)
    splits, _ = load_preferences([source(path)], transcript=transcript, test_fraction=0.25)
    assert sum(map(len, splits.values())) == 160
    assert [len(table) % 4 for table in splits.values()] == [0] * len(splits)
    keys = [set(table["turn_key"]) for table in splits.values()]
    assert sum(map(len, keys)) == 40


def test_validation_does_not_depend_on_order_or_other_rows(tmp_path):
    rows = [row(index) for index in range(300)]
    shuffled = random.Random(1).sample(rows, 300)
    held = []
    for name, these in (
        ("all", rows),
        ("shuffled", shuffled),
        ("fewer", rows[:150]),
        ("more", rows + [row("new")]),
    ):
        splits, _ = load_preferences([folder(tmp_path / name, these)], validation_fraction=0.1)
        held.append(turns(splits["validation"]))
    assert held[0] == held[1] and held[2] == {
        turn for turn in held[0] if int(turn.split()[1]) < 150
    }
    assert held[0] - {"question new"} == held[3] - {"question new"} and 20 <= len(held[0]) <= 40


def test_test_fraction_is_a_share_of_first_turns_and_the_same_each_time(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [row(index) for index in range(1000)])
    splits, _ = load_preferences([source(path)], validation_fraction=0, test_fraction=0.2)
    again, ledger = load_test_split([source(path)], test_fraction=0.2)
    assert row_ids(splits["test"]) == row_ids(again) and ledger.read("test") == len(again)
    assert 160 <= len(again) <= 240 and len(splits["train"]) == 1000 - len(again)


def test_test_fraction_leaves_a_test_split_alone(tmp_path):
    data = folder(tmp_path, [row(number) for number in range(50)])
    splits, _ = load_preferences([data], validation_fraction=0, test_fraction=0.2)
    assert len(splits["train"]) == 50 and texts(splits["test"]) == [("held out", "yes", "no")]


def test_train_rows_shared_with_test_are_dropped_and_counted(tmp_path):
    train = [row(1), {"prompt": "HELD  out", "chosen": "a", "rejected": "b"}, row(2)]
    splits, ledger = load_preferences([folder(tmp_path, train)], validation_fraction=0)
    assert texts(splits["train"]) == [("question 1", "yes", "no"), ("question 2", "yes", "no")]
    assert ledger.as_dict()["train"]["dropped"] == {"first user turn shared with test": 1}


def test_the_same_texts_with_other_tools_are_another_pair(tmp_path):
    tools = [[{"type": "function", "function": {"name": name}}] for name in ("weather", "add")]
    rows = [row(0, "a", "b") | {"tools": one} for one in (*tools, tools[0])]
    path = write_rows(tmp_path / "a.jsonl", rows)
    splits, ledger = load_preferences([source(path)], test_fraction=0.01)
    kept = sum(map(len, splits.values()))
    assert kept == 2 and sum(ledger.dropped(name) for name in splits) == 1


def test_one_source_of_a_mixture_may_not_train_on_anothers_test(tmp_path):
    """The first source's test split is carved from it. The second source trains on its rows."""
    rows = [row(index) for index in range(100)]
    carved = source(write_rows(tmp_path / "a.jsonl", rows))
    whole = folder(tmp_path / "b", [{**r, "chosen": "other"} for r in rows])
    splits, ledger = load_preferences([carved, whole], validation_fraction=0.1, test_fraction=0.3)
    assert not turns(splits["test"]) & (turns(splits["train"]) | turns(splits["validation"]))
    reason = "first user turn shared with test"
    dropped = sum(
        ledger.as_dict()[name]["dropped"].get(reason, 0) for name in ("train", "validation")
    )
    assert dropped == ledger.read("test") - 1  # that 1 is the second source's own test row


def test_exact_duplicates_are_dropped_and_contradictions_noted(tmp_path):
    train = [row(1), row(2), row(1), row(1, "no", "yes"), row(1, margin=2), row(3)]
    test = [*TEST, *TEST, row(4)]
    splits, ledger = load_preferences([folder(tmp_path, train, test)], validation_fraction=0)
    assert texts(splits["train"]) == [
        ("question 1", "yes", "no"),
        ("question 2", "yes", "no"),
        ("question 1", "no", "yes"),
        ("question 3", "yes", "no"),
    ]
    counts = ledger.as_dict()
    assert counts["train"]["dropped"] == {"exact duplicate": 2}
    assert counts["train"]["noted"] == {
        "contradictory labels (the same pair the other way round)": 2
    }
    assert counts["test"] == {
        "read": 3,
        "kept": 3,
        "by_subset": {},
        "dropped": {},
        "truncated": {},
        "added": {},
        "noted": {"exact duplicate (kept)": 1},
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_ties_are_kept_in_train_and_dropped_where_accuracy_is_measured(tmp_path, qwen, streaming):
    """A hash of the first user turn puts 38 of 100 rows into validation, 5 of them ties."""
    train = [tie(n) if n % 4 == 0 else row(n) for n in range(100)]
    data = folder(tmp_path, train, [*TEST, tie("held out")], streaming=streaming)
    splits, ledger = load_preferences([data], validation_fraction=0.3)
    tables = encode_splits(splits, ledger, qwen, EncodingOptions()).tables
    rows = [pair for r in tables["train"] for pair in r.get("pairs", [r])]
    counts = ledger.as_dict()
    assert {
        name: (c["read"], c["kept"], c["dropped"], c["noted"]) for name, c in counts.items()
    } == {
        "test": (2, 1, {NO_RIGHT_SIDE: 1}, {}),
        "validation": (38, 33, {NO_RIGHT_SIDE: 5}, {}),
        "train": (62, 62, {}, {NOT_SURE: 20}),
    }
    assert Counter(r["chosen_probability"] for r in rows) == {1.0: 42, 0.5: 20}
    assert set(tables["validation"]["chosen_probability"]) == {1.0}


def test_votes_against_the_chosen_side_are_noted_in_every_split(tmp_path):
    train = [row(n, votes=[1, 3] if n % 2 else [3, 1]) for n in range(40)]
    test = [*TEST, {**row("z"), "chosen_probability": 0.4}]
    splits, ledger = load_preferences([folder(tmp_path, train, test)], validation_fraction=0.25)
    counts = ledger.as_dict()
    assert counts["train"]["noted"][AGAINST] + counts["validation"]["noted"][AGAINST] == 20
    assert (
        counts["validation"]["noted"][AGAINST]
        == list(splits["validation"]["chosen_probability"]).count(0.25)
        > 0
    )
    assert counts["test"]["noted"] == {AGAINST: 1}


@pytest.mark.parametrize("streaming", [False, True])
def test_ratings_against_the_chosen_side_are_noted(tmp_path, streaming):
    """Nothing said that score_chosen and score_rejected contradict the sides."""
    train = [row(n, score_chosen=n, score_rejected=2) for n in range(4)]
    test = [row("z", rating_chosen=1, rating_rejected=1.5)]
    data = folder(tmp_path, train, test, streaming=streaming)
    splits, ledger = load_preferences([data], validation_fraction=0)
    assert len(list(splits["train"])) == 4
    noted = {name: counts["noted"] for name, counts in ledger.as_dict().items()}
    against = "ratings against the chosen side"
    assert noted["train"] == {against: 2, TIE: 1} and noted["test"] == {against: 1}


AGREE = [[3, 1], [1, 3], [2, 1], [7, 3], [1, 1], [1, 0]]  # .75, .75 (against), .67, .7, .5, 1


@pytest.mark.parametrize("streaming", [False, True])
def test_rater_agreement_filters_train_alone(tmp_path, qwen, streaming):
    train = [row(n, votes=votes) for n, votes in enumerate(AGREE)] + [row("unrated")]
    data = folder(tmp_path, train, [row("held out", votes=[2, 1])], streaming=streaming)
    splits, ledger = load_preferences([data], validation_fraction=0, min_rater_agreement=0.7)
    rows = encode_splits(splits, ledger, qwen, EncodingOptions()).tables["train"]
    kept = [pair["chosen_probability"] for r in rows for pair in r.get("pairs", [r])]
    assert kept == [0.75, 0.25, 0.7, 1.0, 1.0]
    counts = ledger.as_dict()
    assert counts["train"]["dropped"] == {"raters agree less than 0.7": 2} and counts["train"][
        "noted"
    ] == {AGAINST: 1}
    assert counts["test"]["dropped"] == {} and ledger.read("test") == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_rater_agreement_leaves_validation_alone(tmp_path, streaming):
    train = [row(n, votes=[2, 1]) for n in range(40)] + [
        row(n, votes=[4, 0]) for n in range(40, 60)
    ]
    data = folder(tmp_path, train, streaming=streaming)
    plain, _ = load_preferences([data], validation_fraction=0.3)
    filtered, ledger = load_preferences([data], validation_fraction=0.3, min_rater_agreement=0.7)
    assert (
        row_ids(plain["validation"]) == row_ids(filtered["validation"])
        and ledger.dropped("validation") == 0
    )
    assert 2 / 3 in filtered["validation"]["chosen_probability"][:]


def test_rater_agreement_without_raters_is_an_error(tmp_path):
    message = fault([folder(tmp_path, [row(1), row(2)])], min_rater_agreement=0.7)
    assert message.startswith(
        "min_rater_agreement is set, but no row of the train data has votes or chosen_probability;"
    )
    assert (
        "remove the key, or add a column `votes` ([for chosen, for rejected]) to the rows"
        in message
    )


@pytest.mark.parametrize("transcript", ["messages", "raw"])
def test_real_hh_file(hh_real, transcript):
    """Traps: in HH-RLHF the prompts of the two sides differ in 5 of 2,312 rows.

    4 completions are empty, and first user turns repeat.
    """
    splits, ledger = load_preferences(
        [source(hh_real)], transcript, validation_fraction=0.1, test_fraction=0.2
    )
    counts = ledger.as_dict()
    assert {name: (c["read"], c["kept"], c["dropped"]) for name, c in counts.items()} == {
        "test": (532, 531, {"prompts differ": 1}),
        "train": (1614, 1608, {"prompts differ": 3, "empty completion (chosen)": 3}),
        "validation": (166, 164, {"prompts differ": 1, "empty completion (chosen)": 1}),
    }
    assert 532 + 1614 + 166 == 2312 and not any(c["noted"] for c in counts.values())
    turns_by_split = {name: turns(table) for name, table in splits.items()}
    assert not turns_by_split["test"] & turns_by_split["train"] and not turns_by_split[
        "validation"
    ] & (turns_by_split["train"] | turns_by_split["test"])
