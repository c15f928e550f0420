"""Runs the search service in this process, until Ctrl-C or SIGTERM; requests that are computed then are answered."""

import logging
import socket
from collections.abc import Callable

import uvicorn

from fbjax.serve.search.explaining import Explainer
from fbjax.serve.search.searching import Searcher
from fbjax.serve.web.app import make_app
from fbjax.serve.web.limits import Limits
from fbjax.serve.web.products import check_key

GRACE = 20  # seconds for requests that are computed when the service is ended


def run(searcher: Searcher, host: str, port: int, limits: Limits, key: str, say: Callable[[str], None]) -> None:
    """Serves until a signal; `key` as in `make_app`.

    Before the model is loaded, raises OSError where nothing can listen at the address, ValueError on a weak key.
    """
    check_key(key)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot listen at {host}:{port} ({reason}): give another --host or --port") from None
    with listener:
        searcher.warm_up()
        Explainer(searcher).warm_up()
        _log_requests()
        options = {"log_config": None, "access_log": False, "server_header": False}
        config = uvicorn.Config(make_app(searcher, limits, key), timeout_graceful_shutdown=GRACE, **options)
        shown = f"[{host}]" if ":" in host else host
        say(f"search page: http://{shown}:{listener.getsockname()[1]}/  (Ctrl-C ends it)")
        uvicorn.Server(config).run(sockets=[listener])


def _log_requests() -> None:
    """One JSON line a request on stderr, and what goes wrong with its traceback."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("fbjax.serve", logging.INFO), ("uvicorn", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
