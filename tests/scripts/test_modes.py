"""score.py --mode: from completions to rows that TRL's trainers train on."""

import json
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from datasets import load_dataset
from reward_models import exit_of
from support import REPO, write_rows
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

import score
from reward.data.transcripts import assistant, user
from reward.data.written_rows import rows_of_lines
from reward.model.hub import ModelError
from reward.model.one_off import print_one_off
from reward.model.reward_units import reward_units
from reward.model.scorer import Scorer

pytest_plugins = ["reward_model_fixtures"]
torch.set_num_threads(1)

WORDS = ("yes", "no", "tea", "coffee, and milk")
SAMPLES = [
    {"prompt": user(f"question {i}?"), "completion": assistant(f"{word} {i}"), "source": "policy"}
    for word in WORDS
    for i in range(4)
]


@pytest.fixture(scope="module")
def scored(saved, tmp_path_factory):
    """A file of SAMPLES with their rewards, whose prompts are scattered over it."""
    folder = tmp_path_factory.mktemp("scored")
    source = write_rows(folder / "samples.jsonl", SAMPLES)
    output = folder / "scored.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["--ckpt", saved("qwen"), "--input", source, "--output", output]
        patch.setattr("sys.argv", ["score.py", *map(str, arguments)])
        assert score.main() == 0
    return output


def test_rank_from_the_model_and_from_a_scored_file(scored, saved, tmp_path, monkeypatch, capsys):
    """Both give the same best completion of each prompt, in the order of the prompts."""
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    source = write_rows(tmp_path / "samples.jsonl", SAMPLES)
    model = ["--ckpt", saved("qwen"), "--input", source, "--output", one]
    status, said = exit_of(score, monkeypatch, capsys, *model, "--mode", "rank", "--n", 1)
    assert status == 0 and "rank: 4 rows of 4 prompts, 16 completions" in said
    file = ["--scored", scored, "--output", other]
    assert exit_of(score, monkeypatch, capsys, *file, "--mode", "rank", "--n", 1)[0] == 0
    best = list(rows_of_lines(one))
    assert best == list(rows_of_lines(other))
    rows = list(rows_of_lines(scored))
    for i, row in enumerate(best):
        rewards = [row["reward"] for row in rows if row["prompt"] == user(f"question {i}?")]
        assert row["prompt"] == user(f"question {i}?") and row["source"] == "policy"
        assert len(rewards) == 4 and row["reward"] == max(rewards) and row["rank"] == 1
    assert not list(tmp_path.glob("*partial*"))


def test_standard_output_and_parquet(scored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["score.py", "--scored", str(scored), "--mode", "pairs"])
    assert score.main() == 0
    captured = capsys.readouterr()
    pairs = [json.loads(line) for line in captured.out.splitlines()]
    assert len(pairs) == 4 * 6 and all(pair["margin"] > 0 for pair in pairs)
    assert captured.err.splitlines() == [
        "pairs: 24 rows of 4 prompts, 16 completions",
        "  columns left out: source",
    ]
    output = tmp_path / "pairs.parquet"
    arguments = ["--scored", scored, "--mode", "pairs", "--output", output]
    assert exit_of(score, monkeypatch, capsys, *arguments)[0] == 0
    table = load_dataset("parquet", data_files=str(output), split="train", cache_dir=tmp_path)
    assert table.to_list() == pairs


TRAINERS = {
    "pairs": (DPOTrainer, DPOConfig),
    "binary": (KTOTrainer, KTOConfig),
    "scalar": (SFTTrainer, SFTConfig),
}


