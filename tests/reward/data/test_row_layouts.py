"""The layouts in which people publish rows: each gives its literal pair, or is refused in words."""

import json

import pytest
from row_layouts import COMPLETION_ROWS, PREFERENCE_ROWS, SYSTEM, gpt, human

from reward.data.formats import RowError, is_rating, rating_pairs, to_pairs, unread_columns
from reward.data.rows_to_score import row_to_score
from reward.data.transcripts import assistant, text_of, user

FRUIT = user("Name a red fruit.")
CHERRY = assistant("A cherry is red.")
LIME = assistant("A lime is red.")
SUM = (user("Add the numbers.\n2 and 2"), assistant("It is 4."), assistant("It is 5."))
TALK = user("Hi there.") + assistant("Hello to you!")
EARLIER = user("What is 1+1?") + assistant("It is 2.")

# The prompt, the chosen and the rejected side. Every layout that is not named has the first ones.
TEXTS = {name: (FRUIT, CHERRY, LIME) for name in PREFERENCE_ROWS} | {
    "TRL, messages": (SYSTEM + FRUIT, CHERRY, LIME),
    "Alpaca": SUM,
    "LLaMA-Factory": (
        SYSTEM[:0]
        + [{"role": "system", "content": "Be brief and kind."}]
        + EARLIER
        + user("And 3 more?"),
        assistant("It is 5."),
        assistant("It is 6."),
    ),
    "LLaMA-Factory, output": SUM,
    "LLaMA-Factory, sharegpt": (TALK + FRUIT, CHERRY, LIME),
    "LLaMA-Factory, openai": (SYSTEM + FRUIT, CHERRY, LIME),
    "axolotl": (SYSTEM + FRUIT, CHERRY, LIME),
    "Orca-DPO": (SYSTEM + FRUIT, CHERRY, LIME),
    "query": (FRUIT, assistant("A cherry!"), assistant("A lime!")),
    "human-preference-55k": (user("Name a fruit."), assistant("A cherry."), assistant("A lime.")),
    "AlpacaFarm": SUM,
    "WebGPT": (FRUIT, assistant("A cherry is red [1]."), assistant("A lime is red [1].")),
}

# What a pair has beside its texts.
LABELS = {
    "TRL": {"target_margin": 1.5},
    "TRL, messages": {"tools": PREFERENCE_ROWS["TRL, messages"]["tools"]},
    "HH-RLHF, with metadata": {"votes": [3, 1], "chosen_probability": 0.75},
    "UltraFeedback-binarized": {"rating_chosen": 6.0, "rating_rejected": 4.0},
    "UltraFeedback": {"rating_chosen": 8.5, "rating_rejected": 3.0},
    "arena, parts": {"chosen_probability": 0.5},
    "HelpSteer2-Preference": {"strength": 2},
    "HelpSteer3": {"strength": 1},
}

# The columns that nobody reads.
UNREAD = {
    "HH-RLHF, with metadata": ["remark"],
    "full-hh-rlhf": ["response"],
    "UltraFeedback-binarized": ["prompt_id", "messages"],
    "distilabel": ["generations", "labelling_model", "labelling_prompt", "rationale"],
    "UltraInteract": ["id", "parent_id", "task", "dataset"],
    "RewardBench": ["id", "chosen_model", "rejected_model"],
    "RewardBench 2": ["id", "num_correct"],
    "Nectar": ["answers[].model", "turns", "source"],
    "UltraFeedback": [
        "models",
        "completions[].model",
        "completions[].principle",
        "completions[].custom_system_prompt",
        "completions[].critique",
        "completions[].fine-grained_score",
        "correct_answers",
        "incorrect_answers",
    ],
    "arena": ["question_id", "model_a", "model_b", "language"],
    "arena, parts": ["id"],
    "human-preference-55k": ["id", "model_a", "model_b"],
    "HelpSteer2-Preference": ["split", "preference_statement"],
    "HelpSteer3": ["language", "individual_preference"],
    "JudgeBench": ["pair_id"],
    "PKU-SafeRLHF": ["is_response_0_safe", "is_response_1_safe", "safer_response_id"],
    "SHP": ["post_id", "upvote_ratio", "score_A", "score_B", "score_ratio"],
    "WebGPT": ["question[].dataset", "question[].id", "quotes_0", "quotes_1"],
}


@pytest.mark.parametrize("name", PREFERENCE_ROWS)
def test_preference_rows(name):
    row = PREFERENCE_ROWS[name]
    pair = to_pairs(row)[0]
    prompt, chosen, rejected = TEXTS[name]
    assert (pair.pop("prompt"), pair.pop("chosen"), pair.pop("rejected")) == (
        prompt,
        chosen,
        rejected,
    )
    assert pair.pop("drop") == ""
    pair.pop("subset")
    assert pair == LABELS.get(name, {})
    assert unread_columns(row) == UNREAD.get(name, [])


