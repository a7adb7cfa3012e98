"""auditing.checks.policy: the same base passes, other templates warn, other vocabularies fail."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from earlier_template import earlier_template
from hub import commit_of, serve
from standins import make_model, make_tokenizer
from support import REPO
from transformers import AutoConfig, AutoTokenizer

from auditing.checks.policy import RULES, policy_checks
from reward.data.files import write_json
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.hub import ModelError

torch.set_num_threads(1)


def reward_model(
    folder: Path, base: Path, recorded: str | None = None, commit: str | None = None
) -> str:
    """A reward model as train_rm.py saves it.

    Args:
        folder: Where it goes.
        base: The folder of the model that it starts from.
        recorded: What its manifest names as the base; None: that folder.
        commit: What its manifest names as the base's commit.
    """
    build_reward_model(str(base)).save_pretrained(folder)
    build_tokenizer(str(base), AutoConfig.from_pretrained(base)).save_pretrained(folder)
    manifest = {"base_model": recorded or str(base), "base_revision": commit}
    write_json(folder / "manifest.json", manifest)
    return str(folder)


def verdicts(ckpt: str, policy: Path) -> dict[str, str]:
    """Of a reward model and a policy: the verdict by the check's name without "policy "."""
    checks = policy_checks(ckpt, str(policy))
    assert {check.section for check in checks} == {"anchor"}
    assert all(check.note for check in checks)
    return {check.name.removeprefix("policy "): check.verdict for check in checks}


SAME = {
    "base": "pass",
    "revision": "not applicable",
    "vocabulary": "pass",
    "special tokens": "pass",
    "template": "pass",
}


@pytest.fixture(scope="module")
def trained(standin, tmp_path_factory):
    return reward_model(tmp_path_factory.mktemp("rm") / "rm-out", standin("qwen"))


@pytest.fixture
def other(standin, tmp_path):
    """A copy of the base under another name, to change."""
    return shutil.copytree(standin("qwen"), tmp_path / "other")


def test_the_base_itself_passes(standin, trained, tmp_path):
    assert verdicts(trained, standin("qwen")) == SAME
    (tmp_path / "link").symlink_to(standin("qwen"))
    assert verdicts(trained, tmp_path / "link")["base"] == "pass"


@pytest.mark.parametrize("kind", ["llama3", "base"])  # a BOS in front; no template of its own
def test_the_base_itself_passes_whatever_its_template(standin, tmp_path, kind):
    verdict_of = verdicts(reward_model(tmp_path / "rm-out", standin(kind)), standin(kind))
    assert verdict_of["base"] == "pass"
    assert verdict_of["vocabulary"] == "pass"
    assert verdict_of["template"] == "pass"


