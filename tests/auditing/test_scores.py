"""Files of scores: rows as each benchmark publishes them give literal pairs and numbers.

A malformed row is refused with a sentence.
"""

import gzip
import json
import math
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import REPO, write_rows

from auditing.benchmarks import benchmark_checks
from auditing.checks.distribution import distribution_checks
from auditing.conclusion import conclude
from auditing.pairs import LONGEST_TEXT, Pairs
from auditing.run import add_completions, audit_scores, read_completions
from auditing.score_formats import split_prompt
from auditing.scores import read_scores, write_scores
from reward.data.files import DataError
from reward.data.transcripts import assistant, text_of, user

SECRET = "hunter2"  # stands in every malformed row, and never in a message
PLAIN = {
    "prompt": "Sky?",
    "chosen": "Blue.",
    "rejected": "Green, I think.",
    "reward_chosen": 1.5,
    "reward_rejected": -0.5,
}


@pytest.fixture
def read(tmp_path):
    """`read(rows)` -> Scores, through a file."""
    return lambda rows, name="scored.jsonl": read_scores(write_rows(tmp_path / name, rows))


@pytest.fixture
def refused(tmp_path):
    """`refused(rows)` -> what the DataError says after the file's name."""

    def call(rows, name="scored.jsonl"):
        path = write_rows(tmp_path / name, rows) if isinstance(rows, list) else tmp_path / name
        with pytest.raises(DataError) as caught:
            read_scores(path)
        assert SECRET not in str(caught.value) and str(caught.value).startswith(str(path))
        return str(caught.value).removeprefix(str(path))

    return call


def words(pairs: Pairs, i: int = 0) -> tuple:
    """Prompt, chosen, rejected as text."""
    return tuple(text_of(side) for side in pairs.text(i).values())


# --- score.py's -----------------------------------------------------------------------------------


def test_preference_rows(read):
    scores = read(
        [
            {**PLAIN, "subset": "sky", "votes": [3, 1]},
            {**PLAIN, "reward_chosen": "0.25", "reward_rejected": 1},
        ]
    )
    pairs = scores.pairs
    assert (scores.kind, scores.completions, scores.benchmark) == (
        "preference pairs with rewards",
        None,
        None,
    )
    assert pairs.rewards.tolist() == [[1.5, 0.25], [-0.5, 1.0]]
    assert pairs.characters.tolist() == pairs.lengths.tolist() == [[5, 5], [15, 15]]
    assert (pairs.length_unit, pairs.human_labels) == ("characters", True)
    assert (pairs.subset.tolist(), pairs.prompt.tolist()) == (["sky", "all"], [0, 0])
    assert pairs.votes[0].tolist() == [3, 1] and np.isnan(pairs.votes[1]).all()
    assert pairs.text(0) == {
        "prompt": user("Sky?"),
        "chosen": assistant("Blue."),
        "rejected": assistant("Green, I think."),
    }


def test_a_missing_reward_is_nan_and_one_that_is_not_finite_is_infinite(tmp_path):
    path = tmp_path / "scored.jsonl"
    values = ["null", "NaN", "Infinity", "1e999", "9" * 400, "2"]
    start = (
        '{"prompt": "p", "chosen": "a", "rejected": "b", "reward_rejected": 0, "reward_chosen": '
    )
    path.write_text("".join(f"{start}{value}}}\n" for value in values))
    pairs = read_scores(path).pairs
    assert np.isnan(pairs.rewards[0]).tolist() == [True, False, False, False, False, False]
    assert np.isinf(pairs.rewards[0]).tolist() == [False, True, True, True, True, False]
    assert len(pairs.finite()) == 1
    # The same when they are written and read again.
    write_scores(pairs, tmp_path / "again.jsonl")
    again = read_scores(tmp_path / "again.jsonl").pairs
    assert again.rewards[0].tolist()[1:] == [math.inf] * 4 + [2.0] and np.isnan(again.rewards[0, 0])


def test_a_reward_of_null_is_too_long_unless_its_error_says_that_it_was_not_finite(read):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "reward_chosen": 1, "reward_rejected": 0}
    lost = row | {"reward_rejected": None}
    rows = [
        *[row] * 37,
        lost,
        lost | {"reward_error": "521 tokens, and the model reads 512"},
        lost | {"reward_error": "the model's reward is not a finite number (nan)"},
    ]
    pairs = read(rows).pairs
    checks = {check.name: check for check in distribution_checks(pairs, pairs.finite())}
    missing, bad = checks["missing rewards"], checks["non-finite rewards"]
    assert (missing.value, missing.n, bad.value) == (2 / 40, 40, 1 / 40)
    assert missing.verdict == "not measurable" and bad.verdict == "fail"
    assert missing.note.startswith(
        "2 pairs of 40 left out of every other number: a side is too long for the model"
    )
    without = read(rows[:39]).pairs
    checks = {check.name: check for check in distribution_checks(without, without.finite())}
    assert checks["non-finite rewards"].verdict == "pass"


