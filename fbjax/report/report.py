"""The report of a run: one HTML page of what it learned, how, on what and at what cost, for someone new to it."""

import dataclasses
import math
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fbjax.config.schema import Config
from fbjax.core.console import progress, say
from fbjax.core.paths import as_path
from fbjax.data.records.builder import SKIPPED, Records, build_records, read_report
from fbjax.data.records.source import Source
from fbjax.evaluation.candidates import DIRECTIONS
from fbjax.evaluation.evaluate import evaluate
from fbjax.evaluation.protocols import NUM_OTHERS
from fbjax.inference.explain import explain
from fbjax.inference.model import Model
from fbjax.monitoring.logger import read_curves
from fbjax.monitoring.telemetry import read_events
from fbjax.report import charts, costs, examples
from fbjax.report.page import percent, write_page
from fbjax.runs.checkpoints import Checkpoints
from fbjax.runs.run import Run
from fbjax.runs.stored_evaluation import read_evaluation

Curves = dict[str, tuple[np.ndarray, np.ndarray]]
SHOWN_RANKS = (1, 5, 10)
GUESSING = math.log(2)  # tia's loss when both answers look alike
WEIGHTS = {
    "gradient": "Eq. 6 of the FashionBERT paper: weights from the size of each task's gradient, solved anew every "
    "{every}; the task that pulls hardest counts most",
    "estimate": "Eq. 6 of the FashionBERT paper, on the gradients at the encoder's output in place of the parameters'",
    "loss_softmax": "the rule of the paper authors' release: weights from the softmax of the losses",
    "fixed": "set once by the config",
}


def write_report(workdir: str | Path, out: str | Path | None = None, num_queries: int = 200) -> Path:
    """Writes the report of the run in `workdir` to `out` (default: report.html in it); the file's path.

    A best checkpoint that has not been evaluated is evaluated first, with `num_queries` queries a direction.
    """
    workdir = as_path(workdir)
    run = Run.open(workdir)
    with Checkpoints(workdir) as checkpoints:
        newest, best = max(checkpoints.steps(), default=None), checkpoints.best_step()
    if best is None:
        raise FileNotFoundError(f"no checkpoint in {workdir}: there is nothing to report yet (fbjax train goes on)")
    evaluation = _evaluation(workdir, best, num_queries)
    figures, rankings = evaluation["figures"], evaluation["rankings"]

    splits = build_records(Source.from_config(run.config), run.vocabulary, run.config.data.prepared, progress)
    records, prepared = splits["validation"], read_report(splits["train"])
    if evaluation["data"]:
        source = Source.one_table(evaluation["data"], run.config)
        records = build_records(source, run.vocabulary, run.config.data.prepared, progress)["validation"]

    curves = read_curves(workdir)
    chosen = {d: examples.choose([r for r in rankings if r["direction"] == d]) for d in DIRECTIONS}
    chosen = {direction: kinds for direction, kinds in chosen.items() if kinds}
    shown = [r for kinds in chosen.values() for some in kinds.values() for r in some]
    products = examples.look_up(records, shown)

    say("explaining some of the scores")
    model = Model.load(workdir, best)
    explanations = []
    explainable = [] if run.config.patches.ready_made else examples.pairs_to_explain(chosen)
    for what, text, image in explainable:
        text, image = products[text].text, products[image].image
        explanations.append(examples.explained(what, text, image, explain(model, text, image)))

    return write_page(
        out or workdir / "report.html",
        "report.html",
        name=workdir.resolve().name,
        best=best,
        newest=newest,
        num_steps=run.config.train.num_steps,
        data=_data(splits, run.config),
        retrieval=_retrieval(evaluation),
        matching=figures.get("matching"),
        scores_matches="tia" in run.config.tasks.names,
        rule=examples.RULE,
        examples={
            direction.replace("_", " "): {
                kind: [examples.view(r, products) for r in some] for kind, some in kinds.items()
            }
            for direction, kinds in chosen.items()
        },
        explanations=explanations,
        weak=examples.WEAK,
        seen_together=run.config.patches.geometry == "feature_map",
        panels=list(_panels(run, curves, best)),
        cost=costs.cost(run.config, newest, read_events(workdir), prepared.get("seconds")),
        skipped={"reasons": prepared["skipped"], "file": splits["train"].home / SKIPPED},
        settings=list(_differing(dataclasses.asdict(run.config), dataclasses.asdict(Config()))),
        config=list(_flat(dataclasses.asdict(run.config))),
        commands=_commands(workdir, products),
    )


