"""The tables of what a recipe may hold: our own keys, TRL's and transformers', and the flags.

To add a key of our own, add one `OwnKey` to OWN_KEYS. The check of its type, choices and range, the
text of each error, and its line of `train_rm.py --help` all come from there.
"""

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CLI = "command line"  # the place of a key that is given there and not in a file

# The types of YAML values, in words for errors.
KINDS = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
    "null": "null",
}

# A value of each type, which errors propose for a key that has no default.
EXAMPLES = {
    "bool": True,
    "int": 1,
    "float": 0.1,
    "str": "name",
    "list": ["a", "b"],
    "dict": {"key": 1},
}


@dataclass(frozen=True)
class Range:
    """The numbers that a key may hold: `gt < x` or `ge <= x`, and `x < lt` or `x <= le`."""

    example: float  # a good value, which errors propose
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def __contains__(self, value: float) -> bool:
        """Whether the value lies in the range. NaN lies in no range."""
        if self.gt is not None and not value > self.gt:
            return False
        if self.ge is not None and not value >= self.ge:
            return False
        if self.lt is not None and not value < self.lt:
            return False
        return self.le is None or value <= self.le

    def __str__(self) -> str:
        """The range as an inequality: `0 <= x < 1`, or `x >= 2` if it has no upper end."""
        if self.lt is None and self.le is None:
            if self.gt is not None:
                return f"x > {_short(self.gt)}"
            return f"x >= {_short(self.ge)}"
        lower = f"{_short(self.ge)} <= x"
        if self.gt is not None:
            lower = f"{_short(self.gt)} < x"
        if self.lt is not None:
            return f"{lower} < {_short(self.lt)}"
        return f"{lower} <= {_short(self.le)}"


def _short(bound: float) -> str:
    return str(bound).replace("0.", ".")


@dataclass(frozen=True)
class Key:
    """The values that one key may hold, and its default."""

    name: str
    types: Sequence[str]  # names of KINDS
    default: object = None  # its value if the recipe does not name it
    choices: Sequence[str] = ()  # the texts that are allowed; empty: any
    range: Range | None = None  # the numbers that are allowed; None: any


@dataclass(frozen=True, kw_only=True)
class OwnKey(Key):
    """One of our own keys. `train_rm.py --help` shows its help, default, choices and range."""

    help: str  # one line


def _loss_types() -> list[str]:
    """The keys of `LOSSES` in reward/training/losses.py, in their order.

    They are read from the text of that file, so that a loss is added in one place. Importing it
    would import torch, which takes seconds, and would run up the layers.
    """
    path = Path(__file__).parents[1] / "training" / "losses.py"
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "LOSSES":
            return [ast.literal_eval(name) for name in statement.value.keys]
    raise LookupError(f"{path} assigns no LOSSES")


# --- Our own keys -------------------------------------------------------------------------------

