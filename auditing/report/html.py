"""report.html: one file that loads nothing and runs nothing. Whatever comes from data is clipped, made visible and escaped."""

import base64
import math
import re
from html import escape
from os.path import commonprefix
from pathlib import Path

import numpy as np

from auditing.report.plots import Plot
from auditing.report.wording import (
    CLIP,
    SURENESS,
    alarms,
    blind_spots,
    by_section,
    clip,
    fixed,
    headline,
    interval_text,
    label,
    signed,
    tally,
    title_of,
    worst_first,
)
from auditing.result import Audit, BestOfN, ExtremeCompletion, ProbeResult, Strip, WorstError
from auditing.verdicts import VERDICTS, Check, count, short
from reward.data.transcripts import text_of

PROMPT_CLIP = 300  # of a prompt, from its end


OPEN_ROWS = 20  # of a long list or table; the others lie under a fold


STRIP_TOKENS = 160  # of a completion, half from its start and half from its end


CSS = Path(__file__).with_name("report.css").read_text(encoding="utf-8")


# Okabe and Ito's palette and, under black text, lighter tints of it; the sign and the word say the same.
VERDICT_COLOURS = dict(
    zip(VERDICTS, ("#F0A080", "#F3C25C", "#B5DCF3", "#8FD6BF", "#E2E2E2"), strict=True)
)


VERDICT_SIGNS = dict(zip(VERDICTS, ("\u2717", "!", "?", "\u2713", "\u2013"), strict=True))


STYLES = ("concise", "detailed", "markdown")  # of RM-Bench, in the order of its files


def safe(text, characters: int = CLIP) -> str:
    return escape(clip(str(text), characters))


# ------------------------------------------------------------------------------------------------------------- The page


def html_page(audit: Audit, plots: dict[str, Plot]) -> str:
    name = safe(audit.identity.get("model") or audit.identity.get("scores") or "reward model", 120)
    first = figures(plots, "margins", "reliability", "by_length")
    more = figures(plots, "rewards", "length", "length_pairs")
    date = f" \u00b7 {safe(audit.identity['date'], 40)}" if "date" in audit.identity else ""
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Reward model audit: {name}</title><style>{CSS}</style></head><body>",
        f"<header><p>Reward model audit</p><h1><bdi>{name}</bdi></h1>"
        f"<p>{count(len(audit.pairs), 'pair')} \u00b7 {count(len(audit.checks), 'check')}{date}</p></header>",
        f"<main>{verdict_strip(audit.checks)}{facts_list(audit)}",
        f'<div class="two"><section><h2>Alarms</h2>{alarm_list(audit.checks)}</section>',
        f"<section><h2>What this audit could not detect</h2>{bullets(blind_spots(audit), 6)}</section></div>",
        first or "<p>No plot: no pair has finite rewards.</p>",
        titled("Rewards and lengths", more),
        titled("Subsets", subset_tables(audit.checks)),
        titled("Probes: what an edit does to the reward", probe_table(audit.probes)),
        titled("Best of n", best_of_n(audit.best_of_n, plots)),
        titled("Style matrix", style_table(audit.style_matrix)),
        titled("The most confident errors", error_list(audit.worst)),
        titled("The highest rewards", completion_list(audit.top)),
        titled("The lowest rewards", completion_list(audit.bottom)),
        titled("All checks", check_tables(audit.checks)),
        titled("This run", identity_table(audit.identity)),
        "</main></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def titled(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def verdict_tag(verdict: str) -> str:
    return (
        f'<span class="verdict" style="background:{VERDICT_COLOURS[verdict]}">'
        f'<span aria-hidden="true">{VERDICT_SIGNS[verdict]}</span>&nbsp;{verdict}</span>'
    )


def verdict_strip(checks: list[Check]) -> str:
    """The worst verdict of each section, and how many of each."""
    items = "".join(
        f'<li><a href="#{anchor(section)}">{safe(title_of(section), 60)}</a> {verdict_tag(worst_first(there)[0].verdict)}'
        f"<small>{tally(there)}</small></li>"
        for section, there in by_section(checks).items()
    )
    return f'<ul class="strip">{items}</ul>' if items else "<p>No check was run.</p>"


