"""The model card beside the weights, rm-out/README.md.

It says what the model is, what it was trained on, how it did, and how to use it. The text is
card.md.j2; here are the values that it shows.
"""

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reward.checkpoint.manifest import Manifest
from reward.data.secrets import hide_secrets

# The card is Markdown, which the Hub renders and sanitises: nothing is escaped for HTML.
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    autoescape=False,
    keep_trailing_newline=True,
)


def model_card(manifest: Manifest, ledger: dict, folder: str) -> str:
    """Return the card, Markdown that begins with the Hub's metadata block.

    Args:
        manifest: Of a model that was trained and verified.
        ledger: `Ledger.as_dict()`, the pairs that were kept.
        folder: Where the model lies, for the commands to copy.
    """
    stock_folder, label, note = folder, 0, "no flag is needed"
    if manifest.adapter:
        stock_folder = f"{folder}/merged"  # merging also leaves one label of two
        note = "the adapter is merged into its base in `merged/`"
    elif manifest.labels == 2:
        label = 1
        command = f"python score.py --ckpt {folder} --convert DIR"
        note = f"the reward is logit 1 (`{command}` makes it the only one)"
    card = TEMPLATES.get_template("card.md.j2").render(
        metadata=metadata_lines(manifest),
        title=folder.rstrip("/").rsplit("/", 1)[-1],
        manifest=manifest,
        pairs=pairs_kept(ledger),
        accuracy=validation_accuracy(manifest),
        folder=folder,
        note=note,
        stock_folder=stock_folder,
        label=label,
    )
    return hide_secrets(card)  # the card is published


def metadata_lines(manifest: Manifest) -> str:
    """Return what the Hub reads of a card, as YAML."""
    tags = ["reward-model", "trl"]
    if manifest.adapter:
        tags.append("lora")
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": manifest.base_model,
        "tags": tags,
    }
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items())


def pairs_kept(ledger: dict) -> list[str]:
    """Return the number of pairs in train, validation and test, as text."""
    kept = []
    for split in ("train", "validation", "test"):
        if split in ledger:
            kept.append(f"{ledger[split]['kept']:,}")
        else:
            kept.append("none")
    return kept


def validation_accuracy(manifest: Manifest) -> str:
    """Return the accuracy on validation with its n; "none" where there was no validation split."""
    accuracy = manifest.validation.get("accuracy")
    if accuracy is None:
        return "none"
    return f"{accuracy:.3f} (n = {manifest.validation['n']:,})"
