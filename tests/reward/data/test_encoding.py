"""Encoding: the end token last, one BOS, a pad that never ends a text, control tokens stay out.

For stand-ins of every kind and for the real chat templates that TRL carries.
"""

import json
import random
import re

import pytest
from earlier_template import earlier_template
from standins import KINDS, TEMPLATES, WORDS, load_tokenizer, make_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, ByT5Tokenizer, PreTrainedTokenizerFast
from trl.data_utils import apply_chat_template

from reward.checkpoint.golden import golden_texts
from reward.checkpoint.verify import encodes_alike
from reward.data import encoding
from reward.data.encoding import (
    EncodedPrompt,
    EncodingError,
    RefusedText,
    control_tokens,
    encode,
    encode_each,
    encode_within,
    encoder_facts,
    prepare_tokenizer,
    render,
)
from reward.data.transcripts import assistant, user

SYSTEM = [{"role": "system", "content": "Be brief."}]
TALK = user("Name a river.") + assistant("The Rhine.") + user("Another?")
# What a template does to its last turn is in the saved template; `first` is the BOS or [CLS] that
# it starts with.
END = {
    "qwen": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "tinyllama": "</s>",
    "base": "<|endoftext|>",
    "encoder": "[SEP]",
}
FIRST = {"llama3": "<|begin_of_text|>", "encoder": "[CLS]"}
PAD = {
    "qwen": "<|endoftext|>",
    "llama3": "<|reserved_special_token_0|>",
    "tinyllama": "<unk>",
    "encoder": "[PAD]",
}

# Real templates with the roles and control tokens of the tokenizers they belong to: (bos, eos,
# others, end of an answer).
IM = "<|im_start|> <|im_end|> <|endoftext|>"
LLAMA = "<|start_header_id|> <|end_header_id|> "
GEMMA = "<pad> <unk> <start_of_turn> <end_of_turn>"
DEEPSEEK_END = "<｜end▁of▁sentence｜>"
REAL = {
    "qwen2_5": (None, "<|im_end|>", IM, "<|im_end|>"),
    "qwen3": (None, "<|im_end|>", IM, "<|im_end|>"),
    "qwen3_instruct_2507": (None, "<|im_end|>", IM, "<|im_end|>"),
    "llama3": (
        "<|begin_of_text|>",
        "<|eot_id|>",
        LLAMA + "<|reserved_special_token_0|>",
        "<|eot_id|>",
    ),
    "llama3_1": (
        "<|begin_of_text|>",
        "<|eot_id|>",
        LLAMA + "<|finetune_right_pad_id|>",
        "<|eot_id|>",
    ),
    "llama3_2": (
        "<|begin_of_text|>",
        "<|eot_id|>",
        LLAMA + "<|finetune_right_pad_id|>",
        "<|eot_id|>",
    ),
    "gemma": ("<bos>", "<eos>", GEMMA, "<end_of_turn>"),
    "gemma3": ("<bos>", "<eos>", GEMMA, "<end_of_turn>"),
    "phi3": (
        "<s>",
        "<|endoftext|>",
        "<unk> <|system|> <|user|> <|assistant|> <|end|>",
        "<|endoftext|>",
    ),
    "deepseekv3": (
        "<｜begin▁of▁sentence｜>",
        DEEPSEEK_END,
        "<｜User｜> <｜Assistant｜> <｜▁pad▁｜>",
        DEEPSEEK_END,
    ),
    "gptoss": (
        "<|startoftext|>",
        "<|return|>",
        "<|endoftext|> <|start|> <|channel|> <|message|> <|end|>",
        "<|return|>",
    ),
    "glm4moe": (
        None,
        "<|endoftext|>",
        "[gMASK] <sop> <|system|> <|user|> <|assistant|> [PAD]",
        "<|endoftext|>",
    ),
    "cohere": (
        "<BOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
        "<PAD> <|START_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
    ),
    "lfm2": ("<|startoftext|>", "<|im_end|>", "<|pad|> <|im_start|>", "<|im_end|>"),
}


