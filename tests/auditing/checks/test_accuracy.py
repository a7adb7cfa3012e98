"""Accuracy against hand-worked values; what its intervals cover."""

import math

import numpy as np
import pytest

from auditing import stats as ours
from auditing.checks.accuracy import (
    accuracy,
    accuracy_check,
    accuracy_checks,
    baselines,
    macro_accuracy,
)
from auditing.checks.collapse import collapse_checks
from auditing.pairs import Pairs
from auditing.verdicts import control_false_discoveries


def test_accuracy_counts_a_tie_one_half():
    assert ours.pair_credit(np.array([2.0, 0.0, -1.0])).tolist() == [1.0, 0.5, 0.0]
    assert accuracy(np.array([2.0, 0.0, -1.0, 3.0])).value == 0.625
    assert accuracy(np.array([])) is None


def test_accuracy_repeats_itself():
    margins = np.array([1.0, 0.0, -1.0, 2.0])
    assert accuracy(margins) == accuracy(margins)
    assert accuracy(margins, np.arange(4)) == accuracy(margins)  # no prompt repeats


def test_equal_credits_keep_an_interval():
    assert accuracy(np.ones(40), np.repeat(np.arange(10), 4)) == (
        1.0,
        *ours.wilson_interval(10, 10),
    )
    assert accuracy(np.zeros(1)) == pytest.approx((0.5, 0.0546, 0.9454), abs=1e-4)
    # one prompt throughout (files without prompts): nothing to cluster by
    assert accuracy(np.array([1.0, 1.0, -1.0]), np.zeros(3, dtype=int)) == accuracy(
        np.array([3.0, 1.0, -1])
    )


# --- What the intervals cover ---------------------------------------------------------------------


def pairs_without_ties(rng):
    return rng.choice([1.0, -1.0], size=300, p=[0.7, 0.3]), None, 0.7


def pairs_with_ties(rng):
    return rng.choice([1.0, 0.0, -1.0], size=300, p=[0.6, 0.2, 0.2]), None, 0.7


def clustered_pairs(rng, tie_rate=0.0):
    """100 prompts with 1 to 5 pairs each, about 300; some prompts are harder than others."""
    prompt = np.repeat(np.arange(100), rng.integers(1, 6, size=100))
    right = rng.random(len(prompt)) < rng.beta(1.5, 0.75, size=100)[prompt]  # 2/3 on average
    margins = np.where(rng.random(len(prompt)) < tie_rate, 0.0, np.where(right, 1.0, -1.0))
    return margins, prompt, (1 - tie_rate) * 2 / 3 + tie_rate / 2


def clustered_pairs_with_ties(rng):
    return clustered_pairs(rng, 0.15)


@pytest.mark.parametrize(
    "draw", [pairs_without_ties, pairs_with_ties, clustered_pairs, clustered_pairs_with_ties]
)
def test_accuracy_intervals_cover_95_percent(draw):
    rng, hits = np.random.default_rng(1), 0
    for _ in range(2000):
        margins, prompts, truth = draw(rng)
        estimate = accuracy(margins, prompts)
        hits += estimate.low <= truth <= estimate.high
    assert 0.93 <= hits / 2000 <= 0.97


def test_intervals_that_ignore_clusters_would_not_cover():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(500):
        margins, _, truth = clustered_pairs(rng)
        estimate = accuracy(margins)
        hits += estimate.low <= truth <= estimate.high
    assert hits / 500 < 0.9


# --- Over subsets ---------------------------------------------------------------------------------


def test_macro_accuracy_by_hand():
    margins, subsets = np.array([1.0, 1.0, -1.0, -1.0, 1.0]), np.array(["a", "a", "a", "a", "b"])
    # a: 1/2 of 4 -> credits 1 1 0 0 and a win and a loss: 3/6 x 3/6 / 4; b: 1 of 1 -> 2/3 x 1/3 / 1
    half = 1.959964 * math.sqrt(1 / 16 + 2 / 9) / 2
    assert macro_accuracy(margins, subsets) == pytest.approx((0.75, 0.75 - half, 1.0), abs=1e-6)
    assert macro_accuracy(margins[:0], subsets[:0]) is None
    repeated = macro_accuracy(
        np.repeat([1.0, -1.0], 50), np.repeat("a", 100), np.repeat([0, 1, 2, 3], 25)
    )
    # 4 prompts, not 100 pairs.
    assert repeated.high - repeated.low == pytest.approx(2 * 1.959964 * 0.25)


