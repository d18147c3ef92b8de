"""Object stores by `obstore`: S3 and what speaks it, Google's, Azure's, memory and directories.

Rule: the only importer of obstore; its exceptions become `objects.UpstreamError` here.  Its own
retries are off: they know neither our budget nor our breaker.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import obstore
from obstore import exceptions
from obstore.store import from_url

from cas.errors import ConfigError
from cas.upstream import azure
from cas.upstream.objects import Absent, Aged, Broken, Entry, Object, Refused

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az", "file", "memory")

PIECE = 2 << 20
"""Bytes in which objects come, at least, but for the last.  Each costs the loop a quarter of a
millisecond: in pieces of half the size a cold read over HTTP takes a quarter more CPU."""
PART = 8 << 20
"""Bytes of one part of an object that is sent in parts: S3 takes 10,000 of them, 5 MiB or more."""
PARTS_AT_ONCE = 2
"""Of one object: each is held in memory."""

_REFUSALS = (
    PermissionError,
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
    exceptions.UnknownConfigurationKeyError,
)


def connect(url: str, options: Mapping[str, Any], *, connect_timeout: float) -> ObStore:
    """The store at `url`, of one of `SCHEMES`; nothing is asked yet.

    Credentials come by the usual ways of each store (environment, files, the machine's role);
    `options` are obstore's (``endpoint``, ``region``, …).  Raises ConfigError.
    """
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise ConfigError(f"upstream {url!r} is not at one of {', '.join(SCHEMES)}")
    settings: dict[str, Any] = {**options}
    if scheme == "az":
        settings |= azure.settings(os.environ, settings.get("endpoint", ""))
    if scheme in ("s3", "gs", "az"):
        client: dict[str, Any] = {"connect_timeout": f"{connect_timeout:g}s"}
        if _is_http(settings):
            # Otherwise the environment says.
            client["allow_http"] = True
        # Time is the caller's to limit: a large object may take long, if it gets on.
        settings |= {"client_options": {**client, "timeout": "1d"}}
        settings |= {"retry_config": {"max_retries": 0}}
        if scheme == "s3":
            # One object is deleted at a time, and not every store deletes many.
            settings |= {"disable_bulk_delete": True}
            # For `copy`.  S3 refuses to copy an object onto itself as it is, and obstore gives no
            # other way to send this header signed.
            settings |= {"copy_if_not_exists": "header: x-amz-metadata-directive: REPLACE"}
    elif scheme == "file":
        settings |= {"mkdir": True}
    try:
        store = from_url(url, **settings)
    except (exceptions.BaseError, ValueError, OSError) as error:
        raise ConfigError(
            f"upstream {url!r}: {_first_line(error)}{_hint(scheme, error)}"
        ) from error
    return ObStore(store, replaces=scheme == "s3", mixes=scheme == "az")


class ObStore:
    """See `objects.Objects`."""

    def __init__(self, store: ObjectStore, *, replaces: bool = False, mixes: bool = False) -> None:
        """`replaces`: a copy onto itself must replace what is kept beside the bytes.  `mixes`: the
        parts that several send of one object are one heap, which goes when one of them is done."""
        self._store = store
        self._replaces = replaces
        self._mixes = mixes

    async def head(self, key: str, /) -> int:
        with _translated(key):
            return (await obstore.head_async(self._store, key))["size"]

    async def look(self, key: str, /) -> Aged:
        with _translated(key):
            found = await obstore.head_async(self._store, key)
        return Aged(found["size"], _age(found["last_modified"]))

    async def get(self, key: str, start: int, end: int | None, /) -> Object:
        with _translated(key):
            if start == 0 and end is None:
                return _Coming(key, await obstore.get_async(self._store, key))
            options: GetOptions = {"range": {"offset": start} if end is None else (start, end)}
            return _Coming(key, await obstore.get_async(self._store, key, options=options))

    async def put(self, key: str, data: bytes, /) -> None:
        with _translated(key, writes=True):
            await obstore.put_async(self._store, key, data, use_multipart=False)

    async def put_parts(self, key: str, parts: AsyncIterator[bytes], /) -> None:
        size = 0
        ended = False

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size, ended
            async for part in parts:
                size += len(part)
                yield part
            ended = True

        with _translated(key, writes=True):
            try:
                await obstore.put_async(
                    self._store,
                    key,
                    counted(),
                    use_multipart=True,
                    chunk_size=PART,
                    max_concurrency=PARTS_AT_ONCE,
                )
            except exceptions.BaseError:
                # Whoever was done first sent the same bytes: its name is their hash.
                if not (self._mixes and ended and await self._has(key, size)):
                    raise

    async def _has(self, key: str, size: int) -> bool:
        try:
            return (await obstore.head_async(self._store, key))["size"] == size
        except (exceptions.BaseError, OSError):
            return False

    async def copy(self, source: str, target: str, /) -> None:
        with _translated(source):
            onto_itself = self._replaces and source == target
            await obstore.copy_async(self._store, source, target, overwrite=not onto_itself)

    async def delete(self, key: str, /) -> None:
        try:
            with _translated(key):
                await obstore.delete_async(self._store, key)
        except Absent:
            pass

    async def list(self, prefix: str, /) -> AsyncIterator[Sequence[Entry]]:
        with _translated(prefix):
            async for batch in obstore.list(self._store, prefix):
                yield [Entry(entry["path"], entry["size"]) for entry in batch]


class _Coming:
    """See `objects.Object`."""

    def __init__(self, key: str, result: Any) -> None:
        self._key = key
        self._result = result
        self.size: int = result.meta["size"]
        self.age = _age(result.meta["last_modified"])

    async def pieces(self) -> AsyncIterator[bytes]:
        with _translated(self._key):
            start, end = self._result.range
            if end - start <= PIECE:
                # Its end with it: each answer of obstore's costs two threads a hand-over.
                yield await self._result.bytes_async()
                return
            async for piece in self._result.stream(min_chunk_size=PIECE):
                yield piece


def _age(written: datetime) -> float:
    return (datetime.now(UTC) - written).total_seconds()


@contextmanager
def _translated(key: str, *, writes: bool = False) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if writes:
            # What is lacking is the bucket.
            raise Refused(f"{key}: {_first_line(error)}") from error
        raise Absent(f"no object {key}") from None
    except _REFUSALS as error:
        raise Refused(f"{key}: {_first_line(error)}") from error
    except (exceptions.BaseError, OSError) as error:
        raise Broken(f"{key}: {_first_line(error)}") from error


def _is_http(options: Mapping[str, Any]) -> bool:
    return str(options.get("endpoint", "")).startswith("http://")


def _hint(scheme: str, error: BaseException) -> str:
    if scheme == "az" and "Account must be specified" in str(error):
        return f": expected AZURE_STORAGE_ACCOUNT_NAME or {azure.CONNECTION} in the environment"
    return ""


def _first_line(error: BaseException) -> str:
    """What follows is obstore's own, for its developers."""
    return str(error).partition("\n")[0]
