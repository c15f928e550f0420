"""Vectors of a whole catalogue, for a search index or a recommender: in one pass, in shards, resumed after a kill."""

import contextlib
import dataclasses
import hashlib
import itertools
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fbjax import __version__
from fbjax.core.console import duration, progress, say
from fbjax.core.prefetch import prefetched
from fbjax.data.batches.split import Split
from fbjax.inference.catalogue.unfinished import Unfinished, unfinished
from fbjax.inference.catalogue.vector_files import check_out, holds, shard_name
from fbjax.inference.embedder import UNITS, Batch, Embedder, make_embedder
from fbjax.runs.feature_cache import features_of, ready_features, text_inputs
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.vocabulary import unknown_of

NOTABLE = 0.01  # share of unknown pieces that is said
TEXTS_AT_ONCE = 4096
OWN = ("train", "validation")  # splits of a run


def embed(
    workdir: str | Path,
    out: str | Path,
    *,
    data: str | Sequence[str] | None = None,
    units: Sequence[str] = ("product",),
    split: str | None = None,
    shard: str | None = None,
    step: int | None = None,
) -> Path:
    """Writes vectors of every product of `data` (tables or globs), or of a `split` of the run (default: validation).

    `units`: some of "text", "image" and "product", which reads both together; an image is read once for all. `split`:
    "train", "validation" or "all". `shard`: "I/N", with I from 0, for the I-th of N parts of the products, in a file of
    its own. `out`: FILE.parquet, FILE.npz or a folder, written whole or not at all;
    `fbjax.inference.catalogue.vector_files` says what they hold. A command that was killed goes on when it is run
    again. Returns the path of what is written. Raises ValueError or OSError on a wrong request, before long work.
    """
    _check_units(units)
    part, of = _read_shard(shard) if shard else (0, 1)
    if data and split:
        raise ValueError(f"--data {data} is a table of its own: leave --split {split} out")
    out = check_out(shard_name(Path(out), part, of) if shard else Path(out))
    loaded = LoadedRun.load(workdir, step)
    make_embedder(loaded.run, loaded.mesh)  # raises where the run has none
    splits = splits_of(loaded, data, split or "validation")
    total = sum(map(len, splits))
    if of > total:
        raise ValueError(f"--shard {shard}: there are only {total:,} products; use at most {total:,} shards")
    start, stop = total * part // of, total * (part + 1) // of
    manifest = _manifest(loaded, splits, units) | {"rows": [start, stop], "products": total}
    if holds(out, manifest):
        say(f"{out} holds these {stop - start:,} {_listed(units)} vectors already")
        return out
    _say_unknown(loaded, splits, units)
    begin = time.perf_counter()
    ids = np.concatenate([np.asarray(records.ids, str) for records in splits])[start:stop]
    with unfinished(out, manifest, ids, units, manifest["embedding_dim"]) as work:
        before = work.done
        for records, first in zip(splits, np.cumsum([0, *map(len, splits)]), strict=False):
            rows = np.arange(max(start - first, 0), min(stop - first, len(records)))
            _embed_split(loaded, records, rows, units, work, int(first) - start)
        work.finish(out)
    _say_end(splits, manifest, units, before, time.perf_counter() - begin)
    return out


def _check_units(units: Sequence[str]) -> None:
    if unknown := [unit for unit in units if unit not in UNITS]:
        raise ValueError(f"--what {', '.join(map(repr, unknown))} is unknown (use {', '.join(UNITS)})")
    if len(set(units)) < len(units) or not units:
        raise ValueError(f"--what {','.join(units)!r}: name each of {', '.join(UNITS)} at most once")


def _read_shard(shard: str) -> tuple[int, int]:
    """``"2/8" -> (2, 8)``"""
    with contextlib.suppress(ValueError):
        part, of = map(int, shard.split("/"))
        if 0 <= part < of:
            return part, of
    raise ValueError(f"--shard {shard!r}: give I/N with I from 0 to N - 1, such as 0/4, 1/4, 2/4 and 3/4")


def splits_of(loaded: LoadedRun, data: str | Sequence[str] | None, split: str) -> list[Split]:
    """Splits that together hold the products of `data`, or of a `split` of the run's own ("all": of both)."""
    if data:
        return loaded.catalogue(data)
    if split not in (*OWN, "all"):
        raise ValueError(f"--split {split!r} is unknown (use {', '.join(OWN)}, all)")
    found = loaded.run.splits()
    return [found[name] for name in (OWN if split == "all" else [split])]


def model_sha256(loaded: LoadedRun) -> str:
    """A hash of all that a product's vectors depend on but the product: weights, settings and vocabulary.

    Settings count where they are not at their defaults: a later fbjax has more of them, and the same vectors.
    """
    run, digest = loaded.run, hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(jax.device_get(loaded.variables)):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    config = [_changed(part) for part in (run.config.model, run.config.patches, *run.config.tasks.values())]
    digest.update(repr((config, run.vocabulary.fingerprint)).encode())
    return digest.hexdigest()


def _changed(settings: Any) -> tuple[str, dict]:
    """The type of some settings, and those that are not at their defaults."""
    defaults, values = dataclasses.asdict(type(settings)()), dataclasses.asdict(settings)
    return type(settings).__name__, {name: value for name, value in values.items() if value != defaults[name]}


def _manifest(loaded: LoadedRun, splits: list[Split], units: Sequence[str]) -> dict:
    """What the vectors depend on; work of another manifest is not gone on with."""
    return {
        "fbjax": __version__,
        "checkpoint_step": loaded.step,
        "model_sha256": model_sha256(loaded),
        "products_sha256": hashlib.sha256("".join(records.digest for records in splits).encode()).hexdigest(),
        "what": list(units),
        "embedding_dim": make_embedder(loaded.run, loaded.mesh).size,
    }


