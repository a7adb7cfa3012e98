"""End to end: a trained checkpoint gives the same rewards to everybody who reads it.

It is read through score.py, audit.py, stock transformers, peft and TRL. Each kind of checkpoint is
trained once, by train_rm.py in a process of its own.
"""

import csv
import gzip
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from launched import CPU, launcher, train_several
from peft import AutoPeftModelForSequenceClassification
from standins import hh_rows, make_config, make_tokenizer
from support import REPO, run_script, write_rows
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

import audit
import score
from auditing import run_checkpoint
from auditing.report.card import CARD_SECTION
from reward.checkpoint.golden import read_golden
from reward.checkpoint.manifest import read_manifest
from reward.data.splits import load_preferences
from reward.data.tokens import EncodingOptions, encode_splits
from reward.data.transcripts import parse_transcript
from reward.model.build import build_reward_model
from reward.model.scorer import Scorer
from reward.recipe.parse import load_saved

torch.set_num_threads(1)

LORA = "use_peft: true\nlora_r: 4\nlora_target_modules: all-linear\n"
QLORA = LORA + "load_in_4bit: true\nbnb_4bit_quant_type: nf4\nuse_bnb_nested_quant: true\n"
# kind of checkpoint -> stand-in, and more lines of the recipe
KINDS = {
    "full": ("qwen", ""),
    "adapter": ("tinyllama", LORA),
    "encoder": ("encoder", ""),
    "qlora": ("wide", QLORA),
}
TOLERANCE = 1e-4
# They all read what one run of a minute has trained.
pytestmark = pytest.mark.slow


def wide_model(folder):
    """Save a base model for 4-bit layers, which need a width of one block of 64.

    Its weights have transformers' own size: those of the other stand-ins are so large that bf16's
    rounding alone is more than the tolerance.
    """
    tokenizer = make_tokenizer("qwen")
    config = make_config("qwen", tokenizer)
    config.hidden_size, config.intermediate_size = 64, 128
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of conversational pairs: train.jsonl and test.jsonl."""
    folder = tmp_path_factory.mktemp("data")
    for split, n, seed in (("train", 80, 0), ("test", 24, 1)):
        write_rows(folder / f"{split}.jsonl", [conversational(row) for row in hh_rows(n, seed)])
    return folder


def conversational(row: dict) -> dict:
    """A transcript pair as prompt, chosen and rejected messages."""
    chosen, rejected = parse_transcript(row["chosen"]), parse_transcript(row["rejected"])
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


@pytest.fixture(scope="module")
def trained(standin, data, tmp_path_factory, train_options):
    """`trained("full")` -> (checkpoint folder, what the run printed).

    One process trains all kinds.
    """
    folders, lines = {}, []
    for kind, (base, extra) in KINDS.items():
        home = folders[kind] = tmp_path_factory.mktemp(kind)
        if base == "wide":
            model = wide_model(home / "base")
        else:
            model = standin(base)
        (home / "recipe.yaml").write_text(
            f"model_name_or_path: {model}\ndtype: float32\ndataset_name: {data}\nmax_length: 256\n"
            f"validation_fraction: 0.2\noutput_dir: {home / 'rm'}\n{extra}"
        )
        lines.append(["--recipe", home / "recipe.yaml", *train_options])
    env = {"OMP_NUM_THREADS": "1"}
    finished = train_several(lines, tmp_path_factory.mktemp("launch"), env=env)
    runs = dict(zip(KINDS, finished, strict=True))

    def get(kind):
        assert runs[kind].status == 0, runs[kind].stderr[-3000:]
        return folders[kind] / "rm", runs[kind].stdout

    return get


@pytest.fixture(scope="module")
def scorer(trained):
    return Scorer(str(trained("full")[0]))


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(score, "--ckpt", ...)` -> (exit status, stdout, stderr) of a script's main().

    The checkpoint was trained in another process.
    """

    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            status = script.main()
        except SystemExit as error:  # argparse
            status = error.code
        return (status, *capsys.readouterr())

    return call


@pytest.fixture
def score_rows(run, tmp_path):
    """`score_rows(ckpt, rows)` -> rows out, through files."""

    def call(ckpt, rows, *options):
        source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
        arguments = ["--ckpt", ckpt, "--input", source, "--output", out, *options]
        status, _, error = run(score, *arguments)
        assert status == 0, error
        return read_rows(out)

    return call


def read_rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def golden(ckpt) -> tuple[list[dict], list[float]]:
    """(prompt and completion rows, rewards) that the checkpoint proved itself on."""
    rows = read_golden(ckpt)
    assert len({round(row["reward"], 4) for row in rows}) > 8  # equal rewards would prove nothing
    return [row["text"] for row in rows], [row["reward"] for row in rows]


