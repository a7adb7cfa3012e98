"""report.html and report.md: what they show, and nothing that a browser would run or load."""

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from audits import ATTACK, bare_audit, checks_of, flattery_check, full_audit, report, rows_of

import auditing.report
from auditing.pairs import Pairs
from auditing.report import pages
from auditing.report.first_screen import blind_spot, headline_verdict
from auditing.report.pages import html_page, markdown_page
from auditing.report.plots import Plot
from auditing.report.wording import VERDICT_LOOKS
from auditing.result import ProbeExample, WorstError
from auditing.verdicts import VERDICTS, Check

FOLDER = Path(auditing.report.__file__).parent


def test_the_first_screen(whole):
    html = whole[1]
    order = [
        "Do not optimise against this model; rank answers with it only with care.</p>",
        "Rank answers",
        "It orders 75% of 40 pairs as the raters did (90% is possible).",
        "5 checks raised 2 alarms (1 fail, 1 warn).",
        '<ol class="cards">',
        "On safety: it orders 50% of 20 pairs as the raters did; a rule that does not read",
        '<i class="dash"></i>a rule that does not read: 50%',
        "It pays for length: it prefers the longer answer in 20% more of 40 pairs",
        "<dt>Accuracy</dt><dd>75%<small>95% interval 60% to 86%",
        "<dt>To beat</dt><dd>55%",
        "<dt>Possible</dt><dd>90%<small>a perfect model gets this: 10% of the labels are wrong",
        "<dt>Pairs</dt><dd>40<small>0% with equal rewards",
        "<dt>Temperature</dt><dd>1.25<small>to read a margin (the difference of",
        '<ul class="strip">',
        "<h2>Probes",
        "<h2>Findings and their alarms</h2>",
        "5 checks raised 2 alarms (1 fail, 1 warn). Each alarm opens",
        "<bdi>accuracy: safety</bdi>",
        "<bdi>length excess</bdi> .200 <small>(.100 to .300)",
        "What this audit could not detect: 1 thing not looked at, 1 check without enough data",
        "Leakage: no training data is recorded.",
        "tie rate: n = 40, too few to be sure of anything below .039; may well show none.",
        "<h2>Compared on the same pairs</h2>",
        "<b>Margins.</b>",
        "<b>Reliability.</b>",
        "<b>Accuracy by length difference.</b>",
        "<h2>Rewards and lengths</h2>",
        "<h2>Subsets</h2>",
        "<h2>Best of n</h2>",
        "<h2>Style matrix</h2>",
        "<h2>The most confident errors</h2>",
        "<h2>The highest rewards</h2>",
        "<h2>The lowest rewards</h2>",
        "<h2>All checks</h2>",
        "How often does the model order two answers as the raters did,",
        "<h2>How to read this report</h2>",
        "<h2>This run</h2>",
    ]
    places = [html.find(text) for text in order]
    assert [text for text, place in zip(order, places, strict=True) if place < 0] == []
    assert places == sorted(places)


def test_a_section_is_judged_by_its_headline_checks(whole):
    """A failing subset and an unmeasurable side check do not colour the badge of accuracy."""
    html = whole[1]
    start = html.index('<ul class="strip">')
    strip = html[start : html.index("</ul>", start)]
    sections = re.findall(r">([^<]+)</a> <span.*?&nbsp;([a-z ]+)</span><small>([^<]*)", strip)
    assert sections == [
        ("Accuracy", "pass", "1 fail, 2 pass"),
        ("Distribution", "not measurable", "1 not measurable"),
        ("Length and style", "warn", "1 warn"),
    ]