def test_a_row_that_cannot_be_read_is_a_missing_reward(tmp_path):
    """37 pairs have both rewards, one has a null, and two have text that is no number."""
    rows = [PLAIN] * 37 + [PLAIN | {"reward_chosen": x} for x in (None, "about 3", "1.5k")]
    audit = audit_scores(write_rows(tmp_path / "scored.jsonl", rows))
    (missing,) = [check for check in audit.checks if check.name == "missing rewards"]
    assert (missing.value, missing.n) == (3 / 40, 40)
    assert "says why it has no reward; 2 rows cannot be read" in missing.note


def test_most_rows_without_a_readable_reward_leave_no_conclusion(tmp_path):
    """The same whether score.py wrote null, a table wrote NA, or nothing can be read."""
    rewards = np.random.default_rng(0).normal(1, 1, 80)
    readable = []
    for i, reward in enumerate(rewards):
        # No length is the better one.
        sides = {"chosen": "a" * (1 + i % 5), "rejected": "b" * (1 + i % 4)}
        readable.append(PLAIN | sides | {"prompt": f"p{i}", "reward_chosen": reward})
    for lost in (None, "NA", "n. d."):
        others = [PLAIN | {"prompt": f"q{i}", "reward_chosen": lost} for i in range(320)]
        audit = audit_scores(write_rows(tmp_path / "scored.jsonl", readable + others))
        (missing,) = [check for check in audit.checks if check.name == "missing rewards"]
        assert (missing.value, missing.n, missing.verdict) == (0.8, 400, "fail")
        assert conclude(audit.checks).uses["rank"] == "not tested"


def test_an_empty_cell_of_csv_is_a_missing_reward(tmp_path):
    """score.py writes a text that is too long as an empty cell in CSV, and as null in JSONL."""
    path = tmp_path / "scored.csv"
    path.write_text(
        "prompt,chosen,rejected,reward_chosen,reward_rejected,margin,reward_error\n"
        "a?,yes,no,2,1,1,\n"
        'b?,yes,no,,1,,"521 tokens, and the model reads 512"\n'
        'c?,yes,no,,,,"521 tokens, and the model reads 512"\n'
    )
    scores = read_scores(path)
    rewards = [[2, None, None], [1, 1, None]]
    assert np.array_equal(scores.pairs.rewards, np.array(rewards, dtype=float), equal_nan=True)
    assert scores.left_out == ()


@pytest.mark.parametrize(
    "cell, reward",
    [("\N{MINUS SIGN}1.5", -1.5), (" 2 ", 2.0), ("1e-3", 0.001), ("NA", None), ("null", None)],
)
def test_how_tables_write_a_reward(read, cell, reward):
    value = read([PLAIN | {"reward_chosen": cell}]).pairs.rewards[0, 0]
    assert value == reward or (reward is None and np.isnan(value))


def test_raters_against_the_chosen_side_and_unread_columns_are_named(tmp_path):
    rows = [
        PLAIN | {"votes": [1, 2], "language": "en"},
        PLAIN | {"rating_chosen": 1, "rating_rejected": 5},
        PLAIN | {"votes": [2, 1], "region": "north"},
    ]
    audit = audit_scores(write_rows(tmp_path / "scored.jsonl", rows))
    assert audit.identity["noted"] == (
        "1 with ratings against the chosen side; "
        "1 with votes or chosen_probability against the chosen side; "
        "2 with columns not read: language, region"
    )


def test_pairs_without_a_prompt_are_said(tmp_path):
    rows = [PLAIN, {name: PLAIN[name] for name in PLAIN if name != "prompt"}]
    audit = audit_scores(write_rows(tmp_path / "scored.jsonl", rows))
    assert "Whether answers fit their prompts: 1 of 2 pairs have no prompt." in audit.not_measured
    whole = audit_scores(write_rows(tmp_path / "whole.jsonl", [PLAIN]))
    assert "no prompt" not in " ".join(whole.not_measured)


def test_several_right_answers_of_other_data_are_not_rewardbench_2(read):
    row = {
        "prompt": "2+2?",
        "chosen": ["4", "four"],
        "rejected": ["5", "6"],
        "scores_chosen": [1, 3],
        "scores_rejected": [0, 0.5],
    }
    assert read([row]).benchmark is None and len(read([row]).pairs) == 4
    assert read([row | {"subset": "arithmetic"}]).benchmark is None
    assert read([row | {"subset": "Math"}]).benchmark.numbers[0].name == "RewardBench 2"


