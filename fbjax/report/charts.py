"""Charts as inline SVG for the pages: text in the page's font, colours as the page's CSS variables.

Their width is about the displayed width, so that text keeps its size. The same input gives the same SVG.
"""

import io
import re

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = {  # CSS variable -> the colour for Matplotlib that it replaces
    "ink": "#010203",
    "muted": "#040506",
    "line": "#070809",
    "accent": "#0a0b0c",
    "second": "#0d0e0f",
}
SIZE = (4.9, 3.0)  # inches of 72 units
SMOOTHED_FROM, WINDOWS = 40, 25  # smoothed curves have at least 40 points; the window is 1/25 of them
STYLE = {
    "svg.fonttype": "none",
    "font.size": 12,
    "text.color": COLOURS["ink"],
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), COLOURS["line"]),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), COLOURS["muted"]),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left"), False),
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.linewidth": 0.8,
    "ytick.major.size": 0,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "path.simplify_threshold": 0.3,
}
TICKS = (1, 2, 2.5, 5, 10)
DASHES = ("-", (0, (5, 2)), (0, (1.5, 2)))


def curve(steps: np.ndarray, values: np.ndarray, label: str, guide: tuple[float, str] | None = None, noisy=True):
    """One metric over the steps, smoothed if it is noisy and has many points. `guide`: a level and its name."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        if noisy and len(steps) >= SMOOTHED_FROM:
            axes.plot(steps, values, color=COLOURS["accent"], alpha=0.25, linewidth=1)
            values = smooth(values, len(values) // WINDOWS)
        markers = {"marker": "o", "markersize": 4} if len(steps) < 10 else {}
        axes.plot(steps, values, color=COLOURS["accent"], linewidth=2, **markers)
        if guide:  # a curve near the level looks flat
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, guide[0] - 0.05), max(high, guide[0] + 0.02))
            _guide(axes, *guide)
        _steps_axis(axes, steps)
        return _svg(figure, label)


def curves(series: dict[str, tuple[np.ndarray, np.ndarray]], label: str, top: float | None = None) -> Markup:
    """Several metrics over the steps with names at their ends; the axis is from 0 to `top`."""
    colours = (COLOURS["ink"], COLOURS["muted"], COLOURS["accent"])
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        named: dict[float, list[tuple[str, str]]] = {}
        for (name, (steps, values)), colour, dash in zip(series.items(), colours, DASHES[::-1], strict=False):
            if len(steps) >= SMOOTHED_FROM:
                values = smooth(values, len(values) // WINDOWS)
            axes.plot(steps, values, color=colour, linewidth=2, linestyle=dash)
            named.setdefault(round(float(values[-1]), 2), []).append((name, colour))
            _steps_axis(axes, steps)
        axes.set_ylim(0, top)
        _names_at_the_end(axes, named)
        return _svg(figure, label)


def points(steps: np.ndarray, values: np.ndarray, marked: int, label: str, guide: tuple[float, str]) -> Markup:
    """A metric of some steps; the step `marked` has another colour and shows its value."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        axes.plot(steps, values, color=COLOURS["accent"], linewidth=2, alpha=0.5)
        filled = steps == marked
        for here, colour, size in ((~filled, COLOURS["second"], 4), (filled, COLOURS["accent"], 7)):
            axes.plot(steps[here], values[here], "o", color=colour, markersize=size, clip_on=False)
        for value in values[filled]:
            style = {"textcoords": "offset points", "ha": "center", "weight": "bold"}
            axes.annotate(f"{value:.3f}".removeprefix("0"), (marked, value), xytext=(0, 8), **style)
        axes.set_ylim(min(guide[0], values.min()) - 0.04, max(1.0, values.max() + 0.08))
        _guide(axes, *guide)
        _steps_axis(axes, steps)
        return _svg(figure, label)


