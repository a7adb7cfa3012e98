"""Makes the demonstration whose truth is known: `python data/quickstart/make.py [--model]`

It makes preference pairs labelled by simulated raters (train.jsonl.gz and test.jsonl.gz), and a
tiny untrained language model (model/). With --model, only the model folder.

The raters' utility and their length bias are stated below, so an audit can be checked against what
was planted. The pairs need the standard library alone. Files that exist and are right are left
alone, so that a second run takes a second.
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
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PHRASES = json.loads((HERE / "phrases.json").read_text(encoding="utf-8"))

SEED = 1
TRAIN_PAIRS = 5000
TEST_PAIRS = 2200  # a 95% interval of about +-2 points

# The utility of an answer, where courtesy is -1 (rude), 0 (plain) or 1 (polite):
#     u = RELEVANCE * relevant + CANDOUR * candid + COURTESY * courtesy
# No sum of differences is zero: in every pair one answer is truly better.
RELEVANCE = 2.0
CANDOUR = 1.5
COURTESY = 0.7
# What a rater prefers:
#     advantage = u_A - u_B + length_bias * (words_A - words_B) / LENGTH_SCALE
#     P(A preferred) = sigmoid(advantage / NOISE)
NOISE = 0.8
LENGTH_SCALE = 12  # words; about two filler sentences
TRAIN_LENGTH_BIAS = 1.0  # the planted fault: training raters like long answers
TEST_LENGTH_BIAS = 0.0  # test raters do not, so the fault can be measured
TEST_VOTES = 3

# The shares of the pairs.
SUBSETS = {"relevance": 0.25, "candour": 0.21, "courtesy": 0.21, "multi-turn": 0.33}
# Multi-turn: the share of wrong answers that fit an earlier question; the others fit no question.
STALE = 0.5
# The chance that a quality which the subset is not about is drawn anew for the second answer.
MIXED = 0.2
# The share of answers that say whether they keep to the question. There a model sees the relevance
# without comparing the answer with the question.
ANNOUNCED = 0.25
# An answer has 0 to 4 neutral sentences, whatever its quality: length says nothing about utility.
MAX_FILLERS = 4

VOCAB_SIZE = 2048  # an upper limit: the words of the pairs need fewer
HIDDEN_SIZE = 64
LAYERS = 2
HEADS = 2  # of 32 numbers each: a serving engine such as vLLM supports 32 and 64, not 16
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
    """A completion and its true utility."""

    text: str
    utility: float

    @property
    def words(self) -> int:
        """The number of its words."""
        return len(self.text.split())


# --- Text -----------------------------------------------------------------------------------------


def draw_tasks(rng: random.Random, n: int) -> list[tuple[str, list[str]]]:
    """Draw n tasks of n different topics, each as (task, its pieces of advice)."""
    topics = rng.sample(list(PHRASES["topics"].values()), n)
    return [rng.choice(list(topic.items())) for topic in topics]


def answer(
    rng: random.Random, advice: list[str], relevant: bool, candid: bool, courtesy: int
) -> Answer:
    """Draw an answer with the given qualities.

    The number of its filler sentences does not depend on the qualities.

    Args:
        rng: The source of randomness.
        advice: At least two pieces of advice, of which the answer tells two.
        relevant: Whether the advice fits the question.
        candid: Whether the answer tells the advice plainly, not evasively.
        courtesy: -1 (rude), 0 (plain) or 1 (polite).
    """
    tone, announcement, greeting = "evasive", "off_topic", "rude"
    if candid:
        tone = "candid"
    if relevant:
        announcement = "on_topic"
    if courtesy > 0:
        greeting = "polite"
    first, second = rng.sample(advice, 2)
    body, closing = rng.choice(PHRASES[tone])
    sentences = [body.format(first=first, second=second), closing]
    if rng.random() < ANNOUNCED:
        sentences.insert(0, rng.choice(PHRASES[announcement]))
    if courtesy:
        sentences.insert(0, rng.choice(PHRASES[greeting]))
    sentences += rng.sample(PHRASES["fillers"], rng.randint(0, MAX_FILLERS))
    utility = RELEVANCE * relevant + CANDOUR * candid + COURTESY * courtesy
    return Answer(" ".join(sentences), utility)


def draw_dialogue(rng: random.Random, subset: str) -> tuple[str, str, list[Answer]]:
    """Draw a prompt and two answers that differ in what the subset is about.

    Returns:
        The prompt in transcript form, its first human turn, and the two answers.
    """
    turns = 1
    if subset == "multi-turn":
        turns = rng.choice([2, 2, 3])
    *tasks, (_, other_advice) = draw_tasks(rng, turns + 1)
    question = f"{tasks[0][0]} {rng.choice(PHRASES['contexts'])}".strip()
    opener = rng.choice(PHRASES["openers"])
    first_turn = f"{opener} {rng.choice(PHRASES['questions']).format(task=question)}".strip()
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
        advice[1] = other_advice
        if stale:
            advice[1] = rng.choice(tasks[:-1])[1]
    relevant = [True, advice[0] == advice[1]]
    qualities = zip(advice, relevant, candid, courtesy, strict=True)
    return prompt, first_turn, [answer(rng, *each) for each in qualities]


def utility_of(question: str, text: str) -> float:
    """Read the true utility of an answer back from its text.

    A text that nobody drew, such as a policy's, has the share of its pieces of advice that fit the
    question for its relevance, and the share of its ways of telling them that are candid.

    Args:
        question: The last turn of the prompt.
        text: The answer.
    """
    advice = {}  # each piece of advice -> its task
    for topic in PHRASES["topics"].values():
        for task, pieces in topic.items():
            advice |= dict.fromkeys(pieces, task)
    fits = [task in question for piece, task in advice.items() if piece in text]
    told = {tone: _found(text, _bodies(tone)) for tone in ("candid", "evasive")}
    polite, rude = _found(text, PHRASES["polite"]), _found(text, PHRASES["rude"])
    relevant = sum(fits) / max(len(fits), 1)
    candid = told["candid"] / max(sum(told.values()), 1)
    courtesy = (polite > rude) - (polite < rude)
    return RELEVANCE * relevant + CANDOUR * candid + COURTESY * courtesy


def _bodies(tone: str) -> list[str]:
    """How sentences of a tone begin, up to the advice."""
    return [body.split("{first}")[0] for body, _ in PHRASES[tone]]


def _found(text: str, phrases: list[str]) -> int:
    """How often the phrases occur in a text."""
    return sum(text.count(phrase) for phrase in phrases)


# --- Raters ---------------------------------------------------------------------------------------


def preference(a: Answer, b: Answer, length_bias: float) -> float:
    """P(a rater prefers a to b)."""
    advantage = a.utility - b.utility + length_bias * (a.words - b.words) / LENGTH_SCALE
    return 1 / (1 + math.exp(-advantage / NOISE))


def bayes_accuracy(a: Answer, b: Answer) -> float:
    """P(the majority of three unbiased raters prefers the truly better answer).

    It is p^3 + 3 p^2 (1 - p), where p is the chance that one of them does.
    """
    better, worse = a, b
    if b.utility > a.utility:
        better, worse = b, a
    p = preference(better, worse, length_bias=0)
    return p**3 + 3 * p**2 * (1 - p)


@dataclass
class DrawnRows:
    """The labelled rows of one split."""

    rows: list[dict]
    first_turns: set[str]  # the first human turns of the rows
    agreed: float  # the share of rows whose label sides with the truly better answer


def draw_rows(
    rng: random.Random,
    n: int,
    votes: int,
    length_bias: float,
    forbidden: Set[str] = frozenset(),
    rate: Callable[[Answer, Answer], dict] | None = None,
) -> DrawnRows:
    """Draw n labelled rows.

    The texts do not depend on length_bias, only the labels do.

    Args:
        rng: The source of randomness.
        n: The number of rows.
        votes: The number of raters of a pair. The majority decides the label.
        length_bias: How much the raters like long answers; 0 for not at all.
        forbidden: First human turns of the other split, which no row may have.
        rate: A function from the chosen and the rejected Answer to more columns of the row.
    """
    rows: list[dict] = []
    first_turns: set[str] = set()
    seen: set[tuple] = set()  # the prompt and the two texts of each row
    agreed = 0
    while len(rows) < n:
        (subset,) = rng.choices(list(SUBSETS), weights=list(SUBSETS.values()))
        prompt, first_turn, (a, b) = draw_dialogue(rng, subset)
        for_a = sum(rng.random() < preference(a, b, length_bias) for _ in range(votes))
        pair = (prompt, *sorted((a.text, b.text)))
        if first_turn in forbidden or pair in seen or a.text == b.text:
            continue
        seen.add(pair)
        first_turns.add(first_turn)
        chosen, rejected = b, a
        if for_a > votes / 2:
            chosen, rejected = a, b
        agreed += chosen.utility > rejected.utility
        row = {"chosen": prompt + chosen.text, "rejected": prompt + rejected.text, "subset": subset}
        if votes == TEST_VOTES:
            row["votes"] = [max(for_a, votes - for_a), min(for_a, votes - for_a)]
            row["bayes_accuracy"] = round(bayes_accuracy(a, b), 6)
        if rate:
            row |= rate(chosen, rejected)
        rows.append(row)
    return DrawnRows(rows, first_turns, agreed / n)


def make_pairs(
    seed: int = SEED,
    length_bias: float = TRAIN_LENGTH_BIAS,
    rate: Callable[[Answer, Answer], dict] | None = None,
) -> tuple[dict[str, list[dict]], dict[str, float]]:
    """Draw both splits.

    Args:
        seed: Decides the texts and the labels.
        length_bias: The length bias of the training raters.
        rate: A function that makes more columns of the training rows, as in `draw_rows`.

    Returns:
        The rows by split, and for each split the share of labels on the truly better side.
    """
    rng = random.Random(f"{seed} test")
    test = draw_rows(rng, TEST_PAIRS, TEST_VOTES, TEST_LENGTH_BIAS)
    rng = random.Random(f"{seed} train")
    train = draw_rows(rng, TRAIN_PAIRS, 1, length_bias, forbidden=test.first_turns, rate=rate)
    rows = {"train": train.rows, "test": test.rows}
    return rows, {"train": train.agreed, "test": test.agreed}


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write gzipped JSON lines: the same rows give the same bytes.

    The gzip header has neither a time nor a name.
    """
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


