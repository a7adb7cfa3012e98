"""The keys that a recipe may hold: our own, TRL's and transformers', and the flags of the command."""

import ast
import json
from pathlib import Path


def _loss_types() -> list[str]:
    """The keys of `LOSSES` in reward/training/losses.py, in their order.

    They are read from the text of that file, so that a loss is added in one place. Importing it
    would import torch, which takes seconds, and would run up the layers.
    """
    path = Path(__file__).parents[1] / "training" / "losses.py"
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id == "LOSSES":
            return [ast.literal_eval(key) for key in statement.value.keys]
    raise LookupError(f"{path} assigns no LOSSES")


LOSS_TYPES = _loss_types()


# Our own keys, the whole list: name -> types, default, choices, one line of help.
OWN = {
    "transcript": (
        ["str"],
        "messages",
        ["messages", "raw"],
        "read transcripts as messages, or keep their raw text",
    ),
    "overlong": (
        ["str"],
        "drop",
        ["drop", "truncate_prompt", "error"],
        "what happens to a pair above max_length",
    ),
    "validation_fraction": (
        ["float"],
        0.1,
        None,
        "share of the train rows to select on, 0 <= x < 1",
    ),
    "test_fraction": (
        ["float", "null"],
        None,
        None,
        "share to hold out where a source has no test split, 0 < x < 1",
    ),
    "max_dropped": (
        ["float"],
        0.1,
        None,
        "stop when a larger share of the pairs is dropped, 0 <= x <= 1",
    ),
    "min_rater_agreement": (
        ["float", "null"],
        None,
        None,
        "train on pairs of which so many raters agree, .5 < x <= 1",
    ),
    "mismatched_prompts": (
        ["float"],
        0.0,
        None,
        "add pairs against an answer to another prompt; share, 0 <= x <= 1",
    ),
    "loss_type": (["str"], "bradley_terry", LOSS_TYPES, "the objective"),
    "soft_labels": (
        ["bool"],
        True,
        None,
        "votes and chosen_probability count as given; false: the majority is right",
    ),
    "strength_as": (
        ["str"],
        "target_margin",
        ["target_margin", "chosen_probability"],
        "what a preference strength means",
    ),
    "length_head": (
        ["bool"],
        False,
        None,
        "learn what length explains beside the model, and drop it at save time",
    ),
    "label_smoothing": (["float"], 0.0, None, "share of the labels taken to be wrong, 0 <= x < .5"),
    "tie_margin": (
        ["float", "null"],
        None,
        None,
        "rao_kupper: raters may call a tie within it, x > 0; null: .5",
    ),
    "head": (
        ["str"],
        "linear",
        ["linear", "two_logit"],
        "two_logit: HALOs' two labels, reward = logit 1",
    ),
    "head_bias": (["bool", "null"], None, None, "null: as the architecture has it"),
    "head_init": (
        ["str", "null"],
        None,
        ["zero", "normal"],
        "null keeps a trained head; zero and normal start anew",
    ),
    "head_dropout": (
        ["float"],
        0.0,
        None,
        "of the hidden state before the head, in training only, 0 <= x < 1",
    ),
    "train_last_layers": (
        ["int", "null"],
        None,
        None,
        "train the last N blocks and the head; 0: the head alone",
    ),
    "prefix_sharing": (
        ["str"],
        "auto",
        ["auto", "on", "off"],
        "no padding, and each shared prefix computed once",
    ),
    "token_budget": (
        ["int", "null"],
        None,
        None,
        "micro-batches of so many tokens, of a device's batch; null: whole",
    ),
    "early_stopping_patience": (
        ["int", "null"],
        None,
        None,
        "evaluations without a better metric before stopping",
    ),
}


# Where we differ from TRL. `bf16` has no line: unset it stays null, and the script decides by
# machine.
DEFAULTS = {
    "lora_task_type": "SEQ_CLS",  # TRL's CAUSAL_LM crashes RewardTrainer, and saves no head
    "report_to": "none",  # TRL agrees today; a run must never ask for a login
    "log_on_each_node": False,  # one log of a run, not one of each host
}


FLAGS = {
    "recipe": "FILE, the recipe",
    "merge": "also write merged/, the adapter merged into its base",
    "check_data": "read and encode the data, print the ledger, train nothing",
    "plan": "[FILE], parameters, tokens, steps, memory a GPU under that accelerate config; train nothing",
    "overwrite": "use an output_dir that is not empty",
    "resume": "auto or DIR, go on from the newest valid checkpoint or from DIR",
}


