"""What a run prints row by row, and what TensorBoard and trackio get beside the numbers."""

import itertools
import json
import re

import pytest
import torch
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, TrainerState
from trl import RewardConfig

from reward.model.build import build_reward_model, build_tokenizer
from reward.recipe.recipe import Recipe
from reward.training import terminal
from reward.training.run import evaluate, fail_unforeseen, warn_of_warm_up_alone
from reward.training.terminal import TrainingTable, duration
from reward.training.trackers import TrackerPanels, best_and_worst, markdown_table
from reward.training.trainer import NonFiniteError, PairOptions, PairTrainer

torch.set_num_threads(1)

END = 2  # the stand-in's end token


def encoded(n: int) -> Dataset:
    """n encoded pairs with their texts, in subsets 0, 1, 0, 1, ..."""
    rows = []
    for i in range(n):
        prompt = [{"role": "user", "content": f"question {i} | <b>?"}]
        rows.append(
            {
                "chosen_ids": [10 + i, 20 + i, END],
                "rejected_ids": [30 + i, 40 + i, 50 + i, END],
                "subset_id": i % 2,
                "target_margin": 0.0,
                "length": 4,
                "prompt": json.dumps(prompt),
                "chosen": json.dumps(f"good {i}"),
                "rejected": json.dumps(f"bad {i}\nline"),
            }
        )
    return Dataset.from_list(rows)


@pytest.fixture
def make_trainer(standin, tmp_path):
    """`make_trainer(head_init, *trackers)` -> a trainer of 4 steps that evaluates twice."""

    def make(head_init: str, *trackers: str, **options) -> PairTrainer:
        folder = str(standin("qwen"))
        torch.manual_seed(0)
        model = build_reward_model(folder, head_init=head_init)
        args = RewardConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=4,
            logging_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="no",
            per_device_train_batch_size=2,
            activation_checkpointing=False,
            max_length=None,
            use_cpu=True,
            bf16=False,
            report_to=list(trackers),
            project="unit-test",
            run_name="run-1",
            **{"learning_rate": 1e-3, **options},
        )
        trainer = PairTrainer(
            model=model,
            args=args,
            train_dataset=encoded(8),
            eval_dataset=encoded(6),
            processing_class=build_tokenizer(folder, model.config),
            options=PairOptions(["harmless", "helpful"]),
        )
        for bar in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(bar)
        return trainer

    return make


# --- The terminal ---------------------------------------------------------------------------------


def test_a_row_a_log_step_and_a_row_an_evaluation(make_trainer, capsys):
    trainer = make_trainer("normal")
    trainer.add_callback(TrainingTable())
    trainer.train()
    trainer.evaluate()
    printed = capsys.readouterr().out.splitlines()
    first = printed.index(next(line for line in printed if line.split()[:2] == ["step", "loss"]))
    header, *rows, summary, final = printed[first:]
    assert header == ("        step     loss  accuracy   margin       lr  tokens/s     left")
    assert [row.split()[:2] for row in rows] == [
        ["train", "2/4"],
        ["valid", "2/4"],
        ["train", "4/4"],
        ["valid", "4/4"],
    ]
    logs = [log for log in trainer.state.log_history if "loss" in log]
    evaluations = [log for log in trainer.state.log_history if "eval_loss" in log]
    for row, log in zip(rows[::2], logs, strict=True):
        loss, accuracy, margin, lr, speed, left = row.split()[2:]
        assert (loss, accuracy) == (f"{log['loss']:.4f}", f"{log['accuracy']:.3f}")
        assert (margin, lr) == (f"{log['margin']:+.3f}", f"{log['learning_rate']:.1e}")
        assert re.fullmatch(r"[\d,]+", speed) and re.fullmatch(r"\d+:\d\d", left)
    for row, log in zip([*rows[1::2], final], evaluations, strict=True):
        assert row.endswith(f"{log['eval_accuracy']:.3f}   {log['eval_margin']:+.3f}  (6 pairs)")
    assert rows[2].endswith("0:00") and re.fullmatch(r"trained 4 steps in 0:\d\d", summary)
    assert final.startswith("final    4/4")
    # Columns stand below their names.
    assert {row[:21].rindex(row.split()[2]) + 6 for row in rows} == {header.index("loss") + 4}