def anchor(section: str) -> str:
    return "checks-" + re.sub(r"[^a-z0-9]+", "-", section.lower())


def facts_list(audit: Audit) -> str:
    cells = (
        f"<div><dt>{name}</dt><dd>{number}<small>{safe(doubt, 80)}</small></dd></div>"
        for name, number, doubt in headline(audit)
    )
    return f'<dl class="facts">{"".join(cells)}</dl>'


def alarm_list(checks: list[Check]) -> str:
    items = [
        f"<li><details><summary>{verdict_tag(check.verdict)} <b><bdi>{safe(label(check), 120)}</bdi></b> "
        f"{fixed(check.value)} <span>({interval_text(check.low, check.high)})</span></summary>"
        f"<small>{remarks(check)}</small></details></li>"
        for check in alarms(checks)
    ]
    return f'<ul class="alarms">{folded(items, 8, "alarm", "ul")}</ul>' if items else "<p>None.</p>"


def remarks(check: Check) -> str:
    return safe(check.threshold) + (f"<br>{safe(check.note)}" if check.note else "")


def bullets(sentences: list[str], most: int) -> str:
    items = [f"<li>{safe(sentence)}</li>" for sentence in sentences]
    return (
        f"<ul>{folded(items, most, 'more of them', 'ul')}</ul>"
        if items
        else "<p>Nothing that it knows of.</p>"
    )


def folded(items: list[str], most: int, thing: str, tag: str) -> str:
    """The first `most` list items, and the rest under a fold of the same list."""
    if len(items) <= most + 2:
        return "".join(items)
    rest = len(items) - most
    words = f"{rest:,} {thing}" if thing.startswith("more") else f"{count(rest, 'more ' + thing)}"
    inner = f"<{tag}>{''.join(items[most:])}</{tag}>"
    return f'{"".join(items[:most])}<li class="fold"><details><summary>{words}</summary>{inner}</details></li>'


# --------------------------------------------------------------------------------------------------------------- Plots


def figures(plots: dict[str, Plot], *names: str) -> str:
    found = "".join(figure(plots[name]) for name in names if name in plots)
    return f'<div class="plots">{found}</div>' if found else ""


def figure(plot: Plot) -> str:
    return (
        f'<figure><img alt="{safe(plot.title)}" src="data:image/png;base64,{base64.b64encode(plot.image).decode()}">'
        f"<figcaption><b>{safe(plot.title)}.</b> {safe(plot.caption)}</figcaption></figure>"
    )


def interval_bar(value, low, high, start: float, end: float, mark: float) -> str:
    """An interval with its value from `start` to `end`, a dashed tick at `mark`: a picture of the numbers beside it."""
    if (
        None in (value, low, high)
        or not all(map(math.isfinite, (value, low, high)))
        or not start < end
    ):
        return ""
    x, a, b, m = (
        4 + 152 * (min(max(v, start), end) - start) / (end - start)
        for v in (value, low, high, mark)
    )
    return (
        '<svg class="bar" viewBox="0 0 160 16" width="160" height="16" aria-hidden="true">'
        f'<path d="M4 8H156" stroke="#ccc"/><path d="M{m:.1f} 0V16" stroke="#000" stroke-dasharray="2 2"/>'
        f'<path d="M{a:.1f} 8H{max(b, a + 1):.1f}" stroke="#56B4E9" stroke-width="7"/>'
        f'<path d="M{x:.1f} 3V13" stroke="#003a5c" stroke-width="2.5"/></svg>'
    )


# -------------------------------------------------------------------------------------------------------------- Tables


