"""Full models as people have them: read as their maker meant, or refused in one true sentence."""

import json
import os

import pytest
import torch
from checkpoint_folders import (
    WEIGHTS,
    add_tensors,
    conversations,
    edit_json,
    edit_tensors,
    make_folders,
    our_rewards,
    rename,
    stock_rewards,
    to_bin,
    with_random_weights,
)
from rewards_server import serve_rewards
from safetensors.torch import save_file
from standins import WORDS
from tokenizers import Tokenizer, normalizers, processors
from tokenizers.models import BPE
from transformers import AutoModelForSequenceClassification, ViTConfig
from zoo_models import make_zoo_model

from reward.checkpoint.convert import convert
from reward.model.build import build_reward_model
from reward.model.endpoint import EndpointScorer
from reward.model.hub import ModelError
from reward.model.load import load_reward_model
from reward.model.scorer import Scorer

torch.set_num_threads(1)
LABELS = ("id2label", "label2id", "num_labels")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("layouts"))


# --- Heads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [None, 1, 2, 3])
def test_the_number_of_labels_comes_from_the_tensor_of_one_row(labels, folders):
    folder = folders.copy(folders.reward_model)
    edit_json(folder / "config.json", drop=LABELS)
    if labels is not None:
        names = {str(i): f"LABEL_{i}" for i in range(labels)}
        edit_json(folder / "config.json", id2label=names)
    assert our_rewards(folder) == pytest.approx(folders.rewards, abs=1e-5)


def test_two_rows_under_one_label_are_refused(folders):
    folder = folders.copy(folders.reward_model)
    edit_tensors(folder, lambda tensors: tensors | {"score.weight": torch.ones(2, 32)})
    with pytest.raises(ModelError, match="1 labels, but the head in the files has 2 rows"):
        load_reward_model(str(folder))


def test_which_of_two_labels_is_the_reward_is_said(folders, capsys):
    model = with_random_weights(folders.classifier(labels=2))
    model.config.id2label = {0: "NEGATIVE", 1: "POSITIVE"}
    folder = folders.save(model)
    expected = stock_rewards(model, folders.tokenizer)
    assert our_rewards(folder) == pytest.approx(expected, abs=1e-5)
    assert "the reward is the logit of label 1 (POSITIVE)" in capsys.readouterr().err


def test_a_value_head_in_its_own_file_beside_a_stock_head_is_refused(folders):
    folder = folders.copy(folders.reward_model)
    save_file({"v_head.summary.weight": torch.ones(1, 32)}, folder / "value_head.safetensors")
    with pytest.raises(ModelError, match="more than one head, .*value head in a file of its own"):
        load_reward_model(str(folder))


def test_labels_with_the_names_of_the_other_sides_are_refused(folders):
    model = with_random_weights(folders.classifier(labels=2))
    for names in (["chosen", "rejected"], ["Chosen", "Rejected"]):
        model.config.id2label = dict(enumerate(names))
        with pytest.raises(ModelError, match=f"label 1, which config.json calls {names[1]}"):
            load_reward_model(str(folders.save(model)))


def test_a_mean_that_is_not_openrlhfs_is_none_of_ours(folders):
    folder = folders.copy(folders.reward_model)
    edit_json(folder / "config.json", mean=[0.48, 0.46, 0.41], std=None)
    assert our_rewards(folder) == pytest.approx(folders.rewards, abs=1e-5)


@pytest.mark.parametrize("labels", [2, 3])
def test_the_labels_of_an_encoder_decoder_come_from_its_tensor(labels, folders):
    """Two labels are transformers' default, which it does not write into config.json."""
    folder = make_zoo_model(folders.new(), "t5", folders.tokenizer, num_labels=labels)
    if labels == 3:
        with pytest.raises(ModelError, match="3 labels; a reward model has one"):
            load_reward_model(str(folder))
        return
    stock = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    expected = stock_rewards(stock, folders.tokenizer)
    assert our_rewards(folder) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pad", ["separate", "end"])
