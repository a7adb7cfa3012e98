"""Reward models for tests, saved and scored by hand; reward_model_fixtures.py builds them."""

import sys

import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from reward.data.encoding import encode
from reward.model.heads import rewards_from_logits
from reward.model.load import load_reward_model
from reward.model.scorer import Scorer

PROMPT = [{"role": "user", "content": "how can you make tea?"}]
ANSWERS = [
    [{"role": "assistant", "content": text}]
    for text in ("some water and patience", "sorry", "that depends")
]


def save(model, tokenizer, folder):
    """Save a model with its tokenizer. Returns the folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rewards(model, tokenizer) -> torch.Tensor:
    """(answers,) of ANSWERS, one text at a time."""
    texts = [torch.tensor([encode(tokenizer, PROMPT, answer)]) for answer in ANSWERS]
    with torch.inference_mode():
        return torch.cat([rewards_from_logits(model(input_ids=ids).logits) for ids in texts])


def by_hand(model, tokenizer, weight, bias=0.0) -> torch.Tensor:
    """(answers,): hidden_last @ weight + bias with a stock language model's hidden states."""
    values = []
    for answer in ANSWERS:
        ids = torch.tensor([encode(tokenizer, PROMPT, answer)])
        with torch.inference_mode():
            out = model(input_ids=ids, output_hidden_states=True)
            values.append(out.hidden_states[-1][0, -1].float() @ weight.detach().float() + bias)
    return torch.stack(values)


def stock_logits(folder, labels: int) -> torch.Tensor:
    """(answers, labels), with stock transformers and peft."""
    if (folder / "adapter_config.json").exists():
        model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=labels)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        ids = [torch.tensor([encode(tokenizer, PROMPT, answer)]) for answer in ANSWERS]
        return torch.cat([model(input_ids=i).logits for i in ids])


def model_and_tokenizer(folder):
    """(model, tokenizer) of a saved reward model."""
    loaded = load_reward_model(str(folder))
    return loaded.model, loaded.tokenizer


def scored(folder) -> torch.Tensor:
    """(answers,) of ANSWERS, as the scorer gives them."""
    return torch.tensor(Scorer(str(folder)).rewards([(PROMPT, answer) for answer in ANSWERS]))


def with_lora(model, **options):
    """A LoRA adapter whose weights, and whose head's, are random numbers."""
    options = {
        "task_type": "SEQ_CLS",
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "r": 4,
        **options,
    }
    model = get_peft_model(model, LoraConfig(**options))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return model.eval()


def exit_of(script, monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """(exit status, standard error) of a script's main().

    An exception, which would be a traceback, goes through.
    """
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    status = script.main()
    return status, capsys.readouterr().err
