"""Rewards of a saved model's golden texts, as anybody else would compute them: `python -m reward.checkpoint.verify rm-out`.

Stock transformers and peft only, nothing of this package: chat template to text, `add_special_tokens=False`, one text at a
time, no autocast, the saved dtype. Prints {"rewards": [...]} as its last line; exits 1 where an encoding differs.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig


def main(folder: str) -> None:
    manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    golden = [
        json.loads(line)
        for line in (Path(folder) / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trust = {"trust_remote_code": manifest.get("trust_remote_code", False)}
    tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
    if (Path(folder) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForSequenceClassification

        options = {
            "dtype": getattr(torch, manifest["dtype"]),
            "num_labels": manifest["labels"],
            "device_map": device,
        }
        if manifest["quantization"]:
            options["quantization_config"] = BitsAndBytesConfig(**manifest["quantization"])
        model = AutoPeftModelForSequenceClassification.from_pretrained(folder, **options, **trust)
        for module in model.modules():
            if hasattr(
                module, "support_avx512bf16_for_cpu"
            ):  # 4-bit on such a CPU: reward.model.heads.keep_unpacked
                module.support_avx512bf16_for_cpu = False
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype="auto", device_map=device, **trust
        )
    model.eval()
    bias = dropped_bias(folder, model)

    rewards = []
    for number, row in enumerate(golden, start=1):
        text = row["text"]
        if text is not None and isinstance(text["prompt"], list):
            rendered = tokenizer.apply_chat_template(
                text["prompt"] + text["completion"], tools=text["tools"], tokenize=False
            )
            if tokenizer(rendered, add_special_tokens=False)["input_ids"] != row["ids"]:
                sys.exit(
                    f"golden text {number}: the saved tokenizer encodes it differently than training did"
                )
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row["ids"]], device=device)).logits
        rewards.append(logits[0, -1].float().item() + bias)  # the one label, or the second of two
    print(json.dumps({"rewards": rewards}))


def dropped_bias(folder: str, model) -> float:
    """`head_bias: true` where the architecture has no bias: the file holds it, and stock transformers passes it over. It
    moves all rewards alike."""
    if getattr(getattr(model, "score", None), "bias", None) is not None:
        return 0.0
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                if key.endswith("score.bias"):
                    return file.get_tensor(key)[-1].item()
    return 0.0


if __name__ == "__main__":
    main(sys.argv[1])