@pytest.mark.parametrize("head", ["value_head", "score", "my_head"])
def test_openrlhf_reads_the_last_token(head, pad, folders):
    """Its own model class, with a head of one row and no label in its config."""
    folder = folders.copy(folders.reward_model)
    rename(folder, "score.weight", f"{head}.weight")
    keys = {"architectures": ["RewardModel"], "normalize_reward": False}
    if head == "my_head":
        keys["value_head_prefix"] = head
    if pad == "end":
        keys["pad_token_id"] = folders.tokenizer.eos_token_id
    edit_json(folder / "config.json", drop=LABELS, **keys)
    assert our_rewards(folder) == pytest.approx(folders.rewards, abs=1e-5)
    with serve_rewards(folders.reward_model) as server:
        assert EndpointScorer(str(folder), server.url).read_pad is None


@pytest.mark.parametrize(
    ("more", "end"),
    [("{{ '\\n' }}", "<|eot_id|>"), ("{{ 'so\\n\\n' }}", "<|eot_id|>so <|eot_id|>")],
)
def test_openrlhf_ends_texts_in_the_end_token(more, end, folders):
    """Qwen's template ends in a newline, which OpenRLHF cuts; it adds an end token that lacks."""
    folder = folders.copy(folders.reward_model)
    edit_json(folder / "config.json", architectures=["RewardModel"])
    template = folders.tokenizer.chat_template.rstrip()
    (folder / "chat_template.jinja").write_text(template + more)
    scorer = Scorer(str(folder))
    prompt, answer = conversations()[0][:1], conversations()[0][1:]
    text = folders.tokenizer.apply_chat_template(prompt + answer, tokenize=False)
    ids = folders.tokenizer(text.removesuffix("<|eot_id|>") + end, add_special_tokens=False)
    assert scorer.encode(prompt, [answer]).ids == [ids["input_ids"]]
    assert "as OpenRLHF does" in scorer.loaded.template_origin
    plain = folders.new()
    convert(str(folder), plain)
    assert Scorer(str(plain)).encode(prompt, [answer]).ids == [ids["input_ids"]]


@pytest.mark.parametrize("place", ["config", "buffers"])
def test_openrlhf_normalizes_where_its_config_says_so(place, folders, capsys):
    folder = folders.copy(folders.reward_model)
    keys = {"architectures": ["RewardModel"], "normalize_reward": True}
    if place == "config":
        keys |= {"mean": 0.5, "std": 2.0}
    else:
        buffers = {"mean": torch.tensor([0.5]), "std": torch.tensor([2.0])}
        edit_tensors(folder, lambda tensors: tensors | buffers)
    edit_json(folder / "config.json", **keys)
    expected = [(reward - 0.5) / 2 for reward in folders.rewards]
    assert our_rewards(folder) == pytest.approx(expected, abs=1e-5)
    assert "(r - 0.5) / 2" in capsys.readouterr().err
    edit_json(folder / "config.json", normalize_reward=False)
    assert our_rewards(folder) == pytest.approx(folders.rewards, abs=1e-5)
    assert "rewards are raw" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "pretrained_model."])
@pytest.mark.parametrize("file", [WEIGHTS, "pytorch_model.bin"])
def test_trls_value_head_in_the_models_own_file(file, prefix, folders):
    """As AutoModelForCausalLMWithValueHead saves it; pad = end changes nothing."""
    folder = folders.copy(folders.language_model)
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(2))
    bias = torch.tensor([0.25])
    head = {"v_head.summary.weight": weight, "v_head.summary.bias": bias}

    def saved(tensors: dict) -> dict:
        return {prefix + key: tensor for key, tensor in tensors.items()} | head

    edit_tensors(folder, saved)
    if file != WEIGHTS:
        to_bin(folder)
    edit_json(folder / "config.json", pad_token_id=folders.tokenizer.eos_token_id)
    stock = folders.classifier()
    stock.score.weight.data = weight
    expected = [reward + 0.25 for reward in stock_rewards(stock, folders.tokenizer)]
    assert our_rewards(folder) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("layout", ["TRL", "OpenRLHF"])
