"""The table of checks: its columns, what it folds, and when it is in colour."""

import io
import re
from dataclasses import replace

import pytest

from auditing.report.terminal import COLOURS, print_checks, terminal_table
from auditing.verdicts import VERDICTS, Check

PASSED = Check("accuracy", None, 0.5, 0.4, 0.6, 9, "pass", "t", None)
UNMEASURED = Check("mean margin", None, None, None, None, 1, "not measurable", "t", None)


def test_terminal_table():
    checks = [
        Check("accuracy", None, 0.7134, 0.668, 0.7549, 1412, "pass", "t", 0.6),
        Check("accuracy", "a\x1b[31m\n" + "long " * 30, 0.5, 0.4, 0.6, 9, "fail", "t", 0.6),
        replace(UNMEASURED, section="distribution"),
        Check("spillover", None, -0.1, -0.2, 0.0, 100, "warn", "t", 0.1, section="transfer"),
    ]
    assert terminal_table(checks).plain.split("\n") == [
        "verdict         check                                   value   95% interval      n",
        "fail            accuracy: a<U+001B>[31m long long lon…   .500   .400 to .600      9",
        "warn            spillover                               -.100  -.200 to .000    100",
        "Accuracy",
        "pass            accuracy                                 .713   .668 to .755  1,412",
        "Distribution",
        "not measurable  mean margin                                 –              –      1",
    ]
    accuracy = Check("accuracy", None, 0.72, 0.68, 0.757, 500, "pass", "t", 0.6)
    accuracy = replace(accuracy, baseline=0.5021, ceiling=0.958)
    assert terminal_table([accuracy]).plain.split("\n")[-2:] == [
        "",
        "accuracy .720 of a ceiling of .958; the best rule that does not read scores .502",
    ]
    wide = replace(
        UNMEASURED,
        name="x" * 99,
        subset="y" * 99,
        value=-12345.678,
        low=-12345.678,
        high=-12345.678,
        n=1_000_000,
    )
    assert max(map(len, terminal_table([*checks, wide]).plain.split("\n"))) <= 100


def test_the_terminal_table_folds_what_is_no_alarm():
    def many(n, verdict, section, subset=None):
        return [
            replace(
                PASSED,
                name=f"{verdict} {i}",
                subset=subset and f"s{i}",
                verdict=verdict,
                section=section,
            )
            for i in range(n)
        ]

    few = [*many(2, "fail", "labels"), *many(12, "pass", "accuracy"), *many(5, "pass", "probes")]
    assert len(terminal_table(few).plain.split("\n")) == 1 + 2 + 1 + 12 + 1 + 5
    subsets = [*many(200, "pass", "accuracy", "s"), *many(30, "not measurable", "accuracy", "s")]
    lines = terminal_table([*subsets, *few]).plain.split("\n")
    assert (
        len(lines) <= 41
        and "  more: 30 not measurable, 200 pass" in lines
        and "pass 11" in "\n".join(lines)
    )
    alarmed = terminal_table([*subsets, *few, *many(60, "warn", "probes")]).plain.split("\n")
    assert [line.split()[0] for line in alarmed[1:63]] == ["fail"] * 2 + [
        "warn"
    ] * 60  # all, and first
    assert alarmed[63:] == ["Accuracy", "  30 not measurable, 212 pass", "Probes", "  5 pass"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


CHECKS = [
    Check("accuracy", "s" * 99, -12345.678, -12345.678, -12345.678, 9, "fail", "t", 0.6),
    Check("accuracy", None, 0.7, 0.6, 0.8, 1412, "pass", "t", 0.6),
    UNMEASURED,
]


@pytest.fixture
def printed(monkeypatch):
    """What print_checks writes to a terminal, or to a pipe, with NO_COLOR set or not."""

    def call(stream, no_color=False):
        for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr("sys.stdout", stream)
        print_checks(CHECKS)
        return stream.getvalue()

    return call


def test_a_pipe_gets_plain_text_that_is_not_wrapped(printed):
    text = printed(io.StringIO())
    assert text == terminal_table(CHECKS).plain + "\n"
    assert 80 < max(map(len, text.split("\n"))) <= 100  # rich takes a pipe for 80 columns wide


def test_a_terminal_gets_colours_by_verdict(printed):
    text = printed(Terminal())
    assert "\x1b[1;31mfail\x1b[0m" in text
    assert "\x1b[32mpass\x1b[0m" in text and "\x1b[36mnot measurable\x1b[0m" in text
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == terminal_table(CHECKS).plain + "\n"
    assert set(COLOURS) == set(VERDICTS)


def test_no_color_is_honoured(printed):
    text = printed(Terminal(), no_color=True)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", text)
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == terminal_table(CHECKS).plain + "\n"
