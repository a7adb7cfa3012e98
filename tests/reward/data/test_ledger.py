"""The ledger: every pair is kept or dropped, and a split that lost too much is refused."""

import json
import random

import pytest
from preferences import (
    ADDED,
    LIMIT,
    LONG,
    NO_RIGHT_SIDE,
    TEST,
    answers,
    encoded,
    folder,
    long_rows,
    row,
    source,
    tie,
)
from support import write_rows

from reward.data.files import DataError
from reward.data.ledger import Ledger
from reward.data.splits import load_preferences
from reward.data.tokens import (
    EncodingOptions,
    encode_splits,
)
from reward.data.transcripts import assistant, user

pytestmark = pytest.mark.usefixtures("arrow_cache")


def test_the_ledger_in_words_and_numbers(tmp_path, qwen):
    train = [
        row(1, subset="facts"),
        row(1, subset="facts"),
        row(2, "no", "yes"),
        row(2),
        row(3, "", "no"),
        row(4, "no", "no"),
        {"chosen": user("p") + assistant("a"), "rejected": user("q") + assistant("b")},
        TEST[0],
        row(5, chosen=LONG),
        {"prompt": f"{LONG} tea?", "chosen": "a", "rejected": "b"},
        {"prompt": "x", "response_a": "a", "response_b": "b", "label": "tie"},
    ]
    tables, ledger = encoded(tmp_path, train, qwen, LIMIT, "truncate_prompt")
    assert str(ledger) == (
        "                 read     kept  dropped\n"
        "test                1        1        0\n"
        "train              11        5        6\n"
        "              dropped         1  empty completion (chosen)\n"
        "              dropped         1  exact duplicate\n"
        "              dropped         1  first user turn shared with test\n"
        "              dropped         1  identical sides\n"
        "              dropped         1  over-long (chosen)\n"
        "              dropped         1  prompts differ\n"
        "              truncated       1  prompt cut at the start\n"
        "              noted           2  contradictory labels (the same pair the other way "
        "round)\n              noted           1  tie (chosen_probability .5)\n"
        "              all 4, facts 1"
    )
    assert ledger.as_dict() == {
        "test": {
            "read": 1,
            "kept": 1,
            "by_subset": {"all": 1},
            "dropped": {},
            "truncated": {},
            "added": {},
            "noted": {},
        },
        "train": {
            "read": 11,
            "kept": 5,
            "by_subset": {"all": 4, "facts": 1},
            "dropped": {
                "empty completion (chosen)": 1,
                "exact duplicate": 1,
                "first user turn shared with test": 1,
                "identical sides": 1,
                "over-long (chosen)": 1,
                "prompts differ": 1,
            },
            "truncated": {"prompt cut at the start": 1},
            "added": {},
            "noted": {
                "contradictory labels (the same pair the other way round)": 2,
                "tie (chosen_probability .5)": 1,
            },
        },
    }
    assert (
        len(tables["train"]) == 5 and json.loads(json.dumps(ledger.as_dict())) == ledger.as_dict()
    )


