"""Server reflection (grpc.reflection.v1alpha): lets grpcurl and its like list the services.

Rule: the library answers; this only carries requests to it, on any engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from cas.api.gate import Gate
from cas.api.status import guarded
from cas.rpc.handler import EOF, Context

SERVICE: str = reflection.SERVICE_NAME


def handler(services: Sequence[str], gate: Gate | None = None) -> grpc.GenericRpcHandler:
    """Describes `services`, given by full name, and itself, to whoever may read something.

    Their protobuf modules must have been imported: descriptors come from the default pool.
    """
    library = reflection.ReflectionServicer([*services, SERVICE])
    # It does not look at the call it answers.
    no_call: Any = None

    async def info(request: object, context: Context) -> None:
        if gate is not None:
            gate.read_anywhere(context)
        while (message := await context.read()) is not EOF:
            for answer in library.ServerReflectionInfo(iter([message]), no_call):
                await context.write(answer)

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
                guarded(info, gate),
                reflection_pb2.ServerReflectionRequest.FromString,
                reflection_pb2.ServerReflectionResponse.SerializeToString,
            )
        },
    )
