"""A blob on its way here from upstream, and those who read it meanwhile.

Rule: no I/O of its own but reads of what is staged.  Bytes are readable once they have come,
all but the last piece: that one is given out once the whole was found to be right, so that
nobody is given all of a blob that is wrong.  Readers may be slow, few or none: the newest pieces
are kept in memory for those who keep up, and those that are not staged; the rest is read there.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from cas.digest import Digest
from cas.store.coming import Coming
from cas.store.pending import Pending, resolved, then

WINDOW = 4 << 20
"""Newest bytes that are kept in memory, with all that is not staged yet."""

AHEAD = 4 << 20
"""Whoever reads this many bytes ahead of what has come gets them by a request of his own, …"""
PART = 1 << 20
"""… of so many."""


class Source(Protocol):
    """Where bytes lie that have come: a staging file, or the blob itself."""

    def read_into(self, view: memoryview, offset: int, /) -> int: ...

    def close(self) -> None: ...


class Flight:
    """Fed by the loop, read by any thread."""

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        self.began: Pending[None] = Pending()
        """Resolved once upstream gives the blob, or it is here; fails where it does not."""
        self._began = False
        self.readable = 0
        """Bytes, from the beginning on."""
        self._window: deque[tuple[int, memoryview]] = deque()
        self._sources: list[Source] = []
        self._error: Exception | None = None
        self._waiting: list[tuple[int, Pending[None]]] = []
        self._lock = threading.Lock()

    def __del__(self) -> None:
        # Readers hold it, and nobody else does in the end.
        for source in self._sources:
            source.close()

    # --- fed

    @property
    def has_begun(self) -> bool:
        """Whether it can be read, or some of it could be."""
        return self._began

    def begin(self) -> None:
        if not self.began.done:
            self._began = True
            self.began.resolve(None)

    def add(self, offset: int, piece: memoryview, upto: int) -> None:
        """`piece`, at `offset`, has come; bytes up to `upto` may be read."""
        with self._lock:
            self._window.append((offset, piece))
        self.advance(upto)

    def settle(self, upto: int) -> None:
        """Bytes up to `upto` can be read from where the blob lies."""
        with self._lock:
            window = self._window
            newest, piece = window[-1]
            kept = min(upto, newest + len(piece) - WINDOW)
            while window[0][0] + len(window[0][1]) <= kept:
                window.popleft()

    def advance(self, upto: int) -> None:
        with self._lock:
            if upto <= self.readable:
                return
            self.readable = upto
            ready = [pending for offset, pending in self._waiting if offset < upto]
            self._waiting = [entry for entry in self._waiting if entry[0] >= upto]
        for pending in ready:
            pending.resolve(None)

    def lies_in(self, source: Source) -> None:
        """All that is readable, and comes yet, can be read there."""
        self._sources.append(source)

    @property
    def has_source(self) -> bool:
        return bool(self._sources)

    def fail(self, error: Exception) -> None:
        with self._lock:
            if self.readable == self.digest.size and self.began.done:
                return
            self._error = error
            waiting, self._waiting = self._waiting, []
        if not self.began.done:
            self.began.fail(error)
        for _, pending in waiting:
            pending.fail(error)

    # --- read

    def ready(self, offset: int) -> Pending[None] | None:
        """See `Coming.ready`."""
        with self._lock:
            if offset < self.readable or offset >= self.digest.size:
                return None
            pending: Pending[None] = Pending()
            if self._error is None:
                self._waiting.append((offset, pending))
                return pending
            error = self._error
        pending.fail(error)
        return pending

    def piece(self, offset: int) -> memoryview | None:
        """See `Coming.piece`."""
        with self._lock:
            for start, piece in self._window:
                if start <= offset < min(start + len(piece), self.readable):
                    return piece[offset - start : self.readable - start]
        return None

    def read_into(self, view: memoryview, offset: int, *, wait: bool) -> int:
        """Bytes that are readable; -1 where the disk is to be waited for, and may not be."""
        with self._lock:
            view = view[: max(0, self.readable - offset)]
            done = 0
            for start, piece in self._window:
                at = offset + done - start
                if 0 <= at < len(piece) and done < len(view):
                    found = piece[at : at + len(view) - done]
                    view[done : done + len(found)] = found
                    done += len(found)
            if done:
                return done
        if not view:
            return 0
        if not wait or not self._sources:
            return -1
        return self._sources[-1].read_into(view, offset)


Fetch = Callable[[Digest, int, int], Pending[bytes]]
"""Bytes of a blob from one offset to another, straight from upstream."""


class ComingBlob(Coming):
    """One reader's view of a flight."""

    def __init__(self, flight: Flight, fetch: Fetch) -> None:
        self.size = flight.digest.size
        self._flight = flight
        self._fetch = fetch
        self._part = (0, b"")

    def ready(self, offset: int) -> Pending[None] | None:
        start, part = self._part
        if start <= offset < start + len(part):
            return None
        flight = self._flight
        if offset < flight.readable + AHEAD:
            return flight.ready(offset)

        def came(part: bytes) -> Pending[None]:
            self._part = (offset, part)
            return resolved(None)

        return then(self._fetch(flight.digest, offset, min(self.size, offset + PART)), came)

    def piece(self, offset: int) -> memoryview | None:
        return self._flight.piece(offset)

    def read_into(self, view: memoryview, offset: int, /, *, wait: bool = True) -> int:
        start, part = self._part
        if start <= offset < start + len(part):
            found = part[offset - start : offset - start + len(view)]
            view[: len(found)] = found
            return len(found)
        if offset >= self.size or not view:
            return 0
        if wait:
            (self._flight.ready(offset) or resolved(None)).wait()
        elif offset >= self._flight.readable:
            return -1
        return self._flight.read_into(view, offset, wait=wait)

    def close(self) -> None:
        self._part = (0, b"")
