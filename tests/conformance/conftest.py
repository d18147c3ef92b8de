"""Servers under test: one per engine for most tests, others of their own where they are hurt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.conformance.client import Client
from tests.conformance.serving import Server

ENGINES = ("aio", "cq")


class Start(Protocol):
    """Starts a server of the test's own; on the directory of an earlier one if it is given."""

    def __call__(self, *arguments: str, directory: Path | None = None) -> Server: ...


def arguments(engine: str) -> list[str]:
    return ["--grpc", "127.0.0.1:0", "--http", "none", "--workers", "1", "--engine", engine]


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def server(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Shared: a test leaves nothing behind but blobs of its own."""
    directory = tmp_path_factory.mktemp(f"conformance-{engine}")
    server = Server(directory / "store", directory / "log", *arguments(engine))
    yield server
    server.stop()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.fixture
def start(engine: str, tmp_path: Path) -> Iterator[Start]:
    servers: list[Server] = []

    def start(*more: str, directory: Path | None = None) -> Server:
        server = Server(
            directory or tmp_path / f"store-{len(servers)}",
            tmp_path / "log",
            *arguments(engine),
            *more,
        )
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.kill()
