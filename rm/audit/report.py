"""The audit's pages: `audit.json`, four PNGs, `report.html` (one file that loads nothing), and a table for terminals.

write_report(rows, checks, identity, "rm-out/audit")
"""

import base64
import io
import json
import re
from dataclasses import asdict
from html import escape
from pathlib import Path

import numpy as np

from rm.audit import metrics
from rm.audit.checks import VERDICTS, Check, agreement, count, finite, lengths_of, rewards_of, short, top_completions

SCATTER_POINTS = 5000
CLIP = 600  # characters of a completion in the page

# Okabe and Ito's palette (2008), which colour-blind readers can tell apart; the verdicts, under black text, take
# lighter tints of it.
BLUE, ORANGE, BLACK = "#0072B2", "#E69F00", "#000000"
SIDES = (("chosen", BLUE, "o"), ("rejected", ORANGE, "^"))
VERDICT_COLOURS = dict(zip(VERDICTS, ("#EC8250", ORANGE, "#9AD0F0", "#3DBE97", "#DDDDDD"), strict=True))
VERDICT_SIGNS = dict(zip(VERDICTS, ("\u2717", "!", "?", "\u2713", "\u2013"), strict=True))

NOT_LOOKED_AT = (
    "This audit did not measure calibration (whether a margin of 1 means a 73% chance), probes of behaviour (flattery, "
    "hedging, refusals), leakage of test pairs into the training data, or best-of-n selection, where a policy searches "
    "for what the model overrates. A pass here says nothing about them."
)


def write_report(rows: list[dict], checks: list[Check], identity: dict, output_dir: str | Path) -> None:
    """All files are made in memory first; audit.json goes last, so where it lies the others are complete."""
    from matplotlib import rc_context  # slow to import, and only needed here

    # 5 inches and 13 points stay readable when a phone shows the image 360 pixels wide.
    with rc_context({"font.size": 13, "figure.figsize": (5, 3.6), "hatch.linewidth": 0.8}):
        plots = draw_plots(finite(rows))
    files = {f"{name}.png": image for name, (image, _) in plots.items()}
    files["report.html"] = html_page(rows, checks, identity, plots).encode()
    facts = {key: str(value) for key, value in identity.items()}
    found = {"format_version": 1, "identity": facts, "checks": [asdict(check) for check in checks]}
    files["audit.json"] = (json.dumps(found, indent=2, allow_nan=False) + "\n").encode()
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (output_dir / name).write_bytes(content)


def terminal_table(checks: list[Check]) -> str:
    """Verdict, check, value, interval and n in columns, then what the accuracy is held against; at most 100 wide."""
    table = [("verdict", "check", "value", "95% interval", "n")]
    table += [(c.verdict, one_line(label(c), 38), value_text(c), interval_text(c), f"{c.n:,}") for c in checks]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    line = "  ".join(f"{{:{align}{width}}}" for align, width in zip("<<>>>", widths, strict=True))
    lines = [line.format(*cells) for cells in table]
    for check in checks:
        if check.subset is None and check.baseline is not None:
            ceiling = "" if check.ceiling is None else f" of a ceiling of {fixed(check.ceiling)}"
            lines += ["", f"{check.name} {value_text(check)}{ceiling}; length alone scores {fixed(check.baseline)}"]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------- Plots


def draw_plots(rows: list[dict]) -> dict[str, tuple[bytes, str]]:
    """name -> (PNG, caption), of rows with finite rewards. Without pyplot, so nothing global changes."""
    rewards, lengths = rewards_of(rows), lengths_of(rows)  # (2, pairs): chosen, rejected
    margins, differences = np.subtract(*rewards), np.subtract(*lengths)
    plots = {}

    figure, axes = new_figure("reward", "completions")
    bins = shared_bins(rewards)
    for side, hatch, style in ((1, "//", "--"), (0, "", "-")):
        name, colour, _ = SIDES[side]
        axes.hist(rewards[side], bins, color=colour, alpha=0.25, hatch=hatch, edgecolor=colour, linewidth=0)
        axes.hist(rewards[side], bins, histtype="step", color=colour, linewidth=2, linestyle=style, label=name)
    axes.legend(frameon=False)
    caption = "Rewards of chosen and rejected completions. "
    if (auc := metrics.auc(*rewards)) is not None:
        caption += f"AUC {short(auc)}: how often a chosen completion of one pair beats a rejected one of any pair."
    plots["rewards"] = (png(figure, axes, len(rows)), caption)

    figure, axes = new_figure("margin = reward(chosen) \u2212 reward(rejected)", "pairs")
    axes.hist(margins, shared_bins(np.append(margins, 0.0)), color=BLUE, alpha=0.35, edgecolor=BLUE)
    axes.axvline(0, color=BLACK, linewidth=2, linestyle="--")
    caption = "Margins. "
    if len(margins):
        caption += f"Left of the dashed line, {np.mean(margins < 0):.1%}: the model prefers the rejected completion."
    plots["margins"] = (png(figure, axes, len(rows)), caption)

    figure, axes = new_figure("completion length, tokens", "reward")
    for x, y, side in zip(lengths, rewards, SIDES, strict=True):
        scatter(axes, x, y, *side)
    r_text = fitted_line(axes, lengths.ravel(), rewards.ravel())
    axes.legend(frameon=False, handletextpad=0.2, markerscale=2)
    plots["length"] = (png(figure, axes, len(rows)), f"Reward against length, all completions. {r_text}")

    figure, axes = new_figure("length difference, tokens (chosen \u2212 rejected)", "margin")
    for line in (axes.axhline, axes.axvline):
        line(0, color="#888888", linewidth=1)
    scatter(axes, differences, margins, None, BLUE, "o")
    r_text = fitted_line(axes, differences, margins)
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
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
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


