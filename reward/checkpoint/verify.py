"""Rewards of a saved model's golden texts, as anybody else would compute them.

    python -m reward.checkpoint.verify rm-out
    python -m reward.checkpoint.verify rm-out --endpoint http://localhost:8000

Only stock transformers and peft are used, nothing of this package: the chat template gives the
text, the tokenizer encodes it with `add_special_tokens=False`, one text at a time, without
autocast, in the saved dtype. The command prints {"rewards": [...]} as its last line and exits with
1 where a text is encoded differently than training encoded it.

With --endpoint the golden rewards are compared with those of a server that has the checkpoint, see
reward.checkpoint.served. It exits with 1 where they differ, and with 2 where no server answers.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)


def main(folder: str) -> None:
    manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    # Not str.splitlines: a text may hold other line separators, such as U+2028.
    with open(Path(folder) / "golden.jsonl", encoding="utf-8") as lines:
        golden = [json.loads(line) for line in lines]
    trust_remote_code = manifest.get("trust_remote_code", False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if (Path(folder) / "adapter_config.json").is_file():
        model = load_adapter(folder, manifest, trust_remote_code)
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype="auto", device_map=device(), trust_remote_code=trust_remote_code
        )
    model.eval()
    bias = dropped_bias(folder, model)

    rewards = []
    for line_number, row in enumerate(golden, start=1):
        if not encodes_alike(tokenizer, row["text"], row["ids"]):
            sys.exit(
                f"golden text {line_number}: the saved tokenizer encodes it differently than "
                "training did"
            )
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row["ids"]], device=device())).logits
        last_label = logits[0, -1]  # the one label, or the second of two
        rewards.append(last_label.float().item() + bias)
    print(json.dumps({"rewards": rewards}))


def device() -> str:
    """Return where the model is put."""
    if torch.cuda.is_available():
        return "cuda"
    return "cpu"


def load_adapter(folder: str, manifest: dict, trust_remote_code: bool) -> torch.nn.Module:
    """Return the base, as it was under this adapter, with the adapter."""
    from peft import AutoPeftModelForSequenceClassification

    options = {}
    if manifest["quantization"]:
        options["quantization_config"] = BitsAndBytesConfig(**manifest["quantization"])
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        folder,
        dtype=getattr(torch, manifest["dtype"]),
        num_labels=manifest["labels"],
        device_map=device(),
        trust_remote_code=trust_remote_code,
        **options,
    )
    for module in model.modules():
        # 4-bit layers on a CPU with AVX512-bf16: see reward.model.classifier.keep_unpacked.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def encodes_alike(tokenizer: PreTrainedTokenizerBase, text: dict | None, ids: list[int]) -> bool:
    """Return whether the saved tokenizer gives the golden ids for the golden text.

    Args:
        tokenizer: The saved one.
        text: Prompt, completion and tools. Without one, or without messages, there is nothing to
            compare.
        ids: As training encoded it.
    """
    if text is None or not isinstance(text["prompt"], list):
        return True
    messages = text["prompt"] + text["completion"]
    rendered = tokenizer.apply_chat_template(messages, tools=text["tools"], tokenize=False)
    return tokenizer(rendered, add_special_tokens=False)["input_ids"] == ids


def dropped_bias(folder: str, model: torch.nn.Module) -> float:
    """Return the head's bias that stock transformers passes over; it moves all rewards alike.

    With `head_bias: true` the file holds one, also where the architecture has none.
    """
    head = getattr(model, "score", None)
    if getattr(head, "bias", None) is not None:
        return 0.0
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                if key.endswith("score.bias"):
                    return file.get_tensor(key)[-1].item()
    return 0.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ckpt", help="folder of a checkpoint")
    parser.add_argument("--endpoint", metavar="URL", help="a server that has it")
    args = parser.parse_args()
    if args.endpoint is not None:
        from reward.checkpoint.served import verify_endpoint

        sys.exit(verify_endpoint(args.ckpt, args.endpoint))
    main(args.ckpt)
