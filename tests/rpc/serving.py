"""What the engines' tests serve with: an engine on a port, handlers by name, clients.

Rule: helpers only; no test, no assertion about an engine.
"""

from __future__ import annotations

import contextlib
import importlib
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from cas.rpc.handler import Engine, EngineOptions

ENGINES = ("aio", "cq")

SERVICE = "test.Service"

PATIENCE = 20.0
"""Seconds that a test waits for what must happen; never a measure of anything."""

REFUSED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What a call gets from a server that has begun to drain, or has cancelled it."""

UNARY_UNARY = grpc.unary_unary_rpc_method_handler
UNARY_STREAM = grpc.unary_stream_rpc_method_handler
STREAM_UNARY = grpc.stream_unary_rpc_method_handler
STREAM_STREAM = grpc.stream_stream_rpc_method_handler


def make_engine(name: str, **changes: Any) -> Engine:
    options: dict[str, Any] = {
        "max_message_bytes": 4 << 20,
        "max_concurrent_calls": 100,
        "helper_threads": 2,
        "stall_timeout": 3_600.0,
    }
    engine: Engine = importlib.import_module(f"cas.rpc.{name}").make_engine(
        EngineOptions(**(options | changes))
    )
    return engine


def service(**methods: Any) -> grpc.GenericRpcHandler:
    """Handlers of `SERVICE`, by method name."""
    return grpc.method_handlers_generic_handler(SERVICE, methods)


@dataclass
class Server:
    """A started engine and clients of it."""

    engine: Engine
    target: str
    channels: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def channel(self, *options: tuple[str, Any], **arguments: Any) -> grpc.Channel:
        """A connection of its own."""
        own = [("grpc.use_local_subchannel_pool", 1), *options]
        channel = grpc.insecure_channel(self.target, options=own, **arguments)
        return self.channels.enter_context(channel)

    def close(self) -> None:
        self.channels.close()
        self.engine.stop(None)
        assert self.engine.wait_for_termination(PATIENCE), "the engine does not end"


def unary_unary(channel: grpc.Channel, method: str, **codec: Any) -> Any:
    return channel.unary_unary(f"/{SERVICE}/{method}", **codec)


def unary_stream(channel: grpc.Channel, method: str, **codec: Any) -> Any:
    return channel.unary_stream(f"/{SERVICE}/{method}", **codec)


def stream_unary(channel: grpc.Channel, method: str, **codec: Any) -> Any:
    return channel.stream_unary(f"/{SERVICE}/{method}", **codec)


def stream_stream(channel: grpc.Channel, method: str, **codec: Any) -> Any:
    return channel.stream_stream(f"/{SERVICE}/{method}", **codec)


def code_of(call: Callable[[], Any]) -> grpc.StatusCode:
    """The code that `call` ends in."""
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def eventually(condition: Callable[[], Any]) -> bool:
    """Whether `condition` comes true before patience ends."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


class Result:
    """A `cas.rpc.handler.Pending`, brought by whom the test lets bring it."""

    def __init__(self) -> None:
        self.waited_for = threading.Event()
        self._lock = threading.Lock()
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._callback: Callable[[], None] | None = None

    def add_done_callback(self, callback: Callable[[], None], /) -> None:
        with self._lock:
            done = self._done
            self._callback = callback
        self.waited_for.set()
        if done:
            callback()

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value

    def bring(self, value: Any = None, error: BaseException | None = None) -> None:
        with self._lock:
            self._done, self._value, self._error = True, value, error
            callback = self._callback
        if callback is not None:
            callback()


class Endless:
    """A stream of requests that ends when the test says so."""

    def __init__(self, *first: bytes) -> None:
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        for message in first:
            self.send(message)

    def send(self, message: bytes) -> None:
        self._messages.put(message)

    def half_close(self) -> None:
        self._messages.put(None)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        message = self._messages.get()
        if message is None:
            raise StopIteration
        return message


class Wire:
    """The connections of a `relay`."""

    def __init__(self, listener: socket.socket, target: str) -> None:
        self.sent = 0
        """Bytes that clients have got from the server."""
        self._listener = listener
        host, port = target.split(":")
        self._server = (host, int(port))
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def cut(self) -> None:
        """Drops all connections, and takes no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for end in self._ends:
            with contextlib.suppress(OSError):
                # A reset, as from a machine that has lost its memory of the connection.
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self.cut()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _start(self, run: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._server)
                self._ends += [near, far]
                self._start(self._pump, near, far, False)
                self._start(self._pump, far, near, True)

    def _pump(self, source: socket.socket, sink: socket.socket, count: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if count:
                    self.sent += len(data)
                sink.sendall(data)


@contextlib.contextmanager
def relay(target: str) -> Iterator[tuple[str, Wire]]:
    """A TCP relay to `target`: its own address, and its connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wire = Wire(listener, target)
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", wire
        finally:
            wire.close()
