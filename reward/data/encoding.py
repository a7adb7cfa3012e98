"""The one way from text to token ids: `ids = encode(tokenizer, prompt, completion)`.

The chat template of the checkpoint renders a conversation to text, and the text is tokenised with
`add_special_tokens=False`, exactly as TRL's RL trainers do it (`GRPOTrainer._calculate_rewards`).
Whatever must hold for a reward to mean the same thing at training, scoring and serving time is
therefore written into the template that is saved with the model (`prepare_tokenizer`): the end
token comes last, at most one BOS comes first, and user text that looks like a control token stays
text.
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from array import array
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from jinja2 import Environment, TemplateError, TemplateSyntaxError

from reward.data.columns import name_in_words
from reward.data.control_tokens import ControlTokens, read_control_tokens
from reward.data.time_limit import OutOfTime, time_limit
from reward.data.tool_calls import (
    ARGUMENTS,
    PROBE_CALL,
    functions_called,
    has_arguments_as_text,
    with_functions,
    with_mappings,
)
from reward.data.transcripts import Messages, Side

if TYPE_CHECKING:  # only for the annotations: the import takes seconds
    from transformers import PreTrainedTokenizerBase

# --- The templates --------------------------------------------------------------------------------

# The saved template is the head that parts control tokens (reward/data/control_tokens.py),
# TEXT_START, the base model's own template, and WRAPPER_TAIL. A checkpoint is known by the hash of
# its template. `rm_text` marks a template of ours.
TEXT_START = "{%- set rm_text -%}{{ '' }}"

# It stands before TEXT_START if the base model's template reads the arguments of tool calls as
# mappings, and if the model was trained so. Templates of earlier commits lack it: there, arguments
# that are text stay text.
MAPPINGS_MARK = "{#- rm_calls: arguments are mappings -#}"

# A prompt for generation is left as the base model's template renders it. Of a whole conversation
# the trailing whitespace is cut (templates end in a newline), and the end token is added where the
# template does not end in a control token already.
WRAPPER_TAIL = """\
{%- endset -%}
{%- if add_generation_prompt -%}{{ rm_text }}{%- else -%}\
{{ rm_text.rstrip() }}END_TOKEN{%- endif -%}"""

# For encoders without a template: [CLS] turn [SEP] turn [SEP] ... answer [SEP], the sentence-pair
# layout that they were pretrained on.
ENCODER_TEMPLATE = "CLS_TOKEN{% for m in messages %}{{ m.content }}SEP_TOKEN{% endfor %}"

# The same for those that were pretrained with two [SEP] between sentences (RoBERTa).
TWO_SEPARATORS_TEMPLATE = (
    "CLS_TOKEN{% for m in messages %}{{ m.content }}SEP_TOKEN"
    "{% if not loop.last %}SEP_TOKEN{% endif %}{% endfor %}"
)

# For causal models without a template: the transcripts of HH-RLHF (arXiv 2204.05862).
TRANSCRIPT_TEMPLATE = (
    "BOS_TOKEN{% for m in messages %}"
    "{{ '\\n\\n' ~ {'user': 'Human', 'assistant': 'Assistant', 'system': 'System'}"
    ".get(m.role, m.role) ~ ': ' }}"
    "{{ m.content }}{% endfor %}"
)

# Llama 3.2 and gpt-oss write today's date into the prompt, and rewards would change from day to
# day. The saved template has a fixed date instead: the one that Llama 3.1's template falls back to.
TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
FROZEN_DATE = date(2024, 7, 26)

# The conversation that a template is tried out on. The manifest stores its ids.
PROBE = [
    {"role": "user", "content": "What is two and two?"},
    {"role": "assistant", "content": "Four."},
]


# What a template raises for a conversation: raise_exception and undefined names give a
# TemplateError, and expressions on values that the template does not expect give the others.
RENDERING_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
RENDER_SECONDS = 5.0  # of computing, for the completions of one prompt; usual is a millisecond
LONGEST_TEXT = 2_000_000  # characters that are encoded: 0.2 to 0.5 KB of memory and 2 us for each
SHORTEST_QUOTED = 6  # a content of fewer characters may be a word of the template's own sentence


class EncodingError(ValueError):
    """The tokenizer or its template gives no well-formed encoding. The message says what to do."""


class RefusedText(EncodingError):
    """This one conversation cannot be encoded; others can. The message has no text of the row.

    Args:
        message: The sentence of the error.
        reason: The reason under which such rows are counted; the sentence itself if it is None.
    """

    def __init__(self, message: str, reason: str | None = None):
        super().__init__(message)
        self.reason = reason or message


class EncoderFacts(TypedDict):
    """What decides an encoding. The manifest of a checkpoint stores it."""

    tokenizer_class: str
    vocab_size: int  # with the added tokens
    chat_template_sha256: str  # hexadecimal; of the empty string if there is no template
    end_token: str | None  # the last token of PROBE; None if there is no template
    end_token_id: int | None
    pad_token: str | None
    pad_token_id: int | None
    bos_token: str | None
    probe_ids: list[int]  # PROBE encoded; empty if there is no template


# --- The saved tokenizer --------------------------------------------------------------------------


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, is_encoder: bool, embedding_size: int | None = None
) -> None:
    """Set the chat template and the pad token that the reward model is saved with.

    Repeating the call changes nothing.

    Args:
        tokenizer: The base model's tokenizer; it is changed in place.
        is_encoder: Whether the model is BERT-like, with the reward read at [CLS].
        embedding_size: The number of token ids that the model has a vector for. The pad token's id
            is below it. None if it is not known.

    Raises:
        EncodingError: The tokenizer is a slow one, its template starts with two BOS tokens, or the
            template renders no end token and the tokenizer has none.
    """
    if not tokenizer.is_fast:
        raise EncodingError(
            f"{tokenizer.name_or_path}: a slow tokenizer ({type(tokenizer).__name__}) was loaded; "
            "a fast one (tokenizer.json) is needed to count and cut tokens. Install the package "
            "that converts it (sentencepiece) or pick a checkpoint that ships tokenizer.json."
        )
    template = tokenizer.chat_template
    if isinstance(template, dict):
        # Of several named templates the default one is what an RL trainer will use.
        template = template.get("default")
    if not template:
        template = _default_template(tokenizer, is_encoder)
    if "rm_text" not in template:
        template = _wrap(tokenizer, template, embedding_size)
    tokenizer.chat_template = template

    ids = _probe_ids(tokenizer)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise EncodingError(
            f"{tokenizer.name_or_path}: the chat template renders two BOS tokens "
            f"({tokenizer.bos_token!r}); remove one from the template and name the mended file as "
            "chat_template_path."
        )
    tokenizer.pad_token = choose_pad_token(tokenizer, ids[-1], embedding_size)
    tokenizer.padding_side = "right"


def choose_pad_token(
    tokenizer: PreTrainedTokenizerBase, end_id: int, embedding_size: int | None = None
) -> str:
    """Choose an existing token that never comes last in an encoding.

    Stock models read the reward at the last token that is not the pad token. With pad = eos (TRL's
    fallback, and the usual line of tutorials) that is one token before the end, and the end token
    is never seen: RLHFlow/RLHF-Reward-Modeling#49, huggingface/transformers#35352. No token is
    added, since the embedding matrix is never resized: under LoRA that would put all of it into the
    adapter.

    Args:
        tokenizer: The tokenizer to choose from.
        end_id: The id of the token that ends every encoding.
        embedding_size: As in `prepare_tokenizer`.

    Raises:
        EncodingError: Every candidate is the end or BOS token, or outside the embedding.
    """
    if embedding_size is None:
        embedding_size = len(tokenizer)
    never_pad = {end_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    for token in _pad_candidates(tokenizer, embedding_size):
        token_id = tokenizer.convert_tokens_to_ids(token)
        if token_id not in never_pad and token_id < embedding_size:
            return token
    raise EncodingError(
        f"{tokenizer.name_or_path}: every candidate for a pad token is the end or BOS token, or "
        f"its id is not below {embedding_size}, the number of the model's token embeddings."
    )


def _pad_candidates(tokenizer: PreTrainedTokenizerBase, embedding_size: int) -> list[str]:
    """Tokens that could be the pad token, the best one first."""
    special = _special_tokens(tokenizer)
    named_pad = [token for token in special if "pad" in token.lower()]
    candidates = []
    if tokenizer.pad_token:
        candidates.append(tokenizer.pad_token)
    # The pads of images and of fill-in-the-middle have a use of their own, so they come later.
    candidates += [token for token in named_pad if "vision" not in token and "fim" not in token]
    candidates += [token for token in special if "reserved" in token]
    candidates += named_pad
    if tokenizer.unk_token:
        candidates.append(tokenizer.unk_token)
    candidates += special
    candidates += _last_words(tokenizer, embedding_size, count=4)
    return candidates


def _last_words(tokenizer: PreTrainedTokenizerBase, embedding_size: int, count: int) -> list[str]:
    """The last tokens of the vocabulary that start with a space, which is written as Ġ or ▁.

    GPT-2 has one special token for everything, so an ordinary token must pad. It can, because the
    end token always comes last. A pad token becomes a control token when the tokenizer is saved and
    loaded, and its text is then parted wherever a user writes it: hardly anybody writes Ġ or ▁.
    """
    words: list[str] = []
    for token_id in reversed(range(min(len(tokenizer), embedding_size))):
        if len(words) == count:
            break
        token = tokenizer.convert_ids_to_tokens(token_id)
        if token[0] in "Ġ▁":
            words.append(token)
    return words


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """The strings that the tokenizer reads as control tokens."""
    tokens = set(_special_tokens(tokenizer))
    if tokenizer.pad_token:
        tokens.add(tokenizer.pad_token)  # becomes one when the tokenizer is saved and loaded
    return read_control_tokens(tokens)


def encoder_facts(tokenizer: PreTrainedTokenizerBase) -> EncoderFacts:
    """The facts that decide an encoding, for the manifest."""
    template = tokenizer.chat_template or ""
    ids: list[int] = []
    end_token = end_token_id = None
    if template:
        ids = _probe_ids(tokenizer)
    if ids:
        end_token_id = ids[-1]
        end_token = tokenizer.convert_ids_to_tokens(end_token_id)
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": len(tokenizer),
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "end_token": end_token,
        "end_token_id": end_token_id,
        "pad_token": tokenizer.pad_token,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token": tokenizer.bos_token,
        "probe_ids": ids,
    }


def differing_facts(
    tokenizer: PreTrainedTokenizerBase, base_tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Names of the facts that an RL trainer would get wrong if it used the base's tokenizer.

    These are the template, the end token and the pad token, as `encoder_facts` names them.
    """
    ours = encoder_facts(tokenizer)
    theirs = encoder_facts(base_tokenizer)
    names = ("chat_template_sha256", "end_token_id", "pad_token_id")
    return [name for name in names if ours[name] != theirs[name]]


