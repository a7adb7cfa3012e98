"""Keys that contradict each other, and files that are missing."""

import gzip
from pathlib import Path

import pytest
from recipe_texts import DATA, EVALUATES, SOUND, faults, parse

from reward.data.files import is_local
from reward.recipe.recipe import RecipeError

pytestmark = pytest.mark.usefixtures("empty_folder")


KEYS_TOGETHER = [  # a line, and a part of its one fault
    ("lora_task_type: CAUSAL_LM", "write `lora_task_type: SEQ_CLS`"),
    (
        "model_init_kwargs: {num_labels: 2}",
        "num_labels follows from `head`: linear has 1, two_logit 2",
    ),
    ("model_init_kwargs: {dtype: bfloat16}", "dtype is a key of its own"),
    ("model_init_kwargs: {revision: x}", "write `model_revision: ...`"),
    ("load_in_8bit: true", "`use_peft: true`"),
    (
        "use_peft: true\nload_in_8bit: true\nload_in_4bit: true",
        "found both load_in_4bit and load_in_8bit",
    ),
    (
        "activation_checkpointing: true\ngradient_checkpointing: false",
        "gradient_checkpointing is the old name",
    ),
    ("bf16: true\nfp16: true", "found both bf16 and fp16"),
    ("chat_template_path: ./chat.jinja", "found no file ./chat.jinja"),
    ("chat_template_path: chat.jinja", "found no file chat.jinja"),
    ("streaming: true", "write dataset_streaming"),
    ("dataset_streaming: true", "add `max_steps: 1000`"),
    ("dataset_test_split: train", "trains and tests on the same split train"),
    ("tie_margin: 0.5", "tie_margin belongs to `loss_type: rao_kupper`; change one of the two"),
    ("loss_type: mse\ntie_margin: 0.5", "tie_margin belongs to `loss_type: rao_kupper`"),
    (
        "loss_type: rating_mse\nlabel_smoothing: 0.1",
        "rating_mse has no labels to smooth; delete label_smoothing",
    ),
    ("loss_type: rating_mse\nmismatched_prompts: 0.1", "has no ratings; delete mismatched_prompts"),
    ("train_last_layers: 2\nuse_peft: true", "delete train_last_layers or use_peft"),
    ("train_last_layers: 0\nuse_peft: true", "delete train_last_layers or use_peft"),
    (
        "dataset_streaming: true\nmax_steps: 9\nmismatched_prompts: 0.1",
        "delete mismatched_prompts, or streaming",
    ),
    ("load_best_model_at_end: true", "add `eval_strategy: steps`"),
    ("load_best_model_at_end: true\neval_strategy: no", "add `eval_strategy: steps`"),
    (EVALUATES + "save_strategy: epoch", "found save_strategy epoch and eval_strategy steps"),
    (
        EVALUATES + "save_steps: 75",
        "save_steps (75) is no multiple of eval_steps (50); write `save_steps: 50`",
    ),
    (EVALUATES + "save_steps: 0.1", "is no multiple of eval_steps"),
    ("eval_strategy: steps\nvalidation_fraction: 0", "write `validation_fraction: 0.1`"),
    ("early_stopping_patience: 2\neval_strategy: steps", "`load_best_model_at_end: true`"),
    (
        "metric_for_best_model: eval_acuracy",
        "found acuracy, which no evaluation measures; needed is one of accuracy, loss, margin, n, "
        "reward_mean, reward_std, tie_rate, or accuracy_NAME of a subset: "
        "`metric_for_best_model: accuracy`",
    ),
    ("lora_r: 8", "lora_r does nothing without `use_peft: true`; add that line, or delete lora_r"),
    ("use_bnb_nested_quant: true", "does nothing without `load_in_4bit: true`"),
    ("eval_steps: 50", "eval_steps does nothing without `eval_strategy: steps`"),
    ("bf16_full_eval: true", "it would round the trained weights before they are saved"),
    ("include_for_metrics: [inputs]", "every evaluation counts the metrics of all pairs"),
    ("do_eval: true", "evaluations are asked for by `eval_strategy: steps`"),
    ("do_train: false", "every run trains, except with --plan and --check-data"),
    (EVALUATES + "do_eval: false", "evaluations are asked for by `eval_strategy: steps`"),
    (
        "dataset_streaming: true\nmax_steps: 9\ndataloader_num_workers: 2",
        "a stream is read by the process that counts its rows; delete dataloader_num_workers",
    ),
    (
        "dataset_streaming: true\nmax_steps: 9\ntrain_sampling_strategy: group_by_length",
        "its lengths are unknown; delete train_sampling_strategy, or streaming",
    ),
    ("save_strategy: best\nmetric_for_best_model: loss", "best saves after evaluations; add `eval"),
    ("save_strategy: best\neval_strategy: epoch", "add `metric_for_best_model: accuracy`"),
    ("save_on_each_node: true", "all hosts share output_dir, where one process writes"),
    ("enable_jit_checkpoint: true", "on SIGTERM every run writes a checkpoint"),
    ("hub_model_id: you/rm", "write `--push you/name` on the command line"),
    ("loss_type: rating_mse\nsoft_labels: false", "reads ratings alone; delete soft_labels"),
]


