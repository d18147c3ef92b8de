"""What a connection over gRPC makes of calls that end early."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import grpc
import grpc.aio
import pytest

from cas import digest as digests
from cas.client.credentials import Credentials
from cas.client.errors import PermissionDenied, Unavailable
from cas.client.overgrpc import GrpcWire
from cas.client.remote import parse

CHUNK = bytes(400_000)


def test_who_may_not_write_is_told_so_however_much_is_on_its_way() -> None:
    """The call ends while the client writes to it.  grpc.aio loses how now and then: whoever asks
    tries again then, and must be told soon."""

    async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "for readers only")

    async def test() -> None:
        handler: Any = grpc.stream_unary_rpc_method_handler(refuse)
        service = "google.bytestream.ByteStream"
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, {"Write": handler})]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        wire = GrpcWire(parse(f"grpc://127.0.0.1:{port}"), Credentials(), None)
        digest = digests.of(os.urandom(100))
        try:
            told = 0
            for _ in range(30):
                pieces = iter((CHUNK, CHUNK, CHUNK, b""))

                async def pull(pieces: Any = pieces) -> bytes:
                    return next(pieces)  # type: ignore[no-any-return]

                with pytest.raises((PermissionDenied, Unavailable)) as raised:
                    await wire.write(digest, wire.upload_name(digest, False), 0, pull, False)
                told += "for readers only (PERMISSION_DENIED)" in str(raised.value)
            assert told > 15
        finally:
            await wire.close()
            await server.stop(0)

    asyncio.run(test())
