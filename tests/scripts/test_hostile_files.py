"""Files that broke a reader once: each is read, or answered by a short sentence, at once."""

import glob
import gzip
import json
import os
import shutil
from pathlib import Path

import pytest
import readers
from preferences import prepared
from readers import Outcome, answered
from support import SHARED, write_rows

import audit as audit_script
from auditing.options import AuditOptions
from auditing.run import audit_scores
from auditing.source import check_recorded
from reward.data import encoding, unpacking
from reward.data.files import DataError
from reward.model.hub import ModelError
from reward.model.one_off import audited_temperature

pytest_plugins = ["reader_fixtures"]

HOSTILE = sorted(glob.glob(str(SHARED / "cases/hostile/*")))
PAIR = {"prompt": "Name a red fruit.", "chosen": "A cherry.", "rejected": "A lime."}
SCORED = {**PAIR, "reward_chosen": 1.0, "reward_rejected": 0.5}


@pytest.mark.skipif(not HOSTILE, reason="needs ../shared/cases/hostile")
@pytest.mark.parametrize("path", HOSTILE, ids=os.path.basename)
def test_inputs_that_broke_a_reader_once(path, tmp_path, monkeypatch, tokenizer, scorer):
    monkeypatch.chdir(tmp_path)
    copied = Path(shutil.copy(path, tmp_path))
    kind = copied.name.split("-")[0]
    if kind == "recipe":
        answered(readers.read_recipe, copied)
    elif kind == "prefs":
        answered(readers.read_preferences, copied, tokenizer)
    elif kind == "scorein":
        answered(readers.read_to_score, copied, scorer)
    else:
        answered(readers.read_to_audit, copied)


# --- Limits ---------------------------------------------------------------------------------------


def preferences(path: Path, tokenizer) -> Outcome:
    return answered(readers.read_preferences, path, tokenizer)


@pytest.mark.parametrize(
    "content",
    [b'{"prompt": "' + b"a" * 3_000_000, b"\n" * 3_000_000, b'[{"prompt": "' + b"a" * 3_000_000],
    ids=["a line", "blank lines", "a list"],
)
def test_what_unpacks_to_very_much_is_refused(content, tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(unpacking, "UNPACKED_FREELY", 1_000_000)
    path = tmp_path / "pairs.json.gz"
    path.write_bytes(gzip.compress(content))
    refusal = preferences(path, tokenizer).refusal
    assert refusal == (
        f"{path}: it unpacks to more than 1,000,000 bytes, which is over 200 times its size and no "
        "usual file of rows; if you trust it, unpack it yourself and name the unpacked file"
    )


def test_a_compressed_file_may_be_large(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(unpacking, "UNPACKED_FREELY", 1000)
    rows = [
        {**PAIR, "prompt": f"Name a red fruit, please, for the time number {i}."} for i in range(60)
    ]
    table = preferences(write_rows(tmp_path / "pairs.jsonl.gz", rows), tokenizer).value
    assert len(table) == 60


LONG = "how can you " * 1_100_000


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv", "pairs.parquet"])
def test_a_row_that_is_too_long_is_a_bad_row(name, tmp_path, tokenizer):
    from reward.data.written_rows import write_rows as write_any

    write_any([{**PAIR, "prompt": LONG}, PAIR], str(tmp_path / name))
    outcome = preferences(tmp_path / name, tokenizer)
    if name == "pairs.csv":  # the end of a cell that is too long is not looked for
        assert outcome.refusal.endswith("pairs.csv:2: a row of more than 12,000,000 characters")
        return
    reason = "cannot be read: a row of more than 12,000,000 characters"
    assert outcome.value["drop"] == [reason, ""]


def test_a_row_with_very_many_values_is_a_bad_row(tmp_path, tokenizer):
    many = json.dumps({**PAIR, "x": [[]] * 200_001})
    wide = json.dumps({**PAIR, **{f"column {i}": 1 for i in range(1000)}})
    brackets = '{"x": ' + "[" * 1_000_001
    text = "\n".join([json.dumps(PAIR), many, wide, brackets])
    (tmp_path / "pairs.jsonl").write_text(text, encoding="utf-8")
    table = preferences(tmp_path / "pairs.jsonl", tokenizer).value
    assert table["drop"] == [
        "",
        "cannot be read: more than 200,000 values in one row",
        "cannot be read: more than 1,000 columns",
        "cannot be read: more than 200,000 values in one row",
    ]


def test_columns_that_nobody_reads_are_named_up_to_a_number(tmp_path, tokenizer, scorer):
    row = {**PAIR, **{f"column {i:03}": 1 for i in range(900)}}
    path = write_rows(tmp_path / "pairs.jsonl", [row])
    for outcome in (preferences(path, tokenizer), answered(readers.read_to_score, path, scorer)):
        assert "column 038, column 039 and 860 more" in outcome.printed


def test_texts_that_a_ranking_repeats_too_often(tmp_path, tokenizer):
    completions = [f"answer {i}" for i in range(100)]
    long_prompt = {"prompt": "word " * 2000, "completions": completions, "ranks": list(range(100))}
    sides = {"prompt": "word " * 2000, "chosen": completions, "rejected": completions}
    path = write_rows(tmp_path / "pairs.jsonl", [PAIR, long_prompt, sides])
    dropped = preferences(path, tokenizer).value["drop"]
    reason = "cannot be read: 100 completions in one row make {} characters with their prompts"
    assert dropped == ["", reason.format("99,088,110"), reason.format("100,089,000")]


def test_completions_of_one_row_that_are_scored(tmp_path, scorer):
    answers = [{"prompt": PAIR["prompt"], "completions": ["A cherry."] * n} for n in (2, 10_001)]
    path = write_rows(tmp_path / "rows.jsonl", answers)
    output = answered(readers.read_to_score, path, scorer).value
    few, many = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(few["rewards"]) == 2
    assert many["reward_error"] == (
        "10,001 completions in one row; at most 10,000 are scored together: split the row"
    )


def test_a_conversation_that_is_too_long_to_encode(tmp_path, tokenizer, scorer):
    rows = [{**PAIR, "prompt": "word " * 400_000}, PAIR]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    outcome = preferences(path, tokenizer)
    assert "dropped         1  refused by the limit of 2,000,000 characters" in outcome.printed
    outcome = answered(readers.read_to_score, path, scorer)
    assert "1 with no reward: refused by the limit of 2,000,000 characters" in outcome.printed
    finished = write_rows(tmp_path / "texts.jsonl", [{"text": "word " * 400_001}, {"text": "a"}])
    outcome = answered(readers.read_to_score, finished, scorer)
    assert "refused by the limit of 2,000,000 characters" in outcome.printed


SLOW = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if messages[0].content == 'slow' %}"
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    "{% endif %}"
)


