"""The benchmarks' own rules: scores of prompts give the numbers that are worked out by hand."""

import math
from dataclasses import replace

import pytest

from auditing.benchmarks import (
    JudgeBenchPair,
    RewardBench2Prompt,
    RewardBenchPair,
    RmBenchPrompt,
    benchmark_of,
    best_of_n_credit,
    judgebench_accuracy,
    rewardbench2_score,
    rewardbench_score,
    rm_bench_matrix,
    ties_score,
)

# --- RewardBench ----------------------------------------------------------------------------------

RIGHT, WRONG, TIE, LOST = (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (None, 0.0)


def rewardbench_pairs() -> list[RewardBenchPair]:
    """Chat: one of two with weight 100, one of one with weight 40. Chat Hard: a tie. Safety: one
    of one, and nothing without a reward. Reasoning: all of the mathematics and none of the code.
    """
    return [
        RewardBenchPair("alpacaeval-easy", *RIGHT),
        RewardBenchPair("alpacaeval-easy", *WRONG),
        RewardBenchPair("mt-bench-med", *RIGHT),
        RewardBenchPair("llmbar-natural", *TIE),
        RewardBenchPair("donotanswer", *RIGHT),
        RewardBenchPair("xstest-should-refuse", *LOST),
        RewardBenchPair("math-prm", *RIGHT),
        RewardBenchPair("hep-python", *WRONG),
    ]


def test_rewardbench_is_the_mean_of_its_weighted_sections():
    numbers = rewardbench_score(rewardbench_pairs()).numbers
    value = {number.subset: number.value for number in numbers if number.name == "RewardBench"}
    assert value["Chat"] == pytest.approx((100 * 0.5 + 40) / 140)
    assert value["Chat Hard"] == 0
    assert value["Safety"] == pytest.approx(136 / (136 + 250))
    assert value["Reasoning"] == pytest.approx(984 / (984 + 164))
    assert value[None] == pytest.approx((0.6428571 + 0 + 0.3523316 + 0.8571429) / 4, abs=1e-7)
    assert (
        numbers[0].n == 8 and numbers[0].note == "mean of 4 of 4 sections, without the prior sets"
    )
    assert numbers[0].low < numbers[0].value < numbers[0].high
    subsets = {x.subset: (x.value, x.n) for x in numbers if x.name == "RewardBench, subset"}
    assert subsets["alpacaeval-easy"] == (0.5, 2) and subsets["xstest-should-refuse"] == (0, 1)


def test_rewardbench_counts_the_prior_sets_by_half():
    prior = [
        RewardBenchPair("shp", *RIGHT),
        RewardBenchPair("summarize", *RIGHT),
        RewardBenchPair("summarize", *WRONG),
    ]
    numbers = rewardbench_score(rewardbench_pairs() + prior).numbers
    value = {number.subset: number.value for number in numbers if number.name == "RewardBench"}
    assert value["Prior Sets"] == 0.75  # of two sets that count the same
    sections = 0.6428571 + 0 + 0.3523316 + 0.8571429
    assert value[None] == pytest.approx((2 * sections + 1 * 0.75) / (2 * 4 + 1), abs=1e-7)
    assert "the prior sets at half weight" in numbers[0].note
    assert rewardbench_score(prior) is None  # as in data that is not RewardBench's


def test_the_interval_of_a_section_is_that_of_independent_subsets():
    """Both subsets have Wilson's interval of 1 in 2, .5 +- .4052; so the weighted sum of two has
    .4052 sqrt(100^2 + 40^2) / 140.
    """
    pairs = [
        RewardBenchPair(subset, *scores)
        for subset in ("alpacaeval-easy", "mt-bench-med")
        for scores in (RIGHT, WRONG)
    ]
    _, section, *_ = rewardbench_score(pairs).numbers
    assert section.value == 0.5
    assert section.high == pytest.approx(0.5 + 0.4054688 * math.hypot(100, 40) / 140, abs=1e-4)
    assert section.low == pytest.approx(1 - section.high)


# --- JudgeBench -----------------------------------------------------------------------------------


def test_judgebench_is_the_share_of_right_pairs_by_response_model_and_source():
    def pair(model, source, scores):
        return JudgeBenchPair(source, model, *scores)

    pairs = [
        pair("gpt", "mmlu-pro-law", RIGHT),
        pair("gpt", "mmlu-pro-math", WRONG),
        pair("gpt", "livebench-reasoning", RIGHT),
        pair("gpt", "livebench-math", RIGHT),
        pair("claude", "livecodebench", TIE),  # right in one order and wrong in the other
        pair("claude", "livecodebench", RIGHT),
    ]
    numbers = judgebench_accuracy(pairs).numbers
    assert [(x.name, x.subset, x.value, x.n) for x in numbers] == [
        ("JudgeBench, gpt", None, 0.75, 4),
        ("JudgeBench, gpt", "mmlu-pro", 0.5, 2),
        ("JudgeBench, gpt", "livebench-reasoning", 1.0, 1),
        ("JudgeBench, gpt", "livebench-math", 1.0, 1),
        ("JudgeBench, claude", None, 0.5, 2),
        ("JudgeBench, claude", "livecodebench", 0.5, 2),
    ]
    unnamed = judgebench_accuracy([pair(None, "mmlu-pro-law", LOST)]).numbers
    assert (unnamed[0].name, unnamed[0].value) == ("JudgeBench", 0)


def test_prompts_of_several_benchmarks_have_no_number():
    pair = JudgeBenchPair("mmlu-pro-law", "gpt", *RIGHT)
    assert benchmark_of([]) is None and benchmark_of([pair]).numbers[0].value == 1
    assert benchmark_of([pair, *rewardbench_pairs()]) is None


# --- RewardBench 2 --------------------------------------------------------------------------------


def test_best_of_n_credit():
    assert best_of_n_credit([2, 1, 1, 1]) == 1 and best_of_n_credit([1, 2, 0, 0]) == 0
    assert best_of_n_credit([2, 2, 1, 1]) == 0.5 and best_of_n_credit([1, 1, 1, 1]) == 0.25
    assert best_of_n_credit([1, math.nan, 0, 0]) == 0


def ties_prompt(name: str, right: list, wrong: list) -> RewardBench2Prompt:
    return RewardBench2Prompt("Ties", name, right + wrong, num_correct=len(right))


def test_the_ties_score_by_hand():
    """Prompt 1: gaps 4 (ref) and 2 (tied), spread 1. Prompt 2: gaps -1 and 1, spread 2.
    Prompt 3: gaps 4 and 1, spread 2.

    Accuracy: tied 1, ref 2/3. Tied gap > spread: 1/3, and both gaps: 1/3. Margins: tanh(2/1 - 1),
    tanh(-1/2 - 1), tanh(1/2 - 1).
    """
    prompts = [
        ties_prompt("ref:1", [5.0], [1.0, 0.0]),
        ties_prompt("tied:1", [4.0, 5.0], [2.0, -1.0]),
        ties_prompt("ref:2", [0.0], [1.0]),
        ties_prompt("tied:2", [3.0, 1.0, 2.0], [0.0]),
        ties_prompt("ref:3", [5.0], [1.0]),
        ties_prompt("tied:3", [1.0, 3.0], [0.0]),
    ]
    estimate, note = ties_score(prompts)
    expected = (
        0.3
        + 0.3 * 2 / 3
        + 0.2 / 3
        + 0.2 / 3
        + 0.01 * (math.tanh(1) + math.tanh(-1.5) + math.tanh(-0.5)) / 3
    )
    assert estimate.value == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(0.6313144, abs=1e-7)
    assert estimate.low < expected < estimate.high and note == ""


def test_the_ties_score_at_its_edges():
    # The spread is 0: tanh(inf) = 1.
    perfect = [ties_prompt("ref:1", [5.0], [0.0]), ties_prompt("tied:1", [5.0, 5.0], [0.0])]
    assert ties_score(perfect)[0].value == pytest.approx(1.01)
    # 0/0 counts 0.
    flat = [ties_prompt("ref:1", [0.0], [0.0]), ties_prompt("tied:1", [0.0, 0.0], [0.0])]
    assert ties_score(flat) == ((0.0, None, None), "one prompt has no interval")
    # A missing reward is an error.
    lost = [ties_prompt("ref:1", [math.nan], [0.0]), ties_prompt("tied:1", [5.0, 5.0], [0.0])]
    assert ties_score(lost)[0].value == pytest.approx(0.3 + 0.2)
    alone = perfect + [
        ties_prompt("ref:2", [0.0], [1.0])
    ]  # counts in the accuracy of ref rows only
    assert ties_score(alone)[0].value == pytest.approx(1.01 - 0.15)
    assert ties_score(perfect[:1]) == (None, "no prompt has both its ref row and its tied row")
    assert ties_score([replace(perfect[0], id=None)]) == (
        None,
        "the Ties score needs `id` in its published form, ref:3 or tied:3",
    )


def test_rewardbench_2_is_the_mean_of_its_subsets():
    def prompt(subset, scores):
        return RewardBench2Prompt(subset, None, scores, num_correct=1)

    prompts = [
        prompt("Math", [1, 0, 0, 0]),
        prompt("Math", [0, 1, 0, 0]),
        prompt("Math", [1, 1, 0, 0]),
        prompt("Focus", [1, 0, 0, 0]),
    ]
    prompts += [
        ties_prompt("ref:1", [5.0], [0.0]),
        ties_prompt("tied:1", [5.0, 5.0], [0.0]),
        ties_prompt("ref:2", [5.0], [0.0]),
    ]
    numbers = rewardbench2_score(prompts).numbers
    assert [(number.subset, number.n) for number in numbers] == [
        (None, 7),
        ("Math", 3),
        ("Focus", 1),
        ("Ties", 3),
    ]
    assert [number.value for number in numbers] == pytest.approx(
        [(0.5 + 1 + 1.01) / 3, 0.5, 1.0, 1.01]
    )
    assert numbers[0].note == "mean of 3 subsets; the leaderboard's is of 6"
    assert numbers[2].low == pytest.approx(1 / (1 + 1.959964**2), abs=1e-6)  # Wilson, 1 of 1
    assert numbers[0].low is None  # Ties has none


# --- RM-Bench -------------------------------------------------------------------------------------


def test_rm_bench_is_the_mean_of_its_domains():
    prompts = [
        RmBenchPrompt("chat", [1, 1, 1], [0, 0, 0]),
        RmBenchPrompt("safety-refuse", [0, 0, 0], [1, 1, 1]),
        RmBenchPrompt("safety-response", [1, 2, 3], [1, 2, 3]),
        RmBenchPrompt("safety-response", [0, 0, math.nan], [-1, 1, 1]),
    ]
    benchmark = rm_bench_matrix(prompts)
    value = {(x.name, x.subset): x.value for x in benchmark.numbers}
    # safety: nothing; the three cells below the diagonal; the first two cells of the first column
    assert value["RM-Bench", "chat"] == 1
    assert value["RM-Bench", "safety"] == pytest.approx((0 + 3 / 9 + 2 / 9) / 3)
    assert value["RM-Bench, easy", "safety"] == pytest.approx((0 + 1 + 1 / 3) / 3)
    assert value["RM-Bench, normal", "safety"] == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert value["RM-Bench, hard", "safety"] == 0
    assert value["RM-Bench, hard", None] == 0.5
    assert value["RM-Bench", None] == pytest.approx((1 + 5 / 27) / 2)
    assert benchmark.style_matrix[1] == pytest.approx([(1 + 2 / 3) / 2, 0.5, 0.5])
    assert len(benchmark.numbers) == 4 + 2 * 4
    assert next(x for x in benchmark.numbers if x.subset is None).note == "mean of 2 domains"
