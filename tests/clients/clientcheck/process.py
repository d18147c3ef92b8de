"""Starts programs, bounds them in time, and ends them by their process group. The only place that
starts one.

Each program leads a session of its own, so that what it starts in turn can be ended with it, and
its output goes to a file: a pipe would stay open for as long as any grandchild lives.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import CheckError

_LINGER_SECONDS = 3


@dataclass(frozen=True)
class Clock:
    """A deadline for everything that one check does, in seconds of the monotonic clock."""

    ends: float

    @classmethod
    def of(cls, seconds: float) -> "Clock":
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds left. Raises CheckError when there are none."""
        seconds = self.ends - time.monotonic()
        if seconds <= 0:
            raise CheckError("out of time")
        return seconds


@dataclass(frozen=True)
class Finished:
    """A program that ended by itself: exit code, stdout and stderr as one text, seconds it took."""

    code: int
    output: str
    seconds: float


def last_lines(text: str, count: int = 25) -> str:
    """The end of a log, to be shown under a message about it."""
    return "\n".join(f"    | {line}" for line in text.splitlines()[-count:])


def run(
    argv: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], log: Path, clock: Clock
) -> Finished:
    """Runs a program to its end, output to `log`. Raises CheckError if the clock runs out first."""
    seconds = clock.left()
    began = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(word) for word in argv],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        said = f"{Path(argv[0]).name} was still running after {seconds:.0f} s"
        raise CheckError(f"{said}\n{last_lines(read(log))}") from None
    finally:
        end_group(process)
    return Finished(code, read(log), time.monotonic() - began)


def must(finished: Finished, what: str) -> Finished:
    """The same, unless the exit code tells of a failure: then CheckError with the end of the
    log.
    """
    if finished.code != 0:
        raise CheckError(f"{what} exited with {finished.code}\n{last_lines(finished.output)}")
    return finished


def read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def group_alive(pid: int) -> bool:
    """Whether a process of the group led by `pid` runs; a zombie not reaped yet doesn't."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold anything; state, parent and group follow it.
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == pid and state not in "ZX":
            return True
    return False


def wait_for_group(pid: int, seconds: float) -> bool:
    """Whether the group led by `pid` is gone, at the latest after so many seconds."""
    ends = time.monotonic() + seconds
    while group_alive(pid):
        if time.monotonic() > ends:
            return False
        time.sleep(0.02)
    return True


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """Kills what is left of a session started here, its leader included, and reaps the leader."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass
class Daemon:
    """A server that runs until it is stopped. `name` is what messages call it."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @classmethod
    def start(
        cls,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        log: Path,
        stdout: Path | None = None,
    ) -> "Daemon":
        """Starts it with stderr, and stdout unless it has a file of its own, going to `log`."""
        with log.open("wb") as err, (stdout or log).open("ab") as out:
            process = subprocess.Popen(
                [str(word) for word in argv],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        return cls(name, process, log)

    def check_alive(self) -> None:
        code = self.process.poll()
        if code is not None:
            raise CheckError(f"{self.name} ended with {code}\n{last_lines(read(self.log))}")

    def wait_for_port(self, address: str, clock: Clock) -> None:
        """Returns when `address` (host:port) accepts a connection."""
        host, _, port = address.rpartition(":")
        while True:
            self.check_alive()
            try:
                with socket.create_connection((host, int(port)), timeout=1):
                    return
            except OSError:
                clock.left()
                time.sleep(0.05)

    def stop(self, seconds: float) -> int | None:
        """SIGTERM, then the exit code; None if it had to be killed, or left processes behind."""
        self.process.send_signal(signal.SIGTERM)
        code: int | None
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        # Python's own helper processes notice the end of their parent a moment later.
        if not wait_for_group(self.process.pid, _LINGER_SECONDS):
            code = None
        end_group(self.process)
        return code


def free_port() -> int:
    """A loopback port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
