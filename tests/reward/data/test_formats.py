"""Formats: a row shaped as its dataset publishes it gives literal pairs.

A malformed row is refused without its content.
"""

import json
import math

import pytest

from reward.data.formats import (
    RowError,
    is_rating,
    rating_pairs,
    same_request,
    to_pairs,
    unread_columns,
)
from reward.data.transcripts import (
    assistant,
    is_texts,
    parse_transcript,
    text_of,
    user,
)

SECRET = "hunter2"  # stands in every malformed row, and never in a message


def pair(prompt, chosen, rejected, drop="", subset=None, **more) -> dict:
    """A literal canonical pair; strings become a user turn and an assistant turn."""
    prompt, chosen, rejected = (
        turn(side) if isinstance(side, str) else side
        for turn, side in ((user, prompt), (assistant, chosen), (assistant, rejected))
    )
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "drop": drop,
        "subset": subset,
        **more,
    }


def only(row: dict, transcript: str = "messages") -> dict:
    (read_pair,) = to_pairs(row, transcript)
    return read_pair


def refused(row: dict, transcript: str = "messages") -> str:
    with pytest.raises(RowError) as caught:
        to_pairs(row, transcript)
    assert SECRET not in str(caught.value) and caught.value.__cause__ is None
    return str(caught.value)


# --- TRL's preference format ----------------------------------------------------------------------


def test_explicit_prompt_strings():
    row = {"prompt": "What color is the sky?", "chosen": "It is blue.", "rejected": "It is green."}
    assert to_pairs(row) == [pair("What color is the sky?", "It is blue.", "It is green.")]
    raw = only(row, "raw")
    assert (raw["prompt"], raw["chosen"], raw["rejected"]) == tuple(row.values())


def test_explicit_prompt_messages():
    row = {"prompt": user("Sky?"), "chosen": assistant("Blue."), "rejected": assistant("Green.")}
    assert to_pairs(row) == to_pairs(row, "raw") == [pair("Sky?", "Blue.", "Green.")]


def test_prompt_messages_with_string_completions():
    system = [{"role": "system", "content": "Be kind."}, *user("Sky?")]
    assert to_pairs({"prompt": system, "chosen": "Blue.", "rejected": "Green."}) == [
        pair(system, "Blue.", "Green.")
    ]


def test_implicit_prompt_messages():
    talk = user("Sky?") + assistant("Blue.") + user("At night?")
    row = {"chosen": talk + assistant("Black."), "rejected": talk + assistant("Red.")}
    assert to_pairs(row) == [pair(talk, "Black.", "Red.")]


def test_implicit_prompt_strings_are_cut_at_a_word():
    row = {"chosen": "The sky is bluish.", "rejected": "The sky is black."}
    assert to_pairs(row) == [pair("The sky is", "bluish.", "black.")]
    raw = only(row, "raw")
    assert (raw["prompt"], raw["chosen"], raw["rejected"]) == ("The sky is ", "bluish.", "black.")


def test_completions_of_several_turns():
    chosen = assistant("A tool.") + [{"role": "tool", "content": "7"}] + assistant("Seven.")
    row = {"prompt": user("3+4?"), "chosen": chosen, "rejected": assistant("Eight.")}
    assert to_pairs(row) == [pair("3+4?", chosen, "Eight.")]


@pytest.mark.parametrize("margin", [1.5, "1.5"])
def test_margin_becomes_target_margin(margin):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": margin}
    assert to_pairs(row) == [pair("p", "a", "b", target_margin=1.5)]


def test_a_margin_of_score_py_is_no_target_margin():
    """It is the difference of a model's rewards, and is named as unread like these."""
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1.5}
    scored = row | {"reward_chosen": 2.0, "reward_rejected": 0.5}
    assert to_pairs(scored) == [pair("p", "a", "b")]
    assert unread_columns(scored) == ["margin", "reward_chosen", "reward_rejected"]
    raters = scored | {"margin": 1.0}
    assert to_pairs(raters) == [pair("p", "a", "b", target_margin=1.0)]
    assert unread_columns(raters) == ["reward_chosen", "reward_rejected"]


def test_a_missing_margin_is_none_of_nan():
    assert "target_margin" not in only(
        {"prompt": "p", "chosen": "a", "rejected": "b", "margin": None}
    )


@pytest.mark.parametrize("margin", [math.nan, math.inf, "nan", True])
def test_margin_that_is_no_finite_number(margin):
    row = {"prompt": SECRET, "chosen": "a", "rejected": "b", "margin": margin}
    assert "`margin`" in refused(row) and "a finite number is needed" in refused(row)


