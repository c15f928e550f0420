"""A plan as lines of text, and weak scaling as a plot."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

GIB = 2**30
PLOTS = (".svg", ".png", ".pdf")
KINDS = ("parameters", "optimiser", "frozen", "batch", "task_gradients", "activations")
SECONDS = ("compute", "memory", "collectives", "step", "step_overlapped")


def format_table(figures: dict) -> list[str]:
    """A paragraph for each topology, then a table of all."""
    lines = [line for f in figures["topologies"] for line in [*_paragraph(f), ""]]
    if not figures["scaling"]:
        return lines[:-1]
    heads = ("topology", "chips", "products a step", "step, ms", "products/s")
    heads += ("a chip, over the smallest", "if all overlaps")
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    milliseconds = {f["topology"]: 1e3 * f["seconds"]["step"] for f in figures["topologies"] if f.get("seconds")}
    for row in figures["scaling"]:
        lines.append(
            f"| {row['topology']} | {row['chips']} | {row['batch_size']:,} | {milliseconds[row['topology']]:.1f} | "
            f"{row['products_per_second']:,.0f} | {row['efficiency']:.1%} | {row['efficiency_overlapped']:.1%} |"
        )
    return lines


def _paragraph(f: dict) -> list[str]:
    mesh = " x ".join(f"{name} {size}" for name, size in f["mesh"].items() if size > 1) or "one device"
    memory = f["memory"]
    parts = " + ".join(f"{k.replace('_', ' ')} {memory[k] / GIB:.3g}" for k in KINDS if memory.get(k))
    limit = f" of {memory['capacity'] / GIB:.1f}" if memory["capacity"] else ""
    lines = [
        f"{f['topology']}: {f['chips']} x {f['device']}, mesh {mesh}, {f['batch_size']:,} products a step",
        f"  memory       {parts}",
        f"               = {memory['total'] / GIB:.3g}{limit} GiB a chip{_verdict(f)}",
    ]
    if "flops" in f:
        teraflops, gigabytes = f["flops"] / 1e12, f["traffic"] / 1e9
        lines.append(f"  work         {teraflops:.3g} TFLOP, {gigabytes:.3g} GB through memory, a chip")
        for c in f["collectives"]:
            over = f"over {' and '.join(c['axes'])} ({c['chips']})" if c["axes"] else "within a chip"
            lines.append(f"  collectives  {c['times']:>4} {c['kind']:<19}{c['bytes'] / 1e6:>9,.2f} MB {over}")
    if f.get("seconds"):
        compute, through, collectives, step, overlapped = (1e3 * f["seconds"][key] for key in SECONDS)
        lines.append(
            f"  step         {compute:.1f} ms of FLOPs or {through:.1f} of memory, {collectives:.1f} of collectives: "
            f"{step:.1f} ms, {overlapped:.1f} if all overlaps"
        )
    return lines


def _verdict(f: dict) -> str:
    if f["fits"] is None:
        return " (the device does not say how much it has)"
    if f["fits"]:
        return ": fits"
    if f["nearest"]:
        return f": does not fit; {f['nearest']:,} products would (train.batch_size)"
    return ": does not fit, nor does any smaller batch (raise train.micro_batches or mesh.fsdp, or set model.remat)"


def check_plot(path: str | Path) -> None:
    """Raises ValueError where `path` has no ending of `PLOTS`."""
    if Path(path).suffix not in PLOTS:
        raise ValueError(f"--plot {path}: name a file that ends in {', '.join(PLOTS)}")


def plot(figures: dict, path: str | Path) -> None:
    """Plots throughput a chip, relative to the smallest topology, over the number of chips; a line for each generation.

    Solid: without overlap; dashed: with all collectives overlapped.
    """
    figure = Figure((6, 3.6), layout="constrained")
    axes = figure.subplots()
    devices = sorted({row["device"] for row in figures["scaling"]})
    for i, device in enumerate(devices):
        rows = sorted((row for row in figures["scaling"] if row["device"] == device), key=lambda row: row["chips"])
        sizes = [row["chips"] for row in rows]
        for key, style in (("efficiency", "o-"), ("efficiency_overlapped", "o--")):
            label = device if key == "efficiency" else None
            axes.plot(sizes, [100 * row[key] for row in rows], style, color=f"C{i}", markersize=4, label=label)
    sizes = sorted({row["chips"] for row in figures["scaling"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, map(str, sizes), minor=False)
    axes.axhline(90, color="0.6", linewidth=1, linestyle=":")
    axes.set_ylim(0, max(105, 1.05 * axes.get_ylim()[1]))
    axes.set_xlabel("chips; the same number of products on each")
    axes.set_ylabel("throughput a chip, % of the smallest")
    axes.legend(frameon=False, loc="lower left", title="dashed: all collectives overlapped")
    axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fbjax plan"}):
        figure.savefig(path, metadata={"Date": None} if str(path).endswith(".svg") else None)
