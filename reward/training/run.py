"""One training run, from a sound recipe to a verified checkpoint; train_rm.py's body.

Steps: machine, data, model, training, checkpoint. Exit statuses: reward.training.runtime.
"""

import gc
import os
import shutil
import sys
import time
import traceback
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, EarlyStoppingCallback, set_seed
from transformers.utils import is_liger_kernel_available
from trl import ModelConfig, RewardConfig, get_peft_config, get_quantization_config

from reward.checkpoint import contract
from reward.checkpoint.card import model_card
from reward.checkpoint.contract import CheckpointError
from reward.data.encoding import EncodingError, encoder_facts
from reward.data.files import DataError
from reward.data.splits import load_preferences
from reward.data.tokens import EncodingOptions, encode_splits, row_ids
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.heads import position_limit
from reward.model.hub import ModelError, resolved_revision
from reward.model.load import facts_differ
from reward.recipe.keys import PATHS
from reward.training.engine import Engine, LaunchError, same_everywhere, shared_by_hosts
from reward.training.losses import LOSSES
from reward.training.plan import plan
from reward.training.runtime import (
    BAD_INPUT,
    INTERRUPTED,
    NON_FINITE,
    Interrupted,
    StopOnSignal,
    choose_precision,
    die_with_launcher,
    fail,
)
from reward.training.trainer import NonFiniteError, PairOptions, PairTrainer

SMALLER = (
    "Out of memory. Smaller without another result: a lower per_device_train_batch_size and as much more "
    "gradient_accumulation_steps, a token_budget, activation_checkpointing: true. Then LoRA, or an engine that shares out the "
    "weights; `python train_rm.py --recipe R --plan accelerate_configs/zero3.yaml` estimates."
)


LOST = (
    "An exchange with the other processes failed, mostly because one of them is gone: what it said stands above. If it said "
    "nothing, its exit code is in the launcher's summary below (-9: the system killed it, mostly for its memory)."
)


CLOSED = ("Connection closed by peer", "Connection reset by peer")  # gloo's words


def run(recipe) -> int:
    """Train what `recipe` (reward.recipe.recipe.Recipe) says; returns the exit status."""
    die_with_launcher()
    try:
        return _run(recipe)
    except (DataError, ModelError, EncodingError, LaunchError) as error:
        return fail(error, BAD_INPUT)
    except NonFiniteError as error:
        return fail(
            f"{error}\nNothing was saved for this step; earlier checkpoints are as they were.",
            NON_FINITE,
        )
    except CheckpointError as error:
        return fail(error, 1)
    except torch.OutOfMemoryError as error:
        return fail(f"{error}\n{SMALLER}", 1)
    except KeyboardInterrupt:
        return fail("interrupted; checkpoints are whole, go on with --resume auto", INTERRUPTED)
    except Exception as error:
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise
        if isinstance(error, torch.distributed.DistBackendError) or any(
            words in str(error) for words in CLOSED
        ):
            time.sleep(2)  # the launcher calls the first that ends the root cause
            return fail(f"{LOST}\n{error}", 1)
        # Said here, because an interpreter that waits for its threads at exit would keep the other processes waiting.
        traceback.print_exc()
        return fail(f"{type(error).__name__}: {error}", 1)


def liger_settings(settings: dict) -> dict:
    """What `use_liger_kernel` needs beside it: Liger's default (0.8.5) replaces a classification model's forward by a language
    model's. Raises ModelError where the package is missing."""
    if not settings.get("use_liger_kernel"):
        return {}
    if not is_liger_kernel_available():
        raise ModelError(
            "use_liger_kernel is set and liger-kernel is not installed: pip install liger-kernel"
        )
    return {
        "liger_kernel_config": {"fused_linear_cross_entropy": False}
        | (settings.get("liger_kernel_config") or {})
    }


