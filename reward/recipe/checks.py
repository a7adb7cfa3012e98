"""Faults that no single key shows: keys that contradict each other, and files that are missing.

To add a check, write an `if` in the function of its topic, and yield a `Fault` that says what was
found and which line mends it.
"""

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from reward.data.columns import fault_of_our_name
from reward.data.files import FILE_BUILDERS, Source, is_local, local_files
from reward.data.one_writer import LOCK
from reward.data.secrets import holds_secret
from reward.data.shown import shown
from reward.recipe.keys import KEYS, OWN, TRACKERS, TRL
from reward.recipe.paths import REPOSITORY, as_seen_from_here
from reward.recipe.recipe import Recipe
from reward.recipe.yaml_text import to_yaml


@dataclass(frozen=True)
class Fault:
    """What is wrong with a recipe, and the keys that decide it.

    The fault is reported at the place of the first of these keys that the recipe names. It is not
    reported if one of the keys is faulty by itself.
    """

    keys: tuple[str, ...]
    text: str


def check_recipe(recipe: Recipe) -> Iterator[Fault]:
    """Find every fault of the recipe that its single keys do not show."""
    yield from _check_model(recipe)
    yield from _check_without_effect(recipe)
    yield from _check_quantization(recipe)
    yield from _check_model_keys(recipe)
    yield from _check_data(recipe)
    yield from _check_objective(recipe)
    yield from _check_training(recipe)
    yield from _check_trackers(recipe)
    yield from _check_best_checkpoint(recipe)
    yield from _check_early_stopping(recipe)
    yield from _check_output(recipe)
    yield from _check_flags(recipe)


# --- Keys that do nothing here ------------------------------------------------------------------

WHAT_EVALUATES = "every evaluation counts the metrics of all pairs; delete it"
WHAT_UPLOADS = "nothing is uploaded by a recipe; write `--push you/name` on the command line"
# Keys of transformers and TRL that this trainer does not read, or that break it -> what to do.
WITHOUT_EFFECT = {
    "do_train": "every run trains, except with --plan and --check-data; delete it",
    "do_eval": "evaluations are asked for by `eval_strategy: steps`",
    "do_predict": "`python audit.py` reads the test pairs; delete it",
    "prediction_loss_only": WHAT_EVALUATES,
    "include_for_metrics": WHAT_EVALUATES,
    "batch_eval_metrics": WHAT_EVALUATES,
    "eval_do_concat_batches": WHAT_EVALUATES,
    "bf16_full_eval": "it would round the trained weights before they are saved; delete it",
    "fp16_full_eval": "it would round the trained weights before they are saved; delete it",
    "label_names": "the labels of a pair have their names in the data; delete it",
    "ignore_bias_buffers": "TRL reads it for DPO alone; delete it",
    "hub_model_id": WHAT_UPLOADS,
    "hub_strategy": WHAT_UPLOADS,
    "hub_always_push": WHAT_UPLOADS,
    "hub_revision": WHAT_UPLOADS,
    "save_on_each_node": "all hosts share output_dir, where one process writes; delete it",
    "enable_jit_checkpoint": "on SIGTERM every run writes a checkpoint; delete it",
}
# How keys begin that do nothing without another one -> that one, and the line that sets it.
NEED_ANOTHER = {
    (
        *("lora_r", "lora_alpha", "lora_dropout", "lora_target_", "lora_modules_"),
        *("use_rslora", "use_dora"),
    ): ("use_peft", "use_peft: true"),
    ("bnb_4bit_", "use_bnb_"): ("load_in_4bit", "load_in_4bit: true"),
    ("eval_steps",): ("eval_strategy", "eval_strategy: steps"),
}


