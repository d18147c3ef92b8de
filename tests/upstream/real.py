"""Nodes over one bucket of a real object store (s3proxy), which is killed and comes back.

Checks, in this order: a build filled through one node is all hits from nodes with empty disks;
FindMissingBlobs of a thousand asks the object store once for each, then not at all, and never where
nodes share an index in Redis, which is killed too; a large blob begins to arrive before all of it
has come; what is used is renewed where it is old; with wrong credentials, and without the object
store, a node goes on with what it has;
whatever was acknowledged while the object store was killed at random is there afterwards, from a
node that never saw it.

Rule: what is expected comes from what clients sent.  Times are told, never judged.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Protocol

import grpc

from cas.upstream.obstores import ObStore, connect
from tests.conformance.client import KIB, MIB, Blob, Client, fails, fresh
from tests.server.serving import ROOT, Server, until
from tests.upstream import fleet
from tests.upstream.fleet import Node

HOME = Path(
    os.environ.get("CAS_S3PROXY_DIR")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cas-s3proxy"
)
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "cas", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}
KILLS = 3
DIGESTS = 1000


class Store(Protocol):
    """A real object store, on the same port whenever it starts."""

    @property
    def flags(self) -> Sequence[str]:
        """What a node is told of it."""

    @property
    def environ(self) -> Mapping[str, str]:
        """The same: its credentials."""

    @property
    def wrong(self) -> Mapping[str, str]:
        """What makes them wrong."""

    def itself(self) -> ObStore:
        """Its own client."""

    def start(self) -> None: ...

    def kill(self) -> None: ...


class S3:
    """What is the same of all that speak S3's protocol.  See `Store`."""

    environ: ClassVar[Mapping[str, str]] = CREDENTIALS
    wrong: ClassVar[Mapping[str, str]] = {"AWS_SECRET_ACCESS_KEY": "wrong"}
    region = "here"
    port = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def flags(self) -> Sequence[str]:
        return ("--upstream", "s3://bucket/team", "--upstream-endpoint", self.endpoint,
                "--upstream-region", self.region)  # fmt: skip

    def itself(self, endpoint: str = "") -> ObStore:
        given = {"endpoint": endpoint or self.endpoint, "region": self.region}
        keys = {name.lower().removeprefix("aws_"): value for name, value in self.environ.items()}
        return connect("s3://bucket/team", {**given, **keys}, connect_timeout=5)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


class ObjectStore(S3):
    """s3proxy over a directory."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        (scratch / "objects" / "bucket").mkdir(parents=True)
        (scratch / "logback.xml").write_text(
            '<configuration><appender name="out" class="ch.qos.logback.core.ConsoleAppender">'
            "<encoder><pattern>%msg%n</pattern></encoder></appender>"
            '<root level="warn"><appender-ref ref="out"/></root></configuration>'
        )

    def start(self) -> None:
        (self._scratch / "properties").write_text(
            f"s3proxy.endpoint={self.endpoint}\n"
            "s3proxy.authorization=aws-v2-or-v4\n"
            f"s3proxy.identity={CREDENTIALS['AWS_ACCESS_KEY_ID']}\n"
            f"s3proxy.credential={CREDENTIALS['AWS_SECRET_ACCESS_KEY']}\n"
            "jclouds.provider=filesystem-nio2\n"
            "jclouds.identity=none\njclouds.credential=none\n"
            f"jclouds.filesystem.basedir={self._scratch / 'objects'}\n"
        )
        with (self._scratch / "s3proxy.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["java", "-Xmx256m", f"-Dlogback.configurationFile={self._scratch}/logback.xml",
                 "-cp", f"{HOME}/lib/*", "org.gaul.s3proxy.Main",
                 "--properties", str(self._scratch / "properties")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        until(self._listens, "the object store listens")

    def _listens(self) -> bool:
        process = self.process
        assert process is not None
        assert process.poll() is None, (self._scratch / "s3proxy.log").read_text()
        # Port 0 was picked by the system: what it is, the system tells.
        found = listening(process.pid)
        if found:
            self.port = found
        return bool(found)


def listening(pid: int) -> int:
    """The port on which a process listens, 0 for none."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(os.readlink(fd).removeprefix("socket:[").removesuffix("]"))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in inodes:
                return int(columns[1].rpartition(":")[2], 16)
    return 0


