"""One training run, from a sound recipe to a verified checkpoint: train_rm.py's body.

    from reward.training.run import run
    status = run(parse_command_line(["--recipe", "recipes/quickstart.yaml"]))

`train_and_verify` is the whole way, step by step. Exit statuses: reward.training.runtime.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    EarlyStoppingCallback,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    set_seed,
)
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.utils import is_liger_kernel_available
from trl import ModelConfig, RewardConfig, get_peft_config, get_quantization_config

from reward.checkpoint.card import model_card
from reward.checkpoint.contract import (
    ALLOWED_OF_STD,
    ALLOWED_WHERE_CAST,
    put_in_place,
    standard_deviation,
    verify_saved_model,
)
from reward.checkpoint.folders import checkpoint_folders, remove
from reward.checkpoint.fresh_process import (
    CheckpointError,
    leave_launcher,
    run_in_fresh_process,
)
from reward.checkpoint.golden import golden_pairs, golden_texts, write_golden
from reward.checkpoint.manifest import Manifest, fingerprint, seal, versions
from reward.checkpoint.push import push
from reward.checkpoint.resume import (
    SealCheckpoint,
    checkpoint_fault,
    differences_of_runs,
    newest_valid_checkpoint,
    what_is_kept,
)
from reward.data.encoding import EncodingError, differing_facts, encoder_facts
from reward.data.files import DataError, Source, describe_source, write_json
from reward.data.hashing import hash_of_model_files
from reward.data.ledger import Ledger
from reward.data.one_writer import LOCK, LOCK_SECONDS_OF_TRAINING, open_locked, this_run
from reward.data.shown import count
from reward.data.splits import load_preferences
from reward.data.tokens import EncodingOptions, encode_splits, row_ids
from reward.model.architecture import read_config, require_classifier
from reward.model.batches import LABEL_DEFAULTS
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.heads import position_limit
from reward.model.hub import ModelError, checkpoint_object, resolved_revision
from reward.model.interrupts import INTERRUPTED, die_with_launcher, held_back
from reward.model.load import free_memory
from reward.recipe.keys import PATHS
from reward.recipe.paths import REPOSITORY, as_seen_from_here
from reward.recipe.recipe import Recipe
from reward.training.engine import Engine, LaunchError, same_everywhere, shared_by_hosts
from reward.training.failures import LOST_PROCESS, explanation
from reward.training.losses import LOSSES
from reward.training.plan import Plan, plan
from reward.training.runtime import (
    BAD_INPUT,
    NON_FINITE,
    Interrupted,
    Machine,
    StopOnSignal,
    choose_precision,
    fail,
    keep_quiet,
)
from reward.training.terminal import TrainingTable
from reward.training.trackers import TrackerPanels
from reward.training.trainer import NonFiniteError, PairOptions, PairTrainer

# Keys of RewardConfig that TRL's trainer is not given: the ledger applies max_length, the tokenizer
# carries the template, and the model is built here.
APPLIED_HERE = ("max_length", "chat_template_path", "eos_token", "model_init_kwargs")
STAGING = "unverified"  # the folder in output_dir for a model that is not verified yet
# A standard deviation of rewards below which a model hardly prefers anything: of two rewards that
# far apart, the higher one is the better answer with a probability of .505.
FLAT = 0.02
ENGINE_KEYS = ("deepspeed", "fsdp", "fsdp_config")


class SettingsError(ValueError):
    """Keys of the recipe that TRL or transformers refuses together; the message is theirs."""


# --- The whole way --------------------------------------------------------------------------------


def run(recipe: Recipe) -> int:
    """Train what a recipe says and return the exit status; every known failure becomes a message.

    Args:
        recipe: A sound recipe with the flags of the command line.
    """
    die_with_launcher()
    keep_quiet()
    try:
        return train_and_verify(recipe)
    except (SettingsError, DataError, ModelError, EncodingError, LaunchError) as error:
        return fail(error, BAD_INPUT)
    except NonFiniteError as error:
        unharmed = "Nothing was saved for this step; earlier checkpoints are as they were."
        return fail(f"{error}\n{unharmed}", NON_FINITE)
    except CheckpointError as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") != "0":  # the first process says it, or what went wrong
            return INTERRUPTED
        return fail(f"interrupted; {what_is_kept(recipe['output_dir'])}", INTERRUPTED)
    except Exception as error:
        return fail_unforeseen(error, recipe)


def fail_unforeseen(error: Exception, recipe: Recipe) -> int:
    """Say why this process ends, last in one sentence, and return the exit status 1.

    Printed here because waiting for this interpreter's threads would hold up other processes.
    """
    words = explanation(error)
    if words is None:
        traceback.print_exc()
        return fail(f"{type(error).__name__}: {error}", 1)
    if words.startswith(LOST_PROCESS):
        time.sleep(2)  # the launcher calls the first process that ends the root cause
    return fail(f"{words}\n{what_is_kept(recipe['output_dir'])}", 1)


def train_and_verify(recipe: Recipe) -> int:
    """Train what a recipe says, save it, verify it in a fresh process; return the exit status."""
    # --- Settings: what the recipe, the launcher and the machine decide
    settings = read_settings(recipe)
    set_seed(settings.args.seed)
    if recipe.check_data or recipe.plan is not None:
        look_ahead(settings)
        return 0
    say(machine_line(settings))
    with only_training_in(settings):
        return train_in_folder(settings)


def train_in_folder(settings: "Settings") -> int:
    """Train, save and verify in an output_dir that no other training writes to."""
    # --- Data: text -> disjoint splits of token ids
    remove_leftovers(settings)
    base = load_base(settings)
    data = load_data(settings, base)
    compare_processes(settings, base, data)

    # --- Model and trainer
    training = build(settings, base, data)

    # --- Train
    rewards = train(settings, data, training)
    if rewards is None:
        return INTERRUPTED

    # --- Save
    manifest, main_process = training.manifest, settings.state.is_main_process
    save(settings, base, data, training)
    del training
    free_memory()  # the fresh process loads the model a second time
    if not main_process:
        return 0

    # --- Verify, and put in place
    verify(settings, base, data, manifest, rewards)
    try:
        hand_on(settings, base, manifest)
    except KeyboardInterrupt:
        saved = f"{settings.output_dir} is saved and verified"
        return fail(f"interrupted; {saved}, and --resume auto does the rest", INTERRUPTED)
    audit = as_seen_from_here(REPOSITORY / "audit.py")
    print(f"next: python {audit} --ckpt {settings.output_dir}")
    return 0


def say(*words, **options) -> None:
    """Print once for all processes of all hosts; PartialState.print speaks once per host."""
    if PartialState().is_main_process:
        print(*words, **options)


# --- Settings -------------------------------------------------------------------------------------


@dataclass
class Settings:
    """What the recipe, the launcher and the machine decide before any file is read."""

    recipe: Recipe
    engine: Engine  # what the run was launched with, or what --plan plans for
    machine: Machine  # the device and its precision
    args: RewardConfig  # TRL's settings of the trainer
    model_config: ModelConfig  # TRL's settings of the model
    chat_template_path: str | None  # a template that replaces the tokenizer's own
    eos_token: str | None  # an end token that replaces the tokenizer's own
    model_init_kwargs: dict  # what else from_pretrained is given
    state: PartialState  # this process among those of the run

    @property
    def output_dir(self) -> Path:
        return Path(self.args.output_dir)

    @property
    def staging(self) -> Path:
        """Where the model is saved until it is verified."""
        return self.output_dir / STAGING


def read_settings(recipe: Recipe) -> Settings:
    """Turn a recipe into the settings of this process.

    With `--plan` this also removes the launcher's environment variables: the process goes on alone.

    Raises:
        LaunchError: The engine cannot do what the recipe asks for.
        SettingsError: RewardConfig refuses the keys.
        ModelError: The recipe has use_liger_kernel, and the package is missing.
    """
    if recipe.plan:
        engine = Engine.read(recipe.plan)
    else:
        engine = Engine.launched(recipe)
    keys = recipe.section("RewardConfig")
    model_config = ModelConfig(**recipe.section("ModelConfig"))
    machine = choose_precision(keys, recipe.quantized)
    if recipe.plan is None:
        engine.check(recipe, keys.get("use_cpu", False))
    else:
        leave_launcher()  # this process plans without the engine that is planned for
        for key in ENGINE_KEYS:
            keys.pop(key, None)
    applied_here = {key: keys.pop(key, None) for key in APPLIED_HERE}
    keys |= liger_settings(keys)
    if machine.is_cpu:  # there transformers passes ddp_timeout on to nobody
        seconds = keys.get("ddp_timeout", RewardConfig.ddp_timeout)
        PartialState(cpu=True, backend=keys.get("ddp_backend"), timeout=timedelta(seconds=seconds))
    try:
        args = RewardConfig(**keys, max_length=None)
    except ValueError as error:
        raise SettingsError(f"{recipe.path}: {error}") from error
    if recipe.plan:
        args._n_gpu = 1  # as under the launcher; plain python would count all GPUs of this machine
    return Settings(
        recipe,
        engine,
        machine,
        args,
        model_config,
        chat_template_path=applied_here["chat_template_path"],
        eos_token=applied_here["eos_token"],
        model_init_kwargs=applied_here["model_init_kwargs"] or {},
        state=PartialState(),
    )


def machine_line(settings: Settings) -> str:
    """Return the line that says where the run computes, and with how many processes."""
    count = settings.state.num_processes
    processes = "1 process"
    if count > 1:
        processes = f"{count} processes"
    return f"machine: {settings.machine}, {processes}"


def liger_settings(keys: dict) -> dict:
    """Return the keys that `use_liger_kernel` needs beside it; {} where it is off.

    Liger's default (0.8.5) replaces a classification model's forward by a language model's.

    Args:
        keys: The recipe's keys of RewardConfig.

    Raises:
        ModelError: The package is missing.
    """
    if not keys.get("use_liger_kernel"):
        return {}
    if not is_liger_kernel_available():
        raise ModelError(
            "use_liger_kernel is set and liger-kernel is not installed: pip install liger-kernel"
        )
    config = {"fused_linear_cross_entropy": False}
    config |= keys.get("liger_kernel_config") or {}
    return {"liger_kernel_config": config}


# --- Data -----------------------------------------------------------------------------------------


@dataclass
class Base:
    """The base model without its weights."""

    name: str  # a Hub id or a folder
    commit: str | None  # of a Hub id: every file comes from this one
    load_options: dict  # revision and trust_remote_code, for every from_pretrained
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase  # as the reward model is saved with it
    max_length: int | None  # tokens: the recipe's, or else what the model reads


@dataclass
class Data:
    """The pairs of the run."""

    sources: list[Source]  # as the recipe names them
    splits: dict[str, Dataset | IterableDataset]  # train, validation, test -> encoded pairs
    subsets: list[str]  # names, by subset_id; a stream adds to them while it is read
    ledger: Ledger  # what was kept and dropped, and why
    fingerprints: dict[str, str]  # split -> hash over its pairs and labels; a stream has none

    @property
    def streamed(self) -> bool:
        return not isinstance(self.splits["train"], Dataset)

    @property
    def golden(self) -> Dataset:
        """The test pairs that the checkpoint proves itself on."""
        return golden_pairs(self.splits["test"])


def load_base(settings: Settings) -> Base:
    """Read the base model's config and tokenizer.

    Raises:
        ModelError: They cannot be read, max_length is more than the model reads, or PEFT does not
            know which layers get an adapter.
    """
    recipe = settings.recipe
    name = recipe["model_name_or_path"]
    commit = resolved_revision(name, recipe["model_revision"])
    load_options = {
        "revision": commit or recipe["model_revision"],
        "trust_remote_code": settings.args.trust_remote_code,
    }
    try:
        config = read_config(name, **load_options)
        raw_config = checkpoint_object(name, "config.json", load_options["revision"])
        require_classifier(name, config, raw_config)
        refuse_unknown_lora_targets(settings.model_config, config)
        tokenizer = build_tokenizer(
            name,
            config,
            chat_template_path=settings.chat_template_path,
            eos_token=settings.eos_token,
            **load_options,
        )
    except ModelError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: {error}") from error
    limit = position_limit(config, tokenizer)
    max_length = recipe["max_length"] or limit
    if max_length and limit and max_length > limit:
        raise ModelError(
            f"max_length is {max_length}, but {name} reads at most {limit} tokens; "
            f"set max_length: {limit}"
        )
    return Base(name, commit, load_options, config, tokenizer, max_length)


def refuse_unknown_lora_targets(model_config: ModelConfig, config: PretrainedConfig) -> None:
    """Raise ModelError where the recipe names no layers for LoRA, and PEFT has no default."""
    named = model_config.lora_target_modules or model_config.lora_target_parameters
    if not model_config.use_peft or named:
        return
    if config.model_type not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        raise ModelError(
            f"use_peft: PEFT does not know which layers of a model of type {config.model_type} get "
            "an adapter; write lora_target_modules: all-linear"
        )


def load_data(settings: Settings, base: Base) -> Data:
    """Read, split and encode the recipe's pairs, and print the ledger.

    Raises:
        DataError: A source cannot be read, a split is empty, or more was dropped than max_dropped
            allows.
    """
    recipe = settings.recipe
    sources = recipe.data_sources()
    splits, ledger = load_preferences(
        sources,
        recipe["transcript"],
        validation_fraction=recipe["validation_fraction"],
        test_fraction=recipe["test_fraction"],
        min_rater_agreement=recipe["min_rater_agreement"],
        mismatched_prompts=recipe["mismatched_prompts"],
        on_bad_row=recipe["on_bad_row"],
        max_dropped=recipe["max_dropped"],
    )
    options = EncodingOptions(
        max_length=base.max_length,
        overlong=recipe["overlong"],
        loss_type=recipe["loss_type"],
        needs_ratings=LOSSES[recipe["loss_type"]].needs_ratings,
        soft_labels=recipe["soft_labels"],
        strength_as=recipe["strength_as"],
        num_proc=settings.args.dataset_num_proc,
        on_bad_row=recipe["on_bad_row"],
    )
    encoded, subsets = encode_splits(splits, ledger, base.tokenizer, options)
    note_unused_margins(encoded["train"], ledger, recipe["loss_type"])
    say(f"data:\n{ledger}")
    ledger.check(recipe["max_dropped"])
    require_subset(recipe["metric_for_best_model"], encoded.get("validation"), subsets)
    fingerprints = {}
    for split, table in encoded.items():
        if isinstance(table, Dataset):
            fingerprints[split] = fingerprint([*row_ids(table), *labels_in_words(table)])
    return Data(sources, encoded, subsets, ledger, fingerprints)


def labels_in_words(table: Dataset) -> list[str]:
    """Return what the raters said of each pair of an encoded split, if it is more than a choice."""
    defaults = {name: value for name, value in LABEL_DEFAULTS.items() if name != "subset_id"}
    names = [name for name in defaults if name in table.column_names]
    said = [repr(labels) for labels in zip(*(table[name][:] for name in names), strict=True)]
    nothing = repr(tuple(defaults[name] for name in names))
    if set(said) <= {nothing}:
        return []
    return said


def require_subset(metric: str | None, validation: Dataset | None, subsets: list[str]) -> None:
    """Raise DataError where the metric is of a subset that no evaluation measures.

    transformers notices it at the first evaluation, which may be hours away.
    """
    metric = (metric or "").removeprefix("eval_")
    if not metric.startswith("accuracy_") or validation is None:
        return
    measured = sorted(subsets[int(index)] for index in set(validation["subset_id"][:]))
    if len(measured) < 2 or metric.removeprefix("accuracy_") not in measured:
        raise DataError(
            f"metric_for_best_model: {metric} is measured in no evaluation, whose pairs are of "
            f"{' and '.join(measured)}; write `metric_for_best_model: accuracy`, or accuracy_NAME "
            "of one of several subsets"
        )


def note_unused_margins(
    train_split: Dataset | IterableDataset, ledger: Ledger, loss_type: str
) -> None:
    """Count in the ledger the target margins that the loss does not read.

    Those of a stream are not known yet.
    """
    if "target_margin" in LOSSES[loss_type].labels or not isinstance(train_split, Dataset):
        return
    unused = sum(margin != 0 for margin in train_split["target_margin"][:])
    reason = f"target margin, which loss_type: {loss_type} does not use"
    ledger.add("train", "noted", reason, unused)


def look_ahead(settings: Settings) -> None:
    """Print the ledger of the data, and with `--plan` what the run would take; train nothing."""
    base = load_base(settings)
    data = load_data(settings, base)
    if settings.recipe.plan is not None:
        say(plan_page(settings, base, data))


def plan_page(settings: Settings, base: Base, data: Data) -> Plan:
    """Return what `--plan` prints: parameters, tokens, steps and memory of the run."""
    model_options = {"attn_implementation": settings.model_config.attn_implementation}
    model_options |= settings.model_init_kwargs
    return plan(
        settings.recipe,
        settings.engine,
        base.config,
        base.tokenizer,
        data.splits["train"],
        settings.args,
        get_peft_config(settings.model_config),
        model_options,
    )


def compare_processes(settings: Settings, base: Base, data: Data) -> None:
    """Raise LaunchError where another host has other files than this one, or another output_dir."""
    compared = {}
    for key, value in settings.recipe.values.items():
        if key not in PATHS and key != "datasets":  # where files lie may differ by host
            compared[key] = value
    facts = {
        "recipe": compared,
        "ledger": data.ledger.as_dict(),
        "data": data.fingerprints,
        "base model": base.commit,
        "versions": versions(),
    }
    same_everywhere(facts, settings.state)
    if settings.engine.hosts > 1:
        shared_by_hosts(settings.output_dir, settings.state)


# --- Model and trainer ----------------------------------------------------------------------------


@dataclass
class Training:
    """What holds the model in memory; dropped before the saved model is verified."""

    trainer: PairTrainer
    stop: StopOnSignal
    panels: TrackerPanels
    seals: SealCheckpoint
    manifest: Manifest  # fills up while training goes on
    resume_from: str | None  # a checkpoint-N/ folder


def build(settings: Settings, base: Base, data: Data) -> Training:
    """Make the model and its trainer, and choose the checkpoint to go on from.

    Raises:
        ModelError: The base cannot become a reward model.
        LaunchError: The engine cannot resume.
        DataError: The checkpoint of `--resume FOLDER` is damaged.
    """
    quantization = get_quantization_config(settings.model_config)
    model = build_model(settings, base, quantization)
    manifest = start_manifest(settings, base, data, model, quantization)
    stop = StopOnSignal()
    trainer = build_trainer(settings, base, data, model)
    resume_from = choose_checkpoint(settings, manifest)
    if resume_from and settings.recipe.quantized and settings.engine.kind == "FSDP":
        raise LaunchError(
            f"FSDP2 cannot load {resume_from} back into 4-bit or 8-bit layers; go on with ddp.yaml "
            "or zero3.yaml"
        )
    panels, seals = TrackerPanels(trainer), SealCheckpoint(trainer, manifest)
    stop.accelerator = trainer.accelerator
    for callback in (panels, seals, stop):
        trainer.add_callback(callback)
    parameters = list(trainer.model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    if total:  # 0 under ZeRO-3, whose processes hold pieces
        say(f"model: {base.name}, {total:,} parameters, {trained / total:.1%} trained")
    return Training(trainer, stop, panels, seals, manifest, resume_from)


@contextmanager
def only_training_in(settings: Settings) -> Iterator[None]:
    """Keep other trainings out of output_dir until the block, or this process, has ended.

    Raises:
        DataError: Another training has it.
    """
    if not settings.state.is_main_process:
        yield
        return
    is_new = not settings.output_dir.exists()
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    path = settings.output_dir / LOCK
    if path.is_symlink():
        path.unlink()
    hint = "give another output_dir"
    with open_locked(str(path), hint, LOCK_SECONDS_OF_TRAINING) as file:
        file.truncate(0)
        file.write(json.dumps({"run": this_run()}).encode() + b"\n")
        file.flush()
        try:
            yield
        except CheckpointError:
            raise  # the files stay for inspection
        except BaseException:
            remove(settings.staging)  # half saved
            raise
        finally:
            path.unlink(missing_ok=True)
            if is_new and not any(settings.output_dir.iterdir()):
                settings.output_dir.rmdir()


def remove_leftovers(settings: Settings) -> None:
    """Remove a model that was not verified.

    With --overwrite, remove checkpoints of an earlier run too: --resume would go on from them.
    """
    if settings.state.is_main_process:
        remove(settings.staging)
        if settings.recipe.overwrite:
            for old in checkpoint_folders(settings.output_dir):
                remove(old)
    settings.state.wait_for_everyone()


def build_model(
    settings: Settings, base: Base, quantization: BitsAndBytesConfig | None
) -> PreTrainedModel:
    """Load the base and give it the recipe's head."""
    recipe, model_config = settings.recipe, settings.model_config
    options = {}
    if model_config.attn_implementation is not None:
        options["attn_implementation"] = model_config.attn_implementation
    if quantization is not None:
        options["quantization_config"] = quantization
    return build_reward_model(
        base.name,
        dtype=model_config.dtype,
        head=recipe["head"],
        head_bias=recipe["head_bias"],
        head_init=recipe["head_init"],
        head_dropout=recipe["head_dropout"],
        train_last_layers=recipe["train_last_layers"],
        **base.load_options,
        **options,
        **settings.model_init_kwargs,
    )