def test_a_benchmark_with_rows_that_cannot_be_read_has_no_number(read):
    rows = [{**PLAIN, "subset": "math-prm"}] * 3
    assert read(rows).benchmark is not None
    scores = read([*rows, {**PLAIN, "subset": "math-prm", "reward_chosen": SECRET}])
    assert scores.benchmark is None
    (said,) = scores.not_measured
    assert said.startswith("The benchmark's own number: 1 row of ")
    # An infinite reward orders nothing, as a missing one.
    (number, *_) = read(
        [{**PLAIN, "subset": "math-prm", "reward_chosen": math.inf}] * 2
    ).benchmark.numbers
    assert number.value == 0


def test_other_pairs_of_equal_lengths_are_not_compared(tmp_path):
    """Multiple choice: every answer is one letter long."""
    ours = [PLAIN | {"prompt": f"{i}?", "chosen": "A", "rejected": "B"} for i in range(30)]
    path = write_rows(tmp_path / "ours.jsonl", ours)
    same = write_rows(tmp_path / "same.jsonl", [row | {"reward_chosen": 0.1} for row in ours])
    assert audit_scores(path, compare=[same]).ranking is not None
    without_prompt = [{k: v for k, v in row.items() if k != "prompt"} for row in ours]
    unknown = write_rows(tmp_path / "unknown.jsonl", without_prompt)
    assert audit_scores(path, compare=[unknown]).ranking is not None
    swapped = [row | {"chosen": "B", "rejected": "A"} for row in ours]
    for others, differ in ((ours[::-1], 30), (swapped, 30), ([*ours[:-1], ours[0]], 1)):
        other = write_rows(tmp_path / "other.jsonl", others)
        with pytest.raises(
            DataError, match=rf"other pairs than the audited ones \({differ} differ"
        ):
            audit_scores(path, compare=[other])


def test_one_row_of_json_with_messages(tmp_path):
    row = PLAIN | {
        "prompt": user("Sky?"),
        "chosen": assistant("Blue."),
        "rejected": assistant("No."),
    }
    (tmp_path / "one.json").write_text(json.dumps(row))
    assert read_scores(tmp_path / "one.json").pairs.rewards.tolist() == [[1.5], [-0.5]]


def test_transcripts_and_the_margin_of_score_py(read):
    talk = "\n\nHuman: Hi\n\nAssistant: "
    row = {
        "chosen": talk + "Hello!",
        "rejected": talk + "No.",
        "reward_chosen": 1,
        "reward_rejected": 0,
        "margin": math.nan,
    }
    assert words(read([row]).pairs) == ("Hi", "Hello!", "No.")


def test_votes_of_another_format_follow_the_chosen_side(read):
    """score.py adds prompt, chosen and rejected to the row; its votes are still [for a, for b]."""
    row = {"prompt": user("p"), "response_a": "worse", "response_b": "better", "votes": [1, 4]}
    row |= {
        "chosen": assistant("better"),
        "rejected": assistant("worse"),
        "reward_chosen": 2,
        "reward_rejected": 1,
    }
    pairs = read([row]).pairs
    assert words(pairs) == ("p", "better", "worse") and pairs.votes.tolist() == [[4, 1]]


def test_pairs_whose_raters_tie_are_left_out_and_counted(read, refused):
    scores = read([{**PLAIN, "votes": [1, 1]}, PLAIN, {**PLAIN, "chosen_probability": 0.5}])
    assert len(scores.pairs) == 1
    assert scores.kind == "preference pairs with rewards; 2 left out because their raters tie"
    assert (
        refused([{**PLAIN, "votes": [1, 1]}])
        == ": no pair with a right side is left; 1 left out because their raters tie"
    )


def test_pairs_without_a_prompt_do_not_share_one(read):
    rows = [{**PLAIN, "prompt": prompt} for prompt in ("", "p", "", "p")]
    assert len(set(read(rows).pairs.prompt.tolist())) == 3


@pytest.mark.parametrize("name", ["scored.json", "scored.csv", "scored.parquet", "scored.jsonl.gz"])
def test_other_kinds_of_file(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist([PLAIN, {**PLAIN, "reward_chosen": None}]), path)
    elif name.endswith(".csv"):
        header = "prompt,chosen,rejected,reward_chosen,reward_rejected\n"
        path.write_text(header + "Sky?,Blue.,Green.,1.5,-0.5\nSky?,a,b,nan,0\n")
    elif name.endswith(".json"):
        path.write_text(json.dumps([PLAIN, {**PLAIN, "reward_chosen": None}]))
    else:
        rows = (PLAIN, {**PLAIN, "reward_chosen": None})
        path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    pairs = read_scores(path).pairs
    assert pairs.rewards[:, 0].tolist() == [1.5, -0.5] and not np.isfinite(pairs.rewards[0, 1])


