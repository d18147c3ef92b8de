"""What a store holds: counts, bytes and ages.

Rule: reads only, page by page, so that it may run beside a server.  The figures are of the
moment in which each was read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cas.digest import from_key
from cas.index import unsent
from cas.index.lmdb import Index
from cas.index.records import ACTION, FILE, INLINE, PACKED, PACKED_INLINE, VALUE, minutes
from cas.store import hits
from cas.store.files import entries
from cas.store.layout import FORMAT_VERSION, Layout

AGES = ((60, "1 hour"), (24 * 60, "1 day"), (7 * 24 * 60, "1 week"), (30 * 24 * 60, "30 days"))
"""Upper bounds, minutes, of all classes of age but the last."""
OLDEST = "older"
PAGE = 1000

Progress = Callable[[str, int, int], None]
"""Called with (what is under way, how far, of how much)."""


@dataclass(slots=True)
class Amount:
    """How many, and their bytes."""

    count: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.count += 1
        self.bytes += size


def _classes() -> dict[str, Amount]:
    return {name: Amount() for name in (*(name for _, name in AGES), OLDEST)}


@dataclass(slots=True)
class Stat:
    """A store's figures.  Bytes are content's, but for those of blobs as zstd, and for
    `index_bytes`, which is its file's."""

    directory: str
    format: str = FORMAT_VERSION
    inline_blobs: Amount = field(default_factory=Amount)
    file_blobs: Amount = field(default_factory=Amount)
    packed_blobs: Amount = field(default_factory=Amount)
    """Blobs in files as zstd: the files' bytes."""
    packed_inline_blobs: Amount = field(default_factory=Amount)
    """Blobs in the index as zstd: the frames' bytes."""
    packed_content_bytes: int = 0
    """Content of those."""
    values: Amount = field(default_factory=Amount)
    actions: Amount = field(default_factory=Amount)
    uploads: Amount = field(default_factory=Amount)
    unsent: Amount = field(default_factory=Amount)
    """Entries that wait to be sent upstream."""
    quarantine: Amount = field(default_factory=Amount)
    index_bytes: int = 0
    index_used_bytes: int = 0
    last_used: dict[str, Amount] = field(default_factory=_classes)
    """Entries by the time since their last use, or since they were written if that is later."""
    written: dict[str, Amount] = field(default_factory=_classes)
    """Entries by the time since they were written."""

    lookups: dict[str, int] | None = None
    """`hits.NAMES`: what servers of this store were asked for, and whether it was there; None
    where nobody has asked yet."""
    lookups_since: float | None = None
    """Seconds since the epoch."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def hit_rate(self, kind: str) -> float | None:
        """Of "action" or "value" lookups; None where there were none."""
        found = self.lookups or {}
        hit, missed = found.get(f"{kind}_hits", 0), found.get(f"{kind}_misses", 0)
        return hit / (hit + missed) if hit + missed else None


def take(
    layout: Layout,
    index: Index,
    *,
    now: float,
    progress: Progress = lambda stage, done, total: None,
) -> Stat:
    """The figures; `now` is seconds since the epoch."""
    stat = Stat(str(layout.root))
    totals = index.totals()
    stat.unsent = Amount(*unsent.waiting(index))
    stat.index_bytes = _size(layout.index.iterdir())
    stat.index_used_bytes = totals.used_bytes
    amounts = {
        INLINE: stat.inline_blobs,
        FILE: stat.file_blobs,
        PACKED: stat.packed_blobs,
        PACKED_INLINE: stat.packed_inline_blobs,
        ACTION: stat.actions,
        VALUE: stat.values,
    }
    minute = minutes(now)
    after, seen = b"", 0
    while page := index.keys(after, PAGE):
        for key, record in page:
            amounts[record.where].add(record.stored)
            if record.where in (PACKED, PACKED_INLINE):
                stat.packed_content_bytes += from_key(key).size
            stat.written[_class(minute - record.written)].add(record.stored)
            stat.last_used[_class(minute - index.last_use(record))].add(record.stored)
        after = page[-1][0]
        seen += len(page)
        progress("entries", seen, max(seen, totals.entries))
    for shard in layout.staging_shards():
        _add(stat.uploads, shard)
    _add(stat.quarantine, layout.quarantine)
    kept = hits.load(layout)
    if kept is not None:
        stat.lookups, stat.lookups_since = kept.all(), kept.since
    return stat


def _class(age: int) -> str:
    return next((name for limit, name in AGES if age < limit), OLDEST)


def _add(amount: Amount, directory: Path) -> None:
    for entry in entries(directory):
        try:
            amount.add(entry.stat(follow_symlinks=False).st_size)
        except FileNotFoundError:
            continue


def _size(paths: Iterable[Path]) -> int:
    """What files take on disk, bytes; a file may have holes."""
    return sum(os.stat(path).st_blocks * 512 for path in paths)
