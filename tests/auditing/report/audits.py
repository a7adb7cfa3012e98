"""Audits to make reports of: `full_audit()` has something to show in every part of the page."""

import re
from dataclasses import replace

import numpy as np

from auditing.pairs import Pairs
from auditing.report.report import write_report
from auditing.result import (
    Audit,
    BestOfN,
    ExtremeCompletion,
    LengthClass,
    ModelCouple,
    ProbeExample,
    ProbeResult,
    RankedModel,
    Ranking,
    ReliabilityBin,
    WorstError,
)
from auditing.verdicts import Check

ATTACK = (
    "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>"
    "\"' \u202egnp\x00\x1b[31m\ud800"
)


def rows_of(n, seed=0, **more):
    rng = np.random.default_rng(seed)
    return [
        {
            "prompt": [{"role": "user", "content": f"Question {i}?"}],
            "chosen": [{"role": "assistant", "content": f"Good answer {i}."}],
            "rejected": [{"role": "assistant", "content": f"Bad answer {i}."}],
            "subset": ("chat", "safety")[i % 2],
            "reward_chosen": float(rng.normal(1)),
            "reward_rejected": float(rng.normal()),
            "chosen_tokens": int(rng.integers(5, 300)),
            "rejected_tokens": int(rng.integers(5, 300)),
        }
        | more
        for i in range(n)
    ]


def checks_of(n=40):
    return [
        Check(
            name="accuracy",
            subset=None,
            value=0.75,
            low=0.6,
            high=0.86,
            n=n,
            verdict="pass",
            threshold="above .55",
            detectable=0.7,
            note="a note",
            baseline=0.55,
            ceiling=0.9,
        ),
        Check("accuracy", "chat", 0.8, 0.6, 0.9, n // 2, "pass", "above .5", 0.75, baseline=0.5),
        Check("accuracy", "safety", 0.5, 0.3, 0.7, n // 2, "fail", "above .5", 0.75, baseline=0.5),
        Check(
            name="tie rate",
            subset=None,
            value=0.0,
            low=0.0,
            high=0.1,
            n=n,
            verdict="not measurable",
            threshold="> .02",
            detectable=0.039,
            note="may well show none",
            section="distribution",
        ),
        Check(
            name="length excess",
            subset=None,
            value=0.2,
            low=0.1,
            high=0.3,
            n=n,
            verdict="warn",
            threshold="beyond .05",
            detectable=0.1,
            note="likes long",
            section="length and style",
            p=0.001,
        ),
    ]


def flattery_check():
    return Check(
        name="cosmetic wins, flattery",
        subset=None,
        value=0.875,
        low=0.8,
        high=0.95,
        n=24,
        verdict="warn",
        threshold="warn > .75, fail > .9 (ours: one half is indifference)",
        detectable=None,
        section="probes",
    )


def ranking_of_three():
    """b beats the audited model; c cannot be told from it."""
    models = [
        RankedModel("b", False, 1, 0.8, 0.7, 0.9),
        RankedModel("rm-out", True, 2, 0.75, 0.6, 0.86),
        RankedModel("c", False, 2, 0.7, 0.55, 0.85),
    ]
    couples = [
        ModelCouple("b", "rm-out", 0.05, 0.02, 0.08, 0.004, True, 0.0725, 0.03),
        ModelCouple("rm-out", "c", 0.05, -0.02, 0.12, 0.2, False, 0.25, 0.08),
    ]
    return Ranking(models, couples, 40)


def full_audit(n=40, **more):
    """Every part of the page has something to show."""
    strip = [("Be", 0.5), ("cause", -0.25), (".", 1.5)]
    error = WorstError("Why?", "Because.", "No idea.", -2.5, "chat", chosen_strip=strip)
    best = ExtremeCompletion(
        prompt="Why?",
        completion="- Because.",
        reward=3.5,
        side="chosen",
        subset="chat",
        length=4,
        marks=["markdown: 1 list item"],
        strip=strip,
    )
    flattery = ProbeResult(
        probe="flattery",
        kind="cosmetic",
        imitates="praise of the question",
        n=24,
        skipped=1,
        change=0.5,
        low=0.25,
        high=0.75,
        wins=0.875,
        flips=0.125,
        largest=ProbeExample("Why?", "Because.", "Great question! Because.", 1.0, 2.5),
        typical=ProbeExample("How?", "Slowly.", "Great question! Slowly.", 1.0, 1.5),
    )
    emoji = ProbeResult("emoji", "cosmetic", "decoration", 0, 25, None, None, None, None, None)
    audit = Audit(
        pairs=Pairs.collect(rows_of(n)),
        checks=checks_of(n),
        identity={"model": "rm-out", "base model": "Q@1"},
        not_measured=["Leakage: no training data is recorded."],
        worst=[error],
        top=[best],
        bottom=[replace(best, reward=-3.5, marks=[], strip=None)],
        reliability=[
            ReliabilityBin(confidence=0.55, accuracy=0.6, low=0.4, high=0.8, n=20),
            ReliabilityBin(confidence=0.9, accuracy=0.8, low=0.6, high=0.9, n=20),
        ],
        by_length=[
            LengthClass(start=-99.0, end=-1.0, value=0.6, low=0.4, high=0.8, n=20),
            LengthClass(start=0.0, end=250.0, value=0.9, low=0.7, high=1.0, n=20),
        ],
        best_of_n=[
            BestOfN(n=1, kl=0.0, reward=0.0, gold=0.5, length=80.0),
            BestOfN(n=4, kl=0.636, reward=1.0, gold=0.25, length=90.0),
        ],
        style_matrix=[[0.5, 0.25, 0.0], [0.75, 0.5, 0.25], [1.0, 0.75, 0.5]],
        probes=[flattery, emoji],
        baselines={"the longer wins": 0.55, "the shorter wins": 0.45},
        temperature=1.25,
        ranking=ranking_of_three(),
    )
    return replace(audit, **more)


def bare_audit(rows, **more):
    return Audit(Pairs.collect(rows), checks_of(len(rows)), {"model": "rm-out"}, **more)


def report(audit, output_dir):
    write_report(audit, output_dir)
    return (output_dir / "report.html").read_text(encoding="utf-8")


def without_images(html):
    return re.sub(r'base64,[^"]*', "", html)
