"""FastCDC 2020: where content is cut into chunks, wherever that is done.

Rule: pure.  The cuts follow from the content and the average alone, as REAPI's `FastCdc2020Params`
lays down, so that clients and servers which have never met cut alike: smallest and largest chunk
are a quarter and four times the average, normalization is 2, the gear table is not seeded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from pyfastcdc import Chunk, FastCDC

SEED = 0
_NORMALIZATION: Final = 2


class Source(Protocol):
    """Content from its beginning on."""

    def readinto(self, view: memoryview, /) -> int:
        """Fills a part of `view`, which is not empty; its length in bytes, 0 at the end."""


class Sizes(NamedTuple):
    """What chunks may be, in bytes; the last one of a blob may be smaller than `smallest`."""

    smallest: int
    average: int
    largest: int


def sizes(average: int) -> Sizes:
    return Sizes(average // 4, average, average * 4)


def cut(source: Source, average: int, seed: int = SEED) -> Iterator[Chunk]:
    """The chunks of what `source` has, in order: offset, length and data, and the 64-bit gear hash
    at the cut.  A chunk's data are valid until the next one is asked for.

    `average` is a power of two.  Holds 8 times the average.  What `source` raises passes; nothing
    more can be asked for then.
    """
    smallest, _, largest = sizes(average)
    chunker = FastCDC(
        average,
        min_size=smallest,
        max_size=largest,
        normalized_chunking=_NORMALIZATION,
        seed=seed,
    )
    return chunker.cut_stream(source)