def _run(recipe) -> int:
    # ----------------------------------------------------------------------------------------------------- the machine
    engine = Engine.read(recipe.plan) if recipe.plan else Engine.launched(recipe)
    settings = recipe.section("RewardConfig")
    model_config = ModelConfig(**recipe.section("ModelConfig"))
    quantised = model_config.load_in_4bit or model_config.load_in_8bit
    precision = choose_precision(settings, quantised)
    if recipe.plan is None:
        engine.check(recipe, settings.get("use_cpu", False))
    else:  # alone, without the engine that is planned for
        contract.leave_launcher()
        settings = {
            key: value
            for key, value in settings.items()
            if key not in ("deepspeed", "fsdp", "fsdp_config")
        }
    # Ours: the ledger applies max_length, the tokenizer carries the template, the model is built here.
    own = {
        key: settings.pop(key, None)
        for key in ("max_length", "chat_template_path", "eos_token", "model_init_kwargs")
    }
    max_length = recipe["max_length"]
    settings |= liger_settings(settings)
    try:
        args = RewardConfig(**settings, max_length=None)
    except ValueError as error:
        return fail(f"{recipe.path}: {error}", BAD_INPUT)
    state = PartialState()

    def say(*words, **options):  # PartialState.print speaks once a host
        if state.is_main_process:
            print(*words, **options)

    if recipe.plan is None:
        say(
            f"machine: {precision}, {state.num_processes} process{'es' if state.num_processes > 1 else ''}"
        )
    output_dir = Path(args.output_dir)
    set_seed(args.seed)

    # -------------------------------------------------------------------------------------------------------- the data
    name = recipe["model_name_or_path"]
    commit = resolved_revision(name, recipe["model_revision"])  # every file comes from the same one
    load = {
        "revision": commit or recipe["model_revision"],
        "trust_remote_code": args.trust_remote_code,
    }
    try:
        config = AutoConfig.from_pretrained(name, **load)
        tokenizer = build_tokenizer(
            name,
            config,
            **load,
            chat_template_path=own["chat_template_path"],
            eos_token=own["eos_token"],
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: {error}") from error
    limit = position_limit(config, tokenizer)
    max_length = max_length or limit
    if max_length and limit and max_length > limit:
        raise ModelError(
            f"max_length is {max_length}, but {name} reads at most {limit} tokens; set max_length: {limit}"
        )
    sources = recipe.data_sources()
    splits, ledger = load_preferences(
        sources,
        recipe["transcript"],
        validation_fraction=recipe["validation_fraction"],
        test_fraction=recipe["test_fraction"],
        min_rater_agreement=recipe["min_rater_agreement"],
        mismatched_prompts=recipe["mismatched_prompts"],
    )
    options = EncodingOptions(
        max_length=max_length,
        overlong=recipe["overlong"],
        loss_type=recipe["loss_type"],
        soft_labels=recipe["soft_labels"],
        strength_as=recipe["strength_as"],
        num_proc=args.dataset_num_proc,
    )
    encoded, subsets = encode_splits(splits, ledger, tokenizer, options)
    loss_type = recipe["loss_type"]
    if "target_margin" not in LOSSES[loss_type].labels and isinstance(encoded["train"], Dataset):
        unused = sum(margin != 0 for margin in encoded["train"]["target_margin"][:])
        ledger.add(
            "train", "noted", f"target margin, which loss_type: {loss_type} does not use", unused
        )
    say(f"data:\n{ledger}")
    ledger.check(recipe["max_dropped"])
    peft_config = get_peft_config(model_config)
    if recipe.plan is not None:
        own_options = {
            "attn_implementation": model_config.attn_implementation,
            **(own["model_init_kwargs"] or {}),
        }
        say(
            plan(
                recipe, engine, config, tokenizer, encoded["train"], args, peft_config, own_options
            )
        )
    if recipe.check_data or recipe.plan is not None:
        return 0
    fingerprints = {
        split: contract.fingerprint(row_ids(table))
        for split, table in encoded.items()
        if isinstance(table, Dataset)
    }
    given = {key: value for key, value in recipe.values.items() if key not in PATHS + ("datasets",)}
    alike = {
        "recipe": given,
        "ledger": ledger.as_dict(),
        "data": fingerprints,
        "base model": commit,
    }
    versions = contract.versions()
    same_everywhere(alike | {"versions": versions}, state)
    if engine.hosts > 1:
        shared_by_hosts(output_dir, state)

    # ------------------------------------------------------------------------------------------------------- the model
    if recipe.overwrite and state.is_main_process:
        for old in [*output_dir.glob("checkpoint-*"), *output_dir.glob("unverified")]:
            shutil.rmtree(old)  # of another run; --resume would go on from it
    state.wait_for_everyone()
    quantization = get_quantization_config(model_config)
    options = {
        "attn_implementation": model_config.attn_implementation,
        "quantization_config": quantization,
    }
    model = build_reward_model(
        name,
        dtype=model_config.dtype,
        **{
            key: recipe[key]
            for key in ("head", "head_bias", "head_init", "head_dropout", "train_last_layers")
        },
        **load,
        **{key: value for key, value in options.items() if value is not None},
        **(own["model_init_kwargs"] or {}),
    )
    facts = {
        "format_version": contract.FORMAT_VERSION,
        "base_model": name,
        "base_revision": commit,
        "adapter": model_config.use_peft,
        "trust_remote_code": args.trust_remote_code,
        "quantization": quantization.to_dict() if quantization is not None else None,
        "dtype": str(model.dtype).removeprefix("torch."),
        "labels": model.config.num_labels,
        "max_length": max_length,
        "overlong": recipe["overlong"],
        "transcript": recipe["transcript"],
        "encoder": encoder_facts(tokenizer),
        "subsets": subsets,
        "data": [
            " ".join(str(v) for v in (s["path"], s["name"], s["data_dir"]) if v) for s in sources
        ],
        "fingerprints": fingerprints,
        "versions": versions,
        "device": precision.split(";")[0] + f", {state.num_processes} process(es)",
        "precision": precision.split("; ")[1],
    }

    # ---------------------------------------------------------------------------------------------------- the training
    if peft_config is not None:
        peft_config.revision = commit  # an adapter belongs to one commit of its base
    if not isinstance(
        encoded["train"], Dataset
    ):  # or process 0 would cut each batch to pieces of equal length
        args.accelerator_config.dispatch_batches = False
    stop = StopOnSignal()
    callbacks = [stop]
    if recipe["early_stopping_patience"]:
        callbacks.append(EarlyStoppingCallback(recipe["early_stopping_patience"]))
    trainer = PairTrainer(
        model=model,
        args=args,
        train_dataset=encoded["train"],
        eval_dataset=encoded.get("validation"),
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=callbacks,
        options=PairOptions(
            subsets=subsets,
            loss_type=recipe["loss_type"],
            label_smoothing=recipe["label_smoothing"],
            tie_margin=recipe["tie_margin"],
            length_head=recipe["length_head"],
            prefix_sharing=recipe["prefix_sharing"],
            token_budget=recipe["token_budget"],
        ),
    )
    resume = _resume_from(recipe, output_dir, state)
    if resume and quantised and engine.kind == "FSDP":
        raise LaunchError(
            f"FSDP2 cannot load {resume} back into 4-bit or 8-bit layers; go on with ddp.yaml or zero3.yaml"
        )
    stop.accelerator = trainer.accelerator
    trainer.add_callback(contract.SealCheckpoint(trainer, facts))
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in trainer.model.parameters())
    if total:  # 0 under ZeRO-3, whose processes hold pieces
        say(f"model: {name}, {total:,} parameters, {trained / total:.1%} trained")
    start = time.monotonic()
    facts["validation"] = {}
    golden = contract.golden_pairs(encoded["test"])
    try:
        trainer.train(resume_from_checkpoint=resume)
        facts |= {
            "train_seconds": round(time.monotonic() - start, 1),
            "steps": trainer.state.global_step,
        }
        facts["batches"] = trainer.packing
        if "validation" in encoded and not stop.stopped:
            metrics = trainer.evaluate()
            facts["validation"] = {
                k.removeprefix("eval_"): v for k, v in metrics.items() if k.startswith("eval_")
            }
        if not stop.stopped:
            rewards = trainer.saved_rewards(golden)  # chosen, rejected, chosen, ...
    except Interrupted:  # in an evaluation: the step before it is whole
        trainer._save_checkpoint(trainer.model, trial=None)
        trainer.callback_handler.on_save(args, trainer.state, trainer.control)
    if stop.stopped:
        say(
            f"interrupted at step {trainer.state.global_step}; go on with the same command and --resume auto",
            file=sys.stderr,
        )
        return INTERRUPTED
    stop.restore()
    if not isinstance(encoded["train"], Dataset):  # what was streamed is known only now
        say(f"data, as streamed:\n{ledger}")
        ledger.check(recipe["max_dropped"])
    facts["date"] = time.strftime("%Y-%m-%d")

    # -------------------------------------------------------------------------------------------------- the checkpoint
    staging = output_dir / "unverified"
    if state.is_main_process:
        shutil.rmtree(staging, ignore_errors=True)
    state.wait_for_everyone()
    trainer.save_model(str(staging))
    main_process = state.is_main_process
    ledger_saved = ledger.as_dict()
    if main_process:
        (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle, never loaded
        recipe.save(staging / "recipe.yaml")
        contract.write_json(staging / "ledger.json", ledger_saved)
        contract.write_json(staging / "test_ids.json", row_ids(encoded["test"]))
        contract.write_golden(staging, contract.golden_texts(golden))
        contract.seal(staging, facts)
    trainer.end()  # trackers, and the process group: the child below must not meet it
    del trainer, model, callbacks, stop
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if not main_process:
        return 0
    exact = facts["dtype"] == "float32" and facts["precision"].startswith("float32")
    verified = contract.verify(staging, rewards, tolerance_of_std=0.0 if exact else 0.05)
    contract.write_golden(staging, contract.golden_texts(golden), verified.pop("rewards"))
    facts["verified"] = verified
    (staging / "README.md").write_text(
        model_card(facts, ledger_saved, verified, str(output_dir)), encoding="utf-8"
    )
    contract.seal(staging, facts)
    contract.put_in_place(staging, output_dir)
    print(
        f"saved {output_dir}: a fresh process gives the same rewards within {verified['max_difference']:.1e} "
        f"(allowed {verified['tolerance']:.1e})"
    )
    if facts["adapter"]:
        differs = facts_differ(tokenizer, AutoTokenizer.from_pretrained(name, **load))
        if recipe.merge or differs:
            because = (
                f" (an RL trainer would take the base's tokenizer, whose {', '.join(differs)} differ)"
                if differs
                else ""
            )
            moved = contract.fresh_process("reward.checkpoint.convert", output_dir)["moved"]
            print(
                f"saved {output_dir / 'merged'}{because}: merging moved rewards by at most {moved:.1e}"
            )
    print(f"next: python audit.py --ckpt {output_dir}")
    return 0


def _resume_from(recipe, output_dir, state) -> str | None:
    """The checkpoint to go on from, as process 0 chose it: on another host it might be another."""
    if recipe.resume is None:
        return None
    chosen = [None, None]  # folder, what is wrong with it
    if state.is_main_process and recipe.resume == "auto":
        chosen[0], passed_over = contract.newest_valid_checkpoint(output_dir)
        for line in passed_over:
            print(f"resume: not from {line}")
        none = f"resume: no checkpoint in {output_dir} to go on from; starting anew"
        print(f"resume: from {chosen[0]}" if chosen[0] else none)
    elif state.is_main_process:
        chosen = [recipe.resume, contract.checkpoint_fault(recipe.resume)]
    folder, fault = broadcast_object_list(chosen)
    if fault:
        raise DataError(f"--resume {folder}: {fault}")
    return folder