def test_tools_are_kept():
    tools = [
        {
            "type": "function",
            "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
        }
    ]
    call = [
        {
            "role": "assistant",
            "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}],
        }
    ]
    row = {"prompt": user("3+4?"), "chosen": call, "rejected": assistant("Eight."), "tools": tools}
    assert to_pairs(row) == [
        pair("3+4?", call, "Eight.", tools=tools)
    ]  # a call is an answer, though its text is empty


def test_fields_that_arrow_fills_with_none_are_removed():
    """`tool_calls: None` in every message changes what a template renders."""
    filled = [{"role": "assistant", "content": "a", "tool_calls": None}]
    assert only({"prompt": "p", "chosen": filled, "rejected": assistant("b")})[
        "chosen"
    ] == assistant("a")


def test_rater_columns_of_a_labelled_pair():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "votes": [3, 1], "bayes_accuracy": 0.9}
    assert to_pairs(row) == [
        pair("p", "a", "b", votes=[3, 1], chosen_probability=0.75, bayes_accuracy=0.9)
    ]
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_probability": 0.75}
    assert to_pairs(row) == [pair("p", "a", "b", chosen_probability=0.75)]


def test_chosen_probability_counts_before_the_votes():
    row = {
        "prompt": "p",
        "chosen": "a",
        "rejected": "b",
        "votes": [3, 1],
        "chosen_probability": 0.6,
    }
    assert to_pairs(row) == [pair("p", "a", "b", votes=[3, 1], chosen_probability=0.6)]


@pytest.mark.parametrize("name", ["rating", "score"])
def test_ratings_of_both_sides(name):
    row = {
        "prompt": "p",
        "chosen": "a",
        "rejected": "b",
        f"{name}_chosen": 4,
        f"{name}_rejected": "1.5",
    }
    assert to_pairs(row) == [pair("p", "a", "b", rating_chosen=4, rating_rejected=1.5)]
    assert to_pairs({**row, f"{name}_rejected": None}) == [pair("p", "a", "b")]


def test_rating_columns_count_before_score_columns():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "rating_chosen": 4, "rating_rejected": 1}
    row |= {"score_chosen": 8, "score_rejected": 2}
    assert to_pairs(row) == [pair("p", "a", "b", rating_chosen=4, rating_rejected=1)]


def test_equal_ratings_are_a_tie_unless_there_are_votes():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "rating_chosen": 3, "rating_rejected": 3}
    rated = {"rating_chosen": 3, "rating_rejected": 3}
    assert to_pairs(row) == [pair("p", "a", "b", chosen_probability=0.5, **rated)]
    voted = {**row, "votes": [3, 1]}
    assert to_pairs(voted) == [pair("p", "a", "b", votes=[3, 1], chosen_probability=0.75, **rated)]


# --- HH-RLHF transcripts --------------------------------------------------------------------------

TALK = "\n\nHuman: Hi\n\nAssistant: Hello! How can I help?\n\nHuman: Name a river.\n\nAssistant:"
TURNS = user("Hi") + assistant("Hello! How can I help?") + user("Name a river.")


def test_hh_transcript():
    row = {"chosen": f"{TALK} The Rhine.", "rejected": f"{TALK} No.\n\nReally, no."}
    assert to_pairs(row) == [pair(TURNS, "The Rhine.", "No.\n\nReally, no.")]


def test_hh_transcript_kept_raw():
    """Cut at the last "\\n\\nAssistant:", so that a common first word stays in the completion."""
    row = {"chosen": f"{TALK} The Rhine.", "rejected": f"{TALK} The"}
    read_pair = only(row, "raw")
    assert (read_pair["prompt"], read_pair["chosen"], read_pair["rejected"], read_pair["drop"]) == (
        TALK,
        " The Rhine.",
        " The",
        "",
    )


@pytest.mark.parametrize("transcript", ["messages", "raw"])
def test_hh_prompts_differ(transcript):
    """Trap: HH-RLHF prompts differ between sides."""
    row = {"chosen": f"{TALK} The Rhine.", "rejected": f"{TALK.replace('Hello', 'Oh')} No."}
    assert only(row, transcript)["drop"] == "prompts differ"
    row = {"chosen": f"{TALK} The Rhine.", "rejected": "\n\nHuman: Hi\n\nAssistant: No."}
    assert only(row, transcript)["drop"] == "prompts differ"


@pytest.mark.parametrize("transcript", ["messages", "raw"])
@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("empty", ["", " ", "\n\n "])
def test_hh_empty_completion(side, empty, transcript):
    """Trap: HH-RLHF has empty completions (4 of 2,312)."""
    row = {"chosen": f"{TALK} The Rhine.", "rejected": f"{TALK} No."} | {side: TALK + empty}
    assert only(row, transcript)["drop"] == f"empty completion ({side})"


