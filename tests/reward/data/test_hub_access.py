"""A Hub that does not answer is asked once, and not six times for each file."""

import os
import socket
import subprocess
import sys
import threading

import datasets
import pytest
from huggingface_hub import constants
from support import REPO

from reward.data.files import DataError
from reward.data.hub_access import why_unreachable
from reward.data.splits import load_test_split
from reward.model.hub import ModelError, checkpoint_file


@pytest.fixture
def hub_that_hangs_up(monkeypatch, tmp_path):
    """A hub that closes every connection. The test gets the list of them."""
    connections = []
    listener = socket.create_server(("127.0.0.1", 0))

    def hang_up():
        while True:
            try:
                connection, address = listener.accept()
            except OSError:  # the test is over
                return
            connections.append(address)
            connection.close()

    threading.Thread(target=hang_up, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    why_unreachable.cache_clear()
    yield connections
    why_unreachable.cache_clear()
    listener.close()


def test_an_unreachable_hub_is_asked_once(hub_that_hangs_up, capsys):
    for file in ("config.json", "adapter_config.json"):
        with pytest.raises(ModelError, match="nobody/nothing: no such folder here, and the Hub"):
            checkpoint_file("nobody/nothing", file)
    source = {"path": "nobody/no-data", "split": "train", "test_split": "test"}
    with pytest.raises(DataError, match="nobody/no-data: cannot be loaded"):
        load_test_split([source], "messages")
    assert len(hub_that_hangs_up) == 1
    error = capsys.readouterr().err
    assert error.count(f"{constants.ENDPOINT} cannot be reached (") == 1
    assert "what is not in the cache is not found" in error


def test_offline_by_choice_asks_nobody(hub_that_hangs_up, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="the Hub cannot be reached"):
        checkpoint_file("nobody/nothing", "config.json")
    assert hub_that_hangs_up == []


def test_a_name_that_does_not_exist_is_answered_before_torch_is_imported():
    """Importing it takes seconds."""
    code = """
import sys
import score, audit, train_rm
from reward.model.hub import why_absent
print(why_absent("nobody/nothing"))
print([module for module in ("torch", "transformers", "datasets") if module in sys.modules])
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout.splitlines() == [
        "nobody/nothing: no such folder here, and the Hub cannot be reached",
        "[]",
    ], done.stderr
