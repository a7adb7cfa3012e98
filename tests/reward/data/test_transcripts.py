"""Prompts and completions in every form: their words, first turn, whether they are messages."""

from reward.data.messages import side_of
from reward.data.transcript_shapes import prompt_messages
from reward.data.transcripts import (
    assistant,
    first_user_turn,
    is_messages,
    parse_helpsteer,
    shared_words,
    text_of,
    user,
)

TALK = "\n\nHuman: Hi\n\nAssistant: Hello! How can I help?\n\nHuman: Name a river.\n\nAssistant:"
TURNS = user("Hi") + assistant("Hello! How can I help?") + user("Name a river.")


def test_first_user_turn_is_the_same_in_every_form():
    """Case and spaces don't count: one question is in one split, however its rows are written."""
    prompts = [
        TURNS,
        TALK,
        [{"role": "system", "content": "Be kind."}, *user(" HI ")],
        "hi",
        user("Hi"),
    ]
    assert {first_user_turn(prompt) for prompt in prompts} == {"hi"}
    assert first_user_turn([]) == "" and first_user_turn(assistant("Hello  there")) == "hello there"


def test_text_of():
    assert text_of("a") == "a" and text_of(TURNS) == "Hi\n\nHello! How can I help?\n\nName a river."
    assert text_of([{"role": "assistant", "content": None, "tool_calls": [1]}]) == ""
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    message = {"role": "assistant", "content": "Let me see.", "tool_calls": [call]}
    assert text_of([message]) == 'Let me see.\n{"name": "add", "arguments": {"x": 1}}'


def test_is_messages():
    assert (
        is_messages([])
        and is_messages(TURNS)
        and is_messages([{"role": "assistant", "tool_calls": []}])
    )
    assert not any(
        is_messages(value)
        for value in ("a", None, ["a"], [{"content": "a"}], [{"role": 1, "content": "a"}])
    )


def test_the_reply_that_is_to_come_is_no_turn():
    assert prompt_messages("\n\nHuman: Hi\n\nAssistant: ") == user("Hi")
    assert prompt_messages("\n\nHuman: Hi\n\nAssistant: Yes.") == user("Hi") + assistant("Yes.")
    assert prompt_messages(" as it is ") == user(" as it is ")


def test_the_first_turn_of_helpsteer_carries_no_mark():
    text = "Hi<extra_id_1>Assistant\nHello<extra_id_1>User\nA river?"
    assert parse_helpsteer(text) == user("Hi") + assistant("Hello") + user("A river?")
    assert prompt_messages(text + "<extra_id_1>Assistant\n") == parse_helpsteer(text)


def test_shared_words_end_with_a_space():
    assert shared_words("name a river", "name a road") == len("name a ")
    assert shared_words("river", "road") == 0


def test_empty_fields_are_cleaned():
    message = {"role": "user", "content": "Hi", "tool_calls": None}
    assert side_of([message], "`prompt`") == user("Hi") and "tool_calls" in message