def _evaluation(workdir: Path, best: int, num_queries: int) -> dict:
    """The evaluation of the best checkpoint: the one that the workdir keeps, or a new one."""
    evaluation = read_evaluation(workdir)
    if evaluation and evaluation["figures"]["checkpoint_step"] == best:
        say(f"taking the evaluation of checkpoint {best} that {workdir} keeps")
        return evaluation
    say(f"checkpoint {best} has not been evaluated yet: {num_queries} queries a direction")
    evaluate(workdir, num_queries=num_queries)
    return read_evaluation(workdir)


def _retrieval(evaluation: dict) -> dict | None:
    """Rank@k of each direction with intervals and chance, and their chart; None where no direction was evaluated."""
    figures = evaluation["figures"]
    directions = [direction for direction in DIRECTIONS if direction in figures]
    if not directions:
        return None
    rows = {
        direction.replace("_", " "): [
            (figures[direction][f"rank@{k}"], *figures[direction][f"rank@{k}.ci"]) for k in SHOWN_RANKS
        ]
        for direction in directions
    }
    lengths = np.array([r["candidates"] for r in evaluation["rankings"]])
    chance = [float(np.minimum(k / lengths, 1).mean()) for k in SHOWN_RANKS]
    names = [f"Rank@{k}" for k in SHOWN_RANKS]
    spoken = "; ".join(
        f"{name} {', '.join(percent(value) for value, *_ in cells)}, chance {', '.join(map(percent, chance))}"
        for name, cells in rows.items()
    )
    return {
        "names": names,
        "rows": rows,
        "chance": chance,
        "chart": charts.ranks(names, rows, chance, f"Rank@1, 5 and 10: {spoken}"),
        "num_queries": figures["num_queries"],
        "candidates": figures["candidates_per_list"],
        "full": NUM_OTHERS + 1,
        "drawn": evaluation["candidates"] is None,
        "data": evaluation["data"],
        "digest": figures["candidates_sha256"][:12],
    }


def _data(splits: dict[str, Records], config: Config) -> dict:
    report = read_report(splits["train"])
    return {
        "num_products": sum(report["splits"].values()),
        "splits": report["splits"],
        "num_groups": sum(report["groups"].values()),
        "num_categories": len(set().union(*(records.category_names.tolist() for records in splits.values()))),
        "holdout": None if config.data.validation else config.data.holdout,
        "grouped": bool(config.data.columns.group),
    }