@pytest.mark.parametrize("transcript", ["messages", "raw"])
def test_hh_without_an_answer(transcript):
    row = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi"}
    assert only(row, transcript)["drop"] == "prompts differ"
    both = {"chosen": f"{TALK} a\n\nHuman: b", "rejected": f"{TALK} a\n\nHuman: c"}
    assert only(both, transcript)["drop"].startswith("no answer (")


@pytest.mark.parametrize("transcript", ["messages", "raw"])
def test_hh_identical_sides(transcript):
    """Trap: chosen == rejected, before encoding."""
    row = {"chosen": f"{TALK} The Rhine.", "rejected": f"{TALK} The Rhine."}
    assert only(row, transcript)["drop"] == "identical sides"


def test_explicit_transcript_prompt():
    row = {"prompt": TALK, "chosen": " The Rhine.", "rejected": " No."}
    assert to_pairs(row) == [pair(TURNS, "The Rhine.", "No.")]
    assert only(row, "raw") == {**row, "drop": "", "subset": None}


def test_parse_transcript_splits_at_marks_only():
    text = "\n\nHuman: Who wrote\nAssistant: here?\n\nAssistant: Nobody.\n\nHumans did."
    assert parse_transcript(text) == user("Who wrote\nAssistant: here?") + assistant(
        "Nobody.\n\nHumans did."
    )


# --- the published datasets -----------------------------------------------------------------------


def test_ultrafeedback_binarized():
    """HuggingFaceH4/ultrafeedback_binarized, train_prefs: both sides carry the prompt.

    It is a string beside them as well.
    """
    chosen, rejected = (
        user("Name a river.") + assistant("The Rhine."),
        user("Name a river.") + assistant("No."),
    )
    row = {
        "prompt": "Name a river.",
        "prompt_id": "f0e37e9f",
        "chosen": chosen,
        "rejected": rejected,
        "messages": chosen,
        "score_chosen": 6.0,
        "score_rejected": 4.0,
    }
    assert to_pairs(row) == [
        pair("Name a river.", "The Rhine.", "No.", rating_chosen=6.0, rating_rejected=4.0)
    ]
    tie = pair(
        "Name a river.",
        "The Rhine.",
        "No.",
        rating_chosen=6.0,
        rating_rejected=6.0,
        chosen_probability=0.5,
    )
    assert to_pairs({**row, "score_rejected": 6.0}) == [tie]


def test_a_string_prompt_beside_answers_only():
    row = {
        "prompt": "Name a river.",
        "chosen": assistant("The Rhine."),
        "rejected": assistant("No."),
    }
    assert to_pairs(row) == [pair("Name a river.", "The Rhine.", "No.")]


def test_skywork():
    """Skywork/Skywork-Reward-Preference-80K-v0.2: whole conversations and `source`."""
    row = {
        "chosen": TURNS + assistant("A"),
        "rejected": TURNS + assistant("B"),
        "source": "magpie_ultra",
    }
    assert to_pairs(row) == [pair(TURNS, "A", "B", subset="magpie_ultra")]


def rating(prompt: str, response: str, helpfulness) -> dict:
    """A row of nvidia/HelpSteer2, one a completion."""
    scores = {
        "helpfulness": helpfulness,
        "correctness": 4,
        "coherence": 4,
        "complexity": 2,
        "verbosity": 2,
    }
    return {"prompt": prompt, "response": response, **scores}


def test_helpsteer2_ratings():
    first, second = rating("Name a river.", "No.", 1), rating("Name a river.", "The Rhine.", 4)
    assert is_rating(first) and not is_rating({"prompt": "p", "chosen": "a", "rejected": "b"})
    rated = {"rating_chosen": 4, "rating_rejected": 1}
    assert rating_pairs([first, second]) == [pair("Name a river.", "The Rhine.", "No.", **rated)]
    tie = pair("p", "a", "b", rating_chosen=3, rating_rejected=3, chosen_probability=0.5)
    assert rating_pairs([rating("p", "a", 3), rating("p", "b", 3)]) == [tie]


def test_tools_and_system_texts_of_rated_completions():
    """The tools were lost, and the second row's system text was the first row's."""
    tools = [{"name": "add"}]
    rows = [rating("p", "a", 3) | {"tools": tools}, rating("p", "b", 1) | {"tools": tools}]
    assert rating_pairs(rows)[0]["tools"] == tools
    assert same_request(*rows) and not same_request(rows[0], rows[1] | {"tools": None})
    assert not same_request(rows[0] | {"system": "Be kind."}, rows[1] | {"system": "Be rude."})


