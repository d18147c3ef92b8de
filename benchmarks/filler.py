"""Fills a store's directory with many small blobs: ``python -m benchmarks.filler DIR COUNT``.

Rule: a process of its own (what it needs of memory is gone before anything is
measured), which writes through the store's public contract and nothing below it.

Blobs go in by ascending key.  In random order each commit would rewrite as many
pages as it has blobs, which for ten million is hours; so the index is a little
denser than one that grew upload by upload.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from benchmarks import population
from cas import digest as digests
from cas.store.directory import prepare
from cas.store.local import StoreOptions, open_store

BATCH = 20_000
"""Blobs handed to the store at once: bounds what waits for a commit."""

_NUMBER_BYTES = 8


def fill(directory: Path, count: int) -> None:
    """Enters blobs 0 to `count` - 1 of `benchmarks.population`."""
    # One object for each blob, hash and number in one, so that ten million fit in memory.
    order = [
        digests.of(population.blob(number)).key + number.to_bytes(_NUMBER_BYTES, "big")
        for number in range(count)
    ]
    order.sort()
    with (
        closing(prepare(directory)),
        closing(open_store(directory, StoreOptions(durability="none"))) as store,
    ):
        for start in range(0, count, BATCH):
            numbers = [
                int.from_bytes(entry[-_NUMBER_BYTES:], "big")
                for entry in order[start : start + BATCH]
            ]
            blobs = [population.blob(number) for number in numbers]
            written = store.put([(digests.of(blob), blob) for blob in blobs])
            for pending in written:
                pending.wait(600)


if __name__ == "__main__":
    fill(Path(sys.argv[1]), int(sys.argv[2]))
