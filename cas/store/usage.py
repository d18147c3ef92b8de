"""What a store takes on disk, and what it may take.

Rule: looks, and publishes what it saw to `space`; changes nothing.

A store's size is its blobs' files (blocks of 4 KiB; the index keeps the exact sum), uploads in
progress, the index and the rest (directories, quarantine).  The index counts as its live pages
and `INDEX_SLACK` of them for those that are free: they are on disk, and are used again, but not
at once and not by files; more of them than that the janitor gives back (`index.holes`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cas.index.environment import DATA_FILE, USES_FILE
from cas.index.hints import LEAST_BYTES
from cas.index.lmdb import Index
from cas.index.uses import STEP_BYTES
from cas.store.files import entries
from cas.store.layout import Layout
from cas.store.space import Space

INDEX_SLACK = 0.2
"""Share of its live pages that the index may hold free: measured, 0.14 after ten turnovers of a
mixed cache."""
INDEX_SPARE = 1 << 20
"""Free bytes that it may hold however small it is."""

REST_SECONDS = 60.0
"""How often directories and quarantine are looked at."""


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """What an operator chooses."""

    max_size: int | None = None
    """Bytes that the store may take; None is all that the disk has."""
    disk_reserve: int = 0
    """Bytes that are to stay free on the disk."""


class Usage(NamedTuple):
    """One look.  Bytes."""

    limit: int
    """What the store may take: the operator's limit, or the disk's."""
    used: int
    """What it takes, with the index as it is once room in it was given back."""
    on_disk: int
    """What it takes now."""
    disk_free: int
    entries: int
    reclaimable: int
    """What the index holds free beyond its share: gone from the disk once it was given back."""


class Meter:
    """Looks at one store.  For one thread at a time."""

    def __init__(
        self,
        layout: Layout,
        index: Index,
        space: Space,
        limits: SizeLimits,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layout = layout
        self._index = index
        self._space = space
        self._limits = limits
        self._monotonic = monotonic
        self._rest = 0
        self._rest_due = 0.0
        self._staged = 0
        self._before: int | None = None
        """What had been written when the uploads were looked at last."""

    def measure(self) -> Usage:
        """Looks, and publishes what room there is."""
        if self._monotonic() >= self._rest_due:
            self._rest = _rest(self._layout)
            self._rest_due = self._monotonic() + REST_SECONDS
        before = self._space.begin_look()
        # Uploads before blobs: one that is finished meanwhile is counted twice, not never.
        # Where there were none and nothing was written since, there are none: at rest the walk was
        # all that a janitor did.
        if self._staged or before != self._before:
            self._staged = sum(found.bytes for found in staging(self._layout))
            self._before = before
        totals = self._index.totals()
        disk = os.statvfs(self._layout.root)
        free = disk.f_bavail * disk.f_frsize
        # The first steps of last-use times and hints come with the first entries.
        beside = max(totals.beside_bytes, STEP_BYTES + LEAST_BYTES)
        fixed = totals.file_bytes + beside + self._staged + self._rest
        used = fixed + index_charge(totals.live_bytes)
        on_disk = fixed + totals.disk_bytes
        limit = on_disk + free - self._limits.disk_reserve
        if self._limits.max_size is not None:
            limit = min(limit, self._limits.max_size)
        most = limit - self._rest - beside - index_charge(0)
        self._space.publish(limit - max(used, on_disk), most, before)
        return Usage(limit, used, on_disk, free, totals.entries, max(0, on_disk - used))


def index_charge(live: int) -> int:
    """What an index with so many bytes of live pages counts."""
    return live + int(live * INDEX_SLACK) + INDEX_SPARE


def index_cost(count: int, size: int) -> int:
    """What `count` entries with `size` bytes in all add to that, about: each has its rows, and
    values beyond 2 KB end in a page that they do not fill."""
    return 1024 * count + size + (size >> 2)


class StagedFile(NamedTuple):
    """A file in staging."""

    path: str
    bytes: int
    """On disk; 0 if they are a blob's too."""
    changed: float
    """Seconds since the epoch."""
    is_copy: bool
    """Whether it was to take another one's place."""


def staging(layout: Layout) -> Iterator[StagedFile]:
    """Every file in staging."""
    for shard in layout.staging_shards():
        for entry in entries(shard):
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            size = found.st_blocks * 512 if found.st_nlink == 1 else 0
            yield StagedFile(entry.path, size, found.st_mtime, "." in entry.name)


def _rest(layout: Layout) -> int:
    """What is neither a blob's file nor an upload nor counted by the index."""
    directories = [layout.root, layout.index, layout.blobs, layout.staging, layout.quarantine]
    directories += [*layout.shards(), *layout.staging_shards()]
    total = sum(_blocks(path) for path in directories)
    for directory in (layout.root, layout.index, layout.quarantine):
        total += sum(
            _blocks(Path(entry.path))
            for entry in entries(directory)
            if entry.is_file(follow_symlinks=False) and entry.name not in _INDEX_FILES
        )
    return total


_INDEX_FILES = (DATA_FILE, USES_FILE)


def _blocks(path: Path) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        return 0