def test_helpsteer2_multi_turn_prompt():
    prompt = "Hi\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\nName a river."
    pairs = rating_pairs([rating(prompt, "The Rhine.", 4), rating(prompt, "No.", 0)])
    talk = user("Hi") + assistant("Hello!") + user("Name a river.")
    assert pairs == [pair(talk, "The Rhine.", "No.", rating_chosen=4, rating_rejected=0)]


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (-3, pair("p", "first", "second", strength=3)),
        (2, pair("p", "second", "first", strength=2)),
        (0, pair("p", "first", "second", strength=0, chosen_probability=0.5)),
    ],
)
def test_helpsteer2_preference(strength, expected):
    """preference/preference.jsonl.gz: negative, the first response is better."""
    row = {
        "split": "train",
        "prompt": "p",
        "response_1": "first",
        "response_2": "second",
        "preference_strength": strength,
        "preference_statement": "...",
        "preference_elaboration": "...",
        "three_most_similar_preferences": [],
        "all_preferences_unprocessed": [],
    }
    assert to_pairs(row) == [expected]


def test_helpsteer3():
    row = {
        "domain": "code",
        "language": "python",
        "context": user("Sort a list."),
        "response1": "sorted(x)",
        "response2": "x.sort()",
        "overall_preference": -1,
        "individual_preference": [],
    }
    assert to_pairs(row) == [
        pair("Sort a list.", "sorted(x)", "x.sort()", subset="code", strength=1)
    ]


def test_nectar():
    """berkeley-nest/Nectar: K answers with ranks give K(K-1)/2 pairs; equal ranks are ties."""
    answers = [
        {"answer": text, "model": "m", "rank": rank}
        for text, rank in (("b", 2.0), ("a", 1.0), ("c", 2.0))
    ]
    row = {
        "prompt": "\n\nHuman: Hi\n\nAssistant: ",
        "answers": answers,
        "turns": 1,
        "num_responses": 3,
        "source": ["lmsys-chat-1m"],
        "good_natured": True,
    }
    tie = pair("Hi", "b", "c", chosen_probability=0.5)
    assert to_pairs(row) == [pair("Hi", "a", "b"), tie, pair("Hi", "a", "c")]


def test_ranks_beside_completions():
    row = {"prompt": "p", "completions": ["b", "a"], "ranks": [2, 1]}
    assert to_pairs(row) == [pair("p", "a", "b")]
    tie = {"prompt": "p", "completions": ["b", "a"], "ranking": [1, 1]}
    assert to_pairs(tie) == [pair("p", "b", "a", chosen_probability=0.5)]


@pytest.mark.parametrize(
    ("winner", "expected"),
    [
        ("model_a", pair("Hi", "A", "B")),
        ("model_b", pair("Hi", "B", "A")),
        ("tie", pair("Hi", "A", "B", chosen_probability=0.5)),
        ("tie (bothbad)", pair("Hi", "A", "B", chosen_probability=0.5)),
    ],
)
def test_chatbot_arena_conversations(winner, expected):
    row = {
        "question_id": "58210e39",
        "model_a": "alpaca-13b",
        "model_b": "koala-13b",
        "winner": winner,
        "judge": "arena_1",
        "conversation_a": user("Hi") + assistant("A"),
        "conversation_b": user("Hi") + assistant("B"),
        "turn": 1,
        "anony": True,
        "language": "English",
        "tstamp": 1682351591.1322,
        "toxic_chat_tag": {},
    }
    assert to_pairs(row) == [expected]


def test_chatbot_arena_conversations_that_diverge():
    a, b = (user("Hi") + assistant(text) + user("More") + assistant("z" + text) for text in "AB")
    read_pair = only({"winner": "model_b", "conversation_a": a, "conversation_b": b})
    assert read_pair == pair(
        user("Hi") + assistant("A") + user("More"), "zB", "zA", drop="prompts differ"
    )


def arena_55k(prompt, response_a, response_b, winner: str) -> dict:
    """A row of lmsys/lmsys-arena-human-preference-55k: JSON lists in strings, one-hot winners."""
    texts = {"prompt": prompt, "response_a": response_a, "response_b": response_b}
    one_hot = {f"winner_{name}": int(winner == name) for name in ("model_a", "model_b", "tie")}
    names = {"id": 30192, "model_a": "gpt-4-1106-preview", "model_b": "gpt-4-0613"}
    return names | {name: json.dumps(turns) for name, turns in texts.items()} | one_hot


