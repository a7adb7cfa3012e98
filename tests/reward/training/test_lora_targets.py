"""LoRA on architectures for which PEFT has no default layers."""

import pytest
import torch
from peft import get_peft_model
from reward_models import model_and_tokenizer, rewards, save
from standins import make_config, make_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from trl import ModelConfig, get_peft_config

from reward.model.build import build_reward_model, build_tokenizer
from reward.model.hub import ModelError
from reward.training.run import refuse_unknown_lora_targets

torch.set_num_threads(1)


@pytest.mark.parametrize("model_type", ["smollm3", "phi3", "olmo2"])
def test_all_linear_is_the_line_to_write_and_it_saves_the_head(model_type, tmp_path):
    tokenizer = make_tokenizer("qwen")
    qwen = make_config("qwen", tokenizer)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "vocab_size", "pad_token_id", "eos_token_id")
    config = CONFIG_MAPPING[model_type](
        **{name: getattr(qwen, name) for name in names}, bos_token_id=None
    )
    base = str(save(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path / "base"))

    settings = ModelConfig(model_name_or_path=base, use_peft=True, lora_task_type="SEQ_CLS")
    with pytest.raises(ModelError, match=f"{model_type} .*write lora_target_modules: all-linear"):
        refuse_unknown_lora_targets(settings, config)
    settings.lora_target_modules = "all-linear"
    refuse_unknown_lora_targets(settings, config)

    model = build_reward_model(base, head_init="normal")
    tokenizer = build_tokenizer(base, model.config)
    model.config.pad_token_id = tokenizer.pad_token_id
    model = get_peft_model(model, get_peft_config(settings)).eval()
    expected = rewards(model, tokenizer)
    folder = save(model, tokenizer, tmp_path / "adapter")
    torch.testing.assert_close(rewards(*model_and_tokenizer(folder)), expected, atol=1e-5, rtol=0)
    assert expected.max() - expected.min() > 1e-3


def test_an_architecture_with_default_layers_needs_no_line():
    settings = ModelConfig(use_peft=True, lora_task_type="SEQ_CLS")
    refuse_unknown_lora_targets(settings, CONFIG_MAPPING["llama"]())
    refuse_unknown_lora_targets(ModelConfig(use_peft=False), CONFIG_MAPPING["smollm3"]())
