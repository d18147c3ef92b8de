"""``python -m benchmarks.upstream``: nodes over one object store, what they cost it, and a peer.

Rule: a real object store (s3proxy, of tests/upstream/setup, or Garage) and a real Bazel; what the
object store is asked is counted on its way there, by what every server's requests pass, so that
servers are not asked about themselves.

* build: a build is filled through one server, and again by others with empty disks, then once more.
* digests: FindMissingBlobs of a thousand digests, with and without a shared index.
* cold: a read of 64 MiB by a node that has nothing, beside the object store's own client.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import bazel
from benchmarks.bare import over_grpc, over_http
from cas.upstream.obstores import ObStore
from tests.conformance.client import MIB, Blob, Client, fresh
from tests.server.serving import ROOT, Server, free_port, listens, until
from tests.upstream import real
from tests.upstream.garage import Garage

HEAD_PRICE = 0.40
"""Dollars for a million reads or HEADs, as S3 and Google take it for their standard classes, …"""
PUT_PRICE = 5.0
"""… and for a million puts, copies and listings."""


class Counted(NamedTuple):
    """What was asked of the object store."""

    reads: int
    writes: int
    up: int
    """Bytes of bodies, sent …"""
    down: int
    """… and received."""

    def since(self, before: Counted) -> Counted:
        return Counted(*(now - then for now, then in zip(self, before, strict=True)))

    @property
    def dollars(self) -> float:
        return (self.reads * HEAD_PRICE + self.writes * PUT_PRICE) / 1e6

    def __str__(self) -> str:
        return (
            f"{self.reads} reads, {self.writes} writes, "
            f"{self.up / MIB:.1f} MiB up, {self.down / MIB:.1f} MiB down, ${self.dollars:.5f}"
        )


class Counter:
    """Passes on what is said to an address, and counts HTTP/1.1's requests by their lengths."""

    def __init__(self, port: int, rate: float = 0) -> None:
        """With a `rate`, bytes a second of all answers together, it is a line of so much."""
        self._target = port
        self._rate = rate
        self._free_at = 0.0
        self._reads = self._writes = self._up = self._down = 0
        self._loop = asyncio.new_event_loop()
        self._begun = threading.Event()
        self.port = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._begun.wait()

    @property
    def counted(self) -> Counted:
        return Counted(self._reads, self._writes, self._up, self._down)

    def _run(self) -> None:
        async def begin() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            self._begun.set()

        self._loop.run_until_complete(begin())
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        answers = asyncio.create_task(self._answer(there, writer))
        try:
            while head := await _head(reader):
                if head.startswith((b"GET", b"HEAD")):
                    self._reads += 1
                else:
                    self._writes += 1
                back.write(head)
                left = _length(head)
                self._up += left
                while left:
                    data = await reader.read(min(left, 1 << 18))
                    if not data:
                        return
                    left -= len(data)
                    back.write(data)
                    await back.drain()
        except ConnectionError:
            pass
        finally:
            answers.cancel()
            back.close()
            writer.close()

    async def _answer(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await there.read(1 << 18):
            # Heads of answers are counted with their bodies.
            self._down += len(data)
            if self._rate:
                now = self._loop.time()
                self._free_at = max(now, self._free_at) + len(data) / self._rate
                # Timers are no finer than a millisecond.
                if self._free_at - now > 0.002:
                    await asyncio.sleep(self._free_at - now)
            writer.write(data)
            await writer.drain()
        writer.close()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 0


class Stage:
    """An object store, and what is started over it."""

    def __init__(
        self, directory: Path, running: ExitStack, objects: real.ObjectStore | Garage
    ) -> None:
        self.directory = directory
        self.objects = objects
        self.objects.start()
        running.callback(self.objects.kill)
        self.counter = Counter(self.objects.port)
        self.endpoint = f"127.0.0.1:{self.counter.port}"

    @contextmanager
    def ours(self, name: str, *more: str, endpoint: str = "") -> Iterator[Server]:
        log = self.directory / f"{name}.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "cas", "serve", "--dir", str(self.directory / name),
                 "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--workers", "2",
                 *self.objects.flags, "--upstream-endpoint",
                 f"http://{endpoint or self.endpoint}", *more],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True,
                env={**os.environ, **self.objects.environ},
            )  # fmt: skip
        try:
            server = Server(process, log)
            server.await_ready()
            yield server
        finally:
            process.terminate()
            process.wait()

    @contextmanager
    def bazel_remote(self, program: str, name: str) -> Iterator[str]:
        port, http = free_port(), free_port()
        given = self.objects.environ
        process = subprocess.Popen(
            [program, "--dir", str(self.directory / name), "--max_size", "50",
             "--storage_mode", "uncompressed", "--access_log_level", "none",
             "--grpc_address", f"127.0.0.1:{port}", "--http_address", f"127.0.0.1:{http}",
             "--s3.endpoint", self.endpoint, "--s3.bucket", "bucket", "--s3.prefix", "peer",
             "--s3.disable_ssl", "--s3.auth_method", "access_key",
             "--s3.region", self.objects.region,
             "--s3.access_key_id", given["AWS_ACCESS_KEY_ID"],
             "--s3.secret_access_key", given["AWS_SECRET_ACCESS_KEY"]],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            until(lambda: listens(port) or process.poll() is not None, "it listens")
            assert process.poll() is None
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def builds(stage: Stage, program: str, peer: str | None, rounds: int, actions: int) -> None:
    """What a fleet does with a build, each server with a disk of its own: one server after the
    other, in turns, since the object store gets quicker in its first minutes."""
    workspace = stage.directory / "workspace"
    bazel.workspace(workspace, actions)
    took: dict[tuple[str, str], list[float]] = {}

    def build(kind: str, what: str, address: str, hits: int) -> None:
        before = stage.counter.counted
        cache = f"--remote_cache=grpc://{address}"
        seconds = bazel.timed(program, stage.directory, workspace, cache, hits)
        took.setdefault((kind, what), []).append(seconds)
        seen = None
        # What is sent later belongs to this build.
        while seen != stage.counter.counted:
            seen = stage.counter.counted
            time.sleep(1)
        asked = stage.counter.counted.since(before)
        print(f"{kind:12}  {what:10}  {seconds:6.2f} s  {asked}", flush=True)

    @contextmanager
    def started(kind: str, name: str) -> Iterator[str]:
        if peer and kind == "bazel-remote":
            with stage.bazel_remote(peer, name) as address:
                yield address
        else:
            with stage.ours(name) as node:
                yield node.address

    print(f"build of {actions} actions")
    with started("cas", "warms") as address:
        build("cas", "warms up", address, 0)
    with started("cas", "warm") as address:
        build("cas", "warms up", address, actions)
    # The object store is a program in Java: its first minute is not its usual one.
    took.clear()
    kinds = ["cas", "bazel-remote"] if peer else ["cas"]
    for round_ in range(rounds):
        for kind in kinds if round_ % 2 == 0 else reversed(kinds):
            (workspace / "nonce.txt").write_text(uuid.uuid4().hex)
            with started(kind, f"{kind}-{round_}-a") as address:
                build(kind, "fills", address, 0)
            for node in ("b", "c"):
                with started(kind, f"{kind}-{round_}-{node}") as address:
                    build(kind, "empty disk", address, actions)
                    build(kind, "again", address, actions)
    for (kind, what), seconds in took.items():
        print(
            f"{kind:12}  {what:10}  {statistics.median(seconds):6.2f} s, median of {len(seconds)}"
        )


def digests(stage: Stage) -> None:
    """A thousand digests that are there, asked for by a node that has never heard of them."""
    blobs = [fresh(100) for _ in range(1000)]
    with ExitStack() as running:
        url, _ = running.enter_context(real.redis(stage.directory))
        index = ("--workers", "1", "--upstream-index", url)
        with stage.ours("tells", *index) as node, Client(node.address) as client:
            client.put(*blobs)
            time.sleep(1)
        print("FindMissingBlobs of 1,000 that are there")
        for label, more in (("no index", ("--workers", "1")), ("shared index", index)):
            for attempt in range(3):
                name = f"asks-{label.replace(' ', '-')}-{attempt}"
                with stage.ours(name, *more) as node, Client(node.address) as client:
                    client.missing(fresh(20))
                    for again in ("first", "again"):
                        before, began = stage.counter.counted, time.monotonic()
                        assert client.missing(*blobs) == []
                        took = time.monotonic() - began
                        asked = stage.counter.counted.since(before)
                        dollars = asked.reads * HEAD_PRICE / len(blobs)
                        print(
                            f"{label:14} {again}: {asked.reads + asked.writes} requests, "
                            f"{took * 1e3:.0f} ms, ${dollars:.2f} a million digests",
                            flush=True,
                        )


def cold(stage: Stage, rounds: int, line: float) -> None:
    """Straight to the object store, where what counts would be what is measured; or by a line of so
    many bytes a second."""
    large = [fresh(64 * MIB) for _ in range(rounds)]
    port = Counter(stage.objects.port, line).port if line else stage.objects.port
    endpoint = f"127.0.0.1:{port}"
    with stage.ours("fills", endpoint=endpoint) as node, Client(node.address) as client:
        for blob in large:
            client.upload(blob)
    ratios: dict[str, list[float]] = {"http": [], "grpc": []}
    firsts: dict[str, list[float]] = {"http": [], "grpc": []}
    for how in ratios:
        with stage.ours(f"cold-{how}", endpoint=endpoint) as node, Client(node.address) as client:
            for blob in large:
                # A connection to the object store, as a node has that serves.
                client.missing(fresh(20))
                over_http(node.http, fresh(20))
                own = asyncio.run(_itself(stage.objects.itself(f"http://{endpoint}"), blob))
                first, took = (
                    over_http(node.http, blob) if how == "http" else over_grpc(node.address, blob)
                )
                ratios[how].append(took / own)
                firsts[how].append(first)
                print(
                    f"64 MiB over {how}: first byte {first * 1e3:.0f} ms, all {took * 1e3:.0f} ms; "
                    f"own client {own * 1e3:.0f} ms",
                    flush=True,
                )
        print(
            f"{how}: median {statistics.median(ratios[how]):.2f} of the object store's own client, "
            f"first byte after {statistics.median(firsts[how]) * 1e3:.0f} ms"
        )


async def _itself(store: ObStore, blob: Blob) -> float:
    key = f"v1/cas/sha256/{blob.hash[:2]}/{blob.hash}"
    await store.head(key)
    began = time.monotonic()
    found = await store.get(key, 0, None)
    assert sum([len(piece) async for piece in found.pieces()]) == blob.size
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upstream", description=__doc__)
    parser.add_argument("what", nargs="*", help="build, digests, cold (default: all)")
    parser.add_argument("--bazel", default="bazel", help="Bazel's program (default: bazel)")
    parser.add_argument("--bazel-remote", help="the peer's program (default: no peer)")
    parser.add_argument("--actions", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5, help="of builds and cold reads")
    parser.add_argument(
        "--garage", action="store_true", help="over Garage (CAS_GARAGE, or on PATH), not s3proxy"
    )
    parser.add_argument(
        "--line", type=float, default=0, help="Mbit/s between nodes and the object store, for that"
    )
    options = parser.parse_args()
    what = options.what or ["build", "digests", "cold"]
    with tempfile.TemporaryDirectory(prefix="cas-upstream-") as name, ExitStack() as running:
        directory = Path(name)
        objects = Garage(directory) if options.garage else real.ObjectStore(directory)
        stage = Stage(directory, running, objects)
        if "build" in what:
            builds(stage, options.bazel, options.bazel_remote, options.rounds, options.actions)
        if "digests" in what:
            digests(stage)
        if "cold" in what:
            cold(stage, options.rounds, options.line * 1e6 / 8)
    sys.stdout.flush()
    # obstore's threads end with the process, not before.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
