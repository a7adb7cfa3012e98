"""What the Hub does wrong is said: which repository, which status, and what helps."""

import errno
import json
import os
import time

import datasets
import pytest
from hub import CHANGED, CUT, HANGS, commit_of, serve
from huggingface_hub import constants
from standins import hh_rows, make_tokenizer
from support import write_rows

from reward.data.files import DataError
from reward.data.hub_access import hub_fault, storage_fault, why_unreachable
from reward.data.input_rows import input_rows
from reward.data.splits import load_test_split
from reward.model.checkpoint_tokenizer import tokenizer_of
from reward.model.hub import ModelError, checkpoint_file, refuse_damaged_download, resolved_revision
from reward.model.parts import parts_without_weights


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A hub's folder: a tokenizer with its chat template, and pairs."""
    root = tmp_path_factory.mktemp("hub")
    model = root / "models" / "org" / "rm"
    make_tokenizer("qwen").save_pretrained(model)
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    write_rows(root / "datasets" / "org" / "pairs" / "test.jsonl", hh_rows(6))
    uneven = root / "datasets" / "org" / "uneven"
    write_rows(uneven / "train.jsonl", hh_rows(3))
    write_rows(uneven / "test.jsonl", [{**row, "rater": 1} for row in hh_rows(3)])
    return root


