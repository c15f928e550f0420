"""Short runs that differ in one thing each, over several seeds, and the smallest difference they can detect.

    python launch/sweep.py tasks --towers runs/towers --lists validation-101.jsonl --out runs/sweep

Every run is `fbjax train` and `fbjax evaluate` of configs/catalogue.py for a few minutes. What is done already is not
done again, a run that was cut off goes on. The figure is Rank@1, the mean of both directions, on the lists' first
queries. A true difference as large as the last line says would be found at the 5 % level in 80 % of such sweeps, on
these queries and from these towers, one comparison at a time; a smaller one that is observed decides nothing.
"""

import argparse
import json
import math
import subprocess
from pathlib import Path

import numpy as np
import scipy.stats

from fbjax import config as configs

SAME = ("tasks.mined=0.0",)  # partners of the same sub-category throughout
SWEEPS = {  # the first variant of each is what the others are compared with
    "tasks": {
        "mlm+mpm+tia": SAME,
        "mpm+tia": (*SAME, "tasks.names=mpm,tia", "adaptive.fixed=0.2,0.8"),
        "mlm+tia": (*SAME, "tasks.names=mlm,tia", "adaptive.fixed=0.2,0.8"),
        "tia": (*SAME, "tasks.names=tia", "adaptive.fixed=1.0"),
        "mlm+mpm+tia+itc": (*SAME, "tasks.names=mlm,mpm,tia,itc", "adaptive.fixed=0.05,0.05,0.5,0.4"),
    },
    "weights": {
        "fixed .1 .1 .8": SAME,
        "fixed thirds": (*SAME, "adaptive.fixed=0.334,0.333,0.333"),
        "gradient": (*SAME, "adaptive.method=gradient"),
        "loss_softmax": (*SAME, "adaptive.method=loss_softmax"),
    },
    "negatives": {
        "same sub-category": SAME,
        "any, then same": (*SAME, "tasks.easy_start=1.0", "tasks.easy_end=0.0", "tasks.easy_steps=300"),
        "mined .2 from the start": ("tasks.mined=0.2", "tasks.mined_steps=0"),
        "mined .4 from the start": ("tasks.mined=0.4", "tasks.mined_steps=0"),
    },
    "start": {
        "towers, modalities": SAME,
        "towers, cls": (*SAME, "model.tia_reads=cls"),
        "minilm, modalities": (*SAME, "train.start_from="),
        "minilm, cls": (*SAME, "train.start_from=", "model.tia_reads=cls"),
    },
}


def overrides_of(variant: tuple[str, ...], seed: int, arguments) -> list[str]:
    given = (f"train.start_from={arguments.towers}", f"train.num_steps={arguments.steps}", *variant)
    return [*given, *arguments.settings, f"train.seed={seed}"]


def run(workdir: Path, overrides: list[str], arguments) -> dict:
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
        with open(workdir / "log", "a") as log:
            for command in (
                ["fbjax", "train", "--config", arguments.config, "--workdir", str(workdir), *flags],
                ["fbjax", "evaluate", "--workdir", str(workdir), "--step", str(arguments.steps), *lists]
                + ["--out", str(out)],
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
    parser.add_argument("settings", nargs="*", help="section.field=value, for all runs")
    arguments = parser.parse_args()
    variants = SWEEPS[arguments.sweep]
    for variant in variants.values():  # a wrong setting is found before the first run
        configs.load(arguments.config, overrides_of(variant, 0, arguments))
    found = {}
    for seed in range(arguments.seeds):
        for name, variant in variants.items():
            workdir = Path(arguments.out) / ("base" if variant == SAME else name.replace(" ", "_")) / f"seed{seed}"
            found.setdefault(name, []).append(run(workdir, overrides_of(variant, seed, arguments), arguments))
            print(f"{name}, seed {seed}: Rank@1 {rank_at_1(found[name][-1]):.1%}", flush=True)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
