"""What the service manager is told: sd_notify(3), as systemd and others listen to it.

Rule: says what it is told to say and decides nothing.  Nothing here fails, or waits for long: a
server serves whether or not its manager hears it.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Mapping

VARIABLES = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})
"""How the manager says where it listens: meant for the process that it started, and for no child
of that."""

PATIENCE = 1.0
"""Seconds that a manager too busy to listen is waited for."""


class Manager:
    """The manager that started this process, or nobody."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(PATIENCE)
        self.interval = watchdog_interval(environ, os.getpid()) if self._address else math.inf
        """Seconds between two signs of life; infinite when nobody waits for them."""
        self._due = 0.0

    def ready(self, status: str) -> None:
        """The server serves; `status` is one line for people."""
        self._say("READY=1", f"STATUS={status}")

    def alive(self, now: float) -> None:
        """The caller's loop turns, by the clock `now`; said when it is due."""
        if now >= self._due and self.interval < math.inf:
            self._due = now + self.interval
            self._say("WATCHDOG=1")

    def stopping(self, seconds: float) -> None:
        """The server drains, and is gone in `seconds`: the manager is not to kill it before, even
        if it was told to wait for less."""
        self._say(
            "STOPPING=1", "STATUS=draining", f"EXTEND_TIMEOUT_USEC={math.ceil(seconds * 1e6)}"
        )

    def close(self) -> None:
        if self._socket:
            self._socket.close()

    def _say(self, *lines: str) -> None:
        if self._socket:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)


def watchdog_interval(environ: Mapping[str, str], pid: int) -> float:
    """Seconds between the signs of life that the manager asks process `pid` for: half of what it
    waits, as sd_watchdog_enabled(3) advises.  Infinite when it asks for none."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return math.inf
    text = environ.get("WATCHDOG_USEC", "")
    wait = int(text) if text.isascii() and text.isdigit() else 0
    return wait / 2e6 if wait else math.inf


def _address(text: str) -> str:
    """A socket's path, or its abstract name; "" for other kinds, such as a virtual machine's."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else ""
