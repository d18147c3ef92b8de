"""What is done for a store while it serves, beside serving.

Rule: `step` does what is due and returns soon; what it does, it does in pieces, so that no
writer waits for it longer than for a commit.  Knows no process and no clock of its own.
"""

from __future__ import annotations

import logging

from cas.index.lmdb import Index

READER_CHECK_SECONDS = 5.0
"""How often readers that died are looked for: each keeps old pages of the index alive."""

log = logging.getLogger("cas.store")


class Janitor:
    """For one thread of one process; `step` again and again."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._next_reader_check = 0.0

    def step(self, now: float) -> None:
        """Does what is due at `now`, a monotonic clock's seconds."""
        if now >= self._next_reader_check:
            self._next_reader_check = now + READER_CHECK_SECONDS
            cleared = self._index.clear_dead_readers()
            if cleared:
                log.info("readers that died were cleared away", extra={"readers": cleared})
