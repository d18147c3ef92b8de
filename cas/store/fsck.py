"""The index against the files, both ways, and what may be done about it.

Rule: offline (whoever calls holds the directory's lock).  Reads no blob's bytes, but those of
files that nothing names, when they are to be entered: `scrub` is for the rest.  Holds nothing
per entry but what it found wrong and files with a second name.

Repairs follow the ordering invariants: a record goes before its file, and a file that is to be
entered is verified and synced before its record.  An orphan whose bytes are right is entered,
not removed: after a loss of records (power loss in `batch` or `none`, a damaged index) orphans
are blobs that somebody was told of, and after a crash they save the client an upload.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cas import digest as digests
from cas.digest import Digest
from cas.errors import DataLoss
from cas.index import upkeep
from cas.index.lmdb import Index
from cas.index.records import IN_FILES, PACKED, minutes
from cas.index.upkeep import Mending
from cas.store import layout as layouts
from cas.store.adopt import BlobFile, adopt
from cas.store.files import Files, entries
from cas.store.layout import BlobName, Layout, parse_blob
from cas.store.quarantine import Quarantine, describe

BAD_RECORD = "bad record"
LOST_FILE = "lost file"
WRONG_SIZE = "wrong size"
UNLISTED = "unlisted record"
STRAY = "stray row"
SERIAL = "serial behind"
ORPHAN = "orphan file"
COPY = "staged copy"
SECOND_NAME = "second name"
FOREIGN = "foreign file"
UNFINISHED = "unfinished file"

KINDS = {
    BAD_RECORD: "a record that cannot be read or lacks its bytes; repair drops it",
    LOST_FILE: "a record whose file is not there; repair drops it",
    WRONG_SIZE: "a record whose file has another size; repair drops it, and quarantines the file",
    UNLISTED: "a record that eviction would never see; repair lists it",
    STRAY: "a row of the index that no record names; repair removes it",
    SERIAL: "the next entry would get a number in use; repair raises it",
    ORPHAN: "a blob's file that no record names; repair enters it if its bytes are right and "
    "the blob is not there, else removes it",
    COPY: "a partial copy of an upload; repair removes it",
    SECOND_NAME: "an upload that is a blob already; repair removes its name in staging",
    FOREIGN: "a file that is not the store's; repair moves it to quarantine",
    UNFINISHED: "a file that was being written for the store itself; repair removes it",
}
"""What can be wrong, and what `repair` does about it."""

BATCH = 1000
"""Findings mended in one transaction."""

_UPLOAD = re.compile("[0-9a-f]{32}")
_COPY = re.compile(r"[0-9a-f]{32}\.[0-9a-f]{16}")

Tell = Callable[["Finding"], None]
Progress = Callable[[str, int, int], None]
"""Called with (what is under way, how far, of how much)."""


class Finding(NamedTuple):
    """One thing wrong."""

    kind: str
    what: str
    repair: str
    """What was done about it; empty when nothing was."""


@dataclass(slots=True)
class Report:
    """What a check found."""

    entries: int = 0
    files: int = 0
    file_bytes: int = 0
    uploads: int = 0
    upload_bytes: int = 0
    quarantined: int = 0
    quarantined_bytes: int = 0
    found: Counter[str] = field(default_factory=Counter)
    """Findings by kind."""
    repaired: int = 0

    @property
    def left(self) -> int:
        """Findings that are still there."""
        return self.found.total() - self.repaired


def check(
    layout: Layout,
    index: Index,
    files: Files,
    *,
    repair: bool,
    now: float,
    tell: Tell = lambda finding: None,
    progress: Progress = lambda stage, done, total: None,
) -> Report:
    """Checks the store, and mends what is wrong if `repair`.  `now` is seconds since the epoch.

    Raises DataLoss when the index is too damaged to be walked, OSError when the disk fails.
    """
    run = _Run(layout, index, files, repair, minutes(now), tell, progress)
    run.check_records()
    run.check_strays()
    run.check_blobs()
    run.check_staging()
    run.check_rest()
    return run.report


class _Run:
    """One check under way."""

    def __init__(
        self,
        layout: Layout,
        index: Index,
        files: Files,
        repair: bool,
        minute: int,
        tell: Tell,
        progress: Progress,
    ) -> None:
        self.report = Report()
        self._layout = layout
        self._index = index
        self._files = files
        self._quarantine = Quarantine(layout, files)
        self._repair = repair
        self._minute = minute
        self._tell = tell
        self._progress = progress
        self._unlisted: set[int] = set()
        self._second_names: dict[int, bool] = {}
        """By inode, of blob files with another name: whether a record names them."""

    # --- records -----------------------------------------------------------------------

    def check_records(self) -> None:
        total = upkeep.count(self._index)
        mending = Mending()
        wrong_files: list[Path] = []
        for number, row in enumerate(upkeep.rows(self._index)):
            if number % BATCH == 0:
                self._progress("records", number, total)
                if len(mending.drop) + len(mending.enlist) >= BATCH:
                    self._mend(mending, wrong_files)
                    mending, wrong_files = Mending(), []
            self.report.entries += 1
            self._check_record(row, mending, wrong_files)
        self._mend(mending, wrong_files)
        self._progress("records", total, total)

    def _check_record(self, row: upkeep.Row, mending: Mending, wrong_files: list[Path]) -> None:
        key, record, wrong, unlisted = row
        shown = describe(key)
        kind = BAD_RECORD if wrong else ""
        if record is not None and record.where in IN_FILES and not wrong:
            digest = digests.from_key(key)
            path = self._layout.copy(digest, record)
            try:
                size = os.stat(path).st_size
            except FileNotFoundError:
                kind, wrong = LOST_FILE, f"has no file {path}"
            else:
                if size != (record.stored if record.where == PACKED else digest.size):
                    kind, wrong = WRONG_SIZE, f"has {size} bytes in {path}"
                    wrong_files.append(Path(path))
        if kind:
            mending.drop.append(key)
            self._found(kind, f"{shown} {wrong}", "dropped")
        elif unlisted and record is not None:
            mending.enlist.append((key, record))
            self._unlisted.add(record.serial)
            self._found(UNLISTED, shown, "listed")

    def _mend(self, mending: Mending, wrong_files: Iterable[Path]) -> None:
        if self._repair:
            if mending.drop or mending.enlist or mending.strays:
                upkeep.mend(self._index, mending)
            for path in wrong_files:
                self._quarantine.take_file(path)

    def check_strays(self) -> None:
        self._progress("rows", 0, 1)
        mending = Mending()
        for stray in upkeep.strays(self._index, self._unlisted):
            self._found(STRAY, f"{stray.table} {stray.serial}", "removed")
            mending.strays.append(stray)
            if len(mending.strays) == BATCH:
                self._mend(mending, ())
                mending = Mending()
        self._mend(mending, ())
        behind = upkeep.serials_behind(self._index)
        if behind:
            self._found(SERIAL, f"by {behind}", "raised")
            if self._repair:
                upkeep.raise_serial(self._index)
        self._progress("rows", 1, 1)

    # --- files -------------------------------------------------------------------------

    def check_blobs(self) -> None:
        shards = self._layout.shards()
        known = set(shards)
        for number, shard in enumerate(shards):
            self._progress("files", number, len(shards))
            orphans = []
            for entry in entries(shard):
                path = Path(entry.path)
                if path in known:
                    continue
                state = entry.stat(follow_symlinks=False)
                parsed = parse_blob(path, state.st_size) if _is_file(entry) else None
                if parsed is None:
                    self._foreign(path)
                    continue
                self.report.files += 1
                self.report.file_bytes += state.st_size
                digest, generation, packed = parsed
                named = self._names(parsed)
                if state.st_nlink > 1:
                    self._second_names[state.st_ino] = named
                if not named and not (not self._repair and self._wrongly_sized(path, digest)):
                    minute = minutes(state.st_mtime)
                    orphans.append(BlobFile(minute, digest, generation, path, packed))
            self._mend_orphans(orphans)
        self._progress("files", len(shards), len(shards))

    def _names(self, name: BlobName) -> bool:
        """Whether a record names this copy of the blob."""
        try:
            return name.is_copy_of(self._index.record(name.digest.key))
        except DataLoss:
            return False

    def _wrongly_sized(self, path: Path, digest: Digest) -> bool:
        """Whether a record names this file under another size: then it was found before."""
        if path.suffix == layouts.ZST:
            return False
        key = self._index.find(digest.prefix)
        if key is None:
            return False
        found = digests.from_key(key)
        return self._names(BlobName(found, int(path.name[-8:], 16), False)) and found != digest

    def _mend_orphans(self, orphans: Sequence[BlobFile]) -> None:
        entered = adopt(self._index, self._files, orphans, self._minute) if self._repair else set()
        for orphan in orphans:
            done = "entered" if orphan.path in entered else "removed"
            self._found(ORPHAN, str(orphan.path), done)
            if self._repair:
                if done == "removed":
                    self._files.remove(str(orphan.path))
                for inode in self._inode(orphan.path):
                    self._second_names[inode] = True

    def _inode(self, path: Path) -> Iterator[int]:
        if path.exists():
            yield path.stat().st_ino

    # --- staging and the rest ------------------------------------------------------------

    def check_staging(self) -> None:
        self._progress("staging", 0, 1)
        shards = self._layout.staging_shards()
        known = set(shards)
        for shard in [self._layout.staging, *shards]:
            for entry in entries(shard):
                path = Path(entry.path)
                if path not in known:
                    self._check_staged(entry, path)
        self._progress("staging", 1, 1)

    def _check_staged(self, entry: os.DirEntry[str], path: Path) -> None:
        if not _is_file(entry) or path.parent.name != path.name[:2]:
            self._foreign(path)
        elif _COPY.fullmatch(path.name):
            self._found(COPY, str(path), "removed")
            self._remove(path)
        elif not _UPLOAD.fullmatch(path.name):
            self._foreign(path)
        else:
            state = entry.stat(follow_symlinks=False)
            if state.st_nlink > 1 and self._second_names.get(state.st_ino):
                self._found(SECOND_NAME, str(path), "removed")
                self._remove(path)
                return
            self.report.uploads += 1
            self.report.upload_bytes += state.st_size

    def check_rest(self) -> None:
        self._unfinished(self._layout.root)
        for entry in entries(self._layout.quarantine):
            if entry.name.endswith(".new"):
                continue
            self.report.quarantined += 1
            self.report.quarantined_bytes += entry.stat(follow_symlinks=False).st_size
        self._unfinished(self._layout.quarantine)

    def _unfinished(self, directory: Path) -> None:
        for entry in entries(directory):
            if entry.name.endswith(".new") and _is_file(entry):
                self._found(UNFINISHED, entry.path, "removed")
                self._remove(Path(entry.path))

    def _foreign(self, path: Path) -> None:
        self._found(FOREIGN, str(path), "moved to quarantine")
        if self._repair:
            self._quarantine.take_file(path)

    def _remove(self, path: Path) -> None:
        if self._repair:
            self._files.remove(str(path))

    def _found(self, kind: str, what: str, repair: str) -> None:
        self.report.found[kind] += 1
        if self._repair:
            self.report.repaired += 1
        self._tell(Finding(kind, what, repair if self._repair else ""))


def _is_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False)
