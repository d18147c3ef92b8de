"""Streams of zstd, decoded in bounded pieces; zstandard's own reader is the other opinion."""

from __future__ import annotations

import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.errors import InvalidArgument
from cas.zstd import PIECE_BYTES, Decoder, Packer, unpack

SKIPPABLE = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"

bounded = settings(max_examples=60, derandomize=True, deadline=None)

contents = st.builds(
    lambda seed, length, letters: bytes(random.Random(seed).choices(range(letters), k=length)),
    st.integers(0, 99),
    st.sampled_from([0, 1, 100, 5_000, 400_000]),
    st.sampled_from([1, 4, 256]),
)
frames = st.builds(
    lambda content, level, checksum, sized: (
        content,
        zstandard.ZstdCompressor(
            level=level, write_checksum=checksum, write_content_size=sized
        ).compress(content),
    ),
    contents,
    st.sampled_from([-5, 1, 3]),
    st.booleans(),
    st.booleans(),
)
streams = st.lists(frames | st.just((b"", SKIPPABLE)), max_size=4).map(
    lambda parts: (b"".join(p[0] for p in parts), b"".join(p[1] for p in parts))
)


def fed(decoder: Decoder, stream: bytes, step: int) -> bytes:
    out = []
    for at in range(0, len(stream), step):
        for piece in decoder.decode(stream[at : at + step]):
            assert 0 < len(piece) <= PIECE_BYTES
            out.append(piece)
    decoder.end()
    return b"".join(out)


@bounded
@given(streams, st.sampled_from([1, 3, 100, 4_096, 1 << 30]))
def test_streams_whole_and_in_parts(stream: tuple[bytes, bytes], step: int) -> None:
    content, packed = stream
    if len(packed) > 20_000:
        step = max(step, 100)
    assert fed(Decoder(len(content)), packed, step) == content


@bounded
@given(streams, st.data())
def test_what_is_cut_or_followed_is_refused(
    stream: tuple[bytes, bytes], data: st.DataObject
) -> None:
    content, packed = stream
    with pytest.raises(InvalidArgument):
        unpack(
            packed + data.draw(st.sampled_from([b"\0", b"(", b"more than that", bytes(9)])), 1 << 30
        )
    if content:
        with pytest.raises(InvalidArgument, match=f"than the {len(content) - 1} bytes expected"):
            unpack(packed, len(content) - 1)


@bounded
@given(frames, st.data())
def test_a_frame_that_is_cut_is_refused(frame: tuple[bytes, bytes], data: st.DataObject) -> None:
    content, packed = frame
    cut = data.draw(st.integers(1, len(packed) - 1))
    with pytest.raises(InvalidArgument, match="ends within a frame"):
        unpack(packed[:cut], len(content))


@bounded
@given(frames, st.data())
def test_damage_is_refused_or_decoded_as_the_library_does(
    frame: tuple[bytes, bytes], data: st.DataObject
) -> None:
    packed = bytearray(frame[1])
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, min(len(packed) - 1, 40)))] = data.draw(st.integers(0, 255))
    try:
        ours = unpack(packed, 1 << 22)
    except InvalidArgument:
        return
    reader = zstandard.ZstdDecompressor().stream_reader(bytes(packed), read_across_frames=True)
    assert reader.read() == ours


def test_a_bomb_costs_no_more_than_it_may_become() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    assert len(bomb) < 10_000
    pieces = Decoder(5 << 20).decode(bomb)
    taken = sum(len(next(pieces)) for _ in range(5))
    with pytest.raises(InvalidArgument, match="than the 5242880 bytes expected"):
        taken += sum(len(piece) for piece in pieces)
    assert 4 << 20 < taken <= 5 << 20


@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_frames_tell_their_size(size: int) -> None:
    packer = Packer()
    for _ in range(2):
        packed = packer.pack(bytes(size))
        assert zstandard.frame_content_size(packed) == size
        assert zstandard.decompress(packed) == bytes(size)


def test_a_dictionary_that_is_not_here() -> None:
    samples: list[bytes | bytearray | memoryview] = [
        random.Random(n).randbytes(20) * 20 for n in range(200)
    ]
    dictionary = zstandard.train_dictionary(4_096, samples)
    packed = zstandard.ZstdCompressor(dict_data=dictionary).compress(samples[0])
    with pytest.raises(InvalidArgument, match="needs dictionary"):
        unpack(packed, 400)
