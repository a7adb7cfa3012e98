"""Every maker's checkpoints give the rewards of its own code, whatever else is in the file.

    python tests/reward/model/test_makers.py        # prints maker | rows | largest difference

What a maker computes is written out here: a forward of one text alone, without padding, and the few
lines that read the reward. The same texts are then scored in files of 1, 8, 9 and 40 rows.
"""

import json
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from trl import RewardConfig, RewardTrainer

REPO = Path(__file__).resolve().parents[3]
if __name__ == "__main__":
    sys.path[:0] = [str(REPO), str(REPO / "tests")]

from checkpoint_folders import (  # noqa: E402
    Folders,
    adapter,
    edit_json,
    make_folders,
    rename,
    with_random_weights,
)
from standins import WORDS, make_model  # noqa: E402
from support import write_rows  # noqa: E402

from reward.model.score_file import score_file  # noqa: E402
from reward.model.scorer import Scorer  # noqa: E402

torch.set_num_threads(1)
ROWS = (1, 8, 9, 40)
PEERS = REPO / "tests" / "peers"

# From the token ids of one text, (1, tokens), to its reward.
Reward = Callable[[torch.Tensor], float]


@dataclass
class Made:
    """A checkpoint, and what its maker's code gives for one text."""

    folder: Path
    reward: Reward


# --- The texts ------------------------------------------------------------------------------------


def rows_of(count: int) -> list[dict]:
    """Prompts and completions of random words; some share a prompt."""
    chance = random.Random(3)
    rows = []
    for i in range(count):
        if i % 3 == 0:
            prompt = " ".join(chance.choices(WORDS, k=chance.randint(3, 9))) + "?"
        completion = " ".join(chance.choices(WORDS, k=chance.randint(1, 14)))
        rows.append({"prompt": prompt, "completion": completion})
    return rows


