"""score.py's files: rows out are rows in, in order; a row without a reward says why."""

import csv
import json
import sys

import pytest
import torch
from datasets import Dataset, DatasetDict
from reward_models import save
from support import write_rows

import score
from auditing.score_formats import parse_score_row
from auditing.scores import read_scores
from reward.data.files import DataError
from reward.data.formats import to_pairs
from reward.data.rows_to_score import row_without_rewards
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.score_file import score_file
from reward.model.scorer import Scorer

torch.set_num_threads(1)
REFUSES = "the chat template refuses this conversation: Conversation roles must alternate "
REFUSED = "refused by the chat template: Conversation roles must alternate "
ROLES = "user/assistant/user/assistant/..."

GOOD = {"prompt": "tea?", "completion": "yes"}
PAIR = {"prompt": "tea?", "chosen": "yes", "rejected": "no"}
TWO_ANSWERS = [
    {"role": "user", "content": "tea"},
    {"role": "assistant", "content": "yes"},
    {"role": "assistant", "content": "more"},
]


@pytest.fixture(scope="module")
def strict(standin, tmp_path_factory):
    """The scorer of a model whose template wants alternating roles, as Mistral's does."""
    base = str(standin("mistral"))
    torch.manual_seed(1)
    model = build_reward_model(base, head_init="normal")
    tokenizer = build_tokenizer(base, model.config)
    return Scorer(str(save(model, tokenizer, tmp_path_factory.mktemp("strict") / "rm")))


@pytest.fixture
def scored(strict, tmp_path, capsys):
    """`scored(lines)` -> (rows out, standard error) of a JSONL file with these rows or lines."""

    def call(rows: list, scorer=strict, **options):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        capsys.readouterr()
        source, output = str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
        score_file(scorer, source, str(output), **options)
        text = output.read_text(encoding="utf-8")
        rows_out = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
        error = capsys.readouterr().err.replace(str(tmp_path), "")
        return rows_out, error

    return call


def test_rows_that_cannot_be_read_or_rendered_have_no_reward(scored, strict):
    refused = {"prompt": TWO_ANSWERS, "completion": [{"role": "assistant", "content": "!"}]}
    rows = [GOOD, '{"prompt": "secret', refused, {"color": "blue"}, "[1]", GOOD]
    out, error = scored(rows)
    (reward,) = strict.rewards([([{"role": "user", "content": "tea?"}], assistant("yes"))])
    assert len(out) == 6
    assert out[0] == out[5] == GOOD | {"reward": pytest.approx(reward, abs=1e-5)}
    assert out[1] == {"reward": None, "reward_error": "no valid JSON at column 19"}
    assert out[2] == refused | {"reward": None, "reward_error": REFUSES + ROLES}
    assert out[3]["color"] == "blue" and out[3]["reward"] is None
    assert out[3]["reward_error"].startswith("columns ['color'] are no")
    found_a_list = "a row is a JSON object with named columns; found list"
    assert out[4] == {"reward": None, "reward_error": found_a_list}
    for phrase in (
        "scored 6 rows",
        "1 with no reward: cannot be read: no valid JSON (first: /in.jsonl:2)",
        f"1 with no reward: {REFUSED}{ROLES} (first: /in.jsonl:3)",
        "(first: /in.jsonl:4)",
        "1 with no reward: cannot be read: a row is a JSON object with named columns (first: ",
    ):
        assert phrase in error
    assert "secret" not in error


