"""The audit's files: complete, without NaN, without anything a browser would run or load."""

import json
import re
import time

import numpy as np
import pytest

from rm.audit.checks import VERDICTS, Check, run_checks
from rm.audit.report import VERDICT_COLOURS, clip, one_line, shared_bins, terminal_table, write_report


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


def report(rows, output_dir, identity=None):
    write_report(rows, run_checks(rows), identity or {"model": "rm-out"}, output_dir)
    return (output_dir / "report.html").read_text(encoding="utf-8")


def test_the_files(tmp_path):
    html = report(
        rows_of(40, bayes_accuracy=0.84), tmp_path / "deep" / "audit", {"model": "rm-out", "base model": "Q@1"}
    )
    folder = tmp_path / "deep" / "audit"
    plots = ["length.png", "length_pairs.png", "margins.png", "rewards.png"]
    assert sorted(path.name for path in folder.iterdir()) == ["audit.json", *plots[:3], "report.html", "rewards.png"]
    assert all((folder / plot).read_bytes().startswith(b"\x89PNG") for plot in plots)

    audit = json.loads((folder / "audit.json").read_text())
    assert audit["format_version"] == 1
    assert audit["identity"] == {"model": "rm-out", "base model": "Q@1"}
    keys = ["name", "subset", "value", "low", "high", "n", "verdict", "threshold", "detectable", "note"]
    keys += ["baseline", "ceiling"]
    assert all(list(check) == keys for check in audit["checks"])
    assert [check["subset"] for check in audit["checks"]][-2:] == ["chat", "safety"]

    assert html.count("data:image/png;base64,") == 4
    for text in ("Accuracy", "95% interval", "Ceiling", "Subsets", "The highest rewards", "Q@1", "did not look at"):
        assert text in html


def test_the_page_runs_and_loads_nothing(tmp_path):
    rows = rows_of(12)
    attack = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>\"' \u202egnp\x00\x1b[31m\ud800"
    rows[0] |= {"chosen": attack, "prompt": attack, "reward_chosen": 99.0, "subset": attack}
    html = report(rows, tmp_path, {"model": attack, attack: attack})
    assert "<script" not in html and "<img src" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    tags = re.findall(r"<[a-zA-Z][^>]*>", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL))
    assert not [tag for tag in tags if re.search(r"\s(on\w+|href)\s*=", tag) or "http:" in tag or "https:" in tag]
    assert all('src="data:image/png;base64,' in tag for tag in tags if "src=" in tag)
    assert "url(" not in html and "@import" not in html
    assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in html
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", html)
    for shown in ("&lt;U+202E&gt;", "&lt;U+0000&gt;", "&lt;U+001B&gt;", "&lt;U+D800&gt;"):
        assert shown in html
    json.loads((tmp_path / "audit.json").read_text())


def test_emoji_and_right_to_left_text_stay(tmp_path):
    rows = rows_of(3)
    rows[1] |= {
        "chosen": "\u0645\u0631\u062d\u0628\u0627 \U0001f469\u200d\U0001f467 \u65e5\u672c",
        "reward_chosen": 50.0,
    }
    html = report(rows, tmp_path)
    assert '<pre dir="auto">\u0645\u0631\u062d\u0628\u0627 \U0001f469\u200d\U0001f467 \u65e5\u672c</pre>' in html


def test_a_ten_megabyte_completion_is_clipped(tmp_path):
    rows = rows_of(3)
    rows[0] |= {"chosen": [{"role": "assistant", "content": "- **may** " * 1_000_000}], "reward_chosen": 50.0}
    start = time.monotonic()
    html = report(rows, tmp_path)
    assert time.monotonic() - start < 20
    assert "\u2026 (9,999,400 more characters)" in html
    assert len(html) < 2_000_000


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
        html = report(rows, tmp_path / name)
        assert "not measurable" in html
        assert not re.search(r"\bnan\b|\binf\b", re.sub(r"base64,[^\"]*", "", html)), name
        text = (tmp_path / name / "audit.json").read_text()
        assert not re.search(r"NaN|Infinity", text)


def test_nan_is_never_written(tmp_path):
    bad = Check("accuracy", None, float("nan"), None, None, 1, "pass", "none", None)
    tie = Check("tie rate", None, 0.0, 0.0, 0.1, 1, "pass", "none", None)
    with pytest.raises(ValueError, match="JSON"):
        write_report(rows_of(2), [bad, tie], {}, tmp_path / "audit")
    assert not (tmp_path / "audit").exists()  # everything is made before anything is written


def test_terminal_table():
    checks = [
        Check("accuracy", None, 0.7134, 0.668, 0.7549, 1412, "pass", "t", 0.6),
        Check("accuracy", "a\x1b[31m\n" + "long " * 30, 0.5, 0.4, 0.6, 9, "fail", "t", 0.6),
        Check("mean margin", None, None, None, None, 1, "not measurable", "t", None),
    ]
    assert terminal_table(checks).split("\n") == [
        "verdict         check                                   value  95% interval      n",
        "pass            accuracy                                 .713  .668 to .755  1,412",
        "fail            accuracy: a<U+001B>[31m long long lon\u2026   .500  .400 to .600      9",
        "not measurable  mean margin                                 \u2013             \u2013      1",
    ]
    yardsticks = ("note", 0.5021, 0.958)
    found = terminal_table([Check("accuracy", None, 0.72, 0.68, 0.757, 500, "pass", "t", 0.6, *yardsticks)])
    assert found.split("\n") == [
        "verdict  check     value  95% interval    n",
        "pass     accuracy   .720  .680 to .757  500",
        "",
        "accuracy .720 of a ceiling of .958; length alone scores .502",
    ]
    rows = rows_of(40)  # no row knows its Bayes accuracy, and the subsets' accuracies get no line of their own
    assert terminal_table(run_checks(rows)).split("\n")[-2:] == ["", "accuracy .725; length alone scores .550"]
    wide = Check("x" * 99, "y" * 99, -12345.678, -12345.678, -12345.678, 1_000_000, "not measurable", "t", None)
    assert max(map(len, terminal_table([*checks, wide]).split("\n"))) <= 100


def test_text_helpers():
    assert clip("abcdef", 4) == "abcd\u2026 (2 more characters)"
    assert clip("a\r\nb\tc\x07") == "a\nb\tc<U+0007>"
    assert one_line("a\n b  c", 10) == "a b c" and one_line("abcdef", 4) == "abc\u2026"


@pytest.mark.parametrize("values", [[], [0.0], [3e38, 3e38], [-1e-30, 1e-30], [1.0, 2.0]])
def test_shared_bins_always_rise(values):
    bins = shared_bins(np.array(values))
    assert np.all(np.diff(bins) > 0) and np.all(np.isfinite(bins))
    assert np.histogram(values, bins)[0].sum() == len(values)


def test_every_verdict_has_a_colour_that_black_text_is_readable_on():
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert set(VERDICT_COLOURS) == set(VERDICTS)
    assert all((luminance(c) + 0.05) / 0.05 > 7 for c in VERDICT_COLOURS.values())  # WCAG's AAA
