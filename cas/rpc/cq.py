"""The engine on gRPC's C core: one thread polls the completion queue and runs the handlers.

Rule: the only module that may import ``grpc._cython``, which is private to grpcio;
`unsupported` says whether the installed one has what is needed.  Nothing here blocks but the
poll itself, and only the poller runs handlers: other threads meet nothing but `_Call.wake`
and the public methods of `CqEngine`.

How a call goes.  An event carries the tag that its batch was started with, and the tag is
what runs next: a bound method of the call.  A handler's await of an operation starts its
batch and yields; the batch's event sends the coroutine on.  A handler that never has to wait
takes two batches: its request, and response, status and the rest in one.

What the C core gives, and asks for:

- Operations hold C state: each batch gets new ones.  Of each kind, one at a time is under way.
- Whatever of a call is under way when it is cancelled, or its time is up, ends at once; to
  send anything fails then, but the stream of requests ends as for a half-close.
- A handler under way elsewhere hears of it by a ReceiveCloseOnServerOperation only, whose
  batch ends with the call.  Each call needs one: with the status, or when it waits for long.
- A batch without operations is over at once.  Any thread may start one, on a call that has
  not been let go of, and so wake the poller.
- The server's shutdown is over when every call has been let go of, so none may be held for
  longer than its handler runs.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, Literal, TypeVar

import grpc
import grpc.aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # private

from cas.rpc.call import Call
from cas.rpc.handler import EOF, EngineOptions, Handlers, Metadata, default_arguments
from cas.rpc.method import FAILED, STALLED, TOO_MANY, Method, Methods
from cas.rpc.waits import CANCELLED, Helpers, Wait, WaitRuntime

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TICK: Final = 0.2
"""Seconds between two looks at what brings no event: whether the engine is asked if it lives,
and who has waited for so long that a cancellation must reach him.  The binding's poll wakes as
often by itself, to look for signals."""
_TICKS_TO_SWEEP: Final = 10
"""Ticks between two looks at clients that have stalled."""
_REQUESTED: Final = 16
"""Calls that the core may hand over before the poller asks for another."""
_CORKED: Final = 32 * 1024
"""Largest first response message, in bytes, that waits for what follows it.  Most streams of
responses are one message long, and message and status in one batch cost far less than two."""

_STARTED: Final = object()
"""What a handler's await yields when it has started a batch, whose event will resume it."""

_NEVER: Final = 1e12
"""Seconds since the epoch; the core's infinite future is beyond."""


def make_engine(options: EngineOptions) -> CqEngine:
    """Raises RuntimeError where `unsupported`."""
    reason = unsupported()
    if reason is not None:
        raise RuntimeError(f"this grpcio cannot run the cq engine: {reason}")
    return CqEngine(options)


def unsupported() -> str | None:
    """Why the installed grpcio cannot run this engine; None when it can."""
    for name in _NEEDED.split():
        try:
            attrgetter(name)(cygrpc)
        except AttributeError:
            return f"grpc._cython.cygrpc has no {name}"
    try:
        queue = cygrpc.CompletionQueue()
        server = cygrpc.Server((), False)
        server.register_completion_queue(queue)
        server.start()
        server.request_call(queue, queue, "call")
        server.shutdown(queue, "shutdown")
        events = [queue.poll(time.time() + 1) for _ in range(2)]
        server.destroy()
        queue.shutdown()
        got = [(event.tag, event.success) for event in events]
        if sorted(got) != [("call", False), ("shutdown", True)]:
            return f"an idle server's shutdown brought {got}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the reason
        return f"{type(error).__name__}: {error}"
    return None


_NEEDED: Final = """
    CompletionType ReceiveCloseOnServerOperation ReceiveMessageOperation auth_context
    SendInitialMetadataOperation SendMessageOperation SendStatusFromServerOperation
    Server.add_http2_port Server.cancel_all_calls Server.destroy Server.request_call
    Server.register_completion_queue Server.shutdown Server.start
    CompletionQueue.poll CompletionQueue.shutdown
    Call.cancel Call.peer Call.start_server_batch CallDetails.deadline CallDetails.method
"""