# --- The same to everybody ------------------------------------------------------------------------


def test_train_time_evaluation_equals_the_scorer(trained, scorer):
    """Validation margin, loss and accuracy as the trainer logged them, from the saved files."""
    ckpt = trained("full")[0]
    recipe = load_saved(ckpt / "recipe.yaml")
    fraction = recipe["validation_fraction"]
    splits, ledger = load_preferences(
        recipe.data_sources(), "messages", validation_fraction=fraction
    )
    validation = {"validation": splits["validation"]}
    encoded = encode_splits(validation, ledger, scorer.tokenizer, EncodingOptions(256))
    table = encoded.tables["validation"]
    chosen = np.array(scorer.rewards_of_ids(table["chosen_ids"][:]))
    rejected = np.array(scorer.rewards_of_ids(table["rejected_ids"][:]))
    logged = read_manifest(ckpt)["validation"]
    assert logged["n"] == len(table) > 5
    assert logged["margin"] == pytest.approx((chosen - rejected).mean(), abs=TOLERANCE)
    assert logged["accuracy"] == pytest.approx((chosen > rejected).mean())
    loss = np.log1p(np.exp(rejected - chosen)).mean()
    assert logged["loss"] == pytest.approx(loss, abs=TOLERANCE)


def trained_folder(kind: str, trained) -> Path:
    """The checkpoint that was trained for a kind; `merged` comes from the adapter's."""
    if kind == "merged":
        return trained("adapter")[0]
    return trained(kind)[0]


def golden_of(kind: str, trained) -> tuple[Path, list[dict], list[float]]:
    """The folder of a kind, and the golden texts and rewards of its training."""
    ckpt = trained_folder(kind, trained)
    texts, rewards = golden(ckpt)
    if kind == "merged":
        ckpt = ckpt / "merged"
    return ckpt, texts, rewards


def rendered_texts(tokenizer, texts: list[dict]) -> list[str]:
    """The conversations as the checkpoint's chat template renders them."""
    conversations = [text["prompt"] + text["completion"] for text in texts]
    return [tokenizer.apply_chat_template(turns, tokenize=False) for turns in conversations]


def classifier(ckpt):
    """transformers' pipeline over a checkpoint; it gives the reward as its score."""
    return pipeline("text-classification", model=str(ckpt), function_to_apply="none", device="cpu")


@pytest.mark.parametrize("kind", ["full", "merged", "adapter", "encoder"])
def test_score_py_equals_training(kind, trained, score_rows):
    ckpt, texts, rewards = golden_of(kind, trained)
    # The golden rewards equal trainer.predict's.
    verified = read_manifest(trained_folder(kind, trained))["verified"]
    assert verified["max_difference"] <= TOLERANCE
    scored = score_rows(ckpt, texts)
    assert [row["reward"] for row in scored] == pytest.approx(rewards, abs=TOLERANCE)


def test_score_py_in_a_process_of_its_own(trained, tmp_path):
    texts, rewards = golden(trained("full")[0])
    source = write_rows(tmp_path / "in.jsonl", texts)
    options = ["--ckpt", trained("full")[0], "--input", source]
    done = run_script("score.py", *options, env={"OMP_NUM_THREADS": "1"})
    scored = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["reward"] for row in scored] == pytest.approx(rewards, abs=TOLERANCE)
    assert f"scored {len(texts)} rows" in done.stderr


@pytest.mark.parametrize("kind", ["full", "merged", "encoder"])
def test_pipeline_equals_training(kind, trained):
    ckpt, texts, rewards = golden_of(kind, trained)
    rendered = rendered_texts(AutoTokenizer.from_pretrained(ckpt), texts)
    classify = classifier(ckpt)
    # The template bakes in BOS, or [CLS] and [SEP]; Qwen has none of them and needs no option.
    options = {}
    if kind != "full":
        options = {"add_special_tokens": False}
    scores = [classify(text, **options)[0]["score"] for text in rendered]
    assert scores == pytest.approx(rewards, abs=TOLERANCE)


@pytest.mark.parametrize("kind", ["full", "merged"])
def test_grpo_trainer_equals_training(kind, trained, standin, tmp_path):
    from trl import GRPOConfig, GRPOTrainer

    ckpt, texts, rewards = golden_of(kind, trained)
    prompts = [text["prompt"] for text in texts]
    completions = [text["completion"] for text in texts]
    config = GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        num_generations=2,
        per_device_train_batch_size=2,
    )
    trainer = GRPOTrainer(
        model=str(standin("qwen")),
        reward_funcs=str(ckpt),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        args=config,
    )
    inputs = [{"prompt": prompt} for prompt in prompts]
    scores = trainer._calculate_rewards(inputs, prompts, completions, None)
    assert scores[:, 0].tolist() == pytest.approx(rewards, abs=TOLERANCE)


