"""Print how completions compare: `print_one_off(scorer, "What is 2+2?", ["4.", "5."])`."""

import itertools
import math
from dataclasses import dataclass

from reward.data.transcripts import assistant, user
from reward.model.hub import checkpoint_json
from reward.model.scorer import Scorer, processes


@dataclass
class Rewarded:
    """A completion that has a reward."""

    name: str  # A, B, C, ...
    text: str
    reward: float


def audited_temperature(ckpt: str, revision: str) -> float:
    """Return what divides margins so that sigmoid(margin) is calibrated.

    It is what audit.py found and left in the checkpoint; 1 where it did not look.
    """
    audit = checkpoint_json(ckpt, "audit/audit.json", revision) or {}
    return audit.get("temperature") or 1.0


def print_one_off(
    scorer: Scorer, prompt: str, completions: list[str], temperature: float = 1.0
) -> None:
    """Print rewards, which completion beats which, and the reward after each token.

    The Bradley-Terry model gives P(A beats B) = sigmoid((r_A - r_B) / T), and the tokens show where
    a reward comes from.

    Args:
        scorer: The reward model. Every process of `accelerate launch` calls this; the main one
            prints.
        prompt: The user's turn.
        completions: The assistant's turns that are compared.
        temperature: T, the audit's temperature or 1.
    """
    turns = user(prompt)
    encoded = scorer.encode(turns, [assistant(text) for text in completions])
    rewards = scorer.rewards_of_ids(encoded.ids)
    if not processes().is_main_process:
        return
    rewarded = []  # the completions that have a reward
    for i, (text, reward) in enumerate(zip(completions, rewards, strict=True)):
        name = letter_or_number(i)
        if reward is None:
            print(f"{name}  too long  {text}")
        else:
            print(f"{name}  {reward:+.4f}  {text}")
            rewarded.append(Rewarded(name, text, reward))
    if encoded.prompt_cut:
        print(f"(the start of the prompt was cut, to fit {scorer.limit} tokens)")
    for one, other in itertools.combinations(rewarded, 2):
        chance = chance_to_win(one.reward - other.reward, temperature)
        print(f"P({one.name} beats {other.name}) = {chance:.3f}")
    if temperature != 1:
        print(f"(margins divided by {temperature:.2f}, the temperature that the audit found)")
    if encoded.prompt_cut:
        return  # The rewards by token would be those of another text.
    for completion in rewarded:
        steps = scorer.rewards_by_token(turns, assistant(completion.text))
        if steps:
            print_rewards_by_token(completion.name, steps)


def letter_or_number(i: int) -> str:
    """Return the name of the completion at index i: A to Z, then numbers."""
    if i < 26:
        return chr(ord("A") + i)
    return str(i + 1)


def chance_to_win(margin: float, temperature: float) -> float:
    """Return sigmoid(margin / temperature), in a form that cannot overflow."""
    logit = margin / temperature
    return 0.5 + 0.5 * math.tanh(logit / 2)


def print_rewards_by_token(name: str, steps: list[tuple[str, float]]) -> None:
    """Print the (token, reward after it) steps of a completion."""
    print(f"\n{name}, reward after each token (only the last value was trained):")
    words = []
    for token, reward in steps:
        visible = token.strip() or repr(token)
        words.append(f"{visible} {reward:+.2f}")
    print("  ".join(words))
