"""Adapters as people have them: read as their maker meant, or refused in one true sentence."""

import json
import shutil

import peft
import pytest
import torch
from checkpoint_folders import (
    adapter,
    add_tensors,
    conversations,
    edit_json,
    edit_tensors,
    ids_of,
    make_folders,
    our_rewards,
    stock_rewards,
    to_bin,
    with_random_weights,
)
from datasets import Dataset
from hub import serve
from huggingface_hub import constants
from peft import LoraConfig
from rewards_server import serve_rewards
from safetensors.torch import load_file, save_file
from standins import make_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BitsAndBytesConfig,
)
from trl import RewardConfig, RewardTrainer

from reward.checkpoint.convert import convert
from reward.model.build import build_reward_model
from reward.model.endpoint import EndpointScorer
from reward.model.hub import ModelError
from reward.model.load import load_reward_model
from reward.model.parts import parts_of

torch.set_num_threads(1)
FILE = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def plain(folders):
    """(folder, rewards) of an ordinary LoRA adapter with its head."""
    model = adapter(folders.classifier())
    return folders.save(model), stock_rewards(model, folders.tokenizer)


# --- Files that are elsewhere, or in an older form ------------------------------------------------


def test_an_adapter_in_a_bin_file(plain, folders):
    folder = folders.copy(plain[0])
    to_bin(folder, FILE, "adapter_model.bin")
    assert our_rewards(folder) == pytest.approx(plain[1], abs=1e-5)


def test_without_a_tokenizer_the_bases_is_used_and_said(folders, plain, capsys):
    folder = folders.save(adapter(folders.classifier()), with_tokenizer=False)
    assert our_rewards(folder) == pytest.approx(plain[1], abs=1e-5)
    assert "the adapter has no tokenizer: that of its base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        (None, "names no base model: base_model_name_or_path is None"),
        ("", "names no base model: base_model_name_or_path is ''"),
        ("/moved/away", "over the base model /moved/away, and there is no such folder"),
        ("moved/away", "over the base model moved/away. moved/away: no such folder here"),
    ],
)
def test_a_base_that_is_not_there_is_named(base, sentence, plain, folders):
    folder = folders.copy(plain[0])
    edit_json(folder / CONFIG, base_model_name_or_path=base)
    with pytest.raises(ModelError, match=sentence):
        load_reward_model(str(folder))


@pytest.mark.parametrize("file", ["model.safetensors", "model.safetensors.index.json"])
def test_a_whole_model_beside_an_adapter_is_said(file, plain, folders, capsys):
    folder = folders.copy(plain[0])
    source = folders.reward_model / "model.safetensors"
    if file.endswith(".json"):
        source = folders.reward_model / "config.json"
    shutil.copy(source, folder / file)
    assert our_rewards(folder) == pytest.approx(plain[1], abs=1e-5)
    assert f"an adapter and a whole model ({file})" in capsys.readouterr().err


def test_an_adapter_over_an_adapter_is_refused(plain, folders):
    folder = folders.copy(plain[0])
    edit_json(folder / CONFIG, base_model_name_or_path=str(plain[0]))
    with pytest.raises(ModelError, match="The base is an adapter itself; merge that one first"):
        load_reward_model(str(folder))


def test_an_adapter_over_an_adapter_of_the_hub_is_refused(plain, folders, monkeypatch):
    hub = folders.new()
    shutil.copytree(plain[0], hub / "models" / "org" / "lora")
    folder = folders.copy(plain[0])
    edit_json(folder / CONFIG, base_model_name_or_path="org/lora")
    with serve(hub) as url:
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folders.new()))
        with pytest.raises(ModelError, match="over the base model org/lora. The base is an adap"):
            load_reward_model(str(folder))


# --- Which token is read --------------------------------------------------------------------------


