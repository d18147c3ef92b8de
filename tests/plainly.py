"""SHA256TREE as REAPI's comment on it reads, step by step: what ours is held against.

Rule: no code of ours, nothing clever; 10 MB/s do.
"""

from __future__ import annotations

import hashlib
import struct
from decimal import Decimal, getcontext

_WORD = 0xFFFFFFFF


def _fractions(primes: list[int], root: int) -> list[int]:
    getcontext().prec = 60
    roots = [Decimal(prime) ** (Decimal(1) / root) for prime in primes]
    return [int((number - int(number)) * 2**32) for number in roots]


_PRIMES = [n for n in range(2, 312) if all(n % below for below in range(2, n))]
_CONSTANTS = _fractions(_PRIMES, 3)
_INITIAL = _fractions(_PRIMES[8:16], 2)


def _rotated(word: int, by: int) -> int:
    return (word >> by | word << 32 - by) & _WORD


def _cipher(block: bytes) -> bytes:
    """SHA-256's block cipher (FIPS 180-4, 6.2.2), without the addition at its end."""
    w = list(struct.unpack(">16I", block))
    for t in range(16, 64):
        low = _rotated(w[t - 15], 7) ^ _rotated(w[t - 15], 18) ^ w[t - 15] >> 3
        high = _rotated(w[t - 2], 17) ^ _rotated(w[t - 2], 19) ^ w[t - 2] >> 10
        w.append((high + w[t - 7] + low + w[t - 16]) & _WORD)
    a, b, c, d, e, f, g, h = _INITIAL
    for t in range(64):
        upper = _rotated(e, 6) ^ _rotated(e, 11) ^ _rotated(e, 25)
        first = (h + upper + ((e & f) ^ (~e & _WORD & g)) + _CONSTANTS[t] + w[t]) & _WORD
        lower = _rotated(a, 2) ^ _rotated(a, 13) ^ _rotated(a, 22)
        second = (lower + ((a & b) ^ (a & c) ^ (b & c))) & _WORD
        a, b, c, d, e, f, g, h = (first + second) & _WORD, a, b, c, (d + first) & _WORD, e, f, g
    return struct.pack(">8I", a, b, c, d, e, f, g, h)


def sha256tree(data: bytes) -> bytes:
    """32 bytes."""
    if len(data) <= 1024:
        return hashlib.sha256(data).digest()
    left = 1024
    while 2 * left < len(data):
        left *= 2
    return _cipher(sha256tree(data[:left]) + sha256tree(data[left:]))
