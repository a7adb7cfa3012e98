"""The audit's files: complete, without NaN, without anything a browser would run or load; the table; the card's results."""

import json
import math
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml

from auditing.pairs import Pairs
from auditing.report import html as page
from auditing.report import plots
from auditing.report.html import VERDICT_COLOURS, html_page
from auditing.report.plots import edge, shared_bins
from auditing.report.report import (
    PLOTS,
    markdown_page,
    model_index,
    terminal_table,
    write_model_index,
    write_report,
)
from auditing.report.wording import clip, fixed, one_line
from auditing.result import (
    Audit,
    BestOfN,
    ExtremeCompletion,
    LengthClass,
    ProbeResult,
    ReliabilityBin,
    WorstError,
)
from auditing.verdicts import VERDICTS, Check

SCHEMA = json.loads((Path(page.__file__).parent / "audit.schema.json").read_text())
ATTACK = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>\"' \u202egnp\x00\x1b[31m\ud800"


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
            "accuracy",
            None,
            0.75,
            0.6,
            0.86,
            n,
            "pass",
            "above .55",
            0.7,
            "a note",
            baseline=0.55,
            ceiling=0.9,
        ),
        Check("accuracy", "chat", 0.8, 0.6, 0.9, n // 2, "pass", "above .5", 0.75, baseline=0.5),
        Check("accuracy", "safety", 0.5, 0.3, 0.7, n // 2, "fail", "above .5", 0.75, baseline=0.5),
        Check(
            "tie rate",
            None,
            0.0,
            0.0,
            0.1,
            n,
            "not measurable",
            "> .02",
            0.039,
            "may well show none",
            "distribution",
        ),
        Check(
            "length excess",
            None,
            0.2,
            0.1,
            0.3,
            n,
            "warn",
            "beyond .05",
            0.1,
            "likes long",
            "length and style",
            0.001,
        ),
    ]


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
        before="Because.",
        after="Great question! Because.",
        reward_before=1.0,
        reward_after=2.5,
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
    )
    return replace(audit, **more)


def bare_audit(rows, **more):
    return Audit(Pairs.collect(rows), checks_of(len(rows)), {"model": "rm-out"}, **more)


def report(audit, output_dir):
    write_report(audit, output_dir)
    return (output_dir / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of one full report, and its page without the images' bytes."""
    folder = tmp_path_factory.mktemp("whole") / "deep" / "audit"
    return folder, without_images(report(full_audit(), folder))


def without_images(html):
    return re.sub(r'base64,[^"]*', "", html)


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
        "name": "length excess", "subset": None, "value": 0.2, "low": 0.1, "high": 0.3, "n": 40, "verdict": "warn",
        "threshold": "beyond .05", "detectable": 0.1, "note": "likes long", "section": "length and style", "p": 0.001,
        "otherwise": "pass", "baseline": None, "ceiling": None,
    }  # fmt: skip


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
    found = json.loads((tmp_path / "audit.json").read_text())["checks"][0]
    assert (found["value"], found["low"], found["n"]) == (0.5, 0.25, 8)


def test_what_an_earlier_audit_left_does_not_pass_for_this_one(tmp_path):
    (tmp_path / "best_of_n.png").write_bytes(b"old")
    write_report(bare_audit(rows_of(4)), tmp_path)
    assert not (tmp_path / "best_of_n.png").exists() and (tmp_path / "margins.png").exists()
    (tmp_path / "report.md").unlink()
    (tmp_path / "report.md").mkdir()  # so that writing stops half way
    with pytest.raises(OSError):
        write_report(bare_audit(rows_of(4)), tmp_path)
    assert not (tmp_path / "audit.json").exists()