def make_tokenizer(texts: Iterable[str]):
    """Train a byte-level BPE tokenizer like Qwen's on the texts."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    # Qwen2's own pattern: transformers may load the files as a Qwen2 tokenizer, which brings this
    # pattern along.
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
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


def make_model(path: Path, train_rows: list[dict], seed: int = SEED) -> None:
    """Write the folder of a tiny Qwen2 with seeded random weights, and of its tokenizer."""
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns if it has to find out
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

    # The folder gets its name when it is complete, so an interrupted run leaves no half folder.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    if path.exists():
        shutil.rmtree(path)
    unfinished.rename(path)


def has_our_shape(path: Path) -> bool:
    """Whether a folder holds a model of the sizes above; an earlier version had others."""
    file = path / "config.json"
    if not file.is_file():
        return False
    config = json.loads(file.read_text(encoding="utf-8"))
    shape = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    return shape == (HIDDEN_SIZE, LAYERS, HEADS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("--model", action="store_true", help="only write the model folder")
    only_model = parser.parse_args().model

    pairs, agreed = make_pairs()
    if not only_model:
        for split, rows in pairs.items():
            write_rows(HERE / f"{split}.jsonl.gz", rows)
            agreement = f"{agreed[split]:.3f} of the labels on the truly better side"
            print(f"{split}.jsonl.gz: {len(rows)} pairs, {agreement}")
        ceiling = sum(row["bayes_accuracy"] for row in pairs["test"]) / len(pairs["test"])
        print(f"Bayes ceiling on test: {ceiling:.4f}")

    if has_our_shape(HERE / "model"):
        print("model: already there; delete the folder to make it anew")
    else:
        make_model(HERE / "model", pairs["train"])
        print("model: written")


if __name__ == "__main__":
    main()