def test_human_preference_55k():
    assert to_pairs(arena_55k(["Hi"], ["A"], ["B"], "model_a")) == [pair("Hi", "A", "B")]
    assert to_pairs(arena_55k(["Hi"], ["A"], ["B"], "model_b")) == [pair("Hi", "B", "A")]
    assert to_pairs(arena_55k(["Hi"], ["A"], ["B"], "tie")) == [
        pair("Hi", "A", "B", chosen_probability=0.5)
    ]


def test_human_preference_55k_turns_are_interleaved():
    pairs = to_pairs(arena_55k(["Hi", "More"], ["Hello", "A"], ["Hello", "B"], "model_b"))
    assert pairs == [pair(user("Hi") + assistant("Hello") + user("More"), "B", "A")]
    assert (
        only(arena_55k(["Hi", "More"], ["Hello", "A"], ["Oh", "B"], "model_b"))["drop"]
        == "prompts differ"
    )


def test_human_preference_55k_with_a_failed_model():
    read_pair = only(arena_55k(["Hi"], [None], ["B"], "model_b"))
    assert (read_pair["chosen"], read_pair["drop"]) == (
        assistant("B"),
        "empty completion (rejected)",
    )


def test_human_preference_55k_malformed():
    row = arena_55k([SECRET, "More"], ["A"], ["B"], "model_a")
    assert refused(row) == "2 turns in `prompt` and 1 in `response_a`; one reply a turn is needed"
    assert (
        refused({**row, "prompt": f'["{SECRET}'}) == "`prompt` starts like a JSON list and is none"
    )
    assert (
        refused({**row, "prompt": f'["{SECRET}", 3]'})
        == "`prompt` is a list; a string or a list of strings is needed"
    )


def test_a_plain_prompt_with_brackets_is_no_list():
    row = {"prompt": '["Hi"]', "response_a": "[1]", "response_b": "[2]", "label": "a"}
    assert to_pairs(row) == [pair('["Hi"]', "[1]", "[2]")]


# --- response_a, response_b, a label --------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "label", "chosen"),
    [
        ("label", "a", "A"),
        ("label", "B", "B"),
        ("label", "response_b", "B"),
        ("winner", "model_a", "A"),
        ("label", "A>B", "A"),
        ("label", "tie", ""),
        ("label", "a=b", ""),
        ("preference", "neither", ""),
        ("label", 0, "A"),
        ("label", 1, "B"),
        ("label", 0.5, ""),
        ("label", "0", "A"),
        ("label", "1", "B"),
        ("label", "0.5", ""),  # the cells of a CSV file
    ],
)
def test_labels_of_two_responses(column, label, chosen):
    tie = pair("p", "A", "B", chosen_probability=0.5)
    expected = {"A": pair("p", "A", "B"), "B": pair("p", "B", "A"), "": tie}[chosen]
    assert to_pairs({"prompt": "p", "response_a": "A", "response_b": "B", column: label}) == [
        expected
    ]


@pytest.mark.parametrize("votes", [[1, 3], "[1, 3]", {"a": 1, "b": 3}, {"b": 3, "a": 1}])
def test_votes_of_two_responses(votes):
    row = {"prompt": "p", "response_a": "A", "response_b": "B", "votes": votes}
    assert to_pairs(row) == [pair("p", "B", "A", votes=[3, 1], chosen_probability=0.75)]


def test_votes_that_tie():
    row = {"prompt": "p", "response_a": "A", "response_b": "B", "votes": [2, 2]}
    assert to_pairs(row) == [pair("p", "A", "B", votes=[2, 2], chosen_probability=0.5)]


@pytest.mark.parametrize("label", [SECRET, 2, -1, None, True, math.nan, ["a"]])
def test_a_label_that_is_none(label):
    row = {"prompt": SECRET, "response_a": "A", "response_b": "B", "label": label}
    assert refused(row).startswith("no label: `label` (or `winner`) must be a, b or tie")


# --- pairs without a lesson -----------------------------------------------------------------------


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_empty_completion_by_side(side):
    row = {"prompt": "p", "chosen": "a", "rejected": "b"} | {side: " \n"}
    assert only(row)["drop"] == f"empty completion ({side})"


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_no_answer_by_side(side):
    row = {"prompt": user("p"), "chosen": assistant("a"), "rejected": assistant("b")}
    assert only(row | {side: []})["drop"] == f"no answer ({side})"
    assert only(row | {side: user("more")})["drop"] == f"no answer ({side})"


def test_identical_sides():
    """Trap: chosen == rejected, before encoding."""
    assert only({"prompt": "p", "chosen": "a", "rejected": "a"})["drop"] == "identical sides"
    assert only({"chosen": "the same", "rejected": "the same"})["drop"] == "identical sides"