def test_lengths_in_tokens_where_the_rows_have_them(read, refused):
    row = {**PLAIN, "chosen_tokens": 3, "rejected_tokens": 7}
    pairs = read([row]).pairs
    assert (pairs.length_unit, pairs.lengths.tolist(), pairs.characters.tolist()) == (
        "tokens",
        [[3], [7]],
        [[5], [15]],
    )
    assert refused([row, PLAIN]).startswith(
        ":2: `chosen_tokens, rejected_tokens` are needed in every row or in none"
    )


def test_completions(read):
    rows = [
        {"prompt": "p", "completion": "- one\n- two", "reward": 2, "gold": 0.5, "rating": 4},
        {"prompt": "q", "completion": "perhaps", "reward": None, "gold": 0.25, "rating": None},
        {"prompt": user("p"), "completion": assistant("no"), "reward": -1.5, "gold": 1},
    ]
    scores = read(rows)
    completions = scores.completions
    assert (
        scores.pairs is None
        and scores.benchmark is None
        and scores.kind == "completions with rewards"
    )
    assert completions.prompt.tolist() == [0, 1, 0] and completions.length.tolist() == [11, 7, 2]
    assert completions.hedges.tolist() == [0, 1, 0] and completions.markdown.tolist() == [2, 0, 0]
    assert completions.reward[[0, 2]].tolist() == [2, -1.5] and np.isnan(completions.reward[1])
    assert completions.gold.tolist() == [0.5, 0.25, 1]
    assert completions.rating[0] == 4 and np.isnan(completions.rating[1:]).all()
    listed = {"prompt": "p", "completions": ["a", "b"], "rewards": [1, 2], "gold": [0.5, -1]}
    completions = read([listed | {"rating": [None, 4]}]).completions
    assert completions.gold.tolist() == [0.5, -1] and completions.rating[1] == 4
    bare = read([{"prompt": "p", "response": "a", "reward": 1}]).completions
    assert bare.gold is None and bare.rating is None


# --- RewardBench 1 --------------------------------------------------------------------------------

RB1 = {"id": 3, "subset": "donotanswer", "scores_chosen": [2.5], "scores_rejected": 1}
RB1 |= {
    "text_chosen": "<|user|>\nHi\n<|assistant|>\nHello",
    "text_rejected": "<|user|>\nHi\n<|assistant|>\nHey you",
}


def test_rewardbench_1(read):
    scores = read([RB1, {**RB1, "text_chosen": "a", "text_rejected": "bcd"}])
    pairs = scores.pairs
    assert (scores.kind, pairs.human_labels) == ("RewardBench 1 scores", False)
    assert (
        pairs.rewards.tolist() == [[2.5, 2.5], [1, 1]]
        and pairs.subset.tolist() == ["donotanswer"] * 2
    )
    assert words(pairs) == ("<|user|>\nHi\n<|assistant|>\n", "Hello", "Hey you")
    assert words(pairs, 1) == ("", "a", "bcd") and pairs.characters.tolist() == [[5, 1], [7, 3]]


def test_rewardbench_1_with_the_prompt_beside(read):
    row = {**RB1, "prompt": "<|user|>\nHi\n"}
    assert words(read([row]).pairs) == (
        "<|user|>\nHi\n",
        "<|assistant|>\nHello",
        "<|assistant|>\nHey you",
    )
    row = {
        **RB1,
        "text_chosen": user("Hi") + assistant("a"),
        "text_rejected": user("Hi") + assistant("b"),
    }
    assert (
        words(read([row]).pairs) == words(read([{**row, "prompt": "Hi"}]).pairs) == ("Hi", "a", "b")
    )


def test_the_json_of_columns_that_rewardbench_publishes(tmp_path, refused):
    columns = {name: [value, value] for name, value in RB1.items()} | {
        "model": "org/rm",
        "chat_template": "tokenizer",
    }
    path = tmp_path / "reward.json"
    path.write_text(json.dumps(columns, indent=4))
    assert read_scores(path).pairs.rewards.tolist() == [[2.5, 2.5], [1, 1]]
    path.write_text(json.dumps({**columns, "id": [SECRET]}))
    assert ": columns of unequal length ('id' 1, " in refused(None, "reward.json")
    path.write_text('{"model": "org/rm"}')
    assert refused(None, "reward.json").startswith(":1: columns ['model'] are no scores")


