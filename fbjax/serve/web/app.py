"""The search service: an index, asked over HTTP, and the page that asks it."""

import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from fastapi import FastAPI, File, Form, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from fbjax import __version__
from fbjax.serve.index.collection import ID_BYTES
from fbjax.serve.index.where import MAX_LENGTH
from fbjax.serve.search.changing import Products
from fbjax.serve.search.explaining import Explainer, Why
from fbjax.serve.search.query import MOST, MOST_CHARACTERS, Mode
from fbjax.serve.search.query import Query as Wanted
from fbjax.serve.search.searching import Searcher
from fbjax.serve.web.answers import Answer, Explained, MatchAnswer, Problem, answer_of, explained_of
from fbjax.serve.web.limits import BodyLimit, Limits
from fbjax.serve.web.metrics import Metrics
from fbjax.serve.web.products import product_routes
from fbjax.serve.web.workers import Busy, Workers

PAGE = Path(__file__).with_name("page")
COUNTED = 100  # products that are found for every answer, so that fields can be counted
MOST_SHOWN = 100  # products of one answer
MOST_SKIPPED = MOST - MOST_SHOWN - 1
UNCOUNTED = ("group",)  # text fields without counts
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
NO_DOCS: dict[str, None] = {"docs_url": None, "redoc_url": None}  # these load scripts from another host
PROBLEMS = {code: {"model": Problem} for code in (400, 413, 429, 503)}
Rerank = Annotated[bool, Query(description="whether the index's re-ranker, if any, orders the first 50")]
Method = Literal["gradient", "occlusion", "attention", "alignment"]
log = logging.getLogger("fbjax.serve")

Text = Annotated[str, Query(description="words", max_length=MOST_CHARACTERS, examples=["red cotton dress"])]
Like = Annotated[str, Query(description="id of a product: others like it", max_length=ID_BYTES)]
Identity = Annotated[str, Query(alias="id", description="id of the product", max_length=ID_BYTES)]
Where = Annotated[str, Query(description="filter", max_length=MAX_LENGTH, examples=['category == "dress"'])]
Top = Annotated[int, Query(description="number of products", ge=1, le=MOST_SHOWN)]
Skip = Annotated[int, Query(description="products before these", ge=0, le=MOST_SKIPPED)]