def test_stock_peft_equals_training(trained):
    ckpt = trained("adapter")[0]
    texts, rewards = golden(ckpt)
    model = AutoPeftModelForSequenceClassification.from_pretrained(ckpt, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(ckpt)
    model.config.pad_token_id = tokenizer.pad_token_id
    scores = []
    for rendered in rendered_texts(tokenizer, texts):
        with torch.inference_mode():
            ids = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")
            scores.append(model(**ids).logits[0, 0].item())
    assert scores == pytest.approx(rewards, abs=TOLERANCE)


def test_an_adapter_over_a_base_with_another_pad_token_is_merged(trained, standin):
    """TinyLlama's tokenizer pads with its end token.

    For an adapter, an RL trainer takes the base's tokenizer.
    """
    ckpt, printed = trained("adapter")
    assert "an RL trainer would take the base's tokenizer" in printed and "pad_token_id" in printed
    assert "merging moved rewards by at most" in printed
    assert (ckpt / "adapter_model.safetensors").exists()
    assert not (ckpt / "model.safetensors").exists()
    merged = AutoTokenizer.from_pretrained(ckpt / "merged")
    assert merged.pad_token_id != merged.eos_token_id
    assert merged.chat_template == AutoTokenizer.from_pretrained(ckpt).chat_template
    config = AutoModelForSequenceClassification.from_pretrained(ckpt / "merged").config
    assert (config.pad_token_id, config.problem_type) == (merged.pad_token_id, "regression")
    manifest = read_manifest(ckpt / "merged")
    assert manifest["merged_from_adapter"] and manifest["merging_moved_rewards"] < TOLERANCE


def test_qlora(trained, score_rows):
    ckpt, printed = trained("qlora")
    manifest = read_manifest(ckpt)
    assert manifest["quantization"]["bnb_4bit_quant_type"] == "nf4"
    assert manifest["quantization"]["load_in_4bit"]
    assert 0 < manifest["verified"]["max_difference"] <= manifest["verified"]["tolerance"]
    texts, rewards = golden(ckpt)
    std = np.std(rewards, ddof=1)
    assert manifest["verified"]["tolerance"] == pytest.approx(0.05 * std, rel=0.1)
    assert [r["reward"] for r in score_rows(ckpt, texts)] == pytest.approx(rewards, abs=0.05 * std)
    # merged/ is there because the base's own template differs, and says by how much rewards moved.
    moved = read_manifest(ckpt / "merged")["merging_moved_rewards"]
    assert f"merging moved rewards by at most {moved:.1e}" in printed
    merged = [row["reward"] for row in score_rows(ckpt / "merged", texts)]
    largest = max(abs(a - b) for a, b in zip(merged, rewards, strict=True))
    assert largest == pytest.approx(moved, abs=TOLERANCE)
    assert moved < 0.05 * std


def test_the_encoder_trains_and_reads_cls(trained):
    ckpt, printed = trained("encoder")
    assert "a fresh process gives the same rewards" in printed
    loaded = Scorer(str(ckpt))
    assert loaded.model.classifier.weight.shape == (1, 32)
    assert loaded.rewards_by_token(*messages("a", "b").values()) is None
    facts = read_manifest(ckpt)["encoder"]
    assert facts["end_token"] == "[SEP]" and facts["pad_token"] == "[PAD]"


# --- score.py -------------------------------------------------------------------------------------


def messages(prompt: str, completion: str) -> dict:
    """A row of a prompt and a completion, as messages."""
    turn = [{"role": "assistant", "content": completion}]
    return {"prompt": [{"role": "user", "content": prompt}], "completion": turn}


def sides_of(prompt: str, completion: str) -> tuple:
    """A prompt and a completion as the scorer takes them."""
    return tuple(messages(prompt, completion).values())


LONG_TEXTS = ["some water and a little patience " * 6, "three steps " * 12]
TEXTS = ["tea", LONG_TEXTS[0], "sorry", LONG_TEXTS[1], "ok", "music in the garden", "no"]


def test_order_extra_columns_and_strings(trained, scorer, score_rows):
    """Mixed lengths at batch size 3; strings score as the messages that they stand for."""
    ckpt = trained("full")[0]
    rows = [
        {"id": i, "prompt": "how can you make tea?", "completion": text, "note": {"a": [i]}}
        for i, text in enumerate(TEXTS)
    ]
    scored = score_rows(ckpt, rows, "--token_budget", 60)
    assert [{k: v for k, v in row.items() if k != "reward"} for row in scored] == rows
    alone = [scorer.rewards([sides_of("how can you make tea?", text)])[0] for text in TEXTS]
    assert len({round(reward, 4) for reward in alone}) == len(TEXTS)
    assert [row["reward"] for row in scored] == pytest.approx(alone, abs=TOLERANCE)
    turns = score_rows(ckpt, [messages("how can you make tea?", text) for text in TEXTS])
    assert [row["reward"] for row in turns] == pytest.approx(alone, abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["score.py", "audit.py"])
def test_two_processes_give_the_rows_of_one(script, trained, tmp_path):
    """In the same order, written once."""
    ckpt = trained("full")[0]
    data = write_rows(tmp_path / "pairs.jsonl", hh_rows(41, seed=9))
    launch = launcher("ddp")
    written, printed = [], []
    for launch_prefix in ([], launch):
        out = tmp_path / f"out{len(launch_prefix)}"
        scores = out
        options = ["--input", data, "--output", out]
        if script == "audit.py":
            scores = out / "scores.jsonl"
            options = ["--data", data, "--output_dir", out, "--probed", 5]
        command = [script, "--ckpt", ckpt, *options, "--token_budget", 200]
        done = run_script(*launch_prefix, *command, env=CPU, timeout=400)
        written.append(read_rows(scores))
        printed.append(done.stdout + done.stderr)
    one, two = written
    assert len(one) == len(two) == 41
    rewards = ("reward_chosen", "reward_rejected", "margin")
    for a, b in zip(one, two, strict=True):
        columns = {key: value for key, value in a.items() if key not in rewards}
        assert columns == {key: value for key, value in b.items() if key not in rewards}
        expected = [b[key] for key in rewards if key in b]
        assert [a[key] for key in rewards if key in a] == pytest.approx(expected, abs=1e-4)
    last = "report.html"
    if script == "score.py":
        last = "scored 41 rows"
        one_off = ["--prompt", "tea?"]
        for i in range(12):
            one_off += ["--completion", f"water {i}"]
        answers = []
        for launch_prefix in ([], launch):
            done = run_script(*launch_prefix, script, "--ckpt", ckpt, *one_off, env=CPU)
            answers.append(done.stdout)
        assert answers[0].count("A  ") == 1 and answers[0] == answers[1]
    assert [text.count(last) for text in printed] == [1, 1]


def test_preference_files(trained, scorer, score_rows):
    rows = [{**row, "id": i} for i, row in enumerate(hh_rows(6, seed=9))]
    scored = score_rows(trained("full")[0], rows)
    for row, out in zip(rows, scored, strict=True):
        pair = conversational(row)
        prompt = pair["prompt"]
        chosen, rejected = scorer.rewards([(prompt, pair["chosen"]), (prompt, pair["rejected"])])
        assert {key: out[key] for key in row} == row
        assert out["reward_chosen"] == pytest.approx(chosen, abs=TOLERANCE)
        assert out["reward_rejected"] == pytest.approx(rejected, abs=TOLERANCE)
        margin = out["reward_chosen"] - out["reward_rejected"]
        assert out["margin"] == pytest.approx(margin, abs=1e-9)
        assert "reward" not in out


def test_csv_and_gz(trained, scorer, run, tmp_path):
    ckpt = trained("full")[0]
    with open(tmp_path / "in.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "completion"])
        writer.writerows([["make tea,\nplease", 'say "no"'], ["why?", "it depends"]])
    rows = [messages("make tea,\nplease", 'say "no"'), messages("why?", "it depends")]
    expected = scorer.rewards([tuple(row.values()) for row in rows])
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress((tmp_path / "in.csv").read_bytes()))
    write_rows(tmp_path / "in.jsonl.gz", rows)
    out = tmp_path / "out.jsonl"
    for name in ("in.csv", "in.csv.gz", "in.jsonl.gz"):
        source = tmp_path / name
        status, _, error = run(score, "--ckpt", ckpt, "--input", source, "--output", out)
        assert status == 0, error
        assert [row["reward"] for row in read_rows(out)] == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        (
            "in.jsonl",
            '{"prompt": "a", "completion": "b"}\n\n{"prompt": "a", "completion": "secret\n',
            3,
        ),
        ("in.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": 5}\n', 2),
        ("in.jsonl", '{"prompt": "a", "completion": "b"}\n["secret"]\n', 2),
        ("in.jsonl", '{"completion": "secret"}\n', 1),
        ("in.jsonl", '{"question": "secret"}\n', 1),
        ("in.csv", "prompt,completion\na,b\nsecret\n", 3),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(name, text, line, trained, run, tmp_path):
    (tmp_path / name).write_text(text)
    source, out = tmp_path / name, tmp_path / "out.jsonl"
    command = ["--ckpt", trained("full")[0], "--input", source, "--output", out]
    status, _, error = run(score, *command, "--on_bad_row", "stop")
    assert status == 2 and f"{tmp_path / name}:{line}: " in error and "secret" not in error
    assert {path.name for path in tmp_path.iterdir()} == {name}


def test_an_over_long_completion_has_no_reward_and_is_counted(trained, run, tmp_path):
    rows = [
        {"prompt": "a", "completion": "tea " * 600},
        {"prompt": "tea " * 600, "completion": "a short answer"},
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "chosen": "b", "rejected": "tea " * 600},
    ]
    source = write_rows(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.jsonl"
    command = ["--ckpt", trained("full")[0], "--input", source, "--output", out]
    status, _, error = run(score, *command)
    scored = read_rows(out)
    assert status == 0
    assert scored[0]["reward"] is None
    assert scored[3]["reward_rejected"] is scored[3]["margin"] is None
    assert None not in (scored[1]["reward"], scored[2]["reward"], scored[3]["reward_chosen"])
    assert "scored 4 rows, 1 with the start of the prompt cut to fit 512 tokens" in error
    assert "2 with no reward because a completion alone is longer than 512 tokens" in error


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_the_last_of_the_rewards_after_each_token_is_the_reward(kind, trained, scorer):
    end = "<|im_end|>"
    if kind == "adapter":
        scorer = Scorer(str(trained(kind)[0]))
        end = "</s>"
    for text in TEXTS[:4]:
        prompt, completion = messages("what can you tell me?", text).values()
        steps = scorer.rewards_by_token(prompt, completion)
        assert steps[-1][1] == pytest.approx(scorer.rewards([(prompt, completion)])[0], abs=1e-5)
        joined = "".join(token for token, _ in steps[:-1])
        assert joined.strip().replace(" ", "") == text.strip().replace(" ", "")
        assert steps[-1][0] == end


def test_the_one_off_form(trained, scorer, run):
    """The best completion comes first; the letters are those of the order given."""
    texts = {"A": "sorry", "B": "some water", "C": "no"}
    values = scorer.rewards([sides_of("make tea", text) for text in texts.values()])
    rewards = dict(zip(texts, values, strict=True))
    first, second, third = sorted(texts, key=rewards.get, reverse=True)
    command = ["--ckpt", trained("full")[0], "--prompt", "make tea"]
    for text in texts.values():
        command += ["--completion", text]
    status, printed, _ = run(score, *command)
    assert status == 0
    assert printed.splitlines() == [
        *(f"{name}  {rewards[name]:+.4f}  {texts[name]}" for name in (first, second, third)),
        *(
            f"P({one} beats {other}) = {1 / (1 + math.exp(rewards[other] - rewards[one])):.3f}"
            for one, other in ((first, second), (first, third), (second, third))
        ),
    ]
    status, with_tokens, _ = run(score, *command, "--tokens")
    assert status == 0 and with_tokens.startswith(printed)
    assert f"\n{first}, reward after each token (only the last value was trained):" in with_tokens
    assert with_tokens.count("reward after each token") == 3
    (only,) = run(score, *command[:4], "--completion", "no")[1].splitlines()
    assert only == f"A  {rewards['C']:+.4f}  no"


ONE_OF_THREE = (
    "give --input FILE, or --prompt TEXT with one or more --completion TEXT, "
    "or --convert DIR, or --scored FILE with --mode"
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "nowhere.jsonl"], "no such file"),
        (["--prompt", "a"], ONE_OF_THREE),
        (["--input", "in.jsonl", "--convert", "plain"], "or --convert DIR"),
        (["--convert", "."], "--convert .: it exists already"),
        (["--prompt", ""], ONE_OF_THREE),
        (["--input", "README.md", "--completion", "a"], ONE_OF_THREE),
        (["--input", "README.md", "--output", "no/such/folder/out.jsonl"], "no such folder"),
        (["--input", "README.md", "--output", "tests"], "a folder; name a file in it"),
        (["--input", "README.md", "--output", "a.xlsx"], "no .xlsx is written"),
        (["--input", "README.md", "--output", "-", "--resume"], "name it with --output FILE"),
        (["--input", "README.md", "--split", "test"], "--split names a split of a folder"),
        (["--input", "README.md", "--data_dir", "x"], "--data_dir names a folder of a Hub data"),
        (["--input", "README.md", "--min_reward", "0"], "--min_reward goes with --mode rank"),
        (["--input", "README.md", "--n", "0"], "--n goes with --mode rank"),
        (
            ["--input", "README.md", "--endpoint", "x", "--token_budget", "9"],
            "--token_budget is for a model that is loaded here",
        ),
        (["--input", "nobody/data"], "if it is a Hub data set, name its split too"),
        (["--input", "README.md", "--tokens"], "--tokens belongs to --prompt"),
        (["--prompt", "a", "--completion", "b", "--output", "a"], "--output belongs to --input"),
        (["--prompt", "a", "--completion", "b", "--token_budget", "0"], "at least 1"),
    ],
)
def test_wrong_options_are_answered_before_loading(options, message, run, monkeypatch):
    monkeypatch.chdir(REPO)
    status, _, error = run(score, "--ckpt", "nothing-is-loaded", *options)
    assert status == 2 and message in error


