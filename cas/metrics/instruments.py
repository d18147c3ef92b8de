"""What the processes count with.

Rule: an instrument is made once, by whoever counts, and costs an addition or two in shared
memory when it is used: no lock, nothing allocated that outlives the call.  prometheus-client's
own take 1.1 µs for a counter and 1.6 µs for a histogram, more than all of a call may.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from threading import Lock
from typing import Protocol

from cas.metrics import families
from cas.metrics.board import Sheet, private_sheet
from cas.metrics.families import Family
from cas.metrics.recent import EXPECTED, Recent

MAX_INSTANCES = 32
"""Instance names that a process counts apart; the rest are `OTHER`."""

OTHER = "other"


class Counter:
    """Only grows."""

    __slots__ = ("_numbers", "_slot")

    def __init__(self, sheet: Sheet, family: Family, *labels: str) -> None:
        self._numbers = sheet.numbers
        self._slot = sheet.slot(family, labels)

    def add(self, amount: float = 1.0) -> None:
        self._numbers[self._slot] += amount


class Gauge(Counter):
    """Goes up and down; zero again when its process has died."""

    __slots__ = ()

    def set(self, value: float) -> None:
        self._numbers[self._slot] = value


class Histogram:
    """How many values fell under each bound, and their sum."""

    __slots__ = ("_bounds", "_numbers", "_slot", "_sum")

    def __init__(self, sheet: Sheet, family: Family, *labels: str) -> None:
        self._bounds = family.bounds
        self._numbers = sheet.numbers
        self._slot = sheet.slot(family, labels)
        self._sum = self._slot + len(family.bounds) + 1

    def observe(self, value: float) -> None:
        numbers = self._numbers
        place = self._slot + bisect_left(self._bounds, value)
        numbers[place] += 1.0
        numbers[self._sum] += value

    def observe_all(self, values: Sequence[float]) -> None:
        """As `observe` for each, for far less."""
        numbers = self._numbers
        total = sum(values)
        ordered = sorted(values)
        count = len(ordered)
        below = 0
        place = self._slot
        for bound in self._bounds:
            here = bisect_right(ordered, bound) - below
            if here:
                numbers[place] += here
                below += here
            if below == count:
                break
            place += 1
        else:
            left = count - below
            numbers[place] += left
        numbers[self._sum] += total


class Code(Protocol):
    """`grpc.StatusCode`, or whatever names how a request ended."""

    @property
    def name(self) -> str: ...


class Requests:
    """The requests of one method."""

    __slots__ = (
        "_bounds", "_buckets", "_metrics", "_numbers", "_ok", "_others", "_received", "_sent",
        "_sum", "method", "protocol",
    )  # fmt: skip

    def __init__(self, metrics: Metrics, protocol: str, method: str) -> None:
        self._metrics = metrics
        self.protocol = protocol
        self.method = method
        sheet = metrics.sheet
        self._numbers = sheet.numbers
        self._bounds = families.REQUEST_SECONDS.bounds
        self._buckets = sheet.slot(families.REQUEST_SECONDS, (protocol, method))
        self._sum = self._buckets + len(self._bounds) + 1
        self._received = sheet.slot(families.RECEIVED_BYTES, (protocol, method))
        self._sent = sheet.slot(families.SENT_BYTES, (protocol, method))
        self._ok: dict[str, int] = {}
        self._others: dict[tuple[Code | str, str], int] = {}

    def ended(
        self, code: Code | str | None, instance: str, seconds: float, received: int, sent: int
    ) -> None:
        """One request has ended, with `code`, None for gRPC's OK, after `seconds`, in which so many
        bytes were `received` and `sent`."""
        numbers = self._numbers
        slot = self._ok.get(instance) if code is None else self._others.get((code, instance))
        if slot is None:
            slot = self._enter(code, instance)
        numbers[slot] += 1.0
        slot = self._buckets + bisect_left(self._bounds, seconds)
        numbers[slot] += 1.0
        slot = self._sum
        numbers[slot] += seconds
        slot = self._received
        numbers[slot] += received
        slot = self._sent
        numbers[slot] += sent

    def failed(self, code: Code | str, instance: str, message: str) -> None:
        """Notes a request that has ended badly, with what its client was told."""
        name = code if isinstance(code, str) else code.name
        if name not in EXPECTED:
            self._metrics.recent.note(self.protocol, self.method, name, instance, message)

    def _enter(self, code: Code | str | None, instance: str) -> int:
        name = "OK" if code is None else code if isinstance(code, str) else code.name
        # A name counts apart once something went well under it: guesses do not.
        success = code is None or (isinstance(code, str) and code.startswith("2"))
        known = self._metrics.knows_instance(instance, enter=success)
        labels = (self.protocol, self.method, name, instance if known else OTHER)
        slot = self._metrics.sheet.slot(families.REQUESTS, labels)
        if known and code is None:
            self._ok[instance] = slot
        elif known and code is not None:
            self._others[code, instance] = slot
        return slot


class Metrics:
    """What a process counts with."""

    def __init__(self, sheet: Sheet | None = None) -> None:
        """Without a sheet: for nobody to see."""
        self.sheet = sheet or private_sheet()
        self.recent = Recent(self.sheet)
        self._instances = {""}
        self._lock = Lock()

    def counter(self, family: Family, *labels: str) -> Counter:
        return Counter(self.sheet, family, *labels)

    def gauge(self, family: Family, *labels: str) -> Gauge:
        return Gauge(self.sheet, family, *labels)

    def histogram(self, family: Family, *labels: str) -> Histogram:
        return Histogram(self.sheet, family, *labels)

    def requests(self, protocol: str, method: str) -> Requests:
        """`protocol` is ``grpc`` or ``http``; `method` is one of a fixed few."""
        return Requests(self, protocol, method)

    def knows_instance(self, name: str, *, enter: bool) -> bool:
        """Whether requests of that instance are counted apart; from now on if `enter` and
        there is room."""
        if name in self._instances:
            return True
        if not enter or len(self._instances) > MAX_INSTANCES:
            return False
        with self._lock:
            if len(self._instances) <= MAX_INSTANCES:
                self._instances.add(name)
        return name in self._instances

    def count_log(self, logger: logging.Logger) -> logging.Handler:
        """Counts and notes what is logged to `logger` and below, from warning upwards; what does
        so."""
        counter = _LogCounter(self)
        logger.addHandler(counter)
        return counter


_TOLD = ("role", "worker", "ended", "reason", "error")
"""Facts of a line of the log that say what went wrong."""


class _LogCounter(logging.Handler):
    def __init__(self, metrics: Metrics) -> None:
        super().__init__(logging.WARNING)
        self._metrics = metrics

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        self._metrics.counter(families.LOGGED, level, record.name).add()
        facts = [f"{name}={vars(record)[name]}" for name in _TOLD if name in vars(record)]
        message = "; ".join([record.getMessage(), *facts])
        self._metrics.recent.note("log", record.name, level, "", message)