def start_manifest(
    settings: Settings,
    base: Base,
    data: Data,
    model: PreTrainedModel,
    quantization: BitsAndBytesConfig | None,
) -> Manifest:
    """Return the manifest as far as it is known before training."""
    recipe, machine = settings.recipe, settings.machine
    quantization_keys = None
    if quantization is not None:
        quantization_keys = quantization.to_dict()
    base_files = None
    if base.commit is None:
        base_files = hash_of_model_files(base.name)
    return Manifest(
        base_model=base.name,
        base_revision=base.commit,
        adapter=settings.model_config.use_peft,
        trust_remote_code=settings.args.trust_remote_code,
        quantization=quantization_keys,
        dtype=str(model.dtype).removeprefix("torch."),
        labels=model.config.num_labels,
        max_length=base.max_length,
        overlong=recipe["overlong"],
        transcript=recipe["transcript"],
        encoder=encoder_facts(base.tokenizer),
        subsets=data.subsets,
        data=[describe_source(source) for source in data.sources],
        fingerprints=data.fingerprints,
        versions=versions(),
        device=f"{machine.device}, {settings.state.num_processes} process(es)",
        precision=machine.precision,
        processes=settings.state.num_processes,
        base_files=base_files,
        recipe=recipe.deciding_values(),
        paths_from=os.path.relpath(os.getcwd(), settings.output_dir),
        validation={},
    )