def test_the_first_screen(whole):
    html = whole[1]
    order = [
        '<ul class="strip">', "<dt>Accuracy</dt><dd>.750<small>95% interval .600 to .860", "<dt>To beat</dt><dd>.550",
        "<dt>Ceiling</dt><dd>.900", "<dt>Pairs</dt><dd>40<small>tie rate .000", "<dt>Temperature</dt><dd>1.250",
        "<h2>Alarms</h2>", "<bdi>accuracy: safety</bdi>", "<bdi>length excess</bdi></b> .200 <span>(.100 to .300)",
        "<h2>What this audit could not detect</h2>", "Leakage: no training data is recorded.",
        "tie rate: n = 40, too few to be sure of anything below .039; may well show none.",
        "<b>Margins.</b>", "<b>Reliability.</b>", "<b>Accuracy by length difference.</b>",
        "<h2>Rewards and lengths</h2>", "<h2>Subsets</h2>", "<h2>Probes", "<h2>Best of n</h2>", "<h2>Style matrix</h2>",
        "<h2>The most confident errors</h2>", "<h2>The highest rewards</h2>", "<h2>The lowest rewards</h2>",
        "<h2>All checks</h2>", "<h2>This run</h2>",
    ]  # fmt: skip
    places = [html.find(text) for text in order]
    assert [text for text, place in zip(order, places, strict=True) if place < 0] == []
    assert places == sorted(places)
    strip = html[places[0] : places[1]]
    sections = re.findall(r">([^<]+)</a> <span.*?&nbsp;([a-z ]+)</span><small>([^<]*)", strip)
    assert sections == [
        ("Accuracy", "fail", "1 fail, 2 pass"),
        ("Distribution", "not measurable", "1 not measurable"),
        ("Length and style", "warn", "1 warn"),
    ]
    for target in re.findall(r'href="#([^"]*)"', strip):
        assert html.count(f'id="{target}"') == 1


def test_the_parts_of_the_page(whole):
    html = whole[1]
    for text in (
        "Great question! Because.", "easy .833, normal .500, hard .167", "margin \u22122.500", "reward +3.500",
        "markdown: 1 list item", "no marks of style", "Only the last value was trained.",
        '<span class="n1"><bdi>cause</bdi><small>\u2212.250</small></span>', '<span class="p4"><bdi>.</bdi><small>+1.500',
    ):  # fmt: skip
        assert text in html, text
    # Each check stands in one table: by subset, or in its section.
    assert html.count('<td data-label="Verdict"') == 5
    assert html.index("<bdi>safety</bdi>") < html.index("<bdi>chat</bdi>")  # the worst subset first


def test_a_long_strip_keeps_its_ends():
    strip = page.token_strip([(f"t{i}", float(i)) for i in range(500)])
    assert strip.count("<bdi>") == page.STRIP_TOKENS and "\u2026 340 more tokens \u2026" in strip
    assert "<bdi>t0</bdi><small>0</small>" in strip and "<bdi>t499</bdi>" in strip
    assert page.token_strip(None) == "" and page.token_strip([]) == ""  # an encoder has none
    assert "<bdi>\u21b5</bdi>" in page.token_strip([("\n", math.nan)])


