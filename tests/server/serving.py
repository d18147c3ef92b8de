"""Running ``cas serve`` in a test: real processes, stopped by their ids.

Rule: what tests of more than one file need; the fixture that uses it is in conftest.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import grpc

ROOT = Path(__file__).resolve().parents[2]

PATIENCE = 40.0
"""Seconds for anything to happen: generous, since a busy machine is no failure."""


def free_port() -> int:
    """Of loopback, for a program that does not tell which port it picked."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
    return port


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A running ``cas serve``."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log
        self.ready = ""

    def await_ready(self) -> None:
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        assert self.ready, f"the server ended before it was ready: {self.log.read_text()}"

    @property
    def address(self) -> str:
        return self.ready.split()[1].removeprefix("grpc=")

    @property
    def http(self) -> str:
        return self.ready.split()[2].removeprefix("http=")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of that name that were logged so far."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for line in lines if (event := json.loads(line))["event"] == name]

    def workers(self) -> list[int]:
        """The workers' process ids at the first ready line."""
        (event,) = self.events("serving")
        pids: list[int] = event["workers"]
        return pids

    def front(self) -> int:
        """The process id of who serves HTTP at the first ready line."""
        (event,) = self.events("serving")
        (pid,) = event["front"]
        assert isinstance(pid, int)
        return pid

    def janitor(self) -> int:
        """The janitor's process id at the first ready line."""
        (event,) = self.events("serving")
        pid: int = event["janitor"]
        return pid

    def again(self) -> list[int]:
        """The process ids of workers that took a dead one's place, once they serve."""
        return [event["worker_pid"] for event in self.events("worker serves again")]

    def ends(self) -> int:
        return self.process.wait(PATIENCE)

    def kill(self, pid: int) -> None:
        """Kills one of its processes; it is gone afterwards."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if pid == self.process.pid:
            self.process.wait(PATIENCE)
        until(lambda: gone(pid), f"the end of process {pid}")


def end(*servers: Server) -> None:
    """Ends them all by SIGTERM, which they are to take well."""
    for server in servers:
        server.process.terminate()
    for server in servers:
        try:
            assert server.process.wait(PATIENCE) == 0, server.log.read_text()
        finally:
            server.process.kill()
            server.process.wait()
            assert server.process.stdout is not None
            server.process.stdout.close()


class Start(Protocol):
    """The fixture: starts a server with more arguments, and by default waits until it serves."""

    def __call__(self, *arguments: str, wait: bool = True) -> Server: ...


def spawn(log: Path, arguments: list[str]) -> Server:
    """Starts ``cas serve``; its stderr goes to `log`."""
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "cas", "serve", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    return Server(process, log)


@contextlib.contextmanager
def channel(server: Server) -> Iterator[grpc.Channel]:
    """A connection of its own."""
    with grpc.insecure_channel(
        server.address, options=[("grpc.use_local_subchannel_pool", 1)]
    ) as opened:
        yield opened


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.05)


def environ_of(pid: int) -> dict[str, str]:
    """What a process was started with.  It may have been started a moment ago: until the kernel
    has put the program in its place, it has none."""
    file = Path(f"/proc/{pid}/environ")
    until(lambda: file.read_bytes() != b"", f"process {pid} runs its program")
    return dict(entry.split("=", 1) for entry in file.read_text().split("\0") if entry)


def gone(pid: int) -> bool:
    """Whether the process runs no more; nobody may have waited for it yet."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return True
    # A killed process's first thread is a zombie while others still hold files and ports.
    return status.rpartition(")")[2].split()[0] in "ZX" and len(threads) <= 1