def test_messages_whose_prompts_differ():
    row = {"chosen": user("p") + assistant("a"), "rejected": user("q") + assistant("b")}
    assert only(row) == pair("p", "a", "b", drop="prompts differ")


def test_other_names_get_the_line_that_mends_them():
    with pytest.raises(RowError) as caught:
        to_pairs({"Prompt": "p", "Chosen": "a", "REJECTED ": "b", "good": "c"})
    assert str(caught.value).endswith(
        "Other names: --columns prompt=Prompt,chosen=Chosen,rejected=bad; train_rm.py: "
        "--datasets '[{path: FILE, columns: {prompt: Prompt}}]'"
    )


# --- malformed rows -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": SECRET},
            "columns ['question'] are no preference format that is read here; needed: ",
        ),
        ({"chosen": 3, "rejected": SECRET}, "`chosen` is a number; a string or a list of messages"),
        (
            {"chosen": SECRET, "rejected": None},
            "`rejected` is missing; a string or a list of messages",
        ),
        (
            {"chosen": SECRET, "rejected": assistant("b")},
            "`chosen` is a string and `rejected` is a list; both sides",
        ),
        (
            {"prompt": 3, "chosen": SECRET, "rejected": "b"},
            "`prompt` is a number; a string or a list of messages",
        ),
        (
            {"prompt": [SECRET], "chosen": assistant("a"), "rejected": assistant("b")},
            "`prompt` is a list; a string or",
        ),
        (
            {"prompt": 3, "chosen": assistant(SECRET), "rejected": assistant("b")},
            "`prompt` is a number; a string or",
        ),
        (
            {"prompt": [SECRET], "chosen": "a", "rejected": "b"},
            "`prompt` is a list; a string or a list of messages",
        ),
        (
            {"chosen": [{"content": SECRET}], "rejected": assistant("b")},
            "`chosen` is a list; a string or a list of",
        ),
        (
            {"chosen": assistant([SECRET]), "rejected": assistant("b")},
            "`chosen` is a list; a string or a list of",
        ),
        (
            {"prompt": SECRET, "chosen": "a", "rejected": "b", "votes": [0, 0]},
            "`votes` sum to 0; at least one vote",
        ),
        (
            {"prompt": SECRET, "chosen": "a", "rejected": "b", "votes": [1, 2, 3]},
            "`votes` is a list; two counts",
        ),
        (
            {"prompt": SECRET, "chosen": "a", "rejected": "b", "votes": [1, -2]},
            "`votes` is a list; two counts",
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "votes": SECRET},
            "`votes` is a string; two counts",
        ),
        (
            {"prompt": SECRET, "chosen": "a", "rejected": "b", "chosen_probability": 1.2},
            "`chosen_probability` is outs",
        ),
        (
            {"prompt": SECRET, "chosen": "a", "rejected": "b", "chosen_probability": -0.1},
            "`chosen_probability` is out",
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": SECRET},
            "`margin` is text that is no number; a num",
        ),
        (
            {"prompt": "p", "answers": [{"answer": SECRET, "rank": 1}]},
            "a ranking of 1 completion; at least 2",
        ),
        (
            {"prompt": "p", "answers": [SECRET, SECRET]},
            "`answers` is a list of something else than mappings",
        ),
        ({"prompt": "p", "answers": SECRET}, "`answers` is a string; a list is needed"),
        (
            {"prompt": "p", "completions": [SECRET, "b"], "ranks": [1]},
            "2 `completions` but 1 ranks; one rank a",
        ),
        (
            {"prompt": "p", "completions": [SECRET, "b"], "ranks": [1, "x"]},
            "a rank is a string; a finite number is",
        ),
        (
            {"prompt": "p", "completions": [SECRET, "b"], "ranks": [1, math.nan]},
            "a rank is not finite; a finite num",
        ),
        (
            {"prompt": "p", "completions": [SECRET, 3], "ranks": [1, 2]},
            "a ranked completion is a number; a string or",
        ),
        (
            {"prompt": "p", "response_a": SECRET, "response_b": None, "label": "a"},
            "the second completion is missing;",
        ),
        (
            {"response_a": SECRET, "response_b": "b", "label": "a"},
            "`prompt` is missing; a string or a list of mess",
        ),
        (
            {"conversation_a": [], "conversation_b": user(SECRET), "winner": "a"},
            "`conversation_a` is a list; a non-emp",
        ),
        (
            {"prompt": "p", "response_1": SECRET, "preference_strength": 1},
            "the second completion is missing; a str",
        ),
        (
            {"prompt": SECRET, "response_1": "a", "response_2": "b", "preference_strength": None},
            "`preference_strength`",
        ),
    ],
)
def test_malformed_row_is_named_by_column_never_by_content(row, message):
    assert refused(row).startswith(message)


