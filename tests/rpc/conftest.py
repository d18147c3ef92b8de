"""Every test that asks for an engine runs once per engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from tests.rpc.serving import ENGINES, Server, make_engine, service

Serve = Callable[..., Server]


@pytest.fixture(params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def serve(engine_name: str) -> Iterator[Serve]:
    """Starts an engine on a free port: `serve(method=handler, …)`.

    `options` are those of EngineOptions; a handler that needs the engine's runtime is given
    as a function of it, by `using`.
    """
    with contextlib.ExitStack() as started:

        def start(
            *, options: dict[str, Any] | None = None, using: Any = None, **methods: Any
        ) -> Server:
            engine = make_engine(engine_name, **(options or {}))
            if using is not None:
                methods |= using(engine.runtime)
            handlers: list[grpc.GenericRpcHandler] = [service(**methods)]
            engine.add_generic_rpc_handlers(handlers)
            port = engine.add_insecure_port("127.0.0.1:0")
            server = Server(engine, f"127.0.0.1:{port}")
            started.callback(server.close)
            engine.start()
            return server

        yield start