def layout_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template from where a conversation is laid out on.

    What a saved template has before, to part control tokens, was written in another way in
    checkpoints of earlier commits.
    """
    before, start, layout = tokenizer.chat_template.partition(TEXT_START)
    if start:
        return layout
    return before


def _default_template(tokenizer: PreTrainedTokenizerBase, is_encoder: bool) -> str:
    """The chat template for a model that ships without one."""
    if not is_encoder:
        return TRANSCRIPT_TEMPLATE.replace("BOS_TOKEN", first_token(tokenizer))
    if tokenizer.cls_token is None or tokenizer.sep_token is None:
        raise EncodingError(
            f"{tokenizer.name_or_path}: an encoder without a chat template, and its tokenizer has "
            "no [CLS] and [SEP] tokens. Name a template of your own as chat_template_path."
        )
    template = ENCODER_TEMPLATE
    pair_ids = tokenizer("a", "a")["input_ids"]
    if pair_ids.count(tokenizer.sep_token_id) == 3:
        template = TWO_SEPARATORS_TEMPLATE
    template = template.replace("CLS_TOKEN", tokenizer.cls_token)
    return template.replace("SEP_TOKEN", tokenizer.sep_token)


def _wrap(tokenizer: PreTrainedTokenizerBase, template: str, embedding_size: int | None) -> str:
    """Wrap a template so that it keeps the promises of this module, and return it.

    Control tokens in user text are parted, trailing whitespace is cut, and the end token comes
    last. The tokenizer's template and its pad token are set as well.
    """
    template = TODAY.sub(_frozen_date, template)
    tokenizer.chat_template = template
    rendered = _render_probe(tokenizer).rstrip()
    end_id = _tokenise(tokenizer, rendered)[-1]
    added_end = ""
    last_token = tokenizer.added_tokens_decoder.get(end_id)
    if last_token is None or not last_token.special:
        added_end = tokenizer.eos_token
        if added_end is None:
            raise EncodingError(
                f"{tokenizer.name_or_path}: the chat template does not end a turn with a control "
                "token, and the tokenizer has no eos token to end it with. Set eos_token in the "
                "recipe to a token that ends an answer."
            )
        end_id = tokenizer.convert_tokens_to_ids(added_end)

    # The pad token comes before the list of control tokens, because it is one of them.
    tokenizer.pad_token = choose_pad_token(tokenizer, end_id, embedding_size)
    head = control_tokens(tokenizer).template_head()
    if _wants_mappings(tokenizer, template):
        head += MAPPINGS_MARK
    head += TEXT_START
    tail = WRAPPER_TAIL.replace("END_TOKEN", added_end)
    tokenizer.chat_template = head + template + tail

    rendered_wrapped = _render_probe(tokenizer)
    if rendered_wrapped != rendered + added_end:
        raise EncodingError(
            f"{tokenizer.name_or_path}: the chat template renders differently once wrapped "
            f"({rendered_wrapped!r} instead of {rendered + added_end!r}). Name a plainer template "
            "as chat_template_path."
        )
    return tokenizer.chat_template


def _frozen_date(call: re.Match) -> str:
    """FROZEN_DATE in the format that a call to `strftime_now` asks for, as a string of Jinja."""
    return json.dumps(FROZEN_DATE.strftime(call[2]))


def first_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The BOS or [CLS] that the tokenizer puts in front by itself; "" if it puts none."""
    first_id = tokenizer("a")["input_ids"][0]
    for token in (tokenizer.bos_token, tokenizer.cls_token):
        if token and tokenizer.convert_tokens_to_ids(token) == first_id:
            return token
    return ""


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The control tokens that the tokenizer lists as special, in the order of their ids."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _render_probe(tokenizer: PreTrainedTokenizerBase) -> str:
    return _render_messages(tokenizer, [PROBE], tools=None)[0]


