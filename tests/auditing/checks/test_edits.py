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