def test_keys_that_wait_for_another_one_may_stand_beside_its_false():
    lines = "use_peft: false\nlora_r: 8\neval_strategy: 'no'\neval_steps: 50\n"
    assert parse(SOUND + lines)["lora_r"] == 8
    assert parse(SOUND + "metric_for_best_model: accuracy_harmless\n")


def test_keys_that_say_what_holds_anyway_are_no_fault():
    """TRL's examples and dumps of its settings write out defaults."""
    lines = (
        "do_train: true\ndo_eval: false\ndo_predict: false\npush_to_hub: false\n"
        "hub_model_id: null\nhub_strategy: every_save\nlogging_nan_inf_filter: true\n"
        "prediction_loss_only: false\nbf16_full_eval: false\ninclude_for_metrics: []\n"
        "label_names: null\neval_steps: null\nlora_modules_to_save: null\npad_token: null\n"
        "resume_from_checkpoint: null\nlabel_smoothing_factor: 0.0\n"
    )
    assert parse(SOUND + lines)["push_to_hub"] is False
    assert parse(SOUND + EVALUATES + "do_eval: true\n")["do_eval"] is True


@pytest.mark.parametrize(
    ("line", "part"), KEYS_TOGETHER, ids=[line.replace("\n", " ") for line, _ in KEYS_TOGETHER]
)
def test_one_fault_of_keys_together(line, part):
    (fault,) = faults(SOUND + line + "\n")
    assert part in fault and fault.startswith("r.yaml")


def test_what_is_required():
    assert [fault.split(";")[0] for fault in faults("seed: 1\n")] == [
        "r.yaml: no model",
        "r.yaml: no data",
        "r.yaml: no place for the checkpoint",
    ]
    assert "found dataset_name and datasets" in faults(SOUND + "datasets: [{path: org/a}]\n")[0]
    assert "no data" in faults(DATA + "datasets: []\n")[0]


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        (
            "[{path: a/b, spilt: train}]",
            "r.yaml:3: datasets[0]: unknown key `spilt`; did you mean `split`?",
        ),
        (
            "\n- path: a/b\n- path: c/d\n  fraction: -1",
            "r.yaml:6: datasets[1]: found `fraction: -1`; needed is x > 0",
        ),
        ("a/b", "r.yaml:3: datasets[0] names no source; it starts with `- path: a/b`"),
        ("[a/b]", "r.yaml:3: datasets[0] names no source; it starts with `- path: a/b`"),
        ("[{name: b}]", "r.yaml:3: datasets[0] names no source"),
        ("[{path: a/b, fraction: 0.5}, {path: c/d}]", "fraction in some entries only"),
        ("[{path: a/b, split: train, split: train}]", "found `datasets[0].split` twice"),
        ("[{path: a/b, split: test}]", "trains and tests on the same split test"),
        ("[{path: a/b, data_files: x.jsonl}]", "data_files names no file for the test split test"),
        (
            "[{path: json, data_files: {train: x.jsonl, test: https://x/y.jsonl}}]",
            "found no data file x.jsonl",
        ),
        (
            "[{path: a/b, columns: {promt: ask}}]",
            "r.yaml:3: columns: `promt` is none of our columns; did you mean `prompt`?",
        ),
        (
            "[{path: a/b, columns: {prompt: 7}}]",
            "columns holds 7, and the name of a column",
        ),
        ("[{path: a/b, columns: [prompt, prompt]}]", "columns names `prompt` twice"),
        (
            "[{path: a/b, columns: 7}]",
            "found `columns: 7`; needed is a list or a mapping or null, not an integer",
        ),
        ("[{path: a/b}]\nstreaming: true", "add `max_steps: 1000`"),
        (
            "[{path: a/b}]\nstreaming: true\nmax_steps: 9\nmismatched_prompts: 1",
            "a stream cannot be searched",
        ),
        ("[{path: a/b}]\ndataset_test_split: dev", "dataset_test_split has no effect here"),
    ],
)
def test_faults_of_entries(entries, part):
    (fault,) = faults(DATA + f"datasets: {entries}\n")
    assert part in fault


