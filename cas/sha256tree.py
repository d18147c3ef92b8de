"""SHA256TREE: REAPI's Merkle tree over SHA-256.

Rule: pure; nothing of ours is imported.  The rule for the tree is REAPI's comment on
`DigestFunction.SHA256TREE`: leaves of 1 KiB are plain SHA-256; a node is SHA-256's block cipher,
with initial values of its own and without the final addition, over its two children.

No library gives the bare cipher.  Here one call computes many nodes: each of its variables is one
large integer that holds the word of every node in a lane of 64 bits, where sums of 32-bit words
have room.  Per node that costs a hundredth of what one after the other would.
"""

from __future__ import annotations

import hashlib
from math import isqrt
from typing import Final

LEAF: Final = 1024
"""Bytes under one leaf."""

_TOGETHER: Final = 1024
"""Leaves hashed before their nodes are: integers beyond this leave the processor's caches."""


class Sha256Tree:
    """Has what hashlib's objects have."""

    __slots__ = ("_levels", "_size", "_tail")

    def __init__(self) -> None:
        self._tail = b""
        """What came behind the last whole leaf."""
        self._levels: list[bytes] = []
        """For each height, the subtree of 2^height leaves that has no sibling yet, or nothing."""
        self._size = 0

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Goes on with more bytes."""
        with memoryview(data) as view:
            self._size += len(view)
            at = 0
            if self._tail:
                at = min(len(view), LEAF - len(self._tail))
                self._tail += view[:at]
                if len(self._tail) < LEAF:
                    return
                self._grow(_leaves(self._tail))
                self._tail = b""
            end = len(view) - (len(view) - at) % LEAF
            for start in range(at, end, _TOGETHER * LEAF):
                self._grow(_leaves(view[start : min(end, start + _TOGETHER * LEAF)]))
            self._tail = bytes(view[end:])

    def digest(self) -> bytes:
        """The hash of what came; more may follow."""
        # From the right: the left half of a tree is the largest power of two that leaves a rest.
        root = _leaves(self._tail) if self._tail or not self._size else b""
        for level in self._levels:
            if level:
                root = _nodes(level + root) if root else level
        return root

    def _grow(self, hashes: bytes) -> None:
        """Adds subtrees, lowest first: `hashes` of leaves, then of what they make."""
        height = 0
        while hashes:
            if height == len(self._levels):
                self._levels.append(b"")
            hashes = self._levels[height] + hashes
            paired = len(hashes) // 64 * 64
            self._levels[height] = hashes[paired:]
            hashes = _nodes(hashes[:paired]) if paired else b""
            height += 1


def hash_of(data: bytes | bytearray | memoryview) -> bytes:
    """32 bytes."""
    hasher = Sha256Tree()
    hasher.update(data)
    return hasher.digest()


def _leaves(data: bytes | memoryview) -> bytes:
    """The hashes of `data`'s leaves, one after the other; one of no bytes where there are none."""
    return b"".join(
        [
            hashlib.sha256(data[at : at + LEAF], usedforsecurity=False).digest()
            for at in range(0, len(data) or 1, LEAF)
        ]
    )


def _nodes(pairs: bytes) -> bytes:
    """The hashes of nodes, from those of their children: 32 bytes for each 64."""
    count = len(pairs) // 64
    ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * count, "little")
    mask = ones * 0xFFFFFFFF
    words = _schedule(pairs, count, mask)
    a, b, c, d, e, f, g, h = (ones * word for word in _INITIAL)
    for constant, word in zip(_CONSTANTS, words, strict=True):
        # Twice over in its lane, a word is rotated by one shift.
        twice = e | e << 32
        rotated = (twice >> 6 ^ twice >> 11 ^ twice >> 25) & mask
        first = h + rotated + (g ^ e & (f ^ g)) + ones * constant + word
        twice = a | a << 32
        rotated = (twice >> 2 ^ twice >> 13 ^ twice >> 22) & mask
        second = rotated + (a & b | c & (a | b))
        h, g, f, e = g, f, e, d + first & mask
        d, c, b, a = c, b, a, first + second & mask
    out = bytearray(32 * count)
    for place, word in enumerate((a, b, c, d, e, f, g, h)):
        raw = word.to_bytes(8 * count, "little")
        for byte in range(4):
            out[4 * place + 3 - byte :: 32] = raw[byte::8]
    return bytes(out)


def _schedule(pairs: bytes, count: int, mask: int) -> list[int]:
    """SHA-256's message schedule, in lanes."""
    words = []
    for place in range(16):
        raw = bytearray(8 * count)
        for byte in range(4):
            raw[byte::8] = pairs[4 * place + 3 - byte :: 64]
        words.append(int.from_bytes(raw, "little"))
    for place in range(16, 64):
        word = words[place - 15]
        twice = word | word << 32
        low = (twice >> 7 ^ twice >> 18 ^ word >> 3) & mask
        word = words[place - 2]
        twice = word | word << 32
        high = (twice >> 17 ^ twice >> 19 ^ word >> 10) & mask
        words.append(words[place - 16] + low + words[place - 7] + high & mask)
    return words


def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found


def _cube_root(number: int) -> int:
    """Rounded down."""
    low, high = 0, 1 << (number.bit_length() // 3 + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**3 <= number else (low, middle)
    return low


# FIPS 180-4: the first 32 bits behind the point of the cube roots of the first 64 primes; and, as
# REAPI has it, of the square roots of the 9th to the 16th.
_CONSTANTS: Final = [_cube_root(prime << 96) & 0xFFFFFFFF for prime in _primes(64)]
_INITIAL: Final = [isqrt(prime << 64) & 0xFFFFFFFF for prime in _primes(16)[8:]]
