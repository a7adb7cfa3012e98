"""python data/quickstart/make.py [--model]

Makes the demonstration whose truth is known: preference pairs labelled by simulated raters
(train.jsonl.gz and test.jsonl.gz), and a tiny untrained language model (model/). With --model, only
the model folder.

The raters' utility and their length bias are stated below, so an audit can be checked against what
was planted. The pairs need the standard library alone. What is already there and right is left as
it is: repeating takes a second.
"""

import argparse
import gzip
import io
import itertools
import json
import math
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PHRASES = json.loads((HERE / "phrases.json").read_text(encoding="utf-8"))

SEED = 1
TRAIN_PAIRS = 5000
TEST_PAIRS = 2200  # a 95% interval of about +-2 points

# An answer's utility is u = RELEVANCE * relevant + CANDOUR * candid + COURTESY * courtesy, where
# courtesy is -1 (rude), 0 (plain) or 1 (polite).
# No sum of differences is zero: in every pair one answer is truly better.
RELEVANCE = 2.0
CANDOUR = 1.5
COURTESY = 0.7
# P(A preferred) = sigmoid((u_A - u_B + length_bias * (words_A - words_B) / LENGTH_SCALE) / NOISE)
NOISE = 0.8
LENGTH_SCALE = 12  # words; about two filler sentences
TRAIN_LENGTH_BIAS = 1.0  # the planted fault: training raters like long answers
TEST_LENGTH_BIAS = 0.0  # test raters do not, so the fault can be measured
TEST_VOTES = 3

SUBSETS = {
    "relevance": 0.25,
    "candour": 0.21,
    "courtesy": 0.21,
    "multi-turn": 0.33,
}  # shares of the pairs
# multi-turn: the share of wrong answers that fit an earlier question; the others fit no question
STALE = 0.5
MIXED = 0.2  # chance that an attribute other than the subset's own is drawn for each answer apart
# The share of answers that say whether they keep to the question: relevance that needs no matching.
ANNOUNCED = 0.25
MAX_FILLERS = (
    4  # 0-4 neutral sentences an answer, whatever its quality: length says nothing about utility
)

VOCAB_SIZE = 2048  # an upper limit: the words of the pairs need fewer
HIDDEN_SIZE = 64
LAYERS = 2
HEADS = 4
INITIALIZER_RANGE = 0.1  # larger than Qwen's 0.02: so small a model learns sooner
MAX_LENGTH = 512
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass
class Answer:
    text: str
    utility: float

    @property
    def words(self):
        return len(self.text.split())


# --- Text -----------------------------------------------------------------------------------------


def draw_tasks(rng, n):
    """n tasks of n different topics, each as (task, its pieces of advice)."""
    topics = rng.sample(list(PHRASES["topics"].values()), n)
    return [rng.choice(list(topic.items())) for topic in topics]


def answer(rng, advice, relevant, candid, courtesy):
    """An answer with the given qualities; its filler sentences are drawn apart from them."""
    first, second = rng.sample(advice, 2)
    body, closing = rng.choice(PHRASES["candid" if candid else "evasive"])
    sentences = [body.format(first=first, second=second), closing]
    if rng.random() < ANNOUNCED:
        sentences.insert(0, rng.choice(PHRASES["on_topic" if relevant else "off_topic"]))
    if courtesy:
        sentences.insert(0, rng.choice(PHRASES["polite" if courtesy > 0 else "rude"]))
    sentences += rng.sample(PHRASES["fillers"], rng.randint(0, MAX_FILLERS))
    return Answer(
        " ".join(sentences), RELEVANCE * relevant + CANDOUR * candid + COURTESY * courtesy
    )


def draw_dialogue(rng, subset):
    """A prompt in transcript form, its first human turn, and two answers.

    The answers differ in what the subset is about.
    """
    turns = rng.choice([2, 2, 3]) if subset == "multi-turn" else 1
    *tasks, (_, other_advice) = draw_tasks(rng, turns + 1)
    question = f"{tasks[0][0]} {rng.choice(PHRASES['contexts'])}".strip()
    opener = rng.choice(PHRASES["openers"])
    asked = rng.choice(PHRASES["questions"]).format(task=question)
    first_turn = f"{opener} {asked}".strip()
    prompt = f"\n\nHuman: {first_turn}"
    for (_, advice), (task, _) in itertools.pairwise(tasks):
        reply = rng.choice(PHRASES["replies"]).format(first=rng.choice(advice))
        follow_up = rng.choice(PHRASES["follow_ups"]).format(task=task)
        prompt += f"\n\nAssistant: {reply}\n\nHuman: {follow_up}"
    prompt += "\n\nAssistant: "

    # Both answers share the qualities that the subset is not about, save for a mixed minority.
    advice = [tasks[-1][1]] * 2
    candid = [rng.random() < 0.75] * 2
    courtesy = [rng.choice([-1, 0, 0, 1])] * 2
    if rng.random() < MIXED:
        candid[1] = rng.random() < 0.75
    if rng.random() < MIXED:
        courtesy[1] = rng.choice([-1, 0, 0, 1])
    if subset == "candour":
        candid = [True, False]
    elif subset == "courtesy":
        courtesy = [1, -1]
    else:
        stale = subset == "multi-turn" and rng.random() < STALE
        advice[1] = rng.choice(tasks[:-1])[1] if stale else other_advice
    relevant = [True, advice[0] == advice[1]]
    qualities = zip(advice, relevant, candid, courtesy, strict=True)
    return prompt, first_turn, [answer(rng, *each) for each in qualities]


