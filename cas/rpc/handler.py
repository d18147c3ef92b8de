"""What every RPC engine promises a servicer, and what it asks of one.

Rule: protocols and frozen options only; no engine, no grpc internals, nothing of
the store.  A servicer is a set of ``async def method(self, request, context)``
coroutines that await nothing but the promises below, so the same servicers run
on `cas.rpc.aio` and on `cas.rpc.cq`.

A servicer's coroutine may be ended at any await by an exception that is not an
`Exception` (the call was cancelled, its deadline passed, the server stops): clean
up in ``finally`` or ``except BaseException`` and let it pass.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Protocol, TypeVar

import grpc
import grpc.aio

from cas.metrics.instruments import Metrics
from cas.metrics.tools import Tools

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

EOF: Final = grpc.aio.EOF
"""What `Context.read` returns once the client has half-closed."""

Metadata = Sequence[tuple[str, str | bytes]]


class Pending(Protocol[T_co]):
    """A result that another thread will bring, once."""

    def add_done_callback(self, callback: Callable[[], None], /) -> None:
        """Calls `callback` once when the result is there: from the thread that brings it,
        or at once from this one.  The callback must be short and must not raise."""

    def result(self) -> T_co:
        """The result, or raises the error it ended in.  Only valid once done."""


class Runtime(Protocol):
    """How a servicer waits for other threads without blocking its engine."""

    def wait(self, pending: Pending[T], /) -> Awaitable[T]:
        """Resumes the coroutine with the pending's result, or its error; where the call is
        cancelled, without it."""

    def offload(self, function: Callable[..., T], /, *args: Any) -> Awaitable[T]:
        """Runs `function(*args)` on one of a few helper threads (disk reads, hashing).

        Nothing runs behind the coroutine's back: where the call is cancelled meanwhile, the
        cancellation is raised when the function has returned, or was not begun.
        """


class Context(Protocol):
    """One call, as its servicer sees it: the subset of grpc.aio's ServicerContext in use."""

    instance: str
    """For the servicer to set: the REAPI instance that the call was for, by which it is counted."""
    caller: Any
    """For the servicer to set, where it asks: who calls."""

    def read(self) -> Awaitable[Any]:
        """The next request message of a client stream, or `EOF`.

        A cancelled call's stream ends with the cancellation, not with `EOF`: an `EOF` means
        that the client has half-closed.  One exception: where the handler has written already,
        `EOF` may come first, and the next await of anything that takes time is cancelled.
        """

    def read_end(self) -> Awaitable[bool]:
        """Whether the client's stream is over; False when there was one message more.

        For a handler that has all it needs: to it a cancellation is as good an end as a
        half-close, and telling them apart, as `read` must, costs a round through the core.
        """

    def write(self, message: Any, /) -> Awaitable[None]:
        """Sends one message of a server stream; resumes once the transport took it.

        The first may be held back until the handler waits for something, writes again or ends.
        """

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()
    ) -> NoReturn:
        """Ends the call with `code`, not OK; raises what the handler should let pass.

        The client hears of it when the handler has ended, whatever the handler does until then.
        """

    def set_trailing_metadata(self, trailing_metadata: Metadata, /) -> None:
        """Raises ValueError for what gRPC cannot send (PROTOCOL-HTTP2.md, Custom-Metadata)."""

    def invocation_metadata(self) -> Metadata | None:
        """The client's metadata: (lower-case key, value), values of ``-bin`` keys as bytes."""

    def peer(self) -> str:
        """The client's address as gRPC writes it: ``ipv4:127.0.0.1:5000``, ``unix:``."""

    def auth_context(self) -> Mapping[str, Sequence[bytes]]: ...

    def time_remaining(self) -> float | None:
        """Seconds until the call's deadline; None where it has none."""

    def cancelled(self) -> bool:
        """Whether the client has cancelled the call, gone away, or run out of time."""

    def done(self) -> bool:
        """Whether the call's status is settled: it was aborted, or its handler has ended."""

    def add_done_callback(self, callback: Callable[[Any], None], /) -> None:
        """Calls `callback(context)` on the engine's thread when the call has ended."""


Handlers = Sequence[grpc.GenericRpcHandler]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What a composition root decides for its engine; the same for every engine."""

    max_message_bytes: int
    """Largest request message; a larger one is answered RESOURCE_EXHAUSTED by gRPC."""
    max_concurrent_calls: int
    """Calls served at once; further ones are answered RESOURCE_EXHAUSTED."""
    helper_threads: int
    """Threads behind `Runtime.offload`."""
    stall_timeout: float
    """Seconds for which a client may send or take nothing that a call waits for; then the call
    ends with DEADLINE_EXCEEDED.  Approximate; what the server itself is slow at does not count."""
    metrics: Metrics = field(default_factory=Metrics)
    """Where calls are counted."""
    tools: Tools = field(default_factory=Tools)
    """Shown a call now and then, at its end."""
    channel_arguments: Sequence[tuple[str, int | str]] = ()
    """Further gRPC channel arguments, after the defaults of `default_arguments`."""


class Engine(Protocol):
    """An RPC server.  Every method may be called from any thread.

    Handlers are coroutine functions ``(request, context)``, or for response streams also
    asynchronous generator functions; the request of a request stream is an asynchronous
    iterator over `Context.read`.  Which handler a method has is asked once and then
    remembered, so a `grpc.GenericRpcHandler` must choose by name alone.

    A client is told UNKNOWN, and nothing else, of an exception that a handler lets out; the
    log has it.  A request that cannot be parsed is INVALID_ARGUMENT, a response that cannot be
    serialized is INTERNAL.

    Order of use: add handlers and ports, `start`, then `stop` once, and
    `wait_for_termination` from the thread that has nothing else to do.
    """

    @property
    def name(self) -> str:
        """``aio`` or ``cq``."""

    @property
    def runtime(self) -> Runtime: ...

    def add_generic_rpc_handlers(self, handlers: Handlers, /) -> None: ...

    def add_insecure_port(self, address: str, /) -> int:
        """Binds ``host:port`` (0 picks one) or ``unix:/path``; the port, 1 for a socket path.
        Raises OSError naming the address when it cannot be bound."""

    def add_secure_port(self, address: str, credentials: grpc.ServerCredentials, /) -> int: ...

    def start(self) -> None: ...

    def stop(self, grace: float | None, /) -> None:
        """Begins the drain and returns at once: no new calls, running ones may finish within
        `grace` seconds (None: none may), then what is left is cancelled."""

    def wait_for_termination(self, timeout: float | None = None, /) -> bool:
        """Blocks until the drain is over; False when `timeout` seconds passed before that.

        After it no handler runs, nor anything that one has offloaded.
        """

    def alive(self, timeout: float, /) -> bool:
        """Whether the engine's own loop answers within `timeout` seconds (liveness must come
        from the loop itself)."""


def default_arguments(options: EngineOptions) -> list[tuple[str, int | str]]:
    """The channel arguments that both engines use.

    The keep-alive settings let clients ping as they like: Bazel's idle connections hang or
    are torn down by gRPC's strict defaults (bazel#11782, bazel#27752).
    """
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Of one connection: a client that has more to ask waits, and leaves room for others.
        ("grpc.max_concurrent_streams", 1_024),
        ("grpc.so_reuseport", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        *options.channel_arguments,
    ]
