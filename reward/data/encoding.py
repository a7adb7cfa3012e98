"""The one way from text to token ids: `ids = encode(tokenizer, prompt, completion)`.

Encode = the checkpoint's chat template rendered to text, then tokenised with `add_special_tokens=False`, exactly as
TRL's RL trainers do it (`GRPOTrainer._calculate_rewards`). Whatever must hold for a reward to mean the same thing at
training, scoring and serving time is therefore written into the template that is saved with the model
(`prepare_tokenizer`): the end token comes last, at most one BOS comes first, and user text that looks like a control
token stays text.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from itertools import islice

# Wrapped around the base model's own template. `rm_control` lists the tokenizer's control tokens.
WRAPPER_HEAD = """\
{%- set rm_control = CONTROL_TOKENS -%}
{%- set rm_ns = namespace(messages=[], text='') -%}
{%- for rm_message in messages -%}
{%- if rm_message.content is string -%}
{%- set rm_ns.text = rm_message.content -%}
{%- for rm_token in rm_control -%}
{%- if rm_token in rm_ns.text -%}
{%- set rm_ns.text = rm_ns.text.replace(rm_token, rm_token[0] ~ ' ' ~ rm_token[1:]) -%}
{%- endif -%}
{%- endfor -%}
{%- set rm_ns.messages = rm_ns.messages + [dict(rm_message, content=rm_ns.text)] -%}
{%- else -%}
{%- set rm_ns.messages = rm_ns.messages + [rm_message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = rm_ns.messages -%}
{%- set rm_text -%}{{ '' }}"""


WRAPPER_TAIL = """\
{%- endset -%}
{%- if add_generation_prompt -%}{{ rm_text }}{%- else -%}{{ rm_text.rstrip() }}END_TOKEN{%- endif -%}"""


# Models without a template. Encoders: [CLS] turn [SEP] turn [SEP] ... answer [SEP], the sentence-pair layout they were
# pretrained on. Decoders: the HH-RLHF transcript (arXiv 2204.05862).
ENCODER_TEMPLATE = "CLS_TOKEN{% for m in messages %}{{ m.content }}SEP_TOKEN{% endfor %}"


TRANSCRIPT_TEMPLATE = (
    "BOS_TOKEN{% for m in messages %}"
    "{{ '\\n\\n' ~ {'user': 'Human', 'assistant': 'Assistant', 'system': 'System'}.get(m.role, m.role) ~ ': ' }}"
    "{{ m.content }}{% endfor %}"
)


TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


FROZEN_DATE = date(2024, 7, 26)  # what Llama 3.1's template falls back to


PROBE = [
    {"role": "user", "content": "What is two and two?"},
    {"role": "assistant", "content": "Four."},
]


class EncodingError(ValueError):
    """The tokenizer or its template cannot give a well-formed encoding; the message says what to change."""


# ---------------------------------------------------------------------------------------------- the saved tokenizer


def prepare_tokenizer(tokenizer, is_encoder: bool) -> None:
    """Write into `tokenizer` (in place) the chat template and the pad token that the reward model is saved with.

    `is_encoder`: a BERT-like model read at [CLS]. Repeating the call changes nothing. Raises EncodingError where the
    template renders no end token and the tokenizer has none, or where it starts with two BOS tokens.
    """
    if not tokenizer.is_fast:
        raise EncodingError(
            f"{tokenizer.name_or_path}: a slow tokenizer ({type(tokenizer).__name__}) was loaded; a fast one "
            "(tokenizer.json) is needed to count and cut tokens. Install the package that converts it (sentencepiece) "
            "or pick a checkpoint that ships tokenizer.json."
        )
    template = tokenizer.chat_template
    if isinstance(
        template, dict
    ):  # several named templates: the default one is what an RL trainer will use
        template = template.get("default")
    if not template:
        template = _default_template(tokenizer, is_encoder)
    if "rm_text" not in template:
        template = _wrap(tokenizer, template)
    tokenizer.chat_template = template

    ids = _tokenise(tokenizer, tokenizer.apply_chat_template(PROBE, tokenize=False))
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        raise EncodingError(
            f"{tokenizer.name_or_path}: the chat template renders two BOS tokens ({tokenizer.bos_token!r}); remove one "
            "from the template and name the mended file as chat_template_path."
        )
    tokenizer.pad_token = choose_pad_token(tokenizer, end_id=ids[-1])
    tokenizer.padding_side = "right"


def choose_pad_token(tokenizer, end_id: int) -> str:
    """An existing token that never comes last, so that no pooling by "last token that is not pad" reads one too early.

    With pad = eos (TRL's fallback, and the usual tutorial line) the reward is read one token before the end and the
    end token is never seen: RLHFlow/RLHF-Reward-Modeling#49, huggingface/transformers#35352. The embedding matrix is
    never resized: under LoRA that would put all of it into the adapter.
    """
    never = {end_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    candidates = [tokenizer.pad_token] if tokenizer.pad_token else []
    candidates += [
        t for t in special if "pad" in t.lower() and "vision" not in t and "fim" not in t
    ]
    candidates += [t for t in special if "reserved" in t] + [
        t for t in special if "pad" in t.lower()
    ]
    candidates += [tokenizer.unk_token] if tokenizer.unk_token else []
    # GPT-2 has one special token for everything. An ordinary token will do, for the end token always comes last; it is
    # one that starts with a space (written as a mark), for from_pretrained will cut it out of text that looks like it.
    ordinary = (tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer) - 1, -1, -1))
    candidates += special + list(islice((token for token in ordinary if token[0] in "Ġ▁"), 4))
    for token in candidates:
        if tokenizer.convert_tokens_to_ids(token) not in never:
            return token
    raise EncodingError(
        f"{tokenizer.name_or_path}: every candidate for a pad token is also the end or BOS token."
    )


def control_tokens(tokenizer) -> list[str]:
    """The strings that the tokenizer reads as control tokens, longest first."""
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens |= (
        {tokenizer.pad_token} if tokenizer.pad_token else set()
    )  # becomes one when it is saved and loaded
    return sorted((t for t in tokens if len(t) > 1), key=lambda t: (-len(t), t))


def encoder_facts(tokenizer) -> dict:
    """What decides an encoding, for the manifest: template hash, end, pad and BOS tokens, vocabulary size."""
    ids = (
        _tokenise(tokenizer, tokenizer.apply_chat_template(PROBE, tokenize=False))
        if tokenizer.chat_template
        else []
    )
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": len(tokenizer),
        "chat_template_sha256": hashlib.sha256(
            (tokenizer.chat_template or "").encode()
        ).hexdigest(),
        "end_token": tokenizer.convert_ids_to_tokens(ids[-1]) if ids else None,
        "end_token_id": ids[-1] if ids else None,
        "pad_token": tokenizer.pad_token,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token": tokenizer.bos_token,
        "probe_ids": ids,
    }


def _default_template(tokenizer, is_encoder: bool) -> str:
    if is_encoder:
        if tokenizer.cls_token is None or tokenizer.sep_token is None:
            raise EncodingError(
                f"{tokenizer.name_or_path}: an encoder without a chat template, and its tokenizer has no [CLS] and "
                "[SEP] tokens. Name a template of your own as chat_template_path."
            )
        return ENCODER_TEMPLATE.replace("CLS_TOKEN", tokenizer.cls_token).replace(
            "SEP_TOKEN", tokenizer.sep_token
        )
    return TRANSCRIPT_TEMPLATE.replace("BOS_TOKEN", _first_token(tokenizer))


def _wrap(tokenizer, template: str) -> str:
    """The template with control tokens in user text defused, its trailing whitespace cut and the end token last."""
    # Llama 3.2 and gpt-oss write today's date into the prompt, and rewards would change from day to day.
    template = TODAY.sub(lambda call: json.dumps(FROZEN_DATE.strftime(call[2])), template)
    tokenizer.chat_template = template
    before = tokenizer.apply_chat_template(PROBE, tokenize=False).rstrip()
    last = _tokenise(tokenizer, before)[-1]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    end = "" if last in special else tokenizer.eos_token
    if end is None:
        raise EncodingError(
            f"{tokenizer.name_or_path}: the chat template does not end a turn with a control token, and the tokenizer "
            "has no eos token to end it with. Set eos_token in the recipe to a token that ends an answer."
        )
    end_id = tokenizer.convert_tokens_to_ids(end) if end else last
    tokenizer.pad_token = choose_pad_token(
        tokenizer, end_id
    )  # before the control tokens are listed: it is one
    head = WRAPPER_HEAD.replace(
        "CONTROL_TOKENS", json.dumps(control_tokens(tokenizer), ensure_ascii=False)
    )
    tokenizer.chat_template = head + template + WRAPPER_TAIL.replace("END_TOKEN", end)
    after = tokenizer.apply_chat_template(PROBE, tokenize=False)
    if after != before + end:
        raise EncodingError(
            f"{tokenizer.name_or_path}: the chat template renders differently once wrapped ({after!r} instead of "
            f"{before + end!r}). Name a plainer template as chat_template_path."
        )
    return tokenizer.chat_template


def _first_token(tokenizer) -> str:
    """The BOS or [CLS] that the tokenizer puts in front by itself; "" where it does not."""
    first = tokenizer("a")["input_ids"][0]
    return next(
        (
            token
            for token in (tokenizer.bos_token, tokenizer.cls_token)
            if token and tokenizer.convert_tokens_to_ids(token) == first
        ),
        "",
    )


def _tokenise(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# ------------------------------------------------------------------------------------------------ text -> token ids


def render(tokenizer, prompt, completion, tools=None) -> str:
    """The text that is tokenised. Messages go through the chat template; plain strings are kept as they are, with one
    BOS (or [CLS]) in front where the tokenizer adds one, and the eos token (or [SEP]) at the end."""
    if isinstance(prompt, str):
        text = prompt + completion
        for token in control_tokens(tokenizer):
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return _first_token(tokenizer) + text + (tokenizer.eos_token or tokenizer.sep_token or "")
    return tokenizer.apply_chat_template(prompt + completion, tools=tools or None, tokenize=False)


def encode(tokenizer, prompt, completion, tools=None) -> list[int]:
    """Token ids of `prompt + completion` (two message lists, or two strings). Raises EncodingError on a double BOS."""
    return encode_each(tokenizer, prompt, [completion], tools)[0]


def encode_each(tokenizer, prompt, completions, tools=None) -> list[list[int]]:
    """`encode` of every completion; what they share up to the last control token is tokenised once."""
    texts = [render(tokenizer, prompt, completion, tools) for completion in completions]
    start = _last_control_token(tokenizer, os.path.commonprefix(texts)) if len(texts) > 1 else 0
    head = [texts[0][:start]] if start else []
    pieces = tokenizer(head + [text[start:] for text in texts], add_special_tokens=False)[
        "input_ids"
    ]
    encoded = [pieces[0] + rest for rest in pieces[1:]] if start else pieces
    if tokenizer.bos_token_id is not None and any(
        ids[:2] == [tokenizer.bos_token_id] * 2 for ids in encoded
    ):
        raise EncodingError(
            f"two BOS tokens ({tokenizer.bos_token!r}) at the start of an encoding; one is needed"
        )
    return encoded


def _last_control_token(tokenizer, text: str) -> int:
    """Where the last control token of a text begins; 0 where it has none. Tokenizers cut a text at control tokens first, so
    that what stands before one and what begins with it are tokenised alike alone and together."""
    starts = [match.start() for match in _control_pattern(tokenizer).finditer(text)]
    return starts[-1] if starts else 0


@lru_cache(maxsize=8)
def _control_pattern(tokenizer) -> re.Pattern:
    # One with `lstrip` ([MASK]) takes the spaces before it along.
    tokens = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special and not token.lstrip
    }
    longest_first = sorted(
        (token for token in tokens if len(token) > 1), key=lambda token: (-len(token), token)
    )
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


@dataclass(frozen=True)
class EncodedPrompt:
    """The completions of one prompt, encoded under a length limit; one entry a completion in each list."""

    ids: list[list[int]]  # token ids of prompt + completion
    too_long: list[
        bool
    ]  # longer than the limit, under truncate_prompt also without any prompt left to cut
    prompt_cut: (
        bool  # whether the oldest part of the prompt was left out, for all completions alike
    )


def encode_within(
    tokenizer,
    prompt: str | list[dict],
    completions: list,
    max_length: int | None,
    overlong: str,
    tools: list | None = None,
) -> EncodedPrompt:
    """Encode every completion of one prompt under a length limit.

    Args:
        tokenizer: The reward model's tokenizer, as prepare_tokenizer leaves it.
        prompt: Messages or a string.
        completions: Each one in the form of the prompt.
        max_length: The limit in tokens; None for no limit.
        overlong: `truncate_prompt` leaves out the oldest part of the prompt, the same for all completions. With `drop`
            and `error` nothing is cut. A completion is never cut.
        tools: What the template shows the model of its tools.
    """
    ids = encode_each(tokenizer, prompt, completions, tools)
    over = [max_length is not None and len(i) > max_length for i in ids]
    if not any(over) or overlong != "truncate_prompt":
        return EncodedPrompt(ids, over, prompt_cut=False)
    shorter = prompt
    while (excess := max(map(len, ids)) - max_length) > 0:
        shorter = _cut_oldest(tokenizer, shorter, excess)
        if (
            shorter is None
        ):  # a completion alone is too long; the others keep as much of the prompt as fits them
            over = [len(i) > max_length for i in ids]
            fit = [
                completion
                for completion, too_long in zip(completions, over, strict=True)
                if not too_long
            ]
            if not fit:
                return EncodedPrompt(ids, over, prompt_cut=False)
            fitted = encode_within(tokenizer, prompt, fit, max_length, overlong, tools)
            rest = iter(fitted.ids)
            return EncodedPrompt(
                [i if too_long else next(rest) for i, too_long in zip(ids, over, strict=True)],
                over,
                fitted.prompt_cut,
            )
        ids = encode_each(tokenizer, shorter, completions, tools)
    return EncodedPrompt(ids, [False] * len(ids), prompt_cut=True)


def _cut_oldest(tokenizer, prompt, excess: int):
    """`prompt` without its oldest `excess` tokens or oldest exchange; None where nothing is left to cut."""
    if isinstance(prompt, str):
        return _cut_text(tokenizer, prompt, excess) if prompt else None
    first = next((i for i, m in enumerate(prompt) if m["role"] != "system"), None)
    if first is None:
        return None
    rest = _cut_text(tokenizer, prompt[first].get("content") or "", excess)
    if rest:
        return [*prompt[:first], {**prompt[first], "content": rest}, *prompt[first + 1 :]]
    # The message is used up: go on with the next user turn, so that roles still alternate.
    following = next(
        (i for i in range(first + 1, len(prompt)) if prompt[i]["role"] == "user"), None
    )
    if following is not None:
        return prompt[:first] + prompt[following:]
    return None


def _cut_text(tokenizer, text: str, excess: int) -> str:
    """`text` without its first `excess` tokens; a character of several tokens (an emoji) goes as a whole."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    cut = next(
        (start for start, _ in offsets[excess:] if start >= offsets[excess - 1][1]), len(text)
    )
    return text[cut:]
