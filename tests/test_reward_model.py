"""The traps around the head, the pad token and foreign checkpoints, each with a tiny model that falls into it."""

import json
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from conftest import run_script
from huggingface_hub import hf_hub_download
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RobertaConfig,
    pipeline,
)

import audit
import score
from rm.encoding import encode, render
from rm.reward_model import (
    Float32Head,
    ModelError,
    build_reward_model,
    build_tokenizer,
    facts_differ,
    head_of,
    is_encoder,
    load_reward_model,
    position_limit,
    rewards_from_logits,
)

torch.set_num_threads(1)

PROMPT = [{"role": "user", "content": "how can you make tea?"}]
ANSWERS = [[{"role": "assistant", "content": text}] for text in ("some water and patience", "sorry", "that depends")]


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
            out = model(input_ids=torch.tensor([encode(tokenizer, PROMPT, answer)]), output_hidden_states=True)
            values.append(out.hidden_states[-1][0, -1].float() @ weight.detach().float() + bias)
    return torch.stack(values)


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
            torch.manual_seed(1)
            model = build_reward_model(str(standin(kind)), head_init="normal")
            tokenizer = build_tokenizer(str(standin(kind)), model.config)
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
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=4))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    expected = rewards(model.eval(), tokenizer)
    save(model, tokenizer, tmp_path)
    loaded, tokenizer = load_reward_model(str(tmp_path))
    torch.testing.assert_close(rewards(loaded, tokenizer), expected, atol=1e-5, rtol=0)
    assert type(loaded.base_model.model.score.modules_to_save["default"]) is Float32Head


def test_an_adapter_without_a_head_is_refused(standin, tmp_path, monkeypatch, capsys):
    model = build_reward_model(str(standin("qwen")))
    tokenizer = build_tokenizer(str(standin("qwen")), model.config)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=4))  # TRL's way without a task type
    save(model, tokenizer, tmp_path)
    with pytest.raises(ModelError, match="holds no score or classifier weight"):
        load_reward_model(str(tmp_path))
    status, error = exit_of(score, monkeypatch, capsys, "--ckpt", tmp_path, "--prompt", "a", "--completion", "b")
    assert status == 2 and "adapter_model.safetensors" in error


@pytest.mark.parametrize("script", [score, audit])
@pytest.mark.parametrize(("kind", "tensor"), [("qwen", "score.weight"), ("encoder", "classifier.weight")])
def test_a_checkpoint_without_a_head_is_refused(script, kind, tensor, standin, tmp_path, monkeypatch, capsys):
    task = ["--prompt", "a", "--completion", "b"] if script is score else ["--output_dir", tmp_path]
    status, error = exit_of(script, monkeypatch, capsys, "--ckpt", standin(kind), *task)
    assert status == 2
    assert f"{script.__name__}.py: " in error and "is no reward model" in error and tensor in error


def test_a_trained_one_label_head_is_kept(saved):
    before = AutoModelForSequenceClassification.from_pretrained(saved("qwen")).score.weight
    again = build_reward_model(str(saved("qwen")))
    assert torch.equal(again.score.weight, before) and type(again.score) is Float32Head
    assert torch.count_nonzero(build_reward_model(str(saved("qwen")), head_init="zero").score.weight) == 0


def test_a_trained_head_of_another_shape_is_refused_unless_a_new_one_is_asked_for(two_labels):
    with pytest.raises(ModelError, match=r"score\.weight \[2, 32\] \(this model needs \[1, 32\]\).*head_init: normal"):
        build_reward_model(str(two_labels))
    assert build_reward_model(str(two_labels), head_init="normal").score.weight.shape == (1, 32)


