"""Vectors of a whole catalogue, for a search index or a recommender, in one .npz file."""

import time
from functools import partial
from pathlib import Path

import numpy as np

from fbjax.core.console import duration, progress, say
from fbjax.core.paths import atomic_write
from fbjax.data.batches.split import Split
from fbjax.inference.embedder import Embedder, make_embedder
from fbjax.runs.feature_cache import image_inputs, text_inputs
from fbjax.runs.loaded import LoadedRun

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

    `what`: "text", "image", or "product", which reads both together. Writes ids [N] str, vectors [N, E] float32 of
    length 1, checkpoint_step and what to `out`, atomically.
    """
    out = Path(out)
    if what not in KINDS:
        raise ValueError(f"--what {what!r} is unknown (use {', '.join(KINDS)})")
    if out.suffix != ".npz":
        raise ValueError(f"--out {out}: give it a name that ends in .npz")
    if data and split:
        raise ValueError(f"--data {data} is a table of its own: leave --split {split} out")
    loaded = LoadedRun.load(workdir, step)
    embedder = make_embedder(loaded.run, loaded.mesh)
    records = loaded.records(data, split or "validation")
    begin = time.perf_counter()
    vectors = embed_records(loaded, embedder, records, what)
    seconds = time.perf_counter() - begin
    with atomic_write(out) as file:
        np.savez(file, ids=np.asarray(records.ids, str), vectors=vectors, checkpoint_step=loaded.step, what=what)
    if skipped := records.report()["skipped"]:
        say("skipped when prepared: " + ", ".join(f"{count:,} {reason}" for reason, count in skipped.items()))
    (number, size), mib = vectors.shape, vectors.nbytes / 2**20
    speed = f"{duration(seconds)} ({number / seconds:,.0f}/s)"
    say(f"{number:,} {what} vectors of {size} numbers ({mib:.1f} MiB) by checkpoint {loaded.step} in {speed}")
    return vectors


def embed_records(
    loaded: LoadedRun, embedder: Embedder, records: Split, what: str, rows: np.ndarray | None = None
) -> np.ndarray:
    """Vectors [N, E] of the texts, images or products (`what`, of `KINDS`) at `rows` (default: all)."""
    rows = np.arange(len(records)) if rows is None else rows
    inputs = partial(image_inputs, loaded.run, records, batch_size=embedder.batch_size)
    if what == "image":
        return embedder.embed_images(loaded.variables, inputs(rows, label="vectors of images"))
    ids = text_inputs(loaded.run, records, rows)
    if what == "text":
        return embedder.embed_texts(loaded.variables, ids, progress)
    return embedder.embed_products(loaded.variables, ids, lambda places: inputs(rows[places]), progress)