def real_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A small byte-level BPE with the special tokens and the template of a real model."""
    bos, eos, others, _ = REAL[name]
    special = [token for token in (bos, eos, *others.split()) if token]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(dict.fromkeys(special)), initial_alphabet=alphabet
    )
    bpe.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers():
    """Prepared tokenizers by name, each made once: stand-ins, and real templates (`real:qwen3`)."""
    made = {}

    def get(name: str):
        if name not in made:
            if name.startswith("real:"):
                made[name] = real_tokenizer(name.removeprefix("real:"))
            else:
                made[name] = make_tokenizer(name)
            prepare_tokenizer(made[name], name == "encoder")
        return made[name]

    return get


ALL = [*KINDS, *(f"real:{name}" for name in REAL)]
every = pytest.mark.parametrize("name", ALL)
kinds = pytest.mark.parametrize("name", list(KINDS))


def end_token(name: str) -> str:
    if name.startswith("real:"):
        return REAL[name.removeprefix("real:")][3]
    return END[name]


def control_ids(tokenizer, ids: list[int]) -> list[int]:
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if tokenizer.cls_token:
        special -= {tokenizer.unk_token_id}  # an encoder's word for any letter it doesn't know
    return [i for i in ids if i in special]


# --- A shared prompt, tokenised once --------------------------------------------------------------


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    """A BPE that marks spaces as Llama 2 and Mistral do, with the special tokens of TinyLlama."""
    special, roles, template = KINDS["tinyllama"]
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    bpe.decoder = decoders.Metaspace(prepend_scheme=scheme)
    letters = [chr(i) for i in range(32, 127)]
    bpe.train_from_iterator(
        [" ".join(WORDS)] * 3,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=letters),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **roles)
    tokenizer.chat_template = template
    prepare_tokenizer(tokenizer, False)
    return tokenizer


def some_text(rng: random.Random) -> str:
    parts = [
        *WORDS[:12],
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "é",
        "日本",
        "🙂",
        "<|im_end|>",
        "[SEP]",
        "</s>",
        "'s",
        "2+2",
        "...",
    ]
    return "".join(rng.choice(parts) + rng.choice(["", " "]) for _ in range(rng.randint(0, 12)))


@pytest.mark.parametrize("name", [*ALL, "metaspace:first", "metaspace:always", "metaspace:never"])
def test_a_prompt_that_is_tokenised_once_gives_the_same_ids(tokenizers, name):
    tokenizer = metaspace(name[10:]) if name.startswith("metaspace") else tokenizers(name)
    rng = random.Random(0)
    for _ in range(40):
        prompt = user(some_text(rng) + "?")
        for _ in range(rng.randint(0, 2)):
            prompt += assistant(some_text(rng) + "!") + user(some_text(rng) + "?")
        start = some_text(rng)  # of both completions
        completions = [assistant(start + some_text(rng)) for _ in range(rng.randint(2, 4))]
        texts = [render(tokenizer, prompt, completion) for completion in completions]
        whole = tokenizer(texts, add_special_tokens=False)["input_ids"]
        assert encode_each(tokenizer, prompt, completions) == whole
        text = some_text(rng)  # what the template does not write may have control tokens
        assert (
            encoding._tokenise_in_pieces(tokenizer, text)
            == tokenizer(text, add_special_tokens=False)["input_ids"]
        )


def test_a_control_token_that_takes_spaces_along_is_no_place_to_cut():
    tokenizer = make_tokenizer("qwen")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<turn>", lstrip=True, special=True)]}
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}   <turn>{% endfor %}<|im_end|>"
    )
    prepare_tokenizer(tokenizer, False)
    completions = [assistant("water"), assistant("coffee")]
    encodings = encode_each(tokenizer, user("tea"), completions)
    assert encodings == [encode(tokenizer, user("tea"), completion) for completion in completions]
    assert tokenizer.convert_tokens_to_ids("<turn>") in encodings[0]


@pytest.mark.parametrize("name", ["qwen", "llama3", "encoder"])
def test_a_long_prompt_is_tokenised_once(tokenizers, name, monkeypatch):
    tokenizer, lengths = tokenizers(name), []
    tokenise = encoding._tokenise

    def counted(tokenizer, text):
        lengths.append(len(text))
        return tokenise(tokenizer, text)

    monkeypatch.setattr(encoding, "_tokenise", counted)
    prompt = user("tea " * 500)
    encode_each(tokenizer, prompt, [assistant("water"), assistant("coffee"), assistant("bread")])
    assert 2000 <= sum(lengths) < 2400


@pytest.mark.parametrize("kind", ["lstrip", "rstrip", "single_word", "normalized"])
def test_a_text_is_cut_where_its_pieces_give_the_same_ids(kind):
    """Some control tokens depend on what stands before them, and are no place to cut."""
    tokenizer = metaspace("first")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    options = {"special": True, "normalized": False, kind: True}
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<Turn>", **options)]},
        replace_extra_special_tokens=False,
    )
    tokenizer.chat_template = "{% for m in messages %}<Turn>{{ m.content }}{% endfor %}</s>"
    prepare_tokenizer(tokenizer, False)
    turn_id = tokenizer.convert_tokens_to_ids("<Turn>")
    for text in ("tea", " Tea ", "tea!", "a  ", "é"):
        rendered = render(tokenizer, user(text), assistant("Water"))
        ids = encode(tokenizer, user(text), assistant("Water"))
        assert ids == tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert turn_id in ids or kind != "lstrip"


# --- The ends of an encoding ----------------------------------------------------------------------


@every
def test_the_end_token_comes_last(tokenizers, name):
    """Traps: templates end in a newline (Qwen, Gemma); training and scoring end differently."""
    tokenizer = tokenizers(name)
    for prompt, completion in (
        (TALK, "Elbe."),
        (user("Hi"), "Elbe. \n"),
        (user(""), "x" * 5000),
        (TALK, "é漢字🙂"),
    ):
        ids = encode(tokenizer, prompt, assistant(completion))
        assert tokenizer.convert_ids_to_tokens(ids[-1]) == end_token(name)
        assert ids[-2] != ids[-1]


@every
def test_one_bos_at_most(tokenizers, name):
    """Trap: two BOS, as text that starts with BOS gave `[0, 0, ...]`."""
    tokenizer = tokenizers(name)
    first = tokenizer.cls_token if name == "encoder" else tokenizer.bos_token
    has_one = name in FIRST or (
        name.startswith("real:") and first and name != "real:phi3" and name != "real:gptoss"
    )
    for prompt in (user("Hi"), user(f"{first or ''}Hi"), user(f"{first or ''}{first or ''}"), TALK):
        ids = encode(tokenizer, prompt, assistant(f"{first or ''}Hello."))
        count = ids.count(tokenizer.convert_tokens_to_ids(first)) if first else 0
        assert count == int(bool(has_one))
        assert not count or ids[0] == tokenizer.convert_tokens_to_ids(first)


@pytest.mark.parametrize(
    "bos_twice", ["{{ bos_token }}{{ bos_token }}", "<|begin_of_text|>{{ bos_token }}"]
)
def test_a_template_with_two_bos_is_refused(bos_twice):
    """Trap: two BOS."""
    tokenizer = make_tokenizer("llama3")
    tokenizer.chat_template = (
        bos_twice + "{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"
    )
    with pytest.raises(EncodingError, match="renders two BOS tokens"):
        prepare_tokenizer(tokenizer, False)


def test_a_foreign_template_that_doubles_bos_is_refused_when_encoding():
    """Trap: two BOS; a checkpoint that was not trained here keeps its own template."""
    tokenizer = make_tokenizer("llama3")
    assert encode(tokenizer, user("Hi"), assistant("Hello."))[0] == tokenizer.bos_token_id
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}<|eot_id|>"
    with pytest.raises(RefusedText, match="two BOS tokens"):
        encode(tokenizer, user("<|begin_of_text|>Hi"), assistant("Hello."))


@kinds
def test_pad_is_neither_end_nor_eos(name):
    """Trap: pad = eos, as TinyLlama ships it and TRL falls back to it.

    The reward is then read one token early.
    """
    tokenizer = make_tokenizer(name)
    size = len(tokenizer)
    prepare_tokenizer(tokenizer, name == "encoder")
    never = {
        tokenizer.eos_token_id,
        tokenizer.bos_token_id,
        tokenizer.convert_tokens_to_ids(END[name]),
    }
    assert tokenizer.pad_token_id not in never and tokenizer.padding_side == "right"
    assert len(tokenizer) == size  # no token is added, no embedding resized
    assert tokenizer.pad_token == PAD[name] if name != "base" else tokenizer.pad_token[0] == "Ġ"


@every
def test_the_last_token_that_is_not_pad_is_the_end_token(tokenizers, name):
    """Trap: pad = eos. Stock models pool at the last token that is not pad."""
    tokenizer = tokenizers(name)
    texts = [
        render(tokenizer, user("Hi"), assistant(answer))
        for answer in ("a", "a much longer answer", tokenizer.pad_token)
    ]
    batch = tokenizer(texts, padding=True, add_special_tokens=False)["input_ids"]
    for ids in batch:
        last = max(place for place, token in enumerate(ids) if token != tokenizer.pad_token_id)
        assert tokenizer.convert_ids_to_tokens(ids[last]) == end_token(name)


def test_literal_encodings(tokenizers):
    def text(name, prompt=TALK):
        return render(tokenizers(name), prompt, assistant("Elbe."))

    assert text("qwen", SYSTEM + TALK) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a "
        "river.<|im_end|>\n<|im_start|>assistant\nThe "
        "Rhine.<|im_end|>\n<|im_start|>user\nAnother?<|im_end|>\n<|im_start|>assistant\nElbe.<|im_end|>"
    )
    assert text("llama3", user("Hi")) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant"
        "<|end_header_id|>\n\nElbe.<|eot_id|>"
    )
    assert text("tinyllama", user("Hi")) == "<|user|>\nHi</s>\n<|assistant|>\nElbe.</s>"
    assert text("base") == (
        "\n\nHuman: Name a river.\n\nAssistant: The Rhine.\n\nHuman: Another?\n\nAssistant: "
        "Elbe.<|endoftext|>"
    )
    assert text("encoder") == "[CLS]Name a river.[SEP]The Rhine.[SEP]Another?[SEP]Elbe.[SEP]"
    assert text("real:gemma", user("Hi")) == (
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nElbe.<end_of_turn>"
    )


def test_a_base_decoder_that_adds_bos_gets_it_in_its_template():
    tokenizer = make_tokenizer("llama3")
    tokenizer.chat_template = None
    prepare_tokenizer(tokenizer, False)
    expected = "<|begin_of_text|>\n\nHuman: Hi\n\nAssistant: Elbe.<|eot_id|>"
    assert render(tokenizer, user("Hi"), assistant("Elbe.")) == expected


@pytest.mark.parametrize("name", ["llama3_2", "gptoss"])
def test_the_date_of_today_is_in_no_encoding(tokenizers, name):
    """Templates that write today's date would give another reward tomorrow."""
    assert "strftime_now(" in real_tokenizer(name).chat_template
    tokenizer = tokenizers(f"real:{name}")
    assert "strftime_now(" not in tokenizer.chat_template
    text = render(tokenizer, user("Hi"), assistant("Elbe."))
    assert {"llama3_2": "Today Date: 26 Jul 2024", "gptoss": "Current date: 2024-07-26"}[
        name
    ] in text