def table(heads: list[str], rows: list[list[str]], words: tuple[int, ...] = (0,)) -> str:
    """`rows`: cells of escaped HTML; the columns of `words` hold text, the others numbers. One cell more than `heads` goes
    below its row, over the whole width. On a phone a row becomes a block."""
    kind = ['class="words"' if i in words else 'class="number"' for i in range(len(heads))]
    head = "".join(f'<th scope="col" {k}>{h}</th>' for h, k in zip(heads, kind, strict=True))

    def line(row: list[str]) -> str:
        # A row with something below is longer than the heads: not strict.
        cells = "".join(
            f'<td data-label="{h}" {k}>{cell}</td>'
            for h, k, cell in zip(heads, kind, row, strict=False)
        )
        below = (
            f'<tr class="below"><td colspan="{len(heads)}">{row[-1]}</td></tr>'
            if len(row) > len(heads)
            else ""
        )
        return f"<tr>{cells}</tr>{below}"

    def whole(part: list[list[str]]) -> str:
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(map(line, part))}</tbody></table>"

    if len(rows) <= OPEN_ROWS + 5:
        return whole(rows)
    rest = f"<details><summary>{len(rows) - OPEN_ROWS:,} more</summary>{whole(rows[OPEN_ROWS:])}</details>"
    return whole(rows[:OPEN_ROWS]) + rest


def check_tables(checks: list[Check]) -> str:
    """Every check that is not about one subset, by section; those lie in their own tables."""
    heads = ["Check", "Verdict", "Value", SURENESS, "n", "Detectable", "Threshold and notes"]
    parts = []
    for section, there in by_section(checks).items():
        rows = [
            [
                f"<bdi>{safe(c.name, 120)}</bdi>",
                verdict_tag(c.verdict),
                *check_numbers(c),
                remarks(c),
            ]
            for c in there
            if c.subset is None
        ]
        body = table(heads, rows, words=(0, 1, 6)) if rows else "<p>Only by subset, above.</p>"
        parts.append(f'<h3 id="{anchor(section)}">{safe(title_of(section), 60)}</h3>{body}')
    if not parts:
        return ""
    note = "<p><small>Detectable: the smallest effect that n shows with 80% power.</small></p>"
    return f'<div class="checks">{"".join(parts)}</div>{note}'


def check_numbers(check: Check) -> list[str]:
    detectable = "\u2013" if check.detectable is None else short(check.detectable)
    return [fixed(check.value), interval_text(check.low, check.high), f"{check.n:,}", detectable]


def subset_tables(checks: list[Check]) -> str:
    """One table a check that looks at each subset, the worst subsets first."""
    names = dict.fromkeys(check.name for check in checks if check.subset is not None)
    parts = []
    for name in names:
        there = worst_first(
            [check for check in checks if check.name == name and check.subset is not None]
        )
        share = "accuracy" in name or all(
            c.low is None or c.low >= 0 and c.high <= 1 for c in there
        )
        start, end = (0.0, 1.0) if share else scale([(c.low, c.high) for c in there])
        rows = [
            [
                f"<bdi>{safe(check.subset, 120)}</bdi>",
                verdict_tag(check.verdict),
                interval_bar(
                    check.value, check.low, check.high, start, end, subset_mark(check, share)
                ),
                *check_numbers(check),
                safe(check.note),
            ]
            for check in there
        ]
        heads = [
            "Subset",
            "Verdict",
            f"{short(start)} to {short(end)}".replace("-", "\u2212"),
            "Value",
            SURENESS,
            "n",
            "Detectable",
            "Notes",
        ]
        if not any(check.note for check in there):
            heads, rows = heads[:-1], [row[:-1] for row in rows]
        parts.append(
            f"<h3>{safe(title_of(name), 60)}</h3>" + table(heads, rows, words=(0, 1, 2, 7))
        )
    if not parts:
        return ""
    mark = "The dashed tick is what the best rule that does not read scores there; for differences it is 0."
    return f"{''.join(parts)}<p><small>{mark}</small></p>"


def subset_mark(check: Check, share: bool) -> float:
    return check.baseline if check.baseline is not None else 0.5 if share else 0.0