@pytest.mark.parametrize(
    ("name", "prompt", "completions"),
    [
        ("prompt, completion", FRUIT, [CHERRY]),
        ("query, response", FRUIT, [CHERRY]),
        ("Alpaca", SYSTEM + SUM[0], [assistant("It is 4.")]),
        ("messages", SYSTEM + FRUIT, [CHERRY]),
        ("sharegpt", SYSTEM + FRUIT, [CHERRY]),
        ("question, answer", FRUIT, [CHERRY]),
        ("prompt, completions", FRUIT, [CHERRY, LIME, assistant("A fig is red.")]),
        ("HelpSteer2", FRUIT, [CHERRY]),
    ],
)
def test_completion_rows(name, prompt, completions):
    to_score = row_to_score(COMPLETION_ROWS[name], "messages")
    assert (to_score.prompt, to_score.completions) == (prompt, completions)


def test_every_layout_that_is_scored_has_its_test():
    assert len(COMPLETION_ROWS) == 8 and COMPLETION_ROWS.keys() >= {"messages", "sharegpt"}


# --- Transcripts ----------------------------------------------------------------------------------

BEGUN = TALK + FRUIT
SHAPES = {
    "without the first breaks": (
        "Human: Hi there.\n\nAssistant: Hello to you!\n\nHuman: Name a red fruit.\n\nAssistant: ",
        BEGUN,
    ),
    "marks on lines of their own": (
        "\n\nHuman:\nHi there.\n\nAssistant:\nHello to you!\n\nHuman:\nName a red fruit."
        "\n\nAssistant:\n",
        BEGUN,
    ),
    "User and Assistant": (
        "User: Hi there.\nAssistant: Hello to you!\nUser: Name a red fruit.\nAssistant: ",
        BEGUN,
    ),
    "H and A": ("H: Hi there.\nA: Hello to you!\nH: Name a red fruit.\nA: ", BEGUN),
    "Alpaca": ("### Instruction:\nName a red fruit.\n\n### Response:\n", FRUIT),
    "Alpaca with an input": (
        "### Instruction:\nAdd the numbers.\n\n### Input:\n2 and 2\n\n### Response:\n",
        SUM[0],
    ),
    "Alpaca with its preamble": (
        "Below is an instruction that describes a task.\n\n### Instruction:\nName a red fruit.\n\n"
        "### Response:\n",
        [{"role": "system", "content": "Below is an instruction that describes a task."}, *FRUIT],
    ),
    "Vicuna": ("USER: Hi there. ASSISTANT: Hello to you!</s>USER: Name a red fruit. ASSISTANT: ",)
    + (BEGUN,),
    "Llama 2": ("[INST] Hi there. [/INST] Hello to you! </s><s>[INST] Name a red fruit. [/INST] ",)
    + (BEGUN,),
    "Llama 2 with a system text": (
        "<s>[INST] <<SYS>>\nBe brief and kind.\n<</SYS>>\n\nName a red fruit. [/INST] ",
        SYSTEM + FRUIT,
    ),
    "Zephyr": (
        "<|system|>\nBe brief and kind.</s>\n<|user|>\nName a red fruit.</s>\n<|assistant|>\n",
    )
    + (SYSTEM + FRUIT,),
    "ChatML": (
        "<|im_start|>user\nName a red fruit.<|im_end|>\n<|im_start|>assistant\n",
        FRUIT,
    ),
    "ChatML behind a first token": (
        "<|begin_of_text|><|im_start|>system\nBe brief and kind.<|im_end|>\n"
        "<|im_start|>user\nName a red fruit.<|im_end|>\n<|im_start|>assistant\n",
        SYSTEM + FRUIT,
    ),
    "ChatML without its control tokens": (
        "system\nBe brief and kind.\nuser\nName a red fruit.\nassistant\n",
        SYSTEM + FRUIT,
    ),
    "ChatML of Phi-4": (
        "<|im_start|>user<|im_sep|>Name a red fruit.<|im_end|><|im_start|>assistant<|im_sep|>",
        FRUIT,
    ),
    "OLMo 2": ("<|endoftext|><|user|>\nName a red fruit.\n<|assistant|>\n", FRUIT),
    "Llama 3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nName a red fruit.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        FRUIT,
    ),
    "Gemma": (
        "<bos><start_of_turn>user\nName a red fruit.<end_of_turn>\n<start_of_turn>model\n",
        FRUIT,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_transcripts_in_the_sides_or_in_the_prompt(name):
    start, prompt = SHAPES[name]
    in_sides = {"chosen": f"{start}A cherry is red.", "rejected": f"{start}A lime is red."}
    in_prompt = {"prompt": start, "chosen": "A cherry is red.", "rejected": "A lime is red."}
    expected = {"prompt": prompt, "chosen": CHERRY, "rejected": LIME, "drop": "", "subset": None}
    for row in (in_sides, in_prompt, in_sides | {"prompt": start}):
        assert to_pairs(row) == [expected]
    to_score = row_to_score({"prompt": start, "completion": "A cherry is red."}, "messages")
    assert (to_score.prompt, to_score.completions) == (prompt, [CHERRY])
    (raw,) = to_pairs(in_sides, "raw")
    assert raw["prompt"].strip() == start.strip() and raw["chosen"].strip() == "A cherry is red."


@pytest.mark.parametrize(
    "start",
    [
        "<｜begin▁of▁sentence｜><｜User｜>Name a red fruit.<｜Assistant｜>",
        "<|start|>user<|message|>Name a red fruit.<|end|><|start|>assistant",
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\nName a red fruit.<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n",
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Name a red fruit.<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "[gMASK]<sop><|user|>\nName a red fruit.<|assistant|>\n",
    ],
)
def test_a_conversation_that_an_unknown_template_rendered_is_refused(start):
    """Its control tokens were read as text of the user."""
    sides = {"chosen": f"{start}A cherry is red.", "rejected": f"{start}A lime is red."}
    for row in (sides, {"prompt": start, **SIDES}):
        with pytest.raises(RowError, match="a chat template has rendered, but no shape"):
            to_pairs(row)
    with pytest.raises(RowError, match="a chat template has rendered, but no shape"):
        scored({"prompt": start, "completion": "A cherry is red."})
    assert to_pairs({"prompt": start, **SIDES}, "raw")[0]["prompt"] == start


def test_end_tokens_of_a_rendered_reply_are_no_part_of_it():
    row = {"prompt": "[INST] Name a red fruit. [/INST]", "chosen": "A cherry is red. </s>"}
    assert to_pairs(row | {"rejected": "A lime is red.</s>"})[0]["chosen"] == CHERRY


@pytest.mark.parametrize(
    "text",
    [
        "<|endoftext|> is which token?",
        "user\nHi",
        "User: only a mark",
        "H: hydrogen",
        "Human rights: why?",
        "See [INST] Hi [/INST]",
        "<s>Hi",
    ],
)
def test_a_text_with_the_looks_of_a_mark_is_no_transcript(text):
    row = {"prompt": text, "chosen": "A cherry is red.", "rejected": "A lime is red."}
    assert to_pairs(row)[0]["prompt"] == user(text)


# --- A conversation that stands in two places -----------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Name a red fruit.", "chosen": "Name a red fruit. A cherry is red."}
        | {"rejected": "Name a red fruit.\n\nA lime is red."},
        {"prompt": FRUIT, "chosen": FRUIT + CHERRY, "rejected": FRUIT + LIME},
        {"prompt": "Name a red fruit.", "chosen": FRUIT + CHERRY, "rejected": FRUIT + LIME},
        {
            "prompt": "<|user|>Name a red  fruit.",
            "chosen": FRUIT + CHERRY,
            "rejected": FRUIT + LIME,
        },
        {"conversations": [human("Name a red fruit.")], "chosen": FRUIT + CHERRY}
        | {"rejected": FRUIT + LIME},
        {
            "prompt": "Name a red fruit.",
            "chosen": "User: Name a red fruit.\nAssistant: A cherry is red.",
        }
        | {"rejected": "User: Name a red fruit.\nAssistant: A lime is red."},
    ],
)
def test_it_is_read_once(row):
    expected = {"prompt": FRUIT, "chosen": CHERRY, "rejected": LIME, "drop": "", "subset": None}
    assert to_pairs(row) == [expected]


