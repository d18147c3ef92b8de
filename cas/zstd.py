"""zstd (RFC 8878) as it comes and goes: frames made, and streams of them decoded.

Rule: pure; neither files nor protocols.  What is decoded comes in pieces of at most
`PIECE_BYTES`, whatever a stream would become, and no more than its declared size.

The library decodes all that it is given at once, and a thousand bytes may become 32 MiB.
So a stream is cut where its blocks begin, each of which becomes 128 KiB at most (section
3.1.1.2); that also tells exactly where frames end.
"""

from __future__ import annotations

from collections.abc import Iterator

import zstandard

from cas.errors import InvalidArgument

LEVEL = 1
"""What a frame is made with unless something else is said: the network is to be spared, and the
server to keep up."""

MAX_WINDOW = 32 << 20
"""Memory that a frame may ask for to be decoded, bytes.  RFC 8878 recommends that decoders take
8 MiB, which no level below 20 exceeds; Go's encoder asks for 32 at its best."""

PIECE_BYTES = 1 << 20

_MAX_BLOCK_BYTES = 128 << 10
_BLOCKS_AT_ONCE = PIECE_BYTES // _MAX_BLOCK_BYTES - 1
"""Block headers in what is decoded at once: another block may reach into it."""
_SKIPPABLE = b"\x2a\x4d\x18"
_MIN_FRAME_HEADER = 5
_MAX_FRAME_HEADER = 18
_BLOCK_HEADER = 3
_CHECKSUM = 4
_RLE, _RESERVED = 1, 3

Buffer = bytes | bytearray | memoryview


class Packer:
    """Makes frames.  For any number of threads."""

    def __init__(self, level: int = LEVEL) -> None:
        self._level = level
        self._idle: list[zstandard.ZstdCompressor] = []
        """As many as ever worked at once: each has its tables, which are not made anew."""

    def pack(self, data: Buffer) -> bytes:
        """One frame, which tells its content's size."""
        try:
            compressor = self._idle.pop()
        except IndexError:
            compressor = zstandard.ZstdCompressor(level=self._level)
        try:
            return compressor.compress(data)
        finally:
            self._idle.append(compressor)


class Decoder:
    """A stream of any number of frames, in parts of any size, as its content."""

    def __init__(self, most: int) -> None:
        """`most` is the size, in bytes, that the content may have."""
        self._most = most
        self._size = 0
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        """None between frames, and in one that is to be skipped."""
        self._rest = b""
        """Part of a header, to be looked at with what follows."""
        self._body = 0
        """Bytes before the next header."""
        self._is_last = False
        """Whether the block that `_body` is of is its frame's last."""
        self._has_checksum = False

    def decode(self, data: Buffer) -> Iterator[bytes]:
        """The content that `data` adds; what is not asked for is not decoded yet, and lost.

        Raises InvalidArgument where it is no zstd, has more than `most` bytes, or cannot be
        decoded for its window or its dictionary.
        """
        view = memoryview(b"".join((self._rest, data)) if self._rest else data)
        self._rest = b""
        start = at = blocks = 0
        while True:
            if self._body:
                count = min(self._body, len(view) - at)
                self._body -= count
                at += count
                if self._body:
                    break
            if self._frame is None:
                start = at
                at += self._frame_header(view[at:])
                if at == start:
                    break
            elif self._is_last:
                yield from self._decoded(view[start:at])
                if not self._frame.eof:
                    raise InvalidArgument("the zstd data is damaged: a frame does not end")
                self._frame, self._is_last = None, False
            else:
                if blocks == _BLOCKS_AT_ONCE:
                    yield from self._decoded(view[start:at])
                    start, blocks = at, 0
                if len(view) - at < _BLOCK_HEADER:
                    break
                self._block_header(view[at : at + _BLOCK_HEADER])
                at += _BLOCK_HEADER
                blocks += 1
        self._rest = bytes(view[at:])
        if self._frame is not None:
            yield from self._decoded(view[start:at])

    def end(self) -> None:
        """Raises InvalidArgument where the stream ends within a frame."""
        if self._frame is not None or self._rest or self._body:
            raise InvalidArgument(
                f"the zstd data ends within a frame, behind {self._size} bytes of content"
            )

    def _decoded(self, part: memoryview) -> Iterator[bytes]:
        assert self._frame is not None
        try:
            data = self._frame.decompress(part)
        except zstandard.ZstdError as error:
            raise InvalidArgument(f"the zstd data is damaged: {error}") from None
        self._size += len(data)
        if self._size > self._most:
            raise InvalidArgument(
                f"the zstd data has more content than the {self._most} bytes expected"
            )
        if data:
            yield data

    def _frame_header(self, view: memoryview) -> int:
        """Begins a frame; the length of its header, 0 where not all of it is there yet."""
        if len(view) < _MIN_FRAME_HEADER:
            return 0
        if view[1:4] == _SKIPPABLE and view[0] & 0xF0 == 0x50:
            if len(view) < 8:
                return 0
            self._body = int.from_bytes(view[4:8], "little")
            return 8
        head = bytes(view[:_MAX_FRAME_HEADER])
        try:
            length = zstandard.frame_header_size(head)
            if len(head) < length:
                return 0
            frame = zstandard.get_frame_parameters(head)
        except zstandard.ZstdError as error:
            raise InvalidArgument(f"no zstd frame begins with {head[:4].hex()}: {error}") from None
        if frame.window_size > MAX_WINDOW:
            raise InvalidArgument(
                f"the zstd data asks for a window of {frame.window_size} bytes; expected at most "
                f"{MAX_WINDOW}"
            )
        if frame.dict_id:
            raise InvalidArgument(f"the zstd data needs dictionary {frame.dict_id}; expected none")
        self._has_checksum = frame.has_checksum
        self._frame = self._decompressor.decompressobj()
        return length

    def _block_header(self, view: memoryview) -> None:
        header = int.from_bytes(view, "little")
        kind, size = header >> 1 & 3, header >> 3
        if kind == _RESERVED or size > _MAX_BLOCK_BYTES:
            raise InvalidArgument(f"the zstd data is damaged: a block of kind {kind}, {size} bytes")
        self._is_last = bool(header & 1)
        self._body = 1 if kind == _RLE else size
        if self._is_last and self._has_checksum:
            self._body += _CHECKSUM


def unpack(data: Buffer, size: int) -> bytes:
    """The content, at most `size` bytes, of what is all there; raises InvalidArgument."""
    decoder = Decoder(size)
    content = b"".join(decoder.decode(data))
    decoder.end()
    return content
