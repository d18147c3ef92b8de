"""How far a command is: a bar on a terminal, a line for each stage elsewhere; on stderr.

Rule: printing only.  Twenty lines of our own, because what libraries add to them (rates,
nesting, notebooks) is not wanted here.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

WIDTH = 30
INTERVAL = 0.1
"""Seconds between two drawings of the bar."""


class Progress:
    """Called with (what is under way, how far, of how much)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._stage = ""
        self._drawn = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not self._terminal:
            if stage != self._stage:
                self._stream.write(f"{stage} …\n")
                self._stage = stage
            return
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._drawn < INTERVAL:
            return
        self._stage, self._drawn = stage, now
        part = min(1.0, done / total) if total else 1.0
        bar = "█" * round(part * WIDTH)
        self._stream.write(f"\r\x1b[K{stage:12} {bar:{WIDTH}} {part:4.0%} {done:,} of {total:,}")
        self._stream.flush()

    def clear(self) -> None:
        """Removes the bar, before something else is printed."""
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
