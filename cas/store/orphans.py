"""Files of blobs that no record names, cleared away while the store serves.

Rule: a process that is killed between a file and its record leaves one, so does a blob that was
found bad; nobody was told of it in `strict`.  It goes once nothing has happened to it for
`UNTOUCHED_SECONDS`, which no commit takes.  Each copy's file has a generation of its own, so
what is removed here can never be a copy that is written meanwhile.  `fsck --repair` looks into
them first, and enters those whose bytes are right; that is for an operator who has lost records.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cas.index.lmdb import Index
from cas.store.files import Files, entries
from cas.store.layout import Layout, parse_blob

UNTOUCHED_SECONDS = 86_400.0
"""By the time of the file's last change of any kind, its names included."""
BATCH = 256
"""Files looked up between two pauses: about 3 ms."""


def sweep(
    layout: Layout, index: Index, files: Files, clock: Callable[[], float]
) -> Iterator[list[os.stat_result]]:
    """Removes orphans; after each batch of files, what went."""
    for shard in layout.shards():
        names = [entry.name for entry in entries(shard) if "." in entry.name]
        for first in range(0, len(names), BATCH):
            before = clock() - UNTOUCHED_SECONDS
            yield [
                state
                for name in names[first : first + BATCH]
                if (state := _remove_orphan(shard / name, index, files, before)) is not None
            ]


def _remove_orphan(path: Path, index: Index, files: Files, before: float) -> os.stat_result | None:
    try:
        state = os.lstat(path)
    except FileNotFoundError:
        return None
    if state.st_ctime >= before:
        return None
    found = parse_blob(path, state.st_size)
    if found is None:
        return None  # No blob's: not ours to remove.
    # By the hash alone: what a file holds need not have the blob's size.
    key = index.find(found.digest.prefix)
    record = index.record(key) if key is not None else None
    if found.is_copy_of(record):
        return None
    files.remove(str(path))
    return state