def assistant(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def test_a_pair_that_the_template_refuses(scored):
    refused = {"chosen": TWO_ANSWERS, "rejected": [*TWO_ANSWERS[:2], *assistant("less")]}
    out, error = scored([PAIR, refused])
    assert out[1] == refused | {
        "reward_chosen": None,
        "reward_rejected": None,
        "margin": None,
        "reward_error": REFUSES + ROLES,
    }
    assert out[0]["margin"] == pytest.approx(out[0]["reward_chosen"] - out[0]["reward_rejected"])
    assert "reward_error" not in out[0]


def test_stop_names_the_first_bad_row_and_writes_nothing(scored, tmp_path):
    with pytest.raises(DataError, match="in.jsonl:2: no valid JSON at column 1$"):
        scored([GOOD, "oops", GOOD], on_bad_row="stop")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("rows", [["oops", {"color": "blue"}], [{"color": "blue"}]])
def test_a_file_of_which_no_row_can_be_read_is_an_error(scored, rows, tmp_path):
    with pytest.raises(DataError, match="in.jsonl:1: (no valid JSON at|columns .'color'. are no)"):
        scored(rows)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_reward_that_is_not_finite_is_null(scored, strict):
    """Half precision overflows. The line would be no JSON, and NaN no reward."""
    head = strict.base_model.score.weight
    with torch.no_grad():
        saved = head.clone()
        head.fill_(float("nan"))
        try:
            out, error = scored([GOOD, GOOD])
            with pytest.raises(DataError, match=r"in.jsonl:1: the model's reward is not a finite"):
                scored([GOOD], on_bad_row="stop")
            pairs, _ = scored([PAIR])
        finally:
            head.copy_(saved)
    sentence = "the model's reward is not a finite number (nan)"
    assert out == [GOOD | {"reward": None, "reward_error": sentence}] * 2
    assert (
        "2 with no reward: the model's reward is not a finite number (first: /in.jsonl:1)" in error
    )
    assert pairs[0]["reward_chosen"] is pairs[0]["reward_rejected"] is pairs[0]["margin"] is None


def test_numbers_of_the_file_that_no_json_has_become_null(scored):
    """Python reads NaN and 1e999; a reader of another language does not."""
    out, _ = scored(['{"prompt": "a", "completion": "b", "note": NaN, "more": [1e999, 2]}'])
    assert out[0]["note"] is None and out[0]["more"] == [None, 2]


def test_columns_of_the_file_are_never_overwritten(scored, tmp_path):
    out, error = scored([GOOD | {"reward": 9.25}, GOOD])
    assert out[0]["reward"] == 9.25 and out[0]["new_reward"] == out[1]["new_reward"]
    assert "reward" not in out[1]  # the name is the same in the whole file
    assert "the file has a column `reward`; the model's is called `new_reward`\n" in error
    out, error = scored([PAIR | {"margin": 2.0, "reward_error": "mine"}])
    assert out[0]["margin"] == 2.0 and out[0]["reward_error"] == "mine"
    assert out[0]["new_margin"] == out[0]["reward_chosen"] - out[0]["reward_rejected"]
    assert "the file has a column `margin`; the model's is called `new_margin`" in error
    assert "new_reward_error" not in out[0]
    # An audit reads the rewards; the raters' margin is no difference of rewards.
    path = write_rows(tmp_path / "scored.jsonl", out)
    rewards = [[out[0]["reward_chosen"]], [out[0]["reward_rejected"]]]
    assert read_scores(path).pairs.rewards.tolist() == rewards


def test_a_file_is_scored_twice(scored, tmp_path):
    """An audit reads the newest rewards."""
    once, _ = scored([PAIR, "oops"])
    older = once[0] | {"reward_chosen": 5, "reward_rejected": 3, "margin": 2}
    twice, error = scored([older, once[1]])
    assert twice[0] == older | {f"new_{name}": once[0][name] for name in NEW}
    assert twice[1]["reward_error"] == "no valid JSON at column 1"
    assert twice[1]["new_reward_error"].startswith("columns ['reward', 'reward_error'] are no")
    for name in NEW:
        assert f"the file has a column `{name}`; the model's is called `new_{name}`" in error
    path = write_rows(tmp_path / "scored.jsonl", twice)
    rewards = [[once[0]["reward_chosen"]], [once[0]["reward_rejected"]]]
    assert read_scores(path).pairs.rewards.tolist() == rewards


NEW = ("reward_chosen", "reward_rejected", "margin")


def test_a_format_without_named_sides_keeps_its_prompt(scored):
    row = {"prompt": "tea?", "response_a": "yes", "response_b": "no", "label": "b"}
    out, _ = scored([row])
    assert {name: out[0][name] for name in row} == row
    plain, _ = scored([PAIR | {"chosen": "no", "rejected": "yes"}])
    assert [out[0][name] for name in NEW] == pytest.approx([plain[0][name] for name in NEW])


@pytest.mark.parametrize(
    "prompt",
    [
        {"prompt": "is tea hot?", "input": "tea"},  # its own, and a column that is read too
        {"prompt": "is tea hot?"},
        {"question": "is tea hot?"},  # score.py adds `prompt`
        {"instruction": "is it hot?", "input": "tea"},
    ],
)
@pytest.mark.parametrize("transcript", ["messages", "raw"])
def test_what_was_scored_has_the_same_prompt_when_it_is_read_again(prompt, transcript, scored):
    row = prompt | {"response_a": " yes", "response_b": " no", "votes": [1, 2]}
    (out,), _ = scored([row])
    (before,), (after,) = (to_pairs(one, transcript) for one in (row, row_without_rewards(out)))
    assert after == before
    (again,), _ = scored([out])
    assert again["new_margin"] == out["margin"]
    assert unread_by_an_audit(again) == unread_by_an_audit(out)


def unread_by_an_audit(row: dict) -> tuple[str, ...]:
    return parse_score_row(row).unread


def test_columns_of_other_names(scored):
    plain, _ = scored([PAIR | {"chosen": "yes", "rejected": "no"}])
    row = {"ask": PAIR["prompt"], "good": "yes", "bad": "no", "prompt": "old", "note": "x y"}
    out, error = scored([row], columns={"prompt": "ask", "chosen": "good", "rejected": "bad"})
    assert {name: out[0][name] for name in row} == row  # its own `prompt` too
    assert [out[0][name] for name in NEW] == pytest.approx([plain[0][name] for name in NEW])
    assert "scored 1 rows" in error and "columns not read: note, prompt" in error
    with pytest.raises(DataError, match="names `goood`, but the columns are .*did you mean `good`"):
        scored([row], columns={"chosen": "goood", "rejected": "bad", "prompt": "ask"})


def test_a_column_of_the_file_under_the_name_of_one_that_is_read(scored):
    """The rewards of two completions were called reward_chosen and reward_rejected."""
    row = {"prompt": "tea?", "samples": ["yes", "no"], "completions": 2}
    (out,), _ = scored([row], columns={"completions": "samples"})
    assert {name: out[name] for name in row} == row
    assert len(out["rewards"]) == 2 and "reward_chosen" not in out


def test_completions_in_every_layout_get_the_same_reward(scored):
    (plain,), error = scored([{"prompt": "tea?", "completion": "yes"}])
    assert "columns not read" not in error
    turns = [{"from": "human", "value": "tea?"}, {"from": "gpt", "value": "yes"}]
    out, _ = scored(
        [
            {"query": "tea?", "response": "yes"},
            {"instruction": "tea?", "input": "", "output": "yes"},
            {"conversations": turns},
            {"prompt": "Human: tea?\n\nAssistant:", "completion": " yes"},
        ]
    )
    assert [row["reward"] for row in out] == pytest.approx([plain["reward"]] * 4)
    (several,), _ = scored([{"prompt": "tea?", "completions": ["no", "yes"]}])
    assert several["rewards"][1] == pytest.approx(plain["reward"])


def test_the_script_reads_folders_and_files_of_every_kind(strict, tmp_path, monkeypatch, capsys):
    rows = [GOOD, GOOD | {"completion": "no; thanks"}]
    table = Dataset.from_list(rows)
    table.save_to_disk(tmp_path / "one")
    DatasetDict(test=table).save_to_disk(tmp_path / "splits")
    table.to_json(tmp_path / "lines.json")
    with open(tmp_path / "excel.csv", "w", newline="", encoding="utf-16") as file:
        csv.writer(file, delimiter=";").writerows([GOOD.keys(), *(row.values() for row in rows)])
    monkeypatch.setattr("reward.model.scorer.Scorer", lambda *args, **options: strict)

    def run(path):
        monkeypatch.setattr(
            sys, "argv", ["score.py", "--ckpt", str(tmp_path), "--input", str(path)]
        )
        capsys.readouterr()
        status = score.main()
        out, error = capsys.readouterr()
        return status, out, error

    expected = None
    for name in ("one", "splits/test", "lines.json", "excel.csv"):
        status, out, error = run(tmp_path / name)
        rewards = [json.loads(line)["reward"] for line in out.splitlines()]
        assert status == 0 and len(rewards) == 2, error
        expected = expected or rewards
        assert rewards == pytest.approx(expected)
    status, _, error = run(tmp_path / "splits")
    assert status == 2 and f"name one of them: {tmp_path}/splits/test" in error


def test_a_column_of_the_sides_name_is_not_overwritten(scored):
    row = {"prompt": "tea?", "response_a": "yes", "response_b": "no", "winner": "b"}
    (out,), _ = scored([row | {"rejected": False}])
    assert out["rejected"] is False and "chosen" not in out
    (named,), _ = scored([row])
    assert [out[name] for name in NEW] == [named[name] for name in NEW]
