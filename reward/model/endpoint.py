"""Rewards of a model that somebody else serves: `EndpointScorer("rm-out", "http://host:8000")`.

Texts are encoded here, as for a model that is loaded, and the server gets their token ids. So only
the tokenizer and the config of the checkpoint are read, never its weights.
"""

import sys
from collections.abc import Callable, Sequence

from transformers import PretrainedConfig

from reward.data.encoding import PROBE, RefusedText, encode
from reward.data.shown import shown
from reward.model import TOKEN_BUDGET
from reward.model.architecture import read_config
from reward.model.batches import TokenIds, read_index
from reward.model.checkpoint_tokenizer import load_tokenizer, pad_at_training
from reward.model.heads import is_encoder
from reward.model.parts import parts_without_weights
from reward.model.processes import processes
from reward.model.scoring_progress import bar
from reward.model.server import EndpointError, Server
from reward.model.text_encoder import TextEncoder, longest_input

FEW_TEXTS = 64  # fewer need no progress bar, and say nothing of the rewards' range


class EndpointScorer(TextEncoder):
    """A reward model that a server has, and whose texts are encoded here.

    Args:
        ckpt: A folder or the id of a Hub model, with a config.json and a tokenizer.
        url: The server's address, see reward.model.server.
        revision: The branch, tag or commit of a Hub model.
        trust_remote_code: Whether the tokenizer's own Python code may run.
        chat_template: A file with the chat template, which is used as it is.

    Attributes:
        server: The server.
        token_budget: How many tokens a chunk of a file is measured in, as for a loaded model.
        read_pad: The pad token's id, where the head passes over it at the end of a text.

    Raises:
        ModelError: The checkpoint has no tokenizer or config that can be read, or the server gives
            no rewards.
    """

    def __init__(
        self,
        ckpt: str,
        url: str,
        revision: str = "main",
        trust_remote_code: bool = False,
        chat_template: str | None = None,
    ):
        if processes().num_processes > 1:
            raise EndpointError(
                f"--endpoint {url}: start one process, without accelerate launch; it sends several "
                "requests at once"
            )
        parts = parts_without_weights(ckpt, revision)
        config = read_config(parts.base, parts.base_revision, trust_remote_code)
        loaded = load_tokenizer(parts, config, trust_remote_code, chat_template)
        for note in loaded.notes:
            print(shown(note), file=sys.stderr)
        text_config = config.get_text_config()
        limit = longest_input(config, loaded.tokenizer, parts.manifest)
        vocabulary = getattr(text_config, "vocab_size", None)
        super().__init__(ckpt, loaded.tokenizer, parts.manifest, limit, vocabulary)
        self._refuse_token_types(config, loaded.template_is_ours and not parts.manifest)
        self.token_budget = TOKEN_BUDGET
        self.read_pad = None
        if not is_encoder(config):
            config_pad = getattr(text_config, "pad_token_id", None)
            self.read_pad = pad_at_training(parts, loaded, config_pad)
        self.count, self.between_0_and_1 = 0, True  # of rewards so far
        self.server = Server(url, self.text_of)
        self.server.connect(self.as_sent(encode(self.tokenizer, PROBE[:1], PROBE[1:])))
        if self.server.model.limit is not None:
            self.limit = min(self.limit or self.server.model.limit, self.server.model.limit)

    def _refuse_token_types(self, config: PretrainedConfig, is_pair_layout: bool) -> None:
        """Raise EndpointError for a model that reads token types, which no route takes."""
        types = self.tokenizer("a", "a").get("token_type_ids") or []
        reads_types = getattr(config, "type_vocab_size", 0) > 1
        if is_pair_layout and is_encoder(config) and reads_types and any(types):
            raise EndpointError(
                f"{self.name}: its tokenizer marks prompt and completion with "
                "token types, which cannot be sent to a server, so that its rewards would be "
                "others; score it without --endpoint"
            )

    # --- What is sent -----------------------------------------------------------------------------

    def as_sent(self, ids: TokenIds) -> TokenIds:
        """Return a text's ids up to the token that the checkpoint's head reads.

        Servers read the last token. Stock transformers reads the rightmost one that is not the pad
        token; a causal model computes it from the tokens before it alone.
        """
        if self.server.route is not None and self.server.route.reads_text:
            return ids
        return ids[: read_index(ids, self.read_pad) + 1]

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, with its control tokens."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _refuse_unreadable(self, ids: TokenIds) -> None:
        """Raise RefusedText also for ids whose text a server would encode in another way."""
        super()._refuse_unreadable(ids)
        if self.server.route.reads_text:
            again = self.tokenizer(self.text_of(ids), add_special_tokens=False)["input_ids"]
            if list(again) != list(ids):
                why = "the server reads texts, and the tokenizer reads this one back in another way"
                raise RefusedText(why)

    # --- Rewards ----------------------------------------------------------------------------------

    def rewards_of_ids(
        self,
        ids: list[TokenIds | None],
        progress: str | None = None,
        after_batch: Callable[[int], None] | None = None,
    ) -> list[float | None]:
        """Return one reward for each text, as `reward.model.scorer.Scorer.rewards_of_ids` does.

        Equal texts are asked for once, and get the same reward.

        Raises:
            EndpointError: The server gives none.
        """
        places: dict[tuple[int, ...], list[int]] = {}  # a text -> where it is in `ids`
        for i, text in enumerate(ids):
            if text is not None:
                places.setdefault(tuple(text), []).append(i)
        quiet = progress is None or len(places) < FEW_TEXTS
        progress_bar = bar(len(places), progress, "text", quiet)
        rewards: list[float | None] = [None] * len(ids)
        answers = self.server.rewards([self.as_sent(text) for text in places])
        for text, reward in zip(places, answers, strict=True):
            self._look_for_sigmoid(reward)
            for i in places[text]:
                rewards[i] = reward
            progress_bar.update()
            if after_batch is not None:
                after_batch(len(places[text]))
        progress_bar.close()
        return rewards

    def _look_for_sigmoid(self, reward: float) -> None:
        """Say of the first rewards, once, if they all lie between 0 and 1."""
        self.count += 1
        self.between_0_and_1 = self.between_0_and_1 and 0 <= reward <= 1
        if self.count == FEW_TEXTS and self.between_0_and_1:
            print(
                f"all of the first {self.count} rewards lie between 0 and 1: the server may give "
                "sigmoid(reward), in which good completions tie. Its config.json needs "
                '"problem_type": "regression"',
                file=sys.stderr,
            )

    def rewards_by_token(self, prompt: object, completion: object) -> None:
        """Return None: servers give no reward for each token."""

    @property
    def way_in_words(self) -> str:
        """Where rewards were computed, for a line of a summary."""
        return f"by {self.server.described}"
