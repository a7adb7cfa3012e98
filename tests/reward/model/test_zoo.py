"""A reward depends on its own text alone, whatever the architecture, the pad token and the file.

The truth is stock transformers' forward of one text alone, in a model that our code never touched.
"""

import random
from dataclasses import dataclass

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from standins import KINDS, WORDS, make_tokenizer
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from zoo_models import NAMES, NOT_RUN_BY_STOCK, make_zoo_model

from reward.data.transcripts import assistant, user
from reward.model.packed_attention import FAMILIES
from reward.model.scorer import Scorer

torch.set_num_threads(1)

PACKED = sorted(FAMILIES)
OTHER_KINDS = ["bert", "roberta", "electra", "deberta-v2", "t5", "gemma2", "fnet", "xlnet"]
TOLERANCE = 1e-4

ENDED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
NOT_ENDED = ENDED.replace("{{ eos_token }}", "")


@dataclass(frozen=True)
class Case:
    """How a checkpoint was made: its config's pad id, and its tokenizer."""

    pad: str  # which token it is
    template: str = ENDED
    padding_side: str = "right"


CASES = [
    Case("separate"),
    Case("end", padding_side="left"),
    Case("end", NOT_ENDED),
    Case("unk", NOT_ENDED),
    Case("none"),
    Case("outside", padding_side="left"),
]


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of which every word that it does not know is <unk>."""
    with pytest.MonkeyPatch.context() as patch:
        special = ["<unk>", "<s>", "</s>", "<pad>"]
        roles = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>"}
        patch.setitem(KINDS, "zoo", (special, roles | {"eos_token": "</s>"}, ENDED))
        return make_tokenizer("zoo")


def texts(count: int) -> list[tuple]:
    """Conversations that share prompts, of very different lengths; some end in <unk> or hold it."""
    rng = random.Random(1)

    def words(low, high):
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    prompts = [user(f"{words(2, 9)}?") for _ in range(3)]
    made = []
    for i in range(count):
        answer = words(1, 14)
        if i % 4 == 1:
            answer += " <unk>"
        if i % 4 == 2:
            answer = f"{words(1, 3)} <unk> {answer}"
        made.append((prompts[i % len(prompts)], assistant(answer)))
    return made


def pad_id(case: Case, tokenizer: PreTrainedTokenizerFast) -> int | None:
    return {
        "separate": tokenizer.pad_token_id,
        "end": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "none": None,
        "outside": len(tokenizer) + 7,
    }[case.pad]


def stock_rewards(model, tokenizer, conversations) -> list[float]:
    """The reward of each text, by stock transformers' forward of this text alone."""
    rewards = []
    for prompt, completion in conversations:
        text = tokenizer.apply_chat_template(prompt + completion, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            rewards.append(model(input_ids=torch.tensor([ids])).logits[0, -1].item())
    return rewards


def prove(name: str, folder, tokenizer, sizes_of: dict[Case, list[int]]) -> int:
    """Compare the scorer with stock transformers, in files of some sizes in each case.

    Returns how many cases stock transformers can run.
    """
    make_zoo_model(folder, name, tokenizer)
    stock = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    scorer = Scorer(str(folder))
    ways = scorer.padded_because, scorer.alone_because
    proved = 0
    for case, sizes in sizes_of.items():
        conversations = texts(max(sizes))
        scorer.padded_because, scorer.alone_because = ways
        scorer.tested_length = 0
        for used in (tokenizer, scorer.tokenizer):
            used.chat_template, used.padding_side = case.template, case.padding_side
        try:
            for model in (stock, scorer.model):
                model.config.get_text_config().pad_token_id = pad_id(case, tokenizer)
            expected = stock_rewards(stock, tokenizer, conversations)
        except (StrictDataclassFieldValidationError, ValueError, IndexError):
            continue  # Such a checkpoint cannot be: stock transformers does not run it.
        proved += 1
        for size in sizes:
            order = random.Random(size).sample(range(len(conversations)), size)
            order += order[: size // 8]  # some texts twice
            rewards = scorer.rewards([conversations[i] for i in order])
            wanted = [expected[i] for i in order]
            assert rewards == pytest.approx(wanted, abs=TOLERANCE), (name, case, size, scorer.way)
    return proved


@pytest.mark.parametrize("name", [*PACKED, *OTHER_KINDS])
def test_a_reward_depends_on_its_own_text_alone(name, tokenizer, tmp_path):
    assert prove(name, tmp_path, tokenizer, dict.fromkeys(CASES, [1, 8, 9, 10])) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_RUN_BY_STOCK])
def test_every_architecture(name, tokenizer, tmp_path):
    sizes_of = dict.fromkeys(CASES, [9]) | {Case("end", NOT_ENDED): [1, 8, 9, 40]}
    assert prove(name, tmp_path, tokenizer, sizes_of) >= 3