def test_the_pad_token_of_the_training_decides_which_token_is_read(folders, capsys):
    """TRL sets the config's pad id to the tokenizer's, which pads with the end token if need be.

    The adapter is saved without that config.
    """
    base = folders.copy(folders.language_model)
    edit_json(base / "config.json", pad_token_id=None)
    model = adapter(folders.classifier(base))
    tokenizer = AutoTokenizer.from_pretrained(base)
    folder = folders.save(model, with_tokenizer=False)
    at_the_end = stock_rewards(model, tokenizer)
    model.config.pad_token_id = tokenizer.eos_token_id
    expected = stock_rewards(model, tokenizer)
    assert expected != pytest.approx(at_the_end, abs=0.1)
    assert our_rewards(folder) == pytest.approx(at_the_end, abs=1e-5)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    assert our_rewards(folder) == pytest.approx(expected, abs=1e-5)
    assert "passes over that of the adapter's tokenizer, <|eot_id|>" in capsys.readouterr().err
    tokenizer.chat_template = None  # then a template of ours brings another pad token
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    assert load_reward_model(str(folder)).model.config.pad_token_id == tokenizer.eos_token_id
    with serve_rewards(folders.reward_model) as server:
        assert EndpointScorer(str(folder), server.url).read_pad == tokenizer.eos_token_id


def test_trl_passes_over_the_tokenizers_pad_token_whatever_the_base_names(folders, capsys):
    """The base names a pad token of its own, and whoever trained has padded with the end token."""
    tokenizer = AutoTokenizer.from_pretrained(folders.language_model)
    tokenizer.pad_token = tokenizer.eos_token
    rows = [{"chosen": text, "rejected": text} for text in conversations()]
    folder = folders.new()
    trainer = RewardTrainer(
        model=str(folders.language_model),
        args=RewardConfig(str(folder), report_to=[], use_cpu=True, bf16=False),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]),
    )
    model = with_random_weights(trainer.model, seed=1)
    trainer.save_model(folder)
    expected = stock_rewards(model, tokenizer)
    assert our_rewards(folder) == pytest.approx(expected, abs=1e-5)
    said = "names the pad token <|reserved_special_token_0|>: the head passes over that of the"
    assert said in capsys.readouterr().err
    with serve_rewards(folders.reward_model) as server:
        assert EndpointScorer(str(folder), server.url).read_pad == tokenizer.eos_token_id


# --- Heads ----------------------------------------------------------------------------------------


def test_the_base_may_hold_the_trained_head(folders):
    model = adapter(folders.classifier(folders.reward_model), task_type=None)
    folder = folders.save(model)
    assert not any("score" in key for key in load_file(folder / FILE))
    expected = stock_rewards(model, folders.tokenizer)
    assert our_rewards(folder) == pytest.approx(expected, abs=1e-5)


def test_lora_on_the_head_is_read_over_a_trained_head_alone(folders):
    """Over a language model the head's own weight is new at every load."""
    options = {"task_type": None, "target_modules": ["q_proj", "score"]}
    model = adapter(folders.classifier(folders.reward_model), **options)
    expected = stock_rewards(model, folders.tokenizer)
    assert our_rewards(folders.save(model)) == pytest.approx(expected, abs=1e-5)
    folder = folders.save(adapter(folders.classifier(), **options))
    with pytest.raises(ModelError, match=r"on a head that is in no file: .*score\.lora_A\.weight"):
        load_reward_model(str(folder))


def test_two_labels_are_read_and_three_are_refused(folders, capsys):
    model = adapter(folders.classifier(labels=2), r=1)
    expected = stock_rewards(model, folders.tokenizer)
    assert our_rewards(folders.save(model)) == pytest.approx(expected, abs=1e-5)
    assert "the reward is the logit of label 1 (LABEL_1)" in capsys.readouterr().err
    folder = folders.save(adapter(folders.classifier(labels=3)))
    with pytest.raises(ModelError, match="3 labels; a reward model has one"):
        load_reward_model(str(folder))


