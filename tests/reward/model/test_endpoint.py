"""Rewards from a server: the same as from the loaded checkpoint, whatever goes wrong on the way."""

import json
import re
import shutil
import sys
import threading
from functools import partial

import pytest
import torch
from reward_models import ANSWERS, PROMPT, exit_of, save
from rewards_server import serve_rewards
from standins import make_tokenizer
from support import REPO
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast
from zoo_models import make_zoo_model

import score
from reward.data.encoding import RefusedText
from reward.model.endpoint import EndpointScorer
from reward.model.scorer import Scorer
from reward.model.server import EndpointError, words_of

pytest_plugins = ["reward_model_fixtures"]
torch.set_num_threads(1)

TEXTS = [f"{how} tea with {what}" for how in ("why", "how") for what in range(20)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Requests are repeated at once."""
    monkeypatch.setattr("reward.model.server.FIRST_WAIT", 0.001)


@pytest.fixture(scope="module")
def model(saved):
    """Folder of a reward model."""
    return saved("qwen")


@pytest.fixture(scope="module")
def no_weights(model, tmp_path_factory):
    """Folder with what is read of a checkpoint that somebody else serves: no weights."""
    folder = tmp_path_factory.mktemp("served") / "rm"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return str(folder)


@pytest.fixture(scope="module")
def expected(model):
    """(token ids of 40 texts, their rewards from the loaded model)."""
    scorer = Scorer(str(model))
    ids = []
    for text in TEXTS:
        ids += scorer.encode(PROMPT, [[{"role": "assistant", "content": text}]]).ids
    return ids, [scorer.forwards.alone(text) for text in ids]


# --- The rewards ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("software", "words"),
    [
        ("vLLM", "by URL (vLLM, /classify, model rm)"),
        ("vLLM, pooling alone", "by URL (vLLM, /pooling, model rm)"),
        ("SGLang", "by URL (SGLang, /classify, model rm)"),
        ("OpenRLHF", "by URL (OpenRLHF, /get_reward)"),
    ],
)
def test_a_server_gives_the_rewards_of_the_loaded_model(
    software, words, model, no_weights, expected
):
    ids, rewards = expected
    with serve_rewards(model, software=software) as server:
        scorer = EndpointScorer(no_weights, server.url)
        served = scorer.rewards_of_ids([*ids, None])
        assert served[:-1] == pytest.approx(rewards, abs=1e-5)
        assert served[-1] is None
        assert scorer.way_in_words.replace(server.url, "URL") == words


def test_the_end_of_the_address_names_the_route(model, no_weights, expected):
    ids, rewards = expected
    with serve_rewards(model) as server:
        scorer = EndpointScorer(no_weights, f"{server.url}/pooling")
        assert scorer.rewards_of_ids(ids[:2]) == pytest.approx(rewards[:2], abs=1e-5)
        assert scorer.server.route.path == "/pooling"
        scorer = EndpointScorer(no_weights, f"{server.url.removeprefix('http://')}/v1/")
        assert scorer.server.described == f"{server.url} (vLLM, /classify, model rm)"


def test_answers_in_another_order_are_put_in_order(model, no_weights, expected):
    ids, rewards = expected
    with serve_rewards(model, reversed=True) as server:
        scorer = EndpointScorer(no_weights, server.url)
        assert scorer.rewards_of_ids(ids) == pytest.approx(rewards, abs=1e-5)


def test_several_requests_run_at_once(model, no_weights, expected):
    ids, rewards = expected
    with serve_rewards(model, together=threading.Barrier(3, timeout=20)) as server:
        scorer = EndpointScorer(no_weights, server.url)
        assert scorer.rewards_of_ids(ids) == pytest.approx(rewards, abs=1e-5)
        assert [len(body["input"]) for body in server.bodies[:1]] == [1]
        assert sorted(len(body["input"]) for body in server.bodies[1:]) == [8, 16, 16]


def test_the_second_of_two_labels_is_the_reward(model, no_weights, expected):
    ids, rewards = expected
    with serve_rewards(model, logits=2) as server:
        scorer = EndpointScorer(no_weights, server.url)
        assert scorer.rewards_of_ids(ids[:3]) == pytest.approx(rewards[:3], abs=1e-5)


def test_a_checkpoint_whose_pad_token_ends_its_texts(model, tmp_path):
    """Stock transformers reads the token before the end there; a server would read the end."""
    theirs = AutoModelForSequenceClassification.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    theirs.config.pad_token_id = tokenizer.eos_token_id
    folder = str(save(theirs, tokenizer, tmp_path / "pad-is-end"))
    texts = [(PROMPT, answer) for answer in ANSWERS]
    with serve_rewards(folder) as server:
        scorer = EndpointScorer(folder, server.url)
        ids = scorer.encode(PROMPT, ANSWERS).ids
        assert ids[0][-1] == tokenizer.eos_token_id
        assert scorer.rewards_of_ids(ids) == pytest.approx(Scorer(folder).rewards(texts), abs=1e-5)
        assert server.bodies[-1]["input"][0] == ids[0][:-1]


def test_what_a_server_reads_at_most_cuts_the_prompt(model, no_weights):
    with serve_rewards(model, models={"rm": 150}) as server:
        scorer = EndpointScorer(no_weights, server.url)
        assert scorer.limit == 150
        encoded = scorer.encode([{"role": "user", "content": "tea " * 200}], ANSWERS[1:2])
        assert encoded.prompt_cut
        assert 145 < len(encoded.ids[0]) <= 150


def test_a_text_that_a_server_would_read_otherwise_is_refused(model, no_weights):
    with serve_rewards(model, software="OpenRLHF") as server:
        scorer = EndpointScorer(no_weights, server.url)
        ids = scorer.tokenizer("tea", add_special_tokens=False)["input_ids"]
        in_letters = scorer.tokenizer.convert_tokens_to_ids(["t", "e", "a"])
        assert scorer.text_of(in_letters) == "tea"
        assert ids != in_letters
        with pytest.raises(RefusedText, match="reads this one back in another way"):
            scorer._refuse_unreadable(in_letters)
        scorer._refuse_unreadable(ids)


# --- What goes wrong ------------------------------------------------------------------------------


def test_requests_that_fail_for_a_while_are_repeated(model, no_weights, expected, capsys):
    ids, rewards = expected
    with serve_rewards(model) as server:
        scorer = EndpointScorer(no_weights, server.url)
        capsys.readouterr()
        server.faults += [429, 500, "cut", "reset", 503, "long", "deep"]
        assert scorer.rewards_of_ids(ids) == pytest.approx(rewards, abs=1e-5)
        assert len(server.bodies) == 1 + 3 + 7
    said = capsys.readouterr().err
    assert said.count("trying again") == 1  # said once
    assert said.startswith(f"{server.url}/classify: ")


def test_a_request_that_fails_for_good_ends_in_one_sentence(model, no_weights, expected):
    ids, _ = expected
    with serve_rewards(model) as server:
        scorer = EndpointScorer(no_weights, server.url)
        server.faults += [500] * 8
        with pytest.raises(EndpointError) as raised:
            scorer.rewards_of_ids(ids[:3])
    assert str(raised.value) == (
        f"{server.url}/classify: it answers 500 Internal Server Error: EngineCore is busy; tried 8 "
        "times"
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"error": {"message": "too long", "input": "my secret"}}', "too long"),
        ('{"error": "Unauthorized"}', "Unauthorized"),
        ('{"detail": "Not Found"}', "Not Found"),
        (
            '{"detail": [{"loc": ["body"], "msg": "Field required", "input": "my"}]}',
            "Field required",
        ),
        ('{"input": "my secret"}', ""),
        ("<html> Bad\n Gateway </html>", "<html> Bad Gateway </html>"),
        ("", ""),
    ],
)
def test_what_a_server_says_without_what_it_was_sent(body, words):
    assert words_of(body.encode()) == words


def test_a_refused_request_is_not_repeated(model, no_weights, expected):
    ids, _ = expected
    with serve_rewards(model) as server:
        scorer = EndpointScorer(no_weights, server.url)
        server.faults += [400]
        with pytest.raises(EndpointError, match="it answers 400 Bad Request: .*EngineCore"):
            scorer.rewards_of_ids(ids[:3])
        assert len(server.bodies) == 2


def test_too_few_rewards_are_never_handed_on(model, no_weights, expected):
    ids, _ = expected
    with serve_rewards(model) as server:
        scorer = EndpointScorer(no_weights, server.url)
        server.faults += ["one too few"]
        with pytest.raises(EndpointError, match="/classify gives 15 rewards for 16 texts"):
            scorer.rewards_of_ids(ids[:16])


def test_a_reward_for_each_token_is_no_reward(model, no_weights):
    with serve_rewards(model, logits=5) as server, pytest.raises(EndpointError) as raised:
        EndpointScorer(no_weights, server.url)
    assert "gives 5 numbers for a text; a reward model gives one" in str(raised.value)


def test_no_server_at_the_address(no_weights):
    with pytest.raises(EndpointError) as raised:
        EndpointScorer(no_weights, "127.0.0.1:9")
    assert str(raised.value) == (
        "http://127.0.0.1:9/v1/models: cannot be reached ([Errno 111] Connection refused); tried 3 "
        "times"
    )
    with pytest.raises(EndpointError, match="no address of a server, such as http://"):
        EndpointScorer(no_weights, "ftp://host")


def test_a_server_of_another_kind_of_model(model, no_weights):
    with serve_rewards(model, software="vLLM, a chat model") as server:
        with pytest.raises(EndpointError) as raised:
            EndpointScorer(no_weights, server.url)
    message = str(raised.value)
    assert message.startswith(f"{server.url} gives no rewards. Needed is vLLM's /classify")
    assert "OpenRLHF's /get_reward: " in message and "it answers 404 Not Found" in message


def test_one_of_several_models_is_named_in_the_address(model, no_weights):
    with serve_rewards(model, models={"base": 64, "rm": 512}) as server:
        with pytest.raises(EndpointError) as raised:
            EndpointScorer(no_weights, server.url)
        assert str(raised.value) == (
            f"{server.url} serves base, rm; name one of them: {server.url}?model=NAME"
        )
        scorer = EndpointScorer(no_weights, f"{server.url}?model=rm")
        assert server.bodies[-1]["model"] == "rm"
        assert scorer.limit == 512


def test_the_named_model_is_asked_of_a_server_without_a_list(model, no_weights):
    with serve_rewards(model, lists_models=False) as server:
        EndpointScorer(no_weights, f"{server.url}?model=rm")
        assert server.bodies[-1]["model"] == "rm"


def test_a_server_that_wants_a_key(model, no_weights, monkeypatch):
    with serve_rewards(model, key="secret") as server:
        with pytest.raises(EndpointError, match="401 Unauthorized.*ENDPOINT_API_KEY=... in the"):
            EndpointScorer(no_weights, server.url)
        monkeypatch.setenv("ENDPOINT_API_KEY", "secret")
        assert EndpointScorer(no_weights, server.url).server.route.path == "/classify"


def test_a_sigmoid_is_left_out_where_the_server_can(model, no_weights, expected, capsys):
    ids, rewards = expected
    with serve_rewards(model, activation=True) as server:
        capsys.readouterr()
        scorer = EndpointScorer(no_weights, server.url)
        assert scorer.rewards_of_ids(ids * 2) == pytest.approx(rewards * 2, abs=1e-5)
    assert capsys.readouterr().err == ""


def test_a_sigmoid_that_cannot_be_left_out_is_said(model, no_weights, expected, capsys):
    ids, _ = expected
    with serve_rewards(model, always_sigmoid=True) as server:
        capsys.readouterr()
        scorer = EndpointScorer(no_weights, server.url)
        scorer.rewards_of_ids(ids)  # 40 texts are too few to tell
        assert capsys.readouterr().err == ""
        scorer.rewards_of_ids(ids)
        assert "all of the first 64 rewards lie between 0 and 1" in capsys.readouterr().err
        scorer.rewards_of_ids(ids)
        assert capsys.readouterr().err == ""


def test_equal_texts_are_sent_once(model, no_weights, expected):
    ids, rewards = expected
    with serve_rewards(model) as server:
        scorer = EndpointScorer(no_weights, server.url)
        served = scorer.rewards_of_ids([ids[0], ids[1], None, ids[0]])
        assert served[0] == served[3]
        assert served[2] is None
        assert len(server.bodies[-1]["input"]) == 2


def test_token_types_cannot_be_sent(tmp_path):
    """A stock encoder of pairs: its tokenizer marks the completion, and token ids do not."""
    backend = make_tokenizer("encoder").backend_tokenizer
    tokenizer = BertTokenizerFast(tokenizer_object=backend, model_max_length=512)
    folder = make_zoo_model(tmp_path, "bert", tokenizer)
    with pytest.raises(EndpointError, match="token types, which cannot be sent to a server"):
        EndpointScorer(str(folder), "127.0.0.1:9")


# --- score.py -------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path):
    """The path of a file with 40 rows, of which one cannot be read."""
    lines = [json.dumps({"prompt": "tea?", "completion": text}) for text in TEXTS]
    lines[7] = '{"prompt": "tea?"}'
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def scored(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_file_gets_the_same_columns_as_from_the_loaded_model(
    model, no_weights, rows, tmp_path, monkeypatch, capsys
):
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    run = partial(exit_of, score, monkeypatch, capsys, "--input", rows)
    assert run("--ckpt", model, "--output", here)[0] == 0
    with serve_rewards(model) as server:
        status, said = run("--ckpt", no_weights, "--endpoint", server.url, "--output", there)
    assert status == 0
    assert "scored 40 rows, 1 with no reward: " in said
    assert said.endswith(f", by {server.url} (vLLM, /classify, model rm)\n")
    for served, loaded in zip(scored(there), scored(here), strict=True):
        assert served == {**loaded, "reward": pytest.approx(loaded["reward"], abs=1e-5)}


def test_one_prompt_is_scored_by_the_server(model, no_weights, monkeypatch, capsys):
    arguments = ["--prompt", "tea?", "--completion", "yes", "--completion", "no"]
    assert exit_of(score, monkeypatch, capsys, "--ckpt", model, *arguments)[0] == 0
    monkeypatch.setattr(sys, "argv", ["score.py", "--ckpt", str(model), *arguments])
    score.main()
    loaded = capsys.readouterr().out
    with serve_rewards(model) as server:
        served = ["score.py", "--ckpt", no_weights, "--endpoint", server.url, *arguments]
        monkeypatch.setattr(sys, "argv", served)
        assert score.main() == 0
    assert capsys.readouterr().out == loaded


def test_what_was_scored_before_a_server_died_is_kept(
    model, no_weights, rows, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("reward.model.encoded_chunks.MOST_ROWS", 20)
    output = tmp_path / "out.jsonl"
    with serve_rewards(model) as server:
        arguments = ["--ckpt", no_weights, "--endpoint", server.url, "--input", rows]
        arguments += ["--output", output]
        server.faults += [None, None, None, None, *[500] * 8]
        status, said = exit_of(score, monkeypatch, capsys, *arguments)
        assert status == 2
        assert "tried 8 times; 20 rows are kept in " in said
        status, said = exit_of(score, monkeypatch, capsys, *arguments, "--resume")
        assert status == 0
    assert len(scored(output)) == 40


@pytest.mark.parametrize("task", ["--convert plain", "--prompt a --completion b --tokens"])
def test_what_needs_the_weights(task, monkeypatch, capsys):
    arguments = ["--ckpt", "x", "--endpoint", "host", *task.split()]
    with pytest.raises(SystemExit):
        exit_of(score, monkeypatch, capsys, *arguments)
    assert (
        "--convert, --tokens, --verify and --dtype need the weights; leave out --endpoint"
        in capsys.readouterr().err
    )


def test_the_reward_function_of_the_docs(model, no_weights, expected):
    page = (REPO / "docs/serving.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    completions = [[{"role": "assistant", "content": text}] for text in TEXTS]
    with serve_rewards(model) as server:
        code = code.replace("http://localhost:8000", server.url).replace('"rm-out"', "no_weights")
        names = {"no_weights": no_weights}
        exec(code, names)
        rewards = names["served_reward"]([PROMPT] * 40, completions, trainer_state=None)
    assert rewards == pytest.approx(expected[1], abs=1e-5)
