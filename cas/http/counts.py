"""What the metrics say of HTTP requests.

Rule: counts what has ended; label values are a fixed few, whatever clients send.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from http import HTTPStatus

from aiohttp.web import BaseRequest

from cas.http.context import Reply
from cas.metrics.instruments import OTHER, Metrics

_GONE = "499"
"""For a client that has gone before it had its answer, as nginx says it."""

_CODES = {status.value: str(status.value) for status in HTTPStatus}


class Counts:
    """One for each process."""

    def __init__(self, metrics: Metrics, methods: Iterable[str]) -> None:
        self._methods = {method: metrics.requests("http", method) for method in methods}
        self._other = metrics.requests("http", OTHER)

    def ended(self, request: BaseRequest, counted: Counted) -> None:
        """`request` is over."""
        reply = counted.reply
        self._methods.get(request.method, self._other).ended(
            _CODES[reply.status] if reply is not None and counted.sent else _GONE,
            counted.instance,
            time.monotonic() - counted.began,
            request.content.total_bytes,
            0 if reply is None else reply.sent,
        )


class Counted:
    """What becomes known of a request on its way; made when it has come."""

    __slots__ = ("began", "instance", "reply", "sent")

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.instance = ""
        self.reply: Reply | None = None
        self.sent = False
        """Whether all of the reply went out."""