def _check_without_effect(recipe: Recipe) -> Iterator[Fault]:
    """Find keys that are accepted by TRL and would be passed over in silence.

    A key that says what holds anyway is no fault, for TRL's examples write out defaults. Nor is a
    key whose other one is set, to whatever value: `--use_peft false` may stand beside a recipe for
    LoRA.
    """
    for key, mend in WITHOUT_EFFECT.items():
        if key in recipe.values and not _holds_anyway(recipe, key):
            yield Fault((key,), f"{key} has no place here: {mend}")
    for beginnings, (needed, line) in NEED_ANOTHER.items():
        if needed in recipe.values:
            continue
        for key in sorted(recipe.values):
            if key.startswith(beginnings) and recipe[key] is not None:
                yield Fault(
                    (key, needed),
                    f"{key} does nothing without `{line}`; add that line, or delete {key}",
                )


def _holds_anyway(recipe: Recipe, key: str) -> bool:
    """Whether the value of a key of WITHOUT_EFFECT is what every run does."""
    if key == "do_train":
        return recipe[key]
    if key == "do_eval":
        return recipe[key] == (recipe["eval_strategy"] != "no")
    return recipe[key] == KEYS[key].default


# --- The model ----------------------------------------------------------------------------------


def _check_model(recipe: Recipe) -> Iterator[Fault]:
    model = recipe["model_name_or_path"]
    if not model:
        yield Fault(
            ("model_name_or_path",),
            "no model; add `model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct`, or a folder",
        )
    elif is_local(model) and not os.path.isdir(model):
        mend = _absent(model, "Qwen/Qwen2.5-0.5B-Instruct")
        yield Fault(("model_name_or_path",), f"found no model folder {model}; {mend}")
    template = recipe["chat_template_path"] or ""
    is_file_path = template and (is_local(template) or template.endswith(".jinja"))
    if is_file_path and not os.path.exists(template):
        yield Fault(
            ("chat_template_path",),
            f"found no file {template}; name one, or delete the line to keep the model's own",
        )


def _absent(path: str, hub_id: str) -> str:
    """What to do about a local path that does not exist.

    Args:
        path: The path.
        hub_id: An example of what may be given instead.
    """
    if Path(path).parts[:2] == ("data", "quickstart"):
        script = as_seen_from_here(REPOSITORY / "data" / "quickstart" / "make.py")
        model = "data/quickstart/model"
        if path.rstrip("/") != model and difflib.get_close_matches(path, [model], cutoff=0.9):
            return f"did you mean {model}? `python {script} --model` makes it"
        return f"make it first: `python {script}`"
    return f"give a path that exists from here, or a Hub id such as `{hub_id}`"


def _check_quantization(recipe: Recipe) -> Iterator[Fault]:
    for key in ("load_in_4bit", "load_in_8bit"):
        if recipe[key] and not recipe["use_peft"]:
            yield Fault(
                (key, "use_peft"),
                f"{key} freezes the weights, so it needs adapters to train: `use_peft: true`",
            )
    if recipe["load_in_4bit"] and recipe["load_in_8bit"]:
        yield Fault(
            ("load_in_8bit", "load_in_4bit"),
            "found both load_in_4bit and load_in_8bit; delete one of the two lines",
        )


def _check_model_keys(recipe: Recipe) -> Iterator[Fault]:
    task_type = recipe["lora_task_type"]
    if task_type != "SEQ_CLS":
        yield Fault(
            ("lora_task_type",),
            f"found {task_type}, which has no reward head; "
            "write `lora_task_type: SEQ_CLS` or delete the line",
        )
    init_kwargs = recipe["model_init_kwargs"] or {}
    for key in ("attn_implementation", "dtype", "revision", "trust_remote_code"):
        if key in init_kwargs:
            own_key = {"revision": "model_revision"}.get(key, key)
            yield Fault(
                ("model_init_kwargs",),
                f"{key} is a key of its own: "
                f"take it out of model_init_kwargs and write `{own_key}: ...`",
            )
    if "num_labels" in init_kwargs:
        yield Fault(
            ("model_init_kwargs",),
            "num_labels follows from `head`: linear has 1, two_logit 2; delete it here",
        )
    if recipe["train_last_layers"] is not None and recipe["use_peft"]:
        yield Fault(
            ("train_last_layers", "use_peft"),
            "adapters freeze the model already; delete train_last_layers or use_peft",
        )
    if recipe.merge and not recipe["use_peft"]:
        yield Fault(
            ("merge", "use_peft"),
            "--merge merges an adapter; there is none without `use_peft: true`",
        )


