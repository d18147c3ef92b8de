"""ActionCache: action results, served only while everything they name is here.

Rule: what an action result references is worked out once, when it is written, and kept
beside its bytes; a hit parses nothing and reads no tree.  The bytes go back exactly as
they came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from cas import digest as digests
from cas.api import caller, names, wire
from cas.api.blobs import read_whole
from cas.api.limits import Limits
from cas.api.references import References, expand, named_by
from cas.api.status import guarded
from cas.digest import Digest, Function
from cas.errors import MissingReferences, NotFound
from cas.pb import remote_execution_pb2 as pb
from cas.store.interface import Action, BlobStore, NewAction

if TYPE_CHECKING:
    from cas.rpc.handler import Context, Runtime

SERVICE = "build.bazel.remote.execution.v2.ActionCache"


class ActionCache:
    """The servicer.  Requests and responses are raw messages."""

    def __init__(self, store: BlobStore, runtime: Runtime, limits: Limits) -> None:
        self._store = store
        self._runtime = runtime
        self._limits = limits

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "GetActionResult": grpc.unary_unary_rpc_method_handler(guarded(self.get)),
                "UpdateActionResult": grpc.unary_unary_rpc_method_handler(guarded(self.update)),
            },
        )

    # --- GetActionResult -------------------------------------------------------------

    async def get(self, request: bytes, context: Context) -> bytes:
        instance, hash_hex, size, number, hints = wire.get_action_result_request(request)
        names.check_instance(instance)
        digest = digests.parse(hash_hex, size, wire.function_of(number))
        action = self._store.action(instance, digest)
        if action is not None and not action.expanded:
            action = await self._expanded(instance, digest, action)
        if action is None or not action.complete:
            if action is not None:
                self._store.drop_action(instance, digest, action)
            raise NotFound(f"no action result of {digest} in instance {instance!r}")
        if hints is None:
            return action.result
        return await self._inlined(action.result, hints, digest.function)

    async def _expanded(self, instance: str, digest: Digest, action: Action) -> Action | None:
        """An action result whose trees came after it: they are looked into now, once."""
        result = pb.ActionResult.FromString(action.result)
        references = await self._references(result, digest.function)
        if not references.expanded:
            return action._replace(complete=False)
        new = NewAction(action.result, references.keys, expanded=True)
        await self._runtime.wait(self._store.put_action(instance, digest, new))
        return self._store.action(instance, digest)

    async def _inlined(
        self, raw: bytes, hints: pb.GetActionResultRequest, function: Function
    ) -> bytes:
        """REAPI: outputs are inlined where asked for, and not where the message grows too big."""
        result = pb.ActionResult.FromString(raw)
        room = self._limits.max_response - len(raw)
        if hints.inline_stdout and not result.stdout_raw:
            result.stdout_raw = await self._content(result.stdout_digest, function, room)
            room -= len(result.stdout_raw)
        if hints.inline_stderr and not result.stderr_raw:
            result.stderr_raw = await self._content(result.stderr_digest, function, room)
            room -= len(result.stderr_raw)
        wanted = set(hints.inline_output_files)
        for file in result.output_files:
            if file.path in wanted and not file.contents:
                file.contents = await self._content(file.digest, function, room)
                room -= len(file.contents)
        return result.SerializeToString()

    async def _content(self, digest: pb.Digest, function: Function, room: int) -> bytes:
        """A blob's bytes, or none if it is too big for `room` or gone."""
        # 16: the field's own tag and length, and its message's growth.
        if not digest.hash or not 0 < digest.size_bytes <= room - 16:
            return b""
        try:
            wanted = digests.parse(digest.hash, digest.size_bytes, function)
            return await read_whole(self._store, self._runtime, wanted)
        except NotFound:
            return b""

    # --- UpdateActionResult ----------------------------------------------------------

    async def update(self, request: bytes, context: Context) -> bytes:
        asked = wire.update_action_result_request(request)
        instance = names.check_instance(asked.instance_name)
        function = wire.function_of(asked.digest_function)
        digest = digests.parse(asked.hash, asked.size, function)
        result = asked.parsed
        await self._keep_inlined(result, digest.function)
        references = await self._references(result, digest.function)
        if self._limits.require_references:
            self._require(references)
        said = caller.of(context)
        author = f"{context.peer()} {said.label}" if said else context.peer()
        new = NewAction(asked.action_result, references.keys, references.expanded, author)
        await self._runtime.wait(self._store.put_action(instance, digest, new))
        return asked.action_result

    async def _references(self, result: pb.ActionResult, function: Function) -> References:
        named = named_by(result, function)
        if not named.trees and not named.roots:
            return References(named.keys, expanded=True)
        return await expand(self._store, self._runtime, named, function)

    async def _keep_inlined(self, result: pb.ActionResult, function: Function) -> None:
        """Stores outputs that came inside the message, so that what they name is here."""
        inlined = [(file.digest, file.contents) for file in result.output_files if file.contents]
        if result.stdout_raw and result.HasField("stdout_digest"):
            inlined.append((result.stdout_digest, result.stdout_raw))
        if result.stderr_raw and result.HasField("stderr_digest"):
            inlined.append((result.stderr_digest, result.stderr_raw))
        if not inlined:
            return
        blobs = [
            (digests.parse(digest.hash, digest.size_bytes, function), data)
            for digest, data in inlined
        ]
        for pending in await self._runtime.offload(self._store.put, blobs):
            await self._runtime.wait(pending)

    def _require(self, references: References) -> None:
        missing = self._store.missing(references.keys)
        if missing:
            first = digests.from_key(references.keys[missing[0]])
            raise MissingReferences(
                f"the action result references {len(missing)} blobs that are not here, blob "
                f"{first} among them; expected all of them to be uploaded before"
            )
