"""Packed against padded: rewards and gradients, in float32 and in bf16, on a CPU or a GPU.

    python benchmarks/exactness.py --device cuda
    python benchmarks/exactness.py --device cpu --tiny --pairs data/quickstart/test.jsonl.gz

Both are compared with the truth: the padded forward in float32. In float32 they have to agree to
rounding. In bf16 both are off; packed passes if it is not much further off than padded is. Weights
are random. Errors are relative to the norm of the truth. The exit status is 1 if a row fails.

The attention is also compared by itself, where nothing hides a token too many or too few: on a GPU
in bf16 it is FlashAttention's kernel, and the truth is one scaled_dot_product_attention a text in
float32.
"""

import argparse
import random
import sys
from dataclasses import dataclass

import torch
from accelerate.utils import send_to_device
from speed import (  # adds the repository to sys.path
    REAL_VOCABULARY,
    SHAPES,
    SIZES,
    SMALL_VOCABULARY,
    best_of,
    encode_pairs,
    read_texts,
)
from transformers import (
    AutoModelForSequenceClassification,
    Gemma3TextConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from reward.model.batches import SIDES, PackedInputs, PaddedInputs, TokenIds, pack, padded
from reward.model.heads import Float32Head
from reward.model.packed_attention import enable_packing, packed_attention

LONG = 2000  # tokens of a long prompt
TOLERATED = 1e-4  # in float32, for rewards and gradients
TOLERATED_ATTENTION = 0.01  # in bf16; a window that is off by one token makes it about .1
FACTOR = 1.5  # how much further off than padded packed may be in bf16
WINDOW = 128  # tokens that a layer with a sliding window sees


# --- Models and texts -----------------------------------------------------------------------------


def models(tiny: bool) -> dict[str, PreTrainedConfig]:
    """The models by name: plain attention, a sliding window in all layers, and in most of them."""
    shape = "tiny" if tiny else "0.5b"
    sizes = dict(zip(SIZES, SHAPES[shape], strict=True))
    if tiny:
        sizes |= {"hidden_size": 64, "intermediate_size": 128}
    windowed = {**sizes, "num_hidden_layers": 6, "sliding_window": WINDOW}
    head_dim = sizes["hidden_size"] // sizes["num_attention_heads"]
    common = {"num_labels": 1, "pad_token_id": 0, "max_position_embeddings": 32768}
    return {
        f"Qwen2, {shape}": Qwen2Config(**sizes, **common),
        f"Mistral, window {WINDOW}": MistralConfig(**windowed, head_dim=head_dim, **common),
        f"Gemma 3, window {WINDOW}": Gemma3TextConfig(**windowed, head_dim=head_dim, **common),
    }


def text_sets(pairs: list[dict], tiny: bool) -> dict[str, list[TokenIds]]:
    """The texts by name. Two neighbours are a chosen and a rejected side."""
    long_prompt = LONG // 10 if tiny else LONG
    several = 4 if tiny else 16
    pairs = random.Random(0).sample(pairs, len(pairs))
    plain = [pair[side] for pair in pairs[:several] for side in SIDES]
    before = []
    for pair in pairs[several:]:
        before += pair["chosen_ids"]
        if len(before) > long_prompt:
            break
    long = [before + pair[side] for pair in pairs[:4] for side in SIDES]
    return {
        f"{several} pairs": plain,
        f"4 pairs, {long_prompt:,} tokens before": long,
        "best of 16": best_of(pairs[:400], 16)[0],
    }


def build(config: PreTrainedConfig, device: str) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.score.__class__ = Float32Head
    enable_packing(model)
    return model.train()


# --- The comparison -------------------------------------------------------------------------------


@dataclass
class Result:
    """What a forward and backward gave."""

    rewards: torch.Tensor  # (texts,)
    gradients: list[torch.Tensor]  # one a parameter


def forward_and_backward(
    model: torch.nn.Module, inputs: PackedInputs | PaddedInputs, precision: str
) -> Result:
    """Rewards, and the gradients of the Bradley-Terry loss."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(**send_to_device(inputs, device), use_cache=False).logits
    rewards = logits.flatten().float()
    loss = -torch.nn.functional.logsigmoid(rewards[::2] - rewards[1::2]).mean()
    loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    return Result(rewards.detach(), gradients)


def error_of(found: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    """The norm of the difference, over the norm of the truth."""
    difference = sum((a - b).double().square().sum() for a, b in zip(found, truth, strict=True))
    norm = sum(b.double().square().sum() for b in truth)
    return (difference / norm).sqrt().item()


def errors_of(found: Result, truth: Result) -> tuple[float, float]:
    """How far rewards and gradients are from the truth."""
    rewards = error_of([found.rewards], [truth.rewards])
    return rewards, error_of(found.gradients, truth.gradients)


def passes(packed: tuple[float, float], rows: tuple[float, float], precision: str) -> bool:
    """Whether packed is as near to the truth as it has to be; not for NaN.

    Args:
        packed: The errors of the rewards and of the gradients.
        rows: The same of the padded forward.
        precision: float32 or bf16.
    """
    if precision == "float32":
        return all(error <= TOLERATED for error in packed)
    # Below one step of bf16 (2 ** -8) which of the two is nearer is chance.
    allowed = [FACTOR * max(error, 2**-8) for error in rows]
    return all(error <= limit for error, limit in zip(packed, allowed, strict=True))


def compare(model: torch.nn.Module, texts: list[TokenIds], name: str) -> list[str]:
    """Print a row for each precision, and return those that fail."""
    packed, rows = pack(texts), padded(texts, 0)
    tokens = f"{packed['input_ids'].numel():,} of {rows['input_ids'].numel():,}"
    truth = forward_and_backward(model, rows, "float32")
    failed = []
    for precision in ("float32", "bf16"):
        packed_errors = errors_of(forward_and_backward(model, packed, precision), truth)
        rows_errors = errors_of(forward_and_backward(model, rows, precision), truth)
        verdict = "pass"
        if not passes(packed_errors, rows_errors, precision):
            verdict = "FAIL"
            failed.append(f"{name}, {precision}")
        numbers = " | ".join(
            f"{error:.1e}"
            for pair in zip(packed_errors, rows_errors, strict=True)
            for error in pair
        )
        print(f"| {name} | {precision} | {tokens} | {numbers} | {verdict} |", flush=True)
    return failed


# --- The attention by itself ----------------------------------------------------------------------


def attend(
    inputs: PackedInputs, head_dim: int, window: int | None, dtype: torch.dtype, device: str
) -> list[torch.Tensor]:
    """The attention's output, and the gradients of queries, keys and values, in float32."""
    generator = torch.Generator().manual_seed(0)
    tokens = inputs["input_ids"].numel()
    tensors = []
    for heads in (4, 2, 2):  # queries, keys, values
        # The same numbers in both precisions: those that bf16 has.
        tensor = torch.randn(1, heads, tokens, head_dim, generator=generator).bfloat16()
        tensors.append(tensor.to(device, dtype).requires_grad_())
    packing = send_to_device(inputs["packing"], device)
    module = torch.nn.Module()
    output, _ = packed_attention(
        module, *tensors, None, packing, scaling=head_dim**-0.5, sliding_window=window
    )
    weights = torch.randn(output.shape, generator=generator).to(device)
    (output.float() * weights).sum().backward()
    return [output.detach().float(), *(tensor.grad.float() for tensor in tensors)]


def compare_attention(sets: dict[str, list[TokenIds]], device: str) -> list[str]:
    """Print a row for each set of texts, size of a head and window, and return those that fail."""
    print("\n| attention in bf16 | head_dim | window | output | largest gradient | |")
    print("|---|---|---|---|---|---|")
    failed = []
    for name, texts in sets.items():
        inputs = pack(texts)
        for head_dim in (64, 128, 256):
            for window in (None, WINDOW):
                found = attend(inputs, head_dim, window, torch.bfloat16, device)
                truth = attend(inputs, head_dim, window, torch.float32, device)
                errors = [error_of([a], [b]) for a, b in zip(found, truth, strict=True)]
                verdict = "pass"
                if not all(error <= TOLERATED_ATTENTION for error in errors):
                    verdict = "FAIL"
                    failed.append(f"attention, {name}, head_dim {head_dim}, window {window}")
                print(
                    f"| {name} | {head_dim} | {window or 'none'} | {errors[0]:.1e} "
                    f"| {max(errors[1:]):.1e} | {verdict} |",
                    flush=True,
                )
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true", help="small models and few texts")
    parser.add_argument("--pairs", default="Anthropic/hh-rlhf", help="as for speed.py")
    parser.add_argument("--data_dir", help="as for speed.py")
    args = parser.parse_args()
    pairs, _ = encode_pairs(read_texts(args.pairs, args.data_dir))
    print(
        "| model, texts | precision | tokens, packed of padded | rewards, packed | padded "
        "| gradients, packed | padded | |"
    )
    print("|---|---|---|---|---|---|---|---|")
    failed = []
    sets = text_sets(pairs, args.tiny)
    for model_name, config in models(args.tiny).items():
        config.vocab_size = SMALL_VOCABULARY if args.tiny else REAL_VOCABULARY
        model = build(config, args.device)
        for text_name, texts in sets.items():
            failed += compare(model, texts, f"{model_name}: {text_name}")
        del model
    failed += compare_attention(sets, args.device)
    for row in failed:
        print(f"exactness.py: {row}: packed is too far from padded", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
