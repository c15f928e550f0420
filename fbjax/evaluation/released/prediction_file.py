"""Evaluation on the pairs of a prediction file of the authors' release, by the correct metric and by its miscount.

Scores the rows while reading them. The rows of a query are its candidate list.
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
from fbjax.data.sources.base import Skipped
from fbjax.data.sources.release import PREDICTION, Pair, Reader
from fbjax.evaluation import metrics
from fbjax.evaluation.candidates import DIRECTIONS
from fbjax.evaluation.released import legacy
from fbjax.inference.pair_scorer import make_scorer
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.run import Run

CHUNK = 256  # pairs in memory: 128 MiB of the release's features
SHOWN = 5  # skipped rows that are named


@dataclasses.dataclass(frozen=True)
class Scored:
    """The N rows of a file in its order."""

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
    "skipped": {reason: count}, "checkpoint_step", "pairs_per_second"}``. `direction` None: the id that changes less
    often from row to row is the query's. Raises ValueError if file and run do not fit, or if no row is usable.
    """
    loaded = LoadedRun.load(workdir, step)
    run = loaded.run
    reader = Reader(run.vocabulary, run.patches.num_patches, run.patches.feature_size)
    _check_fit(run, reader, file)
    scorer = make_scorer(run, loaded.mesh, run.patches.precomputed())
    begin, skipped = time.perf_counter(), []
    pairs = progress(_usable(reader, file, skipped), None, f"pairs of {Path(file).name}")
    names, positive, scores = [], [], []
    while some := list(itertools.islice(pairs, CHUNK)):
        names += [(pair.text_id, pair.image_id) for pair in some]
        positive += [pair.matched for pair in some]
        scores.append(_score(run, scorer, loaded.variables, some))
    seconds = time.perf_counter() - begin
    for line in skipped[:SHOWN]:
        say(f"skipped: {line.where}: {line.reason}")
    if not names:
        raise ValueError(f"nothing usable in {file}: {', '.join(f'{n} {why}' for why, n in _reasons(skipped).items())}")
    direction = direction or _direction(names, file)
    queries = tuple(image if direction == "image_to_text" else text for text, image in names)
    scored = Scored(direction, queries, np.array(positive), np.concatenate(scores))
    return release_figures(scored, run.scores_pairs) | {
        "skipped": _reasons(skipped),
        "checkpoint_step": loaded.step,
        "pairs_per_second": len(queries) / seconds,
    }


def release_figures(scored: Scored, scores_matches: bool) -> dict:
    """Rank@k of each query's true row among its mismatched rows, and matching over the same lists.

    A query with several true rows counts once for each. Queries without a true or a mismatched row are left out.
    `scores_matches`: whether a score above 0 means "match".
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
    """Prints the figures."""
    for direction in DIRECTIONS:
        if direction in figures:
            metrics.print_row(direction, metrics.spoken(figures[direction]), say)
    m = figures["matching"]
    decided = "  balanced accuracy {accuracy:.1%}  of all rows {accuracy_rows:.1%}"
    metrics.print_matching(m, decided.format(**m) if "accuracy" in m else "", say)
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
    """The pairs of `file`; appends the other rows to `skipped`."""
    for pair in reader.pairs(file):
        if isinstance(pair, Pair):
            yield pair
        else:
            skipped.append(pair)


def _score(run: Run, scorer, variables: Any, pairs: list[Pair]) -> np.ndarray:
    """Scores [len(pairs)]. Embeds every distinct image once."""
    ids = np.stack([run.vocabulary.frame(pair.pieces, run.config.model.text_tokens) for pair in pairs])
    digests = [hashlib.blake2b(pair.features).digest() for pair in pairs]
    distinct = dict(zip(digests, (pair.features for pair in pairs), strict=True))
    features, size = list(distinct.values()), scorer.batch_size
    # in 16 bits, as cached features are
    batches = (np.stack(features[i : i + size]).astype(np.float16) for i in range(0, len(features), size))
    images = scorer.embed_images(variables, batches)
    places = {digest: place for place, digest in enumerate(distinct)}
    placed = np.stack([np.arange(len(pairs)), [places[digest] for digest in digests]], axis=1)
    return scorer.score(variables, ids, images, placed)


def _direction(names: list[tuple[str, str]], file: str | Path) -> str:
    """The direction whose query ids change less often from one row to the next."""
    text, image = (sum(a != b for a, b in itertools.pairwise(column)) for column in zip(*names, strict=True))
    if text == image:
        flag = f"--direction {' or '.join(DIRECTIONS)}"
        raise ValueError(f"{file} does not show which of its ids is the query's: give {flag}")
    return "image_to_text" if image < text else "text_to_image"


def _reasons(skipped: list[Skipped]) -> dict[str, int]:
    return dict(Counter(row.reason for row in skipped).most_common())