# --- The data -----------------------------------------------------------------------------------


def _check_data(recipe: Recipe) -> Iterator[Fault]:
    sources = recipe.data_sources()
    if not sources:
        yield Fault(
            ("dataset_name", "datasets"),
            "no data; add `dataset_name: Anthropic/hh-rlhf`, or a file or folder",
        )
        return
    if recipe["dataset_name"] and recipe["datasets"]:
        yield Fault(
            ("datasets", "dataset_name"),
            "found dataset_name and datasets; keep dataset_name for one source, or datasets",
        )
        return
    yield from _check_unread_keys(recipe)
    if len({source["fraction"] is None for source in sources}) > 1:
        yield Fault(
            ("datasets",),
            "found fraction in some entries only; add `fraction: 0.5` to every entry, or to none",
        )
    if sources[0]["streaming"]:
        yield from _check_streaming(recipe)
    for index, source in enumerate(sources):
        for text in _check_columns(source):
            yield Fault((f"datasets[{index}].columns",), text)
        path_key = f"datasets[{index}].path"
        if recipe["dataset_name"]:
            path_key = "dataset_name"
        keys = (path_key, "test_fraction", "dataset_train_split", "dataset_test_split")
        if source["path"]:
            for text in _check_source(source, recipe["test_fraction"]):
                yield Fault(keys, text)


def _check_unread_keys(recipe: Recipe) -> Iterator[Fault]:
    """Find keys for `datasets` beside `dataset_name`, and keys for `dataset_name` without it."""
    if recipe["dataset_name"]:
        unread = {"streaming"}
        instead = "dataset_streaming"
    else:
        unread = {key for key in TRL["ScriptArguments"] if key.startswith("dataset_")}
        instead = "streaming, or name, split and test_split of an entry"
    for key in sorted(unread & set(recipe.values)):
        yield Fault((key,), f"{key} has no effect here; write {instead}")


def _check_columns(source: Source) -> Iterator[str]:
    """Find what is wrong with the names of the columns of a source."""
    columns = source["columns"] or []
    if isinstance(columns, dict):
        faults = [fault_of_our_name(name) for name in columns]
        yield from [f"columns: {fault}" for fault in faults if fault]
        names = list(columns.values())
    else:
        names = columns
    for name in names:
        if not isinstance(name, str):
            yield (
                f"columns holds {to_yaml(name)}, and the name of a column is text: "
                "`columns: {prompt: my_question, chosen: good, rejected: bad}`"
            )
    texts = [name for name in names if isinstance(name, str)]
    for name in sorted({name for name in texts if texts.count(name) > 1}):
        yield f"columns names `{name}` twice; name each column once"


def _check_streaming(recipe: Recipe) -> Iterator[Fault]:
    if recipe["mismatched_prompts"]:
        yield Fault(
            ("mismatched_prompts",),
            "a stream cannot be searched for other prompts; "
            "delete mismatched_prompts, or streaming",
        )
    if recipe["dataloader_num_workers"]:
        yield Fault(
            ("dataloader_num_workers",),
            "a stream is read by the process that counts its rows; delete dataloader_num_workers",
        )
    if recipe["train_sampling_strategy"] in ("group_by_length", "batch_rebalance"):
        yield Fault(
            ("train_sampling_strategy",),
            "a stream is not read ahead, so its lengths are unknown; "
            "delete train_sampling_strategy, or streaming",
        )
    if recipe["max_steps"] < 1:
        yield Fault(
            ("dataset_streaming", "streaming", "max_steps"),
            "a stream has no known end; add `max_steps: 1000`",
        )