def _probe_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return _tokenise(tokenizer, _render_probe(tokenizer))


def _tokenise(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """`tokenizer(text, add_special_tokens=False)["input_ids"]`, in half the time."""
    if not tokenizer.is_fast:
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    try:
        (encoding,) = backend.encode_batch_fast([text], add_special_tokens=False)
    except Exception as error:  # the package tokenizers raises nothing more specific
        raise EncodingError(
            f"{tokenizer.name_or_path}: its tokenizer cannot encode a text ({error}); copy the "
            "tokenizer's files of the model that it was trained from again"
        ) from None
    return encoding.ids


# --- Text -> token ids ----------------------------------------------------------------------------


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Side,
    completion: Side,
    tools: list[dict] | None = None,
) -> str:
    """The text that is tokenised.

    Messages go through the chat template. Plain strings get the eos token (or [SEP]) at the end,
    and one BOS (or [CLS]) in front if the tokenizer adds one; control tokens in them are parted.

    Args:
        tokenizer: The reward model's tokenizer, as `prepare_tokenizer` leaves it.
        prompt: Messages or a string.
        completion: Messages or a string, as the prompt is.
        tools: The functions that the assistant may call, for the chat template.

    Raises:
        RefusedText: The chat template raises an error for these messages.
    """
    return render_each(tokenizer, prompt, [completion], tools)[0]


