"""Comparison: the ranking by hand, Holm's correction against statsmodels, and names."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from auditing.checks.comparison import compare_checks, holm, rank_models, short_names
from auditing.pairs import Pairs
from auditing.report.wording import ranking_sentence
from auditing.stats import FEW_PROMPTS
from auditing.verdicts import control_false_discoveries

N = 400


def scored(right: np.ndarray, prompts: int = N) -> Pairs:
    """Pairs of which the model has these right: margin 1, or -1, or 0 for None.

    Args:
        right: (N,) 1, 0, or .5 for a tie.
        prompts: How many prompts there are.
    """
    rows = []
    for i, credit in enumerate(right):
        texts = {"prompt": f"q{i % prompts}", "chosen": f"a{i}", "rejected": f"b{i}"}
        rows.append(texts | {"reward_chosen": 2.0 * credit - 1, "reward_rejected": 0.0})
    return Pairs.collect(rows)


def first(share: float) -> np.ndarray:
    """The first share of the pairs are right."""
    return (np.arange(N) < share * N).astype(float)


def test_the_ranking_by_hand():
    """b is right where a is, and on 40 pairs more; c differs from a on two pairs alone."""
    swapped = first(0.6)
    swapped[[0, N - 1]] = 1 - swapped[[0, N - 1]]
    ranking = rank_models({"a": scored(first(0.6)), "b": scored(first(0.7)), "c": scored(swapped)})
    assert ranking.n == N
    places = [(model.name, model.rank, model.is_audited) for model in ranking.models]
    assert places == [("b", 1, False), ("a", 2, True), ("c", 2, False)]
    assert [model.accuracy for model in ranking.models] == pytest.approx([0.7, 0.6, 0.6])
    couples = {(couple.better, couple.worse): couple for couple in ranking.couples}
    assert list(couples) == [("b", "a"), ("a", "c"), ("b", "c")]
    assert couples["b", "a"].difference == pytest.approx(0.1)
    assert couples["b", "a"].disagree == pytest.approx(0.1)
    assert couples["b", "a"].p == pytest.approx(3 * 2 * 0.5**40)  # McNemar's 40 to 0, three couples
    assert couples["a", "c"].disagree == pytest.approx(2 / N)
    assert (couples["a", "c"].difference, couples["a", "c"].p) == (0, 1)
    assert [couples[names].differs for names in couples] == [True, False, True]


def test_a_difference_that_one_couple_shows_need_not_count_among_many():
    """18 to 6 is p = .023 alone, and .068 among three couples."""
    better = first(0.5)
    better[:6] = 0
    better[N - 18 :] = 1
    two = {"a": scored(first(0.5)), "b": scored(better)}
    assert rank_models(two).couples[0].p == pytest.approx(0.0227, abs=1e-4)
    assert [model.rank for model in rank_models(two).models] == [1, 2]
    three = two | {"c": scored(first(0.5))}
    assert [model.rank for model in rank_models(three).models] == [1, 1, 1]


def test_a_tie_of_one_model_is_half_a_disagreement():
    ties = first(0.6)
    ties[:40] = 0.5
    (couple,) = rank_models({"a": scored(first(0.6)), "b": scored(ties)}).couples
    assert couple.disagree == pytest.approx(20 / N)


def test_pairs_without_a_reward_of_one_model_count_for_none():
    lacking = scored(first(0.6))
    lacking.rewards[0, :100] = np.nan
    ranking = rank_models({"a": scored(first(0.6)), "b": lacking})
    assert ranking.n == 300
    lacking.rewards[0] = np.nan
    assert rank_models({"a": scored(first(0.6)), "b": lacking}) is None


def test_repeated_prompts_are_drawn_together():
    """All 40 pairs on which b is better share 4 of 40 prompts: four independent observations."""
    better = first(0.6)
    better[np.isin(np.arange(N) % 40, [36, 37, 38, 39])] = 1
    models = {"a": scored(first(0.6), prompts=40), "b": scored(better, prompts=40)}
    (couple,) = rank_models(models).couples
    assert couple.p > 0.01  # McNemar's test would give 2e-05.


def test_few_prompts_show_no_difference():
    """b is right on one pair more of every prompt: a bootstrap of equal numbers has no width."""
    for prompts in (3, 6):
        one_a_prompt = (np.arange(N) < prompts).astype(float)
        models = {"a": scored(np.zeros(N), prompts), "b": scored(one_a_prompt, prompts)}
        (couple,) = rank_models(models).couples
        assert (couple.differs, couple.low < 0) == (False, True)
        (check,) = control_false_discoveries(compare_checks(models))
        assert check.verdict == "not measurable"
    # Three prompts have no p-value, and leave every difference possible.
    models = {"a": scored(np.zeros(N), 3), "b": scored(np.ones(N), 3)}
    (couple,) = rank_models(models).couples
    assert (couple.p, couple.low, couple.high, couple.detectable) == (1.0, -1.0, 1.0, None)
    (check,) = compare_checks(models)
    assert check.note == FEW_PROMPTS


def test_checks_carry_the_name_of_the_other_model_if_there_are_several():
    a, b = scored(first(0.6)), scored(first(0.7))
    assert [check.name for check in compare_checks({"a": a, "b": b})] == ["comparison"]
    names = [check.name for check in compare_checks({"a": a, "b": b, "c": b})]
    assert names == ["comparison, b", "comparison, c"]


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03], [0.5], [0.9, 0.001, 0.02, 0.02], [1, 1]])
def test_holm(p_values):
    _, expected, *_ = multipletests(p_values, method="holm")
    assert holm(p_values) == pytest.approx(list(expected))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["rm-out", "Skywork/Reward-V2"], ["rm-out", "Skywork/Reward-V2"]),
        (["/x/s1/audit/scores.jsonl", "/x/s2/audit/scores.jsonl"], ["s1", "s2"]),
        (["runs/a.jsonl", "runs/b.jsonl"], ["a.jsonl", "b.jsonl"]),
        (["rm-out", "rm-out/checkpoint-9"], ["rm-out", "rm-out/checkpoint-9"]),
        (["/x/rm", "rm"], ["/x/rm", "rm"]),
        (["rm", "./rm"], ["rm (1)", "./rm (2)"]),
    ],
)
def test_short_names(paths, names):
    assert short_names(paths) == names


def test_where_pairs_tie_the_test_is_of_the_same_difference_as_the_estimate():
    """A sign test would say that a is better: 200 pairs to 104, p < 1e-7."""
    ours, theirs = first(0.5), first(0.5)
    ours[200:], theirs[200:] = 0.5, 0.0
    ours[:104], theirs[:104] = 0.0, 1.0
    (couple,) = rank_models({"a": scored(ours), "b": scored(theirs)}).couples
    assert (couple.better, couple.worse) == ("b", "a")
    assert couple.difference == pytest.approx(0.01)
    assert couple.low < 0 < couple.high and couple.p > 0.5 and not couple.differs


def test_models_that_cannot_be_told_from_the_best_are_counted():
    """a is the best, and apart from neither; b beats c."""
    best = first(0.6)
    best[:40], best[N - 42 :] = 0, 1
    models = {"a": scored(best), "b": scored(first(0.6)), "c": scored(first(0.57))}
    ranking = rank_models(models)
    assert [couple.differs for couple in ranking.couples] == [False, False, True]
    sentence = ranking_sentence(ranking)
    assert "a orders most right (60.5%), and 2 others cannot be told from it" in sentence