def _check_source(source: Source, test_fraction: float | None) -> Iterator[str]:
    """Find what is wrong with one source: files that are missing, or no rows to test on."""
    path = source["path"]
    folder = Path(path, source["data_dir"] or "")
    if is_local(path) and not folder.exists():
        yield f"found no file or folder {folder}; {_absent(path, 'Anthropic/hh-rlhf')}"
        return
    no_effect = _key_without_effect(source)
    if no_effect is not None:
        yield no_effect
        return
    train_files = local_files(source, source["split"])
    test_files = local_files(source, source["test_split"])
    for file in (train_files or []) + (test_files or []):
        if "://" not in file and not os.path.exists(file):
            yield f"found no data file {file}; give one that exists from here: `data_files: FILE`"
    if train_files == []:
        yield (
            f"{folder} holds no file for its train split, such as {source['split']}.jsonl; "
            "add it, or name the split"
        )
    if test_fraction is None:
        fault = _test_split_fault(source, folder, test_files)
        if fault is not None:
            hint = "add `test_fraction: 0.1`, which splits by first user turn"
            yield f"{fault}; the audit needs rows never trained on: {hint}"


def _key_without_effect(source: Source) -> str | None:
    """The key of local files that nobody reads, and what to write; None if there is none."""
    path = source["path"]
    if is_local(path) and source["data_files"]:
        return "data_files has no effect beside a local path; write `path: json` (or csv, parquet)"
    if source["name"] and (is_local(path) or path in FILE_BUILDERS):
        return "name has no effect beside local files; `data_dir` names a folder inside of `path`"
    return None


def _test_split_fault(source: Source, folder: Path, test_files: list[str] | None) -> str | None:
    """Why a source has no test split of its own; None if it has one.

    Args:
        source: The source.
        folder: Its file or folder, if it is local.
        test_files: The files of its test split, as `local_files` returns them.
    """
    files, test_split = source["data_files"], source["test_split"]
    if test_split == source["split"]:
        return f"trains and tests on the same split {test_split}"
    if files and not (isinstance(files, dict) and test_split in files):
        return f"data_files names no file for the test split {test_split}"
    if test_files != []:
        return None
    if folder.is_file():
        return f"{folder} is one file, without a test split"
    return f"{folder} holds no file for its test split, such as {test_split}.jsonl"


# --- The objective and the training -------------------------------------------------------------


def _check_objective(recipe: Recipe) -> Iterator[Fault]:
    loss_type = recipe["loss_type"]
    if recipe["tie_margin"] is not None and loss_type != "rao_kupper":
        yield Fault(
            ("tie_margin", "loss_type"),
            "tie_margin belongs to `loss_type: rao_kupper`; change one of the two",
        )
    if recipe["length_head"] and loss_type not in ("bradley_terry", "rao_kupper"):
        yield Fault(
            ("length_head", "loss_type"),
            f"length_head explains preferences, not {loss_type}; delete one of the two",
        )
    if recipe["label_smoothing"] and loss_type == "rating_mse":
        yield Fault(
            ("label_smoothing", "loss_type"),
            "rating_mse has no labels to smooth; delete label_smoothing",
        )
    for key in ("soft_labels", "strength_as"):
        if recipe[key] != OWN[key].default and loss_type == "rating_mse":
            yield Fault((key, "loss_type"), f"rating_mse reads ratings alone; delete {key}")
    if recipe["mismatched_prompts"] and loss_type == "rating_mse":
        yield Fault(
            ("mismatched_prompts", "loss_type"),
            "a mismatched pair has no ratings; delete mismatched_prompts",
        )


def _check_training(recipe: Recipe) -> Iterator[Fault]:
    if recipe["bf16"] and recipe["fp16"]:
        yield Fault(("fp16", "bf16"), "found both bf16 and fp16; delete one of the two lines")
    for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        new = old.replace("gradient", "activation")
        if {old, new} <= set(recipe.values):
            yield Fault(
                (old, new),
                f"{old} is the old name of {new} and has no effect beside it; delete the line",
            )
    if recipe["eval_strategy"] != "no" and not recipe["validation_fraction"]:
        yield Fault(
            ("eval_strategy", "validation_fraction"),
            "there are no rows to evaluate; write `validation_fraction: 0.1`",
        )


