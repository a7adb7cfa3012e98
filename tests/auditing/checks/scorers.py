"""Stand-ins for reward.model.scorer.Scorer that several tests of this folder use."""

from collections.abc import Callable

from reward.data.transcripts import Side, text_of
from reward.model.text_encoder import EncodedCompletions


class WithoutTokens:
    """A scorer whose `rewards` reads texts; its token ids are the prompt and the completion."""

    def encode(self, prompt: Side, completions: list[Side]) -> EncodedCompletions:
        return EncodedCompletions([(prompt, text) for text in completions], prompt_cut=False)

    def rewards_of_ids(self, ids: list[tuple]) -> list[float | None]:
        return self.rewards(ids)


class Lookup(WithoutTokens):
    """Rewards from the completion's text alone, by hand.

    Args:
        reward: From the text to its reward; None where it is too long for the model.
    """

    def __init__(self, reward: Callable[[str], float | None]):
        self.reward = reward
        self.calls = 0

    def rewards(self, texts: list[tuple]) -> list[float | None]:
        self.calls += 1
        return [self.reward(text_of(completion)) for _, completion in texts]
