"""`push_tree`: a directory into a remote.

Rule: the order of things: look, hash what is not known, send what the remote lacks (while
the rest is still being hashed), directories last, so that whoever finds the root finds all.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from cas.client import tree
from cas.client.client import AsyncClient
from cas.client.progress import Progress
from cas.client.scan import Found, Place, Scan, groups, hash_group, recall, scan
from cas.client.source import Blob, Bytes, File
from cas.client.statcache import StatCache
from cas.client.transfer import tasks, together
from cas.client.tree import FileNode, Folders, Listing
from cas.digest import SHA256, Digest, Function

WAVE_FILES = 4000
WAVE_BYTES = 64 << 20
"""Files are asked for and sent in waves of this size, so that hashing goes on meanwhile."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did.  `bytes` are of all files; `sent_…` is what the remote lacked;
    `hashed` is how many files had to be read to know their digest."""

    root: Digest
    files: int
    folders: int
    links: int
    bytes: int
    sent_blobs: int
    sent_bytes: int
    hashed: int
    skipped: tuple[str, ...] = ()


async def push_tree(
    client: AsyncClient,
    directory: Path,
    *,
    cache: Path | None = None,
    function: Function = SHA256,
    progress: Progress | None = None,
) -> Pushed:
    """Stores `directory` as REAPI Directory messages and blobs.

    `cache` is the stat cache's file; None reads every file.
    """
    before = client.tally.sent_blobs, client.tally.sent_bytes
    found = await client.run(scan, directory)
    hashed = await send_files(client, found, cache, function, progress or Progress())
    folders, raws = await client.run(describe, found, function)
    await client.put_blobs(Blob(Digest(key, len(raw)), Bytes(raw)) for key, raw in raws.items())
    files = found.files
    return Pushed(
        root=folders.root,
        files=len(files),
        folders=len(found.places) - 1,
        links=sum(len(place.links) for place in found.places),
        bytes=sum(file.seen.size for file in files),
        sent_blobs=client.tally.sent_blobs - before[0],
        sent_bytes=client.tally.sent_bytes - before[1],
        hashed=hashed,
        skipped=tuple(found.skipped),
    )


async def send_files(
    client: AsyncClient, found: Scan, cache: Path | None, function: Function, progress: Progress
) -> int:
    """Finds every file's digest and sends what the remote lacks; how many were read."""
    files = found.files
    progress.files = len(files)
    progress.total = sum(file.seen.size for file in files)
    root = found.root.encode(errors="surrogateescape")
    with StatCache(cache) if cache else nullcontext() as known_files:
        known = await client.run(known_files.load, root) if known_files else {}
        unknown = await client.run(recall, files, known, function)
        waves = _Waves(client, found, progress)
        async with tasks() as group:
            group.create_task(waves.send([file for file in files if file.digest is not None]))
            for some in _by_wave(unknown):
                # Not more than a few waves ahead of the network.
                await waves.turns.acquire()
                await together(
                    client.run(hash_group, found.root, task, function) for task in groups(some)
                )
                group.create_task(waves.send_and_release(some))
        if known_files:
            fresh = [
                (file.relative, file.fresh, file.digest.key)
                for file in unknown
                if file.fresh is not None and file.digest is not None
            ]
            gone = known.keys() - {file.relative for file in files}
            if fresh or gone:
                await client.run(known_files.save, root, fresh, gone)
    return len(unknown)


def describe(found: Scan, function: Function) -> tuple[Folders, dict[bytes, bytes]]:
    """The directories of a scan whose files all have digests."""
    return tree.build(((place.path, _listing(place)) for place in reversed(found.places)), function)


def _listing(place: Place) -> Listing:
    files = []
    for file in place.files:
        assert file.digest is not None
        files.append(FileNode(file.path[-1], file.digest, file.mode))
    return Listing(tuple(files), (), tuple(place.links), place.mode)


class _Waves:
    """Sends files whose digests are known."""

    def __init__(self, client: AsyncClient, found: Scan, progress: Progress) -> None:
        self.turns = asyncio.Semaphore(3)
        self._client = client
        self._found = found
        self._progress = progress
        self._seen: set[bytes] = set()

    async def send_and_release(self, files: list[Found]) -> None:
        try:
            await self.send(files)
        finally:
            self.turns.release()

    async def send(self, files: list[Found]) -> None:
        blobs: dict[bytes, Blob] = {}
        for file in files:
            assert file.digest is not None
            if file.digest.key not in self._seen:
                source = File(self._found.location(file))
                blobs[file.digest.key] = Blob(file.digest, source)
        self._seen.update(blobs)
        missing = await self._client.find_missing(blob.digest for blob in blobs.values())
        total = sum(file.seen.size for file in files)
        self._progress.move(total - sum(digest.size for digest in missing))
        await self._client.send([blobs[digest.key] for digest in missing], self._progress.move)
        self._progress.files_done += len(files)


def _by_wave(files: list[Found]) -> list[list[Found]]:
    out: list[list[Found]] = []
    size = WAVE_BYTES
    for file in files:
        if size >= WAVE_BYTES or len(out[-1]) >= WAVE_FILES:
            out.append([])
            size = 0
        out[-1].append(file)
        size += file.seen.size
    return out
