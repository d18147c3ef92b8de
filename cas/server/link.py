"""The worker's end of the pipes to its supervisor.

Rule: one thread uses it, the worker's main one.  A worker never outlives its supervisor:
whichever is noticed first, the kernel's signal, the end of a pipe or a parent that is not
the one that started us, ends the process at once; what was acknowledged is safe by then.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from types import FrameType

from cas.server import messages
from cas.server.messages import Event, Task

_PR_SET_PDEATHSIG = 1
"""prctl(2)."""

_ORDERS = 0
"""The supervisor writes to our stdin."""


class Link:
    """What a worker hears from its supervisor and tells it."""

    def __init__(self, events: int) -> None:
        """`events` is the descriptor to write events to."""
        self._events = events
        self._received = b""
        self._signals: collections.deque[int] = collections.deque()
        self._wakeup: socket.socket | None = None

    def task(self) -> Task:
        """Waits for the task, and ties this process's life to the supervisor's."""
        while b"\n" not in self._received:
            self._read()
        line, _, self._received = self._received.partition(b"\n")
        task = messages.decode_task(line)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # It may have died before the kernel was told to watch it.
        if os.getppid() != task.supervisor:
            os._exit(1)
        return task

    def tell(self, event: Event) -> None:
        """Sends `event`."""
        try:
            os.write(self._events, messages.encode_event(event))
        except BrokenPipeError:
            os._exit(1)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Within the block SIGTERM and SIGINT are requests to stop.

        An operator may replace one worker by them, and systemd sends them to every process
        of a service; they mean what `DRAIN` means, however often they come.
        """

        def append(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)

        self._wakeup, writer = socket.socketpair()
        with self._wakeup, writer:
            writer.setblocking(False)
            signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            before = {n: signal.signal(n, append) for n in (signal.SIGTERM, signal.SIGINT)}
            try:
                yield
            finally:
                # Not back to the default: the drain is over, the exit code is decided.
                for number in before:
                    signal.signal(number, signal.SIG_IGN)
                signal.set_wakeup_fd(-1)

    def stop_requested(self, timeout: float) -> bool:
        """Whether to drain; waits up to `timeout` seconds for somebody to ask for it."""
        assert self._wakeup is not None, "only within signals()"
        until = time.monotonic() + timeout
        while not self._signals and not self._received.startswith(messages.DRAIN):
            left = until - time.monotonic()
            ready, _, _ = select.select([_ORDERS, self._wakeup.fileno()], [], [], max(0.0, left))
            if _ORDERS in ready:
                self._read()
            elif left <= 0:
                return False
        return True

    def check(self) -> None:
        """Ends the process if the supervisor is gone; for loops after `stop_requested`."""
        while select.select([_ORDERS], [], [], 0)[0]:
            self._read()

    def _read(self) -> None:
        data = os.read(_ORDERS, 65_536)
        if not data:
            os._exit(1)
        self._received += data