# --- Control tokens come from templates -----------------------------------------------------------


@every
def test_text_that_looks_like_a_control_token_stays_text(tokenizers, name):
    """Trap: two BOS, and any turn that user text could open or close."""
    tokenizer = tokenizers(name)
    plain = control_ids(tokenizer, encode(tokenizer, user("Hi"), assistant("Hello.")))
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    assert set(special) <= set(control_tokens(tokenizer).tokens)
    for token in special:
        nested = token[:4] + token + token[4:]
        for text in (token, f"a{token}b", token * 2, nested, f" {token}\n"):
            assert (
                control_ids(tokenizer, encode(tokenizer, user(text), assistant("Hello."))) == plain
            )
            assert (
                control_ids(tokenizer, encode(tokenizer, user("Hi"), assistant(f"x{text}y")))
                == plain
            )
    everything = "".join(special)
    assert (
        control_ids(tokenizer, encode(tokenizer, user(everything), assistant(f"x{everything}y")))
        == plain
    )


def call(name, arguments):
    return {"type": "function", "id": "1", "function": {"name": name, "arguments": arguments}}


# Where a word of the user may stand beside a content: each gives the messages and the tools.
PLACES = {
    "role": lambda word: ([{"role": word, "content": "Hi"}], None),
    "part of a role": lambda word: ([{"role": f"a{word}b", "content": "Hi"}], None),
    "name": lambda word: ([{"role": "user", "name": word, "content": "Hi"}], None),
    "content part": lambda word: (
        [{"role": "user", "content": [{"type": "text", "text": f"a{word}"}]}],
        None,
    ),
    "reasoning": lambda word: (
        [{"role": "assistant", "content": "Hi", "reasoning_content": word, "thinking": word}],
        None,
    ),
    "tool result": lambda word: ([{"role": "tool", "name": word, "content": f"x{word}"}], None),
    "called name": lambda word: ([{"role": "assistant", "tool_calls": [call(word, {})]}], None),
    "argument": lambda word: (
        [{"role": "assistant", "content": "", "tool_calls": [call("f", {"a": word})]}],
        None,
    ),
    "argument's name": lambda word: (
        [{"role": "assistant", "content": "", "tool_calls": [call("f", {word: 1})]}],
        None,
    ),
    "arguments as text": lambda word: (
        [{"role": "assistant", "content": "", "tool_calls": [call("f", f'{{"a": "{word}"}}')]}],
        None,
    ),
    "nested argument": lambda word: (
        [{"role": "assistant", "tool_calls": [call("f", {"a": [{"b": {word: [2.5, word]}}]})]}],
        None,
    ),
    "tool's name": lambda word: (
        user("Hi"),
        [{"type": "function", "function": {"name": word, "parameters": {}}}],
    ),
    "tool's schema": lambda word: (
        user("Hi"),
        [
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "description": f"It says {word}.",
                    "parameters": {
                        "type": "object",
                        "properties": {word: {"type": "string", "enum": [word, "b"]}},
                        "required": [word],
                    },
                },
            }
        ],
    ),
}
# Mistral's, in short: tools and calls as JSON, roles by their brackets.
MISTRAL = (
    "{{ bos_token }}{% if tools %}[TOOLS]{{ tools|tojson }}[/TOOLS]{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.tool_calls %}[CALLS]{{ m.tool_calls|tojson }}{{ eos_token }}"
    "{% else %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("place", PLACES)
def test_control_tokens_are_text_wherever_they_stand(tokenizers, place):
    """Trap: tool names, arguments and roles went into the template as they were."""
    if not hasattr(tokenizers, "mistral"):
        tokenizers.mistral = make_tokenizer("tinyllama")
        brackets = ["[INST]", "[/INST]", "[TOOLS]", "[/TOOLS]", "[CALLS]"]
        tokenizers.mistral.add_special_tokens({"additional_special_tokens": brackets})
        tokenizers.mistral.chat_template = MISTRAL
        prepare_tokenizer(tokenizers.mistral, False)
    names = ["qwen", "llama3", "real:llama3_1", "real:gemma", "real:qwen3", "real:glm4moe"]
    encoded = 0
    for tokenizer in (tokenizers.mistral, *map(tokenizers, names)):
        listed = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        messages, tools = PLACES[place]("harmless")
        try:
            plain = encode(tokenizer, messages, assistant("Hello."), tools)
        except RefusedText:
            continue  # Gemma, Qwen and GLM have no such roles
        for token in [*listed, "".join(listed)]:
            messages, tools = PLACES[place](token)
            ids = encode(tokenizer, messages, assistant("Hello."), tools)
            assert control_ids(tokenizer, ids) == control_ids(tokenizer, plain), (token, ids)
        encoded += 1
    assert encoded >= 3


def test_what_is_no_text_of_the_user_is_kept(tokenizers):
    """Numbers, truth values, None and the order of keys; and a tools list that is not given."""
    tokenizer = tokenizers("qwen")
    arguments = {"z": 1, "a": [2.5, None, True, {"y": "a <|b"}], "é": {}}
    messages = [
        *user("<|a"),
        {"role": "assistant", "content": "", "tool_calls": [call("f", arguments)]},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": None}}}]
    base = make_tokenizer("qwen")
    for given in (None, tools):
        expected = base.apply_chat_template(messages, tools=given, tokenize=False).rstrip()
        assert render(tokenizer, messages[:1], messages[1:], given) == expected


@kinds
def test_plain_strings_that_look_like_control_tokens_stay_text(tokenizers, name):
    tokenizer = tokenizers(name)
    plain = control_ids(tokenizer, encode(tokenizer, "Hi", " Hello."))
    for token in (
        token.content for token in tokenizer.added_tokens_decoder.values() if token.special
    ):
        assert (
            control_ids(tokenizer, encode(tokenizer, f"{token}Hi", f"{token}Hello.{token}"))
            == plain
        )
        assert (
            control_ids(tokenizer, encode(tokenizer, f"Hi{token[:3]}", f"{token[3:]}Hello."))
            == plain
        )


@kinds
def test_plain_strings_have_one_bos_and_one_end(tokenizers, name):
    """Traps: training and scoring end differently; two BOS. This is `transcript: raw`."""
    tokenizer = tokenizers(name)
    prompt = "\n\nHuman: Hi\n\nAssistant:"
    ids = encode(tokenizer, prompt, " Hello.")
    first, end = (FIRST | {"tinyllama": "<s>"}).get(name), END[name]
    assert render(tokenizer, prompt, " Hello.") == f"{first or ''}{prompt} Hello.{end}"
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == end and control_ids(tokenizer, ids) == [
        tokenizer.convert_tokens_to_ids(token) for token in (first, end) if token
    ]


# --- The tokenizer on the disk --------------------------------------------------------------------

CONVERSATIONS = [
    (user("Name a river."), "The Rhine."),
    (TALK, "Elbe.\n\n- long\n- wide"),
    (user(""), "An answer to nothing"),
    (user("grüß 漢字 🙂 👩‍👩‍👧 \u200b\u202e"), "naïve – “quoted” ½ 🙂🙂"),
    (user("<s><|im_end|>[SEP]<|endoftext|>Ġwhat"), "</s>[PAD]<unk>Ġstop ▁a"),
    (user("  spaces \t and\n\nlines  "), "\tcode:\n    x = 1  "),
    (user("Count."), " ".join(map(str, range(3000)))),
]


@every
def test_preparing_twice_changes_nothing(tokenizers, name):
    tokenizer = tokenizers(name)
    before = tokenizer.chat_template, tokenizer.pad_token, encoder_facts(tokenizer)
    prepare_tokenizer(tokenizer, name == "encoder")
    assert before == (tokenizer.chat_template, tokenizer.pad_token, encoder_facts(tokenizer))


@every
def test_saved_and_loaded_it_encodes_the_same(tokenizers, name, tmp_path):
    """This holds for text that looks like the pad token, too.

    Loading makes the pad token a control token, even if it was an ordinary one.
    """
    tokenizer = tokenizers(name)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert encoder_facts(loaded) == encoder_facts(tokenizer)
    assert control_tokens(loaded) == control_tokens(tokenizer)
    for prompt, answer in [
        *CONVERSATIONS,
        (user(f"a{tokenizer.pad_token}b"), tokenizer.pad_token * 3),
    ]:
        assert encode(loaded, prompt, assistant(answer)) == encode(
            tokenizer, prompt, assistant(answer)
        )
        assert encode(loaded, prompt[0]["content"], answer) == encode(
            tokenizer, prompt[0]["content"], answer
        )
    prepare_tokenizer(loaded, name == "encoder")
    assert encoder_facts(loaded) == encoder_facts(tokenizer)


@every
def test_rl_trainers_compute_the_same_ids(tokenizers, name, tmp_path):
    """Trap: training and scoring end differently.

    TRL's GRPO renders a text, and tokenises it without special tokens.
    """
    tokenizers(name).save_pretrained(tmp_path)
    theirs = load_tokenizer(tmp_path)
    for prompt, answer in CONVERSATIONS:
        text = apply_chat_template({"messages": prompt + assistant(answer)}, theirs)["text"]
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == encode(tokenizers(name), prompt, assistant(answer))


@kinds
def test_the_generation_prompt_is_the_base_templates_own(tokenizers, name):
    """RL trainers render a prompt with it; nothing is trimmed or added there."""
    base = make_tokenizer(name)
    if base.chat_template:
        options = {"tokenize": False, "add_generation_prompt": True}
        expected = base.apply_chat_template(TALK, **options)
        assert tokenizers(name).apply_chat_template(TALK, **options) == expected


def test_tools_reach_the_template(tokenizers):
    tools = [
        {
            "type": "function",
            "function": {"name": "add_two", "description": "adds", "parameters": {}},
        }
    ]
    text = render(tokenizers("qwen"), user("3+4?"), assistant("Seven."), tools)
    assert "add_two" in text and text.endswith("Seven.<|im_end|>")
    assert "tools" not in render(tokenizers("qwen"), user("3+4?"), assistant("Seven."), [])


def test_tool_calls_without_content_are_rendered(tokenizers):
    call = {"type": "function", "function": {"name": "add_two", "arguments": {"a": 1}}}
    text = render(tokenizers("qwen"), user("3+4?"), [{"role": "assistant", "tool_calls": [call]}])
    assert '"add_two"' in text and text.endswith("<|im_end|>")


def test_facts_for_the_manifest(tokenizers):
    facts = encoder_facts(tokenizers("qwen"))
    assert (facts["end_token"], facts["end_token_id"], facts["pad_token"], facts["bos_token"]) == (
        "<|im_end|>",
        2,
        "<|endoftext|>",
        None,
    )
    assert (
        facts["vocab_size"] == 400
        and facts["probe_ids"][-1] == 2
        and len(facts["chat_template_sha256"]) == 64
    )


# --- Tokenizers without a way ---------------------------------------------------------------------


def test_named_templates_the_default_one_is_taken():
    tokenizer = make_tokenizer("qwen")
    tokenizer.chat_template = {"tool_use": "{{ 1 / 0 }}", "default": tokenizer.chat_template}
    prepare_tokenizer(tokenizer, False)
    assert encode(tokenizer, TALK, assistant("Elbe."))[-1] == 2


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(
        EncodingError, match="a slow tokenizer .ByT5Tokenizer. was loaded; a fast one"
    ):
        prepare_tokenizer(ByT5Tokenizer(), False)


def test_no_end_token_is_refused():
    tokenizer = make_tokenizer("base")
    tokenizer.eos_token = None
    with pytest.raises(
        EncodingError, match="does not end a turn with a control token.*Set eos_token"
    ):
        prepare_tokenizer(tokenizer, False)


def test_an_encoder_without_cls_is_refused():
    tokenizer = make_tokenizer("encoder")
    tokenizer.cls_token = None
    with pytest.raises(EncodingError, match="has no .CLS. and .SEP. tokens.*chat_template_path"):
        prepare_tokenizer(tokenizer, True)


def test_a_template_that_wrapping_would_change_is_refused():
    tokenizer = make_tokenizer("qwen")
    tokenizer.chat_template = "{{ 'a' if rm_given is defined else 'b' }}<|im_end|>"
    with pytest.raises(EncodingError, match="renders differently once wrapped"):
        prepare_tokenizer(tokenizer, False)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ raise_exception('cannot say ' ~ messages[1].content) }}", "cannot say ..."),
        ("{{ messages[9].content }}", "list object has no element 9"),
        ("{{ 'a' + messages[1].number }}", 'can only concatenate str (not "int") to str'),
        ("{{ messages[1].content.index('?') }}", "substring not found"),
        ("{{ messages[1].number // 0 }}", "integer division or modulo by zero"),
        ("{{ namespace(__class__=1) }}", "Chat templates cannot store underscore-prefixed"),
    ],
)
def test_a_conversation_that_the_template_refuses(broken, words):
    """The message is the template's own, and has no text of the row."""
    tokenizer = make_tokenizer("qwen")
    template = tokenizer.chat_template
    tokenizer.chat_template = (
        "{% if messages[1].number is defined %}" + broken + "{% endif %}" + template
    )
    prepare_tokenizer(tokenizer, False)
    refused = [{"role": "assistant", "content": "hunter2", "number": 3}]
    for completions in ([refused], [assistant("Elbe."), refused]):
        with pytest.raises(RefusedText) as caught:
            encode_within(tokenizer, user("Hi"), completions, 9, "truncate_prompt")
        message = str(caught.value)
        assert message.startswith(f"the chat template refuses this conversation: {words}")
        assert "hunter2" not in message
        assert caught.value.reason.startswith(f"refused by the chat template: {words}")
    with pytest.raises(RefusedText, match="the conversation has no message"):
        encode(tokenizer, [], [])