def render_each(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Side,
    completions: list[Side],
    tools: list[dict] | None,
) -> list[str]:
    """The texts of all completions of one prompt.

    Raises:
        RefusedText: See `render`.
    """
    if not isinstance(prompt, str):
        conversations = [prompt + completion for completion in completions]
        return _render_messages(tokenizer, conversations, tools)
    first = first_token(tokenizer)
    end = tokenizer.eos_token or tokenizer.sep_token or ""
    tokens = _cached_control_tokens(tokenizer, tokenizer.pad_token)
    return [first + tokens.part(prompt + completion) + end for completion in completions]


@lru_cache(maxsize=8)
def _cached_control_tokens(
    tokenizer: PreTrainedTokenizerBase, pad_token: str | None
) -> ControlTokens:
    """`control_tokens`, which takes long. The pad token is one of them, and may be set later."""
    return control_tokens(tokenizer)


def _render_messages(
    tokenizer: PreTrainedTokenizerBase, conversations: list[Messages], tools: list[dict] | None
) -> list[str]:
    """Render conversations by the chat template."""
    if not tokenizer.chat_template:
        raise EncodingError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, and messages need one; "
            "name one as chat_template_path."
        )
    if not all(conversations):
        raise RefusedText("the conversation has no message")
    if _has_powers(tokenizer.chat_template):
        raise EncodingError(
            f"{tokenizer.name_or_path}: the chat template has the operator `**`, whose result can "
            "take hours; no template needs it: write the number itself, or name another template "
            "as chat_template_path."
        )
    conversations = [as_template_reads(tokenizer, one) for one in conversations]
    for conversation in conversations:
        _refuse_left_out(tokenizer, conversation, tools)
    try:
        with time_limit(RENDER_SECONDS):
            if not tools and all(_is_plain(conversation) for conversation in conversations):
                return _render_plain(tokenizer, conversations)
            return tokenizer.apply_chat_template(conversations, tools=tools or None, tokenize=False)
    except TemplateSyntaxError as error:
        raise EncodingError(
            f"{tokenizer.name_or_path}: the chat template is not valid Jinja "
            f"(line {error.lineno}: {error.message}); mend it, or name another one as "
            "chat_template_path."
        ) from None
    except OutOfTime:
        turns = max(map(len, conversations))
        raise RefusedText(
            f"the chat template computes for more than {RENDER_SECONDS:g} s on this conversation "
            f"of {turns:,} messages: shorten it, mend the template, or name another one as "
            "chat_template_path",
            reason=f"refused by the limit of {RENDER_SECONDS:g} s for the chat template",
        ) from None
    except RENDERING_ERRORS as error:
        words = _template_words(error, [message for one in conversations for message in one])
        raise RefusedText(
            f"the chat template refuses this conversation: {words}",
            reason=f"refused by the chat template: {words}",
        ) from None


