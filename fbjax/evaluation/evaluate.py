"""Evaluation of a checkpoint by the protocols of `fbjax.evaluation.protocols`."""

import os
import time
from pathlib import Path

import numpy as np

from fbjax.config.load import absolute
from fbjax.core.console import duration, progress, say
from fbjax.data.batches.split import Split
from fbjax.evaluation.gallery import full_figures
from fbjax.evaluation.protocols import OVER_LISTS, list_figures, read_request
from fbjax.inference.embed_catalogue import embed_records
from fbjax.inference.embedder import make_embedder
from fbjax.inference.pair_scorer import make_scorer
from fbjax.monitoring.telemetry import log_event
from fbjax.runs.feature_cache import image_inputs, text_inputs
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.stored_evaluation import write_evaluation

RERANKED = 20  # of the nearest, if the run scores pairs


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
    """The figures of a workdir's best checkpoint, or that of `step`, in the form of ``metrics.json``.

    `data`: a table or glob (default: the run's validation split). `candidates`: lists (default: drawn from the data,
    seed 0). Protocol "full" uses the run's towers, or those of the last checkpoint in the workdir `towers`; if the run
    scores pairs, it re-ranks the `rerank` nearest (default: 20). The workdir stores figures and rankings over lists
    until the next evaluation over lists (`fbjax.runs.stored_evaluation`).
    """
    lists = read_request(protocols, candidates, num_queries)
    _check_gallery(protocols, towers, rerank)
    loaded = LoadedRun.load(workdir, step)
    scores_matches = loaded.run.scores_pairs
    if rerank and not scores_matches:
        raise ValueError(f"--rerank {rerank} needs a run that learns alignment: its tasks have no tia")
    giver = _vector_run(loaded, towers) if "full" in protocols else None
    records = loaded.records(data)

    score = _PairScores(loaded, records)
    figures, rankings = list_figures(records, protocols, lists, num_queries, score, scores_matches)
    figures["checkpoint_step"] = loaded.step
    if rankings:
        sources = {name: path and absolute(path) for name, path in (("data", data), ("candidates", candidates))}
        write_evaluation(workdir, sources | {"figures": figures, "rankings": rankings})
    if giver is not None:
        embedder = make_embedder(giver.run, giver.mesh)
        figures["full"] = {"towers": os.path.abspath(towers or workdir), "towers_step": giver.step} | full_figures(
            *(embed_records(giver, embedder, records, what) for what in ("text", "image")),
            records.groups,
            num_queries,
            text_codes=records.text_codes(),
            size=RERANKED if rerank is None else rerank,
            score=score if scores_matches else None,
            scale=embedder.scale(giver.variables),
        )
    if score.num_pairs:
        figures["pairs_per_second"] = score.num_pairs / score.seconds
        log_event(workdir, "evaluation", score.seconds)
    return figures


def _check_gallery(protocols: tuple[str, ...], towers, rerank: int | None) -> None:
    """Raises ValueError if a flag would have no effect, or is negative."""
    if "full" not in protocols and (towers or rerank is not None):
        raise ValueError("--towers and --rerank are for the whole gallery: add full to --protocol")
    if rerank is not None and rerank < 0:
        raise ValueError(f"--rerank {rerank}: take at least 0, which leaves it out")


def _vector_run(loaded: LoadedRun, towers: str | Path | None) -> LoadedRun:
    """The run whose towers give vectors: the one in the workdir `towers`, or `loaded`."""
    giver = LoadedRun.newest(towers, loaded.run, loaded.mesh) if towers else loaded
    if not giver.run.has_embedder:
        remedy = "its tasks have no itc" if towers else "this run's tasks have no itc: give one that has with --towers"
        start = loaded.run.config.train.start_from
        hint = f", such as the run it started from, {start}" if start and not towers else ""
        raise ValueError(f"protocol full needs trained towers, and {remedy}{hint}")
    return giver


class _PairScores:
    """Match scores of pairs [N, 2] of rows (text, image) of `records`. Counts pairs and seconds."""

    def __init__(self, loaded: LoadedRun, records: Split):
        self._run, self._variables, self._records = loaded.run, loaded.variables, records
        self._scorer = make_scorer(loaded.run, loaded.mesh)
        self.num_pairs, self.seconds = 0, 0.0  # embeddings included

    def __call__(self, pairs: np.ndarray) -> np.ndarray:
        run, scorer, variables = self._run, self._scorer, self._variables
        text_rows, text_places = np.unique(pairs[:, 0], return_inverse=True)
        image_rows, image_places = np.unique(pairs[:, 1], return_inverse=True)
        ids = text_inputs(run, self._records, text_rows)
        start = time.perf_counter()
        inputs = image_inputs(run, self._records, image_rows, scorer.batch_size, "image embeddings")
        images = scorer.embed_images(variables, inputs)
        self.seconds += time.perf_counter() - start
        placed = np.stack([text_places, image_places], axis=1)
        expected = scorer.expected_seconds(variables, ids, images, placed)
        say(f"{len(pairs):,} pairs of {len(ids):,} texts and {len(images):,} images: about {duration(expected)}")
        start = time.perf_counter()
        scores = scorer.score(variables, ids, images, placed, progress)
        self.num_pairs += len(pairs)
        self.seconds += time.perf_counter() - start
        return scores