REFUSED = {
    flag: f"a flag, never a key: `python train_rm.py --recipe FILE --{flag.replace('_', '-')}`"
    for flag in FLAGS
}


REFUSED |= {
    "push_to_hub": "it would upload what is not verified yet; afterwards: `hf upload NAME rm-out`",
    "env": "a recipe sets no environment (it could redirect tokens and caches): `NAME=value python train_rm.py ...`",
    "test_split_size": "it puts one conversation on both sides; `test_fraction: 0.1` splits by first user turn",
    "pad_token": "a pad token that never comes last is picked from the vocabulary; delete the line",
    "resume_from_checkpoint": "resuming belongs to the command: `python train_rm.py --recipe FILE --resume auto`",
    "overwrite_output_dir": "overwriting belongs to the command: `python train_rm.py --recipe FILE --overwrite`",
    "warmup_ratio": "removed from transformers; `warmup_steps: 0.1` means the same (below 1 it is a share)",
    "torch_dtype": "its name is `dtype`, for example `dtype: float32`",
    "label_smoothing_factor": "it smooths token labels; for preference labels write `label_smoothing: 0.1`",
    "group_by_length": "removed from transformers; write `train_sampling_strategy: group_by_length`",
}


RANGES = {  # key -> what is needed, the check, an example
    "validation_fraction": ("0 <= x < 1", lambda x: 0 <= x < 1, 0.1),
    "test_fraction": ("0 < x < 1", lambda x: 0 < x < 1, 0.1),
    "max_dropped": ("0 <= x <= 1", lambda x: 0 <= x <= 1, 0.1),
    "fraction": ("x > 0", lambda x: x > 0, 0.5),
    "min_rater_agreement": (".5 < x <= 1", lambda x: 0.5 < x <= 1, 0.7),
    "mismatched_prompts": ("0 <= x <= 1", lambda x: 0 <= x <= 1, 0.25),
    "label_smoothing": ("0 <= x < .5", lambda x: 0 <= x < 0.5, 0.1),
    "tie_margin": ("x > 0", lambda x: x > 0, 0.5),
    "head_dropout": ("0 <= x < 1", lambda x: 0 <= x < 1, 0.1),
    "train_last_layers": ("x >= 0", lambda x: x >= 0, 4),
    "token_budget": ("x >= 1", lambda x: x >= 1, 8192),
    "early_stopping_patience": ("x >= 1", lambda x: x >= 1, 3),
    "max_length": ("x >= 2", lambda x: x >= 2, 1024),
}


GROUPS = {  # the banners of a recipe -> the keys below them; whatever matches none belongs to Training
    "Model": r"model_|dtype|attn_|use_(peft|rslora|dora|bnb)|lora_|load_in_|bnb_|trust_|chat_|disable_dr|eos_|head|train_last",
    "Data": r"dataset|streaming|transcript|overlong|validation_|test_|max_dropped|max_length|pad_to_|min_rater|mismatched",
    "Objective": r"loss_type|center_rewards|label_smoothing|soft_labels|strength_as|tie_margin|length_head",
    "Training": r"$",
    "Logging": r"output_dir|log|report_to|run_name|project|trackio|eval_|save_|load_best|metric_|greater|push_|hub_",
}


KINDS = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "list": "a list",
}


KINDS |= {"dict": "a mapping", "null": "null"}


EXAMPLES = {
    "bool": True,
    "int": 1,
    "float": 0.1,
    "str": "name",
    "list": ["a", "b"],
    "dict": {"key": 1},
}


PATHS = (
    "model_name_or_path",
    "chat_template_path",
    "output_dir",
    "dataset_name",
    "path",
    "data_dir",
    "data_files",
)


CLASSES = (
    "RewardConfig",
    "ModelConfig",
    "ScriptArguments",
    "DatasetMixtureConfig",
    "DatasetConfig",
)


CLI = "command line"


TRL = json.loads(Path(__file__).with_name("recipe_keys.json").read_text(encoding="utf-8"))


KEYS = {key: spec for name in CLASSES[:-1] for key, spec in TRL[name].items()}


KEYS |= {
    key: {"types": kinds, "default": value, "choices": choices}
    for key, (kinds, value, choices, _) in OWN.items()
}


ENTRY = TRL["DatasetConfig"] | {
    "test_split": {"types": ["str"], "default": "test"},
    "subset": {"types": ["str", "null"]},
}