def _check_trackers(recipe: Recipe) -> Iterator[Fault]:
    """Check that the trackers exist, and are installed: the data is read before one is opened."""
    names = recipe["report_to"] or "none"
    if isinstance(names, str):
        names = [names]
    for name in names:
        if name in ("all", "none"):
            continue
        if not isinstance(name, str) or name not in TRACKERS:
            nearest = difflib.get_close_matches(str(name), TRACKERS, n=1) or ["trackio"]
            yield Fault(
                ("report_to",),
                f"found {to_yaml(name)}; needed are none, all or any of {', '.join(TRACKERS)}: "
                f"`report_to: {nearest[0]}`",
            )
            continue
        packages = TRACKERS[name]
        if packages and not any(find_spec(package) for package in packages):
            yield Fault(
                ("report_to",),
                f"{name} is not installed: `pip install {packages[0]}`, or `report_to: none`",
            )


# What PairTrainer.pair_metrics measures, besides the accuracy of each subset.
METRICS = ("accuracy", "loss", "margin", "n", "reward_mean", "reward_std", "tie_rate")


def _check_best_checkpoint(recipe: Recipe) -> Iterator[Fault]:
    """Check that the metric exists, and that every save of `load_best_model_at_end` has one."""
    metric = (recipe["metric_for_best_model"] or "loss").removeprefix("eval_")
    if metric not in METRICS and not metric.startswith("accuracy_"):
        nearest = (difflib.get_close_matches(metric, METRICS, n=1) or ["accuracy"])[0]
        yield Fault(
            ("metric_for_best_model",),
            f"found {metric}, which no evaluation measures; needed is one of {', '.join(METRICS)}, "
            f"or accuracy_NAME of a subset: `metric_for_best_model: {nearest}`",
        )
    evaluates, saves = recipe["eval_strategy"], recipe["save_strategy"]
    if saves == "best" and not recipe["load_best_model_at_end"]:
        if evaluates == "no":
            yield Fault(
                ("save_strategy", "eval_strategy"),
                "save_strategy: best saves after evaluations; add `eval_strategy: steps`",
            )
        if recipe["metric_for_best_model"] is None:
            yield Fault(
                ("save_strategy", "metric_for_best_model"),
                "save_strategy: best needs a metric; add `metric_for_best_model: accuracy`",
            )
    if not recipe["load_best_model_at_end"]:
        return
    keys = (
        "load_best_model_at_end",
        "eval_strategy",
        "save_strategy",
        "eval_steps",
        "save_steps",
        "logging_steps",
    )
    if evaluates == "no":
        yield Fault(
            keys, "choosing the best checkpoint needs evaluations; add `eval_strategy: steps`"
        )
    elif saves not in (evaluates, "best"):
        yield Fault(
            keys,
            f"found save_strategy {saves} and eval_strategy {evaluates}; "
            f"write `save_strategy: {evaluates}`",
        )
    elif evaluates == saves == "steps":
        save_steps = recipe["save_steps"]
        eval_steps = recipe["eval_steps"] or recipe["logging_steps"] or 1
        if not _is_multiple(save_steps, eval_steps):
            yield Fault(
                keys,
                f"save_steps ({save_steps}) is no multiple of eval_steps ({eval_steps}); "
                f"write `save_steps: {eval_steps}`",
            )


def _is_multiple(save_steps: float, eval_steps: float) -> bool:
    """Whether every save falls on an evaluation. Steps below 1 are a fraction of all steps."""
    if (eval_steps < 1) != (save_steps < 1):
        return False
    millionths = max(1, round(eval_steps * 1e6))  # whole numbers, because .3 % .1 is not 0
    return round(save_steps * 1e6) % millionths == 0


def _check_early_stopping(recipe: Recipe) -> Iterator[Fault]:
    if not recipe["early_stopping_patience"]:
        return
    if recipe["eval_strategy"] == "no":
        yield Fault(
            ("early_stopping_patience", "eval_strategy"),
            "stopping early needs evaluations; add `eval_strategy: steps`",
        )
    if not recipe["load_best_model_at_end"]:
        yield Fault(
            ("early_stopping_patience", "load_best_model_at_end"),
            "stopping early needs `load_best_model_at_end: true`",
        )


