"""Rows that were misread in silence: each is now read as its owner means it, or refused."""

import pytest

from reward.data.files import DataError, local_files
from reward.data.formats import to_pairs
from reward.data.row_files import read_rows
from reward.data.rows_to_score import row_to_score
from reward.data.transcripts import FileError, RowError, assistant, user

QUESTION = "What is the capital?"
GOOD, BAD = "Paris.", "Lyon."
SIDES = {"chosen": GOOD, "rejected": BAD}
EARLIER = user("Hi") + assistant("Hello!") + user(QUESTION)


def pair_of(row: dict) -> tuple:
    (pair,) = to_pairs(row)
    return pair["prompt"], pair["chosen"], pair["rejected"]


@pytest.mark.parametrize(
    "prompt",
    [
        f"prompter: Hi\nassistant: Hello!\nprompter: {QUESTION}",
        f"user: Hi\nassistant: Hello!\nuser: {QUESTION}",
        f"### Human: Hi### Assistant: Hello!### Human: {QUESTION}### Assistant:",
    ],
)
def test_a_transcript_of_another_shape_is_a_conversation(prompt):
    """It was one turn of the user, with the marks in its text."""
    assert pair_of({"prompt": prompt} | SIDES) == (EARLIER, assistant(GOOD), assistant(BAD))
    assert row_to_score({"prompt": prompt, "completion": GOOD}, "messages").prompt == EARLIER


@pytest.mark.parametrize(("one", "other"), [("Human: ", "Assistant: "), ("### User: ", "AI: ")])
def test_the_marks_of_a_single_turn_are_no_text(one, other):
    sides = {"chosen": other + GOOD, "rejected": other + BAD}
    expected = user(QUESTION), assistant(GOOD), assistant(BAD)
    assert pair_of({"prompt": one + QUESTION} | sides) == expected
    answers = {"response_a": other + BAD, "response_b": other + GOOD, "label": "b"}
    assert pair_of({"prompt": one + QUESTION} | answers) == expected
    scored = row_to_score({"prompt": one + QUESTION, "completion": other + GOOD}, "messages")
    assert (scored.prompt, scored.completions) == (user(QUESTION), [assistant(GOOD)])
    # Without a mark in one of the texts nothing is one.
    assert pair_of({"prompt": one + QUESTION} | SIDES)[0] == user(one + QUESTION)


def test_completions_that_repeat_the_prompt():
    """With return_full_text they hold it, and the model read it twice."""
    for gap in ("\n", " ", ""):
        good, bad = QUESTION + gap + GOOD, QUESTION + gap + BAD
        expected = user(QUESTION), assistant(GOOD), assistant(BAD)
        assert pair_of({"prompt": QUESTION, "chosen": good, "rejected": bad}) == expected
        row = {"prompt": QUESTION, "response_a": bad, "response_b": good, "label": 1}
        assert pair_of(row) == expected
        scored = row_to_score({"prompt": QUESTION, "completion": good}, "messages")
        kept = good if gap != "\n" else GOOD  # a single one may say the question again
        assert scored.completions == [assistant(kept)]
    for topic in ("Paris", "Photosynthesis", "World War II", "The answer of 22/7 is 3."):
        good, bad = f"{topic} is.", f"{topic}14 was."
        row = {"prompt": topic, "response_a": good, "response_b": bad, "label": 0}
        assert pair_of(row)[1:] == (assistant(good), assistant(bad))
        assert pair_of({"prompt": topic, "chosen": good, "rejected": bad})[1] == assistant(good)


def test_the_indentation_of_code_behind_the_prompt_stays():
    head = "def double(x: int) -> int:\n"
    rest = "    y = x\n    return y + y"
    for prompt in (head, head.rstrip()):
        row = {"prompt": prompt, "completion": head + rest}
        assert row_to_score(row, "messages").completions == [assistant(rest)]


def test_texts_beside_an_empty_prompt_may_be_transcripts_of_no_known_shape():
    for text in ("Be kind.\n\nHuman: Hi\n\nAssistant: ", "**User:** Hi\n**Assistant:** "):
        row = {"prompt": None, "chosen": text + "a", "rejected": text + "b"}
        with pytest.raises(RowError, match="transcript"):
            to_pairs(row)


def test_labels_beside_lists_of_turns_count():
    row = {"prompt": '["Hi"]', "chosen": '["a"]', "rejected": '["b"]', "margin": 2.0}
    (pair,) = to_pairs(row | {"score_chosen": 5, "score_rejected": 5})
    assert (pair["target_margin"], pair["chosen_probability"]) == (2.0, 0.5)


def test_an_empty_prompt_is_not_made_of_the_start_of_the_answers():
    sides = {"chosen": "The capital is Paris.", "rejected": "The capital is Lyon."}
    for prompt in ({"prompt": None}, {"prompt": ""}, {"instruction": ""}, {"question": None}):
        assert pair_of(prompt | sides)[1] == assistant("The capital is Paris.")
    assert pair_of(sides)[1] == assistant("Paris.")  # TRL's implicit prompt
    answers = {"chosen": assistant(GOOD), "rejected": assistant(BAD)}
    assert pair_of({"prompt": ""} | answers)[0] == user("")
    assert pair_of({"prompt": None} | answers)[0] == []


