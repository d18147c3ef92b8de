"""What operators read, and what HTTP's own requests look like in it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from cas.metrics import families
from cas.metrics.board import new_board
from cas.metrics.instruments import OTHER, Metrics
from cas.store.memory import MemoryStore
from tests.http.serving import PATIENCE, Served, serving, sha
from tests.metrics.reading import value


@dataclass
class Watched:
    """A server whose supervisor is the test."""

    served: Served
    supervisor: Metrics
    metrics: Metrics


@pytest.fixture
def watched() -> Iterator[Watched]:
    with closing(new_board()) as board:
        supervisor, front = board.sheet(0), board.sheet(1)
        supervisor.belongs_to("supervisor", 0)
        front.belongs_to("http", 0)
        metrics = Metrics(front)
        with serving(MemoryStore(), board=board, metrics=metrics) as served:
            yield Watched(served, Metrics(supervisor), metrics)


def counted(metrics: Metrics, method: str, code: str, instance: str = "") -> float:
    return value(metrics, families.REQUESTS, "http", method, code, instance)


def test_who_lives_is_live(watched: Watched) -> None:
    reply = watched.served.get("/healthz")
    assert (reply.status, reply.text) == (200, "ok\n")
    assert reply.headers["cache-control"] == "no-store"


def test_ready_once_a_worker_serves_and_while_there_is_room(watched: Watched) -> None:
    reply = watched.served.get("/readyz")
    assert (reply.status, reply.text) == (503, "not ready: no worker serves\n")
    watched.supervisor.gauge(families.WORKERS, "grpc").set(2)
    assert watched.served.get("/readyz").status == 200
    watched.supervisor.gauge(families.STORE_FULL).set(1)
    reply = watched.served.get("/readyz")
    assert (reply.status, reply.text) == (503, "not ready: the store has no room\n")


def test_metrics_are_for_prometheus(watched: Watched) -> None:
    reply = watched.served.get("/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain; version=")
    names = {family.name for family in parse(reply.text)}
    assert {"cas_requests", "cas_request_seconds", "cas_build_info"} <= names


def test_status_is_json(watched: Watched) -> None:
    reply = watched.served.get("/status")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert [at["role"] for at in json.loads(reply.body)["processes"]] == ["supervisor", "http"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/status"])
def test_they_are_only_read(watched: Watched, path: str) -> None:
    assert watched.served.ask("HEAD", path).body == b""
    reply = watched.served.put(path, b"x")
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


def test_requests_are_counted(watched: Watched) -> None:
    served, metrics = watched.served, watched.metrics
    data = b"some content"
    assert served.put(f"/main/cas/{sha(data)}", data).status == 200
    assert served.get(f"/main/cas/{sha(data)}").body == data
    assert served.get(f"/main/cas/{sha(b'absent')}").status == 404
    assert served.get(f"/guess/cas/{sha(b'absent')}").status == 404
    assert served.get("/no/such/path").status in (400, 404)
    assert served.ask("BREW", "/").status in (400, 404, 405, 501)
    assert counted(metrics, "PUT", "200", "main") == 1
    assert counted(metrics, "GET", "200", "main") == 1
    assert counted(metrics, "GET", "404", "main") == 1
    assert counted(metrics, "GET", "404", OTHER) == 1
    assert value(metrics, families.REQUEST_SECONDS, "http", "GET") == 4
    assert value(metrics, families.REQUEST_SECONDS, "http", OTHER) <= 1
    assert value(metrics, families.RECEIVED_BYTES, "http", "PUT") == len(data)
    assert value(metrics, families.SENT_BYTES, "http", "GET") >= len(data)


def test_a_client_that_goes_away_is_no_fault_of_ours(watched: Watched) -> None:
    with watched.served.connected() as opened:
        opened.sendall(
            f"PUT /cas/{sha(b'x')} HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nx".encode()
        )
        time.sleep(0.05)
    deadline = time.monotonic() + PATIENCE
    codes = ("499", "400")
    while not any(counted(watched.metrics, "PUT", code) for code in codes):
        assert time.monotonic() < deadline, "the request is counted"
        time.sleep(0.02)
