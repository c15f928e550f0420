"""The report of a run: one HTML page on its data, training, results and cost, for someone new to it."""

import dataclasses
import math
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fbjax.config.data import DataConfig
from fbjax.config.load import flat
from fbjax.config.schema import Config, ParameterGroup
from fbjax.core.console import say
from fbjax.core.paths import as_path
from fbjax.data.batches.split import SKIPPED, Split
from fbjax.evaluation.candidates import DIRECTIONS
from fbjax.evaluation.evaluate import evaluate
from fbjax.evaluation.protocols import NUM_OTHERS
from fbjax.inference.explain import can_explain, explain
from fbjax.inference.model import Model
from fbjax.monitoring.logger import read_curves
from fbjax.monitoring.telemetry import read_events
from fbjax.report import charts, costs
from fbjax.report.page import percent, write_page
from fbjax.report.sections import examples
from fbjax.report.sections.attributes import attributes
from fbjax.report.sections.augmented import augmented
from fbjax.report.sections.captions import captions
from fbjax.report.sections.explained import as_read, explained, weak
from fbjax.runs.loaded import newest_step
from fbjax.runs.run import Run
from fbjax.runs.stored_evaluation import read_evaluation

Curves = dict[str, tuple[np.ndarray, np.ndarray]]
SHOWN_RANKS = (1, 5, 10)
WEIGHTS = {
    "gradient": "Eq. 6 of the FashionBERT paper: weights from the size of each task's gradient, solved anew every "
    "{every}; the task that pulls hardest counts most",
    "estimate": "Eq. 6 of the FashionBERT paper, on the gradients at the encoder's output in place of the parameters'",
    "loss_softmax": "the rule of the paper authors' release: weights from the softmax of the losses",
    "fixed": "set once by the config",
}


def write_report(workdir: str | Path, out: str | Path | None = None, num_queries: int = 200) -> Path:
    """Writes the report of the run in `workdir` to `out` (default: report.html there); returns the path.

    Evaluates the best checkpoint if necessary, with `num_queries` queries in each direction.
    """
    workdir = as_path(workdir)
    model, newest = Model.load(workdir), newest_step(workdir)
    run, best = model.run, model.step
    splits = run.splits()
    evaluation, records = _evaluation(workdir, model, splits["validation"], num_queries)
    figures, rankings = evaluation["figures"], evaluation["rankings"]
    prepared = splits["train"].report()

    curves = read_curves(workdir)
    chosen = {d: examples.choose([r for r in rankings if r["direction"] == d]) for d in DIRECTIONS}
    chosen = {direction: kinds for direction, kinds in chosen.items() if kinds}
    shown = [r for kinds in chosen.values() for some in kinds.values() for r in some]
    products = examples.look_up(records, shown)

    say("explaining some of the scores")
    explanations, alignments = [], []
    aligns = any(task.aligns_words for task in run.model.tasks)
    explainable = examples.pairs_to_explain(chosen) if can_explain(run) else []
    for what, text, image in explainable:
        text, image = products[text].text, products[image].image
        explanation = explain(model, text, image, "occlusion")
        explanations.append(explained(what, text, as_read(model, image), explanation))
        if aligns:
            alignment = explain(model, text, image, "alignment")
            alignments.append(explained(what, text, as_read(model, image), alignment))

    return write_page(
        out or workdir / "report.html",
        "report.html",
        name=workdir.resolve().name,
        best=best,
        newest=newest,
        num_steps=run.config.train.num_steps,
        data=_data(splits, run.config.data),
        retrieval=_retrieval(evaluation),
        matching=figures.get("matching"),
        calibration=_calibration(figures.get("matching", {}).get("calibration")),
        scores_matches=run.scores_pairs,
        rule=examples.RULE,
        examples={
            direction.replace("_", " "): {
                kind: [examples.view(r, products) for r in some] for kind, some in kinds.items()
            }
            for direction, kinds in chosen.items()
        },
        explanations=explanations,
        alignments=alignments,
        attributes=attributes(workdir, model, splits["validation"]),
        augmented=augmented(run, splits["train"]),
        captions=captions(workdir, best, records),
        weak=weak(run.scores_pairs),
        seen_together=run.config.patches.geometry == "feature_map",
        panels=list(_panels(run, curves, best)),
        cost=costs.cost(run.config.train.batch_size, newest, read_events(workdir), prepared.get("seconds")),
        skipped={"reasons": prepared["skipped"], "file": splits["train"].home / SKIPPED},
        settings=list(_differing(run.config)),
        config=list(_shown(dataclasses.asdict(run.config)).items()),
        commands=_commands(workdir, products),
    )


