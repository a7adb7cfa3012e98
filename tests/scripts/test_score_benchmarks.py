"""score.py on benchmark files: every row comes back with its own format's scores.

audit.py --scores reads them.
"""

import json
import sys

import pytest
import torch
from support import write_rows

import score
from auditing.scores import read_scores, write_scores
from reward.data.transcripts import assistant, user
from reward.model import threads
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.scorer import Scorer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(standin, tmp_path_factory):
    """A tiny reward model with a random head."""
    base, folder = str(standin("qwen")), tmp_path_factory.mktemp("rm") / "rm-out"
    torch.manual_seed(1)
    model = build_reward_model(base, head_init="normal")
    tokenizer = build_tokenizer(base, model.config)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def scored(checkpoint, tmp_path, monkeypatch):
    """`scored(rows)` -> (rows that score.py wrote, the Scores that the audit reads from them)."""

    def call(rows):
        source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
        options = ["--ckpt", checkpoint, "--input", source, "--output", output]
        monkeypatch.setattr(sys, "argv", ["score.py", *map(str, options)])
        assert score.main() == 0
        lines = output.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines], read_scores(output)

    return call


@pytest.fixture
def reward(checkpoint):
    """`reward(prompt, completion)`, of texts."""
    scorer = Scorer(str(checkpoint))

    def of(prompt: str, text: str):
        (value,) = scorer.rewards([(user(prompt), assistant(text))])
        return pytest.approx(value, abs=1e-4)

    return of


def test_rm_bench(scored, reward):
    row = {"id": 1, "prompt": "tea?", "domain": "chat"}
    row |= {"chosen": ["a", "tea", "water"], "rejected": ["no", "stop", "sorry"]}
    (out,), read = scored([row])
    assert {name: out[name] for name in row} == row
    assert set(out) - set(row) == {"score_chosen", "score_rejected"}
    assert out["score_chosen"] == [reward("tea?", text) for text in row["chosen"]]
    assert out["score_rejected"] == [reward("tea?", text) for text in row["rejected"]]
    assert read.kind == "RM-Bench scores" and len(read.pairs) == 9
    hard = float(out["score_chosen"][2] > out["score_rejected"][0])
    assert read.benchmark.style_matrix[2][0] == hard
    # Three styles a side say it too.
    unnamed = {name: value for name, value in row.items() if name != "domain"}
    assert "score_chosen" in scored([unnamed])[0][0]


def test_a_small_model_is_scored_with_one_thread(scored, monkeypatch, capsys):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "MACHINE_THREADS", 2)
    scored([{"prompt": "tea?", "chosen": "water", "rejected": "no"}])
    assert "one CPU thread, because the model is small" in capsys.readouterr().err
    assert torch.get_num_threads() == 1


def test_rewardbench_2(scored, reward):
    rejected = ["no", "stop", "a"]
    row = {"id": "5", "prompt": "tea?", "subset": "Math", "num_correct": 1}
    row |= {"chosen": ["water"], "rejected": rejected}
    ties = row | {"id": "tied:1", "subset": "Ties", "num_correct": 3}
    ties |= {"chosen": ["river", "tea", "bread"]}
    (out, tied), read = scored([row, ties])
    assert out["scores_chosen"] == [reward("tea?", "water")]
    for scores in (out["scores_rejected"], tied["scores_rejected"]):
        assert scores == [reward("tea?", text) for text in rejected]
    assert tied["scores_chosen"] == [reward("tea?", text) for text in ties["chosen"]]
    assert set(out) - set(row) == {"scores_chosen", "scores_rejected"}
    assert read.kind == "RewardBench 2 scores" and len(read.pairs) == 3 + 9
    best = float(out["scores_chosen"][0] > max(out["scores_rejected"]))
    assert read.benchmark.numbers[1].value == best


def test_a_completion_that_is_too_long_has_no_score(scored):
    row = {"prompt": "tea?", "num_correct": 1, "subset": "Math"}
    row |= {"chosen": ["water " * 3000], "rejected": ["no", "stop"]}
    (out,), read = scored([row])
    assert out["scores_chosen"] == [None] and None not in out["scores_rejected"]
    assert len(read.pairs) == 2 and len(read.pairs.finite()) == 0


@pytest.mark.parametrize(
    "row",
    [
        {"question": "tea?", "response_A": "no", "response_B": "water", "label": "B>A"},
        {"input": "tea?", "output_1": "no", "output_2": "water", "label": 2},
    ],
)
def test_judgebench_and_llmbar(scored, reward, row):
    (out,), read = scored([row])
    assert out["reward_chosen"] == reward("tea?", "water")
    assert out["reward_rejected"] == reward("tea?", "no")
    assert read.pairs.rewards.tolist() == [[out["reward_chosen"]], [out["reward_rejected"]]]
    assert not read.pairs.human_labels


def test_an_audits_own_scores_can_be_scored_by_another_model(scored, reward, tmp_path):
    row = {"prompt": user("tea?"), "chosen": assistant("water"), "rejected": assistant("no")}
    row |= {"votes": [2, 1], "reward_chosen": 5.0, "reward_rejected": 4.0}
    ours = read_scores(write_rows(tmp_path / "ours.jsonl", [row])).pairs
    write_scores(ours, tmp_path / "scores.jsonl")
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    (out,), read = scored([json.loads(line) for line in lines])
    assert out["reward_chosen"] == reward("tea?", "water")
    assert out["reward_rejected"] == reward("tea?", "no")
    assert read.pairs.characters.tolist() == ours.characters.tolist()
    assert read.pairs.votes.tolist() == [[2, 1]]
    assert read.pairs.rewards[0, 0] == out["reward_chosen"] and read.pairs.human_labels
