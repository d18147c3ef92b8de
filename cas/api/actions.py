"""ActionCache: action results, served only while everything they name is here.

Rule: when one can be kept or served is `cas.reapi.actions`' to say; here are the messages.
The bytes go back exactly as they came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from cas import digest as digests
from cas.api import caller, names, wire
from cas.api.gate import Gate
from cas.api.limits import Limits
from cas.api.status import guarded
from cas.digest import Function
from cas.errors import NotFound
from cas.pb import remote_execution_pb2 as pb
from cas.reapi import authors
from cas.reapi.actions import keep, settled
from cas.reapi.blobs import read_whole
from cas.store.interface import BlobStore

if TYPE_CHECKING:
    from cas.rpc.handler import Context, Runtime

SERVICE = "build.bazel.remote.execution.v2.ActionCache"


class ActionCache:
    """The servicer.  Requests and responses are raw messages."""

    def __init__(
        self, store: BlobStore, runtime: Runtime, limits: Limits, gate: Gate | None = None
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._limits = limits
        self._gate = gate

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "GetActionResult": grpc.unary_unary_rpc_method_handler(
                    guarded(self.get, self._gate)
                ),
                "UpdateActionResult": grpc.unary_unary_rpc_method_handler(
                    guarded(self.update, self._gate)
                ),
            },
        )

    # --- GetActionResult -------------------------------------------------------------

    async def get(self, request: bytes, context: Context) -> bytes:
        instance, hash_hex, size, number, hints = wire.get_action_result_request(request)
        context.instance = names.check_instance(instance)
        if self._gate is not None:
            self._gate.read(context)
        among = self._limits.functions
        digest = digests.parse(hash_hex, size, among.of_number(number), among)
        action = self._store.action(instance, digest)
        if action is None or not action.complete or not action.expanded:
            action = await settled(self._store, self._runtime, instance, digest, action)
        if hints is None:
            return action.result
        return await self._inlined(action.result, hints, digest.function)

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
        instance = context.instance = names.check_instance(asked.instance_name)
        among = self._limits.functions
        function = among.of_number(asked.digest_function)
        digest = digests.parse(asked.hash, asked.size, function, among)
        principal = ""
        if self._gate is not None:
            if not self._gate.keeps(context):
                return asked.action_result
            principal = context.caller.name
        said = caller.of(context)
        author = authors.pack(principal, context.peer(), said.label if said else "")
        await keep(
            self._store,
            self._runtime,
            instance,
            digest,
            raw=asked.action_result,
            result=asked.parsed,
            author=author,
            require_references=self._limits.require_references,
        )
        return asked.action_result
