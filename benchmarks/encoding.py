"""Pairs a second from text to token ids, by the number of control tokens of the tokenizer.

    python benchmarks/encoding.py                     # a few minutes, one thread
    python benchmarks/encoding.py --pairs 500 --rounds 3

It reads the pairs of HH-RLHF that lie in ../shared/data/hh-rlhf (or --data). The tokenizer is a
byte-level BPE of 32,000 tokens trained on them, with the control tokens and the chat template of
a real model: Qwen2.5 with its first 3 and with all 22, Llama 3 with 256, Gemma 3 with 6,242. The
columns, each for the same pairs, both sides of each, template and tokenizer:

- earlier: the saved template of earlier checkpoints, which loops over all control tokens
- saved: the saved template as others use it, `apply_chat_template` and the tokenizer, a text a call
- ours: `reward.data.encoding.encode_each`, a pair a call, as score.py uses it
- plain: the tokenizer alone on all texts at once, already rendered

A figure is the best of the rounds, in seconds of the CPU, so that a busy machine disturbs little.
Ids must be the same in all columns.
"""

import argparse
import gzip
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a thread
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tests")]
from earlier_template import earlier_template

from reward.data import encoding
from reward.data.encoding import RefusedText, encode_each, prepare_tokenizer, render
from reward.data.formats import to_pairs

VOCABULARY = 32_000
LOWEST_EARLIER = 30  # pairs that the earlier template renders, where it takes long

QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_OTHERS = (
    "object_ref_start object_ref_end box_start box_end quad_start quad_end vision_start vision_end "
    "vision_pad image_pad video_pad fim_prefix fim_middle fim_suffix fim_pad repo_name file_sep "
    "tool_call tool_response"
).split()
LLAMA = (
    "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> "
    "<|python_tag|>"
).split()
GEMMA = ("<pad> <eos> <bos> <unk> <mask> [multimodal] <start_of_turn> <end_of_turn>").split()
# name -> control tokens, BOS, end of a text, the chat template of TRL
KINDS = {
    "Qwen2.5, its first 3": (QWEN, None, "<|im_end|>", "qwen2_5"),
    "Qwen2.5": ([*QWEN, *(f"<|{name}|>" for name in QWEN_OTHERS)], None, "<|im_end|>", "qwen2_5"),
    "Llama 3": (
        [*LLAMA, *(f"<|reserved_special_token_{i}|>" for i in range(250))],
        "<|begin_of_text|>",
        "<|eot_id|>",
        "llama3",
    ),
    "Gemma 3": ([*GEMMA, *(f"<unused{i}>" for i in range(6234))], "<bos>", "<eos>", "gemma3"),
}


def read_rows(folder: Path) -> list[dict]:
    """The rows of all files of a folder."""
    rows = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows += [json.loads(line) for line in file]
    return rows


def trained_bpe(rows: list[dict]) -> str:
    """A byte-level BPE trained on the rows, as JSON."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((row[side] for row in rows for side in ("chosen", "rejected")), trainer)
    return bpe.to_str()


def make_tokenizer(kind: str, bpe: str) -> PreTrainedTokenizerFast:
    """The BPE with the control tokens and the prepared template of one of KINDS."""
    control, bos, eos, template = KINDS[kind]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(bpe), bos_token=bos, eos_token=eos
    )
    tokens = [AddedToken(token, special=True, normalized=False) for token in control]
    tokenizer.add_tokens(tokens, special_tokens=True)
    path = Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja"
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    start = time.process_time()
    prepare_tokenizer(tokenizer, is_encoder=False)
    print(f"{kind}: prepared in {time.process_time() - start:.2f} s", file=sys.stderr)
    return tokenizer


def best_time(function: Callable, rounds: int) -> tuple[float, list]:
    """The shortest time of a call in seconds, and what it returns."""
    times = []
    for _ in range(rounds):
        encoding._piece_ids.cache_clear()
        start = time.process_time()
        result = function()
        times.append(time.process_time() - start)
    return min(times), result


def measure(kind: str, bpe: str, rows: list[dict], rounds: int) -> list[str]:
    """One line of the table: pairs a second."""
    tokenizer = make_tokenizer(kind, bpe)
    pairs = []
    for row in rows:
        for pair in to_pairs(row):
            try:
                render(tokenizer, pair["prompt"], pair["chosen"])
                render(tokenizer, pair["prompt"], pair["rejected"])
            except RefusedText:
                continue  # Gemma's template wants alternating roles
            pairs.append(pair)
    conversations = []
    for pair in pairs:
        conversations += [pair["prompt"] + pair["chosen"], pair["prompt"] + pair["rejected"]]

    def saved(some: list, template: str | None = None) -> list[list[int]]:
        options = {"chat_template": template, "return_dict": False}
        return [tokenizer.apply_chat_template(one, **options) for one in some]

    def ours() -> list[list[int]]:
        encodings = []
        for pair in pairs:
            encodings += encode_each(tokenizer, pair["prompt"], [pair["chosen"], pair["rejected"]])
        return encodings

    texts = tokenizer.apply_chat_template(conversations, tokenize=False)
    earlier = earlier_template(tokenizer)
    few = max(LOWEST_EARLIER, min(len(pairs), 20_000 // len(KINDS[kind][0])))
    earlier_time, earlier_ids = best_time(lambda: saved(conversations[: 2 * few], earlier), 1)
    saved_time, saved_ids = best_time(lambda: saved(conversations), rounds)
    our_time, our_ids = best_time(ours, rounds)
    plain_time, plain_ids = best_time(
        lambda: tokenizer(texts, add_special_tokens=False)["input_ids"], rounds
    )
    assert saved_ids == our_ids == plain_ids
    assert earlier_ids == our_ids[: len(earlier_ids)]
    tokens = sum(map(len, our_ids)) / len(our_ids)
    figures = [len(earlier_ids) / 2 / earlier_time]
    figures += [len(pairs) / seconds for seconds in (saved_time, our_time, plain_time)]
    cells = [kind, f"{len(KINDS[kind][0]):,}", f"{tokens:.0f}"]
    cells += [f"{figure:,.0f}" if figure >= 10 else f"{figure:.1f}" for figure in figures]
    return [*cells, f"{2 * figures[2]:,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Pairs a second from text to token ids.")
    parser.add_argument("--data", type=Path, default=REPO.parent / "shared/data/hh-rlhf")
    parser.add_argument("--pairs", type=int, default=1500, help="evenly over all rows")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = read_rows(args.data)
    if not rows:
        parser.error(f"--data {args.data}: no *.jsonl.gz there")
    bpe = trained_bpe(rows)
    chosen_rows = rows[:: max(1, len(rows) // args.pairs)][: args.pairs]
    header = (
        "tokenizer | control tokens | tokens a text | earlier template | saved template | ours | "
        "plain, one batch | ours, texts/s"
    )
    print(f"| {header} |\n|{'---|' * (header.count('|') + 1)}")
    for kind in KINDS:
        print(f"| {' | '.join(measure(kind, bpe, chosen_rows, args.rounds))} |", flush=True)
    names = ("transformers", "tokenizers", "jinja2")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    print(f"\n{date.today()}, {platform.machine()}, one thread, {versions}")


if __name__ == "__main__":
    main()