def make_app(searcher: Searcher, limits: Limits, key: str = "") -> FastAPI:
    """The service over an open index; `Searcher.warm_up` keeps its first requests from waiting.

    With a `key` products can be changed by who sends it.
    """
    workers, metrics, explainer = Workers(limits), Metrics(), Explainer(searcher)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        workers.close()

    about = {"title": "fbjax", "version": __version__, "summary": "Search of a catalogue"}
    app = FastAPI(**about, lifespan=lifespan, responses=PROBLEMS, **NO_DOCS)
    app.add_middleware(BodyLimit, most=limits.bytes)

    async def answered(wanted: Wanted, top: int, skip: int) -> Answer:
        done = await workers.run(searcher.search_all, wanted)
        metrics.note(done.answer.seconds | {"wait": done.waited}, done.together)
        kinds = searcher.collection.fields.items()
        counted = [name for name, kind in kinds if kind == "text" and name not in UNCOUNTED]
        answer = answer_of(done.answer, skip, top, counted)
        return answer.model_copy(update={"more": answer.more and skip + top <= MOST_SKIPPED})

    @app.get("/search")
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
        depth = max(COUNTED, skip + top + 1)
        wanted = Wanted(text=text, like=like, where=where, mode=mode, top=depth, rerank=rerank)
        return await answered(wanted, top, skip)

    @app.post("/search")
    async def search_by_picture(
        image: Annotated[bytes, File(description="a picture: JPEG, PNG, WebP, ..")],
        text: Annotated[str, Form(description="words that say what differs", max_length=MOST_CHARACTERS)] = "",
        where: Annotated[str, Form(description="filter", max_length=MAX_LENGTH)] = "",
        top: Annotated[int, Form(ge=1, le=MOST_SHOWN)] = 24,
        skip: Annotated[int, Form(ge=0, le=MOST_SKIPPED)] = 0,
    ) -> Answer:
        """The best products for a picture, and perhaps words: a picture, "but in blue"."""
        depth = max(COUNTED, skip + top + 1)
        return await answered(Wanted(text=text, image=image, where=where, top=depth), top, skip)

    @app.post("/match")
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

    @app.get("/explain")
    async def explain(identity: Identity, text: Text = "", like: Like = "", method: Method = "gradient") -> Explained:
        """What words and patches contribute to the match of a text, or another product's text, with a product."""
        return await explained(Why(identity, text, None, like, method))

    @app.post("/explain")
    async def explain_picture(
        image: Annotated[bytes, File(description="the picture that was searched by")],
        identity: Annotated[str, Form(alias="id", description="id of the product", max_length=ID_BYTES)],
        method: Annotated[Method, Form()] = "gradient",
    ) -> Explained:
        """What a product's words and the patches of a picture contribute to their match."""
        return await explained(Why(identity, image=image, method=method))

    app.include_router(product_routes(Products(searcher), workers, key))

    @app.get("/pictures/{name}", responses={404: {"model": Problem}}, response_class=Response)
    def picture(name: str) -> Response:
        """A picture of the catalogue, by the name in an answer."""
        if not (found := searcher.pictures.read(name)):
            return JSONResponse({"error": f"no picture {name[:40]!r}"}, 404)
        kind = "image/png" if found.startswith(b"\x89PNG") else "image/jpeg"
        return Response(found, media_type=kind, headers={"Cache-Control": "public, max-age=86400"})

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"model": Problem}})
    def readyz() -> dict[str, int]:
        """Whether the database answers: the number of products."""
        return {"products": searcher.count()}

    @app.get("/metrics", response_class=Response)
    def measured() -> Response:
        """Counters and histograms, for Prometheus."""
        metrics.inside.set(workers.inside)
        kept = searcher.model.cache_info()
        metrics.cache.labels("vectors", "hits").set(kept.text_hits + kept.image_hits)
        metrics.cache.labels("vectors", "misses").set(kept.text_misses + kept.image_misses)
        if searcher.kept:
            metrics.cache.labels("answers", "hits").set(searcher.kept.hits)
            metrics.cache.labels("answers", "misses").set(searcher.kept.misses)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.middleware("http")
    async def noted(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        begin = time.perf_counter()
        try:
            response = await call(request)
        except Exception:
            log.exception("a fault of the service")
            response = JSONResponse({"error": "a fault of the service: its log says more"}, 500)
        response.headers.update(SECURITY)
        route = getattr(request.scope.get("route"), "path", "other")
        metrics.requests.labels(route, response.status_code).inc()
        milliseconds = round(1000 * (time.perf_counter() - begin), 1)
        log.info(json.dumps({"route": route, "status": response.status_code, "ms": milliseconds}))
        return response

    _explain_errors(app)
    app.openapi = partial(_schema, app)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _schema(app: FastAPI) -> dict:
    """The description of the service. A wrong request is a 400 here, which FastAPI describes as a 422."""
    if not app.openapi_schema:
        app.openapi_schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        for operations in app.openapi_schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
    return app.openapi_schema


def _explain_errors(app: FastAPI) -> None:
    """Every problem is one JSON object with an error that names the remedy."""

    def says(status: int, text: str | None = None, **headers: str) -> Callable:
        def handle(request: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"error": text or str(error)}, status, headers=headers)

        return handle

    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = ("; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()))[:1000]
        return JSONResponse({"error": found}, 400)

    def http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    app.add_exception_handler(HTTPException, http)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(ValueError, says(400))
    app.add_exception_handler(RequestValidationError, invalid)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(Busy, says(429, "too many requests wait: try again in a second", **{"Retry-After": "1"}))
    app.add_exception_handler(TimeoutError, says(503, "no answer in time: try again later", **{"Retry-After": "5"}))
    app.add_exception_handler(OSError, says(503))