MEND = ": mend the value, or leave it or the row out"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"chosen_probability": 1.2}, "`chosen_probability` is outside [0, 1]" + MEND),
        ({"chosen_probability": -0.1}, "`chosen_probability` is outside [0, 1]" + MEND),
        (
            {"chosen_probability": "sure"},
            "`chosen_probability` is text that is no number; a number is needed" + MEND,
        ),
        (
            {"chosen_probability": math.nan},
            "`chosen_probability` is not finite; a finite number is needed" + MEND,
        ),
        (
            {"bayes_accuracy": "high"},
            "`bayes_accuracy` is text that is no number; a number is needed" + MEND,
        ),
        ({"margin": math.nan}, "`margin` is not finite; a finite number is needed" + MEND),
        (
            {"rating_chosen": SECRET, "rating_rejected": 1},
            "`rating_chosen` is text that is no number; a number is needed" + MEND,
        ),
        (
            {"score_chosen": 1, "score_rejected": [SECRET]},
            "`score_rejected` is a list; a finite number is needed" + MEND,
        ),
        ({"votes": [0, 0]}, "`votes` sum to 0; at least one vote is needed" + MEND),
        (
            {"votes": [1.5, 1]},
            "`votes` is a list; two counts [for the first, for the second] are needed" + MEND,
        ),
    ],
)
def test_a_malformed_rater_column_says_what_mends_it(columns, message):
    assert refused({"prompt": SECRET, "chosen": "a", "rejected": "b", **columns}) == message


@pytest.mark.parametrize("strength", [-4, 3.5])
def test_a_strength_is_within_3(strength):
    row = {"prompt": SECRET, "response_1": "a", "response_2": "b", "preference_strength": strength}
    assert refused(row) == "`preference_strength` is outside [-3, 3]" + MEND


def test_a_ranking_of_one_says_what_mends_it():
    row = {"prompt": "p", "answers": [{"answer": SECRET, "rank": 1}]}
    assert (
        refused(row)
        == "a ranking of 1 completion; at least 2 are needed: add one, or leave the row out"
    )


def test_malformed_ratings():
    for rows, message in (
        (
            [rating(SECRET, "a", 1), rating(SECRET, "b", None)],
            "`helpfulness` is missing; a finite number is needed",
        ),
        (
            [rating(SECRET, "a", 1), rating(SECRET, None, 2)],
            "a ranked completion is missing; a string or a list of messages",
        ),
    ):
        with pytest.raises(RowError) as caught:
            rating_pairs(rows)
        assert str(caught.value).startswith(message) and SECRET not in str(caught.value)


# --- benchmarks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": " 4\n", "rejected": "5 "},
        {"chosen": [" 4\n"], "rejected": ["5 "]},
        {"response_1": " 4\n", "response_2": "5 ", "preference_strength": -1},
        {"question": "2+2?", "response_A": " 4\n", "response_B": "5 ", "label": "A>B"},
        {"response_a": '[" 4\\n"]', "response_b": '["5 "]'}
        | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
        {"completions": [" 4\n", "5 "], "ranks": [1, 2]},
        {"answers": [{"answer": " 4\n", "rank": 1}, {"answer": "5 ", "rank": 2}]},
    ],
)
def test_blanks_at_the_ends_of_an_answer_stay_in_every_layout(row):
    """A reward is of the text as it is given; only `prompt, chosen, rejected` kept its blanks."""
    (read,) = to_pairs({"prompt": "2+2?", **row})
    assert (read["chosen"], read["rejected"]) == (assistant(" 4\n"), assistant("5 "))
    # Around the turns of a transcript they are no text.
    if "response_a" not in row and "question" not in row:
        (read,) = to_pairs({**row, "prompt": "\n\nHuman: 2+2?\n\nAssistant:"})
        assert (read["chosen"], read["rejected"]) == (assistant("4"), assistant("5"))


def test_lists_of_completions_are_every_pair():
    """RewardBench 2, RM-Bench: chosen x rejected, the rejected ones running fastest."""
    row = {
        "prompt": "2+2?",
        "chosen": ["4", "four "],
        "rejected": ["5", "6"],
        "num_correct": 2,
        "subset": "Math",
    }
    sides = [("4", "5"), ("4", "6"), ("four ", "5"), ("four ", "6")]
    assert (
        to_pairs(row)
        == to_pairs(row, "raw")
        == [pair("2+2?", *both, subset="Math") for both in sides]
    )
    styles = {
        "prompt": "p",
        "domain": "chat",
        "chosen": ["a", "b", "c"],
        "rejected": ["d", "e", "f"],
        "score_chosen": [1, 2, 3],
    }
    assert [
        text_of(p["chosen"]) + text_of(p["rejected"]) for p in to_pairs(styles)
    ] == "ad ae af bd be bf cd ce cf".split()
    assert to_pairs(styles)[0]["subset"] == "chat"