@pytest.fixture
def faults(root, tmp_path, monkeypatch):
    """What goes wrong with the hub; the test fills it. No time is lost between two tries."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 1)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = {}
    with serve(root, faults=found) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield found


ANSWERS = [
    (500, "org/rm: the Hub answers 500: the fault is on its side. Wait, and run the same"),
    (503, "org/rm: the Hub answers 503: the fault is on its side"),
    (429, r"org/rm: the Hub takes no more requests for now \(429\): wait a few minutes"),
    (403, r"org/rm: the Hub answers 403 \(without a reason\); `hf auth login` with"),
    (CUT, r"org/rm: the connection to http://127.* broke \(peer closed connection .*\); run the"),
]


@pytest.mark.parametrize(("fault", "words"), ANSWERS)
def test_a_model_that_the_hub_does_not_give(faults, fault, words):
    faults["org/rm"] = fault
    with pytest.raises(ModelError, match=words):
        checkpoint_file("org/rm", "config.json")


def test_a_hub_that_hangs_is_given_up(faults, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.05)
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.05)
    faults["org/rm"] = HANGS
    with pytest.raises(ModelError, match=r"org/rm: the connection to http://127.* broke \(timed"):
        checkpoint_file("org/rm", "config.json")


def test_a_file_that_the_hub_does_not_give_is_not_taken_for_one_that_it_lacks(faults):
    """transformers loads a tokenizer without the chat template that it could not fetch."""
    assert checkpoint_file("org/rm", "config.json") is not None
    faults["chat_template.jinja"] = 500
    with pytest.raises(ModelError, match="org/rm: the Hub answers 500"):
        tokenizer_of("org/rm")
    del faults["chat_template.jinja"]
    assert tokenizer_of("org/rm").chat_template
    # What was there before, and what was known not to be there, comes from the cache.
    faults["org/rm"] = 500
    assert checkpoint_file("org/rm", "chat_template.jinja") is not None
    assert checkpoint_file("org/rm", "added_tokens.json") is None


def test_a_damaged_file_of_the_cache_is_named_and_fetched_again(faults):
    faults["config.json"] = CHANGED
    with pytest.raises(
        ModelError, match="config.json in the cache is not what the Hub has"
    ) as said:
        checkpoint_file("org/rm", "config.json")
    faults.clear()
    path = str(said.value).rpartition(" rm ")[2]
    with open(path, "rb") as file:
        assert file.read() == b'{"model_type": "qwen2"|'
    os.remove(path)
    assert checkpoint_file("org/rm", "config.json") is not None


def test_only_a_hash_of_the_file_is_taken_for_one(tmp_path):
    content = b"12345"
    hashes = {
        "bd41cba781d8349272bf3eb92568285b411c027c": True,  # git hash-object
        "8cb2237d0679ca88db6464eac60da96345513964": True,  # sha1sum
        "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5": True,  # sha256sum
        "8cb2237d0679ca88db6464eac60da96345513965": False,
        "model.safetensors": True,
        "pytorch_model-00001-of-00002.safetensors": True,  # 40 characters, and no hash
    }
    for name, is_sound in hashes.items():
        (tmp_path / name).write_bytes(content)
        if is_sound:
            refuse_damaged_download("org/rm", str(tmp_path / name))
        else:
            with pytest.raises(ModelError, match="is not what the Hub has"):
                refuse_damaged_download("org/rm", str(tmp_path / name))


def test_a_branch_is_one_commit(faults, root, monkeypatch):
    commit = commit_of(root / "models" / "org" / "rm")
    assert resolved_revision("org/rm", "main") == commit
    assert parts_without_weights("org/rm", "main").base_revision == commit
    faults["org/rm"] = 500  # what is in the cache, and what is known to be missing, needs no Hub
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    assert parts_without_weights("org/rm", "main").base_revision == commit and waits == []
    faults.clear()
    with pytest.raises(ModelError, match="org/rm: the Hub has it, but no such revision of it"):
        resolved_revision("org/rm", "no-such-branch")


def test_a_name_that_is_none_of_the_hub():
    with pytest.raises(ModelError, match="a/b/c: no such folder here, and no id of a model"):
        checkpoint_file("a/b/c", "config.json")


DATASETS = [
    ("org/pairs", 500, "org/pairs: the Hub answers 500: the fault is on its side"),
    ("test.jsonl", 500, "org/pairs: the Hub answers 500: the fault is on its side"),
    ("test.jsonl", 429, r"org/pairs: the Hub takes no more requests for now \(429\)"),
    ("test.jsonl", CUT, r"org/pairs: the connection to http://127.* broke \(peer closed"),
    ("test.jsonl", CHANGED, r"org/pairs: a file of it cannot be read \(.*\): it is damaged"),
]


@pytest.mark.parametrize(("part", "fault", "words"), DATASETS)
def test_a_data_set_that_the_hub_does_not_give(faults, part, fault, words):
    faults[part] = fault
    with pytest.raises(DataError, match=words):
        load_test_split([source("org/pairs")], "messages")
    with pytest.raises(DataError, match=words):
        list(input_rows("org/pairs", split="test").rows)


def source(name: str, **more) -> dict:
    return {"path": name, "split": "train", "test_split": "test", **more}


def test_splits_of_different_columns(faults):
    with pytest.raises(DataError, match="org/uneven: its splits, or files of one split, have diff"):
        load_test_split([source("org/uneven")], "messages")


@pytest.mark.parametrize(
    ("fault", "words"), [(500, "the Hub answers 500"), (CUT, "the connection")]
)
def test_a_stream_that_breaks(faults, fault, words):
    from reward.data.sources import split_reader

    reader = split_reader(source("org/pairs", streaming=True), "test", "messages", "skip")
    faults["test.jsonl"] = fault
    with pytest.raises(DataError, match=rf"org/pairs \[test\]: {words}"):
        list(reader.pairs())


# --- The cache ------------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written(faults, tmp_path, monkeypatch):
    (tmp_path / "a-file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "a-file" / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "a-file" / "datasets")
    words = "Not a directory: .*a-file.* Downloads and tables are kept in .* set HF_HOME to"
    with pytest.raises(ModelError, match=words):
        checkpoint_file("org/rm", "config.json")
    with pytest.raises(DataError, match=words):
        load_test_split([source("org/pairs")], "messages")
    rows = write_rows(tmp_path / "test.jsonl", hh_rows(3))
    with pytest.raises(DataError, match=words):
        load_test_split([source(str(rows.parent))], "messages")


def test_what_is_no_fault_of_the_hub():
    assert hub_fault(ValueError("no")) is None
    assert hub_fault(FileNotFoundError(errno.ENOENT, "No such file", "pairs.jsonl")) is None
    full = OSError(errno.ENOSPC, "No space left on device")
    assert storage_fault(full).startswith(f"No space left on device: {constants.HF_HOME}. ")


@pytest.fixture(autouse=True)
def reachable():
    why_unreachable.cache_clear()
    yield
    why_unreachable.cache_clear()
