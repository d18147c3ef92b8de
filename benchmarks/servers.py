"""Servers under test: how each is started on a fresh directory, and how it is stopped.

Rule: the only place that knows a server's command line or configuration.  Each
runs in a session of its own, so that all of its processes are found and stopped;
each starts with what it does by itself, and `Kind.note` says what that is where it
matters to a comparison (what is synced, what is verified).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

START_SECONDS = 60.0
STOP_SECONDS = 20.0


class DidNotStart(Exception):
    """The server's process ended or never listened; the message ends with its log."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A server that can be started: `command(directory, port)` is its argument list.

    `announces`: it prints the address that it chose (``ready grpc=…``); the others are told
    a port and are ready once they accept a connection there.
    """

    name: str
    command: Callable[[Path, int], Sequence[str]]
    version: str
    note: str = ""
    announces: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    """A started server: `address` is host:port, `pid` its first process, `ready_seconds` from
    its start to its readiness."""

    kind: Kind
    address: str
    pid: int
    directory: Path
    ready_seconds: float
    process: subprocess.Popen[bytes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return int(port)


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """A directory that goes away, blobs and all."""
    directory = Path(tempfile.mkdtemp(prefix="cas-bench-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def running(kind: Kind, directory: Path) -> Iterator[Running]:
    """Starts the server on `directory` (which may hold an earlier run's data), then stops it.

    Raises DidNotStart.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as log:
        server = _start(kind, directory, log)
        try:
            yield server
        finally:
            _stop(server.process)


def _start(kind: Kind, directory: Path, log: IO[bytes]) -> Running:
    port = 0 if kind.announces else free_port()
    began = time.monotonic()
    process = subprocess.Popen(
        list(kind.command(directory, port)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if kind.announces else log,
        stderr=log,
        start_new_session=True,
    )
    try:
        if kind.announces:
            address = _announced(process, began + START_SECONDS)
        else:
            address = f"127.0.0.1:{port}"
            _wait_until_it_listens(process, port, began + START_SECONDS)
    except DidNotStart as error:
        _stop(process)
        log.seek(0)
        tail = log.read()[-2000:].decode(errors="replace").strip()
        raise DidNotStart(f"{kind.name}: {error}\n{tail}") from None
    except BaseException:
        _stop(process)
        raise
    return Running(kind, address, process.pid, directory, time.monotonic() - began, process)


def _announced(process: subprocess.Popen[bytes], until: float) -> str:
    assert process.stdout is not None
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while b"\n" not in output:
            if not selector.select(max(0.0, until - time.monotonic())):
                raise DidNotStart(f"no ready line within {START_SECONDS:.0f} s")
            piece = os.read(process.stdout.fileno(), 4096)
            if not piece:
                raise DidNotStart("ended before its ready line")
            output += piece
    match = re.match(rb"ready grpc=(\S+)", output)
    if match is None:
        raise DidNotStart(f"first line is {output!r}, expected ready grpc=ADDR")
    return match[1].decode()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, until: float) -> None:
    while True:
        if process.poll() is not None:
            raise DidNotStart(f"ended with code {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise DidNotStart(f"does not listen after {START_SECONDS:.0f} s") from None
            time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the first process, then SIGKILL to all that is left of its session."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _output(command: Sequence[str]) -> str:
    """What a command prints, on whichever stream; empty when it cannot run."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def _go_version(binary: Path) -> str:
    """What the Go toolchain recorded in the program, as bazel-remote cannot say it; for a build
    outside of version control, which bytes it is."""
    try:
        content = binary.read_bytes()
    except OSError:
        return "unknown"
    for pattern in (rb"\bmod\t\S+\t(v\d[^\s()]+)", rb"vcs\.revision=([0-9a-f]{12})"):
        if match := re.search(pattern, content):
            return match[1].decode()
    return f"a build with SHA-256 {hashlib.sha256(content).hexdigest()[:12]}…"


def ours(name: str, workers: int, arguments: Sequence[str] = ()) -> Kind:
    """This checkout's server; `arguments` come last and win."""

    def command(directory: Path, port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "cas", "serve", "--dir", str(directory / "store")),
            *("--grpc", f"127.0.0.1:{port}", "--http", "none"),
            *("--durability", "strict", "--workers", str(workers)),
            *arguments,
        ]

    head = _output(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"])
    plural = "s" if workers > 1 else ""
    return Kind(
        name,
        command,
        version=head.strip() if head and "fatal" not in head else "unknown",
        note=f"{workers} worker{plural}; verified, synced before it is acknowledged"
        + (f"; {' '.join(arguments)}" if arguments else ""),
        announces=True,
    )


def bazel_remote(binary: Path, storage: str = "uncompressed") -> Kind:
    def command(directory: Path, port: int) -> list[str]:
        return [
            *(str(binary), "--dir", str(directory / "store"), "--max_size", "50"),
            *("--storage_mode", storage, "--access_log_level", "none"),
            *("--grpc_address", f"127.0.0.1:{port}"),
            *("--http_address", f"127.0.0.1:{free_port()}"),
        ]

    return Kind(
        "bazel-remote" if storage == "uncompressed" else f"bazel-remote-{storage}",
        command,
        version=_go_version(binary),
        note=f"Go; {storage} storage; verified, file synced",
    )


def ours_over_http(name: str, arguments: Sequence[str] = ()) -> Kind:
    """This checkout's server with HTTP alone; `arguments` come last and win."""

    def command(directory: Path, port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "cas", "serve", "--dir", str(directory / "store")),
            *("--grpc", "none", "--http", f"127.0.0.1:{port}", "--durability", "strict"),
            *arguments,
        ]

    note = " ".join(["one process; verified, synced before it is acknowledged", *arguments])
    return Kind(name, command, version=ours(name, 1).version, note=note)


def bazel_remote_over_http(binary: Path) -> Kind:
    def command(directory: Path, port: int) -> list[str]:
        return [
            *(str(binary), "--dir", str(directory / "store"), "--max_size", "50"),
            *("--storage_mode", "uncompressed", "--access_log_level", "none"),
            *("--grpc_address", "none", "--http_address", f"127.0.0.1:{port}"),
        ]

    note = "Go; uncompressed storage; verified, file synced"
    return Kind("bazel-remote", command, version=_go_version(binary), note=note)


def buildbox_casd(binary: Path) -> Kind:
    def command(directory: Path, port: int) -> list[str]:
        return [str(binary), "--bind", f"127.0.0.1:{port}", str(directory / "store")]

    version = re.search(r"\d+\.\d+\.\d+[^\s]*", _output([str(binary), "--version"]))
    return Kind(
        "buildbox-casd",
        command,
        version=version[0] if version else "unknown",
        note="C++; verified, not synced",
    )


def nativelink(binary: Path) -> Kind:
    def command(directory: Path, port: int) -> list[str]:
        def store(name: str, budget: int) -> dict[str, object]:
            filesystem = {
                "content_path": str(directory / name / "content"),
                "temp_path": str(directory / name / "temporary"),
                "eviction_policy": {"max_bytes": budget},
            }
            return {"name": name, "filesystem": filesystem}

        configuration = {
            "stores": [store("blobs", 50 << 30), store("actions", 1 << 30)],
            "servers": [
                {
                    "listener": {"http": {"socket_address": f"127.0.0.1:{port}"}},
                    "services": {
                        "cas": [{"instance_name": "", "cas_store": "blobs"}],
                        "ac": [{"instance_name": "", "ac_store": "actions"}],
                        "capabilities": [{"instance_name": ""}],
                        "bytestream": [{"instance_name": "", "cas_store": "blobs"}],
                    },
                }
            ],
        }
        file = directory / "nativelink.json5"
        file.write_text(json.dumps(configuration))
        return [str(binary), str(file)]

    version = re.search(r"\d+\.\d+\.\d+[^\s]*", _output([str(binary), "--version"]))
    return Kind(
        "nativelink",
        command,
        version=version[0] if version else "unknown",
        note="Rust; plain filesystem store: hashes not verified",
    )


_BUILDGRID = """\
server:
  - !channel
    address: "127.0.0.1:{port}"
    insecure-mode: true
thread-pool-size: 200
storages:
  - !disk-storage &blobs
    path: {store}
caches:
  - !lru-action-cache &actions
    storage: *blobs
    max-cached-refs: 1000000
    allow-updates: true
instances:
  - name: ""
    services:
      - !cas
        storage: *blobs
      - !bytestream
        storage: *blobs
      - !action-cache
        cache: *actions
"""


def buildgrid(bgd: Path) -> Kind:
    def command(directory: Path, port: int) -> list[str]:
        (directory / "store").mkdir(exist_ok=True)
        file = directory / "buildgrid.yml"
        file.write_text(_BUILDGRID.format(port=port, store=directory / "store"))
        return [str(bgd), "server", "start", str(file)]

    python = bgd.with_name("python")
    code = "from importlib.metadata import version; print(version('buildgrid'))"
    return Kind(
        "buildgrid",
        command,
        version=_output([str(python), "-c", code]).strip() or "unknown",
        note="Python on grpcio; disk storage, action cache in memory",
    )
