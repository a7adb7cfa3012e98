"""What `--plan` estimates, for models and engines, and beside what really happens on this machine.

    python benchmarks/memory.py             # GiB a GPU for a micro-batch of 4,096 tokens
    python benchmarks/memory.py --measure   # gradients and activations, in MiB
    python benchmarks/memory.py --measure --device cuda

The first table stands in docs/launch.md. On a CPU the measured peak is that of resident memory, on
Linux; glibc's heap would keep what is freed, so it is told to map every tensor by itself. On a GPU
it is the peak of allocated memory.
"""

import argparse
import math
import os
import sys
from dataclasses import dataclass, field

import torch
from accelerate.utils import send_to_device
from peft import LoraConfig
from speed import (  # adds the repository to sys.path
    REPO,
    SHAPES,
    SIZES,
    Machine,
    autocast,
    build,
)
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

from reward.model.batches import PackedInputs, pack
from reward.model.packed_attention import enable_packing
from reward.recipe.recipe import Recipe
from reward.training.engine import Engine
from reward.training.memory import (
    GIB,
    ForwardPrecision,
    ModelMemory,
    activation_bytes,
    computes_in,
    model_memory,
    plan_model,
)

TOKENS = 4096  # computed tokens of a micro-batch
PATHS = 1.6  # tokens of its texts, over its computed tokens
LORA = LoraConfig(task_type="SEQ_CLS", r=32, target_modules="all-linear", modules_to_save=["score"])
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
ENGINES = ("single", "zero2", "zero3", "fsdp2", "zero3-offload")
F32, BF16 = torch.float32, torch.bfloat16


def qwen_config(shape: str) -> PreTrainedConfig:
    """The config of one of speed.py's shapes."""
    sizes = dict(zip(SIZES, SHAPES[shape], strict=True))
    return Qwen2Config(**sizes, num_labels=1, pad_token_id=0, max_position_embeddings=8192)


def llama_config() -> PreTrainedConfig:
    return LlamaConfig(**LLAMA_8B, num_labels=1, pad_token_id=0, max_position_embeddings=8192)


# --- The table of models and engines --------------------------------------------------------------


@dataclass
class Row:
    """A row of the table: a model, and how it is trained."""

    name: str
    config: PreTrainedConfig
    dtype: torch.dtype  # of the weights as they are loaded
    recipe: dict = field(default_factory=dict)
    adapter: LoraConfig | None = None


def rows() -> list[Row]:
    four_bit = {"load_in_4bit": True, "use_bnb_nested_quant": True}
    return [
        Row("Qwen2.5-0.5B, full", qwen_config("0.5b"), F32),
        Row("Qwen2.5-1.5B, full", qwen_config("1.5b"), F32),
        Row("Qwen2.5-7B, full", qwen_config("7b-lora"), F32),
        Row("Llama-3-8B, LoRA", llama_config(), BF16, adapter=LORA),
        Row("Llama-3-8B, QLoRA", llama_config(), BF16, recipe=four_bit, adapter=LORA),
    ]


def print_table() -> None:
    print(f"| | {' | '.join(f'`{name}`' for name in ENGINES)} |")
    print("|---" * (len(ENGINES) + 1) + "|")
    for row in rows():
        planned = plan_model(row.config, row.dtype, Recipe(values=row.recipe), row.adapter)
        activations = {}  # by precision, for the sharded engines compute alike
        cells = []
        for name in ENGINES:
            engine = Engine.read(REPO / "accelerate_configs" / f"{name}.yaml")
            memory = model_memory(planned, engine, True, "adamw_torch_fused")
            precision = computes_in(engine, row.dtype, BF16)
            if precision not in activations:
                activations[precision] = activation_bytes(
                    row.config,
                    planned,
                    TOKENS,
                    precision,
                    checkpointing=True,
                    peft_config=row.adapter,
                    paths=PATHS,
                )
            cells.append(cell(memory, activations[precision]))
        print(f"| {row.name} | {' | '.join(cells)} |", flush=True)


def cell(memory: ModelMemory, activations: float) -> str:
    """GiB of a GPU, and of a host where it holds something."""
    together = memory.weights + memory.gradients + memory.optimizer + activations
    text = f"{together / GIB:.1f}"
    if memory.host:
        text += f" (host {memory.host / GIB:.0f})"
    return text


# --- Estimated and measured -----------------------------------------------------------------------


def texts_with_shared_half(tokens: int) -> list[list[int]]:
    """Texts of 256 tokens whose first half all share, as pairs do; so many are computed."""
    shared = list(range(10, 138))
    count = math.ceil((tokens - 128) / 128)
    return [shared + [200 + i] * 128 for i in range(count)]


def measure(device: str, shapes: list[str]) -> None:
    """Print the estimate for a step beside the measured peak, in MiB."""
    machine = Machine(device)
    half, precision = None, "float32"
    if device == "cuda":
        half, precision = BF16, "bf16 over float32 weights"
    print(
        f"| {precision}, {device} | tokens | checkpointing | estimated MiB | measured MiB "
        "| measured / estimated |"
    )
    print("|---|---|---|---|---|---|")
    for shape in shapes:
        config = qwen_config(shape)
        planned = plan_model(config, F32, Recipe(), None)
        for checkpointing in (False, True):
            model = build(shape, device).train()
            enable_packing(model)
            if checkpointing:
                model.activation_checkpointing_enable()
            for tokens in (1024, TOKENS):
                texts = texts_with_shared_half(tokens)
                inputs = send_to_device(pack(texts), device)
                computed = inputs["input_ids"].numel()
                measured = measured_megabytes(model, inputs, machine)
                activations = activation_bytes(
                    config,
                    planned,
                    computed,
                    ForwardPrecision(F32, autocast=half),
                    checkpointing=checkpointing,
                    paths=sum(map(len, texts)) / computed,
                )
                estimated = (planned.trained * 4 + activations) / 2**20
                print(
                    f"| {shape} | {computed:,} | {checkpointing} | {estimated:,.0f} "
                    f"| {measured:,.0f} | {measured / estimated:.2f} |",
                    flush=True,
                )


def measured_megabytes(model: torch.nn.Module, inputs: PackedInputs, machine: Machine) -> float:
    """The peak of a step of two micro-batches with gradients, once the optimizer has its state.

    Only in the second one gradients and all activations are there at the same time.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def micro_batch() -> None:
        with autocast(machine.device, machine.device == "cuda"):
            model(**inputs, use_cache=False).logits.float().sum().backward()

    def step() -> None:
        micro_batch()
        micro_batch()

    micro_batch()
    optimizer.step()
    optimizer.zero_grad()
    _, megabytes = machine.measure(step)
    optimizer.zero_grad()
    return megabytes


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
    if args.measure:
        measure(args.device, args.shapes)
    else:
        print_table()


if __name__ == "__main__":
    main()