def test_a_bias_of_the_head_in_the_adapter(folders):
    base = folders.classifier()
    base.score = torch.nn.Linear(32, 1)
    model = adapter(base)
    expected = stock_rewards(model, folders.tokenizer)
    assert our_rewards(folders.save(model)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("place", ["pytorch_model.bin", "the base"])
def test_a_value_head_beside_a_language_models_adapter(place, folders):
    """TRL writes it into pytorch_model.bin beside the adapter."""
    model = adapter(
        AutoModelForCausalLM.from_pretrained(folders.language_model), task_type="CAUSAL_LM"
    )
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(2))
    head = {"v_head.summary.weight": weight, "v_head.summary.bias": torch.tensor([0.25])}
    folder = folders.save(model)
    if place == "the base":
        base = folders.copy(folders.language_model)
        edit_tensors(base, lambda tensors: tensors | head)
        edit_json(folder / CONFIG, base_model_name_or_path=str(base))
    else:
        torch.save(head, folder / place)
    expected = []
    for ids in ids_of(folders.tokenizer):
        with torch.inference_mode():
            output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        expected.append((output.hidden_states[-1][0, -1] @ weight[0]).item() + 0.25)
    assert our_rewards(folder) == pytest.approx(expected, abs=1e-5)


def test_what_is_new_at_every_load_beside_the_head_is_refused(folders):
    """A masked language model has no pooler, and the adapter does not save its new one."""
    tokenizer = make_tokenizer("encoder")
    config = BertConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
    )
    base = folders.save(with_random_weights(BertForMaskedLM(config)), with_tokenizer=False)
    tokenizer.save_pretrained(base)
    model = adapter(folders.classifier(base), target_modules=["query"])
    folder = folders.save(model, with_tokenizer=False)
    with pytest.raises(ModelError, match=r"bert\.pooler\.dense\.weight are not in the checkpoint"):
        load_reward_model(str(folder))


# --- Embeddings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "saving"),
    [
        ({"modules_to_save": ["embed_tokens"]}, {}),
        ({}, {"save_embedding_layers": True}),
        ({"target_modules": ["q_proj", "embed_tokens"]}, {}),
    ],
    ids=["trained whole", "saved whole", "LoRA"],
)
def test_embeddings_that_were_resized(options, saving, folders):
    tokenizer = make_tokenizer("llama3")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["garden?"])
    base = folders.classifier()
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = adapter(base, **options)
    folder = folders.save(model, with_tokenizer=False, **saving)
    tokenizer.save_pretrained(folder)
    assert max(max(ids) for ids in ids_of(tokenizer)) == len(tokenizer) - 1
    assert our_rewards(folder) == pytest.approx(stock_rewards(model, tokenizer), abs=1e-5)


def test_an_adapter_over_openrlhfs_model_is_not_openrlhfs(folders):
    base = folders.copy(folders.reward_model)
    edit_json(base / "config.json", architectures=["RewardModel"], normalize_reward=False)
    model = adapter(folders.classifier(base))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template += "{{ 'so' }}"
    folder = folders.save(model, with_tokenizer=False)
    tokenizer.save_pretrained(folder)
    assert our_rewards(folder) == pytest.approx(stock_rewards(model, tokenizer), abs=1e-5)


# --- Other kinds, and what does not fit -----------------------------------------------------------

KINDS = {
    "IA3": peft.IA3Config(
        task_type="SEQ_CLS",
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "DoRA": peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], use_dora=True),
    "LoHa": peft.LoHaConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=2),
    "VeRA": peft.VeraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_that_change_layers(kind, folders):
    model = peft.get_peft_model(folders.classifier(), KINDS[kind])
    model = with_random_weights(model, seed=1)
    expected = stock_rewards(model, folders.tokenizer)
    assert our_rewards(folders.save(model)) == pytest.approx(expected, abs=1e-5)


def test_an_adapter_for_another_task_is_refused(folders):
    """A process reward model has two labels, too, but for each step."""
    model = AutoModelForTokenClassification.from_pretrained(folders.language_model, num_labels=2)
    folder = folders.save(adapter(model, task_type="TOKEN_CLS"))
    with pytest.raises(ModelError, match="with the task_type TOKEN_CLS, whose head does not give"):
        load_reward_model(str(folder))


def test_an_adapter_over_a_base_in_4_bits_is_merged_into_what_they_stand_for(folders):
    """The base's own config says how it was quantized, as that of unsloth's models does."""
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    base = folders.save(
        AutoModelForSequenceClassification.from_pretrained(
            folders.reward_model, quantization_config=four_bit, dtype=torch.float32
        )
    )
    folder = folders.save(adapter(folders.classifier(base)))
    merged = folders.new()
    convert(str(folder), merged)
    tensors = load_file(merged / "model.safetensors")
    assert tensors["model.layers.0.self_attn.q_proj.weight"].shape == (32, 32)
    assert our_rewards(merged) == pytest.approx(our_rewards(folder), abs=1e-3)


