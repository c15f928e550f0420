"""Evaluation of a checkpoint: what scores its pairs and gives its vectors, run through `fbjax.evaluation.protocols`."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from fbjax.config.load import absolute
from fbjax.core.console import duration, progress, say
from fbjax.data.batches import pipeline
from fbjax.data.records.builder import Records, build_records
from fbjax.data.records.source import Source
from fbjax.evaluation.gallery import full_figures
from fbjax.evaluation.protocols import OVER_LISTS, list_figures, read_request
from fbjax.inference.embed_catalogue import split_vectors
from fbjax.inference.embedder import Embedder
from fbjax.inference.pair_scorer import PairScorer, make_scorer
from fbjax.monitoring.telemetry import log_event
from fbjax.parallel.mesh import make_mesh
from fbjax.runs.feature_cache import image_inputs
from fbjax.runs.run import Run
from fbjax.runs.stored_evaluation import write_evaluation
from fbjax.runs.trained import load_params, newest_step

RERANKED = 20  # of the nearest, where FashionBERT can


def evaluate(
    workdir: str | Path,
    *,
    data: str | None = None,
    candidates: str | None = None,
    protocols: tuple[str, ...] = OVER_LISTS,
    num_queries: int | None = None,
    step: int | None = None,
    towers: str | Path | None = None,
    rerank: int | None = None,
) -> dict:
    """The figures of a workdir's best checkpoint, or that of `step`, as ``metrics.json`` holds them.

    `data`: a table or glob (default: the run's validation split). `candidates`: lists (default: drawn from the data,
    seed 0). Protocol "full" takes vectors from the run's own towers, or those of the last checkpoint in the workdir
    `towers`, and with FashionBERT orders the `rerank` nearest anew (default: 20). The workdir keeps figures over
    lists, with each query's ranking, until the next evaluation over lists (`fbjax.runs.stored_evaluation`).
    """
    lists = read_request(protocols, candidates, num_queries)
    run = Run.open(workdir)
    scores_matches = "tia" in run.config.tasks.names
    _check_gallery(protocols, towers, rerank, scores_matches)
    mesh = make_mesh(run.config.mesh)
    giver = _vector_run(run, towers) if "full" in protocols else None
    step, params = load_params(run, workdir, mesh, step)
    variables = run.frozen | params
    their_step, theirs = step, params
    if giver is not None and giver is not run:
        their_step, theirs = load_params(giver, towers, mesh, newest_step(towers))
    source = Source.one_table(data, run.config) if data else Source.from_config(run.config)
    records = build_records(source, run.vocabulary, run.config.data.prepared, progress)["validation"]

    score = _PairScores(run, make_scorer(run.config, run.model, run.feature_input, mesh), variables, records)
    figures, rankings = list_figures(records, protocols, lists, num_queries, score, scores_matches)
    figures["checkpoint_step"] = step
    if rankings:
        sources = {name: path and absolute(path) for name, path in (("data", data), ("candidates", candidates))}
        write_evaluation(workdir, sources | {"figures": figures, "rankings": rankings})
    if giver is not None:
        theirs = giver.frozen | theirs
        embedder = Embedder(giver.model, giver.feature_input, mesh)
        figures["full"] = {"towers": os.path.abspath(towers or workdir), "towers_step": their_step} | full_figures(
            *split_vectors(giver, embedder, theirs, records),
            records.groups,
            num_queries,
            text_codes=pipeline.text_codes(records),
            size=RERANKED if rerank is None else rerank,
            score=score if scores_matches else None,
            scale=embedder.scale(theirs),
        )
    if score.num_pairs:
        figures["pairs_per_second"] = score.num_pairs / score.seconds
        log_event(workdir, "evaluation", score.seconds)
    return figures


def _check_gallery(protocols: tuple[str, ...], towers, rerank: int | None, scores_matches: bool) -> None:
    """Raises ValueError where what is asked of the gallery would go unheard."""
    if "full" not in protocols and (towers or rerank is not None):
        raise ValueError("--towers and --rerank are for the whole gallery: add full to --protocol")
    if rerank is not None and rerank < 0:
        raise ValueError(f"--rerank {rerank}: take at least 0, which leaves it out")
    if rerank and not scores_matches:
        raise ValueError(f"--rerank {rerank} needs a run that learns alignment: its tasks have no tia")


def _vector_run(run: Run, towers: str | Path | None) -> Run:
    """The run whose towers give vectors: that of the workdir `towers`, or `run` itself."""
    giver = Run.open_alike(towers, run) if towers else run
    if "itc" not in giver.config.tasks.names:
        remedy = "its tasks have no itc" if towers else "this run's tasks have no itc: give one that has with --towers"
        start = run.config.train.start_from
        hint = f", such as the run it started from, {start}" if start and not towers else ""
        raise ValueError(f"protocol full needs trained towers, and {remedy}{hint}")
    return giver


class _PairScores:
    """Match scores of any pairs [N, 2] of rows (text, image) of `records`, and how many took how long so far."""

    def __init__(self, run: Run, scorer: PairScorer | Embedder, variables: Any, records: Records):
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
