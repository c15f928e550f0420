"""Short runs that differ in one thing each, over several seeds, and the smallest difference they can detect.

    python launch/sweep.py tasks --towers runs/towers --lists validation-101.jsonl --out runs/sweep

Every run is `fbjax train` and `fbjax evaluate` of configs/catalogue.py for a few minutes. What is done already is not
done again, not for another sweep either, and a run that was cut off goes on. The figure is Rank@1, the mean of both
directions, on the lists' first queries. A true difference as large as the last line says would be found at the 5 %
level in 80 % of such sweeps, on these queries and from these towers, one comparison at a time; a smaller one that is
observed decides nothing.
"""

import argparse
import contextlib
import json
import math
import os
import queue
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import scipy.stats

from fbjax import config as configs

ALL = ("tasks.names=mlm,mpm,tia,itc", "adaptive.fixed=0.1,0.1,0.4,0.4")
JOINT = ("model.cross_attention=joint", "model.gate_start=0.0")
SWEEPS = {  # the first variant of each is what the others are compared with; () is the config as it stands
    "tasks": {
        "all four": ALL,
        "without mlm": ("tasks.names=mpm,tia,itc", "adaptive.fixed=0.1,0.45,0.45"),
        "without mpm": ("tasks.names=mlm,tia,itc", "adaptive.fixed=0.1,0.45,0.45"),
        "without either": (),
        "without tia, scored by the towers": ("tasks.names=mlm,mpm,itc", "adaptive.fixed=0.1,0.1,0.8"),
        "without itc": ("tasks.names=mlm,mpm,tia", "adaptive.fixed=0.1,0.1,0.8"),
    },
    "weights": {
        "fixed .1 .1 .4 .4": ALL,
        "gradient": (ALL[0], "adaptive.method=gradient"),
        "loss_softmax": (ALL[0], "adaptive.method=loss_softmax"),
    },
    "negatives": {
        "same sub-category": (),
        "any, then same": ("tasks.easy_start=1.0", "tasks.easy_end=0.0", "tasks.easy_steps=300"),
        "mined .2 from the start": ("tasks.mined=0.2", "tasks.mined_steps=0"),
        "mined .4 from the start": ("tasks.mined=0.4", "tasks.mined_steps=0"),
    },
    "start": {
        "gated": (),
        "gated, from 0": ("model.gate_start=0.0",),
        "joint": JOINT,
        "joint, cls alone": (*JOINT, "model.tia_reads=cls"),
        "joint, minilm": (*JOINT, "train.start_from="),
        "joint, minilm, cls alone": (*JOINT, "model.tia_reads=cls", "train.start_from="),
    },
}


def overrides_of(variant: tuple[str, ...], seed: int, arguments) -> list[str]:
    given = (f"train.start_from={arguments.towers}", f"train.num_steps={arguments.steps}", *variant)
    return [*given, *arguments.settings, f"train.seed={seed}"]


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
    """The metrics of one run, made unless they are there; ValueError where they are those of other settings."""
    out, asked = workdir / "metrics.json", workdir / "asked.json"
    wanted = [arguments.config, arguments.lists, arguments.queries, *overrides]
    if asked.is_file() and json.loads(asked.read_text()) != wanted:
        raise ValueError(f"{workdir} holds a run of other settings ({asked.read_text()}): give another --out")
    if not out.is_file():
        workdir.mkdir(parents=True, exist_ok=True)
        asked.write_text(json.dumps(wanted))
        flags = [f"--config.{setting}" for setting in overrides]
        lists = ["--candidates", arguments.lists, "--queries", str(arguments.queries)]
        with taken(shares) as pinned, open(workdir / "log", "a") as log:
            for command in (
                ["fbjax", "train", "--config", arguments.config, "--workdir", str(workdir), *flags],
                ["fbjax", "evaluate", "--workdir", str(workdir), "--step", str(arguments.steps), *lists]
                + ["--out", str(out)],
            ):
                subprocess.run([*pinned, *command], check=True, stdout=log, stderr=log)
    return json.loads(out.read_text())


def rank_at_1(metrics: dict) -> float:
    return (metrics["image_to_text"]["rank@1"] + metrics["text_to_image"]["rank@1"]) / 2


def table(found: dict[str, list[dict]]) -> list[str]:
    """A line for each variant: Rank@1 and AUC, the mean and the range over seeds, the difference to the first."""
    ranks = {name: np.array([rank_at_1(m) for m in runs]) for name, runs in found.items()}
    base = next(iter(ranks.values()))
    lines = ["| variant | Rank@1, both ways | over seeds | to the first | AUC |", "|---|---|---|---|---|"]
    for name, values in ranks.items():
        auc = np.mean([m["matching"]["auc"] for m in found[name]])
        spread = f"{values.min():.1%} to {values.max():.1%}" if len(values) > 1 else "one seed"
        difference = 100 * (values.mean() - base.mean())
        lines.append(f"| {name} | {values.mean():.1%} | {spread} | {difference:+.1f} | {auc:.3f} |")
    num_seeds = min(map(len, ranks.values()))
    if num_seeds > 1:
        deviation = math.sqrt(np.mean([values.var(ddof=1) for values in ranks.values()]))
        freedom = len(ranks) * (num_seeds - 1)
        quantiles = scipy.stats.t.ppf(0.975, freedom) + scipy.stats.t.ppf(0.8, freedom)
        smallest = 100 * quantiles * deviation * math.sqrt(2 / num_seeds)
        lines.append(f"\nsmallest difference that {num_seeds} seeds find in 80 % of such sweeps: {smallest:.1f} points")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", choices=SWEEPS)
    parser.add_argument("--towers", required=True, help="workdir of the towers that runs start from")
    parser.add_argument("--lists", required=True, help="candidate lists, JSONL")
    parser.add_argument("--out", required=True, help="folder for the runs")
    parser.add_argument("--config", default="configs/catalogue.py")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--queries", type=int, default=300, help="a direction")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on its share of the cores")
    parser.add_argument("settings", nargs="*", help="section.field=value, for all runs")
    arguments = parser.parse_intermixed_args()
    cores = len(os.sched_getaffinity(0))
    if not 1 <= arguments.jobs <= cores:
        parser.error(f"--jobs {arguments.jobs}: there are {cores} cores")
    variants = SWEEPS[arguments.sweep]
    for variant in variants.values():  # a wrong setting is found before the first run
        configs.load(arguments.config, overrides_of(variant, 0, arguments))
    shares = shares_of_cores(arguments.jobs)

    def measure(seed: int, name: str) -> dict:
        workdir = Path(arguments.out) / ("_".join(variants[name]) or "base") / f"seed{seed}"
        metrics = run(workdir, overrides_of(variants[name], seed, arguments), arguments, shares)
        print(f"{name}, seed {seed}: Rank@1 {rank_at_1(metrics):.1%}\n", end="", flush=True)  # one write, one line
        return metrics

    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = {(seed, name): pool.submit(measure, seed, name) for seed in range(arguments.seeds) for name in variants}
        try:
            found = {name: [runs[seed, name].result() for seed in range(arguments.seeds)] for name in variants}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
