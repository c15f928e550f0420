"""Evaluation on a prediction file of the authors' release: its own pairs, by the correct metric and, beside it, by the
release's miscount over the rows in their own order.

Every row is scored as it is read; a query's rows are its candidate list. Owns grouping and figures; knows a file only
as pairs (`fbjax.data.sources.release_features`).
"""

import dataclasses
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fbjax.core.console import progress
from fbjax.data.sources.release_features import PREDICTION, Pair, Reader
from fbjax.data.sources.tables import Skipped
from fbjax.evaluation import legacy, metrics
from fbjax.evaluation.candidates import DIRECTIONS
from fbjax.inference.pair_scorer import make_scorer
from fbjax.parallel.mesh import make_mesh
from fbjax.runs.run import Run
from fbjax.runs.trained import load_params

CHUNK = 256  # pairs in memory: 128 MiB of the release's features
SHOWN = 5  # skipped rows that are named


@dataclasses.dataclass(frozen=True)
class Scored:
    """The rows of a file in its order, N of them: what it counts figures from."""

    direction: str
    queries: tuple[str, ...]
    positive: np.ndarray  # bool [N]
    scores: np.ndarray  # float32 [N]


def evaluate_release(
    workdir: str | Path,
    file: str | Path,
    say: Callable[[str], None],
    *,
    direction: str | None = None,
    step: int | None = None,
) -> dict:
    """The figures of a workdir's best checkpoint, or that of `step`, on a prediction file of the release.

    ``{direction: {"rank@1": ..}, "matching": {..}, "legacy": {direction: ..}, "num_queries", "candidates_per_list",
    "skipped": {reason: count}, "checkpoint_step", "pairs_per_second"}``. `direction` None: by which of the two ids
    stays as it is from row to row.
    Raises ValueError before the work where file and run do not fit, and where no row can be used.
    """
    run = Run.open(workdir)
    reader = Reader(run.vocabulary, run.patches.num_patches, run.patches.feature_size)
    _check_fit(run, reader, file)
    mesh = make_mesh(run.config.mesh)
    step, params = load_params(run, workdir, mesh, step)
    scorer = make_scorer(run.config, run.model, run.patches.precomputed(), mesh)
    begin, skipped = time.perf_counter(), []
    pairs = progress(_usable(reader, file, skipped), None, f"pairs of {Path(file).name}")
    names, positive, scores = [], [], []
    while some := list(itertools.islice(pairs, CHUNK)):
        names += [(pair.text_id, pair.image_id) for pair in some]
        positive += [pair.matched for pair in some]
        scores.append(_score(run, scorer, run.frozen | params, some))
    seconds = time.perf_counter() - begin
    for line in skipped[:SHOWN]:
        say(f"skipped: {line.where}: {line.reason}")
    if not names:
        raise ValueError(
            f"nothing usable in {file}: " + ", ".join(f"{n} {why}" for why, n in _reasons(skipped).items())
        )
    direction = direction or _direction(names, file)
    queries = tuple(image if direction == "image_to_text" else text for text, image in names)
    scored = Scored(direction, queries, np.array(positive), np.concatenate(scores))
    return release_figures(scored, "tia" in run.config.tasks.names) | {
        "skipped": _reasons(skipped),
        "checkpoint_step": step,
        "pairs_per_second": len(queries) / seconds,
    }


def release_figures(scored: Scored, scores_matches: bool) -> dict:
    """Rank@k of each query's true row among its mismatched ones, ties against us, and matching over the same lists.

    A query of several true rows counts once for each. One without a true or without a mismatched row is left out and
    counted. `scores_matches`: whether a score above 0 says "match".
    """
    positives, lists, left_out = [], [], 0
    _, places = np.unique(scored.queries, return_inverse=True)
    order = np.argsort(places, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(places[order])) + 1):
        true, others = (scored.scores[rows[scored.positive[rows] == matched]] for matched in (True, False))
        if len(true) and len(others):
            positives.extend(true)
            lists.extend([others] * len(true))
        else:
            left_out += 1
    if not lists:
        raise ValueError(f"none of {left_out} queries has both a true and a mismatched row: is --direction the other?")
    positive = np.array(positives)
    padded = np.array([np.pad(x, (0, max(map(len, lists)) - len(x)), constant_values=-np.inf) for x in lists])
    matching = metrics.matching(positive, padded[:, 0], scores_matches)
    if scores_matches:
        matching["accuracy_rows"] = float(((scored.scores > 0) == scored.positive).mean())
    return {
        scored.direction: metrics.retrieval(positive, padded),
        "matching": matching,
        "legacy": {scored.direction: legacy.legacy_figures(scored.queries, scored.positive, scored.scores)},
        "num_queries": len(lists),
        "queries_left_out": left_out,
        "candidates_per_list": float(np.mean([1 + len(x) for x in lists])),
    }


