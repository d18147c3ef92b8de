"""Saves: what a CI job keeps for the next one, under a key.

Rule: nothing but REAPI.  A save is an action result under an action that only names the key,
so that servers protect what it needs as they protect any action result, and a save that has
lost something is a miss.  Its outputs are the paths that were saved: directories as Tree
messages, files, symlinks.  `cas.client.lists` finds them by the beginning of their key.
"""

from __future__ import annotations

import glob
import hashlib
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cas.client import lists, tree
from cas.client.client import AsyncClient
from cas.client.errors import BadTree
from cas.client.lists import Entry, action_of, note_of, set_note
from cas.client.names import digest_of, message_of
from cas.client.progress import Progress
from cas.client.pull import write_tree
from cas.client.push import describe, send_files
from cas.client.scan import scan
from cas.client.source import of_bytes, of_file
from cas.digest import SHA256
from cas.errors import InvalidArgument, NotFound
from cas.pb import remote_execution_pb2 as pb

MAX_KEY_BYTES = 512

_HOME = "~"


@dataclass(frozen=True, slots=True)
class Saved:
    """What `save` did.  `existed`: the key was taken, nothing was done.  `listed` False: fallbacks
    may not find it.  `missing`: paths that do not exist here."""

    key: str
    existed: bool
    files: int = 0
    bytes: int = 0
    sent_blobs: int = 0
    sent_bytes: int = 0
    listed: bool = True
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """What `restore` did; `key` is the save's own, `exact` whether it is the one asked for."""

    key: str
    exact: bool
    files: int
    bytes: int
    written: int
    got_bytes: int
    paths: tuple[str, ...]


def check_key(key: str) -> str:
    """Returns `key` if it can be one; raises InvalidArgument."""
    if not key or not key.isprintable() or len(key.encode(errors="replace")) > MAX_KEY_BYTES:
        raise InvalidArgument(
            f"{key[:80]!r} cannot be a key; expected 1 to {MAX_KEY_BYTES} printable bytes"
        )
    return key


