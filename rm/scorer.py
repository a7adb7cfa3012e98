"""Completions -> rewards: `Scorer("rm-out").rewards([(prompt, completion), ...])`, in the order given."""

import torch

from rm.encoding import encode, encode_within
from rm.formats import text_of
from rm.reward_model import checkpoint_json, is_encoder, load_reward_model, position_limit, rewards_from_logits


class Scorer:
    """A loaded reward model. Rewards are float32 numbers, computed without autocast in the dtype it was saved in."""

    def __init__(self, ckpt: str, batch_size: int = 8, revision: str = "main", **options):
        self.model, self.tokenizer = load_reward_model(ckpt, revision=revision, **options)
        self.batch_size = batch_size
        self.manifest = checkpoint_json(ckpt, "manifest.json", revision) or {}  # empty for a model that is not ours
        self.limit = position_limit(self.model.config, self.tokenizer)
        # A model that was trained on cut prompts scores them cut; one that was not reads as far as it can.
        trained = self.manifest.get("max_length")
        if self.manifest.get("overlong") == "truncate_prompt" and trained:
            self.limit = min(self.limit or trained, trained)

    def encode(self, prompt, completions, tools=None) -> tuple[list[list[int] | None], bool]:
        """Token ids of one prompt's completions (None where a completion alone is too long), and whether the prompt was
        cut at its start, the same for all of them."""
        ids, over, cut = encode_within(self.tokenizer, prompt, completions, self.limit, "truncate_prompt", tools)
        return [None if too_long else i for i, too_long in zip(ids, over, strict=True)], cut

    def rewards_of_ids(self, ids: list[list[int] | None], progress: str | None = None) -> list[float | None]:
        """One reward an id list, None for None. Sorted by length, so that a batch has little padding."""
        from tqdm import tqdm

        order = sorted((i for i, tokens in enumerate(ids) if tokens is not None), key=lambda i: len(ids[i]))
        rewards: list[float | None] = [None] * len(ids)
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        for batch in tqdm(batches, desc=progress, disable=progress is None or len(batches) < 8, unit="batch"):
            padded = self.tokenizer.pad(
                {"input_ids": [ids[i] for i in batch]}, padding_side="right", return_tensors="pt"
            )
            with torch.inference_mode():
                logits = self.model(
                    input_ids=padded["input_ids"].to(self.model.device),
                    attention_mask=padded["attention_mask"].to(self.model.device),
                ).logits  # (batch, labels)
            for i, reward in zip(batch, rewards_from_logits(logits).tolist(), strict=True):
                rewards[i] = reward
        return rewards

    def rewards(self, texts: list[tuple], progress: str | None = None) -> list[float | None]:
        """Rewards of (prompt, completion) tuples: message lists, or strings that are taken as they are."""
        return self.rewards_of_ids([self.encode(p, [c])[0][0] for p, c in texts], progress)

    def completion_tokens(self, completion) -> int:
        """Length of a completion's text in the model's own tokens."""
        return len(self.tokenizer(text_of(completion), add_special_tokens=False)["input_ids"])

    def rewards_by_token(self, prompt, completion) -> list[tuple[str, float]] | None:
        """(token, reward after it) over the completion, from one forward; only the last value is what was trained.

        None for an encoder, whose head reads [CLS] and not each token.
        """
        if is_encoder(self.model.config):
            return None
        ids = encode(self.tokenizer, prompt, completion)
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        body, head = getattr(base, base.base_model_prefix), base.score
        with torch.inference_mode():
            hidden = body(input_ids=torch.tensor([ids], device=base.device)).last_hidden_state  # (1, tokens, hidden)
            values = rewards_from_logits(head(hidden))[0].tolist()
        start = len(ids) - self._completion_start(prompt, completion, ids)
        tokens = [self.tokenizer.decode([i]) for i in ids]
        return list(zip(tokens, values, strict=True))[-start:]

    def _completion_start(self, prompt, completion, ids) -> int:
        """Index of the completion's first token: where the encoding first differs from one with another completion."""
        other = (
            completion + "?" if isinstance(completion, str) else [{**completion[0], "content": "\x00"}, *completion[1:]]
        )
        alternative = encode(self.tokenizer, prompt, other)
        return next((i for i, (a, b) in enumerate(zip(ids, alternative, strict=False)) if a != b), 0)
