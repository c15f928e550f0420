"""Charts as inline SVG for the pages: text in the page's font, colours as the page's CSS variables.

Drawn at about the width at which they are shown, so that their text keeps its size; the same input gives the same text.
"""

import io
import re

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = {  # what Matplotlib draws with, and the CSS variable that stands there afterwards
    "ink": "#010203",
    "muted": "#040506",
    "line": "#070809",
    "accent": "#0a0b0c",
    "second": "#0d0e0f",
}
SIZE = (4.9, 3.0)  # inches of 72 units
SMOOTHED_FROM, WINDOWS = 40, 25  # points a curve has at least to be smoothed; windows that fit into it
STYLE = {
    "svg.fonttype": "none",
    "font.size": 12,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.8,
    "ytick.major.size": 0,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "path.simplify_threshold": 0.3,
}
TICKS = (1, 2, 2.5, 5, 10)
DASHES = ("-", (0, (5, 2)), (0, (1.5, 2)))


def curve(steps: np.ndarray, values: np.ndarray, label: str, guide: tuple[float, str] | None = None, noisy=True):
    """One metric over the steps, smoothed where it is noisy and has many points.

    `guide`: a level worth knowing, and its name.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        if noisy and len(steps) >= SMOOTHED_FROM:
            axes.plot(steps, values, color=COLOURS["accent"], alpha=0.25, linewidth=1)
            values = smooth(values, len(values) // WINDOWS)
        axes.plot(steps, values, color=COLOURS["accent"], linewidth=2, **_markers(steps))
        if guide:  # so that a curve that never left the level looks flat
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, guide[0] - 0.05), max(high, guide[0] + 0.02))
            _guide(axes, *guide)
        _steps_axis(axes, steps)
        return _svg(figure, label)


def curves(series: dict[str, tuple[np.ndarray, np.ndarray]], label: str, top: float | None = None) -> Markup:
    """Several metrics over the steps, each named at its end; axes from 0 to `top`."""
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
    """A metric measured now and then; the step `marked` is filled in and its value written beside it."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        axes.plot(steps, values, color=COLOURS["accent"], linewidth=2, alpha=0.5)
        filled = steps == marked
        for here, colour, size in ((~filled, COLOURS["second"], 4), (filled, COLOURS["accent"], 7)):
            axes.plot(steps[here], values[here], "o", color=colour, markersize=size, clip_on=False)
        for value in values[filled]:
            axes.annotate(
                f"{value:.3f}".removeprefix("0"),
                (marked, value),
                xytext=(0, 8),
                textcoords="offset points",
                ha="center",
                weight="bold",
            )
        axes.set_ylim(min(guide[0], values.min()) - 0.04, max(1.0, values.max() + 0.08))
        _guide(axes, *guide)
        _steps_axis(axes, steps)
        return _svg(figure, label)


def ranks(names: list[str], groups: dict[str, list[tuple[float, float, float]]], chance: list[float], label) -> Markup:
    """Bars of (value, low, high) with whiskers, one row of `groups` a colour, and a tick where guessing would lie."""
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x", "ytick.labelcolor": COLOURS["ink"]}):
        figure, axes = _figure((5.9, 0.9 + 0.85 * len(names)))
        height = 0.74 / max(len(groups), 1)
        for g, (name, bars) in enumerate(groups.items()):
            values, low, high = (np.array(x) for x in zip(*bars, strict=True))
            places = np.arange(len(bars)) + (g - (len(groups) - 1) / 2) * height
            colour = COLOURS["accent"] if g == 0 else COLOURS["second"]
            axes.barh(places, values, height * 0.86, color=colour, label=name)
            axes.errorbar(
                values, places, xerr=[values - low, high - values], fmt="none", ecolor=COLOURS["ink"], elinewidth=1.2
            )
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


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The moving average over `window` points, narrower at the start, where it meets the values, and cut at the end."""
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


def _markers(steps: np.ndarray) -> dict:
    return {"marker": "o", "markersize": 4} if len(steps) < 10 else {}


def _guide(axes, level: float, name: str) -> None:
    axes.axhline(level, color=COLOURS["muted"], linewidth=1, linestyle=(0, (3, 3)))
    axes.annotate(
        name, (1, level), xycoords=("axes fraction", "data"), xytext=(0, 4), textcoords="offset points",
        ha="right", color=COLOURS["muted"],
    )  # fmt: skip


def _names_at_the_end(axes, named: dict[float, list[tuple[str, str]]]) -> None:
    """Names to the right of the last points, moved apart where they would lie upon each other."""
    gap = 0.09 * np.diff(axes.get_ylim())[0]
    lowest = -np.inf
    for value in sorted(named):
        lowest = max(value, lowest + gap)
        text = ", ".join(name for name, _ in named[value])
        axes.annotate(
            f"{text} {value:.2f}", (1, lowest), xycoords=("axes fraction", "data"), xytext=(6, 0),
            textcoords="offset points", va="center", color=named[value][-1][1], annotation_clip=False,
        )  # fmt: skip


def _svg(figure: Figure, label: str) -> Markup:
    """The figure as an element of an HTML page, to be read out as `label`."""
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
