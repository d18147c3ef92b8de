"""What clients of two nodes over one object store do: the same whatever the object store is.

Rule: talks gRPC and HTTP to servers, and knows of the object store only that it is one.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from cas.pb import remote_execution_pb2 as pb
from tests.conformance.client import KIB, MIB, Blob, Client, fails, fresh, message
from tests.server.serving import until

SIZES = (20, 10 * KIB, 100 * KIB, 3 * MIB, 20 * MIB)
INSTANCE = "main/linux"


@dataclass(frozen=True)
class Node:
    """Where one serves."""

    grpc: str
    http: str

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.http, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """What it says of upstream."""
        told: dict[str, Any] = json.loads(self.get("/status")[1])["upstream"]
        return told


@dataclass(frozen=True)
class Build:
    """What one build leaves in a cache."""

    blobs: tuple[Blob, ...]
    root: Blob
    action: Blob
    result: pb.ActionResult

    @property
    def all(self) -> tuple[Blob, ...]:
        return (*self.blobs, self.root, self.action)


def build() -> Build:
    """One that no server has seen."""
    blobs = tuple(fresh(size) for size in SIZES)
    below = message(
        pb.Directory(files=[pb.FileNode(name="deep", digest=blobs[1].digest, is_executable=True)])
    )
    root = message(
        pb.Directory(
            files=[pb.FileNode(name="here", digest=blobs[2].digest)],
            directories=[pb.DirectoryNode(name="below", digest=below.digest)],
        )
    )
    tree = message(
        pb.Tree(
            root=pb.Directory.FromString(root.data), children=[pb.Directory.FromString(below.data)]
        )
    )
    result = pb.ActionResult(
        output_files=[pb.OutputFile(path="out", digest=blobs[3].digest)],
        output_directories=[pb.OutputDirectory(path="tree", tree_digest=tree.digest)],
        stdout_digest=blobs[0].digest,
        # Without it bazel-remote enters one.
        execution_metadata=pb.ExecutedActionMetadata(worker="here"),
    )
    return Build((*blobs, below, tree), root, fresh(200), result)


def fill(node: Node, made: Build) -> None:
    """As a client does that has just built."""
    with Client(node.grpc) as client:
        assert len(client.missing(*made.all)) == len(made.all)
        large = [blob for blob in made.all if blob.size > MIB]
        client.put(*(blob for blob in made.all if blob.size <= MIB))
        for blob in large:
            assert client.upload(blob) == blob.size
        client.update_action_result(
            pb.UpdateActionResultRequest(
                instance_name=INSTANCE, action_digest=made.action.digest, action_result=made.result
            ),
            timeout=60,
        )


def hits(node: Node, made: Build) -> None:
    """All of it comes from that node, however it is asked for."""
    with Client(node.grpc) as client:
        assert action_of(client, made) == made.result
        assert client.missing(*made.all) == []
        for blob in made.blobs:
            assert client.read(blob.name) == blob.data
        listed = list(client.get_tree(pb.GetTreeRequest(root_digest=made.root.digest), timeout=60))
        assert [len(page.directories) for page in listed] == [2]


def hits_in_parts(node: Node, made: Build) -> None:
    """As `hits`, by ranges, batches and HTTP."""
    large = max(made.blobs, key=lambda blob: blob.size)
    with Client(node.grpc) as client:
        offset = large.size - 5 * KIB
        assert client.read(large.name, offset) == large.data[offset:]
        small = [blob for blob in made.blobs if blob.size < MIB]
        answer = client.batch_read_blobs(
            pb.BatchReadBlobsRequest(digests=[blob.digest for blob in small]), timeout=60
        )
        assert [response.data for response in answer.responses] == [blob.data for blob in small]
    # First, as clients do: it tells the sizes of what it names, which their paths do not.
    status, body = node.get(f"/{INSTANCE}/ac/{made.action.hash}")
    assert (status, pb.ActionResult.FromString(body)) == (200, made.result)
    named = {output.digest.hash for output in made.result.output_files}
    for blob in made.blobs:
        if blob.size < MIB or blob.hash in named:
            status, body = node.get(f"/cas/{blob.hash}")
            assert (status, body == blob.data) == (200, True)


def action_of(client: Client, made: Build) -> pb.ActionResult:
    found: pb.ActionResult = client.get_action_result(
        pb.GetActionResultRequest(instance_name=INSTANCE, action_digest=made.action.digest),
        timeout=60,
    )
    return found


def goes_on_without_upstream(node: Node, held: Build, elsewhere: Build) -> None:
    """The object store is gone: `held` is served, `elsewhere` is a miss, and nothing is taken."""
    hits(node, held)
    with Client(node.grpc) as client:
        with fails(grpc.StatusCode.NOT_FOUND):
            action_of(client, elsewhere)
        assert len(client.missing(*elsewhere.blobs)) == len(elsewhere.blobs)
        with fails(grpc.StatusCode.UNAVAILABLE):
            client.read(elsewhere.blobs[3].name)
        with fails(grpc.StatusCode.UNAVAILABLE):
            client.upload(fresh(100 * KIB))
    status, body = node.get("/readyz")
    assert status == 200
    assert b"ok" in body


def is_down(node: Node) -> bool:
    """Whether the node says that upstream fails, everywhere where it says such things."""
    told = node.status()["down"]
    assert isinstance(told, bool)
    return told and b"upstream fails" in node.get("/readyz")[1]


def asked(node: Node, client: Client, blobs: Sequence[Blob]) -> tuple[list[pb.Digest], int]:
    """Which of them are missing, and how many requests upstream it took to tell."""
    before, began = node.status()["requests"], time.monotonic()
    missing = client.missing(*blobs)
    requests: int = node.status()["requests"] - before
    took = time.monotonic() - began
    print(f"    {requests} requests for {len(blobs)} digests, {took:.2f} s")
    return missing, requests


def streamed(client: Client, large: Blob) -> tuple[float, float]:
    """Seconds until the first of it had come, before all of it, and until all had."""
    # A connection that is there already is not what is timed.
    client.missing(fresh(20))
    began = time.monotonic()
    parts = []
    first = 0.0
    for part in client.reading(large.name):
        first = first or time.monotonic() - began
        parts.append(part.data)
    took = time.monotonic() - began
    assert b"".join(parts) == large.data
    assert first < took
    return first, took


class Mortal(Protocol):
    """What lies upstream."""

    def kill(self) -> None: ...

    def start(self) -> None: ...


def loses_nothing(node: Node, anew: Callable[[], Node], upstream: Mortal, kills: int) -> str:
    """Clients of `node` go on writing while upstream is killed and started again; whatever was
    acknowledged is read from the node that `anew` makes.  What happened, in words."""
    acknowledged: list[Blob] = []
    refused = 0
    ends = threading.Event()

    def write(seed: int) -> None:
        nonlocal refused
        choose = random.Random(seed)
        with Client(node.grpc) as client:
            while not ends.is_set():
                blob = fresh(choose.choice((100, 30 * KIB, 300 * KIB, 12 * MIB)))
                try:
                    client.upload(blob)
                except grpc.RpcError as error:
                    if error.code() != grpc.StatusCode.UNAVAILABLE:
                        raise
                    refused += 1
                    # As a client does that would try again.
                    time.sleep(0.05)
                else:
                    acknowledged.append(blob)

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(kills):
            before = len(acknowledged)
            until(lambda: len(acknowledged) >= before + 10, "writes are acknowledged")  # noqa: B023
            time.sleep(random.random())
            upstream.kill()
            time.sleep(random.random())
            upstream.start()
    finally:
        ends.set()
        for writer in writers:
            writer.join()
    with Client(anew().grpc) as client:
        for blob in acknowledged:
            assert client.read(blob.name) == blob.data, f"{blob.name} was acknowledged, and is lost"
    return f"{kills} kills, {len(acknowledged)} acknowledged, {refused} refused, 0 lost"