def test_a_converted_value_head_gives_the_same_rewards_in_stock_transformers(layout, folders):
    """What it was normalized or wrapped with is left behind."""
    if layout == "TRL":
        folder = folders.copy(folders.language_model)
        head = {"v_head.summary.weight": torch.ones(1, 32)}

        def wrapped(tensors: dict) -> dict:
            return {f"pretrained_model.{key}": tensor for key, tensor in tensors.items()} | head

        edit_tensors(folder, wrapped)
    else:
        folder = folders.copy(folders.reward_model)
        rename(folder, "score.weight", "value_head.weight")
        keys = {"architectures": ["RewardModel"], "value_head_prefix": "value_head"}
        keys |= {"normalize_reward": True, "mean": 0.5, "std": 2.0}
        edit_json(folder / "config.json", **keys)
    edit_json(folder / "config.json", pad_token_id=folders.tokenizer.eos_token_id)
    expected = our_rewards(folder)
    done = convert(str(folder), folders.new())
    converted = folders.root / f"copy-{folders.made}"
    assert done.new_pad_token == "<|reserved_special_token_0|>"
    assert our_rewards(converted) == pytest.approx(expected, abs=1e-5)
    stock = AutoModelForSequenceClassification.from_pretrained(converted).eval()
    rewards = [reward + done.dropped_bias for reward in stock_rewards(stock, folders.tokenizer)]
    assert rewards == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({"v_head__summary__0__weight": [8, 32]}, r"v_head\.summary\.0\.weight"),
        ({"v_head__summary__weight": [3, 32]}, r"one row is needed, found .*\[3, 32\]"),
        ({"reward_head__weight": [1, 32]}, r"found and not used: .*reward_head\.weight"),
        ({"regression_layer__weight": [1, 32]}, r"regression_layer\.weight"),
    ],
)
def test_a_head_that_nobody_here_knows_is_named(tensors, found, folders):
    folder = folders.copy(folders.language_model)
    add_tensors(folder, **tensors)
    with pytest.raises(ModelError, match=found):
        load_reward_model(str(folder))


@pytest.mark.parametrize("name", ["value_head", "my_own"])
def test_training_loses_no_head_of_any_name(name, folders):
    folder = folders.copy(folders.language_model)
    add_tensors(folder, **{f"{name}__weight": [1, 32]})
    with pytest.raises(ModelError, match=f"holds a trained head .*{name}.weight"):
        build_reward_model(str(folder))
    build_reward_model(str(folder), head_init="normal")


def test_what_is_trained_from_openrlhfs_model_is_read_as_ours(folders):
    folder = folders.copy(folders.reward_model)
    keys = {"architectures": ["RewardModel"], "normalize_reward": True, "mean": 0.5, "std": 2.0}
    edit_json(folder / "config.json", **keys)
    model = build_reward_model(str(folder)).eval()
    saved = folders.save(model)
    assert our_rewards(saved) == pytest.approx(folders.rewards, abs=1e-5)


# --- No tensor is passed over ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        ("regression_layer__weight", [19, 32]),
        ("gating__layers__0__weight", [3, 32]),
        ("value_head__weight", [1, 32]),
        ("mean", [1]),
        ("model__layers__0__self_attn__q_norm__weight", [8]),
        ("model__layers__2__mlp__up_proj__weight", [64, 32]),
    ],
)
def test_a_tensor_that_the_model_does_not_use_is_an_error(tensor, shape, folders):
    folder = folders.copy(folders.reward_model)
    add_tensors(folder, **{tensor: shape})
    with pytest.raises(ModelError, match=tensor.replace("__", r"\.")):
        load_reward_model(str(folder))


def test_a_language_models_output_is_passed_over_and_said(folders, capsys):
    folder = folders.copy(folders.reward_model)
    add_tensors(
        folder, lm_head__weight=[400, 32], model__layers__0__self_attn__rotary_emb__inv_freq=[4]
    )
    assert our_rewards(folder) == pytest.approx(folders.rewards, abs=1e-5)
    error = capsys.readouterr().err
    assert "not used, because no reward depends on it: lm_head.weight\n" in error


# --- Files ----------------------------------------------------------------------------------------


def test_a_bin_file_holds_what_safetensors_may_hold(folders):
    folder = folders.copy(folders.reward_model)
    tensors = to_bin(folder) | {"score.bias": torch.tensor([0.5])}
    torch.save(tensors, folder / "pytorch_model.bin")
    edit_json(folder / "config.json", drop=LABELS)
    expected = [reward + 0.5 for reward in folders.rewards]
    assert our_rewards(folder) == pytest.approx(expected, abs=1e-5)
    assert build_reward_model(str(folder)).score.bias.item() == 0.5
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert our_rewards(folder) == pytest.approx(expected, abs=1e-5)


