"""Asks an index: by words, by a picture, by both, or by a product that is like what is wanted."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from fbjax.data.sources.cells import clean_text
from fbjax.inference.catalogue.embed_catalogue import model_sha256
from fbjax.inference.known_words import known_words
from fbjax.inference.model import Model
from fbjax.serve.collection import Collection, Hit
from fbjax.serve.database import Database
from fbjax.serve.pictures import Pictures
from fbjax.serve.where import both, differs, milvus_filter

Mode = Literal["hybrid", "dense", "words"]
MEANINGS: dict[Mode, str] = {
    "hybrid": "sums of 1 / (60 + rank) by cosine and by words",
    "dense": "cosines of vectors",
    "words": "BM25 of words",
}
MOST = 1000  # products of one answer
MOST_CHARACTERS = 2000  # of a query


@dataclasses.dataclass(frozen=True)
class Query:
    """What is wanted: words, a picture (a path or encoded bytes), both, or products like that of an id."""

    text: str = ""
    image: str | Path | bytes | None = None
    like: str = ""
    where: str = ""
    mode: Mode | None = None  # default: hybrid for words alone, else dense
    top: int = 10


@dataclasses.dataclass(frozen=True)
class Results:
    """The products found, best first, and the seconds of each stage."""

    hits: list[Hit]
    mode: Mode
    seconds: dict[str, float]
    notes: list[str]  # words that the model does not know


class Searcher:
    """A published index, its pictures and the model that made its vectors. A context: it closes the connection."""

    def __init__(self, location: str | Path, token: str = "", workdir: str | Path | None = None):
        """`workdir`: of the model (default: as the index says). Raises FileNotFoundError where no index is whole."""
        self._database = Database.open(location, token)
        try:
            published = self._database.published()
            if published is None:
                raise FileNotFoundError(f"no whole index at {location}: run fbjax index, again if it was interrupted")
            self.collection: Collection = published
            manifest = published.manifest
            self.pictures = Pictures.open(manifest["pictures"], location)
            self._workdir = workdir or manifest["workdir"]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Searcher":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    @cached_property
    def model(self) -> Model:
        """The model, loaded when a query needs vectors. Raises ValueError where it is not the index' own."""
        return _load(self._workdir, self.collection.manifest)

    def search(self, query: Query) -> Results:
        """The best products for `query`. Raises ValueError with the remedy where it cannot be answered."""
        mode = _checked(query)
        where, seconds = milvus_filter(query.where, self.collection.fields), {}
        vector = None
        if mode != "words":
            with _timed(seconds, "embed"):
                vector, left_out = self._vector(query)
                where = both(where, left_out)
        with _timed(seconds, "retrieve"):
            if mode == "words":
                hits = self.collection.with_words(query.text, query.top, where)
            elif mode == "dense" or vector is None:
                hits = self.collection.nearest(vector, query.top, where)
            else:
                hits = self.collection.by_both(query.text, vector, query.top, where)
        return Results(hits, mode, seconds, self._notes(query.text, mode))

    def _notes(self, text: str, mode: Mode) -> list[str]:
        words = known_words(self.model.run, text) if text and mode != "words" else {}
        unknown = [word for word, known in words.items() if not known]
        if not unknown:
            return []
        then = "found by words alone" if mode == "hybrid" else "not searched for"
        return [f"not known to the model, so {then}: {', '.join(unknown[:10])}{', ..' * (len(unknown) > 10)}"]

    def warm_up(self) -> None:
        """Answers one query of each kind and length, so that no later one waits for a program to be compiled."""
        if (product := self.collection.any()) is None:
            return
        words = product.text.split()
        for count in {min(2**n, self.model.run.config.model.text_tokens) for n in range(12)}:
            self.search(Query(text=" ".join((words * count)[:count])[:MOST_CHARACTERS], top=1))
        if picture := self.pictures.read(product.picture):
            self.search(Query(image=picture, top=1))
            self.search(Query(image=picture, text=product.text[:MOST_CHARACTERS], top=1))

    def _vector(self, query: Query) -> tuple[np.ndarray, str]:
        """The query's vector [E], and a filter that leaves out what it comes from."""
        if query.like:
            found = self.collection.get(query.like)
            if found is None:
                raise ValueError(f"no product {query.like!r} in the index")
            product, vector = found
            return vector, differs("group", str(product.fields["group"]))
        if query.image is None:
            return self.model.embed_query([query.text])[0], ""
        vector = self.model.embed_image([query.image])[0]
        if query.text:
            vector = vector + self.model.embed_query([query.text])[0]  # each has length 1: they count alike
            vector /= np.linalg.norm(vector)
        return vector, ""


def _checked(query: Query) -> Mode:
    """The mode of a query. Raises ValueError where it asks for nothing, or for too much."""
    if bool(query.like) + bool(query.text or query.image is not None) != 1:
        raise ValueError("give a text, an image, both, or a product to find others like it")
    if not 1 <= query.top <= MOST:
        raise ValueError(f"top {query.top}: ask for 1 to {MOST:,} products")
    if len(query.text) > MOST_CHARACTERS:
        raise ValueError(f"the text has {len(query.text):,} characters: use at most {MOST_CHARACTERS:,}")
    if query.text and not clean_text(query.text):
        raise ValueError(f"text {query.text!r} has no words")
    words_alone = query.image is None and not query.like
    mode = query.mode or ("hybrid" if words_alone else "dense")
    if mode not in MEANINGS:
        raise ValueError(f"mode {mode!r} is unknown: use {', '.join(MEANINGS)}")
    if mode == "words" and not words_alone or mode == "hybrid" and not query.text:
        raise ValueError(f"mode {mode} needs a text{' alone' * (mode == 'words')}: use dense")
    return mode


def _load(workdir: str | Path, manifest: dict) -> Model:
    model = dataclasses.replace(Model.load(workdir, manifest["checkpoint_step"]), quiet=True)
    if model_sha256(model) != manifest["model_sha256"]:
        raise ValueError(
            f"the vectors of the index are of another model than {workdir}: run fbjax index anew, or name the workdir "
            "that it was made with"
        )
    return model


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - begin