def build_trainer(
    settings: Settings, base: Base, data: Data, model: PreTrainedModel
) -> PairTrainer:
    """Put TRL's trainer, with the recipe's objective, around the model."""
    recipe, args = settings.recipe, settings.args
    peft_config = get_peft_config(settings.model_config)
    if peft_config is not None:
        peft_config.revision = base.commit  # an adapter belongs to one commit of its base
    train_split = data.splits["train"]
    if data.streamed:
        # Else process 0 would cut each batch to pieces of equal length.
        args.accelerator_config.dispatch_batches = False
        # transformers does not know how often a stream was read, so that a run could not go on.
        train_split = train_split.repeat(None)
    callbacks = []
    if recipe["early_stopping_patience"]:
        callbacks.append(EarlyStoppingCallback(recipe["early_stopping_patience"]))
    trainer = PairTrainer(
        model=model,
        args=args,
        train_dataset=train_split,
        eval_dataset=data.splits.get("validation"),
        processing_class=base.tokenizer,
        peft_config=peft_config,
        callbacks=callbacks,
        options=PairOptions(
            subsets=data.subsets,
            loss_type=recipe["loss_type"],
            label_smoothing=recipe["label_smoothing"],
            tie_margin=recipe["tie_margin"],
            length_head=recipe["length_head"],
            prefix_sharing=recipe["prefix_sharing"],
            token_budget=recipe["token_budget"],
        ),
    )
    for bar in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
        trainer.remove_callback(bar)
    trainer.add_callback(TrainingTable())
    return trainer


