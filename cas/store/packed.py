"""Blobs' files that hold zstd: frames of a bounded size, and a table of them at the end.

Rule: the format is zstd's own seekable one (contrib/seekable_format, 0.1.0): independent frames,
and in a skippable frame behind them each one's sizes, so that any zstd tool decodes the file, and
a read decodes the frames that it touches and no other.  Who may write where is `uploads`'.

What does not shrink is not kept so: the first frame is the sample.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import zstandard

from cas.digest import Digest
from cas.errors import DataLoss, InvalidArgument
from cas.store.admission import Admission
from cas.store.files import Files
from cas.store.interface import Buffer
from cas.zstd import Packer, unpack

FRAME_BYTES = 256 << 10
"""Content of one frame at most: what the smallest read decodes."""
WORTHWHILE = 0.9
"""A blob whose first frame takes more than this share of its content is kept as it is."""

LEAST = 512
"""Smaller blobs are kept in the index as they are, in bytes: there is little to save."""

_TABLE_MAGIC = 0x184D2A5E
_FOOTER_MAGIC = 0x8F92EAB1
_HEAD = struct.Struct("<II")
_ENTRY = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")


def table(frames: Sequence[tuple[int, int]]) -> bytes:
    """The skippable frame that ends a file of frames with these (packed, content) sizes."""
    entries = b"".join([_ENTRY.pack(*sizes) for sizes in frames])
    return b"".join(
        (
            _HEAD.pack(_TABLE_MAGIC, len(entries) + _FOOTER.size),
            entries,
            _FOOTER.pack(len(frames), 0, _FOOTER_MAGIC),
        )
    )


def pack_whole(data: Buffer, packer: Packer) -> bytes | None:
    """The file of a blob that is all there; None where that is not worthwhile."""
    sizes: list[tuple[int, int]] = []
    with memoryview(data) as view:
        frames = _frames(view, packer, sizes)
    return None if frames is None else b"".join((*frames, table(sizes)))


def _frames(view: memoryview, packer: Packer, sizes: list[tuple[int, int]]) -> list[bytes] | None:
    """The frames of the next content, whose sizes are added to those before; None where the first
    of all was not worthwhile."""
    frames = []
    for at in range(0, len(view), FRAME_BYTES):
        content = view[at : at + FRAME_BYTES]
        frames.append(packer.pack(content))
        sizes.append((len(frames[-1]), len(content)))
        if not _is_worthwhile(sizes[0]):
            return None
    return frames


def _is_worthwhile(sizes: tuple[int, int]) -> bool:
    packed, content = sizes
    return packed <= WORTHWHILE * content


def pack_small(data: bytes, packer: Packer) -> bytes | None:
    """A frame for the index; None where it is not worthwhile."""
    if len(data) < LEAST:
        return None
    packed = packer.pack(data)
    return packed if _is_worthwhile((len(packed), len(data))) else None


def unpack_stored(digest: Digest, packed: bytes) -> bytes:
    """What a frame of the index holds; raises DataLoss."""
    try:
        return unpack(packed, digest.size)
    except InvalidArgument as error:
        raise DataLoss(f"blob {digest} is damaged in the index: {error}") from None


class PackedWriter:
    """A file of frames as it grows.  *Blocking*; closed by one of its last three methods."""

    __slots__ = ("_admission", "_at", "_fd", "_files", "_packer", "_sizes", "path")

    def __init__(self, files: Files, admission: Admission, packer: Packer, path: str) -> None:
        """Makes the file `path` when its first frame is worthwhile."""
        self._files = files
        self._admission = admission
        self._packer = packer
        self._sizes: list[tuple[int, int]] = []
        self._fd: int | None = None
        self._at = 0
        self.path = path

    def add(self, view: memoryview) -> bool:
        """Takes the next content; False, with nothing left of the file, where that is not
        worthwhile."""
        frames = _frames(view, self._packer, self._sizes)
        if frames is None:
            return False
        self._write(frames)
        return True

    def finish(self) -> tuple[int, int]:
        """The file's descriptor, which is the caller's now, and its size."""
        self._write([table(self._sizes)])
        fd = self._fd
        assert fd is not None
        self._fd = None
        return fd, self._at

    def discard(self) -> None:
        """Removes what there is."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            self._files.remove(self.path)
            self._files.close(fd)

    def _write(self, parts: list[bytes]) -> None:
        if self._fd is None:
            self._fd = self._files.create(self.path)
            if self._fd is None:
                raise FileExistsError(f"{self.path} exists")
            self._files.hold(self._fd)
        size = sum(map(len, parts))
        self._admission.reserve(size)
        try:
            self._at = self._files.write(self._fd, parts, self._at)
        except BaseException:
            self._admission.release(size)
            raise
        self._admission.written(size)


