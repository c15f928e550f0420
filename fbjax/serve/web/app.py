"""The search service: an index, asked over HTTP, and the page that asks it."""

import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from fbjax import __version__
from fbjax.serve.search.changing import Products
from fbjax.serve.search.searching import Searcher
from fbjax.serve.web.answers import Problem
from fbjax.serve.web.limits import BodyLimit, Limits
from fbjax.serve.web.metrics import Metrics
from fbjax.serve.web.products import product_routes
from fbjax.serve.web.queries import query_routes
from fbjax.serve.web.workers import Busy, Workers

PAGE = Path(__file__).with_name("page")
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
NO_DOCS: dict[str, None] = {"docs_url": None, "redoc_url": None}  # these load scripts from another host
PROBLEMS = {code: {"model": Problem} for code in (400, 413, 429, 503)}
log = logging.getLogger("fbjax.serve")


def make_app(searcher: Searcher, limits: Limits, key: str = "") -> FastAPI:
    """The service over an open index; `Searcher.warm_up` keeps its first requests from waiting.

    With a `key` products can be changed by who sends it.
    """
    workers, metrics = Workers(limits), Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        workers.close()

    about = {"title": "fbjax", "version": __version__, "summary": "Search of a catalogue"}
    app = FastAPI(**about, lifespan=lifespan, responses=PROBLEMS, **NO_DOCS)
    app.add_middleware(BodyLimit, most=limits.bytes)

    app.include_router(query_routes(searcher, workers, metrics))
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