def choose_checkpoint(settings: Settings, manifest: Manifest) -> str | None:
    """Return the checkpoint to go on from, None to start anew.

    Process 0 chooses it for all: on another host it might be another.

    Args:
        settings: The settings, with the flag `--resume`.
        manifest: The run's own.

    Raises:
        DataError: The folder that `--resume` names cannot be resumed from, or the newest checkpoint
            belongs to another run.
    """
    resume = settings.recipe.resume
    if resume is None:
        return None
    folder, fault = None, None
    if settings.state.is_main_process and resume == "auto":
        folder, fault = newest_of_this_run(settings, manifest)
    elif settings.state.is_main_process:
        folder = resume
        fault = checkpoint_fault(resume, settings.args.load_best_model_at_end)
        if fault is None:
            for line in differences_of_runs(folder, manifest):
                print(f"resume: {folder} is of another run: {line}")
    folder, fault = broadcast_object_list([folder, fault])
    if fault:
        raise DataError(f"--resume {folder}: {fault}")
    return folder


def newest_of_this_run(settings: Settings, manifest: Manifest) -> tuple[str | None, str | None]:
    """Return the newest whole checkpoint, and why it is none of this run; say what was chosen."""
    output_dir = settings.output_dir
    folder, passed_over = newest_valid_checkpoint(output_dir, settings.args.load_best_model_at_end)
    for line in passed_over:
        print(f"resume: not from {line}")
    if folder is None:
        print(f"resume: no checkpoint in {output_dir} to go on from; starting anew")
        return None, None
    lines = differences_of_runs(folder, manifest)
    if lines:
        listed = "".join(f"\n  - {line}" for line in lines)
        return folder, (
            f"it belongs to another run:{listed}\nGo on with the settings of that run, or name the "
            f"checkpoint to go on from it all the same (--resume {folder}), or start anew with "
            "--overwrite."
        )
    print(f"resume: from {folder}")
    return folder, None