class Fleet:
    """The nodes, each with a disk of its own."""

    def __init__(self, scratch: Path, running: ExitStack, objects: Store) -> None:
        self.scratch = scratch
        self._running = running
        self._objects = objects

    def node(self, name: str, *more: str, **environ: str) -> Node:
        return self._running.enter_context(self._served(name, *more, **environ))

    @contextmanager
    def _served(self, name: str, *more: str, **environ: str) -> Iterator[Node]:
        log = self.scratch / f"{name}.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "cas", "serve", "--dir", str(self.scratch / name),
                 "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--workers", "2",
                 *self._objects.flags, "--upstream-timeout", "5", *more],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True,
                env={**os.environ, **self._objects.environ, **environ},
            )  # fmt: skip
        server = Server(process, log)
        try:
            server.await_ready()
            yield Node(server.address, server.http)
        finally:
            process.terminate()
            try:
                assert process.wait(60) == 0, log.read_text()
            finally:
                process.kill()
                process.wait()


def main() -> int:
    if not (HOME / ".complete").exists():
        print("tests.upstream.real: no s3proxy yet: run tests/upstream/setup first")
        return 1
    with tempfile.TemporaryDirectory(prefix="cas-upstream-") as name, ExitStack() as running:
        scratch = Path(name)
        objects = ObjectStore(scratch)
        objects.start()
        running.callback(objects.kill)
        nodes = Fleet(scratch, running, objects)
        steps = (shared, counted, indexed, streamed, renewed, refused, outage, killed)
        walk(steps, nodes, objects)
    return 0


Step = Callable[["Fleet", "Store"], None]


def walk(steps: Sequence[Step], nodes: Fleet, objects: Store) -> None:
    """One after another."""
    for step in steps:
        began = time.monotonic()
        step(nodes, objects)
        print(f"{_name(step)}: well, {time.monotonic() - began:.1f} s", flush=True)
    print(f"{len(steps)} passed, 0 failed")


def _name(step: Step) -> str:
    name: str = getattr(step, "func", step).__name__
    return name


def shared(nodes: Fleet, objects: Store) -> None:
    made = fleet.build()
    first, second, third = nodes.node("a"), nodes.node("b"), nodes.node("c")
    fleet.fill(first, made)
    fleet.hits(second, made)
    fleet.hits_in_parts(third, made)
    for node in (first, second, third):
        print("   ", node.status())


def counted(nodes: Fleet, objects: Store) -> None:
    # One worker: each remembers for itself.
    node = nodes.node("counts", "--workers", "1", "--upstream-remember-absent", "3600")
    blobs = [fresh(20) for _ in range(DIGESTS)]
    with Client(node.grpc) as client:
        for expected in (DIGESTS, 0):
            missing, asked = fleet.asked(node, client, blobs)
            assert len(missing) == DIGESTS
            assert asked == expected


def indexed(nodes: Fleet, objects: Store) -> None:
    blobs = [fresh(20) for _ in range(2 * DIGESTS)]
    with ExitStack() as running:
        url, kill = running.enter_context(redis(nodes.scratch))
        index = ("--workers", "1", "--upstream-index", url)
        with Client(nodes.node("tells", *index).grpc) as client:
            client.put(*blobs)
        node = nodes.node("hears", *index)
        with Client(node.grpc) as client:
            # What was told last is entered a moment later.
            until(lambda: not client.missing(*blobs[-5:]), "all of it is in the index")
            for half, expected in ((blobs[:DIGESTS], 0), (blobs[DIGESTS:-5], DIGESTS - 5)):
                assert fleet.asked(node, client, half) == ([], expected)
                kill()


