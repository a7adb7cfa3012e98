"""What the terminal shows: the conclusion, the table of checks, and when it is in colour."""

import io
import re
from dataclasses import replace

import pytest
from audits import full_audit, rows_of

from auditing.pairs import Pairs
from auditing.report.terminal import COLOURS, print_audit, terminal_text
from auditing.report.wording import ranking_sentence
from auditing.result import Audit
from auditing.verdicts import VERDICTS, Check

UNMEASURED = Check("mean margin", None, None, None, None, 1, "not measurable", "t", None)


def audit_of(checks):
    return Audit(Pairs.collect(rows_of(3)), checks, {})


CHECKS = [
    Check("accuracy", None, 0.7134, 0.668, 0.7549, 1412, "pass", "t", 0.6),
    Check("accuracy", "a\x1b[31m\n" + "long " * 30, 0.5, 0.4, 0.6, 9, "fail", "t", 0.6),
    replace(UNMEASURED, section="distribution"),
    Check("spillover", None, -0.1, -0.2, 0.0, 100, "warn", "t", 0.1, section="transfer"),
]
CONCLUSION = [
    "Do not optimise against this model; rank answers with it only with "
    "care. On a<U+001B>[31m long long",
    "long long long long long long long long lon: it orders 50% of 9 pairs as the raters did. Its",
    "accuracy on other data is lower by 10 points. It orders 71.3% of 1,412 pairs as the raters "
    "did.",
    "",
    "4 checks raised 2 alarms (1 fail, 1 warn).",
]


def test_the_conclusion_the_alarms_and_a_line_a_section():
    assert terminal_text(audit_of(CHECKS)).plain.split("\n") == [
        *CONCLUSION,
        "verdict  check                                   value   95% interval    n",
        "fail     accuracy: a<U+001B>[31m long long lon…   .500   .400 to .600    9",
        "warn     spillover                               -.100  -.200 to .000  100",
        "",
        "Accuracy: 1 pass",
        "Distribution: 1 not measurable",
    ]


def test_a_comparison_says_which_model_is_better():
    audit = full_audit()
    lines = terminal_text(audit).plain.split("\n")
    start = lines.index("") + 1
    said = " ".join(lines[start : lines.index("", start)])
    assert said == ranking_sentence(audit.ranking)
    assert said.startswith("Of 3 models on the same ")


def test_verbose_shows_every_check():
    assert terminal_text(audit_of(CHECKS), verbose=True).plain.split("\n") == [
        *CONCLUSION,
        "verdict         check                                   value   95% interval      n",
        "fail            accuracy: a<U+001B>[31m long long lon…   .500   .400 to .600      9",
        "warn            spillover                               -.100  -.200 to .000    100",
        "",
        "Accuracy",
        "pass            accuracy                                 .713   .668 to .755  1,412",
        "Distribution",
        "not measurable  mean margin                                 –              –      1",
    ]


def test_no_line_is_wider_than_100_columns():
    number = -12345.678
    wide = Check("x" * 99, "y" * 99, number, number, number, 1_000_000, "fail", "t", 0.6)
    text = terminal_text(audit_of([*CHECKS, wide]), verbose=True).plain
    assert max(map(len, text.split("\n"))) <= 100


PLAIN = terminal_text(audit_of(CHECKS), verbose=True).plain + "\n"


def without_colours(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def printed(monkeypatch):
    """What print_audit writes to a terminal, or to a pipe, with NO_COLOR set or not."""

    def call(stream, no_color=False):
        for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr("sys.stdout", stream)
        print_audit(audit_of(CHECKS), verbose=True)
        return stream.getvalue()

    return call


def test_a_pipe_gets_plain_text_that_is_not_wrapped(printed):
    text = printed(io.StringIO())
    assert text == PLAIN
    assert 80 < max(map(len, text.split("\n"))) <= 100  # rich takes a pipe for 80 columns wide


def test_a_terminal_gets_colours_by_verdict(printed):
    text = printed(Terminal())
    assert "\x1b[1;31mfail\x1b[0m" in text
    assert "\x1b[32mpass\x1b[0m" in text and "\x1b[36mnot measurable\x1b[0m" in text
    assert (
        re.sub(r"\x1b\[[0-9;]*m", "", text)
        == terminal_text(audit_of(CHECKS), verbose=True).plain + "\n"
    )
    assert set(COLOURS) == set(VERDICTS)


def test_no_color_is_honoured(printed):
    text = printed(Terminal(), no_color=True)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", text)
    assert (
        re.sub(r"\x1b\[[0-9;]*m", "", text)
        == terminal_text(audit_of(CHECKS), verbose=True).plain + "\n"
    )