def test_a_message_that_the_template_leaves_out_in_silence_is_refused(tokenizers):
    """The reward was of a conversation without it."""
    narrator = [*user("Hi"), {"role": "narrator", "content": "It rains."}]
    with pytest.raises(RefusedText, match="leaves out messages of the role `narrator`") as caught:
        encode(tokenizers("real:qwen3"), narrator, assistant("Hello."))
    words = "refused by the chat template: it leaves out messages of the role `narrator`"
    assert caught.value.reason == words
    assert "It rains." in render(tokenizers("real:llama3_1"), narrator, assistant("Hello."))
    # The result of a tool: Qwen writes it, Phi-3 does not. A system text without words is no loss.
    call = {"type": "function", "function": {"name": "add_two", "arguments": {"a": 1}}}
    result = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    result = [*user("3+4?"), *result, {"role": "tool", "content": "7"}]
    assert "7" in render(tokenizers("real:qwen3"), result, assistant("Seven."))
    phi3 = make_tokenizer("qwen")
    phi3.chat_template = (TEMPLATES / "phi3.jinja").read_text(encoding="utf-8")
    prepare_tokenizer(phi3, False)
    result[1] = {"role": "assistant", "content": "add_two(3, 4)"}
    with pytest.raises(RefusedText, match="leaves out messages of the role `tool`"):
        render(phi3, result, assistant("Seven."))
    result[-1]["content"] = ""
    render(phi3, result, assistant("Seven."))
    # A text beside a call: Qwen writes both.
    says = [{"role": "assistant", "content": "I add them.", "tool_calls": [call]}]
    assert "I add them." in render(tokenizers("real:qwen3"), user("3+4?"), says)
    with pytest.raises(RefusedText, match="leaves out what a message says beside its tool calls"):
        render(tokenizers("real:llama3_1"), user("3+4?"), says)
    says[0]["content"] = "\n"  # no words are lost
    assert "add_two" in render(tokenizers("real:llama3_1"), user("3+4?"), says)


