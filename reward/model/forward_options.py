"""The options of score.py and audit.py that say how a forward computes: `add_forward(parser)`."""

import argparse

from reward.model import TOKEN_BUDGET


def add_forward(parser: argparse.ArgumentParser) -> None:
    """Add the options --token_budget and --dtype."""
    parser.add_argument(
        "--token_budget",
        type=int,
        default=TOKEN_BUDGET,
        help=f"tokens that are computed at once ({TOKEN_BUDGET}): lower it to save memory",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="what the model computes in, if not in the dtype of its files: bfloat16 takes about "
        "half the time, and moves rewards a little (docs/scoring.md)",
    )
