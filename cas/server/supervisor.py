"""The supervisor of `cas serve`: holds the directory and the address, keeps workers alive.

A worker is any process that it starts, whatever its role.

Rule: one thread, one loop; signal handlers only append, the loop acts.  It serves nothing
and imports neither gRPC nor LMDB: it must stay small and must not be able to crash with
what its workers crash with.  `run` reads from start to drain, top to bottom.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import random
import secrets
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from cas import log
from cas.config import Config
from cas.errors import CasError
from cas.rpc import environment
from cas.server import access, backoff, cores, listen, messages
from cas.server.child import Child, how_it_ended
from cas.server.listen import Reserved
from cas.server.manager import VARIABLES, Manager
from cas.server.messages import Role, Task
from cas.server.tally import Tally
from cas.store.directory import prepare

logger = logging.getLogger(__name__)

START_TIMEOUT = 60.0
"""Seconds until a worker that does not get ready counts as hung."""

START_ATTEMPTS = 3
"""Deaths without a reason, before the first ready line, until the server gives up."""

CLOSE_TIMEOUT = 30.0
"""Seconds that workers may take, after the drain, to sync and close the store."""

KILL_TIMEOUT = 5.0
"""Seconds to wait for a killed worker to be gone."""

DUMP_TIME = 0.2
"""Seconds for a hung worker to write what its threads are doing before it is killed."""

TURN = 1.0
"""Seconds the loop sleeps at most: bounds how late a missing heartbeat is noticed."""

_SHORTEST_TURN = 0.02
"""So that a killed worker which a disk still holds is not waited for in a busy loop."""

SAME_SIGNAL = 0.3
"""Seconds in which a second signal is still the first one: timeout(1) sends it to the
process and to its group, a shell and a terminal may do the same."""

DRAIN_ORDER: tuple[tuple[Role, ...], ...] = (("grpc", "http"), ("janitor",))
"""Who ends before whom: calls that still run may need the room that the janitor makes."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class StartFailed(CasError):
    """The server could not start; says why."""


def run(config: Config) -> int:
    """Serves until SIGTERM or SIGINT; the process's exit code.

    0 after a drain in which every worker ended well, 1 when one did not, 128 + the signal's
    number when a second signal cut the drain short.  Raises StartFailed, StoreInUse,
    FormatMismatch, AddressUnavailable or OSError when the server cannot start.
    """
    with (
        _signals() as wakeup,
        contextlib.closing(prepare(config.dir, config.digest_functions.all)),
        listen.reserve(config.grpc) as grpc,
        listen.reserve(config.http) as http,
        contextlib.closing(Tally()) as tally,
        contextlib.closing(Manager(os.environ)) as manager,
    ):
        log.configure(config.log_format, config.log_level)
        for reserved in (grpc, http):
            access.warn(config, reserved.addresses, reserved.shown)
        return Supervisor(config, grpc, http, wakeup, tally, manager).run()


@dataclass(slots=True)
class _Slot:
    """One of the workers that there should be."""

    role: Role
    number: int
    """Among those of its role, from 0."""
    addresses: tuple[str, ...] = ()
    """What it is to listen on."""
    child: Child | None = None
    ready: bool = False
    since: float = 0.0
    """When its process started; once ready, when it became ready."""
    heard: float = 0.0
    """When it last said something."""
    reason: str = ""
    """What it said before it died."""
    failures: int = 0
    """Deaths in a row."""
    due: float = 0.0
    """When to start it again; while a hung one lives, when to kill it."""
    hung: bool = False

    def facts(self) -> dict[str, object]:
        """What a log line says of it."""
        facts: dict[str, object] = {"role": self.role, "worker": self.number}
        return {**facts, "worker_pid": self.child.pid} if self.child else facts


@dataclass(frozen=True, slots=True)
class _Wakeup:
    """Signals as the loop sees them."""

    received: collections.deque[int]
    socket: socket.socket
    """Readable once a signal has come."""

    def stop_signal(self) -> int | None:
        """The next signal that asks to stop, or None."""
        while self.received:
            number = self.received.popleft()
            if number != signal.SIGCHLD:
                return number
        return None