def test_tool_calls_that_the_template_leaves_out_are_refused(tokenizers):
    """The reward was of a turn without words."""
    says = [{"role": "assistant", "content": "I add.", "tool_calls": [call("add_two", {"a": 1})]}]
    with pytest.raises(RefusedText, match="leaves out the tools that a message calls") as caught:
        render(tokenizers("llama3"), user("3+4?"), says)
    words = "refused by the chat template: it leaves out the tools that a message calls"
    assert caught.value.reason == words
    assert "add_two" in render(tokenizers("real:qwen3"), user("3+4?"), says)


def with_template(name: str):
    tokenizer = make_tokenizer("qwen")
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


@pytest.mark.parametrize(
    "name, written",
    [
        ("qwen2_5", '{"name": "f", "arguments": {"city": "Rome", "days": 3}}'),
        ("qwen3", '{"name": "f", "arguments": {"city": "Rome", "days": 3}}'),
        ("qwen3_6", "<parameter=city>\nRome\n</parameter>"),
        ("deepseekv3", '{"city": "Rome", "days": 3}'),
    ],
)
def test_arguments_of_tool_calls_that_are_text(name, written):
    """OpenAI's form: Qwen2.5 wrote its JSON as a text in JSON, and Qwen3.5 refused the row."""
    arguments = {"city": "Rome", "days": 3}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call("f", json.dumps(arguments))]}
    ]
    foreign, ours = with_template(name), with_template(name)
    prepare_tokenizer(ours, False)
    for tokenizer in (foreign, ours):
        text = render(tokenizer, user("Is it warm?"), messages)
        assert written in text and "\\" not in text
        if name != "deepseekv3":  # which reads text alone
            as_mapping = [{**messages[0], "tool_calls": [call("f", arguments)]}]
            assert render(tokenizer, user("Is it warm?"), as_mapping) == text
    assert json.loads(messages[0]["tool_calls"][0]["function"]["arguments"]) == arguments


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("tools", [None, []])
def test_golden_texts_of_tool_calls_are_encoded_alike_by_stock_transformers(name, tools):
    """The run failed after its last step: the fresh process read the arguments as a text."""
    tokenizer = with_template(name)
    prepare_tokenizer(tokenizer, False)
    completion = [
        {"role": "assistant", "content": "", "tool_calls": [call("f", '{"city": "Rome"}')]}
    ]
    (ids,) = encode_each(tokenizer, user("Is it warm?"), [completion], tools)
    sides = {"prompt": user("Is it warm?"), "chosen": completion, "rejected": completion}
    row = {side: json.dumps(turns) for side, turns in sides.items()}
    row |= {"chosen_ids": ids, "rejected_ids": ids, "truncated": False}
    row["tools"] = None if tools is None else json.dumps(tools)
    for golden in golden_texts([row], tokenizer):
        assert encodes_alike(tokenizer, json.loads(json.dumps(golden))["text"], ids)