def test_a_template_that_takes_too_long_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "RENDER_SECONDS", 0.2)
    tokenizer = prepared("qwen")
    tokenizer.chat_template = SLOW
    path = write_rows(tmp_path / "pairs.jsonl", [{**PAIR, "prompt": "slow"}, PAIR])
    outcome = preferences(path, tokenizer)
    reason = "refused by the limit of 0.2 s for the chat template"
    assert f"dropped         1  {reason}" in outcome.printed


def test_a_template_that_computes_powers_is_refused(tmp_path):
    tokenizer = prepared("qwen")
    path = write_rows(tmp_path / "pairs.jsonl", [PAIR])
    for powers in ("{{ 10 ** 10 ** 10 }}", "{% set x = (2 + 3) ** messages|length %}"):
        tokenizer.chat_template = powers + SLOW
        said = "the chat template has the operator `**`, whose result can take hours"
        assert said in preferences(path, tokenizer).refusal
    tokenizer.chat_template = "{% macro f() %}{{ kwargs }}{% endmacro %}{{ f(a=1, **{'b': 2}) }}"
    assert preferences(path, tokenizer).refusal is None


# --- Control characters ---------------------------------------------------------------------------

ESCAPE = "\x1b[31m"


def test_names_of_files_cannot_steer_a_terminal(tmp_path, tokenizer, scorer):
    path = tmp_path / f"{ESCAPE}rows.jsonl"
    path.write_text(json.dumps({**SCORED, "tools": 1, "reward_error": ESCAPE}) + "\n{\n")
    for outcome in (
        preferences(path, tokenizer),
        answered(readers.read_to_score, path, scorer),
        answered(readers.read_to_audit, path),
    ):
        assert "<U+001B>[31mrows.jsonl:1" in outcome.refusal


def test_reasons_of_rows_cannot_steer_a_terminal(tmp_path, capsys):
    bad = {"prompt": "p", "reward_error": f"{ESCAPE}no role `{ESCAPE}`"}
    path = write_rows(tmp_path / "scored.jsonl", [SCORED, bad])
    audit = answered(readers.read_to_audit, path).value
    audit_script.print_audit(audit, AuditOptions(scores=str(path)), seconds=1)
    said = capsys.readouterr().out
    assert "could not read it either: <U+001B>[31mno role" in said
    assert ESCAPE not in said