def test_the_page_runs_and_loads_nothing(tmp_path):
    audit = full_audit(
        identity={"model": ATTACK, ATTACK: ATTACK}, not_measured=[ATTACK], baselines={ATTACK: 0.5}
    )
    audit.checks = [
        replace(check, note=ATTACK, subset=check.subset and ATTACK) for check in audit.checks
    ]
    audit.checks.append(Check(ATTACK, None, 0.5, 0.4, 0.6, 9, "fail", ATTACK, 0.1, ATTACK, ATTACK))
    audit.worst[0] = WorstError(
        prompt=ATTACK,
        chosen=ATTACK,
        rejected=ATTACK,
        margin=-2.5,
        subset=ATTACK,
        chosen_strip=[(ATTACK, 1.0)],
        rejected_strip=[(ATTACK, -1.0)],
    )
    audit.top[0] = replace(
        audit.top[0],
        prompt=ATTACK,
        completion=ATTACK,
        subset=ATTACK,
        side=ATTACK,
        marks=[ATTACK],
    )
    audit.probes[0] = replace(
        audit.probes[0],
        probe=ATTACK,
        before=ATTACK,
        after=ATTACK + "!",
        kind=ATTACK,
        imitates=ATTACK,
    )
    html = report(audit, tmp_path)
    assert "<script" not in html and "<img src" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20
    tags = re.findall(r"<[a-zA-Z][^>]*>", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL))
    assert not [
        tag for tag in tags if re.search(r"\son\w+\s*=", tag) or "http:" in tag or "https:" in tag
    ]
    assert all(re.search(r'href="#checks-[a-z0-9-]*"', tag) for tag in tags if "href" in tag)
    assert all('src="data:image/png;base64,' in tag for tag in tags if "src=" in tag)
    assert "url(" not in html and "@import" not in html
    assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in html
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", html)
    for shown in ("&lt;U+202E&gt;", "&lt;U+0000&gt;", "&lt;U+001B&gt;", "&lt;U+D800&gt;"):
        assert shown in html
    jsonschema.validate(json.loads((tmp_path / "audit.json").read_text()), SCHEMA)

    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", text)
    shown = [
        line for line in text.split("\n") if not line.startswith("    ")
    ]  # a block of code is not read as HTML
    assert not [line for line in shown if "<script" in line or "<img" in line]


def test_markdown():
    audit = full_audit(identity={"model": "a|b `c` [d](http://e) #f"})
    audit.worst[0].chosen = "```\n# Loud\n| a |"
    text = markdown_page(audit, {"margins": plots.Plot(b"", "Margins", "All of them.")})
    assert text.startswith("# Reward model audit: a\\|b \\`c\\` \\[d\\](http://e) \\#f\n")
    assert "| accuracy: safety | fail | .500 | .300 to .700 | 20 | .75 | above .5 |\n" in text
    assert "| flattery | .500 | .250 to .750 | .875 | .125 | 24 |\n" in text
    assert "![Margins](margins.png)" in text
    assert "\n\n    ``` # Loud | a |\n" in text
    tables = [line for line in text.split("\n") if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (3, 7, 8) for line in tables)


def test_emoji_and_right_to_left_text_stay():
    audit = full_audit()
    audit.top[
        0
    ].completion = "\u0645\u0631\u062d\u0628\u0627 \U0001f469\u200d\U0001f467 \u65e5\u672c"
    html = html_page(audit, {})
    assert (
        '<pre dir="auto">\u0645\u0631\u062d\u0628\u0627 \U0001f469\u200d\U0001f467 \u65e5\u672c</pre>'
        in html
    )


def test_a_ten_megabyte_completion_is_clipped():
    audit, text = full_audit(), "- **may** " * 1_000_000
    audit.top[0].completion = [{"role": "assistant", "content": text}]
    audit.probes[0] = replace(audit.probes[0], before=text, after=text + "!")
    audit.identity["model"] = text
    start = time.monotonic()
    html = html_page(audit, {})
    assert len(markdown_page(audit, {})) < 20_000
    assert time.monotonic() - start < 60  # searching the whole text would take minutes
    assert "\u2026 (9,999,400 more characters)" in html
    assert len(html) < 100_000


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
    assert terminal_table([]).split() == ["verdict", "check", "value", "95%", "interval", "n"]


def test_nan_is_never_written(tmp_path):
    bad = Check("accuracy", None, float("nan"), None, None, 1, "pass", "none", None)
    with pytest.raises(ValueError, match="JSON"):
        write_report(Audit(Pairs.collect(rows_of(2)), [bad], {}), tmp_path / "audit")
    assert not (tmp_path / "audit").exists()  # everything is made before anything is written


def test_importing_the_report_loads_neither_torch_nor_matplotlib():
    code = "import sys, auditing.report.report; print(*{'torch', 'matplotlib', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


# ---------------------------------------------------------------------------------------------------------------- Plots


