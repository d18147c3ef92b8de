"""Action results, kept and served only while everything they name is here.

Rule: what an action result references is worked out once, when it is written, and kept
beside its bytes; a hit parses nothing and reads no tree.
"""

from __future__ import annotations

import logging

from google.protobuf.message import DecodeError

from cas import digest as digests
from cas.digest import Digest, Function
from cas.errors import DataLoss, InvalidArgument, MissingReferences, NotFound, Unavailable
from cas.pb import remote_execution_pb2 as pb
from cas.reapi.blobs import lacking, put
from cas.reapi.references import References, expand, named_by
from cas.reapi.runtime import Runtime
from cas.store.interface import Action, BlobStore, NewAction

log = logging.getLogger("cas.reapi")


async def settled(
    store: BlobStore, runtime: Runtime, instance: str, digest: Digest, action: Action | None
) -> Action:
    """`action`, as `BlobStore.action` gave it, if it can be served.

    One whose trees came after it is looked into now, and kept with what they name; one that
    lacks a blob is dropped.  Raises NotFound.
    """
    if action is not None and not action.expanded:
        action = await _expanded(store, runtime, instance, digest, action)
    if store.beyond is not None and (action is None or not action.complete):
        action = await _from_beyond(store, runtime, instance, digest, action)
    if action is None or not action.complete:
        if action is not None:
            store.drop_action(instance, digest, action)
        raise NotFound(f"no action result of {digest} in instance {instance!r}")
    return action


async def _from_beyond(
    store: BlobStore, runtime: Runtime, instance: str, digest: Digest, action: Action | None
) -> Action | None:
    """`action`, complete if what it lacks here lies behind; else what is kept there."""
    assert store.beyond is not None
    expanded = action is not None and action.expanded
    if action is not None and expanded and not await lacking(store, runtime, action.references):
        store.beyond.served_action()
        return action._replace(complete=True)
    try:
        raw = await runtime.wait(store.beyond.action(instance, digest))
    except Unavailable:
        # To who asks, an upstream that cannot be had is an empty one.
        return action
    if raw is None or (action is not None and expanded and raw == action.result):
        return action
    try:
        result = pb.ActionResult.FromString(raw)
        references = await _references(store, runtime, result, digest.function)
    except (DecodeError, InvalidArgument, DataLoss, Unavailable) as error:
        log.warning(
            "an action result from upstream is of no use",
            extra={"action": str(digest), "error": str(error)},
        )
        return action
    if not references.expanded or await lacking(store, runtime, references.keys):
        return action
    new = NewAction(raw, references.keys, expanded=True)
    # Who asked need not wait until it is kept.
    store.beyond.keep_action(instance, digest, new)
    store.beyond.served_action()
    return Action(raw, references.keys, expanded=True, complete=True)


async def _expanded(
    store: BlobStore, runtime: Runtime, instance: str, digest: Digest, action: Action
) -> Action | None:
    result = pb.ActionResult.FromString(action.result)
    references = await _references(store, runtime, result, digest.function)
    if not references.expanded:
        return action._replace(complete=False)
    new = NewAction(action.result, references.keys, expanded=True)
    await runtime.wait(store.put_action(instance, digest, new))
    return store.action(instance, digest)


async def keep(
    store: BlobStore,
    runtime: Runtime,
    instance: str,
    digest: Digest,
    *,
    raw: bytes,
    result: pb.ActionResult,
    author: str,
    require_references: bool,
) -> None:
    """Keeps an action result, `raw`, which `result` is the parsed form of.

    Raises InvalidArgument when it, or a tree that it names, is malformed, and
    MissingReferences when it names absent blobs and that is to be refused.
    """
    await _keep_inlined(store, runtime, result, digest.function)
    references = await _references(store, runtime, result, digest.function)
    # What lies behind serves others, who must never find an action result without its blobs.
    if require_references or store.beyond is not None:
        await _require(store, runtime, references)
    new = NewAction(raw, references.keys, references.expanded, author)
    await runtime.wait(store.put_action(instance, digest, new))


async def _references(
    store: BlobStore, runtime: Runtime, result: pb.ActionResult, function: Function
) -> References:
    named = named_by(result, function)
    if not named.trees and not named.roots:
        return References(named.keys, expanded=True)
    return await expand(store, runtime, named, function)


async def _keep_inlined(
    store: BlobStore, runtime: Runtime, result: pb.ActionResult, function: Function
) -> None:
    """Stores outputs that came inside the message, so that what they name is here."""
    inlined = [(file.digest, file.contents) for file in result.output_files if file.contents]
    if result.stdout_raw and result.HasField("stdout_digest"):
        inlined.append((result.stdout_digest, result.stdout_raw))
    if result.stderr_raw and result.HasField("stderr_digest"):
        inlined.append((result.stderr_digest, result.stderr_raw))
    if not inlined:
        return
    blobs = [
        (digests.parse(digest.hash, digest.size_bytes, function), data) for digest, data in inlined
    ]
    for pending in await put(store, runtime, blobs):
        await runtime.wait(pending)


async def _require(store: BlobStore, runtime: Runtime, references: References) -> None:
    missing = await lacking(store, runtime, references.keys)
    if missing:
        first = digests.from_key(missing[0])
        raise MissingReferences(
            f"the action result references {len(missing)} blobs that are not here, blob "
            f"{first} among them; expected all of them to be uploaded before"
        )
