"""auditing.checks.adversarial: the bundled pairs are what they say, and their accuracy is right."""

import json
import re

import numpy as np
import pytest
from scorers import Lookup

from auditing.checks.adversarial import ADVERSARIAL, adversarial_pairs, run_adversarial
from auditing.style import hedges, markdown
from reward.data.files import DataError
from reward.data.row_files import read_rows
from reward.data.transcripts import text_of

# --- The bundled pairs ----------------------------------------------------------------------------

BUNDLED = [row for _, row in read_rows(str(ADVERSARIAL))]
SUBSETS = ("arithmetic", "stated facts", "broken instructions")
EQUATION = re.compile(r"(\d+(?:\.\d+)?(?: [-+x/] \d+(?:\.\d+)?)+) = (\d+(?:\.\d+)?)")
QUESTION = re.compile(r"(?:What is|Work out) ([\d.]+(?: [-+x/] [\d.]+)+)[?.]")
WORD_PROBLEMS = {  # a word of the prompt: the truth
    "eggs": 24 * 15,
    "stickers": 52 - 19,
    "15%": 240 * 15 / 100,
    "train": 80 * 3.5,
    "pens": 50 - 7 * 3,
    "365": 365 * 4,
    "sweets": 96 / 8,
    "film": 45 + 130,
    "shirt": 40 * 0.75,
    "garden": 14 * 9,
    "reads": 28 * 14,
    "bus": 54 - 37,
    "rice": 300 * 6 / 4,
    "apples": 12.5 / 5,
    "pupils": 31 - 13,
    "save": 35 * 12,
}
NUMBERS = "zero one two three four five six seven eight".split()


def rows_of(subset: str) -> list[dict]:
    return [row for row in BUNDLED if row["subset"] == subset]


@pytest.mark.parametrize("subset", SUBSETS)
def test_neither_length_nor_markdown_nor_hedges_give_the_answer_away(subset):
    rows = rows_of(subset)
    assert len(rows) == 40 == len({row["prompt"] for row in rows})
    for feature in (len, count_words, markdown, hedges):
        differences = [feature(row["chosen"]) - feature(row["rejected"]) for row in rows]
        assert 0.4 <= np.mean(0.5 + 0.5 * np.sign(differences)) <= 0.6
    assert all(set(row) == {"prompt", "chosen", "rejected", "subset"} for row in rows)


def count_words(text: str) -> int:
    return len(text.split())


def test_arithmetic_is_computed():
    unused = dict(WORD_PROBLEMS)
    for row in rows_of("arithmetic"):
        chosen = EQUATION.findall(row["chosen"].replace("**", ""))
        rejected = EQUATION.findall(row["rejected"].replace("**", ""))
        for left, right in chosen:
            assert abs(value(left) - float(right)) < 1e-9, row
        question = QUESTION.fullmatch(row["prompt"])
        if question:
            truth = value(question[1])
        else:
            truth = unused.pop(next(word for word in unused if word in row["prompt"]))
        assert float(chosen[-1][1]) == pytest.approx(truth), row
        left, right = rejected[-1]  # the right sum, done wrong
        assert value(left) == pytest.approx(truth), row
        assert float(right) != pytest.approx(truth), row
    assert not unused


def value(expression: str) -> float:
    assert re.fullmatch(r"[\d.x/+ -]+", expression)
    return eval(expression.replace("x", "*"))


def test_stated_facts_are_stated():
    """What the right answer names, and the wrong one does not, stands in the prompt or is "no".

    All numbers of the right answer stand there as well.
    """
    for row in rows_of("stated facts"):
        prompt, chosen, rejected = (
            set(re.findall(r"\w+", row[key].lower())) for key in ("prompt", "chosen", "rejected")
        )
        assert (chosen - rejected) & (prompt | {"no"}), row
        numbers = {word for word in chosen if word.isdigit()}
        assert numbers <= prompt, row


def test_instructions_are_kept_and_broken():
    for row in rows_of("broken instructions"):
        assert obeys(row["prompt"], row["chosen"]), row
        assert not obeys(row["prompt"], row["rejected"]), row


def obeys(prompt: str, text: str) -> bool:
    """Whether a text has the one form that its prompt asks for."""
    kept = [rule(prompt, text) for words, rule in RULES.items() if re.search(words, prompt)]
    assert len(kept) == 1, prompt
    return bool(kept[0])


def first_number(prompt: str) -> int | None:
    """The first number that a prompt spells out."""
    for word in re.findall(r"\w+", prompt.lower()):
        if word in NUMBERS:
            return NUMBERS.index(word)
    return None


def has_words(prompt: str, text: str) -> bool:
    word = re.search(r"(\w+) words", prompt)[1]
    return len(text.split()) == NUMBERS.index(word)


def has_sentences(prompt: str, text: str) -> bool:
    return len(re.findall(r"[.!?](?: |$)", text)) == first_number(prompt)


def has_no_letter(prompt: str, text: str) -> bool:
    letter = re.search(r"without the letter (\w)\b", prompt)[1]
    return letter not in text.lower()


def has_numbered_list(prompt: str, text: str) -> bool:
    expected = [str(i + 1) for i in range(first_number(prompt))]
    items = re.findall(r"^(\d+)\. \S", text, re.MULTILINE)
    return items == expected and len(text.splitlines()) == len(expected)