def test_lists_of_turns_in_json():
    """Derivatives of human-preference-55k; the JSON stayed as text."""
    row = {
        "prompt": f'["Hi", "{QUESTION}"]',
        "chosen": f'["Hello!", "{GOOD}"]',
        "rejected": f'["Hello!", "{BAD}"]',
    }
    assert pair_of(row) == (EARLIER, assistant(GOOD), assistant(BAD))
    colors = {"prompt": "Two colors, in JSON", "chosen": '["red", "blue"]', "rejected": '["red"]'}
    assert pair_of(colors)[1] == assistant('["red", "blue"]')


@pytest.mark.parametrize(
    "columns",
    [
        {"chosen-rating": 9.0, "rejected-rating": 9.0},
        {"chosen_rating": "4", "rejected_rating": "4"},
        {"is_tie": True},
    ],
)
def test_ties_under_other_names(columns):
    (pair,) = to_pairs({"prompt": QUESTION} | SIDES | columns)
    assert pair["chosen_probability"] == 0.5


ANSWERS = {"prompt": QUESTION, "response_1": BAD, "response_2": GOOD}
SPEAKERS = '[{"speaker": "user", "text": "Hi"}, {"speaker": "assistant", "text": "%s"}]'
PASSAGE = f"France moved its capital.\n\n{QUESTION}"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ANSWERS | {"preference": "response_1", "preference_strength": 2}, "unclear: in `pref"),
        (ANSWERS | {"winner": 1, "preference_strength": 2}, "`winner` stands beside"),
        (SIDES | {"prompt": QUESTION, "winner": "model_b"}, "`winner` says which of two"),
        (SIDES | {"prompt": QUESTION, "preference": "B>A"}, "name the two `response_a`"),
        (ANSWERS | {"winner": "response_2"}, "response_a=response_1,response_b=response_2"),
        ({"prompt": QUESTION, "completion": GOOD, "label": True}, "no pairs; make rows"),
        ({"prompt": f"\\n\\nHuman: {QUESTION}\\n\\nAssistant:"} | SIDES, "a backslash and an n"),
        (
            {"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: a"}
            | {"rejected": "\\n\\nHuman: Hi\\n\\nAssistant: b"},
            "a backslash and an n",
        ),
        (SIDES | {"prompt": "Human: Hi Assistant: Hi! Human: Why? Assistant:"}, "of no shape"),
        (SIDES | {"prompt": "human: Hi\nassistant: Hi!\nhuman: Why?"}, "of no shape"),
        ({"chosen": SPEAKERS % "a", "rejected": SPEAKERS % "b"}, "have other keys"),
        (
            SIDES | {"prompt": '{"conversation": [{"role": "user", "content": "Hi"}]}'},
            "lies inside of an object",
        ),
        (
            {"prompt": PASSAGE}
            | {"chosen": user(QUESTION) + assistant(GOOD)}
            | {"rejected": user(QUESTION) + assistant(BAD)},
            "differ, so which of them is the prompt is unclear",
        ),
        (SIDES | {"prompt": QUESTION, "chat_history": EARLIER[:2]}, "`chat_history` holds text"),
        (SIDES | {"prompt": QUESTION, "System": "Be brief, and be kind."}, "`System` holds text"),
        (SIDES | {"prompt": QUESTION, "image_url": "a.png"}, "only text is read"),
        (
            {"prompt": QUESTION, "answers": [GOOD, BAD], "chosen": "0", "rejected": "1"},
            "are places in `answers`",
        ),
        (
            {
                "prompt": QUESTION,
                "candidates": {"m": GOOD, "n": BAD},
                "chosen": "m",
                "rejected": "n",
            },
            "are places in `candidates`",
        ),
        (SIDES | {"prompt": [{"role": "user"}]}, "without `content`"),
        (SIDES | {"prompt": [{"role": "user", "message": {"text": "Hi"}}]}, "under `message`"),
        (SIDES | {"prompt": [{"role": "user", "content": "", "said": "Hi"}]}, "under `said`"),
    ],
)
def test_it_is_refused(row, message):
    with pytest.raises(RowError) as caught:
        to_pairs(row)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"context": QUESTION, "response1": "a", "response2": "b", "overall_preference": 7},
        {"prompt": QUESTION, "response_0": "a", "response_1": "b", "better_response_id": 2},
        {"history": QUESTION, "human_ref_A": "a", "human_ref_B": "b", "labels": 2},
    ],
)
def test_another_scale_ends_the_file(row):
    """Of better_response_id 1 and 2, each 1 was read as the second response."""
    with pytest.raises(FileError, match="is outside"):
        to_pairs(row)


def test_a_number_that_stands_for_none_ends_no_file():
    row = {"prompt": "?", "response_0": "a", "response_1": "b", "better_response_id": -1}
    with pytest.raises(RowError) as caught:
        to_pairs(row)
    assert not isinstance(caught.value, FileError)


