"""All models on one catalogue at one budget of CPU time: FashionBERT, its rivals, and linear towers.

    python launch/rivals.py --minutes 16 --lists ../shared/data/catalogue/validation-101.jsonl --out runs/rivals

Each is a config, trained for as many steps as fit into the CPU minutes (of all cores together), which two short trials
measure; patch features and the evaluation are not counted. Checkpoints are those of the last step. All read the same
pictures by the same frozen network, a MobileNetV1. Encoders read 32 word pieces. SCAN and those that read pairs have 16
cells and the whole image, Kaleido-BERT 55 cells of five scales. FashionBERT, ViLBERT and VL-BERT are trained by
alignment and the towers' contrast, Kaleido-BERT by both beside its own tasks; the last two rows by their own tasks
alone. What is done already is not done again: another budget needs another --out.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from fbjax.evaluation.galleries.gallery import DIRECTIONS
from fbjax.runs.stored_evaluation import read_evaluation

FBJAX = [sys.executable, "-m", "fbjax"]
TRIALS = (10, 40)  # steps
WEIGHTS = "../shared/weights/mobilenet_v1_0.75_224.npz"
SAME_EYES = ("patches.network=mobilenet_v1", f"patches.weights={WEIGHTS}", "patches.levels=()")
SHORT = ("model.text_tokens=32", "model.text_bucket=32")
SMALL = (*SHORT, "patches.image_size=256", "patches.patch_size=64")  # 16 cells, beside the whole image
MANY, MATCH = "train.batch_size=64", "tasks.tia.head=cls+cosine"
JOINT = (*SMALL, MANY, "tasks=itc,tia", MATCH)
PICTURES = "rotation,jigsaw,camouflage,grey,blank"
MODELS = {  # config and settings
    "n-grams": ("catalogue", SAME_EYES),
    "VSE++": ("catalogue_vsepp", ()),
    "SCAN": ("catalogue_scan", (*SMALL, "patches.whole_image=true")),
    "PFAN": ("catalogue_scan", (*SMALL, "patches.whole_image=true", "tasks.scan.positions=true")),
    "FashionBERT's towers": ("catalogue_towers", ()),
    "FashionBERT": ("catalogue_vlbert", ("model.architecture=fashionbert", *JOINT)),
    "ViLBERT": ("catalogue_vilbert", JOINT),
    "VL-BERT": ("catalogue_vlbert", JOINT),
    "Kaleido-BERT": ("catalogue_kaleido", (*SHORT, MANY, f"tasks=itc,tia,mlm,{PICTURES}", MATCH)),
    "Kaleido-BERT by its own tasks": ("catalogue_kaleido", SHORT),
    "FashionBERT by mlm + mpm + tia": ("catalogue_vlbert", (*SMALL, "model.architecture=fashionbert")),
}


def cpu_seconds(command: list[str], log: Path) -> float:
    """Those of a command that must succeed; what it says goes to `log`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(log, "a") as file:
        subprocess.run(command, check=True, stdout=file, stderr=file)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def steps_within(seconds: float, name: str, out: Path) -> int:
    """How many steps cost so many seconds of CPU: by the difference of two trials, which start and compile alike."""
    cost = []
    for number in (TRIALS[0], *TRIALS):  # the first computes patch features
        workdir = out / f"trial-{number}"
        cost.append(cpu_seconds(training(name, workdir, number), out / "log"))
        shutil.rmtree(workdir)
    return max(1, round(seconds * (TRIALS[1] - TRIALS[0]) / max(cost[2] - cost[1], 1e-3)))


def training(name: str, workdir: Path, num_steps: int, seed: int = 0) -> list[str]:
    config, settings = MODELS[name]
    lengths = {"num_steps": num_steps, "save_every": num_steps, "warmup_steps": num_steps // 20, "seed": seed}
    settings = [*settings, *(f"train.{field}={value}" for field, value in lengths.items())]
    flags = [f"--config.{setting}" for setting in settings]
    return [*FBJAX, "train", "--config", f"configs/{config}.py", "--workdir", str(workdir), *flags]


def measured(name: str, seed: int, arguments) -> dict:
    """The row of a model and a seed, made unless it is there."""
    out = arguments.out / name.replace(" ", "-").replace("/", "-")
    row = out / f"seed{seed}.json"
    if row.is_file():
        return json.loads(row.read_text())
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "steps").is_file():
        (out / "steps").write_text(f"{steps_within(60 * arguments.minutes, name, out)}")
    num_steps, workdir = int((out / "steps").read_text()), out / f"seed{seed}"
    cpu = cpu_seconds(training(name, workdir, num_steps, seed), out / "log")
    asked = ["--candidates", arguments.lists, "--queries", str(arguments.queries), "--step", str(num_steps)]
    evaluated = cpu_seconds([*FBJAX, "evaluate", "--workdir", str(workdir), *asked], out / "log")
    figures = read_evaluation(workdir)["figures"]
    found = {"steps": num_steps, "cpu": cpu, "evaluation_cpu": evaluated}
    found |= {d: [figures[d]["rank@1"], *figures[d]["rank@1.ci"], figures[d]["rank@10"]] for d in DIRECTIONS}
    row.write_text(json.dumps(found | {"auc": figures["matching"]["auc"]}))
    return json.loads(row.read_text())


def line_of(name: str, seed: int, row: dict) -> str:
    cells = [f"{100 * r:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for r, low, high, _ in (row[d] for d in DIRECTIONS)]
    tens = " / ".join(f"{100 * row[d][3]:.1f}" for d in DIRECTIONS)
    costs = f"{row['steps']:,} | {row['cpu'] / 60:.1f} | {row['evaluation_cpu'] / 60:.1f}"
    return f"| {name} | {seed} | {' / '.join(cells)} | {tens} | {row['auc']:.3f} | {costs} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, required=True, help="of CPU, of all cores together, a training")
    parser.add_argument("--lists", required=True, help="candidate lists, JSONL")
    parser.add_argument("--queries", type=int, default=1000, help="a direction")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", help=f"comma-separated, of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else [*MODELS]
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"--only {', '.join(unknown)}: there are {', '.join(MODELS)}")
    print(
        "| model | seed | Rank@1, image to text / text to image | Rank@10 | AUC | steps | CPU minutes | of evaluation |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for seed in range(arguments.seeds):
        for name in names:
            print(line_of(name, seed, measured(name, seed, arguments)), flush=True)


if __name__ == "__main__":
    main()
