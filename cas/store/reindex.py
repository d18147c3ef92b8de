"""The index made anew from the blobs' files, when it is lost or damaged.

Rule: offline.  The new index is built beside the old one and takes its place when it is whole,
so that an interrupted run leaves things as they were; the old one is kept.  Blobs that were
inline and action results were only in the old index: they go with it, and clients make them
again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cas.digest import BY_CODE, Digest, make
from cas.index.lmdb import Index
from cas.index.records import minutes
from cas.store.adopt import BlobFile, adopt
from cas.store.files import Files, entries
from cas.store.layout import Layout, parse_blob
from cas.store.quarantine import Quarantine

BATCH = 4096
"""Files verified and entered at a time."""

Progress = Callable[[str, int, int], None]
"""Called with (what is under way, how far, of how much)."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of it."""

    blobs: int
    blob_bytes: int
    refused: int
    """Files whose bytes are not what their name says, or that are second copies: they are in
    quarantine now."""
    kept: Path | None
    """Where the old index is."""


def reindex(
    layout: Layout,
    files: Files,
    *,
    now: float,
    progress: Progress = lambda stage, done, total: None,
    seam: Callable[[str], None] | None = None,
    unsent: bool = False,
) -> Rebuilt:
    """Rebuilds the index of a store that no server uses.  `now` is seconds since the epoch;
    `seam` is the new index's.  `unsent` has every blob wait to be sent upstream: which of them did
    was in the old index."""
    beside = layout.root / "index.new"
    if beside.exists():
        shutil.rmtree(beside)
    files.make_directory(beside)
    blobs = blob_bytes = refused = 0
    found = sorted(_found(layout, progress))
    with closing(Index(beside, seam=seam, queue=unsent)) as index:
        for start in range(0, len(found), BATCH):
            progress("files", start, len(found))
            batch = [_unpacked(layout, packed) for packed in found[start : start + BATCH]]
            entered = adopt(index, files, batch, minutes(now), unsent=unsent)
            for file in batch:
                if file.path in entered:
                    blobs += 1
                    blob_bytes += file.digest.size
                else:
                    refused += 1
                    Quarantine(layout, files).take_file(file.path)
    progress("files", len(found), len(found))
    files.sync_directory(beside)
    kept = _swap(layout, files, beside)
    return Rebuilt(blobs, blob_bytes, refused, kept)


def _swap(layout: Layout, files: Files, beside: Path) -> Path | None:
    """Puts the new index in the old one's place; where the old one is now."""
    kept = None
    if layout.index.exists():
        kept = _free(layout)
        files.move(layout.index, kept)
    files.move(beside, layout.index)
    files.sync_directory(layout.root)
    return kept


def _free(layout: Layout) -> Path:
    number = 0
    while True:
        path = layout.root / f"index.old.{number}"
        if not path.exists():
            return path
        number += 1


# Packed, for there may be many: minute, function, hash, generation, size, whether it is zstd. Their
# order is that of writing, which is what serials stand for.
def _found(layout: Layout, progress: Progress) -> Iterator[bytes]:
    shards = layout.shards()
    for number, shard in enumerate(shards):
        progress("directories", number, len(shards))
        for entry in entries(shard):
            if not entry.is_file(follow_symlinks=False):
                continue
            state = entry.stat(follow_symlinks=False)
            parsed = parse_blob(Path(entry.path), state.st_size)
            if parsed is not None:
                yield _packed(minutes(state.st_mtime), *parsed)
    progress("directories", len(shards), len(shards))


def _packed(minute: int, digest: Digest, generation: int, packed: bool) -> bytes:
    return b"".join(
        (
            max(0, minute).to_bytes(5, "big"),
            digest.function.prefix,
            digest.hash,
            generation.to_bytes(4, "big"),
            digest.size.to_bytes(8, "big"),
            bytes((packed,)),
        )
    )


def _unpacked(layout: Layout, packed: bytes) -> BlobFile:
    digest = make(BY_CODE[packed[5]], packed[6:-13], int.from_bytes(packed[-9:-1], "big"))
    generation = int.from_bytes(packed[-13:-9], "big")
    is_zstd = bool(packed[-1])
    path = Path((layout.packed if is_zstd else layout.blob)(digest, generation))
    return BlobFile(int.from_bytes(packed[:5], "big"), digest, generation, path, is_zstd)
