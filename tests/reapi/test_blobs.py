"""Whole blobs into a store where room is scarce."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cas import digest as digests
from cas.digest import Digest
from cas.errors import DigestMismatch, NoRoomYet, NoSpace
from cas.http.runtime import LoopRuntime
from cas.reapi.blobs import put
from cas.store.interface import Buffer
from cas.store.memory import MemoryStore
from cas.store.pending import Pending, failed, resolved

BLOBS = [(digests.of(data), data) for data in (bytes(100 + n) for n in range(4))]


class Scarce(MemoryStore):
    """Has room for one blob at a time, and `waits` times, for whoever waits."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.waits = waits
        self.tried: list[list[int]] = []

    def room(self, size: int, /, *, waited: float = 0.0) -> Pending[None]:
        self.waits -= 1
        return resolved(None) if self.waits >= 0 else failed(NoSpace("waited long enough"))

    def put(self, blobs: Sequence[tuple[Digest, Buffer]], /) -> list[Pending[None]]:
        self.tried.append([digest.size for digest, _ in blobs])
        [first] = super().put(blobs[:1])
        return [first, *(failed(NoRoomYet("taken", digest.size)) for digest, _ in blobs[1:])]


def outcomes(store: Scarce, blobs: Sequence[tuple[Digest, Buffer]]) -> list[type | None]:
    """What each blob's write ends with."""

    async def run() -> list[Pending[None]]:
        runtime = LoopRuntime(asyncio.get_running_loop(), 1)
        try:
            return await put(store, runtime, blobs)
        finally:
            runtime.close()

    out: list[type | None] = []
    for pending in asyncio.run(run()):
        try:
            pending.result()
        except NoSpace as error:
            out.append(type(error))
        except DigestMismatch as error:
            out.append(type(error))
        else:
            out.append(None)
    return out


def test_only_what_found_no_room_is_tried_again() -> None:
    store = Scarce(100)
    assert outcomes(store, BLOBS) == [None] * 4
    assert store.tried == [[100, 101, 102, 103], [101, 102, 103], [102, 103], [103]]
    assert all(store.contains(digest) for digest, _ in BLOBS)


def test_each_has_an_end_of_its_own() -> None:
    store = Scarce(2)
    bad = (BLOBS[1][0], b"something else")
    assert outcomes(store, [bad, BLOBS[0], BLOBS[2]]) == [DigestMismatch, None, NoRoomYet]


def test_what_cannot_begin_is_refused_as_one() -> None:
    store = Scarce(0)
    with pytest.raises(NoSpace, match="waited long enough"):
        outcomes(store, BLOBS)
    assert store.tried == []
