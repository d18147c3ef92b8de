"""What went wrong lately: a few dozen notes for each process.

Rule: only what an operator would want to look at: what a cache answers all day (absent, gone
away) is none.  A note is text that a client may have chosen, so its length is bounded, control
characters are taken out, and so is whatever looks like a secret.  Notes live on their process's
sheet, and outlive it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from threading import Lock
from typing import NamedTuple

from cas.metrics import slots
from cas.metrics.board import NOTES_START, SHEET, Board, Sheet

SLOT = 1 << 10
KEPT = (SHEET - NOTES_START) // SLOT
"""Notes of each process: 32."""
MAX_PER_SECOND = 50
"""Further ones are not looked at: a flood of errors must cost nothing."""
MAX_MESSAGE = 320
MAX_NAME = 120
"""Characters."""

EXPECTED = frozenset({"OK", "NOT_FOUND", "CANCELLED", "404", "499"})
"""Codes that are no errors of anybody's: a miss, and a client that went away."""


class Note(NamedTuple):
    """Something that went wrong, once or several times."""

    at: float
    """When last, seconds since the epoch."""
    times: int
    source: str
    """``grpc``, ``http``, or ``log`` for what the server noticed itself."""
    what: str
    """A method, or a logger."""
    code: str
    """A status, or a log's level."""
    instance: str
    message: str


class Recent:
    """What a process notes.  Any thread."""

    def __init__(self, sheet: Sheet, clock: Callable[[], float] = time.time) -> None:
        self._places = [sheet.notes[at : at + SLOT] for at in range(0, KEPT * SLOT, SLOT)]
        self._clock = clock
        self._lock = Lock()
        self._second = 0
        self._this_second = 0
        found = [_decoded(place) for place in self._places]
        times = [0.0 if note is None else note.at for note in found]
        self._order = sorted(range(KEPT), key=times.__getitem__)
        """Places, the one to be used next first."""
        self._known: dict[tuple[str, ...], tuple[int, int]] = {}
        """What is noted → its place, and how often it happened."""

    def note(self, source: str, what: str, code: str, instance: str, message: str) -> None:
        """Notes it, or that it happened once more."""
        now = self._clock()
        if int(now) != self._second:
            self._second = int(now)
            self._this_second = 0
        self._this_second += 1
        if self._this_second > MAX_PER_SECOND:
            return
        told = (source, plain(what, MAX_NAME), code, plain(instance, MAX_NAME), redacted(message))
        with self._lock:
            place, count = self._known.pop(told, (self._order[0], 0))
            self._order.remove(place)
            self._order.append(place)
            if not count:
                self._known = {k: v for k, v in self._known.items() if v[0] != place}
            self._known[told] = (place, count + 1)
            _enter(self._places[place], Note(round(now, 1), count + 1, *told))


def read(board: Board) -> list[Note]:
    """The notes of all processes, the latest first."""
    found = [
        note
        for _, notes in board.notes()
        for at in range(0, len(notes), SLOT)
        if (note := _decoded(notes[at : at + SLOT])) is not None
    ]
    return merged(found)


def merged(notes: Iterable[Note]) -> list[Note]:
    """The latest first, those that several processes made of one thing as one."""
    found: dict[tuple[str, ...], Note] = {}
    for note in notes:
        same = found.get(note[2:])
        found[note[2:]] = (
            note
            if same is None
            else note._replace(at=max(note.at, same.at), times=note.times + same.times)
        )
    return sorted(found.values(), key=lambda note: note.at, reverse=True)


_SECRETS = re.compile(
    r"""
    (?<=://)[^/@\s]*@                                       # user and password of a URL
    | (?i:\b(?:bearer|basic|digest|negotiate)\s+)[^\s,;]+   # credentials with their scheme
    | (?i:(?:token|password|passwd|secret|signature|credential|authorization|api.?key)
        [\w.-]*["']?\s*[=:]\s*["']?(?:(?:bearer|basic|digest|negotiate)\s+)?)
        [^\s&,;"']+                                         # name=value, or "name": "value"
    | \beyJ[\w-]{8,}(?:\.[\w-]*)*                           # a JWT
    """,
    re.VERBOSE,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
_LOOKED_AT = 4 * MAX_MESSAGE


def redacted(message: str) -> str:
    """`message`, cut short, with nothing in it that looks like a secret."""
    return plain(_SECRETS.sub("[redacted]", message[:_LOOKED_AT]), MAX_MESSAGE)


def plain(text: str, limit: int) -> str:
    """`text` in one line of at most `limit` characters, without any that steer a terminal or
    the direction of writing."""
    text = _CONTROL.sub(" ", text[: 2 * limit]).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _enter(place: memoryview, note: Note) -> None:
    text = note._asdict()
    while True:
        data = json.dumps(list(text.values()), ensure_ascii=False).encode(errors="replace")
        if len(data) <= slots.capacity(SLOT):
            break
        # Few characters, many bytes.
        longest = max(("what", "instance", "message"), key=lambda name: len(text[name].encode()))
        text[longest] = text[longest][: len(text[longest]) // 2]
    slots.write(place, data)


def _decoded(place: bytes | memoryview) -> Note | None:
    data = slots.read(place)
    fields = [] if data is None else json.loads(data)
    # Else nothing, or a process of another release's, started after an upgrade in place.
    return Note(*fields) if len(fields) == len(Note._fields) else None
