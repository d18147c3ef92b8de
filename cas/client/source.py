"""Where a blob's bytes come from: memory, or a file that is read piece by piece.

Rule: a source can be read again from any offset, since an upload may resume; reading blocks,
so callers do it on a helper thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cas.digest import SHA256, Digest, Function, make

PIECE = 1 << 20
"""Bytes that are read, hashed and sent at a time: what a message may hold everywhere
(gRPC's default limit is 4 MiB) and enough to make the cost of a message small."""

Reader = Callable[[int, int], bytes]
"""(offset, most bytes) → bytes; fewer only at the end."""


class Source(Protocol):
    """Bytes that can be read again."""

    @contextmanager
    def open(self) -> Iterator[Reader]: ...

    def whole(self, size: int) -> bytes:
        """The first `size` bytes, of a small blob that is all of it."""
        ...


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes in memory."""

    data: bytes

    def __str__(self) -> str:
        return f"{len(self.data)} bytes in memory"

    @contextmanager
    def open(self) -> Iterator[Reader]:
        yield lambda offset, size: self.data[offset : offset + size]

    def whole(self, size: int) -> bytes:
        return self.data[:size]


@dataclass(frozen=True, slots=True)
class File:
    """A regular file."""

    path: Path | str

    def __str__(self) -> str:
        return str(self.path)

    @contextmanager
    def open(self) -> Iterator[Reader]:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield lambda offset, size: _pread(fd, size, offset)
        finally:
            os.close(fd)

    def whole(self, size: int) -> bytes:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _pread(fd, size, 0)
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Blob:
    """A digest and where its bytes are."""

    digest: Digest
    source: Source


def of_bytes(data: bytes, function: Function = SHA256) -> Blob:
    return Blob(make(function, function.hash(data), len(data)), Bytes(data))


def of_file(path: Path | str, function: Function = SHA256) -> Blob:
    """Hashes the file."""
    source = File(path)
    with source.open() as read:
        return Blob(hash_all(read, function), source)


def hash_all(read: Reader, function: Function = SHA256) -> Digest:
    """The digest of everything that `read` gives."""
    hasher = function.new()
    size = 0
    while piece := read(size, PIECE):
        hasher.update(piece)
        size += len(piece)
    return make(function, hasher.digest(), size)


def _pread(fd: int, size: int, offset: int) -> bytes:
    piece = os.pread(fd, size, offset)
    if not piece or len(piece) == size:
        return piece
    # A signal or a network's file system may cut a read short before the end.
    pieces = [piece]
    while piece and (size := size - len(piece)):
        offset += len(piece)
        piece = os.pread(fd, size, offset)
        pieces.append(piece)
    return b"".join(pieces)