def test_a_system_message_in_one_of_the_two_places_is_kept():
    row = {"prompt": FRUIT, "chosen": SYSTEM + FRUIT + CHERRY, "rejected": SYSTEM + FRUIT + LIME}
    assert to_pairs(row)[0]["prompt"] == SYSTEM + FRUIT
    row = {"prompt": SYSTEM + FRUIT, "chosen": FRUIT + CHERRY, "rejected": FRUIT + LIME}
    assert to_pairs(row)[0]["prompt"] == SYSTEM + FRUIT
    row = {"prompt": SYSTEM + FRUIT, "system": "Be brief and kind.", "chosen": "a", "rejected": "b"}
    assert to_pairs(row)[0]["prompt"] == SYSTEM + FRUIT


def test_it_is_read_once_in_rows_of_any_layout():
    """A reward was of the question twice; only `chosen, rejected` were looked at."""
    cherry = FRUIT + CHERRY
    for prompt in ("Name a red fruit.", FRUIT):
        assert scored({"prompt": prompt, "completion": cherry}) == (FRUIT, [CHERRY])
        completions = {"prompt": prompt, "completions": [cherry, LIME]}
        assert scored(completions) == (FRUIT, [CHERRY, LIME])
        row = {"prompt": prompt, "response_a": FRUIT + LIME, "response_b": cherry, "label": "b"}
        assert to_pairs(row)[0]["chosen"] == CHERRY
    transcript = "\n\nHuman: Name a red fruit.\n\nAssistant:"
    row = {"prompt": transcript, "completion": f"{transcript} A cherry is red."}
    assert scored(row) == (FRUIT, [CHERRY])

    # A transcript behind a prompt that is none; a dialogue that was asked for is an answer.
    lines = "User: Name a red fruit.\nAssistant: A cherry is red."
    assert scored({"prompt": "Name a red fruit.", "completion": lines}) == (FRUIT, [CHERRY])
    row = {"prompt": FRUIT, "response_a": lines, "response_b": "A lime is red.", "label": "a"}
    assert to_pairs(row)[0]["chosen"] == CHERRY
    dialogue = {"prompt": "Write a dialogue.", "completion": lines}
    assert scored(dialogue)[1] == [assistant(lines)]


