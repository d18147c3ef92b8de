"""An upload that has only begun: its bytes wait in memory.

Rule: no file, unless the stream breaks off; then what came goes where every upload's bytes are.
Most blobs come whole in one stream, and a staging file that can be taken over costs a small one
more than all the rest, a larger one a tenth of its CPU.  Small blobs wait as the messages that they
came in, larger ones in an upload's buffer, of which there are so many.
"""

from __future__ import annotations

from collections.abc import Callable
from mmap import mmap

from cas import digest as digests
from cas.digest import Digest
from cas.errors import NoRoomYet
from cas.store.interface import Buffer
from cas.store.pending import Pending
from cas.store.uploads import LocalUpload, Uploads

PutVerified = Callable[[Digest, Buffer, bool], Pending[None]]
"""Enters a blob whose bytes are all there and have this digest; whether they begin at a page."""


def gather(
    uploads: Uploads, put_verified: PutVerified, name: str, digest: Digest
) -> GatheringUpload | None:
    """See `BlobStore.gather`."""
    uploads.admit()
    buffer = None
    if digest.size > uploads.inline_threshold:
        buffer = uploads.take_buffer_for(digest.size)
        if buffer is None:
            uploads.released()
            return None
    return GatheringUpload(uploads, put_verified, name, digest, buffer)


class GatheringUpload:
    """See `interface.Upload`, and `BlobStore.gather`."""

    __slots__ = (
        "_buffer", "_name", "_open", "_parts", "_put_verified", "_staged", "_uploads", "digest",
        "offset",
    )  # fmt: skip

    def __init__(
        self,
        uploads: Uploads,
        put_verified: PutVerified,
        name: str,
        digest: Digest,
        buffer: mmap | None,
    ) -> None:
        """One that was admitted; `buffer` has room for all of it."""
        self._uploads = uploads
        self._put_verified = put_verified
        self._name = name
        self._buffer = buffer
        self._parts: list[Buffer] = []
        """Its bytes so far, where there is no buffer."""
        self._open = True
        self._staged: LocalUpload | None = None
        """Takes over once bytes have to outlive the process."""
        self.digest = digest
        self.offset = 0

    def append(self, data: Buffer, /) -> bool:
        if self._staged is not None:
            try:
                return self._staged.append(data)
            finally:
                self.offset = self._staged.offset
        offset = self.offset + len(data)
        digests.check_size(self.digest, offset)
        if self._buffer is None:
            self._parts.append(data)
        else:
            self._buffer[self.offset : offset] = data
        self.offset = offset
        return False

    def flush(self) -> None:
        self._stage().flush()

    def finish(self) -> Pending[None]:
        if self._staged is not None:
            return self._staged.finish()
        try:
            data = self._content()
            digests.verify(self.digest, data)
            pending = self._put_verified(self.digest, data, self._buffer is not None)
        except NoRoomYet:
            raise
        except BaseException:
            self.discard()
            raise
        self._uploads.counts.new.add()
        self.discard()
        return pending

    def suspend(self, *, durable: bool = False) -> int:
        if not self._open and self._staged is None:
            return self.offset
        return self._stage().suspend(durable=durable)

    def discard(self) -> None:
        if self._staged is not None:
            self._staged.discard()
        elif self._open:
            self._forget()
            self._uploads.released()

    def _stage(self) -> LocalUpload:
        if self._staged is None:
            # It counts as open once more there.
            self._uploads.released()
            try:
                self._staged = self._uploads.begin(self._name, self.digest, 0, self._content())
            except NoRoomYet:
                # To be asked for again.
                self._uploads.admit()
                raise
            except BaseException:
                self._forget()
                raise
            self._forget()
        return self._staged

    def _content(self) -> Buffer:
        if self._buffer is None:
            return b"".join(self._parts)
        return memoryview(self._buffer)[: self.offset]

    def _forget(self) -> None:
        self._open = False
        self._parts.clear()
        if self._buffer is not None:
            self._uploads.return_buffer(self._buffer)
            self._buffer = None