def as_template_reads(tokenizer: PreTrainedTokenizerBase, conversation: Messages) -> Messages:
    """The conversation with the arguments of its tool calls as the template reads them."""
    if not has_arguments_as_text(conversation):
        return conversation
    if not _wants_mappings(tokenizer, tokenizer.get_chat_template()):
        return conversation
    return with_mappings(conversation)


@lru_cache(maxsize=32)
def _wants_mappings(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether arguments of tool calls that are text must become mappings for a template."""
    if "rm_text" in template:
        return MAPPINGS_MARK in template
    with_text = _rendered_or_none(tokenizer, PROBE_CALL, tools=None)
    if with_text is not None and ARGUMENTS in with_text:
        return False
    with_mapping = _rendered_or_none(tokenizer, with_mappings(PROBE_CALL), tools=None)
    return with_mapping is not None and with_mapping != with_text


def _rendered_or_none(
    tokenizer: PreTrainedTokenizerBase, conversation: Messages, tools: list[dict] | None
) -> str | None:
    """The text that the chat template gives; None if it refuses the conversation."""
    try:
        with time_limit(RENDER_SECONDS):
            return tokenizer.apply_chat_template(conversation, tools=tools or None, tokenize=False)
    except (OutOfTime, *RENDERING_ERRORS):
        return None


# --- What a template leaves out -------------------------------------------------------------------

ALWAYS_RENDERED = {"user", "assistant"}  # the roles that every template writes


class Part(NamedTuple):
    """A part of a conversation that not every template writes."""

    message: int  # which message it is of
    is_call: bool = False  # whether it is a tool that the message calls, or else its text


def _refuse_left_out(
    tokenizer: PreTrainedTokenizerBase, conversation: Messages, tools: list[dict] | None
) -> None:
    """Refuse a conversation of which the chat template would leave out a part in silence.

    Phi-3's template passes over tool calls and their results, Qwen's over roles that it does not
    know, and Llama 3.1's over what a message says beside the tools that it calls.
    """
    if not any(_may_lose_text(one) or functions_called(one) for one in conversation):
        return
    if _is_plain(conversation):
        roles = tuple(message["role"] for message in conversation)
        left_out = _roles_left_out(tokenizer, tokenizer.get_chat_template(), roles)
    else:
        left_out = _left_out(tokenizer, conversation, tools)
    for part in left_out:
        message = conversation[part.message]
        if part.is_call:
            words = "leaves out the tools that a message calls"
            mend = "write the calls into its text"
        elif not _may_lose_text(message):
            continue  # it has no text
        elif message.get("role") in ALWAYS_RENDERED:
            words = "leaves out what a message says beside its tool calls"
            mend = "leave that text out"
        else:
            words = f"leaves out messages of the role `{name_in_words(message.get('role'))}`"
            mend = "give them a role that it writes"
        raise RefusedText(
            f"the chat template {words}, so a part of the conversation would be lost: {mend}, or "
            "name another template as chat_template_path",
            reason=f"refused by the chat template: it {words}",
        )


def _may_lose_text(message: dict) -> bool:
    """Whether a message has a text that not every template writes."""
    is_unusual = message.get("role") not in ALWAYS_RENDERED or message.get("tool_calls")
    content = message.get("content")
    if isinstance(content, str):
        content = content.strip()
    return bool(is_unusual and content)


@lru_cache(maxsize=512)
def _roles_left_out(
    tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[str, ...]
) -> list[Part]:
    """`_left_out` for messages with a role and a content alone."""
    return _left_out(tokenizer, [{"role": role, "content": "a"} for role in roles], tools=None)


def _left_out(
    tokenizer: PreTrainedTokenizerBase, conversation: Messages, tools: list[dict] | None
) -> list[Part]:
    """The parts that the template leaves out, of those where it may.

    Texts and the names of functions are exchanged for marks, which are looked for in the text.
    Where the template refuses the marks, none are known.
    """
    marks: dict[str, Part] = {}
    marked = []
    for number, message in enumerate(conversation):
        if _may_lose_text(message):
            mark = f"text {number}."
            marks[mark] = Part(number)
            message = {**message, "content": mark}
        functions = []
        for count, function in enumerate(functions_called(message)):
            mark = f"call_{number}_{count}_"
            marks[mark] = Part(number, is_call=True)
            functions.append({**function, "name": mark})
        marked.append(with_functions(message, functions))
    text = _rendered_or_none(tokenizer, marked, tools)
    if text is None:
        return []
    return [part for mark, part in marks.items() if mark not in text]


@lru_cache(maxsize=8)
def _has_powers(template: str) -> bool:
    """Whether a template computes powers, which no limit on time can stop: 10 ** 10 ** 10.

    In a call, `**` passes named arguments on.
    """
    before = ""
    try:
        for _, kind, text in Environment().lex(template):
            if kind == "operator" and text == "**" and before not in ("(", ","):
                return True
            if kind != "whitespace":
                before = text
    except TemplateSyntaxError:
        return False  # rendering says where
    return False


def _is_plain(conversation: Messages) -> bool:
    """Whether every message has a role and a content, both strings, and nothing else."""
    for message in conversation:
        if len(message) != 2:
            return False
        if type(message.get("role")) is not str or type(message.get("content")) is not str:
            return False
    return True


def _render_plain(tokenizer: PreTrainedTokenizerBase, conversations: list[Messages]) -> list[str]:
    """What `apply_chat_template` gives for plain conversations, in a third less time.

    It copies the messages, to drop what is None and to make sure that they are plain data, and
    then calls the template as here.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = _compile_jinja_template(tokenizer.get_chat_template())
    special_tokens = tokenizer.special_tokens_map
    return [
        template.render(
            messages=conversation,
            tools=None,
            documents=None,
            add_generation_prompt=False,
            **special_tokens,
        )
        for conversation in conversations
    ]


def _template_words(error: Exception, messages: Messages) -> str:
    """What a template says of a conversation that it refuses, in a line, without the row's text."""
    words = str(error) or type(error).__name__
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) and len(content) >= SHORTEST_QUOTED:
            words = words.replace(content, "...")
    return textwrap.shorten(words, 200)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Side,
    completion: Side,
    tools: list[dict] | None = None,
) -> list[int]:
    """Token ids of `prompt + completion`; the arguments are those of `render`.

    Raises:
        RefusedText: See `encode_each`.
    """
    return encode_each(tokenizer, prompt, [completion], tools)[0]


