"""The report's plots: arrays and curves in, small PNGs with captions out. matplotlib without pyplot: nothing global changes.

Colours are Okabe and Ito's (2008), which colour-blind readers can tell apart; markers, hatches and line styles say the same.
"""

import io
from typing import NamedTuple

import numpy as np

from auditing import stats
from auditing.checks import distribution as distribution_check
from auditing.result import Audit, BestOfN, LengthClass, ReliabilityBin
from auditing.verdicts import count, short

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#000000",
)


GREY = "#767676"  # 4.5 to 1 on white


SIDES = (("chosen", BLUE, "o"), ("rejected", ORANGE, "^"))


# 5 inches and 13 points stay readable when a phone shows the image 360 pixels wide.
WIDTH, HEIGHT, DPI = 5, 3.6, 144


STYLE = {
    "font.size": 13,
    "axes.edgecolor": GREY,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.8,
    "text.color": BLACK,
}


COLOURS = 48  # of a PNG's palette: a third of the bytes, and nobody sees it


SCATTER_POINTS = 3000


MOST_BINS = 36


CURVES = (  # of best-of-n: the key, the axis, colour, marker, line
    ("reward", "reward", BLUE, "o", "-"),
    ("gold", "gold reward", VERMILLION, "s", "--"),
    ("length", "length", GREEN, "^", "-."),
    ("hedges", "hedges", PURPLE, "D", ":"),
    ("markdown", "markdown", BLACK, "v", "--"),
)


class Plot(NamedTuple):
    image: bytes  # PNG
    title: str
    caption: str


def draw_plots(audit: Audit) -> dict[str, Plot]:
    """name -> plot, of the pairs with finite rewards and of the audit's curves. What has no data has no plot."""
    from matplotlib import rc_context  # slow to import, and only needed here

    pairs, plots = audit.pairs.finite(), {}
    with rc_context(STYLE):
        if len(pairs):
            plots["margins"] = margins_plot(pairs.margins)
        if audit.reliability:
            plots["reliability"] = reliability_plot(audit.reliability)
        if any(b.value is not None for b in audit.by_length):
            plots["by_length"] = by_length_plot(audit.by_length, pairs.length_unit)
        if len(pairs):
            plots["rewards"] = rewards_plot(pairs.rewards)
            plots["length"] = length_plot(pairs.lengths, pairs.rewards, pairs.length_unit)
            plots["length_pairs"] = length_pairs_plot(
                pairs.length_differences, pairs.margins, pairs.length_unit
            )
        if audit.best_of_n:
            plots["best_of_n"] = best_of_n_plot(audit.best_of_n, "characters")
    return plots


# ------------------------------------------------------------------------------------------------- The first three


def margins_plot(margins: np.ndarray) -> Plot:
    figure, axes = new_figure("margin = reward(chosen) \u2212 reward(rejected)", "pairs")
    bins, n = shared_bins(np.append(margins, 0.0)), len(margins)
    wrong, ties = int(np.sum(margins < 0)), int(np.sum(margins == 0))
    bars(axes, margins[margins > 0], bins, BLUE, "")
    bars(axes, margins[margins < 0], bins, ORANGE, "///")
    if ties:
        axes.plot([0, 0], [0, ties], color=BLACK, linewidth=5, solid_capstyle="butt")
    axes.axvline(0, color=BLACK, linewidth=1.5, linestyle="--")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.15)  # room for the two shares
    for x, side, k in ((0.02, "left", wrong), (0.98, "right", n - wrong - ties)):
        text = f"{'wrong' if side == 'left' else 'right'} {k / n:.0%}"
        axes.text(x, 0.98, text, ha=side, va="top", transform=axes.transAxes)
    tied = f" The black bar is {count(ties, 'tie')}." if ties else ""
    caption = f"Left of the dashed line, {wrong / n:.1%}: the model prefers the rejected completion.{tied}"
    return Plot(png(figure), "Margins", caption)


