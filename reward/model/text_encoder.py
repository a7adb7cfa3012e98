"""Completions -> token ids, as one reward model reads them; its weights are not needed for it."""

import sys
from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from reward.data.encoding import RefusedText, encode_within, first_token, refuse_long
from reward.data.rows_to_score import RowToScore
from reward.data.transcripts import Side
from reward.model.batches import TokenIds
from reward.model.heads import position_limit
from reward.model.processes import processes


@dataclass
class EncodedCompletions:
    """The completions of one prompt, encoded as the model reads them."""

    ids: list[list[int] | None]  # of each prompt + completion; None: the completion is too long
    prompt_cut: bool  # whether the prompt lost its start, the same for all completions


def longest_input(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, manifest: dict
) -> int | None:
    """Return the longest input in tokens that a model scores; None where nothing bounds it.

    A model that was trained on cut prompts scores them cut. Another reads as far as it can.
    """
    limit = position_limit(config, tokenizer)
    trained_length = manifest.get("max_length")
    if manifest.get("overlong") == "truncate_prompt" and trained_length:
        limit = min(limit or trained_length, trained_length)
    return limit


class TextEncoder:
    """Encodes prompts with completions as a reward model reads them.

    Args:
        name: The folder or the Hub id of the model.
        tokenizer: Its tokenizer, as it was saved.
        manifest: The checkpoint's manifest, empty for a model that is not ours.
        limit: The longest input in tokens; None where nothing bounds it.
        vocabulary: How many token ids the model has a vector for; None where it is not known.

    Attributes:
        said_first_token_lacks: Whether it was said that a finished text lacks its first token.
    """

    def __init__(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        manifest: dict,
        limit: int | None,
        vocabulary: int | None,
    ):
        self.name = name
        self.tokenizer = tokenizer
        self.manifest = manifest
        self.limit = limit
        self.vocabulary = vocabulary
        self.said_first_token_lacks = False

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
        refuse_long(text)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.limit is not None and len(ids) > self.limit:
            raise RefusedText(
                f"the text has {len(ids):,} tokens, and the model reads {self.limit:,}",
                reason="longer than the model reads",
            )
        self._refuse_unreadable(ids)
        return ids

    def why_unreadable(self, text: TokenIds) -> str | None:
        """Return a sentence on why the model can read no such text; None if it can."""
        if not text:
            return "the text has no tokens"
        if self.vocabulary is None or max(text) < self.vocabulary:
            return None
        return (
            f"token id {max(text)} is outside the model's embedding, which has "
            f"{self.vocabulary} rows: the tokenizer belongs to another model, or its added tokens "
            "were never given to this one"
        )

    def _refuse_unreadable(self, ids: TokenIds) -> None:
        """Raise RefusedText for token ids that the model has no vector for."""
        why = self.why_unreadable(ids)
        if why is not None:
            raise RefusedText(why, reason="a token outside the model's embedding")
