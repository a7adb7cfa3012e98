"""A bad row never takes the file: it is dropped and counted, in a table and in a stream alike."""

import json
import re

import numpy as np
import pytest
from launched import train_several
from preferences import SECRET, TEST, fault, folder, prepared, row, source, texts, write_lines
from support import last_of_each, write_rows

from reward.data.bad_rows import MOST_REASONS
from reward.data.files import DataError
from reward.data.ledger import Ledger
from reward.data.row_files import read_rows
from reward.data.splits import load_preferences, load_test_split
from reward.data.tokens import EncodingOptions, encode_splits

pytestmark = pytest.mark.usefixtures("arrow_cache")

CUT = b'{"prompt": "%s' % SECRET.encode()  # a malformed line
NO_FORMAT = json.dumps({"color": SECRET}).encode()
NAN = json.dumps(row(SECRET, margin=float("nan"))).encode()


def write_train(path, *lines: bytes):
    """A source whose train split has these lines; its test split is TEST."""
    write_rows(path / "test.jsonl", TEST)
    write_lines(path / "train.jsonl", *lines)
    return source(path)


def good(number: int) -> bytes:
    return json.dumps(row(number)).encode()


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_rows_are_dropped_and_counted_by_reason(tmp_path, streaming):
    lines = [good(1), CUT, good(2), b"[1]", NO_FORMAT, NAN, CUT + b"!", good(3)]
    data = write_train(tmp_path, *lines) | {"streaming": streaming}
    splits, ledger = load_preferences([data], validation_fraction=0)
    train = list(splits["train"])
    if streaming:
        train = [pair.row for pair in train]
    assert texts(train) == [(f"question {number}", "yes", "no") for number in (1, 2, 3)]
    counts = ledger.as_dict()["train"]
    assert (counts["read"], counts["kept"]) == (8, 3)
    assert counts["dropped"] == {
        "cannot be read: `margin` is not finite": 1,
        "cannot be read: a row is a JSON object with named columns": 1,
        "cannot be read: columns ['color'] are no preference format that is read here": 1,
        "cannot be read: no valid JSON": 2,
    }
    printed = str(ledger)
    assert f"2  cannot be read: no valid JSON (first: {tmp_path}/train.jsonl:2)" in printed
    assert SECRET not in printed
    with pytest.raises(
        DataError, match="55.6% of the pairs of all splits were dropped; max_dropped"
    ):
        ledger.check(max_dropped=0.1)


@pytest.mark.parametrize("streaming", [False, True])
def test_stop_names_the_first_bad_row(tmp_path, streaming):
    data = write_train(tmp_path, good(1), CUT, NO_FORMAT) | {"streaming": streaming}
    assert fault([data]) == f"{tmp_path}/train.jsonl:2: no valid JSON at column 20"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_of_which_no_row_can_be_read_is_an_error(tmp_path, streaming):
    """Then the file is at fault, and not a row; the others of its split do not hide it."""
    data = write_train(tmp_path, CUT, NO_FORMAT) | {"streaming": streaming}
    write_rows(tmp_path / "train-00000-of-00001.jsonl", [row(1)])
    message = fault([data], on_bad_row="skip")
    assert message == f"{tmp_path}/train.jsonl:1: no valid JSON at column 20"


def test_a_stream_that_drops_too_much_stops_while_it_is_read(tmp_path):
    lines = [good(number) for number in range(600)] + [CUT] * 401 + [good(601)] * 1000
    data = write_train(tmp_path, *lines) | {"streaming": True}
    splits, ledger = load_preferences([data], validation_fraction=0, max_dropped=0.3)
    with pytest.raises(DataError, match="40.0% of the train pairs read so far were dropped"):
        list(splits["train"])
    assert ledger.read("train") == 1000


def test_bad_rows_of_a_test_split(tmp_path):
    data = folder(tmp_path, [row(1)])
    write_lines(tmp_path / "test.jsonl", CUT, good(2))
    table, ledger = load_test_split([data])
    assert len(table) == 1
    assert ledger.as_dict()["test"]["dropped"] == {"cannot be read: no valid JSON": 1}


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_rows_spread_over_the_splits(tmp_path, streaming):
    lines = [good(number) for number in range(300)] + [CUT] * 300
    order = np.random.default_rng(0).permutation(600)
    data = write_train(tmp_path, *(lines[i] for i in order)) | {"streaming": streaming}
    splits, ledger = load_preferences([data], validation_fraction=0.3)
    list(splits["train"])
    counts = ledger.as_dict()
    assert 60 < sum(counts["validation"]["dropped"].values()) < 120
    assert counts["train"]["read"] + counts["validation"]["read"] == 600
    assert counts["train"]["dropped"].keys() == {"cannot be read: no valid JSON"}


