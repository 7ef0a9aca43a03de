"""What Prometheus reads of a server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fastlstm.serving.requests import Kind

__all__ = ["Metrics", "ModelMetrics"]

# Seconds: a step takes microseconds, a request that waits behind others milliseconds.
SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
    *(2.5, 5.0),
)
REQUESTS = tuple(2**i for i in range(13))

PROTOCOLS = ("grpc", "http", "websocket")


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._streams = Gauge(
            "fastlstm_streams", "Streams that are open.", ["model"], registry=registry
        )
        self._steps = Counter("fastlstm_steps", "Steps made.", ["model"], registry=registry)
        self._seconds = Histogram(
            "fastlstm_request_seconds",
            "From a request that was read to its answer.",
            ["model", "protocol"],
            buckets=SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "fastlstm_batch_requests",
            "Requests that ran in one call.",
            ["model"],
            buckets=REQUESTS,
            registry=registry,
        )
        self._refusals = Counter(
            "fastlstm_refusals", "Requests that were refused.", ["kind"], registry=registry
        )
        self._connections = Gauge(
            "fastlstm_connections", "WebSocket connections.", registry=registry
        )
        self.connected, self.gone = self._connections.inc, self._connections.dec
        self._refused = {kind: self._refusals.labels(kind.value) for kind in Kind}

    def of(self, model: str) -> ModelMetrics:
        """Those of one model."""
        return ModelMetrics(
            batch=self._batches.labels(model).observe,
            steps=self._steps.labels(model).inc,
            seconds={name: self._seconds.labels(model, name).observe for name in PROTOCOLS},
            streams=self._streams.labels(model).set_function,
        )

    def refused(self, kind: Kind) -> None:
        self._refused[kind].inc()

    def page(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)


class ModelMetrics:
    """The counters of one model.

    Parameters
    ----------
    batch, steps : callable of int
        Count a call of so many requests, and steps.
    seconds : mapping of str to callable of float
        Of each protocol, count a request that took so long.
    streams : callable of a callable
        Say how the open streams are counted.
    """

    def __init__(
        self,
        batch: Callable[[float], None],
        steps: Callable[[float], None],
        seconds: dict[str, Callable[[float], None]],
        streams: Callable[[Callable[[], float]], None],
    ) -> None:
        self.batch, self.steps, self.seconds, self.streams = batch, steps, seconds, streams