def test_a_file_of_the_folder_that_is_read_is_not_overwritten(run, tmp_path):
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"prompt": "tea?", "completion": "yes"}\n')
    options = ["--input", tmp_path, "--split", "test", "--output", tmp_path / "train.jsonl"]
    status, _, error = run(score, "--ckpt", "nothing-is-loaded", *options)
    assert status == 2 and "the file that is read, and it would be overwritten" in error


@pytest.mark.parametrize("kind", ["full", "adapter", "encoder"])
def test_convert_writes_a_stock_checkpoint_with_the_same_rewards(
    kind, trained, run, score_rows, tmp_path
):
    ckpt = trained(kind)[0]
    texts, rewards = golden(ckpt)
    status, printed, error = run(score, "--ckpt", ckpt, "--convert", tmp_path / "plain")
    assert status == 0, error
    assert f"saved {tmp_path / 'plain'}: one label, rewards moved by at most " in printed
    assert "leaves out" not in printed
    plain_rewards = [row["reward"] for row in score_rows(tmp_path / "plain", texts)]
    assert plain_rewards == pytest.approx(rewards, abs=TOLERANCE)
    rendered = rendered_texts(AutoTokenizer.from_pretrained(tmp_path / "plain"), texts)
    classify = classifier(tmp_path / "plain")
    scores = [classify(text, add_special_tokens=False)[0]["score"] for text in rendered]
    assert scores == pytest.approx(rewards, abs=TOLERANCE)


