"""Token ids -> rewards in three ways, each what stock transformers gives for one text alone.

    forwards = Forwards(model, token_types)
    forwards.alone(text), forwards.padded(texts), forwards.packed(texts)

Which token a causal head reads is what the config says, which is never changed for good: stock
transformers reads the rightmost token that is not `pad_token_id`, and the last one without such an
id. Whether padding or packing changes rewards is not decided here but measured (`self_test`).
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate.utils import send_to_device
from transformers import PreTrainedTokenizerBase

from reward.model.architecture import pad_inside
from reward.model.batches import PackedInputs, PaddedInputs, TokenIds, pack, padded, read_index
from reward.model.heads import embedding_size, head_of, rewards_from_logits, without_adapter
from reward.model.hub import ModelError

# How far rewards may be from those of one text alone, relative to the root of their mean square.
ALLOWED_IN_FLOAT32 = 1e-5  # rounding moves them by 1e-6, and by 2e-5 at the very most
ALLOWED_IN_HALF_PRECISION = 0.05  # at least

FEW_TEXTS = 8  # how many texts are not worth a batch
SELF_TEST_TEXTS = 16  # how many texts the self-test reads at most
SEARCHED_TEXTS = 1000  # how many texts are searched for the pad token


# --- Token types ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairTokenTypes:
    """The token types that a tokenizer makes of `[CLS] prompt [SEP] completion [SEP]`."""

    separator: int  # the id of [SEP]
    first: int  # the type of the first token
    prompt: int
    completion: int

    def of(self, text: TokenIds) -> list[int]:
        """Return the type of each token: the completion lies between the last two separators."""
        separators = [i for i, token in enumerate(text) if token == self.separator]
        start = len(text)  # of the completion
        if len(separators) > 1:
            start = separators[-2] + 1
        types = [self.prompt] * start + [self.completion] * (len(text) - start)
        types[0] = self.first
        return types


def pair_token_types(
    tokenizer: PreTrainedTokenizerBase, model: torch.nn.Module
) -> PairTokenTypes | None:
    """Return the types that the tokenizer makes of pairs; None for none that the model reads."""
    encoding = tokenizer("a", "a")
    types = encoding.get("token_type_ids")
    separator = tokenizer.sep_token_id
    if not types or not any(types) or encoding["input_ids"].count(separator) != 2:
        return None
    kinds = getattr(model.config, "type_vocab_size", 0)
    if not accepts(model, "token_type_ids") or max(types) >= kinds:
        return None
    second = encoding["input_ids"].index(separator) + 1
    return PairTokenTypes(separator, types[0], types[second - 1], types[second])


# --- The three ways -------------------------------------------------------------------------------


def accepts(model: torch.nn.Module, option: str) -> bool:
    """Return whether the forward of a model's class has a parameter of this name."""
    return option in inspect.signature(type(without_adapter(model)).forward).parameters


class Forwards:
    """Computes rewards of token ids. The model evaluates, without autocast of its own.

    Args:
        model: A loaded reward model. `packed` needs `enable_packing` on it.
        token_types: The token types that the model was trained with; None: it gets none.

    Attributes:
        pad_token_id: What the head passes over at the end of a text; None: it reads the last token.
        vocabulary: The number of token ids that the model has a vector for, where it is known.
    """

    def __init__(self, model: torch.nn.Module, token_types: PairTokenTypes | None = None):
        self.model = model
        self.token_types = token_types
        self.vocabulary = embedding_size(without_adapter(model))
        self.options = {}
        if accepts(model, "use_cache"):
            self.options["use_cache"] = False
        self.dynamic_rope = []
        for module in model.modules():
            if hasattr(module, "max_seq_len_cached") and hasattr(module, "original_inv_freq"):
                self.dynamic_rope.append(module)

    @property
    def pad_token_id(self) -> int | None:
        """The config's pad id. One that no text can hold (-1, or too high) is as good as none."""
        return pad_inside(self.model.config.get_text_config().pad_token_id, self.vocabulary)

    @torch.inference_mode()
    def alone(self, text: TokenIds) -> float:
        """Return the reward of one text, from the stock forward without any padding.

        Raises:
            ModelError: The model cannot compute it, whatever the batch.
        """
        inputs = {"input_ids": torch.tensor([text])}
        if self.token_types is not None:
            inputs["token_type_ids"] = torch.tensor([self.token_types.of(text)])
        try:
            return self._rewards(inputs)[0]
        except torch.OutOfMemoryError:  # a RuntimeError, and no fault of the model
            raise
        except Exception as error:  # a model's own code may raise anything
            name = type(without_adapter(self.model)).__name__
            raise ModelError(
                f"{name} fails on a single text of {len(text):,} tokens: "
                f"{str(error) or type(error).__name__}"
            ) from error

    @torch.inference_mode()
    def padded(self, texts: Sequence[TokenIds], padding_side: str = "right") -> list[float]:
        """Return the rewards of texts, from one stock forward of a padded batch."""
        fill = self.pad_token_id
        if fill is None:
            fill = not_at_an_end(texts)
        inputs = padded(texts, fill, padding_side=padding_side)
        if self.token_types is not None:
            types = padded([self.token_types.of(text) for text in texts], 0, None, padding_side)
            inputs["token_type_ids"] = types["input_ids"]
        with self._passed_over(fill):
            return self._rewards(inputs)

    @torch.inference_mode()
    def packed(self, texts: Sequence[TokenIds]) -> list[float]:
        """Return the rewards of texts, from one forward that computes shared prefixes once."""
        return self._rewards(pack(texts, pad_token_id=self.pad_token_id))

    @torch.inference_mode()
    def by_token(self, text: TokenIds) -> list[float] | None:
        """Return the reward that the head gives at each token of one text.

        None where the value at the token that is read is not the text's reward, because the head
        does something else than to read one token.
        """
        base = without_adapter(self.model)
        _, head = head_of(base)
        inputs = torch.tensor([text], device=self.model.device)
        self._forget()
        hidden = base.base_model(input_ids=inputs, **self.options)[0]  # (1, tokens, hidden)
        if hidden.shape[1:] != (len(text), head.in_features):
            return None
        rewards = rewards_from_logits(head(hidden))[0].tolist()
        reward = self.alone(text)
        read = rewards[read_index(text, self.pad_token_id)]
        if abs(read - reward) > ALLOWED_IN_HALF_PRECISION * max(1.0, abs(reward)):
            return None
        rewards[read_index(text, self.pad_token_id)] = reward
        return rewards

    def _rewards(self, inputs: PackedInputs | PaddedInputs) -> list[float]:
        self._forget()
        inputs = send_to_device(inputs, self.model.device)
        logits = self.model(**inputs, **self.options).logits  # (texts, labels)
        return rewards_from_logits(logits).tolist()

    def _forget(self) -> None:
        for module in self.dynamic_rope:
            forget_longer_texts(module)

    @contextmanager
    def _passed_over(self, fill: int) -> Iterator[None]:
        """Let the head pass over `fill`, for a model whose config names no such id."""
        config = self.model.config.get_text_config()
        pad_token_id = config.pad_token_id
        config.pad_token_id = fill
        try:
            yield
        finally:
            config.pad_token_id = pad_token_id