def test_captions_say_what_the_plots_show():
    rows = rows_of(4, reward_rejected=0.0)
    for row, reward in zip(rows, (1.0, 2.0, 0.0, -1.0), strict=True):
        row["reward_chosen"] = reward
    drawn = plots.draw_plots(bare_audit(rows))
    assert list(drawn) == ["margins", "rewards", "length", "length_pairs"]
    assert drawn["margins"].caption == (
        "Left of the dashed line, 25.0%: the model prefers the rejected completion. The black bar is 1 tie."
    )
    assert ".625 of the time" in drawn["rewards"].caption  # (2 x 4 wins + 4 ties / 2) of 16
    whole = plots.draw_plots(full_audit())
    assert whole["reliability"].caption.startswith("40 predictions in 2 bins")
    assert whole["by_length"].caption.startswith("40 pairs")


def test_edges():
    assert [edge(value) for value in (-1234.4, 0.0, None, math.inf)] == ["\u22121,234", "0", "", ""]


@pytest.mark.parametrize(
    "values", [[], [0.0], [3e38, 3e38], [-3e38, 3e38], [-1e-30, 1e-30], [1.0, 2.0], [-0.7, 3.1]]
)
def test_shared_bins_always_rise(values):
    bins = shared_bins(np.array(values))
    assert np.all(np.diff(bins) > 0) and np.all(np.isfinite(bins))
    assert np.histogram(values, bins)[0].sum() == len(values)
    if values and min(values) < 0 < max(values) and np.ptp(values) > 1e-9:
        assert 0.0 in bins  # no bar mixes wrong and right


# ----------------------------------------------------------------------------------------------------- Table and texts


def test_terminal_table():
    checks = [
        Check("accuracy", None, 0.7134, 0.668, 0.7549, 1412, "pass", "t", 0.6),
        Check("accuracy", "a\x1b[31m\n" + "long " * 30, 0.5, 0.4, 0.6, 9, "fail", "t", 0.6),
        Check(
            "mean margin",
            None,
            None,
            None,
            None,
            1,
            "not measurable",
            "t",
            None,
            section="distribution",
        ),
        Check("spillover", None, -0.1, -0.2, 0.0, 100, "warn", "t", 0.1, section="transfer"),
    ]
    assert terminal_table(checks).split("\n") == [
        "verdict         check                                   value   95% interval      n",
        "fail            accuracy: a<U+001B>[31m long long lon\u2026   .500   .400 to .600      9",
        "warn            spillover                               -.100  -.200 to .000    100",
        "Accuracy",
        "pass            accuracy                                 .713   .668 to .755  1,412",
        "Distribution",
        "not measurable  mean margin                                 \u2013              \u2013      1",
    ]
    known = Check(
        "accuracy", None, 0.72, 0.68, 0.757, 500, "pass", "t", 0.6, baseline=0.5021, ceiling=0.958
    )
    assert terminal_table([known]).split("\n")[-2:] == [
        "",
        "accuracy .720 of a ceiling of .958; the best rule that does not read scores .502",
    ]
    wide = Check(
        "x" * 99,
        "y" * 99,
        -12345.678,
        -12345.678,
        -12345.678,
        1_000_000,
        "not measurable",
        "t",
        None,
    )
    assert max(map(len, terminal_table([*checks, wide]).split("\n"))) <= 100


def test_the_terminal_table_folds_what_is_no_alarm():
    def many(n, verdict, section, subset=None):
        return [
            Check(
                f"{verdict} {i}",
                subset and f"s{i}",
                0.5,
                0.4,
                0.6,
                9,
                verdict,
                "t",
                None,
                section=section,
            )
            for i in range(n)
        ]

    few = [*many(2, "fail", "labels"), *many(12, "pass", "accuracy"), *many(5, "pass", "probes")]
    assert len(terminal_table(few).split("\n")) == 1 + 2 + 1 + 12 + 1 + 5
    subsets = [*many(200, "pass", "accuracy", "s"), *many(30, "not measurable", "accuracy", "s")]
    lines = terminal_table([*subsets, *few]).split("\n")
    assert (
        len(lines) <= 41
        and "  more: 30 not measurable, 200 pass" in lines
        and "pass 11" in "\n".join(lines)
    )
    alarmed = terminal_table([*subsets, *few, *many(60, "warn", "probes")]).split("\n")
    assert [line.split()[0] for line in alarmed[1:63]] == ["fail"] * 2 + [
        "warn"
    ] * 60  # all, and first
    assert alarmed[63:] == ["Accuracy", "  30 not measurable, 212 pass", "Probes", "  5 pass"]