def shard(folder, missing: bool = False) -> None:
    """Split the weights of a folder into two .bin files."""
    tensors = to_bin(folder)
    os.remove(folder / "pytorch_model.bin")
    weight_map = {}
    for i, key in enumerate(tensors):
        weight_map[key] = f"pytorch_model-0000{1 + i % 2}-of-00002.bin"
    for file in sorted(set(weight_map.values())):
        held = {key: tensors[key] for key in tensors if weight_map[key] == file}
        torch.save(held, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    if missing:
        os.remove(folder / "pytorch_model-00002-of-00002.bin")


def test_bin_files_in_shards(folders):
    folder = folders.copy(folders.reward_model)
    shard(folder)
    assert our_rewards(folder) == pytest.approx(folders.rewards, abs=1e-5)


@pytest.mark.parametrize("pad", ["outside", -1, None])
def test_a_pad_id_that_no_text_holds(pad, folders):
    folder = folders.copy(folders.reward_model)
    if pad == "outside":
        pad = len(folders.tokenizer)
    edit_json(folder / "config.json", pad_token_id=pad)
    assert our_rewards(folder) == pytest.approx(folders.rewards, abs=1e-5)
    assert build_reward_model(str(folder)).config.pad_token_id is None


def truncate(path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def remove_tokenizer(folder) -> None:
    for path in folder.iterdir():
        if "token" in path.name or path.name == "chat_template.jinja":
            path.unlink()


def sentencepiece_alone(folder) -> None:
    remove_tokenizer(folder)
    (folder / "tokenizer.model").write_bytes(b"no protobuf")


ODD_FOLDERS = {
    "empty config": (
        lambda f: (f / "config.json").write_text(""),
        r"config\.json is no valid JSON",
    ),
    "config of nothing": (lambda f: (f / "config.json").write_text("{}"), "has no model_type"),
    "config is a list": (lambda f: (f / "config.json").write_text("[1]"), "no JSON object"),
    "config is no text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "no valid JSON"),
    "unknown model_type": (
        lambda f: edit_json(f / "config.json", model_type="nosuch"),
        'model_type "nosuch" .* is not known to transformers',
    ),
    "a value of another type": (
        lambda f: edit_json(f / "config.json", hidden_size="x"),
        "cannot read its config.json: .*hidden_size",
    ),
    "another model's config": (
        lambda f: edit_json(f / "config.json", hidden_size=64),
        r"other shapes: model\.embed_tokens\.weight \[400, 32\] \(this model needs \[400, 64\]\)",
    ),
    "too few layers in the file": (
        lambda f: edit_json(f / "config.json", num_hidden_layers=3),
        r"model\.layers\.2\..* would be random\. The files are incomplete",
    ),
    "a head for tokens": (
        lambda f: edit_json(f / "config.json", architectures=["LlamaForTokenClassification"]),
        "is a LlamaForTokenClassification",
    ),
    "truncated": (lambda f: truncate(f / WEIGHTS), "cannot be read as weights: .*incomplete"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "cannot be read as weights"),
    "Git LFS": (
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "pointer of Git LFS",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"no file named model\.safetensors"),
    "garbage in .bin": (
        lambda f: (to_bin(f), (f / "pytorch_model.bin").write_bytes(b"garbage")),
        "is damaged, or holds more than tensors",
    ),
    "a trainer's state in .bin": (
        lambda f: torch.save({"state_dict": to_bin(f)}, f / "pytorch_model.bin"),
        "state_dict in it is no tensor but a dict",
    ),
    "a missing shard": (
        lambda f: shard(f, missing=True),
        r"names pytorch_model-00002-of-00002\.bin, which is not there",
    ),
    "an index of nothing": (
        lambda f: (f / WEIGHTS).rename(f / f"{WEIGHTS}.index.json").write_text("{}"),
        "has no weight_map",
    ),
    "no tokenizer": (remove_tokenizer, "has no tokenizer: no tokenizer.json"),
    "a broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "its tokenizer cannot be loaded",
    ),
    "a truncated tokenizer": (
        lambda f: truncate(f / "tokenizer.json"),
        "its tokenizer cannot be loaded",
    ),
    "a tokenizer without a vocabulary": (
        lambda f: (f / "tokenizer.json").unlink(),
        "no vocabulary",
    ),
    "sentencepiece": (sentencepiece_alone, "tokenizer.model alone .* sentencepiece"),
    "several templates": (
        lambda f: (
            edit_json(
                f / "tokenizer_config.json",
                chat_template=[{"name": "a", "template": "x"}, {"name": "b", "template": "y"}],
            )
            or (f / "chat_template.jinja").unlink()
        ),
        r"several chat templates \(a, b\)",
    ),
}


@pytest.mark.parametrize("kind", ODD_FOLDERS)
def test_an_odd_folder_is_refused_in_one_true_sentence(kind, folders):
    folder = folders.copy(folders.reward_model)
    spoil, sentence = ODD_FOLDERS[kind]
    spoil(folder)
    with pytest.raises(ModelError, match=sentence) as refusal:
        load_reward_model(str(folder))
    assert str(folder) in str(refusal.value)


@pytest.mark.parametrize("kind", ["empty weights", "no weights", "garbage in .bin", "truncated"])
def test_training_from_an_odd_folder_is_refused_in_the_same_sentence(kind, folders):
    folder = folders.copy(folders.language_model)
    spoil, sentence = ODD_FOLDERS[kind]
    spoil(folder)
    with pytest.raises(ModelError, match=sentence):
        build_reward_model(str(folder))


def test_a_model_that_classifies_no_text_is_refused(tmp_path):
    ViTConfig(hidden_size=16).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no sequence-classification model for model_type vit"):
        load_reward_model(str(tmp_path))


def test_somebody_elses_manifest_is_none_of_ours(folders):
    folder = folders.copy(folders.reward_model)
    (folder / "manifest.json").write_text("[]")
    assert our_rewards(folder) == pytest.approx(folders.rewards, abs=1e-5)


# --- Classes of their own -------------------------------------------------------------------------

OWN_CLASS = """
import torch
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class ToyConfig(LlamaConfig):
    model_type = "toyreward"


class ToyForReward(LlamaPreTrainedModel):
    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.score = torch.nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **options):
        hidden = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        return SequenceClassifierOutput(logits=self.score(hidden)[:, -1])


class ToyWithGating(ToyForReward):
    def __init__(self, config):
        super().__init__(config)
        self.gating = torch.nn.Linear(config.hidden_size, 3)


class ToyWithoutLogits(ToyForReward):
    def forward(self, input_ids=None, attention_mask=None, **options):
        return {"reward": super().forward(input_ids, attention_mask, **options).logits}
"""


def own_class(folders, name: str, auto_class: str):
    """A folder whose model is a class of its own."""
    folder = folders.copy(folders.reward_model)
    (folder / "modeling_toy.py").write_text(OWN_CLASS)
    if name == "ToyWithGating":
        add_tensors(folder, gating__weight=[3, 32], gating__bias=[3])
    edit_json(
        folder / "config.json",
        model_type="toyreward",
        architectures=[name],
        auto_map={"AutoConfig": "modeling_toy.ToyConfig", auto_class: f"modeling_toy.{name}"},
    )
    return folder


CLASSIFIER = "AutoModelForSequenceClassification"
SAME_NAME = """
import transformers

class LlamaForSequenceClassification(transformers.LlamaForSequenceClassification):
    def forward(self, *inputs, **options):
        output = super().forward(*inputs, **options)
        output.logits = -output.logits
        return output
"""


def test_an_own_class_needs_trust_and_gives_its_rewards_with_it(folders):
    folder = own_class(folders, "ToyForReward", CLASSIFIER)
    with pytest.raises(ModelError, match=r"ToyForReward \(modeling_toy\.py.*--trust_remote_code"):
        load_reward_model(str(folder))
    scorer = Scorer(str(folder), trust_remote_code=True)
    # Its forward takes the last place of a padded batch, so that padding would change rewards.
    texts = [" ".join(WORDS[:count]) for count in range(1, 13)]
    ids = [scorer.tokenizer(text)["input_ids"] for text in texts]
    stock = AutoModelForSequenceClassification.from_pretrained(folders.reward_model)
    with torch.inference_mode():
        expected = [stock(input_ids=torch.tensor([text])).logits.item() for text in ids]
    assert scorer.rewards_of_ids(ids) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("trust", [False, True])
def test_an_own_class_that_is_no_classifier_is_refused(trust, folders):
    folder = own_class(folders, "ToyForReward", "AutoModel")
    with pytest.raises(ModelError, match=r"ToyForReward .*registered as AutoModel\).*needed is"):
        load_reward_model(str(folder), trust_remote_code=trust)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("ToyWithGating", r"more than a body .*gating\.weight"), ("ToyWithoutLogits", "no logits")],
)
def test_an_own_class_with_more_than_a_head_is_refused(name, reason, folders):
    folder = own_class(folders, name, CLASSIFIER)
    with pytest.raises(ModelError, match=f"{name}.*{reason}|{reason}"):
        load_reward_model(str(folder), trust_remote_code=True)


