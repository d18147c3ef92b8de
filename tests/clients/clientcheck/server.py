"""The project's own server under test: started on a free port over an empty directory, stopped,
its log read.
"""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import CheckError
from .process import Clock, Daemon, read
from .tools import closed_environment

_START_SECONDS = 30
STOP_SECONDS = 30


@dataclass(frozen=True)
class CasServer:
    """A running `cas serve`; `address` is its gRPC front, `http` its HTTP front, host:port."""

    daemon: Daemon
    address: str
    http: str


def start(cas: Path, work: Path, name: str, arguments: Sequence[str]) -> CasServer:
    """Starts `cas` below `work` and returns once it says that it is ready. Raises CheckError if
    it never does.
    """
    home = work / name
    home.mkdir()
    stdout = home / "stdout"
    daemon = Daemon.start(
        name,
        [
            cas,
            "serve",
            "--dir",
            home / "data",
            "--grpc",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            *arguments,
        ],
        env=closed_environment(home),
        log=home / "stderr",
        stdout=stdout,
    )
    clock = Clock.of(_START_SECONDS)
    try:
        while True:
            ready = re.search(r"^ready grpc=(\S+) http=(\S+)$", read(stdout), re.MULTILINE)
            if ready:
                return CasServer(daemon, ready.group(1), ready.group(2))
            daemon.check_alive()
            clock.left()
            time.sleep(0.05)
    except BaseException:
        daemon.stop(5)
        raise


def stop(server: CasServer) -> list[str]:
    """Stops it by SIGTERM. Returns what was wrong with how it ended or with what it logged, best
    nothing.
    """
    wrong = []
    code = server.daemon.stop(STOP_SECONDS)
    if code is None:
        wrong.append(f"it did not end within {STOP_SECONDS} s of SIGTERM, or left processes behind")
    elif code != 0:
        wrong.append(f"it exited with {code} after SIGTERM, expected 0")
    return wrong + error_lines(read(server.daemon.log))


def error_lines(log: str) -> list[str]:
    """The lines of a server's log that tell of an error, be it in JSON, in text, or gRPC's own C
    core that speaks.
    """
    return [line for line in log.splitlines() if _tells_of_error(line)]


def _tells_of_error(line: str) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return bool(re.search(r"\b(ERROR|CRITICAL|Traceback)\b|^[EF]\d{4} ", line))
    return isinstance(record, dict) and record.get("level") in ("error", "critical")


def find_cas(root: Path) -> Path:
    """The project's own `cas`. Raises CheckError if it is not installed yet."""
    cas = root / ".venv/bin/cas"
    if not cas.exists():
        raise CheckError(f"no {cas}: install the project into .venv first (`make serve` does)")
    return cas
