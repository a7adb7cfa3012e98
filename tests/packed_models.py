"""Tiny models of every family that can be packed, and random texts that share prefixes."""

import random

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
)

from reward.model.heads import Float32Head

VOCABULARY = 64
WINDOW = 8  # far below the texts' lengths
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_labels": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SPECIAL = {  # what a family's small config needs beside SMALL; windows where the family has them
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {**EXPERTS, "head_dim": 16},
    "mixtral": {"num_local_experts": 4},
    "gemma": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": WINDOW, "num_hidden_layers": 6},
    "glm4": {"head_dim": 16},
    "mistral": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW},
    "olmo3": {"sliding_window": WINDOW, "num_hidden_layers": 4},
    "starcoder2": {"sliding_window": WINDOW},
}


def small_model(family: str, **options):
    config = AutoConfig.for_model(family, **{**SMALL, **SPECIAL.get(family, {}), **options})
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():  # std .02 would make all rewards nearly equal
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    model.score.__class__ = Float32Head
    return model


def random_tree(seed: int, prompts: int = 3, longest: int = 60) -> list[list[int]]:
    """Make texts: several completions of prompts that begin alike.

    Some texts are duplicates, and some the beginning of another.
    """
    rng = random.Random(seed)

    def tokens(low, high):
        return [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(low, high))]

    texts, system = [], tokens(0, longest // 2)
    for _ in range(prompts):
        prompt = system[: rng.randint(0, len(system))] + tokens(0, longest)
        group = [prompt + tokens(1, longest) for _ in range(rng.randint(1, 4))]
        if rng.random() < 0.7:
            group.append(group[0][: rng.randint(1, len(group[0]))])
        if rng.random() < 0.7:
            group.append(list(group[-1]))
        texts += group
    rng.shuffle(texts)
    return texts


def one_by_one(model, texts) -> torch.Tensor:
    return torch.cat([model(input_ids=torch.tensor([text])).logits for text in texts])


def gradients(model, logits: torch.Tensor) -> torch.Tensor:
    """Of a sum in which every text has another weight."""
    model.zero_grad()
    (logits.flatten() * torch.linspace(-1, 1, len(logits))).sum().backward()
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def relative(found, expected) -> float:
    return ((found - expected).norm() / expected.norm()).item()
