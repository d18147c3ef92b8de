"""The `start` fixture: servers that end with their test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.serving import Server, Start, spawn


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers, on a free port and in a directory of this test unless told otherwise."""
    servers: list[Server] = []

    def start(*arguments: str, wait: bool = True) -> Server:
        defaults = ["--dir", str(tmp_path / "store"), "--grpc", "127.0.0.1:0", "--workers", "1"]
        defaults += ["--http", "none"]
        server = spawn(tmp_path / f"log-{len(servers)}", [*defaults, *arguments])
        servers.append(server)
        if wait:
            server.await_ready()
        return server

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()
        assert server.process.stdout is not None
        server.process.stdout.close()
