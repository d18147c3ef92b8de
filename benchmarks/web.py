"""HTTP: what a GET and a PUT of one blob cost a server.

Rule: wrk asks, and says how often it was answered well; PUTs are of blobs that no server has
seen, from connections of our own, since wrk cannot hash.  Servers start with HTTP alone, in
alternating rounds; the figure is CPU time of all of a server's processes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import proc
from benchmarks.compare import Drive, Report, turned
from benchmarks.servers import DidNotStart, Kind, Running, running, scratch
from benchmarks.stats import median

SIZES = (1 << 10, 64 << 10, 64 << 20)
"""Bytes of a blob."""

PUTS = {1 << 10: 4000, 64 << 10: 1500, 64 << 20: 6}
"""Blobs written in a round."""

CONNECTIONS = 16
LARGE_CONNECTIONS = 2
"""For blobs of a MiB and more: they keep a server busy for long."""

PIECE = 1 << 20


class WrkFailed(Exception):
    """wrk is not there, or was not answered well."""


def web(kinds: Sequence[Kind], drive: Drive, report: Report) -> dict[str, Any]:
    """For each operation and server: server CPU µs and operations a second, medians."""
    if shutil.which("wrk") is None:
        raise WrkFailed("wrk is not installed (Debian has it)")
    samples: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for round_ in range(drive.rounds):
        for kind in turned(kinds, round_):
            try:
                with scratch(drive.directory) as directory, running(kind, directory) as server:
                    for operation, figures in _round(server, drive.seconds):
                        samples.setdefault((operation, kind.name), []).append(figures)
                        report(f"http  {kind.name}  {operation}  {figures[0]:.1f} CPU µs")
            except DidNotStart as error:
                report(str(error))
    operations: dict[str, dict[str, Any]] = {}
    for (operation, name), taken in samples.items():
        operations.setdefault(operation, {})[name] = {
            "cpu_us": median([cpu for cpu, _ in taken]),
            "per_second": median([rate for _, rate in taken]),
        }
    return {"operations": operations}


def _round(server: Running, seconds: float) -> list[tuple[str, tuple[float, float]]]:
    out = []
    for size in SIZES:
        body = os.urandom(size)
        _put(server.address, [body])
        _get(server.address, body, min(seconds, 0.5))  # the first ones pay for more than themselves
        out.append((f"GET {_text(size)}", _get_measured(server, body, seconds)))
        out.append((f"PUT {_text(size)}", _put_measured(server, size)))
    return out


def _get_measured(server: Running, body: bytes, seconds: float) -> tuple[float, float]:
    before, began = proc.cpu_seconds(server.pid), time.monotonic()
    count = _get(server.address, body, seconds)
    passed = time.monotonic() - began
    return (proc.cpu_seconds(server.pid) - before) / count * 1e6, count / passed


def _get(address: str, body: bytes, seconds: float) -> int:
    """How many answers there were.  Raises WrkFailed unless all were good ones."""
    connections = CONNECTIONS if len(body) < PIECE else LARGE_CONNECTIONS
    done = subprocess.run(
        [
            *("wrk", "--threads", "1", "--connections", str(connections)),
            *("--duration", f"{max(1, round(seconds))}s", "--timeout", "60s"),
            f"http://{address}/cas/{hashlib.sha256(body).hexdigest()}",
        ],
        capture_output=True,
        text=True,
        timeout=seconds + 120,
        check=False,
    )
    count = re.search(r"(\d+) requests in", done.stdout)
    if (
        count is None
        or not int(count[1])
        or "Non-2xx" in done.stdout
        or "Socket errors" in (done.stdout)
    ):
        raise WrkFailed(f"wrk said: {done.stdout.strip()} {done.stderr.strip()}")
    return int(count[1])


def _put_measured(server: Running, size: int) -> tuple[float, float]:
    count = PUTS[size]
    rest = os.urandom(size - 16)
    bodies = [os.urandom(16) + rest for _ in range(count)]
    before, began = proc.cpu_seconds(server.pid), time.monotonic()
    _put(server.address, bodies)
    passed = time.monotonic() - began
    return (proc.cpu_seconds(server.pid) - before) / count * 1e6, count / passed


def _put(address: str, bodies: list[bytes]) -> None:
    """Writes all of `bodies`, from several connections.  Raises WrkFailed."""
    lanes = CONNECTIONS if len(bodies[0]) < PIECE else LARGE_CONNECTIONS
    todo = list(bodies)
    problems: list[str] = []

    def lane() -> None:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), 60) as opened:
            answers = opened.makefile("rb")
            while todo and not problems:
                try:
                    body = todo.pop()
                except IndexError:
                    return
                name = hashlib.sha256(body).hexdigest()
                head = f"PUT /cas/{name} HTTP/1.1\r\nHost: {address}\r\n"
                opened.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
                opened.sendall(body)
                line = answers.readline()
                length = 0
                while (field := answers.readline().lower()) not in (b"\r\n", b""):
                    if field.startswith(b"content-length:"):
                        length = int(field.partition(b":")[2])
                answers.read(length)
                if b" 200 " not in line:
                    problems.append(line.decode(errors="replace").strip())

    threads = [threading.Thread(target=lane) for _ in range(min(lanes, len(bodies)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise WrkFailed(f"a PUT was answered {problems[0]!r}")


def _text(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
