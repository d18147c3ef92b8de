"""Nodes over one directory of objects, or in front of a server, as `cas serve` sets them up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from cas.pb import remote_execution_pb2 as pb
from tests.conformance.client import Client, fails, fresh
from tests.server.serving import PATIENCE, ROOT, Server, end, spawn, until
from tests.upstream import fleet
from tests.upstream.fleet import Node

Serve = Callable[..., Server]


class Start:
    """Nodes by name; of two workers, so that they have to agree."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._running: list[Server] = []

    def __call__(self, name: str, *more: str) -> Node:
        server = spawn(
            self._scratch / f"{name}.log",
            ["--dir", str(self._scratch / name), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0",
             "--workers", "2", "--upstream", f"file://{self._scratch}/bucket", *more],
        )  # fmt: skip
        self._running.append(server)
        server.await_ready()
        return Node(server.address, server.http)

    def stop(self, *nodes: Node) -> None:
        """These, or all."""
        addresses = [node.grpc for node in nodes]
        servers = [s for s in self._running if not nodes or s.address in addresses]
        self._running = [s for s in self._running if s not in servers]
        end(*servers)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    starts = Start(tmp_path)
    yield starts
    starts.stop()


def test_what_one_node_has_taken_every_other_serves(start: Start) -> None:
    made = fleet.build()
    fleet.fill(start("a", "--engine", "aio"), made)
    node = start("b")
    fleet.hits(node, made)
    assert b"\ncas_upstream_action_hits_total 1.0" in node.get("/metrics")[1]


def test_parts_batches_and_http_come_from_upstream_too(start: Start, tmp_path: Path) -> None:
    made = fleet.build()
    fleet.fill(start("a"), made)
    fleet.hits_in_parts(start("b", "--engine", "aio", "--compression", "zstd"), made)
    objects = {
        path.name for path in (tmp_path / "bucket" / "v1" / "cas").rglob("*") if path.is_file()
    }
    assert objects == {blob.hash for blob in made.all if blob.size}


def test_an_action_result_is_taken_only_with_all_it_names(start: Start) -> None:
    node = start("a")
    absent = fresh(100)
    request = pb.UpdateActionResultRequest(
        action_digest=fresh(50).digest,
        action_result=pb.ActionResult(output_files=[pb.OutputFile(path="x", digest=absent.digest)]),
    )
    with Client(node.grpc) as client:
        with fails(grpc.StatusCode.FAILED_PRECONDITION, absent.hash):
            client.update_action_result(request, timeout=PATIENCE)
        client.put(absent)
        client.update_action_result(request, timeout=PATIENCE)


def test_a_damaged_object_is_data_loss_once_and_missing_then(start: Start, tmp_path: Path) -> None:
    made = fresh(200_000)
    with Client(start("a").grpc) as client:
        client.upload(made)
    [path] = (tmp_path / "bucket").rglob(made.hash)
    path.write_bytes(b"x" + made.data[1:])
    with Client(start("b").grpc) as client:
        assert client.missing(made) == []
        with fails(grpc.StatusCode.DATA_LOSS, made.hash):
            client.read(made.name)
        with fails(grpc.StatusCode.NOT_FOUND):
            client.read(made.name)
    assert not path.exists()
    assert len(list((tmp_path / "bucket" / "v1" / "quarantine").rglob(f"{made.hash}.*"))) == 1


def test_an_outage_and_its_end(start: Start, tmp_path: Path) -> None:
    held, elsewhere = fleet.build(), fleet.build()
    fleet.fill(start("a"), elsewhere)
    node = start("b", "--workers", "1", "--upstream-timeout", "2")
    fleet.fill(node, held)
    bucket = tmp_path / "bucket"
    bucket.rename(tmp_path / "gone")
    bucket.write_text("no directory any more")
    fleet.goes_on_without_upstream(node, held, elsewhere)
    until(lambda: _asked_again(node) or fleet.is_down(node), "the node says that upstream is down")
    bucket.unlink()
    (tmp_path / "gone").rename(bucket)
    until(lambda: _answers(node, elsewhere), "upstream is asked again")
    fleet.hits(node, elsewhere)
    assert not node.status()["down"]


