"""The service: from a request to its answer.

Rule: `Service.__call__` reads top to bottom: what is asked, by whom, the protocol's answer,
errors by the one table.  aiohttp's own application, router and access log are not used: they
cost as much as all of the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import cast

from aiohttp.web import BaseRequest, RequestHandler, StreamResponse

from cas.errors import LimitExceeded
from cas.http import actions, blobs, values, webdav
from cas.http.answers import Answer, refusal
from cas.http.context import Context, Reply
from cas.http.counts import Counted, Counts
from cas.http.gate import Gate, dropped
from cas.http.paths import Kind, Target, parse
from cas.http.status import Refused, of
from cas.metrics.instruments import Metrics
from cas.metrics.tools import Tools

Handler = Callable[[Context, BaseRequest, Target], Awaitable[Reply]]

Page = Callable[[BaseRequest], Awaitable[Reply]]
"""Answers one fixed path, whatever is served else: ``/status`` and its like."""

FOR_PEOPLE = "/-/"
"""What paths begin with that only the page at ``/`` asks for: they are counted apart."""

ROUTES: dict[Kind, dict[str, Handler]] = {
    "cas": {"GET": blobs.read, "HEAD": blobs.read, "PUT": blobs.write},
    "ac": {"GET": actions.read, "HEAD": actions.read, "PUT": actions.write},
    "cache": {
        "GET": values.read,
        "HEAD": values.read,
        "PUT": values.write,
        "DELETE": values.delete,
    },
    "webdav": {
        "GET": webdav.read,
        "HEAD": webdav.read,
        "PUT": webdav.write,
        "DELETE": values.delete,
        "PROPFIND": webdav.find,
        "MKCOL": webdav.make_collection,
    },
    "turborepo": {
        "GET": values.read_turborepo,
        "HEAD": values.read_turborepo,
        "PUT": values.write_turborepo,
        "POST": values.post_turborepo,
    },
    "nx": {"GET": values.read, "HEAD": values.read, "PUT": values.write_nx},
}

OPEN_PAGES = frozenset({"/healthz", "/readyz"})
"""Answered to everyone: what starts and stops servers asks them, and has no credentials."""

log = logging.getLogger("cas.http")


class Service:
    """What an HTTP server calls for each request."""

    def __init__(
        self,
        context: Context,
        pages: Mapping[str, Page] | None = None,
        metrics: Metrics | None = None,
        gate: Gate | None = None,
        tools: Tools | None = None,
    ) -> None:
        """`pages` maps fixed paths to what answers GET and HEAD of them; without a `gate`
        everyone may do everything; `tools` counts who asks."""
        self._context = context
        self._gate = gate
        methods = {method for row in ROUTES.values() for method in row}
        self._counts = Counts(metrics or Metrics(), [*methods, "OPTIONS"], tools)
        self._pages = pages or {}
        self.busy: set[RequestHandler] = set()
        """Connections whose requests are being served, until their answers have been sent."""
        self.draining = False
        """Whether connections end with the answers that they get."""
        self.drained = asyncio.Event()
        """Set once it is draining and nothing is busy."""

    async def __call__(self, request: BaseRequest) -> StreamResponse:
        connection = request.protocol
        self.busy.add(connection)
        counted = Counted()
        try:
            reply = await self._guarded(request, counted)
            keep_alive = request.keep_alive and not self.draining
            counted.reply = reply
            await reply.send(request, keep_alive=keep_alive)
            counted.sent = True
        except TimeoutError:
            # Only the sending has no answer of its own to that.
            raise ConnectionAbortedError("the client takes nothing") from None
        except ConnectionAbortedError:
            if request.transport is not None:
                request.transport.abort()
            raise
        finally:
            self.busy.discard(connection)
            self._counts.ended(request, counted)
            if self.draining and not self.busy:
                self.drained.set()
        return cast(StreamResponse, _KEPT if keep_alive else _CLOSED)

    async def _guarded(self, request: BaseRequest, counted: Counted) -> Reply:
        """The answer, whatever happens; but ConnectionError where nobody is there to get it."""
        try:
            return await self._reply(request, counted)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            answer = refusal(*of(error))
            counted.refused = bytes(answer.body).decode().rstrip("\n")
            return answer

    async def _reply(self, request: BaseRequest, counted: Counted) -> Reply:
        if len(self.busy) > self._context.limits.max_requests:
            raise LimitExceeded(
                f"{len(self.busy)} requests are served, the limit (max_concurrent_calls) is "
                f"{self._context.limits.max_requests}"
            )
        raw = request.raw_path
        if self._pages and (page := self._pages.get(path := raw.partition("?")[0])) is not None:
            counted.for_people = path == "/" or path.startswith(FOR_PEOPLE)
            if self._gate is not None and path not in OPEN_PAGES:
                await self._gate.admit_anywhere(request)
            if request.method not in ("GET", "HEAD"):
                raise _not_allowed(request.method, ("GET", "HEAD"))
            return await page(request)
        method = request.method
        if raw == "*" and method == "OPTIONS":
            return Answer(204, _options(sorted({m for row in ROUTES.values() for m in row})))
        target = parse(raw, self._context.limits.functions)
        counted.instance = target.instance
        handlers = ROUTES[target.kind]
        handler = handlers.get(method)
        kept = self._gate is None or await self._gate.admit(request, target)
        if handler is None:
            if method == "OPTIONS":
                return Answer(204, _options(handlers))
            raise _not_allowed(method, handlers)
        if not kept:
            await self._context.body(request).discard()
            return dropped(request, target)
        return await handler(self._context, request, target)


class _Sent:
    """What aiohttp's server asks of a response that has been sent already."""

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, request: BaseRequest) -> None:
        """It was sent."""

    async def write_eof(self) -> None:
        """It was sent."""


_KEPT, _CLOSED = _Sent(keep_alive=True), _Sent(keep_alive=False)


def _options(methods: Mapping[str, object] | list[str]) -> bytes:
    return f"Allow: {_listed(methods)}\r\nDAV: 1\r\n".encode()


def _not_allowed(method: str, methods: Mapping[str, object] | tuple[str, ...]) -> Refused:
    return Refused(
        HTTPStatus.METHOD_NOT_ALLOWED,
        f"{method[:40]!r} is not served here; expected one of {_listed(methods)}",
        Allow=_listed(methods),
    )


def _listed(methods: Mapping[str, object] | list[str] | tuple[str, ...]) -> str:
    return ", ".join((*methods, "OPTIONS"))
