"""The tokenizer and the chat template of a loaded reward model: `load_tokenizer(parts, config)`."""

from dataclasses import dataclass, field

import transformers
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from reward.data.cells import is_finite_number, kind_of
from reward.data.encoding import PROBE, EncodingError, encode, first_token, prepare_tokenizer
from reward.data.files import DataError
from reward.model.heads import is_encoder
from reward.model.hub import ModelError, checkpoint_file, checkpoint_json
from reward.model.parts import TOKENIZER_FILES, CheckpointParts, has_tokenizer
from reward.model.saved_head import is_openrlhf

# These are vocabularies of other packages, which transformers converts to a fast tokenizer.
TO_CONVERT = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")

# Where earlier versions of transformers saved the template of a processor (Gemma 3, Qwen2-VL).
PROCESSOR_TEMPLATE = "chat_template.json"

# What OpenRLHF does to a rendered conversation (RewardDataset): it cuts the newlines at the end,
# and adds the end token where the text does not end in it. A template may be saved with this.
OPENRLHF_START = "{%- set whole_text -%}{{ '' }}"
OPENRLHF_END = (
    "{{ '' }}{%- endset -%}{%- set whole_text = whole_text.rstrip('\\n') -%}{{ whole_text }}"
    "{%- if not whole_text.endswith(eos_token) -%}{{ ' ' ~ eos_token }}{%- endif -%}"
)


@dataclass
class CheckpointTokenizer:
    """A tokenizer with its chat template, and what is to be said of them."""

    tokenizer: PreTrainedTokenizerBase
    template_origin: str  # in words: which chat template it is, and where it comes from
    pad_token_id: int | None  # as it was saved; a template of ours brings another pad token
    template_is_ours: bool = False  # whether the checkpoint has none
    notes: list[str] = field(default_factory=list)  # sentences for the user


def load_tokenizer(
    parts: CheckpointParts,
    config: PretrainedConfig,
    trust_remote_code: bool = False,
    template_file: str | None = None,
) -> CheckpointTokenizer:
    """Load a checkpoint's tokenizer, that of its base where an adapter has none.

    Args:
        parts: The checkpoint.
        config: The model's config.
        trust_remote_code: Whether the tokenizer's own Python code may run.
        template_file: A file with the chat template, which is used as it is. None: the
            checkpoint's, or ours where it has none.

    Raises:
        ModelError: There is no tokenizer that can be loaded, or no template is the default one.
        DataError: The template's file cannot be read.
        EncodingError: See `reward.data.encoding.prepare_tokenizer`.
    """
    name, revision, notes = parts.name, parts.revision, []
    if parts.is_adapter and not parts.has_tokenizer:
        name, revision = parts.base, parts.base_revision
        notes.append(f"the adapter has no tokenizer: that of its base {name} is used")
    tokenizer = tokenizer_of(name, revision, trust_remote_code)
    pad = tokenizer.pad_token_id
    if not parts.manifest:
        notes += _said_of_other_ids(name, revision, tokenizer)
    if template_file is not None:
        tokenizer.chat_template = _read(template_file)
        origin = f"the file {template_file} (--chat_template)"
        return CheckpointTokenizer(tokenizer, origin, pad, notes=notes)

    origin = "the checkpoint's own"
    template = tokenizer.chat_template
    if not template and not parts.manifest:
        template = tokenizer.chat_template = _saved_template(name, PROCESSOR_TEMPLATE, revision)
        origin += f", of {PROCESSOR_TEMPLATE}"
    if isinstance(template, dict):
        tokenizer.chat_template = _default_of(name, template)
        origin = f"the checkpoint's own, `default` of {', '.join(sorted(template))}"
        notes.append(f"chat template: {origin}")
    if template:
        if not isinstance(tokenizer.chat_template, str):
            raise ModelError(
                f"{name}: its chat template is no text; name one: --chat_template FILE"
            )
        theirs = is_openrlhf(parts) and not parts.is_adapter and not parts.manifest
        if theirs and tokenizer.eos_token:
            tokenizer.chat_template = OPENRLHF_START + tokenizer.chat_template + OPENRLHF_END
            origin += f", cut and ended with {tokenizer.eos_token} as OpenRLHF does"
        if not parts.manifest:
            notes += _said_of_two_templates(name, revision, template)
            notes += _said_of_template(tokenizer)
        return CheckpointTokenizer(tokenizer, origin, pad, notes=notes)

    rows = getattr(config.get_text_config(), "vocab_size", None)
    prepare_tokenizer(tokenizer, is_encoder(config), rows)
    sides = [{"role": "user", "content": "prompt"}, {"role": "assistant", "content": "completion"}]
    layout = tokenizer.apply_chat_template(sides, tokenize=False).replace("\n", r"\n")
    origin = f"one of this package, `{layout}`, because the checkpoint has none"
    notes.append(
        f"chat template: {origin}; if the model was trained with another one, name its file: "
        "--chat_template FILE"
    )
    return CheckpointTokenizer(tokenizer, origin, pad, template_is_ours=True, notes=notes)


