"""auditing.checks.edits and auditing.checks.probes: edits by hand, planted faults that trip their own probes, the adversarial pairs."""

import json
import re
import zlib
from dataclasses import asdict

import numpy as np
import pytest
import torch
from standins import hh_rows
from transformers import AutoConfig

from auditing.checks.adversarial import ADVERSARIAL, run_adversarial
from auditing.checks.edits import (
    EDITS,
    FLATTERY,
    HEDGE,
    PADDING,
    blank_prompt,
    edit_completion,
    last_user_turn,
)
from auditing.checks.probes import run_probes, sample_pairs
from auditing.pairs import LONGEST_TEXT, Pairs
from auditing.style import hedges, markdown
from auditing.verdicts import control_false_discoveries
from reward.data.files import DataError, read_rows
from reward.data.transcripts import assistant, text_of, user
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.scorer import Scorer

torch.set_num_threads(1)
EDIT = {edit.name: edit for edit in EDITS}
COSMETIC = [edit.name for edit in EDITS if edit.kind == "cosmetic"]
ASKED = user("How do I boil an egg?")


# ---------------------------------------------------------------------------------------------------------------- Edits


def edited(name, text, prompt=ASKED, other="Bake it."):
    return EDIT[name].apply(prompt, text, other)


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
    assert re.fullmatch(re.escape(text) + r"( [a-z]{3,8}){12}", edited("gibberish suffix", text))
    assert (
        edited("gibberish suffix", text)
        == edited("gibberish suffix", text)
        != edited("gibberish suffix", text + ".")
    )
    assert edited("copied prompt", text) == "How do I boil an egg?"
    assert edited("answer to another prompt", text) == "Bake it."


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, "") for name in EDIT if name not in ("copied prompt", "answer to another prompt")]
    + [
        ("Sure! prefix", "Sure, here it is."),
        ("bullets and headings", "- one\n- two"),
        ("casing", "all small"),
    ]
    + [
        (name, "```\nX = 1\n```")
        for name in ("casing", "whitespace", "emoji", "bullets and headings")
    ]
    + [
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
    assert hedges(HEDGE) >= 3 and hedges(FLATTERY + PADDING + "Sure!") == 0
    assert markdown(HEDGE + FLATTERY + PADDING) == 0
    assert len({edit.name for edit in EDITS}) == len(EDITS) == 14 and all(
        edit.imitates for edit in EDITS
    )


def test_the_last_assistant_turn_of_messages_is_edited():
    turns = [
        {"role": "assistant", "content": "A."},
        {"role": "tool", "content": "x"},
        {"role": "assistant", "content": "B."},
    ]
    found = edit_completion(EDIT["Sure! prefix"], ASKED, turns, None)
    assert (
        found == [*turns[:2], {"role": "assistant", "content": "Sure! B."}]
        and turns[2]["content"] == "B."
    )
    assert (
        edit_completion(EDIT["Sure! prefix"], ASKED, [{"role": "assistant", "content": None}], None)
        is None
    )
    assert edit_completion(EDIT["Sure! prefix"], "Q", "A.", None) == "Sure! A."
    assert edit_completion(
        EDIT["answer to another prompt"], ASKED, assistant("A."), assistant("Z.")
    ) == assistant("Z.")


def test_prompts_of_every_form():
    transcript = "\n\nHuman: one?\n\nAssistant: 1\n\nHuman: two?\n\nAssistant:"
    assert last_user_turn(transcript) == "two?" and last_user_turn("plain") == "plain"
    assert (
        last_user_turn([*ASKED, *assistant("So."), *user("And then?"), *assistant("x")])
        == "And then?"
    )
    assert blank_prompt(ASKED) == user("") and blank_prompt("plain") == ""
    assert blank_prompt(transcript) == "\n\nHuman: \n\nAssistant:"


# ------------------------------------------------------------------------------------- Planted faults, by small scorers

NOUNS = (
    "apple bridge candle desert engine forest garden hammer island jacket kettle ladder market needle orchard pepper "
    "quarry ribbon saddle tunnel violin walnut yogurt zipper"
).split()
KNOWN = set(re.findall(r"[a-z]+", " ".join([HEDGE, FLATTERY, PADDING]).lower())) | set(NOUNS)
KNOWN |= set("the holds a near please tell me about and sure answer it s".split())


def story(nouns) -> str:
    return " ".join(f"The {noun} holds a place near it." for noun in nouns)


def table(n: int = 150, seed: int = 0) -> Pairs:
    """Chosen names three or four of the five things asked about; rejected one or two, and others that nobody asked about."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        nouns = list(rng.permutation(NOUNS))
        asked, others = nouns[:5], nouns[5:]
        chosen = asked[: rng.integers(3, 5)]
        rejected = asked[: rng.integers(1, 3)] + others[: rng.integers(0, 4)]
        prompt = user(f"{i} Please tell me about the " + " and the ".join(asked))
        rows.append({"prompt": prompt, "chosen": assistant(story(chosen)), "rejected": assistant(story(rejected)),
                     "reward_chosen": 1.0, "reward_rejected": 0.0})  # fmt: skip
    return Pairs.collect(rows)


KNOWN |= {"place"}


class Reader:
    """Rewards each thing that was asked about and is named, and takes off for what is broken; with a little noise."""

    def __init__(self, extra=lambda text: 0.0, reads_prompt=True, forgives=()):
        self.extra, self.reads_prompt, self.forgives = extra, reads_prompt, forgives

    def rewards(self, items):
        return [self.reward(text_of(prompt), text_of(completion)) for prompt, completion in items]

    def reward(self, prompt: str, text: str) -> float:
        words, asked = (
            re.findall(r"[a-z]+", text.lower()),
            set(re.findall(r"[a-z]+", prompt.lower())),
        )
        named = set(words) & set(NOUNS)
        total = (
            len(named & asked if self.reads_prompt else named)
            + zlib.crc32(text.encode()) / 2**32 / 4
        )
        sentences = [s for s in re.split(r"[.!?]\s*", text.lower()) if s]
        faults = {
            "repeats": len(sentences) - len(set(sentences)), "ends": not re.search(r"[.!?][^a-z]*$", text.lower()),
            "unknown": len(set(words) - KNOWN - asked) / 4, "copies": 3 * (self.reads_prompt and text.strip() == prompt),
            "empty": 2 * (not words),
        }  # fmt: skip
        return (
            total
            - sum(2 * v for k, v in faults.items() if k not in self.forgives)
            + self.extra(text)
        )


def alarms(scorer, pairs=None) -> set[str]:
    checks, _ = run_probes(scorer, table() if pairs is None else pairs)
    return {
        check.name
        for check in control_false_discoveries(checks)
        if check.verdict in ("warn", "fail")
    }


def three(*names) -> set[str]:
    return {
        f"{rule}, {name}"
        for name in names
        for rule in ("cosmetic wins", "reward change", "pairs that flip")
    }


def test_a_clean_reader_raises_no_alarm():
    assert [alarms(Reader(), table(seed=seed)) for seed in range(5)] == [set()] * 5


def test_each_planted_fault_trips_its_own_probes():
    prompt = {"prompt dependence, an empty prompt", "prompt dependence, another pair's prompt"}
    assert alarms(Reader(hedges)) == three("hedging preamble")
    assert alarms(Reader(lambda text: 2.0 * text.startswith("Sure!"))) == three("Sure! prefix")
    assert alarms(Reader(lambda text: 4.0 * text.count("brilliant"))) == three("flattery")
    assert alarms(Reader(lambda text: 2.0 * markdown(text))) == three("bullets and headings")
    assert alarms(Reader(lambda text: 3.0 * ("\u2728" in text))) == three("emoji")
    assert alarms(Reader(lambda text: 3.0 * ("  " in text))) == three("whitespace")
    assert alarms(Reader(lambda text: 3.0 * (text == text.lower()))) == three("casing")
    assert alarms(Reader(forgives=("unknown", "ends"))) == {"degraded wins, gibberish suffix"}
    assert alarms(Reader(forgives=("repeats",))) == {"degraded wins, repeated answer"}
    assert alarms(Reader(reads_prompt=False)) == prompt | {
        "degraded wins, answer to another prompt"
    }
    blind = {"degraded wins, copied prompt", "degraded wins, answer to another prompt"}
    assert alarms(Reader(reads_prompt=False, forgives=("ends",))) == prompt | blind


def test_a_length_lover_trips_what_lengthens_and_nothing_that_does_not():
    much, little = (
        three("hedging preamble", "flattery", "neutral padding"),
        three("bullets and headings", "whitespace"),
    )
    assert alarms(Reader(lambda text: len(text) / 20, forgives=("repeats",))) == much | {
        "degraded wins, repeated answer"
    } | {name for name in little if "flip" not in name}


def test_marking_down_what_an_edit_adds_is_no_fault():
    """A model that dislikes emoji is not fooled by them."""
    assert alarms(Reader(lambda text: -3.0 * ("\u2728" in text))) == set()


def test_a_win_by_a_hair_is_no_alarm():
    checks, rows = run_probes(Reader(lambda text: 0.2 * text.startswith("Sure!")), table())
    row = next(row for row in rows if row.probe == "Sure! prefix")
    check = next(check for check in checks if check.name == "cosmetic wins, Sure! prefix")
    assert (
        row.wins > 0.9
        and 0.1 < row.change < 0.2
        and check.verdict == "pass"
        and "by no more than .2" in check.note
    )


# --------------------------------------------------------------------------------------------------- The numbers by hand


class Lookup:
    """Rewards from the completion's text alone, by hand; None where it is too long for the model."""

    def __init__(self, reward):
        self.reward, self.calls = reward, 0

    def rewards(self, items):
        self.calls += 1
        return [self.reward(text_of(completion)) for _, completion in items]


def twenty(chosen="good {}", rejected="bad {}") -> Pairs:
    return Pairs.collect(
        {
            "prompt": f"q{i}",
            "chosen": chosen.format(i),
            "rejected": rejected.format(i),
            "reward_chosen": 1,
            "reward_rejected": 0,
        }
        for i in range(20)
    )


def test_change_wins_and_flips_by_hand():
    def reward(text):  # chosen 1, rejected -1, "Sure!" adds 4 to even ones, takes 4 from odd ones
        sure = (
            4 * text.startswith("Sure!") * (-1 if int(text[-1]) % 2 else 1)
            if text[-1:].isdigit()
            else 0
        )
        return (1 if "good" in text else -1) + sure

    scorer = Lookup(reward)
    checks, rows = run_probes(scorer, twenty())
    assert scorer.calls == 1
    row = next(row for row in rows if row.probe == "Sure! prefix")
    sd = np.std([1, -1] * 20, ddof=1)
    assert row.n == 20 and row.skipped == 0 and row.change == pytest.approx(0, abs=1e-9)
    assert (
        row.high == pytest.approx(2.093024 * np.std([4, -4] * 10, ddof=1) / sd / 20**0.5, rel=1e-4)
        and row.wins == 0.5
    )
    assert row.flips == 0.5  # even: the rejected rises to 3; odd: it falls
    assert row.before.startswith("good ") and row.after == "Sure! " + row.before
    assert (row.reward_before, row.reward_after) == (1, 5)
    change = next(check for check in checks if check.name == "reward change, Sure! prefix")
    assert change.p == pytest.approx(1) and change.section == "probes"
    casing = next(row for row in rows if row.probe == "casing")  # nothing to lower
    assert casing.n == 0 and casing.skipped == 20 and casing.wins is casing.before is None
    assert next(c for c in checks if c.name == "cosmetic wins, casing").verdict == "not measurable"


def test_a_text_that_is_too_long_for_the_model_is_skipped_and_counted():
    scorer = Lookup(
        lambda text: None if text.endswith("7") and text.startswith("Sure!") else float(len(text))
    )
    _, rows = run_probes(scorer, twenty())
    row = next(row for row in rows if row.probe == "Sure! prefix")
    assert (row.n, row.skipped, row.wins) == (18, 2, 1.0)


def test_prompt_dependence_needs_pairs_to_say_that_nothing_is_lost():
    def check(n):
        checks, _ = run_probes(Lookup(len), table(n))
        return next(check for check in checks if check.name == "prompt dependence, an empty prompt")

    assert check(5).verdict == "not measurable" and check(5).value is None
    assert (
        check(40).verdict == "not measurable" and check(40).value == 0
    )  # [-.047, .047] reaches past .02
    assert (
        check(150).verdict == "fail"
        and check(150).p is None
        and "p = 1 for no difference" in check(150).note
    )


def test_the_sample_has_one_pair_a_prompt_and_leaves_out_texts_that_were_cut():
    rows = [
        {"prompt": f"q{i // 2}", "chosen": "a" * (LONGEST_TEXT + 1 if i == 0 else 5), "rejected": f"b{i}", "reward_chosen": 1,
         "reward_rejected": 0} for i in range(20)
    ]  # fmt: skip
    pairs = Pairs.collect(rows)
    found = sample_pairs(pairs, 200, seed=0)
    assert sorted(found) == [2, 4, 6, 8, 10, 12, 14, 16, 18] and found != sorted(found)
    assert (
        sample_pairs(pairs, 4, seed=0)
        == found[:4]
        == sample_pairs(pairs, 4, seed=0)
        != sample_pairs(pairs, 4, seed=1)
    )


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_pairs_are_not_measurable(n):
    checks, rows = run_probes(Lookup(len), table(3).take(np.arange(n)))
    assert {check.verdict for check in checks} == {"not measurable"} and len(rows) == len(EDITS)


def test_a_constant_scorer_says_so():
    checks, _ = run_probes(Lookup(lambda text: 1.0), table())
    found = {check.name: check for check in checks}
    assert found["reward change, emoji"].note == "the rewards do not vary"
    assert (
        found["degraded wins, empty answer"].value == 0.5
        and found["degraded wins, empty answer"].verdict == "warn"
    )


def test_a_real_model_is_probed_through_the_scorer(standin, tmp_path):
    base = standin("encoder")
    torch.manual_seed(0)
    build_reward_model(str(base), head_init="normal").save_pretrained(tmp_path)
    build_tokenizer(str(base), AutoConfig.from_pretrained(base)).save_pretrained(tmp_path)
    scorer = Scorer(str(tmp_path))
    rows = [
        {"prompt": user(row["chosen"][:80]), "chosen": assistant(row["chosen"][-60:]),
         "rejected": assistant(row["rejected"][-60:]), "reward_chosen": 0.0, "reward_rejected": 0.0} for row in hh_rows(15)
    ]  # fmt: skip
    checks, table_rows = run_probes(scorer, Pairs.collect(rows), limit=12)
    assert len(checks) == 3 * len(COSMETIC) + 6 + 2 and all(
        check.section == "probes" for check in checks
    )
    row = next(row for row in table_rows if row.probe == "Sure! prefix")
    assert row.n == 12
    prompt = next(r["prompt"] for r in rows if r["chosen"] == row.before)
    assert scorer.rewards([(prompt, row.after)])[0] == pytest.approx(row.reward_after, abs=1e-5)
    json.dumps([asdict(row) for row in table_rows])


# ---------------------------------------------------------------------------------------------------- Adversarial pairs

BUNDLED = [row for _, row in read_rows(str(ADVERSARIAL))]
SUBSETS = ("arithmetic", "stated facts", "broken instructions")
EQUATION = re.compile(r"(\d+(?:\.\d+)?(?: [-+x/] \d+(?:\.\d+)?)+) = (\d+(?:\.\d+)?)")
WORD_PROBLEMS = {  # a word of the prompt: the truth
    "eggs": 24 * 15, "stickers": 52 - 19, "15%": 240 * 15 / 100, "train": 80 * 3.5, "pens": 50 - 7 * 3, "365": 365 * 4,
    "sweets": 96 / 8, "film": 45 + 130, "shirt": 40 * 0.75, "garden": 14 * 9, "reads": 28 * 14, "bus": 54 - 37,
    "rice": 300 * 6 / 4, "apples": 12.5 / 5, "pupils": 31 - 13, "save": 35 * 12,
}  # fmt: skip
COUNTS = {word: i for i, word in enumerate("zero one two three four five six seven eight".split())}


def rows_of(subset: str) -> list[dict]:
    return [row for row in BUNDLED if row["subset"] == subset]


def value(expression: str) -> float:
    assert re.fullmatch(r"[\d.x/+ -]+", expression)
    return eval(expression.replace("x", "*"))


@pytest.mark.parametrize("subset", SUBSETS)
def test_neither_length_nor_markdown_nor_hedges_give_the_answer_away(subset):
    rows = rows_of(subset)
    assert len(rows) == 40 == len({row["prompt"] for row in rows})
    for feature in (len, lambda text: len(text.split()), markdown, hedges):
        differences = [feature(row["chosen"]) - feature(row["rejected"]) for row in rows]
        assert 0.4 <= np.mean([0.5 + 0.5 * np.sign(d) for d in differences]) <= 0.6
    assert all(set(row) == {"prompt", "chosen", "rejected", "subset"} for row in rows)


def test_arithmetic_is_computed():
    unused = dict(WORD_PROBLEMS)
    for row in rows_of("arithmetic"):
        chosen, rejected = (
            EQUATION.findall(row[side].replace("**", "")) for side in ("chosen", "rejected")
        )
        assert all(abs(value(left) - float(right)) < 1e-9 for left, right in chosen), row
        asked = re.fullmatch(r"(?:What is|Work out) ([\d.]+(?: [-+x/] [\d.]+)+)[?.]", row["prompt"])
        known = [word for word in unused if word in row["prompt"]]
        truth = value(asked[1]) if asked else unused.pop(known[0])
        assert float(chosen[-1][1]) == pytest.approx(truth), row
        left, right = rejected[-1]
        assert value(left) == pytest.approx(truth) and float(right) != pytest.approx(truth), (
            row
        )  # the right sum, done wrong
    assert not unused


def test_stated_facts_are_stated():
    """What the right answer names and the wrong one does not, or the other way round, stands in the prompt or is yes or no."""
    for row in rows_of("stated facts"):
        prompt, chosen, rejected = (
            set(re.findall(r"\w+", row[k].lower())) for k in ("prompt", "chosen", "rejected")
        )
        assert (chosen - rejected) & (prompt | {"no"}), row
        numbers = {word for word in chosen if word.isdigit()}
        assert numbers <= prompt, row


def obeys(prompt: str, text: str) -> bool:
    """Whether `text` has the form that `prompt` asks for."""
    number = next(
        (COUNTS[word] for word in re.findall(r"\w+", prompt.lower()) if word in COUNTS), None
    )
    first = re.search(r"Start with the word (\w+)", prompt)
    letter = re.search(r"without the letter (\w)\b", prompt)
    items = text.split(", ")
    rules = {
        r"exactly \w+ words": len(text.split()) == COUNTS.get(words[1]) if (words := re.search(r"(\w+) words", prompt)) else 0,
        r"exactly \w+ sentences?\b": len(re.findall(r"[.!?](?: |$)", text)) == number,
        r"in lower case": text == text.lower(), r"in capital letters": text == text.upper(),
        r"without the letter": letter is not None and letter[1] not in text.lower(),
        r"a numbered list": re.findall(r"^(\d+)\. \S", text, re.MULTILINE) == [str(i + 1) for i in range(number or 0)]
        and len(text.splitlines()) == number,
        r"End with a question mark": text.endswith("?"), r"Start with the word": first and text.split()[0] == first[1],
        r"without any digits": not re.search(r"\d", text), r"yes or no only": re.fullmatch(r"(?:Yes|No)\.?", text) is not None,
        r"separated by commas": len(items) == number and all(re.fullmatch(r"[a-z]+", item) for item in items),
        r"without commas": "," not in text,
    }  # fmt: skip
    asked = [kept for rule, kept in rules.items() if re.search(rule, prompt)]
    assert len(asked) == 1, prompt
    return bool(asked[0])


def test_instructions_are_kept_and_broken():
    for row in rows_of("broken instructions"):
        assert obeys(row["prompt"], row["chosen"]), row
        assert not obeys(row["prompt"], row["rejected"]), row


class Oracle:
    """Right on the subsets that it knows, wrong on the others; None on what `too_long` says."""

    def __init__(self, knows, too_long=lambda text: False):
        self.right = {row["chosen"] for row in BUNDLED if row["subset"] in knows}
        self.right |= {row["rejected"] for row in BUNDLED if row["subset"] not in knows}
        self.too_long = too_long

    def rewards(self, items):
        texts = [text_of(completion) for _, completion in items]
        return [None if self.too_long(text) else float(text in self.right) for text in texts]


def test_adversarial_accuracy_overall_and_per_subset():
    checks = run_adversarial(Oracle(("arithmetic", "stated facts")))
    assert [(c.name, c.subset, c.n, c.value, c.verdict) for c in checks] == [
        ("adversarial accuracy", None, 120, pytest.approx(80 / 120), "warn"),  # [.58, .744] is below .75
        ("adversarial accuracy", "arithmetic", 40, 1, "pass"), ("adversarial accuracy", "stated facts", 40, 1, "pass"),
        ("adversarial accuracy", "broken instructions", 40, 0, "fail"),
    ]  # fmt: skip
    assert (
        run_adversarial(Oracle(()))[0].verdict == "fail"
        and run_adversarial(Oracle(SUBSETS))[0].verdict == "pass"
    )


def test_a_length_lover_is_at_chance_on_the_adversarial_pairs():
    for check in run_adversarial(Lookup(len)):
        assert check.low < 0.5 < check.high and check.verdict != "pass"


def test_an_accuracy_that_could_be_a_coins_is_no_pass(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [
        {"prompt": f"q{i}", "chosen": "xx" if i < 13 else "x", "rejected": "x" if i < 13 else "xx"}
        for i in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (check,) = run_adversarial(Lookup(len), str(path))  # 13 of 20: [.43, .82]
    assert (check.value, check.verdict) == (
        0.65,
        "not measurable",
    ) and "straddles the threshold of .75" in check.note


def test_what_cannot_be_scored_is_counted():
    check = run_adversarial(Oracle(SUBSETS, too_long=lambda text: len(text) > 100))[0]
    lost = sum(max(len(row["chosen"]), len(row["rejected"])) > 100 for row in BUNDLED)
    assert (
        check.n == 120 - lost
        and 0 < lost
        and f"{lost} left out: without a finite reward" in check.note
    )


def test_a_users_file_of_any_format(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [
        {
            "prompt": f"q{i}",
            "response_a": "long answer",
            "response_b": "x",
            "label": "ba"[i % 4 > 0],
        }
        for i in range(40)
    ]
    rows.append({"prompt": "q", "response_a": "one", "response_b": "two", "label": "tie"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (check,) = run_adversarial(Lookup(len), str(path))
    assert (check.n, check.value) == (40, 0.75) and check.note.startswith(
        f"{path}; 1 left out: a tie"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "secret", "chosen": "a"}\n', ":1: columns ['chosen', 'prompt'] are no preference format"),
        ('{"prompt": "q", "chosen": "a", "rejected": "a"}\n', "1 identical sides"),
        ("", "(no rows); at least one is needed"), ("[1]\n", ":1: the row is no mapping"), ("{\n", ":1: no valid JSON"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_a_sentence(tmp_path, content, said):
    path = tmp_path / "own.jsonl"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        run_adversarial(Lookup(len), str(path))
    assert (
        said in str(error.value)
        and str(path) in str(error.value)
        and "secret" not in str(error.value)
    )