@pytest.mark.parametrize(
    ("value", "local"),
    [
        ("org/model", False),
        ("gpt2", False),
        ("/data", True),
        ("./org/model", True),
        ("~/model", True),
        ("a/b/c", True),
        ("pairs.jsonl.gz", True),
        ("org/pairs.parquet", True),
        ("r/here", True),
    ],
)
def test_is_local(value, local):
    Path("r/here").mkdir(parents=True)
    assert is_local(value) is local


def test_local_sources():
    text = DATA + "dataset_name: pairs\n"
    hint = "add `test_fraction: 0.1`, which splits by first user turn"
    (fault,) = faults(DATA + "dataset_name: pairs.jsonl\n")
    assert "found no file or folder pairs.jsonl" in fault
    assert "a Hub id such as `Anthropic/hh-rlhf`" in fault
    assert (
        "data/quickstart/make.py`" in faults(DATA.replace("org/model", "data/quickstart/none"))[0]
    )
    assert "found no model folder a/b/c" in faults(SOUND.replace("org/model", "a/b/c"))[0]
    Path("pairs.jsonl").write_text("{}\n")
    (fault,) = faults(DATA + "dataset_name: pairs.jsonl\n")
    assert "r.yaml:3: pairs.jsonl is one file, without a test split" in fault and hint in fault
    parse(DATA + "dataset_name: pairs.jsonl\ntest_fraction: 0.1\n")
    Path("more.jsonl").write_text("{}\n")
    parse(DATA + "dataset_name: pairs.jsonl\ndataset_test_split: more.jsonl\n")
    Path("pairs").mkdir()
    assert len(faults(text)) == 2  # neither train nor test
    gzip.open("pairs/train.jsonl.gz", "w").close()
    assert hint in faults(text)[0]
    parse(text + "test_fraction: 0.1\n")
    Path("pairs/test-00000-of-00001.parquet").touch()
    parse(text)
    assert (
        "data_files has no effect"
        in faults(DATA + "datasets: [{path: pairs, data_files: a.jsonl}]\n")[0]
    )
    (fault,) = faults(DATA + "datasets: [{path: pairs, name: helpful}]\n")  # it was passed over
    assert "name has no effect beside local files" in fault
    assert (
        "found no file or folder pairs/x"
        in faults(DATA + "datasets: [{path: pairs, data_dir: x}]\n")[0]
    )
    parse(DATA + "datasets: [{path: json, data_files: {train: pairs.jsonl, test: '*.jsonl'}}]\n")


def test_output_dir(monkeypatch):
    Path("out").mkdir()
    parse(SOUND)
    Path("out/file").touch()
    (fault,) = faults(SOUND)
    assert fault == (
        "r.yaml:3: out is not empty; add `--overwrite`, `--resume auto` or another `--output_dir`"
    )
    for argv in (
        ["--overwrite"],
        ["--resume", "auto"],
        ["--resume=out"],
        ["--check-data"],
        ["--check_data"],
    ):
        parse(SOUND, *argv)
    parse(SOUND, "--output_dir", "new")
    assert (
        "found both --resume and --overwrite" in faults(SOUND, "--resume", "auto", "--overwrite")[0]
    )
    assert "found no checkpoint folder none" in faults(SOUND, "--resume", "none")[0]
    monkeypatch.setenv("RANK", "1")
    parse(SOUND)


def test_merging_needs_an_adapter():
    with pytest.raises(
        RecipeError, match="--merge merges an adapter; there is none without `use_peft: true`"
    ):
        parse(SOUND, "--merge")


def test_trackers_that_cannot_be_opened():
    """Else it would be a traceback, after the data is read."""
    (fault,) = faults(SOUND + "report_to: swanlab\n")
    assert fault == (
        "r.yaml:4: swanlab is not installed: `pip install swanlab`, or `report_to: none`"
    )
    (fault,) = faults(SOUND + "report_to: [none, tensorbord]\n")
    assert fault.startswith("r.yaml:4: found tensorbord; needed are none, all or any of trackio, ")
    assert fault.endswith("`report_to: tensorboard`")
    for sound in ("none", "all", "null", "[none]", "flyte"):
        parse(SOUND + f"report_to: {sound}\n")


def test_the_base_may_not_lie_where_the_trained_model_goes(tmp_path, monkeypatch):
    """An adapter's base was deleted once the adapter was verified."""
    monkeypatch.chdir(tmp_path)
    for folder in ("rm", "rm/merged"):
        Path(folder).mkdir()
    lines = "dataset_name: org/data\noutput_dir: {}\nmodel_name_or_path: {}\n"
    for base in ("./rm", "rm/merged"):
        found = faults(lines.format("rm", base))
        assert any("whose model is replaced by the trained one" in fault for fault in found)
    assert parse(lines.format("rm-2", "rm"))["output_dir"] == "rm-2"
