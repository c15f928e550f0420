"""Evaluation of a checkpoint by the protocols of `fbjax.evaluation.protocols`."""

import os
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from fbjax.config.load import absolute
from fbjax.core.console import duration, progress, say
from fbjax.data.batches.halves import rows_of_half
from fbjax.data.batches.split import Split
from fbjax.evaluation.asked import asked_of, figures_of_scores, figures_of_vectors, wanted_log
from fbjax.evaluation.captions.figures import check_installed
from fbjax.evaluation.captions.run import captions_of
from fbjax.evaluation.galleries import marqo, mixed, queries
from fbjax.evaluation.galleries.gallery import choose_queries, full_figures
from fbjax.evaluation.galleries.hubness import bank_rows, hub_penalties
from fbjax.evaluation.protocols import OVER_LISTS, list_figures, read_request
from fbjax.evaluation.recognition.attributes import attribute_figures, predictions_of
from fbjax.inference.attributes import attribute_probabilities
from fbjax.inference.captions.captioner import BEAMS, Captioner
from fbjax.inference.catalogue.embed_catalogue import embed_records
from fbjax.inference.embedder import make_embedder
from fbjax.inference.model import Model
from fbjax.inference.pair_scorer import make_scorer
from fbjax.monitoring.telemetry import log_event
from fbjax.runs.feature_cache import image_inputs, text_inputs
from fbjax.runs.halves import check_table, trained_half
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.splits import attributes_of
from fbjax.runs.stored_evaluation import write_attributes, write_captions, write_evaluation, write_gallery, write_log

RERANKED = 20  # of the nearest, if the run scores pairs
BY_VECTORS = ("full", "queries", "mixed", "marqo", "log")  # protocols that rank a gallery by vectors
OVER_CATALOGUES = {"queries", "marqo"}  # protocols over all products of several tables
MIXED = "protocol mixed"


