"""Blob files that no record names, taken back into the index.

Rule: each file is verified, and synced with its directory, before its record is committed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from cas.digest import Digest, Hasher
from cas.errors import DataLoss
from cas.index.changes import Changes, NewBlob
from cas.index.lmdb import Index
from cas.store.files import Files
from cas.store.packed import PackedReader

READ_BYTES = 1 << 20

BAD_MEDIUM = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)
"""What a read ends in when the disk or the file system cannot bring the bytes: the blob is bad.
Anything else (EMFILE, ENOMEM) says nothing of the blob."""


class BlobFile(NamedTuple):
    """A file with a blob's name."""

    written: int
    """Minute."""
    digest: Digest
    generation: int
    path: Path
    packed: bool = False
    """Whether its bytes are zstd."""


def adopt(
    index: Index,
    files: Files,
    candidates: Sequence[BlobFile],
    minute: int,
    *,
    unsent: bool = False,
) -> set[Path]:
    """Enters those files whose bytes are right and whose blob is not there yet, as written when
    they were changed last, `minute` at most; returns their paths.  With `unsent` they wait to be
    sent upstream from then on."""
    right = _verified(files, candidates)
    for shard in {file.path.parent for file in right}:
        files.sync_directory(shard)
    entered = {file.path for file in right}
    for written, group in groupby(
        sorted(right, key=lambda file: file.written), key=lambda file: min(file.written, minute)
    ):
        batch = {
            NewBlob(
                file.digest.key, None, file.generation, os.stat(file.path).st_size, file.packed
            ): file.path
            for file in group
        }
        changes = Changes(written, blobs=list(batch))
        if unsent:
            changes.unsent = [blob.key for blob in batch]
            changes.second = 60 * minute
        known = index.apply(changes)
        entered -= {batch[blob] for blob in known}
    return entered


def _verified(files: Files, candidates: Sequence[BlobFile]) -> list[BlobFile]:
    """Those whose bytes are right; synced."""
    if not candidates:
        return []
    # Hashing and reading hold no lock of the interpreter's.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = pool.map(lambda file: _is_right(files, file), candidates)
        return [file for file, right in zip(candidates, outcomes, strict=True) if right]


def _is_right(files: Files, file: BlobFile) -> bool:
    fd = files.open_blob(str(file.path))
    if fd is None:
        return False
    try:
        verify_file(files, fd, file.digest, packed=file.packed)
        files.sync(fd)
    except DataLoss:
        return False
    finally:
        files.close(fd)
    return True


def verify_file(files: Files, fd: int, digest: Digest, *, packed: bool) -> None:
    """Reads an open blob's file and raises DataLoss unless its content is the digest's."""
    for _ in verifying(files, fd, digest, packed=packed):
        pass


def verifying(files: Files, fd: int, digest: Digest, *, packed: bool) -> Iterator[int]:
    """As `verify_file`, giving way after each piece: its bytes."""
    hasher: Hasher = digest.function.new()
    view = memoryview(bytearray(min(READ_BYTES, digest.size + 1)))
    size = 0
    try:
        read = (
            PackedReader(files, fd, digest.size).read_into
            if packed
            else partial(files.read_into, fd)
        )
        while size <= digest.size and (count := read(view, size)):
            hasher.update(view[:count])
            size += count
            yield count
    except OSError as error:
        if error.errno not in BAD_MEDIUM:
            raise
        raise DataLoss(f"blob {digest} cannot be read: {error.strerror}") from error
    check_stored(digest, hasher, size)


def verify_bytes(digest: Digest, data: bytes | bytearray | memoryview) -> None:
    """Raises DataLoss unless `data` are the digest's bytes."""
    hasher = digest.function.new()
    hasher.update(data)
    check_stored(digest, hasher, len(data))


def check_stored(digest: Digest, hasher: Hasher, size: int) -> None:
    """Raises DataLoss unless `size` bytes hashed by `hasher` are the digest's."""
    if size != digest.size:
        raise DataLoss(f"blob {digest} has {size} bytes on disk, or more")
    actual = hasher.digest()
    if actual != digest.hash:
        raise DataLoss(f"blob {digest} has bytes that hash to {actual.hex()}")
