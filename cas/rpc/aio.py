"""The engine on public gRPC: grpc.aio, on a loop of its own in a thread of its own.

Rule: everything of asyncio and grpc.aio that serving needs, and no private API.  What
grpc.aio does differently from the promises of `cas.rpc.handler` is made good here, in
`_Call`; the rest of the server does not know which engine it runs on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import grpc
import grpc.aio

from cas.rpc.call import Call
from cas.rpc.handler import EOF, EngineOptions, Handlers, Metadata, Pending, default_arguments
from cas.rpc.method import STALLED, TOO_MANY, Method, Methods

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CANCELLATION = 5.0
"""Seconds within which the core reports a call as cancelled once an operation failed on it."""


def make_engine(options: EngineOptions) -> AioEngine:
    return AioEngine(options)


class AioEngine:
    """An `Engine`.  Its thread runs from construction until the drain is over."""

    name: Literal["aio"] = "aio"

    def __init__(self, options: EngineOptions) -> None:
        self._loop = _new_loop()
        self._helpers = ThreadPoolExecutor(options.helper_threads, "rpc-helper")
        self.runtime = AioRuntime(self._loop, self._helpers)
        self._methods = Methods(options.metrics, options.tools)
        self._service = _Service(self._methods, options.max_concurrent_calls, options.stall_timeout)
        self._over = asyncio.Event()
        self._drains: set[asyncio.Task[None]] = set()
        self._terminated = threading.Event()
        self._server: grpc.aio.Server | None = None
        threading.Thread(target=self._run, name="rpc-aio", daemon=True).start()
        self._on_loop(self._make_server(options))

    def add_generic_rpc_handlers(self, handlers: Handlers, /) -> None:
        self._methods.add(handlers)

    def add_insecure_port(self, address: str, /) -> int:
        return self._bind(address, lambda server: server.add_insecure_port(address))

    def add_secure_port(self, address: str, credentials: grpc.ServerCredentials, /) -> int:
        return self._bind(address, lambda server: server.add_secure_port(address, credentials))

    def start(self) -> None:
        async def start() -> None:
            await self._running().start()

        self._on_loop(start())

    def stop(self, grace: float | None, /) -> None:
        try:
            self._loop.call_soon_threadsafe(self._begin_drain, grace)
        except RuntimeError:  # closed: over already
            return

    def wait_for_termination(self, timeout: float | None = None, /) -> bool:
        return self._terminated.wait(timeout)

    def alive(self, timeout: float, /) -> bool:
        answered = threading.Event()
        try:
            self._loop.call_soon_threadsafe(answered.set)
        except RuntimeError:  # closed
            return False
        return answered.wait(timeout)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._over.wait())
            self._helpers.shutdown(wait=True, cancel_futures=True)
            # grpc.aio lets go of the loop with its last object.
            self._server = None
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
        finally:
            self._terminated.set()

    async def _make_server(self, options: EngineOptions) -> None:
        self._server = grpc.aio.server(
            handlers=[self._service],
            options=default_arguments(options),
        )

    def _running(self) -> grpc.aio.Server:
        if self._server is None:
            raise RuntimeError("the engine has been stopped")
        return self._server

    def _bind(self, address: str, bind: Callable[[grpc.aio.Server], int]) -> int:
        async def add() -> int:
            return bind(self._running())

        try:
            port = self._on_loop(add())
        except RuntimeError as error:
            raise OSError(f"cannot bind {address!r}: {error}") from error
        if not port:
            raise OSError(f"cannot bind {address!r}")
        return port

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _begin_drain(self, grace: float | None) -> None:
        # A second stop with less grace shortens the first: grpc.aio takes the smallest.
        drain = self._loop.create_task(self._drain(grace))
        self._drains.add(drain)
        drain.add_done_callback(self._drains.discard)

    async def _drain(self, grace: float | None) -> None:
        if self._server is not None:
            await self._server.stop(grace)
        await self._service.idle()
        self._over.set()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class AioRuntime:
    """A `Runtime` for coroutines on `loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, helpers: ThreadPoolExecutor) -> None:
        self._loop = loop
        self._helpers = helpers

    async def wait(self, pending: Pending[T], /) -> T:
        done = self._loop.create_future()

        def wake() -> None:
            if not done.done():  # the waiter may have been cancelled meanwhile
                done.set_result(None)

        def callback() -> None:
            try:
                self._loop.call_soon_threadsafe(wake)
            except RuntimeError:
                # Closed: the waiter was cancelled, and is gone.
                return

        pending.add_done_callback(callback)
        await done
        return pending.result()

    async def offload(self, function: Callable[..., T], /, *args: Any) -> T:
        job = self._helpers.submit(function, *args)
        try:
            return await asyncio.shield(asyncio.wrap_future(job))
        except asyncio.CancelledError:
            if not job.cancel():
                ended = asyncio.wrap_future(job)
                await asyncio.wait([ended])
                ended.exception()  # Seen: nobody is left to tell it to.
            raise


class _Service(grpc.GenericRpcHandler):
    """The one handler that grpc.aio is given: runs every method through a `_Call`."""

    def __init__(self, methods: Methods, limit: int, stall_timeout: float) -> None:
        self._methods = methods
        self._limit = limit
        self._stall_timeout = stall_timeout
        self._known: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        name = details.method
        handler = self._known.get(name)
        if handler is None:
            method = self._methods.find(name, details.invocation_metadata)
            if method is not None:
                handler = self._known[name] = self._handler(method)
        return handler

    async def idle(self) -> None:
        """Returns when no handler is running."""
        await self._idle.wait()

    def _handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        async def answer(_: object, context: Any) -> Any:
            # grpc.aio's own limit miscounts in 1.74 and 1.78, until it refuses every call.
            if self._active >= self._limit:
                method.requests.ended(grpc.StatusCode.RESOURCE_EXHAUSTED, "", 0.0, 0, 0)
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY)
            self._active += 1
            self._idle.clear()
            try:
                return await _Call(method, context, self._stall_timeout).run()
            finally:
                self._active -= 1
                if not self._active:
                    self._idle.set()

        # Requests are always read from a stream: where grpc.aio itself reads the one request,
        # a client that half-closes without it is never answered.
        make: Any = grpc.stream_unary_rpc_method_handler
        if method.response_streaming:
            make = grpc.stream_stream_rpc_method_handler
        handler: grpc.RpcMethodHandler[Any, Any] = make(answer)
        return handler


class _Call(Call):
    """A `Context` over grpc.aio's ServicerContext."""

    def __init__(self, method: Method, context: Any, stall_timeout: float) -> None:
        super().__init__(method)
        self._context = context
        self._stall_timeout = stall_timeout
        self._task = asyncio.current_task()
        self._responding = False
        self._lost = False

    async def run(self) -> Any:
        """Runs the handler; the response as bytes, or None where responses are streamed.

        Answers after the handler has cleaned up, also where it aborts.
        """
        try:
            return await self._run()
        finally:
            self.ended(cancelled=self.cancelled())

    async def _run(self) -> Any:
        method = self.method
        response = None
        try:
            request = self if method.request_streaming else await self.read()
            if request is EOF:
                self.without_request()
            else:
                response = await method.run(request, self)
            if self.status is None and not method.response_streaming:
                response = self.serialized(response)
        except Exception as error:  # noqa: BLE001 - the client is told, and the log
            self.failed(error)
        if self.trailing is not None:
            self._context.set_trailing_metadata(self.trailing)
        if self.status is not None:
            await self._operation(self._context.abort(*self.status))
        return response

    async def read(self) -> Any:
        message = await self._operation(self._context.read())
        if message is EOF:
            await self._tell_half_close_from_cancellation()
            return EOF
        return self.parsed(message)

    async def read_end(self) -> bool:
        return await self._operation(self._context.read()) is EOF

    async def write(self, message: Any, /) -> None:
        data = self.serialized(message)
        self._responding = True
        await self._operation(self._context.write(data))

    def invocation_metadata(self) -> Metadata | None:
        metadata: Metadata | None = self._context.invocation_metadata()
        return metadata

    def peer(self) -> str:
        peer: str = self._context.peer()
        return peer

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        auth: Mapping[str, Sequence[bytes]] = self._context.auth_context()
        return auth

    def time_remaining(self) -> float | None:
        remaining: float | None = self._context.time_remaining()
        return remaining

    def cancelled(self) -> bool:
        # grpc.aio's own is true only once the handler has said so itself.
        return self._lost or (self._task is not None and self._task.cancelling() > 0)

    def done(self) -> bool:
        done: bool = self._context.done()
        return done or self.status is not None

    def add_done_callback(self, callback: Callable[[Any], None], /) -> None:
        def call(_: Any) -> None:
            try:
                callback(self)
            except Exception:
                logger.exception("done callback failed", extra={"method": self.method.name})

        self._context.add_done_callback(call)

    async def _operation(self, operation: Awaitable[T]) -> T:
        """Awaits `operation`, which fails as an `Exception` where the call is gone already."""
        try:
            async with asyncio.timeout(self._stall_timeout):
                return await operation
        except TimeoutError:
            self.status = (grpc.StatusCode.DEADLINE_EXCEEDED, STALLED)
            raise grpc.aio.AbortError(STALLED) from None
        except grpc.aio.InternalError as error:
            if not self.cancelled():
                self._lost = True
                # So that cleaning up is not cancelled once more, by the report on its way.
                await asyncio.sleep(_CANCELLATION)
            raise asyncio.CancelledError from error

    async def _tell_half_close_from_cancellation(self) -> None:
        """A stream of requests ends alike for a half-close and for a cancelled call, whose
        cancellation may be reported a moment later; but only the latter fails to send."""
        if not self._responding:
            self._responding = True
            await self._operation(self._context.send_initial_metadata(()))
