"""Any reward model that is read here -> a stock one-label checkpoint with the same rewards: `convert("theirs", "plain")`.

An adapter is merged into its base, of two logits the second stays, a value head becomes the class head. `python -m
reward.checkpoint.convert rm-out` writes rm-out/merged/ and prints {"moved": the most that it moved a golden reward} as its last line;
train_rm.py runs that as a fresh process.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

from reward.checkpoint.contract import read_golden, read_manifest, seal, write_golden
from reward.data.encoding import PROBE, encode
from reward.model.heads import head_of, rewards_from_logits
from reward.model.load import load_reward_model


def convert(source: str, target, texts: list[list[int]] | None = None, **options) -> dict:
    """Write `target`. Returns the rewards of `texts` (token ids; a probe if not given) as `target` gives them, the most
    that a reward `moved`, and `dropped_bias`: what stock transformers, not this package, takes off every reward."""
    # Not into 4-bit layers: they cannot hold the sum.
    model, tokenizer = load_reward_model(source, quantized=False, **options)
    texts = texts or [
        encode(tokenizer, PROBE[:1], [PROBE[1] | {"content": c}]) for c in ("Four.", "Five?", "")
    ]
    before = rewards_of(model, texts)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    name, layer = head_of(model)
    with torch.device("meta"):  # no second copy of the weights
        stock_bias = type(model)._from_config(model.config).get_submodule(name).bias is not None
    if layer.out_features == 2:
        plain = torch.nn.Linear(
            layer.in_features, 1, bias=layer.bias is not None, dtype=layer.weight.dtype
        )
        plain.load_state_dict({key: value[1:] for key, value in layer.state_dict().items()})
        model.set_submodule(name, plain)
        layer = plain
    model.config.num_labels = 1
    model.config.problem_type = (
        "regression"  # as reward.model.build.build_reward_model; the source's config has none
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    after = rewards_of(
        load_reward_model(str(target), trust_remote_code=options.get("trust_remote_code", False))[
            0
        ],
        texts,
    )
    moved = max(abs(a - b) for a, b in zip(after, before, strict=True))
    return {
        "rewards": after,
        "moved": moved,
        "dropped_bias": 0.0 if stock_bias or layer.bias is None else layer.bias.item(),
    }


@torch.inference_mode()
def rewards_of(model, texts: list[list[int]]) -> list[float]:
    """One text at a time, as golden rewards are defined."""
    return [
        rewards_from_logits(model(input_ids=torch.tensor([i], device=model.device)).logits)[
            0
        ].item()
        for i in texts
    ]


def merge(folder) -> float:
    """Write `folder`/merged/ of an adapter that train_rm.py saved; returns by how much that moved the golden rewards."""
    folder = Path(folder)
    facts, golden = read_manifest(folder), read_golden(folder)
    trust = {"trust_remote_code": facts.get("trust_remote_code", False)}
    done = convert(str(folder), folder / "merged", [row["ids"] for row in golden], **trust)
    moved = max(
        abs(reward - row["reward"]) for reward, row in zip(done["rewards"], golden, strict=True)
    )
    write_golden(folder / "merged", golden, done["rewards"])
    for name in ("recipe.yaml", "ledger.json", "test_ids.json"):
        shutil.copy(folder / name, folder / "merged" / name)
    facts |= {
        "labels": 1,
        "quantization": None,
        "merged_from_adapter": True,
        "merging_moved_rewards": moved,
    }
    seal(folder / "merged", facts)
    return moved


if __name__ == "__main__":
    print(json.dumps({"moved": merge(sys.argv[1])}))
