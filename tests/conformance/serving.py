"""A real server process for black-box tests.

Rule: starts ``python -m cas serve`` and ends it by its id; knows nothing of what is served.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

PATIENCE = 60.0
"""Seconds for anything to happen: generous, since a busy machine is no failure."""

ROOT = Path(__file__).resolve().parents[2]


class Server:
    """A running server: a session of its own, so that all of it can be killed at once."""

    def __init__(self, directory: Path, log: Path, *arguments: str) -> None:
        self.directory = directory
        self._log = log
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cas", "serve", "--dir", str(directory), *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        if not ready.startswith("ready grpc="):
            self.kill()
            raise AssertionError(f"{ready!r}, not ready: {log.read_text()}")
        _, grpc, http = ready.split()
        self.address = grpc.removeprefix("grpc=")
        self.http = http.removeprefix("http=")
        """Host and port, or none."""

    def kill_workers(self) -> None:
        """SIGKILL to the processes that serve; the one that watches them stays."""
        for line in self._log.read_text().splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "serving" and event["pid"] == self._process.pid:
                for pid in event["workers"]:
                    os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL to every process of the server."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._close()

    def stop(self) -> None:
        """SIGTERM, and all of it is gone."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                code = self._process.wait(PATIENCE)
            finally:
                self.kill()
            assert code == 0, f"ended with {code}: {self._log.read_text()}"
        self._close()

    def _close(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
