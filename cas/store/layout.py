"""Where things are on disk.

Rule: pure; digests, upload names and generations to paths and back.  The tree:

    DIR/format          one line: the format's version
    DIR/lock            held by the one server of this directory
    DIR/index/          LMDB
    DIR/index/space     who was promised how much room; made anew by each server
    DIR/index/tags, DIR/index/hints     where entries are; made anew by each server
    DIR/index/claims    which process fetches what from upstream: nothing but locks
    DIR/blobs/<function>/<first byte of the hash>/<hash>.<generation>
                        and, where the bytes are zstd, .<the blob's size>.zst
    DIR/staging/<first byte>/<hash of the upload's name>        uploads in progress
    DIR/quarantine/     what failed verification after it was stored
    DIR/scrub           how far the background scrub is
    DIR/renewed         how far what is used was renewed upstream
    DIR/hits            how often what was asked for was there

A blob's file carries a generation, drawn for each write of it, so that evicting
one copy can never remove the file of another that is being written meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cas.digest import BY_NAME, FUNCTIONS, Digest, Function, make
from cas.index.records import FILE, PACKED, Record

ZST = ".zst"

FORMAT_VERSION = "cas 1"
"""The line in DIR/format.  Another line means another release's layout."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below one directory."""

    root: Path

    @property
    def format(self) -> Path:
        return self.root / "format"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def space(self) -> Path:
        return self.index / "space"

    @property
    def claims(self) -> Path:
        return self.index / "claims"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def scrub(self) -> Path:
        return self.root / "scrub"

    @property
    def renewed(self) -> Path:
        return self.root / "renewed"

    @property
    def hits(self) -> Path:
        return self.root / "hits"

    def shards(self, functions: Iterable[Function] = FUNCTIONS) -> list[Path]:
        """Every directory that may hold blobs, of some `functions` only if those are given;
        parents first.  Those of functions that were never enabled are not there."""
        out = []
        for top in [self.blobs / function.name for function in functions]:
            out += [top, *_shards(top)]
        return out

    def staging_shards(self) -> list[Path]:
        """Every directory that holds uploads.  Many, because making and removing files in one
        directory excludes each other."""
        return _shards(self.staging)

    def shard(self, digest: Digest) -> str:
        """The directory of the digest's files."""
        return f"{self.root}/blobs/{digest.function.name}/{digest.key[1]:02x}"

    def blob(self, digest: Digest, generation: int) -> str:
        """The file of one copy of a blob.  A str: Path costs more than the open."""
        return f"{self.shard(digest)}/{digest.hex}.{generation:08x}"

    def packed(self, digest: Digest, generation: int) -> str:
        """The same of a copy as zstd: the name that zstd's tools give such files."""
        return f"{self.blob(digest, generation)}.{digest.size}{ZST}"

    def copy(self, digest: Digest, record: Record) -> str:
        """The file of the copy that `record` names."""
        named = self.packed if record.where == PACKED else self.blob
        return named(digest, record.generation)

    def upload(self, name: str) -> str:
        """The staging file of an upload: derived from its name, so that any worker, or the
        next process, finds it without an index."""
        found = upload_id(name)
        return f"{self.root}/staging/{found[:2]}/{found}"


def _shards(top: Path) -> list[Path]:
    return [top / f"{byte:02x}" for byte in range(256)]


def upload_id(name: str) -> str:
    """32 hex digits for an upload's name."""
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


class BlobName(NamedTuple):
    """What the path of a blob's file tells."""

    digest: Digest
    generation: int
    packed: bool
    """Whether its bytes are zstd."""

    def is_copy_of(self, record: Record | None) -> bool:
        """Whether `record`, of the same blob, names this copy."""
        where = PACKED if self.packed else FILE
        return record is not None and (record.where, record.generation) == (where, self.generation)


def parse_blob(path: Path, size: int) -> BlobName | None:
    """What the path of a file of `size` bytes tells; None when it is no blob's name.  The
    inverse of `Layout.blob` and `Layout.packed`."""
    function = BY_NAME.get(path.parent.parent.name)
    hex_hash, *rest = path.name.split(".")
    packed = len(rest) == 3 and f".{rest[2]}" == ZST
    if function is None or not (packed or len(rest) == 1) or len(hex_hash) != 2 * function.length:
        return None
    generation = rest[0]
    if len(generation) != 8 or hex_hash[:2] != path.parent.name:
        return None
    try:
        raw = bytes.fromhex(hex_hash)
        number = int(generation, 16)
        if packed:
            size = int(rest[1])
    except ValueError:
        return None
    if packed and (size < 0 or rest[1] != str(size)):
        return None
    return BlobName(make(function, raw, size), number, packed)
