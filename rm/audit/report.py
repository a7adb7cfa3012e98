"""The audit's pages: `audit.json`, four PNGs, `report.html` (one file that loads nothing), and a table for terminals.

write_report(rows, checks, identity, "rm-out/audit")
"""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import asdict
from html import escape
from pathlib import Path

import numpy as np

from rm.audit import metrics
from rm.audit.checks import (
    VERDICTS,
    Check,
    agreement,
    best_length_rule,
    both_sides,
    ceiling,
    count,
    finite_rows,
    length_differences,
    margins,
    short,
    top_completions,
)

FORMAT_VERSION = 1
SCATTER_POINTS = 5000
CLIP = 600  # characters of a completion in the page

# Okabe and Ito's palette (2008), which colour-blind readers can tell apart; the verdicts, under black text, take
# lighter tints of it.
BLUE, ORANGE, BLACK = "#0072B2", "#E69F00", "#000000"
VERDICT_COLOURS = dict(zip(VERDICTS, ("#EC8250", ORANGE, "#9AD0F0", "#3DBE97", "#DDDDDD"), strict=True))
VERDICT_SIGNS = dict(zip(VERDICTS, ("\u2717", "!", "?", "\u2713", "\u2013"), strict=True))

NOT_LOOKED_AT = (
    "This audit did not measure calibration (whether a margin of 1 means a 73% chance), probes of behaviour (flattery, "
    "hedging, refusals), leakage of test pairs into the training data, or best-of-n selection, where a policy searches "
    "for what the model overrates. A pass here says nothing about them."
)


def write_report(rows: list[dict], checks: list[Check], identity: dict, output_dir: str | Path) -> None:
    """All files are made in memory first; audit.json goes last, so where it lies the others are complete."""
    plots = draw_plots(rows)
    files = {f"{name}.png": png for name, (png, _) in plots.items()}
    files["report.html"] = html_page(rows, checks, identity, plots).encode()
    audit = {
        "format_version": FORMAT_VERSION,
        "identity": {str(key): str(value) for key, value in identity.items()},
        "checks": [asdict(check) for check in checks],
    }
    files["audit.json"] = (json.dumps(audit, indent=2, allow_nan=False) + "\n").encode()
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (output_dir / name).write_bytes(content)