def tokenizer_of(
    name: str, revision: str = "main", trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Args:
        name: A folder, or the id of a Hub model.
        revision: The branch, tag or commit of a Hub model.
        trust_remote_code: Whether its own Python code may run.

    Raises:
        ModelError: There is none, or it cannot be loaded.
    """
    if not has_tokenizer(name, revision):
        raise ModelError(
            f"{name} has no tokenizer: no {', '.join(TOKENIZER_FILES[:3])} or the like is there. "
            "Copy the tokenizer's files of the model that it was trained from into it."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    # The package tokenizers raises a bare Exception for a file that it cannot read.
    except Exception as error:
        raise ModelError(_why_not_loaded(name, revision, error)) from error
    # transformers makes one without any word where the vocabulary's file is missing.
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        raise ModelError(_without_vocabulary(name))
    if not is_finite_number(tokenizer.model_max_length):
        raise ModelError(
            f"{name}: `model_max_length` in its tokenizer_config.json is "
            f"{kind_of(tokenizer.model_max_length)}; a number of tokens is needed"
        )
    return tokenizer


def pad_at_training(
    parts: CheckpointParts, tokenizer: CheckpointTokenizer, config_pad: int | None
) -> int | None:
    """Return the pad id that a head was trained with, which decides which token it reads.

    It is the config's, but an adapter's config is its base's. What pads a batch in training is the
    pad token of the tokenizer beside the adapter, and the head passes over what pads:
    trl.RewardTrainer sets the config's pad id to it, whatever the base names.

    Args:
        parts: The checkpoint.
        tokenizer: Its tokenizer.
        config_pad: The pad id of the config.
    """
    if is_openrlhf(parts) and not parts.is_adapter:
        return None  # it reads the last token, whatever it is
    if parts.is_adapter and parts.has_tokenizer:
        if parts.manifest or tokenizer.pad_token_id is not None:
            return tokenizer.pad_token_id
    return config_pad


def _saved_template(name: str, file: str, revision: str) -> str | None:
    """Return the one template that a JSON file of a checkpoint holds; None where it holds none."""
    content = checkpoint_json(name, file, revision)
    template = None
    if isinstance(content, dict):
        template = content.get("chat_template")
    if isinstance(template, str):
        return template
    return None


def _said_of_two_templates(name: str, revision: str, used: str | dict) -> list[str]:
    """Return the sentence about a template of tokenizer_config.json that another one hides."""
    other = _saved_template(name, "tokenizer_config.json", revision)
    if other is None or not isinstance(used, str) or other.strip() == used.strip():
        return []
    return [
        "it has two chat templates that differ: chat_template.jinja is used, and that of "
        "tokenizer_config.json, which older versions of transformers read, is not"
    ]


def _said_of_template(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return sentences about a template of others: control tokens that it leaves out, a date."""
    notes = []
    if "strftime_now" in tokenizer.chat_template:
        notes.append(
            "its chat template asks for today's date (strftime_now): where it writes it into a "
            "text, rewards change from day to day; write a date into a copy of the template and "
            "name its file: --chat_template FILE"
        )
    try:
        ids = encode(tokenizer, PROBE[:1], PROBE[1:])
    except EncodingError:  # each row says so
        return notes
    if not ids:
        return [*notes, "its chat template renders nothing for a user and an assistant"]
    left_out = []
    first = first_token(tokenizer)
    if first and ids[0] != tokenizer.convert_tokens_to_ids(first):
        left_out.append(first)
    last = tokenizer("a")["input_ids"][-1]
    # A template may write a newline behind its end token.
    if last in (tokenizer.eos_token_id, tokenizer.sep_token_id) and last not in ids[-3:]:
        left_out.append(tokenizer.convert_ids_to_tokens(last))
    if left_out:
        notes.append(
            f"its chat template leaves out {' and '.join(left_out)}, which its tokenizer puts "
            "around a text by itself: conversations are scored without, as apply_chat_template "
            "gives them; if the model was trained with it, write it into a copy of the template "
            "and name its file: --chat_template FILE"
        )
    return notes


def _said_of_other_ids(name: str, revision: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the sentence about a tokenizer.json that gives other ids than the class made of it.

    transformers 5 builds some classes (LlamaTokenizer) anew and takes the vocabulary alone from
    the file; version 4 read all of it.
    """
    path = checkpoint_file(name, "tokenizer.json", revision)
    if path is None or not tokenizer.is_fast or type(tokenizer) is PreTrainedTokenizerFast:
        return []
    try:
        file = Tokenizer.from_file(path)
        file.no_truncation()
        file.no_padding()
        control = {token.content for token in file.get_added_tokens_decoder().values()}
        between = [token for token in tokenizer.all_special_tokens if token in control]
        text = "What is 12 and 30?\n".join(["", *between, " Forty-two."])
        ids = file.encode(text, add_special_tokens=False).ids
    except Exception:  # the package tokenizers raises nothing more specific
        return []
    if ids == tokenizer(text, add_special_tokens=False)["input_ids"]:
        return []
    return [
        f"its tokenizer.json gives other token ids than the {type(tokenizer).__name__} that "
        f"transformers {transformers.__version__} makes of it and that is used here; transformers "
        "4 read the file, so that rewards may differ from its maker's"
    ]


def _why_not_loaded(name: str, revision: str, error: Exception) -> str:
    """Return the error about a tokenizer that transformers cannot load."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if checkpoint_file(name, "tokenizer.json", revision) is not None:
        return f"{name}: its tokenizer cannot be loaded ({reason})"
    vocabulary = None
    for file in TO_CONVERT:
        if vocabulary is None and checkpoint_file(name, file, revision) is not None:
            vocabulary = file
    if vocabulary is None:
        return _without_vocabulary(name)
    return (
        f"{name}: its tokenizer is {vocabulary} alone and cannot be converted here; install "
        f"sentencepiece, tiktoken and protobuf, or add a tokenizer.json ({reason})"
    )


def _without_vocabulary(name: str) -> str:
    return (
        f"{name} has a tokenizer_config.json but no vocabulary (tokenizer.json or the like); "
        "copy the tokenizer's files of the model that it was trained from into it"
    )


def _default_of(name: str, templates: dict[str, str]) -> str:
    """Return the one of several named templates that transformers uses. Raises ModelError."""
    if "default" not in templates:
        raise ModelError(
            f"{name} has several chat templates ({', '.join(sorted(templates))}) and none is named "
            "default; write the one to use into a file and name it: --chat_template FILE"
        )
    return templates["default"]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--chat_template {path} cannot be read: {error}") from None
