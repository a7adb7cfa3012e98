"""Print how completions compare: `print_one_off(scorer, "What is 2+2?", ["4.", "5."])`."""

import itertools
import math

from reward.data.transcripts import assistant, user
from reward.model.hub import checkpoint_json
from reward.model.scorer import Scorer, processes


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

    The Bradley-Terry model gives P(A beats B) = sigmoid((r_A - r_B) / T).

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
    names = [letter_or_number(i) for i in range(len(completions))]
    for name, text, reward in zip(names, completions, rewards, strict=True):
        if reward is None:
            print(f"{name}  too long  {text}")
        else:
            print(f"{name}  {reward:+.4f}  {text}")
    if encoded.prompt_cut:
        print(f"(the start of the prompt was cut, to fit {scorer.limit} tokens)")
    print_chances(names, rewards, temperature)
    if temperature != 1:
        print(f"(margins divided by {temperature:.2f}, the temperature that the audit found)")
    if encoded.prompt_cut:  # The rewards by token would be those of another text.
        return
    for name, text, reward in zip(names, completions, rewards, strict=True):
        if reward is not None:
            print_rewards_by_token(name, scorer.rewards_by_token(turns, assistant(text)))


def letter_or_number(i: int) -> str:
    """Return the name of the completion at index i: A to Z, then numbers."""
    if i < 26:
        return chr(ord("A") + i)
    return str(i + 1)


def print_chances(names: list[str], rewards: list[float | None], temperature: float) -> None:
    """Print P(A beats B) of each two completions that have a reward."""
    rewarded = [pair for pair in zip(names, rewards, strict=True) if pair[1] is not None]
    for (name, reward), (other_name, other_reward) in itertools.combinations(rewarded, 2):
        logit = (reward - other_reward) / temperature
        chance = 0.5 + 0.5 * math.tanh(logit / 2)  # the sigmoid, which cannot overflow so
        print(f"P({name} beats {other_name}) = {chance:.3f}")


def print_rewards_by_token(name: str, steps: list[tuple[str, float]] | None) -> None:
    """Print (token, reward) steps; nothing where the model has none, as an encoder."""
    if not steps:
        return
    print(f"\n{name}, reward after each token (only the last value was trained):")
    words = []
    for token, reward in steps:
        visible = token.strip() or repr(token)
        words.append(f"{visible} {reward:+.2f}")
    print("  ".join(words))