@pytest.mark.parametrize("sizes", [(10,) * 20, (200, 50, 10, 1)])
def test_macro_accuracy_covers_95_percent(sizes):
    rng, hits = np.random.default_rng(0), 0
    subset = np.repeat(np.arange(len(sizes)), sizes)
    truth = np.linspace(0.6, 0.9, len(sizes))
    for _ in range(1000):
        estimate = macro_accuracy(
            np.where(rng.random(len(subset)) < truth[subset], 1.0, -1.0), subset
        )
        hits += estimate.low <= 0.75 <= estimate.high
    assert 0.93 <= hits / 1000 <= 0.985


# --- Rules that do not read -----------------------------------------------------------------------


def pairs_of(margins, dl, markdown=None, subset=None, prompt=None) -> Pairs:
    """Pairs with these margins, differences in length and differences in marks of markdown."""
    n = len(margins)
    zeros = np.zeros(n)
    if markdown is None:
        markdown = zeros
    if subset is None:
        subset = np.full(n, "all", dtype=object)
    if prompt is None:
        prompt = np.arange(n)
    return Pairs(
        rewards=np.stack([np.asarray(margins, float), zeros]),
        lengths=np.stack([50 + np.asarray(dl, float), np.full(n, 50.0)]),
        characters=np.full((2, n), 200),
        markdown=np.stack([np.asarray(markdown, float), zeros]),
        hedges=np.zeros((2, n)),
        subset=subset,
        prompt=prompt,
        votes=np.full((n, 2), np.nan),
        bayes_accuracy=np.full(n, np.nan),
        text=lambda i: {"prompt": str(i), "chosen": "yes", "rejected": "no"},
    )


def test_baselines_by_hand():
    pairs = pairs_of(np.ones(4), [1, 0, 6, 1], markdown=[2, 0, -1, 1])
    assert baselines(pairs) == {
        "the longer wins": 0.875,
        "the shorter wins": 0.125,
        "more markdown wins": 0.625,  # won, tied, lost, won
    }


def drawn_pairs(rng, n, accuracy, shorter=0.5, subsets=1) -> Pairs:
    """Pairs of a model of this accuracy; the shorter is chosen this often, markdown is a coin's."""
    margins = np.where(rng.random(n) < accuracy, 1.0, -1.0) * rng.exponential(size=n)
    dl = np.where(rng.random(n) < shorter, -1.0, 1.0)
    markdown = rng.poisson(1.0, n) - rng.poisson(1.0, n)
    subset = np.array([f"subset {i % subsets}" for i in range(n)], dtype=object)
    return pairs_of(margins, dl, markdown, subset)


@pytest.mark.parametrize("n", [11, 30, 100])
@pytest.mark.parametrize(("accuracy", "shorter"), [(0.60, 0.5), (0.63, 0.56)])
def test_a_sound_model_does_not_fail_on_few_pairs(n, accuracy, shorter):
    """Taking the best rule's accuracy as exact fails 5 to 9% of these."""
    rng, fails = np.random.default_rng(0), 0
    for _ in range(800):
        fails += accuracy_check(drawn_pairs(rng, n, accuracy, shorter), None).verdict == "fail"
    assert fails / 800 <= 0.025


def test_eleven_pairs_fail_no_model():
    """JudgeBench's history: 4 of 11 right and a tie, where the shorter is right on 8."""
    margins = [1, 1, 1, 1, 0, -1, -1, -1, -1, -1, -1]
    check = accuracy_check(pairs_of(margins, [-1] * 8 + [1] * 3), None)
    assert check.value == pytest.approx(0.409, abs=5e-4)
    assert check.baseline == pytest.approx(0.727, abs=5e-4)
    assert check.verdict == "not measurable"


def test_an_accuracy_that_beats_every_rule_passes_and_one_that_does_not_fails():
    rng = np.random.default_rng(0)
    good = accuracy_check(drawn_pairs(rng, 600, 0.72, 0.56), None)
    assert good.verdict == "pass" and '"the shorter wins"' in good.threshold
    assert "pair by pair" in good.note and good.baseline < good.detectable < 0.72
    worse = accuracy_check(drawn_pairs(rng, 600, 0.55, 0.7), None)
    assert worse.verdict == "fail" and worse.note.startswith('gain over "the shorter wins" -.')
    coin = accuracy_check(drawn_pairs(rng, 3000, 0.5), None)
    assert coin.verdict == "fail"
    # A little better than a rule is no fail, and many pairs show that it is better.
    assert accuracy_check(drawn_pairs(rng, 9000, 0.56), None).verdict == "pass"


@pytest.mark.parametrize("n", [1, 2, 3, 5, 11])
def test_no_detectable_accuracy_is_above_one(n):
    """Of a pair or two, a coin's .5 and what shows were 1.2 together."""
    pairs = pairs_of([1.0] * (n - 1) + [-1.0], [1] * (n - 1) + [-1])
    checks = [*accuracy_checks(pairs, pairs), *collapse_checks(pairs)]
    detectable = {check.name: check.detectable for check in checks}
    assert detectable.keys() >= {"accuracy", "random rewards", "train-test gap"}
    assert all(value is None or value <= 1 for value in detectable.values())


