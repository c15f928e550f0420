"""Load on a search service: requests a second and latencies at 1, 8 and 32 clients, with new and with repeated queries.

    fbjax serve --index index
    python launch/load.py 127.0.0.1:8000 clicks.parquet

The queries are those of a table of events, in a seeded order. Each client asks one query after another.
"""

import argparse
import collections
import http.client
import itertools
import threading
import time
import urllib.parse
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet

CLIENTS, REPEATED = (1, 8, 32), 50


def ask(host: str, queries: Iterator[str], more: dict, end: float, found: list[tuple[int, float]]) -> None:
    """Asks `queries` until the time `end`; adds (status, seconds) of each to `found`."""
    connection = http.client.HTTPConnection(host, timeout=60)
    while time.monotonic() < end:
        path = "/search?" + urllib.parse.urlencode({"text": next(queries), "top": 24} | more)
        begin = time.perf_counter()
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        found.append((response.status, time.perf_counter() - begin))


def memory(host: str) -> float:
    """GiB of the service's process."""
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    return float(next(x for x in lines if x.startswith("process_resident_memory_bytes")).split()[1]) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host")
    parser.add_argument("log")
    parser.add_argument("--seconds", type=float, default=10, help="of each row")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--no-rerank", action="store_true", help="without the index's re-ranker")
    flags = parser.parse_args()
    more = {"rerank": "false"} if flags.no_rerank else {}
    queries = sorted(set(pyarrow.parquet.read_table(flags.log, columns=["query"])["query"].to_pylist()))
    np.random.default_rng(0).shuffle(queries)
    fresh = itertools.cycle(queries)
    for clients, (name, source) in itertools.product(flags.clients, (("new", fresh), ("repeated", queries[:REPEATED]))):
        each = source if source is fresh else itertools.cycle(source)
        found: list[tuple[int, float]] = []
        begin = time.monotonic()
        threads = [
            threading.Thread(target=ask, args=(flags.host, each, more, begin + flags.seconds, found))
            for _ in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        speed = sum(status == 200 for status, _ in found) / (time.monotonic() - begin)
        p50, p95, p99 = np.percentile([1000 * seconds for status, seconds in found if status == 200], (50, 95, 99))
        statuses = dict(collections.Counter(status for status, _ in found))
        row = (
            f"{clients:>2} clients, {name:8} {speed:6.1f}/s  p50 {p50:.0f}  p95 {p95:.0f}  p99 {p99:.0f} ms  {statuses}"
        )
        print(f"{row}  {memory(flags.host):.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