# --- Raters ---------------------------------------------------------------------------------------


def preference(a, b, length_bias):
    """P(a rater prefers a to b)."""
    advantage = a.utility - b.utility + length_bias * (a.words - b.words) / LENGTH_SCALE
    return 1 / (1 + math.exp(-advantage / NOISE))


def bayes_accuracy(a, b):
    """P(the majority of three unbiased raters sides with the truly better answer).

    It is p^3 + 3 p^2 (1 - p), where p is the probability that one of them does.
    """
    p = (
        preference(a, b, length_bias=0)
        if a.utility > b.utility
        else preference(b, a, length_bias=0)
    )
    return p**3 + 3 * p**2 * (1 - p)


def draw_rows(rng, n, votes, length_bias, forbidden=frozenset(), rate=None):
    """n labelled rows, their first human turns, and the share whose label is on the better answer.

    The texts do not depend on length_bias, only the labels do. forbidden: first human turns of the
    other split. rate: more columns, made from the chosen and the rejected Answer.
    """
    rows, first_turns, seen, agreed = [], set(), set(), 0
    while len(rows) < n:
        (subset,) = rng.choices(list(SUBSETS), weights=list(SUBSETS.values()))
        prompt, first_turn, (a, b) = draw_dialogue(rng, subset)
        for_a = sum(rng.random() < preference(a, b, length_bias) for _ in range(votes))
        pair = (prompt, *sorted((a.text, b.text)))
        if first_turn in forbidden or pair in seen or a.text == b.text:
            continue
        seen.add(pair)
        first_turns.add(first_turn)
        chosen, rejected = (a, b) if for_a > votes / 2 else (b, a)
        agreed += chosen.utility > rejected.utility
        row = {"chosen": prompt + chosen.text, "rejected": prompt + rejected.text, "subset": subset}
        if votes == TEST_VOTES:
            row["votes"] = [max(for_a, votes - for_a), min(for_a, votes - for_a)]
            row["bayes_accuracy"] = round(bayes_accuracy(a, b), 6)
        row |= rate(chosen, rejected) if rate else {}
        rows.append(row)
    return rows, first_turns, agreed / n


def make_pairs(seed=SEED, length_bias=TRAIN_LENGTH_BIAS, rate=None):
    """{"train": rows, "test": rows}, and for each the share of labels on the truly better side."""
    test, taken, test_agreed = draw_rows(
        random.Random(f"{seed} test"), TEST_PAIRS, TEST_VOTES, TEST_LENGTH_BIAS
    )
    rng = random.Random(f"{seed} train")
    train, _, train_agreed = draw_rows(rng, TRAIN_PAIRS, 1, length_bias, forbidden=taken, rate=rate)
    return {"train": train, "test": test}, {"train": train_agreed, "test": test_agreed}


def write_rows(path, rows):
    """Gzipped JSON lines. The gzip header has no time and no name: equal rows give equal bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if path.exists() and gzip.decompress(path.read_bytes()) == text:
        return
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as file:
        file.write(text)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(packed.getvalue())
    unfinished.replace(path)


# --- Model ----------------------------------------------------------------------------------------


def make_tokenizer(texts):
    """A byte-level BPE tokenizer in Qwen's manner, trained on the texts."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    # Qwen2's own pattern: transformers may load the files as a Qwen2 tokenizer, which brings this
    # pattern along.
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
    )


def make_model(path, train_rows, seed=SEED):
    """Write the folder of a tiny Qwen2 with seeded random weights, and of its tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer(row[side] for row in train_rows for side in ("chosen", "rejected"))
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)

    # Written beside and renamed, so that an interrupted run leaves no half folder behind.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    if path.exists():
        shutil.rmtree(path)
    unfinished.rename(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("--model", action="store_true", help="only write the model folder")
    only_model = parser.parse_args().model

    pairs, agreed = make_pairs()
    if not only_model:
        for split, rows in pairs.items():
            write_rows(HERE / f"{split}.jsonl.gz", rows)
            print(
                f"{split}.jsonl.gz: {len(rows)} pairs, {agreed[split]:.3f} of the labels "
                "on the truly better side"
            )
        ceiling = sum(row["bayes_accuracy"] for row in pairs["test"]) / len(pairs["test"])
        print(f"Bayes ceiling on test: {ceiling:.4f}")

    if (HERE / "model").exists():
        print("model: already there; delete the folder to make it anew")
    else:
        make_model(HERE / "model", pairs["train"])
        print("model: written")


if __name__ == "__main__":
    main()
