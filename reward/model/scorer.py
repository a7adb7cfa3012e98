"""Completions -> rewards, in the order given: `Scorer("rm-out").rewards([(prompt, completion)])`.

Texts are sorted so that what shares a prefix meets, and computed by reward.model.packed_attention
under a budget of tokens: many completions of one prompt cost the prompt once.
"""

import sys
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, send_to_device
from tqdm import tqdm
from transformers import PreTrainedModel

from reward.data.encoding import encode, encode_within
from reward.data.transcripts import Side, text_of
from reward.model import TOKEN_BUDGET
from reward.model.batches import TokenIds, pack, padded, token_batches
from reward.model.heads import (
    is_encoder,
    no_cache,
    position_limit,
    rewards_from_logits,
    without_adapter,
)
from reward.model.hub import checkpoint_json
from reward.model.load import load_reward_model
from reward.model.packed_attention import enable_packing, self_test, why_model_not_packed

SELF_TEST_TEXTS = 4  # how many texts the self-test reads
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
        loaded: What `load_reward_model` gave.
        model: The model, on its device, ready to evaluate.
        tokenizer: The tokenizer, as it was saved.
        padded_because: Why batches are padded; None where they are packed.
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
        self.loaded = load_reward_model(ckpt, revision=revision, **options)
        self.model, self.tokenizer = self.loaded.model, self.loaded.tokenizer
        if processes().is_main_process:
            for note in self.loaded.notes:
                print(note, file=sys.stderr)
        self.token_budget = token_budget
        self.distributed = distributed
        self.self_tested = False
        self.padded_because = why_model_not_packed(self.base_model)
        if self.padded_because is None:
            enable_packing(self.base_model)
        self.manifest = checkpoint_json(ckpt, "manifest.json", revision) or {}
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
        """
        encoded = encode_within(
            self.tokenizer, prompt, completions, self.limit, "truncate_prompt", tools
        )
        ids: list[list[int] | None] = list(encoded.ids)
        for i, too_long in enumerate(encoded.too_long):
            if too_long:
                ids[i] = None
        return EncodedCompletions(ids, encoded.prompt_cut)

    def rewards(
        self, texts: list[tuple[Side, Side]], progress: str | None = None
    ) -> list[float | None]:
        """Return the rewards of (prompt, completion) tuples: two message lists, or two strings."""
        ids = [self.encode(prompt, [completion]).ids[0] for prompt, completion in texts]
        return self.rewards_of_ids(ids, progress)

    def rewards_of_ids(
        self, ids: list[TokenIds | None], progress: str | None = None
    ) -> list[float | None]:
        """Return one reward for each text.

        Args:
            ids: The token ids of each text. A text that is None gets None.
            progress: The title of a progress bar. None shows no bar.
        """
        present = [i for i, tokens in enumerate(ids) if tokens is not None]
        packed = self._packs([ids[i] for i in present])
        batches = token_batches([[ids[i]] for i in present], self.token_budget, packed)
        index, count = 0, 1
        if self.distributed:
            index, count = processes().process_index, processes().num_processes
        quiet = progress is None or len(batches) < FEW_BATCHES or index > 0
        computed = []  # (place in `ids`, reward)
        for batch in tqdm(batches[index::count], desc=progress, disable=quiet, unit="batch"):
            places = [present[i] for i in batch]
            rewards = self._forward([ids[place] for place in places], packed)
            computed += zip(places, rewards, strict=True)
        if count > 1:
            computed = gather_object(computed)
        all_rewards: list[float | None] = [None] * len(ids)
        for place, reward in computed:
            all_rewards[place] = reward
        return all_rewards

    def _forward(self, texts: list[TokenIds], packed: bool) -> list[float]:
        """Return the rewards of one batch."""
        config = self.base_model.config.get_text_config()
        if not packed and config.pad_token_id is None and len(texts) > 1:
            # Without a pad id stock models read one text at a time.
            return [self._forward([text], packed)[0] for text in texts]
        if packed:
            inputs = pack(texts)
        elif len(texts) == 1:
            inputs = padded(texts, 0)  # nothing is filled up
        else:
            inputs = padded(texts, self.tokenizer.pad_token_id)
        inputs = send_to_device(inputs, self.model.device)
        with torch.inference_mode():
            logits = self.model(**inputs, **no_cache(self.model.config)).logits  # (texts, labels)
        return rewards_from_logits(logits).tolist()

    def _packs(self, texts: list[TokenIds]) -> bool:
        """Return whether to pack these texts.

        A handful of texts is not packed. Nothing is where a first look at a few texts finds other
        values than the padded forward gives.
        """
        if self.padded_because is not None or len(texts) <= 2 * SELF_TEST_TEXTS:
            return False
        if not self.self_tested:
            self.self_tested = True
            self._self_test(sorted(texts)[:SELF_TEST_TEXTS])
        return self.padded_because is None

    def _self_test(self, texts: list[TokenIds]) -> None:
        # It compares hidden states, which do not depend on the pad id that the head's place does.
        config = self.base_model.config.get_text_config()
        pad_token_id = config.pad_token_id
        config.pad_token_id = self.tokenizer.pad_token_id or 0
        try:
            result = self_test(self.model, texts, config.pad_token_id)
        finally:
            config.pad_token_id = pad_token_id
        if self.distributed and processes().num_processes > 1:  # Either all pack or none does.
            result.difference = max(gather_object([result.difference]))
        if not result.passed:
            self.padded_because = result.why_padded
            print(f"padded batches, because {self.padded_because}", file=sys.stderr)

    def completion_tokens(self, completion: Side) -> int:
        """Return the length of a completion's text in the model's own tokens."""
        return len(self.tokenizer(text_of(completion), add_special_tokens=False)["input_ids"])

    def rewards_by_token(self, prompt: Side, completion: Side) -> list[tuple[str, float]] | None:
        """Return (token, reward after it) over the completion, from one forward.

        Only the last value is what was trained. None for an encoder, whose head reads [CLS] and not
        each token.
        """
        if is_encoder(self.model.config):
            return None
        ids = encode(self.tokenizer, prompt, completion)
        base = self.base_model
        body = getattr(base, base.base_model_prefix)
        with torch.inference_mode():
            inputs = torch.tensor([ids], device=base.device)
            hidden = body(input_ids=inputs).last_hidden_state  # (1, tokens, hidden)
            rewards = rewards_from_logits(base.score(hidden))[0].tolist()
        tokens = [self.tokenizer.decode([i]) for i in ids]
        completion_length = len(ids) - self._completion_start(prompt, completion, ids)
        return list(zip(tokens, rewards, strict=True))[-completion_length:]

    def _completion_start(self, prompt: Side, completion: Side, ids: list[int]) -> int:
        """Return the index of the completion's first token.

        That is where the encoding first differs from one with another completion.
        """
        if isinstance(completion, str):
            other_completion = completion + "?"
        else:
            other_completion = [{**completion[0], "content": "\x00"}, *completion[1:]]
        other_ids = encode(self.tokenizer, prompt, other_completion)
        for i, (token, other_token) in enumerate(zip(ids, other_ids, strict=False)):
            if token != other_token:
                return i
        return 0
