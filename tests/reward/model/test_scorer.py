"""The scorer gives what one text at a time gives, under any budget, packed or padded."""

import sys
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from packed_models import one_by_one, random_tree
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from reward.model import packed_attention
from reward.model import scorer as scoring
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.cpu import cpu_has_bf16
from reward.model.fingerprint import fingerprint
from reward.model.hub import ModelError
from reward.model.scorer import Scorer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def scorers(standin, tmp_path_factory):
    """`scorers("qwen")` -> Scorer of a stand-in with a random head."""
    made = {}

    def get(kind: str) -> Scorer:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            torch.manual_seed(0)
            model = build_reward_model(str(standin(kind)), head_init="normal")
            model.save_pretrained(folder)
            build_tokenizer(str(standin(kind)), model.config).save_pretrained(folder)
            made[kind] = Scorer(str(folder))
        return made[kind]

    return get


@pytest.mark.parametrize("kind", ["qwen", "llama3", "encoder"])
@pytest.mark.parametrize("budget", [40, 400, 100_000])
def test_scorer_gives_what_one_text_at_a_time_does_in_the_order_given(kind, budget, scorers):
    scorer = scorers(kind)
    scorer.token_budget = budget
    texts = random_tree(5, prompts=6)
    with torch.no_grad():
        expected = one_by_one(scorer.model, texts)[:, -1]
    scorer_rewards = scorer.rewards_of_ids([texts[0], None, *texts[1:]])
    assert scorer_rewards[1] is None
    assert (scorer.padded_because is None) == (kind != "encoder")
    assert torch.tensor([scorer_rewards[0], *scorer_rewards[2:]]).sub(expected).abs().max() < 1e-4


def test_completions_of_a_prompt_cost_it_once(scorers):
    scorer = scorers("qwen")
    scorer.token_budget, scorer.tested_length = 8192, sys.maxsize
    prompt = [3 + i % 300 for i in range(200)]
    texts = [[*prompt, 10 + i, 2] for i in range(16)]
    seen = []
    hook = scorer.model.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    scorer.rewards_of_ids(texts)
    hook.remove()
    assert seen == [200 + 16 * 2]


def test_equal_texts_are_computed_once_and_get_the_same_reward(scorers):
    """The batch decides how a reward is rounded, so a text that comes twice got two rewards."""
    scorer = scorers("encoder")
    scorer.token_budget, scorer.tested_length = 60, sys.maxsize
    texts = [[5 + i, *range(10, 20 + i), 3] for i in range(12)]
    rows = []
    hook = scorer.model.register_forward_pre_hook(
        lambda _, args, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    rewards = scorer.rewards_of_ids([*texts, None, *texts[::-1], texts[3]])
    hook.remove()
    assert sum(rows) == 12
    assert len(set(rewards[:12])) == 12 and rewards[12] is None
    assert rewards[13:] == [*rewards[11::-1], rewards[3]]


def test_a_process_scores_its_share_alone(scorers, monkeypatch):
    scorer = scorers("qwen")
    different = {tuple(text): text for text in random_tree(5, prompts=6)}
    texts = list(different.values())
    scorer.token_budget, scorer.tested_length = 60, sys.maxsize
    expected = scorer.rewards_of_ids(texts)
    gathered = []

    def gather(computed):
        gathered.append(computed)
        return computed

    assert not scorer.distributed  # a process that asks for rewards of its own gets them
    monkeypatch.setattr(scorer, "distributed", True)
    for index in range(3):
        state = SimpleNamespace(process_index=index, num_processes=3, is_main_process=index == 0)
        monkeypatch.setattr(scoring, "processes", lambda state=state: state)
        monkeypatch.setattr(scoring, "gather_object", gather)
        scorer.rewards_of_ids(texts)
    assert all(0 < len(part) < len(texts) / 2 for part in gathered)
    reward_at = dict(pair for part in gathered for pair in part)
    assert [reward_at[i] for i in range(len(texts))] == pytest.approx(expected, abs=1e-5)


def test_scorer_goes_back_to_padding_where_packing_differs(scorers, monkeypatch, capsys):
    scorer = scorers("llama3")
    texts = random_tree(6, prompts=6)
    scorer.token_budget, scorer.tested_length, expected = 400, 0, scorer.rewards_of_ids(texts)
    monkeypatch.setattr(
        packed_attention, "causal_mask", lambda q, k, *_: torch.ones(q, k, dtype=torch.bool).tril()
    )
    monkeypatch.setattr(scorer, "tested_length", 0)
    padded_rewards = scorer.rewards_of_ids(texts)
    assert "padded batches, because packed rewards differ by" in capsys.readouterr().err
    assert padded_rewards == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr(scorer, "padded_because", None)


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 32,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize("rope", [LONGROPE, DYNAMIC], ids=["longrope", "dynamic"])
def test_a_short_text_is_not_changed_by_a_longer_one(rope, standin, tmp_path):
    """longrope and dynamic RoPE choose their frequencies by the longest text of a batch."""
    folder = str(standin("llama3"))
    config = AutoConfig.from_pretrained(
        folder, num_labels=1, hidden_size=32, rope_parameters=rope, max_position_embeddings=128
    )
    torch.manual_seed(0)
    stock = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    stock.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    texts = [[3 + (i * n) % 250 for i in range(n)] for n in (20, 100, 10, 40, 25, 31, 60, 33, 5, 9)]
    expected = []
    for text in texts:  # a fresh model for each, which has seen no longer text
        fresh = deepcopy(stock)
        with torch.no_grad():
            expected.append(fresh(input_ids=torch.tensor([text])).logits.item())
    scorer = Scorer(str(tmp_path))
    assert scorer.rewards_of_ids(texts) == pytest.approx(expected, abs=1e-4)
    assert scorer.rewards_of_ids(texts[2:4]) == pytest.approx(expected[2:4], abs=1e-4)


# --- In bfloat16 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen", "encoder"])
def test_bfloat16_moves_rewards_by_its_rounding(kind, scorers):
    if not cpu_has_bf16():
        pytest.skip("needs a CPU with AVX512-BF16 or AMX")
    whole = scorers(kind)
    half = Scorer(whole.name, dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16 and whole.model.dtype == torch.float32
    texts = random_tree(5, prompts=6)
    exact = torch.tensor(whole.rewards_of_ids(texts))
    rounded = torch.tensor(half.rewards_of_ids(texts))
    assert (half.padded_because is None) == (kind == "qwen")
    difference = (rounded - exact).abs().max() / exact.std()
    assert 0 < difference < 0.25  # bf16 keeps 8 bits of a number; .11 was seen
    assert fingerprint(half)["weights"] != fingerprint(whole)["weights"]  # so --resume refuses it


def test_a_cpu_without_bfloat16_says_so(scorers, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    sentence = "no AVX512-BF16 and no AMX: bfloat16 would be slower than float32; leave out --dtype"
    with pytest.raises(ModelError, match=sentence):
        Scorer(scorers("qwen").name, device="cpu", dtype="bfloat16")
