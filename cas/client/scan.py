"""A directory on disk as it is about to be pushed: what is in it, and the digests of its files.

Rule: reads, never writes.  Symlinks are kept as symlinks and never followed; what is neither
file, directory nor symlink is left out and told.  Blocking: callers use helper threads.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cas.client.errors import BadTree
from cas.client.ignore import NAME, Ignore
from cas.client.source import hash_all
from cas.client.statcache import Known, Look, look
from cas.client.tree import KEPT, LinkNode
from cas.digest import Digest, Function, from_key

GROUP_FILES = 256
GROUP_BYTES = 8 << 20
"""Of one task for a helper thread: enough to make the cost of handing it over small."""


@dataclass(slots=True)
class Found:
    """A file: the names that lead to it, its mode, what it looks like; its digest once known."""

    path: tuple[str, ...]
    mode: int
    seen: Look
    digest: Digest | None = None
    fresh: Look | None = None
    """What it looked like when it was hashed, if that may be remembered."""

    @property
    def relative(self) -> bytes:
        return os.fsencode("/".join(self.path))


@dataclass(slots=True)
class Place:
    """A directory: the names that lead to it, its mode, what is in it."""

    path: tuple[str, ...]
    mode: int
    files: list[Found] = field(default_factory=list)
    links: list[LinkNode] = field(default_factory=list)


@dataclass(slots=True)
class Scan:
    """`places` are all directories, parents first; `skipped` names what was left out because it
    is no file, directory or symlink."""

    root: str
    places: list[Place] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[Found]:
        return [file for place in self.places for file in place.files]

    def location(self, file: Found) -> str:
        return os.path.join(self.root, *file.path)


def scan(directory: Path) -> Scan:
    """Walks `directory`, less what its .casignore files name."""
    found = Scan(os.path.realpath(directory))
    todo: list[tuple[tuple[str, ...], int, Ignore]] = [((), 0o755, Ignore())]
    while todo:
        path, mode, ignore = todo.pop()
        place = Place(path, mode)
        found.places.append(place)
        where = os.path.join(found.root, *path)
        with os.scandir(where) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        if any(entry.name == NAME and entry.is_file() for entry in entries):
            ignore = ignore.within(len(path), _text(os.path.join(where, NAME)), where)
        folders = []
        for entry in entries:
            inner = (*path, entry.name)
            status = entry.stat(follow_symlinks=False)
            kind = stat.S_IFMT(status.st_mode)
            if ignore.rules and ignore.ignores(inner, kind == stat.S_IFDIR):
                continue
            if kind == stat.S_IFREG:
                place.files.append(Found(inner, status.st_mode & KEPT, look(status)))
            elif kind == stat.S_IFDIR:
                folders.append((inner, status.st_mode & KEPT, ignore))
            elif kind == stat.S_IFLNK:
                place.links.append(LinkNode(entry.name, _target(entry.path)))
            else:
                found.skipped.append(entry.path)
        todo += reversed(folders)
    return found


def recall(files: Sequence[Found], known: Known, function: Function) -> list[Found]:
    """Fills in digests of `function` that are known for sure; the files that must be read."""
    unknown = []
    for file in files:
        entry = known.get(file.relative)
        if entry is not None and entry[0] == file.seen and entry[1].startswith(function.prefix):
            file.digest = from_key(entry[1])
        else:
            unknown.append(file)
    return unknown


def groups(files: Sequence[Found]) -> list[list[Found]]:
    """Files as tasks of about the same length."""
    out: list[list[Found]] = []
    size = GROUP_BYTES
    for file in files:
        if size >= GROUP_BYTES or len(out[-1]) >= GROUP_FILES:
            out.append([])
            size = 0
        out[-1].append(file)
        size += file.seen.size
    return out


def hash_group(root: str, files: Sequence[Found], function: Function) -> None:
    """Fills in the digests of files by reading them; raises FileNotFoundError and its like."""
    for file in files:
        now = time.time_ns()
        fd = os.open(os.path.join(root, *file.path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            before = look(os.fstat(fd))
            file.digest = hash_all(
                lambda offset, size, fd=fd: os.pread(fd, size, offset),  # type: ignore[misc]
                function,
            )
            after = look(os.fstat(fd))
        finally:
            os.close(fd)
        file.fresh = after if before == after and after.settled(now) else None


def _text(file: str) -> str:
    with open(file, encoding="utf-8", errors="surrogateescape") as opened:
        return opened.read()


def _target(link: str) -> str:
    target = os.readlink(link)
    try:
        target.encode()
    except UnicodeEncodeError:
        raise BadTree(f"{link} points to {target!r}, which is not UTF-8") from None
    return target
