"""Print how completions compare: `print_one_off(scorer, "What is 2+2?", ["4.", "5."])`."""

import itertools
from dataclasses import dataclass

from reward.data.feedback import chance_to_win
from reward.data.shown import visible
from reward.data.transcripts import assistant, user
from reward.model.reward_units import temperature_of_audit
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
    temperature = temperature_of_audit(ckpt, revision)
    if temperature is None:
        return 1.0
    return temperature


def print_one_off(
    scorer: Scorer,
    prompt: str,
    completions: list[str],
    temperature: float | None = 1.0,
    tokens: bool = False,
) -> None:
    """Print completions with their rewards, the best one first, and which one beats which.

    The Bradley-Terry model gives P(A beats B) = sigmoid((r_A - r_B) / T).

    Args:
        scorer: The reward model. Every process of `accelerate launch` calls this; the main one
            prints.
        prompt: The user's turn.
        completions: The assistant's turns that are compared. They are called A, B, C in this order.
        temperature: T, the audit's temperature or 1; None where margins are no log-odds.
        tokens: Whether to print the reward after each token, which shows where it comes from.
    """
    turns = user(prompt)
    encoded = scorer.encode(turns, [assistant(text) for text in completions])
    rewards = scorer.rewards_of_ids(encoded.ids)
    if not processes().is_main_process:
        return
    ranked = []
    too_long = []
    for i, (text, reward) in enumerate(zip(completions, rewards, strict=True)):
        if reward is None:
            too_long.append(f"{letter_or_number(i)}  too long  {text}")
        else:
            ranked.append(Rewarded(letter_or_number(i), text, reward))
    ranked.sort(key=lambda completion: -completion.reward)
    for completion in ranked:
        print(f"{completion.name}  {completion.reward:+.4f}  {completion.text}")
    for line in too_long:
        print(line)
    if encoded.prompt_cut:
        print(f"(the start of the prompt was cut, to fit {scorer.limit} tokens)")
    if temperature is not None:
        print_chances(ranked, temperature)
    elif len(ranked) > 1:
        print("(no chances to win: the loss that this model was trained with claims none)")
    if not tokens:
        return
    if encoded.prompt_cut:
        print("(no rewards by token: they would be those of the whole prompt)")
        return
    for completion in ranked:
        steps = scorer.rewards_by_token(turns, assistant(completion.text))
        if steps:
            print_rewards_by_token(completion.name, steps)
        else:
            print("(no rewards by token: the model's head does not read single tokens)")
            return


def print_chances(ranked: list[Rewarded], temperature: float) -> None:
    """Print with which probability a completion beats each one that is ranked below it."""
    if len(ranked) < 2:
        return
    for one, other in itertools.combinations(ranked, 2):
        chance = chance_to_win(one.reward - other.reward, temperature)
        print(f"P({one.name} beats {other.name}) = {chance:.3f}")
    if temperature != 1:
        print(f"(margins divided by {temperature:.2f}, the temperature that the audit found)")


def letter_or_number(i: int) -> str:
    """Return the name of the completion at index i: A to Z, then numbers."""
    if i < 26:
        return chr(ord("A") + i)
    return str(i + 1)


def print_rewards_by_token(name: str, steps: list[tuple[str, float]]) -> None:
    """Print the (token, reward after it) steps of a completion."""
    print(f"\n{name}, reward after each token (only the last value was trained):")
    words = []
    for token, reward in steps:
        word = token.strip() or repr(token)
        words.append(f"{visible(word)} {reward:+.2f}")
    print("  ".join(words))
