"""Training and scoring against plain TRL, side by side in one process.

    python benchmarks/speed.py --shapes tiny,2-layers --threads 1                  # minutes
    python benchmarks/speed.py --shapes 0.5b --batch_sizes 4 --steps 1 --rounds 2  # half an hour
    python benchmarks/speed.py --shapes 8-layers --batch_sizes 8 --bf16            # bf16 beside it
    python benchmarks/speed.py --device cuda --shapes 0.5b,1.5b,7b-lora            # bf16

Every variant is the real trainer on the same model: its collator, training_step and a fused AdamW
step, on batches that stand evenly over an epoch of its own sampler. Variants take turns within a
round. A ratio is TRL's time over the variant's in a round; printed is the median (lowest to
highest) of the rounds. First, packed is checked against padded. --output FILE gets all numbers as
JSON. With one thread of a CPU the seconds are the process's own, so that other work on the machine
changes little. The MFU is the time that a matrix product would need for the tokens computed, over
the time taken: by --peak_tflops on a GPU, by the machine's own matrix product on a CPU.

--pairs is any source that train_rm.py reads (default: HH-RLHF's harmless-base test split). The
tokenizer is a BPE trained on them, under Qwen2.5's chat template; weights are random.
"""

import argparse
import copy
import ctypes
import gc
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import trl
from accelerate.utils import send_to_device
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, Qwen2Config
from transformers.integrations.liger import apply_liger_kernel
from trl import RewardConfig, RewardTrainer

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
from reward.data.encoding import encode_each, prepare_tokenizer
from reward.data.splits import load_test_split
from reward.data.tokens import DecodedPair, decode_sides
from reward.model import TOKEN_BUDGET
from reward.model.batches import SIDES, own_tokens, pack, padded, shared_prefix
from reward.model.forwards import Forwards
from reward.model.heads import Float32Head, without_adapter
from reward.model.packed_attention import enable_packing, self_test
from reward.model.scorer import Scorer
from reward.training.trainer import PairOptions, PairTrainer

REAL_VOCABULARY, SMALL_VOCABULARY = 151_936, 16_000
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
SHAPES = {  # Qwen2.5's, as far as they are real
    "tiny": (256, 1024, 4, 4, 2, SMALL_VOCABULARY),
    "2-layers": (896, 4864, 2, 14, 2, SMALL_VOCABULARY),
    "8-layers": (896, 4864, 8, 14, 2, SMALL_VOCABULARY),
    "0.5b": (896, 4864, 24, 14, 2, REAL_VOCABULARY),
    "1.5b": (1536, 8960, 28, 12, 2, REAL_VOCABULARY),
    "7b-lora": (3584, 18944, 28, 28, 4, REAL_VOCABULARY),
}
TRAINING = ("TRL", "padded", "padded, by length", "packed", "prefix + packed")
IN_BF16 = ", bf16"  # the end of a variant's name
BF16 = ("TRL, bf16", "prefix + packed, bf16")


# --- The data -------------------------------------------------------------------------------------


def read_texts(source: str, data_dir: str | None) -> list[DecodedPair]:
    """The texts of each pair of a source's test split, or of a file."""
    if source == "Anthropic/hh-rlhf" and data_dir is None:
        data_dir = "harmless-base"
    split = "test"
    if Path(source).is_file():
        split = source
    table, _ = load_test_split(
        [{"path": source, "data_dir": data_dir, "split": None, "test_split": split}]
    )
    columns = ["prompt", "chosen", "rejected", "tools"]
    return [decode_sides(row) for row in table.select_columns(columns)]


