"""Make the fixtures of tests/reward/model/test_peers.py: reward models of LLaMA-Factory's rm stage.

There are a full one and a LoRA, and the rewards that LLaMA-Factory computes for them itself. Run
this in an environment of its own, which tests/reward/model/test_peers.py does not need:

    python3.11 -m venv lf
    lf/bin/pip install torch torchvision torchaudio llamafactory==0.9.5
    python tests/peers/make_llamafactory.py base
    lf/bin/python tests/peers/make_llamafactory.py train

The first, in our environment, makes the tiny model that both start from. The second, in theirs,
trains, scores and writes tests/peers/.
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
    """Write the tiny model that both trainings start from."""
    sys.path.insert(0, str(HERE.parent))
    from standins import make_model

    make_model(BASE, "qwen")
    config = BASE / "tokenizer_config.json"
    # transformers 4 knows the class by its older name.
    text = config.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast")
    config.write_text(text)


def write_pairs(work: Path) -> None:
    """Write 16 pairs to pairs.json, and the dataset_info.json by which LLaMA-Factory finds them."""
    rows = []
    for i in range(4):
        for text in TEXTS:
            row = {"instruction": f"{text} {i}", "input": ""}
            row |= {"chosen": f"here are {i} steps", "rejected": f"sorry {text}"}
            rows.append(row)
    (work / "pairs.json").write_text(json.dumps(rows))
    columns = {"prompt": "instruction", "query": "input"}
    columns |= {"chosen": "chosen", "rejected": "rejected"}
    info = {"pairs": {"file_name": "pairs.json", "ranking": True, "columns": columns}}
    (work / "dataset_info.json").write_text(json.dumps(info))


def train(kind: str, work: Path) -> None:
    """`llamafactory-cli train` of four steps, then its model as its own loader makes it."""
    import torch
    from llamafactory.hparams import get_infer_args
    from llamafactory.model import load_model, load_tokenizer
    from llamafactory.train.tuner import run_exp

    write_pairs(work)
    out = HERE / f"llamafactory-{kind}"
    shutil.rmtree(out, ignore_errors=True)
    common = {"model_name_or_path": str(BASE), "template": "qwen", "finetuning_type": kind}
    if kind == "lora":
        common |= {"lora_target": "all", "lora_rank": 2}
    options = {"stage": "rm", "do_train": True, "output_dir": str(work / kind)}
    options |= {"dataset": "pairs", "dataset_dir": str(work)}
    options |= {"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
    options |= {"save_steps": 4, "logging_steps": 1, "report_to": "none", "save_only_model": True}
    options |= {"use_cpu": True, "fp16": False, "bf16": False}
    run_exp(common | options)
    unneeded = ("checkpoint-*", "*.json*l", "training_args.bin", "*.md")
    shutil.copytree(work / kind, out, ignore=shutil.ignore_patterns(*unneeded))
    for name in (
        "trainer_state.json",
        "train_results.json",
        "all_results.json",
        "trainer_log.jsonl",
    ):
        (out / name).unlink(missing_ok=True)
    if kind == "lora":
        adapter = json.loads((out / "adapter_config.json").read_text())
        # From the repository's root, where tests run.
        adapter["base_model_name_or_path"] = "tests/peers/base"
        (out / "adapter_config.json").write_text(json.dumps(adapter, indent=1) + "\n")
        common["adapter_name_or_path"] = str(work / kind)
    else:
        common["model_name_or_path"] = str(work / kind)
    model_args, _, finetuning_args, _ = get_infer_args(common)
    model_args.device_map = None  # the value head that it loads refuses a map to a CPU
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    model = load_model(
        tokenizer, model_args, finetuning_args, is_trainable=True, add_valuehead=True
    )
    model = model.float().eval()
    rows = []
    for text in TEXTS:
        turns = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": f"{text} thank you for asking"},
        ]
        rendered = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            _, _, values = model(
                torch.tensor([ids]), output_hidden_states=True, return_dict=True, use_cache=False
            )
        # Its rm trainer as well reads the last token that is not padding.
        rows.append({"ids": ids, "reward": values[0, -1].item()})
    (out / "rewards.json").write_text(
        "\n".join(["[", ",\n".join(map(json.dumps, rows)), "]"]) + "\n"
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