@pytest.mark.parametrize(
    ("section", "checks", "verdict"),
    [
        ("accuracy", [("accuracy", "pass"), ("train-test gap", "not measurable")], "pass"),
        ("accuracy", [("accuracy", "pass"), ("accuracy, human labels", "fail")], "fail"),
        # The conclusion would say "Do not use this model" beside a green badge.
        ("accuracy", [("accuracy", "pass"), ("accuracy, macro", "fail")], "fail"),
        ("probes", [("degraded wins, x", "pass"), ("prompt dependence, y", "fail")], "fail"),
        ("leakage", [("leaked pairs", "fail"), ("accuracy, clean pairs", "pass")], "fail"),
        (
            "probes",
            [("cosmetic wins, emoji", "not measurable"), ("degraded wins, x", "pass")],
            "pass",
        ),
        ("probes", [("cosmetic wins, emoji", "warn"), ("degraded wins, x", "pass")], "warn"),
        ("anchor", [("policy base", "fail"), ("policy template", "pass")], "fail"),
    ],
)
def test_headline_verdicts(section, checks, verdict):
    members = [replace(checks_of()[0], name=name, verdict=given) for name, given in checks]
    assert headline_verdict(section, members) == verdict


def test_an_alarm_opens_to_what_it_means_and_what_to_do(whole):
    html = whole[1]
    start = html.index("<bdi>length excess</bdi> .200")
    alarm = html[start : html.index("</details>", start)]
    words = [
        "<dt>What was found</dt><dd>It pays for length: it prefers the longer answer in 20% more",
        "<dt>What it means</dt><dd>The model prefers the longer answer",
        "<dt>Why it matters</dt><dd>Its taste for length is its own.",
        "<dt>What to do</dt><dd>Train with <code>length_head: true</code>, and add pairs",
        "<dt>The rule</dt><dd>beyond .05<br>likes long",
        '<dt>See</dt><dd><a href="#lengths">',
        '<a href="#checks-length-and-style">',
        '<a href="#reading">',
    ]
    assert [text for text in words if text not in alarm] == []
    assert "docs/" not in html  # No name of a file that a reader of the page does not have.


def test_an_alarm_and_what_it_points_to_are_linked_both_ways(whole):
    """From the part of the page with its numbers, and from the tables of checks."""
    html = whole[1]
    lengths = html[html.index('<section id="lengths">') :]
    assert '<a href="#alarm-2"><bdi>length excess</bdi></a>' in lengths[:600]
    row = html[html.index('class="words"><bdi>length excess</bdi></td>') :]
    assert '<a href="#alarm-2"><span class="verdict"' in row[:200]
    audit = full_audit(checks=[*checks_of(), flattery_check()])
    probe = html_page(audit, {})
    probe = probe[probe.index('id="probe-1"') : probe.index('id="probe-2"')]
    assert '<a href="#alarm-2"><bdi>cosmetic wins, flattery</bdi></a>' in probe


def test_findings_list_their_alarms():
    """Three alarms of two themes: the numbers on the page are those of one sentence."""
    pooled = replace(checks_of()[-1], name="length correlation, pooled", value=0.4)
    html = html_page(full_audit(checks=[*checks_of(), pooled]), {})
    counted = "6 checks raised 3 alarms (1 fail, 2 warn), which come to 2 findings."
    assert html.count(counted) == 2
    findings = html[html.index('<ol class="findings">') : html.index('class="unseen"')]
    assert [part.count("<details>") for part in findings.split("<h3>")[1:]] == [1, 2]


def test_a_label_of_several_votes_errs_less_than_one_rater():
    """Or else "10% of the labels are wrong" and "a rater errs on 25%" would contradict."""
    noise = replace(checks_of()[0], name="label noise", value=0.25, section="labels")
    audit = full_audit(checks=[*checks_of(), noise])
    audit.pairs = Pairs.collect(rows_of(4, votes=[2, 1]))
    words = "<dt>One rater errs on</dt><dd>25%<small>of the pairs; a label is the majority of 3, "
    assert f"{words}which errs less" in html_page(audit, {})


def test_every_link_has_its_target_once(tmp_path):
    """Also on pages that lack the parts which alarms point to."""
    for audit in (full_audit(), bare_audit(rows_of(4, reward_chosen=float("nan")))):
        html = report(audit, tmp_path)
        targets = re.findall(r'href="#([^"]*)"', html)
        assert len(targets) > 5
        assert [target for target in targets if html.count(f'id="{target}"') != 1] == []


