"""One value of one key: what is read, and the line that mends what is wrong."""

from pathlib import Path

import pytest
from recipe_texts import EVALUATES, SOUND, faults, parse

pytestmark = pytest.mark.usefixtures("empty_folder")


ONE_KEY = [  # a line, and a part of its one fault
    ("seed: true", "needed is an integer, not true or false: `seed: 42`"),
    ("seed: null", "needed is an integer, not null"),
    ("seed: 1e3", "needed is an integer, not a number: `seed: 1000`"),
    ("learning_rate: '1e-5'", "needed is a number, not text"),
    ("learning_rate: .nan", "needed is a number, not text"),
    ("run_name: 7", "`run_name: '7'`"),
    ("model_revision: 1234567", "`model_revision: '1234567'`"),
    ("bf16: maybe", "needed is true or false or null, not text: `bf16: true`"),
    ("optim: adamw_trch", "`optim: adamw_torch`"),
    ("dtype: fp32", "one of auto, bfloat16, float16, float32"),
    ("overlong: cut", "one of drop, truncate_prompt, error"),
    ("transcript: text", "one of messages, raw"),
    ("head_init: zeros", "`head_init: zero`"),
    ("loss_type: bradleyterry", "`loss_type: bradley_terry`"),
    ("parallelism_config: {tp_size: 2}", "needed is null, not a mapping"),
    ("test_fraction: 1", "needed is 0 < x < 1: `test_fraction: 0.1`"),
    ("test_fraction: 0", "needed is 0 < x < 1"),
    ("max_dropped: -0.1", "needed is 0 <= x <= 1"),
    ("max_length: 0", "needed is x >= 2"),
    ("min_rater_agreement: 0.5", "needed is .5 < x <= 1: `min_rater_agreement: 0.7`"),
    ("min_rater_agreement: 1.01", "needed is .5 < x <= 1"),
    ("min_rater_agreement: true", "needed is a number or null, not true or false"),
    ("mismatched_prompts: -0.1", "needed is 0 <= x <= 1: `mismatched_prompts: 0.25`"),
    ("mismatched_prompts: 1.01", "needed is 0 <= x <= 1"),
    ("label_smoothing: -0.1", "needed is 0 <= x < .5: `label_smoothing: 0.1`"),
    ("label_smoothing: 0.5", "needed is 0 <= x < .5"),
    ("loss_type: rao_kupper\ntie_margin: 0", "needed is x > 0: `tie_margin: 0.5`"),
    ("head_dropout: -0.1", "needed is 0 <= x < 1: `head_dropout: 0.1`"),
    ("head_dropout: 1", "needed is 0 <= x < 1"),
    ("train_last_layers: -1", "needed is x >= 0: `train_last_layers: 4`"),
    ("train_last_layers: 1.5", "needed is an integer or null, not a number"),
    ("soft_labels: 0.5", "needed is true or false, not a number: `soft_labels: true`"),
    (
        "strength_as: margin",
        "one of target_margin, chosen_probability: `strength_as: target_margin`",
    ),
    ("head: two_logits", "one of linear, two_logit: `head: two_logit`"),
    ("head_bias: zero", "needed is true or false or null, not text: `head_bias: true`"),
    ("loss_type: raokupper", "`loss_type: rao_kupper`"),
    ("loss_type: ratings", "rao_kupper, mse, rating_mse, classification: `loss_type: rating_mse`"),
    ("early_stopping_patience: 0", "needed is x >= 1"),
    ("test_split_size: 0.1", "`test_fraction: 0.1` splits by first user turn"),
    ("pad_token: <pad>", "picked from the vocabulary"),
    ("resume_from_checkpoint: true", "--resume auto"),
    ("overwrite: true", "a flag, never a key: `python train_rm.py --recipe FILE --overwrite`"),
    ("check_data: true", "--check-data`"),
    ("merge: true", "--merge`"),
    ("resume: auto", "--resume`"),
    ("warmup_ratio: 0.1", "`warmup_steps: 0.1`"),
    ("label_smoothing_factor: 0.1", "for preference labels write `label_smoothing: 0.1`"),
    ("torch_dtype: float32", "`dtype`"),
    ("push_to_hub: true", "--push you/name` uploads afterwards"),
    ("<<: {seed: 1}", "unknown key `<<`"),
    ("1: 2", "unknown key `1`"),
    ("true: 2", "unknown key `True`"),
    (
        "model_init_kwargs: {a: 1, a: 2}",
        "found `model_init_kwargs.a` twice, on line 4 and on line 4",
    ),
]


@pytest.mark.parametrize(
    ("line", "part"), ONE_KEY, ids=[line.replace("\n", " ") for line, _ in ONE_KEY]
)
def test_one_fault(line, part):
    (fault,) = faults(SOUND + line + "\n")
    assert part in fault and fault.startswith("r.yaml")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("eval_strategy: no", "no"),
        ("bf16: no", False),
        ("bf16: yes", True),
        ("num_train_epochs: 2", 2),
        ("learning_rate: 1E-05", 0.00001),
        ("max_steps: 10_000", 10000),
        ("use_peft: true\nlora_target_modules: all-linear", ["all-linear"]),
        ("lr_scheduler_kwargs: {min_lr: 1e-6}", {"min_lr": 0.000001}),
        ("run_name: 2024-01-01", "2024-01-01"),
        ("head_init: null", None),
        ("min_rater_agreement: 1", 1),
        ("min_rater_agreement: 0.501", 0.501),
        ("mismatched_prompts: 1", 1),
        ("label_smoothing: 0.499", 0.499),
        ("loss_type: rao_kupper\ntie_margin: 2", 2),
        ("head_dropout: 0.99", 0.99),
        ("train_last_layers: 0", 0),
        ("soft_labels: no", False),
        ("strength_as: chosen_probability", "chosen_probability"),
        ("head: two_logit", "two_logit"),
        ("head_bias: false", False),
        ("max_steps: 9\ndataset_streaming: true\nmin_rater_agreement: 0.7", 0.7),
        ("use_peft: true\ntrain_last_layers: null", None),
        ("output_dir: ~/rm-out", str(Path.home() / "rm-out")),
        (EVALUATES + "save_steps: 100", 100),
        ("eval_strategy: epoch\nload_best_model_at_end: true\nsave_strategy: epoch", "epoch"),
    ],
)
def test_values_that_are_read(line, value):
    key = line.split("\n")[-1].split(":")[0]
    text = SOUND
    if key == "output_dir":
        text = SOUND.replace("output_dir: out\n", "")
    value_read = parse(text + line + "\n", "--check-data")[key]
    assert value_read == value and type(value_read) is type(value)