def test_text_helpers():
    assert clip("abcdef", 4) == "abcd\u2026 (2 more characters)"
    assert clip("a\r\nb\tc\x07") == "a\nb\tc<U+0007>"
    assert one_line("a\n b  c", 10) == "a b c" and one_line("abcdef", 4) == "abc\u2026"


def test_fixed():
    values = (0.0, -0.0, 0.71349, -0.25, 1.0, 10.5, 12345.0, 1e-5, -0.0004, None, math.nan)
    words = ".000 .000 .713 -.250 1.000 10.500 1.23e+04 1e-05 -4e-04 \u2013 \u2013"
    assert [fixed(value) for value in values] == words.replace("-", "\u2212").split()


def test_every_verdict_has_a_colour_that_black_text_is_readable_on():
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert set(VERDICT_COLOURS) == set(VERDICTS)
    shades = re.findall(r"\.[pn][1-4]\{background:(#[0-9a-f]{6})\}", page.CSS)
    assert len(shades) == 8
    assert all(
        (luminance(c) + 0.05) / 0.05 > 7 for c in [*VERDICT_COLOURS.values(), *shades]
    )  # WCAG's AAA


# ------------------------------------------------------------------------------------------------------ The model card

CARD = '---\nlibrary_name: "transformers"\ntags: ["reward-model", "trl"]\n---\n# rm-out\n\n---\nmodel-index: not this\n'


def test_model_index():
    metric = {
        "type": "accuracy",
        "value": 0.75,
        "name": "accuracy (95% interval .600 to .860, n = 40)",
    }
    assert model_index(full_audit(), "rm-out", "me/pairs") == {
        "model-index": [
            {
                "name": "rm-out",
                "results": [
                    {
                        "task": {"type": "text-classification", "name": "preference ranking"},
                        "dataset": {"name": "me/pairs", "type": "me/pairs"},
                        "metrics": [metric],
                    }
                ],
            }
        ]
    }
    assert model_index(full_audit(checks=[]), "rm-out", "me/pairs") == {}


def test_the_card_gets_the_results_and_keeps_the_rest(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(CARD)
    write_model_index(readme, full_audit(), "rm-out", "me/pairs")
    text = readme.read_text()
    start, end = CARD.split("---\n", 2)[1:]
    assert text.startswith(f"---\n{start}model-index:\n") and text.endswith(f"---\n{end}")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["tags"] == ["reward-model", "trl"]
    assert header["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.75
    write_model_index(readme, full_audit(), "rm-out", "me/pairs")
    assert readme.read_text() == text  # again: the same
    write_model_index(readme, full_audit(checks=[]), "rm-out", "me/pairs")
    assert readme.read_text() == CARD  # nothing measured: an earlier audit's results go
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_cards_without_a_header_with_keys_below_and_none(tmp_path):
    readme = tmp_path / "README.md"
    write_model_index(readme, full_audit(), "rm-out", "me/pairs")
    assert not readme.exists()
    readme.write_text("# Plain\n")
    write_model_index(readme, full_audit(), "rm-out", "me/pairs")
    assert readme.read_text().startswith("---\nmodel-index:\n") and readme.read_text().endswith(
        "---\n# Plain\n"
    )
    readme.write_bytes(b"---\r\nmodel-index:\r\n- name: old\r\nlicence: mit\r\n---\r\ntext\r\n")
    write_model_index(readme, full_audit(), "rm-out", "me/pairs")
    header = yaml.safe_load(readme.read_text().split("---\n")[1])
    assert header["licence"] == "mit" and header["model-index"][0]["name"] == "rm-out"
    assert readme.read_bytes().endswith(b"---\r\ntext\r\n")