def evaluate(
    workdir: str | Path,
    *,
    data: str | Sequence[str] | None = None,
    candidates: str | None = None,
    protocols: tuple[str, ...] = OVER_LISTS,
    num_queries: int | None = None,
    step: int | None = None,
    towers: str | Path | None = None,
    rerank: int | None = None,
    relevant: str | Path | None = None,
    correct_hubs: int | None = None,
    log: str | None = None,
    beams: int | None = None,
) -> dict:
    """The figures of a workdir's best checkpoint, or that of `step`, in the form of ``metrics.json``.

    `data`: tables or globs (default: the run's validation split). `candidates`: lists (default: drawn from the data,
    seed 0). Protocols over galleries use the run's towers, or those of the last checkpoint in the workdir `towers`.
    "full" re-ranks the `rerank` nearest if the run scores pairs (default: 20). `relevant`: a file of queries for
    "queries", "mixed" and "marqo". `correct_hubs`: at most so many training texts measure how much each picture is a
    hub; the first two give their figures with this correction as well. `log`: a table for "log", with the columns of
    the run's log, or "groups" (default: the run's log). `beams`: of "captioning" (default: 3). The workdir stores
    figures and rankings over lists, figures and ranks over a whole gallery and of a log, attributes and captions, until
    the next evaluation of the kind (`fbjax.runs.stored_evaluation`).
    """
    lists = read_request(protocols, candidates, num_queries)
    query_file = queries.read_request(protocols, relevant, num_queries)
    _check_flags(protocols, data, towers, rerank, correct_hubs, log, beams)
    loaded = LoadedRun.load(workdir, step)
    log_config = wanted_log(loaded.run.config, log) if "log" in protocols else None
    if "attributes" in protocols and loaded.run.classes is None:
        raise ValueError("protocol attributes needs a run that predicts some: its tasks have no attributes")
    captioner = Captioner(loaded.run, loaded.mesh, beams or BEAMS) if "captioning" in protocols else None
    scores_matches = loaded.run.scores_pairs
    if rerank and not loaded.run.reranks:
        raise ValueError(f"--rerank {rerank} needs a run that scores pairs: its tasks have neither tia nor scan")
    by_scores = bool(log_config) and loaded.run.reranks and not (towers or log_config.has_pairs)  # of the log's queries
    by_vectors = set(protocols) & set(BY_VECTORS) - ({"log"} if by_scores else set())
    giver = _vector_run(loaded, towers, protocols) if by_vectors else None
    if giver and "mixed" in protocols:
        trained_half(giver.run.config, giver.workdir, MIXED)
    vectors = giver and _Vectors(giver)
    catalogue = loaded.catalogue(data) if set(protocols) & OVER_CATALOGUES else []
    records = catalogue[0] if len(catalogue) == 1 or set(protocols) <= OVER_CATALOGUES else loaded.records(data)

    score = _PairScores(loaded, records)
    figures, rankings = list_figures(records, protocols, lists, num_queries, score, scores_matches)
    figures["checkpoint_step"] = loaded.step
    if rankings:
        sources = {"data": _absolute(data), "candidates": candidates and absolute(candidates)}
        sources["records_sha256"] = records.digest
        write_evaluation(workdir, sources | {"figures": figures, "rankings": rankings})
    if "full" in protocols:
        found, ranks = full_figures(
            *(vectors.of(records, what) for what in ("text", "image")),
            records.groups,
            num_queries,
            text_codes=records.text_codes(),
            size=RERANKED if rerank is None else rerank,
            score=score if loaded.run.reranks else None,
            scale=vectors.scale if scores_matches else 1.0,  # of cosines beside log-odds, or beside cosines of tokens
        )
        figures["full"] = vectors.about | found
        about = {"checkpoint_step": loaded.step, "ids_sha256": records.digests["ids"]}
        write_gallery(workdir, about | {"figures": figures["full"], "ranks": ranks})
    if "queries" in protocols:
        figures["queries"] = _query_figures(vectors, catalogue, query_file, correct_hubs)
    if "marqo" in protocols:
        figures["marqo"] = _marqo_figures(vectors, catalogue, query_file, num_queries)
    if "mixed" in protocols:
        figures["mixed"] = _mixed_figures(vectors, records, query_file, num_queries, correct_hubs)
    if log_config:
        asked, validation = asked_of(loaded.run, log_config, num_queries)
        if by_scores:
            found, ranks = figures_of_scores(loaded, validation, asked, score.scorer)
        else:
            found, ranks = figures_of_vectors(vectors, validation, asked, log_config)
        figures["log"] = found
        write_log(workdir, {"checkpoint_step": loaded.step, "figures": found, "ranks": ranks})
    if "attributes" in protocols:
        figures["attributes"] = _attribute_figures(loaded, records, data, num_queries)
    if captioner:
        found = captions_of(loaded, captioner, records, choose_queries(len(records), num_queries))
        write_captions(workdir, found | {"checkpoint_step": loaded.step, "data": _absolute(data)})
        figures["captioning"] = found["figures"]
    for name in {"queries", "mixed", "marqo", "log"} & set(protocols) if towers else ():
        figures[name] |= vectors.about
    if score.num_pairs:
        figures["pairs_per_second"] = score.num_pairs / score.seconds
        log_event(workdir, "evaluation", score.seconds)
    return figures


def _check_flags(
    protocols: tuple[str, ...], data, towers, rerank: int | None, correct_hubs: int | None, log: str | None, beams
) -> None:
    """Raises ValueError if a flag would have no effect, or is out of range."""
    if "full" not in protocols and rerank is not None:
        raise ValueError("--rerank is for the whole gallery: add full to --protocol")
    if not set(protocols) & set(BY_VECTORS) and towers:
        raise ValueError(f"--towers is for galleries: add {' or '.join(BY_VECTORS)} to --protocol")
    if rerank is not None and rerank < 0:
        raise ValueError(f"--rerank {rerank}: take at least 0, which leaves it out")
    if correct_hubs is not None and not set(protocols) & set(queries.CORRECTED):
        raise ValueError(f"--correct-hubs: add {' or '.join(queries.CORRECTED)} to --protocol")
    if correct_hubs is not None and correct_hubs < 1:
        raise ValueError(f"--correct-hubs {correct_hubs}: take at least 1 text")
    if log and "log" not in protocols:
        raise ValueError(f"--log {log}: add log to --protocol")
    if beams and "captioning" not in protocols:
        raise ValueError(f"--beams {beams}: add captioning to --protocol")
    if "captioning" in protocols:
        check_installed()
    for name in ("mixed", "log"):
        if data and name in protocols:
            raise ValueError(f"protocol {name} is about the run's own splits: leave --data out")


