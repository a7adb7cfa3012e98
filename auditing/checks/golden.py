"""Does the checkpoint still give the rewards that it was saved with? `golden_checks(scorer, "rm")`.

golden.jsonl holds texts with the rewards that a fresh process gave them after training. Weights,
tokenizer and chat template can be those that were saved and the rewards still be others: another
version of a library, another device, another dtype.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from auditing.checks.integrity import difference_check, difference_finding
from auditing.verdicts import Check, judge
from reward.checkpoint.golden import read_golden
from reward.data.encoding import RefusedText
from reward.model.hub import checkpoint_file
from reward.model.scorer import Scorer

WHAT = "golden texts"


def golden_checks(scorer: Scorer, ckpt: str, revision: str = "main") -> list[Check]:
    """Score the golden texts of a checkpoint again, and compare.

    A difference is in standard deviations of the golden rewards. A text is encoded anew; one whose
    prompt was cut is known by its token ids alone.

    Args:
        scorer: The loaded checkpoint.
        ckpt: The checkpoint: a folder or the id of a Hub model.
        revision: The branch, tag or commit of a Hub model.

    Returns:
        One check; none for a model that is not ours.
    """
    if not scorer.manifest:
        return []
    path = checkpoint_file(ckpt, "golden.jsonl", revision)
    if path is None:
        missing = replace(difference_finding(WHAT, 0), unmeasured="golden.jsonl is not there")
        return [judge(missing)]
    golden = read_golden(Path(path).parent)
    ids = [encoded_anew(scorer, row) for row in golden]
    if None in ids:
        refused = f"{ids.count(None):,} of {len(ids):,} golden texts cannot be encoded any more"
        return [judge(replace(difference_finding(WHAT, len(ids)), unmeasured=refused))]
    saved = np.array([row["reward"] for row in golden], dtype=float)
    now = np.array(scorer.rewards_of_ids(ids), dtype=float)
    otherwise = sum(row["ids"] != tokens for row, tokens in zip(golden, ids, strict=True))
    note = "the rewards that the checkpoint was saved with, against those of now"
    if otherwise:
        note += f"; {otherwise:,} of {len(ids):,} texts are encoded otherwise than then"
    return [difference_check(WHAT, saved, [now], note, rule_for(scorer.model))]


def rule_for(model: PreTrainedModel) -> str:
    """Return the threshold's name. Outside float32 the contract allows more, because they round."""
    if model.dtype == torch.float32 and getattr(model, "hf_quantizer", None) is None:
        return "reward difference"
    return "reward difference, rounded"


def encoded_anew(scorer: Scorer, row: dict) -> list[int] | None:
    """Return the token ids of a golden text; None where it can no longer be encoded."""
    text = row["text"]
    if text is None:
        return row["ids"]
    try:
        return scorer.encode(text["prompt"], [text["completion"]], text["tools"]).ids[0]
    except RefusedText:
        return None
