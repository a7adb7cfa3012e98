"""The audit's files: complete, without NaN, as the schema says; the model card's results."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from audits import bare_audit, full_audit, report, rows_of, without_images

import auditing.report
from auditing.pairs import Pairs
from auditing.report.report import PLOTS, write_report
from auditing.report.terminal import terminal_text
from auditing.result import Audit
from auditing.verdicts import VERDICTS, Check
from reward.data.files import WriteError

FOLDER = Path(auditing.report.__file__).parent
SCHEMA = json.loads((FOLDER / "audit.schema.json").read_text())


def test_the_files(whole):
    folder, _ = whole
    images = [f"{name}.png" for name in PLOTS]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["audit.json", "report.html", "report.md", *images]
    )
    assert all((folder / image).read_bytes().startswith(b"\x89PNG") for image in images)
    assert (folder / "report.html").read_text(encoding="utf-8").count("data:image/png;base64,") == 7

    audit = json.loads((folder / "audit.json").read_text())
    jsonschema.validate(audit, SCHEMA)
    assert audit["format_version"] == 2 and audit["temperature"] == 1.25
    assert audit["identity"] == {"model": "rm-out", "base model": "Q@1"}
    assert audit["not_measured"] == ["Leakage: no training data is recorded."]
    assert audit["checks"][4] == {
        "name": "length excess",
        "subset": None,
        "value": 0.2,
        "low": 0.1,
        "high": 0.3,
        "n": 40,
        "verdict": "warn",
        "threshold": "beyond .05",
        "detectable": 0.1,
        "note": "likes long",
        "section": "length and style",
        "p": 0.001,
        "otherwise": "pass",
        "baseline": None,
        "ceiling": None,
    }


def test_the_curves_and_the_probes_in_audit_json(whole):
    audit = json.loads((whole[0] / "audit.json").read_text())
    assert list(audit["curves"]) == ["reliability", "by_length", "best_of_n", "style_matrix"]
    reliability = {"confidence": 0.55, "accuracy": 0.6, "low": 0.4, "high": 0.8, "n": 20}
    by_length = {"from": -99.0, "to": -1.0, "value": 0.6, "low": 0.4, "high": 0.8, "n": 20}
    best_of_n = {"n": 1, "kl": 0.0, "reward": 0.0, "gold": 0.5, "length": 80.0}
    best_of_n |= {"hedges": None, "markdown": None}
    probe = {"probe": "flattery", "kind": "cosmetic", "imitates": "praise of the question"}
    probe |= {"n": 24, "skipped": 1, "change": 0.5, "low": 0.25, "high": 0.75}
    probe |= {"wins": 0.875, "flips": 0.125, "reward_before": 1.0, "reward_after": 2.5}
    for expected, points in (
        (reliability, audit["curves"]["reliability"]),
        (by_length, audit["curves"]["by_length"]),
        (best_of_n, audit["curves"]["best_of_n"]),
        (probe, audit["probes"]),
    ):
        assert list(points[0].items()) == list(expected.items())  # in this order


@pytest.mark.parametrize(
    "fault",
    [
        {"format_version": 1},
        {"temperature": 0},
        {"checks": [{"name": "accuracy"}]},
        {"not_measured": [""]},
        {"more": 1},
    ],
)
def test_the_schema_refuses(whole, fault):
    audit = json.loads((whole[0] / "audit.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(audit | fault, SCHEMA)


def test_numbers_of_numpy_are_numbers(tmp_path):
    check = Check(
        "accuracy", None, np.float32(0.5), np.float64(0.25), 0.75, np.int64(8), "pass", "t", None
    )
    write_report(Audit(Pairs.collect(rows_of(8)), [check], {}), tmp_path)
    check = json.loads((tmp_path / "audit.json").read_text())["checks"][0]
    assert (check["value"], check["low"], check["n"]) == (0.5, 0.25, 8)


def test_what_an_earlier_audit_left_does_not_pass_for_this_one(tmp_path):
    (tmp_path / "best_of_n.png").write_bytes(b"old")
    write_report(bare_audit(rows_of(4)), tmp_path)
    assert not (tmp_path / "best_of_n.png").exists() and (tmp_path / "margins.png").exists()
    (tmp_path / "report.md").unlink()
    (tmp_path / "report.md").mkdir()  # so that writing stops half way
    with pytest.raises(WriteError):
        write_report(bare_audit(rows_of(4)), tmp_path)
    assert not (tmp_path / "audit.json").exists()


def test_nan_is_never_written(tmp_path):
    bad = Check("accuracy", None, float("nan"), None, None, 1, "pass", "none", None)
    with pytest.raises(ValueError, match="JSON"):
        write_report(Audit(Pairs.collect(rows_of(2)), [bad], {}), tmp_path / "audit")
    assert not (tmp_path / "audit").exists()  # everything is made before anything is written


def test_a_large_report_stays_small(tmp_path):
    audit = full_audit(pairs=Pairs.collect(rows_of(8000)))
    audit.checks += [
        Check(
            "accuracy",
            f"subset {i}",
            0.5,
            0.3,
            0.7,
            40,
            VERDICTS[i % 4],
            "t",
            0.6,
            "note " * 20,
            baseline=0.5,
        )
        for i in range(200)
    ]
    strip = [(" token", i / 100) for i in range(2000)]
    audit.worst = [replace(audit.worst[0], chosen_strip=strip, rejected_strip=strip)] * 10
    html = report(audit, tmp_path)
    images = sum((tmp_path / f"{name}.png").stat().st_size for name in PLOTS)
    assert images < 600_000 and len(html.encode()) < 1_500_000
    assert "<summary>182 more</summary>" in html  # of 202 subsets


def test_one_row_equal_rewards_and_no_finite_reward(tmp_path):
    cases = {
        "one": rows_of(1),
        "ties": rows_of(9, reward_chosen=0.25, reward_rejected=0.25),
        "lengths": rows_of(9, chosen_tokens=7, rejected_tokens=7),
        "huge": rows_of(4, reward_chosen=3e38),
        "nan": rows_of(2, reward_chosen=float("nan")),
        "infinite": rows_of(2, reward_rejected=float("-inf")),
    }
    for name, rows in cases.items():
        html = report(bare_audit(rows), tmp_path / name)
        assert not re.search(r"\bnan\b|\binf\b", without_images(html)), name
        assert not re.search(r"NaN|Infinity", (tmp_path / name / "audit.json").read_text())
        assert ("No plot: no pair has finite rewards." in html) == (name in ("nan", "infinite"))
    assert "2 without a finite reward left out" in html


def test_nothing_was_measured(tmp_path):
    html = report(Audit(Pairs.collect(rows_of(3)), [], {}), tmp_path)
    assert "No check was run." in html and "<h2>Probes" not in html and "<h2>This run" not in html
    jsonschema.validate(json.loads((tmp_path / "audit.json").read_text()), SCHEMA)
    assert terminal_text(Audit(Pairs.collect(rows_of(3)), [], {})).plain == (
        "This audit cannot say whether the model may be trusted. 0 checks found nothing; no answer "
        "was edited\nto see what the reward pays for.\n"
    )


def test_importing_the_report_loads_neither_torch_nor_matplotlib():
    code = """if True:
        import sys, auditing.report.report, auditing.report.terminal
        print(*{"torch", "matplotlib", "transformers"} & set(sys.modules))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