def _embed_split(
    loaded: LoadedRun, records: Split, rows: np.ndarray, units: Sequence[str], work: Unfinished, first: int
) -> None:
    """Adds the vectors of `rows` of one split to `work`, where row 0 of the split would be row `first`.

    Patch features are read where they exist, and else computed with the vectors: a cache would take more room than
    these, and every shard would fill all of it.
    """
    done = min(max(work.done - (first + int(rows[0])), 0), len(rows)) if len(rows) else 0
    if done == len(rows):
        return
    features = ready_features(loaded.run, records) if set(units) - {"text"} else None
    embedder = make_embedder(loaded.run, loaded.mesh, None if features is not None else loaded.run.patches)
    for places, found in embed_rows(loaded, embedder, records, rows, units, features, done):
        work.add(first + rows[places], found)


def embed_rows(
    loaded: LoadedRun,
    embedder: Embedder,
    records: Split,
    rows: np.ndarray,
    units: Sequence[str],
    features: np.ndarray | None = None,
    done: int = 0,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(places in `rows`, vectors [n, E] of each of `units`) of batches of products, without the first `done` places.

    The places have one order for the same `rows` and `units`. `features` [len(records), P, C] replace images.
    """
    tokens = loaded.run.config.model.text_tokens
    lengths = np.minimum(records.num_pieces[rows] + 2, tokens) if set(units) - {"image"} else np.zeros(len(rows), int)
    planned = embedder.plan(lengths, tokens, done)
    batches = _read(loaded, embedder, records, rows, planned, units, features)
    label = f"{_listed(units)} vectors, batches of {embedder.batch_size}"
    with contextlib.closing(batches):
        yield from embedder.vectors(loaded.variables, progress(batches, len(planned), label), units)


def _read(
    loaded: LoadedRun,
    embedder: Embedder,
    records: Split,
    rows: np.ndarray,
    planned: list[tuple[int, np.ndarray]],
    units: Sequence[str],
    features: np.ndarray | None,
) -> Generator[Batch, None, None]:
    """The inputs of each batch of `planned`: texts and images of `rows`, as far as `units` read them."""
    if not planned:
        return
    size, patches = embedder.batch_size, loaded.run.config.patches
    texts: Iterable = itertools.repeat(None)
    images: Iterable = itertools.repeat(None)
    if set(units) - {"image"}:
        texts = _read_texts(loaded, records, [(length, rows[places]) for length, places in planned])
    if set(units) - {"text"}:
        if features is None:
            whole = np.concatenate([embedder.whole(rows[places]) for _, places in planned])
            images = records.images(whole, patches.image_size, size, patches.fit)
        else:
            images = (features[rows[places]] for _, places in planned)
    for (_, places), ids, pictures in zip(planned, texts, images, strict=False):  # `repeat` has no end
        yield places, ids, pictures


def _read_texts(loaded: LoadedRun, records: Split, planned: list[tuple[int, np.ndarray]]) -> Iterator[np.ndarray]:
    """Framed piece ids of each batch (padded length, rows); a thread reads the next ones ahead."""
    together = max(1, TEXTS_AT_ONCE // len(planned[0][1]))
    starts = range(0, len(planned), together)

    def read(start: int) -> np.ndarray:
        rows = np.concatenate([rows for _, rows in planned[start : start + together]])
        return text_inputs(loaded.run, records, rows)

    for start, ids in zip(starts, prefetched(read, starts, ahead=1), strict=True):
        for length, rows in planned[start : start + together]:
            yield ids[: len(rows), :length]
            ids = ids[len(rows) :]


def embed_records(
    loaded: LoadedRun, embedder: Embedder, records: Split, what: str, rows: np.ndarray | None = None
) -> np.ndarray:
    """Vectors [N, E] of the texts, images or products (`what`, of `UNITS`) at `rows` (default: all).

    Caches patch features where the run's config says so.
    """
    rows = np.arange(len(records)) if rows is None else rows
    features = features_of(loaded.run, records) if what != "text" else None
    vectors = np.empty((len(rows), embedder.size), np.float32)
    for places, found in embed_rows(loaded, embedder, records, rows, (what,), features):
        vectors[places] = found[what]
    return vectors


def _say_unknown(loaded: LoadedRun, splits: list[Split], units: Sequence[str]) -> None:
    for records in splits if set(units) - {"image"} else ():
        if (unknown := unknown_of(records, loaded.run.vocabulary)).pieces > NOTABLE:
            say(f"texts: {unknown}")


def _say_end(splits: list[Split], manifest: dict, units: Sequence[str], before: int, seconds: float) -> None:
    reports = {records.home: records.report() for records in splits}
    for report in reports.values():
        if report["skipped"]:
            skipped = ", ".join(f"{count:,} {reason}" for reason, count in report["skipped"].items())
            say(f"skipped when prepared: {skipped}")
    start, stop = manifest["rows"]
    number, size = stop - start, manifest["embedding_dim"]
    mib = number * size * 4 * len(units) / 2**20
    speed = duration(seconds)
    if number > before:
        speed += f" ({(number - before) / seconds:,.0f} products/s)"
    if before:
        speed += f"; {before:,} were there from an earlier command"
    step = manifest["checkpoint_step"]
    say(f"{number:,} {_listed(units)} vectors of {size} numbers ({mib:.1f} MiB) by checkpoint {step} in {speed}")


def _listed(units: Sequence[str]) -> str:
    """``text, image and product``"""
    return " and ".join(filter(None, [", ".join(units[:-1]), units[-1]]))