@pytest.mark.parametrize("conversational", [True, False], ids=["messages", "texts"])
@pytest.mark.parametrize("label_as", TRAINERS)
def test_labels_load_into_the_trainer(
    label_as, conversational, scored, standin, tmp_path, monkeypatch, capsys
):
    """Two steps of DPO, KTO and SFT on the rows as they are written."""
    rows = list(rows_of_lines(scored))
    if not conversational:
        for row in rows:
            row["prompt"], row["completion"] = (
                row[side][0]["content"] for side in ("prompt", "completion")
            )
    source = write_rows(tmp_path / "scored.jsonl", rows)
    output = tmp_path / "labels.jsonl"
    arguments = ["--scored", source, "--output", output, "--mode", "label", "--as", label_as]
    status, said = exit_of(score, monkeypatch, capsys, *arguments)
    assert status == 0 and ("--conversational" in said) is not conversational
    table = load_dataset("json", data_files=str(output), split="train", cache_dir=tmp_path)
    trainer_class, config_class = TRAINERS[label_as]
    config = config_class(
        str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=4,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = trainer_class(str(standin("qwen")), args=config, train_dataset=table)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(0 < float(loss) < 20 for loss in losses)


def test_figures_of_the_checkpoint(saved, tmp_path):
    """They are read from the audit and the manifest; what is missing is named with its mend."""
    assert reward_units(str(tmp_path)).std is None
    with pytest.raises(ModelError, match="run: python audit.py --ckpt"):
        reward_units(str(tmp_path), calibrated=True)
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "audit.json").write_text('{"temperature": null}')
    with pytest.raises(ModelError, match="its audit has measured none"):
        reward_units(str(tmp_path), calibrated=True)
    (tmp_path / "audit" / "audit.json").write_text('{"temperature": 1.5}')
    assert reward_units(str(tmp_path), calibrated=True).temperature == 1.5
    with pytest.raises(ModelError, match="`reward_mean` and `reward_std` of the validation pairs"):
        reward_units(str(tmp_path), normalized=True)
    manifest = {"validation": {"reward_mean": 0.5, "reward_std": 2.0}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    units = reward_units(str(tmp_path), normalized=True)
    assert (units.mean, units.std) == (0.5, 2.0)


@pytest.mark.parametrize(
    "arguments, fault",
    [
        ("--ckpt rm --input {file} --n 1", "--n goes with --mode rank|reject|label|pairs"),
        ("--scored {file}", "--scored goes with --mode"),
        ("--ckpt rm --prompt a --completion b --mode rank", "--mode rank needs --input FILE"),
        ("--ckpt rm --input {file} --mode rank", "name --output FILE, or pipe the scored rows on"),
        ("--scored no.jsonl --mode rank", "--scored no.jsonl: no such file"),
        ("--scored {file} --mode pairs --calibrated", "--ckpt MODEL is needed"),
        ("--scored {file} --mode rank --resume", "--resume belongs to --input FILE"),
        ("--scored {file} --mode rank --on_bad_row stop", "leave out --on_bad_row"),
        ("--scored {file} --mode rank --dtype bfloat16", "there already; leave out --dtype"),
        ("--scored {file} --mode rank --ckpt rm", "leave out --ckpt, which --calibrated and"),
        ("--ckpt rm --convert new --on_bad_row stop", "--on_bad_row belongs to --input FILE"),
        ("--scored {file} --mode rank --output {file}", "the file that is read, and it would be"),
        ("--ckpt rm --input {file} --output {file}", "the file that is read, and it would be"),
        ("--scored {file} --mode label", "--mode label needs --as pairs|binary|scalar"),
    ],
)
def test_options_that_do_not_fit_together(arguments, fault, scored, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_status:
        exit_of(score, monkeypatch, capsys, *arguments.format(file=scored).split())
    assert exit_status.value.code == 2
    assert fault in capsys.readouterr().err


def test_chances_are_printed_where_the_loss_claims_them(saved, capsys):
    """sigmoid(margin) of rewards that were trained to be probabilities is no probability."""
    scorer = Scorer(str(saved("qwen")))
    args = Namespace(ckpt=str(saved("qwen")), revision="main")
    said = {}
    for loss_type in ("bradley_terry", "mse"):
        scorer.manifest = {"recipe": {"loss_type": loss_type}}
        temperature = score.temperature_of(scorer, args)
        print_one_off(scorer, "tea?", ["yes", "no"], temperature)
        said[loss_type] = capsys.readouterr().out.splitlines()[2:]
    assert [line[:2] for line in said["bradley_terry"]] == ["P("]
    no_chances = "(no chances to win: the loss that this model was trained with claims none)"
    assert said["mse"] == [no_chances]


def test_rows_from_a_pipe(scored):
    """`score.py --input ... | score.py --scored - --mode rank` needs no file in between."""
    done = subprocess.run(
        [sys.executable, "score.py", "--scored", "-", "--mode", "rank", "--n", "1"],
        input=scored.read_bytes(),
        cwd=REPO,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["rank"] for line in done.stdout.splitlines()] == [1] * 4
    assert done.stderr.startswith(b"rank: 4 rows of 4 prompts, 16 completions\n")


def test_rows_that_nobody_scored_are_refused(tmp_path, monkeypatch, capsys):
    source = write_rows(tmp_path / "rows.jsonl", SAMPLES)
    status, said = exit_of(score, monkeypatch, capsys, "--scored", source, "--mode", "rank")
    assert (status, said) == (
        2,
        "score.py: scored row 1: the row has no `reward`; score the file first\n",
    )