def test_convert_says_what_stock_transformers_leaves_out(trained, run, score_rows, tmp_path):
    """A full model's second logit with a head bias, which Qwen2's own class has no place for."""
    model = build_reward_model(
        str(trained("full")[0]), head="two_logit", head_bias=True, head_init="normal"
    )
    model.score.bias.data = torch.tensor([9.0, -0.25])
    model.save_pretrained(tmp_path / "two")
    AutoTokenizer.from_pretrained(trained("full")[0]).save_pretrained(tmp_path / "two")
    status, printed, error = run(score, "--ckpt", tmp_path / "two", "--convert", tmp_path / "plain")
    assert status == 0, error
    assert "stock transformers leaves out -0.2500, the same for every completion" in printed
    texts = golden(trained("full")[0])[0][:4]
    expected = [row["reward"] for row in score_rows(tmp_path / "two", texts)]
    plain_rewards = [row["reward"] for row in score_rows(tmp_path / "plain", texts)]
    assert plain_rewards == pytest.approx(expected, abs=1e-5)


def test_convert_of_what_is_no_reward_model_leaves_nothing(standin, run, tmp_path):
    status, _, error = run(score, "--ckpt", standin("qwen"), "--convert", tmp_path / "plain")
    assert status == 2 and "tensors found and not used: lm_head.weight" in error
    assert not (tmp_path / "plain").exists()


