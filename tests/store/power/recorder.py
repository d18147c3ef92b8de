"""Records what a store asks of its disk.

Rule: every operation happens for real as well, then it is noted.  LMDB does its own writing: what
a commit wrote is found by comparing the file before with the file after, page by page, and noted
in the order that LMDB keeps to (`disk`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cas.index.environment import DATA_FILE
from cas.store.files import Files
from cas.store.layout import Layout
from tests.store.power.disk import BLOCK, Disk, Name, Sync, SyncDirectory, Told, Write

META_PAGES = 2
NOT_RECORDED = frozenset({"lock.mdb", "uses", "space", "lock"})
"""Of no use to the next process: locks and hints.  That they may be missing is part of it."""


class Recorder(Files):
    """`Files` that notes what it did."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.disk = Disk()
        self._layout = layout
        self._pages: dict[int, bytes] = {}
        self._inodes: dict[int, int] = {}
        """Kernel's inode → ours, which is never used again."""

    def begin(self) -> None:
        """Takes what is there now for durable, and forgets what led there."""
        self.disk.names = {}
        self.disk.contents = {}
        for top, _, names in os.walk(self._layout.root):
            entries = self.disk.names[os.path.relpath(top, self._layout.root)] = {}
            for name in names:
                path = Path(top, name)
                if name not in NOT_RECORDED:
                    inode = self._new(path.stat().st_ino)
                    entries[name] = inode
                    self.disk.contents[inode] = path.read_bytes()
        self.disk.ops.clear()
        self._pages = self._read_pages()

    def tell(self, kind: str, value: object) -> None:
        """Notes that a client was told so."""
        self.disk.ops.append(Told(kind, value))

    def index_seam(self, phase: str) -> None:
        if phase == "after-commit":
            self._note_commit()

    # --- what changes names ------------------------------------------------------------

    def create(self, path: str) -> int | None:
        fd = super().create(path)
        if fd is not None:
            self._name(path, self._new(os.fstat(fd).st_ino))
        return fd

    def publish(self, staging: str, blob: str) -> None:
        super().publish(staging, blob)
        self._name(blob, self._inode(os.stat(blob).st_ino))

    def replace(self, new: str, staging: str) -> None:
        super().replace(new, staging)
        self._name(staging, self._inode(os.stat(staging).st_ino), remove=os.path.basename(new))

    def move(self, path: str | Path, target: str | Path) -> None:
        super().move(path, target)
        # Between two directories: the file system may do either half first.
        self._name(target, self._inode(os.stat(target).st_ino))
        self._gone(path)

    def remove(self, path: str) -> None:
        there = os.path.exists(path)
        super().remove(path)
        if there and os.path.basename(path) not in NOT_RECORDED:
            self._gone(path)

    def sync_directory(self, path: str | Path) -> None:
        super().sync_directory(path)
        self.disk.ops.append(SyncDirectory(self._relative(path)))

    # --- what changes bytes --------------------------------------------------------------

    def write(self, fd: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
        data = b"".join(buffers)
        end = super().write(fd, buffers, offset)
        self.disk.ops.append(Write(self._inode(os.fstat(fd).st_ino), offset, data))
        return end

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self.disk.ops.append(Sync(self._inode(os.fstat(fd).st_ino)))

    # --- inside --------------------------------------------------------------------------

    def _note_commit(self) -> None:
        before, after = self._pages, self._read_pages()
        inode = self._inode((self._layout.index / DATA_FILE).stat().st_ino)
        changed = [number for number in after if before.get(number) != after[number]]
        roots = [number for number in changed if number < META_PAGES]
        for numbers in ([n for n in changed if n >= META_PAGES], roots):
            for number in numbers:
                self.disk.ops.append(Write(inode, number * BLOCK, after[number]))
            self.disk.ops.append(Sync(inode))
        self._pages = after

    def _read_pages(self) -> dict[int, bytes]:
        try:
            data = (self._layout.index / DATA_FILE).read_bytes()
        except FileNotFoundError:
            return {}
        return {at // BLOCK: data[at : at + BLOCK] for at in range(0, len(data), BLOCK)}

    def _name(self, path: str | Path, inode: int, remove: str | None = None) -> None:
        self.disk.ops.append(
            Name(self._relative(Path(path).parent), Path(path).name, inode, remove)
        )

    def _gone(self, path: str | Path) -> None:
        self.disk.ops.append(Name(self._relative(Path(path).parent), None, 0, Path(path).name))

    def _relative(self, path: str | Path) -> str:
        return os.path.relpath(path, self._layout.root)

    def _inode(self, kernels: int) -> int:
        return self._inodes[kernels]

    def _new(self, kernels: int) -> int:
        self._inodes[kernels] = (
            len(self._inodes) + len(self.disk.ops) + 1_000_000 * len(self.disk.contents)
        )
        return self._inodes[kernels]
