"""What is counted of upstream.

Rule: instruments only, made once for each process; what they are for is `cas.metrics.families`'.
"""

from __future__ import annotations

import time

from cas.metrics import families
from cas.metrics.instruments import Counter, Gauge, Histogram, Metrics

OPERATIONS = ("head", "get", "put", "copy", "delete", "list", "capabilities")
OUTCOMES = ("ok", "absent", "failed", "refused", "late")


class Down:
    """Whether it is left alone, and since when."""

    def __init__(self, gauge: Gauge, since: Gauge) -> None:
        self._gauge = gauge
        self._since = since

    def set(self, value: float) -> None:
        self._gauge.set(value)
        self._since.set(time.time() if value else 0.0)


class Counts:
    """One process's."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests: dict[tuple[str, str], Counter] = {
            (operation, outcome): metrics.counter(families.UPSTREAM_REQUESTS, operation, outcome)
            for operation in OPERATIONS
            for outcome in OUTCOMES
        }
        self._seconds: dict[str, Histogram] = {
            operation: metrics.histogram(families.UPSTREAM_SECONDS, operation)
            for operation in OPERATIONS
        }
        self.retries = metrics.counter(families.UPSTREAM_RETRIES)
        self.remembered = metrics.counter(families.UPSTREAM_REMEMBERED)
        self.received = metrics.counter(families.UPSTREAM_BYTES, "received")
        self.sent = metrics.counter(families.UPSTREAM_BYTES, "sent")
        self.fetched = metrics.counter(families.UPSTREAM_FETCHED)
        self.actions = metrics.counter(families.UPSTREAM_ACTIONS)
        self.bad = metrics.counter(families.UPSTREAM_BAD)
        self.index_asked = metrics.counter(families.UPSTREAM_INDEX, "ok")
        self.index_failed = metrics.counter(families.UPSTREAM_INDEX, "failed")
        self.down = Down(
            metrics.gauge(families.UPSTREAM_DOWN), metrics.gauge(families.UPSTREAM_DOWN_SINCE)
        )

    def asked(self, operation: str, outcome: str, seconds: float) -> None:
        """One request has been answered, or was given up."""
        self._requests[operation, outcome].add()
        self._seconds[operation].observe(seconds)
