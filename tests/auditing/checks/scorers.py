"""A stand-in for reward.model.scorer.Scorer that several tests of this folder use."""

from collections.abc import Callable

from reward.data.transcripts import text_of


class Lookup:
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
