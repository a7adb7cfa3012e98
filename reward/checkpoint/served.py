"""A checkpoint's golden rewards against what a server gives: `compare(golden, rewards, allowed)`.

    python -m reward.checkpoint.verify rm-out --endpoint http://localhost:8000

score.py asks the same before it scores with --endpoint.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from reward.checkpoint.contract import ALLOWED_OF_STD, EXACT, standard_deviation
from reward.checkpoint.golden import GoldenText, read_golden
from reward.data.feedback import sigmoid
from reward.data.shown import shown
from reward.model.endpoint import EndpointScorer
from reward.model.hub import ModelError, checkpoint_file
from reward.model.server import EndpointError

MEND_SIGMOID = (
    'write "problem_type": "regression" into config.json where the server reads it, and start it '
    "again"
)


@dataclass(frozen=True)
class Comparison:
    """A server's rewards of the golden texts beside the checkpoint's."""

    largest: float  # the largest difference; infinite where a reward is not finite
    allowed: float
    is_sigmoid: bool  # whether the server's are sigmoid(reward)
    shift: float | None  # what the server's are all off by, where that is more than is allowed
    are_probabilities: bool  # whether all of the server's lie between 0 and 1

    @property
    def passed(self) -> bool:
        """Whether the rewards are the same."""
        return self.largest <= self.allowed


def compare(golden: list[float], served: list[float], allowed: float) -> Comparison:
    """Compare a server's rewards with the golden ones.

    Args:
        golden: The checkpoint's.
        served: The server's, of the same texts.
        allowed: The largest difference that is none.
    """
    differences = [there - here for here, there in zip(golden, served, strict=True)]
    largest = _largest(differences)
    rounded = max(allowed, ALLOWED_OF_STD * standard_deviation(golden))
    from_sigmoid = _largest(
        [there - sigmoid(here) for here, there in zip(golden, served, strict=True)]
    )
    shift = sum(differences) / len(differences)
    is_shift = largest > allowed and _largest([one - shift for one in differences]) <= allowed
    if not is_shift:
        shift = None
    return Comparison(
        largest=largest,
        allowed=allowed,
        is_sigmoid=from_sigmoid <= rounded < largest,
        shift=shift,
        are_probabilities=all(0 <= reward <= 1 for reward in served),
    )


def _largest(differences: list[float]) -> float:
    if not all(map(math.isfinite, differences)):
        return math.inf
    return max(map(abs, differences))


# --- The golden texts -----------------------------------------------------------------------------


def golden_of(scorer: EndpointScorer, revision: str = "main") -> list[GoldenText]:
    """Return the golden texts that have a reward and that the server can read.

    Args:
        scorer: The served model. Its checkpoint may have no golden texts.
        revision: The branch, tag or commit of a Hub model.
    """
    path = checkpoint_file(scorer.name, "golden.jsonl", revision)
    if path is None:
        return []
    most = scorer.server.model.limit or math.inf
    texts = []
    for text in read_golden(Path(path).parent):
        if text.get("reward") is not None and len(text["ids"]) <= most:
            texts.append(text)
    return texts


def allowed_difference(manifest: dict, golden: list[float]) -> float:
    """Return the tolerance that the checkpoint itself was verified with."""
    verified = manifest.get("verified") or {}
    if "tolerance" in verified:
        return verified["tolerance"]
    if manifest.get("dtype", "float32") == "float32":
        return EXACT
    return max(EXACT, ALLOWED_OF_STD * standard_deviation(golden))


def served_rewards(
    scorer: EndpointScorer, golden: list[GoldenText], raw: bool = True
) -> list[float]:
    """Return a server's rewards of the golden texts; see `Server.rewards`."""
    return list(scorer.server.rewards([scorer.as_sent(text["ids"]) for text in golden], raw))


# --- Before score.py scores -----------------------------------------------------------------------


