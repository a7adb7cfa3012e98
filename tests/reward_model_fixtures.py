"""Tiny reward models of every layout, as fixtures, each built once.

A test file asks for them with `pytest_plugins = ["reward_model_fixtures"]`.
"""

import json
import shutil

import pytest
import torch
from reward_models import ANSWERS, PROMPT, model_and_tokenizer, save, scored, with_lora
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from reward.checkpoint.golden import write_golden
from reward.checkpoint.manifest import seal
from reward.data.encoding import encode, encoder_facts
from reward.model.build import build_reward_model, build_tokenizer


@pytest.fixture(scope="session")
def saved(standin, tmp_path_factory):
    """`saved("qwen")` -> folder of a reward model as training saves it; its head is seeded."""
    made = {}

    def get(kind):
        if kind not in made:
            base = str(standin(kind))
            torch.manual_seed(1)
            model = build_reward_model(base, head_init="normal")
            tokenizer = build_tokenizer(base, model.config)
            model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
            made[kind] = save(model, tokenizer, tmp_path_factory.mktemp("saved") / kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def sealed(saved, tmp_path_factory):
    """Folder of a reward model with a manifest and golden texts, as training saves it."""
    folder = tmp_path_factory.mktemp("sealed") / "qwen"
    shutil.copytree(saved("qwen"), folder)
    _, tokenizer = model_and_tokenizer(folder)
    texts = []
    for answer in ANSWERS:
        text = {"prompt": PROMPT, "completion": answer, "tools": None}
        texts.append({"text": text, "ids": encode(tokenizer, PROMPT, answer)})
    write_golden(folder, texts, scored(folder).tolist())
    keys = {"format_version": 1, "max_length": 512, "overlong": "drop", "transcript": "messages"}
    seal(folder, {**keys, "encoder": encoder_facts(tokenizer), "dtype": "float32"})
    return folder


@pytest.fixture(scope="session")
def two_labels(standin, saved, tmp_path_factory):
    """Folder of a stock model with two labels, as ContextualAI/HALOs trains it."""
    model = AutoModelForSequenceClassification.from_pretrained(standin("qwen"), num_labels=2)
    torch.nn.init.normal_(model.score.weight)
    tokenizer = AutoTokenizer.from_pretrained(saved("qwen"))
    model.config.pad_token_id = tokenizer.pad_token_id
    return save(model, tokenizer, tmp_path_factory.mktemp("two") / "halo")


@pytest.fixture(scope="session")
def value_head(standin, saved, tmp_path_factory):
    """(folder, weight, bias) of a checkpoint as LLaMA-Factory saves it.

    That is a language model and value_head.safetensors.
    """
    folder = tmp_path_factory.mktemp("value") / "head"
    save(
        AutoModelForCausalLM.from_pretrained(standin("qwen")),
        AutoTokenizer.from_pretrained(saved("qwen")),
        folder,
    )
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(5))
    bias = torch.tensor([0.75])
    tensors = {"v_head.summary.weight": weight, "v_head.summary.bias": bias}
    save_file(tensors, folder / "value_head.safetensors", metadata={"format": "pt"})
    return folder, weight, bias


@pytest.fixture(scope="session")
def value_head_adapter(standin, saved, value_head, tmp_path_factory):
    """(folder, model) of a LoRA adapter as LLaMA-Factory saves it.

    That is a language model's adapter and value_head.safetensors.
    """
    folder = tmp_path_factory.mktemp("value") / "adapter"
    model = with_lora(AutoModelForCausalLM.from_pretrained(standin("qwen")), task_type="CAUSAL_LM")
    save(model, AutoTokenizer.from_pretrained(saved("qwen")), folder)
    (folder / "value_head.safetensors").write_bytes(
        (value_head[0] / "value_head.safetensors").read_bytes()
    )
    return folder, model


@pytest.fixture(scope="session")
def headed(standin, tmp_path_factory):
    """`headed(adapter=False, bias=None, **head)` -> (model, folder) with a random head.

    `bias` is the value of its bias, where it has one.
    """
    made = {}

    def get(adapter=False, bias=None, **head):
        key = json.dumps([adapter, bias, head])
        if key not in made:
            base = str(standin("qwen"))
            torch.manual_seed(1)
            has_bias = None
            if bias is not None:
                has_bias = True
            model = build_reward_model(base, head_init="normal", head_bias=has_bias, **head)
            tokenizer = build_tokenizer(base, model.config)
            model.config.pad_token_id = tokenizer.pad_token_id
            if adapter:
                model = with_lora(model)
            if bias is not None:
                biases = []
                for name, parameter in model.named_parameters():
                    if "score" in name and name.endswith("bias"):
                        biases.append(parameter)
                biases[-1].data = torch.tensor(bias)
            folder = save(model, tokenizer, tmp_path_factory.mktemp("headed") / "rm")
            made[key] = model.eval(), folder
        return made[key]

    return get
