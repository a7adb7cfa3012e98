"""The report's plots: small PNGs with captions, drawn from arrays and curves.

matplotlib is used without pyplot, so that no global state changes. The colours are those of Okabe
and Ito (2008), which colour-blind readers can tell apart. Markers, hatches and line styles say the
same as the colours.
"""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from auditing import stats
from auditing.checks import distribution
from auditing.findings import percent
from auditing.report.wording import MINUS, fixed
from auditing.result import Audit, BestOfN, LengthClass, ReliabilityBin
from reward.data.shown import count

if TYPE_CHECKING:  # because matplotlib is slow to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
BLACK = "#000000"
GREY = "#767676"  # 4.5 to 1 on white
LIGHT_GREY = "#e6e6e6"

# 5 inches and 13 points stay readable when a phone shows the image 360 pixels wide.
WIDTH, HEIGHT, DPI = 5, 3.6, 144

MATPLOTLIB_SETTINGS = {
    "font.size": 13,
    "axes.edgecolor": GREY,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.8,
    "text.color": BLACK,
}

PNG_COLOURS = 48  # so small a palette saves two thirds of the bytes, and nobody sees it

SCATTER_POINTS = 3000  # the largest number of points that are drawn

MOST_BINS = 36  # how many bins a histogram has at most, about
FEWEST_BINS = 8


@dataclass(frozen=True)
class Plot:
    """A picture with its title and caption."""

    image: bytes  # PNG
    title: str
    caption: str


@dataclass(frozen=True)
class Bars:
    """How a histogram is drawn."""

    colour: str
    hatch: str = ""
    line: str = "-"  # the style of the outline
    fill: float = 0.4  # the opacity
    name: str | None = None  # its entry in the legend


@dataclass(frozen=True)
class Dots:
    """How a cloud of points is drawn."""

    colour: str
    marker: str
    name: str | None = None  # its entry in the legend


@dataclass(frozen=True)
class Curve:
    """A measured quantity of the best of n, and how its curve is drawn."""

    quantity: str  # the name of a field of BestOfN
    label: str  # the label of the axis
    colour: str
    marker: str
    line: str


CURVES = (
    Curve("reward", "reward", BLUE, "o", "-"),
    Curve("gold", "gold reward", VERMILLION, "s", "--"),
    Curve("length", "length,\ncharacters", GREEN, "^", "-."),
    Curve("hedges", "hedges", PURPLE, "D", ":"),
    Curve("markdown", "markdown", BLACK, "v", "--"),
)

CHOSEN_DOTS = Dots(BLUE, "o", "chosen")
REJECTED_DOTS = Dots(ORANGE, "^", "rejected")
PAIR_DOTS = Dots(BLUE, "o")


def draw_plots(audit: Audit) -> dict[str, Plot]:
    """Draw the pairs with finite rewards, and the audit's curves.

    Returns:
        The plots by name, in the order of the pages. A plot without data is left out.
    """
    from matplotlib import rc_context  # This import is slow, and only needed here.

    pairs = audit.pairs.finite()
    unit = pairs.length_unit
    plots = {}
    with rc_context(MATPLOTLIB_SETTINGS):
        if len(pairs):
            plots["margins"] = margins_plot(pairs.margins)
        if audit.reliability:
            plots["reliability"] = reliability_plot(audit.reliability)
        classes = [point for point in audit.by_length if point.value is not None]
        if classes:
            plots["by_length"] = by_length_plot(classes, unit)
        if len(pairs):
            plots["rewards"] = rewards_plot(pairs.rewards)
            plots["length"] = length_plot(pairs.lengths, pairs.rewards, unit)
            differences = pairs.length_differences
            plots["length_pairs"] = length_pairs_plot(differences, pairs.margins, unit)
        if audit.best_of_n:
            plots["best_of_n"] = best_of_n_plot(audit.best_of_n)
    return plots


# --- Margins, reliability, accuracy by length -----------------------------------------------------


def margins_plot(margins: np.ndarray) -> Plot:
    """The histogram of the margins: how often the model is right, wrong, or undecided.

    Args:
        margins: (pairs,) reward(chosen) - reward(rejected).
    """
    figure, axes = new_figure(f"margin = reward(chosen) {MINUS} reward(rejected)", "pairs")
    n = len(margins)
    right = margins[margins > 0]
    wrong = margins[margins < 0]
    ties = n - len(right) - len(wrong)
    wrong_share = len(wrong) / n
    right_share = len(right) / n

    bins = shared_bins(np.append(margins, 0.0))
    draw_bars(axes, right, bins, Bars(BLUE))
    draw_bars(axes, wrong, bins, Bars(ORANGE, hatch="///"))
    if ties:
        axes.plot([0, 0], [0, ties], color=BLACK, linewidth=5, solid_capstyle="butt")
    axes.axvline(0, color=BLACK, linewidth=1.5, linestyle="--")
    _, top = axes.get_ylim()
    axes.set_ylim(0, top * 1.15)  # This leaves room for the two percentages.
    write_inside(axes, 0.02, 0.98, f"wrong {wrong_share:.0%}", va="top")
    write_inside(axes, 0.98, 0.98, f"right {right_share:.0%}", va="top", ha="right")

    caption = (
        f"Left of the dashed line, {percent(wrong_share)}: "
        "the model prefers the rejected completion."
    )
    if ties:
        caption += f" The black bar is {count(ties, 'tie')}."
    return Plot(png(figure), "Margins", caption)