def test_the_shared_start_of_texts():
    assert split_prompt(["Q\nA b", "Q\nA c"]) == ("Q\n", ["A b", "A c"])
    assert split_prompt(["Q b", "Q c"]) == ("", ["Q b", "Q c"])  # no end of a line to cut at
    assert split_prompt(["Q\n", "Q\nA"]) == ("", ["Q\n", "Q\nA"])  # one side would be left empty
    assert split_prompt(["a\nb\nc", "a\nb\nd", "a\nx"]) == ("a\n", ["b\nc", "b\nd", "x"])


@pytest.mark.parametrize("tokens", [True, False])
def test_what_is_written_reads_back_equal(tmp_path, tokens):
    rows = [
        {
            "prompt": user("p"),
            "chosen": assistant("p again"),
            "rejected": assistant("\n\nno"),
            "subset": "s",
            "votes": [2, 1],
        },
        {
            "prompt": "\n\nHuman: raw\n\nAssistant:",
            "chosen": " yes\ud800",
            "rejected": " no",
            "bayes_accuracy": 0.75,
        },
        {"prompt": [], "chosen": assistant("same line\n1"), "rejected": assistant("same line\n2")},
        {"prompt": "p", "chosen": "- a list", "rejected": "perhaps"},
    ]
    for row, reward in zip(rows, (1.1, math.nan, 0.1 + 0.2, -3e-9), strict=True):
        row |= {"reward_chosen": reward, "reward_rejected": 2.0}
        row |= {"chosen_tokens": 9, "rejected_tokens": 4} if tokens else {}
    before = Pairs.collect(rows, "tokens" if tokens else "characters")
    path = tmp_path / "scores.jsonl"
    write_scores(before, path)
    after = read_scores(path).pairs
    for name in (
        "rewards",
        "lengths",
        "characters",
        "markdown",
        "hedges",
        "votes",
        "bayes_accuracy",
    ):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)
    assert after.subset.tolist() == ["s", "all", "all", "all"] and after.prompt.tolist() == [
        0,
        1,
        3,
        0,
    ]
    assert (after.length_unit, after.human_labels) == (before.length_unit, True)
    assert [words(after, i) for i in (0, 2, 3)] == [words(before, i) for i in (0, 2, 3)]
    first = json.loads(path.read_text().splitlines()[0])
    assert (
        first["text_chosen"] == "p\n\np again"
        and first["prompt"] == user("p")
        and first["scores_chosen"] == 1.1
    )
    assert json.loads(path.read_text().splitlines()[1])["scores_chosen"] is None


# --- RewardBench 2 --------------------------------------------------------------------------------

RB2 = {
    "id": "1",
    "subset": "Math",
    "prompt": "2+2?",
    "chosen": ["4"],
    "rejected": ["5", "6", "22"],
    "num_correct": 1,
}
RB2 |= {"scores_chosen": [1.0], "scores_rejected": [0.0, 2.0, -1.0]}


def test_rewardbench_2(read):
    scores = read([RB2])
    assert (scores.kind, scores.pairs.human_labels) == ("RewardBench 2 scores", False)
    assert scores.pairs.rewards.tolist() == [
        [1, 1, 1],
        [0, 2, -1],
    ] and scores.pairs.prompt.tolist() == [0, 0, 0]
    assert [words(scores.pairs, i) for i in range(3)] == [
        ("2+2?", "4", wrong) for wrong in ("5", "6", "22")
    ]
    overall, math = scores.benchmark.numbers
    assert (math.subset, math.value, math.n, overall.value) == ("Math", 0.0, 1, 0.0)


def test_rewardbench_2_as_its_script_writes_it(read):
    """`text` and `scores` hold the right completions first; there is no prompt beside them."""
    texts = [f"<user>\n2+2?\n<assistant>\n{answer}" for answer in ("4", "four", "5")]
    row = {
        "id": "tied:0",
        "subset": "Ties",
        "text": texts,
        "scores": [[3.0], [2.5], [-1.0]],
        "num_correct": 2,
    }
    pairs = read([row, {**row, "text": ["yes", "sure", "no"]}]).pairs
    assert pairs.rewards.tolist() == [[3, 2.5, 3, 2.5], [-1, -1, -1, -1]]
    assert (
        words(pairs, 1) == ("<user>\n2+2?\n<assistant>\n", "four", "5")
        and pairs.prompt[0] == pairs.prompt[1]
    )
    assert words(pairs, 2) == ("", "yes", "no") and pairs.prompt.tolist() == [
        0,
        0,
        2,
        2,
    ]  # unknown, but one
    flat = {
        "prompt": "p",
        "chosen": ["a"],
        "rejected": ["b"],
        "scores": [1, None],
        "num_correct": 1,
        "subset": "Focus",
    }
    scores = read([flat])
    assert scores.pairs.rewards[0].tolist() == [1] and scores.benchmark.numbers[1].value == 0


