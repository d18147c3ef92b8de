"""Whole blobs for messages that carry them: from the index, or from a helper thread."""

from __future__ import annotations

from cas.digest import Digest
from cas.reapi.runtime import Runtime
from cas.store.interface import BlobStore


async def read_whole(store: BlobStore, runtime: Runtime, digest: Digest) -> bytes:
    """The bytes of a blob that is small enough to hold.

    Raises NotFound; DataLoss when it is shorter on disk than the index says.
    """
    data = store.read_small(digest)
    if data is None:
        data = await runtime.offload(_read_file, store, digest)
    return data


async def has_room(store: BlobStore, runtime: Runtime, size: int) -> None:
    """Waits until `size` bytes that are to go into files have room, as they have as a rule.

    For writes whose room is taken by a helper thread, which must not wait for it.  Raises NoSpace.
    """
    pending = store.room(size)
    if not pending.done:
        await runtime.wait(pending)


def _read_file(store: BlobStore, digest: Digest) -> bytes:
    blob = store.open(digest)
    try:
        data = bytearray(blob.size)
        blob.read_into(memoryview(data), 0)
        return bytes(data)
    finally:
        blob.close()
