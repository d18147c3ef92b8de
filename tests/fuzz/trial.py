"""A server under hostile calls, and what of it must be as before when they are over.

Rule: the only place that looks at the server from inside its machine: processes, memory, open
files, what lies in its directory, its log.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.conformance.serving import Server
from tests.fuzz import drive

PATIENCE = 40.0
"""Seconds for calls that were given up to be gone."""
GROWTH = 64 << 20
"""Bytes of resident memory that a run may add, from the least of its first half to the least of
its second: allocators keep what a burst of large messages took for a while, so that what is held
at one moment goes up and down by as much."""
LOOKS = 16
"""At it, in a run."""
FEW_FILES = 16
"""Descriptors that a server may open once, for good, when it is first asked this or that."""
WARM_UP = 2_000
"""Calls after which memory is looked at first."""
LARGEST_UPLOAD = 300_000


class Trial:
    """One server with one worker, so that every call meets the same process."""

    def __init__(self, directory: Path, engine: str) -> None:
        self.codes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._store = directory / "store"
        self._log = directory / "log"
        self._server = Server(
            self._store,
            self._log,
            *("--grpc", "127.0.0.1:0", "--http", "none", "--workers", "1", "--engine", engine),
            *("--chunk-size", "4KiB"),
        )
        drive.fill(self._server.address)
        (self._worker,) = self._events("serving")[0]["workers"]
        self._files = self._open_files()
        self._memory: list[int] = []

    def run(self, seed: int, numbers: range) -> None:
        """Sends the calls with these numbers."""
        rest = numbers[WARM_UP:]
        step = -(-len(rest) // LOOKS) or 1
        parts = [rest[at : at + step] for at in range(0, len(rest), step)]
        for part in (numbers[:WARM_UP], *parts):
            outcome = drive.run(self._server.address, seed, part)
            self.codes += outcome.codes
            self.wrong += outcome.wrong
            self._memory.append(self._resident())

    def judge(self) -> list[str]:
        """Everything that is wrong, one line each."""
        wrong = list(self.wrong)
        if not _until(lambda: self._open_files() <= self._files + FEW_FILES):
            wrong.append(f"{self._open_files()} files are open, {self._files} were at the start")
        half = len(self._memory) // 2
        if (grown := min(self._memory[half:]) - min(self._memory[: half or 1])) > GROWTH:
            wrong.append(f"resident memory grew by {grown >> 20} MiB")
        # A copy that a stream made to take an upload over has a name with a dot.
        wrong += [
            f"staging holds {path.name}, {path.stat().st_size} bytes"
            for path in self._store.glob("staging/*/*")
            if "." in path.name or path.stat().st_size > LARGEST_UPLOAD
        ]
        wrong += [f"blob {number} reads back wrong" for number in self._wrong_blobs()]
        wrong += [f"logged: {line}" for line in self._complaints()]
        return wrong

    def summary(self) -> str:
        uploads = sum(1 for _ in self._store.glob("staging/*/*"))
        return f"{sum(self.codes.values())} calls, {uploads} uploads left unfinished"

    def end(self) -> None:
        self._server.stop()

    def _wrong_blobs(self) -> list[int]:
        return drive.wrong_blobs(self._server.address)

    def _complaints(self) -> list[str]:
        """What the log says that an answer alone would not show."""
        lines = self._log.read_text().splitlines()
        levels = ("warning", "error")
        return [x for x in lines if not x.startswith("{") or json.loads(x)["level"] in levels]

    def _events(self, name: str) -> list[dict[str, list[int]]]:
        lines = self._log.read_text().splitlines()
        return [event for line in lines if (event := json.loads(line))["event"] == name]

    def _open_files(self) -> int:
        """Not counting connections: a client closes its own when it likes."""
        targets = []
        for link in Path(f"/proc/{self._worker}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                targets.append(str(link.readlink()))
        return sum(1 for target in targets if not target.startswith("socket:"))

    def _resident(self) -> int:
        """Bytes of memory of the worker's own, without files that are mapped."""
        status = Path(f"/proc/{self._worker}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
        return int(line.split()[1]) << 10


def _until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
