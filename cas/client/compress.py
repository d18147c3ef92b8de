"""zstd for streams: pieces in, pieces out.

Rule: pure; callers run it on a helper thread.  Level 1: the network is to be spared, and
the server is asked to keep up.
"""

from __future__ import annotations

from collections.abc import Callable

import zstandard

from cas.client.errors import RemoteError
from cas.client.source import PIECE, Reader

LEVEL = 1

WORTHWHILE = 0.9
"""A first piece that stays larger than this share of itself is sent as it is."""

LEAST = 4096
"""Smaller blobs are not worth it."""


def worthwhile(read: Reader) -> bool:
    """Whether the blob's beginning says that it shrinks."""
    sample = read(0, PIECE // 4)
    return len(zstandard.ZstdCompressor(level=LEVEL).compress(sample)) < WORTHWHILE * len(sample)


class Compressed:
    """A reader's bytes as one zstd frame."""

    def __init__(
        self, read: Reader, size: int, reach: Callable[[int], object] = lambda offset: None
    ) -> None:
        self._read = read
        self._at = 0
        self._reach = reach
        self._compressor = zstandard.ZstdCompressor(level=LEVEL).compressobj(size=size)
        self._done = False

    def next(self) -> bytes:
        """The next piece; empty at the end."""
        while not self._done:
            piece = self._read(self._at, PIECE)
            self._at += len(piece)
            self._reach(self._at)
            if piece:
                out = self._compressor.compress(piece)
            else:
                out = self._compressor.flush()
                self._done = True
            if out:
                return out
        return b""


class Decompressor:
    """One or more frames as their content."""

    def __init__(self) -> None:
        self._frame = zstandard.ZstdDecompressor().decompressobj()

    def feed(self, data: bytes | memoryview) -> bytes:
        """What `data` adds; raises RemoteError when it is not zstd."""
        out = []
        while data:
            try:
                out.append(self._frame.decompress(data))
            except zstandard.ZstdError as error:
                raise RemoteError(f"the remote sent damaged zstd: {error}") from None
            if not self._frame.eof:
                break
            data = self._frame.unused_data
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        return b"".join(out)
