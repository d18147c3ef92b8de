"""Blobs from here, or from what lies behind the store.

Rule: no engine is held up: what may wait for the disk runs on a helper thread, and what comes from
elsewhere is awaited.  Where nothing lies behind, none of it costs more than the store's own call.
"""

from __future__ import annotations

from collections.abc import Sequence

from cas.digest import Digest
from cas.errors import NoRoomYet, NoSpace, NotFound
from cas.reapi.runtime import Runtime
from cas.store.coming import Coming
from cas.store.interface import Blob, BlobStore, Buffer
from cas.store.pending import Pending
from cas.store.room import in_room, short_of


async def read_whole(store: BlobStore, runtime: Runtime, digest: Digest) -> bytes:
    """The bytes of a blob that is small enough to hold.

    Raises NotFound; DataLoss when it is shorter on disk than the index says.
    """
    data = store.read_small(digest)
    if data is not None:
        return data
    try:
        return await runtime.offload(_read_file, store, digest)
    except NotFound:
        blob = await open_beyond(store, runtime, digest)
    try:
        whole = bytearray(blob.size)
        view = memoryview(whole)
        done = 0
        while done < len(whole):
            done += await read_later(runtime, blob, view[done:], done)
        return bytes(whole)
    finally:
        blob.close()


async def opened(store: BlobStore, runtime: Runtime, digest: Digest) -> Blob:
    """A blob, from here or from what lies behind.  Raises as `open_beyond`."""
    try:
        return store.open(digest)
    except NotFound:
        return await open_beyond(store, runtime, digest)


async def open_beyond(store: BlobStore, runtime: Runtime, digest: Digest) -> Blob:
    """A blob that the store lacks, from what lies behind it.

    Raises NotFound, also where nothing does; DataLoss, Unavailable.
    """
    if store.beyond is None:
        raise NotFound(f"blob {digest} is not here")
    return await runtime.wait(store.beyond.open(digest))


async def read_later(runtime: Runtime, blob: Blob, view: memoryview, offset: int) -> int:
    """As `Blob.read_into`, on a helper thread once the bytes are here."""
    if isinstance(blob, Coming):
        await arrived(runtime, blob, offset)
        # What came just now is in memory.
        count = blob.read_into(view, offset, wait=False)
        if count > 0:
            return count
    return await runtime.offload(blob.read_into, view, offset)


async def arrived(runtime: Runtime, blob: Blob, offset: int) -> None:
    """Waits until bytes at `offset` are here, for a blob that is still on its way."""
    if isinstance(blob, Coming):
        coming = blob.ready(offset)
        if coming is not None:
            await runtime.wait(coming)


async def lacking(store: BlobStore, runtime: Runtime, keys: Sequence[bytes]) -> list[bytes]:
    """Those of `keys` that are neither here nor behind here."""
    absent = [keys[place] for place in store.missing(keys)]
    if absent and store.beyond is not None:
        found = await runtime.wait(store.beyond.present(absent, sure=True))
        absent = [key for key in absent if key not in found]
    return absent


async def kept(store: BlobStore, runtime: Runtime, *digests: Digest) -> None:
    """Waits until blobs that are here are where a write would be acknowledged."""
    if store.beyond is not None:
        await runtime.wait(store.beyond.keep([digest.key for digest in digests]))


async def put(
    store: BlobStore, runtime: Runtime, blobs: Sequence[tuple[Digest, Buffer]]
) -> list[Pending[None]]:
    """As `BlobStore.put`, by a helper thread, which must not wait for room: here is waited until
    there is room for all, and again for those that find none after all.  Raises NoSpace."""
    out: list[Pending[None]] = []
    todo = list(enumerate(blobs))

    async def write() -> None:
        written = await runtime.offload(store.put, [blob for _, blob in todo])
        if not out:
            out.extend(written)
        lacking = 0
        again = []
        for (place, blob), pending in zip(todo, written, strict=True):
            out[place] = pending
            size = short_of(pending)
            if size:
                lacking += size
                again.append((place, blob))
        todo[:] = again
        if again:
            raise NoRoomYet(f"no room for {lacking} bytes of {len(again)} blobs", lacking)

    size = sum(digest.size for digest, _ in blobs)
    try:
        await in_room(store, runtime.wait, size, write)
    except NoSpace:
        # Those that waited in vain have failed each on its own.
        if not out:
            raise
    return out


def _read_file(store: BlobStore, digest: Digest) -> bytes:
    blob = store.open(digest)
    try:
        data = bytearray(blob.size)
        blob.read_into(memoryview(data), 0)
        return bytes(data)
    finally:
        blob.close()
