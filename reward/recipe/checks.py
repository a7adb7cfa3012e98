"""Faults of keys together: a check yields the keys it looked at (the first is at fault) and the text."""

import os
from collections.abc import Iterator
from pathlib import Path

from reward.data.files import is_local, local_files
from reward.recipe.keys import TRL
from reward.recipe.recipe import Recipe

# ------------------------- keys together: a check yields the keys it looked at (the first is at fault) and the text


def _check_model(r: Recipe) -> Iterator[tuple[str, str]]:
    model, template = r["model_name_or_path"], r["chat_template_path"] or ""
    if not model:
        yield (
            "model_name_or_path",
            "no model; add `model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct`, or a folder",
        )
    elif is_local(model) and not os.path.isdir(model):
        yield "model_name_or_path", f"found no model folder {model}; {_absent(model)}"
    if (
        template
        and (is_local(template) or template.endswith(".jinja"))
        and not os.path.exists(template)
    ):
        yield (
            "chat_template_path",
            f"found no file {template}; name one, or delete the line to keep the model's own",
        )
    for key in ("load_in_4bit", "load_in_8bit"):
        if r[key] and not r["use_peft"]:
            yield (
                f"{key} use_peft",
                f"{key} freezes the weights, so it needs adapters to train: `use_peft: true`",
            )
    if r["load_in_4bit"] and r["load_in_8bit"]:
        yield (
            "load_in_8bit load_in_4bit",
            "found both load_in_4bit and load_in_8bit; delete one of the two lines",
        )
    if r["lora_task_type"] != "SEQ_CLS":
        found = f"found {r['lora_task_type']}, which has no reward head"
        yield "lora_task_type", f"{found}; write `lora_task_type: SEQ_CLS` or delete the line"
    for key in sorted(
        {"dtype", "revision", "trust_remote_code", "attn_implementation"}
        & {*(r["model_init_kwargs"] or {})}
    ):
        own = "model_revision" if key == "revision" else key
        yield (
            "model_init_kwargs",
            f"{key} is a key of its own: take it out of model_init_kwargs and write `{own}: ...`",
        )
    if "num_labels" in (r["model_init_kwargs"] or {}):
        yield (
            "model_init_kwargs",
            "num_labels follows from `head`: linear has 1, two_logit 2; delete it here",
        )
    if r["train_last_layers"] is not None and r["use_peft"]:
        yield (
            "train_last_layers use_peft",
            "adapters freeze the model already; delete train_last_layers or use_peft",
        )
    if r.merge and not r["use_peft"]:
        yield "merge use_peft", "--merge merges an adapter; there is none without `use_peft: true`"


def _absent(path: str) -> str:
    if Path(path).parts[:2] == ("data", "quickstart"):
        return "make it first: `python data/quickstart/make.py`"
    return "give a path that exists from here, or a Hub id such as `Qwen/Qwen2.5-0.5B-Instruct`"


def _check_data(r: Recipe) -> Iterator[tuple[str, str]]:
    single, sources = bool(r["dataset_name"]), r.data_sources()
    if not sources:
        yield (
            "dataset_name datasets",
            "no data; add `dataset_name: Anthropic/hh-rlhf`, or a file or folder",
        )
        return
    if single and r["datasets"]:
        yield (
            "datasets dataset_name",
            "found dataset_name and datasets; keep dataset_name for one source, or datasets",
        )
        return
    unread = (
        {"streaming"}
        if single
        else {key for key in TRL["ScriptArguments"] if key.startswith("dataset_")}
    )
    for key in sorted(unread & set(r.values)):
        instead = (
            "dataset_streaming"
            if single
            else "streaming, or name, split and test_split of an entry"
        )
        yield key, f"{key} has no effect here; write {instead}"
    if len({source["fraction"] is None for source in sources}) > 1:
        yield (
            "datasets",
            "found fraction in some entries only; add `fraction: 0.5` to every entry, or to none",
        )
    if sources[0]["streaming"] and r["mismatched_prompts"]:
        yield (
            "mismatched_prompts",
            "a stream cannot be searched for other prompts; delete mismatched_prompts, or streaming",
        )
    if sources[0]["streaming"] and r["max_steps"] < 1:
        yield (
            "dataset_streaming streaming max_steps",
            "a stream has no known end; add `max_steps: 1000`",
        )
    for index, source in enumerate(sources):
        label = "dataset_name" if single else f"datasets[{index}].path"
        for text in _source_faults(source, r["test_fraction"]) if source["path"] else ():
            yield f"{label} test_fraction dataset_train_split dataset_test_split", text


