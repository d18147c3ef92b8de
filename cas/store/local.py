"""The store on disk: LMDB index, sharded files, staged uploads, group commit.

Rule: composition.  How bytes become durable is `commit`'s, how uploads resume is
`uploads`', where things are is `layout`'s; this module answers `interface.BlobStore`
out of them and keeps nothing per entry in memory.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cas import digest as digests
from cas.digest import FUNCTIONS, Digest, Function
from cas.errors import CasError, DataLoss, NotFound
from cas.index import changes, records
from cas.index.changes import NewBlob
from cas.index.lmdb import Index, Lent
from cas.index.records import (
    INLINE,
    PACKED,
    PACKED_INLINE,
    VALUE,
    ActionRecord,
    Record,
    ValueRecord,
    action_key,
    value_key,
)
from cas.metrics.instruments import Metrics
from cas.store.administration import Administration
from cas.store.admission import Admission
from cas.store.backlog import Backlog, QueueLimits
from cas.store.blobs import BytesBlob, FileBlob, PackedBlob, PackedBytes
from cas.store.coming import Staging
from cas.store.commit import MAX_TOUCHES, Committer, Staged, Work
from cas.store.counts import ReadCounts
from cas.store.directory import check_format
from cas.store.files import Files, Seam
from cas.store.gathering import GatheringUpload, gather
from cas.store.interface import (
    Action,
    Beyond,
    Buffer,
    Compression,
    Durability,
    Found,
    NewAction,
    NewValue,
    Value,
)
from cas.store.layout import Layout
from cas.store.opening import open_index
from cas.store.packed import pack_whole
from cas.store.pending import Pending, failed, resolved
from cas.store.quarantine import Quarantine
from cas.store.space import Space
from cas.store.spool import LocalSpool
from cas.store.uploads import LocalUpload, Uploads
from cas.store.usage import Meter, SizeLimits
from cas.zstd import Packer

FRESH_ACTION_MS = 60_000
"""An action result younger than this is not dropped for blobs that it lacks: a client may
send them after it."""

log = logging.getLogger("cas.store")

_DONE = resolved(None)


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What an operator chooses about a store."""

    durability: Durability = "strict"
    inline_threshold: int = 64 << 10
    """Largest blob kept in the index, bytes.  Inline: one lookup, no file; but LMDB moves
    such values whole."""
    direct_threshold: int = 128 << 10
    """Blobs from this size on, bytes, are written past the system's cache in `strict`: cheaper,
    but whoever reads such a blob first reads it from the disk."""
    compression: Compression = "none"
    """zstd takes less disk, and more of the CPU."""
    max_open_uploads: int = 2048
    """Streams that write at once in one process; each may hold `uploads.BUFFER_BYTES`."""
    limits: SizeLimits = field(default_factory=SizeLimits)
    """What the store may take on disk."""
    queue: QueueLimits | None = None
    """Where writes are sent upstream later (`upstream.draining`): how much may wait for that."""


def open_store(
    directory: Path,
    options: StoreOptions | None = None,
    *,
    kind: type[LocalStore] | None = None,
    metrics: Metrics | None = None,
    clock: Callable[[], float] = time.time,
    files_seam: Seam | None = None,
    index_seam: Callable[[str], None] | None = None,
) -> LocalStore:
    """Opens the store of a prepared directory.  Any number of processes may do so.

    `kind` is the class of the store (default: LocalStore).
    """
    options = options or StoreOptions()
    layout = Layout(directory)
    check_format(layout)
    files = Files(files_seam)
    strict = options.durability == "strict"
    queue = options.queue is not None
    index = open_index(layout, files, strict=strict, seam=index_seam, queue=queue)
    return (kind or LocalStore)(layout, index, files, options, clock, metrics)