def steps(table: TrainingTable, **state) -> None:
    """Three log steps of a run of 1,000, told to the table."""
    state = TrainerState(max_steps=1000, **state)
    table.on_train_begin(None, state, None)
    for step in (10, 20, 30):
        state.global_step = step
        table.on_step_end(None, state, None)
        logs = {"loss": 0.69, "accuracy": 0.5, "margin": 0.0, "num_tokens": 100 * step}
        table.on_log(None, state, None, logs=logs | {"learning_rate": 2e-5})


def test_the_first_row_after_a_resume_counts_its_own_tokens(capsys, monkeypatch):
    """9,000 tokens were read before; ten steps of 100 tokens take 2 seconds."""
    now = itertools.count(step=2)
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(now))
    before = {"loss": 0.7, "num_tokens": 9000, "step": 90}
    state = TrainerState(max_steps=1000, global_step=90, log_history=[before, {"eval_loss": 0.7}])
    table = TrainingTable(live=False)
    table.on_train_begin(None, state, None)
    state.global_step = 100
    logs = {"loss": 0.69, "accuracy": 0.5, "margin": 0.0, "num_tokens": 10_000}
    table.on_log(None, state, None, logs=logs | {"learning_rate": 2e-5})
    assert capsys.readouterr().out.splitlines()[-1].split()[-2] == "500"


@pytest.mark.parametrize(
    "warmup, steps, warned", [(0.1, 1, True), (0.1, 2, False), (50, 40, True), (0, 1, False)]
)
@pytest.mark.parametrize("schedule", ["linear", "constant_with_warmup", "constant"])
def test_a_run_that_is_all_warm_up_says_that_the_model_hardly_changed(
    schedule, warmup, steps, warned, capsys, tmp_path
):
    """transformers rounds a share of the steps up, so that one step is one of warm-up."""
    settings = {"lr_scheduler_type": schedule, "warmup_steps": warmup}
    args = RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)
    warn_of_warm_up_alone(args, steps)
    said = "warning: the whole run is warm-up" in capsys.readouterr().out
    assert said == (warned and schedule != "constant")  # which has none


def test_a_narrow_terminal_has_fewer_columns(capsys):
    steps(TrainingTable(width=40))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "            step     loss  accuracy"  # the width, 40, has no room for left
    assert lines[1:] == [f"train    {n}/1000   0.6900     0.500" for n in (10, 20, 30)]


def test_a_terminal_counts_steps_and_a_file_does_not(capsys):
    steps(TrainingTable(live=True))
    printed = capsys.readouterr().out
    assert "\r\x1b[Kstep 20/1000" in printed and "\r\x1b[Ktrain" in printed
    steps(TrainingTable(live=False))
    printed = capsys.readouterr().out
    assert "\r" not in printed and "\x1b" not in printed and printed.count("\n") == 4


def test_other_processes_print_nothing(capsys):
    steps(TrainingTable(live=True), is_world_process_zero=False)
    assert capsys.readouterr().out == ""


def test_durations():
    assert [duration(s) for s in (0, 7.6, 65, 3600, 93784)] == [
        "0:00",
        "0:08",
        "1:05",
        "1:00:00",
        "26:03:04",
    ]