def test_arguments_that_are_text_stay_text_in_earlier_checkpoints():
    """Their ids do not move: Qwen2.5's template wrote such arguments as a text in JSON."""
    tokenizer = with_template("qwen2_5")
    prepare_tokenizer(tokenizer, False)
    messages = [{"role": "assistant", "content": "", "tool_calls": [call("f", '{"a": 1}')]}]
    tokenizer.chat_template = earlier_template(tokenizer)
    assert '"arguments": "{\\"a\\": 1}"' in render(tokenizer, user("Hi"), messages)
    for no_mapping in ("{", "[1]", ""):
        messages[0]["tool_calls"] = [call("f", no_mapping)]
        render(with_template("qwen2_5"), user("Hi"), messages)


def test_a_template_that_is_no_jinja_is_a_fault_of_the_checkpoint():
    tokenizer = make_tokenizer("qwen")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfro %}"
    with pytest.raises(EncodingError, match=r"not valid Jinja .line 2: .*endfro") as caught:
        encode(tokenizer, user("Hi"), assistant("Elbe."))
    assert not isinstance(caught.value, RefusedText)


@kinds
def test_the_pad_token_lies_inside_the_embedding(name):
    """Trap: a pad id that the embedding has no row for fails in the middle of a run."""
    tokenizer = make_tokenizer(name)
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    assert tokenizer.pad_token_id == size
    prepare_tokenizer(tokenizer, name == "encoder", size)
    assert tokenizer.pad_token_id < size
    never = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END[name])}
    assert tokenizer.pad_token_id not in never


