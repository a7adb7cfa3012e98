"""A checkpoint of ours whose files are not those that it was saved with is not read."""

import json
import shutil
from pathlib import Path

import pytest
from checkpoint_folders import conversations, make_folders, our_rewards
from safetensors.torch import load_file, save_file
from support import write_rows

from auditing.checks.golden import golden_checks
from auditing.options import AuditOptions
from auditing.run_checkpoint import audit_checkpoint
from reward.checkpoint.golden import write_golden
from reward.checkpoint.manifest import seal
from reward.model.build import build_reward_model
from reward.model.cpu import cpu_has_bf16
from reward.model.hub import ModelError
from reward.model.scorer import Scorer

WEIGHTS = "model.safetensors"
KEYS = {"format_version": 1, "encoder": {}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def sealed(folders) -> Path:
    """A stock reward model with golden texts, a ledger, the state of an optimizer and a manifest.

    Its golden rewards are those of stock transformers.
    """
    folder = folders.copy(folders.reward_model)
    texts = []
    for messages in conversations():
        text = {"prompt": messages[:1], "completion": messages[1:], "tools": None}
        rendered = folders.tokenizer.apply_chat_template(messages, tokenize=False)
        ids = folders.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        texts.append({"text": text, "ids": ids})
    write_golden(folder, texts, folders.rewards)
    (folder / "ledger.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"state")
    seal(folder, KEYS)
    return folder


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def edit(name: str):
    """Change one character of a file, which stays valid."""

    def change(folder):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text + " ", encoding="utf-8")

    return change


def flip_one_bit(folder: Path) -> None:
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-100] ^= 1
    (folder / WEIGHTS).write_bytes(weights)


def other_weights(folder: Path) -> None:
    tensors = {name: tensor * 2 for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def add_value_head(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "value_head.safetensors")


@pytest.mark.parametrize(
    "damage, said",
    [
        (remove("tokenizer.json"), "tokenizer.json missing"),
        (remove("chat_template.jinja"), "chat_template.jinja missing"),
        (remove("tokenizer_config.json"), "tokenizer_config.json missing"),
        (remove("ledger.json"), "ledger.json missing"),
        (edit("chat_template.jinja"), "chat_template.jinja changed"),
        (edit("config.json"), "config.json changed"),
        (edit("tokenizer.json"), "tokenizer.json changed"),
        (add_value_head, "value_head.safetensors added"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_incomplete_or_mixed_folder_is_not_scored(sealed, damage, said):
    damage(sealed)
    with pytest.raises(ModelError, match=said):
        Scorer(str(sealed))
    with pytest.raises(ModelError, match=said):  # nor trained further
        build_reward_model(str(sealed))


@pytest.mark.parametrize("damage", [flip_one_bit, other_weights])
def test_other_weights_are_found_where_they_are_hashed(sealed, damage):
    damage(sealed)
    with pytest.raises(ModelError, match=f"{WEIGHTS} changed"):
        Scorer(str(sealed), verify=True)


def test_what_decides_no_reward_may_be_gone_or_changed(folders, sealed):
    (sealed / "optimizer.pt").unlink()  # the state of training, which scoring does not need
    (sealed / "README.md").write_text("a card")
    (sealed / "audit").mkdir()
    (sealed / "audit" / "audit.json").write_text("{}")
    Scorer(str(sealed), verify=True)
    assert our_rewards(sealed) == pytest.approx(folders.rewards, abs=1e-5)


def test_an_audit_scores_the_golden_texts_again(folders, sealed):
    scorer = Scorer(str(sealed), verify=True)
    (check,) = golden_checks(scorer, str(sealed))
    assert (check.name, check.verdict, check.n) == ("reward difference, golden texts", "pass", 3)
    assert check.value < 1e-4

    # Rewards of another library or device: here the recorded ones are moved.
    lines = (sealed / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    write_golden(sealed, rows, [row["reward"] + 1.0 for row in rows])
    (check,) = golden_checks(scorer, str(sealed))
    assert check.verdict == "fail"

    # A text that is encoded otherwise than then is counted.
    rows[0]["ids"] = rows[0]["ids"][:-1]
    write_golden(sealed, rows, folders.rewards)
    (check,) = golden_checks(scorer, str(sealed))
    assert "1 of 3 texts are encoded otherwise than then" in check.note

    (sealed / "golden.jsonl").unlink()
    (check,) = golden_checks(scorer, str(sealed))
    assert check.verdict == "not measurable"
    assert golden_checks(Scorer(str(folders.reward_model)), str(folders.reward_model)) == []


def test_an_audit_in_another_dtype_says_so_and_compares_no_saved_rewards(sealed, tmp_path):
    if not cpu_has_bf16():
        pytest.skip("needs a CPU with AVX512-BF16 or AMX")
    rows = []
    for prompt, answer in conversations():
        rows.append({"prompt": prompt["content"], "chosen": answer["content"], "rejected": "no"})
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    options = AuditOptions(ckpt=str(sealed), data=str(data), quick=True, dtype="bfloat16")
    audit = audit_checkpoint(options)
    assert audit.identity["device and dtype"] == "cpu, bfloat16"
    assert "reward difference, golden texts" not in {check.name for check in audit.checks}
    sentence = "Golden texts: with --dtype bfloat16 rewards may differ from the saved ones."
    assert sentence in audit.not_measured
