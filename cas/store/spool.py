"""Blobs that come without a digest: their bytes are hashed while they go to staging.

Rule: what becomes a blob is what was hashed here, and gets its name once the last byte is
there.  A spool belongs to one stream and cannot be resumed: its staging file has a name that
nobody else knows, is held (`Files.hold`) while it grows, and is left to the expiry of
staging if the process ends.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from mmap import mmap

from cas import digest as digests
from cas.digest import Digest, Function
from cas.errors import DigestMismatch, NoRoomYet
from cas.index.changes import NewBlob
from cas.store.commit import Staged, Work
from cas.store.pending import Pending
from cas.store.uploads import BUFFER_BYTES, Uploads

PutWhole = Callable[[Digest, bytes], Pending[None]]
"""Enters a blob whose bytes are all there and have this digest."""


class LocalSpool:
    """See `interface.Spool`."""

    def __init__(
        self, uploads: Uploads, function: Function, size: int | None, put_whole: PutWhole
    ) -> None:
        uploads.admit()
        self._uploads = uploads
        self._function = function
        self._hasher = function.new()
        self._put_whole = put_whole
        self._path = uploads.layout.upload(f"spool/{secrets.token_hex(16)}")
        # One of unknown size that has to be flushed is large.
        self._past_cache = uploads.writes_past_cache(BUFFER_BYTES if size is None else size)
        self._chunks: list[bytes] = []
        self._waiting = 0
        """Bytes in `_chunks`."""
        self._buffer: mmap | None = None
        self._fill = 0
        """Bytes in `_buffer`: hashed, to be written with those that follow."""
        self._fd: int | None = None
        self._written = 0
        self._reserved = 0
        """Bytes that took room and are not in the file yet."""
        self._open = True
        self.size = 0

    def append(self, data: bytes, /) -> bool:
        self._chunks.append(data)
        self.size += len(data)
        self._waiting += len(data)
        return self._waiting >= BUFFER_BYTES

    def flush(self) -> None:
        if self._fd is None:
            self._fd = self._create()
        self._uploads.admission.reserve(self._waiting)
        self._reserved += self._waiting
        chunks, self._chunks, self._waiting = self._chunks, [], 0
        for chunk in chunks:
            self._hasher.update(chunk)
        if self._past_cache:
            for chunk in chunks:
                self._fill_up(chunk)
        else:
            self._written = self._uploads.files.write(self._fd, chunks, self._written)
        self._settle()
        if self._uploads.strict:
            self._uploads.files.start_writing_back(self._fd)

    def finish(self, expected: bytes | None = None, /) -> tuple[Digest, Pending[None]]:
        try:
            finish = self._finish_whole if self._fd is None else self._finish_file
            entered = finish(expected)
        except NoRoomYet:
            raise
        except BaseException:
            self.discard()
            raise
        self.discard()
        return entered

    def discard(self) -> None:
        if not self._open:
            return
        self._open = False
        # What is left of it has no bytes.
        self._uploads.admission.release(self._reserved)
        self._reserved = 0
        self._chunks.clear()
        if self._buffer is not None:
            self._uploads.return_buffer(self._buffer)
            self._buffer = None
        self._uploads.released()
        if self._fd is not None:
            self._uploads.files.remove(self._path)
            self._uploads.files.close(self._fd)

    def _settle(self) -> None:
        done = self._reserved - self._fill
        self._uploads.admission.written(done)
        self._reserved = self._fill

    def _create(self) -> int:
        fd = self._uploads.files.create(self._path)
        if fd is None:
            raise FileExistsError(f"{self._path} exists")
        self._uploads.files.hold(fd)
        return fd

    def _fill_up(self, chunk: bytes) -> None:
        """Takes `chunk` into the buffer, and writes that as often as it is full: past the
        cache go whole blocks only."""
        if self._buffer is None:
            self._buffer = self._uploads.take_buffer()
        with memoryview(chunk) as rest:
            at = 0
            while at < len(rest):
                part = rest[at : at + len(self._buffer) - self._fill]
                self._buffer[self._fill : self._fill + len(part)] = part
                self._fill += len(part)
                at += len(part)
                if self._fill == len(self._buffer):
                    self._write_buffer()

    def _write_buffer(self) -> None:
        if self._buffer is not None and self._fd is not None:
            with memoryview(self._buffer) as view, view[: self._fill] as part:
                self._written = self._uploads.files.write_past_cache(self._fd, part, self._written)
            self._fill = 0

    def _finish_whole(self, expected: bytes | None) -> tuple[Digest, Pending[None]]:
        data = b"".join(self._chunks)
        digest = digests.of(data, self._function)
        _check(digest, expected)
        return digest, self._put_whole(digest, data)

    def _finish_file(self, expected: bytes | None) -> tuple[Digest, Pending[None]]:
        self.flush()
        self._write_buffer()
        self._settle()
        digest = digests.make(self._function, self._hasher.digest(), self.size)
        _check(digest, expected)
        assert self._fd is not None
        packing = self._uploads.pack_staged(self._path, self._fd, self.size)
        if packing is not None:
            return digest, self._uploads.commit_packed(digest, packing, self._path)
        generation = secrets.randbits(32)
        layout = self._uploads.layout
        staged = Staged(self._fd, self._path, layout.blob(digest, generation), layout.shard(digest))
        # The committer's from now on.
        self._fd = None
        pending: Pending[None] = Pending()
        blob = NewBlob(digest.key, None, generation, digest.size)
        self._uploads.committer.submit(Work(pending, blobs=(blob,), staged=staged))
        return digest, pending


def _check(digest: Digest, expected: bytes | None) -> None:
    if expected is not None and not digest.key.startswith(expected):
        raise DigestMismatch(
            f"received {digest.size} bytes with hash {digest.hex}, expected {expected[1:].hex()}"
        )
