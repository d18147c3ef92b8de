"""zstd on the way: blobs of batches and streams, made and opened.

Rule: pure; callers run it on a helper thread.  What does not shrink is sent as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import zstandard

from cas import digest as digests
from cas import zstd
from cas.client.errors import RemoteError
from cas.client.source import PIECE, Blob, Reader
from cas.client.wire import Parcel
from cas.digest import Digest
from cas.errors import InvalidArgument
from cas.zstd import Packer

WORTHWHILE = 0.9
"""What stays larger than this share of itself is sent as it is; of a stream the beginning tells."""

SAMPLE = 16 << 10
"""The beginning of a blob of a batch, which tells whether to try all of it."""

LEAST = 1024
"""Smaller blobs are not worth it."""


def worthwhile(read: Reader, packer: Packer) -> bool:
    """Whether the blob's beginning says that it shrinks."""
    return _packed(read(0, PIECE // 4), packer) is not None


def parcels(blobs: Iterable[Blob], packer: Packer | None) -> list[Parcel]:
    """Reads the blobs of a batch, and compresses them if there is a packer."""
    return [_parcel(blob.digest, blob.source.whole(blob.digest.size), packer) for blob in blobs]


def _parcel(digest: Digest, data: bytes, packer: Packer | None) -> Parcel:
    if packer is not None and len(data) >= LEAST:
        tried = len(data) <= 2 * SAMPLE or _packed(data[:SAMPLE], packer) is not None
        packed = _packed(data, packer) if tried else None
        if packed is not None:
            return Parcel(digest, packed, zstd=True)
    return Parcel(digest, data)


def _packed(data: bytes, packer: Packer) -> bytes | None:
    """As a frame, if that is enough smaller."""
    packed = packer.pack(data)
    return packed if len(packed) < WORTHWHILE * len(data) else None


def content(parcel: Parcel) -> bytes:
    """The verified content of a blob that came in a batch; raises DigestMismatch, RemoteError."""
    data = parcel.data
    if parcel.zstd:
        try:
            data = zstd.unpack(data, parcel.digest.size)
        except InvalidArgument as error:
            raise _damaged(error) from None
    digests.verify(parcel.digest, data)
    return data


class Compressed:
    """A reader's bytes from `offset` on as one zstd frame."""

    def __init__(
        self,
        read: Reader,
        size: int,
        offset: int = 0,
        reach: Callable[[int], object] = lambda offset: None,
    ) -> None:
        """`reach` is told the offset up to which it was read."""
        self._read = read
        self._at = offset
        self._size = size
        self._reach = reach
        self._compressor = zstandard.ZstdCompressor(level=zstd.LEVEL).compressobj(
            size=size - offset
        )
        self._done = False

    def next(self) -> bytes:
        """The next piece; empty at the end."""
        while not self._done:
            # Exactly as many bytes as the digest says, also where the file has grown.
            piece = self._read(self._at, min(PIECE, self._size - self._at))
            self._at += len(piece)
            self._reach(self._at)
            if piece:
                out = self._compressor.compress(piece)
            else:
                self._done = True
                try:
                    out = self._compressor.flush()
                except zstandard.ZstdError:
                    raise InvalidArgument("the file has become shorter") from None
            if out:
                return out
        return b""


class Decompressor:
    """One or more frames as their content, which has at most `size` bytes."""

    def __init__(self, size: int) -> None:
        self._decoder = zstd.Decoder(size)

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """What `data` adds, in pieces; raises RemoteError when it is not zstd, or too much."""
        try:
            yield from self._decoder.decode(data)
        except InvalidArgument as error:
            raise _damaged(error) from None


def _damaged(error: InvalidArgument) -> RemoteError:
    return RemoteError(f"what the remote sent cannot be decompressed: {error}")