def test_rows_that_stand_there_nine_times_prove_nothing():
    rng = np.random.default_rng(0)
    once = drawn_pairs(rng, 30, 0.68)
    nine_times = once.take(np.repeat(np.arange(30), 9))
    assert accuracy_check(once, None).verdict == "not measurable"
    assert accuracy_check(nine_times, None).verdict == "not measurable"
    few = pairs_of([1.0, 1, -1, 1], [1, 1, 1, -1], prompt=np.array([0, 0, 1, 1]))
    check = accuracy_check(few, None)
    assert (check.verdict, check.note) == ("not measurable", ours.FEW_PROMPTS)


def test_subsets_share_the_false_discovery_control():
    """Of 20 subsets of 10 sound pairs one failed in 17% of audits by itself."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        sound = drawn_pairs(rng, 200, 0.72, subsets=20)
        checks = control_false_discoveries(accuracy_checks(sound, None))
        assert "fail" not in {check.verdict for check in checks if check.subset is not None}
        assert all(0 <= check.p <= 1 for check in checks if check.subset is not None)
    half_bad = drawn_pairs(rng, 2000, 0.75, subsets=2)
    bad = np.where(half_bad.subset == "subset 1", -1.0, 1.0)
    half_bad = pairs_of(half_bad.margins * bad, half_bad.length_differences, None, half_bad.subset)
    checks = control_false_discoveries(accuracy_checks(half_bad, None))
    verdicts = {check.subset: check.verdict for check in checks if check.subset}
    assert verdicts == {"subset 0": "pass", "subset 1": "fail"}


# --- Collapsed and random rewards -----------------------------------------------------------------


@pytest.mark.parametrize("ties", [60, 58])
def test_a_collapsed_model_fails_with_a_sentence(ties):
    """Hub cards report 1.0 and .9951 for such, because they count a tie as right."""
    margins = np.zeros(60)
    margins[ties:] = 1.0
    pairs = pairs_of(margins, np.arange(60) % 7 - 3)
    collapsed, random = collapse_checks(pairs)
    assert (collapsed.verdict, collapsed.value) == ("fail", ties / 60)
    assert collapsed.note == (
        f"the model has collapsed: it gives both sides of {ties} of 60 pairs the same reward, "
        "so it ranks nothing"
    )
    assert random.verdict == "not applicable"
    check = accuracy_check(pairs, None)
    assert check.verdict == "fail" and "the model has collapsed" in check.note


def test_rewards_that_differ_by_rounding_alone_have_collapsed():
    margins = 1e-7 * np.random.default_rng(0).normal(size=60)
    pairs = pairs_of(margins, np.ones(60))
    offset = Pairs(**{**vars(pairs), "rewards": pairs.rewards + 0.7})
    assert collapse_checks(offset)[0].verdict == "fail"
    tiny = Pairs(**{**vars(pairs), "rewards": pairs.rewards * 1e-9})  # no rounding: no offset
    assert collapse_checks(tiny)[0].verdict == "pass"


def test_a_small_gain_is_no_pass_because_it_is_sure():
    """Of 20,000 pairs .52 is surely above a coin and surely less than .05 above it; it passed."""
    right = np.arange(20_000) % 100 < 52
    check = accuracy_check(pairs_of(np.where(right, 1.0, -1.0), np.tile([1, -1], 10_000)), None)
    assert (check.value, check.verdict) == (0.52, "fail")


def test_a_random_head_is_recognised():
    rng = np.random.default_rng(0)
    random = collapse_checks(drawn_pairs(rng, 2000, 0.5))[1]
    assert random.verdict == "fail"
    assert "as those of a head do that was never trained or not loaded" in random.note
    assert random.note.endswith("they do not follow length either")
    dl = rng.normal(size=2000)
    follows = collapse_checks(pairs_of(dl + rng.normal(size=2000), dl))[1]
    assert follows.note.endswith("they follow length (r = .712)")
    few = collapse_checks(drawn_pairs(rng, 60, 0.5))[1]
    assert few.verdict == "not measurable"
    # A model that is right where it is sure is not random, and neither is one that is upside down.
    margins = rng.normal(size=2000)
    margins = np.where(np.abs(margins) > 1.5, np.abs(margins), margins)
    assert collapse_checks(pairs_of(margins, np.ones(2000)))[1].verdict == "pass"
    assert collapse_checks(drawn_pairs(rng, 2000, 0.3))[1].verdict == "pass"
