"""Trainings of a few steps that stop and go on: their recipe, and what differs between them."""

from pathlib import Path

from standins import hh_rows, make_model
from support import last_of_each, write_rows

RECIPE = """\
model_name_or_path: {model}
dtype: float32
dataset_name: {data}
max_length: 256
validation_fraction: 0.25
learning_rate: 2.0e-3
per_device_train_batch_size: 3
gradient_accumulation_steps: 2
logging_steps: 2
max_steps: 12
eval_strategy: steps
eval_steps: 3
save_strategy: steps
save_steps: 3
report_to: none
use_cpu: true
activation_checkpointing: false
"""
BEST = "--load_best_model_at_end true --metric_for_best_model loss --greater_is_better false "
# The base recipe takes 7 steps for an epoch.
CONFIGURATIONS = {
    "full, with dropout": "--disable_dropout false --model_init_kwargs {attention_dropout:\\ 0.1}",
    "LoRA": "--use_peft true --lora_r 4 --lora_dropout 0.1 --lora_target_modules all-linear",
    "QLoRA": (
        "--load_in_4bit true --use_peft true --lora_r 4 --lora_dropout 0.1 "
        f"--lora_target_modules all-linear --gradient_accumulation_steps 1 {BEST}"
    ),
    "token_budget, length_head": "--token_budget 300 --length_head true",
    "load_best_model_at_end": BEST,
    "early stopping": f"{BEST} --early_stopping_patience 1 --max_steps 18 --learning_rate 0.02",
    "save_total_limit: 1": f"{BEST} --save_total_limit 1 --eval_steps 2 --save_steps 4",
    "by epoch": (
        "--eval_strategy epoch --save_strategy epoch --logging_strategy epoch --max_steps -1 "
        f"--num_train_epochs 2 --save_total_limit 1 {BEST}"
    ),
    "save_strategy: best": f"{BEST} --save_strategy best",
    "dataloader_num_workers": "--dataloader_num_workers 1 --disable_dropout false "
    "--model_init_kwargs {attention_dropout:\\ 0.1}",
    "dataset_streaming": "--dataset_streaming true",
    "group_by_length": "--train_sampling_strategy group_by_length --max_steps 18",
}


def words(options: str) -> list[str]:
    """The words of a command line; a backslash keeps a space. Of an option the last one counts."""
    found = [word.replace("\0", " ") for word in options.replace("\\ ", "\0").split()]
    return last_of_each(found)


def make_material(folder: Path) -> int:
    """Write the model, the pairs and recipe.yaml."""
    model = make_model(folder / "model", "qwen")
    write_rows(folder / "pairs" / "train.jsonl", hh_rows(60, seed=1))
    write_rows(folder / "pairs" / "test.jsonl", hh_rows(6, seed=2))
    (folder / "recipe.yaml").write_text(RECIPE.format(model=model, data=folder / "pairs"))
    return 0


def untimed(entry: dict) -> dict:
    """The metrics of an entry of the log that do not depend on the time it took."""
    timed = ("runtime", "per_second", "flos", "train_loss")
    return {key: value for key, value in entry.items() if not key.endswith(timed)}
