"""The audit's numbers against hand-worked values and SciPy, and its verdicts on planted and degenerate rows."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from rm.audit import metrics
from rm.audit.checks import VERDICTS, run_checks, short, style_marks, top_completions


def pair(chosen, rejected, lengths=(10, 12), subset="all", **more):
    row = {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "subset": subset}
    row |= {"reward_chosen": chosen, "reward_rejected": rejected}
    return row | {"chosen_tokens": lengths[0], "rejected_tokens": lengths[1]} | more


def simulate(n, length_weight, seed=0):
    """Raters follow a hidden utility; the model sees it with noise and, where planted, likes long completions."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        utility = np.sort(rng.normal(size=2))[::-1]
        lengths = rng.integers(20, 400, size=2)
        rewards = utility + 0.7 * rng.normal(size=2) + length_weight * lengths
        rows.append(pair(*rewards.tolist(), lengths=lengths.tolist()))
    return rows


def verdicts(rows):
    return {check.name: check.verdict for check in run_checks(rows) if check.subset is None}


def by_name(rows, name, subset=None):
    (check,) = [check for check in run_checks(rows) if (check.name, check.subset) == (name, subset)]
    return check


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_accuracy_counts_a_tie_one_half():
    assert metrics.pair_credit(np.array([2.0, 0.0, -1.0])).tolist() == [1.0, 0.5, 0.0]
    assert metrics.accuracy(np.array([2.0, 0.0, -1.0, 3.0])).value == 0.625
    assert metrics.accuracy(np.array([])) is None


@pytest.mark.parametrize("successes, n", [(0, 1), (1, 1), (0, 12), (7, 10), (350, 500), (500, 500)])
def test_wilson_interval_is_scipys(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert metrics.wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_covers_95_percent():
    n = 60
    for p in (0.5, 0.65, 0.9):
        covers = [low <= p <= high for low, high in (metrics.wilson_interval(k, n) for k in range(n + 1))]
        assert 0.92 < np.sum(stats.binom.pmf(np.arange(n + 1), n, p) * covers) < 0.98  # exact, not simulated


def test_bootstrap_covers_95_percent_and_repeats():
    rng = np.random.default_rng(1)
    truth, hits = 0.6, 0  # P(win) .5, P(tie) .2
    for _ in range(400):
        estimate = metrics.accuracy(rng.choice([1.0, 0.0, -1.0], size=150, p=[0.5, 0.2, 0.3]))
        hits += estimate.low <= truth <= estimate.high
    assert 0.91 < hits / 400 < 0.98
    margins = np.array([1.0, 0.0, -1.0, 2.0])
    assert metrics.accuracy(margins) == metrics.accuracy(margins)


def test_bootstrap_by_counts_is_the_bootstrap_by_rows():
    values = np.array([1.0] * 50 + [0.5] * 20 + [0.0] * 30)
    plain = np.random.default_rng(0).choice(values, size=(2000, 100)).mean(axis=1)
    estimate = metrics.bootstrap_mean(values)
    assert (estimate.low, estimate.high) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.015)


def test_length_baselines():
    longer, shorter = metrics.length_baselines(np.array([5, 5, 9, 1]), np.array([4, 5, 3, 0]))
    assert (longer, shorter) == (0.875, 0.125)


def test_auc_is_mann_whitneys_u():
    assert metrics.auc(np.array([1.0, 2.0]), np.array([0.0, 1.0])) == 0.875  # of 4 couples: 3 won, 1 tied
    a, b = np.random.default_rng(0).integers(0, 9, size=(2, 40)).astype(float)
    assert metrics.auc(a, b) == pytest.approx(stats.mannwhitneyu(a, b).statistic / 1600)


def test_rater_agreement():
    # 3:0 always agree; of 2:1's three couples of votes one agrees; 1:0 has no second vote
    assert metrics.rater_agreement(np.array([[3, 0], [2, 1], [1, 0]])) == pytest.approx((1 + 1 / 3) / 2)
    assert metrics.rater_agreement(np.array([[1, 0], [0, 0]])) is None


def test_mean_interval():
    estimate = metrics.mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    half = 1.959964 * math.sqrt(5 / 3) / 2
    assert estimate == pytest.approx((2.5, 2.5 - half, 2.5 + half), abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e30])
def test_correlations_are_scipys(scale):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, size=200).astype(float)  # with equal values
    y = (0.1 * x + rng.normal(size=200)) * scale
    assert metrics.pearson(x, y) == pytest.approx(stats.pearsonr(x, y / scale).statistic)
    assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    interval = stats.pearsonr(x, y / scale).confidence_interval()
    assert metrics.fisher_interval(metrics.pearson(x, y), 200) == pytest.approx((interval.low, interval.high))


def test_correlation_by_hand_and_undefined():
    assert metrics.average_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert metrics.pearson(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])) == pytest.approx(0.5)
    assert metrics.pearson(np.array([0.1] * 7), np.arange(7.0)) is None
    assert metrics.pearson(np.array([1.0]), np.array([1.0])) is None
    assert metrics.fisher_interval(0.5, 3) is None
    assert metrics.fisher_interval(1.0, 5) == (1.0, 1.0)