def test_a_trained_head_of_another_name_is_refused_unless_a_new_one_is_asked_for(standin, saved, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(saved("qwen"))
    tensors = {key.replace("score.", "v_head."): value.contiguous() for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"v_head\.weight.*head_init: normal"):
        build_reward_model(str(tmp_path))
    build_reward_model(str(tmp_path), head_init="normal")


def test_a_value_head_or_an_adapter_is_no_base_to_train(value_head, standin, tmp_path):
    with pytest.raises(ModelError, match="trained value head .*head_init: normal"):
        build_reward_model(str(value_head[0]))
    build_reward_model(str(value_head[0]), head_init="normal")
    get_peft_model(build_reward_model(str(standin("qwen"))), LoraConfig(task_type="SEQ_CLS")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="merge"):
        build_reward_model(str(tmp_path))


def test_head_init(standin):
    torch.manual_seed(0)
    weight = build_reward_model(str(standin("qwen")), head_init="normal").score.weight
    assert weight.std().item() == pytest.approx(33**-0.5, rel=0.35)
    assert torch.count_nonzero(build_reward_model(str(standin("qwen")), head_init="zero").score.weight) == 0


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
    save(AutoModelForCausalLM.from_pretrained(standin("qwen")), AutoTokenizer.from_pretrained(saved("qwen")), folder)
    weight, bias = torch.randn(1, 32, generator=torch.Generator().manual_seed(5)), torch.tensor([0.75])
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


# --------------------------------------------------------------------------------------------------- pad token, pooling


def test_pad_equal_to_eos_shifts_the_reward_and_ours_does_not(standin, saved):
    """TinyLlama's own pad token is its eos token: a stock classifier then reads one token early."""
    model, tokenizer = load_reward_model(str(saved("tinyllama")))
    expected = by_hand(AutoModelForCausalLM.from_pretrained(standin("tinyllama")), tokenizer, model.score.weight[0])
    torch.testing.assert_close(rewards(model, tokenizer), expected, atol=1e-4, rtol=0)

    own = AutoTokenizer.from_pretrained(standin("tinyllama"))
    assert own.pad_token_id == own.eos_token_id == encode(tokenizer, PROMPT, ANSWERS[0])[-1]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert AutoModelForSequenceClassification.from_pretrained(saved("tinyllama")).config.pad_token_id == 0
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
    ids = tokenizer.pad({"input_ids": [encode(tokenizer, PROMPT, a) for a in answers]}, return_tensors="pt")
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        return model(**ids).logits[:, 0]


@pytest.mark.parametrize(("dtype", "autocast"), [("float32", True), ("bfloat16", False), ("bfloat16", True)])
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
    assert [is_encoder(load_reward_model(str(saved(kind)))[0].config) for kind in ("qwen", "llama3")] == [False, False]


def test_pipeline_gives_the_raw_reward_without_any_argument(saved):
    model, tokenizer = load_reward_model(str(saved("qwen")))
    classify = pipeline("text-classification", model=str(saved("qwen")), device="cpu")
    found = [classify(render(tokenizer, PROMPT, answer))[0]["score"] for answer in ANSWERS]
    assert found == pytest.approx(rewards(model, tokenizer).tolist(), abs=1e-4)
    classify.model.config.problem_type = None  # without the mend
    assert 0 < classify(render(tokenizer, PROMPT, ANSWERS[0]))[0]["score"] < 1


def test_position_limit(saved):
    model, tokenizer = load_reward_model(str(saved("qwen")))
    assert position_limit(model.config, tokenizer) == 512  # the tokenizer's, below the model's 2,048
    assert position_limit(RobertaConfig(max_position_embeddings=514, pad_token_id=1), tokenizer) == 512


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
    monkeypatch.setattr("rm.reward_model.hf_hub_download", partial(hf_hub_download, endpoint=empty_hub))
    status, error = exit_of(
        score, monkeypatch, capsys, "--ckpt", "nobody/nothing", "--prompt", "a", "--completion", "b"
    )
    said = [line for line in error.splitlines() if line.startswith("score.py")]
    assert status == 2 and len(said) == 1 and "nobody/nothing: no such folder here, and not to be had" in said[0]


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
