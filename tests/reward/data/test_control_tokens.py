"""Parting control tokens: as before, token by token; at a cost that does not grow with them."""

import random
import sys

import pytest
from earlier_template import earlier_head, earlier_template, part_as_earlier
from jinja2.sandbox import ImmutableSandboxedEnvironment
from standins import make_tokenizer
from transformers import AddedToken

from reward.data.control_tokens import read_control_tokens
from reward.data.encoding import control_tokens, encode, prepare_tokenizer, render
from reward.data.transcripts import assistant, user

REAL = {
    "qwen": {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>"},
    "gemma": {
        "<pad>",
        "<s>",
        "<start_of_turn>",
        "[multimodal]",
        *map("<unused{}>".format, range(99)),
    },
    "mistral": {"<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"},
    "deepseek": {"<｜User｜>", "<｜▁pad▁｜>", "<|EOT|>"},
    "falcon": {">>TITLE<<", ">>ABSTRACT<<", ">>INTRODUCTION<<", "<|endoftext|>"},
    "encoder": {"[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "<mask>"},
    "gpt2": {"<|endoftext|>", "Ġstop"},
    "nothing": set(),
    "letters": {"a", "<"},
}
LETTERS = ["ab", "<|>", "<>[]", "ab ", "'\"\\", "\n\u200b{}", "ü｜🙂", "%#{}"]


def made_up(rng: random.Random) -> set[str]:
    """Random tokens of few letters: nested, overlapping, with one head."""
    letters = rng.choice(LETTERS)
    tokens = set()
    for _ in range(rng.randint(1, 6)):
        token = "".join(rng.choices(letters, k=rng.randint(1, 5)))
        tokens.add(token)
        if rng.random() < 0.3:
            tokens.add(token + rng.choice(letters))
        if rng.random() < 0.3:
            tokens.add(rng.choice(letters) + token)
    return tokens


def some_text(rng: random.Random, tokens: set[str]) -> str:
    """A text of tokens, pieces of tokens and other letters."""
    parts = [" ", "a", "é", "\n", *sorted(tokens)]
    for token in sorted(tokens):
        parts += [token[:-1], token[1:], token[:2], token[0]]
    return "".join(rng.choices(parts, k=rng.choice([0, 1, 3, 10, 80])))


def token_sets() -> list[set[str]]:
    rng = random.Random(0)
    return [*REAL.values(), *(made_up(rng) for _ in range(60))]


def jinja(template: str):
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)


def parting_template(head: str):
    """A template that gives each message's content as JSON."""
    return jinja(head + "{% for m in messages %}{{ m.content|string|list }}{% endfor %}")


def test_python_parts_as_before():
    rng = random.Random(1)
    for tokens in token_sets():
        control = read_control_tokens(tokens)
        for _ in range(60):
            text = some_text(rng, tokens)
            assert control.part(text) == part_as_earlier(text, tokens), (tokens, text)


def test_the_template_parts_as_before():
    rng = random.Random(2)
    for tokens in token_sets():
        now = parting_template(read_control_tokens(tokens).template_head())
        before = parting_template(earlier_head(tokens))
        for _ in range(5):
            texts = [some_text(rng, tokens) for _ in range(3)]
            messages = [{"role": "user", "content": text} for text in texts]
            assert now.render(messages=messages) == before.render(messages=messages), tokens


# --- The cost, counted in steps of Python's interpreter -------------------------------------------


def steps(function, *arguments) -> int:
    """How many instructions of Python a call takes, in all functions that it calls."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*arguments)
    finally:
        sys.settrace(before)
    return count


TALK = user("What is 2 < 3 [in C]?\n" * 9) + assistant("True.") + user("Why?") + assistant("Well.")


@pytest.fixture(scope="module")
def gemmas():
    """Prepared tokenizers by the number of their control tokens, like those of Gemma 3."""
    made = {}
    for count in (64, 6400):
        made[count] = make_tokenizer("qwen")
        unused = [AddedToken(f"<unused{i}>", special=True) for i in range(count - 3)]
        made[count].add_tokens(unused, special_tokens=True)
        prepare_tokenizer(made[count], is_encoder=False)
    return made


def test_the_cost_does_not_depend_on_the_number_of_control_tokens(gemmas):
    """Trap: reading HH-RLHF for Gemma 3, which has 6,242, would have taken half a day."""
    cost, own_cost, earlier_cost = {}, {}, {}
    for count, tokenizer in gemmas.items():
        assert len(control_tokens(tokenizer).tokens) == count
        encode(tokenizer, TALK[:1], TALK[1:])  # compiles the template
        cost[count] = steps(lambda t: t.apply_chat_template(TALK, tokenize=False), tokenizer)
        own_cost[count] = steps(encode, tokenizer, TALK[:1], TALK[1:])
        raw = [TALK[0]["content"], TALK[1]["content"]]
        encode(tokenizer, *raw)
        own_cost[count] += steps(encode, tokenizer, *raw)
        before = jinja(earlier_template(tokenizer))
        earlier_cost[count] = steps(lambda template: template.render(messages=TALK[1:2]), before)
    assert cost[6400] < 1.05 * cost[64]
    assert own_cost[6400] < 1.05 * own_cost[64]
    assert earlier_cost[6400] > 20 * earlier_cost[64]  # so that the counting means something


@pytest.mark.parametrize(
    "hostile", ["<", "<|", "<un", "<unused9", "<unused9>", "<|im_end|>", "a<b "]
)
def test_the_cost_of_hostile_texts_is_linear(gemmas, hostile):
    tokenizer = gemmas[6400]
    control = control_tokens(tokenizer)
    render(tokenizer, user("Hi"), assistant("Hello."))
    of_template, of_python = [], []
    for length in (1_000, 4_000):
        text = hostile * (length // len(hostile))
        expected = part_as_earlier(text, set(control.tokens))
        assert control.part(text) == expected
        assert expected in render(tokenizer, user(text), assistant("Hello."))
        of_template.append(steps(render, tokenizer, user(text), assistant("Hello.")))
        of_python.append(steps(control.part, text))
    assert of_template[1] < 4.5 * of_template[0]
    assert of_python[1] < 4.5 * of_python[0]
