"""The labels: noise from votes, duplicates that contradict, and what the report shows to be read. Values worked by hand."""

import tracemalloc

import numpy as np
import pytest

from auditing.checks.labels import label_checks, top_and_bottom, worst_errors
from auditing.checks.raters import label_accuracy
from auditing.pairs import Pairs
from auditing.result import ExtremeCompletion, WorstError


def row(chosen="yes", rejected="no", rewards=(1.0, 0.0), prompt="Why?", **more) -> dict:
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected} | more
    return row | {"reward_chosen": rewards[0], "reward_rejected": rewards[1]}


def messages(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


def check(rows, name):
    (found,) = [check for check in label_checks(Pairs.collect(rows)) if check.name == name]
    assert found.section == "labels"
    return found


# --- votes -----------------------------------------------------------------------------------------------------------


def test_label_accuracy_by_hand():
    assert label_accuracy(np.array([1]), 0.2) == pytest.approx(0.8)
    assert label_accuracy(np.array([3]), 0.2) == pytest.approx(0.8**3 + 3 * 0.8**2 * 0.2)
    assert label_accuracy(np.array([2]), 0.2) == pytest.approx(0.8)  # .64 + half of .32
    assert label_accuracy(np.array([1, 3, 3, 1]), 0.2) == pytest.approx((0.8 + 0.896) / 2)
    assert label_accuracy(np.array([3, 10**6]), 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("noise, verdict", [(0.1, "pass"), (0.3, "warn"), (0.45, "fail")])
def test_label_noise_is_found_from_votes(noise, verdict):
    rng = np.random.default_rng(0)
    right = rng.binomial(5, 1 - noise, 2000)
    found = check(
        [row(votes=[max(k, 5 - k), min(k, 5 - k)]) for k in right.tolist()], "label noise"
    )
    assert found.low < noise < found.high and found.value == pytest.approx(noise, abs=0.03)
    assert (found.n, found.verdict) == (2000, verdict)


def test_rater_agreement_says_what_accuracy_it_allows():
    # Three votes of which two agree: 1/3 of the couples; all agree: 1. Mean .68 -> e = .2 -> majority right .896.
    rows = (
        [row(votes=[3, 0])] * 52 + [row(votes=[2, 1])] * 48 + [row(votes=[1, 0])] * 7 + [row()] * 9
    )
    found = check(rows, "rater agreement")
    assert found.value == pytest.approx(0.68) and found.low < 0.68 < found.high
    assert (found.n, found.verdict) == (100, "not applicable")
    assert "a perfect model scores .896 on the majority of such raters" in found.note
    assert check(rows, "label noise").value == pytest.approx(0.2)


def test_without_votes_noise_is_not_applicable():
    found = check([row(), row(votes=[1, 0])], "label noise")
    assert (found.verdict, found.value, found.note) == (
        "not applicable",
        None,
        "no pair carries three votes, or more of an odd number",
    )


# --- duplicates ------------------------------------------------------------------------------------------------------


def test_contradictory_and_repeated_pairs_are_counted():
    rows = [
        row("yes", "no"),
        row("no", "yes"),
        row("yes", "no"),
        row("yes", "no", prompt="How?"),
        row("yes", "on"),
    ]
    rows += [row(f"yes {i}", "no") for i in range(5)]
    found = check(rows, "contradictory duplicates")
    assert (found.value, found.n, found.verdict) == (0.3, 10, "warn")  # three pairs of ten say both
    assert (found.low, found.high) == pytest.approx((0.1078, 0.6032), abs=5e-5)  # Wilson
    assert found.note == "3 pairs of 10: same prompt and completions, labelled both ways"
    repeated = check(rows, "duplicate pairs")
    assert (repeated.value, repeated.n) == (0.1, 10)


def test_messages_and_subsets_do_not_hide_a_duplicate():
    sides = {"chosen": messages("assistant", "yes"), "rejected": messages("assistant", "no")}
    swapped = {"chosen": sides["rejected"], "rejected": sides["chosen"]}
    rows = [
        row(**s, prompt=messages("user", "Why?"), subset=name)
        for s, name in ((sides, "a"), (swapped, "b"))
    ]
    assert check(rows, "contradictory duplicates").value == 1.0
    assert check(rows, "duplicate pairs").value == 0.0


def test_duplicates_read_only_what_can_be_one():
    """A hundred thousand different pairs: no text is read back, and no more than the columns is held."""
    n = 100_000
    pairs = Pairs(
        rewards=np.random.default_rng(0).normal(size=(2, n)), lengths=np.ones((2, n)), characters=np.ones((2, n)),
        markdown=np.zeros((2, n)), hedges=np.zeros((2, n)), subset=np.full(n, "all", dtype=object), prompt=np.arange(n),
        votes=np.full((n, 2), np.nan), bayes_accuracy=np.full(n, np.nan), text=None,
    )  # fmt: skip
    tracemalloc.start()
    assert [c.value for c in label_checks(pairs) if "duplicate" in c.name] == [0.0, 0.0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


# --- what to read ----------------------------------------------------------------------------------------------------


def test_confident_errors():
    """Of 100 pairs the ten with the largest |margin|: all wrong, or one."""
    margins = [1.0] * 90 + [-3.0] * 10
    found = check(
        [row(rewards=(m, 0.0), prompt=f"{i}?") for i, m in enumerate(margins)], "confident errors"
    )
    assert (found.value, found.n, found.verdict) == (1.0, 10, "fail")
    margins = [1.0] * 81 + [-0.5] * 9 + [3.0] * 9 + [-3.0]
    found = check(
        [row(rewards=(m, 0.0), prompt=f"{i}?") for i, m in enumerate(margins)], "confident errors"
    )
    assert (found.value, found.n, found.verdict) == (0.1, 10, "not measurable")
    for rewards in ((1.0, 0.0), (1.0, None)):
        assert check([row(rewards=rewards)] * 3, "confident errors").verdict == "not measurable"


def test_even_votes_are_left_out_because_their_ties_are():
    """Two raters of a pair who disagree tie, and the pair is gone: of those left, all agree."""
    rows = [row(votes=[2, 0])] * 50 + [row(votes=[3, 0])] * 52 + [row(votes=[2, 1])] * 48
    assert check(rows, "label noise").n == 100 and check(
        rows, "label noise"
    ).value == pytest.approx(0.2)


def test_worst_errors_are_the_most_confident_ones_as_they_were_read():
    rows = [
        row(f"c{i}", f"r{i}", rewards=(m, 0.5), subset="s")
        for i, m in enumerate([1.5, -2, None, 0.5, -7, 0.25])
    ]
    rows[4]["prompt"] = messages("user", "Why?")
    worst = worst_errors(Pairs.collect(rows))
    assert [(e.chosen, e.margin) for e in worst] == [
        ("c4", -7.5),
        ("c1", -2.5),
        ("c5", -0.25),
    ]  # ties and wins are none
    assert worst[0] == WorstError(
        prompt=messages("user", "Why?"), chosen="c4", rejected="r4", margin=-7.5, subset="s"
    )
    assert worst_errors(Pairs.collect(rows), k=2) == worst[:2]


def test_top_and_bottom_are_different_completions_with_finite_rewards():
    rows = [
        row("best", "worst", (9.0, -9.0), subset="a"),
        row("best", "bad", (9.0, -8.0)),
        row("good", "nan", (7.0, None)),
    ]
    rows += [row("best", "worse", (6.0, -8.5), prompt="How?")]
    top, bottom = top_and_bottom(Pairs.collect(rows), k=3)
    assert [(t.prompt, t.completion, t.reward) for t in top] == [
        ("Why?", "best", 9.0), ("How?", "best", 6.0), ("Why?", "bad", -8.0),
    ]  # fmt: skip
    assert [t.completion for t in bottom] == ["worst", "worse", "bad"]
    assert top[0] == ExtremeCompletion(
        prompt="Why?",
        completion="best",
        reward=9.0,
        side="chosen",
        subset="a",
        length=4,
        marks=[],
    )
    assert bottom[0].side == "rejected"


def test_marks_of_length_and_style():
    rows = [
        row("word " * i, "word " * (100 - i), rewards=(0.0, 0.0), prompt=f"{i}?")
        for i in range(1, 50)
    ]
    rows[0] |= {"reward_chosen": 5.0, "reward_rejected": 4.0}
    rows[10] |= {
        "reward_chosen": 3.0,
        "chosen": "## Steps\n- one\n- two\nIt depends. " + "word " * 40,
    }
    top, _ = top_and_bottom(Pairs.collect(rows), k=3)
    assert top[0].marks == ["shorter than 98% of completions"]  # 97 of 98
    assert top[1].marks == ["longer than 98% of completions"]
    assert top[2].marks == [
        'hedge: "It depends"',
        "markdown: 2 list items",
        "markdown: 1 heading",
    ]


def test_no_pairs_and_no_finite_ones():
    empty = Pairs.collect([])
    assert [c.verdict for c in label_checks(empty)] == ["not applicable", *["not measurable"] * 3]
    assert worst_errors(empty) == [] and top_and_bottom(empty) == ([], [])
    pairs = Pairs.collect([row(rewards=(None, 1.0))])
    assert worst_errors(pairs) == [] and top_and_bottom(pairs) == ([], [])
    assert [c.verdict for c in label_checks(pairs) if "duplicate" in c.name] == [
        "not measurable"
    ] * 2
