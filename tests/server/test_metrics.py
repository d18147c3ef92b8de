"""The board of a running server: which process counts where, and what a death leaves."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from cas.metrics import exposition, families
from cas.metrics.board import Board
from cas.metrics.instruments import Metrics
from tests.server.serving import PATIENCE, Server, Start, channel, until


@contextmanager
def board(server: Server) -> Iterator[Board]:
    """The server's own, as its processes have it."""
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    fd = next(at for at in descriptors.iterdir() if "memfd:cas-metrics" in os.readlink(at))
    with closing(Board(os.open(fd, os.O_RDWR | os.O_CLOEXEC))) as opened:
        yield opened


def processes(board: Board) -> dict[tuple[str, int], Any]:
    return {(at["role"], at["worker"]): at["pid"] for at in exposition.status(board)["processes"]}


def health(channel: grpc.Channel, service: str = "") -> int:
    """What the server's own health service says."""
    request = health_pb2.HealthCheckRequest(service=service)
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return int(check(request, timeout=PATIENCE).status)


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
        assert 'cas_log_messages_total{level="error",logger="cas.server.supervisor"} 1.0' in text

        server.process.terminate()
        assert server.ends() == 0
        assert exposition.status(seen)["reason"] == "no worker serves"
        assert list(processes(seen)) == []


def test_health_is_in_step_with_whether_the_store_takes_writes(start: Start) -> None:
    server = start()
    with board(server) as seen, channel(server) as connection:
        until(lambda: exposition.status(seen)["ready"], "the worker counts as ready")
        assert health(connection) == health_pb2.HealthCheckResponse.SERVING
        # As a janitor says it, on a sheet that nobody else writes.
        full = Metrics(seen.sheet(16)).gauge(families.STORE_FULL)
        full.set(1)
        until(
            lambda: health(connection) == health_pb2.HealthCheckResponse.NOT_SERVING,
            "a server without room is not healthy",
        )
        name = "google.bytestream.ByteStream"
        assert health(connection, name) == health_pb2.HealthCheckResponse.NOT_SERVING
        full.set(0)
        until(
            lambda: health(connection) == health_pb2.HealthCheckResponse.SERVING,
            "it is once there is room",
        )
        text = exposition.render(seen).decode()
        assert 'method="Health/Check"' in text


def test_the_http_front_shows_what_all_processes_count(start: Start) -> None:
    server = start("--http", "127.0.0.1:0")
    with channel(server) as connection:
        health(connection)

    def get(path: str) -> tuple[int, str]:
        client = http.client.HTTPConnection(server.http, timeout=PATIENCE)
        with closing(client):
            client.request("GET", path)
            answer = client.getresponse()
            return answer.status, answer.read().decode()

    until(lambda: get("/readyz")[0] == 200, "the server is ready")
    status, text = get("/metrics")
    assert status == 200
    labels = 'code="OK",instance_name="",method="Health/Check",protocol="grpc"'
    assert f"cas_requests_total{{{labels}}} 1.0\n" in text
    assert 'code="200",instance_name="",method="GET",protocol="http"' in text
    told = json.loads(get("/status")[1])
    assert told["ready"]
    assert {"supervisor", "grpc", "http"} <= {at["role"] for at in told["processes"]}
