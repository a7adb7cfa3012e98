"""Texts that are clipped, and numbers in words."""

import math

from auditing.report.wording import clip, fixed, one_line


def test_text_helpers():
    assert clip("abcdef", 4) == "abcd\u2026 (2 more characters)"
    assert clip("a\r\nb\tc\x07") == "a\nb\tc<U+0007>"
    assert one_line("a\n b  c", 10) == "a b c" and one_line("abcdef", 4) == "abc\u2026"


def test_fixed():
    values = (0.0, -0.0, 0.71349, -0.25, 0.9996, 1.0, 9.996, 10.5, 114.032, 12345.0, 1234567.0)
    words = ".000 .000 .713 -.250 1.00 1.00 10.0 10.5 114 12,345 1.23e+06"
    assert [fixed(value) for value in values] == words.replace("-", "\u2212").split()
    small = (1e-5, -0.0004, None, math.nan)
    words = "1e-05 -4e-04 \u2013 \u2013"
    assert [fixed(value) for value in small] == words.replace("-", "\u2212").split()
