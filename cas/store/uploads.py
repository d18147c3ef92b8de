"""Uploads in progress: bytes on their way in, kept where a later stream finds them.

Rule: what is committed is what the staging file holds; nothing else remembers an
upload, so any worker, or the next process, can resume it.  Design: invariants 4, 5.

Who may write to a staging file:

* Its writer marks the file (`Files.hold`) for as long as it lives.  A later stream
  that finds no mark goes on in the same file.
* One that finds a mark copies the file, adds its own first bytes, and puts the copy
  in its place, under the file's guard.  The earlier writer checks, under the same
  guard, that the name still means its file before each flush and before the rename
  that publishes, and stops with UploadSuperseded otherwise.  So bytes of two
  streams never mix, nothing unverified is ever published, and streams that fight
  over one name get on: what the earlier one had not flushed is lost, but each that
  takes over brings bytes of its own.
* One that does not begin at the committed size takes over nothing.
* A file that is complete never changes: streams that find one share it, and each
  may verify and publish it.
"""

from __future__ import annotations

import os
import secrets
from collections import OrderedDict
from contextlib import suppress
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from threading import Lock

from cas import digest as digests
from cas.digest import Digest, Hasher
from cas.errors import CasError, InvalidArgument, LimitExceeded, NoSpace, UploadSuperseded
from cas.index.changes import NewBlob
from cas.metrics.instruments import Metrics
from cas.store.admission import Admission
from cas.store.commit import Committer, Staged, Work
from cas.store.counts import UploadCounts
from cas.store.files import Files
from cas.store.interface import Buffer
from cas.store.layout import Layout
from cas.store.packed import PackedWriter
from cas.store.pending import Pending
from cas.zstd import Packer

BUFFER_BYTES = 1 << 20
"""Bytes of one upload that may wait in memory, a multiple of `files.BLOCK`.  Hashed and written
in one go each, on a helper thread: done message by message, that would pass the interpreter's
lock to and fro for each."""
SMALL_BUFFER_BYTES = 128 << 10
LARGE_BUFFERS = 128
"""Uploads that get `BUFFER_BYTES`; what is open beyond them gets `SMALL_BUFFER_BYTES`, so that
2,048 uploads hold 368 MiB at most."""
KEPT_BUFFERS = 32
_PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS
COPY_BYTES = 1 << 20
KEPT_HASHERS = 1024
"""Suspended uploads whose hash state is remembered, so that resuming them here need not
read the staged bytes again."""