# --- audit.py -------------------------------------------------------------------------------------


def overall_checks(folder) -> dict:
    """The checks of an audit that are about all pairs, by name."""
    report = json.loads((folder / "audit.json").read_text())
    return {check["name"]: check for check in report["checks"] if check["subset"] is None}


def test_audit_numbers_equal_those_of_score_py(trained, scorer, data, run, tmp_path):
    ckpt = trained("full")[0]
    status, printed, error = run(audit, "--ckpt", ckpt, "--probed", 12)
    assert status == 0, error
    assert f"open {ckpt / 'audit' / 'report.html'}" in printed and "24 pairs, " in printed
    assert "<html" in (ckpt / "audit" / "report.html").read_text(encoding="utf-8")
    pictures = list((ckpt / "audit").glob("*.png"))
    assert len(pictures) >= 3 and all(p.read_bytes()[:4] == b"\x89PNG" for p in pictures)

    run(score, "--ckpt", ckpt, "--input", data / "test.jsonl", "--output", tmp_path / "out.jsonl")
    rows = read_rows(tmp_path / "out.jsonl")
    margin = np.array([row["margin"] for row in rows])
    checks = overall_checks(ckpt / "audit")
    accuracy = ((margin > 0) + 0.5 * (margin == 0)).mean()
    assert checks["accuracy"]["n"] == 24
    assert checks["accuracy"]["value"] == pytest.approx(accuracy)
    assert checks["mean margin"]["value"] == pytest.approx(margin.mean(), abs=TOLERANCE)
    assert checks["tie rate"]["value"] == (margin == 0).mean()
    rewards, lengths = [], []
    for side in ("chosen", "rejected"):
        for row in rows:
            ids = scorer.tokenizer(row[side][0]["content"], add_special_tokens=False)["input_ids"]
            rewards.append(row[f"reward_{side}"])
            lengths.append(len(ids))
    pooled = np.corrcoef(lengths, rewards)[0, 1]
    assert checks["length correlation, pooled"]["value"] == pytest.approx(pooled, abs=1e-3)


