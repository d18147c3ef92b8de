"""The health service (grpc.health.v1), in step with the worker's life.

Rule: says what it is told by the worker and decides nothing.  grpcio-health-checking gives
the messages; its servicers block a thread or need asyncio, ours runs on every engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import grpc
from grpc_health.v1 import health_pb2

from cas.rpc.handler import Context, Runtime

SERVICE = "grpc.health.v1.Health"

_Status = health_pb2.HealthCheckResponse

_MAX_NAME = 200
"""Characters of a service name that are quoted back."""


class Health:
    """What this worker answers to health checks.  Thread-safe."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()
        self._services: frozenset[str] = frozenset()
        self._status: int = _Status.NOT_SERVING
        self._draining = False
        self._watchers: set[_Change] = set()

    def serving(self, services: Sequence[str]) -> None:
        """From now on `services`, and the server as a whole (""), are SERVING."""
        with self._lock:
            self._services = frozenset(services) | {""}
            self._status = _Status.SERVING
        self._tell_watchers()

    def ready(self, ready: bool) -> None:
        """From now on what is served is SERVING, or while nothing can be written NOT_SERVING."""
        status = _Status.SERVING if ready else _Status.NOT_SERVING
        with self._lock:
            if self._draining or status == self._status:
                return
            self._status = status
        self._tell_watchers()

    def draining(self) -> None:
        """From now on everything is NOT_SERVING, and watches end: an open one would hold up
        the drain until its timeout."""
        with self._lock:
            self._status = _Status.NOT_SERVING
            self._draining = True
        self._tell_watchers()

    def handler(self) -> grpc.GenericRpcHandler:
        """What an engine serves."""
        request = health_pb2.HealthCheckRequest.FromString
        response = _Status.SerializeToString
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.check, request, response),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch, request, response),
            },
        )

    async def check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """The status of `request.service`; NOT_FOUND for one that is not served."""
        status = self._of(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            name = request.service[:_MAX_NAME]
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {name!r} is served here")
        return _Status(status=status)

    async def watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Sends the status of `request.service` at once and whenever it changes."""
        sent = None
        while True:
            change = _Change()
            with self._lock:
                self._watchers.add(change)
                draining = self._draining
            try:
                status = self._of(request.service)
                if status != sent:
                    await context.write(_Status(status=status))
                    sent = status
                if draining:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is draining")
                await self._runtime.wait(change)
            finally:
                with self._lock:
                    self._watchers.discard(change)

    def _of(self, service: str) -> int:
        with self._lock:
            return self._status if service in self._services else _Status.SERVICE_UNKNOWN

    def _tell_watchers(self) -> None:
        with self._lock:
            watchers = list(self._watchers)
        for change in watchers:
            change.happened()


class _Change:
    """A `Pending` that brings nothing but the news."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._happened = False
        self._callback: Callable[[], None] | None = None

    def add_done_callback(self, callback: Callable[[], None], /) -> None:
        with self._lock:
            if not self._happened:
                self._callback = callback
                return
        callback()

    def result(self) -> None:
        return None

    def happened(self) -> None:
        with self._lock:
            if self._happened:
                return
            self._happened = True
            callback = self._callback
        if callback is not None:
            callback()