def print_figures(figures: dict, say: Callable[[str], None]) -> None:
    """The figures as a person reads them."""
    for direction in DIRECTIONS:
        if direction in figures:
            say(f"{direction.replace('_', ' '):14} {metrics.spoken(figures[direction])}")
    m = figures["matching"]
    decided = (
        f"  balanced accuracy {m['accuracy']:.1%}  of all rows {m['accuracy_rows']:.1%}" if "accuracy" in m else ""
    )
    say(f"{'matching':14} AUC {m['auc']:.3f} [{m['auc.ci'][0]:.3f}, {m['auc.ci'][1]:.3f}]{decided}")
    say(legacy.WARNING)
    for direction, rates in figures["legacy"].items():
        legacy.print_figures(rates, direction.replace("_", " "), say)
    for reason, count in figures["skipped"].items():
        say(f"skipped: {count:,} {reason}")
    if figures["queries_left_out"]:
        say(f"left out: {figures['queries_left_out']:,} queries without a true or without a mismatched row")
    say(
        f"checkpoint {figures['checkpoint_step']}, {figures['num_queries']:,} queries of "
        f"{figures['candidates_per_list']:.0f} candidates, {figures['pairs_per_second']:.0f} pairs/s"
    )


def _check_fit(run: Run, reader: Reader, file: str | Path) -> None:
    if not Path(file).is_file():
        raise FileNotFoundError(f"no file at {file}: give --release a prediction file of the release")
    layout, tokens = reader.layout(file), run.config.model.text_tokens
    if layout.columns != PREDICTION:
        raise ValueError(f"{file} is a training file, which names no query: give --release a prediction file")
    if layout.text_tokens > tokens:
        raise ValueError(f"{file} has texts of {layout.text_tokens} tokens, this run reads {tokens}: they would be cut")


def _usable(reader: Reader, file: str | Path, skipped: list[Skipped]) -> Iterator[Pair]:
    for pair in reader.pairs(file):
        if isinstance(pair, Pair):
            yield pair
        else:
            skipped.append(pair)


def _score(run: Run, scorer, variables: Any, pairs: list[Pair]) -> np.ndarray:
    """Scores [len(pairs)]; an image that several of them show is embedded once."""
    ids = np.stack([run.vocabulary.frame(pair.pieces, run.config.model.text_tokens) for pair in pairs])
    digests = [hashlib.blake2b(pair.features).digest() for pair in pairs]
    distinct = dict(zip(digests, (pair.features for pair in pairs), strict=True))
    features, size = list(distinct.values()), scorer.batch_size
    # in 16 bits, as cached features are everywhere
    batches = (np.stack(features[i : i + size]).astype(np.float16) for i in range(0, len(features), size))
    images = scorer.embed_images(variables, batches)
    places = {digest: place for place, digest in enumerate(distinct)}
    placed = np.stack([np.arange(len(pairs)), [places[digest] for digest in digests]], axis=1)
    return scorer.score(variables, ids, images, placed)


def _direction(names: list[tuple[str, str]], file: str | Path) -> str:
    """By which id changes less often from one row to the next: that of the query."""
    text, image = (sum(a != b for a, b in itertools.pairwise(column)) for column in zip(*names, strict=True))
    if text == image:
        raise ValueError(
            f"{file} does not show which of its ids is the query's: give --direction {' or '.join(DIRECTIONS)}"
        )
    return "image_to_text" if image < text else "text_to_image"


def _reasons(skipped: list[Skipped]) -> dict[str, int]:
    return dict(Counter(row.reason for row in skipped).most_common())
