"""Looking inside: a digest's blob, and the action results under it.

Rule: reads, bounded in bytes and entries; parsing is a helper thread's.  A blob is a use of it,
as any other look is; action results are read without one, and without counting as hits or misses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from cas import digest as digests
from cas.digest import Digest, Function, shorten
from cas.errors import InvalidArgument, NotFound
from cas.http.context import Context
from cas.index.records import ActionRecord
from cas.pb import remote_execution_pb2 as pb
from cas.reapi import inside as insides
from cas.reapi.blobs import read_whole
from cas.store.administration import Administration
from cas.store.interface import BlobStore

WHOLE: Final = 4 << 20
"""Largest blob, in bytes, that is parsed."""
MAX_ASKED: Final = 2048
"""Characters of a digest and what may stand around it."""


class Question(NamedTuple):
    """What to look at."""

    text: str
    """A digest, or something with one in it: a resource name, a line of a log."""
    instances: tuple[str, ...]
    """Where to look for action results."""
    kind: str
    """One of `insides.KINDS`; empty: what the blob seems to be."""
    path: str
    """To a directory within a tree."""


class Named(NamedTuple):
    """A digest as somebody wrote it."""

    function: Function
    hash: bytes
    size: int | None
    """None where it was not told."""


async def inside(context: Context, records: Administration, question: Question) -> dict[str, Any]:
    """What there is, for JSON.  Raises InvalidArgument for what is no digest."""
    if question.kind and question.kind not in insides.KINDS:
        raise InvalidArgument(
            f"as {shorten(question.kind)}: expected one of {', '.join(insides.KINDS)}"
        )
    names = named(question.text)
    results = await context.runtime.offload(_results, context.store, records, names, question)
    found = find(context.store, names)
    told = None
    if found is not None:
        try:
            told = await _content(context, found, question)
        except NotFound:
            # Evicted just now.
            told = None
    hashes = [f"{name.function.name}/{name.hash.hex()}" for name in names]
    return {"asked": hashes, "blob": told, "results": results}


async def blob(context: Context, text: str) -> Digest:
    """Raises InvalidArgument or NotFound."""
    found = find(context.store, named(text))
    if found is None:
        raise NotFound(f"no blob has the digest {shorten(text)}")
    return found


_NAMED = re.compile(r"(?:\b([a-z0-9]+)[/:])?(?<![0-9a-f])([0-9a-f]{64,128})(?:[/:](\d{1,19})\b)?")


def named(text: str) -> list[Named]:
    """What `text` may mean: more than one where functions have hashes of the same length.

    Raises InvalidArgument.
    """
    match = _NAMED.search(text.strip().lower()) if len(text) <= MAX_ASKED else None
    if match is not None:
        function, hex_hash, size = match.groups()
        told = digests.BY_NAME.get(function or "")
        return [
            Named(each, bytes.fromhex(hex_hash), None if size is None else int(size))
            for each in (digests.FUNCTIONS if told is None else (told,))
            if 2 * each.length == len(hex_hash)
        ] or _refuse(text)
    return _refuse(text)


def find(store: BlobStore, names: Sequence[Named]) -> Digest | None:
    """The blob that is meant, if it is here."""
    for name in names:
        if name.size is None:
            found = store.find(name.function.prefix + name.hash)
            if found is not None:
                return found
        elif name.size <= digests.MAX_SIZE:
            digest = digests.make(name.function, name.hash, name.size)
            if store.contains(digest):
                return digest
    return None


def _refuse(text: str) -> list[Named]:
    lengths = sorted({2 * function.length for function in digests.FUNCTIONS})
    raise InvalidArgument(
        f"{shorten(text)} holds no digest; expected a hash of "
        f"{' or '.join(map(str, lengths))} hex digits, perhaps with /SIZE"
    )


def _results(
    store: BlobStore, records: Administration, names: Sequence[Named], question: Question
) -> list[dict[str, Any]]:
    told = []
    for name in names:
        digest = digests.make(name.function, name.hash, 0)
        for instance in question.instances:
            try:
                record = records.written(instance, digest)
            except NotFound:
                continue
            about = {"instance": instance, "action": f"{name.function.name}/{name.hash.hex()}"}
            told.append({**about, **_result(store, name.function, record)})
    return told


def _result(store: BlobStore, function: Function, record: ActionRecord) -> dict[str, Any]:
    # Bytes that parsed when they were taken.
    values = insides.result(pb.ActionResult.FromString(record.result), function)
    return {
        "written_at": record.written_at / 1000,
        "size": len(record.result),
        "references": len(record.references),
        "missing": len(store.missing(list(record.references))),
        **_settled(store, values),
    }


async def _content(context: Context, digest: Digest, question: Question) -> dict[str, Any]:
    function = digest.function
    if digest.size <= WHOLE:
        data = await read_whole(context.store, context.runtime, digest)
        kind = question.kind or await context.runtime.offload(insides.kind_of, data, function)
        values = await context.runtime.offload(insides.told, kind, data, function, question.path)
    else:
        data = await context.runtime.offload(_beginning, context.store, digest)
        kind = "text" if insides.is_text(data) else "bytes"
        values = insides.preview(data, digest.size, as_text=kind == "text")
    return {
        "digest": insides.name_of(digest),
        "function": function.name,
        "size": digest.size,
        "kind": kind,
        "kinds": insides.KINDS if digest.size <= WHOLE else [kind],
        **_settled(context.store, values),
    }


def _settled(store: BlobStore, values: Any) -> Any:
    keys = list(insides.keys_in(values))
    absent = {keys[place] for place in store.missing(keys)}
    return insides.settled(values, absent)


def _beginning(store: BlobStore, digest: Digest) -> bytes:
    opened = store.open(digest)
    try:
        data = bytearray(insides.PREVIEW)
        return bytes(data[: opened.read_into(memoryview(data), 0)])
    finally:
        opened.close()
