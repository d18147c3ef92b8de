"""Blobs as zstd: ByteStream's `compressed-blobs`, and those of batches.

Rule: what a stream of zstd becomes is a plain upload, and what is sent is made of a plain blob;
no format is stored here.

REAPI counts in two ways.  Where a stream begins, Read or Write, is an offset in the content; what
a Write sends then adds its compressed length.  So what is kept of a broken upload is its content:
whoever goes on asks QueryWriteStatus for the content's committed size and sends a new stream of
zstd from there (Bazel does so), to whichever process there is then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from cas import digest as digests
from cas.api import wire
from cas.digest import Digest
from cas.errors import InvalidArgument
from cas.pb import remote_execution_pb2 as pb
from cas.reapi.blobs import arrived
from cas.store.interface import Blob, BlobStore, Buffer, Upload
from cas.zstd import Decoder, Packer, unpack

if TYPE_CHECKING:
    from cas.rpc.handler import Context, Runtime
    from cas.store.pending import Pending

IDENTITY: int = pb.Compressor.IDENTITY
ZSTD: int = pb.Compressor.ZSTD

WHOLE_BYTES = 4 << 20
"""Content of a Write of one message that is held in memory; larger content goes to staging."""

_DECODE_AT_ONCE = 256 << 10
"""Bytes of zstd that wait for a helper thread."""
_LITTLE = 2 << 20
"""Content that may be decoded where nobody waits for it any more."""

WORTHWHILE = 0.9
"""A batch's blob that stays larger than this share of itself is sent as it is, …"""
LEAST = 1024
"""… and so are smaller ones, in bytes."""


def check_limit(limit: int) -> None:
    """REAPI: a read_limit is an error."""
    if limit:
        raise InvalidArgument(f"read_limit is {limit}, expected 0 for compressed data")


async def send(
    blob: Blob,
    offset: int,
    packer: Packer,
    piece_bytes: Callable[[], int],
    runtime: Runtime,
    context: Context,
) -> None:
    """Sends what follows `offset`: a frame for each piece, so that a stream which nobody takes
    holds a piece, and no encoder."""

    def piece(start: int) -> tuple[int, bytes]:
        view = memoryview(bytearray(min(piece_bytes(), blob.size - start)))
        count = blob.read_into(view, start)
        return start + count, packer.pack(view[:count])

    while True:
        await arrived(runtime, blob, offset)
        offset, packed = await runtime.offload(piece, offset)
        await context.write(wire.read_response(packed))
        if offset == blob.size:
            return


def begin(store: BlobStore, name: str, digest: Digest, offset: int, data: Buffer) -> Upload:
    """*Blocking.*  As `BlobStore.upload`, with `data` as zstd and `offset` in the content."""
    # An offset that cannot be is the store's to refuse, with what it expects.
    decoder = Decoder(digest.size - offset if 0 <= offset <= digest.size else digest.size)
    pieces = decoder.decode(data)
    # Whoever takes an upload over brings bytes of its own.
    upload = store.upload(name, digest, offset, next(pieces, b""))
    compressed = CompressedUpload(upload, decoder, offset + len(data))
    compressed.take(pieces)
    return compressed


class CompressedUpload:
    """See `interface.Upload`; takes zstd.  `offset` counts as a Write's `write_offset` does, and
    `suspend` tells the content's committed size."""

    __slots__ = ("_decoder", "_upload", "_waiting", "_waiting_bytes", "digest", "offset")

    def __init__(self, upload: Upload, decoder: Decoder, offset: int) -> None:
        self._upload = upload
        self._decoder = decoder
        self._waiting: list[Buffer] = []
        self._waiting_bytes = 0
        self.digest = upload.digest
        self.offset = offset

    def append(self, data: Buffer, /) -> bool:
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        self.offset += len(data)
        return self._waiting_bytes >= _DECODE_AT_ONCE

    def flush(self) -> None:
        self._decode()

    def finish(self) -> Pending[None]:
        self._decode()
        try:
            self._decoder.end()
        except InvalidArgument:
            self._upload.discard()
            raise
        return self._upload.finish()

    def suspend(self, *, durable: bool = False) -> int:
        try:
            self._decode(None if durable else _LITTLE)
        finally:
            size = self._upload.suspend(durable=durable)
        return size

    def discard(self) -> None:
        self._waiting.clear()
        self._upload.discard()

    def take(self, pieces: Iterator[bytes], most: int | None = None) -> None:
        """*Blocking.*  Takes content, of which `most` bytes or a piece more if that is given.

        Where the rest is no zstd nothing of it can be trusted, and the upload is discarded.
        """
        taken = 0
        try:
            for piece in pieces:
                if self._upload.append(piece):
                    self._upload.flush()
                taken += len(piece)
                if most is not None and taken >= most:
                    return
        except InvalidArgument:
            self._upload.discard()
            raise

    def _decode(self, most: int | None = None) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if waiting:
            data = waiting[0] if len(waiting) == 1 else b"".join(waiting)
            self.take(self._decoder.decode(data), most)


# ---- Batches


def batch_bytes(batch: wire.BatchUpdate) -> int:
    """Bytes of a batch's blobs, of compressed ones those that they claim to become."""
    return sum(
        digests.from_key(key).size if compressor and isinstance(key, bytes) else len(data)
        for key, (_, data, compressor) in zip(batch.keys, batch.blobs, strict=True)
    )


def unpack_batch(batch: wire.BatchUpdate) -> wire.BatchUpdate:
    """The batch without compression; what cannot be decoded has the error as its key."""
    keys: list[bytes | InvalidArgument] = []
    blobs = []
    for key, (encoded, data, compressor) in zip(batch.keys, batch.blobs, strict=True):
        content = data
        if compressor and isinstance(key, bytes):
            try:
                content = memoryview(_unpack(key, data, compressor))
            except InvalidArgument as error:
                key = error  # noqa: PLW2901
        keys.append(key)
        blobs.append((encoded, content, IDENTITY))
    return wire.BatchUpdate(batch.instance_name, batch.digest_function, blobs, keys)


def _unpack(key: bytes, data: memoryview, compressor: int) -> bytes:
    if compressor != ZSTD:
        raise InvalidArgument(
            f"compressor {compressor} is not served; expected {IDENTITY} (identity) or "
            f"{ZSTD} (zstd)"
        )
    return unpack(data, digests.from_key(key).size)


BatchResult = tuple[bytes, bytes, int, str, int]
"""As `wire.batch_read_response` takes it."""


def pack_batch(results: Iterable[BatchResult], packer: Packer) -> list[BatchResult]:
    """The results, compressed where that is worthwhile."""
    return [_pack(result, packer) for result in results]


def _pack(result: BatchResult, packer: Packer) -> BatchResult:
    digest, data, code, message, _ = result
    if len(data) >= LEAST:
        packed = packer.pack(data)
        if len(packed) < WORTHWHILE * len(data):
            return digest, packed, code, message, ZSTD
    return result
