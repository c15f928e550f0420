"""Vectors of a whole catalogue from a run's towers, for a search index or a recommender, in one .npz file."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fbjax.core.console import duration, progress, say
from fbjax.core.paths import atomic_write
from fbjax.data.batches.pipeline import read_texts
from fbjax.data.records.builder import Records, build_records, read_report
from fbjax.data.records.source import Source
from fbjax.inference.embedder import Embedder, make_embedder
from fbjax.parallel.mesh import make_mesh
from fbjax.runs.feature_cache import image_inputs
from fbjax.runs.run import Run
from fbjax.runs.trained import load_params

KINDS = ("product", "text", "image")


def embed(
    workdir: str | Path,
    out: str | Path,
    *,
    data: str | None = None,
    what: str = "product",
    split: str | None = None,
    step: int | None = None,
) -> np.ndarray:
    """Vectors [N, E] of every product of `data` (a table or glob), or of a `split` of the run (default: validation).

    `what`: "text" or "image" alone, or a "product", both read together. Written to `out`: ids [N] str, vectors [N, E]
    float32 of length 1, checkpoint_step, what. A file of that name stays until the new one is whole.
    """
    out = Path(out)
    if what not in KINDS:
        raise ValueError(f"--what {what!r} is unknown (use {', '.join(KINDS)})")
    if out.suffix != ".npz":
        raise ValueError(f"--out {out}: give it a name that ends in .npz")
    if data and split:
        raise ValueError(f"--data {data} is a table of its own: leave --split {split} out")
    run = Run.open(workdir)
    mesh = make_mesh(run.config.mesh)
    towers = make_embedder(run.config, run.model, run.feature_input, mesh)
    step, params = load_params(run, workdir, mesh, step)
    source = Source.one_table(data, run.config) if data else Source.from_config(run.config)
    splits = build_records(source, run.vocabulary, run.config.data.prepared, progress)
    records = splits[split or "validation"]
    begin = time.perf_counter()
    vectors = _vectors(run, towers, run.frozen | params, records, what)
    seconds = time.perf_counter() - begin
    with atomic_write(out) as file:
        np.savez(file, ids=np.asarray(records.ids, str), vectors=vectors, checkpoint_step=step, what=what)
    _describe(records, vectors, what, step, seconds, say)
    return vectors


def split_vectors(
    run: Run, towers: Embedder, variables, records: Records, ids: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of all texts and of all images of a split, [N, E] each; `ids` [N, T] where they are read already."""
    rows = np.arange(len(records))
    if ids is None:
        ids = read_texts(records, rows, run.vocabulary, run.config.model.text_tokens)
    texts = towers.embed_texts(variables, ids, progress)
    inputs = image_inputs(run, records, rows, towers.batch_size)
    num_batches = -(-len(rows) // towers.batch_size)
    return texts, towers.embed_images(variables, progress(inputs, num_batches, "vectors of images"))


def _vectors(run: Run, towers: Embedder, variables, records: Records, what: str) -> np.ndarray:
    rows = np.arange(len(records))
    if what == "image":
        batches = image_inputs(run, records, rows, towers.batch_size)
        return towers.embed_images(variables, progress(batches, -(-len(rows) // towers.batch_size), "batches"))
    ids = read_texts(records, rows, run.vocabulary, run.config.model.text_tokens)
    if what == "text":
        return towers.embed_texts(variables, ids, progress)
    return towers.embed_products(
        variables, ids, lambda rows: image_inputs(run, records, rows, towers.batch_size), progress
    )


def _describe(
    records: Records, vectors: np.ndarray, what: str, step: int, seconds: float, say: Callable[[str], None]
) -> None:
    if skipped := read_report(records)["skipped"]:
        say("skipped when prepared: " + ", ".join(f"{count:,} {reason}" for reason, count in skipped.items()))
    number, size = vectors.shape
    say(
        f"{number:,} {what} vectors of {size} numbers ({vectors.nbytes / 2**20:.1f} MiB) by checkpoint {step} in "
        f"{duration(seconds)} ({number / seconds:,.0f}/s)"
    )
