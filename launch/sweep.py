"""Short runs that differ in one thing each, over several seeds: table, plot, and which differences are told apart.

    python launch/sweep.py weights,tasks,mismatched,layers,networks --rank 10 --lists lists.jsonl --out runs/sweep
    python launch/sweep.py patches --steps 100 --rank 10 --lists lists.jsonl --out runs/patches
    python launch/sweep.py pictures --config configs/catalogue_kaleido_ablation.py --lists .. --out runs/pictures
    python launch/sweep.py start --config catalogue_fashionbert --towers runs/towers --lists .. --out runs/start

Every run is `fbjax train` and `fbjax evaluate` of a config for a few minutes. What is done already is not done again,
not for another sweep either, and a run that was cut off goes on. The figure is Rank@K (--rank), the mean of both
directions, on the lists' first queries: of short runs K = 10, which is near one half, tells more apart than K = 1.

A variant's difference to the first of its sweep has the variance of seeds (pooled over the variants, 2 s^2 / n) and of
queries (of the difference, query by query) together, which counts some noise twice: the interval is rather too wide
than too narrow. "ahead" and "behind" are at the 5 % level over all comparisons of a sweep (Holm 1979). A true
difference as large as the last line says would be found in 80 % of such sweeps, were it the only comparison; a smaller
one that is observed decides nothing.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import queue
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from fbjax.config.load import config_to_json, load_config
from fbjax.runs.stored_evaluation import read_evaluation


def tasks(**weights: float) -> tuple[str, ...]:
    """Overrides for these tasks at these fixed weights."""
    return (f"tasks={','.join(weights)}", *(f"tasks.{name}.weight={weight}" for name, weight in weights.items()))


ALL = tasks(mlm=0.1, mpm=0.1, tia=0.4, itc=0.4)
NO_PICTURES = {"mlm": 0.1, "tia": 0.4, "itc": 0.4}
PICTURES = ("rotation", "jigsaw", "camouflage", "grey", "blank")
JOINT = ("model.cross_attention=joint",)
SWEEPS = {  # the first variant of each is what the others are compared with; () is the config as it stands
    "tasks": {
        "all four": ALL,
        "without mlm": tasks(mpm=0.1, tia=0.45, itc=0.45),
        "without mpm": tasks(mlm=0.1, tia=0.45, itc=0.45),
        "without either": tasks(tia=0.5, itc=0.5),
        "without tia, scored by cosines": tasks(mlm=0.1, mpm=0.1, itc=0.8),
        "without itc": (*tasks(mlm=0.1, mpm=0.1, tia=0.8), "tasks.tia.head=cls"),
    },
    "weights": {
        "fixed .1 .1 .4 .4": ALL,
        "fixed, equal": tasks(mlm=1, mpm=1, tia=1, itc=1),
        "gradient": (*ALL, "adaptive.method=gradient"),
        "loss_softmax": (*ALL, "adaptive.method=loss_softmax"),
    },
    "negatives": {
        "mlm and mpm on true pairs": (*ALL, "tasks.mlm.on_negatives=False", "tasks.mpm.on_negatives=False"),
        "on negative pairs too": (*ALL, "tasks.mlm.on_negatives=True", "tasks.mpm.on_negatives=True"),
    },
    "layers": {f"first {n}": (f"model.num_layers={n}",) for n in (2, 1, 4, 6)},
    "networks": {
        "MobileNetV1, one pass": (),
        "MobileNetV1, each patch alone": ("patches.geometry=per_patch", "patches.patch_input_size=64"),
        "pixels": ("patches.network=pixels", "patches.geometry=per_patch", "patches.patch_input_size=16"),
    },
    "patches": {
        "4 x 4": (),
        "1 x 1": ("patches.patch_size=256",),
        "2 x 2": ("patches.patch_size=128",),
        "8 x 8": ("patches.patch_size=32",),
        "16 x 16, of 512 pixels": ("patches.image_size=512", "patches.patch_size=32"),
    },
    "categories": {
        "same sub-category": (),
        "any, then same": ("tasks.tia.random_negatives_start=1.0", "tasks.tia.random_negatives_steps=300"),
    },
    "pictures": {  # of a config of Kaleido-BERT
        "mlm, tia, itc": tasks(**NO_PICTURES),
        "all five beside": (),
        **{f"{n} beside": tasks(**NO_PICTURES, **{n: 0.1}) for n in PICTURES},
    },
    "start": {
        "gated": (),
        "joint": JOINT,
        "joint, cls alone": (*JOINT, "tasks.tia.head=cls"),
        "joint, minilm": (*JOINT, "train.start_from="),
        "joint, minilm, cls alone": (*JOINT, "tasks.tia.head=cls", "train.start_from="),
    },
}
FROM_TOWERS = ("categories", "start")


@dataclasses.dataclass(frozen=True)
class Runs:
    """A variant's runs, one a seed: whether each query's own product is among the first `rank`, and the AUC."""

    hits: np.ndarray  # [seeds, queries of both directions]
    auc: np.ndarray  # [seeds]
    rank: int = 1

    @property
    def rates(self) -> np.ndarray:
        return self.hits.mean(axis=1)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A variant's Rank@K less the first one's, in points: its 95 % interval, and what is to be said of it."""

    mean: float
    low: float
    high: float
    verdict: str  # ahead | behind | not told apart


