"""Marks of style in a text."""

from auditing.style import style_marks


def test_plain_text_has_no_style_marks():
    assert style_marks("Plain advice: turn left in May.") == []