# --- Train ----------------------------------------------------------------------------------------


def train(settings: Settings, data: Data, training: Training) -> list[float] | None:
    """Train, evaluate, and compute the golden rewards.

    Returns:
        The golden rewards: chosen, rejected, chosen, ... None if a signal stopped the run; its last
        step is then saved as a checkpoint.
    """
    trainer, stop, manifest = training.trainer, training.stop, training.manifest
    start = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=training.resume_from)
    except NonFiniteError as error:
        training.panels.alarm("not finite", str(error))
        training.panels.close()
        raise
    except Interrupted:
        keep_step(training)
        return None
    if stop.received_by_any():  # too late for a step, and what follows may take long
        if training.seals.step == trainer.state.global_step:
            say("interrupted after the last step; go on with --resume auto", file=sys.stderr)
            return None
        say("interrupted after the last step, which has no checkpoint: saving", file=sys.stderr)
    stop.restore()
    manifest.train_seconds = round(time.monotonic() - start, 1)
    manifest.steps = trainer.state.global_step
    manifest.batches = trainer.packing
    warn_of_warm_up_alone(settings.args, manifest.steps)
    if "validation" in data.splits:
        manifest.validation = evaluate(trainer)
    rewards = trainer.saved_rewards(data.golden)
    if data.streamed:  # only now is it known what was read
        say(f"data, as streamed:\n{data.ledger}")
        check_streamed(data.ledger, settings)
    manifest.date = time.strftime("%Y-%m-%d")
    return rewards