# --- RM-Bench -------------------------------------------------------------------------------------

RM = {
    "id": 1,
    "prompt": "Cat?",
    "domain": "chat",
    "chosen": ["c1", "c2", "c3"],
    "rejected": ["r1", "r2", "r3"],
}
RM |= {"score_chosen": [0.0, 1.0, 2.0], "score_rejected": [-1.0, 0.0, [1.5]]}


def test_rm_bench_by_hand(read):
    """Wins: c1 beats r1 alone (0 > 0 is none), c2 beats r1 and r2, c3 beats all."""
    scores = read([RM])
    assert (scores.kind, scores.pairs.human_labels) == ("RM-Bench scores", False)
    assert scores.benchmark.style_matrix == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    values = {x.name: x.value for x in scores.benchmark.numbers}
    expected = {
        "RM-Bench": 6 / 9,
        "RM-Bench, easy": 1.0,
        "RM-Bench, normal": 1.0,
        "RM-Bench, hard": 0.0,
    }
    assert values == pytest.approx(expected)
    assert (
        scores.pairs.rewards[:, :4].tolist() == [[0, 0, 0, 1], [-1, 0, 1.5, -1]]
        and len(scores.pairs) == 9
    )
    assert words(scores.pairs, 5) == ("Cat?", "c2", "r3") and scores.pairs.subset[0] == "chat"


def test_a_file_of_one_rm_bench_domain_is_one_table(read):
    """The published files of one domain have a `subset`, and no `domain`."""
    row = {name: value for name, value in RM.items() if name != "domain"}
    numbers = read(
        [{**row, "subset": s} for s in ("xstest-should-refuse", "refusals-dangerous")]
    ).benchmark.numbers
    assert [x.subset for x in numbers] == [None] * 4 and numbers[0].n == 2


def test_benchmark_numbers_become_checks_without_a_verdict(read):
    checks = benchmark_checks(read([RM]).benchmark)
    assert [(c.name, c.verdict, c.n) for c in checks][:2] == [
        ("RM-Bench", "not applicable", 1),
        ("RM-Bench, easy", "not applicable", 1),
    ]
    assert benchmark_checks(None) == []


# --- JudgeBench, LLMBar ---------------------------------------------------------------------------

JUDGE = {
    "question": "Q?",
    "response_A": "a",
    "response_B": "b",
    "label": "B>A",
    "source": "livecodebench",
}
JUDGE |= {
    "judgments": [
        {"judgment": {"scores": [1.5, 1.25]}, "decision": "A>B"},
        {"judgment": {"scores": [1.25, 1.5]}},
    ]
}
LLM = {
    "input": "I",
    "output_1": "one",
    "output_2": "two",
    "label": 2,
    "reward_1": 0.5,
    "reward_2": 0.75,
}


def test_judgebench(read):
    scores = read([JUDGE, {**JUDGE, "label": "A>B"}, {**JUDGE, "judgments": [None, None]}])
    assert (scores.kind, scores.pairs.human_labels) == ("JudgeBench judgments", False)
    assert words(scores.pairs) == ("Q?", "b", "a") and words(scores.pairs, 1) == ("Q?", "a", "b")
    assert (
        scores.pairs.rewards[:, :2].tolist() == [[1.25, 1.5], [1.5, 1.25]]
        and np.isnan(scores.pairs.rewards[:, 2]).all()
    )
    assert scores.pairs.subset[0] == "livecodebench"
    # The first pair is in the wrong order, the second in the right one, the third has no rewards.
    numbers = [(x.name, x.subset, x.value, x.n) for x in scores.benchmark.numbers]
    assert numbers == [("JudgeBench", None, 1 / 3, 3), ("JudgeBench", "livecodebench", 1 / 3, 3)]


def test_rewardbench_rows_have_its_number(read):
    """RewardBench's own score files have it, and rows of RewardBench that score.py scored."""
    ours = [{**PLAIN, "subset": "math-prm"}, {**PLAIN, "subset": "shp", "reward_rejected": 2}]
    theirs = {"text_chosen": "Sky?\n\nBlue.", "text_rejected": "Sky?\n\nGreen.", "subset": "hep-go"}
    scored = [{**theirs, "scores_chosen": 1, "scores_rejected": x} for x in (0, 1, 2)]
    for rows, value in ((ours, (1 + 0.5 * 0) / 1.5), (scored, 1 / 3)):
        scores = read(rows)
        first = scores.benchmark.numbers[0]
        assert (first.name, first.value) == ("RewardBench", pytest.approx(value))
        assert not scores.pairs.human_labels
    # A subset that RewardBench does not have, and its prior sets alone, are other people's data.
    for subset in ("law", "shp"):
        scores = read([{**PLAIN, "subset": subset}])
        assert scores.benchmark is None and scores.pairs.human_labels
    assert read([*ours, {**PLAIN, "subset": "law"}]).benchmark is None


