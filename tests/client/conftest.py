"""One server for all of the client's tests: each leaves nothing behind but blobs of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.serving import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("client")
    server = Server(
        directory / "store",
        directory / "log",
        *("--grpc", "127.0.0.1:0", "--http", "none", "--workers", "1"),
    )
    yield server
    server.stop()


@pytest.fixture
def url(server: Server) -> str:
    return f"grpc://{server.address}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the caches of who runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("xdg")))
