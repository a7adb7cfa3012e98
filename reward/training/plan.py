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
from trl.trainer.utils import disable_dropout_in_model

from reward.data.tokens import by_ranking
from reward.model.batches import PreferenceCollator, pack
from reward.model.build import freeze
from reward.model.heads import head_of, no_cache
from reward.model.packed_attention import drops_out, enable_packing, why_not_packed
from reward.training.engine import Engine

GIB = 2**30


SAMPLED = 200  # batches that tokens and the largest micro-batch are estimated from


SHORT, LONG = 64, 128  # tokens; activations are counted at both


NF4 = {
    True: 0.516,
    False: 0.5625,
}  # bytes a 4-bit weight with its constants: of 64 weights, quantised in turn or not


EIGHT_BIT = ("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "lion_8bit", "paged_lion_8bit")


ZERO_BUCKET, ZERO3_LIVE = (
    500_000_000,
    1_000_000_000,
)  # DeepSpeed's defaults: elements exchanged at once; weights kept gathered


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
    """The model as it would be trained, on the meta device, and what of it costs memory; counts are of parameters."""

    model: torch.nn.Module
    total: int
    trained: int
    trained_linear: int  # of linear layers, which autocast copies
    trained_embeddings: int  # whose 8-bit optimizer states transformers keeps in 32 bits
    frozen_bytes: float  # as they are loaded
    trained_bytes: int  # a weight
    largest: int  # of the largest block
    blocks: int  # that keep activations for a backward


def make_model(
    config, dtype, *, device="meta", peft_config=None, train_last_layers=None, **options
):
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype, **options)
    if device != "meta":
        model = model.to_empty(
            device=device
        )  # what the weights are does not matter, how many bytes they have does
    if train_last_layers is not None:
        freeze(model, train_last_layers)
    if peft_config is not None:
        model = get_peft_model(model, copy.deepcopy(peft_config))
    return model


def plan_model(config, dtype, recipe, peft_config, **options) -> Planned:
    last, quantised = recipe["train_last_layers"], recipe["load_in_4bit"] or recipe["load_in_8bit"]
    plain = make_model(config, dtype, **options)
    _, (largest, _) = calculate_maximum_sizes(plain)
    model = make_model(config, dtype, peft_config=peft_config, train_last_layers=last, **options)
    head = head_of(plain)[0]
    stored = (
        NF4[recipe["use_bnb_nested_quant"]]
        if recipe["load_in_4bit"]
        else 1
        if quantised
        else dtype.itemsize
    )
    frozen_bytes, trained, by_kind = 0.0, 0, {torch.nn.Linear: 0, torch.nn.Embedding: 0}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                trained += parameter.numel()
                for kind in by_kind:
                    by_kind[kind] += parameter.numel() * isinstance(module, kind)
            else:
                whole = (
                    not isinstance(module, torch.nn.Linear)
                    or head in name.split(".")
                    or parameter.dim() < 2
                )
                frozen_bytes += parameter.numel() * (dtype.itemsize if whole else stored)
    return Planned(
        model,
        total=sum(p.numel() for p in model.parameters()),
        trained=trained,
        trained_linear=by_kind[torch.nn.Linear],
        trained_embeddings=by_kind[torch.nn.Embedding],
        frozen_bytes=frozen_bytes,
        # An adapter's are float32 beside bf16 weights (peft), bf16 beside 4-bit ones (TRL).
        trained_bytes=dtype.itemsize if peft_config is None else 2 if quantised else 4,
        largest=int(largest / dtype.itemsize),
        blocks=config.get_text_config().num_hidden_layers if last is None else last,
    )


# ----------------------------------------------------------------------------------------------------- tokens and steps


def tokens_of(inputs: dict) -> int:
    return inputs["input_ids"].numel()


