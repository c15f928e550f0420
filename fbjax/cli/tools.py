"""Verbs that measure or predict speed and memory."""

from json import dumps
from pathlib import Path

from fbjax.cli.common import (
    CONFIG,
    CONFIG_HELP,
    JSON,
    flag,
    names,
    out_file,
    out_folder,
    positive_number,
    print_table,
    verb,
    whole_number,
)
from fbjax.core.console import answer, say

STAGES = "step, adaptive, lengths, score, patches, latency, and torch with --compare"
TOPOLOGY = "TPU slices with commas between, such as v5e:4x4, v5p:4x4x8 or v6e:16x16 (needs the extra tpu, but no TPU)"
PLOT = ".svg, .png or .pdf file for a plot of throughput per chip over chips (default: none)"


@verb(
    "time training, scoring and patch features on synthetic batches, each stage printed when it is done",
    flag("--config", CONFIG_HELP, default="configs/my_fashionbert.py"),
    whole_number("--repeats", "number of timed rounds; 0 reports only planned memory", at_least=0, default=10),
    flag("--only", f"stages with commas between: {STAGES} (default: all)", type=names, default=(), metavar="NAME,.."),
    positive_number("--budget", "seconds after which the measurement stops with what it has (default: none)"),
    flag("--compare", "time the same model in PyTorch too (default: no comparison)", choices=["torch"], default=""),
    out_folder("--trace", "folder for a profile of three steps; prints where time goes (default: none)", metavar="DIR"),
    out_file("--out", "JSON file for the figures, written after each stage (default: none)"),
    JSON,
    examples=(
        "fbjax bench --config configs/my_fashionbert.py --repeats 0 --json",
        "fbjax bench --config configs/my_fashionbert.py --only latency --out latency.json",
        "fbjax bench --config configs/my_fashionbert.py --only step --repeats 2 --budget 600 --out bench.json",
    ),
)
def bench(out, json, **request) -> None:
    from fbjax.tools.bench.bench import bench

    def publish(figures: dict) -> None:
        if out:
            partial_file = Path(f"{out}.partial")
            partial_file.write_text(dumps(figures, indent=2) + "\n")
            partial_file.replace(out)  # a kill leaves the stages before

    figures = bench(say=say if json else answer, publish=publish, **request)
    if json:
        answer(dumps(figures, indent=2))


@verb(
    "compile the train step ahead of time: memory, FLOPs, collectives, step time, scaling",
    CONFIG,
    flag("--topology", f"{TOPOLOGY}; local: this machine's devices", type=names, default="local", metavar="NAME,.."),
    whole_number("--per-chip", "products on each chip; sets the batch size (default: the config's batch size)"),
    out_file("--plot", PLOT),
    JSON,
    examples=(
        "fbjax plan --config configs/my_fashionbert.py",
        "fbjax plan --config configs/my_fashionbert.py --topology v5e:4x4 --per-chip 8 --plot scaling.svg",
    ),
)
def plan(config, topology, per_chip, plot, json) -> None:
    from fbjax.tools.plan import report
    from fbjax.tools.plan.plan import plan

    if plot:
        report.check_plot(plot)
    figures = plan(config, list(topology), per_chip, say)
    if plot and figures["scaling"]:
        report.plot(figures, plot)
        say(f"plot: {plot}")
    elif plot:
        say(f"no plot in {plot}: no step fits a chip of known speed")
    print_table(figures, report.format_table, json)
