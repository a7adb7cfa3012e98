"""The traps around the head, the pad token and foreign checkpoints, each with a tiny model that falls into it."""

import json
import math
import shutil
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import hf_hub_download
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import run_script
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RobertaConfig,
    pipeline,
)

import audit
import score
from reward.checkpoint.contract import verify_saved_model
from reward.checkpoint.convert import convert, merge
from reward.checkpoint.golden import write_golden
from reward.checkpoint.manifest import read_manifest, seal
from reward.data.encoding import encode, render
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.heads import Float32Head, head_of, is_encoder, position_limit, rewards_from_logits
from reward.model.hub import ModelError
from reward.model.load import facts_differ, load_reward_model
from reward.model.scorer import Scorer

torch.set_num_threads(1)

PROMPT = [{"role": "user", "content": "how can you make tea?"}]
ANSWERS = [
    [{"role": "assistant", "content": text}]
    for text in ("some water and patience", "sorry", "that depends")
]


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rewards(model, tokenizer) -> torch.Tensor:
    """(answers,) of ANSWERS, one text at a time."""
    texts = [torch.tensor([encode(tokenizer, PROMPT, answer)]) for answer in ANSWERS]
    with torch.inference_mode():
        return torch.cat([rewards_from_logits(model(input_ids=ids).logits) for ids in texts])


def by_hand(model, tokenizer, weight, bias=0.0) -> torch.Tensor:
    """(answers,): hidden_last @ weight + bias with a stock language model's hidden states."""
    values = []
    for answer in ANSWERS:
        with torch.inference_mode():
            out = model(
                input_ids=torch.tensor([encode(tokenizer, PROMPT, answer)]),
                output_hidden_states=True,
            )
            values.append(out.hidden_states[-1][0, -1].float() @ weight.detach().float() + bias)
    return torch.stack(values)


def with_lora(model, **options):
    """A LoRA adapter whose weights, and whose head's, are random numbers."""
    options = {
        "task_type": "SEQ_CLS",
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "r": 4,
        **options,
    }
    model = get_peft_model(model, LoraConfig(**options))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return model.eval()


