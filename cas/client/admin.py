"""What an operator asks of a cas server (cas.admin.v1).

Rule: gRPC only, and no other server's business; everything is asked once, since who removes
something wants to know what came of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from cas.client import remote as remotes
from cas.client.credentials import Credentials
from cas.client.names import message_of
from cas.client.overgrpc import GrpcWire
from cas.client.remote import Remote
from cas.digest import Digest
from cas.errors import InvalidArgument
from cas.pb import admin_pb2 as pb

_SERVICE = "/cas.admin.v1.Admin/"


class AdminClient:
    """One server, and the instance that the remote's URL names.  `async with` closes it."""

    def __init__(self, remote: str | Remote, credentials: Credentials | None = None) -> None:
        """Raises InvalidArgument for a remote that is not gRPC's."""
        self.remote = remotes.parse(remote) if isinstance(remote, str) else remote
        if self.remote.http:
            raise InvalidArgument(f"{self.remote} is HTTP's; expected grpc://, grpcs:// or unix:")
        self._wire = GrpcWire(self.remote, credentials or Credentials())
        self._get = self._wire.unary(_SERVICE + "GetRecord", pb.Record)
        self._list = self._wire.unary(_SERVICE + "ListRecords", pb.ListRecordsResponse)
        self._delete = self._wire.unary(_SERVICE + "DeleteActionResult", pb.DeleteResponse)
        self._delete_blob = self._wire.unary(_SERVICE + "DeleteBlob", pb.DeleteResponse)
        self._drop = self._wire.unary(_SERVICE + "DropInstance", pb.DropInstanceResponse)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._wire.close()

    async def record(self, action: Digest) -> pb.Record:
        """Who wrote an action result.  Raises NotFound."""
        return await self._get(self._named(action))

    async def records(self, principal: str = "") -> AsyncIterator[pb.Record]:
        """Those of all action results whose principal fits the pattern."""
        token = ""
        while True:
            page = await self._list(
                pb.ListRecordsRequest(
                    instance_name=self.remote.instance, principal=principal, page_token=token
                )
            )
            for record in page.records:
                yield record
            token = page.next_page_token
            if not token:
                return

    async def delete_action(self, action: Digest) -> None:
        """Raises NotFound."""
        await self._delete(self._named(action))

    async def delete_blob(self, digest: Digest) -> None:
        """Raises NotFound."""
        await self._delete_blob(
            pb.DeleteBlobRequest(
                digest=message_of(digest),
                digest_function=digest.function.number,  # type: ignore[arg-type]
            )
        )

    async def drop_instance(self) -> int:
        """How many entries went."""
        request = pb.DropInstanceRequest(instance_name=self.remote.instance)
        return int((await self._drop(request)).entries)

    def _named(self, action: Digest) -> pb.ActionResultRequest:
        return pb.ActionResultRequest(
            instance_name=self.remote.instance,
            action_digest=message_of(action),
            digest_function=action.function.number,  # type: ignore[arg-type]
        )