# --- Over-long pairs ------------------------------------------------------------------------------


def kept_turns(tokenizer, ids) -> list[dict]:
    """The turns of a Qwen encoding."""
    text = tokenizer.decode(ids)
    turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", text, flags=re.DOTALL)
    assert text == "\n".join(f"<|im_start|>{role}\n{content}<|im_end|>" for role, content in turns)
    return [{"role": role, "content": content} for role, content in turns]


def test_within_the_limit_nothing_is_cut(tokenizers):
    tokenizer = tokenizers("qwen")
    completions = [assistant("Elbe."), assistant("Oder.")]
    ids = [encode(tokenizer, TALK, completion) for completion in completions]
    longest = max(map(len, ids))
    for limit, overlong in (
        (None, "drop"),
        (longest, "truncate_prompt"),
        (longest, "drop"),
        (longest, "error"),
    ):
        assert encode_within(tokenizer, TALK, completions, limit, overlong) == EncodedPrompt(
            ids, [False, False], False
        )


@pytest.mark.parametrize("overlong", ["drop", "error"])
def test_over_is_told_for_each_completion(tokenizers, overlong):
    """Trap: over-long pairs vanish."""
    tokenizer = tokenizers("qwen")
    completions = [assistant("Elbe."), assistant("Elbe. " * 50)]
    ids = [encode(tokenizer, TALK, completion) for completion in completions]
    assert encode_within(tokenizer, TALK, completions, len(ids[0]), overlong) == EncodedPrompt(
        ids, [False, True], False
    )


def test_the_oldest_words_go_first_and_roles_alternate(tokenizers):
    tokenizer = tokenizers("qwen")
    prompt = (
        SYSTEM
        + user("one two three four")
        + assistant("five six seven")
        + user("eight nine ten eleven")
    )
    completions = [assistant("a longer answer"), assistant("short")]
    whole = len(encode(tokenizer, prompt, completions[0]))
    seen = []
    for limit in range(whole, 0, -1):
        encoded = encode_within(tokenizer, prompt, completions, limit, "truncate_prompt")
        if any(encoded.too_long):
            break
        sides = [kept_turns(tokenizer, ids) for ids in encoded.ids]
        assert sides[0][:-1] == sides[1][:-1]
        assert [side[-1:] for side in sides] == completions
        assert max(map(len, encoded.ids)) <= limit
        assert encoded.prompt_cut == (limit < whole)
        seen.append([turn["content"] for turn in sides[0][1:-1]])
        assert sides[0][0] == SYSTEM[0]
    assert seen[0] == [turn["content"] for turn in prompt[1:]]
    assert len(seen[-1]) == 1
    assert "eight nine ten eleven".endswith(seen[-1][0]) and 0 < len(seen[-1][0]) <= 3
    assert {len(turns) for turns in seen} == {3, 1}
    assert [len("".join(turns)) for turns in seen] == sorted(
        (len("".join(turns)) for turns in seen), reverse=True
    )


