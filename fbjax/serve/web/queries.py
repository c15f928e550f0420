"""Routes that ask the index: search, match a text with a picture, and explain a match."""

from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Query

from fbjax.serve.index.collection import ID_BYTES
from fbjax.serve.index.where import MAX_LENGTH
from fbjax.serve.search.explaining import Explainer, Why
from fbjax.serve.search.query import MOST, MOST_CHARACTERS, Mode
from fbjax.serve.search.query import Query as Wanted
from fbjax.serve.search.searching import Searcher
from fbjax.serve.web.answers import Answer, Explained, MatchAnswer, answer_of, explained_of
from fbjax.serve.web.metrics import Metrics
from fbjax.serve.web.workers import Workers

COUNTED = 100  # products that are found for every answer, so that fields can be counted
MOST_SHOWN = 100  # products of one answer
MOST_SKIPPED = MOST - MOST_SHOWN - 1
UNCOUNTED = ("group",)  # text fields without counts

Text = Annotated[str, Query(description="words", max_length=MOST_CHARACTERS, examples=["red cotton dress"])]
Like = Annotated[str, Query(description="id of a product: others like it", max_length=ID_BYTES)]
Identity = Annotated[str, Query(alias="id", description="id of the product", max_length=ID_BYTES)]
Where = Annotated[str, Query(description="filter", max_length=MAX_LENGTH, examples=['category == "dress"'])]
Top = Annotated[int, Query(description="number of products", ge=1, le=MOST_SHOWN)]
Skip = Annotated[int, Query(description="products before these", ge=0, le=MOST_SKIPPED)]
Rerank = Annotated[bool, Query(description="whether the index's re-ranker, if any, orders the first 50")]
Method = Literal["gradient", "occlusion", "attention", "alignment"]


def query_routes(searcher: Searcher, workers: Workers, metrics: Metrics) -> APIRouter:
    """``/search`` by words, by a picture or like a product, ``/match`` and ``/explain``."""
    routes, explainer = APIRouter(), Explainer(searcher)

    async def answered(wanted: Wanted, top: int, skip: int) -> Answer:
        done = await workers.run(searcher.search_all, wanted)
        metrics.note(done.answer.seconds | {"wait": done.waited}, done.together)
        kinds = searcher.collection.fields.items()
        counted = [name for name, kind in kinds if kind == "text" and name not in UNCOUNTED]
        answer = answer_of(done.answer, skip, top, counted)
        return answer.model_copy(update={"more": answer.more and skip + top <= MOST_SKIPPED})

    @routes.get("/search")
    async def search(
        text: Text = "",
        like: Like = "",
        where: Where = "",
        mode: Mode | None = None,
        rerank: Rerank = True,
        top: Top = 24,
        skip: Skip = 0,
    ) -> Answer:
        """The best products for words, or like a product."""
        wanted = Wanted(text=text, like=like, where=where, mode=mode, top=_depth(top, skip), rerank=rerank)
        return await answered(wanted, top, skip)

    @routes.post("/search")
    async def search_by_picture(
        image: Annotated[bytes, File(description="a picture: JPEG, PNG, WebP, ..")],
        text: Annotated[str, Form(description="words that say what differs", max_length=MOST_CHARACTERS)] = "",
        where: Annotated[str, Form(description="filter", max_length=MAX_LENGTH)] = "",
        top: Annotated[int, Form(ge=1, le=MOST_SHOWN)] = 24,
        skip: Annotated[int, Form(ge=0, le=MOST_SKIPPED)] = 0,
    ) -> Answer:
        """The best products for a picture, and perhaps words: a picture, "but in blue"."""
        return await answered(Wanted(text=text, image=image, where=where, top=_depth(top, skip)), top, skip)

    @routes.post("/match")
    async def match(
        text: Annotated[str, Form(description="words", max_length=MOST_CHARACTERS)],
        image: Annotated[bytes, File(description="a picture: JPEG, PNG, WebP, ..")],
    ) -> MatchAnswer:
        """Whether a text and a picture belong together."""
        done = await workers.run(searcher.matcher.match_all, (text, image))
        metrics.note({"match": done.seconds, "wait": done.waited}, done.together)
        return MatchAnswer(score=done.answer.score, probability=done.answer.probability)

    async def explained(why: Why) -> Explained:
        done = await workers.run(explainer.explain_all, why, alone=True)
        metrics.note({"explain": done.seconds, "wait": done.waited}, done.together)
        return explained_of(done.answer)

    @routes.get("/explain")
    async def explain(identity: Identity, text: Text = "", like: Like = "", method: Method = "gradient") -> Explained:
        """What words and patches contribute to the match of a text, or another product's text, with a product."""
        return await explained(Why(identity, text, None, like, method))

    @routes.post("/explain")
    async def explain_picture(
        image: Annotated[bytes, File(description="the picture that was searched by")],
        identity: Annotated[str, Form(alias="id", description="id of the product", max_length=ID_BYTES)],
        method: Annotated[Method, Form()] = "gradient",
    ) -> Explained:
        """What a product's words and the patches of a picture contribute to their match."""
        return await explained(Why(identity, image=image, method=method))

    return routes


def _depth(top: int, skip: int) -> int:
    """How many products to find, so that there is a next page to offer and fields to count."""
    return max(COUNTED, skip + top + 1)