def encode_pairs(pairs: list[DecodedPair]) -> tuple[list[dict], PreTrainedTokenizerFast]:
    """Encoded pairs, and the tokenizer that was trained on their text."""
    text = []
    for pair in pairs:
        for messages in (pair.prompt, pair.chosen, pair.rejected):
            text += [message["content"] for message in messages]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=SMALL_VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(text, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=special[2], pad_token=special[0]
    )
    template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    prepare_tokenizer(tokenizer, is_encoder=False)
    encoded = []
    for pair in pairs:
        chosen, rejected = encode_each(tokenizer, pair.prompt, [pair.chosen, pair.rejected])
        encoded.append(
            {
                "chosen_ids": chosen,
                "rejected_ids": rejected,
                "length": max(len(chosen), len(rejected)),
            }
        )
    return encoded, tokenizer


def best_of(pairs: list[dict], n: int) -> list[list[list[int]]]:
    """n completions for each prompt: the prompt's own two, and those of others."""
    rng = random.Random(0)
    tails = []  # (prompt, completion) of every side
    for pair in pairs:
        shared = shared_prefix(pair["chosen_ids"], pair["rejected_ids"])
        tails += [(pair["chosen_ids"][:shared], pair[side][shared:]) for side in SIDES]
    groups = []
    for (prompt, one), (_, other) in zip(tails[::2], tails[1::2], strict=True):
        others = [rng.choice(tails)[1] for _ in range(n - 2)]
        groups.append([prompt + tail for tail in (one, other, *others)])
    return groups


def padded_tokens(texts: list[list[int]]) -> int:
    return len(texts) * max(map(len, texts))


# --- The machine ----------------------------------------------------------------------------------


class Machine:
    """What measures the work.

    Args:
        device: `cpu` or `cuda`.
        peak_tflops: What the GPU can do in bf16, for `peak`; a CPU is measured.
    """

    def __init__(self, device: str, peak_tflops: float = 0.0):
        self.device = device
        self.peak_tflops = peak_tflops
        # The seconds of several threads would be added up.
        alone = device == "cpu" and torch.get_num_threads() == 1
        self.clock = time.process_time if alone else time.perf_counter

    def peak(self, model, dtype: torch.dtype) -> float:
        """Operations a second of a matrix product of the model's MLP and 2,048 tokens."""
        if self.device == "cuda":
            return self.peak_tflops * 1e12
        config = model.config
        tokens = torch.randn(2048, config.hidden_size, dtype=dtype)
        weights = torch.randn(config.hidden_size, config.intermediate_size, dtype=dtype)
        seconds = []
        for _ in range(10):
            start = self.clock()
            tokens @ weights
            seconds.append(self.clock() - start)
        return 2 * tokens.numel() * config.intermediate_size / min(seconds)

    def measure(self, work) -> tuple[float, float]:
        """(seconds, MB that memory rose by) of `work()`."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            before = settled_mb()
        start = self.clock()
        work()
        if self.device == "cuda":
            torch.cuda.synchronize()
            return self.clock() - start, (torch.cuda.max_memory_allocated() - before) / 2**20
        seconds = self.clock() - start
        return seconds, peak_mb() - before


def peak_mb() -> float:
    """Peak resident memory since the last reset (Linux; elsewhere 0)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def settled_mb() -> float:
    """Resident memory once what was freed is given back; the peak is counted from there."""
    if sys.platform != "linux":
        return 0.0
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def build(shape: str, device: str, liger: bool = False):
    sizes = dict(zip(SIZES, SHAPES[shape], strict=True))
    config = Qwen2Config(**sizes, num_labels=1, pad_token_id=0, max_position_embeddings=32768)
    torch.manual_seed(0)
    lora = shape.endswith("lora")
    with torch.device(device):
        config.dtype = torch.bfloat16 if lora else torch.float32
        model = AutoModelForSequenceClassification.from_config(config, dtype=config.dtype)
    model.score.__class__ = Float32Head
    if liger:
        # What `use_liger_kernel` does in a run; the loss stays the reward model's.
        apply_liger_kernel(model, {"fused_linear_cross_entropy": False})
    if lora:
        model = get_peft_model(
            model, LoraConfig(r=16, task_type="SEQ_CLS", target_modules="all-linear")
        )
    return model


