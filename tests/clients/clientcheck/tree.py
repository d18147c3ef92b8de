"""Directory trees: what one holds, in comparable form, and random ones to send. Knows nothing of
tools or servers.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One file or directory: `content` is the SHA-256 in hex of a file, a link's target, or
    empty for a directory.
    """

    kind: str
    content: str
    size: int
    mode: int


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(root: Path, wanted: Callable[[str], bool] = lambda path: True) -> dict[str, Entry]:
    """Every file, directory and link below `root` by its relative path. Links are not followed.

    `wanted` is asked once for each path; what is below a directory that it refuses is left out too.
    """
    found: dict[str, Entry] = {}
    pending = [root]
    while pending:
        for item in os.scandir(pending.pop()):
            relative = os.path.relpath(item.path, root)
            if not wanted(relative):
                continue
            info = item.stat(follow_symlinks=False)
            mode = stat.S_IMODE(info.st_mode)
            if item.is_symlink():
                found[relative] = Entry("link", os.readlink(item.path), 0, 0)
            elif item.is_dir():
                found[relative] = Entry("directory", "", 0, mode)
                pending.append(Path(item.path))
            else:
                found[relative] = Entry("file", sha256(Path(item.path)), info.st_size, mode)
    return found


def files(entries: dict[str, Entry]) -> int:
    return sum(entry.kind == "file" for entry in entries.values())


def difference(before: dict[str, Entry], after: dict[str, Entry], most: int = 10) -> str:
    """Empty if both are the same, else one line for each path that differs, at most `most`."""
    lines = []
    for path in sorted(before.keys() | after.keys()):
        one, two = before.get(path), after.get(path)
        if one != two:
            lines.append(f"    | {path}: {_describe(one)} became {_describe(two)}")
    if len(lines) > most:
        lines[most:] = [f"    | and {len(lines) - most} more"]
    return "\n".join(lines)


def _describe(entry: Entry | None) -> str:
    if entry is None:
        return "nothing"
    return f"{entry.kind} {entry.content[:12]} of {entry.size} bytes, mode {entry.mode:o}"


def make_tree(root: Path, big: int) -> None:
    """A tree to send: small files, 0 bytes, `big` random bytes, nested and empty directories, the
    executable bit.

    Most content is random, so that none of it can be in a cache already.
    """
    deep = root / "one/two/three/four"
    deep.mkdir(parents=True)
    (root / "hollow").mkdir()
    (root / "zero").write_bytes(b"")
    (root / "one/zero too").write_bytes(b"")
    (deep / "big").write_bytes(os.urandom(big))
    (root / "one/räksmörgås").write_bytes(os.urandom(100))
    same = os.urandom(5000)
    (root / "same-1").write_bytes(same)
    (root / "one/two/same-2").write_bytes(same)
    many = root / "many"
    many.mkdir()
    for number in range(60):
        # Never so small that another check's random bytes could be the same.
        (many / f"{number:03}").write_bytes(os.urandom(16 + number * number * 40))
    script = root / "run.sh"
    script.write_text(f"#!/bin/sh\necho {os.urandom(8).hex()}\n")
    script.chmod(0o755)
