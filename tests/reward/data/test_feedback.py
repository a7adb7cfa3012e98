"""Rankings, pairs and labels from scored rows: literal rows in, literal rows out."""

import math
import random

import pytest

from reward.data.columns import Columns
from reward.data.feedback import (
    Feedback,
    FeedbackOptions,
    RewardUnits,
    fault_of,
)
from reward.data.files import DataError
from reward.data.rows_to_score import free_name
from reward.data.transcripts import assistant, user


def scored(prompt, *rewards) -> list[dict]:
    """Rows of one prompt; the completion says its reward."""
    return [{"prompt": prompt, "completion": f"is {r}", "reward": r} for r in rewards]


def made(rows: list[dict], units: RewardUnits | None = None, **options) -> tuple[list, list]:
    """The rows out, and the lines of the summary."""
    feedback = Feedback(FeedbackOptions(**options), units)
    return list(feedback.rows(rows)), feedback.summary().splitlines()


TWO_PROMPTS = [
    *scored("p", 1.0, 3.0),
    *scored("q", 5.0, 4.0),
    *scored("p", 2.0),  # far from the other rows of its prompt
]


def test_rank():
    rows, summary = made(TWO_PROMPTS, mode="rank")
    in_short = [(row["prompt"], row["completion"], row["reward"], row["rank"]) for row in rows]
    assert in_short == [
        ("p", "is 3.0", 3.0, 1),
        ("p", "is 2.0", 2.0, 2),
        ("p", "is 1.0", 1.0, 3),
        ("q", "is 5.0", 5.0, 1),
        ("q", "is 4.0", 4.0, 2),
    ]
    assert summary == ["rank: 5 rows of 2 prompts, 5 completions"]


def test_the_best_of_n():
    rows, _ = made(TWO_PROMPTS, mode="rank", n=1)
    assert rows == [
        {"prompt": "p", "completion": "is 3.0", "reward": 3.0, "rank": 1},
        {"prompt": "q", "completion": "is 5.0", "reward": 5.0, "rank": 1},
    ]


def test_ties_share_a_rank_and_the_file_decides():
    rows = scored("p", 1.0, 2.0) + [{"prompt": "p", "completion": "another", "reward": 2.0}]
    ranked, _ = made(rows, mode="rank")
    assert [(row["completion"], row["rank"]) for row in ranked] == [
        ("is 2.0", 1),
        ("another", 1),
        ("is 1.0", 3),
    ]
    best, summary = made(rows, mode="rank", n=1)
    assert [row["completion"] for row in best] == ["is 2.0"]
    assert summary[1:] == ["  1 prompt with a tie at the cut: the first in the file is kept"]


def test_what_is_left_out_is_counted():
    """Null rewards, a completion twice, a prompt alone, a line that was no row, a finished text."""
    rows = [
        *scored("p", 1.0, 1.0, 2.0, None),
        *scored("alone", 7.0),
        {"reward": None, "reward_error": "no valid JSON at column 3"},
        {"text": "<|im_start|>user ...", "reward": 2.0},
    ]
    pairs, summary = made(rows, mode="pairs")
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [("is 2.0", "is 1.0")]
    assert summary[0] == "pairs: 1 row of 2 prompts, 3 completions"
    assert summary[1:5] == [
        "  2 completions without a reward: left out",
        "  1 row with a finished `text`, whose prompt is not known: left out",
        "  1 completion that the same prompt has already: left out",
        "  1 prompt with one completion only: nothing to compare it with",
    ]


def test_all_pairs_of_a_ranking():
    rows = [{"prompt": "p", "completions": ["a", "b", "c"], "rewards": [0.5, 2.0, 0.5], "id": 7}]
    pairs, summary = made(rows, mode="pairs")
    both = {"prompt": "p", "chosen": "b", "reward_chosen": 2.0}
    assert pairs == [
        both | {"rejected": "a", "reward_rejected": 0.5, "margin": 1.5},
        both | {"rejected": "c", "reward_rejected": 0.5, "margin": 1.5},
    ]
    assert summary == [
        "pairs: 2 rows of 1 prompt, 3 completions",
        "  1 pair with equal rewards: left out",
        "  columns left out: id",
        "  the prompts are texts: TRL's trainers put no chat template around them; "
        "--conversational writes messages",
    ]


def test_min_margin():
    pairs, summary = made(scored("p", 0.0, 1.0, 3.0), mode="pairs", min_margin=2.0)
    assert [row["margin"] for row in pairs] == [2.0, 3.0]
    assert summary[1] == "  1 pair below --min_margin: left out"


