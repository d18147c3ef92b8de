"""Opening a store's index.

Rule: whoever opens the index of a store's directory does so here.  An index that is gone is not
made anew: that would forget every blob.
"""

from __future__ import annotations

from collections.abc import Callable

from cas.errors import DataLoss
from cas.index.environment import DATA_FILE, USES_FILE, WAY_OUT
from cas.index.lmdb import Index
from cas.store.files import Files, entries
from cas.store.layout import Layout


def open_index(
    layout: Layout,
    files: Files,
    *,
    strict: bool = True,
    seam: Callable[[str], None] | None = None,
    queue: bool = False,
) -> Index:
    """Opens the index; makes it in a store that is new.  `queue` as `Index` has it.

    Raises DataLoss when it is damaged, or gone though the store was in use.
    """
    check_index(layout)
    index = Index(layout.index, sync=strict, seam=seam, queue=queue)
    if strict:
        # LMDB syncs what is in its file, not the file's name; and a writer that was killed
        # between its commit and the sync of it left to others what they may acknowledge.
        try:
            files.sync_directory(layout.index)
            index.flush()
        except BaseException:
            index.close()
            raise
    return index


def check_index(layout: Layout) -> None:
    """Raises DataLoss when the index is gone though the store was in use."""
    try:
        there = (layout.index / DATA_FILE).stat().st_size > 0
    except FileNotFoundError:
        there = False
    if not there and ((layout.index / USES_FILE).exists() or _holds_blobs(layout)):
        raise DataLoss(f"the index in {layout.index} is gone or empty; {WAY_OUT}")


def _holds_blobs(layout: Layout) -> bool:
    return any(entry.is_file() for shard in layout.shards() for entry in entries(shard))