def check_served_model(scorer: EndpointScorer, revision: str = "main") -> None:
    """Say how far the server's rewards are from the checkpoint's golden ones, where it has any.

    Raises:
        EndpointError: They are so far off that the server has another model, or applies a sigmoid.
    """
    ckpt = scorer.name
    golden = golden_of(scorer, revision)
    if not golden:
        return
    rewards = [text["reward"] for text in golden]
    found = compare(
        rewards, served_rewards(scorer, golden), allowed_difference(scorer.manifest, rewards)
    )
    if found.is_sigmoid:
        raise EndpointError(
            f"{scorer.server.described} gives sigmoid(reward), in which good completions tie; "
            f"{MEND_SIGMOID}"
        )
    rounded = max(found.allowed, ALLOWED_OF_STD * standard_deviation(rewards))
    if found.largest > rounded and found.shift is None:
        raise EndpointError(
            f"{scorer.server.described} is not {ckpt}: rewards of its golden texts differ by up to "
            f"{found.largest:.3g}, and {rounded:.3g} is what rounding to 16 bits explains. "
            f"python -m reward.checkpoint.verify {ckpt} --endpoint URL says more"
        )
    words = f"within {found.largest:.1e}"
    if found.shift is not None:
        words = f"moved by {found.shift:+.4f}, the same for every text"
    print(f"the server gives the golden rewards of {ckpt} {words}", file=sys.stderr)


# --- The command ----------------------------------------------------------------------------------


def verify_endpoint(ckpt: str, url: str) -> int:
    """Print how far a server's rewards are from a checkpoint's golden ones.

    Returns:
        The exit status: 0 if they are the same, 1 if not, 2 if they cannot be compared.
    """
    try:
        scorer = EndpointScorer(ckpt, url)
        golden = golden_of(scorer)
        if not golden:
            raise ModelError(
                f"{ckpt} has no golden.jsonl with rewards of texts that the server can read; "
                "train_rm.py writes it with a checkpoint"
            )
        rewards = [text["reward"] for text in golden]
        allowed = allowed_difference(scorer.manifest, rewards)
        plain = compare(rewards, served_rewards(scorer, golden, raw=False), allowed)
        print(f"{ckpt} against {scorer.server.described}: {len(golden)} golden texts")
        print(in_words(plain, rewards))
        if not plain.passed and scorer.server.route.raw:
            raw = compare(rewards, served_rewards(scorer, golden), allowed)
            asked = ", ".join(
                f'"{key}": {json.dumps(value)}' for key, value in scorer.server.route.raw
            )
            print(f"asked with {asked}, as score.py asks: {in_words(raw, rewards)}")
        rendered_there = check_messages(scorer, golden, allowed)
    except ModelError as error:
        print(f"verify: {shown(error)}", file=sys.stderr)
        return 2
    if plain.passed and rendered_there:
        return 0
    return 1


def check_messages(scorer: EndpointScorer, golden: list[GoldenText], allowed: float) -> bool:
    """Compare the rewards of conversations that the server renders, with a template of its own.

    Returns:
        Whether they are the golden ones; True where the server renders none.
    """
    texts = []
    for row in golden:
        text = row["text"]
        if text is not None and isinstance(text["prompt"], list) and not text["tools"]:
            texts.append(row)
    if not scorer.server.route.reads_messages or not texts:
        return True
    rewards = []
    for row in texts:
        messages = row["text"]["prompt"] + row["text"]["completion"]
        rewards.append(scorer.server.reward_of_messages(messages))
    expected = [row["reward"] for row in texts]
    found = compare(expected, rewards, allowed)
    print(f"as messages, which the server renders: {in_words(found, expected)}")
    return found.passed


def in_words(found: Comparison, golden: list[float]) -> str:
    """Return the result of a comparison, and what a difference probably is."""
    verdict = "FAILED"
    if found.passed:
        verdict = "passed"
    words = f"{verdict}: largest difference {found.largest:.1e}, allowed {found.allowed:.1e}"
    rounded = ALLOWED_OF_STD * standard_deviation(golden)
    if found.is_sigmoid:
        return f"{words}; the server applies a sigmoid: {MEND_SIGMOID}"
    if not found.passed and found.are_probabilities:
        return (
            f"{words}; the server's numbers lie between 0 and 1, as after the softmax over two "
            f"labels: {MEND_SIGMOID}"
        )
    if found.shift is not None:
        return f"{words}; all rewards are moved by {found.shift:+.4f}, so that no order changes"
    if not found.passed and found.largest <= rounded:
        return (
            f"{words}; rounding to 16 bits explains as much: start the server with --dtype float32"
        )
    return f"{words}; no sigmoid"