class CqEngine:
    """An `Engine`.  Its thread runs from `start` until the drain is over."""

    name: Literal["cq"] = "cq"

    def __init__(self, options: EngineOptions) -> None:
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(default_arguments(options), False)
        self._server.register_completion_queue(self._queue)
        self._helpers = Helpers(options.helper_threads)
        self.runtime = WaitRuntime(self._helpers)
        self._methods = Methods(options.metrics, options.tools)
        self._known: dict[bytes, Method] = {}
        self._limit = options.max_concurrent_calls
        self._stall_ticks = int(options.stall_timeout / _TICK)
        self.ticks = 0
        """Looks so far: the clock that calls note their progress by."""
        self._calls: set[_Call] = set()
        self._ready: deque[tuple[_Call, Wait]] = deque()
        self._woken = False
        self._waiting: list[_Call] = []
        """Calls that may have begun to wait since the last look."""
        self._questions: deque[threading.Event] = deque()
        self._lock = threading.Lock()
        """Of the stage, and of the server's life."""
        self._stage: Literal["new", "serving", "draining", "over"] = "new"
        self._timers: list[threading.Timer] = []
        self._all_gone = False
        """Whether the core has seen the last call end."""
        self._terminated = threading.Event()

    def add_generic_rpc_handlers(self, handlers: Handlers, /) -> None:
        self._methods.add(handlers)

    def add_insecure_port(self, address: str, /) -> int:
        return self._bind(address)

    def add_secure_port(self, address: str, credentials: grpc.ServerCredentials, /) -> int:
        return self._bind(address, credentials._credentials)  # type: ignore[attr-defined]

    def start(self) -> None:
        with self._lock:
            if self._stage != "new":
                raise RuntimeError(f"the engine cannot start: it is {self._stage}")
            self._stage = "serving"
            self._server.start()
        self._helpers.start()
        for _ in range(_REQUESTED):
            self._request_call()
        threading.Thread(target=self._serve, name="rpc-cq", daemon=True).start()

    def stop(self, grace: float | None, /) -> None:
        with self._lock:
            if self._stage == "new":
                self._stage = "over"
                self._terminated.set()
            elif self._stage == "serving":
                self._stage = "draining"
                self._server.shutdown(self._queue, self._on_shutdown)
            if self._stage == "draining" and grace is not None:
                timer = threading.Timer(grace, self._cancel_calls)
                timer.daemon = True
                timer.start()
                self._timers.append(timer)
        if grace is None:
            self._cancel_calls()

    def wait_for_termination(self, timeout: float | None = None, /) -> bool:
        return self._terminated.wait(timeout)

    def alive(self, timeout: float, /) -> bool:
        if self._stage == "over":
            return False
        answered = threading.Event()
        self._questions.append(answered)
        return answered.wait(timeout)

    # -- For its calls ----------------------------------------------------------------------

    def begin_call(self, call: _Call) -> None:
        self._calls.add(call)

    def end_call(self, call: _Call) -> None:
        self._calls.discard(call)

    def look_after(self, call: _Call) -> None:
        """Has `call.watch` called at the next look."""
        self._waiting.append(call)

    def wake(self, call: _Call, wait: Wait, core: Any) -> None:
        """Has the poller resume `call`, if it still waits for `wait`.  From any thread."""
        self._ready.append((call, wait))
        # One event for all that comes before the poller has it.
        if not self._woken:
            self._woken = True
            with self._lock:
                if self._stage != "over":
                    core.start_server_batch((), self._on_wake)

    # -- The poller -------------------------------------------------------------------------

    def _bind(self, address: str, *credentials: Any) -> int:
        port: int = self._server.add_http2_port(address.encode(), *credentials)
        if not port:
            raise OSError(f"cannot bind {address!r}")
        return port

    def _request_call(self) -> None:
        try:
            self._server.request_call(self._queue, self._queue, self._on_call)
        except ValueError:
            # Another thread has begun the shutdown.
            if self._stage == "serving":
                raise

    def _serve(self) -> None:
        poll, time_now = self._queue.poll, time.time
        look = 0.0
        while not self._all_gone or self._calls:
            now = time_now()
            if now >= look:
                look = now + _TICK
                self._look()
            event = poll(look)
            tag = event.tag
            if tag is not None:
                try:
                    tag(event)
                except BaseException:  # one call's bug must not end all others
                    logger.exception("event not handled")
            # An event holds its call, which would otherwise outlive the poll to come.
            del event, tag
        self._end()

    def _look(self) -> None:
        while self._questions:
            self._questions.popleft().set()
        calls, self._waiting = self._waiting, []
        for call in calls:
            call.watch()
        self.ticks += 1
        if self.ticks % _TICKS_TO_SWEEP == 0:
            self._sweep()

    def _sweep(self) -> None:
        """Gives up on clients that neither bring nor take what they owe the call."""
        before = self.ticks - self._stall_ticks
        for call in [call for call in self._calls if call.moved < before]:
            call.give_up()

    def _on_call(self, event: Any) -> None:
        if not event.success:
            return  # the server is shutting down
        self._request_call()
        name = event.call_details.method
        method = self._known.get(name) or self._find(event, name)
        if method is None:
            return
        if len(self._calls) >= self._limit:
            reject(event.call, grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY)
            method.requests.ended(grpc.StatusCode.RESOURCE_EXHAUSTED, "", 0.0, 0, 0)
            return
        _Call(self, method, event).begin()

    def _find(self, event: Any, name: bytes) -> Method | None:
        """The method, or None after the call was answered."""
        try:
            method = self._methods.find(name.decode(), event.invocation_metadata)
        except Exception:
            logger.exception("no handler", extra={"method": name})
            reject(event.call, grpc.StatusCode.UNKNOWN, FAILED)
            return None
        if method is None:
            reject(event.call, grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            return None
        self._known[name] = method
        return method

    def _on_wake(self, event: Any) -> None:
        # Before looking: whatever comes from now on brings a wake-up of its own.
        self._woken = False
        ready = self._ready
        for _ in range(len(ready)):
            call, wait = ready.popleft()
            if call.waiting is wait:
                call.waiting = None
                call.resume(None)

    def _on_shutdown(self, event: Any) -> None:
        self._all_gone = True

    def _end(self) -> None:
        with self._lock:
            self._stage = "over"
            self._server.destroy()
            self._queue.shutdown()
        while self._queue.poll().completion_type != cygrpc.CompletionType.queue_shutdown:
            pass
        for timer in self._timers:
            timer.cancel()
        self._helpers.stop()
        self._terminated.set()

    def _cancel_calls(self) -> None:
        with self._lock:
            if self._stage == "draining":
                self._server.cancel_all_calls()


def reject(core: Any, code: grpc.StatusCode, details: str) -> None:
    """Answers a call that no handler has seen."""
    operations = (
        cygrpc.SendInitialMetadataOperation(None, 0),
        cygrpc.SendStatusFromServerOperation(None, code.value[0], details.encode(), 0),
        cygrpc.ReceiveCloseOnServerOperation(0),
    )
    core.start_server_batch(operations, _ignore)


def _ignore(event: Any) -> None:
    pass


class _Call(Call):
    """One call: the `Context` of its handler, and the trampoline that its coroutine runs on."""

    __slots__ = (
        "_after_flush",
        "_callbacks",
        "_cancelled",
        "_corked",
        "_coroutine",
        "_event",
        "_flushing",
        "_looked_after",
        "_responding",
        "_send",
        "_watching",
        "core",
        "engine",
        "moved",
        "waiting",
    )

    def __init__(self, engine: CqEngine, method: Method, event: Any) -> None:
        super().__init__(method)
        self.engine = engine
        self.core = event.call
        """The core's call; None once it was let go of."""
        self.waiting: Wait | None = None
        self.moved = engine.ticks
        """When the client, or whoever was waited for, last did something."""
        self._event = event
        self._coroutine: Any = None
        self._send: Any = None
        self._looked_after = False
        self._watching = False
        """Whether the batch was started that tells of a cancellation."""
        self._responding = False
        """Whether the initial metadata was sent."""
        self._corked: bytes | None = None
        """The first response message, while it waits for what follows it."""
        self._flushing = False
        """Whether that message is on its way with nobody waiting for it, …"""
        self._after_flush: Callable[[Any], None] | None = None
        """… and who has come to wait since."""
        self._cancelled = False
        self._callbacks: list[Callable[[Any], None]] | None = None

    # -- The trampoline ------------------------------------------------------------------

    def begin(self) -> None:
        self.engine.begin_call(self)
        if self.method.request_streaming:
            self._run(None)
        else:
            operations = (cygrpc.ReceiveMessageOperation(0),)
            self.core.start_server_batch(operations, self._on_request)

    def _on_request(self, event: Any) -> None:
        message = event.batch_operations[0].message()
        if message is None:
            # Cancelled, or half-closed too early; only in the latter case does anyone hear it.
            self.without_request()
            self._finish(None)
        else:
            self._run(message)

    def _run(self, message: bytes | None) -> None:
        """Begins the handler with its one request, or None where it reads them itself."""
        try:
            request = self if message is None else self.parsed(message)
            self._coroutine = coroutine = self.method.run(request, self)
            self._send = coroutine.send
        except Exception as error:  # noqa: BLE001 - the client is told, and the log
            self._fail(error)
        else:
            self.resume(None)

    def resume(self, value: Any) -> None:
        """Runs the handler until it waits, or ends."""
        self.moved = self.engine.ticks
        self._advance(self._send, value)

    def _advance(self, advance: Callable[[Any], Any], value: Any) -> None:
        try:
            while True:
                asked = advance(value)
                if asked is _STARTED:
                    break
                if not isinstance(asked, Wait):
                    advance = self._coroutine.throw
                    value = TypeError(f"a handler cannot await {asked!r}: see cas.rpc.handler")
                    continue
                self._flush()
                self.waiting = asked
                asked.waiter = self
                if not asked.is_done:
                    if not self._looked_after:
                        self._looked_after = True
                        self.engine.look_after(self)
                    break
                self.waiting = None
                advance = self._send
                value = None
        except StopIteration as end:
            self._answer(end.value)
        except BaseException as error:  # noqa: BLE001 - as above; none may end the poller
            self._fail(error)

    def wake(self, wait: Wait, /) -> None:
        core = self.core
        # What is waited for may come when the call has been cancelled, or has long ended.
        if core is not None and self.waiting is wait:
            self.engine.wake(self, wait, core)

    def watch(self) -> None:
        """Has a cancellation end the wait that the handler is in."""
        self._looked_after = False
        if self.waiting is not None and not self._watching and not self._cancelled:
            self._watching = True
            operations = (cygrpc.ReceiveCloseOnServerOperation(0),)
            self.core.start_server_batch(operations, self._on_close)

    def give_up(self) -> None:
        """Ends the call for a client that stalls; one that waits for us does not."""
        if self.waiting is None and self.core is not None:
            # What is under way fails, and the handler is told that the call was cancelled.
            self.core.cancel(grpc.StatusCode.DEADLINE_EXCEEDED.value[0], STALLED)

    def _on_close(self, event: Any) -> None:
        if self.core is None or self._cancelled or not event.batch_operations[0].cancelled():
            return
        self._cancelled = True
        # Operations under way fail by themselves; their event resumes the handler.
        if self.waiting is not None:
            self.waiting = None
            self.resume(CANCELLED)

    def _answer(self, response: Any) -> None:
        message = None
        if self.status is None and not self.method.response_streaming:
            try:
                message = self.serialized(response)
            except grpc.aio.AbortError as error:
                self.failed(error)
        self._finish(message)

    def _fail(self, error: BaseException) -> None:
        if not (self._cancelled and isinstance(error, asyncio.CancelledError)):
            self.failed(error)
        self._finish(None)

    def _finish(self, message: bytes | None) -> None:
        """Sends the status, OK where there is none, and what is still to be sent before it."""
        self._coroutine = None
        if self._cancelled:
            self._let_go()
            return
        if self._flushing:
            self._after_flush = lambda _: self._finish(message)
            return
        self.moved = self.engine.ticks
        code, details = (
            (0, "") if self.status is None else (self.status[0].value[0], self.status[1])
        )
        operations = [cygrpc.SendStatusFromServerOperation(self.trailing, code, details, 0)]
        if not self._responding:
            operations.append(cygrpc.SendInitialMetadataOperation(None, 0))
        if message is None:
            message = self._corked
        if message is not None:
            operations.append(cygrpc.SendMessageOperation(message, 0))
        if not self._watching:
            self._watching = True
            operations.append(cygrpc.ReceiveCloseOnServerOperation(0))
        self._responding = True
        self.core.start_server_batch(operations, self._on_finished)

    def _on_finished(self, event: Any) -> None:
        if self._callbacks is not None:
            # With the close in its batch, the status is sent or not, and the batch succeeds.
            close = event.batch_operations[-1]
            self._cancelled = not event.success or (
                isinstance(close, cygrpc.ReceiveCloseOnServerOperation) and close.cancelled()
            )
        self._let_go()

    def _let_go(self) -> None:
        self.engine.end_call(self)
        self.ended(cancelled=self._cancelled)
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            try:
                callback(self)
            except Exception:
                logger.exception("done callback failed", extra={"method": self.method.name})
        self.core = self._event = self._send = None

    # -- What the handler awaits ---------------------------------------------------------

    @types.coroutine
    def read(self) -> Generator[Any, Any, Any]:
        self._flush()
        if self._cancelled:
            raise asyncio.CancelledError
        operations = (cygrpc.ReceiveMessageOperation(0),)
        self.core.start_server_batch(operations, self.resume)
        event = yield _STARTED
        message = event.batch_operations[0].message()
        if message is None:
            yield from self._tell_half_close_from_cancellation()
        if self._cancelled:
            raise asyncio.CancelledError
        return EOF if message is None else self.parsed(message)

    @types.coroutine
    def read_end(self) -> Generator[Any, Any, bool]:
        self._flush()
        if self._cancelled:
            return True
        operations = (cygrpc.ReceiveMessageOperation(0),)
        self.core.start_server_batch(operations, self.resume)
        event = yield _STARTED
        return event.batch_operations[0].message() is None

    def _tell_half_close_from_cancellation(self) -> Generator[Any, Any, None]:
        """The cancellation may be reported a moment after the end of the stream."""
        if self._cancelled or self._responding:
            return
        # Fails for a cancelled call only, and would be sent anyway.
        self._responding = True
        operations = (cygrpc.SendInitialMetadataOperation(None, 0),)
        self.core.start_server_batch(operations, self.resume)
        event = yield _STARTED
        if not event.success:
            self._cancelled = True

    @types.coroutine
    def write(self, message: Any, /) -> Generator[Any, Any, None]:
        if self._cancelled:
            raise asyncio.CancelledError
        data = self.serialized(message)
        if not self._responding and self._corked is None and len(data) <= _CORKED:
            self._corked = data
            return
        self._flush()
        if self._flushing:
            self._after_flush = self.resume
            yield _STARTED
        operations = [cygrpc.SendMessageOperation(data, 0)]
        if not self._responding:
            self._responding = True
            operations.append(cygrpc.SendInitialMetadataOperation(None, 0))
        self.core.start_server_batch(operations, self.resume)
        event = yield _STARTED
        if not event.success:
            self._cancelled = True
        if self.cancelled():
            raise asyncio.CancelledError

    def _flush(self) -> None:
        """Sends the first message when the handler is about to wait for something else."""
        if self._corked is None:
            return
        operations = (
            cygrpc.SendInitialMetadataOperation(None, 0),
            cygrpc.SendMessageOperation(self._corked, 0),
        )
        self._corked = None
        self._responding = True
        self._flushing = True
        self.core.start_server_batch(operations, self._on_flushed)

    def _on_flushed(self, event: Any) -> None:
        self._flushing = False
        proceed, self._after_flush = self._after_flush, None
        if proceed is not None:
            proceed(event)

    # -- What the handler asks ------------------------------------------------------------

    def invocation_metadata(self) -> Metadata | None:
        if self._event is None:
            return None
        metadata: Metadata = self._event.invocation_metadata
        return metadata

    def peer(self) -> str:
        if self.core is None:
            return ""
        peer: str = self.core.peer().decode()
        return peer

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        auth = cygrpc.auth_context(self.core) if self.core is not None else None
        return {key.decode(): value for key, value in (auth or {}).items()}

    def time_remaining(self) -> float | None:
        deadline = self._event.call_details.deadline if self._event is not None else 0.0
        return max(deadline - time.time(), 0.0) if deadline < _NEVER else None

    def cancelled(self) -> bool:
        return self._cancelled

    def done(self) -> bool:
        return self.status is not None or self._coroutine is None

    def add_done_callback(self, callback: Callable[[Any], None], /) -> None:
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(callback)