@pytest.mark.parametrize("seed", range(20))
def test_truncation_of_random_conversations(tokenizers, seed):
    tokenizer = tokenizers("qwen")
    rng = random.Random(seed)
    letters = [*WORDS, "🙂", "漢字", "é", "👩‍👩‍👧", "\n", "x" * 30]

    def some_words(most):
        return " ".join(rng.choices(letters, k=rng.randint(0, most)))

    prompt = (SYSTEM if rng.random() < 0.5 else []) + user(some_words(30))
    for _ in range(rng.randint(0, 3)):
        prompt = prompt + assistant(some_words(20)) + user(some_words(30))
    completions = [assistant(some_words(20) or "x") for _ in range(rng.randint(1, 4))]
    whole = [encode(tokenizer, prompt, completion) for completion in completions]
    limit = rng.randint(30, max(map(len, whole)))
    encoded = encode_within(tokenizer, prompt, completions, limit, "truncate_prompt")
    alone = [
        encode_within(tokenizer, prompt, [completion], limit, "truncate_prompt").too_long[0]
        for completion in completions
    ]
    assert encoded.too_long == alone
    if any(encoded.too_long):
        assert [len(ids) > limit for ids in encoded.ids] == encoded.too_long
        assert encoded.prompt_cut == any(
            len(ids) > limit
            for ids, too_long in zip(whole, encoded.too_long, strict=True)
            if not too_long
        )
        return
    assert max(map(len, encoded.ids)) <= limit
    assert encoded.prompt_cut == (max(map(len, whole)) > limit)
    sides = [kept_turns(tokenizer, ids) for ids in encoded.ids]
    assert [side[-1:] for side in sides] == completions
    assert all(side[:-1] == sides[0][:-1] for side in sides)
    system, *kept = sides[0][:-1]
    assert system == kept_turns(tokenizer, whole[0])[0]  # the row's own, or the template's default
    assert [turn["role"] for turn in kept] == ["user", "assistant"] * (len(kept) // 2) + ["user"]
    assert kept[1:] == prompt[len(prompt) - len(kept) + 1 :]
    assert prompt[len(prompt) - len(kept)]["content"].endswith(kept[0]["content"])


def test_a_completion_is_never_cut(tokenizers):
    tokenizer = tokenizers("qwen")
    completions = [assistant("word " * 300), assistant("short")]
    encoded = encode_within(tokenizer, TALK, completions, 200, "truncate_prompt")
    assert encoded.too_long == [True, False]
    assert not encoded.prompt_cut


def test_a_completion_that_is_too_long_leaves_the_others_as_they_are_alone(tokenizers):
    """The last turn of the user must be cut for the short answer too, though not as far."""
    tokenizer = tokenizers("qwen")
    question = user(" ".join(["word"] * 60))
    completions = [assistant("word " * length) for length in (45, 200, 30)]
    alone = len(encode(tokenizer, question, completions[0]))
    limit = alone - 15
    encoded = encode_within(tokenizer, question, completions, limit, "truncate_prompt")
    assert encoded.too_long == [False, True, False]
    assert encoded.prompt_cut
    pair = [completions[0], completions[2]]
    without = encode_within(tokenizer, question, pair, limit, "truncate_prompt")
    assert [encoded.ids[0], encoded.ids[2]] == without.ids
    assert len(encoded.ids[0]) == limit


def test_characters_of_several_tokens_are_cut_as_a_whole(tokenizers):
    """A byte-level tokenizer gives an emoji four tokens with one place in the text."""
    tokenizer = tokenizers("qwen")
    prompt, completion = user("🙂" * 20), assistant("fine")
    whole = len(encode(tokenizer, prompt, completion))
    for limit in range(whole - 1, whole - 12, -1):
        encoded = encode_within(tokenizer, prompt, [completion], limit, "truncate_prompt")
        (ids,) = encoded.ids
        assert len(ids) <= limit
        assert encoded.too_long == [False]
        assert encoded.prompt_cut
        assert set(kept_turns(tokenizer, ids)[1]["content"]) == {"🙂"}


@kinds
def test_plain_strings_are_cut_at_the_start(tokenizers, name):
    tokenizer = tokenizers(name)
    prompt, completions = " ".join(WORDS), [" a good idea", " no"]
    limit = len(encode(tokenizer, prompt, completions[0])) // 2
    encoded = encode_within(tokenizer, prompt, completions, limit, "truncate_prompt")
    ids = encoded.ids
    assert encoded.too_long == [False, False]
    assert encoded.prompt_cut
    assert limit - 3 <= max(map(len, ids)) <= limit
    first, end = (FIRST | {"tinyllama": "<s>"}).get(name), END[name]
    cut = tokenizer.decode(ids[0]).replace(" ", "")
    assert cut.endswith(f"thankyouforaskingpleasestopagoodidea{end}") and cut.startswith(
        first or cut[0]
    )
    assert control_ids(tokenizer, ids[0]) == [
        tokenizer.convert_tokens_to_ids(t) for t in (first, end) if t
    ]
    encoded = encode_within(tokenizer, prompt, completions, 2, "truncate_prompt")
    assert any(encoded.too_long)
    assert encoded.prompt_cut == (not all(encoded.too_long))


def test_tool_turns_without_text_can_be_cut(tokenizers):
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    prompt = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "7 " * 200},
        *user("So?"),
    ]
    tokenizer = tokenizers("qwen")
    encoded = encode_within(tokenizer, prompt, [assistant("7")], 100, "truncate_prompt")
    assert encoded.too_long == [False]
    assert encoded.prompt_cut
    turns = kept_turns(tokenizer, encoded.ids[0])
    assert [turn["content"] for turn in turns][1:] == ["So?", "7"]


def test_a_completion_that_is_too_long_takes_nothing_from_the_others(standin):
    """A completion that is too long by itself changes no other completion's ids.

    The prompt is cut so that the others fit.
    """
    tokenizer = load_tokenizer(standin("qwen"))
    prepare_tokenizer(tokenizer, is_encoder=False)
    prompt = [{"role": "user", "content": "tea " * 30}, {"role": "assistant", "content": "yes"}]
    prompt += [{"role": "user", "content": "why"}]
    short, long = ([{"role": "assistant", "content": text}] for text in ("tea", "coffee " * 300))
    for limit, is_cut in ((200, False), (150, True)):
        short_alone = encode_within(tokenizer, prompt, [short], limit, "truncate_prompt")
        both = encode_within(tokenizer, prompt, [long, short], limit, "truncate_prompt")
        assert both.too_long == [True, False]
        assert both.ids[1] == short_alone.ids[0]
        assert both.prompt_cut == is_cut
        assert short_alone.prompt_cut == is_cut
