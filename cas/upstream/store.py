"""A local store in front of what lies upstream.

Rule: nothing but where the two meet; `local` does what is asked of this node, `tier` the rest.
What needs no upstream is the local store's own method, with nothing around it.  Writes are
acknowledged once upstream has them too, or, with `back`, once it is durable here that it is to
have them; or at once, where nothing is sent there.
"""

from __future__ import annotations

from collections.abc import Sequence

from cas.digest import Digest, Function
from cas.store.interface import Buffer, Spool, Upload
from cas.store.local import LocalStore
from cas.store.pending import Pending
from cas.upstream.tier import Tier


class TieredStore:
    """See `interface.BlobStore`."""

    def __init__(self, local: LocalStore, tier: Tier) -> None:
        self._local = local
        self.beyond = tier
        self.present = local.present
        self.missing = local.missing
        self.find_missing = local.find_missing
        self.contains = local.contains
        self.find = local.find
        self.look_up = local.look_up
        self.read_small = local.read_small
        self.read_small_many = local.read_small_many
        self.open = local.open
        self.room = local.room
        self.upload_exists = local.upload_exists
        self.committed_size = local.committed_size
        self.value = local.value
        self.put_value = local.put_value
        self.drop_value = local.drop_value
        self.action = local.action
        self.drop_action = local.drop_action
        self.put_action = tier.put_action
        self.inline_threshold = local.inline_threshold

    def put(self, blobs: Sequence[tuple[Digest, Buffer]], /) -> list[Pending[None]]:
        written = self._local.put(blobs)
        return [
            self.beyond.after(pending, digest)
            for pending, (digest, _) in zip(written, blobs, strict=True)
        ]

    def upload(self, name: str, digest: Digest, offset: int, data: Buffer, /) -> Upload:
        return _Upload(self._local.upload(name, digest, offset, data), self.beyond)

    def gather(self, name: str, digest: Digest, /) -> Upload | None:
        upload = self._local.gather(name, digest)
        return None if upload is None else _Upload(upload, self.beyond)

    def spool(self, function: Function, size: int | None, /) -> Spool:
        return _Spool(self._local.spool(function, size), self.beyond)

    def close(self) -> None:
        """*Blocking.*  What is under way upstream ends; the local store is its opener's."""
        self.beyond.close()


class _Upload:
    """See `interface.Upload`."""

    __slots__ = ("_tier", "_upload", "append", "digest", "discard", "flush", "suspend")

    def __init__(self, upload: Upload, tier: Tier) -> None:
        self._upload = upload
        self._tier = tier
        self.digest = upload.digest
        self.append = upload.append
        self.flush = upload.flush
        self.suspend = upload.suspend
        self.discard = upload.discard

    @property
    def offset(self) -> int:
        return self._upload.offset

    def finish(self) -> Pending[None]:
        return self._tier.after(self._upload.finish(), self.digest)


class _Spool:
    """See `interface.Spool`."""

    __slots__ = ("_spool", "_tier", "append", "discard", "flush")

    def __init__(self, spool: Spool, tier: Tier) -> None:
        self._spool = spool
        self._tier = tier
        self.append = spool.append
        self.flush = spool.flush
        self.discard = spool.discard

    @property
    def size(self) -> int:
        return self._spool.size

    def finish(self, expected: bytes | None = None, /) -> tuple[Digest, Pending[None]]:
        digest, pending = self._spool.finish(expected)
        return digest, self._tier.after(pending, digest)
