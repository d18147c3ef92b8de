"""A store that checks a blob's bytes each time before it hands them out.

Rule: nothing but the check; `local.LocalStore` does the rest, and pays nothing for this where it
is off.  For disks that are not trusted: a blob in a file is read twice, and its first byte goes
out after its last was hashed.  What is bad is dropped, kept in quarantine, and NOT_FOUND.
"""

from __future__ import annotations

from collections.abc import Sequence

from cas import digest as digests
from cas.digest import Digest
from cas.errors import DataLoss, NotFound
from cas.index.records import PACKED
from cas.store.adopt import verify_bytes, verify_file
from cas.store.blobs import BytesBlob, FileBlob
from cas.store.interface import Found
from cas.store.local import LocalStore


class VerifyingStore(LocalStore):
    """See `interface.BlobStore`."""

    def look_up(self, prefix: bytes, /) -> Found | None:
        found = super().look_up(prefix)
        if found is None or found.data is None or self._is_right(found.digest, found.data):
            return found
        if found.held is not None:
            found.held.release()
        return None

    def read_small(self, digest: Digest, /) -> bytes | None:
        data = super().read_small(digest)
        return data if data is None or self._is_right(digest, data) else None

    def read_small_many(self, keys: Sequence[bytes], /) -> dict[bytes, bytes]:
        found = super().read_small_many(keys)
        return {
            key: data for key, data in found.items() if self._is_right(digests.from_key(key), data)
        }

    def open(self, digest: Digest, /) -> FileBlob | BytesBlob:
        try:
            blob = super().open(digest)
        except DataLoss as error:
            raise NotFound(f"blob {digest} is not here") from error
        if isinstance(blob, FileBlob):
            return VerifiedBlob(blob)
        # The bytes of a frame are decoded by now.
        data = bytearray(blob.size)
        blob.read_into(memoryview(data), 0)
        if not self._is_right(digest, data):
            raise NotFound(f"blob {digest} is not here")
        return blob

    def _is_right(self, digest: Digest, data: bytes | bytearray | memoryview) -> bool:
        try:
            verify_bytes(digest, data)
        except DataLoss as error:
            record = self._index.record(digest.key)
            if record is not None:
                self.condemn(digest, record, str(error))
            return False
        return True


class VerifiedBlob(FileBlob):
    """See `interface.Blob`.  The first read, which may wait for the disk, checks all of it."""

    __slots__ = ("_blob", "_verified")

    def __init__(self, blob: FileBlob) -> None:
        super().__init__(blob._store, blob._fd, blob._digest, blob._record)
        self._blob = blob
        self._verified = False

    def read_into(self, view: memoryview, offset: int, /, *, wait: bool = True) -> int:
        if not self._verified:
            if not wait:
                return -1
            try:
                packed = self._record.where == PACKED
                verify_file(self._store.files, self._fd, self._digest, packed=packed)
            except DataLoss as error:
                self._store.condemn(self._digest, self._record, str(error))
                # Nothing went out yet: to the client it is as if it had been dropped before.
                raise NotFound(f"blob {self._digest} is not here") from error
            self._verified = True
        return self._blob.read_into(view, offset, wait=wait)

    def fileno(self) -> int | None:
        return self._blob.fileno()