def _evaluation(workdir: Path, model: Model, validation: Split, num_queries: int) -> tuple[dict, Split]:
    """The evaluation of the model's checkpoint, from the workdir or new, and the products that it is of."""
    evaluation = read_evaluation(workdir)
    if evaluation and evaluation["figures"]["checkpoint_step"] == model.step:
        records = model.records(evaluation["data"]) if evaluation["data"] else validation
        if evaluation.get("records_sha256") == records.digest:
            say(f"taking the evaluation of checkpoint {model.step} that {workdir} keeps")
            return evaluation, records
        say(f"the products have changed since the evaluation: {num_queries} queries a direction")
    else:
        say(f"checkpoint {model.step} has not been evaluated yet: {num_queries} queries a direction")
    evaluate(workdir, num_queries=num_queries)
    return read_evaluation(workdir), validation


def _retrieval(evaluation: dict) -> dict | None:
    """Rank@k of each direction with intervals and chance, and a chart; None if no direction was evaluated."""
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
        "data": ", ".join(data) if isinstance(data := evaluation["data"], list) else data,
        "digest": figures["candidates_sha256"][:12],
    }


def _calibration(found: dict | None) -> dict | None:
    """Errors of match scores as probabilities, and a chart of their bins; None where they were not measured."""
    if not found:
        return None
    before, after = found["raw"], found["calibrated"]
    bins = [np.array(errors["bins"])[:, :2] for errors in (before, after)]
    label = (
        f"Share of matches over the probability that the model gives: the calibration error is {before['ece']:.3f}, "
        f"and {after['ece']:.3f} with temperature {found['temperature']:.2f}"
    )
    return found | {"chart": charts.reliability(*bins, label)}


def _data(splits: dict[str, Split], config: DataConfig) -> dict:
    report = splits["train"].report()
    return {
        "num_products": sum(report["splits"].values()),
        "splits": report["splits"],
        "num_groups": sum(report["groups"].values()),
        "num_categories": len(set().union(*(records.category_names.tolist() for records in splits.values()))),
        "holdout": None if config.validation else config.holdout,
        "grouped": bool(config.columns.group),
    }


def _panels(run: Run, curves: Curves, best: int) -> Iterator[dict]:
    """Title, chart and description of each curve of the run."""
    config, last = run.config, {name: values[-1] for name, (_, values) in curves.items()}
    sizes = {"vocabulary_size": run.vocabulary.size, "batch_size": config.train.batch_size}
    sizes |= {"log_vocabulary": math.log(sizes["vocabulary_size"]), "log_batch": math.log(sizes["batch_size"])}
    for name, task in config.tasks.items():
        if f"{name}/loss" in curves:
            title, guide = task.about.title, task.about.guide
            label = f"{title}, loss over the steps, at the end {last[f'{name}/loss']:.2f}"
            chart = charts.curve(*curves[f"{name}/loss"], label, guide and (guide, "guessing"))
            reading = f"{task.about.reading.format(**sizes)} {task.note(last)}".strip()
            yield {"title": title, "chart": chart, "reading": reading}
    if steps_and_auc := curves.get("validation/auc"):
        reading = (
            f"How often a true pair scores above a mismatched one of the same category, on "
            f"{config.train.evaluate_products:,} validation products or all there are; .5 is guessing. The marked "
            "step is the checkpoint of this report."
        )
        chart = charts.points(*steps_and_auc, best, "Validation AUC over the steps", (0.5, "guessing"))
        yield {"title": "Validation AUC", "chart": chart, "reading": reading}
    if weights := {task: curves[f"{task}/weight"] for task in config.tasks if f"{task}/weight" in curves}:
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


def _shown(values: dict) -> dict[str, str]:
    """Formatted settings by their dotted names."""

    def say(value) -> str:
        parts = value if isinstance(value, list) else [value]
        return ", ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts)

    return {name: say(value) for name, value in flat(values).items()}


def _differing(config: Config) -> Iterator[tuple[str, str, str]]:
    """(setting, value, default) of every changed setting."""
    tasks = {name: type(task)() for name, task in config.tasks.items()}
    groups = {name: ParameterGroup() for name in config.groups}
    values, defaults = (_shown(dataclasses.asdict(c)) for c in (config, Config(tasks=tasks, groups=groups)))
    yield from ((name, value, defaults[name]) for name, value in values.items() if value != defaults[name])


def _commands(workdir: Path, products: dict) -> dict[str, list[tuple[str, str]]]:
    """(purpose, command) for next steps with this run and with the user's table."""
    text = " ".join(next(iter(products.values())).text.split()[:6]) if products else "red cotton dress"
    here = shlex.quote(str(workdir))
    rank = f"fbjax rank --workdir {here} --text {shlex.quote(text)} --html ranking.html"
    return {
        "More about this run": [
            ("the best products for a text", rank),
            ("the figures again, with more queries", f"fbjax evaluate --workdir {here} --queries 1000"),
            ("this page again", f"fbjax report --workdir {here}"),
        ],
        "The same with your products": [
            ("check a table", "fbjax prepare --check products.csv"),
            (
                "train; the same command resumes a run that was killed",
                "fbjax train --config my_catalogue --workdir runs/mine --config.data.train=products.csv",
            ),
            ("figures", "fbjax evaluate --workdir runs/mine"),
            ("a page like this", "fbjax report --workdir runs/mine"),
        ],
    }