def terminal_table(checks: list[Check]) -> str:
    """Verdict, check, value, interval and n in aligned columns, at most 100 characters wide."""
    table = [("verdict", "check", "value", "95% interval", "n")]
    table += [(c.verdict, one_line(label(c), 38), value_text(c), interval_text(c), f"{c.n:,}") for c in checks]
    widths = [max(len(line[i]) for line in table) for i in range(5)]
    lines = []
    for verdict, name, *numbers in table:
        cells = [verdict.ljust(widths[0]), name.ljust(widths[1])]
        cells += [number.rjust(width) for number, width in zip(numbers, widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Plots
# ---------------------------------------------------------------------------------------------------------------------


def draw_plots(rows: list[dict]) -> dict[str, tuple[bytes, str]]:
    """name -> (PNG, caption). Figures are made without pyplot, so nothing global changes."""
    from matplotlib import rc_context  # slow to import, and only needed here

    # 5 inches and 13 points stay readable when a phone shows the image 360 pixels wide.
    with rc_context({"font.size": 13, "figure.figsize": (5, 3.6), "hatch.linewidth": 0.8}):
        return draw(finite_rows(rows))


def draw(rows: list[dict]) -> dict[str, tuple[bytes, str]]:
    rewards, lengths = both_sides(rows)
    chosen, rejected = np.split(rewards, 2)
    m, differences = margins(rows), length_differences(rows)
    plots = {}

    figure, axes = new_figure("reward", "completions")
    bins = shared_bins(rewards)
    for values, side, colour, hatch in ((rejected, "rejected", ORANGE, "//"), (chosen, "chosen", BLUE, "")):
        axes.hist(values, bins, color=colour, alpha=0.25, hatch=hatch, edgecolor=colour, linewidth=0)
        style = "--" if hatch else "-"
        axes.hist(values, bins, histtype="step", color=colour, linewidth=2, linestyle=style, label=side)
    axes.legend(frameon=False)
    separation = metrics.auc(chosen, rejected)
    caption = "Rewards of chosen and rejected completions. "
    if separation is not None:
        caption += (
            f"AUC {short(separation)}: how often a chosen completion of one pair beats a rejected one of any pair."
        )
    plots["rewards"] = (png(figure, axes, len(rows)), caption)

    figure, axes = new_figure("margin = reward(chosen) \u2212 reward(rejected)", "pairs")
    axes.hist(m, shared_bins(np.append(m, 0.0)), color=BLUE, alpha=0.35, edgecolor=BLUE)
    axes.axvline(0, color=BLACK, linewidth=2, linestyle="--")
    caption = "Margins. "
    if len(m):
        caption += f"Left of the dashed line, {np.mean(m < 0):.1%}: the model prefers the rejected completion."
    plots["margins"] = (png(figure, axes, len(rows)), caption)

    figure, axes = new_figure("completion length, tokens", "reward")
    scatter(axes, lengths[: len(rows)], chosen, "chosen", BLUE, "o")
    scatter(axes, lengths[len(rows) :], rejected, "rejected", ORANGE, "^")
    r_text = fitted_line(axes, lengths, rewards)
    axes.legend(frameon=False, handletextpad=0.2, markerscale=2)
    plots["length"] = (png(figure, axes, len(rows)), f"Reward against length, all completions. {r_text}")

    figure, axes = new_figure("length difference, tokens (chosen \u2212 rejected)", "margin")
    axes.axhline(0, color="#888888", linewidth=1)
    axes.axvline(0, color="#888888", linewidth=1)
    scatter(axes, differences, m, None, BLUE, "o")
    r_text = fitted_line(axes, differences, m)
    plots["length_pairs"] = (png(figure, axes, len(rows)), f"Margin against length difference, within pairs. {r_text}")
    return plots


def new_figure(x_label: str, y_label: str):
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", nbins=6)
    return figure, axes


def png(figure, axes, n: int) -> bytes:
    if n == 0:
        axes.clear()
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no pair with finite rewards", ha="center", transform=axes.transAxes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


def shared_bins(values: np.ndarray) -> np.ndarray:
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):  # equal but for rounding: one bar in the middle
        pad = 0.5 * max(abs(low), 1.0)
        low, high = low - pad, high + pad
    return np.linspace(low, high, 36)


def scatter(axes, x: np.ndarray, y: np.ndarray, side: str | None, colour: str, marker: str) -> None:
    if len(x) > SCATTER_POINTS:
        kept = np.random.default_rng(0).choice(len(x), SCATTER_POINTS, replace=False)
        x, y = x[kept], y[kept]
    axes.scatter(x, y, s=14, alpha=0.45, color=colour, marker=marker, linewidths=0, label=side)


def fitted_line(axes, x: np.ndarray, y: np.ndarray) -> str:
    """Least squares over all points, also those that the scatter leaves out; returns r in words."""
    r = metrics.pearson(x, y)
    if r is None:
        return "No correlation: lengths or rewards do not vary."
    ends = np.array([x.min(), x.max()])
    line = y.mean() + r * y.std() / x.std() * (ends - x.mean())
    axes.plot(ends, line, color=BLACK, linewidth=2)
    return f"r = {short(r)}, r squared = {short(r * r)}."


# ---------------------------------------------------------------------------------------------------------------------
# Text: what comes from data is clipped, made visible, escaped
# ---------------------------------------------------------------------------------------------------------------------

# Control characters but tab and newline, those that reorder text, and lone surrogates, which no file can hold.
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clip(text: str, characters: int = CLIP) -> str:
    more = len(text) - characters
    text = UNSEEN.sub(lambda match: f"<U+{ord(match.group()):04X}>", text[:characters].replace("\r\n", "\n"))
    return f"{text}\u2026 ({more:,} more characters)" if more > 0 else text


def one_line(text: str, characters: int) -> str:
    text = re.sub(r"\s+", " ", clip(text))
    return text if len(text) <= characters else text[: characters - 1] + "\u2026"


def safe(text: str, characters: int = CLIP) -> str:
    return escape(clip(str(text), characters))


def label(check: Check) -> str:
    return check.name if check.subset is None else f"{check.name}: {check.subset}"


def fixed(value: float) -> str:
    """Three decimals, so that a column of measured numbers lines up."""
    return short(value) if abs(value) >= 1000 else f"{value:.3f}".replace("0.", ".", 1 if abs(value) < 1 else 0)


def value_text(check: Check) -> str:
    return "\u2013" if check.value is None else fixed(check.value)


def interval_text(check: Check) -> str:
    return "\u2013" if check.low is None else f"{fixed(check.low)} to {fixed(check.high)}"


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------

CSS = """
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:76rem;font:16px/1.45 system-ui,sans-serif;color:#111;background:#fff}
h1{font-size:1.5rem;margin:.2rem 0}
h2{font-size:1.2rem;margin:2rem 0 .6rem}
h1,p,li,pre{overflow-wrap:anywhere}
td{overflow-wrap:break-word;max-width:40rem}
ul{list-style:none;margin:0;padding:0}
.strip{display:flex;flex-wrap:wrap;gap:.4rem;margin:.8rem 0}
td .verdict{white-space:nowrap}
.verdict{display:inline-block;padding:.1rem .5rem;border:1px solid #333;border-radius:.3rem;
 print-color-adjust:exact;-webkit-print-color-adjust:exact}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(10rem,1fr));gap:.6rem;margin:0}
.facts div{border-left:4px solid #0072B2;padding-left:.7rem}
.facts dt{font-size:.9rem;color:#444}
.facts dd{margin:0;font-size:1.5rem;font-weight:600}
.facts small{display:block;font-size:.9rem;font-weight:400}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem}
figure{margin:0;break-inside:avoid}
img{width:100%;height:auto}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem .35rem 0;border-bottom:1px solid #ccc}
th{font-size:.9rem;color:#444}
td.number{white-space:nowrap;font-variant-numeric:tabular-nums}
tr{break-inside:avoid}
.mark{display:inline-block;border:1px dashed #555;border-radius:.3rem;padding:0 .4rem;margin:.1rem .3rem .1rem 0;
 font-size:.9rem}
.completion{border-top:1px solid #ccc;padding:.8rem 0}
.completion p{margin:.2rem 0}
pre{white-space:pre-wrap;font:inherit;background:#f4f4f4;padding:.6rem;margin:.3rem 0;max-height:24rem;overflow:auto;
 unicode-bidi:plaintext}
@media(max-width:700px){
 thead{display:none}
 table,tbody,tr,td{display:block}
 tr{border-bottom:1px solid #ccc;padding:.5rem 0}
 td{border:0;padding:.1rem 0}
 td.number{display:inline-block;margin-right:1rem}
 td::before{content:attr(data-label) " ";color:#444;font-size:.9rem}
 td[data-label=Verdict]::before,td:empty{content:none;display:none}
}
@media print{
 body{font-size:10pt;padding:0}
 h2{break-after:avoid}
 .plots{grid-template-columns:1fr 1fr}
 .completion{break-inside:avoid}
 pre{max-height:none;overflow:visible}
}
"""


def html_page(rows: list[dict], checks: list[Check], identity: dict, plots: dict[str, tuple[bytes, str]]) -> str:
    overall = [check for check in checks if check.subset is None]
    by_subset = [check for check in checks if check.subset is not None]
    name = identity.get("model", "reward model")
    strip = "".join(f"<li>{verdict_tag(check.verdict, check.name)}</li>" for check in overall)
    figures = "".join(
        f'<figure><img alt="{safe(caption)}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        f"<figcaption>{safe(caption)}</figcaption></figure>"
        for image, caption in plots.values()
    )
    sections = [
        f"<h1>Reward model audit: <bdi>{safe(name, 120)}</bdi></h1><p>{safe(summary(checks, len(rows)))}</p>",
        f'<ul class="strip">{strip}</ul>{headline(rows, checks)}',
        f'<h2>Plots</h2><div class="plots">{figures}</div>',
        f"<h2>Checks</h2>{check_table(overall)}",
        f"<h2>Subsets</h2>{check_table(by_subset)}" if by_subset else "",
        f"<h2>The highest rewards</h2>{completion_list(rows)}",
        f"<h2>This run</h2>{identity_table(identity)}",
        f"<h2>What this audit did not look at</h2><p>{safe(NOT_LOOKED_AT)}</p>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Reward model audit: {safe(name, 120)}</title><style>{CSS}</style></head><body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def summary(checks: list[Check], n: int) -> str:
    found = [check.verdict for check in checks]
    verdicts = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in found)
    return f"{count(n, 'test pair')}, {count(len(checks), 'check')}: {verdicts}."


def headline(rows: list[dict], checks: list[Check]) -> str:
    """The numbers to read first; every one beside the doubt or the bound that belongs to it."""
    check = next(check for check in checks if check.name == "accuracy" and check.subset is None)
    ties = next(check for check in checks if check.name == "tie rate")
    rows = finite_rows(rows)
    baseline, rule = best_length_rule(rows) if rows else (None, "")
    best, agree = ceiling(rows), agreement(rows)
    facts = [
        ("Accuracy", value_text(check), f"95% interval {interval_text(check)}"),
        ("To beat", short(baseline), f'"{rule}" on the same pairs') if rows else None,
        ("Pairs", f"{check.n:,}", f"tie rate {value_text(ties)}"),
        ("Ceiling", short(best), "what the true utilities would score") if best is not None else None,
        ("Rater agreement", short(agree), "two votes on one pair") if agree is not None else None,
    ]
    cells = (
        f"<div><dt>{name}</dt><dd>{safe(value)}<small>{safe(small)}</small></dd></div>"
        for name, value, small in filter(None, facts)
    )
    return f'<dl class="facts">{"".join(cells)}</dl>'


def verdict_tag(verdict: str, name: str = "") -> str:
    text = f"{VERDICT_SIGNS[verdict]}&nbsp;<b>{verdict}</b> {safe(name)}".strip()
    return f'<span class="verdict" style="background:{VERDICT_COLOURS[verdict]}">{text}</span>'


def check_table(checks: list[Check]) -> str:
    heads = (
        "Verdict",
        "Check" if checks[0].subset is None else "Subset",
        "Value",
        "95% interval",
        "n",
        "Detectable",
        "Threshold and notes",
    )
    lines = []
    for check in checks:
        detectable = "\u2013" if check.detectable is None else short(check.detectable)
        cells = [
            verdict_tag(check.verdict),
            f"<bdi>{safe(check.name if check.subset is None else check.subset, 120)}</bdi>",
            *map(safe, (value_text(check), interval_text(check), f"{check.n:,}", detectable)),
            safe(check.threshold) + (f"<br>{safe(check.note)}" if check.note else ""),
        ]
        classes = ("", "", *[' class="number"'] * 4, "")
        row = zip(heads, classes, cells, strict=True)
        lines.append("".join(f'<td data-label="{head}"{style}>{cell}</td>' for head, style, cell in row))
    head = "".join(f'<th scope="col">{head}</th>' for head in heads)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        "<p><small>Detectable: the smallest effect that n pairs show with 80% power.</small></p>"
    )


def completion_list(rows: list[dict]) -> str:
    items = []
    for rank, top in enumerate(top_completions(rows), 1):
        marks = "".join(f'<span class="mark">{safe(mark)}</span>' for mark in top["marks"]) or "no marks"
        items.append(
            f'<div class="completion"><p><b>{rank}. reward {short(top["reward"])}</b> '
            f"({top['side']} by the raters, {top['tokens']:,} tokens, subset <bdi>{safe(top['subset'], 60)}</bdi>)</p>"
            f'<p>{marks}</p><p dir="auto"><b>Prompt</b> <bdi>{safe(top["prompt"][-200:])}</bdi></p>'
            f'<pre dir="auto">{safe(top["completion"])}</pre></div>'
        )
    return "".join(items) or "<p>No completion has a finite reward.</p>"


def identity_table(identity: dict) -> str:
    rows = "".join(
        f'<tr><td data-label=""><b>{safe(key, 120)}</b></td><td data-label=""><bdi>{safe(value)}</bdi></td></tr>'
        for key, value in identity.items()
    )
    return f"<table><tbody>{rows}</tbody></table>"