def overrides_of(variant: tuple[str, ...], seed: int, arguments) -> list[str]:
    towers = [f"train.start_from={arguments.towers}"] if arguments.towers else []
    steps = [f"train.num_steps={arguments.steps}"] if arguments.steps else []
    return [*towers, *steps, *variant, *arguments.settings, f"train.seed={seed}"]


def shares_of_cores(jobs: int) -> queue.Queue:
    """The cores dealt out to so many runs at once, each share as a command that keeps another on it."""
    cores, shares = sorted(os.sched_getaffinity(0)) if jobs > 1 else [], queue.Queue()
    for job in range(jobs):
        shares.put(["taskset", "-c", ",".join(map(str, cores[job::jobs]))] if cores else [])
    return shares


@contextlib.contextmanager
def taken(shares: queue.Queue):
    share = shares.get()
    try:
        yield share
    finally:
        shares.put(share)


def run(workdir: Path, overrides: list[str], arguments, shares: queue.Queue) -> dict:
    """The evaluation of one run, made unless it is there; ValueError where it is one of other settings."""
    asked = workdir / "asked.json"
    wanted = [config_to_json(load_config(arguments.config, overrides)), arguments.lists, arguments.queries]
    if asked.is_file() and json.loads(asked.read_text()) != wanted:
        raise ValueError(f"{workdir} holds a run of other settings than {', '.join(overrides)}: give another --out")
    if not read_evaluation(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        asked.write_text(json.dumps(wanted))
        last = load_config(arguments.config, overrides).train.num_steps
        flags = [f"--config.{setting}" for setting in overrides]
        with taken(shares) as pinned, open(workdir / "log", "a") as log:
            for command in (
                ["fbjax", "train", "--config", arguments.config, "--workdir", str(workdir), *flags],
                ["fbjax", "evaluate", "--workdir", str(workdir), "--step", str(last), "--candidates", arguments.lists]
                + ["--queries", str(arguments.queries)],
            ):
                subprocess.run([*pinned, *command], check=True, stdout=log, stderr=log)
    return read_evaluation(workdir)


def gathered(evaluations: list[dict], rank: int) -> Runs:
    hits = np.array([[ranking["rank"] <= rank for ranking in e["rankings"]] for e in evaluations])
    return Runs(hits, np.array([e["figures"]["matching"]["auc"] for e in evaluations]), rank)


def spread_of(runs: dict[str, Runs]) -> tuple[float, int]:
    """Variance of a run's Rank@K over seeds, pooled over variants, and its degrees of freedom."""
    num_seeds = min(len(r.rates) for r in runs.values())
    variance = float(np.mean([r.rates.var(ddof=1) for r in runs.values()])) if num_seeds > 1 else 0.0
    return variance, len(runs) * (num_seeds - 1)


def differences(runs: dict[str, Runs]) -> tuple[dict[str, Difference], float]:
    """Each variant's difference to the first, and the smallest that such a sweep finds in 80 % of cases, in points.

    With one seed the variance of queries alone.
    """
    (_, base), *others = runs.items()
    variance, freedom = spread_of(runs)
    quantile = lambda p: scipy.stats.t.ppf(p, freedom) if freedom else scipy.stats.norm.ppf(p)  # noqa: E731
    tail = lambda x: 2 * (scipy.stats.t.sf(x, freedom) if freedom else scipy.stats.norm.sf(x))  # noqa: E731
    found, errors, chances = {}, [], []
    for _, other in others:
        by_query = other.hits.mean(axis=0) - base.hits.mean(axis=0)
        errors.append(math.sqrt(2 * variance / len(base.hits) + by_query.var(ddof=1) / len(by_query)))
        chances.append(tail(abs(by_query.mean()) / errors[-1]) if by_query.any() else 1.0)
    apart = holm(np.array(chances))
    for (name, other), error, told in zip(others, errors, apart, strict=True):
        mean, half = 100 * (other.rates.mean() - base.rates.mean()), 100 * quantile(0.975) * error
        verdict = ("ahead" if mean > 0 else "behind") if told else "not told apart"
        found[name] = Difference(mean, mean - half, mean + half, verdict)
    return found, 100 * (quantile(0.975) + quantile(0.8)) * float(np.median(errors))


def holm(chances: np.ndarray, level: float = 0.05) -> np.ndarray:
    """Which of some p values are below `level` when any false one counts (Holm 1979)."""
    order = np.argsort(chances)
    below = chances[order] <= level / np.arange(len(chances), 0, -1)
    rejected = np.empty(len(chances), bool)
    rejected[order] = np.logical_and.accumulate(below)
    return rejected


def table(runs: dict[str, Runs]) -> list[str]:
    """A line for each variant: Rank@K, its range over seeds, the difference to the first, AUC."""
    found, smallest = differences(runs)
    rank = next(iter(runs.values())).rank
    lines = [f"| variant | Rank@{rank}, both ways | over seeds | to the first | | AUC |", "|---|---|---|---|---|---|"]
    for name, r in runs.items():
        spread = f"{r.rates.min():.1%} to {r.rates.max():.1%}" if len(r.rates) > 1 else "one seed"
        d = found.get(name)
        told = f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}] | {d.verdict}" if d else "|"
        lines.append(f"| {name} | {r.rates.mean():.1%} | {spread} | {told} | {r.auc.mean():.3f} |")
    num_seeds, num_queries = next(iter(runs.values())).hits.shape
    return [
        *lines,
        "",
        f"smallest difference that {num_seeds} seeds and {num_queries} queries find in 80 % of such sweeps: "
        f"{smallest:.1f} points",
    ]


