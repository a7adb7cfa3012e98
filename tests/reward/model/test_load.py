"""Every layout that loads gives the rewards of its maker; every other one is refused."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reward_models import (
    ANSWERS,
    PROMPT,
    by_hand,
    exit_of,
    model_and_tokenizer,
    rewards,
    save,
    scored,
    stock_logits,
    with_lora,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import audit
import score
from reward.data.encoding import differing_facts, encode
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.heads import Float32Head
from reward.model.hub import ModelError, require_model
from reward.model.load import load_reward_model

pytest_plugins = ["reward_model_fixtures"]
torch.set_num_threads(1)


# --- Adapters -------------------------------------------------------------------------------------


def test_lora_saves_and_reloads_its_head(standin, tmp_path):
    model = build_reward_model(str(standin("qwen")), head_init="normal")
    tokenizer = build_tokenizer(str(standin("qwen")), model.config)
    model = with_lora(model, target_modules="all-linear")
    expected = rewards(model, tokenizer)
    save(model, tokenizer, tmp_path)
    loaded, tokenizer = model_and_tokenizer(str(tmp_path))
    torch.testing.assert_close(rewards(loaded, tokenizer), expected, atol=1e-5, rtol=0)
    assert type(loaded.base_model.model.score.modules_to_save["default"]) is Float32Head


def test_an_adapter_without_a_head_is_refused(standin, tmp_path, monkeypatch, capsys):
    model = build_reward_model(str(standin("qwen")))
    tokenizer = build_tokenizer(str(standin("qwen")), model.config)
    model = get_peft_model(
        model, LoraConfig(target_modules=["q_proj", "v_proj"], r=4)
    )  # TRL's way without a task type
    save(model, tokenizer, tmp_path)
    with pytest.raises(ModelError, match="holds no score or classifier weight"):
        load_reward_model(str(tmp_path))
    status, error = exit_of(
        score, monkeypatch, capsys, "--ckpt", tmp_path, "--prompt", "a", "--completion", "b"
    )
    assert status == 2 and "adapter_model.safetensors" in error


def test_an_adapter_without_a_bias_over_a_base_with_one(headed, tmp_path):
    """Its head is new; the base's bias belongs to the base's head."""
    _, base = headed(bias=[0.75])
    model = with_lora(build_reward_model(str(base), head_init="normal", head_bias=False))
    tokenizer = AutoTokenizer.from_pretrained(base)
    expected = rewards(model, tokenizer)
    torch.testing.assert_close(
        scored(save(model, tokenizer, tmp_path)), expected, atol=1e-5, rtol=0
    )


def test_an_adapter_whose_base_is_gone_is_refused(standin, tmp_path, monkeypatch):
    model = build_reward_model(str(standin("qwen")))
    get_peft_model(model, LoraConfig(task_type="SEQ_CLS")).save_pretrained(tmp_path)
    adapter = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({**adapter, "base_model_name_or_path": "./moved/away/now"})
    )
    with pytest.raises(ModelError, match="moved/away"):
        load_reward_model(str(tmp_path))


# --- Two logits -----------------------------------------------------------------------------------


def test_two_logit_models_score_logit_1(two_labels):
    stock = AutoModelForSequenceClassification.from_pretrained(two_labels)
    model, tokenizer = model_and_tokenizer(str(two_labels))
    for reward, answer in zip(rewards(model, tokenizer), ANSWERS, strict=True):
        with torch.inference_mode():
            logits = stock(input_ids=torch.tensor([encode(tokenizer, PROMPT, answer)])).logits[0]
        assert reward.item() == pytest.approx(logits[1].item(), abs=1e-5)
        assert abs(logits[0] - logits[1]) > 1e-3


@pytest.mark.parametrize("adapter", [False, True])
def test_a_two_logit_head_is_saved_and_its_reward_is_logit_1(adapter, headed):
    model, folder = headed(adapter, head="two_logit")
    logits = stock_logits(folder, 2)
    assert logits.shape == (3, 2) and (logits[:, 0] - logits[:, 1]).abs().min() > 1e-3
    torch.testing.assert_close(scored(folder), logits[:, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        rewards(model, AutoTokenizer.from_pretrained(folder)), logits[:, 1], atol=1e-5, rtol=0
    )


def test_three_labels_are_refused(standin, saved, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(standin("qwen"), num_labels=3)
    save(model, AutoTokenizer.from_pretrained(saved("qwen")), tmp_path)
    with pytest.raises(ModelError, match="3 labels; a reward model has one"):
        load_reward_model(str(tmp_path))


# --- Value heads ----------------------------------------------------------------------------------


def test_llama_factory_value_head_by_hand(value_head):
    folder, weight, bias = value_head
    model, tokenizer = model_and_tokenizer(str(folder))
    stock = AutoModelForCausalLM.from_pretrained(folder)
    expected = by_hand(stock, tokenizer, weight[0], bias.item())
    torch.testing.assert_close(rewards(model, tokenizer), expected, atol=1e-5, rtol=0)


def test_a_value_head_of_the_wrong_shape_is_refused(value_head, saved, tmp_path):
    stock = AutoModelForCausalLM.from_pretrained(value_head[0])
    save(stock, AutoTokenizer.from_pretrained(saved("qwen")), tmp_path)
    save_file({"v_head.summary.weight": torch.zeros(1, 8)}, tmp_path / "value_head.safetensors")
    with pytest.raises(ModelError, match=r"v_head\.summary\.weight \[1, 32\] is needed"):
        load_reward_model(str(tmp_path))


def test_a_value_head_beside_an_adapter_by_hand(value_head_adapter, value_head):
    folder, stock = value_head_adapter
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    model, tokenizer = model_and_tokenizer(str(folder))
    _, weight, bias = value_head
    expected = by_hand(stock, tokenizer, weight[0], bias.item())
    torch.testing.assert_close(rewards(model, tokenizer), expected, atol=1e-5, rtol=0)
    with stock.disable_adapter():
        assert (by_hand(stock, tokenizer, weight[0], bias.item()) - expected).abs().min() > 0.01


@pytest.mark.parametrize("adapter", [False, True])
def test_a_value_head_in_the_older_file(adapter, value_head, value_head_adapter, tmp_path):
    source = (value_head_adapter if adapter else value_head)[0]
    shutil.copytree(source, tmp_path / "rm")
    torch.save(
        load_file(tmp_path / "rm" / "value_head.safetensors"), tmp_path / "rm" / "value_head.bin"
    )
    (tmp_path / "rm" / "value_head.safetensors").unlink()
    expected = rewards(*model_and_tokenizer(str(source)))
    torch.testing.assert_close(
        rewards(*model_and_tokenizer(str(tmp_path / "rm"))), expected, atol=1e-6, rtol=0
    )


# --- A head bias ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 4])
def test_a_head_bias_that_stock_passes_over_moves_all_rewards_by_it(shards, headed, tmp_path):
    model, folder = headed(bias=[0.75])
    if shards > 1:
        model.save_pretrained(tmp_path, max_shard_size="30KB")
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
        folder = tmp_path
        assert (
            len(list(folder.glob("model-*.safetensors"))) >= shards
            and not (folder / "model.safetensors").exists()
        )
    torch.testing.assert_close(
        scored(folder) - stock_logits(folder, 1)[:, 0], torch.full((3,), 0.75), atol=1e-6, rtol=0
    )
    again = build_reward_model(str(folder))
    assert again.score.bias.item() == 0.75 and torch.equal(again.score.weight, model.score.weight)
    assert build_reward_model(str(folder), head_bias=True).score.bias.item() == 0.75
    assert build_reward_model(str(folder), head_init="normal").score.bias.item() == 0
    with pytest.raises(ModelError, match=r"score\.bias.*head_init: normal"):
        build_reward_model(str(folder), head_bias=False)


# --- What is no reward model ----------------------------------------------------------------------


@pytest.mark.parametrize("script", [score, audit])
@pytest.mark.parametrize(
    ("kind", "tensor"), [("qwen", "score.weight"), ("encoder", "classifier.weight")]
)
def test_a_checkpoint_without_a_head_is_refused(
    script, kind, tensor, standin, tmp_path, monkeypatch, capsys
):
    task = ["--prompt", "a", "--completion", "b"] if script is score else ["--output_dir", tmp_path]
    status, error = exit_of(script, monkeypatch, capsys, "--ckpt", standin(kind), *task)
    assert status == 2
    assert f"{script.__name__}.py: " in error and "is no reward model" in error and tensor in error


@pytest.mark.parametrize(
    ("layout", "named"),
    [
        ({"reward_head.weight": [1, 32]}, "reward_head.weight"),
        (
            {f"rm_head.{i}.weight": [1, 32] for i in range(9)},
            ", ".join(f"rm_head.{i}.weight" for i in range(7)) + ", ...",
        ),
    ],
)
def test_an_unknown_layout_names_the_tensors_found(
    layout, named, standin, saved, tmp_path, monkeypatch, capsys
):
    """Heads of other names, whose maker's code is not known here."""
    model = AutoModelForCausalLM.from_pretrained(standin("qwen"))
    save(model, AutoTokenizer.from_pretrained(saved("qwen")), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors") | {
        name: torch.ones(shape) for name, shape in layout.items()
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"score\.weight is not in the checkpoint and would be random"
    ):
        load_reward_model(str(tmp_path))
    status, error = exit_of(
        score, monkeypatch, capsys, "--ckpt", tmp_path, "--prompt", "a", "--completion", "b"
    )
    assert (
        status == 2 and f"tensors found and not used: lm_head.weight, {named}. Train one" in error
    )


