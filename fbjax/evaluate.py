"""Evaluation of a checkpoint (paper, section 4): retrieval over candidate lists, and matching.

* ``candidates``: Rank@1/5/10 of the positive among each list's candidates, in both directions, by logit difference.
* ``matching``: each list's positive against its first other candidate (same sub-category), balanced accuracy and AUC;
  the AUC against a product of any category; and the share of right decisions over whole lists, 1 to 100.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fbjax import metrics
from fbjax.candidates import CandidateList, any_category_negatives, draw_lists, read_lists
from fbjax.checkpoint import Checkpoints
from fbjax.console import duration, progress, say
from fbjax.data import pipeline
from fbjax.data.catalogue import Records, Source, prepare
from fbjax.data.sampling import Partners
from fbjax.features import image_inputs
from fbjax.mesh import make_mesh
from fbjax.objectives.pretraining import Pretraining
from fbjax.scoring import Scorer, matcher
from fbjax.step import abstract_state, make_optimizer
from fbjax.towers import Towers
from fbjax.workdir import Run, note_time

PROTOCOLS = ("candidates", "matching")
NUM_OTHERS, DRAWN_QUERIES = 100, 1000  # of lists drawn here, as in the paper
EVALUATION, TOP = "evaluation.json", 5


def evaluate(
    workdir: str | Path,
    *,
    data: str | None = None,
    candidates: str | None = None,
    protocols: tuple[str, ...] = PROTOCOLS,
    num_queries: int | None = None,
    step: int | None = None,
) -> dict:
    """The figures of a workdir's best checkpoint, or that of `step`, as ``metrics.json`` holds them.

    `data`: a table or glob (default: the run's validation split). `candidates`: lists (default: drawn from the data,
    seed 0). The workdir keeps them, with each query's ranking, until the next evaluation (`read_evaluation`).
    """
    unknown = set(protocols) - set(PROTOCOLS)
    if unknown:
        raise ValueError(f"unknown protocol {', '.join(map(repr, sorted(unknown)))}; there are {', '.join(PROTOCOLS)}")
    if num_queries is not None and num_queries < 1:
        raise ValueError(f"--queries {num_queries}: take at least 1")
    lists = read_lists(candidates, num_queries) if candidates else None
    run = Run.open(workdir)
    mesh = make_mesh(run.config.mesh)
    step, params = load_params(run, workdir, mesh, step)
    variables = run.frozen | params
    source = Source.one_table(data, run.config) if data else Source.from_config(run.config)
    records = prepare(source, run.vocabulary, run.config.data.prepared, progress)["validation"]
    lists, digest = lists or draw_lists(records, NUM_OTHERS, num_queries or DRAWN_QUERIES, seed=0)

    pairs = _Pairs(records)
    positives, others = pairs.add_lists(lists)
    negatives = pairs.add_negatives(lists, any_category_negatives(lists, records)) if "matching" in protocols else None
    scorer = matcher(run.config, run.model, run.step_patches, mesh)
    scores, seconds = _score(run, scorer, variables, records, pairs)

    positive = scores[positives]
    other = np.where(others >= 0, scores[others], -np.inf)  # [Q, G - 1], shorter lists filled up
    directions = np.array([x.direction for x in lists])
    figures: dict[str, Any] = {}
    if "candidates" in protocols:
        for direction in dict.fromkeys(directions):
            here = directions == direction
            figures[direction] = metrics.retrieval(positive[here], other[here])
    if "matching" in protocols:
        figures["matching"] = metrics.matching(positive, other[:, 0])
        figures["matching"]["auc_any_category"] = metrics.auc(positive, scores[negatives])
        figures["matching"]["auc_any_category.ci"] = list(metrics.interval(metrics.auc, positive, scores[negatives]))
        right = np.concatenate([positive > 0, (other < 0)[others >= 0]])
        figures["matching"]["accuracy_1to100"] = float(right.mean())
    figures |= {
        "num_queries": int((directions == directions[0]).sum()),
        "candidates_per_list": float(np.mean([len(x.candidates) for x in lists])),
        "candidates_sha256": digest,
        "checkpoint_step": step,
        "pairs_per_second": len(pairs) / seconds,
    }
    sources = {name: path and os.path.abspath(path) for name, path in (("data", data), ("candidates", candidates))}
    rankings = _rankings(lists, positive, other)
    _write(Path(workdir) / EVALUATION, sources | {"figures": figures, "rankings": rankings})
    note_time(workdir, "evaluation", seconds)
    return figures


def read_evaluation(workdir: str | Path) -> dict | None:
    """The last evaluation of a run, or None: {"data", "candidates": their paths or None, "figures", "rankings"}.

    A ranking is {"direction", "query", "positive", "candidates": how many, "rank" and "score" of the positive, "top":
    the first [id, score]s}.
    """
    path = Path(workdir) / EVALUATION
    return json.loads(path.read_text()) if path.is_file() else None


def _rankings(lists: list[CandidateList], positive: np.ndarray, other: np.ndarray) -> list[dict]:
    ranks = metrics.rank_of_positive(positive, other)
    rankings = []
    for x, rank, score, scores in zip(lists, ranks, positive, other, strict=True):
        best = np.argsort(-scores[: len(x.others)], kind="stable")[:TOP]
        top = [[x.others[i], float(scores[i])] for i in best]
        top.insert(int(rank) - 1, [x.positive, float(score)])
        named = {"direction": x.direction, "query": x.query, "positive": x.positive, "candidates": len(x.candidates)}
        rankings.append(named | {"rank": int(rank), "score": float(score), "top": top[:TOP]})
    return rankings


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


class _Pairs:
    """The distinct (text, image) pairs that all lists need, each scored once."""

    def __init__(self, records: Records):
        self._records = records
        self._rows = {identity: row for row, identity in enumerate(records.ids)}
        self._places: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add_lists(self, lists: list[CandidateList]) -> tuple[np.ndarray, np.ndarray]:
        """Places of the positives [Q] and the others [Q, G - 1], -1 past a list's end."""
        self._records.rows([i for x in lists for i in (x.query, *x.candidates)])  # all unknown ids in one error
        positives = np.array([self._place(x, x.positive) for x in lists])
        others = np.full((len(lists), max(len(x.others) for x in lists)), -1)
        for q, x in enumerate(lists):
            others[q, : len(x.others)] = [self._place(x, identity) for identity in x.others]
        return positives, others

    def add_negatives(self, lists: list[CandidateList], ids: list[str]) -> np.ndarray:
        """Places of one further product for each list, [Q]."""
        return np.array([self._place(x, identity) for x, identity in zip(lists, ids, strict=True)])

    def array(self) -> np.ndarray:
        """[N, 2]: rows of text and image."""
        return np.array(list(self._places), np.int64)

    def _place(self, x: CandidateList, candidate: str) -> int:
        pair = (self._rows[x.query], self._rows[candidate])
        pair = pair if x.direction == "text_to_image" else pair[::-1]
        return self._places.setdefault(pair, len(self._places))