def test_an_own_class_of_a_known_model_type_is_not_read_as_stock(folders):
    """ArmoRM's config says llama; without its code a stock Llama would be built."""
    folder = own_class(folders, "ToyWithGating", CLASSIFIER)
    edit_json(folder / "config.json", model_type="llama")
    with pytest.raises(ModelError, match="is a model of its own class, ToyWithGating"):
        load_reward_model(str(folder))


def test_own_code_that_a_stock_class_stands_in_for_is_said(folders):
    """A class of the checkpoint's own has the name of transformers' one, and turns the sign."""
    folder = folders.copy(folders.reward_model)
    reference = "modeling_own.LlamaForSequenceClassification"
    edit_json(folder / "config.json", auto_map={CLASSIFIER: reference})
    (folder / "modeling_own.py").write_text(SAME_NAME)
    assert f"code of its own for this model ({reference}), which is not run" in "".join(
        load_reward_model(str(folder)).notes
    )
    trusted = load_reward_model(str(folder), trust_remote_code=True)
    assert trusted.notes == [] and type(trusted.model).__module__.startswith("transformers_modules")


def test_a_class_that_nobody_has_is_said(folders):
    folder = folders.copy(folders.reward_model)
    edit_json(folder / "config.json", architectures=["LlamaForMeanReward"])
    (note,) = load_reward_model(str(folder)).notes
    assert "saved as a LlamaForMeanReward" in note
    assert "read as a LlamaForSequenceClassification" in note


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("activation", ["Sigmoid", "Identity"])
def test_the_activation_of_a_cross_encoder_is_said(activation, version, folders):
    path = f"torch.nn.modules.activation.{activation}"
    keys = {"sentence_transformers": {"activation_fn": path}}
    if version == 3:
        keys = {"sbert_ce_default_activation_function": path}
    folder = folders.copy(folders.reward_model)
    edit_json(folder / "config.json", **keys)
    said = " ".join(load_reward_model(str(folder)).notes)
    assert said.startswith("rewards are logits: the Sigmoid ") == (activation == "Sigmoid")
    assert (said == "") == (activation == "Identity")