def test_rejection_sampling():
    """The best two of each prompt, of those that stand out from the prompt's mean."""
    rows = [*scored("p", 0.0, 4.0, 8.0, 8.5), *scored("low", 0.0, 1.0, -1.0, 0.5)]
    kept, summary = made(rows, mode="reject", n=2, min_reward=1.0, min_gap=3.0)
    # the mean of p is 5.125
    assert [(row["reward"], row["rank"]) for row in kept] == [(8.5, 1)]
    assert summary[1:4] == [
        "  2 completions below --min_gap: left out",
        "  1 completion below --min_reward: left out",
        "  1 prompt of which no completion is left",
    ]
    best, _ = made(rows, mode="reject")
    assert [row["reward"] for row in best] == [8.5, 1.0]  # one of each prompt


def test_binary_labels():
    """Good is what is not below the mean reward of its prompt, or a reward that is given."""
    rows = [*scored("p", 0.0, 1.0, 5.0), *scored("tie", 2.0), *scored("alone", 9.0)]
    rows.append({"prompt": "tie", "completion": "other", "reward": 2.0})
    labels, summary = made(rows, mode="label", label_as="binary")
    assert labels == [
        {"prompt": "p", "completion": "is 0.0", "label": False, "reward": 0.0},
        {"prompt": "p", "completion": "is 1.0", "label": False, "reward": 1.0},
        {"prompt": "p", "completion": "is 5.0", "label": True, "reward": 5.0},
    ]
    assert set(summary[1:5]) == {
        "  1 completion labelled true",
        "  2 completions labelled false",
        "  1 prompt whose completions all have the same reward: left out",
        "  1 prompt with one completion only: nothing to compare it with",
    }
    labels, _ = made(rows, mode="label", label_as="binary", min_reward=2.0)
    assert [row["label"] for row in labels] == [False, False, True, True, True, True]


def test_scalar_labels_are_the_rewards():
    labels, _ = made(TWO_PROMPTS[:2], mode="label", label_as="scalar")
    assert labels == [
        {"prompt": "p", "completion": "is 1.0", "reward": 1.0},
        {"prompt": "p", "completion": "is 3.0", "reward": 3.0},
    ]


def test_one_pair_a_prompt_is_the_best_against_the_worst():
    pairs, _ = made(TWO_PROMPTS, mode="label", label_as="pairs")
    assert [(row["chosen"], row["rejected"], row["margin"]) for row in pairs] == [
        ("is 3.0", "is 1.0", 2.0),
        ("is 5.0", "is 4.0", 1.0),
    ]


def test_messages_stay_and_texts_may_become_messages():
    """Tools stay beside their prompt; a system text is a part of the prompt."""
    tools = [{"type": "function", "function": {"name": "add"}}]
    rows = [
        {"messages": user("p") + assistant("a"), "tools": tools, "reward": 1.0},
        {"messages": user("p") + assistant("b"), "tools": tools, "reward": 2.0},
        {"system": "Be brief.", "question": "q", "answer": "a", "reward": 1.0},
    ]
    ranked, _ = made(rows, mode="rank", n=1)
    assert ranked[0]["prompt"] == user("p") and ranked[0]["completion"] == assistant("b")
    assert ranked[0]["tools"] == tools and ranked[1]["tools"] is None
    assert ranked[1]["prompt"] == "Be brief.\n\nq"
    (row,), summary = made(scored("p", 1.0), mode="label", label_as="scalar", conversational=True)
    assert row["prompt"] == user("p") and row["completion"] == assistant("is 1.0")
    assert len(summary) == 1


def test_preference_rows_are_ranked_by_the_model():
    """The raters' side loses if the model says so; HH-RLHF's transcripts are cut at the reply."""
    start = "\n\nHuman: tea?\n\nAssistant:"
    sides = {"chosen": f"{start} no", "rejected": f"{start} yes", "subset": "drinks"}
    row = sides | {"reward_chosen": 1.0, "reward_rejected": 2.0, "margin": -1.0}
    (pair,), summary = made([row], mode="pairs", conversational=True)
    assert pair["prompt"] == user("tea?")
    assert (pair["chosen"], pair["rejected"]) == (assistant("yes"), assistant("no"))
    assert pair["margin"] == 1.0
    assert summary[1] == "  columns left out: subset"
    best, _ = made([row], mode="rank", n=1)
    assert best[0]["subset"] == "drinks" and best[0]["completion"].strip() == "yes"


def test_the_newest_reward_counts_and_no_column_is_overwritten():
    """A file that had a reward and a rank keeps both, in every row."""
    rows = [
        {"prompt": "p", "completion": "a", "reward": 9.0, "rank": "gold", "new_reward": 1.0},
        {"prompt": "p", "completion": "b", "reward": 0.0, "new_reward": 2.0},
    ]
    ranked, _ = made(rows, mode="rank")
    assert ranked == [
        {
            **{"prompt": "p", "completion": "b", "reward": 0.0, "rank": None},
            **{"new_reward": 2.0, "new_rank": 1},
        },
        {
            **{"prompt": "p", "completion": "a", "reward": 9.0, "rank": "gold"},
            **{"new_reward": 1.0, "new_rank": 2},
        },
    ]


