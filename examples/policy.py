"""A tiny policy that learns in seconds, and answers the demonstration's questions.

    # It learns from the demonstration's answers, good ones and bad ones, and answers:
    python examples/policy.py --model data/quickstart/model --sft 2500 --save policy-0 \\
        --answers answers-0.jsonl
    # A step of DPO on the pairs that score.py has made, and again:
    python examples/policy.py --model policy-0 --dpo pairs-0.jsonl --save policy-1 \\
        --answers answers-1.jsonl

An answer's row is `prompt, completion` as messages, and `gold`: the true reward, which the
demonstration's simulated raters would give without their liking for length.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, logging, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "data" / "quickstart")]

from make import utility_of

from reward.data.transcripts import parse_transcript

BATCH = 16
# What both trainers are given.
COMMON = {
    "per_device_train_batch_size": BATCH,
    "lr_scheduler_type": "cosine",
    "max_length": 256,
    "report_to": [],
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "bf16": False,
    "use_cpu": True,
    "activation_checkpointing": False,
}


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # more only cost on a model so small
    disable_progress_bars()
    logging.disable_progress_bar()
    set_seed(args.seed)
    if args.sft:
        learn_to_answer(args)
    elif args.dpo:
        learn_from_pairs(args)
    write_answers(args)


def learn_to_answer(args: argparse.Namespace) -> None:
    """Supervised fine-tuning on answers of the train split, preferred ones and others in turn."""
    rows = []
    for number, row in enumerate(single_questions("train")[: args.sft]):
        side = ("chosen", "rejected")[number % 2]
        conversation = parse_transcript(row[side])
        rows.append({"prompt": conversation[:-1], "completion": conversation[-1:]})
    config = SFTConfig(args.save, learning_rate=2e-2, num_train_epochs=2, warmup_steps=10, **COMMON)
    trainer = SFTTrainer(args.model, args=config, train_dataset=Dataset.from_list(rows))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()


def learn_from_pairs(args: argparse.Namespace) -> None:
    """Direct preference optimization (arXiv 2305.18290) on the pairs that the reward model made."""
    pairs = load_dataset("json", data_files=args.dpo, split="train")
    config = DPOConfig(
        args.save,
        learning_rate=args.learning_rate,
        num_train_epochs=args.epochs,
        beta=args.beta,
        **COMMON,
    )
    trainer = DPOTrainer(args.model, args=config, train_dataset=pairs)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()


def write_answers(args: argparse.Namespace) -> None:
    """Sample `n` answers to each question, and write them with their true rewards."""
    policy = args.save or args.model
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(policy)
    questions = [parse_transcript(row["chosen"])[:-1] for row in single_questions("test")]
    questions = questions[args.first : args.first + args.questions]
    inputs = tokenizer.apply_chat_template(
        questions, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(
        **inputs,
        do_sample=True,
        temperature=args.temperature,
        max_new_tokens=args.max_new_tokens,
        num_return_sequences=args.n,
    )
    answers = tokenizer.batch_decode(
        tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    with open(args.answers, "w", encoding="utf-8") as file:
        for number, answer in enumerate(answers):
            question = questions[number // args.n]
            row = {
                "prompt": question,
                "completion": [{"role": "assistant", "content": answer}],
                "gold": utility_of(question[-1]["content"], answer),
            }
            file.write(json.dumps(row) + "\n")
    print(f"{policy}: {args.n} answers to each of {len(questions)} questions")


def single_questions(split: str) -> list[dict]:
    """The rows of a split of the demonstration that ask one question, each question once."""
    rows = {}
    with gzip.open(REPO / "data" / "quickstart" / f"{split}.jsonl.gz", "rt") as lines:
        for line in lines:
            row = json.loads(line)
            if row["subset"] != "multi-turn":
                rows.setdefault(row["chosen"].split("\n\nAssistant: ")[0], row)
    return list(rows.values())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="the policy to start from")
    learning = parser.add_mutually_exclusive_group()
    learning.add_argument("--sft", type=int, default=0, help="learn from so many answers")
    learning.add_argument("--dpo", help="learn from the pairs of this file")
    add("--save", help="where the policy that has learned goes")
    add("--answers", required=True, help="file of answers to write")
    add("--questions", type=int, default=64, help="how many questions are answered")
    add("--first", type=int, default=0, help="how many questions are passed over")
    add("--n", type=int, default=8, help="answers to a question")
    add("--temperature", type=float, default=0.7)
    add("--max_new_tokens", type=int, default=128)
    add("--learning_rate", type=float, default=2e-3, help="of DPO")
    add("--epochs", type=float, default=2, help="of DPO")
    add("--beta", type=float, default=0.1, help="of DPO")
    add("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