def test_vectors_in_front_of_the_text_are_refused(folders):
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    folder = folders.save(peft.get_peft_model(folders.classifier(), config))
    with pytest.raises(ModelError, match="kind PROMPT_TUNING, which puts vectors in front"):
        load_reward_model(str(folder))


ODD_ADAPTERS = {
    "no weights": (lambda f: (f / FILE).unlink(), "its weights are missing"),
    "broken weights": (lambda f: (f / FILE).write_bytes(b"abc"), "cannot be read as weights"),
    "broken config": (lambda f: (f / CONFIG).write_text("{"), "is no valid JSON"),
    "unknown kind": (lambda f: edit_json(f / CONFIG, peft_type="NOSUCH"), "peft_type NOSUCH"),
    "no kind": (lambda f: edit_json(f / CONFIG, drop=("peft_type",)), "missing required keys"),
    "another rank": (lambda f: edit_json(f / CONFIG, r=8), "does not fit its base .*size mismatch"),
    "no such layers": (
        lambda f: edit_json(f / CONFIG, target_modules=["nosuch"]),
        "does not fit its base .*No modules were targeted",
    ),
    "tensors of more layers": (
        lambda f: edit_json(f / CONFIG, target_modules=["q_proj"]),
        r"has no place for.*v_proj\.lora_A\.weight",
    ),
    "tensors of fewer layers": (
        lambda f: edit_json(f / CONFIG, target_modules=["q_proj", "k_proj", "v_proj"]),
        r"whose tensors the adapter lacks: .*k_proj\.lora_A\.weight",
    ),
    "a second head": (
        lambda f: add_tensors(f, FILE, base_model__model__value_head__weight=[1, 32]),
        r"has no place for.*value_head\.weight",
    ),
}


@pytest.mark.parametrize("kind", ODD_ADAPTERS)
def test_an_odd_adapter_is_refused_in_one_true_sentence(kind, plain, folders):
    folder = folders.copy(plain[0])
    spoil, sentence = ODD_ADAPTERS[kind]
    spoil(folder)
    with pytest.raises(ModelError, match=sentence) as refusal:
        load_reward_model(str(folder))
    assert str(folder) in str(refusal.value)


def test_training_starts_from_no_adapter(plain):
    with pytest.raises(ModelError, match="is an adapter, whose head would be lost"):
        build_reward_model(str(plain[0]))


def test_an_adapters_own_head_counts_over_a_base_with_another(folders):
    base = folders.save(with_random_weights(folders.classifier(labels=2)))
    model = adapter(folders.classifier())
    folder = folders.save(model)
    edit_json(folder / CONFIG, base_model_name_or_path=str(base))
    expected = stock_rewards(model, folders.tokenizer)
    assert our_rewards(folder) == pytest.approx(expected, abs=1e-5)


def test_a_base_is_found_from_where_the_adapter_was_trained(tmp_path, monkeypatch):
    """The adapter names its base by a relative path, and its manifest says where that starts."""
    adapter = tmp_path / "project" / "runs" / "rm-out"
    base = tmp_path / "project" / "models" / "base"
    for folder, file in ((adapter, "adapter_model"), (base, "model")):
        folder.mkdir(parents=True)
        save_file({"a.weight": torch.zeros(1)}, folder / f"{file}.safetensors")
    (base / "config.json").write_text("{}")
    named = {"base_model_name_or_path": "models/base", "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(named))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="adapter over the base model models/base"):
        parts_of(str(adapter), "main")

    (adapter / "manifest.json").write_text('{"format_version": 1, "paths_from": "../.."}')
    assert parts_of(str(adapter), "main").base == str(base)
    assert parts_of("../project/runs/rm-out", "main").base == str(base)
    monkeypatch.chdir(tmp_path / "project")
    assert parts_of("runs/rm-out", "main").base == "models/base"
