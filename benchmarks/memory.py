"""What `--plan` estimates: a table of models and engines, and the estimate beside what really happens on this machine.

    python benchmarks/memory.py                   # GiB a GPU for a micro-batch of 4,096 tokens, as docs/launch.md has them
    python benchmarks/memory.py --measure         # gradients and activations of a step, estimated and measured
    python benchmarks/memory.py --measure --device cuda

The measured peak is that of resident memory on a CPU (Linux; glibc's heap would keep what is freed, so it is told to map
every tensor by itself), of allocated memory on a GPU.
"""

import argparse
import math
import os
import sys
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from peft import LoraConfig
from transformers import LlamaConfig, Qwen2Config

sys.path.insert(0, str(Path(__file__).resolve().parent))
from speed import REPO, SHAPES, SIZES, Machine, autocast, build  # noqa: E402

from reward.model.batches import pack
from reward.model.packed_attention import enable_packing
from reward.recipe.recipe import Recipe
from reward.training.engine import Engine
from reward.training.plan import GIB, activation_bytes, computes_in, memory, plan_model

TOKENS, PATHS = (
    4096,
    1.6,
)  # computed tokens of a micro-batch, and how many times as many its texts have
LORA = LoraConfig(task_type="SEQ_CLS", r=32, target_modules="all-linear", modules_to_save=["score"])
LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
ENGINES = ("single", "zero2", "zero3", "fsdp2", "zero3-offload")
F32, BF16 = torch.float32, torch.bfloat16
MODELS = {  # name -> config, dtype of the weights, recipe, adapter
    "Qwen2.5-0.5B, full": (Qwen2Config, "0.5b", F32, {}, None),
    "Qwen2.5-1.5B, full": (Qwen2Config, "1.5b", F32, {}, None),
    "Qwen2.5-7B, full": (Qwen2Config, "7b-lora", F32, {}, None),
    "Llama-3-8B, LoRA": (LlamaConfig, LLAMA_8B, BF16, {}, LORA),
    "Llama-3-8B, QLoRA": (
        LlamaConfig,
        LLAMA_8B,
        BF16,
        {"load_in_4bit": True, "use_bnb_nested_quant": True},
        LORA,
    ),
}


def make_config(kind, sizes):
    sizes = dict(zip(SIZES, SHAPES[sizes], strict=True)) if isinstance(sizes, str) else sizes
    return kind(**sizes, num_labels=1, pad_token_id=0, max_position_embeddings=8192)


def table() -> None:
    print(f"| | {' | '.join(f'`{name}`' for name in ENGINES)} |\n{'|---' * (len(ENGINES) + 1)}|")
    for name, (kind, sizes, dtype, values, adapter) in MODELS.items():
        config = make_config(kind, sizes)
        planned = plan_model(config, dtype, Recipe(values=values), adapter)
        cells, activations = [], {}
        for file in ENGINES:
            engine = Engine.read(REPO / "accelerate_configs" / f"{file}.yaml")
            found = memory(planned, engine, True, "adamw_torch_fused")
            how = computes_in(engine, dtype, BF16)
            if str(how) not in activations:  # the sharded engines compute alike
                kept = activation_bytes(
                    config, planned, TOKENS, True, peft_config=adapter, paths=PATHS, **how
                )
                activations[str(how)] = kept
            total = (
                found["weights"] + found["gradients"] + found["optimizer"] + activations[str(how)]
            )
            host = f" (host {found['host'] / GIB:.0f})" if found["host"] else ""
            cells.append(f"{total / GIB:.1f}{host}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def measure(device: str, shapes: list[str]) -> None:
    print(
        f"| float32, {device} | tokens | checkpointing | estimated MiB | measured MiB |\n|---|---|---|---|---|"
    )
    machine, half = Machine(device), BF16 if device == "cuda" else None
    for shape in shapes:
        config = make_config(Qwen2Config, shape)
        for checkpointing in (False, True):
            model = build(shape, device).train()
            enable_packing(model)
            if checkpointing:
                model.activation_checkpointing_enable()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
            planned = plan_model(config, F32, Recipe(), None)
            for tokens in (1024, TOKENS):
                # Texts of about 256 tokens whose first half all share, as pairs do: 16 queries of 128 tokens in 2,176.
                texts = [
                    list(range(10, 138)) + [200 + i] * 128
                    for i in range(math.ceil((tokens - 128) / 128))
                ]
                inputs = send_to_device(pack(texts), device)

                def step(inputs=inputs, model=model):
                    with autocast(device):
                        model(**inputs, use_cache=False).logits.float().sum().backward()

                step()
                optimizer.step()
                optimizer.zero_grad()
                _, found = machine.measure(step)
                optimizer.zero_grad()
                computed = inputs["input_ids"].numel()
                paths = sum(map(len, texts)) / computed
                how = {"dtype": F32, "autocast": half, "paths": paths}
                expected = planned.trained * 4 + activation_bytes(
                    config, planned, computed, checkpointing, **how
                )
                print(
                    f"| {shape} | {computed:,} | {checkpointing} | {expected / 2**20:,.0f} | {found:,.0f} |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="compare with what really happens")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=["tiny", "2-layers"],
        choices=[s for s in SHAPES if "lora" not in s],
    )
    args = parser.parse_args()
    if args.measure and args.device == "cpu" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        os.execve(
            sys.executable,
            [sys.executable, *sys.argv],
            os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        )
    measure(args.device, args.shapes) if args.measure else table()


if __name__ == "__main__":
    main()
