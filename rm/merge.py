"""Merge a saved adapter into its base, beside it: `python -m rm.merge rm-out` writes rm-out/merged/.

Prints {"moved": the most that merging moved a golden reward} as its last line. train_rm.py runs it as a fresh process.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

from rm.checkpoint import read_golden, read_manifest, seal, write_golden
from rm.reward_model import load_reward_model, rewards_from_logits


def merge(folder) -> float:
    """Write `folder`/merged/; returns by how much that moved the golden rewards at most."""
    folder = Path(folder)
    facts, golden = read_manifest(folder), read_golden(folder)
    # Not into 4-bit layers: they cannot hold the sum.
    model, tokenizer = load_reward_model(
        str(folder), quantized=False, trust_remote_code=facts.get("trust_remote_code", False)
    )
    model = model.merge_and_unload()
    model.config.problem_type = "regression"  # as rm.reward_model.build_reward_model; the base's config has none
    model.save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    with torch.inference_mode():
        rewards = [
            rewards_from_logits(model(input_ids=torch.tensor([row["ids"]], device=model.device)).logits)[0].item()
            for row in golden
        ]
    moved = max(abs(reward - row["reward"]) for reward, row in zip(rewards, golden, strict=True))
    write_golden(folder / "merged", golden, rewards)
    for name in ("recipe.yaml", "ledger.json", "test_ids.json"):
        shutil.copy(folder / name, folder / "merged" / name)
    facts |= {"quantization": None, "merged_from_adapter": True, "merging_moved_rewards": moved}
    seal(folder / "merged", facts)
    return moved


if __name__ == "__main__":
    print(json.dumps({"moved": merge(sys.argv[1])}))
