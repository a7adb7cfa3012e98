"""Completions -> rewards: `Scorer("rm-out").rewards([(prompt, completion), ...])`, in the order given.

Texts are sorted so that what shares a prefix meets, and computed by reward.model.packed_attention under a budget of tokens: N completions of a
prompt cost the prompt once.
"""

import sys

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, send_to_device

from reward.data.encoding import encode, encode_within
from reward.data.transcripts import text_of
from reward.model.batches import pack, padded, token_batches
from reward.model.heads import is_encoder, no_cache, position_limit, rewards_from_logits
from reward.model.hub import checkpoint_json
from reward.model.load import load_reward_model
from reward.model.packed_attention import enable_packing, self_test, why_padded

TOKEN_BUDGET = (
    4096  # a forward's computed tokens: more gains nothing on a CPU (benchmarks/speed.py)
)


TESTED = 4  # texts of the self-test


def processes() -> PartialState:
    """This process among those that `accelerate launch` started. Without a GPU accelerate forms no group unless it is told."""
    return PartialState(cpu=not torch.accelerator.is_available())


class Scorer:
    """A loaded reward model. Rewards are float32 numbers, computed without autocast in the dtype it was saved in.

    `token_budget`: the tokens of one forward; a longer text gets one of its own. `padded_because` says why batches are padded,
    None where they are packed. `shared`: under `accelerate launch` all processes ask for the same rewards in the same order,
    each computes its share of the batches, and every one gets all.
    """

    def __init__(
        self,
        ckpt: str,
        token_budget: int = TOKEN_BUDGET,
        revision: str = "main",
        shared: bool = False,
        **options,
    ):
        processes()  # first: it says which GPU is this process's
        self.model, self.tokenizer = load_reward_model(ckpt, revision=revision, **options)
        self.token_budget, self.tested, self.shared = token_budget, False, shared
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.padded_because = why_padded(base)
        if self.padded_because is None:
            enable_packing(base)
        self.manifest = (
            checkpoint_json(ckpt, "manifest.json", revision) or {}
        )  # empty for a model that is not ours
        self.limit = position_limit(self.model.config, self.tokenizer)
        # A model that was trained on cut prompts scores them cut; one that was not reads as far as it can.
        trained = self.manifest.get("max_length")
        if self.manifest.get("overlong") == "truncate_prompt" and trained:
            self.limit = min(self.limit or trained, trained)

    def encode(self, prompt, completions, tools=None) -> tuple[list[list[int] | None], bool]:
        """Token ids of one prompt's completions (None where a completion alone is too long), and whether the prompt was
        cut at its start, the same for all of them."""
        encoded = encode_within(
            self.tokenizer, prompt, completions, self.limit, "truncate_prompt", tools
        )
        ids = [
            None if too_long else i
            for i, too_long in zip(encoded.ids, encoded.too_long, strict=True)
        ]
        return ids, encoded.prompt_cut

    def rewards_of_ids(
        self, ids: list[list[int] | None], progress: str | None = None
    ) -> list[float | None]:
        """One reward an id list, None for None."""
        from tqdm import tqdm

        known = [i for i, tokens in enumerate(ids) if tokens is not None]
        packed = self._packs([ids[i] for i in known])
        batches = token_batches([[ids[i]] for i in known], self.token_budget, packed)
        index, count = (
            (processes().process_index, processes().num_processes) if self.shared else (0, 1)
        )
        share = batches[index::count]
        quiet = progress is None or len(batches) < 8 or index > 0
        options = no_cache(self.model.config)
        found = []  # (place in `ids`, reward)
        for batch in tqdm(share, desc=progress, disable=quiet, unit="batch"):
            texts = [ids[known[i]] for i in batch]
            inputs = pack(texts) if packed else padded(texts, self.tokenizer.pad_token_id)
            with torch.inference_mode():
                logits = self.model(
                    **send_to_device(inputs, self.model.device), **options
                ).logits  # (texts, labels)
            found += zip(
                [known[i] for i in batch], rewards_from_logits(logits).tolist(), strict=True
            )
        rewards: list[float | None] = [None] * len(ids)
        for i, reward in gather_object(found) if count > 1 else found:
            rewards[i] = reward
        return rewards

    def _packs(self, texts: list[list[int]]) -> bool:
        """Whether to pack: not a handful of texts, and none where a first look finds other values than the padded forward's."""
        if self.padded_because is not None or len(texts) <= 2 * TESTED:
            return False
        if not self.tested:
            self.tested = True
            apart, limit = self_test(
                self.model, sorted(texts)[:TESTED], self.tokenizer.pad_token_id
            )
            if self.shared and processes().num_processes > 1:  # all pack, or none does
                apart = max(gather_object([apart]))
            if not apart <= limit:
                self.padded_because = (
                    f"packed differs by {apart:.1e} from padded, more than {limit:.1e}"
                )
                print(f"padded batches, because {self.padded_because}", file=sys.stderr)
        return self.padded_because is None

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
            hidden = body(
                input_ids=torch.tensor([ids], device=base.device)
            ).last_hidden_state  # (1, tokens, hidden)
            values = rewards_from_logits(head(hidden))[0].tolist()
        start = len(ids) - self._completion_start(prompt, completion, ids)
        tokens = [self.tokenizer.decode([i]) for i in ids]
        return list(zip(tokens, values, strict=True))[-start:]

    def _completion_start(self, prompt, completion, ids) -> int:
        """Index of the completion's first token: where the encoding first differs from one with another completion."""
        other = (
            completion + "?"
            if isinstance(completion, str)
            else [{**completion[0], "content": "\x00"}, *completion[1:]]
        )
        alternative = encode(self.tokenizer, prompt, other)
        return next(
            (i for i, (a, b) in enumerate(zip(ids, alternative, strict=False)) if a != b), 0
        )