@pytest.mark.parametrize("kind", ["qwen", "encoder"])
def test_a_config_that_wants_tuples_changes_nothing(kind, saved, tmp_path):
    """`return_dict: false` was an AttributeError."""
    folder = tmp_path / "tuples"
    shutil.copytree(saved(kind), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"return_dict": False}))
    torch.testing.assert_close(scored(folder), scored(saved(kind)))


def test_a_template_that_renders_nothing_is_said(saved, tmp_path):
    """It knows the roles human and gpt alone; loading was an IndexError."""
    folder = tmp_path / "silent"
    shutil.copytree(saved("qwen"), folder)
    (folder / "manifest.json").unlink(missing_ok=True)
    template = (
        "{% for m in messages %}{% if m.role == 'human' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    said = load_reward_model(str(folder)).notes
    assert "its chat template renders nothing for a user and an assistant" in said


def test_a_folder_without_a_model_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere" / "at" / "all"):
        with pytest.raises(ModelError, match="folder"):
            load_reward_model(str(path))


# --- The tokenizer --------------------------------------------------------------------------------


def test_differing_facts_are_what_an_rl_trainer_would_get_wrong(standin, saved):
    tokenizer = AutoTokenizer.from_pretrained(saved("tinyllama"))
    assert differing_facts(tokenizer, tokenizer) == []
    base = AutoTokenizer.from_pretrained(standin("tinyllama"))
    assert {"chat_template_sha256", "pad_token_id"} <= set(differing_facts(tokenizer, base))


# --- A folder that is no model --------------------------------------------------------------------


def test_a_folder_without_a_model_is_told_from_a_hub_id(tmp_path):
    with pytest.raises(ModelError, match="the folder has no config.json, so it holds no model"):
        require_model(str(tmp_path), "main")
    newest = tmp_path / "checkpoint-20"
    newest.mkdir()
    (newest / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=f"go on with --resume auto, or name .*, {newest}$"):
        require_model(str(tmp_path), "main")
