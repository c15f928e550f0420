"""Verbs that measure or predict speed and memory."""

from fbjax.cli.common import CONFIG, CONFIG_HELP, JSON, flag, names, out_file, print_table, verb

TOPOLOGY = "TPU slices with commas between, such as v5e:4x4, v5p:4x4x8 or v6e:16x16 (needs the extra tpu, but no TPU)"
PLOT = ".svg, .png or .pdf file for a plot of throughput per chip over chips (default: none)"


@verb(
    "time training, scoring and patch features on synthetic batches",
    flag("--config", CONFIG_HELP, default="configs/my_fashionbert.py"),
    flag("--repeats", "number of timed rounds; 0 reports only planned memory", type=int, default=10),
    flag("--compare", "time the same model in PyTorch too (default: no comparison)", choices=["torch"], default=""),
    flag("--trace", "folder for a profile of three steps (default: none)", metavar="DIR", default=""),
    JSON,
    examples=("fbjax bench --config configs/my_fashionbert.py --repeats 0 --json",),
)
def bench(json, **request) -> None:
    from fbjax.core.console import say
    from fbjax.tools.bench.bench import bench, format_table

    print_table(bench(say=say, **request), format_table, json)


@verb(
    "compile the train step ahead of time: memory, FLOPs, collectives, step time, scaling",
    CONFIG,
    flag("--topology", f"{TOPOLOGY}; local: this machine's devices", type=names, default="local", metavar="NAME,.."),
    flag("--per-chip", "products on each chip; sets the batch size (default: the config's batch size)", type=int),
    out_file("--plot", PLOT),
    JSON,
    examples=(
        "fbjax plan --config configs/my_fashionbert.py",
        "fbjax plan --config configs/my_fashionbert.py --topology v5e:4x4 --per-chip 8 --plot scaling.svg",
    ),
)
def plan(config, topology, per_chip, plot, json) -> None:
    from fbjax.core.console import say
    from fbjax.tools.plan import report
    from fbjax.tools.plan.plan import plan

    if plot:
        report.check_plot(plot)
    if per_chip is not None and per_chip < 1:
        raise ValueError(f"--per-chip {per_chip}: give a number of products, at least 1")
    figures = plan(config, list(topology), per_chip, say)
    print_table(figures, report.format_table, json)
    if plot and figures["scaling"]:
        report.plot(figures, plot)
        say(f"plot: {plot}")
    elif plot:
        say(f"no plot in {plot}: no step fits a chip of known speed")
