"""The manifest's keys, and the model card that is made from them."""

from dataclasses import replace

from reward.checkpoint.card import model_card
from reward.checkpoint.manifest import Manifest, seal
from reward.checkpoint.resume import differences_of_runs

MANIFEST = Manifest(
    base_model="Qwen/Qwen2.5-0.5B-Instruct",
    base_revision="7ae557604adf67be50417f59c2c2f167def9a775",
    adapter=True,
    trust_remote_code=False,
    quantization=None,
    dtype="float32",
    labels=1,
    max_length=None,
    overlong="drop",
    transcript="messages",
    encoder={},
    subsets=[],
    data=["Anthropic/hh-rlhf harmless-base"],
    fingerprints={},
    versions={},
    device="CPU, 2 threads, 1 process(es)",
    precision="float32",
    validation={"accuracy": 0.6667, "n": 1234},
    train_seconds=90,
    date="2026-01-02",
    verified={"max_difference": 2e-7, "tolerance": 1e-4, "seconds": 9.0},
)


def test_model_card():
    ledger = {"train": {"kept": 2000}, "validation": {"kept": 1234}, "test": {"kept": 500}}
    card = model_card(MANIFEST, ledger, "runs/rm-out")
    head = card.split("---")[1]
    assert 'base_model: "Qwen/Qwen2.5-0.5B-Instruct"' in head and '"lora"' in head
    for needed in (
        "# rm-out",
        "`7ae557604adf67be50417f59c2c2f167def9a775`",
        "0.667 (n = 1,234)",
        "2,000 / 1,234 / 500",
        "within 2.0e-07 (allowed 1.0e-04)",
        'from_pretrained("runs/rm-out/merged")',
        "audit.py --ckpt runs/rm-out",
    ):
        assert needed in card
    without_validation = model_card(
        replace(MANIFEST, validation={}), {"train": ledger["train"]}, "out"
    )
    two = model_card(replace(MANIFEST, adapter=False, labels=2), ledger, "out")
    assert ".logits[0, 1]" in two and "--ckpt out --convert DIR" in two
    assert ".logits[0, 0]" in card
    assert "| none |" in without_validation and "2,000 / none / none" in without_validation


def test_a_manifest_writes_what_is_known_in_the_order_of_its_fields():
    keys = MANIFEST.as_dict()
    assert list(keys)[:3] == ["format_version", "base_model", "base_revision"]
    assert list(keys)[-4:] == ["validation", "train_seconds", "date", "verified"]
    assert keys["max_length"] is None and "step" not in keys and "steps" not in keys


def test_a_run_with_more_processes_is_another_run(tmp_path):
    """Its steps see other pairs, and its schedule has another length."""
    seal(tmp_path, replace(MANIFEST, processes=8).as_dict())
    assert differences_of_runs(tmp_path, replace(MANIFEST, processes=8)) == []
    other = replace(MANIFEST, processes=4)
    assert differences_of_runs(tmp_path, other) == ["processes: 8 there, 4 here"]
    seal(tmp_path, MANIFEST.as_dict())  # of an earlier version
    assert differences_of_runs(tmp_path, other) == []