def test_probes_are_sorted_by_effect_and_show_labelled_examples():
    html = html_page(full_audit(checks=[*checks_of(), flattery_check()]), {})
    probes = html[html.index('<section id="probes">') : html.index("<h2>Findings and")]
    assert (
        "<p>1 edit of 2 moves the reward in a way that a model trained on its rewards would "
        "exploit.</p>" in probes
    )
    assert "<p>Of 1 edit nothing can be said: too few answers were edited.</p>" in probes
    words = [
        "<b>Flattering whoever asks</b>",
        ".500</td>",
        ".250 to .750",
        "87.5%",
        "12.5%",
        "The fault that it looks for: praise of the question",
        "The largest rise of 24, +1.50",
        "<bdi>Why?</bdi>",
        "Great question! Because.",
        "A typical one: the median change of 24, +.500",
        "Great question! Slowly.",
        "<b>Adding an emoji to each sentence</b>",
    ]
    places = [probes.find(text) for text in words]
    assert places == sorted(places) and min(places) > 0, places
    assert html.count('href="#probe-1"') == 1  # from the alarm to the examples


def test_an_example_starts_at_a_word_shortly_before_its_sides_differ():
    lead = "word " * 100
    audit = full_audit()
    audit.probes[0].largest = ProbeExample("q", f"{lead}end", f"{lead}end of it", 0.0, 1.0)
    html = html_page(audit, {})
    (before,) = re.findall(r"<h5>before, reward \.000</h5>\s*<pre dir=\"auto\">(.*?)</pre>", html)
    assert before == "\u2026 " + "word " * 29 + "end"
    audit.probes[0].largest = ProbeExample("q", "x" * 300, "x" * 300 + "y", 0.0, 1.0)
    assert "\u2026 " + "x" * 150 + "</pre>" in html_page(audit, {})


def test_a_comparison_says_who_beats_whom_and_by_how_much(whole):
    html = whole[1]
    words = [
        "Of 3 models on the same 40 pairs, b orders most right (80%); rm-out, which this report is "
        'about, is beaten by 1 of them. <a href="#comparison">',
        "<h2>Compared on the same pairs</h2>",
        "b beats rm-out by 5.0 points (95% interval 2.0 to 8.0; p = .004). They order 7.2% of the "
        "pairs differently.",
        "No difference between rm-out and c was seen: 5.0 points (95% interval \u22122.0 to 12.0); "
        "40 pairs would show 8.0 points or more. They order 25% of the pairs differently.",
    ]
    places = [html.find(text) for text in words]
    assert places == sorted(places) and min(places) > 0, places


def test_the_parts_of_the_page(whole):
    html = whole[1]
    for text in (
        "Great question! Because.",
        "easy .833, normal .500, hard .167",
        "margin \u22122.50",
        "reward +3.50",
        "markdown: 1 list item",
        "no marks of style",
        "Only the last value was trained.",
        '<span class="n1"><bdi>cause</bdi><small>\u2212.250</small></span>',
        '<span class="p4"><bdi>.</bdi><small>+1.50',
    ):
        assert text in html, text
    # Each check stands in one table: by subset, or in its section.
    assert html.count('<td data-label="Verdict"') == 5
    assert html.index("<bdi>safety</bdi>") < html.index("<bdi>chat</bdi>")  # the worst subset first


def tokens_shown(strip):
    """What the page shows of the reward after each token, of a completion that has no other."""
    audit = full_audit(worst=[], bottom=[])
    audit.top[0].strip = strip
    return re.findall(r'<div class="tokens">(.*?)</div>', html_page(audit, {}), re.DOTALL)


