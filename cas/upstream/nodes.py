"""Which nodes lie behind a call, so that no node is its own upstream, by whatever way round.

Rule: pure but for the clock.  A node says to its upstream, in a header of each call, who it is and
who called it lately; whoever finds itself named there is asked what it asked itself.  What a node
sends need not be what one caller asked for (blobs are fetched once for many, and looked for many at
once), so it is not a call's way that is told, but all that may lie behind it.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

HEADER = "cas-nodes"
"""Names, with commas in between; one's own first."""
MOST = 32
"""Names that are passed on: those heard last.  Whoever has been answered asks no more."""
SECONDS = 60.0
"""For which a name is passed on: a call that came round has taken less."""

_NAME = re.compile(r"[0-9a-z]{1,32}")


class Nodes:
    """One process's.  Any thread may call any method."""

    def __init__(self, own: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`own` is this node's name: no other's, and the same in all its processes."""
        self._own = own
        self._clock = clock
        self._lock = threading.Lock()
        self._heard: OrderedDict[str, float] = OrderedDict()
        """Names and until when, the last ones last."""

    def came_round(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether a call with these headers is an outcome of one of our own; notes who calls."""
        for name, value in metadata:
            if name == HEADER and isinstance(value, str):
                return self._hear(value)
        return False

    def _hear(self, said: str) -> bool:
        names = said.split(",", MOST)[:MOST]
        if self._own in names:
            return True
        until = self._clock() + SECONDS
        with self._lock:
            for name in reversed(names):
                if _NAME.fullmatch(name):
                    self._heard[name] = until
                    self._heard.move_to_end(name)
            while len(self._heard) >= MOST:
                self._heard.popitem(last=False)
        return False

    def headers(self) -> tuple[tuple[str, str], ...]:
        """What a call upstream says."""
        with self._lock:
            if self._heard:
                now = self._clock()
                while self._heard and self._heard[next(iter(self._heard))] <= now:
                    self._heard.popitem(last=False)
            names = [self._own, *reversed(self._heard)]
        return ((HEADER, ",".join(names)),)
