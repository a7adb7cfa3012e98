"""Reward models of LLaMA-Factory's rm stage, full and LoRA, and the rewards that it computes itself: the fixtures of
tests/reward/model/test_peers.py. Run in an environment of its own, which tests/reward/model/test_peers.py does not need:

    python3.11 -m venv lf && lf/bin/pip install torch torchvision torchaudio llamafactory==0.9.5
    python tests/peers/make_llamafactory.py base                               # ours: the tiny model that both start from
    lf/bin/python tests/peers/make_llamafactory.py train                       # theirs: trains, scores, writes tests/peers/
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
BASE = HERE / "base"
TEXTS = [
    "what is tea?",
    "how can you tell me about the garden",
    "sorry",
    "here are three steps: first water, then patience.",
]


def make_base() -> None:
    sys.path.insert(0, str(HERE.parent))
    from standins import make_model

    make_model(BASE, "qwen")
    config = BASE / "tokenizer_config.json"
    config.write_text(
        config.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast")
    )  # transformers 4's name


def train(kind: str, work: Path) -> None:
    """`llamafactory-cli train` of four steps, then its model as its own loader makes it."""
    import torch
    from llamafactory.hparams import get_infer_args
    from llamafactory.model import load_model, load_tokenizer
    from llamafactory.train.tuner import run_exp

    rows = [
        {
            "instruction": f"{text} {i}",
            "input": "",
            "chosen": f"here are {i} steps",
            "rejected": f"sorry {text}",
        }
        for i in range(4)
        for text in TEXTS
    ]
    (work / "pairs.json").write_text(json.dumps(rows))
    columns = {
        "prompt": "instruction",
        "query": "input",
        "chosen": "chosen",
        "rejected": "rejected",
    }
    info = {"pairs": {"file_name": "pairs.json", "ranking": True, "columns": columns}}
    (work / "dataset_info.json").write_text(json.dumps(info))
    out = HERE / f"llamafactory-{kind}"
    shutil.rmtree(out, ignore_errors=True)
    common = {"model_name_or_path": str(BASE), "template": "qwen", "finetuning_type": kind}
    common |= {"lora_target": "all", "lora_rank": 2} if kind == "lora" else {}
    run_exp(
        common
        | {
            "stage": "rm",
            "do_train": True,
            "dataset": "pairs",
            "dataset_dir": str(work),
            "output_dir": str(work / kind),
        }
        | {
            "max_steps": 4,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 4,
            "save_steps": 4,
            "logging_steps": 1,
        }
        | {
            "report_to": "none",
            "use_cpu": True,
            "fp16": False,
            "bf16": False,
            "save_only_model": True,
        }
    )
    shutil.copytree(
        work / kind,
        out,
        ignore=shutil.ignore_patterns("checkpoint-*", "*.json*l", "training_args.bin", "*.md"),
    )
    for name in (
        "trainer_state.json",
        "train_results.json",
        "all_results.json",
        "trainer_log.jsonl",
    ):
        (out / name).unlink(missing_ok=True)
    if kind == "lora":
        adapter = json.loads((out / "adapter_config.json").read_text())
        adapter["base_model_name_or_path"] = (
            "tests/peers/base"  # from the repository's root, where tests run
        )
        (out / "adapter_config.json").write_text(json.dumps(adapter, indent=1) + "\n")
        common["adapter_name_or_path"] = str(work / kind)
    else:
        common["model_name_or_path"] = str(work / kind)
    model_args, _, finetuning_args, _ = get_infer_args(common)
    model_args.device_map = None  # its map to a CPU is refused by the value head it loads
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    model = (
        load_model(tokenizer, model_args, finetuning_args, is_trainable=True, add_valuehead=True)
        .float()
        .eval()
    )
    found = []
    for text in TEXTS:
        turns = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": f"{text} thank you for asking"},
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            _, _, values = model(
                torch.tensor([ids]), output_hidden_states=True, return_dict=True, use_cache=False
            )
        found.append(
            {"ids": ids, "reward": values[0, -1].item()}
        )  # as its rm trainer: the last token that is not pad
    (out / "rewards.json").write_text(
        "\n".join(["[", ",\n".join(map(json.dumps, found)), "]"]) + "\n"
    )
    for path in out.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    if sys.argv[1] == "base":
        make_base()
    else:
        for kind in ("full", "lora"):
            with tempfile.TemporaryDirectory() as work:
                train(kind, Path(work))