def _score(run: Run, scorer: Scorer | Towers, variables, records: Records, pairs: _Pairs) -> tuple[np.ndarray, float]:
    """Scores of all pairs, and the seconds that took, embeddings included."""
    wanted = pairs.array()
    text_rows, text_places = np.unique(wanted[:, 0], return_inverse=True)
    image_rows, image_places = np.unique(wanted[:, 1], return_inverse=True)
    ids = pipeline.read_texts(records, text_rows, run.vocabulary, run.config.model.text_tokens)
    start = time.perf_counter()
    inputs = image_inputs(run, records, image_rows, scorer.batch_size)
    num_batches = -(-len(image_rows) // scorer.batch_size)
    images = scorer.embed_images(variables, progress(inputs, num_batches, "image embeddings"))
    embedding_seconds = time.perf_counter() - start
    placed = np.stack([text_places, image_places], axis=1)
    expected = scorer.expected_seconds(variables, ids, images, placed)
    say(f"{len(wanted):,} pairs of {len(text_rows):,} texts and {len(image_rows):,} images: about {duration(expected)}")
    start = time.perf_counter()
    scores = scorer.score(variables, ids, images, placed, progress)
    return scores, embedding_seconds + time.perf_counter() - start


def report(figures: dict, say: Callable[[str], None]) -> None:
    """The figures as a person reads them."""
    for direction in ("image_to_text", "text_to_image"):
        if direction in figures:
            cells = []
            for k in metrics.RANKS[:-1]:
                low, high = figures[direction][f"rank@{k}.ci"]
                cells.append(f"Rank@{k} {figures[direction][f'rank@{k}']:.1%} [{low:.1%}, {high:.1%}]")
            say(f"{direction.replace('_', ' '):14} {'  '.join(cells)}  (Rank@101 {figures[direction]['rank@101']:.0%})")
    if "matching" in figures:
        m = figures["matching"]
        say(
            f"{'matching':14} AUC {m['auc']:.3f} [{m['auc.ci'][0]:.3f}, {m['auc.ci'][1]:.3f}]"
            f"  any category {m['auc_any_category']:.3f}  balanced accuracy {m['accuracy']:.1%}"
            f"  at 1:100 {m['accuracy_1to100']:.1%}"
        )
    size = figures["candidates_per_list"]
    if size < NUM_OTHERS + 1:
        say(f"NOTE: {size:.0f} candidates a list on average, not {NUM_OTHERS + 1}: Rank@1 by chance is {1 / size:.0%}")
    say(
        f"checkpoint {figures['checkpoint_step']}, {figures['num_queries']} queries a direction, "
        f"{figures['pairs_per_second']:.0f} pairs/s, lists {figures['candidates_sha256'][:12]}"
    )