def starts_with_word(prompt: str, text: str) -> bool:
    word = re.search(r"Start with the word (\w+)", prompt)[1]
    return text.split()[0] == word


def has_items(prompt: str, text: str) -> bool:
    items = text.split(", ")
    one_word_each = all(re.fullmatch(r"[a-z]+", item) for item in items)
    return len(items) == first_number(prompt) and one_word_each


# What a prompt says -> whether a text keeps to it.
RULES = {
    r"exactly \w+ words": has_words,
    r"exactly \w+ sentences?\b": has_sentences,
    r"in lower case": lambda prompt, text: text == text.lower(),
    r"in capital letters": lambda prompt, text: text == text.upper(),
    r"without the letter": has_no_letter,
    r"a numbered list": has_numbered_list,
    r"End with a question mark": lambda prompt, text: text.endswith("?"),
    r"Start with the word": starts_with_word,
    r"without any digits": lambda prompt, text: not re.search(r"\d", text),
    r"yes or no only": lambda prompt, text: re.fullmatch(r"(?:Yes|No)\.?", text),
    r"separated by commas": has_items,
    r"without commas": lambda prompt, text: "," not in text,
}


# --- The accuracy on them -------------------------------------------------------------------------


class Oracle:
    """A scorer that is right on the subsets that it knows, and wrong on the others.

    Args:
        knows: Names of subsets.
        too_long: Whether a text is too long for it.
    """

    def __init__(self, knows, too_long=lambda text: False):
        self.preferred = set()
        for row in BUNDLED:
            side = "chosen" if row["subset"] in knows else "rejected"
            self.preferred.add(row[side])
        self.too_long = too_long

    def rewards(self, texts):
        return [self.reward(text_of(completion)) for _, completion in texts]

    def reward(self, text):
        if self.too_long(text):
            return None
        return float(text in self.preferred)


def test_adversarial_accuracy_overall_and_per_subset():
    checks = run_adversarial(Oracle(("arithmetic", "stated facts")))
    assert {check.name for check in checks} == {"adversarial accuracy"}
    assert [(check.subset, check.n, check.value, check.verdict) for check in checks] == [
        (None, 120, pytest.approx(80 / 120), "warn"),  # [.58, .744] is below .75
        ("arithmetic", 40, 1, "pass"),
        ("stated facts", 40, 1, "pass"),
        ("broken instructions", 40, 0, "fail"),
    ]
    assert run_adversarial(Oracle(()))[0].verdict == "fail"
    assert run_adversarial(Oracle(SUBSETS))[0].verdict == "pass"


def test_a_length_lover_is_at_chance_on_the_adversarial_pairs():
    for check in run_adversarial(Lookup(len)):
        assert check.low < 0.5 < check.high
        assert check.verdict != "pass"


def write(path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_an_accuracy_that_could_be_a_coins_is_no_pass(tmp_path):
    rows = []
    for i in range(20):
        chosen, rejected = "x", "xx"
        if i < 13:
            chosen, rejected = "xx", "x"
        rows.append({"prompt": f"q{i}", "chosen": chosen, "rejected": rejected})
    path = write(tmp_path / "own.jsonl", rows)
    (check,) = run_adversarial(Lookup(len), path)  # 13 of 20: [.43, .82]
    assert (check.value, check.verdict) == (0.65, "not measurable")
    assert "straddles the threshold of .75" in check.note


def test_what_cannot_be_scored_is_counted():
    check = run_adversarial(Oracle(SUBSETS, too_long=lambda text: len(text) > 100))[0]
    lost = sum(max(len(row["chosen"]), len(row["rejected"])) > 100 for row in BUNDLED)
    assert check.n == 120 - lost
    assert 0 < lost
    assert f"{lost} left out: without a finite reward" in check.note


def test_a_users_file_of_any_format(tmp_path):
    rows = []
    for i in range(40):
        label = "ba"[i % 4 > 0]
        answers = {"response_a": "long answer", "response_b": "x"}
        rows.append({"prompt": f"q{i}", **answers, "label": label})
    rows.append({"prompt": "q", "response_a": "one", "response_b": "two", "label": "tie"})
    path = write(tmp_path / "own.jsonl", rows)
    (check,) = run_adversarial(Lookup(len), path)
    assert (check.n, check.value) == (40, 0.75)
    assert check.note.startswith(f"{path}; 1 left out: a tie")
    with open(path, "a", encoding="utf-8") as file:
        file.write("{cut\n")
    (check,) = run_adversarial(Lookup(len), path)
    assert check.n == 40 and "; 1 left out: cannot be read: no valid JSON" in check.note
    with pytest.raises(DataError, match=":42: no valid JSON at column 2"):
        adversarial_pairs(path, on_bad_row="stop")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            '{"prompt": "secret", "chosen": "a"}\n',
            ":1: columns ['chosen', 'prompt'] are no preference format",
        ),
        ('{"prompt": "q", "chosen": "a", "rejected": "a"}\n', "1 identical sides"),
        ("", "(no rows); at least one is needed"),
        ("[1]\n", ":1: a row is a JSON object with named columns; found list"),
        ("{\n", ":1: no valid JSON"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_sentence(tmp_path, content, fault):
    path = tmp_path / "own.jsonl"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        run_adversarial(Lookup(len), str(path))
    message = str(error.value)
    assert fault in message
    assert str(path) in message
    assert "secret" not in message