def encode_each(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Side,
    completions: list[Side],
    tools: list[dict] | None = None,
) -> list[list[int]]:
    """Encode every completion of one prompt.

    The texts are cut at control tokens, and the pieces are tokenised one by one: what the texts
    share, and what other texts had a moment ago, is tokenised once. The tokenizer must not be
    changed after its first use here.

    Raises:
        RefusedText: The chat template raises an error for a conversation, or an encoding starts
            with two BOS tokens.
    """
    return encode_texts(tokenizer, render_each(tokenizer, prompt, completions, tools))


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Encode texts that `render` gave; see `encode_each`."""
    for text in texts:
        refuse_long(text)
    encodings = [_tokenise_in_pieces(tokenizer, text) for text in texts]
    bos = tokenizer.bos_token_id
    if bos is not None and any(ids[:2] == [bos, bos] for ids in encodings):
        raise RefusedText(
            f"two BOS tokens ({tokenizer.bos_token!r}) at the start of an encoding; one is needed",
            reason="two BOS tokens",
        )
    return encodings


def refuse_long(text: str) -> None:
    """Raise RefusedText for a text whose tokens would fill the memory."""
    if len(text) > LONGEST_TEXT:
        raise RefusedText(
            f"the conversation has {len(text):,} characters, and at most {LONGEST_TEXT:,} are "
            "encoded: shorten it, or leave the row out",
            reason=f"refused by the limit of {LONGEST_TEXT:,} characters",
        )


def _tokenise_in_pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text, which are those of its pieces.

    A tokenizer first cuts a text at its control tokens. The text before a control token and the
    text from it on therefore give the same ids whether they are tokenised together or one by one.
    """
    ids: list[int] = []
    for piece in _piece_starts(tokenizer).split(text):
        if piece:
            ids.extend(_piece_ids(tokenizer, piece))
    return ids


