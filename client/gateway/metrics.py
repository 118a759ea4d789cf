"""The gateway's figures, as Prometheus reads them; no label takes a value from a request."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """What is counted, for one gateway.

    Attributes:
        requests: by route, method and code of the answer.
        images: by outcome: ``stored``, ``repeat`` (of an idempotency key), ``failed``.
        storing: seconds from the last byte of an image to the answer of the broker.
        streams: open server-sent-event streams.
        held: bytes of images in memory.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=True)
        self.requests = Counter(
            "couturier_gateway_requests", "Requests.", ("route", "method", "code"), registry=self._registry
        )
        self.images = Counter("couturier_gateway_images", "Images.", ("outcome",), registry=self._registry)
        for outcome in ("stored", "repeat", "failed"):
            self.images.labels(outcome)
        self.storing = Histogram(
            "couturier_gateway_store_seconds", "Until the broker had an image.", registry=self._registry
        )
        self.streams = Gauge("couturier_gateway_streams", "Open event streams.", registry=self._registry)
        self.held = Gauge(
            "couturier_gateway_held_bytes", "Bytes of images in memory.", registry=self._registry
        )

    def text(self) -> bytes:
        """Return the page."""
        return generate_latest(self._registry)