def _absolute(data: str | Sequence[str] | None) -> str | list[str] | None:
    """`data` with absolute paths; one table alone as a string."""
    tables = [data] if isinstance(data, str) else data or ()
    found = [absolute(table) for table in tables]
    return found if len(found) > 1 else found[0] if found else None


def _vector_run(loaded: LoadedRun, towers: str | Path | None, protocols: tuple[str, ...]) -> LoadedRun:
    """The run whose towers give vectors: the one in the workdir `towers`, or `loaded`."""
    giver = LoadedRun.newest(towers, loaded.run, loaded.mesh) if towers else loaded
    if not giver.run.has_embedder:
        asked = " and ".join(name for name in BY_VECTORS if name in protocols)
        remedy = "its tasks have no itc" if towers else "this run's tasks have no itc: give one that has with --towers"
        start = loaded.run.config.train.start_from
        hint = f", such as the run it started from, {start}" if start and not towers else ""
        raise ValueError(f"protocol {asked} needs trained towers, and {remedy}{hint}")
    return giver


def _query_figures(
    vectors: "_Vectors", catalogue: list[Split], file: queries.QueryFile, correct_hubs: int | None
) -> dict:
    """`catalogue`: splits whose pictures together are the gallery."""
    asked = queries.choose(file, np.concatenate([records.ids for records in catalogue]), vectors.has_words)
    texts = vectors.of_strings(asked.texts)
    images = np.concatenate([vectors.of(records, "image") for records in catalogue])
    figures = queries.query_figures(texts, images, asked) | queries.about(asked, len(images))
    if correct_hubs:
        penalties = hub_penalties(images, vectors.bank(correct_hubs))
        figures["corrected"] = queries.query_figures(texts, images, asked, penalties)
    return figures


def _marqo_figures(
    vectors: "_Vectors", catalogue: list[Split], file: queries.QueryFile | None, num_queries: int | None
) -> dict:
    """`catalogue`: splits whose products together are the gallery. Without a `file` its queries are drawn from them."""
    ids = np.concatenate([records.ids for records in catalogue])
    if file:
        tasks = marqo.tasks_of(file)
    else:
        texts = [text for records in catalogue for text in records.strings(np.arange(len(records)))]
        names = np.concatenate([records.category_names[records.categories] for records in catalogue])
        tasks = marqo.drawn_tasks(ids, texts, names.tolist(), num_queries)
    images, products, found = np.concatenate([vectors.of(records, "image") for records in catalogue]), None, {}
    if set(tasks) - {marqo.TEXT_TO_IMAGE}:
        of_texts = np.concatenate([vectors.of(records, "text") for records in catalogue])
        products = marqo.product_vectors(images, of_texts)
    for task, wanted in tasks.items():
        asked = queries.choose(wanted, ids, vectors.has_words)
        gallery = images if task == marqo.TEXT_TO_IMAGE else products
        figures = marqo.task_figures(vectors.of_strings(asked.texts), gallery, asked)
        found[task] = figures | {"num_queries": len(asked.texts), "skipped": asked.skipped}
    return {"tasks": found, "gallery": len(ids), "queries": file.path if file else marqo.DRAWN}


def _attribute_figures(loaded: LoadedRun, records: Split, data, num_products: int | None) -> dict:
    """Of a seeded choice of `num_products` of the `records`, or all; each prediction is kept in the workdir."""
    classes, rows = loaded.run.classes, choose_queries(len(records), num_products)
    cells = attributes_of(loaded.run.config, records, "validation", classes.names, data)[rows]
    probabilities = attribute_probabilities(loaded, records, rows)
    task = next(task for task in loaded.run.model.tasks if task.predicts_attributes)
    figures = {"columns": attribute_figures(classes, cells, probabilities), "reads": task.reads}
    about = {"checkpoint_step": loaded.step, "records_sha256": records.digest, "data": _absolute(data)}
    predictions = predictions_of(classes, records.ids[rows], cells, probabilities)
    write_attributes(loaded.workdir, about | {"figures": figures, "predictions": predictions})
    return figures