def reliability_plot(curve: list[ReliabilityBin]) -> Plot:
    figure, axes = new_figure("predicted: sigmoid(margin)", "preferred by the raters")
    x, y, low, high = (
        np.array([getattr(b, key) for b in curve], float)
        for key in ("confidence", "accuracy", "low", "high")
    )
    start = 0.5 if x.min() >= 0.5 else 0.0
    axes.plot([start, 1], [start, 1], color=GREY, linewidth=1.5, linestyle="--", label="calibrated")
    intervals(axes, x, y, low, high, label="measured, 95% interval")
    axes.set_xlim(start - 0.02, 1.02)
    axes.set_ylim(max(0, min(start, np.nanmin(low)) - 0.02), 1.02)
    axes.legend(frameon=False, loc="upper left", fontsize=12)
    n = sum(b.n for b in curve)
    below = "below the diagonal, the model is surer than it is right"
    return Plot(
        png(figure),
        "Reliability",
        f"{count(n, 'prediction')} in {count(len(curve), 'bin')}; {below}.",
    )


def by_length_plot(curve: list[LengthClass], unit: str) -> Plot:
    curve = [b for b in curve if b.value is not None]
    figure, axes = new_figure(f"length difference, {unit} (chosen \u2212 rejected)", "accuracy")
    y, low, high = (
        np.array([getattr(b, key) for b in curve], float) for key in ("value", "low", "high")
    )
    axes.axhline(0.5, color=GREY, linewidth=1.5, linestyle="--")
    intervals(axes, np.arange(len(curve)), y, low, high)
    edges = [edge(b.start) for b in curve] + [edge(curve[-1].end)]
    turned = 45 if len(edges) * max(map(len, edges)) > 36 else 0  # else they touch
    axes.set_xticks(np.arange(len(edges)) - 0.5, edges, fontsize=11, rotation=turned)
    axes.set_xlim(-0.5, len(curve) - 0.5)
    axes.set_ylim(min(0.4, np.nanmin(low)) - 0.1, 1.02)  # room for the two directions
    axes.text(
        0.01, 0.02, "\u2190 chosen is shorter", transform=axes.transAxes, fontsize=11, color=GREY
    )
    axes.text(
        0.99,
        0.02,
        "chosen is longer \u2192",
        transform=axes.transAxes,
        fontsize=11,
        color=GREY,
        ha="right",
    )
    told = "with 95% intervals; dashed, a coin. Where the line rises, the model leans to the longer completion"
    return Plot(
        png(figure),
        "Accuracy by length difference",
        f"{count(sum(b.n for b in curve), 'pair')}, {told}.",
    )


# ----------------------------------------------------------------------------------------------- Rewards and lengths


def rewards_plot(rewards: np.ndarray) -> Plot:
    """`rewards`: (2, n) of chosen, rejected."""
    figure, axes = new_figure("reward", "completions")
    bins = shared_bins(rewards)
    for side, hatch, style in ((1, "///", "--"), (0, "", "-")):
        name, colour, _ = SIDES[side]
        bars(axes, rewards[side], bins, colour, hatch, style, name, fill=0.25)
    axes.legend(frameon=False)
    auc = short(distribution_check.auc(*rewards))
    caption = (
        f"A chosen completion of one pair beats a rejected one of any pair {auc} of the time (AUC)."
    )
    return Plot(png(figure), "Rewards of chosen and rejected completions", caption)


def length_plot(lengths: np.ndarray, rewards: np.ndarray, unit: str) -> Plot:
    """Both (2, n) of chosen, rejected."""
    figure, axes = new_figure(f"completion length, {unit}", "reward")
    for x, y, side in zip(lengths, rewards, SIDES, strict=True):
        scatter(axes, x, y, *side)
    r_text = fitted_line(axes, lengths.ravel(), rewards.ravel())
    axes.legend(frameon=False, handletextpad=0.2, markerscale=2)
    return Plot(png(figure), "Reward against length", f"All completions. {r_text}")


def length_pairs_plot(differences: np.ndarray, margins: np.ndarray, unit: str) -> Plot:
    figure, axes = new_figure(f"length difference, {unit} (chosen \u2212 rejected)", "margin")
    for line in (axes.axhline, axes.axvline):
        line(0, color=GREY, linewidth=1)
    scatter(axes, differences, margins, None, BLUE, "o")
    caption = f"Within pairs. {fitted_line(axes, differences, margins)}"
    return Plot(png(figure), "Margin against length difference", caption)