def ranks(names: list[str], groups: dict[str, list[tuple[float, float, float]]], chance: list[float], label) -> Markup:
    """Bars of (value, low, high) with whiskers, one colour for each of `groups`, and a tick at `chance`."""
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x", "ytick.labelcolor": COLOURS["ink"]}):
        figure, axes = _figure((5.9, 0.9 + 0.85 * len(names)))
        height = 0.74 / max(len(groups), 1)
        for g, (name, bars) in enumerate(groups.items()):
            values, low, high = (np.array(x) for x in zip(*bars, strict=True))
            places = np.arange(len(bars)) + (g - (len(groups) - 1) / 2) * height
            colour = COLOURS["accent"] if g == 0 else COLOURS["second"]
            axes.barh(places, values, height * 0.86, color=colour, label=name)
            whiskers = {"fmt": "none", "ecolor": COLOURS["ink"], "elinewidth": 1.2}
            axes.errorbar(values, places, xerr=[values - low, high - values], **whiskers)
        for place, value in enumerate(chance):
            name = "chance" if place == 0 else None
            axes.vlines(value, place - 0.42, place + 0.42, COLOURS["ink"], linestyles=[(0, (2, 1.5))], label=name)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
        axes.tick_params(axis="x", length=0)
        figure.legend(loc="upper left", ncols=3, frameon=False, handlelength=1.2, columnspacing=1.2, borderpad=0)
        figure.get_layout_engine().set(rect=(0, 0, 1, 0.89))
        return _svg(figure, label)


def reliability(raw: np.ndarray, calibrated: np.ndarray, label: str) -> Markup:
    """The share of matches over the probability [bins, 2], before and after calibration, and the diagonal."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure((4.9, 4.3))
        axes.plot((0, 1), (0, 1), color=COLOURS["muted"], linewidth=1, linestyle=(0, (3, 3)), label="as said")
        styles = (("scores as they are", "muted", DASHES[1], "s"), ("calibrated", "accent", DASHES[0], "o"))
        for (name, colour, dash, marker), bins in zip(styles, (raw, calibrated), strict=True):
            style = {"marker": marker, "markersize": 5, "clip_on": False}
            axes.plot(*bins.T, color=COLOURS[colour], linewidth=2, linestyle=dash, label=name, **style)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability that the model gives", ylabel="share of matches")
        figure.legend(loc="upper left", ncols=3, frameon=False, handlelength=1.8, columnspacing=1.0, borderpad=0)
        figure.get_layout_engine().set(rect=(0, 0, 1, 0.92))
        return _svg(figure, label)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The moving average over `window` points, narrower near both ends."""
    places = np.arange(len(values))
    before = np.minimum(window // 2, places)
    after = np.minimum(before, places[::-1])
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[places + after + 1] - sums[places - before]) / (before + after + 1)


def _figure(size: tuple[float, float] = SIZE):
    figure = Figure(size, layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _steps_axis(axes, steps: np.ndarray) -> None:
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True, steps=TICKS))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, steps=TICKS))
    axes.set_xlim(left=min(0, steps.min()), right=max(1, steps.max()))
    axes.margins(x=0)


def _guide(axes, level: float, name: str) -> None:
    axes.axhline(level, color=COLOURS["muted"], linewidth=1, linestyle=(0, (3, 3)))
    _annotate(axes, name, level, xytext=(0, 4), ha="right", color=COLOURS["muted"])


def _names_at_the_end(axes, named: dict[float, list[tuple[str, str]]]) -> None:
    """Names to the right of the last points, moved apart if they would overlap."""
    gap = 0.09 * np.diff(axes.get_ylim())[0]
    lowest = -np.inf
    for value in sorted(named):
        lowest = max(value, lowest + gap)
        text, style = ", ".join(name for name, _ in named[value]), {"va": "center", "annotation_clip": False}
        _annotate(axes, f"{text} {value:.2f}", lowest, xytext=(6, 0), color=named[value][-1][1], **style)


def _annotate(axes, text: str, level: float, **style) -> None:
    """Writes `text` at the right end of the axes."""
    axes.annotate(text, (1, level), xycoords=("axes fraction", "data"), textcoords="offset points", **style)


def _svg(figure: Figure, label: str) -> Markup:
    """The figure as an element of an HTML page with the ARIA label `label`."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": label, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda place: re.sub(r"(\.\d\d)\d+", r"\1", place[0]), body)
    for name, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{name})")
    body = re.sub(r"\n\s*", "\n", body)
    opening = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {}">').format(label, width, height)
    return opening + Markup(body.strip() + "</svg>")
