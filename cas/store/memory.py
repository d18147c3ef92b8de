"""The store in memory: the reference for the contract, and for tests of what is above.

Rule: the shortest code that keeps every promise of `interface`; never served.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from cas import digest as digests
from cas.digest import FUNCTIONS, Digest, Function
from cas.errors import (
    CasError,
    DigestMismatch,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    StoreClosed,
    UploadSuperseded,
)
from cas.store.blobs import BytesBlob
from cas.store.interface import Action, Beyond, Blob, Buffer, Found, NewAction, NewValue, Value
from cas.store.pending import Pending, failed, resolved

FRESH_ACTION_SECONDS = 60.0


class MemoryStore:
    """See `interface.BlobStore`."""

    beyond: Beyond | None = None

    def __init__(
        self,
        *,
        inline_threshold: int = 64 << 10,
        max_open_uploads: int = 2048,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self.inline_threshold = inline_threshold
        self._max_open_uploads = max_open_uploads
        self._lock = threading.RLock()
        self._blobs: dict[bytes, bytes] = {digests.empty(f).key: b"" for f in FUNCTIONS}
        self._actions: dict[tuple[str, bytes], tuple[float, NewAction]] = {}
        self._values: dict[tuple[str, str], NewValue] = {}
        self._spools = 0
        self._staged: dict[str, bytearray] = {}
        self._writers: dict[str, MemoryUpload] = {}
        self._closed = False

    def present(self, keys: Sequence[bytes], /) -> set[bytes]:
        return {key for key in keys if key in self._blobs}

    def missing(self, keys: Sequence[bytes], /) -> list[int]:
        return [position for position, key in enumerate(keys) if key not in self._blobs]

    def find_missing(self, keys: Sequence[bytes], /) -> list[int]:
        return self.missing(keys)

    def contains(self, digest: Digest, /) -> bool:
        return digest.key in self._blobs

    def find(self, prefix: bytes, /) -> Digest | None:
        with self._lock:
            keys = [key for key in self._blobs if key.startswith(prefix)]
        return digests.from_key(min(keys)) if keys else None

    def look_up(self, prefix: bytes, /) -> Found | None:
        digest = self.find(prefix)
        return None if digest is None else Found(digest, self.read_small(digest))

    def read_small(self, digest: Digest, /) -> bytes | None:
        return self.read_small_many([digest.key]).get(digest.key)

    def read_small_many(self, keys: Sequence[bytes], /) -> dict[bytes, bytes]:
        found = {key: self._blobs[key] for key in keys if key in self._blobs}
        return {key: data for key, data in found.items() if len(data) <= self.inline_threshold}

    def open(self, digest: Digest, /) -> Blob:
        data = self._blobs.get(digest.key)
        if data is None:
            raise NotFound(f"blob {digest} is not here")
        return BytesBlob(data)

    def put(self, blobs: Sequence[tuple[Digest, Buffer]], /) -> list[Pending[None]]:
        out: list[Pending[None]] = []
        for digest, data in blobs:
            try:
                self._check_open()
                digests.verify(digest, data)
            except CasError as error:
                out.append(failed(error))
            else:
                self._blobs.setdefault(digest.key, bytes(data))
                out.append(resolved(None))
        return out

    def room(self, size: int, /, *, waited: float = 0.0) -> Pending[None]:
        return resolved(None)

    def upload(self, name: str, digest: Digest, offset: int, data: Buffer, /) -> MemoryUpload:
        with self._lock:
            self._check_open()
            if name not in self._writers:
                self._admit()
            committed = len(self._staged.get(name, b""))
            if offset != committed:
                raise InvalidArgument(
                    f"write_offset is {offset}, expected the committed size {committed}"
                )
            digests.check_size(digest, offset + len(data))
            staged = self._staged.setdefault(name, bytearray())
            staged += data
            upload = MemoryUpload(self, name, digest, staged)
            self._writers[name] = upload
            return upload

    def gather(self, name: str, digest: Digest, /) -> MemoryUpload:
        return self.upload(name, digest, 0, b"")

    def upload_exists(self, name: str, /) -> bool:
        return name in self._staged

    def committed_size(self, name: str, /) -> int | None:
        staged = self._staged.get(name)
        return None if staged is None else len(staged)

    def spool(self, function: Function, size: int | None, /) -> MemorySpool:
        with self._lock:
            self._check_open()
            self._admit()
            self._spools += 1
        return MemorySpool(self, function)

    def value(self, namespace: str, key: str, /, *, counted: bool = True) -> Value | None:
        found = self._values.get((namespace, key))
        if found is None:
            return None
        if found.data is None and self.missing([found.digest.key, *found.references]):
            return None
        more = [] if found.data is not None else list(found.references)
        return Value(found.digest, found.data, found.meta, more)

    def put_value(self, namespace: str, key: str, value: NewValue, /) -> Pending[None]:
        if self._closed:
            return failed(StoreClosed("the store is closing"))
        self._values[namespace, key] = value
        return resolved(None)

    def drop_value(self, namespace: str, key: str, /) -> Pending[None]:
        self._values.pop((namespace, key), None)
        return resolved(None)

    def action(self, instance: str, digest: Digest, /) -> Action | None:
        found = self._actions.get(_action_key(instance, digest))
        if found is None:
            return None
        action = found[1]
        complete = not self.missing(action.references)
        return Action(action.result, action.references, action.expanded, complete)

    def put_action(self, instance: str, digest: Digest, action: NewAction, /) -> Pending[None]:
        if self._closed:
            return failed(StoreClosed("the store is closing"))
        self._actions[_action_key(instance, digest)] = (self._clock(), action)
        return resolved(None)

    def drop_action(self, instance: str, digest: Digest, action: Action, /) -> None:
        key = _action_key(instance, digest)
        with self._lock:
            found = self._actions.get(key)
            if found is None or found[1].result != action.result:
                return
            if self._clock() - found[0] >= FRESH_ACTION_SECONDS:
                del self._actions[key]

    def close(self) -> None:
        self._closed = True

    def _admit(self) -> None:
        count = len(self._writers) + self._spools
        if count >= self._max_open_uploads:
            raise LimitExceeded(
                f"{count} uploads are open, the limit (max_open_uploads) is "
                f"{self._max_open_uploads}"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed("the store is closing")


class MemoryUpload:
    """See `interface.Upload`."""

    def __init__(self, store: MemoryStore, name: str, digest: Digest, staged: bytearray) -> None:
        self._store = store
        self._name = name
        self._staged = staged
        self._buffer = bytearray()
        self._open = True
        self.digest = digest

    @property
    def offset(self) -> int:
        return len(self._staged) + len(self._buffer)

    def append(self, data: Buffer, /) -> bool:
        digests.check_size(self.digest, self.offset + len(data))
        self._buffer += data
        return True

    def flush(self) -> None:
        if not self._buffer:
            return
        with self._store._lock:
            if self._store._writers.get(self._name) is not self:
                raise UploadSuperseded(f"a later stream took over the upload of {self.digest}")
            self._staged += self._buffer
            self._buffer.clear()

    def finish(self) -> Pending[None]:
        try:
            self.flush()
            data = bytes(self._staged)
            digests.verify(self.digest, data)
        except BaseException:
            self.discard()
            raise
        self._store._blobs.setdefault(self.digest.key, data)
        self.discard()
        return resolved(None)

    def suspend(self, *, durable: bool = False) -> int:
        if self._open:
            try:
                self.flush()
            finally:
                self._let_go()
        return len(self._staged)

    def discard(self) -> None:
        if self._open:
            if self._let_go():
                self._store._staged.pop(self._name, None)
            self._open = False

    def _let_go(self) -> bool:
        self._open = False
        with self._store._lock:
            if self._store._writers.get(self._name) is not self:
                return False
            del self._store._writers[self._name]
            return True


class MemorySpool:
    """See `interface.Spool`."""

    def __init__(self, store: MemoryStore, function: Function) -> None:
        self._store = store
        self._function = function
        self._data = bytearray()
        self._open = True

    @property
    def size(self) -> int:
        return len(self._data)

    def append(self, data: bytes, /) -> bool:
        self._data += data
        return True

    def flush(self) -> None:
        """There is nothing but memory."""

    def finish(self, expected: bytes | None = None, /) -> tuple[Digest, Pending[None]]:
        self.discard()
        digest = digests.of(self._data, self._function)
        if expected is not None and not digest.key.startswith(expected):
            raise DigestMismatch(f"received {digest}, expected {expected[1:].hex()}")
        return digest, self._store.put([(digest, self._data)])[0]

    def discard(self) -> None:
        if self._open:
            self._open = False
            with self._store._lock:
                self._store._spools -= 1


def _action_key(instance: str, digest: Digest) -> tuple[str, bytes]:
    return instance, digest.prefix
