"""Streams give the pairs of the table, in order, and count each of them once."""

import random

import pytest
from datasets import IterableDataset
from preferences import (
    AGAINST,
    LONG,
    NOT_SURE,
    RANKINGS,
    ROWS,
    SECRET,
    TEST,
    fault,
    folder,
    nectar,
    row,
    source,
    tie,
)
from standins import hh_rows

from reward.data import streaming as streams
from reward.data.splits import load_preferences
from reward.data.tokens import (
    EncodingOptions,
    by_ranking,
    encode_splits,
)

pytestmark = pytest.mark.usefixtures("arrow_cache")


def streamed(path, tokenizer, **options):
    splits, ledger = load_preferences([source(path, streaming=True)], **options)
    return encode_splits(splits, ledger, tokenizer, EncodingOptions(90)).tables, ledger


@pytest.fixture()
def mixed(tmp_path):
    """100 rows, 10 of them repeated, 1 empty, 1 over-long, 1 in the test split."""
    rows = [row(index) for index in range(90)] + [row(index) for index in range(10)]
    rows += [row(200, "", "x"), row(201, LONG), TEST[0]]
    folder(tmp_path, random.Random(0).sample(rows, len(rows)))
    return tmp_path


def test_streaming_gives_the_rows_of_the_table_in_order(mixed, qwen):
    tables, counted = streamed(mixed, qwen, validation_fraction=0.1)
    assert isinstance(tables["train"], IterableDataset)
    rows = [pair for ranking in tables["train"] for pair in ranking["pairs"]]
    splits, ledger = load_preferences([source(mixed)], validation_fraction=0.1)
    plain = encode_splits(splits, ledger, qwen, EncodingOptions(90)).tables
    assert [r["chosen_ids"] for r in rows] == plain["train"]["chosen_ids"][:]
    assert [r["rejected_ids"] for r in rows] == plain["train"]["rejected_ids"][:]
    assert tables["validation"]["chosen_ids"][:] == plain["validation"]["chosen_ids"][:]
    assert counted.as_dict() == ledger.as_dict()
    assert sum(counted.as_dict()["train"]["dropped"].values()) >= 10


def test_streaming_counts_a_pair_once(mixed, qwen):
    """Reading the first row alone and reading a second epoch do not change the ledger."""
    tables, ledger = streamed(mixed, qwen, validation_fraction=0.1)
    next(iter(tables["train"]))
    list(tables["train"])
    once = ledger.as_dict()
    assert list(tables["train"]) and ledger.as_dict() == once
    assert sum(counts["read"] for counts in once.values()) == 103 + 1
    for counts in once.values():
        assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())


def test_streaming_past_the_rows_that_validation_comes_from(tmp_path, qwen, monkeypatch):
    """Train loses the rows with the first user turn of a validation pair, and counts them."""
    monkeypatch.setattr(streams, "STREAM_HELD_OUT", 60)
    rows = [row(index) for index in range(120)] + [row(index, "other", "no") for index in range(60)]
    folder(tmp_path, rows)
    tables, ledger = streamed(tmp_path, qwen, validation_fraction=0.2)
    kept, held = len(list(tables["train"])), len(tables["validation"])
    assert 5 <= held <= 20 and kept == 180 - 2 * held
    assert ledger.as_dict()["train"]["dropped"] == {"first user turn shared with validation": held}
    assert ledger.read("train") == kept + held and ledger.read("validation") == held


def test_streamed_rankings_stay_together_and_in_order(tmp_path, qwen):
    """One of them has an over-long side, and one is all duplicates. The last one is kept too."""
    folder(
        tmp_path,
        [*RANKINGS, nectar(1, "a", "b"), nectar(6, "a", LONG, "c"), nectar(7, "a", "b", "c")],
    )
    tables, ledger = streamed(tmp_path, qwen, validation_fraction=0)
    rows = list(tables["train"])
    assert [set(r) for r in rows] == [{"pairs"}] * 7 and [len(r["pairs"]) for r in rows] == [
        6,
        1,
        3,
        1,
        1,
        1,
        3,
    ]
    splits, counted = load_preferences([source(tmp_path)], validation_fraction=0)
    table = encode_splits(splits, counted, qwen, EncodingOptions(90)).tables["train"]
    assert [[p["chosen_ids"] for p in r["pairs"]] for r in rows] == [
        [table[i]["chosen_ids"] for i in group] for group in by_ranking(table)["rows"]
    ]
    assert ledger.as_dict() == counted.as_dict()
    assert ledger.as_dict()["train"]["dropped"] == {
        "exact duplicate": 1,
        "over-long (chosen)": 1,
        "over-long (rejected)": 1,
    }


