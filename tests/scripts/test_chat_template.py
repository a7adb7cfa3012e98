"""--chat_template of score.py and audit.py, and rows whose text is formatted already."""

import json

import pytest
from checkpoint_folders import conversations, make_folders
from reward_models import exit_of
from support import write_rows

import audit
import score
from auditing.options import AuditOptions
from auditing.run_checkpoint import audit_checkpoint

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("chat"))


def scored(monkeypatch, capsys, tmp_path, folder, rows: list[dict], *options):
    """(rewards, standard error) of rows that score.py scores."""
    source, target = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    command = ["--ckpt", folder, "--input", source, "--output", target, *options]
    status, error = exit_of(score, monkeypatch, capsys, *command)
    assert status == 0, error
    return [json.loads(line)["reward"] for line in target.read_text().splitlines()], error


def test_a_finished_text_is_scored_as_it_is(folders, monkeypatch, capsys, tmp_path):
    """Its control tokens are control tokens; in a message they are text."""
    texts = []
    for messages in conversations():
        texts.append(folders.tokenizer.apply_chat_template(messages, tokenize=False))
    rows = [{"text": text, "id": 7} for text in texts]
    rewards, error = scored(monkeypatch, capsys, tmp_path, folders.reward_model, rows)
    assert rewards == pytest.approx(folders.rewards, abs=1e-5)
    assert "does not begin with" not in error

    bare = [{"text": "tea?"}, {"text": "a garden"}]
    _, error = scored(monkeypatch, capsys, tmp_path, folders.reward_model, bare)
    assert error.count("a text does not begin with <|begin_of_text|>") == 1


def test_the_template_of_a_file_is_the_one_that_is_used(folders, monkeypatch, capsys, tmp_path):
    template = tmp_path / "plain.jinja"
    template.write_text(TEMPLATE)
    pairs, texts = [], []
    for prompt, answer in conversations():
        pairs.append({"prompt": prompt["content"], "completion": answer["content"]})
        text = f"<|begin_of_text|>{prompt['content']}<|eot_id|>{answer['content']}<|eot_id|>"
        texts.append({"text": text})
    run = (monkeypatch, capsys, tmp_path, folders.reward_model)
    by_template, _ = scored(*run, pairs, "--chat_template", template)
    by_hand, _ = scored(*run, texts)
    assert by_template == pytest.approx(by_hand, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(by_hand, folders.rewards, strict=True)) > 0.1


def test_a_template_that_is_not_there_is_refused_at_once(folders, monkeypatch, capsys):
    for script in (score, audit):
        monkeypatch.setattr(
            "sys.argv",
            [script.__name__, "--ckpt", str(folders.reward_model), "--chat_template", "nowhere"]
            + ["--prompt", "a", "--completion", "b"] * (script is score),
        )
        with pytest.raises(SystemExit, match="2"):
            script.main()
        assert "--chat_template nowhere: no such file" in capsys.readouterr().err


def test_the_audit_names_the_template(folders, capsys, tmp_path):
    folder = folders.copy(folders.reward_model)
    (folder / "chat_template.jinja").unlink()
    rows = []
    for prompt, answer in conversations():
        rows.append({"prompt": prompt["content"], "chosen": answer["content"], "rejected": "no"})
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    options = AuditOptions(ckpt=str(folder), data=str(data), quick=True)
    identity = audit_checkpoint(options).identity
    layout = r"`<|begin_of_text|>\n\nHuman: prompt"
    assert identity["chat template"].startswith(f"one of this package, {layout}")
    assert "chat template: one of this package" in capsys.readouterr().err