def test_audit_on_a_file_and_fail_on(trained, data, run, tmp_path):
    """Pairs labelled as the model would label them pass; labelled the other way round they fail."""
    ckpt = trained("full")[0]
    foreign, _ = moved_checkpoint(ckpt, data, tmp_path)
    (foreign / "manifest.json").unlink()
    run(score, "--ckpt", ckpt, "--input", data / "test.jsonl", "--output", tmp_path / "out.jsonl")
    pairs = []
    for row in read_rows(tmp_path / "out.jsonl"):
        better, worse = row["chosen"], row["rejected"]
        if not row["margin"] > 0:
            better, worse = worse, better
        pairs.append({"prompt": row["prompt"], "chosen": better, "rejected": worse})
    right = write_rows(tmp_path / "right.jsonl", pairs)
    swapped = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs]
    wrong = write_rows(tmp_path / "wrong.jsonl", swapped)

    def audited(path, *options) -> int:
        out = tmp_path / path.stem
        command = ["--ckpt", foreign, "--data", path, "--output_dir", out, "--quick", *options]
        return run(audit, *command)[0]

    # A model that is not known to be Bradley-Terry is not judged on its calibration.
    assert audited(right) == 0
    assert audited(right, "--fail-on", "fail") == 0
    assert audited(right, "--fail-on", "warn") == 0
    assert audited(wrong) == 0
    assert audited(wrong, "--fail-on", "fail") == 1
    assert audited(wrong, "--fail-on", "warn") == 1
    accuracy = overall_checks(tmp_path / "right")["accuracy"]
    assert accuracy["value"] == 1 and accuracy["n"] == 24
    assert overall_checks(tmp_path / "wrong")["accuracy"]["value"] == 0


def moved_checkpoint(ckpt, data, folder):
    """The checkpoint with a test split of its own, to spoil."""
    shutil.copytree(ckpt, folder / "rm", ignore=shutil.ignore_patterns("checkpoint-*", "audit"))
    shutil.copytree(data, folder / "data")
    recipe = folder / "rm" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(data), str(folder / "data")))
    return folder / "rm", folder / "data" / "test.jsonl"


def test_audit_says_that_the_test_file_has_changed(trained, data, run, tmp_path):
    ckpt, test = moved_checkpoint(trained("full")[0], data, tmp_path)
    assert run(audit, "--ckpt", ckpt, "--quick")[0] == 0
    lines = test.read_text().splitlines(keepends=True)
    changed = lines[0].replace("here are three steps", "here are four steps")
    test.write_text("".join([changed, *lines[1:-2]]))
    shutil.rmtree(ckpt / "audit")
    status, _, error = run(audit, "--ckpt", ckpt, "--quick")
    assert status == 2 and "the test split has changed" in error
    assert "3 of its 24 pairs are no longer there and 1 are new" in error
    assert not (ckpt / "audit").exists()
    assert run(audit, "--ckpt", ckpt, "--data", test, "--quick")[0] == 0


def test_audit_of_a_foreign_model_needs_data(trained, data, run, tmp_path):
    ckpt, test = moved_checkpoint(trained("full")[0], data, tmp_path)
    (ckpt / "manifest.json").unlink()
    status, _, error = run(audit, "--ckpt", ckpt, "--quick")
    assert status == 2 and "records no test split" in error and "--data" in error
    assert run(audit, "--ckpt", ckpt, "--data", test, "--quick")[0] == 0


def test_audit_on_other_data_does_not_need_the_training_data(trained, data, run, tmp_path):
    """A checkpoint that was copied to another machine; its own temperature and card stay."""
    ckpt, test = moved_checkpoint(trained("full")[0], data, tmp_path)
    other = shutil.copy(test, tmp_path / "other.jsonl")
    shutil.rmtree(tmp_path / "data")
    card = (ckpt / "README.md").read_bytes()
    status, printed, error = run(audit, "--ckpt", ckpt, "--data", other, "--probed", 12)
    assert status == 0, error
    assert f"open {ckpt / 'audit-other' / 'report.html'}" in printed
    assert not (ckpt / "audit").exists()
    assert (ckpt / "README.md").read_bytes() == card
    not_measured = json.loads((ckpt / "audit-other" / "audit.json").read_text())["not_measured"]
    leakage = "Leakage: the training data cannot be read: "
    assert any(sentence.startswith(leakage) for sentence in not_measured)
    assert run(audit, "--ckpt", ckpt)[0] == 2  # its own test split is gone