def count_tokens(
    table,
    collator: PreferenceCollator,
    pairs_a_batch: int,
    seed: int = 0,
    pairs_by_length: int | None = None,
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
    if pairs_by_length:  # length-grouped, among so many
        generator = torch.Generator().manual_seed(seed)
        order = list(
            LengthGroupedSampler(
                pairs_by_length, lengths=[row["length"] for row in rows], generator=generator
            )
        )
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
    shared = max(
        1, round((paths - 1) * SHORT / (texts - 1))
    )  # the first token is the number of the group
    own, more = divmod(SHORT - shared, texts)
    group = [[texts + 1] * shared + [1 + i] * (own + (i < more)) for i in range(texts)]
    return pack([[10 + number, *text[1:]] for number in range(tokens // SHORT) for text in group])


def kept_bytes(
    config,
    blocks: int,
    tokens: int,
    *,
    dtype,
    autocast,
    checkpointing: bool,
    paths: float | None = None,
    **options,
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


def activation_bytes(config, planned: Planned, tokens: int, checkpointing: bool, **how) -> float:
    """Bytes that the trained blocks keep of `tokens` tokens until their backward, at its peak."""

    def line(checkpointing):
        found = {
            (b, t): kept_bytes(config, b, t, checkpointing=checkpointing, **how)
            for b in (1, 2)
            for t in (SHORT, LONG)
        }

        def at(b):  # to `tokens`, in a straight line
            return found[b, SHORT] + (found[b, LONG] - found[b, SHORT]) / (LONG - SHORT) * (
                tokens - SHORT
            )

        return at(1), at(2) - at(1)  # with one block, and of each further one

    first, further = line(checkpointing)
    kept = first + (planned.blocks - 1) * further
    if not checkpointing:
        return kept
    # Autocast's copies of trained weights, until the forward ends; and one block that is computed again.
    casts = 2 * planned.trained_linear if how["autocast"] and how["dtype"] == torch.float32 else 0
    return kept + casts + line(False)[1]


def computes_in(engine: Engine, dtype, half) -> dict:
    """dtype and autocast of a forward: DeepSpeed and FSDP2 compute in half precision where DDP has autocast."""
    sharded = engine.kind in ("DEEPSPEED", "FSDP")
    return {"dtype": half if sharded and half else dtype, "autocast": None if sharded else half}


def memory(planned: Planned, engine: Engine, half: bool, optim: str) -> dict[str, float]:
    """Bytes of a GPU: `weights`, `gradients`, `optimizer`, and those of the host, `host`. `half`: computed in bf16 or fp16."""
    n, trained, element = engine.processes, planned.trained, planned.trained_bytes
    shared_optimizer = n if engine.kind == "FSDP" or engine.zero_stage >= 1 else 1
    shared_gradients = n if engine.kind == "FSDP" or engine.zero_stage >= 2 else 1
    master = buffers = 0
    if (
        engine.kind == "DEEPSPEED"
    ):  # half weights, and float32 copies of weights and gradients beside them
        element, master, buffers = 2 if half else element, 4, ZERO_BUCKET * (2 if half else 4)
    elif engine.kind == "FSDP" and half:
        element = 4  # accelerate makes trained weights float32
    state = 4 if engine.kind == "DEEPSPEED" else element
    small = 0 if optim not in EIGHT_BIT else trained - planned.trained_embeddings
    optimizer = trained * master + STATES.get(optim, 2) * ((trained - small) * state + small)
    gradients = trained * (element + master)
    if engine.kind == "MULTI_GPU" and n > 1:
        gradients *= 2  # DistributedDataParallel's buckets
    weights = planned.frozen_bytes + trained * element
    if engine.kind == "DEEPSPEED" and half:
        weights = min(weights, 2 * planned.total)
    gradients, optimizer, host = gradients / shared_gradients, optimizer / shared_optimizer, 0.0
    if engine.shards_weights:
        share, compute = weights / n, 2 if half else element
        live = 2 * planned.largest if engine.reshards else planned.total
        live = max(live, min(planned.total, ZERO3_LIVE)) if engine.zero_stage == 3 else live
        host += share if engine.offload_weights else 0
        weights = live * compute + (0 if engine.offload_weights else share)
    if engine.offload_optimizer:
        host, optimizer = host + optimizer, 0
        if engine.kind == "DEEPSPEED" or engine.offload_weights:
            host, gradients = host + gradients, min(gradients, 2 * planned.largest * element)
    return {
        "weights": weights, "gradients": gradients + buffers, "optimizer": optimizer, "host": host * n / engine.hosts
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- the page


def plan(
    recipe, engine: Engine, config, tokenizer, table, args, peft_config, own_options: dict
) -> str:
    """The page that `--plan` prints, of a recipe, its model's config and its encoded training pairs. `own_options`: what else
    the model is made with."""
    config = copy.deepcopy(config)
    config.num_labels = 1 if recipe["head"] == "linear" else 2
    for key in [
        key for key in own_options if hasattr(config, key) and key != "attn_implementation"
    ]:
        setattr(config, key, own_options[key])
    dtype = (
        config.dtype or torch.float32
        if recipe["dtype"] in (None, "auto")
        else getattr(torch, recipe["dtype"])
    )
    attention = own_options.get("attn_implementation")
    options = {"trust_remote_code": args.trust_remote_code} | (
        {"attn_implementation": attention} if attention else {}
    )
    planned = plan_model(config, dtype, recipe, peft_config, **options)
    quantised = recipe["load_in_4bit"] or recipe["load_in_8bit"]
    asked = "fp16" if recipe["fp16"] else "bf16" if recipe["bf16"] in (None, True) else None
    precision = "float32" if recipe["use_cpu"] and not quantised else asked or "float32"
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    # -- tokens
    because = why_not_packed(planned.model, args, recipe["prefix_sharing"])
    if args.disable_dropout:
        disable_dropout_in_model(planned.model)
    each, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    collator = PreferenceCollator(
        tokenizer.pad_token_id, args.pad_to_multiple_of, None, recipe["token_budget"]
    )
    collator.packed = because is None
    collator.share_prefixes = collator.packed and not drops_out(planned.model)
    by_length = each * accumulation if args.train_sampling_strategy == "group_by_length" else None
    tokens = count_tokens(table, collator, each, args.seed, by_length)
    streamed = not isinstance(table, Dataset)

    # -- memory
    found = memory(planned, engine, half is not None, args.optim)
    found["activations"] = activation_bytes(
        config, planned, tokens["largest"], args.activation_checkpointing or engine.checkpoints, peft_config=peft_config,
        paths=tokens["paths"], **computes_in(engine, dtype, half), **options,
    )  # fmt: skip
    on_gpu = {key: found[key] for key in ("weights", "gradients", "optimizer", "activations")}

    # -- the page
    n, sharded = engine.processes, engine.kind in ("DEEPSPEED", "FSDP")
    what = "rankings" if collator.table is not None else "pairs"
    epoch, steps = count_steps(tokens["groups"], args, n)
    a_step = n * each * accumulation
    padding = 1 - tokens["computed"] / tokens["padded"]
    how = (
        "padded"
        if because
        else "each shared prefix once, no padding"
        if collator.share_prefixes
        else "no padding"
    )
    lines = [
        f"plan of {recipe.path}: {engine}",
        f"model   {recipe['model_name_or_path']}: {planned.total:,} parameters, {planned.trained:,} trained "
        f"({planned.trained / planned.total:.2%})",
        f"steps   {steps:,}: {a_step} {what} a step ({n} process{'es' * (n > 1)} x {each} x {accumulation} accumulated)"
        + (
            f", {epoch:,} in the epoch of {tokens['groups']:,}"
            if not streamed
            else ", from a stream"
        ),
    ]
    total = tokens["groups"] if not streamed else steps * a_step
    read = f"{tokens['read']:,} read in an epoch, " if not streamed else ""
    lines += [
        f"tokens  {read}{total * tokens['computed']:,.0f} computed ({how}{f': {because}' if because else ''});",
        f"        TRL's padding would compute {total * tokens['padded']:,.0f}, so {padding:.0%} is saved",
        f"memory  a GPU, estimated ({precision}{' autocast' if half and not sharded else ''}, "
        f"weights {str(dtype).removeprefix('torch.')}):",
        *(f"        {size(value)}  {key}" for key, value in on_gpu.items()),
        f"        {size(sum(on_gpu.values()))}  together, and about 1 GiB more for the CUDA context and what is lost",
    ]
    if found["host"]:
        lines.append(f"        {size(found['host'])}  of each host's memory")
    if (
        engine.kind == "DEEPSPEED"
        and planned.trained == planned.total
        and engine.zero_stage in (2, 3)
        and half
    ):
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

        return estimate_zero2_model_states_mem_needs(
            planned.total, **sizes, cpu_offload=engine.offload_optimizer
        )[1]
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    return estimate_zero3_model_states_mem_needs(
        planned.total, planned.largest, **sizes,
        cpu_offload=engine.offload_optimizer, cpu_offload_params=engine.offload_weights,
    )[1]  # fmt: skip