def check_streamed(ledger: Ledger, settings: Settings) -> None:
    """Refuse a stream that lost too much, and say how the steps that it trained are not lost.

    Raises:
        DataError: It did.
    """
    try:
        ledger.check(settings.recipe["max_dropped"])
    except DataError as error:
        raise DataError(
            f"{error}\nOf the trained steps {what_is_kept(settings.output_dir)}"
        ) from None


def warn_of_warm_up_alone(args: RewardConfig, steps: int) -> None:
    """Say where every step was one of the warm-up, whose first step has a learning rate of 0.

    Args:
        args: The trainer's settings.
        steps: How many steps the run has.
    """
    warms_up = args.lr_scheduler_type not in ("constant", "reduce_lr_on_plateau")
    if warms_up and args.get_warmup_steps(steps) >= steps:
        say(
            f"warning: the whole run is warm-up ({count(steps, 'step')}, of which the first has a "
            "learning rate of 0), so the model is nearly the one that it was before. Train on more "
            "pairs or for more epochs, or set warmup_steps: 0"
        )


def keep_step(training: Training) -> None:
    """Write the checkpoint of the step at which a signal stopped the run, if it is not there."""
    trainer = training.trainer
    state, handler = trainer.state, trainer.callback_handler
    if state.global_step not in (0, training.seals.step):
        trainer._save_checkpoint(trainer.model, trial=None)
        handler.on_save(trainer.args, state, trainer.control)
    handler.on_train_end(trainer.args, state, trainer.control)  # trackers end as well
    say(
        f"interrupted at step {state.global_step}; go on with the same command and --resume auto",
        file=sys.stderr,
    )