OWN_KEYS = [
    OwnKey(
        "transcript",
        types=("str",),
        default="messages",
        choices=("messages", "raw"),
        help="read transcripts as messages, or keep their raw text",
    ),
    OwnKey(
        "overlong",
        types=("str",),
        default="drop",
        choices=("drop", "truncate_prompt", "error"),
        help="what happens to a pair above max_length",
    ),
    OwnKey(
        "validation_fraction",
        types=("float",),
        default=0.1,
        range=Range(ge=0, lt=1, example=0.1),
        help="share of the train rows set aside to choose the best checkpoint",
    ),
    OwnKey(
        "test_fraction",
        types=("float", "null"),
        default=None,
        range=Range(gt=0, lt=1, example=0.1),
        help="share set aside for the audit where a source has no test split",
    ),
    OwnKey(
        "on_bad_row",
        types=("str",),
        default="skip",
        choices=("skip", "stop"),
        help="drop and count a row that cannot be read or encoded, or stop",
    ),
    OwnKey(
        "max_dropped",
        types=("float",),
        default=0.1,
        range=Range(ge=0, le=1, example=0.1),
        help="stop when a larger share of the pairs is dropped",
    ),
    OwnKey(
        "min_rater_agreement",
        types=("float", "null"),
        default=None,
        range=Range(gt=0.5, le=1, example=0.7),
        help="train only on pairs on which this share of the raters agrees",
    ),
    OwnKey(
        "mismatched_prompts",
        types=("float",),
        default=0.0,
        range=Range(ge=0, le=1, example=0.25),
        help="add this share of pairs, each against an answer to another prompt",
    ),
    OwnKey(
        "loss_type",
        types=("str",),
        default="bradley_terry",
        choices=_loss_types(),
        help="the objective",
    ),
    OwnKey(
        "soft_labels",
        types=("bool",),
        default=True,
        help="votes and chosen_probability count as given; false: the majority is right",
    ),
    OwnKey(
        "strength_as",
        types=("str",),
        default="target_margin",
        choices=("target_margin", "chosen_probability"),
        help="what a preference strength means",
    ),
    OwnKey(
        "length_head",
        types=("bool",),
        default=False,
        help="learn what length explains beside the model, and drop it at save time",
    ),
    OwnKey(
        "label_smoothing",
        types=("float",),
        default=0.0,
        range=Range(ge=0, lt=0.5, example=0.1),
        help="share of the labels taken to be wrong",
    ),
    OwnKey(
        "tie_margin",
        types=("float", "null"),
        default=None,
        range=Range(gt=0, example=0.5),
        help="rao_kupper: raters may call a tie within it; null: .5",
    ),
    OwnKey(
        "head",
        types=("str",),
        default="linear",
        choices=("linear", "two_logit"),
        help="two_logit: HALOs' two labels, reward = logit 1",
    ),
    OwnKey(
        "head_bias",
        types=("bool", "null"),
        default=None,
        help="null: as the architecture has it",
    ),
    OwnKey(
        "head_init",
        types=("str", "null"),
        default=None,
        choices=("zero", "normal"),
        help="null keeps a trained head; zero and normal start anew",
    ),
    OwnKey(
        "head_dropout",
        types=("float",),
        default=0.0,
        range=Range(ge=0, lt=1, example=0.1),
        help="dropout of the hidden state before the head, in training only",
    ),
    OwnKey(
        "train_last_layers",
        types=("int", "null"),
        default=None,
        range=Range(ge=0, example=4),
        help="train the last N blocks and the head; 0: the head alone",
    ),
    OwnKey(
        "prefix_sharing",
        types=("str",),
        default="auto",
        choices=("auto", "on", "off"),
        help="no padding, and each shared prefix computed once",
    ),
    OwnKey(
        "token_budget",
        types=("int", "null"),
        default=None,
        range=Range(ge=1, example=8192),
        help="cut a device's batch into micro-batches of so many tokens; null: whole",
    ),
    OwnKey(
        "early_stopping_patience",
        types=("int", "null"),
        default=None,
        range=Range(ge=1, example=3),
        help="evaluations without a better metric before stopping",
    ),
]

OWN = {key.name: key for key in OWN_KEYS}


# --- The keys of TRL and transformers -----------------------------------------------------------

# Dataclasses of TRL. RewardConfig includes transformers' TrainingArguments. The fields of
# DatasetConfig are the keys of an entry of `datasets`; those of the others are keys of a recipe.
CLASSES = (
    "RewardConfig",
    "ModelConfig",
    "ScriptArguments",
    "DatasetMixtureConfig",
    "DatasetConfig",
)

# TRL does not check these ranges, and fails late outside them.
TRL_RANGES = {
    "max_length": Range(ge=2, example=1024),
    "fraction": Range(gt=0, example=0.5),
}

# Our defaults for keys of TRL. `bf16` is not listed: if it is not set it stays null, and the script
# decides by the machine.
DEFAULTS = {
    "lora_task_type": "SEQ_CLS",  # TRL's CAUSAL_LM crashes RewardTrainer, and saves no head
    "report_to": "none",  # as in TRL today; a run must never ask for a login
    "log_on_each_node": False,  # one log per run, not one per host
}


def _trl_keys() -> dict[str, dict[str, Key]]:
    """The keys of each of CLASSES, as tests/make_recipe_keys.py read them from TRL."""
    path = Path(__file__).with_name("recipe_keys.json")
    classes = json.loads(path.read_text(encoding="utf-8"))
    keys = {}
    for class_name in CLASSES:
        keys[class_name] = {
            name: Key(name, range=TRL_RANGES.get(name), **spec)
            for name, spec in classes[class_name].items()
        }
    return keys


