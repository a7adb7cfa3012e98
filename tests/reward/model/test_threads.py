"""Small models are computed by one thread, unless the user says another number."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Qwen2Config

from reward.model import threads
from reward.model.threads import choose_threads, computing_parameters


@pytest.fixture
def four_cores(monkeypatch):
    """A machine with four cores and no GPU, on which nobody set OMP_NUM_THREADS."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(threads, "MACHINE_THREADS", 4)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


def model_of(dimensions: int, layers: int) -> torch.nn.Module:
    """A reward model without memory, on the meta device."""
    config = Qwen2Config(
        vocab_size=100_000,
        hidden_size=dimensions,
        intermediate_size=4 * dimensions,
        num_hidden_layers=layers,
        num_labels=1,
    )
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


TINY, BIG = (128, 2), (896, 24)


def test_embeddings_do_not_count():
    """Each layer: q, k, v and o of 128 x 128 with three biases of 128, three matrices of 128 x 512,
    two norms of 128. Then a norm, and a head of one row.
    """
    layer = 4 * 128 * 128 + 3 * 128 + 3 * 128 * 512 + 2 * 128
    assert computing_parameters(model_of(*TINY)) == 2 * layer + 128 + 128


def test_a_small_model_gets_one_thread_and_a_big_one_all(four_cores, capsys):
    choose_threads(model_of(*TINY))
    assert torch.get_num_threads() == 1
    said = capsys.readouterr().err
    assert said.startswith("one CPU thread, because the model is small (0.5 million parameters")
    assert "OMP_NUM_THREADS=4" in said
    # The other model of a comparison is big.
    choose_threads(model_of(*BIG))
    assert torch.get_num_threads() == 4 and capsys.readouterr().err == ""


def test_what_the_user_set_stays(four_cores, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    choose_threads(model_of(*TINY))
    assert torch.get_num_threads() == 4 and capsys.readouterr().err == ""


def test_with_a_gpu_nothing_changes(four_cores, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    choose_threads(model_of(*TINY))
    assert torch.get_num_threads() == 4