def autocast(device: str, in_bf16: bool):
    return torch.autocast(device, torch.bfloat16, enabled=in_bf16)


def stock(model) -> None:
    """As transformers made it: TRL's turn."""
    without_adapter(model).set_attn_implementation("sdpa")
    vars(without_adapter(model)).pop("forward", None)


# --- What is timed --------------------------------------------------------------------------------


def make_trainers(
    model, tokenizer, pairs, batch_size: int, folder: str, device: str, variants: tuple[str, ...]
) -> dict:
    """name -> (trainer, its whole epoch of batches)."""
    data, made = Dataset.from_list(pairs), {}
    for name in variants:
        options = {
            "output_dir": folder,
            "per_device_train_batch_size": batch_size,
            "report_to": "none",
            "max_length": None,
            "activation_checkpointing": False,
            "disable_tqdm": True,
            "seed": 0,
            "bf16": device == "cuda" or name.endswith(IN_BF16),
            "use_cpu": device == "cpu",
        }
        if name == "padded, by length":
            options["train_sampling_strategy"] = "group_by_length"
        args = RewardConfig(**options)
        stock(model)
        if name.startswith("TRL"):
            rows = data.remove_columns("length")
            trainer = RewardTrainer(
                model=model, args=args, train_dataset=rows, processing_class=tokenizer
            )
        else:
            rows = data.add_column("subset_id", [0] * len(data))
            trainer = PairTrainer(
                model=without_adapter(model),  # the adapter's layers are in it
                args=args,
                train_dataset=rows,
                processing_class=tokenizer,
                options=PairOptions(["all"], prefix_sharing="off"),
            )
            trainer.data_collator.packed = "packed" in name
            trainer.data_collator.share_prefixes = "prefix" in name
        made[name] = trainer, list(trainer.get_train_dataloader())
    return made


def computed_tokens(batch: dict) -> int:
    if "micro_batches" in batch:
        return sum(part["texts"]["input_ids"].numel() for part in batch["micro_batches"])
    return batch["input_ids"].numel()


def evenly(batches: list, n: int, size=computed_tokens) -> list:
    """n of all batches that stand for them: by size, evenly spaced."""
    ranked = sorted(batches, key=size)
    return [ranked[int((i + 0.5) * len(ranked) / n)] for i in range(n)]


def fits(largest_step) -> bool:
    """Take a step to warm up; whether the GPU's memory was enough."""
    try:
        largest_step()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


def rounds_of(works: dict, rounds: int, machine: Machine) -> dict:
    """Time variants by turns.

    Args:
        works: for each variant a list of callables, one a step.
        rounds: how often all steps are taken.
        machine: what measures them.

    Returns:
        For each variant a list of (seconds, MB), one a round. A variant that runs out of the GPU's
        memory is left out.
    """
    works = {name: steps for name, steps in works.items() if fits(steps[-1])}
    measured = {name: [] for name in works}
    for _ in range(rounds):
        sums = {name: [0.0, 0.0] for name in works}
        for steps in zip(*works.values(), strict=True):
            for name, step in zip(works, steps, strict=True):
                seconds, megabytes = machine.measure(step)
                sums[name] = [sums[name][0] + seconds, max(sums[name][1], megabytes)]
        for name, (seconds, megabytes) in sums.items():
            measured[name].append((seconds, megabytes))
    return measured


def train_works(model, made: dict, steps: int, optimizer) -> dict:
    def step(name, trainer, batch):
        def work():
            if name.startswith("TRL"):
                stock(model)
            elif "packed" in name:
                enable_packing(without_adapter(model))
            model.train()
            trainer.current_gradient_accumulation_steps = 1
            pairs = None
            if "order" in batch:
                pairs = torch.tensor(float(len(batch["order"])))
            # In a run accelerate's wrapper sees to it.
            with autocast(trainer.args.device.type, trainer.args.bf16):
                trainer.training_step(model, batch, pairs)
            optimizer.step()
            optimizer.zero_grad()

        return work

    return {
        name: [step(name, trainer, batch) for batch in evenly(batches, steps)]
        for name, (trainer, batches) in made.items()
    }


