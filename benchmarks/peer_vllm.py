"""Scoring beside vLLM with its prefix cache, on the same texts and random model, by turns.

    bash benchmarks/serving.sh --families Qwen2 --most 50     # makes .venv-vllm, 3.5 GB
    python benchmarks/peer_vllm.py --vllm_python .venv-vllm/bin/python --pairs PAIRS.jsonl.gz

All compute in float32 with one thread of a CPU, and the seconds are each process's own CPU time:
score.py's scorer, vLLM's pooling engine called from Python (so without a server), and stock
transformers on padded batches of eight texts, sorted by length and as they come. All get token ids.
vLLM's cache is emptied before each round. A ratio is the other's time over ours in a round; printed
is the median (lowest to highest).
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from speed import (
    SHAPES,
    SIDES,
    best_of,
    build,
    encode_pairs,
    evenly,
    padded_tokens,
    read_texts,
    scorer_of,
    stock,
)

from reward.model import TOKEN_BUDGET
from reward.model.packed_attention import enable_packing

WORKER = Path(__file__).with_name("vllm_rewards.py")
PADDED_BATCH = 8  # texts
Texts = list[list[int]]
Timed = Callable[[Texts], tuple[float, list[float]]]  # token ids -> CPU seconds, rewards


class Vllm:
    """A process that scores texts with vLLM.

    Args:
        python: The Python of an environment that has vLLM.
        checkpoint: The model's folder.
        options: Options of vllm_rewards.py.
    """

    def __init__(self, python: str, checkpoint: Path, *options: str):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process)
        self.process = subprocess.Popen(
            [python, WORKER, checkpoint, *options],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.answer("ready")

    def answer(self, start: str) -> str:
        """Return the next line that starts so; vLLM prints others of its own."""
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        self.log.seek(0)
        raise SystemExit(f"vLLM ended:\n{self.log.read()[-3000:]}")

    def rewards(self, texts: Texts) -> tuple[float, list[float]]:
        """Return that process's CPU seconds, and the rewards in the order of the texts."""
        self.process.stdin.write(f"{json.dumps(texts)}\n")
        self.process.stdin.flush()
        found = json.loads(self.answer('{"seconds"'))
        return found["seconds"], found["rewards"]

    def end(self) -> None:
        """End the process, and wait for it."""
        self.process.stdin.close()
        self.process.wait()


def timed(score: Callable[[Texts], list[float]]) -> Timed:
    """Return what measures the CPU seconds that this process takes to score texts."""

    def measured(texts: Texts) -> tuple[float, list[float]]:
        start = time.process_time()
        rewards = score(texts)
        return time.process_time() - start, rewards

    return measured


def our_rewards(model, tokenizer) -> Callable[[Texts], list[float]]:
    """Return score.py's scorer."""
    scorer = scorer_of(model, tokenizer, TOKEN_BUDGET)

    def score(texts: Texts) -> list[float]:
        enable_packing(model)
        return scorer.rewards_of_ids(texts)

    return score


def stock_rewards(model, tokenizer, by_length: bool) -> Callable[[Texts], list[float]]:
    """Return what scores as stock transformers does, one padded batch after the other."""

    def score(texts: Texts) -> list[float]:
        stock(model)
        order = list(range(len(texts)))
        if by_length:
            order.sort(key=lambda i: len(texts[i]))
        rewards = [0.0] * len(texts)
        for start in range(0, len(order), PADDED_BATCH):
            chosen = order[start : start + PADDED_BATCH]
            inputs = tokenizer.pad(
                {"input_ids": [texts[i] for i in chosen]}, padding_side="right", return_tensors="pt"
            )
            with torch.inference_mode():
                logits = model(**inputs, use_cache=False).logits
            for i, reward in zip(chosen, logits.flatten().tolist(), strict=True):
                rewards[i] = reward
        return rewards

    return score


def jobs_of(pairs: list[dict], scored: int) -> dict[str, Texts]:
    """The texts of two jobs, each about `scored` pairs' worth: pairs, and best of 16."""
    sampled = random.Random(1).sample(pairs, min(scored, len(pairs)))
    groups = evenly(best_of(pairs, 16), max(scored // 8, 2), padded_tokens)
    random.Random(0).shuffle(groups)
    return {
        f"{len(sampled)} pairs": [pair[side] for pair in sampled for side in SIDES],
        f"best of 16, {len(groups)} prompts": [text for group in groups for text in group],
    }


def measure(variants: dict[str, Timed], texts: Texts, rounds: int) -> tuple[dict, dict]:
    """Return each variant's seconds by rounds, and its rewards; all take turns in a round."""
    seconds = {name: [] for name in variants}
    rewards = {}
    for score in variants.values():
        score(texts)  # the first time compiles and allocates
    for _ in range(rounds):
        for name, score in variants.items():
            taken, rewards[name] = score(texts)
            seconds[name].append(taken)
    return seconds, rewards


def print_rows(shape: str, job: str, texts: int, seconds: dict, rewards: dict) -> None:
    """Print a row for each variant: its seconds, and how it compares with score.py."""
    ours = seconds["score.py"]
    for name, taken in seconds.items():
        ratios = [other / own for other, own in zip(taken, ours, strict=True)]
        apart = max(abs(a - b) for a, b in zip(rewards[name], rewards["score.py"], strict=True))
        middle = statistics.median(taken)
        print(
            f"| {shape} | {job} | {name} | {middle:.2f} | {texts / middle:.0f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {apart:.0e} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vllm_python", required=True, help="of the environment that has vLLM")
    parser.add_argument("--pairs", default="Anthropic/hh-rlhf")
    parser.add_argument("--data_dir")
    parser.add_argument("--shapes", default="tiny,8-layers", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--scored", type=int, default=128, help="pairs a job is worth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--eager", action="store_true", help="vLLM without torch.compile, which needs a compiler"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    pairs, tokenizer = encode_pairs(read_texts(args.pairs, args.data_dir))
    pairs = [pair for pair in pairs if pair["length"] <= 1024]
    jobs = jobs_of(pairs, args.scored)
    print(f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, one thread, float32\n")
    print("| shape | job | | CPU s | texts/s | x score.py | rewards differ by |")
    print("|---" * 7 + "|")
    for shape in args.shapes.split(","):
        model = build(shape, "cpu").eval()
        model.config.problem_type = "regression"  # else vLLM would apply a sigmoid
        torch.nn.init.normal_(model.score.weight, std=0.1)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            vllm = Vllm(args.vllm_python, Path(folder), *["--eager"] * args.eager)
        variants = {
            "score.py": timed(our_rewards(model, tokenizer)),
            "vLLM": vllm.rewards,
            "padded, by length": timed(stock_rewards(model, tokenizer, by_length=True)),
            "padded": timed(stock_rewards(model, tokenizer, by_length=False)),
        }
        for job, texts in jobs.items():
            seconds, rewards = measure(variants, texts, args.rounds)
            print_rows(shape, job, len(texts), seconds, rewards)
        vllm.end()


if __name__ == "__main__":
    main()
