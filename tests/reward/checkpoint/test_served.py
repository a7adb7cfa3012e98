"""A checkpoint's golden rewards against a running server."""

import json
import shutil

import pytest
import torch
from reward_models import ANSWERS, PROMPT
from rewards_server import serve_rewards

from reward.checkpoint.golden import write_golden
from reward.checkpoint.served import check_served_model, compare, verify_endpoint
from reward.model.endpoint import EndpointScorer
from reward.model.scorer import Scorer
from reward.model.server import EndpointError

pytest_plugins = ["reward_model_fixtures"]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(saved, tmp_path_factory):
    """Folder of a reward model with golden rewards, as train_rm.py leaves it."""
    folder = tmp_path_factory.mktemp("golden") / "rm"
    shutil.copytree(saved("qwen"), folder)
    scorer = Scorer(str(folder))
    texts = []
    for answer in ANSWERS:
        ids = scorer.encode(PROMPT, [answer]).ids[0]
        text = {"prompt": PROMPT, "completion": answer, "tools": None}
        texts.append({"text": text, "ids": ids})
    write_golden(folder, texts, [scorer.forwards.alone(text["ids"]) for text in texts])
    manifest = {"format_version": 1, "dtype": "float32", "verified": {"tolerance": 1e-4}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return str(folder)


@pytest.fixture
def verified(checkpoint, capsys):
    """`verified(activation=True)` -> (exit status, what is printed) against such a server."""

    def call(folder=checkpoint, **options):
        with serve_rewards(folder, **options) as server:
            status = verify_endpoint(checkpoint, server.url)
        printed = capsys.readouterr()
        return status, (printed.out + printed.err).replace(server.url, "URL").splitlines()

    return call


def test_the_same_rewards_pass(verified, checkpoint):
    status, lines = verified()
    assert status == 0
    assert lines[0] == f"{checkpoint} against URL (vLLM, /classify, model rm): 3 golden texts"
    assert lines[1].startswith("passed: largest difference ")
    assert lines[1].endswith(", allowed 1.0e-04; no sigmoid")
    assert lines[2].startswith("as messages, which the server renders: passed: largest difference ")


def test_texts_go_to_openrlhf(verified):
    status, lines = verified(software="OpenRLHF")
    assert status == 0
    assert lines[0].endswith("against URL (OpenRLHF, /get_reward): 3 golden texts")


def test_a_sigmoid_fails_and_the_mend_is_said(verified):
    status, lines = verified(activation=True)
    assert status == 1
    assert lines[1].startswith("FAILED: largest difference ")
    assert lines[1].endswith(
        'the server applies a sigmoid: write "problem_type": "regression" into config.json where '
        "the server reads it, and start it again"
    )
    assert lines[2].startswith('asked with "use_activation": false, as score.py asks: passed')


def test_probabilities_of_two_labels_are_told_from_another_model(verified):
    status, lines = verified(softmax=True)
    assert status == 1
    assert "the server's numbers lie between 0 and 1, as after the softmax over two" in lines[1]
    assert lines[2].startswith('asked with "use_activation": false, as score.py asks: passed')


def test_another_template_fails(verified):
    status, lines = verified(template="{{ messages[-1]['content'] }}")
    assert status == 1
    assert lines[1].startswith("passed: ")
    assert lines[2].startswith("as messages, which the server renders: FAILED: ")


def test_another_model_fails(verified, saved):
    status, lines = verified(folder=saved("llama3"))
    assert status == 1
    assert lines[1].startswith("FAILED: ") and lines[1].endswith("; no sigmoid")


def test_moved_rewards_fail_and_keep_their_order(verified):
    status, lines = verified(moved=0.25)
    assert status == 1
    assert lines[1] == (
        "FAILED: largest difference 2.5e-01, allowed 1.0e-04; all rewards are moved by +0.2500, so "
        "that no order changes"
    )


def test_rounding_to_16_bits_is_explained():
    found = compare([0.0, 1.0, 2.0], [0.0, 1.004, 2.01], allowed=1e-4)
    assert not found.passed and not found.is_sigmoid and found.shift is None
    assert found.largest == pytest.approx(0.01)


def test_a_reward_that_is_not_finite_fails():
    assert compare([0.0, 1.0], [0.0, float("nan")], allowed=1e-4).largest == float("inf")


def test_no_server_and_no_golden_rewards_are_2(checkpoint, saved, capsys):
    assert verify_endpoint(checkpoint, "ftp://host") == 2
    assert "no address of a server" in capsys.readouterr().err
    for folder, limit in ((saved("qwen"), 512), (checkpoint, 9)):
        with serve_rewards(folder, models={"rm": limit}) as server:
            assert verify_endpoint(str(folder), server.url) == 2
        assert "has no golden.jsonl with rewards of texts that" in capsys.readouterr().err
    with serve_rewards(checkpoint, models={}) as server:
        assert verify_endpoint(checkpoint, server.url) == 2
    assert "serves no model" in capsys.readouterr().err


# --- Before score.py scores -----------------------------------------------------------------------


def test_score_says_that_the_server_has_the_checkpoint(checkpoint, capsys):
    with serve_rewards(checkpoint, activation=True) as server:
        check_served_model(EndpointScorer(checkpoint, server.url))
    assert "the server gives the golden rewards of " in capsys.readouterr().err


def test_score_refuses_a_sigmoid_and_another_model(checkpoint, saved):
    with serve_rewards(checkpoint, always_sigmoid=True) as server:
        scorer = EndpointScorer(checkpoint, server.url)
        with pytest.raises(EndpointError, match="gives sigmoid.reward., in which good completions"):
            check_served_model(scorer)
    with serve_rewards(saved("llama3")) as server:
        scorer = EndpointScorer(checkpoint, server.url)
        with pytest.raises(EndpointError, match=r"is not .*: rewards of its golden texts differ"):
            check_served_model(scorer)


def test_score_goes_on_without_golden_rewards(saved, capsys):
    folder = str(saved("qwen"))
    with serve_rewards(folder) as server:
        capsys.readouterr()
        check_served_model(EndpointScorer(folder, server.url))
    assert capsys.readouterr().err == ""
