"""The cost of a run for the report: time by cause, speed, and restarts."""

import datetime
from collections.abc import Iterator

import numpy as np

from fbjax.monitoring import goodput
from fbjax.monitoring.goodput import Attempt, Split
from fbjax.monitoring.hardware import machine
from fbjax.monitoring.telemetry import read_figures
from fbjax.report import charts
from fbjax.report.page import percent

MEANINGS = {  # of the causes of `fbjax.monitoring.goodput`, in the order of the page
    goodput.STEP: ("steps that counted", "the model learned"),
    goodput.LOST: (goodput.LOST, "steps that had to be done again"),
    goodput.START_UP: (goodput.START_UP, "until the first step, but for what follows"),
    "records": ("records", "the table's products prepared, or opened"),
    "patch features": ("patch features", "computed, or opened"),
    "mining": ("mining", "near mistakes of an earlier run looked for"),
    goodput.COMPILE: (goodput.COMPILE, "the step's programs"),
    goodput.INPUT: (goodput.INPUT, "the device waited for a batch"),
    goodput.CHECKPOINT: (goodput.CHECKPOINT, "training stood still for one"),
    goodput.EVALUATION: (goodput.EVALUATION, "validation between steps"),
}
SHOWN_FROM = 0.0005  # of the wall time
ENDED = {"": "killed", "done": "by itself"}  # the last attempt may also still run


def cost(batch_size: int, newest: int, events: list[dict], preparing: float | None) -> dict:
    """The values of the cost section from the run's events and the seconds of preparing its records."""
    split, figures = goodput.split(events), read_figures(events)
    peaks = [event["peak"] for event in events if "peak" in event]
    if peaks and "model_flops_per_second" in figures:  # the last peak is the best estimate
        steps, flops = figures["model_flops_per_second"]
        figures["utilisation"] = steps, flops / peaks[-1]["flops"]
    stages = {"preparing the records, once": preparing} if preparing is not None else {}
    evaluating = sum(event["seconds"] for event in events if event.get("noted") == "evaluation")
    stages |= {"evaluating afterwards": evaluating} if evaluating >= 0.5 else {}
    return {
        "training": split.wall,
        "goodput": split.goodput,
        "parts": list(_parts(split)),
        "attempts": list(_attempts(split)),
        "panels": list(_panels(figures, peaks)),
        "stages": stages,
        "steps": newest,
        "pairs": 2 * batch_size,
        "rate": _median(figures, "pairs_per_second"),
        "speeds": dict(_speeds(figures)),
        "machines": list(dict.fromkeys(event["machine"] for event in events if "machine" in event)),
        "here": machine(),
    }


def _parts(split: Split) -> Iterator[dict]:
    """Each visible cause with its share of the wall time."""
    seconds = split.seconds
    overheads = [cause for cause in MEANINGS if cause not in (goodput.STEP, goodput.LOST)]
    for cause, (name, meaning) in MEANINGS.items():
        share = seconds.get(cause, 0.0) / split.wall if split.wall else 0.0
        if share < SHOWN_FROM:
            continue
        kind = {goodput.STEP: "counted", goodput.LOST: "lost"}.get(cause, "overhead")
        opacity = round(0.9 - 0.09 * overheads.index(cause), 2) if kind == "overhead" else 1
        part = {"cause": name, "meaning": meaning, "seconds": seconds[cause], "share": share}
        yield part | {"kind": kind, "opacity": opacity}


def _attempts(split: Split) -> Iterator[dict]:
    before: Attempt | None = None
    for attempt in split.attempts:
        runs = attempt is split.attempts[-1] and not attempt.ended
        began = datetime.datetime.fromtimestamp(attempt.began, datetime.UTC)
        yield {
            "began": f"{began.day} {began:%B %Y, %H:%M:%S}",
            "down": max(0.0, attempt.began - before.began - before.wall) if before else 0.0,
            "steps": "none" if attempt.first is None else f"{attempt.first:,} to {attempt.last:,}",
            "wall": attempt.wall,
            "lost": attempt.seconds[goodput.LOST],
            "ended": "not yet, or killed" if runs else ENDED.get(attempt.ended, attempt.ended),
        }
        before = attempt


def _panels(figures: dict[str, tuple[np.ndarray, np.ndarray]], peaks: list[dict]) -> Iterator[dict]:
    """Curves of speed, utilisation and memory over the steps."""
    if not figures:
        return
    share = "FLOP/s that the model needs, nothing counted twice, as a share of "
    share += f"{peaks[-1]['flops'] / 1e9:,.0f} GFLOP/s: {peaks[-1]['of']}." if peaks else "an unknown peak."
    panels = {
        "pairs_per_second": ("Pairs a second", 1, "Text-picture pairs, waiting for input included."),
        "step_seconds": ("Step time (ms)", 1e3, "Mean of the steps between two log lines."),
        "utilisation": ("Utilisation (%)", 100, share),
        "peak_memory_bytes": ("Peak memory (GiB)", 2**-30, "The most a device has held, or the process on a CPU."),
    }
    for name, (title, unit, reading) in panels.items():
        if name in figures:
            steps, values = figures[name]
            chart = charts.curve(steps, values * unit, f"{title} over the steps", noisy=name != "peak_memory_bytes")
            yield {"title": title, "chart": chart, "reading": reading}


def _speeds(figures: dict) -> Iterator[tuple[str, str]]:
    """Medians over the log steps, formatted."""
    for name, what, shown in (
        ("pairs_per_second", "pairs a second, median", "{:,.0f}"),
        ("tokens_per_second", "tokens a second, text and image, no padding, median", "{:,.0f}"),
        ("step_seconds", "seconds a step, median", "{:.3g}"),
        ("model_flops_per_second", "GFLOP/s that the model needs, median", "{:,.1f}"),
    ):
        if (value := _median(figures, name)) is not None:
            yield what, shown.format(value / 1e9 if name == "model_flops_per_second" else value)
    if (utilisation := _median(figures, "utilisation")) is not None:
        yield "utilisation, median", percent(utilisation)
    if "peak_memory_bytes" in figures:
        yield "peak memory, GiB", f"{figures['peak_memory_bytes'][1].max() / 2**30:.1f}"


def _median(figures: dict, name: str) -> float | None:
    return float(np.median(figures[name][1])) if name in figures else None
