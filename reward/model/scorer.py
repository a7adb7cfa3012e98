"""Completions -> rewards, in the order given: `Scorer("rm-out").rewards([(prompt, completion)])`.

Texts are sorted so that what shares a prefix meets, and computed by reward.model.packed_attention
under a budget of tokens: many completions of one prompt cost the prompt once.
"""

import sys
from collections.abc import Callable

from accelerate.utils import gather_object
from transformers import PreTrainedModel

from reward.data.encoding import RefusedText, encode
from reward.data.shown import shown
from reward.data.transcripts import Side, text_of
from reward.model import TOKEN_BUDGET
from reward.model.batches import TokenIds, read_index, shared_prefix, token_batches
from reward.model.forwards import FEW_TEXTS, Forwards, pair_token_types, self_test, telling_texts
from reward.model.heads import is_encoder, without_adapter
from reward.model.load import load_reward_model
from reward.model.packed_attention import (
    enable_packing,
    why_batch_dependent,
    why_model_not_packed,
)
from reward.model.parts import own_manifest
from reward.model.processes import processes
from reward.model.scoring_progress import bar
from reward.model.text_encoder import TextEncoder, longest_input

FEW_BATCHES = 8  # fewer than these need no progress bar


class Scorer(TextEncoder):
    """A loaded reward model, which encodes texts and computes their rewards.

    Rewards are float32 numbers, computed without autocast in the dtype that the model was saved in,
    or in the option `dtype`.

    Args:
        ckpt: A folder or the id of a Hub model, see reward.model.load.
        token_budget: How many tokens one forward computes. A longer text gets a forward of its own.
        revision: The branch, tag or commit of a Hub model.
        distributed: Under `accelerate launch` all processes ask for the same rewards in the same
            order. Each computes its part of the batches, and every one gets all rewards.
        options: They go to `load_reward_model`.

    Attributes:
        loaded: What `load_reward_model` gave.
        model: The model, on its device, ready to evaluate.
        forwards: What computes rewards.
        padded_because: Why batches are padded; None where they are packed.
        alone_because: Why each text is computed alone; None where they come in batches.

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
        self.loaded = load_reward_model(ckpt, revision=revision, **options)
        self.model = self.loaded.model
        if processes().is_main_process:
            for note in self.loaded.notes:
                print(shown(note), file=sys.stderr)
        self.token_budget = token_budget
        self.distributed = distributed
        token_types = None
        if self.loaded.is_pair_layout:
            token_types = pair_token_types(self.loaded.tokenizer, self.model)
        self.forwards = Forwards(self.model, token_types)
        manifest = own_manifest(ckpt, revision)
        limit = longest_input(self.model.config, self.loaded.tokenizer, manifest)
        super().__init__(ckpt, self.loaded.tokenizer, manifest, limit, self.forwards.vocabulary)
        self.tested_length = 0  # of the longest text that the self-test has seen
        self.padded_because = why_model_not_packed(self.base_model)
        self.alone_because = why_batch_dependent(self.base_model.config)
        if self.base_model.config.is_encoder_decoder:
            self.alone_because = "encoder-decoders may need as many end tokens in every text"
        if self.padded_because is None:
            enable_packing(self.base_model)

    @property
    def base_model(self) -> PreTrainedModel:
        """The sequence-classification model, without the adapter around it."""
        return without_adapter(self.model)

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
            if tokens is not None and self.why_unreadable(tokens) is None:
                places.setdefault(tuple(tokens), []).append(i)
        texts = list(places)
        way = self._way_for(texts)
        batches = self._batches(texts, way)
        index, count = 0, 1
        if self.distributed:
            index, count = processes().process_index, processes().num_processes
        quiet = progress is None or len(batches) < FEW_BATCHES or index > 0
        computed = []  # (index of a text, reward)
        own_batches = batches[index::count]
        progress_bar = bar(len(own_batches), progress, "batch", quiet)
        for batch in own_batches:
            rewards = self._forward([texts[i] for i in batch], way)
            computed += zip(batch, rewards, strict=True)
            progress_bar.update()
            if after_batch is not None:
                after_batch(sum(len(places[texts[i]]) for i in batch))
        progress_bar.close()
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
