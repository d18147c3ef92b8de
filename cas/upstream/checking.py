"""Objects held against their names; what is wrong is moved out of the way.

Rule: runs on one loop; nothing local.  `scrub` is the same for many, chosen at random.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

from cas.digest import FUNCTIONS, Function
from cas.errors import Unavailable
from cas.upstream import keys
from cas.upstream.asking import Asking
from cas.upstream.objects import Absent, Broken, Entry

SHARDS = 256

log = logging.getLogger("cas.upstream")


class Checked(NamedTuple):
    """An object that was read."""

    key: str
    size: int
    """Bytes that came."""
    is_right: bool


Opening = Callable[[], Awaitable[tuple[int, AsyncIterator[bytes]]]]
"""Begins to read: the size, and the bytes."""


async def check(
    key: str, opening: Opening, function: Function, raw_hash: bytes, size: int
) -> Checked:
    """Reads a blob upstream, and compares it with the hash of its name; `size` is a guess.

    Raises Absent and Unavailable.
    """
    hasher = function.new(size)
    read = 0
    try:
        _, pieces = await opening()
        async for piece in pieces:
            hasher.update(piece)
            read += len(piece)
    except Broken as error:
        raise Unavailable(f"upstream fails: {error}") from error
    return Checked(key, read, hasher.digest() == raw_hash)


async def condemn(asking: Asking, key: str) -> None:
    """Moves a bad object out of the way, so that it is missing, and sent again."""
    target = keys.quarantined(key, str(time.time_ns()))
    log.error("an object upstream is damaged", extra={"object": key, "moved_to": target})
    try:
        await asking.copy(key, target)
        await asking.delete(key)
    except (Absent, Unavailable) as error:
        log.error("a damaged object could not be moved", extra={"object": key, "error": str(error)})


async def scrub(
    asking: Asking, most: int, draw: random.Random, functions: Sequence[Function] = FUNCTIONS
) -> AsyncIterator[Checked]:
    """Checks up to `most` blobs, all if that is 0, in a random order of the bucket's shards.

    Each shard is a request for a listing, so a sample takes whole shards or what is left of it.
    What is bad is moved to quarantine.  Raises Unavailable.
    """
    places = [(function, shard) for function in functions for shard in range(SHARDS)]
    draw.shuffle(places)
    left = most or -1
    for function, shard in places:
        if not left:
            return
        found = await asking.listed(f"{keys.BLOBS}/{function.name}/{shard:02x}/")
        draw.shuffle(found)
        for entry in found[:left] if left > 0 else found:
            checked = await _scrubbed(asking, entry)
            if checked is not None:
                left -= 1
                yield checked


async def _scrubbed(asking: Asking, entry: Entry) -> Checked | None:
    place = keys.parse(entry.key)
    if place is None:
        # Not of this layout, so nobody is given it.
        return None
    function = next(f for f in FUNCTIONS if f.prefix == place.prefix[:1])
    opening = partial(asking.coming, entry.key, 0)
    try:
        checked = await check(entry.key, opening, function, place.prefix[1:], entry.size)
        if not checked.is_right:
            # Once more: a byte may have been lost on the way.
            checked = await check(entry.key, opening, function, place.prefix[1:], entry.size)
    except Absent:
        # Expired since it was listed.
        return None
    if not checked.is_right:
        await condemn(asking, entry.key)
    return checked