def not_at_an_end(texts: Sequence[TokenIds]) -> int:
    """Return the lowest token id that no text ends with."""
    ends = {text[-1] for text in texts}
    token_id = 0
    while token_id in ends:
        token_id += 1
    return token_id


def forget_longer_texts(rotary: torch.nn.Module) -> None:
    """Undo what dynamic RoPE keeps of the longest text so far.

    Its next text would otherwise be computed with the frequencies of that one.
    """
    for name in list(vars(rotary)) + list(dict(rotary.named_buffers())):
        if not name.endswith("original_inv_freq"):
            continue
        kind = name.removesuffix("original_inv_freq")  # the layers' kind, where there are several
        in_use = getattr(rotary, f"{kind}inv_freq")
        # A copy: longrope writes the frequencies of a long text into the buffer in place.
        original = getattr(rotary, name).to(in_use.device, copy=True)
        rotary.register_buffer(f"{kind}inv_freq", original, persistent=False)
        if hasattr(rotary, f"{kind}max_seq_len_cached"):
            setattr(rotary, f"{kind}max_seq_len_cached", rotary.original_max_seq_len)


# --- The self-test --------------------------------------------------------------------------------


def telling_texts(texts: Sequence[TokenIds], pad_token_id: int | None) -> list[TokenIds]:
    """Return a few texts on which a wrong way to compute rewards shows.

    They are the shortest and the longest, some that end in the pad token or hold it, and some that
    probably begin alike.
    """
    first = texts[:SEARCHED_TEXTS]
    chosen = [min(texts, key=len), max(texts, key=len)]
    chosen += [text for text in first if text[-1] == pad_token_id][:2]
    chosen += [text for text in first if pad_token_id in text[:-1]][:2]
    chosen += sorted(first)[:SELF_TEST_TEXTS]
    different = {tuple(text): text for text in chosen}
    return list(different.values())[:SELF_TEST_TEXTS]


@dataclass
class Difference:
    """How far rewards are from those of one text alone, at most."""

    largest: float  # infinite where the forward fails
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether rewards may be computed in this way."""
        return self.largest <= self.allowed


def self_test(
    forwards: Forwards,
    batched: Callable[[list[TokenIds]], list[float]],
    texts: list[TokenIds],
) -> Difference:
    """Compare the rewards that a way to compute batches gives with those of one text alone.

    In half precision a batch by itself changes rewards, so three times what a copy of a text beside
    it does is allowed.

    Args:
        forwards: Computes one text alone.
        batched: Computes all of them, as they will be computed.
        texts: Token ids of each text.
    """
    alone = torch.tensor([forwards.alone(text) for text in texts])
    size = alone[alone.isfinite()].square().mean().sqrt().nan_to_num().item()
    allowed = ALLOWED_IN_FLOAT32 * size
    if forwards.model.dtype != torch.float32 or torch.is_autocast_enabled(
        forwards.model.device.type
    ):
        longest = max(range(len(texts)), key=lambda i: len(texts[i]))
        copies = torch.tensor(forwards.padded([texts[longest]] * 2))
        rounding = (copies - alone[longest]).abs().max().item()
        allowed = max(ALLOWED_IN_HALF_PRECISION * size, 3 * rounding)
    try:
        rewards = torch.tensor(batched(texts))
    except torch.OutOfMemoryError:  # a RuntimeError; another way would hide it, and be slow
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        warnings.warn(f"{error}", stacklevel=2)
        return Difference(float("inf"), allowed)
    differences = (rewards - alone)[alone.isfinite()].abs().nan_to_num(nan=float("inf"))
    return Difference(max(differences.tolist(), default=0.0), allowed)