def _mixed_figures(
    vectors: "_Vectors",
    records: Split,
    file: queries.QueryFile | None,
    num_queries: int | None,
    correct_hubs: int | None,
) -> dict:
    """`records`: the validation split. Its texts are the queries, or those of `file`."""
    check_table(vectors.giver.workdir, vectors.train, MIXED)
    if file:
        asked = queries.choose(file, records.ids, vectors.has_words, set(vectors.train.ids.tolist()))
        texts, rows, skipped = vectors.of_strings(asked.texts), asked.rows, asked.skipped
    else:
        own = choose_queries(len(records), num_queries)
        texts, rows, skipped = vectors.of(records, "text", own), list(own[:, None]), {}
    half = vectors.giver.run.config.train.half
    chosen = mixed.choose_rows(vectors.train.groups, half)
    pictures = mixed.Pictures(vectors.of(records, "image"), *(vectors.of(vectors.train, "image", x) for x in chosen))
    figures = mixed.mixed_figures(texts, pictures, rows, records.groups)
    figures |= {"half": half, "num_queries": len(texts), "gallery": pictures.sizes, "skipped": skipped}
    if correct_hubs:
        penalties = hub_penalties(pictures.joined(), vectors.bank(correct_hubs))
        figures["corrected"] = mixed.mixed_figures(texts, pictures, rows, records.groups, penalties)
    return figures


class _Vectors:
    """Vectors by the towers of one run; those of all images and texts of a split are computed once."""

    def __init__(self, giver: LoadedRun):
        self.giver = Model(giver.workdir, giver.run, giver.step, giver.params, giver.mesh)
        self._embedder = make_embedder(giver.run, giver.mesh)
        self._made: dict[tuple[str, str], np.ndarray] = {}

    @property
    def about(self) -> dict:
        return {"towers": os.path.abspath(self.giver.workdir), "towers_step": self.giver.step}

    @property
    def scale(self) -> float:
        return self._embedder.scale(self.giver.variables)

    @cached_property
    def train(self) -> Split:
        """The training split of the run's own tables."""
        return self.giver.records(split="train")

    def of(self, records: Split, what: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Vectors of the texts, images or products (`what`) at `rows` (default: all)."""
        if rows is not None:
            return embed_records(self.giver, self._embedder, records, what, rows)
        if (records.name, what) not in self._made:
            self._made[records.name, what] = embed_records(self.giver, self._embedder, records, what)
        return self._made[records.name, what]

    def of_strings(self, texts: list[str]) -> np.ndarray:
        """Vectors of any texts, read as those of prepared records."""
        return self.giver.embed_text(texts)

    def of_queries(self, framed: np.ndarray) -> np.ndarray:
        """Vectors of framed piece ids [Q, T] of queries."""
        return self._embedder.embed_queries(self.giver.variables, framed)

    def has_words(self, text: str) -> bool:
        try:
            self.giver.encode_text(text)
        except ValueError:
            return False
        return True

    def bank(self, size: int) -> np.ndarray:
        """Vectors of at most `size` texts that the run was trained on."""
        rows = bank_rows(rows_of_half(self.train.groups, self.giver.run.config.train.half), size)
        return self.of(self.train, "text", rows)


class _PairScores:
    """Match scores of pairs [N, 2] of rows (text, image) of `records`. Counts pairs and seconds."""

    def __init__(self, loaded: LoadedRun, records: Split):
        self._run, self._variables, self._records = loaded.run, loaded.variables, records
        self.scorer = make_scorer(loaded.run, loaded.mesh)
        self.num_pairs, self.seconds = 0, 0.0  # embeddings included

    def __call__(self, pairs: np.ndarray) -> np.ndarray:
        run, scorer, variables = self._run, self.scorer, self._variables
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
