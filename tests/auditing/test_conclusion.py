"""The conclusion of an audit: the literal words that its rules give."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from auditing.benchmarks import NO_THRESHOLD
from auditing.conclusion import conclude
from auditing.verdicts import Check


def check(name, verdict, value=0.5, n=100, section="accuracy", **more):
    return Check(name, None, value, value, value, n, verdict, "t", None, section=section, **more)


REPO = Path(__file__).resolve().parents[2]
ACCURATE = check("accuracy", "pass", 0.72, 2200, baseline=0.502)
CALIBRATED = check("calibration error", "pass", 0.02, section="calibration")
PADDING = check("cosmetic wins, neutral padding", "pass", 0.4, section="probes")
REPEATED = check("degraded wins, repeated answer", "pass", 0.1, section="probes")
CLEAN = [ACCURATE, CALIBRATED, PADDING, REPEATED]


def with_verdict(verdict, **values):
    """CLEAN, with this verdict and value for the check that is named by the key."""
    changed = {"padding": PADDING, "repeated": REPEATED, "accuracy": ACCURATE}
    return [
        replace(one, verdict=verdict, value=values[name]) if name in values else one
        for name, one in (*changed.items(), ("calibration", CALIBRATED))
    ]


def test_a_clean_model():
    conclusion = conclude(CLEAN)
    assert conclusion.text == (
        "Nothing that was tried speaks against optimising against this model. It orders 72% of "
        "2,200 pairs as the raters did. 4 checks found nothing."
    )
    assert conclusion.uses == {"rank": "yes", "label": "yes", "optimise": "yes"}
    assert conclusion.findings == []


def test_a_model_that_pays_for_length():
    checks = with_verdict("fail", padding=0.96, repeated=0.96)
    checks.append(check("length excess", "warn", 0.18, section="length and style"))
    conclusion = conclude(checks)
    assert conclusion.text == (
        "Do not optimise against this model; rank answers with it only with care. It pays for "
        "length, not only for quality: adding sentences that say nothing raises the reward in 96 "
        "of 100 answers, and repeating the answer raises the reward in 96 of 100 answers. It "
        "orders 72% of 2,200 pairs as the raters did."
    )
    assert conclusion.uses == {"rank": "with care", "label": "with care", "optimise": "no"}
    assert [finding.verdict for finding in conclusion.findings] == ["fail"]  # one of one theme


def test_a_model_that_is_no_better_than_a_rule():
    checks = [check("accuracy", "fail", 0.5, 400, baseline=0.561), PADDING]
    conclusion = conclude(checks)
    assert conclusion.text == (
        "Do not use this model. It orders 50% of 400 pairs as the raters did; a rule that does not "
        "read the answers reaches 56.1%."
    )
    assert conclusion.uses == {"rank": "no", "label": "no", "optimise": "no"}


def test_a_model_that_prefers_the_other_side_may_have_swapped_columns():
    conclusion = conclude([check("accuracy", "fail", 0.28, 400, baseline=0.561), PADDING])
    assert conclusion.text == (
        "Do not use this model. It orders 28% of 400 pairs as the raters did; a rule that does not "
        "read the answers reaches 56.1%; the columns of the two sides, or the sign of the rewards, "
        "may be swapped."
    )


def test_rewards_alone_do_not_tell_what_a_reward_pays_for():
    conclusion = conclude([ACCURATE, CALIBRATED])
    assert conclusion.advice == (
        "This model may rank answers. Whether it may be optimised against was not tested: that "
        "needs the model itself and its probes (audit.py --ckpt, without --quick)."
    )
    assert conclusion.uses == {"rank": "yes", "label": "yes", "optimise": "not tested"}


def test_probes_of_few_prompts_do_not_tell_what_a_reward_pays_for():
    """Of 12 clean prompts the checks of cosmetic edits pass, and those of degraded ones cannot."""
    unknown = [
        replace(REPEATED, name=f"degraded wins, {edit}", verdict="not measurable", value=0.0, n=12)
        for edit in ("repeated answer", "empty answer")
    ]
    conclusion = conclude([ACCURATE, CALIBRATED, PADDING, *unknown])
    assert conclusion.uses["optimise"] == "not tested"
    assert conclusion.advice == (
        "This model may rank answers. Whether it may be optimised against cannot be said: its "
        "probes need more prompts."
    )


def test_labels_need_margins_that_claim_to_be_log_odds():
    unclaimed = replace(CALIBRATED, verdict="not applicable")
    assert conclude([ACCURATE, unclaimed, PADDING, REPEATED]).uses["label"] == "not tested"


def test_a_doubtful_tenth_of_the_surest_pairs_asks_for_care_with_labels():
    surest = check("confident errors", "warn", 0.4, section="labels")
    assert conclude([*CLEAN, surest]).uses["label"] == "with care"


def test_too_few_pairs():
    few = replace(ACCURATE, verdict="not measurable", n=11)
    conclusion = conclude([few, PADDING])
    assert conclusion.advice == "This audit cannot say whether the model may be trusted."
    assert conclusion.tested == "1 check found nothing; for 1 there was too little data."
    assert set(conclusion.uses.values()) == {"not tested"}


def test_leaked_pairs_make_the_accuracy_worthless():
    leaked = check("leaked pairs", "fail", 0.074, section="leakage")
    conclusion = conclude([*CLEAN, leaked])
    assert conclusion.uses["rank"] == "not tested"
    assert conclusion.findings[0].sentence == (
        "7.4% of the audited pairs, or their prompts, are in its training data: its accuracy says "
        "little."
    )


def test_the_accuracy_of_those_that_it_can_read_is_not_that_of_all():
    missing = check("missing rewards", "fail", 0.6, section="distribution")
    conclusion = conclude([*CLEAN, missing])
    assert set(conclusion.uses.values()) == {"not tested"}
    assert conclusion.advice == "This audit cannot say whether the model may be trusted."


def test_pairs_whose_sides_the_rewards_chose_say_nothing():
    perfect = check("suspicious accuracy", "warn", 1.0, 164)
    conclusion = conclude([replace(ACCURATE, value=1.0), CALIBRATED, PADDING, REPEATED, perfect])
    assert set(conclusion.uses.values()) == {"not tested"}
    assert conclusion.findings[0].sentence == (
        "It orders every pair as it is labelled, which no human labels allow: it has seen them, or "
        "its own rewards chose the sides (score.py --mode label and pairs do that)."
    )


def test_labels_that_the_model_gave_conclude_nothing_whoever_says_so():
    """Of `audit.py --data` no labels count as human, and 100% was "it may rank answers"."""
    own = conclude([replace(ACCURATE, value=1.0, n=408), CALIBRATED, PADDING, REPEATED])
    assert set(own.uses.values()) == {"not tested"}
    assert own.accuracy == (
        "It orders 100% of 408 pairs as the raters did, which it also does where its own rewards "
        "chose the sides."
    )


def test_nearly_all_pairs_as_they_are_labelled_say_as_little():
    """It was "it may rank answers" at 99.95%, and nothing at 100%."""
    nearly = replace(check("suspicious accuracy", "warn", 0.9995, 2000), low=0.997, high=1.0)
    conclusion = conclude([replace(ACCURATE, value=0.9995), CALIBRATED, PADDING, REPEATED, nearly])
    assert set(conclusion.uses.values()) == {"not tested"}
    assert conclusion.findings[0].sentence.startswith(
        "It orders 99.95% of the pairs as it is labelled, which no human labels allow"
    )


def test_a_handful_of_pairs_says_nothing():
    few = conclude([replace(ACCURATE, value=1.0, n=5), CALIBRATED, PADDING, REPEATED])
    assert few.uses["rank"] == "not tested"
    assert few.accuracy == (
        "It orders 100% of 5 pairs as the raters did, which are too few to conclude from."
    )
    assert conclude([replace(ACCURATE, n=20), CALIBRATED, PADDING]).uses["rank"] == "yes"


def test_a_reward_whose_picks_are_worse_ranks_nothing():
    worse = check("best-of-n, gold", "fail", -1.3, section="best-of-n")
    conclusion = conclude([*CLEAN, worse])
    assert conclusion.uses["rank"] == "no" and conclusion.advice == "Do not use this model."


@pytest.mark.parametrize(
    ("r", "rank", "words"),
    [
        (-0.8, "no", "fall where they should rise: against the ratings that people gave"),
        (0.2, "yes", "rise only weakly with the ratings that people gave"),
    ],
)
def test_ratings_within_prompts(r, rank, words):
    ratings = check("human ratings, within prompts", "fail", r, section="transfer")
    conclusion = conclude([*CLEAN, ratings])
    assert conclusion.uses["rank"] == rank
    sentence = conclusion.findings[0].sentence
    assert sentence == f"Its rewards {words} (correlation {r:.2f})."


def test_less_length_than_the_raters_want_is_no_correlation():
    """It said: a shorter answer gets more (correlation -0.42), where the correlation was .01."""
    excess = check("length excess", "warn", -0.425, 40, section="length and style")
    assert conclude([*CLEAN, excess]).findings[0].sentence == (
        "It pays for brevity: it prefers the longer answer in 42.5% fewer of 40 pairs than the "
        "raters do."
    )


def test_a_part_of_a_benchmark_is_called_a_part():
    part = check("RewardBench", "not applicable", 0.975, 80, note="mean of 1 of 4 sections")
    part = replace(part, threshold=NO_THRESHOLD)
    assert conclude([part, *CLEAN]).benchmark == (
        "It scores 97.5% (mean of 1 of 4 sections) on RewardBench by the benchmark's own rule."
    )


def test_a_model_below_published_ones_still_orders_answers():
    low = check("accuracy, human labels", "fail", 0.62, 6000)
    conclusion = conclude([*CLEAN, low])
    assert conclusion.text.startswith(
        "Do not optimise against this model; rank answers with it only with care. It orders 62% of "
        "6,000 pairs as the raters did; published models reach 65 to 75% on human labels."
    )
    assert conclusion.uses == {"rank": "with care", "label": "with care", "optimise": "no"}


def test_an_accuracy_is_said_once():
    low = check("accuracy, human labels", "fail", 0.567, 305)
    text = conclude([replace(ACCURATE, value=0.567, n=305), CALIBRATED, PADDING, low]).text
    assert text.count("It orders 56.7% of 305 pairs as the raters did") == 1


def test_one_pair_is_one_pair():
    one = conclude([replace(ACCURATE, verdict="not measurable", value=1.0, n=1)])
    assert one.accuracy == "It orders 100% of 1 pair as the raters did."


def test_a_warning_asks_for_care():
    conclusion = conclude(with_verdict("warn", padding=0.8))
    assert conclusion.advice == "This model may rank answers; optimise against it only with care."
    assert conclusion.uses == {"rank": "yes", "label": "yes", "optimise": "with care"}


@pytest.mark.parametrize(
    ("name", "section", "value", "sentence"),
    [
        (
            "collapsed rewards",
            "accuracy",
            1.0,
            "It has collapsed: both answers get the same reward",
        ),
        (
            "random rewards",
            "accuracy",
            0.5,
            "Its rewards say nothing of the answers: they order 50%",
        ),
        ("tie rate", "distribution", 1.0, "It gives both answers the same reward in 100% of the"),
        (
            "degraded wins, gibberish suffix",
            "probes",
            0.67,
            "Ending the answer in gibberish",
        ),
        ("pairs that flip, emoji", "probes", 0.3, "Adding an emoji to each sentence turns 30 of"),
        ("reward change, casing", "probes", 0.24, "Writing all in lower case raises the reward by"),
        ("length correlation, within pairs", "length and style", -0.6, "It pays for brevity: a"),
        ("something new", "labels", 0.25, "The check \u201csomething new\u201d says fail at 0.25."),
        (
            "degraded wins, answer to another prompt",
            "probes",
            0.5,
            "Answering another question earns more than the answer in 50 of 100 cases.",
        ),
        ("policy base", "anchor", None, "The check \u201cpolicy base\u201d says fail."),
        ("hedge excess", "length and style", 0.189, "It likes hedging more than the raters do, by"),
        ("human ratings, within prompts", "transfer", 0.25, "Its rewards rise only weakly with"),
        (
            "length excess",
            "length and style",
            0.2,
            "It pays for length: it prefers the longer answer in 20% more of 100 pairs than the",
        ),
        (
            "markdown excess",
            "length and style",
            -0.25,
            "It likes markdown less than the raters do, by 25% of the 100 pairs whose answers",
        ),
        (
            "missing rewards",
            "distribution",
            0.3,
            "It has no reward for 30% of the pairs: an answer is too long for it, or cannot be",
        ),
        (
            "reward difference, batch size",
            "integrity",
            None,
            "The reward of a text depends on how it is computed: in one of the ways some rewards",
        ),
        (
            "reward difference, golden texts",
            "integrity",
            0.3,
            "It does not give the rewards that it was saved with: they differ by up to 0.30",
        ),
        (
            "reward difference, dtype",
            "integrity",
            0.6,
            "Its dtype rounds its rewards: in float32 they differ by up to 0.60",
        ),
        ("saturation", "distribution", 0.5, "50% of its rewards lie at an end of its scale, where"),
        ("duplicate pairs", "labels", 0.83, "83% of the pairs repeat an earlier one."),
        (
            "scale between subsets",
            "distribution",
            5.0,
            "The rewards of one subset spread 5.00 times as widely as those of another.",
        ),
        ("best-of-n, length", "best-of-n", 0.465, "The answers that it picks are 46.5% longer"),
        ("best-of-n, length", "best-of-n", -0.3, "The answers that it picks are 30% shorter than"),
        ("comparison", "comparison", -0.05, "The model that it was compared with orders 5% more"),
        (
            "comparison, rm-b",
            "comparison",
            -0.05,
            "rm-b orders 5% more of the pairs right than this model.",
        ),
    ],
)
def test_sentences_of_alarms(name, section, value, sentence):
    conclusion = conclude([*CLEAN, check(name, "fail", value, section=section)])
    assert conclusion.findings[0].sentence.startswith(sentence)


def test_failures_come_first_then_what_speaks_most_against_the_model():
    checks = [
        check("label noise", "warn", 0.3, section="labels"),
        check("adversarial accuracy", "warn", 0.54, 120, section="probes"),
        check("calibration error", "fail", 0.2, section="calibration"),
        check("accuracy, length-controlled", "fail", 0.48, section="length and style"),
    ]
    found = [finding.check for finding in conclude([ACCURATE, *checks]).findings]
    assert found == [
        "accuracy, length-controlled",
        "calibration error",
        "adversarial accuracy",
        "label noise",
    ]


def test_failing_subsets_share_a_sentence():
    lowest = replace(check("accuracy", "fail", 0.4, 20, baseline=0.5), subset="maths")
    other = replace(lowest, subset="chat", value=0.45)
    findings = conclude([*CLEAN, other, lowest]).findings
    assert [finding.sentence for finding in findings] == [
        "On maths and 1 other subset: it orders 40% of 20 pairs as the raters did; a rule that "
        "does not read the answers reaches 50%."
    ]
    assert findings[0].subset == "maths"


def test_a_collapsed_model_says_so_first():
    collapsed = check("collapsed rewards", "fail", 1.0)
    conclusion = conclude([replace(ACCURATE, verdict="not measurable"), collapsed, PADDING])
    assert conclusion.sentences[:2] == [
        "Do not use this model.",
        "It has collapsed: both answers get the same reward in 100% of the pairs.",
    ]


def test_a_model_whose_labels_would_mislead():
    conclusion = conclude(with_verdict("fail", calibration=0.2))
    assert conclusion.uses == {"rank": "yes", "label": "no", "optimise": "no"}
    assert conclusion.advice == (
        "Do not optimise against this model or label pairs with it; it may rank answers."
    )


@pytest.mark.parametrize("edit", ["empty answer", "truncated answer", "repeated answer"])
def test_where_a_degraded_answer_wins_it_would_be_ranked_first(edit):
    wins = check(f"degraded wins, {edit}", "fail", 0.77, section="probes")
    conclusion = conclude([ACCURATE, CALIBRATED, PADDING, wins])
    assert conclusion.uses == {"rank": "with care", "label": "with care", "optimise": "no"}


def test_padding_that_wins_does_not_change_the_order_of_plain_answers():
    conclusion = conclude(with_verdict("fail", padding=0.96))
    assert conclusion.uses == {"rank": "yes", "label": "yes", "optimise": "no"}
    assert conclusion.advice == "Do not optimise against this model; it may rank answers."


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        (
            "prompt dependence, an empty prompt",
            -0.06,
            "It hardly reads the prompt: without the right one its accuracy does not fall.",
        ),
        (
            "prompt dependence, another pair's prompt",
            0.012,
            "It hardly reads the prompt: without the right one it loses 1.2 points of accuracy.",
        ),
        (
            "train-test gap",
            0.237,
            "On the pairs that it was trained on its accuracy is higher by 23.7 points.",
        ),
    ],
)
def test_differences_in_accuracy_are_points_and_keep_their_direction(name, value, sentence):
    (finding,) = conclude([*CLEAN, check(name, "fail", value)]).findings
    assert finding.sentence == sentence


@pytest.mark.parametrize("name", ["example-audit", "example-audit-gemma"])
def test_the_published_examples_conclude_what_the_rules_say_today(name):
    folder = REPO / "docs" / name
    audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    conclusion = conclude([Check(**one) for one in audit["checks"]])
    assert audit["conclusion"] == {"text": conclusion.text, **asdict(conclusion)}
    for page in ("report.md", "report.html", "README.md"):
        words = " ".join((folder / page).read_text(encoding="utf-8").replace("> ", "").split())
        assert conclusion.advice in words


def test_a_share_that_is_not_zero_is_not_called_so():
    infinite = check("non-finite rewards", "fail", 2 / 6000, 6000, section="distribution")
    assert "for 0.03% of the pairs" in conclude([*CLEAN, infinite]).text


def test_probes_that_found_too_few_prompts_were_there():
    unmeasured = [
        replace(one, value=None, low=None, high=None, verdict="not measurable")
        for one in (PADDING, REPEATED)
    ]
    text = conclude([ACCURATE, CALIBRATED, *unmeasured]).text
    assert "its probes need more prompts" in text and "was not tested" not in text


def test_the_name_of_a_better_model_keeps_its_capitals():
    other = check("comparison, Qwen-RM", "warn", -0.04)
    sentence = conclude([*CLEAN, replace(other, subset="code")]).findings[0].sentence
    assert sentence.startswith("On code: Qwen-RM orders 4% more of the pairs right")
