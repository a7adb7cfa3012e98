"""Building a reward model keeps a trained head, loses none in silence, freezes what it should."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from reward.model.build import build_reward_model, build_tokenizer
from reward.model.heads import Float32Head
from reward.model.hub import ModelError

pytest_plugins = ["reward_model_fixtures"]
torch.set_num_threads(1)


# --- A trained head -------------------------------------------------------------------------------


def test_a_trained_one_label_head_is_kept(saved):
    before = AutoModelForSequenceClassification.from_pretrained(saved("qwen")).score.weight
    again = build_reward_model(str(saved("qwen")))
    assert torch.equal(again.score.weight, before) and type(again.score) is Float32Head
    assert (
        torch.count_nonzero(build_reward_model(str(saved("qwen")), head_init="zero").score.weight)
        == 0
    )


def test_a_trained_two_logit_head_is_kept_where_two_are_asked_for(two_labels, saved):
    before = AutoModelForSequenceClassification.from_pretrained(two_labels).score.weight
    assert torch.equal(build_reward_model(str(two_labels), head="two_logit").score.weight, before)
    with pytest.raises(
        ModelError,
        match=r"score\.weight \[1, 32\] \(this model needs \[2, 32\]\).*head_init: normal",
    ):
        build_reward_model(str(saved("qwen")), head="two_logit")


def test_a_trained_head_of_another_shape_is_refused_unless_a_new_one_is_asked_for(two_labels):
    with pytest.raises(
        ModelError,
        match=r"score\.weight \[2, 32\] \(this model needs \[1, 32\]\).*head_init: normal",
    ):
        build_reward_model(str(two_labels))
    assert build_reward_model(str(two_labels), head_init="normal").score.weight.shape == (1, 32)


def test_a_trained_head_of_another_name_is_refused_unless_a_new_one_is_asked_for(
    standin, saved, tmp_path
):
    model = AutoModelForSequenceClassification.from_pretrained(saved("qwen"))
    tensors = {
        key.replace("score.", "v_head."): value.contiguous()
        for key, value in model.state_dict().items()
    }
    model.save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"v_head\.weight.*head_init: normal"):
        build_reward_model(str(tmp_path))
    build_reward_model(str(tmp_path), head_init="normal")


def test_a_class_of_its_own_is_not_replaced_by_a_stock_one_unless_a_new_head_is_asked_for(
    saved, tmp_path
):
    """ArmoRM's config says llama; its regression_layer and gating would be lost."""
    model = AutoModelForSequenceClassification.from_pretrained(saved("qwen"))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["ToyWithGating"]
    config["auto_map"] = {"AutoModelForSequenceClassification": "modeling_toy.ToyWithGating"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="its own class, ToyWithGating .*head_init: normal"):
        build_reward_model(str(tmp_path))
    build_reward_model(str(tmp_path), head_init="normal")


def test_a_value_head_or_an_adapter_is_no_base_to_train(value_head, standin, tmp_path):
    with pytest.raises(ModelError, match="trained value head .*head_init: normal"):
        build_reward_model(str(value_head[0]))
    build_reward_model(str(value_head[0]), head_init="normal")
    get_peft_model(
        build_reward_model(str(standin("qwen"))), LoraConfig(task_type="SEQ_CLS")
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="merge"):
        build_reward_model(str(tmp_path))


# --- A new head -----------------------------------------------------------------------------------


def test_head_init(standin):
    torch.manual_seed(0)
    weight = build_reward_model(str(standin("qwen")), head_init="normal").score.weight
    assert weight.std().item() == pytest.approx(33**-0.5, rel=0.35)
    assert (
        torch.count_nonzero(build_reward_model(str(standin("qwen")), head_init="zero").score.weight)
        == 0
    )


def test_a_new_two_logit_head_over_a_biased_one_has_two_biases(headed):
    _, folder = headed(bias=[0.75])
    assert build_reward_model(
        str(folder), head="two_logit", head_init="normal"
    ).score.bias.tolist() == [0, 0]


def test_head_bias_null_is_as_the_architecture_has_it_and_false_is_0(standin, tmp_path):
    assert build_reward_model(str(standin("qwen"))).score.bias is None
    assert build_reward_model(str(standin("qwen")), head_bias=False).score.bias is None
    assert build_reward_model(str(standin("encoder"))).classifier.bias.requires_grad
    model = build_reward_model(str(standin("encoder")))
    model.classifier.bias.data.fill_(0.5)
    model.save_pretrained(tmp_path)
    bias = build_reward_model(str(tmp_path), head_bias=False).classifier.bias
    assert bias.item() == 0 and not bias.requires_grad
    assert build_reward_model(str(tmp_path), head_bias=True).classifier.bias.item() == 0.5


# --- Frozen blocks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "layers", "trained"),
    [
        ("qwen", 0, {"score"}),
        ("qwen", 1, {"score", "model.layers.1"}),
        ("qwen", 2, {"score", "model.layers.0", "model.layers.1"}),
        ("encoder", 0, {"classifier", "bert.pooler"}),
        ("encoder", 1, {"classifier", "bert.pooler", "bert.encoder.layer.1"}),
    ],
)
def test_train_last_layers_freezes_the_rest(kind, layers, trained, standin):
    model = build_reward_model(str(standin(kind)), train_last_layers=layers)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = set()
    for name, _ in model.named_parameters():
        if any(name.startswith(f"{part}.") for part in trained):
            expected.add(name)
    assert trainable == expected
    assert all(any(name.startswith(f"{part}.") for name in trainable) for part in trained)


@pytest.mark.parametrize("kind", ["qwen", "encoder"])
def test_more_last_layers_than_there_are_is_an_error(kind, standin):
    with pytest.raises(ModelError, match="train_last_layers is 3; .* has 2 blocks to choose from"):
        build_reward_model(str(standin(kind)), train_last_layers=3)


def test_a_tokenizer_without_a_template_gives_none(standin, tmp_path):
    """An instruct model would be trained in our layout, and nothing would say so."""
    base, plain = str(standin("qwen")), tmp_path / "plain"
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(plain)
    config = AutoConfig.from_pretrained(base)
    with pytest.raises(ModelError, match="the tokenizer of .*plain has no chat template"):
        build_tokenizer(base, config, chat_template_path=str(plain))


@pytest.mark.parametrize("eos_token", ["<|im_edn|>", "tea"])
def test_an_end_token_that_is_no_control_token(eos_token, standin):
    """The reloaded tokenizer would add it, or make a word special: no saved text is read alike."""
    base = str(standin("qwen"))
    config = AutoConfig.from_pretrained(base)
    with pytest.raises(ModelError, match="is no control token of the tokenizer of .*<.im_end.>"):
        build_tokenizer(base, config, eos_token=eos_token)
    assert build_tokenizer(base, config, eos_token="<|endoftext|>").eos_token == "<|endoftext|>"