def test_a_prompt_that_is_a_system_message_alone():
    """Pairs of two questions were kept, and all rows with one system text were in one split."""
    row = {"prompt": SYSTEM, "chosen": FRUIT + CHERRY, "rejected": FRUIT + LIME}
    expected = {"prompt": SYSTEM + FRUIT, "chosen": CHERRY, "rejected": LIME}
    assert to_pairs(row) == [expected | {"drop": "", "subset": None}]
    row["chosen"] = SYSTEM + row["chosen"]
    assert to_pairs(row)[0]["prompt"] == SYSTEM + FRUIT
    row["rejected"] = user("Name a green fruit.") + LIME
    assert to_pairs(row)[0]["drop"] == "prompts differ"
    row = {"prompt": SYSTEM, "chosen": CHERRY, "rejected": LIME}
    assert to_pairs(row)[0]["prompt"] == SYSTEM


def scored(row: dict) -> tuple:
    to_score = row_to_score(row, "messages")
    return to_score.prompt, to_score.completions


def test_an_answer_that_begins_like_a_short_prompt_is_kept_whole():
    row = {"prompt": "Hi", "chosen": "Hi there!", "rejected": "Hi you!"}
    assert to_pairs(row)[0]["chosen"] == assistant("Hi there!")


# --- Messages -------------------------------------------------------------------------------------


def test_sharegpt_roles_and_tool_calls():
    call = {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 1}}'}
    turns = [human("3+4?"), call, {"from": "observation", "value": "7"}]
    row = {"conversations": turns, "chosen": gpt("Seven."), "rejected": gpt("Eight.")}
    function = {"name": "add", "arguments": {"x": 1}}
    assert to_pairs(row)[0]["prompt"] == [
        {"role": "user", "content": "3+4?"},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "content": "7"},
    ]


@pytest.mark.parametrize(("key", "value"), [("utterance", "Hi"), ("parts", [{"text": "Hi"}])])
def test_a_message_with_its_text_under_another_name_is_refused(key, value):
    """It was an empty turn."""
    for text in ({}, {"content": None}):
        row = {"prompt": [{"role": "user", key: value} | text], "chosen": "a", "rejected": "b"}
        with pytest.raises(RowError, match=f"`{key}`; name its text `content`"):
            to_pairs(row)
    known = {"role": "assistant", "reasoning_content": "It is red.", "tool_calls": [{"id": "1"}]}
    row = {"prompt": FRUIT + [known | {key: value}], "chosen": "a", "rejected": "b"}
    assert to_pairs(row)[0]["prompt"] == FRUIT + [known | {key: value}]


def test_the_json_of_messages_in_a_csv_cell():
    cell = '[{"role": "assistant", "content": "A cherry is red."}]'
    row = {
        "prompt": "Name a red fruit.",
        "chosen": cell,
        "rejected": cell.replace("cherry", "lime"),
    }
    assert to_pairs(row)[0]["chosen"] == CHERRY and to_pairs(row)[0]["prompt"] == FRUIT
    assert to_pairs(row | {"chosen": "[{1}]", "rejected": "b"})[0]["chosen"] == assistant("[{1}]")