def reliability_plot(curve: list[ReliabilityBin]) -> Plot:
    """How often the model is right, over how sure it is.

    Args:
        curve: The bins, from the least confident to the most confident; at least one.
    """
    figure, axes = new_figure("predicted: sigmoid(margin)", "preferred by the raters")
    confidence = column(curve, "confidence")
    measured = intervals_of(curve, "accuracy")
    start = 0.0
    if confidence.min() >= 0.5:
        start = 0.5
    ends = [start, 1]
    axes.plot(ends, ends, color=GREY, linewidth=1.5, linestyle="--", label="calibrated")
    draw_intervals(axes, confidence, measured, label="measured, 95% interval")
    lowest = min(start, measured.lowest)
    axes.set_xlim(start - 0.02, 1.02)
    axes.set_ylim(max(0, lowest - 0.02), 1.02)
    legend_above(axes)

    predictions = count(total(curve), "prediction")
    bins = count(len(curve), "bin")
    caption = f"{predictions} in {bins}; below the diagonal, the model is surer than it is right."
    return Plot(png(figure), "Reliability", caption)


def by_length_plot(curve: list[LengthClass], unit: str) -> Plot:
    """Accuracy over classes of the length difference.

    Args:
        curve: The classes, each with a value, from the shortest chosen sides to the longest.
        unit: The unit of the lengths.
    """
    figure, axes = new_figure(length_difference_label(unit), "accuracy")
    measured = intervals_of(curve, "value")
    axes.axhline(0.5, color=GREY, linewidth=1.5, linestyle="--")
    draw_intervals(axes, np.arange(len(curve)), measured)
    label_edges(axes, curve)
    lowest = min(0.4, measured.lowest)
    axes.set_xlim(-0.5, len(curve) - 0.5)
    axes.set_ylim(lowest - 0.1, 1.02)  # This leaves room for the two words at the bottom.
    small = {"fontsize": 11, "color": GREY}
    write_inside(axes, 0.01, 0.02, "\u2190 chosen is shorter", **small)
    write_inside(axes, 0.99, 0.02, "chosen is longer \u2192", ha="right", **small)

    pairs = count(total(curve), "pair")
    caption = (
        f"{pairs}, with 95% intervals; dashed, a coin. "
        "Where the line rises, the model leans to the longer completion."
    )
    return Plot(png(figure), "Accuracy by length difference", caption)


def label_edges(axes: "Axes", curve: list[LengthClass]) -> None:
    """Write the edges of the classes between their points."""
    edges = [edge(point.start) for point in curve]
    edges.append(edge(curve[-1].end))
    longest = max(map(len, edges))
    rotation = 0
    if len(edges) * longest > 36:  # The labels would touch.
        rotation = 45
    places = np.arange(len(edges)) - 0.5
    axes.set_xticks(places, edges, fontsize=11, rotation=rotation)


# --- Rewards and lengths --------------------------------------------------------------------------


def rewards_plot(rewards: np.ndarray) -> Plot:
    """Two histograms over the same bins: the rewards of the chosen and of the rejected side.

    Args:
        rewards: (2, pairs) of chosen, rejected.
    """
    figure, axes = new_figure("reward", "completions")
    bins = shared_bins(rewards)
    chosen, rejected = rewards
    draw_bars(axes, rejected, bins, Bars(ORANGE, "///", "--", fill=0.25, name="rejected"))
    draw_bars(axes, chosen, bins, Bars(BLUE, fill=0.25, name="chosen"))
    legend_above(axes)
    auc = percent(distribution.auc(chosen, rejected))
    caption = (
        f"A chosen completion of one pair beats a rejected one of any pair in {auc} of cases (AUC)."
    )
    return Plot(png(figure), "Rewards of chosen and rejected completions", caption)