def test_a_rated_completion_that_cannot_be_read_takes_its_prompt_alone(tmp_path):
    rated = [("p", "a", 3), ("p", "b", "good"), ("q", "c", 0), ("q", "d", 4)]
    rows = [{"prompt": p, "response": r, "helpfulness": h} for p, r, h in rated]
    splits, ledger = load_preferences([folder(tmp_path, rows)], validation_fraction=0)
    assert texts(splits["train"]) == [("q", "d", "c")]
    assert ledger.as_dict()["train"]["dropped"] == {
        "cannot be read: `helpfulness` is text that is no number": 2
    }


def test_few_reasons_are_told_apart():
    ledger = Ledger()
    ledger.add_read("train", ["", *(f"cannot be read: {i}" for i in range(MOST_REASONS + 30))])
    dropped = ledger.as_dict()["train"]["dropped"]
    assert len(dropped) == MOST_REASONS + 1 and dropped["cannot be read: other reasons"] == 30


def test_a_bad_row_of_a_small_split_counts_by_its_share_of_all_splits():
    """Chance put it there: 1 of 5 would be above the limit, and 1 of 100 is not."""
    ledger = Ledger()
    ledger.add_read("train", [""] * 95)
    ledger.add_read("validation", ["", "", "", "", "cannot be read: no valid JSON"])
    ledger.check(max_dropped=0.01)
    with pytest.raises(DataError, match="1.0% of the pairs of all splits"):
        ledger.check(max_dropped=0.005)
    ledger.add_read("test", [""] * 99 + ["refused by the chat template: no"] * 11)
    with pytest.raises(DataError, match="10.0% of the test pairs"):
        ledger.check(max_dropped=0.09)


def test_a_split_of_bad_rows_alone_says_so():
    ledger = Ledger()
    ledger.add_read("test", ["refused by the chat template: no"] * 3)
    with pytest.raises(DataError) as caught:
        ledger.check(max_dropped=1.0)
    assert str(caught.value).endswith("None of its rows can be used, for the reasons above.")


def test_the_chat_template_of_mistral_refuses_four_real_rows(hh_real, tmp_path):
    """Two turns of one role follow each other in 8 of 2,312 rows; 4 of them have two prompts."""
    rows = [row for _, row in read_rows(str(hh_real))]
    twice = re.compile(
        r"\n\nHuman:((?!\n\nAssistant:).)*\n\nHuman:|"
        r"\n\nAssistant:((?!\n\nHuman:).)*\n\nAssistant:",
        re.DOTALL,
    )
    refused = [row for row in rows if twice.search(row["chosen"])]
    assert len(refused) == 8
    data = folder(tmp_path, rows[:3], rows[1:200:4] + refused)
    table, ledger = load_test_split([data])
    tables, _ = encode_splits({"test": table}, ledger, prepared("mistral"), EncodingOptions())
    reason = (
        "refused by the chat template: Conversation roles must alternate "
        "user/assistant/user/assistant/..."
    )
    assert ledger.as_dict()["test"]["dropped"] == {"prompts differ": 4, reason: 4}
    assert f"4  {reason} (first: {tmp_path}/test.jsonl:" in str(ledger)


@pytest.mark.slow
def test_real_rows_train_a_model_whose_template_is_strict(
    hh_real, standin, train_options, tmp_path
):
    """All 2,312 rows, and both processes skip the same ones."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model_name_or_path: {standin('mistral')}\ndtype: float32\ndataset_name: {hh_real}\n"
        "max_length: 512\nmax_dropped: 0.6\noverlong: truncate_prompt\ntest_fraction: 0.1\n"
    )
    line = ["--recipe", recipe, *train_options, "--output_dir", tmp_path / "rm"]
    line = last_of_each([*line, "--eval_strategy", "no"])
    (run,) = train_several([line], tmp_path / "launch", processes=2)
    assert run.status == 0, run.stderr[-3000:]
    reason = (
        "refused by the chat template: Conversation roles must alternate "
        "user/assistant/user/assistant/..."
    )
    assert f"{reason} (first: {hh_real}:" in run.stdout
    ledger = json.loads((tmp_path / "rm" / "ledger.json").read_text())
    assert sum(counts["dropped"].get(reason, 0) for counts in ledger.values()) == 4
    assert sum(counts["read"] for counts in ledger.values()) == 2312
