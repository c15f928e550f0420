"""Puts a catalogue into an index: what is new or changed is embedded, what is gone is deleted.

Every product is one row, written whole. A command that was killed goes on when it is run again. Searches read the last
index that was whole; a later command with the same model and fields changes that one in place.
"""

import contextlib
import dataclasses
import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from fbjax import __version__, load
from fbjax.config.load import absolute
from fbjax.core.console import duration
from fbjax.core.paths import is_remote
from fbjax.data.batches.split import Split
from fbjax.data.sources.base import open_source
from fbjax.data.sources.tables import read_labels
from fbjax.inference.catalogue.embed_catalogue import embed_rows, model_sha256, splits_of
from fbjax.inference.embedder import make_embedder
from fbjax.inference.model import Model
from fbjax.runs.feature_cache import ready_features
from fbjax.runs.loaded import LoadedRun
from fbjax.serve.index.collection import ALWAYS, Collection, Stored, check_fields, index_kind
from fbjax.serve.index.database import Database, check_location
from fbjax.serve.index.features import Features
from fbjax.serve.index.pictures import Pictures
from fbjax.serve.index.where import Kind

UNIT = "product"  # text and image read together
ROWS_AT_ONCE = 500
SAMPLE, NEAREST = 200, 10  # products whose nearest are compared with exact ones
MOST_GONE = 0.5  # share of the index that a table may lack


@dataclasses.dataclass(frozen=True)
class Indexed:
    """What `index` did."""

    location: str
    products: int
    added: int
    changed: int
    deleted: int
    seconds: float
    kind: str
    recall: float | None  # share of the 10 nearest by exact search that it finds too; None where nothing changed


def index(
    workdir: str | Path,
    location: str | Path,
    *,
    data: str | Sequence[str] | None = None,
    fields: Mapping[str, str] | None = None,
    token: str = "",
    pictures: str | Path | None = None,
    split: str | None = None,
    step: int | None = None,
    shrink: bool = False,
    reranker: str | Path | None = None,
) -> Indexed:
    """Makes the index at `location` hold the products of `data` (tables or globs), or of a `split` of the run's own
    (default: all).

    `location`: a folder, or the address of a Milvus server, which takes a `token`. `fields` {name: column of the
    tables} become filters beside category and group. `pictures`: their folder (default: in the index's). With `shrink`
    the index may lose most of its products. `reranker`: a run that scores pairs, which orders the first products of an
    answer anew; the features that it reads are computed here. Of `fields` and `reranker` None is what the index has;
    {} and "" are none. Raises ValueError or OSError on a wrong request, before
    long work.
    """
    check_location(location)
    there_now = _manifest(location, token)
    fields = there_now.get("columns", {}) if fields is None else fields
    reranker = (there_now.get("reranker") or {}).get("workdir", "") if reranker is None else reranker
    check_fields([*fields])
    if data and split:
        raise ValueError(f"--data {data} is a table of its own: leave --split {split} out")
    begin, loaded = time.perf_counter(), LoadedRun.load(workdir, step)
    size = make_embedder(loaded.run, loaded.mesh).size  # raises where the run makes no vectors
    rereading = _load_reranker(reranker)
    splits = splits_of(loaded, data, split or "all")
    labels, kinds = _read_fields(loaded, data, fields)
    manifest = {
        "fbjax": __version__,
        **named(loaded),
        "what": UNIT,
        "embedding_dim": size,
        "fields": dict.fromkeys(ALWAYS, "text") | kinds,
        "columns": dict(fields),
        "pictures": _pictures_setting(location, workdir, pictures),
        "reranker": rereading and named(rereading),
    }
    contents = [_contents(records, labels) for records in splits]
    there = {identity for part in contents for identity in part}
    with Database.open(location, token, create=True) as database:
        before = published.contents() if (published := database.published()) else {}
        gone = before.keys() - there
        if not shrink and len(gone) > MOST_GONE * len(before):
            raise ValueError(
                f"{len(gone):,} of the {len(before):,} products of the index are not in the table: give the whole "
                "catalogue, or --shrink if they are to be deleted"
            )
        store = Pictures.open(manifest["pictures"], location)
        collection = database.begin(manifest, len(there))
        known = before if published and published.name == collection.name else collection.contents()
        same = {key: content for key, (content, picture) in known.items() if not picture or store.has(picture)}
        changed = 0
        for records, content in zip(splits, contents, strict=True):
            rows = np.array([i for i, key in enumerate(records.ids) if same.get(str(key)) != content[str(key)]], int)
            changed += sum(str(records.ids[row]) in known for row in rows)
            groups = group_names(records)
            for some, vectors in _embedded(loaded, records, rows):
                collection.upsert(list(_stored(records, some, groups, labels, content, store)), vectors)
        added = len(there - known.keys())
        collection.delete(sorted(known.keys() - there))
        if rereading:
            Features(store, rereading).fill(collection.picture_names())
        database.publish(collection, manifest, len(there))
        store.keep(collection.picture_names())
        number = collection.count()
        recall = measured_recall(collection, number) if added or changed or gone else None
        seconds = time.perf_counter() - begin
        return Indexed(str(location), number, added, changed, len(gone), seconds, index_kind(number), recall)


def named(model: LoadedRun) -> dict:
    """What an index says of a model: where it is, and what it is."""
    workdir = absolute(str(model.workdir))
    return {"workdir": workdir, "checkpoint_step": model.step, "model_sha256": model_sha256(model)}


def _manifest(location: str | Path, token: str) -> dict:
    """What the index at `location` says of itself, {} where there is none."""
    try:
        with Database.open(location, token) as database:
            published = database.published()
            return published.manifest if published else {}
    except FileNotFoundError:
        return {}