# --- The output and the flags -------------------------------------------------------------------


def _check_output(recipe: Recipe) -> Iterator[Fault]:
    folder = Path(recipe["output_dir"] or "")
    why_not = _why_not_writable(folder)
    if not recipe["output_dir"]:
        yield Fault(("output_dir",), "no place for the checkpoint; add `output_dir: rm-out`")
    elif why_not is not None:
        yield Fault(
            ("output_dir",),
            f"nothing can be written to {shown(folder, longest=200)}: {why_not}; needed is a "
            "folder that you may write to: `output_dir: rm-out`",
        )
    elif folder.is_file():
        yield Fault(
            ("output_dir",),
            f"found the file {folder}; needed is a folder: `output_dir: rm-out`",
        )
    elif _base_lies_in(folder, recipe):
        yield Fault(
            ("output_dir", "model_name_or_path"),
            f"the base {recipe['model_name_or_path']} lies in {folder}, whose model is replaced by "
            "the trained one; needed is another `--output_dir`",
        )
    elif _must_be_empty(recipe) and folder.is_dir() and set(os.listdir(folder)) - {LOCK}:
        yield Fault(
            ("output_dir",),
            f"{folder} is not empty; add `--overwrite`, `--resume auto` or another `--output_dir`",
        )


def _base_lies_in(folder: Path, recipe: Recipe) -> bool:
    """Whether the base is this folder, or lies in it."""
    base = recipe["model_name_or_path"]
    if not base or not os.path.isdir(base):
        return False
    return Path(base).resolve().is_relative_to(folder.resolve())


def _why_not_writable(folder: Path) -> str | None:
    """Why no file can be written to a folder, which need not exist yet; None if one can."""
    try:
        existing = folder
        while not existing.exists():
            existing = existing.parent
    except (OSError, ValueError) as error:  # too long a name, or one with a null character
        return getattr(error, "strerror", None) or str(error)
    if existing != folder and not existing.is_dir():
        return f"{existing} is a file"
    if existing.is_dir() and not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} is not yours to write to"
    return None


def _must_be_empty(recipe: Recipe) -> bool:
    """Whether this run starts a new checkpoint in its output_dir."""
    if os.environ.get("RANK", "0") != "0":
        return False  # rank 0 may already have written to the folder when another rank looks
    writes_nothing = recipe.plan is not None or recipe.check_data
    return not (writes_nothing or recipe.overwrite or recipe.resume)


def _check_flags(recipe: Recipe) -> Iterator[Fault]:
    if recipe.plan and not os.path.isfile(recipe.plan):
        yield Fault(
            ("plan",),
            f"found no accelerate config {recipe.plan}; "
            "write `--plan accelerate_configs/zero3.yaml`",
        )
    if recipe.push:
        yield from _check_push(recipe)
    if recipe.resume and recipe.overwrite:
        yield Fault(("resume",), "found both --resume and --overwrite; delete one of the two")
    if recipe.resume not in (None, "auto") and not os.path.isdir(recipe.resume):
        yield Fault(
            ("resume",),
            f"found no checkpoint folder {recipe.resume}; "
            "write `--resume auto`, or a folder that exists",
        )


def _check_push(recipe: Recipe) -> Iterator[Fault]:
    """Check what would only fail when the training is over."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if recipe.plan is not None or recipe.check_data:
        yield Fault(("push",), "--push uploads a model, and this trains none; delete it")
    try:
        if holds_secret(recipe.push):
            raise HFValidationError(recipe.push)
        validate_repo_id(recipe.push)
    except HFValidationError:
        yield Fault(
            ("push",), f"{recipe.push} is no name of a repository; write `--push you/my-model`"
        )
    if get_token() is None:
        yield Fault(("push",), "--push needs a login that may write: `hf auth login`")