@contextmanager
def redis(scratch: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Debian's Redis; its URL, and what kills it."""
    root = HOME / "redis"
    libraries = [str(path) for path in (root / "usr" / "lib").iterdir() if path.is_dir()]
    place = scratch / "redis.sock"
    process = subprocess.Popen(
        [root / "usr/bin/redis-server", "--port", "0", "--unixsocket", str(place), "--save", ""],
        cwd=scratch, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        env={**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)},
    )  # fmt: skip
    until(lambda: place.exists() or process.poll() is not None, "Redis listens")
    assert process.poll() is None

    def kill() -> None:
        process.kill()
        process.wait()

    try:
        yield f"unix://{place}", kill
    finally:
        kill()


def streamed(nodes: Fleet, objects: Store) -> None:
    large = fresh(64 * MIB)
    with Client(nodes.node("fills").grpc) as client:
        client.upload(large)
    own = min(asyncio.run(_by_itself(objects, large)) for _ in range(3))
    for name in ("cold-1", "cold-2", "cold-3"):
        with Client(nodes.node(name).grpc) as client:
            first, took = fleet.streamed(client, large)
            told = f"first byte after {first * 1e3:.0f} ms, all after {took * 1e3:.0f} ms"
            print(f"    64 MiB: {told}; the object store's own client {own * 1e3:.0f} ms")


async def _by_itself(objects: Store, large: Blob) -> float:
    """Seconds that the object store's own client takes."""
    store = objects.itself()
    began = time.monotonic()
    found = await store.get(f"v1/cas/sha256/{large.hash[:2]}/{large.hash}", 0, None)
    size = 0
    async for piece in found.pieces():
        size += len(piece)
    assert size == large.size
    return time.monotonic() - began


def renewed(nodes: Fleet, objects: Store) -> None:
    blob = fresh(30 * KIB)
    with Client(nodes.node("uses").grpc) as client:
        client.put(blob)
    until(lambda: asyncio.run(_age_of(objects, blob)) > 3, "it is older")
    with Client(nodes.node("renews", "--upstream-renew", "2").grpc) as client:
        assert not client.missing(blob)
        until(lambda: asyncio.run(_age_of(objects, blob)) < 2, "it is renewed")
        assert client.read(blob.name) == blob.data


async def _age_of(objects: Store, blob: Blob) -> float:
    found = await objects.itself().look(f"v1/cas/sha256/{blob.hash[:2]}/{blob.hash}")
    return found.age


def refused(nodes: Fleet, objects: Store) -> None:
    node = nodes.node("refused", "--workers", "1", **objects.wrong)
    with Client(node.grpc) as client:
        for _ in range(6):
            with fails(grpc.StatusCode.UNAVAILABLE):
                client.upload(fresh(10 * KIB))
    assert fleet.is_down(node)


def outage(nodes: Fleet, objects: Store) -> None:
    held, elsewhere = fleet.build(), fleet.build()
    fleet.fill(nodes.node("there"), elsewhere)
    node = nodes.node("here", "--workers", "1")
    fleet.fill(node, held)
    objects.kill()
    fleet.goes_on_without_upstream(node, held, elsewhere)
    with Client(node.grpc) as client:
        until(lambda: bool(client.missing(fresh(20))) and fleet.is_down(node), "it says so")
    objects.start()
    with Client(node.grpc) as client:
        until(lambda: not client.missing(*elsewhere.blobs), "upstream is asked again")
    fleet.hits(node, elsewhere)


def killed(nodes: Fleet, objects: Store) -> None:
    """Writers that go on while the object store is killed and started again."""
    told = fleet.loses_nothing(nodes.node("writes"), lambda: nodes.node("reads"), objects, KILLS)
    print("   ", told)


if __name__ == "__main__":
    sys.exit(main())