def test_the_json_of_messages_may_be_indented():
    row = {"messages": json.dumps(SYSTEM + FRUIT + CHERRY, indent=1)}
    assert scored(row) == (SYSTEM + FRUIT, [CHERRY])
    row = {"prompt": json.dumps(FRUIT, indent=1), "completion": json.dumps(CHERRY[0], indent=1)}
    assert scored(row) == (FRUIT, [CHERRY])


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "Ann", "role": "captain"}',
        '[{"name": "Ann", "role": "user"}, {"name": "Bo", "role": "admin"}]',
        '{"from": "Monday", "to": "Friday"}',
        "{'id': 3, 'role': 'user'} is its row.",
    ],
)
def test_an_answer_in_json_is_no_message(answer):
    """Its text was lost to the model: the keys `role` and `from` made it a message."""
    assert scored({"prompt": "Write JSON.", "completion": answer})[1] == [assistant(answer)]
    row = {"prompt": "Write JSON.", "chosen": answer, "rejected": "{}"}
    assert to_pairs(row)[0]["chosen"] == assistant(answer)


def test_a_cell_with_the_json_of_completions():
    row = {"prompt": "Name a red fruit.", "completions": '["A cherry is red.", "A lime is red."]'}
    assert scored(row) == (FRUIT, [CHERRY, LIME])
    assert to_pairs(row | {"ranks": "[2, 1]"})[0]["chosen"] == LIME


def test_openais_older_function_calls():
    """The call was passed over, and the key named nowhere."""
    function = {"name": "add", "arguments": "{}"}
    turns = [{"role": "assistant", "content": None, "function_call": function}]
    turns += [{"role": "function", "name": "add", "content": "7", "weight": 0}]
    to_score = row_to_score({"messages": FRUIT + turns + CHERRY}, "messages")
    call, result = to_score.prompt[1:]
    assert call["tool_calls"] == [{"type": "function", "function": function}]
    assert (result["role"], to_score.unread) == ("tool", ["messages[].weight"])


def test_an_empty_list_of_calls_is_no_call():
    """DeepSeek's template wrote calls, and left out the content; Llama 3.1's refused the row."""
    answer = [{"role": "assistant", "content": "A cherry is red.", "tool_calls": []}]
    assert scored({"messages": FRUIT + answer}) == (FRUIT, [CHERRY])


def test_parts_of_openais_responses():
    turn = {"role": "user", "content": [{"type": "input_text", "text": "Name a red fruit."}]}
    answer = {"type": "output_text", "text": "A cherry is red.", "annotations": []}
    row = {"messages": [turn, {"role": "assistant", "content": [answer]}]}
    assert scored(row) == (FRUIT, [CHERRY])


def test_other_names_of_roles():
    turns = [{"role": "developer", "content": "Be brief and kind."}, *FRUIT]
    row = {"messages": [*turns, {"role": "ai", "content": "A cherry is red."}]}
    assert scored(row) == (SYSTEM + FRUIT, [CHERRY])


def test_human_preference_55k_with_one_column_for_its_winner():
    """Its cells were read as texts, brackets and quotes too."""
    row = PREFERENCE_ROWS["human-preference-55k"]
    row = {column: row[column] for column in ("prompt", "response_a", "response_b")}
    (pair,) = to_pairs(row | {"winner": "model_b"})
    assert (pair["prompt"], pair["chosen"]) == (user("Name a fruit."), assistant("A lime."))