def exit_of(script, monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """(exit status, standard error) of a script's main(); an exception, which would be a traceback, goes through."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    status = script.main()
    return status, capsys.readouterr().err


@pytest.fixture(scope="module")
def saved(standin, tmp_path_factory):
    """`saved("qwen")` -> folder of a reward model with a head from a fixed seed, as training saves it."""
    made = {}

    def get(kind):
        if kind not in made:
            base = str(standin(kind))
            torch.manual_seed(1)
            model = build_reward_model(base, head_init="normal")
            tokenizer = build_tokenizer(base, model.config)
            model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
            made[kind] = save(model, tokenizer, tmp_path_factory.mktemp("saved") / kind)
        return made[kind]

    return get


@pytest.fixture(scope="module")
def two_labels(standin, saved, tmp_path_factory):
    model = AutoModelForSequenceClassification.from_pretrained(standin("qwen"), num_labels=2)
    torch.nn.init.normal_(model.score.weight)
    tokenizer = AutoTokenizer.from_pretrained(saved("qwen"))
    model.config.pad_token_id = tokenizer.pad_token_id
    return save(model, tokenizer, tmp_path_factory.mktemp("two") / "halo")


# ------------------------------------------------------------------------------------------------ checkpoints and heads


def test_lora_saves_and_reloads_its_head(standin, tmp_path):
    model = build_reward_model(str(standin("qwen")), head_init="normal")
    tokenizer = build_tokenizer(str(standin("qwen")), model.config)
    model = with_lora(model, target_modules="all-linear")
    expected = rewards(model, tokenizer)
    save(model, tokenizer, tmp_path)
    loaded, tokenizer = load_reward_model(str(tmp_path))
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


def test_a_trained_one_label_head_is_kept(saved):
    before = AutoModelForSequenceClassification.from_pretrained(saved("qwen")).score.weight
    again = build_reward_model(str(saved("qwen")))
    assert torch.equal(again.score.weight, before) and type(again.score) is Float32Head
    assert (
        torch.count_nonzero(build_reward_model(str(saved("qwen")), head_init="zero").score.weight)
        == 0
    )


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


def test_a_value_head_or_an_adapter_is_no_base_to_train(value_head, standin, tmp_path):
    with pytest.raises(ModelError, match="trained value head .*head_init: normal"):
        build_reward_model(str(value_head[0]))
    build_reward_model(str(value_head[0]), head_init="normal")
    get_peft_model(
        build_reward_model(str(standin("qwen"))), LoraConfig(task_type="SEQ_CLS")
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="merge"):
        build_reward_model(str(tmp_path))


def test_head_init(standin):
    torch.manual_seed(0)
    weight = build_reward_model(str(standin("qwen")), head_init="normal").score.weight
    assert weight.std().item() == pytest.approx(33**-0.5, rel=0.35)
    assert (
        torch.count_nonzero(build_reward_model(str(standin("qwen")), head_init="zero").score.weight)
        == 0
    )


def test_two_logit_models_score_logit_1(two_labels):
    stock = AutoModelForSequenceClassification.from_pretrained(two_labels)
    model, tokenizer = load_reward_model(str(two_labels))
    for reward, answer in zip(rewards(model, tokenizer), ANSWERS, strict=True):
        with torch.inference_mode():
            logits = stock(input_ids=torch.tensor([encode(tokenizer, PROMPT, answer)])).logits[0]
        assert reward.item() == pytest.approx(logits[1].item(), abs=1e-5)
        assert abs(logits[0] - logits[1]) > 1e-3


def test_three_labels_are_refused(standin, saved, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(standin("qwen"), num_labels=3)
    save(model, AutoTokenizer.from_pretrained(saved("qwen")), tmp_path)
    with pytest.raises(ModelError, match="3 labels; a reward model has one"):
        load_reward_model(str(tmp_path))


@pytest.fixture(scope="module")
def value_head(standin, saved, tmp_path_factory):
    """(folder, weight, bias) of a checkpoint as LLaMA-Factory saves it: a language model and value_head.safetensors."""
    folder = tmp_path_factory.mktemp("value") / "head"
    save(
        AutoModelForCausalLM.from_pretrained(standin("qwen")),
        AutoTokenizer.from_pretrained(saved("qwen")),
        folder,
    )
    weight, bias = (
        torch.randn(1, 32, generator=torch.Generator().manual_seed(5)),
        torch.tensor([0.75]),
    )
    tensors = {"v_head.summary.weight": weight, "v_head.summary.bias": bias}
    save_file(tensors, folder / "value_head.safetensors", metadata={"format": "pt"})
    return folder, weight, bias


def test_llama_factory_value_head_by_hand(value_head):
    folder, weight, bias = value_head
    model, tokenizer = load_reward_model(str(folder))
    stock = AutoModelForCausalLM.from_pretrained(folder)
    expected = by_hand(stock, tokenizer, weight[0], bias.item())
    torch.testing.assert_close(rewards(model, tokenizer), expected, atol=1e-5, rtol=0)


def test_a_value_head_of_the_wrong_shape_is_refused(value_head, saved, tmp_path):
    stock = AutoModelForCausalLM.from_pretrained(value_head[0])
    save(stock, AutoTokenizer.from_pretrained(saved("qwen")), tmp_path)
    save_file({"v_head.summary.weight": torch.zeros(1, 8)}, tmp_path / "value_head.safetensors")
    with pytest.raises(ModelError, match=r"v_head\.summary\.weight \[1, 32\] is needed"):
        load_reward_model(str(tmp_path))


@pytest.fixture(scope="module")
def value_head_adapter(standin, saved, value_head, tmp_path_factory):
    """(folder, model) of a LoRA adapter as LLaMA-Factory saves it: a language model's, and value_head.safetensors."""
    folder = tmp_path_factory.mktemp("value") / "adapter"
    model = with_lora(AutoModelForCausalLM.from_pretrained(standin("qwen")), task_type="CAUSAL_LM")
    save(model, AutoTokenizer.from_pretrained(saved("qwen")), folder)
    (folder / "value_head.safetensors").write_bytes(
        (value_head[0] / "value_head.safetensors").read_bytes()
    )
    return folder, model


def test_a_value_head_beside_an_adapter_by_hand(value_head_adapter, value_head):
    folder, stock = value_head_adapter
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    model, tokenizer = load_reward_model(str(folder))
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
    expected = rewards(*load_reward_model(str(source)))
    torch.testing.assert_close(
        rewards(*load_reward_model(str(tmp_path / "rm"))), expected, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(("layout", "found"), [
    ({"v_head.summary.weight": [1, 32], "v_head.summary.bias": [1]}, "v_head.summary.bias, v_head.summary.weight"),
    ({"reward_head.weight": [1, 32]}, "reward_head.weight"),
    ({f"rm_head.{i}.weight": [1, 32] for i in range(9)}, ", ".join(f"rm_head.{i}.weight" for i in range(7)) + ", ..."),
])  # fmt: skip
def test_an_unknown_layout_names_the_tensors_found(
    layout, found, standin, saved, tmp_path, monkeypatch, capsys
):
    """TRL's value head inside the model's own file, and heads of other names: their rewards would be random."""
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
        status == 2 and f"tensors found and not used: lm_head.weight, {found}. Train one" in error
    )


# --------------------------------------------------------------------------------------------------- options of the head


@pytest.fixture(scope="module")
def headed(standin, tmp_path_factory):
    """`headed(adapter=False, bias=None, **head)` -> (model, folder) with a random head, and `bias` in its bias."""
    made = {}

    def get(adapter=False, bias=None, **head):
        key = json.dumps([adapter, bias, head])
        if key not in made:
            base = str(standin("qwen"))
            torch.manual_seed(1)
            model = build_reward_model(
                base, head_init="normal", head_bias=None if bias is None else True, **head
            )
            tokenizer = build_tokenizer(base, model.config)
            model.config.pad_token_id = tokenizer.pad_token_id
            if adapter:
                model = with_lora(model)
            if bias is not None:
                head_bias = [
                    p
                    for name, p in model.named_parameters()
                    if "score" in name and name.endswith("bias")
                ][-1]
                head_bias.data = torch.tensor(bias)
            made[key] = (
                model.eval(),
                save(model, tokenizer, tmp_path_factory.mktemp("headed") / "rm"),
            )
        return made[key]

    return get


def stock_logits(folder, labels: int) -> torch.Tensor:
    """(answers, labels), with stock transformers and peft."""
    if (folder / "adapter_config.json").exists():
        model = AutoPeftModelForSequenceClassification.from_pretrained(
            folder, num_labels=labels
        ).eval()
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        ids = [torch.tensor([encode(tokenizer, PROMPT, answer)]) for answer in ANSWERS]
        return torch.cat([model(input_ids=i).logits for i in ids])


def scored(folder) -> torch.Tensor:
    return torch.tensor(Scorer(str(folder)).rewards([(PROMPT, answer) for answer in ANSWERS]))


@pytest.mark.parametrize("adapter", [False, True])
def test_a_two_logit_head_is_saved_and_its_reward_is_logit_1(adapter, headed):
    model, folder = headed(adapter, head="two_logit")
    logits = stock_logits(folder, 2)
    assert logits.shape == (3, 2) and (logits[:, 0] - logits[:, 1]).abs().min() > 1e-3
    torch.testing.assert_close(scored(folder), logits[:, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        rewards(model, AutoTokenizer.from_pretrained(folder)), logits[:, 1], atol=1e-5, rtol=0
    )


def test_a_trained_two_logit_head_is_kept_where_two_are_asked_for(two_labels, saved):
    before = AutoModelForSequenceClassification.from_pretrained(two_labels).score.weight
    assert torch.equal(build_reward_model(str(two_labels), head="two_logit").score.weight, before)
    with pytest.raises(
        ModelError,
        match=r"score\.weight \[1, 32\] \(this model needs \[2, 32\]\).*head_init: normal",
    ):
        build_reward_model(str(saved("qwen")), head="two_logit")


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


@pytest.mark.parametrize(
    ("adapter", "head", "bias"), [(False, "linear", [0.75]), (True, "two_logit", [-3.0, 0.75])]
)
def test_verification_adds_the_head_bias_that_stock_passes_over(
    adapter, head, bias, headed, tmp_path
):
    model, folder = headed(adapter, bias, head=head)
    folder = shutil.copytree(folder, tmp_path / "rm")
    expected = rewards(model, AutoTokenizer.from_pretrained(folder))
    torch.testing.assert_close(scored(folder), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        scored(folder) - stock_logits(folder, len(bias))[:, -1], torch.full((3,), 0.75)
    )
    prove(folder, len(bias))
    assert verify_saved_model(folder, expected.tolist(), 0.0).max_difference < 1e-5


def prove(folder, labels: int) -> None:
    """Golden texts and a manifest, as training writes them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [
        {
            "text": {"prompt": PROMPT, "completion": a, "tools": None},
            "ids": encode(tokenizer, PROMPT, a),
        }
        for a in ANSWERS
    ]
    write_golden(folder, texts, scored(folder).tolist())
    seal(folder, {"dtype": "float32", "quantization": None, "labels": labels})


def test_a_new_two_logit_head_over_a_biased_one_has_two_biases(headed):
    _, folder = headed(bias=[0.75])
    assert build_reward_model(
        str(folder), head="two_logit", head_init="normal"
    ).score.bias.tolist() == [0, 0]


def test_an_adapter_without_a_bias_over_a_base_with_one(headed, tmp_path):
    """Its head is new; the base's bias belongs to the base's head."""
    _, base = headed(bias=[0.75])
    model = with_lora(build_reward_model(str(base), head_init="normal", head_bias=False))
    tokenizer = AutoTokenizer.from_pretrained(base)
    expected = rewards(model, tokenizer)
    torch.testing.assert_close(
        scored(save(model, tokenizer, tmp_path)), expected, atol=1e-5, rtol=0
    )


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


def test_head_dropout_is_in_training_only_and_leaves_no_trace_in_the_file(standin, saved, tmp_path):
    torch.manual_seed(0)
    model = build_reward_model(str(standin("qwen")), head_init="normal", head_dropout=0.5)
    tokenizer = AutoTokenizer.from_pretrained(saved("qwen"))
    plain = AutoModelForSequenceClassification.from_pretrained(saved("qwen")).state_dict()
    assert model.state_dict().keys() == plain.keys()
    expected = rewards(model.eval(), tokenizer)
    assert torch.equal(rewards(model, tokenizer), expected)
    draws = torch.stack([rewards(model.train(), tokenizer) for _ in range(400)])
    spread = draws.std(0)
    assert spread.min() > 0.1
    assert (
        (draws.mean(0) - expected).abs() < 5 * spread / math.sqrt(400)
    ).all()  # scaled by 1 / (1 - p)
    torch.testing.assert_close(
        scored(save(model, tokenizer, tmp_path)), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("kind", "layers", "trained"), [
    ("qwen", 0, {"score"}),
    ("qwen", 1, {"score", "model.layers.1"}),
    ("qwen", 2, {"score", "model.layers.0", "model.layers.1"}),
    ("encoder", 0, {"classifier", "bert.pooler"}),
    ("encoder", 1, {"classifier", "bert.pooler", "bert.encoder.layer.1"}),
])  # fmt: skip
def test_train_last_layers_freezes_the_rest(kind, layers, trained, standin):
    model = build_reward_model(str(standin(kind)), train_last_layers=layers)
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found == {
        n for n, _ in model.named_parameters() if any(n.startswith(f"{part}.") for part in trained)
    }
    assert all(any(name.startswith(f"{part}.") for name in found) for part in trained)


@pytest.mark.parametrize("kind", ["qwen", "encoder"])
def test_more_last_layers_than_there_are_is_an_error(kind, standin):
    with pytest.raises(ModelError, match="train_last_layers is 3; .* has 2 blocks to choose from"):
        build_reward_model(str(standin(kind)), train_last_layers=3)


# ------------------------------------------------------------------------------------------------------------ converting


@pytest.fixture
def source(headed, saved, two_labels, value_head, value_head_adapter):
    """`source(kind)` -> folder, and what stock transformers takes off the rewards of its conversion."""
    return {
        "one label": lambda: (saved("qwen"), 0.0),
        "encoder": lambda: (saved("encoder"), 0.0),
        "head bias": lambda: (headed(bias=[0.75])[1], 0.75),
        "two-logit": lambda: (two_labels, 0.0),
        "two-logit, bias": lambda: (headed(bias=[-3.0, 0.75], head="two_logit")[1], 0.75),
        "adapter": lambda: (headed(adapter=True)[1], 0.0),
        "adapter, bias": lambda: (headed(adapter=True, bias=[0.75])[1], 0.75),
        "two-logit adapter": lambda: (headed(adapter=True, head="two_logit")[1], 0.0),
        "value head": lambda: (value_head[0], 0.75),
        "value head adapter": lambda: (value_head_adapter[0], 0.75),
    }


@pytest.mark.parametrize("kind", [
    "one label", "encoder", "head bias", "two-logit", "two-logit, bias", "adapter", "adapter, bias", "two-logit adapter",
    "value head", "value head adapter",
])  # fmt: skip
def test_converting_gives_a_stock_one_label_checkpoint_with_the_same_rewards(
    kind, source, tmp_path
):
    folder, dropped = source[kind]()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [encode(tokenizer, PROMPT, answer) for answer in ANSWERS]
    done = convert(str(folder), tmp_path / "plain", texts)
    expected = scored(folder)
    assert done.moved < 1e-5 and done.dropped_bias == dropped
    assert done.rewards == pytest.approx(expected.tolist(), abs=1e-5)
    torch.testing.assert_close(scored(tmp_path / "plain"), expected, atol=1e-5, rtol=0)
    stock = stock_logits(tmp_path / "plain", 1)
    assert stock.shape == (3, 1)
    torch.testing.assert_close(stock[:, 0] + dropped, expected, atol=1e-5, rtol=0)
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert "model.safetensors" in names and names.isdisjoint(
        {"adapter_config.json", "value_head.safetensors"}
    )
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").config
    assert (config.num_labels, config.problem_type, config.pad_token_id) == (
        1,
        "regression",
        tokenizer.pad_token_id,
    )


def test_converting_without_texts_compares_a_probe(headed, tmp_path):
    done = convert(str(headed(adapter=True, head="two_logit")[1]), tmp_path / "plain")
    assert len(done.rewards) == len({*done.rewards}) == 3 and done.moved < 1e-5


def test_a_converted_value_head_can_be_trained_on(value_head, tmp_path):
    convert(str(value_head[0]), tmp_path / "plain")
    model = build_reward_model(str(tmp_path / "plain"))
    assert torch.equal(model.score.weight, value_head[1]) and torch.equal(
        model.score.bias, value_head[2]
    )


def test_merging_a_two_logit_adapter_says_that_one_label_is_left(headed, tmp_path):
    folder = shutil.copytree(headed(adapter=True, head="two_logit")[1], tmp_path / "rm")
    prove(folder, labels=2)
    for name in ("recipe.yaml", "ledger.json", "test_ids.json"):
        (folder / name).write_text("{}")
    assert merge(folder) < 1e-5
    manifest = read_manifest(folder / "merged")
    assert manifest["labels"] == 1 and manifest["merged_from_adapter"]
    torch.testing.assert_close(scored(folder / "merged"), scored(folder), atol=1e-5, rtol=0)


# --------------------------------------------------------------------------------------------------- pad token, pooling


def test_pad_equal_to_eos_shifts_the_reward_and_ours_does_not(standin, saved):
    """TinyLlama's own pad token is its eos token: a stock classifier then reads one token early."""
    model, tokenizer = load_reward_model(str(saved("tinyllama")))
    expected = by_hand(
        AutoModelForCausalLM.from_pretrained(standin("tinyllama")), tokenizer, model.score.weight[0]
    )
    torch.testing.assert_close(rewards(model, tokenizer), expected, atol=1e-4, rtol=0)

    own = AutoTokenizer.from_pretrained(standin("tinyllama"))
    assert own.pad_token_id == own.eos_token_id == encode(tokenizer, PROMPT, ANSWERS[0])[-1]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert (
        AutoModelForSequenceClassification.from_pretrained(saved("tinyllama")).config.pad_token_id
        == 0
    )
    model.config.pad_token_id = own.pad_token_id  # what TRL falls back to
    assert (rewards(model, tokenizer) - expected).abs().min() > 0.01


@pytest.mark.parametrize("kind", ["qwen", "llama3", "tinyllama", "base", "encoder"])
def test_padding_changes_no_reward(kind, saved):
    model, tokenizer = load_reward_model(str(saved(kind)))
    ids = [encode(tokenizer, PROMPT, answer) for answer in ANSWERS]
    assert len({len(i) for i in ids}) > 1
    assert all(i[-1] != tokenizer.pad_token_id for i in ids)
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    with torch.inference_mode():
        together = rewards_from_logits(model(**batch).logits)
        # GRPOTrainer passes no other mask than the tokenizer's, and generic loops none at all: pooling goes by pad id.
    torch.testing.assert_close(together, rewards(model, tokenizer), atol=1e-4, rtol=0)


def test_facts_differ_names_what_an_rl_trainer_would_get_wrong(standin, saved):
    tokenizer = AutoTokenizer.from_pretrained(saved("tinyllama"))
    assert facts_differ(tokenizer, tokenizer) == []
    base = AutoTokenizer.from_pretrained(standin("tinyllama"))
    assert {"chat_template_sha256", "pad_token_id"} <= set(facts_differ(tokenizer, base))


# ------------------------------------------------------------------------------------------------------------ precision


def many_rewards(model, tokenizer, autocast: bool) -> torch.Tensor:
    answers = [[{"role": "assistant", "content": f"tea number {i}"}] for i in range(40)]
    ids = tokenizer.pad(
        {"input_ids": [encode(tokenizer, PROMPT, a) for a in answers]}, return_tensors="pt"
    )
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        return model(**ids).logits[:, 0]


@pytest.mark.parametrize(
    ("dtype", "autocast"), [("float32", True), ("bfloat16", False), ("bfloat16", True)]
)
def test_the_head_is_computed_in_float32(dtype, autocast, standin):
    torch.manual_seed(0)
    model = build_reward_model(str(standin("qwen")), dtype=dtype, head_init="normal").eval()
    tokenizer = build_tokenizer(str(standin("qwen")), model.config)
    model.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        model.score.weight.mul_(8)  # rewards of 4 to 8, where bf16 steps are .031
    found = many_rewards(model, tokenizer, autocast)
    assert found.dtype == torch.float32
    assert (found != found.bfloat16().float()).float().mean() > 0.9
    assert len(found.unique()) == 40
    model.score.__class__ = torch.nn.Linear  # without the mend
    rounded = many_rewards(model, tokenizer, autocast)
    assert rounded.dtype == torch.bfloat16 and len(rounded.unique()) < 40


def test_the_head_is_stored_in_the_dtype_of_the_body(standin, tmp_path):
    model = build_reward_model(str(standin("qwen")), dtype="bfloat16", head_init="normal")
    save(model, build_tokenizer(str(standin("qwen")), model.config), tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}
        assert "score.weight" in file.keys()
    loaded, tokenizer = load_reward_model(str(tmp_path))
    assert loaded.dtype == loaded.score.weight.dtype == torch.bfloat16
    assert many_rewards(loaded, tokenizer, autocast=False).dtype == torch.float32


# ------------------------------------------------------------------------------------------------- encoders, pipelines


def test_an_encoder_reads_its_class_head_at_cls(saved):
    model, tokenizer = load_reward_model(str(saved("encoder")))
    assert head_of(model)[0] == "classifier" and is_encoder(model.config)
    ids = encode(tokenizer, PROMPT, ANSWERS[0])
    assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
    assert ids.count(tokenizer.cls_token_id) == 1
    with torch.inference_mode():
        cls = model.bert(input_ids=torch.tensor([ids])).pooler_output[0]  # tanh(W h_[CLS] + b)
        expected = model.classifier.weight[0] @ cls + model.classifier.bias
    assert rewards(model, tokenizer)[0].item() == pytest.approx(expected.item(), abs=1e-5)


def test_decoders_are_no_encoders(saved):
    assert [
        is_encoder(load_reward_model(str(saved(kind)))[0].config) for kind in ("qwen", "llama3")
    ] == [False, False]


def test_pipeline_gives_the_raw_reward_without_any_argument(saved):
    model, tokenizer = load_reward_model(str(saved("qwen")))
    classify = pipeline("text-classification", model=str(saved("qwen")), device="cpu")
    found = [classify(render(tokenizer, PROMPT, answer))[0]["score"] for answer in ANSWERS]
    assert found == pytest.approx(rewards(model, tokenizer).tolist(), abs=1e-4)
    classify.model.config.problem_type = None  # without the mend
    assert 0 < classify(render(tokenizer, PROMPT, ANSWERS[0]))[0]["score"] < 1


def test_position_limit(saved):
    model, tokenizer = load_reward_model(str(saved("qwen")))
    assert (
        position_limit(model.config, tokenizer) == 512
    )  # the tokenizer's, below the model's 2,048
    assert (
        position_limit(RobertaConfig(max_position_embeddings=514, pad_token_id=1), tokenizer) == 512
    )


# ----------------------------------------------------------------------------------------------------- what is not there


@pytest.fixture
def empty_hub():
    """Address of a hub that has nothing, as the real one answers."""

    class Nothing(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_hub_id_that_does_not_exist_is_one_sentence(empty_hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "reward.model.hub.hf_hub_download", partial(hf_hub_download, endpoint=empty_hub)
    )
    status, error = exit_of(
        score, monkeypatch, capsys, "--ckpt", "nobody/nothing", "--prompt", "a", "--completion", "b"
    )
    said = [line for line in error.splitlines() if line.startswith("score.py")]
    assert (
        status == 2
        and len(said) == 1
        and "nobody/nothing: no such folder here, and not to be had" in said[0]
    )


def test_a_recipe_with_a_hub_id_that_does_not_exist_is_one_sentence(empty_hub, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"chosen": "a b", "rejected": "a c"}) + "\n")
    done = run_script(
        "train_rm.py", "--model_name_or_path", "nobody/nothing", "--output_dir", tmp_path / "out",
        "--dataset_name", tmp_path / "rows.jsonl", "--test_fraction", "0.5", check=False,
        env={"HF_ENDPOINT": empty_hub, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"},
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "nobody/nothing" in line]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        len(said) == 1
        and said[0].startswith("train_rm.py: nobody/nothing: ")
        and said == done.stderr.split("\n")[-2:-1]
    )


def test_a_folder_without_a_model_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere" / "at" / "all"):
        with pytest.raises(ModelError, match="folder"):
            load_reward_model(str(path))


def test_an_adapter_whose_base_is_gone_is_refused(standin, tmp_path, monkeypatch):
    model = build_reward_model(str(standin("qwen")))
    get_peft_model(model, LoraConfig(task_type="SEQ_CLS")).save_pretrained(tmp_path)
    adapter = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({**adapter, "base_model_name_or_path": "./moved/away/now"})
    )
    with pytest.raises(ModelError, match="moved/away"):
        load_reward_model(str(tmp_path))
