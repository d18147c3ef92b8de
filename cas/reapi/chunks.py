"""Blobs as lists of chunks: what SplitBlob and SpliceBlob of REAPI ask for.

Rule: a blob is here whole or not at all, and a chunk is a blob like any other, there once whatever
it is part of.  A list of chunks is a value that needs them and their blob, so it is found only
while all of them are here, and using it uses them; one that lacks a chunk is made anew from the
blob.  Nothing that reads, evicts or checks blobs knows of chunks.

What is cut or joined goes on if nobody waits for it any more (`background`): a client that comes
again after its deadline finds it done.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

from cas import digest as digests
from cas import fastcdc
from cas.digest import Digest, Function
from cas.errors import (
    AlreadyExists,
    InvalidArgument,
    NoRoomYet,
    NoSpace,
    NotFound,
    StoreClosed,
)
from cas.metrics import families
from cas.metrics.instruments import Metrics
from cas.pb import remote_execution_pb2 as pb
from cas.reapi.background import Background
from cas.reapi.instances import namespace
from cas.store.interface import Blob, BlobStore, NewValue, Upload
from cas.store.pending import Pending, resolved
from cas.store.room import in_room_blocking, short_of

UNKNOWN: int = pb.ChunkingFunction.UNKNOWN
FAST_CDC: int = pb.ChunkingFunction.FAST_CDC_2020

THREADS = 2
"""Blobs that are cut or joined at once.  What waits is done in the order in which it came."""
QUEUE = 1000
"""Blobs that may wait or be worked on; further ones are refused."""
BATCH_BYTES = 8 << 20
"""Chunks that are committed together."""
TRIES = 3
"""How often a blob is cut until all of its chunks are there at one moment."""
LIST_BYTES = 4_000_000
"""Largest list: below the 4 MiB that most clients take in a message.  At 512 KiB a chunk that is a
blob of 25 GiB, by SHA-256."""

# No instance is called so: blobs belong to all, and so do their lists.
_NAMESPACE = namespace("chunks", "/")


class Split(NamedTuple):
    """A blob's chunks."""

    keys: Sequence[bytes]
    """In the order in which they make up the blob."""
    function: int
    """By what they were cut (`ChunkingFunction.Value`)."""