def test_the_reward_of_an_earlier_model_is_not_taken_for_the_newest():
    """Somebody has deleted `reward` of a file that was scored twice, and scored it once more."""
    assert free_name("reward", {"new_reward"}) == "new_reward_2"
    assert free_name("reward", {"reward", "new_reward_2", "new_reward_x"}) == "new_reward_3"
    assert free_name("reward", {"new_reward_chosen", "rewards"}) == "reward"
    rows = [
        {"prompt": "p", "completion": "a", "new_reward": 9.0, "new_reward_2": 1.0},
        {"prompt": "p", "completion": "b", "new_reward": 0.0, "new_reward_2": 2.0},
    ]
    best, _ = made(rows, mode="rank", n=1)
    assert best[0]["completion"] == "b" and best[0]["new_reward_2"] == 2.0


def test_renamed_columns():
    """score.py writes a row's own columns, among them one with our name that is not read."""
    rows = [
        {"q": "p", "prompt": "an id", "completion": "a", "reward": 1.0},
        {"q": "p", "prompt": "another id", "completion": "b", "reward": 2.0},
    ]
    columns = Columns.of({"prompt": "q"})
    best, _ = made(rows, mode="rank", n=1, columns=columns)
    assert best == [{"prompt": "p", "completion": "b", "reward": 2.0, "rank": 1}]


def test_scales():
    rows = scored("p", 1.0, 3.0)
    (pair,), _ = made(rows, RewardUnits(temperature=2.0), mode="pairs", calibrated=True)
    assert pair["margin"] == 2.0 and pair["calibrated_margin"] == 1.0
    assert pair["chosen_probability"] == pytest.approx(0.7310586)  # sigmoid(1)
    units = RewardUnits(mean=1.0, std=4.0)
    (pair,), _ = made(rows, units, mode="pairs", normalized=True, min_margin=0.5)
    assert pair["normalized_margin"] == 0.5
    none, _ = made(rows, units, mode="pairs", normalized=True, min_margin=0.6)
    assert none == []
    kept, _ = made(rows, units, mode="reject", normalized=True, min_reward=0.5)
    assert kept[0]["reward"] == 3.0 and kept[0]["normalized_reward"] == 0.5


def test_scattered_rows_of_many_prompts():
    """Every row is used once, whatever the order, and prompts come as they first appear."""
    rows = [row for i in range(50) for row in scored(f"prompt {i}", *range(8))]
    random.Random(0).shuffle(rows)
    ranked, _ = made(rows, mode="rank")
    first_seen = list(dict.fromkeys(row["prompt"] for row in rows))
    assert [row["prompt"] for row in ranked] == [p for p in first_seen for _ in range(8)]
    assert [row["reward"] for row in ranked] == list(range(7, -1, -1)) * 50


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "no completion has both a prompt and a reward: no row at all"),
        ([{"text": "a", "reward": 1.0}], "1 row with a finished `text`, whose prompt is not known"),
        (scored("p", None), "1 completion without a reward"),
        ([{"prompt": "p", "completion": "a"}], "scored row 1: the row has no `reward`"),
        (
            [{"prompt": "p", "completions": ["a"], "rewards": [1.0, 2.0]}],
            "2 rewards, 1 completions",
        ),
        ([{"a": 1, "reward": 1.0}], "1 row that cannot be read: left out"),
    ],
)
def test_a_file_that_gives_nothing_is_refused(rows, message):
    with pytest.raises(DataError) as error:
        made(rows, mode="rank")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "options, fault",
    [
        ({"mode": "label"}, "--mode label needs --as pairs|binary|scalar"),
        ({"mode": "rank", "label_as": "pairs"}, "--as goes with --mode label; found --mode rank"),
        (
            {"mode": "rank", "min_margin": 0.0},
            "--min_margin goes with --mode pairs or --mode label --as pairs; found --mode rank",
        ),
        ({"mode": "pairs", "min_margin": math.nan}, "--min_margin nan: a finite number is needed"),
        ({"mode": "reject", "n": 0}, "--n 0: at least 1 is needed"),
        (
            {"mode": "pairs", "calibrated": True, "normalized": True},
            "--calibrated and --normalized are two scales of a margin: give one of them",
        ),
        ({"mode": "pairs", "calibrated": True, "min_margin": 1.0}, None),
    ],
)
def test_options_that_do_not_fit_together(options, fault):
    assert fault_of(FeedbackOptions(**options)) == fault