def score_works(
    model, tokenizer, groups: list, batch: int, token_budget: int, device: str, model_in_bf16=None
) -> dict:
    """The scorer and, as its baseline, an evaluation loop on the same texts; one step each.

    The loop takes `batch` groups of texts at a time, in the order given, padded. With
    `model_in_bf16` it is the scorer's second turn.
    """

    def padded_loop():
        stock(model)
        with torch.inference_mode():
            for i in range(0, len(groups), batch):
                texts = [text for group in groups[i : i + batch] for text in group]
                inputs = tokenizer.pad(
                    {"input_ids": texts}, padding_side="right", return_tensors="pt"
                ).to(device)
                model(**inputs, use_cache=False)

    def packed(model):
        enable_packing(without_adapter(model))
        scorer_of(model, tokenizer, token_budget).rewards_of_ids(
            [text for group in groups for text in group]
        )

    model.eval()
    works = {"padded batches": [padded_loop], "score.py": [lambda: packed(model)]}
    if model_in_bf16 is not None:
        works["score.py, bf16"] = [lambda: packed(model_in_bf16)]
    return works


def scorer_of(model, tokenizer, token_budget: int) -> Scorer:
    """A scorer without a checkpoint, and without its self-test."""
    scorer = Scorer.__new__(Scorer)
    scorer.model, scorer.tokenizer, scorer.token_budget = model, tokenizer, token_budget
    scorer.forwards, scorer.tested_length = Forwards(model), sys.maxsize
    scorer.vocabulary = scorer.forwards.vocabulary
    scorer.padded_because, scorer.alone_because, scorer.distributed = None, None, False
    return scorer


# --- Report ---------------------------------------------------------------------------------------