def _source_faults(source: dict, test_fraction: float | None) -> Iterator[str]:
    path, files, test = source["path"], source["data_files"], source["test_split"]
    folder = Path(path, source["data_dir"] or "")
    if is_local(path) and not folder.exists():
        yield f"found no file or folder {folder}; {_absent(path)}"
        return
    if is_local(path) and files:
        yield "data_files has no effect beside a local path; write `path: json` (or csv, parquet)"
        return
    train, held_out = (local_files(source, split) for split in (source["split"], test))
    for file in [*(train or ()), *(held_out or ())]:
        if "://" not in file and not os.path.exists(file):
            yield f"found no data file {file}; give one that exists from here: `data_files: FILE`"
    if train == []:
        yield f"{folder} holds no file for its train split, such as {source['split']}.jsonl; add it, or name the split"
    hint = "the audit needs rows never trained on: add `test_fraction: 0.1`, which splits by first user turn"
    if test_fraction is not None:
        return
    if test == source["split"]:
        yield f"trains and tests on the same split {test}; {hint}"
    elif files and not (isinstance(files, dict) and test in files):
        yield f"data_files names no file for the test split {test}; {hint}"
    elif held_out == [] and folder.is_file():
        yield f"{folder} is one file, without a test split; {hint}"
    elif held_out == []:
        yield f"{folder} holds no file for its test split, such as {test}.jsonl; {hint}"


def _check_training(r: Recipe) -> Iterator[tuple[str, str]]:
    by, saves, save_steps = r["eval_strategy"], r["save_strategy"], r["save_steps"]
    eval_steps = r["eval_steps"] or r["logging_steps"] or 1
    if r["tie_margin"] is not None and r["loss_type"] != "rao_kupper":
        yield (
            "tie_margin loss_type",
            "tie_margin belongs to `loss_type: rao_kupper`; change one of the two",
        )
    if r["length_head"] and r["loss_type"] not in ("bradley_terry", "rao_kupper"):
        yield (
            "length_head loss_type",
            f"length_head explains preferences, not {r['loss_type']}; delete one of the two",
        )
    if r["label_smoothing"] and r["loss_type"] == "rating_mse":
        yield (
            "label_smoothing loss_type",
            "rating_mse has no labels to smooth; delete label_smoothing",
        )
    if r["mismatched_prompts"] and r["loss_type"] == "rating_mse":
        yield (
            "mismatched_prompts loss_type",
            "a mismatched pair has no ratings; delete mismatched_prompts",
        )
    if r["bf16"] and r["fp16"]:
        yield "fp16 bf16", "found both bf16 and fp16; delete one of the two lines"
    for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        new = old.replace("gradient", "activation")
        if {old, new} <= set(r.values):
            yield (
                f"{old} {new}",
                f"{old} is the old name of {new} and has no effect beside it; delete the line",
            )
    if by != "no" and not r["validation_fraction"]:
        yield (
            "eval_strategy validation_fraction",
            "there are no rows to evaluate; write `validation_fraction: 0.1`",
        )
    if r["load_best_model_at_end"]:
        keys = (
            "load_best_model_at_end eval_strategy save_strategy eval_steps save_steps logging_steps"
        )
        uneven = (eval_steps < 1) != (save_steps < 1) or round(save_steps * 1e6) % max(
            1, round(eval_steps * 1e6)
        )
        if by == "no":
            yield keys, "choosing the best checkpoint needs evaluations; add `eval_strategy: steps`"
        elif saves not in (by, "best"):
            yield (
                keys,
                f"found save_strategy {saves} and eval_strategy {by}; write `save_strategy: {by}`",
            )
        elif by == saves == "steps" and uneven:
            found = f"save_steps ({save_steps}) is no multiple of eval_steps ({eval_steps})"
            yield keys, f"{found}; write `save_steps: {eval_steps}`"
    if r["early_stopping_patience"] and by == "no":
        yield (
            "early_stopping_patience eval_strategy",
            "stopping early needs evaluations; add `eval_strategy: steps`",
        )
    if r["early_stopping_patience"] and not r["load_best_model_at_end"]:
        yield (
            "early_stopping_patience load_best_model_at_end",
            "stopping early needs `load_best_model_at_end: true`",
        )


def _check_output(r: Recipe) -> Iterator[tuple[str, str]]:
    folder = Path(r["output_dir"] or "")
    first = (
        os.environ.get("RANK", "0") == "0"
    )  # the other ranks must not stumble over what rank 0 writes
    fresh = first and r.plan is None and not (r.check_data or r.overwrite or r.resume)
    if not r["output_dir"]:
        yield "output_dir", "no place for the checkpoint; add `output_dir: rm-out`"
    elif folder.is_file():
        yield "output_dir", f"found the file {folder}; needed is a folder: `output_dir: rm-out`"
    elif fresh and folder.is_dir() and any(folder.iterdir()):
        yield (
            "output_dir",
            f"{folder} is not empty; add `--overwrite`, `--resume auto` or another `--output_dir`",
        )
    if r.plan and not os.path.isfile(r.plan):
        yield (
            "plan",
            f"found no accelerate config {r.plan}; write `--plan accelerate_configs/zero3.yaml`",
        )
    if r.resume and r.overwrite:
        yield "resume", "found both --resume and --overwrite; delete one of the two"
    if r.resume not in (None, "auto") and not os.path.isdir(r.resume):
        yield (
            "resume",
            f"found no checkpoint folder {r.resume}; write `--resume auto`, or a folder that exists",
        )
