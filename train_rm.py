"""Train a reward model: recipe -> preferences -> token ids -> RewardTrainer -> verified checkpoint.

    accelerate launch --config_file accelerate_configs/single.yaml \\
        train_rm.py --recipe recipes/quickstart.yaml
    python train_rm.py --recipe qwen-0.5b --learning_rate 1e-5 --output_dir rm-lr1e-5
    python train_rm.py --list-recipes                                  # the short names
    python train_rm.py --recipe qwen-0.5b --check-data                 # the ledger of the data
    python train_rm.py --recipe qwen-7b-zero3 \\
        --plan accelerate_configs/zero3.yaml                           # memory, tokens, steps

The last three train nothing. Exit statuses of this process: 0 all is well, 2 bad input, 3
non-finite loss or gradient, 75 interrupted and resumable, 1 anything else; what happened is said
above.
"""

import os
import sys
import time

from reward.data.shown import shown
from reward.data.streams import keep_printing
from reward.model.hub import why_absent
from reward.model.interrupts import INTERRUPTED, raise_on_sigterm
from reward.recipe.parse import parse_command_line
from reward.recipe.recipe import RecipeError


def main(argv: list[str]) -> int:
    """Read the recipe and train. Returns the exit status."""
    raise_on_sigterm()
    try:
        return read_and_train(argv)
    except KeyboardInterrupt:
        print("train_rm.py: interrupted before anything was read", file=sys.stderr)
        return INTERRUPTED


def read_and_train(argv: list[str]) -> int:
    """Read the recipe and train. Returns the exit status."""
    try:
        recipe = parse_command_line(argv)
    except RecipeError as error:
        return refuse(str(error))
    if recipe.plan is not None and os.environ.get("RANK", "0") != "0":
        return 0  # one process is enough to plan for all

    absent = why_absent(recipe["model_name_or_path"], recipe["model_revision"])
    if absent is not None:
        return refuse(f"train_rm.py: {shown(absent)}")

    # Imports torch and the rest, which takes seconds: only now that the recipe is sound.
    from reward.training.run import run

    return run(recipe)


def refuse(message: str) -> int:
    """Say why nothing is trained, once for all processes of a launch. Returns the exit status."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)
    else:
        # As soon as one process is gone the launcher ends the others, also the one that speaks.
        time.sleep(10)
    return 2


def leave(status: int) -> None:
    """Exit with a status; in a launched run at once, without Python's clean-up.

    DeepSpeed's threads at times abort in that clean-up, and the launcher would then end the process
    that is still verifying the model.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    keep_printing()
    leave(main(sys.argv[1:]))