@pytest.mark.parametrize("seed", range(6))
def test_read_and_added_are_kept_or_dropped(tmp_path, qwen, seed):
    """Random small files: nothing is lost between a source and the encoded splits."""
    rng = random.Random(seed)

    def any_row():
        answers = [rng.choice(["yes", "no", "", LONG, "tea", "yes"]) for _ in range(2)]
        n = rng.randrange(25)
        kind = rng.randrange(4)
        if kind == 0:
            return {
                "prompt": f"q {n}",
                "response_a": answers[0],
                "response_b": answers[1],
                "votes": [rng.randrange(3), 1],
            }
        if kind == 1:
            return {
                "chosen": f"\n\nHuman: q {n}\n\nAssistant: {answers[0]}",
                "rejected": "\n\nHuman: q 1\n\nAssistant: b",
            }
        return {
            "prompt": rng.choice([f"q {n}", LONG]),
            "chosen": answers[0],
            "rejected": answers[1],
            "subset": f"s{n % 3}",
        }

    rows = [any_row() for _ in range(120)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    filters = {
        "min_rater_agreement": rng.choice([None, 0.6]),
        "mismatched_prompts": rng.choice([0.0, 0.5, 1.0]),
    }
    splits, ledger = load_preferences(
        [source(path)], validation_fraction=0.2, test_fraction=0.2, **filters
    )
    tables = encode_splits(
        splits, ledger, qwen, EncodingOptions(90, rng.choice(["drop", "truncate_prompt"]))
    ).tables
    counts_by_split = ledger.as_dict()
    assert (
        set(counts_by_split) == {"train", "validation", "test"}
        and sum(counts["read"] for counts in counts_by_split.values()) == 120
    )
    for name, counts in counts_by_split.items():
        assert counts["read"] + sum(counts["added"].values()) == counts["kept"] + sum(
            counts["dropped"].values()
        )
        assert counts["kept"] == len(tables[name]) == sum(counts["by_subset"].values())


def test_max_dropped(tmp_path, qwen):
    _, ledger = encoded(tmp_path, long_rows(), qwen, 100)
    ledger.check(0.8)
    with pytest.raises(DataError) as caught:
        ledger.check(0.79)
    assert str(caught.value).startswith(
        "80.0% of the train pairs were dropped; max_dropped allows 79.0%.\n"
    )
    assert str(caught.value).endswith(
        "If that is what you want, set max_dropped: 0.80."
    ) and "over-long" in str(caught.value)


def test_max_dropped_is_advised_for_the_split_that_lost_most(tmp_path):
    """The first split that lost too much is named, and one change of the recipe is enough."""
    equal = [row(f"train {n}", "same", "same") if n < 4 else row(f"train {n}") for n in range(10)]
    test = [row(f"test {n}", "same", "same") if n < 3 else row(f"test {n}") for n in range(10)]
    _, ledger = load_preferences([folder(tmp_path, equal, test)], validation_fraction=0)
    with pytest.raises(DataError) as caught:
        ledger.check(0.1)
    assert str(caught.value).startswith("30.0% of the test pairs were dropped")
    assert str(caught.value).endswith("set max_dropped: 0.40.")
    ledger.check(0.4)


def test_a_split_without_a_usable_row_is_no_matter_of_fractions(tmp_path):
    same = [row(n, "same", "same") for n in range(30)]
    _, ledger = load_preferences([folder(tmp_path, same)], validation_fraction=0)
    with pytest.raises(DataError) as caught:
        ledger.check(1.0)
    assert str(caught.value).endswith("None of its rows can be used, for the reasons above.")


def test_an_empty_split_is_an_error(tmp_path, qwen):
    _, ledger = encoded(tmp_path / "a", [row(1, LONG), row(2, LONG)], qwen, LIMIT)
    with pytest.raises(DataError, match="^no pair of the train split is left.\n"):
        ledger.check(1.0)
    splits, ledger = load_preferences([folder(tmp_path / "b", [row(1)])], validation_fraction=0.01)
    with pytest.raises(DataError, match="^no pair of the validation split is left.\n"):
        encode_splits(splits, ledger, qwen, EncodingOptions(LIMIT))
    splits, ledger = load_preferences(
        [folder(tmp_path / "c", [row(1, "", "")])], validation_fraction=0
    )
    with pytest.raises(
        DataError, match="^no pair of the train split is left.\n(.*\n)+ .*1  empty completion"
    ):
        encode_splits(splits, ledger, qwen, EncodingOptions(LIMIT))


def test_an_empty_ledger():
    assert Ledger().as_dict() == {} and str(Ledger()) == "                 read     kept  dropped"


@pytest.mark.parametrize(
    ("ties", "mismatched", "warning"),
    [
        (4, 0.0, "warning: 40.0% of the train pairs are ties"),
        (4, 1.0, "warning: 40.0% of"),
        (3, 0.0, ""),
    ],
)
def test_more_than_30_percent_ties_are_warned_about_once(
    tmp_path, qwen, capsys, ties, mismatched, warning
):
    train = [tie(n) if n < ties else row(n, f"yes {n}") for n in range(10)]
    splits, ledger = load_preferences(
        [folder(tmp_path, train)], validation_fraction=0, mismatched_prompts=mismatched
    )
    encode_splits(splits, ledger, qwen, EncodingOptions())
    ledger.check(0.1)
    printed = capsys.readouterr().out
    assert printed.count("warning: ") == (1 if warning else 0) and warning in printed


def test_ties_left_out_of_a_test_split_do_not_count_as_lost(tmp_path):
    """Arena data has some 30% of them; whatever else is dropped counts."""
    test = [tie("t") if n < 4 else row(n) for n in range(9)] + [row(9, "")]
    _, ledger = load_preferences([folder(tmp_path, [row("train")], test)], validation_fraction=0)
    assert ledger.as_dict()["test"]["dropped"] == {NO_RIGHT_SIDE: 4, "empty completion (chosen)": 1}
    ledger.check(0.1)
    with pytest.raises(
        DataError, match="^10.0% of the test pairs were dropped; max_dropped allows 9.0%."
    ):
        ledger.check(0.09)


def test_kept_is_read_and_added_less_dropped(tmp_path, qwen):
    """No pair is made of an exact duplicate. An over-long answer also drops its two added pairs."""
    rows = [*answers(3), row(0, "yes 0", "no 0"), row(9, LONG)]
    splits, ledger = load_preferences(
        [folder(tmp_path, rows)], validation_fraction=0, mismatched_prompts=1.0
    )
    tables = encode_splits(splits, ledger, qwen, EncodingOptions(LIMIT)).tables
    counts = ledger.as_dict()["train"]
    assert (counts["read"], counts["kept"], counts["added"]) == (5, 5, {ADDED: 4}) and len(
        tables["train"]
    ) == 5
    assert counts["dropped"] == {
        "exact duplicate": 1,
        "over-long (chosen)": 2,
        "over-long (rejected)": 1,
    }
    assert (
        "              added           4  mismatched prompt (the rejected side is chosen for"
        in str(ledger)
    )


def test_pairs_that_are_too_long_have_their_own_remedy():
    ledger = Ledger()
    ledger.add_read("train", ["", *4 * ["over-long (chosen)"], "identical sides"])
    with pytest.raises(DataError) as caught:
        ledger.check(0.05)
    assert "Most are too long: raise max_length, or set overlong: truncate_prompt." in str(
        caught.value
    )
    ledger.add_read("train", 9 * ["identical sides"])
    with pytest.raises(DataError) as caught:
        ledger.check(0.05)
    assert "too long" not in str(caught.value)