def length_plot(lengths: np.ndarray, rewards: np.ndarray, unit: str) -> Plot:
    """The reward of every completion over its length.

    Args:
        lengths: (2, pairs) of chosen, rejected.
        rewards: (2, pairs) of chosen, rejected.
        unit: The unit of the lengths.
    """
    figure, axes = new_figure(f"completion length, {unit}", "reward")
    chosen_lengths, rejected_lengths = lengths
    chosen_rewards, rejected_rewards = rewards
    draw_dots(axes, chosen_lengths, chosen_rewards, CHOSEN_DOTS)
    draw_dots(axes, rejected_lengths, rejected_rewards, REJECTED_DOTS)
    correlation = draw_fitted_line(axes, lengths.ravel(), rewards.ravel())
    legend_above(axes, markerscale=1.5)
    return Plot(png(figure), "Reward against length", f"All completions. {correlation}")


def length_pairs_plot(differences: np.ndarray, margins: np.ndarray, unit: str) -> Plot:
    """The margin of every pair over its length difference.

    Args:
        differences: (pairs,) length(chosen) - length(rejected).
        margins: (pairs,) reward(chosen) - reward(rejected).
        unit: The unit of the lengths.
    """
    figure, axes = new_figure(length_difference_label(unit), "margin")
    axes.axhline(0, color=GREY, linewidth=1)
    axes.axvline(0, color=GREY, linewidth=1)
    draw_dots(axes, differences, margins, PAIR_DOTS)
    correlation = draw_fitted_line(axes, differences, margins)
    return Plot(png(figure), "Margin against length difference", f"Within pairs. {correlation}")


# --- Best of n ------------------------------------------------------------------------------------


def best_of_n_plot(points: list[BestOfN]) -> Plot:
    """A panel for each quantity, because their units differ; all have the same axis.

    A quantity that was not measured, or is 0 everywhere, has no panel.

    Args:
        points: From n = 1 to the largest n; at least one.
    """
    curves = [curve for curve in CURVES if any(y != 0 for _, y in measured_values(points, curve))]
    if not curves:
        curves = [CURVES[0]]
    figure = new_canvas(height=0.9 + 1.3 * len(curves))
    panels = figure.subplots(len(curves), sharex=True)
    panels = np.atleast_1d(panels)
    for axes, curve in zip(panels, curves, strict=True):
        draw_curve(axes, points, curve)
    panels[-1].set_xlabel(f"KL from the policy, nats: ln n {MINUS} (n {MINUS} 1)/n")

    largest = points[-1].n
    caption = (
        "Means over prompts of the completion with the highest reward among n, "
        f"for n up to {largest:,}. KL: how far picking so moves from the policy."
    )
    return Plot(png(figure), "Best of n", caption)


def measured_values(points: list[BestOfN], curve: Curve) -> list[tuple[float, float]]:
    """The (KL, value) of each point at which a quantity was measured."""
    values = []
    for point in points:
        value = getattr(point, curve.quantity)
        if value is not None:
            values.append((point.kl, value))
    return values


def draw_curve(axes: "Axes", points: list[BestOfN], curve: Curve) -> None:
    """Draw one quantity of the best of n over the KL from the policy."""
    values = measured_values(points, curve)
    if values:
        axes.plot(
            *zip(*values, strict=True),
            color=curve.colour,
            marker=curve.marker,
            linestyle=curve.line,
        )
    axes.set_ylabel(curve.label)
    axes.margins(y=0.15)  # so that no marker is cut
    calm(axes)
    axes.locator_params(axis="y", nbins=4)


# --- Words and numbers ----------------------------------------------------------------------------


def length_difference_label(unit: str) -> str:
    """The label of the axis of length differences."""
    return f"length difference, {unit} (chosen {MINUS} rejected)"


def edge(value: float | None) -> str:
    """The edge of a class of length differences in words; "" if the class has no edge there."""
    if value is None or not np.isfinite(value):
        return ""
    return f"{value:,.0f}".replace("-", MINUS)


def column(curve: list, name: str) -> np.ndarray:
    """The values of one field of a curve's points, (points,)."""
    return np.array([getattr(point, name) for point in curve], float)


@dataclass(frozen=True)
class Intervals:
    """Measured values with their 95% intervals."""

    value: np.ndarray  # (points,)
    low: np.ndarray  # (points,)
    high: np.ndarray  # (points,)

    @property
    def lowest(self) -> float:
        """The lowest end of all intervals."""
        return np.nanmin(self.low)


def intervals_of(curve: list, name: str) -> Intervals:
    """The values in this field of a curve's points, with their intervals."""
    return Intervals(
        value=column(curve, name),
        low=column(curve, "low"),
        high=column(curve, "high"),
    )


def total(curve: list) -> int:
    """The number of pairs that a curve was measured on."""
    return sum(point.n for point in curve)