TRL = _trl_keys()


# --- Every key of a recipe ----------------------------------------------------------------------

KEYS: dict[str, Key] = {}
for _class_name in CLASSES[:-1]:
    KEYS |= TRL[_class_name]
KEYS |= OWN

# The keys of an entry of `datasets`.
ENTRY = TRL["DatasetConfig"] | {
    "test_split": Key("test_split", types=("str",), default="test"),
    "subset": Key("subset", types=("str", "null")),
    # TRL's list of the columns to read, or a mapping of our names to the source's.
    "columns": Key("columns", types=("list", "dict", "null")),
}

# The keys whose value is a path or a Hub id. `~` is expanded in it, and the processes of a run may
# differ in it (reward.training.run.compare_processes).
# Keys that begin so do not decide the trained weights, or are compared by what they lead to.
DECIDE_NOTHING = (
    "output_dir",
    "model_name_or_path",
    "chat_template_path",
    "dataset_name",
    "datasets",
    "log",
    "report_to",
    "run_name",
    "project",
    "trackio",
    "save_",
    "push_",
    "hub_",
    "disable_tqdm",
    "debug",
    "skip_memory",
    "include_",
    "dataset_num_proc",
    "dataloader_num_workers",
    "dataloader_p",
    "ddp_",
    "deepspeed",
    "fsdp",
    "use_cpu",
    "activation_",
    "gradient_checkpointing",
    "prefix_sharing",
    "token_budget",
    "per_device_eval",
    "eval_accumulation",
    "torch_empty",
    "max_dropped",
    "on_bad_row",
)

PATHS = (
    "model_name_or_path",
    "chat_template_path",
    "output_dir",
    "dataset_name",
    "path",
    "data_dir",
    "data_files",
    "deepspeed",
)