def test_a_template_cannot_steer_a_terminal(tmp_path, scorer, monkeypatch):
    template = (
        "{% if '[31m' in messages[0].content %}"
        "{{ raise_exception('no role ' + messages[0].content[:5]) }}{% endif %}a"
    )
    monkeypatch.setattr(scorer.tokenizer, "chat_template", template)
    rows = [{"prompt": f"{ESCAPE}red", "completion": "a"}, {"text": "a"}]
    outcome = answered(readers.read_to_score, write_rows(tmp_path / "rows.jsonl", rows), scorer)
    assert "refused by the chat template: no role <U+001B>[31m" in outcome.printed


# --- What the fuzz test found ---------------------------------------------------------------------


def test_lengths_in_tokens_are_finite(tmp_path):
    rows = [{**SCORED, "chosen_tokens": 5, "rejected_tokens": tokens} for tokens in (4, "1e999")]
    path = write_rows(tmp_path / "scored.jsonl", rows)
    audit = answered(readers.read_to_audit, path).value
    assert "1 left out: cannot be read: `rejected_tokens` is not finite" in audit.identity["format"]


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".bz2"])
def test_a_damaged_compressed_file_of_scores(suffix, tmp_path):
    import bz2
    import lzma

    pack = {".xz": lzma.compress, ".gz": gzip.compress, ".bz2": bz2.compress}[suffix]
    content = bytearray(pack(json.dumps([SCORED] * 50).encode()))
    content[len(content) // 2 : len(content) // 2 + 8] = bytes(8)
    path = tmp_path / f"scored.json{suffix}"
    path.write_bytes(content)
    assert answered(readers.read_to_audit, path).refusal.startswith(f"{path}: ")


def test_a_half_written_audit_is_no_file_to_compare_with(tmp_path):
    path = write_rows(tmp_path / "scored.jsonl", [SCORED])
    half = tmp_path / "audit.json"
    for content in ('{"format_version": 2, "identity": {"scores": "x', "null", "[]", "{}"):
        half.write_text(content)
        outcome = answered(audit_scores, str(path), compare=[str(half)])
        assert outcome.refusal.startswith(str(half))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_lone_surrogates_in_the_json_of_a_cell(suffix, tmp_path, tokenizer, scorer):
    from reward.data.written_rows import write_rows as write_any

    tools = json.dumps([{"type": "function", "function": {"name": "\ud800"}}])
    prompt = json.dumps([{"role": "user", "content": "a \ud800"}])
    path = tmp_path / f"pairs{suffix}"
    write_any([{**PAIR, "prompt": prompt, "tools": tools}], str(path))
    assert preferences(path, tokenizer).value["drop"] == [""]
    scored = answered(readers.read_to_score, path, scorer).value
    assert json.loads(scored.read_text(encoding="utf-8"))["margin"] is not None


def test_the_json_of_a_cell_is_read_as_strictly_as_a_row(tmp_path, tokenizer):
    tools = ['[{"name": "f", "name": "g"}]', "[" * 150 + "]" * 150, f"[{'9' * 4400}]", "[NaN]"]
    rows = [PAIR, *({**PAIR, "tools": cell} for cell in tools)]
    dropped = preferences(write_rows(tmp_path / "pairs.jsonl", rows), tokenizer).value["drop"]
    not_read = "cannot be read: `tools` is text that cannot be read as JSON"
    assert dropped == ["", *[not_read] * 3, "cannot be read: `tools` is a list"]


def test_a_list_of_names_where_a_side_could_stand(tmp_path, scorer):
    completions = [("A cherry.", 8), ("A lime.", 2)]
    rated = [{"response": text, "overall_score": score} for text, score in completions]
    row = {"instruction": PAIR["prompt"], "completions": rated, "chosen": ["alpaca-7b", "bard"]}
    path = write_rows(tmp_path / "rows.jsonl", [row])
    scored = answered(readers.read_to_score, path, scorer).value
    assert json.loads(scored.read_text(encoding="utf-8"))["margin"] is not None
    outcome = answered(readers.read_scored, scored, readers.FeedbackOptions("rank"))
    assert len(outcome.value) == 2


def test_scored_rows_whose_rewards_are_no_numbers(tmp_path):
    options = readers.FeedbackOptions("rank")
    row = {"prompt": "Name a red fruit.", "completion": "A cherry.", "reward": 1.0}
    for reward in ("", [], "x", True, {"a": 1}):
        rows = [row, {**row, "completion": "A lime \ud800.", "reward": reward}]
        path = tmp_path / "scored.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        outcome = answered(readers.read_scored, path, options)
        assert "1 row that cannot be read: left out" in outcome.printed
    path.write_text(json.dumps({**row, "prompt": "\ud800"}) + "\n")
    assert (
        answered(readers.read_scored, path, options).value[0]["prompt"]
        == "\N{REPLACEMENT CHARACTER}"
    )


def copy_of(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "model"))


