"""What a run would take, before it is started: `python train_rm.py --recipe R --plan accelerate_configs/zero3.yaml`.

Parameters and their share come from the model's config on the meta device: no weights are loaded. Tokens come from the encoded
pairs, through the collator that training uses. Memory of a GPU is an estimate:
- weights, gradients, optimizer state: the accounting of ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, sec. 3) with this
  recipe's dtypes and what the engine shares out;
- activations: the bytes that autograd really keeps, counted on the CPU in models of one and two such blocks at two lengths,
  continued in a straight line to all blocks and to the largest micro-batch.
Not in it: the CUDA context (about .5 GiB), fragmentation, the collectives' buffers.
"""

import copy
import math
from dataclasses import dataclass
from itertools import islice

import torch
from accelerate.utils import calculate_maximum_sizes
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification
from transformers.trainer_pt_utils import LengthGroupedSampler

from rm.engine import Engine
from rm.packing import drops_out, enable_packing, pack, why_padded
from rm.preferences import by_ranking
from rm.reward_model import freeze, head_of, no_cache
from rm.trainer import PreferenceCollator

GIB = 2**30
SAMPLED = 200  # batches that tokens and the largest micro-batch are estimated from
SHORT, LONG = 64, 128  # tokens; activations are counted at both
NF4 = {True: 0.516, False: 0.5625}  # bytes a 4-bit weight with its constants: of 64 weights, quantised in turn or not
EIGHT_BIT = ("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "lion_8bit", "paged_lion_8bit")
STATES = {
    "sgd": 0,
    "adafactor": 0,
    "lion_32bit": 1,
    "paged_lion_32bit": 1,
    "lion_8bit": 1,
    "paged_lion_8bit": 1,
}  # else 2


@dataclass
class Planned:
    """The model as it would be trained, on the meta device: counts of parameters, bytes, and what a batch is made of."""

    model: torch.nn.Module
    total: int
    trained: int
    weight_bytes: float  # of all weights as they are loaded
    largest: int  # parameters of the largest block
    linear: int  # parameters of linear layers, which autocast copies
    blocks: int  # that keep activations for a backward


def make_model(config, dtype, *, device="meta", peft_config=None, train_last_layers=None, trust_remote_code=False):
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    if device != "meta":
        model = model.to_empty(device=device)  # what the weights are does not matter, how many bytes they have does
    if train_last_layers is not None:
        freeze(model, train_last_layers)
    if peft_config is not None:
        model = get_peft_model(model, copy.deepcopy(peft_config))
    return model


def plan_model(config, dtype, recipe, peft_config, **options) -> Planned:
    plain = make_model(config, dtype, **options)
    _, (largest, _) = calculate_maximum_sizes(plain)
    element = dtype.itemsize
    head = head_of(plain)[1]
    linear = [m for m in plain.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    quantised = sum(m.weight.numel() for m in linear)
    weight_bytes = sum(p.numel() * p.element_size() for p in plain.parameters())
    if recipe["load_in_4bit"] or recipe["load_in_8bit"]:
        weight_bytes += quantised * ((NF4[recipe["use_bnb_nested_quant"]] if recipe["load_in_4bit"] else 1) - element)
    last = recipe["train_last_layers"]
    model = make_model(config, dtype, peft_config=peft_config, train_last_layers=last, **options)
    parameters = list(model.parameters())
    return Planned(
        model,
        total=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        weight_bytes=weight_bytes,
        largest=int(largest / element),
        linear=quantised,
        blocks=config.get_text_config().num_hidden_layers if last is None else last,
    )


# ----------------------------------------------------------------------------------------------------- tokens and steps


def tokens_of(inputs: dict) -> int:
    return inputs["input_ids"].numel()


def count_tokens(
    table, collator: PreferenceCollator, pairs_a_batch: int, by_length: bool, seed: int
) -> dict[str, float]:
    """Of an epoch (of the first batches, if `table` is a stream): `groups` (pairs, or rankings), `read` (tokens of both sides
    of all pairs), `computed` and `padded` (as TRL pads) a group; `largest`, tokens of the largest micro-batch met, and `paths`,
    how many times as many its texts have (None: padded)."""
    stream = not isinstance(table, Dataset)
    rows = list(islice(table, SAMPLED * pairs_a_batch)) if stream else table
    if not stream and "ranking" in table.column_names:
        rankings = by_ranking(table)
        rows, collator.table = (table, None) if len(rankings) == len(table) else (rankings, table)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    if by_length:
        generator = torch.Generator().manual_seed(seed)
        order = list(LengthGroupedSampler(pairs_a_batch, lengths=[row["length"] for row in rows], generator=generator))
    batches = [order[i : i + pairs_a_batch] for i in range(0, len(order), pairs_a_batch)]
    batches = batches[:: -(-len(batches) // SAMPLED)]
    trl = PreferenceCollator(collator.pad_token_id, collator.pad_to_multiple_of, collator.table)
    computed, padded, groups, largest = 0, 0, 0, []
    for batch in batches:
        examples = [rows[i] for i in batch]
        parts = [part["texts"] for part in collator(examples)["micro_batches"]]
        computed, groups = computed + sum(map(tokens_of, parts)), groups + len(batch)
        largest = [max([*largest, *parts], key=tokens_of)]
        padded += sum(tokens_of(part["texts"]) for part in trl(examples)["micro_batches"])
    packing = largest[0].get("packing")
    sides = [] if stream else [table["chosen_ids"], table["rejected_ids"]]
    return {
        "groups": len(rows),
        "read": sum(len(ids) for side in sides for ids in side),
        "computed": computed / groups,
        "padded": padded / groups,
        "largest": tokens_of(largest[0]),
        "paths": packing and sum(packing["lengths"]) / sum(packing["queries"]),
        "sampled": len(batches),
    }


def count_steps(groups: int, args, processes: int) -> tuple[int, int]:
    """(steps of an epoch, of the run), as transformers' Trainer counts them."""
    batches = math.ceil(groups / args.per_device_train_batch_size)
    epoch = math.ceil(math.ceil(batches / processes) / args.gradient_accumulation_steps)
    return epoch, args.max_steps if args.max_steps > 0 else math.ceil(epoch * args.num_train_epochs)


# --------------------------------------------------------------------------------------------------------------- memory


def micro_batch_like(tokens: int, paths: float | None) -> dict:
    """A model's inputs of so many computed tokens: padded, or packed in groups of SHORT tokens, whose texts begin alike and
    are `paths` times as long together."""
    if paths is None:
        return {"input_ids": torch.ones(1, tokens, dtype=torch.long)}
    texts = max(2, math.ceil(paths) + 1)  # a group
    shared = max(1, round((paths - 1) * SHORT / (texts - 1)))  # the first token is the number of the group
    own, more = divmod(SHORT - shared, texts)
    group = [[texts + 1] * shared + [1 + i] * (own + (i < more)) for i in range(texts)]
    return pack([[10 + number, *text[1:]] for number in range(tokens // SHORT) for text in group])


def kept_bytes(
    config, blocks: int, tokens: int, *, dtype, autocast, checkpointing: bool, paths: float | None = None, **options
) -> int:
    """What autograd keeps of a forward of so many blocks over so many tokens: each storage once, the weights left out."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = blocks, 64, 0
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:blocks]
    model = make_model(config, dtype, device="cpu", **options).train()
    if paths is not None:
        enable_packing(model.get_base_model() if hasattr(model, "get_base_model") else model)
    if checkpointing:
        model.activation_checkpointing_enable()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or its address may be used again
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        model(**micro_batch_like(tokens, paths), **no_cache(config))
    return sum(kept.values())


def activation_bytes(config, blocks: int, tokens: int, checkpointing: bool, **how) -> float:
    """Bytes that `blocks` blocks keep of `tokens` tokens until their backward, at its peak."""

    def line(checkpointing):
        found = {
            (b, t): kept_bytes(config, b, t, checkpointing=checkpointing, **how) for b in (1, 2) for t in (SHORT, LONG)
        }

        def at(b):  # to `tokens`, in a straight line
            return found[b, SHORT] + (found[b, LONG] - found[b, SHORT]) / (LONG - SHORT) * (tokens - SHORT)

        return at(1), at(2) - at(1)  # with one block, and of each further one

    first, further = line(checkpointing)
    kept = first + (blocks - 1) * further
    return kept + line(False)[1] if checkpointing else kept  # and one block that is computed again


def memory(
    planned: Planned, engine: Engine, dtype, half: bool, optim: str, adapter: bool, quantised: bool
) -> dict[str, float]:
    """Bytes of a GPU: `weights`, `gradients`, `optimizer`, and those of the host, `host`. `half`: bf16 or fp16."""
    n = engine.processes
    shared_optimizer = n if engine.kind == "FSDP" or engine.zero_stage >= 1 else 1
    shared_gradients = n if engine.kind == "FSDP" or engine.zero_stage >= 2 else 1
    # An adapter's weights are float32 beside bf16 ones (peft), bf16 beside 4-bit ones (TRL).
    element = (2 if quantised else 4) if adapter else dtype.itemsize
    states = STATES.get(optim, 2)
    a_state = 1 if optim in EIGHT_BIT else element
    weights, gradients, optimizer = planned.weight_bytes, planned.trained * element, planned.trained * states * a_state
    if engine.kind == "DEEPSPEED":
        if half:  # its weights are half ones, with float32 copies of the trained ones beside them
            weights, element = min(weights, planned.total * 2), 2
        gradients = planned.trained * (element + 4)
        optimizer = planned.trained * (4 + states * (1 if optim in EIGHT_BIT else 4))
    elif engine.kind == "MULTI_GPU" and n > 1:
        gradients *= 2  # DistributedDataParallel's buckets
    gradients, optimizer = gradients / shared_gradients, optimizer / shared_optimizer
    host = 0.0
    if engine.shards_weights:
        share, block = weights / n, planned.largest * (2 if half else element)
        gathered = 2 * block if engine.reshards else planned.total * (2 if half else element)
        host += share if engine.offload_weights else 0
        weights = gathered + (0 if engine.offload_weights else share)
    if engine.offload_optimizer:
        host, optimizer = host + optimizer, 0
        if engine.kind == "DEEPSPEED" or engine.offload_weights:
            host, gradients = host + gradients, min(gradients, 2 * planned.largest * element)
    return {"weights": weights, "gradients": gradients, "optimizer": optimizer, "host": host * n / engine.hosts}


# ------------------------------------------------------------------------------------------------------------- the page


def plan(recipe, engine: Engine, config, tokenizer, table, args, peft_config) -> str:
    """The page that `--plan` prints, of a recipe, its model's config and its encoded training pairs."""
    config = copy.deepcopy(config)
    config.num_labels = 1 if recipe["head"] == "linear" else 2
    dtype = config.dtype or torch.float32 if recipe["dtype"] in (None, "auto") else getattr(torch, recipe["dtype"])
    options = {"trust_remote_code": args.trust_remote_code}
    planned = plan_model(config, dtype, recipe, peft_config, **options)
    quantised = recipe["load_in_4bit"] or recipe["load_in_8bit"]
    asked = "fp16" if recipe["fp16"] else "bf16" if recipe["bf16"] in (None, True) else None
    precision = "float32" if recipe["use_cpu"] and not quantised else asked or "float32"
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    # -- tokens
    because = "prefix_sharing is off" if recipe["prefix_sharing"] == "off" else why_padded(planned.model)
    collator = PreferenceCollator(tokenizer.pad_token_id, args.pad_to_multiple_of, None, recipe["token_budget"])
    collator.packed = because is None
    collator.share = collator.packed and (args.disable_dropout or not drops_out(planned.model))
    by_length = args.train_sampling_strategy == "group_by_length"
    tokens = count_tokens(table, collator, args.per_device_train_batch_size, by_length, args.seed)
    streamed = not isinstance(table, Dataset)

    # -- memory; DeepSpeed and FSDP2 compute in half precision where DDP has autocast
    sharded = engine.kind in ("DEEPSPEED", "FSDP")
    found = memory(planned, engine, dtype, half is not None, args.optim, peft_config is not None, quantised)
    checkpointing = args.activation_checkpointing or engine.checkpoints
    found["activations"] = activation_bytes(
        config, planned.blocks, tokens["largest"], checkpointing, peft_config=peft_config, paths=tokens["paths"],
        dtype=half if sharded and half else dtype, autocast=None if sharded else half, **options,
    )  # fmt: skip
    if half and not sharded and dtype == torch.float32 and checkpointing:
        found["activations"] += 2 * planned.linear  # autocast's copies of the weights, kept through a forward
    on_gpu = {key: found[key] for key in ("weights", "gradients", "optimizer", "activations")}

    # -- the page
    n, each, accumulation = engine.processes, args.per_device_train_batch_size, args.gradient_accumulation_steps
    what = "rankings" if collator.table is not None else "pairs"
    epoch, steps = count_steps(tokens["groups"], args, n)
    a_step = n * each * accumulation
    padding = 1 - tokens["computed"] / tokens["padded"]
    how = "padded" if because else "each shared prefix once, no padding" if collator.share else "no padding"
    lines = [
        f"plan of {recipe.path}: {engine}",
        f"model   {recipe['model_name_or_path']}: {planned.total:,} parameters, {planned.trained:,} trained "
        f"({planned.trained / planned.total:.2%})",
        f"steps   {steps:,}: {a_step} {what} a step ({n} process{'es' * (n > 1)} x {each} x {accumulation} accumulated)"
        + (f", {epoch:,} in the epoch of {tokens['groups']:,}" if not streamed else ", from a stream"),
    ]
    total = tokens["groups"] if not streamed else steps * a_step
    read = f"{tokens['read']:,} read in an epoch, " if not streamed else ""
    lines += [
        f"tokens  {read}{total * tokens['computed']:,.0f} computed ({how}{f': {because}' if because else ''}); TRL's padding "
        f"would compute {total * tokens['padded']:,.0f}, so {padding:.0%} is saved",
        f"memory  a GPU, estimated ({precision}{' autocast' if half and not sharded else ''}, "
        f"weights {str(dtype).removeprefix('torch.')}):",
        *(f"        {size(value)}  {key}" for key, value in on_gpu.items()),
        f"        {size(sum(on_gpu.values()))}  together, and about 1 GiB more for the CUDA context and what is lost",
    ]
    if found["host"]:
        lines.append(f"        {size(found['host'])}  of each host's memory")
    if engine.kind == "DEEPSPEED" and planned.trained == planned.total and engine.zero_stage in (2, 3) and half:
        lines.append(
            f"        {size(deepspeed_says(planned, engine))}  by DeepSpeed's own estimator, activations left out"
        )
    lines += [
        f"how     computed tokens and the largest micro-batch ({tokens['largest']:,} tokens) from {tokens['sampled']} batches; "
        f"weights, gradients and",
        "        optimizer by counting; activations from what autograd keeps in one and two such blocks",
    ]
    return "\n".join(lines)


def size(bytes: float) -> str:
    return f"{bytes / GIB:8.2f} GiB" if bytes >= GIB / 10 else f"{bytes / 2**20:8.2f} MiB"


def deepspeed_says(planned: Planned, engine: Engine) -> int:
    """Bytes of a GPU by DeepSpeed's estimators: weights, gradients and optimizer of a full fine-tuning in half precision."""
    sizes = {"num_gpus_per_node": engine.processes // engine.hosts, "num_nodes": engine.hosts}
    if engine.zero_stage == 2:
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

        return estimate_zero2_model_states_mem_needs(planned.total, **sizes, cpu_offload=engine.offload_optimizer)[1]
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    return estimate_zero3_model_states_mem_needs(
        planned.total, planned.largest, **sizes,
        cpu_offload=engine.offload_optimizer, cpu_offload_params=engine.offload_weights,
    )[1]  # fmt: skip
