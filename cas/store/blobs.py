"""Blobs that are open, to be read: from memory, or from a file; as they are, or as zstd.

Rule: `interface.Blob`, and nothing of how blobs are found.  One that turns out to be damaged is
dropped by the store that it is of, and whoever reads it gets DataLoss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cas.digest import Digest
from cas.errors import DataLoss
from cas.index.records import Record
from cas.store.adopt import BAD_MEDIUM
from cas.store.interface import Blob
from cas.store.packed import PackedReader, unpack_stored

if TYPE_CHECKING:
    from cas.store.local import LocalStore


class BytesBlob:
    """A blob whose bytes are in memory.  See `interface.Blob`."""

    __slots__ = ("_data", "size")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_into(self, view: memoryview, offset: int, /, *, wait: bool = True) -> int:
        part = self._data[offset : offset + len(view)]
        view[: len(part)] = part
        return len(part)

    def fileno(self) -> int | None:
        return None

    def packed(self) -> Blob | None:
        return None

    def close(self) -> None:
        """Nothing is held."""


class PackedBytes(BytesBlob):
    """A blob that the index has as zstd.  See `interface.Blob`."""

    __slots__ = ("_packed",)

    def __init__(self, digest: Digest, packed: bytes) -> None:
        """Raises DataLoss."""
        super().__init__(unpack_stored(digest, packed))
        self._packed = packed

    def packed(self) -> BytesBlob:
        return BytesBlob(self._packed)


class FileBlob:
    """See `interface.Blob`."""

    __slots__ = ("_digest", "_fd", "_files", "_record", "_store", "size")

    def __init__(self, store: LocalStore, fd: int, digest: Digest, record: Record) -> None:
        self._store = store
        self._files = store.files
        self._fd = fd
        self._digest = digest
        self._record = record
        self.size = digest.size

    def read_into(self, view: memoryview, offset: int, /, *, wait: bool = True) -> int:
        view = view[: max(0, self.size - offset)]
        if not view:
            return 0
        if not wait:
            count = self._files.read_cached(self._fd, view, offset)
            if count:
                return count
            # 0 bytes before the end: let the waiting read say so.
            return -1
        done = 0
        try:
            while done < len(view):
                count = self._files.read_into(self._fd, view[done:], offset + done)
                if not count:
                    raise DataLoss(f"it ends at byte {offset + done}, expected {self.size} bytes")
                done += count
        except (DataLoss, OSError) as error:
            raise self._bad(error) from error
        return done

    def _bad(self, error: DataLoss | OSError) -> Exception:
        """Drops the blob if `error` means that its bytes are gone; what the reader gets."""
        if isinstance(error, OSError):
            if error.errno not in BAD_MEDIUM:
                return error
            error = DataLoss(f"it cannot be read: {error.strerror}")
        self._store.condemn(self._digest, self._record, str(error))
        return DataLoss(f"blob {self._digest} is damaged on disk: {error}")

    def fileno(self) -> int | None:
        return self._fd

    def packed(self) -> FileBlob | None:
        return None

    def close(self) -> None:
        self._files.close(self._fd)


class PackedBlob(FileBlob):
    """A blob whose file is zstd.  See `interface.Blob`."""

    __slots__ = ("_reader",)

    def __init__(self, store: LocalStore, fd: int, digest: Digest, record: Record) -> None:
        super().__init__(store, fd, digest, record)
        self._reader: PackedReader | None = None

    def read_into(self, view: memoryview, offset: int, /, *, wait: bool = True) -> int:
        view = view[: max(0, self.size - offset)]
        if not view:
            return 0
        if not wait:
            # Decoding is a helper thread's.
            return -1
        try:
            if self._reader is None:
                self._reader = PackedReader(self._files, self._fd, self.size)
            return self._reader.read_into(view, offset)
        except (DataLoss, OSError) as error:
            raise self._bad(error) from error

    @property
    def decoded(self) -> int:
        """Frames decoded so far."""
        return 0 if self._reader is None else self._reader.decoded

    def fileno(self) -> int | None:
        return None

    def packed(self) -> FileBlob | None:
        blob = FileBlob(self._store, self._fd, self._digest, self._record)
        blob.size = self._record.stored
        return blob