def test_llmbar(read):
    scores = read([LLM, {**LLM, "label": 1}])
    assert (scores.kind, scores.pairs.human_labels) == ("LLMBar with rewards", False)
    assert scores.pairs.rewards.tolist() == [[0.75, 0.5], [0.5, 0.75]] and words(scores.pairs) == (
        "I",
        "two",
        "one",
    )


def test_benchmarks_that_score_py_scored_are_right_by_construction(read):
    sides = {
        "prompt": user("p"),
        "chosen": assistant("b"),
        "rejected": assistant("a"),
        "reward_chosen": 1,
        "reward_rejected": 0,
    }
    for row in (JUDGE, {name: LLM[name] for name in ("input", "output_1", "output_2", "label")}):
        scores = read([{**row, **sides}])
        assert scores.kind == "preference pairs with rewards" and not scores.pairs.human_labels


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {**PLAIN, "reward_chosen": SECRET},
            "`reward_chosen` is no number; a number is needed, or null where",
        ),
        ({**PLAIN, "reward_chosen": True}, "`reward_chosen` is no number"),
        ({**PLAIN, "reward_chosen": [1, 2]}, "`reward_chosen` is no number"),
        (
            {k: PLAIN[k] for k in PLAIN if k != "reward_rejected"},
            "`reward_rejected` missing; needed are reward_chosen, re",
        ),
        (
            {"prompt": SECRET, "chosen": "a", "rejected": "b"},
            "preference pairs without rewards; score it first: python score.",
        ),
        (
            {"prompt": SECRET, "completion": "a"},
            "a completion without its `reward`; score it first: python score.py",
        ),
        (
            {"input": SECRET, "output_1": "a", "output_2": "b", "label": 1},
            "preference pairs without rewards; score it first",
        ),
        (
            {"question": SECRET},
            "columns ['question'] are no scores that are read here; "
            "needed is a preference row with",
        ),
        ([SECRET], "a row is a JSON object with named columns"),
        ({**PLAIN, "chosen": 7}, "`chosen` is a number; a string or a list of messages"),
        ({**RB1, "scores_chosen": SECRET}, "`scores_chosen` is no number"),
        (
            {**RB1, "text_chosen": 7},
            "`text_chosen` and `text_rejected` must both be strings, or both lists of messages",
        ),
        (
            {k: RB1[k] for k in RB1 if k != "text_chosen"},
            "`text_chosen` missing; needed are scores_chosen, scores_re",
        ),
        (
            {**RB2, "scores_rejected": [1, 2]},
            "`scores_rejected` holds 2 numbers for 3 completions in `rejected`; one",
        ),
        ({**RB2, "scores_rejected": 1}, "`scores_rejected` holds no list for 3 completions"),
        (
            {**RB2, "num_correct": 2},
            "1 completions in `chosen`, but `num_correct` is another number",
        ),
        ({**RB2, "rejected": []}, "`rejected` must be a list of one string or more"),
        (
            {"text": [SECRET, "b"], "scores": [1, 2], "num_correct": 2},
            "`num_correct` must be a count from 1 to 1, for 2",
        ),
        ({**RM, "rejected": ["a", "b"]}, "2 completions in `rejected`; RM-Bench has 3"),
        (
            {**RM, "score_chosen": [1, 2]},
            "`score_chosen` holds 2 numbers for 3 completions in `chosen`",
        ),
        ({**RM, "score_chosen": [1, 2, SECRET]}, "`score_chosen` is no number"),
        ({**JUDGE, "label": SECRET}, '`label` must be "A>B" or "B>A"'),
        (
            {**JUDGE, "judgments": [{"judgment": {"response": SECRET}}]},
            "`judgments[0].judgment.scores` is missing; two",
        ),
        ({**JUDGE, "judgments": []}, "`judgments[0].judgment.scores` is missing"),
        ({**LLM, "label": 3}, "`label` is neither 1 nor 2, the better output"),
        ({"prompt": "p", "completion": SECRET, "reward": "high"}, "`reward` is no number"),
        (
            {"prompt": 3, "completion": SECRET, "reward": 1},
            "`prompt` must be a string or a list of messages",
        ),
        (
            {"prompt": "p", "completions": [SECRET, "b"], "rewards": [1, 2], "gold": 0.5},
            "`gold` holds no list for 2 completions",
        ),
        ({"completion": SECRET, "reward": 1}, "`prompt` missing; needed are prompt, completion"),
    ],
)
def test_a_malformed_row_says_what_mends_it(refused, row, message):
    assert refused([row]).startswith(f":1: {message}")


