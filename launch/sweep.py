"""Short runs that differ in one thing each, over several seeds, and the smallest difference they can detect.

    python launch/sweep.py tasks --towers runs/towers --lists validation-101.jsonl --out runs/sweep

Every run is `fbjax train` and `fbjax evaluate` of configs/catalogue.py for a few minutes. What is done already is not
done again, a run that was cut off goes on. The figure is Rank@1, the mean of both directions, on the lists' first
queries; two variants differ by less than the last line says, at 5 % and a power of 80 %, if they differ at all.
"""

import argparse
import json
import math
import subprocess
from pathlib import Path

import numpy as np

SWEEPS = {  # the first variant of each is what the others are compared with
    "tasks": {
        "mlm+mpm+tia": (),
        "mpm+tia": ("tasks.names=mpm,tia", "adaptive.fixed=0.2,0.8"),
        "mlm+tia": ("tasks.names=mlm,tia", "adaptive.fixed=0.2,0.8"),
        "tia": ("tasks.names=tia", "adaptive.fixed=1.0"),
        "mlm+mpm+tia+itc": ("tasks.names=mlm,mpm,tia,itc", "adaptive.fixed=0.05,0.05,0.5,0.4"),
    },
    "weights": {
        "fixed .1 .1 .8": (),
        "fixed thirds": ("adaptive.fixed=0.334,0.333,0.333",),
        "gradient": ("adaptive.method=gradient",),
        "loss_softmax": ("adaptive.method=loss_softmax",),
    },
    "negatives": {
        "same sub-category": (),
        "any, then same": ("tasks.easy_start=1.0", "tasks.easy_end=0.0", "tasks.easy_steps=300"),
        "mined .25": ("tasks.mined=0.25",),
        "mined .5": ("tasks.mined=0.5",),
    },
    "start": {
        "towers, modalities": (),
        "towers, cls": ("model.tia_reads=cls",),
        "minilm, modalities": ("train.start_from=",),
        "minilm, cls": ("train.start_from=", "model.tia_reads=cls"),
    },
}


def run(workdir: Path, overrides: tuple[str, ...], seed: int, arguments) -> dict:
    """The metrics of one run, made unless they are there."""
    out = workdir / "metrics.json"
    if not out.is_file():
        workdir.mkdir(parents=True, exist_ok=True)
        settings = (f"train.start_from={arguments.towers}", f"train.num_steps={arguments.steps}", *overrides)
        flags = [f"--config.{setting}" for setting in (*settings, *arguments.settings, f"train.seed={seed}")]
        evaluate = ["--step", str(arguments.steps), "--candidates", arguments.lists]
        evaluate += ["--queries", str(arguments.queries)]
        with open(workdir / "log", "a") as log:
            for command in (
                ["fbjax", "train", "--config", arguments.config, "--workdir", str(workdir), *flags],
                ["fbjax", "evaluate", "--workdir", str(workdir), *evaluate, "--out", str(out)],
            ):
                subprocess.run(command, check=True, stdout=log, stderr=log)
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
        smallest = 100 * 2.8 * deviation * math.sqrt(2 / num_seeds)
        lines.append(f"\nsmallest detectable difference with {num_seeds} seeds: {smallest:.1f} points")
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
    parser.add_argument("settings", nargs="*", help="section.field=value, for all runs")
    arguments = parser.parse_args()
    found = {}
    for seed in range(arguments.seeds):
        for name, overrides in SWEEPS[arguments.sweep].items():
            workdir = Path(arguments.out) / (name.replace(" ", "_") if overrides else "base") / f"seed{seed}"
            found.setdefault(name, []).append(run(workdir, overrides, seed, arguments))
            print(f"{name}, seed {seed}: Rank@1 {rank_at_1(found[name][-1]):.1%}", flush=True)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
