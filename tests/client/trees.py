"""Directories for tests: made, read back and compared, bit for bit."""

from __future__ import annotations

import os
import stat
from pathlib import Path

Content = dict[str, tuple[str, int, bytes]]
"""Relative path → kind, mode (0 for symlinks), bytes or target."""


def read(root: Path) -> Content:
    """Everything below `root`."""
    found: Content = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            mode = stat.S_IMODE(status.st_mode)
            relative = str(path.relative_to(root))
            if path.is_symlink():
                found[relative] = ("link", 0, os.fsencode(os.readlink(path)))
            elif path.is_dir():
                found[relative] = ("folder", mode, b"")
            else:
                found[relative] = ("file", mode, path.read_bytes())
    return found


def make(root: Path) -> None:
    """A bit of everything."""
    root.mkdir(exist_ok=True)
    (root / "empty").mkdir()
    (root / "empty" / "inner").mkdir(mode=0o750)
    (root / "a").mkdir()
    (root / "a" / "plain").write_bytes(b"plain")
    (root / "a" / "same").write_bytes(b"plain")
    (root / "b").mkdir()
    (root / "b" / "plain").write_bytes(b"plain")
    (root / "b" / "same").write_bytes(b"plain")
    (root / "program").write_bytes(b"#!/bin/sh\n")
    (root / "program").chmod(0o755)
    (root / "secret").write_bytes(b"for me")
    (root / "secret").chmod(0o600)
    (root / "nothing").write_bytes(b"")
    (root / "large").write_bytes(os.urandom(700_000))
    (root / "Ünï cödé\n").write_bytes(b"names are bytes")
    (root / "dangling").symlink_to("nowhere/at all")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "up").symlink_to("../a")
    for path in (root / "empty", root / "a", root / "b"):
        path.chmod(0o755)
    for name in ("a/plain", "a/same", "b/plain", "b/same", "nothing", "large", "Ünï cödé\n"):
        (root / name).chmod(0o644)
    (root / "empty" / "inner").chmod(0o750)


def age(root: Path, seconds: int = 100) -> None:
    """Makes the files look as if they had been left alone for a while; their status-change time
    cannot be set, so tests that need it wait or change what counts as settled."""
    for path in root.rglob("*"):
        if not path.is_symlink():
            at = path.stat().st_mtime - seconds
            os.utime(path, (at, at))