class Supervisor:
    """Keeps as many workers serving as the configuration asks for."""

    def __init__(
        self,
        config: Config,
        grpc: Reserved,
        http: Reserved,
        wakeup: _Wakeup,
        tally: Tally,
        manager: Manager,
    ) -> None:
        self._config = config
        self._node = secrets.token_hex(8)
        self._tally = tally
        self._manager = manager
        self._grpc = grpc
        self._http = http
        self._wakeup = wakeup
        self._slots = [
            _Slot("grpc", number, grpc.addresses) for number in range(_worker_count(config, grpc))
        ]
        if http.addresses:
            self._slots.append(_Slot("http", 0, http.addresses))
        """Those who serve."""
        self._janitor = _Slot("janitor", 0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(wakeup.socket, selectors.EVENT_READ)
        self._environ = _environ()
        self._stop: int | None = None
        self._serving = False
        self._clean = True

    def run(self) -> int:
        """Start, serve, drain; the exit code."""
        try:
            for slot in self._slots:
                self._start(slot)
            while self._stop is None and not all(slot.ready for slot in self._slots):
                self._turn()
            if self._stop is None:
                # Not before: nobody waits for it, and its start would take their time.
                self._slots.append(self._janitor)
                self._start(self._janitor)
                self._announce()
            while self._stop is None:
                self._turn()
            return self._drain()
        finally:
            self._kill_all()

    def _announce(self) -> None:
        self._serving = True
        logger.info(
            "serving",
            extra={
                "grpc": self._grpc.shown,
                "http": self._http.shown,
                "dir": str(self._config.dir),
                "engine": self._config.engine,
                "durability": self._config.durability,
                "workers": self._pids("grpc"),
                "front": self._pids("http"),
                "janitor": self._janitor.child.pid if self._janitor.child else None,
            },
        )
        # Whoever started the server may have gone without reading.
        if sys.stdout is not None:
            with contextlib.suppress(OSError):
                os.write(sys.stdout.fileno(), _ready_line(self._grpc, self._http))
        self._manager.ready(f"serving grpc={self._grpc.shown} http={self._http.shown}")

    def _pids(self, role: Role) -> list[int]:
        return [slot.child.pid for slot in self._slots if slot.child and slot.role == role]

    def _drain(self) -> int:
        """Ends the workers in good order; the exit code."""
        assert self._stop is not None
        logger.info(
            "draining",
            extra={
                "signal": signal.Signals(self._stop).name,
                "timeout": self._config.drain_timeout,
            },
        )
        begun = time.monotonic()
        limit = self._config.drain_timeout + CLOSE_TIMEOUT
        deadline = begun + limit
        self._manager.stopping(limit + KILL_TIMEOUT)
        for roles in DRAIN_ORDER:
            leaving = [slot for slot in self._slots if slot.role in roles]
            for slot in leaving:
                if slot.child:
                    slot.child.drain()
            while any(slot.child for slot in leaving):
                self._turn()
                again = self._wakeup.stop_signal()
                if again and time.monotonic() - begun > SAME_SIGNAL:
                    logger.error("stopped at once", extra={"signal": signal.Signals(again).name})
                    return 128 + again
                if time.monotonic() > deadline:
                    logger.error("drain did not end in time; workers are killed")
                    return 1
        logger.info("stopped")
        return 0 if self._clean else 1

    def _turn(self) -> None:
        """Waits for something to happen, then does all that is due."""
        for key, _ in self._selector.select(self._sleep()):
            if isinstance(key.fileobj, socket.socket):
                with contextlib.suppress(BlockingIOError):
                    key.fileobj.recv(4096)
            else:
                self._listen(key.data)
        now = time.monotonic()
        self._manager.alive(now)
        for slot in self._slots:
            if slot.child is None:
                if self._stop is None and now >= slot.due:
                    self._start(slot)
            elif (code := slot.child.exit_code()) is not None:
                self._ended(slot, slot.child, code, now)
            elif self._stop is None:
                self._judge(slot, slot.child, now)
        if self._stop is None:
            self._stop = self._wakeup.stop_signal()
        self._count()

    def _count(self) -> None:
        """Notes who is there; who drains takes no new calls."""
        ready = [slot.role for slot in self._slots if slot.ready and self._stop is None]
        wanted = collections.Counter(slot.role for slot in self._slots)
        self._tally.processes(wanted, collections.Counter(ready))

    def _sleep(self) -> float:
        """Seconds until something may be due."""
        now = time.monotonic()
        waiting = [slot.due - now for slot in self._slots if slot.child is None or slot.hung]
        longest = min(TURN, self._manager.interval)
        return max(_SHORTEST_TURN, min([longest, *waiting])) if self._stop is None else longest

    def _start(self, slot: _Slot) -> None:
        task = Task(
            role=slot.role,
            number=slot.number,
            supervisor=os.getpid(),
            addresses=slot.addresses,
            config=self._config,
            board=self._tally.fd,
            sheet=self._tally.sheet(slot.role, slot.number),
            node=self._node,
        )
        try:
            child = Child(task, self._environ)
        except OSError as error:
            if not self._serving:
                raise
            self._try_later(slot, {**slot.facts(), "reason": str(error)}, well=False)
            return
        slot.child, slot.ready, slot.hung, slot.reason = child, False, False, ""
        slot.since = slot.heard = time.monotonic()
        self._selector.register(child, selectors.EVENT_READ, slot)
        logger.debug("worker started", extra=slot.facts())

    def _listen(self, slot: _Slot) -> None:
        """Takes in what the worker said."""
        assert slot.child is not None
        events = slot.child.read()
        if events is None:
            # Its end is told by its exit code, which the next turn finds.
            with contextlib.suppress(KeyError):
                self._selector.unregister(slot.child)
            return
        now = time.monotonic()
        for event in events:
            slot.heard = now
            if event.kind == messages.FATAL:
                slot.reason = event.detail
            elif event.kind == messages.READY:
                slot.ready, slot.since = True, now
                if self._serving and slot.failures:
                    logger.info("worker serves again", extra=slot.facts())

    def _judge(self, slot: _Slot, child: Child, now: float) -> None:
        """Kills a worker that has stopped answering; its exit is then like any other."""
        if slot.hung:
            if now >= slot.due:
                child.kill()
            return
        silent = now - slot.heard
        if silent > (self._config.heartbeat_timeout if slot.ready else START_TIMEOUT):
            logger.error(
                "worker does not answer; it is killed",
                extra={**slot.facts(), "silent": round(silent, 1)},
            )
            child.dump()
            slot.hung, slot.due = True, now + DUMP_TIME
            slot.reason = slot.reason or f"it did not answer for {silent:.0f} s"

    def _ended(self, slot: _Slot, child: Child, code: int, now: float) -> None:
        """Clears up after a worker and decides when there will be another."""
        # What it said last may still be in the pipe.
        while events := child.read():
            for event in events:
                if event.kind == messages.FATAL:
                    slot.reason = event.detail
        with contextlib.suppress(KeyError):
            self._selector.unregister(child)
        child.close()
        how = how_it_ended(code)
        facts = {**slot.facts(), "ended": how}
        was_ready, slot.child, slot.ready = slot.ready, None, False
        left = "hung" if slot.hung else "died" if code else "left"
        self._tally.ended(slot.role, slot.number, left if self._stop is None else None)
        if slot.reason:
            facts["reason"] = slot.reason
        if self._stop is not None:
            # One that was not serving yet had nothing to lose.
            if code and was_ready:
                self._clean = False
                logger.error("worker failed while draining", extra=facts)
            return
        if was_ready and now - slot.since >= backoff.HEALTHY_AFTER:
            slot.failures = 0
        if not self._serving and (slot.reason or slot.failures + 1 >= START_ATTEMPTS):
            raise StartFailed(slot.reason or f"workers die at start: {how}")
        # An operator may end one worker by SIGTERM: it leaves well and is replaced.
        self._try_later(slot, facts, well=code == 0)

    def _try_later(self, slot: _Slot, facts: dict[str, object], *, well: bool) -> None:
        slot.failures += 1
        wait = backoff.delay(slot.failures, random.random())
        slot.due = time.monotonic() + wait
        facts["wait"] = round(wait, 2)
        if well:
            logger.info("worker ended; it is started again", extra=facts)
        else:
            logger.error("worker died; it is started again", extra=facts)

    def _kill_all(self) -> None:
        """Leaves no process behind, however `run` ends."""
        for slot in self._slots:
            if slot.child:
                slot.child.kill()
        for slot in self._slots:
            if slot.child:
                slot.child.wait(KILL_TIMEOUT)
        self._selector.close()


def _environ() -> dict[str, str]:
    """The environment of workers: the operator's, and ours where it says nothing."""
    # gRPC writes lines of its own to stderr, in its own form; what matters of them comes back
    # as errors. Whoever hunts a fault in gRPC sets this, and GRPC_TRACE, for himself.
    quiet = {"GRPC_VERBOSITY": "NONE"}
    inherited = {name: text for name, text in os.environ.items() if name not in VARIABLES}
    return {**quiet, **environment.variables(), **inherited}


def _ready_line(grpc: Reserved, http: Reserved) -> bytes:
    return f"ready grpc={grpc.shown} http={http.shown}\n".encode()


def _worker_count(config: Config, reserved: Reserved) -> int:
    if not reserved.addresses:
        return 0
    if reserved.shared:
        return config.workers or cores.available()
    if config.workers > 1:
        logger.warning(
            "a Unix socket has one listener: one worker serves it",
            extra={"asked": config.workers, "grpc": reserved.shown},
        )
    return 1


@contextlib.contextmanager
def _signals() -> Iterator[_Wakeup]:
    """Collects signals for the loop while the block runs."""
    received: collections.deque[int] = collections.deque()

    def append(number: int, frame: FrameType | None) -> None:
        received.append(number)

    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        before_wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, append) for number in _SIGNALS}
        try:
            yield _Wakeup(received, reader)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before_wakeup)