def test_length_excess_by_hand():
    margins = np.array([1.0, -1.0, -1.0, 0.0, 5.0])
    differences = np.array(
        [3.0, 2.0, -4.0, -1.0, 0.0]
    )  # raters: longer, longer, shorter, shorter; the last is left out
    # model: longer, shorter, longer, tie -> d = 0, -1, 1, .5
    estimate = metrics.length_excess(margins, differences)
    assert estimate.value == 0.125
    half = 1.959964 * math.sqrt(2.25 + 1 - 0.25 / 6) / 6
    assert (estimate.low, estimate.high) == pytest.approx((0.5 / 6 - half, 0.5 / 6 + half), abs=1e-6)
    never_differ = metrics.length_excess(np.ones(10), np.ones(10))
    assert never_differ.value == 0 and never_differ.low < 0 < never_differ.high


def test_length_excess_covers_95_percent():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(400):  # the model errs towards the longer in 25%, towards the shorter in 10%
        d = rng.choice([0, 1, -1], size=120, p=[0.65, 0.25, 0.10])
        differences = np.where(d == 1, -1, 1)  # d = 1: raters prefer the shorter
        estimate = metrics.length_excess(np.where(d == 0, 1.0, -1.0), differences)
        hits += estimate.low <= 0.15 <= estimate.high
    assert 0.92 < hits / 400 < 0.985


def test_detectable_effects():
    # Cohen (1988), table 3.4.1: r = .30 at 80% power, two-sided 5%, takes 84 or 85 rows
    assert metrics.detectable_correlation(85) <= 0.30 < metrics.detectable_correlation(84)
    assert metrics.detectable_correlation(3) is None
    # p = .5 against .6: n = ((1.96 x .5 + .8416 x sqrt(.24)) / .1)^2 = 193.8
    assert metrics.detectable_accuracy(194, 0.5) <= 0.6 < metrics.detectable_accuracy(193, 0.5)
    assert metrics.detectable_accuracy(3, 0.5) is None and metrics.detectable_accuracy(100, 1.0) is None
    # the 80% are kept in simulation
    n, p = 194, metrics.detectable_accuracy(194, 0.5)
    wins = np.random.default_rng(0).binomial(n, p, size=4000)
    assert np.mean([metrics.wilson_interval(k, n)[0] > 0.5 for k in wins.tolist()]) == pytest.approx(0.8, abs=0.04)
    assert metrics.detectable_share(1) == pytest.approx(0.8)
    assert metrics.detectable_mean(metrics.Estimate(0.0, -1.959964, 1.959964)) == pytest.approx(2.801585, abs=1e-5)


