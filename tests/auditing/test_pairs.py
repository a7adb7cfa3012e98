"""Scored pairs as columns: what is kept of each pair, and which pairs a selection holds."""

import numpy as np

from auditing.pairs import LONGEST_TEXT, Pairs
from reward.data.transcripts import assistant, user


def scored_pair(chosen: str = "yes", reward_chosen: float | None = 1.0, **more) -> dict:
    return {
        "prompt": user("p"),
        "chosen": assistant(chosen),
        "rejected": "perhaps",
        "reward_chosen": reward_chosen,
        "reward_rejected": 0.5,
        **more,
    }


def test_the_columns_of_a_pair():
    pairs = Pairs.collect([scored_pair("- a\n- b", chosen_tokens=3, votes=[2, 1])])
    assert pairs.rewards.tolist() == [[1.0], [0.5]] and pairs.margins.tolist() == [0.5]
    assert pairs.lengths.tolist() == [[3], [7]] and pairs.length_differences.tolist() == [-4]
    assert pairs.characters.tolist() == [[7], [7]]
    assert pairs.markdown.tolist() == [[2], [0]] and pairs.hedges.tolist() == [[0], [1]]
    assert pairs.subset.tolist() == ["all"] and pairs.votes.tolist() == [[2, 1]]
    assert pairs.voted.tolist() == [True] and pairs.human_labels


def test_a_selection_keeps_its_texts():
    pairs = Pairs.collect([scored_pair("a"), scored_pair("b", None), scored_pair("c", 1e200)])
    assert np.isnan(pairs.rewards[0]).tolist() == [False, True, False]
    assert np.isinf(pairs.rewards[0]).tolist() == [False, False, True]
    assert len(pairs.finite()) == 1 and pairs.finite().text(0)["chosen"] == assistant("a")
    last = pairs.take([2]).take(np.array([True]))
    assert last.text(0)["chosen"] == assistant("c")
    assert len(pairs.take([])) == 0


def test_pairs_of_simulated_raters_have_no_human_labels():
    assert not Pairs.collect([scored_pair(bayes_accuracy=0.8)]).human_labels
    assert Pairs.collect([scored_pair(bayes_accuracy=0.8), scored_pair()]).human_labels


def test_a_long_text_is_cut():
    text = Pairs.collect([scored_pair("a" * (LONGEST_TEXT + 1234))]).text(0)["chosen"][0]["content"]
    assert text == "a" * LONGEST_TEXT + "\u2026 (1,234 more characters)"