def test_what_a_message_thinks_tells_pairs_apart():
    """The second of two such pairs was dropped as a duplicate, and thoughts alone as no answer."""
    thinks = [{"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}]
    assert text_of(thinks) == "2 and 2\n4"
    row = {"prompt": "2+2?", "chosen": thinks, "rejected": assistant("4")}
    assert to_pairs(row)[0]["drop"] == ""
    thinks[0]["content"] = ""
    assert to_pairs(row)[0]["drop"] == ""


def test_votes_whose_names_say_the_side():
    row = {"prompt": "p", "response_a": "a", "response_b": "b"}
    for votes in ({"model_b": 1, "model_a": 3}, {"2": 1, "1": 3}, {"a": 3, "b": 1}, [3, 1]):
        assert to_pairs(row | {"votes": votes})[0]["votes"] == [3, 1]


def test_keys_that_no_template_reads_are_kept_and_said():
    chosen = FRUIT + [{"role": "assistant", "content": "a", "weight": 1, "reasoning_content": "b"}]
    row = {"chosen": chosen, "rejected": FRUIT + LIME}
    assert to_pairs(row)[0]["chosen"] == chosen[1:]
    assert unread_columns(row) == ["chosen[].weight"]


# --- Refused --------------------------------------------------------------------------------------

SIDES = {"chosen": "A cherry is red.", "rejected": "A lime is red."}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            SIDES | {"my_question": "Name a red fruit."},
            "no prompt is known beside `chosen` and `rejected`. If the prompt is in `my_question`, "
            "name it: `columns: {prompt: my_question}` in the recipe's source, --columns "
            "prompt=my_question in score.py and audit.py; if none is, `columns: [chosen, "
            "rejected]` reads these two alone",
        ),
        ({"chosen": CHERRY, "rejected": LIME, "ask": "Name a fruit"}, "no prompt is known beside"),
        (SIDES | {"prompt": "", "ask": "Name a fruit"}, "no prompt is known beside"),
        (SIDES | {"system": "Be kind."}, "no prompt is known beside"),
        (SIDES | {"source_text": "Name a fruit"}, "no prompt is known beside"),
        (SIDES | {"source": "Name a red fruit."}, "no prompt is known beside"),
        (SIDES | {"user": "Name a fruit"}, "no prompt is known beside"),
        (SIDES | {"context": "A cherry is a fruit."}, "no prompt is known beside"),
        (
            SIDES | {"question": "Is it red?", "context": "A book on fruit."},
            "`context` holds text that is neither in the prompt nor in the completions, so a part "
            "of the conversation would be lost.",
        ),
        (
            SIDES | {"prompt": "Is it red?", "input": "A plum."},
            "`input` holds text that is neither",
        ),
        (
            SIDES | {"prompt": "p", "images": [{"bytes": "x"}]},
            "`images` is not empty, and only text is read; leave the row out",
        ),
        (
            {"chosen": FRUIT + CHERRY, "rejected": FRUIT + LIME, "prompt": "Another question?"},
            "`prompt` and the conversations in `chosen` and `rejected` differ",
        ),
        (
            {"prompt": user("One?"), "chosen": user("One?") + user("Two?") + CHERRY}
            | {"rejected": user("Two?") + LIME},
            "the conversation stands in the prompt and in a side, and the two differ",
        ),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "b"},
            "one of `chosen` and `rejected` is a transcript of several turns, and the other one",
        ),
        (
            {"chosen": "Talk.\n\nHuman: Hi\n\nAssistant: a"}
            | {"rejected": "Talk.\n\nHuman: Hi\n\nAssistant: b"},
            "`chosen` and `rejected` have text before the first turn of a transcript",
        ),
        *(
            (
                {"chosen": f"{start} Hi\n{reply} a", "rejected": f"{start} Hi\n{reply} b"},
                "`chosen` and `rejected` begin like transcripts, but no shape that is read here",
            )
            for start, reply in (
                ("**User:**", "**Assistant:**"),
                ("<human>:", "<bot>:"),
                ("<｜User｜>", "<｜Assistant｜>"),
                ("human:", "assistant:"),
                ("User:", "Robot:"),
            )
        ),
        (
            SIDES | {"prompt": "User: one\nUser: two\nAssistant:"},
            "a text begins like a transcript, but its turns do not alternate",
        ),
        (
            SIDES | {"prompt": "User: one\nAssistant: two"},
            "a prompt begins like a transcript and ends with a reply",
        ),
        (
            {"chosen": user([{"type": "image"}]) + CHERRY, "rejected": FRUIT + LIME},
            "`chosen` has a content with a part that is no plain text, such as an image",
        ),
        (
            {"chosen": user({"text": "a"}) + CHERRY, "rejected": FRUIT + LIME},
            "`chosen` is a list with a message whose content is a mapping",
        ),
        (
            {"prompt": "p", "chosen": "[{'role': 'assistant', 'content': 'a'}]", "rejected": "b"},
            "`chosen` is the Python text of messages, as pandas writes them",
        ),
        (
            {"prompt": "p", "chosen": "{'id': 3, 'role': 'assistant', 'content': 'a'}"}
            | {"rejected": "b"},
            "`chosen` is the Python text of messages, as pandas writes them",
        ),
        (
            {"prompt": EARLIER + FRUIT, "chosen": FRUIT + CHERRY, "rejected": FRUIT + LIME},
            "the conversation stands in the prompt and in a side, and the two differ",
        ),
        (
            {"prompt": FRUIT, "chosen": EARLIER + FRUIT + CHERRY}
            | {"rejected": EARLIER + FRUIT + LIME},
            "the conversation stands in the prompt and in a side, and the two differ",
        ),
        *(
            (
                PREFERENCE_ROWS["human-preference-55k"]
                | {"winner_model_a": a, "winner_model_b": b, "winner_tie": tie},
                "`winner_model_a`, `winner_model_b` and `winner_tie` do not name one outcome",
            )
            for a, b, tie in ((0, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, None))
        ),
        *(
            (SIDES | {"prompt": "p", "votes": votes}, "`votes` is a mapping; two counts")
            for votes in ({"for": 3, "against": 1}, {"wins": 3, "losses": 1}, {"a": 3})
        ),
        *(
            (
                {"prompt": "p", left: "A cherry.", right: "A lime."}
                | {"chosen": chosen, "rejected": rejected},
                f"`chosen` and `rejected` name the columns `{left}` and `{right}` instead of",
            )
            for left, right, chosen, rejected in (
                ("response_a", "response_b", "a", "b"),
                ("response_A", "response_B", "model_a", "model_b"),
                ("output_1", "output_2", "1", "2"),
                ("llama", "gpt-4", "llama", "gpt-4"),
                ("answer1", "answer2", "1", "2"),
                ("left_answer", "right_answer", "left", "right"),
                ("answerA", "answerB", "A", "B"),
            )
        ),
        (
            {"prompt": "p", "response_a": "A cherry.", "response_b": "A lime.", "model_a": "gpt-4"}
            | {"model_b": "llama", "chosen": "llama", "rejected": "gpt-4"},
            "`chosen` and `rejected` name the models in `model_b` and `model_a` instead of",
        ),
        *(
            (
                SIDES | {"prompt": f"{start}Is a cherry red?\n{mark}"},
                "a prompt ends with the mark of a reply, but no shape of transcript",
            )
            for start, mark in (
                ("**User:** ", "**Assistant:**"),
                ("User: ", "Bot:"),
                ("Two people talk.\n\nHuman: ", "\nAssistant: "),
                ("You write code.\n### Instruction:\n", "### Response:\n"),
            )
        ),
        *(
            (
                SIDES | {"prompt": text},
                "`prompt` begins like the JSON of messages, and is no JSON list of them",
            )
            for text in (
                json.dumps(FRUIT)[:-6],
                json.dumps(json.dumps(FRUIT)),
                "\n".join(map(json.dumps, TALK + FRUIT)),
                json.dumps({"messages": FRUIT}),
                '[{"content": "Is it red?", "role": "user"},]',
            )
        ),
        (
            {"prompt": "p", "response_a": "a", "response_b": "b", "winner_model_a": 0.4}
            | {"winner_model_b": 0.35, "winner_tie": 0.25},
            "`winner_model_a`, `winner_model_b` and `winner_tie` do not name one outcome",
        ),
        *(
            (
                {"prompt": "Is a cherry red?", "chosen": f"{mark}Is a cherry red? Yes."}
                | {"rejected": f"{mark}Is a cherry red? No."},
                "`chosen` and `rejected` begin with the prompt behind a mark",
            )
            for mark in ("<s>", "### Question: ", "Q: ", "**Question:**\n")
        ),
        ({"prompt": "p", "response_a": "a", "response_b": "b", "label": "0_1"}, "no label: "),
        (SIDES | {"prompt": "p", "margin": "1_0"}, "`margin` is text that is no number"),
        ({"prompt": "p", "completions": "['a']"}, "`completions` is a string; a list is needed"),
        (
            {"prompt": "2+2?", "chosen": ["2+2?", "4"], "rejected": ["2+2? ", "5"]},
            "`chosen` and `rejected` are lists that hold the prompt, so they seem to be",
        ),
        (
            {"conversations": [{"from": "narrator", "value": "a"}], **SIDES},
            "`conversations` has a turn whose `from` is none of human, gpt, system",
        ),
        (
            {"conversations": [human("a"), gpt("b")], "chosen": gpt("c"), "rejected": gpt("d")},
            "`conversations` ends with a turn of the assistant",
        ),
        (
            {"prompt": SYSTEM + FRUIT, "system": "Be rude.", **SIDES},
            "the row has two system texts",
        ),
        (
            SIDES | {"prompt": "p", "tools": "1"},
            "`tools` is a number; a list of mappings is needed",
        ),
        (SIDES | {"prompt": "p", "tools": "</s>"}, "`tools` is text that cannot be read as JSON"),
        (SIDES | {"prompt": "p", "margin": 10**400}, "`margin` is a number of too many digits"),
        (SIDES | {"prompt": "p", "votes": [False, 1]}, "`votes` is a list; two counts"),
        (SIDES | {"prompt": "p", "votes": {"a": 10**300, "b": 1}}, "`votes` is a list; two counts"),
        (
            {"prompt": "p", "completions": ["a"] * 101, "ranks": [1] * 101},
            "101 completions in one row; at most 100 are read",
        ),
        ({"prompt": "p", "completions": ["a", "b"]}, "`completions` without `ranks`"),
        (
            {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 2},
            "`better_response_id` is outside [0, 1]",
        ),
        (
            {"response_a": "a", "response_b": "b", "label": "a", "my_question": "Is it red?"},
            "`prompt` is missing; a string or a list of messages (role, content) is needed: name "
            "it, as in `columns: {prompt: my_question}` or --columns prompt=my_question",
        ),
        ({None: "a", "b\n" * 300: 1}, "columns ['None', 'bb"),
    ],
)
def test_refused_rows(row, message):
    with pytest.raises(RowError) as caught:
        to_pairs(row)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "prompt",
    [
        "<start_of_turn>user\r\nName a red fruit.<end_of_turn>\r\n<start_of_turn>model\r\n",
        "<|im_start|>user\r\nName a red fruit.<|im_end|>\r\n<|im_start|>assistant\r\n",
        "user\r\nName a red fruit.\r\nassistant\r\n",
        "\r\n\r\nHuman: Name a red fruit.\r\n\r\nAssistant:",
        "Name a red fruit.\r\n<extra_id_1>Assistant\r\n",
    ],
)
def test_marks_before_line_ends_of_windows(prompt):
    """The marks were read as words of the user."""
    assert to_pairs({"prompt": prompt} | SIDES)[0]["prompt"] == FRUIT