def test_a_category_beside_a_strength_is_no_winner():
    for others in ({"label": "math"}, {"preference": "It is better since ..."}):
        (pair,) = to_pairs(ANSWERS | {"preference_strength": 2} | others)
        assert pair["chosen"] == assistant(GOOD)


def test_a_prompt_beside_the_whole_conversation_may_be_rendered():
    sides = {"chosen": EARLIER + assistant(GOOD), "rejected": EARLIER + assistant(BAD)}
    for prompt in (
        QUESTION,
        f"User: Hi\n\nAssistant: Hello!\n\nUser: {QUESTION}\n\nAssistant:",
        f"<|user|>\nHi</s>\n<|assistant|>\nHello!</s>\n<|user|>\n{QUESTION}</s>",
    ):
        assert pair_of({"prompt": prompt} | sides)[0] == EARLIER


def test_no_value_in_a_csv_file(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("system,prompt,chosen,rejected\nnan,p,None,NaN\n\\N,p,a,b\n")
    assert [row for _, row in read_rows(str(file))] == [
        {"prompt": "p", "chosen": "None", "rejected": "NaN"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_pointer_of_git_lfs_is_no_data(name, tmp_path):
    file = tmp_path / name
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(DataError, match="fetch it with `git lfs pull`"):
        list(read_rows(str(file)))


def test_a_download_of_a_hub_repository_has_its_files_in_data(tmp_path):
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    file.touch()
    assert local_files({"path": str(tmp_path), "split": "train"}, "train") == [str(file)]


EVENTS = '[{"type": "system", "v": 1}, {"type": "user", "v": 2}]'
CHAT = '{"chat": [{"role": "user", "content": "Hi"}]}'


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "H: is hydrogen. What is He?", "chosen": "A: helium", "rejected": "A: iron"},
        {"prompt": "2 - 2?", "chosen": "0", "rejected": "1", "tags": ["math", "easy"]},
        {"prompt": "Which?", "chosen": "a", "rejected": "b", "options": {"a": "one", "b": "two"}},
        {"prompt": "Events, in JSON", "chosen": EVENTS, "rejected": "[]"},
        {"prompt": "A chat, in JSON", "chosen": CHAT, "rejected": "{}"},
        {"prompt": '["b", "a"] sorted?', "chosen": '["a", "b"]', "rejected": '["b", "a"]'},
        {"prompt": '["b", "a"]', "chosen": '["a", "b"]', "rejected": '["b", "a"]'},
        {"prompt": "User: jsmith cannot log in. Write a ticket.", "chosen": "a", "rejected": "b"},
        {"prompt": "Speakers, in JSON", "chosen": SPEAKERS % "a", "rejected": "[]"},
        {"prompt": "Which?", "chosen": "B. Paris", "rejected": "A. Lyon", "label": "B"},
        {"prompt": "Which?", "chosen": "a", "rejected": "b", "label": "tier_1"},
        {"prompt": "Which?", "chosen": "a", "rejected": "b", "preference": "both"},
        {"prompt": "Which?", "chosen": "a", "rejected": "b", "winner": "gpt-4"},
        {"prompt": "Which?", "chosen": "a", "rejected": "b", "chosen_rating": "5/5"}
        | {"rejected_rating": "1/5"},
        {"prompt": "0 or 1?", "chosen": "0", "rejected": "1", "response_lengths": ["12", "14"]},
        {"prompt": "0 or 1?", "chosen": "0", "rejected": "1", "generations": ["1", "0"]},
        {"prompt": "Which?", "chosen": "a", "rejected": "b", "System": "Windows 10"},
        {"prompt": "Which?", "chosen": "a", "rejected": "b", "chat_history": "None"},
        {"prompt": "Human: Hi\nBot: Hello\nHuman: Bye", "chosen": "Assistant: a"}
        | {"rejected": "Assistant: b"},
    ],
)
def test_ordinary_texts_stay_as_they_are(row):
    sides = assistant(row["chosen"]), assistant(row["rejected"])
    assert pair_of(row) == (user(row["prompt"]), *sides)


def test_what_is_said_about_a_message_is_no_text():
    system = {"role": "system", "content": "", "id": "x1"}
    answer = {"role": "assistant", "content": "", "refusal": "No."}
    row = {"prompt": [system, *user(QUESTION)], "chosen": assistant(GOOD), "rejected": [answer]}
    (pair,) = to_pairs(row)
    assert pair["drop"] == "empty completion (rejected)"


@pytest.mark.parametrize(
    "prompt",
    [
        f"Below is an instruction. Write.\n\n### Instruction:\n{QUESTION}\n\n### Response:",
        f"system\nSay yes.\nuser\n{QUESTION}\nassistant\n",
    ],
)
def test_the_words_of_a_template_are_no_passage(prompt):
    start = user(QUESTION)
    if "Say yes." in prompt:
        start = [{"role": "system", "content": "Say yes."}, *start]
    sides = {"chosen": start + assistant("x"), "rejected": start + assistant("y")}
    assert pair_of({"prompt": prompt} | sides)[0] == start
