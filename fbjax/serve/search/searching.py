"""Asks an index: by words, by a picture, by both, or by a product that is like what is wanted.

Queries that come together are embedded together and looked up together: an index answers eight in little more time than
one.
"""

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from fbjax import load
from fbjax.core.paths import is_remote
from fbjax.inference.catalogue.embed_catalogue import model_sha256
from fbjax.inference.embedder import BUCKET
from fbjax.inference.known_words import known_words
from fbjax.inference.model import Model
from fbjax.serve.index.collection import Collection, Hit
from fbjax.serve.index.database import Database
from fbjax.serve.index.pictures import Pictures
from fbjax.serve.index.where import both, differs, milvus_filter
from fbjax.serve.search.kept import KeptAnswers
from fbjax.serve.search.matching import Matcher
from fbjax.serve.search.query import MOST_CHARACTERS, Mode, Query, Results, mode_of
from fbjax.serve.search.reranking import RERANKED, Reranker
from fbjax.serve.search.together import each_alone

DEPTH, RRF = 100, 60  # products of each side that are joined; the constant of reciprocal ranks


class Searcher:
    """A published index, its pictures and the model that made its vectors. A context: it closes the connection."""

    def __init__(
        self,
        location: str | Path,
        token: str = "",
        workdir: str | Path | None = None,
        reranker: str | Path | None = None,
    ):
        """`workdir`: of the model, `reranker`: that of the re-ranker (default: as the index says). Raises
        FileNotFoundError where no index is whole."""
        self.location, self._workdir, self._reranker = location, workdir, reranker
        self.kept = None if is_remote(location) else KeptAnswers()  # others may change a server's index
        self._lock, self._database = threading.Lock(), Database.open(location, token)
        try:
            published = self._database.published()
            if published is None:
                raise FileNotFoundError(f"no whole index at {location}: run fbjax index, again if it was interrupted")
            self._open(published)
        except BaseException:
            self.close()
            raise

    def _open(self, collection: Collection) -> None:
        self.pictures = Pictures.open(collection.manifest["pictures"], self.location)
        self.collection = collection
        for loaded in ("model", "reranker", "matcher"):
            self.__dict__.pop(loaded, None)

    def _reopen(self) -> bool:
        """Whether another collection has taken this one's place: it is opened, and its model loaded when needed."""
        with self._lock:
            published = self._database.published()
            if published is None or published.name == self.collection.name:
                return False
            self._open(published)
            self.forget_answers()
            return True

    def count(self) -> int:
        """The number of products. Raises OSError where the database does not answer."""
        try:
            return self.collection.count()
        except OSError:
            if not self._reopen():
                raise
            return self.collection.count()

    def __enter__(self) -> "Searcher":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    @cached_property
    def model(self) -> Model:
        """The model, loaded when a query needs vectors. Raises ValueError where it is not the index' own."""
        manifest = self.collection.manifest
        return _load(self._workdir or manifest["workdir"], manifest, "index", "--workdir")

    @cached_property
    def reranker(self) -> Reranker | None:
        """What orders the first products anew, where the index names it. Raises ValueError where it has changed."""
        if not (said := self.collection.manifest.get("reranker")):
            return None
        model = _load(self._reranker or said["workdir"], said, "index's re-ranker", "--reranker")
        return Reranker(model, self.pictures)

    @cached_property
    def matcher(self) -> Matcher:
        """What says whether a text and a picture belong together."""
        return Matcher(self.reranker.model if self.reranker else self.model)

    def search(self, query: Query) -> Results:
        """The best products for `query`. Raises ValueError with the remedy where it cannot be answered."""
        (found,) = self.search_all([query])
        if isinstance(found, Exception):
            raise found
        return found

    def search_all(self, queries: Sequence[Query]) -> list[Results | Exception]:
        """The answer to each query, or why it has none."""
        return self.kept.look_up(queries, self._answers) if self.kept else self._answers(queries)

    def forget_answers(self) -> None:
        """To be called where products have changed."""
        if self.kept:
            self.kept.clear()

    def _answers(self, queries: Sequence[Query]) -> list[Results | Exception]:
        found = self._searched(queries)
        if any(isinstance(each, OSError) for each in found) and self._reopen():
            return self._searched(queries)
        return found

    def _searched(self, queries: Sequence[Query]) -> list[Results | Exception]:
        searches = [_Search(query) for query in queries]
        _attempt(self._begin, searches)
        going = [search for search in searches if not search.problem]
        self._embed([search for search in going if search.mode != "words"])
        going = [search for search in going if not search.problem]
        self._look_up("vectors", [search for search in going if search.mode != "words"])
        self._look_up("words", [search for search in going if search.mode != "dense" and not search.problem])
        going = [search for search in going if not search.problem]
        for search in going:
            rankings = list(search.found.values())
            search.hits = joined_in_parts(rankings) if search.mode == "hybrid" else rankings[0]
        self._rerank([search for search in going if self._reranks(search.query)])
        return [search.problem or self._results(search) for search in searches]

    def _reranks(self, query: Query) -> bool:
        named = self.collection.manifest.get("reranker")
        return bool(named and query.rerank and query.image is None and not query.like)

    def _rerank(self, searches: list["_Search"]) -> None:
        if not (searches and self.reranker):
            return
        with _timed("rerank", searches):
            texts, hits = [search.query.text for search in searches], [search.hits for search in searches]
            for search, found in zip(searches, self.reranker.reorder(texts, hits), strict=True):
                search.hits, search.reranked = found

    def _begin(self, search: "_Search") -> None:
        search.mode = mode_of(search.query)
        search.where = milvus_filter(search.query.where, self.collection.fields)
        search.depth = max(RERANKED if self._reranks(search.query) else 1, search.query.top)
        if search.mode == "hybrid":
            search.depth = DEPTH * -(-search.depth // DEPTH)
        if search.query.like:
            search.vector, group = self._indexed(search.query.like)
            search.where = both(search.where, differs("group", group))

    def _indexed(self, identity: str) -> tuple[np.ndarray, str]:
        """The vector and the group of a product of the index."""
        if (found := self.collection.get(identity)) is None:
            raise ValueError(f"no product {identity!r} in the index")
        product, vector = found
        return vector, str(product.fields["group"])

    def _embed(self, searches: list["_Search"]) -> None:
        """Gives each of `searches` its vector. Of an image with a text both have length 1: they count alike."""
        if not searches:
            return  # the model is not loaded for words alone
        with _timed("embed", searches):
            texts = [search for search in searches if search.query.text]
            images = [search for search in searches if search.query.image is not None]
            _add(texts, each_alone(self.model.embed_query, [search.query.text for search in texts]))
            _add(images, each_alone(self.model.embed_image, [search.query.image for search in images]))

    def _look_up(self, side: str, searches: list["_Search"]) -> None:
        """Finds products by `side`, "vectors" or "words". What another search asks beside it changes no answer."""
        alike = collections.defaultdict(list)
        for search in searches:
            alike[search.where, search.depth].append(search)
        with _timed(side, searches):
            for (where, depth), some in alike.items():
                try:
                    if side == "vectors":
                        found = self.collection.nearest(np.stack([search.vector for search in some]), depth, where)
                    else:
                        found = self.collection.with_words([search.query.text for search in some], depth, where)
                except OSError as error:
                    for search in some:
                        search.problem = error
                    continue
                for search, hits in zip(some, found, strict=True):
                    search.found[side] = hits

    def _results(self, search: "_Search") -> Results:
        notes, hits = self._notes(search.query.text, search.mode), search.hits[: search.query.top]
        return Results(hits, search.mode, search.seconds, notes, min(search.reranked, len(hits)))

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
        for text in self.texts_of_all_lengths():
            self.search(Query(text=text, top=1))
        if picture := self.pictures.read(product.picture):
            self.search(Query(image=picture, top=1))
            self.search(Query(image=picture, text=product.text[:MOST_CHARACTERS], top=1))

    def texts_of_all_lengths(self) -> list[str]:
        """A text for each length that texts are padded to."""
        longest = self.model.run.config.model.text_tokens
        return [" ".join("a" * (length - 2)) for length in range(min(BUCKET, longest), longest + 1, BUCKET)]


@dataclasses.dataclass
class _Search:
    """A query on its way to an answer."""

    query: Query
    mode: Mode = "hybrid"
    where: str = ""  # in Milvus' words
    depth: int = 0  # products that each side finds
    vector: np.ndarray | None = None  # [E]
    found: dict[str, list[Hit]] = dataclasses.field(default_factory=dict)  # by "vectors" and "words"
    hits: list[Hit] = dataclasses.field(default_factory=list)
    reranked: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    problem: Exception | None = None


def joined_in_parts(rankings: Sequence[Sequence[Hit]]) -> list[Hit]:
    """The first `DEPTH` of each ranking joined, then the next, and so on: a longer answer begins as a shorter one."""
    found: dict[str, Hit] = {}
    for start in range(0, max(map(len, rankings)), DEPTH):
        for hit in joined([hits[start : start + DEPTH] for hits in rankings]):
            found.setdefault(hit.product.id, hit)
    return list(found.values())


def joined(rankings: Sequence[Sequence[Hit]]) -> list[Hit]:
    """One ranking of several, by sums of 1 / (60 + rank) (Cormack et al. 2009, reciprocal rank fusion)."""
    scores: collections.Counter[str] = collections.Counter()
    products = {hit.product.id: hit.product for hits in rankings for hit in hits}
    for hits in rankings:
        for rank, hit in enumerate(hits, start=1):
            scores[hit.product.id] += 1 / (RRF + rank)  # pyright: ignore[reportArgumentType]
    return [Hit(products[identity], score) for identity, score in scores.most_common()]


def _attempt(step: Callable[[_Search], None], searches: list[_Search]) -> None:
    for search in searches:
        try:
            step(search)
        except ValueError as error:
            search.problem = error


def _add(searches: list[_Search], vectors: list[np.ndarray | ValueError]) -> None:
    for search, found in zip(searches, vectors, strict=True):
        if isinstance(found, ValueError):
            search.problem = found
        elif search.vector is None:
            search.vector = found
        else:
            search.vector = (search.vector + found) / np.linalg.norm(search.vector + found)


def _load(workdir: str | Path, said: dict, what: str, flag: str) -> Model:
    """The model that an index says of. Raises FileNotFoundError or ValueError where it is not in `workdir`."""
    try:
        model = load(workdir, said["checkpoint_step"], quiet=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the model of the {what}: {error}; give its folder by {flag}") from None
    if model_sha256(model) != said["model_sha256"]:
        raise ValueError(
            f"the {what} is of another model than {workdir}: run fbjax index anew, or give the folder of its model by "
            f"{flag}"
        )
    return model


@contextlib.contextmanager
def _timed(stage: str, searches: Sequence[_Search]) -> Iterator[None]:
    """Notes the seconds of a stage with each of `searches`, which all wait for it."""
    begin = time.perf_counter()
    yield
    for search in searches:
        search.seconds[stage] = time.perf_counter() - begin
