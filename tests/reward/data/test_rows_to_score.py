"""Rows to score: what the model reads of each format, and the columns that its rewards go to."""

import pytest

from auditing.score_formats import parse_score_row
from reward.data.formats import RowError, to_pairs, unread_columns
from reward.data.rows_to_score import (
    free_name,
    newest_columns,
    reward_columns,
    row_to_score,
    row_without_rewards,
)
from reward.data.transcripts import assistant, user

LABELLED = {"prompt": "p", "response_a": "a", "response_b": "b", "label": "b"}


def test_a_completion():
    row = {"prompt": "p", "response": "a", "tools": '[{"name": "add"}]'}
    to_score = row_to_score(row, "messages")
    assert (to_score.prompt, to_score.completions) == (user("p"), [assistant("a")])
    assert to_score.tools == [{"name": "add"}] and to_score.row is row
    assert row_to_score(row, "raw").completions == ["a"]
    assert reward_columns(row, [1.5]) == {"reward": 1.5}


TRANSCRIPT = "Human: tea?\n\nAssistant: with water\n\nHuman: that depends"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": TRANSCRIPT, "chosen": "a ", "chosen_model": "m", "rejected": "b"}
        | {"rejected_model": "n", "subset": "llmbar-natural"},
        {"prompt": TRANSCRIPT, "chosen": ["a "], "rejected": ["b"], "num_correct": 1},
        {"prompt": TRANSCRIPT, "chosen": ["a "] * 3, "rejected": ["b"] * 3, "domain": "chat"},
        {"question": TRANSCRIPT, "response_A": "a ", "response_B": "b", "label": "A>B"},
    ],
)
def test_a_benchmarks_prompt_is_one_turn_as_in_its_own_script(row):
    """score.py split it into its turns, audit.py --benchmark did not."""
    to_score = row_to_score(row, "messages")
    assert to_score.prompt == user(TRANSCRIPT)
    completions = to_score.completions
    assert (completions[0], completions[-1]) == (assistant("a "), assistant("b"))
    rewards = [float(i) for i in range(len(completions))]
    scored = parse_score_row(to_score.row | reward_columns(to_score.row, rewards))
    assert all(pair["prompt"] == user(TRANSCRIPT) for pair in scored.pairs)


def test_any_other_transcript_is_split_into_its_turns():
    row = {"prompt": TRANSCRIPT, "chosen": ["a"], "rejected": ["b"]}
    assert len(row_to_score(row, "messages").prompt) == 3


def test_a_format_that_names_no_side_gets_them():
    """The row keeps its own prompt, so its sides hold the conversation, as in UltraFeedback."""
    to_score = row_to_score(LABELLED, "messages")
    sides = {"chosen": user("p") + assistant("b"), "rejected": user("p") + assistant("a")}
    assert to_score.row == LABELLED | sides
    assert to_score.completions == [assistant("b"), assistant("a")]
    columns = reward_columns(to_score.row, [2.0, 0.5])
    assert columns == {"reward_chosen": 2.0, "reward_rejected": 0.5, "margin": 1.5}
    scored = to_score.row | columns
    del columns["margin"]
    assert row_without_rewards(scored) == LABELLED | columns
    (pair,) = to_pairs(to_score.row)
    assert (pair["prompt"], pair["chosen"]) == (user("p"), assistant("b"))
    unnamed = {"question": "p", "response_A": "a", "response_B": "b", "label": "A>B"}
    sides = {"prompt": user("p"), "chosen": assistant("a"), "rejected": assistant("b")}
    assert row_to_score(unnamed, "messages").row == unnamed | sides


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "response_a": "a", "response_b": "b", "winner": "tie"},
        {"question": "p", "response_A": "a", "response_B": "b", "label": "A=B"},
        {"context": "p", "response1": "a", "response2": "b", "overall_preference": -2},
        {"prompt": "p", "response_a": "a", "response_b": "b", "winner": "model_b"},
    ],
)
def test_a_scored_row_is_trained_on_as_its_raters_labelled_it(row):
    """A tie is no preference for the first side, and a strength stays one."""
    to_score = row_to_score(row, "messages")
    scored = to_score.row | reward_columns(to_score.row, [1.0, 2.0])
    assert "chosen" in scored and to_pairs(scored) == to_pairs(row)
    assert unread_columns(scored) == ["reward_chosen", "reward_rejected", "margin"]
    again = row_to_score(scored, "messages")
    assert again.completions == to_score.completions and again.row == scored


def test_the_margin_of_raters_is_no_difference_of_rewards():
    """It stays their target margin; the model's own is left out."""
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2.0}
    rewards = {"reward_chosen": 0.75, "reward_rejected": 0.5}
    assert row_without_rewards(row | rewards) == row | rewards
    (pair,) = to_pairs(row_without_rewards(row | rewards))
    assert pair["target_margin"] == 2.0
    own = row | rewards | {"margin": 0.25}
    assert "margin" not in row_without_rewards(own)


def test_no_column_is_overwritten():
    assert free_name("reward", {"prompt"}) == "reward"
    assert free_name("reward", {"reward"}) == "new_reward"
    assert free_name("reward", {"reward", "new_reward"}) == "new_reward_2"
    assert free_name("reward", {"reward", "new_reward", "new_reward_2"}) == "new_reward_3"


def test_the_newest_columns_are_read():
    row = {"prompt": "p", "reward": 1, "new_reward": 2, "new_reward_3": 4, "new_reward_2": 3}
    assert newest_columns(row)["reward"] == 4
    assert newest_columns({"prompt": "p", "reward": 1, "new_rewarding": 2})["reward"] == 1
    twice = {"reward_chosen": 1, "new_reward_chosen": 2, "margin": 3, "new_margin": 4}
    assert newest_columns(twice) == twice | {"reward_chosen": 2}


def test_a_reward_that_is_missing_leaves_no_margin():
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert reward_columns(row, [None, 1.0])["margin"] is None


def test_sides_with_different_prompts_have_no_prompt():
    row = {"chosen": user("p") + assistant("a"), "rejected": user("q") + assistant("b")}
    assert row_to_score(row, "messages").prompt is None


def test_lists_of_completions_are_scored_in_the_order_of_their_lists():
    row = {"prompt": "p", "chosen": ["a", "b"], "rejected": ["c"]}
    assert row_to_score(row, "messages").completions == [assistant(text) for text in "abc"]
    assert reward_columns(row, [3, 2, 1]) == {"scores_chosen": [3, 2], "scores_rejected": [1]}
    rm_bench = {"domain": "chat", "chosen": ["a"], "rejected": ["c"]}
    assert reward_columns(rm_bench, [2, 1]) == {"score_chosen": [2], "score_rejected": [1]}


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
