"""Completions -> rewards, in the order given: `Scorer("rm-out").rewards([(prompt, completion)])`.

Texts are sorted so that what shares a prefix meets, and computed by reward.model.packed_attention
under a budget of tokens: many completions of one prompt cost the prompt once.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import PreTrainedModel

from reward.data.encoding import RefusedText, encode, encode_within, first_token
from reward.data.rows_to_score import RowToScore
from reward.data.transcripts import Side, text_of
from reward.model import TOKEN_BUDGET
from reward.model.batches import TokenIds, read_index, shared_prefix, token_batches
from reward.model.forwards import FEW_TEXTS, Forwards, pair_token_types, self_test, telling_texts
from reward.model.heads import is_encoder, position_limit, without_adapter
from reward.model.load import load_reward_model
from reward.model.packed_attention import (
    enable_packing,
    why_batch_dependent,
    why_model_not_packed,
)
from reward.model.parts import own_manifest

FEW_BATCHES = 8  # fewer than these need no progress bar


def processes() -> PartialState:
    """Return this process among those that `accelerate launch` started.

    Without a GPU accelerate forms no group unless it is told to.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


@dataclass
class EncodedCompletions:
    """The completions of one prompt, encoded as the model reads them."""

    ids: list[list[int] | None]  # of each prompt + completion; None: the completion is too long
    prompt_cut: bool  # whether the prompt lost its start, the same for all completions