def test_a_text_that_begins_with_very_many_spaces():
    """A million of them took an hour."""
    row = SIDES | {"prompt": " " * 1_000_000 + "Is it red?"}
    assert to_pairs(row)[0]["prompt"] == user(row["prompt"])


def test_lists_that_a_csv_cell_holds_as_json():
    """A history was refused as a lost text, an empty list of images as an image."""
    row = SIDES | {"instruction": "Name a red fruit.", "images": "[]", "history": "[]"}
    assert to_pairs(row)[0]["prompt"] == FRUIT
    row["history"] = '[["Hi there.", "Hello to you!"]]'
    assert to_pairs(row)[0]["prompt"] == TALK + FRUIT
    arena = {"prompt": '["Hi there.", "Name a red fruit."]', "winner": "model_a"}
    arena |= {"response_a": '[null, "A cherry is red."]', "response_b": '["", "A lime is red."]'}
    pair = to_pairs(arena)[0]
    assert pair["prompt"][2:] == FRUIT and (pair["chosen"], pair["rejected"]) == (CHERRY, LIME)


@pytest.mark.parametrize(
    "column",
    [
        {"id": "a8-17"},
        {"url": "https://example.com/a b"},
        {"model": "gpt 4"},
        {"score": 3, "ok": True},
        {"language": "English"},
        {"question_type": "open", "dataset_name": "no robots", "chosen_model": "m"},
        {"created": "2026-11-26 10:00"},
        {"note": None},
        {"note": ""},
    ],
)
def test_metadata_never_stops_anything(column):
    row = {"chosen": "The sky is blue.", "rejected": "The sky is red.", **column}
    assert to_pairs(row)[0]["prompt"] == user("The sky is")


