"""Tiny stand-ins for real models and data: `make_model(folder, "qwen")`, `hh_rows(40)`.

They are built in seconds. A stand-in has the architecture, special tokens and chat template
of the real model, and small random weights from a fixed seed.
"""

import random
from pathlib import Path

import torch
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# TinyLlama-1.1B-Chat's own template.
ZEPHYR = (
    "{% for message in messages %}\n"
    "{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n"
    "{{ '<|assistant|>' }}\n"
    "{% endif %}\n"
    "{% endfor %}"
)
# Mistral's, as far as it matters here: the roles must alternate.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
LLAMA3_TOKENS = (
    "<|begin_of_text|> <|end_of_text|> <|reserved_special_token_0|> <|reserved_special_token_1|> "
    "<|start_header_id|> <|end_header_id|> <|eot_id|>"
).split()
# kind -> its special tokens, the roles that its tokenizer gives them, and its chat template; all as
# in the real repositories.
KINDS = {
    "qwen": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        (TEMPLATES / "qwen2_5.jinja").read_text(encoding="utf-8"),
    ),
    "llama3": (
        LLAMA3_TOKENS,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        (TEMPLATES / "llama3.jinja").read_text(encoding="utf-8"),
    ),
    # The tokenizer pads with the end token, as on the Hub.
    "tinyllama": (
        ["<unk>", "<s>", "</s>"],
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
        ZEPHYR,
    ),
    "base": (["<|endoftext|>"], {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, None),
    "encoder": (
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
        None,
    ),
}
# The same for a kind whose template refuses some conversations.
STRICT_KINDS = {
    "mistral": (
        ["<unk>", "<s>", "</s>"],
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        MISTRAL,
    ),
}
# The same for models of newer recipes: one that thinks, one without a template, and a reward
# model that was trained from the first.
NEWER_KINDS = {
    "qwen3": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        (TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8"),
    ),
    "gemma3": (
        ["<pad>", "<eos>", "<bos>", "<unk>"],
        {
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        },
        None,
    ),
}
NEWER_KINDS["skywork"] = NEWER_KINDS["qwen3"]
WORDS = (
    "tea coffee garden music river winter bread window paper train morning letter how what why can "
    "you tell me about the best way to make it is a good idea to start with some water and a "
    "little patience sure here are three steps sorry i would rather not say that depends on many "
    "things first then finally thank you for asking please stop"
).split()


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Train a tokenizer of one of KINDS or STRICT_KINDS on WORDS."""
    special, roles, template = (STRICT_KINDS | KINDS | NEWER_KINDS)[kind]
    if kind == "encoder":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"-()[]<>|/:_")
        trainer = trainers.WordPieceTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet
        )
        tokenizer.train_from_iterator(WORDS, trainer)
        ids = {token: tokenizer.token_to_id(token) for token in special}
        tokenizer.post_processor = processors.BertProcessing(
            ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet
        )
        tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
        # These tokenizers add BOS by themselves.
        if "bos_token" in roles:
            bos = roles["bos_token"]
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
            )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **roles)
    fast.chat_template = template
    return fast


def make_config(kind: str, tokenizer: PreTrainedTokenizerFast, layers: int = 2) -> PretrainedConfig:
    """The config of a tiny model of one of KINDS."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
    }
    if kind == "llama3":
        sizes["hidden_size"] = 64  # the least that bitsandbytes packs for a CPU in 4 bits
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if kind == "encoder":
        sizes["max_position_embeddings"] = 512
        return BertConfig(**sizes, pad_token_id=tokenizer.pad_token_id)
    if kind == "mistral":
        return MistralConfig(
            **sizes, **ids, num_key_value_heads=2, bos_token_id=tokenizer.bos_token_id
        )
    if kind in ("llama3", "tinyllama"):
        return LlamaConfig(
            **sizes, **ids, num_key_value_heads=2, bos_token_id=tokenizer.bos_token_id
        )
    if kind in ("qwen3", "skywork"):
        return Qwen3Config(**sizes, **ids, num_key_value_heads=2, head_dim=8, bos_token_id=None)
    if kind == "gemma3":
        options = {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 16}
        return Gemma3TextConfig(**sizes, **ids, **options, bos_token_id=tokenizer.bos_token_id)
    return Qwen2Config(**sizes, **ids, num_key_value_heads=2, bos_token_id=None)


def make_model(folder: Path | str, kind: str, seed: int = 0, layers: int = 2) -> Path:
    """Save a language model, an encoder, or Skywork's reward model, and its tokenizer."""
    tokenizer = make_tokenizer(kind)
    torch.manual_seed(seed)
    config = make_config(kind, tokenizer, layers)
    if kind == "encoder":
        model = AutoModel.from_config(config)
    elif kind == "skywork":
        config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        model = AutoModelForCausalLM.from_config(config)
    # transformers' standard deviation of .02 makes all rewards nearly equal, which hides faults.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def hh_rows(n: int, seed: int = 0, turns: int = 2) -> list[dict]:
    """HH-RLHF transcripts of random words.

    The rejected answer apologises, so that there is something to learn.

    Args:
        n: the number of pairs.
        seed: of the words; it also stands in each prompt.
        turns: a prompt has at most so many questions.
    """
    rng = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    rows = []
    for i in range(n):
        prompt = "".join(
            f"\n\nHuman: {seed} {i} {words(3, 10)}?\n\nAssistant: {words(3, 12)}"
            for _ in range(rng.randint(0, turns - 1))
        )
        prompt += f"\n\nHuman: {seed} {i} {words(4, 12)}?\n\nAssistant:"
        chosen = f"{prompt} here are three steps {words(4, 20)}"
        rejected = f"{prompt} sorry {words(4, 20)}"
        rows.append({"chosen": chosen, "rejected": rejected})
    return rows


def load_tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)