def ratio(found: dict, base: str, name: str) -> dict | None:
    """Time of `base` over that of `name`, by rounds; None where memory was too small for one."""
    if base not in found or name not in found:
        return None
    ratios = [a[0] / b[0] for a, b in zip(found[base], found[name], strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def check(model, tokenizer, pairs) -> dict:
    """Packed against padded on real pairs: what the head reads, rewards, gradient norms."""
    texts = [pair[side] for pair in pairs[:4] for side in SIDES]
    enable_packing(without_adapter(model))
    in_bf16 = model.device.type == "cuda"
    with autocast(model.device.type, in_bf16):
        self_tested = self_test(model, texts, 0)
    results = []
    for inputs in (pack(texts), padded(texts, 0)):
        model.train()
        with autocast(model.device.type, in_bf16):
            logits = (
                model(**send_to_device(inputs, model.device), use_cache=False)
                .logits.flatten()
                .float()
            )
        (-torch.nn.functional.logsigmoid(logits[::2] - logits[1::2]).mean()).backward()
        squares = [p.grad.float().square().sum() for p in model.parameters() if p.grad is not None]
        results.append((logits.detach(), torch.stack(squares).sum().sqrt().item()))
        model.zero_grad()
    (packed, norm), (rows, norm_rows) = results
    return {
        "hidden, relative": self_tested.difference,
        "allowed": self_tested.allowed,
        "rewards": (packed - rows).abs().max().item(),
        "gradient norm, relative": abs(norm - norm_rows) / norm_rows,
    }


def train_table(model, tokenizer, pairs, unique: int, machine: Machine, args, found: dict) -> None:
    variants = args.variants + BF16 * args.bf16
    print(
        "\n| train, pairs a step | variant | x TRL | x packed | pairs/s | MB "
        "| tokens over the limit | MFU |" + " x float32 |" * args.bf16
    )
    print("|---" * (8 + args.bf16) + "|")
    peaks = {torch.float32: machine.peak(model, torch.float32)}
    if args.bf16 or args.device == "cuda":
        peaks[torch.bfloat16] = machine.peak(model, torch.bfloat16)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    for batch_size in map(int, args.batch_sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            made = make_trainers(model, tokenizer, pairs, batch_size, folder, args.device, variants)
        times = rounds_of(train_works(model, made, args.steps, optimizer), args.rounds, machine)
        for name in variants:
            if name not in times:
                empty = " |" * (5 + args.bf16)
                print(f"| {batch_size} | {name} | out of memory |{empty}", flush=True)
                continue
            tokens = sum(map(computed_tokens, made[name][1]))
            middle = statistics.median(seconds for seconds, _ in times[name])
            speed = batch_size * args.steps / middle
            found[f"{batch_size}, {name}"] = row = {
                "x TRL": ratio(times, "TRL", name),
                "x packed": ratio(times, "packed", name),
                "pairs a second": speed,
                "megabytes": max(megabytes for _, megabytes in times[name]),
                "tokens over limit": tokens / unique,
            }
            dtype = torch.float32
            if made[name][0].args.bf16:
                dtype = torch.bfloat16
            operations = operations_of(model, "packed" in name) * tokens / len(pairs)
            row["mfu"] = operations * speed / peaks[dtype]
            line = f"| {batch_size} | {name} | {cell(row['x TRL'])} | {cell(row['x packed'])} "
            line += f"| {speed:.2f} | {row['megabytes']:.0f} | {row['tokens over limit']:.2f} "
            line += f"| {row['mfu']:.0%} |"
            if args.bf16:
                row["x float32"] = ratio(times, name.removesuffix(IN_BF16), name)
                line += f" {cell(row['x float32'])} |" if name.endswith(IN_BF16) else " |"
            print(line, flush=True)


def operations_of(model, packed: bool) -> float:
    """Operations of the matrix products for a token, forward and backward; attention left out.

    Six for each weight, and four for one that is frozen, which gets no gradient of its own. The
    embeddings are looked up. Packed, the last layer's MLP computes one token a text: next to none.
    """
    operations = 0
    for name, weight in model.named_parameters():
        if "embed_tokens" not in name:
            operations += weight.numel() * (6 if weight.requires_grad else 4)
    if packed:
        for weight in without_adapter(model).model.layers[-1].mlp.parameters():
            operations -= weight.numel() * (6 if weight.requires_grad else 4)
    return operations


def score_table(model, tokenizer, pairs, machine: Machine, args, found: dict) -> None:
    model_in_bf16 = None
    if args.device == "cuda":
        model.to(torch.bfloat16)  # as such checkpoints are saved
    elif args.bf16:
        model_in_bf16 = copy.deepcopy(model).to(torch.bfloat16)
    print("\n| score | x padded batches | texts/s |" + " bf16, x float32 |" * args.bf16)
    print("|---" * (3 + args.bf16) + "|")
    sampled = [
        [p[side] for side in SIDES]
        for p in random.Random(1).sample(pairs, min(args.scored, len(pairs)))
    ]
    jobs = {f"pairs, {b} a batch": (sampled, int(b)) for b in args.batch_sizes.split(",")}
    for n in map(int, args.best_of.split(",")):
        groups = best_of(pairs, n)
        tokens = sum(map(padded_tokens, groups)) / sum(map(own_tokens, groups))
        print(
            f"| best of {n}, all prompts: tokens of one padded, over those computed "
            f"| {tokens:.2f} | |"
        )
        groups = evenly(groups, max(args.scored // n, 4), padded_tokens)
        random.Random(0).shuffle(groups)
        jobs |= {f"best of {n}, {b} prompt{'s' * (b > 1)} a batch": (groups, b) for b in (1, 4)}
    for name, (groups, batch) in jobs.items():
        works = score_works(
            model, tokenizer, groups, batch, args.token_budget, args.device, model_in_bf16
        )
        times = rounds_of(works, args.rounds, machine)
        if "score.py" not in times:
            print(f"| {name} | out of memory | |", flush=True)
            continue
        seconds = statistics.median(seconds for seconds, _ in times["score.py"])
        found[name] = row = {
            "x padded": ratio(times, "padded batches", "score.py"),
            "texts a second": sum(map(len, groups)) / seconds,
        }
        line = f"| {name} | {cell(row['x padded'])} | {row['texts a second']:.1f} |"
        if args.bf16:
            row["bf16, x float32"] = ratio(times, "score.py", "score.py, bf16")
            line += f" {cell(row['bf16, x float32'])} |"
        print(line, flush=True)


def cell(found: dict | None) -> str:
    if found is None:
        return ""
    return f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", default="Anthropic/hh-rlhf")
    parser.add_argument(
        "--data_dir", help="folder inside --pairs; default harmless-base for HH-RLHF on the Hub"
    )
    parser.add_argument(
        "--max_length", type=int, help="tokens; pairs with a longer side are left out"
    )
    parser.add_argument("--shapes", default="tiny,2-layers")
    parser.add_argument("--batch_sizes", default="4,8,16", help="pairs a step")
    parser.add_argument("--best_of", default="4,16")
    parser.add_argument(
        "--steps", type=int, default=6, help="batches of an epoch that are timed in a round"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--scored", type=int, default=256, help="pairs, and prompts x completions, that are scored"
    )
    parser.add_argument("--token_budget", type=int, default=TOKEN_BUDGET)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--peak_tflops", type=float, default=989, help="of the GPU in bf16, for MFU (H100: 989)"
    )
    parser.add_argument(
        "--variants",
        type=lambda names: tuple(names.split("/")),
        default=TRAINING,
        help=f"of training: {'/'.join(TRAINING)}",
    )
    parser.add_argument(
        "--bf16", action="store_true", help="on a CPU: TRL, ours and score.py in bf16 as well"
    )
    parser.add_argument("--liger", action="store_true", help="all variants use Liger's kernels")
    parser.add_argument("--only", choices=["train", "score"])
    parser.add_argument("--output", help="JSON file")
    args = parser.parse_args()
    if args.bf16 and args.device == "cuda":
        parser.error("--bf16 is for a CPU: on a GPU everything is measured in bf16")
    return args


def main() -> None:
    args = read_options()
    torch.set_num_threads(args.threads)
    machine = Machine(args.device, args.peak_tflops)
    pairs, tokenizer = encode_pairs(read_texts(args.pairs, args.data_dir))
    if args.max_length:
        pairs = [pair for pair in pairs if pair["length"] <= args.max_length]
    sides = [len(pair[side]) for pair in pairs for side in SIDES]
    unique = sum(own_tokens([pair[side] for side in SIDES]) for pair in pairs)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU"
    if args.liger:
        where += ", Liger's kernels"
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{where}, {args.threads} threads",
        "pairs": len(pairs),
        "tokens a side": statistics.mean(sides),
        "limit": unique,
        "versions": {"torch": torch.__version__, "trl": trl.__version__},
        "shapes": {},
    }
    print(
        f"{report['machine']}; {len(pairs):,} pairs of {np.mean(sides):.0f} tokens a side, "
        f"torch {torch.__version__}, trl {trl.__version__}, {report['date']}"
    )
    print(f"computed once, all pairs have {unique:,} tokens: the limit")
    for shape in args.shapes.split(","):
        model = build(shape, args.device, args.liger)
        found = report["shapes"][shape] = {
            "check": check(model, tokenizer, pairs),
            "train": {},
            "score": {},
        }
        print(
            f"\n## {shape}: "
            + ", ".join(f"{key} {value:.1e}" for key, value in found["check"].items())
        )
        if args.only != "score":
            train_table(model, tokenizer, pairs, unique, machine, args, found["train"])
        if args.only != "train":
            score_table(model, tokenizer, pairs, machine, args, found["score"])
        del model
    if args.output:
        Path(args.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