def test_streaming_notes_ties_and_votes_against(tmp_path, qwen):
    votes = [[1, 1], [3, 1], [1, 3]]
    folder(tmp_path, [row(n, votes=votes[n % 3]) for n in range(60)])
    tables, ledger = streamed(tmp_path, qwen, validation_fraction=0.2)
    list(tables["train"])
    once = ledger.as_dict()
    assert list(tables["train"]) and ledger.as_dict() == once
    splits, counted = load_preferences([source(tmp_path)], validation_fraction=0.2)
    encode_splits(splits, counted, qwen, EncodingOptions(90))
    assert once == counted.as_dict() and set(once["train"]["noted"]) == {NOT_SURE, AGAINST}


def test_streaming_treats_rows_past_validation_as_train_rows(tmp_path, qwen, monkeypatch):
    """Earlier, their first user turn would have put them into validation.

    Here ties stay, and raters must agree.
    """
    monkeypatch.setattr(streams, "STREAM_HELD_OUT", 10)
    late = [tie(n) for n in range(10, 50)] + [row(n, votes=[2, 1]) for n in range(50, 90)]
    folder(tmp_path, [row(n) for n in range(10)] + late)
    tables, ledger = streamed(tmp_path, qwen, validation_fraction=0.5)
    list(tables["train"])
    assert (
        ledger.as_dict()["train"]["noted"] == {NOT_SURE: 40}
        and ledger.as_dict()["train"]["dropped"] == {}
    )
    tables, ledger = streamed(tmp_path, qwen, validation_fraction=0.5, min_rater_agreement=0.6)
    list(tables["train"])
    assert ledger.as_dict()["train"]["dropped"] == {"raters agree less than 0.6": 40}
    tables, ledger = streamed(tmp_path, qwen, validation_fraction=0.5, min_rater_agreement=0.7)
    list(tables["train"])
    assert ledger.as_dict()["train"]["dropped"] == {"raters agree less than 0.7": 80}


def test_streaming_has_no_fraction_and_needs_a_test_split(tmp_path):
    data = folder(tmp_path, ROWS, streaming=True, fraction=0.5)
    assert fault([data]).startswith("`fraction` needs the number of rows")
    alone = source(tmp_path / "train.jsonl", streaming=True)
    assert "(not for a stream, which cannot be read twice)" in fault([alone], test_fraction=0.1)


def test_streaming_bad_line(tmp_path):
    data = folder(tmp_path, ROWS)
    with open(tmp_path / "train.jsonl", "a", encoding="utf-8") as file:
        file.write(f"\n{SECRET}\n")
    assert (
        fault([{**data, "streaming": True}])
        == f"{tmp_path}/train.jsonl:5: no valid JSON at column 1"
    )


def test_streaming_trains(tmp_path, standin):
    """Two steps of PairTrainer need a stream of 3 pairs twice; the ledger counts it once."""
    from trl import RewardConfig

    from reward.model.build import build_reward_model, build_tokenizer
    from reward.training.trainer import PairOptions, PairTrainer

    folder(tmp_path / "data", hh_rows(3))
    model = build_reward_model(str(standin("qwen")), dtype="float32")
    tokenizer = build_tokenizer(str(standin("qwen")), model.config)
    splits, ledger = load_preferences(
        [source(tmp_path / "data", streaming=True)], validation_fraction=0
    )
    tables, subsets = encode_splits(splits, ledger, tokenizer, EncodingOptions(512))
    args = RewardConfig(
        str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        max_length=None,
        use_cpu=True,
        bf16=False,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = PairTrainer(
        model=model,
        args=args,
        train_dataset=tables["train"],
        processing_class=tokenizer,
        options=PairOptions(subsets),
    )
    trainer.train()
    assert trainer.state.global_step == 2 and subsets == ["all"]
    assert all(entry["loss"] > 0 for entry in trainer.state.log_history[:2])
    assert ledger.as_dict()["train"] == {
        "read": 3,
        "kept": 3,
        "by_subset": {"all": 3},
        "dropped": {},
        "truncated": {},
        "added": {},
        "noted": {},
    }