def evaluate(trainer: PairTrainer) -> dict[str, float]:
    """Return the metrics of the validation split under their plain names: loss, accuracy, n, ...

    The trackers have ended with the training. They would open a second run for these numbers.
    """
    for tracker in get_reporting_integration_callbacks(trainer.args.report_to):
        trainer.remove_callback(tracker)
    metrics = {}
    for key, value in trainer.evaluate().items():
        if key.startswith("eval_"):
            metrics[key.removeprefix("eval_")] = value
    return metrics


# --- Save -----------------------------------------------------------------------------------------


def save(settings: Settings, base: Base, data: Data, training: Training) -> None:
    """Write the whole checkpoint beside its final place, and leave the process group.

    The card is missing: it says whether the model was verified.
    """
    staging, state = settings.staging, settings.state
    if state.is_main_process:
        remove(staging)
    state.wait_for_everyone()
    training.trainer.save_model(str(staging))
    if state.is_main_process:
        (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle, never loaded
        settings.recipe.save(staging / "recipe.yaml")
        write_json(staging / "ledger.json", data.ledger.as_dict())
        write_json(staging / "test_ids.json", row_ids(data.splits["test"]))
        write_golden(staging, golden_texts(data.golden, base.tokenizer))
        seal(staging, training.manifest.as_dict())
    training.trainer.end()  # trackers, and the process group, which the fresh process must not meet


# --- Verify ---------------------------------------------------------------------------------------


def verify(
    settings: Settings, base: Base, data: Data, manifest: Manifest, rewards: list[float]
) -> None:
    """Compare the saved model's golden rewards with the trained model's, and move it to its place.

    Args:
        settings: The settings, which say where the model lies and where it goes.
        base: The base, whose tokenizer encoded the texts.
        data: The pairs, which hold the golden ones.
        manifest: The manifest; the result of the comparison goes into it.
        rewards: The trained model's golden rewards.

    Raises:
        CheckpointError: The saved files do not give those rewards.
    """
    staging, output_dir = settings.staging, settings.output_dir
    # Without autocast, as golden rewards are computed, a CPU computes float32 weights in float32,
    # but not 4-bit and 8-bit layers.
    machine = settings.machine
    on_cpu = machine.is_cpu and not (settings.engine.casts_weights or settings.recipe.quantized)
    exact = manifest.dtype == "float32" and (machine.is_float32 or on_cpu)
    tolerance_of_std = ALLOWED_OF_STD
    if exact:
        tolerance_of_std = 0.0
    elif settings.engine.casts_weights and not machine.is_float32:
        tolerance_of_std = ALLOWED_WHERE_CAST
    verified = verify_saved_model(staging, rewards, tolerance_of_std)
    write_golden(staging, golden_texts(data.golden, base.tokenizer), verified.rewards)
    manifest.verified = verified.for_manifest()
    card = model_card(manifest, data.ledger.as_dict(), str(output_dir))
    (staging / "README.md").write_text(card, encoding="utf-8")
    seal(staging, manifest.as_dict())
    with held_back():
        removed = put_in_place(staging, output_dir)
    for audit in removed:
        print(f"removed {audit}, which was of an earlier model")
    print(
        f"saved {output_dir}: a fresh process gives the same rewards within "
        f"{verified.max_difference:.1e} (allowed {verified.tolerance:.1e})"
    )
    warn_of_flat_rewards(rewards)


def warn_of_flat_rewards(rewards: list[float]) -> None:
    """Say where a model gives nearly the same reward to every text; nothing else shows it.

    Args:
        rewards: Of the golden texts.
    """
    spread = standard_deviation(rewards)
    if spread < FLAT:
        print(
            f"warning: the rewards of {len(rewards)} test texts have a standard deviation of "
            f"{spread:.2g}, so the model hardly prefers anything. It has not learned, or has lost "
            "what it had: try a lower learning_rate, then more steps"
        )


def hand_on(settings: Settings, base: Base, manifest: Manifest) -> None:
    """Merge the adapter and upload the model, where that was asked for."""
    if manifest.adapter:
        merge_adapter(settings, base)
    if settings.recipe.push:
        print(f"uploaded to {push(settings.output_dir, settings.recipe.push)}")


def merge_adapter(settings: Settings, base: Base) -> None:
    """Write merged/ where the recipe or the tokenizer asks for it.

    TRL's RL trainers take the base's tokenizer for an adapter; its template, end token and pad
    token may differ from ours.
    """
    base_tokenizer = AutoTokenizer.from_pretrained(base.name, **base.load_options)
    differing = differing_facts(base.tokenizer, base_tokenizer)
    if not settings.recipe.merge and not differing:
        return
    because = ""
    if differing:
        names = ", ".join(differing)
        because = f" (an RL trainer would take the base's tokenizer, whose {names} differ)"
    moved = run_in_fresh_process("reward.checkpoint.convert", settings.output_dir)["moved"]
    merged = settings.output_dir / "merged"
    print(f"saved {merged}{because}: merging moved rewards by at most {moved:.1e}")