# --------------------------------------------------------- Text: what comes from data is clipped, made visible, escaped

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


# ------------------------------------------------------------------------------------------------------------- The page

CSS = Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def html_page(rows: list[dict], checks: list[Check], identity: dict, plots: dict[str, tuple[bytes, str]]) -> str:
    overall = [check for check in checks if check.subset is None]
    by_subset = [check for check in checks if check.subset is not None]
    name = safe(identity.get("model", "reward model"), 120)
    found = [check.verdict for check in checks]
    verdicts = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in found)
    counts = f"{count(len(rows), 'test pair')}, {count(len(checks), 'check')}: {verdicts}."
    strip = "".join(f"<li>{verdict_tag(check.verdict, check.name)}</li>" for check in overall)
    figures = "".join(
        f'<figure><img alt="{safe(caption)}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        f"<figcaption>{safe(caption)}</figcaption></figure>"
        for image, caption in plots.values()
    )
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Reward model audit: {name}</title><style>{CSS}</style></head><body>",
        f"<h1>Reward model audit: <bdi>{name}</bdi></h1><p>{counts}</p>",
        f'<ul class="strip">{strip}</ul>{headline(rows, checks)}',
        f'<h2>Plots</h2><div class="plots">{figures}</div>',
        f"<h2>Checks</h2>{check_table(overall)}",
        f"<h2>Subsets</h2>{check_table(by_subset)}" if by_subset else "",
        f"<h2>The highest rewards</h2>{completion_list(rows)}",
        f"<h2>This run</h2>{identity_table(identity)}",
        f"<h2>What this audit did not look at</h2><p>{safe(NOT_LOOKED_AT)}</p>",
        "</body></html>\n",
    ]
    return "\n".join(parts)


def headline(rows: list[dict], checks: list[Check]) -> str:
    """The numbers to read first; every one beside the doubt or the bound that belongs to it."""
    check = next(check for check in checks if check.name == "accuracy" and check.subset is None)
    ties = next(check for check in checks if check.name == "tie rate")
    known = [
        ("To beat", check.baseline, check.threshold),
        ("Ceiling", check.ceiling, "what the true utilities would score"),
        ("Rater agreement", agreement(finite(rows)), "two votes on one pair"),
    ]
    facts = [("Accuracy", value_text(check), f"95% interval {interval_text(check)}")]
    facts += [(name, short(value), small) for name, value, small in known if value is not None]
    facts += [("Pairs", f"{check.n:,}", f"tie rate {value_text(ties)}")]
    cells = (f"<div><dt>{name}</dt><dd>{value}<small>{safe(small)}</small></dd></div>" for name, value, small in facts)
    return f'<dl class="facts">{"".join(cells)}</dl>'


def verdict_tag(verdict: str, name: str = "") -> str:
    text = f"{VERDICT_SIGNS[verdict]}&nbsp;<b>{verdict}</b> {safe(name)}".strip()
    return f'<span class="verdict" style="background:{VERDICT_COLOURS[verdict]}">{text}</span>'


def check_table(checks: list[Check]) -> str:
    kind = "Check" if checks[0].subset is None else "Subset"
    heads = ("Verdict", kind, "Value", "95% interval", "n", "Detectable", "Threshold and notes")
    classes = ("", "", *[' class="number"'] * 4, "")
    body = ""
    for check in checks:
        cells = [
            verdict_tag(check.verdict),
            f"<bdi>{safe(check.subset or check.name, 120)}</bdi>",
            value_text(check),
            interval_text(check),
            f"{check.n:,}",
            "\u2013" if check.detectable is None else short(check.detectable),
            safe(check.threshold) + (f"<br>{safe(check.note)}" if check.note else ""),
        ]
        row = (f'<td data-label="{h}"{c}>{cell}</td>' for h, c, cell in zip(heads, classes, cells, strict=True))
        body += f"<tr>{''.join(row)}</tr>"
    head = "".join(f'<th scope="col">{head}</th>' for head in heads)
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
    cells = (f"<td><b>{safe(key, 120)}</b></td><td><bdi>{safe(value)}</bdi></td>" for key, value in identity.items())
    return f"<table><tbody>{''.join(f'<tr>{row}</tr>' for row in cells)}</tbody></table>"