def _panels(run: Run, curves: Curves, best: int) -> Iterator[dict]:
    """Title, chart and how to read it, for each curve that the run has written."""
    config, last = run.config, {name: values[-1] for name, (_, values) in curves.items()}
    size = run.vocabulary.size
    readings = {
        "mlm": (
            "Hidden words (mlm)",
            "Cross-entropy of words that were hidden from the model. Blind guesses among the vocabulary's "
            f"{size:,} pieces would cost {math.log(size):.1f}. It should fall steeply, then flatten.",
        ),
        "mpm": (
            "Hidden image patches (mpm)",
            "Distance (KL divergence) between a hidden patch's features and the model's guess; 0 would be a perfect "
            "guess. It should fall and settle.",
        ),
        "tia": (
            "Text-image alignment (tia)",
            "Loss of the question whether text and picture belong together; .693 is guessing. A plateau there at the "
            "start is normal, a run that never leaves it has learned no matching." + _told_apart(last) + _easy(config),
        ),
        "itc": (
            "Contrast of the two towers (itc)",
            "Cross-entropy of each text's own picture among those of its batch, and the other way round; guessing "
            f"among {config.train.batch_size:,} products would cost {math.log(config.train.batch_size):.1f}.",
        ),
    }
    for task, (title, reading) in readings.items():
        if f"{task}/loss" in curves:
            guide = (GUESSING, "guessing") if task == "tia" else None
            label = f"{title}, loss over the steps, at the end {last[f'{task}/loss']:.2f}"
            yield {"title": title, "chart": charts.curve(*curves[f"{task}/loss"], label, guide), "reading": reading}
    if steps_and_auc := curves.get("validation/auc"):
        reading = (
            f"How often a true pair scores above a mismatched one of the same category, on "
            f"{config.train.evaluate_products:,} validation products or all there are; .5 is guessing. The marked "
            "step is the checkpoint of this report."
        )
        chart = charts.points(*steps_and_auc, best, "Validation AUC over the steps", (0.5, "guessing"))
        yield {"title": "Validation AUC", "chart": chart, "reading": reading}
    if weights := {task: curves[f"{task}/weight"] for task in config.tasks.names if f"{task}/weight" in curves}:
        method = config.adaptive.method
        every = f"{config.adaptive.every} steps" if config.adaptive.every > 1 else "step"
        reading = f"What each task's loss counts. adaptive.method is {method!r}: {WEIGHTS[method].format(every=every)}."
        chart = charts.curves(weights, "Task weights over the steps", top=1.0)
        yield {"title": "Task weights", "chart": chart, "reading": reading}
    if rate := curves.get("learning_rate"):
        peak, warmup = config.train.learning_rate, config.train.warmup_steps
        reading = f"Rises to {peak:g} over {warmup:,} steps, then falls to 0 at the last of {config.train.num_steps:,}."
        chart = charts.curve(rate[0], rate[1] * 1e4, "Learning rate over the steps, in ten-thousandths", noisy=False)
        yield {"title": "Learning rate (in 1/10,000)", "chart": chart, "reading": reading}


def _told_apart(last: dict) -> str:
    share = last.get("tia_accuracy")
    return f" At the end {percent(share)} of the training's pairs were told right." if share is not None else ""


def _easy(config: Config) -> str:
    tasks = config.tasks
    if not tasks.random_negatives_steps or tasks.random_negatives_start <= tasks.random_negatives_end:
        return ""
    return f" Mismatched pairs grow harder until step {tasks.random_negatives_steps:,}."


def _flat(values: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            listed = value if isinstance(value, list | tuple) else [value]
            yield prefix + name, ", ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in listed)


def _differing(values: dict, defaults: dict) -> Iterator[tuple[str, str, str]]:
    """(setting, value, default) where the two differ."""
    for (name, value), (_, default) in zip(_flat(values), _flat(defaults), strict=True):
        if value != default:
            yield name, value, default


def _commands(workdir: Path, products: dict) -> dict[str, list[tuple[str, str]]]:
    """Commands to go on with: about this run, and with a table of one's own."""
    text = " ".join(next(iter(products.values())).text.split()[:6]) if products else "red cotton dress"
    here = shlex.quote(str(workdir))
    return {
        "Ask this run": [
            (
                "the best products for a text",
                f"fbjax rank --workdir {here} --text {shlex.quote(text)} --html ranking.html",
            ),
            ("the figures again, with more queries", f"fbjax evaluate --workdir {here} --queries 1000"),
            ("this page again", f"fbjax report --workdir {here}"),
        ],
        "The same with your products": [
            ("what fbjax understands of a table", "fbjax prepare --check products.csv"),
            (
                "train; the same command goes on after a kill",
                "fbjax train --config configs/my_catalogue.py --workdir runs/mine --config.data.train=products.csv",
            ),
            ("figures", "fbjax evaluate --workdir runs/mine"),
            ("a page like this", "fbjax report --workdir runs/mine"),
        ],
    }