def best_of_n_plot(curve: list[BestOfN], unit: str) -> Plot:
    """One panel a measured quantity, over the same axis: their units differ."""
    known = [
        c for c in CURVES if any(getattr(point, c[0]) is not None for point in curve)
    ] or CURVES[:1]
    figure = new_canvas(0.9 + 1.3 * len(known))
    panels = np.atleast_1d(figure.subplots(len(known), sharex=True))
    for axes, (key, name, colour, marker, style) in zip(panels, known, strict=True):
        points = [
            (point.kl, getattr(point, key)) for point in curve if getattr(point, key) is not None
        ]
        axes.plot(
            *zip(*points, strict=True), color=colour, marker=marker, linestyle=style
        ) if points else None
        axes.set_ylabel(f"{name},\n{unit}" if key == "length" else name)
        calm(axes)
        axes.locator_params(axis="y", nbins=4)
    panels[-1].set_xlabel("KL from the policy, nats: ln n \u2212 (n \u2212 1)/n")
    largest = curve[-1].n
    caption = f"Means over prompts of the completion with the highest reward among n, for n up to {largest:,}."
    return Plot(png(figure), "Best of n", caption)


# ------------------------------------------------------------------------------------------------------ Small helpers


def new_canvas(height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def new_figure(x_label: str, y_label: str):
    figure = new_canvas(HEIGHT)
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
    calm(axes)
    axes.locator_params(axis="x", nbins=6)
    return figure, axes


def calm(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.tick_params(color=GREY)


def bars(
    axes,
    values,
    bins,
    colour: str,
    hatch: str,
    line: str = "-",
    name: str | None = None,
    fill: float = 0.4,
):
    if not len(values):
        return
    axes.hist(values, bins, color=colour, alpha=fill, hatch=hatch, edgecolor=colour, linewidth=0)
    axes.hist(
        values, bins, histtype="step", color=colour, linewidth=1.8, linestyle=line, label=name
    )


def intervals(axes, x, y, low, high, label: str | None = None) -> None:
    """Points with their 95% intervals, joined by a thin line."""
    reach = np.abs(np.stack([y - low, high - y]))
    axes.errorbar(
        x,
        y,
        reach,
        color=BLUE,
        marker="o",
        markersize=6,
        linewidth=1,
        elinewidth=2,
        capsize=3,
        label=label,
    )


def scatter(axes, x: np.ndarray, y: np.ndarray, side: str | None, colour: str, marker: str) -> None:
    if len(x) > SCATTER_POINTS:
        kept = np.random.default_rng(0).choice(len(x), SCATTER_POINTS, replace=False)
        x, y = x[kept], y[kept]
    axes.scatter(
        x,
        y,
        s=14 if len(x) > 100 else 36,
        alpha=0.45,
        color=colour,
        marker=marker,
        linewidths=0,
        label=side,
    )


def fitted_line(axes, x: np.ndarray, y: np.ndarray) -> str:
    """Least squares over all points, also those that the scatter leaves out; returns r in words."""
    r = stats.pearson(x, y)
    if r is None:
        return "No correlation: lengths or rewards do not vary."
    ends = np.array([x.min(), x.max()])
    line = y.mean() + r * y.std() / x.std() * (ends - x.mean())
    axes.plot(ends, line, color=BLACK, linewidth=2)
    return f"r = {short(r)}, r squared = {short(r * r)}; the line is least squares."


def edge(value: float | None) -> str:
    """Of a class of length differences; nothing where it is open."""
    return "" if value is None or not np.isfinite(value) else f"{value:,.0f}".replace("-", "\u2212")


def shared_bins(values: np.ndarray) -> np.ndarray:
    """Edges that hold every value, 0 among them where it lies inside: no bar mixes both signs."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if high - low <= 1e-9 * max(
        abs(low), abs(high), 1e-9
    ):  # equal but for rounding: one bar in the middle
        pad = 0.5 * max(abs(low), 1.0)
        return np.linspace(low - pad, high + pad, MOST_BINS)
    width = high / MOST_BINS - low / MOST_BINS  # the difference first could overflow
    edges = np.arange(np.floor(low / width), np.floor(high / width) + 2) * width
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    return edges


def png(figure) -> bytes:
    from PIL import Image

    figure.savefig(drawn := io.BytesIO(), format="png", dpi=DPI)
    image = Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(small := io.BytesIO(), format="png", optimize=True)
    return small.getvalue()