def shared_bins(values: np.ndarray) -> np.ndarray:
    """Cut a range into bins that hold every value.

    Args:
        values: An array of any shape, perhaps empty.

    Returns:
        The rising edges, about twice the square root of the number of values, and at most about 37.
        If 0 lies between them, it is one of them, so that no bar mixes both signs.
    """
    low = 0.0
    high = 1.0
    bins = round(2 * np.sqrt(values.size))
    bins = min(max(bins, FEWEST_BINS), MOST_BINS)
    if values.size:
        low = float(values.min())
        high = float(values.max())
    largest = max(abs(low), abs(high), 1e-9)
    if high - low <= 1e-9 * largest:  # Equal values make one bar in the middle.
        pad = 0.5 * max(abs(low), 1.0)
        return np.linspace(low - pad, high + pad, bins)
    width = high / bins - low / bins  # high - low could overflow.
    first = np.floor(low / width)
    last = np.floor(high / width) + 1
    edges = np.arange(first, last + 1) * width
    edges[0] = min(edges[0], low)
    edges[-1] = max(edges[-1], high)
    return edges


# --- Drawing --------------------------------------------------------------------------------------


def new_canvas(height: float) -> "Figure":
    """An empty figure of this height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def new_figure(x_label: str, y_label: str) -> tuple["Figure", "Axes"]:
    """A figure with one pair of axes."""
    figure = new_canvas(HEIGHT)
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
    calm(axes)
    axes.locator_params(axis="x", nbins=6)
    return figure, axes


def calm(axes: "Axes") -> None:
    """Remove the lines of the axes that say nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=LIGHT_GREY, linewidth=0.8)
    axes.tick_params(color=GREY)


def write_inside(axes: "Axes", x: float, y: float, text: str, **style: object) -> None:
    """Write a text inside the axes; x and y are fractions of their width and height."""
    axes.text(x, y, text, transform=axes.transAxes, **style)


def legend_above(axes: "Axes", **style: object) -> None:
    """Write the legend in one line above the axes, where it hides no point."""
    axes.legend(
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0,
        ncols=2,
        fontsize=11,
        columnspacing=1.2,
        handletextpad=0.4,
        **style,
    )


def draw_bars(axes: "Axes", values: np.ndarray, bins: np.ndarray, bars: Bars) -> None:
    """Draw a filled histogram with an outline; without values, draw nothing."""
    if not len(values):
        return
    axes.hist(
        values,
        bins,
        color=bars.colour,
        alpha=bars.fill,
        hatch=bars.hatch,
        edgecolor=bars.colour,
        linewidth=0,
    )
    axes.hist(
        values,
        bins,
        histtype="step",
        color=bars.colour,
        linewidth=1.8,
        linestyle=bars.line,
        label=bars.name,
    )


def draw_intervals(
    axes: "Axes", x: np.ndarray, measured: Intervals, label: str | None = None
) -> None:
    """Draw points with their 95% intervals, joined by a thin line.

    Args:
        axes: The axes to draw in.
        x: (points,) the positions.
        measured: The values and intervals to draw at x.
        label: The entry in the legend.
    """
    below = measured.value - measured.low
    above = measured.high - measured.value
    axes.errorbar(
        x,
        measured.value,
        np.abs([below, above]),
        color=BLUE,
        marker="o",
        markersize=6,
        linewidth=1,
        elinewidth=2,
        capsize=3,
        label=label,
    )


def draw_dots(axes: "Axes", x: np.ndarray, y: np.ndarray, dots: Dots) -> None:
    """Draw a cloud of points, at most SCATTER_POINTS of them."""
    if len(x) > SCATTER_POINTS:
        kept = np.random.default_rng(0).choice(len(x), SCATTER_POINTS, replace=False)
        x = x[kept]
        y = y[kept]
    area = 36
    if len(x) > 100:
        area = 14
    axes.scatter(
        x,
        y,
        s=area,
        alpha=0.45,
        color=dots.colour,
        marker=dots.marker,
        linewidths=0,
        label=dots.name,
    )


def draw_fitted_line(axes: "Axes", x: np.ndarray, y: np.ndarray) -> str:
    """Draw the least-squares line of all points, also of those that draw_dots leaves out.

    Args:
        axes: The axes to draw in.
        x: (points,) horizontal positions.
        y: (points,) vertical positions.

    Returns:
        The correlation in words.
    """
    r = stats.pearson(x, y)
    if r is None:
        return "No correlation: lengths or rewards do not vary."
    slope = r * y.std() / x.std()
    ends = np.array([x.min(), x.max()])
    line = y.mean() + slope * (ends - x.mean())
    axes.plot(ends, line, color=BLACK, linewidth=2)
    return f"r = {fixed(r)}, r squared = {fixed(r * r)}; the line is least squares."


def png(figure: "Figure") -> bytes:
    """The bytes of a figure as a small PNG."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    image = Image.open(drawn).convert("RGB").quantize(PNG_COLOURS, dither=Image.Dither.NONE)
    small = io.BytesIO()
    image.save(small, format="png", optimize=True)
    return small.getvalue()
