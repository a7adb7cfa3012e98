"""In which precision a run computes, and what it says where that is not what was asked for."""

import signal
import warnings
from types import SimpleNamespace

import pytest
import torch
from support import REPO
from trl import RewardConfig

from reward.data.files import DataError
from reward.data.ledger import Ledger
from reward.recipe.parse import parse_command_line
from reward.training.run import check_streamed, read_settings
from reward.training.runtime import StopOnSignal, choose_precision, keep_quiet

WITH, WITHOUT = {"avx512_bf16": True}, {"avx512_bf16": False, "amx_bf16": False}
NOT_ASKED_OF = "float32 (the recipe asks for bf16, and this CPU has no AVX512-BF16 and no AMX)"


@pytest.mark.parametrize(
    ("keys", "quantized", "processor", "bf16", "said"),
    [
        ({"bf16": True}, False, WITH, True, "bf16 autocast"),
        ({"bf16": True}, False, {"amx_bf16": True}, True, "bf16 autocast"),
        ({"bf16": True}, False, WITHOUT, False, NOT_ASKED_OF),
        ({"bf16": False}, False, WITH, False, "float32"),
        ({}, False, WITH, False, "float32"),
        ({"fp16": True}, False, WITH, False, "float32 (the recipe asks for fp16)"),
        ({}, True, WITHOUT, True, "bf16 autocast"),  # 4-bit layers compute in nothing else
    ],
)
def test_the_precision_of_a_cpu(keys, quantized, processor, bf16, said, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    settings = {"use_cpu": True, **keys}
    machine = choose_precision(settings, quantized)
    assert settings == {"use_cpu": True, "bf16": bf16, "fp16": False}
    assert (machine.precision, machine.is_float32, machine.is_cpu) == (said, not bf16, True)


def test_the_old_name_of_trls_own_default_is_not_warned_of(tmp_path):
    """RewardConfig sets gradient_checkpointing itself, and transformers warns of that name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keep_quiet()
        RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert [str(one.message) for one in caught if one.category is FutureWarning] == []


def test_a_recipe_on_a_gpu(monkeypatch):
    """Without a GPU here, torch's answers are set. No recipe says `use_cpu`."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    recipe = parse_command_line(["--recipe", str(REPO / "recipes" / "quickstart.yaml")])
    settings = read_settings(recipe)
    assert str(settings.machine) == "a GPU; float32"
    assert settings.args.use_cpu is False


def test_signals_do_what_they_did_after_a_training_that_began_twice():
    """auto_find_batch_size begins once more; SIGTERM was then ignored while the model was saved."""
    before = signal.getsignal(signal.SIGTERM)
    stop = StopOnSignal()
    for _ in range(2):
        stop.on_train_begin(None, None, None)
    assert signal.getsignal(signal.SIGTERM) == stop._on_signal
    stop.restore()
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_steps_of_a_stream_that_lost_too_much_are_not_lost(tmp_path):
    ledger = Ledger()
    ledger.add_read("train", 5 * ["", "empty completion (chosen)"])
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "manifest.json").touch()
    settings = SimpleNamespace(recipe={"max_dropped": 0.1}, output_dir=tmp_path)
    with pytest.raises(DataError, match="set max_dropped: 0.50.\nOf the trained steps .*/checkp"):
        check_streamed(ledger, settings)
