"""What the gateway tells Prometheus: counts and times, never a name of a person or a secret."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The gateway's own registry."""

    def __init__(self) -> None:
        """Begin at zero."""
        self._registry = CollectorRegistry()
        made = self._registry
        self.deliveries = Counter(
            "infraflows_gateway_deliveries",
            "Deliveries by what was answered",
            ("source", "outcome"),
            registry=made,
        )
        self.refusals = Counter(
            "infraflows_gateway_refusals",
            "Deliveries that were not believed, by reason",
            ("source", "reason"),
            registry=made,
        )
        self.seconds = Histogram(
            "infraflows_gateway_answer_seconds",
            "From the request's head to the answer",
            ("source",),
            buckets=_BUCKETS,
            registry=made,
        )
        self.acts = Counter(
            "infraflows_gateway_acts", "What the dispatcher did", ("kind", "outcome"), registry=made
        )
        self.pending = Gauge(
            "infraflows_gateway_pending_deliveries", "Stored and not acted on", registry=made
        )
        self.oldest = Gauge(
            "infraflows_gateway_oldest_pending_seconds", "Age of the oldest of them", registry=made
        )
        self.is_dispatching = Gauge(
            "infraflows_gateway_dispatcher_up", "1 while the dispatcher works", registry=made
        )

    def text(self) -> bytes:
        """Return the exposition."""
        return generate_latest(self._registry)