def key_of_files(patterns: Sequence[str], base: Path) -> str:
    """A hash of the files that the patterns match, by names and content: 32 hex digits.

    Raises InvalidArgument naming a pattern that matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        matched = glob.glob(pattern, root_dir=base, recursive=True, include_hidden=True)
        files = [name for name in matched if (base / name).is_file()]
        if not files:
            raise InvalidArgument(f"no file matches {pattern!r} in {base}")
        found.update(files)
    whole = hashlib.sha256()
    for name in sorted(found):
        content = of_file(base / name).digest
        whole.update(f"{name}\0{content}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()[:32]


def place_of(path: str, base: Path, home: Path) -> str:
    """What a save calls `path`: relative to `base`, or "~/…" below `home`.

    Raises InvalidArgument for what is below neither: no other machine could put it back.
    """
    absolute = os.path.normpath(os.path.join(base, path))
    for root, prefix in ((base, ""), (home, f"{_HOME}/")):
        relative = os.path.relpath(absolute, root)
        if relative == os.curdir and not prefix:
            return ""
        if relative.split(os.sep)[0] not in {os.pardir, os.curdir, _HOME}:
            return prefix + relative
    raise InvalidArgument(
        f"{path} is neither below {base} nor below {home}; start cas there or in a directory above"
    )


def put_back(place: str, into: Path | None, base: Path, home: Path, folder: bool = False) -> Path:
    """Where a saved path goes; raises BadTree when that is outside of where it may."""
    names = place.split("/") if place else []
    at_home = bool(names) and names[0] == _HOME
    if at_home:
        names = names[1:]
    root = into or (home if at_home else base)
    for name in names:
        tree.check_name(name)
    target = root.joinpath(*names)
    # A file or a symlink is put in the place of a symlink; a directory would be behind it.
    real = os.path.realpath(target if folder or not names else target.parent)
    real_root = os.path.realpath(root)
    if os.path.commonpath([real_root, real]) != real_root:
        raise BadTree(f"{target} leads outside of {root} by way of a symlink; remove that first")
    return target


async def save(
    client: AsyncClient,
    key: str,
    paths: Sequence[str],
    *,
    base: Path,
    home: Path,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Saved:
    """Keeps `paths` under `key`, unless there is such a save."""
    action = action_of("save", check_key(key))
    existing = await client.get_action(action)
    if existing is not None:
        at = note_of(existing).get("at", time.time())
        return Saved(key, existed=True, listed=await lists.enter(client, Entry(at, key)))
    before = client.tally.sent_blobs, client.tally.sent_bytes
    result = pb.ActionResult()
    done = _Done()
    for path in dict.fromkeys(paths):
        await _save_path(client, path, result, done, base, home, cache, progress or Progress())
    if not done.saved:
        raise InvalidArgument(f"none of {', '.join(paths)} exists; nothing was saved")
    entry = Entry(time.time(), key)
    set_note(result, {"key": key, "at": entry.at})
    await client.put_action(action, result)
    return Saved(
        key,
        existed=False,
        files=done.files,
        bytes=done.bytes,
        sent_blobs=client.tally.sent_blobs - before[0],
        sent_bytes=client.tally.sent_bytes - before[1],
        listed=await lists.enter(client, entry),
        missing=tuple(done.missing),
    )


@dataclass(slots=True)
class _Done:
    saved: int = 0
    files: int = 0
    bytes: int = 0
    missing: list[str] = field(default_factory=list)


async def _save_path(
    client: AsyncClient,
    path: str,
    result: pb.ActionResult,
    done: _Done,
    base: Path,
    home: Path,
    cache: Path | None,
    progress: Progress,
) -> None:
    place = place_of(path, base, home)
    where = os.path.join(base, path)
    try:
        status = await client.run(os.lstat, where)
    except FileNotFoundError:
        done.missing.append(path)
        return
    done.saved += 1
    if stat.S_ISLNK(status.st_mode):
        result.output_symlinks.add(path=place, target=await client.run(os.readlink, where))
        done.files += 1
    elif stat.S_ISDIR(status.st_mode):
        found = await client.run(scan, Path(where))
        await send_files(client, found, cache, SHA256, progress)
        folders, _ = await client.run(describe, found, SHA256)
        blob = of_bytes(await client.run(tree.to_tree, folders))
        await client.put_blobs([blob])
        result.output_directories.add(path=place, tree_digest=message_of(blob.digest))
        done.files += len(found.files)
        done.bytes += sum(file.seen.size for file in found.files)
    else:
        blob = await client.run(of_file, where)
        await client.put_blobs([blob])
        result.output_files.add(
            path=place,
            digest=message_of(blob.digest),
            is_executable=status.st_mode & 0o100 != 0,
        )
        done.files += 1
        done.bytes += status.st_size


async def restore(
    client: AsyncClient,
    key: str,
    fallbacks: Sequence[str] = (),
    *,
    base: Path,
    home: Path,
    into: Path | None = None,
    delete: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Restored | None:
    """Brings back the save `key`, or the newest one that begins with one of `fallbacks`, the
    first of them that has any; None if there is none."""
    check_key(key)
    tried = set()
    for prefix in (None, *fallbacks):
        keys = (
            [key] if prefix is None else [entry.key for entry in await lists.find(client, prefix)]
        )
        for candidate in keys:
            if candidate in tried:
                continue
            tried.add(candidate)
            result = await client.get_action(action_of("save", candidate))
            if result is None or note_of(result).get("key") != candidate:
                continue
            try:
                done = await _put_back(
                    client, result, into, base, home, delete, cache, progress or Progress()
                )
            except NotFound:
                # Evicted since, by a server that does not protect what an action result needs.
                continue
            files, size, written, got, paths = done
            return Restored(candidate, candidate == key, files, size, written, got, paths)
    return None


async def _put_back(
    client: AsyncClient,
    result: pb.ActionResult,
    into: Path | None,
    base: Path,
    home: Path,
    delete: bool,
    cache: Path | None,
    progress: Progress,
) -> tuple[int, int, int, int, tuple[str, ...]]:
    files = size = written = 0
    got = client.tally.got_bytes
    paths = []
    # All trees before the first file: a save that has lost one is not half put back.
    trees = []
    for directory in result.output_directories:
        digest = digest_of(directory.tree_digest)
        raw = await client.get(digest)
        trees.append((directory.path, await client.run(tree.from_tree, raw, digest)))
    for place, folders in trees:
        target = put_back(place, into, base, home, folder=True)
        pulled = await write_tree(
            client, folders, target, delete=delete, cache=cache, progress=progress
        )
        files += pulled.files
        size += pulled.bytes
        written += pulled.written
        paths.append(str(target))
    for output in result.output_files:
        target = put_back(output.path, into, base, home)
        digest = digest_of(output.digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        await client.get_file(digest, target)
        target.chmod(0o755 if output.is_executable else 0o644)
        files += 1
        size += digest.size
        written += 1
        paths.append(str(target))
    for link in result.output_symlinks:
        target = put_back(link.path, into, base, home)
        await client.run(_link, target, link.target)
        files += 1
        written += 1
        paths.append(str(target))
    return files, size, written, client.tally.got_bytes - got, tuple(paths)


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