def test_metrics_import_neither_torch_nor_matplotlib():
    code = (
        "import sys, rm.audit.metrics, rm.audit.checks, rm.audit.report\n"
        "assert not {'torch', 'matplotlib', 'scipy', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_100_000_pairs_are_quick():
    rng = np.random.default_rng(0)
    margins = rng.integers(-3, 9, size=100_000).astype(float)
    estimate = metrics.accuracy(margins)
    assert estimate.low < estimate.value < estimate.high


# --- checks ----------------------------------------------------------------------------------------------------------


def test_a_planted_length_preference_is_flagged():
    found = verdicts(simulate(400, 0.012))
    assert found["length correlation, pooled"] == "fail"
    assert found["length correlation, within pairs"] == "fail"
    assert found["length excess"] == "warn"


@pytest.mark.parametrize("seed", range(3))
def test_a_model_without_length_preference_passes(seed):
    assert set(verdicts(simulate(800, 0.0, seed)).values()) == {"pass"}


def test_pooled_and_within_pairs_can_disagree():
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(300):  # long prompts get long completions and high rewards; within a pair the shorter is liked
        level, gap = rng.integers(50, 1000), int(rng.integers(1, 30))
        rows.append(pair(level / 50 + gap / 10, level / 50, lengths=(int(level), int(level) + gap)))
    found = {check.name: check.value for check in run_checks(rows)}
    assert found["length correlation, pooled"] > 0.9
    assert found["length correlation, within pairs"] < -0.9


def test_accuracy_has_to_beat_the_length_rules():
    rows = [pair(1.0, 0.0, lengths=(9, 5))] * 60 + [pair(0.0, 1.0, lengths=(5, 9))] * 40  # exactly "the longer wins"
    check = by_name(rows, "accuracy")
    assert (check.value, check.verdict) == (0.6, "fail")
    assert check.threshold == 'lower bound above .6 ("the longer wins" on the same pairs)'
    assert "straddles .6" in check.note
    assert by_name([pair(1.0, 0.0, lengths=(9, 9))] * 60, "accuracy").verdict == "pass"


def test_accuracy_names_its_ceiling_and_the_raters_agreement():
    rows = [pair(1.0, 0.0, bayes_accuracy=0.84, votes=[2, 1])] * 10
    note = by_name(rows, "accuracy").note
    assert "ceiling .84 (what the true utilities would score)" in note
    assert "two raters of a pair agree .333 of the time" in note
    assert "ceiling" not in by_name([*rows, pair(1.0, 0.0)], "accuracy").note  # not on every row


def test_subsets_are_checked_where_there_are_several():
    rows = [pair(1.0, 0.0, (9, 9), "easy")] * 30 + [pair(0.0, 1.0, (9, 9), "hard")] * 30
    assert by_name(rows, "accuracy", "easy").verdict == "pass"
    assert by_name(rows, "accuracy", "hard").verdict == "fail"
    assert by_name(rows, "accuracy").value == 0.5
    assert all(check.subset is None for check in run_checks(rows[:30]))


def test_ties():
    rows = [pair(1.0, 0.0)] * 95 + [pair(1.0, 1.0)] * 5
    check = by_name(rows, "tie rate")
    assert (check.value, check.verdict) == (0.05, "warn")
    assert by_name(rows[:95], "tie rate").verdict == "pass"
    assert by_name(rows[:20], "tie rate").verdict == "not measurable"
    constant = [pair(0.5, 0.5, lengths=(i, 9)) for i in range(30)]
    assert by_name(constant, "tie rate").verdict == "fail"
    assert by_name(constant, "accuracy").verdict == "not measurable"


def test_non_finite_rewards_fail_and_are_left_out():
    rows = [pair(1.0, 0.0)] * 9 + [pair(float("nan"), 0.0), pair(float("inf"), 0.0)]
    check = by_name(rows, "non-finite rewards")
    assert (check.verdict, check.n) == ("fail", 11)
    assert check.note == "2 pairs of 11 left out of every other number"
    assert by_name(rows, "accuracy").n == 9


def test_a_correlation_near_its_threshold_says_so():
    check = by_name(simulate(200, 0.0025), "length correlation, pooled")
    assert check.low < 0.3 < check.high and "straddles .3" in check.note
    assert by_name(simulate(40, 0.0), "length correlation, pooled").verdict == "not measurable"
    assert by_name(simulate(40, 0.05), "length correlation, pooled").verdict == "fail"  # too large to need many pairs


DEGENERATE = {
    "one row": [pair(1.0, 0.0)],
    "one tied row": [pair(1.0, 1.0)],
    "one row without a finite reward": [pair(float("nan"), 0.0)],
    "all ties": [pair(1.0, 1.0)] * 20,
    "equal lengths": [pair(float(i), 0.0, lengths=(5, 5)) for i in range(20)],
    "equal rewards, other lengths": [pair(0.3, 0.3, lengths=(i, 2 * i)) for i in range(1, 20)],
    "empty completions": [pair(1.0, 0.0, lengths=(0, 0))] * 3,
    "reward is the length": [pair(float(i), 1.0, lengths=(i, 1)) for i in range(2, 9)],
    "huge rewards": [pair(3e38, -3e38), pair(-3e38, 1.0)] * 10,
    "a subset of one row": [pair(1.0, 0.0, subset="a")] * 30 + [pair(0.0, 0.0, subset="b")],
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.filterwarnings("error")
def test_degenerate_rows_give_sentences_not_nans(name):
    for check in run_checks(DEGENERATE[name]):
        assert check.verdict in VERDICTS
        numbers = [x for x in (check.value, check.low, check.high, check.detectable) if x is not None]
        assert all(math.isfinite(x) for x in numbers), check
        assert check.low is None or check.low <= check.value <= check.high
        assert check.threshold and "nan" not in check.threshold + check.note
        assert check.note or check.verdict != "not measurable"
    if name.startswith("one"):
        assert by_name(DEGENERATE[name], "accuracy").verdict == "not measurable"


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no pairs to audit"):
        run_checks([])


def test_top_completions_and_their_marks():
    hedged = "As an AI, I'm not sure. **It depends**.\n\n## Steps\n- may\n- might\n2. perhaps"
    rows = [pair(float(i), -1.0, lengths=(10, 11)) | {"chosen": f"answer {i}"} for i in range(20)]
    rows[4] |= {"reward_chosen": 99.0, "chosen_tokens": 500, "chosen": [{"role": "assistant", "content": hedged}]}
    rows.append(dict(rows[4]))  # the same completion in a second pair
    first, second = top_completions(rows, k=2)
    assert (first["reward"], first["side"], first["tokens"], first["completion"]) == (99.0, "chosen", 500, hedged)
    assert first["marks"] == [
        "longer than 95% of completions",
        'hedge: "As an AI"',
        'hedge: "I\'m not sure"',
        'hedge: "It depends"',
        "hedge: may, might, perhaps 3 times in 16 words",
        "markdown: 3 list items",
        "markdown: 1 heading",
        "markdown: 1 bold phrase",
    ]
    assert (second["completion"], second["marks"]) == ("answer 19", [])
    assert style_marks("Plain advice: turn left in May.") == []


def test_short_numbers():
    shown = [short(x) for x in (0.713, -0.04, 1.25, 0.0, -0.0001, 1.0, 10.0, 12345.6)]
    assert shown == [".713", "-.04", "1.25", "0", "0", "1", "10", "1.23e+04"]