class Scorer:
    """A loaded reward model.

    Rewards are float32 numbers, computed without autocast in the dtype that the model was saved in.

    Args:
        ckpt: A folder or the id of a Hub model, see reward.model.load.
        token_budget: How many tokens one forward computes. A longer text gets a forward of its own.
        revision: The branch, tag or commit of a Hub model.
        distributed: Under `accelerate launch` all processes ask for the same rewards in the same
            order. Each computes its part of the batches, and every one gets all rewards.
        options: They go to `load_reward_model`.

    Attributes:
        name: The folder or id.
        loaded: What `load_reward_model` gave.
        model: The model, on its device, ready to evaluate.
        tokenizer: The tokenizer, as it was saved.
        forwards: What computes rewards.
        padded_because: Why batches are padded; None where they are packed.
        alone_because: Why each text is computed alone; None where they come in batches.
        manifest: The checkpoint's manifest, empty for a model that is not ours.
        limit: The longest input in tokens; None where nothing bounds it.

    Raises:
        ModelError: The checkpoint is no reward model.
    """

    def __init__(
        self,
        ckpt: str,
        token_budget: int = TOKEN_BUDGET,
        revision: str = "main",
        distributed: bool = False,
        **options,
    ):
        processes()  # It comes first, because it says which GPU belongs to this process.
        self.name = ckpt
        self.loaded = load_reward_model(ckpt, revision=revision, **options)
        self.model, self.tokenizer = self.loaded.model, self.loaded.tokenizer
        if processes().is_main_process:
            for note in self.loaded.notes:
                print(note, file=sys.stderr)
        self.token_budget = token_budget
        self.distributed = distributed
        token_types = None
        if self.loaded.is_pair_layout:
            token_types = pair_token_types(self.tokenizer, self.model)
        self.forwards = Forwards(self.model, token_types)
        self.said_first_token_lacks = False
        self.tested_length = 0  # of the longest text that the self-test has seen
        self.padded_because = why_model_not_packed(self.base_model)
        self.alone_because = why_batch_dependent(self.base_model.config)
        if self.base_model.config.is_encoder_decoder:
            self.alone_because = "encoder-decoders may need as many end tokens in every text"
        if self.padded_because is None:
            enable_packing(self.base_model)
        self.manifest = own_manifest(ckpt, revision)
        self.limit = position_limit(self.model.config, self.tokenizer)
        # A model that was trained on cut prompts scores them cut. Another reads as far as it can.
        trained_length = self.manifest.get("max_length")
        if self.manifest.get("overlong") == "truncate_prompt" and trained_length:
            self.limit = min(self.limit or trained_length, trained_length)

    @property
    def base_model(self) -> PreTrainedModel:
        """The sequence-classification model, without the adapter around it."""
        return without_adapter(self.model)

    def encode(
        self, prompt: Side, completions: list[Side], tools: list[dict] | None = None
    ) -> EncodedCompletions:
        """Encode completions of one prompt, whose start is cut where they are too long.

        Args:
            prompt: Messages, or a string that is taken as it is.
            completions: Message lists, or strings.
            tools: The tools that the prompt's chat template describes.

        Raises:
            RefusedText: The chat template raises an error for the conversation, or the model has no
                vector for one of its tokens.
        """
        encoded = encode_within(
            self.tokenizer, prompt, completions, self.limit, "truncate_prompt", tools
        )
        ids: list[list[int] | None] = list(encoded.ids)
        for i, too_long in enumerate(encoded.too_long):
            if too_long:
                ids[i] = None
            else:
                self._refuse_unreadable(encoded.ids[i])
        return EncodedCompletions(ids, encoded.prompt_cut)

    def encode_row(self, row: RowToScore) -> EncodedCompletions:
        """Encode what is scored of a row. Arguments and errors are those of `encode`.

        A finished text is encoded as it is. If one lacks the BOS or [CLS] that the tokenizer puts
        in front by itself, that is said once.
        """
        if row.text is None:
            return self.encode(row.prompt, row.completions, row.tools)
        ids = self.encode_text(row.text)
        if not self.said_first_token_lacks and not self._has_first_token(ids):
            self.said_first_token_lacks = True
            if processes().is_main_process:
                print(
                    f"a text does not begin with {first_token(self.tokenizer)}, which the "
                    "tokenizer puts in front by itself; texts are scored as they are",
                    file=sys.stderr,
                )
        return EncodedCompletions([ids], prompt_cut=False)

    def _has_first_token(self, ids: TokenIds) -> bool:
        """Whether a text begins with the BOS or [CLS] of a tokenizer that puts one in front."""
        first = first_token(self.tokenizer)
        return not first or ids[:1] == [self.tokenizer.convert_tokens_to_ids(first)]

    def encode_text(self, text: str) -> list[int]:
        """Encode a text that is finished, with its control tokens.

        Raises:
            RefusedText: It is longer than the model reads, or the model cannot read it.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.limit is not None and len(ids) > self.limit:
            raise RefusedText(
                f"the text has {len(ids):,} tokens, and the model reads {self.limit:,}",
                reason="longer than the model reads",
            )
        self._refuse_unreadable(ids)
        return ids

    def _refuse_unreadable(self, ids: TokenIds) -> None:
        """Raise RefusedText for token ids that the model has no vector for."""
        why = self.forwards.why_unreadable(ids)
        if why is not None:
            raise RefusedText(why, reason="a token outside the model's embedding")

    def rewards(
        self, texts: list[tuple[Side, Side]], progress: str | None = None
    ) -> list[float | None]:
        """Return the rewards of (prompt, completion) tuples: two message lists, or two strings.

        A text that is too long, or that cannot be encoded, gets None.
        """
        ids = []
        for prompt, completion in texts:
            try:
                ids += self.encode(prompt, [completion]).ids
            except RefusedText:
                ids.append(None)
        return self.rewards_of_ids(ids, progress)

    def rewards_of_ids(
        self,
        ids: list[TokenIds | None],
        progress: str | None = None,
        after_batch: Callable[[int], None] | None = None,
    ) -> list[float | None]:
        """Return one reward for each text. Equal texts are computed once, and get the same reward.

        Args:
            ids: The token ids of each text. A text that is None, or that the model cannot read,
                gets None.
            progress: The title of a progress bar. None shows no bar.
            after_batch: It is called with the number of texts of each batch.
        """
        places: dict[tuple[int, ...], list[int]] = {}  # a text -> where it is in `ids`
        for i, tokens in enumerate(ids):
            if tokens is not None and self.forwards.why_unreadable(tokens) is None:
                places.setdefault(tuple(tokens), []).append(i)
        texts = list(places)
        way = self._way_for(texts)
        batches = self._batches(texts, way)
        index, count = 0, 1
        if self.distributed:
            index, count = processes().process_index, processes().num_processes
        quiet = progress is None or len(batches) < FEW_BATCHES or index > 0
        computed = []  # (index of a text, reward)
        for batch in tqdm(batches[index::count], desc=progress, disable=quiet, unit="batch"):
            rewards = self._forward([texts[i] for i in batch], way)
            computed += zip(batch, rewards, strict=True)
            if after_batch is not None:
                after_batch(sum(len(places[texts[i]]) for i in batch))
        if count > 1:
            computed = gather_object(computed)
        all_rewards: list[float | None] = [None] * len(ids)
        for i, reward in computed:
            for place in places[texts[i]]:
                all_rewards[place] = reward
        return all_rewards

    # --- Packed, padded or alone ------------------------------------------------------------------

    @property
    def way(self) -> str:
        """How batches are computed: `packed`, `padded`, or each text `alone`."""
        if self.alone_because is not None:
            return "alone"
        if self.padded_because is not None:
            return "padded"
        return "packed"

    @property
    def way_in_words(self) -> str | None:
        """The way and its reason, for a line of a summary; None where batches are packed."""
        if self.alone_because is not None:
            return f"one text at a time, because {self.alone_because}"
        if self.padded_because is not None:
            return f"in padded batches, because {self.padded_because}"
        return None

    def _way_for(self, texts: list[TokenIds]) -> str:
        """Return the way to compute these texts.

        A handful is computed one by one. Otherwise the first texts, and later any longer ones, are
        looked at: what gives other rewards than one text alone is not used any more.
        """
        if len(texts) <= FEW_TEXTS:
            return "alone"
        longest = max(map(len, texts))
        if longest > self.tested_length:
            self.tested_length = longest
            self._self_test(telling_texts(texts, self.forwards.pad_token_id))
        return self.way

    def _self_test(self, texts: list[TokenIds]) -> None:
        """Step down from packed to padded batches, and to one text at a time, where they differ."""
        while self.way != "alone":
            difference = self_test(self.forwards, self._rewards_in_batches, texts)
            passed = [difference.passed]
            if self.distributed and processes().num_processes > 1:  # All take the same way.
                passed = gather_object(passed)
            if all(passed):
                return
            because = (
                f"{self.way} rewards differ by {difference.largest:.1e} from those of one text "
                f"alone, more than {difference.allowed:.1e}"
            )
            if self.way == "packed":
                self.padded_because = because
            else:
                self.alone_because = because
            print(self.way_in_words, file=sys.stderr)

    def _rewards_in_batches(self, texts: list[TokenIds]) -> list[float]:
        """Return the rewards of texts, all computed by this process in its present way."""
        rewards = [0.0] * len(texts)
        for batch in self._batches(texts, self.way):
            batch_rewards = self._forward([texts[i] for i in batch], self.way)
            for i, reward in zip(batch, batch_rewards, strict=True):
                rewards[i] = reward
        return rewards

    def _batches(self, texts: list[TokenIds], way: str) -> list[list[int]]:
        """Return the indices of the texts in each batch."""
        if way == "alone":
            return [[i] for i in range(len(texts))]
        return token_batches([[text] for text in texts], self.token_budget, way == "packed")

    def _forward(self, texts: list[TokenIds], way: str) -> list[float]:
        """Return the rewards of one batch."""
        if len(texts) == 1:
            return [self.forwards.alone(texts[0])]
        if way == "packed":
            return self.forwards.packed(texts)
        return self.forwards.padded(texts)

    # --- What else an audit asks for --------------------------------------------------------------

    def completion_tokens(self, completion: Side) -> int:
        """Return the length of a completion's text in the model's own tokens."""
        return len(self.tokenizer(text_of(completion), add_special_tokens=False)["input_ids"])

    def rewards_by_token(self, prompt: Side, completion: Side) -> list[tuple[str, float]] | None:
        """Return (token, reward after it) over the completion, from one forward.

        The last token is the one that the head reads, so that the last value is the reward of the
        text, which alone was trained. None where the head does not read single tokens (encoders).
        """
        base = self.base_model
        if is_encoder(base.config) or base.config.is_encoder_decoder:
            return None
        ids = self.encode(prompt, [completion]).ids[0]
        if ids is None:
            return None
        by_token = self.forwards.by_token(ids)
        if by_token is None:
            return None
        read = read_index(ids, self.forwards.pad_token_id)
        start = min(self._completion_start(prompt, completion, ids), read)
        return [
            (self.tokenizer.decode([token]), reward)
            for token, reward in zip(ids[start : read + 1], by_token[start : read + 1], strict=True)
        ]

    def _completion_start(self, prompt: Side, completion: Side, ids: list[int]) -> int:
        """Return the index of the completion's first token.

        That is where the encoding first differs from one with another completion.
        """
        if isinstance(completion, str):
            other_completion = completion + "?"
        else:
            other_completion = [{**completion[0], "content": "\x00"}, *completion[1:]]
        other_ids = encode(self.tokenizer, prompt, other_completion)
        return shared_prefix(ids, other_ids)