class Uploads:
    """Begins, resumes and limits the uploads of one process."""

    def __init__(
        self,
        layout: Layout,
        files: Files,
        committer: Committer,
        admission: Admission,
        *,
        inline_threshold: int,
        direct_threshold: int,
        packer: Packer | None,
        max_open: int,
        strict: bool,
        metrics: Metrics,
    ) -> None:
        self.counts = UploadCounts(metrics)
        self.layout = layout
        self.files = files
        self.committer = committer
        self.admission = admission
        self.inline_threshold = inline_threshold
        self.strict = strict
        self.packer = packer
        """What makes the frames of blobs in files, where they are to be zstd."""
        self._direct_threshold = direct_threshold
        self._max_open = max_open
        self._open = 0
        self._lock = Lock()
        self._hashers: OrderedDict[str, tuple[_State, Hasher]] = OrderedDict()
        self._buffers: list[mmap] = []
        self._large = 0

    def begin(self, name: str, digest: Digest, offset: int, data: Buffer) -> LocalUpload:
        """See `BlobStore.upload`."""
        if offset == 0:
            digests.check_size(digest, len(data))
        self.admit()
        # A negative offset is refused further on; it must not ask for more than there can be.
        missing = max(0, digest.size - max(0, offset))
        try:
            self.admission.reserve(missing)
            try:
                upload = self._hold(self.layout.upload(name), digest, offset, data)
            except BaseException:
                self.admission.release(missing)
                raise
        except BaseException:
            self.released()
            raise
        upload.reserved = missing
        try:
            # All of it has its place already where a living stream was taken over.
            if upload.append(data[upload.offset - offset :]):
                upload.flush()
        except BaseException:
            with suppress(CasError, OSError):
                upload.suspend()
            raise
        return upload

    def exists(self, name: str) -> bool:
        return os.access(self.layout.upload(name), os.F_OK)

    def committed_size(self, name: str) -> int | None:
        """See `BlobStore.committed_size`."""
        path = self.layout.upload(name)
        fd = self.files.open_staging(path)
        if fd is None:
            return None
        try:
            size = self.files.size(fd)
            if self.strict:
                self.make_durable(path, fd)
            return size
        finally:
            self.files.close(fd)

    def make_durable(self, path: str, fd: int) -> None:
        self.files.sync(fd)
        self.files.sync_directory(os.path.dirname(path))

    def released(self) -> None:
        with self._lock:
            self._open -= 1
            self.counts.open.set(self._open)

    def writes_past_cache(self, size: int) -> bool:
        """Whether the bytes of a blob of `size` are to go straight to the disk."""
        return self.strict and size >= self._direct_threshold

    def write_whole(self, fd: int, data: Buffer, at_page: bool) -> None:
        """Writes all of a blob's new file; `at_page`: the bytes begin at a page of memory."""
        if not self.writes_past_cache(len(data)):
            self.files.write(fd, [data], 0)
        elif at_page:
            self.files.write_past_cache(fd, memoryview(data), 0)
        else:
            buffer = self.take_buffer()
            try:
                with memoryview(buffer) as view:
                    for at in range(0, len(data), len(view)):
                        part = data[at : at + len(view)]
                        view[: len(part)] = part
                        self.files.write_past_cache(fd, view[: len(part)], at)
            finally:
                self.return_buffer(buffer)
        if self.strict:
            self.files.start_writing_back(fd)

    def pack(self, path: str, size: int) -> PackedWriter | None:
        """What packs content of `size` bytes, while it goes to the staging file `path`, into a
        file beside that; None where it is not to be packed.  Its name is that of a copy: if it
        is left behind, it goes as those of takeovers do."""
        if self.packer is None or size <= self.inline_threshold:
            return None
        beside = f"{path}.{secrets.token_hex(8)}"
        return PackedWriter(self.files, self.admission, self.packer, beside)

    def commit_packed(
        self, digest: Digest, writer: PackedWriter, staging: str, *, fetched: bool = False
    ) -> Pending[None]:
        """Commits the verified blob whose content `writer` has taken, after which the staging
        file goes."""
        try:
            fd, stored = writer.finish()
        except BaseException:
            writer.discard()
            raise
        if self.strict:
            self.files.start_writing_back(fd)
        generation = secrets.randbits(32)
        path = self.layout.packed(digest, generation)
        work = Work(
            Pending(),
            blobs=(NewBlob(digest.key, None, generation, stored, packed=True),),
            staged=Staged(fd, writer.path, path, self.layout.shard(digest)),
            remove=staging,
            fetched=fetched,
        )
        self.committer.submit(work)
        return work.pending

    def pack_staged(self, path: str, fd: int, size: int) -> PackedWriter | None:
        """As `pack`, with the content taken from the staging file `fd`; None too where that is
        not worthwhile, or there is no room for both."""
        writer = self.pack(path, size)
        if writer is None:
            return None
        view = memoryview(bytearray(min(COPY_BYTES, size)))
        at = 0
        try:
            while at < size and (count := self.files.read_into(fd, view, at)):
                if not writer.add(view[:count]):
                    break
                at += count
        except NoSpace:
            pass
        except BaseException:
            writer.discard()
            raise
        if at == size:
            return writer
        writer.discard()
        return None

    def take_buffer(self) -> mmap:
        """Memory for the bytes of one upload, until `return_buffer`; begins at a page."""
        return self.take_buffer_for(BUFFER_BYTES) or mmap(-1, SMALL_BUFFER_BYTES, _PRIVATE)

    def take_buffer_for(self, size: int) -> mmap | None:
        """As `take_buffer`, with room for `size` bytes; None where there is none such."""
        if size > BUFFER_BYTES:
            return None
        with self._lock:
            if self._buffers:
                return self._buffers.pop()
            if self._large == LARGE_BUFFERS:
                return None
            self._large += 1
        return mmap(-1, BUFFER_BYTES, _PRIVATE)

    def return_buffer(self, buffer: mmap) -> None:
        if len(buffer) < BUFFER_BYTES:
            return
        with self._lock:
            if len(self._buffers) < KEPT_BUFFERS:
                # Kept: fresh memory costs a page fault for every 4 KiB.
                self._buffers.append(buffer)
            else:
                self._large -= 1

    def remember(self, path: str, fd: int, hasher: Hasher) -> None:
        """Keeps the hash state of a suspended upload, for as long as its file stays as is."""
        with self._lock:
            self._hashers[path] = (_state(fd), hasher)
            while len(self._hashers) > KEPT_HASHERS:
                self._hashers.popitem(last=False)

    def admit(self) -> None:
        """Counts one more open upload, until `released`.  Raises LimitExceeded."""
        with self._lock:
            if self._open >= self._max_open:
                raise LimitExceeded(
                    f"{self._open} uploads are open, the limit (max_open_uploads) is "
                    f"{self._max_open}"
                )
            self._open += 1
            self.counts.open.set(self._open)

    def _hold(self, path: str, digest: Digest, offset: int, data: Buffer) -> LocalUpload:
        """The upload at `offset`; behind `data` where it was taken over from a living stream."""
        while True:
            fd = self.files.create(path) if offset == 0 else None
            if fd is not None:
                if self.files.hold(fd):
                    self._hashers.pop(path, None)
                    self.counts.new.add()
                    return LocalUpload(self, digest, path, fd, 0, digest.function.new(digest.size))
                # Another stream took the file over in the moment since it was made.
                self.files.close(fd)
            fd = self.files.open_staging(path)
            if fd is None:
                if offset:
                    raise _wrong_offset(offset, 0)
                continue
            taken = self._take_over(path, fd, digest, offset, data)
            if taken is not None:
                return taken

    def _take_over(
        self, path: str, fd: int, digest: Digest, offset: int, data: Buffer
    ) -> LocalUpload | None:
        """Resumes the staging file `fd`; None when `path` names it no more."""
        living = not self.files.hold(fd)
        try:
            size = self.files.size(fd)
            if living and not offset == digest.size == size:
                copy = self._replace_living(path, fd, digest, offset, data)
                self.files.close(fd)
                if copy is None:
                    return None
                fd, size = copy, offset + len(data)
            elif not self.files.names(path, fd):
                self.files.close(fd)
                return None
            elif size != offset:
                raise _wrong_offset(offset, size)
            hasher = self._hash_state(path, fd, size, digest)
            (self.counts.taken_over if living else self.counts.resumed).add()
            return LocalUpload(self, digest, path, fd, size, hasher)
        except BaseException:
            self.files.close(fd)
            raise

    def _replace_living(
        self, path: str, fd: int, digest: Digest, offset: int, data: Buffer
    ) -> int | None:
        """Copies the staging file of a living writer, with `data` behind what is there, and
        puts the copy in its place; None when `path` names it no more."""
        self.files.guard(fd, wait=True)
        try:
            if not self.files.names(path, fd):
                return None
            size = self.files.size(fd)
            if size != offset:
                raise _wrong_offset(offset, size)
            digests.check_size(digest, size + len(data))
            beside = f"{path}.{secrets.token_hex(8)}"
            copy = self.files.create(beside)
            if copy is None:
                return None
            try:
                self.files.hold(copy)
                end = 0
                view = memoryview(bytearray(COPY_BYTES))
                while count := self.files.read_into(fd, view, end):
                    end = self.files.write(copy, [view[:count]], end)
                self.files.write(copy, [data], end)
                if self.strict:
                    self.files.sync(copy)
                self.files.replace(beside, path)
            except BaseException:
                self.files.remove(beside)
                self.files.close(copy)
                raise
            return copy
        finally:
            self.files.unguard(fd)

    def _hash_state(self, path: str, fd: int, size: int, digest: Digest) -> Hasher:
        with self._lock:
            known = self._hashers.pop(path, None)
        if known is not None and known[0] == _state(fd):
            return known[1]
        hasher = digest.function.new(digest.size)
        view = memoryview(bytearray(COPY_BYTES))
        offset = 0
        while offset < size and (count := self.files.read_into(fd, view, offset)):
            hasher.update(view[:count])
            offset += count
        return hasher


