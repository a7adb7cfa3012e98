"""The words about alarms: there are some for every rule, and what they name exists."""

import re
from dataclasses import replace

import pytest
from audits import checks_of, flattery_check

from audit import read_options
from auditing.checks.edits import EDITS
from auditing.checks.policy import RULES
from auditing.report.meanings import (
    MEANINGS,
    drawn_limits,
    in_unit,
    limits_in_words,
    meaning_of,
    near_a_fail,
    rule_of,
    value_in_words,
)
from auditing.verdicts import THRESHOLDS
from reward.recipe.keys import ENTRY, KEYS

ACCURACY = checks_of()[0]

# What the texts may name beside recipe keys: flags of audit.py, and columns and options of others.
FLAGS = ("--ood", "--data")
OTHERS = ("float32", "score.py", "columns", "votes", "pad_token", "reward_error")


def test_every_rule_has_words():
    assert set(THRESHOLDS) - set(MEANINGS) == set()
    assert set(RULES) - set(MEANINGS) == set()
    units = {meaning.unit for meaning in MEANINGS.values()}
    assert units == {"share", "points", "change", "correlation", "deviations", "plain"}
    for meaning in MEANINGS.values():
        for text in (meaning.means, meaning.matters, meaning.do):
            assert text[0].isupper() and text.endswith(".") and text.count("`") % 2 == 0


def test_what_the_words_name_exists(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["audit.py", "--help"])
    with pytest.raises(SystemExit):
        read_options()
    flags = capsys.readouterr().out
    for meaning in MEANINGS.values():
        for name in re.findall(r"`([^`]*)`", meaning.do):
            key = name.split(":")[0]
            known = key in KEYS or key in ENTRY or key in OTHERS
            assert known or (key in FLAGS and f"{key} " in flags), name


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("accuracy", "accuracy"),
        ("accuracy, human labels", "accuracy, human labels"),
        ("accuracy, about equal", "accuracy by length"),
        ("length correlation, within pairs", "length correlation"),
        ("best-of-n, gold", "best-of-n, gold"),
        ("comparison, rm-b", "comparison"),
        ("human ratings, all completions", "human ratings"),
        *((f"pairs that flip, {edit.name}", "pairs that flip") for edit in EDITS),
    ],
)
def test_the_rule_of_a_check(name, rule):
    check = replace(ACCURACY, name=name)
    assert rule_of(check) == rule and meaning_of(check) is MEANINGS[rule]


def test_a_check_that_nobody_described():
    check = replace(ACCURACY, name="something new", baseline=None)
    assert meaning_of(check) is None
    assert (value_in_words(check), drawn_limits(check), limits_in_words(check)) == ("0.75", [], [])


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.958, "share", "95.8%"),
        (0.185, "points", "+18.5 points"),
        (-0.02, "points", "\u22122 points"),
        (0.0, "points", "0 points"),
        (-0.0001, "points", "0 points"),
        (0.465, "change", "+46.5%"),
        (-0.61, "correlation", "\u22120.61"),
        (0.654, "deviations", "0.65 sd"),
    ],
)
def test_numbers_in_their_unit(value, unit, words):
    assert in_unit(value, unit) == words


def test_limits():
    wins = flattery_check()
    assert value_in_words(wins) == "21 of 24"
    assert limits_in_words(wins) == [("warn", "warns above 75%"), ("fail", "fails above 90%")]
    assert drawn_limits(wins) == [0.75, 0.9]
    assert limits_in_words(ACCURACY) == [(None, "a rule that does not read: 55%")]
    assert drawn_limits(ACCURACY) == [0.55]
    correlation = replace(
        ACCURACY,
        name="length correlation, pooled",
        threshold=THRESHOLDS["length correlation"].in_words(),
    )
    assert limits_in_words(correlation) == [
        ("warn", "warns beyond \u00b10.30"),
        ("fail", "fails beyond \u00b10.55"),
    ]
    assert drawn_limits(correlation) == [0.3, 0.548, -0.3, -0.548]
    of_this_data = replace(correlation, threshold="warn > .8 (the votes of these pairs)")
    assert limits_in_words(replace(of_this_data, baseline=None)) == []


def test_a_warning_whose_interval_holds_the_limit_of_a_fail_says_so():
    wins = flattery_check()  # .875 (.8 to .95), fails above .9
    either_side = "The true number may lie on either side of it (80% to 95%), so this only warns."
    assert near_a_fail(wins) == f"The limit of a fail is 90%. {either_side}"
    on_it = f"This is exactly the limit of a fail (90%). {either_side}"
    assert near_a_fail(replace(wins, value=0.9)) == on_it
    assert near_a_fail(replace(wins, high=0.89)) == ""
    assert near_a_fail(replace(wins, verdict="fail")) == ""
    assert near_a_fail(ACCURACY) == ""
    negative = replace(
        wins,
        name="length correlation, pooled",
        threshold=THRESHOLDS["length correlation"].in_words(),
        value=-0.5,
        low=-0.6,
        high=-0.4,
    )
    assert near_a_fail(negative).startswith("The limit of a fail is \u22120.55. The true number")
