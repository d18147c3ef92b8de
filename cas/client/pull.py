"""`pull_tree`: a tree out of a remote, into a directory.

Rule: only what differs is fetched and written; each file is whole or as it was; nothing
outside the directory is touched (`cas.client.below`).  Files that the tree does not have
stay, unless deletion was asked for.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cas.client import tree
from cas.client.below import Below, Names
from cas.client.blobcache import BlobCache
from cas.client.client import AsyncClient
from cas.client.errors import BadTree
from cas.client.progress import Progress
from cas.client.source import hash_all
from cas.client.statcache import Known, Look, StatCache, look
from cas.client.transfer import together
from cas.client.tree import FileNode, Folders, LinkNode, Listing
from cas.digest import Digest, Function, from_key

GROUP_BYTES = 16 << 20
WHOLE = 256 << 10
"""Files up to this size are fetched together; larger ones go to disk as they come."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull did, in files and bytes of the whole tree; `written` files differed, `got_…`
    came over the network, `removed` entries were not in the tree."""

    files: int
    bytes: int
    written: int
    removed: int
    got_blobs: int
    got_bytes: int


@dataclass(slots=True)
class _Plan:
    """`want`: what must be fetched and where it goes, by digest.  `modes`: what directories get
    when all is written."""

    want: dict[bytes, list[tuple[Names, int]]] = field(default_factory=dict)
    check: list[tuple[Names, FileNode, Look]] = field(default_factory=list)
    modes: list[tuple[Names, int]] = field(default_factory=list)
    extra: list[Names] = field(default_factory=list)
    fresh: list[tuple[bytes, Look, bytes]] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    written: int = 0

    def fetch(self, path: Names, node: FileNode) -> None:
        self.want.setdefault(node.digest.key, []).append((path, node.mode))


async def fetch_folders(client: AsyncClient, root: Digest) -> Folders:
    """All Directory messages of a tree, level by level; raises NotFound and BadTree."""
    folders = Folders(root)
    todo = [root]
    while todo:
        level: list[Listing] = []

        async def take(found: list[tuple[Digest, bytes]], level: list[Listing] = level) -> None:
            for digest, raw in found:
                listing = tree.decode(raw, digest)
                folders.listings[digest.key] = listing
                level.append(listing)

        await client.get_many(todo, take)
        below = {node.digest.key: node.digest for one in level for node in one.folders}
        todo = [digest for key, digest in below.items() if key not in folders.listings]
    return folders


async def pull_tree(
    client: AsyncClient,
    root: Digest,
    directory: Path,
    *,
    delete: bool = False,
    cache: Path | None = None,
    links: BlobCache | None = None,
    progress: Progress | None = None,
) -> Pulled:
    """Makes `directory` hold the tree `root`, the digest of a Directory message.

    `delete` removes what the tree does not have.  `cache` is the stat cache's file.  `links`
    keeps the blobs in a local cache and links them from there.
    """
    folders = await fetch_folders(client, root)
    return await write_tree(
        client, folders, directory, delete=delete, cache=cache, links=links, progress=progress
    )


async def write_tree(
    client: AsyncClient,
    folders: Folders,
    directory: Path,
    *,
    delete: bool = False,
    cache: Path | None = None,
    links: BlobCache | None = None,
    progress: Progress | None = None,
) -> Pulled:
    """`pull_tree` for directories that are known already."""
    before = client.tally.got_blobs, client.tally.got_bytes
    progress = progress or Progress()
    with ExitStack() as stack:
        below = stack.enter_context(await client.run(Below, directory))
        known_files = stack.enter_context(StatCache(cache) if cache else nullcontext())
        root = await client.run(_real, directory)
        known = await client.run(known_files.load, root) if known_files else {}
        plan = await client.run(_look, folders, below, known, delete)
        progress.files = plan.files
        progress.total = plan.bytes
        function = folders.root.function
        await together(
            client.run(_compare, below, plan, group, function) for group in _groups(plan.check)
        )
        wanted = {key: from_key(key) for key in plan.want}
        progress.move(
            plan.bytes - sum(digest.size * len(plan.want[k]) for k, digest in wanted.items())
        )
        progress.files_done = plan.files - sum(map(len, plan.want.values()))
        await _fetch(client, below, plan, wanted.values(), links, progress)
        removed = await client.run(_finish, below, plan)
        if known_files and plan.fresh:
            await client.run(known_files.save, root, plan.fresh)
        if links:
            await client.run(links.trim)
    return Pulled(
        files=plan.files,
        bytes=plan.bytes,
        written=plan.written,
        removed=removed,
        got_blobs=client.tally.got_blobs - before[0],
        got_bytes=client.tally.got_bytes - before[1],
    )


def _look(folders: Folders, below: Below, known: Known, delete: bool) -> _Plan:
    """Compares the tree with what is there, and makes its directories and symlinks."""
    plan = _Plan()
    for path, listing in folders.walk():
        there = _enter(below, path, listing, delete, plan)
        for node in listing.files:
            _look_at_file(below, (*path, node.name), node, there, known, delete, plan)
        for link in listing.links:
            _put_link(below, (*path, link.name), link, there, delete, plan)
        if delete:
            mine = listing.names()
            plan.extra += ((*path, name) for name in there if name not in mine)
    return plan


def _enter(
    below: Below, path: Names, listing: Listing, delete: bool, plan: _Plan
) -> dict[str, os.stat_result]:
    """Makes sure of a directory; what is in it."""
    if not path:
        return below.list(path)
    status = below.status(path)
    if status is not None and not stat.S_ISDIR(status.st_mode):
        below.remove(path, delete)
        status = None
    reachable = listing.mode | 0o700
    if status is None:
        below.make_folder(path, reachable)
        if reachable != listing.mode:
            plan.modes.append((path, listing.mode))
        return {}
    closed = status.st_mode & 0o700 != 0o700
    if closed:
        below.chmod(path, reachable, folder=True)
    if closed or stat.S_IMODE(status.st_mode) != listing.mode:
        plan.modes.append((path, listing.mode))
    return below.list(path)


def _look_at_file(
    below: Below,
    path: Names,
    node: FileNode,
    there: dict[str, os.stat_result],
    known: Known,
    delete: bool,
    plan: _Plan,
) -> None:
    plan.files += 1
    plan.bytes += node.digest.size
    status = there.get(node.name)
    if status is not None and stat.S_ISDIR(status.st_mode):
        below.remove(path, delete)
        status = None
    if status is None or not stat.S_ISREG(status.st_mode) or status.st_size != node.digest.size:
        plan.fetch(path, node)
        return
    entry = known.get(os.fsencode("/".join(path)))
    if entry is None or entry[0] != look(status) or entry[1][:1] != node.digest.key[:1]:
        plan.check.append((path, node, look(status)))
    elif entry[1] != node.digest.key:
        plan.fetch(path, node)
    elif stat.S_IMODE(status.st_mode) != node.mode:
        below.chmod(path, node.mode)


def _put_link(
    below: Below,
    path: Names,
    link: LinkNode,
    there: dict[str, os.stat_result],
    delete: bool,
    plan: _Plan,
) -> None:
    status = there.get(link.name)
    if status is not None and stat.S_ISDIR(status.st_mode):
        below.remove(path, delete)
    if status is None or not stat.S_ISLNK(status.st_mode) or below.read_link(path) != link.target:
        below.link_to(path, link.target)
        plan.written += 1


def _groups(
    check: list[tuple[Names, FileNode, Look]],
) -> list[list[tuple[Names, FileNode, Look]]]:
    out: list[list[tuple[Names, FileNode, Look]]] = []
    size = GROUP_BYTES
    for one in check:
        if size >= GROUP_BYTES or len(out[-1]) >= 256:
            out.append([])
            size = 0
        out[-1].append(one)
        size += one[2].size
    return out


def _compare(
    below: Below,
    plan: _Plan,
    files: list[tuple[Names, FileNode, Look]],
    function: Function,
) -> None:
    """Reads files of the right size: those with other content are to be fetched."""
    for path, node, seen in files:
        now = time.time_ns()
        fd = below.open(path)
        try:
            status = os.fstat(fd)
            digest = hash_all(
                lambda offset, size, fd=fd: os.pread(fd, size, offset),  # type: ignore[misc]
                function,
            )
        finally:
            os.close(fd)
        if digest != node.digest:
            plan.fetch(path, node)
            continue
        if look(status) == seen and seen.settled(now):
            plan.fresh.append((os.fsencode("/".join(path)), seen, digest.key))
        if stat.S_IMODE(status.st_mode) != node.mode:
            below.chmod(path, node.mode)


async def _fetch(
    client: AsyncClient,
    below: Below,
    plan: _Plan,
    wanted: Iterable[Digest],
    links: BlobCache | None,
    progress: Progress,
) -> None:
    def done(digest: Digest) -> None:
        # One more file for each place; `move` has told of the first.
        places = len(plan.want[digest.key])
        progress.move(digest.size * (places - 1))
        progress.files_done += places
        plan.written += places

    def write(found: list[tuple[Digest, bytes]]) -> None:
        for digest, data in found:
            for path, mode in plan.want[digest.key]:
                if links:
                    if not links.holds(digest, mode):
                        with links.add(digest, mode) as fd:
                            _write_all(fd, data)
                    links.place(digest, mode, below, path)
                else:
                    below.write(path, mode, _writer(data))

    def place(digest: Digest) -> None:
        assert links is not None
        for path, mode in plan.want[digest.key]:
            links.place(digest, mode, below, path)

    async def take(found: list[tuple[Digest, bytes]]) -> None:
        await client.run(write, found)
        for digest, _ in found:
            done(digest)

    async def stream(digest: Digest) -> None:
        first_path, first_mode = plan.want[digest.key][0]
        if links:
            for mode in {mode for _, mode in plan.want[digest.key]}:
                if not links.holds(digest, mode):
                    with links.add(digest, mode) as fd:
                        await client.get_stream(digest, partial(_write_all, fd), progress.move)
            await client.run(place, digest)
        else:
            with below.temporary(first_path, first_mode) as fd:
                await client.get_stream(digest, partial(_write_all, fd), progress.move)
                for path, mode in plan.want[digest.key][1:]:
                    await client.run(below.write, path, mode, partial(_copy, fd, digest.size))
        done(digest)

    small, large, local = [], [], []
    for digest in wanted:
        modes = {mode for _, mode in plan.want[digest.key]}
        if links and all(links.holds(digest, mode) for mode in modes):
            local.append(digest)
        elif digest.size <= WHOLE:
            small.append(digest)
        else:
            large.append(digest)
    for digest in local:
        await client.run(place, digest)
        progress.move(digest.size)
        done(digest)
    large.sort(key=lambda digest: -digest.size)
    await together([*map(stream, large), client.get_many(small, take, progress.move)])


def _finish(below: Below, plan: _Plan) -> int:
    """Removes what the tree does not have and sets directories' modes; how many went."""
    for path in plan.extra:
        below.remove(path, whole_folders=True)
    for path, mode in reversed(plan.modes):
        below.chmod(path, mode, folder=True)
    return len(plan.extra)


def _real(directory: Path) -> bytes:
    return os.fsencode(os.path.realpath(directory))


def _writer(data: bytes) -> Callable[[int], None]:
    return lambda fd: _write_all(fd, data)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _copy(source: int, size: int, target: int) -> None:
    at = 0
    while at < size:
        data = os.pread(source, 1 << 20, at)
        if not data:
            raise BadTree("a file that was just written has become shorter")
        _write_all(target, data)
        at += len(data)