def _wrong_offset(offset: int, committed: int) -> InvalidArgument:
    return InvalidArgument(f"write_offset is {offset}, expected the committed size {committed}")


_State = tuple[int, int, int]


def _state(fd: int) -> _State:
    found = os.fstat(fd)
    return found.st_ino, found.st_size, found.st_mtime_ns


class LocalUpload:
    """See `interface.Upload`.  Holds its staging file from the beginning to the end."""

    __slots__ = (
        "_buffer", "_fd", "_fill", "_flushed", "_hasher", "_hashes", "_open", "_packing", "_path",
        "_rest", "_resumed", "_uploads", "_view", "digest", "fetched", "offset", "reserved",
    )  # fmt: skip

    def __init__(
        self, uploads: Uploads, digest: Digest, path: str, fd: int, size: int, hasher: Hasher
    ) -> None:
        self._uploads = uploads
        self.digest = digest
        self.fetched = False
        """As `Work.fetched`."""
        self._path = path
        self._fd = fd
        self._flushed = size
        """Bytes in the file; the hasher has seen just these."""
        self._hasher = hasher
        self._hashes = True
        self._buffer = uploads.take_buffer()
        self._view = memoryview(self._buffer)
        self._fill = 0
        self._rest: memoryview | None = None
        """What of the last message did not fit into the buffer."""
        self._open = True
        self._resumed = size > 0
        self._packing = None if self._resumed else uploads.pack(path, digest.size)
        """Has taken just what is in the file; None where that is in vain, or was not from the
        beginning on."""
        self.offset = size
        self.reserved = 0
        """Bytes that were promised room and have not come yet."""

    def hashed_by(self, hasher: Hasher) -> None:
        """`hasher` is given all that is appended, by who appends, before `finish`.  Such an upload
        may not be suspended."""
        self._hasher = hasher
        self._hashes = False

    @property
    def flushed(self) -> int:
        """Bytes that are in the staging file."""
        return self._flushed

    def append(self, data: Buffer, /) -> bool:
        offset = self.offset + len(data)
        digests.check_size(self.digest, offset)
        self.offset = offset
        start = self._fill
        end = start + len(data)
        if end <= len(self._buffer):
            self._view[start:end] = data
            self._fill = end
            return end == len(self._buffer)
        self._rest = memoryview(data)
        return True

    def flush(self) -> None:
        self._top_up()
        if not self._fill:
            return
        files = self._uploads.files
        if not files.guard(self._fd, wait=False):
            raise UploadSuperseded(f"a later stream is taking over the upload of {self.digest}")
        try:
            if not files.names(self._path, self._fd):
                raise UploadSuperseded(f"a later stream took over the upload of {self.digest}")
            while self._fill:
                part = self._view[: self._fill]
                flushed = self._flushed
                # In this order: should the write fail, the hasher still fits `_flushed`.
                if self._uploads.writes_past_cache(self.digest.size):
                    self._flushed = files.write_past_cache(self._fd, part, self._flushed)
                else:
                    self._flushed = files.write(self._fd, [part], self._flushed)
                if self._hashes:
                    self._hasher.update(part)
                self._settle(self._flushed - flushed)
                self._fill = 0
                if self._packing is not None:
                    self._pack(part)
                self._top_up()
            # What is packed as it comes goes soon.
            if self._uploads.strict and self._packing is None:
                files.start_writing_back(self._fd)
        finally:
            files.unguard(self._fd)

    def _pack(self, part: memoryview) -> bool:
        """Packs content; leaves off where that is in vain, or there is no room for both."""
        packing = self._packing
        assert packing is not None
        with suppress(NoSpace):
            if packing.add(part):
                return True
        self._packing = None
        packing.discard()
        return False

    def _settle(self, count: int) -> None:
        count = min(count, self.reserved)
        self.reserved -= count
        self._uploads.admission.written(count)

    def _top_up(self) -> None:
        """Moves what did not fit into the room that there is now."""
        if self._rest is None:
            return
        part = self._rest[: len(self._buffer) - self._fill]
        self._view[self._fill : self._fill + len(part)] = part
        self._fill += len(part)
        self._rest = self._rest[len(part) :] if len(part) < len(self._rest) else None

    def finish(self) -> Pending[None]:
        try:
            if self.digest.size <= self._uploads.inline_threshold:
                return self._commit_inline()
            return self._commit_file()
        except BaseException:
            self.discard()
            raise

    def suspend(self, *, durable: bool = False) -> int:
        if not self._open:
            return self._flushed
        try:
            self.flush()
            if durable and self._uploads.strict:
                self._uploads.make_durable(self._path, self._fd)
            self._uploads.remember(self._path, self._fd, self._hasher)
        finally:
            self._let_go()
            self._uploads.files.close(self._fd)
        return self._flushed

    def discard(self) -> None:
        if not self._open:
            return
        self._let_go()
        files = self._uploads.files
        try:
            if files.guard(self._fd, wait=False) and files.names(self._path, self._fd):
                files.remove(self._path)
        finally:
            files.close(self._fd)

    def _commit_file(self) -> Pending[None]:
        uploads = self._uploads
        in_memory = self._packing is not None and not self._flushed and self._rest is None
        if in_memory and self._pack(self._view[: self._fill]):
            # All of it: once it is packed, it need not be in staging too.
            if self._hashes:
                self._hasher.update(self._view[: self._fill])
        else:
            self.flush()
        digests.check(self.digest, self._hasher, self.offset)
        if self._resumed:
            self._packing = uploads.pack_staged(self._path, self._fd, self.digest.size)
        if self._packing is not None:
            return self._commit_packed(self._packing)
        generation = secrets.randbits(32)
        pending: Pending[None] = Pending()
        work = Work(
            pending,
            blobs=(NewBlob(self.digest.key, None, generation, self.digest.size),),
            staged=Staged(
                self._fd,
                self._path,
                uploads.layout.blob(self.digest, generation),
                uploads.layout.shard(self.digest),
            ),
            fetched=self.fetched,
        )
        self._let_go()
        uploads.committer.submit(work)
        return pending

    def _commit_packed(self, packing: PackedWriter) -> Pending[None]:
        self._packing = None
        pending = self._uploads.commit_packed(
            self.digest, packing, self._path, fetched=self.fetched
        )
        self._let_go()
        self._uploads.files.close(self._fd)
        return pending

    def _commit_inline(self) -> Pending[None]:
        """A small blob that came in several messages: what was flushed is read back."""
        uploads = self._uploads
        self._top_up()
        staged = bytearray(self._flushed)
        if staged:
            uploads.files.read_into(self._fd, memoryview(staged), 0)
        data = b"".join((staged, self._view[: self._fill]))
        digests.verify(self.digest, data)
        pending: Pending[None] = Pending()
        blobs = (NewBlob(self.digest.key, data),)
        work = Work(pending, blobs=blobs, remove=self._path, fetched=self.fetched)
        self._let_go()
        uploads.files.close(self._fd)
        uploads.committer.submit(work)
        return pending

    def _let_go(self) -> None:
        self._open = False
        if self._packing is not None:
            self._packing.discard()
            self._packing = None
        self._view.release()
        self._uploads.admission.release(self.reserved)
        self._uploads.return_buffer(self._buffer)
        self._uploads.released()
