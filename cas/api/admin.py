"""cas.admin.v1: what an operator asks of a running server.

Rule: every method takes the role admin; what is removed is logged, with who asked for it.  A
service of our own over gRPC, rather than paths of HTTP: the same gate and errors as all else, and
nothing that a browser could be made to send.
"""

from __future__ import annotations

import binascii
import logging
from typing import TYPE_CHECKING

import grpc

from cas import digest as digests
from cas.access.roles import ANONYMOUS, matches
from cas.api import names
from cas.api.gate import Gate
from cas.api.status import guarded
from cas.digest import KNOWN, Digest, Function, shorten
from cas.errors import InvalidArgument
from cas.index.records import ActionRecord
from cas.pb import admin_pb2 as pb
from cas.reapi import authors
from cas.reapi.instances import is_namespace_of
from cas.store.administration import Administration

if TYPE_CHECKING:
    from cas.rpc.handler import Context, Runtime

SERVICE = "cas.admin.v1.Admin"

PAGE = 1000
"""Records in one answer at most."""

log = logging.getLogger("cas.admin")


class Admin:
    """The servicer."""

    def __init__(self, store: Administration, runtime: Runtime, gate: Gate | None = None) -> None:
        self._store = store
        self._runtime = runtime
        self._gate = gate

    def handler(self) -> grpc.GenericRpcHandler:
        named = pb.ActionResultRequest.FromString
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "GetRecord": grpc.unary_unary_rpc_method_handler(
                    guarded(self.get_record, self._gate), named, pb.Record.SerializeToString
                ),
                "ListRecords": grpc.unary_unary_rpc_method_handler(
                    guarded(self.list_records, self._gate),
                    pb.ListRecordsRequest.FromString,
                    pb.ListRecordsResponse.SerializeToString,
                ),
                "DeleteActionResult": grpc.unary_unary_rpc_method_handler(
                    guarded(self.delete_action_result, self._gate),
                    named,
                    pb.DeleteResponse.SerializeToString,
                ),
                "DeleteBlob": grpc.unary_unary_rpc_method_handler(
                    guarded(self.delete_blob, self._gate),
                    pb.DeleteBlobRequest.FromString,
                    pb.DeleteResponse.SerializeToString,
                ),
                "DropInstance": grpc.unary_unary_rpc_method_handler(
                    guarded(self.drop_instance, self._gate),
                    pb.DropInstanceRequest.FromString,
                    pb.DropInstanceResponse.SerializeToString,
                ),
            },
        )

    async def get_record(self, request: pb.ActionResultRequest, context: Context) -> pb.Record:
        instance = self._admit(request.instance_name, context)
        digest = _digest(request)
        record = await self._runtime.offload(self._store.written, instance, digest)
        return _record(digest.function, digest.hash, record)

    async def list_records(
        self, request: pb.ListRecordsRequest, context: Context
    ) -> pb.ListRecordsResponse:
        instance = self._admit(request.instance_name, context)
        if request.page_size < 0:
            raise InvalidArgument(f"page_size is {request.page_size}, expected 0 or more")
        page_size = min(request.page_size or PAGE, PAGE)
        after = _after(request.page_token)
        page = await self._runtime.offload(self._store.list_written, instance, after)
        wanted = request.principal or "*"
        found = [
            (written, record)
            for written in page.found
            if matches(wanted, (record := _record(*written)).principal)
        ]
        following = page.next
        if len(found) > page_size:
            found = found[:page_size]
            following = self._store.place(instance, found[-1][0])
        token = following.hex() if following is not None else ""
        return pb.ListRecordsResponse(records=[r for _, r in found], next_page_token=token)

    async def delete_action_result(
        self, request: pb.ActionResultRequest, context: Context
    ) -> pb.DeleteResponse:
        instance = self._admit(request.instance_name, context)
        digest = _digest(request)
        await self._runtime.offload(self._store.delete_action, instance, digest)
        self._tell("an action result was deleted", context, instance=instance, hash=digest.hex)
        return pb.DeleteResponse()

    async def delete_blob(
        self, request: pb.DeleteBlobRequest, context: Context
    ) -> pb.DeleteResponse:
        if self._gate is not None:
            self._gate.administer_all(context)
        function = KNOWN.of_number(request.digest_function)
        digest = digests.parse(request.digest.hash, request.digest.size_bytes, function)
        await self._runtime.offload(self._store.delete_blob, digest)
        self._tell("a blob was deleted", context, blob=str(digest))
        return pb.DeleteResponse()

    async def drop_instance(
        self, request: pb.DropInstanceRequest, context: Context
    ) -> pb.DropInstanceResponse:
        instance = self._admit(request.instance_name, context)
        pieces = self._store.drop_instance(instance, is_namespace_of)
        entries = 0
        while (removed := await self._runtime.offload(next, pieces, None)) is not None:
            entries += removed
        self._tell("an instance was dropped", context, instance=instance, entries=entries)
        return pb.DropInstanceResponse(entries=entries)

    def _admit(self, instance: str, context: Context) -> str:
        context.instance = names.check_instance(instance)
        if self._gate is not None:
            self._gate.administer(context)
        return context.instance

    def _tell(self, event: str, context: Context, **facts: object) -> None:
        who = ANONYMOUS if self._gate is None else context.caller.name
        log.info(event, extra={"principal": who, "peer": context.peer(), **facts})


def _digest(request: pb.ActionResultRequest) -> Digest:
    function = KNOWN.of_number(request.digest_function)
    return digests.parse(request.action_digest.hash, 0, function)


def _record(function: Function, raw: bytes, record: ActionRecord) -> pb.Record:
    author = authors.unpack(record.author)
    made = pb.Record(
        action_hash=raw.hex(),
        principal=author.principal,
        peer=author.peer,
        tool=author.tool,
        references=len(record.references),
        result_bytes=len(record.result),
    )
    made.digest_function = function.number  # type: ignore[assignment]
    made.written_at.FromMilliseconds(record.written_at)
    return made


def _after(token: str) -> bytes | None:
    if not token:
        return None
    try:
        return binascii.unhexlify(token)
    except (binascii.Error, ValueError):
        raise InvalidArgument(
            f"page_token {shorten(token)} is not one that an earlier response gave"
        ) from None