@pytest.mark.parametrize("kind", ["adapter", "encoder"])
def test_audit_reads_every_kind_of_checkpoint(kind, trained, run, tmp_path):
    command = ["--ckpt", trained(kind)[0], "--output_dir", tmp_path, "--probed", 12]
    status, _, error = run(audit, *command)
    assert status == 0, error
    assert overall_checks(tmp_path)["accuracy"]["n"] == 24


def test_audit_writes_the_card_and_compares_the_policy(trained, standin, data, run, tmp_path):
    ckpt, _ = moved_checkpoint(trained("full")[0], data, tmp_path)
    before = (ckpt / "README.md").read_text(encoding="utf-8")
    for policy, verdict in ((standin("qwen"), "pass"), (standin("llama3"), "fail")):
        assert run(audit, "--ckpt", ckpt, "--quick", "--policy", policy)[0] == 0
        assert overall_checks(ckpt / "audit")["policy base"]["verdict"] == verdict
    card = (ckpt / "README.md").read_text(encoding="utf-8")
    assert "model-index:" in card and "Not audited" not in card
    # Beside the header and the section "Audit" every character stays.
    bodies = [CARD_SECTION.sub("", text.split("---", 2)[2]) for text in (before, card)]
    assert bodies[0] == bodies[1]
    result = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"][0]
    name = result["metrics"][0]["name"]
    assert name.startswith("accuracy (95% interval") and "n = 24" in name


def test_audit_compares_with_another_model_and_another_file(trained, data, run, tmp_path):
    """The other model has its own tokenizer.

    A completion of 120 words is too long for none of them.
    """
    ckpt, test = moved_checkpoint(trained("full")[0], data, tmp_path)
    others = [*read_rows(test)[:12], {"prompt": "q", "chosen": "same", "rejected": "same"}]
    ood = write_rows(tmp_path / "ood.jsonl", others)
    out = tmp_path / "out"
    options = ("--quick", "--compare", trained("encoder")[0], "--ood", ood, "--output_dir", out)
    status, _, error = run(audit, "--ckpt", ckpt, *options)
    assert status == 0, error
    checks = overall_checks(out)
    assert checks["comparison"]["n"] == 24 and checks["spillover accuracy"]["n"] == 12
    not_measured = json.loads((out / "audit.json").read_text())["not_measured"]
    left_out = "1 of 13 pairs of --ood were left out: 1 identical"
    assert any(sentence.startswith(left_out) for sentence in not_measured), not_measured
    # Its own scores file is the same model: no difference at all.
    options = ("--quick", "--compare", out / "scores.jsonl", "--output_dir", tmp_path / "b")
    assert run(audit, "--ckpt", ckpt, *options)[0] == 0
    assert overall_checks(tmp_path / "b")["comparison"]["value"] == 0
    status, _, error = run(audit, "--scores", out / "scores.jsonl", "--output_dir", out)
    assert status == 2 and "its scores.jsonl is read and would be overwritten" in error


def test_a_model_to_compare_with_is_looked_at_before_anything_is_scored(
    trained, data, run, tmp_path, monkeypatch
):
    """A typo cost the whole audit of a large model."""
    ckpt, _ = moved_checkpoint(trained("full")[0], data, tmp_path)
    monkeypatch.setattr(run_checkpoint, "score_data", None)
    status, _, error = run(audit, "--ckpt", ckpt, "--quick", "--compare", tmp_path / "nope")
    assert status == 2 and "no such folder" in error, error


def test_score_py_uses_the_temperature_that_an_audit_left(trained, data, run, tmp_path):
    ckpt, _ = moved_checkpoint(trained("full")[0], data, tmp_path)
    sides = ["--prompt", "how can you make tea?"]
    sides += ["--completion", TEXTS[0], "--completion", TEXTS[1]]
    plain = run(score, "--ckpt", ckpt, *sides)[1]
    (ckpt / "audit").mkdir()
    (ckpt / "audit" / "audit.json").write_text('{"temperature": 0.5}')
    calibrated = run(score, "--ckpt", ckpt, *sides)[1]
    assert "temperature" not in plain
    assert "(margins divided by 0.50, the temperature that the audit found)" in calibrated

    def odds(text):
        p = float(re.search(r"P\([AB] beats [AB]\) = (\d\.\d+)", text)[1])
        return math.log(p / (1 - p))

    rewards = [float(x) for x in re.findall(r"^[AB]  ([+-]\d\.\d+)  ", plain, re.M)]
    assert odds(plain) == pytest.approx(rewards[0] - rewards[1], abs=5e-3)
    assert odds(calibrated) == pytest.approx(2 * (rewards[0] - rewards[1]), abs=1e-2)
