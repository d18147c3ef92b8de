"""FastCDC 2020: the paper's algorithm written out plainly is the other opinion."""

from __future__ import annotations

import hashlib
import io
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas import fastcdc

bounded = settings(max_examples=60, derandomize=True, deadline=None)

KIB = 1 << 10

GEAR = [int.from_bytes(hashlib.md5(bytes((byte,)) * 64).digest()[:8], "big") for byte in range(256)]
"""REAPI: the high 64 bits of MD5(byte); of the byte 64 times, as the vectors tell."""

MASKS = {
    8: 0x0000001800035300,
    10: 0x0000590003530000,
    12: 0x0000D90103530000,
    14: 0x0000D90313530000,
    16: 0x0000D90303537000,
    17: 0x0000D90703537000,
    21: 0x0000D91767537000,
}
"""By the bits of an average: the C code that came with the paper."""


def plain_cuts(data: bytes, average: int) -> Iterator[int]:
    """The lengths of the chunks, with normalization 2 and no seed."""
    smallest, largest = average // 4, average * 4
    bits = average.bit_length() - 1
    before, behind = MASKS[bits + 2], MASKS[bits - 2]
    while data:
        here = data[:largest]
        length = len(here)
        gear = 0
        # By two bytes at a time: the last one of an odd number is not looked at.
        for at in range(smallest, length // 2 * 2):
            gear = (gear << 1) + GEAR[here[at]] & (1 << 64) - 1
            if not gear & (before if at < min(average, length) // 2 * 2 else behind):
                length = at
                break
        yield length
        data = data[length:]


VECTORS = {
    0: """
0 19186 0f9efa589121d5d9e9e2c4ace91337d77cae866537143f6f15a0ffd525a77c2d 17583755766661134474
19186 19279 c7c86a165573c16448cda35c9169742e85645af42be22889f8b96b8ee0ec7cb0 4098594969649699419
38465 17354 bc88521e28a8b4479cdea5f75aa721a24f3a0a7d0be903aa6d505c574e51e89d 2365586132076908760
55819 16387 4b8dac2652e4685c629d2bb1ae9d4448e676b86f2e67ca0b2fff3d9580184b79 16009206469796846404
72206 19940 c0a7062da6f2386c28e086ee0cedd5732252741269838773cff1ddb05b2df6ed 2473608525189754172
92146 17320 7fa5b12134dc75cd2ac8dc60d3a8f3c8d22f0ee9d4cf74a4aa937e2a0d2d79a5 2504464741100432583
""",
    666: """
0 17635 cb3a9d80a3569772d4ed331ca37ab0c862c759897b890fc1aac90a4f2ea3a407 17021115692437263050
17635 17334 d758c6b7b0b7eef1e996f8ccd17de6c645360b03a26c35541e7581348ac08944 8231525949846907466
34969 19136 24846aefd89e510594bae3e9d7d5ea5012067601512610fed126a3c57ba993f5 10944310959829698982
54105 17467 efa785e1fefb49f190e665f72fd246c1442079874508c312196da1fb3040d00b 13602876513398592944
71572 23593 a2f557bdd8d40d8faada963ad5f91ec54b10ccee7c5ae72754a65137592dc607 2945079350535657389
95165 14301 e131100b4a7147ccad19dc63c4a2fac1f5d8b644e1373eeb6803825024234efc 8981594897574481255
""",
}
"""By seed, the chunks of `PICTURE` at 16 KiB: the reference's fastcdc2020_test_vectors.txt."""
PICTURE = Path(__file__).parent / "fixtures" / "SekienAkashita.jpg"
"""The picture that the vectors are of, which every implementation is tested with: a print of
1776 by Toriyama Sekien, in the public domain."""
PICTURE_SHA256 = "d9e749d9367fc908876749d6502eb212fee88c9a94892fb07da5ef3ba8bc39ed"


@pytest.mark.parametrize("seed", VECTORS)
def test_reapis_vectors(seed: int) -> None:
    picture = PICTURE.read_bytes()
    assert hashlib.sha256(picture).hexdigest() == PICTURE_SHA256
    found = [
        f"{c.offset} {c.length} {hashlib.sha256(c.data).hexdigest()} {c.gear_hash}"
        for c in fastcdc.cut(io.BytesIO(picture), 16 * KIB, seed)
    ]
    assert found == VECTORS[seed].strip().splitlines()
    if seed == fastcdc.SEED:
        assert list(plain_cuts(picture, 16 * KIB)) == cuts(picture, 16 * KIB)


def cuts(data: bytes, average: int) -> list[int]:
    return [chunk.length for chunk in fastcdc.cut(io.BytesIO(data), average)]


contents = st.builds(
    lambda seed, length, letters: bytes(random.Random(seed).choices(range(letters), k=length)),
    st.integers(0, 99),
    st.sampled_from([0, 1, 255, 256, 257, 1_000, 5_001, 40_000]),
    st.sampled_from([1, 4, 256]),
)


@bounded
@given(contents, st.sampled_from([1 * KIB, 4 * KIB]))
def test_cuts_are_the_papers(data: bytes, average: int) -> None:
    assert cuts(data, average) == list(plain_cuts(data, average))


@bounded
@given(contents)
def test_chunks_make_up_the_content(data: bytes) -> None:
    found = [(c.offset, bytes(c.data)) for c in fastcdc.cut(io.BytesIO(data), KIB)]
    assert b"".join(part for _, part in found) == data
    sizes = [len(part) for _, part in found]
    assert [offset for offset, _ in found] == [0, *itertools.accumulate(sizes)][: len(found)]
    smallest, _, largest = fastcdc.sizes(KIB)
    assert all(smallest <= size <= largest for size in sizes[:-1])
    assert all(0 < size <= largest for size in sizes)


def test_a_change_changes_the_chunks_near_it_only() -> None:
    data = random.Random(3).randbytes(400 * KIB)
    changed = data[:150_000] + b"something else" + data[150_000:]

    def chunks(content: bytes) -> set[bytes]:
        return {bytes(c.data) for c in fastcdc.cut(io.BytesIO(content), 16 * KIB)}

    before, after = chunks(data), chunks(changed)
    assert len(after - before) <= 3
    assert len(after) > 15


def test_a_source_may_give_less_than_it_is_asked_for() -> None:
    data = random.Random(4).randbytes(100_000)

    class Trickle(io.BytesIO):
        def readinto(self, view: memoryview, /) -> int:  # type: ignore[override]
            return super().readinto(view[:777])

    parts = [bytes(chunk.data) for chunk in fastcdc.cut(Trickle(data), 4 * KIB)]
    assert [len(part) for part in parts] == cuts(data, 4 * KIB)
    assert b"".join(parts) == data


def test_what_a_source_raises_passes() -> None:
    class Broken(io.BytesIO):
        def readinto(self, view: memoryview, /) -> int:  # type: ignore[override]
            if self.tell() > 50_000:
                raise OSError("the disk is gone")
            return super().readinto(view[:10_000])

    with pytest.raises(OSError, match="the disk is gone"):
        list(fastcdc.cut(Broken(random.Random(5).randbytes(200_000)), KIB))


@pytest.mark.parametrize("average", [1 * KIB, 64 * KIB, 512 * KIB, 1 * KIB * KIB])
def test_every_average_that_may_be_advertised(average: int) -> None:
    smallest, _, largest = fastcdc.sizes(average)
    found = cuts(random.Random(6).randbytes(5 << 20), average)
    assert sum(found) == 5 << 20
    assert max(found) <= largest
    assert min(found[:-1], default=smallest) >= smallest