class Chunks:
    """Cuts and joins blobs of one store.  Any thread may ask."""

    def __init__(self, store: BlobStore, average: int, metrics: Metrics | None = None) -> None:
        """`average`: of a chunk, in bytes, as capabilities advertise it."""
        metrics = metrics or Metrics()
        self.average = average
        self._store = store
        self._background = Background(
            "cas-chunks", THREADS, QUEUE, "blobs are being split or spliced"
        )
        self._kept_lists = metrics.counter(families.SPLITS, "kept")
        self._cut_blobs = metrics.counter(families.SPLITS, "cut")
        self._known = metrics.counter(families.SPLICES, "known")
        self._joined = metrics.counter(families.SPLICES, "joined")
        self._new_bytes = metrics.counter(families.CHUNK_BYTES, "new")
        self._shared_bytes = metrics.counter(families.CHUNK_BYTES, "shared")

    def split(self, digest: Digest, function: int) -> Pending[Split]:
        """The chunks of a blob, all of them here: a list that is kept, by `function`
        (`ChunkingFunction.Value`) if there is one, else by FastCDC 2020.  A use of them and of the
        blob.

        Raises NotFound, LimitExceeded; the result may fail with these, NoSpace or DataLoss.
        """
        if not self._store.contains(digest):
            raise NotFound(f"blob {digest} is not here")
        for kind in dict.fromkeys((function, FAST_CDC)):
            kept = self._kept(digest, kind)
            if kept is not None:
                self._kept_lists.add()
                return resolved(kept)
        if digest.size // self.average > _most(digest.function):
            raise _too_many(digest)
        return self._background.begin(partial(self._cut, digest), digest.key)

    def splice(self, digest: Digest, chunks: Sequence[Digest], function: int) -> Pending[None]:
        """Has the blob `digest` joined from `chunks`, which were cut by `function`.  It is here
        when the result is.

        A blob that is here already is left as it is.  Raises InvalidArgument where the sizes do not
        add up; NotFound where a chunk is not here, or AlreadyExists if the blob is nevertheless;
        LimitExceeded.  The result may fail with NotFound, DigestMismatch, NoSpace or DataLoss.
        """
        size = sum(chunk.size for chunk in chunks)
        if size != digest.size:
            raise InvalidArgument(
                f"the {len(chunks)} chunks of blob {digest} have {size} bytes; expected "
                f"{digest.size}"
            )
        keys = [chunk.key for chunk in chunks if chunk.size]
        absent = self._store.missing(keys)
        if self._store.contains(digest):
            if absent:
                raise AlreadyExists(
                    f"blob {digest} is here, but chunk {digests.from_key(keys[absent[0]])} is not; "
                    "SplitBlob tells what it may be made of"
                )
            self._known.add()
            return resolved(None)
        if absent:
            raise NotFound(
                f"chunk {digests.from_key(keys[absent[0]])} of blob {digest} is not here, one of "
                f"{len(absent)} among {len(keys)}"
            )
        # What others send under the same digest may be something else.
        what = (digest.key, function, b"".join(keys))
        return self._background.begin(partial(self._join, digest, keys, function), what)

    def close(self) -> None:
        """*Blocking.*  Ends all of it."""
        self._background.close()

    def _check_going(self) -> None:
        if self._background.ended:
            raise StoreClosed("the server stops")

    # --- lists

    def _kept(self, digest: Digest, function: int) -> Split | None:
        value = self._store.value(_NAMESPACE, self._key(digest, function), counted=False)
        return None if value is None else Split(value.references, function)

    def _keep(self, digest: Digest, split: Split) -> None:
        new = NewValue(digest, None, references=split.keys)
        self._store.put_value(_NAMESPACE, self._key(digest, split.function), new).wait()

    def _key(self, digest: Digest, function: int) -> str:
        # Cut to another average, it is another list.
        average = self.average if function == FAST_CDC else 0
        return f"{digest.function.name}/{digest.hex}/{digest.size}/{function}/{average}"

    # --- cutting

    def _cut(self, digest: Digest) -> Split:
        # Another process may have been quicker.
        kept = self._kept(digest, FAST_CDC)
        if kept is not None:
            return kept
        for _ in range(TRIES):
            self._keep(digest, Split(self._enter_chunks(digest), FAST_CDC))
            kept = self._kept(digest, FAST_CDC)
            if kept is not None:
                self._cut_blobs.add()
                return kept
        raise NoSpace(f"chunks of blob {digest} are evicted while it is cut")

    def _enter_chunks(self, digest: Digest) -> list[bytes]:
        """Their keys, in order.  Those that were there first may be evicted by now."""
        keys: list[bytes] = []
        fresh: dict[bytes, tuple[Digest, bytes]] = {}
        size = 0
        with closing(self._store.open(digest)) as blob:
            for chunk in fastcdc.cut(_Whole(blob), self.average):
                self._check_going()
                found = digests.of(chunk.data, digest.function)
                keys.append(found.key)
                if len(keys) > _most(digest.function):
                    raise _too_many(digest)
                if found.key in fresh or self._store.contains(found):
                    self._shared_bytes.add(found.size)
                    continue
                fresh[found.key] = found, bytes(chunk.data)
                size += found.size
                if size >= BATCH_BYTES:
                    self._enter(fresh)
                    size = 0
        self._enter(fresh)
        return keys

    def _enter(self, chunks: dict[bytes, tuple[Digest, bytes]]) -> None:
        size = sum(digest.size for digest, _ in chunks.values())
        todo = [*chunks.values()]

        def write() -> None:
            written = self._store.put(todo)
            lacks = [short_of(pending) for pending in written]
            for pending, lacking in zip(written, lacks, strict=True):
                if not lacking:
                    pending.wait()
            todo[:] = [blob for blob, lacking in zip(todo, lacks, strict=True) if lacking]
            if todo:
                raise NoRoomYet(f"no room for {len(todo)} chunks", sum(lacks))

        in_room_blocking(self._store, size, write)
        self._new_bytes.add(size)
        chunks.clear()

    # --- joining

    def _join(self, digest: Digest, keys: Sequence[bytes], function: int) -> None:
        # Another process may have been quicker.
        if self._store.contains(digest):
            self._known.add()
            return
        upload = self._upload(digest)
        try:
            with closing(_Parts(self._store, keys, upload)) as parts:
                sizes = []
                for chunk in fastcdc.cut(parts, self.average):
                    self._check_going()
                    sizes.append(chunk.length)
            pending = upload.finish()
        except BaseException:
            upload.discard()
            raise
        pending.wait()
        self._joined.add()
        if len(keys) > _most(digest.function):
            return
        # A client that is told of FastCDC takes the chunks to be what it would cut itself.
        if sizes == [digests.from_key(key).size for key in keys]:
            function = FAST_CDC
        elif function == FAST_CDC:
            function = UNKNOWN
        self._keep(digest, Split(keys, function))

    def _upload(self, digest: Digest) -> Upload:
        name = f"splice/{secrets.token_hex(16)}"
        return in_room_blocking(
            self._store, digest.size, lambda: self._store.upload(name, digest, 0, b"")
        )


class _Whole:
    """A blob, to be cut."""

    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        self._at = 0

    def readinto(self, view: memoryview, /) -> int:
        count = self._blob.read_into(view, self._at)
        self._at += count
        return count


class _Parts:
    """Chunks one after the other.  What is read of them is taken by an upload as well."""

    def __init__(self, store: BlobStore, keys: Sequence[bytes], upload: Upload) -> None:
        self._store = store
        self._keys = iter(keys)
        self._upload = upload
        self._blob: Blob | None = None
        self._at = 0

    def readinto(self, view: memoryview, /) -> int:
        while True:
            if self._blob is None:
                key = next(self._keys, None)
                if key is None:
                    return 0
                self._blob, self._at = self._store.open(digests.from_key(key)), 0
            count = self._blob.read_into(view, self._at)
            if count:
                self._at += count
                if self._upload.append(view[:count]):
                    self._upload.flush()
                return count
            self.close()

    def close(self) -> None:
        blob, self._blob = self._blob, None
        if blob is not None:
            blob.close()


def _most(function: Function) -> int:
    """Chunks that a list may have: each is its hash as hex, its size, and what encloses them."""
    return LIST_BYTES // (2 * function.length + 12)


def _too_many(digest: Digest) -> NotFound:
    return NotFound(
        f"blob {digest} has no list of chunks: it would have more than {_most(digest.function)}"
    )
