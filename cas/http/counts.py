"""What the metrics say of HTTP requests.

Rule: counts what has ended; label values are a fixed few, whatever clients send.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from http import HTTPStatus

from aiohttp.web import BaseRequest

from cas.http.context import Reply
from cas.metrics.history import PAGE
from cas.metrics.instruments import OTHER, Metrics
from cas.metrics.tools import Tools, product

_GONE = "499"
"""For a client that has gone before it had its answer, as nginx says it."""

_CODES = {status.value: str(status.value) for status in HTTPStatus}


class Counts:
    """One for each process."""

    def __init__(
        self, metrics: Metrics, methods: Iterable[str], tools: Tools | None = None
    ) -> None:
        self._methods = {method: metrics.requests("http", method) for method in methods}
        self._other = metrics.requests("http", OTHER)
        self._page = metrics.requests("http", PAGE)
        self._tools = tools or Tools()

    def ended(self, request: BaseRequest, counted: Counted) -> None:
        """`request` is over."""
        reply = counted.reply
        requests = self._methods.get(request.method, self._other)
        if counted.for_people:
            requests = self._page
        code = _CODES[reply.status] if reply is not None and counted.sent else _GONE
        requests.ended(
            code,
            counted.instance,
            time.monotonic() - counted.began,
            request.content.total_bytes,
            0 if reply is None else reply.sent,
        )
        # What somebody types into the page is no error of a client's.
        if counted.refused is not None and not (counted.for_people and code < "500"):
            requests.failed(code, counted.instance, counted.refused)
        if not counted.for_people:
            tools = self._tools
            tools.left -= 1
            if tools.left <= 0:
                tools.count(request, enter=code.startswith("2"))


def tool(request: BaseRequest) -> str:
    """What the client calls itself: for counting."""
    return product(request.headers.get("User-Agent", ""))


class Counted:
    """What becomes known of a request on its way; made when it has come."""

    __slots__ = ("began", "for_people", "instance", "refused", "reply", "sent")

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.instance = ""
        self.for_people = False
        """Whether it belongs to the page at ``/``."""
        self.refused: str | None = None
        """What the client was told instead of an answer."""
        self.reply: Reply | None = None
        self.sent = False
        """Whether all of the reply went out."""