# --- Templates ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "left_out"),
    [
        ("{{ m.content }}", "<|begin_of_text|> and <|eot_id|>"),
        ("{{ m.content }}<|eot_id|>{{ '\n' }}", "<|begin_of_text|>"),
    ],
)
def test_what_a_template_leaves_out_is_said(turn, left_out, folders):
    """The maker may have rendered a text and encoded it with what the tokenizer puts around it."""
    folder = folders.copy(folders.reward_model)
    around = processors.TemplateProcessing(
        single="<|begin_of_text|> $A <|eot_id|>",
        special_tokens=[("<|begin_of_text|>", 0), ("<|eot_id|>", 6)],
    )
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.post_processor = around
    made.save(str(folder / "tokenizer.json"))
    template = f"{{% for m in messages %}}{turn}{{% endfor %}}"
    (folder / "chat_template.jinja").write_text(template)
    (note,) = load_reward_model(str(folder)).notes
    assert note.startswith(f"its chat template leaves out {left_out}, which its tokenizer puts")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + template + "<|eot_id|>")
    assert load_reward_model(str(folder)).notes == []


def test_a_template_that_asks_for_the_date_is_said(folders):
    """As Llama 3.2's does."""
    folder = folders.copy(folders.reward_model)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{{ strftime_now('%d %b %Y') }}<|eot_id|>")
    (note,) = load_reward_model(str(folder)).notes
    assert "today's date (strftime_now)" in note


