"""The board of a running server: which process counts where, and what a death leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from cas.metrics import exposition
from cas.metrics.board import Board
from tests.server.serving import Server, Start, until


@contextmanager
def board(server: Server) -> Iterator[Board]:
    """The server's own, as its processes have it."""
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    fd = next(at for at in descriptors.iterdir() if "memfd:cas-metrics" in os.readlink(at))
    with closing(Board(os.open(fd, os.O_RDWR | os.O_CLOEXEC))) as opened:
        yield opened


def processes(board: Board) -> dict[tuple[str, int], Any]:
    return {(at["role"], at["worker"]): at["pid"] for at in exposition.status(board)["processes"]}


def test_each_process_is_there_and_again_after_its_death(start: Start) -> None:
    server = start("--workers", "2")
    with board(server) as seen:
        until(lambda: len(processes(seen)) == 4, "supervisor, two workers, janitor")
        before = processes(seen)
        assert before["supervisor", 0] == server.process.pid
        assert before["janitor", 0] == server.janitor()
        assert {before["grpc", 0], before["grpc", 1]} == set(server.workers())
        assert exposition.status(seen)["ready"]

        server.kill(before["grpc", 1])
        until(lambda: bool(server.again()), "another worker in its place")
        until(lambda: len(processes(seen)) == 4, "its entry")
        after = processes(seen)
        assert after["grpc", 1] == server.again()[0]
        assert after["grpc", 0] == before["grpc", 0]
        text = exposition.render(seen).decode()
        assert 'cas_worker_ends_total{how="died",role="grpc"} 1.0' in text
        assert 'cas_workers_wanted{role="grpc"} 2.0' in text

        server.process.terminate()
        assert server.ends() == 0
        assert exposition.status(seen)["reason"] == "no worker serves"
        assert list(processes(seen)) == []
