"""Calls that come from this node itself, by way of its upstream, are refused.

Rule: stands before handlers only where upstream is a server; other nodes' calls pass nothing.
Refused before anything is asked of the store, which would ask upstream once more.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import grpc

from cas import errors
from cas.api.status import of
from cas.metrics import families

if TYPE_CHECKING:
    from cas.metrics.instruments import Metrics
    from cas.rpc.handler import Context
    from cas.upstream.nodes import Nodes

QUIET_SECONDS = 900.0
"""Between two lines of the log."""

log = logging.getLogger("cas.api")


class Circle:
    """What is done where a call came round."""

    def __init__(self, nodes: Nodes, metrics: Metrics) -> None:
        self._came_round = nodes.came_round
        self._seen = metrics.gauge(families.UPSTREAM_CIRCLE)
        self._told = -QUIET_SECONDS

    def before(self, handler: grpc.GenericRpcHandler) -> grpc.GenericRpcHandler:
        """`handler`, asked only for what did not."""
        return _Before(handler, self)

    def check(self, context: Context) -> None:
        """Raises Circular."""
        if not self._came_round(context.invocation_metadata() or ()):
            return
        self._seen.set(time.time())
        if time.monotonic() >= self._told + QUIET_SECONDS:
            self._told = time.monotonic()
            log.error(
                "upstream leads back to this node: what this node asks it is asked itself",
                extra={"from": context.peer()},
            )
        raise errors.Circular(
            "the call came from this node itself, by way of its upstream: nodes are each other's "
            "upstream, or a node is its own; the option `upstream` of one of them is wrong"
        )


class _Before(grpc.GenericRpcHandler):
    def __init__(self, handler: grpc.GenericRpcHandler, circle: Circle) -> None:
        self._handler = handler
        self._circle = circle

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        found: Any = self._handler.service(details)
        if found is None:
            return None
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        return found._replace(
            **{kind: self._checked(run) for kind in kinds if (run := getattr(found, kind))}
        )

    def _checked(self, run: Any) -> Any:
        check = self._circle.check

        async def call(request: Any, context: Context) -> Any:
            try:
                check(context)
            except errors.Circular as error:
                return await context.abort(*of(error))
            return await run(request, context)

        return call
