"""A tiny Llama reward model in folders as other people save them, and its rewards in stock code.

The rewards of a folder are compared with those of the model that it was made from, which stock
transformers computed on one text alone.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from standins import make_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from reward.model.scorer import Scorer

QUESTIONS = ("tea?", "how can you?", "why a garden?")
ANSWERS = ("good idea", "sorry", "that depends on many things")
WEIGHTS = "model.safetensors"


def conversations() -> list[list[dict]]:
    """The conversations that are scored."""
    texts = []
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        texts.append(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        )
    return texts


def ids_of(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Token ids of the conversations, by the tokenizer's own template."""
    encoded = []
    for messages in conversations():
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        encoded.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return encoded


def stock_rewards(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> list[float]:
    """The last logit of each conversation alone, by the model's own forward."""
    rewards = []
    for ids in ids_of(tokenizer):
        with torch.inference_mode():
            rewards.append(model(input_ids=torch.tensor([ids])).logits[0, -1].item())
    return rewards


def our_rewards(folder: Path) -> list[float]:
    """The rewards of the conversations by this package."""
    texts = [(messages[:1], messages[1:]) for messages in conversations()]
    return Scorer(str(folder)).rewards(texts)


def with_random_weights(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The model, with weights large enough that rewards differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(std=0.3, generator=generator))
    return model.eval()


@dataclass
class Folders:
    """Where the folders are made, and what the model gives."""

    root: Path
    tokenizer: PreTrainedTokenizerFast
    rewards: list[float]  # of the reward model, by stock transformers
    made: int = 0

    @property
    def reward_model(self) -> Path:
        return self.root / "rm"

    @property
    def language_model(self) -> Path:
        return self.root / "lm"

    def copy(self, source: Path) -> Path:
        """A new folder with the files of another one."""
        return Path(shutil.copytree(source, self.new()))

    def new(self) -> Path:
        """The path of a folder that does not exist yet."""
        self.made += 1
        return self.root / f"copy-{self.made}"

    def classifier(self, base: Path | None = None, labels: int = 1) -> torch.nn.Module:
        """A stock classifier over the language model, or over another base; its head may be new."""
        return AutoModelForSequenceClassification.from_pretrained(
            base or self.language_model, num_labels=labels
        ).eval()

    def save(self, model: torch.nn.Module, with_tokenizer: bool = True, **options) -> Path:
        """Save a model, or an adapter, into a new folder."""
        folder = self.new()
        model.save_pretrained(folder, **options)
        if with_tokenizer:
            self.tokenizer.save_pretrained(folder)
        return folder


def make_folders(root: Path) -> Folders:
    """Save the reward model as `rm`, and the language model with the same body as `lm`."""
    tokenizer = make_tokenizer("llama3")
    tokenizer.pad_token = "<|reserved_special_token_0|>"
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        num_labels=1,
    )
    model = with_random_weights(LlamaForSequenceClassification(config))
    language_model = with_random_weights(LlamaForCausalLM(config))
    language_model.model.load_state_dict(model.model.state_dict())
    for name, saved in (("rm", model), ("lm", language_model)):
        saved.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    edit_json(root / "lm" / "config.json", drop=("id2label", "label2id"))
    return Folders(root, tokenizer, stock_rewards(model, tokenizer))


def adapter(base: torch.nn.Module, **options) -> torch.nn.Module:
    """A LoRA adapter with random weights; a head that it saves is random too."""
    options = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["q_proj", "v_proj"]} | options
    return with_random_weights(get_peft_model(base, LoraConfig(**options)), seed=1)


def edit_json(path: Path, drop: tuple[str, ...] = (), **values) -> None:
    """Change keys of a JSON file."""
    content = json.loads(path.read_text())
    for key in drop:
        content.pop(key, None)
    path.write_text(json.dumps(content | values))


def edit_tensors(folder: Path, edit: Callable[[dict], dict], file: str = WEIGHTS) -> None:
    """Change the tensors of a safetensors file."""
    tensors = edit(load_file(folder / file))
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()},
        folder / file,
        metadata={"format": "pt"},
    )


def add_tensors(folder: Path, file: str = WEIGHTS, **shapes: list[int]) -> None:
    """Add tensors of ones; a double underscore in a name stands for a dot."""
    added = {name.replace("__", "."): torch.ones(shape) for name, shape in shapes.items()}
    edit_tensors(folder, lambda tensors: tensors | added, file)


def rename(folder: Path, old: str, new: str) -> None:
    """Rename a tensor."""

    def renamed(tensors: dict) -> dict:
        return {(new if key == old else key): tensor for key, tensor in tensors.items()}

    edit_tensors(folder, renamed)


def to_bin(folder: Path, source: str = WEIGHTS, target: str = "pytorch_model.bin") -> dict:
    """Write a safetensors file as the older .bin instead, and return its tensors."""
    tensors = load_file(folder / source)
    torch.save(tensors, folder / target)
    os.remove(folder / source)
    return tensors
