"""Writes that found no room, and are tried again.

Rule: how to wait is the caller's to say.  What a store tells of room is a promise to nobody: what
writes to a file takes its room as it does so, and of all who were told of the same room only the
first get it.  The others wait on, until the store says that it was long enough.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cas.errors import NoRoomYet
from cas.store.interface import BlobStore
from cas.store.pending import Pending

T = TypeVar("T")


async def in_room(
    store: BlobStore,
    wait: Callable[[Pending[None]], Awaitable[None]],
    size: int,
    write: Callable[[], Awaitable[T]],
) -> T:
    """What `write` comes to once the `size` bytes that it begins with have room, or 0 where that
    is not known.  Raises NoSpace where nothing can be freed, or not in time."""
    if size:
        pending = store.room(size)
        if not pending.done:
            await wait(pending)
        else:
            pending.result()
    began = 0.0
    while True:
        try:
            return await write()
        except NoRoomYet as lack:
            again, began = _again(store, lack, began)
            await wait(again)


def in_room_blocking(store: BlobStore, size: int, write: Callable[[], T]) -> T:
    """*Blocking.*  As `in_room`, for threads that serve no calls."""
    if size:
        store.room(size).wait()
    began = 0.0
    while True:
        try:
            return write()
        except NoRoomYet as lack:
            again, began = _again(store, lack, began)
            again.wait()


def short_of(pending: Pending[None]) -> int:
    """Bytes for which a write has found no room yet; 0 for one that is under way or has ended in
    another way."""
    if pending.done:
        try:
            pending.result()
        except NoRoomYet as error:
            return error.size
        except Exception:  # noqa: BLE001 - for whoever asks for its result
            return 0
    return 0


def _again(store: BlobStore, lack: NoRoomYet, began: float) -> tuple[Pending[None], float]:
    now = time.monotonic()
    began = began or now
    # One that has waited goes to the end of the queue, however short its wait was.
    return store.room(lack.size, waited=max(now - began, 1e-6)), began
