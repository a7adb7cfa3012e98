"""Rows to score: what the model reads of each format, and the columns that its rewards go to."""

import pytest

from reward.data.formats import RowError
from reward.data.rows_to_score import row_to_score, row_without_rewards, with_rewards
from reward.data.transcripts import assistant, user

LABELLED = {"prompt": "p", "response_a": "a", "response_b": "b", "label": "b"}


def test_a_completion():
    row = {"prompt": "p", "response": "a", "tools": '[{"name": "add"}]'}
    to_score = row_to_score(row, "messages")
    assert (to_score.prompt, to_score.completions) == (user("p"), [assistant("a")])
    assert to_score.tools == [{"name": "add"}] and to_score.row is row
    assert row_to_score(row, "raw").completions == ["a"]
    assert with_rewards(row, [1.5]) == {**row, "reward": 1.5} and "reward" not in row


def test_a_format_that_names_no_side_gets_them():
    to_score = row_to_score(LABELLED, "messages")
    sides = {"prompt": user("p"), "chosen": assistant("b"), "rejected": assistant("a")}
    assert to_score.row == LABELLED | sides
    assert to_score.completions == [sides["chosen"], sides["rejected"]]
    scored = with_rewards(to_score.row, [2.0, 0.5])
    rewards = {"reward_chosen": 2.0, "reward_rejected": 0.5, "margin": 1.5}
    assert scored == to_score.row | rewards
    del rewards["margin"]
    assert row_without_rewards(scored) == LABELLED | {"prompt": user("p")} | rewards


def test_a_reward_that_is_missing_leaves_no_margin():
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert with_rewards(row, [None, 1.0])["margin"] is None


def test_sides_with_different_prompts_have_no_prompt():
    row = {"chosen": user("p") + assistant("a"), "rejected": user("q") + assistant("b")}
    assert row_to_score(row, "messages").prompt is None


def test_lists_of_completions_are_scored_in_the_order_of_their_lists():
    row = {"prompt": "p", "chosen": ["a", "b"], "rejected": ["c"]}
    assert row_to_score(row, "messages").completions == [assistant(text) for text in "abc"]
    assert with_rewards(row, [3, 2, 1]) == {**row, "scores_chosen": [3, 2], "scores_rejected": [1]}
    rm_bench = {"domain": "chat", "chosen": ["a"], "rejected": ["c"]}
    assert with_rewards(rm_bench, [2, 1]) == {
        **rm_bench,
        "score_chosen": [2],
        "score_rejected": [1],
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "a row is a JSON object with named columns"),
        ({"prompt": 3, "completion": "a"}, "`prompt` and `completion` must each be a string or"),
        (
            {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 2, 3]},
            "a ranking of 3 pairs; give one row a completion",
        ),
    ],
)
def test_a_row_that_cannot_be_scored(row, message):
    with pytest.raises(RowError) as caught:
        row_to_score(row, "messages")
    assert str(caught.value).startswith(message)