def test_a_rating_beside_two_sides_hides_neither():
    row = SIDES | {"prompt": "Name a red fruit.", "response": "A cherry is red.", "helpfulness": 4}
    assert not is_rating(row) and unread_columns(row) == ["response", "helpfulness"]
    rated = {"prompt": "p", "response": "a", "helpfulness": 4, "context": "A book on fruit."}
    with pytest.raises(RowError, match="`context` holds text"):
        rating_pairs([rated])


def test_text_beside_whole_conversations_is_said():
    row = {"chosen": FRUIT + CHERRY, "rejected": FRUIT + LIME, "remark": "The first is right."}
    assert to_pairs(row)[0]["drop"] == "" and unread_columns(row) == ["remark"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": FRUIT + CHERRY, "response": "A cherry is red."},
            "`messages` ends with a turn of the assistant, beside the completions",
        ),
        (
            {"prompt": "Is it red?", "completion": FRUIT + CHERRY},
            "the conversation stands in the prompt and in a side, and the two differ",
        ),
        ({"prompt": "p", "completion": FRUIT}, "`completion` ends with a turn that is not the"),
        ({"messages": FRUIT}, "`messages` ends with a turn that is not the assistant's"),
        ({"prompt": "p", "completions": []}, "`completions` is an empty list"),
        ({"completion": "a"}, "`prompt` and `completion` must each be a string or a list"),
        ({"prompt": "p", "completion": "a", "context": "A book."}, "`context` holds text that is"),
        ({"prompt": "p", "completion": None}, "`prompt` and `completion` must each be a string"),
        (
            {"prompt": "p", "completion": "a", "tools": "</s>"},
            "`tools` is text that cannot be read as JSON",
        ),
        ({"chosen": ["a"], "completions": []}, "`completions` without `ranks`"),
    ],
)
def test_refused_rows_to_score(row, message):
    with pytest.raises(RowError) as caught:
        row_to_score(row, "messages")
    assert str(caught.value).startswith(message)