def test_a_list_of_messages_is_a_conversation_still():
    row = {"prompt": user("p"), "chosen": assistant("a"), "rejected": assistant("b")}
    assert to_pairs(row) == [pair("p", "a", "b")]
    assert only({"prompt": "p", "chosen": [], "rejected": []})["drop"] == "no answer (chosen)"
    message = "`chosen` is a list; a string or a list of messages (role, content) is needed"
    assert refused({"prompt": "p", "chosen": [SECRET], "rejected": "b"}) == message
    assert refused({"prompt": "p", "chosen": [SECRET, None], "rejected": ["b"]}) == message
    assert refused({"chosen": [SECRET], "rejected": ["b"]}).startswith("`prompt` is missing")


def test_is_texts():
    assert is_texts(["a"]) and is_texts(["a", ""])
    assert not any(is_texts(value) for value in ([], "a", None, ["a", None], user("a")))


@pytest.mark.parametrize("label, chosen", [("A>B", "a"), ("B>A", "b")])
def test_judgebench(label, chosen):
    row = {
        "pair_id": "x",
        "source": "livecodebench",
        "question": "Q?",
        "response_A": "a",
        "response_B": "b",
        "label": label,
    }
    assert to_pairs(row) == [pair("Q?", chosen, "ab".replace(chosen, ""), subset="livecodebench")]
    assert refused({**row, "label": SECRET}).startswith("no label: ")
    assert refused({**row, "response_B": None}).startswith("the second completion is missing")


@pytest.mark.parametrize("label, chosen", [(1, "one"), (2, "two"), ("2", "two")])
def test_llmbar(label, chosen):
    row = {"input": "I", "output_1": "one", "output_2": "two", "label": label}
    assert to_pairs(row) == [pair("I", chosen, {"one": "two", "two": "one"}[chosen])]
    assert refused({**row, "label": 3}) == "`label` is neither 1 nor 2, the better output" + MEND
    assert (
        refused({**row, "label": 1.5, "input": SECRET})
        == "`label` is neither 1 nor 2, the better output" + MEND
    )
    assert refused({**row, "label": None, "input": SECRET}).startswith(
        "`label` is missing; a finite number is needed"
    )


def test_rewardbench_scores_repeat_the_prompt():
    row = {
        "prompt": "Hi",
        "text_chosen": "Hi\n\nHello",
        "text_rejected": "Hi\n\n\n\nNo",
        "scores_chosen": 1,
    }
    assert to_pairs(row) == [pair("Hi", "Hello", "\n\nNo")]
    assert only({**row, "prompt": user("Hi"), "votes": [2, 1]})["votes"] == [2, 1]
    assert only(row, "raw")["rejected"] == "\n\nNo"
    assert to_pairs({**row, "text_rejected": "No"}) == [
        pair("Hi", "Hi\n\nHello", "No")
    ]  # not both: taken as they are
    assert to_pairs({**row, "prompt": [], "text_chosen": "a b", "text_rejected": "a c"}) == [
        pair("", "a b", "a c")
    ]
    talk = {
        "text_chosen": user("Hi") + assistant("a"),
        "text_rejected": user("Hi") + assistant("b"),
    }
    assert to_pairs({**talk, "prompt": "rendered"}) == [pair("Hi", "a", "b")]
    assert "text_chosen" in refused(
        {"text_chosen": SECRET, "text_rejected": "b"}
    )  # a conversation as one text: no pair


# --- Rated completions ----------------------------------------------------------------------------


def test_a_single_rated_completion_is_dropped_not_an_error():
    (read_pair,) = rating_pairs([{"prompt": "p", "response": "a", "helpfulness": 3}])
    assert read_pair["drop"] == "one rated completion"


def test_every_pair_of_a_rated_prompt_keeps_both_ratings():
    pairs = rating_pairs([rating("p", "a", 2), rating("p", "b", 4), rating("p", "c", 0)])
    assert [(text_of(p["chosen"]), p["rating_chosen"], p["rating_rejected"]) for p in pairs] == [
        ("b", 4, 2),
        ("a", 2, 0),
        ("b", 4, 0),
    ]