def _load_reranker(workdir: str | Path) -> Model | None:
    if not workdir:
        return None
    model = load(workdir, quiet=True)
    if not model.run.scores_pairs:
        raise ValueError(f"--reranker {workdir} scores no pairs: name a run with the task tia or qta")
    return model


def _pictures_setting(location: str | Path, workdir: str | Path, given: str | Path | None) -> str:
    """The folder of the pictures, "" for the one in the index's folder. Of a server's index it is in the workdir."""
    if given:
        return absolute(str(given))
    if not is_remote(location):
        return ""
    return f"{absolute(str(workdir))}/pictures-{hashlib.sha256(str(location).encode()).hexdigest()[:8]}"


def say_indexed(done: Indexed) -> str:
    """A line for people."""
    parts = [f"{done.added:,} new", f"{done.changed:,} changed", f"{done.deleted:,} deleted"]
    said = (
        f"{done.products:,} products in the index at {done.location} ({', '.join(parts)}) in {duration(done.seconds)}"
    )
    recall = "" if done.recall is None else f"; {done.kind} finds {done.recall:.1%} of the {NEAREST} nearest"
    return said + recall


def measured_recall(collection: Collection, number: int, seed: int = 0) -> float:
    """Share of the `NEAREST` by exact search that the index finds, of up to `SAMPLE` products as queries."""
    places = np.sort(np.random.default_rng(seed).choice(number, min(SAMPLE, number), replace=False))
    queries, start = [], 0
    for vectors in collection.vectors():
        here = places[(places >= start) & (places < start + len(vectors))]
        queries.append(vectors[here - start])
        start += len(vectors)
    asked = np.concatenate(queries)
    best = np.full((len(asked), min(NEAREST, number)), -np.inf, np.float32)
    for vectors in collection.vectors():
        best = -np.sort(-np.concatenate([best, asked @ vectors.T], axis=1), axis=1)[:, : best.shape[1]]
    found = 0
    for hits, least in zip(collection.nearest(asked, best.shape[1]), best[:, -1], strict=True):
        found += sum(hit.score >= least - 1e-5 for hit in hits)  # of equal cosines any will do
    return found / best.size


def _read_fields(
    loaded: LoadedRun, data: str | Sequence[str] | None, fields: Mapping[str, str]
) -> tuple[dict[str, dict[str, str | float | None]], dict[str, Kind]]:
    """({id: {field: value}}, {field: kind}): numbers where all cells of a column are."""
    if not fields:
        return {}, {}
    run = loaded.run
    source = open_source(run.config.data, run.config.patches.image_size, data)
    files = [file for some in source.files().values() for file in some]
    cells = read_labels(files, run.config.data, tuple(fields.values()))
    kinds: dict[str, Kind] = {}
    for place, field in enumerate(fields):
        filled = [row[place] for row in cells.values() if row[place]]
        kinds[field] = "number" if filled and all(map(_is_number, filled)) else "text"
    values = {
        identity: {
            field: None if not cell else float(cell) if kinds[field] == "number" else cell
            for field, cell in zip(fields, row, strict=True)
        }
        for identity, row in cells.items()
    }
    return values, kinds


def _is_number(cell: str) -> bool:
    with contextlib.suppress(ValueError):
        return math.isfinite(float(cell)) and not (cell.startswith("0") and cell[1:2].isdigit())  # 007 is a name
    return False


def _contents(records: Split, labels: Mapping[str, Mapping]) -> dict[str, str]:
    """{id: a hash of all that the row is made of}."""
    found = {}
    names = [str(name) for name in records.category_names]
    groups = group_names(records)
    parts = zip(records.ids, records.text_hashes, records.image_hashes, records.categories, groups, strict=True)
    for identity, text, image, category, group in parts:
        row = (int(text), int(image), names[category], group, sorted(labels.get(str(identity), {}).items()))
        found[str(identity)] = hashlib.sha256(repr(row).encode()).hexdigest()[:32]
    return found


def group_names(records: Split) -> list[str]:
    """A name of each product's group: the id of its first product in the table."""
    first: dict[int, str] = {}
    pairs = zip(records.groups, records.ids, strict=True)
    return [first.setdefault(int(group), str(identity)) for group, identity in pairs]


def _embedded(loaded: LoadedRun, records: Split, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, vectors [n, E]) of products, some hundreds at a time."""
    if not len(rows):
        return
    features = ready_features(loaded.run, records)
    embedder = make_embedder(loaded.run, loaded.mesh, None if features is not None else loaded.run.patches)
    some: list[np.ndarray] = []
    vectors: list[np.ndarray] = []
    for places, found in embed_rows(loaded, embedder, records, rows, (UNIT,), features):
        some.append(rows[places])
        vectors.append(found[UNIT])
        if sum(map(len, some)) >= ROWS_AT_ONCE:
            yield np.concatenate(some), np.concatenate(vectors)
            some, vectors = [], []
    if some:
        yield np.concatenate(some), np.concatenate(vectors)


def _stored(
    records: Split,
    rows: np.ndarray,
    groups: Sequence[str],
    labels: Mapping[str, Mapping],
    contents: Mapping[str, str],
    pictures: Pictures,
) -> Iterator[Stored]:
    for row, product in zip(rows, records.products(rows.tolist()), strict=True):
        fields = {"category": product.category, "group": groups[row]} | dict(labels.get(product.id, {}))
        picture = pictures.add(product.image)
        yield Stored(product.id, product.text, picture, fields, contents[product.id])