def test_a_template_that_another_one_hides_is_said(folders):
    folder = folders.copy(folders.reward_model)
    edit_json(folder / "tokenizer_config.json", chat_template=folders.tokenizer.chat_template)
    assert load_reward_model(str(folder)).notes == []
    edit_json(folder / "tokenizer_config.json", chat_template="{{ messages }}")
    loaded = load_reward_model(str(folder))
    assert loaded.tokenizer.chat_template == folders.tokenizer.chat_template
    (note,) = loaded.notes
    assert "chat_template.jinja is used, and that of tokenizer_config.json" in note


def test_the_template_of_a_processor_is_the_checkpoints_own(folders):
    folder = folders.copy(folders.reward_model)
    (folder / "chat_template.jinja").unlink()
    content = json.dumps({"chat_template": folders.tokenizer.chat_template})
    (folder / "chat_template.json").write_text(content)
    assert our_rewards(folder) == pytest.approx(folders.rewards, abs=1e-5)
    origin = load_reward_model(str(folder)).template_origin
    assert origin == "the checkpoint's own, of chat_template.json"


def test_our_own_template_is_shown_with_its_control_tokens(folders):
    folder = folders.copy(folders.reward_model)
    (folder / "chat_template.jinja").unlink()
    origin = load_reward_model(str(folder)).template_origin
    layout = r"`<|begin_of_text|>\n\nHuman: prompt\n\nAssistant: completion<|eot_id|>`"
    assert origin == f"one of this package, {layout}, because the checkpoint has none"


# --- Tokenizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [True, False])
def test_a_tokenizer_that_transformers_builds_otherwise_is_said(legacy, folders):
    """Llama 2's file puts a space before every piece of a text; transformers 5 may not."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        "▁",
        *"Whatis12nd30?Forywu-.",
        *(f"<0x{i:02X}>" for i in range(256)),
    ]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.enable_truncation(16)  # as in the files of sentence-transformers
    made.enable_padding(length=512)
    folder = folders.copy(folders.reward_model)
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy}
    settings |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load_reward_model(str(folder))
    made.no_padding()
    text = "<s>What?</s>"
    is_same = loaded.tokenizer(text, add_special_tokens=False)["input_ids"] == made.encode(text).ids
    assert is_same == legacy
    said = "other token ids than the LlamaTokenizer that transformers"
    assert any(said in note for note in loaded.notes) != legacy


# --- Chat templates -------------------------------------------------------------------------------


def test_a_template_that_is_made_up_is_said_and_one_in_a_file_is_used(folders, tmp_path, capsys):
    folder = folders.copy(folders.reward_model)
    (folder / "chat_template.jinja").unlink()
    assert Scorer(str(folder)).loaded.template_origin.startswith("one of this package")
    assert "chat template: one of this package" in capsys.readouterr().err
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.content }};{% endfor %}")
    scorer = Scorer(str(folder), chat_template=str(template))
    assert scorer.loaded.template_origin == f"the file {template} (--chat_template)"
    assert "chat template" not in capsys.readouterr().err
    prompt, answer = [{"role": "user", "content": "tea?"}], [{"role": "assistant", "content": "a"}]
    assert scorer.encode(prompt, [answer]).ids == [scorer.encode_text("tea?;a;")]


def test_of_several_templates_the_default_one_is_used_and_said(folders, capsys):
    folder = folders.copy(folders.reward_model)
    (folder / "chat_template.jinja").unlink()
    own = {"name": "default", "template": folders.tokenizer.chat_template}
    other = {"name": "tool_use", "template": "x"}
    edit_json(folder / "tokenizer_config.json", chat_template=[own, other])
    assert our_rewards(folder) == pytest.approx(folders.rewards, abs=1e-5)
    assert "`default` of default, tool_use" in capsys.readouterr().err