def scale(intervals: list[tuple]) -> tuple[float, float]:
    """A range that holds all intervals and 0, the same to both sides."""
    ends = [
        abs(v) for interval in intervals for v in interval if v is not None and math.isfinite(v)
    ]
    most = float(f"{max(ends, default=0.0) or 1.0:.1g}")
    most = most if most >= max(ends, default=0.0) else most * 1.5
    return -most, most


def probe_table(probes: list[ProbeResult]) -> str:
    if not probes:
        return ""
    start, end = scale([(probe.low, probe.high) for probe in probes])
    heads = [
        "Probe",
        f"\u2212{short(end)} to {short(end)}",
        "Change, sd",
        SURENESS,
        "Wins",
        "Flips",
        "n",
    ]
    rows = [
        [
            f"{safe(probe.probe, 120)} <small>{safe(probe.kind, 40)}</small>",
            interval_bar(probe.change, probe.low, probe.high, start, end, 0.0),
            fixed(probe.change),
            interval_text(probe.low, probe.high),
            fixed(probe.wins),
            fixed(probe.flips),
            f"{probe.n:,}",
            *filter(None, [example(probe)]),
        ]
        for probe in probes
    ]
    note = (
        "Change: mean over completions, in standard deviations of the rewards. Wins: share of edited completions with a higher "
        "reward than the original, ties one half. Flips: of the pairs in order, the share that the edit turns: on the rejected "
        "side (cosmetic), or on the chosen one (degraded)."
    )
    return (
        f'<div class="probes">{table(heads, rows, words=(0, 1))}</div><p><small>{note}</small></p>'
    )


def example(probe: ProbeResult) -> str:
    """The completion that gained most by the edit, before and after it, from shortly before where they differ."""
    before, after = (
        None if side is None else text_of(side) for side in (probe.before, probe.after)
    )
    if before is None or after is None:
        return ""
    start = max(0, len(commonprefix([before, after])) - 150)
    lead = "\u2026 " if start else ""
    sides = "".join(
        f'<div><h4>{name}{reward_of(probe, name)}</h4><pre dir="auto">{lead}{safe(side[start:]) or "(empty)"}</pre></div>'
        for name, side in (("before", before), ("after", after))
    )
    imitates = f"<p>{safe(probe.imitates)}</p>" if probe.imitates else ""
    return (
        f'<details><summary>example</summary>{imitates}<div class="sides">{sides}</div></details>'
    )


def reward_of(probe: ProbeResult, when: str) -> str:
    reward = getattr(probe, f"reward_{when}")
    return "" if reward is None else f", reward {signed(reward)}"


def best_of_n(curve: list[BestOfN], plots: dict[str, Plot]) -> str:
    if not curve:
        return ""
    measured = [
        k
        for k in ("reward", "gold", "length", "hedges", "markdown")
        if any(getattr(p, k) is not None for p in curve)
    ]
    rows = [[f"{p.n:,}", fixed(p.kl), *(fixed(getattr(p, key)) for key in measured)] for p in curve]
    drawn = figure(plots["best_of_n"]) if "best_of_n" in plots else ""
    return f'<div class="two curve">{drawn}<div>{table(["n", "KL, nats", *measured], rows, words=())}</div></div>'


def style_table(matrix: list[list[float]] | None) -> str:
    """RM-Bench (arXiv 2410.16184): chosen styles down, rejected styles across; hard above the diagonal, easy below."""
    if not matrix:
        return ""
    rows = []
    for style, line in zip(STYLES, matrix, strict=True):
        cells = (
            f'<td style="background:rgba(0,114,178,{0.45 * max(min(v, 1), 0):.2f})">{fixed(v)}</td>'
            for v in line
        )
        rows.append(f'<tr><th scope="row">chosen {style}</th>{"".join(cells)}</tr>')
    values = np.array(matrix, dtype=float)
    kinds = {
        "easy": np.tril_indices(3, -1),
        "normal": np.diag_indices(3),
        "hard": np.triu_indices(3, 1),
    }
    means = ", ".join(
        f"{kind} {fixed(float(values[where].mean()))}" for kind, where in kinds.items()
    )
    head = "".join(f'<th scope="col">rejected {style}</th>' for style in STYLES)
    return (
        f'<table class="matrix"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f"<p>Accuracy by style: {means}. Hard is where the rejected completion has the showier style.</p>"
    )


