"""auditing.checks.edits: every edit by hand, and what none of them may do."""

import re

import pytest

from auditing.checks.edits import (
    EDITS,
    FLATTERY,
    HEDGE,
    PADDING,
    blank_prompt,
    edit_completion,
    last_user_turn,
)
from auditing.style import hedges, markdown
from reward.data.transcripts import assistant, user

EDIT = {edit.name: edit for edit in EDITS}
EGG = user("How do I boil an egg?")
ON_OTHER_TEXTS = ("copied prompt", "answer to another prompt")  # edits that don't read the text
NOT_IN_CODE = ("casing", "whitespace", "emoji", "bullets and headings")


def edited(name: str, text: str, other: str | None = "Bake it.") -> str | None:
    return EDIT[name].apply(EGG, text, other)


def test_every_edit_by_hand():
    text = "Use a Pot. Wait  six minutes!"
    assert edited("hedging preamble", text) == HEDGE + text
    assert edited("flattery", text) == FLATTERY + text
    assert edited("Sure! prefix", text) == "Sure! Use a Pot. Wait  six minutes!"
    assert edited("bullets and headings", text) == "## Answer\n\n- Use a Pot.\n- Wait  six minutes!"
    assert edited("emoji", text) == "Use a Pot. \U0001f60a Wait  six minutes! \u2728"
    assert edited("neutral padding", text) == text + PADDING
    assert edited("whitespace", text) == "\nUse  a  Pot.  Wait    six  minutes!"
    assert edited("casing", text) == "use a pot. wait  six minutes!"
    assert edited("repeated answer", text) == f"{text}\n\n{text}"
    assert edited("truncated answer", text) == "Use a Pot. Wai"
    assert edited("empty answer", text) == ""
    gibberish = edited("gibberish suffix", text)
    assert re.fullmatch(re.escape(text) + r"( [a-z]{3,8}){12}", gibberish)
    assert gibberish == edited("gibberish suffix", text)
    assert gibberish != edited("gibberish suffix", text + ".")
    assert edited("copied prompt", text) == "How do I boil an egg?"
    assert edited("answer to another prompt", text) == "Bake it."


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[(name, "") for name in EDIT if name not in ON_OTHER_TEXTS],
        ("Sure! prefix", "Sure, here it is."),
        ("bullets and headings", "- one\n- two"),
        ("casing", "all small"),
        *[(name, "```\nX = 1\n```") for name in NOT_IN_CODE],
        ("copied prompt", "How do I boil an egg?"),
        ("answer to another prompt", "Bake it."),
        ("truncated answer", "A"),
    ],
)
def test_an_edit_that_changes_nothing_or_would_change_content_is_none(name, text):
    assert edited(name, text) is None


def test_without_another_prompt_there_is_no_other_answer():
    assert edited("answer to another prompt", "Use a pot.", other=None) is None


def test_marks_are_those_of_the_edit_alone():
    """A probe that carries two marks could not say which of them a model falls for."""
    assert hedges(HEDGE) >= 3
    assert hedges(FLATTERY + PADDING + "Sure!") == 0
    assert markdown(HEDGE + FLATTERY + PADDING) == 0
    assert len({edit.name for edit in EDITS}) == len(EDITS) == 14
    assert all(edit.imitates for edit in EDITS)


def test_the_last_assistant_turn_of_messages_is_edited():
    sure = EDIT["Sure! prefix"]
    turns = [
        {"role": "assistant", "content": "A."},
        {"role": "tool", "content": "x"},
        {"role": "assistant", "content": "B."},
    ]
    expected = [*turns[:2], {"role": "assistant", "content": "Sure! B."}]
    assert edit_completion(sure, EGG, turns, None) == expected
    assert turns[2]["content"] == "B."
    without_text = [{"role": "assistant", "content": None}]
    assert edit_completion(sure, EGG, without_text, None) is None
    assert edit_completion(sure, "Q", "A.", None) == "Sure! A."
    other = edit_completion(EDIT["answer to another prompt"], EGG, assistant("A."), assistant("Z."))
    assert other == assistant("Z.")


def test_prompts_of_every_form():
    transcript = "\n\nHuman: one?\n\nAssistant: 1\n\nHuman: two?\n\nAssistant:"
    assert last_user_turn(transcript) == "two?"
    assert last_user_turn("plain") == "plain"
    conversation = [*EGG, *assistant("So."), *user("And then?"), *assistant("x")]
    assert last_user_turn(conversation) == "And then?"
    assert blank_prompt(EGG) == user("")
    assert blank_prompt("plain") == ""
    assert blank_prompt(transcript) == "\n\nHuman: \n\nAssistant:"


# --- Real texts -----------------------------------------------------------------------------------