class PackedReader:
    """An open file of frames.  Every method may wait for the disk and raises DataLoss for what
    is damaged; one caller at a time."""

    __slots__ = (
        "_content",
        "_decompressor",
        "_fd",
        "_files",
        "_last",
        "_offsets",
        "decoded",
        "size",
    )

    def __init__(self, files: Files, fd: int, size: int) -> None:
        """`size` is the content's."""
        self._files = files
        self._fd = fd
        self._offsets, self._content = _read_table(files, fd, size)
        self._decompressor = zstandard.ZstdDecompressor()
        self._last: tuple[int, bytes] | None = None
        """A frame that was not read to its end, and its number."""
        self.size = size
        self.decoded = 0
        """Frames decoded so far."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """As `Blob.read_into`."""
        done = 0
        end = min(len(view), self.size - offset)
        while done < end:
            number = bisect_right(self._content, offset + done) - 1
            data = self._frame(number)
            start = offset + done - self._content[number]
            part = memoryview(data)[start : start + end - done]
            view[done : done + len(part)] = part
            done += len(part)
            self._last = (number, data) if start + len(part) < len(data) else None
        return done

    def _frame(self, number: int) -> bytes:
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        start, end = self._offsets[number], self._offsets[number + 1]
        packed = _read(self._files, self._fd, start, end)
        size = self._content[number + 1] - self._content[number]
        self.decoded += 1
        try:
            # Before it is given that much memory.
            if zstandard.frame_content_size(packed) != size:
                raise DataLoss(f"frame {number} is not of {size} bytes")
            data = self._decompressor.decompress(packed, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise DataLoss(f"frame {number} is damaged: {error}") from None
        if len(data) != size:
            raise DataLoss(f"frame {number} has {len(data)} bytes, expected {size}")
        return data


def _read_table(files: Files, fd: int, size: int) -> tuple[array[int], array[int]]:
    """Where each frame begins, in the file and in the content of `size` bytes, and where the last
    one ends."""
    length = files.size(fd)
    end = length - _FOOTER.size
    if end < 0:
        raise DataLoss("it ends before its table of frames")
    count, flags, magic = _FOOTER.unpack(_read(files, fd, end, length))
    begin = end - count * _ENTRY.size - _HEAD.size
    if magic != _FOOTER_MAGIC or flags or begin < 0 or count > size:
        raise DataLoss("its table of frames is damaged")
    raw = _read(files, fd, begin, end)
    head = _HEAD.unpack_from(raw)
    sizes = struct.unpack_from(f"<{2 * count}I", raw, _HEAD.size)
    offsets = array("Q", accumulate(sizes[::2], initial=0))
    content = array("Q", accumulate(sizes[1::2], initial=0))
    if (
        head != (_TABLE_MAGIC, count * _ENTRY.size + _FOOTER.size)
        or offsets[-1] != begin
        or content[-1] != size
        or not all(0 < part <= FRAME_BYTES for part in sizes[1::2])
    ):
        raise DataLoss("its table of frames does not fit the file")
    return offsets, content


def _read(files: Files, fd: int, start: int, end: int) -> bytearray:
    """Bytes `start` to `end` of the file."""
    data = bytearray(end - start)
    view, at = memoryview(data), 0
    while at < len(view):
        count = files.read_into(fd, view[at:], start + at)
        if not count:
            raise DataLoss(f"it ends at byte {start + at}, expected {end} bytes or more")
        at += count
    return data
