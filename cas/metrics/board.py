"""The memory in which the processes of a server count, each in a sheet of its own.

Rule: series and numbers; what they mean is `families`'.  The board is memory without a name
(memfd_create(2)), made by the supervisor and handed down to its children: numbers in a file on
a disk would have the disk's write-back stop who counts.  A process that takes a dead one's
place goes on in its sheet, so counters never go back while the server runs.

A sheet is `SHEET` bytes, of which only what is touched is taken:

    u64 bytes of series text · u64 process id · role and number, 48 bytes of text, zero-padded
    from 64:      the series, each as one line of JSON: [kind, width, family, label value, …]
    from TEXT_END: the numbers, 64-bit floats; a series' begin where those of the one before end
    from NOTES_START: what went wrong lately (`cas.metrics.recent`)

In front of the sheets is room for samples of the past (`cas.metrics.history`).

One process writes a sheet, any number read it.  Several threads of that process may add to one
number: ``numbers[slot] += n`` with nothing to be called is never interrupted, since CPython
3.11 to 3.13 hands its lock over at calls and backward jumps only (tests/metrics holds it to that).
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

from cas.metrics.families import Family

SHEET = 1 << 20
TEXT_START = 64
TEXT_END = 1 << 19
NOTES_START = SHEET - (32 << 10)
SAMPLES = 2 << 20
"""Bytes in front of the first sheet."""
_ROLE = slice(16, 64)

_LOST = 64
"""Numbers before the first series: room for those that find no room, and are not read."""


class Series(NamedTuple):
    """One line of a sheet's text."""

    kind: str
    family: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """What one sheet holds at a moment."""

    role: str
    number: int
    pid: int
    """0 where nobody has it."""
    numbers: dict[Series, list[float]]


class Sheet:
    """A process's own part of the board."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._lock = Lock()
        self._slots: dict[Series, int] = {}
        self._text_end = TEXT_START
        self._next = _LOST
        whole = memoryview(memory)
        self._head = whole[:16].cast("Q")
        self.numbers = whole[TEXT_END:NOTES_START].cast("d")
        """Add to a number by one statement, ``numbers[slot] += n``."""
        self.notes = whole[NOTES_START:]
        self._learn()

    def belongs_to(self, role: str, number: int) -> None:
        """The sheet is this process's now; what only the one before it could know is zero."""
        self._memory[_ROLE] = f"{role} {number}".encode().ljust(48, b"\0")
        self._head[1] = os.getpid()
        self.forget()

    def abandoned(self) -> None:
        """Its process is gone."""
        self._head[1] = 0
        self.forget()

    def forget(self) -> None:
        """Sets all gauges to zero, those a dead process has entered included."""
        for series, slot, _ in _series(self._memory):
            if series.kind == "gauge":
                self.numbers[slot] = 0.0

    def value(self, family: Family, *labels: str) -> float:
        """The first number of a series, whoever enters it; 0 where nobody has."""
        if self._text_end != TEXT_START + self._head[0]:
            self._learn()
        slot = self._slots.get(Series(family.kind, family.name, labels))
        return 0.0 if slot is None else self.numbers[slot]

    def _learn(self) -> None:
        """Takes in the series that are there."""
        self._text_end = TEXT_START + self._head[0]
        for series, slot, width in _series(self._memory):
            self._slots[series] = slot
            self._next = slot + width

    def slot(self, family: Family, labels: tuple[str, ...]) -> int:
        """Where the numbers of a series begin; made at zero if need be.

        Once the sheet is full: a place that is not read.
        """
        if len(labels) != len(family.labels):
            raise ValueError(f"{family.name} takes labels {family.labels}, got {labels!r}")
        series = Series(family.kind, family.name, labels)
        slot = self._slots.get(series)
        if slot is None:
            with self._lock:
                # Another thread may have come first.
                slot = self._slots.get(series)
                if slot is None:
                    slot = self._slots[series] = self._enter(series, family.width)
        return slot

    def _enter(self, series: Series, width: int) -> int:
        line = json.dumps([series.kind, width, series.family, *series.labels]).encode() + b"\n"
        end = self._text_end + len(line)
        slot = self._next
        if end > TEXT_END or slot + width > len(self.numbers):
            return 0
        self._memory[self._text_end : end] = line
        self._text_end = end
        self._next = slot + width
        # Last, so that a reader finds whole lines.
        self._head[0] = end - TEXT_START
        return slot


class Board:
    """All sheets.  `fd` is its memory, to be handed down."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def sheet(self, index: int) -> Sheet:
        """The sheet at `index`, from 0; the board grows to hold it."""
        start = SAMPLES + index * SHEET
        if os.fstat(self.fd).st_size < start + SHEET:
            os.ftruncate(self.fd, start + SHEET)
        return Sheet(mmap.mmap(self.fd, SHEET, offset=start))

    def __len__(self) -> int:
        """How many sheets there are."""
        return max(0, os.fstat(self.fd).st_size - SAMPLES) // SHEET

    def read(self) -> list[Page]:
        """Every sheet, as it is now."""
        size = len(self) * SHEET
        if not size:
            return []
        with mmap.mmap(self.fd, size, prot=mmap.PROT_READ, offset=SAMPLES) as memory:
            return [_page(memory, start) for start in range(0, size, SHEET)]

    def notes(self) -> list[tuple[str, bytes]]:
        """Of every sheet whose it is or was, and its notes."""
        # Read, not mapped: to look at memory that nobody has touched would take it.
        starts = [SAMPLES + index * SHEET for index in range(len(self))]
        return [
            (
                os.pread(self.fd, _ROLE.stop - _ROLE.start, start + _ROLE.start)
                .rstrip(b"\0")
                .decode(),
                os.pread(self.fd, SHEET - NOTES_START, start + NOTES_START),
            )
            for start in starts
        ]

    def samples(self) -> memoryview:
        """The memory of samples, to be written by one process."""
        if os.fstat(self.fd).st_size < SAMPLES:
            os.ftruncate(self.fd, SAMPLES)
        return memoryview(mmap.mmap(self.fd, SAMPLES))

    def read_samples(self, start: int, size: int) -> bytes:
        """A part of it, empty where nobody has written."""
        return os.pread(self.fd, min(size, SAMPLES - start), start)

    def close(self) -> None:
        """Gives the descriptor back; sheets stay as they are."""
        os.close(self.fd)


def new_board() -> Board:
    return Board(os.memfd_create("cas-metrics", os.MFD_CLOEXEC))


def private_sheet() -> Sheet:
    """A sheet of no board: what is counted is seen by nobody else."""
    return Sheet(mmap.mmap(-1, SHEET))


def _series(memory: mmap.mmap, start: int = 0) -> Iterator[tuple[Series, int, int]]:
    """The series of the sheet at `start`: each with its slot and width."""
    length = int.from_bytes(memory[start : start + 8], "little")
    text = memory[start + TEXT_START : start + TEXT_START + length]
    slot = _LOST
    for line in text.splitlines():
        kind, width, family, *labels = json.loads(line)
        yield Series(kind, family, tuple(labels)), slot, width
        slot += width


def _page(memory: mmap.mmap, start: int) -> Page:
    role, _, number = memory[start + 16 : start + TEXT_START].rstrip(b"\0").decode().partition(" ")
    pid = int.from_bytes(memory[start + 8 : start + 16], "little")
    with memoryview(memory) as whole, whole[start + TEXT_END : start + NOTES_START] as part:
        numbers = part.cast("d")
        found = {
            series: list(numbers[slot : slot + width])
            for series, slot, width in _series(memory, start)
        }
        numbers.release()
    return Page(role, int(number or 0), pid, found)
