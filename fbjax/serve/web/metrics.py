"""What a service counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Requests by route and status, seconds by stage, batch sizes, requests inside, hits of caches, the process."""

    def __init__(self):
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, CPU, files
        self.requests = Counter("fbjax_requests", "Requests", ["route", "status"], registry=self._registry)
        self.seconds = Histogram(
            "fbjax_seconds", "Seconds of a stage", ["stage"], buckets=SECONDS, registry=self._registry
        )
        self._together = Histogram(
            "fbjax_batch", "Requests that were computed together", buckets=SIZES, registry=self._registry
        )
        self.inside = Gauge("fbjax_requests_inside", "Requests that are computed or wait", registry=self._registry)
        self.cache = Gauge("fbjax_cache", "Hits and misses of caches", ["of", "result"], registry=self._registry)

    def note(self, seconds: dict[str, float], together: int) -> None:
        """Notes the stages of an answer, and the size of its batch."""
        for stage, taken in seconds.items():
            self.seconds.labels(stage).observe(taken)
        self._together.observe(together)

    def text(self) -> bytes:
        """All of them, in the format that Prometheus reads."""
        return generate_latest(self._registry)
