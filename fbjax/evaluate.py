"""Evaluation of a checkpoint: what scores its pairs and gives its vectors, run through `fbjax.protocols`."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from fbjax import metrics
from fbjax.checkpoint import Checkpoints
from fbjax.console import duration, progress, say
from fbjax.data import pipeline
from fbjax.data.catalogue import Records, Source, prepare
from fbjax.data.sampling import Partners
from fbjax.features import image_inputs
from fbjax.gallery import full_figures
from fbjax.mesh import make_mesh
from fbjax.objectives.pretraining import Pretraining
from fbjax.protocols import OVER_LISTS, list_figures, read_request
from fbjax.scoring import Scorer, matcher
from fbjax.step import abstract_state, make_optimizer
from fbjax.towers import Towers
from fbjax.workdir import Run, note_time

EVALUATION = "evaluation.json"


def evaluate(
    workdir: str | Path,
    *,
    data: str | None = None,
    candidates: str | None = None,
    protocols: tuple[str, ...] = OVER_LISTS,
    num_queries: int | None = None,
    step: int | None = None,
    towers: str | Path | None = None,
    rerank: int = 0,
) -> dict:
    """The figures of a workdir's best checkpoint, or that of `step`, as ``metrics.json`` holds them.

    `data`: a table or glob (default: the run's validation split). `candidates`: lists (default: drawn from the data,
    seed 0). Protocol "full" takes vectors from the run's own towers, or those of the workdir `towers`, and with
    FashionBERT orders the `rerank` nearest anew. The workdir keeps figures over lists, with each query's ranking, until
    the next evaluation over lists (`read_evaluation`).
    """
    if rerank < 0:
        raise ValueError(f"--rerank {rerank}: take at least 0, which leaves it out")
    lists = read_request(protocols, candidates, num_queries)
    run = Run.open(workdir)
    mesh = make_mesh(run.config.mesh)
    giver = _vector_run(run, towers) if "full" in protocols else None
    step, params = load_params(run, workdir, mesh, step)
    variables = run.frozen | params
    source = Source.one_table(data, run.config) if data else Source.from_config(run.config)
    records = prepare(source, run.vocabulary, run.config.data.prepared, progress)["validation"]

    score = _PairScores(run, matcher(run.config, run.model, run.step_patches, mesh), variables, records)
    decides = "tia" in run.config.tasks.names
    figures, rankings = list_figures(records, protocols, lists, num_queries, score, decides)
    if giver is not None:
        theirs = variables if giver is run else giver.frozen | load_params(giver, towers, mesh)[1]
        towers_ = Towers(giver.model, giver.step_patches, mesh)
        figures["full"] = full_figures(
            *split_vectors(giver, towers_, theirs, records),
            records.groups,
            num_queries,
            size=rerank,
            score=score if decides else None,
            scale=towers_.scale(theirs),
        )
    figures["checkpoint_step"] = step
    if score.num_pairs:
        figures["pairs_per_second"] = score.num_pairs / score.seconds
        note_time(workdir, "evaluation", score.seconds)
    if rankings:
        sources = {name: path and os.path.abspath(path) for name, path in (("data", data), ("candidates", candidates))}
        _write(Path(workdir) / EVALUATION, sources | {"figures": figures, "rankings": rankings})
    return figures


def read_evaluation(workdir: str | Path) -> dict | None:
    """The last evaluation of a run over lists, or None: {"data", "candidates": their paths or None, "figures",
    "rankings": those of `fbjax.protocols.list_figures`}."""
    path = Path(workdir) / EVALUATION
    return json.loads(path.read_text()) if path.is_file() else None


def _write(path: Path, content: dict) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.rename(path)


def load_params(run: Run, workdir: str | Path, mesh, step: int | None = None) -> tuple[int, dict]:
    """(step, parameters) of a checkpoint: by default the best by validation AUC."""
    objective = Pretraining(run.model, run.step_patches, run.config.tasks, run.vocabulary.mask_id)
    shape = abstract_state(objective, make_optimizer(run.config.train), run.config, mesh)
    with Checkpoints(workdir) as checkpoints:
        there = checkpoints.steps()
        if step is None:
            step = checkpoints.best_step()
        if step not in there:
            known = f"there are {', '.join(map(str, there))}" if there else "there is none yet"
            wanted = "checkpoint" if step is None else f"checkpoint {step}"
            raise FileNotFoundError(f"no {wanted} in {workdir}: {known}")
        return step, checkpoints.restore_params(step, shape)


def newest_step(workdir: str | Path) -> int | None:
    """The step of the last checkpoint, None where there is none."""
    with Checkpoints(workdir) as checkpoints:
        return max(checkpoints.steps(), default=None)


def split_vectors(run: Run, towers: Towers, variables: Any, records: Records) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of all texts and of all images of a split, [N, E] each."""
    rows = np.arange(len(records))
    ids = pipeline.read_texts(records, rows, run.vocabulary, run.config.model.text_tokens)
    texts = towers.embed_texts(variables, ids, progress)
    inputs = image_inputs(run, records, rows, towers.batch_size)
    num_batches = -(-len(rows) // towers.batch_size)
    return texts, towers.embed_images(variables, progress(inputs, num_batches, "vectors of images"))


def _vector_run(run: Run, towers: str | Path | None) -> Run:
    """The run whose towers give vectors: that of the workdir `towers`, or `run` itself."""
    giver = Run.open_alike(towers, run) if towers else run
    if "itc" not in giver.config.tasks.names:
        remedy = "its tasks have no itc" if towers else "this run's tasks have no itc: give one that has with --towers"
        start = run.config.train.start_from
        hint = f", such as the run it started from, {start}" if start and not towers else ""
        raise ValueError(f"protocol full needs trained towers, and {remedy}{hint}")
    return giver


class ValidationSample:
    """A fixed sample of the validation split, scored during training: AUC of true against same-category pairs."""

    def __init__(self, run: Run, records: Records, scorer: Scorer | Towers, num_products: int):
        rng = np.random.default_rng(run.config.train.seed)
        rows = np.sort(rng.permutation(len(records))[:num_products])
        partners = Partners(records.categories, records.groups)
        others = partners.draw(rows, rng.random(len(rows)), np.zeros(len(rows), bool))
        self._scorer = scorer
        self._ids = pipeline.read_texts(records, rows, run.vocabulary, run.config.model.text_tokens)
        images = image_inputs(run, records, np.concatenate([rows, others]), scorer.batch_size)
        self._images = list(images)
        texts = np.arange(len(rows))
        self._pairs = np.concatenate([np.stack([texts, texts], 1), np.stack([texts, texts + len(rows)], 1)])

    def auc(self, variables: Any) -> float:
        embedded = self._scorer.embed_images(variables, self._images)
        scores = self._scorer.score(variables, self._ids, embedded, self._pairs)
        half = len(scores) // 2
        return metrics.auc(scores[:half], scores[half:])


class _PairScores:
    """Match scores of any pairs [N, 2] of rows (text, image) of `records`, and how many took how long so far."""

    def __init__(self, run: Run, scorer: Scorer | Towers, variables: Any, records: Records):
        self._run, self._scorer, self._variables, self._records = run, scorer, variables, records
        self.num_pairs, self.seconds = 0, 0.0  # embeddings included

    def __call__(self, pairs: np.ndarray) -> np.ndarray:
        run, scorer, variables = self._run, self._scorer, self._variables
        text_rows, text_places = np.unique(pairs[:, 0], return_inverse=True)
        image_rows, image_places = np.unique(pairs[:, 1], return_inverse=True)
        ids = pipeline.read_texts(self._records, text_rows, run.vocabulary, run.config.model.text_tokens)
        start = time.perf_counter()
        inputs = image_inputs(run, self._records, image_rows, scorer.batch_size)
        num_batches = -(-len(image_rows) // scorer.batch_size)
        images = scorer.embed_images(variables, progress(inputs, num_batches, "image embeddings"))
        embedding_seconds = time.perf_counter() - start
        placed = np.stack([text_places, image_places], axis=1)
        expected = scorer.expected_seconds(variables, ids, images, placed)
        say(f"{len(pairs):,} pairs of {len(ids):,} texts and {len(images):,} images: about {duration(expected)}")
        start = time.perf_counter()
        scores = scorer.score(variables, ids, images, placed, progress)
        self.num_pairs += len(pairs)
        self.seconds += embedding_seconds + time.perf_counter() - start
        return scores