def test_sentences_keep_their_paragraphs_and_lists_their_items():
    text = "Two ways:\n\n1. Boil it. Slowly!\n2. Fry it.\n\nDr. No said 3.5 min."
    assert edited("emoji", text) == (
        "Two ways:\n\n1. Boil it. \U0001f60a Slowly! \u2728\n2. Fry it. \U0001f44d\n\n"
        "Dr. \U0001f389 No said 3.5 min. \U0001f60a"
    )
    assert edited("bullets and headings", "A.\n\nB c.") == "## Answer\n\n- A.\n- B c."


def test_sentences_of_scripts_without_spaces():
    assert edited("emoji", "煮六分钟。小心！") == "煮六分钟。 \U0001f60a小心！ \u2728"
    assert edited("bullets and headings", "煮六分钟。小心！") == (
        "## Answer\n\n- 煮六分钟。\n- 小心！"
    )


@pytest.mark.parametrize(
    "block", ["```py\nx = 1\n```", "# Eggs", "- one\n- two", "| a | b |", "1. x"]
)
def test_what_is_added_leaves_a_block_of_markdown_whole(block):
    assert edited("hedging preamble", block) == HEDGE.rstrip() + "\n\n" + block
    assert edited("flattery", block) == FLATTERY.rstrip() + "\n\n" + block
    assert edited("Sure! prefix", block) == "Sure!\n\n" + block
    assert edited("neutral padding", block) == block + "\n\n" + PADDING.lstrip()


def test_padding_does_not_run_on_from_an_answer_without_a_full_stop():
    assert edited("neutral padding", "Paris") == "Paris\n\n" + PADDING.lstrip()
    assert edited("neutral padding", "It is Paris.\n") == "It is Paris." + PADDING
    assert edited("neutral padding", "巴黎。") == "巴黎。" + PADDING


def whole_edit(name: str, text: str, other: str | None = None) -> str | None:
    return edit_completion(EDIT[name], "\n\nHuman: Why?\n\nAssistant:", text, other)


def test_the_space_before_the_answer_of_a_transcript_stays():
    assert whole_edit("Sure! prefix", " Use a pot.") == " Sure! Use a pot."
    assert whole_edit("Sure! prefix", " Sure, a pot.") is None
    assert whole_edit("emoji", " A.") == " A. \U0001f60a"
    assert whole_edit("whitespace", " A b.") == " \nA  b."
    assert whole_edit("copied prompt", " A.") == " Why?"
    assert whole_edit("answer to another prompt", " A.", " B.") == " B."
    assert whole_edit("answer to another prompt", " A.", "A.") is None
    assert whole_edit("empty answer", " A.") == ""


def test_the_answer_is_edited_and_what_was_thought_before_it_stays():
    """A preamble opens the answer, not the thought, before which some templates drop it."""
    thought = "<think>\nHm. Eggs.\n</think>\n\n"
    assert whole_edit("hedging preamble", thought + "A.") == thought + HEDGE + "A."
    assert whole_edit("repeated answer", thought + "A.") == thought + "A.\n\nA."
    assert whole_edit("truncated answer", thought + "Boil") == thought + "Bo"
    assert whole_edit("empty answer", thought + "A.") == "<think>\nHm. Eggs.\n</think>"
    other = "<think>x</think>Bake it."
    assert whole_edit("answer to another prompt", thought + "A.", other) == thought + "Bake it."
    assert whole_edit("answer to another prompt", thought + "A.", "<think>cut") == (
        thought + "<think>cut"
    )


def test_a_turn_that_calls_tools_is_not_edited():
    """Whatever its text says, its call answers the prompt."""
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    calling = [{"role": "assistant", "content": "A.", "tool_calls": [call]}]
    for edit in EDITS:
        assert edit_completion(edit, EGG, calling, assistant("B.")) is None
    answer = EDIT["answer to another prompt"]
    assert edit_completion(answer, EGG, assistant("A."), calling) is None
    turns = [*calling, {"role": "tool", "content": "7"}, *assistant("B.")]
    assert edit_completion(answer, EGG, assistant("A."), turns) == assistant("B.")


def test_a_truncated_answer_ends_near_its_middle_or_nowhere():
    numbers = "12, " * 30
    assert edited("truncated answer", f"Sum: {numbers}ok") is None  # "o" would be left out alone
    assert edited("truncated answer", f"Add all of {numbers}") is None
    assert edited("truncated answer", "1 2 3 4 Add 5 6 7 8") == "1 2 3 4 A"
    assert edited("truncated answer", "Some words 1 2 3 4 5") == "Some word"


def test_the_question_is_copied_that_the_edited_turn_answers():
    turns = [*assistant("So."), *user("And then?"), *assistant("Wait.")]
    assert edit_completion(EDIT["copied prompt"], EGG, turns, None)[2] == assistant("And then?")[0]
