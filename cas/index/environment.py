"""An LMDB environment: how it is opened, and what its errors mean.

Rule: with `lmdb`, the only importer of LMDB's binding.  What LMDB raises leaves this package as one
of `cas.errors`, with the way out where there is one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from cas.errors import CasError, DataLoss, NoSpace

MAP_SIZES = tuple(1 << power for power in (40, 38, 36, 34, 32))
"""Address space to reserve, in bytes, largest first: the first one that the system grants is
used.  It is a limit on the file's growth, not memory taken."""

DATA_FILE = "data.mdb"
"""LMDB's name for what it keeps."""
USES_FILE = "uses"
"""Ours, beside it, for the times of last use."""

WAY_OUT = "`cas reindex` makes it anew from the blobs' files"

MAX_READERS = 1024
SPARE_TRANSACTIONS = 8


def open_environment(path: Path, sync: bool) -> lmdb.Environment:
    for size in MAP_SIZES:
        try:
            env = lmdb.open(
                str(path),
                map_size=size,
                max_dbs=8,
                max_readers=MAX_READERS,
                max_spare_txns=SPARE_TRANSACTIONS,
                subdir=True,
                sync=sync,
                metasync=sync,
                readahead=False,
                meminit=False,
            )
            _check_length(env, path)
            return env
        except (MemoryError, lmdb.MemoryError):
            continue
        except lmdb.Error as error:
            raise translate(error, path) from error
    raise NoSpace(f"the system grants no {MAP_SIZES[-1]} bytes of address space for {path}")


def _check_length(env: lmdb.Environment, path: Path) -> None:
    """Raises DataLoss when the file ends before its last page: LMDB would not notice, and the
    system ends a process that touches what a map of a file lacks."""
    expected = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    found = os.stat(path / DATA_FILE).st_size
    if found < expected:
        env.close()
        raise DataLoss(
            f"the index in {path} is cut short: {found} bytes, expected {expected}; {WAY_OUT}"
        )


_LITTLE = 4 << 20
"""Bytes: more than one commit of many small blobs writes at once."""

# BadTxn: what the first look at a bad page leaves, where LMDB does not tell that itself.
_DAMAGE = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.BadTxnError)


@contextmanager
def translated(path: Path | None = None) -> Iterator[None]:
    try:
        yield
    except lmdb.Error as error:
        raise translate(error, path) from error


def _was_cut_short(error: lmdb.Error, path: Path | None) -> bool:
    """Whether the disk took only a part of a write for want of room: LMDB calls that EIO."""
    if path is None or not _is_input_output(error):
        return False
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize < _LITTLE


def _is_input_output(error: lmdb.Error) -> bool:
    # The binding tells no codes before 2.3.
    code = getattr(error, "code", None)
    return code == errno.EIO if code is not None else os.strerror(errno.EIO) in str(error)


def translate(error: lmdb.Error, path: Path | None = None) -> CasError:
    where = f" in {path}" if path is not None else ""
    if isinstance(error, (lmdb.MapFullError, lmdb.DiskError)) or _was_cut_short(error, path):
        return NoSpace(f"the index{where} has no room left: {error}")
    if isinstance(error, lmdb.PanicError):
        return CasError(f"the index{where} is of no use to this process any more: {error}")
    if isinstance(error, _DAMAGE):
        return DataLoss(f"the index{where} is damaged ({error}); {WAY_OUT}")
    return CasError(f"the index{where} failed: {error}")
