"""Which chat template a loaded reward model is used with: `set_template(tokenizer, config)`."""

from dataclasses import dataclass, field

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from reward.data.encoding import prepare_tokenizer
from reward.data.files import DataError
from reward.model.heads import is_encoder


@dataclass
class ChosenTemplate:
    """The chat template that a tokenizer got, and what is to be said of it."""

    origin: str  # in words: which one it is, and where it comes from
    is_ours: bool = False  # whether the checkpoint has none, so that it is one of this package
    notes: list[str] = field(default_factory=list)  # sentences for the user


def set_template(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, path: str | None = None
) -> ChosenTemplate:
    """Give a loaded tokenizer the chat template that conversations are rendered with.

    Args:
        tokenizer: The checkpoint's tokenizer, changed in place.
        config: The model's config.
        path: A file with the template, which is used as it is. None: the checkpoint's, or ours
            where it has none.

    Raises:
        DataError: The file cannot be read.
        EncodingError: See `reward.data.encoding.prepare_tokenizer`.
    """
    if path is not None:
        tokenizer.chat_template = _read(path)
        return ChosenTemplate(f"the file {path} (--chat_template)")
    if tokenizer.chat_template:
        return ChosenTemplate("the checkpoint's own")
    prepare_tokenizer(tokenizer, is_encoder(config), config.get_text_config().vocab_size)
    if is_encoder(config):
        layout = f"{tokenizer.cls_token} prompt {tokenizer.sep_token} completion"
    else:
        layout = r"\n\nHuman: prompt\n\nAssistant: completion"
    origin = f"one of this package, {layout}, because the checkpoint has none"
    note = f"chat template: {origin}. If it was trained with another one, name it: --chat_template"
    return ChosenTemplate(origin, is_ours=True, notes=[f"{note} FILE."])


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--chat_template {path} cannot be read: {error}") from None