def identity_table(identity: dict) -> str:
    rows = "".join(
        f'<div><dt><bdi>{safe(key, 120)}</bdi></dt><dd dir="auto">{safe(value)}</dd></div>'
        for key, value in identity.items()
    )
    return f'<dl class="identity">{rows}</dl>' if rows else ""


# --------------------------------------------------------------------------------------------------------------- Texts


def prompt_line(prompt) -> str:
    text = text_of(prompt)
    left_out = "\u2026 " if len(text) > PROMPT_CLIP else ""
    return f'<p class="prompt" dir="auto"><b>Prompt</b> <bdi>{left_out}{safe(text[-PROMPT_CLIP:])}</bdi></p>'


def completion_box(completion, strip) -> str:
    return f'<pre dir="auto">{safe(text_of(completion)) or "(empty)"}</pre>{token_strip(strip)}'


def error_list(worst: list[WorstError]) -> str:
    items = []
    for rank, error in enumerate(worst, 1):
        sides = "".join(
            f"<div><h4>{said}</h4>{completion_box(side, strip)}</div>"
            for said, side, strip in (
                ("The model prefers", error.rejected, error.rejected_strip),
                ("The raters prefer", error.chosen, error.chosen_strip),
            )
        )
        items.append(
            f'<li class="item"><h3>{rank}. margin {signed(error.margin)}{in_subset(error)}</h3>'
            f'{prompt_line(error.prompt)}<div class="sides">{sides}</div></li>'
        )
    return f'<ol class="items">{folded(items, 5, "error", "ol")}</ol>' if items else ""


def completion_list(completions: list[ExtremeCompletion]) -> str:
    items = []
    for rank, found in enumerate(completions, 1):
        marks = (
            "".join(f'<span class="mark">{safe(mark)}</span>' for mark in found.marks)
            or "no marks of style"
        )
        who = f"{safe(found.side, 60)} by the raters, length {found.length:,.0f}"
        items.append(
            f'<li class="item"><h3>{rank}. reward {signed(found.reward)}{in_subset(found)} <small>{who}</small></h3>'
            f"<p>{marks}</p>{prompt_line(found.prompt)}{completion_box(found.completion, found.strip)}</li>"
        )
    return f'<ol class="items">{folded(items, 5, "completion", "ol")}</ol>' if items else ""


def in_subset(item: WorstError | ExtremeCompletion) -> str:
    return f" <small>subset <bdi>{safe(item.subset, 60)}</bdi></small>" if item.subset else ""


def token_strip(strip: Strip | None) -> str:
    """The reward after each token under it: blue above zero, orange below, the deeper the further; the sign says it too."""
    if not strip:
        return ""
    most = max((abs(v) for _, v in strip if math.isfinite(v)), default=0.0) or 1.0
    cells = [token_cell(token, value, most) for token, value in strip]
    if len(cells) > STRIP_TOKENS:
        half = STRIP_TOKENS // 2
        cells = [
            *cells[:half],
            f"<p>\u2026 {len(cells) - 2 * half:,} more tokens \u2026</p>",
            *cells[-half:],
        ]
    return (
        f"<details><summary>The reward after each token ({signed(strip[-1][1])} at the end)</summary>"
        f'<div class="tokens">{"".join(cells)}</div><small>Only the last value was trained.</small></details>'
    )


def token_cell(token: str, value: float, most: float) -> str:
    depth = math.ceil(4 * abs(value) / most) if math.isfinite(value) else 0
    shade = f"{'p' if value > 0 else 'n'}{depth}" if depth else "z"
    shown = safe(token, 40).replace("\n", "\u21b5").replace("\t", "\u21e5") or "\u2205"
    if shown.startswith(" "):
        shown = "\u00b7" + shown[1:]
    return f'<span class="{shade}"><bdi>{shown}</bdi><small>{signed(value) if depth else "0"}</small></span>'
