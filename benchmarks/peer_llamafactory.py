"""LLaMA-Factory's rm stage beside train_rm.py, on the same pairs and random model, by turns.

    python3.11 -m venv lf && lf/bin/pip install torchvision torchaudio llamafactory==0.9.5
    python benchmarks/peer_llamafactory.py --python lf/bin/python --pairs PAIRS.jsonl.gz

Both train one epoch of the same pairs on a CPU with one thread in float32, each with its own
template, loss and optimizer. The seconds are the process's own CPU time within transformers'
`Trainer.train`, so that loading the model and tokenising are not in them.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from speed import REPO, SHAPES, SIZES, encode_pairs, read_texts
from transformers import AutoModelForCausalLM, Qwen2Config

TOO_LONG = 1024  # tokens; LLaMA-Factory would cut a pair, and we drop it: neither is wanted here
TEST_PAIRS = 8  # train_rm.py trains nothing without some
TIMED = """
import json, runpy, sys, time, transformers

def train(self, *args, **options):
    start = time.process_time()
    output = untimed(self, *args, **options)
    print("CPU seconds of training:", time.process_time() - start, flush=True)
    return output

untimed, transformers.Trainer.train = transformers.Trainer.train, train
"""
PEER = f"{TIMED}from llamafactory.train.tuner import run_exp; run_exp(json.load(open(sys.argv[1])))"
OURS = f"{TIMED}sys.path.insert(0, '.'); runpy.run_path('train_rm.py', run_name='__main__')"


def write_inputs(folder: Path, source: str, data_dir: str | None, shape: str, n: int) -> None:
    """Write the model, and n pairs in the format of each of the two."""
    texts = read_texts(source, data_dir)
    encoded, tokenizer = encode_pairs(texts)
    short = [row for row, ids in zip(texts, encoded, strict=True) if ids["length"] <= TOO_LONG]
    rows = short[:: len(short) // (n + TEST_PAIRS)][: n + TEST_PAIRS]
    config = Qwen2Config(
        **dict(zip(SIZES, SHAPES[shape], strict=True)),
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    file = folder / "base" / "tokenizer_config.json"  # transformers 4 calls the class so
    file.write_text(file.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))

    def turn(message) -> dict:
        return {
            "from": "human" if message["role"] == "user" else "gpt",
            "value": message["content"],
        }

    theirs = []
    for pair in rows[:n]:
        theirs.append(
            {
                "conversations": [turn(message) for message in pair.prompt],
                "chosen": turn(pair.chosen[0]),
                "rejected": turn(pair.rejected[0]),
            }
        )
    (folder / "pairs.json").write_text(json.dumps(theirs), encoding="utf-8")
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    info = {
        "pairs": {
            "file_name": "pairs.json",
            "ranking": True,
            "formatting": "sharegpt",
            "columns": columns,
        }
    }
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    (folder / "ours").mkdir()
    lines = []
    for pair in rows:
        ours = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        lines.append(json.dumps(ours) + "\n")
    (folder / "ours" / "train.jsonl").write_text("".join(lines[:n]), encoding="utf-8")
    (folder / "ours" / "test.jsonl").write_text("".join(lines[n:]), encoding="utf-8")


def run(command: list, pattern: str) -> float:
    """Run a command; return the last number that `pattern` finds in its output."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    numbers = re.findall(pattern, done.stdout + done.stderr)
    if done.returncode or not numbers:
        raise SystemExit(
            f"{command[0]}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
        )
    return float(numbers[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="of the environment that has LLaMA-Factory")
    parser.add_argument("--pairs", default="Anthropic/hh-rlhf")
    parser.add_argument("--data_dir")
    parser.add_argument("--shape", default="tiny", choices=list(SHAPES))
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, n = Path(name), args.batch_size * args.steps
        write_inputs(folder, args.pairs, args.data_dir, args.shape, n)
        common = {
            "per_device_train_batch_size": args.batch_size,
            "gradient_accumulation_steps": 1,
            "num_train_epochs": 1,
        }
        common |= {
            "report_to": "none",
            "use_cpu": True,
            "save_strategy": "no",
            "learning_rate": 1e-5,
        }
        theirs = common | {
            "stage": "rm",
            "do_train": True,
            "finetuning_type": "full",
            "model_name_or_path": str(folder / "base"),
            "template": "qwen",
            "dataset": "pairs",
            "dataset_dir": name,
            "cutoff_len": 2 * TOO_LONG,
            "bf16": False,
            "output_dir": str(folder / "theirs"),
            "overwrite_output_dir": True,
            "disable_gradient_checkpointing": True,
        }
        (folder / "theirs.json").write_text(json.dumps(theirs), encoding="utf-8")
        ours = common | {
            "model_name_or_path": str(folder / "base"),
            "dataset_name": str(folder / "ours"),
            "eval_strategy": "no",
            "activation_checkpointing": False,
            "validation_fraction": 0.0,
            "max_length": 2 * TOO_LONG,
            "max_dropped": 0.5,
            "head_init": "normal",
        }
        (folder / "ours.yaml").write_text(json.dumps(ours), encoding="utf-8")  # JSON is YAML
        commands = {
            "LLaMA-Factory": [args.python, "-c", PEER, folder / "theirs.json"],
            "train_rm.py, padded": ["--prefix_sharing", "off"],
            "train_rm.py": [],
        }
        speeds = {key: [] for key in commands}
        for number in range(args.rounds):
            for key, command in commands.items():
                if key != "LLaMA-Factory":
                    script = [sys.executable, "-c", OURS, "--recipe", folder / "ours.yaml"]
                    command = [
                        *script,
                        "--output_dir",
                        folder / f"{number}{len(command)}",
                        *command,
                    ]
                seconds = run(command, r"CPU seconds of training: ([\d.]+)")
                speeds[key].append(n / seconds)
    print(
        f"{args.shape}, {n} pairs, {args.batch_size} a step, {args.rounds} rounds, "
        f"torch {torch.__version__}"
    )
    print("\n| | pairs/s | x LLaMA-Factory |\n|---|---|---|")
    for key, pairs_a_second in speeds.items():
        peers = speeds["LLaMA-Factory"]
        ratios = [mine / peer for mine, peer in zip(pairs_a_second, peers, strict=True)]
        print(
            f"| {key} | {statistics.median(pairs_a_second):.2f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


if __name__ == "__main__":
    main()
