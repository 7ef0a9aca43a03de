"""What Prometheus reads of a server."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from fastlstm.serving.requests import Kind

__all__ = ["Metrics", "ModelMetrics"]

# Seconds: a step takes microseconds, a request that waits behind others milliseconds.
SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
    *(2.5, 5.0),
)
REQUESTS = tuple(2.0**i for i in range(13))

PROTOCOLS = ("grpc", "http", "websocket")


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._models: dict[str, ModelMetrics] = {}
        self._refusals = Counter(
            "fastlstm_refusals", "Requests that were refused.", ["kind"], registry=registry
        )
        self._connections = Gauge(
            "fastlstm_connections", "WebSocket connections.", registry=registry
        )
        self.connected, self.gone = self._connections.inc, self._connections.dec
        self._refused = {kind: self._refusals.labels(kind.value) for kind in Kind}
        registry.register(self)

    def of(self, model: str) -> ModelMetrics:
        """Those of one model."""
        return self._models.setdefault(model, ModelMetrics())

    def refused(self, kind: Kind) -> None:
        self._refused[kind].inc()

    def collect(self) -> Iterator[Metric]:
        """Those of the models, as a registry asks for them."""
        streams = GaugeMetricFamily("fastlstm_streams", "Streams that are open.", labels=["model"])
        steps = CounterMetricFamily("fastlstm_steps", "Steps made.", labels=["model"])
        seconds = HistogramMetricFamily(
            "fastlstm_request_seconds",
            "From a request that was read to its answer.",
            labels=["model", "protocol"],
        )
        batches = HistogramMetricFamily(
            "fastlstm_batch_requests", "Requests that ran in one call.", labels=["model"]
        )
        for name, model in self._models.items():
            streams.add_metric([name], model.streams())
            steps.add_metric([name], model.steps)
            batches.add_metric([name], model.requests.buckets(), model.requests.total)
            for protocol, found in model.seconds.items():
                seconds.add_metric([name, protocol], found.buckets(), found.total)
        yield from (streams, steps, seconds, batches)

    def page(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)


class Histogram:
    """Values, counted between bounds, for one thread: a tenth of what prometheus_client takes."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds, self._counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """How many values are at most each bound."""
        bounds = [*map(str, self._bounds), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True))


class ModelMetrics:
    """The counters of one model, which its event loop alone changes."""

    __slots__ = ("requests", "seconds", "steps", "streams")

    def __init__(self) -> None:
        self.steps = 0
        self.requests = Histogram(REQUESTS)
        self.seconds = {name: Histogram(SECONDS) for name in PROTOCOLS}
        self.streams: Callable[[], float] = lambda: 0

    def answered(self, protocol: str, steps: int, seconds: float) -> None:
        """Count a request of so many steps, and the time it took."""
        self.steps += steps
        self.seconds[protocol].add(seconds)
