"""One row of every layout, shaped as its data set publishes it.

The tests of the layouts give their literal pairs, and the fuzz test damages them.
"""

from reward.data.transcripts import assistant, user

SYSTEM = [{"role": "system", "content": "Be brief and kind."}]


def human(text: str) -> dict:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict:
    return {"from": "gpt", "value": text}


def part(text: str) -> list[dict]:
    return [{"type": "text", "text": text, "image": None}]


PREFERENCE_ROWS = {
    "TRL": {
        "prompt": "Name a red fruit.",
        "chosen": "A cherry is red.",
        "rejected": "A lime is red.",
        "margin": 1.5,
    },
    "TRL, messages": {
        "prompt": SYSTEM + user("Name a red fruit."),
        "chosen": assistant("A cherry is red."),
        "rejected": assistant("A lime is red."),
        "tools": [{"type": "function", "function": {"name": "f", "description": "a tool"}}],
    },
    "HH-RLHF": {
        "chosen": "\n\nHuman: Name a red fruit.\n\nAssistant: A cherry is red.",
        "rejected": "\n\nHuman: Name a red fruit.\n\nAssistant: A lime is red.",
    },
    "HH-RLHF, with metadata": {
        "chosen": "\n\nHuman: Name a red fruit.\n\nAssistant: A cherry is red.",
        "rejected": "\n\nHuman: Name a red fruit.\n\nAssistant: A lime is red.",
        "remark": "seen by two raters",
        "votes": [3, 1],
    },
    "full-hh-rlhf": {
        "prompt": "\n\nHuman: Name a red fruit.\n\nAssistant:",
        "response": " A cherry is red.",
        "chosen": " A cherry is red.",
        "rejected": " A lime is red.",
    },
    "UltraFeedback-binarized": {
        "prompt": "Name a red fruit.",
        "prompt_id": "f0e37e9f",
        "chosen": user("Name a red fruit.") + assistant("A cherry is red."),
        "rejected": user("Name a red fruit.") + assistant("A lime is red."),
        "messages": user("Name a red fruit.") + assistant("A cherry is red."),
        "score_chosen": 6.0,
        "score_rejected": 4.0,
    },
    "Alpaca": {
        "instruction": "Add the numbers.",
        "input": "2 and 2",
        "chosen": "It is 4.",
        "rejected": "It is 5.",
    },
    "LLaMA-Factory": {
        "instruction": "And 3 more?",
        "input": "",
        "system": "Be brief and kind.",
        "history": [["What is 1+1?", "It is 2."]],
        "chosen": "It is 5.",
        "rejected": "It is 6.",
    },
    "LLaMA-Factory, output": {
        "instruction": "Add the numbers.",
        "input": "2 and 2",
        "output": ["It is 4.", "It is 5."],
    },
    "LLaMA-Factory, sharegpt": {
        "conversations": [human("Hi there."), gpt("Hello to you!"), human("Name a red fruit.")],
        "chosen": gpt("A cherry is red."),
        "rejected": gpt("A lime is red."),
    },
    "LLaMA-Factory, openai": {
        "messages": SYSTEM + user("Name a red fruit."),
        "chosen": assistant("A cherry is red.")[0],
        "rejected": assistant("A lime is red.")[0],
    },
    "axolotl": {
        "system": "Be brief and kind.",
        "input": "Name a red fruit.",
        "chosen": "A cherry is red.",
        "rejected": "A lime is red.",
    },
    "distilabel": {
        "system": "",
        "input": "Name a red fruit.",
        "chosen": "A cherry is red.",
        "rejected": "A lime is red.",
        "generations": ["A cherry is red.", "A lime is red."],
        "labelling_model": "gpt-4-1106-preview",
        "labelling_prompt": SYSTEM + user("Which one is better?"),
        "rationale": "A lime is green.",
    },
    "Orca-DPO": {
        "system": "Be brief and kind.",
        "question": "Name a red fruit.",
        "chosen": "A cherry is red.",
        "rejected": "A lime is red.",
    },
    "UltraInteract": {
        "id": "bddd8b1e",
        "parent_id": "a7f2",
        "task": "Math_CoT",
        "dataset": "MATH",
        "trajectory": [{"from": "user", "value": "Name a red fruit."}],
        "chosen": "A cherry is red.",
        "rejected": "A lime is red.",
    },
    "sharegpt, both sides": {
        "chosen": [human("Name a red fruit."), gpt("A cherry is red.")],
        "rejected": [human("Name a red fruit."), gpt("A lime is red.")],
    },
    "query": {"query": "Name a red fruit.", "chosen": "A cherry!", "rejected": "A lime!"},
    "conversation twice": {
        "prompt": user("Name a red fruit."),
        "chosen": user("Name a red fruit.") + assistant("A cherry is red."),
        "rejected": user("Name a red fruit.") + assistant("A lime is red."),
    },
    "RewardBench": {
        "id": 30,
        "subset": "alpacaeval-easy",
        "prompt": "Name a red fruit.",
        "chosen": "A cherry is red.",
        "chosen_model": "GPT4-Turbo",
        "rejected": "A lime is red.",
        "rejected_model": "alpaca-7b",
    },
    "RewardBench, scores": {
        "prompt": "Name a red fruit.",
        "text_chosen": "Name a red fruit.\n\nA cherry is red.",
        "text_rejected": "Name a red fruit.\n\nA lime is red.",
    },
    "RewardBench 2": {
        "id": "1",
        "prompt": "Name a red fruit.",
        "chosen": ["A cherry is red."],
        "rejected": ["A lime is red.", "A fig is red."],
        "num_correct": 1,
        "subset": "Factuality",
    },
    "Nectar": {
        "prompt": "\n\nHuman: Name a red fruit.\n\nAssistant: ",
        "answers": [
            {"answer": "A lime is red.", "model": "m", "rank": 2.0},
            {"answer": "A cherry is red.", "model": "n", "rank": 1.0},
        ],
        "turns": 1,
        "source": ["lmsys-chat-1m"],
    },
    "ranks": {
        "prompt": "Name a red fruit.",
        "completions": ["A lime is red.", "A cherry is red."],
        "ranks": [2, 1],
    },
    "UltraFeedback": {
        "source": "evol_instruct",
        "instruction": "Name a red fruit.",
        "models": ["alpaca-7b", "bard"],
        "completions": [
            {
                "model": "alpaca-7b",
                "principle": "helpfulness",
                "custom_system_prompt": "As an assistant, be helpful.",
                "response": "A lime is red.",
                "critique": "It is not red.",
                "fine-grained_score": 2.0,
                "overall_score": 3.0,
            },
            {
                "model": "bard",
                "principle": "helpfulness",
                "custom_system_prompt": "Be a helpful assistant.",
                "response": "A cherry is red.",
                "critique": "It is right.",
                "fine-grained_score": 4.75,
                "overall_score": 8.5,
            },
        ],
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    },
    "response_a, response_b": {
        "prompt": "Name a red fruit.",
        "response_a": "A cherry is red.",
        "response_b": "A lime is red.",
        "label": "a",
    },
    "arena": {
        "question_id": "58210e39",
        "model_a": "alpaca-13b",
        "model_b": "koala-13b",
        "winner": "model_a",
        "conversation_a": user("Name a red fruit.") + assistant("A cherry is red."),
        "conversation_b": user("Name a red fruit.") + assistant("A lime is red."),
        "language": "English",
    },
    "arena, parts": {
        "id": "c4b9710c",
        "winner": "both_bad",
        "conversation_a": [
            {"role": "user", "content": part("Name a red fruit.")},
            {"role": "assistant", "content": part("A cherry is red.")},
        ],
        "conversation_b": [
            {"role": "user", "content": part("Name a red fruit.")},
            {"role": "assistant", "content": part("A lime is red.")},
        ],
    },
    "human-preference-55k": {
        "id": 30192,
        "model_a": "gpt-4-1106-preview",
        "model_b": "gpt-4-0613",
        "prompt": '["Name a fruit."]',
        "response_a": '["A cherry."]',
        "response_b": '["A lime."]',
        "winner_model_a": 1,
        "winner_model_b": 0,
        "winner_tie": 0,
    },
    "HelpSteer2-Preference": {
        "split": "train",
        "prompt": "Name a red fruit.",
        "response_1": "A cherry is red.",
        "response_2": "A lime is red.",
        "preference_strength": -2,
        "preference_statement": "Response 1 is better.",
    },
    "HelpSteer3": {
        "domain": "general",
        "language": "english",
        "context": user("Name a red fruit."),
        "response1": "A cherry is red.",
        "response2": "A lime is red.",
        "overall_preference": -1,
        "individual_preference": [{"score": -1, "reasoning": "The first is right."}],
    },
    "JudgeBench": {
        "pair_id": "x",
        "source": "livecodebench",
        "question": "Name a red fruit.",
        "response_A": "A cherry is red.",
        "response_B": "A lime is red.",
        "label": "A>B",
    },
    "LLMBar": {
        "input": "Name a red fruit.",
        "output_1": "A cherry is red.",
        "output_2": "A lime is red.",
        "label": 1,
    },
    "AlpacaFarm": {
        "instruction": "Add the numbers.",
        "input": "2 and 2",
        "output_1": "It is 5.",
        "output_2": "It is 4.",
        "preference": 2,
    },
    "PKU-SafeRLHF": {
        "prompt": "Name a red fruit.",
        "response_0": "A lime is red.",
        "response_1": "A cherry is red.",
        "is_response_0_safe": True,
        "is_response_1_safe": True,
        "better_response_id": 1,
        "safer_response_id": 0,
    },
    "SHP": {
        "post_id": "himc90",
        "domain": "askacademia_train",
        "upvote_ratio": 0.99,
        "history": "Name a red fruit.",
        "human_ref_A": "A lime is red.",
        "human_ref_B": "A cherry is red.",
        "labels": 0,
        "score_A": 52,
        "score_B": 54,
        "score_ratio": 1.04,
    },
    "WebGPT": {
        "question": {"dataset": "eli5", "id": "2r5xmz", "full_text": "Name a red fruit."},
        "quotes_0": {"title": ["On limes"], "extract": ["Limes are green."]},
        "answer_0": "A lime is red [1].",
        "score_0": -0.5,
        "quotes_1": {"title": ["On cherries"], "extract": ["Cherries are red."]},
        "answer_1": "A cherry is red [1].",
        "score_1": 0.5,
    },
}

COMPLETION_ROWS = {
    "prompt, completion": {"prompt": "Name a red fruit.", "completion": "A cherry is red."},
    "query, response": {"query": "Name a red fruit.", "response": "A cherry is red."},
    "Alpaca": {
        "instruction": "Add the numbers.",
        "input": "2 and 2",
        "output": "It is 4.",
        "system": "Be brief and kind.",
    },
    "messages": {
        "messages": SYSTEM + user("Name a red fruit.") + assistant("A cherry is red."),
        "id": "x-1",
    },
    "sharegpt": {
        "conversations": [human("Name a red fruit."), gpt("A cherry is red.")],
        "system": "Be brief and kind.",
    },
    "question, answer": {"question": "Name a red fruit.", "answer": "A cherry is red."},
    "prompt, completions": {
        "prompt": "Name a red fruit.",
        "completions": ["A cherry is red.", "A lime is red.", "A fig is red."],
    },
    "HelpSteer2": {
        "prompt": "Name a red fruit.",
        "response": "A cherry is red.",
        "helpfulness": 4,
        "correctness": 4,
    },
}
