"""The model card that is written beside the weights (rm-out/README.md): what, trained on what, how it did, how to use it."""

import json

CARD = """\
---
{metadata}
---
# {title}

A reward model: a prompt and a completion in, one number out; a higher reward means that the raters of the training data
would sooner prefer the completion. Rewards compare completions of the *same* prompt; their zero and unit mean nothing.

| | |
|---|---|
| base model (also the KL anchor of a policy trained with it) | `{base}`, revision `{revision}` |
| data | {data} |
| pairs kept: train / validation / test | {pairs} |
| accuracy on validation (what a best checkpoint is picked by) | {accuracy} |
| reload check | a fresh process gives the same rewards within {difference:.1e} (allowed {tolerance:.1e}) |
| trained | {date}, {hours}, {device}; {precision} |

Training did not look at the test split. Audit the model on it before optimising against it:

```bash
python audit.py --ckpt {folder}
python score.py --ckpt {folder} --prompt "..." --completion "..." --completion "..."
```

Stock transformers gives the same rewards; {adapter_note}:

```python
{usage}
```
The chat template is saved with the tokenizer and ends with the end token; the pad token is not the end token. Tokenise the
rendered text with `add_special_tokens=False`.
"""


USAGE = """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForSequenceClassification.from_pretrained("{folder}")
messages = [{{"role": "user", "content": "..."}}, {{"role": "assistant", "content": "..."}}]
text = tokenizer.apply_chat_template(messages, tokenize=False)
reward = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, {label}]"""


def model_card(facts: dict, ledger: dict, verified: dict, folder: str) -> str:
    """Markdown with the Hub's metadata block. `facts`: the manifest; `ledger`: its dict; `verified`: reward.checkpoint.contract.verify."""
    kept = [
        f"{ledger[split]['kept']:,}" if split in ledger else "none"
        for split in ("train", "validation", "test")
    ]
    accuracy = facts["validation"].get("accuracy")
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": facts["base_model"],
        "tags": ["reward-model", "trl", *(["lora"] if facts["adapter"] else [])],
    }
    target = f"{folder}/merged" if facts["adapter"] else folder
    two = facts["labels"] == 2 and not facts["adapter"]  # merging makes it one
    note = (
        "the adapter is merged into its base in `merged/`"
        if facts["adapter"]
        else "no flag is needed"
    )
    if two:
        note = f"the reward is logit 1 (`python score.py --ckpt {folder} --convert DIR` makes it the only one)"
    return CARD.format(
        metadata="\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items()),
        title=folder.rstrip("/").rsplit("/", 1)[-1],
        base=facts["base_model"],
        revision=facts["base_revision"] or "a local folder",
        data=", ".join(facts["data"]),
        pairs=" / ".join(kept),
        accuracy="none"
        if accuracy is None
        else f"{accuracy:.3f} (n = {facts['validation']['n']:,})",
        difference=verified["max_difference"],
        tolerance=verified["tolerance"],
        date=facts["date"],
        hours=f"{facts['train_seconds'] / 60:.1f} min",
        device=facts["device"],
        precision=facts["precision"],
        folder=folder,
        adapter_note=note,
        usage=USAGE.format(folder=target, label=int(two)),
    )