@lru_cache(maxsize=512)
def _piece_ids(tokenizer: PreTrainedTokenizerBase, piece: str) -> array:
    """The ids of a piece, four bytes each, because many are kept."""
    return array("I", _tokenise(tokenizer, piece))


@lru_cache(maxsize=8)
def _piece_starts(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    """A pattern for the places where a text is cut: before the control tokens of the template.

    At other control tokens a text need not be cut, since only the template writes them. A token
    that absorbs the spaces before it ([MASK] with `lstrip`), that depends on the letter before it
    (`single_word`), or that is found only once the text is normalised, is no place to cut.
    """
    matches_nothing = r"(?!)"
    if not tokenizer.chat_template or tokenizer.split_special_tokens or not tokenizer.is_fast:
        return re.compile(matches_nothing)
    has_normalizer = tokenizer.backend_tokenizer.normalizer is not None
    added_tokens = tokenizer.added_tokens_decoder
    starts = set()
    for token_id in set(_probe_ids(tokenizer)):
        token = added_tokens.get(token_id)
        if token is None or not token.special or token.lstrip or token.single_word:
            continue
        if not (token.normalized and has_normalizer):
            starts.add(re.escape(token.content))
    if not starts:
        return re.compile(matches_nothing)
    return re.compile(f"(?={'|'.join(sorted(starts))})")


# --- A limit on the length ------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedPrompt:
    """The completions of one prompt, encoded under a length limit."""

    ids: list[list[int]]  # for each completion, the token ids of prompt + completion
    # For each completion, whether it is longer than the limit. Under truncate_prompt that means:
    # longer even where no more of the prompt can be cut.
    too_long: list[bool]
    prompt_cut: bool  # whether the oldest part of the prompt is left out


def encode_within(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Side,
    completions: list[Side],
    max_length: int | None,
    overlong: str,
    tools: list[dict] | None = None,
    texts: list[str] | None = None,
) -> EncodedPrompt:
    """Encode every completion of one prompt under a length limit.

    Args:
        tokenizer: The reward model's tokenizer, as `prepare_tokenizer` leaves it.
        prompt: Messages or a string.
        completions: Messages or strings, as the prompt is. A completion is never cut.
        max_length: The limit in tokens; None for no limit.
        overlong: With `truncate_prompt` the oldest part of the prompt is left out, and all
            completions keep the same part. With `drop` and `error` nothing is cut.
        tools: The functions that the assistant may call, for the chat template.
        texts: What `render_each` gives of these arguments, where it was called before.

    Raises:
        RefusedText: See `encode_each`.
    """
    if texts is None:
        texts = render_each(tokenizer, prompt, completions, tools)
    whole = encode_texts(tokenizer, texts)
    too_long = _longer_than(max_length, whole)
    if not any(too_long) or overlong != "truncate_prompt":
        return EncodedPrompt(whole, too_long, prompt_cut=False)
    ids = list(whole)
    fitting = list(range(len(ids)))  # the completions that are not too long by themselves
    prompt_cut = False
    while fitting:
        some, ids_of_some = [completions[i] for i in fitting], [whole[i] for i in fitting]
        cut = _cut_to_fit(tokenizer, prompt, some, ids_of_some, max_length, tools)
        for i, shortened, is_too_long in zip(fitting, cut.ids, cut.too_long, strict=True):
            ids[i], too_long[i] = shortened, is_too_long
        if not any(cut.too_long):
            prompt_cut = cut.prompt_cut
            break
        # The others keep as much of the prompt as if those did not exist.
        fitting = [i for i in fitting if not too_long[i]]
    return EncodedPrompt(ids, too_long, prompt_cut)


def _longer_than(max_length: int | None, ids: list[list[int]]) -> list[bool]:
    if max_length is None:
        return [False] * len(ids)
    return [len(encoding) > max_length for encoding in ids]


def _cut_to_fit(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Side,
    completions: list[Side],
    ids: list[list[int]],
    max_length: int,
    tools: list[dict] | None,
) -> EncodedPrompt:
    """Cut the oldest part of a prompt until all completions fit, or until one cannot.

    Where one cannot, its ids are still longer than the limit, and it is too long; others may be
    longer than the limit as well, and would fit under a prompt that is cut further. `ids` are those
    of each completion behind the whole prompt.
    """
    shorter = prompt
    prompt_cut = False
    while any(_longer_than(max_length, ids)):
        excesses = [len(encoding) - max_length for encoding in ids]
        next_shorter = _cut_oldest(tokenizer, shorter, max(excesses))
        if next_shorter is None:
            too_long = [
                excess > 0 and _cut_oldest(tokenizer, shorter, excess) is None
                for excess in excesses
            ]
            return EncodedPrompt(ids, too_long, prompt_cut)
        shorter = next_shorter
        ids = encode_each(tokenizer, shorter, completions, tools)
        prompt_cut = True
    return EncodedPrompt(ids, [False] * len(ids), prompt_cut)


def _cut_oldest(tokenizer: PreTrainedTokenizerBase, prompt: Side, excess: int) -> Side | None:
    """The prompt without its oldest `excess` tokens or its oldest exchange.

    System messages stay. The result is None if nothing is left to cut.
    """
    if isinstance(prompt, str):
        if not prompt:
            return None
        return _cut_text(tokenizer, prompt, excess)
    roles = [message["role"] for message in prompt]
    oldest = 0
    while oldest < len(roles) and roles[oldest] == "system":
        oldest += 1
    if oldest == len(roles):
        return None
    message = prompt[oldest]
    rest = _cut_text(tokenizer, message.get("content") or "", excess)
    if rest:
        shortened: Messages = [{**message, "content": rest}]
        return prompt[:oldest] + shortened + prompt[oldest + 1 :]
    # The message is used up. Go on with the next user turn, so that roles still alternate.
    if "user" not in roles[oldest + 1 :]:
        return None
    next_user_turn = roles.index("user", oldest + 1)
    return prompt[:oldest] + prompt[next_user_turn:]


def _cut_text(tokenizer: PreTrainedTokenizerBase, text: str, excess: int) -> str:
    """The text without its first `excess` tokens.

    A character of several tokens (an emoji) is cut as a whole.
    """
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoding["offset_mapping"]  # (start, end) of each token in the text
    if excess >= len(offsets):
        return ""
    _, end_of_cut = offsets[excess - 1]
    for start, _ in offsets[excess:]:
        if start >= end_of_cut:
            return text[start:]
    return ""
