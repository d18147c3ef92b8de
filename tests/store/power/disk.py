"""A disk that may lose power: what was done to it, and what is left of that.

Rule: pure bookkeeping.  `Op`s say what was asked of the disk, in order; `image` makes the
directory that may be there after the power failed behind the first so many of them.

What the model takes for granted of a disk, which is what POSIX promises and nothing more:

* What was written to a file is there after a sync of that file.  Of what was not synced, each
  block of 4 KiB may be there or not, in any combination, however it was written (O_DIRECT too:
  it is the sync that makes a file's size and extents durable).
* A name is there, or gone, after a sync of its directory.  Of changes to names that were not
  synced, each may have happened or not, in any combination; one rename happens whole or not.
* Of LMDB's commit (sync and metasync on): its data pages are written in any order, then synced,
  then one page with the new root is written and synced.  `test_power` checks with strace that it
  does so.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes into a file, by its inode."""

    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Sync:
    """Of a file."""

    inode: int


@dataclass(frozen=True, slots=True)
class Name:
    """A change of one directory: `remove` goes, and `add` names `inode`, together."""

    directory: str
    add: str | None
    inode: int
    remove: str | None = None


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    """Of a directory."""

    directory: str


@dataclass(frozen=True, slots=True)
class Told:
    """What a client was told: nothing of it may be lost behind this."""

    kind: str
    value: object


Op = Write | Sync | Name | SyncDirectory | Told


@dataclass(slots=True, repr=False)
class Disk:
    """A recording, and what was there, durably, when it began."""

    names: dict[str, dict[str, int]] = field(default_factory=dict)
    """Directory → name → inode."""
    contents: dict[int, bytes] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)

    def told(self, prefix: int) -> list[Told]:
        return [op for op in self.ops[:prefix] if isinstance(op, Told)]

    def image(self, target: Path, prefix: int, dice: random.Random, keep: float) -> None:
        """Makes in `target` what the power failure behind the first `prefix` operations may
        leave; each thing that was not synced is there with the probability `keep`."""
        ops = self.ops[:prefix]
        contents = self._contents(ops, dice, keep)
        names = self._names(ops, dice, keep)
        paths: dict[int, Path] = {}
        for directory, entries in names.items():
            (target / directory).mkdir(parents=True, exist_ok=True)
            for name, inode in entries.items():
                path = target / directory / name
                if inode in paths:
                    os.link(paths[inode], path)
                else:
                    path.write_bytes(contents.get(inode, b""))
                    paths[inode] = path

    def _contents(self, ops: list[Op], dice: random.Random, keep: float) -> dict[int, bytes]:
        last_sync = {op.inode: at for at, op in enumerate(ops) if isinstance(op, Sync)}
        out = {inode: bytearray(data) for inode, data in self.contents.items()}
        for at, op in enumerate(ops):
            if not isinstance(op, Write):
                continue
            content = out.setdefault(op.inode, bytearray())
            durable = at < last_sync.get(op.inode, -1)
            for start in _blocks(op.offset, len(op.data)):
                stop = min(op.offset + len(op.data), start // BLOCK * BLOCK + BLOCK)
                if durable or dice.random() < keep:
                    content.extend(bytes(max(0, stop - len(content))))
                    content[start:stop] = op.data[start - op.offset : stop - op.offset]
                elif dice.random() < keep:
                    # The size came to the disk, the bytes did not.
                    content.extend(bytes(max(0, stop - len(content))))
        return {inode: bytes(content) for inode, content in out.items()}

    def _names(self, ops: list[Op], dice: random.Random, keep: float) -> dict[str, dict[str, int]]:
        last_sync = {op.directory: at for at, op in enumerate(ops) if isinstance(op, SyncDirectory)}
        out = {directory: dict(entries) for directory, entries in self.names.items()}
        for at, op in enumerate(ops):
            if isinstance(op, Name) and (
                at < last_sync.get(op.directory, -1) or dice.random() < keep
            ):
                entries = out.setdefault(op.directory, {})
                if op.remove is not None:
                    entries.pop(op.remove, None)
                if op.add is not None:
                    entries[op.add] = op.inode
        return out


def _blocks(offset: int, length: int) -> list[int]:
    """Where the pieces of a write begin that may be lost apart from each other."""
    end = offset + length
    first = (offset // BLOCK + 1) * BLOCK
    return [offset, *range(first, end, BLOCK)] if length else []
