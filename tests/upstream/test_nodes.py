"""A node that is its own upstream finds out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.upstream.nodes import HEADER, MOST, SECONDS, Nodes
from tests.conformance.client import Client, fails, fresh
from tests.server.serving import PATIENCE, ROOT, Server, end, free_port, spawn, until
from tests.upstream.fleet import Node

NAMES = st.text("0123456789abcdef", min_size=16, max_size=16)


def test_a_call_that_comes_round_is_known_however_long_the_way() -> None:
    ring = [Nodes(f"node{n}") for n in range(5)]
    for node, following in pairwise(ring):
        assert not following.came_round(node.headers())
    assert ring[0].came_round(ring[-1].headers())


def test_calls_that_do_not_come_round_pass() -> None:
    center = Nodes("center")
    for n in range(3 * MOST):
        assert not center.came_round(Nodes(f"office{n}").headers())
    [(_, said)] = center.headers()
    assert said.split(",")[:2] == ["center", f"office{3 * MOST - 1}"]
    assert len(said.split(",")) == MOST
    assert not center.came_round([("user-agent", "center")])


def test_who_calls_no_more_is_forgotten() -> None:
    now = 0.0
    node = Nodes("here", lambda: now)
    assert not node.came_round([(HEADER, "there,behind")])
    now = SECONDS - 1
    assert not node.came_round([(HEADER, "there")])
    now = SECONDS + 1
    assert node.headers() == ((HEADER, "here,there"),)
    now += SECONDS
    assert node.headers() == ((HEADER, "here"),)


@given(st.text(max_size=200), NAMES)
def test_no_header_can_break_what_is_passed_on(said: str, own: str) -> None:
    node = Nodes(own)
    node.came_round([(HEADER, said)])
    [(_, told)] = node.headers()
    assert all(name.isalnum() and name.isascii() for name in told.split(","))
    assert told.startswith(own)


class Ring:
    """Nodes, each of which is the next one's client, and the first one the last one's."""

    def __init__(self, scratch: Path, size: int) -> None:
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(size)]
        self.servers: list[Server] = []
        for n, address in enumerate(self.addresses):
            upstream = self.addresses[(n + 1) % size]
            self.servers.append(
                spawn(
                    scratch / f"{n}.log",
                    ["--dir", str(scratch / str(n)), "--grpc", address, "--http", "127.0.0.1:0",
                     "--workers", "1", "--engine", ("cq", "aio")[n % 2],
                     "--upstream", f"grpc://{upstream}"],
                )
            )  # fmt: skip
        for server in self.servers:
            server.await_ready()

    @property
    def nodes(self) -> list[Node]:
        return [Node(server.address, server.http) for server in self.servers]

    def stop(self) -> None:
        end(*self.servers)


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("size", [1, 2])
def test_a_node_that_is_its_own_upstream_says_so(
    size: int, tmp_path: Path, running: ExitStack
) -> None:
    ring = Ring(tmp_path, size)
    running.callback(ring.stop)

    def logs() -> list[str]:
        return [server.log.read_text() for server in ring.servers]

    wanted = fresh(200_000)

    def ask(node: Node) -> None:
        # What is not here is asked for, and comes round; nobody waits for it in vain.
        with Client(node.grpc) as client, fails(grpc.StatusCode.UNAVAILABLE, "upstream"):
            client.read(wanted.name)

    def lacks(node: Node) -> None:
        with Client(node.grpc) as client:
            assert client.missing(wanted) == [wanted.digest]

    def refused() -> bool:
        lacks(ring.nodes[0])
        return any("(FAILED_PRECONDITION)" in log for log in logs())

    # By one of them first: whoever is asked by both hears UNAVAILABLE too, and would say that.
    ask(ring.nodes[0])
    until(refused, "it is left alone for what it says")
    for node in ring.nodes:
        ask(node)
        lacks(node)

    def knowing() -> list[int]:
        return [n for n, node in enumerate(ring.nodes) if node.status()["circle_seen"]]

    until(lambda: bool(knowing()), "one of them knows")
    for n in knowing():
        assert logs()[n].count("upstream leads back to this node") == 1, logs()[n]
        assert "leads back to this node" in _doctor(ring.nodes[n])


def _doctor(node: Node) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "cas", "doctor", "--remote", f"http://{node.http}"],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    return ended.stdout + ended.stderr