def test_a_checkpoint_of_an_earlier_commit_passes(standin, tmp_path):
    """Its template parts control tokens in another way, and lays conversations out as today."""
    folder = reward_model(tmp_path / "rm-out", standin("qwen"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = earlier_template(tokenizer)
    tokenizer.save_pretrained(folder)
    assert verdicts(folder, standin("qwen")) == SAME


def test_another_model_of_the_same_kind_fails_by_name_alone(trained, other):
    assert verdicts(trained, other) == SAME | {"base": "fail"}
    note = policy_checks(trained, str(other))[0].note
    assert note.startswith(f"the policy starts from {other}, the reward model from ")


def test_another_vocabulary_fails(trained, other):
    make_tokenizer("llama3").save_pretrained(other)
    verdict_of = verdicts(trained, other)
    assert verdict_of["vocabulary"] == "fail"
    assert verdict_of["special tokens"] == "warn"
    assert verdict_of["template"] == "warn"


def test_two_tokens_with_swapped_ids_fail(trained, other):
    file = other / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    check = policy_checks(trained, str(other))[2]
    size = len(AutoTokenizer.from_pretrained(other))
    assert check.verdict == "fail"
    differ = f"2 tokens of {size:,} and {size:,} are missing on one side or have another id"
    assert check.note == differ


def test_another_template_warns(trained, other):
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|im_start|> ")
    tokenizer.save_pretrained(other)
    assert verdicts(trained, other) == SAME | {"base": "fail", "template": "warn"}


def test_another_end_token_warns(trained, other):
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(other)
    check = policy_checks(trained, str(other))[3]
    assert check.verdict == "warn"
    assert "eos is '<|endoftext|>' for the policy and '<|im_end|>' here" in check.note


def test_a_pad_token_that_is_the_end_token_warns(standin, tmp_path):
    """TinyLlama pads with its end token; the reward model, rightly, does not."""
    base = standin("tinyllama")
    ckpt = reward_model(tmp_path / "rm-out", base)
    assert verdicts(ckpt, base) == SAME | {"special tokens": "warn"}
    check = policy_checks(ckpt, str(base))[3]
    assert check.note.startswith("pad is '</s>' for the policy and '<unk>' here: ")


def test_the_path_of_the_base_starts_where_the_model_was_trained(standin, tmp_path, monkeypatch):
    (tmp_path / "work" / "models").mkdir(parents=True)
    (tmp_path / "work" / "models" / "base").symlink_to(standin("qwen"))
    folder = tmp_path / "work" / "out" / "rm"
    reward_model(folder, standin("qwen"))
    write_json(folder / "manifest.json", {"base_model": "models/base", "paths_from": "../.."})
    monkeypatch.chdir(tmp_path)
    assert verdicts(str(folder), standin("qwen"))["base"] == "pass"


def test_an_adapter_over_the_base_starts_from_the_base(standin, trained, tmp_path):
    adapter = {"base_model_name_or_path": str(standin("qwen")), "revision": None}
    write_json(tmp_path / "adapter_config.json", adapter)
    assert verdicts(trained, tmp_path) == SAME


@pytest.mark.parametrize("named", [{}, {"base_model_name_or_path": None}])
def test_an_adapter_that_names_no_base(named, trained, tmp_path):
    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA", **named})
    with pytest.raises(ModelError, match="is an adapter that names no base model"):
        policy_checks(trained, str(tmp_path))


def test_not_applicable_where_nothing_is_to_be_compared(standin, tmp_path):
    foreign = reward_model(tmp_path / "foreign", standin("qwen"))
    (tmp_path / "foreign" / "manifest.json").unlink()
    encoder = reward_model(tmp_path / "encoder", standin("encoder"))
    for ckpt, why in ((foreign, "records no base model"), (encoder, "is an encoder")):
        checks = policy_checks(ckpt, str(standin("qwen")))
        assert [check.name for check in checks] == list(RULES)
        assert {check.verdict for check in checks} == {"not applicable"}
        assert why in checks[0].note


def test_a_policy_that_is_none_is_named(trained, tmp_path):
    with pytest.raises(ModelError, match="neither a folder nor a Hub model with a config.json"):
        policy_checks(trained, str(tmp_path))


def test_a_policy_without_a_tokenizer_is_named(trained, other):
    for file in other.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="other holds no tokenizer to compare"):
        policy_checks(trained, str(other))


def test_commits_of_a_hub_id(standin, tmp_path):
    """The same Hub id: the recorded commit passes, another one warns; another id fails."""
    models = tmp_path / "hub" / "models" / "org"
    for name in ("base", "other"):
        shutil.copytree(standin("qwen"), models / name)
    make_model(models / "other", "qwen", seed=1)
    commit, old_commit = commit_of(models / "base"), "0123456789abcdef" * 2
    current = reward_model(tmp_path / "current", standin("qwen"), "org/base", commit)
    older = reward_model(tmp_path / "older", standin("qwen"), "org/base", old_commit)
    cases = [(current, "org/base"), (older, "org/base"), (current, "org/other")]
    code = (
        "from auditing.checks.policy import policy_checks\n"
        f"for ckpt, policy in {cases!r}:\n"
        "    base, revision, *_ = policy_checks(ckpt, policy)\n"
        "    print(base.verdict, revision.verdict, sep=', ')"
    )
    with serve(tmp_path / "hub") as url:
        hub = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        env = {**os.environ, **hub}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=REPO, env=env, text=True, capture_output=True
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["pass, pass", "pass, warn", "fail, not applicable"]
