"""One worker process as its supervisor sees it.

Rule: mechanism only: start it, read what it says, tell it to drain, kill it.  When to do
which is `cas.server.supervisor`'s to decide.  Nothing but `wait` blocks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from cas.server import messages
from cas.server.messages import Event, Role, Task

MODULES: Mapping[Role, str] = {
    "grpc": "cas.server.worker",
    "http": "cas.server.front",
    "janitor": "cas.server.janitor",
}
"""What runs a worker of each role.  Named, never imported: a supervisor stays small."""

_READ_SIZE = 65_536


class Child:
    """A running or ended worker process."""

    def __init__(self, task: Task, environ: Mapping[str, str]) -> None:
        """Starts the worker.  Raises OSError when there is no process to be had."""
        self._events, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, *_safe_path(), "-m", MODULES[task.role], str(theirs)],
                stdin=subprocess.PIPE,
                # Stdout is the supervisor's: one line, for whoever started it.
                stdout=sys.stderr,
                env=dict(environ),
                bufsize=0,
                pass_fds=(theirs, task.board),
                # Away from the terminal's Ctrl-C, which is the supervisor's to act on.
                process_group=0,
            )
        except BaseException:
            os.close(self._events)
            raise
        finally:
            os.close(theirs)
        assert self._process.stdin is not None
        self._orders = self._process.stdin
        self._partial = b""
        os.set_blocking(self._events, False)
        # Smaller than a pipe's buffer, so this cannot block.
        self._order(messages.encode_task(task))

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """The pipe to select on for reading."""
        return self._events

    def read(self) -> list[Event] | None:
        """The events that have arrived; None once there will be no more."""
        try:
            data = os.read(self._events, _READ_SIZE)
        except BlockingIOError:
            return []
        if not data:
            return None
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [messages.decode_event(line) for line in lines]

    def drain(self) -> None:
        """Tells the worker to finish its calls and end."""
        self._order(messages.DRAIN)

    def dump(self) -> None:
        """Has the worker write what its threads are doing to its stderr, if it still can."""
        self._process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """Ends the process now, stopped ones too."""
        self._process.kill()

    def exit_code(self) -> int | None:
        """How it ended (negative: the signal); None while it runs."""
        return self._process.poll()

    def wait(self, timeout: float) -> None:
        """Waits for a killed process to be gone; not for ever: a disk may hold it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    def close(self) -> None:
        """Gives back the pipes of an ended process."""
        self._orders.close()
        os.close(self._events)

    def _order(self, line: bytes) -> None:
        # A worker that has just died is noticed by its exit, not here.
        with contextlib.suppress(BrokenPipeError):
            self._orders.write(line)


def _safe_path() -> list[str]:
    """``-P`` unless we run from a checkout: ``-m`` alone would let the current directory
    come before every installed package."""
    root = Path(__file__).resolve().parents[2]
    with contextlib.suppress(FileNotFoundError):
        if root.samefile("."):
            return []
    return ["-P"]


def how_it_ended(code: int) -> str:
    """An exit code in words: ``exit code 1``, ``SIGKILL``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