def ids_of(tokenizer: PreTrainedTokenizerBase, row: dict) -> torch.Tensor:
    """Token ids of a row by the checkpoint's own template: (1, tokens)."""
    messages = [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


def end_as_pad(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the end token the pad token of a saved model, as tutorials do."""
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    edit_json(folder / "config.json", pad_token_id=tokenizer.eos_token_id)


# --- The makers -----------------------------------------------------------------------------------


def stock(folder: Path, label: int = 0) -> Reward:
    """A logit of transformers' own forward."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return lambda ids: model(input_ids=ids).logits[0, label].item()


def trl(folders: Folders) -> Made:
    """trl.RewardTrainer, over a base without a pad token: TRL then pads with the end token."""
    base = make_model(folders.new(), "mistral")
    edit_json(base / "config.json", pad_token_id=None)
    rows = []
    for row in rows_of(16):
        prompt = [{"role": "user", "content": row["prompt"]}]
        rejected = [{"role": "assistant", "content": row["completion"]}]
        chosen = [{"role": "assistant", "content": row["completion"] + " thank you"}]
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    args = RewardConfig(
        output_dir=str(folders.new()),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = RewardTrainer(model=str(base), args=args, train_dataset=Dataset.from_list(rows))
    trainer.train()
    folder = folders.new()
    trainer.save_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token == tokenizer.eos_token
    return Made(folder, stock(folder))


def skywork(folders: Folders) -> Made:
    """Skywork-Reward's card: `model(**conversation).logits[0][0].item()`."""
    return Made(folders.reward_model, stock(folders.reward_model))


def halos(folders: Folders) -> Made:
    """ContextualAI/HALOs: two labels; the reward is the second logit. Its pad is the end token."""
    folder = folders.save(with_random_weights(folders.classifier(labels=2), seed=4))
    end_as_pad(folder, AutoTokenizer.from_pretrained(folder))
    return Made(folder, stock(folder, label=1))


def openrlhf(folders: Folders) -> Made:
    """OpenRLHF's RewardModel: the value at the last attended token, here with pad = end token."""
    folder = folders.copy(folders.reward_model)
    rename(folder, "score.weight", "value_head.weight")
    keys = {"architectures": ["RewardModel"], "normalize_reward": False}
    edit_json(folder / "config.json", drop=("id2label", "label2id"), **keys)
    end_as_pad(folder, AutoTokenizer.from_pretrained(folder))
    head = load_file(folder / "model.safetensors")["value_head.weight"]
    body = AutoModel.from_pretrained(folders.reward_model).eval()

    def reward(ids: torch.Tensor) -> float:
        attention_mask = torch.ones_like(ids)
        position_ids = attention_mask.long().cumsum(-1) - 1
        output = body(ids, attention_mask=attention_mask, position_ids=position_ids)
        values = (output.last_hidden_state @ head.T).squeeze(-1)
        last = attention_mask.size(1) - 1 - attention_mask.fliplr().argmax(dim=1, keepdim=True)
        return values.gather(dim=1, index=last).item()

    return Made(folder, reward)


def llamafactory(folder: Path, model: torch.nn.Module) -> Made:
    """LLaMA-Factory: TRL's value head on the last hidden state, at the last attended token."""
    head = load_file(folder / "value_head.safetensors")

    def reward(ids: torch.Tensor) -> float:
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        values = hidden @ head["v_head.summary.weight"].T + head["v_head.summary.bias"]
        last = torch.ones_like(ids).sum(dim=-1, keepdim=True) - 1
        return values.squeeze(-1).gather(dim=-1, index=last).item()

    return Made(folder, reward)


def llamafactory_full(folders: Folders) -> Made:
    folder = PEERS / "llamafactory-full"
    return llamafactory(folder, AutoModelForCausalLM.from_pretrained(folder).eval())


def llamafactory_lora(folders: Folders) -> Made:
    folder = folders.copy(PEERS / "llamafactory-lora")
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(PEERS / "base"))
    base = AutoModelForCausalLM.from_pretrained(PEERS / "base")
    return llamafactory(folder, PeftModel.from_pretrained(base, folder).eval())


def lora(folders: Folders) -> Made:
    """A PEFT adapter: AutoPeftModelForSequenceClassification."""
    folder = folders.save(adapter(folders.classifier()))
    model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    return Made(folder, lambda ids: model(input_ids=ids).logits[0, 0].item())


MAKERS = {
    "TRL, pad = end token": trl,
    "Skywork-like": skywork,
    "HALOs, two logits": halos,
    "OpenRLHF-like": openrlhf,
    "LLaMA-Factory, full": llamafactory_full,
    "LLaMA-Factory, LoRA": llamafactory_lora,
    "PEFT adapter": lora,
}


# --- Both rewards ---------------------------------------------------------------------------------


@dataclass
class Compared:
    """The largest difference in a file, and how far rewards are apart in it."""

    rows: int
    difference: float
    spread: float  # the largest minus the smallest reward of the maker's code


def compare(made: Made, folder: Path) -> list[Compared]:
    """Score files of each size, and compare each reward with the maker's on that text alone."""
    tokenizer = AutoTokenizer.from_pretrained(made.folder)
    rows = rows_of(max(ROWS))
    with torch.inference_mode():
        expected = [made.reward(ids_of(tokenizer, row)) for row in rows]
    compared = []
    for count in ROWS:
        source = write_rows(folder / f"{count}.jsonl", rows[:count])
        target = folder / f"{count}-scored.jsonl"
        score_file(Scorer(str(made.folder)), str(source), str(target))
        rewards = [json.loads(line)["reward"] for line in target.read_text().splitlines()]
        differences = [abs(a - b) for a, b in zip(rewards, expected[:count], strict=True)]
        spread = max(expected[:count]) - min(expected[:count])
        compared.append(Compared(count, max(differences), spread))
    return compared


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("makers"))


@pytest.mark.parametrize("maker", MAKERS)
def test_rewards_are_those_of_the_makers_own_code(maker, folders, tmp_path):
    compared = compare(MAKERS[maker](folders), tmp_path)
    assert compared[-1].spread > 0.01  # so that equal rewards are no accident
    assert max(one.difference for one in compared) < 1e-4, compared


def print_table() -> None:
    """Print what the tests compare."""
    lines = ["maker | rows | largest difference | spread of the rewards"]
    with tempfile.TemporaryDirectory() as root:
        folders = make_folders(Path(root))
        for maker, make in MAKERS.items():
            for one in compare(make(folders), Path(root)):
                lines.append(f"{maker} | {one.rows} | {one.difference:.1e} | {one.spread:.2f}")
    print("\n".join(lines))


if __name__ == "__main__":
    print_table()