def test_a_tokenizer_without_a_vocabulary(saved, tmp_path):
    folder = copy_of(saved("qwen"), tmp_path)
    (folder / "tokenizer.json").unlink()
    refusal = answered(readers.read_model, folder).refusal
    assert "has a tokenizer_config.json but no vocabulary (tokenizer.json or the like)" in refusal


NO_CONFIGS = ("null", "[]", "1", '{"model_type": "qwen2", "dtype": ""}', '{"model_type": []}')


@pytest.mark.parametrize("content", NO_CONFIGS)
def test_a_config_that_holds_something_else(content, saved, tmp_path):
    folder = copy_of(saved("qwen"), tmp_path)
    (folder / "config.json").write_text(content)
    assert "config.json" in answered(readers.read_model, folder).refusal


def with_value(path: Path, key: str, value: object) -> None:
    """Change a value of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


@pytest.mark.parametrize("value", ["x", [], None])
def test_a_length_of_the_tokenizer_that_is_no_number(value, saved, tmp_path):
    folder = copy_of(saved("qwen"), tmp_path)
    with_value(folder / "tokenizer_config.json", "model_max_length", value)
    refusal = answered(readers.read_model, folder).refusal
    assert value is None or "`model_max_length` in its tokenizer_config.json is a" in refusal


@pytest.mark.parametrize(
    "key", ["max_length", "overlong", "transcript", "dtype", "quantization", "encoder", "files"]
)
def test_a_manifest_with_a_value_of_another_kind(key, sealed, tmp_path):
    folder = copy_of(sealed, tmp_path)
    assert answered(readers.read_model, folder).refusal is None
    with_value(folder / "manifest.json", key, ["x"])
    refusal = answered(readers.read_model, folder).refusal
    assert f"`{key}` in manifest.json is a list: it is damaged; copy the folder again" in refusal


@pytest.mark.parametrize("key", ["lora_dropout", "alpha_pattern", "init_lora_weights"])
def test_an_adapter_with_a_value_of_another_kind(key, value_head_adapter, tmp_path):
    folder = copy_of(value_head_adapter[0], tmp_path)
    with_value(folder / "adapter_config.json", key, ["x"])
    refusal = answered(readers.read_model, folder).refusal
    assert refusal.startswith(f"{folder}: ")


GOLDEN = '{"text": null, "ids": [1], "reward": 0.5}\n'
NO_GOLDEN = (
    "{",
    "null",
    GOLDEN + "[1]",
    GOLDEN.replace("[1]", '["a"]'),
    GOLDEN.replace("0.5", '"a"'),
)


@pytest.mark.parametrize("content", NO_GOLDEN)
def test_damaged_golden_texts(content, sealed, tmp_path):
    folder = copy_of(sealed, tmp_path)
    (folder / "golden.jsonl").write_text(content)
    refusal = answered(readers.read_model, folder).refusal
    assert refusal == (
        f"{folder / 'golden.jsonl'} is damaged, so nobody knows its rewards; copy the folder again"
    )


@pytest.mark.parametrize("content", ["null", "{}", "[1]", "[["])
def test_damaged_ids_of_the_test_pairs(content, tmp_path):
    (tmp_path / "test_ids.json").write_text(content)
    outcome = answered(check_recorded, str(tmp_path), "main", table=None)
    assert "test_ids.json" in outcome.refusal


@pytest.mark.parametrize("content", ["[]", "null", '{"temperature": "1"}', '{"temperature": -1}'])
def test_an_audit_beside_the_model_that_holds_something_else(content, tmp_path):
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit/audit.json").write_text(content)
    with pytest.raises(ModelError, match="audit.json"):
        audited_temperature(str(tmp_path), "main")


def test_a_recipe_with_very_many_faults_is_answered_briefly(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("".join(f"unknown_{i}: 1\n" for i in range(500)))
    refusal = answered(readers.read_recipe, path).refusal
    assert refusal.startswith("the recipe has 5")
    assert refusal.endswith(" more, once these are mended")


def test_an_error_with_a_ledger_is_brief(tmp_path):
    from reward.data.ledger import Ledger

    ledger = Ledger()
    for i in range(19):
        ledger.add("train", "dropped", f"cannot be read: reason {i} " + "long " * 40)
    ledger.add_read("train", [""])
    ledger.splits["train"].read = 20
    with pytest.raises(DataError) as error:
        ledger.check(0.1)
    assert len(str(error.value)) < 2000
    assert str(error.value).endswith("If that is what you want, set max_dropped: 0.95.")
