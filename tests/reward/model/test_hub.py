"""A Hub id that does not exist is told in one sentence."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants
from reward_models import (
    exit_of,
)
from support import run_script

import score


@pytest.fixture
def empty_hub():
    """Address of a hub that has nothing, as the real one answers."""

    class Nothing(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_hub_id_that_does_not_exist_is_one_sentence(empty_hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", empty_hub)
    template = empty_hub + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    status, error = exit_of(
        score, monkeypatch, capsys, "--ckpt", "nobody/nothing", "--prompt", "a", "--completion", "b"
    )
    said = [line for line in error.splitlines() if line.startswith("score.py")]
    assert (
        status == 2
        and len(said) == 1
        and "nobody/nothing: no such folder here, and not to be had" in said[0]
    )


def test_a_recipe_with_a_hub_id_that_does_not_exist_is_one_sentence(empty_hub, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"chosen": "a b", "rejected": "a c"}) + "\n")
    done = run_script(
        "train_rm.py",
        "--model_name_or_path",
        "nobody/nothing",
        "--output_dir",
        tmp_path / "out",
        "--dataset_name",
        tmp_path / "rows.jsonl",
        "--test_fraction",
        "0.5",
        check=False,
        env={"HF_ENDPOINT": empty_hub, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"},
    )
    said = [line for line in done.stderr.splitlines() if "nobody/nothing" in line]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        len(said) == 1
        and said[0].startswith("train_rm.py: nobody/nothing: ")
        and said == done.stderr.split("\n")[-2:-1]
    )