class LocalStore:
    """See `interface.BlobStore`."""

    beyond: Beyond | None = None

    def __init__(
        self,
        layout: Layout,
        index: Index,
        files: Files,
        options: StoreOptions,
        clock: Callable[[], float] = time.time,
        metrics: Metrics | None = None,
    ) -> None:
        metrics = metrics or Metrics()
        self._counts = ReadCounts(metrics)
        self._layout = layout
        self._index = index
        self.files = files
        self._quarantine = Quarantine(layout, files)
        self._clock = clock
        self._touched: set[bytes] = set()
        self.inline_threshold = options.inline_threshold
        self._space = Space(layout.space, files)
        self._queues = options.queue is not None
        self._admission = Admission(
            self._space,
            Meter(layout, index, self._space, options.limits),
            backlog=None if options.queue is None else Backlog(index, options.queue),
        )
        packer = Packer() if options.compression == "zstd" else None
        self._committer = Committer(
            index,
            files,
            options.durability,
            self._take_touches,
            self._admission,
            metrics,
            clock,
            packer=packer,
            queues=self._queues,
        )
        self._uploads = Uploads(
            layout,
            files,
            self._committer,
            self._admission,
            inline_threshold=options.inline_threshold,
            direct_threshold=options.direct_threshold,
            packer=packer,
            max_open=options.max_open_uploads,
            strict=options.durability == "strict",
            metrics=metrics,
        )
        self._pin_empty_blobs()

    # --- blobs -----------------------------------------------------------------------

    def present(self, keys: Sequence[bytes], /) -> set[bytes]:
        if len(self._touched) < MAX_TOUCHES:
            found = set(self._index.present(keys))
            self._touched.update(found)
            return found
        return set(self._index.use(keys, records.minutes(self._clock())))

    def find_missing(self, keys: Sequence[bytes], /) -> list[int]:
        missing = self._index.find_missing(keys, records.minutes(self._clock()))
        return self.missing(keys) if missing is None else missing

    def missing(self, keys: Sequence[bytes], /) -> list[int]:
        found = self.present(keys)
        if len(found) == len(keys):
            return []
        return [position for position, key in enumerate(keys) if key not in found]

    def contains(self, digest: Digest, /) -> bool:
        if self._index.contains(digest.key):
            self._touched.add(digest.key)
            return True
        return False

    def find(self, prefix: bytes, /) -> Digest | None:
        key = self._index.find(prefix)
        return None if key is None else digests.from_key(key)

    def look_up(self, prefix: bytes, /) -> Found | None:
        found = self._index.find_inline(prefix)
        if found is None:
            return None
        key, data = found
        self._touched.add(key)
        if data is None:
            return Found(digests.from_key(key), None)
        content, held = (data.view, data) if isinstance(data, Lent) else (data, None)
        size = len(content)
        self._counts.read(size)
        return Found(Digest(key, size), content, held)

    def read_small(self, digest: Digest, /) -> bytes | None:
        key = digest.key
        data = self._index.inline(key)
        if data is not None:
            self._touched.add(key)
            self._counts.read(len(data))
        return data

    def read_small_many(self, keys: Sequence[bytes], /) -> dict[bytes, bytes]:
        found = self._index.inline_many(keys)
        self._touch(found.keys())
        self._counts.read_batch(len(found))
        return found

    def open(self, digest: Digest, /) -> FileBlob | BytesBlob:
        key = digest.key
        record = self._index.record(key)
        if record is None:
            raise NotFound(f"blob {digest} is not here")
        self._touched.add(key)
        self._counts.read(digest.size)
        if record.where == INLINE:
            data = self._index.inline(key)
            if data is not None:
                return BytesBlob(data)
        elif record.where == PACKED_INLINE:
            data = self._index.stored(record)
            if data is not None:
                try:
                    return PackedBytes(digest, data)
                except DataLoss as error:
                    self.condemn(digest, record, str(error))
                    raise
        else:
            fd = self.files.open_blob(self._layout.copy(digest, record))
            if fd is not None:
                kind = PackedBlob if record.where == PACKED else FileBlob
                return kind(self, fd, digest, record)
        if self._index.contains(key):
            log.error("the index names a blob that is not there", extra={"digest": str(digest)})
        # Evicted in the moment since the record was read, or lost: to the client the same.
        raise NotFound(f"blob {digest} is not here")

    def put(
        self, blobs: Sequence[tuple[Digest, Buffer]], /, *, fetched: bool = False
    ) -> list[Pending[None]]:
        """See `interface.BlobStore`; `fetched` for what came from upstream."""
        out: list[Pending[None]] = []
        inline: list[NewBlob] = []
        works: list[Work] = []
        together: Pending[None] = Pending()
        try:
            for digest, data in blobs:
                size = digest.size
                try:
                    digests.verify(digest, data)
                    if size <= self.inline_threshold:
                        inline.append(NewBlob(digest.key, bytes(data)))
                        out.append(together)
                    else:
                        works.append(self._written(digest, data))
                        out.append(works[-1].pending)
                except (CasError, OSError) as error:
                    out.append(failed(error))
        finally:
            # At the end: what is handed over together is committed together.
            if inline:
                works.append(Work(together, blobs=inline))
            for work in works:
                work.fetched = fetched
                self._committer.submit(work)
        return out

    def room(self, size: int, /, *, waited: float = 0.0) -> Pending[None]:
        # Behind those that wait already.
        if not (waited or self._admission.crowded) and self._space.room() >= size:
            return _DONE
        pending: Pending[None] = Pending()
        self._committer.submit(Work(pending, room=size, waited=waited))
        return pending

    # --- uploads ---------------------------------------------------------------------

    def upload(self, name: str, digest: Digest, offset: int, data: Buffer, /) -> LocalUpload:
        return self._uploads.begin(name, digest, offset, data)

    def gather(self, name: str, digest: Digest, /) -> GatheringUpload | None:
        return gather(self._uploads, self._put_verified, name, digest)

    def upload_exists(self, name: str, /) -> bool:
        return self._uploads.exists(name)

    def committed_size(self, name: str, /) -> int | None:
        return self._uploads.committed_size(name)

    def staged(self, name: str, /) -> Staging | None:
        """What there is of the upload `name` so far, to be read while more comes; None if there is
        no such upload."""
        path = self._layout.upload(name)
        fd = self.files.open_blob(path)
        return None if fd is None else Staging(self.files, fd)

    def claims(self) -> tuple[Path, Files]:
        """Where processes claim what they fetch."""
        return self._layout.claims, self.files

    def spool(self, function: Function, size: int | None, /) -> LocalSpool:
        return LocalSpool(self._uploads, function, size, self._put_verified)

    # --- values ----------------------------------------------------------------------

    def value(self, namespace: str, key: str, /, *, counted: bool = True) -> Value | None:
        entry = value_key(namespace, key)
        found, complete = self._index.complete_action(entry)
        if counted:
            self._counts.looked_up_value(hit=complete)
        if found is None:
            return None
        if not complete:
            self._drop_dead(entry)
            return None
        digest, meta, data = records.cut_value(found)
        self._touched.update((entry, *found.references))
        # The first of them is its content.
        return Value(digests.from_key(digest), data, meta, found.references[1:])

    def put_value(self, namespace: str, key: str, value: NewValue, /) -> Pending[None]:
        now = int(self._clock() * 1000)
        record = ValueRecord(
            now, value.author, value.digest.key, value.meta, value.data, value.references
        )
        entry = changes.NewAction(value_key(namespace, key), records.pack_value(record), VALUE)
        pending: Pending[None] = Pending()
        self._committer.submit(Work(pending, action=entry))
        return pending

    def drop_value(self, namespace: str, key: str, /) -> Pending[None]:
        pending: Pending[None] = Pending()
        self._committer.submit(Work(pending, drop=value_key(namespace, key)))
        return pending

    def _drop_dead(self, entry: bytes) -> None:
        packed = self._index.packed_action(entry)
        if packed is not None:
            self._committer.submit(Work(Pending(), dropped=(entry, packed)))

    # --- action results --------------------------------------------------------------

    def action(self, instance: str, digest: Digest, /) -> Action | None:
        key = action_key(instance, digest.prefix)
        found, complete = self._index.complete_action(key)
        if found is None:
            self._counts.looked_up(hit=False)
            return None
        # One that is looked into first is then asked for again.
        if found.expanded or not complete:
            self._counts.looked_up(hit=complete)
        if complete:
            touched = self._touched
            touched.update(found.references)
            touched.add(key)
        return Action(found.result, found.references, found.expanded, complete)

    def put_action(
        self,
        instance: str,
        digest: Digest,
        action: NewAction,
        /,
        *,
        unsent: Sequence[bytes] = (),
        fetched: bool = False,
    ) -> Pending[None]:
        """See `interface.BlobStore`; `unsent` and `fetched` as `Work` has them."""
        key = action_key(instance, digest.prefix)
        if self._repeats(key, action):
            return self.send_later(unsent) if unsent else _DONE
        record = ActionRecord(
            int(self._clock() * 1000),
            action.author,
            action.references,
            action.expanded,
            action.result,
        )
        pending: Pending[None] = Pending()
        entry = changes.NewAction(key, records.pack_action(record))
        self._committer.submit(Work(pending, action=entry, unsent=unsent, fetched=fetched))
        return pending

    def send_later(self, keys: Sequence[bytes], /) -> Pending[None]:
        """Has entries that are here wait to be sent upstream; only with a `StoreOptions.queue`."""
        pending: Pending[None] = Pending()
        self._committer.submit(Work(pending, unsent=keys))
        return pending

    def _repeats(self, key: bytes, action: NewAction) -> bool:
        """Whether just this is what is kept, and useful: then there is nothing to write.
        Machines that run one action at the same time all send its result."""
        found, complete = self._index.complete_action(key)
        if found is None or not complete or found.result != action.result:
            return False
        if found.expanded != action.expanded or found.references != list(action.references):
            return False
        self._touch((*found.references, key))
        return True

    def drop_action(self, instance: str, digest: Digest, action: Action, /) -> None:
        key = action_key(instance, digest.prefix)
        packed = self._index.packed_action(key)
        if packed is None:
            return
        record = records.unpack_action(packed)
        age = self._clock() * 1000 - record.written_at
        if record.result == action.result and age >= FRESH_ACTION_MS:
            self._committer.submit(Work(Pending(), dropped=(key, packed)))

    # --- life ------------------------------------------------------------------------

    def check(self) -> None:
        """Raises CasError when only another process can go on with this store."""
        self._index.check()

    def close(self) -> None:
        self._committer.close()
        self._space.close()
        self._index.close()

    def administration(self) -> Administration:
        """What an operator does by hand."""
        return Administration(self._index, self.files, self._layout)

    # --- damage ----------------------------------------------------------------------

    def condemn(self, digest: Digest, record: Record, reason: str) -> None:
        """*Blocking.*  Drops a blob whose bytes turned out to be bad, so that whoever asks next
        finds it missing and sends it again; the bytes are kept in quarantine."""
        try:
            self._quarantine.condemn(self._index, digest.key, record, reason)
        except (CasError, OSError) as error:
            log.error(
                "a bad blob could not be dropped",
                extra={"digest": str(digest), "reason": reason, "error": str(error)},
            )

    # --- inside ----------------------------------------------------------------------

    def _put_verified(self, digest: Digest, data: Buffer, at_page: bool = False) -> Pending[None]:
        if digest.size > self.inline_threshold:
            work = self._written(digest, data, at_page)
        else:
            work = Work(Pending(), blobs=(NewBlob(digest.key, bytes(data)),))
        self._committer.submit(work)
        return work.pending

    def _written(self, digest: Digest, data: Buffer, at_page: bool = False) -> Work:
        """A blob in its file, to be committed; `at_page`: its bytes begin at a page of memory."""
        # The generation makes the name this write's own, and nothing sees the file before
        # its record: no staging is needed.
        generation = secrets.randbits(32)
        packer = self._uploads.packer
        packed = None if packer is None else pack_whole(data, packer)
        if packed is None:
            path = self._layout.blob(digest, generation)
        else:
            path, data, at_page = self._layout.packed(digest, generation), packed, False
        size = len(data)
        self._admission.reserve(size)
        try:
            fd = self._write_file(path, data, at_page)
        except BaseException:
            self._admission.release(size)
            raise
        self._admission.written(size)
        staged = Staged(fd, None, path, self._layout.shard(digest))
        blob = NewBlob(digest.key, None, generation, size, packed is not None)
        return Work(Pending(), blobs=(blob,), staged=staged)

    def _write_file(self, path: str, data: Buffer, at_page: bool) -> int:
        fd = self.files.create(path)
        if fd is None:
            raise FileExistsError(f"{path} exists")
        try:
            self._uploads.write_whole(fd, data, at_page)
        except BaseException:
            self.files.close(fd)
            self.files.remove(path)
            raise
        return fd

    def _pin_empty_blobs(self) -> None:
        blobs = [NewBlob(digests.empty(function).key, b"") for function in FUNCTIONS]
        self._index.pin(blobs)

    def _touch(self, keys: Collection[bytes]) -> None:
        touched = self._touched
        touched.update(keys)
        if len(touched) > MAX_TOUCHES:
            self._committer.write_touches()

    def _take_touches(self) -> Collection[bytes]:
        # Keys added between the two steps land in either set; none is lost.
        touched, self._touched = self._touched, set()
        return touched
