"""What this node serves from its own disk is used, too: once in a while upstream is told.

Rule: for one thread, of the process that looks after the store; `step` returns soon.  Every entry
that was used lately is asked for upstream once in a period, a few each second, which renews it
there where it is old (`renewing`).  How far the walk is outlives the process, in DIR/renewed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence

from cas.digest import BY_CODE
from cas.errors import CasError, Unavailable
from cas.index.lmdb import Index
from cas.index.records import ACTION_PREFIX, split_action_key
from cas.store.files import Files
from cas.store.layout import Layout
from cas.store.pending import Pending
from cas.upstream import keys
from cas.upstream.asking import Asking
from cas.upstream.loop import Loop
from cas.upstream.objects import Absent

PAGE = 1_000
"""Entries that one step looks at …"""
MOST = 20
"""… until it has so many to ask for.  There is a step each second or so."""
FIRST_SECONDS = 3_600.0
"""What begins after a start waits for so long, or for the period: a restart has other work."""
SAVE_SECONDS = 60.0
SLACK = 1.5
"""Periods for which a use counts: the walk does not come by at the same moment in each."""

log = logging.getLogger("cas.upstream")


class Sweep:
    """Call `step` again and again, then `close`."""

    def __init__(
        self,
        layout: Layout,
        index: Index,
        files: Files,
        asking: Asking,
        period: float,
        *,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """`period` is seconds."""
        self._layout = layout
        self._index = index
        self._files = files
        self._asking = asking
        self._period = period
        self._clock = clock
        self._timer = timer
        self._loop = Loop()
        self._began, self._after = self._load()
        self._due = timer() + min(period, FIRST_SECONDS)
        self._save_due = timer() + SAVE_SECONDS
        self._asked: Pending[None] | None = None
        self._next: bytes | None = b""

    def step(self) -> None:
        """Asks for what is due.  A fault is logged, or waits for upstream, and is tried again."""
        try:
            self._step()
        except (CasError, OSError) as error:
            log.error("what is used cannot be renewed upstream", extra={"error": str(error)})

    def close(self) -> None:
        """*Blocking.*"""
        self._loop.close()

    def _step(self) -> None:
        if self._timer() < self._due:
            return
        if self._asked is not None:
            if not self._asked.done:
                return
            asked, self._asked = self._asked, None
            try:
                asked.result()
            except Unavailable:
                # The same once more.
                self._next = self._after
            self._move_on()
        now = self._clock()
        if self._after is None:
            if self._began <= now < self._began + self._period:
                return
            self._began, self._after = now, b""
        names, self._next = self._used(self._after, int((now - SLACK * self._period) // 60))
        self._asked = self._loop.run(lambda: self._ask(names))

    def _move_on(self) -> None:
        self._after = self._next
        if self._after is None or self._timer() >= self._save_due:
            self._save()

    def _used(self, after: bytes, since: int) -> tuple[list[str], bytes | None]:
        """Objects of entries behind key `after` that were used since that minute, and the key
        behind which to go on; None at the end."""
        names: list[str] = []
        page = self._index.keys(after, PAGE)
        for key, record in page:
            if self._index.uses.load(record.serial) >= since and (name := object_of(key)):
                names.append(name)
                if len(names) == MOST:
                    return names, key
        return names, page[-1][0] if len(page) == PAGE else None

    async def _ask(self, names: Sequence[str]) -> None:
        ended = await asyncio.gather(*map(self._asking.head, names), return_exceptions=True)
        for error in ended:
            # What is not there was never sent, or nobody used it for long.
            if isinstance(error, BaseException) and not isinstance(error, Absent):
                raise error

    def _save(self) -> None:
        self._save_due = self._timer() + SAVE_SECONDS
        after = None if self._after is None else self._after.hex()
        state = {"began": self._began, "after": after}
        self._files.write_file(self._layout.renewed, json.dumps(state).encode())

    def _load(self) -> tuple[float, bytes | None]:
        try:
            state = json.loads(self._layout.renewed.read_bytes())
            after = state["after"]
            return float(state["began"]), None if after is None else bytes.fromhex(after)
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0, None


def object_of(key: bytes) -> str | None:
    """The object of an entry of the index; None of what is not upstream: values, and what an
    earlier version may have kept."""
    instance, prefix = None, key
    if key.startswith(ACTION_PREFIX):
        instance, prefix = split_action_key(key)
    function = BY_CODE.get(prefix[0]) if prefix else None
    if function is None or len(prefix) < 1 + function.length:
        return None
    prefix = prefix[: 1 + function.length]
    if instance is None:
        return keys.blob(prefix, function)
    return keys.action(instance, prefix, function)