# The trackers that `report_to` may name -> the packages of which it needs one. Without a package
# here transformers asks for it, when the trainer is made.
TRACKERS = {
    "trackio": ("trackio",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "comet_ml": ("comet_ml",),
    "swanlab": ("swanlab",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "dvclive": ("dvclive",),
    "neptune": ("neptune",),
    "azure_ml": (),
    "dagshub": (),
    "flyte": (),
    "kubeflow": (),
}


# --- The flags of the command, and what a recipe may not hold -----------------------------------

FLAGS = {
    "recipe": "FILE, or the name of one in recipes/, such as qwen-0.5b",
    "merge": "also write merged/, the adapter merged into its base",
    "check_data": "read and encode the data, print the ledger, train nothing",
    "plan": "[FILE]: also print parameters, tokens, steps and memory under that accelerate config; "
    "train nothing",
    "overwrite": "train anew where output_dir holds an earlier run",
    "resume": "auto or DIR: go on from the newest checkpoint that is whole, or from DIR",
    "push": "NAME: upload the verified checkpoint to this repository of the Hub",
    "list_recipes": "print the recipes in recipes/, what each is and needs",
}

SWITCHES = ("merge", "check_data", "overwrite", "list_recipes")  # the flags that take no value

# Keys that people know from elsewhere, but that a recipe may not hold. Each value says why, and
# what to write instead.
REFUSED = {
    "push_to_hub": "it would upload what is not verified yet; "
    "`python train_rm.py --recipe FILE --push you/name` uploads afterwards",
    "env": "a recipe sets no environment (it could redirect tokens and caches): "
    "`NAME=value python train_rm.py ...`",
    "test_split_size": "it puts one conversation on both sides; "
    "`test_fraction: 0.1` splits by first user turn",
    "pad_token": "a pad token that never comes last is picked from the vocabulary; delete the line",
    "resume_from_checkpoint": "resuming belongs to the command: "
    "`python train_rm.py --recipe FILE --resume auto`",
    "overwrite_output_dir": "overwriting belongs to the command: "
    "`python train_rm.py --recipe FILE --overwrite`",
    "warmup_ratio": "removed from transformers; "
    "`warmup_steps: 0.1` means the same (below 1 it is a share)",
    "torch_dtype": "its name is `dtype`, for example `dtype: float32`",
    "label_smoothing_factor": "it smooths token labels; "
    "for preference labels write `label_smoothing: 0.1`",
    "group_by_length": "removed from transformers; "
    "write `train_sampling_strategy: group_by_length`",
}

# What people call a key elsewhere -> our name of it, where no spelling leads there.
OTHER_NAMES = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "max_epochs": "num_train_epochs",
    "steps": "max_steps",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "micro_train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "accumulation": "gradient_accumulation_steps",
    "grad_clip": "max_grad_norm",
    "max_norm": "max_grad_norm",
    "wd": "weight_decay",
    "optimizer": "optim",
    "scheduler": "lr_scheduler_type",
    "lr_scheduler": "lr_scheduler_type",
    "lr_schedule": "lr_scheduler_type",
    "warmup": "warmup_steps",
    "loss": "loss_type",
    "smoothing": "label_smoothing",
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "model_id": "model_name_or_path",
    "model_path": "model_name_or_path",
    "base_model": "model_name_or_path",
    "base": "model_name_or_path",
    "pretrain": "model_name_or_path",
    "revision": "model_revision",
    "precision": "dtype",
    "flash_attention": "attn_implementation",
    "flash_attn": "attn_implementation",
    "template": "chat_template_path",
    "chat_template": "chat_template_path",
    "lora": "use_peft",
    "adapter": "use_peft",
    "finetuning_type": "use_peft",
    "lora_rank": "lora_r",
    "rank": "lora_r",
    "alpha": "lora_alpha",
    "lora_target": "lora_target_modules",
    "target_modules": "lora_target_modules",
    "qlora": "load_in_4bit",
    "quantization": "load_in_4bit",
    "quantization_bit": "load_in_4bit",
    "data": "dataset_name",
    "dataset": "dataset_name",
    "data_path": "dataset_name",
    "dataset_path": "dataset_name",
    "train_file": "dataset_name",
    "train_data": "dataset_name",
    "split": "dataset_train_split",
    "max_len": "max_length",
    "max_seq_len": "max_length",
    "max_seq_length": "max_length",
    "max_tokens": "max_length",
    "sequence_len": "max_length",
    "cutoff_len": "max_length",
    "truncation": "overlong",
    "val_size": "validation_fraction",
    "val_fraction": "validation_fraction",
    "validation_split": "validation_fraction",
    "test_size": "test_fraction",
    "patience": "early_stopping_patience",
    "output": "output_dir",
    "out": "output_dir",
    "out_dir": "output_dir",
    "save_path": "output_dir",
    "tracker": "report_to",
    "logger": "report_to",
    "use_wandb": "report_to",
    "wandb": "report_to",
    "wandb_project": "project",
    "eval_every": "eval_steps",
    "save_every": "save_steps",
    "log_every": "logging_steps",
    "grad_checkpointing": "activation_checkpointing",
}

for _flag in FLAGS:
    _option = _flag.replace("_", "-")
    REFUSED[_flag] = f"a flag, never a key: `python train_rm.py --recipe FILE --{_option}`"


# --- The banners of a recipe --------------------------------------------------------------------

# Banner -> how the names of the keys below it begin. All other keys belong to Training.
GROUPS = {
    "Model": (
        "model_",
        "dtype",
        "attn_",
        "use_peft",
        "use_rslora",
        "use_dora",
        "use_bnb",
        "lora_",
        "load_in_",
        "bnb_",
        "trust_",
        "chat_",
        "disable_dr",
        "eos_",
        "head",
        "train_last",
    ),
    "Data": (
        "dataset",
        "streaming",
        "transcript",
        "overlong",
        "on_bad_row",
        "validation_",
        "test_",
        "max_dropped",
        "max_length",
        "pad_to_",
        "min_rater",
        "mismatched",
    ),
    "Objective": (
        "loss_type",
        "center_rewards",
        "label_smoothing",
        "soft_labels",
        "strength_as",
        "tie_margin",
        "length_head",
    ),
    "Training": (),
    "Logging": (
        "output_dir",
        "log",
        "report_to",
        "run_name",
        "project",
        "trackio",
        "eval_",
        "save_",
        "load_best",
        "metric_",
        "greater",
        "push_",
        "hub_",
    ),
}
