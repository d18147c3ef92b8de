"""An upload of a small blob that has only begun: its bytes wait in memory.

Rule: no file and nothing that blocks, unless the stream breaks off; then what came goes where
every upload's bytes are.  Most small blobs come in a few messages of one stream, and a staging
file would cost them more than all the rest.
"""

from __future__ import annotations

from cas import digest as digests
from cas.digest import Digest
from cas.errors import NoRoomYet
from cas.index.changes import NewBlob
from cas.store.commit import Work
from cas.store.interface import Buffer
from cas.store.pending import Pending
from cas.store.uploads import LocalUpload, Uploads


class GatheringUpload:
    """See `interface.Upload`; only `flush` and `suspend` block."""

    __slots__ = ("_name", "_open", "_parts", "_staged", "_uploads", "digest", "offset")

    def __init__(self, uploads: Uploads, name: str, digest: Digest) -> None:
        """Raises LimitExceeded."""
        uploads.admit()
        self._uploads = uploads
        self._name = name
        self._parts: list[Buffer] = []
        self._open = True
        self._staged: LocalUpload | None = None
        """Takes over once bytes have to outlive the process."""
        self.digest = digest
        self.offset = 0

    def append(self, data: Buffer, /) -> bool:
        if self._staged is not None:
            try:
                return self._staged.append(data)
            finally:
                self.offset = self._staged.offset
        offset = self.offset + len(data)
        digests.check_size(self.digest, offset)
        self._parts.append(data)
        self.offset = offset
        return False

    def flush(self) -> None:
        self._stage().flush()

    def finish(self) -> Pending[None]:
        if self._staged is not None:
            return self._staged.finish()
        data = b"".join(self._parts)
        self.discard()
        digests.verify(self.digest, data)
        self._uploads.counts.new.add()
        pending: Pending[None] = Pending()
        self._uploads.committer.submit(Work(pending, blobs=(NewBlob(self.digest.key, data),)))
        return pending

    def suspend(self, *, durable: bool = False) -> int:
        if not self._open and self._staged is None:
            return self.offset
        return self._stage().suspend(durable=durable)

    def discard(self) -> None:
        if self._staged is not None:
            self._staged.discard()
        elif self._open:
            self._open = False
            self._parts.clear()
            self._uploads.released()

    def _stage(self) -> LocalUpload:
        if self._staged is None:
            data = b"".join(self._parts)
            # It counts as open once more there.
            self.discard()
            try:
                self._staged = self._uploads.begin(self._name, self.digest, 0, data)
            except NoRoomYet:
                # To be asked for again.
                self._uploads.admit()
                self._open = True
                self._parts.append(data)
                raise
        return self._staged
