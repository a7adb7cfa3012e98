"""TRL's GRPO with a reward model of train_rm.py: `reward_funcs` is its folder, nothing else.

    bash examples/online_loop.sh rm-out                # it leaves a policy that can answer
    python examples/grpo.py --rm rm-out --model loop/policy --save loop/grpo

For a reward model that was trained as an adapter, name its `merged` folder: --rm rm-out/merged.
It prints the mean reward of each step, and how long the answers are.
"""

import argparse
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "examples")]

from policy import single_questions

from reward.data.transcripts import parse_transcript


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # more only cost on a model so small
    prompts = [
        {"prompt": parse_transcript(row["chosen"])[:-1]} for row in single_questions("train")
    ]
    config = GRPOConfig(
        args.save,
        max_steps=args.steps,
        per_device_train_batch_size=args.questions * args.n,
        num_generations=args.n,
        max_completion_length=128,
        temperature=0.7,
        learning_rate=args.learning_rate,
        beta=0.04,  # how much the policy is kept near where it started
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        bf16=False,
        use_cpu=True,
        activation_checkpointing=False,
    )
    trainer = GRPOTrainer(
        model=args.model,
        reward_funcs=args.rm,
        args=config,
        train_dataset=Dataset.from_list(prompts),
    )
    trainer.remove_callback(PrinterCallback)  # it prints some 25 figures a step
    trainer.train()
    for log in trainer.state.log_history:
        if "reward" in log:
            length = log["completions/mean_length"]
            print(
                f"step {log['step']:3}: reward {log['reward']:+.3f}, {length:.0f} tokens an answer"
            )
    trainer.save_model()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rm", default="rm-out", help="folder of the reward model")
    add("--model", default="loop/policy", help="the policy to start from")
    add("--save", default="loop/grpo", help="where the policy that has learned goes")
    add("--steps", type=int, default=20)
    add("--questions", type=int, default=8, help="of a step")
    add("--n", type=int, default=8, help="answers to each question")
    add("--learning_rate", type=float, default=1e-3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