def test_a_row_of_another_format_than_the_first(refused):
    message = refused([PLAIN, {**RB1, "text_chosen": SECRET}])
    assert message == (
        ":2: RewardBench 1 scores, after preference pairs with rewards; "
        "one format a file is needed: split the file"
    )


def test_bad_rows_are_left_out_and_counted(tmp_path, refused):
    """score.py writes such rows: a malformed line, and one that it could not read."""
    unscored = {"prompt": "p", "chosen": "a", "rejected": "b"}
    malformed = {"reward": None, "reward_error": "no valid JSON at column 3"}
    path = write_rows(tmp_path / "scored.jsonl", [PLAIN, unscored, malformed, PLAIN])
    with path.open("a") as file:
        file.write("{cut\n")
    scores = read_scores(path)
    assert len(scores.pairs) == 2
    assert scores.kind.split("; ")[1:] == [
        f"1 left out: cannot be read: no valid JSON (first: {path}:5)",
        f"1 left out: cannot be read: preference pairs without rewards (first: {path}:2)",
        "1 left out: cannot be read: score.py could not read it either: no valid JSON at column 3 "
        f"(first: {path}:3)",
    ]
    with pytest.raises(DataError, match=":2: preference pairs without rewards; score it first"):
        read_scores(path, on_bad_row="stop")
    assert refused([unscored, malformed]).startswith(":1: preference pairs without rewards")


def test_bad_rows_of_scored_completions_are_said(tmp_path):
    rows = [{"prompt": f"p{i // 2}", "completion": f"{i}", "reward": i} for i in range(8)]
    path = write_rows(tmp_path / "own.jsonl", [*rows, {"prompt": "p", "reward": 1}])
    audit = audit_scores(write_rows(tmp_path / "scored.jsonl", [PLAIN]))
    add_completions(audit, read_completions(path))
    (said,) = [phrase for phrase in audit.not_measured if "cannot be read" in phrase]
    assert said.startswith("Of --completions 1 left out: cannot be read: ")
    assert said.endswith(f" (first: {path}:9).")


def test_the_newest_rewards_of_a_file_that_was_scored_twice(tmp_path):
    """A rater's margin stays where it is, and is no difference of rewards."""
    twice = PLAIN | {"new_reward_chosen": 7, "new_reward_rejected": 5, "new_margin": 2}
    for row in (twice, twice | {"margin": 0.5}):
        path = write_rows(tmp_path / "scored.jsonl", [row])
        assert read_scores(path).pairs.rewards.tolist() == [[7], [5]]


def test_an_empty_file(refused, tmp_path):
    assert refused([]).startswith(
        ": no rows; needed is a preference row with `reward_chosen, reward_rejected`"
    )
    assert refused(None, "missing.jsonl") == ": no such file"
    (tmp_path / "broken.json").write_text('{"a": ')
    assert refused(None, "broken.json").startswith(": cannot be read as json at line 1")


def test_one_pair_one_subset_and_a_completion_of_10_megabytes(read):
    long = "word " * 2_000_000
    pairs = read([{**PLAIN, "subset": "only", "chosen": long}]).pairs
    assert len(pairs) == 1 and pairs.characters[0, 0] == 10_000_000
    assert len(words(pairs)[1]) < LONGEST_TEXT + 50
    long = "word " * 1_000_000
    row = {**RB1, "text_chosen": "Q\n" + long, "text_rejected": "Q\n" + long + "b"}
    assert read([row]).pairs.characters[1, 0] == 5_000_001


def test_reading_imports_no_torch(tmp_path):
    path = write_rows(tmp_path / "scored.jsonl", [PLAIN])
    code = (
        "import sys; from auditing.scores import read_scores; read_scores(sys.argv[1]); "
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("cell", "human"),
    [("False", False), ("false", False), (False, False), ("True", True), (1, True)],
)
def test_human_labels_as_a_table_writes_them(read, cell, human):
    assert read([PLAIN | {"human_labels": cell}]).pairs.human_labels is human


def test_sentinels_among_completions_are_no_rewards(read):
    row = {"prompt": "Sky?", "completion": "Blue.", "reward": 1.0, "gold": 1.0}
    rows = [row, row | {"reward": -1.797e308, "gold": 1e200}]
    completions = read(rows).completions
    assert np.isnan(completions.reward).tolist() == [False, True]
    assert np.isnan(completions.gold).tolist() == [False, True]
