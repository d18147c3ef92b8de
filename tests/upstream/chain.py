"""Nodes in front of another server, which is killed and comes back: `cas serve`, and whichever of
bazel-remote and buildbox-casd is on PATH.

Checks, in this order: what is filled through one node is all hits from nodes with empty disks, of
both engines; FindMissingBlobs of a thousand is one request to the server, and none the second time;
a large blob begins to arrive before all of it has come; whatever was acknowledged while the server
was killed at random is there afterwards, from a node that never saw it.

Rule: what is expected comes from what clients sent.  Times are told, never judged.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.conformance.client import MIB, Client, fresh
from tests.server.serving import end, free_port, gone, listens, spawn, until
from tests.upstream import fleet
from tests.upstream.fleet import Node

KILLS = 3
DIGESTS = 1000

DURABLE = ("cas", "bazel-remote")
"""Those that have written what they acknowledge by the time a signal ends them."""


class Above:
    """The server; on the same port whenever it starts."""

    def __init__(self, kind: str, scratch: Path) -> None:
        self._directory = scratch / "above"
        self._directory.mkdir()
        self._log = scratch / "above.log"
        self._kind = kind
        self._port = free_port()
        self.address, other = f"127.0.0.1:{self._port}", f"127.0.0.1:{free_port()}"
        if kind == "cas":
            program = [sys.executable, "-m", "cas", "serve"]
            options = ["--dir", str(self._directory), "--grpc", self.address, "--http", "none"]
        elif kind == "bazel-remote":
            program = [kind]
            options = ["--dir", str(self._directory), "--max_size", "5"]
            options += ["--grpc_address", self.address, "--http_address", other]
        else:
            program = [kind]
            options = [f"--bind={self.address}", "--quota-high=5G", str(self._directory)]
        self._command = [*program, *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            # A group of its own, all of which `kill` ends.
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        until(self._listens, f"{self._kind} listens")

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        return listens(self._port)

    def kill(self) -> None:
        if self._process is None:
            return
        # What it started is in its group, and may outlive it for a moment.
        ids = _group(self._process.pid)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pid in ids:
            until(lambda: gone(pid), "its processes end")  # noqa: B023
        self._process = None


def _group(leader: int) -> list[int]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                if os.getpgid(int(path.name)) == leader:
                    found.append(int(path.name))
    return found


class Fleet:
    """The nodes, each with a disk of its own."""

    def __init__(self, scratch: Path, running: ExitStack, above: Above) -> None:
        self._scratch = scratch
        self._running = running
        self.above = above

    def node(self, name: str, *more: str) -> Node:
        log = self._scratch / f"{name}.log"
        server = spawn(
            log,
            ["--dir", str(self._scratch / name), "--grpc", "127.0.0.1:0",
             "--http", "127.0.0.1:0", "--workers", "1", "--upstream-timeout", "5",
             "--upstream", f"grpc://{self.above.address}", "--upstream-instance", "/", *more],
        )  # fmt: skip
        self._running.callback(end, server)
        server.await_ready()
        return Node(server.address, server.http)


def main() -> int:
    kinds = sys.argv[1:] or ["cas", *filter(shutil.which, ("bazel-remote", "buildbox-casd"))]
    passed = 0
    for kind in kinds:
        print(f"in front of {kind}")
        with tempfile.TemporaryDirectory(prefix="cas-chain-") as name, ExitStack() as running:
            scratch = Path(name)
            above = Above(kind, scratch)
            running.callback(above.kill)
            above.start()
            nodes = Fleet(scratch, running, above)
            steps = [_shared, _counted, _streamed]
            for step in steps:
                began = time.monotonic()
                step(nodes)
                print(f"  {step.__name__.strip('_')}: well, {time.monotonic() - began:.1f} s")
            passed += len(steps)
            if kind in DURABLE:
                _killed(nodes, above)
                passed += 1
    print(f"{passed} passed, 0 failed")
    return 0


def _shared(nodes: Fleet) -> None:
    made = fleet.build()
    fleet.fill(nodes.node("a", "--engine", "aio"), made)
    fleet.hits(nodes.node("b"), made)
    fleet.hits_in_parts(nodes.node("c", "--engine", "aio"), made)


def _counted(nodes: Fleet) -> None:
    node = nodes.node("counts", "--upstream-remember-absent", "3600")
    blobs = [fresh(20) for _ in range(DIGESTS)]
    # What it asks at its start is not meant.
    until(lambda: node.status()["requests"] > 0, "it has asked what the server can do")
    with Client(node.grpc) as client:
        for expected in (1, 0):
            missing, asked = fleet.asked(node, client, blobs)
            assert len(missing) == DIGESTS
            assert asked == expected


def _streamed(nodes: Fleet) -> None:
    large = fresh(64 * MIB)
    with Client(nodes.node("fills").grpc) as client:
        client.upload(large)
    for name, where in (("it", nodes.above.address), ("a cold node", nodes.node("cold").grpc)):
        with Client(where) as client:
            first, took = fleet.streamed(client, large)
            print(f"    64 MiB from {name}: first byte {first * 1e3:.0f} ms, all {took * 1e3:.0f}")


def _killed(nodes: Fleet, above: Above) -> None:
    """Writers that go on while the server is killed and started again."""
    told = fleet.loses_nothing(nodes.node("writes"), lambda: nodes.node("reads"), above, KILLS)
    print(" ", told)


if __name__ == "__main__":
    sys.exit(main())
