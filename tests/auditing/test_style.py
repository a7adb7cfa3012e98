"""Marks of style in a text."""

from auditing.style import hedges, markdown, style_marks


def test_plain_text_has_no_style_marks():
    assert style_marks("Plain advice: turn left in May.") == []


def test_what_stands_in_a_block_of_code_is_no_markdown():
    code = "```python\n# add\n- x\nf(**a, **b)\n1. / 2\n```"
    assert markdown(code) == 2  # its fences
    assert markdown(f"# How\n{code}\n- then\n{code}\n**end**") == 7
    assert style_marks(code) == ["markdown: 2 code fences"]
    assert markdown("- run\n  ```sh\n  - x\n  ```\n- stop") == 4
    assert markdown("```\n# never closed") == 1
    assert markdown("```x = 1```\n# A heading") == 2


def test_a_month_and_a_warning_are_no_hedges():
    assert hedges("On 5 May 2020 and in May. It's important not to boil it.") == 0
    assert hedges("It may rain. Perhaps. It's worth noting; it is important to remember.") == 4