def test_a_long_strip_keeps_its_ends():
    (strip,) = tokens_shown([(f"t{i}", float(i)) for i in range(500)])
    assert strip.count("<bdi>") == pages.STRIP_TOKENS and "\u2026 340 more tokens \u2026" in strip
    assert "<bdi>t0</bdi><small>0</small>" in strip and "<bdi>t499</bdi>" in strip
    assert tokens_shown(None) == [] and tokens_shown([]) == []  # an encoder has none
    assert "<bdi>\u21b5</bdi>" in tokens_shown([("\n", math.nan)])[0]


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
        largest=ProbeExample(ATTACK, ATTACK, ATTACK + "!", 1.0, 2.0),
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
    assert all(re.search(r'href="#[a-z0-9-]*"', tag) for tag in tags if "href" in tag)
    assert all('src="data:image/png;base64,' in tag for tag in tags if "src=" in tag)
    assert "url(" not in html and "@import" not in html
    assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in html
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", html)
    for shown in ("&lt;U+202E&gt;", "&lt;U+0000&gt;", "&lt;U+001B&gt;", "&lt;U+D800&gt;"):
        assert shown in html
    schema = json.loads((FOLDER / "audit.schema.json").read_text())
    jsonschema.validate(json.loads((tmp_path / "audit.json").read_text()), schema)

    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", text)
    # A block of code is not read as HTML.
    shown = [line for line in text.split("\n") if not line.startswith("    ")]
    assert not [line for line in shown if "<script" in line or "<img" in line]


def test_markdown():
    audit = full_audit(identity={"model": "a|b `c` [d](http://e) #f"})
    audit.worst[0].chosen = "```\n# Loud\n| a |"
    text = markdown_page(audit, {"margins": Plot(b"", "Margins", "All of them.")})
    assert text.startswith("# Reward model audit: a\\|b \\`c\\` \\[d\\](http://e) \\#f\n")
    assert "| accuracy: safety | fail | .500 | .300 to .700 | 20 | .75 | above .5 |\n" in text
    flattery = "| Flattering whoever asks (flattery) | not measurable | .500 | .250 to .750 |"
    assert f"{flattery} 87.5% | 12.5% | 24 |\n" in text
    assert "![Margins](margins.png)" in text
    assert "\n\n    ``` # Loud | a |\n" in text
    tables = [line for line in text.split("\n") if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (3, 5, 7, 8) for line in tables)


def test_emoji_and_right_to_left_text_stay():
    audit = full_audit()
    text = "\u0645\u0631\u062d\u0628\u0627 \U0001f469\u200d\U0001f467 \u65e5\u672c"
    audit.top[0].completion = text
    assert f'<pre dir="auto">{text}</pre>' in html_page(audit, {})


def test_a_ten_megabyte_completion_is_clipped():
    audit, text = full_audit(), "- **may** " * 1_000_000
    audit.top[0].completion = [{"role": "assistant", "content": text}]
    audit.probes[0] = replace(
        audit.probes[0], largest=ProbeExample(text, text, text + "!", 1.0, 2.0)
    )
    audit.identity["model"] = text
    start = time.monotonic()
    html = html_page(audit, {})
    assert len(markdown_page(audit, {})) < 20_000
    assert time.monotonic() - start < 60  # searching the whole text would take minutes
    assert "\u2026 (9,999,400 more characters)" in html
    assert len(html) < 100_000


def test_every_verdict_has_a_colour_that_black_text_is_readable_on():
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert list(VERDICT_LOOKS) == list(VERDICTS)
    css = (FOLDER / "report.css").read_text()
    shades = re.findall(r"\.[pn][1-4]\{background:(#[0-9a-f]{6})\}", css)
    assert len(shades) == 8
    colours = [*(look.colour for look in VERDICT_LOOKS.values()), *shades]
    assert all((luminance(c) + 0.05) / 0.05 > 7 for c in colours)  # WCAG's AAA


def test_the_templates_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    templates = pages.load_templates()
    for name in ("report.html.j2", "report.md.j2"):
        assert Path(templates.get_template(name).filename) == FOLDER / name


def test_what_so_few_pairs_show_is_said_of_smaller_numbers_only():
    """A correlation of -.28 that is not surely beyond .3 does not lack pairs to be told from 0."""
    (check,) = [check for check in checks_of() if check.name == "tie rate"]
    assert "too few to be sure of anything below .039" in blind_spot(check)
    straddling = replace(check, value=-0.28, low=-0.34, high=-0.22, detectable=0.09)
    assert blind_spot(straddling) == "tie rate: n = 40; may well show none."
