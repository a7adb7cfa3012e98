"""auditing.checks.labels by hand.

Noise from votes, duplicates that contradict, and what the report shows to be read.
"""

import tracemalloc

import numpy as np
import pytest

from auditing.checks.labels import label_checks, top_and_bottom, worst_errors
from auditing.checks.raters import label_accuracy
from auditing.pairs import Pairs
from auditing.result import ExtremeCompletion, WorstError
from auditing.verdicts import Check


def row(chosen="yes", rejected="no", rewards=(1.0, 0.0), prompt="Why?", **more) -> dict:
    """A scored pair, with more columns where they are given."""
    texts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return texts | more | {"reward_chosen": rewards[0], "reward_rejected": rewards[1]}


def messages(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


def check_of(rows: list[dict], name: str) -> Check:
    (check,) = [check for check in label_checks(Pairs.collect(rows)) if check.name == name]
    assert check.section == "labels"
    return check


# --- Votes ----------------------------------------------------------------------------------------


def test_label_accuracy_by_hand():
    assert label_accuracy(np.array([1]), 0.2) == pytest.approx(0.8)
    assert label_accuracy(np.array([3]), 0.2) == pytest.approx(0.8**3 + 3 * 0.8**2 * 0.2)
    assert label_accuracy(np.array([2]), 0.2) == pytest.approx(0.8)  # .64 + half of .32
    assert label_accuracy(np.array([1, 3, 3, 1]), 0.2) == pytest.approx((0.8 + 0.896) / 2)
    assert label_accuracy(np.array([3, 10**6]), 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("noise, verdict", [(0.1, "pass"), (0.3, "warn"), (0.45, "fail")])
def test_label_noise_is_found_from_votes(noise, verdict):
    rng = np.random.default_rng(0)
    right = rng.binomial(5, 1 - noise, 2000).tolist()
    rows = [row(votes=[max(k, 5 - k), min(k, 5 - k)]) for k in right]
    check = check_of(rows, "label noise")
    assert check.low < noise < check.high
    assert check.value == pytest.approx(noise, abs=0.03)
    assert (check.n, check.verdict) == (2000, verdict)


def test_rater_agreement_says_what_accuracy_it_allows():
    """Of three votes of which two agree, a third of the couples agree; of three equal ones, all.

    The mean is .68, so that e = .2, and the majority is right in .896.
    """
    voted = [row(votes=[3, 0])] * 52 + [row(votes=[2, 1])] * 48
    rows = voted + [row(votes=[1, 0])] * 7 + [row()] * 9
    check = check_of(rows, "rater agreement")
    assert check.value == pytest.approx(0.68)
    assert check.low < 0.68 < check.high
    assert (check.n, check.verdict) == (100, "not applicable")
    assert "a perfect model scores .896 on the majority of such raters" in check.note
    assert check_of(rows, "label noise").value == pytest.approx(0.2)


def test_without_votes_noise_is_not_applicable():
    check = check_of([row(), row(votes=[1, 0])], "label noise")
    assert (check.verdict, check.value) == ("not applicable", None)
    assert check.note == "no pair carries three votes, or more of an odd number"


def test_even_votes_are_left_out_because_their_ties_are():
    """Two raters of a pair who disagree tie, and the pair is gone: of those left, all agree."""
    rows = [row(votes=[2, 0])] * 50 + [row(votes=[3, 0])] * 52 + [row(votes=[2, 1])] * 48
    check = check_of(rows, "label noise")
    assert check.n == 100
    assert check.value == pytest.approx(0.2)


# --- Duplicates -----------------------------------------------------------------------------------


def test_contradictory_and_repeated_pairs_are_counted():
    rows = [
        row("yes", "no"),
        row("no", "yes"),
        row("yes", "no"),
        row("yes", "no", prompt="How?"),
        row("yes", "on"),
    ]
    rows += [row(f"yes {i}", "no") for i in range(5)]
    check = check_of(rows, "contradictory duplicates")
    assert (check.value, check.n, check.verdict) == (0.3, 10, "warn")  # Three of ten say both.
    assert (check.low, check.high) == pytest.approx((0.1078, 0.6032), abs=5e-5)  # Wilson
    assert check.note == "3 pairs of 10: same prompt and completions, labelled both ways"
    repeated = check_of(rows, "duplicate pairs")
    assert (repeated.value, repeated.n) == (0.1, 10)


def test_messages_and_subsets_do_not_hide_a_duplicate():
    prompt = messages("user", "Why?")
    yes, no = messages("assistant", "yes"), messages("assistant", "no")
    rows = [row(yes, no, prompt=prompt, subset="a"), row(no, yes, prompt=prompt, subset="b")]
    assert check_of(rows, "contradictory duplicates").value == 1.0
    assert check_of(rows, "duplicate pairs").value == 0.0


def test_duplicates_read_only_what_can_be_one():
    """Of a hundred thousand different pairs no text is read back.

    No more than the columns is held in memory.
    """
    n = 100_000
    pairs = Pairs(
        rewards=np.random.default_rng(0).normal(size=(2, n)),
        lengths=np.ones((2, n)),
        characters=np.ones((2, n)),
        markdown=np.zeros((2, n)),
        hedges=np.zeros((2, n)),
        subset=np.full(n, "all", dtype=object),
        prompt=np.arange(n),
        votes=np.full((n, 2), np.nan),
        bayes_accuracy=np.full(n, np.nan),
        text=None,
    )
    tracemalloc.start()
    assert [c.value for c in label_checks(pairs) if "duplicate" in c.name] == [0.0, 0.0]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6


# --- What to read ---------------------------------------------------------------------------------


def rows_with_margins(margins: list[float]) -> list[dict]:
    """A pair of a prompt of its own for each margin."""
    return [row(rewards=(m, 0.0), prompt=f"{i}?") for i, m in enumerate(margins)]


def test_confident_errors():
    """Of 100 pairs the ten with the largest |margin| are all wrong, or one is."""
    all_wrong = rows_with_margins([1.0] * 90 + [-3.0] * 10)
    check = check_of(all_wrong, "confident errors")
    assert (check.value, check.n, check.verdict) == (1.0, 10, "fail")
    one_wrong = rows_with_margins([1.0] * 81 + [-0.5] * 9 + [3.0] * 9 + [-3.0])
    check = check_of(one_wrong, "confident errors")
    assert (check.value, check.n, check.verdict) == (0.1, 10, "not measurable")
    for rewards in ((1.0, 0.0), (1.0, None)):
        check = check_of([row(rewards=rewards)] * 3, "confident errors")
        assert check.verdict == "not measurable"


def test_confident_errors_do_not_depend_on_the_order_of_the_file():
    """400 pairs share the largest |margin|, which a clipped reward gives; 100 of them are wrong."""
    margins = [-2.0] * 100 + [2.0] * 300 + [1.0] * 600
    for rows in (rows_with_margins(margins), rows_with_margins(margins[::-1])):
        check = check_of(rows, "confident errors")
        assert (abs(check.value - 0.25) < 0.1, check.n) == (True, 100)
    one_size = check_of(rows_with_margins([-1.0] * 30 + [1.0] * 170), "confident errors")
    assert (one_size.verdict, one_size.n) == ("not measurable", 20)
    assert one_size.note == "the model is as sure of every pair as of any other"


def test_worst_errors_are_the_most_confident_ones_as_they_were_read():
    rows = []
    for i, reward in enumerate([1.5, -2, None, 0.5, -7, 0.25]):
        rows.append(row(f"c{i}", f"r{i}", rewards=(reward, 0.5), subset="s"))
    rows[4]["prompt"] = messages("user", "Why?")
    worst = worst_errors(Pairs.collect(rows))
    margins = [(error.chosen, error.margin) for error in worst]
    assert margins == [("c4", -7.5), ("c1", -2.5), ("c5", -0.25)]  # Ties and wins are none.
    assert worst[0] == WorstError(
        prompt=messages("user", "Why?"), chosen="c4", rejected="r4", margin=-7.5, subset="s"
    )
    assert worst_errors(Pairs.collect(rows), k=2) == worst[:2]


def test_top_and_bottom_are_different_completions_with_finite_rewards():
    rows = [
        row("best", "worst", (9.0, -9.0), subset="a"),
        row("best", "bad", (9.0, -8.0)),
        row("good", "nan", (7.0, None)),
        row("best", "worse", (6.0, -8.5), prompt="How?"),
    ]
    top, bottom = top_and_bottom(Pairs.collect(rows), k=3)
    assert [(t.prompt, t.completion, t.reward) for t in top] == [
        ("Why?", "best", 9.0),
        ("How?", "best", 6.0),
        ("Why?", "bad", -8.0),
    ]
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
    rows = []
    for i in range(1, 50):
        sides = "word " * i, "word " * (100 - i)
        rows.append(row(*sides, rewards=(0.0, 0.0), prompt=f"{i}?"))
    rows[0] |= {"reward_chosen": 5.0, "reward_rejected": 4.0}
    text = "## Steps\n- one\n- two\nIt depends. " + "word " * 40
    rows[10] |= {"reward_chosen": 3.0, "chosen": text}
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
    verdicts = [check.verdict for check in label_checks(empty)]
    assert verdicts == ["not applicable", *["not measurable"] * 3]
    assert worst_errors(empty) == []
    assert top_and_bottom(empty) == ([], [])
    pairs = Pairs.collect([row(rewards=(None, 1.0))])
    assert worst_errors(pairs) == []
    assert top_and_bottom(pairs) == ([], [])
    verdicts = [check.verdict for check in label_checks(pairs) if "duplicate" in check.name]
    assert verdicts == ["not measurable"] * 2