def test_an_unforeseen_error_ends_in_a_sentence(capsys, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    try:
        raise KeyError("a name")
    except KeyError as error:
        status = fail_unforeseen(error, Recipe())
    lines = capsys.readouterr().err.splitlines()
    assert status == 1 and lines[0].startswith("Traceback")
    assert lines[-1] == "train_rm.py: KeyError: 'a name'"


# --- The table of completions ---------------------------------------------------------------------


def test_best_and_worst_completions():
    rewards = torch.tensor([[float(i), -float(i)] for i in range(6)])
    rows = best_and_worst(encoded(6), rewards, ["harmless", "helpful"])
    # Of 12 completions five at each end; the two in the middle have rewards of 0.
    assert [row.rank for row in rows] == [1, 2, 3, 4, 5, 8, 9, 10, 11, 12]
    assert [row.reward for row in rows] == [5, 4, 3, 2, 1, -1, -2, -3, -4, -5]
    best, worst = rows[0], rows[-1]
    assert (best.side, best.subset, best.completion) == ("chosen", "helpful", "good 5")
    assert (worst.side, worst.prompt) == ("rejected", "question 5 | <b>?")
    lines = markdown_table(rows).splitlines()
    assert (
        len(lines) == 12
        and "| 12 | -5.0 | rejected | helpful | question 5 \\| &lt;b>? |" in (lines[-1])
    )
    assert lines[-1].endswith("| bad 5<br>line |")


def test_few_completions_are_shown_once():
    rows = best_and_worst(encoded(2), torch.tensor([[1.0, 2.0], [0.0, 3.0]]), ["a", "b"])
    assert [(row.rank, row.completion) for row in rows] == [
        (1, "bad 1\nline"),
        (2, "bad 0\nline"),
        (3, "good 0"),
        (4, "good 1"),
    ]


# --- Real trackers --------------------------------------------------------------------------------


def trained(trainer: PairTrainer) -> None:
    """Train with what train_rm.py adds."""
    trainer.add_callback(TrackerPanels(trainer))
    trainer.train()


def test_tensorboard_has_rewards_completions_and_alarms(make_trainer, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs tensorboard, of requirements-test.txt")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    trainer = make_trainer("zero", "tensorboard", learning_rate=0.0)  # every pair is a tie
    trained(trainer)
    assert evaluate(trainer)["n"] == 6  # of the model that is saved; the tracker has ended
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    assert len(list(folder.iterdir())) == 1
    events = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    events.Reload()
    assert {"eval/accuracy_harmless", "eval/accuracy_helpful"} <= set(events.Tags()["scalars"])
    histograms = events.Histograms("eval/rewards")
    assert [entry.step for entry in histograms] == [2, 4]
    assert [entry.histogram_value.num for entry in histograms] == [12, 12]

    def texts(tag: str) -> list[str]:
        tensors = events.Tensors(f"{tag}/text_summary")
        return [event.tensor_proto.string_val[0].decode() for event in tensors]

    assert len(texts("eval/completions")) == 2
    assert texts("eval/completions")[0].startswith("| rank | reward | side | subset | prompt |")
    (alarm,) = texts("alarm/ties")
    assert alarm.startswith("100.0% of 6 validation pairs have equal rewards at step 2: look for")


def test_trackio_has_rewards_completions_and_alarms(make_trainer, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    trackio = pytest.importorskip("trackio", reason="needs trackio, of requirements-test.txt")
    trainer = make_trainer("zero", "trackio", learning_rate=0.0)
    trained(trainer)
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("unit-test", "run-1")
    shown = [log for log in logs if "eval/rewards" in log]
    assert [log["train/global_step"] for log in shown] == [2, 4]
    assert sum(shown[0]["eval/rewards"]["values"]) == 12
    assert any("eval/accuracy_helpful" in log for log in logs)
    rows = shown[0]["eval/completions"]["_value"]
    assert len(rows) == 10 and rows[0]["rank"] == 1 and "completion" in rows[0]
    (run,) = trackio.Api().runs("unit-test")
    (alert,) = run.alerts()
    assert (alert["title"], alert["level"]) == ("ties", "warn")
    assert "100.0% of 6 validation pairs" in alert["text"]
    assert capsys.readouterr().err.count("alarm, ties: 100.0% of 6") == 1


def test_an_alarm_is_said_without_any_tracker(make_trainer, capsys):
    trainer = make_trainer("normal", learning_rate=1e30, lr_scheduler_type="constant")
    panels = TrackerPanels(trainer)
    trainer.add_callback(panels)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    panels.alarm("not finite", str(caught.value))
    panels.close()
    assert "alarm, not finite: the loss is not finite at step" in capsys.readouterr().err
