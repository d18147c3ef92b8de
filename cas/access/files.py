"""Files that may change while the server runs: read at the start, and again when they do.

Rule: a file that cannot be read any more, or makes no sense, leaves what was read before; the
log says so once.  Messages name a file and a line, never what is in it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from cas.errors import ConfigError

T = TypeVar("T")

MAX_BYTES = 16 << 20
"""Largest file read."""

INTERVAL = 1.0
"""Seconds between two looks."""

log = logging.getLogger("cas.access")

Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp:
    """Differs when the file does: it was written to, or another one was put in its place."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size, status.st_ino


class Watched(Protocol):
    """What is to be looked after now and then."""

    def refresh(self) -> bool:
        """Looks; whether something is new.  Raises nothing."""


class WatchedFile(Generic[T]):
    """What `parse` makes of a file's text; it raises ValueError with what is wrong."""

    def __init__(self, path: Path, parse: Callable[[str], T]) -> None:
        """Raises ConfigError."""
        self._path = path
        self._parse = parse
        try:
            self._stamp: Stamp | None = stamp(path)
            self.value = self._read()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {reason(error)}") from None

    def refresh(self) -> bool:
        try:
            now = stamp(self._path)
        except OSError as error:
            if self._stamp is not None:
                self._stamp = None
                self._complain(error)
            return False
        if now == self._stamp:
            return False
        self._stamp = now
        try:
            self.value = self._read()
        except (OSError, ValueError) as error:
            self._complain(error)
            return False
        log.info("a file was read again", extra={"path": str(self._path)})
        return True

    def _read(self) -> T:
        with self._path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            # The error itself would show some of it.
            raise ValueError("not UTF-8") from None
        return self._parse(text)

    def _complain(self, error: Exception) -> None:
        log.error(
            "a file cannot be read again; what was read before stays in force",
            extra={"path": str(self._path), "reason": reason(error)},
        )


def reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)


class Watcher:
    """Refreshes everything, again and again, on a thread of its own, until closed."""

    def __init__(
        self, watched: Sequence[Watched], changed: Callable[[], None], interval: float = INTERVAL
    ) -> None:
        """`changed` is called after something was new."""
        self._watched = watched
        self._changed = changed
        self._interval = interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._interval):
            # All of them: any() would stop at the first.
            if True in [each.refresh() for each in self._watched]:
                self._changed()
