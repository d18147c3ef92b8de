"""Assets: what lies behind a URI, as clients have told (the Remote Asset API).

Rule: an asset is a value that references all it needs, those that its tree names included: so
it is found only while all of it is here, is used with it, and is evicted like everything else.
What its client said may not be returned any more is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from cas.digest import Digest, Function, from_key, parse, shorten
from cas.errors import InvalidArgument, MissingReferences
from cas.pb import asset_pb2
from cas.pb import remote_execution_pb2 as pb
from cas.reapi.blobs import lacking
from cas.reapi.instances import namespace
from cas.reapi.references import Named, expand
from cas.reapi.runtime import Runtime
from cas.store.interface import BlobStore, NewValue
from cas.store.pending import Pending

Kind = Literal["blob", "directory"]

Qualifiers = tuple[tuple[str, str], ...]
"""(name, value), in order of the names."""

MAX_URIS = 64
MAX_QUALIFIERS = 64
MAX_URI_BYTES = 8192
MAX_VALUE_BYTES = 8192


class Place(NamedTuple):
    """All that an asset is found by, but its URI."""

    instance: str
    kind: Kind
    function: Function
    qualifiers: Qualifiers


class Asset(NamedTuple):
    """What lies there."""

    uri: str
    digest: Digest
    since: int
    """When it was pushed, or its fetch began: milliseconds since the epoch."""
    expires: int | None
    """Not to be returned from then on; likewise."""


def check_uris(uris: Sequence[str]) -> Sequence[str]:
    """Returns them, or raises InvalidArgument."""
    if not 0 < len(uris) <= MAX_URIS:
        raise InvalidArgument(f"{len(uris)} URIs are given; expected 1 to {MAX_URIS}")
    for uri in uris:
        if not 0 < len(uri.encode()) <= MAX_URI_BYTES:
            raise InvalidArgument(
                f"URI {shorten(uri)} has {len(uri.encode())} bytes; expected 1 to {MAX_URI_BYTES}"
            )
    return uris


def qualifiers_of(messages: Sequence[asset_pb2.Qualifier]) -> Qualifiers:
    """Raises InvalidArgument for a name that is empty or there twice."""
    if len(messages) > MAX_QUALIFIERS:
        raise InvalidArgument(f"{len(messages)} qualifiers; expected {MAX_QUALIFIERS} at most")
    found: dict[str, str] = {}
    for message in messages:
        if not message.name or message.name in found:
            raise InvalidArgument(
                f"qualifier name {shorten(message.name)} is empty or there twice; expected "
                "different names"
            )
        if len(message.name) + len(message.value) > MAX_VALUE_BYTES:
            raise InvalidArgument(
                f"qualifier {shorten(message.name)} is longer than {MAX_VALUE_BYTES} characters"
            )
        found[message.name] = message.value
    return tuple(sorted(found.items()))


def find(store: BlobStore, place: Place, uri: str, oldest: int, now: int) -> Asset | None:
    """What lies behind the URI, if it is not older than `oldest`; times are milliseconds since
    the epoch.  A use of the asset and of all it needs."""
    value = store.value(_namespace(place), _key(place, uri))
    if value is None:
        return None
    kept = json.loads(value.meta)
    asset = Asset(uri, value.digest, kept["since"], kept["expires"])
    if asset.since < oldest or (asset.expires is not None and asset.expires <= now):
        return None
    return asset


async def keep(
    store: BlobStore,
    runtime: Runtime,
    place: Place,
    asset: Asset,
    *,
    blobs: Iterable[Digest] = (),
    directories: Iterable[Digest] = (),
    author: str = "",
) -> None:
    """Keeps an asset, which is of no use without those blobs and directories.

    Raises MissingReferences when any of it is not here, InvalidArgument when a directory is none.
    """
    roots = [*directories]
    if place.kind == "directory":
        roots.append(asset.digest)
    keys = {digest.key: None for digest in (*blobs, *roots, asset.digest)}
    # What is absent is told before a tree of it is looked into.
    await _require(store, runtime, [*keys], asset)
    found = await expand(store, runtime, Named([*keys], roots=roots), place.function)
    await _require(store, runtime, found.keys, asset)
    more = [key for key in found.keys if key != asset.digest.key]
    await runtime.wait(_put(store, place, asset, author, more))


def keep_fetched(store: BlobStore, place: Place, asset: Asset) -> Pending[None]:
    """Keeps a blob that was fetched just now."""
    return _put(store, place, asset)


def _put(
    store: BlobStore, place: Place, asset: Asset, author: str = "", more: Sequence[bytes] = ()
) -> Pending[None]:
    meta = json.dumps({"since": asset.since, "expires": asset.expires}).encode()
    new = NewValue(asset.digest, None, meta, author, more)
    return store.put_value(_namespace(place), _key(place, asset.uri), new)


def digests_of(messages: Iterable[pb.Digest], function: Function) -> list[Digest]:
    """Raises InvalidArgument."""
    return [parse(message.hash, message.size_bytes, function) for message in messages]


async def _require(store: BlobStore, runtime: Runtime, keys: Sequence[bytes], asset: Asset) -> None:
    missing = await lacking(store, runtime, keys)
    if missing:
        raise MissingReferences(
            f"of the asset {shorten(asset.uri)} {len(missing)} blobs are not here, blob "
            f"{from_key(missing[0])} among them; expected all of them to be uploaded before"
        )


def _namespace(place: Place) -> str:
    return namespace(f"asset-{place.kind}", place.instance)


def _key(place: Place, uri: str) -> str:
    # JSON, because any of it may hold any character; ASCII, so that it holds no zero byte.
    return json.dumps([place.function.name, uri, place.qualifiers])
