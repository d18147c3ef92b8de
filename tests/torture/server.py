"""The server under torture: its processes, found in /proc, and killed one by one or all at once.

Rule: every process is named by its id, read from the kernel at that moment.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0


def free_port(dice: random.Random) -> int:
    """A port below those that the system gives to others of its own accord, so that no other
    server can come up there while ours is down."""
    while True:
        port = dice.randint(15_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """``cas serve``, started again and again on one directory and one port."""

    def __init__(
        self, directory: Path, log: Path, port: int, *arguments: str, **environ: str
    ) -> None:
        self.directory = directory
        self.address = f"127.0.0.1:{port}"
        self.ready_seconds: list[float] = []
        self._log = log
        self._arguments = arguments
        self._environ = {**os.environ, **environ}
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts it and waits until it serves."""
        began = time.monotonic()
        with self._log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "cas", "serve", "--dir", str(self.directory),
                    "--grpc", self.address, "--log-format", "json", *self._arguments,
                ],
                cwd=ROOT,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )  # fmt: skip
        assert self._process.stdout is not None
        if not self._process.stdout.readline().startswith("ready "):
            raise RuntimeError(f"the server did not start; see {self._log}")
        self.ready_seconds.append(time.monotonic() - began)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def children(self) -> dict[int, str]:
        """The processes under the supervisor, and their modules."""
        out: dict[int, str] = {}
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"-m" in words:
                    out[int(pid)] = words[words.index(b"-m") + 1].decode()
        return out

    def kill_child(self, module: str, dice: random.Random) -> bool:
        pids = [pid for pid, name in self.children().items() if name == module]
        if not pids:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(dice.choice(pids), signal.SIGKILL)
        return True

    def kill_supervisor(self) -> None:
        """What is under it is to end by itself."""
        left = list(self.children())
        os.kill(self.pid, signal.SIGKILL)
        self._reap()
        deadline = time.monotonic() + PATIENCE
        while any(_runs(pid) for pid in left):
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes {left} outlive their supervisor")
            time.sleep(0.01)

    def kill_all(self) -> None:
        """Every process, at once: each is in the group, or a group below it, of the session."""
        pids = [self.pid, *self.children()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reap()
        deadline = time.monotonic() + PATIENCE
        while any(_runs(pid) for pid in pids):
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes {pids} do not end")
            time.sleep(0.01)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(PATIENCE)
        finally:
            self._reap()

    def _reap(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.wait(PATIENCE)
        self._process.stdout.close()


def _runs(pid: int) -> bool:
    """Whether any thread of it is left."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX" or len(threads) > 1