def _asked_again(node: Node) -> bool:
    with Client(node.grpc) as client:
        client.missing(fresh(10))
    return False


def _answers(node: Node, made: fleet.Build) -> bool:
    with Client(node.grpc) as client, suppress(grpc.RpcError):
        return fleet.action_of(client, made) == made.result
    return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serve]:
    """`cas serve` of another directory, as what lies upstream: where its address is free again."""
    running: list[Server] = []

    def begin(address: str = "127.0.0.1:0") -> Server:
        for one in running:
            one.process.terminate()
            one.process.wait(PATIENCE)
        server = spawn(
            tmp_path / "upstream.log",
            ["--dir", str(tmp_path / "upstream"), "--grpc", address, "--http", "none",
             "--workers", "1"],
        )  # fmt: skip
        running.append(server)
        server.await_ready()
        return server

    yield begin
    for one in running:
        one.process.terminate()
    for one in running:
        one.process.wait(PATIENCE)
        assert one.process.stdout is not None
        one.process.stdout.close()


def test_a_server_behind_nodes_of_both_engines(start: Start, server: Serve) -> None:
    above = server()
    at = ("--upstream", f"grpc://{above.address}")
    held, elsewhere = fleet.build(), fleet.build()
    fleet.fill(start("a", *at, "--engine", "aio"), elsewhere)
    node = start("b", *at, "--workers", "1", "--upstream-timeout", "2")
    fleet.hits(node, elsewhere)
    fleet.fill(node, held)
    fresh_node = start("c", *at, "--engine", "aio", "--workers", "1")
    fleet.hits_in_parts(fresh_node, held)
    more = fleet.build()
    fleet.fill(fresh_node, more)
    above.process.terminate()
    above.process.wait(PATIENCE)
    fleet.goes_on_without_upstream(node, held, more)
    until(lambda: _asked_again(node) or fleet.is_down(node), "the node says that upstream is down")
    server(above.address)
    until(lambda: _answers(node, more), "upstream is asked again")
    fleet.hits(node, more)


def test_writes_that_wait_are_sent_after_an_outage_and_a_restart(
    start: Start, tmp_path: Path
) -> None:
    bucket = tmp_path / "bucket"
    node = start("a", "--upstream-writes", "back")
    with Client(node.grpc) as client:
        client.upload(fresh(100))
    until(lambda: _has_sent(node), "what is written is sent")
    bucket.rename(tmp_path / "gone")
    bucket.write_text("no directory any more")
    made = fleet.build()
    fleet.fill(node, made)
    fleet.hits(node, made)
    until(lambda: node.status()["unsent"]["entries"] > len(made.all), "the node says what waits")
    assert b"\ncas_upstream_unsent_entries 1" in node.get("/metrics")[1]
    start.stop(node)
    bucket.unlink()
    (tmp_path / "gone").rename(bucket)
    # Whatever is configured by then.
    node = start("a")
    until(lambda: _has_sent(node), "what waited is sent")
    told = node.status()["unsent"]
    assert (told["sent"], told["lost"]) == (len(made.all) + 1, 0)
    fleet.hits(start("b"), made)


def test_writes_that_wait_are_sent_to_a_server_too(start: Start, server: Serve) -> None:
    above = server()
    at = ("--upstream", f"grpc://{above.address}", "--workers", "1")
    node = start("a", *at, "--upstream-writes", "back")
    above.process.terminate()
    above.process.wait(PATIENCE)
    made = fleet.build()
    fleet.fill(node, made)
    until(lambda: node.status()["unsent"]["entries"] > len(made.all), "the node says what waits")
    server(above.address)
    until(lambda: _has_sent(node), "what waited is sent")
    fleet.hits(start("b", *at), made)


def _has_sent(node: Node) -> bool:
    unsent = node.status()["unsent"]
    return unsent["sent"] > 0 and not unsent["entries"]


def test_what_is_no_object_store_is_refused_at_once(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "cas", "serve", "--dir", str(tmp_path), "--upstream", "s4://x"],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    assert "--upstream" in ended.stderr