def plot(name: str, runs: dict[str, Runs], path: Path) -> None:
    """Differences to the first variant with their intervals, a dot for each seed's own."""
    found, _ = differences(runs)
    first, base = next(iter(runs.items()))
    figure = Figure((7.5, 1.1 + 0.42 * len(found)), layout="constrained")
    axes = figure.subplots()
    for place, (variant, d) in enumerate(found.items()):
        colour = "0.55" if d.verdict == "not told apart" else "C0" if d.mean > 0 else "C3"
        axes.plot([d.low, d.high], [place, place], color=colour, linewidth=2)
        axes.plot(d.mean, place, "o", color=colour)
        seeds = 100 * (runs[variant].rates - base.rates.mean())
        if len(seeds) > 1:
            axes.plot(seeds, np.full(len(seeds), place - 0.25), ".", color="0.7", markersize=5)
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(range(len(found)), found)
    axes.set_ylim(len(found) - 0.5, -0.6)
    axes.set_xlabel(
        f"{name}: Rank@{base.rank} to “{first}” ({base.rates.mean():.1%}), in points\n"
        + ("95 % intervals; seeds as small dots" if len(base.rates) > 1 else "95 % intervals over queries; one seed")
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweeps", help=f"comma-separated, of {', '.join(SWEEPS)}")
    parser.add_argument("--lists", required=True, help="candidate lists, JSONL")
    parser.add_argument("--out", required=True, help="folder for the runs, tables and plots")
    parser.add_argument("--config", default="configs/catalogue_ablation.py")
    parser.add_argument("--towers", default="", help="workdir of the towers that runs start from, for a config of such")
    parser.add_argument("--steps", type=int, help="train.num_steps (default: the config's)")
    parser.add_argument("--queries", type=int, default=300, help="a direction")
    parser.add_argument("--rank", type=int, default=1, metavar="K", help="the figure is Rank@K (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on its share of the cores")
    parser.add_argument("settings", nargs="*", help="section.field=value, for all runs")
    arguments = parser.parse_intermixed_args()
    cores, names = len(os.sched_getaffinity(0)), arguments.sweeps.split(",")
    if not 1 <= arguments.jobs <= cores:
        parser.error(f"--jobs {arguments.jobs}: there are {cores} cores")
    if unknown := set(names) - set(SWEEPS):
        parser.error(f"no sweep {', '.join(sorted(unknown))}; there are {', '.join(SWEEPS)}")
    if not arguments.towers and set(names) & set(FROM_TOWERS):
        parser.error(f"{' and '.join(FROM_TOWERS)} need --towers, which their runs start from")
    shares, out = shares_of_cores(arguments.jobs), Path(arguments.out)

    def folder_of(variant: tuple[str, ...]) -> str:
        """One for all variants that come to the same config: a run may stand in several sweeps."""
        base, changed = (load_config(arguments.config, overrides_of(v, 0, arguments)) for v in ((), variant))
        return "base" if changed == base else "_".join(variant).replace("/", " ")

    def measure(folder: str, variant: tuple[str, ...], seed: int) -> dict:
        evaluation = run(out / folder / f"seed{seed}", overrides_of(variant, seed, arguments), arguments, shares)
        rate = gathered([evaluation], arguments.rank).rates[0]
        print(f"{folder}, seed {seed}: Rank@{arguments.rank} {rate:.1%}\n", end="", flush=True)  # one write
        return evaluation

    with ThreadPoolExecutor(arguments.jobs) as pool:
        variants = {folder_of(variant): variant for name in names for variant in SWEEPS[name].values()}
        jobs = {  # a sweep that is cut off has some seeds of all variants rather than all seeds of some
            (folder, seed): pool.submit(measure, folder, variant, seed)
            for seed in range(arguments.seeds)
            for folder, variant in variants.items()
        }
        try:
            for name in names:
                runs = {
                    label: gathered(
                        [jobs[folder_of(v), seed].result() for seed in range(arguments.seeds)], arguments.rank
                    )
                    for label, v in SWEEPS[name].items()
                }
                lines = table(runs)
                (out / f"{name}.md").write_text("\n".join(lines) + "\n")
                plot(name, runs, out / f"{name}.svg")
                print(f"\n{name}\n\n" + "\n".join(lines), flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


if __name__ == "__main__":
    main()
